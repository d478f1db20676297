"""Recipes are well-formed, say what they must, and hold no secret. Each format is parsed."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
import subprocess
import tomllib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.clients.known import CLIENTS, nearest, target_for
from qwen_wsgi.clients.recipe import (
    KEY_VARIABLE,
    Model,
    Snippet,
    Target,
    as_json,
    as_text,
    is_model_name,
    origin_of,
)
from qwen_wsgi.settings import load
from qwen_wsgi.upstream.routing.model_names import alias_of
from tests.clients.recipes import BARE, ROOT, SHOWN, markdown, read_yaml, recipe, shown, text_of

EVERY = pytest.mark.parametrize("name", CLIENTS)
TARGETS = pytest.mark.parametrize("target", [SHOWN, BARE], ids=["shown", "bare"])

#: What the task of this command asks for.
NAMES = {
    "codex",
    "claude-code",
    "opencode",
    "aider",
    "qwen-code",
    "open-webui",
    "continue",
    "cline",
    "langchain",
    "openai-python",
    "openai-node",
    "anthropic-python",
    "vercel-ai-sdk",
    "curl",
}


def whole(name: str, target: Target) -> str:
    return as_text(CLIENTS[name], target, recipe(name, target))


def test_every_client_is_known() -> None:
    assert set(CLIENTS) == NAMES
    assert all(client.name == name for name, client in CLIENTS.items())
    assert {client.speaks for client in CLIENTS.values()} == {"chat", "responses", "messages"}


@EVERY
@TARGETS
def test_a_recipe_has_address_model_and_a_place_for_the_key(name: str, target: Target) -> None:
    made = recipe(name, target)
    pieces = "".join(piece.text for piece in made.snippets)

    assert target.origin in pieces
    assert target.model.name in pieces
    assert made.snippets[0].text.startswith(f"export {KEY_VARIABLE}=YOUR_CLIENT_KEY  # ")
    # The variable is used, not only set.
    assert pieces.count(KEY_VARIABLE) >= 2
    assert made.command and "\n" not in made.command
    for piece in made.snippets:
        assert piece.text.endswith("\n") and not piece.text.endswith("\n\n")
        assert "None" not in piece.text
        assert all(len(line) <= 140 for line in piece.text.splitlines())


@EVERY
def test_openai_clients_get_the_address_with_v1_and_anthropics_without(name: str) -> None:
    pieces = "".join(piece.text for piece in recipe(name).snippets)

    assert (SHOWN.base_url in pieces) == (CLIENTS[name].speaks != "messages")


@EVERY
@TARGETS
def test_every_piece_parses(name: str, target: Target) -> None:
    for piece in recipe(name, target).snippets:
        PARSERS[piece.language](piece)


def parse_shell(piece: Snippet) -> None:
    subprocess.run(["/bin/sh", "-n", "-c", piece.text], check=True, timeout=10)


def parse_python(piece: Snippet) -> None:
    compile(piece.text, piece.place, "exec")
    names = {node.id for node in ast.walk(ast.parse(piece.text)) if isinstance(node, ast.Name)}
    assert "os" in names


def parse_javascript(piece: Snippet) -> None:
    assert f"process.env.{KEY_VARIABLE}" in piece.text
    if node := shutil.which("node"):
        subprocess.run(
            [node, "--input-type=module", "--check", "-"],
            input=piece.text.encode(),
            check=True,
            timeout=20,
            capture_output=True,
        )


PARSERS: dict[str, Any] = {
    "sh": parse_shell,
    "toml": lambda piece: tomllib.loads(piece.text),
    "json": lambda piece: json.loads(piece.text),
    "yaml": lambda piece: read_yaml(piece.text),
    "python": parse_python,
    "javascript": parse_javascript,
}


# --- what each file says -------------------------------------------------------------------------


def test_codex() -> None:
    config = tomllib.loads(text_of(recipe("codex"), "toml"))

    assert config == {
        "model": "qwen3-coder-plus",
        "model_provider": "qwen",
        "model_context_window": 1_000_000,
        "model_providers": {
            "qwen": {
                "name": "qwen-proxy",
                "base_url": "http://127.0.0.1:8080/v1",
                "model_catalog_url": "http://127.0.0.1:8080/v1/models",
                "wire_api": "responses",
                "supports_websockets": True,
                "env_key": KEY_VARIABLE,
            }
        },
    }
    assert "model_context_window" not in tomllib.loads(text_of(recipe("codex", BARE), "toml"))


def environment(script: str, *names: str) -> dict[str, str]:
    """What a shell has in variables after it ran a piece."""
    shown = "; ".join(f'printf "%s\\0" "${{{name}-unset}}"' for name in names)
    done = subprocess.run(
        ["/bin/sh", "-c", f"{script}\n{shown}"],
        env={"PATH": "/usr/bin:/bin", "ANTHROPIC_API_KEY": "left from another use"},
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
    )
    return dict(zip(names, done.stdout.split("\0"), strict=False))


def test_claude_code() -> None:
    found = environment(
        text_of(recipe("claude-code"), "sh"),
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
    )

    assert found == {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8080",
        "ANTHROPIC_AUTH_TOKEN": "YOUR_CLIENT_KEY",
        "ANTHROPIC_API_KEY": "unset",
        "ANTHROPIC_MODEL": "qwen3-coder-plus",
        "ANTHROPIC_DEFAULT_OPUS_MODEL": "qwen3-coder-plus",
        "ANTHROPIC_DEFAULT_SONNET_MODEL": "qwen3-coder-plus",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "qwen3-coder-flash",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "1000000",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "65536",
    }


def test_the_aliases_that_claude_code_may_use_instead_are_a_valid_setting() -> None:
    (note,) = [note for note in recipe("claude-code").notes if "QWEN_PROXY_MODEL_ALIASES=" in note]
    value = note.rpartition("QWEN_PROXY_MODEL_ALIASES=")[2].removesuffix("`.")
    aliases = dict(load({"QWEN_PROXY_MODEL_ALIASES": value}).model_aliases)

    assert alias_of("claude-haiku-4-5", aliases) == "qwen3-coder-flash"
    assert alias_of("claude-opus-4-8", aliases) == "qwen3-coder-plus"


def test_opencode() -> None:
    config = json.loads(text_of(recipe("opencode"), "json"))
    provider = config["provider"]["qwen"]

    assert config["model"] == "qwen/qwen3-coder-plus"
    assert config["small_model"] == "qwen/qwen3-coder-flash"
    assert provider["npm"] == "@ai-sdk/openai-compatible"
    assert provider["options"] == {
        "baseURL": "http://127.0.0.1:8080/v1",
        "apiKey": "{env:QWEN_PROXY_KEY}",
    }
    assert set(provider["models"]) == {"qwen3-coder-plus", "qwen3-coder-flash"}
    assert provider["models"]["qwen3-coder-plus"]["limit"] == {
        "context": 1_000_000,
        "output": 65_536,
    }
    bare = json.loads(text_of(recipe("opencode", BARE), "json"))["provider"]["qwen"]["models"]
    assert bare == {BARE.model.name: {"name": BARE.model.name}}


def test_a_model_that_sees_may_be_given_images() -> None:
    seeing = Target(SHOWN.origin, Model("qwen3.8-max", images=True), SHOWN.fast)
    config = json.loads(text_of(recipe("opencode", seeing), "json"))
    models = config["provider"]["qwen"]["models"]

    assert models["qwen3.8-max"]["modalities"]["input"] == ["text", "image"]
    assert "modalities" not in models["qwen3-coder-flash"]
    (model,) = read_yaml(text_of(recipe("continue", seeing), "yaml"))["models"]
    assert model["capabilities"] == ["tool_use", "image_input"]


def test_aider() -> None:
    made = recipe("aider")
    facts = json.loads(text_of(made, "json"))

    assert read_yaml(text_of(made, "yaml")) == {
        "model": "openai/qwen3-coder-plus",
        "weak-model": "openai/qwen3-coder-flash",
        "openai-api-base": "http://127.0.0.1:8080/v1",
    }
    assert set(facts) == {"openai/qwen3-coder-plus", "openai/qwen3-coder-flash"}
    assert facts["openai/qwen3-coder-plus"]["max_input_tokens"] == 1_000_000
    assert environment(text_of(made, "sh"), "OPENAI_API_KEY") == {
        "OPENAI_API_KEY": "YOUR_CLIENT_KEY"
    }
    assert not [piece for piece in recipe("aider", BARE).snippets if piece.language == "json"]


def test_qwen_code() -> None:
    config = json.loads(text_of(recipe("qwen-code"), "json"))

    assert config["modelProviders"]["openai"] == [
        {
            "id": "qwen3-coder-plus",
            "name": "qwen3-coder-plus by qwen-proxy",
            "baseUrl": "http://127.0.0.1:8080/v1",
            "envKey": KEY_VARIABLE,
            "generationConfig": {"contextWindowSize": 1_000_000},
        }
    ]
    assert config["security"]["auth"]["selectedType"] == "openai"
    assert config["model"]["name"] == "qwen3-coder-plus"


def test_continue() -> None:
    config = read_yaml(text_of(recipe("continue"), "yaml"))

    assert (config["name"], config["version"], config["schema"]) == ("qwen-proxy", "1.0.0", "v1")
    assert config["models"] == [
        {
            "name": "qwen3-coder-plus",
            "provider": "openai",
            "model": "qwen3-coder-plus",
            "apiBase": "http://127.0.0.1:8080/v1",
            "apiKey": "${{ secrets.QWEN_PROXY_KEY }}",
            "roles": ["chat", "edit", "apply"],
            "capabilities": ["tool_use"],
            "defaultCompletionOptions": {"contextLength": 1_000_000, "maxTokens": 65_536},
        }
    ]


@pytest.mark.parametrize(
    ("origin", "shares_the_hosts_network"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:8080", True),
        ("http://192.168.127.5:8080", False),
        ("http://box.lan", False),
    ],
)
def test_open_webui_reaches_the_server_from_its_container(
    origin: str, shares_the_hosts_network: bool
) -> None:
    script = text_of(recipe("open-webui", Target(origin, SHOWN.model, SHOWN.fast)), "sh")
    words = shlex.split(script, comments=True)

    assert ("--network=host" in words) == shares_the_hosts_network
    assert ("PORT=3000" in words) == shares_the_hosts_network
    assert ("3000:8080" in words) != shares_the_hosts_network
    assert f"OPENAI_API_BASE_URL={origin}/v1" in words
    assert words[-1].startswith("ghcr.io/open-webui/open-webui:")


def test_cline() -> None:
    _, _, rest = text_of(recipe("cline"), "sh").partition("\n")
    words = shlex.split(rest.replace("\\\n", ""))
    given = dict(zip(words[2::2], words[3::2], strict=True))

    assert words[:2] == ["cline", "auth"]
    assert given == {
        "--provider": "openai-compatible",
        "--apikey": "$QWEN_PROXY_KEY",
        "--modelid": "qwen3-coder-plus",
        "--baseurl": "http://127.0.0.1:8080/v1",
    }


# --- printing ------------------------------------------------------------------------------------


@EVERY
def test_what_is_printed_is_what_is_to_be_pasted(name: str) -> None:
    made = recipe(name)
    printed = whole(name, shown(name))

    for piece in made.snippets:
        assert f"\n--- {piece.place}\n\n{piece.text}" in printed
    assert f"\n--- try it\n\n{made.command}\n" in printed
    assert all(f"note: {note}\n" in printed for note in made.notes)
    assert "context 1000000, output 65536 tokens" in printed
    assert "limits unknown" in whole(name, BARE)


@EVERY
def test_programs_get_the_same_as_json(name: str) -> None:
    made = recipe(name)
    value = json.loads(json.dumps(as_json(CLIENTS[name], shown(name), made)))

    assert value["url"] == SHOWN.origin
    assert value["context_length"] == 1_000_000
    assert value["max_output_tokens"] == 65_536
    assert [Snippet(**piece) for piece in value["snippets"]] == list(made.snippets)
    assert value["command"] == made.command


# --- the documents -------------------------------------------------------------------------------


@EVERY
def test_the_document_shows_what_is_printed(name: str) -> None:
    sections = sections_of("docs/clients.md")

    assert markdown(recipe(name)) in sections[f"## {name}"]
    assert f"```sh\n{recipe(name).command}\n```" in sections[f"## {name}"]


@pytest.mark.parametrize("name", ["codex", "claude-code", "openai-python"])
def test_the_readme_shows_what_is_printed(name: str) -> None:
    assert markdown(recipe(name)) in sections_of("README.md")["## Clients"]


@EVERY
def test_the_readme_lists_every_client(name: str) -> None:
    client = CLIENTS[name]
    row = f"| {client.title} | {client.speaks} | `qwen-proxy clients {name}` |"

    assert row in sections_of("README.md")["## Clients"]


def sections_of(path: str) -> dict[str, str]:
    """A document's second-level sections by their headings."""
    found: dict[str, str] = {}
    heading = ""
    for line in (ROOT / path).read_text().splitlines(keepends=True):
        heading = line.strip() if line.startswith("## ") else heading
        found[heading] = found.get(heading, "") + line
    return found


# --- names, addresses, models --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meant", "found"),
    [("claude", "claude-code"), ("Codex", "codex"), ("openai", "openai-python"), ("curll", "curl")],
)
def test_a_name_that_is_nearly_right_is_understood(meant: str, found: str) -> None:
    assert found in nearest(meant)


def test_a_name_that_is_far_off_is_like_none() -> None:
    assert nearest("zzzzzzzzzzzz") == []
    assert nearest("") == []


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        (" http://box.lan/v1/ ", "http://box.lan"),
        ("https://[fd00::5]:8443/qwen/v1", "https://[fd00::5]:8443/qwen"),
    ],
)
def test_an_address_may_be_written_with_v1(written: str, origin: str) -> None:
    assert origin_of(written) == origin


@pytest.mark.parametrize(
    "written",
    ["", "box:8080", "ftp://box", "http://", 'http://box/"', "http://a b", "http://u:p@box", "$X"],
)
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="not an address like"):
        origin_of(written)


SAFE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@+-[]~")


@given(st.text(max_size=30))
def test_only_plain_characters_get_into_a_recipe(text: str) -> None:
    if is_model_name(text):
        assert set(text) <= SAFE
        for name in CLIENTS:
            for piece in recipe(name, Target(SHOWN.origin, Model(text), Model(text))).snippets:
                if piece.language not in ("sh", "javascript"):  # these start a process
                    PARSERS[piece.language](piece)
    with suppress(ValueError):
        assert set(origin_of("http://" + text)) <= SAFE


def entries(*ids: str, **more: Any) -> list[dict[str, Any]]:
    return [{"id": id, **more} for id in ids]


def chosen(name: str, *ids: str, **wishes: str) -> tuple[str, str]:
    target = target_for(CLIENTS[name], "http://box", entries(*ids), **wishes)
    return target.model.name, target.fast.name


def test_agents_get_a_model_for_code_and_others_the_first() -> None:
    listed = ("text-embedding-v4", "qwen3.8-max", "qwen3.8-flash", "qwen3-coder-plus")

    assert chosen("codex", *listed) == ("qwen3-coder-plus", "qwen3.8-flash")
    assert chosen("curl", *listed) == ("qwen3.8-max", "qwen3.8-flash")
    assert chosen("codex", "qwen3.7-max") == ("qwen3.7-max", "qwen3.7-max")


def test_the_fast_model_is_the_likest_of_the_quick_ones() -> None:
    listed = ("qwen3-vl-flash", "qwen3.8-omni-flash", "qwen3.8-flash", "qwen3-coder-flash")

    assert chosen("codex", *listed, model="qwen3-coder-plus")[1] == "qwen3-coder-flash"
    assert chosen("codex", *listed, model="qwen3.8-max")[1] == "qwen3.8-flash"


def test_wishes_come_first() -> None:
    assert chosen("codex", "qwen3-coder-plus", default="qwen3.7-max")[0] == "qwen3.7-max"
    assert chosen("codex", "a-coder", model="b", default="c")[0] == "b"


def test_without_a_list_there_is_still_a_model() -> None:
    assert chosen("codex")[0] == "qwen3-coder-plus"
    assert chosen("curl")[0] == "qwen3.7-plus"


def test_a_name_that_does_not_fit_into_a_recipe_is_passed_over() -> None:
    assert chosen("codex", 'my "coder"', "qwen3.7-max")[0] == "qwen3.7-max"


def test_limits_come_from_the_catalogue_and_else_from_what_is_known() -> None:
    client = CLIENTS["codex"]
    listed = entries("qwen3-coder-plus", context_length=5000, max_output_tokens=True)

    assert target_for(client, "http://box", listed).model == Model("qwen3-coder-plus", 5000, 65_536)
    assert target_for(client, "http://box", [], model="qwen3.8-max").model == Model(
        "qwen3.8-max", 1_000_000, 131_072, images=True
    )
    unknown = entries("x", context_length="many", input_modalities="image")
    assert target_for(client, "http://box", unknown).model == Model("x")
