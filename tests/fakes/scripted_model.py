"""An upstream whose answer to each chat is a test's own stream of events."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.fakes.raw_server import Peer, RawServer, stream, whole

Chat = dict[str, Any]

DONE = b"data: [DONE]\n\n"


class ScriptedModel(RawServer):
    """Streams to each chat what `answer` makes of its body; every other path is 404.

    Attributes:
        chats: the bodies of the chats, in the order in which they came.
    """

    def __init__(self, answer: Callable[[Chat], bytes]) -> None:
        super().__init__(self._serve_request)
        self.chats: list[Chat] = []
        self._answer = answer

    @property
    def base_url(self) -> str:
        return self.url + "/v1"

    @property
    def turns(self) -> list[Chat]:
        """The chats that offer tools: not those for titles and the like."""
        return [chat for chat in self.chats if chat.get("tools")]

    def _serve_request(self, peer: Peer) -> None:
        head, _, body = peer.request.partition(b"\r\n\r\n")
        if not head.split(b" ", 2)[1].endswith(b"/chat/completions"):
            peer.send(whole(b"{}", "404 Not Found"))
            return
        chat = json.loads(body)
        self.chats.append(chat)
        answer = self._answer(chat)
        # What does not begin as an event is an answer with its own head.
        peer.send(answer if answer.startswith(b"HTTP/") else stream(answer))


def event(delta: Chat, finish: str | None = None, **more: Any) -> bytes:
    """One chunk of one choice as an event."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _data({"choices": [choice], **more})


def says(text: str, finish: str | None = "stop") -> bytes:
    """A whole stream with a text; without `finish` only [DONE] ends it."""
    words = [event({"role": "assistant", "content": ""})]
    words += [event({"content": word}) for word in re.findall(r"\S+\s*", text)]
    end = [] if finish is None else [event({}, finish)]
    return b"".join([*words, *end, _usage(), DONE])


def calls(*wanted: tuple[str, str, str]) -> bytes:
    """A whole stream with tool calls under indexes of their own: each an id, a name, arguments."""
    fragments = [
        event({"tool_calls": [_fragment(index, *one)]}) for index, one in enumerate(wanted)
    ]
    return b"".join([*fragments, event({}, "tool_calls"), _usage(), DONE])


def refuses(status: str, error: Chat) -> bytes:
    """A whole answer that is an error."""
    return whole(json.dumps({"error": error}).encode(), status)


def results(chat: Chat) -> list[Chat]:
    """The results of tools at the end of a chat."""
    found: list[Chat] = []
    for message in reversed(chat["messages"]):
        if message["role"] != "tool":
            break
        found.insert(0, message)
    return found


def _fragment(index: int, id: str, name: str, arguments: str) -> Chat:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": id, "type": "function", "function": function}


def _usage() -> bytes:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return _data({"choices": [], "usage": usage})


def _data(members: Chat) -> bytes:
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", **members}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


#: What servers and gateways send between chunks, or as chunks, and clients do not expect.
NOISE = (
    b": a comment\n\n",
    b"data: \n\n",
    b"data: ping\n\n",
    b"data: null\n\n",
    b"data: {}\n\n",
    b"data: []\n\n",
    b'event: keepalive\ndata: {"type":"keepalive"}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m"}\n\n',
    b'data: {"id":"c1","choices":null,"model":null,"created":"x"}\n\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":null}]}\n\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":7,"content":null}}]}\n\n',
    b'data: {"id":1,"choices":[{"index":"0","delta":{"content":"~"}}],"usage":"none"}\n\n',
)
#: The text of that noise.
NOISE_TEXT = "~"


def amid_noise(whole_stream: bytes) -> bytes:
    """The same stream with noise before, between and after its chunks."""
    events = [each + b"\n\n" for each in whole_stream.split(b"\n\n") if each]
    noise = b"".join(NOISE)
    return b"".join(noise + each for each in events)
