"""What a rollout hands to the loss: a prompt that is read once gives what reading it with each answer gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignlab.batch import IGNORED
from alignlab.generate import Generation
from alignlab.losses import token_log_probs
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.tasks.rollout import Rollout, joined

PROMPTS = [[5, 6, 7, 8, 9], [4, 3], [11, 12, 13]]
ANSWERS = [[1, 2, 3, 4], [9], [7, 7], [2, 1], [8, 6, 5, 1, 2, 3], [10, 0]]  # two to each prompt


def answered(answers: list[list[int]], cut: int = 0) -> list[Generation]:
    return [Generation(ids=ids, finished_by="eos", log_probs=[], cut=cut) for ids in answers]


def gradients(model: GPT, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*model.parameters()]))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "shape", [{}, {"positions": "learned", "norm": "layer"}, {"kv_heads": 1, "qk_norm": True}, {"window": 4}]
)
@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 2, 3], [4, 3, 2], [7, 7, 7]]])
def test_a_prompt_read_once_is_as_good_as_one_for_each_answer(
    prompts: list[list[int]], shape: dict, recompute: bool
) -> None:
    torch.manual_seed(0)
    config = GPTConfig(layers=2, width=16, heads=2, context=12, vocabulary=14, **shape)
    model = GPT(config, recompute_activations=recompute)
    written = joined(prompts, answered(ANSWERS), 0, torch.device("cpu"))
    shared = token_log_probs(model.unembed, written.hidden(model), written.targets)
    weight = torch.linspace(-1, 2, shared.numel()).view(shared.shape)
    alone = torch.zeros_like(shared)
    for row, answer in enumerate(ANSWERS):
        prompt = prompts[row // 2]
        ids = torch.tensor([prompt + answer])
        targets = torch.tensor([[IGNORED] * (len(prompt) - 1) + answer])
        found = token_log_probs(model.unembed, model(ids[:, :-1]), targets)[0, len(prompt) - 1 :]
        alone[row, : len(answer)] = found
    assert torch.allclose(shared, alone, atol=1e-5)
    pairs = zip(gradients(model, (shared * weight).sum()), gradients(model, (alone * weight).sum()), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


@pytest.mark.parametrize("layers", [1, 3])
def test_compiled_layers_are_compiled_once_for_all_of_them(layers: int) -> None:
    torch._dynamo.reset()  # what was compiled for other layers counts too
    model = GPT(GPTConfig(layers=layers, width=16, heads=2, context=12, vocabulary=14))
    written = joined(PROMPTS, answered(ANSWERS), 0, torch.device("cpu"))
    plain = written.hidden(model)
    graphs = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    for block in model.blocks:
        block.compile(backend=counting)
    assert torch.allclose(written.hidden(model), plain, atol=1e-6)
    assert len(graphs) == 2  # for prompts, for answers


def test_what_is_read_counts_a_prompt_once() -> None:
    written = joined(PROMPTS, answered(ANSWERS), 0, torch.device("cpu"))
    assert written.tokens == sum(map(len, PROMPTS)) + sum(len(answer) - 1 for answer in ANSWERS)
    assert written.lengths.tolist() == [4, 1, 2, 2, 6, 2]
    assert written.prompts.tolist() == [[5, 6, 7, 8, 9], [0, 0, 0, 4, 3], [0, 0, 11, 12, 13]]


def test_a_prompt_that_was_cut_is_read_as_it_was() -> None:
    written = joined([[5, 6, 7], [8, 9, 10]], answered([[1], [2]], cut=1), 0, torch.device("cpu"))
    assert written.prompts.tolist() == [[6, 7], [9, 10]]
    assert written.documents is None


def test_a_rollout_comes_back_from_its_state() -> None:
    written = joined(PROMPTS, answered(ANSWERS), 0, torch.device("cpu"))
    rollout = Rollout(written, torch.arange(6.0), None, torch.ones(6, 6))
    back = Rollout.from_state(rollout.state(), torch.device("cpu"))
    assert back.reference is None
    assert back.old is not None
    assert back.written.documents is not None
    assert torch.equal(back.written.documents, written.documents)
    assert torch.equal(back.written.targets, written.targets)
