"""Websocket hosts of our own, one process each: for drivers that need several, and may kill one.

Each is a plain `orderbook serve` on a free port; it tells its address when it is ready.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import click

from orderbook.workers import HostProcess, WorkerError


class Host:
    """One running host process."""

    def __init__(self, redis_url: str) -> None:
        environment = {**os.environ, "ORDERBOOK_REDIS_URL": redis_url}
        self._process = HostProcess(["--port", "0"], environment)
        self.url = ""

    def wait_until_ready(self) -> None:
        """Raises click.ClickException when the host does not come up."""
        try:
            self.url = self._process.wait_until_ready()["websocket"]
        except WorkerError as error:
            raise click.ClickException(str(error)) from error

    def kill(self) -> None:
        """SIGKILL: no draining, no closing of sockets by the host."""
        os.kill(self._process.pid, signal.SIGKILL)

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
