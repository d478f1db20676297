"""What an admin's key may do, what each client may see of its own, and web accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qwen_wsgi.accounting.usage import BY
from qwen_wsgi.api.openapi.json_schema import (
    Schema,
    answer,
    array,
    flag,
    integer,
    listed,
    mapping,
    maybe,
    number,
    ref,
    request,
    text,
)
from qwen_wsgi.api.openapi.operations import JSON, Access, Answer, Operation, Query
from qwen_wsgi.api.web.chats import MOST as MOST_CHATS
from qwen_wsgi.in_flight import MOST as MOST_CALLS

_TIME: Final = integer("Seconds since 1970.")
_DURATION: Final = {"type": ["string", "integer"], "description": "`30d`, `1h`, or seconds."}

#: The members of a client key that an admin may set.
KEY: Final[Mapping[str, Schema]] = {
    "name": text("Of the person or program; unique among the keys that are not revoked."),
    "expires": {**_DURATION, "description": "From now: `30d`, `1h`, or seconds."},
    "expires_at": integer("Seconds since 1970, in place of `expires`."),
    "rpm": integer("Requests within 60 s.", minimum=1),
    "tpm": integer("Tokens within 60 s.", minimum=1),
    "tokens_per_day": integer("Tokens until midnight.", minimum=1),
    "money_per_month": number("Money until the month ends."),
    "concurrency": integer("Calls at a time.", minimum=1),
    "models": array(text(), "Patterns of the models that it may use; none: all."),
    "accounts": array(text(), "Names of the accounts that it may use; none: all."),
    "cidr": array(text(), "Networks from which it may be used; none: all."),
    "tools": array(text(), "Patterns of the proxy's tools that it may use; without any: none."),
    "tools_always": flag("Its chat calls get those tools without naming them."),
    "admin": flag("It may use `/admin/v1`."),
    "metrics": flag("It may read `/metrics`."),
    "note": text("For people."),
    "cache": {**_DURATION, "description": "How long answers are kept: `1h`, seconds, or `off`."},
}

#: A client key as it is told.
_KEY: Final[Mapping[str, Schema]] = {
    "id": text(),
    "name": text(),
    "created_at": _TIME,
    "expires_at": maybe(_TIME),
    "revoked_at": maybe(_TIME),
    "rpm": maybe(integer()),
    "tpm": maybe(integer()),
    "tokens_per_day": maybe(integer()),
    "money_per_month": maybe(number()),
    "concurrency": maybe(integer()),
    "models": array(text()),
    "accounts": array(text()),
    "cidr": array(text()),
    "tools": array(text()),
    "tools_always": flag(),
    "admin": flag(),
    "metrics": flag(),
    "note": text(),
    "cache": maybe(integer("Seconds; 0 keeps none, null leaves it to the server.")),
    "last_used_at": maybe(_TIME),
}

_USAGE_ROW: Final = answer(
    {
        "key": text("The day, hour, client, account, model, …"),
        "calls": integer("Those that were not refused."),
        "refused": integer(),
        "failed": integer(),
        "input_tokens": integer(),
        "cached_tokens": integer(),
        "output_tokens": integer(),
        "reasoning_tokens": integer(),
        "unknown_usage": integer("Calls of which nothing is known."),
        "cache_hits": integer("Calls that the response cache has answered."),
        "money": maybe(number("Null where there is no known price.")),
        "saved_by_cache": maybe(number()),
        "currency": maybe(text()),
    }
)

#: How the windows of an account's plan are.
_PLAN: Final = answer(
    {
        "plan": text(),
        "limits": text("Whether the vendor states them.", "stated", "assumed"),
        "counted": flag(),
        "windows": array(mapping()),
    }
)

SCHEMAS: Final[Mapping[str, Schema]] = {
    "client_key": answer(_KEY),
    "new_client_key": answer({**_KEY, "key": text("The secret, which is told this once.")}),
    "client_keys": listed(ref("client_key")),
    "account": answer(
        {
            "name": text(),
            "kind": text(),
            "origin": text("Where it comes from."),
            "endpoint": text(),
            "state": text(),
            "detail": text(),
            "credential": text("Masked."),
            "remedy": text("What the operator should do, or empty."),
            "usable": flag(),
            "cause": text(),
            "left_alone_s": number("Seconds until it is asked again."),
            "last_call": maybe(
                answer({"age_s": number(), "cause": text(), "answered_s": maybe(number())})
            ),
            "plan": maybe(_PLAN),
        }
    ),
    "accounts": listed(ref("account")),
    "open_call": answer(
        {
            "object": text("", "call"),
            "id": text(),
            "client": text(),
            "client_id": text(),
            "address": text(),
            "method": text(),
            "endpoint": text(),
            "stream": flag(),
            "account": maybe(text()),
            "model": maybe(text()),
            "upstream_model": maybe(text()),
            "state": text("", "waiting", "queued", "streaming"),
            "started_at": number(),
            "seconds": number(),
            "seconds_to_first_byte": maybe(number()),
            "received_bytes": integer(),
            "streamed_tokens": integer(),
            "seconds_queued": number(),
            "seconds_connecting": number(),
            "longest_gap": number(),
            "gaps": array(answer({"after": number(), "seconds": number()})),
            "attempts": integer(),
            "worker": integer(),
        }
    ),
    "open_calls": listed(
        ref("open_call"),
        has_more=flag("There are older ones."),
        workers=integer("How many have told theirs."),
        silent_workers=integer("How many have not, in time."),
    ),
    "cancelled_call": answer(
        {
            "object": text("", "call"),
            "id": text(),
            "cancelled": integer("How many calls with this id are ended."),
        }
    ),
    "usage": answer(
        {
            "since": _TIME,
            "until": _TIME,
            "by": text("", *BY),
            "rows": array(_USAGE_ROW),
            "boxes": answer({"counted": integer(), "others_unknown": flag()}),
        },
        optional=("boxes",),
    ),
    "own_usage": answer(
        {
            "object": text("", "usage"),
            "client": text(),
            "today": ref("usage"),
            "month": ref("usage"),
            "limits": maybe(
                {
                    "type": "object",
                    "additionalProperties": answer(
                        {"limit": number(), "remaining": number(), "resets_in_s": integer()}
                    ),
                }
            ),
        }
    ),
    "token_validation": answer(
        {
            "object": text("", "web_token.validation", "login.validation"),
            "valid": flag(),
            "expires_at": maybe(number("Seconds since 1970.")),
        }
    ),
    "fresh_token": answer(
        {
            "object": text("", "web_token", "login"),
            "expires_at": maybe(number("Seconds since 1970.")),
        }
    ),
    "deleted_chats": answer(
        {
            "object": text("", "chats.deleted"),
            "all": flag(),
            "deleted": array(text()),
            "failed": array(answer({"id": text(), "code": maybe(text()), "message": text()})),
        },
        optional=("all", "deleted", "failed"),
    ),
}

_ADMIN_TAG: Final = "Administration"
_USAGE_TAG: Final = "Usage"
_WEB_TAG: Final = "Web accounts"

_TOLD: Final = Answer("The key, without its secret.", {JSON: ref("client_key")})
_WEB_BODY: Final = {
    JSON: request(
        {
            "token": text("A compressed web token; else that of a header counts."),
            "account": text("For an admin without a token: the login of this server."),
        }
    )
}

OPERATIONS: Final = (
    Operation(
        "GET",
        "/v1/usage",
        _USAGE_TAG,
        "What the caller has used",
        (Answer("Today and this month, by model; and the limits.", {JSON: ref("own_usage")}),),
        errors=(404,),
    ),
    Operation(
        "GET",
        "/admin/v1/usage",
        _USAGE_TAG,
        "What all have used",
        (Answer("The numbers.", {JSON: ref("usage")}),),
        query=(
            Query("by", text("What is summed up.", *BY)),
            Query("since", text("`30d` (ago), `2026-11-01`, `today`, `month`, or seconds.")),
            Query("until", text("The same; `now` without it.")),
        ),
        errors=(400, 404),
        access=Access.ADMIN,
    ),
    Operation(
        "GET",
        "/admin/v1/keys",
        _ADMIN_TAG,
        "All client keys",
        (Answer("The oldest first, revoked ones too.", {JSON: ref("client_keys")}),),
        errors=(400, 409),
        access=Access.ADMIN,
    ),
    Operation(
        "POST",
        "/admin/v1/keys",
        _ADMIN_TAG,
        "Make a client key",
        (Answer("The key, with its secret.", {JSON: ref("new_client_key")}, status=201),),
        example={"name": "anna", "expires": "30d", "rpm": 60},
        body={JSON: request(KEY, required=("name",), additionalProperties=False)},
        errors=(409,),
        access=Access.ADMIN,
    ),
    Operation(
        "GET",
        "/admin/v1/keys/{wanted}",
        _ADMIN_TAG,
        "A client key, by its id or name",
        (_TOLD,),
        errors=(400, 404),
        access=Access.ADMIN,
    ),
    Operation(
        "PATCH",
        "/admin/v1/keys/{wanted}",
        _ADMIN_TAG,
        "Change a client key",
        (_TOLD,),
        body={JSON: request(KEY, additionalProperties=False)},
        needs_body=False,
        errors=(404, 409),
        access=Access.ADMIN,
    ),
    Operation(
        "DELETE",
        "/admin/v1/keys/{wanted}",
        _ADMIN_TAG,
        "Revoke a client key",
        (_TOLD,),
        errors=(400, 404),
        access=Access.ADMIN,
    ),
    Operation(
        "POST",
        "/admin/v1/keys/{wanted}/rotate",
        _ADMIN_TAG,
        "Give a client key a new secret",
        (Answer("The key, with its new secret.", {JSON: ref("new_client_key")}),),
        body={
            JSON: request(
                {"grace": {**_DURATION, "description": "How long the old one works on."}},
                additionalProperties=False,
            )
        },
        needs_body=False,
        errors=(404, 409),
        access=Access.ADMIN,
    ),
    Operation(
        "GET",
        "/admin/v1/accounts",
        _ADMIN_TAG,
        "The state of the accounts",
        (Answer("As `qwen-proxy status` shows them.", {JSON: ref("accounts")}),),
        access=Access.ADMIN,
    ),
    Operation(
        "GET",
        "/admin/v1/calls",
        _ADMIN_TAG,
        "The calls in flight",
        (Answer("Those of all workers, the newest last.", {JSON: ref("open_calls")}),),
        query=(Query("limit", integer("The most calls.", minimum=1, maximum=MOST_CALLS)),),
        errors=(400,),
        access=Access.ADMIN,
    ),
    Operation(
        "DELETE",
        "/admin/v1/calls/{id}",
        _ADMIN_TAG,
        "End a call",
        (Answer("It is ended, and its client told so.", {JSON: ref("cancelled_call")}),),
        errors=(404,),
        access=Access.ADMIN,
    ),
    Operation(
        "POST",
        "/v1/validate",
        _WEB_TAG,
        "Whether a web token is valid",
        (Answer("Whether it is, whose, and until when.", {JSON: ref("token_validation")}),),
        body=_WEB_BODY,
        needs_body=False,
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/refresh",
        _WEB_TAG,
        "A fresh web token",
        (Answer("The token; for an admin, what became of the login.", {JSON: ref("fresh_token")}),),
        body=_WEB_BODY,
        needs_body=False,
        asks_upstream=True,
    ),
    Operation(
        "DELETE",
        "/v1/chats/delete",
        _WEB_TAG,
        "Delete chats of a web account",
        (Answer("Which are gone.", {JSON: ref("deleted_chats")}),),
        body={
            JSON: request(
                {
                    "ids": array(text(), "The chats.", minItems=1, maxItems=MOST_CHATS),
                    "all": flag("All of them, in place of `ids`."),
                }
            )
        },
        asks_upstream=True,
    ),
)
