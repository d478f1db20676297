"""Device login and rotating tokens: the state of the sandbox's two OAuth endpoints.

The format is that of chat.qwen.ai as qwen-code expects it: form-encoded requests (RFC 8628 with
PKCE, RFC 7636), no `interval` in the device answer, `authorization_pending` as 400, `slow_down` as
429, an expired device code as 401. Refresh tokens are single use: each refresh returns a new one,
and a second use is refused and counted.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]
Reply = tuple[int, Json]

ACCESS_PREFIX: Final = "sandbox-at-"
REFRESH_PREFIX: Final = "sandbox-rt-"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_SCOPE: Final = "openid profile email model.completion"
_USER_CODE_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"

INVALID_REFRESH: Final[Reply] = (
    400,
    {"error": "invalid_request", "error_description": "Invalid refresh token or client_id"},
)


@dataclass(slots=True)
class OAuthKnobs:
    """What control calls change. Times in seconds.

    `resource_url`: `origin` (http://127.0.0.1:PORT), `host` (127.0.0.1:PORT), `v1` (origin + /v1),
    `slash` (origin + /v1/), empty (left out), or any other text, sent as it is.
    """

    access_ttl_s: float = 21600.0
    device_ttl_s: float = 900.0
    resource_url: str = "origin"
    approve_after_polls: int | None = None
    slow_down_polls: int = 0
    pending_as_200: bool = False
    rotate: bool = True
    reuse_revokes_family: bool = False
    closed_tier: bool = False


@dataclass(slots=True)
class _Device:
    user_code: str
    client_id: str
    challenge: str
    expires_s: float
    verdict: str = "pending"  # pending, approved, denied, expired or used
    polls: int = 0


@dataclass(slots=True)
class _Family:
    """All tokens that descend from one login."""

    client_id: str
    revoked: bool = False


@dataclass(slots=True)
class OAuthCounters:
    device_codes: int = 0
    device_polls: int = 0
    logins: int = 0
    pkce_failures: int = 0
    refreshes: int = 0
    refresh_reuses: int = 0
    refresh_unknown: int = 0


@dataclass(slots=True)
class _Tokens:
    live: dict[str, _Family] = field(default_factory=dict)  # refresh tokens not yet used
    spent: dict[str, _Family] = field(default_factory=dict)
    access: dict[str, tuple[float, _Family]] = field(
        default_factory=dict
    )  # expiry in epoch seconds
    issued: int = 0


class OAuth:
    """The authorization server. Thread-safe; `clock` gives epoch seconds."""

    def __init__(self, clock: Callable[[], float], origin: Callable[[], str]) -> None:
        self._clock = clock
        self._origin = origin
        self._lock = threading.Lock()
        self._devices: dict[str, _Device] = {}
        self._tokens = _Tokens()
        self.knobs = OAuthKnobs()
        self.counters = OAuthCounters()

    def start_device(self, form: Mapping[str, str]) -> Reply:
        """Answer the device authorization request."""
        client_id = form.get("client_id", "")
        challenge = form.get("code_challenge", "")
        if not client_id:
            return _error(400, "invalid_request", "client_id is required")
        if not challenge or form.get("code_challenge_method") != "S256":
            return _error(400, "invalid_request", "a code_challenge with method S256 is required")
        letters = "".join(secrets.choice(_USER_CODE_LETTERS) for _ in range(8))
        user_code = f"{letters[:4]}-{letters[4:]}"
        device_code = "sandbox-dc-" + secrets.token_urlsafe(24)
        with self._lock:
            ttl_s = self.knobs.device_ttl_s
            self._devices[device_code] = _Device(
                user_code, client_id, challenge, self._clock() + ttl_s
            )
            self.counters.device_codes += 1
        page = f"{self._origin()}/authorize"
        return 200, {
            "device_code": device_code,
            "user_code": user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={user_code}&client=qwen-code",
            "expires_in": int(ttl_s),
        }

    def poll_device(self, form: Mapping[str, str]) -> Reply:
        """Answer a token request with a device code."""
        with self._lock:
            self.counters.device_polls += 1
            device = self._devices.get(form.get("device_code", ""))
            if device is None or form.get("client_id") != device.client_id:
                return _error(400, "invalid_grant", "unknown device code or client_id")
            if not _verifies(form.get("code_verifier", ""), device.challenge):
                self.counters.pkce_failures += 1
                return _error(
                    400, "invalid_grant", "code_verifier does not match the code_challenge"
                )
            device.polls += 1
            return self._poll_verdict(device)

    def refresh(self, form: Mapping[str, str]) -> Reply:
        """Answer a token request with a refresh token: spend it and issue the next pair."""
        token = form.get("refresh_token", "")
        with self._lock:
            family = self._tokens.live.get(token)
            if family is None:
                self._count_refused(token)
                return INVALID_REFRESH
            if family.revoked or form.get("client_id") != family.client_id:
                self.counters.refresh_unknown += 1
                return INVALID_REFRESH
            self.counters.refreshes += 1
            if not self.knobs.rotate:
                return 200, self._issue(family, refresh_token=token)
            del self._tokens.live[token]
            self._tokens.spent[token] = family
            return 200, self._issue(family)

    def issue(self, client_id: str) -> Json:
        """Return a new token answer, as after a login; for tests that start with credentials."""
        with self._lock:
            return self._issue(_Family(client_id))

    def keep_alive(self, refresh_token: str) -> None:
        """Make a spent refresh token valid again (the answer with its successor was not sent)."""
        with self._lock:
            family = self._tokens.spent.pop(refresh_token, None)
            if family is not None:
                self._tokens.live[refresh_token] = family

    def accepts(self, access_token: str) -> bool:
        """Whether an access token issued here is neither expired nor revoked."""
        with self._lock:
            expires_s, family = self._tokens.access.get(access_token, (0.0, None))
            good = family is not None and not family.revoked and self._clock() < expires_s
            return good and not self.knobs.closed_tier

    def decide(self, user_code: str, verdict: str) -> int:
        """Approve, deny or expire pending logins; `*` means all. Return their number."""
        with self._lock:
            chosen = [
                device
                for device in self._devices.values()
                if device.verdict == "pending" and user_code in ("*", device.user_code)
            ]
            for device in chosen:
                device.verdict = verdict
            return len(chosen)

    def pending_user_codes(self) -> list[str]:
        with self._lock:
            return [d.user_code for d in self._devices.values() if d.verdict == "pending"]

    def revoke_access_tokens(self) -> None:
        """Make all access tokens issued so far invalid; refresh tokens stay valid."""
        with self._lock:
            self._tokens.access.clear()

    def revoke_all(self) -> None:
        """Make all tokens issued so far invalid, as if the user had revoked the login."""
        with self._lock:
            for family in (*self._tokens.live.values(), *self._tokens.spent.values()):
                family.revoked = True

    def live_refresh_tokens(self) -> int:
        with self._lock:
            return len(self._tokens.live)

    def reset(self) -> None:
        """Clear all logins, tokens, counters and knobs."""
        with self._lock:
            self._devices.clear()
            self._tokens = _Tokens()
            self.knobs = OAuthKnobs()
            self.counters = OAuthCounters()

    def _poll_verdict(self, device: _Device) -> Reply:
        if self.knobs.slow_down_polls > 0:
            self.knobs.slow_down_polls -= 1
            return _error(429, "slow_down", "polling too fast")
        if device.verdict == "pending" and self._clock() >= device.expires_s:
            device.verdict = "expired"
        enough = self.knobs.approve_after_polls
        if device.verdict == "pending" and enough is not None and device.polls > enough:
            device.verdict = "approved"
        if device.verdict == "pending":
            if self.knobs.pending_as_200:
                return 200, {"status": "pending"}
            return _error(
                400, "authorization_pending", "The authorization request is still pending"
            )
        if device.verdict == "denied":
            return _error(400, "access_denied", "The user denied the authorization request")
        if device.verdict != "approved":
            return _error(401, "expired_token", "The device code has expired")
        device.verdict = "used"
        self.counters.logins += 1
        return 200, self._issue(_Family(device.client_id))

    def _count_refused(self, token: str) -> None:
        family = self._tokens.spent.get(token)
        if family is None:
            self.counters.refresh_unknown += 1
            return
        self.counters.refresh_reuses += 1
        if self.knobs.reuse_revokes_family:
            family.revoked = True

    def _issue(self, family: _Family, refresh_token: str | None = None) -> Json:
        """Issue the next pair. Both end with the same number, so that a torn read is visible."""
        tokens = self._tokens
        now_s = self._clock()
        tokens.access = {key: entry for key, entry in tokens.access.items() if entry[0] > now_s}
        tokens.issued += 1
        number = f"{tokens.issued:06d}"
        access = f"{ACCESS_PREFIX}{secrets.token_hex(16)}-{number}"
        refresh = refresh_token or f"{REFRESH_PREFIX}{secrets.token_hex(16)}-{number}"
        tokens.access[access] = (now_s + self.knobs.access_ttl_s, family)
        tokens.live[refresh] = family
        answer = {
            "access_token": access,
            "token_type": "Bearer",
            "refresh_token": refresh,
            "resource_url": self._resource_url(),
            "expires_in": int(self.knobs.access_ttl_s),
            "scope": _SCOPE,
        }
        if not answer["resource_url"]:
            del answer["resource_url"]
        return answer

    def _resource_url(self) -> str:
        origin = self._origin()
        forms = {
            "origin": origin,
            "host": origin.removeprefix("http://"),
            "v1": origin + "/v1",
            "slash": origin + "/v1/",
        }
        return forms.get(self.knobs.resource_url, self.knobs.resource_url)


def _verifies(verifier: str, challenge: str) -> bool:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == challenge


def _error(status: int, word: str, description: str) -> Reply:
    return status, {"error": word, "error_description": description}
