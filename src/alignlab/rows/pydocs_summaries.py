"""`data=pydocs_summaries`: the body of a documentation string to its first line.

Weak by nature: a first line often says what the body does not repeat, so scores stay low; it is there to try the task
without a download. Bodies of copied documentation come once; whole modules go to one split. Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from alignlab.rows.docstrings import definitions
from alignlab.rows.embedded import Embedded
from alignlab.rows.installed import PACKAGES
from alignlab.rows.kinds import Kind

_LEAST_WORDS, _MOST_CHARACTERS = 15, 1000


@dataclass(frozen=True, kw_only=True)
class PyDocsSummaries(Embedded):
    """Rows {"document", "summary"}."""

    name: ClassVar[str] = "pydocs_summaries"
    kind: ClassVar[Kind] = "response"
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    rules: ClassVar[int] = 1

    def made(self) -> Iterator[tuple[str, dict]]:
        """The rows of all modules."""
        known: set[str] = set()
        for one in definitions():
            body = one.body[:_MOST_CHARACTERS].rsplit(" ", 1)[0] if len(one.body) > _MOST_CHARACTERS else one.body
            if len(body.split()) >= _LEAST_WORDS and body not in known:
                known.add(body)
                yield one.module, {"document": body, "summary": one.summary}
