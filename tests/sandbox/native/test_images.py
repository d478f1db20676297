"""The sandbox's pictures, tasks and files, as the vendor's pages describe them."""

from __future__ import annotations

import json
import zlib
from typing import Any
from urllib.parse import urlsplit

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import KEY, Answer, call

GENERATION = "/api/v1/services/aigc/multimodal-generation/generation"
OLD = "/api/v1/services/aigc/text2image/image-synthesis"
ASYNC = {"X-DashScope-Async": "enable"}


def made(
    sandbox: Sandbox,
    model: str = "qwen-image-3.0",
    prompt: str = "a cat",
    *,
    pictures: int = 0,
    path: str = GENERATION,
    headers: dict[str, str] | None = None,
    **parameters: Any,
) -> Answer:
    content = [{"image": "https://a.example/1.png"}] * pictures + [{"text": prompt}]
    given: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    if path == OLD:
        given = {"prompt": prompt}
    body = {"model": model, "input": given, "parameters": parameters}
    return call(
        sandbox, "POST", path, body, headers={"Authorization": f"Bearer {KEY}", **(headers or {})}
    )


def look(sandbox: Sandbox, id: str, **options: Any) -> dict[str, Any]:
    answer = call(
        sandbox, "GET", f"/api/v1/tasks/{id}", headers={"Authorization": f"Bearer {KEY}"}, **options
    )
    output: dict[str, Any] = answer.json()["output"]
    return output


def path_of(url: str) -> str:
    return urlsplit(url).path


def test_pictures_at_once(sandbox: Sandbox) -> None:
    answer = made(sandbox, size="640*480", n=2)

    choices = answer.json()["output"]["choices"]
    assert len(choices) == 2
    assert answer.json()["usage"] == {"image_count": 2, "width": 640, "height": 480}
    url = choices[0]["message"]["content"][0]["image"]
    picture = call(sandbox, "GET", path_of(url))
    assert picture.headers["content-type"] == "image/png"
    assert picture.body.startswith(b"\x89PNG\r\n\x1a\n")
    data = picture.body[picture.body.index(b"IDAT") + 4 : picture.body.index(b"IEND") - 8]
    assert len(zlib.decompress(data)) == 480 * (1 + 80)


def test_all_pictures_may_be_in_one_choice_and_some_may_fail(sandbox: Sandbox) -> None:
    one = made(sandbox, prompt="[[sandbox: one-choice]]", n=3).json()["output"]["choices"]
    some = made(sandbox, prompt="[[sandbox: partial=2]]", n=3).json()["output"]["choices"]

    assert [len(each["message"]["content"]) for each in one] == [3]
    assert len(some) == 1


@pytest.mark.parametrize(
    ("model", "parameters", "pictures", "words"),
    [
        ("qwen-image-max", {"n": 2}, 0, "num_images_per_prompt must be 1"),
        ("qwen-image-3.0", {"n": 7}, 0, "n must be between 1 and 6"),
        ("qwen-image-max", {"size": "1024*1024"}, 0, "size must be one of"),
        ("qwen-image-3.0", {"size": "100*100"}, 0, "pixels"),
        ("qwen-image-edit-plus", {"size": "100*1000"}, 1, "width and height"),
        ("qwen-image-3.0", {"quality": "high"}, 0, "quality is not supported"),
        ("wan2.7-image", {"negative_prompt": "x"}, 0, "negative_prompt is not supported"),
        ("qwen-image-max", {}, 1, "number of images"),
        ("qwen-image-edit-plus", {}, 0, "number of images"),
    ],
)
def test_limits_of_the_models(
    sandbox: Sandbox, model: str, parameters: dict[str, Any], pictures: int, words: str
) -> None:
    answer = made(sandbox, model, pictures=pictures, **parameters)

    assert answer.status == 400
    assert answer.json()["code"] == "InvalidParameter"
    assert words in answer.json()["message"]


def test_refusals_have_the_native_form(sandbox: Sandbox) -> None:
    unknown = made(sandbox, "nothing")
    keyless = call(sandbox, "POST", GENERATION, {"model": "qwen-image-3.0"}, headers={})
    refused = made(sandbox, prompt="[[sandbox: inspection]]")
    asynchronous = made(sandbox, headers=ASYNC)
    synchronous = made(sandbox, "wan2.5-t2i-preview", path=OLD)

    assert (unknown.status, unknown.json()["code"]) == (404, "ModelNotFound")
    assert (keyless.status, keyless.json()["code"]) == (401, "invalid_api_key")
    assert refused.status == 400
    assert "asynchronous" in asynchronous.json()["message"]
    assert "synchronous" in synchronous.json()["message"]
    assert {asynchronous.status, synchronous.status} == {403}


def begun(sandbox: Sandbox, prompt: str = "a cat", **parameters: Any) -> str:
    answer = made(sandbox, "wan2.5-t2i-preview", prompt, path=OLD, headers=ASYNC, **parameters)
    assert answer.json()["output"]["task_status"] == "PENDING"
    return str(answer.json()["output"]["task_id"])


def test_a_task_goes_on_with_each_look(sandbox: Sandbox) -> None:
    id = begun(sandbox, "[[sandbox: task-looks=3]] a cat", n=2)

    states = [look(sandbox, id) for _ in range(3)]

    assert [each["task_status"] for each in states] == ["RUNNING", "RUNNING", "SUCCEEDED"]
    done = states[-1]
    assert done["results"][0]["actual_prompt"].endswith("in detail")
    assert done["task_metrics"] == {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}
    assert call(sandbox, "GET", path_of(done["results"][0]["url"])).status == 200


def test_a_task_may_fail_and_be_canceled_only_while_it_waits(sandbox: Sandbox) -> None:
    auth = {"Authorization": f"Bearer {KEY}"}
    failing = begun(sandbox, "[[sandbox: task-ends=FAILED, task-looks=1]]")
    waiting = begun(sandbox)

    assert look(sandbox, failing)["code"] == "InternalError.Algo"
    assert call(sandbox, "POST", f"/api/v1/tasks/{waiting}/cancel", headers=auth).status == 200
    assert look(sandbox, waiting)["task_status"] == "CANCELED"
    again = call(sandbox, "POST", f"/api/v1/tasks/{failing}/cancel", headers=auth)
    assert (again.status, again.json()["code"]) == (400, "UnsupportedOperation")
    assert look(sandbox, "nothing")["task_status"] == "UNKNOWN"


def test_the_list_of_tasks_is_flat(sandbox: Sandbox) -> None:
    first, second = begun(sandbox), begun(sandbox)

    answer = call(
        sandbox,
        "GET",
        "/api/v1/tasks?model_name=wan2.5-t2i-preview&page_size=1",
        headers={"Authorization": f"Bearer {KEY}"},
    ).json()

    assert (answer["total"], answer["total_page"]) == (2, 2)
    assert answer["data"][0]["task_id"] in (first, second)
    assert answer["data"][0]["model_name"] == "wan2.5-t2i-preview"


def test_a_lost_answer_has_begun_its_task(sandbox: Sandbox) -> None:
    with pytest.raises(OSError):
        made(sandbox, "wan2.5-t2i-preview", "[[sandbox: lost-answer]]", path=OLD, headers=ASYNC)
    listed = call(
        sandbox, "GET", "/api/v1/tasks", headers={"Authorization": f"Bearer {KEY}"}
    ).json()

    assert listed["total"] == 1


def test_files_of_any_size_in_parts_and_elsewhere(sandbox: Sandbox) -> None:
    answer = made(sandbox, prompt="[[sandbox: result-bytes=300000]]").json()
    path = path_of(answer["output"]["choices"][0]["message"]["content"][0]["image"])
    elsewhere = made(sandbox, prompt="[[sandbox: result-host=https://results.example]]").json()

    whole = call(sandbox, "GET", path)
    part = call(sandbox, "GET", path, headers={"Range": "bytes=299990-"})
    behind = call(sandbox, "GET", path, headers={"Range": "bytes=300000-"})

    assert len(whole.body) == 300_000
    assert (part.status, len(part.body)) == (206, 10)
    assert part.headers["content-range"] == "bytes 299990-299999/300000"
    assert behind.status == 416
    assert call(sandbox, "GET", "/_results/nothing/x.png").status == 404
    url = elsewhere["output"]["choices"][0]["message"]["content"][0]["image"]
    assert url.startswith("https://results.example/_results/")


@pytest.mark.parametrize(
    "spec", ["no-length", "content-type=text/html", "trickle=0, result-bytes=5"]
)
def test_odd_deliveries_of_files(sandbox: Sandbox, spec: str) -> None:
    answer = made(sandbox, prompt=f"[[sandbox: {spec}]]" if "result" in spec else "a").json()
    path = path_of(answer["output"]["choices"][0]["message"]["content"][0]["image"])
    delivery = spec.partition(", result")[0]
    sandbox.control(next={"route": "results", "spec": delivery})

    got = call(sandbox, "GET", path)

    assert got.status == 200
    assert got.body
    assert (got.headers.get("content-length") is None) is (spec == "no-length")
    assert (got.headers["content-type"] == "text/html") is ("html" in spec)


def test_a_reset_forgets_tasks_and_files(sandbox: Sandbox) -> None:
    id = begun(sandbox)
    answer = made(sandbox).json()
    sandbox.reset()

    assert look(sandbox, id)["task_status"] == "UNKNOWN"
    path = path_of(answer["output"]["choices"][0]["message"]["content"][0]["image"])
    assert call(sandbox, "GET", path).status == 404


def test_requests_of_a_wrong_form_are_refused(sandbox: Sandbox) -> None:
    auth = {"Authorization": f"Bearer {KEY}"}
    two = [{"text": "a"}, {"text": "b"}]
    wrong: list[dict[str, Any]] = [{}, {"messages": []}, {"messages": [{"content": two}]}]
    for given in wrong:
        body = {"model": "qwen-image-3.0", "input": given}
        assert call(sandbox, "POST", GENERATION, body, headers=auth).status == 400
    text_first = [{"text": "a"}, {"image": "https://a.example/1.png"}]
    body = {"model": "qwen-image-3.0", "input": {"messages": [{"content": text_first}]}}
    assert call(sandbox, "POST", GENERATION, body, headers=auth).status == 400
    assert json.loads(call(sandbox, "POST", GENERATION, None, headers=auth).body)["code"]
