"""Login on another device (RFC 8628 with PKCE, RFC 7636), and the file that it leaves.

No terminal and no clock of its own: `DeviceLogin` tells what happens through a callback.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files import durable, jsonc
from qwen_wsgi.credentials.oauth.errors import (
    Ambiguous,
    Denied,
    Expired,
    NotSent,
    OAuthFailure,
    Throttled,
)
from qwen_wsgi.credentials.oauth.token_endpoint import (
    DeviceCode,
    Pending,
    SlowDown,
    TokenAnswer,
    TokenEndpoint,
)
from qwen_wsgi.errors import QwenProxyError

#: Between two polls; the service names no interval, and its own client takes this one. Seconds.
INTERVAL_S: Final = 2.0
#: What `slow_down` does to the interval, and how far.
SLOWER: Final = 1.5
SLOWEST_S: Final = 10.0
#: So many failures of the service in a row are no hiccup of a gateway any more.
MOST_FAILURES: Final = 5

_ACCOUNT: Final = re.compile(r"[a-z0-9-]{1,32}")
#: In the order in which qwen-code's own login writes them.
_KEYS: Final = ("access_token", "refresh_token", "token_type", "resource_url", "expiry_date")
#: RFC 7636 §4.1 recommends as much. Bytes.
_VERIFIER_BYTES: Final = 32


class LoginFailed(QwenProxyError):
    """The end of a login without a token. `str()` says what happened, as a sentence.

    Attributes:
        event: a stable word for programs.
        remedy: what to do, as a sentence.
    """

    event = "server_error"
    remedy = "Try again later."


class LoginDenied(LoginFailed):
    event = "denied"
    remedy = "Run the command again if that was a mistake."


class LoginExpired(LoginFailed):
    event = "expired"
    remedy = "Run the command again and confirm within the time that it shows."


class LoginOffline(LoginFailed):
    event = "offline"
    remedy = "Check the network, and HTTPS_PROXY if this machine needs one."


class LoginBlocked(LoginFailed):
    """A firewall's page came in place of an answer."""

    event = "blocked"
    remedy = (
        "Its firewall takes this machine for a robot, or a portal wants to be seen first: open the "
        "address in a browser on this network, or try from another network."
    )


class LoginNotSaved(LoginFailed):
    event = "not_saved"
    remedy = "Make the directory and the file writable for this user, or run it as their owner."


@dataclass(frozen=True)
class CodeShown:
    """The person's turn. `left_s` counts from now."""

    code: DeviceCode
    left_s: float


@dataclass(frozen=True)
class Waiting:
    """A poll found nothing yet; the next one comes after `interval_s`.

    Attributes:
        why: `offline` and `server_error` are tried again until the code expires or the failures
            are too many.
        detail: a clause about what went wrong, or empty.
    """

    why: Literal["pending", "slow_down", "offline", "server_error"]
    interval_s: float
    left_s: float
    detail: str = ""


Event = CodeShown | Waiting


class DeviceLogin:
    """One login, run once by one thread.

    The interval never shrinks again after a `slow_down` (RFC 8628 §3.5). Nothing polls after the
    code expired, by our clock or by the service's word.
    """

    def __init__(
        self,
        endpoint: TokenEndpoint,
        *,
        clock: Clock,
        sleep: Callable[[float], None],
        tell: Callable[[Event], None],
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._sleep = sleep
        self._tell = tell
        self._verifier = _base64url(secrets.token_bytes(_VERIFIER_BYTES))
        self._interval_s = INTERVAL_S
        self._deadline_s = 0.0
        self._failures = 0
        #: Why the service could not be reached the last time; empty when it could.
        self._offline = ""
        #: An answer was lost on the way; it may have been the one with the tokens.
        self._lost = False

    def run(self) -> TokenAnswer:
        """Log in.

        Raises:
            LoginFailed: one of its kinds.
        """
        code = self._begin()
        self._deadline_s = self._clock.monotonic() + code.expires_in_s
        self._interval_s = max(INTERVAL_S, code.interval_s or 0)
        self._tell(CodeShown(code, code.expires_in_s))
        while True:
            self._sleep(max(0.0, min(self._interval_s, self._left_s())))
            if self._left_s() <= 0:
                if self._offline:
                    raise LoginOffline(f"The code expired while offline: {self._offline}.")
                raise LoginExpired(f"Nobody confirmed the login in time{self._lost_hint()}.")
            answer = self._poll(code)
            if answer is not None:
                if answer.refresh_token is None:
                    raise LoginFailed(
                        f"{self._endpoint.host} gave no refresh token, so the login would end with "
                        "its first access token."
                    )
                return answer

    def _left_s(self) -> float:
        return self._deadline_s - self._clock.monotonic()

    def _begin(self) -> DeviceCode:
        digest = hashlib.sha256(self._verifier.encode()).digest()
        try:
            return self._endpoint.device_code(_base64url(digest))
        except NotSent as failure:
            raise LoginOffline(f"No login was begun: {failure}.") from None
        except OAuthFailure as failure:
            raise self._ended(failure) from None

    def _poll(self, code: DeviceCode) -> TokenAnswer | None:
        self._offline = ""
        try:
            answer = self._endpoint.poll(code.device_code, self._verifier)
        except NotSent as failure:
            self._offline = str(failure)
            self._wait("offline", self._offline)
        except Throttled as failure:
            self._slow_down(failure.retry_after_s or 0)
        except Ambiguous as failure:
            self._failures += 1
            if _is_wall(failure) or self._failures >= MOST_FAILURES:
                raise self._ended(failure) from None
            self._lost = True
            self._wait("server_error", str(failure))
        except OAuthFailure as failure:
            raise self._ended(failure) from None
        else:
            if isinstance(answer, TokenAnswer):
                return answer
            self._failures = 0
            if isinstance(answer, SlowDown):
                self._slow_down()
            elif isinstance(answer, Pending):
                self._wait("pending")
        return None

    def _slow_down(self, at_least_s: float = 0) -> None:
        slower_s = min(self._interval_s * SLOWER, SLOWEST_S)
        self._interval_s = max(self._interval_s, slower_s, at_least_s)
        self._wait("slow_down")

    def _wait(
        self, why: Literal["pending", "slow_down", "offline", "server_error"], detail: str = ""
    ) -> None:
        self._tell(Waiting(why, self._interval_s, max(0.0, self._left_s()), detail))

    def _ended(self, failure: OAuthFailure) -> LoginFailed:
        host = self._endpoint.host
        if isinstance(failure, Denied):
            return LoginDenied("The login was denied in the browser.")
        if isinstance(failure, Expired):
            return LoginExpired(f"The code has expired or was used{self._lost_hint()}.")
        if _is_wall(failure):
            return LoginBlocked(f"{host} sent a web page in place of an answer: {failure}.")
        if isinstance(failure, Throttled):
            wait = f" for {failure.retry_after_s:.0f} s" if failure.retry_after_s else ""
            return LoginFailed(f"{host} wants to be left alone{wait}: {failure}.")
        return LoginFailed(f"{host} cannot log anybody in now: {failure}.")

    def _lost_hint(self) -> str:
        return "; an answer was lost before, perhaps the one with the tokens" if self._lost else ""


def credentials_name(account: str | None) -> str:
    """The name of an account's file in qwen-code's directory.

    Raises:
        ValueError: why it is no name for an account.
    """
    if account is None:
        return "oauth_creds.json"
    if not _ACCOUNT.fullmatch(account):
        raise ValueError("it must be 1 to 32 characters of a-z, 0-9 and -")
    return f"oauth_creds_{account}.json"


def login_document(answer: TokenAnswer, old: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a new login, with the unknown keys of the old one and in its order.

    Nothing of the old login itself stays: it may have been another account's.
    """
    values = (
        answer.access_token,
        answer.refresh_token,
        answer.token_type,
        answer.resource_url,
        answer.expires_at_ms,
    )
    new = {key: value for key, value in zip(_KEYS, values, strict=True) if value is not None}
    kept = {key: value for key, value in old.items() if key in new or key not in _KEYS}
    return {**kept, **new}


def check_writable(path: Path) -> None:
    """Find out that a login could not be saved before anybody goes through one.

    Raises:
        LoginNotSaved: why.
    """
    try:
        durable.make_directory(path.parent)
        durable.reserve(path, b"").discard()
        _read(path)
    except OSError as error:
        raise _not_saved(path, error) from None


def write_login(path: Path, answer: TokenAnswer, *, clock: Clock) -> None:
    """Save a login as qwen-code would, but durably and with what others put into the file.

    Limit: takes no lock, like qwen-code's own login. Who holds the locks of this file must not have
    one of its refreshes in flight overwrite what is written here.

    Raises:
        LoginNotSaved: why; the file is as before.
    """
    try:
        durable.make_directory(path.parent)
        durable.sweep(path.parent, now_s=clock.now())
        document = login_document(answer, _read(path))
        durable.replace_file(path, _render(document))
    except OSError as error:
        raise _not_saved(path, error) from None


def _read(path: Path) -> Mapping[str, Any]:
    """What is in the file; nothing if it is broken, which the new login repairs."""
    with suppress(FileNotFoundError, ValueError):
        value = jsonc.loads(path.read_bytes().decode("utf-8-sig"), comments=False)
        return value if isinstance(value, dict) else {}
    return {}


def _render(document: Mapping[str, Any]) -> bytes:
    """As JavaScript's `JSON.stringify(document, null, 2)`; no newline at the end."""
    try:
        return json.dumps(document, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # A lone surrogate somewhere, which JSON can have and UTF-8 cannot.
        return json.dumps(document, indent=2).encode()


def _not_saved(path: Path, error: OSError) -> LoginNotSaved:
    failed = LoginNotSaved(f"The login cannot be saved to {path}: {error.strerror or error}.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        failed.remedy = "Make room on the disk, then run the command again."
    return failed


def _is_wall(failure: OAuthFailure) -> bool:
    """A firewall's page; a gateway's page with a 5xx is an ordinary failure."""
    return failure.page and (failure.status or 0) < 500


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
