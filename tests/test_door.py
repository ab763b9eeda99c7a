"""The way in, over raw sockets: what is no HTTP, no websocket, no frame, and who calls us how."""

import asyncio
import base64
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from clients import connected, eventually, new_symbol
from orderbook.host.host import Host
from orderbook.host.sockets import FRAGMENTS_PER_MESSAGE_MAX, FrameCheck
from orderbook.limits import Limits
from servers import Server, hosting

RULES = {"tick_size": "0.01", "lot_size": "1"}
ANSWER_TIMEOUT_S = 10.0
MASK = b"\x01\x02\x03\x04"
PING = b"\x89\x80" + MASK
Raw = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def raw(host: Host) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def upgrade(target: str = "/ws?account=alice", **headers: str) -> bytes:
    """A request for a websocket; Host is a name of loopback."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"GET {target} HTTP/1.1\r\n{head}\r\n".encode()


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A short frame as a client sends it."""
    masked = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))
    return bytes([first, 0x80 | len(payload)]) + MASK + masked


async def status(line: Raw) -> int:
    """Of the answer to a request."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        head = await line[0].readuntil(b"\r\n\r\n")
    return int(head.split()[1])


async def close_code(line: Raw) -> int:
    """Of the frame with which the host ends; after it comes the end of the line."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        rest = await line[0].read()
    assert b"\x88" in rest, rest
    start = rest.rindex(b"\x88")
    return int.from_bytes(rest[start + 2 : start + 4], "big")


async def ask(host: Host, request: bytes) -> int:
    async with raw(host) as line:
        line[1].write(request)
        return await status(line)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


# ---- before the upgrade


@pytest.mark.parametrize("sent", [b"", b"GET /ws HTTP/1.1\r\nHost: localhost\r\n", b"GET"])
async def test_a_socket_that_does_not_ask_to_the_end_is_closed(valkey: Server, sent: bytes) -> None:
    limits = Limits(handshake_timeout_s=0.2)
    async with hosting(valkey, limits=limits) as host, connected(host.port) as client:
        async with raw(host) as line:
            line[1].write(sent)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                assert await line[0].read() == b""
        text = host.metrics.text().decode()
        assert 'orderbook_limited_total{limit="handshake_timeout"} 1.0' in text
        # A websocket may be silent for as long as it likes.
        await client.ask("ping")


async def test_a_socket_that_asks_something_may_ask_again_for_as_long(valkey: Server) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with (
        hosting(valkey, limits=Limits(handshake_timeout_s=0.3)) as host,
        raw(host) as line,
    ):
        for _ in range(4):
            line[1].write(request)
            assert await status(line) == 200
            assert await line[0].readexactly(2) == b"ok"
            await asyncio.sleep(0.15)
        # Half a request after a whole one is half a request.
        line[1].write(b"GET /livez HTTP/1.1\r\n")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            assert await line[0].read() == b""


async def test_the_port_of_health_checks_is_guarded_by_itself(valkey: Server) -> None:
    limits = Limits(handshake_timeout_s=0.2)
    async with hosting(valkey, limits=limits, admin_port=0) as host:
        reader, writer = await asyncio.open_connection("127.0.0.1", host.admin_port)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            assert await reader.read() == b""
        writer.close()


async def test_of_too_many_silent_sockets_the_oldest_goes(valkey: Server) -> None:
    async with (
        hosting(valkey, limits=Limits(handshakes_max=2)) as host,
        raw(host) as oldest,
        raw(host),
        raw(host),
    ):
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            assert await oldest[0].read() == b""
        assert len(host._door) == 2
        assert 'limit="handshakes"} 1.0' in host.metrics.text().decode()
        async with connected(host.port) as client:
            await client.ask("ping")


@pytest.mark.parametrize(
    "request_text",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_and_not_logged(
    host: Host, request_text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert await ask(host, request_text) == 400
    assert tracebacks(caplog) == []


@pytest.mark.parametrize("origin", ["http://[evil", "http://[", "http://a]b"])
async def test_an_origin_that_is_none_is_refused_and_not_logged(
    host: Host, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await ask(host, upgrade(Origin=origin)) in {400, 403}
    assert tracebacks(caplog) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", 101),
        ("LOCALHOST.:8080", 101),
        ("127.0.0.1:1", 101),
        ("[::1]:8080", 101),
        ("trade.example", 101),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("10.0.0.1", 421),
        ("", 400),
        ("a b", 400),
        ("[localhost", 400),
        ("localhost:x", 400),
        ("user@localhost", 400),
    ],
)
async def test_only_names_of_the_host_are_answered(
    valkey: Server, name: str, expected: int
) -> None:
    async with hosting(valkey, allowed_hosts=("Trade.example",)) as host:
        assert await ask(host, upgrade(Host=name)) == expected
        # A page that had its own name point at us has both of its own.
        if name == "evil.example":
            assert await ask(host, upgrade(Host=name, Origin=f"http://{name}")) == 421
            assert 'limit="allowed_hosts"} 2.0' in host.metrics.text().decode()


async def test_a_host_that_listens_everywhere_is_called_by_the_address_that_was_reached(
    valkey: Server,
) -> None:
    async with hosting(valkey, host="0.0.0.0") as host:  # noqa: S104
        assert await ask(host, upgrade(Host="127.0.0.1")) == 101
        assert await ask(host, upgrade(Host="evil.example")) == 421
    async with hosting(valkey, allowed_hosts=("*",)) as host:
        assert await ask(host, upgrade(Host="any.example")) == 101


async def test_a_request_names_its_host_once(host: Host) -> None:
    twice = upgrade().replace(b"Host: localhost\r\n", b"Host: localhost\r\nHost: localhost\r\n")
    assert await ask(host, twice) == 400
    assert await ask(host, upgrade().replace(b"Host: localhost\r\n", b"")) == 400


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", 101),
        ("?", 101),
        ("?account=a", 101),
        ("?account=a%40b", 101),
        ("?account=a&durability=memory", 101),
        ("?account=a&account=a", 400),
        ("?account=a&%61ccount=b", 400),
        ("?%61ccount=a", 400),
        ("?account=a&", 400),
        ("?account=a&admin=1", 400),
        ("?Account=a", 400),
        ("?account=a;account=b", 400),
        ("?account=a#b", 400),
        ("?durability=memory&durability=memory", 400),
        ("?durability=forever", 400),
    ],
)
async def test_parameters_are_known_and_given_once(host: Host, query: str, expected: int) -> None:
    assert await ask(host, upgrade(f"/ws{query}")) == expected


# ---- frames


async def test_a_frame_without_a_mask_ends_the_connection(host: Host) -> None:
    async with raw(host) as line:
        ping = b'{"method":"ping"}'
        line[1].write(upgrade())
        assert await status(line) == 101
        line[1].write(frame(ping) + bytes([0x81, len(ping)]) + ping)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answers = await line[0].read()
        # What came before it is answered.
        assert answers.count(b'"success":true') == 1
        start = answers.rindex(b"\x88")
        assert int.from_bytes(answers[start + 2 : start + 4], "big") == 1002


async def test_frames_sent_with_the_handshake_are_looked_at_too(host: Host) -> None:
    async with raw(host) as line:
        line[1].write(upgrade() + b"\x81\x02{}")
        assert await status(line) == 101
        assert await close_code(line) == 1002


async def test_frames_are_understood_however_they_are_cut(host: Host) -> None:
    async with raw(host) as line:
        line[1].write(upgrade())
        assert await status(line) == 101
        payload = b'{"method":"ping"}'
        parts = frame(payload[:5], 0x01) + PING + frame(payload[5:], 0x80)
        long = b"\x81\xfe" + struct.pack(">H", 200) + b"\0\0\0\0" + payload.ljust(200)
        for byte in parts + long + frame(payload):
            line[1].write(bytes([byte]))
            await line[1].drain()
            await asyncio.sleep(0)
        received = b""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while received.count(b'"success":true') < 3:
                received += await line[0].read(65536)


async def test_a_message_in_ever_more_fragments_is_abuse(host: Host) -> None:
    async with raw(host) as line:
        line[1].write(upgrade())
        assert await status(line) == 101
        fragments = frame(b"", 0x01) + frame(b"", 0x00) * FRAGMENTS_PER_MESSAGE_MAX
        line[1].write(fragments)
        assert await close_code(line) == 1008
        assert 'limit="fragments"} 1.0' in host.metrics.text().decode()


async def test_two_thousand_pings_and_a_reset_leave_nothing_behind(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        async with raw(host) as line:
            line[1].write(upgrade())
            assert await status(line) == 101
            line[1].write(PING * 2000)
            await line[1].drain()
            raw_socket = line[1].get_extra_info("socket")
            # With a linger of zero closing is a reset.
            raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await eventually(lambda: not host._connections, "they are gone")
    assert tracebacks(caplog) == []


class Parser:
    """Keeps what is passed on."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100_000])
def test_every_masked_frame_passes_whole(size: int, chunk: int) -> None:
    if size <= 125:
        head = bytes([0x82, 0x80 | size])
    elif size <= 65_535:
        head = b"\x82\xfe" + size.to_bytes(2, "big")
    else:
        head = b"\x82\xff" + size.to_bytes(8, "big")
    sent = (head + MASK + b"\x00" * size) * 2
    parser, verdicts = Parser(), list[Any]()
    check = FrameCheck(parser, verdicts.append)  # type: ignore[arg-type]
    for start in range(0, len(sent), chunk):
        check.feed_data(sent[start : start + chunk])
    assert parser.data == sent
    assert verdicts == []
    check.feed_data(b"\x82\x00")
    assert len(verdicts) == 1


# ---- clients that vanish


async def test_a_client_that_vanishes_without_a_word_loses_its_bound_orders_soon(
    host: Host,
) -> None:
    symbol = new_symbol()
    await host.engine.define_instrument(symbol, **RULES)
    bound = {"method": "cancel_on_disconnect", "params": {"timeout_ms": 1000}}
    terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1", "quantity": "1"}
    order = {"method": "place_order", "params": terms}
    loop = asyncio.get_running_loop()
    async with raw(host) as line, connected(host.port, "bob") as bob:
        line[1].write(upgrade())
        assert await status(line) == 101
        line[1].write(frame(json.dumps(bound).encode()))
        long = json.dumps(order).encode()
        line[1].write(b"\x81\xfe" + struct.pack(">H", len(long)) + b"\0\0\0\0" + long)
        vanished_at = loop.time()
        # Bob lives as long, and says nothing but that he is there.
        await bob.ask("cancel_on_disconnect", timeout_ms=1000)
        await bob.limit(symbol, "buy", "1", "1")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while (await host.engine.get_instrument(symbol))["open_orders"] != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while (await host.engine.get_instrument(symbol))["open_orders"] == 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        # One and a half timeouts, half a second to the next tick, and some for a busy machine.
        assert 0.9 < loop.time() - vanished_at < 3.5
        await asyncio.sleep(1.5)
        assert len((await bob.ask("get_open_orders", symbol=symbol))["orders"]) == 1
        # The socket is still there: nobody has closed it.
        assert len(host._connections) == 2


async def test_the_answers_to_pings_keep_orders_alive_and_cost_no_more(host: Host) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{host.port}/ws"
        async with session.ws_connect(url, autoping=False) as websocket:
            await websocket.ping(b"are you there")
            message = await websocket.receive(timeout=ANSWER_TIMEOUT_S)
            assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"are you there")
