"""The command line: click commands over the Engine, the host and the demo.

What every command keeps to: `--json` prints JSON and nothing else on stdout; every option can come
from an environment variable; the exit code tells a script what happened. A command imports what it
needs when it runs, so that help and mistakes answer at once.
"""

import os
import sys

import click

from orderbook import __version__
from orderbook.cli import books, demo, functions, instruments, orders, serve
from orderbook.cli.shared import EXIT_INTERRUPTED, EXIT_OK

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


for _command in (
    demo.demo,
    serve.serve,
    functions.functions,
    instruments.instrument,
    instruments.seed_books,
    instruments.set_stp_group,
    instruments.get_stp_group,
    orders.order,
    books.tick_books,
    books.show_book,
    books.show_trades,
    books.show_ticker,
    books.show_candles,
    books.show_auction,
    books.verify_books,
    books.replay_book,
    books.repair_book,
):
    cli.add_command(_command)


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
