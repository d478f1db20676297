"""The description is valid, and tells what the code does: no route, member, code or header more,
and none less."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

from qwen_wsgi.access import client_key
from qwen_wsgi.access.client_key import ClientKey
from qwen_wsgi.accounting.usage import COLUMNS
from qwen_wsgi.api.flask_app import Application
from qwen_wsgi.api.openapi import admin, codes, document, files, generation, headers, media
from qwen_wsgi.api.openapi.operations import Access
from qwen_wsgi.protocol import rerank
from qwen_wsgi.protocol.embeddings import multimodal
from qwen_wsgi.protocol.images import models as image_models
from qwen_wsgi.protocol.images import request as images
from qwen_wsgi.protocol.messages import request as messages
from qwen_wsgi.protocol.responses import parameters as responses
from qwen_wsgi.protocol.speech import request as speech
from qwen_wsgi.protocol.transcription import request as transcription
from qwen_wsgi.protocol.videos import models as video_models
from qwen_wsgi.protocol.videos import request as videos
from qwen_wsgi.upstream.failures.causes import CAUSES
from tests.api.apps import running

PACKAGE = Path(__file__).resolve().parents[3] / "qwen_wsgi"
DOCUMENT: dict[str, Any] = document.document()


def test_it_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="needs Python 3.13")

    validator.validate(json.loads(document.rendered()))


def test_every_reference_leads_somewhere_and_every_component_is_referred_to() -> None:
    rendered = document.rendered().decode()
    named = set(re.findall(r'"#/components/(\w+)/([^"]+)"', rendered))
    have = {
        (kind, name)
        for kind in ("schemas", "headers", "responses")
        for name in DOCUMENT["components"][kind]
    }

    assert named - have == set()
    # The rest of the files' schemas are parts of one another, but for these.
    assert {name for kind, name in have - named if kind != "schemas"} == set()


def test_every_route_is_described_and_no_other() -> None:
    with running() as app:
        routes = [
            each
            for each in cast(Application, app.client.application).endpoints()
            if not each.partition(" ")[2].startswith("/console")  # for browsers with a session
        ]
    described = [
        f"{method.upper()} {path}"
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
    ]

    assert sorted(described) == sorted(routes)


def test_names_of_operations_are_unique() -> None:
    ids = [each.id for each in document.OPERATIONS]

    assert len(ids) == len(set(ids))


def test_what_only_admins_may_do_is_below_admin() -> None:
    for each in document.OPERATIONS:
        assert (each.access is Access.ADMIN) == each.path.startswith("/admin/"), each.path


# --- members of requests --------------------------------------------------------------------------

#: What each parser knows, and what is described.
MEMBERS: dict[str, tuple[set[str], set[str]]] = {
    "responses": (
        {*responses._READ, *responses._QUIET},
        {*generation.RESPONSES},
    ),
    "messages": ({*messages._TRANSLATED}, {*generation.MESSAGES}),
    "rerank": ({*rerank._READ, *rerank._HINTS, "fps"}, {*generation.RERANK}),
    "embeddings": ({*multimodal._READ, "user"}, {*generation.EMBEDDINGS}),
    "images": (
        {*image_models.OWN, *images._LOST, *images._IGNORED, *images._READ},
        {*media.IMAGES},
    ),
    "videos": (
        {*video_models.OWN_INPUTS, *video_models.OWN_PARAMETERS, *videos._READ, *videos._IGNORED},
        {*media.VIDEOS},
    ),
    "speech": ({*speech._READ}, {*media.SPEECH}),
    "transcriptions": ({*transcription._READ, *transcription._NOTHING}, {*media.TRANSCRIPTIONS}),
    "client keys": ({*client_key._READERS, "expires"}, {*admin.KEY}),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_the_members_of_a_request_are_those_that_its_parser_knows(name: str) -> None:
    known, described = MEMBERS[name]

    assert described == known


def test_chat_has_openai_s_members_and_those_that_the_code_speaks_of() -> None:
    theirs = {*completion_create_params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert theirs <= generation.CHAT.keys()
    words = {
        node.value
        for path in (PACKAGE / "protocol", PACKAGE / "upstream" / "adapt")
        for file in path.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert generation.CHAT.keys() - theirs <= words


def test_responses_know_openai_s_members_but_for_those_of_its_own_servers() -> None:
    theirs = {*response_create_params.ResponseCreateParamsBase.__annotations__, "stream"}

    assert theirs - generation.RESPONSES.keys() == {"access_programs", "image", "moderation"}


def test_objects_are_told_with_the_members_that_the_code_gives_them() -> None:
    key = admin.SCHEMAS["client_key"]["properties"]
    assert list(key) == [field.name for field in dataclasses.fields(ClientKey)]
    row = admin.SCHEMAS["usage"]["properties"]["rows"]["items"]["properties"]
    assert tuple(row) == COLUMNS
    assert files.SCHEMAS["batch"]["properties"].keys() >= {"output_file_id", "request_counts"}


# --- codes of errors ------------------------------------------------------------------------------

#: The status of each class of errors whose call names none.
STATUSES = {
    "AccountUnavailable": 503,
    "BadRequest": 400,
    "Forbidden": 403,
    "LimitReached": 429,
    "NotFound": 404,
    "Overloaded": 503,
    "Unauthorized": 401,
    "UpstreamError": 502,
    "UpstreamTimeout": 504,
}

#: Codes that a call of a class does not name as a text: where they come from.
ELSEWHERE = {
    "proxy_out_of_files": "shortage",
    "proxy_out_of_memory": "shortage",
    "proxy_disk_full": "shortage",
    "oauth_tier_closed": "credentials.credential.Ability",
    "task_may_run": "upstream.tasks.lost.MAY_RUN",
    "upstream_account_refused": "upstream.failures.causes.REFUSED_CODE",
    "websocket_not_supported": "protocol.websocket.handshake.refused",
}


def texts_of(node: ast.expr) -> Iterator[str]:
    """The texts that an argument may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*texts_of(node.body), *texts_of(node.orelse))


@functools.cache
def named_codes() -> dict[str, set[int | None]]:
    """The codes that the code gives its errors, each with the statuses that stand beside it."""
    found: dict[str, set[int | None]] = {}
    for path in PACKAGE.rglob("*.py"):
        if "sandbox" in path.parts:
            continue
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            arguments = {word.arg: word.value for word in call.keywords}
            if (given := arguments.get("code")) is None:
                continue
            status = STATUSES.get(ast.unparse(call.func).rsplit(".", 1)[-1])
            if (named := arguments.get("status")) is not None:
                status = int(str(named.value)) if isinstance(named, ast.Constant) else None
            for code in texts_of(given):
                found.setdefault(code, set()).add(status)
    return found


@pytest.mark.once
def test_every_code_is_described_and_no_other() -> None:
    assert named_codes().keys() - {""} | ELSEWHERE.keys() == codes.CODES.keys()
    for code, place in ELSEWHERE.items():
        file = PACKAGE / (place.replace(".", "/") + ".py")
        while not file.exists():
            file = file.parent.with_suffix(".py")
        assert f'"{code}"' in file.read_text()


@pytest.mark.once
def test_codes_are_described_with_the_statuses_that_they_have() -> None:
    for code, statuses in named_codes().items():
        if not code:
            continue
        described = set(codes.CODES[code].statuses)
        assert {each for each in statuses if each is not None} <= described, code


@pytest.mark.once
def test_codes_of_causes_are_described_with_their_statuses() -> None:
    for cause in CAUSES.values():
        if cause.code is not None:
            assert cause.status in codes.CODES[cause.code].statuses, cause.code
    named = {
        word
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith("connection_error")
        and call.args
        for word in texts_of(call.args[0])
    }
    assert named - {"bad_url"} <= {name.removeprefix("upstream_") for name in codes.BY_CAUSE}


def test_every_status_of_a_code_is_one_of_some_operation() -> None:
    described = {status for each in document.OPERATIONS for status in each.statuses}
    elsewhere = {405}  # an unknown method of any URL
    for name, code in codes.CODES.items():
        assert set(code.statuses) <= described | elsewhere, name


# --- headers --------------------------------------------------------------------------------------


def test_bodies_that_are_not_decoded_are_refused_for_no_coding() -> None:
    paths = DOCUMENT["paths"]
    assert "415" not in paths["/"]["post"]["responses"]
    assert "415" in paths["/v1/chat/completions"]["post"]["responses"]


def test_every_header_that_the_code_reads_is_described_and_no_other() -> None:
    spelled = {
        name[5:].replace("_", "-").lower()
        for path in PACKAGE.rglob("*.py")
        if "sandbox" not in path.parts
        for name in re.findall(r'"(HTTP_[A-Z_]+)"', path.read_text())
    }
    #: Of HTTP, of proxies, of browsers, and of the handshake of WebSockets.
    common = {"accept", "connection", "content-encoding", "cookie", "host", "origin", "upgrade"} | {
        *("access-control-request-headers", "proxy-authorization", "transfer-encoding"),
        *(
            "sec-fetch-dest",
            "sec-fetch-mode",
            "sec-fetch-site",
            "sec-websocket-key",
            "sec-websocket-version",
            "x-forwarded-for",
        ),
    }

    assert spelled - common == headers.READ.keys()


def test_every_header_that_the_code_sends_is_described() -> None:
    spelled = {
        name
        for path in PACKAGE.rglob("*.py")
        if not {"sandbox", "openapi"} & set(path.parts)
        for name in re.findall(r'"((?:x-qwen-proxy|x-ratelimit|openai)-[a-z-]+)', path.read_text())
    }
    # What the SDKs are called; and what is put together.
    spelled -= {"openai-node", "openai-python", "openai-responses"}
    spelled -= {"x-ratelimit-limit-", "x-ratelimit-remaining-", "x-ratelimit-reset-"}

    assert spelled <= headers.SENT.keys()


# --- the route ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/openapi.json", "/qwen.json"])
def test_everybody_gets_it_without_a_key(path: str) -> None:
    with running(QWEN_PROXY_API_KEYS="sk-test-0123456789abcdef") as app:
        response = app.get(path, environ_base={"REMOTE_ADDR": "192.168.1.9"})
        assert response.status_code == 200
        assert response.content_type == "application/json"
        assert json.loads(response.data) == json.loads(document.rendered())
        assert [call["level"] for call in app.calls] == ["DEBUG"]
