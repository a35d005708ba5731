"""Generation against naive loops that read the whole text again for every token."""

import subprocess
import sys
import time

import pytest
import torch

from alignlab.generate import Generation, Sampling, generate, generate_all, weights, workspace
from alignlab.generate.choose import candidates, highest, next_tokens, penalize
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT

EOS, PAD, VOCABULARY = 1, 0, 40
LLAMA = {"kv_heads": 2}
GPT2 = {"norm": "layer", "positions": "learned", "activation": "gelu_tanh", "bias": "all", "tied": True}
QWEN = {"qk_norm": True, "head_width": 8, "bias": "qkv"}
MISTRAL = {"window": 6, "kv_heads": 2}
NANO = {"qk_norm": True, "activation": "relu2", "kv_heads": 2}
FAMILIES = [LLAMA, GPT2, QWEN, MISTRAL, NANO]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 3], [4, 4, 20, 21]]


def tiny(context: int = 48, seed: int = 0, **fields) -> GPT:
    torch.manual_seed(seed)
    fields = {"tied": False} | fields  # tied, fresh weights repeat the last token for ever
    model = GPT(GPTConfig(layers=2, width=32, heads=4, context=context, vocabulary=VOCABULARY, **fields))
    with torch.no_grad():
        for parameter in model.parameters():  # fresh norms and biases would hide their loss
            parameter.add_(0.1 * torch.randn_like(parameter))
        if model.unembedding is not None:
            model.unembedding.weight.mul_(3)  # spread: no near ties between tokens
    return model.eval()


def logits_of(model: GPT, ids: list[int], prefix: int = 0) -> torch.Tensor:
    seen = torch.arange(len(ids))[None] < prefix if prefix else None
    with torch.no_grad():
        return model.unembed(model(torch.tensor([ids]), prefix=seen))[0, -1].float()


def naive_greedy(model: GPT, prompt: list[int], tokens: int, penalty: float = 1.0, prefix: bool = False) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        logits = logits_of(model, ids, len(prompt) if prefix else 0)
        for token in set(ids):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        ids.append(int(logits.argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def naive_beams(
    model: GPT, prompt: list[int], tokens: int, beams: int, penalty: float
) -> list[tuple[float, list[int]]]:
    live, finished = [(0.0, [])], []
    for length in range(1, tokens + 1):
        options = []
        for total, ids in live:
            log_probs = logits_of(model, prompt + ids).log_softmax(-1).tolist()
            options += [(total + log_prob, [*ids, token]) for token, log_prob in enumerate(log_probs)]
        options = sorted(options, reverse=True)[: 2 * beams]
        ended = [option for option in options[:beams] if option[1][-1] == EOS]
        finished += [(total / length**penalty, ids) for total, ids in ended]
        finished = sorted(finished, reverse=True)[:beams]
        live = [option for option in options if option[1][-1] != EOS][:beams]
        if length == tokens:
            finished += [(total / length**penalty, ids) for total, ids in live]
        elif len(finished) == beams and finished[-1][0] >= live[0][0] / length**penalty:
            break
    return sorted(finished, reverse=True)[:beams]


def greedy(model: GPT, prompts=PROMPTS, **fields) -> list[list[int]]:
    sampling = Sampling(max_new_tokens=fields.pop("tokens", 12), temperature=0, **fields)
    return [row.ids for row in generate(model, prompts, sampling, eos_ids=[EOS], pad_id=PAD)]


@pytest.mark.parametrize("family", FAMILIES, ids=["llama", "gpt2", "qwen", "mistral", "nano"])
@pytest.mark.parametrize("fused", [2**24, 0], ids=["fused", "as they are"])
def test_greedy_is_the_naive_loop(family, fused, monkeypatch):
    monkeypatch.setattr(weights, "FUSED_PARAMETERS", fused)  # weights are copied, or read where they lie
    model = tiny(**family)
    assert greedy(model) == [naive_greedy(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES, ids=["llama", "gpt2", "qwen", "mistral", "nano"])
@pytest.mark.parametrize("fused", [2**24, 0], ids=["fused", "as they are"])
def test_many_rows_whose_results_lie_column_by_column(family, fused, monkeypatch):
    monkeypatch.setattr(weights, "FUSED_PARAMETERS", fused)
    model = tiny(**family)
    prompts = [[2 + number, 3, 4 + number % 5] for number in range(16)]
    assert greedy(model, prompts) == [naive_greedy(model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("fields", [{"beams": 3}, {"temperature": 1.0}, {"repetition_penalty": 1.3}])
def test_a_large_vocabulary_whose_scores_lie_column_by_column(fields, monkeypatch):
    sampling = Sampling(**{"max_new_tokens": 12, "temperature": 0, "seed": 0} | fields)
    plain = generate(tiny(), PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, log_probs=True)
    monkeypatch.setattr(workspace, "LARGE_TABLE", 0)
    rows = generate(tiny(), PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, log_probs=True)
    assert [row.ids for row in rows] == [row.ids for row in plain]
    for row, expected in zip(rows, plain, strict=True):
        assert row.log_probs == pytest.approx(expected.log_probs, abs=1e-4)


def test_a_model_with_hooks_takes_the_modules_path_and_gives_the_same():
    model = tiny(**LLAMA)
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    assert greedy(model) == greedy(tiny(**LLAMA))
    assert len(calls) >= 12


@pytest.mark.parametrize("fields", [{}, {"beams": 2}])
def test_a_compiled_model_compiles_nothing_to_generate(fields):
    model = tiny(**LLAMA)
    compiled = tiny(**LLAMA)
    for block in compiled.blocks:
        block.compile(backend=lambda *_: pytest.fail("a block was compiled"))
    compiled.is_compiled = True
    assert greedy(compiled, **fields) == greedy(model, **fields)


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_are_the_naive_search(family, length_penalty):
    model = tiny(**family)
    sampling = Sampling(max_new_tokens=8, temperature=0, beams=3, samples=3, length_penalty=length_penalty)
    rows = generate(model, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, log_probs=True)
    for number, prompt in enumerate(PROMPTS):
        expected = naive_beams(model, prompt, 8, 3, length_penalty)
        found = rows[3 * number : 3 * number + 3]
        assert [row.ids for row in found] == [ids for _, ids in expected]
        assert [row.score for row in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
        for row in found:
            assert row.score == pytest.approx(sum(row.log_probs) / len(row.ids) ** length_penalty, abs=1e-4)


def test_beams_end_at_eos_and_some_end_early():
    finished = {row.finished_by for seed in range(4) for row in _beams(tiny(seed=seed))}
    assert "eos" in finished


def _beams(model: GPT) -> list[Generation]:
    sampling = Sampling(max_new_tokens=20, temperature=0, beams=4, length_penalty=0.5)
    return generate(model, PROMPTS, sampling, eos_ids=[EOS, 2, 3], pad_id=PAD)


def test_batched_is_single_and_the_order_is_that_of_the_prompts():
    model = tiny()
    prompts = [list(range(2, 2 + length)) for length in (9, 1, 30, 4, 17, 2)]
    single = [greedy(model, [prompt])[0] for prompt in prompts]
    assert greedy(model, prompts) == single
    sampling = Sampling(max_new_tokens=12, temperature=0)
    rows = generate_all(model, prompts, sampling, eos_ids=[EOS], pad_id=PAD, batch_tokens=60)
    assert [row.ids for row in rows] == single


def test_rows_end_at_their_own_eos_and_leave_the_batch():
    model = tiny()
    plain = greedy(model, tokens=12)
    ends = [plain[0][2], plain[1][5]]
    sampling = Sampling(max_new_tokens=12, temperature=0)
    rows = generate(model, PROMPTS, sampling, eos_ids=ends, pad_id=PAD)
    for row, ids in zip(rows, plain, strict=True):
        first = next((place for place, token in enumerate(ids) if token in ends or token == EOS), 11)
        assert row.ids == ids[: first + 1]
        assert row.finished_by == ("eos" if ids[first] in ends else "length")


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_counts_prompt_and_continuation_but_not_padding(penalty):
    model = tiny()
    expected = [naive_greedy(model, prompt, 12, penalty) for prompt in PROMPTS]
    assert greedy(model, repetition_penalty=penalty) == expected
    assert expected != greedy(model)


def test_prefix_lets_the_prompt_see_itself():
    model = tiny()
    sampling = Sampling(max_new_tokens=10, temperature=0)
    rows = generate(model, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, prefix=True)
    assert [row.ids for row in rows] == [naive_greedy(model, prompt, 10, prefix=True) for prompt in PROMPTS]


def test_log_probs_are_those_of_an_uncached_pass_at_the_sampling_temperature():
    model = tiny()
    sampling = Sampling(max_new_tokens=9, temperature=0.7, top_k=5, repetition_penalty=1.2, samples=2, seed=3)
    rows = generate(model, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, log_probs=True)
    for number, row in enumerate(rows):
        prompt = PROMPTS[number // 2]
        expected = [
            (logits_of(model, prompt + row.ids[:place]) / 0.7).log_softmax(-1)[token].item()
            for place, token in enumerate(row.ids)
        ]
        assert row.log_probs == pytest.approx(expected, abs=1e-4)


def test_draws_follow_their_seed_and_leave_the_global_generator_alone():
    model = tiny()
    sampling = Sampling(max_new_tokens=10, samples=4, seed=5)
    state = torch.get_rng_state()
    first, again = (generate(model, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD) for _ in range(2))
    other = generate(model, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, generator=torch.Generator().manual_seed(6))
    assert first == again != other
    assert len({tuple(row.ids) for row in first[:4]}) > 1
    assert torch.equal(state, torch.get_rng_state())


def test_draws_have_the_models_distribution():
    model = tiny()
    sampling = Sampling(max_new_tokens=1, temperature=2.0, samples=20_000, seed=0)
    rows = generate(model, [PROMPTS[1]], sampling, eos_ids=[EOS], pad_id=PAD)
    drawn = torch.bincount(torch.tensor([row.ids[0] for row in rows]), minlength=VOCABULARY)
    expected = 20_000 * (logits_of(model, PROMPTS[1]) / 2).softmax(-1)
    chi_square = ((drawn - expected).square() / expected)[expected > 5].sum().item()
    assert chi_square < 80  # at most 39 degrees of freedom: p = 1e-4


def test_filters_keep_what_they_say():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(**fields) -> list[int]:
        values, index = candidates(logits, Sampling(**fields))
        index = torch.arange(4)[None] if index is None else index
        return sorted(index[values > -torch.inf].tolist())

    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.7) == [0, 1]  # 0.5 < 0.7 <= 0.8
    assert kept(top_p=0.01) == [0]
    assert kept(min_p=0.2) == [0, 1, 2]  # 0.15 >= 0.2 x 0.5
    assert kept(top_k=3, top_p=0.6) == [0, 1]  # after top-k 0.526, 0.316, 0.158
    assert kept(top_k=2, top_p=0.52) == [0]  # after top-k 0.625; 0.5 of the whole would not cover it
    assert penalize(torch.tensor([[2.0, -2.0, 2.0]]), torch.tensor([[True, True, False]]), 2.0).tolist() == [[1, -4, 2]]


@pytest.mark.parametrize(("size", "count"), [(4096, 8), (5000, 8), (700, 50), (12_800, 100)])
def test_the_highest_scores_are_those_of_topk(size, count):
    scores = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    scores[1, 640:704] += 9  # all in one chunk
    values, places = highest(scores, count)
    expected = scores.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)


def test_top_p_of_a_flat_distribution_looks_beyond_the_likeliest_256():
    values, _ = candidates(torch.zeros(1, 1000), Sampling(top_p=0.9))
    assert (values > -torch.inf).sum().item() == pytest.approx(900, abs=1)
    drawn = next_tokens(torch.zeros(2000, 1000), Sampling(top_p=0.9), torch.Generator().manual_seed(0))
    assert drawn.unique().numel() > 700


def letters(ids: list[int]) -> str:
    return "".join(chr(97 + token % 26) * (1 + token % 3) for token in ids)  # one to three characters each


def test_a_stop_string_is_found_across_tokens_and_cut_from_the_text():
    model = tiny()
    ids = greedy(model, [PROMPTS[0]])[0]
    whole = letters(ids)
    stop = letters(ids[:5])[-2:] + letters(ids[5:6])[:1]
    sampling = Sampling(max_new_tokens=12, temperature=0, stop=(stop,))
    row = generate(model, [PROMPTS[0]], sampling, eos_ids=[EOS], pad_id=PAD, decode=letters)[0]
    assert row.finished_by == "stop"
    assert row.text == whole[: whole.index(stop)]
    assert stop in letters(row.ids)
    assert stop not in letters(row.ids[:-1])


def test_streaming_hears_every_token_in_order():
    heard: dict[int, list[int]] = {}
    sampling = Sampling(max_new_tokens=10, samples=2, seed=1)
    rows = generate_all(
        tiny(), PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, batch_tokens=40,
        on_token=lambda row, token: heard.setdefault(row, []).append(token),
    )  # fmt: skip
    assert [heard[number] for number in range(6)] == [row.ids for row in rows]


def test_a_long_prompt_is_cut_from_the_left_and_nothing_leaves_the_context():
    model = tiny(context=16, **GPT2)
    prompt = [2 + number % 30 for number in range(100)]
    long, short = generate(model, [prompt, [7]], Sampling(max_new_tokens=50, temperature=0), eos_ids=[], pad_id=PAD)
    assert long.cut == 88  # 16 - min(50, 16 / 4) = 12 are kept
    assert long.ids == naive_greedy(model, prompt[-12:], 4)
    assert short.cut == 0
    assert len(short.ids) == 15
    assert short.ids == naive_greedy(model, [7], 15)


def test_an_empty_prompt_starts_from_the_end_token():
    model = tiny()
    assert greedy(model, [[], PROMPTS[0]]) == greedy(model, [[EOS], PROMPTS[0]])
    assert generate(model, [], Sampling(), eos_ids=[EOS], pad_id=PAD) == []


@pytest.mark.parametrize("beams", [1, 2])
def test_seconds_bound_the_whole(beams):
    model = tiny(context=4096)
    sampling = Sampling(max_new_tokens=4000, temperature=0, seconds=0.1, beams=beams)
    started = time.monotonic()
    rows = generate_all(model, PROMPTS * 3, sampling, eos_ids=[], pad_id=PAD, batch_tokens=9000)
    assert time.monotonic() - started < 2
    assert {row.finished_by for row in rows} == {"time"}
    assert 0 < max(len(row.ids) for row in rows) < 4000


def test_the_model_goes_back_to_training_and_its_outputs_may_meet_autograd():
    model = tiny(dropout=0.5).train()
    model.norm.eval()
    assert greedy(model) == greedy(tiny(dropout=0.5))
    assert model.training
    assert model.blocks[0].training
    assert not model.norm.training


@pytest.mark.parametrize("where", ["weights", "autocast"])
def test_bfloat16_is_that_of_the_modules(where):
    model, slow = tiny(**LLAMA), tiny(**LLAMA)
    slow.norm.register_forward_hook(lambda *_: None)
    if where == "weights":
        model, slow = model.bfloat16(), slow.bfloat16()
    sampling = Sampling(max_new_tokens=6, temperature=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"):
        fast, plain = (
            generate(one, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, log_probs=True) for one in (model, slow)
        )
    for row, other in zip(fast, plain, strict=True):
        assert row.log_probs[:2] == pytest.approx(other.log_probs[:2], abs=0.15)  # later tokens may differ by rounding


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"beams": 2, "temperature": 1.0}, "set temperature=0"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0"),
        ({"beams": 2, "samples": 3, "temperature": 0}, "beams=2 can give that many at most"),
        ({"seconds": 0}, "expected above 0"),
        ({"stop": ("",)}, "not empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**fields)


def test_stop_strings_need_a_decoder():
    with pytest.raises(ValueError, match="decode is None"):
        generate(tiny(), PROMPTS, Sampling(stop=("x",)), eos_ids=[EOS], pad_id=PAD)


def test_settings_are_torch_free():
    code = "import sys; from alignlab.generate import Sampling; Sampling(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("family", [LLAMA, GPT2])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_row_that_is_full_may_stay_beside_others_that_go_on(family, hooked):
    model = tiny(**family)
    if hooked:  # takes the modules' path
        model.blocks[0].register_forward_hook(lambda *_: None)
    # the first fills the context after 12 tokens, and one in nine finished rows does not make the batch smaller
    prompts = [[7] * 36, *([3 + row, 9] for row in range(8))]
    written = generate(model, prompts, Sampling(max_new_tokens=30, temperature=0), eos_ids=[VOCABULARY + 1], pad_id=PAD)
    assert len(written[0].ids) == 12
    for prompt, one in zip(prompts[1:], written[1:], strict=True):
        assert len(one.ids) == 30
        expected = naive_greedy(model, prompt, 12)  # ends at EOS
        assert one.ids[: len(expected)] == expected


@pytest.mark.parametrize("fused", [2**24, 0])
def test_greedy_with_layer_norms_of_heads_is_the_naive_loop(fused, monkeypatch):
    monkeypatch.setattr(weights, "FUSED_PARAMETERS", fused)
    model = tiny(norm="layer", qk_norm=True, bias="all")
    with torch.no_grad():
        for block in model.blocks:
            for norm in (block.attention.query_norm, block.attention.key_norm):
                norm.bias.add_(torch.randn_like(norm.bias))
    prompts = [[2 + number, 3, 4 + number % 5] for number in range(8)]
    assert greedy(model, prompts) == [naive_greedy(model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("penalty", [1.5, 0.6])
def test_beams_with_a_penalty_are_the_naive_search(penalty):
    model, beams, tokens = tiny(), 3, 8
    sampling = Sampling(max_new_tokens=tokens, temperature=0, beams=beams, samples=beams, length_penalty=0.0,
                        repetition_penalty=penalty)  # fmt: skip
    rows = generate(model, PROMPTS, sampling, eos_ids=[1000], pad_id=PAD)
    for number, prompt in enumerate(PROMPTS):
        live = [(0.0, [])]
        for _ in range(tokens):
            options = []
            for total, ids in live:
                log_probs = logits_of(model, prompt + ids).log_softmax(-1)
                seen = torch.tensor(sorted({*prompt, *ids}))
                log_probs[seen] *= penalty  # none is above 0
                options += [(total + one, [*ids, token]) for token, one in enumerate(log_probs.tolist())]
            live = sorted(options, reverse=True)[:beams]
        assert [row.ids for row in rows[beams * number :][:beams]] == [ids for _, ids in live]


def test_a_penalty_follows_its_row_when_others_leave_the_batch():
    model, prompts = tiny(), [[2 + number, 3, 4 + number % 5] for number in range(8)]
    plain = [naive_greedy(model, prompt, 12, penalty=1.3) for prompt in prompts]
    ends = [plain[0][1], plain[1][2]]
    sampling = Sampling(max_new_tokens=12, temperature=0, repetition_penalty=1.3)
    rows = generate(model, prompts, sampling, eos_ids=[*ends, EOS], pad_id=PAD)
    lengths = set()
    for row, ids in zip(rows, plain, strict=True):
        first = next((place for place, token in enumerate(ids) if token in (*ends, EOS)), len(ids) - 1)
        assert row.ids == ids[: first + 1]
        lengths.add(first)
    assert len(lengths) > 2
