"""One connection that carries everybody's commands to a server, one behind the other.

A server answers the commands of a connection in their order, so a queue of those who wait is all
that is needed to have any number of commands on their way at once. What callers hand over while the
event loop turns goes out in one write, and nobody takes a connection or gives one back.

* For each command that was handed over there is one future in the queue, in the same order. Who is
  canceled meanwhile keeps the place: the reply is read and dropped.
* A wire that has failed is done with: all who wait get its error, for none can know whether the
  command ran, and nothing is sent on it again. Only what it had not begun to write is known not to
  have run, and gets a NotSentError. Whoever comes next opens another.
* Nobody waits longer than SOCKET_TIMEOUT_S. One timer watches the command that waits longest, in
  place of redis-py's bounds on every single read and write: those cost a task a command and, until
  Python 3.12, swallow cancellations.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

SOCKET_TIMEOUT_S = 5.0
# A process that stood still itself first reads what has come meanwhile.
LATE_REPLY_GRACE_S = 0.1

# Bytes, integers and lists of them, as the Redis command has it.
RedisReply = Any


class NotSentError(RedisConnectionError):
    """The connection ended before the command was written to it."""


class _Waiter(NamedTuple):
    """Who waits for a reply, and since when."""

    reply: asyncio.Future[RedisReply]
    since_s: float


class Wire:
    """A connection that is open. `run_id` is that of its server, `replication_id` that of its reign
    as a primary when the connection was opened; None where it does not tell."""

    def __init__(self, connection: AbstractConnection) -> None:
        connection.socket_timeout = None
        self.run_id: str | None = None
        self.replication_id: str | None = None
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._outbox: list[bytes] = []
        # How many of those who wait have their command in the outbox: the last ones.
        self._unsent_count = 0
        self._has_commands = asyncio.Event()
        self._waiting: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_retired = False
        self._error: BaseException | None = None
        self._reader = self._loop.create_task(self._read_forever())
        self._writer = self._loop.create_task(self._write_forever())
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes commands."""
        return self._error is None and not self._is_retired

    async def call(self, *arguments: str | bytes | int) -> RedisReply:
        """Sends one command; its reply. Raises what the server refused it with; a redis-py
        ConnectionError or TimeoutError where the reply will never come, NotSentError where nothing
        was sent."""
        return await self._hand_over(arguments)

    async def call_asking(self, *arguments: str | bytes | int) -> RedisReply:
        """The same for a key that is being moved to this server: ASKING goes directly before it."""
        _, reply = await self.call_together(("ASKING",), arguments)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def call_together(
        self, *commands: Sequence[str | bytes | int]
    ) -> list[RedisReply | BaseException]:
        """Sends commands one directly behind the other; what each came to, errors included."""
        replies = [self._hand_over(command) for command in commands]
        return await asyncio.gather(*replies, return_exceptions=True)

    def _hand_over(self, arguments: Sequence[str | bytes | int]) -> asyncio.Future[RedisReply]:
        if self._error is not None:
            raise NotSentError("the connection is closed") from self._error
        self._outbox += self._connection.pack_command(*arguments)
        self._unsent_count += 1
        self._has_commands.set()
        waiter = _Waiter(self._loop.create_future(), self._loop.time())
        self._waiting.append(waiter)
        if self._timer is None:
            self._timer = self._loop.call_later(SOCKET_TIMEOUT_S, self._look_at_the_oldest)
        return waiter.reply

    def retire(self) -> None:
        """Takes no more commands, and closes when those on their way have been answered."""
        self._is_retired = True
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Ends at once; who waits gets a ConnectionError."""
        self._end(RedisConnectionError("the connection was closed"))

    async def wait_closed(self) -> None:
        """Returns when a wire that has ended has let go of its socket."""
        if self._closing is not None:
            await self._closing

    async def _write_forever(self) -> None:
        try:
            while True:
                await self._has_commands.wait()
                self._has_commands.clear()
                commands, self._outbox, self._unsent_count = self._outbox, [], 0
                await self._connection.send_packed_command(commands, check_health=False)
        except (RedisError, OSError) as error:
            self._end(error)

    async def _read_forever(self) -> None:
        try:
            while True:
                self._answer(await self._read())
        except (RedisError, OSError) as error:
            self._end(error)

    async def _read(self) -> RedisReply:
        """The next reply, be it a refusal."""
        try:
            return await self._connection.read_response()
        except ResponseError as refusal:
            return refusal

    def _answer(self, reply: RedisReply) -> None:
        waiter = self._waiting.popleft().reply
        if waiter.done():
            pass
        elif isinstance(reply, ResponseError):
            waiter.set_exception(reply)
        else:
            waiter.set_result(reply)
        if self._is_retired and not self._waiting:
            self.close()

    def _look_at_the_oldest(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        oldest = self._waiting[0]
        left_s = oldest.since_s + SOCKET_TIMEOUT_S - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look_at_the_oldest)
        else:
            self._timer = self._loop.call_later(LATE_REPLY_GRACE_S, self._give_up, oldest)

    def _give_up(self, oldest: _Waiter) -> None:
        if self._waiting and self._waiting[0] is oldest:
            self._end(RedisTimeoutError(f"no reply within {SOCKET_TIMEOUT_S:.0f} s"))
        else:
            self._look_at_the_oldest()

    def _end(self, error: BaseException) -> None:
        if self._error is not None:
            return
        self._error = error
        sent_count = len(self._waiting) - self._unsent_count
        for place, waiter in enumerate(self._waiting):
            if not waiter.reply.done():
                not_sent = NotSentError("the connection ended before the command was sent")
                waiter.reply.set_exception(error if place < sent_count else not_sent)
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._reader.cancel()
        self._writer.cancel()
        self._closing = self._loop.create_task(self._connection.disconnect(nowait=True))


def replication_id(information: bytes) -> str | None:
    """What INFO replication says of the present reign; another one begins at every promotion."""
    return information_field(information, "master_replid")


def information_field(information: bytes, name: str) -> str | None:
    """One field of what INFO says."""
    for line in information.decode().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2]
    return None
