"""Answers to requests with `enable_search`: pages that were found, and marks that name them.

Pure, no I/O. The form is that of DashScope's native protocol: `search_info.search_results`, upon
`search_options.enable_source`, and marks in the text upon `enable_citation`.
"""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec

Json = dict[str, Any]

_PAGES: Final = 2
_FORMAT: Final = "[<number>]"
_NO_SEARCH: Final = Refusal(
    400,
    "invalid_parameter_error",
    "This model does not support enable_search.",
    "invalid_request_error",
)


def refusal_for(body: Json, spec: Spec) -> Refusal | None:
    """Return the refusal of a model without a search, or None."""
    return _NO_SEARCH if "no-search" in spec and body.get("enable_search") is True else None


def found(body: Json, spec: Spec) -> Json | None:
    """Return the pages of a search; None if none was requested, or its sources were not."""
    options = _options(body)
    if options is None or options.get("enable_source") is not True or "no-pages" in spec:
        return None
    pages = [
        {
            "site_name": f"Sandbox {number}",
            "icon": "",
            "index": number,
            "title": f"[sandbox] Page {number}",
            "url": f"https://sandbox.example/{number}",
        }
        for number in range(1, spec.count("pages", _PAGES) + 1)
    ]
    return {"search_results": pages}


def marked(text: str, body: Json, spec: Spec) -> str:
    """Return the text with marks of the pages at its end, if the request wants them."""
    options = _options(body)
    if options is None or not (options.get("enable_source") and options.get("enable_citation")):
        return text
    form = str(options.get("citation_format") or _FORMAT)
    marks = [form.replace("<number>", str(i + 1)) for i in range(spec.count("pages", _PAGES))]
    return text + "".join(marks) + "."


def _options(body: Json) -> Json | None:
    options = body.get("search_options")
    if body.get("enable_search") is not True:
        return None
    return options if isinstance(options, dict) else {}
