"""Latencies as counts in buckets that are 0.1 % wide: an HDR histogram of nanoseconds with three significant digits, up to an hour.

Promises: a percentile is at most 1/1024 above the true one and never below it; histograms add up; `encode` is HdrHistogram's V2 compressed
base64 (what its tools and logs read), and `decode` takes it back unchanged. What is below zero counts as zero, what is above an hour as an
hour. Layout and encoding: HdrHistogram, `AbstractHistogram` and `ZigZagEncoding` (public domain).
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

DIGITS: Final = 3
HALF_BITS: Final = 10  # 1,024 buckets for every doubling
HIGHEST_NS: Final = 3_600_000_000_000
COOKIE: Final = 0x1C849303 | 0x10
COOKIE_COMPRESSED: Final = 0x1C849304 | 0x10
HEADER: Final = struct.Struct(">iiiiqqd")  # cookie, bytes of counts, offset, digits, lowest, highest, ratio


def index_of(ns: int) -> int:
    """The bucket of a value of 0 .. HIGHEST_NS."""
    shift = ns.bit_length() - HALF_BITS - 1
    return ns if shift <= 0 else (shift << HALF_BITS) + (ns >> shift)


def bounds_of(index: int) -> tuple[int, int]:
    """The smallest and the largest value of a bucket."""
    shift = max(0, (index >> HALF_BITS) - 1)
    lowest = (index - (shift << HALF_BITS)) << shift
    return lowest, lowest + (1 << shift) - 1


class Histogram:
    """`counts` by bucket, sparse. Seconds go in and come out."""

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def record(self, seconds: float) -> None:
        ns = int(seconds * 1e9)
        ns = 0 if ns < 0 else min(ns, HIGHEST_NS)
        shift = ns.bit_length() - 11  # index_of, in place: a generator calls this for every answer
        index = ns if shift <= 0 else (shift << 10) + (ns >> shift)
        self.counts[index] = self.counts.get(index, 0) + 1

    def add(self, counts: Mapping[int, int]) -> None:
        held = self.counts
        for index, count in counts.items():
            held[index] = held.get(index, 0) + count

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def percentiles(self, shares: Iterable[float]) -> list[float]:
        """Seconds that so many of all values (0.99: 99 %) do not exceed, for rising `shares`; 0.0 where there are none."""
        count, out = self.count, []
        buckets = iter(sorted(self.counts.items()))
        seen, top = 0, 0
        for share in shares:
            wanted = max(1, math.ceil(share * count - 1e-9))
            while seen < wanted and (bucket := next(buckets, None)) is not None:
                seen += bucket[1]
                top = bounds_of(bucket[0])[1]
            out.append(top / 1e9)
        return out

    def percentile(self, share: float) -> float:
        return self.percentiles([share])[0]

    @property
    def max_s(self) -> float:
        return bounds_of(max(self.counts))[1] / 1e9 if self.counts else 0.0

    @property
    def mean_s(self) -> float:
        """Of the buckets' middles."""
        total = sum(sum(bounds_of(index)) * count for index, count in self.counts.items())
        return total / 2e9 / self.count if self.counts else 0.0

    def above(self, seconds: float) -> int:
        """How many values are above so many seconds, as far as buckets tell."""
        limit = index_of(min(HIGHEST_NS, max(0, int(seconds * 1e9))))
        return sum(count for index, count in self.counts.items() if index > limit)

    def encode(self) -> str:
        """HdrHistogram V2, compressed, base64."""
        body = b"".join(map(_zigzag, _runs(self.counts)))
        whole = zlib.compress(HEADER.pack(COOKIE, len(body), 0, DIGITS, 1, HIGHEST_NS, 1.0) + body)
        return base64.b64encode(struct.pack(">ii", COOKIE_COMPRESSED, len(whole)) + whole).decode()


def decode(text: str) -> Histogram:
    """What `encode` wrote, or another tool with the same digits and unit. Raises ValueError where it is something else."""
    try:
        raw = base64.b64decode(text, validate=True)
        cookie, length = struct.unpack_from(">ii", raw)
        whole = zlib.decompress(raw[8 : 8 + length])
        inner, size, offset, digits, lowest, *_ = HEADER.unpack_from(whole)
    except (struct.error, zlib.error, binascii.Error) as fault:
        raise ValueError(f"no HDR histogram: {fault}") from None
    if (cookie, inner) != (COOKIE_COMPRESSED, COOKIE) or (offset, digits, lowest) != (0, DIGITS, 1):
        raise ValueError(f"no HDR histogram of ours: cookies {cookie:x} {inner:x}, {digits} digits, unit {lowest}")
    counts, index = {}, 0
    for value in _unzigzag(whole[HEADER.size : HEADER.size + size]):
        if value < 0:
            index -= value
        else:
            if value:
                counts[index] = value
            index += 1
    return Histogram(counts)


def total(parts: Iterable[Histogram]) -> Histogram:
    whole = Histogram()
    for part in parts:
        whole.add(part.counts)
    return whole


def _runs(counts: Mapping[int, int]) -> Iterator[int]:
    """Counts from bucket 0 on; so many empty ones in a row as one negative number, a single one as 0."""
    at = 0
    for index, count in sorted(counts.items()):
        empty = index - at
        if empty:
            yield -empty if empty > 1 else 0
        yield count
        at = index + 1


def _zigzag(value: int) -> bytes:
    """LEB128 of at most nine bytes, the ninth with eight bits of its own."""
    rest, out = (value << 1) ^ (value >> 63), bytearray()
    for _ in range(8):
        if rest < 0x80:
            break
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _unzigzag(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value = 0
        for place in range(9):
            if at >= len(data):
                raise ValueError("no HDR histogram: it ends in the middle of a count")
            byte = data[at]
            at += 1
            value |= (byte if place == 8 else byte & 0x7F) << (7 * place)
            if byte < 0x80:
                break
        yield value >> 1 ^ -(value & 1)
