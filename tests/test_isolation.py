"""An unexpected error: it costs one command, or halts one book, and never the rest of a batch.

No input is known that raises an error in the library. So these tests make one: a library whose
place_order raises an error for the account "mallory", and books whose stored state was damaged by
hand.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from books import Book, Json, assert_rejected, decode, words
from orderbook.engine import library
from servers import library_for, running

BROKEN_LINE = "function place_order.run(tx, values)\n"
RAISES = 'if values.account == "mallory" then local nothing; return nothing.price end\n'
BRACKET = (
    '[{"side":"buy","order_type":"limit","price":"99","quantity":"5"},'
    '{"side":"sell","order_type":"limit","price":"105"},'
    '{"side":"sell","order_type":"stop","stop_price":"95"}]'
)


def place(account: str, side: str, price: str, **fields: str) -> Json:
    return {
        "method": "place_order", "account": account, "side": side, "order_type": "limit",
        "price": price, "quantity": "1", **fields,
    }  # fmt: skip


@pytest.fixture(scope="module")
def faulty(engine: str) -> Iterator[Any]:
    """A client of a server whose library raises an error for one account."""
    if engine == "fakeredis":
        pytest.skip("one library for all tests of fakeredis")
    text = library.bundle().text
    assert text.count(BROKEN_LINE) == 1
    with running(engine) as server:
        broken = library_for(engine, text.replace(BROKEN_LINE, BROKEN_LINE + RAISES))
        server.client.execute_command("FUNCTION", "LOAD", broken)
        yield server.client


@pytest.fixture
def fragile(faulty: Any, request: pytest.FixtureRequest) -> Book:
    book = Book(faulty, f"F{abs(hash(request.node.name)) % 10**9}")
    book.define()
    return book


def test_command_that_raises_an_error_is_refused_and_the_others_run(fragile: Book) -> None:
    replies = fragile.execute(
        place("alice", "sell", "100"),
        place("mallory", "buy", "100"),
        place("bob", "buy", "100"),
        {"method": "cancel_order", "order_id": "77"},
        place("carol", "buy", "98"),
    )
    assert_rejected(replies[1], "INTERNAL_ERROR")
    assert_rejected(replies[3], "UNKNOWN_ORDER")
    assert [replies[n]["status"] for n in (0, 2, 4)] == ["open", "filled", "open"]
    assert [replies[n]["order_id"] for n in (0, 2, 4)] == ["1", "2", "3"]
    assert {replies[n]["sequence"] for n in (0, 2, 4)} == {2}
    assert fragile.read("get_instrument")["status"] == "trading"
    assert fragile.client.hget(fragile.key, "internal_errors") == b"1"
    fragile.assert_is_what_its_stream_tells()


def test_single_command_that_raises_an_error_is_refused(fragile: Book) -> None:
    reply = fragile.limit("mallory", "buy", "1", "100")
    assert_rejected(reply, "INTERNAL_ERROR")
    assert fragile.limit("bob", "buy", "1", "100")["order_id"] == "1"
    fragile.assert_is_what_its_stream_tells()


def test_call_with_many_errors_ends_and_does_nothing_more(fragile: Book) -> None:
    replies = fragile.execute(
        place("alice", "sell", "100"), *[place("mallory", "buy", "100")] * 200,
        place("bob", "buy", "100"),
    )  # fmt: skip
    assert {reply["code"] for reply in replies} == {"INTERNAL_ERROR"}
    assert fragile.read("get_book")["asks"] == []
    fragile.assert_is_what_its_stream_tells()


def poison_bracket(book: Book) -> None:
    """A bracket whose stop leg has lost its stop price: its entry cannot activate it."""
    placed = book.ask("place_order_list", account="erin", list_type="bracket", orders=BRACKET)
    leg = placed["orders"][2]["order_id"]
    record = book.client.hget(f"{book.key}:orders", leg).decode()
    assert ",stop_price=9500" in f",{record.rpartition(' ')[2]}"
    poisoned = record.replace("stop_price=9500,", "")
    assert poisoned != record
    book.client.hset(f"{book.key}:orders", leg, poisoned)


def test_error_from_what_is_stored_halts_the_book_with_a_reason(book: Book) -> None:
    book.limit("alice", "buy", "1", "90", client_order_id="a1")
    poison_bracket(book)
    before = book.sequence()
    replies = book.execute(
        place("bob", "buy", "98"),
        place("carol", "sell", "99"),
        {"method": "cancel_order", "account": "alice", "client_order_id": "a1"},
    )
    assert [reply.get("code") for reply in replies] == ["INSTRUMENT_HALTED"] * 2 + [None]
    assert replies[2]["status"] == "canceled"
    ((sequence, topics),) = book.entries("events", before)
    assert sequence == before + 1
    told = topics["instruments"]["instrument"]
    assert told["status"] == "halted"
    assert "attempt to" in told["halt_reason"]
    # The book stands still: nothing raises the error again.
    assert_rejected(book.limit("carol", "sell", "1", "99"), "INSTRUMENT_HALTED")
    assert book.client.hget(book.key, "internal_errors") == b"1"


def test_halted_book_trades_again_when_the_cause_is_gone(book: Book) -> None:
    poison_bracket(book)
    book.limit("carol", "sell", "1", "99")
    assert book.read("get_instrument")["status"] == "halted"
    assert book.ask("cancel_all_orders", account="erin")["canceled_count"] == 3
    told = book.ask("define_instrument", status="trading")
    assert (told["status"], told.get("halt_reason")) == ("trading", None)
    assert book.limit("carol", "sell", "1", "99")["status"] == "open"
    book.state_hash()


def test_damaged_record_of_an_order_halts_the_book(book: Book) -> None:
    book.limit("alice", "sell", "1", "100")
    book.client.hset(f"{book.key}:orders", "1", "no record")
    assert_rejected(book.limit("bob", "buy", "1", "101"), "INSTRUMENT_HALTED")
    assert "order 1 has no valid record" in book.read("get_instrument")["halt_reason"]


def test_damaged_candle_halts_the_book_before_the_trade(book: Book) -> None:
    book.limit("alice", "sell", "2", "100")
    book.limit("bob", "buy", "1", "100")
    book.client.hset(f"{book.key}:candles", "1m", "no candle")
    assert_rejected(book.limit("bob", "buy", "1", "100"), "INSTRUMENT_HALTED")
    assert len(book.read("get_trades")["trades"]) == 1
    assert book.read("get_instrument")["status"] == "halted"


def test_error_in_one_of_several_books_halts_that_book_only(book: Book, new_book: Any) -> None:
    other = new_book()
    other.define()
    other.limit("erin", "buy", "1", "90")
    book.limit("erin", "buy", "1", "90")
    book.client.hset(f"{book.key}:orders", "1", "no record")
    keys = [other.key, book.key]
    reply = book.client.execute_command(
        "FCALL", "cancel_all_orders", 2, *keys, *words({"account": "erin"})
    )
    assert_rejected(decode(reply), "INTERNAL_ERROR")
    assert other.read("get_instrument")["status"] == "trading"
    assert len(other.read("get_book")["bids"]) == 1
    assert book.read("get_instrument")["status"] == "halted"


@pytest.mark.parametrize("key", ["bids", "asks", "orders", "events"])
def test_missing_key_stops_the_book(book: Book, key: str) -> None:
    """Evicted or deleted: no order may rest against others that cannot be seen."""
    book.limit("alice", "sell", "1", "100")
    book.limit("bob", "buy", "1", "99")
    book.client.delete(f"{book.key}:{key}")
    before = book.contents()
    for function, fields in (
        ("place_order", place("carol", "buy", "101")),
        ("cancel_order", {"order_id": "1"}),
        ("define_instrument", {"status": "halted"}),
    ):
        with pytest.raises(ResponseError, match="DAMAGED"):
            book.ask(function, **{n: v for n, v in fields.items() if n != "method"})
    assert book.contents() == before
