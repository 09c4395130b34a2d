"""The pages: plain HTML and ES modules of ours, and the few third-party files they need, served from this origin only.

Third-party files come from npm at set-up (`api/web/package-lock.json`) and stay where npm put them; `VENDOR` says which of them are served.
Everything has a strong ETag from its content, so a browser asks once and then gets 304.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from litestar import Request, Response, get
from litestar.params import FromPath

from api.etags import unchanged
from engine.errors import NotFound

WEB: Final = Path(__file__).parent / "web"
MODULES: Final = WEB / "node_modules"
VENDOR: Final[dict[str, Path]] = {
    "maplibre-gl.mjs": MODULES / "maplibre-gl/dist/maplibre-gl.mjs",
    "maplibre-gl-worker.mjs": MODULES / "maplibre-gl/dist/maplibre-gl-worker.mjs",
    "maplibre-gl.css": MODULES / "maplibre-gl/dist/maplibre-gl.css",
    "countries-50m.json": MODULES / "world-atlas/countries-50m.json",
    **{f"topojson/{file.name}": file for file in sorted((MODULES / "topojson-client/src").glob("*.js"))},
}
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
PAGES: Final = {"/": "index.html", "/fleet": "fleet.html", "/trip": "trip.html"}


@lru_cache(maxsize=128)
def _content(path: Path, changed_ns: int) -> tuple[bytes, str]:
    body = path.read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:24]}"'


def _file(request: Request[Any, Any, Any], path: Path, max_age_s: int) -> Response[bytes]:
    try:
        body, tag = _content(path, path.stat().st_mtime_ns)
    except OSError as fault:
        raise NotFound(f"no file {path.name!r}; `make setup` fetches what the pages need") from fault
    headers = {"ETag": tag, "Cache-Control": f"public, max-age={max_age_s}"}
    if unchanged(request, tag):
        return Response(b"", status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=TYPES[path.suffix])


@get(["/", "/fleet"], include_in_schema=False, sync_to_thread=False)
def page(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The start page and the fleet map."""
    return _file(request, WEB / PAGES[request.url.path.rstrip("/") or "/"], 0)


@get("/trip/{trip_id:str}", include_in_schema=False, sync_to_thread=False)
def trip_page(request: Request[Any, Any, Any], trip_id: FromPath[str]) -> Response[bytes]:
    """One trip; the page itself asks for what it shows."""
    return _file(request, WEB / PAGES["/trip"], 0)


@get("/share/{token:str}", include_in_schema=False, sync_to_thread=False)
def share_page(request: Request[Any, Any, Any], token: FromPath[str]) -> Response[bytes]:
    """The same page for whoever was given a link; the page asks what it leads to."""
    return _file(request, WEB / PAGES["/trip"], 0)


@get("/assets/{name:str}", include_in_schema=False, sync_to_thread=False)
def asset(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
    """Our own scripts and styles."""
    path = WEB / "assets" / name
    if path.parent != WEB / "assets" or path.suffix not in TYPES:
        raise NotFound(f"no file {name!r}")
    return _file(request, path, 60)


@get("/vendor/{name:path}", include_in_schema=False, sync_to_thread=False)
def vendor(request: Request[Any, Any, Any], name: FromPath[Path]) -> Response[bytes]:
    """What we took from others, by the table."""
    path = VENDOR.get(str(name).lstrip("/"))
    if path is None:
        raise NotFound(f"no file {str(name)!r}")
    return _file(request, path, 3600)


ROOTS: Final = (page, trip_page, share_page, asset, vendor)
