"""`python -m orderbook` is the command `orderbook`."""

from orderbook.cli import main

main()
