"""Defines the demo markets on a server and fills their books.

Safe to repeat: an instrument that exists keeps its orders, and every seeded order has a
client_order_id, so that a second run gets the first run's replies and changes nothing.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from orderbook.demo.market import Market, seed_commands

if TYPE_CHECKING:
    from orderbook.engine.engine import Engine

# The most that one call of `execute` takes.
BATCH_LENGTH_MAX = 256

Report = dict[str, Any]


async def seed(
    engine: "Engine", markets: Sequence[Market], levels: int, random_seed: int
) -> list[Report]:
    """Seeds the markets; one report each: symbol, orders_open, rejects by code, sequence.

    A market that is refused as an instrument gives its reject and is left alone.
    """
    return [await _seed_market(engine, market, levels, random_seed) for market in markets]


async def _seed_market(engine: "Engine", market: Market, levels: int, random_seed: int) -> Report:
    defined = await engine.define_instrument(market.symbol, **market.rules)
    if defined["status"] == "rejected":
        return {"symbol": market.symbol, **defined}
    rejects: dict[str, int] = {}
    commands = seed_commands(market, levels, random_seed)
    for batch in _batches(msgspec.json.encode(command) for command in commands):
        for text in await engine.execute(market.symbol, batch):
            reply = msgspec.json.decode(text)
            if reply["status"] == "rejected":
                rejects[reply["code"]] = rejects.get(reply["code"], 0) + 1
    state = await engine.get_instrument(market.symbol)
    return {
        "symbol": market.symbol,
        "orders_open": state["open_orders"],
        "rejects": rejects,
        "sequence": state["sequence"],
    }


def _batches(commands: Iterable[bytes]) -> Iterable[list[bytes]]:
    iterator = iter(commands)
    while batch := list(islice(iterator, BATCH_LENGTH_MAX)):
        yield batch
