"""Holds answers to the description of the API (`/openapi.json`)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from qwen_wsgi.api.openapi import document, headers
from qwen_wsgi.api.openapi.operations import EVENTS, JSON

_BASE: Final = "urn:description"

#: Statuses that any request may have which no operation is asked with.
_ANYWHERE: Final = {404, 405}


@functools.cache
def description() -> dict[str, Any]:
    """The description, as clients get it."""
    found: dict[str, Any] = json.loads(document.rendered())
    return found


@functools.cache
def _registry() -> Registry[Any]:
    resource = DRAFT202012.create_resource(description())
    registry: Registry[Any] = Registry().with_resources([(_BASE, resource)])
    return registry


@functools.cache
def _paths() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """The paths as patterns, the one with the most text of its own first."""
    paths = sorted(
        description()["paths"].items(), key=lambda each: -len(re.sub(r"{\w+}", "", each[0]))
    )
    return [
        (re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(path))), methods)
        for path, methods in paths
    ]


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """What is described of a method and a path; None if nothing is."""
    for pattern, methods in _paths():
        if pattern.fullmatch(path) and method.lower() in methods:
            found: dict[str, Any] = methods[method.lower()]
            return found
    return None


def faults(
    method: str, path: str, status: int, sent: Mapping[str, str], body: bytes | None
) -> list[str]:
    """What an answer has that is not described; empty if it is as described, or no route is asked.

    Args:
        sent: the headers, by lower-case names.
        body: None: only its type is looked at.
    """
    path = re.sub(r"/+", "/", path.partition("?")[0])
    operation = operation_of(method, path)
    if operation is None:
        return []
    if str(status) not in operation["responses"]:
        return [] if status in _ANYWHERE else [f"status {status} is not described"]
    answer = operation["responses"][str(status)]
    if "$ref" in answer:
        answer = description()["components"]["responses"][answer["$ref"].rsplit("/", 1)[-1]]
    return [*_headers(sent), *_body(answer, sent, body)]


def _headers(sent: Mapping[str, str]) -> Iterator[str]:
    for name in sent:
        ours = name.startswith(("x-qwen", "x-ratelimit", "openai-", "anthropic-"))
        if ours and name not in headers.SENT:
            yield f"the header {name} is not described"


def _body(answer: Mapping[str, Any], sent: Mapping[str, str], body: bytes | None) -> Iterator[str]:
    contents = answer.get("content")
    kind = sent.get("content-type", "").partition(";")[0].strip()
    if not contents or not kind:
        return
    schema = contents.get(kind)
    if schema is None:
        if not {"*/*", kind.partition("/")[0] + "/*"} & contents.keys():
            yield f"the content type {kind} is not described"
        return
    if not body:
        return
    if kind == JSON:
        yield from _violations(schema["schema"], json.loads(body))
    elif kind == EVENTS:
        for data in re.findall(rb"^data: ?(\{.*)$", body, re.MULTILINE):
            yield from _violations({"anyOf": schema["schema"]["x-events"]}, json.loads(data))


def _violations(schema: dict[str, Any], value: Any) -> Iterator[str]:
    for error in _of(json.dumps(schema)).iter_errors(value):
        yield f"{error.json_path}: {error.message[:300]}"
        for inner in sorted(error.context or (), key=lambda each: -len(each.absolute_path))[:4]:
            yield f"    {inner.json_path}: {inner.message[:300]}"


@functools.cache
def _of(schema: str) -> Draft202012Validator:
    """For a schema that stands in the description, as JSON."""
    moved = schema.replace('"#/', f'"{_BASE}#/')
    return Draft202012Validator(json.loads(moved), registry=_registry())


def check_described(
    method: str, path: str, status: int, sent: Mapping[str, str], body: bytes | None
) -> None:
    """Fail unless an answer is as the description says. Arguments as for `faults`."""
    found = faults(method, path, status, sent, body)
    assert not found, f"{method} {path} {status} is not as described:\n" + "\n".join(found)
