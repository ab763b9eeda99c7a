"""A host's copy of a book for as long as somebody follows its every change: checksums, level3.

The engine tells level changes without a checksum and orders only to their accounts; what either
would cost is paid here, once a message, and only for books with such a subscriber. A view begins
with a full snapshot and is shown every entry after it. `complete` gives back the entry with what
subscribers are to get: `level2` with its checksum, or a `level3` message made of the private
reports, of which it has nothing but side, price, quantity and place.

A view is soft state: whoever has a doubt throws it away and begins with a new snapshot.
"""

import bisect
import itertools
import zlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from orderbook.feed.mirror import Order, Orders, Place, Report, decimal_text, displayed_id
from orderbook.messages import Channel

CHECKSUM_LEVELS = 10
CHECKSUM_ORDERS_MAX = 1000
# As many rows a side as a snapshot has at most; with so many there may be more behind.
SNAPSHOT_ROWS_MAX = 10_000
DECIMALS_MAX = 15

_PREVIOUS = b',"previous_sequence":'
# What a view adds to a level2 update is no longer than this.
_COMPLETED_LENGTH_MAX = 80

_LEVEL2, _LEVEL3, _ORDERS_PREFIX = b"level2", b"level3", b"orders:"
_INSTRUMENTS = b"instruments"


class View(Protocol):
    """What a host keeps of a book for a channel."""

    # The sequence of the snapshot it began with: entries after it are completed.
    since: int

    def complete(self, sequence: int, fields: list[bytes]) -> list[bytes] | None:
        """The next entry as subscribers get it; None where the view ends: begin a new one."""


def view_of(channel: Channel, snapshot: bytes, level2_sequence: int) -> View:
    """The view that begins with a snapshot message of the channel; `level2_sequence` is the last
    one before it that changed levels."""
    if channel is Channel.LEVEL2:
        return Level2(snapshot, level2_sequence)
    return Level3(snapshot)


def with_previous(message: bytes, previous_sequence: int) -> bytes:
    """A level2 update that names the one before it; one that a view completed does already."""
    if _PREVIOUS in message[-_COMPLETED_LENGTH_MAX:]:
        return message
    return b"%s%s%d}" % (message[:-1], _PREVIOUS, previous_sequence)


def digits(number: str, decimals: int) -> bytes:
    """Decimal text as it counts in a checksum: with all decimals of its step, but without the point
    and leading zeros."""
    whole, _, fraction = number.partition(".")
    return (whole + fraction.ljust(decimals, "0")).lstrip("0").encode()


class _Steps(Struct):
    """What a snapshot, or an `instruments` message, says of the steps of prices and quantities."""

    tick_size: str
    lot_size: str


class _InstrumentMessage(Struct):
    instrument: _Steps


_decode_steps = msgspec.json.Decoder(_Steps).decode
_decode_instrument = msgspec.json.Decoder(_InstrumentMessage).decode


def _decimals(step: str) -> int:
    return len(step.partition(".")[2])


class _Precision:
    """How many decimals prices and quantities have in a checksum. They change with the instrument's
    steps, which it tells in its stream while no order is open."""

    def __init__(self, snapshot: bytes) -> None:
        self._use(_decode_steps(snapshot))

    def follow(self, fields: list[bytes]) -> None:
        """Takes over new steps where an entry tells some."""
        if _INSTRUMENTS in fields[::2]:
            message = fields[2 * fields[::2].index(_INSTRUMENTS) + 1]
            self._use(_decode_instrument(message).instrument)

    def _use(self, steps: _Steps) -> None:
        self.price, self.quantity = _decimals(steps.tick_size), _decimals(steps.lot_size)


def _rank(price: str) -> int:
    """An integer that sorts like the price: its digits, all with the same number of decimals."""
    whole, _, fraction = price.partition(".")
    return int(whole + fraction.ljust(DECIMALS_MAX, "0"))


class _Prices:
    """The prices of a side, best first, each with its level."""

    def __init__(self, sign: int) -> None:
        self._sign = sign
        self._ranks: list[int] = []
        self._levels: dict[int, Any] = {}
        # The worst price of a snapshot with as many rows as one may have: who knows what is behind.
        self._end: int | None = None

    def key(self, price: str) -> int:
        return self._sign * _rank(price)

    def get(self, key: int) -> Any:
        return self._levels.get(key)

    def put(self, key: int, level: Any) -> None:
        if key not in self._levels:
            bisect.insort(self._ranks, key)
        self._levels[key] = level

    def remove(self, key: int) -> None:
        if self._levels.pop(key, None) is not None:
            del self._ranks[bisect.bisect_left(self._ranks, key)]

    def best(self) -> Iterable[Any]:
        """The levels that a checksum is made of."""
        return map(self._levels.__getitem__, self._ranks[:CHECKSUM_LEVELS])

    def end_here(self) -> None:
        """Nothing is known beyond the worst price, and of that maybe not all."""
        self._end = self._ranks[-1]

    def is_enough(self) -> bool:
        """Whether the levels of a checksum are known for certain."""
        if self._end is None:
            return True
        return bisect.bisect_left(self._ranks, self._end) >= CHECKSUM_LEVELS


class _Level2Message(Struct):
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]
    sequence: int
    # Of an entry that a view has completed before.
    checksum: int | None = None


_decode_level2 = msgspec.json.Decoder(_Level2Message).decode


class Level2:
    """The levels of a book, for the checksum of each change, and what the last change was."""

    def __init__(self, snapshot: bytes, level2_sequence: int) -> None:
        told = _decode_level2(snapshot)
        self.since = told.sequence
        self._level2_sequence = level2_sequence
        self._precision = _Precision(snapshot)
        self._bids, self._asks = _Prices(-1), _Prices(1)
        for side, rows in ((self._bids, told.bids), (self._asks, told.asks)):
            self._apply(side, rows)
            if len(rows) >= SNAPSHOT_ROWS_MAX:
                side.end_here()

    def complete(self, sequence: int, fields: list[bytes]) -> list[bytes] | None:
        if sequence <= self.since:
            return fields
        self._precision.follow(fields)
        if _LEVEL2 not in fields[::2]:
            return fields
        index = 2 * fields[::2].index(_LEVEL2) + 1
        told = _decode_level2(fields[index])
        self._apply(self._bids, told.bids)
        self._apply(self._asks, told.asks)
        if not (self._bids.is_enough() and self._asks.is_enough()):
            return None
        previous, self._level2_sequence = self._level2_sequence, sequence
        if told.checksum is not None:
            return fields
        completed = fields.copy()
        message = with_previous(fields[index], previous)
        completed[index] = b'%s,"checksum":%d}' % (message[:-1], self.checksum())
        return completed

    def checksum(self) -> int:
        """That of get_book: asks, then bids."""
        return zlib.crc32(b"".join(itertools.chain(self._asks.best(), self._bids.best())))

    def _apply(self, side: _Prices, rows: list[tuple[str, str]]) -> None:
        precision = self._precision
        for price, quantity in rows:
            if quantity == "0":
                side.remove(side.key(price))
            else:
                text = digits(price, precision.price) + digits(quantity, precision.quantity)
                side.put(side.key(price), text)


class _Level3Message(Struct):
    symbol: str
    sequence: int
    epoch: int
    bids: list[tuple[str, str, str, int]]
    asks: list[tuple[str, str, str, int]]
    more: bool


_decode_level3 = msgspec.json.Decoder(_Level3Message).decode


class _Stamp(Struct):
    """When an entry was made: in each of its reports."""

    class Report(Struct):
        timestamp_ms: int

    epoch: int
    orders: list[Report]


_decode_stamp = msgspec.json.Decoder(_Stamp).decode


class _Queue:
    """The orders of a level in their order, and what they are in a checksum."""

    def __init__(self, price: str, precision: _Precision) -> None:
        self._price_digits = digits(price, precision.price)
        self._precision = precision
        # order_id → priority and digits.
        self._orders: dict[str, tuple[int, bytes]] = {}
        self._text: bytes | None = None

    def put(self, order_id: str, shown: Decimal, priority: int) -> None:
        """A priority that the order had before keeps its place; a new one is behind all others."""
        known = self._orders.get(order_id)
        if known is not None and known[0] != priority:
            del self._orders[order_id]
        quantity_digits = digits(decimal_text(shown), self._precision.quantity)
        text = self._price_digits + quantity_digits + order_id.encode()
        self._orders[order_id] = (priority, text)
        self._text = None

    def remove(self, order_id: str) -> bool:
        """Whether the level is empty without it."""
        self._orders.pop(order_id, None)
        self._text = None
        return not self._orders

    def __len__(self) -> int:
        return len(self._orders)

    def text(self) -> bytes:
        if self._text is None:
            self._text = b"".join([text for _, text in self._orders.values()])
        return self._text

    def texts(self) -> Iterable[bytes]:
        """Order by order."""
        return (text for _, text in self._orders.values())


def _checksum_text(queues: list[_Queue]) -> bytes:
    """What the best levels of a side are in a checksum: mostly what is known of each already."""
    if sum(map(len, queues)) <= CHECKSUM_ORDERS_MAX:
        return b"".join([queue.text() for queue in queues])
    texts = itertools.chain.from_iterable(queue.texts() for queue in queues)
    return b"".join(itertools.islice(texts, CHECKSUM_ORDERS_MAX))


class Level3:
    """The orders of a book as everybody may see them, made of the reports to their accounts."""

    def __init__(self, snapshot: bytes) -> None:
        told = _decode_level3(snapshot)
        self.since = told.sequence
        self._precision = _Precision(snapshot)
        self._head = f'{{"channel":"level3","symbol":"{told.symbol}","type":"update"'
        self._orders = Orders(displayed_id)
        self._sides = {"buy": _Prices(-1), "sell": _Prices(1)}
        for side, rows in (("buy", told.bids), ("sell", told.asks)):
            for row in rows:
                self._begin_with(side, *row)
            if told.more and len(rows) >= SNAPSHOT_ROWS_MAX:
                self._sides[side].end_here()

    def _begin_with(self, side: str, price: str, quantity: str, *place: Any) -> None:
        order_id, priority = place
        shown = Decimal(quantity)
        terms = Report(event="", order_id=order_id, side=side, price=price)
        self._orders.orders[order_id] = Order("", terms, shown, shown, priority)
        self._put(order_id, (side, price, shown, priority))

    def complete(self, sequence: int, fields: list[bytes]) -> list[bytes] | None:
        if sequence <= self.since:
            return fields
        self._precision.follow(fields)
        stamp = None
        for topic, message in zip(fields[::2], fields[1::2], strict=True):
            if topic.startswith(_ORDERS_PREFIX):
                stamp = message
                self._orders.hear(message)
        if stamp is None:
            return fields
        rows = self._changes()
        if not all(side.is_enough() for side in self._sides.values()):
            return None
        if not (rows["buy"] or rows["sell"]) or _LEVEL3 in fields[::2]:
            return fields
        return [*fields, _LEVEL3, self._message(sequence, rows, stamp)]

    def _changes(self) -> dict[str, list[tuple[str, str, str, int]]]:
        """What the reports heard since the last time have changed, a row for each order."""
        changed: list[tuple[str, Place | None, Place]] = []
        for order_id, before in self._orders.touched.items():
            after = self._orders.place(order_id)
            if before != after:
                self._take_out(order_id, before, after)
                # One of both is a place, for they differ.
                changed.append((order_id, after, after or before))  # type: ignore[arg-type]
        self._orders.touched.clear()
        # By priority: what has come later stands behind.
        changed.sort(key=lambda one: one[2][3])
        rows: dict[str, list[tuple[str, str, str, int]]] = {"buy": [], "sell": []}
        for order_id, after, (side, price, _, priority) in changed:
            if after is not None:
                self._put(order_id, after)
            quantity = decimal_text(after[2]) if after else "0"
            rows[side].append((price, quantity, order_id, priority))
        return rows

    def _take_out(self, order_id: str, before: Place | None, after: Place | None) -> None:
        """Of an order that has left its level: one that goes on in it keeps its place, or not."""
        if before is None or (after is not None and before[1] == after[1]):
            return
        side = self._sides[before[0]]
        key = side.key(before[1])
        queue = side.get(key)
        if queue is not None and queue.remove(order_id):
            side.remove(key)

    def _put(self, order_id: str, place: Place) -> None:
        name, price, shown, priority = place
        side = self._sides[name]
        key = side.key(price)
        queue = side.get(key)
        if queue is None:
            queue = _Queue(price, self._precision)
            side.put(key, queue)
        queue.put(order_id, shown, priority)

    def checksum(self) -> int:
        """That of get_level3: the orders of the best levels, asks, then bids."""
        asks, bids = (_checksum_text(list(self._sides[name].best())) for name in ("sell", "buy"))
        return zlib.crc32(asks + bids)

    def _message(self, sequence: int, rows: dict[str, Any], report: bytes) -> bytes:
        stamp = _decode_stamp(report)
        encode = msgspec.json.encode
        return (
            b'%s,"sequence":%d,"epoch":%d,"bids":%s,"asks":%s,"checksum":%d,"timestamp_ms":%d}'
            % (
                *(self._head.encode(), sequence, stamp.epoch, encode(rows["buy"])),
                *(encode(rows["sell"]), self.checksum(), stamp.orders[0].timestamp_ms),
            )
        )
