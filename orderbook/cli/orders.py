"""Orders: place, cancel, amend, replace, lists, quotes, and what became of them."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from orderbook.cli.shared import (
    CANCELED_BOOKS_MAX,
    Command,
    Reply,
    account_option,
    call_function,
    client_order_id_option,
    durability_option,
    given_fields,
    json_option,
    option,
    print_reply,
    print_rows,
    redis_url_option,
    self_trade_prevention_choice,
    session_option,
    symbol_argument,
    valid_until_option,
    with_engine,
)

if TYPE_CHECKING:
    from orderbook.engine.engine import Engine

_ORDER_TYPES = (
    *("limit", "market", "stop", "stop_limit", "take_profit", "take_profit_limit"),
    "trailing_stop",
)


@click.group()
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
    print_reply(call_function("place_order", redis_url, symbol, **fields, **flags), as_json)


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
    print_reply(
        call_function("place_order_list", redis_url, symbol, orders=orders, **fields), as_json
    )


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
    print_reply(call_function("cancel_order", redis_url, symbol, **fields), as_json)


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
    print_reply(call_function("amend_order", redis_url, symbol, **fields), as_json)


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
    print_reply(call_function("replace_order", redis_url, symbol, **fields, **flags), as_json)


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
    print_reply(
        call_function("mass_quote", redis_url, symbol, quotes=text, **fields, **flags), as_json
    )


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
            terms = given_fields(account=account, before=page_before, limit=str(page_limit))
            reply: Reply = await getattr(engine, function)(symbol, **terms)
            if reply.get("status") == "rejected":
                return reply
            rows += reply[rows_name]
            page_before = str(reply["before"])
            if not reply["more"] or len(rows) >= limit:
                return {**reply, rows_name: rows}

    return with_engine(redis_url, work)


def _print_history(reply: Reply, rows_name: str, columns: tuple[str, ...], as_json: bool) -> None:
    if as_json or reply.get("status") == "rejected":
        print_reply(reply, as_json)
    else:
        print_rows(reply[rows_name], columns, as_json)


@order.command("show")
@symbol_argument
@option("--order-id", help="The order; else --account and --client-order-id.")
@account_option
@client_order_id_option
@redis_url_option
@json_option
def show_order(symbol: str, redis_url: str, as_json: bool, **fields: str | None) -> None:
    """Show an open order."""
    print_reply(call_function("get_order", redis_url, symbol, **fields), as_json)


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

    reply = with_engine(redis_url, work)
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
            reply = await engine.cancel_all_orders(target, **given_fields(**fields))
            if reply.get("status") == "rejected":
                return reply
            total = _all_canceled(total, reply)
            if not (reply["remaining_count"] and reply["canceled_count"]):
                return total

    reply = with_engine(redis_url, work)
    if "books" in reply and not as_json:
        columns = ("symbol", "canceled_order_ids", "canceled_count", "remaining_count", "sequence")
        print_rows(reply["books"], columns, as_json)
    else:
        print_reply(reply, as_json)


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
    print_reply(call_function("cancel_all_after", redis_url, symbol, **fields), as_json)
