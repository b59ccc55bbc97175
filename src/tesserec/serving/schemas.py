"""The bodies of requests and responses of the HTTP API.

Ids are strings; a number is accepted where an id is asked for and means its decimal digits.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

__all__ = [
    "Accepted",
    "Boost",
    "EventBatch",
    "EventIn",
    "EventOut",
    "Explanation",
    "Expression",
    "Flag",
    "Id",
    "ItemIn",
    "ItemOut",
    "ItemPatch",
    "Moved",
    "Number",
    "Problem",
    "RecommendRequest",
    "RecommendResponse",
    "Recommended",
    "Removed",
    "SearchResponse",
    "SimilarResponse",
    "Step",
    "UserOut",
    "Versions",
]


_MAX_NUMBER = 2**53


def _text_id(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= _MAX_NUMBER or value % 1:
        return value
    return str(int(value))


_TextId = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
_NumberId = Annotated[int, Field(gt=-_MAX_NUMBER, lt=_MAX_NUMBER)]
Id = Annotated[_TextId, BeforeValidator(_text_id, json_schema_input_type=_TextId | _NumberId)]
"""A user's, item's or event's id: 1 to 256 characters, no control characters."""


def _whole(value: object) -> object:
    """5.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Flag = Annotated[bool, Strict()]
"""True or false, and nothing that could be meant by one of them."""
Number = Annotated[float, Strict()]
"""A number, and no text that looks like one."""
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""Any text; databases keep no NUL."""
Attribute = Text | bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | None | list[Text]
MAX_BATCH = 1000
"""Events or items in one request, at most."""
MAX_K = 200


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Expression = Annotated[str, Field(min_length=1, max_length=1000, json_schema_extra={"format": "tesserec-filter"})]
"""An expression over attributes; see the documentation of filters."""


class Boost(_Body):
    """Moves items that an expression holds for: ``weight`` is added to their score."""

    when: Annotated[Expression, Field(examples=['title == "Red lamp"'])]
    weight: Annotated[Number, Field(ge=-100, le=100)]


_SAMPLED_AND_DIVERSE: dict[str, Any] = {
    "required": ["sample", "diversity"],
    "properties": {"sample": {"type": "number"}, "diversity": {"exclusiveMinimum": 0}},
}


class RecommendRequest(_Body):
    """What to recommend, to whom, and under which rules."""

    model_config = ConfigDict(json_schema_extra={"not": _SAMPLED_AND_DIVERSE})

    user_id: Id | None = None
    history: Annotated[list[Id], Field(max_length=1000)] | None = None
    """Item ids, oldest first, of somebody who is not known; with ``user_id``, they come after what is known."""
    query: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Words: only items that the search finds are recommended."""
    k: Annotated[int, Strict(), Field(ge=1, le=MAX_K), BeforeValidator(_whole)] = 10
    scenario: Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9_-]+$")] = "default"
    """Where the list is shown; logged with impressions, and a label of metrics where the service was told of it."""
    filter: Annotated[Expression, Field(examples=['price < 10 and title != "Red lamp"'])] | None = None
    """An expression over attributes that every item must satisfy."""
    exclude: Annotated[list[Id], Field(max_length=1000)] = []
    exclude_history: Flag | None = None
    """Leave out what the user had; None: as the bundle was fitted."""
    boosts: Annotated[list[Boost], Field(max_length=20)] = []
    diversity: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """0: by score alone; 1: items as different as possible."""
    rotate: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """Taken from the score for each time that the user was shown the item in the last week and did nothing with it."""
    cold_share: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Share of the list that goes to items added since the model was fitted; None: where their scores put them."""
    sample: Annotated[Number, Field(ge=0.001, le=10)] | None = None
    """Draw the slate at this temperature, and say with which probability each item was drawn."""
    explain: Flag = False
    deadline_ms: Annotated[Number, Field(ge=1, le=10_000)] | None = None
    """Answer within this time, from a lower rung if need be; None: the service's own."""


class Moved(_Body):
    """A history item, and what the score loses without it."""

    item_id: str
    title: str
    change: float


class Step(_Body):
    """One level of the code path: which code, and the log-probability of it given those before."""

    code: int
    log_probability: float | None


class Explanation(_Body):
    """Why an item is where it is."""

    history: list[Moved]
    path: list[Step]
    sources: dict[str, float]
    """What each source of evidence added to the model's score."""
    rules: list[str]
    """Rules that moved it, with by how much."""


class Recommended(_Body):
    """One item of a list."""

    item_id: str
    score: float
    """Higher is better; comparable within a list only."""
    rank: int
    title: str | None = None
    propensity: float | None = None
    cold: bool = False
    """Whether it was added since the model was fitted."""
    explanation: Explanation | None = None


class Removed(_Body):
    """An item that the model would have shown, and the rule that took it."""

    item_id: str
    rule: str


class Versions(_Body):
    """What answered; the same for every item of a response."""

    model_version: str
    codebook_version: str | None
    table_revision: int
    """Revision of the items: what was put, patched or deleted up to it counts."""


class RecommendResponse(Versions):
    """A list, best first."""

    response_id: str
    """Send it with events that follow from the list."""
    user_id: str | None
    items: list[Recommended]
    rung: Literal["generative", "dense", "cooccurrence", "segment_popularity", "popularity"]
    """Which step of the ladder of fall-backs answered."""
    arm: str
    """Which arm of the experiment the user is in: ``live`` or ``canary``."""
    stages_ms: dict[str, float]
    notes: list[str] = []
    """What a caller should know: unknown items that were ignored, no history, a list that is shorter than asked."""
    removed: list[Removed] | None = None
    """With ``explain``: what rules took out."""


class SimilarItem(_Body):
    item_id: str
    score: float
    rank: int
    title: str | None = None


class SimilarResponse(Versions):
    """Items most like one, best first."""

    item_id: str
    items: list[SimilarItem]


class SearchResponse(Versions):
    """Items that match words, best first."""

    query: str
    items: list[SimilarItem]


class EventIn(_Body):
    """Something that a user did with an item."""

    event_id: Id
    """Yours, and unique: an event that is sent twice is kept once."""
    user_id: Id
    item_id: Id
    kind: Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z_]+$")] = "purchase"
    time: Annotated[Number, Field(ge=0, le=253_402_300_799)] | None = None
    """Seconds since 1970 UTC; None: now."""
    value: Number | None = None
    session: Id | None = None
    response_id: Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None


class EventOut(_Body):
    """An event that is kept."""

    event_id: str
    user_id: str
    item_id: str
    kind: str
    time: float
    value: float | None
    session: str | None
    response_id: str | None


class EventBatch(_Body):
    events: Annotated[list[EventIn], Field(min_length=1, max_length=MAX_BATCH)]


class Accepted(_Body):
    """What was kept; it is on disk."""

    accepted: int
    duplicates: int


_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
Attributes = Annotated[
    dict[Annotated[str, Field(pattern=_NAME)], Attribute],
    Field(max_length=64, json_schema_extra={"additionalProperties": False}),
]


class ItemIn(_Body):
    """An item as the shop describes it."""

    attributes: Attributes
    """``title``, ``text``, ``price`` and whatever else; strings, numbers, booleans or lists of strings."""
    available: Flag = True


class ItemPatch(_Body):
    """What to change of an item."""

    attributes: Attributes = {}
    """Null removes an attribute."""
    available: Flag | None = None


class ItemOut(Versions):
    """An item, what it is now."""

    item_id: str
    attributes: dict[str, Any]
    available: bool
    codes: list[int] | None
    """Its Semantic ID; None where the model has none."""
    cold: bool


class UserOut(_Body):
    """What is kept of a user."""

    user_id: str
    num_events: int
    history: list[EventOut]
    """The latest first."""


class Problem(_Body):
    """What went wrong, and what to do (RFC 9457)."""

    title: str
    status: int
    detail: str
    request_id: str
