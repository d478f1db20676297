"""Two boxes with one Redis: what one makes is read, continued, cancelled and deleted on both."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
import redis
from werkzeug.test import TestResponse

from qwen_wsgi.cli.stored import usage
from qwen_wsgi.errors import ApiError
from qwen_wsgi.sharing import BoxShare
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable
from qwen_wsgi.state.redis.records import LARGEST
from qwen_wsgi.state.shared.stores import SharedStores, stores_of
from qwen_wsgi.state.workers import this_worker
from tests.api.apps import App, error_of, running
from tests.api.two_boxes import Boxes, two_boxes
from tests.kit import uploads
from tests.kit.redis_server import needs_redis
from tests.kit.secrets import secret

pytestmark = needs_redis

MODEL = "qwen3.8-max"
LINE = b'{"custom_id": "1"}'


@pytest.fixture
def boxes() -> Iterator[Boxes]:
    with two_boxes() as made:
        yield made


def respond(app: App, text: str = "Hello", **members: Any) -> dict[str, Any]:
    answer = app.client.post("/v1/responses", json={"model": MODEL, "input": text, **members})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.get_json()
    return made


def read(app: App, id: str) -> TestResponse:
    return app.get(f"/v1/responses/{id}")


def delete(app: App, id: str) -> TestResponse:
    return app.client.delete(f"/v1/responses/{id}")


def prompts(boxes: Boxes) -> list[str]:
    """What the last call sent upstream, message by message."""
    chat = [r for r in boxes.sandbox.settle() if r.route == "chat"][-1]
    return [str(message["content"]) for message in json.loads(chat.body or b"{}")["messages"]]


# --- stored responses ----------------------------------------------------------------------------


def test_a_conversation_goes_on_from_box_to_box(boxes: Boxes) -> None:
    first = respond(boxes.a, "one")
    second = respond(boxes.b, "two", previous_response_id=first["id"])
    third = respond(boxes.a, "three", previous_response_id=second["id"])

    texts = prompts(boxes)
    assert [text for text in texts if text in ("one", "two", "three")] == ["one", "two", "three"]
    for app in (boxes.a, boxes.b):
        for each in (first, second, third):
            assert read(app, each["id"]).get_json() == each
        items = app.get(f"/v1/responses/{third['id']}/input_items").get_json()
        assert items["data"][0]["content"][0]["text"] == "three"


def test_what_is_deleted_on_one_box_is_gone_on_all(boxes: Boxes) -> None:
    first, second = respond(boxes.a), respond(boxes.a)

    assert delete(boxes.b, first["id"]).get_json()["deleted"] is True
    assert read(boxes.b, first["id"]).status_code == 404
    boxes.share()
    assert read(boxes.a, first["id"]).status_code == 404
    assert delete(boxes.a, first["id"]).status_code == 404

    assert delete(boxes.a, second["id"]).status_code == 200
    assert read(boxes.b, second["id"]).status_code == 404
    continued = boxes.b.client.post(
        "/v1/responses",
        json={"model": MODEL, "input": "x", "previous_response_id": second["id"]},
    )
    assert error_of(continued)["code"] == "previous_response_not_found"


def test_nobody_can_read_a_prompt_in_redis(boxes: Boxes) -> None:
    respond(boxes.a, "a very private prompt")

    keys = boxes.redis.command("KEYS", "qwen-proxy:response:rec:*")
    assert isinstance(keys, list)
    (key,) = keys
    value = boxes.redis.command("HGET", key.decode(), "v")
    assert isinstance(value, bytes)
    assert value.startswith(b"1")
    assert b"private" not in value


@pytest.mark.parametrize("other", ["", "another-key-of-boxes-0123456789abcdef-0123456789abcdef"])
def test_a_box_with_another_key_says_what_is_wrong(boxes: Boxes, other: str) -> None:
    made = respond(boxes.a)
    with box_beside(boxes, other) as c:
        answer = read(c, made["id"])
        assert (answer.status_code, error_of(answer)["code"]) == (503, "shared_store_unreadable")
        assert "QWEN_PROXY_STATE_KEY" in c.log


def box_beside(boxes: Boxes, state_key: str) -> AbstractContextManager[App]:
    """A third box, with another key."""
    return running(
        boxes.a.clock,
        state_dir=boxes.directory / "c",
        QWEN_PROXY_REDIS_URL=boxes.redis.url,
        QWEN_PROXY_STATE_KEY=state_key,
    )


def test_while_redis_is_away_a_box_has_what_it_made_and_says_so_of_the_rest(boxes: Boxes) -> None:
    of_a, of_b = respond(boxes.a, "one"), respond(boxes.b, "two")
    boxes.lose_redis()

    assert read(boxes.a, of_a["id"]).get_json() == of_a
    respond(boxes.a, "three", previous_response_id=of_a["id"])
    for answer in (
        read(boxes.a, of_b["id"]),
        delete(boxes.a, of_b["id"]),
        boxes.a.client.post(f"/v1/responses/{of_b['id']}/cancel"),
        boxes.a.client.post(
            "/v1/responses",
            json={"model": MODEL, "input": "x", "previous_response_id": of_b["id"]},
        ),
    ):
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (503, "shared_store_away")
        assert "Redis" in error["message"]
        assert answer.headers["retry-after"] == "2"


def test_a_redis_that_was_emptied_is_told_again_and_nothing_deleted_comes_back(
    boxes: Boxes,
) -> None:
    kept, doomed, foreign = respond(boxes.a), respond(boxes.a), respond(boxes.b)
    boxes.share()
    boxes.lose_redis()
    meanwhile = respond(boxes.a, "while it is away", previous_response_id=kept["id"])
    assert delete(boxes.a, doomed["id"]).status_code == 200

    boxes.bring_redis_back()
    boxes.share()

    for app in (boxes.a, boxes.b):
        assert read(app, kept["id"]).get_json() == kept
        assert read(app, meanwhile["id"]).get_json() == meanwhile
        assert read(app, foreign["id"]).get_json() == foreign
        assert read(app, doomed["id"]).status_code == 404
    respond(boxes.b, "and on", previous_response_id=meanwhile["id"])


# --- responses in the background -----------------------------------------------------------------


def made(app: App) -> None:
    app.services.background.look()
    app.services.background.wait(5)


def test_one_in_the_background_is_polled_on_the_other_box(boxes: Boxes) -> None:
    first = respond(boxes.a, background=True)

    assert read(boxes.b, first["id"]).get_json()["status"] == "queued"
    boxes.a.services.background.queue.claim(this_worker())
    assert read(boxes.b, first["id"]).get_json()["status"] == "in_progress"

    second = respond(boxes.a, background=True)
    made(boxes.a)
    done = read(boxes.b, second["id"]).get_json()
    assert done["status"] == "completed"
    assert done == read(boxes.a, second["id"]).get_json()


def test_one_that_is_not_whole_cannot_be_continued(boxes: Boxes) -> None:
    first = respond(boxes.a, background=True)

    answer = boxes.b.client.post(
        "/v1/responses",
        json={"model": MODEL, "input": "x", "previous_response_id": first["id"]},
    )
    assert error_of(answer)["code"] == "previous_response_not_found"


def test_one_is_cancelled_by_way_of_the_other_box(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = respond(boxes.a, background=True)
    # While the second box waits, the first one looks.
    monkeypatch.setattr(
        boxes.b.services.responses, "_sleep", lambda seconds: boxes.share(), raising=True
    )

    answer = boxes.b.client.post(f"/v1/responses/{first['id']}/cancel")

    assert answer.get_json()["status"] == "cancelled"
    assert read(boxes.a, first["id"]).get_json()["status"] == "cancelled"
    assert boxes.a.services.background.queue.get("local", first["id"]) is None


def test_a_box_that_does_not_answer_cannot_cancel(boxes: Boxes) -> None:
    first = respond(boxes.a, background=True)

    answer = boxes.b.client.post(f"/v1/responses/{first['id']}/cancel")

    assert (answer.status_code, error_of(answer)["code"]) == (503, "box_does_not_answer")
    boxes.share()  # it does so when it is back
    assert read(boxes.b, first["id"]).get_json()["status"] == "cancelled"


def test_one_is_deleted_by_way_of_the_other_box(boxes: Boxes) -> None:
    first = respond(boxes.a, background=True)

    assert delete(boxes.b, first["id"]).status_code == 200
    boxes.share()
    assert read(boxes.a, first["id"]).status_code == 404
    made(boxes.a)
    assert read(boxes.b, first["id"]).status_code == 404


def test_one_whose_end_comes_after_its_deletion_elsewhere_stays_gone(boxes: Boxes) -> None:
    first = respond(boxes.a, background=True)

    assert delete(boxes.b, first["id"]).status_code == 200
    made(boxes.a)  # it has not heard of it yet
    assert read(boxes.a, first["id"]).status_code == 404
    assert read(boxes.b, first["id"]).status_code == 404


def test_one_in_the_background_while_redis_is_away(boxes: Boxes) -> None:
    boxes.lose_redis()
    first, second = (respond(boxes.a, background=True) for _ in range(2))
    assert delete(boxes.a, second["id"]).status_code == 200

    boxes.bring_redis_back()
    boxes.share()
    assert read(boxes.b, first["id"]).get_json()["status"] == "queued"
    assert read(boxes.b, second["id"]).status_code == 404
    made(boxes.a)
    assert read(boxes.b, first["id"]).get_json()["status"] == "completed"


def test_one_whose_box_is_gone_fails_at_last(boxes: Boxes) -> None:
    first = respond(boxes.a, background=True)
    name = boxes.redis.command("KEYS", "qwen-proxy:response:rec:*")
    assert isinstance(name, list)
    boxes.redis.command("HSET", name[0].decode(), "d", "1000")

    told = read(boxes.b, first["id"]).get_json()
    assert told["status"] == "failed"
    assert "box of this proxy" in told["error"]["message"]


# --- files and batches ---------------------------------------------------------------------------


def upload(app: App) -> dict[str, Any]:
    parts = (uploads.field("purpose", "batch"), uploads.file(LINE), uploads.END)
    answer = app.client.post("/v1/files", data=b"".join(parts), content_type=uploads.TYPE)
    assert answer.status_code == 200, answer.text
    file: dict[str, Any] = answer.get_json()
    return file


def test_files_and_batches_are_used_on_any_box(boxes: Boxes) -> None:
    first, second = upload(boxes.a), upload(boxes.b)
    with boxes.b.get(f"/v1/files/{first['id']}/content") as content:
        assert content.data == LINE
    batch = boxes.b.client.post(
        "/v1/batches",
        json={
            "input_file_id": first["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    ).get_json()

    for app in (boxes.a, boxes.b):
        listed = [each["id"] for each in app.get("/v1/files?purpose=batch").get_json()["data"]]
        assert {first["id"], second["id"]} <= set(listed)
        page = app.get("/v1/files?limit=1&order=asc").get_json()
        assert page["has_more"]
        rest = app.get(f"/v1/files?order=asc&after={page['last_id']}").get_json()
        assert page["first_id"] not in [each["id"] for each in rest["data"]]
        assert app.get("/v1/files?after=file-none").status_code == 400
        assert app.get(f"/v1/batches/{batch['id']}").status_code == 200
        assert [each["id"] for each in app.get("/v1/batches").get_json()["data"]] == [batch["id"]]

    assert boxes.b.client.delete(f"/v1/files/{first['id']}").status_code == 200
    boxes.share()
    for app in (boxes.a, boxes.b):
        assert app.get(f"/v1/files/{first['id']}").status_code == 404
        assert app.services.host_objects.count("file", "local") >= 1


def test_files_while_redis_is_away(boxes: Boxes) -> None:
    of_a, doomed, of_b = upload(boxes.a), upload(boxes.a), upload(boxes.b)
    boxes.share()
    boxes.lose_redis()

    meanwhile = upload(boxes.a)
    assert boxes.a.get(f"/v1/files/{of_a['id']}").status_code == 200
    answer = boxes.a.get(f"/v1/files/{of_b['id']}")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "shared_store_away")
    listed = [each["id"] for each in boxes.a.get("/v1/files?order=asc").get_json()["data"]]
    assert listed == [of_a["id"], doomed["id"], meanwhile["id"]]
    assert boxes.a.get(f"/v1/files?after={of_b['id']}").status_code == 503
    assert boxes.a.client.delete(f"/v1/files/{doomed['id']}").status_code == 200

    boxes.bring_redis_back()
    boxes.share()
    assert boxes.b.get(f"/v1/files/{meanwhile['id']}").status_code == 200
    assert boxes.b.get(f"/v1/files/{doomed['id']}").status_code == 404


# --- videos --------------------------------------------------------------------------------------


def video(app: App, prompt: str = "a cat") -> str:
    answer = app.client.post("/v1/videos", json={"model": "wan3.0-video", "prompt": prompt})
    assert answer.status_code == 200, answer.text
    return str(answer.get_json()["id"])


def test_a_video_is_polled_listed_and_deleted_on_any_box(boxes: Boxes) -> None:
    id, other = video(boxes.a), video(boxes.b, "a dog")

    told = boxes.b.get(f"/v1/videos/{id}").get_json()
    assert (told["id"], told["prompt"]) == (id, "a cat")
    for app in (boxes.a, boxes.b):
        listed = app.get("/v1/videos").get_json()
        assert {(each["id"], each["prompt"]) for each in listed["data"]} == {
            (id, "a cat"),
            (other, "a dog"),
        }
        assert app.get("/v1/videos?after=video_none").status_code == 400
        assert (
            len(app.get(f"/v1/videos?limit=1&after={listed['first_id']}").get_json()["data"]) == 1
        )

    assert boxes.b.client.delete(f"/v1/videos/{id}").status_code == 200
    assert boxes.b.get(f"/v1/videos/{id}").status_code == 404
    boxes.share()
    assert boxes.a.get(f"/v1/videos/{id}").status_code == 404
    assert [each["id"] for each in boxes.a.get("/v1/videos").get_json()["data"]] == [other]


def test_the_end_of_a_video_that_another_box_saw_is_known(boxes: Boxes) -> None:
    id = video(boxes.a)
    for _ in range(20):
        boxes.b.clock.advance(5)
        if boxes.b.get(f"/v1/videos/{id}").get_json()["status"] == "completed":
            break

    known = boxes.b.services.videos.get("local", id)
    assert known is not None
    assert (known.prompt, known.state["output"]["task_status"]) == ("a cat", "SUCCEEDED")


def test_videos_while_redis_is_away(boxes: Boxes) -> None:
    of_a, of_b, doomed = video(boxes.a), video(boxes.b), video(boxes.a)
    boxes.share()
    boxes.lose_redis()

    meanwhile = video(boxes.a, "a bird")
    assert boxes.a.get(f"/v1/videos/{of_b}").get_json()["prompt"] is None  # its id tells the rest
    assert {each["id"] for each in boxes.a.get("/v1/videos").get_json()["data"]} == {
        of_a,
        doomed,
        meanwhile,
    }
    assert boxes.a.get(f"/v1/videos?after={of_b}").status_code == 503
    assert boxes.a.client.delete(f"/v1/videos/{doomed}").status_code == 200

    boxes.bring_redis_back()
    boxes.share()
    assert boxes.b.get(f"/v1/videos/{meanwhile}").get_json()["prompt"] == "a bird"
    assert boxes.b.get(f"/v1/videos/{doomed}").status_code == 404


def test_a_request_of_another_box_is_not_taken_for_ones_own(boxes: Boxes) -> None:
    a, b = boxes.a.services.videos, boxes.b.services.videos
    now = boxes.a.clock.now()
    own = a.begin("local", "dashscope", "wan")
    other, third = b.begin("local", "dashscope", "wan"), b.begin("local", "dashscope", "wan")
    a.begin("local", "elsewhere", "wan")

    assert a.others(own, now - 10) == (frozenset(), 2)
    assert b.begun(other, "video_b", "task-b", "a dog", {})
    b.not_begun(third)
    assert a.others(own, now - 10) == (frozenset({"task-b"}), 0)
    boxes.lose_redis()
    assert a.others(own, now - 10) == (frozenset(), 1)


# --- what is done for a box ----------------------------------------------------------------------


def test_one_worker_of_a_box_does_it_and_another_one_after_its_end(
    boxes: Boxes, tmp_path: Path
) -> None:
    services = boxes.a.services
    stores = stores_of(
        *(services.settings, services.database, boxes.a.clock, services.shared_store),
    )
    assert isinstance(stores, SharedStores)

    def worker(directory: Path | None) -> BoxShare:
        assert services.usage_totals is not None
        return BoxShare(
            *(directory, boxes.a.clock, stores, services.background),
            *(services.books, services.usage_totals),
        )

    first, second = worker(tmp_path / "new"), worker(tmp_path / "new")
    first.look()
    assert (first.is_mine(), second.is_mine()) == (True, False)
    second.look()
    first.close()
    assert second.is_mine()
    second.close()
    assert worker(None).is_mine()
    (tmp_path / "file").touch()
    assert worker(tmp_path / "file").is_mine()  # better twice than never


def test_what_waits_and_cannot_be_read_is_left_out(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes.share()
    boxes.lose_redis()
    made = respond(boxes.a)
    boxes.bring_redis_back()

    def fails(*_: object) -> None:
        raise ApiError("The disk fails.", status=503)

    with monkeypatch.context() as patched:
        patched.setattr(ResponseStore, "get", fails)
        boxes.share()
    assert "other boxes are not told of a response" in boxes.b.log
    assert read(boxes.b, made["id"]).status_code == 404


def test_an_order_that_cannot_be_obeyed_is_in_the_log(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = respond(boxes.a)
    assert delete(boxes.b, made["id"]).status_code == 200

    def fails(*_: object) -> None:
        raise ApiError("The disk fails.", status=503)

    with monkeypatch.context() as patched:
        patched.setattr(ResponseStore, "delete", fails)
        boxes.share()
    assert "what another box has deleted may still be here" in boxes.b.log


# --- large ones, and used ones -------------------------------------------------------------------


def test_one_that_is_too_large_to_be_shared_stays_on_its_box(boxes: Boxes) -> None:
    noise = random.Random(1).randbytes(LARGEST * 3 // 4).hex()
    large = respond(boxes.a, noise)
    in_background = respond(boxes.a, noise, background=True)

    assert read(boxes.a, large["id"]).status_code == 200
    for each in (large, in_background):
        assert read(boxes.b, each["id"]).status_code == 404
    assert "a response stays on this box" in boxes.b.log  # one log for both
    assert "told to no other box" in boxes.b.log


def test_a_conversation_of_two_boxes_may_not_be_larger_than_a_request() -> None:
    with two_boxes(QWEN_PROXY_MAX_BODY="4000") as boxes:
        first = respond(boxes.a, "x" * 700)
        second = respond(boxes.b, "x" * 700, previous_response_id=first["id"])
        answer = boxes.a.client.post(
            "/v1/responses",
            json={"model": MODEL, "input": "y", "previous_response_id": second["id"]},
        )
        assert error_of(answer)["code"] == "context_length_exceeded"


def test_what_is_used_on_its_box_is_kept_in_redis_as_well(boxes: Boxes) -> None:
    first = respond(boxes.a, "one")
    second = respond(boxes.a, "two", previous_response_id=first["id"])
    names = boxes.redis.command("KEYS", "qwen-proxy:response:rec:*")
    assert isinstance(names, list)
    for name in names:
        boxes.redis.command("PEXPIRE", name.decode(), "60000")

    read(boxes.a, second["id"])
    boxes.share()
    left = [boxes.redis.command("TTL", name.decode()) for name in names]
    assert all(isinstance(each, int) and each > 600_000 for each in left)


def test_no_responses_are_shared_where_none_are_stored() -> None:
    with two_boxes(QWEN_PROXY_RESPONSES_TTL="0") as boxes:
        made = respond(boxes.a)
        for path in (f"/v1/responses/{made['id']}", "/v1/responses/resp_ä"):
            assert boxes.b.get(path).status_code == 404
        assert delete(boxes.b, made["id"]).status_code == 404
        cancel = boxes.b.client.post(f"/v1/responses/{made['id']}/cancel")
        assert cancel.status_code == 404
        assert boxes.redis.command("KEYS", "qwen-proxy:response:*") == []


def test_without_a_state_directory_nothing_is_shared() -> None:
    with running(QWEN_PROXY_REDIS_URL="unix:///nonexistent/redis.sock") as app:
        assert app.services.sharing == ()
        assert app.services.background.cancel("local", "resp_1") is None


# --- usage ---------------------------------------------------------------------------------------


def chat(app: App) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert app.chat(body).status_code == 200


def maintained(boxes: Boxes) -> None:
    for app in (boxes.a, boxes.b):
        assert app.services.books is not None
        app.services.ledger.flush()
        app.services.books.maintain()
        app.clock.advance(6)
    boxes.share()


def printed(app: App, **options: Any) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    asked = {"by": "client", "since": "1d", "until": "now", "json_output": False, **options}
    settings = dataclasses.replace(
        app.services.settings,
        state_dir=str(app.services.database.directory.parent),  # type: ignore[union-attr]  # it has one
    )
    code = usage.run(settings, **{"csv_output": False, **asked}, out=out, err=err, clock=app.clock)
    assert code == 0
    return out.getvalue(), err.getvalue()


def test_usage_is_that_of_both_boxes(boxes: Boxes) -> None:
    assert "No other box has told." in printed(boxes.a)[0]
    chat(boxes.a)
    chat(boxes.b)
    maintained(boxes)
    chat(boxes.b)
    maintained(boxes)

    for app in (boxes.a, boxes.b):
        today = app.get("/v1/usage").get_json()["today"]
        assert [row["calls"] for row in today["rows"] if row["key"] == MODEL] == [3]
        assert today["boxes"] == {"counted": 2, "others_unknown": False}
        out, err = printed(app)
        assert "those of 2 boxes" in out
        assert err == ""

    boxes.lose_redis()
    today = boxes.a.get("/v1/usage").get_json()["today"]
    assert [row["calls"] for row in today["rows"] if row["key"] == MODEL] == [1]
    assert today["boxes"] == {"counted": 1, "others_unknown": True}
    assert "of this box alone" in printed(boxes.a)[0]
    assert "of this box alone" in printed(boxes.a, csv_output=True)[1]
    told = json.loads(printed(boxes.a, json_output=True)[0])
    assert told["boxes"]["others_unknown"] is True

    boxes.bring_redis_back()
    maintained(boxes)
    maintained(boxes)
    today = boxes.a.get("/v1/usage").get_json()["today"]
    assert [row["calls"] for row in today["rows"] if row["key"] == MODEL] == [3]


def test_usage_of_all_for_an_admin() -> None:
    admin = secret("admin-of-boxes")
    with two_boxes(QWEN_PROXY_ADMIN_KEYS=admin) as boxes:
        answer = boxes.a.get("/admin/v1/usage", headers={"Authorization": f"Bearer {admin}"})
        assert answer.get_json()["boxes"] == {"counted": 1, "others_unknown": False}


def test_a_ledger_that_cannot_be_read_is_told_later(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise DatabaseUnavailable("the disk fails", passing=False)

    with monkeypatch.context() as patched:
        patched.setattr(boxes.a.services.books, "changed", fails)
        boxes.share()
    assert "other boxes are not told what was used" in boxes.b.log


# --- what is damaged, and what comes too late ----------------------------------------------------


@pytest.mark.parametrize("rubbish", [b"rubbish", b"0" + zlib.compress(b"5")])
def test_what_is_damaged_in_redis_is_told_and_harms_nothing(boxes: Boxes, rubbish: bytes) -> None:
    response, file, clip = respond(boxes.a), upload(boxes.a), video(boxes.a)
    client = redis.Redis(unix_socket_path=str(boxes.redis.socket))
    with closing(client):
        for key in client.keys("qwen-proxy:*:rec:*"):
            client.hset(key, "v", rubbish)

        for path in (f"/v1/responses/{response['id']}", f"/v1/files/{file['id']}"):
            answer = boxes.b.get(path)
            assert (answer.status_code, error_of(answer)["code"]) == (
                503,
                "shared_store_unreadable",
            )
            assert boxes.a.get(path).status_code == 200
        assert boxes.b.get(f"/v1/videos/{clip}").get_json()["prompt"] is None
        assert boxes.b.get("/v1/videos").status_code == 503
        boxes.b.services.videos.update("local", clip, {"output": {}})
        assert boxes.b.get("/v1/videos").status_code == 503


def test_lists_of_files_that_are_damaged(boxes: Boxes) -> None:
    upload(boxes.a)
    client = redis.Redis(unix_socket_path=str(boxes.redis.socket))
    with closing(client):
        client.hset(client.keys("qwen-proxy:file:rec:*")[0], "v", b"rubbish")
    for app in (boxes.a, boxes.b):
        assert app.get("/v1/files").status_code == 503
    boxes.lose_redis()
    assert boxes.a.get("/v1/files").status_code == 200
    assert boxes.a.services.host_objects.count("file", "local") == 1


def test_what_comes_after_its_deletion_elsewhere_is_not_kept(boxes: Boxes) -> None:
    file, clip = upload(boxes.a), video(boxes.a)
    objects, videos = boxes.a.services.host_objects, boxes.a.services.videos
    for path in (f"/v1/files/{file['id']}", f"/v1/videos/{clip}"):
        assert boxes.b.client.delete(path).status_code == 200

    assert objects.put("file", "local", "dashscope", file)
    assert objects.get("file", "local", file["id"]) is None
    videos.update("local", clip, {"output": {"task_status": "SUCCEEDED"}})
    known = videos.get("local", clip)
    assert known is not None
    assert known.deleted


def test_a_file_of_another_client_stays_its_own(boxes: Boxes) -> None:
    file = upload(boxes.a)
    objects = boxes.a.services.host_objects
    assert not objects.put("file", "eve", "dashscope", file)
    assert objects.get("file", "eve", file["id"]) is None


def test_a_task_of_another_request_is_not_taken(boxes: Boxes) -> None:
    videos = boxes.a.services.videos
    first, second = (videos.begin("local", "dashscope", "wan") for _ in range(2))
    assert videos.begun(first, "video_1", "task", "a cat", {})
    assert not videos.begun(second, "video_2", "task", "a cat", {})
