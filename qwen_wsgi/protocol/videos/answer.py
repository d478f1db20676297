"""Renders what a task tells as OpenAI's video, and as the older form's answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.videos.ids import VideoRef, digest_of
from qwen_wsgi.protocol.videos.models import pixels_of

#: Tasks and their results are kept for so long.
LIFETIME_S: Final = 24 * 3600
#: A host may not know a task yet, right after it began.
_UNSEEN_S: Final = 60

#: Model Studio's words for the state of a task, in OpenAI's.
_STATUSES: Final[Mapping[str, str]] = {
    "PENDING": "queued",
    "SUSPENDED": "queued",
    "RUNNING": "in_progress",
    "SUCCEEDED": "completed",
}
#: OpenAI's status, and how far that is: hosts tell nothing in between.
_PROGRESS: Final = {"queued": 0, "in_progress": 50, "completed": 100, "failed": 0}

#: Times of tasks have no zone; they are Beijing's.
_BEIJING: Final = timezone(timedelta(hours=8))
_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MODERATED: Final = re.compile(r"DataInspection|data_inspection|IPInfringement", re.IGNORECASE)
_MESSAGE_CHARS: Final = 1000


def video(
    id: str,
    ref: VideoRef,
    task: Mapping[str, Any],
    *,
    now: float,
    prompt: str | None = None,
) -> dict[str, Any]:
    """OpenAI's video object (`openai.types.Video`).

    Args:
        task: the answer to a look at the task: `{"output": {…}, "usage"?: {…}}`.
        now: seconds since 1970.
        prompt: of the client; None takes the one that the task tells, if it is told.
    """
    output = json_access.mapping(task.get("output"))
    status, error = status_of(ref, task, now=now)
    ended = _seconds_of(output.get("end_time"))
    done = status in ("completed", "failed")
    told = prompt
    if told is None and not _is_of_another(ref, output):
        told = output.get("orig_prompt")
    return {
        "id": id,
        "object": "video",
        "created_at": ref.created,
        "status": status,
        "progress": _PROGRESS[status],
        "model": ref.model,
        "size": _size(ref, task),
        "seconds": _length(ref, task),
        "completed_at": ended if done else None,
        "expires_at": expires_at(ref, task) if output.get("video_url") else None,
        "error": error,
        "prompt": told if isinstance(told, str) else None,
        "remixed_from_video_id": None,
    }


def status_of(
    ref: VideoRef, task: Mapping[str, Any], *, now: float
) -> tuple[str, dict[str, str] | None]:
    """OpenAI's status, and its error for `failed`: `{"code", "message"}`."""
    output = json_access.mapping(task.get("output"))
    word = json_access.text(output.get("task_status")).upper()
    if _is_of_another(ref, output):
        return "failed", _error(
            "task_of_another",
            "The answer to the request for this video was lost, and the task that was taken for "
            "its own turned out to be another one's. Whether a video was made is not known.",
        )
    if word == "UNKNOWN" and now - ref.created < _UNSEEN_S:
        return "queued", None
    status = _STATUSES.get(word, "failed")
    old = word == "UNKNOWN" and now - ref.created >= LIFETIME_S
    if old or (status == "completed" and now >= expires_at(ref, task)):
        return "failed", _error("video_expired", "The video is gone: it was kept for 24 hours.")
    if status == "completed" and not video_url(task):
        return "failed", _error("no_video", "The upstream's task is done, but has no video.")
    if status != "failed":
        return status, None
    return status, _failure(word, output)


def _is_of_another(ref: VideoRef, output: Mapping[str, Any]) -> bool:
    """Whether a task that was found after a lost answer turns out to have another prompt."""
    prompt = output.get("orig_prompt")
    return bool(ref.prompt and isinstance(prompt, str) and digest_of(prompt) != ref.prompt)


def _failure(word: str, output: Mapping[str, Any]) -> dict[str, str]:
    if word == "CANCELED":
        return _error("video_cancelled", "The video was cancelled before it was begun.")
    if word == "UNKNOWN":
        return _error("video_unknown", "The upstream does not know the task of this video.")
    code, message = (json_access.text(output.get(name)) for name in ("code", "message"))
    message = message[:_MESSAGE_CHARS] or f"The task ended as {word[:32]}, without a reason."
    if _MODERATED.search(code) or _MODERATED.search(message):
        return _error("moderation_blocked", message)
    return _error(code if _CODE.fullmatch(code) else "video_failed", message)


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


def video_url(task: Mapping[str, Any]) -> str:
    """Where the video is, by the host that made it; "" if it is not done."""
    return json_access.text(json_access.mapping(task.get("output")).get("video_url"))


def expires_at(ref: VideoRef, task: Mapping[str, Any]) -> int:
    """When the video will be gone: 24 hours after its task's end."""
    ended = _seconds_of(json_access.mapping(task.get("output")).get("end_time"))
    return (ended or ref.created) + LIFETIME_S


def _seconds_of(time: object) -> int | None:
    """Seconds since 1970, of `2026-11-28 12:00:00.123` in Beijing."""
    if not isinstance(time, str):
        return None
    try:
        return int(datetime.fromisoformat(time[:32]).replace(tzinfo=_BEIJING).timestamp())
    except (ValueError, OverflowError):
        return None


def _size(ref: VideoRef, task: Mapping[str, Any]) -> str:
    """As it was made, where the task tells it, else as it was asked for."""
    usage = json_access.mapping(task.get("usage"))
    tier, ratio = json_access.integer(usage.get("SR")), json_access.text(usage.get("ratio"))
    if ref.size == "auto" and tier is not None:
        return pixels_of(tier, ratio)
    return ref.size


def _length(ref: VideoRef, task: Mapping[str, Any]) -> str:
    usage = json_access.mapping(task.get("usage"))
    for name in ("output_video_duration", "duration"):
        made = usage.get(name)
        if isinstance(made, int | float) and not isinstance(made, bool) and 0 < made < 1e6:
            return f"{made:g}"
    return ref.seconds


def generation(made: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """The older form's answer: `{"id", "created", "status", "model", "data": [{"url"}],
    "error"?}`.

    Args:
        made: of `video`.
    """
    done = made["status"] == "completed"
    answer = {
        "id": made["id"],
        "object": "video.generation",
        "created": made["created_at"],
        "status": made["status"],
        "model": made["model"],
        "data": [{"url": video_url(task)}] if done else [],
    }
    if made["error"] is not None:
        answer["error"] = made["error"]
    return answer
