"""Pictures: the official openai package against the running server."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

MODEL = "qwen-image-3.0"


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=2, timeout=10
    ) as made:
        yield made


def asked(sandbox: Sandbox, route: str = "generation") -> list[Any]:
    return [json.loads(r.body or b"{}") for r in sandbox.settle() if r.route == route]


def picture(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        data: bytes = answer.read()
        return data


def changes(answer: Any) -> str:
    return str(answer.headers.get("x-qwen-proxy-changed", ""))


def test_pictures_come_as_urls(client: openai.OpenAI, sandbox: Sandbox) -> None:
    made = client.images.generate(
        model=MODEL, prompt="a cat", n=2, size="1024x1536", extra_body={"seed": 5}
    )

    assert made.data is not None
    assert [picture(each.url or "")[:4] for each in made.data] == [b"\x89PNG"] * 2
    assert (made.size, made.output_format) == ("1024x1536", "png")
    (body,) = asked(sandbox)
    assert body["parameters"] == {"size": "1024*1536", "n": 2, "seed": 5}
    assert sandbox.requests[0].key_ends == UPSTREAM_KEY[-4:]


def test_pictures_come_in_the_answer(client: openai.OpenAI, sandbox: Sandbox) -> None:
    made = client.images.generate(model=MODEL, prompt="a cat", response_format="b64_json")

    assert made.data is not None
    data = base64.b64decode(made.data[0].b64_json or "")
    assert data.startswith(b"\x89PNG")
    (fetched,) = [r for r in sandbox.settle() if r.route == "results"]
    assert "authorization" not in fetched.headers


def test_gpt_images_name_gets_the_picture_itself(sandbox: Sandbox, start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_MODEL_ALIASES=f"gpt-image-1={MODEL}",
    )
    with openai.OpenAI(base_url=proxy.base_url, api_key="x", max_retries=0) as client:
        made = client.images.generate(model="gpt-image-1", prompt="a cat", quality="high")

    assert made.data is not None
    assert made.data[0].b64_json
    assert made.data[0].url is None


def test_what_a_model_lacks_is_named(client: openai.OpenAI, sandbox: Sandbox) -> None:
    raw = client.images.with_raw_response.generate(
        model="qwen-image-max", prompt="a cat", n=2, size="1024x1024", quality="hd"
    )

    assert changes(raw) == "quality:dropped, size:1328x1328, n:2-calls"
    made = raw.parse()
    assert made.data is not None
    assert len(made.data) == 2
    assert [body["parameters"] for body in asked(sandbox)] == [{"size": "1328*1328"}] * 2


def test_pictures_are_edited(client: openai.OpenAI, sandbox: Sandbox) -> None:
    png = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
        "rkJggg=="
    )
    made = client.images.edit(
        model="qwen-image-edit-plus", image=[("a.png", png), ("b.png", png)], prompt="mix", n=2
    )
    one = client.images.edit(model=MODEL, image=("a.bin", png), prompt="brighter")

    assert made.data is not None
    assert len(made.data) == 2
    assert one.data is not None
    first, second = asked(sandbox)
    content = first["input"]["messages"][0]["content"]
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    assert content == [{"image": url}, {"image": url}, {"text": "mix"}]
    assert first["parameters"] == {"n": 2}
    assert second["model"] == MODEL


def test_a_model_of_tasks_is_waited_for(client: openai.OpenAI, sandbox: Sandbox) -> None:
    raw = client.images.with_raw_response.generate(
        model="wan2.5-t2i-preview", prompt="a dog [[sandbox: partial=1, task-looks=2]]", n=3
    )
    made = raw.parse()

    assert made.data is not None
    assert len(made.data) == 2
    assert (made.data[0].revised_prompt or "").endswith("in detail")
    assert changes(raw) == "n:2-of-3"


def test_part_of_several_calls_is_not_thrown_away(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "generation", "spec": "inspection"})
    raw = client.images.with_raw_response.generate(model="qwen-image-max", prompt="x", n=3)

    made = raw.parse()
    assert made.data is not None
    assert len(made.data) == 2
    assert changes(raw) == "n:3-calls, n:2-of-3"


def test_a_client_that_leaves_cancels_the_task(
    proxy: Proxy, sandbox: Sandbox, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1, max_retries=0).images.generate(
            model="wan2.5-t2i-preview", prompt="[[sandbox: task-looks=100]]"
        )

    def canceled() -> bool:
        return any(r.path.endswith("/cancel") for r in sandbox.requests)

    assert sandbox.wait_until(canceled, 5)


@pytest.mark.parametrize(
    ("spec", "status", "code", "calls"),
    [
        ("lost-answer", 502, "upstream_closed", 1),
        ("html-502", 502, None, 1),
        ("inspection", 400, "content_filter", 1),
        ("json-error-200", 502, None, None),
        ("result-host=https://results.example", 502, "upstream_result_refused", 1),
        ("partial=1", 502, "upstream_no_picture", None),
    ],
)
def test_failures(
    client: openai.OpenAI,
    sandbox: Sandbox,
    spec: str,
    status: int,
    code: str | None,
    calls: int | None,
) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.with_options(max_retries=1 if calls else 0).images.generate(
            model=MODEL, prompt=f"[[sandbox: {spec}]]", response_format="b64_json"
        )

    assert raised.value.status_code == status
    if code:
        assert raised.value.code == code
    if spec in ("lost-answer", "html-502"):
        # Not again: neither by us nor, as told, by the package.
        assert len(asked(sandbox)) == 1


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("cut-after", "upstream_broken"),
        ("status=404, error=internal_error", "upstream_result_missing"),
        ("redirect", "upstream_result_missing"),
    ],
)
def test_results_that_cannot_be_fetched(
    client: openai.OpenAI, sandbox: Sandbox, spec: str, code: str
) -> None:
    sandbox.control(faults={"results": spec})

    with pytest.raises(openai.APIStatusError) as raised:
        client.with_options(max_retries=0).images.generate(
            model=MODEL, prompt="x", response_format="b64_json"
        )

    assert (raised.value.status_code, raised.value.code) == (502, code)


def test_a_picture_above_the_limit_is_refused(client: openai.OpenAI, sandbox: Sandbox) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.with_options(max_retries=0).images.generate(
            model=MODEL, prompt="[[sandbox: result-bytes=26300000]]", response_format="b64_json"
        )

    assert raised.value.code == "upstream_too_large"


def test_what_cannot_be_done_is_said_clearly(client: openai.OpenAI, sandbox: Sandbox) -> None:
    once = client.with_options(max_retries=0)
    png = ("a.png", b"\x89PNG\r\n\x1a\n")
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        once.images.generate(model=MODEL, prompt="x", stream=True)
    with pytest.raises(openai.BadRequestError, match="Masks are not supported"):
        once.images.edit(model=MODEL, image=png, mask=png, prompt="x")
    with pytest.raises(openai.BadRequestError, match="variations"):
        once.post("/images/variations", cast_to=object, body={})
    with pytest.raises(openai.BadRequestError, match="POST /v1/images/generations"):
        once.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="POST /v1/chat/completions"):
        once.images.generate(model="qwen3.7-plus", prompt="x")
    assert asked(sandbox) == []


def test_a_box_without_an_account_for_it(sandbox: Sandbox, start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url, QWEN_UPSTREAM_API_KEY=secret("other")
    )
    with (
        openai.OpenAI(base_url=proxy.base_url, api_key="x", max_retries=2) as client,
        pytest.raises(openai.APIStatusError) as raised,
    ):
        client.images.generate(model=MODEL, prompt="x")

    assert (raised.value.status_code, raised.value.code) == (501, "not_available_here")
    assert "DASHSCOPE_API_KEY" in raised.value.message


def test_another_account_answers_where_nothing_was_begun(
    sandbox: Sandbox, start_proxy: StartProxy
) -> None:
    with Sandbox() as other:
        proxy = start_proxy(
            DASHSCOPE_BASE_URL=sandbox.base_url,
            DASHSCOPE_API_KEY=UPSTREAM_KEY,
            MODELSTUDIO_BASE_URL=other.base_url,
            MODELSTUDIO_API_KEY=secret("second"),
            QWEN_PROXY_RETRY_BUDGET="5",
        )
        sandbox.control(faults={"generation": "throttle"})
        with openai.OpenAI(base_url=proxy.base_url, api_key="x", max_retries=0) as client:
            raw = client.images.with_raw_response.generate(model=MODEL, prompt="x")

        assert raw.headers["x-qwen-proxy-attempts"] == "2"
        assert len(asked(other)) == 1


def test_models_are_listed_with_what_they_can_do(client: openai.OpenAI) -> None:
    found = {each.id: getattr(each, "capabilities", None) for each in client.models.list()}

    assert found[MODEL] == ["image", "image_edit"]
    assert found["qwen-image-edit-plus"] == ["image_edit"]
    assert found["qwen3.7-plus"] == ["chat"]
    assert found["text-embedding-v4"] == ["embedding"]
