"""Replacing orders and quotes: what is undone, what is remembered, what is refused for its form."""

import json
from typing import Any

import pytest

from books import Book, Json, assert_rejected, words

NEW = {"account": "alice", "side": "sell", "order_type": "limit", "price": "101", "quantity": "1"}


def replace(book: Book, order_id: str, **fields: str) -> Json:
    return book.ask("replace_order", **{**NEW, "cancel_order_id": order_id, **fields})


def quote(side: str, price: str, **fields: str) -> Json:
    return {"side": side, "price": price, "quantity": "1", **fields}


def mass_quote(book: Book, *quotes: Json, **fields: str) -> Json:
    account = {"account": "alice", **fields}
    return book.ask("mass_quote", **account, quotes=json.dumps(quotes))


# ---- what is undone


def test_refused_replacement_changes_not_a_byte(book: Book) -> None:
    book.limit("alice", "sell", "2", "100", client_order_id="a1")
    book.limit("bob", "sell", "2", "100")
    before = book.contents()
    assert_rejected(replace(book, "1", price="0"), "PRICE_NOT_POSITIVE")
    assert_rejected(replace(book, "1", price="99.995"), "PRICE_OFF_TICK")
    assert_rejected(replace(book, "3"), "UNKNOWN_ORDER")
    assert_rejected(replace(book, "1", account="bob"), "UNKNOWN_ORDER")
    assert_rejected(replace(book, "1", valid_until_ms="1"), "TOO_LATE")
    late = replace(book, "1", valid_until_ms="1", on_failure="continue")
    assert_rejected(late, "TOO_LATE")
    assert book.contents() == before


@pytest.mark.parametrize("amended", [False, True], ids=["stored", "requeued"])
@pytest.mark.parametrize("slice_shown", [None, "1"], ids=["whole", "iceberg"])
def test_order_put_back_is_met_in_its_old_place(
    book: Book, amended: bool, slice_shown: str | None
) -> None:
    """Whoever looks at the book between, in the same call, must find it as it was."""
    display = {"display_quantity": slice_shown} if slice_shown else {}
    book.limit("carol", "buy", "1", "90")
    book.limit("alice", "sell", "2", "100", **display)
    book.limit("bob", "sell", "2", "100")
    order: Json = {"method": "place_order", "account": "dave", "order_type": "limit"}
    refused: Json = {**NEW, "method": "replace_order", "cancel_order_id": "2"}
    # Post-only orders ask for the best price of both sides, and so move the start of the queues.
    crossing = {**refused, "price": "90", "post_only": True}
    amend = [{"method": "amend_order", "order_id": "2", "price": "99"}] if amended else []
    batch = [
        *amend,
        crossing,
        {**order, "side": "sell", "price": "100", "quantity": "1"},
        crossing,
        {**refused, "price": "x"},
        {**order, "side": "buy", "price": "100", "quantity": "5"},
    ]
    replies = book.execute(*batch)[len(amend) :]
    assert [reply["code"] for reply in (replies[0], replies[2], replies[3])] == [
        "POST_ONLY_WOULD_CROSS",
        "POST_ONLY_WOULD_CROSS",
        "INVALID_NUMBER",
    ]
    makers = [fill["maker_order_id"] for fill in replies[4]["fills"]]
    if slice_shown is None:
        assert makers == ["2", "3", "4"]
    else:
        # Slices met in turn are one fill, and a later one is told under an id of its own.
        assert makers == (["2", "3", "4"] if amended else ["2", "3", "4", "6"])
    assert book.read("get_instrument")["open_orders"] == 1
    book.state_hash()


def test_refused_replacement_alone_takes_no_sequence(book: Book) -> None:
    book.limit("alice", "sell", "2", "100")
    sequence = book.sequence()
    replies = book.execute(
        {**NEW, "method": "replace_order", "cancel_order_id": "1", "price": "0"},
        {**NEW, "method": "replace_order", "cancel_order_id": "1", "quantity": "0"},
    )
    assert [reply["status"] for reply in replies] == ["rejected"] * 2
    assert book.sequence() == sequence


def test_replaced_order_is_reported_before_the_new_one(book: Book) -> None:
    book.limit("alice", "sell", "2", "100")
    reply = replace(book, "1")
    ((_, topics),) = book.entries("events", book.sequence() - 1)
    canceled, accepted = topics["orders:alice"]["orders"]
    assert (canceled["event"], canceled["reason"]) == ("canceled", "replaced")
    assert (accepted["event"], accepted["order_id"]) == ("accepted", reply["placed"]["order_id"])
    assert reply["canceled"]["sequence"] == reply["placed"]["sequence"] == reply["sequence"]


# ---- what is remembered


def test_replacement_sent_twice_is_done_once(book: Book) -> None:
    book.limit("alice", "sell", "2", "100", client_order_id="a1")
    command = words({**NEW, "cancel_client_order_id": "a1", "client_order_id": "a2"})
    first = book.raw("replace_order", *command)
    sequence = book.sequence()
    assert book.raw("replace_order", *command) == first
    (again,) = book.raw(
        "execute",
        json.dumps(
            {
                "method": "replace_order",
                **NEW,
                "cancel_client_order_id": "a1",
                "client_order_id": "a2",
            }
        ),
    )
    assert again == first
    assert book.sequence() == sequence
    other = book.ask(
        "replace_order", **{**NEW, "price": "102"}, cancel_order_id="2", client_order_id="a2"
    )
    # It names the order that goes: a new replacement under the same name.
    assert other["placed"]["client_order_id"] == "a2"
    assert_rejected(book.call("replace_order", *command), "UNKNOWN_ORDER")


def test_replacement_in_part_is_remembered_only_where_an_order_was_placed(book: Book) -> None:
    book.limit("alice", "sell", "2", "100")
    part = replace(book, "1", price="0", client_order_id="r", on_failure="continue")
    assert (part["canceled"]["status"], part["placed"]["code"]) == (
        "canceled",
        "PRICE_NOT_POSITIVE",
    )
    assert part["placed"]["client_order_id"] == "r"
    placed = replace(book, "1", client_order_id="r", on_failure="continue")
    assert (placed["canceled"]["code"], placed["placed"]["status"]) == ("UNKNOWN_ORDER", "open")
    assert replace(book, "1", client_order_id="r", on_failure="continue") == placed


def test_names_of_quotes_are_free_again_with_each_mass_quote(book: Book) -> None:
    for price in ("99", "98", "99"):
        reply = mass_quote(book, quote("buy", price, client_order_id="bid"))
        assert reply["placed"][0]["status"] == "open"
    taken = book.limit("alice", "sell", "1", "101", client_order_id="bid")
    assert_rejected(taken, "DUPLICATE_CLIENT_ORDER_ID")
    assert mass_quote(book)["canceled_order_ids"] == ["3"]
    assert book.limit("alice", "sell", "1", "101", client_order_id="bid")["status"] == "open"
    refused = mass_quote(book, quote("buy", "99", client_order_id="bid"))["placed"][0]
    assert_rejected(refused, "DUPLICATE_CLIENT_ORDER_ID")


# ---- quotes


def test_quotes_of_one_batch_replace_each_other(book: Book) -> None:
    command = {"method": "mass_quote", "account": "alice"}
    replies = book.execute(
        {**command, "quotes": json.dumps([quote("buy", "99"), quote("buy", "98")])},
        {**command, "quotes": json.dumps([quote("buy", "97")])},
        {**command, "account": "bob", "quotes": json.dumps([quote("buy", "96")])},
        {**command, "quotes": json.dumps([quote("buy", "95")])},
    )
    assert [reply["canceled_order_ids"] for reply in replies] == [[], ["1", "2"], [], ["3"]]
    assert book.read("get_book")["bids"] == [["96", "1"], ["95", "1"]]
    order = book.read("get_order", order_id="5")
    assert order["quote"] is True
    book.state_hash()


def test_plain_instrument_with_quotes_stays_plain(book: Book) -> None:
    """What few use costs nobody else."""
    mass_quote(book, quote("buy", "99"), post_only="true")
    assert book.client.hget(book.key, "extended") is None


def test_a_hundred_quotes_are_taken_and_not_one_more(book: Book) -> None:
    quotes = [quote("buy", str(number)) for number in range(1, 102)]
    assert_rejected(mass_quote(book, *quotes), "INVALID_VALUE")
    assert len(mass_quote(book, *quotes[:100])["placed"]) == 100
    assert len(mass_quote(book)["canceled_order_ids"]) == 100
    assert not book.client.exists(f"{book.key}:quotes:alice")


def test_batch_places_no_more_than_2000_quotes(book: Book, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis takes minutes for thousands of orders")
    quotes = json.dumps([quote("buy", "99")] * 100)
    commands = [
        {"method": "mass_quote", "account": f"maker{n}", "quotes": quotes} for n in range(21)
    ]
    replies = book.execute(*commands)
    assert [len(reply.get("placed", ())) for reply in replies] == [100] * 20 + [0]
    assert_rejected(replies[20], "BATCH_TOO_LARGE")
    assert book.read("get_book")["bids"] == [["99", "2000"]]
    book.state_hash()


# ---- forms


NO_QUOTES = (
    "", " ", "null", "{}", "1", '"[]"', "[", "[]]", "[1]", "[null]", "[[]]", "[{}]", "[]\0", "nan",
    '[{"side":"buy","price":"1"}]', '[{"side":"buy","price":"1","quantity":1}]',
    '[{"side":"both","price":"1","quantity":"1"}]', '[{"side":true,"price":"1","quantity":"1"}]',
    '[{"side":"buy","price":"1","quantity":"1","order_type":"limit"}]',
    '[{"side":"buy","price":"1","quantity":"1","client_order_id":"a b"}]',
    '[{"side":"buy","price":"1","price":"2","quantity":"1"}]',
    '[{"side":"buy","price":"1","quantity":"1"},]', "[" * 2000 + "]" * 2000, " " * 65536 + "[]",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_QUOTES, ids=range(len(NO_QUOTES)))
def test_text_that_is_no_list_of_quotes_is_refused_whole(book: Book, text: str) -> None:
    mass_quote(book, quote("buy", "99"))
    before = book.contents()
    assert_rejected(book.ask("mass_quote", account="alice", quotes=text), "INVALID_VALUE")
    (reply,) = book.execute({"method": "mass_quote", "account": "alice", "quotes": text})
    assert_rejected(reply, ("INVALID_VALUE", "MALFORMED_COMMAND"))
    assert book.contents() == before


def test_fields_of_a_replacement_that_do_not_go_together_are_refused(book: Book) -> None:
    book.limit("alice", "sell", "2", "100", client_order_id="a1")
    before = book.contents()
    cases: tuple[tuple[dict[str, str], str], ...] = (
        ({}, "MISSING_FIELD"),
        ({"cancel_order_id": "1", "cancel_client_order_id": "a1"}, "FIELD_NOT_ALLOWED"),
        ({"cancel_order_id": "1", "validate_only": "true"}, "UNKNOWN_FIELD"),
        ({"cancel_order_id": "1", "order_id": "1"}, "UNKNOWN_FIELD"),
        ({"cancel_order_id": "01"}, "INVALID_VALUE"),
        ({"cancel_client_order_id": "a b"}, "INVALID_VALUE"),
        ({"cancel_order_id": "1", "on_failure": "retry"}, "INVALID_VALUE"),
        (
            {"cancel_order_id": "1", "time_in_force": "ioc", "post_only": "true"},
            "FIELD_NOT_ALLOWED",
        ),
        ({"cancel_order_id": "1", "expire_time_ms": "1"}, "FIELD_NOT_ALLOWED"),
    )
    for fields, code in cases:
        for on_failure in ({}, {"on_failure": "continue"}):
            assert_rejected(book.ask("replace_order", **{**NEW, **on_failure, **fields}), code)
    for missing in ("account", "side", "order_type", "price", "quantity"):
        fields = {name: value for name, value in NEW.items() if name != missing}
        reply = book.ask("replace_order", **fields, cancel_order_id="1")
        assert_rejected(reply, "MISSING_FIELD")
    assert book.contents() == before


def test_every_rare_field_of_an_order_goes_with_a_replacement(book: Book) -> None:
    book.limit("alice", "sell", "2", "100")
    book.ask("set_stp_group", account="alice", stp_group="g")
    later = str(4_000_000_000_000)
    rare = {
        "time_in_force": "gtd", "expire_time_ms": later, "display_quantity": "1", "quantity": "3",
        "self_trade_prevention": "cancel_both", "stp_group": "g", "valid_until_ms": later,
    }  # fmt: skip
    placed: dict[str, Any] = replace(book, "1", **rare)["placed"]
    assert placed["display_quantity"] == "1"
    assert placed["expire_time_ms"] == int(later)
    assert (placed["stp_group"], placed["self_trade_prevention"]) == ("g", "cancel_both")
    book.state_hash()
