"""Retries: with a client_order_id every command is safe to send twice, and memory stays bounded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import clock
from books import Book, assert_rejected, decode, words
from orderbook.engine import library
from orderbook.processes.embedded_server import EmbeddedServer
from servers import Server, load_library, running

# Of an account: how many replies are kept at least, and how many a generation has at most.
KEPT_MIN, GENERATION_MAX = 10_000, 500_000
AGE_MIN_MS = 60_000
NOON_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
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


# ---- how long replies are kept


def remember(book: Book, account: str, prefix: str, count: int) -> None:
    """Runs so many commands that are remembered and leave no order behind."""
    order = {**ORDER, "method": "place_order", "time_in_force": "ioc", "account": account}
    text = json.dumps({**order, "client_order_id": "@"})
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        book.raw("execute", *[text.replace("@", f"{prefix}{n}") for n in numbers])


def store(book: Book, account: str, prefix: str, count: int) -> None:
    """Puts so many replies where the account's next one goes, as if commands had been sent."""
    key = f"{book.key}:stored_replies:{account}"
    for start in range(0, count, 50_000):
        numbers = range(start, min(start + 50_000, count))
        book.client.hset(key, mapping={f"{prefix}{n}": "content\n{}" for n in numbers})


def stored_count(book: Book, account: str) -> int:
    keys = [key for key in book.stored_keys() if f":stored_replies:{account}".encode() in key]
    return sum(book.client.hlen(key) - 1 for key in keys)


def place_and_forget(book: Book, **changes: str) -> bytes:
    return place(book, time_in_force="ioc", **changes)


@pytest.fixture(scope="module")
def timed() -> Iterator[Any]:
    """A server whose clock the tests set."""
    with running("valkey") as server:
        server.client.function_load(clock.shimmed(library.bundle().text))
        yield server.client


@pytest.fixture
def timed_book(timed: Any) -> Book:
    """A fresh book at noon."""
    timed.flushall()
    clock.set_clock(timed, NOON_MS)
    book = Book(timed, "KEPT")
    book.define(events_length_max="1000")
    return book


def test_no_other_account_displaces_a_reply(valkey: Server) -> None:
    book = Book(valkey.client, "SHARED")
    book.define(events_length_max="1000")
    first = place_and_forget(book)
    remember(book, "stranger", "x", 3 * KEPT_MIN)
    assert place_and_forget(book) == first


def test_a_young_reply_is_kept_however_many_follow(timed_book: Book) -> None:
    first = place_and_forget(timed_book)
    store(timed_book, "alice", "x", 5 * KEPT_MIN)
    clock.set_clock(timed_book.client, NOON_MS + AGE_MIN_MS - 1)
    for name in ("b1", "b2", "b3"):
        place_and_forget(timed_book, client_order_id=name)
    assert place_and_forget(timed_book) == first


def test_the_last_replies_of_an_account_are_kept_and_older_ones_dropped(timed_book: Book) -> None:
    first = place_and_forget(timed_book)
    store(timed_book, "alice", "x", KEPT_MIN - 1)
    clock.set_clock(timed_book.client, NOON_MS + AGE_MIN_MS)
    place_and_forget(timed_book, client_order_id="second generation")
    second = place_and_forget(timed_book, client_order_id="b1")
    assert place_and_forget(timed_book) == first, "one of the last 10,000 is forgotten"
    store(timed_book, "alice", "y", KEPT_MIN - 1)
    clock.set_clock(timed_book.client, NOON_MS + 2 * AGE_MIN_MS)
    third = place_and_forget(timed_book, client_order_id="c1")
    assert place_and_forget(timed_book) not in {first, second, third}, "nothing is ever forgotten"
    assert place_and_forget(timed_book, client_order_id="b1") == second
    assert KEPT_MIN <= stored_count(timed_book, "alice") <= 2 * KEPT_MIN
    timed_book.state_hash()


def test_name_of_an_open_order_is_never_forgotten(timed_book: Book) -> None:
    place(timed_book)
    for key in timed_book.stored_keys():
        if b":stored_replies:" in key:
            timed_book.client.delete(key)
    assert_rejected(decode(place(timed_book)), "DUPLICATE_CLIENT_ORDER_ID")


def test_an_account_that_floods_is_refused_and_can_still_cancel(timed_book: Book) -> None:
    place(timed_book)
    store(timed_book, "alice", "x", GENERATION_MAX)
    clock.set_clock(timed_book.client, NOON_MS + AGE_MIN_MS - 1)
    before = timed_book.contents()
    assert_rejected(decode(place(timed_book, client_order_id="a2")), "TOO_MANY_STORED_REPLIES")
    named = {"account": "alice", "client_order_id": "a1"}
    assert_rejected(timed_book.ask("amend_order", **named, price="9"), "TOO_MANY_STORED_REPLIES")
    assert timed_book.contents() == before
    assert decode(place(timed_book, account="bob"))["status"] == "open"
    assert timed_book.ask("cancel_order", **named)["status"] == "canceled"
    clock.set_clock(timed_book.client, NOON_MS + AGE_MIN_MS)
    assert decode(place(timed_book, client_order_id="a2"))["status"] == "open"


def test_replies_of_an_account_that_has_gone_expire(timed_book: Book) -> None:
    place_and_forget(timed_book)
    key = f"{timed_book.key}:stored_replies:alice"
    assert 35 * HOUR_MS < timed_book.client.pttl(key) <= 36 * HOUR_MS
    clock.set_clock(timed_book.client, NOON_MS + 12 * HOUR_MS)
    place_and_forget(timed_book, client_order_id="later")
    assert timed_book.client.hkeys(f"{key}:previous")[0] == b"a1"
    assert b"a1" not in timed_book.client.hkeys(key)
