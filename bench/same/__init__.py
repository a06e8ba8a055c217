"""Compares what both ends of a connection see, directly and through proxies: `python -m bench.same`."""
