"""Hosts as processes, killed under load or told to end: what clients were told stays true."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from clients import Client, Json, connected, eventually
from orderbook.engine.engine import Engine
from orderbook.processes.child_process import STOP_TIMEOUT_S, ChildProcess, Surroundings
from servers import Server, load_library, running

RULES = {"tick_size": "0.01", "lot_size": "1"}
START_TIMEOUT_S = 20.0
SYMBOL = "K1"


class HostProcess:
    """One `orderbook serve` on a free port."""

    def __init__(self, redis_url: str) -> None:
        self._output, there = os.pipe()
        command = [sys.executable, "-m", "orderbook", "serve", "--json", "--port", "0"]
        try:
            self.process = ChildProcess(
                [*command, "--redis-url", redis_url], Surroundings(stdout=there)
            )
        finally:
            os.close(there)
        self.port = int(json.loads(self._line())["websocket"].split(":")[2].split("/")[0])

    def _line(self) -> bytes:
        deadline = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.strip().endswith(b"}"):
            ready, _, _ = select.select([self._output], [], [], deadline - time.monotonic())
            part = os.read(self._output, 4096) if ready else b""
            assert part, "the host did not start"
            line += part
        return line

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def status(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.stop()
        os.close(self._output)


@pytest.fixture
def server() -> Iterator[Server]:
    with running("valkey") as server:
        load_library(server.client, "valkey")
        yield server


@contextlib.contextmanager
def host_process(server: Server) -> Iterator[HostProcess]:
    host = HostProcess(server.url)
    try:
        yield host
    finally:
        host.stop()


@contextlib.asynccontextmanager
async def engine_of(server: Server) -> AsyncIterator[Engine]:
    engine = await Engine.connect(server.url)
    try:
        await engine.define_instrument(SYMBOL, **RULES)
        yield engine
    finally:
        await engine.close()


class Trader:
    """Sends orders as fast as they are answered and, after a crash, what was not answered again."""

    WINDOW = 20

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: dict[str, Json] = {}
        self._waiting: dict[str, Json] = {}
        self._numbers = itertools.count(1)
        self._dice = random.Random(name)

    async def trade(self, port: int, until: asyncio.Event) -> None:
        """Trades at a host until told to stop, with everything answered, or until the host dies."""
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/ws?account={self.name}"
            async with session.ws_connect(url) as socket:
                for params in self._waiting.values():
                    await self._send(socket, params)
                await self._fill(socket, until)
                async for message in socket:
                    self._learn(json.loads(message.data))
                    await self._fill(socket, until)
                    if until.is_set() and not self._waiting:
                        return

    async def _fill(self, socket: aiohttp.ClientWebSocketResponse, until: asyncio.Event) -> None:
        while len(self._waiting) < self.WINDOW and not until.is_set():
            params = self._order()
            self._waiting[params["client_order_id"]] = params
            await self._send(socket, params)

    def _order(self) -> Json:
        return {
            "symbol": SYMBOL,
            "side": self._dice.choice(["buy", "sell"]),
            "order_type": "limit",
            "price": str(self._dice.randint(95, 105)),
            "quantity": str(self._dice.randint(1, 9)),
            "client_order_id": f"{self.name}:{next(self._numbers)}",
        }

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, params: Json) -> None:
        request = {"method": "place_order", "req_id": params["client_order_id"], "params": params}
        with contextlib.suppress(ConnectionError):
            await socket.send_json(request)

    def _learn(self, answer: Json) -> None:
        assert answer["success"], answer
        self._waiting.pop(answer["req_id"])
        self.acknowledged[answer["req_id"]] = answer["result"]


class Watcher:
    """Keeps every trade it is told of, and goes on where it was."""

    def __init__(self) -> None:
        self.trades: list[Json] = []
        self.kinds: Counter[str] = Counter()
        self._resume: Json = {}

    async def watch(self, port: int) -> None:
        """Watches until the host dies or the task is canceled."""
        url = f"http://127.0.0.1:{port}/ws"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            params = {"channel": "trades", "symbols": [SYMBOL], **self._resume}
            await socket.send_json({"method": "subscribe", "params": params})
            async for message in socket:
                self._take(json.loads(message.data))

    def _take(self, message: Json) -> None:
        if "channel" not in message:
            assert message["success"], message
            return
        self.kinds[message["type"]] += 1
        self.trades += message["trades"]
        self._resume = {"after": message["sequence"], "epoch": message["epoch"]}


async def test_a_host_killed_under_load_costs_no_order_and_no_trade(server: Server) -> None:
    traders = [Trader(f"trader{number}") for number in range(4)]
    watchers = [Watcher() for _ in range(3)]
    with host_process(server) as first, host_process(server) as second:
        async with engine_of(server) as engine:
            await _trade_until_killed(first, traders, watchers)
            acknowledged_before = sum(len(trader.acknowledged) for trader in traders)
            await _go_on_elsewhere(second, traders, watchers, acknowledged_before + 1000)
            await _check(server, engine, traders, watchers)


async def _trade_until_killed(
    host: HostProcess, traders: list[Trader], watchers: list[Watcher]
) -> None:
    never = asyncio.Event()
    watching = [asyncio.create_task(watcher.watch(host.port)) for watcher in watchers]
    await eventually(lambda: all(watcher.kinds for watcher in watchers), "all are subscribed")
    trading = [asyncio.create_task(trader.trade(host.port, never)) for trader in traders]
    await eventually(
        lambda: all(len(trader.acknowledged) > 300 for trader in traders), "there is load"
    )
    host.signal(signal.SIGKILL)
    await asyncio.wait(watching + trading)
    for task in watching + trading:
        error = task.exception()
        assert error is None or isinstance(error, (aiohttp.ClientError, ConnectionError)), error


async def _go_on_elsewhere(
    host: HostProcess, traders: list[Trader], watchers: list[Watcher], orders: int
) -> None:
    enough = asyncio.Event()
    trading = [asyncio.create_task(trader.trade(host.port, enough)) for trader in traders]
    watching = [asyncio.create_task(watcher.watch(host.port)) for watcher in watchers]
    await eventually(
        lambda: sum(len(trader.acknowledged) for trader in traders) > orders, "they trade again"
    )
    enough.set()
    await asyncio.gather(*trading)
    last = max((fill["trade_id"] for trader in traders for fill in _fills(trader)), key=int)
    await eventually(
        lambda: all(watcher.trades[-1]["trade_id"] == last for watcher in watchers),
        "the last trade is seen",
    )
    for task in watching:
        task.cancel()
    await asyncio.wait(watching)


def _fills(trader: Trader) -> list[Json]:
    return [fill for reply in trader.acknowledged.values() for fill in reply["fills"]]


async def _check(
    server: Server, engine: Engine, traders: list[Trader], watchers: list[Watcher]
) -> None:
    assert (await engine.verify_book(SYMBOL))["verified"] is True
    events = server.client.xrange(f"orderbook:{{main}}:{SYMBOL}:events")
    sequences = [int(entry_id.split(b"-")[0]) for entry_id, _ in events]
    assert sequences == list(range(1, len(sequences) + 1))
    reports = [report for _, topics in events for report in _reports(topics)]
    accepted = Counter(r["client_order_id"] for r in reports if r["event"] == "accepted")
    order_ids = {r["client_order_id"]: r["order_id"] for r in reports if r["event"] == "accepted"}
    for trader in traders:
        for client_order_id, reply in trader.acknowledged.items():
            assert accepted[client_order_id] == 1
            assert order_ids[client_order_id] == reply["order_id"]
    assert max(accepted.values()) == 1
    trades = [
        trade
        for _, topics in events
        if b"trades" in topics
        for trade in json.loads(topics[b"trades"])["trades"]
    ]
    assert len(trades) > 500
    for watcher in watchers:
        assert watcher.trades == trades
        assert watcher.kinds["gap"] == 0
        assert watcher.kinds["snapshot"] == 1


def _reports(topics: dict[bytes, bytes]) -> list[Json]:
    private = [message for topic, message in topics.items() if topic.startswith(b"orders:")]
    return [report for message in private for report in json.loads(message)["orders"]]


async def test_a_host_told_to_end_drains_and_exits_with_zero(server: Server) -> None:
    with host_process(server) as host:
        async with engine_of(server) as engine, connected(host.port) as busy:
            async with connected(host.port) as idle:
                placed = await _many_orders(busy)
                started = time.monotonic()
                host.signal(signal.SIGTERM)
                assert await busy.closed() == 1012
                assert await idle.closed() == 1012
                await eventually(lambda: host.status() is not None, "it ended")
                assert host.status() == 0
                # Else its parent would have killed it.
                assert time.monotonic() - started < STOP_TIMEOUT_S
            done = [answer for answer in busy.answers() if answer["success"]]
            assert len(done) >= 1
            assert (await engine.verify_book(SYMBOL))["orders"] == len(done)
            assert len(placed) >= len(done)


async def _many_orders(client: Client) -> list[int]:
    terms: dict[str, Any] = {"symbol": SYMBOL, "side": "buy", "order_type": "limit", "price": "1"}
    sent = [await client.send("place_order", **terms, quantity="1") for _ in range(1000)]
    await eventually(client.answers, "the first answer")
    return sent


async def test_a_host_ends_though_a_client_does_not_answer(server: Server) -> None:
    """A socket that has sent the request to upgrade and nothing since, not even a close frame."""
    with host_process(server) as host:
        reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b"101" in await reader.readline()
        started = time.monotonic()
        host.signal(signal.SIGTERM)
        await eventually(lambda: host.status() is not None, "it ended")
        assert host.status() == 0
        # Else its parent would have killed it.
        assert time.monotonic() - started < STOP_TIMEOUT_S
        writer.close()


# ---- cancel on disconnect

CONNECTIONS = 100
GUARD_TIMEOUT_MS = 3000


async def test_a_killed_hosts_connections_lose_their_orders_in_time_and_nobody_else(
    server: Server,
) -> None:
    """Some of the accounts have a connection at the other host too, which keeps its orders; one
    has set the dead man's switch itself."""
    books = (SYMBOL, "K2")
    with host_process(server) as doomed, host_process(server) as other:
        async with engine_of(server) as engine, contextlib.AsyncExitStack() as clients:
            await engine.define_instrument("K2", **RULES)
            for number in range(CONNECTIONS):
                client = await clients.enter_async_context(_client(doomed, f"a{number}"))
                await client.ask("cancel_on_disconnect", timeout_ms=GUARD_TIMEOUT_MS)
                await _rest_on(client, books)
            # Those who did not ask for it, and those who are elsewhere.
            plain = await clients.enter_async_context(_client(doomed, "plain"))
            await _rest_on(plain, books)
            for number in range(0, CONNECTIONS, 10):
                client = await clients.enter_async_context(_client(other, f"a{number}"))
                await client.ask("cancel_on_disconnect", timeout_ms=GUARD_TIMEOUT_MS)
                await _rest_on(client, books)
            kept = 1 + CONNECTIONS // 10
            # Longer than a timeout: who lives is not canceled.
            await asyncio.sleep(GUARD_TIMEOUT_MS / 1000 + 1)
            switch = await clients.enter_async_context(_client(doomed, "switch"))
            await _rest_on(switch, books)
            for symbol in books:
                await switch.ask("cancel_all_after", symbol=symbol, timeout_ms=GUARD_TIMEOUT_MS)
            assert await _open_orders(engine, books) == [CONNECTIONS + 1 + kept] * 2
            doomed.signal(signal.SIGKILL)
            await eventually(lambda: doomed.status() is not None, "it is dead")
            due = {symbol: _latest_due_ms(server, symbol) for symbol in books}
            await _until_open(engine, books, kept)
            for symbol in books:
                assert due[symbol] <= 0, "its timers run out in time"
            await asyncio.sleep(GUARD_TIMEOUT_MS / 1000)
            assert await _open_orders(engine, books) == [kept, kept]
            for symbol in books:
                assert len(await _own(engine, symbol, "plain")) == 1
                assert len(await _own(engine, symbol, "a0")) == 1
                assert await _own(engine, symbol, "a1") == []
                assert (await engine.verify_book(symbol))["verified"] is True
                _check_reasons(server, symbol)


@contextlib.asynccontextmanager
async def _client(host: HostProcess, account: str) -> AsyncIterator[Client]:
    async with connected(host.port, account) as client:
        yield client


async def _rest_on(client: Client, books: tuple[str, ...]) -> None:
    for symbol in books:
        assert (await client.limit(symbol, "buy", "1", "1"))["status"] == "open"


async def _open_orders(engine: Engine, books: tuple[str, ...]) -> list[int]:
    return [(await engine.get_instrument(symbol))["open_orders"] for symbol in books]


async def _until_open(engine: Engine, books: tuple[str, ...], count: int) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        # What changes is Redis'.
        while await _open_orders(engine, books) != [count] * len(books):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _own(engine: Engine, symbol: str, account: str) -> list[Json]:
    reply = await engine.get_open_orders(symbol, account=account)
    orders: list[Json] = reply["orders"]
    return orders


def _latest_due_ms(server: Server, symbol: str) -> float:
    """How much later than a timeout from now the last timer of a book runs out."""
    timers = server.client.zrange(f"orderbook:{{main}}:{symbol}:timers", 0, -1, withscores=True)
    seconds, microseconds = server.client.time()
    latest: float = max(due for _, due in timers)
    now_ms: float = seconds * 1000 + microseconds / 1000
    return latest - now_ms - GUARD_TIMEOUT_MS


def _check_reasons(server: Server, symbol: str) -> None:
    events = server.client.xrange(f"orderbook:{{main}}:{symbol}:events")
    reports = [report for _, topics in events for report in _reports(topics)]
    reasons = Counter(report["reason"] for report in reports if report["event"] == "canceled")
    assert reasons == {"disconnected": CONNECTIONS, "cancel_all_after": 1}
