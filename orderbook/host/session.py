"""One websocket client as a state machine without input or output: frames in, requests out.

`receive` takes a frame and returns exactly one outcome: a reply that is ready to send, a command or
query for the engine, a subscription request, or the reason to close. Answers are made by splicing:
what the engine wrote goes out as it is, between the few bytes that name the request.

A frame that is not understood is answered with a code and the connection lives on; only too many of
them in a row end it.
"""

import json
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from orderbook import messages
from orderbook.hints import with_nearest
from orderbook.messages import PLACING_METHODS, REJECTED_PREFIX, Channel, Durability, RejectCode

MALFORMED_FRAMES_MAX = 100
CLOSE_CODE_ABUSE = 1008
NAME_ECHOED_LENGTH_MAX = 64
INTEGER_DIGITS_MAX = 20
TIMEOUT_MIN_MS = 1000
TIMEOUT_MAX_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Reply:
    """A frame for the client."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """One JSON command for `execute` of a book; answer with `answer(head, reply)`."""

    method: str
    symbol: str
    payload: bytes
    head: bytes
    durability: Durability


@dataclass(frozen=True, slots=True)
class CancelInBooks:
    """cancel_all_orders of several books, with what else the client has said of it."""

    symbols: tuple[str, ...]
    fields: dict[str, str]
    head: bytes
    durability: Durability


@dataclass(frozen=True, slots=True)
class Query:
    """One read-only function of a book, its arguments as for FCALL_RO."""

    method: str
    symbol: str
    arguments: list[str]
    head: bytes


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A channel's symbols (none: every symbol); `after` and `epoch` (both or none) resume one."""

    channel: Channel
    symbols: tuple[str, ...]
    # The interval of candles, the depth of a book that is not the usual one.
    variant: str
    after: int | None
    epoch: int | None
    head: bytes


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    channel: Channel
    symbols: tuple[str, ...]
    variant: str
    head: bytes


@dataclass(frozen=True, slots=True)
class CancelOnDisconnect:
    """Once it is turned on or off (0), tell the session by `mark_orders`."""

    timeout_ms: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    head: bytes


@dataclass(frozen=True, slots=True)
class Logout:
    """The client wants to go, and its orders to stay: answer, then close."""

    head: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The client has gone too far: send `frame`, then close."""

    frame: bytes
    code: int
    reason: str


Outcome = (
    Reply
    | Command
    | CancelInBooks
    | Query
    | Subscribe
    | Unsubscribe
    | CancelOnDisconnect
    | Ping
    | Logout
    | Close
)


def answer(head: bytes, reply: bytes) -> bytes:
    """The frame that answers a request with the engine's reply."""
    if reply.startswith(REJECTED_PREFIX):
        return head + b'false,"error":{' + reply[len(REJECTED_PREFIX) :] + b"}"
    return head + b'true,"result":' + reply + b"}"


def failure(head: bytes, code: RejectCode, message: str) -> bytes:
    """The frame that refuses a request."""
    text = msgspec.json.encode(message)
    return b'%sfalse,"error":{"code":"%s","message":%s}}' % (head, code.encode(), text)


def limited(head: bytes, message: str, retry_after_s: float) -> bytes:
    """The frame that refuses a request which may be sent again later."""
    refusal = failure(head, RejectCode.RATE_LIMITED, message)
    return b'%s,"retry_after_ms":%d}}' % (refusal[:-2], math.ceil(retry_after_s * 1000))


class Session:
    """The client of one connection, acting for one account."""

    __slots__ = (
        *("_durability", "_durability_min", "_malformed_in_a_row", "_mark", "_prefixes"),
        "account",
    )

    def __init__(
        self,
        account: str,
        durability: Durability = Durability.MEMORY,
        durability_min: Durability = Durability.MEMORY,
    ) -> None:
        """`durability` is for commands that do not say it; none has less than the minimum."""
        # The account's characters need no escaping: the host has checked them.
        self.account = account
        self._durability = durability.with_minimum(durability_min)
        self._durability_min = durability_min
        self._mark = ""
        # How commands begin, by method; made when needed, for most connections only listen.
        self._prefixes: dict[str, bytes] = {}
        self._malformed_in_a_row = 0

    def mark_orders(self, session: str | None) -> None:
        """Orders carry this session from now on, or none."""
        self._mark = f',"session":"{session}"' if session else ""
        self._prefixes.clear()

    def receive(self, frame: bytes) -> Outcome:
        """What a text frame asks for."""
        try:
            outcome = self._understand(frame)
        except _RefusedError as refused:
            return self._refuse(refused)
        self._malformed_in_a_row = 0
        return outcome

    def receive_binary(self) -> Outcome:
        """Binary frames mean nothing here."""
        message = "binary frames are not understood: send text frames of JSON"
        return self._refuse(_RefusedError(_HEAD_UNKNOWN, RejectCode.MALFORMED_COMMAND, message))

    def _refuse(self, refused: "_RefusedError") -> Reply | Close:
        frame = failure(refused.head, refused.code, str(refused))
        if refused.code is not RejectCode.MALFORMED_COMMAND:
            self._malformed_in_a_row = 0
            return Reply(frame)
        self._malformed_in_a_row += 1
        if self._malformed_in_a_row < MALFORMED_FRAMES_MAX:
            return Reply(frame)
        return Close(frame, CLOSE_CODE_ABUSE, "too many malformed frames")

    def _understand(self, frame: bytes) -> Outcome:
        envelope = _decode_envelope(frame)
        method = envelope.method
        head = _head(method, _req_id(frame, envelope))
        raw_params = bytes(envelope.params) or b"{}"
        _check_duplicates(frame, _envelope_marks(envelope), head)
        decoder = _DECODERS.get(method)
        if decoder is None:
            message = with_nearest("there is no such method", METHODS, method)
            raise _RefusedError(head, RejectCode.UNKNOWN_METHOD, message)
        try:
            params = decoder.decode(raw_params)
        except msgspec.ValidationError as error:
            raise _refused_params(head, error) from None
        except (ValueError, RecursionError):
            raise _RefusedError(head, *_NOT_JSON) from None
        if isinstance(params, messages.Params):
            return self._for_book(method, head, params, raw_params)
        _check_duplicates(raw_params, msgspec.json.encode(params).count(b'"'), head)
        if isinstance(params, messages.SubscribeParams):
            return _subscribe(params, head)
        if isinstance(params, messages.UnsubscribeParams):
            symbols, variant = _symbols(params, head), _variant(params, head)
            return Unsubscribe(params.channel, symbols, variant, head)
        if isinstance(params, messages.CancelOnDisconnectParams):
            return CancelOnDisconnect(_timeout_ms(params, head), head)
        return Logout(head) if isinstance(params, messages.LogoutParams) else Ping(head)

    def _for_book(
        self, method: str, head: bytes, params: messages.Params, raw_params: bytes
    ) -> Command | CancelInBooks | Query:
        if isinstance(params, messages.CancelAllOrders):
            if params.symbols is not UNSET:
                return self._everywhere(head, params, raw_params)
            if params.symbol is UNSET:
                raise _RefusedError(head, RejectCode.MISSING_FIELD, "missing field symbol")
        symbol = str(params.symbol)
        params.symbol = UNSET
        body = msgspec.json.encode(params)
        _check_duplicates(raw_params, body.count(b'"') + 2 * _MARKS_PER_TEXT, head)
        if not isinstance(params, messages.Command):
            return Query(method, symbol, self._arguments(method, params), head)
        durability = self._durability_of(params)
        if _tell_as_text(params) or params.durability is not UNSET:
            params.durability = UNSET
            body = msgspec.json.encode(params)
        if isinstance(params, messages.MassQuote):
            body = _with_quotes_as_text(params)
        separator = b"," if len(body) > len(b"{}") else b""
        prefix = self._prefixes.get(method) or self._make_prefix(method)
        return Command(method, symbol, prefix + separator + body[1:], head, durability)

    def _durability_of(self, params: messages.Command) -> Durability:
        """What a command waits for: what it says, or else the connection; never less than the
        host's minimum."""
        if params.durability is UNSET:
            return self._durability
        return params.durability.with_minimum(self._durability_min)

    def _make_prefix(self, method: str) -> bytes:
        mark = self._mark if method in PLACING_METHODS else ""
        prefix = f'{{"method":"{method}","account":"{self.account}"{mark}'.encode()
        self._prefixes[method] = prefix
        return prefix

    def _everywhere(
        self, head: bytes, params: messages.CancelAllOrders, raw_params: bytes
    ) -> CancelInBooks:
        if params.symbol is not UNSET:
            message = "give symbol or symbols, not both"
            raise _RefusedError(head, RejectCode.FIELD_NOT_ALLOWED, message)
        _check_duplicates(raw_params, msgspec.json.encode(params).count(b'"'), head)
        durability = self._durability_of(params)
        params.durability = UNSET
        fields = _given(params)
        symbols = tuple(dict.fromkeys(fields.pop("symbols")))
        texts = {name: str(value) for name, value in fields.items()}
        return CancelInBooks(symbols, {"account": self.account, **texts}, head, durability)

    def _arguments(self, method: str, params: messages.Params) -> list[str]:
        arguments = []
        if method in _ABOUT_ACCOUNT:
            arguments += ["account", self.account]
        for name, value in _given(params).items():
            arguments += [name, str(value)]
        return arguments


class _RefusedError(Exception):
    """A frame that is answered with an error."""

    def __init__(self, head: bytes, code: RejectCode, message: str) -> None:
        super().__init__(message)
        self.head = head
        self.code = code


_COMMANDS: dict[str, type[Struct]] = {
    "place_order": messages.PlaceOrder,
    "place_order_list": messages.PlaceOrderList,
    "cancel_order": messages.CancelOrder,
    "amend_order": messages.AmendOrder,
    "cancel_all_orders": messages.CancelAllOrders,
    "replace_order": messages.ReplaceOrder,
    "mass_quote": messages.MassQuote,
    "cancel_all_after": messages.CancelAllAfter,
}
_QUERIES: dict[str, type[Struct]] = {
    "get_book": messages.GetBook,
    "get_level3": messages.GetLevel3,
    "get_order": messages.GetOrder,
    "get_open_orders": messages.GetOpenOrders,
    "get_trades": messages.GetTrades,
    "get_candles": messages.GetCandles,
    "get_ticker": messages.GetTicker,
    "get_auction": messages.GetAuction,
    "get_closed_orders": messages.GetClosedOrders,
    "get_own_trades": messages.GetOwnTrades,
    "get_instrument": messages.GetInstrument,
}
_OWN: dict[str, type[Struct]] = {
    "subscribe": messages.SubscribeParams,
    "unsubscribe": messages.UnsubscribeParams,
    "cancel_on_disconnect": messages.CancelOnDisconnectParams,
    "ping": messages.PingParams,
    "logout": messages.LogoutParams,
}
# Every method a client may call.
METHODS = (*_COMMANDS, *_QUERIES, *_OWN)
# Queries that are asked for the connection's own account.
_ABOUT_ACCOUNT = frozenset({"get_order", "get_open_orders", "get_closed_orders", "get_own_trades"})
_RESUMABLE = frozenset({Channel.TRADES, Channel.LEVEL2, Channel.LEVEL3, Channel.ORDERS})

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    method: msgspec.json.Decoder(struct) for method, struct in (_COMMANDS | _QUERIES | _OWN).items()
}
_decode_good_envelope = msgspec.json.Decoder(messages.Envelope).decode
_decode_other_envelope = msgspec.json.Decoder(messages.RecoveredEnvelope).decode

_MARKS_PER_TEXT = 2
_HEAD_UNKNOWN = b'{"success":'
_NOT_JSON = (RejectCode.MALFORMED_COMMAND, "the frame is not a JSON object")
_REQ_ID_IN_TEXT = re.compile(
    rb'"req_id"\s*:\s*(-?(?:0|[1-9]\d{0,%d})(?=[\s,}])|"[^"\\\x00-\x1f\x80-\xff]{0,%d}")'
    % (INTEGER_DIGITS_MAX - 1, messages.REQ_ID_LENGTH_MAX)
)
_INTEGER = re.compile(rb"-?(?:0|[1-9]\d{0,%d})" % (INTEGER_DIGITS_MAX - 1))
_FIELD_IN_ERROR = re.compile(r"`([A-Za-z0-9_]{1,64})`")
_PATH_IN_ERROR = re.compile(r" - at `\$([^`]*)`")
_INDEX_IN_PATH = re.compile(r"\[[^]]*\]")
_TYPES_IN_ERROR = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")
_WORD_IN_ERROR = re.compile(r"Invalid enum value ['\"](.*)['\"] - at ", re.DOTALL)
_BOUND_IN_ERROR = re.compile(
    r"Expected `\w+` (?P<of_length>of length )?(?P<relation>[<>]=) (?P<bound>-?\d+)"
)
# The fields whose values a host judges itself; the engine judges all others.
_WORDS_OF_FIELDS: dict[str, type[StrEnum]] = {
    "channel": Channel,
    "interval": messages.Interval,
    "durability": Durability,
}
_TYPES_IN_WORDS = {
    "str": "text",
    "int": "an integer",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}


def _head(method: str, req_id: bytes) -> bytes:
    """How every answer to a request begins: its method and req_id as sent."""
    if len(method) > NAME_ECHOED_LENGTH_MAX:
        return _head_without_method(req_id)
    name = msgspec.json.encode(method)
    if not req_id:
        return b'{"method":%s,"success":' % name
    return b'{"method":%s,"req_id":%s,"success":' % (name, req_id)


def _head_without_method(req_id: bytes) -> bytes:
    return b'{"req_id":%s,"success":' % req_id if req_id else _HEAD_UNKNOWN


def _decode_envelope(frame: bytes) -> messages.Envelope:
    try:
        return _decode_good_envelope(frame)
    except msgspec.ValidationError as error:
        head = _recovered_head(frame)
        if head is not None:
            raise _refused(head, error) from None
    except (ValueError, RecursionError):
        # ValueError is what broken JSON, broken escapes and broken UTF-8 have in common.
        pass
    match = _REQ_ID_IN_TEXT.search(frame)
    raise _RefusedError(_head_without_method(match[1] if match else b""), *_NOT_JSON)


def _recovered_head(frame: bytes) -> bytes | None:
    """The head for an object that is no good envelope; None when the frame is no object."""
    try:
        envelope = _decode_other_envelope(frame)
    except (ValueError, RecursionError):
        return None
    req_id = bytes(envelope.req_id)
    if not _is_req_id(req_id):
        req_id = b""
    try:
        return _head(msgspec.json.decode(envelope.method, type=str), req_id)
    except ValueError:
        return _head_without_method(req_id)


def _is_req_id(raw: bytes) -> bool:
    if raw.startswith(b'"'):
        try:
            return len(msgspec.json.decode(raw, type=str)) <= messages.REQ_ID_LENGTH_MAX
        except ValueError:
            return False
    return _INTEGER.fullmatch(raw) is not None


def _req_id(frame: bytes, envelope: messages.Envelope) -> bytes:
    """The req_id as sent, or nothing where there is none."""
    raw = bytes(envelope.req_id)
    if not raw or _is_req_id(raw):
        return raw
    head = _recovered_head(frame) or _HEAD_UNKNOWN
    if raw.startswith(b'"') or raw.lstrip(b"-").isdigit():
        message = "req_id must be an integer, or text of at most 64 characters"
        raise _RefusedError(head, RejectCode.INVALID_VALUE, message)
    raise _RefusedError(head, RejectCode.WRONG_TYPE, "req_id must be an integer or text")


def _refused_params(head: bytes, error: msgspec.ValidationError) -> _RefusedError:
    if str(error).startswith("Expected `object`") and " - at " not in str(error):
        return _RefusedError(head, RejectCode.WRONG_TYPE, "field params must be an object")
    return _refused(head, error)


def _refused(head: bytes, error: msgspec.ValidationError) -> _RefusedError:
    """msgspec says in words what is wrong; our codes say it in a word."""
    text = str(error)
    named = _FIELD_IN_ERROR.search(text)
    name = f" {named[1]}" if named else ""
    if text.startswith("Object missing required field"):
        return _RefusedError(head, RejectCode.MISSING_FIELD, f"missing field{name}")
    if text.startswith("Object contains unknown field"):
        return _RefusedError(head, RejectCode.UNKNOWN_FIELD, f"unknown field{name}")
    path = _PATH_IN_ERROR.search(text)
    # The last name of a path such as $.quotes[0].price.
    field = _INDEX_IN_PATH.sub("", path[1]).rpartition(".")[2] if path else "params"
    types = _TYPES_IN_ERROR.search(text)
    if types is None:
        return _RefusedError(head, RejectCode.INVALID_VALUE, _rule_of_value(field, text))
    expected = " or ".join(_TYPES_IN_WORDS.get(word, word) for word in types[1].split(" | "))
    if expected == "text":
        expected = "text, in quotes"
    return _RefusedError(head, RejectCode.WRONG_TYPE, f"field {field} must be {expected}")


def _rule_of_value(field: str, text: str) -> str:
    """What is allowed for a field, of which msgspec has said what is wrong."""
    words = _WORDS_OF_FIELDS.get(field)
    given = _WORD_IN_ERROR.search(text)
    if words is not None and given is not None:
        rule = f"{field} must be one of {', '.join(words)}"
        return with_nearest(rule, words, given[1])
    bound = _BOUND_IN_ERROR.search(text)
    if bound is None:
        return f"{field} has a value that is not allowed"
    most = "at least" if bound["relation"] == ">=" else "at most"
    if bound["of_length"]:
        return f"{field} must have {most} {bound['bound']} entries"
    return f"{field} must be {most} {bound['bound']}"


def _tell_as_text(params: messages.Command) -> bool:
    """The engine takes text; clients may write times as integers, and a list of orders as a list.
    Whether there was something of the kind."""
    found = False
    if isinstance(params.valid_until_ms, int):
        params.valid_until_ms, found = str(params.valid_until_ms), True
    if isinstance(params, messages.NewOrder):
        found = _tell_expiry_as_text(params) or found
    if isinstance(params, messages.PlaceOrderList) and not isinstance(params.orders, str):
        for order in params.orders:
            _tell_expiry_as_text(order)
        params.orders, found = msgspec.json.encode(params.orders).decode(), True
    if isinstance(params, messages.CancelAllAfter) and isinstance(params.timeout_ms, int):
        params.timeout_ms, found = str(params.timeout_ms), True
    return found


def _tell_expiry_as_text(order: messages.NewOrder | messages.ListedOrder) -> bool:
    if not isinstance(order.expire_time_ms, int):
        return False
    order.expire_time_ms = str(order.expire_time_ms)
    return True


def _given(params: Struct) -> dict[str, Any]:
    """The fields that the client has sent."""
    members = msgspec.structs.asdict(params).items()
    return {name: value for name, value in members if value is not UNSET}


def _with_quotes_as_text(params: messages.MassQuote) -> bytes:
    """For the engine every field is text, and a list is JSON text."""
    fields = _given(params)
    fields["quotes"] = msgspec.json.encode(params.quotes).decode()
    return msgspec.json.encode(fields)


def _timeout_ms(params: messages.CancelOnDisconnectParams, head: bytes) -> int:
    text = str(params.timeout_ms)
    if _INTEGER.fullmatch(text.encode()) is not None:
        timeout_ms = int(text)
        if timeout_ms == 0 or TIMEOUT_MIN_MS <= timeout_ms <= TIMEOUT_MAX_MS:
            return timeout_ms
    message = "timeout_ms must be 0, or from 1000 to 86400000"
    raise _RefusedError(head, RejectCode.INVALID_VALUE, message)


def _check_duplicates(raw: bytes, marks_expected: int, head: bytes) -> None:
    """JSON decoders keep the last of two equal names; we refuse both.

    Each name and each text has two quotation marks, so as many of them in the frame as in what was
    understood proves that nothing was dropped. More may also be escapes: only then look closely.
    """
    if raw.count(b'"') != marks_expected:
        _look_for_duplicates(raw, head)


def _envelope_marks(envelope: messages.Envelope) -> int:
    """The quotation marks of an envelope without its params: names, the method, a text req_id."""
    req_id, params = bytes(envelope.req_id), bytes(envelope.params)
    marks = _MARKS_PER_TEXT * 2
    if req_id:
        marks += _MARKS_PER_TEXT + req_id.count(b'"')
    if params:
        marks += _MARKS_PER_TEXT + params.count(b'"')
    return marks


def _look_for_duplicates(raw: bytes, head: bytes) -> None:
    def refuse_equal_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            raise _RefusedError(head, RejectCode.DUPLICATE_FIELD, "a field is given twice")
        return names

    try:
        json.loads(raw, object_pairs_hook=refuse_equal_names)
    except (ValueError, RecursionError):
        raise _RefusedError(head, *_NOT_JSON) from None


def _variant(params: messages.ChannelParams, head: bytes) -> str:
    """Which of the streams of a channel is meant; empty for the usual one."""
    if params.interval is not UNSET and params.channel is not Channel.CANDLES:
        raise _RefusedError(head, RejectCode.FIELD_NOT_ALLOWED, "interval goes with candles only")
    if params.depth is not UNSET and params.channel is not Channel.BOOK:
        raise _RefusedError(head, RejectCode.FIELD_NOT_ALLOWED, "depth goes with book only")
    if params.channel is Channel.CANDLES:
        return "1m" if params.interval is UNSET else params.interval.value
    if params.depth is UNSET:
        return ""
    try:
        depth = messages.BookDepth(str(params.depth))
    except ValueError:
        message = "depth is 10, 50, 500 or full"
        raise _RefusedError(head, RejectCode.INVALID_VALUE, message) from None
    return "" if depth is messages.BookDepth.TEN else depth.value


def _symbols(params: messages.ChannelParams, head: bytes) -> tuple[str, ...]:
    """The symbols without repetition; none for the channels that are not about one."""
    if params.channel is Channel.HEARTBEAT and params.symbols is not UNSET:
        message = "the heartbeat channel has no symbols"
        raise _RefusedError(head, RejectCode.FIELD_NOT_ALLOWED, message)
    if params.symbols is not UNSET:
        return tuple(dict.fromkeys(params.symbols))
    if params.channel in {Channel.HEARTBEAT, Channel.INSTRUMENTS}:
        return ()
    raise _RefusedError(head, RejectCode.MISSING_FIELD, "missing field symbols")


def _subscribe(params: messages.SubscribeParams, head: bytes) -> Subscribe:
    symbols = _symbols(params, head)
    after = None if params.after is UNSET else params.after
    epoch = None if params.epoch is UNSET else params.epoch
    if epoch is not None and after is None:
        raise _RefusedError(head, RejectCode.FIELD_NOT_ALLOWED, "epoch goes with after only")
    if after is not None and epoch is None:
        message = "after needs epoch: sequences of another history say nothing about this one"
        raise _RefusedError(head, RejectCode.MISSING_FIELD, message)
    if after is not None and params.channel not in _RESUMABLE:
        message = "after goes with trades, level2, level3 and orders only"
        raise _RefusedError(head, RejectCode.FIELD_NOT_ALLOWED, message)
    if after is not None and len(symbols) != 1:
        raise _RefusedError(head, RejectCode.FIELD_NOT_ALLOWED, "after goes with one symbol only")
    return Subscribe(params.channel, symbols, _variant(params, head), after, epoch, head)
