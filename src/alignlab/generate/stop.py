"""Stop strings across token borders. Torch-free; knows nothing of models."""

from collections.abc import Callable

from alignlab.generate.sampling import FinishedBy


def is_stopped(ids: list[int], decode: Callable[[list[int]], str], stop: tuple[str, ...]) -> bool:
    """Whether the last of `ids` completes a stop string; decodes no more of the tail than that takes."""
    size = max(map(len, stop)) + 4  # a token of a character's bytes is the shortest there is, and usual ones are longer
    tail = decode(ids[-size:])
    while len(tail) < size and size < len(ids):
        size *= 2
        tail = decode(ids[-size:])
    return any(text in tail for text in stop)


def before_stop(
    ids: list[int], decode: Callable[[list[int]], str], stop: tuple[str, ...], finished_by: FinishedBy
) -> str:
    """The text of `ids` up to its first stop string."""
    text = decode(ids)
    if finished_by != "stop":
        return text
    return text[: min((text.index(ending) for ending in stop if ending in text), default=len(text))]
