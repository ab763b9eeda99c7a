"""Durability that is asked for: what an acknowledgement waits for, what it says, what it is worth.

A power cut is played by cutting the append-only file to what was flushed last; a library that is
loaded into the server tells what that was. So a confirmation that comes too early is found out.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from books import Book
from clients import Client, eventually
from orderbook.engine import durability
from orderbook.engine.engine import Engine
from orderbook.engine.errors import EngineError
from orderbook.host.host import Host, HostConfig
from orderbook.messages import Durability
from proxy import Proxy
from servers import HOST, Server, free_port, is_installed, load_library, running

RULES = {"tick_size": "1", "lot_size": "1"}
LIMIT = {"account": "alice", "side": "buy", "order_type": "limit", "quantity": "1", "price": "10"}
APPENDING = {"appendonly": "yes", "appendfsync": "everysec"}
# Only the test flushes.
UNFLUSHED = {"appendonly": "yes", "appendfsync": "no"}
WITH_WAITAOF = ("valkey", "redis8")
SHORT_S = 0.3
CONFIRMED_BEFORE_CUT = 6
MEMORY_INTERVAL_S = 0.005
SOURCE = Path(__file__).with_name("flush_log.c")

needs_redis7 = pytest.mark.skipif(
    not is_installed("redis7"), reason="redis-server is not installed"
)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durability, "CONFIRM_TIMEOUT_S", SHORT_S)


@pytest.fixture(params=WITH_WAITAOF)
def able(request: pytest.FixtureRequest) -> str:
    """The name of an engine that can confirm a flush."""
    name = str(request.param)
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    return name


@contextlib.asynccontextmanager
async def exchange(
    engine: str, settings: Mapping[str, str]
) -> AsyncIterator[tuple[Server, Engine]]:
    with running(engine, settings) as server:
        load_library(server.client, engine)
        async with reached(server.url) as client:
            await client.define_instrument("X", **RULES)
            yield server, client


@contextlib.asynccontextmanager
async def reached(url: str) -> AsyncIterator[Engine]:
    client = await Engine.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def open_ids(client: Engine) -> set[str]:
    reply = await client.get_open_orders("X", account="alice", limit=1000)
    return {order["order_id"] for order in reply["orders"]}


# ---- what is waited for, and for whom


async def test_only_those_who_ask_wait_for_the_disk(able: str) -> None:
    async with exchange(able, UNFLUSHED) as (server, client):
        durable = asyncio.create_task(client.place_order("X", durability="fsync", **LIMIT))
        while (await client.get_instrument("X"))["open_orders"] == 0:
            pass
        for _ in range(3):
            assert "durability" not in await client.place_order("X", **LIMIT)
        assert not durable.done()
        server.client.config_set("appendfsync", "always")
        await client.place_order("X", **LIMIT)
        assert (await durable)["durability"] == "fsync"


async def test_commands_that_come_together_share_a_flush(able: str) -> None:
    async with exchange(able, APPENDING) as (server, client):
        placing = [client.place_order("X", durability="fsync", **LIMIT) for _ in range(200)]
        replies = await asyncio.gather(*placing)
        assert {reply["durability"] for reply in replies} == {"fsync"}
        waits = server.client.info("commandstats")["cmdstat_waitaof"]["calls"]
        # One that asks whether the server can, and few rounds.
        assert waits <= 5


async def test_an_order_that_is_not_confirmed_in_time_stands_and_says_so(
    able: str,
    short_wait: None,  # noqa: ARG001
) -> None:
    async with exchange(able, UNFLUSHED) as (_, client):
        reply = await client.place_order("X", durability="fsync", **LIMIT)
        assert (reply["status"], reply["durability"]) == ("open", "unconfirmed")
        assert await open_ids(client) == {reply["order_id"]}


async def test_an_order_whose_server_dies_while_it_waits_is_unconfirmed(able: str) -> None:
    async with exchange(able, UNFLUSHED) as (server, client):
        waiting = asyncio.create_task(client.place_order("X", durability="fsync", **LIMIT))
        while (await client.get_instrument("X"))["open_orders"] == 0:
            pass
        os.kill(server.process.pid, signal.SIGKILL)
        reply = await waiting
        assert (reply["status"], reply["durability"]) == ("open", "unconfirmed")


async def test_a_retry_waits_as_the_first_try_does(
    able: str,
    short_wait: None,  # noqa: ARG001
) -> None:
    async with exchange(able, UNFLUSHED) as (server, client):
        order = {**LIMIT, "client_order_id": "a", "durability": "fsync"}
        first = await client.place_order("X", **order)
        assert first["durability"] == "unconfirmed"
        assert await client.place_order("X", **order) == first
        server.client.config_set("appendfsync", "always")
        assert await client.place_order("X", **order) == {**first, "durability": "fsync"}


async def test_a_refused_command_does_not_wait(able: str) -> None:
    async with exchange(able, UNFLUSHED) as (_, client):
        reply = await client.place_order("X", durability="fsync", **{**LIMIT, "price": "0"})
        assert reply["code"] == "PRICE_NOT_POSITIVE"
        assert "durability" not in reply


async def test_cancels_over_books_are_confirmed_together(able: str) -> None:
    async with exchange(able, APPENDING) as (_, client):
        await client.define_instrument("Y", segment="other", **RULES)
        for symbols in (["X"], ["X", "Y"]):
            reply = await client.cancel_all_orders(symbols, account="alice", durability="fsync")
            assert reply["durability"] == "fsync"
            assert [book["symbol"] for book in reply["books"]] == symbols
            assert all("durability" not in book for book in reply["books"])


async def test_a_word_that_is_no_durability_is_refused(valkey: Server) -> None:
    async with reached(valkey.url) as client:
        reply = await client.place_order("X", durability="paper", **LIMIT)
        assert reply["code"] == "INVALID_VALUE"
        assert "fsync+replica" in reply["message"]


# ---- servers that cannot


@needs_redis7
async def test_a_server_without_waitaof_refuses_before_anything_runs() -> None:
    async with exchange("redis7", APPENDING) as (_, client):
        for asked in ("fsync", "fsync+replica"):
            reply = await client.place_order("X", durability=asked, **LIMIT)
            assert reply["code"] == "DURABILITY_UNAVAILABLE"
            assert "Redis 7.2" in reply["message"]
        assert await open_ids(client) == set()


async def test_a_server_without_a_log_refuses_until_it_has_one(able: str) -> None:
    async with exchange(able, {}) as (server, client):
        reply = await client.place_order("X", durability="fsync", **LIMIT)
        assert reply["code"] == "DURABILITY_UNAVAILABLE"
        assert "no append-only file" in reply["message"]
        assert await open_ids(client) == set()
        server.client.config_set("appendonly", "yes")
        server.client.config_set("appendfsync", "always")
        await eventually(
            lambda: not server.client.info("persistence")["aof_rewrite_in_progress"], "rewritten"
        )
        reply = await client.place_order("X", durability="fsync", **LIMIT)
        assert reply["durability"] == "fsync"


async def test_a_full_memory_confirms_cancels(able: str) -> None:
    async with exchange(able, APPENDING | {"appendfsync": "always"}) as (server, client):
        placed = await client.place_order("X", durability="fsync", **LIMIT)
        server.client.config_set("maxmemory", 1)
        order_id = placed["order_id"]
        reply = await client.cancel_order(
            "X", account="alice", order_id=order_id, durability="fsync"
        )
        assert (reply["status"], reply["durability"]) == ("canceled", "fsync")


# ---- what it is worth: a power cut


@pytest.fixture(scope="module")
def flush_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that notes what is flushed."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    built = tmp_path_factory.mktemp("flush_log") / "flush_log.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(built), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return built


@contextlib.contextmanager
def _noted(flush_log: Path, notes: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(flush_log))
        patch.setenv("FLUSH_LOG", str(notes))
        yield


def cut_to_last_flush(server: Server, notes: Path) -> int:
    """Cuts the log of a dead server to what was flushed; how many bytes are lost."""
    (log,) = (server.directory / "appendonlydir").glob("*.incr.aof")
    flushed = 0
    for line in notes.read_text().splitlines():
        size, _, path = line.partition(" ")
        if path == str(log):
            flushed = int(size)
    lost = log.stat().st_size - flushed
    os.truncate(log, flushed)
    return lost


async def _place_for_ever(client: Engine, confirmed: set[str], asked: str | None) -> None:
    with contextlib.suppress(EngineError):
        while True:
            reply = await client.place_order("X", durability=asked, **LIMIT)
            if reply.get("durability") == "fsync":
                confirmed.add(reply["order_id"])
            elif asked is None:
                await asyncio.sleep(MEMORY_INTERVAL_S)


async def test_a_power_cut_loses_no_order_that_was_confirmed(
    able: str, flush_log: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    with _noted(flush_log, notes):
        server = Server.start(able, APPENDING)
    try:
        load_library(server.client, able)
        confirmed: set[str] = set()
        async with reached(server.url) as client:
            await client.define_instrument("X", **RULES)
            traders = [
                asyncio.create_task(_place_for_ever(client, confirmed, asked))
                for asked in ("fsync", "fsync", None)
            ]
            await eventually(lambda: len(confirmed) >= CONFIRMED_BEFORE_CUT, "orders are confirmed")
            os.kill(server.process.pid, signal.SIGKILL)
            await asyncio.gather(*traders)
        server.process.stop()
        assert cut_to_last_flush(server, notes) > 0
        with running(able, {**APPENDING, "dir": str(server.directory)}) as restarted:
            await eventually(lambda: _has_loaded(restarted), "the log is read")
            assert Book(restarted.client, "X").read("verify_book")["verified"] is True
            found = restarted.client.hkeys("orderbook:{main}:X:orders")
            assert confirmed <= {order_id.decode() for order_id in found}
    finally:
        server.stop()


def _has_loaded(server: Server) -> bool:
    return bool(server.client.info("persistence")["loading"] == 0)


# ---- what it is worth: a failover


@pytest.mark.parametrize("engine_name", ["valkey", "redis7", "redis8"])
async def test_a_failover_loses_no_order_that_was_on_a_replica(
    engine_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_installed(engine_name):
        pytest.skip(f"{engine_name} is not installed")
    with running(engine_name) as primary, running(engine_name) as replica:
        load_library(primary.client, engine_name)
        async with Proxy(primary.port) as proxy:
            replica.client.replicaof(HOST, urlsplit(proxy.url).port)
            await eventually(lambda: _follows(replica), "the replica follows")
            async with reached(primary.url) as client:
                await client.define_instrument("X", **RULES)
                safe = await client.place_order("X", durability="replica", **LIMIT)
                assert safe["durability"] == "replica"
                proxy.passes_replies.clear()
                monkeypatch.setattr(durability, "CONFIRM_TIMEOUT_S", SHORT_S)
                unsafe = await client.place_order("X", durability="replica", **LIMIT)
                assert unsafe["durability"] == "unconfirmed"
                assert await open_ids(client) == {safe["order_id"], unsafe["order_id"]}
                os.kill(primary.process.pid, signal.SIGKILL)
        replica.client.replicaof("NO", "ONE")
        async with reached(replica.url) as client:
            assert await open_ids(client) == {safe["order_id"]}


def _follows(replica: Server) -> bool:
    return bool(replica.client.info("replication")["master_link_status"] == "up")


async def test_disk_and_replicas_are_waited_for_together(
    able: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with exchange(able, APPENDING | {"appendfsync": "always"}) as (server, _):
        with running(able) as replica:
            replica.client.replicaof(HOST, server.port)
            await eventually(lambda: _follows(replica), "the replica follows")
            async with reached(server.url) as client:
                both = await client.place_order("X", durability="fsync+replica", **LIMIT)
                assert both["durability"] == "fsync+replica"
                monkeypatch.setattr(durability, "CONFIRM_TIMEOUT_S", SHORT_S)
                client.durability_replicas = 2
                too_many = await client.place_order("X", durability="fsync+replica", **LIMIT)
                assert too_many["durability"] == "unconfirmed"


async def test_too_few_replicas_are_no_confirmation(
    valkey: Server,
    short_wait: None,  # noqa: ARG001
) -> None:
    async with reached(valkey.url) as client:
        await client.define_instrument("X", **RULES)
        reply = await client.place_order("X", durability="replica", **LIMIT)
        assert (reply["status"], reply["durability"]) == ("open", "unconfirmed")


async def test_a_server_that_was_demoted_meanwhile_confirms_nothing(able: str) -> None:
    async with exchange(able, APPENDING | {"appendfsync": "always"}) as (server, client):
        order = json.dumps({"method": "place_order", **LIMIT}).encode()
        acknowledged = (await client.execute("X", [order])).acknowledged
        assert await client.is_confirmed(acknowledged, Durability.FSYNC)
        server.client.replicaof(HOST, free_port())
        server.client.replicaof("NO", "ONE")
        assert not await client.is_confirmed(acknowledged, Durability.FSYNC)
        reply = await client.place_order("X", durability="fsync", **LIMIT)
        assert reply["durability"] == "fsync"


async def test_a_lane_that_was_opened_to_a_replica_is_opened_anew(valkey: Server) -> None:
    """As Sentinel names the old primary for a moment, which has come back as a replica."""
    with running("valkey") as replica:
        replica.client.replicaof(HOST, valkey.port)
        await eventually(lambda: _follows(replica), "the replica follows")
        async with Proxy(replica.port) as proxy, reached(proxy.url) as client:
            with pytest.raises(EngineError) as refused:
                await client.place_order("X", durability="replica", **LIMIT)
            assert refused.value.code == "UNAVAILABLE"
            proxy.lead(valkey.port)
            await client.define_instrument("X", **RULES)
            reply = await client.place_order("X", durability="replica", **LIMIT)
            assert reply["durability"] == "replica"


# ---- over the websocket


@contextlib.asynccontextmanager
async def hosting(
    settings: Mapping[str, str], **options: Any
) -> AsyncIterator[tuple[Server, Host]]:
    with running("valkey", settings) as server:
        load_library(server.client, "valkey")
        async with Host(HostConfig(server.url, port=0, **options)) as host:
            await host.engine.define_instrument("X", **RULES)
            yield server, host


@contextlib.asynccontextmanager
async def client_of(host: Host, **query: str) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{host.port}/ws"
        socket = await session.ws_connect(url, params={"account": "alice", **query})
        client = Client(socket)
        try:
            yield client
        finally:
            await client.close()


async def test_a_connection_or_a_command_chooses_its_durability() -> None:
    async with hosting(APPENDING | {"appendfsync": "always"}) as (_, host):
        async with client_of(host, durability="fsync") as client:
            placed = await client.limit("X", "buy", "1", "10")
            assert placed["durability"] == "fsync"
            assert "durability" not in await client.limit(
                "X", "buy", "1", "10", durability="memory"
            )
        async with client_of(host) as client:
            assert "durability" not in await client.limit("X", "buy", "1", "10")
            canceled = await client.ask(
                "cancel_order", symbol="X", order_id=placed["order_id"], durability="fsync"
            )
            assert canceled["durability"] == "fsync"
            reply = await client.ask("cancel_all_orders", symbols=["X"], durability="fsync")
            assert (reply["canceled_count"], reply["durability"]) == (2, "fsync")
            terms = {"symbol": "X", **LIMIT}
            del terms["account"]
            assert await client.refused("place_order", **terms, durability="x") == "INVALID_VALUE"
            assert await client.refused("get_book", symbol="X", durability="fsync") == (
                "UNKNOWN_FIELD"
            )


async def test_an_answer_that_waits_keeps_no_other_from_being_given() -> None:
    async with hosting(UNFLUSHED) as (server, host), client_of(host) as client:
        terms = {"symbol": "X", **LIMIT}
        del terms["account"]
        waiting = await client.send("place_order", **terms, durability="fsync")
        for _ in range(3):
            await client.limit("X", "buy", "1", "10")
        # What was sent before has been done, though it is not answered yet.
        assert (await client.ask("get_book", symbol="X"))["bids"] == [["10", "4"]]
        assert all(answer["req_id"] != waiting for answer in client.answers())
        server.client.config_set("appendfsync", "always")
        await client.limit("X", "buy", "1", "10")
        assert (await client.answer(waiting))["result"]["durability"] == "fsync"
        told = host.metrics.text().decode()
        assert 'orderbook_durable_commands_total{durability="fsync"} 1.0' in told
        assert "orderbook_confirmation_seconds_count 1.0" in told


async def test_a_host_has_a_minimum_below_which_no_client_goes() -> None:
    settings = APPENDING | {"appendfsync": "always"}
    hosted = hosting(settings, durability=Durability.FSYNC)
    async with hosted as (_, host), client_of(host) as client:
        for asked in ({}, {"durability": "memory"}, {"durability": "fsync"}):
            reply = await client.limit("X", "buy", "1", "10", **asked)
            assert reply["durability"] == "fsync"


async def test_a_host_does_not_start_where_its_minimum_cannot_be_had(valkey: Server) -> None:
    with pytest.raises(EngineError, match="append-only") as refusal:
        async with Host(HostConfig(valkey.url, port=0, durability=Durability.FSYNC)):
            pass
    assert refusal.value.code == "DURABILITY_UNAVAILABLE"


async def test_what_cannot_be_had_is_refused_at_the_door_and_for_a_command(valkey: Server) -> None:
    async with Host(HostConfig(valkey.url, port=0)) as host:
        await host.engine.define_instrument("X", **RULES)
        for asked, said in (("fsync", "append-only"), ("paper", "fsync+replica")):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with client_of(host, durability=asked):
                    pass
            assert refused.value.status == 400
            assert said in await _told(host, asked)
        async with client_of(host) as client:
            terms = {"symbol": "X", **LIMIT}
            del terms["account"]
            code = await client.refused("place_order", **terms, durability="fsync")
            assert code == "DURABILITY_UNAVAILABLE"


async def _told(host: Host, asked: str) -> str:
    url = f"http://127.0.0.1:{host.port}/ws"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, params={"durability": asked}) as response,
    ):
        return await response.text()
