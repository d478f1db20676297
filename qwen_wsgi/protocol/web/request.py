"""A chat request as the web API takes it: one message, with all that was said before in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.chat.request import ChatRequest
from qwen_wsgi.protocol.json_access import items, mapping, objects, text
from qwen_wsgi.protocol.translation import search
from qwen_wsgi.protocol.web import chat_body
from qwen_wsgi.protocol.web.models import DEEP_RESEARCH, MEDIA, SEARCH, THINKING, Named
from qwen_wsgi.protocol.web.pictures import (
    MOST_PICTURES,
    Picture,
    is_address,
    picture_of,
    too_many,
)

#: Characters of all message text together: larger requests meet the firewall's captcha every time.
MOST_CHARACTERS: Final = 128 * 1024

#: Members that are used, or mean nothing here.
_USED: Final = frozenset(
    {"model", "messages", "stream", "stream_options", "n", "user", "metadata", "store", "tools"}
    | {
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "enable_thinking",
        "thinking_budget",
    }
    | {"reasoning_effort", "enable_search", "search_options", "web_search_options"}
    | {"service_tier", "safety_identifier", "prompt_cache_key"}
)


class WebRequest(NamedTuple):
    """A request that is ready but for the id of its chat, and the places of its pictures.

    Attributes:
        chat_type: `t2t`, `search` or `deep_research`.
        pictures: those that are to be uploaded.
        changed: what of the client's request is not sent, for `x-qwen-proxy-changed`.
    """

    model: str
    chat_type: str
    content: str | list[dict[str, Any]]
    features: dict[str, Any]
    changed: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()

    def new_chat(self, now: float) -> dict[str, Any]:
        """The body that opens a chat, see `chat_body`."""
        return chat_body.new_chat(self.model, self.chat_type, now)

    def completion(
        self,
        chat_id: str,
        now: float,
        new_id: Callable[[], str],
        files: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """The body that asks for the answer, see `chat_body`.

        Args:
            files: the entries of its pictures, as they were uploaded.
        """
        return chat_body.completion(
            *(chat_id, now, new_id),
            model=self.model,
            kind=self.chat_type,
            content=self.content,
            files=files,
            features=self.features,
        )


def web_request(
    request: ChatRequest,
    named: Named,
    *,
    searching: bool = False,
    thinking: bool | None = None,
    strict: bool = False,
) -> WebRequest:
    """Translate a chat request.

    Args:
        searching, thinking: what the name that the client used for the model says of them.
        strict: refuse what would be dropped.

    Raises:
        BadRequest: it has function tools, files, or pictures that are broken; in strict mode also
            members that the web API does not have.
        ApiError: 413: it, or a picture, is too large.
    """
    refuse_media_names(named)
    _refuse_tools(request)
    dropped = tuple(name for name in request.body.names() if name not in _USED)
    dropped = tuple(name for name in dropped if request.body[name] is not None)
    asked = [name for name in dropped if name not in request.added]
    if strict and asked:
        raise BadRequest(
            f"The web account has no `{asked[0][:64]}`, and this proxy drops nothing "
            "(QWEN_PROXY_STRICT). Leave it out.",
            param=asked[0][:64],
            code="unsupported_parameter",
        )
    if named.variant == DEEP_RESEARCH:
        chat_type = "deep_research"
    elif searching or named.variant == SEARCH or search.is_requested(request.body):
        chat_type = "search"
    else:
        chat_type = "t2t"
    given: list[str] = []
    content = _content(request.body["messages"], given)
    return WebRequest(
        named.model,
        chat_type,
        content,
        _features(request, named, thinking),
        tuple(f"-{header_token(name)}" for name in dropped),
        _to_upload(given),
    )


def refuse_media_names(named: Named) -> None:
    """Refuse a name that makes pictures or videos.

    Raises:
        BadRequest: it does; the message names the endpoint.
    """
    if (made := MEDIA.get(named.variant)) is not None:
        endpoint = "POST /v1/images/generations" if named.variant == "image" else "POST /v1/videos"
        raise BadRequest(
            f"The model `{named.model}-{named.variant}` makes {made} and does not chat: call it "
            f"with {endpoint}.",
            param="model",
            code="wrong_endpoint_for_model",
        )


def refuse_long_text(whole: str, param: str) -> None:
    """Refuse more text than the web API's firewall lets through.

    Raises:
        ApiError: 413.
    """
    if len(whole) > MOST_CHARACTERS:
        raise ApiError(
            f"Invalid '{param}': it has {len(whole)} characters of text, and the web account takes "
            f"{MOST_CHARACTERS}: its firewall asks for a captcha above that. Send less, or use a "
            "model of an account with an API key.",
            status=413,
            type="invalid_request_error",
            code="web_request_too_large",
            param=param,
            should_retry=False,
        )


def _refuse_tools(request: ChatRequest) -> None:
    body = request.body
    others = [tool for tool in items(body.get("tools")) if not search.is_tool(tool)]
    called = others and body.get("tool_choice") != "none"
    if called or (body.get("functions") and body.get("function_call") != "none"):
        raise BadRequest(
            "The web account calls no functions: chat.qwen.ai ignores tools, so this request would "
            "be answered as if there were none. Leave `tools` out (but for `web_search`), set "
            "`tool_choice` to `none`, or use a model of an account with an API key.",
            param="tools",
            code="unsupported_parameter",
        )


def _features(request: ChatRequest, named: Named, thinking: bool | None) -> dict[str, Any]:
    body = request.body
    effort, enabled = body.get("reasoning_effort"), body.get("enable_thinking")
    if isinstance(enabled, bool):
        thinking = enabled
    elif named.variant == THINKING:
        thinking = True
    elif isinstance(effort, str):
        thinking = effort != "none"
    # Without the schema the events do not tell thoughts from the answer.
    features: dict[str, Any] = {"output_schema": "phase", "research_mode": "normal"}
    features["thinking_enabled"] = bool(thinking)
    features["auto_thinking"] = False
    budget = body.get("thinking_budget")
    if thinking and isinstance(budget, int) and not isinstance(budget, bool):
        features["thinking_budget"] = budget
    return features


def _to_upload(given: list[str]) -> tuple[Picture, ...]:
    """The pictures that are in the request itself, each once."""
    held = dict.fromkeys(url for url in given if not is_address(url))
    if len(held) > MOST_PICTURES:
        raise too_many("messages")
    return tuple(picture_of(url, "messages") for url in held)


def _content(messages: list[dict[str, Any]], pictures: list[str]) -> str | list[dict[str, Any]]:
    """What the only message holds: a text, or with pictures at addresses a list of parts; the
    URLs of all pictures are added to the list."""
    turns = [(text(each.get("role")), _text_of(each, pictures)) for each in messages]
    turns = [(role, said) for role, said in turns if said]
    if len(turns) == 1 and turns[0][0] == "user":
        whole = turns[0][1]
    else:
        whole = "\n\n".join(f"{role}:{said}" for role, said in turns)
    refuse_long_text(whole, "messages")
    if not whole and not pictures:
        raise BadRequest("The messages have no text.", param="messages")
    linked = [url for url in pictures if is_address(url)]
    if not linked:
        return whole
    return [{"type": "text", "text": whole}, *({"type": "image", "image": url} for url in linked)]


def _text_of(message: dict[str, Any], pictures: list[str]) -> str:
    """The text of a message; the URLs of its pictures are added to the list."""
    content = message.get("content")
    pieces = [content] if isinstance(content, str) else list(_pieces(items(content), pictures))
    for call in objects(items(message.get("tool_calls"))):
        function = mapping(call.get("function"))
        pieces.append(f"[called {text(function.get('name'))}({text(function.get('arguments'))})]")
    return "\n".join(piece for piece in pieces if piece)


def _pieces(parts: list[Any], pictures: list[str]) -> Iterator[str]:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal"):
            yield text(part.get(kind))
        elif kind == "image_url":
            holder = part.get("image_url")
            url = text(holder.get("url")) if isinstance(holder, dict) else text(holder)
            pictures.append(url)
        else:
            raise BadRequest(
                f"The web account takes texts and pictures, and no part of the type "
                f"'{str(kind)[:64]}'.",
                param="messages",
                code="unsupported_content",
            )
