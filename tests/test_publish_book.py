"""The half-second book: whoever asks first publishes, once, and only when there is something new.

The clock is moved by setting back what the book remembers of it.
"""

from collections.abc import Callable
from typing import Any

import pytest

from books import Book, Json, decode, timeless

INTERVAL_MS = 500


def published(book: Book) -> list[Json]:
    """The messages in the stream, oldest first."""
    entries = book.client.xrange(book.stream_key("book"))
    assert all({b"book", b"ticker"} <= fields.keys() for _, fields in entries)
    return [decode(fields[b"book"]) for _, fields in entries]


def move_clock(book: Book, elapsed_ms: int) -> None:
    """As if so much time had passed since the last publication."""
    book.client.hincrby(book.key, "published_timestamp_ms", -elapsed_ms)


def test_first_call_publishes_the_top_of_the_book(book: Book) -> None:
    for cents in range(12):
        book.limit("alice", "sell", "1", f"101.{cents:02}")
        book.limit("bob", "buy", "2", f"99.{cents:02}")
    reply = book.ask("publish_book")
    assert reply == {"published": True, "sequence": book.sequence(), "wait_ms": INTERVAL_MS}
    (message,) = published(book)
    top = book.read("get_book", depth="10")
    assert len(message["bids"]) == len(message["asks"]) == 10
    assert timeless(message) == {
        "channel": "book", "symbol": book.symbol, "type": "snapshot", "timestamp_ms": 0,
        "sequence": top["sequence"], "epoch": 0,
        "bids": top["bids"], "asks": top["asks"], "checksum": top["checksum"],
        "tick_size": "0.01", "lot_size": "1",
    }  # fmt: skip


def test_two_callers_publish_once(book: Book) -> None:
    book.limit("alice", "sell", "1", "101")
    first, second = book.ask("publish_book"), book.ask("publish_book")
    assert (first["published"], second["published"]) == (True, False)
    assert 0 < second["wait_ms"] <= INTERVAL_MS
    assert len(published(book)) == 1


def test_change_within_the_interval_waits_for_its_end(book: Book) -> None:
    book.ask("publish_book")
    book.limit("alice", "sell", "1", "101")
    early = book.ask("publish_book")
    assert early["published"] is False
    move_clock(book, INTERVAL_MS)
    late = book.ask("publish_book")
    assert late["published"] is True
    assert [message["sequence"] for message in published(book)] == [1, 2]


def test_unchanged_book_is_not_published_again(book: Book) -> None:
    book.limit("alice", "sell", "1", "101")
    book.ask("publish_book")
    move_clock(book, 10 * INTERVAL_MS)
    reply = book.ask("publish_book")
    assert reply["published"] is False
    assert 0 < reply["wait_ms"] <= INTERVAL_MS
    assert len(published(book)) == 1


def test_publishing_changes_neither_book_nor_sequence(book: Book) -> None:
    book.limit("alice", "sell", "1", "101")
    before = (book.sequence(), book.state_hash(), book.entries("events"))
    book.ask("publish_book")
    assert (book.sequence(), book.state_hash(), book.entries("events")) == before


def test_clock_that_went_back_does_not_silence_the_book(book: Book) -> None:
    book.ask("publish_book")
    book.limit("alice", "sell", "1", "101")
    # As after a failover to a server whose clock is an hour behind.
    move_clock(book, -3_600_000)
    assert book.ask("publish_book")["wait_ms"] <= INTERVAL_MS


@pytest.mark.parametrize("length_max", [5])
def test_stream_is_bounded(book: Book, length_max: int) -> None:
    book.define(book_length_max=str(length_max))
    publish: Callable[[], Any] = lambda: book.ask("publish_book")  # noqa: E731
    for _ in range(250):
        book.limit("alice", "sell", "1", "101")
        move_clock(book, INTERVAL_MS)
        publish()
    assert length_max <= book.client.xlen(book.stream_key("book")) <= length_max + 100


def test_ticker_and_candles_are_published_with_the_book(book: Book) -> None:
    book.limit("alice", "sell", "2", "100")
    move_clock(book, 500)
    book.ask("publish_book")
    (_, before), *_ = book.entries("book")
    assert before["ticker"]["best_ask"] == "100"
    assert [topic for topic in before if topic.startswith("candles")] == []
    book.limit("bob", "buy", "2", "100")
    move_clock(book, 500)
    book.ask("publish_book")
    _, after = book.entries("book")[-1]
    assert after["ticker"]["last_price"] == "100"
    intervals = ("1m", "5m", "15m", "1h", "1d")
    assert [topic for topic in after if topic not in {"book", "ticker"}] == [
        f"candles:{interval}" for interval in intervals
    ]
    for interval in intervals:
        message = after[f"candles:{interval}"]
        assert (message["interval"], message["candles"][-1]["volume"]) == (interval, "2")


def test_an_auction_is_published_with_the_book(book: Book) -> None:
    book.ask("define_instrument", status="auction")
    book.limit("alice", "sell", "2", "100")
    book.limit("bob", "buy", "3", "101")
    book.ask("publish_book")
    assert published(book)[-1]["auction"] == {
        "indicative_price": "101",
        "indicative_quantity": "2",
        "imbalance_side": "buy",
        "imbalance_quantity": "1",
    }
