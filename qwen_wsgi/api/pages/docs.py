"""GET /docs: the description of the API, to read and to search with the browser."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flask import Blueprint, Response

from qwen_wsgi.api import lifecycle
from qwen_wsgi.api.pages import html
from qwen_wsgi.api.pages.html import Html, between, joined, prose, table, tag
from qwen_wsgi.greenlets import apart

blueprint = Blueprint("docs", __name__)
blueprint.before_request(lifecycle.refuse_pages)

_SCHEMAS: Final = "#/components/schemas/"


@blueprint.get("/docs")
def docs() -> Response:
    """The description of the API as a page, which is made when it is first asked for."""
    lifecycle.live().record.quiet = True
    response = html.response(apart(_rendered))
    response.headers.add("cache-control", "max-age=300")
    return response


@functools.cache
def _rendered() -> bytes:
    from qwen_wsgi.api.openapi import codes, document, headers

    described = document.document()
    described_paths = [
        (path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    parts: list[Html] = [
        tag("h1", "qwen-proxy: the API"),
        *(tag("p", prose(each)) for each in described["info"]["description"].split("\n\n")),
        tag("p", "For programs: ", tag("a", "/openapi.json", href="/openapi.json")),
    ]
    for each in described["tags"]:
        parts.append(tag("h2", each["name"]))
        for path, method, operation in described_paths:
            if each["name"] in operation["tags"]:
                parts.append(_operation(path, method.upper(), operation, described))
    parts.append(tag("h2", "Codes of errors", id="codes"))
    for group, rows in codes.GROUPS.items():
        told = [
            (tag("code", name), ", ".join(map(str, code.statuses)) or "–", prose(code.meaning))
            for name, code in rows.items()
        ]
        parts += [tag("h3", group), table(("Code", "Status", "Meaning"), told)]
    sent = [(tag("code", name), prose(each.meaning)) for name, each in headers.SENT.items()]
    read = [(tag("code", name), prose(meaning)) for name, meaning in headers.READ.items()]
    parts += [
        tag("h2", "Headers of answers"),
        table(("Header", "Meaning"), sent),
        tag("h2", "Headers of requests"),
        table(("Header", "Meaning"), read),
        tag("h2", "Objects"),
    ]
    for name, schema in described["components"]["schemas"].items():
        parts.append(tag("section", tag("h3", name), *_members(schema), id=f"schema-{name}"))
    return html.page("qwen-proxy: the API", *parts)


def _operation(
    path: str, method: str, operation: Mapping[str, Any], described: Mapping[str, Any]
) -> Html:
    parts: list[Html] = [
        tag("h3", tag("code", f"{method} {path}")),
        tag("p", prose(operation["summary"] + ".")),
    ]
    if "description" in operation:
        parts.append(tag("p", prose(operation["description"])))
    if operation.get("security") == []:
        parts.append(tag("p", "No key is needed."))
    given = [
        (tag("code", each["name"]), each["in"], prose(each.get("description", "")))
        for each in operation.get("parameters", ())
    ]
    parts.append(table(("Parameter", "Place", "Meaning"), given))
    bodies = operation.get("requestBody", {}).get("content", {})
    if bodies:
        parts.append(tag("p", "Body: ", *between(bodies)))
        parts += _members(next(iter(bodies.values()))["schema"])
    for body in bodies.values():
        if "example" in body:
            parts.append(tag("pre", tag("code", json.dumps(body["example"], indent=2))))
    parts.append(table(("Status", "Answer", "Content"), list(_answers(operation, described))))
    return tag("section", *parts, id=operation["operationId"])


def _answers(
    operation: Mapping[str, Any], described: Mapping[str, Any]
) -> Iterator[tuple[str, ...]]:
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            shared = described["components"]["responses"][answer["$ref"].rsplit("/", 1)[-1]]
            meaning = shared["description"].partition(".")[0]
            yield status, joined(meaning, ". ", tag("a", "Codes", href="#codes")), ""
            continue
        contents = [
            joined(kind, ": ", _type(content["schema"])) if content else kind
            for kind, content in answer.get("content", {}).items()
        ]
        yield status, prose(answer["description"]), joined(*between(contents))


def _members(schema: Mapping[str, Any]) -> list[Html]:
    """The members of an object as a table; of anything else its type."""
    properties = schema.get("properties")
    if not properties:
        return [tag("p", _type(schema))]
    needed = schema.get("required", ())
    rows: list[tuple[str, ...]] = [
        (
            tag("code", name),
            joined(_type(each), Html(" (required)" if name in needed else "")),
            prose(each.get("description", "")),
        )
        for name, each in properties.items()
    ]
    return [table(("Member", "Type", "Meaning"), rows)]


def _type(schema: Mapping[str, Any]) -> Html:
    """The type of a value in words."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMAS)
        return tag("a", name, href=f"#schema-{name}")
    if "anyOf" in schema:
        return joined(*between([_type(each) for each in schema["anyOf"]], " or "))
    if "enum" in schema:
        return joined(*between([tag("code", str(each)) for each in schema["enum"]]))
    if schema.get("type") == "array":
        return joined("list of ", _type(schema.get("items", {})))
    kind = schema.get("type", "anything")
    return joined(" or ".join(kind) if isinstance(kind, list) else str(kind))
