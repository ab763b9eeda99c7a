"""Whether a host says that it is ready exactly when clients can do there what they need."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.exceptions import ResponseError

from books import Book
from clients import connected, eventually
from orderbook.host.host import Host, HostConfig
from servers import HOST, Server, load_library, running
from test_faults import CASES, Case, prepared, run_recorded, shimmed
from test_rights import grant

__all__ = ["prepared", "shimmed"]

RULES = {"tick_size": "0.01", "lot_size": "1"}
LUA = Path(__file__).parent.parent / "lua"
FLOOD = 300
CALLS_PER_S_MAX = 4
DEADLINE_S = 30.0
POLL_INTERVAL_S = 0.1


@pytest.fixture
def server() -> Iterator[Server]:
    with running("valkey", {"repl-diskless-sync-delay": "0"}) as server:
        load_library(server.client, "valkey")
        for symbol in ("X", "Y"):
            Book(server.client, symbol).define()
        yield server


@contextlib.asynccontextmanager
async def hosting(url: str, **options: Any) -> AsyncIterator[Host]:
    async with Host(HostConfig(url, port=0, **options)) as host:
        yield host


async def ask(port: int, path: str = "/readyz") -> tuple[int, str]:
    url = f"http://{HOST}:{port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def reasons(host: Host) -> list[str]:
    status, body = await ask(host.admin_port)
    told = json.loads(body)
    assert told["ready"] is (status == 200) is (not told["reasons"])
    found: list[str] = told["reasons"]
    return found


async def becomes_unready(host: Host, words: str) -> None:
    """Waits for a reason with these words."""
    deadline_s = time.monotonic() + DEADLINE_S
    while words not in (said := " ".join(await reasons(host))):
        assert time.monotonic() < deadline_s, f"not {words!r} but {said}"
        await asyncio.sleep(POLL_INTERVAL_S)


async def becomes_ready(host: Host) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while said := await reasons(host):
        assert time.monotonic() < deadline_s, f"still not ready: {said}"
        await asyncio.sleep(POLL_INTERVAL_S)


async def test_a_host_is_not_ready_where_orders_are_refused(server: Server) -> None:
    async with hosting(server.url) as host:
        await becomes_ready(host)
        server.client.config_set("min-replicas-to-write", "1")
        await becomes_unready(host, "NOREPLICAS")
        server.client.config_set("min-replicas-to-write", "0")
        await becomes_ready(host)
        server.client.config_set("maxmemory", "1")
        await becomes_unready(host, "memory is full")
        server.client.config_set("maxmemory", "0")
        await becomes_ready(host)


async def test_a_host_is_not_ready_where_nobody_answers_at_its_read_url(server: Server) -> None:
    with running(server.engine, {"replicaof": f"{HOST} {server.port}"}) as replica:
        await asyncio.to_thread(server.client.wait, 1, 10_000)
        async with hosting(server.url, read_url=replica.url) as host:
            await becomes_ready(host)
            replica.process.stop()
            await becomes_unready(host, "the streams cannot be read")


async def test_a_host_is_not_ready_where_a_replica_stands_still(server: Server) -> None:
    """It answers; what it lacks shows as lag."""
    with running(server.engine, {"replicaof": f"{HOST} {server.port}"}) as replica:
        await asyncio.to_thread(server.client.wait, 1, 10_000)
        async with hosting(server.url, read_url=replica.url) as host:
            await becomes_ready(host)
            replica.client.replicaof("NO", "ONE")
            Book(server.client, "X").limit("alice", "buy", "1", "1")
            await becomes_unready(host, "behind")


async def test_a_host_is_not_ready_as_a_user_without_a_right(server: Server) -> None:
    client = server.client
    client.acl_setuser(
        "limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"]
    )
    async with hosting(f"redis://limited:secret@{HOST}:{server.port}") as host:
        await becomes_ready(host)
        for command in ("zrem", "time"):
            client.execute_command("ACL", "SETUSER", "limited", f"-{command}")
            await becomes_unready(host, "does not grant the rights")
            client.execute_command("ACL", "SETUSER", "limited", f"+{command}")
            await becomes_ready(host)


@pytest.mark.parametrize("key", ["asks", "events", ""])
async def test_an_evicted_key_is_told_and_takes_no_other_book_away(
    server: Server, key: str
) -> None:
    book = Book(server.client, "X")
    book.limit("alice", "sell", "1", "10")
    async with hosting(server.url) as host:
        await becomes_ready(host)
        server.client.delete(f"{book.key}:{key}".rstrip(":"))
        await eventually(host.feed.troubled_books, "it is noticed")
        status, body = await ask(host.port)
        told = json.loads(body)
        assert (status, told["troubled_books_count"]) == (200, 1)
        assert list(told["troubled_books"]) == ["X"]
        assert "missing" in told["troubled_books"]["X"]
        server.client.delete(Book(server.client, "Y").key)
        await becomes_unready(host, "every book is in trouble: X: ")
        server.client.delete("orderbook:instruments")
        await becomes_unready(host, "not listed any more")


async def test_health_checks_are_answered_in_a_flood(server: Server) -> None:
    async with (
        hosting(server.url) as host,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):

        async def one() -> int:
            async with session.get(f"http://{HOST}:{host.port}/readyz") as response:
                return response.status

        began_s = time.monotonic()
        before = server.client.info("commandstats")["cmdstat_fcall_ro"]["calls"]
        assert await asyncio.gather(*(one() for _ in range(FLOOD))) == [200] * FLOOD
        after = server.client.info("commandstats")["cmdstat_fcall_ro"]["calls"]
        # One probe a second, beside the host's own look at its two books.
        assert after - before <= CALLS_PER_S_MAX * (time.monotonic() - began_s + 2)


async def test_health_checks_have_a_port_of_their_own(server: Server) -> None:
    async with hosting(server.url, admin_port=0) as host:
        assert host.admin_port != host.port
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await ask(host.admin_port, path))[0] == 200
            assert (await ask(host.port, path))[0] == 404
        assert (await ask(host.admin_port, "/ws"))[0] == 404
        async with connected(host.port) as client:
            await client.subscribe("trades", "X")


async def test_a_host_that_drains_says_so_at_the_port_of_its_own(server: Server) -> None:
    host = Host(HostConfig(server.url, port=0, admin_port=0))
    await host.start()
    async with connected(host.port, autoping=False) as client:
        await client.subscribe("trades", "X")
        # As long as a draining host waits for its answers, and more.
        server.client.client_pause(3000)
        await client.send("get_book", symbol="X")
        await asyncio.sleep(0.1)
        draining = asyncio.create_task(host.drain())
        await asyncio.sleep(0.1)
        status, body = await ask(host.admin_port)
        assert (status, json.loads(body)["reasons"]) == (503, ["draining"])
        await draining


# ---- the rights in the functions


def listed_commands() -> set[str]:
    return set(re.findall(r'"([A-Z]{3,})"', (LUA / "server" / "access.lua").read_text("utf-8")))


def test_every_command_of_every_case_is_listed(prepared: Callable[[Case], Book]) -> None:
    made = {
        call.command for case in CASES.values() for call in run_recorded(prepared(case), case)[1]
    }
    assert made <= listed_commands()


def test_a_probe_names_each_right_that_is_missing(book: Book, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis has no users")
    assert book.ask("probe_book")["symbol"] == book.symbol
    for command in sorted(listed_commands()):
        limited = grant(book.client, "~*", "+@all", f"-{command.lower()}")
        limited.symbol, limited.key = book.symbol, book.key
        with pytest.raises(
            ResponseError, match=rf"the right to {command} |[Pp]ermission|can't run"
        ):
            limited.ask("probe_book")
        limited.client.close()
