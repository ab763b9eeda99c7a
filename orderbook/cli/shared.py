"""What the commands share: exit codes, options, the way to the engine, output."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orderbook.engine.engine import Engine

EXIT_OK = 0
EXIT_REJECTED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_VIOLATION = 4
EXIT_LIBRARY = 5
EXIT_SERVER = 6
EXIT_UNKNOWN = 7
EXIT_INTERRUPTED = 130

WORKERS_MAX = 64
SEED_LEVELS_MAX = 1000
CANCELED_BOOKS_MAX = 100
REPLICAS_MAX = 100

REDIS_URL_DEFAULT = "redis://127.0.0.1:6379"
REDIS_PORT_DEFAULT = 6379
PORT_MAX = 65535
LIMIT_MAX = 1_000_000_000
LOOPBACK = "127.0.0.1"
WATCH_INTERVAL_S = 0.5
SERVER_WATCH_INTERVAL_S = 0.5
# A pipe has no width: lines are never folded there.
PIPE_WIDTH = 10_000


Reply = dict[str, Any]
Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

option = partial(click.option, show_envvar=True, show_default=True)

json_option = option(
    "--json", "as_json", is_flag=True, envvar="ORDERBOOK_JSON", help="Print JSON, nothing else."
)
redis_url_option = option(
    "--redis-url",
    envvar="ORDERBOOK_REDIS_URL",
    default=REDIS_URL_DEFAULT,
    help="redis://, rediss://, unix://, redis+sentinel://HOST:PORT,…/SERVICE or "
    "redis+cluster://HOST:PORT.",
)
account_option = option("--account", envvar="ORDERBOOK_ACCOUNT", help="Whose order.")
client_order_id_option = option("--client-order-id", help="Makes the command safe to repeat.")
valid_until_option = option(
    "--valid-until-ms", help="Refuse the command when it arrives later; milliseconds since 1970."
)
DURABILITIES = ("memory", "fsync", "replica", "fsync+replica")
durability_option = option(
    "--durability",
    type=click.Choice(DURABILITIES),
    show_default="memory",
    help="Wait until the change is on the server's disk, on a replica, or both.",
)
session_option = option("--session", help="Only orders placed with this session.")
symbol_argument = click.argument("symbol")

accept_option = option(
    "--accept",
    multiple=True,
    type=click.Choice(["eviction", "no-append-only-file", "replica", "output-buffer"]),
    help="Accept this finding about the server; repeat for more.",
)

self_trade_prevention_choice = click.Choice(
    ["none", "cancel_taker", "cancel_maker", "cancel_both", "decrement"]
)


class Failure(click.ClickException):
    """An error with an exit code of its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        # click declares it for the class; every instance of ours has its own.
        self.exit_code = exit_code  # type: ignore[misc]


@contextlib.asynccontextmanager
async def connected(redis_url: str) -> AsyncIterator["Engine"]:
    from orderbook.engine.engine import Engine

    try:
        engine = await Engine.connect(redis_url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--redis-url") from error
    try:
        yield engine
    finally:
        await engine.close()


@contextlib.contextmanager
def failures_explained(redis_url: str) -> Iterator[None]:
    """Turns what can go wrong with a server into a message and an exit code."""
    from redis.exceptions import RedisError

    from orderbook.engine.errors import EngineError
    from orderbook.engine.library import LibraryError, bundle
    from orderbook.engine.preflight import PreflightError

    try:
        yield
    except LibraryError as error:
        raise Failure(str(error), EXIT_LIBRARY) from error
    except PreflightError as error:
        raise Failure(str(error), EXIT_SERVER) from error
    except EngineError as error:
        message = f"{without_password(redis_url)}: {error}"
        raise Failure(message, exit_code(error)) from error
    except RedisError as error:
        message = f"{without_password(redis_url)}: {bundle().explain(str(error))}"
        raise Failure(message, exit_code(error)) from error


def exit_code(error: Exception) -> int:
    """What a failed call means, told by the error or what caused it."""
    from redis.exceptions import ResponseError

    from orderbook.engine.library import LibraryError
    from orderbook.messages import RejectCode

    code = getattr(error, "code", None)
    cause = error.__cause__ or error
    if code is RejectCode.OUTCOME_UNKNOWN:
        return EXIT_UNKNOWN
    if isinstance(cause, LibraryError):
        return EXIT_LIBRARY
    refused = {RejectCode.OUT_OF_MEMORY, RejectCode.DURABILITY_UNAVAILABLE}
    if code in refused or isinstance(cause, ResponseError):
        return EXIT_SERVER
    return EXIT_UNREACHABLE


def with_engine(redis_url: str, work: Callable[["Engine"], Awaitable[Result]]) -> Result:
    async def connect_and_work() -> Result:
        async with connected(redis_url) as engine:
            return await work(engine)

    with failures_explained(redis_url):
        return asyncio.run(connect_and_work())


def without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def print_json(value: object) -> None:
    click.echo(json.dumps(value, separators=(",", ":")))


def print_rich(renderable: "RenderableType") -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(renderable)


def print_reply(reply: Reply, as_json: bool) -> None:
    """Prints one reply of the engine; a reject ends the command."""
    from orderbook import terminal

    rejected = reply.get("status") == "rejected"
    if as_json:
        print_json(reply)
        if rejected:
            raise click.exceptions.Exit(EXIT_REJECTED)
        return
    if rejected:
        raise Failure(f"{reply['code']}: {reply['message']}", EXIT_REJECTED)
    print_rich(terminal.record(reply))


def given_fields(**fields: str | bool | None) -> dict[str, str | bool]:
    return {name: value for name, value in fields.items() if value is not None}


def call_function(function: str, redis_url: str, symbol: str, **fields: str | bool | None) -> Reply:
    """One function of the engine, by its name in the protocol; options not given are left out."""

    async def work(engine: "Engine") -> Reply:
        reply: Reply = await getattr(engine, function)(symbol, **given_fields(**fields))
        if reply.get("code") in {"UNKNOWN_SYMBOL", "INVALID_BOOK_KEY"}:
            reply["message"] = engine.unknown_symbol_text(symbol)
        return reply

    return with_engine(redis_url, work)


def print_rows(rows: list[Reply], columns: tuple[str, ...], as_json: bool) -> None:
    from orderbook import terminal

    if as_json:
        print_json(rows)
        return
    print_rich(terminal.records(rows, columns))
    for row in rows:
        if row.get("status") == "rejected":
            click.echo(f"{row.get('symbol', '')} {row['code']}: {row['message']}", err=True)
