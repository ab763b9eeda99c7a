"""Websocket hosts of our own, one process each: for drivers that need several, and may kill one.

Each is a plain `orderbook serve` on a free port; it tells its address when it is ready.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

import click
import msgspec

from orderbook.child import ChildProcess, Surroundings

START_TIMEOUT_S = 20.0
LINE_BYTES_MAX = 4096


class Host:
    """One running host process."""

    def __init__(self, redis_url: str) -> None:
        self._output, there = os.pipe()
        environment = {**os.environ, "ORDERBOOK_REDIS_URL": redis_url}
        command = [sys.executable, "-m", "orderbook", "serve", "--port", "0", "--json"]
        try:
            surroundings = Surroundings(stdout=there, environment=environment)
            self._process = ChildProcess(command, surroundings)
        finally:
            os.close(there)
        self.url = ""

    def wait_until_ready(self) -> None:
        """Raises click.ClickException when the host does not come up in START_TIMEOUT_S."""
        deadline = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            remaining_s = max(0.0, deadline - time.monotonic())
            readable = select.select([self._output], [], [], remaining_s)[0]
            part = os.read(self._output, LINE_BYTES_MAX) if readable else b""
            if not part:
                raise click.ClickException("a host process did not start")
            line += part
        self.url = msgspec.json.decode(line, type=dict[str, str])["websocket"]

    def kill(self) -> None:
        """SIGKILL: no draining, no closing of sockets by the host."""
        os.kill(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        self._process.stop()
        os.close(self._output)


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
