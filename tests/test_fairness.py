"""What one client may take from the others: turns, unanswered commands, allowances."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from clients import Client, connected, eventually, new_symbol
from orderbook.cli.main import cli
from orderbook.cli.serve import LIMIT_OPTIONS, limit_environment
from orderbook.engine.batcher import (
    BATCH_BYTES_MAX,
    CANCEL_ALL_SIZE,
    CANCELS_FIRST_MAX,
    CANCELS_SHARE_MAX,
    Batcher,
    Urgency,
)
from orderbook.engine.engine import Engine
from orderbook.feed.queries import Lane, weight
from orderbook.host.host import Host, HostConfig
from orderbook.limits import WEIGHT_MAX, Allowance, Limits, network
from servers import Server

RULES = {"tick_size": "0.01", "lot_size": "1"}
ORDER = {"side": "buy", "order_type": "limit", "price": "1", "quantity": "1"}


@pytest.fixture
async def exchange(valkey: Server) -> AsyncIterator[Engine]:
    engine = await Engine.connect(valkey.url)
    yield engine
    await engine.close()


@pytest.fixture
async def symbol(exchange: Engine) -> str:
    symbol = new_symbol()
    await exchange.define_instrument(symbol, **RULES)
    return symbol


@contextlib.asynccontextmanager
async def hosting(server: Server, **limits: Any) -> AsyncIterator[Host]:
    async with Host(HostConfig(server.url, port=0, limits=Limits(**limits))) as host:
        yield host


def place(account: str, **more: str) -> bytes:
    return json.dumps({"method": "place_order", "account": account, **ORDER, **more}).encode()


def cancel(account: str) -> bytes:
    return f'{{"method":"cancel_all_orders","account":"{account}"}}'.encode()


class Log:
    """Who was answered what, in that order."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []

    def of(self, name: str) -> Callable[[bytes], None]:
        return lambda reply: self.entries.append((name, json.loads(reply)))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.entries]


# ---- turns


async def test_commands_of_a_book_are_taken_from_their_owners_by_turns(
    exchange: Engine, symbol: str
) -> None:
    batcher, log = Batcher(exchange, symbol), Log()
    for _ in range(500):
        batcher.submit(place("flooder"), log.of("flooder"), "flooder")
    for name in ("a", "b", "a"):
        batcher.submit(place(name), log.of(name), name)
    await batcher.drained()
    # Who has just come is next every other time.
    assert log.names[:6] == ["flooder", "flooder", "a", "flooder", "b", "a"]
    order_ids = [int(reply["order_id"]) for _, reply in log.entries]
    assert order_ids == sorted(order_ids)
    assert len(order_ids) == 503


async def test_timers_and_cancels_come_before_orders_of_others(
    exchange: Engine, symbol: str
) -> None:
    batcher, log = Batcher(exchange, symbol), Log()
    timer = {"method": "cancel_all_after", "account": "c", "session": "s", "timeout_ms": "1000"}
    for _ in range(300):
        batcher.submit(place("flooder"), log.of("flooder"), "flooder")
    batcher.submit(cancel("b"), log.of("cancel"), "b", Urgency.CANCEL)
    batcher.submit(json.dumps(timer).encode(), log.of("timer"), "c", Urgency.TIMER)
    await batcher.drained()
    assert log.names[:3] == ["timer", "cancel", "flooder"]


async def test_a_cancel_never_overtakes_what_its_owner_sent_before(
    exchange: Engine, symbol: str
) -> None:
    batcher, log = Batcher(exchange, symbol), Log()
    for _ in range(3):
        batcher.submit(place("a"), log.of("order"), "a")
    batcher.submit(cancel("a"), log.of("cancel"), "a", Urgency.CANCEL)
    batcher.submit(place("b"), log.of("other"), "b")
    await batcher.drained()
    assert log.names == ["order", "order", "other", "order", "cancel"]
    assert log.entries[-1][1]["canceled_count"] == 3


async def test_a_flood_of_cancels_leaves_room_for_orders(exchange: Engine, symbol: str) -> None:
    batcher, log = Batcher(exchange, symbol), Log()
    unknown = json.dumps({"method": "cancel_order", "account": "x", "order_id": "1"}).encode()
    for number in range(4 * CANCELS_FIRST_MAX):
        batcher.submit(unknown, log.of("cancel"), number % 7, Urgency.CANCEL)
    batcher.submit(place("a"), log.of("order"), "a")
    await batcher.drained()
    assert log.names.index("order") == CANCELS_FIRST_MAX


async def test_cancels_of_much_leave_room_for_orders_too(exchange: Engine, symbol: str) -> None:
    batcher, log = Batcher(exchange, symbol), Log()
    for number in range(100):
        batcher.submit(cancel("x"), log.of("cancel"), number, Urgency.CANCEL)
    batcher.submit(place("a"), log.of("order"), "a")
    await batcher.drained()
    assert log.names.index("order") <= BATCH_BYTES_MAX * CANCELS_SHARE_MAX / CANCEL_ALL_SIZE


async def test_a_full_queue_takes_what_has_nothing_in_it(exchange: Engine, symbol: str) -> None:
    batcher, log = Batcher(exchange, symbol, queue_length_max=2), Log()
    for _ in range(3):
        batcher.submit(place("flooder"), log.of("flooder"), "flooder")
    batcher.submit(place("a"), log.of("a"), "a")
    await batcher.drained()
    codes = [(name, reply.get("code")) for name, reply in log.entries]
    assert codes[0] == ("flooder", "SYSTEM_BUSY")
    assert ("a", None) in codes


async def test_a_bound_order_lives_and_others_are_served_beside_those_that_flood(
    valkey: Server, symbol: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        host = await stack.enter_async_context(hosting(valkey))
        alice = await stack.enter_async_context(connected(host.port, "alice"))
        await alice.ask("cancel_on_disconnect", timeout_ms=1000)
        kept = await alice.limit(symbol, "buy", "1", "0.5")
        ioc = {"symbol": symbol, **ORDER, "time_in_force": "ioc"}
        frame = json.dumps({"method": "place_order", "params": ioc})
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://127.0.0.1:{host.port}/ws"
        flooders = [await session.ws_connect(url) for _ in range(4)]

        async def send(socket: aiohttp.ClientWebSocketResponse) -> None:
            for _ in range(1000):
                await socket.send_str(frame)

        async def read(socket: aiohttp.ClientWebSocketResponse) -> None:
            for _ in range(1000):
                await socket.receive()

        flood = asyncio.gather(*map(send, flooders), *map(read, flooders))
        turns = 0
        while not flood.done():
            await alice.limit(symbol, "buy", "1", "0.4")
            turns += 1
            batcher = host.batchers[symbol]
            assert len(batcher._waiting) <= 4 * Limits.in_flight_per_connection_max + 1
        await flood
        # It would have had to wait for four thousand, were it not its turn before.
        assert turns > 10
        open_orders = (await alice.ask("get_open_orders", symbol=symbol, limit=1000))["orders"]
        assert kept["order_id"] in [order["order_id"] for order in open_orders]


# ---- queries


async def test_expensive_queries_are_refused_beyond_their_allowance_and_told_when(
    valkey: Server, symbol: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        host = await stack.enter_async_context(
            hosting(valkey, query_weight_per_s_max=0.5, query_weight_per_address_per_s_max=2.0)
        )
        clients = [
            await stack.enter_async_context(connected(host.port, f"c{number}"))
            for number in range(3)
        ]
        full = {"symbol": symbol, "depth": "full"}
        await clients[0].ask("get_level3", **full)
        answer = await clients[0].answer(await clients[0].send("get_level3", **full))
        assert answer["error"]["code"] == "RATE_LIMITED"
        assert 30_000 < answer["error"]["retry_after_ms"] <= 40_000
        # What costs little goes on, and so do commands.
        await clients[0].ask("get_book", symbol=symbol)
        await clients[0].limit(symbol, "buy", "1", "1")
        await clients[1].ask("get_level3", **full)
        # Forty were saved up for their address.
        assert await clients[2].refused("get_level3", **full) == "RATE_LIMITED"
        text = host.metrics.text().decode()
        assert 'orderbook_limited_total{limit="queries"} 1.0' in text
        assert 'orderbook_limited_total{limit="address_queries"} 1.0' in text
        assert 'orderbook_rejects_total{code="RATE_LIMITED"} 2.0' in text


async def test_beginning_subscriptions_again_and_again_costs_as_its_queries_do(
    valkey: Server, symbol: str
) -> None:
    async with hosting(valkey, query_weight_per_s_max=0.5) as host, connected(host.port) as client:
        wanted = {"channel": "level3", "symbols": [symbol]}
        await client.ask("subscribe", **wanted)
        await client.ask("unsubscribe", **wanted)
        await client.ask("subscribe", **wanted)
        answer = await client.answer(await client.send("subscribe", **wanted))
        assert answer["error"]["code"] == "RATE_LIMITED"
        assert answer["error"]["retry_after_ms"] > 1000
        # What it has goes on, and other subscriptions begin.
        await client.subscribe("level2", symbol)
        await client.limit(symbol, "buy", "1", "1")
        await client.until(lambda: client.of("level3")[-1]["bids"], "the order")


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("get_level3", ["depth", "full"], WEIGHT_MAX),
        ("get_level3", ["depth", "0000500"], WEIGHT_MAX),
        ("get_level3", [], 5),
        ("get_book", [], 0),
        ("get_book", ["depth", "100"], 0),
        ("get_book", ["depth", "full"], 1),
        ("get_open_orders", ["account", "depth"], 1),
        ("get_open_orders", ["account", "limit", "limit", "100"], 0),
        ("get_closed_orders", ["account", "a", "limit", "1"], 5),
        ("get_ticker", [], 0),
    ],
)
async def test_a_query_weighs_what_it_may_cost(
    function: str, arguments: list[str], expected: int
) -> None:
    assert weight(function, arguments) == expected


async def test_a_lane_is_given_to_owners_by_turns() -> None:
    lane, order = Lane(1), list[str]()

    async def work(name: str) -> None:
        order.append(name)
        await asyncio.sleep(0)

    names = [*"aaaaaaaa", "b", "c"]
    await asyncio.gather(*(lane.run(name, partial(work, name)) for name in names))
    # The first one has found the lane empty.
    assert order == [*"aaabaca", *"aaa"]


async def test_a_lane_is_empty_for_most_of_the_time() -> None:
    loop = asyncio.get_running_loop()
    lane, starts = Lane(1, 0.25), list[float]()

    async def work() -> None:
        starts.append(loop.time())
        await asyncio.sleep(0.02)

    await asyncio.gather(*(lane.run("a", work) for _ in range(3)))
    assert all(after - before >= 0.08 for before, after in itertools.pairwise(starts))


async def test_who_gives_up_waiting_in_a_lane_costs_nobody_a_turn() -> None:
    lane, ended = Lane(1), asyncio.Event()
    first = asyncio.create_task(lane.run("a", ended.wait))
    second = asyncio.create_task(lane.run("b", ended.wait))
    third = asyncio.create_task(lane.run("c", ended.wait))
    await asyncio.sleep(0)
    second.cancel()
    ended.set()
    assert all(await asyncio.gather(first, third))
    assert await lane.run("d", ended.wait)


async def test_a_call_that_takes_too_long_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orderbook.feed.queries.PLACE_HELD_S_MAX", 0.02)
    lane, ended = Lane(1), asyncio.Event()
    stuck = asyncio.create_task(lane.run("a", ended.wait))
    await asyncio.sleep(0)

    async def work() -> str:
        return "done"

    assert await lane.run("b", work) == "done"
    ended.set()
    await stuck


# ---- what the host itself answers


@pytest.mark.parametrize("kind", ["frame", "method", "refused"])
async def test_pings_and_refusals_beyond_the_allowance_are_answered_later(
    valkey: Server, symbol: str, kind: str
) -> None:
    async with (
        hosting(valkey, requests_per_s_max=100.0) as host,
        connected(host.port) as client,
        connected(host.port, "bob") as bob,
    ):
        loop = asyncio.get_running_loop()
        started = loop.time()
        # Two hundred are saved up.
        for _ in range(249):
            if kind == "frame":
                await client.socket.ping()
            elif kind == "method":
                await client.send("ping")
            else:
                await client.send("place_order", symbol=symbol, nonsense="1")
        await bob.limit(symbol, "buy", "1", "1")
        await client.limit(symbol, "buy", "1", "1")
        assert loop.time() - started > 0.4
        assert 'orderbook_limited_total{limit="requests"}' in host.metrics.text().decode()


async def test_connections_of_an_address_are_limited(valkey: Server) -> None:
    async with hosting(valkey, connections_per_address_max=1) as host:
        async with connected(host.port):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with connected(host.port):
                    pass
            assert caught.value.status == 429
        await eventually(lambda: not host._connections, "the first is gone")
        async with connected(host.port) as client:
            await client.ask("ping")
        assert 'limit="address_connections"} 1.0' in host.metrics.text().decode()


# ---- allowances


def test_an_allowance_fills_up_with_time_and_never_overflows() -> None:
    now = [0.0]
    allowance = Allowance(2.0, 10.0, lambda: now[0])
    assert allowance.wait_s(10) == 0
    allowance.take(10)
    assert allowance.wait_s(1) == 0.5
    now[0] = 0.5
    assert allowance.wait_s(1) == 0
    now[0] = 1000.0
    assert allowance.is_full
    allowance.take(1000)
    assert allowance.wait_s(0) == 5.0


def test_an_allowance_of_zero_is_no_limit() -> None:
    allowance = Allowance(0.0, 1.0, lambda: 0.0)
    allowance.take(1000)
    assert allowance.wait_s(1000) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_address_stands_for_who_has_it(text: str, expected: str) -> None:
    assert network(text) == expected


async def test_addresses_are_forgotten_when_nothing_need_be_known(valkey: Server) -> None:
    async with hosting(valkey, requests_per_s_max=0, requests_per_address_per_s_max=0) as host:
        async with connected(host.port) as client:
            await client.ask("ping")
            assert len(host._addresses) == 1
        await eventually(lambda: len(host._addresses) == 0, "the address is forgotten")


async def test_the_unanswered_commands_of_a_connection_are_bounded(
    valkey: Server, symbol: str
) -> None:
    async with hosting(valkey, in_flight_per_connection_max=5) as host, connected(host.port) as one:
        await one.limit(symbol, "buy", "1", "1")
        valkey.client.client_pause(500)
        sent = [await one.send("place_order", symbol=symbol, **ORDER) for _ in range(50)]
        await asyncio.sleep(0.2)
        (connection,) = host._connections
        assert connection._in_flight == 5
        answers = [await _answer(one, req_id) for req_id in sent]
        assert all(answer["success"] for answer in answers)


async def _answer(client: Client, req_id: int) -> dict[str, Any]:
    answer: dict[str, Any] = await client.answer(req_id)
    return answer


def test_the_options_of_serve_set_limits_and_are_documented() -> None:
    fields = {field.name for field in dataclasses.fields(Limits)}
    assert {limit.field for limit in LIMIT_OPTIONS.values()} <= fields
    operations = (Path(__file__).resolve().parent.parent / "docs" / "operations.md").read_text(
        "utf-8"
    )
    for name in LIMIT_OPTIONS:
        assert f"`--{name.replace('_', '-')}`" in operations


def test_workers_get_the_limits_of_their_parent() -> None:
    given = {name: getattr(Limits, limit.field) for name, limit in LIMIT_OPTIONS.items()}
    context = cli.commands["serve"].make_context("serve", [])
    for name, value in limit_environment(given).items():
        option = name.removeprefix("ORDERBOOK_SERVE_").lower()
        assert float(value) == context.params[option]
