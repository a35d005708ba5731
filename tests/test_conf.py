"""Law 11: every option under conf/ composes, builds and takes two steps; recipes carry what they measured."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from alignlab import checkpoint as files
from tests.conftest import ROOT, composed

CONF = ROOT / "conf"
NANO_OR_LESS = 2_000_000  # parameters; larger presets are built on the meta device


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={choice}"
        for group in ("optim", "logger", "callbacks")
        for choice in choices(group)
    ]
    + ["callbacks.samples=null"],
)  # fmt: skip
def test_option_takes_two_steps(override: str, tiny_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    values = tiny_run("run", override, "trainer.max_steps=2")
    assert values["step"] == 2
    assert (tmp_path / "run/metrics.json").is_file()
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize("choice", choices("tokenizer"))
def test_tokenizer_takes_two_steps(
    choice: str, tiny_run: Callable[..., dict[str, Any]], tmp_path: Path, corpus: Path
) -> None:
    options = {"bpe": ("tokenizer.vocab_size=300",)}.get(choice, ())
    if choice == "file":
        from alignlab.text.tokenizer import BPE

        text = corpus.read_text(encoding="utf-8")
        BPE(vocab_size=280).build(lambda: [text], "test_conf").save(tmp_path / "own")
        options = (f"tokenizer.path={tmp_path / 'own' / 'tokenizer.json'}",)
    assert tiny_run("run", f"tokenizer={choice}", *options, "trainer.max_steps=2")["step"] == 2


@pytest.mark.parametrize("choice", choices("model"))
def test_preset_builds(choice: str) -> None:
    from hydra.utils import instantiate

    from alignlab.models.gpt import GPT

    config = instantiate(composed(f"model={choice}").model, vocabulary=300)
    with torch.device("meta"):
        hidden = GPT(config)(torch.zeros(1, 8, dtype=torch.long))
    assert hidden.shape == (1, 8, config.width)


def test_a_vocabulary_may_be_rounded_up_and_not_down(tiny_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    values = tiny_run("wide", "model.vocabulary=320", "optim=sgd", "optim.lr=0", "trainer.max_steps=1")
    assert values["val/loss"] == pytest.approx(math.log(320), rel=0.02)
    weights = files.read(tmp_path / "wide/checkpoints/last.ckpt")["state_dict"]
    assert weights["model.embed.weight"].shape == (320, 32)
    assert tiny_run("on", f"init_from={tmp_path}/wide", "trainer.max_steps=2")["step"] == 2
    with pytest.raises(ValueError, match=r"model\.vocabulary is 100, but the tokenizer has 260 entries"):
        tiny_run("narrow", "model.vocabulary=100", "trainer.max_steps=1")


@pytest.mark.parametrize("choice", choices("trainer"))
def test_trainer_composes(choice: str) -> None:
    config = composed(f"trainer={choice}")
    assert config.trainer.max_steps == (2 if choice == "debug" else 580)


@pytest.mark.parametrize("choice", choices("experiment"))
def test_recipe_opens_with_command_and_result(choice: str) -> None:
    text = (CONF / "experiment" / f"{choice}.yaml").read_text(encoding="utf-8")
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any("python train.py" in line for line in header), "a recipe opens with its command"
    assert any("measured" in line for line in header), "a recipe says what it measured, on what, when"
    own = OmegaConf.create(text)
    assert "data" not in own, "a recipe chooses data by `override /data` and sets no key of it"


def test_compile_and_fp16_and_recomputation_train(tiny_run: Callable[..., dict[str, Any]]) -> None:
    plain = tiny_run("plain", "trainer.max_steps=2")
    again = tiny_run("again", "trainer.max_steps=2", "recompute_activations=true")
    assert again["val/loss"] == pytest.approx(plain["val/loss"], abs=1e-6)
    for precision in ("bf16-mixed", "16-mixed"):
        rounded = tiny_run(precision, "trainer.max_steps=2", f"trainer.precision={precision}")
        assert rounded["val/loss"] == pytest.approx(plain["val/loss"], abs=0.05)
