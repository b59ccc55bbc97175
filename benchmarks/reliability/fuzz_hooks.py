"""What schemathesis cannot read from the API's description: expressions of filters, and bodies of JSON lines."""

import json

import schemathesis
from hypothesis import strategies as st

__all__ = ["expressions", "json_lines"]

_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='"\\'), max_size=8)
_COMPARISONS = st.one_of(
    st.builds("price {} {}".format, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.integers(0, 1000)),
    st.builds('title {} "{}"'.format, st.sampled_from(["==", "!="]), _TEXT),
    st.builds('item_id != "{}"'.format, _TEXT),
)


def expressions() -> st.SearchStrategy[str]:
    """Filters over attributes that every catalog of the fuzzed shops has."""
    nested = st.recursive(
        _COMPARISONS,
        lambda inner: st.one_of(
            st.builds("({} and {})".format, inner, inner),
            st.builds("({} or {})".format, inner, inner),
            st.builds("not ({})".format, inner),
        ),
        max_leaves=4,
    )
    return nested.filter(lambda text: len(text) <= 1000)


def json_lines() -> st.SearchStrategy[str]:
    """A few events, one a line."""
    ids = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
    event = st.fixed_dictionaries(
        {"user_id": ids, "item_id": ids},
        optional={"event_id": ids, "kind": st.sampled_from(["purchase", "view"]), "time": st.integers(0, 2**31)},
    )
    return st.lists(event.map(json.dumps), min_size=1, max_size=5).map("\n".join)


schemathesis.openapi.format("tesserec-filter", expressions())
schemathesis.openapi.format("tesserec-json-lines", json_lines())


@schemathesis.serializer("application/x-ndjson")  # type: ignore[untyped-decorator]  # its types are not read
def lines(context: schemathesis.SerializationContext, value: object) -> bytes:
    """A body of JSON lines, or whatever was drawn in its place."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else json.dumps(value).encode()
