"""Instruments: their rules, who may change them when, and where they are found."""

from typing import Any

import pytest

from books import Book, assert_rejected, timeless
from conftest import NewBook


def test_definition_is_told_back_with_its_defaults(new_book: NewBook) -> None:
    book = new_book()
    reply = book.ask("define_instrument", tick_size="0.010", lot_size="0.50")
    assert timeless(reply) == {
        "symbol": book.symbol, "segment": "main", "tick_size": "0.01", "lot_size": "0.5",
        "min_quantity": "0.5", "max_quantity": "900719925474099", "status": "trading",
        "events_length_max": 100000, "trades_length_max": 100000, "book_length_max": 1000,
        "self_trade_prevention": "none", "protection": "0", "price_band": "0", "min_notional": "0",
        "open_orders_max": 0, "iceberg_parts_max": 1000, "limit_percent": "0", "window_ms": 60000,
        "breaker_status": "halted", "breaker_duration_ms": 0, "open_orders": 0, "sequence": 1,
        "epoch": 0,
    }  # fmt: skip
    assert book.read("get_instrument") == reply


def test_definition_appears_in_the_stream(new_book: NewBook) -> None:
    book = new_book()
    reply = book.define()
    ((sequence, topics),) = book.entries("events")
    assert topics == {
        "instruments": {
            "channel": "instruments", "symbol": book.symbol, "type": "update",
            "sequence": sequence, "epoch": reply["epoch"], "instrument": reply,
        }
    }  # fmt: skip


@pytest.mark.parametrize("given", [{}, {"tick_size": "1"}, {"lot_size": "1"}, {"status": "halted"}])
def test_first_definition_needs_tick_and_lot(new_book: NewBook, given: dict[str, str]) -> None:
    book = new_book()
    assert_rejected(book.ask("define_instrument", **given), "MISSING_FIELD")
    assert book.stored_keys() == []
    assert not book.client.hexists("orderbook:instruments", book.symbol)


def test_fields_not_given_keep_their_value(book: Book) -> None:
    book.ask("define_instrument", max_quantity="50", events_length_max="500")
    reply = book.ask("define_instrument", status="halted")
    assert (reply["max_quantity"], reply["events_length_max"]) == ("50", 500)
    assert (reply["tick_size"], reply["lot_size"]) == ("0.01", "1")


def test_same_definition_again_changes_nothing(book: Book) -> None:
    before = book.contents()
    reply = book.define()
    assert reply["sequence"] == book.sequence()
    assert book.contents() == before


def test_tick_and_lot_are_fixed_while_orders_are_open(book: Book) -> None:
    book.limit("alice", "sell", "1", "100")
    for fields in ({"tick_size": "0.02"}, {"lot_size": "2"}, {"tick_size": "1", "lot_size": "1"}):
        assert_rejected(book.ask("define_instrument", **fields), "INSTRUMENT_IN_USE")
    # Saying what is already so is no change.
    assert book.ask("define_instrument", tick_size="0.010", status="halted")["status"] == "halted"
    book.ask("cancel_all_orders", account="alice")
    assert book.ask("define_instrument", tick_size="0.02")["tick_size"] == "0.02"
    book.state_hash()


def test_limits_may_change_while_orders_are_open(book: Book) -> None:
    book.limit("alice", "sell", "7", "100")
    book.ask("define_instrument", max_quantity="5")
    assert book.limit("bob", "buy", "5", "100")["status"] == "filled"
    assert_rejected(book.limit("bob", "buy", "6", "100"), "QUANTITY_TOO_LARGE")
    book.state_hash()


def test_instrument_tells_open_orders_and_last_price(book: Book) -> None:
    assert "last_price" not in book.read("get_instrument")
    book.limit("alice", "sell", "2", "100.50")
    book.limit("alice", "sell", "2", "101")
    book.limit("bob", "buy", "3", "102")
    found = book.read("get_instrument")
    assert (found["open_orders"], found["last_price"]) == (1, "101")


def test_instruments_are_found_by_symbol(book: Book) -> None:
    assert book.client.hget("orderbook:instruments", book.symbol) == b"main"


def test_symbol_lives_in_one_segment(book: Book) -> None:
    other = Book(book.client, book.symbol, segment="other")
    assert_rejected(other.define(), "SYMBOL_IN_OTHER_SEGMENT")
    assert other.stored_keys() == []
    assert book.client.hget("orderbook:instruments", book.symbol) == b"main"


def test_segments_have_books_of_their_own(client: Any, new_book: NewBook) -> None:
    one = new_book()
    one.define()
    two = Book(client, f"{one.symbol}-B", segment="second")
    assert two.define()["segment"] == "second"
    one.limit("alice", "sell", "1", "100")
    two.limit("alice", "sell", "2", "100")
    assert one.read("get_book")["asks"] == [["100", "1"]]
    assert two.read("get_book")["asks"] == [["100", "2"]]


def test_books_whose_symbols_begin_alike_do_not_touch(client: Any, new_book: NewBook) -> None:
    one = new_book()
    one.define()
    longer = Book(client, f"{one.symbol}.ORDERS")
    longer.define()
    before = longer.contents()
    one.limit("alice", "sell", "1", "100")
    one.ask("cancel_all_orders", account="alice")
    assert longer.contents() == before
