"""What people see on a terminal: ladders, tapes and tables, from replies and stream messages.

Every function takes decoded JSON as the protocol defines it and gives something rich can print;
where the output is not a terminal, rich leaves the colours out and the text stays readable.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

LADDER_WIDTH = 38
BAR_WIDTH = 8
PANEL_FRAME_WIDTH = 4

BUY_STYLE = "green"
SELL_STYLE = "red"
_SIDE_STYLES = {"buy": BUY_STYLE, "sell": SELL_STYLE}

Message = Mapping[str, Any]
Level = Sequence[str]


def ladder(book: Message, depth: int) -> Panel:
    """A book as traders know it: asks above, best at the bottom; the spread; bids below.

    Always `2 × depth + 1` rows high, so that a live view does not jump. Made of plain lines: to lay
    out a table takes rich many times longer, which a live view would pay at every frame.
    """
    bids = _aligned(book["bids"][:depth], book["asks"][:depth])
    asks = _aligned(book["asks"][:depth], book["bids"][:depth])
    largest = max((Decimal(quantity) for _, quantity in [*asks, *bids]), default=Decimal(1))
    lines = [
        *[_blank_line()] * (depth - len(asks)),
        *[_level_line(level, largest, SELL_STYLE) for level in reversed(asks)],
        Text(_columns("", "spread", _spread(bids, asks)), style="dim"),
        *[_level_line(level, largest, BUY_STYLE) for level in bids],
        *[_blank_line()] * (depth - len(bids)),
    ]
    return Panel(
        Text("\n").join(lines),
        title=f"[bold]{book['symbol']}",
        subtitle=f"sequence {book['sequence']}",
        width=max(LADDER_WIDTH, max(line.cell_len for line in lines) + PANEL_FRAME_WIDTH),
    )


def _columns(bar: str, quantity: str, price: str) -> str:
    return f"{bar:>{BAR_WIDTH}} {quantity:>12} {price:>12}"


def _blank_line() -> Text:
    return Text(_columns("", "", ""))


def _level_line(level: Level, largest: Decimal, style: str) -> Text:
    price, quantity = level
    bar = "█" * max(1, round(Decimal(quantity) / largest * BAR_WIDTH))
    line = Text(_columns(bar, quantity, price))
    line.stylize(f"dim {style}", 0, BAR_WIDTH)
    line.stylize(f"bold {style}", -len(price))
    return line


def _aligned(levels: Sequence[Level], others: Sequence[Level]) -> list[Level]:
    """Levels with as many decimals as any of both sides: points stand below points."""
    decimals = [
        max(len(text.partition(".")[2]) for text in column)
        for column in zip(*levels, *others, strict=True)
    ]
    return [
        [f"{Decimal(text):.{places}f}" for text, places in zip(level, decimals, strict=True)]
        for level in levels
    ]


def _spread(bids: Sequence[Level], asks: Sequence[Level]) -> str:
    if not (bids and asks):
        return "-"
    return format((Decimal(asks[0][0]) - Decimal(bids[0][0])).normalize(), "f")


def book_lines(book: Message) -> str:
    """A book as plain text for pipes: one level a line, `side price quantity`, asks first.

    Of orders likewise, with order_id and priority behind.
    """
    asks = [" ".join(["sell", *map(str, row)]) for row in reversed(book["asks"])]
    bids = [" ".join(["buy", *map(str, row)]) for row in book["bids"]]
    return "\n".join([f"{book['symbol']} sequence {book['sequence']}", *asks, *bids])


def tape(trades: Iterable[Message]) -> Text:
    """Trades, newest first; with their symbol where they carry one, else with the aggressor's side.

    A trade of an auction has no aggressor.
    """
    lines = [Text(_tape_columns("", "price", "quantity", "trade"), style="dim")]
    for trade in reversed([*trades]):
        side = trade.get("aggressor_side", "")
        name = trade.get("symbol") or side or "auction"
        line = Text(_tape_columns(name, trade["price"], trade["quantity"], trade["trade_id"]))
        line.stylize(_SIDE_STYLES.get(side, ""), 0, len(name))
        lines.append(line)
    return Text("\n").join(lines)


def _tape_columns(name: str, price: str, quantity: str, trade_id: str) -> str:
    return f"{name:<9} {price:>10} {quantity:>10} {trade_id:>7}"


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


def side_by_side(panels: Sequence[Any]) -> Table:
    """Panels in one row."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(*panels)
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
