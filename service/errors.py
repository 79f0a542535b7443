"""Every exception the service raises on purpose, and the problem document each one becomes.

::

    ServiceError
    ├── ProblemError                    answers one request: status, slug, title
    │   ├── RequestError                the client can mend it
    │   │   ├── EmptyBodyError          400
    │   │   ├── MalformedRequestError   400  broken JSON or multipart
    │   │   ├── MissingKeyError         401  no API key where one is needed
    │   │   ├── UnknownKeyError         403  an API key that is not known
    │   │   ├── UnknownModelError       404  another model's name
    │   │   ├── NotAcceptableError      406  Accept asks for a type that is not offered
    │   │   ├── SlowRequestError        408  the body did not arrive in time
    │   │   ├── PayloadTooLargeError    413  too many bytes
    │   │   ├── ImageTooLargeError      413  too many pixels
    │   │   ├── TooManyImagesError      413  too many photos in one call
    │   │   ├── UnsupportedMediaTypeError 415  request type, or bytes of no known image format
    │   │   ├── InvalidOptionError      422
    │   │   ├── MissingImageError       422  wrong field name, JSON without an image
    │   │   ├── InvalidImageError       422  known format, but truncated or broken
    │   │   └── HeadersTooLargeError    431
    │   ├── OverloadedError             429  with Retry-After
    │   ├── RateLimitedError            429  with Retry-After
    │   ├── InferenceError              500  a network failed; the cause is kept, never shown
    │   ├── UnexpectedError             500  a fault of ours; logged, never shown
    │   ├── UnavailableError            503  starting or draining, with Retry-After
    │   └── DeadlineExceededError       504
    ├── ImageFileError                  in process only: a file that cannot be read
    ├── OutputError                     command line only: answers cannot be written there
    ├── BulkError                       command line only: a worker failed for good
    └── StartupError                    ends the process: one line, exit code 1
        ├── SettingsError
        ├── ModelFileError
        ├── ModelContractError
        └── ProviderUnavailableError

Foreign exceptions become one of these at one boundary each, raised ``from`` their cause. The class
attributes of ``ProblemError`` are the one table from error to HTTP status.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Root of the tree. ``detail`` is one sentence that is safe to show to the client."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ProblemError(ServiceError):
    """An error that answers one request as an RFC 9457 problem document.

    ``slug`` ends the problem's ``type`` and never changes; ``title`` is the same for every
    occurrence; ``detail`` tells this occurrence.
    """

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {}


class RequestError(ProblemError):
    """The request is at fault and the client can mend it."""


class EmptyBodyError(RequestError):
    """No body, or an image of zero bytes."""

    status = 400
    slug = "empty-body"
    title = "The request carries no image bytes"


class MalformedRequestError(RequestError):
    """JSON or multipart that cannot be parsed."""

    status = 400
    slug = "malformed-request"
    title = "The request body cannot be parsed"


class MissingKeyError(RequestError):
    """No API key, and the service asks for one."""

    status = 401
    slug = "missing-key"
    title = "The request has no API key"

    @property
    def headers(self) -> dict[str, str]:
        """How to give one (RFC 9110 wants it with every 401)."""
        return {"WWW-Authenticate": "Bearer"}


class UnknownKeyError(RequestError):
    """An API key that the service does not know, or no longer."""

    status = 403
    slug = "unknown-key"
    title = "The API key is not known"


class UnknownModelError(RequestError):
    """The Open Inference Protocol was asked for another model than the one that is served."""

    status = 404
    slug = "unknown-model"
    title = "No such model"


class NotAcceptableError(RequestError):
    """The client accepts no media type the service can answer with."""

    status = 406
    slug = "not-acceptable"
    title = "No reply of an accepted media type"


class SlowRequestError(RequestError):
    """The body came too slowly."""

    status = 408
    slug = "slow-request"
    title = "The request body did not arrive in time"


class PayloadTooLargeError(RequestError):
    """More bytes than the service takes."""

    status = 413
    slug = "payload-too-large"
    title = "The request body has too many bytes"


class ImageTooLargeError(RequestError):
    """More pixels than the service decodes."""

    status = 413
    slug = "image-too-large"
    title = "The image has too many pixels"


class TooManyImagesError(RequestError):
    """More photos in one call than the service takes."""

    status = 413
    slug = "too-many-images"
    title = "The request has too many photos"


class UnsupportedMediaTypeError(RequestError):
    """A request type that is not read, or bytes of no known image format."""

    status = 415
    slug = "unsupported-media-type"
    title = "Not a supported image or request type"


class InvalidOptionError(RequestError):
    """An option with a value that is not allowed; `option` is its name, where it is one alone."""

    status = 422
    slug = "invalid-option"
    title = "An option is not valid"

    def __init__(self, detail: str, option: str | None = None) -> None:
        super().__init__(detail)
        self.option = option


class MissingImageError(RequestError):
    """A well-formed request without an image in the place where one belongs."""

    status = 422
    slug = "missing-image"
    title = "The request has no image where one is expected"


class InvalidImageError(RequestError):
    """A known image format, but truncated or broken."""

    status = 422
    slug = "invalid-image"
    title = "The image cannot be decoded"


class HeadersTooLargeError(RequestError):
    """More bytes of headers than the service takes."""

    status = 431
    slug = "headers-too-large"
    title = "The request headers are too large"


class _RetryableError(ProblemError):
    """An error that passes by itself: the reply says after how many seconds to try again."""

    def __init__(self, detail: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_seconds)}


class OverloadedError(_RetryableError):
    """As many images are in flight as the service takes."""

    status = 429
    slug = "overloaded"
    title = "Too many images in flight"


class RateLimitedError(_RetryableError):
    """The API key has asked for as much as it may for now."""

    status = 429
    slug = "rate-limited"
    title = "Too many requests with this API key"


class UnavailableError(_RetryableError):
    """The service is starting or draining."""

    status = 503
    slug = "unavailable"
    title = "The service is not ready"


class InferenceError(ProblemError):
    """A network failed on the batch this image was in; ``__cause__`` is for the log only."""

    status = 500
    slug = "inference-failed"
    title = "The image could not be analysed"


class UnexpectedError(ProblemError):
    """An exception nobody foresaw, caught at the application's edge."""

    status = 500
    slug = "unexpected-error"
    title = "Something unexpected went wrong"

    def __init__(self, detail: str = "The log has the details under this request id.") -> None:
        super().__init__(detail)


class DeadlineExceededError(ProblemError):
    """The deadline passed before the reply was ready."""

    status = 504
    slug = "deadline-exceeded"
    title = "The image was not analysed in time"


class ImageFileError(ServiceError):
    """A photo's file is missing, a folder, or may not be read; never raised while serving."""


class OutputError(ServiceError):
    """The file that answers should go to cannot be had, or is of another kind."""


class BulkError(ServiceError):
    """A bulk job ended before its time: its cluster could not be had, or a worker kept failing."""


class StartupError(ServiceError):
    """The process cannot start; ``detail`` is the one line its operator sees."""


class SettingsError(StartupError):
    """A setting has a value out of its range."""


class ModelFileError(StartupError):
    """A model file is missing or is no readable ONNX model."""


class ModelContractError(StartupError):
    """A model file lacks the metadata, inputs or outputs the service needs."""


class ProviderUnavailableError(StartupError):
    """The ONNX Runtime provider that was asked for is not there."""
