"""Whether clients should be sent to a host: a probe of each kind of call that they need.

Each primary must answer, be a primary, have a library that fits, and say that it would carry out
commands for us: not where memory is full, where replicas are missing, or where our Redis user lacks
a right. The servers from which streams are read must answer, and the streams must not be behind.

A probe is made when somebody asks, at most once a second, and shared by all who ask meanwhile: a
flood of health checks costs the servers no more than one.

A single book in trouble is told, and is no reason against the host, or every host would be taken
out for it. All of them are.
"""

import asyncio

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from orderbook.engine import library
from orderbook.engine.engine import Engine
from orderbook.engine.errors import EngineError
from orderbook.feed.feed import Feed

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 1.0
LAG_S_MAX = 5.0
# How many books in trouble are named.
TROUBLED_BOOKS_TOLD_MAX = 20


class Readiness:
    """The probe of one host, and what it said last."""

    def __init__(self, engine: Engine, feed: Feed) -> None:
        self._engine = engine
        self._feed = feed
        self._found: list[str] = []
        self._probed_at_s: float | None = None
        self._probing: asyncio.Task[list[str]] | None = None

    async def reasons(self) -> list[str]:
        """Why clients should not be sent here; empty where they should."""
        now = asyncio.get_running_loop().time()
        if self._probed_at_s is not None and now - self._probed_at_s < PROBE_INTERVAL_S:
            return self._found
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe())
            self._probing.add_done_callback(self._probed)
        return await asyncio.shield(self._probing)

    def told_troubles(self) -> dict[str, str]:
        """By symbol, what is wrong with books; of many the first ones."""
        troubles = sorted(self._feed.troubled_books().items())
        return dict(troubles[:TROUBLED_BOOKS_TOLD_MAX])

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()

    def _probed(self, probing: asyncio.Task[list[str]]) -> None:
        self._probing = None
        if not probing.cancelled():
            self._found = probing.result()
            self._probed_at_s = asyncio.get_running_loop().time()

    async def _probe(self) -> list[str]:
        reasons = []
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                reasons += await self._primaries_reasons()
        except (EngineError, RedisError, OSError, TimeoutError) as error:
            reasons.append(f"the server does not do what is needed: {_text(error)}")
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._engine.ping_readers()
        except (EngineError, RedisError, OSError, TimeoutError) as error:
            reasons.append(f"the streams cannot be read: {_text(error)}")
        return reasons + self._feed_reasons()

    async def _primaries_reasons(self) -> list[str]:
        await self._engine.ping()
        reasons = []
        for primary in self._engine.primaries():
            if await _is_replica(primary):
                reasons.append("the server is a replica: it takes no orders")
            found = await library.installed(primary)
            reason = library.misfit(found)
            if reason is not None:
                reasons.append(reason)
        if not reasons:
            await self._engine.probe(self._feed.books_in_order())
        return reasons

    def _feed_reasons(self) -> list[str]:
        reasons = []
        behind_s = self._feed.behind_s()
        if behind_s > LAG_S_MAX:
            reasons.append(f"the streams are {behind_s:.1f} s behind")
        troubles = self._feed.troubled_books()
        if troubles and not self._feed.books_in_order():
            symbol, trouble = min(troubles.items())
            reasons.append(f"every book is in trouble: {symbol}: {trouble}")
        return reasons


def _text(error: Exception) -> str:
    return (
        f"no answer within {PROBE_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else str(error)
    )


async def _is_replica(primary: Redis) -> bool:
    """Whether a server takes no orders; False where INFO is forbidden to us."""
    try:
        return bool((await primary.info("replication"))["role"] != "master")
    except ResponseError:
        return False
