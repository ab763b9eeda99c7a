"""The oracle: an order book in plain Python, slow and obvious, written from docs/protocol.md alone.

The rules, as this file understands them.

*A book* is two queues of resting orders. Bids stand highest price first, asks lowest first; at one
price, the order with the smaller `priority` stands first. Priority is one counter: an order gets
the next number when it is accepted, and again whenever it must queue anew. Nothing else decides.

*An incoming order* (the taker) meets the opposite queue from its front for as long as prices cross,
and trades always at the price of the resting order (the maker), always as much as both have. A
trade changes exactly two orders. What is left of a gtc or gtd order queues at its own price; what
is left of an ioc or market order is canceled. A fok order first looks whether the whole of it would
trade, and if not is canceled whole. A post_only order that would meet anyone is refused.

*An accepted order* has an order_id, from one counter, whatever becomes of it; a refused one has
none, and leaves no trace of any kind.

*An iceberg* shows a slice, at most its display_quantity, and trades with no more at a time. When
the slice is used up the next one queues behind the others at its price, in the midst of a sweep
too. Where totals of levels are told, slices are what counts; anywhere else all of the order.

*Protection* ends a market order's sweep before the first maker that is further from the best price
at its arrival than a percentage, in whole ticks. *quote_quantity* is money: at each maker it is
worth so many lots, whole ones; where it is worth none the order has what it asked for.

*Self-trade prevention* is the taker's, or the instrument's where it has none. Where the next maker
is of the same trader (same account, or same group) they do not trade: one or both are canceled, or
both shrink by what the smaller one has, hidden lots too. For the limit of fills that is one, too.

*Stops* wait outside the queues. After each command the prices of its trades are shown to them one
after the other, of each taker's the first and the last: references of trailing stops follow (which
gives them new priorities), then who is due comes in as a taker, one by one: the ones that waited
for a rise first, nearest stop first, then by priority. The prices of their trades go to the end of
the line, the agenda. A call runs a limited number, and moves a limited number of references. Any
taker that has more to trade than the call may trades as much as it may, is paused outside the
queues, and goes on first in the next one, within the protection that it had at first; fok and
quote_quantity are decided whole. The rest of the agenda is kept until the next call of an
instrument that trades.

*An order list* is settled after each command and after each triggered order, event by event: of an
oco (and of what an entry arms) whoever trades, triggers, is canceled or expires ends the other
orders, the entry too. The two of an oco have one quantity: an amend of the one changes both. What
an entry fills cannot be amended. What self-trade prevention takes of one of a pair it takes of
both. Where one is replaced, or amended so that it would trade, the others are gone before. Whoever
triggers does so before it comes in, and meets none of them; who cannot come in ends nobody. A
bracket's pair is armed with what its entry fills and grows with it; the second order of an oto is
armed when the first has ended, with all it filled. Arming stands on the agenda too, so that nobody
is shown a price from before; growing does not, so that all of what is filled is protected.

*States*: in an auction limit orders queue without trading; when it ends, the heads of both queues
trade at one price, that of the largest volume, then least surplus, then nearest the last price,
then lowest. The breaker looks at each trade before it becomes the last one; where it trips, the
status changes when the order that traded is done.

*Expiry*: before anything else a call that may change the book lets expire what is due, also a
limited number. Queries, define_instrument and begin_epoch expire nothing.

*Timers* come next. One that has run out cancels the orders of its account, or those placed with its
session, oldest first; then it is gone. A call carries out a limited number of timers, and cancels a
limited number of orders by them: one that is not done stays due, and cannot be set anew. Setting
one changes no book. An order takes a session only while that session has a timer.

*As long as more is due to expire or to be canceled* than a call could do, nobody trades: no order
is taken on or amended, nothing is triggered, reopened or uncrossed.

*Amending* keeps the order's id and terms but for price and quantity. `quantity` is the new total,
the filled part included, `remaining_quantity` what is to stay open. Where that is nothing the order
ends, as if canceled. Where the price stays and the
quantity shrinks the order keeps its priority. Otherwise it is taken out of its queue and comes in
again like a new order, with a new priority, and may trade. A waiting order goes on waiting, with
its priority unless its stop price changes.

*Replacing* takes an order out and lets a new one come in as if the old had never been there. Where
the new one is refused, the old one stands where it stood; unless the command goes on regardless:
then each of the two is done or refused for itself. The new one may have the old one's name.

*A mass quote* takes out all of an account's quotes and lets new ones come in, one by one, each
accepted or refused for itself. Their names are the account's as long as they are open, and no reply
is remembered under them.

*An order is closed* by its last report: a cancel, an expiry, or the trade that fills it, which then
tells the order's quantity and price. Closed orders and an account's own trades are told from the
stream's entries, the latest first, whole entries at a time.

*A call* is one command or a batch of them. All changes of a call are one `sequence`: one entry in
the event stream, whose topics tell what happened: reports to each account in the order they came
about, the trades, the levels whose totals differ from before the call. A call that changed nothing
takes no sequence. A command that changed nothing tells the sequence of the last change before it,
which may be one of its own call.

*A retry* is recognised by (account, client_order_id): the same content again gets the same reply
again, word for word, before anything else is looked at but the shape of its fields; other content
is refused. (The session is the connection's, and no content.) A cancel or amend that names its
*order* by client_order_id has no id of its own: there only the order's last amend or cancel is
recognised when repeated. validate_only is never repeated.

*Checks* come in the order: shape of the fields, retry, which order, valid_until_ms, status of the
instrument, what is still due (expiry, timers, triggered orders), prices, quantities and times
(where text that is no number is found out), the session, whether a stop would trigger at once,
price band, notional, open orders, post_only, number of fills, total of the level.

Numbers are Decimals, exact by construction. The time is `now_ms`, which stands still unless it is
set; every `timestamp_ms` here is 0, and a comparison ignores it. Every collection is searched from
its beginning.
"""

import copy
import decimal
import functools
import itertools
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

# Wide enough for 40 digits times 40 digits: no rounding ever happens.
decimal.getcontext().prec = 100

EXACT_MAX = 2**53 - 1
NUMBER_LENGTH_MAX = 40
FILLS_MAX = 10_000
IDS_SKIPPED = 1_000_000_000
MAKER_ACCOUNTS_MAX = 3500
BATCH_MAX = 256
CANCELED_MAX = 1000
QUOTES_MAX = 100
QUOTES_PER_CALL_MAX = 2000
REMAINING_COUNT_MAX = 10_000
EXPIRED_MAX = 1000
TRIGGERED_MAX = 1000
TRAILED_MAX = 5000
TIMERS_FIRED_MAX = 1000
CANCELED_BY_TIMERS_MAX = 1000
TIMERS_MAX = 10_000
TRAILING_STOPS_MAX = 1000
TIMERS_PER_ACCOUNT_MAX = 100
TRAILING_STOPS_PER_ACCOUNT_MAX = 100
DEPTH_MAX = 10_000
DURATION_MS_MIN, DURATION_MS_MAX = 1000, 86_400_000
CHECKSUM_DEPTH = 10
LEVEL3_ORDERS_MAX = 10_000
LEVEL3_CHECKSUM_ORDERS_MAX = 1000

ACCOUNT = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
DECIMAL_FIELDS = {
    *("price", "quantity", "remaining_quantity", "display_quantity", "quote_quantity"),
    *("stop_price", "trailing_offset", "protection"),
}
CLIENT_ORDER_ID = re.compile(r"[A-Za-z0-9_.@:/-]{1,64}")
ORDER_ID = re.compile(r"[1-9][0-9]{0,15}")
DECIMAL_TEXT = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")

Json = dict[str, Any]

SIDES = ("buy", "sell")
OPPOSITE = {"buy": "sell", "sell": "buy"}
STATUS_REJECTS = {"halted": "INSTRUMENT_HALTED", "cancel_only": "INSTRUMENT_CANCEL_ONLY"}

# order_type -> (the fields it needs of its own, those it may have).
ORDER_TYPES: dict[str, tuple[set[str], set[str]]] = {
    "limit": ({"price"}, {"display_quantity", "post_only"}),
    "market": (set(), {"protection", "quote_quantity"}),
    "stop": ({"stop_price"}, {"protection"}),
    "stop_limit": ({"stop_price", "price"}, set()),
    "take_profit": ({"stop_price"}, {"protection"}),
    "take_profit_limit": ({"stop_price", "price"}, set()),
    "trailing_stop": ({"trailing_offset"}, {"protection"}),
}
TYPE_FIELDS = {name for needs, may in ORDER_TYPES.values() for name in needs | may}
STOP_TYPES = tuple(ORDER_TYPES)[2:]
# Those that, selling, wait for a rise; the others sell into a fall.
TAKE_PROFIT_TYPES = ("take_profit", "take_profit_limit")
# The times in force with which an order may stay in the book.
RESTING = ("gtc", "gtd")

INTERVALS_MS = {"1m": 60_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "1d": 86_400_000}
CANDLES_MAX = 500

ENUMERATIONS = {
    "side": SIDES,
    "order_type": tuple(ORDER_TYPES),
    "time_in_force": ("gtc", "ioc", "fok", "gtd"),
    "post_only": ("true", "false"),
    "validate_only": ("true", "false"),
    "self_trade_prevention": ("none", "cancel_taker", "cancel_maker", "cancel_both", "decrement"),
    "interval": tuple(INTERVALS_MS),
    "list_type": ("oco", "oto", "bracket"),
    "status": ("trading", "halted", "cancel_only", "post_only", "auction"),
    "breaker_status": ("halted", "auction"),
    "on_failure": ("stop", "continue"),
}
PATTERNS = {
    "account": ACCOUNT,
    "stp_group": ACCOUNT,
    "session": ACCOUNT,
    "client_order_id": CLIENT_ORDER_ID,
    "order_id": ORDER_ID,
    "cancel_order_id": ORDER_ID,
    "cancel_client_order_id": CLIENT_ORDER_ID,
}
# Whole numbers and the largest value of each.
COUNTS = {
    "limit": 1000,
    "depth": DEPTH_MAX,
    "after": EXACT_MAX,
    "before": EXACT_MAX,
    "expire_time_ms": EXACT_MAX,
    "valid_until_ms": EXACT_MAX,
    "open_orders_max": 10_000_000,
    "iceberg_parts_max": 10_000,
    "timeout_ms": DURATION_MS_MAX,
    "window_ms": DURATION_MS_MAX,
    "breaker_duration_ms": DURATION_MS_MAX,
    "events_length_max": 10_000_000,
    "trades_length_max": 10_000_000,
    "book_length_max": 10_000_000,
}
# Values of such fields beside.
ZEROS = {
    *(("depth", "full"), ("open_orders_max", "0"), ("breaker_duration_ms", "0")),
    ("timeout_ms", "0"),
}
PERCENT_DECIMALS_MAX = 4
PERCENT_MAX = 100
OFFSET_PERCENT_MAX = 50

# function -> (fields it must have, fields it may have).
FIELDS = {
    "define_instrument": (
        (),
        (
            "tick_size", "lot_size", "min_quantity", "max_quantity", "status",
            "self_trade_prevention", "protection", "price_band", "min_notional", "open_orders_max",
            "iceberg_parts_max", "limit_percent", "window_ms", "breaker_status",
            "breaker_duration_ms", "events_length_max", "trades_length_max", "book_length_max",
        ),
    ),
    "place_order": (
        ("account", "side", "order_type"),
        (
            "quantity", "quote_quantity", "price", "stop_price", "trailing_offset", "time_in_force",
            "expire_time_ms", "display_quantity", "post_only", "self_trade_prevention", "stp_group",
            "protection", "session", "validate_only", "valid_until_ms", "client_order_id",
        ),
    ),
    "place_order_list": (
        ("account", "list_type", "orders"), ("client_order_id", "session", "valid_until_ms"),
    ),
    "an order of a list": (
        ("side", "order_type"),
        (
            "quantity", "price", "stop_price", "trailing_offset", "time_in_force",
            "expire_time_ms", "display_quantity", "post_only", "self_trade_prevention", "stp_group",
            "protection", "client_order_id",
        ),
    ),
    "cancel_order": ((), ("order_id", "account", "client_order_id", "valid_until_ms")),
    "amend_order": (
        (),
        (
            "order_id", "account", "client_order_id", "price", "stop_price", "quantity",
            "remaining_quantity", "valid_until_ms",
        ),
    ),
    "cancel_all_orders": (("account",), ("session", "side", "valid_until_ms")),
    "mass_quote": (
        ("account", "quotes"),
        ("post_only", "self_trade_prevention", "stp_group", "session", "valid_until_ms"),
    ),
    "cancel_all_after": (("account", "timeout_ms"), ("session", "valid_until_ms")),
    "tick": ((), ()),
    "begin_epoch": (("run_id",), ()),
    "set_stp_group": (("account",), ("stp_group",)),
    "get_stp_group": (("account",), ()),
    "get_book": ((), ("depth",)),
    "get_level3": ((), ("depth",)),
    "get_order": ((), ("order_id", "account", "client_order_id")),
    "get_open_orders": (("account",), ("after", "limit")),
    "get_trades": ((), ("limit",)),
    "get_closed_orders": (("account",), ("before", "limit")),
    "get_own_trades": (("account",), ("before", "limit")),
    "get_instrument": ((), ()),
    "get_candles": (("interval",), ("limit", "before")),
    "get_ticker": ((), ()),
    "get_auction": ((), ()),
    "verify_book": ((), ()),
}  # fmt: skip
# Replacing takes every field of a new order, and has some of its own.
FIELDS["replace_order"] = (
    FIELDS["place_order"][0],
    (
        *(name for name in FIELDS["place_order"][1] if name != "validate_only"),
        *("cancel_order_id", "cancel_client_order_id", "on_failure"),
    ),
)
QUOTE_FIELDS = ({"side", "price", "quantity"}, {"client_order_id"})
BATCH_METHODS = (
    *("place_order", "place_order_list", "cancel_order", "amend_order", "cancel_all_orders"),
    *("replace_order", "mass_quote", "cancel_all_after"),
)
# The functions that first do what is due; execute does, too.
DOES_WHAT_IS_DUE = (*BATCH_METHODS, "tick")


class RejectedError(Exception):
    """The command is refused; nothing has changed."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Order:
    """One accepted order; price is None where it has none of its own."""

    order_id: int
    account: str
    client_order_id: str | None
    side: str
    order_type: str
    time_in_force: str
    post_only: bool
    quantity: Decimal
    price: Decimal | None
    remaining: Decimal
    priority: int
    expire_time_ms: int | None = None
    display_quantity: Decimal | None = None
    quote_quantity: Decimal | None = None
    stop_price: Decimal | None = None
    trailing_offset: str | None = None
    self_trade_prevention: str | None = None
    stp_group: str | None = None
    # Of an iceberg that shows a later slice than its first.
    displayed_order_id: int | None = None
    session: str | None = None
    protection: Decimal | None = None
    # Whether it came by a mass quote.
    quote: bool = False
    # What an iceberg shows of itself while it is in a queue.
    slice: Decimal = Decimal(0)
    # Whether the book ends before the quote_quantity does.
    is_unspent: bool = False
    # What is left of the quote_quantity.
    money: Decimal = Decimal(0)
    # A stop that has not come in as a taker.
    waiting: bool = False
    # A trailing stop whose reference has moved in this call.
    trailed: bool = False
    # Of an order list, and there not armed yet.
    order_list_id: int | None = None
    dormant: bool = False
    # Of a trailing stop: the best price since it was placed.
    reference: Decimal = Decimal(0)
    # One that has more to trade than the call before could do.
    paused: bool = False
    # Where the band of a protected order ends, as it stood when it first traded.
    protection_price: Decimal | None = None

    @property
    def displayed_id(self) -> str:
        """The order_id under which everybody sees it."""
        return str(self.displayed_order_id or self.order_id)

    @property
    def filled(self) -> Decimal:
        return self.quantity - self.remaining

    @property
    def status(self) -> str:
        """Of an order that was not canceled."""
        if self.remaining == 0 and not self.is_unspent:
            return "filled"
        return "partially_filled" if self.filled else "open"

    def identity(self) -> Json:
        """What it is called, as its owner is told."""
        names: Json = {"order_id": str(self.order_id)}
        if self.client_order_id is not None:
            names["client_order_id"] = self.client_order_id
        if self.displayed_order_id is not None:
            names["displayed_order_id"] = str(self.displayed_order_id)
        return names

    def terms(self) -> Json:
        terms = self.identity()
        terms |= {
            "side": self.side,
            "order_type": self.order_type,
            "time_in_force": self.time_in_force,
        }
        if self.post_only:
            terms["post_only"] = True
        if self.quote:
            terms["quote"] = True
        terms["quantity"] = text(self.quantity)
        for name in ("price", "display_quantity", "quote_quantity", "stop_price", "protection"):
            if (number := getattr(self, name)) is not None:
                terms[name] = text(number)
        for name in (
            *("expire_time_ms", "trailing_offset", "self_trade_prevention", "stp_group"),
            "session",
        ):
            if (value := getattr(self, name)) is not None:
                terms[name] = value
        if self.order_list_id is not None:
            terms["order_list_id"] = str(self.order_list_id)
        return terms

    def waits_for(self) -> Json:
        """What stands beside the terms of one that waits."""
        if self.dormant:
            return {"armed": False}
        if self.waiting and self.trailing_offset is not None:
            return {"reference_price": text(self.reference)}
        return {}

    @property
    def open(self) -> bool:
        """Whether it stands in a queue of its side."""
        return not self.waiting and not self.dormant and not self.paused

    @property
    def shown(self) -> Decimal:
        return self.remaining if self.display_quantity is None else self.slice

    def fresh_slice(self, remaining: Decimal) -> Decimal:
        """What it would show of so much as it queues anew."""
        return remaining if self.display_quantity is None else min(self.display_quantity, remaining)

    def give(self, quantity: Decimal) -> bool:
        """Trades so much, slice by slice. Whether it shows a later slice then."""
        left, later = quantity, False
        self.remaining -= quantity
        while self.display_quantity is not None and left >= self.slice > 0:
            left -= self.slice
            self.slice = min(self.display_quantity, self.remaining + left)
            later = True
        self.slice -= left
        return later

    def shrink(self, quantity: Decimal) -> None:
        """Loses some of its remaining quantity, in its place."""
        self.remaining -= quantity
        self.slice = min(self.slice, self.remaining)

    @property
    def rests(self) -> bool:
        return self.time_in_force in RESTING

    @property
    def waits_for_rise(self) -> bool:
        return self.side == ("sell" if self.order_type in TAKE_PROFIT_TYPES else "buy")

    def crosses(self, price: Decimal) -> bool:
        """Whether this order, as a taker, accepts a maker's price."""
        if self.price is None:
            return True
        return price <= self.price if self.side == "buy" else price >= self.price


@dataclass
class Arming:
    """An order list whose legs are to be armed, and with how much in all."""

    list_id: int
    filled: Decimal


@dataclass
class Paused:
    """An order that is to go on."""

    order_id: int


@dataclass
class OrderList:
    """Orders that hang together; how much those of a bracket were armed with."""

    list_type: str
    order_ids: list[int]
    armed: Decimal = Decimal(0)


@dataclass
class Call:
    """What one call has changed so far, of which its stream entry is made at the end."""

    levels_before: dict[str, dict[Decimal, Decimal]]
    sequence_before: int
    changed: bool = False
    # Trades and self-trades that were prevented.
    fills: int = 0
    expired: int = 0
    triggered: int = 0
    trailed: int = 0
    # Whether the next on the agenda is more than is left to this call.
    is_spent: bool = False
    # Whether more is due to expire than one call may do.
    expiring: bool = False
    # Whether the instrument's rules or status are others; whether a trade has tripped the breaker.
    is_redefined: bool = False
    is_tripped: bool = False
    # By cancel_all_orders, which has a limit to the call.
    canceled: int = 0
    # Quotes asked for, which have a limit to the call, too.
    quotes: int = 0
    # By timers; and whether more of them have run out than one call may carry out.
    canceled_by_timers: int = 0
    canceling: bool = False
    trades: list[Json] = field(default_factory=list)
    reports: dict[str, list[Json]] = field(default_factory=dict)
    topics: Json = field(default_factory=dict)
    # Whatever must tell the sequence of this call, which is known at its end.
    stamped: list[Json] = field(default_factory=list)

    def report(self, account: str, event: str, **content: Any) -> None:
        self.changed = True
        self.reports.setdefault(account, []).append({"event": event, **content, "timestamp_ms": 0})


@dataclass
class Outcome:
    """What came of a taker: its fills, and why it ended."""

    fills: list[Json] = field(default_factory=list)
    filled: Decimal = Decimal(0)
    # Of a trial: what remains at the end.
    left: Decimal = Decimal(0)
    # "filled", or the reason why what is left is canceled, where it cannot rest.
    end: str = "ioc"
    # Whether there is more to trade than the call may do.
    is_cut: bool = False


@dataclass
class Remembered:
    content: Any
    reply: Json


def text(number: Decimal) -> str:
    """Decimal text without trailing zeros."""
    plain = format(number, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def decimals(number: Decimal) -> int:
    return len(text(number).partition(".")[2])


class ReferenceBook:
    """One book. `call` takes what FCALL takes; `entries` is what its stream must hold."""

    def __init__(self, symbol: str, segment: str = "main") -> None:
        self.symbol = symbol
        self.segment = segment
        self.instrument: Json = {}
        self.orders: list[Order] = []
        self.trades: list[Json] = []
        self.entries: list[tuple[int, Json]] = []
        self.sequence = 0
        # An epoch is made of the time and of the server: here it is 0, as every time is.
        self.epoch = 0
        self.run_id: str | None = None
        self.last_order_id = 0
        self.last_trade_id = 0
        self.last_priority = 0
        self.last_price: Decimal | None = None
        self.now_ms = 0
        # What trades have led to: prices to be shown to those who wait, and lists to be armed.
        self.agenda: list[Decimal | Arming | Paused] = []
        # Order lists by the order_id of their first order, and what has become of their orders.
        self.lists: dict[int, OrderList] = {}
        self.notes: list[tuple[Order, str, Decimal]] = []
        # When each trade was, its price and quantity.
        self.prints: list[tuple[int, Decimal, Decimal]] = []
        # An auction that is ending; the breaker's reference, its window, and when it reopens.
        self.uncrossing = False
        self.reference_price: Decimal | None = None
        self.window_start_ms = 0
        self.reopen_ms = 0
        # (account, session or None) -> when their orders are to be canceled.
        self.timers: dict[tuple[str, str | None], int] = {}
        # (account, client_order_id) -> the command that had this id of its own.
        self.remembered: dict[tuple[str, str], Remembered] = {}
        # account -> the group that an operator has put it into.
        self.stp_groups: dict[str, str] = {}
        # order_id -> the order's last amend or cancel.
        self.last_change: dict[int, Remembered] = {}
        # (account, client_order_id) -> the order placed under that name last.
        self.named: dict[tuple[str, str], int] = {}

    # ---- the doors

    def call(self, function: str, *arguments: str) -> Json:
        """FCALL of any function but execute, publish_book and library_version."""
        call = self._begin()
        if function in DOES_WHAT_IS_DUE:
            self._do_what_is_due(call)
        return self._finish(call, [self._guarded(call, function, lambda: pairs(arguments))])[0]

    def execute(self, commands: Sequence[Any]) -> list[Json] | Json:
        """FCALL execute; the commands are decoded JSON values."""
        if not commands:
            return rejected("MALFORMED_COMMAND", {})
        if len(commands) > BATCH_MAX:
            return rejected("BATCH_TOO_LARGE", {})
        call = self._begin()
        self._do_what_is_due(call)
        return self._finish(call, [self._run_batched(call, command) for command in commands])

    def _run_batched(self, call: Call, command: Any) -> Json:
        if not isinstance(command, dict) or not isinstance(command.get("method"), str):
            return rejected("MALFORMED_COMMAND", {})
        method = command["method"]
        if method not in BATCH_METHODS:
            return rejected("UNKNOWN_METHOD", command)
        fields = {name: value for name, value in command.items() if name != "method"}
        return self._guarded(call, method, lambda: texts(fields), fields)

    def _guarded(
        self,
        call: Call,
        function: str,
        read_fields: Callable[[], dict[str, str]],
        raw: Mapping[str, Any] | None = None,
    ) -> Json:
        fields: Mapping[str, Any] = raw or {}
        try:
            fields = read_fields()
            check_shape(function, fields)
            if not self.instrument and function != "define_instrument":
                raise RejectedError("UNKNOWN_SYMBOL")
            command: Callable[[Call, Mapping[str, str]], Json] = getattr(self, f"_{function}")
            reply = command(call, fields)
            if function in DOES_WHAT_IS_DUE:
                self._settle_breaker(call)
                self._cascade(call)
            return reply
        except RejectedError as error:
            return rejected(error.code, fields)

    def _begin(self) -> Call:
        if not self.lists and not any(order.waiting or order.paused for order in self.orders):
            self.agenda.clear()
        return Call({side: self.levels(side) for side in SIDES}, self.sequence)

    def _finish(self, call: Call, replies: list[Json]) -> list[Json]:
        self._report_trailed(call)
        if call.is_redefined:
            call.topics["instruments"] = {"instrument": self._described_at_the_end(call)}
        if call.changed:
            self.sequence += 1
            for stamped in call.stamped:
                stamped["sequence"] = self.sequence
            self.entries.append((self.sequence, self._entry(call)))
        return copy.deepcopy(replies)

    def _entry(self, call: Call) -> Json:
        topics = {name: self._message(name, **content) for name, content in call.topics.items()}
        if call.trades:
            topics["trades"] = self._message("trades", trades=call.trades)
        changed = {side: self._changed_levels(call, side) for side in SIDES}
        if any(changed.values()):
            topics["level2"] = self._message("level2", bids=changed["buy"], asks=changed["sell"])
        for account, reports in call.reports.items():
            topics[f"orders:{account}"] = self._message("orders", account=account, orders=reports)
        return copy.deepcopy(topics)

    def _message(self, channel: str, **content: Any) -> Json:
        return {
            "channel": channel,
            "symbol": self.symbol,
            "type": "update",
            "sequence": self.sequence,
            "epoch": self.epoch,
            **content,
        }

    def _changed_levels(self, call: Call, side: str) -> list[list[str]]:
        before, after = call.levels_before[side], self.levels(side)
        changed = [
            price
            for price in {**before, **after}
            if before.get(price, Decimal(0)) != after.get(price, Decimal(0))
        ]
        return [
            [text(price), text(after.get(price, Decimal(0)))]
            for price in sorted(changed, reverse=side == "buy")
        ]

    # ---- instrument and epoch

    def _define_instrument(self, call: Call, fields: Mapping[str, str]) -> Json:
        new = dict(self.instrument) if self.instrument else self._first_definition(fields)
        before = self.instrument.get("status")
        for name, value in fields.items():
            new[name] = new_rule(name, value)
        self._check_steps(new)
        notional_number(text(new["min_notional"]), new)
        set_default_limits(new)
        check_limits(new)
        clears_timer = self.reopen_ms > 0 and "status" in fields
        if new != self.instrument or clears_timer:
            self._check_new_status(before, new["status"])
            self.instrument = new
            self.reopen_ms = 0 if "status" in fields else self.reopen_ms
            self._change_status(call, before)
        return self._described_at_the_end(call)

    def _described_at_the_end(self, call: Call) -> Json:
        reply = self._get_instrument(call, {})
        if call.changed:
            call.stamped.append(reply)
        return reply

    def _check_new_status(self, before: str | None, status: str) -> None:
        if before is None or before == status:
            return
        if self.uncrossing:
            raise RejectedError("UNCROSSING")
        if before == "auction" and status != "trading" and self._is_crossed():
            raise RejectedError("AUCTION_CROSSED")

    def _change_status(self, call: Call, before: str | None) -> None:
        """What an operator's change of status, if it is one, brings with it."""
        call.changed = call.is_redefined = True
        status = self.instrument["status"]
        if before not in {None, status}:
            self.reference_price = None
        if before == "auction" and status == "trading":
            self.instrument["status"] = "auction"
            self.uncrossing = True
            self._do_what_is_due(call)

    # ---- trading states

    def _carry_on(self, call: Call) -> None:
        """Reopens what the breaker has closed for a while."""
        if call.expiring or call.canceling:
            return
        if self.reopen_ms and self.now_ms >= self.reopen_ms:
            self.reopen_ms = 0
            if self.instrument["status"] == "auction":
                self.uncrossing = True
            else:
                self.instrument["status"] = "trading"
                call.changed = call.is_redefined = True
        if self.uncrossing:
            self._uncross(call)

    def _is_crossed(self) -> bool:
        bid, ask = self._best_price("buy"), self._best_price("sell")
        return bid is not None and ask is not None and bid >= ask

    def _auction_outcome(self) -> tuple[Decimal, Decimal, Decimal] | None:
        """Price, volume and buy surplus of an uncross, all that is hidden counted."""
        if not self._is_crossed():
            return None
        bids, asks = self.queue("buy"), self.queue("sell")

        def volume_at(price: Decimal) -> tuple[Decimal, Decimal]:
            demand = sum((o.remaining for o in bids if price_of(o) >= price), Decimal(0))
            supply = sum((o.remaining for o in asks if price_of(o) <= price), Decimal(0))
            return min(demand, supply), demand - supply

        outcomes = {price: volume_at(price) for price in map(price_of, bids + asks)}
        best = min((-volume, abs(surplus)) for volume, surplus in outcomes.values())
        tied = {
            price: surplus
            for price, (volume, surplus) in outcomes.items()
            if (-volume, abs(surplus)) == best
        }
        # Market pressure: the highest price with buyers left over, the lowest with sellers.
        of_buyers = [price for price, surplus in tied.items() if surplus > 0]
        of_sellers = [price for price, surplus in tied.items() if surplus < 0]
        left = [*sorted(of_buyers)[-1:], *sorted(of_sellers)[:1]] or [*tied]
        last_price = self.last_price

        def away(price: Decimal) -> Decimal:
            return abs(price - last_price) if last_price is not None else Decimal(0)

        chosen = min(left, key=lambda price: (away(price), price))
        return chosen, *outcomes[chosen]

    def _uncross(self, call: Call) -> None:
        while (outcome := self._auction_outcome()) is not None:
            price = outcome[0]
            while self._is_crossed():
                bid, ask = self.queue("buy")[0], self.queue("sell")[0]
                if price_of(bid) < price or price_of(ask) > price:
                    break
                self._trade_at(call, bid, ask, price)
            if self._waiting():
                self.agenda.append(price)
        self.uncrossing = False
        self.instrument["status"] = "trading"
        call.changed = call.is_redefined = True

    def _trade_at(self, call: Call, bid: Order, ask: Order, price: Decimal) -> None:
        """Both are in the book: nobody is the aggressor; the younger is called the taker."""
        maker, taker = sorted((bid, ask), key=lambda order: order.order_id)
        quantity = min(bid.remaining, ask.remaining)
        self.last_trade_id += 1
        self.last_price = price
        fill = {
            "trade_id": str(self.last_trade_id),
            "price": text(price),
            "quantity": text(quantity),
            "auction": True,
        }
        ids, refreshed = displayed_ids(maker, taker), []
        for order in (taker, maker):
            self._note(order, "traded")
            if order.give(quantity) and order.remaining:
                refreshed.append(order)
            if order.remaining == 0:
                self._end(order)
        self._report_trade(call, taker, "taker", fill)
        self._report_trade(call, maker, "maker", fill)
        for order in refreshed:
            self._refresh(call, order)
        self._tell_trade(call, fill, taker, ids)

    def _show_to_breaker(self, call: Call, price: Decimal) -> None:
        percent = self.instrument["limit_percent"]
        if not percent:
            return
        window_ms = self.instrument["window_ms"]
        if self.reference_price is None or self.now_ms - self.window_start_ms > window_ms:
            self.reference_price = price if self.last_price is None else self.last_price
            self.window_start_ms = self.now_ms
        width = self.reference_price * percent / 100
        call.is_tripped = call.is_tripped or abs(price - self.reference_price) > width

    def _settle_breaker(self, call: Call) -> None:
        if not call.is_tripped or not self._is_trading():
            return
        call.is_tripped = False
        self.instrument["status"] = self.instrument["breaker_status"]
        duration_ms = self.instrument["breaker_duration_ms"]
        self.reopen_ms = self.now_ms + duration_ms if duration_ms else 0
        self.reference_price = None
        call.changed = call.is_redefined = True

    def _get_auction(self, _: Call, __: Mapping[str, str]) -> Json:
        if self.instrument["status"] != "auction":
            raise RejectedError("NO_AUCTION")
        reply: Json = {"symbol": self.symbol, "status": "auction"}
        if (outcome := self._auction_outcome()) is not None:
            price, volume, surplus = outcome
            reply |= {"indicative_price": text(price), "indicative_quantity": text(volume)}
            if surplus:
                reply["imbalance_side"] = "buy" if surplus > 0 else "sell"
                reply["imbalance_quantity"] = text(abs(surplus))
        return {**reply, "sequence": self.sequence, "epoch": self.epoch}

    def _check_steps(self, new: Json) -> None:
        for name in ("tick_size", "lot_size"):
            if new[name] <= 0:
                raise RejectedError("INVALID_NUMBER")
            if self.orders and new[name] != self.instrument[name]:
                raise RejectedError("INSTRUMENT_IN_USE")

    @staticmethod
    def _first_definition(fields: Mapping[str, str]) -> Json:
        if "tick_size" not in fields or "lot_size" not in fields:
            raise RejectedError("MISSING_FIELD")
        return {
            "status": "trading",
            "self_trade_prevention": "none",
            "protection": Decimal(0),
            "price_band": Decimal(0),
            "min_notional": Decimal(0),
            "open_orders_max": 0,
            "iceberg_parts_max": 1000,
            "limit_percent": Decimal(0),
            "window_ms": 60_000,
            "breaker_status": "halted",
            "breaker_duration_ms": 0,
            "events_length_max": 100_000,
            "trades_length_max": 100_000,
            "book_length_max": 1000,
        }

    def _begin_epoch(self, call: Call, fields: Mapping[str, str]) -> Json:
        reply = {"epoch": self.epoch, "sequence": self.sequence}
        if fields["run_id"] != self.run_id:
            self.run_id = fields["run_id"]
            # What was lost with the end of a history is never numbered again.
            self.last_order_id += IDS_SKIPPED
            self.last_trade_id += IDS_SKIPPED
            self.last_priority += IDS_SKIPPED
            call.changed = True
            call.topics["epoch"] = {
                "last_order_id": str(self.last_order_id),
                "last_trade_id": str(self.last_trade_id),
            }
            call.stamped.append(reply)
        return reply

    def _set_stp_group(self, call: Call, fields: Mapping[str, str]) -> Json:
        self.stp_groups.pop(fields["account"], None)
        if "stp_group" in fields:
            self.stp_groups[fields["account"]] = fields["stp_group"]
        return self._get_stp_group(call, fields)

    def _get_stp_group(self, _: Call, fields: Mapping[str, str]) -> Json:
        account = fields["account"]
        group = {"stp_group": self.stp_groups[account]} if account in self.stp_groups else {}
        return {"account": account, "segment": self.segment, **group}

    # ---- what is due

    def _do_what_is_due(self, call: Call) -> None:
        self._expire(call)
        if self.instrument:
            self._fire_timers(call)
            self._carry_on(call)
            self._cascade(call)

    def _expire(self, call: Call) -> None:
        due = [
            (order.expire_time_ms, order.order_id, order)
            for order in self.orders
            if order.expire_time_ms is not None and order.expire_time_ms <= self.now_ms
        ]
        due.sort(key=lambda found: found[:2])
        call.expiring = len(due) > EXPIRED_MAX
        for _, _, order in due[:EXPIRED_MAX]:
            self._end(order)
            call.expired += 1
            remaining = text(order.remaining)
            call.report(order.account, "expired", **order.terms(), remaining_quantity=remaining)

    def _fire_timers(self, call: Call) -> None:
        due = [
            (time_ms, f"{account} {session or ''}".rstrip(), account, session)
            for (account, session), time_ms in self.timers.items()
            if time_ms <= self.now_ms
        ]
        due.sort(key=lambda found: found[:2])
        call.canceling = len(due) > TIMERS_FIRED_MAX
        for _, _, account, session in due[:TIMERS_FIRED_MAX]:
            reason = "cancel_all_after" if session is None else "disconnected"
            count = CANCELED_BY_TIMERS_MAX - call.canceled_by_timers
            whose = {"account": account, **({} if session is None else {"session": session})}
            canceled, left = self._cancel_open(call, whose, count, reason)
            call.canceled_by_timers += len(canceled)
            if left:
                call.canceling = True
                return
            del self.timers[account, session]

    def _cancel_open(
        self, call: Call, whose: Mapping[str, str], count: int, reason: str
    ) -> tuple[list[Order], list[Order]]:
        """Of the orders with these terms those that are canceled, the oldest, and those left."""
        orders = [
            order
            for order in sorted(self.orders, key=lambda order: order.order_id)
            if all(getattr(order, name) == value for name, value in whose.items())
        ]
        for order in orders[:count]:
            self._end(order)
            self._report_canceled(call, order, reason)
        return orders[:count], orders[count:]

    def _cascade(self, call: Call) -> None:
        """Runs what the latest trades trigger, and what that triggers, in turn."""
        self._settle_lists(call)
        while self.agenda and self._may_trigger(call):
            self._carry_out(call, self.agenda[0])
            self._settle_lists(call)
            self._settle_breaker(call)

    def _carry_out(self, call: Call, item: "Decimal | Arming | Paused") -> None:
        if isinstance(item, Paused):
            self.agenda.pop(0)
            for order in [one for one in self.orders if one.order_id == item.order_id]:
                self._resume(call, order)
            return
        if isinstance(item, Arming):
            self.agenda.pop(0)
            if not self._arm_list(call, item):
                self.agenda.insert(0, item)
                call.is_spent = True
            return
        if not self._show_to_trailing(call, item):
            call.is_spent = True
            return
        due = [order for order in self._waiting() if self._is_due(order, item)]
        if not due:
            self.agenda.pop(0)
            return
        self._trigger(call, min(due, key=self._place_in_line))

    def _trigger(self, call: Call, order: Order) -> None:
        if self._is_for_next_call(call, order):
            call.is_spent = True
            return
        planned = self._planned_alone(call, order)
        if planned is not None:
            self._end_others(call, order)
        self._run_triggered(call, order, planned)

    def _planned_alone(self, call: Call, order: Order) -> Outcome | None:
        try:
            return self._check_alone(call, order)
        except RejectedError:
            return None

    def _check_alone(self, call: Call, order: Order) -> Outcome:
        """The outcome of an order that waited, as if the entry of its list were gone."""
        everybody = self.orders
        entry_id = None if order.order_id == order.order_list_id else order.order_list_id
        found = self.lists.get(order.order_list_id or 0)
        if found is not None and found.list_type != "oco":
            self.orders = [one for one in everybody if one.order_id != entry_id]
        try:
            return self._check_match(call, order)
        finally:
            self.orders = everybody

    def _pause(self, call: Call, order: Order) -> None:
        """It has made as many trades as the call may, and goes on in the next one."""
        order.paused = True
        self.orders.append(order)
        self.agenda.insert(0, Paused(order.order_id))
        call.is_spent = True
        protection = {}
        if order.protection_price is not None:
            protection["protection_price"] = text(order.protection_price)
        self._report_place(call, order, "paused", **protection)

    def _resume(self, call: Call, order: Order) -> None:
        planned = self._planned_alone(call, order)
        order.paused = False
        self.last_priority += 1
        order.priority = self.last_priority
        self._report_place(call, order, "resumed")
        self._enter(call, order, planned)

    def _may_trigger(self, call: Call) -> bool:
        if call.expiring or call.canceling or call.is_spent or call.fills >= FILLS_MAX:
            return False
        return self._is_trading() and call.triggered < TRIGGERED_MAX

    def _is_for_next_call(self, call: Call, order: Order) -> bool:
        """Whether this call cannot carry out its trades only because of what it did before."""
        if not call.fills and not call.reports:
            return False
        try:
            self._check_alone(call, order)
        except RejectedError as error:
            return error.code == "TOO_MANY_FILLS"
        return False

    def _is_trading(self) -> bool:
        return bool(self.instrument["status"] == "trading")

    def _waiting(self) -> list[Order]:
        return [order for order in self.orders if order.waiting]

    def _show_to_trailing(self, call: Call, price: Decimal) -> bool:
        """Whether all that it concerns have followed."""
        for order in sorted(self._waiting(), key=lambda order: (order.side, order.priority)):
            best = (max if order.side == "sell" else min)(order.reference, price)
            if order.trailing_offset is not None and best != order.reference:
                if call.trailed == TRAILED_MAX or len(call.reports) >= MAKER_ACCOUNTS_MAX:
                    return False
                call.trailed += 1
                call.reports.setdefault(order.account, [])
                order.reference = best
                order.trailed = True
                self.last_priority += 1
                order.priority = self.last_priority
        return True

    def _report_trailed(self, call: Call) -> None:
        for order in sorted(self.orders, key=lambda order: order.order_id):
            if order.waiting and order.trailed:
                call.report(
                    order.account,
                    "trailed",
                    **order.terms(),
                    remaining_quantity=text(order.remaining),
                    priority=order.priority,
                    reference_price=text(order.reference),
                )
            order.trailed = False

    def _is_due(self, order: Order, price: Decimal) -> bool:
        stop_price = self._stop_price(order)
        return price >= stop_price if order.waits_for_rise else price <= stop_price

    def _place_in_line(self, order: Order) -> tuple[bool, Decimal, int]:
        """Rising ones first, of them the lowest; of the falling ones the highest."""
        stop_price = self._stop_price(order)
        if order.waits_for_rise:
            return (False, stop_price, order.priority)
        return (True, -stop_price, order.priority)

    def _stop_price(self, order: Order) -> Decimal:
        if order.trailing_offset is None:
            assert order.stop_price is not None, "only stops wait"
            return order.stop_price
        if order.trailing_offset.endswith("%"):
            percent = Decimal(order.trailing_offset[:-1])
            tick: Decimal = self.instrument["tick_size"]
            offset = max(self._share(order.reference, percent), tick)
        else:
            offset = Decimal(order.trailing_offset)
        return order.reference + (offset if order.side == "buy" else -offset)

    def _share(self, price: Decimal, percent: Decimal) -> Decimal:
        """So many percent of a price, in whole ticks."""
        tick: Decimal = self.instrument["tick_size"]
        return price * percent // (100 * tick) * tick

    def _run_triggered(self, call: Call, order: Order, planned: Outcome | None) -> None:
        call.triggered += 1
        order.waiting = False
        self.last_priority += 1
        order.priority = self.last_priority
        call.report(
            order.account,
            "triggered",
            **order.terms(),
            remaining_quantity=text(order.remaining),
            priority=order.priority,
        )
        self._enter(call, order, planned)

    def _end_others(self, call: Call, order: Order) -> None:
        """Before an order of a list triggers or trades: it meets none of the others."""
        self._note(order, "triggered")
        self._settle_lists(call)

    def _enter(self, call: Call, order: Order, planned: Outcome | None) -> None:
        """What waited comes in as a taker, where it can."""
        self._leave(order)
        if planned is None:
            self._note(order, "failed")
            self._report_canceled(call, order, "too_large")
        else:
            self._match(call, order, planned)

    def _tick(self, call: Call, _: Mapping[str, str]) -> Json:
        reply = {
            "expired_count": call.expired,
            "canceled_count": call.canceled_by_timers,
            "triggered_count": call.triggered,
            "pending": (
                call.expiring
                or call.canceling
                or self.uncrossing
                or (bool(self.agenda) and self._is_trading())
            ),
        }
        return self._with_latest_sequence(call, reply)

    # ---- placing

    def _place_order(self, call: Call, fields: Mapping[str, str]) -> Json:
        content = ("place_order", normal(fields))
        if (remembered := self._recall(fields, content)) is not None:
            return remembered
        self._check_taken_name(fields)
        self._check_in_time(fields)
        order, planned = self._checked_order(call, fields)
        if fields.get("validate_only") == "true":
            fill_quantity = text(self._shown_fills(order, planned))
            reply = {"status": "valid", "fill_quantity": fill_quantity, "timestamp_ms": 0}
            return self._with_latest_sequence(call, reply)
        reply = self._take_on(call, order, planned)
        self._remember(fields, content, reply)
        return reply

    def _shown_fills(self, order: Order, planned: Outcome) -> Decimal:
        """How much an order would fill of what everybody can see: slices that are hidden yet have
        ids that no order has, or are one fill with the slice that is shown."""
        shown = {one.displayed_id: one.shown for one in self.orders}
        fills = [
            min(Decimal(fill["quantity"]), shown.get(fill["maker_order_id"], Decimal(0)))
            for fill in planned.fills
        ]
        total = sum(fills, Decimal(0))
        return Decimal(0) if order.time_in_force == "fok" and total < order.quantity else total

    def _checked_order(self, call: Call, fields: Mapping[str, str]) -> tuple[Order, Outcome]:
        self._check_takes_orders(call)
        return self._examined_order(call, fields)

    def _examined_order(self, call: Call, fields: Mapping[str, str]) -> tuple[Order, Outcome]:
        """The new order and what is to be expected of it."""
        self._check_kind(fields)
        order = self._new_order(fields)
        self._check_rules(order)
        return order, Outcome() if order.waiting else self._check_match(call, order)

    def _take_on(self, call: Call, order: Order, planned: Outcome) -> Json:
        self._admit(call, order, planned)
        if order.client_order_id is not None:
            self.named[order.account, order.client_order_id] = order.order_id
        if order.waiting:
            self.orders.append(order)
            return self._order_reply(call, order, "open", [])
        return self._match(call, order, planned)

    def _admit(self, call: Call, order: Order, planned: Outcome) -> None:
        self.last_priority += 1
        if not order.order_id:
            self.last_order_id += 1
            order.order_id = self.last_order_id
        order.priority = self.last_priority
        if order.quote_quantity is not None:
            order.quantity = order.remaining = planned.filled
            order.is_unspent = planned.end != "filled"
        place = {"priority": order.priority, **order.waits_for()}
        call.report(order.account, "accepted", **order.terms(), **place)

    def _new_order(self, fields: Mapping[str, str]) -> Order:
        order = Order(
            order_id=0,
            account=fields["account"],
            client_order_id=fields.get("client_order_id"),
            side=fields["side"],
            order_type=fields["order_type"],
            time_in_force=time_in_force(fields),
            post_only=fields.get("post_only") == "true",
            quantity=Decimal(0),
            price=None,
            remaining=Decimal(0),
            priority=0,
            trailing_offset=fields.get("trailing_offset"),
            self_trade_prevention=fields.get("self_trade_prevention"),
            stp_group=fields.get("stp_group"),
            session=fields.get("session"),
            protection=Decimal(fields["protection"]) if "protection" in fields else None,
            waiting=fields["order_type"] in STOP_TYPES,
        )
        self._set_numbers(order, fields)
        if order.session is not None and (order.account, order.session) not in self.timers:
            raise RejectedError("SESSION_NOT_ARMED")
        if order.stp_group not in {None, self.stp_groups.get(order.account)}:
            raise RejectedError("NOT_IN_STP_GROUP")
        return order

    def _set_numbers(self, order: Order, fields: Mapping[str, str]) -> None:
        """In the order in which they are checked."""
        if "price" in fields:
            order.price = self._checked_price(fields["price"])
        if "stop_price" in fields:
            order.stop_price = self._checked_price(fields["stop_price"])
        if order.trailing_offset is not None and not order.trailing_offset.endswith("%"):
            self._checked_price(order.trailing_offset)
        if "quote_quantity" in fields:
            order.quote_quantity = notional_number(fields["quote_quantity"], self.instrument)
            order.money = order.quote_quantity
            if order.money == 0:
                raise RejectedError("QUANTITY_TOO_SMALL")
        else:
            order.quantity = order.remaining = self._checked_quantity(fields["quantity"])
        if "display_quantity" in fields:
            order.display_quantity = self._checked_lots(fields["display_quantity"])
            least = max(self.instrument["min_quantity"], self.instrument["lot_size"])
            if not least <= order.display_quantity <= order.quantity:
                raise RejectedError("INVALID_DISPLAY_QUANTITY")
            self._check_parts(order, Decimal(0))
        if "expire_time_ms" in fields:
            order.expire_time_ms = int(fields["expire_time_ms"])
            if order.expire_time_ms <= self.now_ms:
                raise RejectedError("EXPIRE_TIME_PASSED")

    def _check_parts(self, order: Order, quantity_before: Decimal) -> None:
        """Whether an iceberg that is to be larger shows enough of itself at a time."""
        display = order.display_quantity
        if display is None or order.quantity <= quantity_before:
            return
        parts_max = self.instrument["iceberg_parts_max"]
        if display < self.instrument["min_quantity"] or order.quantity > display * parts_max:
            raise RejectedError("INVALID_DISPLAY_QUANTITY")

    def _checked_price(self, value: str) -> Decimal:
        tick = self.instrument["tick_size"]
        price = exact_number(value, tick)
        if price == 0:
            raise RejectedError("PRICE_NOT_POSITIVE")
        if price % tick:
            raise RejectedError("PRICE_OFF_TICK")
        return price

    def _checked_lots(self, value: str) -> Decimal:
        lot = self.instrument["lot_size"]
        quantity = exact_number(value, lot)
        if quantity % lot:
            raise RejectedError("QUANTITY_OFF_LOT")
        return quantity

    def _checked_quantity(self, value: str) -> Decimal:
        quantity = self._checked_lots(value)
        if quantity < self.instrument["min_quantity"]:
            raise RejectedError("QUANTITY_TOO_SMALL")
        if quantity > self.instrument["max_quantity"]:
            raise RejectedError("QUANTITY_TOO_LARGE")
        return quantity

    # ---- order lists

    def _place_order_list(self, call: Call, fields: Mapping[str, str]) -> Json:
        members = read_list(fields)
        told = {name: value for name, value in fields.items() if name != "orders"}
        content = ("place_order_list", normal(told), [normal(member) for member in members])
        if (remembered := self._recall(fields, content)) is not None:
            return remembered
        self._check_names(fields, members)
        self._check_in_time(fields)
        self._check_takes_orders(call)
        staying = [member for member in members if can_stay_open(member)]
        self._check_open_orders(fields["account"], len(staying))
        is_oco = fields["list_type"] == "oco"
        acting = members if is_oco else members[:1]
        dormant = [] if is_oco else members[1:]
        checked = [self._check_acting(call, is_oco, member) for member in acting]
        legs = [self._check_dormant(member) for member in dormant]
        if is_oco and checked[0][0].quantity != checked[1][0].quantity:
            raise RejectedError("INVALID_ORDER_LIST")
        reply = self._take_on_list(call, fields["list_type"], checked, legs)
        self._remember(fields, content, reply)
        return reply

    def _take_on_list(
        self,
        call: Call,
        list_type: str,
        checked: list[tuple[Order, Outcome]],
        legs: list[Order],
    ) -> Json:
        list_id = self.last_order_id + 1
        count = len(checked) + len(legs)
        self.lists[list_id] = OrderList(list_type, list(range(list_id, list_id + count)))
        self.last_order_id += count
        replies = []
        taken = [*checked, *((leg, Outcome()) for leg in legs)]
        for order_id, (order, planned) in enumerate(taken, list_id):
            order.order_id, order.order_list_id = order_id, list_id
            self._admit(call, order, planned)
            if order.client_order_id is not None:
                self.named[order.account, order.client_order_id] = order.order_id
            if order.open:
                replies.append(self._match(call, order, planned))
            else:
                self.orders.append(order)
                replies.append(self._order_reply(call, order, "open", []))
        reply = {
            "order_list_id": str(list_id),
            "list_type": list_type,
            "orders": replies,
            "timestamp_ms": 0,
        }
        call.stamped.append(reply)
        return reply

    def _check_names(self, fields: Mapping[str, str], members: list[dict[str, str]]) -> None:
        self._check_taken_name(fields)
        seen = {fields.get("client_order_id")}
        for member in members:
            name = member.get("client_order_id")
            if name is None:
                continue
            if name in seen or (fields["account"], name) in self.remembered:
                raise RejectedError("DUPLICATE_CLIENT_ORDER_ID")
            self._check_taken_name(member)
            seen.add(name)

    def _check_acting(
        self, call: Call, is_oco: bool, member: Mapping[str, str]
    ) -> tuple[Order, Outcome]:
        self._check_kind(member)
        order = self._new_order(member)
        self._check_rules(order)
        if order.waiting:
            return order, Outcome()
        planned = self._check_match(call, order)
        if is_oco and self._would_trade(order):
            raise RejectedError("POST_ONLY_WOULD_CROSS")
        return order, planned

    def _check_dormant(self, member: Mapping[str, str]) -> Order:
        order = self._new_order(member)
        if order.order_type == "limit":
            self._check_band(price_of(order))
        self._check_notional(order)
        self._check_trailing(order)
        order.waiting, order.dormant = False, True
        return order

    def _note(self, order: Order, event: str, quantity: Decimal = Decimal(0)) -> None:
        if order.order_list_id is not None:
            self.notes.append((order, event, quantity))

    def _settle_lists(self, call: Call) -> None:
        """Settles what has become of the orders of lists, first come, first served."""
        while self.notes:
            order, event, quantity = self.notes.pop(0)
            found = self.lists.get(order.order_list_id or 0)
            if found is None:
                continue
            if found.list_type == "oco" or order.order_id != found.order_ids[0]:
                if event == "decremented":
                    self._decrement_others(call, found, order, quantity)
                else:
                    self._follow_leg(call, found, order, event)
                continue
            for leg in self._follow_entry(call, found, order):
                self._end(leg)
                self._report_canceled(call, leg, "order_list")

    def _open_of(self, found: OrderList) -> list[Order]:
        mine = [order for order in self.orders if order.order_id in found.order_ids]
        return sorted(mine, key=lambda order: order.order_id)

    def _follow_leg(self, call: Call, found: OrderList, leg: Order, event: str) -> None:
        if event == "failed" and len(found.order_ids) > 2:
            found.order_ids.remove(leg.order_id)
            return
        del self.lists[found.order_ids[0]]
        if event == "failed":
            return
        for other in self._open_of(found):
            if other.order_id != leg.order_id:
                self._end(other)
                self._report_canceled(call, other, "order_list")

    def _decrement_others(
        self, call: Call, found: OrderList, leg: Order, quantity: Decimal
    ) -> None:
        """What self-trade prevention took of one leg the other has no more, either."""
        for other in self._legs_of(found):
            if other.order_id != leg.order_id:
                other.quantity -= quantity
                other.shrink(quantity)
                self._report_decremented(call, other)

    def _legs_of(self, found: OrderList) -> list[Order]:
        first = 0 if found.list_type == "oco" else 1
        return [leg for leg in self._open_of(found) if leg.order_id in found.order_ids[first:]]

    def _list_of_leg(self, order: Order) -> OrderList | None:
        """The list, if it is not over, in which this is no entry."""
        found = self.lists.get(order.order_list_id or 0)
        if found is None:
            return None
        is_entry = found.list_type != "oco" and order.order_id == found.order_ids[0]
        return None if is_entry else found

    def _ending_with(self, order: Order) -> list[Order]:
        """Who ends when this order is canceled."""
        found = self._list_of_leg(order)
        if found is None:
            return []
        return [other for other in self._open_of(found) if other.order_id != order.order_id]

    def _leg_to_resize(self, order: Order, amended: Order) -> Order | None:
        """The other leg of an oco, which has the same quantity."""
        found = self._list_of_leg(order)
        if found is None or amended.quantity == order.quantity:
            return None
        if found.list_type != "oco":
            raise RejectedError("ORDER_LIST_QUANTITY")
        (other,) = self._ending_with(order)
        return other

    def _check_resize(self, leg: Order, quantity: Decimal) -> None:
        resized = copy.copy(leg)
        resized.quantity = resized.remaining = quantity
        self._check_notional(resized)
        if leg.open:
            self._check_level(resized, quantity)

    def _resize(self, call: Call, leg: Order, quantity: Decimal) -> None:
        if quantity > leg.quantity:
            self._grow(call, leg, quantity - leg.quantity)
        elif quantity < leg.quantity:
            leg.quantity = leg.remaining = quantity
            self._report_amended(call, leg)

    def _follow_entry(self, call: Call, found: OrderList, entry: Order) -> list[Order]:
        """What stands on the agenda then; and who is canceled because nothing was filled."""
        has_ended = all(order.order_id != entry.order_id for order in self.orders)
        if has_ended and not entry.filled:
            del self.lists[found.order_ids[0]]
            return self._open_of(found)
        if found.armed:
            self._grow_legs(call, found, entry.filled)
        elif entry.filled and (has_ended or found.list_type == "bracket"):
            self._ask_to_arm(Arming(found.order_ids[0], entry.filled))
        return []

    def _ask_to_arm(self, item: Arming) -> None:
        """Once, and then with all that the entry has filled until it is its turn."""
        for place, other in enumerate(self.agenda):
            if isinstance(other, Arming) and other.list_id == item.list_id:
                self.agenda[place] = item
                return
        self.agenda.append(item)

    def _grow_legs(self, call: Call, found: OrderList, filled: Decimal) -> None:
        new, found.armed = filled - found.armed, filled
        for leg in self._open_of(found):
            if new and leg.order_id != found.order_ids[0]:
                self._grow(call, leg, new)

    def _arm_list(self, call: Call, item: Arming) -> bool:
        """Whether it could be done in this call; a leg that trades at once ends the other."""
        found = self.lists.get(item.list_id)
        if found is None or found.armed:
            return True
        new = item.filled
        legs = [leg for leg in self._open_of(found) if leg.order_id != item.list_id]
        if any(self._is_arming_for_next_call(call, leg, new) for leg in legs):
            return False
        found.armed = item.filled
        if found.list_type == "oto":
            del self.lists[item.list_id]
        for leg in legs:
            if leg not in self.orders:
                continue
            self._arm(call, leg, new)
            self._settle_lists(call)
        return True

    def _is_arming_for_next_call(self, call: Call, leg: Order, quantity: Decimal) -> bool:
        armed = copy.copy(leg)
        armed.quantity = armed.remaining = quantity
        last_price = self.last_price
        assert last_price is not None, "the entry has traded"
        armed.reference = last_price
        if leg.order_type in STOP_TYPES and not self._is_due(armed, last_price):
            return False
        return self._is_for_next_call(call, armed)

    def _arm(self, call: Call, leg: Order, quantity: Decimal) -> None:
        leg.dormant = False
        leg.quantity = leg.remaining = quantity
        self.last_priority += 1
        leg.priority = self.last_priority
        if leg.order_type in STOP_TYPES:
            last_price = self.last_price
            assert last_price is not None, "the entry has traded"
            leg.waiting = True
            leg.reference = last_price
        self._report_place(call, leg, "armed")
        is_due = leg.waiting and self._is_due(leg, leg.reference)
        if leg.waiting and not is_due:
            return
        leg.waiting = False
        planned = self._planned_alone(call, leg)
        if is_due:
            self._report_place(call, leg, "triggered")
        if planned is not None and (is_due or self._would_trade(leg)):
            self._end_others(call, leg)
        self._enter(call, leg, planned)

    def _grow(self, call: Call, leg: Order, quantity: Decimal) -> None:
        leg.quantity += quantity
        leg.remaining += quantity
        if leg.open:
            self.last_priority += 1
            leg.priority = self.last_priority
        self._report_amended(call, leg)
        if leg.open:
            self._leave(leg)
            try:
                self._check_level(leg, leg.remaining)
            except RejectedError:
                self._note(leg, "ended")
                self._report_canceled(call, leg, "too_large")
            else:
                self.orders.append(leg)

    @staticmethod
    def _report_place(call: Call, order: Order, event: str, **more: str) -> None:
        call.report(
            order.account,
            event,
            **more,
            **order.terms(),
            **order.waits_for(),
            remaining_quantity=text(order.remaining),
            priority=order.priority,
        )

    # ---- the instrument's rules

    def _check_in_time(self, fields: Mapping[str, str]) -> None:
        if self.now_ms > int(fields.get("valid_until_ms", EXACT_MAX)):
            raise RejectedError("TOO_LATE")

    def _check_takes_orders(self, call: Call) -> None:
        status = self.instrument["status"]
        if status in STATUS_REJECTS:
            raise RejectedError(STATUS_REJECTS[status])
        if self.uncrossing:
            raise RejectedError("UNCROSSING")
        if call.expiring:
            raise RejectedError("EXPIRING")
        if call.canceling:
            raise RejectedError("CANCELING")
        if self.agenda and self._is_trading():
            raise RejectedError("TRIGGERS_PENDING")

    def _check_kind(self, fields: Mapping[str, str]) -> None:
        """Whether the status takes an order of this kind."""
        status = self.instrument["status"]
        rests = fields["order_type"] == "limit" and time_in_force(fields) in RESTING
        if status == "post_only" and not rests:
            raise RejectedError("INSTRUMENT_POST_ONLY")
        waits = fields["order_type"] in STOP_TYPES
        never_takes = fields.get("post_only") == "true"
        if status == "auction" and not waits and (not rests or never_takes):
            raise RejectedError("INSTRUMENT_AUCTION")

    def _check_rules(self, order: Order) -> None:
        if order.waiting:
            if self.agenda:
                raise RejectedError("TRIGGERS_PENDING")
            self._check_stop(order)
        if order.order_type == "limit":
            self._check_band(price_of(order))
        self._check_notional(order)
        if order.rests or order.waiting:
            self._check_open_orders(order.account, 1)
        self._check_trailing(order)

    def _check_open_orders(self, account: str, count: int) -> None:
        most = self.instrument["open_orders_max"]
        mine = [other for other in self.orders if other.account == account]
        if most and len(mine) + count > most:
            raise RejectedError("TOO_MANY_OPEN_ORDERS")

    def _check_trailing(self, order: Order) -> None:
        trailing = [other for other in self.orders if other.waiting and other.trailing_offset]
        mine = [other for other in trailing if other.account == order.account]
        are_too_many = (
            len(trailing) >= TRAILING_STOPS_MAX or len(mine) >= TRAILING_STOPS_PER_ACCOUNT_MAX
        )
        if order.trailing_offset is not None and are_too_many:
            raise RejectedError("TOO_MANY_TRAILING_STOPS")

    def _check_stop(self, order: Order) -> None:
        last_price = self.last_price
        if last_price is None:
            if order.trailing_offset is not None:
                raise RejectedError("NO_LAST_PRICE")
            return
        if order.trailing_offset is not None:
            tick: Decimal = self.instrument["tick_size"]
            order.reference = last_price // tick * tick
            if order.side == "buy" and order.reference != last_price:
                order.reference += tick
            if order.reference / tick > EXACT_MAX:
                raise RejectedError("NO_LAST_PRICE")
        if self._is_due(order, last_price):
            raise RejectedError("WOULD_TRIGGER")

    def _check_band(self, price: Decimal) -> None:
        band, last_price = self.instrument["price_band"], self.last_price
        if band and last_price is not None:
            width = last_price * band / 100
            if not last_price - width <= price <= last_price + width:
                raise RejectedError("PRICE_OUT_OF_BAND")

    def _check_notional(self, order: Order) -> None:
        if order.quote_quantity is not None:
            notional = order.quote_quantity
        else:
            price = order.price if order.price is not None else order.stop_price
            if order.order_type == "market":
                price = self._best_price(OPPOSITE[order.side])
            if price is None:
                return
            notional = price * order.quantity
        if notional < self.instrument["min_notional"]:
            raise RejectedError("NOTIONAL_TOO_SMALL")

    # ---- matching

    def queue(self, side: str) -> list[Order]:
        """The resting orders of a side in the order in which they will trade."""
        direction = -1 if side == "buy" else 1
        orders = [order for order in self.orders if order.side == side and order.open]
        return sorted(orders, key=lambda order: (direction * price_of(order), order.priority))

    def _best_price(self, side: str) -> Decimal | None:
        return next(iter(self.levels(side)), None)

    def _trial(self, taker: Order, before: Call | None = None) -> tuple[Outcome, Call]:
        """What would become of the taker, on a copy of the book; in a call that has done something
        before as much as is left to it."""
        copied = copy.copy(self)
        copied.orders = [copy.copy(order) for order in self.orders]
        copied.trades, copied.agenda, copied.notes = [], [], []
        copied.prints = []
        call = before or Call({}, 0)
        tried = copy.copy(taker)
        outcome = copied._sweep(call, tried, is_part=before is not None)
        outcome.left = tried.remaining
        if taker.time_in_force == "fok" and outcome.filled < taker.remaining:
            return Outcome(end="fok"), call
        return outcome, call

    def _check_match(self, call: Call, taker: Order) -> Outcome:
        """The outcome that is to be expected, or a refusal."""
        never_takes = taker.post_only or self.instrument["status"] == "post_only"
        if never_takes and self._would_trade(taker):
            raise RejectedError("POST_ONLY_WOULD_CROSS")
        outcome, trial = self._trial(taker)
        accounts = {*call.reports, *trial.reports, taker.account}
        if call.fills + trial.fills > FILLS_MAX or len(accounts) > MAKER_ACCOUNTS_MAX:
            if taker.time_in_force == "fok" or taker.quote_quantity is not None:
                raise RejectedError("TOO_MANY_FILLS")
            before = Call({}, 0, fills=call.fills, reports={name: [] for name in call.reports})
            outcome, _ = self._trial(taker, before)
            outcome.is_cut = True
            return outcome
        if taker.quote_quantity is not None:
            exact_number(text(outcome.filled), self.instrument["lot_size"], "QUANTITY_TOO_LARGE")
        if taker.rests and outcome.end == "ioc":
            self._check_level(taker, outcome.left)
        return outcome

    def _would_trade(self, taker: Order) -> bool:
        """In an auction nobody does."""
        best_price = self._best_price(OPPOSITE[taker.side])
        in_auction = self.instrument["status"] == "auction"
        return best_price is not None and taker.crosses(best_price) and not in_auction

    def _check_level(self, order: Order, remaining: Decimal) -> None:
        others = sum(
            other.shown
            for other in self.queue(order.side)
            if other.price == order.price and other.order_id != order.order_id
        )
        scale = Decimal(10) ** decimals(self.instrument["lot_size"])
        if (others + order.fresh_slice(remaining)) * scale > EXACT_MAX:
            raise RejectedError("LEVEL_QUANTITY_TOO_LARGE")

    def _match(self, call: Call, taker: Order, planned: Outcome) -> Json:
        taker.protection_price = self._furthest_price(taker)
        outcome = planned
        if planned.end != "fok":
            outcome = self._sweep(call, taker, is_part=planned.is_cut)
        if outcome.fills and self._waiting():
            # They go one way: what is due between is due at the first or at the last.
            self.agenda += [Decimal(outcome.fills[end]["price"]) for end in (0, -1)]
        if planned.is_cut:
            self._pause(call, taker)
            status = taker.status
        elif outcome.end == "filled":
            status = "filled"
            self._note(taker, "ended")
        elif outcome.end == "ioc" and taker.rests:
            taker.slice = taker.fresh_slice(taker.remaining)
            self.orders.append(taker)
            status = taker.status
        else:
            status = "canceled"
            self._note(taker, "ended")
            self._report_canceled(call, taker, outcome.end)
        return self._order_reply(call, taker, status, outcome.fills)

    @staticmethod
    def _order_reply(call: Call, order: Order, status: str, fills: list[Json]) -> Json:
        reply = {
            **order.terms(),
            "remaining_quantity": text(order.remaining),
            "status": status,
            **order.waits_for(),
            "fills": fills,
            "timestamp_ms": 0,
        }
        call.stamped.append(reply)
        return reply

    def _sweep(self, call: Call, taker: Order, *, is_part: bool = False) -> Outcome:
        """Lets the taker meet the front of the opposite queue until something ends it; if it is
        done in parts, until the call may do no more."""
        outcome = Outcome()
        if self.instrument["status"] == "auction":
            return outcome
        furthest = self._furthest_price(taker)
        met: Order | None = None
        # Icebergs that have shown later slices to this taker: they are alone at their price.
        refreshed: set[int] = set()
        while True:
            queue = self.queue(OPPOSITE[taker.side])
            maker = next(iter(queue), None)
            # Where the queue ends, money counts by what it was worth at the last maker.
            wanted = self._wanted(taker, maker or met)
            if wanted == 0:
                worthless = taker.quote_quantity is not None and not outcome.fills
                outcome.end = "ioc" if worthless else "filled"
                return outcome
            if maker is None or not taker.crosses(price_of(maker)):
                return outcome
            if furthest is not None and is_beyond(taker.side, price_of(maker), furthest):
                outcome.end = "protection"
                return outcome
            met = maker
            mode = taker.self_trade_prevention or self.instrument["self_trade_prevention"]
            is_own = mode != "none" and self._is_one_trader(maker, taker)
            steps = [(maker, wanted)] if is_own else meetings(queue, wanted, refreshed)
            if is_part and self._lacks_room(call, steps, taker):
                return outcome
            for one, quantity in [] if is_own else steps:
                outcome.fills.append(self._trade(call, one, taker, quantity))
                outcome.filled += quantity
            if is_own and not self._prevent(call, maker, taker, mode):
                outcome.end = "self_trade"
                return outcome

    @staticmethod
    def _lacks_room(call: Call, steps: list[tuple[Order, Decimal]], taker: Order) -> bool:
        """Whether a call may not do all of these steps: icebergs in turn trade all or none."""
        accounts = {*call.reports, taker.account, *(maker.account for maker, _ in steps)}
        return call.fills + len(steps) > FILLS_MAX or len(accounts) > MAKER_ACCOUNTS_MAX

    def _is_one_trader(self, maker: Order, taker: Order) -> bool:
        """Of one account, or both of a group to which both accounts belong now."""
        groups = {order.stp_group for order in (maker, taker)}
        groups |= {self.stp_groups.get(order.account) for order in (maker, taker)}
        return maker.account == taker.account or (len(groups) == 1 and None not in groups)

    def _wanted(self, taker: Order, maker: Order | None) -> Decimal:
        """How much the taker would take of this maker, however little the maker has."""
        if taker.quote_quantity is None:
            return taker.remaining
        if maker is None:
            return taker.money
        lot: Decimal = self.instrument["lot_size"]
        return taker.money // (price_of(maker) * lot) * lot

    def _furthest_price(self, taker: Order) -> Decimal | None:
        """Where a protected order's band ends, None where it has none."""
        if taker.protection_price is not None:
            return taker.protection_price
        best_price = self._best_price(OPPOSITE[taker.side])
        protection = self.instrument["protection"]
        if taker.protection is not None:
            protection = taker.protection
        if best_price is None or taker.price is not None or not protection:
            return None
        width = self._share(best_price, protection)
        return best_price + width if taker.side == "buy" else best_price - width

    def _prevent(self, call: Call, maker: Order, taker: Order, mode: str) -> bool:
        """What self-trade prevention does in place of a trade; whether the taker goes on."""
        call.fills += mode != "cancel_taker"
        if mode == "decrement":
            return self._decrement(call, maker, taker)
        if mode in {"cancel_maker", "cancel_both"}:
            self._end(maker)
            self._report_canceled(call, maker, "self_trade")
        return mode == "cancel_maker"

    def _decrement(self, call: Call, maker: Order, taker: Order) -> bool:
        wanted = self._wanted(taker, maker)
        quantity = min(wanted, maker.remaining)
        if maker.remaining == quantity:
            self._end(maker)
            self._report_canceled(call, maker, "self_trade")
        else:
            maker.quantity -= quantity
            maker.shrink(quantity)
            self._note(maker, "decremented", quantity)
            self._report_decremented(call, maker)
        # Who has to be filled whole cannot be, and looks no further.
        if wanted == quantity or taker.time_in_force == "fok":
            return False
        if taker.quote_quantity is not None:
            taker.money -= quantity * price_of(maker)
        else:
            taker.quantity -= quantity
            taker.shrink(quantity)
            self._note(taker, "decremented", quantity)
        self._report_decremented(call, taker)
        return True

    @staticmethod
    def _report_decremented(call: Call, order: Order) -> None:
        remaining = text(order.remaining)
        call.report(order.account, "decremented", **order.terms(), remaining_quantity=remaining)

    def _trade(self, call: Call, maker: Order, taker: Order, quantity: Decimal) -> Json:
        self.last_trade_id += 1
        self._show_to_breaker(call, price_of(maker))
        self.last_price = price_of(maker)
        call.fills += 1
        fill = {
            "trade_id": str(self.last_trade_id),
            "price": text(self.last_price),
            "quantity": text(quantity),
        }
        ids = displayed_ids(maker, taker)
        self._note(taker, "traded")
        self._note(maker, "traded")
        shows_later_slice = maker.give(quantity)
        if taker.quote_quantity is not None:
            taker.money -= quantity * self.last_price
        taker.remaining -= quantity
        self._report_trade(call, taker, "taker", fill)
        self._report_trade(call, maker, "maker", fill)
        if maker.remaining == 0:
            self._end(maker)
        elif shows_later_slice:
            self._refresh(call, maker)
        self._tell_trade(call, fill, taker, ids)
        return {**fill, "maker_order_id": ids["maker_order_id"]}

    def _tell_trade(self, call: Call, fill: Json, taker: Order, ids: Json) -> None:
        price, quantity = Decimal(fill["price"]), Decimal(fill["quantity"])
        self.prints.append((self.now_ms, price, quantity))
        trade = {
            **({} if "auction" in fill else {"aggressor_side": taker.side}),
            **fill,
            **ids,
            "timestamp_ms": 0,
        }
        self.trades.append(trade)
        call.trades.append(trade)
        call.stamped.append(trade)

    @staticmethod
    def _report_trade(call: Call, order: Order, role: str, fill: Json) -> None:
        report: Json = order.identity()
        remaining = text(order.remaining)
        report |= {**fill, "role": role, "side": order.side, "remaining_quantity": remaining}
        report["status"] = order.status
        if order.status == "filled":
            report["order_quantity"] = text(order.quantity)
            if order.price is not None:
                report["order_price"] = text(order.price)
        call.report(order.account, "trade", **report)

    def _refresh(self, call: Call, iceberg: Order) -> None:
        self.last_priority += 1
        self.last_order_id += 1
        iceberg.displayed_order_id = self.last_order_id
        iceberg.priority = self.last_priority
        call.report(
            iceberg.account,
            "refreshed",
            **iceberg.terms(),
            remaining_quantity=text(iceberg.remaining),
            priority=iceberg.priority,
            shown_quantity=text(iceberg.shown),
        )

    # ---- canceling and amending

    def _cancel_order(self, call: Call, fields: Mapping[str, str]) -> Json:
        content = ("cancel_order", normal(fields))
        if (remembered := self._recall(fields, content)) is not None:
            return remembered
        order = self._find(fields)
        self._check_in_time(fields)
        self._end(order)
        self._report_canceled(call, order, "requested")
        reply = self._canceled_reply(call, order)
        self._remember(fields, content, reply, order)
        return reply

    @staticmethod
    def _canceled_reply(call: Call, order: Order) -> Json:
        reply = {
            **order.terms(),
            "remaining_quantity": text(order.remaining),
            "status": "canceled",
            "timestamp_ms": 0,
        }
        call.stamped.append(reply)
        return reply

    def _replace_order(self, call: Call, fields: Mapping[str, str]) -> Json:
        content = ("replace_order", normal(fields))
        name = (fields["account"], fields.get("client_order_id", ""))
        remembered = self.remembered.get(name)
        if remembered is not None and remembered.content == content:
            return remembered.reply
        self._check_in_time(fields)
        goes_on = fields.get("on_failure") == "continue"
        before = self.orders
        old: Order | None = None
        placed: Json | None = None
        try:
            old = self._find(named_to_cancel(fields))
            ending = [old, *self._ending_with(old)]
            self.orders = [order for order in self.orders if order not in ending]
        except RejectedError as error:
            if not goes_on:
                raise
            canceled = rejected(error.code, {})
        try:
            if old is None or name != (old.account, old.client_order_id):
                if remembered is not None:
                    raise RejectedError("DUPLICATE_CLIENT_ORDER_ID")
                self._check_taken_name(fields)
            order, planned = self._checked_order(call, fields)
        except RejectedError as error:
            if not goes_on:
                self.orders = before
                raise
            placed = rejected(error.code, fields)
        if old is not None:
            self._report_replaced(call, ending)
            canceled = self._canceled_reply(call, old)
        reply: Json = {"canceled": canceled, "timestamp_ms": 0}
        if placed is None:
            placed = self._take_on(call, order, planned)
            self._remember(fields, content, reply)
        reply["placed"] = placed
        return self._with_latest_sequence(call, reply)

    def _report_replaced(self, call: Call, ending: list[Order]) -> None:
        """The first one is replaced, the others end with it."""
        old, *others = ending
        self._note(old, "ended")
        self._report_canceled(call, old, "replaced")
        for other in others:
            self._report_canceled(call, other, "order_list")

    def _mass_quote(self, call: Call, fields: Mapping[str, str]) -> Json:
        quotes = json.loads(fields["quotes"])
        self._check_in_time(fields)
        if call.quotes + len(quotes) > QUOTES_PER_CALL_MAX:
            raise RejectedError("BATCH_TOO_LARGE")
        call.quotes += len(quotes)
        account = fields["account"]
        mine = [order for order in self.orders if order.quote and order.account == account]
        mine.sort(key=lambda order: order.order_id)
        for order in mine:
            self._leave(order)
            self._report_canceled(call, order, "replaced")
        # Asked once: what the trades of one quote trigger comes after all of them.
        closed: str | None = None
        try:
            self._check_takes_orders(call)
        except RejectedError as error:
            closed = error.code
        placed = []
        for quote in quotes:
            if closed is not None:
                placed.append(rejected(closed, quote))
                continue
            placed.append(self._quote(call, fields, quote))
            self._settle_breaker(call)
            closed = STATUS_REJECTS.get(self.instrument["status"])
            if self.agenda and isinstance(self.agenda[0], Paused):
                closed = "TRIGGERS_PENDING"
        reply = {
            "account": account,
            "canceled_order_ids": [str(order.order_id) for order in mine],
            "placed": placed,
            "timestamp_ms": 0,
        }
        return self._with_latest_sequence(call, reply)

    def _quote(self, call: Call, fields: Mapping[str, str], quote: Mapping[str, str]) -> Json:
        common = {name: value for name, value in fields.items() if name != "quotes"}
        terms = {**common, **quote, "order_type": "limit"}
        try:
            self._check_taken_name(terms)
            order, planned = self._examined_order(call, terms)
        except RejectedError as error:
            return rejected(error.code, quote)
        order.quote = True
        return self._take_on(call, order, planned)

    def _amend_order(self, call: Call, fields: Mapping[str, str]) -> Json:
        content = ("amend_order", normal(fields))
        if (remembered := self._recall(fields, content)) is not None:
            return remembered
        order = self._find(fields)
        self._check_in_time(fields)
        self._check_takes_orders(call)
        if order.dormant:
            raise RejectedError("ORDER_NOT_ARMED")
        if order.paused:
            raise RejectedError("TRIGGERS_PENDING")
        amended = self._amended(order, fields)
        if amended.quantity <= order.filled:
            self._end(order)
            self._report_canceled(call, order, "requested")
            reply = self._order_reply(call, order, "canceled", [])
        else:
            reply = self._amend_open(call, order, amended)
        self._remember(fields, content, reply, amended)
        return reply

    def _amend_open(self, call: Call, order: Order, amended: Order) -> Json:
        other_leg = self._leg_to_resize(order, amended)
        if order.waiting:
            reply = self._amend_waiting(call, order, amended)
        else:
            reply = self._amend_resting(call, order, amended)
        if other_leg is not None and other_leg in self.orders:
            self._resize(call, other_leg, amended.quantity)
        return reply

    def _amend_waiting(self, call: Call, order: Order, amended: Order) -> Json:
        self._leave(order)
        self.orders.append(amended)
        if amended.stop_price != order.stop_price:
            self.last_priority += 1
            amended.priority = self.last_priority
        self._report_amended(call, amended)
        return self._order_reply(call, amended, "open", [])

    def _amend_resting(self, call: Call, order: Order, amended: Order) -> Json:
        if amended.price == order.price and amended.quantity < order.quantity:
            self._leave(order)
            self.orders.append(amended)
            self._report_amended(call, amended)
            return self._order_reply(call, amended, amended.status, [])
        if amended.post_only and self.instrument["status"] == "auction":
            raise RejectedError("INSTRUMENT_AUCTION")
        before, ending = self.orders, []
        if self._would_trade(amended):
            ending = self._ending_with(order)
        self.orders = [other for other in self.orders if other not in ending]
        try:
            planned = self._check_match(call, amended)
        except RejectedError:
            self.orders = before
            raise
        for other in ending:
            self.lists.pop(other.order_list_id or 0, None)
            self._report_canceled(call, other, "order_list")
        self._leave(order)
        self.last_priority += 1
        amended.priority = self.last_priority
        self._report_amended(call, amended)
        return self._match(call, amended, planned)

    @staticmethod
    def _report_amended(call: Call, order: Order) -> None:
        call.report(
            order.account,
            "amended",
            **order.terms(),
            remaining_quantity=text(order.remaining),
            priority=order.priority,
        )

    def _amended(self, order: Order, fields: Mapping[str, str]) -> Order:
        """The order with its new numbers, if they are good ones."""
        amended = copy.copy(order)
        has_price = order.price is not None
        has_stop_price = order.waiting and order.stop_price is not None
        if ("price" in fields and not has_price) or ("stop_price" in fields and not has_stop_price):
            raise RejectedError("FIELD_NOT_ALLOWED")
        if "price" in fields:
            amended.price = self._checked_price(fields["price"])
        if "stop_price" in fields:
            amended.stop_price = self._checked_price(fields["stop_price"])
        if "quantity" in fields:
            amended.quantity = self._checked_lots(fields["quantity"])
        if "remaining_quantity" in fields:
            amended.quantity = order.filled + self._checked_lots(fields["remaining_quantity"])
        if amended.quantity <= order.filled:
            return amended
        if fields.keys() & {"quantity", "remaining_quantity"}:
            self._checked_quantity(text(amended.quantity))
            self._check_parts(amended, order.quantity)
        amended.remaining = amended.quantity - order.filled
        amended.slice = min(order.slice, amended.remaining)
        self._check_amended(order, amended, fields)
        return amended

    def _check_amended(self, order: Order, amended: Order, fields: Mapping[str, str]) -> None:
        """The rules about prices, for the other leg of an oco too."""
        other_leg = self._leg_to_resize(order, amended)
        if "stop_price" in fields:
            self._check_stop(amended)
        elif "price" in fields and not order.waiting:
            self._check_band(price_of(amended))
        if amended.quantity != order.quantity or not self._is_armed_by_entry(order):
            self._check_notional(amended)
        if other_leg is not None:
            self._check_resize(other_leg, amended.quantity)

    def _is_armed_by_entry(self, order: Order) -> bool:
        """Whether its quantity was what the entry of its list had filled."""
        if order.order_list_id in {None, order.order_id}:
            return False
        found = self.lists.get(order.order_list_id or 0)
        return found is None or found.list_type != "oco"

    def _cancel_all_orders(self, call: Call, fields: Mapping[str, str]) -> Json:
        self._check_in_time(fields)
        names = fields.keys() & {"account", "session", "side"}
        whose = {name: fields[name] for name in names}
        count = CANCELED_MAX - call.canceled
        canceled, left = self._cancel_open(call, whose, count, "cancel_all")
        call.canceled += len(canceled)
        reply = {
            "account": fields["account"],
            "canceled_order_ids": [str(order.order_id) for order in canceled],
            "canceled_count": len(canceled),
            "remaining_count": min(len(left), REMAINING_COUNT_MAX),
            "timestamp_ms": 0,
        }
        return self._with_latest_sequence(call, reply)

    def _cancel_all_after(self, call: Call, fields: Mapping[str, str]) -> Json:
        self._check_in_time(fields)
        whose = (fields["account"], fields.get("session"))
        timeout_ms = int(fields["timeout_ms"])
        if self.timers.get(whose, EXACT_MAX) <= self.now_ms:
            raise RejectedError("CANCELING")
        mine = [account for account, _ in self.timers if account == fields["account"]]
        are_too_many = len(self.timers) >= TIMERS_MAX or len(mine) >= TIMERS_PER_ACCOUNT_MAX
        if timeout_ms and whose not in self.timers and are_too_many:
            raise RejectedError("TOO_MANY_TIMERS")
        self.timers.pop(whose, None)
        reply: Json = {name: fields[name] for name in ("account", "session") if name in fields}
        reply |= {"timeout_ms": timeout_ms, "timestamp_ms": 0}
        if timeout_ms:
            self.timers[whose] = reply["cancel_time_ms"] = self.now_ms + timeout_ms
        return self._with_latest_sequence(call, reply)

    @staticmethod
    def _with_latest_sequence(call: Call, reply: Json) -> Json:
        """For what may have changed nothing itself: the sequence of the last change so far."""
        reply["sequence"] = call.sequence_before
        if call.changed:
            call.stamped.append(reply)
        return reply

    def _end(self, order: Order) -> None:
        """It is no longer open."""
        self._leave(order)
        self._note(order, "ended")

    def _leave(self, order: Order) -> None:
        self.orders = [other for other in self.orders if other is not order]

    @staticmethod
    def _report_canceled(call: Call, order: Order, reason: str) -> None:
        remaining = text(order.remaining)
        call.report(
            order.account, "canceled", **order.terms(), remaining_quantity=remaining, reason=reason
        )

    def _find(self, fields: Mapping[str, str]) -> Order:
        for order in self.orders:
            if "order_id" in fields:
                if order.order_id != int(fields["order_id"]):
                    continue
                if fields.get("account", order.account) != order.account:
                    raise RejectedError("UNKNOWN_ORDER")
                return order
            name = (order.account, order.client_order_id)
            if name == (fields["account"], fields["client_order_id"]):
                return order
        raise RejectedError("UNKNOWN_ORDER")

    # ---- retries

    def _recall(self, fields: Mapping[str, str], content: Any) -> Json | None:
        """The first reply to this very command, None for a new one; refuses an id used before."""
        if "client_order_id" not in fields:
            return None
        name = (fields["account"], fields["client_order_id"])
        if content[0] in {"place_order", "place_order_list"} or "order_id" in fields:
            remembered = self.remembered.get(name)
            if remembered is None:
                return None
            if remembered.content != content:
                raise RejectedError("DUPLICATE_CLIENT_ORDER_ID")
            return remembered.reply
        last = self.last_change.get(self.named.get(name, 0))
        return last.reply if last is not None and last.content == content else None

    def _check_taken_name(self, fields: Mapping[str, str]) -> None:
        name = (fields["account"], fields.get("client_order_id"))
        if name[1] is not None and any(
            (order.account, order.client_order_id) == name for order in self.orders
        ):
            raise RejectedError("DUPLICATE_CLIENT_ORDER_ID")

    def _remember(
        self, fields: Mapping[str, str], content: Any, reply: Json, order: Order | None = None
    ) -> None:
        if "client_order_id" in fields and (order is None or "order_id" in fields):
            name = (fields["account"], fields["client_order_id"])
            self.remembered[name] = Remembered(content, reply)
        if order is not None:
            self.last_change[order.order_id] = Remembered(content, reply)

    # ---- queries

    def levels(self, side: str) -> dict[Decimal, Decimal]:
        """price -> open quantity, best price first."""
        levels: dict[Decimal, Decimal] = {}
        for order in self.queue(side):
            levels[price_of(order)] = levels.get(price_of(order), Decimal(0)) + order.shown
        return levels

    def depth(self, side: str, levels_max: int) -> list[list[str]]:
        levels = list(self.levels(side).items())[:levels_max]
        return [[text(price), text(quantity)] for price, quantity in levels]

    def checksum(self) -> int:
        """Kraken v2: asks low to high, then bids high to low, each number in its last decimal."""
        digits = ""
        for side in ("sell", "buy"):
            for row in self.depth(side, CHECKSUM_DEPTH):
                digits += self._checksum_digits(row)
        return zlib.crc32(digits.encode())

    def _checksum_digits(self, row: list[Any]) -> str:
        """The price and the quantity that a row begins with, counted in units of the last decimal
        of tick_size and lot_size."""
        steps = self.instrument["tick_size"], self.instrument["lot_size"]
        scaled = (
            Decimal(number) * Decimal(10) ** decimals(step)
            for number, step in zip(row, steps, strict=False)
        )
        return "".join(str(int(number)) for number in scaled)

    def _steps(self) -> Json:
        return {name: text(self.instrument[name]) for name in ("tick_size", "lot_size")}

    def _get_book(self, _: Call, fields: Mapping[str, str]) -> Json:
        depth = fields.get("depth", "10")
        levels_max = DEPTH_MAX if depth == "full" else int(depth)
        return {
            "symbol": self.symbol,
            "sequence": self.sequence,
            "epoch": self.epoch,
            "bids": self.depth("buy", levels_max),
            "asks": self.depth("sell", levels_max),
            "checksum": self.checksum(),
            **self._steps(),
        }

    def rows(self, side: str, levels_max: int) -> list[list[Any]]:
        """The orders of a side's best levels: price, what is shown of it, order_id, priority."""
        prices = list(self.levels(side))[:levels_max]
        return [
            [text(price_of(order)), text(order.shown), order.displayed_id, order.priority]
            for order in self.queue(side)[:LEVEL3_ORDERS_MAX]
            if order.price in prices
        ]

    def level3_checksum(self) -> int:
        """The same order by order: price, quantity, order_id; of a limited number of orders."""
        digits = ""
        for side in ("sell", "buy"):
            for row in self.rows(side, CHECKSUM_DEPTH)[:LEVEL3_CHECKSUM_ORDERS_MAX]:
                digits += self._checksum_digits(row) + row[2]
        return zlib.crc32(digits.encode())

    def _get_level3(self, _: Call, fields: Mapping[str, str]) -> Json:
        depth = fields.get("depth", "10")
        levels_max = DEPTH_MAX if depth == "full" else int(depth)
        most = max(len(self.queue("buy")), len(self.queue("sell")))
        return {
            "symbol": self.symbol,
            "sequence": self.sequence,
            "epoch": self.epoch,
            "bids": self.rows("buy", levels_max),
            "asks": self.rows("sell", levels_max),
            "more": most > LEVEL3_ORDERS_MAX,
            "checksum": self.level3_checksum(),
            **self._steps(),
        }

    def _described(self, order: Order) -> Json:
        described = {
            **order.terms(),
            "remaining_quantity": text(order.remaining),
            "status": order.status,
            "timestamp_ms": 0,
        }
        if order.order_type in STOP_TYPES:
            described["triggered"] = not order.waiting and not order.dormant
        return {**described, **order.waits_for()}

    def _get_order(self, _: Call, fields: Mapping[str, str]) -> Json:
        order = self._find(fields)
        return {**self._described(order), "account": order.account, "sequence": self.sequence}

    def _get_open_orders(self, _: Call, fields: Mapping[str, str]) -> Json:
        after, limit = int(fields.get("after", "0")), int(fields.get("limit", "500"))
        found = [
            order
            for order in sorted(self.orders, key=lambda order: order.order_id)
            if order.account == fields["account"] and order.order_id > after
        ]
        return {
            "account": fields["account"],
            "symbol": self.symbol,
            "sequence": self.sequence,
            "epoch": self.epoch,
            "orders": [self._described(order) for order in found[:limit]],
            "more": len(found) > limit,
        }

    def _get_trades(self, _: Call, fields: Mapping[str, str]) -> Json:
        return {
            "symbol": self.symbol,
            "sequence": self.sequence,
            "epoch": self.epoch,
            "trades": self.trades[-int(fields.get("limit", "50")) :],
        }

    def _get_closed_orders(self, _: Call, fields: Mapping[str, str]) -> Json:
        return self._history(fields, "orders", closed_orders)

    def _get_own_trades(self, _: Call, fields: Mapping[str, str]) -> Json:
        return self._history(fields, "trades", own_trades)

    def _history(
        self, fields: Mapping[str, str], name: str, rows_of: Callable[[list[Json]], list[Json]]
    ) -> Json:
        """Of a stream with so few entries that one call looks at all of them."""
        before = min(int(fields.get("before", EXACT_MAX)), self.sequence + 1)
        rows: list[Json] = []
        for sequence, topics in reversed(self.entries):
            if sequence >= before or len(rows) >= int(fields.get("limit", "100")):
                continue
            before = sequence
            message = topics.get(f"orders:{fields['account']}", {"orders": []})
            rows += [{**row, "sequence": sequence} for row in rows_of(message["orders"])]
        return {
            "account": fields["account"],
            "symbol": self.symbol,
            "sequence": self.sequence,
            "epoch": self.epoch,
            name: rows,
            "more": before > 1 and bool(self.entries),
            "before": before,
        }

    def _candles(self, interval: str) -> list[Json]:
        """Of every interval with trades, oldest first."""
        length_ms = INTERVALS_MS[interval]
        found: dict[int, list[tuple[Decimal, Decimal]]] = {}
        for time_ms, price, quantity in self.prints:
            found.setdefault(time_ms - time_ms % length_ms, []).append((price, quantity))
        newest_ms = self.prints[-1][0] if self.prints else 0
        return [
            {
                "open_time_ms": open_ms,
                "open": text(trades[0][0]),
                "high": text(max(price for price, _ in trades)),
                "low": text(min(price for price, _ in trades)),
                "close": text(trades[-1][0]),
                "volume": text(sum((quantity for _, quantity in trades), Decimal(0))),
                "trades": len(trades),
                "closed": open_ms + length_ms <= max(self.now_ms, newest_ms),
            }
            for open_ms, trades in found.items()
        ]

    def _get_candles(self, _: Call, fields: Mapping[str, str]) -> Json:
        limit = int(fields.get("limit", CANDLES_MAX))
        if limit > CANDLES_MAX:
            raise RejectedError("INVALID_VALUE")
        before = int(fields.get("before", EXACT_MAX))
        candles = self._candles(fields["interval"])
        candles = [candle for candle in candles if candle["open_time_ms"] < before]
        return {
            "symbol": self.symbol,
            "interval": fields["interval"],
            "sequence": self.sequence,
            "epoch": self.epoch,
            "candles": candles[-limit:],
            "more": len(candles) > limit,
        }

    def _get_ticker(self, _: Call, __: Mapping[str, str]) -> Json:
        reply: Json = {"symbol": self.symbol}
        for side, name in (("buy", "best_bid"), ("sell", "best_ask")):
            for price, quantity in self.depth(side, 1):
                reply |= {name: price, f"{name}_quantity": quantity}
        if self.last_price is not None:
            reply["last_price"] = text(self.last_price)
        minute_ms = INTERVALS_MS["1m"]
        from_ms = (self.now_ms - INTERVALS_MS["1d"] + minute_ms) // minute_ms * minute_ms
        day = [(price, quantity) for time_ms, price, quantity in self.prints if time_ms >= from_ms]
        reply["volume_24h"] = text(sum((quantity for _, quantity in day), Decimal(0)))
        if day:
            first, last = day[0][0], day[-1][0]
            reply |= {
                "open_24h": text(first),
                "high_24h": text(max(price for price, _ in day)),
                "low_24h": text(min(price for price, _ in day)),
                "change_24h": text(last - first),
                "change_percent_24h": percent_text(last - first, first),
            }
        return {**reply, "sequence": self.sequence, "epoch": self.epoch, "timestamp_ms": 0}

    def _get_instrument(self, _: Call, __: Mapping[str, str]) -> Json:
        reply = {
            name: text(value) if isinstance(value, Decimal) else value
            for name, value in self.instrument.items()
        }
        reply |= {
            "symbol": self.symbol,
            "segment": self.segment,
            "open_orders": len(self.orders),
            "sequence": self.sequence,
            "epoch": self.epoch,
        }
        if self.last_price is not None:
            reply["last_price"] = text(self.last_price)
        if self.reopen_ms:
            reply["reopen_time_ms"] = self.reopen_ms
        return reply

    def _verify_book(self, _: Call, __: Mapping[str, str]) -> Json:
        """But for the state_hash, which is the engine's own."""
        return {
            "verified": True,
            "orders": len(self.orders),
            "levels": sum(len(self.levels(side)) for side in SIDES),
            "sequence": self.sequence,
        }


def named_to_cancel(fields: Mapping[str, str]) -> dict[str, str]:
    """The order that is to be replaced, named as cancel_order does."""
    named = {"account": fields["account"]}
    for name in ("order_id", "client_order_id"):
        if f"cancel_{name}" in fields:
            named[name] = fields[f"cancel_{name}"]
    return named


def closed_orders(reports: list[Json]) -> list[Json]:
    """The orders that an entry's reports close, the last one first."""
    closed: dict[str, Json] = {}
    for report in reversed(reports):
        row = {name: value for name, value in report.items() if name != "event"}
        if report["event"] == "trade" and report["status"] == "filled":
            row["quantity"] = row.pop("order_quantity")
            del row["price"], row["trade_id"], row["role"]
            row.pop("auction", None)
            if "order_price" in row:
                row["price"] = row.pop("order_price")
        elif report["event"] in {"canceled", "expired"}:
            row["status"] = report["event"]
        else:
            continue
        closed.setdefault(report["order_id"], row)
    return list(closed.values())


def own_trades(reports: list[Json]) -> list[Json]:
    """The trades of an entry's reports, the last one first."""
    left_out = ("event", "order_quantity", "order_price")
    return [
        {name: value for name, value in report.items() if name not in left_out}
        for report in reversed(reports)
        if report["event"] == "trade"
    ]


def cancel_in_books(books: Sequence["ReferenceBook"], fields: Mapping[str, str]) -> Json:
    """FCALL cancel_all_orders with the keys of several books, which must be good and different."""
    rows: list[Json] = []
    canceled = 0
    for book in books:
        call = book._begin()
        call.canceled = canceled
        book._do_what_is_due(call)
        run = functools.partial(book._guarded, call, "cancel_all_orders", lambda: dict(fields))
        (reply,) = book._finish(call, [run()])
        canceled = call.canceled
        rows.append(reply)
    if rows[0].get("status") == "rejected":
        return rows[0]
    return {
        "account": fields["account"],
        "books": [{"symbol": book.symbol, **row} for book, row in zip(books, rows, strict=True)],
        "canceled_count": canceled,
        "remaining_count": sum(row["remaining_count"] for row in rows),
        "timestamp_ms": 0,
    }


def percent_text(change: Decimal, whole: Decimal) -> str:
    """With two decimals, rounded towards zero."""
    hundredths = int(abs(change) * 10_000 / whole)
    return text(Decimal(hundredths if change >= 0 else -hundredths) / 100)


def new_rule(name: str, value: str) -> Any:
    """The value of an instrument's field."""
    if name in COUNTS:
        return int(value)
    return value if name in ENUMERATIONS else decimal_number(value)


def set_default_limits(instrument: Json) -> None:
    """One lot, and as many as are exact."""
    lot = instrument["lot_size"]
    exact_max = EXACT_MAX / Decimal(10) ** decimals(lot)
    instrument.setdefault("min_quantity", lot)
    instrument.setdefault("max_quantity", exact_max // lot * lot)


def check_limits(instrument: Json) -> None:
    least, most = instrument["min_quantity"], instrument["max_quantity"]
    if least % instrument["lot_size"] or most % instrument["lot_size"]:
        raise RejectedError("QUANTITY_OFF_LOT")
    if least <= 0:
        raise RejectedError("QUANTITY_TOO_SMALL")
    if least > most:
        raise RejectedError("INVALID_VALUE")


def price_of(order: Order) -> Decimal:
    assert order.price is not None, "only orders with a price rest"
    return order.price


def is_beyond(side: str, price: Decimal, furthest: Decimal) -> bool:
    return price > furthest if side == "buy" else price < furthest


def decimal_number(value: str) -> Decimal:
    if len(value) > NUMBER_LENGTH_MAX or not DECIMAL_TEXT.fullmatch(value):
        raise RejectedError("INVALID_NUMBER")
    return Decimal(value)


def exact_number(value: str, step: Decimal, code: str = "INVALID_NUMBER") -> Decimal:
    """Refuses what, counted in the last decimal of the step, is beyond exactness."""
    number = decimal_number(value)
    if number * Decimal(10) ** decimals(step) > EXACT_MAX:
        raise RejectedError(code)
    return number


def notional_number(value: str, instrument: Json) -> Decimal:
    """A sum of money: as fine as price times quantity, in the decimals of both."""
    number = decimal_number(value)
    places = decimals(instrument["tick_size"]) + decimals(instrument["lot_size"])
    if decimals(number) > places:
        raise RejectedError("INVALID_NUMBER")
    return number


def normal(fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a command means: its fields in whatever order they came, with decimals by value. By
    which session it came and until when it was valid is no part of it."""
    return sorted(
        (name, shortest(value) if name in DECIMAL_FIELDS else value)
        for name, value in fields.items()
        if name not in {"session", "valid_until_ms"} and value != "false"
    )


def shortest(value: str) -> str:
    """A decimal, maybe with a percent sign, without zeros at the end of its fraction."""
    number = value.removesuffix("%")
    if "." in number:
        number = number.rstrip("0").removesuffix(".")
    return number + "%" * value.endswith("%")


def in_turn(icebergs: list[Order], wanted: Decimal) -> list[tuple[Order, Decimal]]:
    """How much a taker gets of each of the icebergs of a level, slice by slice in turn. They come
    in the order of their last whole slices."""
    queue = deque((order, order.shown, order.remaining) for order in icebergs)
    taken = dict.fromkeys((order.order_id for order in icebergs), Decimal(0))
    last_turn = dict.fromkeys(taken, -1)
    for turn in itertools.count():
        if not wanted or not queue:
            break
        order, shown, remaining = queue.popleft()
        quantity = min(wanted, shown)
        wanted -= quantity
        taken[order.order_id] += quantity
        if quantity == shown:
            last_turn[order.order_id] = turn
            if remaining > shown:
                queue.append((order, order.fresh_slice(remaining - shown), remaining - shown))
    found = sorted(icebergs, key=lambda order: last_turn[order.order_id])
    return [(order, taken[order.order_id]) for order in found if taken[order.order_id]]


def meetings(
    queue: list[Order], wanted: Decimal, refreshed: set[int]
) -> list[tuple[Order, Decimal]]:
    """Whom a taker meets next, and how much it gets: the first of the queue, or the icebergs that
    are left of its level, in turn."""
    maker = queue[0]
    level = [order for order in queue if order.price == maker.price]
    is_alone = len(level) == 1 and maker.display_quantity is not None
    if is_alone or maker.order_id in refreshed:
        return in_turn(level, wanted)
    refreshed.add(maker.order_id)
    return [(maker, min(wanted, maker.shown))]


def displayed_ids(maker: Order, taker: Order) -> Json:
    """What a trade tells everybody of its orders, before either is refreshed."""
    return {"maker_order_id": maker.displayed_id, "taker_order_id": taker.displayed_id}


def rejected(code: str, fields: Mapping[str, Any]) -> Json:
    """A refusal, but for its message."""
    reply = {"status": "rejected", "code": code}
    client_order_id = fields.get("client_order_id")
    if isinstance(client_order_id, str) and CLIENT_ORDER_ID.fullmatch(client_order_id):
        reply["client_order_id"] = client_order_id
    return reply


# ---- the shape of commands


def pairs(arguments: Sequence[str]) -> dict[str, str]:
    """Fields from field, value, field, value …"""
    if len(arguments) % 2:
        raise RejectedError("MALFORMED_COMMAND")
    names = arguments[::2]
    if len(set(names)) < len(names):
        raise RejectedError("DUPLICATE_FIELD")
    return dict(zip(names, arguments[1::2], strict=True))


def texts(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields from a decoded JSON object, where what is true or false may be so in JSON."""
    read = {}
    for name, value in fields.items():
        if name in {"post_only", "validate_only"} and isinstance(value, bool):
            read[name] = "true" if value else "false"
        elif isinstance(value, str):
            read[name] = value
        else:
            raise RejectedError("WRONG_TYPE")
    return read


def check_shape(function: str, fields: Mapping[str, str]) -> None:
    """Everything that can be said of a command without looking at the book."""
    required, optional = FIELDS[function]
    if any(name not in required + optional for name in fields):
        raise RejectedError("UNKNOWN_FIELD")
    if any(name not in fields for name in required):
        raise RejectedError("MISSING_FIELD")
    for name, value in fields.items():
        check_value(name, value)
    is_order = function in {"place_order", "replace_order", "an order of a list"}
    if is_order and Decimal(fields.get("protection", "1")) == 0:
        raise RejectedError("INVALID_VALUE")
    if function in {"place_order", "replace_order"}:
        check_place_shape(fields)
    elif function in {"cancel_order", "amend_order", "get_order"}:
        check_naming_shape(fields)
    if function == "amend_order":
        check_amend_shape(fields)
    elif function == "replace_order":
        check_replace_shape(fields)
    elif function == "mass_quote":
        check_quotes(fields["quotes"])


def check_value(name: str, value: str) -> None:
    if name in COUNTS:
        fits = bool(ORDER_ID.fullmatch(value)) and int(value) <= COUNTS[name]
        if name in {"window_ms", "breaker_duration_ms", "timeout_ms"}:
            fits = fits and int(value) >= DURATION_MS_MIN
        fits = fits or (name, value) in ZEROS
    elif name in ENUMERATIONS:
        fits = value in ENUMERATIONS[name]
    elif name in PATTERNS:
        too_large = PATTERNS[name] is ORDER_ID and value.isdigit() and int(value) > EXACT_MAX
        fits = not too_large and bool(PATTERNS[name].fullmatch(value))
    elif name in {"protection", "price_band", "limit_percent"}:
        fits = is_percent(value, PERCENT_MAX)
    elif name == "trailing_offset" and value.endswith("%"):
        fits = is_percent(value[:-1], OFFSET_PERCENT_MAX) and Decimal(value[:-1]) > 0
    else:
        fits = True
    if not fits:
        raise RejectedError("INVALID_VALUE")


def is_percent(value: str, most: int) -> bool:
    if len(value) > NUMBER_LENGTH_MAX or not DECIMAL_TEXT.fullmatch(value):
        return False
    return Decimal(value) <= most and decimals(Decimal(value)) <= PERCENT_DECIMALS_MAX


def time_in_force(fields: Mapping[str, str]) -> str:
    """As asked for, or as an order of this type has it."""
    needs, _ = ORDER_TYPES[fields["order_type"]]
    return fields.get("time_in_force", "gtc" if "price" in needs else "ioc")


def can_stay_open(fields: Mapping[str, str]) -> bool:
    """Whether an order may be open when its command is done."""
    return fields["order_type"] in STOP_TYPES or time_in_force(fields) in RESTING


def check_place_shape(fields: Mapping[str, str]) -> None:
    """What is missing comes before what is too much."""
    needs, may = ORDER_TYPES[fields["order_type"]]
    in_force = time_in_force(fields)
    given = {name for name in fields if (name, fields[name]) != ("post_only", "false")}
    missing = needs - given
    if in_force == "gtd":
        missing |= {"expire_time_ms"} - given
    if missing or not given & {"quantity", "quote_quantity"}:
        raise RejectedError("MISSING_FIELD")
    not_allowed = (
        given & TYPE_FIELDS - needs - may,
        "price" not in needs and in_force in RESTING,
        "expire_time_ms" in given and in_force != "gtd",
        given & {"display_quantity", "post_only"} and in_force not in RESTING,
        "quote_quantity" in given and ("quantity" in given or in_force == "fok"),
    )
    if any(not_allowed):
        raise RejectedError("FIELD_NOT_ALLOWED")


def read_list(fields: Mapping[str, str]) -> list[dict[str, str]]:
    """The orders of a list, each with the fields it would have by itself."""
    try:
        found = json.loads(fields["orders"])
    except ValueError as error:
        raise RejectedError("INVALID_ORDER_LIST") from error
    length = 3 if fields["list_type"] == "bracket" else 2
    is_list = isinstance(found, list) and all(isinstance(one, dict) for one in found)
    if not is_list or len(found) != length:
        raise RejectedError("INVALID_ORDER_LIST")
    members = []
    for one in found:
        member = texts(one)
        check_shape("an order of a list", member)
        lists_own = {name: fields[name] for name in ("account", "session") if name in fields}
        members.append({**member, **lists_own})
    check_list(fields["list_type"], members)
    for member in members:
        member.setdefault("quantity", members[0].get("quantity", ""))
        if not member["quantity"]:
            del member["quantity"]
        check_place_shape(member)
    return members


def check_list(list_type: str, members: list[dict[str, str]]) -> None:
    """What goes together."""
    legs = members if list_type == "oco" else members[1:]
    fits = all(fits_as_leg(leg) for leg in legs)
    if len(legs) == 2:
        fits = fits and legs[0]["side"] == legs[1]["side"]
        fits = fits and any(leg["order_type"] in STOP_TYPES for leg in legs)
    if list_type == "bracket":
        fits = fits and legs[0]["side"] != members[0]["side"]
    if list_type != "oco":
        fits = fits and not any("quantity" in leg for leg in legs)
    if not fits:
        raise RejectedError("INVALID_ORDER_LIST")


def fits_as_leg(leg: Mapping[str, str]) -> bool:
    must_rest = leg["order_type"] == "limit" and leg.get("time_in_force") in {"ioc", "fok"}
    is_special = leg.get("post_only") == "true" or "display_quantity" in leg
    return leg["order_type"] != "market" and not must_rest and not is_special


def check_naming_shape(fields: Mapping[str, str]) -> None:
    """An order is named by order_id or by account and client_order_id."""
    if "client_order_id" in fields and "account" not in fields:
        raise RejectedError("MISSING_FIELD")
    if "order_id" not in fields and "client_order_id" not in fields:
        raise RejectedError("MISSING_FIELD")


def check_amend_shape(fields: Mapping[str, str]) -> None:
    if not fields.keys() & {"price", "stop_price", "quantity", "remaining_quantity"}:
        raise RejectedError("MISSING_FIELD")
    if {"quantity", "remaining_quantity"} <= fields.keys():
        raise RejectedError("FIELD_NOT_ALLOWED")


def check_replace_shape(fields: Mapping[str, str]) -> None:
    named = fields.keys() & {"cancel_order_id", "cancel_client_order_id"}
    if len(named) != 1:
        raise RejectedError("FIELD_NOT_ALLOWED" if named else "MISSING_FIELD")


def check_quotes(value: str) -> None:
    """Quotes are a JSON list of flat objects of text."""
    try:
        quotes = json.loads(value, object_pairs_hook=pairs_once)
    except ValueError:
        raise RejectedError("INVALID_VALUE") from None
    if not isinstance(quotes, list) or len(quotes) > QUOTES_MAX:
        raise RejectedError("INVALID_VALUE")
    required, optional = QUOTE_FIELDS
    for quote in quotes:
        if not isinstance(quote, dict) or not required <= quote.keys() <= required | optional:
            raise RejectedError("INVALID_VALUE")
        for name, given in quote.items():
            if not isinstance(given, str):
                raise RejectedError("INVALID_VALUE")
            check_value(name, given)


def pairs_once(members: list[tuple[str, Any]]) -> Json:
    """A JSON object without equal names."""
    if len(dict(members)) < len(members):
        raise ValueError("a name appears twice")
    return dict(members)
