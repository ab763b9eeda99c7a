"""A wire between a client and a server that can be cut or held at the moment that hurts."""

import asyncio
from typing import Self


class Proxy:
    """Passes everything on to a port of loopback until told otherwise. `url` is its address."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        # Cuts the line when a reply comes: the command has run and its sender cannot know.
        self.loses_replies = False
        # Cleared, replies wait.
        self.passes_replies = asyncio.Event()
        self.passes_replies.set()
        self._listener: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def switch(self, port: int) -> None:
        """Another server answers from here on, as after a failover: every connection breaks."""
        self._server_port = port
        for task in self._tasks:
            task.cancel()

    def lead(self, port: int) -> None:
        """New connections reach another server, as where a name is resolved anew."""
        self._server_port = port

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        tasks = {
            asyncio.create_task(self._pass_commands(reader, back)),
            asyncio.create_task(self._pass_replies(there, writer)),
        }
        self._tasks |= tasks
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        writer.close()
        back.close()

    async def _pass_commands(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def _pass_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            if self.loses_replies:
                return
            await self.passes_replies.wait()
            writer.write(data)
