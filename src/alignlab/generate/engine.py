"""The loop around the model: prompts in, continuations out.

Unusual: prompts of different lengths share a batch by padding on the left with document -1, and rows that are finished
leave the batch, so that the last long rows run alone. Draws come from an own generator: the global one is untouched.
It runs under `no_grad`, not `inference_mode`, so that its tensors may meet autograd later, and leaves autocast to the
caller. It knows nothing of text; `decode` is handed in.
"""

# N prompts, B rows in the batch, P longest prompt, V vocabulary

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignlab.generate.beams import search
from alignlab.generate.choose import next_tokens, penalize, token_log_probs
from alignlab.generate.decoder import eager, stepper
from alignlab.generate.prefill import prefill, tokens_seen
from alignlab.generate.sampling import FinishedBy, Generation, Sampling
from alignlab.generate.stop import before_stop, is_stopped
from alignlab.models.gpt import GPT

Decode = Callable[[list[int]], str]
OnToken = Callable[[int, int], None]  # row of the answer, id
KEPT_SHARE = 7 / 8  # finished rows are dropped when at most this share of the batch goes on


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_ids: Collection[int],
    pad_id: int,
    generator: torch.Generator | None = None,
    prefix: bool = False,
    decode: Decode | None = None,
    on_token: OnToken | None = None,
    log_probs: bool = False,
    uniforms: Tensor | None = None,
) -> list[Generation]:
    """Continues N prompts in one batch: N x samples generations, those of the first prompt first.

    Prompt and continuation stay within `model.config.context`. A prompt that leaves less room than
    min(max_new_tokens, context / 4) is cut from the left (`Generation.cut`); an empty one starts from the first end
    token. `prefix` lets a prompt see itself fully. `decode` gives `Generation.text` and is needed for stop strings.
    `on_token(row, id)` hears each token as it is drawn. `generator` goes before `sampling.seed`, and must be on the
    model's device. `uniforms` (N x samples, max_new_tokens) in [0, 1) decide the draws instead, so that an answer does
    not depend on what else is in the batch. Raises ValueError for stop strings without `decode`, and for `on_token`
    with beams.
    """
    if sampling.stop and decode is None:
        raise ValueError(f"stop is {sampling.stop}, but decode is None; hand in a function from ids to text")
    if sampling.beams > 1 and on_token is not None:
        raise ValueError(f"on_token needs beams=1; got beams={sampling.beams}, whose words change as they are searched")
    if not prompts:
        return []
    deadline = None if sampling.seconds is None else time.monotonic() + sampling.seconds
    start = next(iter(eos_ids), pad_id)
    longest = model.config.context - min(sampling.max_new_tokens, max(1, model.config.context // 4))
    kept = [list(prompt)[-longest:] or [start] for prompt in prompts]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), eager(model):
            run = _searched if sampling.beams > 1 else _sampled
            rows = run(
                model,
                kept,
                sampling,
                frozenset(eos_ids),
                pad_id,
                generator,
                prefix,
                decode,
                on_token,
                log_probs,
                deadline,
                uniforms,
            )
    finally:
        for module in training:
            module.training = True
    each = sampling.samples
    return [
        replace(
            row,
            cut=max(0, len(prompts[number // each]) - longest),
            text=None if decode is None else before_stop(row.ids, decode, sampling.stop, row.finished_by),
        )
        for number, row in enumerate(rows)
    ]


def generate_all(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_ids: Collection[int],
    pad_id: int,
    batch_tokens: int = 32_768,
    generator: torch.Generator | None = None,
    prefix: bool = False,
    decode: Decode | None = None,
    on_token: OnToken | None = None,
    log_probs: bool = False,
    uniforms: Tensor | None = None,
) -> list[Generation]:
    """`generate` for any number of prompts, in batches of like length; answers in the order of the prompts.

    `batch_tokens` bounds rows x (longest prompt + new tokens) of a batch, so its memory. `sampling.seconds` bounds
    the whole; prompts that were not reached come back without ids, finished by "time".
    """
    if generator is None:
        generator = _generator(sampling, model.embed.weight.device)
    started = time.monotonic()
    answers: list[list[Generation]] = [[] for _ in prompts]
    for batch in _batches(prompts, sampling, model.config.context, batch_tokens):
        left = None if sampling.seconds is None else sampling.seconds - (time.monotonic() - started)
        if left is not None and left <= 0:
            missed = Generation(ids=[], finished_by="time", log_probs=[], text=None if decode is None else "")
            for number in batch:
                answers[number] = [missed] * sampling.samples
            continue

        def heard(row: int, token: int, batch: list[int] = batch) -> None:
            assert on_token is not None
            on_token(batch[row // sampling.samples] * sampling.samples + row % sampling.samples, token)

        rows = generate(
            model,
            [prompts[number] for number in batch],
            replace(sampling, seconds=left),
            eos_ids=eos_ids,
            pad_id=pad_id,
            generator=generator,
            prefix=prefix,
            decode=decode,
            on_token=None if on_token is None else heard,
            log_probs=log_probs,
            uniforms=None if uniforms is None else uniforms[_answers_of(batch, sampling.samples)],
        )
        for place, number in enumerate(batch):
            answers[number] = rows[place * sampling.samples : (place + 1) * sampling.samples]
    return [row for rows in answers for row in rows]


def _answers_of(batch: list[int], samples: int) -> list[int]:
    """The rows of the answers to some prompts."""
    return [number * samples + sample for number in batch for sample in range(samples)]


def _batches(prompts: Sequence[Sequence[int]], sampling: Sampling, context: int, batch_tokens: int) -> list[list[int]]:
    """Indices of prompts, longest first: a batch too large for the memory then shows at once."""
    batches: list[list[int]] = []
    rows_each = max(sampling.samples, sampling.beams)
    room = 0
    for number in sorted(range(len(prompts)), key=lambda number: -len(prompts[number])):
        if room == 0:
            tokens = min(len(prompts[number]), context) + min(sampling.max_new_tokens, context)
            room = max(1, batch_tokens // (tokens * rows_each))
            batches.append([])
        batches[-1].append(number)
        room -= 1
    return batches


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def _sampled(
    model: GPT,
    prompts: list[list[int]],
    sampling: Sampling,
    eos_ids: frozenset[int],
    pad_id: int,
    generator: torch.Generator | None,
    prefix: bool,
    decode: Decode | None,
    on_token: OnToken | None,
    log_probs: bool,
    deadline: float | None,
    uniforms: Tensor | None,
) -> list[Generation]:
    """Greedy decoding and draws, one row per sample."""
    limits = [min(sampling.max_new_tokens, model.config.context - len(prompt)) for prompt in prompts]
    cache, logits, ids = prefill(model, prompts, limits, pad_id, prefix)
    seen = tokens_seen(ids, prompts, model.config.vocabulary or 0) if sampling.repetition_penalty != 1 else None
    if sampling.samples > 1:
        rows = torch.arange(len(prompts), device=ids.device).repeat_interleave(sampling.samples)
        cache.select(rows)
        logits = logits[rows]
        seen = None if seen is None else seen[rows]
        limits = [limit for limit in limits for _ in range(sampling.samples)]
    if generator is None and sampling.temperature != 0:
        generator = _generator(sampling, ids.device)
    step = stepper(model, cache)
    drawn: list[list[int]] = [[] for _ in limits]
    ends: list[FinishedBy | None] = [None] * len(limits)
    kept = torch.zeros(len(limits), max(limits), device=ids.device) if log_probs else None
    batch = list(range(len(limits)))  # which row of the answer each row of the batch is
    going = len(batch)
    for count in range(max(limits)):
        scores = logits if seen is None else penalize(logits, seen, sampling.repetition_penalty)
        uniform = None if uniforms is None else uniforms[batch, count]
        tokens = next_tokens(scores, sampling, generator, uniform)
        if kept is not None:
            kept[batch, count] = token_log_probs(logits, tokens, sampling.temperature)
        is_late = deadline is not None and time.monotonic() >= deadline
        for row, token in zip(batch, tokens.tolist(), strict=True):
            if ends[row] is not None:
                continue
            drawn[row].append(token)
            if on_token is not None:
                on_token(row, token)
            if token in eos_ids:
                ends[row] = "eos"
            elif sampling.stop and decode is not None and is_stopped(drawn[row], decode, sampling.stop):
                ends[row] = "stop"
            elif count + 1 >= limits[row]:
                ends[row] = "length"
            elif is_late:
                ends[row] = "time"
            going -= ends[row] is not None
        if going == 0:
            break
        if going <= KEPT_SHARE * len(batch):
            places = [place for place, row in enumerate(batch) if ends[row] is None]
            batch = [batch[place] for place in places]
            rows = torch.tensor(places, device=ids.device)
            cache.select(rows)
            tokens = tokens[rows]
            seen = None if seen is None else seen[rows]
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        logits = step(tokens).float()
    values = [[] for _ in drawn] if kept is None else kept.tolist()
    return [
        Generation(ids=row, finished_by=end or "length", log_probs=value[: len(row)])
        for row, end, value in zip(drawn, ends, values, strict=True)
    ]


def _searched(
    model: GPT,
    prompts: list[list[int]],
    sampling: Sampling,
    eos_ids: frozenset[int],
    pad_id: int,
    generator: torch.Generator | None,
    prefix: bool,
    decode: Decode | None,
    on_token: OnToken | None,
    log_probs: bool,
    deadline: float | None,
    uniforms: Tensor | None,
) -> list[Generation]:
    """Beam search; see `beams.search`."""
    limits = [min(sampling.max_new_tokens, model.config.context - len(prompt)) for prompt in prompts]
    cache, logits, ids = prefill(model, prompts, limits, pad_id, prefix)
    seen = tokens_seen(ids, prompts, model.config.vocabulary or 0) if sampling.repetition_penalty != 1 else None
    rows = torch.arange(len(prompts), device=ids.device).repeat_interleave(sampling.beams)
    cache.select(rows)
    found = search(
        stepper(model, cache),
        cache,
        logits[rows],
        sampling,
        limits=limits,
        eos_ids=eos_ids,
        seen=None if seen is None else seen[rows],
        is_stopped=None if decode is None or not sampling.stop else lambda row: is_stopped(row, decode, sampling.stop),
        deadline=deadline,
    )
    return [replace(row, log_probs=row.log_probs if log_probs else []) for row in found]
