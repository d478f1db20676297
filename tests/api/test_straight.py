"""Routes that are answered without Flask's look-ups are answered as Flask would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Blueprint, Response

from qwen_wsgi.api.flask_app import ENDPOINT, Application, asked

PATH = "/v1/things"


class Told:
    """What was called, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def note(self, what: str) -> None:
        self.calls.append(what)


def application(told: Told, *, straight: bool) -> Application:
    app = Application("test")
    things = Blueprint("things", __name__)

    def ended(error: BaseException | None) -> None:
        told.note(f"teardown {error!r}")

    def after(response: Response) -> Response:
        told.note(f"after {response.status_code}")
        response.headers["x-after"] = "1"
        return response

    app.before_request(lambda: told.note("before all"))
    things.before_request(lambda: told.note("before things"))
    app.after_request(after)
    app.teardown_request(ended)

    @things.post(PATH)
    def create() -> Response:
        told.note(f"view {asked()[ENDPOINT]}")
        wanted = asked()["HTTP_X_WANTED"]
        if wanted == "fault":
            raise KeyError("a fault")
        if wanted == "exit":
            raise SystemExit("the worker stops")
        return Response("made", status=201)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        told.note(f"handler {error!r}")
        return Response("failed", status=500)

    app.register_blueprint(things)
    if straight:
        app.go_straight("POST", [PATH])
    return app


@pytest.fixture(params=["answer", "fault"])
def wanted(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_it_is_what_flask_does(wanted: str) -> None:
    seen = []
    for straight in (False, True):
        told = Told()
        client = application(told, straight=straight).test_client()
        answer = client.post(PATH, headers={"X-Wanted": wanted})
        seen.append((told.calls, answer.status, answer.data, answer.headers.get("x-after")))

    assert seen[0] == seen[1]


def test_what_no_handler_answers_ends_the_request_all_the_same() -> None:
    seen = []
    for straight in (False, True):
        told = Told()
        client = application(told, straight=straight).test_client()
        with pytest.raises(SystemExit):
            client.post(PATH, headers={"X-Wanted": "exit"})
        seen.append(told.calls)

    assert seen[0] == seen[1]
    assert seen[0][-1] == "teardown SystemExit('the worker stops')"


@pytest.mark.parametrize("path", [PATH + "/", "/v1/" + PATH.strip("/"), "/nowhere"])
def test_other_spellings_are_flasks(path: str) -> None:
    answers = [
        application(Told(), straight=straight).test_client().post(path, headers={"X-Wanted": "a"})
        for straight in (False, True)
    ]
    assert answers[0].status == answers[1].status
    assert answers[0].data == answers[1].data


def test_other_methods_are_flasks() -> None:
    assert application(Told(), straight=True).test_client().get(PATH).status_code == 500
