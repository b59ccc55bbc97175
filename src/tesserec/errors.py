"""The errors a caller can meet, drawn as a tree.

    TesserecError                    the caller can do something about it
    ├── DataError                    events, catalogs, ids: what was read is not usable
    │   ├── UnknownIdError           an id that is in no vocabulary
    │   ├── FilterError              a filter expression that cannot be read, or asks what an attribute cannot answer
    │   └── LeakError                a training event at or after the time it must not know
    ├── RecipeError                  a recipe or setting that does not exist or is out of range
    ├── NotFittedError               a component used before ``fit``
    ├── ResourceError                too large for this machine or method; says what fits
    ├── VersionMismatchError         a model of another codebook than the one at hand
    ├── BundleError                  a bundle on disk that is damaged, incomplete or too new
    ├── ServiceError                 the service cannot start or publish as it was asked to
    │   └── RequestError             what a client of the service asked for was not done; has status and request id
    ├── StoreError                   events or items could not be kept: nothing was acknowledged
    └── TrainingInterrupted          Ctrl-C: the checkpoint is on disk and resumes

A message says what was given, what was expected and what to do. Our own mistakes are ``assert``.
"""

__all__ = [
    "BundleError",
    "DataError",
    "FilterError",
    "LeakError",
    "NotFittedError",
    "RecipeError",
    "RequestError",
    "ResourceError",
    "ServiceError",
    "StoreError",
    "TesserecError",
    "TrainingInterrupted",
    "UnknownIdError",
    "VersionMismatchError",
]


class TesserecError(Exception):
    """The root of every error that a caller can do something about."""


class DataError(TesserecError, ValueError):
    """Events or a catalog that cannot be used; names row, column and remedy."""


class UnknownIdError(DataError, KeyError):
    """A user or item id that the vocabulary does not hold."""

    __str__ = Exception.__str__


class FilterError(DataError):
    """A filter expression that cannot be read or does not fit the attributes; names the position."""


class LeakError(DataError):
    """Training data that knows something of the targets."""


class RecipeError(TesserecError, ValueError):
    """A recipe or a setting that does not exist or is out of range."""


class NotFittedError(TesserecError):
    """A component was used before ``fit`` or ``restore``."""


class ResourceError(TesserecError):
    """The request does not fit this machine or method; says what does."""


class VersionMismatchError(TesserecError):
    """A model and a Semantic ID table of different codebooks."""


class BundleError(TesserecError):
    """A bundle on disk that is damaged, incomplete or of a newer format."""


class ServiceError(TesserecError):
    """The service cannot start, publish or roll back as it was asked to."""


class RequestError(ServiceError):
    """The service did not do what its client asked for; says so in the service's own words."""

    def __init__(
        self, message: str, status: int | None = None, detail: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """Of HTTP; None where no answer came."""
        self.detail = message if detail is None else detail
        """What the service said."""
        self.request_id = request_id
        """The logs of the service have it."""


class StoreError(TesserecError):
    """The store could not make a write durable, or answer a read; nothing of it was acknowledged."""


class TrainingInterrupted(TesserecError):
    """Training was stopped by Ctrl-C; the same call resumes from the checkpoint it names."""
