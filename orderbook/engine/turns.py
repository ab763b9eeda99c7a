"""Things that many owners want done, taken from them by turns: who wants much waits for himself."""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Those of one owner stay in their order. Each has a rank, 0 and up, and owners are found by
    the rank of what is first in their queue.

    Every other turn is that of an owner who had nothing waiting when it came: one who asks now and
    then need not wait for all those who always have something.
    """

    def __init__(self, rank: Callable[[Item], int], ranks_count: int) -> None:
        self._rank = rank
        self._queues: dict[object, deque[Item]] = {}
        self._rings = [_Ring() for _ in range(ranks_count)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def is_waiting(self, owner: object) -> bool:
        """Whether there is anything of this owner."""
        return owner in self._queues

    def add(self, owner: object, item: Item) -> None:
        """Puts something behind everything of its owner."""
        self._count += 1
        queue = self._queues.get(owner)
        if queue is not None:
            queue.append(item)
            return
        self._queues[owner] = deque((item,))
        self._rings[self._rank(item)].new.append(owner)

    def first(self, rank: int) -> Item | None:
        """What `take` would give."""
        owners = self._rings[rank].next()
        return self._queues[owners[0]][0] if owners else None

    def take(self, rank: int) -> Item:
        """The next one of this rank; its owner's next turn comes after those of all others."""
        ring = self._rings[rank]
        owners = ring.next()
        ring.is_old_next = owners is ring.new
        owner = owners.popleft()
        queue = self._queues[owner]
        item = queue.popleft()
        self._count -= 1
        if queue:
            self._rings[self._rank(queue[0])].old.append(owner)
        else:
            del self._queues[owner]
        return item


class _Ring:
    """The owners whose first item has one rank: those who have just come, and those who had a turn
    since."""

    __slots__ = ("is_old_next", "new", "old")

    def __init__(self) -> None:
        self.new: deque[object] = deque()
        self.old: deque[object] = deque()
        self.is_old_next = False

    def next(self) -> deque[object]:
        """Those of whom the first one is next."""
        if self.new and not (self.old and self.is_old_next):
            return self.new
        return self.old
