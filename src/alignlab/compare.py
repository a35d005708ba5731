"""`alignlab compare RUN_A RUN_B`: whose answers a judge likes better, prompt by prompt, with ties and an interval.

Each run answers all prompts, the best of several draws where asked for; the judge is a reward model's run or a reward
function. Only one of the two models is in memory at a time. It knows nothing of training.
"""

import importlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.errors import UserError
from alignlab.generate import Sampling
from alignlab.model import Model, load
from alignlab.rewards import Reward, RewardModel, rewarded
from alignlab.rows.given import Given, raw_rows
from alignlab.text.chat import chat_prompt

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the judge said: rewards are the mean over prompts, `rate` is the share of wins of B with ties as halves.

    `low` and `high` bound it with 95 % confidence (Wilson 1927). `rows` hold prompt, answers and rewards.
    """

    rows: list[dict[str, Any]]
    wins_a: int
    ties: int
    wins_b: int
    reward_a: float
    reward_b: float
    rate: float
    low: float
    high: float


def compare(
    run_a: str,
    run_b: str,
    *,
    data: str | Path,
    judge: str,
    samples: Sequence[int] = (1,),
    max_new_tokens: int = 128,
    temperature: float | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: str = "cpu",
) -> Comparison:
    """Lets both runs answer the prompts of a file, and the judge decide.

    `samples` draws, one number or one for each run, of which the judge takes the best; a single one is greedy unless
    `temperature` says otherwise. Raises UserError for a judge or rows that are wrong.
    """
    if not 1 <= len(samples) <= 2 or min(samples) < 1:
        raise UserError(f"--samples is {' '.join(map(str, samples))}; expected one or two numbers, each at least 1")
    decide = judge_of(judge)
    given = Given(rows=raw_rows(Path(data)), kind="prompts", columns={})
    if given.errors:
        number, complaint = next(iter(given.errors.items()))
        raise UserError(f"row {number} of {data}: {complaint}")
    rows = given.rows[:limit]
    if not rows:
        raise UserError(f"{data} has no rows; expected a prompt in each")
    found = []
    for run, draws in zip((run_a, run_b), (samples[0], samples[-1]), strict=True):
        drawn = temperature if temperature is not None else float(draws > 1)
        if draws > 1 and drawn == 0:
            raise UserError(f"--samples {draws} needs a temperature above 0; at 0 all draws are the same")
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=drawn, samples=draws, seed=seed)
        found.append(_best(answers(load(run, device=device), [row["prompt"] for row in rows], sampling), rows, decide))
    return _counted(rows, *found)


def judge_of(name: str) -> Reward:
    """The reward of a run's folder or checkpoint, or of a dotted name: a function, or a class without arguments."""
    if Path(name).exists():
        return RewardModel(run=name)
    module, dot, last = name.rpartition(".")
    sys.path.insert(0, os.getcwd())  # a function beside the person who types the command
    try:
        if not dot:
            raise ValueError("there is no such folder")
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"--judge {name} is neither a run nor a reward ({error}); expected the folder of a run of task=reward, or "
            "a dotted name such as alignlab.rewards.Exact"
        ) from error
    finally:
        sys.path.pop(0)
    try:
        reward: Reward = found() if isinstance(found, type) else found
    except TypeError as error:
        raise UserError(f"--judge {name} needs arguments ({error}); give a function of yours that calls it") from error
    return reward


def answers(model: Model, prompts: Sequence[str], sampling: Sampling) -> list[list[str]]:
    """The draws for each prompt, in the form that the model was trained on: a conversation, or plain text."""
    tokenizer = model.tokenizer
    style = (model.start.settings or {}).get("datamodule", {}).get("style")
    is_chat = style == "chat" or (style is None and tokenizer.chat_template is not None)
    room = max(1, model.gpt.config.context - sampling.max_new_tokens)
    ids = []
    for prompt in prompts:
        if is_chat:
            whole = chat_prompt(tokenizer, [{"role": "user", "content": prompt}])
        else:
            whole = [tokenizer.eos_id, *tokenizer.encode(prompt)]
        ids.append([int(one) for one in whole[-room:]])
    texts = [(one.text or "").strip() for one in model.continue_ids(ids, sampling)]
    return [texts[start : start + sampling.samples] for start in range(0, len(texts), sampling.samples)]


def _best(drawn: list[list[str]], rows: list[dict], decide: Reward) -> list[tuple[str, float]]:
    """The answer that the judge likes best of each prompt's draws, and its reward."""
    pairs = [(row, text) for row, texts in zip(rows, drawn, strict=True) for text in texts]
    values, _ = rewarded(
        "--judge", decide, [row["prompt"] for row, _ in pairs], [text for _, text in pairs],
        [row.get("reference") for row, _ in pairs], zero_on_error=False,
    )  # fmt: skip
    judged = iter(zip((text for _, text in pairs), values, strict=True))
    return [max((next(judged) for _ in texts), key=lambda one: one[1]) for texts in drawn]


def _counted(rows: list[dict], a: list[tuple[str, float]], b: list[tuple[str, float]]) -> Comparison:
    told = [
        {"row": row["row"], "prompt": row["prompt"], "a": x[0], "b": y[0], "reward_a": x[1], "reward_b": y[1]}
        for row, x, y in zip(rows, a, b, strict=True)
    ]
    wins_a = sum(x[1] > y[1] for x, y in zip(a, b, strict=True))
    wins_b = sum(x[1] < y[1] for x, y in zip(a, b, strict=True))
    count = len(rows)
    ties = count - wins_a - wins_b
    rate = (wins_b + ties / 2) / count
    low, high = interval(rate, count)
    return Comparison(
        rows=told, wins_a=wins_a, ties=ties, wins_b=wins_b, rate=rate, low=low, high=high,
        reward_a=sum(one[1] for one in a) / count, reward_b=sum(one[1] for one in b) / count,
    )  # fmt: skip


def interval(rate: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share `rate` of `count` trials."""
    middle = (rate + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(rate * (1 - rate) / count + Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)
