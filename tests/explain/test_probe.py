"""A fixed text in TensorBoard at each validation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignlab.callbacks.probe import Probe, attention_figure, drawable, loss_figure
from alignlab.explain.reading import text_reading
from alignlab.explain.tokens import pieces
from alignlab.text.tokenizer import Bytes


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_figures_at_each_validation(tuning: str, tiny_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    start = ()
    if tuning == "lora":
        tiny_run("base", "trainer.max_steps=1")
        start = (f"init_from={tmp_path / 'base'}", "tuning=lora")
    tiny_run(
        "run", "trainer.max_steps=4", "eval_every=2", "callbacks=probe", "logger=tensorboard",
        "callbacks.probe.text='The number 你好 🙂 $x'", *start,
    )  # fmt: skip
    [folder] = (tmp_path / "run").glob("tensorboard")
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    for name in ("probe/loss", "probe/attention"):
        assert [image.step for image in events.Images(name)] == [2, 4]
        assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in events.Images(name))
    first, second = (image.encoded_image_string for image in events.Images("probe/loss"))
    assert first != second


def test_bars_are_the_losses() -> None:
    tokenizer = Bytes().build(list, "")
    reading = text_reading(tokenizer, "ab", limit=9)
    losses = torch.tensor([1.0, 3.0, torch.nan])
    figure = loss_figure(reading, losses, pieces(tokenizer, reading.ids[0].tolist()))
    [axes] = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [1.0, 3.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert "mean 2.000" in axes.get_title(loc="left")
    maps = attention_figure(torch.eye(3).expand(2, 4, 3, 3))
    assert len(maps.axes) == 8


def test_what_no_font_draws_is_spelled() -> None:
    assert drawable("a\U0010fffd") == "aU+10FFFD"
    assert drawable("$x") == r"\$x"


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"callbacks\.probe\.text is empty"):
        Probe(text=" ")
