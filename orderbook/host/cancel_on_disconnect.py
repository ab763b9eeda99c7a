"""Cancel on disconnect: the orders of a websocket do not outlive it.

While it is on, the orders of the connection carry a session, and on every book with such orders a
timer of this session runs in Redis (`cancel_all_after`). The host sets the timers anew, long before
they run out, for as long as it hears of the client, of which it asks a pong as often. When the
connection is lost the host cancels the session's orders at once; and when the client has vanished
without a word, or the host is lost too, nobody sets the timers anew, and the tick of a host cancels
them.

Everything goes through the books' batchers. Timers are set before anything else that waits there:
so one runs before the first order that needs it, and none runs out because others have much to do.
Stopping them, and canceling, keeps its place behind what the connection has sent: so the orders
that were on their way when it broke are canceled with the others.
"""

import asyncio
import secrets
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from orderbook.engine.batcher import Batcher, Urgency
from orderbook.messages import REJECTED_PREFIX, CanceledAll

# How often a timer is set anew in its time: one that is missed, or late, does no harm.
RENEWALS_PER_TIMEOUT = 4
# The timers of a client that has not been heard for this part of their time are not set anew.
SILENT_PART_MAX = 0.5
# An order waits for no timer that was set within this part of its time.
FRESH_PART_MAX = 0.5

_decode_canceled = msgspec.json.Decoder(CanceledAll).decode

OnReply = Callable[[bytes], None]


class Peer(Protocol):
    """The client whose orders are guarded, as its connection knows it."""

    def silent_s(self) -> float:
        """For how long nothing has come from it."""

    def ping(self) -> None:
        """Asks it for a sign of life."""


class Guard:
    """The session of one connection, and its timer on each book on which it placed orders."""

    def __init__(self, account: str, peer: Peer) -> None:
        """`peer` is the owner of the commands that place orders with the session."""
        self.session = secrets.token_hex(8)
        # 0: off, and nothing happens when the connection ends.
        self.timeout_ms = 0
        self._loop = asyncio.get_running_loop()
        self._peer = peer
        self._whose = f'"account":"{account}","session":"{self.session}"'
        self._batchers: dict[str, Batcher] = {}
        self._set_at: dict[str, float] = {}
        self._on_their_way: set[str] = set()
        self._renewal: asyncio.TimerHandle | None = None
        self._is_lost = False

    async def set(self, timeout_ms: int) -> bytes | None:
        """Turns it on, off, or to another timeout, for the orders that there are as well.

        Returns when that is done, or with the refusal of a book that did not do it: then all is as
        it was before.
        """
        before, self.timeout_ms = self.timeout_ms, timeout_ms
        self._stop_renewing()
        replies = await asyncio.gather(*(self._asked(symbol) for symbol in self._batchers))
        refused = [reply for reply in replies if reply.startswith(REJECTED_PREFIX)]
        if self._is_lost:
            return None
        if refused:
            self.timeout_ms = before
            self._set_timers()
        elif timeout_ms:
            self._renew_later()
        return refused[0] if refused else None

    def before_order(self, symbol: str, batcher: Batcher) -> None:
        """An order is about to be submitted: there must be a timer for it."""
        self._batchers[symbol] = batcher
        set_at = self._set_at.get(symbol)
        fresh_s = self.timeout_ms / 1000 * FRESH_PART_MAX
        if set_at is None or self._loop.time() - set_at > fresh_s:
            self._set_timer(symbol)

    def lost(self) -> None:
        """The connection has ended without a farewell: its orders go.

        The timers run on until they are gone, lest a book that cannot do it now keeps them.
        """
        self._is_lost = True
        if self.timeout_ms:
            self.timeout_ms = 0
            self._stop_renewing()
            for symbol in self._batchers:
                self._cancel_all(symbol)

    # ---- timers

    def _set_timer(self, symbol: str, on_reply: OnReply | None = None) -> None:
        """Submits the timer of a book with the timeout as it is; 0 stops it."""
        self._set_at[symbol] = self._loop.time()
        self._on_their_way.add(symbol)
        command = f'{{"method":"cancel_all_after",{self._whose},"timeout_ms":"{self.timeout_ms}"}}'
        answered = partial(self._timer_set, symbol, on_reply)
        batcher = self._batchers[symbol]
        if self.timeout_ms:
            # However much the connection has sent: a late timer cancels its orders.
            batcher.submit(command.encode(), answered, self, Urgency.TIMER)
        else:
            batcher.submit(command.encode(), answered, self._peer, Urgency.CANCEL)

    def _timer_set(self, symbol: str, on_reply: OnReply | None, reply: bytes) -> None:
        self._on_their_way.discard(symbol)
        if reply.startswith(REJECTED_PREFIX):
            # Whether it runs is not known: the next order, or renewal, tries again.
            self._set_at.pop(symbol, None)
        if on_reply is not None:
            on_reply(reply)

    async def _asked(self, symbol: str) -> bytes:
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self._set_timer(symbol, reply.set_result)
        return await reply

    def _set_timers(self) -> None:
        for symbol in self._batchers:
            if symbol not in self._on_their_way:
                self._set_timer(symbol)
        if self.timeout_ms:
            self._renew_later()

    def _renew(self) -> None:
        """Sets the timers anew if the client is there: a line can break without a word."""
        if self._batchers:
            self._peer.ping()
        if self._peer.silent_s() <= self.timeout_ms / 1000 * SILENT_PART_MAX:
            self._set_timers()
        else:
            self._renew_later()

    def _renew_later(self) -> None:
        wait_s = self.timeout_ms / 1000 / RENEWALS_PER_TIMEOUT
        self._renewal = self._loop.call_later(wait_s, self._renew)

    def _stop_renewing(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()

    # ---- the end

    def _cancel_all(self, symbol: str) -> None:
        command = f'{{"method":"cancel_all_orders",{self._whose}}}'
        canceled = partial(self._canceled, symbol)
        self._batchers[symbol].submit(command.encode(), canceled, self._peer, Urgency.CANCEL)

    def _canceled(self, symbol: str, reply: bytes) -> None:
        if reply.startswith(REJECTED_PREFIX):
            return
        if _decode_canceled(reply).remaining_count:
            self._cancel_all(symbol)
        else:
            self._set_timer(symbol)
