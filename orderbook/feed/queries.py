"""Queries on their way to the server: they run beside the commands and must not delay them.

A server runs one thing at a time, so a host never has many queries there at once, and takes them
from those who ask by turns. Expensive ones have a lane of their own: one at a time, each followed
by a pause several times as long as it took. What they cost in an allowance is their weight.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from orderbook.engine.engine import Engine
from orderbook.engine.turns import Turns
from orderbook.limits import WEIGHT_MAX
from orderbook.messages import Channel

QUICK_IN_FLIGHT_MAX = 8
# The part of a server's time that one host's expensive queries may have.
EXPENSIVE_SHARE_MAX = 0.1
# A server that stood still for a while is not asked for nothing for ten times as long.
PAUSE_S_MAX = 1.0
# One that waits for its book to be moved, say, does not keep the others waiting any longer.
PLACE_HELD_S_MAX = 1.0
# Levels, orders or trades that are cheap to read.
CHEAP_ROWS_MAX = 100
# WEIGHT_MAX for all of the order book, in proportion to the time that others take of the server.
_WEIGHT_LEVEL3_TOP = 5
_WEIGHT_HISTORY = 5
_WEIGHT_ROWS = 1
_WEIGHT_OF_SNAPSHOT = {
    Channel.LEVEL3: WEIGHT_MAX,
    Channel.LEVEL2: _WEIGHT_ROWS,
    Channel.ORDERS: _WEIGHT_ROWS,
}
_ROWS_FIELD = {"get_book": "depth", "get_open_orders": "limit", "get_trades": "limit"}
_ROWS_DEFAULT = {"get_book": 10, "get_open_orders": 500, "get_trades": 50}
_ROWS_DIGITS_MAX = 5
_ROWS_MANY = 100_000

Answer = TypeVar("Answer")


def weight(function: str, arguments: list[str]) -> int:
    """What a query costs; 0 where it is cheap."""
    if function == "get_level3":
        rows = _rows(arguments, "depth", CHEAP_ROWS_MAX)
        return _WEIGHT_LEVEL3_TOP if rows <= CHEAP_ROWS_MAX else WEIGHT_MAX
    if function in {"get_closed_orders", "get_own_trades"}:
        return _WEIGHT_HISTORY
    if function not in _ROWS_FIELD:
        return 0
    rows = _rows(arguments, _ROWS_FIELD[function], _ROWS_DEFAULT[function])
    return _WEIGHT_ROWS if rows > CHEAP_ROWS_MAX else 0


def snapshot_weight(channel: Channel, variant: str) -> int:
    """What it costs to begin a subscription anew."""
    if channel is Channel.BOOK:
        return weight("get_book", ["depth", variant]) if variant else 0
    return _WEIGHT_OF_SNAPSHOT.get(channel, 0)


def _rows(arguments: list[str], field: str, default: int) -> int:
    """How many rows are asked for; `full`, and what is no number, counts as very many."""
    if field not in arguments[::2]:
        return default
    text = arguments[2 * arguments[::2].index(field) + 1]
    if text.isascii() and text.isdigit() and len(text) <= _ROWS_DIGITS_MAX:
        return int(text)
    return _ROWS_MANY


class Lane:
    """Room for a few calls at a time, given to owners by turns."""

    def __init__(self, places_count: int, share_max: float = 1.0) -> None:
        """After each call its place stays empty for so long that it is used for `share_max` of the
        time."""
        self._free_count = places_count
        self._pause_factor = 1 / share_max - 1
        self._waiting: Turns[asyncio.Future[None]] = Turns(lambda _: 0, 1)
        self._loop = asyncio.get_running_loop()

    async def run(self, owner: object, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Does the work when there is room for it."""
        if self._free_count:
            self._free_count -= 1
        else:
            turn = self._loop.create_future()
            self._waiting.add(owner, turn)
            await self._wait(turn)
        place = _Place(self)
        try:
            return await work()
        finally:
            place.leave()

    async def _wait(self, turn: asyncio.Future[None]) -> None:
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It had been given the room and will not use it.
                self.give_room()
            raise

    def pause_s(self, used_s: float) -> float:
        """For how long a place stays empty after a call."""
        return min(used_s * self._pause_factor, PAUSE_S_MAX)

    def hurry(self) -> None:
        """No more pauses."""
        self._pause_factor = 0.0

    def give_room(self) -> None:
        """A place is free: whoever is next takes it."""
        while self._waiting:
            turn = self._waiting.take(0)
            if not turn.done():
                turn.set_result(None)
                return
        self._free_count += 1


class _Place:
    """A place in a lane, left once: when the call has ended, or has taken too long."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._since_s = self._loop.time()
        self._timer = self._loop.call_later(PLACE_HELD_S_MAX, self.leave)
        self._is_left = False

    def leave(self) -> None:
        if self._is_left:
            return
        self._is_left = True
        self._timer.cancel()
        pause_s = self._lane.pause_s(self._loop.time() - self._since_s)
        if pause_s:
            self._loop.call_later(pause_s, self._lane.give_room)
        else:
            self._lane.give_room()


class Queries:
    """The queries of one host."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._quick = Lane(QUICK_IN_FLIGHT_MAX)
        self._expensive = Lane(1, EXPENSIVE_SHARE_MAX)

    def hurry(self) -> None:
        """What is still asked is answered as soon as can be: the host is draining."""
        self._expensive.hurry()

    async def ask(self, owner: object, function: str, symbol: str, *arguments: str) -> bytes:
        """The reply of a query, when it is its owner's turn. Raises EngineError."""
        lane = self._expensive if weight(function, list(arguments)) else self._quick
        return await lane.run(owner, partial(self._engine.query, function, symbol, *arguments))
