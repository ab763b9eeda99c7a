"""The demo, and what it asks for."""

import sys

import click

from orderbook.cli.shared import (
    EXIT_UNREACHABLE,
    EXIT_VIOLATION,
    Failure,
    json_option,
    option,
    print_json,
    print_rich,
)


@click.command()
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
        print_json(summary)
    else:
        from orderbook.terminal import demo_summary

        print_rich(demo_summary(summary))
    if not summary["verified"]:
        raise click.exceptions.Exit(EXIT_VIOLATION)
