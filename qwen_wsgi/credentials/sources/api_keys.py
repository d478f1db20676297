"""Resolves the keys and base URLs of qwen-code's settings.

A key is sent only to the address that it was configured with. qwen-code itself goes further: it
replaces a missing key by `OPENAI_API_KEY` and `security.auth.apiKey`, whatever the address.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from qwen_wsgi import net
from qwen_wsgi.credentials.account import ProviderModel
from qwen_wsgi.credentials.credential import StaticKey, usable_secret
from qwen_wsgi.credentials.sources import providers, qwen_settings
from qwen_wsgi.credentials.sources.qwen_settings import QwenSettings, Value, Variables

#: Where qwen-code sends an entry that names no base URL.
DEFAULT_ENTRY_BASE_URL: Final = "https://api.openai.com/v1"
#: Where qwen-code sends `security.auth.apiKey` when no base URL is given.
DEFAULT_AUTH_BASE_URL: Final = providers.PROVIDERS[0].base_urls[0]


class Pair(NamedTuple):
    """A key with its base URL, configured outside `modelProviders`."""

    base_url: str
    key: Value
    models: tuple[ProviderModel, ...]


def usable_key(secret: str, base_url: str, name: str, remedy: str) -> StaticKey:
    """Make a credential of a key; one without a key, but with a reason, when it cannot be sent."""
    if usable_secret(secret):
        return StaticKey(secret, base_url)
    fault = f"{name} has white space or other characters that no HTTP header can carry"
    return StaticKey(None, base_url, fault, remedy)


class Keys:
    """Resolves the keys of one version of the settings."""

    def __init__(self, qwen: QwenSettings, variables: Variables, shown_home: str) -> None:
        """
        Args:
            shown_home: qwen-code's directory, for remedies.
        """
        self._qwen = qwen
        self._variables = variables
        self._files = f"{shown_home}/.env or the env section of {shown_home}/settings.json"

    def base_url_for_all(self) -> str:
        """Where entries without a base URL go."""
        found = self._find("OPENAI_BASE_URL")
        if found is not None:
            return found.text
        return self._qwen.auth_base_url or DEFAULT_ENTRY_BASE_URL

    def of_entry(self, base_url: str, env_key: str | None) -> tuple[StaticKey, str]:
        """The key of a `modelProviders` entry, and where it was found, in words."""
        if env_key is None:
            return self._without_env_key(base_url)
        if not qwen_settings.is_variable_name(env_key):
            fault = "envKey is not the name of a variable (not shown: it may be the key itself)"
            remedy = f"Put a name into envKey and the key, under that name, into {self._files}."
            return StaticKey(None, base_url, fault, remedy), "envKey not shown"
        found = self._find(env_key)
        if found is None:
            return self._unset(env_key, base_url), f"envKey {env_key}, not set"
        return self.usable(base_url, found), f"envKey {env_key} from {found.place}"

    def pairs(self) -> Iterator[Pair]:
        """Keys outside `modelProviders`.

        `OPENAI_API_KEY` with `OPENAI_BASE_URL` in qwen-code's files, then `security.auth`.
        """
        key, base_url = self._find("OPENAI_API_KEY"), self._find("OPENAI_BASE_URL")
        if key is not None and base_url is not None:
            model = self._find("OPENAI_MODEL")
            where = Value(key.text, f"{key.place} (OPENAI_API_KEY)")
            yield Pair(base_url.text, where, _models(model.text if model else ""))
        qwen = self._qwen
        if qwen.auth_key is not None and qwen.selected_type in ("", "openai"):
            where = Value(qwen.auth_key.text, f"{qwen.auth_key.place} (security.auth.apiKey)")
            listed = any(entry.model.id == qwen.model_name for entry in qwen.entries)
            models = _models("" if listed else qwen.model_name)
            yield Pair(qwen.auth_base_url or DEFAULT_AUTH_BASE_URL, where, models)

    def usable(self, base_url: str, found: Value) -> StaticKey:
        """Make a credential of a key, or of the reason why it cannot be used."""
        name = qwen_settings.unresolved(found.text)
        if name is not None:
            return self._unset(name, base_url)
        remedy = f"Correct the key in {found.place}."
        return usable_key(found.text, base_url, "the API key", remedy)

    def _find(self, name: str) -> Value | None:
        """Search the environment, the `.env` files, then the `env` of the settings."""
        found = self._variables.find(name)
        if found is None and name not in qwen_settings.NEVER:
            found = self._qwen.env.get(name)
        return found

    def _without_env_key(self, base_url: str) -> tuple[StaticKey, str]:
        """Use the general key, as qwen-code does, but only for the general base URL."""
        for found, meant_for in (
            (self._find("OPENAI_API_KEY"), self.base_url_for_all()),
            (self._qwen.auth_key, self._qwen.auth_base_url or DEFAULT_AUTH_BASE_URL),
        ):
            if found is not None and _same_place(base_url, meant_for):
                return self.usable(base_url, found), f"no envKey, key from {found.place}"
        if net.is_local(base_url):
            return StaticKey("", base_url), "no envKey"
        remedy = f"Add envKey to its entries, and the key under that name to {self._files}."
        return StaticKey(None, base_url, "no API key is named for it", remedy), "no envKey"

    def _unset(self, name: str, base_url: str) -> StaticKey:
        shown = name if qwen_settings.is_variable_name(name) else "that its settings name"
        if name in qwen_settings.FILES_ONLY:
            remedy = f"Put it into {self._files}: in the server's environment it is a client key."
        else:
            remedy = f"Set it in the server's environment, in {self._files}."
        return StaticKey(None, base_url, f"the API key {shown} is not set", remedy)


def _models(name: str) -> tuple[ProviderModel, ...]:
    return (ProviderModel(name),) if name else ()


def _same_place(base_url: str, raw: str) -> bool:
    try:
        return base_url == net.base_url(raw)
    except ValueError:
        return False
