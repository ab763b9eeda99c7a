"""Reading a book: depth with its checksum, orders, pages of open orders, recent trades."""

import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from books import Book, Json, assert_rejected, timeless
from checker import checksum

# What the book of these tests says of its steps.
STEPS = {"tick_size": "0.01", "lot_size": "1"}


def place(account: str, side: str, price: str, quantity: str = "1") -> Json:
    return {
        "method": "place_order", "account": account, "side": side, "order_type": "limit",
        "price": price, "quantity": quantity,
    }  # fmt: skip


# The book of Kraken's own guide to the checksum of its websocket v2: price and quantity.
KRAKEN_ASKS = (
    "45285.2 0.001, 45286.4 1.54571953, 45286.6 1.54571109, 45289.6 1.54560911, 45290.2 0.1589066, "
    "45291.8 1.54553491, 45294.7 0.04454749, 45296.1 0.3538, 45297.5 0.09945542, 45299.5 0.18772827"
)
KRAKEN_BIDS = (
    "45283.5 0.1, 45283.4 1.54582015, 45282.1 0.1, 45281 0.1, 45280.3 1.54592586, 45279 0.0799, "
    "45277.6 0.03310103, 45277.5 0.3, 45277.3 1.54602737, 45276.6 0.15445238"
)
KRAKEN_CHECKSUM = 3310070434


def test_checksum_is_krakens_for_krakens_book(new_book: Callable[[], Book]) -> None:
    book = new_book()
    book.define(tick_size="0.1", lot_size="0.00000001")
    for side, rows in (("sell", KRAKEN_ASKS), ("buy", KRAKEN_BIDS)):
        for row in rows.split(", "):
            price, quantity = row.split()
            book.limit("alice", side, quantity, price)
    found = book.read("get_book")
    assert found["checksum"] == KRAKEN_CHECKSUM
    assert (found["tick_size"], found["lot_size"]) == ("0.1", "0.00000001")


def test_checksum_tells_numbers_apart_that_differ_in_the_point_alone(
    new_book: Callable[[], Book],
) -> None:
    sums = set()
    for price, quantity in (("4521.5", "1"), ("4521.5", "0.1"), ("4521.5", "0.01"), ("45215", "1")):
        book = new_book()
        book.define(tick_size="0.5", lot_size="0.01")
        book.limit("alice", "sell", quantity, price)
        sums |= {book.read(name)["checksum"] for name in ("get_book", "get_level3")}
    assert len(sums) == 8


def test_checksum_is_of_digits_asks_before_bids(book: Book) -> None:
    book.limit("alice", "buy", "1", "0.05")
    assert book.read("get_book")["checksum"] == zlib.crc32(b"51")
    book.limit("alice", "buy", "20", "100.25")
    book.limit("bob", "sell", "3", "100.50")
    book.limit("bob", "sell", "4", "101")
    assert book.read("get_book")["checksum"] == zlib.crc32(b"100503101004" + b"100252051")


def test_checksum_is_of_ten_levels_a_side_whatever_the_depth(book: Book) -> None:
    for cents in range(15):
        book.limit("alice", "sell", str(cents + 1), f"101.{cents:02}")
        book.limit("bob", "buy", "2", f"0.{cents + 1:02}")
    full = book.read("get_book", depth="full")
    expected = checksum(full["asks"][:10], full["bids"][:10], "0.01", "1")
    assert full["checksum"] == expected
    for depth in ("1", "9", "10", "11", "10000"):
        assert book.read("get_book", depth=depth)["checksum"] == expected, depth
    assert book.read("get_book")["checksum"] == expected


def test_checksum_of_an_empty_book_is_that_of_nothing(book: Book) -> None:
    empty = {"symbol": book.symbol, "sequence": 1, "epoch": 0, "bids": [], "asks": []}
    assert timeless(book.read("get_book")) == {**empty, "checksum": 0, **STEPS}


def test_depth_is_best_first_and_ten_by_default(book: Book) -> None:
    for cents in (3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 93):
        book.limit("alice", "sell", "1", f"101.{cents:02}")
        book.limit("bob", "buy", "1", f"99.{cents:02}")
    found = book.read("get_book")
    asks = [price for price, _ in found["asks"]]
    bids = [price for price, _ in found["bids"]]
    assert len(asks) == len(bids) == 10
    assert asks == sorted(asks, key=float)
    assert bids == sorted(bids, key=float, reverse=True)
    assert asks[0] == "101.01"
    assert bids[0] == "99.97"
    assert book.read("get_book", depth="3")["asks"] == found["asks"][:3]
    assert len(book.read("get_book", depth="full")["asks"]) == 12


@pytest.mark.parametrize("gap_ticks", [1, 3, 8, 9, 1000])
def test_depth_is_best_first_however_far_apart_its_levels_are(book: Book, gap_ticks: int) -> None:
    book.define(tick_size="0.25", lot_size="0.1")
    distances = [gap_ticks * n for n in range(60) if n % 7]
    shuffled = random.Random(gap_ticks).sample(distances, len(distances))
    asks = [f"{90_000 + ticks / 4:.10g}" for ticks in shuffled]
    bids = [f"{90_000 - ticks / 4:.10g}" for ticks in shuffled]
    book.execute(*[place("alice", "sell", price, quantity="2.5") for price in asks])
    book.execute(*[place("alice", "buy", price, quantity="3") for price in bids])
    for depth in ("10", "20", "50", "full"):
        count = len(distances) if depth == "full" else int(depth)
        found = book.read("get_book", depth=depth)
        assert found["asks"] == [[price, "2.5"] for price in sorted(asks, key=float)][:count]
        best_bids = sorted(bids, key=float, reverse=True)
        assert found["bids"] == [[price, "3"] for price in best_bids][:count]


def test_level_is_the_sum_of_its_orders(book: Book) -> None:
    for quantity in ("1", "2", "3"):
        book.limit("alice", "sell", quantity, "100")
    book.limit("bob", "buy", "4", "100")
    assert book.read("get_book")["asks"] == [["100", "2"]]


def test_order_is_found_by_both_its_names(book: Book) -> None:
    placed = book.limit("alice", "sell", "5", "100.5", client_order_id="a1", post_only="true")
    book.limit("bob", "buy", "2", "101")
    expected = {
        "order_id": "1", "client_order_id": "a1", "side": "sell", "order_type": "limit",
        "time_in_force": "gtc", "post_only": True, "quantity": "5", "price": "100.5",
        "remaining_quantity": "3", "status": "partially_filled", "account": "alice",
        "timestamp_ms": placed["timestamp_ms"], "sequence": book.sequence(),
    }  # fmt: skip
    assert book.read("get_order", order_id="1") == expected
    assert book.read("get_order", order_id="1", account="alice") == expected
    assert book.read("get_order", account="alice", client_order_id="a1") == expected


def test_open_orders_come_in_pages_by_order_id(book: Book) -> None:
    book.execute(*[place("alice", "sell", f"{101 + n}") for n in range(7)])
    book.execute(place("bob", "sell", "100"), {"method": "cancel_order", "order_id": "3"})
    book.ask("amend_order", order_id="1", price="150")
    fields: Json = {"account": "alice", "limit": "4"}
    first = book.read("get_open_orders", **fields)
    second = book.read("get_open_orders", **fields, after=first["orders"][-1]["order_id"])
    assert [order["order_id"] for order in first["orders"]] == ["1", "2", "4", "5"]
    assert [order["order_id"] for order in second["orders"]] == ["6", "7"]
    assert (first["more"], second["more"]) == (True, False)
    assert book.read("get_open_orders", account="alice", limit="6")["more"] is False
    assert timeless(second["orders"][0]) == {
        "order_id": "6", "side": "sell", "order_type": "limit", "time_in_force": "gtc",
        "quantity": "1", "price": "106", "remaining_quantity": "1", "status": "open",
        "timestamp_ms": 0,
    }  # fmt: skip


def test_account_without_orders_has_an_empty_page(book: Book) -> None:
    assert timeless(book.read("get_open_orders", account="nobody")) == {
        "account": "nobody", "symbol": book.symbol, "sequence": 1, "epoch": 0, "orders": [],
        "more": False,
    }  # fmt: skip


def test_pages_of_open_orders_are_500_long_by_default(book: Book) -> None:
    for _ in range(2):
        book.execute(*[place("alice", "sell", "101")] * 251)
    page = book.read("get_open_orders", account="alice")
    assert len(page["orders"]) == 500
    assert page["more"] is True


def test_trades_are_the_most_recent_oldest_first(book: Book) -> None:
    for batch in range(6):
        commands: list[Any] = []
        for _ in range(10):
            commands += [place("alice", "sell", "100"), place("bob", "buy", "100")]
        book.execute(*commands)
        assert book.read("get_trades")["trades"][-1]["trade_id"] == str(10 * (batch + 1))
    ids = [int(trade["trade_id"]) for trade in book.read("get_trades")["trades"]]
    assert ids == list(range(11, 61))
    for limit in (1, 7, 60, 1000):
        found = book.read("get_trades", limit=str(limit))["trades"]
        assert [int(trade["trade_id"]) for trade in found] == list(range(61 - limit, 61))[-60:]


def test_trade_names_both_orders_and_the_aggressor(book: Book) -> None:
    book.limit("alice", "buy", "2", "100")
    reply = book.limit("bob", "sell", "1", "99")
    assert timeless(book.read("get_trades")) == {
        "symbol": book.symbol, "sequence": reply["sequence"], "epoch": 0,
        "trades": [{
            "trade_id": "1", "price": "100", "quantity": "1", "aggressor_side": "sell",
            "maker_order_id": "1", "taker_order_id": "2", "sequence": reply["sequence"],
            "timestamp_ms": 0,
        }],
    }  # fmt: skip


def test_trade_of_an_auction_is_marked_and_has_no_aggressor(book: Book) -> None:
    book.ask("define_instrument", status="auction")
    book.limit("alice", "buy", "2", "100")
    book.limit("bob", "sell", "1", "99")
    sequence = book.ask("define_instrument", status="trading")["sequence"]
    assert timeless(book.read("get_trades"))["trades"] == [{
        "trade_id": "1", "price": "100", "quantity": "1", "auction": True,
        "maker_order_id": "1", "taker_order_id": "2", "sequence": sequence, "timestamp_ms": 0,
    }]  # fmt: skip
    assert timeless(book.read("get_own_trades", account="bob"))["trades"] == [{
        "order_id": "2", "trade_id": "1", "auction": True, "role": "taker", "side": "sell",
        "price": "100", "quantity": "1", "remaining_quantity": "0", "status": "filled",
        "sequence": sequence, "timestamp_ms": 0,
    }]  # fmt: skip


def test_equal_books_have_equal_state_hashes_and_others_not(new_book: Any) -> None:
    one, hashes = new_book(), []
    one.define()
    steps: list[Callable[[], Json]] = [
        lambda: one.limit("alice", "sell", "2", "100"),
        lambda: one.limit("bob", "sell", "2", "100"),
        lambda: one.ask("amend_order", order_id="1", quantity="1"),
        lambda: one.ask("amend_order", order_id="1", price="100"),
        lambda: one.ask("define_instrument", max_quantity="7"),
        lambda: one.ask("cancel_order", order_id="1"),
    ]
    for step in steps:
        step()
        hashes.append(one.state_hash())
        assert one.state_hash() == hashes[-1]
    assert len(set(hashes)) == len(hashes)


# ---- order by order


def test_level3_is_in_queue_order_and_shows_slices(book: Book) -> None:
    book.limit("alice", "sell", "9", "100.5", display_quantity="2")
    book.limit("bob", "sell", "3", "100.5")
    book.limit("carol", "sell", "1", "100")
    book.limit("alice", "buy", "4", "99")
    book.ask("amend_order", order_id="4", price="0.05")
    book.ask(
        "place_order", account="dave", side="buy", order_type="stop", stop_price="200", quantity="1"
    )
    assert timeless(book.read("get_level3")) == {
        "symbol": book.symbol,
        "sequence": book.sequence(),
        "epoch": 0,
        "bids": [["0.05", "4", "4", 5]],
        "asks": [["100", "1", "3", 3], ["100.5", "2", "1", 1], ["100.5", "3", "2", 2]],
        "more": False,
        "checksum": zlib.crc32(b"100001310050211005032" + b"544"),
        **STEPS,
    }


def test_level3_checksum_is_of_ten_levels_whatever_the_depth(book: Book) -> None:
    for cents in range(15):
        for side, price in (("sell", f"101.{cents:02}"), ("buy", f"0.{cents + 1:02}")):
            for _ in range(3):
                book.limit("alice", side, str(cents + 1), price)
    full = book.read("get_level3", depth="full")
    assert len(full["asks"]) == len(full["bids"]) == 45
    expected = checksum(full["asks"][:30], full["bids"][:30], "0.01", "1")
    for depth, rows in (("1", 3), ("9", 27), ("10", 30), ("11", 33), ("10000", 45)):
        found = book.read("get_level3", depth=depth)
        assert found["checksum"] == expected, depth
        assert found["bids"] == full["bids"][:rows]


def test_level3_checksum_is_of_a_thousand_orders_a_side(book: Book) -> None:
    order = {"method": "place_order", "account": "alice", "order_type": "limit", "quantity": "1"}
    for price in ("10", "10", "10", "10", "11", "11"):
        book.execute(*[order | {"side": "sell", "price": price}] * 250)
    full = book.read("get_level3", depth="full")
    assert len(full["asks"]) == 1500
    assert full["checksum"] == checksum(full["asks"][:1000], [], "0.01", "1")


def test_level3_of_more_orders_than_it_tells_says_so(book: Book) -> None:
    order = {"method": "place_order", "account": "alice", "order_type": "limit", "quantity": "1"}
    command = json.dumps(order | {"side": "buy", "price": "10"})
    for _ in range(40):
        book.raw("execute", *[command] * 250)
    full = book.read("get_level3", depth="full")
    assert (len(full["bids"]), full["more"]) == (10_000, False)
    book.limit("bob", "buy", "1", "9")
    full = book.read("get_level3", depth="full")
    assert (len(full["bids"]), full["more"]) == (10_000, True)


def test_level3_depth_has_the_limits_of_get_book(book: Book) -> None:
    for depth in ("0", "10001", "x"):
        assert_rejected(book.ask("get_level3", depth=depth), "INVALID_VALUE")
