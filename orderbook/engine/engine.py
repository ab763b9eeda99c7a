"""The typed async client of the engine: one method per Redis function.

Business refusals are replies; an EngineError is raised only where the engine could not be asked,
and its code tells the one thing a caller must know: UNAVAILABLE and OUT_OF_MEMORY mean that nothing
happened, OUTCOME_UNKNOWN that the command was sent and its reply lost. Nothing is ever sent twice
unless the server has said that it did not run it.

All calls go to primaries. A segment's books live on one node, so a book's key finds its node. While
the segment's slot moves from node to node, servers refuse its calls before anything runs: a call
then waits and is repeated, up to MOVE_WAIT_S_MAX.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgspec
from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from orderbook.engine import errors, library, topology
from orderbook.engine.durability import Change
from orderbook.engine.errors import EngineError, rejection
from orderbook.engine.topology import ClusterTopology, Node, Topology
from orderbook.engine.wire import NotSentError, RedisReply, Wire
from orderbook.hints import with_nearest
from orderbook.messages import UNCONFIRMED, Durability, RejectCode

logger = logging.getLogger(__name__)

SEGMENT_DEFAULT = "main"
INSTRUMENTS_KEY = "orderbook:instruments"
# The name of a book that there is not: whoever asks for it is told so, and which rights it takes.
NO_BOOK = "-"
KEYS_PER_CALL_MAX = 100

# How long a call waits, in all, for a slot that is being moved or a cluster that is not complete.
MOVE_WAIT_S_MAX = 5.0
MOVE_BACKOFF_FIRST_S = 0.01
MOVE_BACKOFF_MAX_S = 0.25

_LOST = (RedisConnectionError, RedisTimeoutError, OSError)
# Functions read and write a whole book, so they wait until all of it has moved.
_FUNCTION_CALLS = frozenset({"FCALL", "FCALL_RO"})
# What the library runs when memory is full, or refuses itself where it would add risk.
_RUN_WHEN_MEMORY_IS_FULL = frozenset(
    {"cancel_order", "cancel_all_orders", "cancel_all_after", "amend_order", "mass_quote"}
)

Reply = dict[str, Any]
Field = str | int | bool | None


class Acknowledged(NamedTuple):
    """A reply, and where the change lies that it acknowledges."""

    reply: RedisReply
    node: Node
    change: Change


class Replies(list[bytes]):
    """The replies of a batch, and the acknowledgement of its change."""

    acknowledged: Acknowledged | None = None


class Engine:
    """Every function of docs/protocol.md on a single server, a Sentinel service or a cluster."""

    def __init__(self, primaries: Topology, readers: Topology) -> None:
        # What commands wait for that do not say it, and on how many replicas.
        self.durability = Durability.MEMORY
        self.durability_replicas = 1
        self._topology = primaries
        # Where streams are read: replicas, or the primaries themselves.
        self._readers = readers
        self._segments: dict[str, str] = {}
        self._reports_epochs = False
        self._run_ids: dict[str, str] = {}

    @classmethod
    async def connect(cls, redis_url: str, *, read_url: str | None = None) -> Self:
        """Connects and reads which instruments there are.

        `read_url` is a replica to read streams from. Raises EngineError when no server answers,
        ValueError for an address that is none.
        """
        try:
            primaries = await topology.connect(redis_url)
        except (RedisError, OSError) as error:
            raise errors.unavailable(error) from error
        engine = cls(primaries, primaries)
        try:
            if read_url is not None:
                engine._readers = await topology.connect(read_url)
            await engine.instruments()
        except (RedisError, OSError) as error:
            await engine.close()
            raise errors.unavailable(error) from error
        except BaseException:
            await engine.close()
            raise
        return engine

    async def close(self) -> None:
        """Closes every connection."""
        if self._readers is not self._topology:
            await self._readers.close()
        await self._topology.close()

    # ---- where things are

    @property
    def is_cluster(self) -> bool:
        """Whether keys of different segments may lie on different nodes."""
        return self._topology.is_cluster

    def primaries(self) -> list[Redis]:
        """One client for each primary that has books, or may have."""
        return [node.client for node in self._topology.nodes()]

    def readers(self) -> list[Redis]:
        """One client for each server at the read URL; none where streams are read at primaries."""
        return [] if self._readers is self._topology else [n.client for n in self._readers.nodes()]

    async def every_primary(self) -> list[Redis]:
        """The same with those of a cluster that have no slots yet, for the deployer. Raises
        EngineError."""
        try:
            return [node.client for node in await self._topology.every_node()]
        except (RedisError, OSError) as error:
            raise errors.unavailable(error) from error

    def segment(self, symbol: str) -> str | None:
        """The segment of an instrument as last read, or None."""
        return self._segments.get(symbol)

    def unknown_symbol_text(self, symbol: str) -> str:
        """What is said of a symbol that there is not."""
        return with_nearest(f"there is no such instrument: {symbol}", self._segments, symbol)

    def book_key(self, symbol: str) -> str:
        """The key of a book; one that is not known yet would be in the default segment."""
        return f"orderbook:{{{self._segments.get(symbol, SEGMENT_DEFAULT)}}}:{symbol}"

    async def open_reader(self, symbol: str) -> Wire:
        """A wire of the caller's own to where a book's streams are read: the replica where one was
        given. Raises what redis-py raises."""
        return await self._readers.node(self.book_key(symbol)).open_wire()

    async def open_primary(self, symbol: str) -> Wire:
        """A wire of the caller's own to a book's primary, for transactions. Raises EngineError."""
        node = _node(self._topology, self.book_key(symbol))
        try:
            return await node.open_wire()
        except (RedisError, OSError) as error:
            raise errors.unavailable(error) from error

    async def read_stream(self, symbol: str, *arguments: str | bytes | int) -> RedisReply:
        """One Redis command where a book's streams are read. Raises EngineError."""
        return (await self._ask(self._readers, self.book_key(symbol), arguments)).reply

    async def instruments(self) -> dict[str, str]:
        """Symbol to segment of every instrument, read anew."""
        found = await self._call_key(INSTRUMENTS_KEY, "HGETALL", INSTRUMENTS_KEY)
        texts = [text.decode() for text in found.reply]
        self._segments = dict(zip(texts[::2], texts[1::2], strict=True))
        return dict(self._segments)

    async def ping(self) -> None:
        """Returns when every primary has answered. Raises EngineError."""
        await self._ping(self._topology)

    async def ping_readers(self) -> None:
        """The same where streams are read."""
        await self._ping(self._readers)

    async def _ping(self, nodes: Topology) -> None:
        for node in nodes.nodes():
            await self._send((await self._wire(node)).call, node, ("PING",))

    async def probe(self, symbols: Iterable[str]) -> None:
        """Returns when each primary that has one of these books has said that it would carry out
        commands; where there is no book, one that could have one. Raises EngineError.

        A slot that is being moved is no reason against a primary: calls wait for it.
        """
        names = list(symbols) or [NO_BOOK]
        chosen = {_node(self._topology, self.book_key(symbol)): symbol for symbol in names}
        for node, symbol in chosen.items():
            key = self.book_key(symbol)
            try:
                await self._on_node(node, ("FCALL", "probe_book", 1, key), key)
            except errors.MovingError as error:
                if isinstance(error.refusal, ClusterDownError):
                    raise errors.moving(error.refusal) from error.refusal
            except errors.FunctionMissingError as error:
                message = "the library on the server is missing or does not fit"
                raise EngineError(RejectCode.UNAVAILABLE, message) from error

    # ---- epochs

    async def begin_epochs(self) -> dict[str, str]:
        """Reports every server's run_id to its books, once for each server.

        For hosts: from here on, a command that finds another server is preceded by begin_epoch.
        Returns the instruments.
        """
        self._reports_epochs = True
        await self.ping()
        instruments = await self.instruments()
        due = []
        for symbol in instruments:
            wire = await self._wire(_node(self._topology, self.book_key(symbol)))
            if self._epoch_is_due(symbol, wire):
                due.append(symbol)
        # Side by side: a book whose slot is being moved keeps no other waiting.
        await asyncio.gather(*map(self._try_to_begin_epoch, due))
        return instruments

    async def _try_to_begin_epoch(self, symbol: str) -> None:
        try:
            await self.begin_epoch(symbol)
        except EngineError as error:
            # A damaged book stands still; the others must not.
            logger.warning("no new epoch for %s: %s", symbol, error)

    def _epoch_is_due(self, symbol: str, wire: Wire) -> bool:
        return wire.run_id is not None and self._run_ids.get(symbol) != wire.run_id

    async def begin_epoch(self, symbol: str) -> Reply:
        """Reports the run_id of the book's server. Reply: epoch, sequence."""
        wire = await self._wire(_node(self._topology, self.book_key(symbol)))
        run_id = wire.run_id
        if run_id is None:
            raise EngineError(RejectCode.UNAVAILABLE, "the server does not tell its run_id")
        reply = _decode(await self.call("begin_epoch", symbol, "run_id", run_id))
        if "epoch" in reply:
            self._run_ids[symbol] = run_id
        return reply

    async def _report_epoch(self, wire: Wire, key: str) -> None:
        """The same on a wire that is about to carry a command."""
        symbol = key.rpartition(":")[2]
        if not self._reports_epochs or not self._epoch_is_due(symbol, wire):
            return
        run_id = wire.run_id or ""
        reply = await wire.call("FCALL", "begin_epoch", 1, key, "run_id", run_id)
        if b'"epoch"' in reply:
            self._run_ids[symbol] = run_id

    # ---- raw calls

    async def call(self, function: str, symbol: str, *arguments: str | bytes) -> bytes:
        """FCALL with JSON text as reply. Raises EngineError."""
        key = self.book_key(symbol)
        carried = await self._call_function(key, "FCALL", function, 1, key, *arguments)
        reply: bytes = carried.reply
        return reply

    async def query(self, function: str, symbol: str, *arguments: str | bytes) -> bytes:
        """FCALL_RO on the primary: what it says is never older than a reply seen before."""
        key = self.book_key(symbol)
        carried = await self._call_function(key, "FCALL_RO", function, 1, key, *arguments)
        reply: bytes = carried.reply
        return reply

    async def execute(self, symbol: str, commands: Sequence[bytes]) -> Replies:
        """Runs JSON commands as one atomic change; one JSON reply each, in order.

        When memory is full the batch is refused as a whole: then what can take risk off, or keep
        it off, is run one by one and the others are answered with OUT_OF_MEMORY. Raises
        EngineError.
        """
        key = self.book_key(symbol)
        replies = Replies()
        try:
            replies.acknowledged = await self._call_function(
                key, "FCALL", "execute", 1, key, *commands
            )
        except EngineError as error:
            if error.code is not RejectCode.OUT_OF_MEMORY:
                raise
            for command in commands:
                replies.append(await self._execute_alone(replies, symbol, command, error))
            return replies
        reply = replies.acknowledged.reply
        # A batch that is refused as a whole has a single reply.
        replies += reply if isinstance(reply, list) else [reply] * len(commands)
        return replies

    async def _execute_alone(
        self, replies: Replies, symbol: str, command: bytes, full: EngineError
    ) -> bytes:
        try:
            fields = msgspec.json.decode(command, type=dict[str, str])
        except msgspec.DecodeError:
            return full.reply()
        method = fields.pop("method", "")
        if method not in _RUN_WHEN_MEMORY_IS_FULL:
            return full.reply()
        key = self.book_key(symbol)
        try:
            replies.acknowledged = await self._call_function(
                key, "FCALL", method, 1, key, *_arguments(fields)
            )
        except EngineError as error:
            return error.reply()
        reply: bytes = replies.acknowledged.reply
        return reply

    # ---- durability

    async def durability_refusal(self, durability: Durability, symbol: str | None = None) -> bytes:
        """The refusal of commands that ask for what their server can never confirm; empty where it
        can. Without a symbol every primary is asked. Raises EngineError."""
        if durability is Durability.MEMORY:
            return b""
        nodes = self._topology.nodes()
        if symbol is not None:
            nodes = [_node(self._topology, self.book_key(symbol))]
        for node in nodes:
            try:
                reason = await node.confirmer.refusal(durability)
            except (RedisError, OSError) as error:
                await self._refresh_quietly()
                raise errors.unavailable(error) from error
            if reason is not None:
                return rejection(RejectCode.DURABILITY_UNAVAILABLE, reason)
        return b""

    async def is_confirmed(self, acknowledged: Acknowledged | None, durability: Durability) -> bool:
        """Whether a change is known, within a bounded time, to be as safe as was asked for. Where
        it is not, it stands all the same."""
        if acknowledged is None:
            return False
        confirmer = acknowledged.node.confirmer
        return await confirmer.confirm(durability, acknowledged.change, self.durability_replicas)

    def _durability_of(self, fields: dict[str, Field]) -> Durability:
        """What a command waits for, taken out of its fields. Raises ValueError for what is none."""
        wanted = fields.pop("durability", None)
        return self.durability if wanted is None else Durability(str(wanted))

    async def _command(
        self, function: str, symbols: Sequence[str], fields: Mapping[str, Field]
    ) -> Reply:
        """A command over books of one segment, acknowledged when its change is as safe as asked."""
        others = dict(fields)
        try:
            durability = self._durability_of(others)
        except ValueError:
            text = "durability is one of: " + ", ".join(Durability)
            return _decode(rejection(RejectCode.INVALID_VALUE, text))
        if durability is not Durability.MEMORY:
            refusal = await self.durability_refusal(durability, symbols[0])
            if refusal:
                return _decode(refusal)
        keys = [self.book_key(symbol) for symbol in symbols]
        acknowledged = await self._call_function(
            keys[0], "FCALL", function, len(keys), *keys, *_arguments(others)
        )
        reply = _decode(acknowledged.reply)
        if durability is not Durability.MEMORY and reply.get("status") != "rejected":
            confirmed = await self.is_confirmed(acknowledged, durability)
            reply["durability"] = str(durability) if confirmed else UNCONFIRMED
        return reply

    # ---- the way of a call

    async def _call_function(self, key: str, *arguments: str | bytes | int) -> Acknowledged:
        try:
            return await self._call_key(key, *arguments)
        except errors.FunctionMissingError as error:
            missing = error
        # A flushed server: what is missing may be loaded by anyone, and the call did not run.
        try:
            await library.check(self)
            return await self._call_key(key, *arguments)
        except (library.LibraryError, RedisError, OSError, errors.FunctionMissingError) as error:
            raise EngineError(RejectCode.UNAVAILABLE, str(missing), str(error)) from error

    async def _call_key(self, key: str, *arguments: str | bytes | int) -> Acknowledged:
        return await self._ask(self._topology, key, arguments)

    async def _ask(
        self, nodes: Topology, key: str, arguments: Sequence[str | bytes | int]
    ) -> Acknowledged:
        """One command where a key is, asked again while its slot moves: it has not run then."""
        try:
            return await self._on_node(_node(nodes, key), arguments, key)
        except errors.MovingError as error:
            if not isinstance(nodes, ClusterTopology):
                raise errors.moving(error.refusal, "the server belongs to a cluster") from error
            refusal = error.refusal
        return await self._ask_again(nodes, key, arguments, refusal)

    async def _ask_again(
        self,
        nodes: ClusterTopology,
        key: str,
        arguments: Sequence[str | bytes | int],
        refusal: Exception,
    ) -> Acknowledged:
        """Repeats a command that was refused because its slot moves, for a bounded time."""
        deadline_s = time.monotonic() + MOVE_WAIT_S_MAX
        # A slot that has moved is there already: the first look is at once.
        wait_s = 0.0 if isinstance(refusal, MovedError) else MOVE_BACKOFF_FIRST_S
        while time.monotonic() < deadline_s:
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(max(2 * wait_s, MOVE_BACKOFF_FIRST_S), MOVE_BACKOFF_MAX_S)
            try:
                if errors.is_asked_of_another(refusal) and arguments[0] not in _FUNCTION_CALLS:
                    return await self._ask_another(nodes, refusal, key, arguments)
                if not (errors.is_asked_of_another(refusal) or isinstance(refusal, TryAgainError)):
                    await nodes.refresh()
                return await self._on_node(nodes.node(key), arguments, key)
            except errors.MovingError as error:
                refusal = error.refusal
            except (RedisError, OSError) as error:
                # The nodes could not be asked who has the slot.
                refusal = error
        raise errors.moving(refusal) from refusal

    async def _ask_another(
        self,
        nodes: ClusterTopology,
        ask: AskError,
        key: str,
        arguments: Sequence[str | bytes | int],
    ) -> Acknowledged:
        """One command at the node to which its key has been moved before the slot itself was."""
        node = nodes.node_at(ask.host, ask.port)
        wire = await self._wire(node)
        reply = await self._send(wire.call_asking, node, arguments)
        return Acknowledged(reply, node, _change(wire, key))

    async def _on_node(
        self, node: Node, arguments: Sequence[str | bytes | int], key: str
    ) -> Acknowledged:
        wire = await self._wire(node)
        if arguments[0] == "FCALL" and arguments[1] != "begin_epoch":
            await self._before(wire, node, key)
        reply = await self._send(wire.call, node, arguments)
        return Acknowledged(reply, node, _change(wire, key))

    async def _send(
        self,
        send: Callable[..., Awaitable[RedisReply]],
        node: Node,
        arguments: Sequence[str | bytes | int],
    ) -> RedisReply:
        try:
            return await send(*arguments)
        except BusyLoadingError as error:
            raise errors.unavailable(error) from error
        except ResponseError as error:
            raise errors.refused(error, node) from error
        except NotSentError as error:
            raise errors.unavailable(error) from error
        except _LOST as error:
            raise errors.lost(error, arguments) from error

    async def _wire(self, node: Node) -> Wire:
        try:
            return await node.wire()
        except (RedisError, OSError) as error:
            await self._refresh_quietly()
            raise errors.unavailable(error) from error

    async def _before(self, wire: Wire, node: Node, key: str) -> None:
        """Begins the epoch where it is due. The command itself is not sent when this fails."""
        try:
            await self._report_epoch(wire, key)
        except OutOfMemoryError:
            # begin_epoch runs when memory is full; only an older server's library would not.
            return
        except ResponseError as error:
            raise errors.refused(error, node) from error
        except _LOST as error:
            raise errors.unavailable(error) from error

    async def _refresh_quietly(self) -> None:
        for nodes in {self._topology, self._readers}:
            try:
                await nodes.refresh()
            except (RedisError, OSError) as error:
                logger.debug("the cluster cannot be asked who its primaries are: %s", error)

    # ---- one method per function

    async def define_instrument(
        self, symbol: str, *, segment: str | None = None, **fields: Field
    ) -> Reply:
        """Creates a book or changes its rules. Reply: as get_instrument.

        Without a segment a new book is in SEGMENT_DEFAULT, another where it is.

        Keeps the discovery hash as well, which on a cluster lies in another slot than the book.
        """
        known = (await self.instruments()).get(symbol)
        segment = segment or known or SEGMENT_DEFAULT
        if known is not None and known != segment:
            code = RejectCode.SYMBOL_IN_OTHER_SEGMENT
            return _decode(rejection(code, f"the symbol is defined in the segment {known}"))
        key = f"orderbook:{{{segment}}}:{symbol}"
        arguments = _arguments(fields)
        defined = await self._call_function(key, "FCALL", "define_instrument", 1, key, *arguments)
        decoded = _decode(defined.reply)
        if decoded.get("status") != "rejected":
            await self._call_key(INSTRUMENTS_KEY, "HSET", INSTRUMENTS_KEY, symbol, segment)
            self._segments[symbol] = segment
        return decoded

    async def place_order(self, symbol: str, **fields: Field) -> Reply:
        """Fields: account side order_type, quantity or quote_quantity, … (docs/protocol.md)."""
        return await self._command("place_order", [symbol], fields)

    async def place_order_list(
        self, symbol: str, orders: str | Sequence[Mapping[str, Field]], **fields: Field
    ) -> Reply:
        """Orders that hang together, all or none; each of `orders` (or their JSON text) has the
        fields of place_order. Fields: account list_type; client_order_id valid_until_ms."""
        listed = orders if isinstance(orders, str) else msgspec.json.encode(orders)
        text = listed if isinstance(listed, str) else listed.decode()
        return await self._command("place_order_list", [symbol], {**fields, "orders": text})

    async def cancel_order(self, symbol: str, **fields: Field) -> Reply:
        """Fields: order_id, or account and client_order_id; valid_until_ms."""
        return await self._command("cancel_order", [symbol], fields)

    async def amend_order(self, symbol: str, **fields: Field) -> Reply:
        """Fields: the order as in cancel_order; price stop_price quantity remaining_quantity."""
        return await self._command("amend_order", [symbol], fields)

    async def replace_order(self, symbol: str, **fields: Field) -> Reply:
        """Fields: account; cancel_order_id or cancel_client_order_id; on_failure; and the new
        order's. Reply: canceled placed sequence."""
        return await self._command("replace_order", [symbol], fields)

    async def mass_quote(
        self, symbol: str, *, quotes: Sequence[Mapping[str, str]] | str, **fields: Field
    ) -> Reply:
        """Fields: account, quotes (a list, or the same as JSON text); post_only, …

        Reply: account canceled_order_ids placed sequence.
        """
        text = quotes if isinstance(quotes, str) else msgspec.json.encode(quotes).decode()
        return await self._command("mass_quote", [symbol], {**fields, "quotes": text})

    async def cancel_all_orders(self, symbol: str | Sequence[str], **fields: Field) -> Reply:
        """Fields: account; session side valid_until_ms.

        Of several symbols the books of each segment are one atomic change; of one segment there are
        at most KEYS_PER_CALL_MAX, else ValueError. Their reply: account books canceled_count
        remaining_count timestamp_ms.

        Where only some segments could be asked an EngineError says OUTCOME_UNKNOWN.
        """
        if isinstance(symbol, str):
            return await self._command("cancel_all_orders", [symbol], fields)
        groups: dict[str, list[str]] = {}
        instruments = await self.instruments()
        for name in dict.fromkeys(symbol):
            if name not in instruments:
                text = self.unknown_symbol_text(name)
                return _decode(rejection(RejectCode.UNKNOWN_SYMBOL, text))
            groups.setdefault(self._segments.get(name, SEGMENT_DEFAULT), []).append(name)
        if any(len(symbols) > KEYS_PER_CALL_MAX for symbols in groups.values()):
            raise ValueError(f"at most {KEYS_PER_CALL_MAX} books of a segment at once")
        replies: list[Reply] = []
        for symbols in groups.values():
            try:
                reply = await self._cancel_together(symbols, fields)
            except EngineError as error:
                if not replies:
                    raise
                done = f"{error.message}; the books of other segments are done"
                raise EngineError(RejectCode.OUTCOME_UNKNOWN, done, error.reason) from error
            if reply.get("status") == "rejected":
                done = "; the books of other segments are done" if replies else ""
                return {**reply, "message": reply["message"] + done}
            replies.append(reply)
        return _joined(replies)

    async def _cancel_together(self, symbols: Sequence[str], fields: Mapping[str, Field]) -> Reply:
        """The same of books of one segment; the reply has `books` even of one."""
        reply = await self._command("cancel_all_orders", symbols, fields)
        if len(symbols) > 1 or reply.get("status") == "rejected":
            return reply
        durability = {"durability": reply.pop("durability")} if "durability" in reply else {}
        counts = ("account", "canceled_count", "remaining_count", "timestamp_ms")
        return {
            **{name: reply[name] for name in counts},
            "books": [{"symbol": symbols[0], **reply}],
            **durability,
        }

    async def cancel_all_after(self, symbol: str, **fields: Field) -> Reply:
        """Fields: account, timeout_ms (0 stops the timer); session, valid_until_ms."""
        return await self._command("cancel_all_after", [symbol], fields)

    async def set_stp_group(self, symbol: str, **fields: Field) -> Reply:
        """Puts an account into a group of one trader, in all books of the symbol's segment.

        Fields: account; stp_group (without it the account leaves its group)."""
        return _decode(await self.call("set_stp_group", symbol, *_arguments(fields)))

    async def get_stp_group(self, symbol: str, **fields: Field) -> Reply:
        """Field: account. Reply: account segment stp_group."""
        return _decode(await self.query("get_stp_group", symbol, *_arguments(fields)))

    async def tick(self, symbol: str) -> Reply:
        """Does what is due. Reply: expired_count canceled_count triggered_count pending (call
        again) sequence."""
        return _decode(await self.call("tick", symbol))

    async def probe_book(self, symbol: str) -> Reply:
        """Says whether commands would be carried out now. Reply: symbol sequence."""
        return _decode(await self.call("probe_book", symbol))

    async def publish_book(self, symbol: str) -> Reply:
        """Writes the half-second book when it is due. Reply: published, sequence, wait_ms."""
        return _decode(await self.call("publish_book", symbol))

    async def get_book(self, symbol: str, **fields: Field) -> Reply:
        """Field: depth (10). Reply: symbol sequence epoch bids asks checksum tick_size lot_size."""
        return _decode(await self.query("get_book", symbol, *_arguments(fields)))

    async def get_level3(self, symbol: str, **fields: Field) -> Reply:
        """Field: depth (levels; 10). Reply: as get_book, but for orders; more."""
        return _decode(await self.query("get_level3", symbol, *_arguments(fields)))

    async def get_order(self, symbol: str, **fields: Field) -> Reply:
        """Fields: order_id, or account and client_order_id."""
        return _decode(await self.query("get_order", symbol, *_arguments(fields)))

    async def get_open_orders(self, symbol: str, **fields: Field) -> Reply:
        """Fields: account; after, limit (500). Reply: account symbol sequence epoch orders more."""
        return _decode(await self.query("get_open_orders", symbol, *_arguments(fields)))

    async def get_trades(self, symbol: str, **fields: Field) -> Reply:
        """Field: limit (50). Reply: symbol sequence epoch trades, oldest first."""
        return _decode(await self.query("get_trades", symbol, *_arguments(fields)))

    async def get_candles(self, symbol: str, **fields: Field) -> Reply:
        """Fields: interval (1m 5m 15m 1h 1d); limit (500), before. Reply: candles, oldest first,
        more."""
        return _decode(await self.query("get_candles", symbol, *_arguments(fields)))

    async def get_ticker(self, symbol: str) -> Reply:
        """Reply: best_bid best_ask last_price open_24h volume_24h, … (docs/protocol.md)."""
        return _decode(await self.query("get_ticker", symbol))

    async def get_auction(self, symbol: str) -> Reply:
        """Reply: symbol status indicative_price indicative_quantity, … (docs/protocol.md)."""
        return _decode(await self.query("get_auction", symbol))

    async def get_closed_orders(self, symbol: str, **fields: Field) -> Reply:
        """Fields: account; before, limit (100). Reply: account symbol sequence epoch orders more
        before; the latest first."""
        return _decode(await self.query("get_closed_orders", symbol, *_arguments(fields)))

    async def get_own_trades(self, symbol: str, **fields: Field) -> Reply:
        """Fields: account; before, limit (100). Reply: account symbol sequence epoch trades more
        before; the latest first."""
        return _decode(await self.query("get_own_trades", symbol, *_arguments(fields)))

    async def get_instrument(self, symbol: str) -> Reply:
        """Reply: the instrument's rules and state."""
        return _decode(await self.query("get_instrument", symbol))

    async def verify_book(self, symbol: str) -> Reply:
        """Reply: verified, then orders levels sequence state_hash, or violations."""
        return _decode(await self.query("verify_book", symbol))

    async def library_version(self, symbol: str = "") -> Reply:
        """Reply: library version digest, of the node that holds this symbol."""
        key = self.book_key(symbol)
        found = await self._call_function(key, "FCALL_RO", "library_version", 0)
        return _decode(found.reply)


def _node(nodes: Topology, key: str) -> Node:
    try:
        return nodes.node(key)
    except RedisError as error:
        raise errors.unavailable(error) from error


def _change(wire: Wire, key: str) -> Change:
    """What a call has written, as a later round can confirm it: by a key of the same slot."""
    return Change(wire.replication_id, key.rpartition(":")[0] + ":durability")


def with_durability(reply: bytes, durability: str) -> bytes:
    """A reply that tells how safe its change is."""
    return b'%s,"durability":"%s"}' % (reply[:-1], durability.encode())


def _decode(reply: bytes) -> Reply:
    return msgspec.json.decode(reply, type=dict[str, Any])


def _joined(replies: Sequence[Reply]) -> Reply:
    """The replies of several segments as one."""
    told = {reply["durability"] for reply in replies if "durability" in reply}
    durability = UNCONFIRMED if UNCONFIRMED in told else "".join(told)
    return {
        "account": replies[0]["account"],
        "books": [book for reply in replies for book in reply["books"]],
        "canceled_count": sum(reply["canceled_count"] for reply in replies),
        "remaining_count": sum(reply["remaining_count"] for reply in replies),
        "timestamp_ms": replies[-1]["timestamp_ms"],
        **({"durability": durability} if durability else {}),
    }


def _arguments(fields: Mapping[str, Field]) -> list[str]:
    """Field, value, field, value …; fields that are None are left out."""
    arguments = []
    for name, value in fields.items():
        if value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += [name, text]
    return arguments
