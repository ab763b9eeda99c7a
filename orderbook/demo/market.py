"""The five demo markets and the people in them: rules, seeded books and synthetic traders.

Everything here is arithmetic and dice, no input or output: a trader says which command it sends
next and is told the reply. The same random seed gives the same books and, reply by reply, the same
orders, so a demo can be repeated and a book can be seeded twice without changing it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any, Protocol

Fields = dict[str, Any]

SEED_LEVELS_DEFAULT = 25
ORDERS_PER_LEVEL_MAX = 3

# One step of a fair price, and how far from it traders quote, in parts of the price.
FAIR_PRICE_STEP = 0.00008
QUOTE_DISTANCE = 0.0006
SEED_DISTANCE = 0.0001
TAKER_REACH = 0.0009

# What one maker keeps open in one book before it cancels the oldest.
MAKER_ORDERS_MAX = 12

# How often a trader does the one thing and not the other.
AMEND_SHARE = 0.2
POST_ONLY_SHARE = 0.7
MARKET_ORDER_SHARE = 0.25


@dataclass(frozen=True)
class Market:
    """A pair as a venue lists it. `price_start` and `order_value` are in the quote currency."""

    symbol: str
    tick_size: Decimal
    lot_size: Decimal
    price_start: Decimal
    order_value: Decimal = Decimal(2500)

    @property
    def rules(self) -> Fields:
        """The fields of define_instrument."""
        return {"tick_size": plain(self.tick_size), "lot_size": plain(self.lot_size)}

    def price(self, value: float) -> str:
        """The nearest positive price on the tick grid, as decimal text."""
        return plain(max(1, round(value / float(self.tick_size))) * self.tick_size)

    def quantity(self, dice: Random) -> str:
        """A size around `order_value`: many small orders, a few large ones."""
        value = float(self.order_value) * dice.lognormvariate(-0.5, 1.0)
        lots = round(value / float(self.price_start) / float(self.lot_size))
        return plain(max(1, lots) * self.lot_size)


MARKETS = (
    Market("BTC-USDT", Decimal("0.01"), Decimal("0.00001"), Decimal(97250)),
    Market("ETH-USDT", Decimal("0.01"), Decimal("0.0001"), Decimal(3420)),
    Market("AVAX-USDT", Decimal("0.01"), Decimal("0.01"), Decimal("38.50")),
    Market("SOL-USDT", Decimal("0.01"), Decimal("0.001"), Decimal("186.40")),
    Market("ARB-USDT", Decimal("0.0001"), Decimal("0.1"), Decimal("0.8120")),
)


def plain(number: Decimal) -> str:
    """Decimal text as the protocol wants it: no exponent and no trailing zeros."""
    return format(number.normalize(), "f")


def seed_commands(market: Market, levels: int, random_seed: int) -> Iterator[Fields]:
    """place_order commands for a book of `levels` levels a side around the start price.

    Each carries a client_order_id of its own: sending them again changes nothing.
    """
    dice = Random(f"{market.symbol}/{random_seed}")
    start = float(market.price_start)
    for level in range(1, levels + 1):
        for side, direction in (("buy", -1), ("sell", 1)):
            # Levels lie farther apart the deeper they are, as in a real book, and a tick at least.
            distance = SEED_DISTANCE * level * (1 + level / levels) * start
            price = market.price(start + direction * max(distance, level * float(market.tick_size)))
            for number in range(dice.randint(1, ORDERS_PER_LEVEL_MAX)):
                yield {
                    "method": "place_order",
                    "account": f"seed-{number + 1}",
                    "side": side,
                    "order_type": "limit",
                    "price": price,
                    "quantity": market.quantity(dice),
                    "post_only": True,
                    "client_order_id": f"seed-{random_seed}:{side}:{level}",
                }


class FairPrice:
    """What all traders of a market believe it is worth: a random walk."""

    def __init__(self, market: Market, dice: Random) -> None:
        self._value = float(market.price_start)
        self._dice = dice

    def step(self) -> float:
        self._value *= math.exp(self._dice.gauss(0, FAIR_PRICE_STEP))
        return self._value


class Trader(Protocol):
    """Says what to send next and learns what came of it."""

    def next_command(self) -> tuple[str, Fields]:
        """A websocket method and its params."""

    def learn(self, method: str, params: Fields, result: Fields) -> None:
        """`result` is the reply; a rejected one has status "rejected"."""

    def learn_report(self, report: Fields) -> None:
        """A report of the orders channel about an order of this trader."""


@dataclass
class Maker:
    """Quotes both sides at a distance, moves some of its orders and cancels the oldest."""

    market: Market
    fair_price: FairPrice
    dice: Random
    order_ids: list[str] = field(default_factory=list)

    def next_command(self) -> tuple[str, Fields]:
        symbol = self.market.symbol
        if len(self.order_ids) >= MAKER_ORDERS_MAX:
            return "cancel_order", {"symbol": symbol, "order_id": self.order_ids[0]}
        if self.order_ids and self.dice.random() < AMEND_SHARE:
            order_id = self.dice.choice(self.order_ids)
            remaining = self.market.quantity(self.dice)
            return "amend_order", {
                "symbol": symbol,
                "order_id": order_id,
                "remaining_quantity": remaining,
            }
        side, price = self._quote()
        return "place_order", {
            "symbol": symbol,
            "side": side,
            "order_type": "limit",
            "price": price,
            "quantity": self.market.quantity(self.dice),
            "post_only": self.dice.random() < POST_ONLY_SHARE,
        }

    def _quote(self) -> tuple[str, str]:
        side, direction = self.dice.choice((("buy", -1), ("sell", 1)))
        distance = self.dice.expovariate(1 / QUOTE_DISTANCE)
        price = self.fair_price.step() * math.exp(direction * distance)
        return side, self.market.price(price)

    def learn(self, method: str, params: Fields, result: Fields) -> None:
        order_id = result.get("order_id") or params.get("order_id")
        if method == "place_order":
            if result["status"] in {"open", "partially_filled"}:
                self.order_ids.append(result["order_id"])
        elif order_id in self.order_ids and result["status"] not in {"open", "partially_filled"}:
            # Canceled now, or gone before we asked: filled while our command was on its way.
            self.order_ids.remove(order_id)

    def learn_report(self, report: Fields) -> None:
        if report.get("status") == "filled" and report["order_id"] in self.order_ids:
            self.order_ids.remove(report["order_id"])


@dataclass
class Taker:
    """Takes what is there: mostly ioc orders with a limit, now and then a market order."""

    market: Market
    fair_price: FairPrice
    dice: Random

    def next_command(self) -> tuple[str, Fields]:
        side, direction = self.dice.choice((("buy", 1), ("sell", -1)))
        command: Fields = {
            "symbol": self.market.symbol,
            "side": side,
            "quantity": self.market.quantity(self.dice),
        }
        if self.dice.random() < MARKET_ORDER_SHARE:
            return "place_order", command | {"order_type": "market"}
        reach = self.dice.random() * TAKER_REACH
        limit = self.market.price(self.fair_price.step() * math.exp(direction * reach))
        return "place_order", command | {
            "order_type": "limit",
            "price": limit,
            "time_in_force": "ioc",
        }

    def learn(self, method: str, params: Fields, result: Fields) -> None:
        """A taker leaves nothing in the book and so has nothing to remember."""

    def learn_report(self, report: Fields) -> None:
        """The same."""
