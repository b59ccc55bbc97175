"""The form of the first page, as it is in the page's address."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import urlencode

from fastapi import Request

from tesserec.serving.bodies import RecommendQuery
from tesserec.serving.schemas import RecommendRequest

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """What was typed on the first page."""

    user: str = ""
    history: tuple[str, ...] = ()
    find: str = ""
    k: str = "10"
    diversity: str = "0"
    query: str = ""
    filter: str = ""
    explain: bool = False

    @classmethod
    def of(cls, request: Request) -> Form:
        """The fields of a page's address, with the item that was added or taken out."""
        given = request.query_params
        history = given.getlist("history")
        if given.get("remove", "").isdecimal():
            del history[int(given["remove"]) : int(given["remove"]) + 1]
        history += given.getlist("add")
        texts = {name: given[name] for name in ("user", "find", "k", "diversity", "query", "filter") if name in given}
        form = cls(history=tuple(history), explain="explain" in given, **{k: v.strip() for k, v in texts.items()})
        return replace(form, find="") if "add" in given else form

    def address(self) -> str:
        """The query of this form's page, without what is only being looked for."""
        plain = {name: getattr(self, name) for name in ("user", "k", "diversity", "query", "filter")}
        wanted = {name: value for name, value in plain.items() if value and value != getattr(Form, name)}
        flags = {"explain": "1"} if self.explain else {}
        return urlencode({**wanted, "history": list(self.history), **flags}, doseq=True)

    def request(self) -> RecommendRequest | None:
        """What is asked for; None where it is nothing yet. Raises pydantic's ``ValidationError``."""
        if not (self.user or self.history or self.query):
            return None
        typed = {
            "k": self.k or "10",
            "filter": self.filter or None,
            "diversity": self.diversity or "0",
            "explain": self.explain,
        }
        return RecommendRequest(
            user_id=self.user or None,
            history=list(self.history) or None,
            query=self.query or None,
            **RecommendQuery.model_validate(typed).model_dump(),
        )
