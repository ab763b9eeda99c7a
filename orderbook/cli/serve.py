"""A host, or several processes of one, and the embedded server where there is no other."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from orderbook.cli.shared import (
    DURABILITIES,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    LIMIT_MAX,
    LOOPBACK,
    PORT_MAX,
    REDIS_PORT_DEFAULT,
    REPLICAS_MAX,
    SERVER_WATCH_INTERVAL_S,
    WORKERS_MAX,
    Command,
    Failure,
    accept_option,
    failures_explained,
    json_option,
    option,
    print_json,
    without_password,
)
from orderbook.limits import Limits

if TYPE_CHECKING:
    from orderbook.processes.embedded_server import EmbeddedServer


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


@click.command()
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
    type=click.Choice(DURABILITIES),
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
        "redis": without_password(settings.redis_url),
    }
    if as_json:
        print_json(urls)
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
        with failures_explained(settings.redis_url):
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
