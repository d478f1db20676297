"""Reads the members of a request that may be JSON or a form with files."""

from __future__ import annotations

from typing import Any, NamedTuple

from qwen_wsgi.api.body import is_form
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.protocol.media import File


class Members(NamedTuple):
    """A request's members, and the files of a form by the names of their fields."""

    values: dict[str, Any]
    files: dict[str, list[File]]


def read_members(call: LiveCall) -> Members:
    """Admit the call and read its body. Raises as `LiveCall.read_body`."""
    if not is_form(call.environ):
        body = call.read_body()
        return Members({name: body.get(name) for name in body.names()}, {})
    form = call.read_form()
    files = {
        name: [File(each.mimetype, each.stream.read()) for each in held]
        for name, held in form.files.items()
    }
    return Members(dict(form.fields), files)
