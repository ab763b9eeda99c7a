"""All orders canceled in several books: one call, each book its own sequence, all or none."""

import json
import random
from typing import Any

import pytest
from redis.exceptions import ResponseError

from books import Book, Json, assert_rejected, comparable, decode, timeless, words
from conftest import NewBook
from reference import ReferenceBook, cancel_in_books

CANCELED_MAX = 1000


def cancel_all(books: list[Book], **fields: str) -> Json:
    keys = [book.key for book in books]
    client = books[0].client
    return decode(
        client.execute_command("FCALL", "cancel_all_orders", len(keys), *keys, *words(fields))
    )


def defined(new_book: NewBook, count: int) -> list[Book]:
    books = [new_book() for _ in range(count)]
    for book in books:
        book.define()
    return books


def test_books_are_canceled_as_the_reference_says(new_book: NewBook) -> None:
    dice = random.Random(11)
    books = defined(new_book, 4)
    references = [ReferenceBook(book.symbol) for book in books]
    for oracle in references:
        oracle.call("define_instrument", "tick_size", "0.01", "lot_size", "1")
    for _ in range(12):
        for _ in range(10):
            index = dice.randrange(4)
            fields = {
                "account": dice.choice(("alice", "bob")),
                "side": dice.choice(("buy", "sell")),
                "order_type": "limit",
                "price": str(dice.randint(98, 102)),
                "quantity": str(dice.randint(1, 9)),
            }
            reply = books[index].ask("place_order", **fields)
            expected = references[index].call("place_order", *words(fields))
            assert comparable(reply) == expected
        chosen = dice.sample(range(4), dice.randint(2, 4))
        fields = {"account": dice.choice(("alice", "bob", "carol"))}
        if dice.random() < 0.5:
            fields["side"] = dice.choice(("buy", "sell"))
        reply = cancel_all([books[index] for index in chosen], **fields)
        expected = cancel_in_books([references[index] for index in chosen], fields)
        assert comparable(reply) == expected
    for book, oracle in zip(books, references, strict=True):
        found = [(sequence, timeless(topics)) for sequence, topics in book.entries("events")]
        assert found == oracle.entries
        book.state_hash()


def test_order_lists_are_settled_in_every_book(new_book: NewBook) -> None:
    books = defined(new_book, 2)
    legs: list[Json] = [
        {"side": "buy", "order_type": "limit", "price": "99", "quantity": "5"},
        {"side": "sell", "order_type": "limit", "price": "105"},
        {"side": "sell", "order_type": "stop", "stop_price": "95"},
    ]
    for book in books:
        book.ask("place_order_list", account="alice", list_type="bracket", orders=json.dumps(legs))
    reply = cancel_all(books, account="alice", side="buy")
    assert reply["canceled_count"] == 2
    for book in books:
        assert book.read("get_open_orders", account="alice")["orders"] == []
        book.state_hash()


def test_all_books_read_the_clock_once(new_book: NewBook, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("counts no commands")
    books = defined(new_book, 3)
    client = books[0].client
    client.execute_command("CONFIG", "RESETSTAT")
    cancel_all(books, account="alice", valid_until_ms="9007199254740991")
    assert client.info("commandstats")["cmdstat_time"]["calls"] == 1


def test_keys_that_are_not_different_books_of_one_segment_are_refused(new_book: NewBook) -> None:
    first, second = defined(new_book, 2)
    first.limit("alice", "buy", "1", "99")
    elsewhere = Book(first.client, "ELSEWHERE", segment="other")
    before = first.contents()
    many = [Book(first.client, f"M{number}") for number in range(101)]
    for books in ([first, second, first], [first, elsewhere], many):
        assert_rejected(cancel_all(books, account="alice"), "INVALID_BOOK_KEY")
    assert_rejected(cancel_all([first, many[0]], account="alice"), "UNKNOWN_SYMBOL")
    assert_rejected(cancel_all([first, second]), "MISSING_FIELD")
    assert_rejected(cancel_all([first, second], account="alice", side="both"), "INVALID_VALUE")
    late = cancel_all([first, second], account="alice", valid_until_ms="1")
    assert_rejected(late, "TOO_LATE")
    assert first.contents() == before


def test_a_hundred_books_are_canceled_at_once(new_book: NewBook) -> None:
    books = defined(new_book, 100)
    for book in books[::7]:
        book.limit("alice", "buy", "1", "99")
    reply = cancel_all(books, account="alice")
    assert reply["canceled_count"] == len(books[::7])
    assert [row["symbol"] for row in reply["books"]] == [book.symbol for book in books]


def test_limit_of_cancels_counts_over_all_books(new_book: NewBook, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis takes minutes for thousands of orders")
    books = defined(new_book, 2)
    order: dict[str, Any] = {"method": "place_order", "account": "alice", "side": "buy"}
    order |= {"order_type": "limit", "price": "99", "quantity": "1"}
    for book in books:
        for _ in range(3):
            book.execute(*[order] * 200)
    reply = cancel_all(books, account="alice")
    assert [row["canceled_count"] for row in reply["books"]] == [600, CANCELED_MAX - 600]
    assert (reply["canceled_count"], reply["remaining_count"]) == (CANCELED_MAX, 200)
    assert cancel_all(books, account="alice")["remaining_count"] == 0


def test_a_stream_that_is_ahead_keeps_every_book_from_being_written(new_book: NewBook) -> None:
    books = defined(new_book, 3)
    for book in books:
        book.limit("alice", "buy", "1", "99")
    damaged = books[1]
    taken = damaged.sequence() + 1
    damaged.client.xadd(damaged.stream_key("events"), {"by": "hand"}, id=f"{taken}-0")
    before = [book.contents() for book in books]
    with pytest.raises(ResponseError, match="DAMAGED"):
        cancel_all(books, account="alice")
    assert [book.contents() for book in books] == before
