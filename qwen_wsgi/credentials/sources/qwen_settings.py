"""Reads endpoints, keys and models from qwen-code's settings. Pure: no file is opened.

The shapes are those of qwen-code 0.24.4's `settings.json`:

    {"modelProviders": {"<provider>": [{"id": str, "name": str, "description": str, "baseUrl": str,
                        "envKey": str, "generationConfig": {"contextWindowSize": int,
                        "modalities": {"image": bool, …}}, "imageOnly": bool, …}]},
     "providerProtocol": {"<provider>": "openai"},
     "env": {"<name>": str},
     "security": {"auth": {"selectedType": str, "apiKey": str, "baseUrl": str}}}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_wsgi.credentials.account import ProviderModel
from qwen_wsgi.credentials.files import jsonc
from qwen_wsgi.credentials.files.watched import FileIdentity, Unusable

#: These names mean something else in this server's environment (OPENAI_API_KEY is a client key),
#: so qwen-code's meaning is looked up in its files only.
FILES_ONLY: Final = frozenset({"OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"})
#: Secrets of this server that no settings file may ever refer to.
NEVER: Final = frozenset(
    {"QWEN_PROXY_API_KEYS", "QWEN_PROXY_ADMIN_KEYS", "QWEN_PROXY_STATE_KEY", "QWEN_CLI_AUTH"}
)

#: How the names of keys end.
KEY_ENDING: Final = "_API_KEY"

#: qwen-code's names of protocols. We speak the first.
PROTOCOLS: Final = (
    "openai",
    "openai-responses",
    "anthropic",
    "gemini",
    "vertex-ai",
    "qwen-oauth",
)

_PLACEHOLDER: Final = re.compile(r"\$(?:(\w+)|\{([^}]+)\})", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
#: Flags of an entry for models that do not chat.
_NOT_CHAT: Final = ("imageOnly", "voiceOnly", "realtimeOnly")


@dataclass(frozen=True)
class Value:
    """A string and where it was found, in words."""

    text: str = field(repr=False)
    place: str


@dataclass(frozen=True)
class Layer:
    """One settings file: the path for messages, and its content."""

    place: str
    content: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Entry:
    """One model of `modelProviders`; its key is not resolved yet."""

    base_url: str | None
    env_key: str | None
    model: ProviderModel


@dataclass(frozen=True)
class QwenSettings:
    """All layers merged, `$VAR` expanded. Contains secrets: never show it."""

    entries: tuple[Entry, ...] = ()
    entries_place: str = ""
    env: Mapping[str, Value] = field(default_factory=dict, repr=False)
    selected_type: str = ""
    auth_key: Value | None = field(default=None, repr=False)
    auth_base_url: str = ""
    model_name: str = ""
    problems: tuple[str, ...] = ()


class Variables:
    """Looks names up as qwen-code does: process environment, then its `.env` files.

    An empty value counts as unset.
    """

    def __init__(
        self, environ: Mapping[str, str], dotenvs: tuple[tuple[str, Mapping[str, str]], ...]
    ) -> None:
        """
        Args:
            dotenvs: `(path for messages, content)`, most important first.
        """
        self._environ = environ
        self._dotenvs = dotenvs

    def find(self, name: str) -> Value | None:
        """Look a name up in the environment and the `.env` files; None when unset."""
        if name in NEVER:
            return None
        if name not in FILES_ONLY and (text := self._environ.get(name, "").strip()):
            return Value(text, "the environment")
        for place, content in self._dotenvs:
            if text := content.get(name, "").strip():
                return Value(text, place)
        return None

    def api_keys(self) -> Iterator[tuple[str, Value]]:
        """The API keys in the `.env` files: their names, and their values with the place."""
        for place, content in self._dotenvs:
            for name, value in content.items():
                if name.endswith(KEY_ENDING) and name not in NEVER and value.strip():
                    yield name, Value(value.strip(), place)

    def expand(self, value: Any) -> Any:
        """Replace `$NAME` and `${NAME}` in all strings of a JSON value; unset ones stay."""
        if isinstance(value, str):
            return _PLACEHOLDER.sub(self._replacement, value)
        if isinstance(value, list):
            return [self.expand(each) for each in value]
        if isinstance(value, dict):
            return {key: self.expand(each) for key, each in value.items()}
        return value

    def _replacement(self, match: re.Match[str]) -> str:
        found = self.find(match[1] or match[2])
        return match[0] if found is None else found.text


def parse(content: bytes, _identity: FileIdentity) -> Mapping[str, Any]:
    """Read one settings file.

    Raises:
        Unusable: it is not a JSON object.
    """
    remedy = "Correct it; comments are allowed, commas before a closing bracket are not."
    try:
        value = jsonc.loads(content.decode("utf-8-sig"), comments=True)
    except UnicodeDecodeError:
        raise Unusable("is not UTF-8 text", remedy=remedy) from None
    except ValueError as error:
        raise Unusable(f"is not JSON ({error})", remedy=remedy) from None
    if not isinstance(value, dict):
        raise Unusable("is not a JSON object", remedy="Its content must be { … }.")
    return value


def unresolved(text: str) -> str | None:
    """The variable's name in a value that is only a placeholder; None for other values."""
    match = _PLACEHOLDER.fullmatch(text.strip())
    return (match[1] or match[2]) if match else None


def is_variable_name(text: str) -> bool:
    """Whether it is a variable's name and may be shown: some people paste the key there."""
    return bool(_NAME.fullmatch(text)) and (len(text) <= 24 or "_" in text)


def merge(layers: tuple[Layer, ...], variables: Variables) -> QwenSettings:
    """Merge settings files as qwen-code does.

    `modelProviders` and `providerProtocol` replace those of lower layers as a whole, `env` merges
    by name, everything else by key.

    Args:
        layers: lowest first: system defaults, user, system.
    """
    providers: Any = {}
    protocols: Any = {}
    auth: dict[str, Value] = {}
    env: dict[str, Value] = {}
    place = model_name = ""
    for layer in layers:
        content = layer.content
        if "modelProviders" in content:
            providers, place = variables.expand(content["modelProviders"]), layer.place
        protocols = variables.expand(content.get("providerProtocol", protocols))
        env.update(_texts(variables.expand(content.get("env")), f"the env of {layer.place}"))
        security = variables.expand(content.get("security"))
        auth.update(_texts(_member(security, "auth"), layer.place))
        model_name = _text(_member(content.get("model"), "name")) or model_name
    entries, problems = _entries(providers, protocols if isinstance(protocols, dict) else {}, place)
    return QwenSettings(
        entries=entries,
        entries_place=place,
        env=env,
        selected_type=auth["selectedType"].text if "selectedType" in auth else "",
        auth_key=auth.get("apiKey"),
        auth_base_url=auth["baseUrl"].text if "baseUrl" in auth else "",
        model_name=model_name,
        problems=tuple(problems),
    )


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _texts(value: Any, place: str) -> Iterator[tuple[str, Value]]:
    """The non-empty strings of an object."""
    if isinstance(value, dict):
        for name, each in value.items():
            if text := _text(each):
                yield name, Value(text, place)


def _entries(
    providers: Any, protocols: Mapping[str, Any], place: str
) -> tuple[tuple[Entry, ...], list[str]]:
    """The models that speak OpenAI's chat protocol, and why others are left out.

    Identity is id and base URL over all providers; the first one wins.
    """
    if not isinstance(providers, dict):
        return (), [f"{place}: modelProviders is not an object and is ignored."]
    entries: dict[tuple[str, str | None], Entry] = {}
    problems: list[str] = []
    for provider, value in providers.items():
        where = f"{place}: modelProviders.{provider}"
        # {"protocol", "models"}: the form of a withdrawn version (5) of the settings.
        models = value.get("models", []) if isinstance(value, dict) else value
        protocol = protocols.get(provider, _member(value, "protocol") or provider)
        if problem := _left_out(protocol, models):
            problems.append(f"{where} {problem}")
            continue
        if protocol != "openai":
            continue
        for number, raw in enumerate(models):
            entry = _entry(raw)
            if entry is None:
                problems.append(f"{where}[{number}] has no id and is skipped.")
            elif entries.setdefault((entry.model.id, entry.base_url), entry) is not entry:
                problems.append(
                    f"{where}[{number}] lists {entry.model.id} with the same baseUrl again and is "
                    "skipped, as qwen-code does."
                )
    return tuple(entries.values()), problems


def _left_out(protocol: Any, models: Any) -> str:
    """Why a provider cannot be used, as the end of a sentence; empty when it can be."""
    if not isinstance(models, list):
        return "is not a list of models and is skipped."
    if protocol not in PROTOCOLS:
        return (
            "is skipped: its protocol is unknown. Name it in providerProtocol, e.g. "
            '"openai" for an OpenAI-compatible server.'
        )
    if protocol != "openai" and models:
        return f"is skipped: it speaks {protocol}, and this server speaks openai upstream."
    return ""


def _entry(raw: Any) -> Entry | None:
    model_id = _text(_member(raw, "id"))
    if not model_id:
        return None
    config = raw.get("generationConfig")
    context = _member(config, "contextWindowSize")
    usable = isinstance(context, int | float) and not isinstance(context, bool)
    return Entry(
        base_url=_text(raw.get("baseUrl")) or None,
        env_key=_text(raw.get("envKey")) or None,
        model=ProviderModel(
            id=model_id,
            name=_text(raw.get("name")) or None,
            description=_text(raw.get("description")) or None,
            context_length=int(context) if usable and 1 <= context < 2**53 else None,
            modalities=_modalities(_member(config, "modalities")),
            chat=not any(raw.get(flag) is True for flag in _NOT_CHAT),
            wire_api=_text(raw.get("wireApi")) or "chat-completions",
        ),
    )


def _modalities(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, dict):
        return None
    return tuple(sorted(name for name, on in value.items() if on is True))
