"""Random order flow in which everything happens: for tests of what is told about a book."""

import random
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

ACCOUNTS = ("alice", "bob", "carol", "dave")
# Prices lie within this of the middle: orders collide, and there are more than ten levels a side.
REACH_TICKS = 40
MIDDLE_TICKS = 10_000
ORDER_IDS_KNOWN = 60

RULES = {"tick_size": "0.01", "lot_size": "0.1"}


def price(dice: random.Random, ticks: int = REACH_TICKS) -> str:
    return f"{(MIDDLE_TICKS + dice.randint(-ticks, ticks)) / 100:.2f}"


def quantity(dice: random.Random) -> str:
    return f"{dice.randint(1, 80) / 10:.1f}"


def _order(dice: random.Random) -> Json:
    side = dice.choice(("buy", "sell"))
    # Mostly on its own side of the middle, so that the book is deep.
    ticks = dice.randint(-3, REACH_TICKS) * (-1 if side == "buy" else 1)
    return {
        "method": "place_order",
        "account": dice.choice(ACCOUNTS),
        "side": side,
        "order_type": "limit",
        "quantity": quantity(dice),
        "price": f"{(MIDDLE_TICKS + ticks) / 100:.2f}",
    }


def _unusual_terms(dice: random.Random, order: Json) -> Json:
    """What makes an order unusual; None takes a field away."""
    shown = dice.randint(1, round(float(order["quantity"]) * 10))
    modes = ("cancel_taker", "cancel_maker", "cancel_both", "decrement")
    stop = {"order_type": "stop", "price": None, "stop_price": price(dice)}
    return dice.choice(
        [
            {"display_quantity": f"{shown / 10:.1f}"},
            {"time_in_force": dice.choice(("ioc", "fok")), "price": price(dice)},
            {"self_trade_prevention": dice.choice(modes), "price": price(dice, 10)},
            {"order_type": "market", "price": None},
            {"order_type": "market", "price": None, "quantity": None}
            | {"quote_quantity": str(dice.randint(50, 900))},
            stop,
            {"order_type": "stop_limit", "stop_price": price(dice)},
            {"order_type": "trailing_stop", "price": None}
            | {"trailing_offset": dice.choice(("0.1", "0.2%"))},
        ]
    )


def _unusual_order(dice: random.Random) -> Json:
    order = _order(dice)
    order |= _unusual_terms(dice, order)
    return {name: value for name, value in order.items() if value is not None}


def _change(dice: random.Random, last_order_id: int) -> Json:
    order_id = str(dice.randint(max(1, last_order_id - ORDER_IDS_KNOWN), max(1, last_order_id)))
    if dice.random() < 0.4:
        return {"method": "cancel_order", "order_id": order_id}
    change = {"method": "amend_order", "order_id": order_id}
    if dice.random() < 0.5:
        change["remaining_quantity"] = quantity(dice)
    if len(change) == 2 or dice.random() < 0.4:
        change["price"] = price(dice)
    return change


def random_commands(dice: random.Random) -> Iterator[Json]:
    """Commands without end; some of them will be refused."""
    last_order_id = 0
    while True:
        chance = dice.random()
        if chance < 0.3:
            yield _change(dice, last_order_id)
        elif chance < 0.305:
            yield {"method": "cancel_all_orders", "account": dice.choice(ACCOUNTS)}
        else:
            last_order_id += 1
            yield _unusual_order(dice) if chance < 0.45 else _order(dice)


def random_batches(dice: random.Random, count: int) -> Iterator[list[Json]]:
    """So many calls, of one command or of many."""
    commands = random_commands(dice)
    for _ in range(count):
        yield [next(commands) for _ in range(dice.choice((1, 1, 2, 12)))]
