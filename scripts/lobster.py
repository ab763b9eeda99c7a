"""Replays a real trading day and compares every top of book with what the exchange published.

    python scripts/lobster.py --script GOOG_10.script.jsonl.xz \\
        --orderbook GOOG_2012-06-21_34200000_57600000_orderbook_10.csv.xz --levels 10 --json

The idea: the script says which orders came, shrank and went, and sends every execution as an ioc
order, so the engine itself has to find the maker. After each message the top of the book is read
back from Redis and compared with the exchange's row. What is known about open orders comes from the
engine's replies. With --hosts the same day goes through websocket hosts in turn, one message each,
and a trades subscriber on every host must have seen the same trades in the same order.
"""

import asyncio
import contextlib
import csv
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import track

from hosts import Host, TradeWatcher, WebsocketClient, start_hosts
from rig import Book, Command, Reply, find_data, open_book, open_data, open_server, pack

SYMBOL = "GOOG"
ACCOUNT = "exchange"
TICK_SIZE = "0.01"
LOT_SIZE = "1"
ROWS_OF_GOOG = 147_916
HOSTS_MAX = 8
# The data's prices are dollars × 10,000; a level that is not there has this price.
PRICE_SCALE = 10_000
PRICE_EMPTY = 9_999_999_999

SIDES = {1: "buy", -1: "sell"}
# What may stand in one call: an operation of a lower rank may need the outcome of a higher one.
RANKS = {"reduce": 0, "cancel_level": 0, "new": 1, "ioc": 2}

Operation = list[Any]
Levels = list[list[str]]

_decode_reply = msgspec.json.Decoder(Reply).decode


class Depth(msgspec.Struct):
    """What is compared of get_book: [price, quantity] text, best first."""

    bids: Levels
    asks: Levels


_decode_depth = msgspec.json.Decoder(Depth).decode


@dataclass(slots=True)
class OpenOrder:
    """What we know of an order from the engine's replies."""

    order_id: str
    direction: int
    price: int
    remaining_quantity: int


@dataclass(slots=True)
class Tally:
    """What was equal, and what was not."""

    rows: int = 0
    rows_equal: int = 0
    executions: int = 0
    makers_equal: int = 0
    rejected: int = 0
    first_differences: list[str] = field(default_factory=list)

    def note(self, difference: str) -> None:
        if len(self.first_differences) < 5:
            self.first_differences.append(difference)


class Day:
    """The day's operations as commands, and the open orders as the replies tell them."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._orders: dict[int, OpenOrder] = {}
        self._script_ids: dict[str, int] = {}

    def commands(self, operation: Operation) -> list[Command]:
        """The commands of one operation; a level may hold several orders to cancel."""
        kind = operation[0]
        if kind == "new":
            _, _, direction, price, quantity = operation
            return [_place_order(direction, price, quantity, "gtc")]
        if kind == "ioc":
            _, direction, price, quantity, _ = operation
            return [_place_order(direction, price, quantity, "ioc")]
        if kind == "reduce":
            return [self._reduce(operation[1], operation[2])]
        return [self._cancel(script_id) for script_id in self._on_level(operation[1], operation[2])]

    def learn(self, operation: Operation, replies: Sequence[bytes]) -> None:
        """Takes in the replies to the operation's commands."""
        for reply in map(_decode_reply, replies):
            if reply.status == "rejected":
                self._tally.rejected += 1
                self._tally.note(f"{operation}: {reply.code} {reply.message}")
                continue
            makers = [self._fill(fill.maker_order_id, int(fill.quantity)) for fill in reply.fills]
            if operation[0] == "new":
                self._open(operation, reply)
            elif operation[0] == "ioc":
                self._judge(operation, reply, makers)

    def _open(self, operation: Operation, reply: Reply) -> None:
        _, script_id, direction, price, _ = operation
        if reply.fills:
            self._tally.note(f"{operation} traded instead of resting")
        order = OpenOrder(reply.order_id, direction, price, int(reply.remaining_quantity))
        self._orders[script_id] = order
        self._script_ids[reply.order_id] = script_id

    def _judge(self, operation: Operation, reply: Reply, makers: list[int | None]) -> None:
        _, _, _, quantity, expected_maker = operation
        filled = sum(int(fill.quantity) for fill in reply.fills)
        self._tally.executions += 1
        if makers == [expected_maker] and filled == quantity:
            self._tally.makers_equal += 1
        else:
            self._tally.note(f"{operation} was filled by {makers}, {filled} in all")

    def _fill(self, order_id: str, quantity: int) -> int | None:
        """Takes a fill off its maker; returns the maker's id in the script."""
        script_id = self._script_ids.get(order_id)
        if script_id is not None:
            self._shrink(script_id, quantity)
        return script_id

    def _shrink(self, script_id: int, quantity: int) -> None:
        order = self._orders[script_id]
        order.remaining_quantity -= quantity
        if order.remaining_quantity <= 0:
            self._forget(script_id)

    def _forget(self, script_id: int) -> OpenOrder:
        order = self._orders.pop(script_id)
        del self._script_ids[order.order_id]
        return order

    def _reduce(self, script_id: int, quantity: int) -> Command:
        order = self._orders[script_id]
        if order.remaining_quantity <= quantity:
            return self._cancel(script_id)
        self._shrink(script_id, quantity)
        remaining = str(order.remaining_quantity)
        return {**_of("amend_order", order), "remaining_quantity": remaining}

    def _cancel(self, script_id: int) -> Command:
        return _of("cancel_order", self._forget(script_id))

    def _on_level(self, direction: int, price: int) -> list[int]:
        return [
            script_id
            for script_id, order in self._orders.items()
            if order.direction == direction and order.price == price
        ]


def _of(method: str, order: OpenOrder) -> Command:
    return {"method": method, "account": ACCOUNT, "order_id": order.order_id}


def _place_order(direction: int, price: int, quantity: int, time_in_force: str) -> Command:
    return {
        "method": "place_order",
        "account": ACCOUNT,
        "side": SIDES[direction],
        "order_type": "limit",
        "time_in_force": time_in_force,
        "price": _price_text(price),
        "quantity": str(quantity),
    }


@cache
def _price_text(price: int) -> str:
    """Dollars × 10,000 as the engine prints it: no exponent, no trailing zeros."""
    return format((Decimal(price) / PRICE_SCALE).normalize(), "f")


def in_calls(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Cuts a message's operations into calls: none needs the outcome of another in its call."""
    call: list[Operation] = []
    for operation in operations:
        last_rank = RANKS[call[-1][0]] if call else 0
        if RANKS[operation[0]] < last_rank or last_rank == RANKS["ioc"]:
            yield call
            call = []
        call.append(operation)
    if call:
        yield call


def read_script(path: Path) -> Iterator[list[Operation]]:
    """The operations of each message."""
    decode = msgspec.json.Decoder(tuple[int, str, int, list[Operation]]).decode
    with open_data(path) as stream:
        for line in stream:
            yield decode(line)[3]


def read_depths(path: Path, levels: int) -> Iterator[Depth]:
    """The exchange's own top `levels` after each message."""
    with open_data(path) as stream:
        for row in csv.reader(io.TextIOWrapper(stream)):
            asks = _side(row[0::4], row[1::4], levels)
            bids = _side(row[2::4], row[3::4], levels)
            yield Depth(bids=bids, asks=asks)


def _side(prices: list[str], quantities: list[str], levels: int) -> Levels:
    pairs = zip(prices[:levels], quantities[:levels], strict=True)
    return [
        [_price_text(int(price)), quantity]
        for price, quantity in pairs
        if abs(int(price)) != PRICE_EMPTY
    ]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay."""

    script: Path
    orderbook: Path
    levels: int
    rows_max: int | None

    def rows(self) -> Iterator[tuple[list[Operation], Depth]]:
        """Each message's operations with the exchange's book after it."""
        pairs = zip(read_script(self.script), read_depths(self.orderbook, self.levels), strict=True)
        return track(
            itertools.islice(pairs, self.rows_max),
            description=SYMBOL,
            total=self.rows_max or ROWS_OF_GOOG,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )


class DepthReader:
    """Reads the top of the book from Redis; ask() may be sent right behind a command."""

    def __init__(self, book: Book, levels: int) -> None:
        self._connection = book.connection
        self._packed = pack("FCALL_RO", "get_book", 1, book.key, "depth", str(levels))

    def ask(self) -> None:
        self._connection.send(self._packed)

    def answer(self) -> Depth:
        return _decode_depth(self._connection.receive())


def _compare(tally: Tally, found: Depth, expected: Depth) -> None:
    tally.rows += 1
    if found == expected:
        tally.rows_equal += 1
    else:
        tally.note(f"row {tally.rows - 1}: {found} instead of {expected}")


def replay_by_calls(plan: Plan, book: Book, tally: Tally) -> None:
    """The day through FCALL, one connection."""
    day = Day(tally)
    depth = DepthReader(book, plan.levels)
    for operations, expected in plan.rows():
        asked = False
        for call in _last_flagged(in_calls(operations)):
            sent = [(operation, day.commands(operation)) for operation in call.operations]
            commands = [command for _, of_one in sent for command in of_one]
            if commands:
                book.send(commands)
            if call.is_last:
                depth.ask()
                asked = True
            replies = iter(book.receive() if commands else [])
            for operation, of_one in sent:
                day.learn(operation, list(itertools.islice(replies, len(of_one))))
        if not asked:
            depth.ask()
        _compare(tally, depth.answer(), expected)
