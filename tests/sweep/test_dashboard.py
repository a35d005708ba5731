"""What TensorBoard compares, read back from event files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard import plugin_util
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.util import tensor_util

from alignlab.callbacks.figures import calibration_drawn
from alignlab.callbacks.samples import plain
from alignlab.dashboard import hyperparameters
from alignlab.sweep import curves
from tests.conftest import composed

OPTIONS = ("trainer.max_steps=4", "eval_every=2", "logger=tensorboard", "optim.lr=0.01", "optim.weight_decay=0.05")


def test_final_metrics_stand_beside_the_options(tiny_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    values = tiny_run("run", *OPTIONS)
    (folder,) = {path.parent for path in tmp_path.rglob("events*")}  # one folder is one run in TensorBoard
    events = EventAccumulator(str(folder)).Reload()
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    told = metadata.parse_session_start_info_plugin_data(content).hparams
    assert told["optim.lr"].number_value == 0.01
    assert told["optim.weight_decay"].number_value == 0.05  # named on the command line only
    assert told["task"].string_value == "Pretraining"
    assert not any(name.startswith(("eval_every", "logger", "hydra")) for name in told)
    assert metadata.SESSION_END_INFO_TAG in events.summary_metadata
    assert metadata.EXPERIMENT_TAG not in events.summary_metadata
    (best,) = events.Scalars("best/val/loss")
    assert best.value == pytest.approx(values["best/val/loss"], rel=1e-6)
    assert best.step == 4
    assert {name for name in events.Tags()["scalars"] if name.startswith("best/")} == {"best/val/loss"}
    assert json.loads((tmp_path / "run/metrics.json").read_text())["best/val/loss"] == values["best/val/loss"]
    assert [step for step, _ in curves.curve(tmp_path / "run", "val/loss")] == [2, 4]


def test_training_and_validation_share_a_chart(tiny_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    tiny_run("run", *OPTIONS, "trainer.max_steps=2", "monitor=val/perplexity")
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout()
    layout.ParseFromString(tensor_util.make_ndarray(event.tensor_proto).item())
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts["loss"] == ["^train/loss$", "^val/loss$"]
    assert list(charts) == ["loss", "perplexity"]
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "val/loss"} <= set(scalars)


def test_what_is_not_set_is_not_compared() -> None:
    config = composed("trainer.max_steps=7", "model.layers=3")
    told = hyperparameters(config, ["++model.layers=3", "logger=none", "++sweep.jobs=2", "resume_with=[]"])
    assert (told["model.layers"], told["trainer.max_steps"]) == (3, 7)
    assert not {"logger", "sweep.jobs", "resume_with"} & told.keys()
    assert None not in told.values()


def test_a_text_is_shown_as_it_is() -> None:
    start, rest = plain("# a *b"), plain("_c_ <d> `e`\n\n1 & **2**")
    shown = plugin_util.markdown_to_safe_html(f"<strong>{start}</strong>{rest}")
    assert shown == "<p><strong># a *b</strong>_c_ &lt;d&gt; `e` ⏎  ⏎ 1 &amp; **2**</p>"


def test_a_run_shows_its_data_its_answers_and_its_weights(
    tiny_run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rows = [{"text": f"number {n}", "label": ("even", "odd")[n % 2]} for n in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = tiny_run(
        "run", "task=classification", f"data.train={path}", f"data.val={path}", *OPTIONS, "callbacks=[none,histograms]",
        "callbacks.histograms.every=3", "trainer.profiler=pytorch",
    )  # fmt: skip
    place = tmp_path / "run/tensorboard"
    events = EventAccumulator(str(place), size_guidance={"tensors": 0, "histograms": 0}).Reload()
    tags = events.Tags()
    assert {"data/lengths", "val/confusion", "val/calibration"} <= set(tags["images"])
    (example,) = events.Tensors("data/example/text_summary")
    assert tensor_util.make_ndarray(example.tensor_proto).item().decode().count("number 0") == 1
    last = events.Tensors("val/predictions/text_summary")[-1]
    lines = tensor_util.make_ndarray(last.tensor_proto).item().decode().splitlines()
    assert lines[0] == "| text | truth | answer | probability |"
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(told) == 8
    assert {text: label for text, label, *_ in told}.items() <= {row["text"]: row["label"] for row in rows}.items()
    assert {answer for _, _, answer, _ in told} <= {"even", "odd"}
    assert [event.step for event in events.Histograms("weights/blocks.0.feedforward.up.weight")] == [0, 3]
    assert "gradients/head.weight" in tags["histograms"]
    assert list(place.glob("fit-*.pt.trace.json")), "a profiler's trace by one option"
    assert "val/f1/odd" in values, "in metrics.json"
    assert not [name for name in tags["scalars"] if "/f1/" in name], "no chart for each class"


def test_calibration_is_drawn_where_examples_are() -> None:
    bins = torch.zeros(15, 3)
    bins[9], bins[14] = torch.tensor([4.0, 2.4, 2.0]), torch.tensor([6.0, 5.7, 6.0])
    (axes,) = calibration_drawn(bins).axes
    (dots,) = axes.collections
    assert dots.get_offsets().flatten().tolist() == pytest.approx([0.6, 0.5, 0.95, 1.0])
    # (|2.4 - 2| + |5.7 - 6|) / 10
    assert "10 examples, off by 0.070" in axes.get_title(loc="left")
