"""How the cost of a book grows: with the orders that rest in it, and with its levels.

The idea: two books on one server, one small and one large, get the same flow by turns, so that only
what rests in them differs. The resting orders lie further from the touch than the flow, spread over
LEVELS levels, from ACCOUNTS accounts. The flow is half new orders within ten ticks of the touch
and half cancels of them. A level's worth of memory is all the server has taken since before the
book was filled, over its orders; the book keeps EVENTS_LENGTH entries of its event stream, for what
a stream keeps is chosen by its length and not by the orders that rest.
"""

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_engine import BATCH, Bench
from figures import Figure, at_most, median_ratio
from plots import Curve, draw
from rig import Book, Command, Connection, open_server, pack, pack_commands

MIDDLE = 1_000_000
LEVELS = 10_000
ACCOUNTS = 10_000
EVENTS_LENGTH = "1000"
TOUCH_REACH = 10
MAKERS = 1_000
FULL_LEVELS = (10, 100, 1_000, 10_000)
DEPTHS_PER_ROUND = 25
WRITES_IN_FLIGHT_MAX = 4

COST_TARGET = 1.3
BYTES_TARGET = 250
SWEEP_TARGET_US = 3.0
DEPTH_TARGET = 1.3
FULL_TARGET_MS = 10.0


@dataclass(frozen=True)
class Scale:
    """How much is measured: resting orders of the books, from small to large."""

    resting: tuple[int, ...]
    flow_messages: int
    rounds: int


FULL = Scale((1_000, 10_000, 100_000, 1_000_000), 6_400, 7)
QUICK = Scale((1_000, 20_000), 1_280, 3)


class Laboratory:
    """A server, and what is asked of its books."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._bench = Bench(Book(connection, "BENCH"), None)

    def book(self, symbol: str) -> Book:
        """A new book that keeps a short stream."""
        book = Book(self.connection, symbol)
        book.define(
            tick_size="1",
            lot_size="1",
            events_length_max=EVENTS_LENGTH,
            trades_length_max=EVENTS_LENGTH,
        )
        return book

    def run(self, book: Book, commands: Iterator[Command] | list[Command]) -> float:
        """Runs commands in batches; the server CPU they took, in microseconds."""
        started_s = self._bench.cpu_s()
        waiting, batch = 0, []
        for command in commands:
            batch.append(command)
            if len(batch) == BATCH:
                self.connection.send(pack_commands(book.key, batch))
                waiting, batch = waiting + 1, []
            if waiting == WRITES_IN_FLIGHT_MAX:
                self.connection.receive()
                waiting -= 1
        if batch:
            self.connection.send(pack_commands(book.key, batch))
            waiting += 1
        for _ in range(waiting):
            self.connection.receive()
        return (self._bench.cpu_s() - started_s) * 1e6

    def memory_bytes(self) -> int:
        facts = self.connection.call("INFO", "memory").decode().splitlines()
        return int(next(line for line in facts if line.startswith("used_memory:"))[12:])

    def seconds_of_depth(self, book: Book, depth: str) -> float:
        """How long get_book takes, asked alone, from sending to the whole reply."""
        packed = pack("FCALL_RO", "get_book", 1, book.key, "depth", depth)
        started = time.perf_counter()
        self.connection.send(packed)
        self.connection.receive()
        return time.perf_counter() - started


def resting_orders(count: int, levels: int) -> Iterator[Command]:
    """So many orders on both sides, beyond the reach of the flow."""
    dice = random.Random(count)
    for number in range(count):
        away = TOUCH_REACH + 1 + number // 2 % (levels // 2)
        side, price = ("buy", MIDDLE - away) if number % 2 else ("sell", MIDDLE + away)
        yield _limit(f"a{number % ACCOUNTS}", side, price, dice.randint(1, 100))


def touch_flow(book: Book, count: int) -> list[Command]:
    """New orders within reach of the touch, and cancels that leave the book as it was."""
    dice = random.Random(count)
    _, last_order_id, *_ = book.connection.call("HGET", book.key, "state").split()
    next_id = int(last_order_id) + 1
    commands: list[Command] = []
    for number in range(count // 2):
        away = dice.randint(1, TOUCH_REACH)
        side, price = ("buy", MIDDLE - away) if number % 2 else ("sell", MIDDLE + away)
        commands.append(_limit(f"a{number % ACCOUNTS}", side, price, dice.randint(1, 100)))
    ids = list(range(next_id, next_id + len(commands)))
    dice.shuffle(ids)
    # A cancel comes when its order has been there for a while, as far as that goes.
    canceled = [{"method": "cancel_order", "order_id": str(order_id)} for order_id in ids]
    return commands + canceled


def _limit(account: str, side: str, price: int, quantity: int) -> Command:
    return {
        "method": "place_order",
        "account": account,
        "side": side,
        "order_type": "limit",
        "price": str(price),
        "quantity": str(quantity),
    }


def measure(scale: Scale, plots: Path | None) -> list[Figure]:
    """Every line of the part."""
    with open_server(None) as url:
        connection = Connection(url)
        laboratory = Laboratory(connection)
        # Before the large book is there, which makes everything after it slower.
        sweep = _sweep(laboratory, scale.rounds)
        full = _full(laboratory, scale.rounds, plots)
        figures = [*_with_orders(laboratory, scale, plots), sweep, full]
        connection.close()
    return figures


def _with_orders(laboratory: Laboratory, scale: Scale, plots: Path | None) -> list[Figure]:
    """Books of all sizes side by side: what a message costs, what an order takes, what the top of
    the book costs."""
    books, bytes_per_order = {}, 0.0
    for count in scale.resting:
        before = laboratory.memory_bytes()
        books[count] = laboratory.book(f"RESTING-{count}")
        laboratory.run(books[count], resting_orders(count, LEVELS))
        bytes_per_order = (laboratory.memory_bytes() - before) / count
    costs_us: dict[int, list[float]] = {count: [] for count in books}
    depths_s: dict[int, list[float]] = {count: [] for count in books}
    for _ in range(scale.rounds):
        for count, book in books.items():
            commands = touch_flow(book, scale.flow_messages)
            costs_us[count].append(laboratory.run(book, commands) / len(commands))
            asked_s = [laboratory.seconds_of_depth(book, "10") for _ in range(DEPTHS_PER_ROUND)]
            depths_s[count].append(statistics.median(asked_s))
    small, large = scale.resting[0], scale.resting[-1]
    medians = {count: statistics.median(found) for count, found in costs_us.items()}
    if plots is not None:
        curve = Curve("resting orders", "server CPU, µs/message", medians)
        draw(plots / "orders.svg", "Cost of a message", curve)
    cost = Figure(
        f"a message with {large:,} resting orders, to one with {small:,}",
        medians[large],
        "us server CPU/message",
        median_ratio(costs_us[large], costs_us[small]),
    )
    memory = Figure(f"memory per order of {large:,}", bytes_per_order, "bytes")
    top = Figure(
        f"get_book of 10 levels with {large:,} resting orders, to {small:,}",
        statistics.median(depths_s[large]) * 1e3,
        "ms",
        median_ratio(depths_s[large], depths_s[small]),
    )
    return [
        at_most(cost, COST_TARGET),
        at_most(memory, BYTES_TARGET),
        at_most(top, DEPTH_TARGET),
    ]


def _sweep(laboratory: Laboratory, rounds: int) -> Figure:
    """One order takes MAKERS makers of one lot each."""
    book = laboratory.book("SWEEP")
    taken_us = []
    for _ in range(rounds):
        makers = [_limit(f"a{n % 100}", "sell", MIDDLE, 1) for n in range(MAKERS)]
        laboratory.run(book, makers)
        sweep = _limit("taker", "buy", MIDDLE, MAKERS)
        taken_us.append(laboratory.run(book, [sweep]) / MAKERS)
    figure = Figure(
        f"sweep of {MAKERS:,} makers", statistics.median(taken_us), "us server CPU/maker"
    )
    return at_most(figure, SWEEP_TARGET_US)


def _full(laboratory: Laboratory, rounds: int, plots: Path | None) -> Figure:
    """get_book of whole books with more and more levels."""
    medians_ms = {}
    for levels in FULL_LEVELS:
        book = laboratory.book(f"LEVELS-{levels}")
        laboratory.run(book, resting_orders(levels, levels))
        found_s = [laboratory.seconds_of_depth(book, "full") for _ in range(3 * rounds)]
        medians_ms[levels] = statistics.median(found_s) * 1e3
    if plots is not None:
        draw(plots / "levels.svg", "get_book, full", Curve("levels", "ms", medians_ms))
    most = FULL_LEVELS[-1]
    return at_most(
        Figure(f"get_book full of {most:,} levels", medians_ms[most], "ms"), FULL_TARGET_MS
    )
