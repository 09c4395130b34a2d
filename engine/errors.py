"""One small tree of errors. A leaf has a stable code, its facts as fields, and knows whether trying again makes sense.

`api/problems.py` is the one table that turns a leaf into an HTTP problem document or a WebSocket close code; nothing here knows HTTP beyond
the status hint.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EngineError(Exception):
    """The root. `code` is SCREAMING_SNAKE and never changes meaning; `detail` says what, where and what to do."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, detail: str, *, retry_after_s: float | None = None, errors: list[dict[str, str]] | None = None, **facts: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.errors = errors or []  # [{"pointer", "code", "detail"}] for validation
        self.facts = facts


class Invalid(EngineError):
    """The request is understood and wrong; sending it again changes nothing."""

    code, status = "INVALID", 400


class MalformedBody(Invalid):
    """The body does not parse at all."""

    code = "MALFORMED_BODY"


class Unauthenticated(EngineError):
    """No credentials, or credentials that do not hold."""

    code, status = "UNAUTHENTICATED", 401


class Forbidden(EngineError):
    """Known, but not allowed."""

    code, status = "FORBIDDEN", 403


class NotFound(EngineError):
    """Not there, or not there for this caller."""

    code, status = "NOT_FOUND", 404


class Gone(EngineError):
    """It was there and is over for good."""

    code, status = "GONE", 410


class Conflict(EngineError):
    """The state of things forbids it now."""

    code, status = "CONFLICT", 409


class BodyTimeout(EngineError):
    """The body did not arrive whole in time."""

    code, status, retryable = "TIMEOUT", 408, True


class TooLarge(EngineError):
    """The body, batch or message is over its limit."""

    code, status = "TOO_LARGE", 413


class TooMany(EngineError):
    """The caller is over its rate."""

    code, status, retryable = "TOO_MANY_REQUESTS", 429, True


class TooManyChannels(TooMany):
    """A socket subscribes to more channels than one may."""

    code, retryable = "TOO_MANY_CHANNELS", False


class Unavailable(EngineError):
    """We cannot keep our promise right now (Redis or PostgreSQL away, a queue full, draining): come back."""

    code, status, retryable = "UNAVAILABLE", 503, True


class FeedRejected(Invalid):
    """A GTFS feed with errors: nothing of it was taken. `errors` lists file, line and reason of each."""

    code, status = "FEED_REJECTED", 422
