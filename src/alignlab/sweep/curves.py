"""The monitored metric of many runs over their steps, from what their loggers wrote."""

import csv
import math
from pathlib import Path

from alignlab.sweep.results import Result, ranked

NAMED = 10  # lines at most that the legend names: the best

Curve = list[tuple[int, float]]


def curve(folder: Path, tag: str) -> Curve:
    """Steps and values of `tag` in the event files of a run, or in its csv; the last value counts at each step."""
    points: dict[int, float] = {}
    for path in sorted(folder.glob("csv*/metrics.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            points |= {int(row["step"]): float(row[tag]) for row in csv.DictReader(file) if row.get(tag)}
    if (folder / "tensorboard").is_dir():
        # about a second, when there are event files
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        nothing_else = {"images": 1, "tensors": 1, "histograms": 1, "compressedHistograms": 1, "audio": 1, "scalars": 0}
        events = EventAccumulator(str(folder / "tensorboard"), size_guidance=nothing_else).Reload()
        if tag in events.Tags()["scalars"]:
            points |= {event.step: event.value for event in events.Scalars(tag)}
    return sorted((step, value) for step, value in points.items() if math.isfinite(value))


def draw(results: list[Result], path: Path) -> bool:
    """Writes a panel for each metric with a line for each run; False where no run has a curve."""
    drawn = [(one, points) for one in ranked(results) if (points := curve(one.folder, one.monitor))]
    if not drawn:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    monitors = list(dict.fromkeys(one.monitor for one, _ in drawn))
    figure = Figure(figsize=(6.4, 3.8 * len(monitors)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, monitor in zip(figure.subplots(len(monitors), 1, squeeze=False).flat, monitors, strict=True):
        lines = [(one, points) for one, points in drawn if one.monitor == monitor]
        for place, (one, points) in enumerate(lines):
            steps, values = zip(*points, strict=True)
            name = one.name if place < NAMED else "_"  # a name with an underline is left out of the legend
            axes.plot(steps, values, marker="." if len(points) < 30 else "", linewidth=1.2, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(monitor)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, title="best first" if len(lines) > 1 else None, title_fontsize=7)
    figure.savefig(path, dpi=110)
    return True
