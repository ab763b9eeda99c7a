"""Websocket hosts of our own, one process each: for drivers that need several, and may kill one.

Each is a plain `orderbook serve` on a free port; it tells its address when it is ready. A bare host
(bare_host.py) is what a benchmark holds against one of them.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import click

from orderbook.host.workers import HostProcess, WorkerError


class Host:
    """One running host process."""

    def __init__(self, redis_url: str) -> None:
        environment = {
            **os.environ,
            "ORDERBOOK_REDIS_URL": redis_url,
            # What is measured need not survive.
            "ORDERBOOK_SERVE_ACCEPT": "no-append-only-file",
        }
        self._process = HostProcess(["--port", "0"], environment)
        self.url = ""

    def wait_until_ready(self) -> None:
        """Raises click.ClickException when the host does not come up."""
        try:
            self.url = self._process.wait_until_ready()["websocket"]
        except WorkerError as error:
            raise click.ClickException(str(error)) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: no draining, no closing of sockets by the host."""
        os.kill(self._process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Asks the host to drain and end, and does not wait."""
        self._process.terminate()

    def stop(self) -> None:
        self._process.stop()


@contextlib.contextmanager
def start_hosts(redis_url: str, count: int) -> Iterator[list[Host]]:
    """`count` ready hosts on the books of one server."""
    with contextlib.ExitStack() as cleanup:
        hosts = []
        for _ in range(count):
            hosts.append(Host(redis_url))
            cleanup.callback(hosts[-1].stop)
        for host in hosts:
            host.wait_until_ready()
        yield hosts
        # All are told before the first is waited for: they drain at the same time.
        for host in hosts:
            host.terminate()


class BareHost:
    """A running bare host, as a context manager."""

    def __init__(self) -> None:
        script = Path(__file__).resolve().parent / "bare_host.py"
        self._process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def cpu_s(pid: int) -> float:
    """The CPU time a process has taken. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """The memory that a process has for itself alone. Linux only."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    private = [line.split() for line in lines if line.startswith("Private_")]
    return sum(int(words[1]) for words in private) * 1024
