"""The stores of what clients have made: of this box alone, or of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.background import BackgroundQueue
from qwen_wsgi.state.database.host_objects import BATCH_LIFE_S, HostObjects, Kind
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.sqlite import Apart, Database, here
from qwen_wsgi.state.database.videos import KEPT_S, VideoStore
from qwen_wsgi.state.redis.connection import SharedStore
from qwen_wsgi.state.redis.records import OrderStream, Records
from qwen_wsgi.state.redis.tasks import TaskNotes
from qwen_wsgi.state.redis.values import Packer, Sealing
from qwen_wsgi.state.shared import host_objects, videos
from qwen_wsgi.state.shared.host_objects import SharedHostObjects
from qwen_wsgi.state.shared.outbox import Outbox
from qwen_wsgi.state.shared.responses import SharedQueue, SharedResponses
from qwen_wsgi.state.shared.videos import SharedVideos


class Stores(NamedTuple):
    """The stores of one box."""

    responses: ResponseStore
    queue: BackgroundQueue
    host_objects: HostObjects
    videos: VideoStore

    @staticmethod
    def cancel_elsewhere(owner: str, id: str) -> dict[str, Any] | None:
        """End a response in the background that another box makes: there is none."""
        return None


class SharedStores(NamedTuple):
    """The stores of several boxes, and what they order each other, and wait to tell."""

    responses: SharedResponses
    queue: SharedQueue
    host_objects: SharedHostObjects
    videos: SharedVideos
    orders: OrderStream
    outbox: Outbox

    def cancel_elsewhere(self, owner: str, id: str) -> dict[str, Any] | None:
        """End a response in the background that another box makes (`SharedResponses`)."""
        return self.responses.cancel_elsewhere(owner, id)


def stores_of(
    settings: Settings,
    database: Database,
    clock: Clock,
    shared: SharedStore | None,
    *,
    seal: Sealing | None = None,
    apart: Apart = here,
    sleep: Callable[[float], None] = sleep,
) -> Stores | SharedStores:
    """The stores that these settings want.

    Args:
        shared: the Redis of several boxes; None for one alone.
        seal: seals what lies there.
        apart: a thread for large values.
        sleep: for the pauses while another box is waited for.
    """
    ttl_s, most = settings.responses_ttl_s, settings.responses_max_bytes
    largest, per_client = settings.max_body_bytes, settings.background_per_key
    if shared is None:
        return Stores(
            ResponseStore(database, clock, ttl_s=ttl_s, max_bytes=most, largest_history=largest),
            BackgroundQueue(database, clock, per_client=per_client, kept_s=ttl_s),
            HostObjects(database, clock),
            VideoStore(database, clock),
        )
    records = partial(Records, shared, Packer(seal, apart))
    orders, outbox = OrderStream(shared), Outbox(database)
    responses = SharedResponses(
        database,
        clock,
        records("response", ttl_s=ttl_s, max_bytes=most),
        orders,
        outbox,
        ttl_s=ttl_s,
        max_bytes=most,
        largest_history=largest,
        apart=apart,
        sleep=sleep,
    )
    objects: dict[Kind, Records] = {
        "file": records("file", ttl_s=0, max_bytes=host_objects.MAX_BYTES, listed=True),
        "batch": records(
            "batch", ttl_s=BATCH_LIFE_S, max_bytes=host_objects.MAX_BYTES, listed=True
        ),
    }
    of_videos = records("video", ttl_s=KEPT_S, max_bytes=videos.MAX_BYTES, listed=True)
    return SharedStores(
        responses,
        SharedQueue(database, clock, responses, per_client=per_client, kept_s=ttl_s),
        SharedHostObjects(database, clock, objects, outbox),
        SharedVideos(database, clock, of_videos, TaskNotes(shared), outbox),
        orders,
        outbox,
    )
