"""Retries: with a client_order_id every command is safe to send twice, and memory stays bounded."""

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from books import Book, assert_rejected, decode, words
from orderbook.server import EmbeddedServer
from servers import Server, load_library

REMEMBERED_MIN, REMEMBERED_MAX = 100_000, 200_000
BATCH = 256

ORDER = {
    "account": "alice", "side": "buy", "order_type": "limit", "quantity": "3", "price": "100.25",
    "client_order_id": "a1",
}  # fmt: skip


def place(book: Book, **changes: str) -> bytes:
    reply: bytes = book.raw("place_order", *words({**ORDER, **changes}))
    return reply


def batched(book: Book, method: str, **fields: Any) -> bytes:
    (reply,) = book.raw("execute", json.dumps({"method": method, **fields}))
    return reply  # type: ignore[no-any-return]


def test_order_sent_twice_is_placed_once(book: Book) -> None:
    first = place(book)
    before = book.contents()
    assert place(book) == first
    assert book.contents() == before


def test_retry_gets_the_first_reply_whatever_became_of_the_order(book: Book) -> None:
    first = place(book)
    book.limit("bob", "sell", "1", "100.25")
    assert place(book) == first
    book.ask("amend_order", order_id="1", price="99")
    assert place(book) == first
    book.ask("cancel_order", order_id="1")
    assert place(book) == first
    book.ask("begin_epoch", run_id="a" * 40)
    assert place(book) == first
    book.ask("define_instrument", status="halted")
    assert place(book) == first


def test_retry_of_a_filled_order_gets_its_fills_again(book: Book) -> None:
    book.limit("bob", "sell", "3", "100")
    first = place(book)
    assert decode(first)["fills"]
    assert place(book) == first
    assert len(book.read("get_trades")["trades"]) == 1


def test_retry_may_come_through_another_door_or_in_another_order(book: Book) -> None:
    first = place(book, post_only="true")
    fields = {**ORDER, "post_only": "true"}
    assert book.raw("place_order", *words(dict(reversed(fields.items())))) == first
    assert batched(book, "place_order", **fields) == first
    assert batched(book, "place_order", **{**ORDER, "post_only": True}) == first


def test_retry_within_one_batch_is_placed_once(book: Book) -> None:
    command = json.dumps({"method": "place_order", **ORDER})
    first, second = book.raw("execute", command, command)
    assert first == second
    assert book.read("get_instrument")["open_orders"] == 1


def test_other_content_under_the_same_id_is_refused(book: Book) -> None:
    place(book)
    before = book.contents()
    for changes in (
        {"quantity": "4"}, {"price": "100.26"}, {"side": "sell"}, {"time_in_force": "ioc"},
        {"post_only": "true"},
    ):  # fmt: skip
        reply = decode(place(book, **changes))
        assert_rejected(reply, "DUPLICATE_CLIENT_ORDER_ID")
        assert reply["client_order_id"] == "a1"
    assert book.contents() == before


def test_ids_belong_to_their_account(book: Book) -> None:
    place(book)
    assert decode(place(book, account="bob"))["order_id"] == "2"


def test_rejected_command_is_not_remembered(book: Book) -> None:
    assert_rejected(decode(place(book, price="100.255")), "PRICE_OFF_TICK")
    assert decode(place(book))["status"] == "open"


@pytest.mark.parametrize(
    ("function", "change"), [("cancel_order", {}), ("amend_order", {"price": "101"})]
)
def test_command_with_an_id_of_its_own_runs_once(
    book: Book, function: str, change: dict[str, str]
) -> None:
    book.limit("alice", "buy", "3", "100")
    fields = {"order_id": "1", "account": "alice", "client_order_id": "own", **change}
    first = book.raw(function, *words(fields))
    before = book.contents()
    assert book.raw(function, *words(fields)) == first
    assert batched(book, function, **fields) == first
    assert book.contents() == before
    other = book.ask(function, **{**fields, "order_id": "7"})
    assert_rejected(other, "DUPLICATE_CLIENT_ORDER_ID")


def test_one_id_serves_one_command_of_whatever_kind(book: Book) -> None:
    place(book)
    own = {"order_id": "1", "account": "alice", "client_order_id": "a1"}
    assert_rejected(book.ask("cancel_order", **own), "DUPLICATE_CLIENT_ORDER_ID")
    assert_rejected(book.ask("amend_order", **own, price="9"), "DUPLICATE_CLIENT_ORDER_ID")
    own["client_order_id"] = "c1"
    assert book.ask("cancel_order", **own)["status"] == "canceled"
    assert_rejected(decode(place(book, client_order_id="c1")), "DUPLICATE_CLIENT_ORDER_ID")


def test_last_change_named_by_the_orders_id_is_recognised(book: Book) -> None:
    place(book)
    named = {"account": "alice", "client_order_id": "a1"}
    smaller = words({**named, "quantity": "2"})
    first = book.raw("amend_order", *smaller)
    assert book.raw("amend_order", *smaller) == first
    other = book.raw("amend_order", *words({**named, "price": "99"}))
    assert other != first
    # No longer the last one: a new command, which does not shrink and so queues anew.
    assert book.raw("amend_order", *smaller) not in {first, other}
    canceled = book.raw("cancel_order", *words(named))
    before = book.contents()
    assert book.raw("cancel_order", *words(named)) == canceled
    assert book.contents() == before
    # What was placed under that name is still known.
    assert decode(place(book))["order_id"] == "1"


def test_order_canceled_otherwise_is_unknown_under_its_name(book: Book) -> None:
    place(book)
    book.ask("cancel_order", order_id="1")
    named = {"account": "alice", "client_order_id": "a1"}
    assert_rejected(book.ask("cancel_order", **named), "UNKNOWN_ORDER")


def test_memory_and_functions_survive_a_restart(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as client:
        load_library(client, "valkey")
        book = Book(client, "KEPT")
        book.define()
        first = place(book)
        state_hash = book.state_hash()
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as client:
        book = Book(client, "KEPT")
        assert book.state_hash() == state_hash
        assert place(book) == first


def remember(book: Book, prefix: str, count: int) -> None:
    """Runs so many commands that are remembered and leave no order behind."""
    order = {**ORDER, "method": "place_order", "time_in_force": "ioc"}
    text = json.dumps({**order, "client_order_id": "@"})
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        book.raw("execute", *[text.replace("@", f"{prefix}{n}") for n in numbers])


def test_memory_is_long_and_bounded(valkey: Server) -> None:
    book = Book(valkey.client, "MEMORY")
    book.define(events_length_max="1000")
    book.limit("alice", "buy", "1", "1", client_order_id="open")
    first = place(book, time_in_force="ioc")
    remember(book, "x", REMEMBERED_MIN - 1)
    assert place(book, time_in_force="ioc") == first, "one of the last 100,000 is forgotten"
    # Remembered or not, a repeated command must not count as one more.
    remember(book, "y", REMEMBERED_MAX)
    replies = [key for key in book.stored_keys() if b":replies" in key]
    stored = sum(book.client.hlen(key) for key in replies)
    assert REMEMBERED_MIN <= stored <= REMEMBERED_MAX * 1.02
    assert place(book, time_in_force="ioc") != first, "nothing is ever forgotten"
    taken = book.limit("alice", "buy", "1", "1", client_order_id="open")
    assert_rejected(taken, "DUPLICATE_CLIENT_ORDER_ID")
    book.state_hash()
