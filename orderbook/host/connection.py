"""One websocket: frames between its socket and its session, and what happens when it does not read.

Everything for the client goes through one list that is written once per turn of the event loop, so
that order is kept and a burst costs one system call. Frames are built here and not by aiohttp: a
message for a thousand subscribers is then framed once. What the client has not read shows as the
size of the write buffer, and decides:

* a book waits, and only the newest of each symbol is kept (conflation);
* a trade or report cannot be left out: beyond a limit the connection is closed, and the client
  resumes from its sequence;
* answers are held for a client that sends without reading, up to a limit; then no more is read from
  it until it reads (backpressure, so nothing is lost).

What a client sends is read a few frames at a time, by turns with all others. Nothing more is read
while it has enough unanswered commands, or has used up its allowance of frames that the host itself
has to answer: pings, subscriptions and what is refused. Expensive queries have an allowance, too;
beyond it they are refused and told when to come again.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import msgspec
from aiohttp import WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from orderbook.engine.batcher import Batcher, Urgency
from orderbook.engine.engine import Acknowledged, Engine, with_durability
from orderbook.engine.errors import EngineError
from orderbook.feed.feed import Feed, Subscription, Wanted
from orderbook.feed.queries import Queries, snapshot_weight, weight
from orderbook.host.cancel_on_disconnect import Guard
from orderbook.host.metrics import Limited, Metrics
from orderbook.host.session import (
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
    limited,
)
from orderbook.host.sockets import DoorProtocol
from orderbook.limits import Address, Limits
from orderbook.messages import (
    PLACING_METHODS,
    REJECTED_PREFIX,
    UNCONFIRMED,
    Channel,
    Durability,
    RejectCode,
)

CLOSE_NORMAL = 1000
CLOSE_IDLE = 1001
CLOSE_TOO_LARGE = 1009
CLOSE_DRAINING = 1012
CLOSE_SLOW = 4001

HEARTBEAT_S = 20.0
# How long a client may take to read what is left and to answer our close.
CLOSE_TIMEOUT_S = 5.0
# How long a client that sent too much may go on sending before it is cut off and so misses why.
TOO_LARGE_LINGER_S = 1.0
LINGER_POLL_S = 0.02

# How many frames of one client are looked at before it is somebody else's turn.
FRAMES_PER_TURN_MAX = 4
# Beyond so many every subscription counts as one that begins anew.
SUBSCRIPTIONS_REMEMBERED_MAX = 10_000
# How long at most a client is not heard for having sent too much.
DELAY_S_MAX = 1.0

PING_FRAME = b"\x89\x00"

# RFC 6455, section 5.2: how long a payload its length in 7 and in 16 bits can tell.
_LENGTH_IN_HEADER_MAX = 125
_LENGTH_IN_TWO_BYTES_MAX = 0xFFFF

# What a draining host still does: risk can be taken off until the end.
_REFUSED_WHEN_DRAINING = PLACING_METHODS | {"amend_order"}
_CANCELING = frozenset({"cancel_order", "cancel_all_orders", "cancel_all_after"})

_FRAMES = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})


class Backend(Protocol):
    """What connections share: their host."""

    engine: Engine
    feed: Feed
    metrics: Metrics
    limits: Limits
    draining: bool
    batchers: dict[str, Batcher]
    queries: Queries
    large_buffers: set["Connection"]

    async def find_batcher(self, symbol: str) -> Batcher | None:
        """The batcher of a symbol, asking Redis about one that is new. Raises EngineError."""


def text_frame(payload: bytes) -> bytes:
    """A websocket text frame as a server sends it."""
    length = len(payload)
    if length <= _LENGTH_IN_HEADER_MAX:
        return b"\x81%c%b" % (length, payload)
    if length <= _LENGTH_IN_TWO_BYTES_MAX:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping; it has at most 125 bytes."""
    return b"\x8a%c%b" % (len(payload), payload)


def close_frame(code: int, reason: str) -> bytes:
    """A websocket close frame as a server sends it; the reason has at most 123 bytes."""
    payload = code.to_bytes(2, "big") + reason.encode()
    return b"\x88%c%b" % (len(payload), payload)


class Socket(web.WebSocketResponse):
    """A websocket that says why before it closes on a frame that is too large."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        super().__init__(
            compress=False,
            # aiohttp refuses from this size on, not beyond it.
            max_msg_size=limits.frame_bytes_max + 1,
            heartbeat=HEARTBEAT_S,
            autoclose=False,
            autoping=False,
            decode_text=False,
        )
        self._frame_bytes_max = limits.frame_bytes_max
        # What is to be done before nothing more can be sent.
        self.before_close: Callable[[], None] | None = None
        self._metrics = metrics

    @property
    def heard_at(self) -> float:
        """When anything came from the client, on the loop's clock."""
        protocol = self._req.protocol if self._req is not None else None
        return protocol.heard_at if isinstance(protocol, DoorProtocol) else 0.0

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        if self.before_close is not None and not self.closed:
            self.before_close()
        protocol = self._req.protocol if self._req is not None else None
        if isinstance(protocol, DoorProtocol) and protocol.verdict is not None:
            verdict = protocol.verdict
            code, message, drain = verdict.code, verdict.reason.encode(), False
        if code == CLOSE_TOO_LARGE and not self.closed:
            await self._explain()
            message = RejectCode.FRAME_TOO_LARGE.encode()
            drain = False
        return await super().close(code=code, message=message, drain=drain)

    async def _explain(self) -> None:
        self._metrics.count_reject(RejectCode.FRAME_TOO_LARGE)
        text = f"a frame has at most {self._frame_bytes_max} bytes"
        frame = failure(b'{"success":', RejectCode.FRAME_TOO_LARGE, text)
        with contextlib.suppress(ConnectionError):
            await self.send_frame(frame, WSMsgType.TEXT)
        # Closing with bytes unread resets the connection, and a reset overtakes what we have said.
        deadline = time.monotonic() + TOO_LARGE_LINGER_S
        while self._connected() and time.monotonic() < deadline:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(LINGER_POLL_S)

    def _connected(self) -> bool:
        transport = self._req.transport if self._req is not None else None
        return transport is not None and not transport.is_closing()


class Connection:
    """A connected client."""

    # There may be ten thousand of them.
    __slots__ = (
        *("__weakref__", "_address", "_answered_count", "_backend", "_books", "_closing", "_ended"),
        *("_guard", "_had", "_has_ended", "_heard_at", "_in_flight", "_is_handling", "_is_in_debt"),
        *(
            "_limits",
            "_loop",
            "_out",
            "_out_bytes",
            "_queries",
            "_queries_in_flight",
            "_queries_waiting",
        ),
        *(
            "_requests",
            "_refusing",
            "_room",
            "_sent",
            "_session",
            "_socket",
            "_subscriptions",
            "_tasks",
            "_transport",
        ),
        *("_unconfirmed", "_writer"),
    )

    def __init__(
        self,
        backend: Backend,
        socket: Socket,
        transport: asyncio.Transport,
        session: Session,
        address: Address,
    ) -> None:
        self._backend = backend
        self._address = address
        self._requests = backend.limits.requests()
        self._queries = backend.limits.queries()
        self._limits = backend.limits
        self._socket = socket
        socket.before_close = self._flush
        self._transport = transport
        self._session = session
        self._writer: AbstractStreamWriter
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._closing: asyncio.Task[None] | None = None
        # Futures, not events: most connections never wait for either, and an event is large.
        self._ended: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        # The last command that was refused because the host drains.
        self._refusing: asyncio.Task[None] | None = None
        self._has_ended = False
        self._in_flight = 0
        self._unconfirmed = 0
        self._is_in_debt = False
        # Whether a request is being carried out that nothing else is read beside.
        self._is_handling = False
        self._queries_in_flight = 0
        self._sent: dict[str, int] = {}
        self._answered_count: dict[str, int] = {}
        self._queries_waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        # Channel, symbol and variant of each.
        self._subscriptions: dict[tuple[Channel, str | None, str], Subscription | None] = {}
        self._books: dict[tuple[str, bytes], bytes] = {}
        # What it has subscribed to so far.
        self._had: set[tuple[Channel, str | None, str]] | None = None
        self._tasks: set[asyncio.Task[Any]] | None = None
        self._heard_at = self._loop.time()
        # Made when cancel_on_disconnect is first asked for.
        self._guard: Guard | None = None

    # ---- reading

    async def run(self, writer: AbstractStreamWriter) -> None:
        """Serves the client until the connection ends."""
        self._writer = writer
        try:
            await self._read()
            if self._closing is None:
                # The client has said goodbye, or is gone: answer what can be answered.
                await self._socket.close()
        finally:
            self._release()
            # With our own close frame out and answered there is nothing more to be said.
            self._transport.close()
            self._has_ended = True
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    async def _read(self) -> None:
        frames_left = FRAMES_PER_TURN_MAX
        while True:
            message = await self._socket.receive()
            if message.type not in _FRAMES:
                return
            if self._closing is not None:
                # Read on, so that the close frame that answers ours is found.
                continue
            self._heard_at = self._loop.time()
            await self._take(message.type, message.data)
            frames_left -= 1
            if not frames_left:
                frames_left = FRAMES_PER_TURN_MAX
                await asyncio.sleep(0)
            if self._is_full():
                await self._wait_for_room()

    async def _take(self, kind: WSMsgType, data: bytes) -> None:
        """Does what a frame asks for."""
        outcome: Outcome | None = None
        if kind is WSMsgType.TEXT:
            outcome = self._session.receive(data)
        elif kind is WSMsgType.BINARY:
            outcome = self._session.receive_binary()
        if type(outcome) is Command:
            batcher = self._backend.batchers.get(outcome.symbol)
            if batcher is not None and outcome.durability is Durability.MEMORY:
                self._command(outcome, batcher)
            else:
                await self._handle(self._unusual_command(outcome))
        elif type(outcome) is Query:
            self._query(outcome)
        elif type(outcome) is Close:
            self._write(text_frame(outcome.frame))
            self.close_soon(outcome.code, outcome.reason)
        elif outcome is not None:
            self._charge()
            await self._handle(self._other(outcome))
        else:
            self._charge()
            if kind is WSMsgType.PING:
                self._write(pong_frame(data))

    async def _handle(self, work: Coroutine[Any, Any, None]) -> None:
        self._is_handling = True
        try:
            await work
        finally:
            self._is_handling = False

    async def _other(self, outcome: object) -> None:
        match outcome:
            case Reply():
                self._count_failure(outcome.frame)
                self._write(text_frame(outcome.frame))
            case CancelInBooks():
                await self._cancel_in_books(outcome)
            case Subscribe():
                await self._subscribe(outcome)
            case Unsubscribe():
                self._unsubscribe(outcome)
            case CancelOnDisconnect():
                await self._cancel_on_disconnect(outcome)
            case Logout():
                await self._logout(outcome)
            case Ping():
                reply = b'{"timestamp_ms":%d}' % (time.time_ns() // 1_000_000)
                self._write(text_frame(answer(outcome.head, reply)))

    def _charge(self) -> None:
        """The host itself has something to do for the client."""
        self._requests.take(1)
        self._address.requests.take(1)
        self._is_in_debt = self._owes_s() > 0

    def _owes_s(self) -> float:
        """For how long no more is read from a client that has sent too much of that."""
        return max(self._requests.wait_s(0), self._address.requests.wait_s(0))

    def _is_full(self) -> bool:
        if self._has_enough_in_flight() or self._is_in_debt:
            return True
        return self._backlog() > self._limits.stream_buffer_bytes_max and not self._may_hold_more()

    def _has_enough_in_flight(self) -> bool:
        if self._queries_in_flight >= self._limits.queries_per_connection_max:
            return True
        limits = self._limits
        if self._unconfirmed >= limits.unconfirmed_per_connection_max:
            return True
        return self._in_flight >= limits.in_flight_per_connection_max

    def _may_hold_more(self) -> bool:
        """A client that sends without reading may for a while, if few others do."""
        holders = self._backend.large_buffers
        if self not in holders and len(holders) >= self._limits.large_answer_buffers_max:
            return False
        holders.add(self)
        return self._backlog() <= self._limits.answer_buffer_bytes_max

    async def _wait_for_room(self) -> None:
        """Reads no further until answers are out: to the client this looks like a slow network."""
        while self._has_enough_in_flight():
            await self._some_answer()
        if self._is_in_debt:
            self._backend.metrics.count_limited(Limited.REQUESTS)
            await asyncio.sleep(min(self._owes_s(), DELAY_S_MAX))
            self._is_in_debt = self._owes_s() > 0
        if self._backlog() <= self._limits.stream_buffer_bytes_max:
            return
        try:
            async with asyncio.timeout(self._limits.stalled_s_max):
                await self.ready()
        except TimeoutError:
            self._close_slow()
        self._backend.large_buffers.discard(self)

    async def _some_answer(self) -> None:
        """Waits for the next answer to be written; only the reader does."""
        self._room = self._loop.create_future()
        await self._room

    def _tell_answered(self) -> None:
        if self._room is not None:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None

    # ---- commands and queries

    async def _unusual_command(self, command: Command) -> None:
        """A command of a symbol that is new here, or whose acknowledgement has to wait."""
        try:
            batcher = await self._backend.find_batcher(command.symbol)
            if batcher is None:
                self._fail_symbol(command.head, command.symbol)
                return
            engine = self._backend.engine
            refusal = await engine.durability_refusal(command.durability, command.symbol)
        except EngineError as error:
            self._fail(command.head, error.code, error.message)
            return
        if refusal:
            self._refuse(command.head, refusal)
            return
        self._command(command, batcher)

    def _command(self, command: Command, batcher: Batcher) -> None:
        if self._closing is not None:
            # It began to close while the command was looked at: its bound orders are going.
            return
        if self._backend.draining and command.method in _REFUSED_WHEN_DRAINING:
            self._queries_in_flight += 1
            turn, before = self._turn(command.symbol), self._refusing
            self._refusing = self._spawn(self._refuse_draining(command, turn, before))
            return
        guard = self._guard
        if guard is not None and guard.timeout_ms and command.method in PLACING_METHODS:
            guard.before_order(command.symbol, batcher)
        self._in_flight += 1
        self._sent[command.symbol] = self._sent.get(command.symbol, 0) + 1
        answered = partial(self._answered, command, time.perf_counter())
        if command.durability is not Durability.MEMORY:
            answered = partial(self._executed, command, batcher, time.perf_counter())
        urgency = Urgency.CANCEL if command.method in _CANCELING else Urgency.ORDER
        batcher.submit(command.payload, answered, self, urgency)

    async def _refuse_draining(
        self,
        command: Command,
        turn: asyncio.Future[None] | None,
        before: asyncio.Task[None] | None,
    ) -> None:
        """In its place: what was sent before it, refused or not, is answered before it."""
        try:
            if turn is not None:
                await turn
            if before is not None:
                await asyncio.wait([before])
            self._fail(command.head, RejectCode.DRAINING, "the host takes no new orders")
        finally:
            self._queries_in_flight -= 1
            self._tell_answered()

    def _executed(
        self, command: Command, batcher: Batcher, received_at: float, reply: bytes
    ) -> None:
        """A command whose acknowledgement waits until it is safe has been run. Others do not wait
        for it, nor do its sender's queries."""
        if reply.startswith(REJECTED_PREFIX):
            self._answered(command, received_at, reply)
            return
        self._in_flight -= 1
        self._unconfirmed += 1
        self._tell_answered()
        self._let_queries_go(command.symbol)
        self._spawn(self._acknowledge(command, batcher.acknowledged, received_at, reply))

    async def _acknowledge(
        self,
        command: Command,
        acknowledged: Acknowledged | None,
        received_at: float,
        reply: bytes,
    ) -> None:
        engine, metrics = self._backend.engine, self._backend.metrics
        started = time.perf_counter()
        confirmed = await engine.is_confirmed(acknowledged, command.durability)
        metrics.confirmation_seconds.observe(time.perf_counter() - started)
        told = command.durability if confirmed else UNCONFIRMED
        metrics.count_durable(told)
        self._unconfirmed -= 1
        self._deliver(command, received_at, with_durability(reply, told))

    def _answered(self, command: Command, received_at: float, reply: bytes) -> None:
        self._in_flight -= 1
        self._deliver(command, received_at, reply)
        self._let_queries_go(command.symbol)

    def _deliver(self, command: Command, received_at: float, reply: bytes) -> None:
        self._tell_answered()
        self._write(text_frame(answer(command.head, reply)))
        metrics = self._backend.metrics
        metrics.count_reply(command.method, reply)
        metrics.acknowledgement_seconds.observe(time.perf_counter() - received_at)

    async def _cancel_in_books(self, request: CancelInBooks) -> None:
        """Cancels in several books at once. What was sent before is done before; nothing that was
        sent after it is read until it is done."""
        started = time.perf_counter()
        for symbol in request.symbols:
            turn = self._turn(symbol)
            if turn is not None:
                await turn
        try:
            for symbol in request.symbols:
                if not await self._backend.feed.knows(symbol):
                    self._fail_symbol(request.head, symbol)
                    return
            engine = self._backend.engine
            reply = await engine.cancel_all_orders(
                request.symbols, durability=request.durability, **request.fields
            )
        except EngineError as error:
            self._fail(request.head, error.code, error.message)
            return
        frame = answer(request.head, msgspec.json.encode(reply))
        self._write(text_frame(frame))
        metrics = self._backend.metrics
        if "durability" in reply:
            metrics.count_durable(reply["durability"])
        metrics.count_reply("cancel_all_orders", frame[len(request.head) :])
        metrics.acknowledgement_seconds.observe(time.perf_counter() - started)

    def _query(self, query: Query) -> None:
        cost = weight(query.method, query.arguments)
        if cost and not self._may_cost(query.head, cost):
            return
        self._queries_in_flight += 1
        self._spawn(self._run_query(query, self._turn(query.symbol)))

    def _may_cost(self, head: bytes, cost: float) -> bool:
        """Takes the cost of an expensive query or snapshot from the allowances, or refuses it."""
        own_s, address_s = self._queries.wait_s(cost), self._address.queries.wait_s(cost)
        if own_s == address_s == 0:
            self._queries.take(cost)
            self._address.queries.take(cost)
            return True
        metrics = self._backend.metrics
        is_own = own_s >= address_s
        metrics.count_limited(Limited.QUERIES if is_own else Limited.ADDRESS_QUERIES)
        metrics.count_reject(RejectCode.RATE_LIMITED)
        self._charge()
        whose = "connection" if is_own else "address"
        message = f"the {whose} has asked for too much of late: see retry_after_ms"
        self._write(text_frame(limited(head, message, max(own_s, address_s))))
        return False

    def _turn(self, symbol: str) -> asyncio.Future[None] | None:
        """A query sees what the commands sent before it did: it waits for their answers."""
        sent = self._sent.get(symbol, 0)
        if self._answered_count.get(symbol, 0) == sent:
            return None
        turn = self._loop.create_future()
        self._queries_waiting.setdefault(symbol, deque()).append((sent, turn))
        return turn

    def _let_queries_go(self, symbol: str) -> None:
        answered = self._answered_count.get(symbol, 0) + 1
        self._answered_count[symbol] = answered
        waiting = self._queries_waiting.get(symbol)
        while waiting and waiting[0][0] <= answered:
            _, turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    async def _run_query(self, query: Query, turn: asyncio.Future[None] | None) -> None:
        try:
            if turn is not None:
                await turn
            if not await self._backend.feed.knows(query.symbol):
                self._fail_symbol(query.head, query.symbol)
                return
            queries = self._backend.queries
            reply = await queries.ask(self, query.method, query.symbol, *query.arguments)
            frame = answer(query.head, reply)
            self._count_failure(frame[len(query.head) :])
            self._write(text_frame(frame))
        except EngineError as error:
            self._fail(query.head, error.code, error.message)
        finally:
            self._queries_in_flight -= 1
            self._tell_answered()

    # ---- cancel on disconnect

    def silent_s(self) -> float:
        """For how long nothing has come from the client; see Peer. While we do not listen, nothing
        can."""
        if self._has_enough_in_flight() or self._is_in_debt:
            return 0.0
        return self._loop.time() - max(self._heard_at, self._socket.heard_at)

    def ping(self) -> None:
        """Asks the client for a sign of life."""
        self._write(PING_FRAME)

    async def _cancel_on_disconnect(self, request: CancelOnDisconnect) -> None:
        guard = self._guard or Guard(self._session.account, self)
        refusal = await guard.set(request.timeout_ms)
        if refusal is not None:
            self._refuse(request.head, refusal)
            return
        self._guard = guard
        self._session.mark_orders(guard.session if guard.timeout_ms else None)
        result = {"session": guard.session, "timeout_ms": guard.timeout_ms}
        self._write(text_frame(answer(request.head, msgspec.json.encode(result))))

    async def _logout(self, request: Logout) -> None:
        """Ends the connection when all it has sent is answered; its orders stay."""
        refusal = await self._guard.set(0) if self._guard is not None else None
        if refusal is not None:
            self._refuse(request.head, refusal)
            return
        while self._in_flight or self._unconfirmed or self._queries_in_flight:
            await self._some_answer()
        self._write(text_frame(answer(request.head, b"{}")))
        self.close_soon(CLOSE_NORMAL, "logged out")

    def _refuse(self, head: bytes, refusal: bytes) -> None:
        frame = answer(head, refusal)
        self._count_failure(frame[len(head) :])
        self._write(text_frame(frame))

    # ---- subscriptions

    async def _subscribe(self, request: Subscribe) -> None:
        symbols: tuple[str | None, ...] = request.symbols or (None,)
        try:
            for symbol in request.symbols:
                if not await self._backend.feed.knows(symbol):
                    self._fail_symbol(request.head, symbol)
                    return
        except EngineError as error:
            self._fail(request.head, error.code, error.message)
            return
        names = {(request.channel, symbol, request.variant) for symbol in symbols}
        added = names - self._subscriptions.keys()
        limit = self._limits.subscriptions_per_connection_max
        if len(self._subscriptions) + len(added) > limit:
            message = f"a connection has at most {limit} subscriptions"
            self._fail(request.head, RejectCode.TOO_MANY_SUBSCRIPTIONS, message)
            return
        if not self._may_begin_again(request, names):
            return
        self._succeed(request.head, request.channel, request.symbols)
        for wanted in symbols:
            self._subscribe_one(request, wanted)

    def _may_begin_again(
        self, request: Subscribe, names: set[tuple[Channel, str | None, str]]
    ) -> bool:
        """Snapshots are free the first time; the same ones again cost what their queries would."""
        had = self._had or set()
        again = len(names & had)
        if len(had) < SUBSCRIPTIONS_REMEMBERED_MAX:
            self._had = had | names
        else:
            again = len(names)
        cost = again * snapshot_weight(request.channel, request.variant)
        saved_max = min(self._queries.saved_max, self._address.queries.saved_max)
        return not cost or self._may_cost(request.head, min(cost, saved_max))

    def _subscribe_one(self, request: Subscribe, symbol: str | None) -> None:
        name = (request.channel, symbol, request.variant)
        self._end_subscription(self._subscriptions.get(name))
        if request.channel is Channel.HEARTBEAT:
            self._subscriptions[name] = None
            return
        account = self._session.account if request.channel is Channel.ORDERS else ""
        wanted = Wanted(
            request.channel, symbol, account, request.variant, request.after, request.epoch
        )
        self._subscriptions[name] = self._backend.feed.subscribe(wanted, self)

    def _unsubscribe(self, request: Unsubscribe) -> None:
        symbols: tuple[str | None, ...] = request.symbols or (None,)
        names = [(request.channel, symbol, request.variant) for symbol in symbols]
        if any(name not in self._subscriptions for name in names):
            message = "there is no such subscription"
            self._fail(request.head, RejectCode.NOT_SUBSCRIBED, message)
            return
        for name in names:
            ended = self._subscriptions.pop(name)
            self._end_subscription(ended)
            if ended is not None:
                self._books.pop((name[1] or "", ended.wanted.topic), None)
        self._succeed(request.head, request.channel, request.symbols)

    def _end_subscription(self, subscription: Subscription | None) -> None:
        if subscription is not None:
            self._backend.feed.unsubscribe(subscription)

    def _succeed(self, head: bytes, channel: Channel, symbols: tuple[str, ...]) -> None:
        result = msgspec.json.encode({"channel": channel, "symbols": symbols})
        self._write(text_frame(answer(head, result)))

    def _fail(self, head: bytes, code: RejectCode, message: str) -> None:
        self._backend.metrics.count_reject(code)
        self._charge()
        self._write(text_frame(failure(head, code, message)))

    def _fail_symbol(self, head: bytes, symbol: str) -> None:
        """Refuses what is asked of a book that there is not."""
        message = self._backend.engine.unknown_symbol_text(symbol)
        self._fail(head, RejectCode.UNKNOWN_SYMBOL, message)

    def _count_failure(self, frame: bytes) -> None:
        """Counts the code of an answer that is an error."""
        _, marker, rest = frame.partition(b'false,"error":{"code":"')
        if marker:
            self._backend.metrics.count_reject(rest.partition(b'"')[0].decode())

    # ---- writing

    def send(self, message: bytes) -> None:
        """Takes a frame that must arrive; see Subscriber."""
        if self._backlog() > self._limits.stream_buffer_bytes_max:
            self._close_slow()
            return
        self._write(message)

    def send_newest(self, name: tuple[str, bytes], message: bytes) -> None:
        """Takes a book or the like; see Subscriber."""
        if self._backlog() <= self._limits.book_buffer_bytes_max:
            self._books.pop(name, None)
            self._write(message)
            return
        if name in self._books:
            self._backend.metrics.books_conflated.inc()
        elif not self._books:
            self._spawn(self._send_newest_books())
        self._books[name] = message

    async def _send_newest_books(self) -> None:
        await self.ready()
        books, self._books = self._books, {}
        for message in books.values():
            self._write(message)

    async def ready(self) -> None:
        """Returns when the client has read most of what it was sent, or is gone."""
        limit = self._limits.book_buffer_bytes_max
        while self._closing is None and self._backlog() > limit:
            self._flush()
            if self._transport.is_closing():
                return
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
            # Where drain had nothing to wait for, others must get their turn all the same.
            await asyncio.sleep(0)

    def heartbeat(self, now_ms: int, turn: int) -> None:
        """Sends the host's heartbeat if the client wants it and reads: up to which sequence it has
        been sent everything of its books."""
        wanted = (Channel.HEARTBEAT, None, "") in self._subscriptions
        if wanted and self._backlog() <= self._limits.book_buffer_bytes_max:
            subscriptions = (one for one in self._subscriptions.values() if one is not None)
            books = b",".join(self._backend.feed.positions(subscriptions, turn))
            head = b'{"channel":"heartbeat","type":"update","timestamp_ms":%d,"books":[' % now_ms
            self._write(text_frame(head + books + b"]}"))
            self._backend.metrics.count_sent(Channel.HEARTBEAT, 1)

    def _backlog(self) -> int:
        return self._transport.get_write_buffer_size() + self._out_bytes

    def _write(self, frame: bytes) -> None:
        if self._closing is not None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)
        self._out_bytes += len(frame)

    def _flush(self) -> None:
        if not self._out:
            return
        frames, self._out, self._out_bytes = self._out, [], 0
        if not self._transport.is_closing() and not self._socket.closed:
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    # ---- the end

    def close_if_idle(self) -> None:
        """Closes a connection that wants nothing and says nothing."""
        idle_s = self._loop.time() - self._heard_at
        is_busy = self._subscriptions or self.is_owed_an_answer
        if idle_s > self._limits.idle_s_max and not is_busy:
            self.close_soon(CLOSE_IDLE, "idle")

    @property
    def is_owed_an_answer(self) -> bool:
        """Whether anything the client has sent is still to be answered."""
        owed = self._in_flight + self._unconfirmed + self._queries_in_flight
        return bool(owed or self._is_handling)

    def close_soon(self, code: int, reason: str) -> asyncio.Task[None]:
        """Starts to close the connection, after what was written before; the task ends with it.

        aiohttp's own close would cut the line while the reader waits, and so lose what the client
        has not read yet. Here the reader goes on until the client has answered.
        """
        if self._closing is None:
            self._write(close_frame(code, reason))
            self._flush()
            self._closing = self._loop.create_task(self._wait_for_end())
            # The client may take its time to answer; its bound orders do not.
            self._lose()
        return self._closing

    def abort(self) -> None:
        """Cuts the line."""
        self._transport.abort()
        self._lose()

    def _lose(self) -> None:
        if self._guard is not None:
            self._guard.lost()

    def _close_slow(self) -> None:
        if self._closing is None:
            self._backend.metrics.slow_clients_closed.inc()
            self.close_soon(CLOSE_SLOW, "slow: reconnect and resume from your sequence")

    async def _end(self) -> None:
        if not self._has_ended:
            self._ended = self._loop.create_future()
            await self._ended

    async def _wait_for_end(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._end()
        except TimeoutError:
            # It does not even read why: without this its socket would stay for as long as it likes.
            self.abort()

    def _release(self) -> None:
        self._lose()
        for subscription in self._subscriptions.values():
            self._end_subscription(subscription)
        self._subscriptions.clear()
        for task in self._tasks or ():
            task.cancel()
        self._backend.large_buffers.discard(self)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            self._tasks = set()
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
