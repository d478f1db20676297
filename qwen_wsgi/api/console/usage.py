"""`/console/usage`: what was used, as charts, tables and CSV."""

from __future__ import annotations

from datetime import tzinfo
from functools import partial
from typing import Final

from flask import Response, request

from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.books import Books
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.admin.usage import asked, books_of, of_others
from qwen_wsgi.api.console import page
from qwen_wsgi.console.usage import panels as usage_panels
from qwen_wsgi.console.usage import question as usage_question
from qwen_wsgi.console.usage import table
from qwen_wsgi.console.usage.panels import Groups, Panel
from qwen_wsgi.console.usage.question import CHOICES, Question
from qwen_wsgi.errors import NotFound
from qwen_wsgi.state.redis.totals import OfOthers

blueprint = page.blueprint("usage")

#: Rows of a table in the page; all of them are in its CSV.
_MOST_ROWS: Final = 60


@blueprint.get("/console/usage")
def shown() -> Response:
    """The page."""
    question = _question()
    others = of_others(lifecycle.live(), question.span)
    return page.render(
        "usage",
        title="Usage",
        question=question,
        choices=CHOICES,
        words_of=usage_question.words_of,
        panels=_panels(question, others),
        most=_MOST_ROWS,
        shown=table.shown,
        boxes=_boxes(others),
    )


@blueprint.get("/console/usage/<kind>.csv")
def csv(kind: str) -> Response:
    """The numbers of one chart, for a spreadsheet."""
    question = _question()
    found = usage_panels.find(_panels(question, of_others(lifecycle.live(), question.span)), kind)
    if found is None:
        raise NotFound("There is no such table.", code="unknown_url")
    response = http.text(table.csv_of(found.table), "text/csv; charset=utf-8")
    name = f"qwen-proxy-{found.kind}-by-{question.by}-{question.last}.csv"
    response.headers["content-disposition"] = f'attachment; filename="{name}"'
    response.headers.extend(page.HEADERS)
    return response


def _question() -> Question:
    services = lifecycle.live().services
    return usage_question.read(request.args, now=services.clock.now(), zone=services.settings.zone)


def _panels(question: Question, others: OfOthers | None) -> list[Panel]:
    call = lifecycle.live()
    read = partial(_read, books_of(call), question, call.services.settings.zone, others)
    return asked(call, read)


def _read(
    books: Books, question: Question, zone: tzinfo | None, others: OfOthers | None
) -> list[Panel]:
    by, _, span = question
    rows = books.report(by, span, zone=zone, others=others)["rows"]
    if by in ("day", "hour"):
        keys = usage.keys(by, span, zone)
    else:
        keys = list(dict.fromkeys(row["key"] for row in rows))
    return usage_panels.panels(
        Groups(by, keys), rows, books.errors(by, span, zone), books.first_bytes(by, span, zone)
    )


def _boxes(others: OfOthers | None) -> str:
    """Of which boxes the numbers are; "" where there is one."""
    if others is None:
        return ""
    own = "Errors and times to the first byte are those of this box."
    if not others.known:
        return f"Redis does not answer: all numbers are those of this box alone. {own}"
    count = 1 + others.boxes
    return f"Calls, tokens and money are those of {count} boxes. {own}"
