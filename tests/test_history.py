"""Looking back: closed orders and own trades, page by page, as far as the stream reaches."""

import json
from typing import Any

import pytest

from books import Book, Json, assert_rejected, overwrite, timeless

QUERIES = {"get_closed_orders": "orders", "get_own_trades": "trades"}


def pages(book: Book, function: str, **fields: str) -> list[Json]:
    found = [book.read(function, account="alice", **fields)]
    while found[-1]["more"]:
        before = str(found[-1]["before"])
        found.append(book.read(function, account="alice", **{**fields, "before": before}))
    return found


def rows(book: Book, function: str, **fields: str) -> list[Json]:
    return [row for page in pages(book, function, **fields) for row in page[QUERIES[function]]]


def test_order_is_closed_by_a_fill_a_cancel_or_its_time(book: Book) -> None:
    book.limit("alice", "sell", "5", "100", client_order_id="a/1")
    book.limit("bob", "buy", "2", "100")
    book.limit("bob", "buy", "3", "101")
    book.limit("alice", "buy", "4", "99", time_in_force="ioc")
    book.limit("alice", "buy", "6", "98", post_only="true")
    book.ask("cancel_order", order_id="5")
    filled, ioc, canceled = reversed(timeless(rows(book, "get_closed_orders")))
    assert filled == {
        "order_id": "1", "client_order_id": "a/1", "side": "sell", "quantity": "5", "price": "100",
        "remaining_quantity": "0", "status": "filled", "sequence": 4, "timestamp_ms": 0,
    }  # fmt: skip
    assert ioc == {
        "order_id": "4", "side": "buy", "order_type": "limit", "time_in_force": "ioc",
        "quantity": "4", "price": "99", "remaining_quantity": "4", "reason": "ioc",
        "status": "canceled", "sequence": 5, "timestamp_ms": 0,
    }  # fmt: skip
    assert canceled["post_only"] is True
    assert (canceled["reason"], canceled["sequence"]) == ("requested", 7)
    assert_rejected(book.read("get_order", order_id="1"), "UNKNOWN_ORDER")


def test_own_trades_tell_the_role_and_what_is_left(book: Book) -> None:
    book.limit("alice", "sell", "5", "100", client_order_id="a1")
    book.limit("bob", "buy", "2", "100")
    book.limit("alice", "buy", "1", "101")
    book.limit("bob", "buy", "2", "100")
    latest, *middle, first = timeless(rows(book, "get_own_trades"))
    assert first == {
        "order_id": "1", "client_order_id": "a1", "trade_id": "1", "price": "100", "quantity": "2",
        "role": "maker", "side": "sell", "remaining_quantity": "3", "status": "partially_filled",
        "sequence": 3, "timestamp_ms": 0,
    }  # fmt: skip
    # Both sides of a trade with oneself, the maker's report being the later one.
    assert [(row["trade_id"], row["role"]) for row in middle] == [("2", "maker"), ("2", "taker")]
    assert (latest["status"], latest["trade_id"]) == ("filled", "3")


def test_order_by_amount_is_closed_once(book: Book) -> None:
    book.limit("bob", "sell", "1", "100")
    book.limit("bob", "sell", "9", "101")
    market = {"account": "alice", "side": "buy", "order_type": "market"}
    book.ask("place_order", **market, quote_quantity="350")
    book.ask("place_order", **market, quote_quantity="5000")
    canceled, filled = rows(book, "get_closed_orders")
    assert (filled["status"], filled["quantity"], "price" in filled) == ("filled", "3", False)
    assert (canceled["status"], canceled["reason"], canceled["quantity"]) == (
        "canceled",
        "ioc",
        "7",
    )


@pytest.mark.parametrize("limit", ["1", "3", "1000"])
def test_pages_join_without_loss_or_repetition(book: Book, limit: str) -> None:
    for number in range(20):
        account = "alice" if number % 3 else "bob"
        book.limit(account, "sell", "1", "100")
        book.limit("carol" if number % 2 else "alice", "buy", "1", "100")
    for function in QUERIES:
        whole = rows(book, function, limit="1000")
        assert whole == rows(book, function, limit=limit)
        order = [row["sequence"] for row in whole]
        assert order == sorted(order, reverse=True)
        assert len(whole) > 15


def test_entry_is_never_split(book: Book) -> None:
    for _ in range(5):
        book.limit("alice", "buy", "1", "99")
    book.ask("cancel_all_orders", account="alice")
    first = book.read("get_closed_orders", account="alice", limit="2")
    assert [row["order_id"] for row in first["orders"]] == ["5", "4", "3", "2", "1"]
    assert first["more"] is True
    (last,) = pages(book, "get_closed_orders", before=str(first["before"]))
    assert (last["orders"], last["before"]) == ([], 1)


def test_page_may_be_empty_and_have_more_behind_it(book: Book, engine: str) -> None:
    """A call looks at 1,000 entries, whomever they are about."""
    if engine == "fakeredis":
        pytest.skip("fakeredis takes minutes for thousands of calls")
    book.limit("alice", "buy", "1", "99")
    book.ask("cancel_order", order_id="1")
    for _ in range(500):
        book.limit("bob", "buy", "1", "99")
        book.ask("cancel_all_orders", account="bob")
    found = pages(book, "get_closed_orders")
    assert [len(page["orders"]) for page in found] == [0, 1]
    assert found[0]["before"] == book.sequence() - 999


def test_bytes_that_one_call_reads_are_bounded(book: Book, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis takes minutes for thousands of orders")
    book.limit("alice", "buy", "1", "99")
    book.ask("cancel_order", order_id="1")
    order: dict[str, Any] = {"method": "place_order", "account": "bob", "side": "buy"}
    order |= {"order_type": "limit", "price": "9", "quantity": "1", "client_order_id": ""}
    for number in range(80):
        names = (f"{'n' * 50}{number}x{n}" for n in range(200))
        book.execute(*({**order, "client_order_id": name} for name in names))
    found = pages(book, "get_closed_orders")
    assert sum(len(page["orders"]) for page in found) == 1
    assert 3 <= len(found) <= 12


def test_history_reaches_as_far_as_the_stream(book: Book) -> None:
    for number in range(1, 4):
        book.limit("alice", "buy", "1", "99")
        book.ask("cancel_order", order_id=str(number))
    book.client.xtrim(book.stream_key("events"), minid="5-0", approximate=False)
    (page,) = pages(book, "get_closed_orders")
    assert [row["order_id"] for row in page["orders"]] == ["3", "2"]
    book.client.xtrim(book.stream_key("events"), maxlen=0, approximate=False)
    for function, name in QUERIES.items():
        page = book.read(function, account="alice")
        assert (page[name], page["more"]) == ([], False)


def test_reports_of_older_libraries_are_told_without_the_quantity(book: Book) -> None:
    """A stream keeps what was written before a filling trade told the whole order."""
    report = {
        "event": "trade", "order_id": "7", "trade_id": "1", "role": "maker", "side": "buy",
        "price": "100", "quantity": "1", "remaining_quantity": "0", "status": "filled",
        "timestamp_ms": 1_700_000_000_000,
    }  # fmt: skip
    message = {"channel": "orders", "account": "alice", "orders": [report]}
    text = json.dumps(message, separators=(",", ":"))
    book.client.xadd(book.stream_key("events"), {"orders:alice": text}, id="2-0")
    overwrite(book.client, book.key, sequence="2")
    (row,) = rows(book, "get_closed_orders")
    assert "quantity" not in row
    assert (row["order_id"], row["status"]) == ("7", "filled")


@pytest.mark.parametrize("function", QUERIES)
def test_forms_are_checked(book: Book, function: str) -> None:
    assert_rejected(book.read(function), "MISSING_FIELD")
    for text in ("0", "1001", "-1", "x"):
        assert_rejected(book.read(function, account="alice", limit=text), "INVALID_VALUE")
    for text in ("0", "-1", "1e3", str(2**53)):
        assert_rejected(book.read(function, account="alice", before=text), "INVALID_VALUE")
    assert book.read(function, account="alice", before=str(2**53 - 1))["before"] == 1
