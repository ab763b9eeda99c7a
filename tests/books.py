"""A book as any Redis client sees it: FCALL, its streams, its keys. What every engine test speaks.

Replies are checked on the way: valid UTF-8, one JSON value. The engine is reached over the plain
client, without the Python Engine in between, so that what fails here fails in the Lua library or
in the server.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orderbook.feed.mirror import Mirror, decimal_text, displayed_id
from orderbook.feed.repair import packed, unpacked

Json = dict[str, Any]
Words = str | bytes

TIMESTAMP_MS_MIN = 1_500_000_000_000
TIMESTAMP_MS_MAX = 10_000_000_000_000
# An epoch is a time in seconds times 2^20, and less than 2^20 more.
EPOCH_MIN, EPOCH_MAX = TIMESTAMP_MS_MIN // 1000 << 20, 1 << 53

TICK_SIZE = "0.01"
LOT_SIZE = "1"


def stored_fields(client: Any, key: str) -> dict[str, str]:
    """A book's own hash, with each rule and each counter by its name."""
    pairs = client.hgetall(key)
    return unpacked({name.decode(): value.decode() for name, value in pairs.items()})


def overwrite(client: Any, key: str, **fields: str) -> None:
    """Puts other values into a book's own hash."""
    client.hset(key, mapping=packed(stored_fields(client, key) | fields))


class Book:
    """One book on one server."""

    def __init__(self, client: Any, symbol: str, segment: str = "main") -> None:
        self.client = client
        self.symbol = symbol
        self.segment = segment
        self.key = f"orderbook:{{{segment}}}:{symbol}"

    # ---- calling

    def raw(self, function: str, *arguments: Words) -> Any:
        """FCALL; the reply as it came: JSON bytes, or a list of them for execute."""
        return self.client.execute_command("FCALL", function, 1, self.key, *arguments)

    def call(self, function: str, *arguments: Words) -> Json:
        """FCALL with a JSON object as reply."""
        return decode(self.raw(function, *arguments))

    def ask(self, function: str, **fields: str) -> Json:
        """FCALL with fields by name."""
        return self.call(function, *words(fields))

    def read(self, function: str, **fields: str) -> Json:
        """FCALL_RO with fields by name."""
        return decode(
            self.client.execute_command("FCALL_RO", function, 1, self.key, *words(fields))
        )

    def execute(self, *commands: Mapping[str, Any] | Words) -> list[Json]:
        """FCALL execute; commands are objects, or JSON text as it is to be sent."""
        texts = [c if isinstance(c, (str, bytes)) else json.dumps(c) for c in commands]
        return [decode(reply) for reply in self.raw("execute", *texts)]

    # ---- common commands

    def define(self, **fields: str) -> Json:
        return self.ask("define_instrument", **{**_DEFINITION, **fields})

    def limit(self, account: str, side: str, quantity: str, price: str, **fields: str) -> Json:
        """Places a limit order."""
        terms = {"account": account, "side": side, "order_type": "limit", "quantity": quantity}
        return self.ask("place_order", **terms, price=price, **fields)

    # ---- what the book looks like

    def state_hash(self) -> str:
        """Of a book that must be in order."""
        reply = self.read("verify_book")
        assert reply["verified"] is True, reply
        return str(reply["state_hash"])

    def mirrored(self) -> Mirror:
        """The book rebuilt from its event stream alone."""
        mirror = Mirror()
        for entry_id, fields in self.client.xrange(self.stream_key("events")):
            mirror.apply(int(entry_id.partition(b"-")[0]), fields.items())
        return mirror

    def assert_is_what_its_stream_tells(self) -> None:
        """Rebuilt from its stream it is the same book, down to the state hash."""
        mirror, level3 = self.mirrored(), self.read("get_level3", depth="full")
        for side, name in (("buy", "bids"), ("sell", "asks")):
            found = [
                [
                    *(order.terms.price, decimal_text(order.shown)),
                    *(displayed_id(order.terms), order.priority),
                ]
                for order in mirror.queue(side)
            ]
            assert found == level3[name], name
            assert mirror.levels(side) == self.read("get_book", depth="full")[name], name
        assert mirror.state_hash() == self.state_hash()

    def violations(self) -> list[str]:
        """The names of what verify_book finds wrong."""
        reply = self.read("verify_book")
        assert reply["verified"] is False, reply
        assert all(set(found) == {"name", "detail"} for found in reply["violations"])
        return [found["name"] for found in reply["violations"]]

    def sequence(self) -> int:
        return int(self.read("get_instrument")["sequence"])

    def stream_key(self, stream: str) -> str:
        return f"{self.key}:{stream}"

    def entries(self, stream: str, after: int = 0) -> list[tuple[int, Json]]:
        """(sequence, topic → message) of every entry; checks that ids are `<sequence>-0`."""
        found = []
        for entry_id, fields in self.client.xrange(self.stream_key(stream), f"({after}-0"):
            sequence, _, rest = entry_id.decode().partition("-")
            assert rest == "0", f"{entry_id!r} is not <sequence>-0"
            found.append((int(sequence), {k.decode(): decode(v) for k, v in fields.items()}))
        return found

    def stored_keys(self) -> list[bytes]:
        """Every key of this book."""
        exactly = re.escape(self.key.encode()) + rb"(:.*)?"
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", self.key) + "*"
        return sorted(k for k in self.client.scan_iter(pattern) if re.fullmatch(exactly, k))

    def contents(self) -> dict[bytes, Any]:
        """Everything that is stored for this book, byte for byte."""
        return contents_of(self.client, self.stored_keys())


_DEFINITION = {"tick_size": TICK_SIZE, "lot_size": LOT_SIZE}


def words(fields: Mapping[str, str]) -> list[str]:
    """field, value, field, value …"""
    return [word for pair in fields.items() for word in pair]


def decode(reply: Any) -> Json:
    """A reply or message: UTF-8 and JSON, or the test fails."""
    assert isinstance(reply, bytes), f"not a single text: {reply!r}"
    value = json.loads(reply.decode("utf-8"), object_pairs_hook=_object)
    assert isinstance(value, dict), f"not a JSON object: {reply!r}"
    return value


def _object(members: list[tuple[str, Any]]) -> Json:
    found = dict(members)
    assert len(found) == len(members), f"a name appears twice in {members}"
    return found


def timeless(value: Any) -> Any:
    """The same with every timestamp_ms and epoch checked for sense and set to 0, as the reference
    has them."""
    if isinstance(value, dict):
        return {name: _timeless_member(name, member) for name, member in value.items()}
    if isinstance(value, list):
        return [timeless(element) for element in value]
    return value


def _timeless_member(name: str, member: Any) -> Any:
    if name == "epoch" and not isinstance(member, dict):
        assert isinstance(member, int), member
        assert EPOCH_MIN < member < EPOCH_MAX, member
        return 0
    if name != "timestamp_ms":
        return timeless(member)
    assert isinstance(member, int), member
    assert TIMESTAMP_MS_MIN < member < TIMESTAMP_MS_MAX, member
    return 0


def without_message(reply: Json) -> Json:
    """A rejection without its message, which is for people, but has to be there; also where it is
    one part of a reply."""
    reply = {name: _member_without_message(member) for name, member in reply.items()}
    if reply.get("status") != "rejected":
        return reply
    assert isinstance(reply["message"], str), reply
    assert reply["message"], reply
    return {name: value for name, value in reply.items() if name != "message"}


def _member_without_message(member: Any) -> Any:
    if isinstance(member, dict):
        return without_message(member)
    if isinstance(member, list):
        return [_member_without_message(element) for element in member]
    return member


def comparable(reply: Json) -> Json:
    """A reply of the engine as the reference would give it."""
    return timeless(without_message(reply))  # type: ignore[no-any-return]


_READS: Mapping[str, tuple[str, ...]] = {
    "hash": ("HGETALL",),
    "set": ("SMEMBERS",),
    "zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "stream": ("XRANGE", "-", "+"),
    "string": ("GET",),
}


def contents_of(client: Any, keys: Sequence[bytes]) -> dict[bytes, Any]:
    """What is stored at these keys. Not their DUMP, which tells of a hash in what order it lies."""
    types = client.pipeline(transaction=False)
    for key in keys:
        types.type(key)
    contents = client.pipeline(transaction=False)
    for key, kind in zip(keys, types.execute(), strict=True):
        command, *arguments = _READS[kind.decode()]
        contents.execute_command(command, key, *arguments)
    read = [sorted(v) if isinstance(v, set) else v for v in contents.execute()]
    return dict(zip(keys, read, strict=True))


def assert_rejected(reply: Json, codes: str | Collection[str]) -> None:
    """The reply is a refusal with this code (or one of these) and a message."""
    expected = [codes] if isinstance(codes, str) else codes
    without_message(reply)
    assert reply["status"] == "rejected", reply
    assert reply["code"] in expected, reply
    assert reply.keys() <= {"status", "code", "message", "client_order_id"}, reply
