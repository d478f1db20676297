"""Logs in on another device (RFC 8628 with PKCE, RFC 7636), and saves the login.

No terminal and no clock of its own: `DeviceLogin` reports what happens through a callback.
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

#: Between two polls; the service names no interval, and its own client uses this one. Seconds.
INTERVAL_S: Final = 2.0
#: How `slow_down` multiplies the interval, and up to which length.
SLOWER: Final = 1.5
SLOWEST_S: Final = 10.0
#: After so many failures of the service in a row the login ends.
MOST_FAILURES: Final = 5

_ACCOUNT: Final = re.compile(r"[a-z0-9-]{1,32}")
#: In the order in which qwen-code's own login writes them.
_KEYS: Final = ("access_token", "refresh_token", "token_type", "resource_url", "expiry_date")
#: RFC 7636 §4.1 recommends as much. Bytes.
_VERIFIER_BYTES: Final = 32


class LoginFailed(QwenProxyError):
    """A login ended without a token. `str()` says what happened, as a sentence.

    Attributes:
        event: a stable name for programs.
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
    """A firewall's page came instead of an answer."""

    event = "blocked"
    remedy = (
        "Its firewall treats this machine as a robot, or this network has a login page: open the "
        "address in a browser on this network, or try from another network."
    )


class LoginNotSaved(LoginFailed):
    event = "not_saved"
    remedy = "Make the directory and the file writable for this user, or run it as their owner."


@dataclass(frozen=True)
class CodeShown:
    """The person must confirm the code now; it is valid for another `left_s`."""

    code: DeviceCode
    left_s: float


@dataclass(frozen=True)
class Waiting:
    """A poll brought no token yet; the next one comes after `interval_s`.

    Attributes:
        why: `offline` and `server_error` are retried until the code expires or there are too many
            failures.
        detail: a clause about what went wrong, or empty.
    """

    why: Literal["pending", "slow_down", "offline", "server_error"]
    interval_s: float
    left_s: float
    detail: str = ""


Event = CodeShown | Waiting


class DeviceLogin:
    """One login, run once by one thread.

    The interval never shrinks again after a `slow_down` (RFC 8628 §3.5). Polling ends when the code
    has expired, by our clock or by the service's answer.
    """

    def __init__(
        self,
        endpoint: TokenEndpoint,
        *,
        clock: Clock,
        sleep: Callable[[float], None],
        report: Callable[[Event], None],
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._sleep = sleep
        self._report = report
        self._verifier = _base64url(secrets.token_bytes(_VERIFIER_BYTES))
        self._interval_s = INTERVAL_S
        self._deadline_s = 0.0
        self._failures = 0
        #: Why the latest poll could not reach the service; empty when it did.
        self._offline = ""
        #: An answer was lost; it may have been the one with the tokens.
        self._lost = False

    def run(self) -> TokenAnswer:
        """Log in.

        Raises:
            LoginFailed: one of its subclasses.
        """
        code = self._begin()
        self._deadline_s = self._clock.monotonic() + code.expires_in_s
        self._interval_s = max(INTERVAL_S, code.interval_s or 0)
        self._report(CodeShown(code, code.expires_in_s))
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
                        f"{self._endpoint.host} sent no refresh token, so the login would end with "
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
            raise LoginOffline(f"The login could not begin: {failure}.") from None
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
            if _is_firewall(failure) or self._failures >= MOST_FAILURES:
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
        self._report(Waiting(why, self._interval_s, max(0.0, self._left_s()), detail))

    def _ended(self, failure: OAuthFailure) -> LoginFailed:
        host = self._endpoint.host
        if isinstance(failure, Denied):
            return LoginDenied("The login was denied in the browser.")
        if isinstance(failure, Expired):
            return LoginExpired(f"The code has expired or was used{self._lost_hint()}.")
        if _is_firewall(failure):
            return LoginBlocked(f"{host} sent a web page instead of an answer: {failure}.")
        if isinstance(failure, Throttled):
            wait = f" for {failure.retry_after_s:.0f} s" if failure.retry_after_s else ""
            return LoginFailed(f"{host} refuses further requests{wait}: {failure}.")
        return LoginFailed(f"{host} cannot complete logins now: {failure}.")

    def _lost_hint(self) -> str:
        return "; an answer was lost before, perhaps the one with the tokens" if self._lost else ""


def credentials_name(account: str | None) -> str:
    """The name of an account's file in qwen-code's directory.

    Raises:
        ValueError: why the account cannot have this name.
    """
    if account is None:
        return "oauth_creds.json"
    if not _ACCOUNT.fullmatch(account):
        raise ValueError("it must be 1 to 32 characters of a-z, 0-9 and -")
    return f"oauth_creds_{account}.json"


def login_document(answer: TokenAnswer, old: Mapping[str, Any]) -> dict[str, Any]:
    """Make the document of a new login, with the unknown keys and the key order of the old one.

    No value of the old login itself stays: it may have been another account's.
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
    """Check, before a person logs in, that the login can be saved.

    Raises:
        LoginNotSaved: why it cannot.
    """
    try:
        durable.make_directory(path.parent)
        durable.reserve(path, 0).discard()
        _read(path)
    except OSError as error:
        raise _not_saved(path, error) from None


def write_login(path: Path, answer: TokenAnswer, *, clock: Clock) -> None:
    """Save a login as qwen-code would, but durably and with the unknown keys of the file.

    Limit: takes no lock, like qwen-code's own login. A refresh under way must not overwrite what is
    written here.

    Raises:
        LoginNotSaved: why; the file is unchanged.
    """
    try:
        durable.make_directory(path.parent)
        durable.sweep(path.parent, now_s=clock.now())
        document = login_document(answer, _read(path))
        durable.replace_file(path, _render(document))
    except OSError as error:
        raise _not_saved(path, error) from None


def _read(path: Path) -> Mapping[str, Any]:
    """Read the file; a broken one counts as empty, because the new login replaces it."""
    with suppress(FileNotFoundError, ValueError):
        value = jsonc.loads(path.read_bytes().decode("utf-8-sig"), comments=False)
        return value if isinstance(value, dict) else {}
    return {}


def _render(document: Mapping[str, Any]) -> bytes:
    """Render as JavaScript's `JSON.stringify(document, null, 2)`; no newline at the end."""
    try:
        return json.dumps(document, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can contain and UTF-8 cannot.
        return json.dumps(document, indent=2).encode()


def _not_saved(path: Path, error: OSError) -> LoginNotSaved:
    failed = LoginNotSaved(f"The login cannot be saved to {path}: {error.strerror or error}.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        failed.remedy = "Make room on the disk, then run the command again."
    return failed


def _is_firewall(failure: OAuthFailure) -> bool:
    """Whether it is a firewall's page; a gateway's page with a 5xx is an ordinary failure."""
    return failure.page and (failure.status or 0) < 500


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
