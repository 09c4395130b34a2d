"""Where the URL of a deployment or a broker points."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import msgspec


class Address(msgspec.Struct, frozen=True):
    host: str
    port: int
    ssl: ssl.SSLContext | None
    prefix: str

    @classmethod
    def of(cls, url: str, scheme: str = "http", ports: tuple[int, int] = (80, 443)) -> Address:
        """`ports`: where the URL has none, plain and secure. Raises ValueError for anything but that scheme, and the same with an s."""
        parts = urlsplit(url)
        if parts.scheme not in (scheme, f"{scheme}s") or not parts.hostname:
            raise ValueError(f"{url!r} is not an {scheme}:// or {scheme}s:// address")
        secure = parts.scheme != scheme
        context = ssl.create_default_context() if secure else None
        return cls(parts.hostname, parts.port or ports[secure], context, parts.path.rstrip("/"))
