"""What clients saw, held against what must be true whichever host died meanwhile.

The idea: the engine numbers every trade of a book without gaps and reports every change of an
order, so a client can prove for itself that it missed nothing and saw nothing twice. A TradeTape
does so for one subscriber of trades; an OrderLedger rebuilds an account's open orders from its
reports alone and compares them with what was acknowledged and with what the book says in the end.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from client import Frame, Report
from rig import Reply

VIOLATIONS_MAX = 20


@dataclass
class Violations:
    """Sentences, each about one thing that must not be; all are counted, the first ones kept."""

    count: int = 0
    sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.count += 1
        if len(self.sentences) < VIOLATIONS_MAX:
            self.sentences.append(sentence)


class _Sequence:
    """The sequence of one channel: it only grows, and a gap would be told."""

    def __init__(self, name: str, violations: Violations) -> None:
        self._name = name
        self._violations = violations
        self._last = 0

    def take(self, frame: Frame) -> None:
        if frame.type == "gap":
            self._violations.add(f"{self._name}: a gap before sequence {frame.sequence}")
        elif frame.type == "update" and frame.sequence <= self._last:
            self._violations.add(f"{self._name}: sequence {frame.sequence} after {self._last}")
        self._last = frame.sequence


class TradeTape:
    """The trades of one symbol as one subscriber saw them."""

    def __init__(self, symbol: str, violations: Violations) -> None:
        self.count = 0
        self.last_trade_id = 0
        self._symbol = symbol
        self._violations = violations
        self._sequence = _Sequence(f"trades {symbol}", violations)
        self._digest = hashlib.sha256()

    def take(self, frame: Frame) -> None:
        """Takes a frame of the trades channel. The first snapshot tells where the tape begins."""
        self._sequence.take(frame)
        if frame.type == "snapshot":
            self.last_trade_id = max([int(trade.trade_id) for trade in frame.trades], default=0)
            return
        for trade in frame.trades:
            trade_id = int(trade.trade_id)
            if trade_id != self.last_trade_id + 1:
                self._violations.add(
                    f"trades {self._symbol}: trade {trade_id} after {self.last_trade_id}"
                )
            self.last_trade_id = trade_id
            self.count += 1
            self._digest.update(
                f"{trade_id},{trade.price},{trade.quantity},"
                f"{trade.maker_order_id},{trade.taker_order_id}\n".encode()
            )

    def has_reached(self, trade_id: int) -> bool:
        return self.last_trade_id >= trade_id

    def digest(self) -> str:
        """SHA-256 of the trades that followed the first snapshot, in the order they came."""
        return self._digest.hexdigest()


class OrderLedger:
    """One account's orders in one book: by the replies it got, and by the reports it received."""

    def __init__(self, name: str, violations: Violations) -> None:
        self._name = name
        self._violations = violations
        self._sequence = _Sequence(f"orders {name}", violations)
        self._acknowledged: set[str] = set()
        self._acknowledged_fills: set[tuple[str, str]] = set()
        self._accepted: set[str] = set()
        self._fills: set[tuple[str, str]] = set()
        # order_id → remaining quantity, by the reports.
        self._open: dict[str, str] = {}

    def acknowledge(self, reply: Reply) -> None:
        """Takes in the reply to a placed or amended order."""
        self._acknowledged.add(reply.order_id)
        self._acknowledged_fills.update((reply.order_id, fill.trade_id) for fill in reply.fills)

    def take(self, frame: Frame) -> None:
        """Takes a frame of the orders channel."""
        self._sequence.take(frame)
        if frame.type == "snapshot":
            self._open = {order.order_id: order.remaining_quantity for order in frame.orders}
            return
        for report in frame.orders:
            self._take_report(report)

    def _take_report(self, report: Report) -> None:
        if report.event == "accepted":
            if report.order_id in self._accepted:
                self._violations.add(f"{self._name}: {report.order_id} accepted twice")
            self._accepted.add(report.order_id)
            self._open[report.order_id] = report.quantity
            return
        if report.order_id not in self._open:
            self._violations.add(f"{self._name}: {report.event} of {report.order_id}, not open")
            return
        if report.event == "trade":
            self._take_fill(report)
        if report.event == "canceled" or report.remaining_quantity == "0":
            del self._open[report.order_id]
        else:
            self._open[report.order_id] = report.remaining_quantity

    def _take_fill(self, report: Report) -> None:
        fill = (report.order_id, report.trade_id)
        if fill in self._fills:
            self._violations.add(f"{self._name}: trade {report.trade_id} reported twice")
        self._fills.add(fill)

    def differences(self, open_orders: Mapping[str, str]) -> list[str]:
        """What is wrong in the end. `open_orders`: order_id → remaining quantity, by the book."""
        missing = [
            f"{self._name}: order {order_id} was acknowledged and never reported"
            for order_id in sorted(self._acknowledged - self._accepted, key=int)
        ]
        missing += [
            f"{self._name}: trade {trade_id} was acknowledged and never reported"
            for _, trade_id in sorted(self._acknowledged_fills - self._fills)
        ]
        differing = self._open.items() ^ open_orders.items()
        return missing + [
            f"{self._name}: {order_id} with {remaining} open is in the reports or the book alone"
            for order_id, remaining in sorted(differing)
        ]
