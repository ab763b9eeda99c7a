"""The shapes of what crosses the websocket: frames, the parameters of every method, reject codes.

These structs check shape only: which fields there are and of which JSON type. What a value means
(a tick, an owner, a known symbol) is the engine's to judge, so that every door judges alike.
Prices and quantities are text and stay text: nothing here ever holds one as a number.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

REQ_ID_LENGTH_MAX = 64
SYMBOLS_PER_REQUEST_MAX = 256
SYMBOLS_PER_CANCEL_MAX = 100
QUOTES_MAX = 100
# How the reply to a refused command begins.
REJECTED_PREFIX = b'{"status":"rejected",'
# Commands that place orders: these carry the session of a connection that asked to be guarded.
PLACING_METHODS = frozenset({"place_order", "place_order_list", "replace_order", "mass_quote"})

OptionalText = str | UnsetType
# Counts and times are text for FCALL; JSON clients may write them as integers.
OptionalCount = int | str | UnsetType
OptionalTime = int | str | UnsetType
OptionalFlag = bool | str | UnsetType
Sequence = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Symbols = Annotated[list[str], Meta(min_length=1, max_length=SYMBOLS_PER_REQUEST_MAX)]


class RejectCode(StrEnum):
    """Why a command was refused: the engine's codes, then the host's own."""

    MALFORMED_COMMAND = "MALFORMED_COMMAND"
    INVALID_BOOK_KEY = "INVALID_BOOK_KEY"
    UNKNOWN_METHOD = "UNKNOWN_METHOD"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    MISSING_FIELD = "MISSING_FIELD"
    DUPLICATE_FIELD = "DUPLICATE_FIELD"
    FIELD_NOT_ALLOWED = "FIELD_NOT_ALLOWED"
    WRONG_TYPE = "WRONG_TYPE"
    INVALID_VALUE = "INVALID_VALUE"
    INVALID_NUMBER = "INVALID_NUMBER"
    PRICE_OFF_TICK = "PRICE_OFF_TICK"
    QUANTITY_OFF_LOT = "QUANTITY_OFF_LOT"
    PRICE_NOT_POSITIVE = "PRICE_NOT_POSITIVE"
    QUANTITY_TOO_SMALL = "QUANTITY_TOO_SMALL"
    QUANTITY_TOO_LARGE = "QUANTITY_TOO_LARGE"
    ORDER_LIST_QUANTITY = "ORDER_LIST_QUANTITY"
    LEVEL_QUANTITY_TOO_LARGE = "LEVEL_QUANTITY_TOO_LARGE"
    UNKNOWN_SYMBOL = "UNKNOWN_SYMBOL"
    INSTRUMENT_IN_USE = "INSTRUMENT_IN_USE"
    SYMBOL_IN_OTHER_SEGMENT = "SYMBOL_IN_OTHER_SEGMENT"
    INSTRUMENT_HALTED = "INSTRUMENT_HALTED"
    INSTRUMENT_CANCEL_ONLY = "INSTRUMENT_CANCEL_ONLY"
    INSTRUMENT_POST_ONLY = "INSTRUMENT_POST_ONLY"
    INSTRUMENT_AUCTION = "INSTRUMENT_AUCTION"
    UNCROSSING = "UNCROSSING"
    AUCTION_CROSSED = "AUCTION_CROSSED"
    NO_AUCTION = "NO_AUCTION"
    UNKNOWN_ORDER = "UNKNOWN_ORDER"
    NOT_IN_STP_GROUP = "NOT_IN_STP_GROUP"
    POST_ONLY_WOULD_CROSS = "POST_ONLY_WOULD_CROSS"
    DUPLICATE_CLIENT_ORDER_ID = "DUPLICATE_CLIENT_ORDER_ID"
    TOO_MANY_FILLS = "TOO_MANY_FILLS"
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    EXPIRE_TIME_PASSED = "EXPIRE_TIME_PASSED"
    INVALID_DISPLAY_QUANTITY = "INVALID_DISPLAY_QUANTITY"
    TOO_LATE = "TOO_LATE"
    WOULD_TRIGGER = "WOULD_TRIGGER"
    NO_LAST_PRICE = "NO_LAST_PRICE"
    PRICE_OUT_OF_BAND = "PRICE_OUT_OF_BAND"
    NOTIONAL_TOO_SMALL = "NOTIONAL_TOO_SMALL"
    TOO_MANY_OPEN_ORDERS = "TOO_MANY_OPEN_ORDERS"
    TOO_MANY_STORED_REPLIES = "TOO_MANY_STORED_REPLIES"
    TOO_MANY_STP_GROUP_ACCOUNTS = "TOO_MANY_STP_GROUP_ACCOUNTS"
    TOO_MANY_TRAILING_STOPS = "TOO_MANY_TRAILING_STOPS"
    SESSION_NOT_ARMED = "SESSION_NOT_ARMED"
    TOO_MANY_TIMERS = "TOO_MANY_TIMERS"
    EXPIRING = "EXPIRING"
    CANCELING = "CANCELING"
    TRIGGERS_PENDING = "TRIGGERS_PENDING"
    INVALID_ORDER_LIST = "INVALID_ORDER_LIST"
    ORDER_NOT_ARMED = "ORDER_NOT_ARMED"

    SYSTEM_BUSY = "SYSTEM_BUSY"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    UNAVAILABLE = "UNAVAILABLE"
    DURABILITY_UNAVAILABLE = "DURABILITY_UNAVAILABLE"
    DRAINING = "DRAINING"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    NOT_SUBSCRIBED = "NOT_SUBSCRIBED"
    TOO_MANY_SUBSCRIPTIONS = "TOO_MANY_SUBSCRIPTIONS"
    RATE_LIMITED = "RATE_LIMITED"


class Durability(StrEnum):
    """What an acknowledgement waits for: that its change is on the disk of the primary, on a
    replica, or both."""

    MEMORY = "memory"
    FSYNC = "fsync"
    REPLICA = "replica"
    FSYNC_REPLICA = "fsync+replica"

    @property
    def parts(self) -> "tuple[Durability, ...]":
        """What is to be confirmed, one by one; nothing for memory."""
        if self is Durability.MEMORY:
            return ()
        return tuple(Durability(part) for part in self.split("+"))

    def with_minimum(self, minimum: "Durability") -> "Durability":
        """The weakest that is as strong as both."""
        parts = sorted({*self.parts, *minimum.parts})
        return Durability("+".join(parts)) if parts else Durability.MEMORY


# What a reply says where its change stands and was not confirmed in time.
UNCONFIRMED = "unconfirmed"


class Channel(StrEnum):
    """What can be subscribed to."""

    BOOK = "book"
    TRADES = "trades"
    LEVEL2 = "level2"
    LEVEL3 = "level3"
    ORDERS = "orders"
    TICKER = "ticker"
    CANDLES = "candles"
    INSTRUMENTS = "instruments"
    HEARTBEAT = "heartbeat"


class Envelope(Struct, forbid_unknown_fields=True):
    """Every frame a client sends. req_id and params stay as sent until the method is known."""

    method: str
    req_id: Raw = Raw()
    params: Raw = Raw()


class RecoveredEnvelope(Struct):
    """What can be told of a frame that is an object but no good envelope."""

    method: Raw = Raw()
    req_id: Raw = Raw()


class Params(Struct, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a method of one book. The symbol chooses the book and is then unset: the
    engine takes it from the key."""

    symbol: str | UnsetType


class Command(Params, kw_only=True):
    """The parameters of a command: it changes the book, and may be told to come in time or not at
    all."""

    valid_until_ms: OptionalTime = UNSET
    # For the host, which waits for it; the engine never sees it.
    durability: Durability | UnsetType = UNSET


class NewOrder(Command):
    """What place_order and replace_order say of an order."""

    side: str
    order_type: str
    quantity: OptionalText = UNSET
    quote_quantity: OptionalText = UNSET
    price: OptionalText = UNSET
    stop_price: OptionalText = UNSET
    trailing_offset: OptionalText = UNSET
    time_in_force: OptionalText = UNSET
    expire_time_ms: OptionalTime = UNSET
    display_quantity: OptionalText = UNSET
    post_only: OptionalFlag = UNSET
    protection: OptionalText = UNSET
    self_trade_prevention: OptionalText = UNSET
    stp_group: OptionalText = UNSET
    client_order_id: OptionalText = UNSET


class PlaceOrder(NewOrder):
    validate_only: OptionalFlag = UNSET


class ListedOrder(Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """An order of an order list: the fields of place_order that are not the list's own."""

    side: str
    order_type: str
    quantity: OptionalText = UNSET
    price: OptionalText = UNSET
    stop_price: OptionalText = UNSET
    trailing_offset: OptionalText = UNSET
    time_in_force: OptionalText = UNSET
    expire_time_ms: OptionalTime = UNSET
    display_quantity: OptionalText = UNSET
    post_only: OptionalFlag = UNSET
    protection: OptionalText = UNSET
    self_trade_prevention: OptionalText = UNSET
    stp_group: OptionalText = UNSET
    client_order_id: OptionalText = UNSET


class PlaceOrderList(Command):
    """`orders` is told to the engine as the text of a JSON list; a client may send either."""

    list_type: str
    orders: list[ListedOrder] | str
    client_order_id: OptionalText = UNSET


class CancelOrder(Command):
    order_id: OptionalText = UNSET
    client_order_id: OptionalText = UNSET


class AmendOrder(Command):
    order_id: OptionalText = UNSET
    client_order_id: OptionalText = UNSET
    price: OptionalText = UNSET
    stop_price: OptionalText = UNSET
    quantity: OptionalText = UNSET
    remaining_quantity: OptionalText = UNSET


class CancelAllOrders(Command):
    """Of one book by `symbol`, or of several by `symbols`."""

    symbol: OptionalText = UNSET
    symbols: (
        Annotated[list[str], Meta(min_length=1, max_length=SYMBOLS_PER_CANCEL_MAX)] | UnsetType
    ) = UNSET
    side: OptionalText = UNSET


class ReplaceOrder(NewOrder):
    cancel_order_id: OptionalText = UNSET
    cancel_client_order_id: OptionalText = UNSET
    on_failure: OptionalText = UNSET


class Quote(Struct, forbid_unknown_fields=True, kw_only=True):
    side: str
    price: str
    quantity: str
    client_order_id: OptionalText = UNSET


class MassQuote(Command):
    quotes: Annotated[list[Quote], Meta(max_length=QUOTES_MAX)]
    post_only: OptionalFlag = UNSET
    self_trade_prevention: OptionalText = UNSET
    stp_group: OptionalText = UNSET


class CancelAllAfter(Command):
    timeout_ms: int | str


class GetBook(Params):
    depth: OptionalCount = UNSET


class GetLevel3(Params):
    depth: OptionalCount = UNSET


class GetOrder(Params):
    order_id: OptionalText = UNSET
    client_order_id: OptionalText = UNSET


class GetOpenOrders(Params):
    after: OptionalText = UNSET
    limit: OptionalCount = UNSET


class GetTrades(Params):
    limit: OptionalCount = UNSET


class GetCandles(Params):
    interval: OptionalText = UNSET
    limit: OptionalCount = UNSET
    before: OptionalCount = UNSET


class GetTicker(Params):
    pass


class GetAuction(Params):
    pass


class GetClosedOrders(Params):
    before: OptionalCount = UNSET
    limit: OptionalCount = UNSET


class GetOwnTrades(GetClosedOrders):
    pass


class GetInstrument(Params):
    pass


class Interval(StrEnum):
    """How long a candle is."""

    MINUTE = "1m"
    FIVE_MINUTES = "5m"
    QUARTER = "15m"
    HOUR = "1h"
    DAY = "1d"


class BookDepth(StrEnum):
    """How many levels a side the channel `book` tells."""

    TEN = "10"
    FIFTY = "50"
    FIVE_HUNDRED = "500"
    FULL = "full"


class ChannelParams(Struct, forbid_unknown_fields=True, kw_only=True):
    """What names subscriptions: `interval` goes with candles, `depth` with book."""

    channel: Channel
    symbols: Symbols | UnsetType = UNSET
    interval: Interval | UnsetType = UNSET
    depth: BookDepth | int | UnsetType = UNSET


class SubscribeParams(ChannelParams, kw_only=True):
    """`after` resumes: every update with a greater sequence follows, in place of a snapshot."""

    after: Sequence | UnsetType = UNSET
    epoch: Sequence | UnsetType = UNSET


class UnsubscribeParams(ChannelParams, kw_only=True):
    pass


class CancelOnDisconnectParams(Struct, forbid_unknown_fields=True):
    """Of the connection as a whole."""

    timeout_ms: int | str


class PingParams(Struct, forbid_unknown_fields=True):
    pass


class LogoutParams(Struct, forbid_unknown_fields=True):
    pass


class Position(Struct):
    """Where in a book's history a reply or message stands; read out of JSON that says more."""

    sequence: int
    epoch: int


class PublishWait(Struct):
    """When publish_book is worth calling again; read out of its reply."""

    wait_ms: int


class Ticked(Struct):
    """Whether tick is to be called again at once; read out of its reply."""

    pending: bool


class Refusal(Struct):
    """Why something was refused; read out of its reply."""

    code: str
    message: str


class CanceledAll(Struct):
    """Whether cancel_all_orders is to be called again; read out of its reply."""

    remaining_count: int


class Page(Struct):
    """What paging needs to know of a get_open_orders reply."""

    class Order(Struct):
        order_id: str

    sequence: int
    epoch: int
    orders: list[Order]
    more: bool
