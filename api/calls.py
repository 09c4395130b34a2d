"""From a request to the handler of its call and back, without the web framework's layers: they were 160 us of a call.

The framework goes on saying what there is: routes, the types of a handler's arguments, what is answered to arguments that do not fit and to
paths that lead nowhere, and the OpenAPI document come from the same handlers. What is left out is what no handler of ours uses: middleware,
guards, dependencies, hooks, caches, cookies. One that has any of them is called by the framework, and an answer that is a stream, a file or
empty is sent by it.

Private parts of litestar that are used, as they are in 2.25: `asgi_router.handle_routing`, `route_handler_map`, `signature_model`, the kwargs
model, `is_valid_host`, `ScopeState.body`. tests/test_api_calls.py asks both ways the same and fails where a release changes one of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args, get_origin

import msgspec
from litestar import Litestar, Request, Response
from litestar._asgi.utils import is_valid_host
from litestar.exceptions import ClientException, HTTPException, InternalServerException, SerializationException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.serialization import default_serializer
from litestar.types import Receive, Scope, Send
from litestar.utils.path import normalize_path
from litestar.utils.scope.state import ScopeState
from msgspec import inspect

from api import problems

JSON: Final = "application/json"
BODILESS: Final = (204, 304)
PROTOBUF: Final = "application/x-protobuf"
_TYPES: Final = {kind: (b"content-type", kind.encode()) for kind in (JSON, problems.MEDIA_TYPE, PROTOBUF)}

_encode = msgspec.json.Encoder(enc_hook=default_serializer).encode
_decode = msgspec.json.Decoder().decode

Sent = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, body


class Call:
    """One handler of ours and how it is called."""

    __slots__ = ("_data", "_texts", "_whole", "fn", "handler", "model", "takes_body")

    def __init__(self, handler: HTTPRouteHandler, model: Any) -> None:
        """`model`: what the framework knows of its arguments."""
        self.handler, self.model, self.fn = handler, model, handler.fn
        fields, wanted = handler.signature_model.__annotations__, model.expected_reserved_kwargs
        data = fields.get("data")
        # Of a struct the annotation is words for the document, and hashing them takes as long as converting a body.
        kind = get_args(data)[0] if get_origin(data) is Annotated else data
        self._data = kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else data
        self.takes_body = self._data is not None
        self._texts = [param.field_name for param in model.expected_path_params]
        # whether its arguments are the request, texts out of the path and a JSON body: else the framework reads them
        self._whole = (
            "request" in wanted
            and wanted <= {"request", "data"}
            and not (model.expected_query_params or model.expected_header_params or model.expected_cookie_params)
            and not (model.expected_form_data or model.expected_msgpack_data or model.expected_data_dto or model.is_data_optional)
            and all(_is_any_text(fields[name]) for name in self._texts)
        )

    async def arguments(self, request: Request[Any, Any, Any]) -> dict[str, Any]:
        """Raises what the framework raises where something does not fit."""
        if self._whole:
            params = request.scope["path_params"]
            given: dict[str, Any] = {name: params[name] for name in self._texts}
            given["request"] = request
            if self._data is None:
                return given
            body = await request.body()
            try:
                given["data"] = msgspec.convert(_decode(body), self._data, strict=False, str_keys=True)
                return given
            except (msgspec.MsgspecError, TypeError):
                pass  # the framework words it
        try:
            kwargs = await self.model.to_kwargs(connection=request)
        except SerializationException as fault:
            raise ClientException(str(fault)) from fault
        if "data" in kwargs and not await request.body():
            del kwargs["data"]
        found: dict[str, Any] = self.handler.signature_model.parse_values_from_connection_kwargs(connection=request, kwargs=kwargs)
        return found


class Calls:
    """All of an application."""

    def __init__(self, litestar: Litestar, body_max: int) -> None:
        """`body_max`: of a handler that says nothing else."""
        self.litestar, self._body_max = litestar, body_max
        self._router = litestar.asgi_router
        self._calls: dict[int, Call] = {}
        for route in litestar.routes:
            if isinstance(route, HTTPRoute):
                for handler, model in route.route_handler_map.values():
                    if self._plain(handler, model):
                        self._calls[id(handler)] = Call(handler, model)

    def _plain(self, handler: HTTPRouteHandler, model: Any) -> bool:
        """Whether it uses nothing but what we do."""
        return not (
            len(handler.paths) != 1
            or handler.resolve_guards()
            or handler.resolve_before_request()
            or handler.after_request
            or handler.resolve_after_response()
            or handler.resolve_return_dto()
            or handler.resolve_data_dto()
            or handler.resolve_dependencies()
            or handler.resolve_response_headers()
            or handler.resolve_response_cookies()
            or handler.resolve_type_encoders()
            or handler.resolve_middleware()
            or handler.cache
            or handler.background
            or model.dependency_batches
            or handler.resolve_request_max_body_size() != self._body_max
            or (handler.media_type or JSON) not in _TYPES
        )

    def find(self, scope: Scope, host: bytes | None) -> Call | None:
        """The call of that path and method, written into the scope as the framework does; None: the framework is to answer."""
        if host is not None and not is_valid_host(host):
            return None
        try:
            _, handler, path, params, template = self._router.handle_routing(path=normalize_path(scope["path"]), method=scope["method"])  # type: ignore[typeddict-item]
        except HTTPException:  # 404, 405 and their like
            return None
        call = self._calls.get(id(handler))
        if call is not None:
            scope["path"], scope["path_params"], scope["route_handler"], scope["path_template"] = path, params, handler, template
            scope["app"] = scope["litestar_app"] = self.litestar
        return call

    async def answer(self, call: Call, scope: Scope, receive: Receive, send: Send, *, length: bytes | None, chunked: bool) -> Sent | None:
        """What is to be sent; None: it has been, by the framework. `length`: what the request announces."""
        request: Request[Any, Any, Any] = Request(scope, receive, send)
        try:
            if length is None and not chunked:  # RFC 9112 section 6.3: it has no body
                ScopeState.from_scope(scope).body = b""
            elif length is not None and call.takes_body:
                ScopeState.from_scope(scope).body = await _body(receive, length, self._body_max)
            found: Any = call.fn(**await call.arguments(request))
            if not call.handler.has_sync_callable:
                found = await found
            plain = _plain(found, call)
            response = None if plain is not None else await call.handler.to_response(app=self.litestar, data=found, request=request)
        except Exception as fault:
            plain, response = _plain(problems.answer(request, fault), call), None
        if response is not None:
            await response(scope, receive, send)
        return plain


def _is_any_text(annotation: Any) -> bool:
    """Whether every text will do."""
    kind = inspect.type_info(annotation)
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind == inspect.StrType()


def _plain(found: Any, call: Call) -> Sent | None:
    """A handler's answer as it is sent; None for one that only the framework can send. Raises TypeError for what is no JSON."""
    headers: list[tuple[bytes, bytes]] = []
    status: int = call.handler.status_code
    kind: str | None = call.handler.media_type or JSON
    if isinstance(found, Response):
        if type(found) is not Response or found.cookies or found.background or found.response_type_encoders:
            return None
        status, kind = found.status_code or status, found.media_type or kind
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in found.headers.items()]
        found = found.content
    if (
        found is None
        or isinstance(found, str)
        or status in BODILESS
        or kind not in _TYPES
        or (kind == PROTOBUF and not isinstance(found, bytes))
        or any(name == b"content-type" for name, _ in headers)
    ):
        return None
    body = found if isinstance(found, bytes) else _encode(found)
    headers += (_TYPES[kind], (b"content-length", str(len(body)).encode()))
    return status, headers, body


async def _body(receive: Receive, length: bytes, most: int) -> bytes:
    """The body of a request that says how long it is, read as the framework reads it."""
    try:
        announced = int(length)
    except ValueError:
        raise ClientException(f"Invalid content-length: {length.decode('latin-1')!r}") from None
    if announced > most:
        raise RequestEntityTooLarge
    body: bytes = b""
    while True:
        event: Any = await receive()
        if event["type"] == "http.disconnect":
            raise InternalServerException("client disconnected prematurely")
        body += event["body"]
        if len(body) > most:
            raise RequestEntityTooLarge
        if not event.get("more_body", False):
            return body
