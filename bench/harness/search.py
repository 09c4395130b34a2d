"""The highest rate whose thresholds hold: doubled until it breaks (or halved until it holds), then halved between the two, in ratios.

Pure: `next_rate` says what to try, `tell` takes what came of it. Promises: if there is a rate up to which everything holds and above which
nothing does, the answer is at most `within` below it.
"""

from __future__ import annotations

import math
from typing import Final

DOWN_MOST: Final = 2**10  # below a thousandth of the first rate nothing is looked for
UP_MOST: Final = 2**16


class Search:
    def __init__(self, first: float, within: float = 0.05, most: float = math.inf) -> None:
        """`within`: of the answer, 0.05 for 5 %. `most`: a rate that is not passed. Raises ValueError where they make no sense."""
        if not (first > 0 and 0.001 <= within <= 1 and most >= first):
            raise ValueError(f"search from {first} up to {most} within {within}: the first rate must be above 0 and not above the last")
        self.first, self.within, self.most = first, within, most
        self.held: float | None = None
        self.failed: float | None = None

    def next_rate(self) -> float | None:
        """None: it is found, or there is nothing to find."""
        if self.held is None and self.failed is None:
            return self.first
        if self.failed is None:
            assert self.held is not None
            return min(self.most, self.held * 2) if self.held < min(self.most, self.first * UP_MOST) else None
        if self.held is None:
            return self.failed / 2 if self.failed > self.first / DOWN_MOST else None
        return math.sqrt(self.held * self.failed) if self.failed / self.held > 1 + self.within else None

    def tell(self, rate: float, held: bool) -> None:
        if held:
            self.held = max(rate, self.held or 0.0)
        else:
            self.failed = min(rate, self.failed or math.inf)
