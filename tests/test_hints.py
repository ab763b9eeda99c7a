"""Refusals name what is allowed and the nearest right form of what was given."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from books import Book
from clients import Client, connected, new_symbol
from conftest import NewBook
from orderbook.cli import main as cli
from orderbook.cli import shared
from orderbook.hints import nearest
from orderbook.host.host import Host, HostConfig
from servers import Server

RULES = {"tick_size": "0.01", "lot_size": "1"}
LIMIT = {"account": "alice", "side": "buy", "order_type": "limit", "quantity": "1", "price": "1"}
# Whatever is given, these would be told, and no other characters.
HARMLESS = re.compile(r"[A-Za-z0-9_.:,\- (){}/%@]+")


def message(reply: Any) -> str:
    assert reply["status"] == "rejected", reply
    assert HARMLESS.fullmatch(reply["message"]), reply
    return str(reply["message"])


@pytest.mark.parametrize(
    ("field", "given", "rule", "meant"),
    [
        ("side", "BUY", "one of buy, sell", "buy"),
        ("side", "bid", "one of buy, sell", None),
        ("order_type", "STOP-LIMIT", "one of limit, market, stop, ", "stop_limit"),
        ("order_type", "takeProfitLimit", "trailing_stop", "take_profit_limit"),
        ("time_in_force", "GTC", "one of gtc, ioc, fok, gtd", "gtc"),
        ("post_only", "True", "one of true, false", "true"),
        ("account", "al ice", "1 to 64 characters of A-Z a-z 0-9 _ . @ -", None),
        ("client_order_id", "a b", "1 to 64 characters of A-Z a-z 0-9 _ . @ : / -", None),
        ("valid_until_ms", "1,900,000,000,000", "a whole number from 1 to ", "1900000000000"),
        ("valid_until_ms", "1.9e12", "a whole number from 1 to ", "1900000000000"),
        ("valid_until_ms", "soon", "a whole number from 1 to ", None),
        ("price", "97,000", "decimal text such as 97000.5", "97000"),
        ("price", "1,297,000.25", "decimal text", "1297000.25"),
        ("price", "97 000", "decimal text", "97000"),
        ("price", "97_000", "decimal text", "97000"),
        ("price", "+97", "decimal text", "97"),
        ("price", ".5", "decimal text", "0.5"),
        ("price", "5.", "decimal text", "5"),
        ("price", "0,5", "decimal text", "0.5"),
        ("price", "007", "decimal text", "7"),
        ("price", "9.7e4", "decimal text", "97000"),
        ("price", "25e-1", "decimal text", "2.5"),
        ("price", "-1", "without sign", None),
        ("price", "0x10", "without sign", None),
        ("price", "9,70,00", "decimal text", None),
        ("price", "1e99", "decimal text", None),
        ("price", "1" * 41, "of at most 40 characters", None),
        ("price", "90071992547409.92", "at most 9007199254740991 in its last decimal", None),
        ("price", '97"\\', "decimal text", None),
        ("quantity", "1,000", "quantity must be decimal text", "1000"),
        ("quantity", "\x00", "quantity must be decimal text", None),
    ],
)
def test_a_refusal_names_what_is_allowed_and_what_was_meant(
    book: Book, field: str, given: str, rule: str, meant: str | None
) -> None:
    said = message(book.ask("place_order", **(LIMIT | {field: given})))
    assert said.startswith(f"{field} ")
    assert rule in said
    assert said.partition(": write ")[2] == (meant or "")
    if meant is not None and field != "order_type":
        assert book.ask("place_order", **(LIMIT | {field: meant}))["status"] != "rejected"


@pytest.mark.parametrize(
    ("field", "given", "rule", "meant"),
    [
        ("tick_size", "0,01", "tick_size must be decimal text above zero", "0.01"),
        ("tick_size", "0", "tick_size must be decimal text above zero", None),
        ("status", "HALTED", "one of trading, halted, cancel_only, post_only, auction", "halted"),
        ("protection", "2.5%", "a percentage from 0 to 100 with at most 4 decimals", "2.5"),
        ("protection", "101", "a percentage from 0 to 100 with at most 4 decimals", None),
        ("window_ms", "60,000", "a whole number from 1000 to 86400000", "60000"),
        ("window_ms", "60", "a whole number from 1000 to 86400000", None),
        ("open_orders_max", "1e3", "a whole number from 0 on", "1000"),
        ("min_notional", "1.000000001", "at most 2 decimals", None),
        ("min_notional", "1,000", "min_notional must be decimal text", "1000"),
        ("events_length_max", "-1", "a whole number from 1", None),
    ],
)
def test_rules_of_instruments_are_named_too(
    new_book: NewBook, field: str, given: str, rule: str, meant: str | None
) -> None:
    said = message(new_book().ask("define_instrument", **(RULES | {field: given})))
    assert rule in said
    assert said.partition(": write ")[2] == (meant or "")


def table_of_fields(name: str) -> str:
    """The inside of a table of lua/values/fields.lua."""
    source = (Path(__file__).parent.parent / "lua" / "values" / "fields.lua").read_text("utf-8")
    return source.partition(f"local {name} = {{\n")[2].partition("\n}\n")[0]


def test_every_form_has_a_rule() -> None:
    forms, rules = (
        set(re.findall(r"^  (\w+) = (?!true,)", table_of_fields(name), re.MULTILINE))
        for name in ("forms", "rules")
    )
    assert "account" in forms
    assert forms == rules


@pytest.mark.parametrize(
    ("symbol", "meant"),
    [("btc-usdt", "BTC-USDT"), ("BTC/USDT", "BTC-USDT"), ("btc usdt", ""), ("x" * 33, "")],
)
def test_a_key_with_another_spelling_is_told_the_right_one(
    client: Any, symbol: str, meant: str
) -> None:
    said = message(Book(client, symbol).read("get_instrument"))
    assert "SYMBOL of 1 to 32 characters of A-Z 0-9 . _ -" in said
    assert said.partition(": write ")[2] == meant


@pytest.mark.parametrize(
    ("given", "meant"),
    [("btcusdt", "BTC-USDT"), ("btc_usdt", "BTC-USDT"), ("BTC/USDT", "BTC-USDT"), ("ETH", None)],
)
def test_words_are_known_in_other_spellings(given: str, meant: str | None) -> None:
    assert nearest(["BTC-USDT", "BTC-USD"], given) == meant
    assert nearest(["A-B", "AB"], "ab") is None


async def error_message(client: Client, method: str, **params: Any) -> str:
    answer = await client.answer(await client.send(method, **params))
    assert answer["success"] is False, answer
    return str(answer["error"]["message"])


async def test_a_host_says_so_as_well(valkey: Server) -> None:
    symbol = f"{new_symbol()}-HINT"
    async with Host(HostConfig(valkey.url, port=0)) as host, connected(host.port) as client:
        await host.engine.define_instrument(symbol, **RULES)
        assert await host.feed.knows(symbol)
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "quantity": "1"}
        for method, params, said in (
            ("get_book", {"symbol": symbol.lower()}, f": write {symbol}"),
            ("subscribe", {"channel": "trades", "symbols": [symbol.replace("-", "/")]}, symbol),
            ("place_order", {**terms, "symbol": symbol.lower(), "price": "1"}, f": write {symbol}"),
            ("placeOrder", {}, "there is no such method: write place_order"),
            ("subscribe", {"channel": "Trades"}, "heartbeat: write trades"),
            ("subscribe", {"channel": "fills"}, "channel must be one of book, trades, "),
            ("subscribe", {"channel": "trades", "symbols": []}, "symbols must have at least 1"),
            ("place_order", {**terms, "price": "1", "durability": "FSYNC"}, ": write fsync"),
            ("place_order", {**terms, "price": 97000}, "price must be text, in quotes"),
            ("place_order", {**terms, "price": "97,000"}, ": write 97000"),
        ):
            assert said in await error_message(client, method, **params)


def test_the_command_line_says_so_as_well(valkey: Server) -> None:
    book = Book(valkey.client, f"{new_symbol()}-HINT")
    book.define()
    arguments = ["book", book.symbol.lower(), "--redis-url", valkey.url]
    result = CliRunner().invoke(cli.cli, arguments)
    assert result.exit_code == shared.EXIT_REJECTED
    assert (
        f"there is no such instrument: {book.symbol.lower()}: write {book.symbol}" in result.stderr
    )
