"""Books: look, watch, tick, verify, replay, repair."""

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING

import click

from orderbook.cli.shared import (
    EXIT_REJECTED,
    EXIT_SERVER,
    EXIT_VIOLATION,
    WATCH_INTERVAL_S,
    Failure,
    Reply,
    call_function,
    json_option,
    option,
    print_json,
    print_reply,
    print_rich,
    print_rows,
    redis_url_option,
    symbol_argument,
    with_engine,
)

if TYPE_CHECKING:
    from orderbook.engine.engine import Engine


@click.command("tick")
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

    rows = with_engine(redis_url, work)
    columns = ("symbol", *_TICK_COUNTS, "pending", "sequence")
    print_rows(rows, columns, as_json)
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


@click.command("book")
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
        book = call_function(function, redis_url, symbol, depth=str(depth))
        if book.get("status") == "rejected":
            print_reply(book, as_json)
        _print_book(book, as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _watch_book(symbol, depth, redis_url, as_json)


def _print_book(book: Reply, as_json: bool) -> None:
    from orderbook import terminal

    if as_json:
        print_json(book)
    elif sys.stdout.isatty() and "more" not in book:
        print_rich(terminal.ladder(book, max(len(book["bids"]), len(book["asks"]))))
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
                print_reply(book, as_json)
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
        with_engine(redis_url, work)


@click.command("trades")
@symbol_argument
@option("--limit", default=50, type=click.IntRange(1, 1000), help="How many of the newest.")
@redis_url_option
@json_option
def show_trades(symbol: str, limit: int, redis_url: str, as_json: bool) -> None:
    """Show the most recent trades."""
    from orderbook import terminal

    reply = call_function("get_trades", redis_url, symbol, limit=str(limit))
    if as_json or reply.get("status") == "rejected":
        print_reply(reply, as_json)
    else:
        print_rich(terminal.tape(reply["trades"]))


@click.command("ticker")
@symbol_argument
@redis_url_option
@json_option
def show_ticker(symbol: str, redis_url: str, as_json: bool) -> None:
    """Show the best prices, the last one, and what happened in the last 24 hours."""
    print_reply(call_function("get_ticker", redis_url, symbol), as_json)


@click.command("candles")
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
    reply = call_function("get_candles", redis_url, symbol, **fields)
    if as_json or reply.get("status") == "rejected":
        print_reply(reply, as_json)
        return
    columns = ("open_time_ms", "open", "high", "low", "close", "volume", "trades", "closed")
    print_rows(reply["candles"], columns, as_json)


@click.command("auction")
@symbol_argument
@redis_url_option
@json_option
def show_auction(symbol: str, redis_url: str, as_json: bool) -> None:
    """Show what the call auction of a book would come to now."""
    print_reply(call_function("get_auction", redis_url, symbol), as_json)


@click.command("verify")
@click.argument("symbols", nargs=-1)
@redis_url_option
@json_option
def verify_books(symbols: tuple[str, ...], redis_url: str, as_json: bool) -> None:
    """Check every invariant of every book, or of SYMBOLS; exit code 4 for any violation."""

    async def work(engine: "Engine") -> list[Reply]:
        names = symbols or tuple(sorted(await engine.instruments()))
        return [{"symbol": symbol, **await engine.verify_book(symbol)} for symbol in names]

    rows = with_engine(redis_url, work)
    columns = ("symbol", "verified", "orders", "levels", "sequence", "state_hash", "violations")
    print_rows(rows, columns, as_json)
    if any(row.get("status") == "rejected" for row in rows):
        raise click.exceptions.Exit(EXIT_REJECTED)
    if not all(row["verified"] for row in rows):
        raise click.exceptions.Exit(EXIT_VIOLATION)


@click.command("replay")
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
        result = with_engine(redis_url, work)
    except ReplayError as error:
        raise Failure(str(error), EXIT_SERVER) from error
    if not isinstance(result, Replay):
        return print_reply(result, as_json)
    summary = result.summary(symbol)
    book = result.book(symbol, depth) if depth else {}
    if as_json:
        print_json(summary | {side: book[side] for side in ("bids", "asks") if book})
    else:
        from orderbook import terminal

        print_rich(terminal.record(summary))
        if book:
            _print_book(book, as_json)
    if result.is_equal is False:
        raise click.exceptions.Exit(EXIT_REJECTED)
    return None


@click.command("repair")
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
        done = with_engine(redis_url, work)
    except RepairError as error:
        raise Failure(str(error), EXIT_SERVER) from error
    if as_json:
        print_json(done.summary())
    else:
        from orderbook import terminal

        print_rich(terminal.record(done.summary()))
    if not (done.verified and done.equal):
        raise click.exceptions.Exit(EXIT_VIOLATION)
