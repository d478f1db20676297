"""Responses in the background: what a request may ask for, and the object before and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.changes import header
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses import mapping

#: Statuses of a response that has not ended.
QUEUED: Final = "queued"
RUNNING: Final = "in_progress"

_SOONEST: Final = "soonest"
#: OpenAI has windows of two and eight hours (openai 3.57); a day is the window of its batches.
#: Seconds.
_WINDOWS: Final[Mapping[str, float]] = {"2h": 7200.0, "8h": 28800.0, "24h": 86400.0}
#: What a request with a window may say of its tier: OpenAI takes no other beside it.
_STANDARD: Final = (None, "auto", "default")

#: What an entry of `x-qwen-proxy-changed` begins with if the call went to Batch Chat.
_BATCH_CHAT: Final = "service_tier:batch-chat"
#: The entry where no account has Batch Chat: the response is made as usual, at the full price.
USUAL: Final = "background_options.completion_window:full-price"


class Background(NamedTuple):
    """How a response is to be made without its client.

    Attributes:
        window_s: seconds in which it has to be done; None leaves it to the server.
    """

    window_s: float | None

    @property
    def half_price(self) -> bool:
        """Whether the client waits longer and pays less."""
        return self.window_s is not None


def asked_for(body: JsonObject) -> Background | None:
    """Read `background` and `background_options`; None for a response that its client waits for.

    Raises:
        BadRequest: with OpenAI's rules: it has to be stored, and a window is for responses in the
            background of the standard tier. Streams are not supported here.
    """
    wanted = validation.flag(body, "background")
    options = validation.mapping(body, "background_options") or {}
    window = validation.text(options, "completion_window", "background_options.") or _SOONEST
    if window != _SOONEST and window not in _WINDOWS:
        raise validation.bad_value(
            "background_options.completion_window", window, (_SOONEST, *_WINDOWS)
        )
    if not wanted:
        if window != _SOONEST:
            raise _wrong("background_options.completion_window", "needs 'background': true")
        return None
    if validation.flag(body, "store") is False:
        raise _wrong(
            "store", "must not be false with 'background': true: who polls would find nothing"
        )
    if validation.flag(body, "stream"):
        raise validation.unsupported(
            "stream",
            "A response in the background cannot be streamed here: poll it with "
            "GET /v1/responses/{id}, or leave out 'background'.",
        )
    if window != _SOONEST and body.get("service_tier") not in _STANDARD:
        raise _wrong("service_tier", "must be left out with a completion window, which chooses it")
    return Background(_WINDOWS.get(window))


def not_here() -> BadRequest:
    """The refusal where a response cannot be made in the background."""
    return validation.unsupported(
        "background", "Only POST /v1/responses makes responses in the background."
    )


def queued(echo: Mapping[str, Any], *, id: str, created: int, model: str) -> dict[str, Any]:
    """The response object before anybody works at it."""
    return mapping.response(mapping.head(id, created), echo, model=model, status=QUEUED)


def failed(response: Mapping[str, Any], error: ApiError) -> dict[str, Any]:
    """The response object after a failure; what there was of an answer is not kept."""
    return {**response, "status": "failed", "error": mapping.error(error)}


def cancelled(response: Mapping[str, Any]) -> dict[str, Any]:
    """The response object after its client cancelled it."""
    return {**response, "status": "cancelled"}


def told(response: Mapping[str, Any], account: str, changed: Sequence[str]) -> dict[str, Any]:
    """The response with what the headers of an answer would tell, since nobody got its headers:
    the tier that it really had, and in `qwen_proxy` the account, and what was changed."""
    tier = "flex" if any(each.startswith(_BATCH_CHAT) for each in changed) else "default"
    return {
        **response,
        "service_tier": tier,
        "qwen_proxy": {"account": account, "changed": header(tuple(changed)) if changed else ""},
    }


def _wrong(param: str, why: str) -> BadRequest:
    return BadRequest(f"'{param}' {why}.", param=param, code="invalid_value")
