"""The websocket session: frames in, requests and replies out. Nothing here has a socket."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orderbook.host.session import (
    MALFORMED_FRAMES_MAX,
    CancelInBooks,
    CancelOnDisconnect,
    Close,
    Command,
    Logout,
    Outcome,
    Ping,
    Query,
    Reply,
    Session,
    Subscribe,
    Unsubscribe,
    answer,
    failure,
)
from orderbook.messages import Channel, RejectCode

LIMIT_ORDER = {
    "symbol": "BTC-USD",
    "side": "buy",
    "order_type": "limit",
    "price": "100.25",
    "quantity": "3",
}


def frame(method: str, params: Any = None, req_id: Any = None) -> bytes:
    envelope: dict[str, Any] = {"method": method}
    if req_id is not None:
        envelope["req_id"] = req_id
    if params is not None:
        envelope["params"] = params
    return json.dumps(envelope).encode()


def receive(data: bytes) -> Outcome:
    return Session("alice").receive(data)


def refused(data: bytes) -> dict[str, Any]:
    """The error reply to a frame."""
    outcome = receive(data)
    assert isinstance(outcome, Reply)
    reply: dict[str, Any] = json.loads(outcome.frame)
    assert reply["success"] is False
    assert reply["error"]["code"] in set(RejectCode)
    assert reply["error"]["message"]
    return reply


def code(data: bytes) -> str:
    return str(refused(data)["error"]["code"])


# ---- what is understood


def test_an_order_becomes_a_command_of_its_book_with_the_account_of_the_connection() -> None:
    outcome = receive(frame("place_order", LIMIT_ORDER, 1))
    assert isinstance(outcome, Command)
    assert outcome.symbol == "BTC-USD"
    expected = {"method": "place_order", "account": "alice", **LIMIT_ORDER}
    del expected["symbol"]
    assert json.loads(outcome.payload) == expected


def test_a_command_without_fields_of_its_own_is_well_formed() -> None:
    outcome = receive(frame("cancel_all_orders", {"symbol": "X"}))
    assert isinstance(outcome, Command)
    assert json.loads(outcome.payload) == {"method": "cancel_all_orders", "account": "alice"}


@pytest.mark.parametrize("field", ["post_only", "validate_only"])
@pytest.mark.parametrize("value", [True, False, "true", "false"])
def test_flags_stay_json_booleans_or_text(field: str, value: bool | str) -> None:
    outcome = receive(frame("place_order", LIMIT_ORDER | {field: value}))
    assert isinstance(outcome, Command)
    assert json.loads(outcome.payload)[field] == value


def test_every_field_of_an_order_reaches_the_engine() -> None:
    params = LIMIT_ORDER | {
        "quote_quantity": "250",
        "stop_price": "98",
        "trailing_offset": "2.5%",
        "time_in_force": "gtd",
        "expire_time_ms": "1795398168953",
        "display_quantity": "1",
        "protection": "5",
        "self_trade_prevention": "cancel_maker",
        "stp_group": "desk",
        "validate_only": "true",
        "valid_until_ms": "1795398168953",
        "client_order_id": "a1",
    }
    outcome = receive(frame("place_order", params))
    assert isinstance(outcome, Command)
    expected = {"method": "place_order", "account": "alice", **params}
    del expected["symbol"]
    assert json.loads(outcome.payload) == expected


LIST: dict[str, Any] = {
    "symbol": "X",
    "list_type": "oto",
    "orders": [
        {"side": "buy", "order_type": "limit", "price": "99", "quantity": "5", "post_only": True},
        {"side": "sell", "order_type": "stop", "stop_price": "95", "client_order_id": 'a"'},
    ],
}


def test_an_order_list_is_text_for_the_engine() -> None:
    expiring = {"time_in_force": "gtd", "expire_time_ms": 1795398168953}
    entry = LIST["orders"][0] | expiring
    for orders in ([entry, LIST["orders"][1]], json.dumps([entry, LIST["orders"][1]])):
        outcome = receive(frame("place_order_list", LIST | {"orders": orders}))
        assert isinstance(outcome, Command)
        payload = json.loads(outcome.payload)
        assert (payload["account"], payload["list_type"]) == ("alice", "oto")
        listed = json.loads(payload["orders"])
        assert listed[1] == LIST["orders"][1]
        assert str(listed[0]["expire_time_ms"]) == "1795398168953"


def test_a_bad_field_within_an_order_list_is_named() -> None:
    for change, expected in [({"colour": "red"}, "UNKNOWN_FIELD"), ({"price": 99}, "WRONG_TYPE")]:
        orders = [LIST["orders"][0] | change, LIST["orders"][1]]
        assert code(frame("place_order_list", LIST | {"orders": orders})) == expected
    twice = frame("place_order_list", LIST).replace(b'"price"', b'"price": "98", "price"')
    assert code(twice) == "DUPLICATE_FIELD"


TIMES = [
    ("place_order", LIMIT_ORDER, "valid_until_ms"),
    ("place_order", LIMIT_ORDER, "expire_time_ms"),
    ("amend_order", {"symbol": "X", "order_id": "3", "stop_price": "98"}, "valid_until_ms"),
    ("cancel_order", {"symbol": "X", "order_id": "3"}, "valid_until_ms"),
    ("cancel_all_orders", {"symbol": "X"}, "valid_until_ms"),
    ("cancel_all_after", {"symbol": "X", "timeout_ms": 0}, "valid_until_ms"),
    ("cancel_all_after", {"symbol": "X"}, "timeout_ms"),
]


@pytest.mark.parametrize(("method", "params", "field"), TIMES)
@pytest.mark.parametrize("value", [1795398168953, "1795398168953"])
def test_times_are_text_for_the_engine(
    method: str, params: dict[str, str], field: str, value: int | str
) -> None:
    outcome = receive(frame(method, params | {field: value}))
    assert isinstance(outcome, Command)
    assert json.loads(outcome.payload)[field] == "1795398168953"


@pytest.mark.parametrize("value", [1.5, True, None, [], {}])
@pytest.mark.parametrize("field", ["valid_until_ms", "expire_time_ms"])
def test_a_time_that_is_no_integer_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(frame("place_order", LIMIT_ORDER | {field: value}))["error"]
    assert (error["code"], field in error["message"]) == ("WRONG_TYPE", True)


def test_a_time_given_twice_as_a_number_is_refused() -> None:
    """Told as text it would have as many quotation marks as both together."""
    params = '{"symbol":"X","order_id":"1","valid_until_ms":1,"valid_until_ms":2}'
    assert code(f'{{"method":"cancel_order","params":{params}}}'.encode()) == "DUPLICATE_FIELD"


def test_an_order_by_quote_quantity_needs_no_quantity() -> None:
    params = {"symbol": "X", "side": "buy", "order_type": "market", "quote_quantity": "250"}
    outcome = receive(frame("place_order", params))
    assert isinstance(outcome, Command)
    assert "quantity" not in json.loads(outcome.payload)


def test_queries_get_their_fields_as_arguments() -> None:
    outcome = receive(frame("get_book", {"symbol": "X", "depth": 25}))
    assert isinstance(outcome, Query)
    assert (outcome.method, outcome.symbol, outcome.arguments) == ("get_book", "X", ["depth", "25"])
    assert isinstance(
        outcome := receive(frame("get_book", {"symbol": "X", "depth": "full"})), Query
    )
    assert outcome.arguments == ["depth", "full"]
    outcome = receive(frame("get_level3", {"symbol": "X", "depth": 5}))
    assert isinstance(outcome, Query)
    assert (outcome.method, outcome.arguments) == ("get_level3", ["depth", "5"])


def test_queries_about_orders_are_asked_for_the_account_of_the_connection() -> None:
    outcome = receive(frame("get_open_orders", {"symbol": "X", "limit": 10, "after": "7"}))
    assert isinstance(outcome, Query)
    assert outcome.arguments == ["account", "alice", "after", "7", "limit", "10"]
    assert isinstance(
        outcome := receive(frame("get_order", {"symbol": "X", "order_id": "3"})), Query
    )
    assert outcome.arguments == ["account", "alice", "order_id", "3"]


def test_a_replacement_has_the_fields_of_an_order_and_its_own() -> None:
    own = {"cancel_order_id": "17", "on_failure": "continue", "expire_time_ms": 5}
    outcome = receive(frame("replace_order", {**LIMIT_ORDER, **own}))
    assert isinstance(outcome, Command)
    sent = json.loads(outcome.payload)
    assert (sent["method"], sent["account"], sent["expire_time_ms"]) == (
        "replace_order",
        "alice",
        "5",
    )
    assert (sent["cancel_order_id"], sent["on_failure"]) == ("17", "continue")
    unknown = frame("replace_order", {**LIMIT_ORDER, **own, "validate_only": True})
    assert code(unknown) == "UNKNOWN_FIELD"


def test_quotes_are_a_list_for_the_client_and_text_for_the_engine() -> None:
    quotes = [
        {"side": "buy", "price": "99", "quantity": "1"},
        {"side": "sell", "price": "101", "quantity": "1", "client_order_id": "ask"},
    ]
    params = {"symbol": "BTC-USD", "quotes": quotes, "post_only": True, "valid_until_ms": 9}
    outcome = receive(frame("mass_quote", params))
    assert isinstance(outcome, Command)
    sent = json.loads(outcome.payload)
    assert json.loads(sent.pop("quotes")) == quotes
    assert sent == {
        "method": "mass_quote",
        "account": "alice",
        "post_only": True,
        "valid_until_ms": "9",
    }


@pytest.mark.parametrize(
    ("quotes", "expected"),
    [
        ("[]", "WRONG_TYPE"),
        ({}, "WRONG_TYPE"),
        ([1], "WRONG_TYPE"),
        ([{"side": "buy", "price": "1"}], "MISSING_FIELD"),
        ([{"side": "buy", "price": 1, "quantity": "1"}], "WRONG_TYPE"),
        ([{"side": "buy", "price": "1", "quantity": "1", "colour": "red"}], "UNKNOWN_FIELD"),
        ([{"side": "buy", "price": "1", "quantity": "1"}] * 101, "INVALID_VALUE"),
    ],
)
def test_a_list_that_is_not_of_quotes_is_refused(quotes: Any, expected: str) -> None:
    assert code(frame("mass_quote", {"symbol": "BTC-USD", "quotes": quotes})) == expected


@pytest.mark.parametrize(
    ("quotes", "expected"),
    [
        ("[]", "field quotes must be a list"),
        ([{"side": "buy", "price": 1, "quantity": "1"}], "field price must be text, in quotes"),
    ],
)
def test_the_field_that_is_no_good_is_named(quotes: Any, expected: str) -> None:
    answer = refused(frame("mass_quote", {"symbol": "BTC-USD", "quotes": quotes}))
    assert answer["error"]["message"] == expected


def test_a_field_of_a_quote_given_twice_is_refused() -> None:
    quote = '{"side":"buy","price":"1","price":"2","quantity":"1"}'
    params = f'{{"symbol":"BTC-USD","quotes":[{quote}]}}'
    assert code(f'{{"method":"mass_quote","params":{params}}}'.encode()) == "DUPLICATE_FIELD"


def test_orders_can_be_canceled_in_one_book_or_in_several() -> None:
    one = receive(frame("cancel_all_orders", {"symbol": "BTC-USD", "side": "buy"}))
    assert isinstance(one, Command)
    assert json.loads(one.payload)["side"] == "buy"
    params = {"symbols": ["B", "A", "B"], "side": "sell", "valid_until_ms": 9}
    several = receive(frame("cancel_all_orders", params))
    assert isinstance(several, CancelInBooks)
    assert several.symbols == ("B", "A")
    assert several.fields == {"account": "alice", "side": "sell", "valid_until_ms": "9"}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "MISSING_FIELD"),
        ({"symbol": "A", "symbols": ["A"]}, "FIELD_NOT_ALLOWED"),
        ({"symbols": []}, "INVALID_VALUE"),
        ({"symbols": [f"S{number}" for number in range(101)]}, "INVALID_VALUE"),
        ({"symbols": "A"}, "WRONG_TYPE"),
        ({"symbols": ["A"], "account": "bob"}, "UNKNOWN_FIELD"),
    ],
)
def test_books_to_cancel_in_are_named_one_way(params: Any, expected: str) -> None:
    assert code(frame("cancel_all_orders", params)) == expected


def test_symbols_to_cancel_in_given_twice_are_refused() -> None:
    data = b'{"method":"cancel_all_orders","params":{"symbols":["A"],"symbols":["B"]}}'
    assert code(data) == "DUPLICATE_FIELD"


def test_looking_back_is_asked_for_the_account_of_the_connection() -> None:
    for method in ("get_closed_orders", "get_own_trades"):
        outcome = receive(frame(method, {"symbol": "BTC-USD", "before": 7, "limit": "2"}))
        assert isinstance(outcome, Query)
        assert outcome.arguments == ["account", "alice", "before", "7", "limit", "2"]


def test_a_subscription_may_be_to_an_interval_or_a_depth() -> None:
    def variant(**params: Any) -> str:
        outcome = receive(frame("subscribe", {"symbols": ["A"], **params}))
        assert isinstance(outcome, Subscribe)
        return outcome.variant

    assert variant(channel="candles") == "1m"
    assert variant(channel="candles", interval="1d") == "1d"
    assert variant(channel="book") == variant(channel="book", depth=10) == ""
    assert variant(channel="book", depth=50) == variant(channel="book", depth="50") == "50"
    assert variant(channel="book", depth="full") == "full"
    for params, expected in (
        ({"channel": "candles", "interval": "2m"}, "INVALID_VALUE"),
        ({"channel": "book", "depth": 11}, "INVALID_VALUE"),
        ({"channel": "trades", "depth": 10}, "FIELD_NOT_ALLOWED"),
        ({"channel": "book", "interval": "1m"}, "FIELD_NOT_ALLOWED"),
        ({"channel": "ticker", "after": 3, "epoch": 1}, "FIELD_NOT_ALLOWED"),
    ):
        assert code(frame("subscribe", {"symbols": ["A"], **params})) == expected


def test_after_needs_the_epoch_that_it_counts_in() -> None:
    text = frame("subscribe", {"channel": "trades", "symbols": ["A"], "after": 7})
    assert code(text) == "MISSING_FIELD"
    outcome = receive(text)
    assert isinstance(outcome, Reply)
    assert b"after needs epoch" in outcome.frame


def test_level3_can_be_resumed() -> None:
    params = {"channel": "level3", "symbols": ["A"], "after": 7, "epoch": 2}
    outcome = receive(frame("subscribe", params))
    assert isinstance(outcome, Subscribe)
    assert (outcome.channel, outcome.after) == (Channel.LEVEL3, 7)


def test_a_subscription_names_each_symbol_once() -> None:
    outcome = receive(frame("subscribe", {"channel": "book", "symbols": ["A", "B", "A"]}))
    assert isinstance(outcome, Subscribe)
    assert (outcome.channel, outcome.symbols, outcome.after) == (Channel.BOOK, ("A", "B"), None)


def test_a_subscription_can_resume_one_symbol() -> None:
    params = {"channel": "trades", "symbols": ["A"], "after": 41, "epoch": 2}
    outcome = receive(frame("subscribe", params))
    assert isinstance(outcome, Subscribe)
    assert (outcome.after, outcome.epoch) == (41, 2)


def test_instruments_and_heartbeat_need_no_symbols() -> None:
    assert isinstance(receive(frame("subscribe", {"channel": "instruments"})), Subscribe)
    assert isinstance(receive(frame("subscribe", {"channel": "heartbeat"})), Subscribe)
    assert isinstance(receive(frame("unsubscribe", {"channel": "heartbeat"})), Unsubscribe)


@pytest.mark.parametrize("timeout_ms", [0, 1000, 86_400_000, "0", "30000"])
def test_cancel_on_disconnect_tells_its_timeout(timeout_ms: int | str) -> None:
    outcome = receive(frame("cancel_on_disconnect", {"timeout_ms": timeout_ms}))
    assert isinstance(outcome, CancelOnDisconnect)
    assert outcome.timeout_ms == int(timeout_ms)


@pytest.mark.parametrize(
    "timeout_ms", [1, 999, 86_400_001, -1000, "", "x", "1e4", "01000", "1000.0", " 1000", "9" * 30]
)
def test_a_timeout_that_is_none_is_refused(timeout_ms: int | str) -> None:
    data = frame("cancel_on_disconnect", {"timeout_ms": timeout_ms})
    assert code(data) == RejectCode.INVALID_VALUE


@pytest.mark.parametrize("timeout_ms", [1000.5, True, None, [], {}])
def test_a_timeout_of_another_type_is_refused(timeout_ms: Any) -> None:
    assert code(frame("cancel_on_disconnect", {"timeout_ms": timeout_ms})) == RejectCode.WRONG_TYPE
    params = {"symbol": "X", "timeout_ms": timeout_ms}
    assert code(frame("cancel_all_after", params)) == RejectCode.WRONG_TYPE


def test_cancel_on_disconnect_needs_a_timeout_and_is_about_no_book() -> None:
    assert code(frame("cancel_on_disconnect", {})) == RejectCode.MISSING_FIELD
    params = {"timeout_ms": 1000, "symbol": "X"}
    assert code(frame("cancel_on_disconnect", params)) == RejectCode.UNKNOWN_FIELD


def test_orders_carry_the_session_while_they_are_marked() -> None:
    session = Session("alice")

    def payload(method: str, params: dict[str, str]) -> Any:
        outcome = session.receive(frame(method, params))
        assert isinstance(outcome, Command)
        return json.loads(outcome.payload)

    session.mark_orders("s1")
    assert payload("place_order", LIMIT_ORDER)["session"] == "s1"
    assert "session" not in payload("cancel_all_orders", {"symbol": "X"})
    assert "session" not in payload("cancel_all_after", {"symbol": "X", "timeout_ms": "0"})
    session.mark_orders(None)
    assert "session" not in payload("place_order", LIMIT_ORDER)


@pytest.mark.parametrize("method", ["place_order", "cancel_all_orders", "cancel_all_after"])
def test_a_session_is_no_field_of_a_client(method: str) -> None:
    params = {"symbol": "X", "session": "s1"}
    if method == "place_order":
        params |= LIMIT_ORDER
    assert code(frame(method, params)) == RejectCode.UNKNOWN_FIELD


def test_logout_takes_no_params() -> None:
    assert isinstance(receive(frame("logout")), Logout)
    assert isinstance(receive(frame("logout", {})), Logout)
    assert code(frame("logout", {"now": True})) == RejectCode.UNKNOWN_FIELD


def test_ping_takes_no_params_or_empty_ones() -> None:
    assert isinstance(receive(frame("ping")), Ping)
    assert isinstance(receive(frame("ping", {})), Ping)


# ---- answers


@pytest.mark.parametrize("req_id", [0, 7, -3, 2**53 + 1, "", "a", "q" * 64, 'quo"te', "é\\"])
def test_req_id_is_echoed_as_sent(req_id: int | str) -> None:
    outcome = receive(frame("place_order", LIMIT_ORDER, req_id))
    assert isinstance(outcome, Command)
    reply = json.loads(answer(outcome.head, b'{"status":"open"}'))
    assert reply == {
        "method": "place_order",
        "req_id": req_id,
        "success": True,
        "result": {"status": "open"},
    }


def test_without_a_req_id_the_answer_has_none() -> None:
    outcome = receive(frame("ping"))
    assert isinstance(outcome, Ping)
    assert json.loads(answer(outcome.head, b"{}")) == {
        "method": "ping",
        "success": True,
        "result": {},
    }


def test_a_refusal_of_the_engine_becomes_an_error() -> None:
    outcome = receive(frame("ping", req_id=1))
    assert isinstance(outcome, Ping)
    refusal = b'{"status":"rejected","code":"PRICE_OFF_TICK","message":"m","client_order_id":"a1"}'
    assert json.loads(answer(outcome.head, refusal)) == {
        "method": "ping",
        "req_id": 1,
        "success": False,
        "error": {"code": "PRICE_OFF_TICK", "message": "m", "client_order_id": "a1"},
    }


def test_messages_of_refusals_are_escaped() -> None:
    outcome = receive(frame("ping", req_id=1))
    assert isinstance(outcome, Ping)
    reply = json.loads(failure(outcome.head, RejectCode.UNAVAILABLE, 'a "quote" and \\ \n'))
    assert reply["error"] == {"code": "UNAVAILABLE", "message": 'a "quote" and \\ \n'}


# ---- what is refused


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b'{"method":"ping"',
        b'{"method":"ping"} trailing',
        b"{'method':'ping'}",
        b"\xff\xfe",
        b'{"method":"\xff"}',
        b'{"method":"\\ud800"}',
        b'{"method":"ping","params":{"\xff":1}}',
        b"[" * 16000,
        b'{"a":' * 3000,
        b'{"method":"ping","params":' + b"[" * 8000 + b"]" * 8000 + b"}",
        b'{"method":"place_order","params":{"symbol":"X","side":"\xff"}}',
    ],
)
def test_what_is_no_json_object_is_malformed(data: bytes) -> None:
    assert code(data) == "MALFORMED_COMMAND"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame("execute"), "UNKNOWN_METHOD"),
        (frame("define_instrument", {"symbol": "X"}), "UNKNOWN_METHOD"),
        (frame("m" * 10_000), "UNKNOWN_METHOD"),
        (b"{}", "MISSING_FIELD"),
        (b'{"req_id":1}', "MISSING_FIELD"),
        (b'{"method":5}', "WRONG_TYPE"),
        (b'{"method":"ping","extra":1}', "UNKNOWN_FIELD"),
        (b'{"method":"ping","params":[]}', "WRONG_TYPE"),
        (b'{"method":"ping","params":null}', "WRONG_TYPE"),
        (b'{"method":"ping","params":{"x":1}}', "UNKNOWN_FIELD"),
        (b'{"method":"ping","method":"ping"}', "DUPLICATE_FIELD"),
        (b'{"method":"ping","req_id":1,"req_id":2}', "DUPLICATE_FIELD"),
        (b'{"method":"ping","params":{},"params":{}}', "DUPLICATE_FIELD"),
    ],
)
def test_a_wrong_envelope_is_refused_by_name(data: bytes, expected: str) -> None:
    assert code(data) == expected


@pytest.mark.parametrize("req_id", [None, 1.5, True, [], {}])
def test_a_req_id_is_an_integer_or_text(req_id: Any) -> None:
    data = json.dumps({"method": "ping", "req_id": req_id}).encode()
    reply = refused(data)
    assert reply["error"]["code"] == "WRONG_TYPE"
    assert "req_id" not in reply


@pytest.mark.parametrize("req_id", ["x" * 65, 10**64])
def test_a_req_id_has_a_limited_length(req_id: Any) -> None:
    assert code(frame("ping", req_id=req_id)) == "INVALID_VALUE"


@pytest.mark.parametrize("field", sorted(LIMIT_ORDER.keys() - {"price", "quantity"}))
def test_a_missing_field_is_named(field: str) -> None:
    params = {name: value for name, value in LIMIT_ORDER.items() if name != field}
    error = refused(frame("place_order", params))["error"]
    assert (error["code"], field in error["message"]) == ("MISSING_FIELD", True)


@pytest.mark.parametrize(
    "field",
    [
        *LIMIT_ORDER,
        *("time_in_force", "client_order_id", "quote_quantity", "stop_price", "trailing_offset"),
        *("display_quantity", "protection", "self_trade_prevention", "stp_group"),
    ],
)
@pytest.mark.parametrize("value", [1, 1.5, True, None, [], {}])
def test_a_value_that_is_not_text_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(frame("place_order", LIMIT_ORDER | {field: value}))["error"]
    assert (error["code"], field in error["message"]) == ("WRONG_TYPE", True)


@pytest.mark.parametrize("field", ["account", "method", "colour", "", "é", 'quo"te'])
def test_an_unknown_field_is_refused(field: str) -> None:
    assert code(frame("place_order", LIMIT_ORDER | {field: "x"})) == "UNKNOWN_FIELD"


@pytest.mark.parametrize("field", LIMIT_ORDER)
def test_a_field_given_twice_is_refused(field: str) -> None:
    text = json.dumps(LIMIT_ORDER)
    twice = text[:-1] + f', "{field}": "1"' + "}"
    data = f'{{"method":"place_order","req_id":9,"params":{twice}}}'.encode()
    reply = refused(data)
    assert (reply["error"]["code"], reply["req_id"]) == ("DUPLICATE_FIELD", 9)


def test_a_field_given_twice_is_found_behind_escapes() -> None:
    params = '{"symbol":"X","order_id":"1","\\u006frder_id":"2"}'
    assert code(f'{{"method":"cancel_order","params":{params}}}'.encode()) == "DUPLICATE_FIELD"


def test_escapes_alone_are_no_duplicates() -> None:
    params = '{"symbol":"X","client_order_id":"a\\"b\\u0022"}'
    outcome = receive(f'{{"method":"cancel_order","params":{params}}}'.encode())
    assert isinstance(outcome, Command)
    assert json.loads(outcome.payload)["client_order_id"] == 'a"b"'


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"channel": "books", "symbols": ["A"]}, "INVALID_VALUE"),
        ({"channel": 1, "symbols": ["A"]}, "WRONG_TYPE"),
        ({"symbols": ["A"]}, "MISSING_FIELD"),
        ({"channel": "book"}, "MISSING_FIELD"),
        ({"channel": "book", "symbols": []}, "INVALID_VALUE"),
        ({"channel": "book", "symbols": ["A"] * 257}, "INVALID_VALUE"),
        ({"channel": "book", "symbols": "A"}, "WRONG_TYPE"),
        ({"channel": "book", "symbols": [1]}, "WRONG_TYPE"),
        ({"channel": "book", "symbols": ["A"], "after": 1, "epoch": 1}, "FIELD_NOT_ALLOWED"),
        ({"channel": "trades", "symbols": ["A", "B"], "after": 1, "epoch": 1}, "FIELD_NOT_ALLOWED"),
        ({"channel": "trades", "symbols": ["A"], "epoch": 1}, "FIELD_NOT_ALLOWED"),
        ({"channel": "trades", "symbols": ["A"], "after": -1}, "INVALID_VALUE"),
        ({"channel": "trades", "symbols": ["A"], "after": 2**53}, "INVALID_VALUE"),
        ({"channel": "trades", "symbols": ["A"], "after": "1"}, "WRONG_TYPE"),
        ({"channel": "heartbeat", "symbols": ["A"]}, "FIELD_NOT_ALLOWED"),
    ],
)
def test_a_subscription_that_makes_no_sense_is_refused(params: Any, expected: str) -> None:
    assert code(frame("subscribe", params)) == expected


def test_the_req_id_is_recovered_wherever_it_can_be() -> None:
    assert refused(frame("nothing", req_id=5))["req_id"] == 5
    assert refused(b'{"method":"ping","req_id":"x","extra":1}')["req_id"] == "x"
    assert refused(b'{"req_id":6,"method":7}')["req_id"] == 6
    assert refused(b'{"req_id":8,"method":"place_order","params":{"symbol":"\xff"}}')["req_id"] == 8
    assert refused(b'{"method":"ping","req_id":9,')["req_id"] == 9
    assert "req_id" not in refused(b'{"method":"ping","req_id":')


def test_the_method_is_named_where_it_is_known() -> None:
    assert refused(frame("place_order", {}))["method"] == "place_order"
    assert refused(frame("surprise"))["method"] == "surprise"
    assert "method" not in refused(b"nonsense")
    assert "method" not in refused(frame("m" * 10_000))


# ---- abuse


def test_too_many_malformed_frames_in_a_row_close_the_connection() -> None:
    session = Session("alice")
    outcomes = [session.receive(b"nonsense") for _ in range(MALFORMED_FRAMES_MAX)]
    assert all(isinstance(outcome, Reply) for outcome in outcomes[:-1])
    last = outcomes[-1]
    assert isinstance(last, Close)
    assert last.code == 1008
    assert json.loads(last.frame)["error"]["code"] == "MALFORMED_COMMAND"


def test_binary_frames_count_as_malformed() -> None:
    session = Session("alice")
    outcomes = [session.receive_binary() for _ in range(MALFORMED_FRAMES_MAX)]
    assert isinstance(outcomes[0], Reply)
    assert isinstance(outcomes[-1], Close)


@pytest.mark.parametrize("between", [frame("ping"), frame("nothing"), frame("place_order", {})])
def test_an_understood_frame_forgives_the_malformed_ones(between: bytes) -> None:
    session = Session("alice")
    for _ in range(MALFORMED_FRAMES_MAX - 1):
        session.receive(b"nonsense")
    session.receive(between)
    assert isinstance(session.receive(b"nonsense"), Reply)


# ---- the documentation


def test_every_reject_code_is_documented_and_every_documented_one_exists() -> None:
    protocol = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"
    section = protocol.read_text("utf-8").split("## Reject codes")[1].split("\n## ")[0]
    assert set(re.findall(r"`([A-Z][A-Z0-9_]+)`", section)) == set(RejectCode)


# ---- anything at all

_texts = st.text('a1é"\\\n\0', max_size=5)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_methods = st.sampled_from(["place_order", "cancel_order", "get_book", "subscribe", "ping"])
_names = st.sampled_from(
    [*LIMIT_ORDER, "order_id", "valid_until_ms", "expire_time_ms", "channel", "symbols", "after"]
)
_envelopes = st.fixed_dictionaries(
    {"method": _methods | _json, "params": st.dictionaries(_names, _json) | _json},
    optional={"req_id": _json},
)


@given(st.binary(max_size=200) | _envelopes.map(lambda value: json.dumps(value).encode()))
def test_no_frame_breaks_the_session(data: bytes) -> None:
    session = Session("alice")
    outcome = session.receive(data)
    if isinstance(outcome, Reply):
        assert json.loads(outcome.frame)["success"] is False
    if isinstance(outcome, Command):
        command = json.loads(outcome.payload)
        assert command["account"] == "alice"
        assert "symbol" not in command
    assert isinstance(session.receive(frame("ping")), Ping)
