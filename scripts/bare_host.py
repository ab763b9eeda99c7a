"""The yardstick of a host: aiohttp websockets without anything behind them.

    python scripts/bare_host.py

Prints its port, then echoes every frame at /echo, and tells everybody connected at /fan-out what
comes at /tell: a frame is a number, a line break, and what is to be told so many times, one plain
send after the other. The loop is the one that hosts run on, and so are the settings of the
websockets.
"""

import asyncio
import contextlib
import importlib
import sys

from aiohttp import WSMsgType, web

LOOPBACK = "127.0.0.1"


class BareHost:
    """The two things a host cannot do without: answering, and telling many."""

    def __init__(self) -> None:
        self._listeners: set[web.WebSocketResponse] = set()

    async def run(self) -> None:
        app = web.Application()
        app.router.add_get("/echo", self._echo)
        app.router.add_get("/fan-out", self._listen)
        app.router.add_get("/tell", self._tell)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0).start()
        sys.stdout.write(f"{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = _socket()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_frame(message.data, WSMsgType.TEXT)
        return socket

    async def _listen(self, request: web.Request) -> web.WebSocketResponse:
        socket = _socket()
        await socket.prepare(request)
        self._listeners.add(socket)
        with contextlib.suppress(ConnectionError):
            async for _ in socket:
                pass
        self._listeners.discard(socket)
        return socket

    async def _tell(self, request: web.Request) -> web.WebSocketResponse:
        socket = _socket()
        await socket.prepare(request)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            times, _, payload = message.data.partition(b"\n")
            for _ in range(int(times)):
                for listener in self._listeners:
                    with contextlib.suppress(ConnectionError):
                        await listener.send_frame(payload, WSMsgType.TEXT)
        return socket


def _socket() -> web.WebSocketResponse:
    return web.WebSocketResponse(compress=False, heartbeat=20.0, decode_text=False)


def main() -> None:
    """Runs on uvloop where it is installed, as hosts do."""
    loop_run = asyncio.run
    with contextlib.suppress(ImportError):
        loop_run = importlib.import_module("uvloop").run
    with contextlib.suppress(KeyboardInterrupt):
        loop_run(BareHost().run())


if __name__ == "__main__":
    main()
