"""One stream reader per process: from the books' streams to every subscriber, bytes as they are.

A stream entry's fields are topics and its values finished messages, so relaying is a lookup and a
send; nothing is parsed but the epoch. Entry ids count without gaps, so the reader knows at once
when it has missed something (the stream was trimmed, a server lost history) and then says so: a gap
message, a new snapshot, and on from there.

Every message names the epoch of its history, and no two histories of a book have one. Nothing of
one epoch is given to a subscriber that knows another: an entry, a page of history or a snapshot of
another epoch means gap and snapshot.

A subscription goes from history to live in one step that cannot be interrupted: it reads what it
missed until its cursor has reached the reader's position or what the reader still remembers, and is
attached in that same moment. So nothing is lost and nothing comes twice, whatever else happens. A
snapshot is only another way to get a cursor: the state at sequence S, then everything after S.

What the stream has not, `level3` and the checksums of `level2`, is added here as entries come in:
for a book with a subscriber to either, and for as long, a view of it is kept (levels.py).

Every host also keeps the books: twice a second it lets happen what is due in each (`tick`), and
asks for the half-second book of those that changed. The first to ask wins. It does so whether the
streams can be read or not.

One XREAD names the streams of many books, and fails whole where one of them cannot be read. Then
each is asked for alone, and the books that are refused are set aside: their subscribers are told,
the others go on, and every second it is tried again.
"""

import asyncio
import contextlib
import logging
import random
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import msgspec
from redis.exceptions import AskError, ClusterDownError, RedisError, ResponseError, TryAgainError

from orderbook.engine.engine import Engine
from orderbook.engine.errors import EngineError
from orderbook.engine.wire import RedisReply, Wire
from orderbook.feed.queries import Queries
from orderbook.feed.views import View, view_of, with_previous
from orderbook.messages import (
    REJECTED_PREFIX,
    Channel,
    Page,
    Position,
    PublishWait,
    Refusal,
    RejectCode,
    Ticked,
)

logger = logging.getLogger(__name__)

# Below the socket timeout, so that a quiet stream is not taken for a broken connection.
READ_BLOCK_MS = 1000
# A server looks for those who have waited long enough only now and then.
READ_INTERVAL_S_MAX = 1.5
# Books whose server has not been read for longer are in trouble.
STALLED_S_MAX = 5.0
# After a reading so long a pause, so that what comes close together is read at once: every reading
# costs the server, with every host.
GATHER_INTERVAL_S = 0.002
READ_ENTRIES_MAX = 256
HISTORY_ENTRIES_MAX = 128
# What the reader remembers of each book, to let subscriptions join without asking Redis.
RECENT_BYTES_MAX = 1024 * 1024
CHECK_INTERVAL_S = 1.0
# Less than a call may wait for a slot that is being moved.
CHECK_TIMEOUT_S = 2.0
START_TIMEOUT_S = 5.0
STOP_RETRY_S = 0.1
RETRY_INTERVAL_S = 0.5
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
KEEP_INTERVAL_S = 0.5
# Hosts wait a little differently long, so that mostly one of them asks for the next book.
KEEP_JITTER_S = 0.02
TRADES_IN_SNAPSHOT = 50
ORDERS_PER_PAGE = 1000
BOOK_LEVELS = "10"
# How many books one heartbeat tells of.
POSITIONS_MAX = 100
# How many entries are looked at for the last change of levels: first, and at most at a time.
LEVEL2_SEARCH_FIRST, LEVEL2_SEARCH_MAX = 4, 1024

_TROUBLE = (EngineError, RedisError, OSError)
# Refusals that concern every book of a group: its slot moves, or nobody has it.
_OF_ALL = (AskError, TryAgainError, ClusterDownError)
# What is read of each book: what happened, and the half-second book.
_STREAMS = (":events", ":book")
_LEVEL2, _DEEP_BOOK = b"level2", b"book:"
_find_epoch = re.compile(rb'"epoch":(\d+)').search
# Channels that are told by the half-second stream, or as often.
_HALF_SECOND = frozenset({Channel.BOOK, Channel.TICKER, Channel.CANDLES})
# Channels for which more is told than the stream has.
_VIEWED = frozenset({Channel.LEVEL2, Channel.LEVEL3})
_FULL_DEPTH = {Channel.LEVEL2: "get_book", Channel.LEVEL3: "get_level3"}

_decode_position = msgspec.json.Decoder(Position).decode
_decode_page = msgspec.json.Decoder(Page).decode
_decode_published = msgspec.json.Decoder(PublishWait).decode
_decode_ticked = msgspec.json.Decoder(Ticked).decode


class Subscriber(Protocol):
    """Who gets messages: a websocket. `send` and `send_newest` must not change subscriptions."""

    def send(self, message: bytes) -> None:
        """Takes a message that must arrive."""

    def send_newest(self, name: tuple[str, bytes], message: bytes) -> None:
        """Takes a book, ticker or candle, named by symbol and topic; one that is not gone yet when
        the next of its name comes may be left out."""

    async def ready(self) -> None:
        """Returns when there is room for more: for senders that can wait."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a subscription is for. No symbol: every instrument. `after` resumes a sequence of the
    history that `epoch` names."""

    channel: Channel
    symbol: str | None
    account: str = ""
    # The interval of candles, the depth of a book that is not the usual one.
    variant: str = ""
    after: int | None = None
    epoch: int | None = None

    @property
    def topic(self) -> bytes:
        variant = self.account if self.channel is Channel.ORDERS else self.variant
        if variant:
            return f"{self.channel}:{variant}".encode()
        return self.channel.encode()

    @property
    def depth(self) -> str:
        """Of a book that is not the usual one."""
        return self.variant if self.channel is Channel.BOOK else ""

    @property
    def is_newest(self) -> bool:
        """Whether each message is the whole truth: told twice a second, and no gap matters."""
        return self.channel in _HALF_SECOND


@dataclass(eq=False, slots=True)
class Subscription:
    """One subscriber on one topic of one book, or (without a symbol) one per book."""

    wanted: Wanted
    subscriber: Subscriber
    # The sequence up to which the subscriber knows everything.
    after: int = -1
    ended: bool = False
    # Whether every update reaches the subscriber as it is read.
    live: bool = False
    # The last level2 update that the subscriber was given, or where its knowledge begins.
    level2_sequence: int = 0
    task: asyncio.Task[None] | None = None
    parts: dict[str, "Subscription"] = field(default_factory=dict)

    def joined(self, task: asyncio.Task[None]) -> None:
        """Lets go of a task that has done its work: it is most of what a subscription weighs."""
        if self.task is task:
            self.task = None


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Messages that together are the state at a sequence."""

    messages: list[bytes]
    position: Position
    # Of level2: the last sequence up to it that changed levels.
    level2_sequence: int = 0


class _Book:
    """What the reader knows of one book."""

    def __init__(self, symbol: str, key: str) -> None:
        self.symbol = symbol
        self.key = key
        self.position = 0
        # Counts the histories: what was known of one is no beginning of another.
        self.generation = 0
        self.epoch: int | None = None
        # Set while the streams of this book are being read.
        self.attached = asyncio.Event()
        # Set while they are, or while the server refuses to read them: then `unreadable` says why.
        self.settled = asyncio.Event()
        self.unreadable = ""
        # Set while the instrument is listed.
        self.listed = asyncio.Event()
        self.listed.set()
        self.topics: dict[bytes, dict[Subscription, None]] = {}
        self.views: dict[Channel, View] = {}
        self.recent: deque[tuple[int, list[bytes]]] = deque()
        self.recent_bytes = 0
        self.book_id = b"0-0"
        self.book_sequence = 0
        # What the last entry of the half-second stream told, by topic.
        self.newest: dict[bytes, bytes] = {}
        # Topics of deeper books that are being read.
        self.reading: set[bytes] = set()
        self.changed_sequence = 0
        # Set when there is a change that no half-second book has yet.
        self.changed = asyncio.Event()
        # Why what is due could not be done the last time; empty where it could.
        self.trouble = ""
        # The oldest sequence known to be unread, and since when.
        self.unread: tuple[int, float] | None = None

    @property
    def defined(self) -> bool:
        return self.listed.is_set()

    def attach(self) -> None:
        self.unreadable = ""
        self.attached.set()
        self.settled.set()

    def detach(self) -> None:
        # What is read next tells again what is unread.
        self.unread = None
        self.attached.clear()
        if not self.unreadable:
            self.settled.clear()

    def set_aside(self, reason: str) -> None:
        self.attached.clear()
        self.unread, self.unreadable = None, reason
        self.settled.set()

    def trouble_now(self) -> str:
        """What is wrong with the book; empty where nothing is."""
        if not self.defined:
            return "the instrument is not listed any more"
        return self.trouble or self.unreadable

    def remember(self, sequence: int, fields: list[bytes]) -> None:
        self.recent.append((sequence, fields))
        self.recent_bytes += sum(map(len, fields))
        while self.recent_bytes > RECENT_BYTES_MAX and len(self.recent) > 1:
            _, forgotten = self.recent.popleft()
            self.recent_bytes -= sum(map(len, forgotten))

    def complete(self, sequence: int, fields: list[bytes]) -> tuple[list[bytes], list[Channel]]:
        """An entry with what the views add to it, and the channels whose view has come to its
        end."""
        ended = []
        for channel, view in self.views.items():
            try:
                completed = view.complete(sequence, fields)
            except Exception:
                # Our own mistake. What is published about the others must not suffer from it.
                logger.exception("the %s of %s begins again", channel, self.symbol)
                completed = None
            if completed is None:
                ended.append(channel)
            else:
                fields = completed
        return fields, ended

    def begin_view(self, channel: Channel, snapshot: _Snapshot) -> bool:
        """Begins the view of a channel and brings it to where the reader is, together with what is
        remembered since; False where that does not reach back to the snapshot."""
        view = view_of(channel, snapshot.messages[0], snapshot.level2_sequence)
        if view.since < self.position and not self.reaches_back_to(view.since + 1):
            return False
        for index, (sequence, fields) in enumerate(self.recent):
            if sequence <= view.since:
                continue
            completed = view.complete(sequence, fields)
            if completed is None:
                return False
            self.recent[index] = (sequence, completed)
            self.recent_bytes += sum(map(len, completed)) - sum(map(len, fields))
        self.views[channel] = view
        return True

    def forget(self) -> None:
        self.recent.clear()
        self.recent_bytes = 0

    def reaches_back_to(self, sequence: int) -> bool:
        return bool(self.recent) and self.recent[0][0] <= sequence

    def position_json(self) -> bytes:
        told = f'{{"symbol":"{self.symbol}","sequence":{self.position},"epoch":{self.epoch}}}'
        return told.encode()

    def is_published(self) -> bool:
        """Whether a half-second book is out that has every change we saw."""
        return self.changed_sequence <= self.book_sequence


class _Group:
    """Books whose streams one XREAD can name: all of a server, or a segment of a cluster."""

    def __init__(self) -> None:
        self.books: dict[str, _Book] = {}
        self.to_attach: set[_Book] = set()
        self.changed = asyncio.Event()
        self.connection_id: int | None = None
        self.task: asyncio.Task[None] | None = None
        # When the last reading ended, with entries or without.
        self.read_at_s = asyncio.get_running_loop().time()

    def stalled_s(self) -> float:
        """For how much longer than it may take no reading has ended."""
        waited_s = asyncio.get_running_loop().time() - self.read_at_s
        return max(0.0, waited_s - READ_INTERVAL_S_MAX)

    def attached(self) -> list[_Book]:
        return [book for book in self.books.values() if book.attached.is_set()]


def _same(message: bytes) -> bytes:
    return message


def _not_observed(_channel: str, _count: int) -> None:
    pass


class Feed:
    """The streams of every book, from where they stand now. Use start() and stop().

    `encode` turns a message into what subscribers are given; it is called once for each message.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        encode: Callable[[bytes], bytes] = _same,
        observe_sent: Callable[[str, int], None] = _not_observed,
        queries: Queries | None = None,
    ) -> None:
        self._engine = engine
        self._queries = queries or Queries(engine)
        self._encode = encode
        self._observe_sent = observe_sent
        self._books: dict[str, _Book] = {}
        self._groups: dict[str, _Group] = {}
        self._catalogs: dict[Subscription, None] = {}
        self._flights: dict[Wanted, asyncio.Task[_Snapshot]] = {}
        self._discovery: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._checked_at = 0.0

    async def start(self) -> None:
        """Returns when the books there are now are being read. Raises EngineError."""
        await self._discover()
        waits = [self._spawn(book.settled.wait()) for book in self._books.values()]
        if waits:
            # A book that cannot be read must not keep the others from being served.
            await asyncio.wait(waits, timeout=START_TIMEOUT_S)
        self._spawn(self._check_forever())

    async def stop(self) -> None:
        """Ends every task."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Until Python 3.12, wait_for where redis-py connects can swallow a cancellation.
            await asyncio.wait(self._tasks, timeout=STOP_RETRY_S)

    async def knows(self, symbol: str) -> bool:
        """Whether there is such an instrument, asking Redis about one that is new."""
        if not self._is_defined(symbol):
            if self._discovery is None:
                self._discovery = self._spawn(self._discover())
                self._discovery.add_done_callback(self._discovery_done)
            await asyncio.shield(self._discovery)
        return self._is_defined(symbol)

    def _is_defined(self, symbol: str) -> bool:
        book = self._books.get(symbol)
        return book is not None and book.defined

    def _discovery_done(self, task: asyncio.Task[None]) -> None:
        self._discovery = None
        if not task.cancelled():
            task.exception()

    def lag_s(self) -> float:
        """For how long the oldest entry known to be unread has waited, or a server has not been
        read; 0 when all is read."""
        stalls = [group.stalled_s() for group in self._groups.values()]
        return max([self.behind_s(), *stalls])

    def behind_s(self) -> float:
        """The same of the servers that can be read."""
        now = asyncio.get_running_loop().time()
        since = [book.unread[1] for book in self._books.values() if book.unread is not None]
        # A server that does not answer hides what is unread.
        unseen = now - self._checked_at - CHECK_INTERVAL_S
        return max([now - moment for moment in since] + [unseen, 0.0])

    def positions(self, subscriptions: Iterable[Subscription], turn: int) -> list[bytes]:
        """For each book of these subscriptions, as JSON: the sequence up to which they have been
        given everything. None of a book of which one is not live. Of many books the next
        POSITIONS_MAX, turn by turn."""
        whole: dict[str, bool] = {}
        for subscription in subscriptions:
            symbol = subscription.wanted.symbol
            if symbol is not None:
                is_up_to_date = subscription.live and (
                    subscription.wanted.is_newest
                    or subscription.after <= self._books[symbol].position
                )
                whole[symbol] = whole.get(symbol, True) and is_up_to_date
        symbols = [symbol for symbol, is_whole in whole.items() if is_whole]
        if len(symbols) > POSITIONS_MAX:
            start = turn * POSITIONS_MAX % len(symbols)
            symbols = (symbols + symbols)[start : start + POSITIONS_MAX]
        return [self._books[symbol].position_json() for symbol in symbols]

    def troubled_books(self) -> dict[str, str]:
        """By symbol, why what is due could not be done the last time, or the streams cannot be
        read; none of a book in order."""
        found = {symbol: book.trouble_now() for symbol, book in self._books.items()}
        for group in self._groups.values():
            stalled_s = group.stalled_s()
            if stalled_s > STALLED_S_MAX:
                text = f"its streams have not been read for {stalled_s:.0f} s"
                found |= {symbol: text for symbol in group.books if not found[symbol]}
        return {symbol: trouble for symbol, trouble in found.items() if trouble}

    def unreadable_books_count(self) -> int:
        """The streams of how many books cannot be read."""
        return sum(1 for book in self._books.values() if book.defined and book.unreadable)

    def books_in_order(self) -> list[str]:
        """The symbols of all other books."""
        return sorted(self._books.keys() - self.troubled_books().keys())

    # ---- subscriptions

    def subscribe(self, wanted: Wanted, subscriber: Subscriber) -> Subscription:
        """Starts a subscription to a known symbol: its snapshot or history, then every update."""
        subscription = Subscription(wanted, subscriber, level2_sequence=wanted.after or 0)
        if wanted.symbol is not None:
            self._begin(subscription, wanted.after)
            return subscription
        self._catalogs[subscription] = None
        for book in self._books.values():
            if book.defined:
                self._begin_part(subscription, book)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription: nothing is sent for it from now on."""
        subscription.ended = True
        self._catalogs.pop(subscription, None)
        for part in subscription.parts.values():
            self.unsubscribe(part)
        if subscription.task is not None:
            subscription.task.cancel()
        if subscription.wanted.symbol is not None:
            self._detach(self._books[subscription.wanted.symbol], subscription)

    def _begin_part(self, catalog: Subscription, book: _Book) -> None:
        if book.symbol not in catalog.parts:
            wanted = Wanted(catalog.wanted.channel, book.symbol)
            catalog.parts[book.symbol] = self.subscribe(wanted, catalog.subscriber)

    def _begin(
        self, subscription: Subscription, cursor: int | None, lost_after: int | None = None
    ) -> None:
        subscription.live = False
        subscription.task = self._spawn(self._join(subscription, cursor, lost_after))
        subscription.task.add_done_callback(subscription.joined)

    def _detach(self, book: _Book, subscription: Subscription) -> None:
        subscribers = book.topics.get(subscription.wanted.topic)
        if subscribers is not None:
            subscribers.pop(subscription, None)
            if not subscribers:
                del book.topics[subscription.wanted.topic]
        if subscription.wanted.channel in _VIEWED and not subscribers:
            book.views.pop(subscription.wanted.channel, None)

    async def _join(
        self, subscription: Subscription, cursor: int | None, lost_after: int | None
    ) -> None:
        """Brings a subscription to the present.

        It knows everything up to `cursor`; where that is None it knows nothing, or nothing any
        more since `lost_after`.
        """
        book = self._books[subscription.wanted.symbol or ""]
        unchecked = cursor is not None
        generation: int | None = None
        # Not left to cancellation alone, which what we wait for may swallow.
        while not subscription.ended:
            await self._until_read(book, subscription)
            try:
                if cursor is not None and generation not in {None, book.generation}:
                    cursor, lost_after = None, cursor
                generation = book.generation
                if unchecked and cursor is not None:
                    if not await self._is_continued(book, subscription.wanted, cursor):
                        cursor, lost_after = None, cursor
                    unchecked = False
                cursor, snapshot = await self._begun(book, subscription, cursor, lost_after)
                if generation != book.generation or subscription.ended:
                    continue
                if self._attach(book, subscription, cursor, snapshot):
                    return
                reached = await self._send_history(book, subscription, cursor)
            except _TROUBLE as error:
                logger.debug("a subscription to %s has to wait: %s", book.symbol, error)
                await asyncio.sleep(RETRY_INTERVAL_S)
                continue
            if reached is None:
                lost_after = cursor
            cursor = reached

    async def _until_read(self, book: _Book, subscription: Subscription) -> None:
        """Returns when the streams of the book are read; tells it where they cannot be."""
        if book.attached.is_set():
            return
        await book.settled.wait()
        if book.unreadable:
            self._give(subscription, _unreadable(subscription.wanted))
        await book.attached.wait()

    async def _begun(
        self, book: _Book, subscription: Subscription, cursor: int | None, lost_after: int | None
    ) -> tuple[int, _Snapshot | None]:
        """The cursor to go on from, and a snapshot. One who knows nothing is sent it; one who
        resumes is not, and there is one only for a view that is still to be begun."""
        if cursor is None:
            snapshot = await self._send_snapshot(subscription, lost_after)
            subscription.level2_sequence = snapshot.position.sequence
            return snapshot.position.sequence, snapshot
        channel = subscription.wanted.channel
        if channel in _VIEWED and channel not in book.views:
            return cursor, await self._snapshot_of_epoch(subscription)
        return cursor, None

    async def _is_continued(self, book: _Book, wanted: Wanted, after: int) -> bool:
        """Whether the history a client knows is the beginning of ours."""
        if wanted.epoch != book.epoch:
            return False
        if after <= book.position:
            return True
        state = await self._position(book)
        return state.epoch == wanted.epoch and after <= state.sequence

    def _attach(
        self, book: _Book, subscription: Subscription, cursor: int, snapshot: _Snapshot | None
    ) -> bool:
        """Makes a subscription live if nothing lies between its cursor and the reader.

        Never waits: what is true when it begins is true when it ends.
        """
        if not book.attached.is_set():
            return False
        channel = subscription.wanted.channel
        if channel in _VIEWED and not self._is_viewed(book, channel, cursor, snapshot):
            return False
        is_newest = subscription.wanted.is_newest
        message = book.newest.get(subscription.wanted.topic)
        if is_newest and book.book_sequence > cursor and message:
            self._give(subscription, message)
            cursor = book.book_sequence
        if not is_newest and cursor < book.position:
            if not book.reaches_back_to(cursor + 1):
                return False
            for sequence, fields in book.recent:
                if sequence > cursor:
                    self._give_from_entry(subscription, sequence, fields)
        subscription.after = cursor if is_newest else max(cursor, book.position)
        book.topics.setdefault(subscription.wanted.topic, {})[subscription] = None
        subscription.live = True
        return True

    def _is_viewed(
        self, book: _Book, channel: Channel, cursor: int, snapshot: _Snapshot | None
    ) -> bool:
        """Whether the channel's view tells everything after the cursor; there is one from here on
        where the snapshot can begin it."""
        if channel not in book.views and not (snapshot and book.begin_view(channel, snapshot)):
            return False
        # Levels change in the stream itself: only their checksums are missing before the view.
        return channel is Channel.LEVEL2 or cursor >= book.views[channel].since

    def _give_from_entry(
        self, subscription: Subscription, sequence: int, fields: list[bytes]
    ) -> None:
        topic = subscription.wanted.topic
        for name, message in _pairs(fields):
            if name == _LEVEL2 == topic:
                previous, subscription.level2_sequence = subscription.level2_sequence, sequence
                self._give(subscription, with_previous(message, previous))
            elif name == topic:
                self._give(subscription, message)

    def _give(self, subscription: Subscription, message: bytes) -> None:
        if subscription.ended:
            return
        encoded = self._encode(message)
        wanted = subscription.wanted
        if wanted.is_newest:
            subscription.subscriber.send_newest((wanted.symbol or "", wanted.topic), encoded)
        else:
            subscription.subscriber.send(encoded)
        self._observe_sent(wanted.channel, 1)

    async def _send_history(
        self, book: _Book, subscription: Subscription, cursor: int
    ) -> int | None:
        """Sends a page of the stream after the cursor; the new cursor, or None where it is gone."""
        if subscription.wanted.channel is Channel.LEVEL3:
            # The stream does not have it; what the reader remembers is all there is.
            return None
        first_id = f"{cursor + 1}-0"
        entries = await self._engine.read_stream(
            book.symbol, "XRANGE", book.key + ":events", first_id, "+", "COUNT", HISTORY_ENTRIES_MAX
        )
        for entry_id, fields in entries:
            sequence = _sequence(entry_id)
            if sequence != cursor + 1 or _epoch(fields) != book.epoch:
                return None
            cursor = sequence
            self._give_from_entry(subscription, sequence, fields)
            await subscription.subscriber.ready()
        if not entries and book.attached.is_set() and cursor < book.position:
            return None
        return cursor

    # ---- snapshots

    async def _send_snapshot(self, subscription: Subscription, lost_after: int | None) -> _Snapshot:
        """Sends the state, after a gap message where something was lost."""
        await subscription.subscriber.ready()
        snapshot = await self._snapshot_of_epoch(subscription)
        if lost_after is not None and not subscription.wanted.is_newest:
            self._give(subscription, _gap(subscription.wanted, lost_after, snapshot.position))
        for message in snapshot.messages:
            self._give(subscription, message)
        return snapshot

    async def _snapshot_of_epoch(self, subscription: Subscription) -> _Snapshot:
        """The state of a channel, of the history that the reader reads. Raises EngineError."""
        wanted = subscription.wanted
        snapshot = await self._snapshot(wanted, subscription.subscriber)
        if snapshot.position.epoch != self._books[wanted.symbol or ""].epoch:
            raise EngineError(RejectCode.UNAVAILABLE, "the reader has not come to this epoch")
        return snapshot

    async def _snapshot(self, wanted: Wanted, owner: object) -> _Snapshot:
        """The state of a channel; those who ask while it is being read share the answer, and it is
        read when it is the turn of the first of them."""
        same = Wanted(wanted.channel, wanted.symbol, wanted.account, wanted.variant)
        flight = self._flights.get(same)
        if flight is None:
            flight = self._spawn(self._read_snapshot(same, owner))
            self._flights[same] = flight
            flight.add_done_callback(lambda task: self._flight_done(same, task))
        return await asyncio.shield(flight)

    def _flight_done(self, wanted: Wanted, task: asyncio.Task[_Snapshot]) -> None:
        del self._flights[wanted]
        if not task.cancelled():
            # Whoever waited has been told; nobody may be left to wait.
            task.exception()

    async def _read_snapshot(self, wanted: Wanted, owner: object) -> _Snapshot:
        ask = partial(self._query, owner)
        symbol, channel = wanted.symbol or "", wanted.channel
        if channel is Channel.ORDERS:
            return await self._read_orders(symbol, wanted.account, owner)
        if channel is Channel.INSTRUMENTS:
            reply = await ask("get_instrument", symbol)
            position = _decode_position(reply)
            head = _message_head(channel, symbol, "snapshot", position)
            return _Snapshot([head + b',"instrument":' + reply + b"}"], position)
        if channel is Channel.TRADES:
            reply = await ask("get_trades", symbol, "limit", str(TRADES_IN_SNAPSHOT))
        elif channel is Channel.BOOK:
            reply = await ask("get_book", symbol, "depth", wanted.variant or BOOK_LEVELS)
        elif channel is Channel.TICKER:
            reply = await ask("get_ticker", symbol)
        elif channel is Channel.CANDLES:
            reply = await ask("get_candles", symbol, "interval", wanted.variant)
        else:
            reply = await ask(_FULL_DEPTH[channel], symbol, "depth", "full")
        position, level2_sequence = _decode_position(reply), 0
        if channel is Channel.LEVEL2:
            level2_sequence = await self._level2_sequence(symbol, position.sequence)
        message = _as_snapshot(channel, reply, wanted.depth)
        return _Snapshot([message], position, level2_sequence)

    async def _level2_sequence(self, symbol: str, sequence: int) -> int:
        """The last sequence, up to this one, that changed levels."""
        name, count = self._books[symbol].key + ":events", LEVEL2_SEARCH_FIRST
        while sequence > 0:
            page = (f"{sequence}-0", "-", "COUNT", count)
            entries = await self._engine.read_stream(symbol, "XREVRANGE", name, *page)
            for entry_id, fields in entries:
                if _LEVEL2 in fields[::2]:
                    return _sequence(entry_id)
            if not entries:
                # What was before has been trimmed: a client that knows no more gets a gap.
                return sequence
            sequence = _sequence(entries[-1][0]) - 1
            count = min(4 * count, LEVEL2_SEARCH_MAX)
        return 0

    async def _read_orders(self, symbol: str, account: str, owner: object) -> _Snapshot:
        """Page by page. The first page's sequence counts: what changed while the others were read
        comes again as updates, which tell an order's whole state and so do no harm."""
        messages: list[bytes] = []
        first: Position | None = None
        after: list[str] = []
        while True:
            arguments = ["account", account, "limit", str(ORDERS_PER_PAGE), *after]
            reply = await self._query(owner, "get_open_orders", symbol, *arguments)
            page = _decode_page(reply)
            messages.append(_as_snapshot(Channel.ORDERS, reply))
            first = first or Position(page.sequence, page.epoch)
            if not page.more:
                return _Snapshot(messages, first)
            after = ["after", page.orders[-1].order_id]

    async def _position(self, book: _Book) -> Position:
        """Not by turns: what is looked at each second must not wait for clients."""
        reply = await self._engine.query("get_instrument", book.symbol)
        return _decode_position(_unless_gone(reply))

    async def _query(self, owner: object, function: str, symbol: str, *arguments: str) -> bytes:
        return _unless_gone(await self._queries.ask(owner, function, symbol, *arguments))

    # ---- discovery

    async def _check_forever(self) -> None:
        """Once a second: new instruments, lost history, how far behind the reader is."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                await self._discover()
                # Side by side: a segment whose slot is being moved keeps no other waiting.
                checks = [self._try_to_check_all(group) for group in self._groups.values()]
                await asyncio.gather(*checks)
            except _TROUBLE as error:
                logger.warning("the books cannot be checked: %s", error)
            except Exception:
                logger.exception("a check failed")

    async def _try_to_check_all(self, group: _Group) -> None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                for book in list(group.books.values()):
                    if book.defined:
                        await self._try_to_check(book)
        except TimeoutError:
            logger.warning("the books of %s are not all checked in time", min(group.books))

    async def _try_to_check(self, book: _Book) -> None:
        try:
            await self._check(book)
        except EngineError as error:
            logger.warning("the book of %s cannot be checked: %s", book.symbol, error)
            # Where the server does not answer there is no use in trying the other books.
            await self._engine.ping()

    async def _discover(self) -> None:
        instruments = await self._engine.begin_epochs()
        self._checked_at = asyncio.get_running_loop().time()
        for symbol in instruments:
            book = self._books.get(symbol)
            if book is None:
                self._add(symbol)
            elif book.key != self._engine.book_key(symbol):
                self._move(book)
            elif not book.attached.is_set():
                book.listed.set()
                self._request_attach(book)
        for symbol in self._books.keys() - instruments.keys():
            book = self._books[symbol]
            book.listed.clear()
            book.detach()

    def _add(self, symbol: str) -> None:
        book = _Book(symbol, self._engine.book_key(symbol))
        self._books[symbol] = book
        self._put_in_group(book)
        self._spawn(self._keep(book))
        for catalog in self._catalogs:
            self._begin_part(catalog, book)

    def _move(self, book: _Book) -> None:
        """A book that has vanished and was defined again in another segment: it is another history
        under the same symbol, for the same subscribers."""
        name, group = next(
            (name, group) for name, group in self._groups.items() if book in group.books.values()
        )
        del group.books[book.symbol]
        group.to_attach.discard(book)
        book.detach()
        book.key = self._engine.book_key(book.symbol)
        book.listed.set()
        self._put_in_group(book)
        if not group.books and group.task is not None:
            group.task.cancel()
            del self._groups[name]

    def _put_in_group(self, book: _Book) -> None:
        """Has the streams of a book read together with those of its server or segment."""
        name = (self._engine.segment(book.symbol) or "") if self._engine.is_cluster else ""
        if name not in self._groups:
            self._groups[name] = _Group()
            self._groups[name].task = self._spawn(self._read_forever(self._groups[name]))
        self._groups[name].books[book.symbol] = book
        self._request_attach(book)

    def _group_of(self, book: _Book) -> _Group:
        return next(group for group in self._groups.values() if book in group.books.values())

    def _request_attach(self, book: _Book) -> None:
        group = self._group_of(book)
        group.to_attach.add(book)
        group.changed.set()
        if group.connection_id is not None:
            self._spawn(self._wake(group, book))

    async def _wake(self, group: _Group, book: _Book) -> None:
        """Ends the reader's wait for entries: it is to name another book in its next XREAD."""
        with contextlib.suppress(*_TROUBLE):
            connection_id = group.connection_id or 0
            await self._engine.read_stream(book.symbol, "CLIENT", "UNBLOCK", connection_id)

    async def _check(self, book: _Book) -> None:
        """Compares where the book is with where we are."""
        position_before = book.position
        try:
            state = await self._position(book)
        except _GoneError:
            book.detach()
            return
        if not book.attached.is_set():
            return
        behind = state.sequence > book.position
        if state.sequence < position_before or (not behind and state.epoch != book.epoch):
            # A shorter or another history than the one we read: look where it stands now.
            book.detach()
            self._request_attach(book)
        if not behind:
            book.unread = None
        elif book.unread is None:
            book.unread = (state.sequence, asyncio.get_running_loop().time())

    # ---- reading

    async def _read_forever(self, group: _Group) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                async with self._wire(group) as wire:
                    group.to_attach.update(book for book in group.books.values() if book.defined)
                    while True:
                        await self._attach_waiting(group)
                        has_read = await self._read_once(group, wire)
                        group.read_at_s = asyncio.get_running_loop().time()
                        if has_read:
                            await asyncio.sleep(GATHER_INTERVAL_S)
                        backoff_s = BACKOFF_FIRST_S
            except _TROUBLE as error:
                logger.warning("the streams cannot be read: %r", error)
            except Exception:
                # Our own mistake. It must not leave every subscriber waiting for ever.
                logger.exception("the reader failed and begins again")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    @contextlib.asynccontextmanager
    async def _wire(self, group: _Group) -> AsyncIterator[Wire]:
        """A wire of the group's own, so that waiting for entries blocks nobody else."""
        wire = await self._engine.open_reader(next(iter(group.books)))
        try:
            group.connection_id = await wire.call("CLIENT", "ID")
            yield wire
        finally:
            group.connection_id = None
            for book in group.books.values():
                book.detach()
            wire.close()
            await wire.wait_closed()

    async def _attach_waiting(self, group: _Group) -> None:
        group.changed.clear()
        waiting, group.to_attach = group.to_attach, set()
        for book in waiting:
            try:
                await self._attach_book(book)
            except _GoneError:
                logger.info("the book of %s is gone", book.symbol)
            except EngineError as error:
                if not _is_of_one_book(error):
                    raise
                self._set_aside(book, error)

    def _set_aside(self, book: _Book, error: EngineError) -> None:
        """Leaves a book out whose streams the server refuses to read. Its subscribers are told, and
        begin again when they can be read."""
        was_read, reason = not book.unreadable, str(error)
        if reason != book.unreadable:
            logger.warning("the streams of %s cannot be read: %s", book.symbol, reason)
        book.set_aside(reason)
        if was_read:
            self._begin_again(book, book.position)

    async def _set_unreadable_aside(self, books: Iterable[_Book]) -> bool:
        """Asks for the streams of each book alone; whether any is set aside."""
        found = await asyncio.gather(*map(self._reading_error, books))
        return any(found)

    async def _reading_error(self, book: _Book) -> EngineError | None:
        """Why the streams of a book, other than all, cannot be read; it is set aside then."""
        try:
            for stream in _STREAMS:
                await self._newest(book, stream)
        except EngineError as error:
            if _is_of_one_book(error):
                self._set_aside(book, error)
                return error
        return None

    async def _attach_book(self, book: _Book) -> None:
        """Finds out whether the book's stream continues what was read of it before."""
        books, state, last_sequence = await self._standing(book)
        if state.epoch == book.epoch and last_sequence < book.position:
            # The end of the history is lost, and no command has begun the new epoch yet.
            await self._begin_epoch(book)
            books, state, last_sequence = await self._standing(book)
        first_time = book.epoch is None
        lost = book.epoch != state.epoch or last_sequence < book.position
        book.epoch = state.epoch
        if lost:
            before, book.position = book.position, last_sequence
            book.changed_sequence = 0
            book.book_id, book.book_sequence, book.newest = b"0-0", 0, {}
            for entry_id, fields in books:
                book.book_id, book.book_sequence = entry_id, _sequence(entry_id)
                book.newest = dict(_pairs(fields)) if _epoch(fields) == state.epoch else {}
        book.unread = None
        book.attach()
        if lost and not first_time:
            self._begin_again(book, before)
        self._changed(book, last_sequence)

    async def _standing(self, book: _Book) -> tuple[RedisReply, Position, int]:
        """The newest entry of the half-second stream, the position, and the last sequence."""
        events, books = [await self._newest(book, stream) for stream in _STREAMS]
        state = await self._position(book)
        # Where the book changed in between, the state read last counts.
        is_known = events and _epoch(events[0][1]) == state.epoch
        return books, state, _sequence(events[0][0]) if is_known else state.sequence

    async def _begin_epoch(self, book: _Book) -> None:
        """A damaged book stands still: it begins none."""
        try:
            await self._engine.begin_epoch(book.symbol)
        except EngineError as error:
            logger.warning("no new epoch for %s: %s", book.symbol, error)

    async def _newest(self, book: _Book, stream: str) -> RedisReply:
        name = book.key + stream
        return await self._engine.read_stream(book.symbol, "XREVRANGE", name, "+", "-", "COUNT", 1)

    async def _read_once(self, group: _Group, wire: Wire) -> bool:
        """Waits for entries and relays them; whether any came."""
        books = group.attached()
        if not books:
            # Nothing to read; a defined book that cannot be read yet is tried again.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(group.changed.wait(), CHECK_INTERVAL_S)
            return False
        streams = {f"{book.key}{stream}".encode(): book for book in books for stream in _STREAMS}
        ids = [name for book in books for name in (b"%d-0" % book.position, book.book_id)]
        waiting = ("XREAD", "COUNT", READ_ENTRIES_MAX, "BLOCK", READ_BLOCK_MS, "STREAMS")
        try:
            answered = await wire.call(*waiting, *streams, *ids) or ()
        except ResponseError as error:
            if isinstance(error, _OF_ALL) or not await self._set_unreadable_aside(books):
                raise
            return False
        for name, entries in answered:
            relay = self._relay_book if name.endswith(b":book") else self._relay_events
            for entry_id, fields in entries:
                relay(streams[name], entry_id, fields)
        return bool(answered)

    def _relay_events(self, book: _Book, entry_id: bytes, fields: list[bytes]) -> None:
        sequence = _sequence(entry_id)
        if not book.attached.is_set() or sequence <= book.position:
            return
        before, book.position = book.position, sequence
        epoch = _epoch(fields)
        if epoch != book.epoch:
            book.epoch, book.newest = epoch, {}
            self._begin_again(book, before)
        elif sequence != before + 1:
            self._skip(book, before, sequence)
            self._changed(book, sequence)
        if book.views:
            fields, ended = book.complete(sequence, fields)
            for channel in ended:
                self._begin_topic_again(book, channel, before)
        book.remember(sequence, fields)
        for topic, message in _pairs(fields):
            if topic == _LEVEL2:
                self._changed(book, sequence)
            subscribers = book.topics.get(topic)
            if subscribers:
                self._relay(sequence, message, subscribers)
        if book.unread is not None and sequence >= book.unread[0]:
            book.unread = None

    def _relay(self, sequence: int, message: bytes, subscribers: dict[Subscription, None]) -> None:
        encoded = self._encode(message)
        channel = next(iter(subscribers)).wanted.channel
        for subscription in subscribers:
            if sequence > subscription.after:
                try:
                    subscription.subscriber.send(encoded)
                except Exception:
                    logger.exception("a message could not be given to a subscriber")
        self._observe_sent(channel, len(subscribers))

    def _relay_book(self, book: _Book, entry_id: bytes, fields: list[bytes]) -> None:
        if not book.attached.is_set():
            return
        sequence = _sequence(entry_id)
        book.book_id, book.book_sequence, book.newest = entry_id, sequence, dict(_pairs(fields))
        for topic, message in book.newest.items():
            self._relay_newest(book, topic, sequence, message)
        for topic in book.topics.keys() - book.reading:
            if topic.startswith(_DEEP_BOOK):
                book.reading.add(topic)
                self._spawn(self._read_deep_book(book, topic))

    def _relay_newest(self, book: _Book, topic: bytes, sequence: int, message: bytes) -> None:
        subscribers = book.topics.get(topic)
        if not subscribers:
            return
        encoded, name = self._encode(message), (book.symbol, topic)
        for subscription in subscribers:
            if sequence > subscription.after:
                try:
                    subscription.subscriber.send_newest(name, encoded)
                except Exception:
                    logger.exception("a book could not be given to a subscriber")
        channel = next(iter(subscribers)).wanted.channel
        self._observe_sent(channel, len(subscribers))

    async def _read_deep_book(self, book: _Book, topic: bytes) -> None:
        """Reads a book of more levels than the stream has, once for all its subscribers, until it
        is as new as the stream."""
        wanted = Wanted(Channel.BOOK, book.symbol, variant=topic.partition(b":")[2].decode())
        try:
            sequence = -1
            while sequence < book.book_sequence and book.topics.get(topic):
                snapshot = await self._snapshot(wanted, self)
                sequence = snapshot.position.sequence
                self._relay_newest(book, topic, sequence, snapshot.messages[0])
        except EngineError as error:
            logger.warning("the book of %s could not be read: %s", book.symbol, error)
        finally:
            book.reading.discard(topic)

    def _begin_again(self, book: _Book, before: int) -> None:
        """It is another history from here on: every subscription gets a gap and a snapshot."""
        book.generation += 1
        self._skip(book, before, sys.maxsize)

    def _skip(self, book: _Book, before: int, goes_on_at: int) -> None:
        """History has a hole after `before`, up to the entry `goes_on_at`: every subscription that
        does not know what was in it gets a gap and a snapshot."""
        book.forget()
        topics, book.topics = book.topics, {}
        book.views.clear()
        for topic, subscribers in topics.items():
            for subscription in subscribers:
                is_viewed = subscription.wanted.channel in _VIEWED
                if subscription.after >= goes_on_at - 1 and not is_viewed:
                    book.topics.setdefault(topic, {})[subscription] = None
                else:
                    self._begin(subscription, None, before)

    def _begin_topic_again(self, book: _Book, channel: Channel, before: int) -> None:
        """The same for the subscribers to a channel whose view has come to its end."""
        del book.views[channel]
        for subscription in book.topics.pop(channel.encode(), {}):
            self._begin(subscription, None, before)

    # ---- what is due, and the half-second book

    def _changed(self, book: _Book, sequence: int) -> None:
        book.changed_sequence = max(book.changed_sequence, sequence)
        if not book.is_published():
            book.changed.set()

    async def _keep(self, book: _Book) -> None:
        """Keeps one book for as long as there is it; only the first change after a quiet time is
        published sooner than at the next interval."""
        trouble_wait_s = KEEP_INTERVAL_S
        while True:
            await book.listed.wait()
            try:
                wait_s = await self._keep_once(book)
                book.trouble, trouble_wait_s = "", KEEP_INTERVAL_S
            except _TROUBLE as error:
                self._note_trouble(book, error)
                # A server that does not answer is asked less often.
                wait_s = trouble_wait_s
                trouble_wait_s = min(2 * trouble_wait_s, BACKOFF_MAX_S)
            except Exception:
                # Our own mistake. It must not leave orders to live on that have expired.
                logger.exception("the book of %s could not be kept", book.symbol)
                wait_s = KEEP_INTERVAL_S
            await self._rest(book, wait_s + random.random() * KEEP_JITTER_S)

    def _note_trouble(self, book: _Book, error: Exception) -> None:
        """Warns of a book that cannot be kept, once for each reason. Where the server does not
        answer the reader says so, once for all books."""
        trouble = str(error)
        if trouble != book.trouble:
            is_its_own = isinstance(error, _GoneError) or _is_of_one_book(error)
            level = logging.WARNING if is_its_own else logging.DEBUG
            logger.log(level, "what is due in %s has to wait: %s", book.symbol, trouble)
        book.trouble = trouble

    async def _keep_once(self, book: _Book) -> float:
        """Does what is due, then publishes what has changed; how long to wait for the next time."""
        while _decode_ticked(await self._ask("tick", book)).pending:
            pass
        if book.is_published():
            return KEEP_INTERVAL_S
        return _decode_published(await self._ask("publish_book", book)).wait_ms / 1000

    async def _rest(self, book: _Book, wait_s: float) -> None:
        if not book.is_published():
            await asyncio.sleep(wait_s)
            return
        book.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await book.changed.wait()

    async def _ask(self, function: str, book: _Book) -> bytes:
        reply = await self._engine.call(function, book.symbol)
        if reply.startswith(REJECTED_PREFIX):
            raise _gone(reply)
        return reply

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _GoneError(EngineError):
    """The book does not exist any more."""


def _unless_gone(reply: bytes) -> bytes:
    """The reply of a query, where it is no refusal."""
    if reply.startswith(REJECTED_PREFIX):
        raise _gone(reply)
    return reply


def _gone(reply: bytes) -> _GoneError:
    refusal = msgspec.json.decode(reply, type=Refusal)
    if refusal.code == RejectCode.UNKNOWN_SYMBOL:
        message = "the instrument is listed, but the key of its book is missing"
        return _GoneError(RejectCode.UNKNOWN_SYMBOL, message)
    return _GoneError(RejectCode.UNKNOWN_SYMBOL, f"{refusal.code}: {refusal.message}")


def _is_of_one_book(error: Exception) -> bool:
    """Whether a server that answers refuses this: other books may fare better."""
    cause = error.__cause__
    return isinstance(cause, ResponseError) and not isinstance(cause, _OF_ALL)


def _sequence(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _epoch(fields: list[bytes]) -> int:
    """The epoch of an entry: each message has it near its beginning, before anything that a client
    may choose. 0 of an entry that is not the library's."""
    found = _find_epoch(fields[1])
    return int(found[1]) if found else 0


def _pairs(fields: list[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """An entry's topics and messages."""
    return zip(fields[::2], fields[1::2], strict=True)


def _as_snapshot(channel: Channel, reply: bytes, depth: str = "") -> bytes:
    """A query's reply as the first message of a channel, or of a book's depth."""
    of_depth = f',"depth":"{depth}"' if depth else ""
    return f'{{"channel":"{channel}","type":"snapshot"{of_depth},'.encode() + reply[1:]


def _message_head(channel: Channel, symbol: str, kind: str, position: Position) -> bytes:
    head = f'{{"channel":"{channel}","symbol":"{symbol}","type":"{kind}"'
    return f'{head},"sequence":{position.sequence},"epoch":{position.epoch}'.encode()


def _unreadable(wanted: Wanted) -> bytes:
    """Says that nothing can be told of this book at present."""
    return (
        f'{{"channel":"{wanted.channel}","symbol":"{wanted.symbol}","type":"error",'
        f'"code":"{RejectCode.UNAVAILABLE}","message":"the book cannot be followed at present: '
        'it goes on by itself, with a snapshot"}'
    ).encode()


def _gap(wanted: Wanted, after: int, position: Position) -> bytes:
    """Says that updates between `after` and the snapshot that follows are not to be had."""
    head = _message_head(wanted.channel, wanted.symbol or "", "gap", position)
    return head + b',"after":%d}' % after
