"""What the clients of a campaign were told: their own account of the truth.

The idea: nothing here asks the exchange. An order book of acknowledgements and the frames of each
subscriber are kept as they came; the judge (judge.py) holds them against what the exchange knows
when the fault is over.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import astuple

from client import Frame, Report, Trade

VIOLATIONS_MAX = 50

# Where a report or a trade is compared, it is a tuple of all that the client knows of it.
Item = tuple[str, ...]


def item_of(told: Report | Trade) -> Item:
    return astuple(told)


class Fill(msgspec.Struct):
    """One trade of a reply, as its taker sees it."""

    trade_id: str
    price: str
    quantity: str
    maker_order_id: str


class Reply(msgspec.Struct):
    """The reply to a command that was done."""

    order_id: str
    sequence: int
    fills: list[Fill] = []
    durability: str = "memory"
    status: str = ""


@dataclass(frozen=True)
class Acknowledgement:
    """One command that was acknowledged. `event` is what the stream calls it."""

    name: str
    event: str
    reply: Reply

    @property
    def is_confirmed(self) -> bool:
        """Whether more than memory was promised."""
        return self.reply.durability not in {"memory", "unconfirmed"}


class Violations:
    """Sentences, each about one thing that must not be, however often it is found."""

    def __init__(self) -> None:
        self.sentences: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.sentences)

    def add(self, sentence: str) -> None:
        self.sentences[sentence] = None


class Ids:
    """Every order id and trade id of a book that anybody was ever told, lost histories included."""

    def __init__(self, symbol: str, violations: Violations) -> None:
        self._symbol = symbol
        self._violations = violations
        self._names: dict[str, str] = {}
        self._trades: dict[str, Item] = {}

    def take_order(self, order_id: str, name: str) -> None:
        if self._names.setdefault(order_id, name) != name:
            self._violations.add(
                f"{self._symbol}: order id {order_id} is {self._names[order_id]} and {name}"
            )

    def take_trades(self, trades: Iterable[Trade]) -> None:
        for trade in trades:
            known = self._trades.setdefault(trade.trade_id, item_of(trade))
            if known != item_of(trade):
                self._violations.add(f"{self._symbol}: two trades {known} and {item_of(trade)}")


@dataclass
class Ledger:
    """What the traders of one book were told in answer."""

    symbol: str
    violations: Violations
    ids: Ids
    acknowledged: dict[str, Acknowledgement] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        name, reply = acknowledgement.name, acknowledgement.reply
        if name in self.acknowledged or name in self.refused:
            self.violations.add(f"{self.symbol}: {name} was answered twice")
        self.acknowledged[name] = acknowledgement
        if acknowledgement.event == "accepted":
            self.ids.take_order(reply.order_id, name)
        self.ids.take_trades(trades_of(reply))

    def refuse(self, name: str, code: str) -> None:
        self.refused[name] = code


def trades_of(reply: Reply) -> list[Trade]:
    """The trades of a reply as everybody is told them."""
    return [
        Trade(fill.trade_id, fill.price, fill.quantity, fill.maker_order_id, reply.order_id)
        for fill in reply.fills
    ]


@dataclass
class Segment:
    """What a subscriber was told without a break, from a snapshot on."""

    epoch: int
    first_sequence: int
    last_sequence: int
    told: list[Item] = field(default_factory=list)


class Tape:
    """One channel of a book as one subscriber was told it: `trades`, or `orders` of its account."""

    def __init__(self, topic: str, ids: Ids, violations: Violations) -> None:
        self.topic = topic
        self.gaps = 0
        self.segments: list[Segment] = []
        self._ids = ids
        self._violations = violations
        self._snapshot_is_due = True

    @property
    def epoch(self) -> int:
        return self.segments[-1].epoch if self.segments else 0

    @property
    def last_sequence(self) -> int:
        return self.segments[-1].last_sequence if self.segments else 0

    def take(self, frame: Frame) -> None:
        self._ids.take_trades(frame.trades)
        if frame.type == "gap":
            self._take_gap(frame)
        elif frame.type == "snapshot":
            if not self._snapshot_is_due:
                self._wrong(f"a snapshot without a gap at sequence {frame.sequence}")
            self._snapshot_is_due = False
            self.segments.append(Segment(frame.epoch, frame.sequence, frame.sequence))
        else:
            self._take_update(frame)

    def _take_gap(self, frame: Frame) -> None:
        self.gaps += 1
        self._snapshot_is_due = True
        # A history that has become shorter is told at once, and its epoch with the next change.
        if frame.epoch == self.epoch and frame.sequence >= self.last_sequence:
            self._wrong(
                f"a gap from {self.last_sequence} to {frame.sequence} in one epoch, {frame.epoch}"
            )

    def _take_update(self, frame: Frame) -> None:
        if self._snapshot_is_due or frame.epoch != self.epoch:
            self._wrong(f"an update of epoch {frame.epoch} without its snapshot")
            return
        segment = self.segments[-1]
        if frame.sequence <= segment.last_sequence:
            self._wrong(f"sequence {frame.sequence} after {segment.last_sequence}")
        segment.last_sequence = frame.sequence
        segment.told += map(item_of, frame.trades or frame.orders)

    def _wrong(self, sentence: str) -> None:
        self._violations.add(f"{self.topic} as a subscriber was told: {sentence}")
