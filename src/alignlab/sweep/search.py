"""A search with Optuna over options: the study, its points as overrides, and what the jobs' folders say of them.

Unusual: a point that was drawn before is not trained again; the study hears its result once more. Knows nothing of how
jobs are run: `launch` is given.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from alignlab.commandline.quoting import parsed, quote
from alignlab.directions import lower_is_better
from alignlab.errors import UserError
from alignlab.sweep import outcome
from alignlab.sweep.job import say
from alignlab.sweep.settings import NAME, Search, storage

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

FILE = "study.db"
AGAIN = 50  # draws of known points, for each trial that is wanted, before the space counts as exhausted
Direction = Literal["minimize", "maximize"]
Launch = Callable[[list[list[str]]], object]


def open_study(folder: Path, settings: Search, directions: list[Direction], seed: int) -> "Study":
    """The study of the sweep in `folder`, made where there is none; it draws other points than it did before."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=storage(str((folder / FILE).resolve())), study_name=NAME, directions=directions, load_if_exists=True
    )
    if [direction.name.lower() for direction in study.directions] != directions:
        raise UserError(f"{folder} holds a study of other objectives\ngo on with the same, or choose another folder")
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=settings.random_trials, seed=seed + len(study.trials), constant_liar=True
    )
    return study


def objectives_of(settings: Search, monitor: str) -> dict[str, Direction]:
    """Name and direction of each objective."""
    return dict(settings.objectives or {monitor: "minimize" if lower_is_better(monitor) else "maximize"})


def split(overrides: list[str], space: dict[str, str]) -> tuple[list[str], dict[str, Override]]:
    """What every job has, and what is searched: sweeps among `overrides`, and `space` where they say nothing."""
    fixed, searched = [], {}
    for text in overrides:
        reading = _read(text)
        if reading.is_sweep_override():
            searched[text.lstrip("+").partition("=")[0]] = reading
        else:
            fixed.append(text)
    named = {text.lstrip("+").partition("=")[0] for text in fixed}
    for name, text in space.items():
        if name not in named and name not in searched:
            searched[name] = _read(f"++{name}={text}" if "." in name else f"{name}={text}")
            if not searched[name].is_sweep_override():
                raise UserError(f"sweep.space.{name} is {text}; expected interval(a, b), range(a, b) or choice(a, b)")
    if not searched:
        raise UserError("nothing is searched\nname several values or an interval: optim.lr='interval(1e-4, 1e-2)'")
    return fixed, searched


def _read(text: str) -> Override:
    reading = parsed(text)
    if reading is None:
        raise UserError(f"cannot read {text!r}; expected NAME=VALUE, interval(a, b), range(a, b) or choice(a, b)")
    return reading


def distribution(override: Override) -> "BaseDistribution":
    """Where Optuna draws an option from; choices are texts, as they stand in an override."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    is_log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        if is_log and low <= 0:
            raise UserError(f"{override.input_line} is logarithmic; expected a start above 0")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(float(low), float(high), log=is_log)
    if isinstance(value, RangeSweep):
        numbers = list(value.range())
        if all(isinstance(one, int) for one in numbers):
            return IntDistribution(int(numbers[0]), int(numbers[-1]), log=is_log, step=1 if is_log else int(value.step))
        return FloatDistribution(float(numbers[0]), float(numbers[-1]), step=float(value.step))
    raise UserError(f"{override.input_line} cannot be searched; expected interval(a, b), range(a, b) or choice(a, b)")


class Searching:
    """One start of the sweep in `folder`: goes on with trials that were cut off, then draws until there are enough."""

    def __init__(
        self, *, settings: Search, folder: Path, fixed: list[str], searched: dict[str, Override],
        objectives: dict[str, Direction], seed: int, launch: Launch,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.folder = folder
        self.fixed = fixed
        self.keys = {name: override.get_key_element() for name, override in searched.items()}
        self.space = {name: distribution(override) for name, override in searched.items()}
        self.objectives = objectives
        self.launch = launch
        self.study = open_study(folder, settings, list(objectives.values()), seed)

    def run(self) -> None:
        """Launches batches of `sweep.jobs` until `sweep.trials` have ended."""
        batch = self.cut_off()
        while batch or (batch := self.drawn()):
            size = self.settings.jobs or 1
            self.launch([self.overrides(number, params) for number, params in batch[:size]])
            for number, _ in batch[:size]:
                self.tell(number)
            batch = batch[size:]
        self.conclude()

    def cut_off(self) -> list[tuple[int, dict[str, Any]]]:
        """Trials that had begun when the sweep ended."""
        from optuna.trial import TrialState

        return [(one.number, one.params) for one in self.study.get_trials(states=(TrialState.RUNNING,))]

    def drawn(self) -> list[tuple[int, dict[str, Any]]]:
        """The next points, none of which was drawn before; empty when there are enough, or no new ones."""
        wanted = min(self.settings.jobs or 1, self.settings.trials - len(self.trained()))
        batch: list[tuple[int, dict[str, Any]]] = []
        for _ in range(AGAIN * max(0, wanted)):
            if len(batch) == wanted:
                break
            trial = self.study.ask(self.space)
            if not self._is_known(trial):
                batch.append((trial.number, trial.params))
        if wanted > 0 and not batch:
            say(f"no point is left that was not tried; {len(self.trained())} trials")
        return batch

    def trained(self) -> list[Any]:
        """Trials that had a job of their own."""
        return [one for one in self.study.get_trials() if one.state.is_finished() and "same_as" not in one.user_attrs]

    def _is_known(self, trial: "Trial") -> bool:
        """Whether an earlier trial has the same point; then its result is told again, for the sampler to move on."""
        from optuna.trial import TrialState

        earlier = (one for one in self.study.get_trials() if one.number < trial.number and one.params == trial.params)
        same = next((one for one in earlier if "same_as" not in one.user_attrs), None)
        if same is None:
            return False
        trial.set_user_attr("same_as", same.number)
        if same.state == TrialState.COMPLETE:
            self.study.tell(trial, same.values)
        else:
            self.study.tell(trial, state=TrialState.FAIL)
        return True

    def overrides(self, number: int, params: dict[str, Any]) -> list[str]:
        """The command line of the job of trial `number`, which trains in the folder of that name."""
        drawn = [f"{self.keys[name]}={value}" for name, value in params.items()]
        study = str((self.folder / FILE).resolve())
        own = [f"++sweep.trial={number}", f"++sweep.study={quote(study)}", f"hydra.sweep.subdir={number}"]
        return [*self.fixed, *drawn, *own]

    def tell(self, number: int) -> None:
        """Tells the study what came of trial `number`."""
        from optuna.trial import TrialState

        told = outcome.read(self.folder / str(number))
        if told is not None and told.status == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
            return
        values = self.reached(number)
        if told is None or told.status != "done" or not all(map(math.isfinite, values)):
            self.study.tell(number, state=TrialState.FAIL)
            if told is not None and told.status == "done":
                missing = [name for name, value in zip(self.objectives, values, strict=True) if math.isnan(value)]
                say(f"job {number} did not measure {', '.join(missing)}; expected names of its metrics.json")
        else:
            self.study.tell(number, values)

    def reached(self, number: int) -> list[float]:
        """The objectives of a trial; NaN for what it did not measure."""
        path = self.folder / str(number) / "metrics.json"
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = [values.get(f"best/{name}", values.get(name)) for name in self.objectives]
        return [math.nan if value is None else float(value) for value in found]

    def conclude(self) -> None:
        """Says which trials are the best."""
        finished = self.trained()
        if not any(one.state.name == "COMPLETE" for one in finished):
            return
        best = [one for one in self.study.best_trials if "same_as" not in one.user_attrs]
        names = "the best job" if len(self.objectives) == 1 else "not beaten in all objectives"
        for one in best:
            values = ", ".join(f"{name} {value:.5g}" for name, value in zip(self.objectives, one.values, strict=True))
            say(f"{names}: {one.number} with {values}")
