"""The demo: a market with traders of its own."""
