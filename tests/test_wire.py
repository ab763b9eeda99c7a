"""The wire that carries everybody's commands to one server, against a real one."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from clients import eventually
from orderbook.engine import topology, wire
from orderbook.engine.topology import Node
from orderbook.engine.wire import NotSentError, Wire
from proxy import Proxy
from servers import Server

TIMEOUT_S = 0.2


@pytest.fixture
async def node(valkey: Server) -> AsyncIterator[Node]:
    opened = await topology.connect(valkey.url)
    (node,) = opened.nodes()
    yield node
    await opened.close()


async def _end_of(call: asyncio.Task[object]) -> BaseException:
    await asyncio.wait([call])
    error = call.exception()
    assert error is not None
    return error


def _begin(shared: Wire, *arguments: str) -> asyncio.Task[object]:
    return asyncio.create_task(shared.call(*arguments))


async def test_each_of_many_callers_gets_its_own_reply(node: Node) -> None:
    shared = await node.wire()
    replies = await asyncio.gather(*(shared.call("ECHO", f"{number}") for number in range(1000)))
    assert replies == [b"%d" % number for number in range(1000)]


async def test_callers_who_come_together_share_one_wire(node: Node) -> None:
    wires = await asyncio.gather(*(node.wire() for _ in range(10)))
    assert len({id(one) for one in wires}) == 1


async def test_a_refusal_is_only_its_callers(node: Node) -> None:
    shared = await node.wire()
    before, refused, after = (
        _begin(shared, *words) for words in (("PING",), ("HGET", "x"), ("PING",))
    )
    assert isinstance(await _end_of(refused), ResponseError)
    assert (await before, await after) == (b"PONG", b"PONG")


async def test_the_reply_of_who_was_canceled_goes_to_nobody(node: Node) -> None:
    shared = await node.wire()
    first, second = _begin(shared, "ECHO", "first"), _begin(shared, "ECHO", "second")
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"second"
    assert first.cancelled()


async def test_a_caller_can_always_be_canceled(node: Node) -> None:
    async def call_for_ever() -> None:
        while True:
            await (await node.wire()).call("PING")

    for delay_ms in range(10):
        callers = [asyncio.create_task(call_for_ever()) for _ in range(8)]
        await asyncio.sleep(delay_ms / 1000)
        for caller in callers:
            caller.cancel()
        _, pending = await asyncio.wait(callers, timeout=1)
        assert not pending


async def test_a_retired_wire_answers_what_is_on_its_way(node: Node) -> None:
    retired = await node.wire()
    number = await retired.call("CLIENT", "ID")
    waiting = _begin(retired, "BLPOP", "nothing:in:here", "0.1")
    await asyncio.sleep(0)
    node.distrust()
    fresh = await node.wire()
    assert await fresh.call("CLIENT", "ID") != number
    assert await waiting is None
    await retired.wait_closed()
    with pytest.raises(NotSentError):
        await retired.call("PING")


async def test_who_waits_when_a_wire_ends_is_told_whether_the_command_was_sent(node: Node) -> None:
    shared = await node.wire()
    sent = _begin(shared, "BLPOP", "nothing:in:here", "0")
    # Written when the event loop has turned twice; what is handed over last is not.
    await asyncio.sleep(0.01)
    unsent = [_begin(shared, "PING") for _ in range(2)]
    await asyncio.sleep(0)
    shared.close()
    assert not isinstance(await _end_of(sent), NotSentError)
    assert all([isinstance(await _end_of(call), NotSentError) for call in unsent])


async def test_a_killed_connection_ends_all_waits_and_the_next_call_opens_another(
    node: Node, valkey: Server
) -> None:
    shared = await node.wire()
    number = await shared.call("CLIENT", "ID")
    waits = [_begin(shared, "BLPOP", "nothing:in:here", "0") for _ in range(3)]
    await asyncio.sleep(0.05)
    valkey.client.client_kill_filter(_id=str(number))
    for wait in waits:
        assert isinstance(await _end_of(wait), RedisConnectionError)
    assert not shared.is_open
    assert await (await node.wire()).call("PING") == b"PONG"


async def test_a_server_that_stands_still_ends_all_waits(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(valkey.port) as proxy:
        distant = await topology.connect(proxy.url)
        shared = await distant.nodes()[0].wire()
        assert await shared.call("PING") == b"PONG"
        # Only from here on, so that a busy machine may take its time before.
        monkeypatch.setattr(wire, "SOCKET_TIMEOUT_S", TIMEOUT_S)
        proxy.passes_replies.clear()
        started = time.monotonic()
        for wait in [_begin(shared, "PING") for _ in range(3)]:
            assert isinstance(await _end_of(wait), RedisTimeoutError)
        assert time.monotonic() - started >= TIMEOUT_S
        await distant.close()


async def test_a_process_that_stood_still_reads_what_has_come_meanwhile(
    node: Node, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = await node.wire()
    monkeypatch.setattr(wire, "SOCKET_TIMEOUT_S", TIMEOUT_S)
    key = f"stood-still:{time.time_ns()}"
    waiting = _begin(shared, "SET", key, "1")
    # The command goes out, its reply comes, and nobody looks: what follows lets nothing else run.
    while not valkey.client.exists(key):  # noqa: ASYNC110
        await asyncio.sleep(0)
    time.sleep(2 * TIMEOUT_S)  # noqa: ASYNC251
    assert await waiting == b"OK"
    assert shared.is_open


async def test_steady_traffic_is_not_taken_for_a_late_reply(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SOCKET_TIMEOUT_S", TIMEOUT_S)
    shared = await node.wire()
    started = time.monotonic()
    while time.monotonic() < started + 3 * TIMEOUT_S:
        called = time.monotonic()
        try:
            assert await shared.call("BLPOP", "nothing:in:here", "0.05") is None
        except RedisTimeoutError:
            # On a busy machine a single one may be late by itself, and nothing else is the reason.
            assert time.monotonic() - called >= TIMEOUT_S
            return
    assert shared.is_open


async def test_a_wire_that_nobody_waits_on_notices_its_end(node: Node, valkey: Server) -> None:
    shared = await node.wire()
    number = await shared.call("CLIENT", "ID")
    valkey.client.client_kill_filter(_id=str(number))
    await eventually(lambda: not shared.is_open, "the wire has noticed")


async def test_a_refused_connection_is_everyones_error_and_the_next_caller_tries_again() -> None:
    nowhere = await topology.connect("redis://127.0.0.1:1")
    (node,) = nowhere.nodes()
    for _ in range(2):
        callers = [asyncio.create_task(node.wire()) for _ in range(3)]
        for caller in callers:
            assert isinstance(await _end_of(caller), RedisConnectionError)
    await nowhere.close()
