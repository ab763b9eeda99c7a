"""The demo: a whole exchange in one command, with traders, a viewer and a check at the end.

Everything in it is the real thing: an embedded Valkey, the library, a host in a process of its own,
and traders and viewer as ordinary websocket clients that know only docs/protocol.md. At the end the
demo proves three things for every book: verify_book holds; the viewer was told every trade exactly
once; and the last book it was sent is the book as it is stored.
"""

import asyncio
import itertools
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orderbook import terminal
from orderbook.demo.market import (
    MARKETS,
    SEED_LEVELS_DEFAULT,
    FairPrice,
    Maker,
    Market,
    Taker,
    Trader,
)
from orderbook.demo.seed import seed
from orderbook.engine import library
from orderbook.engine.engine import Engine
from orderbook.host.workers import Workers
from orderbook.processes.embedded_server import HOST, EmbeddedServer

REPLY_TIMEOUT_S = 10.0
# The last half-second book comes at most about a second after the last order.
CATCH_UP_TIMEOUT_S = 10.0
CATCH_UP_INTERVAL_S = 0.05
LATENCIES_MAX = 500_000
TAPE_LENGTH = 22
TAPE_WIDTH = 42
LADDER_DEPTH = 10
FRAMES_PER_SECOND = 5
FOCUS_SECONDS = 4.0
# Of every eight traders, three take.
TAKER_PATTERN = (False, True, False, False, True, False, False, True)

Json = dict[str, Any]
Strategies = dict[str, Trader]


class DemoError(Exception):
    """Something in the demo broke: a connection was lost or an answer never came."""


@dataclass(frozen=True)
class Options:
    """`duration_s` None runs until interrupted; `rate` is commands a second of all traders."""

    duration_s: float | None
    traders: int
    rate: float
    random_seed: int


@dataclass
class MarketView:
    """What the viewer has been told about one market."""

    market: Market
    book: Json | None = None
    books_relayed: int = 0
    last_trade: Json | None = None
    trade_count: int = 0
    trades_out_of_order: int = 0

    @property
    def last_trade_id(self) -> int:
        return int(self.last_trade["trade_id"]) if self.last_trade else 0

    def add_trade(self, trade: Json) -> None:
        # Trade ids of a book count from one without gaps: so a missing or repeated one shows.
        if int(trade["trade_id"]) != self.last_trade_id + 1:
            self.trades_out_of_order += 1
        self.last_trade = trade
        self.trade_count += 1


@dataclass
class Figures:
    """What the traders have counted."""

    methods: Counter[tuple[str, str]] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_MAX))

    def add(self, method: str, symbol: str, result: Json, latency_ms: float) -> None:
        self.latencies_ms.append(latency_ms)
        if result["status"] == "rejected":
            self.rejects[result["code"]] += 1
        else:
            self.methods[method, symbol] += 1

    def total(self, method: str) -> int:
        return sum(count for (name, _), count in self.methods.items() if name == method)

    def percentiles(self) -> dict[str, float]:
        ordered = sorted(self.latencies_ms)
        if not ordered:
            return {}
        shares = {"p50": 0.50, "p90": 0.90, "p99": 0.99, "max": 1.0}
        last = len(ordered) - 1
        return {name: round(ordered[round(share * last)], 3) for name, share in shares.items()}


def run(options: Options, show: bool) -> Json:
    """Runs the demo and returns its summary; draws on the terminal when `show`.

    Ends after options.duration_s, on SIGINT or on SIGTERM. Raises DemoError, and ServerError or
    WorkerError when the exchange itself does not start.
    """
    with EmbeddedServer() as server:
        asyncio.run(_prepare(server.url, options.random_seed))
        settings = {
            "ORDERBOOK_REDIS_URL": server.url,
            "ORDERBOOK_SERVE_ACCEPT": "no-append-only-file",
        }
        with Workers(HOST, 0, 1, settings) as workers:
            demo = _Demo(options, server.url, f"http://{HOST}:{workers.port}/ws")
            return asyncio.run(demo.run(show))


async def _prepare(redis_url: str, random_seed: int) -> None:
    engine = await Engine.connect(redis_url)
    try:
        await library.load(engine)
        await seed(engine, MARKETS, SEED_LEVELS_DEFAULT, random_seed)
    finally:
        await engine.close()


class _Demo:
    """One run: its clients, what they have seen, and the pictures of it."""

    def __init__(self, options: Options, redis_url: str, websocket_url: str) -> None:
        self._options = options
        self._redis_url = redis_url
        self._websocket_url = websocket_url
        self._views = {market.symbol: MarketView(market) for market in MARKETS}
        self._figures = Figures()
        self._tape: deque[Json] = deque(maxlen=TAPE_LENGTH)
        self._stopping = asyncio.Event()
        self._started = time.monotonic()

    async def run(self, show: bool) -> Json:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        async with aiohttp.ClientSession() as http:
            viewer_socket = await self._open(http, "viewer")
            for channel in ("book", "trades"):
                await self._subscribe(viewer_socket, channel)
            self._started = time.monotonic()
            try:
                async with asyncio.TaskGroup() as tasks:
                    viewer = tasks.create_task(self._view(viewer_socket))
                    painter = tasks.create_task(self._paint(show))
                    await self._trade(http)
                    duration_s = time.monotonic() - self._started
                    summary = await self._verify(duration_s)
                    viewer.cancel()
                    painter.cancel()
            except* (aiohttp.ClientError, TimeoutError, DemoError) as errors:
                raise DemoError(f"the demo broke: {_first_of(errors)!r}") from errors
            finally:
                await viewer_socket.close()
        return summary

    # ---- clients

    async def _open(
        self, http: aiohttp.ClientSession, account: str
    ) -> aiohttp.ClientWebSocketResponse:
        return await http.ws_connect(self._websocket_url, params={"account": account})

    async def _subscribe(self, socket: aiohttp.ClientWebSocketResponse, channel: str) -> None:
        params = {"channel": channel, "symbols": [*self._views]}
        await _send(socket, {"method": "subscribe", "req_id": channel, "params": params})

    async def _view(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in socket:
            message = msgspec.json.decode(frame.data)
            if message.get("success") is False:
                raise DemoError(f"the viewer was refused: {message}")
            view = self._views.get(message.get("symbol", ""))
            if view is None:
                continue
            if message["channel"] == "book":
                view.book = message
                view.books_relayed += 1
            elif message["type"] == "gap":
                raise DemoError(f"the viewer was told of a gap: {message}")
            else:
                for trade in message["trades"]:
                    view.add_trade(trade)
                    self._tape.append({**trade, "symbol": message["symbol"]})
        raise DemoError(f"the viewer's connection was closed with code {socket.close_code}")

    async def _trade(self, http: aiohttp.ClientSession) -> None:
        """Lets all traders trade until the time is over or somebody interrupts."""
        dice = Random(self._options.random_seed)
        fair_prices = {market.symbol: FairPrice(market, dice) for market in MARKETS}
        kinds = itertools.islice(itertools.cycle(TAKER_PATTERN), self._options.traders)
        async with asyncio.TaskGroup() as tasks:
            for number, takes in enumerate(kinds):
                kind: Callable[..., Trader] = Taker if takes else Maker
                own_dice = Random(f"{self._options.random_seed}/{number}")
                strategies = {m.symbol: kind(m, fair_prices[m.symbol], own_dice) for m in MARKETS}
                account = f"{'taker' if takes else 'maker'}-{number}"
                tasks.create_task(self._trade_as(http, account, strategies, own_dice))
            try:
                await asyncio.wait_for(self._stopping.wait(), self._options.duration_s)
            except TimeoutError:
                self._stopping.set()

    async def _trade_as(
        self, http: aiohttp.ClientSession, account: str, strategies: Strategies, dice: Random
    ) -> None:
        """One trader: a command at random times, one after the other, until the end."""
        socket = await self._open(http, account)
        await self._subscribe(socket, "orders")
        await _result(socket, "orders", strategies)
        rate = self._options.rate / self._options.traders
        due = time.monotonic()
        for req_id in itertools.count():
            due += dice.expovariate(rate)
            if await self._stops_before(due):
                break
            strategy = strategies[dice.choice(MARKETS).symbol]
            method, params = strategy.next_command()
            await _send(socket, {"method": method, "req_id": req_id, "params": params})
            result = await _result(socket, req_id, strategies)
            # From when it should have been sent: a slow host cannot hide behind a waiting trader.
            latency_ms = (time.monotonic() - due) * 1000
            self._figures.add(method, params["symbol"], result, latency_ms)
            strategy.learn(method, params, result)
        await socket.close()

    async def _stops_before(self, due: float) -> bool:
        wait_s = due - time.monotonic()
        if wait_s <= 0:
            return self._stopping.is_set()
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        except TimeoutError:
            return False
        return True

    # ---- the check at the end

    async def _verify(self, duration_s: float) -> Json:
        engine = await Engine.connect(self._redis_url)
        try:
            symbols = {
                symbol: await self._verify_market(engine, view)
                for symbol, view in self._views.items()
            }
        finally:
            await engine.close()
        figures = self._figures
        orders = figures.total("place_order")
        return {
            "duration_s": round(duration_s, 3),
            "orders": orders,
            "orders_per_s": round(orders / duration_s, 1),
            "cancels": figures.total("cancel_order"),
            "amends": figures.total("amend_order"),
            "rejects": dict(figures.rejects),
            "trades": sum(report["trades"] for report in symbols.values()),
            "books_relayed": sum(report["books_relayed"] for report in symbols.values()),
            "latency_ms": figures.percentiles(),
            "verified": all(_is_proven(report) for report in symbols.values()),
            "symbols": symbols,
        }

    async def _verify_market(self, engine: Engine, view: MarketView) -> Json:
        symbol = view.market.symbol
        verdict = await engine.verify_book(symbol)
        stored = await engine.get_book(symbol, depth=LADDER_DEPTH)
        newest = (await engine.get_trades(symbol, limit=1))["trades"]
        traded = int(newest[0]["trade_id"]) if newest else 0
        deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
        while not (view.last_trade_id >= traded and _same_book(view.book, stored)):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(CATCH_UP_INTERVAL_S)
        return {
            "orders": self._figures.methods["place_order", symbol],
            "trades": view.trade_count,
            "books_relayed": view.books_relayed,
            "last_price": newest[0]["price"] if newest else None,
            "verified": verdict["verified"],
            "violations": verdict.get("violations", []),
            "state_hash": verdict.get("state_hash"),
            "trades_missed": traded - view.trade_count,
            "trades_out_of_order": view.trades_out_of_order,
            "book_relayed_is_stored_book": _same_book(view.book, stored),
        }

    # ---- pictures

    async def _paint(self, show: bool) -> None:
        if not show:
            return
        with Live(self._picture(80), auto_refresh=False, screen=True) as live:
            while True:
                picture = self._picture(live.console.width)
                # Laid out beside the loop: the traders' latency is not to be that of a drawing.
                await asyncio.to_thread(live.update, picture, refresh=True)
                await asyncio.sleep(1 / FRAMES_PER_SECOND)

    def _picture(self, width: int) -> RenderableType:
        views = [*self._views.values()]
        ladder_count = max(1, min(len(views), (width - TAPE_WIDTH) // (terminal.LADDER_WIDTH + 1)))
        first = int((time.monotonic() - self._started) / FOCUS_SECONDS) % len(views)
        if ladder_count == len(views):
            first = 0
        focus = (views + views)[first : first + ladder_count]
        ladders = [terminal.ladder(view.book, LADDER_DEPTH) for view in focus if view.book]
        row = terminal.side_by_side([*ladders, terminal.tape(self._tape)])
        return Group(self._headline(), terminal.markets(self._rows()), row)

    def _rows(self) -> list[Json]:
        return [
            {
                "symbol": view.market.symbol,
                "bid": view.book["bids"][0][0] if view.book and view.book["bids"] else "",
                "ask": view.book["asks"][0][0] if view.book and view.book["asks"] else "",
                "last": view.last_trade["price"] if view.last_trade else "",
                "last_side": view.last_trade.get("aggressor_side", "") if view.last_trade else "",
                "trades": view.trade_count,
                "books": view.books_relayed,
            }
            for view in self._views.values()
        ]

    def _headline(self) -> Table:
        elapsed_s = time.monotonic() - self._started
        figures = self._figures
        latencies = sorted(itertools.islice(reversed(figures.latencies_ms), 1000))
        median = f"{latencies[len(latencies) // 2]:.1f} ms" if latencies else "-"
        duration_s = self._options.duration_s
        until = f" of {duration_s:.0f}" if duration_s else ""
        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text("orderbook demo", style="bold"),
            f"{elapsed_s:.0f}{until} s",
            f"{figures.total('place_order')} orders",
            f"{sum(view.trade_count for view in self._views.values())} trades",
            f"acknowledged in {median}",
            Text("Ctrl-C ends", style="dim"),
        )
        return line


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _same_book(relayed: Json | None, stored: Json) -> bool:
    return relayed is not None and all(
        relayed[name] == stored[name] for name in ("bids", "asks", "checksum")
    )


def _is_proven(report: Json) -> bool:
    return (
        report["verified"]
        and report["book_relayed_is_stored_book"]
        and not report["trades_missed"]
        and not report["trades_out_of_order"]
    )


async def _send(socket: aiohttp.ClientWebSocketResponse, message: Json) -> None:
    await socket.send_str(msgspec.json.encode(message).decode())


async def _result(
    socket: aiohttp.ClientWebSocketResponse, req_id: int | str, strategies: Strategies
) -> Json:
    """The reply to a request: its result, or its error with status "rejected" as from FCALL.

    What comes on the orders channel before it is passed to the strategies.
    """
    while True:
        frame = await socket.receive(timeout=REPLY_TIMEOUT_S)
        if frame.type is not aiohttp.WSMsgType.TEXT:
            raise DemoError(f"a trader's connection was closed with code {socket.close_code}")
        message: Json = msgspec.json.decode(frame.data)
        if message.get("channel") != "orders":
            break
        for report in message.get("orders", []):
            strategies[message["symbol"]].learn_report(report)
    if message.get("req_id") != req_id:
        raise DemoError(f"an answer to another question came: {message}")
    if message["success"]:
        result: Json = message["result"]
        return result
    return {"status": "rejected", **message["error"]}
