"""How long one waits for the first thing: for the help, and for the demo's first book.

The idea: both are run as a user runs them, the demo on a terminal (a pseudo one), and the clock
stops when the screen shows what was waited for: the end of the help, the first price.
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import click

from figures import Figure, at_most

HELP_TARGET_S = 0.3
DEMO_TARGET_S = 3.0
DEMO_TIMEOUT_S = 60.0
TERMINAL_ROWS, TERMINAL_COLUMNS = 50, 160
# A price of the ladder, which stands after spaces; before there is a book the screen has none.
PRICE = re.compile(rb" \d\d+\.\d\d")
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
COMMAND = (sys.executable, "-m", "orderbook")


@dataclass(frozen=True)
class Scale:
    """How often each is started."""

    helps: int
    demos: int


FULL = Scale(15, 5)
QUICK = Scale(3, 1)


def measure(scale: Scale, _: Path | None) -> list[Figure]:
    """Every line of the part."""
    helps_s = [_help_s() for _ in range(scale.helps)]
    demos_s = [_demo_s() for _ in range(scale.demos)]
    return [
        at_most(Figure("orderbook --help", statistics.median(helps_s), "s"), HELP_TARGET_S),
        at_most(
            Figure("orderbook demo, until it shows a book", statistics.median(demos_s), "s"),
            DEMO_TARGET_S,
        ),
    ]


def _help_s() -> float:
    started = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def _demo_s() -> float:
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", TERMINAL_ROWS, TERMINAL_COLUMNS, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    started = time.perf_counter()
    environment = {**os.environ, "TERM": "xterm-256color"}
    demo = subprocess.Popen(
        [*COMMAND, "demo"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    try:
        return _shown_at(ours, started + DEMO_TIMEOUT_S) - started
    finally:
        demo.send_signal(signal.SIGINT)
        _read_to_the_end(ours, demo)
        os.close(ours)
        os.close(theirs)


def _shown_at(screen: int, deadline: float) -> float:
    shown = b""
    while time.perf_counter() < deadline:
        if select.select([screen], [], [], 1.0)[0]:
            shown += os.read(screen, 1 << 16)
            if PRICE.search(ESCAPES.sub(b"", shown)):
                return time.perf_counter()
    raise click.ClickException("the demo never showed a book")


def _read_to_the_end(screen: int, demo: subprocess.Popen[bytes]) -> None:
    """It must be able to write its last words."""
    while demo.poll() is None:
        if select.select([screen], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                os.read(screen, 1 << 16)
