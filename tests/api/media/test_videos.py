"""Videos in the application: what is asked of the host, what clients are told, and lost answers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qwen_wsgi.protocol.videos.ids import VideoRef, id_of
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.state.state_key import StateKey
from tests.api.apps import App, error_of
from tests.api.behind import post, sandboxed

MODEL = "wan3.0-video"
ASKED = {"model": MODEL, "prompt": "a cat"}
PNG = b"\x89PNG\r\n\x1a\n...."
KEY = "0123456789abcdef" * 4


@contextmanager
def world(**environ: Any) -> Iterator[tuple[App, Sandbox]]:
    """The application in front of a sandbox; no pause takes time."""
    with sandboxed(QWEN_PROXY_STATE_KEY=KEY, **environ) as (app, sandbox):
        yield app, sandbox


def created(app: App, **more: Any) -> dict[str, Any]:
    answer = post(app, "/v1/videos", {**ASKED, **more})
    assert answer.status_code == 200, answer.data
    made: dict[str, Any] = answer.get_json()
    return made


def looked(app: App, id: str) -> dict[str, Any]:
    app.clock.advance(2)
    made: dict[str, Any] = app.get(f"/v1/videos/{id}").get_json()
    return made


def finished(app: App, **more: Any) -> str:
    """The id of a video that is done."""
    id: str = created(app, **more)["id"]
    looked(app, id)
    assert looked(app, id)["status"] == "completed"
    return id


def bodies(sandbox: Sandbox) -> list[Any]:
    return [json.loads(r.body or b"{}") for r in sandbox.settle() if r.route == "video-task"]


def routes(sandbox: Sandbox) -> list[str]:
    return [record.route for record in sandbox.settle()]


def begun(sandbox: Sandbox) -> int:
    """How many tasks the sandbox has."""
    return len(sandbox._world.media.tasks)


def test_a_video_from_its_beginning_to_its_bytes() -> None:
    with world() as (app, sandbox):
        made = created(app, seconds="8", size="1280x720", seed=3)
        first, second = looked(app, made["id"]), looked(app, made["id"])
        video = app.get(f"/v1/videos/{made['id']}/content")

        assert bodies(sandbox) == [
            {
                "model": MODEL,
                "input": {"prompt": "a cat"},
                "parameters": {
                    "seed": 3,
                    "resolution": "720P",
                    "ratio": "16:9",
                    "duration": 8,
                },
            }
        ]
        now = int(app.clock.now())
        assert made == {
            "id": made["id"],
            "object": "video",
            "created_at": now - 4,
            "status": "queued",
            "progress": 0,
            "model": MODEL,
            "size": "1280x720",
            "seconds": "8",
            "completed_at": None,
            "expires_at": None,
            "error": None,
            "prompt": "a cat",
            "remixed_from_video_id": None,
        }
        assert (first["status"], first["progress"]) == ("in_progress", 50)
        assert (second["status"], second["progress"]) == ("completed", 100)
        assert second["completed_at"] == now
        assert second["expires_at"] == now + 24 * 3600
        assert video.status_code == 200
        assert b"ftypisom" in video.data[:16]
        assert video.content_type == "video/mp4"
        assert video.headers["x-content-type-options"] == "nosniff"
        assert video.headers["content-disposition"].startswith('attachment; filename="video-')
        assert int(video.headers["content-length"]) == len(video.data)


def test_a_form_with_a_picture() -> None:
    with world() as (app, sandbox):
        answer = app.client.post(
            "/v1/videos",
            data={**ASKED, "seconds": "4", "input_reference": (io.BytesIO(PNG), "a.png")},
        )

        assert answer.status_code == 200, answer.data
        (body,) = bodies(sandbox)
        (frame,) = body["input"]["media"]
        assert frame["type"] == "first_frame"
        assert frame["url"].startswith("data:image/png;base64,")
        assert body["parameters"] == {"duration": 4}
        assert answer.get_json()["size"] == "auto"


def test_what_is_changed_is_named_and_refused_in_strict_mode() -> None:
    asked = {**ASKED, "model": "wan2.5-t2v-preview", "seconds": 8, "style": "noir", "audio": True}
    with world() as (app, _):
        answer = post(app, "/v1/videos", asked)
        assert answer.headers["x-qwen-proxy-changed"] == "style:dropped, audio:dropped, seconds:10"
        assert answer.get_json()["seconds"] == "10"
    with world(QWEN_PROXY_STRICT=1) as (app, sandbox):
        assert error_of(post(app, "/v1/videos", asked))["code"] == "unsupported_parameter"
        assert begun(sandbox) == 0


def test_the_record_of_a_call_has_the_seconds_that_are_paid_for() -> None:
    with world() as (app, _):
        created(app, seconds="8")
        created(app, seconds="-1")
        first, second = app.calls

        assert first["seconds"] == 8
        assert "seconds" not in second  # the model chooses


def test_a_finished_video_is_not_asked_about_again() -> None:
    with world() as (app, sandbox):
        id = finished(app)
        asked = routes(sandbox).count("tasks")
        for _ in range(5):
            looked(app, id)

        assert routes(sandbox).count("tasks") == asked


def test_polls_of_a_second_are_one_question() -> None:
    with world() as (app, sandbox):
        id = created(app)["id"]
        for _ in range(20):
            app.get(f"/v1/videos/{id}")

        assert routes(sandbox).count("tasks") == 1


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("task-ends=FAILED", "InternalError.Algo"),
        ("task-ends=FAILED,task-error=DataInspectionFailed", "moderation_blocked"),
        ("task-ends=CANCELED", "video_cancelled"),
        ("task-ends=UNKNOWN", "video_unknown"),
    ],
)
def test_every_other_end_is_failed_with_a_code(spec: str, code: str) -> None:
    with world() as (app, _):
        id = created(app, prompt=f"x [[sandbox: {spec}]]")["id"]
        app.clock.advance(100)
        looked(app, id)
        made = looked(app, id)

        assert (made["status"], made["error"]["code"]) == ("failed", code)
        assert error_of(app.get(f"/v1/videos/{id}/content"))["code"] == code


def test_an_expired_video() -> None:
    with world() as (app, _):
        id = finished(app)
        app.clock.advance(24 * 3600 - 10)
        assert app.get(f"/v1/videos/{id}/content").status_code == 200
        app.clock.advance(20)
        answer = app.get(f"/v1/videos/{id}/content")

        assert (answer.status_code, error_of(answer)["code"]) == (404, "video_expired")
        assert looked(app, id)["error"]["code"] == "video_expired"


def test_a_video_that_is_not_ready_and_variants() -> None:
    with world() as (app, _):
        id = created(app)["id"]
        for query, code in (
            ("", "video_not_ready"),
            ("?variant=video", "video_not_ready"),
            ("?variant=thumbnail", "unsupported_variant"),
        ):
            answer = app.get(f"/v1/videos/{id}/content{query}")
            assert (answer.status_code, error_of(answer)["code"]) == (400, code)


@pytest.mark.parametrize(
    ("asked", "status", "content_range"),
    [
        ("bytes=4-7", 206, "bytes 4-7/{n}"),
        ("bytes=0-", 206, "bytes 0-{m}/{n}"),
        ("bytes=0-1,3-4", 200, None),
        ("lines=1-2", 200, None),
        ("bytes=9999-", 416, "bytes */{n}"),
    ],
)
def test_parts(asked: str, status: int, content_range: str | None) -> None:
    with world() as (app, _):
        id = finished(app)
        whole = app.get(f"/v1/videos/{id}/content").data
        answer = app.get(f"/v1/videos/{id}/content", headers={"Range": asked})

        assert answer.status_code == status
        wanted = content_range and content_range.format(n=len(whole), m=len(whole) - 1)
        assert answer.headers.get("content-range") == wanted
        if asked == "bytes=4-7":
            assert answer.data == whole[4:8] == b"ftyp"


def test_a_part_on_a_condition_is_the_whole() -> None:
    with world() as (app, _):
        id = finished(app)
        headers = {"Range": "bytes=4-7", "If-Range": '"sandbox"'}

        assert app.get(f"/v1/videos/{id}/content", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("content-type=text/html", "upstream_bad_answer"),
        ("result-host=https://evil.example", "upstream_result_refused"),
        ("result-host=http://169.254.169.254", "upstream_result_refused"),
        ("result-bytes=600000000", "upstream_too_large"),
    ],
)
def test_a_result_that_is_none(spec: str, code: str) -> None:
    with world() as (app, sandbox):
        id = finished(app, prompt=f"x [[sandbox: {spec}]]")
        if spec.startswith("content-type"):
            sandbox.control(next={"route": "results", "spec": spec})
        answer = app.get(f"/v1/videos/{id}/content")

        assert (answer.status_code, error_of(answer)["code"]) == (502, code)


def test_bytes_without_a_type_are_a_video() -> None:
    with world() as (app, sandbox):
        id = finished(app)
        sandbox.control(next={"route": "results", "spec": "content-type=binary/octet-stream"})

        assert app.get(f"/v1/videos/{id}/content").content_type == "video/mp4"


# --- lists and deletion --------------------------------------------------------------------------


def test_the_list_pages_through_what_the_client_has() -> None:
    with world() as (app, _):
        ids = [created(app, prompt=f"p{i}")["id"] for i in range(5)]
        newest = app.get("/v1/videos?limit=2").get_json()
        rest = app.get(f"/v1/videos?limit=10&after={newest['last_id']}").get_json()
        oldest = app.get("/v1/videos?order=asc").get_json()

        assert [each["id"] for each in newest["data"]] == ids[:-3:-1]
        assert newest["has_more"]
        assert newest["object"] == "list"
        assert [each["id"] for each in rest["data"]] == ids[2::-1]
        assert not rest["has_more"]
        assert [each["prompt"] for each in oldest["data"]] == [f"p{i}" for i in range(5)]
        for query in ("limit=0", "limit=101", "order=up", "after=video_x"):
            assert app.get(f"/v1/videos?{query}").status_code == 400


def test_a_list_shows_states_of_now_and_survives_a_silent_host() -> None:
    with world() as (app, sandbox):
        created(app)
        app.clock.advance(2)
        assert app.get("/v1/videos").get_json()["data"][0]["status"] == "in_progress"
        app.clock.advance(2)
        sandbox.control(next={"route": "tasks", "spec": "internal", "count": 9})
        assert app.get("/v1/videos").get_json()["data"][0]["status"] == "queued"


def test_deleting_cancels_what_waits() -> None:
    with world() as (app, sandbox):
        id = created(app)["id"]
        answer = app.client.delete(f"/v1/videos/{id}")

        assert answer.get_json() == {"id": id, "object": "video.deleted", "deleted": True}
        assert [task.status for task in sandbox._world.media.tasks.values()] == ["CANCELED"]
        assert app.get("/v1/videos").get_json()["data"] == []
        for path in (f"/v1/videos/{id}", f"/v1/videos/{id}/content"):
            assert (
                app.get(path).status_code,
                error_of(app.get(path))["code"],
            ) == (404, "video_not_found")
        assert app.client.delete(f"/v1/videos/{id}").status_code == 404


def test_deleting_what_runs_or_is_done() -> None:
    with world() as (app, sandbox):
        running, done = created(app)["id"], finished(app)
        looked(app, running)

        assert app.client.delete(f"/v1/videos/{running}").status_code == 200
        assert app.client.delete(f"/v1/videos/{done}").status_code == 200
        assert {task.status for task in sandbox._world.media.tasks.values()} == {
            "RUNNING",
            "SUCCEEDED",
        }


def test_a_video_belongs_to_its_key() -> None:
    one, other = "k" * 20 + "one-1", "k" * 20 + "other-2"
    with world(QWEN_PROXY_API_KEYS=f"{one},{other}") as (app, _):
        mine, theirs = ({"Authorization": f"Bearer {key}"} for key in (one, other))
        id = post(app, "/v1/videos", ASKED, headers=mine).get_json()["id"]

        assert app.get(f"/v1/videos/{id}", headers=mine).status_code == 200
        for path in (f"/v1/videos/{id}", f"/v1/videos/{id}/content"):
            assert app.get(path, headers=theirs).status_code == 404
        assert app.client.delete(f"/v1/videos/{id}", headers=theirs).status_code == 404
        assert app.get("/v1/videos", headers=theirs).get_json()["data"] == []


def test_another_box_with_the_same_key_understands_an_id() -> None:
    with world() as (app, sandbox), world() as (box, _):
        ref = VideoRef("upstream", "t-1", MODEL, int(box.clock.now()), "auto", "5")
        id = id_of(ref, StateKey(KEY, None).get(), "local")

        # The sandbox of the other box has no such task, and says so.
        made = box.get(f"/v1/videos/{id}").get_json()
        assert (made["id"], made["status"], made["prompt"]) == (id, "queued", None)
        assert box.client.delete(f"/v1/videos/{id}").status_code == 200
        assert box.get(f"/v1/videos/{id}").status_code == 404
        assert app.get("/v1/videos").get_json()["data"] == []
        assert begun(sandbox) == 0


def test_an_account_that_is_gone() -> None:
    with world() as (app, _):
        ref = VideoRef("gone", "t-1", MODEL, int(app.clock.now()), "auto", "5")
        id = id_of(ref, StateKey(KEY, None).get(), "local")

        assert error_of(app.get(f"/v1/videos/{id}"))["code"] == "no_usable_account"


@pytest.mark.parametrize("path", ["edits", "extensions", "characters", "video_x/remix"])
def test_what_no_model_does_is_refused(path: str) -> None:
    with world() as (app, _):
        answer = post(app, f"/v1/videos/{path}", {"prompt": "x"})

        assert (answer.status_code, error_of(answer)["code"]) == (400, "unsupported_endpoint")


def test_models_that_make_no_videos_are_refused() -> None:
    with world() as (app, _):
        refused = error_of(post(app, "/v1/videos", {**ASKED, "model": "qwen3.8-max"}))

        assert refused["code"] == "wrong_endpoint_for_model"


# --- the older form ------------------------------------------------------------------------------


def test_the_older_form_waits() -> None:
    with world() as (app, sandbox):
        answer = post(app, "/v1/videos/generations", {**ASKED, "duration": 6})
        made = json.loads(answer.data)

        assert made.keys() == {"id", "object", "created", "status", "model", "data"}
        assert made["status"] == "completed"
        assert made["data"][0]["url"].startswith(sandbox.origin)
        assert bodies(sandbox)[0]["parameters"]["duration"] == 6
        again = app.get(f"/v1/videos/generations/{made['id']}").get_json()
        assert again == made


def test_the_older_form_at_once() -> None:
    with world() as (app, _):
        made = post(app, "/v1/videos/generations", {**ASKED, "async": True}).get_json()

        assert (made["status"], made["data"]) == ("queued", [])
        looked(app, made["id"])
        looked(app, made["id"])
        done = app.get(f"/v1/videos/generations/{made['id']}").get_json()
        assert (done["status"], len(done["data"])) == ("completed", 1)


def test_a_failure_in_the_older_form_has_its_status() -> None:
    spec = "task-ends=FAILED,task-error=DataInspectionFailed"
    with world() as (app, _):
        answer = post(app, "/v1/videos/generations", {**ASKED, "prompt": f"x [[sandbox: {spec}]]"})

        assert answer.status_code == 400
        assert error_of(answer)["type"] == "invalid_request_error"


# --- lost answers --------------------------------------------------------------------------------


def lost(spec: str = "lost-answer", count: int = 1) -> dict[str, Any]:
    return {"route": "video-task", "spec": spec, "count": count}


def test_a_lost_answers_task_is_found() -> None:
    with world(QWEN_PROXY_RETRY_BUDGET=30) as (app, sandbox):
        earlier = created(app, prompt="another")
        sandbox.control(next=lost())
        made = created(app)

        assert begun(sandbox) == 2
        assert made["id"] != earlier["id"]
        looked(app, made["id"])
        assert looked(app, made["id"])["status"] == "completed"


def test_a_found_task_that_is_anothers_is_not_given_out() -> None:
    with world(QWEN_PROXY_RETRY_BUDGET=30) as (app, sandbox):
        # Somebody else with the same account began one at this moment, and ours never began.
        sandbox._world.media.start(
            MODEL,
            lambda: {"video_url": "https://x.aliyuncs.com/v.mp4", "orig_prompt": "a dog"},
            key_ends="x",
            looks=1,
            ending="SUCCEEDED",
            failure="",
        )
        sandbox.control(next=lost("never-began"))
        made = looked(app, created(app)["id"])

        assert (made["status"], made["error"]["code"]) == ("failed", "task_of_another")
        assert made["prompt"] == "a cat"
        answer = app.get(f"/v1/videos/{made['id']}/content")
        assert error_of(answer)["code"] == "task_of_another"


def test_what_never_began_is_sent_again() -> None:
    with world(QWEN_PROXY_RETRY_BUDGET=60) as (app, sandbox):
        sandbox.control(next=lost("never-began"))
        made = created(app)

        assert made["status"] == "queued"
        assert begun(sandbox) == 1
        assert len(bodies(sandbox)) == 2


@pytest.mark.parametrize("spec", ["lost-answer", "never-began"])
def test_a_list_that_cannot_be_read_makes_it_unclear(spec: str) -> None:
    with world(QWEN_PROXY_RETRY_BUDGET=60) as (app, sandbox):
        sandbox.control(next=[lost(spec), {"route": "tasks", "spec": "internal", "count": 9}])
        answer = post(app, "/v1/videos", ASKED)

        assert (answer.status_code, error_of(answer)["code"]) == (504, "task_may_run")
        assert answer.headers["x-should-retry"] == "false"
        assert len(bodies(sandbox)) == 1


def test_several_tasks_that_fit_make_it_unclear() -> None:
    with world(QWEN_PROXY_RETRY_BUDGET=60) as (app, sandbox):
        # Tasks of somebody else, with the same key and at the same time.
        for _ in range(2):
            sandbox._world.media.start(
                MODEL, dict, key_ends="x", looks=9, ending="SUCCEEDED", failure=""
            )
        sandbox.control(next=lost())
        answer = post(app, "/v1/videos", {**ASKED, "prompt": "x [[sandbox: task-looks=99]]"})

        assert (answer.status_code, error_of(answer)["code"]) == (504, "task_may_run")
        assert len(bodies(sandbox)) == 1


def test_after_an_unclear_one_the_next_is_unclear_as_well() -> None:
    with world(QWEN_PROXY_RETRY_BUDGET=60) as (app, sandbox):
        sandbox.control(next=[lost(), {"route": "tasks", "spec": "internal", "count": 3}])
        assert post(app, "/v1/videos", ASKED).status_code == 504
        # Its task runs, and must not be given to the next client.
        sandbox.control(next=lost("never-began"))
        assert post(app, "/v1/videos", ASKED).status_code == 504
        assert begun(sandbox) == 1


def test_a_gateways_error_is_looked_up_as_well() -> None:
    with world(QWEN_PROXY_RETRY_BUDGET=60) as (app, sandbox):
        sandbox.control(next=lost("html-502"))
        created(app)

        assert begun(sandbox) == 1
        assert "tasks" in routes(sandbox)


def test_a_refusal_leaves_no_note_behind() -> None:
    with world() as (app, sandbox):
        sandbox.control(next=lost("invalid-key"))
        assert post(app, "/v1/videos", ASKED).status_code == 502
        tasks, open_ones = app.services.videos.others(0, 0.0)

        assert (tasks, open_ones) == (frozenset(), 1)  # itself is not known
        assert app.get("/v1/videos").get_json()["data"] == []
