"""The servers and hosts of a campaign, which are killed and start again where they were."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from redis.exceptions import RedisError

from orderbook.host.workers import HostProcess
from orderbook.processes.child_process import ChildProcess, Surroundings
from servers import BINARIES, connect

START_TIMEOUT_S = 20.0
# Below those that the kernel gives to connections: nobody takes a port while its owner is dead. A
# cluster's node has the one 10000 above as well.
PORTS = range(12000, 22000)
POLL_INTERVAL_S = 0.01
# A C file of tests/ and one of ours are loaded into servers.
TESTS = Path(__file__).resolve().parent.parent.parent / "tests"


def find_port() -> int:
    """A port of PORTS on which nobody listens."""
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class RedisProcess:
    """A server on one port and in one directory, however often it is killed and started."""

    def __init__(
        self, engine: str, settings: Mapping[str, str], environment: Mapping[str, str] | None = None
    ) -> None:
        binary = BINARIES[engine]()
        if binary is None:
            raise click.ClickException(f"{engine} is not installed")
        self.port = find_port()
        self.directory = Path(tempfile.mkdtemp(prefix="orderbook-campaign-"))
        # Any: redis-py types each reply as awaitable too.
        self.client: Any = connect(self.port)
        self._environment = {**os.environ, **(environment or {})}
        own = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.directory), "save": ""}
        self._command = [str(binary)]
        for name, value in {**own, **settings}.items():
            self._command += [f"--{name}", value]
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **more: str) -> None:
        """Returns when the server has read its files and answers."""
        words = [word for name, value in more.items() for word in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            surroundings = Surroundings(log, subprocess.STDOUT, None, self._environment)
            self._process = ChildProcess([*self._command, *words], surroundings)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                told = (self.directory / "log").read_text(errors="replace")[-500:]
                raise click.ClickException(f"the server did not start: {told}")
            time.sleep(POLL_INTERVAL_S)

    def _is_ready(self) -> bool:
        with contextlib.suppress(RedisError):
            return bool(self.client.info("persistence")["loading"] == 0)
        return False

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.stop()

    def stop(self) -> None:
        """Ends the server for good."""
        self.client.close()
        if self._process is not None:
            self._process.stop(0.0)
        shutil.rmtree(self.directory, ignore_errors=True)


class Host:
    """An `orderbook serve` on one port, however often it is killed and started."""

    def __init__(self, redis_url: str, log_path: Path) -> None:
        self.port = find_port()
        self._log_path = log_path
        self._environment = {**os.environ, "ORDERBOOK_REDIS_URL": redis_url}
        self._process: HostProcess | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def start(self) -> None:
        """Returns when the host takes connections."""
        with self._log_path.open("ab") as log:
            arguments = ["--port", str(self.port)]
            self._process = HostProcess(arguments, self._environment, log.fileno())
        await asyncio.to_thread(self._process.wait_until_ready)

    def kill(self) -> None:
        """SIGKILL: no draining, no closing of sockets by the host."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.stop()

    def stop(self) -> None:
        if self._process is not None and self._process.status() is None:
            self.kill()


def build_preload(source: Path, directory: Path) -> Path:
    """Compiles a library to be loaded into a server before the C library."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise click.ClickException("this kind of fault needs a C compiler, cc")
    built = directory / source.with_suffix(".so").name
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(built), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return built
