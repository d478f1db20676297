"""What the description tells of one endpoint, and how that becomes OpenAPI."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from qwen_wsgi.api import paging
from qwen_wsgi.api.openapi import headers
from qwen_wsgi.api.openapi.headers import Header
from qwen_wsgi.api.openapi.json_schema import Schema, integer, ref, text
from qwen_wsgi.upstream.failures.causes import CAUSES

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
FORM: Final = "multipart/form-data"


class Access(enum.Enum):
    """Who may ask."""

    #: Everybody; while the server has no client keys, no web page of another site.
    OPEN = "open"
    #: Holders of a client key; without client keys, programs on the server's machine.
    KEY = "key"
    ADMIN = "admin"
    #: This machine, and keys that say so.
    METRICS = "metrics"


@dataclass(frozen=True)
class Query:
    """A parameter behind the `?`."""

    name: str
    schema: Schema


def paged(largest: int = paging.LARGEST) -> tuple[Query, ...]:
    """The parameters of a list that comes in pages."""
    return (
        Query("limit", integer("Entries of a page.", minimum=1, maximum=largest)),
        Query("order", text("`desc`: the latest first.", "asc", "desc")),
        Query("after", text("The id of the entry before the page.")),
    )


@dataclass(frozen=True)
class Answer:
    """A good answer.

    Attributes:
        contents: by content type; a schema of None is bytes.
        headers: besides those that every answer has.
    """

    meaning: str
    contents: Mapping[str, Schema | None] = field(default_factory=dict)
    headers: Mapping[str, Header] = field(default_factory=dict)
    status: int = 200


#: Statuses of errors, by what a call does on its way.
_OPEN: Final = (403, 500)
_KNOWN: Final = (401, 403, 500, 503)
_PLAIN_BODY: Final = (400, 408, 413)
_BODY: Final = (*_PLAIN_BODY, 415)
#: Those that the causes of failures have; causes that keep the upstream's status know more.
UPSTREAM: Final = tuple(sorted({*(cause.status for cause in CAUSES.values()), 422, 501, 508}))


@dataclass(frozen=True)
class Operation:
    """An endpoint with one method.

    Attributes:
        body: of the request, by content type.
        decodes: the body may have a content coding, such as gzip; unknown ones are refused.
        example: of a body in JSON that is answered, where the server has an account for its model.
        errors: statuses besides those that follow from the rest.
        asks_upstream: an account is asked, so that its failures are possible, too.
        anthropic: errors have Anthropic's form.
    """

    method: str
    path: str
    tag: str
    summary: str
    answers: tuple[Answer, ...]
    description: str = ""
    body: Mapping[str, Schema] = field(default_factory=dict)
    needs_body: bool = True
    decodes: bool = True
    example: Mapping[str, Any] | None = None
    query: tuple[Query, ...] = ()
    errors: tuple[int, ...] = ()
    access: Access = Access.KEY
    asks_upstream: bool = False
    anthropic: bool = False

    @property
    def id(self) -> str:
        """A name for generated clients: `post_v1_chat_completions`."""
        return re.sub(r"[^a-z0-9]+", "_", f"{self.method}_{self.path}".lower()).strip("_")

    @property
    def statuses(self) -> list[int]:
        """All statuses of errors that it may have."""
        found = {*(_OPEN if self.access is Access.OPEN else _KNOWN), *self.errors}
        if self.body:
            found.update(_BODY if self.decodes else _PLAIN_BODY)
        if self.asks_upstream:
            found.update(UPSTREAM, (400,))
        return sorted(found - {answer.status for answer in self.answers})

    def render(self) -> dict[str, Any]:
        """The operation object."""
        rendered: dict[str, Any] = {
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
        }
        if self.description:
            rendered["description"] = self.description
        if parameters := list(self._parameters()):
            rendered["parameters"] = parameters
        if self.body:
            rendered["requestBody"] = {
                "required": self.needs_body,
                "content": {
                    kind: {"schema": schema, **self._example(kind)}
                    for kind, schema in self.body.items()
                },
            }
        rendered["responses"] = {
            **{str(answer.status): self._answer(answer) for answer in self.answers},
            **{str(status): self._error(status) for status in self.statuses},
        }
        if self.access is Access.OPEN:
            rendered["security"] = []
        return rendered

    def _example(self, kind: str) -> dict[str, Any]:
        return {} if self.example is None or kind != JSON else {"example": dict(self.example)}

    def _parameters(self) -> Iterator[dict[str, Any]]:
        for name in re.findall(r"{(\w+)}", self.path):
            yield {"name": name, "in": "path", "required": True, "schema": text()}
        for query in self.query:
            schema = dict(query.schema)
            meaning = schema.pop("description", "")
            described = {"description": meaning} if meaning else {}
            yield {"name": query.name, "in": "query", **described, "schema": schema}

    def _answer(self, answer: Answer) -> dict[str, Any]:
        sent = {**headers.ALWAYS, **answer.headers}
        if self.asks_upstream:
            sent |= {**headers.OF_ACCOUNT, **headers.OF_LIMITS}
        rendered: dict[str, Any] = {
            "description": answer.meaning,
            "headers": {name: header_ref(name) for name in sent},
        }
        if answer.contents:
            rendered["content"] = {
                kind: {} if schema is None else {"schema": schema}
                for kind, schema in answer.contents.items()
            }
        return rendered

    def _error(self, status: int) -> dict[str, str]:
        return {"$ref": f"#/components/responses/{error_name(status, anthropic=self.anthropic)}"}


def header_ref(name: str) -> dict[str, str]:
    """A header by its name."""
    return {"$ref": f"#/components/headers/{name}"}


def error_name(status: int, *, anthropic: bool) -> str:
    """The name of an error among the components."""
    return ("Anthropic" if anthropic else "") + re.sub(r"\W", "", HTTPStatus(status).phrase)


def events(meaning: str, *schemas: str) -> Schema:
    """The content of a stream of server-sent events.

    Args:
        schemas: the names of those that the data of the events obey.
    """
    # No type: OpenAPI 3.1 has no word for events, and some programs hold each one to the schema.
    return {"description": meaning, "x-events": [ref(name) for name in schemas]}
