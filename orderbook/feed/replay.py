"""The proof that a book is what its history says: rebuilt from its event stream and compared.

verify_book gives the stored book's hash at a sequence; the stream is read from its first entry to
that same sequence into a mirror (mirror.py), whose hash must be the same. So a book may be compared
while it trades on.
"""

from dataclasses import dataclass
from typing import Any

from orderbook.engine.engine import Engine
from orderbook.feed.mirror import Mirror

ENTRIES_PER_PAGE = 1000


class ReplayError(Exception):
    """The stream does not tell the whole history; the message says what to do."""


@dataclass(frozen=True)
class Replay:
    """A rebuilt book, and what verify_book said of the stored one."""

    mirror: Mirror
    verdict: dict[str, Any]

    @property
    def is_equal(self) -> bool | None:
        """Whether both are equal; None where they are not of the same sequence."""
        if not self.verdict["verified"]:
            return False
        if self.verdict["sequence"] != self.mirror.sequence:
            return None
        return bool(self.mirror.state_hash() == self.verdict["state_hash"])

    def summary(self, symbol: str) -> dict[str, Any]:
        """What is to be said of it: both books, and whether they are equal."""
        mirror = self.mirror
        return {
            "symbol": symbol,
            "orders": len(mirror.book.orders),
            "levels": sum(len(mirror.levels(side)) for side in ("buy", "sell")),
            "sequence": mirror.sequence,
            "epoch": mirror.epoch,
            "state_hash": mirror.state_hash(),
            "stored_sequence": self.verdict["sequence"],
            "stored_state_hash": self.verdict.get("state_hash"),
            "stored_verified": self.verdict["verified"],
            "equal": self.is_equal,
        }

    def book(self, symbol: str, depth: int) -> dict[str, Any]:
        """The rebuilt book in the form of get_book, without a checksum."""
        return {
            "symbol": symbol,
            "sequence": self.mirror.sequence,
            "epoch": self.mirror.epoch,
            "bids": self.mirror.levels("buy")[:depth],
            "asks": self.mirror.levels("sell")[:depth],
        }


async def replay(engine: Engine, symbol: str, to_sequence: int | None = None) -> Replay:
    """Rebuilds a defined book up to a sequence, or to where it stands now.

    Raises ReplayError, EngineError.
    """
    verdict = await engine.verify_book(symbol)
    last: int = verdict["sequence"]
    if to_sequence is not None and to_sequence > last:
        raise ReplayError(f"{symbol} has not come to sequence {to_sequence}: it stands at {last}")
    end = last if to_sequence is None else to_sequence
    mirror = Mirror()
    while mirror.sequence < end:
        await _apply_page(engine, symbol, mirror, end)
    return Replay(mirror, verdict)


async def _apply_page(engine: Engine, symbol: str, mirror: Mirror, end: int) -> None:
    first = mirror.sequence + 1
    arguments = (f"{engine.book_key(symbol)}:events", f"{first}-0", f"{end}-0")
    entries = await engine.read_stream(symbol, "XRANGE", *arguments, "COUNT", ENTRIES_PER_PAGE)
    if not entries:
        raise ReplayError(_hole(symbol, mirror.sequence + 1, None))
    for entry_id, fields in entries:
        sequence = int(entry_id.partition(b"-")[0])
        if sequence != mirror.sequence + 1:
            raise ReplayError(_hole(symbol, mirror.sequence + 1, sequence))
        mirror.apply(sequence, zip(fields[::2], fields[1::2], strict=True))


def _hole(symbol: str, wanted: int, found: int | None) -> str:
    if wanted == 1 and found is not None:
        return (
            f"the stream of {symbol} begins at sequence {found}: what was before has been trimmed, "
            "and a book can be rebuilt from its first entry only. Keep more of the next one "
            f"(orderbook instrument define {symbol} --events-length-max …, before it has traded "
            "that much); this one can be compared with a replica or a restored backup: "
            "orderbook verify gives the state_hash of each"
        )
    there = "ends before it" if found is None else f"goes on with {found}"
    return (
        f"the stream of {symbol} lacks sequence {wanted} ({there}): it was damaged by hand; "
        "restore a backup, or compare with a replica by orderbook verify"
    )
