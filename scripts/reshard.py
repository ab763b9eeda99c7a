"""Moves hash slots of a cluster there and back while books in them trade, and audits the books.

    python scripts/reshard.py --redis-url redis+cluster://127.0.0.1:7000 --rounds 20

The idea: traders keep account of what a host has told them, and the event streams tell what has
happened. Whatever a move does to a call, the two must agree in the end: each acknowledged order was
accepted once, under its name, each acknowledged fill is a trade, and nothing happened that nobody
was told of. The books are verified, and rebuilt from their streams. The cluster must have the
library on each primary, and the segments that this uses must not exist.
"""

import asyncio
import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import click
import msgspec
from redis.crc import key_slot

from client import Client, Frame, Params
from orderbook.engine.engine import Engine
from orderbook.feed.replay import replay
from orderbook.host.host import Host, HostConfig

SLOTS_MOVED = 40
TRADERS = 12
# A trader waits so long after each answer; together they keep the books busy without a queue.
PAUSE_S = 0.004
CANCEL_CHANCE = 0.3
SYMBOLS = ("RESHARD-1", "RESHARD-2", "RESHARD-3")
MIDDLE_PRICE = 1000
PRICE_REACH = 8
STREAM_PAGE = 1000
EVENTS_LENGTH_MAX = "10000000"
SETTLE_S = 0.2
MIGRATION_POLL_S = 0.02
RULES = {"tick_size": "1", "lot_size": "1", "events_length_max": EVENTS_LENGTH_MAX}


class Fill(msgspec.Struct):
    """A fill of a reply, or a trade of the stream."""

    trade_id: str


class Placed(msgspec.Struct):
    """The reply to place_order."""

    order_id: str
    fills: list[Fill]


class Report(msgspec.Struct):
    """One report of the stream about an order."""

    order_id: str
    event: str = ""
    client_order_id: str = ""


class Entry(msgspec.Struct):
    """A message of the event stream: its reports, or its trades."""

    orders: list[Report] = []
    trades: list[Fill] = []


_decode_placed = msgspec.json.Decoder(Placed).decode
_decode_entry = msgspec.json.Decoder(Entry).decode


@dataclass
class Ledger:
    """What the traders of a book were told."""

    orders: dict[str, str] = field(default_factory=dict)
    trades: set[str] = field(default_factory=set)
    refused: dict[str, int] = field(default_factory=dict)
    longest_s: float = 0.0

    def take(self, name: str, answer: Frame) -> str | None:
        """Takes the answer to a named order; its order_id if it was placed."""
        if answer.error is not None:
            code = answer.error.code
            self.refused[code] = self.refused.get(code, 0) + 1
            return None
        placed = _decode_placed(answer.result)
        self.orders[name] = placed.order_id
        self.trades.update(fill.trade_id for fill in placed.fills)
        return placed.order_id


@dataclass
class Audit:
    """What the stream of a book tells, against a ledger."""

    accepted: dict[str, str] = field(default_factory=dict)
    trades: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)

    def take(self, topic: bytes, message: bytes) -> None:
        """Takes what an entry tells an account, or everybody."""
        entry = _decode_entry(message)
        for report in entry.orders:
            if report.event == "accepted":
                self._take_accepted(report)
        for trade in entry.trades if topic == b"trades" else ():
            if trade.trade_id in self.trades:
                self.violations.append(f"trade {trade.trade_id} happened twice")
            self.trades.add(trade.trade_id)

    def _take_accepted(self, report: Report) -> None:
        if report.client_order_id in self.accepted:
            self.violations.append(f"{report.client_order_id} was accepted twice")
        self.accepted[report.client_order_id] = report.order_id

    def compare(self, ledger: Ledger) -> None:
        for name in ledger.orders.keys() | self.accepted.keys():
            told, happened = ledger.orders.get(name), self.accepted.get(name)
            if told != happened:
                self.violations.append(f"{name} is order {happened}, its sender knows {told}")
        self.violations += [f"trade {lost} is lost" for lost in ledger.trades - self.trades]


# ---- the moves


@dataclass
class Mover:
    """Moves the first slots of one primary to another, and back."""

    # Any: redis-py leaves execute_command untyped.
    nodes: list[Any]
    ids: list[str]
    first_slot: int
    atomic: bool

    @classmethod
    async def find(cls, engine: Engine, atomic: bool) -> "Mover":
        """The primary with the lowest slot, and another one."""
        nodes: list[Any] = [*engine.primaries()]
        ids = [(await node.execute_command("CLUSTER", "MYID")).decode() for node in nodes]
        slots = await nodes[0].execute_command("CLUSTER", "SLOTS")
        # Of several ranges of a node the first one counts.
        ranges = sorted(slots, reverse=True)
        starts = {owner[2].decode(): first for first, _, owner, *_ in ranges}
        order = sorted(range(len(nodes)), key=lambda place: starts[ids[place]])[:2]
        chosen = [nodes[place] for place in order], [ids[place] for place in order]
        return cls(*chosen, starts[ids[order[0]]], atomic)

    def segments(self) -> Iterator[str]:
        """Names of segments whose slots move."""
        moved = range(self.first_slot, self.first_slot + SLOTS_MOVED)
        names = (f"reshard-{number}" for number in itertools.count())
        return (name for name in names if key_slot(name.encode()) in moved)

    async def move(self, source: int) -> None:
        """Moves the slots away from a node: 0 there, 1 back."""
        if self.atomic:
            await self._migrate(source)
        else:
            await self._reshard(source)

    async def _reshard(self, source: int) -> None:
        address = self.nodes[source].connection_pool.connection_kwargs
        process = await asyncio.create_subprocess_exec(
            *("redis-cli", "--cluster", "reshard", f"{address['host']}:{address['port']}"),
            *("--cluster-from", self.ids[source], "--cluster-to", self.ids[1 - source]),
            *("--cluster-slots", str(SLOTS_MOVED), "--cluster-yes"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise click.ClickException(f"redis-cli: {output.decode()[-500:]}")

    async def _migrate(self, source: int) -> None:
        """Valkey's own way, from 9.0 on: all slots at once."""
        node, last_slot = self.nodes[source], self.first_slot + SLOTS_MOVED - 1
        words = ("SLOTSRANGE", self.first_slot, last_slot, "NODE", self.ids[1 - source])
        await node.execute_command("CLUSTER", "MIGRATESLOTS", *words)
        while await self._still_has(node, source):  # noqa: ASYNC110 - the server does not tell
            await asyncio.sleep(MIGRATION_POLL_S)

    async def _still_has(self, node: Any, source: int) -> bool:
        slots = await node.execute_command("CLUSTER", "SLOTS")
        holders = {
            owner[2].decode()
            for first, last, owner, *_ in slots
            if first <= self.first_slot <= last
        }
        return holders == {self.ids[source]}


# ---- the traders


@dataclass
class Trader:
    """One client that places and cancels orders in a book, one after the other."""

    client: Client
    name: str
    symbol: str
    ledger: Ledger
    dice: Random

    async def trade(self, stopping: asyncio.Event) -> None:
        own: list[str] = []
        for number in itertools.count():
            if stopping.is_set():
                return
            name = f"{self.name}-{number}"
            if own and self.dice.random() < CANCEL_CHANCE:
                await self._ask("cancel_order", name, {"order_id": own.pop(0)})
            else:
                answer = await self._ask("place_order", name, _order(self.dice))
                order_id = self.ledger.take(name, answer)
                own += [order_id] if order_id else []
            await self._ask("get_book", "", {})
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, method: str, name: str, params: Params) -> Frame:
        named = {"client_order_id": name} if name else {}
        started = time.perf_counter()
        answer = await self.client.request(method, {"symbol": self.symbol, **params, **named})
        self.ledger.longest_s = max(self.ledger.longest_s, time.perf_counter() - started)
        return answer


def _order(dice: Random) -> Params:
    return {
        "side": dice.choice(("buy", "sell")),
        "order_type": "limit",
        "quantity": str(dice.randint(1, 9)),
        "price": str(MIDDLE_PRICE + dice.randint(-PRICE_REACH, PRICE_REACH)),
    }


@dataclass
class Tape:
    """The trades that a subscriber was told. A gap says that some were left out."""

    trades: set[str] = field(default_factory=set)
    gaps: int = 0

    def take(self, frame: Frame) -> None:
        self.gaps += frame.type == "gap"
        self.trades.update(f"{frame.symbol} {trade.trade_id}" for trade in frame.trades)


# ---- the run


@dataclass(frozen=True)
class Options:
    """What is moved: `rounds` times there and back; `atomic` is Valkey's own way."""

    redis_url: str
    rounds: int
    atomic: bool = False
    random_seed: int = 1


@dataclass
class Summary:
    """What came of a run; no violation means that nothing was lost, doubled or damaged."""

    moves: int
    orders: int = 0
    trades: int = 0
    gaps: int = 0
    # What a client had to ask again: it was UNAVAILABLE, or its reply was lost.
    resent: int = 0
    longest_s: float = 0.0
    # The longest wait for an answer while slots moved, once for each move.
    pauses_s: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


@dataclass
class Market:
    """The books of a run, and all that clients of its host were told of them."""

    host: Host
    options: Options
    ledgers: dict[str, Ledger]
    tape: Tape = field(default_factory=Tape)
    resent: int = 0
    pauses_s: list[float] = field(default_factory=list)

    async def open_traders(self, clients: contextlib.AsyncExitStack) -> list[Trader]:
        url = f"http://127.0.0.1:{self.host.port}/ws"
        traders = []
        for number, symbol in zip(range(TRADERS), itertools.cycle(self.ledgers), strict=False):
            name = f"trader-{number}"
            client = await clients.enter_async_context(Client([url], name, self.tape.take))
            if number < len(self.ledgers):
                await client.subscribe("trades", symbol)
            dice = Random(f"{self.options.random_seed} {number}")
            traders.append(Trader(client, name, symbol, self.ledgers[symbol], dice))
        return traders

    async def move_under_traders(self, mover: Mover) -> None:
        stopping = asyncio.Event()
        async with contextlib.AsyncExitStack() as clients:
            traders = await self.open_traders(clients)
            async with asyncio.TaskGroup() as tasks:
                for trader in traders:
                    tasks.create_task(trader.trade(stopping))
                for source in (0, 1) * self.options.rounds:
                    await asyncio.sleep(SETTLE_S)
                    await mover.move(source)
                    self._take_pause()
                await asyncio.sleep(SETTLE_S)
                stopping.set()
            await asyncio.sleep(SETTLE_S)
            self.resent = sum(trader.client.resent for trader in traders)

    def _take_pause(self) -> None:
        self.pauses_s.append(max(ledger.longest_s for ledger in self.ledgers.values()))
        for ledger in self.ledgers.values():
            ledger.longest_s = 0.0

    async def summary(self) -> Summary:
        summary = Summary(2 * self.options.rounds, gaps=self.tape.gaps, resent=self.resent)
        summary.pauses_s, summary.longest_s = self.pauses_s, max(self.pauses_s)
        happened: set[str] = set()
        for symbol, ledger in self.ledgers.items():
            audit = await _audit(self.host.engine, symbol)
            audit.compare(ledger)
            happened |= {f"{symbol} {trade_id}" for trade_id in audit.trades}
            summary.orders += len(ledger.orders)
            for code, count in ledger.refused.items():
                summary.refused[code] = summary.refused.get(code, 0) + count
            summary.violations += [f"{symbol}: {violation}" for violation in audit.violations]
        summary.trades = len(happened)
        invented = self.tape.trades - happened
        summary.violations += [f"{trade} was told and never happened" for trade in invented]
        return summary


async def _audit(engine: Engine, symbol: str) -> Audit:
    """Verifies a book, rebuilds it from its stream, and reads what the stream tells."""
    audit = Audit()
    rebuilt = await replay(engine, symbol)
    if rebuilt.verdict["verified"] is not True:
        audit.violations.append(f"verify_book names {rebuilt.verdict['violations']}")
    elif not rebuilt.is_equal:
        audit.violations.append("the stored book is not what its stream tells")
    stream, first_id = f"{engine.book_key(symbol)}:events", "-"
    while True:
        words = ("XRANGE", stream, first_id, "+", "COUNT", STREAM_PAGE)
        entries = await engine.read_stream(symbol, *words)
        for entry_id, fields in entries:
            for topic, message in zip(fields[::2], fields[1::2], strict=True):
                if topic == b"trades" or topic.startswith(b"orders:"):
                    audit.take(topic, message)
            first_id = b"(" + entry_id
        if not entries:
            return audit


async def run(options: Options) -> Summary:
    """Moves slots under traders, and audits what they did."""
    async with Host(HostConfig(options.redis_url, port=0)) as host:
        mover = await Mover.find(host.engine, options.atomic)
        segments = mover.segments()
        first = next(segments)
        market = Market(host, options, {symbol: Ledger() for symbol in SYMBOLS})
        # Two books of one segment, and one of another.
        for symbol, segment in zip(SYMBOLS, (first, first, next(segments)), strict=True):
            await host.engine.define_instrument(symbol, segment=segment, **RULES)
        await market.move_under_traders(mover)
        return await market.summary()


@click.command()
@click.option("--redis-url", required=True, help="redis+cluster://HOST:PORT of a cluster.")
@click.option("--rounds", default=20, envvar="ROUNDS", type=click.IntRange(1), show_default=True)
@click.option("--atomic", is_flag=True, help="By CLUSTER MIGRATESLOTS, which Valkey 9 has.")
@click.option("--random-seed", default=1, show_default=True)
def main(redis_url: str, rounds: int, atomic: bool, random_seed: int) -> None:
    """Move slots of a cluster there and back while books in them trade."""
    if not atomic and shutil.which("redis-cli") is None:
        raise click.ClickException("redis-cli is not installed")
    summary = asyncio.run(run(Options(redis_url, rounds, atomic, random_seed)))
    click.echo(msgspec.json.encode(summary).decode())
    sys.exit(1 if summary.violations else 0)


if __name__ == "__main__":
    main()
