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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import track

from audit import TradeTape, Violations
from client import Client, Frame, wait_until
from hosts import start_hosts
from rig import Book, Command, Reply, find_data, open_book, open_data, open_server, pack

SYMBOL = "GOOG"
ACCOUNT = "exchange"
TICK_SIZE = "0.01"
LOT_SIZE = "1"
ROWS_OF_GOOG = 147_916
HOSTS_MAX = 8
TAPE_TIMEOUT_S = 10.0
DIFFERENCES_SHOWN_MAX = 5
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
        if len(self.first_differences) < DIFFERENCES_SHOWN_MAX:
            self.first_differences.append(difference)

    def compare(self, row: int, found: "Depth", expected: "Depth") -> None:
        self.rows += 1
        if found == expected:
            self.rows_equal += 1
        else:
            self.note(f"row {row}: {found} instead of {expected}")


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
        tracked = track(
            itertools.islice(pairs, self.rows_max),
            description=SYMBOL,
            total=self.rows_max or ROWS_OF_GOOG,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        return iter(tracked)


class DepthReader:
    """Reads the top of the book back from Redis."""

    def __init__(self, book: Book, levels: int) -> None:
        self._connection = book.connection
        self._packed = pack("FCALL_RO", "get_book", 1, book.key, "depth", str(levels))

    def read(self) -> Depth:
        self._connection.send(self._packed)
        return _decode_depth(self._connection.receive())


# Runs the commands of the message with this row number; answers with their replies.
Execute = Callable[[int, list[Command]], Awaitable[Sequence[bytes]]]


async def replay(plan: Plan, execute: Execute, depth: DepthReader) -> Tally:
    """The whole day, one message after the other, each acknowledged before the next."""
    tally = Tally()
    day = Day(tally)
    for row, (operations, expected) in enumerate(plan.rows()):
        for call in in_calls(operations):
            await _run_call(row, call, day, execute)
        tally.compare(row, depth.read(), expected)
    return tally


async def _run_call(row: int, call: list[Operation], day: Day, execute: Execute) -> None:
    sent = [(operation, day.commands(operation)) for operation in call]
    commands = [command for _, of_one in sent for command in of_one]
    replies = iter(await execute(row, commands) if commands else [])
    for operation, of_one in sent:
        day.learn(operation, list(itertools.islice(replies, len(of_one))))


async def replay_by_calls(plan: Plan, book: Book) -> Tally:
    """The day through FCALL on one connection."""

    async def execute(_row: int, commands: list[Command]) -> list[bytes]:
        book.send(commands)
        return book.receive()

    return await replay(plan, execute, DepthReader(book, plan.levels))


async def replay_by_hosts(plan: Plan, book: Book, urls: list[str]) -> tuple[Tally, list[TradeTape]]:
    """The day through websocket hosts in turn; and what a subscriber on each host saw."""
    violations = Violations()
    tapes = [TradeTape(SYMBOL, violations) for _ in urls]
    async with contextlib.AsyncExitStack() as cleanup:
        for url, tape in zip(urls, tapes, strict=True):
            subscriber = Client([url], "subscriber", tape.take)
            await cleanup.enter_async_context(subscriber)
            await subscriber.subscribe("trades", SYMBOL)
        clients = [Client([url], ACCOUNT, _ignore_update) for url in urls]
        for client in clients:
            await cleanup.enter_async_context(client)

        async def execute(row: int, commands: list[Command]) -> list[bytes]:
            return await _submit_all(clients[row % len(clients)], commands)

        tally = await replay(plan, execute, DepthReader(book, plan.levels))
        await _wait_for_tapes(tapes, _last_trade_id(book))
    for violation in violations.sentences:
        tally.note(violation)
    return tally, tapes


async def _submit_all(client: Client, commands: list[Command]) -> list[bytes]:
    """All at once: a connection's commands are run in the order they were sent."""
    answers = await asyncio.gather(
        *(client.request(command["method"], _params(command)) for command in commands)
    )
    return [_reply_of(answer) for answer in answers]


def _params(command: Command) -> dict[str, str]:
    """A websocket names the symbol, and has its account already."""
    fields = {name: text for name, text in command.items() if name not in {"method", "account"}}
    return {"symbol": SYMBOL, **fields}


def _reply_of(answer: Frame) -> bytes:
    if answer.error is None:
        return bytes(answer.result)
    refused = {"code": answer.error.code, "message": answer.error.message}
    return msgspec.json.encode({"status": "rejected", **refused})


def _ignore_update(frame: Frame) -> None:
    raise AssertionError(f"nothing was subscribed, and yet {frame} came")


def _last_trade_id(book: Book) -> int:
    trades = book.read("get_trades", "limit", "1")["trades"]
    return int(trades[-1]["trade_id"]) if trades else 0


async def _wait_for_tapes(tapes: list[TradeTape], last_trade_id: int) -> None:
    """A subscriber may be a moment behind the acknowledgements."""
    await wait_until(lambda: all(tape.has_reached(last_trade_id) for tape in tapes), TAPE_TIMEOUT_S)


class Subscriber(msgspec.Struct):
    """What the trades subscriber of one host saw: how many, and their SHA-256 in order."""

    trades: int
    sha256: str


class Result(msgspec.Struct, omit_defaults=True):
    """What --json prints. Everything is as it should be when `passed`."""

    rows: int
    rows_equal: int
    executions: int
    makers_equal: int
    rejected: int
    verified: bool
    passed: bool
    seconds: float
    subscribers: list[Subscriber] = []
    subscribers_equal: bool | None = None
    first_differences: list[str] = []


def run(plan: Plan, redis_url: str | None, host_count: int) -> Result:
    """Replays the day on a fresh book."""
    tapes: list[TradeTape] = []
    with open_server(redis_url) as url, open_book(url, SYMBOL) as book:
        book.define(tick_size=TICK_SIZE, lot_size=LOT_SIZE)
        started = time.perf_counter()
        if host_count:
            with start_hosts(url, host_count) as hosts:
                urls = [host.url for host in hosts]
                tally, tapes = asyncio.run(replay_by_hosts(plan, book, urls))
        else:
            tally = asyncio.run(replay_by_calls(plan, book))
        seconds = time.perf_counter() - started
        verified = book.read("verify_book")["verified"] is True
        trades = _last_trade_id(book)
    return _result(tally, tapes, verified and all(tape.count == trades for tape in tapes), seconds)


def _result(tally: Tally, tapes: list[TradeTape], verified: bool, seconds: float) -> Result:
    subscribers = [Subscriber(tape.count, tape.digest()) for tape in tapes]
    equal = len(set(map(msgspec.json.encode, subscribers))) <= 1
    passed = (
        verified
        and equal
        and tally.rows_equal == tally.rows
        and tally.makers_equal == tally.executions
        and not tally.first_differences
    )
    return Result(
        rows=tally.rows,
        rows_equal=tally.rows_equal,
        executions=tally.executions,
        makers_equal=tally.makers_equal,
        rejected=tally.rejected,
        verified=verified,
        passed=passed,
        seconds=round(seconds, 1),
        subscribers=subscribers,
        subscribers_equal=equal if tapes else None,
        first_differences=tally.first_differences,
    )


@click.command()
@click.option("--script", required=True, help="The day as operations: …script.jsonl.xz")
@click.option("--orderbook", required=True, help="The exchange's books: …orderbook_10.csv.xz")
@click.option(
    "--levels", type=click.IntRange(1, 10), default=10, show_default=True, help="Levels compared."
)
@click.option("--rows", "rows_max", type=click.IntRange(1), help="Stop after so many messages.")
@click.option(
    "--hosts",
    "host_count",
    type=click.IntRange(0, HOSTS_MAX),
    default=0,
    help="Go through so many websocket hosts; 0: FCALL.",
)
@click.option(
    "--redis-url", envvar="ORDERBOOK_REDIS_URL", help="An empty server; default: an embedded one."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(  # noqa: PLR0913, PLR0917 - click passes every option by itself
    script: str,
    orderbook: str,
    levels: int,
    rows_max: int | None,
    host_count: int,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Replay a trading day; exit 1 unless every row, every maker and the final book are right."""
    files = find_data(script, "lobster"), find_data(orderbook, "lobster")
    result = run(Plan(*files, levels, rows_max), redis_url, host_count)
    if as_json:
        click.echo(msgspec.json.encode(result))
    else:
        for name, value in msgspec.to_builtins(result).items():
            click.echo(f"{name:18} {value}")
    if not result.passed:
        sys.exit(1)


if __name__ == "__main__":
    main()
