"""Recipes for coding agents and chat programs: their configuration files. Pure.

The keys are those of the versions in docs/clients.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from qwen_wsgi.clients.recipe import (
    KEY_VARIABLE,
    PROMPT,
    Model,
    Recipe,
    Snippet,
    Target,
    key_in_shell,
)
from qwen_wsgi.net import is_loopback

#: This server's name in the files of clients with several providers.
_PROVIDER: Final = "qwen"


def codex(target: Target) -> Recipe:
    """Codex: the provider in its own file, the key in the environment."""
    lines = [f'model = "{target.model}"', f'model_provider = "{_PROVIDER}"']
    if target.model.context:
        lines.append(f"model_context_window = {target.model.context}")
    lines += [
        "",
        f"[model_providers.{_PROVIDER}]",
        'name = "qwen-proxy"',
        f'base_url = "{target.base_url}"',
        f'model_catalog_url = "{target.base_url}/models"',
        'wire_api = "responses"',
        "supports_websockets = true",
        f'env_key = "{KEY_VARIABLE}"',
    ]
    return Recipe(
        snippets=(
            key_in_shell(),
            Snippet("~/.codex/config.toml", "toml", "\n".join(lines) + "\n"),
        ),
        command=f'codex exec --skip-git-repo-check "{PROMPT}"',
        notes=(
            "If you have this file already, put the lines before the first [table] at its top.",
            "It must be your own file, not a project's. Codex before 0.171 has no "
            "model_catalog_url; it warns that it has no metadata for the model, and continues.",
            "supports_websockets: Codex keeps one connection, and sends only what is new in each "
            "turn. Where no WebSocket can be opened it uses HTTP.",
        ),
    )


def claude_code_variables(target: Target) -> dict[str, str]:
    """What Claude Code reads from its environment, but for the key."""
    variables = {
        "ANTHROPIC_BASE_URL": target.origin,
        "ANTHROPIC_MODEL": target.model.name,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": target.model.name,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": target.model.name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": target.fast.name,
    }
    if target.model.context:
        variables["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(target.model.context)
    if target.model.max_output:
        variables["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(target.model.max_output)
    return {**variables, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}


def claude_code(target: Target) -> Recipe:
    """Claude Code: environment variables only; it adds `/v1/messages` to the address itself."""
    variables = claude_code_variables(target)
    url = variables.pop("ANTHROPIC_BASE_URL")
    exports = (
        f'export ANTHROPIC_BASE_URL="{url}"',
        f'export ANTHROPIC_AUTH_TOKEN="${KEY_VARIABLE}"',
        *(f"export {name}={value}" for name, value in variables.items()),
    )
    return Recipe(
        snippets=(key_in_shell("unset ANTHROPIC_API_KEY", *exports),),
        command=f'claude -p "{PROMPT}"',
        notes=(
            "Claude Code warns that it does not know the model, and continues. The costs that it "
            "shows are computed from Anthropic's prices.",
            "The older name of ANTHROPIC_DEFAULT_HAIKU_MODEL is ANTHROPIC_SMALL_FAST_MODEL.",
            "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY=1 lists the server's models in /model, "
            "each as anthropic/NAME.",
            "Instead of setting the model variables, the server can map Claude's names: "
            f"`QWEN_PROXY_MODEL_ALIASES=claude-haiku-*={target.fast},claude-*={target.model}`.",
        ),
    )


def opencode(target: Target) -> Recipe:
    """opencode: a provider of one of the AI SDK's packages."""
    text = _json(
        {
            "$schema": "https://opencode.ai/config.json",
            "model": f"{_PROVIDER}/{target.model}",
            "small_model": f"{_PROVIDER}/{target.fast}",
            "provider": {
                _PROVIDER: {
                    "npm": "@ai-sdk/openai-compatible",
                    "name": "qwen-proxy",
                    "options": {"baseURL": target.base_url, "apiKey": f"{{env:{KEY_VARIABLE}}}"},
                    "models": {each.name: _for_opencode(each) for each in _models(target)},
                }
            },
        }
    )
    return Recipe(
        snippets=(key_in_shell(), Snippet("~/.config/opencode/opencode.json", "json", text)),
        command=f'opencode run --model {_PROVIDER}/{target.model} "{PROMPT}"',
        notes=(
            "opencode 2 reads this format, too.",
            "Name the model with its provider. With OPENAI_API_KEY and OPENAI_BASE_URL in its "
            "environment opencode also has a provider for OpenAI's models (gpt-…), which are 404 "
            "here.",
        ),
    )


def _for_opencode(model: Model) -> dict[str, Any]:
    value: dict[str, Any] = {"name": model.name}
    if model.context and model.max_output:
        value["limit"] = {"context": model.context, "output": model.max_output}
    if model.images:
        value["attachment"] = True
        value["modalities"] = {"input": ["text", "image"], "output": ["text"]}
    return value


def aider(target: Target) -> Recipe:
    """aider: uses LiteLLM, where `openai/` means any OpenAI-compatible server."""
    config = (
        f'model: "openai/{target.model}"\n'
        f'weak-model: "openai/{target.fast}"\n'
        f'openai-api-base: "{target.base_url}"\n'
    )
    snippets = [
        key_in_shell(f'export OPENAI_API_KEY="${KEY_VARIABLE}"'),
        Snippet("~/.aider.conf.yml", "yaml", config),
    ]
    facts = {
        f"openai/{model}": {
            "max_tokens": model.max_output,
            "max_input_tokens": model.context,
            "max_output_tokens": model.max_output,
            "litellm_provider": "openai",
            "mode": "chat",
        }
        for model in _models(target)
        if model.context and model.max_output
    }
    if facts:
        snippets.append(Snippet("~/.aider.model.metadata.json", "json", _json(facts)))
    return Recipe(
        snippets=tuple(snippets),
        command=f'aider --no-git --yes-always --message "{PROMPT}"',
    )


def qwen_code(target: Target) -> Recipe:
    """qwen-code: this server as an additional OpenAI-compatible provider."""
    model: dict[str, Any] = {
        "id": target.model.name,
        "name": f"{target.model} by qwen-proxy",
        "baseUrl": target.base_url,
        "envKey": KEY_VARIABLE,
    }
    if target.model.context:
        model["generationConfig"] = {"contextWindowSize": target.model.context}
    text = _json(
        {
            "modelProviders": {"openai": [model]},
            "security": {"auth": {"selectedType": "openai"}},
            "model": {"name": target.model.name},
        }
    )
    return Recipe(
        snippets=(key_in_shell(), Snippet(".qwen/settings.json in your project", "json", text)),
        command=f'qwen -p "{PROMPT}"',
        notes=(
            "~/.qwen/settings.json works, too, except on the server's machine: the server reads "
            "its accounts from that file, and would find itself.",
        ),
    )


def open_webui(target: Target) -> Recipe:
    """Open WebUI: in a container, with the host's network if the server is on its loopback."""
    here = is_loopback(urlsplit(target.origin).hostname or "")
    network = "--network=host -e PORT=3000" if here else "-p 3000:8080"
    lines = [
        f"docker run -d --name open-webui --restart always {network}",
        f'  -e OPENAI_API_BASE_URL="{target.base_url}"',
        f'  -e OPENAI_API_KEY="${KEY_VARIABLE}"',
        "  -e ENABLE_OLLAMA_API=False",
        f"  -e DEFAULT_MODELS={target.model}",
        "  -v open-webui:/app/backend/data",
        "  ghcr.io/open-webui/open-webui:main",
    ]
    return Recipe(
        snippets=(key_in_shell(" \\\n".join(lines)),),
        command="xdg-open http://localhost:3000",
        notes=(
            "The variables have an effect only at the first start with an empty volume. Later: "
            "Admin Panel, Settings, Connections.",
            "It offers every model of GET /v1/models, and does not set limits.",
        ),
    )


def continue_(target: Target) -> Recipe:
    """Continue: in an editor, or as `cn`."""
    lines = [
        "name: qwen-proxy",
        "version: 1.0.0",
        "schema: v1",
        "models:",
        f'  - name: "{target.model}"',
        "    provider: openai",
        f'    model: "{target.model}"',
        f'    apiBase: "{target.base_url}"',
        f'    apiKey: "${{{{ secrets.{KEY_VARIABLE} }}}}"',
        "    roles: [chat, edit, apply]",
        f"    capabilities: [{'tool_use, image_input' if target.model.images else 'tool_use'}]",
    ]
    limits = {"contextLength": target.model.context, "maxTokens": target.model.max_output}
    known = {name: value for name, value in limits.items() if value}
    if known:
        lines.append("    defaultCompletionOptions:")
        lines += [f"      {name}: {value}" for name, value in known.items()]
    return Recipe(
        snippets=(
            key_in_shell(),
            Snippet("~/.continue/config.yaml", "yaml", "\n".join(lines) + "\n"),
        ),
        command=f'cn --config ~/.continue/config.yaml -p "{PROMPT}"',
        notes=(
            "`cn` takes the key from the environment. The editors' extensions take it from "
            f"~/.continue/.env: a line {KEY_VARIABLE}=…",
        ),
    )


def cline(target: Target) -> Recipe:
    """Cline: keeps its settings itself; its command line can set them."""
    auth = (
        f'cline auth --provider openai-compatible --apikey "${KEY_VARIABLE}" \\\n'
        f'  --modelid {target.model} --baseurl "{target.base_url}"'
    )
    limits = {"context window": target.model.context, "max output tokens": target.model.max_output}
    known = ", ".join(f"{name} {value}" for name, value in limits.items() if value)
    return Recipe(
        snippets=(key_in_shell(auth),),
        command=f'cline "{PROMPT}"',
        notes=(
            "In an editor: settings (the gear), API Provider “OpenAI Compatible”, Base URL "
            f"{target.base_url}, your client key, Model ID {target.model}"
            + (f"; under Model Configuration {known}." if known else "."),
        ),
    )


def _models(target: Target) -> tuple[Model, ...]:
    """The one or two models of a recipe."""
    return tuple(dict.fromkeys((target.model, target.fast)))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
