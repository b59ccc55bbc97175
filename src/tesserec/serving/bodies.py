"""Further bodies of the HTTP API: batches, users, sessions, health, and what administrators send and see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tesserec.serving.access import NAMESPACE
from tesserec.serving.keys import Scope
from tesserec.serving.schemas import (
    MAX_BATCH,
    EventIn,
    EventOut,
    Expression,
    Flag,
    Id,
    ItemIn,
    Number,
    RecommendRequest,
    RecommendResponse,
)

__all__ = [
    "AuditEntry",
    "AuditOut",
    "Availability",
    "BackupOut",
    "CanaryIn",
    "DrainOut",
    "ExportedImpression",
    "Health",
    "Imported",
    "ImportedEvent",
    "ItemBatch",
    "ItemOfBatch",
    "ItemsKept",
    "KeyIn",
    "KeyMade",
    "KeyOut",
    "KeysOut",
    "Merge",
    "Merged",
    "PublishIn",
    "RecommendBatch",
    "RecommendBatchOut",
    "RecommendQuery",
    "SearchQuery",
    "SessionOut",
    "SimilarQuery",
    "UserDeleted",
    "UserExport",
    "UsersOut",
    "VersionOut",
    "VersionsOut",
]

Filter = Annotated[Expression, Field(examples=["price < 10"])]
Cutoff = Annotated[int, Field(ge=1, le=200)]
VersionId = Annotated[str, Field(pattern=r"^[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$", examples=["20261127-045412-0a1b2c3d"])]
"""The name of a version that is in the home folder already; nothing else is ever loaded."""


def _different(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("has a value twice: give each once")
    return values


_DIFFERENT = (AfterValidator(_different), Field(json_schema_extra={"uniqueItems": True}))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RecommendQuery(_Body):
    """What ``GET /api/recommend/{user_id}`` takes; ``POST /api/recommend`` takes more."""

    k: Cutoff = 10
    scenario: Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9_-]+$")] = "default"
    filter: Filter | None = None
    exclude_history: bool | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    explain: bool = False
    deadline_ms: Annotated[float, Field(ge=1, le=10_000)] | None = None


class SimilarQuery(_Body):
    """What ``GET /api/items/{item_id}/similar`` takes."""

    k: Cutoff = 10
    filter: Filter | None = None


class SearchQuery(SimilarQuery):
    """What ``GET /api/search`` takes."""

    q: Annotated[str, Field(min_length=1, max_length=200, examples=["red lamp"])]


class RecommendBatch(_Body):
    """Several requests at once, which share the work of the model."""

    requests: Annotated[list[RecommendRequest], Field(min_length=1, max_length=64)]


class RecommendBatchOut(_Body):
    """The answers, in the order of the requests."""

    responses: list[RecommendResponse]


class ItemOfBatch(ItemIn):
    """An item with its id."""

    item_id: Id


class ItemBatch(_Body):
    """Items, each of which becomes what is given."""

    items: Annotated[list[ItemOfBatch], Field(min_length=1, max_length=MAX_BATCH)]


class ItemsKept(_Body):
    """Items that are on disk, and live."""

    items: int
    table_revision: int
    """The revision that has them all."""


class Availability(_Body):
    """Whether an item may be shown now."""

    available: Flag


class ImportedEvent(EventIn):
    """A line of an import; what is sent again under the same name counts once."""

    event_id: Id | None = None  # type: ignore[assignment]  # the one thing that is looser than in a single event
    """None: made of the import's name and the line's number."""


class Imported(_Body):
    """An import that is complete, and on disk."""

    name: str
    lines: int
    accepted: int
    """New events."""


class UsersOut(_Body):
    """User ids, ascending."""

    users: list[str]


class ExportedImpression(_Body):
    """A list that was shown."""

    response_id: str
    time: float
    scenario: str
    items: list[str]
    scores: list[float]
    propensities: list[float] | None
    model_version: str
    rung: str
    arm: str


class UserExport(_Body):
    """Everything that is kept of a user."""

    user_id: str
    events: list[EventOut]
    impressions: list[ExportedImpression]


class UserDeleted(_Body):
    """What was removed of a user; bundles on disk are cleared within a minute."""

    user_id: str
    removed: int
    """Events and lists."""


class SessionOut(_Body):
    """The history of somebody who is not known."""

    session_id: str
    user_id: str
    """What to recommend to and send events of: ``session:`` and the session's id."""
    history: list[EventOut]
    """The latest first."""


class Merge(_Body):
    """Who somebody turned out to be."""

    user_id: Id


class Merged(_Body):
    """A session that became part of a user's history, and is gone as such."""

    user_id: str
    moved: int
    """Events."""


class Health(_Body):
    """How the service is."""

    status: Literal["live", "ready"]


class VersionOut(_Body):
    """A version on disk."""

    version: str
    roles: list[Literal["live", "previous", "canary"]]
    created: str
    method: str
    metrics: dict[str, float]
    """With which it was published."""


class VersionsOut(_Body):
    """The versions of a namespace, oldest first, and what answers."""

    versions: list[VersionOut]
    live: str
    previous: str | None
    canary: str | None
    share: float
    """Of the users that the canary answers."""
    notes: list[str]


class PublishIn(_Body):
    """A version that is in the home folder already, to go live."""

    version: VersionId
    force: Flag = False
    """Do not ask the gate whether it is as good as the live one."""


class CanaryIn(_Body):
    """A version that a share of the users get."""

    version: VersionId
    share: Annotated[Number, Field(gt=0, le=1)] = 0.05


class DrainOut(_Body):
    """Whether ``/api/health/ready`` says no, so that no new traffic is sent here."""

    draining: bool


class KeyIn(_Body):
    """A key to make."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._ -]+$", examples=["shop backend"])]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3), *_DIFFERENT]
    namespaces: (
        Annotated[list[Annotated[str, Field(pattern=NAMESPACE)]], Field(min_length=1, max_length=100), *_DIFFERENT]
        | None
    ) = None
    """The only ones it opens; None: all that the maker's own key opens."""


class KeyOut(_Body):
    """What is kept of a key."""

    key_id: str
    name: str
    scopes: list[Scope]
    namespaces: list[str] | None
    created: float
    revoked: float | None


class KeyMade(KeyOut):
    """A new key, with its text."""

    key: str
    """It is shown this once."""


class KeysOut(_Body):
    """Every key that was ever made, as far as the caller may see them."""

    keys: list[KeyOut]


class BackupOut(_Body):
    """A copy of a namespace's state, below ``backups`` in the home folder."""

    name: str
    size_bytes: int


class AuditEntry(_Body):
    """An action of an administrator."""

    time: float
    key_id: str
    action: str
    detail: dict[str, str | int | float | bool | list[str] | None]


class AuditOut(_Body):
    """Actions of administrators, the latest first."""

    entries: list[AuditEntry]
