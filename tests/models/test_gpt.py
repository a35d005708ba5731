"""Laws of the backbone, for each family's architecture: what a token sees; that how it is fed changes nothing."""

# B batch, T tokens, V vocabulary

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from alignlab.models.cache import KVCache
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT

CLOSE = {"atol": 2e-5, "rtol": 0}
LENGTHS = (3, 7, 5)
PAD = 0


def logits(model: GPT, ids: Tensor, **how: Tensor | KVCache | None) -> Tensor:
    with torch.no_grad():
        return model.unembed(model(ids, **how))


def empty_cache(model: GPT, rows: int) -> KVCache:
    return KVCache(model.config, rows=rows, capacity=16, device="cpu", dtype=torch.float32)


def left_padded(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and documents (3, 7): the first LENGTHS tokens of each row, flush right."""
    rows = [F.pad(row[:length], (7 - length, 0), value=PAD) for row, length in zip(ids, LENGTHS, strict=True)]
    documents = [F.pad(torch.zeros(length), (7 - length, 0), value=-1).long() for length in LENGTHS]
    return torch.stack(rows), torch.stack(documents)


@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 1, 4, 2), (12,)])
def test_cached_equals_uncached(model: GPT, ids: Tensor, chunks: tuple[int, ...]) -> None:
    cache = empty_cache(model, rows=3)
    pieces = [logits(model, piece, cache=cache) for piece in ids.split(chunks, dim=1)]
    assert_close(torch.cat(pieces, dim=1), logits(model, ids), **CLOSE)


def test_cached_after_a_visible_prefix_equals_uncached(model: GPT, ids: Tensor) -> None:
    prefix = (torch.arange(12) < 5).expand(3, -1)
    cache = empty_cache(model, rows=3)
    pieces = [logits(model, ids[:, :7], prefix=prefix[:, :7], cache=cache)]
    pieces += [logits(model, ids[:, 7:8], cache=cache), logits(model, ids[:, 8:], cache=cache)]
    assert_close(torch.cat(pieces, dim=1), logits(model, ids, prefix=prefix), **CLOSE)


def test_a_row_does_not_depend_on_its_batch(model: GPT, ids: Tensor) -> None:
    alone = torch.cat([logits(model, row[None]) for row in ids])
    assert_close(logits(model, ids), alone, **CLOSE)


def test_left_padded_right_padded_and_packed_equal_alone(model: GPT, ids: Tensor) -> None:
    alone = [logits(model, row[None, :length])[0] for row, length in zip(ids, LENGTHS, strict=True)]

    left = logits(model, left_padded(ids)[0], documents=left_padded(ids)[1])
    inside = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    right = logits(model, ids[:, :7].where(inside, PAD), documents=torch.where(inside, 0, -1))
    packed_ids = torch.cat([row[:length] for row, length in zip(ids, LENGTHS, strict=True)])[None]
    documents = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))[None]
    packed = logits(model, packed_ids, documents=documents)[0].split(LENGTHS)

    for row, length in enumerate(LENGTHS):
        assert_close(left[row, 7 - length :], alone[row], **CLOSE)
        assert_close(right[row, :length], alone[row], **CLOSE)
        assert_close(packed[row], alone[row], **CLOSE)


@pytest.mark.parametrize("chunks", [(1, 1, 1), (2, 1), (3,)])
def test_a_left_padded_batch_decodes_as_each_row_alone(model: GPT, ids: Tensor, chunks: tuple[int, ...]) -> None:
    prompts, documents = left_padded(ids)
    cache = empty_cache(model, rows=3)
    logits(model, prompts, documents=documents, cache=cache)
    decoded = torch.cat([logits(model, piece, cache=cache) for piece in ids[:, 9:].split(chunks, dim=1)], dim=1)
    for row, length in enumerate(LENGTHS):
        alone = logits(model, torch.cat((ids[row, :length], ids[row, 9:]))[None])[0, length:]
        assert_close(decoded[row], alone, **CLOSE)


def test_selected_rows_go_on_as_themselves(model: GPT, ids: Tensor) -> None:
    cache = empty_cache(model, rows=3)
    logits(model, ids[:, :8], cache=cache)
    cache.select(torch.tensor([2, 0, 2, 1]))
    decoded = logits(model, ids[[2, 0, 2, 1], 8:], cache=cache)
    assert_close(decoded, logits(model, ids)[[2, 0, 2, 1], 8:], **CLOSE)


def test_selected_rows_of_a_left_padded_batch_keep_their_positions(model: GPT, ids: Tensor) -> None:
    prompts, documents = left_padded(ids)
    cache = empty_cache(model, rows=3)
    logits(model, prompts, documents=documents, cache=cache)
    cache.select(torch.tensor([1, 0]))
    decoded = logits(model, ids[[1, 0], 9:], cache=cache)
    for place, row in enumerate((1, 0)):
        alone = logits(model, torch.cat((ids[row, : LENGTHS[row]], ids[row, 9:]))[None])[0, LENGTHS[row] :]
        assert_close(decoded[place], alone, **CLOSE)


@pytest.mark.parametrize("moment", [1, 6, 11])
def test_a_logit_does_not_see_later_tokens(model: GPT, ids: Tensor, moment: int) -> None:
    changed = ids.clone()
    changed[:, moment:] = (ids[:, moment:] + 1) % 50
    before, after = logits(model, ids), logits(model, changed)
    assert torch.equal(before[:, :moment], after[:, :moment])
    assert (before[:, moment] - after[:, moment]).abs().max() > 1e-3


def test_a_prefix_is_seen_by_its_whole_document_and_nothing_after_it_is(model: GPT, ids: Tensor) -> None:
    model.config = replace(model.config, window=None)
    prefix = (torch.arange(12) < 5).expand(3, -1)
    before = logits(model, ids, prefix=prefix)
    inside, outside = ids.clone(), ids.clone()
    inside[:, 4] = (ids[:, 4] + 1) % 50
    outside[:, 5] = (ids[:, 5] + 1) % 50
    assert ((logits(model, inside, prefix=prefix) - before)[:, :4].abs().amax(dim=2) > 1e-4).all()
    assert torch.equal(logits(model, outside, prefix=prefix)[:, :5], before[:, :5])


def test_a_packed_document_does_not_see_its_neighbour(model: GPT, ids: Tensor) -> None:
    documents = torch.tensor([0] * 5 + [1] * 7).expand(3, -1)
    prefix = torch.tensor([True, True] + [False] * 3 + [True, True] + [False] * 5).expand(3, -1)
    changed = ids.clone()
    changed[:, :5] = (ids[:, :5] + 1) % 50
    for how in ({"documents": documents}, {"documents": documents, "prefix": prefix}):
        before, after = logits(model, ids, **how), logits(model, changed, **how)
        assert torch.equal(before[:, 5:], after[:, 5:])
        assert not torch.equal(before[:, :5], after[:, :5])


def test_a_window_counts_its_own_token(ids: Tensor) -> None:
    model = GPT(GPTConfig(layers=1, width=32, heads=4, vocabulary=50, window=4)).eval()
    changed = ids.clone()
    changed[:, 2] = (ids[:, 2] + 1) % 50
    moved = (logits(model, ids) - logits(model, changed)).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, False, True, True, True, True] + [False] * 6


def test_a_fresh_model_is_as_wrong_as_chance(model: GPT) -> None:
    torch.manual_seed(0)
    fresh = GPT(replace(model.config, vocabulary=1000)).eval()
    ids = torch.randint(1000, (8, 64))
    loss = F.cross_entropy(logits(fresh, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss == pytest.approx(math.log(1000), abs=0.1)


def test_one_batch_is_memorized(model: GPT, ids: Tensor) -> None:
    torch.manual_seed(0)
    fresh = GPT(model.config)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    ids = ids[:, :6]  # short: the first tokens of the rows differ, so each row can be told from the others
    for _ in range(60):
        loss = F.cross_entropy(fresh.unembed(fresh(ids))[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def gradients(model: GPT, ids: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    model.train().zero_grad()
    model.unembed(model(ids)).logsumexp(dim=-1).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_recomputed_activations_give_equal_gradients(model: GPT, ids: Tensor) -> None:
    model.config = replace(model.config, dropout=0.2)
    for block in model.blocks:
        block.dropout = 0.2
    kept = gradients(model, ids)
    model.recompute_activations = True
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, ids), kept, strict=True))


@pytest.mark.parametrize("model", ["nano", "mistral"], indirect=True)
def test_the_graph_is_captured_whole_and_equals_eager(model: GPT, ids: Tensor) -> None:
    captured = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_close(captured(ids), model(ids), **CLOSE)


@pytest.mark.slow
def test_compiled_equals_eager(ids: Tensor) -> None:
    model = GPT(GPTConfig(layers=1, width=32, heads=4, vocabulary=50, qk_norm=True, activation="relu2"))
    eager = gradients(model, ids)
    for block in model.blocks:
        block.compile()
    for compiled, reference in zip(gradients(model, ids), eager, strict=True):
        assert_close(compiled, reference, atol=1e-4, rtol=1e-4)


def test_bf16_autocast_stays_near_fp32(model: GPT, ids: Tensor) -> None:
    exact = logits(model, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = logits(model, ids)
        cache = KVCache(model.config, rows=3, capacity=16, device="cpu", dtype=torch.bfloat16)
        pieces = [logits(model, piece, cache=cache) for piece in ids.split((5, 1, 6), dim=1)]
    assert F.cosine_similarity(exact, rounded.float(), dim=-1).min() > 0.999
    assert F.cosine_similarity(exact, torch.cat(pieces, dim=1).float(), dim=-1).min() > 0.999


def test_bf16_products_see_what_the_mask_shows() -> None:
    model = GPT(GPTConfig(layers=2, width=32, heads=4, vocabulary=50))
    ids, other = torch.arange(36).view(3, 12), torch.arange(36).view(3, 12).clone()
    prefix = torch.arange(12) < torch.tensor([[4], [9], [12]])
    other[0, 7:] = 49  # after the prefix of row 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, moved = logits(model, ids, prefix=prefix), logits(model, other, prefix=prefix)
    assert F.cosine_similarity(logits(model, ids, prefix=prefix), rounded.float(), dim=-1).min() > 0.999
    assert F.cosine_similarity(logits(model, ids), rounded.float(), dim=-1)[1, :8].max() < 0.999
    assert torch.equal(rounded[0, :7], moved[0, :7])


def test_learned_positions_that_run_out_are_refused() -> None:
    model = GPT(GPTConfig(layers=1, width=8, heads=1, context=4, vocabulary=5, positions="learned"))
    with pytest.raises(ValueError, match="5 tokens do not fit learned positions for 4"):
        model(torch.zeros(1, 5, dtype=torch.long))


def test_parameters_of_four_bits_count_as_what_they_stand_for() -> None:
    model = GPT(GPTConfig(layers=1, width=32, heads=2, vocabulary=40))
    whole = model.parameter_count()
    packed = nn.Parameter(torch.zeros(32 * 32 // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size([32, 32]))  # as bitsandbytes keeps it
    model.blocks[0].attention.output.weight = packed
    assert model.parameter_count() == whole
