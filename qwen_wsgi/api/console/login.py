"""`/console/login-to-qwen`: a login that is confirmed on another device, such as a phone."""

from __future__ import annotations

import logging

from flask import Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.console import page
from qwen_wsgi.console import login_words, qr
from qwen_wsgi.credentials.phone_login import PhoneLogin
from qwen_wsgi.errors import ApiError, BadRequest, SettingsError

log = logging.getLogger(__name__)

blueprint = page.blueprint("login")

_PATH = "/console/login-to-qwen"


@blueprint.get(_PATH)
def shown() -> Response:
    """The page: how the latest login stands, and a form for another one."""
    progress, now = _login().seen(), lifecycle.live().services.clock.now()
    return page.render(
        "login_to_qwen",
        title="Log in to Qwen",
        notice=login_words.NOTICE,
        progress=progress,
        words=None if progress is None else login_words.words_of(progress.state),
        left="" if progress is None else login_words.time_left(progress.expires_at, now),
        code=qr.svg_of(progress.url) if progress is not None and progress.url else "",
    )


@blueprint.get(f"{_PATH}/state")
def state() -> Response:
    """What the script asks each second: `{"state", "left", "note"}`."""
    progress, now = _login().seen(), lifecycle.live().services.clock.now()
    if progress is None:
        return http.json_value({"state": "", "left": "", "note": ""})
    left = login_words.time_left(progress.expires_at, now) if progress.url else ""
    return http.json_value({"state": progress.state, "left": left, "note": progress.note})


@blueprint.post(f"{_PATH}/start")
def start() -> Response:
    """Begin a login, in the place of one that runs."""
    name = page.form().get("account", "").strip()
    try:
        _login().start(name or None)
    except SettingsError as error:
        raise BadRequest(f"The login cannot begin: {error}.") from None
    except OSError as error:
        raise _not_written(error) from None
    log.info("console: %s begins a login at Qwen", page.signed_in().session.person.client)
    return page.redirect(_PATH)


@blueprint.post(f"{_PATH}/stop")
def stop() -> Response:
    """End the login that runs."""
    try:
        _login().stop()
    except OSError as error:
        raise _not_written(error) from None
    return page.redirect(_PATH)


def _login() -> PhoneLogin:
    login = lifecycle.live().services.phone_login
    if login is None:
        raise ApiError("This server has no state directory, so nobody can log in here.", status=503)
    return login


def _not_written(error: OSError) -> ApiError:
    return ApiError(
        f"The server cannot write its state directory: {error.strerror or error}. Nothing was "
        "changed. `qwen-proxy doctor` says more.",
        status=503,
    )
