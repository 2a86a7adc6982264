"""Every error that Burnish raises on purpose, and the OpenAI error each one is.

    BurnishError
    ├── SettingsError                    bad burnish.toml, flag or variable: fatal at start
    ├── DatabaseError                    unsafe SQLite, failed migration: fatal at start
    ├── InvalidRequest          400      the body, a field or a value is wrong
    │   ├── ContextTooLong      400      code context_length_exceeded
    │   ├── PreflightError      400      an adapter's files cannot be served
    │   └── RowError            400      a line of a training file is wrong
    ├── Unauthorized            401      no key, or an unknown one
    ├── Forbidden               403      the key lacks the scope
    ├── NotFound                404      no such model, adapter, route, response
    ├── Conflict                409      the record is in a state that forbids this
    │   └── StaleWorker         409      a worker writes to a job that is no longer its own
    ├── TooLarge                413      the body exceeds limits.max_body_bytes
    ├── RateLimited             429      an engine or a limit asks to wait
    ├── EngineFailed            502      every engine tried gave no usable answer
    ├── Unavailable             503      no engine can take this now; carries Retry-After
    │   ├── Overloaded          503      too many requests are under way and wait already
    │   └── NotRecorded         503      the database cannot take a record now
    └── EngineTimeout           504      the engine did not answer in time

Knows nothing of HTTP frameworks: `gateway.protocol.errors` puts these on the wire.
"""

from __future__ import annotations


class BurnishError(Exception):
    """Base of the tree. `message` is for the client: no path, prompt or stack trace belongs in it."""

    status: int = 500
    type: str = "server_error"
    default_code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after_seconds = retry_after_seconds


class SettingsError(BurnishError):
    """A setting is unknown, malformed or contradicts another. Raised at start only."""


class DatabaseError(BurnishError):
    """The database cannot be used safely. Raised at start only."""


class InvalidRequest(BurnishError):
    status = 400
    type = "invalid_request_error"


class ContextTooLong(InvalidRequest):
    default_code = "context_length_exceeded"


class PreflightError(InvalidRequest):
    """An adapter's files failed a check; the message names the file, field or tensor."""

    default_code = "adapter_invalid"


class RowError(InvalidRequest):
    """A line of a training file that cannot be learned from; the message names the line, `param` the field."""

    default_code = "invalid_training_file"


class Unauthorized(BurnishError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class Forbidden(BurnishError):
    status = 403
    type = "permission_error"
    default_code = "insufficient_scope"


class NotFound(BurnishError):
    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class Conflict(BurnishError):
    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class StaleWorker(Conflict):
    """The job's lease ended and another took it, or it has ended: whatever the worker wanted to write is refused."""

    default_code = "stale_worker"


class TooLarge(BurnishError):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class RateLimited(BurnishError):
    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class EngineFailed(BurnishError):
    status = 502
    type = "server_error"
    default_code = "engine_failed"


class Unavailable(BurnishError):
    status = 503
    type = "server_error"
    default_code = "engine_unavailable"


class Overloaded(Unavailable):
    """More is asked than the engines can answer in good time."""

    default_code = "overloaded"


class NotRecorded(Unavailable):
    """The database cannot take it now; what it was, is not kept."""

    default_code = "recording_failed"


class EngineTimeout(BurnishError):
    status = 504
    type = "server_error"
    default_code = "engine_timeout"
