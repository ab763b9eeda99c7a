"""A child process that cannot outlive us.

The idea: beside each child runs a tiny shell that blocks on a pipe whose other end only this
process holds. However this process ends, SIGKILL included, the kernel closes the pipe, the shell
wakes up and ends the child: SIGTERM first, so that a server can flush and a host can drain, SIGKILL
when that takes too long. It works on every POSIX system and needs no thread, no preexec_fn and no
signal handler.

Children get a session of their own: Ctrl-C in a terminal reaches only us, and we end them in order.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

STOP_TIMEOUT_S = 10.0

# $1 is the child, $2 a directory that is removed when it is empty. The tenths of a second add up to
# STOP_TIMEOUT_S.
_WATCHER = """
read -r _
kill -TERM "$1" || exit 0
tenths=0
while kill -0 "$1" && [ "$tenths" -lt 100 ]; do sleep 0.1; tenths=$((tenths + 1)); done
kill -KILL "$1"
rmdir "$2"
"""


@dataclass(frozen=True)
class Surroundings:
    """What a child starts with.

    `directory` is its working directory: where it is left empty and we die without stop(), it is
    removed. `inherited` are file descriptors that stay open in the child.
    """

    stdout: IO[bytes] | int
    stderr: int | None = None
    directory: Path | None = None
    environment: Mapping[str, str] | None = None
    inherited: Sequence[int] = ()


class ChildProcess:
    """One running child."""

    def __init__(self, command: Sequence[str], surroundings: Surroundings) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=surroundings.stdout,
            stderr=surroundings.stderr,
            cwd=surroundings.directory,
            env=surroundings.environment,
            pass_fds=surroundings.inherited,
            start_new_session=True,
        )
        self._watcher = _start_watcher(self._process.pid, surroundings.directory)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Asks the child to end and does not wait."""
        if self.poll() is None:
            self._process.terminate()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ends the child, by SIGKILL when SIGTERM takes too long; returns its exit status."""
        self.terminate()
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._end_watcher()
        return status

    def _end_watcher(self) -> None:
        # Killed, not closed: woken up, it would signal a process id that may be another's by now.
        self._watcher.send_signal(signal.SIGKILL)
        self._watcher.wait()
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()


def _start_watcher(pid: int, directory: Path | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHER, "orderbook-watcher", str(pid), os.fspath(directory or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
