"""What people see on a terminal: ladders, tapes and tables, from replies and stream messages.

Every function takes decoded JSON as the protocol defines it and gives something rich can print;
where the output is not a terminal, rich leaves the colours out and the text stays readable.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

LADDER_WIDTH = 38
BAR_WIDTH = 8

BUY_STYLE = "green"
SELL_STYLE = "red"
_SIDE_STYLES = {"buy": BUY_STYLE, "sell": SELL_STYLE}

Message = Mapping[str, Any]
Level = Sequence[str]


def ladder(book: Message, depth: int) -> Panel:
    """A book as traders know it: asks above, best at the bottom; the spread; bids below.

    Always `2 × depth + 1` rows high, so that a live view does not jump.
    """
    asks = [*book["asks"]][:depth]
    bids = [*book["bids"]][:depth]
    largest = max((Decimal(quantity) for _, quantity in [*asks, *bids]), default=Decimal(1))
    table = Table.grid(padding=(0, 1))
    table.add_column(width=BAR_WIDTH, justify="right")
    table.add_column(width=12, justify="right")
    table.add_column(width=12, justify="right")
    blanks: list[Level] = [("", "")] * depth
    for level in reversed([*asks, *blanks][:depth]):
        _add_level(table, level, largest, SELL_STYLE)
    table.add_row("", Text("spread", style="dim"), Text(_spread(bids, asks), style="dim"))
    for level in [*bids, *blanks][:depth]:
        _add_level(table, level, largest, BUY_STYLE)
    subtitle = f"sequence {book['sequence']}"
    return Panel(table, title=f"[bold]{book['symbol']}", subtitle=subtitle, width=LADDER_WIDTH)


def _add_level(table: Table, level: Level, largest: Decimal, style: str) -> None:
    price, quantity = level
    if not price:
        table.add_row("", "", "")
        return
    bar = "█" * max(1, round(Decimal(quantity) / largest * BAR_WIDTH))
    table.add_row(Text(bar, style=f"dim {style}"), quantity, Text(price, style=f"bold {style}"))


def _spread(bids: Sequence[Level], asks: Sequence[Level]) -> str:
    if not (bids and asks):
        return "-"
    return format((Decimal(asks[0][0]) - Decimal(bids[0][0])).normalize(), "f")


def book_lines(book: Message) -> str:
    """A book as plain text for pipes: one level a line, `side price quantity`, asks first."""
    asks = [f"sell {price} {quantity}" for price, quantity in reversed(book["asks"])]
    bids = [f"buy {price} {quantity}" for price, quantity in book["bids"]]
    return "\n".join([f"{book['symbol']} sequence {book['sequence']}", *asks, *bids])


def tape(trades: Iterable[Message], rows: int | None = None) -> Table:
    """Trades, newest first; `symbol` is shown where the trades carry one."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "price", "quantity", "trade"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    newest_first = list(trades)[::-1][:rows]
    for trade in newest_first:
        style = _SIDE_STYLES[trade["aggressor_side"]]
        table.add_row(
            Text(trade.get("symbol", trade["aggressor_side"]), style=style),
            Text(trade["price"], style=style),
            trade["quantity"],
            trade["trade_id"],
        )
    return table


def records(rows: Sequence[Message], columns: Sequence[str]) -> Table:
    """Replies as a table, one row each; a field that a reply does not have is left blank."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*[_cell(row.get(column, "")) for column in columns])
    return table


def record(reply: Message) -> Table:
    """One reply, a field a row."""
    table = Table.grid(padding=(0, 2))
    for name, value in reply.items():
        table.add_row(Text(name, style="dim"), _cell(value))
    return table


def _cell(value: object) -> Text:
    match value:
        case bool():
            return Text("yes" if value else "no", style="green" if value else "bold red")
        case None:
            return Text("-", style="dim")
        case list():
            return Text("\n".join(_line(item) for item in value))
        case Mapping():
            return Text(_line(value))
        case _:
            return Text(str(value))


def _line(item: object) -> str:
    if isinstance(item, Mapping):
        return " ".join(f"{name} {value}" for name, value in item.items())
    return str(item)


def side_by_side(panels: Sequence[Any], per_row: int) -> Table:
    """Panels in rows of `per_row`."""
    grid = Table.grid(padding=(0, 1))
    iterators = [iter(panels)] * per_row
    for row in zip_longest(*iterators, fillvalue=""):
        grid.add_row(*row)
    return grid


def markets(rows: Sequence[Message]) -> Table:
    """One line per market; `last` is coloured by `last_side`, the side that traded last."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("symbol", "bid", "ask", "last", "trades", "books"):
        table.add_column(column, justify="left" if column == "symbol" else "right", min_width=10)
    for row in rows:
        table.add_row(
            Text(row["symbol"], style="bold"),
            Text(row["bid"], style=BUY_STYLE),
            Text(row["ask"], style=SELL_STYLE),
            Text(row["last"], style=_SIDE_STYLES.get(row["last_side"], "")),
            str(row["trades"]),
            str(row["books"]),
        )
    return table


def demo_summary(summary: Message) -> Group:
    """What the demo did, and whether everything in it was right."""
    latencies = ", ".join(f"{name} {value} ms" for name, value in summary["latency_ms"].items())
    totals = (
        f"{summary['orders']} orders, {summary['cancels']} cancels, {summary['amends']} amends, "
        f"{summary['trades']} trades and {summary['books_relayed']} books "
        f"in {summary['duration_s']:.1f} s; acknowledged: {latencies}"
    )
    columns = ("symbol", "orders", "trades", "books_relayed", "last_price", "verified")
    rows = [{"symbol": symbol, **report} for symbol, report in summary["symbols"].items()]
    verdict = Text("every book verified", style="bold green")
    if not summary["verified"]:
        verdict = Text("VERIFICATION FAILED: see --json for what", style="bold red")
    return Group(records(rows, columns), Text(totals), verdict)
