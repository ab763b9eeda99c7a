"""The oracle: an order book in plain Python, slow and obvious, written from docs/protocol.md alone.

The rules, as this file understands them.

*A book* is two queues of resting orders. Bids stand highest price first, asks lowest first; at one
price, the order with the smaller `priority` stands first. Priority is one counter: an order gets
the next number when it is accepted, and again whenever it must queue anew. Nothing else decides.

*An incoming order* (the taker) trades with the opposite queue from its front for as long as prices
cross, always at the price of the resting order (the maker), always as much as both have. A trade
changes exactly two orders. What is left of a limit gtc order queues at its own price; what is left
of an ioc or market order is canceled. A fok order first looks whether the whole of it would trade,
and if not is canceled whole. A post_only order that would trade at all is refused.

*An accepted order* has an order_id, from one counter, whatever becomes of it; a refused one has
none, and leaves no trace of any kind.

*Amending* keeps the order's id and terms but for price and quantity. `quantity` is the new total,
the filled part included, `remaining_quantity` what is to stay open. Where the price stays and the
quantity shrinks the order keeps its priority. Otherwise it is taken out of its queue and comes in
again like a new order, with a new priority, and may trade.

*A call* is one command or a batch of them. All changes of a call are one `sequence`: one entry in
the event stream, whose topics tell what happened: reports to each account in the order they came
about, the trades, the levels whose totals differ from before the call. A call that changed nothing
takes no sequence. A command that changed nothing tells the sequence of the last change before it,
which may be one of its own batch.

*A retry* is recognised by (account, client_order_id): the same content again gets the same reply
again, word for word, before anything else is looked at but the shape of its fields; other content
is refused. A cancel or amend that names its *order* by client_order_id has no id of its own: there
only the order's last amend or cancel is recognised when repeated.

*Checks* come in the order: shape of the fields, retry, which order, status of the instrument,
price and quantity (where text that is no number is found out), post_only, number of fills, total of
the level.

Numbers are Decimals, exact by construction. Time is not the book's business: every `timestamp_ms`
here is 0, and a comparison ignores it. Every collection is searched from its beginning.
"""

import copy
import decimal
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

# Wide enough for 40 digits times 40 digits: no rounding ever happens.
decimal.getcontext().prec = 100

EXACT_MAX = 2**53 - 1
NUMBER_LENGTH_MAX = 40
FILLS_MAX = 10_000
MAKER_ACCOUNTS_MAX = 3500
BATCH_MAX = 256
CANCELED_MAX = 1000
REMAINING_COUNT_MAX = 10_000
DEPTH_MAX = 10_000
CHECKSUM_DEPTH = 10

ACCOUNT = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
CLIENT_ORDER_ID = re.compile(r"[A-Za-z0-9_.@:/-]{1,64}")
ORDER_ID = re.compile(r"[1-9][0-9]{0,15}")
DECIMAL_TEXT = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")

Json = dict[str, Any]

SIDES = ("buy", "sell")
OPPOSITE = {"buy": "sell", "sell": "buy"}
STATUS_REJECTS = {"halted": "INSTRUMENT_HALTED", "cancel_only": "INSTRUMENT_CANCEL_ONLY"}

ENUMERATIONS = {
    "side": SIDES,
    "order_type": ("limit", "market"),
    "time_in_force": ("gtc", "ioc", "fok"),
    "post_only": ("true", "false"),
    "status": ("trading", "halted", "cancel_only"),
}
PATTERNS = {"account": ACCOUNT, "client_order_id": CLIENT_ORDER_ID, "order_id": ORDER_ID}
# Whole numbers and the largest value of each.
COUNTS = {
    "limit": 1000,
    "depth": DEPTH_MAX,
    "after": EXACT_MAX,
    "events_length_max": 10_000_000,
    "trades_length_max": 10_000_000,
    "book_length_max": 10_000_000,
}

# function -> (fields it must have, fields it may have).
FIELDS = {
    "define_instrument": (
        (),
        (
            "tick_size", "lot_size", "min_quantity", "max_quantity", "status",
            "events_length_max", "trades_length_max", "book_length_max",
        ),
    ),
    "place_order": (
        ("account", "side", "order_type", "quantity"),
        ("price", "time_in_force", "post_only", "client_order_id"),
    ),
    "cancel_order": ((), ("order_id", "account", "client_order_id")),
    "amend_order": (
        (),
        ("order_id", "account", "client_order_id", "price", "quantity", "remaining_quantity"),
    ),
    "cancel_all_orders": (("account",), ()),
    "begin_epoch": (("run_id",), ()),
    "get_book": ((), ("depth",)),
    "get_order": ((), ("order_id", "account", "client_order_id")),
    "get_open_orders": (("account",), ("after", "limit")),
    "get_trades": ((), ("limit",)),
    "get_instrument": ((), ()),
    "verify_book": ((), ()),
}  # fmt: skip
BATCH_METHODS = ("place_order", "cancel_order", "amend_order", "cancel_all_orders")


class RejectedError(Exception):
    """The command is refused; nothing has changed."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Order:
    """One accepted order; price is None for a market order."""

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

    @property
    def filled(self) -> Decimal:
        return self.quantity - self.remaining

    @property
    def status(self) -> str:
        """Of an order that was not canceled."""
        if self.remaining == 0:
            return "filled"
        return "partially_filled" if self.filled else "open"

    def terms(self) -> Json:
        terms: Json = {"order_id": str(self.order_id)}
        if self.client_order_id is not None:
            terms["client_order_id"] = self.client_order_id
        terms |= {
            "side": self.side,
            "order_type": self.order_type,
            "time_in_force": self.time_in_force,
        }
        if self.post_only:
            terms["post_only"] = True
        terms["quantity"] = text(self.quantity)
        if self.price is not None:
            terms["price"] = text(self.price)
        return terms

    def crosses(self, price: Decimal) -> bool:
        """Whether this order, as a taker, accepts a maker's price."""
        if self.price is None:
            return True
        return price <= self.price if self.side == "buy" else price >= self.price


@dataclass
class Call:
    """What one call has changed so far, of which its stream entry is made at the end."""

    levels_before: dict[str, dict[Decimal, Decimal]]
    sequence_before: int
    changed: bool = False
    fills: int = 0
    # By cancel_all_orders, which has a limit to the call.
    canceled: int = 0
    maker_accounts: set[str] = field(default_factory=set)
    trades: list[Json] = field(default_factory=list)
    reports: dict[str, list[Json]] = field(default_factory=dict)
    topics: Json = field(default_factory=dict)
    # Whatever must tell the sequence of this call, which is known at its end.
    stamped: list[Json] = field(default_factory=list)

    def report(self, account: str, event: str, **content: Any) -> None:
        self.changed = True
        self.reports.setdefault(account, []).append({"event": event, **content, "timestamp_ms": 0})


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
        self.epoch = 1
        self.run_id: str | None = None
        self.last_order_id = 0
        self.last_trade_id = 0
        self.last_priority = 0
        self.last_price: Decimal | None = None
        # (account, client_order_id) -> the command that had this id of its own.
        self.remembered: dict[tuple[str, str], Remembered] = {}
        # order_id -> the order's last amend or cancel.
        self.last_change: dict[int, Remembered] = {}
        # (account, client_order_id) -> the order placed under that name last.
        self.named: dict[tuple[str, str], int] = {}

    # ---- the doors

    def call(self, function: str, *arguments: str) -> Json:
        """FCALL of any function but execute, publish_book and library_version."""
        call = self._begin()
        return self._finish(call, [self._guarded(call, function, lambda: pairs(arguments))])[0]

    def execute(self, commands: Sequence[Any]) -> list[Json] | Json:
        """FCALL execute; the commands are decoded JSON values."""
        if not commands:
            return rejected("MALFORMED_COMMAND", {})
        if len(commands) > BATCH_MAX:
            return rejected("BATCH_TOO_LARGE", {})
        call = self._begin()
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
            return command(call, fields)
        except RejectedError as error:
            return rejected(error.code, fields)

    def _begin(self) -> Call:
        return Call({side: self.levels(side) for side in SIDES}, self.sequence)

    def _finish(self, call: Call, replies: list[Json]) -> list[Json]:
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
        for name, value in fields.items():
            new[name] = new_rule(name, value)
        self._check_steps(new)
        set_default_limits(new)
        check_limits(new)
        if new != self.instrument:
            self.instrument = new
            call.changed = True
        reply = self._get_instrument(call, {})
        if call.changed:
            call.topics["instruments"] = {"instrument": reply}
            call.stamped.append(reply)
        return reply

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
            "events_length_max": 100_000,
            "trades_length_max": 100_000,
            "book_length_max": 1000,
        }

    def _begin_epoch(self, call: Call, fields: Mapping[str, str]) -> Json:
        reply = {"epoch": self.epoch, "sequence": self.sequence}
        if fields["run_id"] != self.run_id:
            self.run_id = fields["run_id"]
            self.epoch += 1
            reply["epoch"] = self.epoch
            call.changed = True
            call.topics["epoch"] = {}
            call.stamped.append(reply)
        return reply

    # ---- placing

    def _place_order(self, call: Call, fields: Mapping[str, str]) -> Json:
        content = ("place_order", normal(fields))
        if (remembered := self._recall(fields, content)) is not None:
            return remembered
        self._check_taken_name(fields)
        self._check_status()
        order = self._new_order(fields)
        self._check_match(call, order)
        self.last_order_id += 1
        self.last_priority += 1
        order.order_id = self.last_order_id
        order.priority = self.last_priority
        call.report(order.account, "accepted", **order.terms(), priority=order.priority)
        reply = self._match(call, order)
        self._remember(fields, content, reply)
        if order.client_order_id is not None:
            self.named[order.account, order.client_order_id] = order.order_id
        return reply

    def _new_order(self, fields: Mapping[str, str]) -> Order:
        order_type = fields["order_type"]
        price = self._checked_price(fields["price"]) if "price" in fields else None
        quantity = self._checked_quantity(fields["quantity"])
        return Order(
            order_id=0,
            account=fields["account"],
            client_order_id=fields.get("client_order_id"),
            side=fields["side"],
            order_type=order_type,
            time_in_force=fields.get("time_in_force", "gtc" if order_type == "limit" else "ioc"),
            post_only=fields.get("post_only") == "true",
            quantity=quantity,
            price=price,
            remaining=quantity,
            priority=0,
        )

    def _checked_price(self, value: str) -> Decimal:
        tick = self.instrument["tick_size"]
        price = exact_number(value, tick)
        if price == 0:
            raise RejectedError("PRICE_NOT_POSITIVE")
        if price % tick:
            raise RejectedError("PRICE_OFF_TICK")
        return price

    def _checked_quantity(self, value: str) -> Decimal:
        lot = self.instrument["lot_size"]
        quantity = exact_number(value, lot)
        if quantity % lot:
            raise RejectedError("QUANTITY_OFF_LOT")
        if quantity < self.instrument["min_quantity"]:
            raise RejectedError("QUANTITY_TOO_SMALL")
        if quantity > self.instrument["max_quantity"]:
            raise RejectedError("QUANTITY_TOO_LARGE")
        return quantity

    def _check_status(self) -> None:
        status = self.instrument["status"]
        if status != "trading":
            raise RejectedError(STATUS_REJECTS[status])

    # ---- matching

    def queue(self, side: str) -> list[Order]:
        """The open orders of a side in the order in which they will trade."""
        direction = -1 if side == "buy" else 1
        orders = [order for order in self.orders if order.side == side]
        return sorted(orders, key=lambda order: (direction * price_of(order), order.priority))

    def _plan(self, taker: Order) -> list[tuple[Order, Decimal]]:
        """Which makers the taker would trade with, and how much with each."""
        plan = []
        wanted = taker.remaining
        for maker in self.queue(OPPOSITE[taker.side]):
            if maker is taker or wanted == 0 or not taker.crosses(price_of(maker)):
                break
            quantity = min(wanted, maker.remaining)
            plan.append((maker, quantity))
            wanted -= quantity
        if wanted and taker.time_in_force == "fok":
            return []
        return plan

    def _check_match(self, call: Call, taker: Order) -> None:
        plan = self._plan(taker)
        if plan and taker.post_only:
            raise RejectedError("POST_ONLY_WOULD_CROSS")
        accounts = call.maker_accounts | {maker.account for maker, _ in plan}
        if call.fills + len(plan) > FILLS_MAX or len(accounts) > MAKER_ACCOUNTS_MAX:
            raise RejectedError("TOO_MANY_FILLS")
        if taker.time_in_force == "gtc":
            self._check_level(taker, taker.remaining - sum(quantity for _, quantity in plan))

    def _check_level(self, order: Order, remaining: Decimal) -> None:
        others = sum(
            other.remaining
            for other in self.orders
            if other.side == order.side and other.price == order.price
            and other.order_id != order.order_id
        )  # fmt: skip
        scale = Decimal(10) ** decimals(self.instrument["lot_size"])
        if (others + remaining) * scale > EXACT_MAX:
            raise RejectedError("LEVEL_QUANTITY_TOO_LARGE")

    def _match(self, call: Call, taker: Order) -> Json:
        fills = []
        for maker, quantity in self._plan(taker):
            fills.append(self._trade(call, maker, taker, quantity))
        status = taker.status
        if taker.remaining and taker.time_in_force == "gtc":
            self.orders.append(taker)
        elif taker.remaining:
            status = "canceled"
            reason = "fok" if taker.time_in_force == "fok" else "ioc"
            self._report_canceled(call, taker, reason)
        reply = {
            **taker.terms(),
            "remaining_quantity": text(taker.remaining),
            "status": status,
            "fills": fills,
            "timestamp_ms": 0,
        }
        call.stamped.append(reply)
        return reply

    def _trade(self, call: Call, maker: Order, taker: Order, quantity: Decimal) -> Json:
        self.last_trade_id += 1
        trade_id, price = str(self.last_trade_id), price_of(maker)
        maker.remaining -= quantity
        taker.remaining -= quantity
        for role, order in (("taker", taker), ("maker", maker)):
            report: Json = {"order_id": str(order.order_id)}
            if order.client_order_id is not None:
                report["client_order_id"] = order.client_order_id
            report |= {
                "trade_id": trade_id,
                "role": role,
                "side": order.side,
                "price": text(price),
                "quantity": text(quantity),
                "remaining_quantity": text(order.remaining),
                "status": order.status,
            }
            call.report(order.account, "trade", **report)
        if maker.remaining == 0:
            self._leave(maker)
        self.last_price = price
        call.fills += 1
        call.maker_accounts.add(maker.account)
        trade = {
            "trade_id": trade_id,
            "price": text(price),
            "quantity": text(quantity),
            "aggressor_side": taker.side,
            "maker_order_id": str(maker.order_id),
            "taker_order_id": str(taker.order_id),
            "timestamp_ms": 0,
        }
        self.trades.append(trade)
        call.trades.append(trade)
        call.stamped.append(trade)
        return {
            "trade_id": trade_id,
            "price": text(price),
            "quantity": text(quantity),
            "maker_order_id": str(maker.order_id),
        }

    # ---- canceling and amending

    def _cancel_order(self, call: Call, fields: Mapping[str, str]) -> Json:
        content = ("cancel_order", normal(fields))
        if (remembered := self._recall(fields, content)) is not None:
            return remembered
        order = self._find(fields)
        self._leave(order)
        self._report_canceled(call, order, "requested")
        reply = {
            **order.terms(),
            "remaining_quantity": text(order.remaining),
            "status": "canceled",
            "timestamp_ms": 0,
        }
        call.stamped.append(reply)
        self._remember(fields, content, reply, order)
        return reply

    def _amend_order(self, call: Call, fields: Mapping[str, str]) -> Json:
        content = ("amend_order", normal(fields))
        if (remembered := self._recall(fields, content)) is not None:
            return remembered
        order = self._find(fields)
        self._check_status()
        amended = self._amended(order, fields)
        keeps_place = amended.price == order.price and amended.quantity < order.quantity
        self._leave(order)
        try:
            if not keeps_place:
                self._check_match(call, amended)
        except RejectedError:
            self.orders.append(order)
            raise
        if not keeps_place:
            self.last_priority += 1
            amended.priority = self.last_priority
        call.report(
            amended.account,
            "amended",
            **amended.terms(),
            remaining_quantity=text(amended.remaining),
            priority=amended.priority,
        )
        reply = self._match(call, amended)
        self._remember(fields, content, reply, amended)
        return reply

    def _amended(self, order: Order, fields: Mapping[str, str]) -> Order:
        amended = copy.copy(order)
        if "price" in fields:
            amended.price = self._checked_price(fields["price"])
        if "quantity" in fields:
            amended.quantity = self._checked_quantity(fields["quantity"])
        if "remaining_quantity" in fields:
            remaining = exact_number(fields["remaining_quantity"], self.instrument["lot_size"])
            if remaining % self.instrument["lot_size"]:
                raise RejectedError("QUANTITY_OFF_LOT")
            if remaining == 0:
                raise RejectedError("QUANTITY_TOO_SMALL")
            amended.quantity = self._checked_quantity(text(order.filled + remaining))
        if amended.quantity <= order.filled:
            raise RejectedError("QUANTITY_BELOW_FILLED")
        amended.remaining = amended.quantity - order.filled
        return amended

    def _cancel_all_orders(self, call: Call, fields: Mapping[str, str]) -> Json:
        mine = [order for order in self.orders if order.account == fields["account"]]
        mine.sort(key=lambda order: order.order_id)
        count = CANCELED_MAX - call.canceled
        canceled, left = mine[:count], mine[count:]
        call.canceled += len(canceled)
        for order in canceled:
            self._leave(order)
            self._report_canceled(call, order, "cancel_all")
        reply = {
            "account": fields["account"],
            "canceled_order_ids": [str(order.order_id) for order in canceled],
            "canceled_count": len(canceled),
            "remaining_count": min(len(left), REMAINING_COUNT_MAX),
            "sequence": call.sequence_before,
            "timestamp_ms": 0,
        }
        if call.changed:
            call.stamped.append(reply)
        return reply

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
                    raise RejectedError("NOT_ORDER_OWNER")
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
        if content[0] == "place_order" or "order_id" in fields:
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
            levels[price_of(order)] = levels.get(price_of(order), Decimal(0)) + order.remaining
        return levels

    def depth(self, side: str, levels_max: int) -> list[list[str]]:
        levels = list(self.levels(side).items())[:levels_max]
        return [[text(price), text(quantity)] for price, quantity in levels]

    def checksum(self) -> int:
        """Kraken v2: asks low to high, then bids high to low, without points and leading zeros."""
        digits = ""
        for side in ("sell", "buy"):
            for price, quantity in self.depth(side, CHECKSUM_DEPTH):
                digits += price.replace(".", "").lstrip("0")
                digits += quantity.replace(".", "").lstrip("0")
        return zlib.crc32(digits.encode())

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
        }

    def _described(self, order: Order) -> Json:
        return {
            **order.terms(),
            "remaining_quantity": text(order.remaining),
            "status": order.status,
            "timestamp_ms": 0,
        }

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
        return reply

    def _verify_book(self, _: Call, __: Mapping[str, str]) -> Json:
        """But for the state_hash, which is the engine's own."""
        return {
            "verified": True,
            "orders": len(self.orders),
            "levels": sum(len(self.levels(side)) for side in SIDES),
            "sequence": self.sequence,
        }


def new_rule(name: str, value: str) -> Any:
    """The value of an instrument's field."""
    if name in COUNTS:
        return int(value)
    return value if name == "status" else decimal_number(value)


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
    assert order.price is not None, "only limit orders rest"
    return order.price


def decimal_number(value: str) -> Decimal:
    if len(value) > NUMBER_LENGTH_MAX or not DECIMAL_TEXT.fullmatch(value):
        raise RejectedError("INVALID_NUMBER")
    return Decimal(value)


def exact_number(value: str, step: Decimal) -> Decimal:
    """Refuses what, counted in the last decimal of the step, is beyond exactness."""
    number = decimal_number(value)
    if number * Decimal(10) ** decimals(step) > EXACT_MAX:
        raise RejectedError("INVALID_NUMBER")
    return number


def normal(fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """The content of a command: its fields, in whatever order they came."""
    return sorted(fields.items())


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
    """Fields from a decoded JSON object; post_only may be true or false there."""
    read = {}
    for name, value in fields.items():
        if name == "post_only" and isinstance(value, bool):
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
    if function == "place_order":
        check_place_shape(fields)
    elif function in {"cancel_order", "amend_order", "get_order"}:
        check_naming_shape(fields)
    if function == "amend_order":
        check_amend_shape(fields)


def check_value(name: str, value: str) -> None:
    if name in COUNTS:
        is_all = name == "depth" and value == "full"
        if not is_all and not (ORDER_ID.fullmatch(value) and int(value) <= COUNTS[name]):
            raise RejectedError("INVALID_VALUE")
    elif name in ENUMERATIONS:
        if value not in ENUMERATIONS[name]:
            raise RejectedError("INVALID_VALUE")
    elif name in PATTERNS:
        too_large = name == "order_id" and value.isdigit() and int(value) > EXACT_MAX
        if too_large or not PATTERNS[name].fullmatch(value):
            raise RejectedError("INVALID_VALUE")


def check_place_shape(fields: Mapping[str, str]) -> None:
    is_limit = fields["order_type"] == "limit"
    time_in_force = fields.get("time_in_force", "gtc" if is_limit else "ioc")
    if is_limit and "price" not in fields:
        raise RejectedError("MISSING_FIELD")
    if not is_limit and ("price" in fields or time_in_force == "gtc"):
        raise RejectedError("FIELD_NOT_ALLOWED")
    if fields.get("post_only") == "true" and time_in_force != "gtc":
        raise RejectedError("FIELD_NOT_ALLOWED")


def check_naming_shape(fields: Mapping[str, str]) -> None:
    """An order is named by order_id or by account and client_order_id."""
    if "client_order_id" in fields and "account" not in fields:
        raise RejectedError("MISSING_FIELD")
    if "order_id" not in fields and "client_order_id" not in fields:
        raise RejectedError("MISSING_FIELD")


def check_amend_shape(fields: Mapping[str, str]) -> None:
    if not fields.keys() & {"price", "quantity", "remaining_quantity"}:
        raise RejectedError("MISSING_FIELD")
    if {"quantity", "remaining_quantity"} <= fields.keys():
        raise RejectedError("FIELD_NOT_ALLOWED")
