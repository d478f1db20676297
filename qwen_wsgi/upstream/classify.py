"""What an upstream's refusal means for the client: pure, from status, headers and body.

Shapes seen: OpenAI's `{"error": {"message", "type", "param", "code"}}`, DashScope's native
`{"code", "message", "request_id"}`, FastAPI's `{"detail"}`, a JSON body framed as an SSE `data:`
line (DashScope, for a refused stream), HTML of a gateway or firewall, and nothing at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol import sse
from qwen_wsgi.settings import mask

#: Statuses that mean to our client what the upstream meant by them. 401 is not among them: it is
#: the proxy's account that was refused, and a client would look for the fault in its own key.
_KEPT: Final = frozenset({400, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504})

#: Without a JSON body a 4xx speaks of the road (wrong base URL, firewall), not of the request.
_KEPT_WITHOUT_BODY: Final = frozenset({413, 429, 500, 502, 503, 504})

#: Keys as the vendors shape them, and JSON web tokens.
_KEY_LIKE: Final = re.compile(r"\bsk-[A-Za-z0-9._-]{8,}|\beyJ[A-Za-z0-9_.-]{20,}")

_TYPES: Final = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}

#: How DashScope says "your key or token is not valid here", with 401 or 403.
_ACCOUNT_CODES: Final = frozenset({"invalid_api_key", "InvalidApiKey", "invalid api-key"})


def from_response(
    status: int, headers: Mapping[str, str], body: bytes, *, account: str
) -> UpstreamError:
    """The client's error for an upstream answer that is none.

    Args:
        status: the upstream's HTTP status.
        headers: its headers, looked up without regard to case.
        body: what came of its body; may be cut.
        account: the account's name, for messages.
    """
    error = _envelope(body)
    if error is None:
        return _without_envelope(status, headers, body, account)
    if status == 401 or (status == 403 and error.get("code") in _ACCOUNT_CODES):
        return _account_refused(account, error)
    kept = status if status in _KEPT else 400 if status == 430 else 502
    return _error(kept, error, retry_after_s=retry_after_s(headers))


def from_frame(error: Any, *, account: str) -> UpstreamError:
    """The client's error for an error frame that came before anything else, with HTTP 200.

    The frame has no status; the code tells it as far as it is a common one, else it is a 502.
    """
    fields = error if isinstance(error, dict) else {"message": str(error)}
    code = str(fields.get("code") or fields.get("type") or "")
    if code in _ACCOUNT_CODES:
        return _account_refused(account, fields)
    status = 502
    if code.isdigit() and int(code) in _KEPT:
        status = int(code)
    elif code.startswith(("Throttling", "limit_", "rate_limit", "insufficient_quota")):
        status = 429
    elif "inspection" in code.lower() or code.lower().startswith(("invalid_", "invalidparameter")):
        status = 400
    return _error(status, fields)


def no_answer(headers: Mapping[str, str], body: bytes, *, account: str) -> UpstreamError:
    """The client's error for an HTTP 200 whose body is neither a stream nor a JSON object."""
    return _without_envelope(200, headers, body, account)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` in seconds, if the upstream gave whole or decimal seconds."""
    try:
        value = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return value if 0 <= value < 86_400 else None


def _envelope(body: bytes) -> dict[str, Any] | None:
    value = _json_of(body)
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": value.get("error_description") or error, "code": error}
    for name in ("message", "detail", "msg"):
        if isinstance(value.get(name), str):
            return {"message": value[name], "code": value.get("code"), "type": value.get("type")}
    if isinstance(value.get("detail"), list):
        # FastAPI's list of faults: [{"loc": [...], "msg": "..."}]
        faults = [fault for fault in value["detail"] if isinstance(fault, dict)]
        said = [f"{_place(fault.get('loc'))}{fault['msg']}" for fault in faults if "msg" in fault]
        return {"message": "; ".join(said)} if said else None
    return None


def _json_of(body: bytes) -> Any:
    """The JSON value of a body, or of the first event of one that is framed as a stream."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        normalised = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        found = (sse.parse(event) for event in sse.events(normalised.strip()))
        return next((value for value in found if value is not None), None)


def _place(loc: object) -> str:
    return ".".join(map(str, loc)) + ": " if isinstance(loc, list) else ""


def _masked(text: str) -> str:
    """Some gateways quote the key that they refuse. It is the operator's, not the client's."""
    return _KEY_LIKE.sub(lambda found: mask(found[0]), text)


def _error(
    status: int, error: Mapping[str, Any], *, retry_after_s: float | None = None
) -> UpstreamError:
    code = error.get("code")
    kind = error.get("type")
    param = error.get("param")
    return UpstreamError(
        _masked(str(error.get("message") or "The upstream gave an error without a message.")),
        status=status,
        type=kind if isinstance(kind, str) and kind else _TYPES.get(status, "server_error"),
        code=None if code is None else str(code),
        param=param if isinstance(param, str) else None,
        retry_after_s=retry_after_s,
    )


def _account_refused(account: str, error: Mapping[str, Any]) -> UpstreamError:
    said = _masked(str(error.get("message") or "no reason given"))
    return UpstreamError(
        f"The upstream refused the credential of the proxy's account '{account}' ({said}). "
        "Your own key is fine: the operator of this proxy must look at `qwen-proxy status`.",
        status=502,
        code="upstream_account_refused",
        should_retry=False,
    )


def _without_envelope(
    status: int, headers: Mapping[str, str], body: bytes, account: str
) -> UpstreamError:
    what = "an empty body"
    if body.strip():
        kind = headers.get("content-type", "").split(";")[0] or "no content type"
        what = f"a body that is no JSON error ({kind}, {len(body)} bytes)"
    if status == 401:
        return _account_refused(account, {"message": f"HTTP 401 with {what}"})
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    hint = ""
    if status in (404, 405) or 300 <= status < 400:
        hint = " The account's base URL is probably wrong."
    return UpstreamError(
        f"The upstream of account '{account}' answered HTTP {phrase} with {what}.{hint}",
        status=status if status in _KEPT_WITHOUT_BODY else 502,
        type=_TYPES.get(status, "server_error"),
        code=f"upstream_http_{status}",
        retry_after_s=retry_after_s(headers),
    )
