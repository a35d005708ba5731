"""A base that stays in its file's bf16: what is learned upon it is, bit for bit, what is learned upon it in fp32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab import checkpoint as files
from alignlab.build import build, keeps_narrow
from alignlab.export import export
from alignlab.models.narrow import NarrowLinear
from alignlab.origin import origin
from alignlab.tuning.adapter import fingerprint
from tests.conftest import composed
from tests.test_laws import assert_equal

Run = Callable[..., dict[str, Any]]
LLAMA = ("model=nano", "model.qk_norm=false", "model.activation=swiglu")
SHORT = ("optim.lr=1e-2", "trainer.max_steps=3", "trainer.limit_val_batches=1", "eval_every=3")


@pytest.fixture
def bases(tiny_run: Run, tmp_path: Path) -> tuple[Path, Path]:
    """A folder in bf16, and the very same numbers in a folder in fp32."""
    tiny_run("first", *LLAMA, *SHORT)
    narrow, wide = tmp_path / "narrow", tmp_path / "wide"
    export(str(tmp_path / "first"), narrow, dtype="bf16")
    export(str(narrow), wide)
    return narrow, wide


@pytest.mark.parametrize("tuning", [("lora",), ("lora", "tuning.dora=true"), ("last_layers", "tuning.layers=1")])
def test_learned_upon_bf16_is_learned_upon_fp32(
    tuning: tuple[str, ...], bases: tuple[Path, Path], tiny_run: Run, tmp_path: Path
) -> None:
    kind, *more = tuning
    found = [tiny_run(f"on-{base.name}", *SHORT, f"tuning={kind}", *more, f"init_from={base}") for base in bases]
    assert found[0]["val/loss"] == found[1]["val/loss"]
    one, other = (files.read(tmp_path / f"on-{base.name}" / "checkpoints" / "last.ckpt") for base in bases)
    for part in ("state_dict", "optimizer_states"):
        assert_equal(one[part], other[part])
    assert {value.dtype for value in one["state_dict"].values()} == {torch.float32}
    assert one["base"]["fingerprint"] == other["base"]["fingerprint"]  # so either is found as the base of the other


def test_only_frozen_matrices_are_narrow(bases: tuple[Path, Path], corpus: Path) -> None:
    def parts(*overrides: str) -> Any:
        config = composed("data=files", f"data.train={corpus}", f"init_from={bases[0]}", *overrides)
        return build(config, origin(config.init_from, as_stored=keeps_narrow(config)))

    task = parts("tuning=lora", "tuning.targets=[query]").task
    for name, parameter in task.named_parameters():
        is_narrow = not parameter.requires_grad and parameter.ndim > 1
        assert parameter.dtype == (torch.bfloat16 if is_narrow else torch.float32), name
    assert isinstance(task.model.blocks[0].attention.key, NarrowLinear)
    with task.while_generating():  # plain layers, which the fast decoder takes
        assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert {p.dtype for p in parts("tuning=full").task.parameters()} == {torch.float32}
    assert {p.dtype for p in parts("tuning=lora", "trainer=fsdp").task.parameters()} == {torch.float32}


def test_a_fingerprint_is_of_the_numbers(bases: tuple[Path, Path]) -> None:
    narrow, wide = origin(str(bases[0]), as_stored=True), origin(str(bases[0]))
    assert narrow.weights["embed.weight"].dtype == torch.bfloat16
    assert wide.weights["embed.weight"].dtype == torch.float32
    assert narrow.fingerprint == wide.fingerprint
    assert fingerprint({"a": torch.ones(3)}) != fingerprint({"a": torch.ones(3).double()})
