"""Host processes on one port: started together, replaced when one dies, drained together.

The idea: a host is stateless, so more of them is only more processes. The kernel spreads new
connections over all that listen on the port (SO_REUSEPORT). The parent holds the port, bound but
not listening, for as long as it runs: so it can be chosen freely, and is still ours when a worker
has to be replaced. A worker gets its settings as environment variables, which keep a password out
of the process list, and tells that it is ready by printing its addresses in one line.
"""

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from orderbook.processes.child_process import ChildProcess, Surroundings

START_TIMEOUT_S = 20.0
# A worker that cannot live is tried again, but does not keep a core busy with dying.
RESTART_DELAY_S = 1.0


class WorkerError(Exception):
    """A host process did not come up; it has said why on stderr."""


class HostProcess:
    """One `orderbook serve` as a child: `arguments` are its own, after --json; `stderr` is the file
    descriptor that its log goes to, ours if none is given."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stderr: int | None = None,
    ) -> None:
        self._ready, ready_there = os.pipe()
        command = [sys.executable, "-m", "orderbook", "serve", "--json", *arguments]
        try:
            surroundings = Surroundings(ready_there, stderr, None, environment)
            self._process = ChildProcess(command, surroundings)
        finally:
            os.close(ready_there)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> dict[str, str]:
        """Returns the addresses that the host announces. Raises WorkerError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            remaining_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._ready], [], [], remaining_s)[0]:
                raise WorkerError(f"a host process was not ready in {START_TIMEOUT_S:.0f} s")
            part = os.read(self._ready, 4096)
            if not part:
                raise WorkerError("a host process did not start")
            line += part
        addresses: dict[str, str] = json.loads(line)
        return addresses

    def status(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def stop(self) -> None:
        self._process.stop()
        os.close(self._ready)


class Workers:
    """`count` host processes at `host`:`port` (0: any free port), as a context manager.

    `settings` are the environment variables of `orderbook serve` beyond host and port. Health
    checks of the first are at `admin_port`, where one is given, of the next at the port after it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        count: int,
        settings: Mapping[str, str],
        admin_port: int | None = None,
    ) -> None:
        self._host = host
        self._admin_port = admin_port
        self._port_wanted = port
        self._count = count
        self._settings = settings
        self._workers: list[HostProcess] = []
        self._cleanup = contextlib.ExitStack()
        self.port = 0

    def __enter__(self) -> Self:
        """Returns when every worker takes connections. Raises WorkerError; OSError for the port."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._stop)
            reservation = _reserve(self._host, self._port_wanted)
            self._cleanup.enter_context(reservation)
            self.port = int(reservation.getsockname()[1])
            self._workers = [self._start_worker(index) for index in range(self._count)]
            for worker in self._workers:
                worker.wait_until_ready()
            undo.pop_all()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def watch(self, stopped: Callable[[float], bool]) -> None:
        """Replaces workers that die until `stopped(wait at most these seconds)` is true."""
        while not stopped(RESTART_DELAY_S):
            for index, worker in enumerate(self._workers):
                status = worker.status()
                if status is not None:
                    print(f"a host process ended with status {status}: restarted", file=sys.stderr)
                    worker.stop()
                    self._workers[index] = self._start_worker(index)

    def _stop(self) -> None:
        # All are told before the first is waited for: they drain at the same time.
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.stop()
        self._workers = []
        self._cleanup.close()

    def _start_worker(self, index: int) -> HostProcess:
        admin_port = "" if self._admin_port is None else str(self._admin_port + index)
        environment = {
            **os.environ,
            **self._settings,
            "ORDERBOOK_SERVE_HOST": self._host,
            "ORDERBOOK_SERVE_PORT": str(self.port),
            "ORDERBOOK_SERVE_ADMIN_PORT": admin_port,
        }
        return HostProcess(["--as-worker"], environment)


def _reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for our workers, and fails where somebody else has it."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family) as probe:
        # Without the option: with it, the kernel would let us share another program's port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        port = probe.getsockname()[1]
    reservation = socket.socket(family)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((host, port))
    return reservation
