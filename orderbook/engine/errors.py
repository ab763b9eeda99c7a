"""Why the engine could not be asked, told from what a server or a connection has said."""

import logging
from collections.abc import Sequence
from typing import TypeGuard

import msgspec
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from orderbook.engine import library
from orderbook.engine.topology import Node
from orderbook.messages import RejectCode

logger = logging.getLogger(__name__)

# What clients are told of a refusal in which the server has run nothing. Another server, or a later
# time, may accept: the next call looks again.
_REFUSED_FOR_NOW = {
    ReadOnlyError: "the server is a replica: it takes no orders",
    ClusterDownError: "the cluster is not complete",
    NoPermissionError: "the server does not grant the rights that are needed",
}
_REFUSED_FOR_NOW_PREFIXES = {
    "MISCONF": "the server cannot write to its disk",
    "NOREPLICAS": "the server has too few replicas",
}
_UNAVAILABLE_MESSAGE = "the server is not available"
_MOVING_MESSAGE = "the book is being moved to another server: nothing has happened, try again"
# An error reply of the library itself begins so: it is meant to be read, and names no server.
_OWN_ERROR_PREFIX = "DAMAGED"


class EngineError(Exception):
    """The engine could not be asked. `code` is UNAVAILABLE, OUT_OF_MEMORY or OUTCOME_UNKNOWN.

    `message` is for clients. The error's text is for operators: it has the server's own reason as
    well, which may name servers.
    """

    def __init__(self, code: RejectCode, message: str, reason: str = "") -> None:
        super().__init__(f"{message}: {reason}" if reason else message)
        self.code = code
        self.message = message
        self.reason = reason

    def reply(self) -> bytes:
        """The reply that a refused command gets."""
        return rejection(self.code, self.message)


def rejection(code: RejectCode, message: str) -> bytes:
    """A refusal as the engine itself would write it."""
    return b'{"status":"rejected","code":"%s","message":%s}' % (
        code.encode(),
        msgspec.json.encode(message),
    )


class FunctionMissingError(Exception):
    """The server does not have the library."""


class MovingError(Exception):
    """The key's slot moves, or has moved, or nobody has it at present; nothing was run."""

    def __init__(self, refusal: Exception) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def is_asked_of_another(refusal: Exception) -> TypeGuard[AskError]:
    # To redis-py a slot that has moved is a kind of one that moves.
    return isinstance(refusal, AskError) and not isinstance(refusal, MovedError)


def unavailable(error: BaseException) -> EngineError:
    return EngineError(RejectCode.UNAVAILABLE, _UNAVAILABLE_MESSAGE, str(error))


def moving(refusal: Exception, message: str = _MOVING_MESSAGE) -> EngineError:
    """What is said when a slot did not come to rest in time."""
    if isinstance(refusal, ClusterDownError):
        message = _REFUSED_FOR_NOW[ClusterDownError]
    elif not isinstance(refusal, ResponseError):
        message = _UNAVAILABLE_MESSAGE
    return EngineError(RejectCode.UNAVAILABLE, message, f"{type(refusal).__name__}: {refusal}")


def refused(error: ResponseError, node: Node) -> Exception:
    """What a server's refusal means; it has run nothing."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return EngineError(RejectCode.OUT_OF_MEMORY, "the server's memory is full")
    if isinstance(error, (AskError, TryAgainError, ClusterDownError)):
        return MovingError(error)
    if "unction not found" in text:
        return FunctionMissingError("the server has no library orderbook")
    message = _for_now(error, text)
    if message is not None:
        # It may not be the primary any more: the next call looks again.
        node.distrust()
        return EngineError(RejectCode.UNAVAILABLE, message, text)
    if text.startswith(_OWN_ERROR_PREFIX):
        return EngineError(RejectCode.UNAVAILABLE, text)
    message = "the server could not run the call"
    return EngineError(RejectCode.UNAVAILABLE, message, library.bundle().explain(text))


def _for_now(error: ResponseError, text: str) -> str | None:
    """What clients are told of a refusal that another server or a later time may take back."""
    for kind, message in _REFUSED_FOR_NOW.items():
        if isinstance(error, kind):
            return message
    for prefix, message in _REFUSED_FOR_NOW_PREFIXES.items():
        if text.startswith(prefix):
            return message
    return None


def lost(error: BaseException, arguments: Sequence[object]) -> EngineError:
    """The connection broke after a command went out."""
    # Behind Sentinel redis-py reports a demoted primary's refusal as a broken connection.
    if isinstance(error.__context__, ReadOnlyError) or arguments[0] != "FCALL":
        return unavailable(error)
    logger.warning("the reply of %s was lost: %r", arguments[1], error)
    message = "the reply was lost: ask again with the same client_order_id"
    return EngineError(RejectCode.OUTCOME_UNKNOWN, message)
