"""Speech recognition as Model Studio has it: at once, by chat, and by tasks for files. Pure.

What it hears is always the same two sentences, or those of the behaviour `text`.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec

Json = dict[str, Any]
#: A stored file by its `oss://` URL: its model and bytes, or None.
Stored = Callable[[str], tuple[str, bytes] | None]

TEXT: Final = "Hello from the sandbox. It hears every sound alike."
_MOST_SECONDS: Final = 300
_MOST_ENCODED: Final = 10_000_000
_WORD_MS: Final = 400
_PUNCTUATION: Final = ".,!?。，！？"


def has(model: str) -> bool:
    """Whether a model transcribes."""
    return "-asr" in model or model.startswith("paraformer")


def is_native(model: str) -> bool:
    """Whether it is asked by the route for what is made at once."""
    return "-asr-flash" in model and "filetrans" not in model and not model.startswith("qwen3-")


def chat_refusal(body: Json) -> Refusal | None:
    """The refusal of a chat request to a model that transcribes, or None."""
    messages = body.get("messages")
    parts = [
        part
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    ]
    if len(parts) != 1 or not isinstance(parts[0], dict) or parts[0].get("type") != "input_audio":
        return _compat("This model takes exactly one input_audio.")
    if not re.match(r"qwen3-asr-flash(?!.*filetrans)", str(body.get("model"))):
        return _compat("url error, please check url!")
    complaint = _sound_refusal((parts[0].get("input_audio") or {}).get("data"))
    return None if complaint is None else _compat(complaint)


def generate(body: Json, spec: Spec) -> Json | Refusal:
    """The answer of the synchronous route."""
    given = body.get("input")
    messages = given.get("messages") if isinstance(given, dict) else None
    if not isinstance(messages, list) or not messages:
        return _invalid("Field required: input.messages")
    for turn in messages[:-1]:
        for part in turn.get("content") or []:
            if len(str(part.get("text", ""))) > 400:
                return _invalid("the text of a turn has more than 400 characters")
    parts = messages[-1].get("content") or []
    if len(parts) != 1 or parts[0].get("type") != "input_audio":
        return _invalid("the last message must be one input_audio")
    complaint = _sound_refusal((parts[0].get("input_audio") or {}).get("data"))
    if complaint is not None:
        code = "AUDIO_DURATION_TOO_LONG" if "long" in complaint else "InvalidParameter"
        return Refusal(400, code, complaint, form="native")
    if not (body.get("parameters") or {}).get("format"):
        return _invalid("Field required: parameters.format")
    text = spec.text("text", TEXT)
    return {"output": {"text": text}, "usage": {"input_tokens": 50, "output_tokens": 12}}


def events(made: Json) -> Iterator[Json]:
    """The events of a stream: sentences as they grow, and at last the whole text."""
    for sentence in re.findall(r"[^.]*\.? ?", made["output"]["text"]):
        middle = len(sentence) // 2
        for text in (sentence[:middle], sentence):
            if text:
                yield {"output": {"sentence": {"text": text}}}
    yield made


def transcribe(body: Json, spec: Spec, stored: Stored, resolve: str | None) -> Json | Refusal:
    """The transcript that a task makes of a file, and what tells of it: `{"document", "several"}`.

    Args:
        resolve: the header that says that `oss://` URLs are stored files.
    """
    model = str(body.get("model"))
    several = not model.startswith("qwen3-")
    if not has(model) or is_native(model) or model == "qwen3-asr-flash":
        return Refusal(404, "ModelNotFound", f"Model not exist: {model}", form="native")
    given = body.get("input") or {}
    urls = given.get("file_urls") if several else [given.get("file_url")]
    if not isinstance(urls, list) or len(urls) != 1 or not isinstance(urls[0], str):
        return _invalid("Field required: input.file_urls" if several else "input.file_url")
    if urls[0].startswith("oss://"):
        if resolve != "enable":
            return _invalid("The url is invalid: oss:// needs X-DashScope-OssResourceResolve.")
        found = stored(urls[0])
        if found is None or found[0] != model:
            return {"failed": "FILE_403_FORBIDDEN", "several": several}
    if spec.count("partial"):
        return {"failed": "FILE_403_FORBIDDEN", "several": several}
    parameters = body.get("parameters") or {}
    words = several or parameters.get("enable_words") is True
    return {
        "document": _document(spec.text("text", TEXT), urls[0], words=words),
        "several": several,
    }


def output_of(made: Json, url: str) -> Json:
    """The members of a task's output."""
    if "failed" in made:
        failed = {"code": made["failed"], "message": "[sandbox] the file cannot be read"}
        result = {"subtask_status": "FAILED", **failed}
    else:
        result = {"subtask_status": "SUCCEEDED", "transcription_url": url}
    return {"results": [result]} if made["several"] else {"result": result}


def _document(text: str, url: str, *, words: bool) -> Json:
    sentences: list[Json] = []
    at = 0
    for number, sentence in enumerate(re.findall(r"[^.]+\.?", text)):
        sentence = sentence.strip()
        said: list[Json] = []
        begin = at
        for word in sentence.split():
            bare = word.rstrip(_PUNCTUATION)
            said.append(
                {
                    "begin_time": at,
                    "end_time": at + _WORD_MS,
                    "text": bare,
                    "punctuation": word[len(bare) :],
                }
            )
            at += _WORD_MS
        entry: Json = {
            "sentence_id": number,
            "begin_time": begin,
            "end_time": at,
            "language": "en",
            "emotion": "neutral",
            "text": sentence,
        }
        sentences.append({**entry, "words": said} if words else entry)
    return {
        "file_url": url,
        "audio_info": {"format": "wav", "sample_rate": 16_000},
        "transcripts": [{"channel_id": 0, "text": text, "sentences": sentences}],
    }


def _sound_refusal(data: object) -> str | None:
    if not isinstance(data, str):
        return "Field required: input_audio.data"
    if data.startswith(("https://", "http://")):
        return None
    match = re.match(r"data:audio/[a-z0-9.+-]+;base64,", data)
    if match is None:
        return "The audio is no data URL."
    if len(data) > _MOST_ENCODED:
        return "The audio is larger than 10 MB."
    try:
        sound = base64.b64decode(data[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        return "The audio is no base64."
    if sound[:4] == b"RIFF" and len(sound) >= 44:
        rate, size = struct.unpack_from("<I", sound, 28)[0], len(sound) - 44
        if rate and size / rate > _MOST_SECONDS:
            return "The audio is too long: more than 300 s."
    # A test says by its sound's bytes that it is too long, where no head tells it.
    return "The audio is too long: more than 300 s." if b"sandbox:too-long" in sound else None


def _invalid(message: str) -> Refusal:
    return Refusal(400, "InvalidParameter", message, form="native")


def _compat(message: str) -> Refusal:
    return Refusal(400, "invalid_parameter_error", message, "invalid_request_error")


# --- the temporary storage -----------------------------------------------------------------------


def policy(model: str, directory: str, host: str) -> Json:
    """The answer to a request for storage."""
    return {
        "data": {
            "policy": "sandbox-policy",
            "signature": f"sandbox-signature-{model}",
            "upload_dir": directory,
            "upload_host": host,
            "expire_in_seconds": 300,
            "max_file_size_mb": 100,
            "oss_access_key_id": "sandbox-id",
            "x_oss_object_acl": "private",
            "x_oss_forbid_overwrite": "true",
        }
    }


def form_fields(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """The fields of a multipart body, in their order."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    found = []
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        found.append((name[1].decode() if name else "", value.removesuffix(b"\r\n")))
    return found
