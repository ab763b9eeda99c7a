"""What is hidden stays hidden: from who asks, from who watches, from who guesses an order_id."""

import json
from typing import Any

from books import Book, assert_rejected

ICEBERG = {"quantity": "9", "display_quantity": "2"}
STOP = {"order_type": "stop", "side": "buy", "stop_price": "200", "quantity": "1"}


def checked(book: Book, **fields: str) -> Any:
    order = {"account": "bob", "side": "buy", "order_type": "limit", "price": "100", **fields}
    return book.ask("place_order", **order, validate_only="true")["fill_quantity"]


def test_validate_only_counts_what_the_book_shows(book: Book) -> None:
    book.limit("alice", "sell", "9", "100", display_quantity="2")
    book.limit("carol", "sell", "3", "100")
    for quantity, expected in (("1", "1"), ("2", "2"), ("5", "5"), ("6", "5"), ("12", "5")):
        assert checked(book, quantity=quantity) == expected
    assert checked(book, quantity="5", time_in_force="fok") == "5"
    assert checked(book, quantity="6", time_in_force="fok") == "0"


def test_later_slices_look_like_other_orders(book: Book) -> None:
    """Level3, trades and the taker's fills name ids that no order has been seen with."""
    book.limit("alice", "sell", "9", "100", display_quantity="2")
    book.limit("bob", "buy", "2", "100")
    (row,) = book.read("get_level3")["asks"]
    assert row[:3] == ["100", "2", "3"]
    fill = book.limit("bob", "buy", "1", "100")["fills"][0]
    assert fill["maker_order_id"] == "3"
    trades = book.read("get_trades")["trades"]
    assert [trade["maker_order_id"] for trade in trades] == ["1", "3"]
    # The id is for reading: it names no order, to nobody.
    assert_rejected(book.ask("cancel_order", account="alice", order_id="3"), "UNKNOWN_ORDER")
    assert_rejected(book.ask("get_order", order_id="3"), "UNKNOWN_ORDER")
    found = book.read("get_order", order_id="1", account="alice")
    assert (found["displayed_order_id"], found["remaining_quantity"]) == ("3", "6")
    # The next new order has the next id: nobody can tell a slice from an order.
    assert book.limit("bob", "buy", "1", "90")["order_id"] == "5"
    assert book.ask("cancel_order", account="alice", order_id="1")["status"] == "canceled"
    book.assert_is_what_its_stream_tells()


def test_an_icebergs_later_slices_take_no_ids_from_an_order_list(book: Book) -> None:
    book.limit("alice", "sell", "9", "100", display_quantity="2")
    entry = {"side": "buy", "order_type": "limit", "price": "100", "quantity": "5"}
    leg = {"side": "sell", "order_type": "stop", "stop_price": "90"}
    listed = book.ask(
        "place_order_list", account="bob", list_type="oto", orders=json.dumps([entry, leg])
    )
    assert [order["order_id"] for order in listed["orders"]] == ["2", "3"]
    assert book.read("get_level3")["asks"][0][2] == "4"
    book.assert_is_what_its_stream_tells()


def test_a_strangers_order_is_as_unknown_as_none(book: Book) -> None:
    """Which order_ids are stop orders that wait, nobody learns by trying them."""
    hidden = book.ask("place_order", account="alice", **STOP)["order_id"]
    for function, fields in (
        ("get_order", {}),
        ("cancel_order", {}),
        ("amend_order", {"quantity": "2"}),
    ):
        answers = []
        for order_id in (hidden, "77"):
            reply = book.ask(function, account="bob", order_id=order_id, **fields)
            answers.append({**reply, "message": reply["message"].replace(order_id, "N")})
        assert answers[0] == answers[1]
        assert_rejected(answers[0], "UNKNOWN_ORDER")
    new = {"side": "buy", "order_type": "limit", "quantity": "1", "price": "1"}
    replaced = book.ask("replace_order", account="bob", cancel_order_id=hidden, **new)
    assert_rejected(replaced, "UNKNOWN_ORDER")


def test_slices_are_at_least_min_quantity_and_not_too_many(book: Book) -> None:
    book.ask("define_instrument", min_quantity="2", iceberg_parts_max="4")
    for quantity, display in (("9", "1"), ("9", "2"), ("9", "10")):
        refused = book.limit("alice", "sell", quantity, "100", display_quantity=display)
        assert_rejected(refused, "INVALID_DISPLAY_QUANTITY")
    assert book.limit("alice", "sell", "8", "100", display_quantity="2")["status"] == "open"
    larger = {"order_id": "1", "quantity": "9"}
    assert_rejected(book.ask("amend_order", **larger), "INVALID_DISPLAY_QUANTITY")
    new = {"side": "sell", "order_type": "limit", "quantity": "9", "price": "100"}
    replaced = book.ask(
        "replace_order", account="alice", cancel_order_id="1", **new, display_quantity="2"
    )
    assert_rejected(replaced, "INVALID_DISPLAY_QUANTITY")
    assert book.ask("define_instrument", iceberg_parts_max="5")["iceberg_parts_max"] == 5
    assert book.ask("amend_order", **larger)["quantity"] == "9"
