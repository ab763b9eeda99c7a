"""The faults of servers and hosts: each strikes a setup once, and has ended when it returns."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from campaign.processes import TESTS, RedisProcess, build_preload
from campaign.setups import Plan, Setup, one_server
from proxy import Proxy
from servers import free_port

NOTES_NAME = "flushes"
# How long a fault of a chosen length takes.
SHORT_S = (0.1, 1.0)
# Longer than a host waits for a reply.
LONG_STALL_S = 5.5
LONG_STALL_CHANCE = 0.25
FLOOD_S = (0.5, 1.5)
STORM_LENGTH = (5, 20)
STORM_INTERVAL_S = 0.03
# By how much the clock jumps, forwards or backwards.
JUMPS_S = (0.5, 5.0, 60.0, 3600.0)
JUMP_INTERVAL_S = 0.2


def _appending(appendfsync: str) -> dict[str, str]:
    # No rewrite: a power cut is played on one file.
    settings = {"appendonly": "yes", "appendfsync": appendfsync}
    return settings | {"auto-aof-rewrite-percentage": "0"}


# ---- Redis is killed


@contextlib.asynccontextmanager
async def flushing_always(plan: Plan) -> AsyncIterator[Setup]:
    async with one_server(plan, _appending("always")) as setup:
        yield setup


@contextlib.asynccontextmanager
async def flushing_every_second(plan: Plan) -> AsyncIterator[Setup]:
    async with one_server(plan, _appending("everysec")) as setup:
        yield setup


async def kill_redis(setup: Setup) -> None:
    setup.load.mark_fault()
    setup.redis.kill()
    await asyncio.to_thread(setup.redis.start)


# ---- the power fails


@contextlib.asynccontextmanager
async def _noted(plan: Plan, appendfsync: str) -> AsyncIterator[Setup]:
    """A server that notes what it has flushed, by a library that is loaded into it."""
    with tempfile.TemporaryDirectory(prefix="orderbook-campaign-") as name:
        library = build_preload(TESTS / "flush_log.c", Path(name))
        notes = Path(name) / NOTES_NAME
        environment = {"LD_PRELOAD": str(library), "FLUSH_LOG": str(notes)}
        async with one_server(plan, _appending(appendfsync), environment) as setup:
            setup.shared_file = notes
            yield setup


@contextlib.asynccontextmanager
async def powered_always(plan: Plan) -> AsyncIterator[Setup]:
    async with _noted(plan, "always") as setup:
        yield setup


@contextlib.asynccontextmanager
async def powered_every_second(plan: Plan) -> AsyncIterator[Setup]:
    async with _noted(plan, "everysec") as setup:
        yield setup


async def cut_power(setup: Setup) -> None:
    """Kills the server and cuts its log back to what was flushed last: no more is on the disk."""
    setup.load.mark_fault()
    setup.redis.kill()
    _cut_to_last_flush(setup.redis, setup.shared_file)
    await asyncio.to_thread(setup.redis.start)


def _cut_to_last_flush(redis: RedisProcess, notes: Path) -> None:
    (log,) = (redis.directory / "appendonlydir").glob("*.incr.aof")
    lines = notes.read_text().splitlines()
    flushed = [line.partition(" ")[0] for line in lines if line.endswith(f" {log}")]
    os.truncate(log, int(flushed[-1]))


# ---- a host is killed


@contextlib.asynccontextmanager
async def unflushed(plan: Plan) -> AsyncIterator[Setup]:
    async with one_server(plan, {}) as setup:
        yield setup


async def kill_host(setup: Setup) -> None:
    host = setup.dice.choice(setup.hosts)
    setup.load.mark_fault()
    host.kill()
    await host.start()


# ---- the network


def _proxy_of(setup: Setup) -> Proxy:
    assert setup.proxy is not None
    return setup.proxy


async def cut_network(setup: Setup) -> None:
    """Breaks every connection between hosts and server: once, for a while, or as a reply comes."""
    proxy = _proxy_of(setup)
    way = setup.dice.choice(("once", "for a while", "at replies"))
    setup.load.mark_fault()
    if way == "for a while":
        proxy.switch(free_port())
        await asyncio.sleep(setup.dice.uniform(*SHORT_S))
    elif way == "at replies":
        proxy.loses_replies = True
        await asyncio.sleep(setup.dice.uniform(*SHORT_S))
        proxy.loses_replies = False
    proxy.switch(setup.redis.port)
    setup.load.mark_end()


async def stall_network(setup: Setup) -> None:
    """Replies wait, or the server itself stands still."""
    proxy = _proxy_of(setup)
    is_long = setup.dice.random() < LONG_STALL_CHANCE
    length_s = LONG_STALL_S if is_long else setup.dice.uniform(*SHORT_S)
    setup.load.mark_fault()
    if setup.dice.random() < 0.5:
        proxy.passes_replies.clear()
        await asyncio.sleep(length_s)
        proxy.passes_replies.set()
    else:
        os.kill(setup.redis.pid, signal.SIGSTOP)
        await asyncio.sleep(length_s)
        os.kill(setup.redis.pid, signal.SIGCONT)
    setup.load.mark_end()


async def kill_clients(setup: Setup) -> None:
    """The server closes all connections, again and again."""
    setup.load.mark_fault()
    for _ in range(setup.dice.randint(*STORM_LENGTH)):
        setup.redis.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(STORM_INTERVAL_S)
    setup.load.mark_end()


# ---- too much


async def fill_memory(setup: Setup) -> None:
    setup.load.mark_fault()
    setup.redis.client.config_set("maxmemory", 1)
    await asyncio.sleep(setup.dice.uniform(*SHORT_S))
    setup.redis.client.config_set("maxmemory", 0)
    setup.load.mark_end()


async def flood(setup: Setup) -> None:
    """Others send to one of the hosts as fast as they can; times are those of orders meanwhile."""
    url, length_s = setup.dice.choice(setup.hosts).url, setup.dice.uniform(*FLOOD_S)
    symbol = setup.dice.choice(list(setup.load.ledgers))
    words = ("-m", "campaign.flood", url, symbol, str(length_s))
    process = await asyncio.create_subprocess_exec(sys.executable, *words)
    await asyncio.sleep(length_s / 2)
    setup.load.mark_fault()
    await process.wait()


# ---- the clock


@contextlib.asynccontextmanager
async def shifted(plan: Plan) -> AsyncIterator[Setup]:
    """A server whose wall clock can be moved."""
    with tempfile.TemporaryDirectory(prefix="orderbook-campaign-") as name:
        library = build_preload(Path(__file__).with_name("clock_shift.c"), Path(name))
        shift = Path(name) / "shift"
        shift.write_bytes(bytes(8))
        environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
        async with one_server(plan, {}, environment) as setup:
            setup.shared_file = shift
            yield setup


async def jump_clock(setup: Setup) -> None:
    """The clock that the engine goes by jumps, and after a moment jumps again."""
    for _ in range(2):
        jump_s = setup.dice.choice(JUMPS_S) * setup.dice.choice((-1, 1))
        shift_us = int.from_bytes(setup.shared_file.read_bytes(), "little", signed=True)
        with setup.shared_file.open("r+b") as file:
            file.write((shift_us + int(jump_s * 1e6)).to_bytes(8, "little", signed=True))
        setup.load.mark_fault()
        await asyncio.sleep(JUMP_INTERVAL_S)
