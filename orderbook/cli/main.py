"""The command line: click commands over the Engine, the host and the demo.

What every command keeps to: `--json` prints JSON and nothing else on stdout; every option can come
from an environment variable; the exit code tells a script what happened. A command imports what it
needs when it runs, so that help and mistakes answer at once.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from orderbook import __version__
from orderbook.limits import Limits

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from rich.console import RenderableType

    from orderbook.engine.engine import Engine
    from orderbook.processes.embedded_server import EmbeddedServer

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

_EXIT_CODES = """\b
Exit codes:
  0  done
  1  the engine rejected the command (the code and the reason are printed), or replay gave
     another book than the stored one
  2  wrong usage
  3  Redis, or the embedded server, cannot be reached or started
  4  verify found violations, or the demo lost something
  5  the library on the server is missing, or its version does not fit
  6  the server could not run the command: out of memory, read-only, or a damaged book; it should
     not be used (the preflight says why); or replay found that the event stream does not tell all
  7  the reply was lost: the outcome is unknown, repeat with the same --client-order-id
  130  interrupted
"""

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
_DURABILITIES = ("memory", "fsync", "replica", "fsync+replica")
durability_option = option(
    "--durability",
    type=click.Choice(_DURABILITIES),
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


@click.group(
    epilog=_EXIT_CODES,
    context_settings={
        "auto_envvar_prefix": "ORDERBOOK",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="orderbook")
def cli() -> None:
    """A limit order book and matching engine that is one Redis Functions library.

    Every option can be given as an environment variable, named at each option.
    """


def main() -> None:
    """The console script."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader, say `head`, has seen enough. Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    sys.exit(code or EXIT_OK)


# Shared by the commands


@contextlib.asynccontextmanager
async def _connected(redis_url: str) -> AsyncIterator["Engine"]:
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
def _failures_explained(redis_url: str) -> Iterator[None]:
    """Turns what can go wrong with a server into a message and an exit code."""
    from redis.exceptions import RedisError

    from orderbook.engine.engine import EngineError
    from orderbook.engine.library import LibraryError, bundle
    from orderbook.engine.preflight import PreflightError

    try:
        yield
    except LibraryError as error:
        raise Failure(str(error), EXIT_LIBRARY) from error
    except PreflightError as error:
        raise Failure(str(error), EXIT_SERVER) from error
    except EngineError as error:
        message = f"{_without_password(redis_url)}: {error}"
        raise Failure(message, _exit_code(error)) from error
    except RedisError as error:
        message = f"{_without_password(redis_url)}: {bundle().explain(str(error))}"
        raise Failure(message, _exit_code(error)) from error


def _exit_code(error: Exception) -> int:
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


def _with_engine(redis_url: str, work: Callable[["Engine"], Awaitable[Result]]) -> Result:
    async def connect_and_work() -> Result:
        async with _connected(redis_url) as engine:
            return await work(engine)

    with _failures_explained(redis_url):
        return asyncio.run(connect_and_work())


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, separators=(",", ":")))


def _print(renderable: "RenderableType") -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(renderable)


def _print_reply(reply: Reply, as_json: bool) -> None:
    """Prints one reply of the engine; a reject ends the command."""
    from orderbook import terminal

    rejected = reply.get("status") == "rejected"
    if as_json:
        _print_json(reply)
        if rejected:
            raise click.exceptions.Exit(EXIT_REJECTED)
        return
    if rejected:
        raise Failure(f"{reply['code']}: {reply['message']}", EXIT_REJECTED)
    _print(terminal.record(reply))


def _given(**fields: str | bool | None) -> dict[str, str | bool]:
    return {name: value for name, value in fields.items() if value is not None}


def _call(function: str, redis_url: str, symbol: str, **fields: str | bool | None) -> Reply:
    """One function of the engine, by its name in the protocol; options not given are left out."""

    async def work(engine: "Engine") -> Reply:
        reply: Reply = await getattr(engine, function)(symbol, **_given(**fields))
        if reply.get("code") in {"UNKNOWN_SYMBOL", "INVALID_BOOK_KEY"}:
            reply["message"] = engine.unknown_symbol_text(symbol)
        return reply

    return _with_engine(redis_url, work)


# demo and serve


@cli.command()
@option(
    "--duration", type=click.FloatRange(min=1), help="Seconds to run; without it, until Ctrl-C."
)
@option("--traders", default=8, type=click.IntRange(1, 200), help="Synthetic traders.")
@option("--rate", default=200.0, type=click.FloatRange(1, 5000), help="Commands a second, of all.")
@option("--random-seed", default=1, help="The same seed gives the same books.")
@json_option
def demo(
    duration: float | None, traders: int, rate: float, random_seed: int, as_json: bool
) -> None:
    """Run a whole exchange with synthetic traders, and watch it.

    Starts an embedded server and a host, seeds five books, lets traders in over websockets and
    draws the ladders. At the end every book is verified.
    """
    from orderbook.demo.demo import DemoError, Options, run
    from orderbook.host.workers import WorkerError
    from orderbook.processes.embedded_server import ServerError

    options = Options(duration, traders, rate, random_seed)
    show = not as_json and sys.stdout.isatty()
    try:
        summary = run(options, show)
    except (ServerError, WorkerError) as error:
        raise Failure(str(error), EXIT_UNREACHABLE) from error
    except DemoError as error:
        raise Failure(str(error), EXIT_VIOLATION) from error
    if as_json:
        _print_json(summary)
    else:
        from orderbook.terminal import demo_summary

        _print(demo_summary(summary))
    if not summary["verified"]:
        raise click.exceptions.Exit(EXIT_VIOLATION)


class _Limit(NamedTuple):
    """An option of `serve`, and the field of Limits that it sets."""

    field: str
    range: click.IntRange | click.FloatRange
    help: str


_ANY_COUNT = click.IntRange(0, LIMIT_MAX)
_COUNT = click.IntRange(1, LIMIT_MAX)
_RATE = click.FloatRange(0, LIMIT_MAX)
_SECONDS = click.FloatRange(0.1, LIMIT_MAX)
LIMIT_OPTIONS = {
    "commands_in_flight": _Limit(
        "in_flight_per_connection_max", _COUNT, "Commands of a connection that have not run yet."
    ),
    "requests_per_s": _Limit(
        "requests_per_s_max", _RATE, "Pings, refusals and the like of a connection; 0: any."
    ),
    "address_requests_per_s": _Limit(
        "requests_per_address_per_s_max", _RATE, "The same of an address."
    ),
    "query_weight_per_s": _Limit(
        "query_weight_per_s_max", _RATE, "Weight of a connection's expensive queries; 0: any."
    ),
    "address_query_weight_per_s": _Limit(
        "query_weight_per_address_per_s_max", _RATE, "The same of an address."
    ),
    "handshake_timeout_s": _Limit(
        "handshake_timeout_s", _SECONDS, "For how long a socket may be no websocket."
    ),
    "handshakes": _Limit("handshakes_max", _COUNT, "Sockets that are no websockets."),
    "connections": _Limit("connections_max", _COUNT, "Connections of a host."),
    "address_connections": _Limit(
        "connections_per_address_max", _ANY_COUNT, "Connections of an address; 0: any."
    ),
}


def limit_environment(limits: Mapping[str, float]) -> dict[str, str]:
    """The options as a worker is given them."""
    return {f"ORDERBOOK_SERVE_{name.upper()}": str(given) for name, given in limits.items()}


def limit_options(command: Command) -> Command:
    """The options of `serve` that bound what clients may do."""
    for name, limit in reversed(LIMIT_OPTIONS.items()):
        flag, default = "--" + name.replace("_", "-"), getattr(Limits, limit.field)
        command = option(flag, type=limit.range, default=default, help=limit.help)(command)
    return command


@cli.command()
@option(
    "--host", default=LOOPBACK, help="Address to listen on. Accounts are guests: keep loopback."
)
@option("--port", default=8080, type=click.IntRange(0, PORT_MAX), help="0 takes any free port.")
@option(
    "--admin-port",
    type=click.IntRange(0, PORT_MAX),
    show_default="--port",
    help="Port of /livez /readyz /metrics alone; each further worker takes the next one.",
)
@option(
    "--workers", default=1, type=click.IntRange(1, WORKERS_MAX), help="Host processes on the port."
)
@option(
    "--redis-url",
    envvar="ORDERBOOK_REDIS_URL",
    show_default="an embedded Valkey",
    help="The server that holds the books.",
)
@option("--read-url", help="A replica to read streams from.")
@option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Embedded Valkey: keep the books here.",
)
@option(
    "--redis-port",
    type=click.IntRange(0, 65535),
    show_default="6379, else any",
    help="Embedded Valkey: its port; 0 takes any free one.",
)
@accept_option
@option("--allow-origin", multiple=True, help="Web origin that may connect; repeat for more.")
@option(
    "--allowed-host",
    multiple=True,
    help="Name by which clients may call, beside loopback and --host; * is any.",
)
@option(
    "--durability",
    type=click.Choice(_DURABILITIES),
    default="memory",
    help="What every command's answer waits for at least.",
)
@option(
    "--durability-replicas",
    type=click.IntRange(1, REPLICAS_MAX),
    default=1,
    help="On how many replicas a change must be, where replica is asked for.",
)
@limit_options
@json_option
@click.option("--as-worker", is_flag=True, hidden=True)
def serve(
    host: str,
    port: int,
    admin_port: int | None,
    workers: int,
    redis_url: str | None,
    read_url: str | None,
    data_dir: Path | None,
    redis_port: int | None,
    accept: tuple[str, ...],
    allow_origin: tuple[str, ...],
    allowed_host: tuple[str, ...],
    durability: str,
    durability_replicas: int,
    as_json: bool,
    as_worker: bool,
    **limits: Any,
) -> None:
    """Serve websockets: /ws, and /livez /readyz /metrics beside it.

    Prints one line when it is ready. SIGTERM and Ctrl-C drain: orders in flight are answered,
    clients are told to reconnect, and the exit code is 0.
    """
    if redis_url and (data_dir or redis_port is not None):
        raise click.UsageError("--data-dir and --redis-port belong to the embedded server")
    if workers > 1 and admin_port is not None and not 0 < admin_port <= PORT_MAX - workers + 1:
        raise click.UsageError("--admin-port leaves no port for each of the workers")
    with contextlib.ExitStack() as cleanup:
        server = None if redis_url else _start_embedded(cleanup, data_dir, redis_port)
        books_url = redis_url or (server.url if server else "")
        asked = _Durability(durability, durability_replicas)
        ports = _Ports(port, admin_port)
        # An embedded server without a directory is meant to keep nothing.
        accepted = (*accept, *(() if redis_url or data_dir else ("no-append-only-file",)))
        settings = _HostSettings(
            host, ports, books_url, read_url, allow_origin, allowed_host, asked, accepted, limits
        )
        announce = partial(_announce, settings, as_json)
        if workers == 1 or as_worker:
            _run_host(settings, as_worker, announce)
        else:
            _run_workers(settings, workers, announce)
        if server is not None and server.has_ended:
            raise Failure("the embedded server has ended", EXIT_UNREACHABLE)


@dataclass(frozen=True)
class _Durability:
    """What every command of a host waits for at least."""

    level: str
    replicas: int


@dataclass(frozen=True)
class _Ports:
    """Of clients; and of health checks and metrics, where they have one of their own."""

    public: int
    admin: int | None


@dataclass(frozen=True)
class _HostSettings:
    """The options of `serve` that concern a host, whichever way it runs."""

    host: str
    ports: _Ports
    redis_url: str
    read_url: str | None
    origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    durability: _Durability
    accepted: tuple[str, ...]
    limits: dict[str, Any]

    def environment(self) -> dict[str, str]:
        return {
            "ORDERBOOK_REDIS_URL": self.redis_url,
            "ORDERBOOK_SERVE_READ_URL": self.read_url or "",
            "ORDERBOOK_SERVE_ALLOW_ORIGIN": " ".join(self.origins),
            "ORDERBOOK_SERVE_ALLOWED_HOST": " ".join(self.allowed_hosts),
            "ORDERBOOK_SERVE_ACCEPT": " ".join(self.accepted),
            "ORDERBOOK_SERVE_DURABILITY": self.durability.level,
            "ORDERBOOK_SERVE_DURABILITY_REPLICAS": str(self.durability.replicas),
            **limit_environment(self.limits),
            # For the parent to act on, not for the worker.
            "ORDERBOOK_SERVE_DATA_DIR": "",
            "ORDERBOOK_SERVE_REDIS_PORT": "",
        }


def _start_embedded(
    cleanup: contextlib.ExitStack, data_dir: Path | None, redis_port: int | None
) -> "EmbeddedServer":
    """Starts a Valkey that lives as long as we do, and we as long as it.

    Where nobody chose a port it takes the one at which the other commands look, if that is free.
    """
    from orderbook.processes.embedded_server import EmbeddedServer, PortTakenError, ServerError

    try:
        try:
            port = REDIS_PORT_DEFAULT if redis_port is None else redis_port
            server = cleanup.enter_context(EmbeddedServer(data_dir, port))
        except PortTakenError:
            if redis_port is not None:
                raise
            server = cleanup.enter_context(EmbeddedServer(data_dir))
    except ServerError as error:
        raise Failure(str(error), EXIT_UNREACHABLE) from error
    threading.Thread(target=_end_with, args=(server,), daemon=True).start()
    return server


def _end_with(server: "EmbeddedServer") -> None:
    """Asks this process to drain and end once its server has ended."""
    while not server.has_ended:
        time.sleep(SERVER_WATCH_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _announce(settings: _HostSettings, as_json: bool, port: int, admin_port: int) -> None:
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    urls = {
        "websocket": f"ws://{address}:{port}/ws",
        "ready": f"http://{address}:{admin_port}/readyz",
        "metrics": f"http://{address}:{admin_port}/metrics",
        "redis": _without_password(settings.redis_url),
    }
    if as_json:
        _print_json(urls)
    else:
        click.echo("orderbook is ready: " + " ".join(f"{name} {url}" for name, url in urls.items()))
    sys.stdout.flush()


_Announce = Callable[[int, int], None]


def _run_host(settings: _HostSettings, reuse_port: bool, announce: _Announce) -> None:
    import logging

    from orderbook.host.host import HostConfig, run
    from orderbook.messages import Durability

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    config = HostConfig(
        redis_url=settings.redis_url,
        read_url=settings.read_url,
        host=settings.host,
        port=settings.ports.public,
        admin_port=settings.ports.admin,
        reuse_port=reuse_port,
        origins=settings.origins,
        allowed_hosts=settings.allowed_hosts,
        accepted=settings.accepted,
        durability=Durability(settings.durability.level),
        durability_replicas=settings.durability.replicas,
        limits=Limits(
            **{LIMIT_OPTIONS[name].field: given for name, given in settings.limits.items()}
        ),
    )
    try:
        with _failures_explained(settings.redis_url):
            run(config, announce)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--redis-url or --read-url") from error
    except OSError as error:
        raise _cannot_listen(settings, error) from error


def _cannot_listen(settings: _HostSettings, error: OSError) -> Failure:
    ports = settings.ports
    named = ports.public if ports.admin is None else f"{ports.public} or {ports.admin}"
    return Failure(f"{settings.host}:{named}: {error.strerror}", EXIT_USAGE)


def _run_workers(settings: _HostSettings, count: int, announce: _Announce) -> None:
    from orderbook.host.workers import WorkerError, Workers

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        ports = settings.ports
        with Workers(
            settings.host, ports.public, count, settings.environment(), ports.admin
        ) as workers:
            announce(workers.port, ports.admin or workers.port)
            workers.watch(stopping.wait)
    except WorkerError as error:
        raise Failure(str(error), EXIT_UNREACHABLE) from error
    except OSError as error:
        raise _cannot_listen(settings, error) from error


# functions


@cli.group()
def functions() -> None:
    """Deploy the Lua library, or look which one is there."""


@functions.command("load")
@accept_option
@redis_url_option
@json_option
def load_functions(accept: tuple[str, ...], redis_url: str, as_json: bool) -> None:
    """Bring every primary to this release's library; a newer one is never replaced.

    Looks at the servers first, and tells what is wrong with them.
    """

    async def work(engine: "Engine") -> list[Reply]:
        from msgspec import structs

        from orderbook.engine import library, preflight

        findings = await preflight.server_findings(await engine.every_primary())
        _warn(preflight.told_or_raised(findings, accept))
        return [structs.asdict(report) for report in await library.load(engine)]

    _print_rows(_with_engine(redis_url, work), ("node", "found_version", "action"), as_json)


@functions.command("check")
@accept_option
@redis_url_option
@json_option
def check_functions(accept: tuple[str, ...], redis_url: str, as_json: bool) -> None:
    """Tell which library every primary has; exit code 5 unless all fit this release.

    Tells what is wrong with the servers as well; exit code 6 where they should not be used.
    """
    from orderbook.engine import preflight

    async def work(engine: "Engine") -> tuple[list[Reply], list[preflight.Finding]]:
        primaries = await engine.every_primary()
        findings = await preflight.server_findings(primaries)
        if any(finding.name is preflight.Name.VERSION for finding in findings):
            return [], findings
        rows = [await _library_on(primary) for primary in primaries]
        if all(row["fits"] for row in rows):
            findings += await preflight.rights_findings(engine)
        return rows, findings

    rows, findings = _with_engine(redis_url, work)
    columns = ("node", "found_version", "found_digest", "fits", "up_to_date")
    _print_rows(rows, columns, as_json)
    with _failures_explained(redis_url):
        _warn(preflight.told_or_raised(findings, accept))
    if not all(row["fits"] for row in rows):
        raise click.exceptions.Exit(EXIT_LIBRARY)


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        click.echo(f"warning: {sentence}", err=True)


@functions.command("acl")
@option("--role", type=click.Choice(["loader", "host", "reader"]), help="Only this one.")
@option("--cluster", is_flag=True, help="For the nodes of a cluster.")
@option(
    "--durability",
    type=click.Choice(_DURABILITIES),
    default="memory",
    help="What hosts may be asked to wait for.",
)
@json_option
def print_acl(role: str | None, cluster: bool, durability: str, as_json: bool) -> None:
    """Print the least rights of Redis users, as commands for redis-cli.

    The loader runs `functions load`; a host `serve` and all other commands but `repair`; a reader
    is enough for --read-url, and for commands that only look. Fill in the passwords.
    """
    from orderbook.engine.access import Role, Setting, acl_line
    from orderbook.messages import Durability

    setting = Setting(cluster, Durability(durability))
    lines = {str(one): acl_line(one, setting) for one in Role if role in {None, one}}
    if as_json:
        _print_json(lines)
    else:
        click.echo("\n".join(lines.values()))


async def _library_on(primary: "Redis") -> Reply:
    from orderbook.engine import library

    found = await library.installed(primary)
    return {
        "node": library.node_name(primary),
        "found_version": found and found.version,
        "found_digest": found and found.digest,
        "fits": found is not None and library.fits(found),
        "up_to_date": found is not None and found.digest == library.bundle().digest,
    }


# Instruments and seeding


@cli.group()
def instrument() -> None:
    """Define and look at instruments."""


_STATUSES = ("trading", "halted", "cancel_only", "post_only", "auction")


@instrument.command("define")
@symbol_argument
@option("--tick-size", help="Smallest price step; required the first time.")
@option("--lot-size", help="Smallest quantity step; required the first time.")
@option("--min-quantity", help="Smallest order.")
@option("--max-quantity", help="Largest order.")
@option("--status", type=click.Choice(_STATUSES), help="What is allowed.")
@option(
    "--self-trade-prevention",
    type=self_trade_prevention_choice,
    help="What happens when a trader meets an own order, unless the order says otherwise.",
)
@option("--protection", help="Percent from the best price that market orders go; 0 is no limit.")
@option("--price-band", help="Percent from the last price that limits may be; 0 is no limit.")
@option("--min-notional", help="Smallest price times quantity; 0 is none.")
@option("--open-orders-max", help="Open orders an account may have in this book; 0 is no limit.")
@option("--iceberg-parts-max", help="How many times its display_quantity an iceberg may have.")
@option("--limit-percent", help="Circuit breaker: percent a trade may be from the reference.")
@option("--window-ms", help="Circuit breaker: how long a reference counts.")
@option(
    "--breaker-status",
    type=click.Choice(["halted", "auction"]),
    help="Circuit breaker: the status it sets.",
)
@option("--breaker-duration-ms", help="Circuit breaker: when trading reopens; 0 is not by itself.")
@option("--events-length-max", help="Entries kept in the event stream, about.")
@option("--trades-length-max", help="Entries kept in the trade stream, about.")
@option("--book-length-max", help="Entries kept in the stream of half-second books, about.")
@option(
    "--segment",
    show_default="main for a new book",
    help="Unit of sharding; on a cluster, use several.",
)
@redis_url_option
@json_option
def define_instrument(symbol: str, redis_url: str, as_json: bool, **rules: str | None) -> None:
    """Create a book or change its rules; what is not given stays as it is."""
    reply = _call("define_instrument", redis_url, symbol, **rules)
    _print_reply(reply, as_json)


@instrument.command("list")
@redis_url_option
@json_option
def list_instruments(redis_url: str, as_json: bool) -> None:
    """List every instrument with its rules and state."""

    async def work(engine: "Engine") -> list[Reply]:
        return [
            await engine.get_instrument(symbol) for symbol in sorted(await engine.instruments())
        ]

    columns = ("symbol", "segment", "status", "tick_size", "lot_size", "open_orders", "last_price")
    _print_rows(_with_engine(redis_url, work), columns, as_json)


@instrument.command("show")
@symbol_argument
@redis_url_option
@json_option
def show_instrument(symbol: str, redis_url: str, as_json: bool) -> None:
    """Show one instrument."""
    _print_reply(_call("get_instrument", redis_url, symbol), as_json)


@cli.command("seed")
@click.argument("symbols", nargs=-1)
@option(
    "--levels", default=25, type=click.IntRange(1, SEED_LEVELS_MAX), help="Price levels a side."
)
@option("--random-seed", default=1, help="The same seed gives the same books.")
@redis_url_option
@json_option
def seed_books(
    symbols: tuple[str, ...], levels: int, random_seed: int, redis_url: str, as_json: bool
) -> None:
    """Define the demo's instruments (or only SYMBOLS) and fill their books; safe to repeat."""
    from orderbook.demo.market import MARKETS
    from orderbook.demo.seed import seed

    known = {market.symbol: market for market in MARKETS}
    unknown = [symbol for symbol in symbols if symbol not in known]
    if unknown:
        raise click.BadParameter(f"{unknown[0]} is not one of {', '.join(known)}")
    markets = [known[symbol] for symbol in symbols or known]

    async def work(engine: "Engine") -> list[Reply]:
        return await seed(engine, markets, levels, random_seed)

    rows = _with_engine(redis_url, work)
    _print_rows(rows, ("symbol", "orders_open", "rejects", "sequence"), as_json)
    if any(row.get("status") == "rejected" for row in rows):
        raise click.exceptions.Exit(EXIT_REJECTED)


# Orders


_ORDER_TYPES = (
    *("limit", "market", "stop", "stop_limit", "take_profit", "take_profit_limit"),
    "trailing_stop",
)


@cli.group()
def order() -> None:
    """Place, cancel, amend and replace orders; see what became of them."""


# What `place` and `replace` say of a new order.
_NEW_ORDER_OPTIONS = (
    option("--side", type=click.Choice(["buy", "sell"]), required=True),
    option("--quantity", help="Decimal text."),
    option(
        "--quote-quantity", help="Market orders, in place of --quantity: what to spend or earn."
    ),
    option("--order-type", type=click.Choice(_ORDER_TYPES), default="limit"),
    option("--price", help="limit, stop_limit and take_profit_limit only."),
    option("--stop-price", help="The trade price at which a stop or take_profit order triggers."),
    option(
        "--trailing-offset", help="trailing_stop: its distance, as a price or in percent (2.5%)."
    ),
    option(
        "--time-in-force",
        type=click.Choice(["gtc", "ioc", "fok", "gtd"]),
        show_default="gtc for orders with a price, ioc for others",
    ),
    option("--expire-time-ms", help="gtd: when the order expires; milliseconds since 1970."),
    option("--display-quantity", help="Iceberg: how much of the order the book shows at a time."),
    option("--post-only", is_flag=True, help="Never take: reject the order where it would."),
    option("--protection", help="Market orders: percent from the best price that they go at most."),
    option("--self-trade-prevention", type=self_trade_prevention_choice),
    option("--stp-group", help="The group of one trader that the account belongs to."),
    option("--session", help="Placed with this session, whose timer must be running."),
)
_HISTORY_PAGE_MAX = 1000
# What `closed` and `trades` take.
_HISTORY_OPTIONS = (
    symbol_argument,
    option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose orders."),
    option("--limit", default=100, type=click.IntRange(1), help="How many of the newest, about."),
    option("--before", help="Go on from a page's `before`: a sequence."),
    redis_url_option,
    json_option,
)


def _with_options(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for decorate in reversed(options):
        command = decorate(command)
    return command


def with_new_order_options(command: Command) -> Command:
    """Gives a command every option of a new order."""
    return _with_options(_NEW_ORDER_OPTIONS, command)


def with_history_options(command: Command) -> Command:
    """Gives a command the options of one that looks back."""
    return _with_options(_HISTORY_OPTIONS, command)


@order.command("place")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose order.")
@with_new_order_options
@option("--validate-only", is_flag=True, help="Tell what would happen, and change nothing.")
@valid_until_option
@durability_option
@client_order_id_option
@redis_url_option
@json_option
def place_order(
    symbol: str,
    post_only: bool,
    validate_only: bool,
    redis_url: str,
    as_json: bool,
    **fields: str | None,
) -> None:
    """Place an order; give --quantity or --quote-quantity."""
    if fields["quantity"] is None and fields["quote_quantity"] is None:
        raise click.UsageError("Missing option '--quantity' (or '--quote-quantity').")
    flags = {"post_only": post_only or None, "validate_only": validate_only or None}
    _print_reply(_call("place_order", redis_url, symbol, **fields, **flags), as_json)


@order.command("place-list")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose orders.")
@option("--list-type", type=click.Choice(["oco", "oto", "bracket"]), required=True)
@click.argument("orders", metavar="ORDERS")
@option("--session", help="Placed with this session, whose timer must be running.")
@valid_until_option
@durability_option
@client_order_id_option
@redis_url_option
@json_option
def place_order_list(
    symbol: str, orders: str, redis_url: str, as_json: bool, **fields: str | None
) -> None:
    """Place orders that hang together: ORDERS, a JSON list of objects with an order's fields.

    Of an oco the first that trades or triggers ends the other; of an oto the second is armed when
    the first has filled; of a bracket the first arms a pair as it fills.
    """
    _print_reply(_call("place_order_list", redis_url, symbol, orders=orders, **fields), as_json)


@order.command("cancel")
@symbol_argument
@option("--order-id", help="The order; else --account and --client-order-id.")
@account_option
@client_order_id_option
@valid_until_option
@durability_option
@redis_url_option
@json_option
def cancel_order(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Cancel an order."""
    _print_reply(_call("cancel_order", redis_url, symbol, **fields), as_json)


@order.command("amend")
@symbol_argument
@option("--order-id", help="The order; else --account and --client-order-id.")
@account_option
@client_order_id_option
@option("--price", help="The new price.")
@option("--stop-price", help="The new stop price of an order that waits for it.")
@option("--quantity", help="The new total, what is filled already included.")
@option("--remaining-quantity", help="What is to stay open, in place of --quantity.")
@valid_until_option
@durability_option
@redis_url_option
@json_option
def amend_order(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Change an order; it keeps its id, and its priority when it only shrinks."""
    _print_reply(_call("amend_order", redis_url, symbol, **fields), as_json)


@order.command("replace")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose orders.")
@option("--cancel-order-id", help="The order that goes.")
@option("--cancel-client-order-id", help="The same by its name.")
@option(
    "--on-failure",
    type=click.Choice(["stop", "continue"]),
    show_default="stop",
    help="stop: both or neither; continue: each is tried.",
)
@with_new_order_options
@valid_until_option
@durability_option
@client_order_id_option
@redis_url_option
@json_option
def replace_order(
    symbol: str, post_only: bool, redis_url: str, as_json: bool, **fields: str | None
) -> None:
    """Cancel an order and place a new one, as one change."""
    flags = {"post_only": post_only or None}
    _print_reply(_call("replace_order", redis_url, symbol, **fields, **flags), as_json)


@order.command("mass-quote")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose quotes.")
@option(
    "--quotes",
    required=True,
    help='JSON: [{"side":"buy","price":"100","quantity":"1"},…]; - reads it from stdin.',
)
@option("--post-only", is_flag=True, help="Never take: reject the quotes that would.")
@option("--self-trade-prevention", type=self_trade_prevention_choice)
@option("--stp-group", help="The group of one trader that the account belongs to.")
@option("--session", help="Placed with this session, whose timer must be running.")
@valid_until_option
@durability_option
@redis_url_option
@json_option
def mass_quote(
    symbol: str, quotes: str, post_only: bool, redis_url: str, as_json: bool, **fields: str | None
) -> None:
    """Replace all quotes of an account in a book; [] withdraws them."""
    text = sys.stdin.read() if quotes == "-" else quotes
    flags = {"post_only": post_only or None}
    _print_reply(_call("mass_quote", redis_url, symbol, quotes=text, **fields, **flags), as_json)


def _page_back(function: str, rows_name: str, fields: dict[str, Any]) -> Reply:
    """Reads page after page of what an account's orders came to, up to the limit, which is the
    command's. The reply is that of the last page, with all rows."""
    redis_url, symbol, account = fields["redis_url"], fields["symbol"], fields["account"]
    limit, before = fields["limit"], fields["before"]

    async def work(engine: "Engine") -> Reply:
        rows: list[Reply] = []
        page_before = before
        while True:
            page_limit = min(limit - len(rows), _HISTORY_PAGE_MAX)
            terms = _given(account=account, before=page_before, limit=str(page_limit))
            reply: Reply = await getattr(engine, function)(symbol, **terms)
            if reply.get("status") == "rejected":
                return reply
            rows += reply[rows_name]
            page_before = str(reply["before"])
            if not reply["more"] or len(rows) >= limit:
                return {**reply, rows_name: rows}

    return _with_engine(redis_url, work)


def _print_history(reply: Reply, rows_name: str, columns: tuple[str, ...], as_json: bool) -> None:
    if as_json or reply.get("status") == "rejected":
        _print_reply(reply, as_json)
    else:
        _print_rows(reply[rows_name], columns, as_json)


@order.command("show")
@symbol_argument
@option("--order-id", help="The order; else --account and --client-order-id.")
@account_option
@client_order_id_option
@redis_url_option
@json_option
def show_order(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Show an open order."""
    _print_reply(_call("get_order", redis_url, symbol, **fields), as_json)


@order.command("open")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose orders.")
@redis_url_option
@json_option
def open_orders(symbol: str, account: str, redis_url: str, as_json: bool) -> None:
    """Show an account's open orders, the oldest first."""

    async def work(engine: "Engine") -> Reply:
        rows: list[Reply] = []
        page: Reply = {"more": True}
        while page["more"]:
            after = rows[-1]["order_id"] if rows else None
            page = await engine.get_open_orders(symbol, account=account, after=after)
            if page.get("status") == "rejected":
                return page
            rows += page["orders"]
        return {**page, "orders": rows}

    reply = _with_engine(redis_url, work)
    columns = ("order_id", "client_order_id", "side", "order_type", "price", "quantity")
    _print_history(reply, "orders", (*columns, "remaining_quantity", "status"), as_json)


@order.command("closed")
@with_history_options
def closed_orders(as_json: bool, **fields: Any) -> None:
    """Show an account's orders that are filled, canceled or expired, the latest first."""
    reply = _page_back("get_closed_orders", "orders", fields)
    columns = ("order_id", "client_order_id", "side", "price", "quantity", "remaining_quantity")
    _print_history(reply, "orders", (*columns, "status", "reason", "sequence"), as_json)


@order.command("trades")
@with_history_options
def own_trades(as_json: bool, **fields: Any) -> None:
    """Show an account's own trades, the latest first."""
    reply = _page_back("get_own_trades", "trades", fields)
    columns = ("trade_id", "order_id", "client_order_id", "role", "side", "price", "quantity")
    _print_history(reply, "trades", (*columns, "remaining_quantity", "sequence"), as_json)


@order.command("cancel-all")
@click.argument("symbols", nargs=-1, required=True)
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose orders.")
@option("--side", type=click.Choice(["buy", "sell"]), show_default="both")
@session_option
@valid_until_option
@durability_option
@redis_url_option
@json_option
def cancel_all_orders(
    symbols: tuple[str, ...], redis_url: str, as_json: bool, **fields: str | None
) -> None:
    """Cancel all of an account's open orders in one or more books, however many there are."""
    if len(symbols) > CANCELED_BOOKS_MAX:
        raise click.UsageError(f"at most {CANCELED_BOOKS_MAX} books at once")
    target = symbols[0] if len(symbols) == 1 else symbols

    async def work(engine: "Engine") -> Reply:
        total: Reply = {}
        while True:
            reply = await engine.cancel_all_orders(target, **_given(**fields))
            if reply.get("status") == "rejected":
                return reply
            total = _all_canceled(total, reply)
            if not (reply["remaining_count"] and reply["canceled_count"]):
                return total

    reply = _with_engine(redis_url, work)
    if "books" in reply and not as_json:
        columns = ("symbol", "canceled_order_ids", "canceled_count", "remaining_count", "sequence")
        _print_rows(reply["books"], columns, as_json)
    else:
        _print_reply(reply, as_json)


def _all_canceled(before: Reply, reply: Reply) -> Reply:
    """The later reply, with what was canceled before; book by book where there are several."""
    if not before:
        return reply
    joined = {**reply, "canceled_count": before["canceled_count"] + reply["canceled_count"]}
    if "books" in reply:
        books = zip(before["books"], reply["books"], strict=True)
        joined["books"] = [_all_canceled(earlier, later) for earlier, later in books]
    else:
        joined["canceled_order_ids"] = before["canceled_order_ids"] + reply["canceled_order_ids"]
    return joined


@order.command("cancel-all-after")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose orders.")
@option("--timeout-ms", required=True, help="1000 to 86400000; 0 stops the timer.")
@session_option
@valid_until_option
@durability_option
@redis_url_option
@json_option
def cancel_all_after(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Cancel all of an account's open orders in a book unless this is repeated in time."""
    _print_reply(_call("cancel_all_after", redis_url, symbol, **fields), as_json)


@cli.command("set-stp-group")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose group.")
@option("--stp-group", help="The group; without it the account leaves its group.")
@redis_url_option
@json_option
def set_stp_group(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Put an account into a group of accounts that count as one trader to self-trade prevention.

    It applies to all books of the segment that SYMBOL is in.
    """
    _print_reply(_call("set_stp_group", redis_url, symbol, **fields), as_json)


@cli.command("get-stp-group")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose group.")
@redis_url_option
@json_option
def get_stp_group(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Show the group that an account belongs to."""
    _print_reply(_call("get_stp_group", redis_url, symbol, **fields), as_json)


@cli.command("tick")
@click.argument("symbols", nargs=-1)
@redis_url_option
@json_option
def tick_books(symbols: tuple[str, ...], redis_url: str, as_json: bool) -> None:
    """Do what is due, in every book or in SYMBOLS: expire orders, carry out timers, go on with
    paused and triggered orders.

    Hosts do so by themselves twice a second.
    """

    async def work(engine: "Engine") -> list[Reply]:
        names = symbols or tuple(sorted(await engine.instruments()))
        return [{"symbol": symbol, **await _tick_until_done(engine, symbol)} for symbol in names]

    rows = _with_engine(redis_url, work)
    columns = ("symbol", *_TICK_COUNTS, "pending", "sequence")
    _print_rows(rows, columns, as_json)
    if any(row.get("status") == "rejected" for row in rows):
        raise click.exceptions.Exit(EXIT_REJECTED)


_TICK_COUNTS = ("expired_count", "canceled_count", "triggered_count")


async def _tick_until_done(engine: "Engine", symbol: str) -> Reply:
    """The last reply, with the counts of all."""
    counts = dict.fromkeys(_TICK_COUNTS, 0)
    while True:
        reply = await engine.tick(symbol)
        if reply.get("status") == "rejected":
            return reply
        for name in counts:
            counts[name] += reply[name]
        if not reply["pending"]:
            return {**reply, **counts}


# Market data


@cli.command("book")
@symbol_argument
@option("--depth", default=10, type=click.IntRange(1, 10_000), help="Levels a side.")
@option("--watch", is_flag=True, help="Go on, with every change, until Ctrl-C.")
@option("--orders", is_flag=True, help="Order by order, each level in queue order (get_level3).")
@redis_url_option
@json_option
def show_book(
    symbol: str, depth: int, watch: bool, orders: bool, redis_url: str, as_json: bool
) -> None:
    """Show the book; on a terminal as a ladder."""
    if watch and orders:
        raise click.UsageError("--orders shows the book as it is now, without --watch")
    if not watch:
        function = "get_level3" if orders else "get_book"
        book = _call(function, redis_url, symbol, depth=str(depth))
        if book.get("status") == "rejected":
            _print_reply(book, as_json)
        _print_book(book, as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _watch_book(symbol, depth, redis_url, as_json)


def _print_book(book: Reply, as_json: bool) -> None:
    from orderbook import terminal

    if as_json:
        _print_json(book)
    elif sys.stdout.isatty() and "more" not in book:
        _print(terminal.ladder(book, max(len(book["bids"]), len(book["asks"]))))
    else:
        click.echo(terminal.book_lines(book))
    sys.stdout.flush()


def _watch_book(symbol: str, depth: int, redis_url: str, as_json: bool) -> None:
    """Reads the book twice a second and shows it when it has changed: it needs no host to run."""
    from rich.live import Live

    from orderbook import terminal

    live = Live(auto_refresh=False) if sys.stdout.isatty() and not as_json else None

    async def work(engine: "Engine") -> None:
        # Ctrl-C as an event: a cancellation that meets a reply on its way can get lost.
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopping.set)
        position = None
        while not stopping.is_set():
            book = await engine.get_book(symbol, depth=str(depth))
            if book.get("status") == "rejected":
                _print_reply(book, as_json)
            if position != (book["epoch"], book["sequence"]):
                position = (book["epoch"], book["sequence"])
                if live is None:
                    _print_book(book, as_json)
                else:
                    live.update(terminal.ladder(book, depth), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await stopping.wait()

    with live or contextlib.nullcontext():
        _with_engine(redis_url, work)


@cli.command("trades")
@symbol_argument
@option("--limit", default=50, type=click.IntRange(1, 1000), help="How many of the newest.")
@redis_url_option
@json_option
def show_trades(symbol: str, limit: int, redis_url: str, as_json: bool) -> None:
    """Show the most recent trades."""
    from orderbook import terminal

    reply = _call("get_trades", redis_url, symbol, limit=str(limit))
    if as_json or reply.get("status") == "rejected":
        _print_reply(reply, as_json)
    else:
        _print(terminal.tape(reply["trades"]))


@cli.command("ticker")
@symbol_argument
@redis_url_option
@json_option
def show_ticker(symbol: str, redis_url: str, as_json: bool) -> None:
    """Show the best prices, the last one, and what happened in the last 24 hours."""
    _print_reply(_call("get_ticker", redis_url, symbol), as_json)


@cli.command("candles")
@symbol_argument
@option("--interval", type=click.Choice(["1m", "5m", "15m", "1h", "1d"]), default="1m")
@option("--limit", default=50, type=click.IntRange(1, 500), help="How many of the newest.")
@option("--before", help="Only candles that opened before; milliseconds since 1970.")
@redis_url_option
@json_option
def show_candles(
    symbol: str, interval: str, limit: int, before: str | None, redis_url: str, as_json: bool
) -> None:
    """Show the candles of a book, oldest first."""
    fields = {"interval": interval, "limit": str(limit), "before": before}
    reply = _call("get_candles", redis_url, symbol, **fields)
    if as_json or reply.get("status") == "rejected":
        _print_reply(reply, as_json)
        return
    columns = ("open_time_ms", "open", "high", "low", "close", "volume", "trades", "closed")
    _print_rows(reply["candles"], columns, as_json)


@cli.command("auction")
@symbol_argument
@redis_url_option
@json_option
def show_auction(symbol: str, redis_url: str, as_json: bool) -> None:
    """Show what the call auction of a book would come to now."""
    _print_reply(_call("get_auction", redis_url, symbol), as_json)


@cli.command("verify")
@click.argument("symbols", nargs=-1)
@redis_url_option
@json_option
def verify_books(symbols: tuple[str, ...], redis_url: str, as_json: bool) -> None:
    """Check every invariant of every book, or of SYMBOLS; exit code 4 for any violation."""

    async def work(engine: "Engine") -> list[Reply]:
        names = symbols or tuple(sorted(await engine.instruments()))
        return [{"symbol": symbol, **await engine.verify_book(symbol)} for symbol in names]

    rows = _with_engine(redis_url, work)
    columns = ("symbol", "verified", "orders", "levels", "sequence", "state_hash", "violations")
    _print_rows(rows, columns, as_json)
    if any(row.get("status") == "rejected" for row in rows):
        raise click.exceptions.Exit(EXIT_REJECTED)
    if not all(row["verified"] for row in rows):
        raise click.exceptions.Exit(EXIT_VIOLATION)


@cli.command("replay")
@symbol_argument
@option("--to", "to_sequence", type=click.IntRange(1), help="As it was at this sequence.")
@option("--depth", type=click.IntRange(1), help="Also show the rebuilt book: levels a side.")
@redis_url_option
@json_option
def replay_book(
    symbol: str, to_sequence: int | None, depth: int | None, redis_url: str, as_json: bool
) -> None:
    """Rebuild a book from its event stream alone and compare it with the stored one.

    Exit code 1 when they differ. With --to nothing is compared, unless the book stands there.
    """
    from orderbook.feed.replay import Replay, ReplayError, replay

    async def work(engine: "Engine") -> Reply | Replay:
        instrument = await engine.get_instrument(symbol)
        if instrument.get("status") == "rejected":
            return instrument
        return await replay(engine, symbol, to_sequence)

    try:
        result = _with_engine(redis_url, work)
    except ReplayError as error:
        raise Failure(str(error), EXIT_SERVER) from error
    if not isinstance(result, Replay):
        return _print_reply(result, as_json)
    summary = result.summary(symbol)
    book = result.book(symbol, depth) if depth else {}
    if as_json:
        _print_json(summary | {side: book[side] for side in ("bids", "asks") if book})
    else:
        from orderbook import terminal

        _print(terminal.record(summary))
        if book:
            _print_book(book, as_json)
    if result.is_equal is False:
        raise click.exceptions.Exit(EXIT_REJECTED)
    return None


@cli.command("repair")
@symbol_argument
@redis_url_option
@json_option
def repair_book(symbol: str, redis_url: str, as_json: bool) -> None:
    """Bring a damaged book to what its event stream tells, and halt it.

    What is replaced is kept under other names. Exit code 4 when the book is still not in order.
    """
    from orderbook.feed.repair import Repair, RepairError, repair

    async def work(engine: "Engine") -> Repair:
        await engine.instruments()
        return await repair(engine, symbol)

    try:
        done = _with_engine(redis_url, work)
    except RepairError as error:
        raise Failure(str(error), EXIT_SERVER) from error
    if as_json:
        _print_json(done.summary())
    else:
        from orderbook import terminal

        _print(terminal.record(done.summary()))
    if not (done.verified and done.equal):
        raise click.exceptions.Exit(EXIT_VIOLATION)


def _print_rows(rows: list[Reply], columns: tuple[str, ...], as_json: bool) -> None:
    from orderbook import terminal

    if as_json:
        _print_json(rows)
        return
    _print(terminal.records(rows, columns))
    for row in rows:
        if row.get("status") == "rejected":
            click.echo(f"{row.get('symbol', '')} {row['code']}: {row['message']}", err=True)
