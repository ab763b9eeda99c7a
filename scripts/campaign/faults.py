"""The faults of servers and hosts: each strikes a setup once, and has ended when it returns."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from campaign.processes import TESTS, RedisProcess, build_preload
from campaign.setups import Plan, Setup, one_server

NOTES_NAME = "flushes"


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
            setup.notes = notes
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
    _cut_to_last_flush(setup.redis, setup.notes)
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
