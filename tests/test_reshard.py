"""Slots of a real cluster move there and back while books in them trade over websockets."""

import shutil
from collections.abc import Iterator

import pytest

from reshard import Options, run
from servers import HOST, Server, load_library, running_cluster

# However slow the machine is.
ORDERS_MIN = 20


@pytest.fixture(scope="module")
def cluster(engine: str) -> Iterator[list[Server]]:
    if engine == "fakeredis":
        pytest.skip("fakeredis is no cluster")
    with running_cluster(engine) as servers:
        for server in servers:
            load_library(server.client, engine)
        yield servers


@pytest.mark.parametrize("atomic", [False, True], ids=["reshard", "migrateslots"])
async def test_nothing_is_lost_doubled_or_damaged_by_a_move(
    cluster: list[Server], atomic: bool
) -> None:
    if atomic and b"cluster|migrateslots" not in cluster[0].client.execute_command("COMMAND LIST"):
        pytest.skip("the server has no CLUSTER MIGRATESLOTS")
    if not atomic and shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed")
    for server in cluster:
        server.client.flushall()
    summary = await run(Options(f"redis+cluster://{HOST}:{cluster[0].port}", 1, atomic))
    assert summary.violations == []
    assert (summary.refused, summary.resent) == ({}, 0)
    assert (summary.moves, summary.orders > ORDERS_MIN) == (2, True)
