"""What a campaign breaks: a server, hosts on it, and a load on the hosts."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from campaign.judge import Judge, wait_until_verified
from campaign.load import RULES, SYMBOLS, Load
from campaign.processes import Host, RedisProcess
from orderbook.engine.engine import Engine
from proxy import Proxy
from servers import load_library

HOSTS = 2


@dataclass
class Setup:
    """Everything that a fault may reach for. The judge goes to `redis_url`."""

    redis: RedisProcess
    redis_url: str
    hosts: list[Host]
    load: Load
    judges: list[Judge]
    dice: Random
    directory: Path
    # Where the hosts reach the server through a proxy.
    proxy: Proxy | None = None
    # Where another server may take over.
    replica: RedisProcess | None = None
    is_cluster: bool = False
    # Waits until the same fault can strike again.
    restore: Callable[[], Awaitable[None]] | None = None
    # What a library that is loaded into the server writes or reads.
    shared_file: Path = Path()


@dataclass(frozen=True)
class Plan:
    """How a setup is made."""

    seed: str
    durabilities: Sequence[str] = ("memory",)
    engine: str = "valkey"


async def define_books(redis_url: str) -> None:
    engine = await Engine.connect(redis_url)
    try:
        for symbol in SYMBOLS:
            await engine.define_instrument(symbol, **RULES)
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def hosted(plan: Plan, redis: RedisProcess, redis_url: str) -> AsyncIterator[Setup]:
    """Hosts and a load on books that are defined; nobody trades yet. `redis_url` is what the hosts
    are given, which may lead through a proxy or a Sentinel."""
    with tempfile.TemporaryDirectory(prefix="orderbook-campaign-") as name:
        directory = Path(name)
        hosts = [Host(redis_url, directory / f"host{number}.log") for number in range(HOSTS)]
        load = Load([host.url for host in hosts], plan.durabilities, plan.seed)
        try:
            await asyncio.gather(*(host.start() for host in hosts))
            async with load.open():
                judges = [
                    Judge(load.ledgers[symbol], load.tapes[symbol], load.violations)
                    for symbol in SYMBOLS
                ]
                yield Setup(redis, redis_url, hosts, load, judges, Random(plan.seed), directory)
        finally:
            for host in hosts:
                host.stop()


@contextlib.asynccontextmanager
async def started(
    plan: Plan, settings: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[RedisProcess]:
    """One server, its books defined and, where it has a log, flushed."""
    redis = RedisProcess(plan.engine, settings, environment)
    try:
        redis.start()
        load_library(redis.client, plan.engine)
        await define_books(redis.url)
        if settings.get("appendonly") == "yes":
            redis.client.execute_command("WAITAOF", 1, 0, 5000)
        yield redis
    finally:
        redis.stop()


@contextlib.asynccontextmanager
async def one_server(
    plan: Plan, settings: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Setup]:
    """One server with two hosts."""
    async with (
        started(plan, settings, environment) as redis,
        hosted(plan, redis, redis.url) as setup,
    ):
        yield setup


@contextlib.asynccontextmanager
async def proxied(plan: Plan) -> AsyncIterator[Setup]:
    """One server with two hosts, which reach it through a proxy."""
    async with (
        started(plan, {}) as redis,
        Proxy(redis.port) as proxy,
        hosted(plan, redis, proxy.url) as setup,
    ):
        setup.proxy, setup.redis_url = proxy, redis.url
        yield setup


async def judge(setup: Setup, redis_url: str, *, memory_is_safe: bool) -> tuple[int, int]:
    """Judges every book; how many commands are lost, and how many orders doubled."""
    lost = doubled = 0
    engine = await wait_until_verified(redis_url, SYMBOLS[0])
    try:
        for book in setup.judges:
            finding = await book.judge(engine, memory_is_safe=memory_is_safe)
            lost += finding.lost
            doubled += finding.doubled
    finally:
        await engine.close()
    return lost, doubled
