"""Recognises the cause of a failure in an upstream's answer, by one table of patterns.

It is read from the top: the first row whose patterns all match counts, and the last one matches
everything. Pure data.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.failures.causes import CAUSES, INPUT_REFUSED, Cause


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """An upstream's error, as far as the patterns look at it.

    Attributes:
        status: None where there is none (an error inside a 200).
        code, type, message: of the error object; empty where there is none.
        page: a body that is no error object.
    """

    family: Family
    status: int | None
    code: str = ""
    type: str = ""
    message: str = ""
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """Patterns of a cause; all that are given must match.

    Attributes:
        families: what kind of host answered.
        statuses: what it answered with; None among them is an error inside a 200.
        codes: the whole code, or the whole type.
        text: found in the message.
        page: found in a body that is no error object.
        bare: whether the body is no error object.
    """

    cause: str
    families: Container[Family] | None = None
    statuses: Container[int | None] | None = None
    codes: re.Pattern[str] | None = None
    text: re.Pattern[str] | None = None
    page: re.Pattern[str] | None = None
    bare: bool | None = None

    def matches(self, report: ErrorReport) -> bool:
        """Whether an error has all that this row asks for."""
        return (
            (self.families is None or report.family in self.families)
            and (self.statuses is None or report.status in self.statuses)
            and (self.bare is None or self.bare == (report.page is not None))
            and (self.codes is None or self._has_code(report))
            and (self.text is None or self.text.search(report.message) is not None)
            and (self.page is None or self.page.search(report.page or "") is not None)
        )

    def _has_code(self, report: ErrorReport) -> bool:
        assert self.codes is not None
        return any(self.codes.fullmatch(word) for word in (report.code, report.type) if word)


def _row(
    cause: str,
    *,
    families: Container[Family] | None = None,
    statuses: Container[int | None] | None = None,
    codes: str | None = None,
    text: str | None = None,
    page: str | None = None,
    bare: bool | None = None,
) -> Pattern:
    def compiled(pattern: str | None) -> re.Pattern[str] | None:
        return None if pattern is None else re.compile(pattern, re.IGNORECASE)

    return Pattern(cause, families, statuses, compiled(codes), compiled(text), compiled(page), bare)


_PORTAL: Final = frozenset({Family.PORTAL})
_OTHER: Final = frozenset({Family.OTHER})
_PLANS: Final = frozenset({Family.CODING_PLAN, Family.TOKEN_PLAN})
_PAYG: Final = frozenset({Family.DASHSCOPE, Family.SANDBOX})
#: Statuses by which a request is refused, also from inside a 200.
_REFUSALS: Final = frozenset({400, 403, 404, 413, 422, None})
_KEY: Final = r"invalid[ _-]?api[ _-]?key|authentication_error"
_SPAN: Final = r"hourly|daily|weekly|monthly|\d+[- ](?:hour|day|week|month)"

_MEDIA: Final = r"(?:images?|pictures?|vision|visual|audio|videos?|multi-?modal(?:ity)?)"
#: As an input at all: not one of its formats, sizes or sources.
_ANY: Final = rf"(?:any |the )?{_MEDIA}\b(?! (?:format|type|url|size|file|codec|output|generat))"

#: How servers say that a prompt is longer than the model's context, with the source of each; the
#: letters are explained below. A limit of the answer alone (`max_tokens`) is no such thing, and
#: neither are limits per minute.
_TOO_LONG: Final = (
    (
        "[D] Model Studio; [P] also as `<400> InternalError.Algo…` in a 500",
        "range of input length should be",
    ),
    ("[D] Model Studio, qwen-long", r"token length exceeds? model limit"),
    (
        "[O] OpenAI; [S] vLLM to 2025, SGLang; [P] DeepSeek, OpenRouter, Mistral, Fireworks",
        "maximum context length",
    ),
    (
        "[S] vLLM 2026, of tokens and of characters; [P] Claude Code's users",
        "model.{0,2}s context length is only",
    ),
    (
        "[S] vLLM, a prompt that is too long without any answer",
        "longer than the maximum model length|too long to fit into the model",
    ),
    ("[S] SGLang; [P] Together", "longer than the model.{0,2}s context length"),
    ("[S] SGLang without truncation", r"input length .{0,40}exceeds? the maximum allowed length"),
    ("[S] TGI; [P] Together, Zhipu's GLM-4V", r"inputs?`? tokens \+ `?max_new_tokens`? must be"),
    (
        "[S] TensorRT-LLM",
        r"prompt length .{0,100}should not exceed max_(?:num_tokens|seq_len|input_len)",
    ),
    ("[P] SiliconFlow", "prompt_tokens .{0,40}must be less than max_seq_len"),
    (
        "[S] llama.cpp, Ollama; [P] OpenAI's Responses",
        r"exceeds? (?:the )?(?:available |maximum |model.{0,2}s )?context (?:size|length|window)",
    ),
    ("[S] llama.cpp in the middle of an answer", "context size has been exceeded"),
    ("[S] llama.cpp, a prompt above its batch", "is too large to process"),
    ("[S] Ollama's runners", "prompt too long; exceeded"),
    ("[P] LM Studio", "greater than the context length|with (?:a )?context length of only"),
    ("[P] Anthropic, Fireworks", "prompt is too long"),
    ("[P] Anthropic, Bedrock: prompt and answer together", "exceed context limit"),
    ("[P] Bedrock", "input is too long for (?:the )?requested model"),
    ("[P] Azure, newer models of OpenAI", "input tokens exceed the configured limit"),
    ("[P] Gemini", "input token count .{0,40}exceeds the maximum"),
    ("[P] Moonshot (Kimi)", "exceeded model token limit|input token length too long"),
    ("[Z] Zhipu in both languages", "prompt exceeds max length|prompt ?超长"),
    ("[P] MiniMax", "context window exceeds limit"),
    ("[P] xAI", r"maximum prompt length is \d"),
    ("[P] Groq, Cerebras", "reduce the length of the (?:messages|input|prompt)"),
    ("[P] GitHub Copilot", r"prompt token count of \d+ exceeds the limit"),
    ("[P] Volcengine (Doubao)", "exceeds? max message tokens"),
    ("[P] Poolside by OpenRouter", "exceeds (?:the )?maximum allowed input length"),
    ("[P] Cohere", "tokens in the prompt cannot exceed"),
    ("[P] DS4", "but the configured context size is"),
    ("[P] LiteLLM", "ContextWindowExceededError"),
)

#: How servers say that a model does not read pictures, sound or video, with the source of each.
#: That one of them could not be fetched, is broken or too large says nothing about the model.
_NOT_READ: Final = (
    ("[P] Model Studio", r"unexpected item type in content"),
    (
        "[P] Volcengine, opencode, Copilot, Hermes; [S] LM Studio",
        rf"\bdo(?:es)?(?: not|n.?t) (?:currently )?(?:support|accept|take) {_ANY}",
    ),
    (
        "[P] llama.cpp, also with a hint at the mmproj",
        rf"{_MEDIA} inputs? (?:is|are) not supported",
    ),
    (
        "[P] llama.cpp's templates, FreeToken",
        r"unsupported content (?:part )?type\b.{0,60}(?:image|audio|video)",
    ),
    ("[P] vLLM", r"\bis not a multimodal model\b"),
    ("[S] vLLM, none of a kind allowed", r"\bat most 0 (?:image|audio|video)"),
    ("[P] OpenRouter, Xiaomi", rf"no endpoints found that support {_ANY}"),
    ("[P] OpenAI", r"\b(?:image_url|input_audio) is only supported by certain models"),
    (
        "[P] DeepSeek",
        r"unknown variant `?(?:image|input_audio|video)\w*`?, expected `?text\b"
        r"|did not match any variant of untagged enum ChatCompletionRequestContent",
    ),
    ("[S] Ollama", r"missing data required for (?:image|audio|video) input"),
    ("[P] Zhipu, its models of text", r"messages\.content\.type\b.{0,20}\['text'\]"),
)

# Where a row comes from: [D] the vendor's error page; [P] bodies that public projects quote from
# their logs; [Q] qwen-code's own rules; [Z] z.ai's error page (GLM); [O] OpenAI's error guide;
# [S] the sources of other OpenAI-compatible servers.
ROWS: Final[tuple[Pattern, ...]] = (
    # --- by the page: a firewall answers with any status, 200 too -----------------------------
    # [P] Aliyun's WAF and its captcha; the last two are Cloudflare's.
    _row(
        "challenge",
        page=r"aliyun_?waf|aliyun-?captcha|captcha-element|acw_sc__v2|RGV587|FAIL_SYS_USER_VALIDATE"
        r"|_____tmd_____|errors\.aliyun\.com|cf-chl-|challenge-platform",
    ),
    # --- faults of the request that hide behind other codes -----------------------------------
    # [Z] 1261; [S] llama.cpp's exceed_context_size_error; [P] GitHub Copilot, Volcengine.
    _row(
        "context_length",
        codes="context_length_exceeded|1261|exceed_context_size_error"
        "|model_max_prompt_tokens_exceeded|model_context_window_exceeded|OutofContextError",
    ),
    *(_row("context_length", statuses=_REFUSALS | {500}, text=text) for _whose, text in _TOO_LONG),
    *(
        _row(INPUT_REFUSED, statuses=_REFUSALS | {500, 501}, text=text)
        for _whose, text in _NOT_READ
    ),
    # [D] Not `InvalidParameter.DataInspection`: there a picture could not be fetched. [Z] 1301.
    _row(
        "content_filter",
        codes=r"(response_)?data_?inspection_?failed|CustomRoleBlocked|FaqRuleBlocked"
        r"|IPInfringementSuspect|content_filter|content_policy_violation|1301",
    ),
    _row("content_filter", text=r"may contain inappropriate content|green network verification"),
    # [O], Groq: more tokens at once than a minute has.
    _row("over_token_limit", text=r"request too large for .{0,200}tokens per min"),
    # [D] "This model does not support enable_search."
    _row(
        "no_web_search",
        statuses=_REFUSALS,
        text=r"does not support (?:enable_search|(?:the )?(?:built-in )?web[ _]search)",
    ),
    # [P] "<400> InternalError.Algo.InvalidParameter: …", whatever the status is.
    _row("bad_request", text=r"^<4(?:00|22)> "),
    # [D] Numbers of voices, in speech: with 400 and with 429.
    _row("bad_request", text=r"\bvoice (?:storage )?limit exceeded"),
    # --- terms and money ----------------------------------------------------------------------
    # [P] HTTP 405 {"error": "Coding Plan is currently only available for Coding Agents"}
    _row("agents_only", text=r"only available for coding agents"),
    # [D] Arrearage comes with 400, the other three with 429. [O] `billing_not_active` and hard
    # limits. [P] Anthropic's `billing_error`. [Z] 1113 arrears, 1309 expired plan.
    _row(
        "billing",
        codes=r"Arrearage|CommodityNotPurchased|(?:Pre|Post)paidBillOverdue|billing_\w+"
        r"|insufficient_balance|1113|1309",
    ),
    _row(
        "billing",
        text=r"account is in good standing|insufficient (?:account )?balance|balance is (?:too low"
        r"|insufficient)|account is in arrears|bill is overdue",
    ),
    # --- windows of a plan --------------------------------------------------------------------
    # [D] Coding Plan: "hour|week|month allocated quota exceeded". [P] Token Plan: "Your token-plan
    # 5-hour quota has been exhausted. The quota will reset at 07-28 14:20:00 UTC." [Q] quota,
    # exceeded, reset. [Z] 1308, 1310. [P] Kimi's weekly limit, with 403.
    _row("plan_window_spent", codes="1308|1310"),
    _row("plan_window_spent", text=r"\b(?:hour|week|month) allocated quota exceeded"),
    _row("plan_window_spent", text=r"(?<!free )\bquota (?:has been |is )?exhausted"),
    _row("plan_window_spent", text=r"\bquota\b.{0,80}\bexceeded\b.{0,120}\breset"),
    _row(
        "plan_window_spent",
        text=rf"\b(?:{_SPAN})\b.{{0,60}}\b(?:quota|limit) (?:exhausted|exceeded|reached)",
    ),
    _row(
        "plan_window_spent",
        text=rf"\b(?:exhausted|exceeded|reached) (?:the|your) (?:{_SPAN})\b.{{0,40}}"
        r"\b(?:quota|limit)",
    ),
    _row("plan_window_spent", text=r"\busage limit reached for"),
    _row("billing", statuses=frozenset({402})),
    # [D] Coding Plan; [P] with the code `throttling`.
    _row("concurrency_limited", text=r"concurrency (?:allocated quota|limit) exceeded"),
    _row("usage_limited", text=r"usage allocated quota exceeded"),
    # --- free quotas --------------------------------------------------------------------------
    # [D] With 400 the code of a throttle means things that are counted (voices, hot words), unless
    # the text is the throttle's: a refused stream is always a 400 [P].
    _row("tokens_limited", text=r"allocated quota exceeded, please increase"),
    _row("bad_request", statuses=frozenset({400}), codes=r"Throttling\.AllocationQuota"),
    # [Q] The portal's quota comes as 429 or 403, by either text ("Free allocated quota exceeded",
    # "You exceeded your current quota").
    _row(
        "login_quota_spent",
        families=_PORTAL,
        codes=r"insufficient_quota|quota_exceeded|AllocationQuota\.FreeTierOnly",
    ),
    _row("login_quota_spent", families=_PORTAL, text=r"free allocated quota exceeded"),
    # [D] AllocationQuota.FreeTierOnly; 429 "Free allocated quota exceeded."; [P] 403 with
    # insufficient_quota.
    _row("free_tier_spent", codes=r"AllocationQuota\.FreeTierOnly"),
    _row(
        "free_tier_spent",
        text=r"free (?:allocated |tier )?quota (?:is |has been )?(?:exceeded|exhausted|used up)"
        r"|free tier of the model has been exhausted",
    ),
    _row(
        "free_tier_spent",
        families=_PAYG | _PLANS,
        statuses=frozenset({403}),
        codes="insufficient_quota",
    ),
    # --- throttles ----------------------------------------------------------------------------
    # [D] Capacity of the model, also under the code of a throttle ("Batch requests are being
    # throttled due to system capacity limits", insufficient_quota). [P] Throttling.
    # ResourceExhausted. [Z] 1305, 1312. Anthropic's overloaded_error.
    _row(
        "overloaded",
        codes=r"ModelServingError|ModelUnavailable|overloaded_error|server_is_overloaded"
        r"|Throttling\.ResourceExhausted|1305|1312",
    ),
    _row("overloaded", text=r"due to system capacity|engine is currently overloaded"),
    # [D]
    _row("burst_limited", codes=r"limit_burst_rate|Throttling\.BurstRate"),
    _row("burst_limited", text=r"request rate increased too quickly"),
    # [D] TPM and TPS: with Alibaba's hosts `insufficient_quota` is a throttle, whatever its text
    # says of billing. By the text also behind somebody else's gateway [P].
    _row("tokens_limited", codes=r"Throttling\.AllocationQuota"),
    _row("tokens_limited", families=_PAYG | _PLANS, codes="insufficient_quota"),
    _row(
        "tokens_limited",
        text=r"allocated quota exceeded|error-code#token-limit|^Throttling: TPM"
        r"|provider \(alibaba\): you exceeded your current quota",
    ),
    # [O] Elsewhere the same code and text are about money.
    _row("billing", families=_OTHER, codes="insufficient_quota"),
    # [D]; `throttling` in lower case is Coding Plan's [P]. [Z] 1302, 1303. [Q] rate_limit_error.
    _row(
        "rate_limited",
        codes=r"limit_requests|LimitRequests|Throttling(?:\.\w+)*|rate_limit\w*|too_many_requests"
        r"|1302|1303",
    ),
    # Told in a stream without a code.
    _row("rate_limited", statuses=frozenset({None}), text=r"\btoo many requests\b"),
    # --- credentials ---------------------------------------------------------------------------
    # [D] The last one comes inside a 200.
    _row(
        "workspace_refused",
        codes=r"NOT AUTHORIZED|WorkSpaceNotFound|BailianGateway\.Workspace\.\w+",
    ),
    # [Z] 1112, 1121 locked; 1313 fair use.
    _row("account_blocked", codes="1112|1121|1313|account_deactivated"),
    # [Q] 401 `invalid access token or token expired` of the portal.
    _row("login_refused", families=_PORTAL, statuses=frozenset({401})),
    _row("login_refused", families=_PORTAL, codes=_KEY),
    # [D] Another plan's key, another region's, or an expired subscription.
    _row("plan_key_refused", families=_PLANS, statuses=frozenset({401})),
    _row("plan_key_refused", families=_PLANS, codes=_KEY),
    # [D] A plan's key at the pay-as-you-go host is 403 `invalid api-key`, not 401.
    _row("key_not_for_host", families=_PAYG, statuses=frozenset({403}), codes=_KEY),
    _row("key_refused", codes=_KEY),
    _row(
        "key_refused",
        statuses=frozenset({400, 403, None}),
        text=r"invalid access token|(?:incorrect|invalid) api[- _]?key|api key not valid",
    ),
    _row("key_refused", statuses=frozenset({401})),
    # --- models -------------------------------------------------------------------------------
    # [D] 404 model_not_found, model_not_supported; 403 Endpoint.AccessDenied is a withdrawn model;
    # plans: 400 "Model not exist.", "model 'x' is not supported". [Z] 1211. [S] Ollama, vLLM.
    _row(
        "model_not_found",
        codes=r"model_?not_?found|model_not_supported|Endpoint\.AccessDenied|Model not exist\.?"
        r"|1211",
    ),
    _row(
        "model_not_found",
        statuses=_REFUSALS,
        text=r"\bmodel (?:does )?not exists?\b|\bmodel can ?not be found|\bunsupported model\b"
        r"|\bmodel [`'\"\[]?[^\s`'\"\]]{1,100}[`'\"\]]?,? (?:does not exist|is not supported"
        r"|(?:is |was )?not found)",
    ),
    # [D] AccessDenied also answers a call of the wrong kind, which is a fault of the request.
    _row("bad_request", text=r"does not support (?:a?synchronous|http) calls?"),
    _row(
        "model_denied",
        codes=r"access_?denied|AccessDenied\.Unpurchased|(?:Model|App|Workspace)[._]access_?denied",
    ),
    # [D] 400 "url error, please check url": the model has another path. [O] "Invalid URL (POST …)",
    # [S] FastAPI's answer where there is no such path.
    _row("wrong_address", statuses=frozenset({400, 404}), text=r"^url error\b|^invalid url \("),
    _row("wrong_address", statuses=frozenset({404}), text=r"^not found\.?$|request path not found"),
    # --- the upstream's own troubles ----------------------------------------------------------
    # [D]; [P] 504 `stream timeout` of the portal.
    _row(
        "timeout",
        codes=r"RequestTimeOut|ResponseTimeout|InternalError\.Timeout|stream_timeout|timeout_error",
    ),
    _row("timeout", statuses=frozenset({408, 504, 524})),
    # [D] Both come with 400, and neither is the client's.
    _row("connection_lost", codes="APIConnectionError|ClientDisconnect"),
    _row("connection_lost", statuses=frozenset({499})),
    # --- faults of the request, by their codes: also inside a 200 -----------------------------
    # [D] BadRequest.TooLarge is a 400.
    _row("too_large", codes=r"BadRequest\.TooLarge|request_too_large|payload_too_large"),
    _row("too_large", statuses=frozenset({413})),
    # [D] 430 and Audio.* are of speech recognition.
    _row(
        "bad_request",
        statuses=frozenset({400, 422, 430, None}),
        codes=r"invalid_(?:parameter|value|request|type)\w*|InvalidParameter(?:\.\w+)*"
        r"|InternalError\.Algo\.InvalidParameter|BadRequest\w*(?:\.\w+)*|Invalid(?:URL|File)(?:\.\w+)*"
        r"|Audio\.\w+|UnsupportedOperation",
    ),
    # [D]
    _row(
        "internal_error",
        statuses=frozenset({500, None}),
        codes=r"internal_error|InternalError(?:\.\w+)*|SystemError|ModelServiceFailed|api_error",
    ),
    # --- by the status alone ------------------------------------------------------------------
    _row("wrong_address", statuses=range(300, 400)),
    _row("wrong_address", statuses=frozenset({404}), bare=True),
    _row("wrong_address", statuses=frozenset({405})),
    _row("rate_limited", statuses=frozenset({429})),
    # Without a JSON body a 4xx speaks of the road (firewall, gateway), not of the request.
    _row("unexpected", statuses=range(400, 500), bare=True),
    _row("denied", statuses=frozenset({403})),
    _row("denied", codes="permission_error"),
    _row("not_found", statuses=frozenset({404})),
    _row("not_found", codes="not_found_error"),
    # SDKs repeat a 409: with OpenAI it is a lock that somebody else holds.
    _row("conflict", statuses=frozenset({409})),
    _row("bad_request", statuses=frozenset({400, 411, 414, 415, 422, 430, 431})),
    _row("unexpected", statuses=range(400, 500)),
    _row("overloaded", statuses=frozenset({503, 529})),
    _row("internal_error", statuses=frozenset({500})),
    _row("bad_gateway", statuses=range(501, 600)),
    _row("no_answer", bare=True),
    # [Q] An error without a status is a hiccup.
    _row("internal_error"),
)


def cause_of(report: ErrorReport) -> Cause:
    """The cause that an answer tells of; the last row matches everything."""
    return CAUSES[next(row.cause for row in ROWS if row.matches(report))]
