"""The engine against the reference: generated sessions, compared after every step.

Prices are few, so orders collide; client_order_ids and order_ids are few, so retries, name clashes
and strangers' orders happen by themselves; some commands are spoilt in one place. Time moves only
when a step moves it (tests/clock.py), so orders expire in both at once. After each call the reply,
the new stream entries, the depth, every account's open orders and the verdict of verify_book must
be what the reference says.

HYPOTHESIS_PROFILE=long makes many more and longer sessions.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from books import Book, Json, comparable, timeless, words
from clock import set_clock, shimmed
from conftest import NewBook
from orderbook.engine import library
from reference import STOP_TYPES, ReferenceBook
from servers import fake_client, library_for, running

# examples and steps for each profile, and for engines that interpret every call in Python.
PROFILES = {"default": (60, 40), "long": (1000, 80)}
SLOW_PROFILES = {"default": (15, 25), "long": (60, 40)}

# Nothing is replayed from a run before: each run is a new one. HYPOTHESIS_SHRINK=no tells of a
# failure at once, in a long session, in place of the shortest one after minutes.
PHASES = [Phase.generate]
if os.environ.get("HYPOTHESIS_SHRINK") != "no":
    PHASES.append(Phase.shrink)

# Ids of past orders that commands may name: the latest ones.
RECENT_ORDERS = 50
ACCOUNTS = ("alice", "bob", "carol")
OWNER = "the owner"
TICK_SIZE, LOT_SIZE = "0.5", "0.1"
MIN_QUANTITY, MAX_QUANTITY = "0.2", "50"
START_MS = 1_700_000_000_000

accounts = st.sampled_from(ACCOUNTS)
sides = st.sampled_from(("buy", "sell"))
prices = st.sampled_from(("99", "99.5", "100", "100.5", "100.50", "101"))
quantities = st.sampled_from(("0.2", "0.3", "1", "1.0", "2.5", "4", "10"))
names = st.sampled_from(("x", "y", "z/1"))
# Which of the known order_ids a command means; large numbers wrap around.
picks = st.integers(0, 40)


def _merged(*parts: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """One dictionary of several; what a later one has counts."""
    return st.tuples(*parts).map(lambda found: {k: v for part in found for k, v in part.items()})


def _sometimes(absent: int, **values: Any) -> st.SearchStrategy[Json]:
    """One of the fields with one of its values; without any as often as `absent` of them."""
    some = [{name: value} for name, found in values.items() for value in found]
    return st.sampled_from([{}] * absent + some)


own_names = _sometimes(5, client_order_id=("x", "y", "-"))
# Times are told in milliseconds from now on.
expiry = st.sampled_from((1000, 1000, 1000, 2000, 2000, 2500, 5000, 10_000, 10_000, 0, -1))
good_till_date = st.fixed_dictionaries({"time_in_force": st.just("gtd"), "expire_time_ms": expiry})
resting = st.one_of(_sometimes(2, time_in_force=("gtc",)), good_till_date)
in_force = st.one_of(resting, _sometimes(0, time_in_force=("ioc", "fok")))
prevention = _merged(
    _sometimes(
        4,
        self_trade_prevention=("none", "cancel_taker", "cancel_maker", "cancel_both", "decrement"),
    ),
    _sometimes(4, stp_group=("g", "g", "h")),
)
in_time = _sometimes(12, valid_until_ms=(-1, 0, 0, 1000))
seldom = _merged(_sometimes(12, validate_only=("true", "true", "false")), in_time)
in_session = _sometimes(4, session=("s1", "s1", "s2"))
protection = _sometimes(3, protection=("0.4", "0.5", "1"))
anything = _merged(
    st.fixed_dictionaries({"account": accounts, "side": sides}),
    own_names,
    prevention,
    seldom,
    in_session,
)
amount = st.fixed_dictionaries({"quantity": quantities})
money = st.fixed_dictionaries(
    {"quote_quantity": st.sampled_from(("5", "30", "100", "100.05", "250", "1000"))}
)
display = st.fixed_dictionaries({"display_quantity": st.sampled_from(("0.1", "0.3", "1", "1.5"))})
limit = _merged(
    st.fixed_dictionaries({"order_type": st.just("limit"), "price": prices}), anything, amount
)
market = _merged(st.fixed_dictionaries({"order_type": st.just("market")}), anything, protection)

place = _merged(limit, in_force)
place_iceberg = _merged(limit, resting, display)
place_post_only = _merged(
    limit,
    resting,
    st.one_of(st.just({}), display),
    _sometimes(0, post_only=("true", "true", "false")),
)
place_market = _merged(market, amount, _sometimes(2, time_in_force=("ioc", "fok")))
place_by_quote = _merged(market, money, _sometimes(2, time_in_force=("ioc",)))
stop_price = st.fixed_dictionaries({"stop_price": prices})
place_stop = _merged(
    _sometimes(0, order_type=("stop", "take_profit")),
    anything,
    amount,
    stop_price,
    protection,
    _sometimes(2, time_in_force=("ioc", "fok")),
)
place_stop_limit = _merged(
    _sometimes(0, order_type=("stop_limit", "take_profit_limit")),
    anything,
    amount,
    stop_price,
    st.fixed_dictionaries({"price": prices}),
    in_force,
)
place_trailing_stop = _merged(
    _sometimes(0, order_type=("trailing_stop",)),
    anything,
    amount,
    _sometimes(0, trailing_offset=("0.5", "1", "0.2%", "0.5%", "1%", "50%")),
    protection,
    _sometimes(2, time_in_force=("ioc", "fok")),
)
by_order_id = st.fixed_dictionaries({"order_id": picks}, optional={"account": accounts})
# The owner's own command: the account is that of the order which is picked.
by_order_id_with_own_name = st.fixed_dictionaries(
    {"order_id": picks, "account": st.just(OWNER), "client_order_id": names}
)
by_name = st.fixed_dictionaries({"account": accounts, "client_order_id": names})
# Both names are those of an open order which is picked.
by_open_name = st.fixed_dictionaries({"open_name": picks})
naming = st.one_of(by_order_id, by_order_id_with_own_name, by_name, by_open_name, by_open_name)
new_terms = st.one_of(
    st.fixed_dictionaries({"price": prices}),
    st.fixed_dictionaries({"quantity": quantities}, optional={"price": prices}),
    st.fixed_dictionaries({"remaining_quantity": quantities}, optional={"price": prices}),
    st.fixed_dictionaries({"quantity": st.sampled_from(("0", "0.1", "0.3"))}),
    st.fixed_dictionaries(
        {"stop_price": prices}, optional={"price": prices, "quantity": quantities}
    ),
)


# Which order goes, named as cancel_order does.
to_cancel = st.one_of(
    st.fixed_dictionaries({"cancel_order_id": picks, "account": st.just(OWNER)}),
    st.fixed_dictionaries({"cancel_order_id": picks, "account": st.just(OWNER)}),
    st.fixed_dictionaries({"cancel_order_id": picks}),
    st.fixed_dictionaries({"cancel_client_order_id": names}),
    st.fixed_dictionaries({"cancel_open_name": picks}),
)
quote = _merged(
    st.fixed_dictionaries({"side": sides, "price": prices, "quantity": quantities}), own_names
)
# What makes a list of quotes none.
no_quotes = st.sampled_from(
    (
        "", "{}", "[", "[1]", "null", "[[]]", "[null]", '[{"side":"buy"}]',
        '[{"side":"buy","price":"100","quantity":1}]',
        '[{"side":"hold","price":"100","quantity":"1"}]',
        '[{"side":"buy","price":"100","quantity":"1","colour":"red"}]',
        '[{"side":"buy","price":"100","quantity":"1","quantity":"1"}]',
        '[{"side":"buy","price":"100","quantity":"1","client_order_id":"no spaces"}]',
    )
)  # fmt: skip
quotes = st.one_of(
    *[st.lists(quote, max_size=4).map(json.dumps)] * 8,
    st.sampled_from(('[{"side":"buy","price":"100.25","quantity":"1"}]', " [ ] ")),
    no_quotes,
)


def _method(name: str, fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return fields.map(lambda found: {"method": name, **found})


placed = [place, place, place, place, place_iceberg, place_iceberg, place_post_only]
placed += [place_market, place_market, place_by_quote]
placed += [place_stop, place_stop, place_stop_limit, place_stop_limit, place_trailing_stop]
placing = _method("place_order", st.one_of(placed))
LIST_FIELDS = ("account", "session", "validate_only", "valid_until_ms")


def _member(order: st.SearchStrategy[Json], *without: str) -> st.SearchStrategy[Json]:
    """An order as it stands in an order list."""
    left_out = (*LIST_FIELDS, *without)
    return order.map(lambda found: {k: v for k, v in found.items() if k not in left_out})


def _pair(*without: str) -> st.SearchStrategy[list[Json]]:
    """Two orders of one side and quantity, of which one waits for a price."""
    resting_leg = _member(_merged(limit, resting), *without)
    stop_leg = _member(st.one_of(place_stop, place_stop_limit, place_trailing_stop), *without)
    first = st.one_of(resting_leg, resting_leg, stop_leg)
    return st.tuples(first, stop_leg, sides, quantities).map(
        lambda drawn: [
            {**leg, "side": drawn[2], **({} if without else {"quantity": drawn[3]})}
            for leg in drawn[:2]
        ]
    )


def _against(drawn: tuple[Json, list[Json]]) -> list[Json]:
    """An entry, and what it arms on the other side."""
    entry, legs = drawn
    side = "sell" if entry["side"] == "buy" else "buy"
    return [entry, *({**leg, "side": side} for leg in legs)]


entries = [place, place, place, place_iceberg, place_post_only, place_stop, place_stop_limit]
entry = _member(st.one_of(*entries, _merged(market, amount)))
one_leg = _member(st.one_of(place, place_stop, place_stop_limit, place_trailing_stop), "quantity")
listed = {
    "oco": _pair(),
    "oto": st.tuples(entry, one_leg).map(list),
    "bracket": st.tuples(entry, _pair("quantity")).map(_against),
}
listing = st.one_of(
    [
        _method(
            "place_order_list",
            _merged(
                st.fixed_dictionaries(
                    {"account": accounts, "list_type": st.just(list_type), "orders": orders}
                ),
                own_names,
                in_session,
                in_time,
            ),
        )
        for list_type, orders in [*listed.items(), ("bracket", listed["bracket"])]
    ]
)
amending = _method("amend_order", _merged(naming, new_terms, in_time))
canceling = _method("cancel_order", _merged(naming, in_time))
whose = _merged(st.fixed_dictionaries({"account": accounts}), in_session)
canceling_all = _method(
    "cancel_all_orders", _merged(whose, _sometimes(3, side=("buy", "sell")), in_time)
)
replacing = _method(
    "replace_order",
    _merged(
        st.one_of(placed).map(
            lambda found: {k: found[k] for k in found.keys() - {"validate_only"}}
        ),
        to_cancel,
        _sometimes(2, on_failure=("stop", "continue", "continue")),
    ),
)
quoting = _method(
    "mass_quote",
    _merged(
        st.fixed_dictionaries({"account": accounts, "quotes": quotes}),
        prevention,
        in_session,
        in_time,
        _sometimes(3, post_only=("true", "false")),
    ),
)
timeouts = st.sampled_from(("1000", "2000", "5000", "60000", "86400000", "0"))
arming = _method(
    "cancel_all_after",
    _merged(whose, st.fixed_dictionaries({"timeout_ms": timeouts}), in_time),
)
commands = st.one_of(
    [placing] * 7
    + [listing] * 2
    + [amending] * 4
    + [replacing] * 3
    + [quoting] * 2
    + [canceling] * 2
    + [canceling_all]
    + [arming] * 3,
)

# One change to a good command; None takes the field away.
spoilings = st.sampled_from(
    (
        ("account", "no spaces"),
        ("account", None),
        ("side", "BUY"),
        ("order_type", "iceberg"),
        ("order_type", "market"),
        ("order_type", "limit"),
        ("time_in_force", "day"),
        ("time_in_force", "gtd"),
        ("time_in_force", "fok"),
        ("time_in_force", None),
        ("post_only", "1"),
        ("post_only", "true"),
        ("validate_only", "yes"),
        ("self_trade_prevention", "cancel"),
        ("stp_group", "no spaces"),
        ("orders", "[]"),
        ("orders", "{}"),
        ("orders", '[{"side":"buy","order_type":"limit","price":"100","quantity":"1"}]'),
        ("orders", '[["buy"],["sell"]]'),
        ("orders", None),
        ("list_type", "oco"),
        ("list_type", "oto"),
        ("list_type", "ring"),
        ("expire_time_ms", "0"),
        ("expire_time_ms", "1e13"),
        ("expire_time_ms", "1"),
        ("expire_time_ms", None),
        ("session", "no spaces"),
        ("session", "s3"),
        ("timeout_ms", "999"),
        ("timeout_ms", "86400001"),
        ("timeout_ms", "01000"),
        ("timeout_ms", None),
        ("valid_until_ms", "01"),
        ("valid_until_ms", "9007199254740992"),
        ("display_quantity", "0"),
        ("display_quantity", "0.25"),
        ("display_quantity", "x"),
        ("display_quantity", "1"),
        ("display_quantity", "49"),
        ("quote_quantity", "0"),
        ("quote_quantity", "100"),
        ("quote_quantity", "100.001"),
        ("quote_quantity", "90071992547409.92"),
        ("protection", "0"),
        ("protection", "100.0001"),
        ("protection", "1.00001"),
        ("protection", "1%"),
        ("protection", "1"),
        ("quantity", "1e5"),
        ("quantity", "-1"),
        ("quantity", "0"),
        ("quantity", "0.1"),
        ("quantity", "50.1"),
        ("quantity", "0.25"),
        ("quantity", "9007199254740993"),
        ("quantity", None),
        ("price", "100.25"),
        ("price", "0"),
        ("price", "0x10"),
        ("price", "NaN"),
        ("price", None),
        ("remaining_quantity", "1"),
        ("client_order_id", ""),
        ("client_order_id", None),
        ("order_id", "01"),
        ("order_id", "999999"),
        ("cancel_order_id", "1"),
        ("cancel_order_id", "9007199254740993"),
        ("cancel_client_order_id", "no spaces"),
        ("cancel_client_order_id", "x"),
        ("on_failure", "retry"),
        ("quotes", None),
        ("colour", "red"),
    )
)
stop_spoilings = st.sampled_from(
    (
        *(("order_type", name) for name in STOP_TYPES),
        ("stop_price", "0"),
        ("stop_price", "100.25"),
        ("stop_price", "1e2"),
        ("stop_price", "100"),
        ("stop_price", None),
        ("trailing_offset", "0"),
        ("trailing_offset", "0.25"),
        ("trailing_offset", "0%"),
        ("trailing_offset", "50.0001%"),
        ("trailing_offset", "1.00001%"),
        ("trailing_offset", "%"),
        ("trailing_offset", "1"),
        ("trailing_offset", None),
    )
)
spoilings = st.one_of(spoilings, stop_spoilings)

definitions = st.one_of(
    st.sampled_from(
        (
            {"status": "trading"},
            {"status": "trading"},
            {"status": "halted"},
            {"status": "cancel_only"},
            {"status": "closed"},
            {"status": "post_only"},
            {"status": "auction"},
            {"status": "auction"},
            {"status": "trading"},
            {"status": "trading"},
            {"limit_percent": "0.5", "window_ms": "2000"},
            {"limit_percent": "1", "breaker_status": "auction", "breaker_duration_ms": "1000"},
            {"limit_percent": "0.5", "breaker_status": "halted", "breaker_duration_ms": "2000"},
            {"limit_percent": "0"},
            {"limit_percent": "0"},
            {"window_ms": "999"},
            {"breaker_duration_ms": "0"},
            {"breaker_duration_ms": "86400001"},
            {"tick_size": "1"},
            {"tick_size": "0.5", "status": "trading"},
            {"max_quantity": "5"},
            {"max_quantity": "50"},
            {"max_quantity": "50.05"},
            {"min_quantity": "0.3"},
            {"min_quantity": "0.2"},
            {"min_quantity": "51"},
            {"self_trade_prevention": "none"},
            {"self_trade_prevention": "cancel_maker"},
            {"self_trade_prevention": "decrement"},
            {"self_trade_prevention": "cancel"},
            {"protection": "0.50"},
            {"protection": "0"},
            {"protection": "100.1"},
            {"price_band": "1", "status": "trading"},
            {"price_band": "0.0"},
            {"price_band": "x"},
            {"min_notional": "50"},
            {"min_notional": "99.50"},
            {"min_notional": "0"},
            {"min_notional": "0.001"},
            {"open_orders_max": "4"},
            {"open_orders_max": "0"},
            {"open_orders_max": "10000001"},
            {"iceberg_parts_max": "10"},
            {"iceberg_parts_max": "1000"},
            {"iceberg_parts_max": "10001"},
            {"colour": "red"},
            {},
        )
    )
)


class BookMachine(RuleBasedStateMachine):
    """One session of one book."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self.book = book
        self.reference = ReferenceBook(book.symbol)
        self.sent: list[Json] = []
        self.compared = 0
        self.set_clock(START_MS)
        fields = {
            "tick_size": TICK_SIZE,
            "lot_size": LOT_SIZE,
            "min_quantity": MIN_QUANTITY,
            "max_quantity": MAX_QUANTITY,
        }
        self.call("define_instrument", fields)
        for account in ACCOUNTS:
            self.call("set_stp_group", {"account": account, "stp_group": "g"})

    # ---- steps

    @rule(account=st.sampled_from(ACCOUNTS), group=st.sampled_from(("g", "h", None)))
    def a_group(self, account: str, group: str | None) -> None:
        named = {"stp_group": group} if group else {}
        self.call("set_stp_group", {"account": account, **named})
        self.call("get_stp_group", {"account": account})

    @rule(command=commands)
    def one_command(self, command: Json) -> None:
        self.run_single(self.resolved(command))

    @rule(batch=st.lists(commands, min_size=1, max_size=8))
    def a_batch(self, batch: list[Json]) -> None:
        self.run_batch([self.resolved(command) for command in batch])

    @rule(command=commands, spoiling=spoilings, batched=st.booleans())
    def a_spoilt_command(
        self, command: Json, spoiling: tuple[str, str | None], batched: bool
    ) -> None:
        name, value = spoiling
        spoilt = {**self.resolved(command), name: value}
        if value is None:
            del spoilt[name]
        if batched:
            self.run_batch([spoilt])
        else:
            self.run_single(spoilt)

    @precondition(lambda self: bool(self.sent))
    @rule(pick=st.integers(0, 6), batched=st.booleans())
    def a_retry(self, pick: int, batched: bool) -> None:
        command = self.sent[-1 - pick % len(self.sent)]
        if batched:
            self.run_batch([command])
        else:
            self.run_single(command)

    @rule(fields=definitions)
    def a_definition(self, fields: Mapping[str, str]) -> None:
        self.call("define_instrument", dict(fields))

    @rule(tick_size=st.sampled_from(("0.5", "0.5", "1", "0.3", "7")))
    def a_tick_size(self, tick_size: str) -> None:
        """The last trade price may lie between two ticks from then on, and back on one later."""
        for account in ACCOUNTS:
            self.call("cancel_all_orders", {"account": account})
        self.call("define_instrument", {"tick_size": tick_size})

    @rule(passed_ms=st.sampled_from((0, 1, 999, 1000, 2000, 5000, 61_000)), ticks=st.booleans())
    def time_passes(self, passed_ms: int, ticks: bool) -> None:
        self.set_clock(self.reference.now_ms + passed_ms)
        if ticks:
            self.call("tick", {})

    @rule(run_id=st.sampled_from(("a" * 40, "b" * 40)))
    def an_epoch(self, run_id: str) -> None:
        self.call("begin_epoch", {"run_id": run_id})

    @rule(naming=naming, after=picks, limit=st.integers(1, 3))
    def a_query(self, naming: Json, after: int, limit: int) -> None:
        fields = self.resolved({"method": "get_order", **naming})
        del fields["method"]
        if not {"order_id", "client_order_id"} <= fields.keys():
            self.call("get_order", fields)
        page = {"account": ACCOUNTS[0], "limit": str(limit)}
        self.call("get_open_orders", page | ({"after": str(after)} if after else {}))
        self.call("get_trades", {"limit": str(limit)})
        page = {"account": ACCOUNTS[1], "limit": str(limit)}
        page |= {"before": str(after)} if after else {}
        self.call("get_closed_orders", page)
        self.call("get_own_trades", page)
        self.call("get_book", {"depth": str(limit)})
        self.call("get_level3", {"depth": str(limit)})
        for interval in ("1m", "5m"):
            self.call("get_candles", {"interval": interval, "limit": str(limit)})
        self.call("get_ticker", {})

    @rule()
    def a_rebuilding(self) -> None:
        self.book.assert_is_what_its_stream_tells()

    # ---- what must hold after each

    @invariant()
    def new_entries_are_equal(self) -> None:
        expected = self.reference.entries[self.compared :]
        after = expected[0][0] - 1 if expected else self.reference.sequence
        assert timeless_entries(self.book, "events", after) == expected
        trades = [
            (sequence, {"trades": topics["trades"]})
            for sequence, topics in expected
            if "trades" in topics
        ]
        assert timeless_entries(self.book, "trades", after) == trades
        self.compared = len(self.reference.entries)

    @invariant()
    def depth_and_open_orders_are_equal(self) -> None:
        self.call("get_book", {"depth": "full"})
        self.call("get_level3", {"depth": "full"})
        self.call("get_instrument", {})
        for account in ACCOUNTS:
            self.call("get_open_orders", {"account": account})

    @invariant()
    def book_is_verified(self) -> None:
        reply = self.book.read("verify_book")
        del reply["state_hash"]
        assert reply == self.reference.call("verify_book")

    def teardown(self) -> None:
        self.call("get_trades", {"limit": "1000"})
        for account in ACCOUNTS:
            self.call("get_closed_orders", {"account": account, "limit": "1000"})
            self.call("get_own_trades", {"account": account, "limit": "1000"})
        self.book.assert_is_what_its_stream_tells()

    # ---- running

    def resolved(self, command: Json) -> Json:
        """The command with its picks replaced: by an order_id, a name, an owner, a time."""
        resolved = dict(command)
        for name in {"expire_time_ms", "valid_until_ms"} & resolved.keys():
            resolved[name] = str(self.reference.now_ms + resolved[name])
        if isinstance(resolved.get("orders"), list):
            resolved["orders"] = json.dumps([self.resolved(one) for one in resolved["orders"]])
        if "open_name" in resolved:
            resolved |= self.open_name(resolved.pop("open_name"))
        if "order_id" in resolved:
            order_id, owner = self.known_order(resolved["order_id"])
            resolved["order_id"] = order_id
            if resolved.get("account") == OWNER:
                resolved["account"] = owner
        if "cancel_open_name" in resolved:
            named = self.open_name(resolved.pop("cancel_open_name"))
            resolved["account"] = named["account"]
            resolved["cancel_client_order_id"] = named["client_order_id"]
        if "cancel_order_id" in resolved:
            order_id, owner = self.known_order(resolved["cancel_order_id"])
            resolved["cancel_order_id"] = order_id
            if resolved["account"] == OWNER:
                resolved["account"] = owner
        return resolved

    def set_clock(self, now_ms: int) -> None:
        set_clock(self.book.client, now_ms)
        self.reference.now_ms = now_ms

    def open_name(self, pick: int) -> Json:
        """Account and client_order_id of an open order, or of none."""
        named = [order for order in self.reference.orders if order.client_order_id is not None]
        if not named:
            return {"account": ACCOUNTS[0], "client_order_id": "x"}
        order = named[pick % len(named)]
        return {"account": order.account, "client_order_id": order.client_order_id}

    def known_order(self, pick: int) -> tuple[str, str]:
        """order_id and account: an open order's, rather than a past one's or the next one's."""
        owners = {order.order_id: order.account for order in self.reference.orders}
        last = self.reference.last_order_id
        known = [*owners, *owners, *range(max(1, last - RECENT_ORDERS), last + 2)]
        order_id = known[pick % len(known)]
        return str(order_id), owners.get(order_id, ACCOUNTS[0])

    def run_single(self, command: Json) -> None:
        fields = dict(command)
        self.call(fields.pop("method"), fields)
        self.sent.append(command)

    def run_batch(self, batch: list[Json]) -> None:
        replies = self.book.execute(*batch)
        expected = self.reference.execute(batch)
        assert isinstance(expected, list), "a batch is not refused whole here"
        assert [told(comparable(reply)) for reply in replies] == list(map(told, expected))
        self.sent += batch

    def call(self, function: str, fields: Mapping[str, str]) -> None:
        reply = self.book.ask(function, **fields)
        expected = self.reference.call(function, *words(fields))
        assert told(comparable(reply)) == told(expected), function


def told(reply: Json) -> Json:
    """The reply. Where fields do not go together, some are missing and others too many: either of
    both may be told."""
    is_combination = reply.get("code") in {"MISSING_FIELD", "FIELD_NOT_ALLOWED"}
    return {**reply, "code": "FIELDS"} if is_combination else reply


def timeless_entries(book: Book, stream: str, after: int) -> list[tuple[int, Json]]:
    return [(sequence, timeless(topics)) for sequence, topics in book.entries(stream, after)]


@pytest.fixture(scope="module")
def client(engine: str) -> Iterator[Any]:
    """As everywhere, but of a library whose clock is the test's."""
    text = library_for(engine, shimmed(library.bundle().text))
    if engine == "fakeredis":
        fake = fake_client()
        fake.execute_command("FUNCTION", "LOAD", "REPLACE", text)
        yield fake
        return
    with running(engine) as server:
        server.client.execute_command("FUNCTION", "LOAD", "REPLACE", text)
        yield server.client


def test_engine_equals_reference_after_every_step(new_book: NewBook, engine: str) -> None:
    profiles = SLOW_PROFILES if engine == "fakeredis" else PROFILES
    examples, steps = profiles[os.environ.get("HYPOTHESIS_PROFILE", "default")]
    run_state_machine_as_test(
        lambda: BookMachine(new_book()),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
