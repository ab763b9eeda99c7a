"""The rig every driver stands on: a real server with the library loaded, and one raw connection.

The idea: a driver measures the engine, so the client must cost next to nothing. A general Redis
client spends more time on a call than the engine does; here commands are packed by hiredis, written
as one buffer, and replies are read in order, as many in flight as the driver likes.
"""

import asyncio
import contextlib
import lzma
import os
import socket
import ssl
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import hiredis
import msgspec
from redis.asyncio import Redis

from orderbook.engine import library
from orderbook.processes.embedded_server import EmbeddedServer

ANSWER_TIMEOUT_S = 60.0
RECEIVE_BYTES = 1 << 18
SEGMENT = "main"
DISCOVERY_KEY = "orderbook:instruments"

# A command as the engine's `execute` takes it: field → text, with the function's name as `method`.
Command = dict[str, str]

_ROOT = Path(__file__).resolve().parent.parent


class Fill(msgspec.Struct):
    """One trade of a reply, as the taker sees it."""

    trade_id: str
    price: str
    quantity: str
    maker_order_id: str


class Reply(msgspec.Struct):
    """What drivers read of a reply to place_order, amend_order or cancel_order."""

    status: str
    code: str = ""
    message: str = ""
    order_id: str = ""
    side: str = ""
    price: str = ""
    quantity: str = ""
    remaining_quantity: str = ""
    fills: list[Fill] = []


class Connection:
    """One socket to a Redis server: packed commands out, replies in, in order.

    `url` is redis://[[user]:password@]host[:port][/database], rediss://… or unix:///path.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._socket = _open_socket(parts)
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        if parts.password is not None:
            user = [parts.username] if parts.username else []
            self.call("AUTH", *user, urllib.parse.unquote(parts.password))
        database = parts.path.strip("/")
        if parts.scheme != "unix" and database:
            self.call("SELECT", database)

    def send(self, packed: bytes) -> None:
        """Writes commands packed by pack(); their replies are to be received, one each."""
        self._socket.sendall(packed)

    def receive(self) -> Any:
        """The next reply. An error reply is raised as hiredis.ReplyError."""
        while (reply := self._reader.gets()) is Ellipsis:
            received = self._socket.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(received)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def call(self, *words: str | bytes | int) -> Any:
        """One command and its reply."""
        self.send(pack(*words))
        return self.receive()

    def close(self) -> None:
        self._socket.close()


class Book:
    """A book driven through one connection: commands sent, replies received in the same order.

    One command goes out as the FCALL of its own function, several as one `execute`.
    """

    def __init__(self, connection: Connection, symbol: str) -> None:
        self.connection = connection
        self.symbol = symbol
        self.key = f"orderbook:{{{SEGMENT}}}:{symbol}"

    def define(self, **fields: str) -> None:
        """Defines the instrument of a book that must not exist yet: drivers count from zero."""
        if self.read("get_instrument").get("code") != "UNKNOWN_SYMBOL":
            raise click.ClickException(f"{self.key} exists already; give an empty server")
        words = [word for field in fields.items() for word in field]
        reply = msgspec.json.decode(
            self.connection.call("FCALL", "define_instrument", 1, self.key, *words)
        )
        if reply["status"] == "rejected":
            raise click.ClickException(f"define_instrument: {reply['message']}")
        self.connection.call("HSET", DISCOVERY_KEY, self.symbol, SEGMENT)

    def read(self, function: str, *words: str) -> dict[str, Any]:
        """The decoded reply of a reading function."""
        reply = self.connection.call("FCALL_RO", function, 1, self.key, *words)
        return msgspec.json.decode(reply, type=dict[str, Any])

    def send(self, commands: Sequence[Command]) -> None:
        self.connection.send(pack_commands(self.key, commands))

    def receive(self) -> list[bytes]:
        """The replies to one send(), as JSON."""
        reply = self.connection.receive()
        return reply if isinstance(reply, list) else [reply]


def pack(*words: str | bytes | int) -> bytes:
    """A command in Redis' own wire format."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    return packed


def pack_commands(key: str, commands: Sequence[Command]) -> bytes:
    """The call that runs `commands`: one by its own function, several by `execute`."""
    if len(commands) > 1:
        return pack("FCALL", "execute", 1, key, *map(msgspec.json.encode, commands))
    words = [word for field in commands[0].items() for word in field]
    # The first field is the method: the function's name.
    return pack("FCALL", words[1], 1, key, *words[2:])


@contextlib.contextmanager
def open_server(redis_url: str | None) -> Iterator[str]:
    """The URL of a server with the library loaded: the one given, else an embedded one."""
    with contextlib.ExitStack() as cleanup:
        url = redis_url or cleanup.enter_context(EmbeddedServer()).url
        asyncio.run(_load_library(url))
        yield url


@contextlib.contextmanager
def open_book(url: str, symbol: str) -> Iterator[Book]:
    """The book of `symbol` through a connection of its own."""
    with contextlib.closing(Connection(url)) as connection:
        yield Book(connection, symbol)


def find_data(name: str, kind: str) -> Path:
    """The file `name`: as given, else under $ORDERBOOK_DATA/KIND or ../shared/data/KIND."""
    given = Path(name)
    data = os.environ.get("ORDERBOOK_DATA") or _ROOT.parent / "shared" / "data"
    stored = Path(data) / kind / name
    for path in (given, stored):
        if path.is_file():
            return path
    raise click.ClickException(f"there is no {given} and no {stored}")


def open_data(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed on the way when its name ends with .xz."""
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


def _open_socket(parts: urllib.parse.SplitResult) -> socket.socket:
    if parts.scheme == "unix":
        local = socket.socket(socket.AF_UNIX)
        local.settimeout(ANSWER_TIMEOUT_S)
        local.connect(parts.path)
        return local
    if parts.scheme not in {"redis", "rediss"}:
        raise click.ClickException(
            f"drivers need one server: redis://, rediss:// or unix://, not {parts.scheme}"
        )
    host = parts.hostname or "127.0.0.1"
    remote = socket.create_connection((host, parts.port or 6379), ANSWER_TIMEOUT_S)
    remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.scheme == "rediss":
        return ssl.create_default_context().wrap_socket(remote, server_hostname=host)
    return remote


class _OneServer(NamedTuple):
    """The library's idea of where to load, for the single server a driver uses."""

    client: Redis

    def primaries(self) -> list[Redis]:
        return [self.client]

    async def every_primary(self) -> list[Redis]:
        return [self.client]


async def _load_library(url: str) -> None:
    async with Redis.from_url(url) as client:
        await library.load(_OneServer(client))
