"""Brings a damaged book back to what its event stream tells.

The stream entry is the first write of every call, so the stream tells what a book has to be, also
where a write was broken off behind its entry or a key was lost. A book is rebuilt from the first
entry (mirror.py) under names of its own, and takes the place of the stored one in one transaction,
which halts it, too. A trader sees the damaged book, which refuses everything, or the whole one.
Nothing is deleted: what was replaced is kept under `…:repaired:TIME:…`.

The stream does not tell timers, candles and stored replies. They are kept as they are, and the
result says what they may lack.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
from redis.exceptions import RedisError

from orderbook.engine.engine import Engine
from orderbook.engine.wire import RedisReply, Wire
from orderbook.feed.mirror import Mirror, Order, OrdersMessage, Report
from orderbook.feed.replay import ENTRIES_PER_PAGE, replay

ATTEMPTS_MAX = 5
ARGUMENTS_PER_WRITE = 1000
SCAN_COUNT = 1000
EXACT_MAX = 2**53 - 1

# What a key holds: a hash, a sorted set by member, or a set.
Pairs = dict[str, str]
_WRITES = {"hash": "HSET", "zset": "ZADD", "set": "SADD"}
# Keys that the stream does not tell, with the type that each must have.
_KEPT = {
    "timers": "zset",
    "candles": "hash",
    "trades": "stream",
    "book": "stream",
} | {f"candles:{interval}": "zset" for interval in ("1m", "5m", "15m", "1h", "1d")}
# The stored replies of each account: two hashes.
_REPLIES = "stored_replies:"
_GENERATION_START = "generation start_ms"
# Keys that there are for each account or session.
_PER_ACCOUNT = ("orders:", "quotes:", "sessions:")
_ONE_EACH = (
    *("bids", "asks", "bids:levels", "asks:levels", "orders", "client_orders", "expiries"),
    *("stops:rising", "stops:falling", "stops:trailing:buy", "stops:trailing:sell"),
    *("order_lists", "order_lists:dormant", "paused"),
)
# What get_instrument tells beside the rules of an instrument.
_NO_RULES = frozenset({"symbol", "segment", "open_orders", "last_price", "sequence", "epoch"})

# The rules and the counters that each have one line of the book's own hash:
# lua/records/instrument_record.lua.
_RULES = (
    *("tick_size", "lot_size", "min_quantity", "max_quantity", "status"),
    *("events_length_max", "trades_length_max", "book_length_max"),
    *("epoch", "run_id", "server_run_id"),
)
_STATE = (
    *("sequence", "last_order_id", "last_trade_id", "last_priority", "open_orders"),
    *("largest_order_lots", "last_price"),
)

_STATE_LINE = re.compile(r"(\d+ ){6}\S+")

_decode_orders = msgspec.json.Decoder(OrdersMessage).decode


class RepairError(Exception):
    """The book cannot be repaired; the message says why and what to do. Nothing was changed."""


class _ChangedError(Exception):
    """The book was changed while it was being rebuilt."""


@dataclass
class _OrderList:
    """An order list: its orders in their order, and whether each was active from the beginning.

    Of a bracket `left_out` is the leg that could not come in, without which it goes on.
    """

    order_ids: list[str] = field(default_factory=list)
    active: list[bool] = field(default_factory=list)
    left_out: str = ""

    @property
    def kind(self) -> str:
        if all(self.active):
            return "oco"
        return "oto" if len(self.order_ids) == 2 else "bracket"  # noqa: PLR2004

    @property
    def kept_ids(self) -> list[str]:
        return [order_id for order_id in self.order_ids if order_id != self.left_out]


class Story(Mirror):
    """A book rebuilt from its entries, with what has to be stored beside what the hash covers."""

    def __init__(self) -> None:
        super().__init__()
        self.last_priority = 0
        # The sequence of the last definition.
        self.defined_sequence = 0
        self.order_lists: dict[str, _OrderList] = {}
        self._placed_ms: dict[str, int] = {}
        self._filled: dict[str, Decimal] = {}

    def apply(self, sequence: int, topics: Iterable[tuple[bytes, bytes]]) -> None:
        told = list(topics)
        super().apply(sequence, told)
        for topic, message in told:
            if topic == b"instruments":
                self.defined_sequence = sequence
            elif topic.startswith(b"orders:"):
                for report in _decode_orders(message).orders:
                    self._note(report)

    def _note(self, report: Report) -> None:
        self.last_priority = max(self.last_priority, report.priority)
        if report.event == "accepted":
            self._placed_ms[report.order_id] = report.timestamp_ms
            if report.order_list_id:
                found = self.order_lists.setdefault(report.order_list_id, _OrderList())
                found.order_ids.append(report.order_id)
                found.active.append(report.armed)
        elif report.reason == "too_large" and report.order_list_id not in {"", report.order_id}:
            found = self.order_lists[report.order_list_id]
            found.left_out = report.order_id if found.kind == "bracket" else ""
        elif report.event == "trade" and report.order_id in self.order_lists:
            filled = self._filled.get(report.order_id, Decimal(0))
            self._filled[report.order_id] = filled + Decimal(report.quantity)

    # ---- what is stored

    def keys(self) -> dict[str, tuple[str, Pairs]]:
        """What each key of the book holds but for the book's own hash: its type, and its pairs."""
        found: dict[str, tuple[str, Pairs]] = {}

        def put(suffix: str, kind: str, name: str, value: str = "") -> None:
            found.setdefault(suffix, (kind, {}))[1][name] = value

        for side, sign in (("buy", -1), ("sell", 1)):
            levels: dict[int, int] = {}
            for order in self.queue(side):
                ticks = self._ticks(order.terms.price)
                levels[ticks] = levels.get(ticks, 0) + self._lots(order.shown)
                put(_SIDE_KEYS[side], "zset", _member(order), str(sign * ticks))
            for ticks, lots in levels.items():
                put(f"{_SIDE_KEYS[side]}:levels", "hash", str(ticks), str(lots))
        for order_id, order in self.book.orders.items():
            put("orders", "hash", order_id, self.record(order))
            self._put_indexes(put, order_id, order)
            self._put_waiting(put, order_id, order)
        for list_id, text in self.open_lists().items():
            put("order_lists", "hash", list_id, text)
        return found

    @staticmethod
    def _put_indexes(put: Any, order_id: str, order: Order) -> None:
        terms, account = order.terms, order.account
        put(f"orders:{account}", "set", order_id)
        if terms.client_order_id:
            put("client_orders", "hash", f"{account} {terms.client_order_id}", order_id)
        if terms.quote:
            put(f"quotes:{account}", "set", order_id)
        if terms.session:
            put(f"sessions:{account}:{terms.session}", "set", order_id)
        if terms.expire_time_ms:
            put("expiries", "zset", f"{int(order_id):016d}", str(terms.expire_time_ms))

    def _put_waiting(self, put: Any, order_id: str, order: Order) -> None:
        """An order that waits outside the book."""
        if order.waits == "dormant":
            put("order_lists:dormant", "zset", _member(order), order.terms.order_list_id)
        elif order.waits == "paused":
            put("paused", "zset", _member(order), order_id)
        elif order.waits:
            sign = -1 if order.waits == "falling" else 1
            score = str(sign * self._stop_ticks(order))
            put(f"stops:{order.waits}", "zset", _member(order), score)
            if order.is_trailing:
                reference = str(self._ticks(order.reference_price))
                put(f"stops:trailing:{order.terms.side}", "zset", order_id, reference)

    def record(self, order: Order) -> str:
        """An order as one line: lua/records/order_record.lua."""
        side, price, quantity, remaining, account, client_order_id, flags = self._hash_line(
            order
        ).split(" ")[1:]
        place = f"{order.priority:016d} {self._placed_ms[order.terms.order_id]}"
        return f"{side} {price} {quantity} {remaining} {place} {account} {client_order_id} {flags}"

    def open_lists(self) -> dict[str, str]:
        """The order lists whose orders still hang together, as lua/matching/order_lists.lua stores
        them."""
        found = {}
        for list_id, one in self.order_lists.items():
            legs = self._open_legs(one)
            is_waiting = one.kind != "oto" or any(leg.waits == "dormant" for leg in legs)
            if legs and len(legs) == len(one.kept_ids) - (one.kind != "oco") and is_waiting:
                is_armed = one.kind != "oco" and legs[0].waits != "dormant"
                lots = self._lots(self._filled[list_id]) if is_armed else 0
                found[list_id] = f"{one.kind} {','.join(one.kept_ids)} {lots}"
        return found

    def _open_legs(self, one: _OrderList) -> list[Order]:
        ids = one.kept_ids if one.kind == "oco" else one.kept_ids[1:]
        return [self.book.orders[order_id] for order_id in ids if order_id in self.book.orders]

    def agenda(self) -> str:
        """What is still to be carried out, as stored: paused orders, and then the lists whose entry
        has filled and whose legs are not armed yet."""
        paused = [order_id for order_id, one in self.book.orders.items() if one.waits == "paused"]
        pending = [f"@{order_id}" for order_id in paused]
        for list_id, text in self.open_lists().items():
            kind, ids, armed = text.split(" ")
            filled, has_ended = self._filled.get(list_id), list_id not in self.book.orders
            if filled and armed == "0" and (kind == "bracket" or (kind == "oto" and has_ended)):
                pending.append(f"{ids.partition(',')[0]}:{self._lots(filled)}")
        return " ".join(pending)

    def book_hash(self, stored: Pairs, timers_count: int) -> Pairs:
        """The book's own hash: what the stream tells, over what is stored."""
        orders = list(self.book.orders.values())
        shown = [self._lots(order.shown) for order in orders if order.is_in_book]
        before = int(stored.get("largest_order_lots", "0")) if orders else 0
        is_behind = int(stored.get("sequence", "0")) != self.sequence
        told = {
            "symbol": self.instrument["symbol"],
            "epoch": self.epoch,
            "last_order_id": self.book.last_order_id,
            "last_trade_id": self.last_trade_id,
            "last_priority": max(self.last_priority, int(stored.get("last_priority", "0"))),
            "open_orders": len(orders),
            "largest_order_lots": max([before, *shown]),
            "sequence": self.sequence,
        }
        if self.last_price:
            told["last_price"] = self.last_price
        told |= self._rules(stored)
        features = self._features(orders, timers_count)
        if any(features.values()) or stored.get("extended") == "1" or "extended" in told:
            counted = {name for name, count in features.items() if count or name in stored}
            told |= {"extended": 1, **{name: features[name] for name in counted}}
            if is_behind or self._has_lost_agenda(stored):
                told["agenda"] = self.agenda()
        return stored | {name: str(value) for name, value in told.items()}

    def _has_lost_agenda(self, stored: Pairs) -> bool:
        """Whether a paused order is not on the stored agenda: nothing would go on with it."""
        items = stored.get("agenda", "").split()
        paused = [order_id for order_id, one in self.book.orders.items() if one.waits == "paused"]
        return any(f"@{order_id}" not in items for order_id in paused)

    def _rules(self, stored: Pairs) -> dict[str, Any]:
        """The rules that the stream tells where those that are stored are others."""
        told = {name: value for name, value in self.instrument.items() if name not in _NO_RULES}
        for name, value in self._default_quantities().items():
            if name not in stored and told[name] == value:
                del told[name]
        sequence = int(stored.get("sequence", "0"))
        is_stored = "tick_size" in stored and sequence >= self.defined_sequence
        if is_stored and all(stored.get(name, str(told[name])) == str(told[name]) for name in told):
            return {}
        for name, none in (("reopen_time_ms", "0"), ("halt_reason", "")):
            told.setdefault(name, none)
        return told | {"extended": 1}

    def _default_quantities(self) -> Pairs:
        lot = Decimal(self.instrument["lot_size"])
        decimals = -int(lot.as_tuple().exponent)
        lots_max = EXACT_MAX // int(lot.scaleb(max(decimals, 0)))
        most = format((lots_max * lot).normalize(), "f")
        return {"min_quantity": self.instrument["lot_size"], "max_quantity": most}

    def _features(self, orders: list[Order], timers_count: int) -> dict[str, int]:
        """The counters that few books have."""
        waiting = [order for order in orders if order.waits and order.waits != "dormant"]
        return {
            "gtd_orders": sum(1 for order in orders if order.terms.expire_time_ms),
            "iceberg_orders": sum(1 for order in orders if order.terms.display_quantity),
            "waiting_orders": len(waiting),
            "trailing_orders": sum(1 for order in waiting if order.is_trailing),
            "dormant_orders": sum(1 for order in orders if order.waits == "dormant"),
            "order_lists": len(self.open_lists()),
            "timers": timers_count,
        }


_SIDE_KEYS = {"buy": "bids", "sell": "asks"}


def _member(order: Order) -> str:
    return f"{order.priority:016d}:{order.terms.order_id}"


def unpacked(stored: Pairs) -> Pairs:
    """A book's own hash with each rule and each counter by its name."""
    found = {name: value for name, value in stored.items() if name not in {"rules", "state"}}
    for word in stored.get("rules", "").split():
        name, _, value = word.partition("=")
        found[name] = value
    state = stored.get("state", "")
    if not _STATE_LINE.fullmatch(state):
        return found
    counters = zip(_STATE, state.split(" "), strict=True)
    return found | {name: value for name, value in counters if value != "-"}


def packed(fields: Pairs) -> Pairs:
    """The hash as it is stored."""
    rules = [f"{name}={fields[name]}" for name in _RULES if name in fields]
    state = [fields.get(name, "-") for name in _STATE]
    rest = {name: value for name, value in fields.items() if name not in {*_RULES, *_STATE}}
    return rest | {"rules": " ".join(rules), "state": " ".join(state)}


@dataclass
class Repair:
    """What was done to a book."""

    symbol: str
    sequence_before: int
    sequence: int
    kept_as: str = ""
    replaced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    status: str = ""
    verified: bool = True
    equal: bool = True

    def summary(self) -> dict[str, Any]:
        """As the command line prints it."""
        return {
            "symbol": self.symbol,
            "repaired": bool(self.kept_as),
            "sequence_before": self.sequence_before,
            "sequence": self.sequence,
            "kept_as": self.kept_as,
            "replaced": self.replaced,
            "notes": self.notes,
            "status": self.status,
            "verified": self.verified,
            "equal": self.equal,
        }


async def repair(engine: Engine, symbol: str) -> Repair:
    """Rebuilds a book that is not what its stream tells. Raises RepairError, EngineError."""
    wire = await engine.open_primary(symbol)
    try:
        for _ in range(ATTEMPTS_MAX):
            try:
                done = await _Bench(wire, engine.book_key(symbol), symbol).repair()
                break
            except _ChangedError:
                continue
        else:
            message = f"{symbol} is being traded: set its status to halted, then repair it"
            raise RepairError(message)
    except RedisError as error:
        raise RepairError(f"{symbol} cannot be repaired: {error}") from error
    finally:
        wire.close()
        await wire.wait_closed()
    if engine.segment(symbol) is None:
        # Its definition was broken off before it was listed.
        await engine.define_instrument(symbol, status="halted")
    proof = await replay(engine, symbol)
    done.verified, done.equal = bool(proof.verdict["verified"]), bool(proof.is_equal)
    done.status = (await engine.get_instrument(symbol)).get("status", "")
    done.sequence = proof.verdict["sequence"]
    return done


class _Bench:
    """One try at one book, on a connection of its own."""

    def __init__(self, wire: Wire, key: str, symbol: str) -> None:
        self._wire = wire
        self._key = key
        self._symbol = symbol
        self._story = Story()
        self._tail: list[tuple[int, dict[bytes, bytes]]] = []

    def _name(self, suffix: str) -> str:
        return f"{self._key}:{suffix}" if suffix else self._key

    async def repair(self) -> Repair:
        """Raises _ChangedError where the book was changed meanwhile."""
        types = await self._types()
        stored = await self._stored_hash(types)
        before = int(stored.get("sequence", "0"))
        await self._read_story(before)
        rebuilt = self._story.keys()
        done = Repair(self._symbol, before, self._story.sequence)
        rebuilt[""] = await self._own_hash(stored, types)
        if await self._is_whole(rebuilt, types):
            return done
        done.kept_as = self._name(f"repaired:{time.time_ns() // 1_000_000}")
        try:
            await self._build(rebuilt)
            await self._watch(before)
            types = await self._types()
            rebuilt[""] = await self._own_hash(await self._stored_hash(types), types)
            await self._build({"": rebuilt[""]})
            await self._take_place(rebuilt, types, done)
        finally:
            await self._wire.call("UNLINK", *map(self._built, rebuilt))
        return done

    async def _watch(self, sequence: int) -> None:
        """From here on any change of the book makes the transaction fail."""
        await self._wire.call("WATCH", self._key, self._name("events"), self._name("timers"))
        stored = await self._stored_hash(await self._types())
        newest = await self._wire.call("XREVRANGE", self._name("events"), "+", "-", "COUNT", 1)
        is_same = newest and int(newest[0][0].partition(b"-")[0]) == self._story.sequence
        if int(stored.get("sequence", "0")) != sequence or not is_same:
            raise _ChangedError

    async def _own_hash(self, stored: Pairs, types: dict[str, str]) -> tuple[str, Pairs]:
        count = 0
        if types.get("timers") == "zset":
            count = await self._wire.call("ZCARD", self._name("timers"))
        return "hash", packed(self._story.book_hash(stored, count))

    async def _types(self) -> dict[str, str]:
        """The keys of the book that are there, and their types, but for what repairs left."""
        found: dict[str, str] = {}
        cursor = b"0"
        while True:
            arguments = ("MATCH", f"{self._key}*", "COUNT", SCAN_COUNT)
            cursor, names = await self._wire.call("SCAN", cursor, *arguments)
            for name in names:
                suffix = name.decode()[len(self._key) :]
                if suffix and not suffix.startswith(":"):
                    continue
                if not suffix.startswith((":repaired:", ":repairing:")):
                    found[suffix[1:]] = (await self._wire.call("TYPE", name)).decode()
            if cursor == b"0":
                return found

    async def _stored_hash(self, types: dict[str, str]) -> Pairs:
        if types.get("") != "hash":
            return {}
        words = [word.decode() for word in await self._wire.call("HGETALL", self._key)]
        return unpacked(dict(zip(words[::2], words[1::2], strict=True)))

    async def _read_story(self, before: int) -> None:
        """Rebuilds the book from its first entry to its last. Raises RepairError."""
        story, events = self._story, self._name("events")
        while True:
            first = f"{story.sequence + 1}-0"
            page = ("XRANGE", events, first, "+", "COUNT", ENTRIES_PER_PAGE)
            entries = await self._wire.call(*page)
            for entry_id, fields in entries:
                sequence = int(entry_id.partition(b"-")[0])
                if sequence != story.sequence + 1:
                    raise RepairError(_unreachable(self._symbol, story.sequence + 1, sequence))
                pairs = list(zip(fields[::2], fields[1::2], strict=True))
                story.apply(sequence, pairs)
                if sequence > before:
                    self._tail.append((sequence, dict(pairs)))
            if len(entries) < ENTRIES_PER_PAGE:
                break
        if story.sequence == 0:
            raise RepairError(f"{self._symbol} has no event stream to be rebuilt from: {_BACKUP}")
        if story.sequence < before:
            ends = f"ends at sequence {story.sequence}, and the book stands at {before}"
            raise RepairError(f"the stream of {self._symbol} {ends}: {_BACKUP}")

    async def _is_whole(self, rebuilt: dict[str, tuple[str, Pairs]], types: dict[str, str]) -> bool:
        """Whether all that is stored is what the stream tells."""
        for suffix, kind in types.items():
            kept_kind = _kept_kind(suffix)
            if kept_kind:
                if kind != kept_kind:
                    return False
            elif suffix != "events" and suffix not in rebuilt:
                return False
        for suffix, (kind, pairs) in rebuilt.items():
            if types.get(suffix) != kind:
                return False
            found = await self._pairs(suffix, kind)
            # A book of the old layout is whole, too.
            if (found if suffix else packed(unpacked(found))) != pairs:
                return False
        return True

    async def _pairs(self, suffix: str, kind: str) -> Pairs:
        name = self._name(suffix)
        if kind == "set":
            return {word.decode(): "" for word in await self._wire.call("SMEMBERS", name)}
        read = ("HGETALL", name) if kind == "hash" else ("ZRANGE", name, 0, -1, "WITHSCORES")
        words = [word.decode() for word in await self._wire.call(*read)]
        return dict(zip(words[::2], words[1::2], strict=True))

    async def _build(self, rebuilt: dict[str, tuple[str, Pairs]]) -> None:
        """Writes the rebuilt book under names of its own."""
        for suffix, (kind, pairs) in rebuilt.items():
            name = self._built(suffix)
            await self._wire.call("UNLINK", name)
            words = _words(kind, pairs)
            for start in range(0, len(words), ARGUMENTS_PER_WRITE):
                part = words[start : start + ARGUMENTS_PER_WRITE]
                await self._wire.call(_WRITES[kind], name, *part)

    def _built(self, suffix: str) -> str:
        return self._name(f"repairing:{suffix or 'book'}")

    async def _take_place(
        self, rebuilt: dict[str, tuple[str, Pairs]], types: dict[str, str], done: Repair
    ) -> None:
        """Puts the rebuilt book in the place of the stored one, and halts it, as one change."""
        commands: list[tuple[str | bytes | int, ...]] = []
        for suffix, kind in types.items():
            is_kept = suffix == "events" or kind == _kept_kind(suffix)
            if not is_kept:
                done.replaced.append(self._name(suffix))
                kept_as = f"{done.kept_as}:{suffix or 'book'}"
                commands.append(("RENAME", self._name(suffix), kept_as))
        commands += [("RENAME", self._built(suffix), self._name(suffix)) for suffix in rebuilt]
        commands += await self._missing_trades(types)
        commands += self._used_names()
        commands.append(("FCALL", "define_instrument", 1, self._key, "status", "halted"))
        self._tell_what_may_lack(done)
        replies = await self._wire.call_together(("MULTI",), *commands, ("EXEC",))
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        results: RedisReply = replies[-1]
        if results is None:
            raise _ChangedError
        failed = [str(result) for result in results if isinstance(result, Exception)]
        done.notes += [f"not done: {text}" for text in failed]

    async def _missing_trades(self, types: dict[str, str]) -> list[tuple[str | bytes | int, ...]]:
        """The trades that the stream of events tells and that of the trades alone does not."""
        name, last = self._name("trades"), 0
        if types.get("trades") == "stream":
            newest = await self._wire.call("XREVRANGE", name, "+", "-", "COUNT", 1)
            last = int(newest[0][0].partition(b"-")[0]) if newest else 0
        length_max = str(self._story.instrument["trades_length_max"])
        return [
            ("XADD", name, "MAXLEN", "~", length_max, f"{sequence}-0", "trades", topics[b"trades"])
            for sequence, topics in self._tail
            if b"trades" in topics and sequence > last
        ]

    def _used_names(self) -> list[tuple[str | bytes | int, ...]]:
        """Marks the client_order_ids that a half-written call has used: its replies were not
        stored, and a retry must not trade again."""
        marks: list[tuple[str | bytes | int, ...]] = []
        now_ms = time.time_ns() // 1_000_000
        for _, topics in self._tail:
            for topic, message in topics.items():
                if topic.startswith(b"orders:"):
                    told = _decode_orders(message)
                    replies = self._name(f"{_REPLIES}{told.account}")
                    named = [
                        report.client_order_id
                        for report in told.orders
                        if report.event == "accepted" and report.client_order_id
                    ]
                    marks += [("HSETNX", replies, name, "repaired\n{}") for name in named]
                    # A generation without a beginning would end at once, and the previous one go.
                    marks += [("HSETNX", replies, _GENERATION_START, now_ms) for _ in named[:1]]
        return marks

    def _tell_what_may_lack(self, done: Repair) -> None:
        if not self._tail:
            return
        first, last = self._tail[0][0], self._tail[-1][0]
        lacks = f"what sequence {first} to {last} changed"
        done.notes += [
            f"replies: kept without {lacks}: a retry of an order is a DUPLICATE_CLIENT_ORDER_ID",
            "trigger queue: dropped; stop orders that it would have triggered wait for a trade",
        ]
        if any(b"trades" in topics for _, topics in self._tail):
            done.notes.append(f"candles and ticker: kept; they may lack {lacks}")
        done.notes.append(f"timers: kept; they may lack {lacks}: clients set them anew")


_BACKUP = "restore a backup"


def _unreachable(symbol: str, wanted: int, found: int) -> str:
    if wanted == 1:
        return (
            f"the stream of {symbol} begins at sequence {found}: what was before has been trimmed, "
            f"and a book can be rebuilt from its first entry only: {_BACKUP}"
        )
    return f"the stream of {symbol} lacks sequence {wanted}, it goes on with {found}: {_BACKUP}"


def _kept_kind(suffix: str) -> str | None:
    """The type of a key that the stream does not tell, None for keys that it does."""
    return "hash" if suffix.startswith(_REPLIES) else _KEPT.get(suffix)


def _words(kind: str, pairs: Pairs) -> list[str]:
    """The arguments of the command that writes a key of this kind."""
    if kind == "set":
        return list(pairs)
    if kind == "zset":
        return [word for member, score in pairs.items() for word in (score, member)]
    return [word for pair in pairs.items() for word in pair]
