"""How far a heap grows under a sequence of blocks: what a process on a CPU really takes for them.

Unusual: a model of glibc's `posix_memalign` for large blocks. It asks for an aligned block's size and the alignment
too, in the smallest free gap that holds both, and gives back what it does not need on either side. Those slivers are
soon taken by small objects, which keep their neighbours from being joined: that, not rounding, is what makes a heap
grow by half beyond the tensors in it. It knows nothing of tensors.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

ALIGNMENT = 64  # bytes, torch's
HEADER, LEAST, UNIT = 16, 32, 16  # bytes, of a chunk of glibc's
SLIVER = 128  # bytes; glibc keeps free chunks up to here apart from the others
HELD = 0.4  # of a training step's blocks are taken before a small object goes; fitted to two measured runs


class Heap:
    """Used blocks and free gaps between 0 and `end`; `furthest` is the largest `end` there was.

    A sliver stays taken until `held` more blocks were.
    """

    def __init__(self, held: int) -> None:
        self.end = self.furthest = 0
        self.held = held
        self._taken = 0
        self._slivers: deque[tuple[int, int, int]] = deque()  # until when, where it begins, its bytes
        self._used: dict[int, tuple[int, int]] = {}  # block -> where its chunk begins, its bytes
        self._gaps: list[tuple[int, int]] = []  # (bytes, where it begins), sorted
        self._begins: dict[int, int] = {}  # where a gap begins -> its bytes
        self._ends: dict[int, int] = {}  # where a gap ends -> where it begins

    def take(self, block: int, size: int) -> None:
        """Finds room for a block of `size` bytes."""
        self._taken += 1
        while self._slivers and self._slivers[0][0] < self._taken:
            _, start, rest = self._slivers.popleft()
            self._add(start, rest)
        own = -(-(size + HEADER) // UNIT) * UNIT
        start, room = self._room(own + ALIGNMENT + LEAST)
        first = -(-(start + HEADER) // ALIGNMENT) * ALIGNMENT - HEADER
        if 0 < first - start < LEAST:
            first += ALIGNMENT
        if room - (first - start) - own < LEAST:
            own = room - (first - start)
        self._used[block] = (first, own)
        for begin, rest in ((start, first - start), (first + own, start + room - first - own)):
            if 0 < rest <= SLIVER:
                self._slivers.append((self._taken + self.held, begin, rest))
            else:
                self._add(begin, rest)

    def give_back(self, block: int) -> None:
        """Frees a block."""
        self._add(*self._used.pop(block))

    def _room(self, size: int) -> tuple[int, int]:
        """Where at least `size` bytes are free, and how many: the smallest such gap, or the end of the heap."""
        place = bisect_left(self._gaps, (size, -1))
        if place < len(self._gaps):
            start = self._gaps[place][1]
            return start, self._remove(start)
        start, self.end = self.end, self.end + size
        self.furthest = max(self.furthest, self.end)
        return start, size

    def _add(self, start: int, size: int) -> None:
        if not size:
            return
        if (before := self._ends.get(start)) is not None:
            size, start = size + self._remove(before), before
        if start + size in self._begins:
            size += self._remove(start + size)
        if start + size == self.end:
            self.end = start
            return
        insort(self._gaps, (size, start))
        self._begins[start], self._ends[start + size] = size, start

    def _remove(self, start: int) -> int:
        size = self._begins.pop(start)
        del self._ends[start + size]
        del self._gaps[bisect_left(self._gaps, (size, start))]
        return size


def heap_size(entries: Sequence[tuple[int, int]], steps: int) -> int:
    """Bytes that the heap ever had; entries are (block, bytes), 0 bytes frees it, of `steps` training steps."""
    heap = Heap(held=int(HELD * sum(size > 0 for _, size in entries) / steps))
    for block, size in entries:
        if size:
            heap.take(block, size)
        else:
            heap.give_back(block)
    return heap.furthest
