"""The micro-batcher: one book's commands, as many in a call as came while the last one ran."""

import asyncio
import logging
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from orderbook.engine.engine import Acknowledged, Engine, Replies
from orderbook.engine.errors import EngineError, rejection
from orderbook.engine.turns import Turns
from orderbook.messages import RejectCode

logger = logging.getLogger(__name__)

BATCH_LENGTH_MAX = 128
# So that many quotes of different clients do not make one call that the engine would refuse.
BATCH_BYTES_MAX = 65_536
# Whoever comes while a call runs waits for it and for the next one: so none is to take longer.
CALL_S_TARGET = 0.004
# About 15 orders: fewer in a call cost more than they gain.
BATCH_BYTES_MIN = 2_048
# What cancel_all_orders counts: it may cancel 1,000.
CANCEL_ALL_SIZE = 1_024
# So many cancels of a call, and as much of its size, come before orders that wait.
CANCELS_FIRST_MAX = 64
CANCELS_SHARE_MAX = 0.5
BATCHER_QUEUE_LENGTH_MAX = 65_536
_CANCEL_ALL_PREFIX = b'{"method":"cancel_all_orders"'

OnReply = Callable[[bytes], None]


class Urgency(IntEnum):
    """Which commands of different owners come first."""

    TIMER = 0
    CANCEL = 1
    ORDER = 2


class _Command(NamedTuple):
    payload: bytes
    on_reply: OnReply
    urgency: Urgency

    @property
    def size(self) -> int:
        """Its bytes, which tell best how much work it may be; but not where it names no order."""
        if self.payload.startswith(_CANCEL_ALL_PREFIX):
            return CANCEL_ALL_SIZE
        return len(self.payload)


class _Call(NamedTuple):
    """Commands that are being run."""

    batch: list[_Command]
    replies: asyncio.Task[Replies]


class Batcher:
    """One book's commands: what arrives while a call is in flight goes into the next call.

    So a single command is sent at once, and under load the calls grow by themselves, to
    BATCH_LENGTH_MAX or to what takes CALL_S_TARGET. They are filled from the owners of commands by
    turns: timers first, then cancels, then the others; those of one owner run in the order in which
    it submitted them. Replies come through callbacks, in the order in which the commands ran; a
    command is always answered, by a refusal where the engine could not be asked.
    """

    def __init__(
        self,
        engine: Engine,
        symbol: str,
        *,
        queue_length_max: int = BATCHER_QUEUE_LENGTH_MAX,
        observe_call_s: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._symbol = symbol
        self._waiting: Turns[_Command] = Turns(lambda command: command.urgency, len(Urgency))
        self._bytes_max = BATCH_BYTES_MAX
        self._queue_length_max = queue_length_max
        self._observe_call_s = observe_call_s
        self._task: asyncio.Task[None] | None = None
        # That of the replies that are being given out: for who waits until it is confirmed.
        self.acknowledged: Acknowledged | None = None

    def submit(
        self,
        command: bytes,
        on_reply: OnReply,
        owner: object = None,
        urgency: Urgency = Urgency.ORDER,
    ) -> None:
        """Queues one JSON command. A full queue answers SYSTEM_BUSY at once, though not to who
        has nothing in it."""
        waiting = self._waiting
        if len(waiting) >= self._queue_length_max and waiting.is_waiting(owner):
            on_reply(rejection(RejectCode.SYSTEM_BUSY, "too many commands are waiting"))
            return
        waiting.add(owner, _Command(command, on_reply, urgency))
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def drained(self) -> None:
        """Returns when everything submitted so far has been answered."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        """One call at a time. The next one is on its way before the answers to the last are given
        out, so that the server works meanwhile."""
        try:
            call = self._begin_call()
            while call is not None:
                replies = await call.replies
                batch = call.batch
                call = self._begin_call()
                # It is written when the loop turns.
                await asyncio.sleep(0)
                self.acknowledged = replies.acknowledged
                for command, reply in zip(batch, replies, strict=True):
                    self._answer(command.on_reply, reply)
                call = call or self._begin_call()
        finally:
            self._task = None

    def _begin_call(self) -> _Call | None:
        """A call with the commands that wait, or None where none does."""
        batch = self._next_batch()
        if not batch:
            return None
        commands = [command.payload for command in batch]
        return _Call(batch, asyncio.create_task(self._execute(commands)))

    def _next_batch(self) -> list[_Command]:
        """As many of the commands that wait as one call may have."""
        batch: list[_Command] = []
        bytes_left, cancels_left = self._bytes_max, CANCELS_FIRST_MAX
        bytes_kept = self._bytes_max * (1 - CANCELS_SHARE_MAX)
        while len(batch) < BATCH_LENGTH_MAX:
            urgency = self._next_urgency(cancels_left > 0 and bytes_left > bytes_kept)
            command = None if urgency is None else self._waiting.first(urgency)
            if urgency is None or command is None:
                break
            if batch and command.size > bytes_left:
                break
            batch.append(self._waiting.take(urgency))
            bytes_left -= command.size
            cancels_left -= urgency is Urgency.CANCEL
        return batch

    def _next_urgency(self, cancels_first: bool) -> Urgency | None:
        """Which kind comes next. A flood of cancels leaves room for orders."""
        waiting = self._waiting
        if waiting.first(Urgency.TIMER):
            return Urgency.TIMER
        order_waits = waiting.first(Urgency.ORDER) is not None
        if waiting.first(Urgency.CANCEL) and (cancels_first or not order_waits):
            return Urgency.CANCEL
        return Urgency.ORDER if order_waits else None

    def _adapt(self, sent_bytes: int, took_s: float) -> None:
        """Lets calls become as large as their time allows."""
        if took_s > CALL_S_TARGET:
            affordable = int(sent_bytes * CALL_S_TARGET / took_s)
            self._bytes_max = max(BATCH_BYTES_MIN, min(affordable, self._bytes_max))
        elif 2 * sent_bytes > self._bytes_max:
            self._bytes_max = min(BATCH_BYTES_MAX, self._bytes_max * 5 // 4)

    def _answer(self, on_reply: OnReply, reply: bytes) -> None:
        try:
            on_reply(reply)
        except Exception:
            # One client's trouble must not cost the others of its batch their answers.
            logger.exception("an answer could not be delivered")

    async def _execute(self, commands: list[bytes]) -> Replies:
        started = time.perf_counter()
        try:
            return await self._engine.execute(self._symbol, commands)
        except EngineError as error:
            return Replies([error.reply()] * len(commands))
        except Exception:
            logger.exception("a call to the engine failed unexpectedly")
            unknown = EngineError(RejectCode.OUTCOME_UNKNOWN, "the host failed: ask again")
            return Replies([unknown.reply()] * len(commands))
        finally:
            took_s = time.perf_counter() - started
            self._adapt(sum(map(len, commands)), took_s)
            self._observe_call_s(took_s)
