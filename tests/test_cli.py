"""The verbs and the Python interface on a run that training left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignlab
from alignlab.cli import main


def test_generate_streams_what_it_returns(
    tiny_run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_run("run", "trainer.max_steps=2")
    run = str(tmp_path / "run")
    capsys.readouterr()
    main(["generate", run, "The number", "--max-new-tokens", "8", "--seed", "1"])
    streamed = capsys.readouterr().out
    model = alignlab.load(run)
    [text] = model.generate("The number", max_new_tokens=8, temperature=0.8, top_p=0.95, seed=1)
    assert streamed == f"The number{text}\n"
    main(["generate", run, "one", "two", "--samples", "2", "--max-new-tokens", "4", "--temperature", "0"])
    shown = capsys.readouterr().out
    assert shown.count("one") >= 2
    assert shown.count("-" * 40) == 4
    with pytest.raises(SystemExit) as stopped:
        main(["generate", str(tmp_path / "rum"), "x"])
    assert stopped.value.code == 2
    assert "did you mean" in capsys.readouterr().err
    assert values["step"] == 2


def test_score_is_the_validation_loss_of_the_same_text(
    tiny_run: Callable[..., dict[str, Any]], tmp_path: Path, corpus: Path
) -> None:
    whole = corpus.read_text(encoding="utf-8")
    values = tiny_run("run", "trainer.max_steps=2", f"data.val={corpus}")
    [score] = alignlab.load(str(tmp_path / "run")).score([whole])
    # validation predicts the end of the text too; one of 20,000 tokens
    assert score["bits_per_byte"] == pytest.approx(values["best/val/bits_per_byte"], rel=1e-3)
