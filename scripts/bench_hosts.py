"""What many readers and many books cost the engine.

The idea: a batch is one stream entry, however many hosts read it, so hosts should cost the server
little more than the bytes they read. The same flow, in batches, goes into one book while one host
follows it, and while many do (every host has a subscriber to each public channel of the book);
then, on another server, into few and into many books, spread over all of them, all followed by one
host. The figure is the server's CPU per order, everything included: reading streams, ticks,
half-second books.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench_engine import BATCH, Bench
from bench_host import market
from figures import Figure, at_most, median_ratio
from frames import FrameSocket
from hosts import start_hosts
from plots import Curve, draw
from rig import Book, Command, Connection, open_server, pack_commands

CHANNELS = ("trades", "level2", "book", "ticker")
HOSTS_TARGET = 1.3
BOOKS_TARGET = 1.3
ACCOUNTS = 100
WRITES_IN_FLIGHT_MAX = 4
SETTLE_S = 1.5


@dataclass(frozen=True)
class Scale:
    """How many hosts and books, from few to many; the flow, and how often it is sent."""

    hosts: tuple[int, ...]
    books: tuple[int, ...]
    messages: int
    rounds: int


FULL = Scale((1, 4, 16), (1, 10, 50), 38_400, 3)
QUICK = Scale((1, 2), (1, 5), 3_200, 1)


class Street:
    """A server with books, and what is done to them."""

    def __init__(self, connection: Connection, book_count: int) -> None:
        self._connection = connection
        self._bench = Bench(Book(connection, "BENCH"), None)
        self._books = [Book(connection, f"BOOK-{number}") for number in range(book_count)]
        self._runs = 0
        for book in self._books:
            book.define(tick_size="1", lot_size="1")

    def symbols(self, count: int) -> list[str]:
        return [book.symbol for book in self._books[:count]]

    def run(self, messages: int, book_count: int) -> float:
        """Deals batches out to the first books by turns; the server CPU per order, in us."""
        self._runs += 1
        packed = [
            pack_commands(self._books[number % book_count].key, self._batch(number))
            for number in range(messages // BATCH)
        ]
        started_s, waiting = self._bench.cpu_s(), 0
        for one in packed:
            self._connection.send(one)
            waiting += 1
            if waiting == WRITES_IN_FLIGHT_MAX:
                self._connection.receive()
                waiting -= 1
        for _ in range(waiting):
            self._connection.receive()
        # What hosts have not read yet is read at somebody's expense, too.
        time.sleep(SETTLE_S)
        return (self._bench.cpu_s() - started_s) * 1e6 / (len(packed) * BATCH)

    def _batch(self, number: int) -> list[Command]:
        account = {"account": f"a{number % ACCOUNTS}"}
        return [one | account for one in market(f"{self._runs}-{number}", 0, BATCH)]


@contextlib.contextmanager
def _following(url: str, host_count: int, symbols: Sequence[str]) -> Iterator[None]:
    """So many hosts, each with a subscriber to every public channel of the books."""
    with contextlib.ExitStack() as cleanup, start_hosts(url, host_count) as hosts:
        for host in hosts:
            for channel in CHANNELS:
                one = FrameSocket(host.url)
                cleanup.callback(one.close)
                params = {"channel": channel, "symbols": list(symbols)}
                one.ask(msgspec.json.encode({"method": "subscribe", "params": params}))
        # Snapshots are not what is measured.
        time.sleep(SETTLE_S)
        yield


def measure(scale: Scale, plots: Path | None) -> list[Figure]:
    """Every line of the part."""
    by_hosts = _with_hosts(scale)
    by_books = _with_books(scale)
    if plots is not None:
        _draw(plots / "hosts.svg", "hosts", by_hosts)
        _draw(plots / "books.svg", "books", by_books)
    return [_grown("hosts", by_hosts, HOSTS_TARGET), _grown("books", by_books, BOOKS_TARGET)]


def _with_hosts(scale: Scale) -> dict[int, list[float]]:
    """The costs of each round, by the number of hosts that follow one book."""
    costs_us: dict[int, list[float]] = {count: [] for count in scale.hosts}
    with open_server(None) as url, contextlib.closing(Connection(url)) as connection:
        street = Street(connection, 1)
        street.run(scale.messages, 1)
        for _ in range(scale.rounds):
            for count, found in costs_us.items():
                with _following(url, count, street.symbols(1)):
                    found.append(street.run(scale.messages, 1))
    return costs_us


def _with_books(scale: Scale) -> dict[int, list[float]]:
    """The same by the number of books that the flow is spread over, all followed by one host."""
    costs_us: dict[int, list[float]] = {count: [] for count in scale.books}
    with open_server(None) as url, contextlib.closing(Connection(url)) as connection:
        street = Street(connection, scale.books[-1])
        street.run(scale.messages, scale.books[-1])
        with _following(url, 1, street.symbols(scale.books[-1])):
            for _ in range(scale.rounds):
                for count, found in costs_us.items():
                    found.append(street.run(scale.messages, count))
    return costs_us


def _draw(path: Path, what: str, costs_us: dict[int, list[float]]) -> None:
    medians = {count: statistics.median(found) for count, found in costs_us.items()}
    draw(path, f"Engine CPU with many {what}", Curve(what, "server CPU, µs/order", medians))


def _grown(what: str, costs_us: dict[int, list[float]], target: float) -> Figure:
    few, many = min(costs_us), max(costs_us)
    figure = Figure(
        f"engine CPU per order with {many} {what}, to {few}",
        statistics.median(costs_us[many]),
        "us server CPU/order",
        median_ratio(costs_us[many], costs_us[few]),
    )
    return at_most(figure, target)
