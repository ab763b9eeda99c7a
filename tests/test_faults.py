"""Every redis.call of every command made to fail in turn, and every failure Redis causes by itself.

The library under test is the real one behind a shim: its `redis.call` and `redis.pcall` go through
functions that note what is called and, once armed, let the Nth call fail. What must hold:

* A command reads, then writes: no read after the first write, and the first write is the entry in
  the stream, which is the only one that Redis may refuse.
* A call that fails up to and including that one leaves every key as it was.
* A later one fails only when a test makes it; the book is then half written, verify_book says so by
  name, and nothing trades on it any more.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from redis.exceptions import ResponseError

import clock
from books import Book, Json, assert_rejected, comparable, contents_of, decode, overwrite, words
from orderbook.engine import library
from processes import wait_until
from servers import Server, load_library, running

pytestmark = pytest.mark.exhaustive

SHIM = """
local fault = { at = 0, count = 0, log = {} }
local function server() return redis end
local function noted(...)
  fault.count = fault.count + 1
  fault.log[fault.count] = table.concat({ (select(1, ...)), tostring((select(2, ...))) }, " ")
  return fault.count == fault.at
end
local injected = "ERR injected fault"
local redis = {
  register_function = redis.register_function,
  call = function(...)
    if noted(...) then error({ err = injected }) end
    return server().call(...)
  end,
  pcall = function(...)
    -- What INFO tells is kept for a time: the calls of two equal runs differ in it.
    if (...) ~= "INFO" and noted(...) then return { err = injected } end
    return server().pcall(...)
  end,
  sha1hex = function(text) return server().sha1hex(text) end,
  error_reply = function(text) return server().error_reply(text) end,
  status_reply = function(text) return server().status_reply(text) end,
  log = function(...) return server().log(...) end,
  LOG_WARNING = 3,
  acl_check_cmd = function(...) return server().acl_check_cmd(...) end,
}
redis.register_function({
  function_name = "arm_fault",
  flags = { "no-writes", "allow-stale" },
  callback = function(_, arguments)
    fault.at, fault.count, fault.log = tonumber(arguments[1]), 0, {}
    return "OK"
  end,
})
redis.register_function({
  function_name = "calls_made",
  flags = { "no-writes", "allow-stale" },
  callback = function()
    return fault.log
  end,
})
"""

# Where a failure is meant to be survived: the discovery hash is a courtesy of a single server.
DISCOVERY_KEY = "orderbook:instruments"
QUERIES = (
    "get_book", "get_level3", "get_order", "get_open_orders", "get_trades", "get_instrument",
    "verify_book",
)  # fmt: skip

# What a command on timers alone writes first, in place of a stream.
TIMERS = "timers"
NOON_MS = 1_800_000_000_000

Run = Callable[[Book], Any]


@dataclass(frozen=True)
class Case:
    """A command on a book that is prepared for it; `stream` gets its first write. A timer alone is
    told to nobody: it is first counted in the book's own hash."""

    run: Run
    prepare: Run
    stream: str | None = "events"


@dataclass(frozen=True)
class Made:
    """One redis.call: its command, its first argument, whether the server calls it a write."""

    command: str
    key: str
    writes: bool


# ---- cases


def populate(book: Book) -> None:
    """Three accounts, two levels a side, partly filled orders, remembered replies."""
    book.define()
    for number, (account, side, price) in enumerate(
        [
            ("alice", "sell", "101"), ("bob", "sell", "101"), ("carol", "sell", "102"),
            ("alice", "buy", "99"), ("bob", "buy", "99"), ("carol", "buy", "98"),
        ]
    ):  # fmt: skip
        book.limit(account, side, "5", price, client_order_id=f"n{number}")
    book.limit("dave", "buy", "1", "101")
    book.limit("dave", "sell", "1", "99", client_order_id="d1")


def populate_at_noon(book: Book) -> None:
    clock.set_clock(book.client, NOON_MS)
    populate(book)


def nothing(book: Book) -> None:
    """A book that does not exist, at a time of its own: a new epoch is made of the time."""
    clock.set_clock(book.client, NOON_MS)


def due_to_expire(book: Book) -> None:
    """Two orders that a moment ago were good."""
    clock.set_clock(book.client, NOON_MS)
    populate(book)
    until = {"time_in_force": "gtd", "expire_time_ms": str(NOON_MS + 1000)}
    book.limit("erin", "buy", "5", "97", client_order_id="e0", **until)
    book.limit("alice", "sell", "5", "101", display_quantity="2", **until)
    clock.set_clock(book.client, NOON_MS + 1000)


def arm_timers(book: Book) -> None:
    """Timers of an account and of a session, which are about to run out."""
    clock.set_clock(book.client, NOON_MS)
    populate(book)
    book.ask("cancel_all_after", account="alice", timeout_ms="1000")
    book.ask("cancel_all_after", account="erin", session="s1", timeout_ms="1000")
    book.ask("cancel_all_after", account="zoe", timeout_ms="5000")
    book.limit("erin", "buy", "5", "97", client_order_id="e0", session="s1")
    book.limit("erin", "sell", "5", "103", display_quantity="2", session="s1")
    clock.set_clock(book.client, NOON_MS + 999)


def let_run_out(book: Book) -> None:
    arm_timers(book)
    clock.set_clock(book.client, NOON_MS + 1000)


def let_run_out_in_vain(book: Book) -> None:
    """A timer of an account without orders."""
    arm_timers(book)
    book.ask("cancel_all_orders", account="alice")
    book.ask("cancel_all_orders", account="erin")
    clock.set_clock(book.client, NOON_MS + 1000)


def hide_most(book: Book) -> None:
    """Icebergs among the others."""
    populate(book)
    book.limit("erin", "sell", "9", "101", display_quantity="2")
    book.limit("frank", "sell", "9", "101", display_quantity="4")


def let_wait(book: Book) -> None:
    """Stop orders of every kind around the last price of 101, which trade among themselves."""
    populate(book)
    book.limit("dave", "buy", "1", "101")
    for number, fields in enumerate(
        [
            {"side": "buy", "order_type": "stop", "stop_price": "102"},
            {"side": "buy", "order_type": "stop_limit", "stop_price": "102", "price": "99.5"},
            {"side": "sell", "order_type": "take_profit", "stop_price": "102"},
            {"side": "sell", "order_type": "trailing_stop", "trailing_offset": "1"},
            {"side": "sell", "order_type": "trailing_stop", "trailing_offset": "50%"},
        ]
    ):
        book.ask(
            "place_order", account="erin", quantity="2", client_order_id=f"s{number}", **fields
        )


def hang_together(book: Book) -> None:
    """An oco, and a bracket whose entry bob's next sale fills."""
    populate(book)
    for list_type, orders in (("oco", OCO), ("bracket", BRACKET)):
        book.ask("place_order_list", account="erin", list_type=list_type, orders=orders)


def hang_together_and_arm(book: Book) -> None:
    """The same with the pair of the bracket armed."""
    hang_together(book)
    book.limit("bob", "sell", "3", "100")


def hang_before_a_full_level(book: Book) -> None:
    """A bracket whose stop order cannot come in: the level that it would join is full."""
    populate(book)
    book.limit("alice", "sell", str(2**53 - 3), "104")
    orders = json.dumps(
        [
            {"side": "buy", "order_type": "limit", "price": "100", "quantity": "4"},
            {"side": "sell", "order_type": "limit", "price": "105"},
            {"side": "sell", "order_type": "stop_limit", "stop_price": "99", "price": "104"},
        ]
    )
    book.ask("place_order_list", account="erin", list_type="bracket", orders=orders)


def hold_auction(book: Book) -> None:
    """A crossed auction, an iceberg among its orders and a stop that waits for its price."""
    populate(book)
    book.ask("define_instrument", status="auction")
    book.limit("erin", "buy", "9", "102", display_quantity="2")
    book.limit("frank", "sell", "4", "98", client_order_id="f1")
    stop = {"side": "buy", "order_type": "stop_limit", "stop_price": "101.5", "price": "101"}
    book.ask("place_order", account="erin", quantity="2", **stop)


def break_soon(book: Book) -> None:
    """One percent off trips the breaker, which goes to auction for a second."""
    clock.set_clock(book.client, NOON_MS)
    populate(book)
    book.ask("define_instrument", limit_percent="1", breaker_status="auction")
    book.ask("define_instrument", breaker_duration_ms="1000")


def has_broken(book: Book) -> None:
    """The breaker has gone to auction, and the time is over."""
    break_soon(book)
    book.limit("zoe", "buy", "12", "103")
    book.limit("frank", "sell", "4", "98")
    clock.set_clock(book.client, NOON_MS + 1000)


def a_minute_later(book: Book) -> None:
    """The candle of the last trade is to be finished, and the longer ones after it."""
    clock.set_clock(book.client, NOON_MS)
    populate(book)
    clock.set_clock(book.client, NOON_MS + 60_000)
    book.limit("zoe", "sell", "1", "99")
    clock.set_clock(book.client, NOON_MS + 86_400_000)


def fill_reply_memory(book: Book) -> None:
    """The next remembered reply begins a new generation."""
    populate(book)
    key = f"{book.key}:stored_replies:erin"
    book.client.hset(key, mapping={f"old{n}": "content\nreply" for n in range(10_000)})


def ask(function: str, **fields: str) -> Run:
    return lambda book: comparable(book.ask(function, **fields))


def order(account: str, side: str, quantity: str, **fields: str) -> Run:
    order_type = "limit" if "price" in fields else "market"
    terms = {"account": account, "side": side, "quantity": quantity, "order_type": order_type}
    return ask("place_order", **{**terms, **fields})


QUOTES = (
    '[{"side":"buy","price":"98","quantity":"4","client_order_id":"bid"},'
    '{"side":"sell","price":"101","quantity":"2","client_order_id":"n0"},'
    '{"side":"sell","price":"103","quantity":"2","client_order_id":"ask"}]'
)


def quoted(book: Book) -> None:
    """An account with quotes besides its other orders."""
    populate(book)
    assert book.ask("mass_quote", account="alice", quotes=QUOTES)["placed"][2]["status"] == "open"


def replace(account: str, order_id: str, **fields: str) -> Run:
    """A limit order in place of another."""
    terms = {"account": account, "cancel_order_id": order_id, "order_type": "limit"}
    return ask("replace_order", **terms, **fields)


OTHER_SYMBOLS = ("FAULT2", "FAULT3")


def others(book: Book) -> list[Book]:
    return [Book(book.client, symbol) for symbol in OTHER_SYMBOLS]


def three_books(book: Book) -> None:
    """The account has orders in each, and in the last one nothing is to be canceled."""
    populate(book)
    second, third = others(book)
    populate(second)
    third.define()
    third.limit("bob", "sell", "5", "101")


def three_books_due_to_expire(book: Book) -> None:
    """In the last one something is due without the command."""
    due_to_expire(book)
    clock.set_clock(book.client, NOON_MS)
    second, third = others(book)
    populate(second)
    due_to_expire(third)


def cancel_in_several(book: Book) -> Json:
    keys = [book.key, *(other.key for other in others(book))]
    words = ("account", "alice", "side", "sell")
    reply = book.client.execute_command("FCALL", "cancel_all_orders", len(keys), *keys, *words)
    return comparable(decode(reply))


def batch(book: Book) -> list[Json]:
    buy: Json = {"method": "place_order", "account": "erin", "side": "buy", "order_type": "limit"}
    replies = book.execute(
        {**buy, "quantity": "7", "price": "101", "client_order_id": "e1"},
        {**buy, "quantity": "1", "price": "0"},
        {"method": "amend_order", "order_id": "4", "price": "97"},
        {"method": "cancel_order", "order_id": "6"},
        {"method": "cancel_all_orders", "account": "bob"},
    )
    return [comparable(reply) for reply in replies]


def arm_and_place(book: Book) -> list[Json]:
    replies = book.execute(
        {"method": "cancel_all_after", "account": "erin", "session": "s1", "timeout_ms": "5000"},
        {
            "method": "place_order", "account": "erin", "side": "buy", "order_type": "limit",
            "quantity": "7", "price": "101", "session": "s1",
        },
    )  # fmt: skip
    return [{**comparable(reply), "cancel_time_ms": 0} for reply in replies]


OCO = json.dumps(
    [
        {"side": "sell", "order_type": "limit", "price": "103", "quantity": "2"},
        {"side": "sell", "order_type": "stop", "stop_price": "98", "quantity": "2"},
    ]
)
BRACKET = json.dumps(
    [
        {"side": "buy", "order_type": "limit", "price": "100", "quantity": "4"},
        {"side": "sell", "order_type": "limit", "price": "104"},
        {"side": "sell", "order_type": "trailing_stop", "trailing_offset": "1"},
    ]
)

CASES: Mapping[str, Case] = {
    "define_instrument": Case(ask("define_instrument", tick_size="1", lot_size="1"), nothing),
    "redefine_instrument": Case(ask("define_instrument", status="halted"), populate),
    "begin_epoch": Case(ask("begin_epoch", run_id="a" * 40), populate_at_noon),
    "publish_book": Case(ask("publish_book"), populate, stream="book"),
    "place": Case(order("erin", "buy", "3", price="98.5"), populate),
    "place_with_id": Case(order("erin", "buy", "3", price="99", client_order_id="e1"), populate),
    "place_and_sweep": Case(
        order("erin", "buy", "12", price="102", client_order_id="e1"), populate
    ),
    "place_and_rest_after_trade": Case(order("erin", "buy", "12", price="101"), populate),
    "place_ioc": Case(order("erin", "sell", "20", price="99", time_in_force="ioc"), populate),
    "place_fok_in_vain": Case(
        order("erin", "sell", "20", price="99", time_in_force="fok"), populate
    ),
    "place_market": Case(order("erin", "sell", "3"), populate),
    "place_by_amount": Case(
        ask("place_order", account="erin", side="buy", order_type="market", quote_quantity="1100"),
        populate,
    ),
    "place_iceberg": Case(order("erin", "buy", "9", price="99", display_quantity="2"), populate),
    "place_through_icebergs": Case(order("zoe", "buy", "25", price="102"), hide_most),
    "place_and_cancel_maker": Case(
        order("alice", "buy", "12", price="102", self_trade_prevention="cancel_maker"), populate
    ),
    "place_and_decrement": Case(
        order("erin", "buy", "15", price="102", self_trade_prevention="decrement"), hide_most
    ),
    "validate": Case(
        order("erin", "buy", "12", price="102", validate_only="true"), populate, stream=None
    ),
    "place_and_expire": Case(order("erin", "buy", "12", price="101"), due_to_expire),
    "cancel_and_expire": Case(ask("cancel_order", order_id="1"), due_to_expire),
    "refuse_and_expire": Case(ask("cancel_order", order_id="77"), due_to_expire),
    "probe_book": Case(ask("probe_book"), populate, stream=None),
    "tick": Case(ask("tick"), populate, stream=None),
    "tick_and_expire": Case(ask("tick"), due_to_expire),
    "cancel_all_after": Case(
        ask("cancel_all_after", account="bob", timeout_ms="1000"), arm_timers, stream=TIMERS
    ),
    "cancel_all_after_of_session": Case(
        ask("cancel_all_after", account="erin", session="s2", timeout_ms="1000"),
        arm_timers,
        stream=TIMERS,
    ),
    "stop_timer": Case(
        ask("cancel_all_after", account="zoe", timeout_ms="0"), arm_timers, stream=TIMERS
    ),
    "arm_timer_and_fire": Case(
        ask("cancel_all_after", account="alice", timeout_ms="1000"), let_run_out
    ),
    "place_with_session": Case(
        order("erin", "buy", "12", price="102", session="s1", client_order_id="e1"), arm_timers
    ),
    "trade_with_session": Case(order("zoe", "sell", "20", price="97"), arm_timers),
    "cancel_all_of_session": Case(
        ask("cancel_all_orders", account="erin", session="s1"), arm_timers
    ),
    "tick_and_fire": Case(ask("tick"), let_run_out),
    "tick_and_fire_in_vain": Case(ask("tick"), let_run_out_in_vain, stream=TIMERS),
    "place_and_fire": Case(order("erin", "buy", "12", price="102"), let_run_out),
    "execute_arm_and_place": Case(arm_and_place, populate),
    "place_stop": Case(
        order("erin", "buy", "3", order_type="stop", stop_price="105", client_order_id="e1"),
        populate,
    ),
    "place_trailing_stop": Case(
        order("erin", "buy", "3", order_type="trailing_stop", trailing_offset="2%"), populate
    ),
    "place_and_trigger": Case(order("zoe", "buy", "14", price="102"), let_wait),
    "place_and_move_trailing": Case(order("zoe", "buy", "10", price="102"), let_wait),
    "amend_waiting": Case(ask("amend_order", order_id="10", stop_price="104"), let_wait),
    "amend_trailing": Case(ask("amend_order", order_id="13", quantity="1"), let_wait),
    "cancel_trailing": Case(ask("cancel_order", order_id="13"), let_wait),
    "cancel_all_waiting": Case(ask("cancel_all_orders", account="erin"), let_wait),
    "place_order_list": Case(
        ask("place_order_list", account="erin", list_type="oco", orders=OCO, client_order_id="e1"),
        populate,
    ),
    "place_and_arm": Case(order("bob", "sell", "3", price="100"), hang_together),
    "place_and_trigger_one_of_two": Case(order("bob", "sell", "20", price="98"), hang_together),
    "place_and_fill_one_of_two": Case(order("zoe", "buy", "18", price="103"), hang_together),
    "amend_one_of_two": Case(ask("amend_order", order_id="9", quantity="3"), hang_together),
    "decrement_one_of_two": Case(
        order(
            *("erin", "buy", "1"),
            price="103",
            self_trade_prevention="decrement",
            time_in_force="ioc",
        ),
        hang_together,
    ),
    "decrement_what_is_armed": Case(
        order(
            *("erin", "buy", "18"),
            price="104",
            self_trade_prevention="decrement",
            time_in_force="ioc",
        ),
        hang_together_and_arm,
    ),
    "place_and_trigger_in_vain": Case(
        order("bob", "sell", "5", price="99"), hang_before_a_full_level
    ),
    "replace_one_of_two": Case(
        replace("erin", "9", side="sell", price="104", quantity="1"), hang_together
    ),
    "cancel_one_of_two": Case(ask("cancel_order", order_id="9"), hang_together),
    "cancel_entry": Case(ask("cancel_order", order_id="11"), hang_together),
    "get_candles": Case(ask("get_candles", interval="5m"), populate, stream=None),
    "get_ticker": Case(ask("get_ticker"), populate, stream=None),
    "trade_in_a_later_minute": Case(order("erin", "buy", "12", price="102"), a_minute_later),
    "place_in_auction": Case(order("zoe", "buy", "3", price="103"), hold_auction),
    "amend_in_auction": Case(ask("amend_order", order_id="1", price="97"), hold_auction),
    "uncross": Case(ask("define_instrument", status="trading"), hold_auction),
    "get_auction": Case(ask("get_auction"), hold_auction, stream=None),
    "place_and_break": Case(order("zoe", "buy", "12", price="103"), break_soon),
    "tick_and_reopen": Case(ask("tick"), has_broken),
    "amend_iceberg": Case(ask("amend_order", order_id="9", quantity="1"), hide_most),
    "place_new_generation": Case(
        order("erin", "buy", "12", price="101", client_order_id="e1"), fill_reply_memory
    ),
    "amend_smaller": Case(ask("amend_order", order_id="1", remaining_quantity="1"), populate),
    "amend_larger": Case(
        ask("amend_order", account="alice", client_order_id="n0", quantity="9"), populate
    ),
    "amend_price": Case(ask("amend_order", order_id="6", price="99"), populate),
    "amend_and_trade": Case(
        ask("amend_order", order_id="6", price="102", account="carol", client_order_id="own"),
        populate,
    ),
    "cancel_side": Case(ask("cancel_all_orders", account="alice", side="buy"), populate),
    "replace": Case(
        replace("alice", "1", side="buy", price="102", quantity="12", client_order_id="r1"),
        populate,
    ),
    "replace_same_name": Case(
        replace("alice", "1", side="sell", price="103", quantity="1", client_order_id="n0"),
        populate,
    ),
    "replace_in_vain": Case(
        replace("alice", "1", side="sell", price="0", quantity="1"), populate, stream=None
    ),
    "replace_in_part": Case(
        replace("alice", "1", side="sell", price="0", quantity="1", on_failure="continue"),
        populate,
    ),
    "quote": Case(ask("mass_quote", account="alice", quotes=QUOTES), populate),
    "quote_again": Case(ask("mass_quote", account="alice", quotes=QUOTES), quoted),
    "quote_nothing": Case(ask("mass_quote", account="alice", quotes="[]"), quoted),
    "cancel_all_and_quotes": Case(ask("cancel_all_orders", account="alice"), quoted),
    "cancel_in_several": Case(cancel_in_several, three_books),
    "cancel_in_several_and_expire": Case(cancel_in_several, three_books_due_to_expire),
    "cancel": Case(ask("cancel_order", order_id="1"), populate),
    "cancel_by_name": Case(ask("cancel_order", account="carol", client_order_id="n2"), populate),
    "cancel_all": Case(ask("cancel_all_orders", account="alice"), populate),
    "execute": Case(batch, populate),
    "get_book": Case(ask("get_book"), populate, stream=None),
    "get_level3": Case(ask("get_level3"), populate, stream=None),
    "get_order": Case(ask("get_order", order_id="1"), populate, stream=None),
    "get_open_orders": Case(ask("get_open_orders", account="alice"), populate, stream=None),
    "get_trades": Case(ask("get_trades"), populate, stream=None),
    "get_closed_orders": Case(ask("get_closed_orders", account="alice"), populate, stream=None),
    "get_own_trades": Case(ask("get_own_trades", account="alice"), populate, stream=None),
    "get_stp_group": Case(ask("get_stp_group", account="alice"), populate, stream=None),
    "get_instrument": Case(ask("get_instrument"), populate, stream=None),
    "verify_book": Case(lambda book: book.ask("verify_book")["verified"], populate, stream=None),
}

WRITE_FUNCTIONS: Mapping[str, Run] = {
    "place_order": order("zoe", "buy", "1", price="50"),
    "define_instrument": ask("define_instrument", status="halted"),
    "begin_epoch": ask("begin_epoch", run_id="f" * 40),
    "place_order_list": ask("place_order_list", account="zoe", list_type="oco", orders=OCO),
    "cancel_order": ask("cancel_order", order_id="2"),
    "amend_order": ask("amend_order", order_id="2", quantity="1"),
    "cancel_all_orders": ask("cancel_all_orders", account="bob"),
    "replace_order": replace("bob", "2", side="sell", price="104", quantity="1"),
    "mass_quote": ask("mass_quote", account="bob", quotes=QUOTES),
    "cancel_all_after": ask("cancel_all_after", account="bob", timeout_ms="1000"),
    "execute": lambda book: book.execute({"method": "cancel_all_orders", "account": "bob"}),
}


# ---- running them


@pytest.fixture(scope="module")
def shimmed(engine: str) -> Iterator[Any]:
    """A client of a server of its own whose library runs behind the shim."""
    if engine == "fakeredis":
        pytest.skip("fakeredis keeps no upvalues between calls, which the shim counts in")
    with running(engine, {"enable-debug-command": "yes"}) as server:
        shebang, _, rest = library.bundle().text.partition("\n")
        text = clock.shimmed(f"{shebang}\n{SHIM}{rest}")
        server.client.execute_command("FUNCTION", "LOAD", text)
        # The first call of a server's life asks INFO which server it is, once.
        Book(server.client, "FIRST").define()
        yield server.client


@pytest.fixture
def prepared(shimmed: Any) -> Callable[[Case], Book]:
    """Makes the same prepared book each time: all keys are flushed before."""

    def prepare(case: Case) -> Book:
        arm(shimmed, 0)
        shimmed.flushall()
        book = Book(shimmed, "FAULT")
        case.prepare(book)
        return book

    return prepare


def arm(client: Any, at: int) -> None:
    client.execute_command("FCALL_RO", "arm_fault", 0, at)


def calls_made(client: Any) -> list[Made]:
    made = []
    for line in client.execute_command("FCALL_RO", "calls_made", 0):
        command, _, key = line.decode().partition(" ")
        made.append(Made(command.upper(), key, is_write(client, command)))
    return made


@functools.cache
def is_write(client: Any, command: str) -> bool:
    (info,) = client.execute_command("COMMAND", "INFO", command).values()
    return "write" in info["flags"]


def run_recorded(book: Book, case: Case) -> tuple[Any, list[Made]]:
    """A run without a fault."""
    arm(book.client, 0)
    reply = case.run(book)
    return reply, calls_made(book.client)


def everything(client: Any) -> dict[bytes, Any]:
    return contents_of(client, client.keys("*"))


@pytest.mark.parametrize("name", CASES)
def test_reads_come_before_writes_and_the_stream_entry_first(
    prepared: Callable[[Case], Book], name: str
) -> None:
    case = CASES[name]
    book = prepared(case)
    _, made = run_recorded(book, case)
    book_writes = [call.writes for call in made if call.key != DISCOVERY_KEY]
    assert book_writes == sorted(book_writes), f"a read follows a write: {made}"
    if case.stream is None:
        assert not any(book_writes)
        return
    first = next(call for call in made if call.writes)
    if case.stream == TIMERS:
        assert (first.command, first.key) == ("HSET", book.key)
        return
    assert (first.command, first.key) == ("XADD", book.stream_key(case.stream))


@pytest.mark.parametrize("name", CASES)
def test_call_that_fails_before_the_stream_entry_changes_nothing(
    prepared: Callable[[Case], Book], name: str
) -> None:
    case = CASES[name]
    expected, made = run_recorded(prepared(case), case)
    last = next((i for i, call in enumerate(made) if call.writes), len(made) - 1)
    for at in range(1, last + 2):
        book = prepared(case)
        before = everything(book.client)
        arm(book.client, at)
        if made[at - 1].key == DISCOVERY_KEY:
            assert case.run(book) == expected
            continue
        with pytest.raises(ResponseError):
            case.run(book)
        arm(book.client, 0)
        assert everything(book.client) == before, made[at - 1]
        assert case.run(book) == expected, f"after {made[at - 1]} had failed"
        book.state_hash()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].stream == "events"])
def test_half_written_command_is_named_and_nothing_trades_on(
    prepared: Callable[[Case], Book], name: str
) -> None:
    case = CASES[name]
    expected, made = run_recorded(prepared(case), case)
    first = next(i for i, call in enumerate(made) if call.writes)
    for at in range(first + 2, len(made) + 1):
        book = prepared(case)
        arm(book.client, at)
        if made[at - 1].key == DISCOVERY_KEY:
            assert case.run(book) == expected
            continue
        with pytest.raises(ResponseError):
            case.run(book)
        arm(book.client, 0)
        if case.prepare is nothing:
            # There is no book yet, and so nothing to verify or trade on.
            continue
        if case.run is cancel_in_several:
            check_refuses_where_half_written(book, made[at - 1])
            continue
        assert book.violations(), f"{made[at - 1]} had failed"
        check_refuses_everything(book)


def check_refuses_where_half_written(first: Book, failed: Made) -> None:
    """Of several books those before the failure are whole, the one of the failure is named and
    stands still, and those behind it have seen nothing."""
    books = [first, *others(first)]
    verdicts = [book.read("verify_book")["verified"] for book in books]
    failed_at = max(n for n, book in enumerate(books) if failed.key.startswith(book.key))
    expected = [n != failed_at or failed.command == "XADD" for n in range(len(books))]
    assert verdicts == expected, failed
    if not all(verdicts):
        check_refuses_everything(books[failed_at])


def check_refuses_everything(book: Book) -> None:
    """A placement is refused as DAMAGED; so are others, where they would change anything."""
    before = everything(book.client)
    with pytest.raises(ResponseError, match="DAMAGED"):
        book.limit("zoe", "buy", "1", "50")
    for function, run in WRITE_FUNCTIONS.items():
        try:
            run(book)
        except ResponseError as error:
            assert "DAMAGED" in str(error), function  # noqa: PT017
        assert everything(book.client) == before, function


def test_half_written_publication_is_made_up_for_later(
    prepared: Callable[[Case], Book],
) -> None:
    case = CASES["publish_book"]
    _, made = run_recorded(prepared(case), case)
    first = next(i for i, call in enumerate(made) if call.writes)
    for at in range(first + 2, len(made) + 1):
        book = prepared(case)
        arm(book.client, at)
        with pytest.raises(ResponseError):
            case.run(book)
        arm(book.client, 0)
        # The published book is a copy: the book itself is unharmed, and trades on.
        book.state_hash()
        assert book.limit("zoe", "buy", "1", "50")["status"] == "open"


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].stream == TIMERS])
def test_half_written_timer_is_named_and_the_book_trades_on(
    prepared: Callable[[Case], Book], name: str
) -> None:
    case = CASES[name]
    _, made = run_recorded(prepared(case), case)
    first = next(i for i, call in enumerate(made) if call.writes)
    for at in range(first + 2, len(made) + 1):
        book = prepared(case)
        arm(book.client, at)
        with pytest.raises(ResponseError):
            case.run(book)
        arm(book.client, 0)
        assert book.violations() == ["TIMERS_MISMATCH"]
        assert book.limit("zoe", "buy", "1", "50")["status"] == "open"


def test_every_registered_function_is_covered(shimmed: Any) -> None:
    arm(shimmed, 0)
    (listed,) = shimmed.execute_command("FUNCTION", "LIST")
    entries = dict(zip(listed[::2], listed[1::2], strict=True))
    names = {dict(zip(f[::2], f[1::2], strict=True))[b"name"] for f in entries[b"functions"]}
    commands = {"place_order", "amend_order", "cancel_order", "cancel_all_orders"}
    commands |= {"replace_order", "mass_quote"}
    # One write, to a key that is no book's: nothing can be half done.
    commands.add("set_stp_group")
    covered = {*commands, *CASES, "library_version", "arm_fault", "calls_made"}
    assert {name.decode() for name in names} <= covered


# ---- what Redis does by itself


@pytest.fixture
def own_server(engine: str) -> Iterator[Server]:
    """A server for one test, which may ruin it."""
    if engine == "fakeredis":
        pytest.skip("fakeredis has neither memory limits nor replicas nor saves")
    # Without this a primary waits seconds for more replicas to come.
    with running(engine, {"repl-diskless-sync-delay": "0"}) as server:
        load_library(server.client, engine)
        yield server


def refused_whole(book: Book, error: str) -> None:
    """A placement is refused with this error, and not a byte has changed."""
    before = book.contents()
    with pytest.raises(ResponseError, match=error):
        book.limit("erin", "buy", "12", "102", client_order_id="e1")
    with pytest.raises(ResponseError, match=error):
        batch(book)
    assert book.contents() == before
    book.state_hash()


def test_full_memory_refuses_what_adds_risk_and_runs_what_takes_it_off(
    own_server: Server,
) -> None:
    book = Book(own_server.client, "RISK")
    book.define()
    book.limit("alice", "buy", "5", "100", client_order_id="a1")
    stop = {"order_type": "stop", "side": "buy", "stop_price": "200", "quantity": "5"}
    waiting = book.ask("place_order", account="alice", **stop)["order_id"]
    spare = book.limit("alice", "buy", "5", "98")["order_id"]
    quote = '[{"side":"buy","price":"90","quantity":"1"}]'
    book.ask("mass_quote", account="alice", quotes=quote)
    own_server.client.config_set("maxmemory-policy", "noeviction")
    own_server.client.config_set("maxmemory", "1")
    # The library looks again after 100 ms.
    time.sleep(0.15)
    named = {"account": "alice", "client_order_id": "a1"}
    for function, fields in (
        ("amend_order", {**named, "quantity": "6"}),
        ("amend_order", {**named, "price": "99"}),
        ("amend_order", {**named, "price": "101", "quantity": "4"}),
        ("amend_order", {"order_id": waiting, "stop_price": "190", "quantity": "4"}),
        ("mass_quote", {"account": "alice", "quotes": quote}),
    ):
        before = book.contents()
        assert_rejected(book.ask(function, **fields), "OUT_OF_MEMORY")
        assert book.contents() == before
    assert book.ask("amend_order", **named, quantity="4")["remaining_quantity"] == "4"
    assert book.ask("amend_order", order_id=waiting, quantity="4")["remaining_quantity"] == "4"
    assert (
        book.ask("amend_order", order_id=spare, price="101", quantity="0")["status"] == "canceled"
    )
    assert len(book.ask("mass_quote", account="alice", quotes="[]")["canceled_order_ids"]) == 1
    timer = book.ask("cancel_all_after", account="alice", timeout_ms="5000")
    assert timer["timeout_ms"] == 5000
    assert book.ask("cancel_all_orders", account="alice")["canceled_count"] == 2
    own_server.client.config_set("maxmemory", "0")
    time.sleep(0.15)
    assert book.ask("mass_quote", account="alice", quotes=quote)["placed"][0]["status"] == "open"
    book.state_hash()


def test_full_memory_refuses_orders_but_not_cancels(own_server: Server) -> None:
    book = Book(own_server.client, "FULL")
    populate(book)
    own_server.client.config_set("maxmemory-policy", "noeviction")
    own_server.client.config_set("maxmemory", "1")
    refused_whole(book, "OOM|command not allowed when used memory")
    assert book.ask("cancel_order", order_id="1")["status"] == "canceled"
    assert book.ask("cancel_all_orders", account="bob")["canceled_count"] == 2
    book.state_hash()
    own_server.client.config_set("maxmemory", "0")
    assert book.limit("erin", "buy", "1", "102")["status"] == "filled"
    book.state_hash()


def test_replica_refuses_commands_and_answers_queries(own_server: Server, engine: str) -> None:
    book = Book(own_server.client, "REPLICATED")
    populate(book)
    with running(engine, {"replicaof": f"127.0.0.1 {own_server.port}"}) as replica:
        client = replica.client
        wait_until(
            lambda: client.info("replication")["master_link_status"] == "up", "the link is up"
        )
        own_server.client.wait(1, 5000)
        copy = Book(client, book.symbol)
        refused_whole(copy, "READONLY|read only replica|read-only replica")
        assert copy.state_hash() == book.state_hash()
        assert copy.read("get_book") == book.read("get_book")


def test_promoted_replica_goes_on_where_the_primary_ended(own_server: Server, engine: str) -> None:
    book = Book(own_server.client, "PROMOTED")
    populate(book)
    book.ask("begin_epoch", run_id=own_server.client.info("server")["run_id"])
    with running(engine, {"replicaof": f"127.0.0.1 {own_server.port}"}) as replica:
        client = replica.client
        wait_until(
            lambda: client.info("replication")["master_link_status"] == "up", "the link is up"
        )
        own_server.client.wait(1, 5000)
        client.execute_command("REPLICAOF", "NO", "ONE")
        copy = Book(client, book.symbol)
        before = copy.read("get_instrument")
        reply = copy.ask("begin_epoch", run_id=client.info("server")["run_id"])
        assert reply["epoch"] > before["epoch"]
        assert reply["sequence"] == before["sequence"] + 1
        # What was placed on the old primary is remembered by the new one.
        first = book.raw("place_order", *words(_REMEMBERED))
        assert copy.raw("place_order", *words(_REMEMBERED)) == first
        copy.state_hash()


_REMEMBERED = {
    "account": "alice", "side": "sell", "order_type": "limit", "quantity": "5", "price": "101",
    "client_order_id": "n0",
}  # fmt: skip


def test_failed_save_refuses_orders_whole(own_server: Server) -> None:
    client = own_server.client
    book = Book(client, "UNSAVED")
    populate(book)
    # The name of the dump is taken by a directory, so that no dump can take it.
    (own_server.directory / "dump.rdb" / "in the way").mkdir(parents=True)
    client.config_set("stop-writes-on-bgsave-error", "yes")
    client.config_set("save", "3600 1000000")
    client.execute_command("BGSAVE")
    wait_until(
        lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "the save failed"
    )
    refused_whole(book, "MISCONF|unable to persist|configured to save")
    client.config_set("save", "")
    assert book.limit("erin", "buy", "1", "102")["status"] == "filled"


def test_stream_id_in_use_refuses_commands_whole(book: Book, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis breaks where a key has another type, or a stream id is taken")
    for price in ("100", "101"):
        book.limit("bob", "sell", "5", price)
    taken = book.sequence() + 1
    book.client.xadd(book.stream_key("events"), {"by": "hand"}, id=f"{taken}-0")
    before = book.contents()
    for run in WRITE_FUNCTIONS.values():
        with pytest.raises(ResponseError, match="DAMAGED"):
            run(book)
        assert book.contents() == before
    assert book.violations()


def test_id_in_use_in_the_trades_stream_refuses_trades_whole(book: Book) -> None:
    book.limit("alice", "sell", "1", "100")
    book.client.xadd(book.stream_key("trades"), {"by": "hand"}, id=f"{book.sequence() + 100}-0")
    before = book.contents()
    with pytest.raises(ResponseError):
        book.limit("bob", "buy", "1", "100")
    assert book.contents() == before


@pytest.mark.parametrize("key", ["bids", "asks", "orders", "events", "trades", "client_orders"])
def test_key_of_another_type_stops_the_book(book: Book, engine: str, key: str) -> None:
    """Put there by hand, it is all that may leave half a command, and it does not go unseen."""
    if engine == "fakeredis":
        pytest.skip("fakeredis breaks where a key has another type, or a stream id is taken")
    book.client.set(f"{book.key}:{key}", "by hand")
    before = book.contents()
    for _ in range(2):
        with pytest.raises(ResponseError):
            book.execute(
                *(
                    {
                        "method": "place_order", "account": "alice", "side": side,
                        "price": price, "order_type": "limit", "quantity": "2",
                        "client_order_id": f"{side}{price}",
                    }
                    for side, price in (("buy", "99"), ("sell", "101"), ("buy", "101"))
                )
            )  # fmt: skip
    if book.contents() != before:
        assert book.violations()


def test_damage_done_by_hand_is_named(book: Book) -> None:
    book.limit("alice", "sell", "2", "100", client_order_id="a1")
    book.limit("bob", "buy", "2", "99")
    quotes = '[{"side":"buy","price":"98","quantity":"1"}]'
    book.ask("mass_quote", account="carol", quotes=quotes)
    client = book.client
    damages: Mapping[str, Callable[[], Any]] = {
        "LEVEL_QUANTITY_MISMATCH": lambda: client.hset(f"{book.key}:asks:levels", "10000", "3"),
        "MISSING_LEVEL": lambda: client.delete(f"{book.key}:asks:levels"),
        "ORPHAN_LEVEL": lambda: client.hset(f"{book.key}:bids:levels", "7", "3"),
        "ORPHAN_ORDER": lambda: client.delete(f"{book.key}:asks"),
        "ORPHAN_QUEUE_MEMBER": lambda: client.hdel(f"{book.key}:orders", "1"),
        "ACCOUNT_INDEX_MISMATCH": lambda: client.delete(f"{book.key}:orders:alice"),
        "QUOTE_INDEX_MISMATCH": lambda: client.sadd(f"{book.key}:quotes:carol", "77"),
        "CLIENT_INDEX_MISMATCH": lambda: client.delete(f"{book.key}:client_orders"),
        "OPEN_ORDERS_MISMATCH": lambda: overwrite(client, book.key, open_orders="5"),
        "COUNTER_BEHIND": lambda: overwrite(client, book.key, last_order_id="1"),
        "LOST_EVENTS": lambda: overwrite(client, book.key, sequence="77"),
        "HALF_WRITTEN_COMMAND": lambda: client.xadd(f"{book.key}:events", {"a": "b"}, id="78-0"),
    }
    saved = {key: client.dump(key) for key in book.stored_keys()}
    for name, damage in damages.items():
        damage()
        assert name in book.violations()
        for key in book.stored_keys():
            client.delete(key)
        for key, dumped in saved.items():
            client.restore(key, 0, dumped)
        assert decode(book.raw("verify_book"))["verified"] is True


@pytest.mark.parametrize(
    "key", ["bids", "asks", "bids:levels", "asks:levels", "orders", "events", "trades"]
)
def test_a_key_that_is_gone_is_named(book: Book, key: str) -> None:
    """As a server leaves it whose maxmemory-policy evicts."""
    book.limit("alice", "sell", "2", "100")
    book.limit("bob", "buy", "1", "100")
    book.limit("bob", "buy", "2", "99")
    book.client.delete(f"{book.key}:{key}")
    found = decode(book.raw("verify_book"))["violations"]
    missing = [violation for violation in found if violation["name"] == "MISSING_KEY"]
    assert [violation["detail"] for violation in missing] == [
        f"the key {book.key}:{key} is missing"
    ]


@pytest.mark.parametrize("key", ["bids", "asks", "orders", "events"])
def test_a_tick_tells_of_a_key_that_is_gone(book: Book, key: str) -> None:
    book.limit("alice", "sell", "2", "100")
    book.limit("bob", "buy", "2", "99")
    assert book.ask("tick")["pending"] is False
    book.client.delete(f"{book.key}:{key}")
    with pytest.raises(ResponseError, match="DAMAGED"):
        book.ask("tick")
