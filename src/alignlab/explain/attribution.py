"""Integrated gradients: what each token adds to a number that the model says.

Unusual: the path is cut into panels, and a panel is known to be right, because the integral of the gradient over it
must equal the difference of the number between its ends. The worst panel is halved until the errors together are small
beside the whole, so a smooth path takes few gradients and a rough one as many as it needs.
"""

# N points on the path, T tokens, D width

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from alignlab.explain.trace import evaluating
from alignlab.models.gpt import GPT

Number = Callable[[Tensor], Tensor]  # hidden states (N, T, D) -> (N,)
NODES = 4  # of the Gauss-Legendre rule in one panel
FIRST_PANELS = 4
TOLERANCE = 0.008  # of the difference, for the panels' errors together
GRADIENTS = 1024  # at most; then the error is what it is, and is told
TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """`tokens` (T,) add up to `value` - `baseline`, the number of the text and of the text without its words."""

    tokens: Tensor
    value: float
    baseline: float
    gradients: int

    @property
    def error(self) -> float:
        """What is missing for completeness, as a share of the difference."""
        difference = self.value - self.baseline
        missing = abs(float(self.tokens.sum()) - difference)
        return missing / abs(difference) if difference else (0.0 if missing == 0 else float("inf"))


@dataclass(frozen=True, kw_only=True)
class _Panel:
    start: float
    stop: float
    at_start: float
    at_stop: float
    tokens: Tensor  # (T,)

    @property
    def error(self) -> float:
        return abs(float(self.tokens.sum()) - (self.at_stop - self.at_start))


def attribution(
    model: GPT,
    ids: Tensor,
    number: Number,
    *,
    baseline: Tensor,
    prefix: Tensor | None = None,
    marks: Tensor | None = None,
) -> Attribution:
    """Integrated gradients (Sundararajan et al. 2017, equation 1) of `number` over the embeddings of ids (1, T).

    The path leads from the embeddings of `baseline` (1, T) in a straight line to those of `ids`; `marks` (1, T, D) stay
    all the way. Weights get no gradient.
    """
    with evaluating(model):
        path = _Path(model, ids, baseline, prefix, marks, number)
        borders = [place / FIRST_PANELS for place in range(FIRST_PANELS + 1)]
        values = path.values(borders)
        panels = [path.panel(*ends, *at) for ends, at in zip(pairwise(borders), pairwise(values), strict=True)]
        difference = abs(values[-1] - values[0])
        while path.gradients < GRADIENTS and sum(panel.error for panel in panels) > TOLERANCE * difference:
            worst = max(panels, key=lambda panel: panel.error)
            panels.remove(worst)
            middle = (worst.start + worst.stop) / 2
            [at_middle] = path.values([middle])
            panels.append(path.panel(worst.start, middle, worst.at_start, at_middle))
            panels.append(path.panel(middle, worst.stop, at_middle, worst.at_stop))
    tokens = torch.stack([panel.tokens for panel in panels]).sum(dim=0)
    return Attribution(tokens=tokens, value=values[-1], baseline=values[0], gradients=path.gradients)


class _Path:
    """The straight line between two rows of embeddings, and the number along it."""

    def __init__(
        self,
        model: GPT,
        ids: Tensor,
        baseline: Tensor,
        prefix: Tensor | None,
        marks: Tensor | None,
        number: Number,
    ) -> None:
        self.model, self.ids, self.prefix, self.marks, self.number = model, ids, prefix, marks, number
        with torch.no_grad():
            self.start = model.embed(baseline)  # (1, T, D)
            self.way = model.embed(ids) - self.start
        self.gradients = 0

    @torch.no_grad()
    def values(self, places: list[float]) -> list[float]:
        """The number at some places, 0 to 1."""
        return [float(value) for part in self._points(places) for value in self._number(part).double()]

    def panel(self, start: float, stop: float, at_start: float, at_stop: float) -> _Panel:
        """The integral between two places, whose numbers are known."""
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        places = (start + (stop - start) * (nodes + 1) / 2).tolist()
        shares = iter((weights * (stop - start) / 2).tolist())
        total = torch.zeros(self.ids.shape[1], dtype=torch.float64, device=self.ids.device)
        for points in self._points(places):
            points.requires_grad_(True)
            with torch.enable_grad():
                [slope] = torch.autograd.grad(self._number(points).sum(), points)
            for each in (slope * self.way).sum(dim=-1).double():  # (T,)
                total += next(shares) * each
        self.gradients += len(places)
        return _Panel(start=start, stop=stop, at_start=at_start, at_stop=at_stop, tokens=total)

    def _points(self, places: list[float]) -> list[Tensor]:
        """Embeddings (N, T, D) at the places, few enough at once."""
        along = torch.tensor(places, dtype=self.start.dtype, device=self.start.device)
        return list((self.start + along[:, None, None] * self.way).split(max(1, TOKENS_AT_ONCE // self.ids.shape[1])))

    def _number(self, points: Tensor) -> Tensor:
        """(N, T, D) embeddings in the place of those that the model would look up -> (N,)."""
        rows = len(points)
        prefix = None if self.prefix is None else self.prefix.expand(rows, -1)
        with self.model.embed.register_forward_hook(lambda *_: points):
            return self.number(self.model(self.ids.expand(rows, -1), prefix=prefix, marks=self.marks))
