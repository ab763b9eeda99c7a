"""`python -m orderbook` is the command `orderbook`."""

from orderbook.cli.main import main

main()
