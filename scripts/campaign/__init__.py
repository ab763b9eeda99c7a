"""The fault campaign: real servers and hosts under load, broken on purpose, and a judge."""
