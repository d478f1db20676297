"""Every header of ours: what clients may send, and what answers have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from qwen_wsgi.upstream.routing.affinity import HEADERS as AGENTS


class Header(NamedTuple):
    """One header.

    Attributes:
        schema: the JSON type of its value.
        pages: whether web pages of other origins may read it (CORS).
    """

    meaning: str
    schema: str = "string"
    pages: bool = True


#: Of every answer.
ALWAYS: Final[Mapping[str, Header]] = {
    "x-request-id": Header("The id of the call: the client's own `X-Request-Id`, or a new one."),
    "openai-processing-ms": Header("Milliseconds until the answer began.", "integer", pages=False),
}

#: Of answers by an account.
OF_ACCOUNT: Final[Mapping[str, Header]] = {
    "x-upstream-request-id": Header("The upstream's own id of the request, if it told one."),
    "x-qwen-proxy-account": Header("The account that answered."),
    "x-qwen-proxy-attempts": Header("How often upstreams were asked.", "integer"),
    "x-qwen-proxy-changed": Header(
        "What was changed of the request for the upstream: `field:what, …`."
    ),
    "x-qwen-proxy-tools": Header(
        "Which tools this server has run for a whole answer: `time.now=2,python.run=1`."
    ),
    "x-qwen-proxy-cache": Header("`hit`: the response cache answered; `miss`: it could not."),
    "server-timing": Header("The stages of the call (W3C Server Timing), in milliseconds."),
}

#: Of counts of tokens.
OF_COUNTS: Final[Mapping[str, Header]] = {
    "x-qwen-proxy-tokens": Header("How they were counted: `exact`, `calibrated` or `estimated`."),
}

#: Of errors that may pass.
OF_ERRORS: Final[Mapping[str, Header]] = {
    "retry-after": Header("Seconds until another attempt may succeed.", "integer"),
    "x-should-retry": Header(
        "`true` or `false`: whether the official SDKs try again.", pages=False
    ),
}

#: Of calls with a client key that has limits.
OF_LIMITS: Final[Mapping[str, Header]] = {
    "x-ratelimit-limit-requests": Header("Requests within 60 s that the key may make.", "integer"),
    "x-ratelimit-remaining-requests": Header("How many of them are left.", "integer"),
    "x-ratelimit-reset-requests": Header("Until all are there again: `200ms`, `1s`, `6m0s`."),
    "x-ratelimit-limit-tokens": Header(
        "Tokens that the key may use: within 60 s, or of the day where less is left of those.",
        "integer",
    ),
    "x-ratelimit-remaining-tokens": Header("How many of them are left.", "integer"),
    "x-ratelimit-reset-tokens": Header("Until all are there again: `200ms`, `1s`, `6m0s`."),
}

#: Of answers in Anthropic's form, besides all others.
OF_ANTHROPIC: Final[Mapping[str, Header]] = {
    "request-id": Header("As `x-request-id`.", pages=False),
    **{
        f"anthropic-ratelimit-{what}-{part}": Header(meaning, schema, pages=False)
        for what in ("requests", "tokens")
        for part, meaning, schema in (
            ("limit", f"As `x-ratelimit-limit-{what}`.", "integer"),
            ("remaining", f"As `x-ratelimit-remaining-{what}`.", "integer"),
            ("reset", "When all are there again (RFC 3339).", "string"),
        )
    },
}

#: Of videos that are being made.
OF_VIDEOS: Final[Mapping[str, Header]] = {
    "openai-poll-after-ms": Header("When the official SDKs should ask again.", "integer", False),
}

#: Of the bytes of videos.
OF_PARTS: Final[Mapping[str, Header]] = {
    "accept-ranges": Header("`bytes`: parts may be asked for.", pages=False),
    "content-range": Header("Which part it is.", pages=False),
}

#: All of them.
SENT: Final[Mapping[str, Header]] = {
    **ALWAYS,
    **OF_ACCOUNT,
    **OF_COUNTS,
    **OF_ERRORS,
    **OF_LIMITS,
    **OF_ANTHROPIC,
    **OF_VIDEOS,
    **OF_PARTS,
}

#: What web pages of other origins may read: the value of `Access-Control-Expose-Headers`.
EXPOSED: Final = ", ".join(name for name, header in SENT.items() if header.pages)

#: What clients may send besides what HTTP itself has.
READ: Final[Mapping[str, str]] = {
    "authorization": "`Bearer KEY`: the client key; or a web token of chat.qwen.ai.",
    "x-api-key": "The client key, as Anthropic's clients send it.",
    "x-qwen-token": "A web token of chat.qwen.ai, beside a client key.",
    "x-qwen-account": "The name of the one account that may answer.",
    "x-request-id": "An id for the call: at most 128 letters, digits and `._:/+=@-`.",
    "cache-control": "`no-cache`: no answer of the response cache; `no-store`: none is kept.",
    "user-agent": "Passed on as it is: some plans serve coding agents only, and know them by it.",
    "anthropic-version": "Has answers and errors in Anthropic's form.",
    "openai-beta": "The version of Responses over WebSocket.",
    "range": "Of a file or a video: the part that is wanted.",
    "if-range": "With it the whole is sent, and no part.",
    "x-dashscope-wait-timeout": "Passed on to Model Studio.",
    "x-dashscope-cachecontrol": "Passed on to Model Studio.",
    "x-dashscope-datainspection": "Passed on to Model Studio.",
    "x-dashscope-session": "Passed on to Model Studio; also each header that begins so.",
    "x-csrf-token": "Of scripts of the console: shows that one of its own pages asks.",
    "x-qwen-proxy-hops": "How many proxies of this kind the call has gone through.",
    **dict.fromkeys(
        (name[5:].replace("_", "-").lower() for name in AGENTS),
        "Names the conversation, which stays on the account that has it in its cache.",
    ),
}
