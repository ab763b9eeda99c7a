"""Looking at processes and terminals from outside, for tests that run the real commands."""

import os
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 30.0
POLL_INTERVAL_S = 0.02


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Polls the condition; fails the test when it does not come true in time."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(POLL_INTERVAL_S)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children(parent: int, word: str = "") -> list[int]:
    """The running children of a process with a word in their command line."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in pids if is_alive(int(pid)) and word in _command_line(int(pid))]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def read_terminal(terminal: int, until: str | None = None) -> str:
    """What a program writes to a terminal, up to a text in it or else to its end."""
    output = b""
    try:
        while part := os.read(terminal, 65536):
            output += part
            if until is not None and until in output.decode(errors="replace"):
                break
    except OSError:
        # Linux' way to say that the other side has closed the terminal.
        pass
    return output.decode(errors="replace")
