"""The streams: one call, one sequence, one entry; what it tells, to whom, and for how long."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from books import Book, Json, timeless, words
from conftest import NewBook

# Redis trims whole nodes of a stream, of 100 entries each.
STREAM_NODE_LENGTH = 100


def place(account: str, side: str, quantity: str, price: str, **fields: Any) -> Json:
    return {
        "method": "place_order",
        "account": account,
        "side": side,
        "order_type": "limit",
        "quantity": quantity,
        "price": price,
        **fields,
    }


def entry(book: Book, sequence: int) -> Json:
    """The topics of one entry, timestamps set to 0."""
    found = dict(book.entries("events", sequence - 1))
    return {topic: timeless(message) for topic, message in found[sequence].items()}


def test_every_change_takes_one_sequence_without_gaps(book: Book) -> None:
    changes: list[Callable[[], Json]] = [
        lambda: book.limit("alice", "sell", "5", "100", client_order_id="a1"),
        lambda: book.limit("bob", "buy", "2", "100"),
        lambda: book.limit("bob", "buy", "9", "90", time_in_force="ioc"),
        lambda: book.ask("amend_order", order_id="1", price="101"),
        lambda: book.ask("amend_order", order_id="1", remaining_quantity="1"),
        lambda: book.ask("define_instrument", status="halted"),
        lambda: book.ask("begin_epoch", run_id="a" * 40),
        lambda: book.ask("cancel_order", order_id="1"),
        lambda: book.ask("define_instrument", status="trading"),
        lambda: book.limit("bob", "buy", "9", "90"),
        lambda: book.ask("cancel_all_orders", account="bob"),
        lambda: book.execute(place("bob", "buy", "1", "90"), place("bob", "buy", "1", "91"))[1],
    ]
    start = book.sequence()
    replies = [change()["sequence"] for change in changes]
    expected = list(range(start + 1, start + 1 + len(changes)))
    assert replies == expected
    assert [sequence for sequence, _ in book.entries("events", start)] == expected


def test_what_changes_nothing_takes_no_sequence(book: Book) -> None:
    book.limit("alice", "sell", "5", "100", client_order_id="a1")
    start = book.sequence()
    book.limit("alice", "sell", "5", "100", client_order_id="a1")
    book.limit("alice", "sell", "5", "100.001")
    book.ask("cancel_order", order_id="9")
    book.ask("cancel_all_orders", account="nobody")
    book.ask("define_instrument", tick_size="0.01")
    book.execute(place("alice", "sell", "5", "0"), {"method": "cancel_order", "order_id": "9"})
    book.ask("publish_book")
    for query in ("get_book", "get_level3", "get_trades", "get_instrument", "verify_book"):
        book.ask(query)
    assert book.sequence() == start
    assert book.entries("events", start) == []


def test_batch_is_one_entry_and_its_replies_share_the_sequence(book: Book) -> None:
    start = book.sequence()
    replies = book.execute(
        place("alice", "sell", "2", "100"),
        place("alice", "sell", "2", "100.001"),
        place("bob", "buy", "1", "100"),
        {"method": "cancel_order", "order_id": "1"},
        {"method": "cancel_all_orders", "account": "bob"},
    )
    assert [reply.get("sequence") for reply in replies] == [start + 1, None, *[start + 1] * 3]
    ((sequence, topics),) = book.entries("events", start)
    assert sequence == start + 1
    assert topics.keys() == {"trades", "orders:alice", "orders:bob"}, "no level is left changed"


def test_entry_of_a_trade_tells_everyone_what_concerns_them(book: Book) -> None:
    book.limit("alice", "sell", "5", "100.50", client_order_id="a1")
    reply = book.limit("bob", "buy", "7", "101", client_order_id="b1")
    sequence = reply["sequence"]
    head = {"symbol": book.symbol, "type": "update", "sequence": sequence, "epoch": 0}
    traded = {"trade_id": "1", "price": "100.5", "quantity": "5", "timestamp_ms": 0}
    terms = {
        "order_id": "2", "client_order_id": "b1", "side": "buy", "order_type": "limit",
        "time_in_force": "gtc", "quantity": "7", "price": "101",
    }  # fmt: skip
    maker = {
        **traded, "event": "trade", "order_id": "1", "client_order_id": "a1", "role": "maker",
        "side": "sell", "remaining_quantity": "0", "status": "filled", "order_quantity": "5",
        "order_price": "100.5",
    }  # fmt: skip
    taker = {
        **traded, "event": "trade", "order_id": "2", "client_order_id": "b1", "role": "taker",
        "side": "buy", "remaining_quantity": "2", "status": "partially_filled",
    }  # fmt: skip
    accepted = {"event": "accepted", **terms, "priority": 2, "timestamp_ms": 0}
    trade = {
        **traded, "aggressor_side": "buy", "maker_order_id": "1", "taker_order_id": "2",
        "sequence": sequence,
    }  # fmt: skip
    assert entry(book, sequence) == {
        "trades": {"channel": "trades", **head, "trades": [trade]},
        "level2": {"channel": "level2", **head, "bids": [["101", "2"]], "asks": [["100.5", "0"]]},
        "orders:alice": {"channel": "orders", **head, "account": "alice", "orders": [maker]},
        "orders:bob": {
            "channel": "orders", **head, "account": "bob", "orders": [accepted, taker],
        },
    }  # fmt: skip


def test_reports_of_a_market_order_have_no_price_of_its_own(book: Book) -> None:
    order = {"account": "alice", "side": "buy", "order_type": "market", "quantity": "3"}
    sequence = book.ask("place_order", **order)["sequence"]
    terms = {
        "order_id": "1", "side": "buy", "order_type": "market", "time_in_force": "ioc",
        "quantity": "3", "timestamp_ms": 0,
    }  # fmt: skip
    accepted, canceled = entry(book, sequence)["orders:alice"]["orders"]
    assert accepted == {"event": "accepted", **terms, "priority": 1}
    assert canceled == {
        "event": "canceled", **terms, "remaining_quantity": "3", "reason": "ioc",
    }  # fmt: skip


def _reports_of_a_quote(book: Book, quote_quantity: str) -> list[tuple[str, str, str]]:
    """Event, status or reason, and what is left, of a market order that pays so much."""
    book.limit("bob", "sell", "2", "100")
    book.limit("bob", "sell", "2", "101")
    order = {"account": "alice", "side": "buy", "order_type": "market"}
    reply = book.ask("place_order", **order, quote_quantity=quote_quantity)
    _, *reports = entry(book, reply["sequence"])["orders:alice"]["orders"]
    assert reports[-1].get("status", "canceled") == reply["status"]
    return [
        (one["event"], one.get("status") or one["reason"], one["remaining_quantity"])
        for one in reports
    ]


def test_an_order_by_quote_quantity_is_filled_by_its_last_trade(book: Book) -> None:
    assert _reports_of_a_quote(book, "350") == [
        ("trade", "partially_filled", "1"),
        ("trade", "filled", "0"),
    ]


def test_an_order_by_quote_quantity_that_the_book_cannot_fill_is_only_canceled(book: Book) -> None:
    assert _reports_of_a_quote(book, "1000") == [
        ("trade", "partially_filled", "2"),
        ("trade", "partially_filled", "0"),
        ("canceled", "ioc", "0"),
    ]
    closed = book.read("get_closed_orders", account="alice")["orders"]
    assert [one["status"] for one in closed] == ["canceled"]


def test_reasons_of_cancellation_are_told(book: Book) -> None:
    for fields in ({}, {}, {"time_in_force": "ioc"}, {"time_in_force": "fok"}):
        book.limit("alice", "buy", "1", "99", **fields)
    book.ask("cancel_order", order_id="1")
    book.ask("cancel_all_orders", account="alice")
    reasons = {}
    for _, topics in book.entries("events"):
        for report in topics.get("orders:alice", {"orders": []})["orders"]:
            if report["event"] == "canceled":
                reasons[report["order_id"]] = report["reason"]
    assert reasons == {"1": "requested", "2": "cancel_all", "3": "ioc", "4": "fok"}


def test_amended_report_has_terms_and_place_as_asked_before_trades(book: Book) -> None:
    book.limit("alice", "sell", "1", "101")
    book.limit("bob", "buy", "4", "99")
    sequence = book.ask("amend_order", order_id="2", price="101", quantity="3")["sequence"]
    amended, trade = entry(book, sequence)["orders:bob"]["orders"]
    assert amended == {
        "event": "amended", "order_id": "2", "side": "buy", "order_type": "limit",
        "time_in_force": "gtc", "quantity": "3", "price": "101", "remaining_quantity": "3",
        "priority": 3, "timestamp_ms": 0,
    }  # fmt: skip
    assert (trade["event"], trade["role"], trade["remaining_quantity"]) == ("trade", "taker", "2")


def test_nobody_learns_who_the_other_side_is(book: Book) -> None:
    book.limit("alice", "sell", "5", "100", client_order_id="alices-secret")
    book.limit("bob", "buy", "5", "100", client_order_id="bobs-secret")
    for _, fields in book.client.xrange(book.stream_key("events")):
        for topic, message in fields.items():
            others = {b"orders:alice": b"bob", b"orders:bob": b"alice"}
            if topic in others:
                assert others[topic] not in message
            elif topic in {b"trades", b"level2"}:
                assert b"alice" not in message
                assert b"bob" not in message


def test_trades_stream_has_the_same_bytes_under_the_same_ids(book: Book) -> None:
    book.limit("alice", "sell", "5", "100")
    for _ in range(3):
        book.limit("bob", "buy", "1", "100")
        book.limit("carol", "buy", "1", "90")
    events = book.client.xrange(book.stream_key("events"))
    expected = [(i, {b"trades": f[b"trades"]}) for i, f in events if b"trades" in f]
    assert len(expected) == 3
    assert book.client.xrange(book.stream_key("trades")) == expected


def test_book_rebuilt_from_level2_updates_is_the_book(book: Book) -> None:
    flow = random.Random(7)
    for _ in range(60):
        commands = [
            place(flow.choice("ab"), flow.choice(["buy", "sell"]), str(flow.randint(1, 5)),
                  str(flow.randint(95, 105)))
            for _ in range(flow.randint(1, 4))
        ]  # fmt: skip
        commands.append({"method": "cancel_order", "order_id": str(flow.randint(1, 60))})
        book.execute(*commands)
    rebuilt: dict[str, dict[str, str]] = {"bids": {}, "asks": {}}
    for _, topics in book.entries("events"):
        for side, levels in rebuilt.items():
            levels |= dict(topics.get("level2", {side: []})[side])
    full = book.read("get_book", depth="full")
    for side, levels in rebuilt.items():
        standing = {price: quantity for price, quantity in levels.items() if quantity != "0"}
        assert standing == dict(full[side])
        assert standing


def test_level2_names_each_changed_level_once_and_unchanged_ones_not(book: Book) -> None:
    book.limit("alice", "buy", "5", "99")
    start = book.sequence()
    book.execute(
        place("alice", "buy", "1", "99"),
        place("alice", "buy", "2", "99"),
        place("alice", "buy", "2", "98"),
        {"method": "cancel_order", "order_id": "4"},
    )
    ((_, topics),) = book.entries("events", start)
    assert topics["level2"]["bids"] == [["99", "8"]]
    assert topics["level2"]["asks"] == []


def test_epoch_begins_when_another_server_is_reported(book: Book) -> None:
    first = book.ask("begin_epoch", run_id="a" * 40)
    again = book.ask("begin_epoch", run_id="a" * 40)
    assert again == first
    other = book.ask("begin_epoch", run_id="b" * 40)
    assert other["epoch"] > first["epoch"]
    assert other["sequence"] == first["sequence"] + 1
    ((_, begun),) = book.entries("events", first["sequence"])
    assert begun["epoch"] == {
        "channel": "epoch", "symbol": book.symbol, "type": "update",
        "sequence": other["sequence"], "epoch": other["epoch"],
        "last_order_id": "2000000000", "last_trade_id": "2000000000",
    }  # fmt: skip
    placed = book.limit("alice", "buy", "1", "99")
    assert (placed["sequence"], placed["order_id"]) == (other["sequence"] + 1, "2000000001")
    ((_, after),) = book.entries("events", other["sequence"])
    assert after["level2"]["epoch"] == other["epoch"]


def test_streams_are_bounded_and_the_book_outlives_its_events(new_book: NewBook) -> None:
    book = new_book()
    lengths = {"events_length_max": "20", "trades_length_max": "10"}
    book.define(**lengths)
    book.limit("alice", "sell", "10000", "100")
    for _ in range(400):
        book.limit("bob", "buy", "1", "100")
    events = book.client.xlen(book.stream_key("events"))
    trades = book.client.xlen(book.stream_key("trades"))
    assert 20 <= events <= 20 + STREAM_NODE_LENGTH
    assert 10 <= trades <= 10 + STREAM_NODE_LENGTH
    book.state_hash()


def test_redis_itself_refuses_a_sequence_out_of_order(book: Book) -> None:
    book.limit("alice", "sell", "1", "100")
    ids = [entry_id for entry_id, _ in book.client.xrange(book.stream_key("events"))]
    assert [int(i.split(b"-")[0]) for i in ids] == list(range(1, len(ids) + 1))
    info = book.client.xinfo_stream(book.stream_key("events"))
    assert info["last-generated-id"] == ids[-1]


def test_readers_wait_for_entries_by_sequence(book: Book) -> None:
    start = book.sequence()
    for _ in range(3):
        book.limit("alice", "sell", "1", "100")
    ((_, found),) = book.client.xread({book.stream_key("events"): f"{start}-0"})
    assert [entry_id for entry_id, _ in found] == [
        f"{sequence}-0".encode() for sequence in itertools.islice(itertools.count(start + 1), 3)
    ]


def test_fcall_ro_serves_queries_and_refuses_commands(book: Book) -> None:
    assert book.read("get_book")["symbol"] == book.symbol
    order = {"account": "a", "side": "buy", "order_type": "market", "quantity": "1"}
    before = book.contents()
    with pytest.raises(ResponseError, match="write"):
        book.client.execute_command("FCALL_RO", "place_order", 1, book.key, *words(order))
    assert book.contents() == before
