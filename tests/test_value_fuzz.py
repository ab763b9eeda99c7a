"""Values where they do not belong: each field of each function with every other field's forms.

Whatever is sent, each call is answered by valid JSON and known codes, no error of the library among
them, and the book verifies. `make fuzz CALLS=1000000` runs that many calls; a plain test run makes
a few thousand. ORDERBOOK_FUZZ_SEED chooses others.
"""

import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from books import Book, Json
from conftest import documented_codes
from servers import Server

pytestmark = pytest.mark.exhaustive

DISCOVERY_KEY = "orderbook:instruments"

CALLS = int(os.environ.get("ORDERBOOK_FUZZ_CALLS", "4000"))
SEED = int(os.environ.get("ORDERBOOK_FUZZ_SEED", "1"))
CALLS_PER_BOOK = 4_000
CALLS_PER_PIPELINE = 100
PROGRESS_EVERY = 20_000
BATCH_MAX = 4
# How many of a run's errors are told.
TOLD_MAX = 5

# Forms that some field has, near misses of them, and what belongs nowhere.
TEXTS = (
    *("5%", "95%", "%", "5%5", "%5", "0.5%", "50%", "51%", "-5%", "100%", "1e2%"),
    *("-", "--", "0", "1", "2", "10", "100", "100.5", "100.001", "0.01", "0.1", "0.0", "00", "01"),
    *("1.", ".5", "1..2", "-1", "+1", "1e5", "1e309", "0x10", " 1", "1 ", "nan", "inf", "1,000"),
    *("9007199254740991", "9007199254740992", "9007199254740993", "90071992547409.91", "9" * 40),
    *("9" * 41, "0." + "0" * 38 + "1", "1795398228953", "9999999999999", "4102444800000"),
    *("true", "false", "null", "none", "", " ", "*", "full", "all", "1m", "1d", "main"),
    *("limit", "market", "stop", "trailing_stop", "buy", "sell", "gtc", "ioc", "fok", "gtd"),
    *("oco", "oto", "bracket", "cancel_maker", "decrement", "trading", "halted", "auction"),
    *("cancel_only", "post_only", "continue", "alice", "bob", "s1", "a1", "alice a1", "a,b", "a=b"),
    *("waits=rising", "price=5", "a:b", "a/b", "a{b}", "a\nb", "a\x00b", "\x00", "\x1f", "\x7f"),
    *("ä", "١", "１", "½", "😀", '"', "\\", "\\u0031", "'", "{}", "[]", "[{}]", '{"a":1}', "[1,2]"),
    *('[{"side":"buy","price":"5%","quantity":"1"}]', "[[[[[[[[", "%s", "%d", "%.0f", "a" * 64),
    *("a" * 65, "x" * 20_000, "1" * 20_000, "[" * 20_000),
)  # fmt: skip
# What JSON can say besides.
OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 100, 1.5, 1e300, 2**53 - 1, 2**53, 2**70),
    *([], {}, [[]], [{}], ["5%"], {"5%": "5%"}, [None], [1, "a"]),
)  # fmt: skip

_order = {"account": "alice", "side": "buy", "order_type": "limit", "quantity": "3"}
_few = {"self_trade_prevention": "cancel_maker", "stp_group": "g1", "session": "s1"}
_stop = {**_order, "order_type": "stop", "stop_price": "103"}
_leg = {"side": "sell", "order_type": "limit", "price": "105", "quantity": "3"}
_stop_leg = {"side": "sell", "order_type": "stop", "stop_price": "95", "quantity": "3"}
_entry = {"side": "buy", "order_type": "limit", "price": "100", "quantity": "3"}
_armed = [
    {"side": "sell", "order_type": "limit", "price": "105"},
    {"side": "sell", "order_type": "stop", "stop_price": "95", "protection": "5"},
]
_quote = {"side": "buy", "price": "99", "quantity": "5", "client_order_id": "q1"}
_quotes = [_quote, _quote | {"side": "sell", "client_order_id": "q2"}]
_rules = {
    "tick_size": "0.01", "lot_size": "1", "min_quantity": "1", "max_quantity": "1000000",
    "status": "trading", "self_trade_prevention": "none", "protection": "0", "price_band": "0",
    "min_notional": "0", "open_orders_max": "0", "iceberg_parts_max": "1000",
    "limit_percent": "0", "window_ms": "60000", "breaker_status": "halted",
    "breaker_duration_ms": "0", "events_length_max": "100000", "trades_length_max": "1000",
    "book_length_max": "1000",
}  # fmt: skip
_replaced = {"cancel_order_id": "1", "on_failure": "continue", "client_order_id": "n1"}
_place_orders: tuple[Json, ...] = (
    _order | _few | {"price": "100", "client_order_id": "a1", "valid_until_ms": "4102444800000"},
    _order | {"price": "100", "side": "sell", "time_in_force": "gtd", "display_quantity": "1"}
    | {"expire_time_ms": "4102444800000", "post_only": "false", "validate_only": "false"},
    _order | {"order_type": "market", "protection": "5"},
    {**_order, "order_type": "market", "quantity": "", "quote_quantity": "500"},
    _stop | {"time_in_force": "ioc", "protection": "2.5"},
    _stop | {"order_type": "take_profit", "side": "sell"},
    _stop | {"order_type": "stop_limit", "price": "104"},
    _order | {"order_type": "trailing_stop", "trailing_offset": "2.5%", "protection": "1"},
    _order | {"order_type": "trailing_stop", "trailing_offset": "1", "side": "sell"},
)  # fmt: skip
del _place_orders[3]["quantity"]

# A good call of each kind; `orders` and `quotes` stand for the text of such JSON.
COMMANDS: tuple[tuple[str, Json], ...] = (
    *(("place_order", command) for command in _place_orders),
    ("place_order_list", {"account": "alice", "list_type": "oco", "orders": [_leg, _stop_leg]}),
    ("place_order_list", {"account": "bob", "list_type": "oto", "orders": [_entry, _stop_leg]}),
    ("place_order_list", {"account": "bob", "list_type": "bracket", "orders": [_entry, *_armed]}),
    ("cancel_order", {"account": "alice", "client_order_id": "c1", "order_id": "1"}),
    ("cancel_order", {"account": "alice", "client_order_id": "a1"}),
    ("amend_order", {"account": "alice", "client_order_id": "a1", "price": "99", "quantity": "4"}),
    ("amend_order", {"order_id": "5", "remaining_quantity": "2"}),
    ("amend_order", {"order_id": "5", "stop_price": "104"}),
    ("replace_order", _order | _replaced | {"price": "101"}),
    ("mass_quote", {"account": "mm", "quotes": _quotes, "session": "s"}),
    ("cancel_all_orders", {"account": "bob", "side": "buy", "session": "s1"}),
    ("cancel_all_after", {"account": "alice", "session": "s1", "timeout_ms": "60000"}),
)  # fmt: skip
OTHER_CALLS: tuple[tuple[str, Json], ...] = (
    ("define_instrument", _rules),
    ("begin_epoch", {"run_id": "abc"}),
    ("set_stp_group", {"account": "alice", "stp_group": "g1"}),
    ("get_stp_group", {"account": "alice"}),
    ("get_book", {"depth": "10"}),
    ("get_level3", {"depth": "full"}),
    ("get_order", {"account": "alice", "client_order_id": "a1", "order_id": "1"}),
    ("get_open_orders", {"account": "alice", "after": "1", "limit": "10"}),
    ("get_trades", {"limit": "10"}),
    ("get_candles", {"interval": "1m", "limit": "10", "before": "1795398228953"}),
    ("get_closed_orders", {"account": "alice", "before": "100", "limit": "10"}),
    ("get_own_trades", {"account": "alice", "before": "100", "limit": "10"}),
    *((name, {}) for name in ("get_ticker", "get_auction", "get_instrument", "verify_book")),
    *((name, {}) for name in ("publish_book", "tick")),
)  # fmt: skip
# Given to every call besides: most do not take them.
FURTHER_FIELDS = ("price", "stop_price", "trailing_offset", "quantity", "account", "nonsense")
PRICES = ("95", "97.5", "99", "100", "100.01", "101", "103", "105")

# ---- making calls

# Where a value stands in a command: a name, or `orders`, a place there and a name.
Path = tuple[str | int, ...]
Call = tuple[str, list[str | bytes]]


def paths_of(command: Any, path: Path = ()) -> Iterator[Path]:
    """Every place of a command where a value stands, those in its lists too."""
    members = command.items() if isinstance(command, dict) else enumerate(command)
    for name, value in members:
        yield (*path, name)
        if isinstance(value, (dict, list)):
            yield from paths_of(value, (*path, name))


def put(command: Any, path: Path, value: Any) -> Any:
    """A copy with another value there."""
    copied = command.copy()
    name = path[0]
    copied[name] = put(command[name], path[1:], value) if len(path) > 1 else value
    return copied


def grid() -> Iterator[tuple[str, Json]]:
    """Each value of each good call replaced by each form."""
    for function, command in (*COMMANDS, *OTHER_CALLS):
        names = {(name,) for name in FURTHER_FIELDS}
        for path in dict.fromkeys([*paths_of(command), *sorted(names)]):
            for value in (*TEXTS, *OTHERS):
                yield function, put(command, path, value)


def with_chances(dice: random.Random) -> tuple[str, Json]:
    """A good call with prices of the day, and up to three values from anywhere."""
    function, command = dice.choice((*COMMANDS, *COMMANDS, *OTHER_CALLS))
    for path in list(paths_of(command)):
        if path[-1] in {"price", "stop_price"}:
            command = put(command, path, dice.choice(PRICES))
        elif path[-1] in {"order_id", "cancel_order_id"}:
            command = put(command, path, str(dice.randint(1, 300)))
        elif path[-1] == "client_order_id" and dice.random() < 0.8:
            command = put(command, path, f"c{dice.randint(1, 1000)}")
        elif path[-1] == "side":
            command = put(command, path, dice.choice(("buy", "sell")))
    for _ in range(dice.choice((0, 0, 1, 1, 2, 3))):
        path = dice.choice([*paths_of(command), *((name,) for name in FURTHER_FIELDS)])
        command = put(command, path, dice.choice(TEXTS if dice.random() < 0.8 else OTHERS))
    return function, command


def plain_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_call(function: str, command: Json) -> Call:
    """By FCALL: every value is text."""
    words = [(str(name), plain_text(value)) for name, value in command.items()]
    return function, [word for pair in words for word in pair]


def as_json(function: str, command: Json) -> str:
    """For execute: `orders` and `quotes` are text there, too."""
    texts = {n: plain_text(v) if n in {"orders", "quotes"} else v for n, v in command.items()}
    return json.dumps({"method": function, **texts}, ensure_ascii=False)


def calls(dice: random.Random) -> Iterator[Call]:
    """Without end: what the grid has in an order of chance, and calls by chance between."""
    every = list(grid())
    dice.shuffle(every)
    methods = {name for name, _ in COMMANDS}
    for systematic in itertools.cycle(every):
        for function, command in (systematic, with_chances(dice)):
            if function in methods and dice.random() < 0.5:
                others = [c for c in (with_chances(dice) for _ in range(3)) if c[0] in methods]
                batch = [(function, command), *others[: dice.randint(0, BATCH_MAX - 1)]]
                yield "execute", [as_json(*one) for one in batch]
            else:
                yield as_call(function, command)


# ---- running them


class Fuzz:
    """Sends calls and notes what should not have come."""

    def __init__(self, client: Any, seed: int) -> None:
        self._client = client
        self._seed = seed
        self._calls = calls(random.Random(seed))
        self._books = itertools.count(1)
        self._codes = documented_codes() - {"INTERNAL_ERROR"}
        self.count = 0
        self.errors: list[str] = []
        # How often a call was taken: without that nothing would be tested.
        self.taken = 0

    def run(self, count_max: int) -> None:
        told, started = 0, time.monotonic()
        while self.count < count_max:
            self._run_book(min(CALLS_PER_BOOK, count_max - self.count))
            if self.count - told >= PROGRESS_EVERY:
                told = self.count
                print(f"{self} seconds={time.monotonic() - started:.0f}", flush=True)
        print(self, flush=True)

    def __str__(self) -> str:
        return f"calls={self.count} unexpected_errors={len(self.errors)}"

    def _run_book(self, count: int) -> None:
        """A book of its own for so many calls, or until it does not verify."""
        book = Book(self._client, f"FUZZ{next(self._books)}")
        is_whole = True
        for done in range(0, count, CALLS_PER_PIPELINE):
            is_whole = is_whole and self._run_some(book, min(CALLS_PER_PIPELINE, count - done))
        self._client.delete(*book.stored_keys())
        # A host of another test would wait for a book that is listed and gone.
        self._client.hdel(DISCOVERY_KEY, book.symbol)

    def _run_some(self, book: Book, count: int) -> bool:
        """Whether the book verifies after so many calls, sent together."""
        book.define(**_rules)
        self._client.execute_command(
            *("FCALL", "cancel_all_after", 1, book.key, "account", "alice"),
            *("session", "s1", "timeout_ms", "60000"),
        )
        some = list(itertools.islice(self._calls, count))
        pipeline = self._client.pipeline(transaction=False)
        for function, words in some:
            pipeline.execute_command("FCALL", function, 1, book.key, *words)
        for call, reply in zip(some, pipeline.execute(raise_on_error=False), strict=True):
            self._check(call, reply)
        self.count += count
        verified = book.read("verify_book")
        if verified["verified"] is not True:
            self.errors.append(f"after {self.count} calls with seed {self._seed}: {verified}")
        return verified["verified"] is True

    def _check(self, call: Call, reply: Any) -> None:
        texts = reply if isinstance(reply, list) else [reply]
        try:
            if isinstance(reply, Exception):
                raise reply
            for text in texts:
                self._check_json(json.loads(text.decode("utf-8")))
        except (ResponseError, ValueError, AssertionError) as error:
            self.errors.append(f"{str(call)[:2000]} → {error}")

    def _check_json(self, reply: Json) -> None:
        codes = set(found_codes(reply))
        assert codes <= self._codes, codes
        self.taken += not codes


def found_codes(reply: Any) -> Iterator[str]:
    """Every reject code of a reply, those of its parts too."""
    if isinstance(reply, dict):
        if reply.get("status") == "rejected":
            yield reply["code"]
        for value in reply.values():
            yield from found_codes(value)
    elif isinstance(reply, list):
        for value in reply:
            yield from found_codes(value)


@pytest.fixture
def fuzz(valkey: Server) -> Fuzz:
    return Fuzz(valkey.client, SEED)


def test_no_value_in_any_field_leads_to_an_error(fuzz: Fuzz) -> None:
    fuzz.run(CALLS)
    assert fuzz.errors[:TOLD_MAX] == []
    assert fuzz.taken > CALLS / 10


def test_the_grid_has_each_field_with_each_form() -> None:
    sent = {(function, name) for function, command in grid() for name in command}
    assert ("place_order", "trailing_offset") in sent
    assert ("define_instrument", "min_notional") in sent
    bracket = next(c for name, c in grid() if name == "place_order_list" and "5%" in str(c))
    assert bracket
