"""What the engine costs the server, as a ratio to what Redis itself cannot do without.

The idea: one run on one server interleaves three things, several rounds of each: a *noop* FCALL;
the *floor*, a function that per order does only INCR, HSET, ZADD and XADD, four calls that any
order book on Redis has to make somehow; and the *engine* on a real flow of orders. Batches are
compared with batches, singles with singles. The headline is CPU time of the whole server process
(INFO cpu) per message; every command is packed before the clock starts and the client does nothing
but write and read, so that it never is the bottleneck.

Another revision's library can be put beside today's, on the same flow: what a change costs those
who do not use what it brings.
"""

import contextlib
import io
import random
import statistics
import subprocess
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from challenge import CANCEL, MODIFY, NEW, Message, Translator, read_messages
from figures import Figure, at_most
from orderbook.engine import library
from rig import Book, Command, Connection, find_data, open_book, open_server, pack, pack_commands

SYMBOL = "BENCH"
BATCH = 64
# One write of singles holds so many calls, as one batch is one write.
SINGLES_PER_WRITE = 16
WRITES_IN_FLIGHT_MAX = 4
ENGINE_BATCH_TARGET = 1.0
ENGINE_SINGLE_TARGET = 1.5
# What features may cost an instrument that uses none of them.
AGAINST_TARGET = 1.15
OTHER = "engine before"
SYNTHETIC = "synthetic"
SYNTHETIC_MID = 33_700
SYNTHETIC_SEED = 23

_TARGETS = {("engine", "batch"): ENGINE_BATCH_TARGET, ("engine", "single"): ENGINE_SINGLE_TARGET}

WORKLOADS = ("normal.bin.xz", "small-normal.bin.xz", "small-swing-25.bin.xz", SYNTHETIC)

FLOOR_VALUE_BYTES = 100
# The hash keeps 60 of the 100 bytes that the stream gets.
FLOOR_LIBRARY = """#!lua name=orderbook_bench
redis.register_function('bench_noop', function() return 1 end)
redis.register_function('bench_floor', function(keys, orders)
  for _, order in ipairs(orders) do
    local id = redis.call('INCR', keys[1])
    redis.call('HSET', keys[2], id, string.sub(order, 1, 60))
    redis.call('ZADD', keys[3], id, id)
    redis.call('XADD', keys[4], 'MAXLEN', '~', '100000', '*', 'order', order)
  end
  return #orders
end)
"""
FLOOR_KEYS = tuple(f"{{bench}}:{name}" for name in ("counter", "orders", "queue", "events"))


Item = TypeVar("Item")


@dataclass(frozen=True)
class Scale:
    """How much is measured of each workload, at most."""

    messages: int
    rounds: int


FULL = Scale(30_000, 3)
QUICK = Scale(3_200, 1)


@dataclass(frozen=True)
class Case:
    """Something to measure: packed writes, each with the number of its replies."""

    name: str
    kind: str
    message_count: int
    writes: list[tuple[bytes, int]]
    prepare: Callable[[], None]
    check: Callable[[], None]


@dataclass(frozen=True)
class Sample:
    """One round of one case, per message."""

    cpu_us: float
    command_us: float
    messages_per_second: float


class Spread(msgspec.Struct):
    """A median with the least and the greatest of all rounds."""

    median: float
    min: float
    max: float


class Line(msgspec.Struct, rename={"passed": "pass"}):
    """One figure: `figure` is server CPU per message, `ratio` is to the floor of its kind; with
    --against also one whose ratio is to the engine before."""

    name: str
    figure: float
    unit: str
    ratio: float
    target: float | None
    passed: bool | None
    cpu_us: Spread
    ratios: Spread
    command_us: Spread
    messages_per_second: Spread


class CommandUse(msgspec.Struct):
    """What one Redis command, called from the library, costs per message."""

    command: str
    calls_per_message: float
    us_per_call: float
    us_per_message: float


class Profile(msgspec.Struct):
    """What one message costs, on the average of a flow: time inside FCALL, what the library calls,
    and bytes: of the command, of its reply, and of what the event stream keeps of it."""

    kind: str
    fcall_us: float
    command_bytes: float
    reply_bytes: float
    event_bytes: float
    calls: list[CommandUse]


class Report(msgspec.Struct, omit_defaults=True):
    """What --json prints."""

    server: str
    flow: str
    messages: int
    rounds: int
    batch: int
    lines: list[Line]
    profiles: list[Profile] = []


class Bench:
    """The server under measurement, and the cases to run on it."""

    def __init__(self, book: Book, other_library: str | None) -> None:
        self._connection = book.connection
        self._book = book
        self._libraries = {"engine": library.bundle().text}
        if other_library is not None:
            self._libraries[OTHER] = other_library
        self._connection.call("FUNCTION", "LOAD", "REPLACE", FLOOR_LIBRARY)

    def cases(self, commands: Sequence[Command]) -> list[Case]:
        """Noop, floor and engine, first singles, then batches."""
        count = len(commands)
        floor = [f"{number:0{FLOOR_VALUE_BYTES}d}" for number in range(count)]
        noop_single = [pack("FCALL", "bench_noop", 0)] * count
        noop_batch = [pack("FCALL", "bench_noop", 0, *orders) for orders in _cut(floor, BATCH)]
        engine_single = [pack_commands(self._book.key, [command]) for command in commands]
        engine_batch = [pack_commands(self._book.key, part) for part in _cut(commands, BATCH)]
        calls: dict[tuple[str, str], list[bytes]] = {
            ("noop", "single"): noop_single,
            ("floor", "single"): [_floor_call([order]) for order in floor],
            ("engine", "single"): engine_single,
            ("noop", "batch"): noop_batch,
            ("floor", "batch"): [_floor_call(orders) for orders in _cut(floor, BATCH)],
            ("engine", "batch"): engine_batch,
        }
        if OTHER in self._libraries:
            calls |= {(OTHER, "single"): engine_single, (OTHER, "batch"): engine_batch}
        return [
            Case(name, kind, count, _writes(packed, kind), *self._frame(name))
            for (name, kind), packed in calls.items()
        ]

    def _frame(self, name: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """What comes before and after the measured part."""
        text = self._libraries.get(name)
        if text is None:
            return _nothing, _nothing

        def prepare() -> None:
            self._connection.call("FUNCTION", "LOAD", "REPLACE", text)
            self._book.define(tick_size="1", lot_size="1")

        return prepare, self._verify

    def _verify(self) -> None:
        reply = self._book.read("verify_book")
        if reply["verified"] is not True:
            raise click.ClickException(f"the book is damaged after the run: {reply['violations']}")

    def run(self, case: Case) -> Sample:
        """One round on an empty server."""
        self._connection.call("FLUSHALL", "SYNC")
        case.prepare()
        self._connection.call("CONFIG", "RESETSTAT")
        cpu_before_s = self.cpu_s()
        started = time.perf_counter()
        _drive(self._connection, case.writes)
        seconds = time.perf_counter() - started
        cpu_s = self.cpu_s() - cpu_before_s
        command_us = self._statistics()["fcall"][1]
        case.check()
        return Sample(
            cpu_us=cpu_s * 1e6 / case.message_count,
            command_us=command_us / case.message_count,
            messages_per_second=case.message_count / seconds,
        )

    def profile(self, case: Case) -> Profile:
        """One round of the engine, looked at closely."""
        self._connection.call("FLUSHALL", "SYNC")
        case.prepare()
        self._connection.call("CONFIG", "RESETSTAT")
        before, count = self._traffic(), case.message_count
        _drive(self._connection, case.writes)
        after, statistics = self._traffic(), self._statistics()
        kept = self._connection.call("MEMORY", "USAGE", f"{self._book.key}:events", "SAMPLES", 0)
        return Profile(
            kind=case.kind,
            fcall_us=round(statistics["fcall"][1] / count, 3),
            command_bytes=round((after[0] - before[0]) / count, 1),
            reply_bytes=round((after[1] - before[1]) / count, 1),
            event_bytes=round(kept / count, 1),
            calls=_uses(statistics, count),
        )

    def _traffic(self) -> tuple[int, int]:
        """Bytes that the server has received and sent."""
        facts = self._info("stats")
        return int(facts["total_net_input_bytes"]), int(facts["total_net_output_bytes"])

    def server_name(self) -> str:
        facts = self._info("server")
        name, version = "redis", facts["redis_version"]
        if "valkey_version" in facts:
            name, version = "valkey", facts["valkey_version"]
        return f"{name} {version}"

    def cpu_s(self) -> float:
        facts = self._info("cpu")
        return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])

    def _statistics(self) -> dict[str, tuple[int, float]]:
        """Command → number of calls and microseconds, since the last reset."""
        found = {}
        for name, text in self._info("commandstats").items():
            fields = dict(pair.split("=") for pair in text.split(","))
            found[name.removeprefix("cmdstat_")] = int(fields["calls"]), float(fields["usec"])
        return found

    def _info(self, section: str) -> dict[str, str]:
        text = self._connection.call("INFO", section).decode()
        lines = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {name: value for name, _, value in lines}


def _uses(statistics: dict[str, tuple[int, float]], count: int) -> list[CommandUse]:
    """The Redis commands that the library called, the costliest first."""
    outside = {"fcall", "info", "config|resetstat"}
    uses = [
        CommandUse(
            command=command,
            calls_per_message=round(calls / count, 3),
            us_per_call=round(spent_us / calls, 3),
            us_per_message=round(spent_us / count, 3),
        )
        for command, (calls, spent_us) in statistics.items()
        if command not in outside
    ]
    return sorted(uses, key=lambda use: -use.us_per_message)


def _nothing() -> None:
    """Noop and floor need no instrument and leave no book."""


def _floor_call(orders: Sequence[str]) -> bytes:
    return pack("FCALL", "bench_floor", len(FLOOR_KEYS), *FLOOR_KEYS, *orders)


def _cut(items: Sequence[Item], length: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + length] for start in range(0, len(items), length))


def _writes(packed: list[bytes], kind: str) -> list[tuple[bytes, int]]:
    calls_per_write = SINGLES_PER_WRITE if kind == "single" else 1
    return [(b"".join(calls), len(calls)) for calls in _cut(packed, calls_per_write)]


def _drive(connection: Connection, writes: Iterable[tuple[bytes, int]]) -> None:
    """Sends everything, a few writes ahead of the replies."""
    awaited: deque[int] = deque()
    for packed, replies in writes:
        connection.send(packed)
        awaited.append(replies)
        if len(awaited) >= WRITES_IN_FLIGHT_MAX:
            _receive(connection, awaited.popleft())
    while awaited:
        _receive(connection, awaited.popleft())


def _receive(connection: Connection, replies: int) -> None:
    for _ in range(replies):
        connection.receive()


def measure_engine(bench: Bench, cases: list[Case], rounds: int) -> list[Line]:
    """Interleaved rounds; the first, which warms the server up, is not counted."""
    samples: dict[tuple[str, str], list[Sample]] = {(case.name, case.kind): [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            sample = bench.run(case)
            if number:
                samples[case.name, case.kind].append(sample)
    lines = []
    for case in cases:
        of_case = samples[case.name, case.kind]
        target = _TARGETS.get((case.name, case.kind))
        name = title(case.name, case.kind)
        lines.append(_line(name, of_case, samples["floor", case.kind], target))
        if case.name == OTHER:
            engine = samples["engine", case.kind]
            name = title("engine to before", case.kind)
            lines.append(_line(name, engine, of_case, AGAINST_TARGET))
    return lines


def title(name: str, kind: str) -> str:
    """What a line is called."""
    return f"{name}, single FCALLs" if kind == "single" else f"{name}, batches of {BATCH}"


def _line(name: str, samples: list[Sample], beside: list[Sample], target: float | None) -> Line:
    pairs = zip(samples, beside, strict=True)
    ratios = _spread(sample.cpu_us / other.cpu_us for sample, other in pairs)
    cpu_us = _spread(sample.cpu_us for sample in samples)
    return Line(
        name=name,
        figure=cpu_us.median,
        unit="us server CPU/message",
        ratio=ratios.median,
        target=target,
        passed=None if target is None else ratios.median <= target,
        cpu_us=cpu_us,
        ratios=ratios,
        command_us=_spread(sample.command_us for sample in samples),
        messages_per_second=_spread(sample.messages_per_second for sample in samples),
    )


def _spread(values: Iterable[float]) -> Spread:
    found = [round(value, 3) for value in values]
    return Spread(round(statistics.median(found), 3), min(found), max(found))


def flow(name: str, message_count: int) -> tuple[str, list[Command]]:
    """The first messages of a challenge workload as commands; synthetic ones where it is absent."""
    messages: Iterable[Message] = synthetic_messages(message_count)
    if name != SYNTHETIC:
        try:
            messages = read_messages(find_data(name, "challenge"), message_count)
        except click.ClickException:
            name = f"{SYNTHETIC} ({name} is not here)"
    translator = Translator()
    return name, [translator.command(message) for message in messages]


def synthetic_messages(message_count: int) -> Iterator[Message]:
    """A flow shaped like the challenge's: half new orders, 15% of them ioc, the rest cancels and
    modifies of open ones, prices around a middle that walks."""
    dice = random.Random(SYNTHETIC_SEED)
    open_ids: deque[int] = deque()
    middle = SYNTHETIC_MID
    for number in range(message_count):
        middle += dice.choice((-1, 0, 0, 0, 1))
        side = dice.randrange(2)
        price = middle + round(dice.gauss(6, 4)) * (1 if side else -1)
        quantity = dice.randint(1, 100)
        action = dice.random()
        if action < 0.5 or not open_ids:
            ioc = int(dice.random() < 0.15)
            price = middle + (-10 if side else 10) if ioc else price
            if not ioc:
                open_ids.append(number)
            yield Message(NEW, side, ioc, 0, quantity, number, number, price, 0)
        elif action < 0.59:
            yield Message(MODIFY, side, 0, 0, quantity, number, open_ids[-1], price, 0)
        else:
            # Mostly young orders are canceled, as on a real venue.
            open_id = open_ids.pop() if dice.random() < 0.9 else open_ids.popleft()
            yield Message(CANCEL, side, 0, 0, 0, number, open_id, 0, 0)


def library_of(revision: str) -> str:
    """The library as it was at a revision of the repository that this script is in."""
    root = Path(__file__).resolve().parent.parent
    archived = subprocess.run(
        ("git", "-C", str(root), "archive", "--format=zip", revision, "lua"),
        capture_output=True,
        check=False,
    )
    if archived.returncode:
        raise click.UsageError(f"no library at revision {revision}: {archived.stderr.decode()}")
    with contextlib.ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        files = cleanup.enter_context(zipfile.ZipFile(io.BytesIO(archived.stdout)))
        files.extractall(directory)
        return library.bundle(directory / "lua").text


def print_report(report: Report) -> None:
    """The report as tables."""
    console = Console()
    title = f"{report.server}, {report.flow}, {report.messages:,} messages, {report.rounds} rounds"
    table = Table(
        title=title, caption="median (least to greatest); ratio: server CPU to the floor's"
    )
    for heading in ("", "server CPU us/message", "× floor", "in FCALL us/message", "messages/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for line in report.lines:
        verdict = "" if line.passed is None else f" target {line.target} {_verdict(line.passed)}"
        table.add_row(
            line.name,
            _shown(line.cpu_us, 1),
            _shown(line.ratios, 2) + verdict,
            _shown(line.command_us, 1),
            _shown(line.messages_per_second, 0),
        )
    console.print(table)
    for profile in report.profiles:
        console.print(_profile_table(profile))


def _profile_table(profile: Profile) -> Table:
    table = Table(
        title=f"one message, {title('engine', profile.kind)}",
        caption=f"{profile.fcall_us:.1f} us in FCALL; bytes: command {profile.command_bytes:.0f}, "
        f"reply {profile.reply_bytes:.0f}, kept in the event stream {profile.event_bytes:.0f}",
    )
    for heading in ("command", "calls/message", "us/call", "us/message"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    for use in profile.calls:
        figures = (use.calls_per_message, use.us_per_call, use.us_per_message)
        table.add_row(use.command, *(f"{figure:.2f}" for figure in figures))
    calls = sum(use.calls_per_message for use in profile.calls)
    spent = sum(use.us_per_message for use in profile.calls)
    table.add_row("all", f"{calls:.2f}", "", f"{spent:.2f}")
    return table


def _verdict(passed: bool) -> str:
    return "met" if passed else "missed"


def _shown(spread: Spread, digits: int) -> str:
    middle, least, greatest = (
        f"{value:,.{digits}f}" for value in (spread.median, spread.min, spread.max)
    )
    return f"{middle} ({least} to {greatest})"


def profiles(bench: Bench, cases: list[Case]) -> list[Profile]:
    """The engine's singles and batches, looked at closely."""
    return [bench.profile(case) for case in cases if case.name == "engine"]


def measure(scale: Scale, _: Path | None) -> list[Figure]:
    """Batches and singles against their floors, each by the worst of the workloads."""
    worst: dict[str, tuple[Line, str]] = {}
    with open_server(None) as url, open_book(url, SYMBOL) as book:
        bench = Bench(book, None)
        for workload in WORKLOADS:
            name, commands = flow(workload, scale.messages)
            cases = [case for case in bench.cases(commands) if case.name != "noop"]
            for line in measure_engine(bench, cases, scale.rounds):
                if line.name not in worst or line.ratio > worst[line.name][0].ratio:
                    worst[line.name] = line, name
    figures = []
    for kind, target in (("batch", ENGINE_BATCH_TARGET), ("single", ENGINE_SINGLE_TARGET)):
        line, name = worst[title("engine", kind)]
        found = f"{line.name}, to the floor, worst of {len(WORKLOADS)} flows ({name})"
        figures.append(at_most(Figure(found, line.figure, line.unit, line.ratio), target))
    return figures
