"""Every sign of a cause, by the bodies in which it was seen, and what follows from each cause."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from qwen_wsgi.errors import AccountUnavailable, Scope, UpstreamError, UpstreamTimeout
from qwen_wsgi.hosts import Family
from qwen_wsgi.sandbox import errors as sandbox_errors
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.failures.patterns import ROWS, ErrorReport, cause_of

DASHSCOPE, CODING, TOKEN = Family.DASHSCOPE, Family.CODING_PLAN, Family.TOKEN_PLAN
PORTAL, SANDBOX, OTHER = Family.PORTAL, Family.SANDBOX, Family.OTHER
BAD = "invalid_request_error"

#: Texts of the vendor's error page.
BILLING = "You exceeded your current quota, please check your plan and billing details."
ALLOCATED = "Allocated quota exceeded, please increase your quota limit."
FREE = "Free allocated quota exceeded."
FREE_ONLY = (
    "The free tier of the model has been exhausted. If you wish to continue access the model on a "
    'paid basis, please disable the "use free tier only" mode in the management console.'
)
BURST = (
    "Request rate increased too quickly. To ensure system stability, please adjust your client "
    "logic to scale requests more smoothly over time."
)
CAPACITY = "Your requests are being throttled due to system capacity limits."
EXPIRED = "invalid access token or token expired"
INAPPROPRIATE = "Input data may contain inappropriate content."
AGENTS = "Coding Plan is currently only available for Coding Agents"
#: The whole page of Aliyun's firewall, cut short.
WALL = (
    b'<!doctypehtml><html lang="en"><meta charset="utf-8"><meta name="aliyun_waf_aa" content="x">'
    b'<body><div id="captcha-element"></div></body></html>'
)
#: chat.qwen.ai, with HTTP 200.
PUNISHED = {
    "ret": ["FAIL_SYS_USER_VALIDATE", "RGV587_ERROR::SM::"],
    "data": {"url": "https://x.example/_____tmd_____/punish?action=captcha"},
}
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def compat(code: str | None, message: str, type: str | None = None) -> dict[str, Any]:
    error = {"message": message, "type": type or code, "param": None, "code": code}
    return {"error": error, "request_id": "6f1c2b9e"}


def native(code: str, message: str) -> dict[str, Any]:
    return {"request_id": "6f1c2b9e", "code": code, "message": message}


#: Host, status, body; the cause, and the client's status and code. A status of None is an error
#: inside a 200.
#: As the servers say it, with the status; seen in public reports unless a source is named.
MEDIA_REFUSALS = [
    (
        400,
        "<400> InternalError.Algo.InvalidParameter: The provided messages input is invalid. The "
        "error info is [Unexpected item type in content.]",
    ),
    (400, "Model do not support image input."),
    (400, "This model does not support image inputs."),
    (404, "No endpoints found that support image input"),
    (500, "image input is not supported by this server"),
    (
        500,
        "image input is not supported - hint: if this is unexpected, you may need to provide the "
        "mmproj",
    ),
    (500, 'Failed to parse messages: Unsupported content part type: "image_url"; messages = ['),
    (400, "Unsupported content part type for text-only server: image_url"),
    (400, "Qwen/Qwen3-Coder is not a multimodal model"),
    (400, "At most 0 image(s) may be provided in one prompt."),
    (400, "Invalid content type. image_url is only supported by certain models."),
    (
        400,
        "Failed to deserialize the JSON body into the target type: messages[137]: unknown variant "
        "`image_url`, expected `text` at line 1 column 460917",
    ),
    (
        422,
        "Failed to deserialize the JSON body into the target type: messages[0]: data did not match "
        "any variant of untagged enum ChatCompletionRequestContent at line 1 column 286017",
    ),
    (400, "messages.content.type 参数非法，取值范围 ['text']"),
    (400, "This model is missing data required for image input"),
]


CASES: list[tuple[Family, int | None, Any, str, int, str | None]] = [
    # firewalls
    (OTHER, 200, WALL, "challenge", 502, "upstream_challenge"),
    (DASHSCOPE, 405, WALL, "challenge", 502, "upstream_challenge"),
    (PORTAL, 200, PUNISHED, "challenge", 502, "upstream_challenge"),
    (OTHER, 403, b"<script src='/cdn-cgi/challenge-platform/x'>", "challenge", 502, None),
    # models that read no pictures
    *(
        (OTHER, status, compat("x", text), "input_refused", 400 if status == 500 else status, None)
        for status, text in MEDIA_REFUSALS
    ),
    # longer than the context
    (OTHER, 400, compat("context_length_exceeded", "why", BAD), "context_length", 400, None),
    (OTHER, 429, compat("1261", "Prompt exceeds max length"), "context_length", 400, None),
    *(
        (family, status, compat(code, text, BAD), "context_length", 400, "context_length_exceeded")
        for family, status, code, text in [
            (
                DASHSCOPE,
                400,
                "invalid_parameter_error",
                "Range of input length should be [1, 30720]",
            ),
            (CODING, 400, "InvalidParameter", "Range of input length should be [1, 98304]"),
            (
                DASHSCOPE,
                500,
                "InternalError.Algo",
                "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 9]",
            ),
            (
                DASHSCOPE,
                400,
                "invalid_parameter_error",
                "Total message token length exceed model limit (10000000 tokens).",
            ),
            (
                OTHER,
                400,
                None,
                "This model's maximum context length is 4096 tokens. However, you requested 5000 "
                "tokens (4500 in the messages, 500 in the completion).",
            ),
            (OTHER, 413, None, "prompt is too long: 210000 tokens > 200000 maximum"),
            (
                OTHER,
                400,
                "400",
                "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
            ),
            (
                OTHER,
                400,
                "400",
                "the request exceeds the available context size, try increasing it",
            ),
            (
                OTHER,
                400,
                None,
                "The input token count (1100000) exceeds the maximum number of tokens allowed (9).",
            ),
            (OTHER, 400, None, "Your request exceeded model token limit: 262144"),
            (OTHER, 400, None, "The prompt (total length 9) is too long to fit into the model"),
            (OTHER, None, None, "This model's maximum context length is 4096 tokens."),
        ]
    ),
    *(
        (OTHER, status, {"error": error}, "context_length", 400, "context_length_exceeded")
        for status, error in (
            # vLLM of 2026
            (
                400,
                {
                    "message": "You passed 99073 input tokens and requested 32000 output tokens. "
                    "However, the model's context length is only 131072 tokens, resulting in a "
                    "maximum input length of 99072 tokens. Please reduce the length of the input "
                    "prompt. (parameter=input_tokens, value=99073)",
                    "type": "BadRequestError",
                    "param": "input_tokens",
                    "code": 400,
                },
            ),
            (
                400,
                {
                    "message": "You passed 999999 input characters. However, the model's context "
                    "length is only 2048 tokens (at most 9 characters).",
                    "code": 400,
                },
            ),
            # vLLM of 2025
            (
                400,
                {
                    "message": "'max_tokens' or 'max_completion_tokens' is too large: 32000. This "
                    "model's maximum context length is 131072 tokens and your request has 99073 "
                    "input tokens (32000 > 131072 - 99073).",
                    "type": "BadRequestError",
                    "code": 400,
                },
            ),
            (
                400,
                {
                    "message": "The decoder prompt (length 40000) is longer than the maximum model "
                    "length of 32768. Make sure that `max_model_len` is no smaller than it."
                },
            ),
            # SGLang
            (
                400,
                {
                    "message": "Requested token count exceeds the model's maximum context length "
                    "of 64000 tokens. You requested a total of 71897 tokens."
                },
            ),
            (
                400,
                {"message": "Input length (9 tokens) exceeds the maximum allowed length (8)."},
            ),
            # llama.cpp
            (
                400,
                {
                    "code": 400,
                    "message": "request (9412 tokens) exceeds the available context size (8192 "
                    "tokens), try increasing it",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9412,
                    "n_ctx": 8192,
                },
            ),
            (
                500,
                {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"},
            ),
            (
                500,
                {
                    "message": "input (9000 tokens) is too large to process. increase the physical "
                    "batch size (current batch size: 512)",
                    "type": "server_error",
                },
            ),
            # Ollama
            (400, {"message": "prompt too long; exceeded max context length by 100918 tokens"}),
            (400, {"message": "the input length exceeds the context length"}),
            (500, {"message": "input length exceeds maximum context length"}),
            # LM Studio
            (
                400,
                {
                    "message": "The number of tokens to keep from the initial prompt is greater "
                    "than the context length. Try to load the model with a larger context length."
                },
            ),
            (
                400,
                {
                    "message": "Trying to keep the first 9000 tokens when context the overflows. "
                    "However, the model is loaded with context length of only 4096 tokens."
                },
            ),
            # OpenAI, chat and Responses
            (
                400,
                {
                    "message": "Your input exceeds the context window of this model. Please adjust "
                    "your input and try again.",
                    "type": BAD,
                },
            ),
            (
                400,
                {
                    "message": "Input tokens exceed the configured limit of 272000 tokens. Your "
                    "messages resulted in 428548 tokens.",
                    "type": BAD,
                },
            ),
            # DeepSeek, OpenRouter, Mistral, Fireworks
            (
                400,
                {
                    "message": "This model's maximum context length is 131072 tokens. However, you "
                    "requested 140000 tokens (130000 in the messages, 10000 in the completion).",
                    "type": BAD,
                    "code": BAD,
                },
            ),
            (
                400,
                {
                    "message": "This endpoint's maximum context length is 131072 tokens. However, "
                    "you requested about 140000 tokens (139000 of text input).",
                    "code": 400,
                },
            ),
            (
                400,
                {
                    "message": "Prompt contains 140000 tokens and 0 draft tokens, too large for "
                    "model with 131072 maximum context length"
                },
            ),
            (
                400,
                {"message": "The prompt is too long: 200000, model maximum context length: 131071"},
            ),
            # Moonshot, Zhipu, MiniMax, Volcengine, SiliconFlow
            (
                400,
                {
                    "message": "Invalid request: Your request exceeded model token limit: 262144 "
                    "(requested: 300000)",
                    "type": BAD,
                },
            ),
            (400, {"message": "Invalid request: Input token length too long", "type": BAD}),
            (400, {"code": "1261", "message": "whatever"}),
            (400, {"code": "400", "message": "Prompt 超长"}),
            (400, {"message": "Messages exceed max message tokens: 12345"}),
            (
                400,
                {"message": "Prompt has 140,000 tokens, but the configured context size is 9"},
            ),
            (400, {"message": "invalid params, context window exceeds limit (2013)"}),
            (
                400,
                {
                    "code": "OutofContextError",
                    "message": "Total tokens of image and text exceed max message tokens.",
                    "type": "BadRequest",
                },
            ),
            (
                400,
                {"message": "length of prompt_tokens (140000) must be less than max_seq_len (9)."},
            ),
            # others
            (
                400,
                {
                    "message": "This model's maximum prompt length is 131072 but the request "
                    "contains 537812 tokens."
                },
            ),
            (
                413,
                {
                    "message": "Please reduce the length of the messages or completion.",
                    "param": "m",
                },
            ),
            (400, {"message": "prompt token count of 130000 exceeds the limit of 128000"}),
            (400, {"message": "Input is too long for requested model."}),
            (
                400,
                {"message": "input length and `max_tokens` exceed context limit: 18 + 21 > 9"},
            ),
            (
                422,
                {
                    "message": "Input validation error: `inputs` tokens + `max_new_tokens` must be "
                    "<= 1512. Given: 1584 `inputs` tokens and 512 `max_new_tokens`"
                },
            ),
            (
                400,
                {"message": "too many tokens: number of tokens in the prompt cannot exceed 9"},
            ),
            (
                400,
                {
                    "message": "The sum of prompt length (40000.0), query length (0) should not "
                    "exceed max_num_tokens (8192)"
                },
            ),
            (400, {"message": "Input exceeds the maximum allowed input length of 262,144 tokens"}),
            (
                400,
                {
                    "message": "litellm.ContextWindowExceededError: OpenAIException "
                    '- {"error":{"message":"too much"}}'
                },
            ),
        )
    ),
    # Limits of the answer, and of the minute: a shorter history would not help.
    *(
        (OTHER, status, {"error": {"message": message, "type": BAD}}, cause, client, None)
        for status, message, cause, client in (
            (
                400,
                "max_tokens is too large: 200000. This model supports at most 128000 completion "
                "tokens, whereas you provided 200000.",
                "bad_request",
                400,
            ),
            (400, "Range of max_tokens should be [1, 8192]", "bad_request", 400),
            (400, "max_new_tokens must be <= 1024", "bad_request", 400),
            (429, "Too many tokens, please wait before trying again.", "rate_limited", 429),
        )
    ),
    # content inspection
    (
        DASHSCOPE,
        400,
        compat("data_inspection_failed", "x"),
        "content_filter",
        400,
        "content_filter",
    ),
    (
        DASHSCOPE,
        None,
        compat("response_data_inspection_failed", "x"),
        "content_filter",
        400,
        "content_filter",
    ),
    (DASHSCOPE, 400, native("DataInspectionFailed", "x"), "content_filter", 400, None),
    (DASHSCOPE, 400, compat("CustomRoleBlocked", "x"), "content_filter", 400, None),
    (DASHSCOPE, 400, compat("IPInfringementSuspect", "x"), "content_filter", 400, None),
    (DASHSCOPE, 500, native("InternalError.Algo", INAPPROPRIATE), "content_filter", 400, None),
    (OTHER, 400, compat("1301", "unsafe"), "content_filter", 400, "content_filter"),
    # a search that the model does not have
    *(
        (family, 400, compat(code, text, BAD), "no_web_search", 400, "web_search_unavailable")
        for family, code, text in [
            (DASHSCOPE, "invalid_parameter_error", "This model does not support enable_search."),
            (TOKEN, "InvalidParameter", "The model qwen9 does not support web search."),
        ]
    ),
    # the request, under another code
    (
        OTHER,
        429,
        compat(
            "rate_limit_exceeded",
            "Request too large for gpt-4 in organization org-x on tokens per min (TPM): Limit 9, "
            "Requested 10.",
            "tokens",
        ),
        "over_token_limit",
        429,
        "rate_limit_exceeded",
    ),
    (
        DASHSCOPE,
        500,
        native("InternalError.Algo", "<400> InternalError.Algo.InvalidParameter: 'x' is wrong"),
        "bad_request",
        400,
        "InternalError.Algo",
    ),
    (
        DASHSCOPE,
        429,
        native("Throttling.AllocationQuota", "Maximum voice-clone voice limit exceeded."),
        "bad_request",
        400,
        "Throttling.AllocationQuota",
    ),
    # terms and money
    (CODING, 405, {"error": AGENTS}, "agents_only", 403, "coding_agents_only"),
    (CODING, 405, compat("agents_only", AGENTS, BAD), "agents_only", 403, "coding_agents_only"),
    (
        DASHSCOPE,
        400,
        compat("Arrearage", "Access denied, please make sure your account is in good standing."),
        "billing",
        429,
        "insufficient_quota",
    ),
    (
        DASHSCOPE,
        403,
        compat("AccessDenied", "please make sure your account is in good standing."),
        "billing",
        429,
        "insufficient_quota",
    ),
    (DASHSCOPE, 429, native("CommodityNotPurchased", "x"), "billing", 429, "insufficient_quota"),
    (DASHSCOPE, 429, native("PrepaidBillOverdue", "x"), "billing", 429, "insufficient_quota"),
    (DASHSCOPE, 429, native("PostpaidBillOverdue", "x"), "billing", 429, "insufficient_quota"),
    (OTHER, 429, compat("1113", "in arrears"), "billing", 429, "insufficient_quota"),
    (OTHER, 402, {"error": {"message": "Insufficient Balance"}}, "billing", 429, None),
    (OTHER, 402, b"", "billing", 429, "insufficient_quota"),
    (OTHER, 429, compat("insufficient_quota", BILLING), "billing", 429, "insufficient_quota"),
    (OTHER, None, compat("insufficient_quota", BILLING), "billing", 429, "insufficient_quota"),
    # windows of a plan
    *(
        (family, status, body, "plan_window_spent", 429, "insufficient_quota")
        for family, status, body in [
            (CODING, 429, compat("throttling", "hour allocated quota exceeded", BAD)),
            (CODING, 429, compat("insufficient_quota", "week allocated quota exceeded")),
            (CODING, 400, native("Throttling.AllocationQuota", "month allocated quota exceeded")),
            (
                TOKEN,
                429,
                compat(
                    "insufficient_quota",
                    "Your token-plan 5-hour quota has been exhausted. The quota will reset later.",
                ),
            ),
            (
                TOKEN,
                429,
                native("Throttling.AllocationQuota", "Your token-plan quota has been exhausted."),
            ),
            (TOKEN, None, native("Throttling", "Your token-plan quota has been exhausted.")),
            (
                OTHER,
                429,
                {"error": {"message": "Quota exceeded. It will reset at 2026-08-29 23:59:59."}},
            ),
            (
                OTHER,
                429,
                {"error": {"message": "You have exceeded the monthly usage quota, sorry."}},
            ),
            (
                OTHER,
                403,
                compat(
                    None, "You've reached your weekly (7-day) usage limit.", "access_terminated"
                ),
            ),
            (OTHER, 429, compat(None, "Weekly/Monthly Limit Exhausted")),
            (OTHER, 429, compat("1308", "已达到 5 小时的使用上限。")),
            (OTHER, 429, compat(None, "Usage limit reached for 5 hour.")),
            (OTHER, 402, {"error": {"message": "Your weekly limit reached (resets in 1 day)"}}),
        ]
    ),
    (
        CODING,
        429,
        compat("throttling", "concurrency allocated quota exceeded", BAD),
        "concurrency_limited",
        429,
        "rate_limit_exceeded",
    ),
    (
        CODING,
        429,
        compat("throttling", "usage allocated quota exceeded. please try again later.", BAD),
        "usage_limited",
        429,
        "rate_limit_exceeded",
    ),
    # free quotas
    (
        DASHSCOPE,
        400,
        native("Throttling.AllocationQuota", FREE),
        "bad_request",
        400,
        "Throttling.AllocationQuota",
    ),
    (PORTAL, 429, compat("insufficient_quota", FREE), "login_quota_spent", 429, None),
    (PORTAL, 403, compat("insufficient_quota", BILLING), "login_quota_spent", 429, None),
    (PORTAL, 429, compat(None, FREE), "login_quota_spent", 429, "insufficient_quota"),
    (
        DASHSCOPE,
        403,
        compat("AllocationQuota.FreeTierOnly", FREE_ONLY),
        "free_tier_spent",
        429,
        "insufficient_quota",
    ),
    (DASHSCOPE, 403, compat("insufficient_quota", "x"), "free_tier_spent", 429, None),
    (DASHSCOPE, 429, native("Throttling.AllocationQuota", FREE), "free_tier_spent", 429, None),
    (DASHSCOPE, 403, compat("access_denied", FREE_ONLY), "free_tier_spent", 429, None),
    # no capacity
    (DASHSCOPE, 503, native("ModelUnavailable", "x"), "overloaded", 503, "ModelUnavailable"),
    (DASHSCOPE, 500, native("ModelServingError", CAPACITY), "overloaded", 503, "ModelServingError"),
    (
        TOKEN,
        429,
        compat("Throttling.ResourceExhausted", "error message is: [Too many requests.]"),
        "overloaded",
        503,
        "Throttling.ResourceExhausted",
    ),
    (
        DASHSCOPE,
        429,
        compat("insufficient_quota", f"Too many requests. Batch {CAPACITY}"),
        "overloaded",
        503,
        "insufficient_quota",
    ),
    (OTHER, 429, compat("1305", "may be temporarily overloaded"), "overloaded", 503, "1305"),
    (OTHER, 529, compat(None, "Overloaded", "overloaded_error"), "overloaded", 503, None),
    (OTHER, 529, b"", "overloaded", 503, "upstream_http_529"),
    (OTHER, 503, b"", "overloaded", 503, "upstream_http_503"),
    # throttles
    *(
        (family, status, body, cause, 429, "rate_limit_exceeded")
        for family, status, body, cause in [
            (DASHSCOPE, 429, compat("limit_burst_rate", BURST), "burst_limited"),
            (DASHSCOPE, 429, native("Throttling.BurstRate", BURST), "burst_limited"),
            (DASHSCOPE, None, native("Throttling", BURST), "burst_limited"),
            (DASHSCOPE, 429, compat("insufficient_quota", ALLOCATED), "tokens_limited"),
            (DASHSCOPE, 429, compat("insufficient_quota", BILLING), "tokens_limited"),
            (SANDBOX, 429, compat("insufficient_quota", ALLOCATED), "tokens_limited"),
            (PORTAL, 429, compat("insufficient_quota", ALLOCATED), "tokens_limited"),
            (TOKEN, 429, compat("insufficient_quota", ALLOCATED), "tokens_limited"),
            (DASHSCOPE, 400, native("Throttling.AllocationQuota", ALLOCATED), "tokens_limited"),
            (
                OTHER,
                429,
                compat(None, "See https://x.example/error-code#token-limit"),
                "tokens_limited",
            ),
            (DASHSCOPE, 429, native("Throttling.AllocationQuota", ALLOCATED), "tokens_limited"),
            (DASHSCOPE, None, native("Throttling.AllocationQuota", "x"), "tokens_limited"),
            (OTHER, 429, compat("insufficient_quota", ALLOCATED), "tokens_limited"),
            (
                OTHER,
                429,
                compat("insufficient_quota", f"Error from provider (Alibaba): {BILLING}"),
                "tokens_limited",
            ),
            (DASHSCOPE, 429, compat("limit_requests", "x"), "rate_limited"),
            (DASHSCOPE, 429, native("LimitRequests", "x"), "rate_limited"),
            (DASHSCOPE, 429, native("Throttling.RateQuota", "x"), "rate_limited"),
            (
                DASHSCOPE,
                429,
                native("Throttling", "Requests throttling triggered."),
                "rate_limited",
            ),
            (CODING, 429, compat("throttling", "x", BAD), "rate_limited"),
            (OTHER, 429, compat("1302", "您的账户已达到速率限制"), "rate_limited"),
            (OTHER, 429, compat("rate_limit_exceeded", "x", "requests"), "rate_limited"),
            (OTHER, None, compat(None, "x", "rate_limit_error"), "rate_limited"),
            (OTHER, None, compat("429", "x"), "rate_limited"),
            (OTHER, None, compat(None, "Too many requests"), "rate_limited"),
            (OTHER, 429, compat("c", "x"), "rate_limited"),
            (OTHER, 429, b"", "rate_limited"),
            (OTHER, 429, b"Too many requests", "rate_limited"),
        ]
    ),
    # who is let in
    *(
        (family, status, body, cause, 502, "upstream_account_refused")
        for family, status, body, cause in [
            (DASHSCOPE, 401, compat("NOT AUTHORIZED", "Access denied"), "workspace_refused"),
            (DASHSCOPE, 404, compat("WorkSpaceNotFound", "x"), "workspace_refused"),
            (
                DASHSCOPE,
                None,
                native("BailianGateway.Workspace.NotAuthorised", "x"),
                "workspace_refused",
            ),
            (OTHER, 429, compat("1313", "fair use"), "account_blocked"),
            (PORTAL, 401, compat("invalid_api_key", EXPIRED, BAD), "login_refused"),
            (PORTAL, None, compat("invalid_api_key", EXPIRED, BAD), "login_refused"),
            (PORTAL, 401, b"", "login_refused"),
            (CODING, 401, compat("invalid_api_key", EXPIRED, BAD), "plan_key_refused"),
            (TOKEN, 403, native("InvalidApiKey", "x"), "plan_key_refused"),
            (DASHSCOPE, 403, compat("invalid api-key", "invalid api-key", BAD), "key_not_for_host"),
            (
                DASHSCOPE,
                401,
                compat("invalid_api_key", "Incorrect API key provided. ", BAD),
                "key_refused",
            ),
            (DASHSCOPE, None, native("InvalidApiKey", "Invalid API-key provided."), "key_refused"),
            (OTHER, 401, compat("c", "x"), "key_refused"),
            (OTHER, 401, b"", "key_refused"),
            (OTHER, None, compat("401", "x"), "key_refused"),
            (
                OTHER,
                400,
                compat("400", "API key not valid. Please pass a valid one."),
                "key_refused",
            ),
            (OTHER, 401, compat(None, "x", "authentication_error"), "key_refused"),
        ]
    ),
    # models
    *(
        (family, status, body, "model_not_found", 404, "model_not_found")
        for family, status, body in [
            (DASHSCOPE, 404, compat("model_not_found", "The model `x` does not exist", BAD)),
            (DASHSCOPE, 404, native("ModelNotFound", "Model can not be found.")),
            (DASHSCOPE, 404, compat("model_not_supported", "Unsupported model `x`", BAD)),
            (DASHSCOPE, 403, native("Endpoint.AccessDenied", "Workspace endpoint access denied.")),
            (CODING, 400, compat("Model not exist.", "Model not exist.", BAD)),
            (CODING, 400, compat("invalid_parameter_error", "Model not exist.", BAD)),
            (
                CODING,
                400,
                compat("invalid_parameter_error", "model 'x-1.2' is not supported.", BAD),
            ),
            (
                OTHER,
                403,
                compat("model_not_found", "Project `p` does not have access to model `x`"),
            ),
            (OTHER, 404, compat("404", "The model `x/y` does not exist.", "NotFoundError")),
            (OTHER, 404, {"error": {"message": 'model "x:7b" not found, try pulling it first'}}),
            (OTHER, None, {"error": "model 'x' not found"}),
        ]
    ),
    *(
        (DASHSCOPE, 403, body, "model_denied", 403, "model_not_found")
        for body in [
            compat("access_denied", "Access denied."),
            native("AccessDenied", "Access denied."),
            native("AccessDenied.Unpurchased", "Access to model denied."),
            native("Model.AccessDenied", "Model access denied."),
            compat("model.access_denied", "Model access denied."),
            native("App.AccessDenied", "App access denied."),
            native("Workspace.AccessDenied", "Workspace access denied."),
        ]
    ),
    (
        DASHSCOPE,
        403,
        native("AccessDenied", "current user api does not support asynchronous calls."),
        "bad_request",
        403,
        "AccessDenied",
    ),
    # addresses
    (
        DASHSCOPE,
        400,
        native("InvalidParameter", "url error, please check url！"),
        "wrong_address",
        502,
        None,
    ),
    (OTHER, 404, {"error": {"message": "Invalid URL (POST /v1/v1/x)"}}, "wrong_address", 502, None),
    (OTHER, 404, {"detail": "Not Found"}, "wrong_address", 502, None),
    (OTHER, 404, b"404 page not found\n", "wrong_address", 502, "upstream_http_404"),
    (CODING, 404, b"", "wrong_address", 502, "upstream_http_404"),
    (OTHER, 405, {"detail": "Method Not Allowed"}, "wrong_address", 502, None),
    (OTHER, 302, b"", "wrong_address", 502, "upstream_http_302"),
    # the upstream's own troubles
    (
        DASHSCOPE,
        500,
        native("RequestTimeOut", "Request timed out"),
        "timeout",
        504,
        "RequestTimeOut",
    ),
    (DASHSCOPE, None, native("ResponseTimeout", "Response timeout!"), "timeout", 504, None),
    (PORTAL, 504, compat("stream_timeout", "stream timeout"), "timeout", 504, "stream_timeout"),
    (OTHER, 408, b"", "timeout", 504, "upstream_http_408"),
    (OTHER, 504, HTML, "timeout", 504, "upstream_http_504"),
    (OTHER, 524, HTML, "timeout", 504, "upstream_http_524"),
    (DASHSCOPE, 400, compat("ClientDisconnect", "x"), "connection_lost", 502, "ClientDisconnect"),
    (DASHSCOPE, 400, compat("APIConnectionError", "x"), "connection_lost", 502, None),
    (OTHER, 499, b"", "connection_lost", 502, "upstream_http_499"),
    (DASHSCOPE, 500, compat("internal_error", "x"), "internal_error", 500, "internal_error"),
    (DASHSCOPE, None, native("InternalError.Algo", "x"), "internal_error", 502, None),
    (OTHER, 500, b"oops", "internal_error", 500, "upstream_http_500"),
    (OTHER, 502, HTML, "bad_gateway", 502, "upstream_http_502"),
    (OTHER, 501, {"detail": "x"}, "bad_gateway", 502, None),
    (OTHER, 521, HTML, "bad_gateway", 502, "upstream_http_521"),
    (OTHER, 200, HTML, "no_answer", 502, "upstream_http_200"),
    (OTHER, 200, b"", "no_answer", 502, "upstream_http_200"),
    (OTHER, None, {"error": "it broke"}, "internal_error", 502, None),
    # faults of the request
    (DASHSCOPE, 400, native("BadRequest.TooLarge", "Payload Too Large."), "too_large", 413, None),
    (OTHER, 413, b"", "too_large", 413, "upstream_http_413"),
    *(
        (DASHSCOPE, status, native(code, "x"), "bad_request", 400, code)
        for status, code in [
            (400, "InvalidParameter"),
            (None, "InvalidParameter"),
            (400, "InvalidParameter.DataInspection"),
            (None, "invalid_parameter_error"),
            (None, "BadRequest.EmptyInput"),
            (400, "InvalidURL.Timeout"),
            (400, "InvalidFile.FPS"),
            (430, "Audio.DecoderError"),
            (400, "Audio.AudioShortError"),
            (400, "FlowNotPublished"),
        ]
    ),
    (OTHER, 400, compat("c", "x"), "bad_request", 400, "c"),
    (OTHER, 422, {"detail": [{"loc": ["body"], "msg": "x"}]}, "bad_request", 422, None),
    (OTHER, 415, {"detail": "x"}, "bad_request", 400, None),
    (OTHER, 409, compat("Conflict", "x"), "conflict", 409, "Conflict"),
    (OTHER, 403, compat("c", "x"), "denied", 403, "c"),
    (OTHER, None, compat(None, "x", "permission_error"), "denied", 403, None),
    (DASHSCOPE, 404, native("NotFound", "Not found!"), "not_found", 404, "NotFound"),
    (OTHER, None, compat(None, "x", "not_found_error"), "not_found", 404, None),
    (OTHER, 418, compat("teapot", "x"), "unexpected", 502, "teapot"),
    (OTHER, 400, b"<html>400</html>", "unexpected", 502, "upstream_http_400"),
    (OTHER, 403, b"", "unexpected", 502, "upstream_http_403"),
]


def ids(case: tuple[Any, ...]) -> str:
    family, status, body, cause, *_ = case
    return f"{family.value}-{status}-{cause}-{str(body)[:40]}"


def classified(family: Family, status: int | None, body: Any) -> UpstreamError:
    if status is None:
        return classify.from_frame(body.get("error", body), account="a", family=family)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify.from_response(status, {}, raw, account="a", family=family)


def told_by(family: Family, status: int | None, body: Any) -> ErrorReport:
    """What the signs look at, read in a simple way of our own."""
    if isinstance(body, bytes) or "ret" in body:
        return ErrorReport(family, status, page=str(body))
    error = body.get("error", body)
    if isinstance(error, str):
        error = {"message": error, "code": error}
    message = error.get("message") or error.get("detail")
    code = str(error.get("code") or "")
    if status is None and code in ("401", "429"):
        status = int(code)
    return ErrorReport(family, status, code, str(error.get("type") or ""), str(message))


@pytest.mark.parametrize(
    ("family", "status", "body", "cause", "client_status", "code"), CASES, ids=map(ids, CASES)
)
def test_each_sign_tells_its_cause(
    family: Family,
    status: int | None,
    body: Any,
    cause: str,
    client_status: int,
    code: str | None,
) -> None:
    error = classified(family, status, body)

    assert error.failure is not None
    assert error.failure.cause == cause
    assert error.status == client_status
    assert code is None or error.code == code


def test_every_row_has_a_case() -> None:
    """A row that no case reaches is dead, or hidden by one above it."""
    reached = {
        next(index for index, row in enumerate(ROWS) if row.matches(told_by(family, status, body)))
        for family, status, body, *_ in CASES
    }

    assert [ROWS[index] for index in sorted(set(range(len(ROWS))) - reached)] == []


def test_every_cause_has_a_row_or_is_one_of_the_transport() -> None:
    recognised = {row.cause for row in ROWS}
    unanswered = {"unreachable", "connect_timeout", "closed", "broken", "empty", "tls", "proxy"}

    assert set(CAUSES) == recognised | unanswered | {"bad_url", "answer_too_large"}


@pytest.mark.parametrize("shown", sandbox_errors.codes(), ids=lambda row: row["code"])
def test_every_documented_error_is_known_by_more_than_its_status(shown: dict[str, Any]) -> None:
    """But for those whose status says it all."""
    code = shown["code"].replace("*", "x")
    body = (native if shown["form"] == "native" else compat)(code, shown["message"])

    error = classified(SANDBOX, None if shown["status"] == 200 else shown["status"], body)

    assert error.failure is not None
    unknown = {"denied", "unexpected", "not_found", "internal_error", "conflict"}
    expected = {
        "NotFound": "not_found",
        "Conflict": "conflict",
        "internal_error": "internal_error",
        "InternalError": "internal_error",
        "InternalError.x": "internal_error",
        "SystemError": "internal_error",
        "ModelServiceFailed": "internal_error",
    }
    assert error.failure.cause == expected.get(code, error.failure.cause)
    assert code in expected or error.failure.cause not in unknown


class TestPrecedence:
    def test_a_spent_plan_and_a_throttle_differ_by_the_text_alone(self) -> None:
        causes = [
            classified(CODING, 429, native("Throttling.AllocationQuota", text)).failure
            for text in (
                "hour allocated quota exceeded",
                "usage allocated quota exceeded. please try again later.",
                "concurrency allocated quota exceeded",
                ALLOCATED,
                FREE,
            )
        ]

        assert [failure and failure.cause for failure in causes] == [
            "plan_window_spent",
            "usage_limited",
            "concurrency_limited",
            "tokens_limited",
            "free_tier_spent",
        ]

    def test_insufficient_quota_means_money_only_where_openai_meant_it(self) -> None:
        body = compat("insufficient_quota", BILLING)
        found = {family: classified(family, 429, body) for family in Family}

        assert {family: error.code for family, error in found.items()} == {
            DASHSCOPE: "rate_limit_exceeded",
            CODING: "rate_limit_exceeded",
            TOKEN: "rate_limit_exceeded",
            SANDBOX: "rate_limit_exceeded",
            Family.WEB: "rate_limit_exceeded",
            PORTAL: "insufficient_quota",
            OTHER: "insufficient_quota",
        }
        assert found[DASHSCOPE].should_retry is None
        assert found[OTHER].should_retry is False

    def test_a_picture_that_cannot_be_fetched_is_no_content_filter(self) -> None:
        text = "Unable to download the media resource during the data inspection process."

        for code in ("InvalidParameter.DataInspection", "invalid_parameter_error"):
            error = classified(DASHSCOPE, 400, compat(code, text, BAD))
            assert error.failure is not None and error.failure.cause == "bad_request"
            assert error.code == code

    @pytest.mark.parametrize(
        "text",
        [
            "Range of max_tokens should be [1, 8192]",
            "The model qwen-plus does not support enable_thinking.",
            "The requested voice 'x' is not supported.",
            "The tool call is not supported.",
            "File [id:file-fe-x] format is not supported.",
            "Input should be 'Cherry', 'Serena', 'Ethan' or 'Chelsie': parameters.audio.voice",
            "<400> InternalError.Algo.InvalidParameter: The model's length of n is wrong",
        ],
    )
    def test_ordinary_complaints_stay_ordinary(self, text: str) -> None:
        error = classified(DASHSCOPE, 400, compat("invalid_parameter_error", text, BAD))

        assert error.failure is not None and error.failure.cause == "bad_request"
        assert (error.status, error.code, error.type) == (400, "invalid_parameter_error", BAD)
        assert error.message == text

    def test_a_limit_of_a_minute_is_no_spent_plan_even_if_it_says_when_it_resets(self) -> None:
        text = "Rate limit exceeded: current limit 100. Limit resets at 2026-11-20 10:00:00"
        error = classified(OTHER, 429, compat("429", text))

        assert error.failure is not None and error.failure.cause == "rate_limited"

    def test_words_in_a_page_count_for_nothing_but_a_challenge(self) -> None:
        page = b"<html><body>Service quota exhausted. model x does not exist</body></html>"

        for status, cause in ((429, "rate_limited"), (503, "overloaded"), (400, "unexpected")):
            error = classified(OTHER, status, page)
            assert error.failure is not None and error.failure.cause == cause

    def test_a_challenge_in_what_the_user_wrote_is_not_one_of_the_upstream(self) -> None:
        error = classified(OTHER, 400, compat("c", "cannot parse: <div id=captcha-element>"))

        assert error.failure is not None and error.failure.cause == "bad_request"


class TestCauses:
    @pytest.mark.parametrize("name", CAUSES)
    def test_each_makes_sense(self, name: str) -> None:
        cause = CAUSES[name]

        assert cause.name == name and len(name.encode()) <= 20  # the board holds no more
        assert re.fullmatch("[a-z_]+", name)
        assert cause.meaning and not cause.meaning.endswith(".")
        assert 400 <= cause.status < 600 and cause.status != 401
        assert cause.remedy == "" or cause.remedy.endswith(".")
        assert cause.template.format(message="Said.", why="why", account="a").endswith((".", "!"))
        if cause.scope is Scope.REQUEST:
            assert cause.wait_s is None
        if cause.scope is Scope.UPSTREAM:
            assert cause.retry and cause.elsewhere
        if not cause.retry and cause.status in (409, 429, 500, 502, 503, 504):
            # An SDK repeats these unless it is told not to.
            assert cause.should_retry is False
        if cause.should_retry is False:
            assert cause.retry_after_s is None

    def test_what_only_the_operator_can_help_with_has_a_remedy(self) -> None:
        for cause in CAUSES.values():
            if cause.scope is Scope.ACCOUNT:
                assert cause.remedy, cause.name

    def test_an_accounts_refusal_is_never_the_clients(self) -> None:
        refused = [c for c in CAUSES.values() if c.code == "upstream_account_refused"]

        assert len(refused) == 6
        for cause in refused:
            assert (cause.status, cause.should_retry, cause.scope) == (502, False, Scope.ACCOUNT)
            assert "Your own key is fine" in cause.template
            assert "the operator of this proxy" in cause.template

    def test_a_status_is_passed_on_only_where_it_means_the_same(self) -> None:
        bad, internal = CAUSES["bad_request"], CAUSES["internal_error"]

        assert [bad.status_for(told) for told in (None, 400, 401, 418, 422, 430, 500)] == [
            400, 400, 400, 400, 422, 400, 400,
        ]  # fmt: skip
        assert [internal.status_for(told) for told in (None, 200, 400, 500, 503, 520)] == [
            502, 502, 502, 500, 503, 502,
        ]  # fmt: skip
        assert CAUSES["timeout"].status_for(500) == 504

    def test_a_failure_is_left_alone_as_long_as_the_upstream_says(self) -> None:
        assert CAUSES["free_tier_spent"].failure().wait_s == 600
        assert CAUSES["free_tier_spent"].failure(7).wait_s == 7
        assert CAUSES["rate_limited"].failure().wait_s is None
        assert CAUSES["bad_request"].failure(7).wait_s is None

    def test_the_last_row_takes_everything(self) -> None:
        assert cause_of(ErrorReport(OTHER, 1)).name == "internal_error"
        assert all(
            getattr(ROWS[-1], field.name) is None
            for field in dataclasses.fields(ROWS[-1])
            if field.name != "cause"
        )


class TestWithoutAnAnswer:
    @pytest.mark.parametrize(
        "cause",
        ["unreachable", "connect_timeout", "timeout", "closed", "broken", "empty", "tls", "proxy"],
    )
    def test_the_upstream_is_in_trouble(self, cause: str) -> None:
        error = classify.connection_error(cause, "what happened")
        failure = error.failure

        assert failure is not None
        assert (failure.cause, failure.scope) == (cause, Scope.UPSTREAM)
        assert failure.retry and failure.elsewhere
        assert (error.message, error.code) == ("what happened", f"upstream_{cause}")
        assert error.status == (504 if "timeout" in cause else 502)
        assert isinstance(error, UpstreamTimeout) is ("timeout" in cause)

    def test_a_base_url_that_cannot_be_used_stays_so(self) -> None:
        failure = classify.connection_error("bad_url", "m").failure

        assert failure is not None
        assert (failure.scope, failure.retry, failure.elsewhere) == (Scope.ACCOUNT, False, True)

    def test_an_unknown_cause_is_a_mistake_of_the_caller(self) -> None:
        with pytest.raises(KeyError):
            classify.connection_error("moths", "m")

    def test_an_error_carries_its_failure_from_where_it_is_noticed(self) -> None:
        refused = classified(OTHER, 429, b"")

        assert refused.failure is not None and refused.failure.cause == "rate_limited"
        assert UpstreamError("m", code="upstream_bad_answer").failure is None


class TestLeftAlone:
    def test_a_throttle_says_when_to_come_back(self) -> None:
        error = classify.cooling_down("rate_limited", model="m", wait_s=12.4)

        assert isinstance(error, AccountUnavailable)
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert (error.retry_after_s, error.should_retry) == (12.4, None)
        assert "`m`" in error.message and "12 s" in error.message

    def test_a_spent_plan_stays_one(self) -> None:
        error = classify.cooling_down("plan_window_spent", model="m", wait_s=300)

        assert (error.status, error.code) == (429, "insufficient_quota")
        assert (error.retry_after_s, error.should_retry) == (300, False), "no SDK should try"

    def test_a_refused_key_is_told_with_what_the_operator_can_do(self) -> None:
        error = classify.cooling_down("key_refused", model="m", wait_s=5)

        assert (error.status, error.code) == (502, "upstream_account_refused")
        assert CAUSES["key_refused"].remedy in error.message

    @pytest.mark.parametrize("cause", ["internal_error", "unreachable", "overloaded", "", "moths"])
    def test_an_upstream_in_trouble_is_unavailable(self, cause: str) -> None:
        error = classify.cooling_down(cause, model="m", wait_s=0.2)

        assert (error.status, error.code) == (503, "upstream_unavailable")
        assert error.retry_after_s == 0.2
        assert "1 s" in error.message

    @pytest.mark.parametrize("cause", CAUSES)
    def test_every_cause_can_be_told(self, cause: str) -> None:
        error = classify.cooling_down(cause, model="m", wait_s=1)

        assert 400 <= error.status < 600 and error.status != 401
        assert CAUSES[cause].meaning in error.message
        assert error.type and error.code
