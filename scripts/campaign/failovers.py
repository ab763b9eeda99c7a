"""The faults in which another server takes over: by Sentinel, in a cluster, and when slots move."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import click
from redis.crc import key_slot
from redis.exceptions import RedisError

import reshard
from campaign.processes import RedisProcess
from campaign.setups import Plan, Setup, define_books, hosted
from orderbook.engine.engine import SEGMENT_DEFAULT
from orderbook.processes.child_process import ChildProcess, Surroundings
from servers import BINARIES, SLOTS, connect, free_port, load_library, running_cluster

SENTINELS = 3
SERVICE = "books"
# Sentinel connects to a new primary once a second: with less it takes that one for dead, too.
DOWN_AFTER_MS = 2000
# Sentinel begins no second failover within twice this time.
FAILOVER_TIMEOUT_MS = 1000
NODE_TIMEOUT_MS = 500
PRIMARIES = 3
READY_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.05
# Without the first, a primary waits seconds for more replicas to come.
REPLICATING = {"repl-diskless-sync-delay": "0", "appendonly": "no"}
CLUSTERED = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    "cluster-replica-validity-factor": "0",
}


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        with contextlib.suppress(RedisError):
            if condition():
                return
        if time.monotonic() > deadline_s:
            raise click.ClickException(f"waited in vain until {what}")
        await asyncio.sleep(POLL_INTERVAL_S)


def _follows(redis: RedisProcess) -> bool:
    return bool(redis.client.info("replication").get("master_link_status") == "up")


def _is_primary(redis: RedisProcess) -> bool:
    return bool(redis.client.info("replication")["role"] == "master")


# ---- Sentinel


@contextlib.contextmanager
def _servers(count: int, plan: Plan, settings: dict[str, str]) -> Iterator[list[RedisProcess]]:
    with contextlib.ExitStack() as cleanup:
        servers = []
        for _ in range(count):
            servers.append(RedisProcess(plan.engine, REPLICATING | settings))
            cleanup.callback(servers[-1].stop)
            servers[-1].start()
        yield servers


@contextlib.contextmanager
def _sentinels(plan: Plan, primary: RedisProcess) -> Iterator[list[int]]:
    """The ports of several Sentinels that watch one primary."""
    binary = BINARIES[plan.engine]()
    with contextlib.ExitStack() as cleanup:
        name = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="orderbook-campaign-"))
        ports = []
        for number in range(SENTINELS):
            port, config = free_port(), Path(name) / f"sentinel{number}.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {name}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} {SENTINELS // 2 + 1}\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
            )
            with config.with_suffix(".log").open("wb") as log:
                command = [str(binary), str(config), "--sentinel"]
                cleanup.callback(ChildProcess(command, Surroundings(log)).stop)
            ports.append(port)
        yield ports


def _all_watch(ports: list[int]) -> bool:
    """Whether each Sentinel knows the others and a replica that is fit."""
    return all(_watches(port) for port in ports)


def _watches(port: int) -> bool:
    with contextlib.closing(connect(port)) as sentinel:
        peers = sentinel.execute_command("SENTINEL", "SENTINELS", SERVICE)
        replicas = sentinel.execute_command("SENTINEL", "REPLICAS", SERVICE)
    states = [dict(zip(state[::2], state[1::2], strict=True)) for state in replicas]
    fit = [s for s in states if s[b"flags"] == b"slave" and s[b"master-link-status"] == b"ok"]
    return len(peers) == SENTINELS - 1 and bool(fit)


@contextlib.asynccontextmanager
async def watched_by_sentinel(plan: Plan) -> AsyncIterator[Setup]:
    with _servers(2, plan, {}) as (primary, replica), _sentinels(plan, primary) as ports:
        load_library(primary.client, plan.engine)
        replica.client.replicaof("127.0.0.1", primary.port)
        await _until(lambda: _follows(replica), "the replica follows")
        await _until(lambda: _all_watch(ports), "Sentinels know the replica and each other")
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = f"redis+sentinel://{addresses}/{SERVICE}"
        await define_books(url)
        async with hosted(plan, primary, url) as setup:
            setup.replica = replica

            async def restore() -> None:
                # Sentinel may have gone back to the first one meanwhile.
                await _until(lambda: _are_in_place(setup, ports), "the old primary follows")

            setup.restore = restore
            yield setup


def _are_in_place(setup: Setup, ports: list[int]) -> bool:
    """Whether everybody agrees who is the primary; the setup then says so too."""
    with contextlib.closing(connect(ports[0])) as sentinel:
        _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
    if setup.redis.port != int(port):
        setup.redis, setup.replica = _replica_of(setup), setup.redis
    replica = _replica_of(setup)
    return _is_primary(setup.redis) and _follows(replica) and _all_watch(ports)


def _replica_of(setup: Setup) -> RedisProcess:
    assert setup.replica is not None
    return setup.replica


async def fail_over(setup: Setup) -> None:
    """The primary dies and its replica takes over; then the dead comes back as a replica."""
    primary, replica = setup.redis, _replica_of(setup)
    setup.load.mark_fault()
    primary.kill()
    await _until(lambda: _is_primary(replica), "the replica has taken over")
    # A node of a cluster knows by itself that another one has its slots now.
    more = {} if setup.is_cluster else {"replicaof": f"127.0.0.1 {replica.port}"}
    await asyncio.to_thread(primary.start, **more)
    setup.redis, setup.replica = replica, primary


# ---- a cluster


@contextlib.asynccontextmanager
async def clustered(plan: Plan) -> AsyncIterator[Setup]:
    """Three primaries, and a replica of the one that has the books."""
    with _servers(PRIMARIES + 1, plan, CLUSTERED) as nodes:
        *primaries, replica = nodes
        bounds = [SLOTS * number // PRIMARIES for number in range(PRIMARIES + 1)]
        slot = key_slot(SEGMENT_DEFAULT.encode())
        # The one with the books is the first.
        ranges = sorted(pairwise(bounds), key=lambda bound: not bound[0] <= slot < bound[1])
        for node, (first, end) in zip(primaries, ranges, strict=True):
            load_library(node.client, plan.engine)
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for node in nodes[1:]:
            node.client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        await _until(lambda: all(map(_is_whole, nodes)), "the nodes are a cluster")
        primary_id = nodes[0].client.execute_command("CLUSTER MYID")
        replica.client.execute_command("CLUSTER REPLICATE", primary_id)
        await _until(lambda: _follows(replica), "the replica follows")
        # A node that nobody kills.
        url = f"redis+cluster://127.0.0.1:{nodes[1].port}"
        await define_books(url)
        async with hosted(plan, nodes[0], url) as setup:
            setup.replica, setup.is_cluster = replica, True

            async def restore() -> None:
                await _until(lambda: _follows(_replica_of(setup)), "the old primary follows")
                await _until(lambda: all(map(_is_whole, nodes)), "the nodes are a cluster")

            setup.restore = restore
            yield setup


def _is_whole(node: RedisProcess) -> bool:
    """Whether the node knows all others and finds all slots served."""
    nodes = node.client.execute_command("CLUSTER NODES")
    told = str(nodes)
    state = node.client.execute_command("CLUSTER INFO")
    return "fail" not in told and "handshake" not in told and _is_ok(state)


def _is_ok(info: bytes | dict[str, str]) -> bool:
    if isinstance(info, dict):
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == PRIMARIES + 1
    lines = info.decode().split()
    return "cluster_state:ok" in lines and f"cluster_known_nodes:{PRIMARIES + 1}" in lines


# ---- slots that move


async def reshard_rounds(rounds: int, seed: int, engine: str) -> reshard.Summary:
    """Slots of a cluster move there and back under traders with an audit of their own."""
    with running_cluster(engine) as servers:
        for server in servers:
            load_library(server.client, engine)
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        return await reshard.run(reshard.Options(url, rounds, random_seed=seed))
