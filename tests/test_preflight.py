"""What is told of a server before it is used: whose fault it is, and what to do."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from packaging.version import Version
from redis.asyncio import Redis as AsyncRedis

from orderbook.cli import main as cli
from orderbook.cli import serve, shared
from orderbook.engine import library, preflight
from orderbook.engine.engine import Engine
from orderbook.engine.errors import EngineError
from orderbook.engine.library import InstalledLibrary
from processes import wait_until
from servers import HOST, Server, load_library, running

VERSIONS = (
    *("0.1.0.dev1", "0.1.0a1", "0.1.0b2.dev1", "0.1.0b2", "0.1.0rc1", "0.1.0rc2", "0.1.0rc10"),
    *("0.1.0", "0.1.0.post1", "0.1.1", "0.2.0rc1", "0.2.0", "0.10.0", "1.0", "1.0.1"),
)

# ---- versions


def test_versions_are_ordered_as_the_package_index_orders_them() -> None:
    ordered = sorted(VERSIONS, key=Version)
    assert list(VERSIONS) == ordered
    shuffled = [*VERSIONS[1::2], *VERSIONS[::2]]
    assert sorted(shuffled, key=library.version_key) == ordered
    assert library.version_key("1.0") == library.version_key("1.0.0")


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("0.1.0", None),
        ("0.1.1", None),
        ("0.1.0rc1", "run `orderbook functions load` of release 0.1.0"),
        ("0.0.9", "run `orderbook functions load` of release 0.1.0"),
        ("0.2.0", "bring this host to release 0.2.0"),
    ],
)
def test_the_side_that_must_change_is_named(version: str, advice: str | None) -> None:
    reason = library.misfit(InstalledLibrary("orderbook", version, "x"))
    assert (reason is None) == (advice is None)
    assert reason is None or reason.endswith(advice or "")


# ---- the server's own words


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: it only says which address would be used.
        probe.connect(("192.0.2.1", 9))
        address = str(probe.getsockname()[0])
        if not address.startswith("127."):
            return address
    pytest.skip("this machine has only loopback")


async def test_a_server_in_protected_mode_says_so() -> None:
    address = own_address()
    with running("valkey", {"bind": "0.0.0.0", "protected-mode": "yes"}) as server:  # noqa: S104
        for url in (f"redis://{address}:{server.port}", f"redis+cluster://{address}:{server.port}"):
            with pytest.raises(EngineError, match="protected mode"):
                await Engine.connect(url)


async def test_a_server_that_takes_no_more_clients_says_so() -> None:
    with running("valkey", {"maxclients": "1"}) as server:
        server.client.ping()
        with pytest.raises(EngineError, match="max number of clients"):
            await Engine.connect(f"redis://{HOST}:{server.port}")


def test_a_sentinel_that_does_not_answer_is_told_in_words() -> None:
    refused = run("functions", "check", "--redis-url", f"redis+sentinel://{HOST}:1/books")
    assert refused.exit_code == shared.EXIT_UNREACHABLE
    assert refused.stderr.strip().endswith("no Sentinel that answers knows a primary of books")


# ---- what is found, by what commands say and return


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, arguments)


@pytest.fixture
def server() -> Iterator[Server]:
    with running("valkey", {"appendonly": "yes"}) as server:
        yield server


def started(server: Server, *arguments: str) -> tuple[int | None, str]:
    """Starts a host, and ends it where it starts; its exit code and what it said on stderr."""
    environment = {**os.environ, "ORDERBOOK_REDIS_URL": server.url}
    command = [sys.executable, "-m", "orderbook", "serve", "--json", "--port", "0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline():
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_server_in_order_is_used_without_a_word(server: Server) -> None:
    for command in ("load", "check"):
        result = run("functions", command, "--redis-url", server.url)
        assert (result.exit_code, result.stderr) == (0, "")
    assert started(server) == (0, "")


def test_a_server_that_evicts_is_refused_unless_that_is_accepted(server: Server) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    for command in ("load", "check"):
        arguments = ("functions", command, "--redis-url", server.url)
        refused = run(*arguments)
        assert refused.exit_code == shared.EXIT_SERVER
        assert "maxmemory-policy allkeys-lru throws parts of books away" in refused.stderr
        assert server.client.function_list() == [] or command == "check"
        accepted = run(*arguments, "--accept", "eviction")
        assert (accepted.exit_code, accepted.stderr) == (0, "")
    code, said = started(server)
    assert code == shared.EXIT_SERVER
    assert "maxmemory-policy allkeys-lru" in said
    assert "Traceback" not in said
    assert started(server, "--accept", "eviction") == (0, "")
    # Of a book's keys only those of stored replies expire.
    server.client.config_set("maxmemory-policy", "volatile-lru")
    code, said = started(server)
    assert code == shared.EXIT_SERVER
    assert "maxmemory-policy volatile-lru throws stored replies away" in said


def test_what_can_be_lived_with_is_told_in_one_sentence_each(server: Server) -> None:
    server.client.config_set("appendonly", "no")
    server.client.config_set("client-output-buffer-limit", "normal 16mb 0 0")
    for command in ("load", "check"):
        result = run("functions", command, "--redis-url", server.url)
        assert result.exit_code == 0
        no_file, limit = result.stderr.splitlines()
        assert no_file.endswith(
            "there is no append-only file: all books are lost when the server ends"
        )
        assert "client-output-buffer-limit normal 16777216 0 0 can cut" in limit
    code, said = started(server, "--accept", "no-append-only-file")
    assert (code, said.count("\n")) == (0, 1)
    assert "client-output-buffer-limit" in said


def test_a_replica_that_cannot_be_asked_or_is_none_is_told(server: Server) -> None:
    load_library(server.client, server.engine)
    code, said = started(server, "--read-url", "redis://127.0.0.1:1")
    assert code == 0
    assert "127.0.0.1:1: the replica at --read-url cannot be asked" in said
    with running("valkey") as other:
        code, said = started(server, "--read-url", other.url)
        assert code == 0
        assert "is no replica of the server that holds the books" in said
    with running("valkey", {"replicaof": f"{HOST} {server.port}"}) as replica:
        wait_until(
            lambda: replica.client.info("replication")["master_link_status"] == "up", "it is linked"
        )
        assert started(server, "--read-url", replica.url) == (0, "")


def test_a_user_without_the_rights_is_refused_with_the_right_that_is_missing(
    server: Server,
) -> None:
    load_library(server.client, server.engine)
    server.client.acl_setuser(
        "limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"]
    )
    server.client.execute_command("ACL", "SETUSER", "limited", "-zrem")
    url = f"redis://limited:secret@{HOST}:{server.port}"
    refused = run("functions", "check", "--redis-url", url)
    assert refused.exit_code == shared.EXIT_SERVER
    assert "needs the right to ZREM" in refused.stderr
    assert "orderbook functions acl" in refused.stderr
    code, said = started(server, "--redis-url", url)
    assert code == shared.EXIT_SERVER
    assert "needs the right to ZREM" in said


def test_a_loader_without_the_right_to_load_hears_the_servers_reason(server: Server) -> None:
    server.client.acl_setuser(
        "limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"]
    )
    server.client.execute_command("ACL", "SETUSER", "limited", "-function|load")
    url = f"redis://limited:secret@{HOST}:{server.port}"
    refused = run("functions", "load", "--redis-url", url)
    assert refused.exit_code == shared.EXIT_SERVER
    assert "function|load" in refused.stderr


def test_a_server_without_functions_is_refused_in_words(tmp_path: Path) -> None:
    """As servers are that speak the protocol of Redis 7 and have no functions."""
    config = tmp_path / "no-functions.conf"
    config.write_text('rename-command FCALL_RO ""\n')
    settings = {"appendonly": "yes", "include": str(config)}
    with running("redis7", settings) as server:
        for command in ("load", "check"):
            refused = run("functions", command, "--redis-url", server.url)
            assert refused.exit_code == shared.EXIT_SERVER
            assert "Redis 7.0 or later, or Valkey, is needed" in refused.stderr


@pytest.mark.parametrize(
    ("told", "too_old"),
    [
        ({"redis_version": "6.2.14"}, True),
        ({"redis_version": "5.0.3"}, True),
        ({"redis_version": "7.0.0"}, False),
        ({"redis_version": "7.4.1"}, False),
        ({"redis_version": "8.2.0"}, False),
        ({"redis_version": "10.0.0"}, False),
        # Valkey tells a version of Redis that it is compatible with.
        ({"redis_version": "6.2.4", "valkey_version": "9.1.0"}, False),
    ],
)
async def test_versions_without_functions_are_known(told: dict[str, str], too_old: bool) -> None:
    with running("valkey") as server:
        client = AsyncRedis(host=HOST, port=server.port)
        found = await preflight._version_text(client, told)
        await client.aclose()
    assert ("is too old" in found) is too_old


def test_what_can_be_accepted_is_what_the_command_line_offers() -> None:
    (option,) = (p for p in serve.serve.params if p.name == "accept")
    assert option.to_info_dict()["type"]["choices"] == preflight.ACCEPTABLE
