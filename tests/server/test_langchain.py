"""The real langchain-openai; where it is installed (`make clients`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.clients.recipe import Recipe
from qwen_wsgi.sandbox import Sandbox
from tests.kit.client_programs import INSTALLED, Desk
from tests.kit.proxy import CLIENT_KEY, Proxy

PYTHON = INSTALLED / "venv/bin/python"

pytestmark = [
    pytest.mark.server,
    pytest.mark.clients,
    pytest.mark.timeout(200),
    pytest.mark.skipif(
        not any(PYTHON.parent.glob("../lib/*/site-packages/langchain_openai")),
        reason="langchain-openai is not installed (make clients)",
    ),
]

PROGRAM = '''
import json, sys
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

class Weather(BaseModel):
    """Tells the weather."""
    city: str
    degrees: int

def model(**more):
    return ChatOpenAI(model="qwen3.7-plus", base_url=sys.argv[1], api_key=sys.argv[2],
                      stream_usage=True, max_retries=0, **more)

responses = sys.argv[3] == "responses"
plain = model(use_responses_api=responses)
chunks = list(plain.stream("Hello"))
whole = chunks[0]
for chunk in chunks[1:]:
    whole = whole + chunk
tools = plain.bind_tools([Weather])
asked = [("user", "Weather? [[sandbox: tools=2]]")]
called = tools.invoke(asked)
history = asked + [called] + [
    {"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in called.tool_calls
]
shaped = plain.with_structured_output(Weather, method="json_schema").invoke("Weather?")
print(json.dumps({
    "invoked": plain.invoke("Hello").text,
    "streamed": whole.text,
    "chunks": len(chunks),
    "usage": whole.usage_metadata["total_tokens"],
    "calls": [[call["name"], sorted(call["args"])] for call in called.tool_calls],
    "answered": tools.invoke(history).text,
    "shaped": type(shaped).__name__,
}))
'''


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_answers_streams_tools_and_schemas(
    proxy: Proxy, sandbox: Sandbox, tmp_path: Path, dialect: str
) -> None:
    desk = Desk(tmp_path, Recipe((), ""))
    (desk.project / "all.py").write_text(PROGRAM)

    ran = desk.run(str(PYTHON), "all.py", proxy.base_url, CLIENT_KEY, dialect)

    assert ran.status == 0, ran
    given: dict[str, Any] = json.loads(ran.out)
    assert given.pop("chunks") > 1
    assert given.pop("usage") > 0
    assert given == {
        "invoked": "[sandbox] You said: Hello",
        "streamed": "[sandbox] You said: Hello",
        "calls": [["Weather", ["city", "degrees"]]] * 2,
        "answered": "[sandbox] The tool answered: sunny",
        "shaped": "Weather",
    }
