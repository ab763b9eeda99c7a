"""Flooders: clients that send as fast as they can, in a process of their own.

    python -m campaign.flood ws://127.0.0.1:8080/ws CAMPAIGN-1 1.5

Two place orders without waiting for answers, one asks for the whole book again and again, and one
pings. They end after so many seconds, or when the host closes their connections.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from random import Random

import aiohttp
import click

from campaign.load import MIDDLE_PRICE, PRICE_REACH

# A client that floods reads its answers, or the host would only stop reading from it.
READ_AHEAD = 64
FRAME_BYTES_MAX = 1 << 24

Request = Callable[[str, Random], dict[str, object]]


def _order(symbol: str, dice: Random) -> dict[str, object]:
    params = {
        "symbol": symbol,
        "side": dice.choice(("buy", "sell")),
        "order_type": "limit",
        "time_in_force": "ioc",
        "price": str(MIDDLE_PRICE + dice.randint(-PRICE_REACH, PRICE_REACH)),
        "quantity": "1",
    }
    return {"method": "place_order", "params": params}


def _whole_book(symbol: str, _: Random) -> dict[str, object]:
    return {"method": "get_level3", "params": {"symbol": symbol, "depth": "full"}}


def _ping(_symbol: str, _: Random) -> dict[str, object]:
    return {"method": "ping", "params": {}}


FLOODERS: tuple[Request, ...] = (_order, _order, _whole_book, _ping)


async def _flood(url: str, symbol: str, number: int) -> None:
    dice = Random(number)
    request = FLOODERS[number]
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            url, params={"account": f"flooder{number}"}, max_msg_size=FRAME_BYTES_MAX
        ) as socket,
    ):
        reading = asyncio.create_task(_read(socket))
        try:
            while not reading.done():
                for _ in range(READ_AHEAD):
                    await socket.send_str(json.dumps(request(symbol, dice)))
                await asyncio.sleep(0)
        finally:
            reading.cancel()


async def _read(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


async def _flood_all(url: str, symbol: str, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(
                *(_flood(url, symbol, number) for number in range(len(FLOODERS))),
                return_exceptions=True,
            )


@click.command()
@click.argument("url")
@click.argument("symbol")
@click.argument("seconds", type=float)
def main(url: str, symbol: str, seconds: float) -> None:
    """Flood a host for so many seconds."""
    asyncio.run(_flood_all(url, symbol, seconds))


if __name__ == "__main__":
    main()
