"""Bad input by FCALL: a refusal with a documented code each time, and no byte of the book changed.

Whatever is sent, the reply is valid UTF-8 and one JSON object, the state hash is what it was, and
no stream has a new entry. Nobody has to guess what a refused command did.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from books import Book, Json, assert_rejected, decode, words
from conftest import NewBook, documented_codes

pytestmark = pytest.mark.exhaustive

ORDER = {
    "account": "alice", "side": "buy", "order_type": "limit", "quantity": "3", "price": "100.25",
}  # fmt: skip

# Text that is no number in this protocol, whatever else reads it as one.
NO_NUMBERS = (
    "", " ", "1e5", "1E5", "0x10", "NaN", "nan", "inf", "Infinity", "-1", "-0", "+1", "1.", ".5",
    ".", "1..2", "1.2.3", " 1", "1 ", "\t1", "1\n", "01", "00", "00.5", "1,5", "1_000", "١", "１",
    "½", "1\x00", "\x001", "abc", "1f", "1" * 41, "0." + "0" * 40, "9" * 40, "9007199254740992",
    "9007199254740993", "90071992547409920000", "x" * 100_000,
)  # fmt: skip

# Text that is no account, client_order_id or enumeration value.
NO_NAMES = (
    "", " ", "a b", "a\n", "a\x00b", "ä", "a" * 65, 'a"b', "a\\b", "a{b}", "*", "x" * 100_000,
)  # fmt: skip
NO_ORDER_IDS = ("", "0", "-1", "01", "1.0", "1e3", "0x1", " 1", "x", "9" * 17, str(2**53), "١")

INVALID_UTF8 = (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\x80")


@pytest.fixture
def busy(book: Book) -> Iterator[Book]:
    """A book with some history; in the end it must be exactly as it was."""
    book.define(max_quantity="1000000")
    book.limit("alice", "sell", "5", "101", client_order_id="a1")
    book.limit("bob", "buy", "2", "101", client_order_id="b1")
    book.limit("bob", "buy", "2", "99")
    state_hash, contents = book.state_hash(), book.contents()
    yield book
    assert book.state_hash() == state_hash
    assert book.contents() == contents


def place(book: Book, **changes: Any) -> Json:
    fields = {**ORDER, **changes}
    return book.ask("place_order", **fields)


def place_in_batch(book: Book, **changes: Any) -> Json:
    (reply,) = book.execute({"method": "place_order", **ORDER, **changes})
    return reply


# Text that is no timeout of a timer: 0, or from a second to a day.
NO_TIMEOUTS = (
    "", " ", "-1", "-0", "+1000", "00", "1", "999", "0999", "01000", "1000.0", "1e3", "0x3e8",
    "86400001", "9" * 30, " 1000", "1000 ", "x", "١٠٠٠",
)  # fmt: skip


@pytest.mark.parametrize("field", ["price", "quantity"])
def test_text_that_is_no_number_is_refused(busy: Book, field: str) -> None:
    for text in NO_NUMBERS:
        assert_rejected(place(busy, **{field: text}), "INVALID_NUMBER")
        assert_rejected(place_in_batch(busy, **{field: text}), "INVALID_NUMBER")
        amend = {"order_id": "1", field: text}
        assert_rejected(busy.ask("amend_order", **amend), "INVALID_NUMBER")
    for text in NO_NUMBERS:
        amend = {"order_id": "1", "remaining_quantity": text}
        assert_rejected(busy.ask("amend_order", **amend), "INVALID_NUMBER")


STOP_LIMIT = {**ORDER, "order_type": "stop_limit"}
BY_AMOUNT = {"account": "alice", "side": "buy", "order_type": "market"}
TRAILING = {**BY_AMOUNT, "order_type": "trailing_stop", "quantity": "3"}


@pytest.mark.parametrize(
    ("field", "order"),
    [
        ("display_quantity", ORDER),
        ("stop_price", STOP_LIMIT),
        ("quote_quantity", BY_AMOUNT),
        ("trailing_offset", TRAILING),
    ],
)
def test_text_that_is_no_number_is_refused_in_rare_fields_too(
    busy: Book, field: str, order: dict[str, str]
) -> None:
    for text in NO_NUMBERS:
        if field == "quote_quantity" and text.isdecimal() and len(text) <= 40:
            continue  # An amount of money may be of any size.
        fields = {**order, field: text}
        assert_rejected(busy.ask("place_order", **fields), "INVALID_NUMBER")
        (reply,) = busy.execute({"method": "place_order", **fields})
        assert_rejected(reply, "INVALID_NUMBER")


# Text that is no percentage above 0 and up to 100.
NO_PERCENTAGES = (
    "", " ", "-1", "+1", "100.0001", "101", "1.00001", "5%", "%", "1e1", "01", ".5", "5.", "x",
    "9" * 30, "١",
)  # fmt: skip


def test_text_that_is_no_percentage_is_refused(busy: Book) -> None:
    market = {**BY_AMOUNT, "quantity": "3"}
    for text in (*NO_PERCENTAGES, "0", "0.0"):
        reply = busy.ask("place_order", **market, protection=text)
        assert_rejected(reply, "INVALID_VALUE")
    for text in NO_PERCENTAGES:
        for field in ("protection", "price_band"):
            reply = busy.ask("define_instrument", **{field: text})
            assert_rejected(reply, "INVALID_VALUE")
    for text in ("", "0%", "50.0001%", "1.00001%", "-1%", "%", "1e1%", "x%"):
        reply = busy.ask("place_order", **TRAILING, trailing_offset=text)
        assert_rejected(reply, ("INVALID_VALUE", "INVALID_NUMBER"))


def test_rules_of_an_instrument_that_make_no_sense_are_refused(busy: Book) -> None:
    for text in ("", "-1", "1.5", "01", "10000001", "x"):
        reply = busy.ask("define_instrument", open_orders_max=text)
        assert_rejected(reply, "INVALID_VALUE")
    for text in ("", "-1", "0", "1.5", "01", "10001", "x"):
        reply = busy.ask("define_instrument", iceberg_parts_max=text)
        assert_rejected(reply, "INVALID_VALUE")
    for text in ("", "-1", "1e3", "x"):
        reply = busy.ask("define_instrument", min_notional=text)
        assert_rejected(reply, "INVALID_NUMBER")
    for text in (*NO_NAMES, "cancel", "None"):
        reply = busy.ask("define_instrument", self_trade_prevention=text)
        assert_rejected(reply, "INVALID_VALUE")


def test_text_that_is_no_time_is_refused(busy: Book) -> None:
    for text in NO_ORDER_IDS:
        for changes in ({"valid_until_ms": text}, {"time_in_force": "gtd", "expire_time_ms": text}):
            assert_rejected(place(busy, **changes), "INVALID_VALUE")
            assert_rejected(place_in_batch(busy, **changes), "INVALID_VALUE")
        late = {"account": "alice", "valid_until_ms": text}
        for function, fields in (
            ("cancel_order", {"order_id": "1"}),
            ("amend_order", {"order_id": "1", "price": "102"}),
            ("cancel_all_orders", {}),
        ):
            assert_rejected(busy.ask(function, **late, **fields), "INVALID_VALUE")


def test_text_that_is_no_timeout_is_refused(busy: Book) -> None:
    for text in NO_TIMEOUTS:
        fields = {"account": "alice", "timeout_ms": text}
        assert_rejected(busy.ask("cancel_all_after", **fields), "INVALID_VALUE")
        (reply,) = busy.execute({"method": "cancel_all_after", **fields})
        assert_rejected(reply, "INVALID_VALUE")
    number = {"method": "cancel_all_after", "account": "alice", "timeout_ms": 1000}
    assert_rejected(busy.execute(number)[0], "WRONG_TYPE")


def test_text_that_is_no_session_is_refused(busy: Book) -> None:
    for text in (*NO_NAMES, "a:b"):
        assert_rejected(place(busy, session=text), "INVALID_VALUE")
        assert_rejected(place_in_batch(busy, session=text), "INVALID_VALUE")
        for function in ("cancel_all_after", "cancel_all_orders"):
            timeout = {"timeout_ms": "1000"} if function == "cancel_all_after" else {}
            reply = busy.ask(function, account="alice", session=text, **timeout)
            assert_rejected(reply, "INVALID_VALUE")


def test_session_without_a_timer_is_refused(busy: Book) -> None:
    assert_rejected(place(busy, session="s1"), "SESSION_NOT_ARMED")
    assert_rejected(place_in_batch(busy, session="s1", validate_only="true"), "SESSION_NOT_ARMED")


def test_numbers_off_the_grid_are_refused(busy: Book) -> None:
    for price in ("100.255", "100.001", "0.001", "0.0000000000000000000000000000000000001"):
        assert_rejected(place(busy, price=price), "PRICE_OFF_TICK")
    for quantity in ("1.5", "0.1", "1.0000000000000001"):
        assert_rejected(place(busy, quantity=quantity), "QUANTITY_OFF_LOT")
    assert_rejected(busy.ask("amend_order", order_id="1", price="100.255"), "PRICE_OFF_TICK")
    assert_rejected(busy.ask("amend_order", order_id="1", quantity="4.5"), "QUANTITY_OFF_LOT")


def test_numbers_out_of_bounds_are_refused(busy: Book) -> None:
    for price in ("0", "0.0", "0.00"):
        assert_rejected(place(busy, price=price), "PRICE_NOT_POSITIVE")
    assert_rejected(place(busy, quantity="0"), "QUANTITY_TOO_SMALL")
    assert_rejected(place(busy, quantity="1000001"), "QUANTITY_TOO_LARGE")
    assert_rejected(place(busy, price="90071992547409.92"), "INVALID_NUMBER")
    assert_rejected(busy.ask("amend_order", order_id="1", quantity="1000001"), "QUANTITY_TOO_LARGE")


def test_largest_exact_price_is_accepted(book: Book) -> None:
    reply = book.limit("alice", "sell", "9007199254740991", "90071992547409.91")
    assert reply["price"] == "90071992547409.91"
    assert reply["quantity"] == "9007199254740991"


def test_numbers_with_trailing_zeros_are_the_same_numbers(book: Book) -> None:
    reply = book.limit("alice", "buy", "3.000", "100.2500000000000000000000000000000000")
    assert reply["price"] == "100.25"
    assert reply["quantity"] == "3"


@pytest.mark.parametrize("name", ["account", "client_order_id", "stp_group"])
def test_text_that_is_no_name_is_refused(busy: Book, name: str) -> None:
    for text in NO_NAMES:
        for reply in (place(busy, **{name: text}), place_in_batch(busy, **{name: text})):
            assert_rejected(reply, "INVALID_VALUE")
            assert name != "client_order_id" or "client_order_id" not in reply


@pytest.mark.parametrize(
    "name",
    [
        *("side", "order_type", "time_in_force", "post_only"),
        *("self_trade_prevention", "validate_only"),
    ],
)
def test_value_outside_an_enumeration_is_refused(busy: Book, name: str) -> None:
    for text in (*NO_NAMES, "BUY", "Limit", "GTC", "trailing", "day", "True", "yes", "1", "0"):
        assert_rejected(place(busy, **{name: text}), "INVALID_VALUE")


def test_text_that_is_no_order_id_is_refused(busy: Book) -> None:
    for text in NO_ORDER_IDS:
        for function in ("cancel_order", "get_order"):
            assert_rejected(busy.ask(function, order_id=text), "INVALID_VALUE")
        assert_rejected(busy.ask("amend_order", order_id=text, price="100"), "INVALID_VALUE")


@pytest.mark.parametrize("function", ["place_order", "cancel_order", "amend_order"])
def test_unknown_field_is_refused(busy: Book, function: str) -> None:
    fields = ORDER if function == "place_order" else {"order_id": "1", "account": "alice"}
    if function == "amend_order":
        fields = {**fields, "price": "100"}
    for name in ("colour", "", "Price", "price ", "\x00", "symbol", "method", "x" * 100_000):
        assert_rejected(busy.ask(function, **fields, **{name: "1"}), "UNKNOWN_FIELD")


@pytest.mark.parametrize("missing", ORDER)
def test_missing_field_is_refused(busy: Book, missing: str) -> None:
    fields = {name: value for name, value in ORDER.items() if name != missing}
    assert_rejected(busy.ask("place_order", **fields), "MISSING_FIELD")
    (reply,) = busy.execute({"method": "place_order", **fields})
    assert_rejected(reply, "MISSING_FIELD")


def test_repeated_field_is_refused(busy: Book) -> None:
    for name, value in ORDER.items():
        assert_rejected(busy.call("place_order", *words(ORDER), name, value), "DUPLICATE_FIELD")


def test_repeated_field_of_a_json_object_is_refused(busy: Book) -> None:
    order = json.dumps({"method": "place_order", **ORDER})
    (reply,) = busy.execute(f'{order[:-1]}, "quantity": "4"}}')
    assert_rejected(reply, ("DUPLICATE_FIELD", "MALFORMED_COMMAND"))


def test_odd_number_of_arguments_is_refused(busy: Book) -> None:
    for function in ("place_order", "cancel_order", "amend_order", "cancel_all_orders"):
        assert_rejected(busy.call(function, "account"), "MALFORMED_COMMAND")
        assert_rejected(busy.call(function, "account", "alice", "side"), "MALFORMED_COMMAND")


def test_order_is_named_completely_or_refused(busy: Book) -> None:
    for function in ("cancel_order", "get_order"):
        assert_rejected(busy.ask(function), "MISSING_FIELD")
        assert_rejected(busy.ask(function, account="alice"), "MISSING_FIELD")
        assert_rejected(busy.ask(function, client_order_id="a1"), "MISSING_FIELD")
    assert_rejected(busy.ask("amend_order", order_id="1"), "MISSING_FIELD")


def test_fields_that_exclude_each_other_are_refused(busy: Book) -> None:
    market = {k: v for k, v in ORDER.items() if k != "price"} | {"order_type": "market"}
    for fields in (
        {**market, "price": "100"},
        {**market, "time_in_force": "gtc"},
        {**market, "post_only": "true"},
        {**ORDER, "time_in_force": "ioc", "post_only": "true"},
        {**ORDER, "time_in_force": "fok", "post_only": "true"},
    ):
        assert_rejected(busy.ask("place_order", **fields), "FIELD_NOT_ALLOWED")
    both = {"order_id": "1", "quantity": "4", "remaining_quantity": "4"}
    assert_rejected(busy.ask("amend_order", **both), "FIELD_NOT_ALLOWED")


def test_strangers_order_is_refused(busy: Book) -> None:
    for function, change in (("cancel_order", {}), ("amend_order", {"price": "100"})):
        reply = busy.ask(function, order_id="1", account="bob", **change)
        assert_rejected(reply, "UNKNOWN_ORDER")
        reply = busy.ask(function, account="bob", client_order_id="a1", **change)
        assert_rejected(reply, "UNKNOWN_ORDER")
    assert_rejected(busy.ask("get_order", order_id="1", account="bob"), "UNKNOWN_ORDER")


def test_unknown_order_is_refused(busy: Book) -> None:
    for order_id in ("2", "999", str(2**53 - 1)):
        assert_rejected(busy.ask("cancel_order", order_id=order_id), "UNKNOWN_ORDER")
        assert_rejected(busy.ask("amend_order", order_id=order_id, price="9"), "UNKNOWN_ORDER")
        assert_rejected(busy.ask("get_order", order_id=order_id), "UNKNOWN_ORDER")


def test_rejection_carries_a_valid_client_order_id(busy: Book) -> None:
    for fields in (
        {**ORDER, "price": "100.255"},
        {**ORDER, "colour": "red"},
        {**ORDER, "side": "up"},
        {k: v for k, v in ORDER.items() if k != "quantity"},
    ):
        fields["client_order_id"] = "known"
        assert busy.ask("place_order", **fields)["client_order_id"] == "known", fields
        (reply,) = busy.execute({"method": "place_order", **fields})
        assert reply["client_order_id"] == "known", fields
    named = {"account": "carol", "client_order_id": "known"}
    for function in ("cancel_order", "get_order"):
        assert busy.ask(function, **named)["client_order_id"] == "known", function


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "1e2", "x", "", "01", "9" * 30])
def test_page_limits_are_checked(busy: Book, limit: str) -> None:
    assert_rejected(busy.ask("get_trades", limit=limit), "INVALID_VALUE")
    assert_rejected(busy.ask("get_open_orders", account="alice", limit=limit), "INVALID_VALUE")


@pytest.mark.parametrize("depth", ["0", "10001", "-1", "1.5", "all", "FULL", "", "01", "9" * 30])
def test_depth_is_checked(busy: Book, depth: str) -> None:
    assert_rejected(busy.ask("get_book", depth=depth), "INVALID_VALUE")


@pytest.mark.parametrize(
    "fields",
    [
        {"tick_size": "0"}, {"tick_size": "-1"}, {"tick_size": "1e-2"}, {"lot_size": "0"},
        {"tick_size": "0." + "0" * 15 + "1"}, {"status": "open"}, {"status": ""},
        {"min_quantity": "0"}, {"min_quantity": "0.5"}, {"max_quantity": "0"},
        {"min_quantity": "10", "max_quantity": "9"}, {"max_quantity": "9007199254740992"},
        {"events_length_max": "0"}, {"events_length_max": "-1"}, {"trades_length_max": "1.5"},
        {"book_length_max": "10000001"}, {"book_length_max": "x"}, {"colour": "red"},
    ],
)  # fmt: skip
def test_bad_definition_is_refused(busy: Book, fields: dict[str, str]) -> None:
    assert_rejected(busy.ask("define_instrument", **fields), documented_codes())


# ---- execute


def test_json_values_of_another_type_are_refused(busy: Book) -> None:
    for name in ORDER:
        for value in (1, 1.5, True, None, [], {}, ["3"], {"a": "b"}):
            assert_rejected(place_in_batch(busy, **{name: value}), "WRONG_TYPE")
    others: tuple[Any, ...] = (1, None, "maybe", [], {})
    for post_only in others:
        reply = place_in_batch(busy, post_only=post_only)
        assert_rejected(reply, ("WRONG_TYPE", "INVALID_VALUE"))


@pytest.mark.parametrize(
    "command",
    [
        "", " ", "null", "true", "1", '"place_order"', "[]", "{}", "{", "}", "{]", "not json",
        '{"method":null}', '{"method":1}', '{"method":["place_order"]}', '{"account":"alice"}',
        '[{"method":"place_order"}]', "{'method':'place_order'}", '{"method":"place_order",}',
        "\x00", '{"method":"place_order"}\x00{}', '{"method":"place_order"} {}',
        "[" * 2000, "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000,
        '{"method":"place_order","account":' + "[" * 900 + "]" * 900 + "}",
        '{"method":"place_order","x":"\\ud800"}',
    ],
)  # fmt: skip
def test_command_that_is_no_json_object_with_a_method_is_refused(busy: Book, command: str) -> None:
    (reply,) = busy.execute(command)
    assert_rejected(reply, ("MALFORMED_COMMAND", "UNKNOWN_METHOD", "WRONG_TYPE", "UNKNOWN_FIELD"))


@pytest.mark.parametrize(
    "method", ["", "Place_Order", "get_book", "execute", "x" * 1000, "__index"]
)
def test_unknown_method_is_refused(busy: Book, method: str) -> None:
    (reply,) = busy.execute({"method": method, "account": "alice"})
    assert_rejected(reply, "UNKNOWN_METHOD")


def test_bad_commands_do_not_stop_the_good_one_among_them(book: Book) -> None:
    good = {"method": "place_order", **ORDER}
    replies = book.execute("[", {"method": "nap"}, good, {**good, "price": "NaN"}, b"\xff")
    assert [reply.get("code") for reply in replies] == [
        "MALFORMED_COMMAND", "UNKNOWN_METHOD", None, "INVALID_NUMBER", "MALFORMED_COMMAND",
    ]  # fmt: skip
    assert replies[2]["status"] == "open"


@pytest.mark.parametrize(
    "commands",
    [
        ('{"method":"cancel_order","order_id":"1"},{"method":"nap","order_id":["1"', '"2"]}'),
        ('{"method":"cancel_order","order_id":"12345"', '"order_id":"1"}'),
        ('{"method":"cancel_order"', '"order_id":"1"},{"method":"cancel_order","order_id":"2"}'),
    ],
)  # fmt: skip
def test_commands_of_a_batch_cannot_share_their_text(busy: Book, commands: tuple[str, ...]) -> None:
    for reply in busy.execute(*commands):
        assert_rejected(reply, "MALFORMED_COMMAND")


def test_client_order_id_may_begin_with_a_colon(book: Book) -> None:
    order = {"method": "place_order", **ORDER, "client_order_id": ":a"}
    for text in (json.dumps(order), json.dumps(order, separators=(",", ":"))):
        (reply,) = book.execute(text)
        assert (reply["status"], reply["client_order_id"]) == ("open", ":a")


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("post_only", [True, False])
def test_post_only_may_be_a_json_boolean(
    book: Book, separators: tuple[str, str], post_only: bool
) -> None:
    order = {"method": "place_order", **ORDER, "post_only": post_only}
    (reply,) = book.execute(json.dumps(order, separators=separators))
    assert (reply["status"], reply.get("post_only", False)) == ("open", post_only)


def test_empty_and_oversized_batches_are_refused_as_one(busy: Book) -> None:
    assert_rejected(decode(busy.raw("execute")), documented_codes())
    order = json.dumps({"method": "place_order", **ORDER})
    assert_rejected(decode(busy.raw("execute", *[order] * 257)), "BATCH_TOO_LARGE")


def test_batch_of_256_is_run(book: Book) -> None:
    replies = book.execute(*[{"method": "place_order", **ORDER}] * 256)
    assert [reply["status"] for reply in replies] == ["open"] * 256


# ---- bytes that are no text


@pytest.mark.parametrize("junk", [*INVALID_UTF8, b"\x00", b'"', b"\\", b"\n"], ids=repr)
def test_bytes_that_are_no_text_are_refused_with_valid_json(busy: Book, junk: bytes) -> None:
    named = words(ORDER)
    for position in range(len(named)):
        arguments: list[str | bytes] = [*named]
        arguments[position] = junk
        assert_rejected(busy.call("place_order", *arguments), documented_codes())
    for function in ("cancel_order", "get_order", "amend_order"):
        assert_rejected(busy.call(function, "order_id", junk), documented_codes())
    assert_rejected(busy.call("define_instrument", "status", junk), documented_codes())
    assert_rejected(busy.call("get_book", "depth", junk), documented_codes())
    assert_rejected(busy.call("begin_epoch", junk, junk), documented_codes())
    for command in (junk, b'{"method":"%s"}' % junk, b'{"method":"cancel_order","%s":"1"}' % junk):
        assert_rejected(decode(busy.raw("execute", command)[0]), documented_codes())


# ---- keys and symbols


def test_unknown_symbol_is_refused(new_book: NewBook) -> None:
    book = new_book()
    for function, fields in (
        ("place_order", ORDER),
        ("cancel_order", {"order_id": "1"}),
        ("amend_order", {"order_id": "1", "price": "1"}),
        ("cancel_all_orders", {"account": "alice"}),
        ("replace_order", {**ORDER, "cancel_order_id": "1"}),
        ("mass_quote", {"account": "alice", "quotes": "[]"}),
        ("get_closed_orders", {"account": "alice"}),
        ("get_own_trades", {"account": "alice"}),
        ("tick", {}),
        ("publish_book", {}),
        ("begin_epoch", {"run_id": "a" * 40}),
        ("set_stp_group", {"account": "alice", "stp_group": "g"}),
        ("get_stp_group", {"account": "alice"}),
        ("get_book", {}),
        ("get_level3", {}),
        ("get_order", {"order_id": "1"}),
        ("get_open_orders", {"account": "alice"}),
        ("get_trades", {}),
        ("get_instrument", {}),
        ("verify_book", {}),
        ("cancel_all_after", {"account": "alice", "timeout_ms": "1000"}),
    ):
        assert_rejected(book.ask(function, **fields), "UNKNOWN_SYMBOL")
    order = json.dumps({"method": "place_order", **ORDER})
    replies = book.raw("execute", order, order)
    for reply in replies if isinstance(replies, list) else [replies]:
        assert_rejected(decode(reply), "UNKNOWN_SYMBOL")
    assert book.contents() == {}


FUNCTIONS = {
    "define_instrument": ["tick_size", "1", "lot_size", "1"],
    "place_order": words(ORDER),
    "cancel_order": ["order_id", "1"],
    "amend_order": ["order_id", "1", "price", "1"],
    "cancel_all_orders": ["account", "alice"],
    "replace_order": [*words(ORDER), "cancel_order_id", "1"],
    "mass_quote": ["account", "alice", "quotes", "[]"],
    "get_closed_orders": ["account", "alice"],
    "get_own_trades": ["account", "alice"],
    "cancel_all_after": ["account", "alice", "timeout_ms", "1000"],
    "execute": [json.dumps({"method": "place_order", **ORDER})],
    "tick": [],
    "publish_book": [],
    "begin_epoch": ["run_id", "a" * 40],
    "set_stp_group": ["account", "alice", "stp_group", "g"],
    "get_stp_group": ["account", "alice"],
    "get_book": [],
    "get_level3": [],
    "get_order": ["order_id", "1"],
    "get_open_orders": ["account", "alice"],
    "get_trades": [],
    "get_instrument": [],
    "verify_book": [],
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_anything_but_one_book_key_is_refused(busy: Book, function: str) -> None:
    bad_keys: list[list[str | bytes]] = [
        [],
        [busy.key, busy.key],
        *([key] for key in (
            "", "x", "orderbook", "orderbook:main:BTC", "orderbook:{}:BTC", "orderbook:{main}:",
            "orderbook:{main}:btc", "orderbook:{main}:BTC USD", "orderbook:{main}:BTC:bids",
            "orderbook:{main}BTC", "Orderbook:{main}:BTC", " orderbook:{main}:BTC",
            "orderbook:{main}:BTC\n", "orderbook:{ma}in}:BTC", "orderbook:{main}:" + "B" * 33,
            "orderbook:instruments", b"orderbook:{main}:\xff",
        )),
    ]  # fmt: skip
    for keys in bad_keys:
        words_sent = ["FCALL", function, len(keys), *keys, *FUNCTIONS[function]]
        reply = busy.client.execute_command(*words_sent)
        assert_rejected(decode(reply), "INVALID_BOOK_KEY")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_something_else_at_the_book_key_is_left_alone(new_book: NewBook, function: str) -> None:
    book = new_book()
    book.client.set(book.key, "by hand")
    try:
        reply = book.call(function, *FUNCTIONS[function])
    except ResponseError as error:
        assert "WRONGTYPE" in str(error)  # noqa: PT017
    else:
        assert_rejected(reply, documented_codes())
    assert book.client.get(book.key) == b"by hand"
    assert book.stored_keys() == [book.key.encode()]


def test_a_malformed_order_list_is_refused_with_a_code(busy: Book) -> None:
    stop = '{"side":"sell","order_type":"stop","stop_price":"95","quantity":"2"}'
    limit = '{"side":"sell","order_type":"limit","price":"500","quantity":"2"}'
    code_of = {
        "": "INVALID_ORDER_LIST",
        "null": "INVALID_ORDER_LIST",
        "{}": "INVALID_ORDER_LIST",
        "[1,2]": "INVALID_ORDER_LIST",
        f"[{stop}]": "INVALID_ORDER_LIST",
        f"[{stop},{limit}]\0": "INVALID_ORDER_LIST",
        f"[[{stop}],[{limit}]]": "INVALID_ORDER_LIST",
        f'[{stop},"{{}}"]': "INVALID_ORDER_LIST",
        '[{"a":"}{"},{"b":"x"}]': "INVALID_ORDER_LIST",
        '[{"side":"buy","x":"}"},{"side":"sell"}]': "INVALID_ORDER_LIST",
        f'[{stop},{{"method":"x"}}]': "UNKNOWN_FIELD",
        f"[{stop},{limit.replace('side', 'Side')}]": "UNKNOWN_FIELD",
        f"[{stop},{limit.replace('}', ',,}')}]": "INVALID_ORDER_LIST",
        f'[{stop},{limit[:-1]},"price":"501"}}]': "DUPLICATE_FIELD",
        f'[{stop},{{"side":"sell","order_type":"limit"}}]': "MISSING_FIELD",
        f"[{stop},{limit.replace('500', '5{0}0')}]": "INVALID_NUMBER",
        "[" * 5000: "INVALID_ORDER_LIST",
        " " * 20000: "INVALID_VALUE",
    }
    for text, code in code_of.items():
        fields = {"account": "alice", "list_type": "oco", "orders": text}
        assert_rejected(busy.ask("place_order_list", **fields), code)
        (reply,) = busy.execute({"method": "place_order_list", **fields})
        assert_rejected(reply, code)
