"""The load test: many clients over websockets, at a rate or as fast as it goes, and the proof that
nothing was lost.

    python scripts/load.py --url ws://a:8080/ws --url ws://b:8080/ws --rate 2000 --duration 30
    python scripts/load.py --hosts 2 --kill-after 3 --duration 8

The idea: a load test that only counts is easily fooled. Every client here keeps a ledger, survives
the death of its host by resuming at the next one, and in the end each acknowledged order must be in
the book or in the reports, each trade seen once by every subscriber, and each book sound. With
--hosts the script starts server and hosts itself, and --kill-after kills one with SIGKILL.
"""

import asyncio
import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random

import click
import msgspec
from hdrh.histogram import HdrHistogram
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from audit import OrderLedger, TradeTape, Violations
from client import Client, ClientError, Frame, Params, wait_until
from hosts import Host, start_hosts
from orderbook.demo.market import MARKETS, Market
from rig import open_book, open_server
from trader import ACTIONS, IN_FLIGHT_MAX, Count, Flow, Schedule, Trader

LATENCY_US_MAX = 600_000_000
LATENCY_DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
HOSTS_MAX = 16
CONNECTIONS_MAX = 10_000
MIX_DEFAULT = "limit=40,ioc=20,market=5,cancel=25,amend=10"
# Where a book is empty and has never traded, its middle is so many ticks.
MIDDLE_TICKS_DEFAULT = 100_000
TAPE_TIMEOUT_S = 10.0
# When no other instrument has been told for so long, that was all of them.
DISCOVERY_INTERVAL_S = 0.5
# A host looks for new instruments once a second.
DISCOVERY_TIMEOUT_S = 3.0
DURING_INTERVAL_S = 0.05

# Called while orders are sent, with the seconds since the first.
During = Callable[[float], None]


@dataclass(frozen=True)
class Settings:
    """What load to make."""

    urls: list[str]
    connections: int
    rate: float | None
    duration_s: float
    symbols: list[str]
    mix: dict[str, float]
    in_flight: int
    random_seed: int

    def schedule(self, index: int, start_s: float) -> Schedule:
        """The schedule of trader `index`: all together make the rate, evenly spread."""
        end_s = start_s + self.duration_s
        if self.rate is None:
            return Schedule(start_s, 0.0, end_s, self.in_flight)
        interval_s = self.connections / self.rate
        first_s = start_s + index / self.rate
        return Schedule(first_s, interval_s, end_s, IN_FLIGHT_MAX)


class Summary(msgspec.Struct, omit_defaults=True):
    """What --json prints. Nothing was lost, doubled or damaged when `verified`."""

    verified: bool
    seconds: float
    connections: int
    rate_target: float | None
    latency_counts_from: str
    sent: int
    acknowledged: int
    rejected: dict[str, int]
    orders_per_second: float
    latency_ms: dict[str, float]
    trades: int
    reconnects: int
    resent: int
    hosts_killed: int
    books_verified: int
    violation_count: int
    violations: list[str]


class Load:
    """One run: traders and subscribers on the hosts, and what they found."""

    def __init__(self, settings: Settings) -> None:
        self.histogram = HdrHistogram(1, LATENCY_US_MAX, LATENCY_DIGITS)
        self.count = Count(self.histogram.record_value)
        self.violations = Violations()
        self.tapes: list[dict[str, TradeTape]] = []
        self.seconds = 0.0
        self._settings = settings
        self._run_name = uuid.uuid4().hex[:8]
        self._clients: list[Client] = []

    async def run(self, during: During) -> None:
        """The whole run. `during` is called again and again while orders are sent."""
        async with contextlib.AsyncExitStack() as cleanup:
            markets = await self._markets(cleanup)
            for index in range(len(self._settings.urls)):
                await self._watch(cleanup, index, markets)
            traders = [
                await self._seat(cleanup, index, markets[index % len(markets)])
                for index in range(self._settings.connections)
            ]
            with self._shortfalls():
                await self._trade(traders, during)
                for differences in await asyncio.gather(*(trader.settle() for trader in traders)):
                    for difference in differences:
                        self.violations.add(difference)
                await self._finish_tapes(traders[0].client)

    @property
    def reconnects(self) -> int:
        return sum(client.reconnects for client in self._clients)

    @property
    def resent(self) -> int:
        return sum(client.resent for client in self._clients)

    @contextlib.contextmanager
    def _shortfalls(self) -> Iterator[None]:
        try:
            yield
        except* ClientError as errors:
            for error in errors.exceptions:
                self.violations.add(str(error))

    async def _trade(self, traders: list[Trader], during: During) -> None:
        start_s = asyncio.get_running_loop().time()
        watching = asyncio.create_task(_repeat(during, start_s))
        try:
            async with asyncio.TaskGroup() as group:
                for index, trader in enumerate(traders):
                    group.create_task(trader.trade(self._settings.schedule(index, start_s)))
        finally:
            watching.cancel()
        self.seconds = asyncio.get_running_loop().time() - start_s

    async def _client(
        self,
        cleanup: contextlib.AsyncExitStack,
        index: int,
        account: str,
        take: Callable[[Frame], None],
    ) -> Client:
        """A client that begins with url `index` and goes on to the next ones."""
        urls = self._settings.urls
        first = index % len(urls)
        client = Client(urls[first:] + urls[:first], account, take)
        self._clients.append(client)
        return await cleanup.enter_async_context(client)

    async def _markets(self, cleanup: contextlib.AsyncExitStack) -> list[Market]:
        told: set[str] = set()
        client = await self._client(
            cleanup, 0, f"load-{self._run_name}", lambda frame: told.add(frame.symbol)
        )
        symbols = self._settings.symbols or await _all_symbols(client, told)
        return [await _market(client, symbol) for symbol in symbols]

    async def _watch(
        self, cleanup: contextlib.AsyncExitStack, index: int, markets: list[Market]
    ) -> None:
        """A subscriber to all trades, on host `index`."""
        tapes = {market.symbol: TradeTape(market.symbol, self.violations) for market in markets}
        account = f"load-{self._run_name}-tape-{index}"
        client = await self._client(
            cleanup, index, account, lambda frame: tapes[frame.symbol].take(frame)
        )
        for symbol in tapes:
            await client.subscribe("trades", symbol)
        self.tapes.append(tapes)

    async def _seat(self, cleanup: contextlib.AsyncExitStack, index: int, market: Market) -> Trader:
        account = f"load-{self._run_name}-{index}"
        ledger = OrderLedger(f"{account} {market.symbol}", self.violations)
        client = await self._client(cleanup, index, account, ledger.take)
        await client.subscribe("orders", market.symbol)
        flow = Flow(market, self._settings.mix, Random(f"{self._settings.random_seed}/{index}"))
        return Trader(client, flow, ledger, self.count)

    async def _finish_tapes(self, client: Client) -> None:
        """Every subscriber must come to the last trade of every book."""
        for symbol in self.tapes[0]:
            last = await _last_trade_id(client, symbol)
            for number, tapes in enumerate(self.tapes):
                tape = tapes[symbol]
                if not await wait_until(partial(tape.has_reached, last), TAPE_TIMEOUT_S):
                    self.violations.add(
                        f"subscriber {number} saw trade {tape.last_trade_id} of {last} {symbol}"
                    )


async def _repeat(during: During, start_s: float) -> None:
    while True:
        during(asyncio.get_running_loop().time() - start_s)
        await asyncio.sleep(DURING_INTERVAL_S)


async def _ask(client: Client, method: str, params: Params) -> dict[str, object]:
    answer = await client.request(method, params)
    if answer.error:
        raise click.ClickException(f"{method}: {answer.error.code} {answer.error.message}")
    return msgspec.json.decode(answer.result, type=dict[str, object])


async def _all_symbols(client: Client, told: set[str]) -> list[str]:
    """The instruments there are: their snapshots come to `told`, one soon after the other."""
    await _ask(client, "subscribe", {"channel": "instruments"})
    await wait_until(lambda: bool(told), DISCOVERY_TIMEOUT_S)
    count = -1
    while len(told) > count:
        count = len(told)
        await asyncio.sleep(DISCOVERY_INTERVAL_S)
    await _ask(client, "unsubscribe", {"channel": "instruments"})
    if not told:
        raise click.ClickException("there are no instruments; `orderbook seed` defines some")
    return sorted(told)


async def _market(client: Client, symbol: str) -> Market:
    """The instrument, its price_start the middle of the book as it is now."""
    rules = await _ask(client, "get_instrument", {"symbol": symbol})
    book = await _ask(client, "get_book", {"symbol": symbol, "depth": "1"})
    tick_size, lot_size = Decimal(str(rules["tick_size"])), Decimal(str(rules["lot_size"]))
    sides = msgspec.convert([book["bids"], book["asks"]], list[list[tuple[Decimal, Decimal]]])
    best = [side[0][0] for side in sides if side]
    if not best:
        best = [Decimal(str(rules.get("last_price", tick_size * MIDDLE_TICKS_DEFAULT)))]
    return Market(symbol, tick_size, lot_size, sum(best, Decimal()) / len(best))


async def _last_trade_id(client: Client, symbol: str) -> int:
    reply = await _ask(client, "get_trades", {"symbol": symbol, "limit": "1"})
    trades = msgspec.convert(reply["trades"], list[dict[str, object]])
    return int(str(trades[-1]["trade_id"])) if trades else 0


class Killer:
    """Kills the first host once, when its time has come."""

    def __init__(self, hosts: Sequence[Host], after_s: float | None) -> None:
        self.killed = 0
        self._host = hosts[0] if hosts else None
        self._after_s = after_s

    def look(self, elapsed_s: float) -> None:
        if self._host is None or self._after_s is None or self.killed:
            return
        if elapsed_s >= self._after_s:
            self._host.kill()
            self.killed = 1


def run_load(settings: Settings, killer: Killer) -> Load:
    """Runs the load with a progress bar on the terminal."""
    load = Load(settings)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task("connecting", total=settings.duration_s)

        def during(elapsed_s: float) -> None:
            killer.look(elapsed_s)
            text = f"{load.count.acknowledged:,} acknowledged, {load.reconnects} reconnects"
            progress.update(task, completed=elapsed_s, description=text)

        asyncio.run(load.run(during))
    return load


def summarize(settings: Settings, load: Load, hosts_killed: int, books_verified: int) -> Summary:
    histogram = load.histogram
    latency_ms = {
        f"p{percentile:g}": histogram.get_value_at_percentile(percentile) / 1000
        for percentile in PERCENTILES
    }
    count = load.count
    return Summary(
        verified=not load.violations.count,
        seconds=round(load.seconds, 3),
        connections=settings.connections,
        rate_target=settings.rate,
        latency_counts_from="intended send time" if settings.rate else "send time",
        sent=count.sent,
        acknowledged=count.acknowledged,
        rejected=dict(count.rejected),
        orders_per_second=round((count.acknowledged + count.rejected.total()) / load.seconds, 1),
        latency_ms=latency_ms | {"max": histogram.get_max_value() / 1000},
        trades=max(sum(tape.count for tape in tapes.values()) for tapes in load.tapes),
        reconnects=load.reconnects,
        resent=load.resent,
        hosts_killed=hosts_killed,
        books_verified=books_verified,
        violation_count=load.violations.count,
        violations=load.violations.sentences,
    )


def plot(load: Load, settings: Settings, path: Path) -> None:
    """Latency by percentile; the axis stretches toward 100%, where the trouble is."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and only plots need it

    nines = [1 - 10 ** (-step / 20) for step in range(81)]
    values_ms = [load.histogram.get_value_at_percentile(100 * share) / 1000 for share in nines]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([1 / (1 - share) for share in nines], values_ms)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = {1: "0%", 2: "50%", 10: "90%", 100: "99%", 1000: "99.9%", 10_000: "99.99%"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, alpha=0.3)
    axes.set_xlabel("percentile of orders")
    axes.set_ylabel("acknowledged after, ms")
    target = f"{settings.rate:,.0f} orders/s wanted" if settings.rate else "as fast as it goes"
    axes.set_title(f"{target}, {settings.connections} connections, {load.count.sent:,} orders sent")
    figure.savefig(path, dpi=120)


def verify_books(redis_url: str, symbols: Sequence[str], violations: Violations) -> int:
    """verify_book on every book; returns how many are sound."""
    sound = 0
    for symbol in symbols:
        with open_book(redis_url, symbol) as book:
            reply = book.read("verify_book")
            if reply["verified"] is True:
                sound += 1
            else:
                violations.add(f"{symbol}: {reply['violations']}")
    return sound


def _parse_mix(_context: click.Context, _parameter: click.Parameter, text: str) -> dict[str, float]:
    mix = {}
    for part in text.split(","):
        action, _, weight = part.partition("=")
        try:
            mix[action] = float(weight)
        except ValueError:
            raise click.BadParameter(f"{part!r} is not ACTION=WEIGHT") from None
    if set(mix) - set(ACTIONS) or min(mix.values()) < 0 or not sum(mix.values()):
        raise click.BadParameter(f"weights of {', '.join(ACTIONS)}, not all zero")
    return mix


def _split(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[str]:
    return [symbol for symbol in (text or "").split(",") if symbol]


def show(summary: Summary) -> None:
    """The summary for people."""
    console = Console()
    for name, value in msgspec.to_builtins(summary).items():
        console.print(f"{name:20} {value}", highlight=False)


@click.command()
@click.option(
    "--url", "urls", multiple=True, help="A host's websocket, ws://HOST:PORT/ws; repeat for more."
)
@click.option(
    "--hosts",
    "host_count",
    type=click.IntRange(1, HOSTS_MAX),
    default=1,
    show_default=True,
    help="Without --url: start so many hosts, and a server.",
)
@click.option(
    "--kill-after",
    "kill_after_s",
    type=click.FloatRange(0),
    help="With --hosts: SIGKILL one after so many seconds.",
)
@click.option(
    "--connections", type=click.IntRange(1, CONNECTIONS_MAX), default=20, show_default=True
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Orders a second, all together; default: as fast as it goes.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, IN_FLIGHT_MAX),
    default=8,
    show_default=True,
    help="Without --rate: unanswered orders a connection.",
)
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="Seconds of sending.",
)
@click.option(
    "--symbols", callback=_split, help="Comma-separated; default: every instrument there is."
)
@click.option(
    "--mix",
    callback=_parse_mix,
    default=MIX_DEFAULT,
    show_default=True,
    help="Weights of the actions.",
)
@click.option(
    "--random-seed", default=1, show_default=True, help="The same seed draws the same orders."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the latency plot, PNG.",
)
def main(  # noqa: PLR0913, PLR0917 - click passes every option by itself
    urls: tuple[str, ...],
    host_count: int,
    kill_after_s: float | None,
    connections: int,
    rate: float | None,
    in_flight: int,
    duration_s: float,
    symbols: list[str],
    mix: dict[str, float],
    random_seed: int,
    as_json: bool,
    plot_path: Path | None,
) -> None:
    """Load the hosts with orders; exit 1 when anything was lost, doubled or damaged."""
    if kill_after_s is not None and (urls or host_count < 2):
        raise click.UsageError("--kill-after needs --hosts 2 or more, and no --url")
    books_verified = 0
    with contextlib.ExitStack() as cleanup:
        hosts: list[Host] = []
        if not urls:
            redis_url = cleanup.enter_context(open_server(None))
            symbols = _define_markets(redis_url, symbols)
            hosts = cleanup.enter_context(start_hosts(redis_url, host_count))
        settings = Settings(
            urls=list(urls) or [host.url for host in hosts],
            connections=connections,
            rate=rate,
            duration_s=duration_s,
            symbols=symbols,
            mix=mix,
            in_flight=in_flight,
            random_seed=random_seed,
        )
        killer = Killer(hosts, kill_after_s)
        load = run_load(settings, killer)
        if hosts:
            books_verified = verify_books(redis_url, symbols, load.violations)
    summary = summarize(settings, load, killer.killed, books_verified)
    if plot_path:
        plot(load, settings, plot_path)
    if as_json:
        click.echo(msgspec.json.encode(summary))
    else:
        show(summary)
    if not summary.verified:
        sys.exit(1)


def _define_markets(redis_url: str, symbols: list[str]) -> list[str]:
    """The demo's markets, or those of them that are wanted."""
    wanted = [market for market in MARKETS if not symbols or market.symbol in symbols]
    if not wanted:
        raise click.UsageError(f"of our own there are {', '.join(m.symbol for m in MARKETS)}")
    for market in wanted:
        with open_book(redis_url, market.symbol) as book:
            book.define(**market.rules)
    return [market.symbol for market in wanted]


if __name__ == "__main__":
    main()
