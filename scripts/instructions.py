#!/usr/bin/env python
"""Machine instructions that a call costs the server, counted and not timed.

    python scripts/instructions.py [--against REVISION] [--check | --write]

The idea: times drown in noise where a machine does something else, instructions do not. The
embedded Valkey runs under valgrind's callgrind, which counts every instruction of the process. Each
case prepares its book, then makes some calls one after the other; what the server ran in between,
divided by the number of calls, is the case's figure. The floor is four calls that any order book
on Redis has to make somehow (bench_engine.py). `--check` fails where a figure has grown by more
than 3% against scripts/instructions.json; `--write` puts today's figures there.
"""

import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from bench_engine import FLOOR_KEYS, FLOOR_LIBRARY, FLOOR_VALUE_BYTES, SYNTHETIC, flow, library_of
from orderbook.engine import library
from orderbook.processes.embedded_server import embedded_binary
from rig import Connection

FIGURES = Path(__file__).with_name("instructions.json")
GROWTH_MAX = 1.03
CALLS = 200
WARM_UP_CALLS = 12
PORT = 22_379
START_TIMEOUT_S = 30.0
SWEEP_MAKERS = 500
SWEEPS = 6
NORMAL = "normal.bin.xz"
FLOW_BEFORE = 64 * 10
FLOW_MESSAGES = 64 * 60
FLOW_CALLS_MAX = 600
KEY = "orderbook:{main}:"
# Redis does housekeeping so often a second; once is enough here.
SERVER_OPTIONS = {"save": "", "appendonly": "no", "hz": "1", "dynamic-hz": "no"}

Words = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """Calls to count, of so many messages each; those of `before` come first and do not count."""

    name: str
    calls: Sequence[Words]
    messages: int = 1
    before: Sequence[Words] = ()


class CountedServer:
    """A Valkey under callgrind, and a connection to it."""

    def __init__(self, directory: Path) -> None:
        self._dumps = directory / "dump"
        options = [word for name, text in SERVER_OPTIONS.items() for word in (f"--{name}", text)]
        command = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={self._dumps}"]
        server = [str(embedded_binary()), "--port", str(PORT), "--dir", str(directory), *options]
        self._process = subprocess.Popen([*command, *server], stdout=subprocess.DEVNULL)
        try:
            self.connection = self._connect()
        except BaseException:
            self.stop()
            raise

    def _connect(self) -> Connection:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return Connection(f"redis://127.0.0.1:{PORT}")
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)

    def count(self, calls: Sequence[Words]) -> int:
        """How many instructions the server runs for these calls."""
        self._control("--zero")
        _run(self.connection, calls)
        self._control("--dump")
        newest = max(self._dumps.parent.glob("dump.*"), key=lambda path: int(path.suffix[1:]))
        found = re.search(r"^totals: (\d+)", newest.read_text("utf-8"), re.MULTILINE)
        assert found is not None, newest
        return int(found[1])

    def _control(self, action: str) -> None:
        command = ["callgrind_control", action, str(self._process.pid)]
        subprocess.run(command, check=True, capture_output=True)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def counted_server() -> Iterator[CountedServer]:
    with tempfile.TemporaryDirectory(prefix="orderbook-instructions-") as directory:
        server = CountedServer(Path(directory))
        try:
            yield server
        finally:
            server.stop()


# ---- the cases


def call(function: str, symbol: str, fields: Mapping[str, str]) -> Words:
    pairs = [word for name, text in fields.items() for word in (name, text)]
    return ("FCALL", function, "1", KEY + symbol, *pairs)


def order(side: str, price: int, **fields: str) -> dict[str, str]:
    account = f"account{price % 7}"
    terms = {"account": account, "side": side, "order_type": "limit", "quantity": "5"}
    return {**terms, "price": str(price), **fields}


def place(symbol: str, price: int, **fields: str) -> Words:
    """A buy order that rests."""
    return call("place_order", symbol, order("buy", price, **fields))


def named(n: int) -> dict[str, str]:
    return {"client_order_id": f"name-{n}"}


def execute(symbol: str, commands: Iterable[Mapping[str, str]]) -> Words:
    texts = [msgspec.json.encode(command).decode() for command in commands]
    return ("FCALL", "execute", "1", KEY + symbol, *texts)


def placed(fields: Mapping[str, str]) -> dict[str, str]:
    return {"method": "place_order", **fields}


def mixed(symbol: str, length: int, n: int) -> Words:
    """A batch of buy orders that rest, of which every second is canceled at once by its name."""
    commands = []
    for i in range(n * length, (n + 1) * length, 2):
        fields = order("buy", 500 + i // 2 % 40, **named(i))
        canceled = {"method": "cancel_order", "account": fields["account"], **named(i)}
        commands += [placed(fields), canceled]
    return execute(symbol, commands)


def sweep_case() -> Case:
    makers = [
        placed(order("sell", 900) | {"account": f"account{n % 50}"})
        for n in range(SWEEP_MAKERS * SWEEPS)
    ]
    before = [execute("SWEEP", makers[at : at + 250]) for at in range(0, len(makers), 250)]
    taker = order("buy", 900, quantity=str(5 * SWEEP_MAKERS))
    return Case(
        "sweep, a maker", [call("place_order", "SWEEP", taker)] * SWEEPS, SWEEP_MAKERS, before
    )


def flow_cases(wanted: str) -> Iterator[Case]:
    """A flow after its first messages, singly and in batches; none where its data is not here."""
    found, commands = flow(wanted, FLOW_BEFORE + FLOW_MESSAGES)
    if found != wanted:
        return
    name = wanted.partition(".")[0]
    for kind, length in (("single", 1), ("batches of 64", 64)):
        symbol = f"{name.upper()}{length}"
        packed = [
            execute(symbol, commands[at : at + length]) for at in range(0, len(commands), length)
        ]
        before = FLOW_BEFORE // length
        calls = packed[before : before + FLOW_CALLS_MAX]
        yield Case(f"{name}, {kind}", calls, length, packed[:before])


def cases() -> list[Case]:
    numbers, prices = range(CALLS), [500 + n % 40 for n in range(CALLS)]
    floor = ("FCALL", "bench_floor", str(len(FLOOR_KEYS)), *FLOOR_KEYS)
    value = "x" * FLOOR_VALUE_BYTES
    rest = {symbol: [place(symbol, price) for price in prices] for symbol in ("CANCEL", "AMEND")}
    return [
        Case("floor", [(*floor, value)] * CALLS),
        Case("floor, batch of 64", [(*floor, *[value] * 64)] * 40, 64),
        Case("place", [place("PLACE", price) for price in prices]),
        Case(
            "place, client_order_id",
            [place("NAMED", price, **named(n)) for n, price in enumerate(prices)],
        ),
        Case(
            "cancel",
            [call("cancel_order", "CANCEL", {"order_id": str(n + 1)}) for n in numbers],
            before=rest["CANCEL"],
        ),
        Case(
            "amend to a new price",
            [
                call("amend_order", "AMEND", {"order_id": str(n + 1), "price": "460"})
                for n in numbers
            ],
            before=rest["AMEND"],
        ),
        Case(
            "taker of one maker",
            [call("place_order", "TAKE", order("sell", 500))] * CALLS,
            before=[place("TAKE", 500)] * CALLS,
        ),
        sweep_case(),
        Case("execute of 4", [mixed("FOUR", 4, n) for n in range(150)], 4),
        Case("execute of 64", [mixed("MANY", 64, n) for n in range(40)], 64),
        *flow_cases(SYNTHETIC),
        *flow_cases(NORMAL),
        Case("get_book of 10 levels", [call("get_book", "PLACE", {"depth": "10"})] * CALLS),
    ]


# ---- counting


def count_cases(text: str) -> dict[str, int]:
    """Instructions a message of each case, with this library."""
    figures = {}
    with counted_server() as server:
        server.connection.call("FUNCTION", "LOAD", FLOOR_LIBRARY)
        server.connection.call("FUNCTION", "LOAD", text)
        for case in cases():
            _prepare(server.connection, case)
            counted = server.count(case.calls)
            figures[case.name] = round(counted / len(case.calls) / case.messages)
    return figures


def _prepare(connection: Connection, case: Case) -> None:
    key = next((word for word in case.calls[0] if word.startswith(KEY)), "")
    if key:
        steps = ("tick_size", "1", "lot_size", "1")
        connection.call("FCALL", "define_instrument", "1", key, *steps)
    # The first calls of a book make what the others find.
    warm_up = [place(key.removeprefix(KEY), 100)] * WARM_UP_CALLS if key else []
    _run(connection, case.before or warm_up)


def _run(connection: Connection, calls: Sequence[Words]) -> None:
    for words in calls:
        connection.call(*words)


def print_table(figures: Mapping[str, int], other: Mapping[str, int] | None) -> None:
    table = Table(title="machine instructions of the server a message")
    for heading in ("", "instructions", "× floor", *(("before", "ratio") if other else ())):
        table.add_column(heading, justify="right" if heading else "left")
    for name, figure in figures.items():
        is_batched = "execute" in name or "of 64" in name
        floor = figures["floor, batch of 64" if is_batched else "floor"]
        before = (f"{other[name]:,}", f"{figure / other[name]:.2f}") if other else ()
        table.add_row(name, f"{figure:,}", f"{figure / floor:.2f}", *before)
    Console().print(table)


def grown(figures: Mapping[str, int]) -> list[str]:
    """The cases that cost too much more than they did."""
    if not FIGURES.exists():
        raise click.UsageError(f"{FIGURES.name} is missing: run with --write")
    stored = msgspec.json.decode(FIGURES.read_bytes(), type=dict[str, int])
    return [
        f"{name}: {figure:,}, {figure / stored[name]:.3f} of {stored[name]:,}"
        for name, figure in figures.items()
        if name in stored and figure > stored[name] * GROWTH_MAX
    ]


@click.command(context_settings={"show_default": True})
@click.option("--against", metavar="REVISION", help="Count the library of a revision, too.")
@click.option("--check", is_flag=True, help="Fail where a figure has grown by more than 3%.")
@click.option("--write", is_flag=True, help="Keep today's figures for --check.")
def main(against: str | None, check: bool, write: bool) -> None:
    """Counts the machine instructions that calls cost the server."""
    if shutil.which("valgrind") is None:
        click.echo("skipped: valgrind is not installed (Debian: apt install valgrind)")
        return
    figures = count_cases(library.bundle().text)
    print_table(figures, count_cases(library_of(against)) if against else None)
    if write:
        FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    too_much = grown(figures) if check else []
    for line in too_much:
        click.echo(line, err=True)
    if too_much:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
