"""The judge: what clients were told, held against what the exchange knows after a fault.

The idea: the event stream of a book is its history, and replay proves that the stored book is what
its history tells. So it is enough to compare each acknowledgement and each frame with the history.
What is missing there is lost. That is a violation unless the kind of fault may lose what only
memory promised; and then the book must be in another epoch, and every subscriber must know it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from campaign.ledger import (
    Acknowledgement,
    Item,
    Ledger,
    Segment,
    Tape,
    Violations,
    item_of,
    trades_of,
)
from client import POLL_INTERVAL_S, Report, Trade
from orderbook.engine.engine import Engine
from orderbook.engine.errors import EngineError
from orderbook.feed.replay import replay

STREAM_PAGE = 1000
TOPICS = frozenset({b"trades", b"epoch", b"instruments"})
# A primary that was replaced goes on for a while, and so do those who are connected to it.
REACH_TIMEOUT_S = 20.0
VERIFY_TIMEOUT_S = 10.0


class Side(msgspec.Struct):
    """What a report of a trade says beyond what a subscriber compares."""

    order_id: str
    event: str = ""
    client_order_id: str = ""
    trade_id: str = ""
    role: str = ""
    price: str = ""
    quantity: str = ""


class _Message(msgspec.Struct):
    sequence: int
    epoch: int
    trades: list[Trade] = []
    orders: list[Report] = []


class _Sides(msgspec.Struct):
    orders: list[Side] = []


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_sides = msgspec.json.Decoder(_Sides).decode


@dataclass
class History:
    """A book's stream of events, read whole."""

    sequence: int = 0
    epoch: int = 0
    accepted: dict[str, list[str]] = field(default_factory=dict)
    # (order_id, event, sequence) of every report about an order.
    happened: set[tuple[str, str, int]] = field(default_factory=set)
    trades: dict[str, Trade] = field(default_factory=dict)
    sides: dict[str, list[Side]] = field(default_factory=dict)
    # Topic → epoch, sequence and item of all that its subscribers are told.
    told: dict[str, list[tuple[int, int, Item]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def take_entry(self, sequence: int, topics: Sequence[tuple[bytes, bytes]]) -> None:
        if sequence != self.sequence + 1:
            self.violations.append(f"entry {sequence} follows {self.sequence}")
        self.sequence = sequence
        for topic, text in topics:
            if topic in TOPICS or topic.startswith(b"orders:"):
                self._take_message(topic.decode(), text)

    def _take_message(self, topic: str, text: bytes) -> None:
        message = _decode_message(text)
        self.epoch = message.epoch
        told = self.told.setdefault(topic, [])
        for item in map(item_of, message.trades or message.orders):
            told.append((message.epoch, message.sequence, item))
        for trade in message.trades:
            if trade.trade_id in self.trades:
                self.violations.append(f"trade {trade.trade_id} happened twice")
            self.trades[trade.trade_id] = trade
        if topic.startswith("orders:"):
            self._take_reports(message.sequence, _decode_sides(text).orders)

    def _take_reports(self, sequence: int, reports: list[Side]) -> None:
        for report in reports:
            self.happened.add((report.order_id, report.event, sequence))
            if report.event == "accepted" and report.client_order_id:
                self.accepted.setdefault(report.client_order_id, []).append(report.order_id)
            if report.event == "trade":
                self.sides.setdefault(report.trade_id, []).append(report)

    def one_sided(self) -> list[str]:
        """Trades that were not told to both sides alike."""
        wrong = []
        for trade_id, trade in self.trades.items():
            told = {(s.role, s.order_id, s.price, s.quantity) for s in self.sides.get(trade_id, [])}
            meant = {
                (role, order_id, trade.price, trade.quantity)
                for role, order_id in (
                    ("maker", trade.maker_order_id),
                    ("taker", trade.taker_order_id),
                )
            }
            if told != meant or len(self.sides[trade_id]) != 2:
                wrong.append(f"trade {trade_id} was told to its sides as {sorted(told)}")
        extra = self.sides.keys() - self.trades.keys()
        return wrong + [f"trade {trade_id} is told to a side alone" for trade_id in sorted(extra)]


@dataclass
class Finding:
    """What one judgement found, counted."""

    lost: int = 0
    doubled: int = 0


class Judge:
    """Judges one book, again after each fault."""

    def __init__(self, ledger: Ledger, tapes: list[Tape], violations: Violations) -> None:
        self._ledger = ledger
        self._tapes = tapes
        self._violations = violations
        self._lost: set[str] = set()
        self._doubled: set[str] = set()
        self._epoch = 0

    async def judge(self, engine: Engine, *, memory_is_safe: bool) -> Finding:
        """Holds all that was told so far against the book as it is, while nobody trades. What is
        still to be told, subscribers are given time to hear."""
        deadline_s = time.monotonic() + REACH_TIMEOUT_S
        while True:
            history = await self._read(engine)
            behind = [wrong for tape in self._tapes for wrong in _behind(tape, history)]
            if not behind or time.monotonic() > deadline_s:
                break
            await asyncio.sleep(POLL_INTERVAL_S)
        for sentence in (*behind, *history.violations, *history.one_sided()):
            self._wrong(sentence)
        finding = Finding(self._count_lost(history, memory_is_safe), self._count_doubled(history))
        self._epoch = history.epoch
        self._check_names(history)
        for tape in self._tapes:
            self._check_tape(tape, history)
        return finding

    def _count_lost(self, history: History, memory_is_safe: bool) -> int:
        lost = self._newly_lost(history)
        for told in lost:
            if memory_is_safe or told.is_confirmed:
                self._wrong(f"{told.name} is lost ({told.event}, {told.reply})")
        if lost and history.epoch == self._epoch:
            self._wrong(f"{len(lost)} acknowledged commands are lost and no epoch tells it")
        return len(lost)

    def _wrong(self, sentence: str) -> None:
        self._violations.add(f"{self._ledger.symbol}: {sentence}")

    async def _read(self, engine: Engine) -> History:
        """Verifies the book, rebuilds it from its stream, and reads the stream."""
        symbol = self._ledger.symbol
        rebuilt = await replay(engine, symbol)
        if rebuilt.verdict["verified"] is not True:
            self._wrong(f"verify_book names {rebuilt.verdict['violations']}")
        elif not rebuilt.is_equal:
            self._wrong("the stored book is not what its stream tells")
        history, first_id = History(), "-"
        stream = f"{engine.book_key(symbol)}:events"
        while True:
            words = ("XRANGE", stream, first_id, "+", "COUNT", STREAM_PAGE)
            entries = await engine.read_stream(symbol, *words)
            for entry_id, fields in entries:
                sequence = int(entry_id.partition(b"-")[0])
                history.take_entry(sequence, list(zip(fields[::2], fields[1::2], strict=True)))
                first_id = f"({entry_id.decode()}"
            if not entries:
                return history

    def _newly_lost(self, history: History) -> list[Acknowledgement]:
        lost = [
            acknowledgement
            for name, acknowledgement in self._ledger.acknowledged.items()
            if name not in self._lost and not self._is_there(acknowledgement, history)
        ]
        self._lost.update(acknowledgement.name for acknowledgement in lost)
        return lost

    def _is_there(self, acknowledgement: Acknowledgement, history: History) -> bool:
        reply = acknowledgement.reply
        if (reply.order_id, acknowledgement.event, reply.sequence) not in history.happened:
            return False
        return all(history.trades.get(t.trade_id) == t for t in trades_of(reply))

    def _count_doubled(self, history: History) -> int:
        doubled = {name for name, ids in history.accepted.items() if len(ids) > 1}
        for name in doubled - self._doubled:
            self._wrong(f"{name} was accepted as orders {history.accepted[name]}")
        found = len(doubled - self._doubled)
        self._doubled |= doubled
        return found

    def _check_names(self, history: History) -> None:
        """Whatever happened was acknowledged, under the id that happened."""
        for name, order_ids in history.accepted.items():
            acknowledged = self._ledger.acknowledged.get(name)
            if acknowledged is None:
                told = self._ledger.refused.get(name, "nothing")
                self._wrong(f"{name} was accepted, and its sender was told {told}")
            elif acknowledged.reply.order_id not in order_ids:
                self._wrong(
                    f"{name} is {order_ids}, its sender knows {acknowledged.reply.order_id}"
                )

    def _check_tape(self, tape: Tape, history: History) -> None:
        for segment in tape.segments:
            if untold := _meant(tape.topic, segment, history) - Counter(segment.told):
                self._wrong(f"{tape.topic} left out {sorted(untold)}")


def _meant(topic: str, segment: Segment, history: History) -> Counter[Item]:
    """What a subscriber had to be told in a segment."""
    return Counter(
        item
        for epoch, sequence, item in history.told.get(topic, [])
        if epoch == segment.epoch and segment.first_sequence < sequence <= segment.last_sequence
    )


def _behind(tape: Tape, history: History) -> Iterator[str]:
    """What a subscriber still has to be told: the latest, or that what it knows is lost."""
    told = history.told.get(tape.topic, [])
    due = max((sequence for epoch, sequence, _ in told if epoch == history.epoch), default=0)
    if tape.epoch != history.epoch or tape.last_sequence < due:
        yield (
            f"{tape.topic} came to {tape.last_sequence} of epoch {tape.epoch} in place of "
            f"{due} of epoch {history.epoch}"
        )
    elif invented := Counter(tape.segments[-1].told) - _meant(
        tape.topic, tape.segments[-1], history
    ):
        yield f"{tape.topic} was told {sorted(invented)}, which is not so"


async def wait_until_verified(redis_url: str, symbol: str) -> Engine:
    """An engine that reaches the book, which may need a moment after a fault."""
    deadline_s = time.monotonic() + VERIFY_TIMEOUT_S
    while True:
        try:
            engine = await Engine.connect(redis_url)
            await engine.verify_book(symbol)
        except EngineError:
            if time.monotonic() > deadline_s:
                raise
        else:
            return engine
