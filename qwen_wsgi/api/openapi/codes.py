"""Every `code` of an error that the proxy itself gives, with its statuses and what it means.

A test compares the table with the code, both ways. Codes that an upstream gives are passed on as
they are, where they mean nothing that has a code here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from qwen_wsgi.upstream.failures.causes import CAUSES


class Code(NamedTuple):
    """One code.

    Attributes:
        statuses: with which it comes; () where it is only in an event of a stream.
        meaning: what happened, and what to do, in a sentence or two.
    """

    statuses: tuple[int, ...]
    meaning: str


#: About the caller: its key, and what it may do.
_CALLER: Final[Mapping[str, Code]] = {
    "missing_api_key": Code((401,), "No client key was sent, and this server needs one."),
    "invalid_api_key": Code((401,), "The client key is none of this server's."),
    "revoked_api_key": Code((401,), "The client key was revoked."),
    "expired_api_key": Code((401,), "The time of the client key is over, or it was replaced."),
    "invalid_web_token": Code((400, 401), "The web token of chat.qwen.ai cannot be read."),
    "expired_web_token": Code((401,), "The web token has expired: log in with a browser again."),
    "network_not_allowed": Code((403,), "The key may not be used from the caller's network."),
    "admin_key_required": Code((403,), "This needs a key of an admin."),
    "metrics_not_allowed": Code((403,), "The key may not read the metrics."),
    "local_only": Code((403,), "Only programs on the server's own machine may ask for this."),
    "host_not_allowed": Code(
        (403,),
        "Without client keys only names of this machine are served, and the `Host` header has "
        "another one.",
    ),
    "origin_not_allowed": Code((403,), "The web page that asks may not call this server."),
    "model_not_allowed": Code((403,), "The key may not use the model."),
    "tool_not_allowed": Code((403,), "The key may not use the tools of that label or address."),
    "tool_needs_approval": Code(
        (403,),
        "The operator does not trust the tool, and this API cannot ask before each call: use "
        "Responses.",
    ),
    "unknown_tool_server": Code((400,), "The server offers no tools with that label."),
    "too_many_tools": Code((400,), "The request has too many tools that the server runs."),
    "tool_not_offered": Code((400,), "The approved tool is not among the request's tools."),
    "approval_request_not_found": Code(
        (400,), "The approval belongs to no question of this conversation."
    ),
    "tool_rounds_exceeded": Code(
        (429,), "In an item or a text: the rounds of tools of one answer are used up."
    ),
    "tool_time_exceeded": Code(
        (429,), "In an item or a text: the time for tools of one answer is over."
    ),
    "tool_host_not_allowed": Code(
        (400,),
        "The server connects to no server of tools at this address: the operator has not allowed "
        "its host.",
    ),
    "tool_server_failed": Code(
        (424,), "The server of tools at the request's address does not answer, or refuses."
    ),
    "tool_server_unavailable": Code((503,), "A server of tools cannot be used now."),
    "tools_unavailable": Code((503,), "The process that runs tools does not answer."),
    "account_not_allowed": Code((403,), "The key may not use the account."),
    "web_account_off": Code((403,), "The server takes no web tokens (`QWEN_PROXY_WEB`)."),
    "web_token_required": Code((403,), "This needs a web token of the caller's own."),
    "call_cancelled": Code((403,), "An admin has ended the call while it ran."),
    "rate_limit_exceeded": Code(
        (429,),
        "A limit of the client key, or of the account behind it, is used up for now. "
        "`Retry-After` says when to try again.",
    ),
    "insufficient_quota": Code(
        (429,),
        "Money or quota is used up: of the client key, or of the accounts. Trying again soon does "
        "not help.",
    ),
    "overloaded": Code((503,), "The server has as many calls as it takes: try again soon."),
    "keys_unavailable": Code((503,), "The server cannot read its client keys now."),
}

#: About the request as it is written.
_REQUEST: Final[Mapping[str, Code]] = {
    "invalid_json": Code((400,), "The body, or an argument in it, is no JSON."),
    "invalid_type": Code((400,), "A member has a wrong type."),
    "invalid_value": Code((400,), "A member has a value that is not possible."),
    "missing_required_parameter": Code((400,), "A member or a field is missing."),
    "unsupported_parameter": Code(
        (400,), "A member cannot be honoured, and to leave it out would change the answer."
    ),
    "unsupported_value": Code((400,), "A part of the content has a kind that is not supported."),
    "unsupported_content": Code((400,), "The model does not take content of this kind."),
    "unsupported_endpoint": Code((400,), "No model of Qwen can do what this endpoint is for."),
    "unsupported_operation": Code((400,), "This cannot be done with this object."),
    "unsupported_variant": Code((400,), "Videos have no such variant."),
    "empty_array": Code((400,), "An array must have at least one entry."),
    "empty_string": Code((400,), "A text must not be empty."),
    "array_above_max_length": Code((400,), "An array has too many entries."),
    "string_above_max_length": Code((400,), "A text is too long."),
    "object_above_max_properties": Code((400,), "An object has too many members."),
    "integer_above_max_value": Code((400,), "A number is too large."),
    "integer_below_min_value": Code((400,), "A number is too small."),
    "integer_out_of_range": Code((400,), "A number is too small or too large."),
    "decimal_out_of_range": Code((400,), "A number is too small or too large."),
    "token_input_unsupported": Code((400,), "Token ids are not taken: send texts."),
    "too_many_images": Code((400,), "The model takes fewer pictures."),
    "invalid_image_format": Code((400,), "A picture is no URL and no data URL."),
    "invalid_content_type": Code((400,), "The body must be a form (multipart/form-data)."),
    "invalid_form": Code((400,), "The form is broken."),
    "wrong_endpoint_for_model": Code((400,), "The model is served by another endpoint."),
    "request_too_large": Code((400, 413), "The body is larger than the server takes."),
    "file_too_large": Code((413,), "The file is larger than its purpose allows."),
    "request_timeout": Code((408,), "The body did not come in time."),
    "unsupported_content_encoding": Code((415,), "The body has a coding that is not known."),
    "method_not_allowed": Code((405,), "The URL has other methods; `Allow` lists them."),
    "unknown_url": Code((404,), "There is no such URL."),
    "content_filter": Code((400,), "The upstream's inspection refuses the content."),
    "context_length_exceeded": Code(
        (400,), "The prompt is longer than the model's context, or than what can be kept."
    ),
    "web_search_unavailable": Code((400,), "The model has no web search."),
    "image_too_large": Code((413,), "A picture is larger than the web API takes."),
    "web_request_too_large": Code((413,), "The web API takes no request of this size."),
    "range_not_satisfiable": Code((416,), "The file has no such part (`Range`)."),
    "loop_detected": Code((508,), "The request came from this proxy: an account leads to itself."),
}

#: About what is asked for.
_OBJECTS: Final[Mapping[str, Code]] = {
    "model_not_found": Code((403, 404), "No account of this server has the model."),
    "account_not_found": Code((400, 503), "The account that was named is not here."),
    "not_found": Code((404,), "The caller has nothing with this id."),
    "previous_response_not_found": Code((400,), "The response to be continued is not stored."),
    "item_not_found": Code((400,), "An item that the input names is not stored."),
    "call_not_found": Code((404,), "No call with this id is in flight."),
    "key_not_found": Code((404,), "There is no client key with this id or name."),
    "name_taken": Code((409,), "Another client key has the name."),
    "no_ledger": Code((404,), "The server keeps no record of calls (`QWEN_PROXY_LEDGER_DAYS=0`)."),
    "video_not_found": Code((404,), "The caller has no such video."),
    "video_not_ready": Code((400,), "The video is still being made."),
    "video_expired": Code((404,), "The video is gone: it was kept for 24 hours."),
    "too_many_files": Code((400,), "The caller has as many files as a client may have."),
    "too_many_batches": Code((400,), "The caller has as many batches as a client may have."),
}

#: About the server itself, and its accounts.
_SERVER: Final[Mapping[str, Code]] = {
    "internal_error": Code((500,), "A fault of the proxy; its log has more by the request id."),
    "proxy_stopping": Code((503,), "The server stops or restarts: try again."),
    "server_stopping": Code((503,), "The server stopped while the body came: try again."),
    "proxy_out_of_files": Code((503,), "The server has no file descriptor left."),
    "proxy_out_of_memory": Code((503,), "The server has no memory left."),
    "proxy_disk_full": Code((503,), "The server's disk is full."),
    "no_account": Code((503,), "The server has no account that could be asked."),
    "no_usable_account": Code((503,), "No account can be used now; the message says why."),
    "upstream_unavailable": Code((503,), "All accounts for the model pause after failures."),
    "credentials_missing": Code((503,), "The account has no login or key."),
    "credentials_expired": Code((503,), "The login of the account has expired."),
    "credentials_rejected": Code((503,), "The host refuses the login or key of the account."),
    "oauth_tier_closed": Code((503,), "The host serves the plan of the login no more."),
    "not_available_here": Code((501,), "No account here has a host that can do this."),
    "coding_agents_only": Code((403,), "The plan of the account serves coding agents only."),
    "login_not_refreshed": Code((502,), "The login could not be refreshed; the message says why."),
    "ledger_unavailable": Code((503,), "The record of calls cannot be read now."),
    "file_store_unavailable": Code((503,), "What is known of files cannot be read or kept now."),
    "video_store_unavailable": Code((503,), "What is known of videos cannot be read or kept now."),
    "response_store_unavailable": Code((503,), "Stored responses cannot be read or kept now."),
    "state_key_unavailable": Code((503,), "The file that signs ids cannot be read now."),
    "shared_store_away": Code((503,), "The Redis that boxes share does not answer."),
    "shared_store_unreadable": Code((503,), "What boxes share cannot be read by this box."),
    "box_does_not_answer": Code((503,), "The box that makes the response does not answer."),
    "workers_silent": Code((503,), "Some workers did not answer in time: try again."),
    "background_unavailable": Code((503,), "The queue of responses cannot be used now."),
    "background_lost": Code((), "The server ended while it made the response: ask again."),
    "background_timeout": Code((), "The response was not ready in time."),
    "background_not_stored": Code((), "The response was made, and could not be stored."),
    "too_many_looks": Code((503,), "The hosts are asked for the state of tasks too often."),
}

#: About upstreams: what they have answered, or that they have not.
_UPSTREAMS: Final[Mapping[str, Code]] = {
    "upstream_account_refused": Code((502,), "The upstream refuses the credential of the account."),
    "upstream_bad_answer": Code((502,), "The upstream's answer has not what it should have."),
    "upstream_unexpected": Code((502,), "The upstream's answer has not what it should have."),
    "upstream_bad_url": Code((502,), "The base URL of the account cannot be used."),
    "upstream_challenge": Code((502, 503), "The upstream's firewall wants a human."),
    "upstream_internal_error": Code((502,), "The upstream failed inside."),
    "upstream_no_picture": Code((502,), "The upstream made no picture."),
    "upstream_refused": Code((502,), "The upstream refuses the request."),
    "upstream_result_missing": Code((502,), "The file that the upstream made is not there."),
    "upstream_result_refused": Code((502,), "The file's address is none that may be fetched."),
    "upstream_task_failed": Code((502,), "The task at the upstream has failed."),
    "upstream_task_cancelled": Code((502,), "The task at the upstream was cancelled."),
    "upstream_too_large": Code((502,), "The upstream's answer is larger than the server takes."),
    "upstream_upload_failed": Code((502,), "The upstream did not take the file."),
    "web_token_rejected": Code((502,), "chat.qwen.ai refuses the web token."),
    "web_token_not_refreshed": Code((502,), "chat.qwen.ai gave no new token."),
    "task_may_run": Code(
        (504,), "The answer of the upstream was lost, and the video may be made all the same."
    ),
    "too_many_tool_calls": Code((429,), "The answer has as many runs of tools as it may have."),
}

#: Of WebSockets.
_WEBSOCKETS: Final[Mapping[str, Code]] = {
    "websocket_not_supported": Code((426,), "A WebSocket cannot begin here: use POST."),
    "websocket_limit_reached": Code((426,), "There are as many WebSockets as allowed: use POST."),
    "websocket_connection_limit_reached": Code((400,), "A connection ends after an hour."),
    "websocket_stream_limit_reached": Code((400,), "A connection has as many streams as allowed."),
    "too_many_queued_requests": Code(
        (429,), "A connection has as many waiting requests as allowed."
    ),
    "invalid_stream_id": Code((400,), "The id of a stream is not possible."),
}

#: Of the console.
_CONSOLE: Final[Mapping[str, Code]] = {
    "session_ended": Code((401,), "The session of the browser has ended: sign in again."),
    "csrf_token_wrong": Code((403,), "The page that asks is too old: load it again."),
    "too_many_tries": Code((429,), "Wrong keys were tried too often: wait."),
}

#: By the part of the server that they are about.
GROUPS: Final[Mapping[str, Mapping[str, Code]]] = {
    "The caller": _CALLER,
    "The request": _REQUEST,
    "What is asked for": _OBJECTS,
    "The server and its accounts": _SERVER,
    "Upstreams": _UPSTREAMS,
    "WebSockets": _WEBSOCKETS,
    "The console": _CONSOLE,
}

CODES: Final[Mapping[str, Code]] = {
    name: code for group in GROUPS.values() for name, code in group.items()
}

#: Codes that are made of the cause of a failure.
BY_CAUSE: Final[Mapping[str, Code]] = {
    f"upstream_{name}": Code((cause.status,), f"{cause.meaning[0].upper()}{cause.meaning[1:]}.")
    for name, cause in CAUSES.items()
    if name in ("timeout", "unreachable", "connect_timeout", "closed", "broken", "empty")
    or name in ("tls", "proxy")
}


def of_status(status: int) -> Iterator[str]:
    """The codes that come with a status, in the order of the tables."""
    for name, code in (*CODES.items(), *BY_CAUSE.items()):
        if status in code.statuses:
            yield name
