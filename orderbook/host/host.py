"""The websocket host: an aiohttp application around one engine client and one stream reader.

A host keeps nothing that matters. It can be killed at any moment and another started anywhere:
every order that was acknowledged is in Redis, and clients resume at any other host from their
sequence. What a host adds is shape checks, micro-batches, fan-out and a way to end that nobody
notices: not ready any more, no new sockets, no new orders, answers for what is in flight, and a
close code that says "come back, to any host".
"""

import asyncio
import contextlib
import importlib
import logging
import re
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from orderbook.engine import library, preflight
from orderbook.engine.batcher import Batcher
from orderbook.engine.engine import Engine
from orderbook.engine.errors import EngineError
from orderbook.feed.feed import Feed
from orderbook.feed.queries import Queries
from orderbook.host.connection import CLOSE_DRAINING, Connection, Socket, text_frame
from orderbook.host.metrics import Limited, Metrics
from orderbook.host.readiness import Readiness
from orderbook.host.session import Session
from orderbook.host.sockets import (
    ANY_HOST,
    LOOPBACK_NAMES,
    Door,
    DoorSite,
    host_name,
    query_refusal,
)
from orderbook.limits import Address, Addresses, Limits
from orderbook.messages import Durability, Refusal, RejectCode

logger = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 1.0
# Together below the five seconds in which a host is to be gone.
DRAIN_ANSWERS_TIMEOUT_S = 2.0
DRAIN_POLL_S = 0.01
DRAIN_CLOSE_TIMEOUT_S = 1.5
DRAIN_CANCELS_TIMEOUT_S = 0.5
DRAIN_HTTP_TIMEOUT_S = 0.5

# Takes the port of clients, and that of health checks and metrics.
Announce = Callable[[int, int], None]

_PARAMETERS = frozenset({"account", "durability"})
_ACCOUNT = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


@dataclass(frozen=True)
class HostConfig:
    """Where a host listens, which books it serves and what it allows.

    Accounts are whatever clients say (guest mode), so only loopback is listened on unless told
    otherwise. `port` 0 takes any free one. `origins` are web origins beside the host's own.
    """

    redis_url: str
    read_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    # Where health checks and metrics are asked for; None: on `port`, 0: any free one.
    admin_port: int | None = None
    reuse_port: bool = False
    origins: tuple[str, ...] = ()
    # Names by which clients may call us, beside those of loopback and what we listen on.
    allowed_hosts: tuple[str, ...] = ()
    # Names of preflight findings that need not be told, or do not forbid the use of a server.
    accepted: tuple[str, ...] = ()
    # What every command waits for at least, and on how many replicas.
    durability: Durability = Durability.MEMORY
    durability_replicas: int = 1
    limits: Limits = field(default_factory=Limits)


class Host:
    """One host process. Use as an async context manager, or start() and drain()."""

    engine: Engine
    feed: Feed
    queries: Queries
    readiness: Readiness

    def __init__(self, config: HostConfig) -> None:
        self.config = config
        self.limits = config.limits
        self.metrics = Metrics()
        self.draining = False
        self.batchers: dict[str, Batcher] = {}
        self.large_buffers: set[Connection] = set()
        self.port = 0
        self.admin_port = 0
        self._connections: set[Connection] = set()
        self._door = Door(config.limits, self.metrics)
        self._allowed_hosts = {name.lower() for name in (*config.allowed_hosts, config.host)}
        self._allowed_hosts |= LOOPBACK_NAMES
        self._addresses = Addresses(config.limits.address)
        self._heartbeats: asyncio.Task[None] | None = None
        self._cleanup = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Returns when the host takes connections.

        Raises EngineError, LibraryError, PreflightError, or OSError for the port; nothing is left
        running then.
        """
        async with contextlib.AsyncExitStack() as cleanup:
            config = self.config
            self.engine = await Engine.connect(config.redis_url, read_url=config.read_url)
            cleanup.push_async_callback(self.engine.close)
            await self._preflight()
            self.engine.durability_replicas = config.durability_replicas
            await self._check_durability(config.durability)
            self.queries = Queries(self.engine)
            self.feed = Feed(
                self.engine,
                encode=text_frame,
                observe_sent=self.metrics.count_sent,
                queries=self.queries,
            )
            cleanup.push_async_callback(self.feed.stop)
            await self.feed.start()
            self.readiness = Readiness(self.engine, self.feed)
            cleanup.push_async_callback(self.readiness.close)
            await self._listen(cleanup)
            self._heartbeats = asyncio.create_task(self._beat())
            cleanup.callback(self._heartbeats.cancel)
            self._cleanup = cleanup.pop_all()

    async def _preflight(self) -> None:
        """Looks at the servers, loads a missing library and tells what an operator should know."""
        engine, accepted = self.engine, self.config.accepted
        findings = await preflight.server_findings(engine.primaries())
        warnings = preflight.told_or_raised(findings, accepted)
        await library.check(engine)
        found = [
            *await preflight.rights_findings(engine),
            *await preflight.reader_findings(engine),
        ]
        for warning in warnings + preflight.told_or_raised(found, accepted):
            logger.warning("%s", warning)

    async def _check_durability(self, durability: Durability) -> None:
        """Raises EngineError where the server can never confirm what is asked of every command."""
        refusal = await self.engine.durability_refusal(durability)
        if refusal:
            refused = msgspec.json.decode(refusal, type=Refusal)
            raise EngineError(RejectCode(refused.code), refused.message)

    async def drain(self) -> None:
        """Ends the host as its clients would wish: see the head of this file."""
        self.draining = True
        self.queries.hurry()
        await self._site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_ANSWERS_TIMEOUT_S):
                await self._answered_all()
        closing = [
            connection.close_soon(CLOSE_DRAINING, "the host is draining: reconnect")
            for connection in self._connections
        ]
        if closing:
            await asyncio.wait(closing, timeout=DRAIN_CLOSE_TIMEOUT_S)
        for connection in self._connections:
            connection.abort()
        # What cancel_on_disconnect cancels; a timer in Redis does what is not done in time.
        canceling = [asyncio.create_task(batcher.drained()) for batcher in self.batchers.values()]
        if canceling:
            await asyncio.wait(canceling, timeout=DRAIN_CANCELS_TIMEOUT_S)
        await self._cleanup.aclose()

    async def _answered_all(self) -> None:
        """Returns when all that clients have sent is answered, also who has gone meanwhile."""
        while any(one.is_owed_an_answer for one in self._connections):  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        for batcher in list(self.batchers.values()):
            await batcher.drained()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()

    async def find_batcher(self, symbol: str) -> Batcher | None:
        """The batcher of a symbol, asking Redis about one that is new. Raises EngineError."""
        if not await self.feed.knows(symbol):
            return None
        batcher = self.batchers.get(symbol)
        if batcher is None:
            observe = self.metrics.call_seconds.observe
            batcher = Batcher(self.engine, symbol, observe_call_s=observe)
            self.batchers[symbol] = batcher
        return batcher

    async def _listen(self, cleanup: contextlib.AsyncExitStack) -> None:
        """Health checks come first, and stay until the host has drained: where they have a port of
        their own they tell of it."""
        config = self.config
        public = web.Application()
        public.router.add_get("/ws", self._websocket)
        admin = public if config.admin_port is None else web.Application()
        admin.router.add_get("/livez", self._livez)
        admin.router.add_get("/readyz", self._readyz)
        admin.router.add_get("/metrics", self._metrics_text)
        if config.admin_port is not None:
            runner = await _runner(admin, cleanup)
            # A door of its own: those who crowd at the other one close nobody here.
            door = Door(config.limits, self.metrics)
            await DoorSite(runner, door, config.host, config.admin_port, reuse_port=False).start()
            self.admin_port = int(runner.addresses[0][1])
        runner = await _runner(public, cleanup)
        self._site = DoorSite(runner, self._door, config.host, config.port, config.reuse_port)
        await self._site.start()
        self.port = int(runner.addresses[0][1])
        if config.admin_port is None:
            self.admin_port = self.port

    async def _beat(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            now_ms = time.time_ns() // 1_000_000
            turn += 1
            for connection in list(self._connections):
                connection.heartbeat(now_ms, turn)
                connection.close_if_idle()
            self._addresses.forget()

    # ---- requests

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        """GET /ws?account=NAME: refusals come before the upgrade, as plain HTTP."""
        address = self._addresses.find(request.remote or "")
        refusal = self._refusal(request, address)
        if refusal is not None:
            return refusal
        account = request.query.get("account") or f"guest-{secrets.token_hex(8)}"
        if _ACCOUNT.fullmatch(account) is None:
            text = "account is 1 to 64 characters of A-Z a-z 0-9 _ . @ -"
            return web.Response(status=400, text=text)
        try:
            # A plus sign in a query stands for a space.
            asked = Durability(request.query.get("durability", "memory").replace(" ", "+"))
            await self._check_durability(asked)
        except ValueError:
            return web.Response(status=400, text="durability is " + ", ".join(Durability))
        except EngineError as error:
            status = 400 if error.code is RejectCode.DURABILITY_UNAVAILABLE else 503
            return web.Response(status=status, text=f"{error.code}: {error.message}")
        socket = Socket(self.limits, self.metrics)
        writer = await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return socket
        session = Session(account, asked, self.config.durability)
        connection = Connection(self, socket, transport, session, address)
        with self._connected(connection, address):
            if self.draining:
                # It came in while the door was closing.
                connection.close_soon(CLOSE_DRAINING, "the host is draining: reconnect")
            await connection.run(writer)
        return socket

    @contextlib.contextmanager
    def _connected(self, connection: Connection, address: Address) -> Iterator[None]:
        self._connections.add(connection)
        self.metrics.connections.inc()
        address.connections_count += 1
        try:
            yield
        finally:
            self._connections.discard(connection)
            self.metrics.connections.dec()
            address.connections_count -= 1

    def _refusal(self, request: web.Request, address: Address) -> web.Response | None:
        fault = self._fault(request)
        if fault is not None:
            return fault
        if self.draining:
            return web.Response(status=503, text="the host is draining")
        limit = self.limits.connections_per_address_max
        if limit and address.connections_count >= limit:
            self.metrics.count_limited(Limited.ADDRESS_CONNECTIONS)
            return web.Response(status=429, text=f"an address has at most {limit} connections")
        if len(self._connections) >= self.limits.connections_max:
            self.metrics.count_limited(Limited.CONNECTIONS)
            return web.Response(status=503, text="the host has no room for more connections")
        return None

    def _fault(self, request: web.Request) -> web.Response | None:
        """What is wrong with who asks, and how."""
        wrong = query_refusal(request, _PARAMETERS)
        if wrong is not None:
            return web.Response(status=400, text=wrong)
        name = host_name(request)
        if name is None:
            return web.Response(status=400, text="a request has one Host: NAME or NAME:PORT")
        if not self._is_ours(name, request):
            # A page may have had its own name point at us.
            self.metrics.count_limited(Limited.ALLOWED_HOSTS)
            return web.Response(status=421, text="this is no name of the host: --allowed-host")
        try:
            may_connect = self._may_connect(request)
        except ValueError:
            return web.Response(status=400, text="Origin is no origin")
        if not may_connect:
            return web.Response(status=403, text="this origin may not connect")
        return None

    def _is_ours(self, name: str, request: web.Request) -> bool:
        if name in self._allowed_hosts or ANY_HOST in self._allowed_hosts:
            return True
        # Where we listen on every address, the one that was reached.
        transport = request.transport
        reached = transport.get_extra_info("sockname") if transport is not None else None
        return reached is not None and name == str(reached[0]).lower()

    def _may_connect(self, request: web.Request) -> bool:
        """Browsers name the page's origin: ours or an allowed one. Programs name none. Raises
        ValueError for what is no origin."""
        origins = request.headers.getall("Origin", [])
        if not origins:
            return True
        if len(origins) > 1:
            raise ValueError("several origins")
        if origins[0] in self.config.origins:
            return True
        return urlsplit(origins[0]).netloc.lower() == request.headers["Host"].lower()

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, _: web.Request) -> web.Response:
        """Whether to send clients here; 503 with the reasons when not."""
        reasons = ["draining"] if self.draining else await self.readiness.reasons()
        told = {
            "ready": not reasons,
            "reasons": reasons,
            "troubled_books_count": len(self.feed.troubled_books()),
            "troubled_books": self.readiness.told_troubles(),
        }
        status = 503 if reasons else 200
        body = msgspec.json.encode(told)
        return web.Response(status=status, body=body, content_type="application/json")

    async def _metrics_text(self, _: web.Request) -> web.Response:
        self.metrics.stream_lag_seconds.set(self.feed.lag_s())
        self.metrics.troubled_books.set(len(self.feed.troubled_books()))
        self.metrics.unreadable_books.set(self.feed.unreadable_books_count())
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self.metrics.text(), headers=headers)


async def _runner(app: web.Application, cleanup: contextlib.AsyncExitStack) -> web.AppRunner:
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=DRAIN_HTTP_TIMEOUT_S,
    )
    await runner.setup()
    cleanup.push_async_callback(runner.cleanup)
    return runner


def _not_announced(_port: int, _admin_port: int) -> None:
    pass


async def serve(config: HostConfig, announce: Announce = _not_announced) -> None:
    """Runs a host until SIGTERM or SIGINT, then drains it. `announce` is told the ports.

    Raises what Host.start raises.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with Host(config) as host:
        announce(host.port, host.admin_port)
        await stopping.wait()


def run(config: HostConfig, announce: Announce = _not_announced) -> None:
    """The same for a process that does nothing else, on uvloop where it is installed."""
    loop_run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    with contextlib.suppress(ImportError):
        loop_run = importlib.import_module("uvloop").run
    loop_run(serve(config, announce))
