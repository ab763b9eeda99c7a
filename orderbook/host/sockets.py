"""The way in: sockets until they are websockets, and what may come over those that are.

aiohttp speaks HTTP and takes websocket frames apart. What it lets pass is looked at here: sockets
that never ask, or not to the end, have a time and a number; requests that are no HTTP are answered
with 400 and logged by nobody; names in the query and in `Host` are taken as they were sent, so that
what a proxy in front of us has read is what we read; frames without a mask end a connection, and so
do messages in ever more parts.
"""

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http import WebSocketReader, WSCloseCode
from aiohttp.web_request import BaseRequest

from orderbook.host.metrics import Limited, Metrics
from orderbook.limits import Limits

# How long a request's body is read that nobody wants.
LINGERING_S = 1.0
# How much is taken from one socket at a time, where the event loop lets us say.
RECEIVE_BYTES_MAX = 16 * 1024
FRAGMENTS_PER_MESSAGE_MAX = 64
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
ANY_HOST = "*"

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/?#@\[\]]+))(?::[0-9]{1,5})?")
# RFC 6455, section 5.2: how a frame begins.
_HEADER_LENGTH, _MASK_LENGTH = 2, 4
_FIN, _OPCODE, _MASKED, _LENGTH = 0x80, 0x0F, 0x80, 0x7F
_LENGTH_IN_TWO_BYTES, _LENGTH_IN_EIGHT_BYTES = 126, 127
_CONTINUATION, _CONTROL = 0x0, 0x8
# Reserved bits are set: whoever parses it refuses it.
_BAD_FRAME = b"\xf0\x80"


class Verdict:
    """Why a connection is closed for the frames that it has sent."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason


_UNMASKED = Verdict(WSCloseCode.PROTOCOL_ERROR, "frames of a client are masked")
_FRAGMENTS = Verdict(WSCloseCode.POLICY_VIOLATION, "too many fragments of a message")


class FrameCheck:
    """Looks at the headers of frames before aiohttp's parser gets them; the first one that may not
    be reaches it as one that it refuses, in its place."""

    def __init__(self, parser: WebSocketReader, on_refused: Callable[[Verdict], None]) -> None:
        self._parser = parser
        self._on_refused = on_refused
        # The beginning of a header, and how much of a payload is still to come.
        self._head = b""
        self._payload_left = 0
        self._fragments_count = 0
        self._is_refused = False

    def feed_eof(self) -> None:
        self._parser.feed_eof()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """What is complete goes on to the parser; nothing after a frame that may not be."""
        if self._is_refused:
            return False, b""
        data = self._head + data
        self._head = b""
        verdict, position = None, self._payload_left
        while verdict is None and position < len(data):
            size = _frame_size(data, position)
            if not size:
                self._head = data[position:]
                data = data[:position]
                break
            verdict = self._judge(data[position], data[position + 1])
            position = position if verdict else position + size
        self._payload_left = max(0, position - len(data))
        if verdict is None:
            return self._parser.feed_data(data)
        self._is_refused = True
        self._on_refused(verdict)
        return self._parser.feed_data(data[:position] + _BAD_FRAME)

    def _judge(self, first: int, second: int) -> Verdict | None:
        if not second & _MASKED:
            return _UNMASKED
        opcode, is_last = first & _OPCODE, first & _FIN
        if opcode >= _CONTROL or (is_last and opcode != _CONTINUATION):
            return None
        self._fragments_count = 0 if is_last else self._fragments_count + 1
        return _FRAGMENTS if self._fragments_count > FRAGMENTS_PER_MESSAGE_MAX else None


def _frame_size(data: bytes, start: int) -> int:
    """The size of a client's frame, header and all; 0 where the header is not complete. A frame
    without a mask is refused before its size matters."""
    if start + _HEADER_LENGTH > len(data):
        return 0
    length, header = data[start + 1] & _LENGTH, _HEADER_LENGTH
    extended = {_LENGTH_IN_TWO_BYTES: 2, _LENGTH_IN_EIGHT_BYTES: 8}.get(length, 0)
    if start + header + extended > len(data):
        return 0
    if extended:
        length = int.from_bytes(data[start + header : start + header + extended], "big")
    return header + extended + _MASK_LENGTH + length


class DoorProtocol(web.RequestHandler):
    """One socket: HTTP until it is a websocket."""

    __slots__ = ("_door", "_is_websocket", "heard_at", "verdict")

    def __init__(self, door: "Door", server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        no_log: Any = None
        super().__init__(server, loop=loop, access_log=no_log, lingering_time=LINGERING_S)
        self._door = door
        self._is_websocket = False
        self.heard_at = loop.time()
        self.verdict: Verdict | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._current_request is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if hasattr(transport, "max_size"):
            transport.max_size = RECEIVE_BYTES_MAX
        super().connection_made(transport)
        self._door.watch(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._door.let_go(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        super().data_received(data)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        self._is_websocket = True
        self._door.let_go(self)
        super().set_parser(FrameCheck(parser, self._refused), data_received_cb)  # type: ignore[arg-type]

    def _refused(self, verdict: Verdict) -> None:
        self.verdict = verdict
        if verdict is _FRAGMENTS:
            self._door.metrics.count_limited(Limited.FRAGMENTS)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        if not self._is_websocket and self.transport is not None:
            # It may ask again, for as long as it may wait.
            self._door.watch(self)
        return finished

    def handle_error(
        self,
        request: BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is a client's fault is answered, and nothing to be logged."""
        if isinstance(exc, ConnectionError):
            raise exc
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        response = web.Response(status=status, text="this is no HTTP request")
        response.force_close()
        return response


class Door:
    """The sockets that are no websockets yet."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.metrics = metrics
        self._limits = limits
        # Who is to be closed when, the oldest first.
        self._waiting: dict[DoorProtocol, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def watch(self, one: DoorProtocol) -> None:
        """It has handshake_timeout_s from now on. Of too many the oldest goes: who means it does
        not take long."""
        self.let_go(one)
        if len(self._waiting) >= self._limits.handshakes_max:
            self._close(next(iter(self._waiting)), Limited.HANDSHAKES)
        loop = asyncio.get_running_loop()
        self._waiting[one] = loop.call_later(self._limits.handshake_timeout_s, self._is_late, one)

    def let_go(self, one: DoorProtocol) -> None:
        """It is a websocket, or gone."""
        timer = self._waiting.pop(one, None)
        if timer is not None:
            timer.cancel()

    def _is_late(self, one: DoorProtocol) -> None:
        if one.is_busy:
            # It waits for us.
            self.watch(one)
        else:
            self._close(one, Limited.HANDSHAKE_TIMEOUT)

    def _close(self, one: DoorProtocol, limit: Limited) -> None:
        self.let_go(one)
        self.metrics.count_limited(limit)
        one.force_close()


class DoorSite(web.TCPSite):
    """A port whose sockets come in by the door."""

    def __init__(
        self, runner: web.AppRunner, door: Door, host: str, port: int, reuse_port: bool
    ) -> None:
        super().__init__(runner, host, port, reuse_port=reuse_port or None)
        self._door = door

    async def start(self) -> None:
        await web.BaseSite.start(self)
        server, loop = self._runner.server, asyncio.get_running_loop()
        if server is None:
            raise RuntimeError("the runner is not set up")
        door = self._door
        self._server = await loop.create_server(
            lambda: DoorProtocol(door, server, loop),
            self._host,
            self._port,
            backlog=self._backlog,
            reuse_port=self._reuse_port,
        )


def host_name(request: web.BaseRequest) -> str | None:
    """The name by which a client has called us, without its port; None where it gives none,
    several, or what is no name."""
    given = request.headers.getall("Host", [])
    match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    return (match[1] or match[2]).lower().rstrip(".") if match else None


def query_refusal(request: web.BaseRequest, names: frozenset[str]) -> str | None:
    """What is wrong with the names in the query, as they were sent."""
    target = request.raw_path
    query = target.partition("?")[2]
    if "#" in target:
        return "a request has no fragment"
    given = [part.partition("=")[0] for part in query.split("&")] if query else []
    allowed = ", ".join(sorted(names))
    if not names.issuperset(given):
        return f"parameters are, written out as here: {allowed}"
    if len(set(given)) != len(given):
        return "a parameter is given twice"
    return None
