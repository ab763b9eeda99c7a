"""Cancel on disconnect at a host in this process: who loses orders when, and who does not.

That a host's death is covered too is shown with processes in test_host_killed.py.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from clients import Client, connected, new_symbol
from orderbook.engine.batcher import Batcher
from orderbook.engine.engine import Replies
from orderbook.engine.errors import EngineError
from orderbook.host.cancel_on_disconnect import Guard
from orderbook.host.connection import CLOSE_TIMEOUT_S
from orderbook.host.host import Host, HostConfig
from orderbook.host.session import MALFORMED_FRAMES_MAX
from orderbook.messages import RejectCode
from servers import Server

RULES = {"tick_size": "0.01", "lot_size": "1"}
TIMEOUT_MS = 60_000
DEADLINE_S = 20.0


@pytest.fixture
async def symbol(host: Host) -> str:
    return await define(host)


async def define(host: Host) -> str:
    symbol = new_symbol()
    await host.engine.define_instrument(symbol, **RULES)
    return symbol


async def turn_on(client: Client, timeout_ms: int = TIMEOUT_MS) -> str:
    """Turns it on; the session."""
    result = await client.ask("cancel_on_disconnect", timeout_ms=timeout_ms)
    assert result["timeout_ms"] == timeout_ms
    return str(result["session"])


async def open_ids(host: Host, symbol: str, account: str = "alice") -> list[str]:
    reply = await host.engine.get_open_orders(symbol, account=account)
    return [order["order_id"] for order in reply["orders"]]


async def timers(host: Host, symbol: str) -> dict[str, int]:
    """Member to time of a book's timers."""
    key = f"{host.engine.book_key(symbol)}:timers"
    rows: Any = await host.engine.primaries()[0].zrange(key, 0, -1, withscores=True)
    return {member.decode(): int(score) for member, score in rows}


async def eventually(condition: Callable[[], Awaitable[Any]], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await condition():  # noqa: ASYNC110 - what changes is another's
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"waited in vain until {what}") from error


async def test_a_lost_connection_loses_its_orders_at_once_and_nobody_elses(
    host: Host, symbol: str
) -> None:
    other_symbol = await define(host)
    async with connected(host.port) as staying, connected(host.port, "bob") as bob:
        await turn_on(staying)
        kept = await staying.limit(symbol, "buy", "1", "10")
        await bob.limit(symbol, "buy", "1", "10")
        async with connected(host.port) as leaving:
            before = await leaving.limit(symbol, "buy", "1", "10")
            session = await turn_on(leaving)
            gone = await leaving.limit(symbol, "buy", "1", "10")
            await leaving.limit(other_symbol, "sell", "1", "20")
            assert gone["session"] == session
            assert f"alice {session}" in await timers(host, symbol)
            await staying.subscribe("orders", symbol)
        message = (await staying.wait_for("orders", 2))[1]
        (report,) = message["orders"]
        assert (report["event"], report["reason"]) == ("canceled", "cancel_all")
        assert report["order_id"] == gone["order_id"]
        # Orders from before it was turned on carry no session.
        assert await open_ids(host, symbol) == [kept["order_id"], before["order_id"]]
        assert len(await open_ids(host, symbol, "bob")) == 1
        await eventually(
            lambda: _is_gone(host, other_symbol, session), "its orders are gone from all books"
        )
        await eventually(lambda: _is_gone(host, symbol, session), "its timers are stopped")


async def _is_gone(host: Host, symbol: str, session: str) -> bool:
    reply = await host.engine.get_open_orders(symbol, account="alice")
    mine = [order for order in reply["orders"] if order.get("session") == session]
    return not mine and f"alice {session}" not in await timers(host, symbol)


async def test_a_broken_line_is_a_lost_connection(host: Host, symbol: str) -> None:
    async with connected(host.port) as client:
        session = await turn_on(client)
        await client.limit(symbol, "buy", "1", "10")
        client.socket.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        await eventually(lambda: _is_gone(host, symbol, session), "its orders are gone")


async def test_a_client_that_is_closed_loses_its_orders_before_it_answers(
    host: Host, symbol: str
) -> None:
    async with connected(host.port, autoclose=False) as client:
        session = await turn_on(client)
        await client.limit(symbol, "buy", "1", "10")
        for _ in range(MALFORMED_FRAMES_MAX):
            await client.socket.send_str("nonsense")
        # It does not answer the close frame, and is cut off only after CLOSE_TIMEOUT_S.
        async with asyncio.timeout(CLOSE_TIMEOUT_S / 2):
            while not await _is_gone(host, symbol, session):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_orders_on_their_way_are_canceled_with_the_others(host: Host, symbol: str) -> None:
    async with connected(host.port) as client:
        session = await turn_on(client)
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1"}
        for _ in range(1500):
            await client.send("place_order", **terms, quantity="1")
        await client.until(client.answers, "the first answer")
    await eventually(lambda: _is_gone(host, symbol, session), "its orders are gone")
    reply = await host.engine.verify_book(symbol)
    assert (reply["verified"], reply["orders"]) == (True, 0)


async def test_a_graceful_logout_keeps_the_orders(host: Host, symbol: str) -> None:
    async with connected(host.port) as client:
        await turn_on(client)
        placed = await client.limit(symbol, "buy", "1", "10")
        sent = [
            await client.send(
                "place_order",
                symbol=symbol, side="buy", order_type="limit", price="9", quantity="1",
            )
            for _ in range(5)
        ]  # fmt: skip
        assert await client.ask("logout") == {}
        assert await client.closed() == 1000
        assert [answer["req_id"] for answer in client.answers()][2:7] == sent
    assert await timers(host, symbol) == {}
    assert len(await open_ids(host, symbol)) == 6
    assert placed["order_id"] in await open_ids(host, symbol)


async def test_logout_without_anything_to_keep_just_ends(host: Host) -> None:
    async with connected(host.port) as client:
        assert await client.ask("logout") == {}
        assert await client.closed() == 1000


async def test_turning_it_off_keeps_the_orders_and_on_again_covers_them(
    host: Host, symbol: str
) -> None:
    async with connected(host.port) as client:
        session = await turn_on(client)
        await client.limit(symbol, "buy", "1", "10")
        assert await turn_on(client, 0) == session
        assert await timers(host, symbol) == {}
        assert "session" not in await client.limit(symbol, "buy", "1", "10")
    assert await open_ids(host, symbol) == ["1", "2"]
    async with connected(host.port) as client:
        await turn_on(client)
        await client.limit(symbol, "buy", "1", "10")
        await turn_on(client, 0)
        session = await turn_on(client, 1000)
        assert list(await timers(host, symbol)) == [f"alice {session}"]
    await eventually(lambda: _is_gone(host, symbol, session), "its order is gone")
    assert await open_ids(host, symbol) == ["1", "2"]


async def test_a_living_connection_keeps_its_timers_running(host: Host, symbol: str) -> None:
    async with connected(host.port) as client:
        session = await turn_on(client, 1000)
        await client.limit(symbol, "buy", "1", "10")
        first = (await timers(host, symbol))[f"alice {session}"]
        await asyncio.sleep(1.5)
        assert (await timers(host, symbol))[f"alice {session}"] > first + 1000
        assert await open_ids(host, symbol) == ["1"]


async def test_a_timer_that_ran_out_is_set_anew_for_the_next_order(host: Host, symbol: str) -> None:
    """As when the host could not reach Redis for longer than the timeout."""
    async with connected(host.port) as client:
        session = await turn_on(client, 60_000)
        await client.limit(symbol, "buy", "1", "10")
        await host.engine.cancel_all_after(symbol, account="alice", session=session, timeout_ms=0)
        terms = {"symbol": symbol, "side": "buy", "order_type": "limit", "price": "1"}
        refused = await client.refused("place_order", **terms, quantity="1")
        assert refused == "SESSION_NOT_ARMED"
        assert await turn_on(client, 60_000) == session
        assert (await client.limit(symbol, "buy", "1", "10"))["status"] == "open"


async def test_a_draining_host_cancels_as_for_any_lost_connection(
    valkey: Server, host: Host, symbol: str
) -> None:
    draining = Host(HostConfig(valkey.url, port=0))
    await draining.start()
    async with connected(draining.port) as client, connected(draining.port, "bob") as bob:
        await turn_on(client)
        await client.limit(symbol, "buy", "1", "10")
        await bob.limit(symbol, "buy", "1", "10")
        await draining.drain()
        assert await client.closed() == 1012
        assert await bob.closed() == 1012
    assert await open_ids(host, symbol) == []
    assert await timers(host, symbol) == {}
    assert len(await open_ids(host, symbol, "bob")) == 1


async def test_an_account_arms_its_own_timer_over_a_websocket(host: Host, symbol: str) -> None:
    async with connected(host.port) as client:
        reply = await client.ask("cancel_all_after", symbol=symbol, timeout_ms=1000)
        assert reply["cancel_time_ms"] == reply["timestamp_ms"] + 1000
        await client.limit(symbol, "buy", "1", "10")
        await client.subscribe("orders", symbol)
        message = (await client.wait_for("orders", 2))[1]
        assert message["orders"][0]["reason"] == "cancel_all_after"
        assert await client.refused("cancel_all_after", symbol=symbol, timeout_ms=1) == (
            "INVALID_VALUE"
        )


async def test_two_connections_have_two_sessions(host: Host) -> None:
    async with connected(host.port) as one, connected(host.port) as other:
        assert await turn_on(one) != await turn_on(other)


# ---- the guard alone


class FakeEngine:
    """Answers each command of a batch, by a refusal while it is away."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.away = False
        self.remaining_counts: list[int] = []

    async def execute(self, _: str, commands: list[bytes]) -> Replies:
        if self.away:
            raise EngineError(RejectCode.UNAVAILABLE, "away")
        self.commands += commands
        return Replies(self._reply(command) for command in commands)

    def _reply(self, command: bytes) -> bytes:
        if b"cancel_all_orders" not in command:
            return b"{}"
        left = self.remaining_counts.pop(0) if self.remaining_counts else 0
        return b'{"remaining_count":%d}' % left

    def methods(self) -> list[str]:
        """What was run, in short: `arm 1000`, `cancel`."""
        names = []
        for command in self.commands:
            fields = json.loads(command)
            names.append(f"arm {fields['timeout_ms']}" if "timeout_ms" in fields else "cancel")
        self.commands.clear()
        return names


class TalkativePeer:
    """A client that is heard all the time."""

    def silent_s(self) -> float:
        return 0.0

    def ping(self) -> None:
        pass


@contextlib.asynccontextmanager
async def guarding() -> AsyncIterator[tuple[Guard, FakeEngine, Batcher]]:
    engine = FakeEngine()
    guard = Guard("alice", TalkativePeer())
    yield guard, engine, Batcher(engine, "X")  # type: ignore[arg-type]
    guard.lost()


async def test_a_burst_of_orders_winds_the_timer_up_once() -> None:
    async with guarding() as (guard, engine, batcher):
        assert await guard.set(60_000) is None
        for _ in range(10):
            guard.before_order("X", batcher)
        await batcher.drained()
        assert engine.methods() == ["arm 60000"]


async def test_what_one_call_leaves_the_next_cancels_and_then_the_timer_stops() -> None:
    async with guarding() as (guard, engine, batcher):
        await guard.set(60_000)
        guard.before_order("X", batcher)
        engine.remaining_counts = [1200, 200]
        guard.lost()
        guard.lost()
        await batcher.drained()
        assert engine.methods() == ["arm 60000", "cancel", "cancel", "cancel", "arm 0"]


async def test_a_timer_goes_on_where_the_orders_cannot_be_canceled() -> None:
    async with guarding() as (guard, engine, batcher):
        await guard.set(60_000)
        guard.before_order("X", batcher)
        await batcher.drained()
        engine.away = True
        guard.lost()
        await batcher.drained()
        engine.away = False
        assert engine.methods() == ["arm 60000"]


async def test_turning_off_in_vain_leaves_it_on() -> None:
    async with guarding() as (guard, engine, batcher):
        await guard.set(60_000)
        guard.before_order("X", batcher)
        await batcher.drained()
        engine.away = True
        refusal = await guard.set(0)
        assert refusal is not None
        assert json.loads(refusal)["code"] == "UNAVAILABLE"
        assert guard.timeout_ms == 60_000
        await batcher.drained()
        engine.away = False
        # The renewal failed as well: the next order does it.
        guard.before_order("X", batcher)
        await batcher.drained()
        assert engine.methods() == ["arm 60000", "arm 60000"]
