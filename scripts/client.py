"""A websocket client that survives its host.

The idea: a client needs to remember two things to lose nothing. What it asked and was not answered:
this is sent again on the next connection, word for word, which is safe because every order command
carries a client_order_id. And how far it has read each channel: a subscription is resumed with
`after`. Which host answers does not matter, so it goes to the next address.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import click
import msgspec
from aiohttp import WSMsgType

CONNECT_TIMEOUT_S = 5.0
RECONNECT_DELAY_S = 0.05
# Longer than a host needs to start again, when there is no other.
RECONNECT_TIMEOUT_S = 30.0
RETRY_DELAY_S = 0.1
POLL_INTERVAL_S = 0.02
FRAME_BYTES_MAX = 1 << 24

# The server asks us not to come back as we are.
CLOSE_CODES_FINAL = frozenset({1008, 1009})
# Nobody can say yet what became of the command, or it was not taken: ask again.
CODES_TO_RETRY = frozenset({"OUTCOME_UNKNOWN", "UNAVAILABLE", "DRAINING"})
METHODS_THAT_CHANGE = frozenset({"place_order", "amend_order", "cancel_order"})

Params = dict[str, Any]


class Refusal(msgspec.Struct):
    """Why a request was not done."""

    code: str
    message: str
    # Of RATE_LIMITED: when to ask again.
    retry_after_ms: int = 0


class Trade(msgspec.Struct):
    """One trade of the trades channel."""

    trade_id: str
    price: str
    quantity: str
    maker_order_id: str
    taker_order_id: str


class Report(msgspec.Struct):
    """One report of the orders channel; an order of its snapshot has no event."""

    order_id: str
    event: str = ""
    trade_id: str = ""
    remaining_quantity: str = ""
    quantity: str = ""


class Book(msgspec.Struct):
    """Up to where a heartbeat says that everything of a book was sent."""

    symbol: str
    sequence: int
    epoch: int


class Frame(msgspec.Struct):
    """Any frame from a host: an answer has a req_id, an update a channel."""

    channel: str = ""
    req_id: int | None = None
    success: bool = True
    result: msgspec.Raw = msgspec.Raw(b"")
    error: Refusal | None = None
    symbol: str = ""
    type: str = ""
    sequence: int = 0
    epoch: int = 0
    trades: list[Trade] = []
    orders: list[Report] = []
    books: list[Book] = []
    previous_sequence: int | None = None


# Channels that can be resumed: only of these a heartbeat's sequence says something.
RESUMABLE = ("trades", "level2", "level3", "orders")

OnReply = Callable[[Frame], None]
OnUpdate = Callable[[Frame], None]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Frame).decode


def _subscription(channel: str, symbol: str) -> Params:
    return {"channel": channel, "symbols": [symbol]} if symbol else {"channel": channel}


async def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Waits for what will come by itself; returns whether it came in time."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not condition():
        if loop.time() > deadline_s:
            return False
        await asyncio.sleep(POLL_INTERVAL_S)
    return True


async def _first_of(running: asyncio.Task[None] | None, wanted: asyncio.Future[Any]) -> None:
    """Waits for `wanted`, or for the end of what would bring it."""
    assert running is not None
    try:
        await asyncio.wait({running, wanted}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        wanted.cancel()


class ClientError(click.ClickException):
    """The connection is lost for good: no host takes us, or a host told us not to come back."""


@dataclass(slots=True)
class _Pending:
    """A request without an answer yet."""

    frame: bytes
    on_reply: OnReply
    repeatable: bool


@dataclass(slots=True)
class _Position:
    """How far a channel has been read."""

    sequence: int = 0
    epoch: int = 0
    known: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)


class Client:
    """One account's connection to whichever of `urls` answers, beginning with the first.

    `on_update` gets every frame of the subscribed channels. Use as an async context manager.
    """

    def __init__(self, urls: Sequence[str], account: str, on_update: OnUpdate) -> None:
        self.reconnects = 0
        self.resent = 0
        self._urls = itertools.cycle(urls)
        self._account = account
        self._on_update = on_update
        self._request_ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._positions: dict[tuple[str, str], _Position] = {}
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._connected = asyncio.Event()
        self._session = aiohttp.ClientSession()
        self._task: asyncio.Task[None] | None = None
        self._retries: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        await _first_of(self._task, asyncio.ensure_future(self._connected.wait()))
        if self._task.done():
            await self._session.close()
            self._raise_if_lost()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ClientError):
            await self._task
        await self._session.close()

    @property
    def pending_count(self) -> int:
        """Requests that are not answered yet."""
        return len(self._pending)

    async def submit(self, method: str, params: Params, on_reply: OnReply) -> None:
        """Sends a request; `on_reply` gets its answer, possibly from another host."""
        self._raise_if_lost()
        request_id = next(self._request_ids)
        frame = _encode({"method": method, "req_id": request_id, "params": params})
        repeatable = method not in METHODS_THAT_CHANGE or "client_order_id" in params
        self._pending[request_id] = _Pending(frame, on_reply, repeatable)
        await self._send(frame)

    async def request(self, method: str, params: Params) -> Frame:
        """Sends a request and waits for its answer. Raises ClientError."""
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        await self.submit(method, params, answer.set_result)
        await _first_of(self._task, answer)
        self._raise_if_lost()
        return answer.result()

    async def subscribe(self, channel: str, symbol: str = "") -> None:
        """Subscribes now, and on every later connection from where this one ended. Without a symbol
        to the heartbeats, which tell how far that is where nothing else is told.

        Returns when the snapshot is here: what comes and goes before is not told.
        """
        answer = await self.request("subscribe", _subscription(channel, symbol))
        if answer.error:
            raise ClientError(f"subscribe {channel} {symbol}: {answer.error.message}")
        position = self._positions.setdefault((channel, symbol), _Position())
        if channel in RESUMABLE:
            await _first_of(self._task, asyncio.ensure_future(position.begun.wait()))
            self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()

    async def _send(self, frame: bytes) -> None:
        if self._socket is None or self._socket.closed:
            return
        # What could not be sent is sent when we are connected again.
        with contextlib.suppress(ConnectionError):
            await self._socket.send_frame(frame, WSMsgType.TEXT)

    async def _run(self) -> None:
        while True:
            socket = await self._connect_somewhere()
            try:
                await self._resume(socket)
                self._connected.set()
                await self._read(socket)
            finally:
                self._socket = None
                await socket.close()
            if socket.close_code in CLOSE_CODES_FINAL:
                raise ClientError(f"closed for good with code {socket.close_code}")
            self.reconnects += 1

    async def _connect_somewhere(self) -> aiohttp.ClientWebSocketResponse:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RECONNECT_TIMEOUT_S
        while True:
            url = next(self._urls)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await self._session.ws_connect(
                        url, params={"account": self._account}, max_msg_size=FRAME_BYTES_MAX
                    )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if loop.time() > deadline:
                    raise ClientError(f"no host takes us, last {url}: {error}") from error
                await asyncio.sleep(RECONNECT_DELAY_S)

    async def _resume(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        # What is submitted from here on goes out by itself.
        unanswered = list(self._pending.values())
        subscribed = list(self._positions.items())
        self._socket = socket
        with contextlib.suppress(ConnectionError):
            for (channel, symbol), position in subscribed:
                params = _subscription(channel, symbol)
                if position.known and channel in RESUMABLE:
                    params |= {"after": position.sequence, "epoch": position.epoch}
                frame = _encode({"method": "subscribe", "params": params})
                await socket.send_frame(frame, WSMsgType.TEXT)
            for pending in unanswered:
                if not pending.repeatable:
                    raise ClientError("the outcome of a command without client_order_id is unknown")
                self.resent += 1
                await socket.send_frame(pending.frame, WSMsgType.TEXT)

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                return
            frame = _decode(message.data)
            if frame.channel:
                self._take_update(frame)
            else:
                self._take_answer(frame)

    def _take_update(self, frame: Frame) -> None:
        if frame.channel == "heartbeat":
            self._take_heartbeat(frame)
            return
        position = self._positions.setdefault((frame.channel, frame.symbol), _Position())
        if position.known and (frame.previous_sequence or 0) > position.sequence:
            raise ClientError(f"{frame.channel} of {frame.symbol}: an update has been lost")
        position.sequence = frame.sequence
        position.epoch = frame.epoch
        position.known = True
        position.begun.set()
        self._on_update(frame)

    def _take_heartbeat(self, frame: Frame) -> None:
        for book in frame.books:
            for channel in RESUMABLE:
                position = self._positions.get((channel, book.symbol))
                if position is not None and position.known and position.epoch == book.epoch:
                    position.sequence = max(position.sequence, book.sequence)

    def _take_answer(self, frame: Frame) -> None:
        if frame.req_id is None:
            # The answer to a resumed subscription; only a refusal would mean something.
            if frame.error:
                raise ClientError(f"{frame.error.code}: {frame.error.message}")
            return
        pending = self._pending.get(frame.req_id)
        if pending is None:
            raise ClientError(f"an answer to req_id {frame.req_id}, which is not waiting for one")
        if frame.error and frame.error.code in CODES_TO_RETRY and pending.repeatable:
            self.resent += 1
            loop = asyncio.get_running_loop()
            loop.call_later(RETRY_DELAY_S, self._retry, pending.frame, self._socket)
            return
        del self._pending[frame.req_id]
        pending.on_reply(frame)

    def _retry(self, frame: bytes, socket: aiohttp.ClientWebSocketResponse | None) -> None:
        """Sends again, unless another connection was made and has done so."""
        if self._socket is socket:
            sending = asyncio.ensure_future(self._send(frame))
            self._retries.add(sending)
            sending.add_done_callback(self._retries.discard)
