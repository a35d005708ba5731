"""The metric of many runs against each option in which they differ, as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.directions import lower_is_better
from alignlab.sweep.results import Result, number, swept

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPAN = 10.0  # largest over smallest, from which on an axis of numbers is logarithmic
COLUMNS = 3


def draw(results: list[Result], path: Path) -> bool:
    """Writes a panel for each swept option; False where there is nothing to draw.

    Runs that measured another metric than most are left out: one axis cannot show both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # 0.3 s, when something is drawn

    reached = [one for one in results if one.value is not None]
    monitors = [one.monitor for one in reached]
    reached = [one for one in reached if one.monitor == max(monitors, key=monitors.count)]
    options = swept(reached)
    if not options:
        return False
    columns = min(COLUMNS, len(options))
    rows = -(-len(options) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, option in zip(panels, options, strict=False):
        panel(axes, option, reached)
    for axes in list(panels):
        axes.set_visible(False)
    figure.savefig(path, dpi=110)
    return True


def panel(axes: "Axes", option: str, results: list[Result]) -> None:
    """Each run as a dot over its value of `option`, and a line through the best of each value."""
    texts = [one.option(option) for one in results]
    numbers = [number(text) for text in texts]
    values = [one.value for one in results if one.value is not None]
    if all(value is not None for value in numbers):
        places = [value for value in numbers if value is not None]
        if min(places) > 0 and max(places) / min(places) >= SPAN:
            axes.set_xscale("log")
    else:
        names = list(dict.fromkeys(texts))
        places = [float(names.index(text)) for text in texts]
        axes.set_xticks(range(len(names)), [name or "none" for name in names], rotation=30 if len(names) > 4 else 0)
    best: dict[float, float] = {}
    choose = min if lower_is_better(results[0].monitor) else max
    for place, value in zip(places, values, strict=True):  # strict: runs without a value are not drawn
        best[place] = choose(value, best.get(place, value))
    axes.plot(sorted(best), [best[place] for place in sorted(best)], color="#9aa7b8", linewidth=1, zorder=1)
    axes.scatter(places, values, color="#2f6db5", s=26, alpha=0.8, zorder=2)
    axes.set_xlabel(option)
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel(f"best {results[0].monitor}")
    axes.grid(alpha=0.25)
