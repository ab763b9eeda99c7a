"""Confirmations: how a server tells that what it has acknowledged is on its disk, or on a replica.

WAITAOF and WAIT speak of the last write of the connection that they come on, and block it. So they
cannot go over the wire that carries everybody's commands. Each primary has a lane for each of the
two: a connection on which rounds are made. A round writes a small key, then waits for that write.
The append-only file and the stream to the replicas have one order, so all that was written before
is then as safe as the key. Who asks while a round is on its way shares the next one: however many
commands are acknowledged meanwhile, they cost one round.

A round proves something about a command only where it speaks of the same server in the same reign:
a server that took over, or was demoted and promoted again, has another replication id. The wire on
which the command ran knows the id of its server, and the round reads it after its own write. A
reign never comes back, so equal ids mean that nothing happened in between.

With `appendfsync everysec` Valkey (8.0 to 9.1 at least) and Redis 7.4 answer WAITAOF before they
have flushed (redis/redis#13793). There a round also looks for the flush itself: a server flushes no
later than a second after the last flush, if none is running. So where none is running when the key
is written, and none a good second later, one that began after the write has ended.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from orderbook.engine.wire import RedisReply, Wire, information_field, replication_id
from orderbook.messages import Durability

logger = logging.getLogger(__name__)

# A command's confirmation is waited for so long, then it is told as not confirmed. Below the wire's
# own bound, and above the two seconds that `appendfsync everysec` may take.
CONFIRM_TIMEOUT_S = 4.0
# The key that rounds write goes away by itself when nobody has asked for so long.
KEY_LIFETIME_MS = 3_600_000
# A second, and some turns of the server's loop in which it can begin to flush.
FLUSH_INTERVAL_MS = 1150
FLUSH_POLL_S = 0.05
# The first version of Redis, after the ones above, whose WAITAOF can be relied on.
SOUND_REDIS_VERSION_MIN = 8

_TROUBLE = (RedisError, OSError)
# The server's own words for what makes a confirmation impossible, and ours.
_IMPOSSIBLE = {
    "unknown command": "the server has no WAITAOF: it needs Redis 7.2 or later, or Valkey",
    "appendonly is disabled": "the server keeps no append-only file",
}

# A server's own words where it is no primary.
_NOT_A_PRIMARY = "cannot be used with replica instances"

OpenWire = Callable[[], Awaitable[Wire]]


class Change(NamedTuple):
    """What is to be confirmed: written by a server in a reign, in the slot of a key."""

    replication_id: str | None
    key: str


class _Waiter(NamedTuple):
    change: Change
    copies: int
    is_confirmed: asyncio.Future[bool]


class Confirmer:
    """The lanes of one primary."""

    def __init__(self, open_wire: OpenWire, distrust: Callable[[], None]) -> None:
        """`distrust` is called where the wire that carries commands is of another reign."""
        self._lanes = {
            Durability.FSYNC: _Lane(open_wire, distrust, Durability.FSYNC),
            Durability.REPLICA: _Lane(open_wire, distrust, Durability.REPLICA),
        }

    async def refusal(self, durability: Durability) -> str | None:
        """Why the server can never confirm this, or None. Asks it where that is not known to be
        possible. Raises what redis-py raises where no server can be reached."""
        for part in durability.parts:
            found = await self._lanes[part].refusal()
            if found is not None:
                return found
        return None

    async def confirm(self, durability: Durability, change: Change, replicas: int) -> bool:
        """Whether a change is known, within CONFIRM_TIMEOUT_S, to be as safe as was asked for."""
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                confirmed = await asyncio.gather(
                    *(self._lanes[part].confirm(change, replicas) for part in durability.parts)
                )
        except TimeoutError:
            return False
        return all(confirmed)

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()


class _Lane:
    """Rounds of one kind at one primary, one after the other."""

    def __init__(self, open_wire: OpenWire, distrust: Callable[[], None], part: Durability) -> None:
        self._open_wire = open_wire
        self._distrust = distrust
        self._part = part
        self._wire: Wire | None = None
        self._opening = asyncio.Lock()
        self._probing = asyncio.Lock()
        # Whether the wire's server has shown that it can confirm.
        self._is_able = False
        self._waiting: list[_Waiter] = []
        self._task: asyncio.Task[None] | None = None

    async def refusal(self) -> str | None:
        if self._is_able and self._wire is not None and self._wire.is_open:
            return None
        wire = await self._opened()
        async with self._probing:
            return None if self._is_able else await self._probe(wire)

    async def _probe(self, wire: Wire) -> str | None:
        if wire.replication_id is None:
            return "the server does not tell its replication id"
        try:
            await wire.call(*self._wait_command(1, timeout_ms=1))
        except ResponseError as error:
            if _NOT_A_PRIMARY in str(error):
                # It was opened while another server took over: the next one leads there.
                wire.close()
                self._distrust()
                raise ReadOnlyError(str(error)) from error
            for words, meaning in _IMPOSSIBLE.items():
                if words in str(error):
                    return meaning
            logger.warning("the server refuses to confirm %s: %s", self._part, error)
            return "the server refuses to confirm it"
        self._is_able = True
        return None

    async def confirm(self, change: Change, replicas: int) -> bool:
        copies = replicas if self._part is Durability.REPLICA else 1
        waiter = _Waiter(change, copies, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await waiter.is_confirmed

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._wire is not None:
            self._wire.close()
            await self._wire.wait_closed()

    async def _opened(self) -> Wire:
        async with self._opening:
            if self._wire is None or not self._wire.is_open:
                self._is_able = False
                self._wire = await self._open_wire()
            return self._wire

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                try:
                    async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                        await self._round(waiting)
                except _TROUBLE as error:
                    logger.warning("%s could not be confirmed: %s", self._part, error)
                finally:
                    for waiter in waiting:
                        _answer(waiter, False)
        finally:
            self._task = None

    async def _round(self, waiting: Sequence[_Waiter]) -> None:
        wire = await self._opened()
        keys = list({waiter.change.key: None for waiter in waiting})
        copies = max(waiter.copies for waiter in waiting)
        timeout_ms = round(CONFIRM_TIMEOUT_S * 1000)
        replies = await wire.call_together(
            # Two commands, for the second writes when memory is full, too.
            *(("SET", key, "1", "PX", KEY_LIFETIME_MS, "NX") for key in keys),
            *(("PEXPIRE", key, KEY_LIFETIME_MS) for key in keys),
            ("INFO", "server", "replication"),
            self._wait_command(copies, timeout_ms),
        )
        *written, information, reply = replies[len(keys) :]
        reached = self._copies(reply)
        if isinstance(reply, BaseException):
            self._is_able = False
        is_written = {key: outcome == 1 for key, outcome in zip(keys, written, strict=True)}
        reign = None
        if not isinstance(information, BaseException):
            reign = replication_id(information)
            if self._part is Durability.FSYNC and reached and not _is_sound(information):
                await _see_flushed(wire)
        for waiter in waiting:
            is_same = reign is not None and waiter.change.replication_id == reign
            if not is_same:
                self._distrust()
            _answer(waiter, is_same and is_written[waiter.change.key] and reached >= waiter.copies)

    def _wait_command(self, copies: int, timeout_ms: int) -> tuple[str | int, ...]:
        if self._part is Durability.FSYNC:
            return ("WAITAOF", copies, 0, timeout_ms)
        return ("WAIT", copies, timeout_ms)

    def _copies(self, reply: RedisReply) -> int:
        if isinstance(reply, BaseException):
            logger.warning("%s could not be confirmed: %s", self._part, reply)
            return 0
        return int(reply[0] if self._part is Durability.FSYNC else reply)


def _is_sound(information: bytes) -> bool:
    """Whether WAITAOF is answered after the flush also with `appendfsync everysec`."""
    if information_field(information, "valkey_version") is not None:
        return False
    version = information_field(information, "redis_version") or "0"
    return int(version.partition(".")[0]) >= SOUND_REDIS_VERSION_MIN


async def _see_flushed(wire: Wire) -> None:
    """Returns when all that was written before has been flushed, as is said at the head."""
    (setting,) = await wire.call_together(("CONFIG", "GET", "appendfsync"))
    if setting == [b"appendfsync", b"always"]:
        # What is flushed before it is answered needs no second look.
        return
    began_ms = await _idle_at_ms(wire)
    while await _idle_at_ms(wire) < began_ms + FLUSH_INTERVAL_MS:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(FLUSH_POLL_S)


async def _idle_at_ms(wire: Wire) -> int:
    """Waits until no flush is running; when that was, by the server's clock."""
    while True:
        seconds, microseconds = await wire.call("TIME")
        information = await wire.call("INFO", "persistence")
        if information_field(information, "aof_pending_bio_fsync") == "0":
            return int(seconds) * 1000 + int(microseconds) // 1000
        await asyncio.sleep(FLUSH_POLL_S)


def _answer(waiter: _Waiter, is_confirmed: bool) -> None:
    if not waiter.is_confirmed.done():
        waiter.is_confirmed.set_result(is_confirmed)
