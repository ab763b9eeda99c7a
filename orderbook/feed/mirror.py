"""The book as its event stream tells it: what each report means, and nothing from anywhere else.

`Orders` knows every open order from the order reports; `Mirror` adds the instrument and the
counters, so that a book rebuilt from its first entry has the state hash that verify_book gives for
the stored one. Here, and only here in Python, stands what a report does to a book.

An entry's reports are grouped by account, so those of different accounts have no order among each
other. They need none: each order belongs to one account, and where it stands is told by its
priority.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct

STOP_TYPES = frozenset({"stop", "stop_limit", "take_profit", "take_profit_limit", "trailing_stop"})
TAKE_PROFIT_TYPES = frozenset({"take_profit", "take_profit_limit"})

# How the state hash is made: lua/functions/verify_book.lua.
HASH_CHUNK_LENGTH = 500
# The flags of an order's record in their order: lua/records/order_record.lua.
BARE_FLAGS = ("post_only", "quote")
NUMBER_FLAGS = (
    *("display_quantity", "slice", "expire_time_ms", "stop_price", "reference_price"),
    *("order_list_id", "protection_price"),
)
TEXT_FLAGS = (
    *("self_trade_prevention", "stp_group", "order_type", "time_in_force"),
    *("trailing_offset", "protection", "session", "displayed_order_id", "waits"),
)
# Those that stand in a report as they do there.
PLAIN_FLAGS = (
    *("self_trade_prevention", "stp_group", "trailing_offset", "protection", "session"),
    "displayed_order_id",
)
EXACT_MAX = 2**53 - 1
MILLION = 10**6

_ORDERS_PREFIX = b"orders:"
_ZERO = Decimal(0)


class Report(Struct):
    """A report of an order. The terms are those of docs/protocol.md; most have few of them."""

    event: str
    order_id: str
    client_order_id: str = ""
    # The id under which everybody sees an iceberg's slice, once it is not the first.
    displayed_order_id: str = ""
    side: str = ""
    order_type: str = ""
    time_in_force: str = ""
    post_only: bool = False
    quote: bool = False
    quantity: str = ""
    price: str = ""
    remaining_quantity: str = ""
    priority: int = 0
    role: str = ""
    display_quantity: str = ""
    shown_quantity: str = ""
    expire_time_ms: int = 0
    stop_price: str = ""
    reference_price: str = ""
    trailing_offset: str = ""
    protection: str = ""
    protection_price: str = ""
    self_trade_prevention: str = ""
    stp_group: str = ""
    session: str = ""
    order_list_id: str = ""
    armed: bool = True
    reason: str = ""
    timestamp_ms: int = 0


class OrdersMessage(Struct):
    """What one entry tells an account."""

    account: str
    orders: list[Report]


class _Trade(Struct):
    trade_id: str
    price: str


class _TradesMessage(Struct):
    trades: list[_Trade]


class _InstrumentMessage(Struct):
    instrument: dict[str, Any]
    epoch: int


class _EpochMessage(Struct):
    """A new epoch, and the ids from which its orders and trades count on."""

    epoch: int
    last_order_id: str
    last_trade_id: str


_decode_orders = msgspec.json.Decoder(OrdersMessage).decode
_decode_trades = msgspec.json.Decoder(_TradesMessage).decode
_decode_instrument = msgspec.json.Decoder(_InstrumentMessage).decode
_decode_epoch = msgspec.json.Decoder(_EpochMessage).decode


@dataclass(slots=True)
class Order:
    """An open order. `terms` are those told last; `shown` is an iceberg's slice, else what remains.

    Of one known from a public snapshot alone remaining is what it shows, and the terms say nothing
    but side and price; the reports that change more tell more.
    """

    account: str
    terms: Report
    remaining: Decimal
    shown: Decimal
    priority: int
    # The queue in which it waits outside the book: rising, falling, dormant, paused.
    waits: str = ""
    reference_price: str = ""

    @property
    def is_in_book(self) -> bool:
        """Whether it queues: not one that waits outside the book, or that never rests."""
        return not self.waits and bool(self.terms.price)

    @property
    def is_trailing(self) -> bool:
        """Whether it waits as a trailing stop that follows the price."""
        return self.waits in {"rising", "falling"} and bool(self.terms.trailing_offset)


# After these an order may take.
_ARRIVALS = {"accepted", "amended", "armed", "resumed", "triggered"}

# Where an order stands, as everybody may know it: side, price, shown, priority.
Place = tuple[str, str, Decimal, int]


def decimal_text(number: Decimal) -> str:
    """As the protocol writes it: no exponent and no trailing zeros."""
    return format(number.normalize(), "f")


def own_id(report: Report) -> str:
    """The order_id that an order has to its owner."""
    return report.order_id


def displayed_id(report: Report) -> str:
    """The order_id under which everybody sees the order."""
    return report.displayed_order_id or report.order_id


class Orders:
    """Every open order, from the reports about them, by its order_id as `id_of` tells it."""

    def __init__(self, id_of: Callable[[Report], str] = own_id) -> None:
        self._id_of = id_of
        self.orders: dict[str, Order] = {}
        self.last_order_id = 0
        # What has been changed since somebody last emptied this, and where it stood before.
        self.touched: dict[str, Place | None] = {}
        # Who came in or was amended in the entry that is being heard. A taker that is not among
        # them stood in the book: it trades in an auction.
        self._arrived: set[str] = set()
        # What each report does.
        self._meanings: dict[str, Callable[[str, Report], None]] = {
            "accepted": self._accepted,
            "amended": self._amended,
            "armed": self._armed,
            "canceled": self._leaves,
            "decremented": self._decremented,
            "expired": self._leaves,
            "paused": self._paused,
            "refreshed": self._refreshed,
            "resumed": self._resumed,
            "trade": self._trade,
            "trailed": self._trailed,
            "triggered": self._triggered,
        }

    def hear(self, message: bytes) -> None:
        """Applies an entry's reports to one account."""
        told = _decode_orders(message)
        self._arrived.clear()
        for report in told.orders:
            order_id = self._id_of(report)
            if order_id not in self.touched:
                self.touched[order_id] = self.place(order_id)
            if report.event in _ARRIVALS:
                self._arrived.add(order_id)
            self._meanings[report.event](told.account, report)

    def place(self, order_id: str) -> Place | None:
        """Where an order stands in the book; None where it does not."""
        order = self.orders.get(order_id)
        if order is None or not order.is_in_book:
            return None
        return order.terms.side, order.terms.price, order.shown, order.priority

    def _accepted(self, account: str, report: Report) -> None:
        self.last_order_id = max(self.last_order_id, int(report.order_id))
        self._arrives(account, report, Decimal(report.quantity))
        self._waits(report, "" if report.armed else "dormant")

    def _armed(self, account: str, report: Report) -> None:
        self._arrives(account, report, Decimal(report.remaining_quantity))
        self._waits(report)

    def _waits(self, report: Report, queue: str = "") -> None:
        """An order that has just come waits outside the book if it is one that does."""
        order = self.orders[self._id_of(report)]
        if queue or report.order_type in STOP_TYPES:
            order.waits = queue or _direction(report)
        order.reference_price = report.reference_price

    def _arrives(self, account: str, report: Report, remaining: Decimal) -> None:
        """The order queues behind all others; what it trades first is told after this."""
        shown = remaining
        if report.display_quantity:
            shown = min(remaining, Decimal(report.display_quantity))
        self.orders[self._id_of(report)] = Order(account, report, remaining, shown, report.priority)

    def _triggered(self, account: str, report: Report) -> None:
        order = self.orders.get(self._id_of(report))
        reference_price = order.reference_price if order else ""
        self._arrives(account, report, Decimal(report.remaining_quantity))
        self.orders[self._id_of(report)].reference_price = reference_price

    def _paused(self, account: str, report: Report) -> None:
        self._arrives(account, report, Decimal(report.remaining_quantity))
        self.orders[self._id_of(report)].waits = "paused"

    def _resumed(self, account: str, report: Report) -> None:
        self._arrives(account, report, Decimal(report.remaining_quantity))

    def _refreshed(self, account: str, report: Report) -> None:
        self.last_order_id = max(self.last_order_id, int(report.displayed_order_id))
        self._arrives(account, report, Decimal(report.remaining_quantity))
        self.orders[self._id_of(report)].shown = Decimal(report.shown_quantity)

    def _amended(self, account: str, report: Report) -> None:
        """With another priority it queues anew, with its own it has shrunk in its place."""
        order = self.orders.get(self._id_of(report))
        if order is not None and (order.priority == report.priority or order.waits):
            order.terms, order.priority = report, report.priority
            self._shrinks_to(order, Decimal(report.remaining_quantity))
            return
        # What no snapshot of the book has shown may be a stop order: it waits.
        self._arrives(account, report, Decimal(report.remaining_quantity))
        if order is None:
            self._waits(report)

    def _trailed(self, account: str, report: Report) -> None:
        self._arrives(account, report, Decimal(report.remaining_quantity))
        self._waits(report)

    def _decremented(self, _: str, report: Report) -> None:
        order = self.orders.get(self._id_of(report))
        if order is not None:
            order.terms = report
            self._shrinks_to(order, Decimal(report.remaining_quantity))

    def _shrinks_to(self, order: Order, remaining: Decimal) -> None:
        order.remaining = remaining
        order.shown = remaining if order.waits else min(order.shown, remaining)

    def _trade(self, _: str, report: Report) -> None:
        """Who stands in the book trades of what it shows; what an arriving taker shows is decided
        when it has traded."""
        order = self.orders.get(self._id_of(report))
        if order is None:
            # A market order by quote_quantity, of which from its first trade on nothing remains.
            return
        remaining = Decimal(report.remaining_quantity)
        if remaining == _ZERO:
            del self.orders[self._id_of(report)]
            return
        if report.role == "maker" or self._id_of(report) not in self._arrived:
            order.shown -= Decimal(report.quantity)
        order.remaining = remaining
        order.shown = min(order.shown, remaining)
        if order.shown <= _ZERO:
            # Of an iceberg: a later slice is told as `refreshed`, under another id.
            del self.orders[self._id_of(report)]

    def _leaves(self, _: str, report: Report) -> None:
        self.orders.pop(self._id_of(report), None)


def _direction(report: Report) -> str:
    """Which way the price must go for a stop order: lua/matching/stop_orders.lua."""
    is_profit = report.order_type in TAKE_PROFIT_TYPES
    return "rising" if (report.side == "buy") != is_profit else "falling"


class Mirror:
    """A book rebuilt from its entries, beginning with the first."""

    def __init__(self) -> None:
        self.sequence = 0
        self.epoch = 0
        self.instrument: dict[str, Any] = {}
        self.last_price = ""
        self.last_trade_id = 0
        self.book = Orders()

    def apply(self, sequence: int, topics: Iterable[tuple[bytes, bytes]]) -> None:
        """The next entry: its topics and messages."""
        self.sequence = sequence
        for topic, message in topics:
            if topic.startswith(_ORDERS_PREFIX):
                self.book.hear(message)
            elif topic == b"trades":
                last = _decode_trades(message).trades[-1]
                self.last_trade_id, self.last_price = int(last.trade_id), last.price
            elif topic == b"instruments":
                told = _decode_instrument(message)
                self.instrument, self.epoch = told.instrument, told.epoch
            elif topic == b"epoch":
                begun = _decode_epoch(message)
                self.epoch = begun.epoch
                self.book.last_order_id = int(begun.last_order_id)
                self.last_trade_id = int(begun.last_trade_id)
        self.book.touched.clear()

    # ---- what it looks like

    def queue(self, side: str) -> list[Order]:
        """The orders of a side in priority."""
        sign = -1 if side == "buy" else 1
        found = [
            (Decimal(order.terms.price) * sign, order.priority, order)
            for order in self.book.orders.values()
            if order.is_in_book and order.terms.side == side
        ]
        return [order for _, _, order in sorted(found, key=lambda one: one[:2])]

    def levels(self, side: str) -> list[list[str]]:
        """The levels of a side, best first, as get_book tells them."""
        totals: dict[str, Decimal] = {}
        for order in self.queue(side):
            price = order.terms.price
            totals[price] = totals.get(price, _ZERO) + order.shown
        return [[price, decimal_text(total)] for price, total in totals.items()]

    # ---- the state hash, as lua/functions/verify_book.lua makes it

    def state_hash(self) -> str:
        """That of verify_book for a stored book which is equal."""
        queues = ("rising", "falling", "dormant", "paused")
        waiting = [self._waiting(name) for name in queues]
        state = _sha1(self._header())
        for queue in (self.queue("buy"), self.queue("sell"), *waiting):
            lines = [self._hash_line(order) for order in queue]
            for start in range(0, len(lines), HASH_CHUNK_LENGTH):
                state = _sha1("\n".join([state, *lines[start : start + HASH_CHUNK_LENGTH]]))
        return state

    def _waiting(self, name: str) -> list[Order]:
        """The orders of a queue outside the book."""
        found = [order for order in self.book.orders.values() if order.waits == name]
        if name == "paused":
            return sorted(found, key=lambda order: int(order.terms.order_id))
        if name == "dormant":
            return sorted(found, key=lambda order: (int(order.terms.order_list_id), order.priority))
        sign = -1 if name == "falling" else 1
        return sorted(found, key=lambda order: (sign * self._stop_ticks(order), order.priority))

    def _header(self) -> str:
        members: dict[str, Any] = {}
        for name, value in self.instrument.items():
            if name == "open_orders":
                members[name] = len(self.book.orders)
                if self.last_price:
                    members["last_price"] = self.last_price
            elif name != "last_price":
                members[name] = value
        members |= {"sequence": self.sequence, "epoch": self.epoch}
        text = msgspec.json.encode(members).decode()
        return f"{text}\n{self.book.last_order_id}\n{self.last_trade_id}"

    def _hash_line(self, order: Order) -> str:
        terms = order.terms
        words = (
            terms.order_id,
            terms.side,
            str(self._ticks(terms.price)) if terms.price else "-",
            str(self._lots(terms.quantity)),
            str(self._lots(order.remaining)),
            order.account,
            _client_order_id_text(terms.client_order_id),
            self._flags(order),
        )
        return " ".join(words)

    def _flags(self, order: Order) -> str:
        terms, numbers = order.terms, self._number_flags(order)
        flags = {name: getattr(terms, name) for name in PLAIN_FLAGS} | {"waits": order.waits}
        if terms.order_type != "limit":
            flags["order_type"] = terms.order_type
        if terms.time_in_force in {"ioc", "fok"}:
            flags["time_in_force"] = terms.time_in_force
        texts = [name for name in BARE_FLAGS if getattr(terms, name)]
        texts += [f"{name}={numbers[name]}" for name in NUMBER_FLAGS if name in numbers]
        texts += [f"{name}={flags[name]}" for name in TEXT_FLAGS if flags.get(name)]
        return ",".join(texts) or "-"

    def _number_flags(self, order: Order) -> dict[str, int]:
        terms = order.terms
        flags = {}
        if terms.display_quantity:
            flags["display_quantity"] = self._lots(terms.display_quantity)
            if order.is_in_book:
                flags["slice"] = self._lots(order.shown)
        if terms.expire_time_ms:
            flags["expire_time_ms"] = terms.expire_time_ms
        if terms.stop_price or order.reference_price:
            flags["stop_price"] = self._stop_ticks(order)
        if order.reference_price:
            flags["reference_price"] = self._ticks(order.reference_price)
        if terms.order_list_id:
            flags["order_list_id"] = int(terms.order_list_id)
        if terms.protection_price:
            flags["protection_price"] = self._ticks(terms.protection_price)
        return flags

    def _ticks(self, price: str) -> int:
        return int(Decimal(price) / Decimal(self.instrument["tick_size"]))

    def _lots(self, quantity: str | Decimal) -> int:
        return int(Decimal(quantity) / Decimal(self.instrument["lot_size"]))

    def _stop_ticks(self, order: Order) -> int:
        """The stop price; that of a trailing stop is its offset away from its reference."""
        offset = order.terms.trailing_offset
        if not offset:
            return self._ticks(order.terms.stop_price)
        reference = self._ticks(order.reference_price)
        if offset.endswith("%"):
            parts = int(Decimal(offset[:-1]) * 10_000)
            distance = max(1, reference * parts // MILLION)
        else:
            distance = self._ticks(offset)
        stop = reference - distance if order.terms.side == "sell" else reference + distance
        return min(stop, EXACT_MAX + 1)


def _client_order_id_text(client_order_id: str) -> str:
    """As it stands in a line of text: lua/records/order_record.lua."""
    return "=-" if client_order_id == "-" else client_order_id or "-"


def _sha1(text: str) -> str:
    # The engine's own fold, no secret: SHA-1 is what Redis gives a script.
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
