"""What the native media routes keep: tasks, and the files that they made. Thread-safe.

A task goes on with each look at it, not with time, so that a test decides when it is done.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

#: Tasks and their results are gone after that many seconds.
LIFETIME_S: Final = 24 * 3600
#: Model Studio's times have no zone; they are Beijing's.
_BEIJING_S: Final = 8 * 3600
_MOST_FILES: Final = 1000


@dataclass(frozen=True, slots=True)
class File:
    """A made file: its bytes, or only how many there are (their content is made up)."""

    content_type: str
    data: bytes
    size: int
    made_at: float


@dataclass(slots=True)
class Task:
    """One task; `make` gives the members of its output once it is done."""

    id: str
    model: str
    key_ends: str
    submitted_at: float
    make: Callable[[], Json]
    looks: int
    ending: str
    failure: str
    waits: int = 0
    status: str = "PENDING"
    output: Json | None = None
    ended_at: float | None = None


class Media:
    """Tasks and files of one sandbox."""

    def __init__(self, clock: Callable[[], float], origin: Callable[[], str]) -> None:
        self._clock = clock
        self._origin = origin
        self._lock = threading.Lock()
        self._files: OrderedDict[str, File] = OrderedDict()
        self.tasks: dict[str, Task] = {}
        #: Of the temporary storage: the model that may use a file, and its bytes, by its key.
        self.stored: dict[str, tuple[str, bytes]] = {}

    def reset(self) -> None:
        with self._lock:
            self._files.clear()
            self.tasks.clear()
            self.stored.clear()

    # --- files -------------------------------------------------------------------------------

    def keep(self, name: str, content_type: str, data: bytes, size: int | None = None) -> str:
        """Keep a file; its path below the origin.

        Args:
            name: its end, such as `picture.png`.
            size: that many bytes instead of `data`.
        """
        path = f"/_results/{secrets.token_hex(8)}/{name}"
        file = File(content_type, data, len(data) if size is None else size, self._clock())
        with self._lock:
            self._files[path] = file
            while len(self._files) > _MOST_FILES:
                self._files.popitem(last=False)
        return path

    def url(self, path: str, host: str = "") -> str:
        """The file's URL, on another host if one is named."""
        return (host or self._origin()) + path + "?Expires=1&Signature=sandbox"

    def file(self, path: str) -> File | None:
        with self._lock:
            file = self._files.get(path)
        fresh = file is not None and self._clock() - file.made_at < LIFETIME_S
        return file if fresh else None

    @property
    def origin(self) -> str:
        return self._origin()

    # --- tasks -------------------------------------------------------------------------------

    def start(
        self,
        model: str,
        make: Callable[[], Json],
        *,
        key_ends: str,
        looks: int,
        ending: str,
        failure: str,
        waits: int = 0,
    ) -> Task:
        """Begin a task.

        Args:
            looks: it is done at that many looks at it.
            ending: its last status.
            failure: the code of one that ends as FAILED.
            waits: it is PENDING for so many looks.
        """
        id, now = str(uuid.uuid4()), self._clock()
        task = Task(id, model, key_ends, now, make, looks, ending, failure, waits)
        with self._lock:
            self.tasks[task.id] = task
        return task

    def look(self, id: str) -> Json:
        """The output member of an answer about a task, which goes on by one look."""
        with self._lock:
            task = self.tasks.get(id)
            if task is None or self._clock() - task.submitted_at > LIFETIME_S:
                return {"task_id": id, "task_status": "UNKNOWN"}
            if task.status == "PENDING" and task.waits > 0:
                task.waits -= 1
            elif task.status in ("PENDING", "RUNNING"):
                task.looks -= 1
                task.status = "RUNNING" if task.looks > 0 else task.ending
                if task.looks <= 0:
                    task.ended_at = self._clock()
                    task.output = task.make() if task.ending == "SUCCEEDED" else _failed(task)
            return {
                "task_id": id,
                "task_status": task.status,
                "submit_time": beijing_time(task.submitted_at),
                "scheduled_time": beijing_time(task.submitted_at),
                **({"end_time": beijing_time(task.ended_at)} if task.ended_at else {}),
                **(task.output or {}),
            }

    def cancel(self, id: str) -> bool:
        """Cancel a task; whether it was still waiting."""
        with self._lock:
            task = self.tasks.get(id)
            if task is None or task.status != "PENDING":
                return False
            task.status, task.ended_at = "CANCELED", self._clock()
            return True

    def listed(self, model: str, start: str = "", end: str = "") -> list[Json]:
        """All tasks of a model ("" for all), the newest first, as the list of tasks shows them.

        Args:
            start, end: `YYYYMMDDhhmmss` in Beijing; "" for no limit.
        """
        with self._lock:
            found = [
                each
                for each in self.tasks.values()
                if model in ("", each.model) and start <= _digits(each.submitted_at) <= (end or "9")
            ]
        return [
            {
                "task_id": each.id,
                "status": each.status,
                "model_name": each.model,
                "api_key_id": each.key_ends,
                "region": "sandbox",
                "gmt_create": int(each.submitted_at * 1000),
                "start_time": int(each.submitted_at * 1000),
                "end_time": int((each.ended_at or 0) * 1000) or None,
            }
            for each in sorted(found, key=lambda each: -each.submitted_at)
        ]


def _failed(task: Task) -> Json:
    if task.ending != "FAILED":
        return {}
    return {"code": task.failure, "message": "[sandbox] the task failed"}


def _digits(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds + _BEIJING_S))


def beijing_time(seconds: float) -> str:
    """`YYYY-MM-DD HH:mm:ss.SSS`, as tasks have it: UTC+8, without a zone."""
    whole = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds + _BEIJING_S))
    return f"{whole}.{int(seconds % 1 * 1000):03d}"
