"""The websocket host in earnest: a real server, real sockets, hosts in this process and others."""

import asyncio
import contextlib
import itertools
import json
import random
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from books import Book
from checker import SIDES, Checker
from clients import Client, Json, connected, error_code, eventually, new_symbol
from flow import random_commands
from orderbook.engine.engine import Engine
from orderbook.feed.feed import KEEP_INTERVAL_S
from orderbook.host.host import Host, HostConfig
from orderbook.host.readiness import PROBE_INTERVAL_S
from orderbook.limits import Limits
from servers import Server, hosting, load_library, running, running_cluster

RULES = {"tick_size": "0.01", "lot_size": "1"}
MEBIBYTE = 1024 * 1024


@pytest.fixture
async def symbol(host: Host) -> str:
    symbol = new_symbol()
    assert (await host.engine.define_instrument(symbol, **RULES))["symbol"] == symbol
    # What the host would do within a second; it is part of the book's state.
    await host.engine.begin_epochs()
    return symbol


@pytest.fixture
async def alice(host: Host) -> AsyncIterator[Client]:
    async with connected(host.port, "alice") as client:
        yield client


@pytest.fixture
async def bob(host: Host) -> AsyncIterator[Client]:
    async with connected(host.port, "bob") as client:
        yield client


async def get(host: Host, path: str, **options: Any) -> tuple[int, str]:
    url = f"http://127.0.0.1:{host.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, **options) as response:
        return response.status, await response.text()


async def state_hash(engine: Engine, symbol: str) -> str:
    reply = await engine.verify_book(symbol)
    assert reply["verified"] is True, reply
    return str(reply["state_hash"])


# ---- commands and queries


async def test_an_order_trades_and_both_sides_hear_of_it(
    alice: Client, bob: Client, symbol: str
) -> None:
    await alice.subscribe("orders", symbol)
    await bob.subscribe("trades", symbol)
    placed = await alice.limit(symbol, "buy", "5", "100.5", client_order_id="mine")
    assert (placed["status"], placed["client_order_id"]) == ("open", "mine")
    taken = await bob.limit(symbol, "sell", "2", "100")
    assert taken["fills"][0]["maker_order_id"] == placed["order_id"]
    trade = (await bob.wait_for("trades", 2))[1]["trades"][0]
    assert (trade["price"], trade["quantity"], trade["aggressor_side"]) == ("100.5", "2", "sell")
    await alice.wait_for("orders", 3)
    reports = [report for message in alice.of("orders")[1:] for report in message["orders"]]
    assert [report["event"] for report in reports] == ["accepted", "trade"]
    assert reports[1]["remaining_quantity"] == "3"


async def test_every_method_works(alice: Client, symbol: str) -> None:
    placed = await alice.limit(symbol, "buy", "5", "100", client_order_id="a")
    named = {"symbol": symbol, "order_id": placed["order_id"]}
    assert (await alice.ask("get_order", **named))["quantity"] == "5"
    assert (await alice.ask("amend_order", **named, quantity="4"))["quantity"] == "4"
    assert (await alice.ask("get_book", symbol=symbol, depth=1))["bids"] == [["100", "4"]]
    assert (await alice.ask("get_book", symbol=symbol, depth="full"))["bids"] == [["100", "4"]]
    level3 = await alice.ask("get_level3", symbol=symbol, depth=1)
    assert level3["bids"] == [["100", "4", placed["order_id"], 1]]
    assert len((await alice.ask("get_open_orders", symbol=symbol))["orders"]) == 1
    assert (await alice.ask("get_trades", symbol=symbol, limit=10))["trades"] == []
    assert (await alice.ask("get_instrument", symbol=symbol))["open_orders"] == 1
    canceled = await alice.ask("cancel_order", symbol=symbol, client_order_id="a")
    assert canceled["status"] == "canceled"
    assert (await alice.ask("cancel_all_orders", symbol=symbol))["canceled_count"] == 0
    assert (await alice.ask("ping"))["timestamp_ms"] > 1_500_000_000_000


async def test_orders_are_replaced_quoted_and_looked_back_at(alice: Client, symbol: str) -> None:
    placed = await alice.limit(symbol, "buy", "5", "100", client_order_id="a")
    new = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "101", "quantity": "4"}
    replaced = await alice.ask("replace_order", **new, cancel_client_order_id="a")
    assert replaced["canceled"]["order_id"] == placed["order_id"]
    assert replaced["placed"]["status"] == "open"
    assert await alice.refused("replace_order", **new, cancel_order_id="1") == "UNKNOWN_ORDER"
    quotes = [{"side": "sell", "price": "101", "quantity": "1"}]
    quoted = await alice.ask("mass_quote", symbol=symbol, quotes=quotes, post_only=False)
    assert quoted["placed"][0]["status"] == "filled"
    closed = (await alice.ask("get_closed_orders", symbol=symbol, limit=10))["orders"]
    assert [order["status"] for order in closed] == ["filled", "canceled"]
    assert closed[0]["quantity"] == "1"
    trades = (await alice.ask("get_own_trades", symbol=symbol, before=10**9))["trades"]
    assert {trade["role"] for trade in trades} == {"maker", "taker"}


async def test_orders_of_several_books_are_canceled_in_one_answer(
    alice: Client, bob: Client, symbol: str, host: Host
) -> None:
    others = [new_symbol(), new_symbol()]
    await host.engine.define_instrument(others[0], **RULES)
    await host.engine.define_instrument(others[1], segment="elsewhere", **RULES)
    symbols = [symbol, *others]
    terms = {"side": "buy", "order_type": "limit", "price": "10", "quantity": "1"}
    for name in symbols:
        await bob.limit(name, "buy", "1", "9")
        # Not waited for: what is sent before is done before.
        await alice.send("place_order", symbol=name, **terms)
        await alice.send("place_order", symbol=name, **{**terms, "side": "sell", "price": "11"})
    request = await alice.send("cancel_all_orders", symbols=symbols, side="buy")
    # What is sent after it is done after it.
    after = await alice.send("place_order", symbol=symbol, **terms)
    reply = (await alice.answer(request))["result"]
    assert {book["symbol"]: book["canceled_count"] for book in reply["books"]} == dict.fromkeys(
        symbols, 1
    )
    assert (reply["canceled_count"], reply["remaining_count"]) == (3, 0)
    assert (await alice.answer(after))["result"]["status"] == "open"
    for name, count in zip(symbols, (2, 1, 1), strict=True):
        assert len((await alice.ask("get_open_orders", symbol=name))["orders"]) == count
    unknown = [symbol, "NOWHERE"]
    assert await alice.refused("cancel_all_orders", symbols=unknown) == "UNKNOWN_SYMBOL"
    one = await alice.ask("cancel_all_orders", symbols=[symbol])
    assert [book["canceled_count"] for book in one["books"]] == [2]


async def test_reports_come_whoever_caused_them(alice: Client, symbol: str, valkey: Server) -> None:
    """Open orders first, then every report: by another connection, another host, or any client."""
    async with hosting(valkey) as other_host, connected(other_host.port, "alice") as elsewhere:
        await elsewhere.limit(symbol, "buy", "5", "100", client_order_id="a")
        await alice.subscribe("orders", symbol)
        (snapshot,) = await alice.wait_for("orders", 1)
        assert [order["client_order_id"] for order in snapshot["orders"]] == ["a"]
        await elsewhere.ask("amend_order", symbol=symbol, client_order_id="a", price="101")
        anyone = Book(valkey.client, symbol)
        anyone.limit("bob", "sell", "2", "101")
        anyone.limit("alice", "sell", "1", "101")
        market = {"account": "alice", "side": "buy", "order_type": "market", "quantity": "1"}
        anyone.ask("place_order", **market)
        await elsewhere.ask("cancel_order", symbol=symbol, client_order_id="a")
        await alice.wait_for("orders", 6)
    reports = [report for message in alice.of("orders")[1:] for report in message["orders"]]
    told = [(report["event"], report.get("role") or report.get("reason")) for report in reports]
    assert told == [
        ("amended", None),
        ("trade", "maker"),
        ("accepted", None),
        ("trade", "taker"),
        ("trade", "maker"),
        ("accepted", None),
        ("canceled", "ioc"),
        ("canceled", "requested"),
    ]


async def test_a_query_sees_the_orders_sent_before_it(alice: Client, symbol: str) -> None:
    requests = []
    for number in range(1, 21):
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit"}
        await alice.send("place_order", **terms, price="10", quantity="1")
        requests.append((number, await alice.send("get_book", symbol=symbol)))
    for number, req_id in requests:
        answer = await alice.answer(req_id)
        assert int(answer["result"]["bids"][0][1]) >= number


async def test_commands_for_one_book_are_answered_in_the_order_sent(
    alice: Client, symbol: str
) -> None:
    sent = []
    for number in range(300):
        price = "10" if number % 3 else "x"
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": price}
        sent.append(await alice.send("place_order", **terms, quantity="1"))
    await alice.answer(sent[-1])
    assert [answer["req_id"] for answer in alice.answers()] == sent


async def test_somebody_elses_order_cannot_be_touched(
    alice: Client, bob: Client, symbol: str, host: Host
) -> None:
    order_id = (await alice.limit(symbol, "buy", "5", "100"))["order_id"]
    before = await state_hash(host.engine, symbol)
    named = {"symbol": symbol, "order_id": order_id}
    assert await bob.refused("cancel_order", **named) == "UNKNOWN_ORDER"
    assert await bob.refused("amend_order", **named, quantity="1") == "UNKNOWN_ORDER"
    assert await bob.refused("get_order", **named) == "UNKNOWN_ORDER"
    assert (await bob.ask("cancel_all_orders", symbol=symbol))["canceled_count"] == 0
    assert await state_hash(host.engine, symbol) == before


async def test_an_order_sent_twice_is_answered_twice_and_done_once(
    alice: Client, symbol: str, valkey: Server
) -> None:
    first = await alice.limit(symbol, "buy", "5", "100", client_order_id="once")
    async with hosting(valkey) as other, connected(other.port, "alice") as again:
        assert await again.limit(symbol, "buy", "5", "100", client_order_id="once") == first
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "100"}
        code = await again.refused("place_order", **terms, quantity="6", client_order_id="once")
        assert code == "DUPLICATE_CLIENT_ORDER_ID"


async def test_a_symbol_defined_a_moment_ago_is_traded_at_once(alice: Client, host: Host) -> None:
    symbol = new_symbol()
    terms = {"symbol": symbol, "side": "buy", "order_type": "limit"}
    assert await alice.refused("place_order", **terms, price="1", quantity="1") == "UNKNOWN_SYMBOL"
    await host.engine.define_instrument(symbol, **RULES)
    await alice.limit(symbol, "buy", "1", "1")
    await alice.subscribe("book", symbol)


# ---- bad input


BAD_NUMBERS = ["1e5", "0x10", "NaN", "-0", str(2**53), "9" * 40, "", " 1", "1_0", "٣", "+1", "01"]


@pytest.mark.parametrize("field", ["price", "quantity"])
@pytest.mark.parametrize("number", BAD_NUMBERS)
async def test_what_is_no_number_is_refused_and_changes_nothing(
    alice: Client, symbol: str, host: Host, field: str, number: str
) -> None:
    await alice.limit(symbol, "sell", "5", "100")
    before = await state_hash(host.engine, symbol)
    terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1", "quantity": "1"}
    code = await alice.refused("place_order", **(terms | {field: number}))
    assert code in {"INVALID_NUMBER", "QUANTITY_TOO_LARGE"}
    assert await state_hash(host.engine, symbol) == before


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"price": "1.001"}, "PRICE_OFF_TICK"),
        ({"quantity": "0.5"}, "QUANTITY_OFF_LOT"),
        ({"price": "0"}, "PRICE_NOT_POSITIVE"),
        ({"quantity": "0"}, "QUANTITY_TOO_SMALL"),
        ({"colour": "red"}, "UNKNOWN_FIELD"),
        ({"account": "bob"}, "UNKNOWN_FIELD"),
        ({"price": 1}, "WRONG_TYPE"),
        ({"quantity": None}, "WRONG_TYPE"),
        ({"post_only": 1}, "WRONG_TYPE"),
        ({"side": "up"}, "INVALID_VALUE"),
        ({"symbol": "NOWHERE"}, "UNKNOWN_SYMBOL"),
        ({"symbol": "x y\x00"}, "UNKNOWN_SYMBOL"),
        ({"symbol": "X" * 10_000}, "UNKNOWN_SYMBOL"),
        ({"order_type": "market"}, "FIELD_NOT_ALLOWED"),
        ({"client_order_id": "a b"}, "INVALID_VALUE"),
        ({"client_order_id": "\x00"}, "INVALID_VALUE"),
    ],
)
async def test_a_bad_order_is_refused_by_name_and_changes_nothing(
    alice: Client, symbol: str, host: Host, fields: Json, code: str
) -> None:
    before = await state_hash(host.engine, symbol)
    terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1", "quantity": "1"}
    assert await alice.refused("place_order", **(terms | fields)) == code
    assert await state_hash(host.engine, symbol) == before


@pytest.mark.parametrize(
    "frame",
    [
        b"nonsense",
        b"[]",
        b"\xff\xfe\xfd",
        b'{"method":"place_order","params":{"symbol":"\xff"}}',
        b"[" * 16000,
        b'{"method":"place_order","params":' + b'{"a":' * 2000 + b"1" + b"}" * 2001,
        b"",
    ],
)
async def test_a_malformed_frame_is_answered_and_the_connection_lives(
    alice: Client, bob: Client, symbol: str, host: Host, frame: bytes
) -> None:
    before = await state_hash(host.engine, symbol)
    assert error_code(await alice.send_raw(frame)) == "MALFORMED_COMMAND"
    assert await state_hash(host.engine, symbol) == before
    assert (await alice.limit(symbol, "buy", "1", "1"))["status"] == "open"
    assert (await bob.limit(symbol, "buy", "1", "1"))["status"] == "open"


async def test_a_binary_frame_is_answered_and_the_connection_lives(alice: Client) -> None:
    await alice.socket.send_bytes(b'{"method":"ping"}')
    answers = await alice.until(alice.answers, "an answer")
    assert error_code(answers[0]) == "MALFORMED_COMMAND"
    await alice.ask("ping")


async def test_a_frame_of_ten_megabytes_is_told_why_it_is_the_end(
    alice: Client, bob: Client, symbol: str, host: Host
) -> None:
    before = await state_hash(host.engine, symbol)
    with contextlib.suppress(ConnectionError):
        await alice.socket.send_str("x" * 10_000_000)
    assert await alice.closed() == 1009
    assert error_code(alice.messages[-1]) == "FRAME_TOO_LARGE"
    assert await state_hash(host.engine, symbol) == before
    assert (await bob.limit(symbol, "buy", "1", "1"))["status"] == "open"


async def test_the_largest_frame_is_taken_and_one_byte_more_is_not(alice: Client) -> None:
    frame = b'{"method":"ping"}'.ljust(Limits().frame_bytes_max)
    assert (await alice.send_raw(frame))["success"] is True
    await alice.socket.send_frame(frame + b" ", aiohttp.WSMsgType.TEXT)
    assert await alice.closed() == 1009


async def test_only_abuse_ends_a_connection(alice: Client, bob: Client) -> None:
    for _ in range(100):
        await alice.socket.send_str("nonsense")
    assert await alice.closed() == 1008
    assert len(alice.messages) == 100
    await bob.ask("ping")


# ---- subscriptions


async def test_channels_answer_first_and_then_begin_with_a_snapshot(
    alice: Client, symbol: str
) -> None:
    for channel in ("book", "trades", "level2", "level3", "orders", "instruments"):
        first = (await alice.subscribe(channel, symbol))[0]
        assert (first["type"], first["symbol"]) == ("snapshot", symbol)
        assert first["sequence"] >= 1
        subscribed = [m for m in alice.messages if m.get("method") == "subscribe"][-1]
        assert alice.messages.index(subscribed) < alice.messages.index(first)


async def test_book_messages_have_the_form_of_the_protocol(alice: Client, symbol: str) -> None:
    await alice.limit(symbol, "buy", "1", "100.25")
    snapshot = (await alice.subscribe("book", symbol))[0]
    del snapshot["sequence"], snapshot["epoch"], snapshot["checksum"]
    assert snapshot == {
        "channel": "book",
        "symbol": symbol,
        "type": "snapshot",
        "tick_size": "0.01",
        "lot_size": "1",
        "bids": [["100.25", "1"]],
        "asks": [],
    }


async def test_books_come_at_most_every_half_second(alice: Client, symbol: str) -> None:
    await alice.subscribe("book", symbol)
    loop = asyncio.get_running_loop()
    started = loop.time()
    while loop.time() < started + 1.6:
        await alice.limit(symbol, "buy", "1", "100")
    last = await alice.limit(symbol, "buy", "1", "101")
    await alice.until(lambda: alice.of("book")[-1]["sequence"] >= last["sequence"], "the last book")
    elapsed_s = loop.time() - started
    assert 3 <= len(alice.of("book")) <= 2 + elapsed_s / 0.5


async def test_auction_is_asked_for_and_told_with_the_book(
    host: Host, alice: Client, symbol: str
) -> None:
    assert await alice.refused("get_auction", symbol=symbol) == "NO_AUCTION"
    await alice.subscribe("book", symbol)
    await host.engine.define_instrument(symbol, status="auction")
    await alice.limit(symbol, "sell", "3", "100")
    await alice.limit(symbol, "buy", "5", "101")
    outcome = await alice.ask("get_auction", symbol=symbol)
    assert (outcome["indicative_quantity"], outcome["imbalance_side"]) == ("3", "buy")
    await alice.until(lambda: alice.of("book")[-1].get("auction", {}).get("imbalance_side"), "it")
    told = alice.of("book")[-1]["auction"]
    assert told["indicative_price"] == outcome["indicative_price"]
    await host.engine.define_instrument(symbol, status="trading")
    await alice.until(lambda: "auction" not in alice.of("book")[-1], "the book after it")
    assert (await alice.ask("get_trades", symbol=symbol))["trades"][0]["quantity"] == "3"


async def test_ticker_and_candles_follow_the_trades(alice: Client, symbol: str) -> None:
    (ticker,) = await alice.subscribe("ticker", symbol)
    assert (ticker["type"], ticker["volume_24h"]) == ("snapshot", "0")
    (hours,) = await alice.subscribe("candles", symbol, interval="1h")
    (minutes,) = await alice.subscribe("candles", symbol)
    assert [(m["interval"], m["candles"]) for m in (hours, minutes)] == [("1h", []), ("1m", [])]
    await alice.limit(symbol, "sell", "1", "100")
    await alice.limit(symbol, "buy", "1", "100")
    await alice.until(lambda: alice.of("ticker")[-1].get("last_price") == "100", "the ticker")
    await alice.until(lambda: len(alice.of("candles")) >= 4, "both candles")
    updates = alice.of("candles")[2:4]
    assert {m["interval"]: m["candles"][-1]["volume"] for m in updates} == {"1m": "1", "1h": "1"}
    await alice.ask("unsubscribe", channel="candles", symbols=[symbol], interval="1h")


async def test_a_book_can_be_followed_deeper_than_the_stream_has_it(
    alice: Client, bob: Client, symbol: str
) -> None:
    for depth in (50, "500", "full"):
        await alice.subscribe("book", symbol, depth=depth)
    await alice.subscribe("book", symbol)
    for price in range(1, 13):
        last = await bob.limit(symbol, "buy", "1", str(price))

    def newest() -> list[int]:
        told = [m for m in alice.of("book") if m["sequence"] >= last["sequence"]]
        return sorted(len(message["bids"]) for message in told)

    await alice.until(lambda: newest() == [10, 12, 12, 12], "each depth has come")
    depths = {message.get("depth") for message in alice.of("book")}
    assert depths == {None, "50", "500", "full"}


async def test_two_hosts_show_the_same_trades_in_the_same_order(
    valkey: Server, host: Host, symbol: str
) -> None:
    async with (
        hosting(valkey) as other,
        connected(host.port, "alice") as here,
        connected(other.port, "bob") as there,
    ):
        await here.subscribe("trades", symbol)
        await there.subscribe("trades", symbol)
        for number in range(50):
            seller, buyer = (here, there) if number % 2 else (there, here)
            await seller.limit(symbol, "sell", "1", "10")
            await buyer.limit(symbol, "buy", "1", "10")
        for client in (here, there):
            await client.wait_for("trades", 51)
        assert here.of("trades")[1:] == there.of("trades")[1:]
        await state_hash(host.engine, symbol)


async def test_clients_of_two_hosts_prove_their_books_by_checksums(
    valkey: Server, host: Host, symbol: str
) -> None:
    """All they have is the messages; the traders' commands go to either host."""
    dice = random.Random(1)
    await host.engine.define_instrument(symbol, lot_size="0.1")
    async with (
        hosting(valkey) as other,
        connected(host.port, "alice") as here,
        connected(other.port, "bob") as there,
    ):
        for client in (here, there):
            await client.subscribe("level2", symbol)
            await client.subscribe("level3", symbol)
        for command in itertools.islice(random_commands(dice), 400):
            method, _ = command.pop("method"), command.pop("account", None)
            client = dice.choice((here, there))
            await client.answer(await client.send(method, symbol=symbol, **command))
        last = await here.limit(symbol, "buy", "1", "1")
        for client, channel in itertools.product((here, there), ("level2", "level3")):
            await _prove(client, channel, symbol, last["sequence"])
        assert here.of("level3")[1:] == there.of("level3")[1:]


async def _prove(client: Client, channel: str, symbol: str, last: int) -> None:
    """Every message agrees with its checksum, and all together are the book."""
    await client.until(lambda: client.of(channel)[-1]["sequence"] >= last, "all has come")
    checker = Checker()
    for message in client.of(channel):
        checker.take(message)
    assert checker.checked == len(client.of(channel)) > 100
    name = "get_book" if channel == "level2" else "get_level3"
    book = await client.ask(name, symbol=symbol, depth="full")
    assert [checker.rows(side) for side in SIDES] == [book[side] for side in SIDES]


async def test_a_client_resumes_at_another_host(
    valkey: Server, host: Host, symbol: str, bob: Client
) -> None:
    async with connected(host.port) as client:
        await client.subscribe("trades", symbol)
        await _trade(bob, symbol)
        last = (await client.wait_for("trades", 2))[-1]
    missed = [await _trade(bob, symbol) for _ in range(3)]
    async with hosting(valkey) as other, connected(other.port) as client:
        resume = {"after": last["sequence"], "epoch": last["epoch"]}
        await client.subscribe("trades", symbol, **resume)
        missed.append(await _trade(bob, symbol))
        messages = await client.wait_for("trades", 4)
        assert [(m["type"], m["sequence"]) for m in messages] == [("update", s) for s in missed]


async def _trade(client: Client, symbol: str) -> int:
    await client.limit(symbol, "sell", "1", "10")
    return int((await client.limit(symbol, "buy", "1", "10"))["sequence"])


async def test_a_client_whose_history_was_trimmed_gets_a_gap_and_a_snapshot(
    valkey: Server, symbol: str, bob: Client
) -> None:
    made = [await _trade(bob, symbol) for _ in range(5)]
    valkey.client.xtrim(f"orderbook:{{main}}:{symbol}:events", maxlen=1, approximate=False)
    async with hosting(valkey) as other, connected(other.port) as client:
        epoch = (await client.ask("get_instrument", symbol=symbol))["epoch"]
        await client.subscribe("trades", symbol, after=made[0], epoch=epoch)
        gap, snapshot = await client.wait_for("trades", 2)
        assert (gap["type"], gap["after"], gap["sequence"]) == ("gap", made[0], made[-1])
        assert (snapshot["type"], len(snapshot["trades"])) == ("snapshot", 5)


async def test_heartbeats_come_each_second(alice: Client) -> None:
    await alice.ask("subscribe", channel="heartbeat")
    first, second = (await alice.wait_for("heartbeat", 2))[:2]
    assert 500 < second["timestamp_ms"] - first["timestamp_ms"] < 5000


async def test_a_quiet_subscriber_resumes_from_a_heartbeat_without_a_gap(
    valkey: Server, symbol: str, bob: Client
) -> None:
    async with hosting(valkey) as other, connected(other.port) as client:
        await client.ask("subscribe", channel="heartbeat")
        await client.subscribe("orders", symbol)
        await client.wait_for("orders", 1)
        for _ in range(5):
            last = await _trade(bob, symbol)
        await client.until(lambda: told_by_heartbeat(client, symbol)["sequence"] == last, "it")
        told = told_by_heartbeat(client, symbol)
        assert len(client.of("orders", symbol)) == 1
    made = await _trade(bob, symbol)
    # By then the stream reaches back no further.
    events = f"orderbook:{{main}}:{symbol}:events"
    valkey.client.xtrim(events, minid=f"{last + 1}-0", approximate=False)
    async with hosting(valkey) as other, connected(other.port) as client:
        resume = {"after": told["sequence"], "epoch": told["epoch"]}
        messages = await client.subscribe("trades", symbol, **resume)
        assert [(m["type"], m["sequence"]) for m in messages] == [("update", made)]


def told_by_heartbeat(client: Client, symbol: str) -> dict[str, Any]:
    """What the last heartbeat told of a book; of none before the first one."""
    none = {"symbol": symbol, "sequence": -1, "epoch": -1}
    books = [book for beat in client.of("heartbeat")[-1:] for book in beat["books"]]
    assert {book["symbol"] for book in books} <= {symbol}
    return next(iter(books), none)


async def test_instruments_can_be_subscribed_to_without_naming_them(
    alice: Client, symbol: str, host: Host
) -> None:
    await alice.ask("subscribe", channel="instruments")
    await alice.until(lambda: alice.of("instruments", symbol), "the instrument")
    another = new_symbol()
    await host.engine.define_instrument(another, **RULES)
    await alice.until(lambda: alice.of("instruments", another), "the new instrument")


async def test_unsubscribing_ends_a_channel(alice: Client, bob: Client, symbol: str) -> None:
    await alice.subscribe("trades", symbol)
    await bob.subscribe("trades", symbol)
    await alice.ask("unsubscribe", channel="trades", symbols=[symbol])
    await _trade(bob, symbol)
    await bob.wait_for("trades", 2)
    await alice.ask("ping")
    assert len(alice.of("trades")) == 1
    named = {"channel": "trades", "symbols": [symbol]}
    assert await alice.refused("unsubscribe", **named) == "NOT_SUBSCRIBED"


async def test_subscribing_again_begins_again(alice: Client, symbol: str) -> None:
    await alice.subscribe("trades", symbol)
    await alice.subscribe("trades", symbol)
    await _trade(alice, symbol)
    await alice.wait_for("trades", 3)
    await alice.ask("ping")
    assert [message["type"] for message in alice.of("trades")] == ["snapshot"] * 2 + ["update"]


async def test_unknown_symbols_cannot_be_subscribed_to(alice: Client, symbol: str) -> None:
    params = {"channel": "trades", "symbols": [symbol, "NOWHERE"]}
    assert await alice.refused("subscribe", **params) == "UNKNOWN_SYMBOL"
    params["symbols"] = [symbol]
    assert await alice.refused("unsubscribe", **params) == "NOT_SUBSCRIBED"


async def test_subscriptions_are_limited(valkey: Server, symbol: str) -> None:
    limits = Limits(subscriptions_per_connection_max=2)
    async with hosting(valkey, limits=limits) as small, connected(small.port) as client:
        await client.subscribe("trades", symbol)
        await client.subscribe("book", symbol)
        await client.subscribe("book", symbol)
        params = {"channel": "level2", "symbols": [symbol]}
        assert await client.refused("subscribe", **params) == "TOO_MANY_SUBSCRIPTIONS"


# ---- clients that do not read


async def test_a_long_burst_from_one_connection_is_answered_entirely(
    host: Host, symbol: str
) -> None:
    """Sent without reading a single answer in between."""
    count = 50_000
    url = f"http://127.0.0.1:{host.port}/ws?account=burst"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as websocket:
        for number in range(count):
            side, price = ("buy", 90) if number % 2 else ("sell", 110)
            await websocket.send_str(
                f'{{"method":"place_order","req_id":{number},"params":{{"symbol":"{symbol}",'
                f'"side":"{side}","order_type":"limit","price":"{price}","quantity":"1"}}}}'
            )
        async with asyncio.timeout(60):
            for number in range(count):
                answer = await websocket.receive_json()
                assert (answer["req_id"], answer["success"]) == (number, True)
    assert (await host.engine.verify_book(symbol))["orders"] == count


def _small_socket(address: Any) -> socket.socket:
    """A socket for which the kernel keeps little, so that it is soon full."""
    small = socket.socket(address[0], address[1], address[2])
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)
    return small


@contextlib.asynccontextmanager
async def stalled(host: Host, symbol: str, channel: str) -> AsyncIterator[Any]:
    """A subscriber that has stopped reading, with more than a mebibyte waiting for it."""
    orders = [
        json.dumps(
            {"method": "place_order", "account": "slow", "order_type": "limit"}
            | {"side": "buy", "price": str(number), "quantity": "1"}
        ).encode()
        for number in range(1, 1001)
    ]
    for start in range(0, len(orders), 200):
        await host.engine.execute(symbol, orders[start : start + 200])
    url = f"http://127.0.0.1:{host.port}/ws?account=slow"
    connector = aiohttp.TCPConnector(socket_factory=_small_socket)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(url, max_msg_size=0) as websocket,
    ):
        params: Json = {"channel": channel, "symbols": [symbol]}
        await websocket.send_json({"method": "subscribe", "params": params})
        while (await websocket.receive_json()).get("channel") != channel:
            pass
        (connection,) = (c for c in host._connections if c._session.account == "slow")
        question = {"method": "get_open_orders", "params": {"symbol": symbol, "limit": 1000}}
        while connection._backlog() < 2 * MEBIBYTE:
            heard_at = connection._heard_at
            for _ in range(4):
                await websocket.send_json(question)
            await eventually(
                lambda: connection._heard_at > heard_at and not connection._queries_in_flight,  # noqa: B023
                "the questions are answered",
            )
        yield websocket


async def _read_to_the_end(websocket: Any, until: Any) -> list[Json]:
    messages = []
    async with asyncio.timeout(20):
        async for message in websocket:
            messages.append(json.loads(message.data))
            if until(messages[-1]):
                break
    return messages


async def test_a_slow_client_gets_the_newest_book_in_place_of_every_book(
    host: Host, symbol: str, bob: Client
) -> None:
    await bob.subscribe("book", symbol)
    async with stalled(host, symbol, "book") as websocket:
        conflated = host.metrics.books_conflated._value
        price = 3000
        while conflated.get() < 2:
            price += 1
            last = await bob.limit(symbol, "buy", "1", str(price))
            await bob.until(
                lambda: bob.of("book")[-1]["sequence"] >= last["sequence"],  # noqa: B023
                "the book",
            )
        messages = await _read_to_the_end(
            websocket, lambda m: m.get("channel") == "book" and m["sequence"] >= last["sequence"]
        )
        books = [message for message in messages if message.get("channel") == "book"]
        assert books[-1]["bids"][0] == [str(price), "1"]
        assert len(books) < price - 3000


async def test_a_slow_client_of_trades_is_closed_and_told_to_resume(
    host: Host, symbol: str, bob: Client
) -> None:
    async with stalled(host, symbol, "trades") as websocket:
        await bob.subscribe("trades", symbol)
        await _trade(bob, symbol)
        await bob.wait_for("trades", 2)
        await _read_to_the_end(websocket, lambda _: False)
        assert websocket.close_code == 4001
    assert host.metrics.slow_clients_closed._value.get() == 1


async def test_a_stalled_client_that_never_reads_is_cut_off(
    host: Host, symbol: str, bob: Client
) -> None:
    async with stalled(host, symbol, "trades"):
        await _trade(bob, symbol)
        await eventually(lambda: len(host._connections) == 1, "its connection is gone")
    await bob.ask("ping")


async def test_too_many_commands_in_flight_only_slow_their_sender_down(
    valkey: Server, symbol: str
) -> None:
    limits = Limits(in_flight_per_connection_max=3)
    async with hosting(valkey, limits=limits) as small, connected(small.port) as client:
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1"}
        sent = [await client.send("place_order", **terms, quantity="1") for _ in range(100)]
        answers = [await client.answer(req_id) for req_id in sent]
        assert all(answer["success"] for answer in answers)
        batches = [answer["result"]["sequence"] for answer in answers]
        assert max(batches.count(sequence) for sequence in batches) <= 3


# ---- the door


@pytest.mark.parametrize("account", ["a b", "x" * 65, "é", 'quo"te', "\x00"])
async def test_a_bad_account_name_does_not_get_in(host: Host, account: str) -> None:
    status, _ = await get(host, "/ws", params={"account": account})
    assert status == 400


async def test_nameless_clients_are_guests_of_different_names(host: Host, symbol: str) -> None:
    async with connected(host.port, "") as one, connected(host.port, "") as two:
        names = [(await c.subscribe("orders", symbol))[0]["account"] for c in (one, two)]
    assert names[0] != names[1]
    assert all(name.startswith("guest-") for name in names)


@pytest.mark.parametrize(
    ("origin", "comes_in"),
    [
        (None, True),
        ("http://127.0.0.1:{port}", True),
        ("https://allowed.example", True),
        ("https://evil.example", False),
        ("null", False),
        ("http://127.0.0.1:{port}.evil.example", False),
    ],
)
async def test_web_pages_of_other_origins_do_not_get_in(
    valkey: Server, origin: str | None, comes_in: bool
) -> None:
    async with hosting(valkey, origins=("https://allowed.example",)) as host:
        headers = {"Origin": origin.format(port=host.port)} if origin else {}
        if comes_in:
            async with connected(host.port, headers=headers) as client:
                await client.ask("ping")
            return
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with connected(host.port, headers=headers):
                pass
        assert caught.value.status == 403


async def test_connections_are_limited(valkey: Server) -> None:
    async with hosting(valkey, limits=Limits(connections_max=1)) as small:
        async with connected(small.port):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with connected(small.port):
                    pass
            assert caught.value.status == 503
        await eventually(lambda: not small._connections, "the first is gone")
        async with connected(small.port) as client:
            await client.ask("ping")


async def test_an_idle_connection_is_closed_and_a_subscribed_one_is_not(
    valkey: Server, symbol: str
) -> None:
    async with (
        hosting(valkey, limits=Limits(idle_s_max=0.05)) as host,
        connected(host.port) as subscribed,
        connected(host.port) as idle,
    ):
        await subscribed.ask("subscribe", channel="trades", symbols=[symbol])
        assert await idle.closed() == 1001
        await subscribed.ask("ping")


async def test_guests_are_served_on_loopback_unless_told_otherwise() -> None:
    assert HostConfig("redis://127.0.0.1").host == "127.0.0.1"


# ---- health and metrics


async def test_a_host_is_alive_and_ready(host: Host) -> None:
    assert await get(host, "/livez") == (200, "ok")
    status, body = await get(host, "/readyz")
    assert (status, json.loads(body)["ready"]) == (200, True)


async def test_a_host_without_redis_is_alive_but_not_ready_and_recovers() -> None:
    with running("valkey") as server:
        load_library(server.client, "valkey")
        async with hosting(server) as host, connected(host.port) as client:
            await host.engine.define_instrument("X", **RULES)
            await client.limit("X", "buy", "1", "1")
            server.process.stop()
            terms = {"symbol": "X", "side": "buy", "order_type": "limit", "price": "1"}
            first = await client.refused("place_order", **terms, quantity="1")
            assert first in {"UNAVAILABLE", "OUTCOME_UNKNOWN"}
            assert await client.refused("place_order", **terms, quantity="1") == "UNAVAILABLE"
            assert await client.refused("get_book", symbol="X") == "UNAVAILABLE"
            assert (await get(host, "/livez"))[0] == 200
            status, body = await get(host, "/readyz")
            assert (status, json.loads(body)["ready"]) == (503, False)


async def test_a_host_is_not_ready_for_a_library_it_does_not_know() -> None:
    newer = (
        "#!lua name=orderbook\nredis.register_function{function_name='library_version', "
        "flags={'no-writes'}, callback=function() return "
        '\'{"library":"orderbook","version":"99.0.0","digest":"x"}\' end}'
    )
    with running("valkey") as server:
        load_library(server.client, "valkey")
        async with hosting(server) as host:
            server.client.function_load(newer, replace=True)
            status, body = await get(host, "/readyz")
            assert status == 503
            assert "library" in body


async def test_a_host_is_not_ready_on_a_replica() -> None:
    with running("valkey") as server:
        load_library(server.client, "valkey")
        async with hosting(server) as host:
            assert (await get(host, "/readyz"))[0] == 200
            server.client.replicaof("127.0.0.1", 1)
            await asyncio.sleep(PROBE_INTERVAL_S)
            status, body = await get(host, "/readyz")
            assert status == 503
            assert "replica" in body


async def test_a_host_loads_the_library_where_it_is_missing() -> None:
    with running("valkey") as server:
        async with hosting(server) as host:
            assert (await host.engine.define_instrument("X", **RULES))["symbol"] == "X"


async def test_metrics_count_and_never_name_accounts_or_orders(
    host: Host, symbol: str, alice: Client
) -> None:
    await alice.subscribe("trades", symbol)
    await alice.limit(symbol, "sell", "1", "10", client_order_id="secret-id")
    await alice.limit(symbol, "buy", "1", "10")
    await alice.refused("cancel_order", symbol=symbol, order_id="1")
    await alice.refused("get_order", symbol=symbol, order_id="1")
    await alice.send_raw("nonsense")
    await alice.wait_for("trades", 2)
    status, text = await get(host, "/metrics")
    assert status == 200
    for line in (
        "orderbook_connections 1.0",
        'orderbook_commands_total{method="place_order"} 2.0',
        'orderbook_commands_total{method="cancel_order"} 1.0',
        'orderbook_rejects_total{code="UNKNOWN_ORDER"} 2.0',
        'orderbook_rejects_total{code="MALFORMED_COMMAND"} 1.0',
        'orderbook_messages_sent_total{channel="trades"} 2.0',
        "orderbook_acknowledgement_seconds_count 3.0",
        "orderbook_call_seconds_count 3.0",
        "orderbook_books_conflated_total 0.0",
        "orderbook_slow_clients_closed_total 0.0",
    ):
        assert f"\n{line}\n" in text
    assert re.search(r"\norderbook_stream_lag_seconds \d", text)
    assert "alice" not in text
    assert "secret-id" not in text
    assert symbol not in text


# ---- a cluster


async def test_a_host_serves_the_segments_of_a_cluster() -> None:
    with running_cluster("valkey") as servers:
        for server in servers:
            load_library(server.client, "valkey")
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        async with Host(HostConfig(url, port=0)) as host, connected(host.port) as client:
            for number in range(4):
                symbol = f"S{number}"
                await host.engine.define_instrument(symbol, segment=f"s{number}", **RULES)
                await client.subscribe("trades", symbol)
                await client.subscribe("book", symbol)
                sequence = await _trade(client, symbol)
                await client.until(
                    lambda: client.of("trades", symbol)[-1]["sequence"] == sequence,  # noqa: B023
                    "the trade",
                )
            holders = [server for server in servers if server.client.keys("orderbook:{*")]
            assert len(holders) > 1
            assert (await get(host, "/readyz"))[0] == 200


async def test_a_book_that_cannot_be_kept_is_warned_of_once_and_counted(
    host: Host, symbol: str, alice: Client, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await alice.limit(symbol, "buy", "1", "1")
    await alice.ask("cancel_all_after", symbol=symbol, timeout_ms="1000")
    stream = f"orderbook:{{main}}:{symbol}:events"
    whole = valkey.client.dump(stream)
    valkey.client.xadd(stream, {"by": "hand"}, id="99-0")
    await eventually(lambda: len(host.feed.troubled_books()) == 1, "the timer cannot be run")
    await asyncio.sleep(2 * KEEP_INTERVAL_S)
    assert "\norderbook_troubled_books 1.0" in (await get(host, "/metrics"))[1]
    said = [record.getMessage() for record in caplog.records]
    warned = [message for message in said if "DAMAGED" in message and symbol in message]
    assert len(warned) == 1
    valkey.client.restore(stream, 0, whole, replace=True)
    await eventually(lambda: not host.feed.troubled_books(), "the timer is run")
    assert (await alice.ask("get_open_orders", symbol=symbol))["orders"] == []


# ---- the end


async def test_a_draining_host_answers_what_is_in_flight_and_says_come_back(
    valkey: Server, symbol: str, host: Host
) -> None:
    draining = Host(HostConfig(valkey.url, port=0))
    await draining.start()
    async with connected(draining.port) as client, connected(draining.port) as idle:
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1"}
        sent = [await client.send("place_order", **terms, quantity="1") for _ in range(500)]
        await eventually(client.answers, "the first is answered")
        await draining.drain()
        assert await client.closed() == 1012
        assert await idle.closed() == 1012
    answered = client.answers()
    assert [answer["req_id"] for answer in answered] == sent[: len(answered)]
    done = [answer for answer in answered if answer["success"]]
    assert {error_code(a) for a in answered if not a["success"]} <= {"DRAINING"}
    # What was not answered was not done.
    assert (await host.engine.verify_book(symbol))["orders"] == len(done)


async def test_a_draining_host_answers_queries_and_cancels_of_several_books(
    valkey: Server, symbol: str
) -> None:
    draining = Host(HostConfig(valkey.url, port=0))
    await draining.start()
    async with connected(draining.port) as client:
        await client.ask("get_book", symbol=symbol)
        valkey.client.client_pause(300)
        asked = [await client.send("get_open_orders", symbol=symbol) for _ in range(5)]
        asked.append(await client.send("cancel_all_orders", symbols=[symbol]))
        # The host has read them by now; the server will answer when its pause is over.
        await asyncio.sleep(0.1)
        await draining.drain()
        assert await client.closed() == 1012
    answered = {answer["req_id"]: answer["success"] for answer in client.answers()}
    assert {req_id: answered.get(req_id) for req_id in asked} == dict.fromkeys(asked, True)


async def test_a_draining_host_takes_cancels_but_no_orders(
    host: Host, symbol: str, alice: Client
) -> None:
    order_id = (await alice.limit(symbol, "buy", "1", "1"))["order_id"]
    host.draining = True
    terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1"}
    assert await alice.refused("place_order", **terms, quantity="1") == "DRAINING"
    named = {"symbol": symbol, "order_id": order_id}
    assert await alice.refused("amend_order", **named, quantity="2") == "DRAINING"
    replacement = {**terms, "quantity": "1", "cancel_order_id": order_id}
    assert await alice.refused("replace_order", **replacement) == "DRAINING"
    assert await alice.refused("mass_quote", symbol=symbol, quotes=[]) == "DRAINING"
    everywhere = await alice.ask("cancel_all_orders", symbols=[symbol], side="sell")
    assert everywhere["canceled_count"] == 0
    assert (await alice.ask("cancel_order", **named))["status"] == "canceled"
    status, body = await get(host, "/readyz")
    assert (status, json.loads(body)["reasons"]) == (503, ["draining"])
    assert (await get(host, "/ws"))[0] == 503


async def test_a_draining_host_does_not_wait_for_a_client_that_does_not_read(
    valkey: Server, symbol: str
) -> None:
    draining = Host(HostConfig(valkey.url, port=0))
    await draining.start()
    async with stalled(draining, symbol, "trades"):
        async with asyncio.timeout(5):
            await draining.drain()


async def test_nothing_is_left_running_where_a_host_cannot_start(valkey: Server) -> None:
    async with hosting(valkey) as host:
        before = len(asyncio.all_tasks())
        with pytest.raises(OSError, match=str(host.port)):
            await Host(HostConfig(valkey.url, port=host.port)).start()
        await eventually(lambda: len(asyncio.all_tasks()) <= before, "its tasks have ended")
