"""Exported folders: transformers and peft read what the run computes, we read it back, nothing is left of a failure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import alignlab.export
from alignlab import checkpoint as files
from alignlab.cli import main
from alignlab.export import export, model_of
from alignlab.origin import origin

Run = Callable[..., dict[str, Any]]
LLAMA = ("model=nano", "model.qk_norm=false", "model.activation=swiglu")  # transformers' Llama
SHORT = (*LLAMA, "optim.lr=1e-2", "trainer.max_steps=4", "trainer.limit_val_batches=1")
IDS = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(2))


def logits(place: Path) -> torch.Tensor:
    model = model_of(origin(str(place)))
    return model.unembed(model(IDS)).detach()


def theirs(folder: Path) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(IDS).logits.detach()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) < 1e-4


def test_run_opens_in_transformers_and_comes_back(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    values = tiny_run("run", *SHORT)
    (tmp_path / "run" / ".hydra").mkdir()
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text("[model=nano, 'data.train=a b.txt']\n")
    main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert "out: a Hugging Face folder of 0." in (printed := capsys.readouterr().out)
    assert "read back, logits differ by" in printed
    assert close(theirs(tmp_path / "out"), logits(tmp_path / "run"))
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "run"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("odd")["input_ids"] == origin(str(tmp_path / "run")).tokenizer.encode("odd")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| `val/loss` | {values['val/loss']:.4g} |" in card
    assert "python train.py model=nano 'data.train=a b.txt'" in card
    assert "alignlab.rows.files.Files" in card
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [256, 259]  # the end of a text, and of a turn
    again = {
        name: tiny_run(f"on-{name}", *SHORT, f"init_from={tmp_path / name}", "optim.lr=0") for name in ("run", "out")
    }
    assert again["run"]["val/loss"] == again["out"]["val/loss"]  # goes on with equal loss


def test_bf16_halves_the_file(tiny_run: Run, tmp_path: Path) -> None:
    tiny_run("run", *SHORT)
    export(str(tmp_path / "run"), tmp_path / "out", dtype="bf16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert (theirs(tmp_path / "out") - logits(tmp_path / "run")).abs().max() < 0.1


def test_low_rank_run_as_a_whole_model_and_as_an_adapter(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import peft
    import transformers

    tiny_run("first", *SHORT)
    export(str(tmp_path / "first"), tmp_path / "base")
    tiny_run("tuned", *SHORT, "tuning=lora", f"init_from={tmp_path / 'base'}")
    main(["export", str(tmp_path / "tuned"), str(tmp_path / "merged"), "--merge"])
    main(["export", str(tmp_path / "tuned"), str(tmp_path / "adapter")])
    assert f"its base is {tmp_path / 'base'}; --merge writes a whole model" in capsys.readouterr().out
    ours = logits(tmp_path / "tuned")
    assert (ours - logits(tmp_path / "base")).abs().max() > 1e-2
    assert close(theirs(tmp_path / "merged"), ours)
    below = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(below, tmp_path / "adapter").eval()
    assert close(loaded(IDS).logits.detach(), ours)
    assert close(logits(tmp_path / "adapter"), ours)
    values = tiny_run("on", *SHORT, f"init_from={tmp_path / 'adapter'}", "optim.lr=0", "tuning=lora")
    assert values["val/loss"] == pytest.approx(tiny_run("same", *SHORT, f"init_from={tmp_path / 'tuned'}",
                                                        "optim.lr=0")["val/loss"], abs=1e-5)  # fmt: skip


def test_head_opens_in_transformers(tiny_run: Run, tmp_path: Path) -> None:
    import transformers

    tiny_run("run", *SHORT)
    checkpoint = files.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    torch.manual_seed(0)
    checkpoint["state_dict"]["head.weight"] = torch.randn(3, 32)
    checkpoint["found"] = {"labels": {"form": "classes", "names": ("bad", "fair", "good")}}
    files.write(checkpoint, tmp_path / "classes.ckpt")
    export(str(tmp_path / "classes.ckpt"), tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    start = origin(str(tmp_path / "classes.ckpt"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(["one", "longer one"], padding=True, return_tensors="pt")
    eos = start.tokenizer.eos_id  # a text is read between two ends of text
    assert batch["input_ids"][1].tolist() == [eos, *start.tokenizer.encode("longer one"), eos]
    scores = model(**batch).logits
    for row, text in enumerate(["one", "longer one"]):
        hidden = model_of(start)(torch.tensor([[eos, *start.tokenizer.encode(text), eos]]))[0, -1]
        assert close(start.heads["head.weight"] @ hidden, scores[row])


def test_nothing_is_left_of_a_folder_that_reads_back_otherwise(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run("run", *SHORT)
    monkeypatch.setattr(alignlab.export, "verify", lambda *args, **kwargs: 2e-4)
    with pytest.raises(ValueError, match=r"differ from those of .*run by 0.0002; expected at most 0.0001"):
        export(str(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes(tiny_run: Run, tmp_path: Path) -> None:
    tiny_run("run", *SHORT)
    with pytest.raises(ValueError, match=r"run has no low-rank layers; leave --adapter out"):
        export(str(tmp_path / "run"), tmp_path / "out", as_adapter=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(ValueError, match=r"full is there already and not empty; name a new folder"):
        export(str(tmp_path / "run"), tmp_path / "full")
    assert (tmp_path / "full" / "a").exists()
