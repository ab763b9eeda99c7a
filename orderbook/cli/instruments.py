"""Instruments, their first orders, and the groups of accounts."""

from typing import TYPE_CHECKING

import click

from orderbook.cli.shared import (
    EXIT_REJECTED,
    SEED_LEVELS_MAX,
    Reply,
    call_function,
    json_option,
    option,
    print_reply,
    print_rows,
    redis_url_option,
    self_trade_prevention_choice,
    symbol_argument,
    with_engine,
)

if TYPE_CHECKING:
    from orderbook.engine.engine import Engine


@click.group()
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
    reply = call_function("define_instrument", redis_url, symbol, **rules)
    print_reply(reply, as_json)


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
    print_rows(with_engine(redis_url, work), columns, as_json)


@instrument.command("show")
@symbol_argument
@redis_url_option
@json_option
def show_instrument(symbol: str, redis_url: str, as_json: bool) -> None:
    """Show one instrument."""
    print_reply(call_function("get_instrument", redis_url, symbol), as_json)


@click.command("seed")
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

    rows = with_engine(redis_url, work)
    print_rows(rows, ("symbol", "orders_open", "rejects", "sequence"), as_json)
    if any(row.get("status") == "rejected" for row in rows):
        raise click.exceptions.Exit(EXIT_REJECTED)


# Orders


@click.command("set-stp-group")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose group.")
@option("--stp-group", help="The group; without it the account leaves its group.")
@redis_url_option
@json_option
def set_stp_group(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Put an account into a group of accounts that count as one trader to self-trade prevention.

    It applies to all books of the segment that SYMBOL is in.
    """
    print_reply(call_function("set_stp_group", redis_url, symbol, **fields), as_json)


@click.command("get-stp-group")
@symbol_argument
@option("--account", envvar="ORDERBOOK_ACCOUNT", required=True, help="Whose group.")
@redis_url_option
@json_option
def get_stp_group(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Show the group that an account belongs to."""
    print_reply(call_function("get_stp_group", redis_url, symbol, **fields), as_json)
