"""Slices of icebergs are reckoned, not gone through: the outcome is that of slice after slice.

The reference goes through all of them. What each order trades and has left, what of it is shown,
and how the level queues in the end must be the same, whoever shows how little.
"""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from books import Book, Json, comparable, timeless, words
from reference import ReferenceBook
from servers import Server

EXAMPLES_MAX = 60
reckoned = settings(max_examples=EXAMPLES_MAX, deadline=None)
_symbols = itertools.count(1)

sizes = st.one_of(st.integers(1, 12), st.integers(13, 120))
displays = st.one_of(st.none(), st.integers(1, 5), st.integers(6, 40))
prices = st.sampled_from(("100", "100", "100", "101"))
makers = st.lists(st.tuples(sizes, displays, prices), min_size=1, max_size=7)
# How a taker says how much it wants, and how it ends.
kinds = st.sampled_from(("limit", "fok", "market", "quote_quantity", "protection"))
modes = st.sampled_from(("none", "none", "cancel_maker", "cancel_taker", "decrement"))
takers = st.lists(st.tuples(kinds, st.integers(1, 250), modes), min_size=1, max_size=4)
accounts = st.sampled_from(("alice", "bob", "carol"))


class Both:
    """A book on a server and the reference, asked the same."""

    def __init__(self, server: Server, **rules: str) -> None:
        self.book = Book(server.client, f"ROUNDS{next(_symbols)}")
        self.reference = ReferenceBook(self.book.symbol)
        self.ask("define_instrument", tick_size="1", lot_size="1", **rules)

    def ask(self, function: str, **fields: str) -> Json:
        reply = comparable(self.book.ask(function, **fields))
        assert reply == self.reference.call(function, *words(fields)), function
        return reply

    def place(self, account: str, side: str, size: int, display: int | None, price: str) -> None:
        shown = {} if display is None else {"display_quantity": str(min(display, size))}
        order = {"account": account, "side": side, "order_type": "limit", "quantity": str(size)}
        self.ask("place_order", **order, price=price, **shown)

    def assert_equal(self) -> None:
        self.ask("get_level3", depth="full")
        for account in ("alice", "bob", "carol"):
            self.ask("get_open_orders", account=account)
        entries = [(n, timeless(topics)) for n, topics in self.book.entries("events")]
        assert entries == self.reference.entries
        self.book.assert_is_what_its_stream_tells()


def taker_terms(kind: str, size: int) -> dict[str, str]:
    """The fields of a buy order of so much, or for so much money, at 100 and 101."""
    if kind == "quote_quantity":
        return {"order_type": "market", "quote_quantity": str(size * 100)}
    terms = {"quantity": str(size), "order_type": "market" if kind != "limit" else "limit"}
    if kind == "limit":
        terms["price"] = "101"
    if kind == "fok":
        terms["time_in_force"] = "fok"
    if kind == "protection":
        terms["protection"] = "0.5"
    return terms


@reckoned
@given(data=st.data(), resting=makers, sweeping=takers)
def test_a_taker_has_what_slice_after_slice_gives_it(
    valkey: Server, data: Any, resting: list[Any], sweeping: list[Any]
) -> None:
    both = Both(valkey)
    for size, display, price in resting:
        both.place(data.draw(accounts), "sell", size, display, price)
    for kind, size, mode in sweeping:
        fields = {"account": "alice", "side": "buy", "self_trade_prevention": mode}
        both.ask("place_order", **fields, **taker_terms(kind, size))
    both.assert_equal()


@reckoned
@given(data=st.data(), selling=makers, buying=makers)
def test_an_auction_trades_what_slice_after_slice_gives(
    valkey: Server, data: Any, selling: list[Any], buying: list[Any]
) -> None:
    both = Both(valkey, status="auction")
    for side, orders in (("sell", selling), ("buy", buying)):
        for size, display, price in orders:
            both.place(data.draw(accounts), side, size, display, price)
    both.ask("define_instrument", status="trading")
    both.assert_equal()


@pytest.mark.parametrize("count", [1, 3])
def test_what_a_taker_costs_does_not_depend_on_how_little_is_shown(
    valkey: Server, count: int
) -> None:
    book = Book(valkey.client, f"ROUNDS{next(_symbols)}")
    book.define(iceberg_parts_max="10000")
    # More would not be sure to be exact together with what else could queue at the price.
    display = 2**53 // 5000 // 10_000
    for number in range(count):
        terms = {"display_quantity": str(display - number)}
        book.limit(f"maker-{number}", "sell", str(display * 9990), "100", **terms)
    wanted = display * 9990 * count // 2 - 1
    reply = book.limit("taker", "buy", str(wanted), "100")
    assert reply["status"] == "filled"
    assert sum(int(fill["quantity"]) for fill in reply["fills"]) == wanted
    # The slices shown at first, then all others of each order together; one order is one fill.
    assert len(reply["fills"]) == (1 if count == 1 else 2 * count)
    book.assert_is_what_its_stream_tells()
