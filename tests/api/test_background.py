"""Responses in the background: begun, polled, cancelled, deleted, and what becomes of lost ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from greenlet import GreenletExit
from openai.types.responses import Response
from werkzeug.test import TestResponse

from qwen_wsgi.api.dialects.background import worker
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError
from qwen_wsgi.state.database.background import Job
from qwen_wsgi.state.workers import is_gone, this_worker
from tests.api.apps import App, error_of, in_front_of
from tests.api.responding import ADA, BOB, MODELS, answer, post
from tests.fakes.raw_server import whole

#: A worker of a machine that was restarted since.
GONE = "another-boot/pid:[1]/77/88"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "QWEN_PROXY_STATE_DIR": str(tmp_path / "state")}


def begun(app: App, **members: Any) -> dict[str, Any]:
    found = post(app, background=True, **members)
    assert found.status_code == 200, found.data
    body: dict[str, Any] = found.get_json()
    return body


def polled(app: App, id: str, key: str = "") -> TestResponse:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return app.get(f"/v1/responses/{id}", headers=headers)


def made(app: App) -> None:
    """Do what a worker does twice a second, and wait for what it began."""
    app.services.background.look()
    app.services.background.wait(5)
    assert app.services.background.in_flight == 0


def now(app: App, id: str) -> dict[str, Any]:
    body: dict[str, Any] = polled(app, id).get_json()
    Response.model_validate(body)
    return body


def cancelled(app: App, id: str) -> dict[str, Any]:
    body: dict[str, Any] = app.client.post(f"/v1/responses/{id}/cancel").get_json()
    return body


def test_one_is_made_while_nobody_waits(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("Good morning"), **places) as (app, server):
        first = begun(app, metadata={"a": "b"})
        waiting = now(app, first["id"])
        items = app.get(f"/v1/responses/{first['id']}/input_items").get_json()
        made(app)
        done = now(app, first["id"])
        (line,) = [call for call in app.calls if call["method"] == "BACKGROUND"]

        assert (first["status"], first["background"], first["output"]) == ("queued", True, [])
        assert waiting == first
        assert items["data"][0]["role"] == "user"
        assert done["status"] == "completed"
        assert done["output"][0]["content"][0]["text"] == "Good morning"
        assert (done["id"], done["created_at"]) == (first["id"], first["created_at"])
        assert done["background"] is True
        assert done["service_tier"] == "default"
        assert done["qwen_proxy"] == {"account": "upstream", "changed": ""}
        assert (line["request_id"], line["outcome"], line["status"]) == (
            first["id"],
            "complete",
            200,
        )
        assert cancelled(app, first["id"]) == done
        assert app.services.background.queue.get("local", first["id"]) is None
        assert app.services.admission.in_flight == 0
        # The next call continues it.
        server_calls = len(server.requests)
        assert server_calls == 2


def test_one_under_way_is_in_progress(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, _):
        first = begun(app)
        app.services.background.queue.claim(this_worker())
        assert now(app, first["id"])["status"] == "in_progress"


def test_it_belongs_to_its_key(places: dict[str, str]) -> None:
    keys = f"{ADA},{BOB}"
    with in_front_of(MODELS, answer("x"), QWEN_PROXY_API_KEYS=keys, **places) as (app, _):
        id = post(app, key=ADA, background=True).get_json()["id"]
        theirs = {"Authorization": f"Bearer {BOB}"}

        for _ in range(2):
            assert polled(app, id, BOB).status_code == 404
            assert app.client.post(f"/v1/responses/{id}/cancel", headers=theirs).status_code == 404
            assert app.client.delete(f"/v1/responses/{id}", headers=theirs).status_code == 404
            assert polled(app, id, ADA).status_code == 200
            made(app)
        assert polled(app, id, ADA).get_json()["status"] == "completed"


def test_a_waiting_one_is_cancelled(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, server):
        id = begun(app)["id"]
        before = len(server.requests)

        first, second = cancelled(app, id), cancelled(app, id)
        made(app)

        assert first["status"] == "cancelled"
        assert second == first == now(app, id)
        assert len(server.requests) == before


@pytest.mark.parametrize("when", ["waiting", "done"])
def test_one_is_deleted(places: dict[str, str], when: str) -> None:
    with in_front_of(MODELS, answer("x"), **places) as (app, _):
        id = begun(app)["id"]
        if when == "done":
            made(app)
        assert app.client.delete(f"/v1/responses/{id}").get_json()["deleted"] is True
        assert polled(app, id).status_code == 404
        assert app.client.delete(f"/v1/responses/{id}").status_code == 404


def test_one_that_is_deleted_while_its_end_is_stored_stays_away(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, _):
        id, background = begun(app)["id"], app.services.background
        job = background.queue.cancel("local", id, this_worker())
        assert job is not None
        background.queue.delete("local", id)
        background.finish(job, {**job.stored.response, "status": "completed"})
        assert polled(app, id).status_code == 404


def test_a_failure_of_the_upstream(places: dict[str, str]) -> None:
    error = {"message": "slow down", "type": "x", "code": "rate_limit"}
    refused = whole(json.dumps({"error": error}).encode(), "429 Too Many Requests")
    with in_front_of(MODELS, refused, **places) as (app, _):
        id = begun(app)["id"]
        made(app)
        failed = now(app, id)

        assert (failed["status"], failed["error"]["code"]) == ("failed", "rate_limit_exceeded")
        assert cancelled(app, id) == failed


def test_a_fault_of_ours(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with in_front_of(MODELS, **places) as (app, _):
        id = begun(app)["id"]

        def work(job: object) -> dict[str, Any]:
            raise ZeroDivisionError

        app.services.background.work = work
        made(app)
        assert now(app, id)["error"]["code"] == "server_error"


@pytest.mark.parametrize(
    ("setting", "name"),
    [({"QWEN_PROXY_RESPONSES_TTL": "0"}, "RESPONSES_TTL"), ({"QWEN_PROXY_BACKGROUND": "0"}, "")],
)
def test_a_server_without(places: dict[str, str], setting: dict[str, str], name: str) -> None:
    with in_front_of(MODELS, **setting, **places) as (app, _):
        refused = post(app, background=True)
        error = error_of(refused)
        assert (refused.status_code, error["param"]) == (400, "background")
        assert name in error["message"]


def test_a_full_queue(places: dict[str, str]) -> None:
    with in_front_of(MODELS, QWEN_PROXY_BACKGROUND_PER_KEY="2", **places) as (app, _):
        ids = [begun(app)["id"] for _ in range(2)]
        refused = post(app, background=True)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"]

        cancelled(app, ids[0])
        assert begun(app)["status"] == "queued"


def test_one_that_nobody_began_in_time(places: dict[str, str]) -> None:
    with in_front_of(MODELS, QWEN_PROXY_BACKGROUND_TIMEOUT="10", **places) as (app, _):
        id = begun(app)["id"]
        app.clock.advance(11)
        made(app)
        failed = now(app, id)
        assert failed["status"] == "failed"
        assert "in time" in failed["error"]["message"]


def test_one_whose_worker_is_gone(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, server):
        id = begun(app)["id"]
        app.services.background.queue.claim(GONE)
        before = len(server.requests)
        made(app)
        failed = now(app, id)

        assert failed["status"] == "failed"
        assert "process that made this response ended" in failed["error"]["message"]
        assert len(server.requests) == before


def test_one_whose_worker_died_behind_the_last_write(places: dict[str, str]) -> None:
    """It is complete."""
    with in_front_of(MODELS, **places) as (app, _):
        id, services = begun(app)["id"], app.services
        job = services.background.queue.claim(GONE)
        assert job is not None
        services.background.queue.begin_end(job.key, GONE)
        services.responses.put("local", {**job.stored.response, "status": "completed"}, [], None)
        made(app)

        assert now(app, id)["status"] == "completed"
        assert services.background.queue.get("local", id) is None


def test_one_of_this_worker_at_which_it_does_not_work(places: dict[str, str]) -> None:
    """Its end could not be written, for example."""
    with in_front_of(MODELS, **places) as (app, _):
        id = begun(app)["id"]
        app.services.background.queue.claim(this_worker())
        made(app)
        assert now(app, id)["status"] == "failed"


def test_an_answer_that_cannot_be_stored(places: dict[str, str]) -> None:
    with in_front_of(
        MODELS, answer("x" * 1_100_000), QWEN_PROXY_RESPONSES_MAX_BYTES=str(1024 * 1024), **places
    ) as (app, _):
        id = begun(app)["id"]
        made(app)
        failed = now(app, id)

        assert failed["status"] == "failed"
        assert "could not be stored" in failed["error"]["message"]
        assert cancelled(app, id) == failed
        assert app.client.delete(f"/v1/responses/{id}").status_code == 200
        assert polled(app, id).status_code == 404


def test_a_request_that_is_too_large_to_be_kept(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, _):
        refused = post(app, background=True, input="x" * (16 * 1024 * 1024))
        assert (refused.status_code, error_of(refused)["code"]) == (413, "request_too_large")


def test_a_window_where_no_account_has_batch_chat(places: dict[str, str]) -> None:
    """It runs as usual, and is told so at its beginning and at its end."""
    with in_front_of(MODELS, answer("x"), **places) as (app, _):
        found = post(app, background=True, background_options={"completion_window": "8h"})
        made(app)
        done = now(app, found.get_json()["id"])

        assert (
            "background_options.completion_window:full-price"
            in found.headers["x-qwen-proxy-changed"]
        )
        assert (done["status"], done["service_tier"]) == ("completed", "default")


def test_a_summary_is_not_made_in_the_background(places: dict[str, str]) -> None:
    body = {"model": "m", "input": "x", "background": True}
    with in_front_of(MODELS, **places) as (app, _):
        refused = app.client.post("/v1/responses/compact", json=body)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "background")


def test_a_stop_leaves_what_waits(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, _):
        id, background = begun(app)["id"], app.services.background
        background.drain()
        background.look()
        background.stop()
        assert background.in_flight == 0
        assert now(app, id)["status"] == "queued"


def test_a_call_that_a_stop_cuts(places: dict[str, str]) -> None:
    """The log's line of it says so."""

    def cut(call: LiveCall, job: Job) -> dict[str, Any]:
        raise GreenletExit

    with in_front_of(MODELS, **places) as (app, _):
        id = begun(app)["id"]
        app.services.background.work = worker(app.services, cut)
        made(app)
        failed = now(app, id)
        assert failed["status"] == "failed"
        assert "stopped or restarted" in failed["error"]["message"]
        assert app.calls[-2]["outcome"] == "cut_by_stop"


def test_a_list_that_cannot_be_used(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_front_of(MODELS, **places) as (app, _):
        background = app.services.background

        def broken(*args: object, **named: object) -> None:
            raise ApiError("no disk", status=503, code="background_unavailable")

        id = begun(app)["id"]
        monkeypatch.setattr(background.queue, "begin_end", broken)
        made(app)
        monkeypatch.undo()
        assert now(app, id)["status"] == "in_progress"
        background.work = None
        app.clock.advance(6)
        made(app)
        assert now(app, id)["status"] == "failed"


def test_who_is_gone() -> None:
    own = this_worker()
    boot, namespace, pid, started = own.split("/")

    assert not is_gone(own, 1)
    assert is_gone(own, 60)
    assert is_gone(f"other/{namespace}/{pid}/{started}", 1)
    assert is_gone(f"{boot}/{namespace}/{pid}/0", 1)
    assert is_gone(f"{boot}/{namespace}/4194399/{started}", 1)
    assert not is_gone(f"{boot}/pid:[1]/4194399/{started}", 1)
