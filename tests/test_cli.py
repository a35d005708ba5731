"""The verbs and the Python interface on a run that training left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignlab
from alignlab.cli import main, read


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
    for wrong, told in (("--temperature=-1", "error: temperature is -1.0"), ("--device=foo", "error: --device is foo")):
        with pytest.raises(SystemExit):
            main(["generate", run, "Hi", wrong])
        shown = capsys.readouterr()
        assert shown.err.startswith(told)  # and not after a prompt
        assert not shown.out
    main(["generate", run, "Hi", "--max-new-tokens", "500"])
    assert "share a context of 32 tokens" in capsys.readouterr().err
    assert values["step"] == 2


def test_score_is_the_validation_loss_of_the_same_text(
    tiny_run: Callable[..., dict[str, Any]], tmp_path: Path, corpus: Path
) -> None:
    whole = corpus.read_text(encoding="utf-8")
    values = tiny_run("run", "trainer.max_steps=2", f"data.val={corpus}")
    [score] = alignlab.load(str(tmp_path / "run")).score([whole])
    # validation predicts the end of the text too; one of 20,000 tokens
    assert score["bits_per_byte"] == pytest.approx(values["best/val/bits_per_byte"], rel=1e-3)


@pytest.mark.parametrize(
    "line",
    ["plan model=tiny trainer=ddp --json", "plan --json model=tiny trainer=ddp", "plan model=tiny --json trainer=ddp"],
)
def test_options_of_training_stand_on_either_side_of_a_verbs_own(line: str) -> None:
    parsed = read(line.split())
    assert parsed.overrides == ["model=tiny", "trainer=ddp"]
    assert parsed.json


@pytest.mark.parametrize("line", ["plan --jsn model=tiny", "plan --json tiny stray", "report runs --x=1", "plan --x=1"])
def test_what_is_no_option_of_training_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 3
