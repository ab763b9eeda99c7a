"""The engine against the reference: generated sessions, compared after every step.

Prices are few, so orders collide; client_order_ids and order_ids are few, so retries, name clashes
and strangers' orders happen by themselves; some commands are spoilt in one place. After each call
the reply, the new stream entries, the depth, every account's open orders and the verdict of
verify_book must be what the reference says.

HYPOTHESIS_PROFILE=long makes many more and longer sessions.
"""

import os
from collections.abc import Mapping
from typing import Any

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
from conftest import NewBook
from reference import ReferenceBook

# examples and steps for each profile, and for engines that interpret every call in Python.
PROFILES = {"default": (60, 40), "long": (1000, 80)}
SLOW_PROFILES = {"default": (15, 25), "long": (60, 40)}

# Nothing is replayed from a run before: each run is a new one. HYPOTHESIS_SHRINK=no tells of a
# failure at once, in a long session, in place of the shortest one after minutes.
PHASES = [Phase.generate]
if os.environ.get("HYPOTHESIS_SHRINK") != "no":
    PHASES.append(Phase.shrink)

ACCOUNTS = ("alice", "bob", "carol")
OWNER = "the owner"
TICK_SIZE, LOT_SIZE = "0.5", "0.1"
MIN_QUANTITY, MAX_QUANTITY = "0.2", "50"

accounts = st.sampled_from(ACCOUNTS)
sides = st.sampled_from(("buy", "sell"))
prices = st.sampled_from(("99", "99.5", "100", "100.5", "100.50", "101"))
quantities = st.sampled_from(("0.2", "0.3", "1", "1.0", "2.5", "4", "10"))
names = st.sampled_from(("x", "y", "z/1"))
# Which of the known order_ids a command means; large numbers wrap around.
picks = st.integers(0, 40)

place = st.fixed_dictionaries(
    {
        "account": accounts,
        "side": sides,
        "order_type": st.just("limit"),
        "quantity": quantities,
        "price": prices,
    },
    optional={
        "time_in_force": st.sampled_from(("gtc", "gtc", "ioc", "fok")),
        "client_order_id": names,
    },
)
place_post_only = st.fixed_dictionaries(
    {
        "account": accounts,
        "side": sides,
        "order_type": st.just("limit"),
        "quantity": quantities,
        "price": prices,
        "post_only": st.sampled_from(("true", "true", "false")),
    },
    optional={"client_order_id": names},
)
place_market = st.fixed_dictionaries(
    {
        "account": accounts,
        "side": sides,
        "order_type": st.just("market"),
        "quantity": quantities,
    },
    optional={"time_in_force": st.sampled_from(("ioc", "fok")), "client_order_id": names},
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
)


def _method(name: str, fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return fields.map(lambda found: {"method": name, **found})


placing = _method("place_order", st.one_of(place, place, place, place_post_only, place_market))
amending = _method(
    "amend_order", st.tuples(naming, new_terms).map(lambda both: {**both[0], **both[1]})
)
canceling = _method("cancel_order", naming)
canceling_all = _method("cancel_all_orders", st.fixed_dictionaries({"account": accounts}))
commands = st.one_of(placing, placing, placing, amending, amending, canceling, canceling_all)

# One change to a good command; None takes the field away.
spoilings = st.sampled_from(
    (
        ("account", "no spaces"),
        ("account", None),
        ("side", "BUY"),
        ("order_type", "stop"),
        ("time_in_force", "day"),
        ("post_only", "1"),
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
        ("colour", "red"),
    )
)

definitions = st.one_of(
    st.sampled_from(
        (
            {"status": "trading"},
            {"status": "trading"},
            {"status": "halted"},
            {"status": "cancel_only"},
            {"status": "closed"},
            {"tick_size": "1"},
            {"tick_size": "0.5", "status": "trading"},
            {"max_quantity": "5"},
            {"max_quantity": "50"},
            {"max_quantity": "50.05"},
            {"min_quantity": "0.3"},
            {"min_quantity": "0.2"},
            {"min_quantity": "51"},
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
        fields = {
            "tick_size": TICK_SIZE,
            "lot_size": LOT_SIZE,
            "min_quantity": MIN_QUANTITY,
            "max_quantity": MAX_QUANTITY,
        }
        self.call("define_instrument", fields)

    # ---- steps

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
        self.call("get_book", {"depth": str(limit)})

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

    # ---- running

    def resolved(self, command: Json) -> Json:
        """The command with its picks replaced: by an order_id, a name, an owner."""
        resolved = dict(command)
        if "open_name" in resolved:
            resolved |= self.open_name(resolved.pop("open_name"))
        if "order_id" in resolved:
            order_id, owner = self.known_order(resolved["order_id"])
            resolved["order_id"] = order_id
            if resolved.get("account") == OWNER:
                resolved["account"] = owner
        return resolved

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
        known = [*owners, *owners, *range(1, self.reference.last_order_id + 2)]
        order_id = known[pick % len(known)]
        return str(order_id), owners.get(order_id, ACCOUNTS[0])

    def run_single(self, command: Json) -> None:
        fields = dict(command)
        self.call(fields.pop("method"), fields)
        self.sent.append(command)

    def run_batch(self, batch: list[Json]) -> None:
        replies = self.book.execute(*batch)
        assert [comparable(reply) for reply in replies] == self.reference.execute(batch)
        self.sent += batch

    def call(self, function: str, fields: Mapping[str, str]) -> None:
        reply = self.book.ask(function, **fields)
        assert comparable(reply) == self.reference.call(function, *words(fields)), function


def timeless_entries(book: Book, stream: str, after: int) -> list[tuple[int, Json]]:
    return [(sequence, timeless(topics)) for sequence, topics in book.entries(stream, after)]


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
