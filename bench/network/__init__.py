"""The demo network: a city like Algiers and three coach lines, authored here and written as GTFS by `python -m bench.network OUT.zip`."""

from bench.network.feed import write_feed

__all__ = ["write_feed"]
