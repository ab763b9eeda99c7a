"""Every benchmark behind one door.

    python scripts/bench.py [engine] [--profile] [--against REVISION]
    python scripts/bench.py all|book|host|fan-out|hosts|start [--quick] [--json] [--plot DIRECTORY]

The idea: whatever is measured is measured beside something that bounds it, in the same run: a book
beside a smaller one, a host beside a bare websocket server, many hosts beside one. Each part starts
the servers it needs. `engine` can measure a server of yours, and has options of its own; `all` runs
everything, with the engine on several flows, and prints one line to each target.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

import bench_book
import bench_engine
import bench_fan_out
import bench_host
import bench_hosts
import bench_start
from bench_engine import BATCH, SYNTHETIC, Bench, Report
from figures import Figure, print_table
from rig import open_book, open_server

# Takes the directory for plots, if any are wanted.
Measure = Callable[[Path | None], list[Figure]]


class Part(NamedTuple):
    """A part as it is meant, and small and short."""

    full: Measure
    quick: Measure


PARTS = {
    name: Part(partial(module.measure, module.FULL), partial(module.measure, module.QUICK))
    for name, module in (
        ("engine", bench_engine),
        ("book", bench_book),
        ("host", bench_host),
        ("fan-out", bench_fan_out),
        ("hosts", bench_hosts),
        ("start", bench_start),
    )
}


@click.command()
@click.argument("part", type=click.Choice([*PARTS, "all"]), default="engine")
@click.option(
    "--redis-url",
    envvar="ORDERBOOK_REDIS_URL",
    help="engine: a server to empty and measure; default: an embedded one.",
)
@click.option(
    "--data",
    "flow_name",
    default="normal.bin.xz",
    show_default=True,
    help=f"engine: a workload of the challenge, or {SYNTHETIC}.",
)
@click.option(
    "--messages",
    type=click.IntRange(BATCH),
    default=100_000,
    show_default=True,
    help="engine: messages of the flow.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="engine: rounds that count.",
)
@click.option(
    "--profile", is_flag=True, help="engine: also the calls, time and bytes of a message."
)
@click.option("--against", metavar="REVISION", help="engine: also the library of a revision.")
@click.option(
    "--erase", is_flag=True, help="Needed with --redis-url: every round empties that server."
)
@click.option("--quick", is_flag=True, help="Not engine: small and short, to see that it runs.")
@click.option(
    "--plot",
    "plots",
    type=click.Path(file_okay=False, path_type=Path),
    help="Not engine: a directory for plots of how costs grow.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(  # noqa: PLR0913, PLR0917 - click passes every option by itself
    part: str,
    redis_url: str | None,
    flow_name: str,
    messages: int,
    rounds: int,
    profile: bool,
    against: str | None,
    erase: bool,
    quick: bool,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Measure one PART, or all of them."""
    if part != "engine":
        if plots is not None:
            plots.mkdir(parents=True, exist_ok=True)
        chosen = PARTS.values() if part == "all" else [PARTS[part]]
        measures = [one.quick if quick else one.full for one in chosen]
        figures = [line for measure in measures for line in measure(plots)]
        if as_json:
            click.echo(msgspec.json.encode(figures))
        else:
            print_table(figures)
        return
    if redis_url and not erase:
        raise click.UsageError("every round runs FLUSHALL on that server: say --erase to agree")
    name, commands = bench_engine.flow(flow_name, messages)
    with open_server(redis_url) as url, open_book(url, bench_engine.SYMBOL) as book:
        bench = Bench(book, bench_engine.library_of(against) if against else None)
        cases = bench.cases(commands)
        report = Report(
            server=bench.server_name(),
            flow=name,
            messages=len(commands),
            rounds=rounds,
            batch=BATCH,
            lines=bench_engine.measure_engine(bench, cases, rounds),
            profiles=bench_engine.profiles(bench, cases) if profile else [],
        )
        book.connection.call("FUNCTION", "DELETE", "orderbook_bench")
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        bench_engine.print_report(report)


if __name__ == "__main__":
    main()
