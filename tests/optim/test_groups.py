"""Roles, weight-decay groups and layer-wise rates, on the names that our GPT gives its weights."""

import pytest
import torch
from torch import nn

from alignlab.optim import SGD, AdamW, Muon, role

SHAPES = {
    "model.embed.weight": (10, 4),
    "model.positions.weight": (8, 4),
    "model.blocks.0.attention_norm.weight": (4,),
    "model.blocks.0.attention.query.weight": (4, 4),
    "model.blocks.0.attention.query.bias": (4,),
    "model.blocks.1.feedforward.down.weight": (4, 16),
    "model.norm.weight": (4,),
    "model.unembedding.weight": (10, 4),
    "head.weight": (3, 4),
}


def named(shapes=SHAPES):
    return [(name, nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()]


def depth_of(name):
    return 0 if "embed." in name or "positions" in name else int(name.split(".")[2]) + 1 if "blocks" in name else 3


def names_where(optimizer, parameters, claim):
    names = {id(p): name.removeprefix("model.") for name, p in parameters}
    return {names[id(p)] for group in optimizer.param_groups if claim(group) for p in group["params"]}


def test_roles():
    roles = {name.removeprefix("model."): role(name, p) for name, p in named()}
    assert roles == {
        "embed.weight": "embedding",
        "positions.weight": "embedding",
        "blocks.0.attention_norm.weight": "vector",
        "blocks.0.attention.query.weight": "hidden",
        "blocks.0.attention.query.bias": "vector",
        "blocks.1.feedforward.down.weight": "hidden",
        "norm.weight": "vector",
        "unembedding.weight": "embedding",
        "head.weight": "readout",
    }


@pytest.mark.parametrize("optim", [AdamW(), SGD(weight_decay=0.1), Muon()])
def test_only_matrices_that_are_no_embeddings_decay(optim):
    parameters = named()
    optimizer = optim.build(parameters)
    decayed = names_where(optimizer, parameters, lambda group: group["weight_decay"] == 0.1)
    assert decayed == {"blocks.0.attention.query.weight", "blocks.1.feedforward.down.weight", "head.weight"}
    assert len(names_where(optimizer, parameters, lambda group: True)) == len(parameters)


def test_muon_orthogonalizes_hidden_matrices_only():
    parameters = named()
    orthogonal = names_where(Muon().build(parameters), parameters, lambda group: group["orthogonal"])
    assert orthogonal == {"blocks.0.attention.query.weight", "blocks.1.feedforward.down.weight"}


@pytest.mark.parametrize("optim", [AdamW, Muon])
def test_layer_decay_lowers_the_rate_with_distance_from_the_head(optim):
    parameters = named()
    optimizer = optim(lr=0.8, layer_decay=0.5).build(parameters, depth_of=depth_of, depth=3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    lr = {name.removeprefix("model."): rates[id(p)] for name, p in parameters}
    assert lr["head.weight"] == lr["norm.weight"] == 0.8
    assert lr["blocks.1.feedforward.down.weight"] == 0.4
    assert lr["blocks.0.attention.query.weight"] == lr["blocks.0.attention.query.bias"] == 0.2
    assert lr["embed.weight"] == 0.1


def test_a_table_of_ngrams_is_an_embedding_that_learns_faster():
    parameters = named({**SHAPES, "ngrams.embedding.weight": (16, 3)})
    for optim in (AdamW(lr=0.5), Muon(lr=0.5), SGD(lr=0.5, weight_decay=0.1)):
        optimizer = optim.build(parameters)
        rates = {
            id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
        }
        assert [rates[id(p)] for name, p in parameters if name.startswith("ngrams")] == [(20 * 0.5, 0)]
        assert {rate for one, (rate, _) in rates.items() if one != id(parameters[-1][1])} == {0.5}


def test_layer_decay_without_depths_is_refused():
    with pytest.raises(ValueError, match=r"optim.layer_decay is 0.5, but this task.*remove optim.layer_decay"):
        AdamW(layer_decay=0.5).build(named())


def test_frozen_weights_are_left_out_and_all_frozen_is_refused():
    parameters = named()
    parameters[0][1].requires_grad_(False)
    assert "embed.weight" not in names_where(AdamW().build(parameters), parameters, lambda group: True)
    for _, parameter in parameters:
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no weight is left to learn: all are frozen; choose another tuning="):
        AdamW().build(parameters)
