"""Websocket clients for the tests of the host: real sockets, every message kept in order.

A client reads all the time; a test waits, with a deadline, until what it looks for has come.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

Json = dict[str, Any]

DEADLINE_S = 20.0

_symbols = itertools.count(1)


def new_symbol() -> str:
    """A symbol that no other test of this process uses."""
    return f"H{next(_symbols)}"


class Client:
    """One connected websocket client."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.messages: list[Json] = []
        self._req_ids = itertools.count(1)
        self._arrived = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            self.messages.append(json.loads(message.data))
            self._arrived.set()
        self._arrived.set()

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's first true value; looked at again whenever something has arrived."""
        async with asyncio.timeout(DEADLINE_S):
            while not (value := condition()):
                assert not self._reader.done(), f"closed ({self.socket.close_code}) before {what}"
                self._arrived.clear()
                await self._arrived.wait()
        return value

    async def closed(self) -> int | None:
        """Waits for the end of the connection; its close code."""
        async with asyncio.timeout(DEADLINE_S):
            await self._reader
        return self.socket.close_code

    async def send(self, method: str, **params: Any) -> int:
        """Sends a request and does not wait; its req_id."""
        req_id = next(self._req_ids)
        await self.socket.send_json({"method": method, "req_id": req_id, "params": params})
        return req_id

    async def answer(self, req_id: int | str | None) -> Json:
        """The answer to a request."""
        found = await self.until(
            lambda: [m for m in self.messages if "success" in m and m.get("req_id") == req_id],
            f"the answer to {req_id}",
        )
        assert len(found) == 1, found
        answer: Json = found[0]
        return answer

    async def ask(self, method: str, **params: Any) -> Json:
        """The result of a request that must succeed."""
        answer = await self.answer(await self.send(method, **params))
        assert answer["method"] == method, answer
        assert answer["success"] is True, answer
        result: Json = answer["result"]
        return result

    async def refused(self, method: str, **params: Any) -> str:
        """The code of a request that must fail."""
        return error_code(await self.answer(await self.send(method, **params)))

    async def send_raw(self, frame: str | bytes) -> Json:
        """Sends a frame as it is, text whatever its bytes; the next message without a channel."""
        known = len(self.answers())
        data = frame.encode() if isinstance(frame, str) else frame
        await self.socket.send_frame(data, aiohttp.WSMsgType.TEXT)
        answers = await self.until(lambda: self.answers()[known:], f"an answer to {data[:80]!r}")
        answer: Json = answers[0]
        return answer

    def answers(self) -> list[Json]:
        return [message for message in self.messages if "success" in message]

    def of(self, channel: str, symbol: str | None = None) -> list[Json]:
        """Messages of a channel so far."""
        return [
            message
            for message in self.messages
            if message.get("channel") == channel and symbol in {None, message.get("symbol")}
        ]

    async def wait_for(self, channel: str, count: int = 1) -> list[Json]:
        """The channel's messages once there are so many."""
        await self.until(lambda: len(self.of(channel)) >= count, f"{count} of {channel}")
        return self.of(channel)

    async def subscribe(self, channel: str, *symbols: str, **params: Any) -> list[Json]:
        """Subscribes and waits for the first message of each symbol."""
        before = len(self.of(channel))
        result = await self.ask("subscribe", channel=channel, symbols=list(symbols), **params)
        assert result == {"channel": channel, "symbols": list(symbols)}
        return (await self.wait_for(channel, before + len(symbols)))[before:]

    async def limit(self, symbol: str, side: str, quantity: str, price: str, **more: Any) -> Json:
        """Places a limit order that must be accepted."""
        terms = {"symbol": symbol, "side": side, "quantity": quantity, "price": price}
        return await self.ask("place_order", order_type="limit", **terms, **more)

    async def close(self) -> None:
        await self.socket.close()
        await self._reader


def error_code(answer: Json) -> str:
    """The code of an answer that is a clear error."""
    assert answer["success"] is False, answer
    assert answer["error"]["message"], answer
    return str(answer["error"]["code"])


@contextlib.asynccontextmanager
async def connected(port: int, account: str = "alice", **options: Any) -> AsyncIterator[Client]:
    """A client of the host at a port of loopback."""
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/ws"
        socket = await session.ws_connect(
            url, params={"account": account}, max_msg_size=0, **options
        )
        client = Client(socket)
        try:
            yield client
        finally:
            await client.close()


async def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The condition's first true value, looked at again and again until a deadline."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (value := condition()):  # noqa: ASYNC110 - what changes is another's
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"waited in vain until {what}") from error
    return value
