"""The limit on everything: a command that cannot be done whole is refused whole."""

import json
import re
from typing import Any

import pytest

import reference
from books import Book, Json, assert_rejected
from conftest import ROOT

BATCH = 256
CANCELED_MAX = 1000


def documented_number(pattern: str) -> int:
    """A limit as docs/protocol.md tells it; the pattern has # in its place."""
    protocol = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    found = re.search(pattern.replace("#", r"([\d,]+)"), protocol)
    assert found is not None, pattern
    return int(found[1].replace(",", ""))


def fills_max() -> int:
    """How many makers one call may meet: fill, or pass by self-trade prevention."""
    return documented_number("would meet more than # makers")


def accounts_max() -> int:
    """How many accounts one call may report to, the taker's included."""
    return documented_number("would have more than # accounts")


def place(account: str, side: str, quantity: int, price: str, **fields: Any) -> Json:
    return {
        "method": "place_order", "account": account, "side": side, "order_type": "limit",
        "quantity": str(quantity), "price": price, **fields,
    }  # fmt: skip


def rest(book: Book, count: int, **fields: Any) -> None:
    """So many sell orders of one at 100."""
    for start in range(0, count, BATCH):
        order = {**place("alice", "sell", 1, "100"), **fields}
        orders = [order] * min(BATCH, count - start)
        replies = book.execute(*orders)
        assert {reply["status"] for reply in replies} == {"open"}


@pytest.fixture
def fast_book(book: Book, engine: str) -> Book:
    if engine == "fakeredis":
        pytest.skip("fakeredis takes minutes for thousands of orders")
    return book


def test_reference_knows_the_documented_limits() -> None:
    assert fills_max() == reference.FILLS_MAX
    assert accounts_max() == reference.MAKER_ACCOUNTS_MAX


def test_taker_of_more_makers_than_a_call_may_fill_goes_on_in_the_next(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, limit + 1)
    reply = book.limit("bob", "buy", str(limit + 3), "100")
    assert (reply["status"], reply["remaining_quantity"]) == ("partially_filled", "3")
    assert len(reply["fills"]) == limit
    # Between the two calls it is open, and not in the book.
    (paused,) = book.read("get_open_orders", account="bob")["orders"]
    assert (paused["status"], paused["remaining_quantity"]) == ("partially_filled", "3")
    shown = book.read("get_book")
    assert (shown["bids"], shown["asks"]) == ([], [["100", "1"]])
    book.assert_is_what_its_stream_tells()
    # Whoever comes next meets what is left of it.
    reply = book.limit("carol", "sell", "1", "100")
    assert [fill["price"] for fill in reply["fills"]] == ["100"]
    assert book.read("get_book")["bids"] == [["100", "1"]]
    book.assert_is_what_its_stream_tells()


def test_market_taker_of_too_many_makers_goes_on_and_keeps_its_protection(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, limit + 1)
    book.limit("erin", "sell", "5", "101")
    book.limit("erin", "sell", "5", "101.5")
    terms = {"side": "buy", "quantity": str(limit + 8), "protection": "1"}
    reply = book.ask("place_order", account="bob", order_type="market", **terms)
    assert (reply["status"], reply["remaining_quantity"]) == ("partially_filled", "8")
    book.assert_is_what_its_stream_tells()
    assert book.ask("tick")["pending"] is False
    # 1 percent of 100, where it began; of 101, where it goes on, 101.5 would be within it.
    (closed,) = book.read("get_closed_orders", account="bob")["orders"]
    assert (closed["reason"], closed["remaining_quantity"]) == ("protection", "2")
    book.assert_is_what_its_stream_tells()


def test_order_amended_to_meet_too_many_makers_goes_on(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, limit + 2)
    own = book.limit("bob", "buy", str(limit + 5), "90")["order_id"]
    reply = book.ask("amend_order", order_id=own, price="100")
    assert (reply["status"], reply["remaining_quantity"]) == ("partially_filled", "5")
    assert book.ask("tick")["pending"] is False
    assert book.read("get_book")["bids"] == [["100", "3"]]
    book.assert_is_what_its_stream_tells()


def test_the_rest_of_a_paused_taker_can_be_canceled(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, 2 * limit - 1)
    replies = book.execute(
        place("bob", "buy", 2 * limit, "100", client_order_id="b1"),
        {"method": "amend_order", "account": "bob", "client_order_id": "b1", "quantity": "1"},
        {"method": "cancel_order", "account": "bob", "client_order_id": "b1"},
    )
    assert_rejected(replies[1], "TRIGGERS_PENDING")
    assert (replies[2]["status"], replies[2]["remaining_quantity"]) == ("canceled", str(limit))
    assert book.ask("tick")["pending"] is False
    assert book.read("get_book")["asks"] == [["100", str(limit - 1)]]
    book.assert_is_what_its_stream_tells()


def test_taker_that_is_decided_as_a_whole_is_refused_beyond_the_limit(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, limit + 1)
    state_hash = book.state_hash()
    whole = book.limit("bob", "buy", str(limit + 1), "100", time_in_force="fok")
    money = {"order_type": "market", "quote_quantity": str(100 * (limit + 1))}
    by_quote = book.ask("place_order", account="bob", side="buy", **money)
    for refused in (whole, by_quote):
        assert_rejected(refused, "TOO_MANY_FILLS")
    assert book.state_hash() == state_hash
    reply = book.limit("bob", "buy", str(limit), "100", time_in_force="fok")
    assert len(reply["fills"]) == limit
    book.state_hash()


def test_taker_of_more_accounts_than_one_call_has_room_for_goes_on(fast_book: Book) -> None:
    book, limit = fast_book, accounts_max()
    for start in range(0, limit + 1, BATCH):
        numbers = range(start, min(start + BATCH, limit + 1))
        book.execute(*[place(f"maker-{number}", "sell", 1, "100") for number in numbers])
    # The taker is an account to report to as well; who comes later in the batch is still told.
    later = [place(f"late-{number}", "buy", 1, "1") for number in range(BATCH - 1)]
    replies = book.execute(place("bob", "buy", limit - 1, "100"), *later)
    assert len(replies[0]["fills"]) == limit - 1
    assert {reply["status"] for reply in replies[1:]} == {"open"}
    for start in range(0, limit, BATCH):
        numbers = range(start, min(start + BATCH, limit))
        book.execute(*[place(f"maker-{number}", "sell", 1, "100") for number in numbers])
    reply = book.limit("bob", "buy", str(limit + 2), "100")
    assert (reply["status"], reply["remaining_quantity"]) == ("partially_filled", "3")
    assert book.ask("tick")["pending"] is False
    assert book.read("get_book")["asks"] == []
    book.assert_is_what_its_stream_tells()


def test_taker_whose_account_is_reported_to_already_counts_once(fast_book: Book) -> None:
    book, limit = fast_book, accounts_max()
    for start in range(0, limit - 1, BATCH):
        numbers = range(start, min(start + BATCH, limit - 1))
        book.execute(*[place(f"maker-{number}", "sell", 1, "100") for number in numbers])
    whole = place("bob", "buy", limit - 1, "100", time_in_force="fok")
    replies = book.execute(place("bob", "buy", 1, "1"), whole)
    assert [reply["status"] for reply in replies] == ["open", "filled"]


def test_trailing_stops_of_too_many_accounts_follow_in_later_calls(fast_book: Book) -> None:
    book, makers_count, stops_count = fast_book, accounts_max() - 200, 1000
    book.limit("zoe", "sell", "1", "100")
    book.limit("yann", "buy", "1", "100")
    trailing = {"method": "place_order", "order_type": "trailing_stop", "trailing_offset": "50"}
    stops = [
        {**trailing, "account": f"trailer-{n}", "side": "sell", "quantity": "1"}
        for n in range(stops_count)
    ]
    makers = [place(f"maker-{n}", "sell", 1, "101") for n in range(makers_count)]
    for orders in (stops, makers):
        for start in range(0, len(orders), BATCH):
            book.execute(*orders[start : start + BATCH])
    # A stop that waits for this price comes after all of them, and meets nobody.
    book.ask(
        "place_order", account="stan", side="buy", order_type="stop", stop_price="101", quantity="1"
    )
    assert book.limit("bob", "buy", str(makers_count), "101")["status"] == "filled"
    assert book.ask("tick")["pending"] is False
    references = {
        order["reference_price"]
        for n in (0, 500, stops_count - 1)
        for order in book.read("get_open_orders", account=f"trailer-{n}")["orders"]
    }
    assert references == {"101"}
    assert book.read("get_open_orders", account="stan")["orders"] == []
    book.state_hash()


def test_fills_of_a_batch_count_together(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, limit + 2)
    replies = book.execute(
        place("bob", "buy", limit - 1, "100"),
        place("bob", "buy", 2, "100"),
        place("bob", "buy", 1, "100"),
        place("bob", "buy", 1, "100"),
    )
    codes = [reply.get("code", reply["status"]) for reply in replies]
    assert codes == ["filled", "partially_filled", "TRIGGERS_PENDING", "TRIGGERS_PENDING"]
    book.assert_is_what_its_stream_tells()
    assert book.ask("tick")["pending"] is False
    assert book.read("get_book")["asks"] == [["100", "1"]]
    book.state_hash()


def stop(book: Book, account: str, quantity: int, **fields: str) -> Json:
    """A buy stop that a trade at 100 triggers."""
    terms = {"account": account, "side": "buy", "quantity": str(quantity), "order_type": "stop"}
    return book.ask("place_order", **terms, **{"stop_price": "100", **fields})


def triggering_trade(book: Book) -> None:
    book.limit("yann", "buy", "1", "100")


def test_a_stop_too_large_for_one_call_goes_on_in_the_next(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, limit + 3)
    book.limit("erin", "sell", "5", "102")
    stop(book, "bob", limit + 4)
    stop(book, "carol", 2)
    # The call that triggers it makes as many trades as it may.
    triggering_trade(book)
    (paused,) = book.read("get_open_orders", account="bob")["orders"]
    assert (paused["triggered"], paused["remaining_quantity"]) == (True, "5")
    book.assert_is_what_its_stream_tells()
    second = book.ask("tick")
    assert (second["triggered_count"], second["pending"]) == (1, False)
    bob = book.read("get_own_trades", account="bob", limit="1000")["trades"]
    carol = book.read("get_own_trades", account="carol")["trades"]
    assert (bob[0]["price"], bob[0]["quantity"]) == ("102", "2")
    assert [(trade["price"], trade["quantity"]) for trade in carol] == [("102", "2")]
    book.assert_is_what_its_stream_tells()


def test_a_trailing_stop_in_parts_no_longer_trails(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    book.limit("zoe", "sell", "1", "95")
    book.limit("yann", "buy", "1", "95")
    rest(book, limit + 3)
    terms = {"side": "buy", "quantity": str(limit + 1)}
    trailing = {"order_type": "trailing_stop", "trailing_offset": "5"}
    book.ask("place_order", account="bob", **terms, **trailing)
    triggering_trade(book)
    (paused,) = book.read("get_open_orders", account="bob")["orders"]
    assert paused["triggered"] is True
    assert "reference_price" not in paused
    book.assert_is_what_its_stream_tells()
    assert book.ask("tick")["pending"] is False
    assert book.read("get_book")["asks"] == [["100", "1"]]
    book.assert_is_what_its_stream_tells()


def test_a_trailing_stop_that_follows_and_is_paused_in_one_call_is_told_once(
    fast_book: Book,
) -> None:
    book, limit = fast_book, fills_max()
    book.limit("zoe", "buy", "1", "100")
    book.limit("yann", "sell", "1", "100")
    terms = {"side": "sell", "quantity": str(limit + 1)}
    trailing = {"order_type": "trailing_stop", "trailing_offset": "5"}
    book.ask("place_order", account="bob", **terms, **trailing)
    for start in range(0, limit + 3, BATCH):
        buys = [place("alice", "buy", 1, "90")] * min(BATCH, limit + 3 - start)
        book.execute(*buys)
    book.limit("zoe", "sell", "1", "110")
    # Up to 110, which moves its stop to 105, then down to 90, which triggers it.
    book.execute(place("yann", "buy", 1, "110"), place("yann", "sell", 1, "90"))
    (paused,) = book.read("get_open_orders", account="bob")["orders"]
    assert paused["triggered"] is True
    book.assert_is_what_its_stream_tells()
    assert book.ask("tick")["pending"] is False
    book.assert_is_what_its_stream_tells()


def test_the_rest_of_a_stop_in_parts_can_be_canceled(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, 2 * limit + 5)
    ids = [stop(book, account, 2 * limit + 2)["order_id"] for account in ("bob", "carol")]
    triggering_trade(book)
    # Canceling is a call, too: it goes on with the order before it cancels what is left of it.
    canceled = book.ask("cancel_order", order_id=ids[0])
    assert canceled["remaining_quantity"] == "3"
    assert book.ask("tick")["pending"] is False
    carol = book.read("get_closed_orders", account="carol")["orders"]
    assert carol[0]["remaining_quantity"] == str(2 * limit + 2 - 5)
    book.assert_is_what_its_stream_tells()


def test_a_stop_for_more_accounts_than_one_call_has_room_for_goes_on(fast_book: Book) -> None:
    book, limit = fast_book, accounts_max()
    for start in range(0, limit + 5, BATCH):
        numbers = range(start, min(start + BATCH, limit + 5))
        book.execute(*[place(f"maker-{number}", "sell", 1, "100") for number in numbers])
    stop(book, "bob", limit + 4)
    triggering_trade(book)
    book.assert_is_what_its_stream_tells()
    assert book.ask("tick")["pending"] is False
    assert book.read("get_book")["asks"] == []
    book.assert_is_what_its_stream_tells()


def test_a_stop_that_must_be_filled_whole_and_cannot_ends_nobody(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    rest(book, limit + 3)
    pair = [
        {"side": "buy", "order_type": "limit", "quantity": str(limit + 2), "price": "90"},
        {
            "side": "buy",
            "order_type": "stop",
            "quantity": str(limit + 2),
            "stop_price": "100",
            "time_in_force": "fok",
        },
    ]
    orders = json.dumps(pair)
    book.ask("place_order_list", account="bob", list_type="oco", orders=orders)
    triggering_trade(book)
    assert book.ask("tick")["pending"] is False
    (left,) = book.read("get_open_orders", account="bob")["orders"]
    assert left["price"] == "90"
    (closed,) = book.read("get_closed_orders", account="bob")["orders"]
    assert closed["reason"] == "too_large"
    book.state_hash()


def test_all_orders_are_canceled_a_thousand_at_a_time(fast_book: Book) -> None:
    book = fast_book
    rest(book, CANCELED_MAX + 5)
    reply = book.ask("cancel_all_orders", account="alice")
    assert (reply["canceled_count"], reply["remaining_count"]) == (CANCELED_MAX, 5)
    assert reply["canceled_order_ids"] == [str(n) for n in range(1, CANCELED_MAX + 1)]
    rest(book, 1, account="bob")
    command = {"method": "cancel_all_orders"}
    both = [{**command, "account": account} for account in ("alice", "bob")]
    assert [reply["canceled_count"] for reply in book.execute(*both)] == [5, 1]
    assert book.read("get_instrument")["open_orders"] == 0
    book.state_hash()


def test_batch_cancels_no_more_than_a_single_call(fast_book: Book) -> None:
    book = fast_book
    rest(book, CANCELED_MAX - 1)
    rest(book, 3, account="bob")
    command = {"method": "cancel_all_orders"}
    replies = book.execute({**command, "account": "alice"}, {**command, "account": "bob"})
    found = [(reply["canceled_count"], reply["remaining_count"]) for reply in replies]
    assert found == [(CANCELED_MAX - 1, 0), (1, 2)]
    book.state_hash()


def test_full_depth_shows_ten_thousand_levels_a_side(fast_book: Book) -> None:
    book, levels = fast_book, 10_050
    for start in range(0, levels, BATCH):
        ticks = range(start + 1, min(start + BATCH, levels) + 1)
        book.execute(*[place("bob", "buy", 1, f"{t // 100}.{t % 100:02}") for t in ticks])
    found = book.read("get_book", depth="full")
    assert len(found["bids"]) == 10_000
    assert found["bids"][0] == ["100.5", "1"]
    assert found["bids"][-1] == ["0.51", "1"]


def test_level_total_stays_exact(book: Book) -> None:
    largest = 2**53 - 1
    assert book.limit("alice", "buy", str(largest), "1")["status"] == "open"
    assert_rejected(book.limit("alice", "buy", "1", "1"), "LEVEL_QUANTITY_TOO_LARGE")
    # An order that queues anew at its own price does not add to itself.
    assert book.ask("amend_order", order_id="1", quantity=str(largest))["status"] == "open"
    # What trades at once does not come to rest there.
    book.limit("bob", "sell", "1", "2")
    assert book.limit("alice", "buy", "1", "2")["status"] == "filled"
    assert book.limit("alice", "buy", "1", "3", time_in_force="ioc")["status"] == "canceled"
    assert book.read("get_book")["bids"] == [["1", str(largest)]]
    book.state_hash()


def test_an_auction_too_large_for_one_call_goes_on_at_its_price(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    book.ask("define_instrument", status="auction")
    rest(book, 2 * limit + 5)
    book.limit("bob", "buy", str(2 * limit), "101")
    book.limit("carol", "buy", "9", "100", client_order_id="late")
    indicated = book.read("get_auction")
    assert indicated["indicative_price"] == "100"
    assert indicated["indicative_quantity"] == str(2 * limit + 5)
    assert book.ask("define_instrument", status="trading")["status"] == "auction"
    # The next call, whatever it is, goes on with the uncross before it does its own.
    assert_rejected(book.limit("dave", "buy", "1", "1"), "UNCROSSING")
    assert book.limit("dave", "buy", "1", "1")["status"] == "open"
    assert book.read("get_instrument")["status"] == "trading"
    trades = book.read("get_trades", limit="1000")["trades"]
    assert {trade["price"] for trade in trades} == {"100"}
    assert trades[-1]["trade_id"] == str(2 * limit + 5)
    late = book.read("get_order", account="carol", client_order_id="late")
    assert late["remaining_quantity"] == "4"
    book.state_hash()


def test_cancels_between_two_parts_of_an_uncross_leave_no_crossed_book(fast_book: Book) -> None:
    book, limit = fast_book, fills_max()
    book.ask("define_instrument", status="auction")
    rest(book, limit + 5)
    book.limit("erin", "sell", "3", "102")
    book.limit("bob", "buy", str(limit), "101")
    book.limit("carol", "buy", "9", "103", client_order_id="late")
    book.ask("define_instrument", status="trading")
    assert book.read("get_instrument")["status"] == "auction"
    # Canceling is a call like any other: it goes on with the uncross before anything else.
    book.ask("cancel_all_orders", account="alice")
    assert book.read("get_instrument")["status"] == "trading"
    bids, asks = (book.read("get_book")[side] for side in ("bids", "asks"))
    assert not (bids and asks) or float(bids[0][0]) < float(asks[0][0])
    book.state_hash()
