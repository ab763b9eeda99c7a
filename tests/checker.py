"""A subscriber as docs/protocol.md has it: its book is made of level2 or level3 messages alone.

It is written from the document, slow and obvious, and shares nothing with the host's own views. At
each message it computes the checksum of what it holds; and it notes every message that has none.
"""

import zlib
from decimal import Decimal
from typing import Any

Json = dict[str, Any]

SIDES = ("bids", "asks")
LEVELS = 10
ORDERS = 1000


def digits(text: str, step: str) -> str:
    """A number with as many decimals as its step, without point and leading zeros."""
    scaled = Decimal(text) * 10 ** len(step.partition(".")[2])
    assert scaled == int(scaled), f"{text} is finer than {step}"
    return str(int(scaled)).lstrip("0")


def checksum(asks: list[list[Any]], bids: list[list[Any]], tick_size: str, lot_size: str) -> int:
    """Of rows that begin with price and quantity; of level3's, with the order_id behind them."""
    text = ""
    for price, quantity, *rest in asks + bids:
        text += digits(price, tick_size) + digits(quantity, lot_size) + "".join(rest[:1])
    return zlib.crc32(text.encode())


class Checker:
    """One book of one channel."""

    def __init__(self) -> None:
        # level2: price → row; level3: order_id → row.
        self.sides: dict[str, dict[str, list[Any]]] = {"bids": {}, "asks": {}}
        self.sequence = -1
        self.tick_size = self.lot_size = ""
        self.checked = 0
        self.without_checksum: list[int] = []

    def take(self, message: Json) -> None:
        if message["type"] == "gap":
            self.sequence = -1
            return
        if message["type"] == "snapshot":
            self.sides = {"bids": {}, "asks": {}}
            self.tick_size, self.lot_size = message["tick_size"], message["lot_size"]
        else:
            assert message["sequence"] > self.sequence, message
            if message["channel"] == "level2" and self.sequence >= 0:
                # No change of levels lies between what is known and this one.
                assert message["previous_sequence"] <= self.sequence, message
        self.sequence = message["sequence"]
        for side in SIDES:
            for row in message[side]:
                self._take_row(side, row, is_order=message["channel"] == "level3")
        if "checksum" not in message:
            self.without_checksum.append(message["sequence"])
            return
        assert message["checksum"] == self.checksum(), (message, self.rows("bids"))
        self.checked += 1

    def _take_row(self, side: str, row: list[Any], *, is_order: bool) -> None:
        name = row[2] if is_order else row[0]
        self.sides[side].pop(name, None)
        if row[1] != "0":
            self.sides[side][name] = row

    def rows(self, side: str) -> list[list[Any]]:
        """Best price first; orders of one price by priority."""
        sign = -1 if side == "bids" else 1
        return sorted(self.sides[side].values(), key=lambda row: (sign * Decimal(row[0]), row[3:]))

    def checksum(self) -> int:
        asks, bids = (self._best(side) for side in ("asks", "bids"))
        return checksum(asks, bids, self.tick_size, self.lot_size)

    def _best(self, side: str) -> list[list[Any]]:
        """The rows of a side's best levels, as far as a checksum goes."""
        rows = self.rows(side)
        prices = list(dict.fromkeys(row[0] for row in rows))[:LEVELS]
        return [row for row in rows if row[0] in prices][:ORDERS]
