"""Refusals of the real services: codes, statuses, texts and body formats. Pure, no I/O.

From DashScope's error documentation, and from logs where noted. Rows are found by code, by
`code@status` where a code has several meanings, and by the short names of the behaviour table.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from qwen_wsgi.sandbox.faults import BadSpec, Spec

Form = Literal["compat", "native", "sse"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal. `type` None means that it repeats the code, as DashScope often does."""

    status: int
    code: str
    message: str
    type: str | None = None
    form: Form = "compat"

    @property
    def envelope(self) -> dict[str, Any]:
        """The OpenAI-like `error` object."""
        kind = self.code if self.type is None else self.type
        return {"message": self.message, "type": kind, "param": None, "code": self.code}

    def body(self) -> dict[str, Any]:
        """The whole JSON body in this refusal's form."""
        request_id = str(uuid.uuid4())
        if self.form == "native":
            return {"request_id": request_id, "code": self.code, "message": self.message}
        return {"error": self.envelope, "request_id": request_id}


_INVALID: Final = "invalid_request_error"
_RATE: Final = "You exceeded your current requests list."
_BURST: Final = (
    "Request rate increased too quickly. To ensure system stability, please adjust your client "
    "logic to scale requests more smoothly over time."
)
_TPM: Final = "Allocated quota exceeded, please increase your quota limit."
_OUTPUT: Final = "Output data may contain inappropriate content."
_INPUT: Final = "Input data may contain inappropriate content."
_INTERNAL: Final = (
    "An internal error has occured, please try again later or contact service support."
)
_NO_MODEL: Final = "The model `{model}` does not exist or you do not have access to it."
_OVERDUE: Final = "Access denied, please make sure your account is in good standing."
_FREE: Final = (
    "The free tier of the model has been exhausted. If you wish to continue access the model on a "
    'paid basis, please disable the "use free tier only" mode in the management console.'
)
_CAPACITY: Final = (
    "Too many requests. Your requests are being throttled due to system capacity limits."
)

TOKEN_EXPIRED: Final = Refusal(
    401, "invalid_api_key", "invalid access token or token expired", _INVALID
)
INVALID_KEY: Final = Refusal(401, "invalid_api_key", "Incorrect API key provided. ", _INVALID)
MISSING_KEY: Final = Refusal(
    401,
    "invalid_api_key",
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). ",
    _INVALID,
)
BAD_BODY: Final = Refusal(
    400,
    _INVALID,
    "Required body invalid, please check the request body format.",
    _INVALID,
)

NOT_ASYNCHRONOUS: Final = Refusal(
    403, "AccessDenied", "current user api does not support asynchronous calls.", form="native"
)

# A bare code means the first row with that code.
_TABLE: Final[tuple[Refusal, ...]] = (
    Refusal(400, "invalid_parameter_error", "The parameter is invalid.", _INVALID),
    Refusal(400, "InvalidParameter", "The parameter is invalid.", form="native"),
    Refusal(400, "invalid_value", "The value is invalid.", _INVALID),
    Refusal(400, _INVALID, "The request is invalid.", _INVALID),
    Refusal(400, "context_length_exceeded", "Range of input length should be [1, 30720]", _INVALID),
    Refusal(400, "data_inspection_failed", _INPUT),
    Refusal(400, "response_data_inspection_failed", _OUTPUT),
    Refusal(400, "DataInspectionFailed", _INPUT, form="native"),
    Refusal(400, "CustomRoleBlocked", "Input or output data may contain inappropriate content."),
    Refusal(400, "FaqRuleBlocked", "Input or output data is blocked by faq rule."),
    Refusal(
        400,
        "IPInfringementSuspect",
        "Input data is suspected of being involved in IP infringement.",
    ),
    Refusal(400, "Arrearage", _OVERDUE),
    Refusal(400, "Model not exist.", "Model not exist.", _INVALID),
    Refusal(429, "Throttling.AllocationQuota", _TPM, form="native"),
    Refusal(
        400, "Throttling.AllocationQuota", "The number of voices exceeds the quota.", form="native"
    ),
    Refusal(400, "APIConnectionError", "Connection error."),
    Refusal(400, "ClientDisconnect", "Client disconnected before task finished."),
    INVALID_KEY,
    Refusal(401, "InvalidApiKey", "Invalid API-key provided.", form="native"),
    Refusal(401, "NOT AUTHORIZED", "NOT AUTHORIZED"),
    Refusal(403, "access_denied", "Access denied."),
    NOT_ASYNCHRONOUS,
    Refusal(
        403,
        "AccessDenied.Unpurchased",
        "Access to model denied. Please make sure you are eligible.",
    ),
    Refusal(403, "Model.AccessDenied", "Model access denied."),
    Refusal(403, "model.access_denied", "Model access denied."),
    Refusal(403, "Workspace.AccessDenied", "Workspace access denied."),
    Refusal(403, "App.AccessDenied", "App access denied."),
    Refusal(403, "invalid api-key", "invalid api-key", _INVALID),
    Refusal(403, "AllocationQuota.FreeTierOnly", _FREE),
    Refusal(429, "insufficient_quota", _TPM),
    Refusal(403, "insufficient_quota", _FREE),
    Refusal(404, "model_not_found", _NO_MODEL, _INVALID),
    Refusal(404, "ModelNotFound", "Model can not be found.", form="native"),
    Refusal(
        404,
        "model_not_supported",
        "Unsupported model `{model}` for OpenAI compatibility mode.",
        _INVALID,
    ),
    Refusal(404, "WorkSpaceNotFound", "WorkSpace can not be found."),
    Refusal(404, "NotFound", "Not found!"),
    Refusal(
        405, "agents_only", "Coding Plan is currently only available for Coding Agents", _INVALID
    ),
    Refusal(409, "Conflict", "Model instance already exists, please specify a suffix."),
    Refusal(413, "payload_too_large", "Request body is too large.", _INVALID),
    Refusal(429, "limit_requests", _RATE),
    Refusal(
        429,
        "Throttling.RateQuota",
        "Requests rate limit exceeded, please try again later.",
        form="native",
    ),
    Refusal(429, "LimitRequests", _RATE),
    Refusal(429, "Throttling", "Requests throttling triggered.", form="native"),
    Refusal(429, "limit_burst_rate", _BURST),
    Refusal(429, "Throttling.BurstRate", _BURST, form="native"),
    Refusal(429, "CommodityNotPurchased", "Commodity has not purchased yet."),
    Refusal(429, "PrepaidBillOverdue", "The prepaid bill is overdue."),
    Refusal(429, "PostpaidBillOverdue", "The postpaid bill is overdue."),
    Refusal(500, "internal_error", _INTERNAL),
    Refusal(500, "InternalError", _INTERNAL, form="native"),
    Refusal(500, "SystemError", "An system error has occured, please try again later."),
    Refusal(500, "ModelServiceFailed", "Failed to request model service."),
    Refusal(500, "RequestTimeOut", "Request timed out, please try again later."),
    Refusal(500, "ResponseTimeout", "Response timeout!"),
    Refusal(503, "ModelServingError", _CAPACITY),
    Refusal(500, "ModelServingError", _CAPACITY),
    Refusal(503, "ModelUnavailable", "Model is unavailable, please try again later."),
    Refusal(504, "stream_timeout", "stream timeout", "timeout_error"),
    Refusal(529, "overloaded_error", "Overloaded", "overloaded_error"),
    # Codes of a third-party vendor whose models the same hosts serve.
    Refusal(429, "1302", "Rate limit reached for requests"),
    Refusal(429, "1305", "The service may be temporarily overloaded, please try again later"),
    Refusal(
        200, "BailianGateway.Workspace.NotAuthorised", "Workspace not authorised.", form="native"
    ),
)

# `error=InvalidParameter.DataInspection` and the like: any code of a documented family.
_FAMILIES: Final[tuple[tuple[str, Refusal], ...]] = (
    ("InvalidParameter.", Refusal(400, "", "The parameter is invalid.", form="native")),
    ("BadRequest.", Refusal(400, "", "The request is bad.", form="native")),
    ("InvalidURL", Refusal(400, "", "The request URL is invalid.", form="native")),
    ("InvalidFile.", Refusal(400, "", "The file is invalid.", form="native")),
    ("Audio.", Refusal(430, "", "The audio file cannot be used.", form="native")),
    ("InternalError.", Refusal(500, "", "An internal error has occured.", form="native")),
)

_SHORT: Final[dict[str, str]] = {
    "throttle": "limit_requests",
    "burst": "limit_burst_rate",
    "quota": "insufficient_quota@429",
    "free-tier": "AllocationQuota.FreeTierOnly",
    "arrearage": "Arrearage",
    "invalid-key": "invalid_api_key",
    "denied": "access_denied",
    "agents-only": "agents_only",
    "model-not-found": "model_not_found",
    "inspection": "data_inspection_failed",
    "overload": "ModelUnavailable",
    "internal": "internal_error",
    "gateway-timeout": "stream_timeout",
    "too-large": "payload_too_large",
}


def find(code: str) -> Refusal:
    """Return the row for `code` or `code@status`.

    Raises:
        BadSpec: no documented error has that code.
    """
    name, _, status = code.partition("@")
    for row in _TABLE:
        if row.code == name and status in ("", str(row.status)):
            return row
    for prefix, row in _FAMILIES:
        if name.startswith(prefix) and status in ("", str(row.status)):
            return replace(row, code=name)
    raise BadSpec(f"unknown error code {code!r}; GET /_sandbox/faults lists the known ones")


def codes() -> list[dict[str, Any]]:
    """Return the table as JSON objects, for `GET /_sandbox/faults`."""
    rows = [*_TABLE, *(replace(row, code=prefix + "*") for prefix, row in _FAMILIES)]
    return [
        {"code": row.code, "status": row.status, "message": row.message, "form": row.form}
        for row in rows
    ]


def chosen(spec: Spec, model: str = "", reset_at: str = "") -> Refusal | None:
    """Return the refusal that a spec selects, or None.

    Args:
        model: inserted into texts that contain a model.
        reset_at: the end of a used-up plan window, as text.

    Raises:
        BadSpec: the spec names an error code that does not exist.
    """
    refusal = _named(spec, reset_at)
    if refusal is None:
        return None
    changes: dict[str, Any] = {"message": refusal.message.replace("{model}", model)}
    if "status" in spec:
        changes["status"] = spec.count("status")
    if "message" in spec:
        changes["message"] = spec.text("message")
    if "form" in spec:
        form = spec.text("form")
        if form not in ("compat", "native", "sse"):
            raise BadSpec("form must be compat, native or sse")
        changes["form"] = form
    return replace(refusal, **changes)


def _named(spec: Spec, reset_at: str) -> Refusal | None:
    if "context-length" in spec:
        limit = spec.count("context-length")
        text = f"Range of input length should be [1, {limit}]"
        return Refusal(400, "invalid_parameter_error", text, _INVALID)
    if "plan-quota" in spec:
        text = f"{spec.text('plan-quota')} allocated quota exceeded"
        if "reset-in" in spec:
            text += f". Your quota will reset at {reset_at}"
        return Refusal(429, "insufficient_quota", text)
    if "free-quota" in spec:
        return Refusal(429, "insufficient_quota", "Free allocated quota exceeded.")
    if "token-expired" in spec:
        return TOKEN_EXPIRED
    if "bad-request" in spec:
        return Refusal(400, "invalid_parameter_error", "bad request", _INVALID)
    if "sse-400" in spec:
        code = spec.text("error", "invalid_parameter_error")
        return replace(find(code), form="sse", status=400)
    for name, code in _SHORT.items():
        if name in spec:
            return find(code)
    if _IN_STREAM.intersection(spec.items):
        return None
    if "error" in spec:
        return find(spec.text("error"))
    if "status" in spec or "message" in spec:
        return Refusal(
            spec.count("status", 500), "internal_error", "An internal error has occured."
        )
    return None


# With one of these, `error` names the error of the event in the stream, not a refusal of the
# request.
_IN_STREAM: Final = frozenset({"error-frame-after", "native-error-event"})


def in_stream(spec: Spec) -> tuple[int, Refusal] | None:
    """Return the event number and the error of a failure inside a stream, or None.

    Raises:
        BadSpec: the spec names an error code that does not exist.
    """
    if "inspection-mid-stream" in spec:
        return spec.count("inspection-mid-stream"), Refusal(400, "data_inspection_failed", _OUTPUT)
    if "throttle-in-stream" in spec:
        return spec.count("throttle-in-stream"), find("limit_requests")
    for name in sorted(_IN_STREAM):
        if name in spec:
            refusal = find(spec.text("error", "internal_error"))
            if "message" in spec:
                refusal = replace(refusal, message=spec.text("message"))
            return spec.count(name), refusal
    return None
