"""POST /v1/validate and POST /v1/refresh: whose a web token is, and a fresh one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from flask import Blueprint, Response

from qwen_wsgi.api import body, http, lifecycle
from qwen_wsgi.api.dialects.generation import forwarded_headers
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import BadRequest, Forbidden, UpstreamError
from qwen_wsgi.protocol.json_access import text
from qwen_wsgi.protocol.web import token as web_token
from qwen_wsgi.protocol.web.token import MOST_PACKED, BadWebToken, WebToken

blueprint = Blueprint("web_tokens", __name__)
blueprint.before_request(lifecycle.check_caller)

#: Of a body: a token, and its JSON.
_LARGEST: Final = MOST_PACKED + 64 * 1024


@blueprint.post("/v1/validate")
def validate() -> Response:
    """Say whether a web token is well-formed and live, whose it is, and until when it is valid; for
    an admin without one, the same of a login of this server."""
    call = lifecycle.live()
    members = _members(call)
    token = _token(call, members)
    if token is None:
        return _login_status(call, members)
    answer: dict[str, Any] = {"object": "web_token.validation", "well_formed": True}
    if _has_expired(call, token):
        return http.json_value(_dead(answer, token, "expired"))
    try:
        user = _ask(call, token)
    except UpstreamError as error:
        if error.code != "web_token_rejected":
            raise
        return http.json_value(_dead(answer, token, "rejected"))
    if not text(user.get("id")):
        return http.json_value(_dead(answer, token, "no_user"))
    shown = {"id": _masked(text(user.get("id"))), "name": _masked(text(user.get("name")))}
    shown["email"] = _masked_email(text(user.get("email")))
    return http.json_value(
        {**answer, "valid": True, "live": True, "user": shown, "expires_at": token.expires_at}
    )


@blueprint.post("/v1/refresh")
def refresh() -> Response:
    """A compressed token with a fresh session token in it; the old one goes on being valid for as
    long as its host says. For an admin without one, refresh a login of this server."""
    call = lifecycle.live()
    members = _members(call)
    token = _token(call, members)
    if token is None:
        return _login_refreshed(call, members)
    user = _ask(call, token)
    try:
        renewed = token.renewed(text(user.get("token")))
    except BadWebToken:
        raise UpstreamError(
            "chat.qwen.ai gave no new token. Log in there with a browser again, and make a new "
            "compressed token.",
            code="web_token_not_refreshed",
            should_retry=False,
        ) from None
    return http.json_value(
        {
            "object": "web_token",
            "token": web_token.packed(renewed),
            "expires_at": renewed.expires_at or user.get("expires_at"),
            "renewed": renewed.value != token.value,
        }
    )


# --- logins of this server -----------------------------------------------------------------------


def _login_status(call: LiveCall, members: Mapping[str, Any]) -> Response:
    name = _login_name(call, members)
    status = call.services.logins[name].status()
    ends_ms = status.expires_at_ms
    return http.json_value(
        {
            "object": "login.validation",
            "account": name,
            "valid": status.state.is_usable,
            "state": status.state.value,
            "detail": status.detail,
            "remedy": status.remedy,
            "expires_at": None if ends_ms is None else ends_ms / 1000,
        }
    )


def _login_refreshed(call: LiveCall, members: Mapping[str, Any]) -> Response:
    name = _login_name(call, members)
    call.admit()
    login = call.services.logins[name]
    attempt = login.renew()
    status = login.status()
    if attempt.outcome.value not in ("ok", "adopted"):
        raise UpstreamError(
            f"The login of the account '{name}' was not refreshed: {attempt.detail}. "
            f"{status.remedy}".strip(),
            code="login_not_refreshed",
            should_retry=False,
        )
    ends_ms = status.expires_at_ms
    return http.json_value(
        {
            "object": "login",
            "account": name,
            "refresh": attempt.outcome.value,
            "expires_at": None if ends_ms is None else ends_ms / 1000,
        }
    )


def _login_name(call: LiveCall, members: Mapping[str, Any]) -> str:
    """The account whose login an admin means: the one that is named, else the only one.

    Raises:
        BadRequest: there is no token, and the caller is no admin; or it is not clear which login.
    """
    try:
        call.services.guard.require_admin(call.environ)
    except Forbidden:
        raise BadRequest(
            "Send a compressed token: `token` in the body, or in a header (docs/web-account.md). "
            "For a login of this server a key of an admin is needed.",
            param="token",
            code="missing_required_parameter",
        ) from None
    names = sorted(call.services.logins)
    named = members.get("account")
    if named is None and len(names) == 1:
        return names[0]
    if not isinstance(named, str) or named not in names:
        known = ", ".join(names) or "none"
        raise BadRequest(
            f"Name the account of the login as `account`; this server has: {known}.",
            param="account",
            code="account_not_found",
        )
    return named


# --- web tokens ----------------------------------------------------------------------------------


def _token(call: LiveCall, members: Mapping[str, Any]) -> WebToken | None:
    """The web token of the request: of its body, else of its headers; None if it has none.

    Raises:
        ApiError: 403: web tokens are off; 400: it cannot be used.
    """
    offered = members.get("token")
    if offered is None:
        return None if call.client is None else call.client.web
    if not call.services.settings.web:
        raise Forbidden(
            "This server takes no web tokens: its operator has to set QWEN_PROXY_WEB=1.",
            code="web_account_off",
        )
    if not isinstance(offered, str):
        raise BadRequest("`token` must be a text.", param="token", code="invalid_type")
    try:
        return web_token.parse(offered.strip())
    except BadWebToken as error:
        raise BadRequest(
            f"The web token cannot be used: {error}.", param="token", code="invalid_web_token"
        ) from None


def _members(call: LiveCall) -> dict[str, Any]:
    """The members of the body. It is not recorded, whatever is: it holds a token.

    Raises:
        ApiError: 400 or 413.
    """
    if not lifecycle.has_body(call.environ):
        return {}
    call.admit()
    bounded = replace(call.services.settings, max_body_bytes=_LARGEST)
    read = body.read_json(call.environ, bounded, take=lambda count: None)
    return {name: read[name] for name in read.names()}


def _ask(call: LiveCall, token: WebToken) -> dict[str, Any]:
    """What the host says of a token's user."""
    account = call.services.pool.of_token(token)
    return call.services.web_site.user_of(account, headers=forwarded_headers(call.environ))


def _has_expired(call: LiveCall, token: WebToken) -> bool:
    return token.expires_at is not None and token.expires_at <= call.services.clock.now()


def _dead(answer: dict[str, Any], token: WebToken, reason: str) -> dict[str, Any]:
    return {
        **answer,
        "valid": False,
        "live": False,
        "reason": reason,
        "expires_at": token.expires_at,
    }


def _masked(word: str) -> str:
    """A name by its first two characters: enough for its owner."""
    return f"{word[:2]}…" if len(word) > 3 else "…" if word else ""


def _masked_email(address: str) -> str:
    name, at, host = address.partition("@")
    return f"{name[:2]}…@{host[:100]}" if at and len(name) > 2 else _masked(address)
