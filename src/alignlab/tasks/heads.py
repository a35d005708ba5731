"""Whether the head of one task serves another."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def why_dropped(own: Mapping[str, Tensor], heads: Mapping[str, Tensor], before: Any, now: Any) -> str | None:
    """Why weights `heads`, which stand for `before`, are not taken for `own`, which stand for `now`; None: they are."""
    shapes = [{name: value.shape for name, value in state.items()} for state in (own, heads)]
    if now is None:
        return "this task has none"
    if shapes[0] == shapes[1] and before == now:
        return None
    if before is None:
        return "it is another task's"
    if before != now:
        return f"it stands for {before}, this task's for {now}"
    return f"its weights are {sorted(heads)}, this task's {sorted(own)}"
