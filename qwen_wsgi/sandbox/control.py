"""Applies control calls: behaviours per route, rules for the next requests, keys and models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from qwen_wsgi.sandbox import errors
from qwen_wsgi.sandbox.faults import BadSpec, Spec, parse_spec
from qwen_wsgi.sandbox.models import DEFAULT_MODELS
from qwen_wsgi.sandbox.oauth import OAuth

Json = dict[str, Any]

ROUTES: Final = (
    *("chat", "completions", "embeddings", "models", "device", "token", "tokenizer"),
    *("generation", "synthesizer", "image-task", "video-task", "file-task", "tasks", "results"),
    *("uploads", "storage"),
    *("multimodal-embeddings", "reranks", "native-rerank"),
    *("files", "batches", "batch-chat"),
    *("web-auth", "web-models", "web-chats", "web-chat", "web-tasks", "web-upload", "web-object"),
)


class BadControl(ValueError):
    """A control call has an unknown key or a value of the wrong kind; nothing was changed."""


@dataclass(slots=True)
class Rule:
    """A spec for the next `count` requests that match; None means any, or unlimited."""

    spec: Spec
    count: int | None = 1
    route: str | None = "chat"
    model: str | None = None
    key_ends: str | None = None

    def matches(self, route: str, model: str, key: str) -> bool:
        return (
            self.count != 0
            and self.route in (None, route)
            and self.model in (None, model)
            and (self.key_ends is None or key.endswith(self.key_ends))
        )


@dataclass(slots=True)
class Knobs:
    """Settings except those of the login. Keys are only compared, never shown."""

    models: tuple[str, ...] = DEFAULT_MODELS
    strict_models: bool = False
    valid_keys: frozenset[str] | None = None
    invalid_keys: frozenset[str] = frozenset()
    max_concurrent: int | None = None
    interval_s: float = 0.0
    faults: dict[str, Spec] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)


Change = Callable[[], object]


class Control:
    """Applies control calls. Thread-safe."""

    def __init__(self, oauth: OAuth, knobs: Callable[[], Knobs]) -> None:
        """Args: knobs: returns the knobs after a reset."""
        self._oauth = oauth
        self._fresh = knobs
        self._lock = threading.Lock()
        self.knobs = knobs()

    def reset(self) -> None:
        with self._lock:
            self.knobs = self._fresh()
        self._oauth.reset()

    def spec_for(self, route: str, model: str, key: str) -> Spec:
        """Return the permanent spec of a route, merged with that of the first matching rule."""
        with self._lock:
            spec = self.knobs.faults.get(route, Spec())
            for rule in self.knobs.rules:
                if rule.matches(route, model, key):
                    if rule.count is not None:
                        rule.count -= 1
                    spec = spec.merged(rule.spec)
                    break
            self.knobs.rules = [rule for rule in self.knobs.rules if rule.count != 0]
            return spec

    def refuses_key(self, key: str) -> bool:
        knobs = self.knobs
        unknown = knobs.valid_keys is not None and key not in knobs.valid_keys
        return unknown or key in knobs.invalid_keys

    def apply(self, payload: object) -> Json:
        """Apply a control call completely, or not at all; return the results of its actions.

        Raises:
            BadControl: a key or a value is invalid.
        """
        if not isinstance(payload, Mapping):
            raise BadControl("a control call must be a JSON object")
        changes: list[tuple[str, Change]] = []
        for key, value in payload.items():
            changes.append((key, self._change(key, value)))
        results: Json = {}
        with self._lock:
            for key, change in changes:
                result = change()
                if result is not None:
                    results[key] = result
        return results

    def describe(self) -> Json:
        """Return the settings as a JSON object, with only the number of keys."""
        with self._lock:
            knobs = self.knobs
            described: Json = {
                "models": list(knobs.models),
                "strict_models": knobs.strict_models,
                "valid_keys": None if knobs.valid_keys is None else len(knobs.valid_keys),
                "invalid_keys": len(knobs.invalid_keys),
                "max_concurrent": knobs.max_concurrent,
                "interval_s": knobs.interval_s,
                "faults": {route: str(spec) for route, spec in knobs.faults.items()},
                "rules": [{**_plain(rule), "spec": str(rule.spec)} for rule in knobs.rules],
            }
        described.update(_plain(self._oauth.knobs))
        return described

    def _change(self, key: str, value: Any) -> Change:
        """Check one item of a control call and return the function that applies it."""
        if key in _KNOB_READERS:
            ready = _KNOB_READERS[key](key, value)
            return lambda: setattr(self.knobs, key, ready)
        if key in _OAUTH_READERS:
            ready = _OAUTH_READERS[key](key, value)
            return lambda: setattr(self._oauth.knobs, key, ready)
        if key == "faults":
            specs = _faults(value)
            return lambda: self.knobs.faults.update(specs)
        if key == "next":
            rules = _rules(value)
            return lambda: self.knobs.rules.extend(rules)
        return self._action(key, value)

    def _action(self, key: str, value: Any) -> Change:
        oauth = self._oauth
        if key in _VERDICTS:
            code = _text(key, value)
            return lambda: oauth.decide(code, _VERDICTS[key])
        if key == "issue":
            client_id = _text(key, value)
            return lambda: oauth.issue(client_id)
        simple: dict[str, Callable[[], None]] = {
            "revoke_access_tokens": oauth.revoke_access_tokens,
            "revoke_all": oauth.revoke_all,
            "clear_rules": lambda: self.knobs.rules.clear(),
            "clear_faults": lambda: self.knobs.faults.clear(),
        }
        if key not in simple:
            known = sorted(
                {*_KNOB_READERS, *_OAUTH_READERS, *_VERDICTS, *simple, "faults", "next", "issue"}
            )
            raise BadControl(f"unknown key {key!r}; known: {', '.join(known)}")
        return simple[key] if _flag(key, value) else lambda: None


_VERDICTS: Final = {"approve": "approved", "deny": "denied", "expire": "expired"}


def _plain(value: Any) -> Json:
    return {entry.name: getattr(value, entry.name) for entry in fields(value)}


def _faults(value: Any) -> dict[str, Spec]:
    if isinstance(value, str):
        value = {"chat": value}
    if not isinstance(value, Mapping):
        raise BadControl("faults must be a spec, or an object of route and spec")
    for route in value:
        if route not in ROUTES:
            raise BadControl(f"unknown route {route!r}; known: {', '.join(ROUTES)}")
    return {route: _spec(spec) for route, spec in value.items()}


def _rules(value: Any) -> list[Rule]:
    entries = value if isinstance(value, list) else [value]
    return [_rule(entry) for entry in entries]


def _rule(entry: Any) -> Rule:
    if isinstance(entry, str):
        return Rule(_spec(entry))
    if not isinstance(entry, Mapping) or "spec" not in entry:
        raise BadControl(
            "a rule must be a spec, or an object with spec, count, route, model, key_ends"
        )
    unknown = set(entry) - {"spec", "count", "route", "model", "key_ends"}
    if unknown:
        raise BadControl(f"unknown key in a rule: {', '.join(sorted(unknown))}")
    route = _optional_text("route", entry.get("route", "chat"))
    if route is not None and route not in ROUTES:
        raise BadControl(f"unknown route {route!r}; known: {', '.join(ROUTES)}")
    return Rule(
        _spec(entry["spec"]),
        _optional_count("count", entry.get("count", 1)),
        route,
        _optional_text("model", entry.get("model")),
        _optional_text("key_ends", entry.get("key_ends")),
    )


def _spec(value: Any) -> Spec:
    try:
        spec = parse_spec(_text("spec", value))
        # Refuse an unknown error code here, not at the next request.
        errors.chosen(spec)
        errors.in_stream(spec)
        return spec
    except BadSpec as error:
        raise BadControl(str(error)) from None


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadControl(f"{key} must be a text")
    return value


def _optional_text(key: str, value: Any) -> str | None:
    return None if value is None else _text(key, value)


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadControl(f"{key} must be true or false")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadControl(f"{key} must be a number")
    return float(value)


def _optional_count(key: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadControl(f"{key} must be a count or null")
    return value


def _count(key: str, value: Any) -> int:
    count = _optional_count(key, value)
    if count is None:
        raise BadControl(f"{key} must be a count")
    return count


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise BadControl(f"{key} must be a list of texts")
    return tuple(_text(key, one) for one in value)


def _optional_keys(key: str, value: Any) -> frozenset[str] | None:
    return None if value is None else frozenset(_names(key, value))


Reader = Callable[[str, Any], Any]
_KNOB_READERS: Final[dict[str, Reader]] = {
    "models": _names,
    "strict_models": _flag,
    "valid_keys": _optional_keys,
    "invalid_keys": lambda key, value: frozenset(_names(key, value)),
    "max_concurrent": _optional_count,
    "interval_s": _number,
}
_OAUTH_READERS: Final[dict[str, Reader]] = {
    "access_ttl_s": _number,
    "device_ttl_s": _number,
    "resource_url": lambda key, value: _optional_text(key, value) or "",
    "approve_after_polls": _optional_count,
    "slow_down_polls": _count,
    "pending_as_200": _flag,
    "rotate": _flag,
    "reuse_revokes_family": _flag,
    "closed_tier": _flag,
}
