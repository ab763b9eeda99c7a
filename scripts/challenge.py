"""Replays a workload of the public matching-engine challenge and hashes the engine's reports.

    python scripts/challenge.py normal.bin.xz

The idea: nothing is matched here. Each 40-byte message becomes a command, and the report lines are
written from the engine's replies alone, so the SHA-256 of the report stream is the engine's own.
A challenge id may be used again once its order is gone, an engine's order_id never is. Since a
fresh book numbers its orders from 1, the order_id of a new order is known before its reply, and a
cancel may follow it in the same call; each reply is checked against that prediction.
"""

import hashlib
import itertools
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import click
import msgspec
from rich.console import Console
from rich.progress import track

from rig import Command, Reply, find_data, open_book, open_data, open_server

SYMBOL = "CHALLENGE"
ACCOUNT = "challenge"
BATCH_MAX = 256
# Enough calls on their way to keep the server busy while replies are turned into reports.
MESSAGES_IN_FLIGHT_MAX = 256
# A valid order_id that no order will ever have.
ORDER_ID_NEVER_ISSUED = str(2**53 - 1)

# The hash that the challenge publishes for its own workload, seed 23.
PUBLISHED_SHA256 = {
    "normal.bin": "e9b2e3926854410b01a035aeb25dd05f1e597c233be8263de9eb49b6713d367e",
}

NEW, CANCEL, MODIFY = 0, 1, 2
SIDES = ("buy", "sell")
SIDE_NUMBERS = {"buy": 0, "sell": 1}

_HEADER = struct.Struct("<8sII")
_RECORD = struct.Struct("<BBBBIQQqq")
_MAGIC = b"100_WBEM"
_CHUNK_RECORDS = 4096

_decode_reply = msgspec.json.Decoder(Reply).decode


class Message(NamedTuple):
    """One message of a workload; price in ticks, for a modify the new one."""

    kind: int
    side: int
    ioc: int
    padding: int
    quantity: int
    sequence: int
    order_id: int
    price: int
    unused: int


class Door(Protocol):
    """A way to the engine: what is sent is answered in order, one reply per command."""

    def send(self, commands: Sequence[Command]) -> None: ...

    def receive(self) -> list[bytes]: ...


class ChallengeError(click.ClickException):
    """The engine's reply cannot belong to the message: a wrong id, or an unexpected reject."""


class Translator:
    """Challenge messages to commands, and the engine's replies to report lines.

    commands() must see every message, in order, before report() sees its reply.
    """

    def __init__(self) -> None:
        # Orders that may still be open: challenge id → order_id.
        self._order_ids: dict[int, int] = {}
        # The other way round, for every order ever placed; order_id 0 does not exist.
        self._challenge_ids = array("Q", [0])

    def command(self, message: Message) -> Command:
        if message.kind == NEW:
            return self._place_order(message)
        if message.kind == CANCEL:
            order_id = self._order_ids.pop(message.order_id, ORDER_ID_NEVER_ISSUED)
            return {"method": "cancel_order", "order_id": str(order_id)}
        order_id = self._order_ids.get(message.order_id, ORDER_ID_NEVER_ISSUED)
        return {
            "method": "amend_order",
            "order_id": str(order_id),
            "price": str(message.price),
            "remaining_quantity": str(message.quantity),
        }

    def report(self, message: Message, reply_json: bytes) -> list[str]:
        """The report lines of one message, from the engine's reply to it."""
        reply = _decode_reply(reply_json)
        if reply.status == "rejected":
            return [self._unknown_order(message, reply)]
        self._check_order_id(message, reply)
        if message.kind == NEW:
            return self._report_new(message, reply)
        if message.kind == CANCEL:
            return [_canceled(message, reply)]
        return [*self._trades(message, reply), _described(3, message, reply)]

    def _place_order(self, message: Message) -> Command:
        # An ioc order is never open afterwards, so nothing can refer to it.
        if not message.ioc:
            self._order_ids[message.order_id] = len(self._challenge_ids)
        self._challenge_ids.append(message.order_id)
        return {
            "method": "place_order",
            "account": ACCOUNT,
            "side": SIDES[message.side],
            "order_type": "limit",
            "time_in_force": "ioc" if message.ioc else "gtc",
            "price": str(message.price),
            "quantity": str(message.quantity),
        }

    def _check_order_id(self, message: Message, reply: Reply) -> None:
        order_id = int(reply.order_id)
        known = order_id < len(self._challenge_ids)
        if not known or self._challenge_ids[order_id] != message.order_id:
            raise ChallengeError(f"{message} was answered for order_id {reply.order_id}")

    def _report_new(self, message: Message, reply: Reply) -> list[str]:
        lines = [_described(0, message, reply), *self._trades(message, reply)]
        if reply.status == "canceled":
            lines.append(_canceled(message, reply))
        return lines

    def _trades(self, message: Message, reply: Reply) -> list[str]:
        return [
            f"1,{message.sequence},{fill.price},{fill.quantity},"
            f"{self._challenge_ids[int(fill.maker_order_id)]},{message.order_id}"
            for fill in reply.fills
        ]

    @staticmethod
    def _unknown_order(message: Message, reply: Reply) -> str:
        if reply.code != "UNKNOWN_ORDER":
            raise ChallengeError(f"{message} was rejected: {reply.code} {reply.message}")
        return f"{4 if message.kind == CANCEL else 5},{message.sequence},{message.order_id}"


def _described(report: int, message: Message, reply: Reply) -> str:
    """An order as asked for: what it traded at once is part of it."""
    asked = int(reply.remaining_quantity) + sum(int(fill.quantity) for fill in reply.fills)
    side = SIDE_NUMBERS[reply.side]
    return f"{report},{message.sequence},{side},{message.order_id},{reply.price},{asked}"


def _canceled(message: Message, reply: Reply) -> str:
    side = SIDE_NUMBERS[reply.side]
    return f"2,{message.sequence},{side},{message.order_id},{reply.price}"


def read_messages(path: Path, messages_max: int | None = None) -> Iterator[Message]:
    """The messages of a workload file, a chunk at a time."""
    with open_data(path) as stream:
        read_header(stream.read(_HEADER.size), path)
        records = itertools.chain.from_iterable(
            _RECORD.iter_unpack(chunk)
            for chunk in iter(lambda: stream.read(_RECORD.size * _CHUNK_RECORDS), b"")
        )
        yield from map(Message._make, itertools.islice(records, messages_max))


def read_header(header: bytes, path: Path) -> int:
    """The number of messages that the header of `path` announces."""
    if len(header) == _HEADER.size:
        magic, _, count = _HEADER.unpack(header)
        if magic == _MAGIC:
            return int(count)
    raise click.ClickException(f"{path} is not a workload of the challenge")


def replay(door: Door, messages: Iterable[Message], batch: int) -> Iterator[list[str]]:
    """Sends `messages` in batches, several in flight; yields the report lines of each batch."""
    translator = Translator()
    in_flight: deque[list[Message]] = deque()
    in_flight_max = max(1, MESSAGES_IN_FLIGHT_MAX // batch)
    source = iter(messages)
    while sent := list(itertools.islice(source, batch)):
        door.send([translator.command(message) for message in sent])
        in_flight.append(sent)
        if len(in_flight) >= in_flight_max:
            yield _collect(door, translator, in_flight.popleft())
    while in_flight:
        yield _collect(door, translator, in_flight.popleft())


def _collect(door: Door, translator: Translator, sent: list[Message]) -> list[str]:
    replies = door.receive()
    return [
        line
        for message, reply in zip(sent, replies, strict=True)
        for line in translator.report(message, reply)
    ]


def hash_reports(batches: Iterable[list[str]]) -> str:
    """SHA-256 of all lines joined by a newline, without a last one."""
    digest = hashlib.sha256()
    separator = b""
    for lines in batches:
        if lines:
            digest.update(separator + "\n".join(lines).encode())
            separator = b"\n"
    return digest.hexdigest()


def expected_hash(path: Path) -> str | None:
    """The hash that the reports of the workload must have, where it is known."""
    name = path.name.removesuffix(".xz")
    known = path.parent / "small.json"
    listed = msgspec.json.decode(known.read_bytes()) if known.is_file() else {}
    found: str | None = listed.get(name) or PUBLISHED_SHA256.get(name)
    return found


class Result(msgspec.Struct, omit_defaults=True):
    """What --json prints; `equal` says whether `hash` is the one known for the file."""

    file: str
    hash: str
    messages: int
    seconds: float
    messages_per_second: float
    batch: int
    expected_hash: str | None = None
    equal: bool | None = None


def run(path: Path, redis_url: str | None, batch: int, messages_max: int | None) -> Result:
    """Replays the file on a fresh book."""
    with open_data(path) as stream:
        count = read_header(stream.read(_HEADER.size), path)
    count = min(count, messages_max or count)
    with open_server(redis_url) as url, open_book(url, SYMBOL) as book:
        book.define(tick_size="1", lot_size="1")
        started = time.perf_counter()
        reports = replay(book, read_messages(path, messages_max), batch)
        shown = track(
            reports,
            description=path.name,
            total=-(-count // batch),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        found = hash_reports(shown)
        seconds = time.perf_counter() - started
    expected = expected_hash(path) if messages_max is None else None
    return Result(
        file=path.name,
        hash=found,
        messages=count,
        seconds=round(seconds, 3),
        messages_per_second=round(count / seconds, 1),
        batch=batch,
        expected_hash=expected,
        equal=None if expected is None else expected == found,
    )


@click.command()
@click.argument("file")
@click.option(
    "--redis-url", envvar="ORDERBOOK_REDIS_URL", help="An empty server; default: an embedded one."
)
@click.option(
    "--batch",
    type=click.IntRange(1, BATCH_MAX),
    default=64,
    show_default=True,
    help="Commands per call; 1 calls each command's own function.",
)
@click.option("--messages", "messages_max", type=click.IntRange(1), help="Stop after so many.")
@click.option("--json", "as_json", is_flag=True, help="Print an object instead of the hash.")
def main(
    file: str, redis_url: str | None, batch: int, messages_max: int | None, as_json: bool
) -> None:
    """Print the SHA-256 of the report stream of FILE; exit 1 when it is known to be another."""
    result = run(find_data(file, "challenge"), redis_url, batch, messages_max)
    click.echo(msgspec.json.encode(result).decode() if as_json else result.hash)
    if result.equal is False:
        sys.exit(1)


if __name__ == "__main__":
    main()
