"""Things that many owners want done, taken from them by turns: who wants much waits for himself."""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Those of one owner stay in their order. Each has a rank, 0 and up, and owners are found by
    the rank of what is first in their queue."""

    def __init__(self, rank: Callable[[Item], int], ranks_count: int) -> None:
        self._rank = rank
        self._queues: dict[object, deque[Item]] = {}
        # The owners whose first item has this rank, the next to have its turn first.
        self._owners: list[deque[object]] = [deque() for _ in range(ranks_count)]
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
        self._owners[self._rank(item)].append(owner)

    def first(self, rank: int) -> Item | None:
        """What `take` would give."""
        owners = self._owners[rank]
        return self._queues[owners[0]][0] if owners else None

    def take(self, rank: int) -> Item:
        """The next one of this rank; its owner's next turn comes after those of all others."""
        owner = self._owners[rank].popleft()
        queue = self._queues[owner]
        item = queue.popleft()
        self._count -= 1
        if queue:
            self._owners[self._rank(queue[0])].append(owner)
        else:
            del self._queues[owner]
        return item
