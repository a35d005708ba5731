"""Law 1 across processes: two gloo ranks, with all weights on each (DDP) or shared out (FSDP2), equal one process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignlab import checkpoint as files
from alignlab.export import export
from alignlab.launch import needs_launch
from alignlab.trainer import resolve_strategy
from tests.conftest import ROOT, TINY, composed, train
from tests.test_laws import SGD, UNEVEN, assert_equal, largest_difference, losses

COMMON = (*TINY, *SGD, *UNEVEN, "trainer.max_steps=3", "test=false")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_are_one_process(strategy: str, tmp_path: Path, corpus: Path) -> None:
    assert ROOT.is_dir()
    data = ("data=files", f"data.train={corpus}")
    one = train(*data, *COMMON, "datamodule.batch_size=8", "hydra.run.dir=one", folder=tmp_path)
    assert one.returncode == 0, one.stderr
    two = train(
        *data, *COMMON, "datamodule.batch_size=4", f"trainer={strategy}", "trainer.accelerator=cpu",
        "hydra.run.dir=two", folder=tmp_path,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert largest_difference(whole["state_dict"], parts["state_dict"]) < 1e-6
    assert len(parts["rng"]) == 2


@pytest.mark.parametrize(
    ("strategy", "tuning"),
    [
        ("ddp", ("tuning=lora", "tuning.dropout=0")),
        ("fsdp", ("tuning=lora",)),
        ("ddp", ("tuning=last_layers", "tuning.layers=2", "tuning.unfreeze_every=2")),
    ],
    ids=["ddp-lora", "fsdp-lora", "ddp-unfreezing"],
)
def test_two_ranks_tune_what_one_process_tunes(
    strategy: str, tuning: tuple[str, ...], tmp_path: Path, corpus: Path, tiny_run: Callable[..., dict]
) -> None:
    tiny_run("first", "model=nano", "model.qk_norm=false", "model.activation=swiglu", "trainer.max_steps=1")
    export(str(tmp_path / "first"), tmp_path / "base", dtype="bf16")  # which stays so, but where it is sharded
    options = (*SGD, *UNEVEN, *tuning, f"init_from={tmp_path / 'base'}", "trainer.max_steps=3", "test=false")
    tiny_run("one", *options, "datamodule.batch_size=8")
    two = train(
        "data=files", f"data.train={corpus}", *TINY[4:], *options, "datamodule.batch_size=4", f"trainer={strategy}",
        "trainer.accelerator=cpu", "hydra.run.dir=two", folder=tmp_path,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert whole["state_dict"].keys() == parts["state_dict"].keys()
    assert largest_difference(whole["state_dict"], parts["state_dict"]) < 1e-6
    assert max(float(value.abs().max()) for name, value in whole["state_dict"].items() if "lora_a" not in name) > 1e-5


SPANS = [
    {"context": f"{n} is a number and {n + 1} another", "question": f"what is {n}?",
     "answers": [{"text": "a number", "answer_start": len(f"{n} is ")}]} for n in range(24)
]  # fmt: skip
HEADED = {
    "classification": [{"text": f"{['cat', 'dog', 'owl'][n % 3]} {n}", "label": "abc"[n % 3]} for n in range(24)],
    "extractive_qa": SPANS,
    "reward": [{"prompt": f"{n}?", "chosen": "A" * (1 + n % 4), "rejected": "b" * (1 + n % 3)} for n in range(24)],
}


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("classification", ("task.ngrams=2", "task.lm_weight=0.5")),
        ("extractive_qa", ("task.match_question=true", "model.context=64")),
        ("reward", ("datamodule.max_length=24", "datamodule.style=plain")),
    ],
)
def test_heads_are_sharded_too(task: str, options: tuple[str, ...], tmp_path: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in HEADED[task])
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    run = (
        f"task={task}", "data=files", "data.train=rows.jsonl", "data.val=rows.jsonl", *TINY, *SGD, "test=false",
        "optim.lr=0.1", "trainer.max_steps=3", "eval_every=3", *options,
    )  # fmt: skip
    one = train(*run, "datamodule.batch_size=8", "hydra.run.dir=one", folder=tmp_path)
    assert one.returncode == 0, one.stderr
    two = train(
        *run, "datamodule.batch_size=4", "trainer=fsdp", "trainer.accelerator=cpu", "hydra.run.dir=two", folder=tmp_path
    )
    assert two.returncode == 0, two.stderr
    whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert whole["state_dict"].keys() == parts["state_dict"].keys()
    assert largest_difference(whole["state_dict"], parts["state_dict"]) < 1e-5
    values = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert values[0]["val/loss"] == pytest.approx(values[1]["val/loss"], abs=1e-4)
    heads = {name: value for name, value in whole["state_dict"].items() if not name.startswith("model.")}
    moved = {name: float(value.abs().max()) for name, value in heads.items() if name.endswith("weight")}
    assert min(moved.values()) > 1e-6, moved


def test_two_ranks_prefer_what_one_process_prefers(tmp_path: Path) -> None:
    dpo = (
        "task=dpo", "data=files", "data.train=pairs.jsonl", *TINY, *SGD, "optim.lr=0.1", "trainer.max_steps=3",
        "datamodule.max_length=24", "datamodule.style=plain", "trainer.gradient_clip_val=null", "eval_every=3",
    )  # fmt: skip
    rows = [{"prompt": f"{n}?", "chosen": "A" * (1 + n % 4), "rejected": "b" * (1 + n % 3)} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one = train(*dpo, "datamodule.batch_size=8", "hydra.run.dir=one", folder=tmp_path)
    assert one.returncode == 0, one.stderr
    two = train(
        *dpo, "datamodule.batch_size=4", "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=two", folder=tmp_path
    )
    assert two.returncode == 0, two.stderr
    whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert largest_difference(whole["state_dict"], parts["state_dict"]) < 1e-6
    values = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert values[0]["val/margin"] == pytest.approx(values[1]["val/margin"], abs=1e-5)
    assert values[0]["val/kl"] > 1e-6


GRPO = (
    "task=grpo", "data.train=prompts.jsonl", "task.samples=4", "task.max_new_tokens=6", "datamodule.max_length=24",
    "task.rewards={short:{_target_:alignlab.rewards.Pattern,pattern:'[^a-z]*'}}",
)  # fmt: skip


def write_prompts(folder: Path) -> None:
    rows = "".join(json.dumps({"prompt": f"{n}?", "reference": "x"}) + "\n" for n in range(24))
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")


@pytest.mark.parametrize(("rows", "times"), [(4, 1), (2, 2)])
def test_two_ranks_draw_what_one_process_draws(rows: int, times: int, tmp_path: Path) -> None:
    grpo = (
        *GRPO, "data=files", *TINY, *SGD, "task.loss._target_=alignlab.policy_losses.DAPO", "task.updates=2",
        "trainer.max_steps=4", "test=false", "trainer.gradient_clip_val=null",
    )  # fmt: skip
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", f"trainer.accumulate_grad_batches={times}")
    write_prompts(tmp_path)
    one = train(*grpo, "datamodule.batch_size=8", "hydra.run.dir=one", folder=tmp_path)
    assert one.returncode == 0, one.stderr
    two = train(*grpo, *ranks, f"datamodule.batch_size={rows}", "hydra.run.dir=two", folder=tmp_path)
    assert two.returncode == 0, two.stderr
    whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert largest_difference(whole["state_dict"], parts["state_dict"]) < 1e-5
    fresh = json.loads((tmp_path / "one/metrics.json").read_text())
    assert fresh["val/kl"] > 1e-6  # it did move


@pytest.mark.parametrize(
    ("overrides", "launched"),
    [
        (("trainer.devices=2",), True),  # without a strategy too: Lightning would start train.py again
        (("trainer.devices=[0,1]",), True),
        (("trainer.devices='0,1'",), True),
        (("trainer.devices='1'",), False),
        (("trainer.devices=0",), False),  # Lightning refuses it
        (("trainer.devices=auto",), False),  # of CPUs, of which there is one
        (("trainer.devices=2", "+trainer.strategy=ddp_find_unused_parameters_true"), True),
        (("trainer.devices=2", "+trainer.strategy=ddp_spawn"), False),
        ((), False),
    ],
)
def test_several_devices_are_started_by_us(
    overrides: tuple[str, ...], launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert needs_launch(composed(*overrides)) == launched
    assert resolve_strategy("auto", 2) == "ddp"


def test_two_ranks_log_the_loss_of_one_process(tmp_path: Path, corpus: Path) -> None:
    run_ = ("data=files", f"data.train={corpus}", *TINY, *SGD, *UNEVEN, "trainer.max_steps=3", "test=false",
            "logger=csv", "trainer.log_every_n_steps=1")  # fmt: skip
    one = train(*run_, "datamodule.batch_size=8", "hydra.run.dir=one", folder=tmp_path)
    two = train(*run_, "datamodule.batch_size=4", "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=two",
                folder=tmp_path)  # fmt: skip
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    told = [[float(value) for value in losses(tmp_path / name).values()] for name in ("one", "two")]
    assert told[0] == pytest.approx(told[1], rel=1e-5)


@pytest.mark.parametrize("task", ["pretrain", "grpo"])
def test_two_ranks_go_on_as_if_never_stopped(task: str, tmp_path: Path, corpus: Path) -> None:
    ranks = ("data=files", *TINY, *SGD, "trainer=ddp", "trainer.accelerator=cpu", "datamodule.batch_size=4",
             "model.dropout=0.1", "eval_every=2", "test=false")  # fmt: skip
    if task == "pretrain":
        ranks += (f"data.train={corpus}",)
    else:
        write_prompts(tmp_path)
        ranks += (*GRPO, "task.updates=3")
    for arguments in (("hydra.run.dir=whole", "trainer.max_steps=4"), ("hydra.run.dir=parts", "trainer.max_steps=2")):
        done = train(*ranks, *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    resumed = train("resume=parts", "trainer.max_steps=4", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "parts"))
    for name in ("state_dict", "optimizer_states", "rng", "counters"):
        assert_equal(whole[name], parts[name], name)
    one, other = whole["rng"]
    assert not torch.equal(one["torch"], other["torch"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_each_rank_has_its_own_dropout(strategy: str, tmp_path: Path, corpus: Path) -> None:
    ranks = (f"data.train={corpus}", *TINY, f"trainer={strategy}", "trainer.accelerator=cpu", "datamodule.batch_size=4")
    brief = ("model.dropout=0.1", "trainer.max_steps=1", "test=false", "hydra.run.dir=run")
    done = train("data=files", *ranks, *brief, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = files.read(tmp_path / "run/checkpoints/last.ckpt")["rng"]
    assert not torch.equal(one["torch"], other["torch"])
