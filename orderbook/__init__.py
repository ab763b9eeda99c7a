"""A limit order book and matching engine inside Redis, and the hosts that serve it.

The engine is one Redis Functions library (Lua); this package deploys it, calls it and relays what
it publishes to websockets. No process of this package holds state that a book depends on.
"""

__version__ = "0.1.0"
