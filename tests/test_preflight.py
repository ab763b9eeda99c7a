"""What is told of a server before it is used: whose fault it is, and what to do."""

import contextlib
import socket

import pytest
from packaging.version import Version

from orderbook import library
from orderbook.engine import Engine, EngineError
from orderbook.library import InstalledLibrary
from servers import HOST, running

VERSIONS = (
    *("0.1.0.dev1", "0.1.0a1", "0.1.0b2.dev1", "0.1.0b2", "0.1.0rc1", "0.1.0rc2", "0.1.0rc10"),
    *("0.1.0", "0.1.0.post1", "0.1.1", "0.2.0rc1", "0.2.0", "0.10.0", "1.0", "1.0.1"),
)

# ---- versions


def test_versions_are_ordered_as_the_package_index_orders_them() -> None:
    ordered = sorted(VERSIONS, key=Version)
    assert list(VERSIONS) == ordered
    shuffled = [*VERSIONS[1::2], *VERSIONS[::2]]
    assert sorted(shuffled, key=library.version_key) == ordered
    assert library.version_key("1.0") == library.version_key("1.0.0")


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("0.1.0", None),
        ("0.1.1", None),
        ("0.1.0rc1", "run `orderbook functions load` of release 0.1.0"),
        ("0.0.9", "run `orderbook functions load` of release 0.1.0"),
        ("0.2.0", "bring this host to release 0.2.0"),
    ],
)
def test_the_side_that_must_change_is_named(version: str, advice: str | None) -> None:
    reason = library.misfit(InstalledLibrary("orderbook", version, "x"))
    assert (reason is None) == (advice is None)
    assert reason is None or reason.endswith(advice or "")


# ---- the server's own words


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: it only says which address would be used.
        probe.connect(("192.0.2.1", 9))
        address = str(probe.getsockname()[0])
        if not address.startswith("127."):
            return address
    pytest.skip("this machine has only loopback")


async def test_a_server_in_protected_mode_says_so() -> None:
    address = own_address()
    with running("valkey", {"bind": "0.0.0.0", "protected-mode": "yes"}) as server:  # noqa: S104
        for url in (f"redis://{address}:{server.port}", f"redis+cluster://{address}:{server.port}"):
            with pytest.raises(EngineError, match="protected mode"):
                await Engine.connect(url)


async def test_a_server_that_takes_no_more_clients_says_so() -> None:
    with running("valkey", {"maxclients": "1"}) as server:
        server.client.ping()
        with pytest.raises(EngineError, match="max number of clients"):
            await Engine.connect(f"redis://{HOST}:{server.port}")
