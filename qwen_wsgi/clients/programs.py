"""Recipes for libraries and curl: a complete program each. Pure."""

from __future__ import annotations

import json
import shlex

from qwen_wsgi.clients.recipe import KEY_VARIABLE, PROMPT, Recipe, Snippet, Target, key_in_shell


def curl(target: Target) -> Recipe:
    """curl: one streamed answer, as sent over the wire."""
    body = {
        "model": target.model.name,
        "stream": True,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    lines = [
        f'curl -N "{target.base_url}/chat/completions"',
        f'  -H "Authorization: Bearer ${KEY_VARIABLE}"',
        '  -H "Content-Type: application/json"',
        f"  -d {shlex.quote(json.dumps(body))}",
    ]
    return Recipe(
        snippets=(key_in_shell(" \\\n".join(lines)),),
        command=f'curl "{target.base_url}/models" -H "Authorization: Bearer ${KEY_VARIABLE}"',
    )


def openai_python(target: Target) -> Recipe:
    """OpenAI's Python package."""
    text = f'''\
import os

from openai import OpenAI

client = OpenAI(base_url="{target.base_url}", api_key=os.environ["{KEY_VARIABLE}"])
stream = client.chat.completions.create(
    model="{target.model}",
    messages=[{{"role": "user", "content": "{PROMPT}"}}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
'''
    return _program("hello.py", "python", text, "pip install openai && python hello.py")


def anthropic_python(target: Target) -> Recipe:
    """Anthropic's Python package; the key goes as a bearer token."""
    text = f'''\
import os

from anthropic import Anthropic

client = Anthropic(base_url="{target.origin}", auth_token=os.environ["{KEY_VARIABLE}"])
with client.messages.stream(
    model="{target.model}",
    max_tokens=1024,
    messages=[{{"role": "user", "content": "{PROMPT}"}}],
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
'''
    return _program("hello.py", "python", text, "pip install anthropic && python hello.py")


def langchain(target: Target) -> Recipe:
    """LangChain, with its OpenAI package."""
    text = f'''\
import os

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="{target.model}",
    base_url="{target.base_url}",
    api_key=os.environ["{KEY_VARIABLE}"],
    stream_usage=True,
)
for chunk in model.stream("{PROMPT}"):
    print(chunk.text, end="", flush=True)
print()
'''
    return _program(
        "hello.py",
        "python",
        text,
        "pip install langchain-openai && python hello.py",
        "Embeddings: use OpenAIEmbeddings(check_embedding_ctx_length=False), because Qwen's models "
        "accept text, not token ids.",
        "Async streams time out if a model thinks silently for two minutes: set "
        "QWEN_PROXY_KEEPALIVE=chunk on the server, or stream_chunk_timeout here.",
    )


def openai_node(target: Target) -> Recipe:
    """OpenAI's package for Node."""
    text = f"""\
import OpenAI from "openai";

const client = new OpenAI({{
  baseURL: "{target.base_url}",
  apiKey: process.env.{KEY_VARIABLE},
}});
const stream = await client.chat.completions.create({{
  model: "{target.model}",
  messages: [{{ role: "user", content: "{PROMPT}" }}],
  stream: true,
}});
for await (const chunk of stream) {{
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}}
console.log();
"""
    return _program("hello.mjs", "javascript", text, "npm install openai && node hello.mjs")


def vercel_ai_sdk(target: Target) -> Recipe:
    """Vercel's AI SDK, with its package for OpenAI-compatible servers."""
    text = f"""\
import {{ createOpenAICompatible }} from "@ai-sdk/openai-compatible";
import {{ streamText }} from "ai";

const qwen = createOpenAICompatible({{
  name: "qwen",
  baseURL: "{target.base_url}",
  apiKey: process.env.{KEY_VARIABLE},
  includeUsage: true,
}});
const {{ textStream }} = streamText({{
  model: qwen("{target.model}"),
  prompt: "{PROMPT}",
}});
for await (const text of textStream) {{
  process.stdout.write(text);
}}
console.log();
"""
    return _program(
        "hello.mjs",
        "javascript",
        text,
        "npm install ai @ai-sdk/openai-compatible && node hello.mjs",
    )


def _program(place: str, language: str, text: str, command: str, *notes: str) -> Recipe:
    return Recipe((key_in_shell(), Snippet(place, language, text)), command, notes)
