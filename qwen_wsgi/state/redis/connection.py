"""The Redis that several boxes share: asked within a bounded time, and left alone while it is away.

A call must not wait for it: a question has 250 ms in all. After one that failed nobody asks, and a
probe once a second finds out when it is back. What is shared is then known by what each box counted
and remembered meanwhile; see docs/boxes.md and docs/decisions/066.

The package `redis` is imported by the first question: without QWEN_PROXY_REDIS_URL, never.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from qwen_wsgi.clock import Clock
from qwen_wsgi.redaction import masked_url
from qwen_wsgi.state.state_key import kept_or_made

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Of every key. Boxes that share a Redis with others' programs are told apart by the database
#: number of the URL.
PREFIX: Final = "qwen-proxy:"
#: The longest that a question may take, with the connection that it may need. Seconds.
PATIENCE_S: Final = 0.25
#: Between two probes while it is away, and between two looks whether it still has its data.
PROBE_S: Final = 1.0
#: Connections of one process; further questions wait for one, within their time.
_MOST_CONNECTIONS: Final = 32
#: For the sockets themselves, where `within` bounds the time: an answer may have come while the
#: event loop was busy.
_BACKSTOP_S: Final = 5.0

_BOX_FILE: Final = "box.id"
_BOX_BYTES: Final = 8

#: What tells one set of data from another one: it is lost with them.
_EPOCH: Final = PREFIX + "epoch"
_PROBED: Final = PREFIX + "probed"


class SharedStoreAway(Exception):
    """Redis does not answer, or not as it should; the text is for the log."""


class Lua:
    """A script that Redis runs as one step.

    Sent by its digest; whole after Redis was restarted or flushed of its scripts.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._digest = sha1(text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it; for the work that is given to `SharedStore.run`."""
        import redis

        try:
            return client.evalsha(self._digest, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return client.eval(self.text, len(keys), *keys, *args)


class Survey(NamedTuple):
    """How a Redis is set up.

    Attributes:
        seconds: that a question takes.
        policy: what it does when its memory is full (`maxmemory-policy`).
        limit: of its memory in bytes; 0 for none.
        persistent: whether it writes its data to the disk; None if it does not tell.
    """

    version: str
    seconds: float
    policy: str
    limit: int
    persistent: bool | None


class SharedStore:
    """The connection of one process.

    Args:
        url: as `settings.Settings.redis_url`.
        box: a name of this machine's state directory that no other box has.
        within: bounds the time of what is done inside it, with a TimeoutError; sockets do it
            where it is None.
        patience_s: how long a question may take.

    Attributes:
        away: whether it is away now.
        since: since when, seconds since 1970; None while it is there.
        reason: why it is away; "" while it is there.
        has_lost: for those who are told that it is back: whether it has lost some of what it had.
        version: of the server, as it told last; "" before.
        shown: its URL for logs and people.
    """

    def __init__(
        self,
        url: str,
        box: str,
        clock: Clock,
        *,
        within: Callable[[float], AbstractContextManager[object]] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.box = box
        self.away = False
        self.since: float | None = None
        self.reason = ""
        self.has_lost = False
        self.version = ""
        self.shown = masked_url(url)
        self._url = url
        self._clock = clock
        self._within = within or (lambda seconds: nullcontext())
        self.patience_s = patience_s
        self._socket_timeout_s = patience_s if within is None else _BACKSTOP_S
        self._client: redis.Redis | None = None
        self._pid = 0
        self._callbacks: list[Callable[[], None]] = []
        self._beats: list[Callable[[], None]] = []
        self._data: tuple[bytes, bytes] | None = None
        self._stop = threading.Event()
        self._running = False
        self._probe_at_s = -math.inf
        self._probing = False

    def run(self, work: Callable[[redis.Redis], T]) -> T:
        """Ask Redis. Bytes come back as bytes.

        Args:
            work: gets a client; it may be broken off, and may have been done all the same.

        Raises:
            SharedStoreAway: it is away: at once if that is known.
        """
        if self.away:
            now_s = self._clock.monotonic()
            # Where no probes run (commands, tests), who asks after a second tries it.
            if self._running or self._probing or now_s < self._probe_at_s:
                raise SharedStoreAway(self.reason)
            self._probe_at_s = now_s + PROBE_S
            self.probe()
            if self.away:
                raise SharedStoreAway(self.reason)
        return self._ask(work)

    def away_s(self) -> float | None:
        """For how long it has been away; None while it is there."""
        return None if self.since is None else max(0.0, self._clock.now() - self.since)

    def told(self) -> str:
        """How it is, as a sentence for the operator."""
        if (away_s := self.away_s()) is None:
            version = f" {self.version}" if self.version else ""
            return f"Redis{version} at {self.shown} is shared with other boxes."
        return (
            f"Redis at {self.shown} has been away for {away_s:.0f} s ({self.reason}): this box "
            "counts limits by itself, and client keys cannot be changed."
        )

    def survey(self) -> Survey:
        """What doctor wants to know. Raises SharedStoreAway."""
        found = self.run(_survey)
        began_s = self._clock.monotonic()
        self.run(lambda client: client.ping())
        return found._replace(seconds=self._clock.monotonic() - began_s)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Have something called when Redis is back after it was away, and when it has lost its data
        or has older ones: what this box knows is to be added or put back then.

        It is not called for the first contact. It may ask Redis, and may be told again meanwhile.
        """
        self._callbacks.append(callback)

    def each_second(self, callback: Callable[[], None]) -> None:
        """Have something called every second while Redis is there, beside all calls."""
        self._beats.append(callback)

    def start(self) -> None:
        """Begin the looks of each second, in this process: after the fork."""
        self._running = True
        threading.Thread(target=self._look_after, name="shared-store", daemon=True).start()

    def close(self) -> None:
        """End the looks, and close the connections."""
        self._stop.set()
        client, self._client = self._client, None
        if client is not None:
            client.close()
            client.connection_pool.disconnect()

    # --- the looks of each second --------------------------------------------------------------

    def _look_after(self) -> None:
        while True:
            self.look()
            if self._stop.wait(PROBE_S):
                return

    def look(self) -> None:
        """Find out whether Redis is there and has the data that it had; never raises."""
        if self.away:
            self.probe()
            if self.away:
                return
        else:
            try:
                self._see(self._ask(_state_of))
            except SharedStoreAway:
                return
        for beat in self._beats:
            self._guarded(beat)

    def probe(self) -> None:
        """Try a Redis that is away, once, and tell everybody if it is back."""
        if self._probing:
            return
        self._probing = True
        try:
            found = self._ask(_probed)
        except SharedStoreAway:
            return
        finally:
            self._probing = False
        since, self.away, self.since, self.reason = self.since, False, None, ""
        away_s = 0.0 if since is None else max(0.0, self._clock.now() - since)
        log.warning("Redis is back after %.0f s redis=%s", away_s, self.shown)
        self._see(found, told=True)

    def _see(self, found: tuple[bytes, bytes, str], *, told: bool = False) -> None:
        """Tell everybody if it has other data than before.

        Args:
            told: tell them in any case.
        """
        epoch, run, self.version = found
        before, self._data = self._data, (epoch, run)
        self.has_lost = before not in (None, self._data)
        if self.has_lost:
            log.warning(
                "Redis has lost its data or was started anew; what this box knows is put back"
                " redis=%s",
                self.shown,
            )
        if self.has_lost or told:
            self._tell()

    def _tell(self) -> None:
        for callback in list(self._callbacks):
            self._guarded(callback)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except SharedStoreAway:
            pass  # it is known, and the work is told when Redis is back
        except Exception as error:  # one feature's fault must not keep the others from theirs
            log.error("what is shared with other boxes could not be looked after", exc_info=error)

    # --- one question --------------------------------------------------------------------------

    def _ask(self, work: Callable[[redis.Redis], T]) -> T:
        client = self._connected()
        import redis

        try:
            with self._within(self.patience_s):
                return work(client)
        except (redis.RedisError, TimeoutError, OSError) as error:
            self._lose(error)
            raise SharedStoreAway(self.reason) from error

    def _connected(self) -> redis.Redis:
        """The client of this process; no connection outlives a fork."""
        if self._client is None or self._pid != os.getpid():
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            # Before redis 6 the package looks at who signed a certificate, and not at its name.
            tls: dict[str, Any] = {"ssl_check_hostname": True}
            pool = redis.BlockingConnectionPool.from_url(
                self._url,
                protocol=2,  # no greeting, which would be one more trip
                retry=Retry(NoBackoff(), 0),
                max_connections=_MOST_CONNECTIONS,
                timeout=self._socket_timeout_s,
                socket_timeout=self._socket_timeout_s,
                socket_connect_timeout=self._socket_timeout_s,
                **_unnamed(redis),
                **(tls if self._url.startswith("rediss://") else {}),
            )
            self._client, self._pid = redis.Redis(connection_pool=pool), os.getpid()
        return self._client

    def _lose(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            text = f"no answer within {self.patience_s * 1000:.0f} ms"
        self.reason = text
        if self.away:
            return
        self.away, self.since = True, self._clock.now()
        self._probe_at_s = self._clock.monotonic() + PROBE_S
        log.error(
            "Redis is away (%s): this box goes on with what it knows, by itself redis=%s",
            text,
            self.shown,
        )


def _unnamed(library: Any) -> Mapping[str, Any]:
    """Send no name of a library for each connection: two trips less. Newer versions of the package
    warn of the older names of the argument."""
    if hasattr(library, "DriverInfo"):
        return {"driver_info": None}
    return {"lib_name": None, "lib_version": None}


def _state_of(client: redis.Redis) -> tuple[bytes, bytes, str]:
    """Which data Redis has, since which start of it, and its version."""
    with client.pipeline(transaction=False) as several:
        several.set(_EPOCH, secrets.token_hex(8), nx=True)
        several.get(_EPOCH)
        several.info("server")
        _, epoch, info = several.execute()
    return epoch or b"", str(info.get("run_id", "")).encode(), str(info.get("redis_version", ""))


def _survey(client: redis.Redis) -> Survey:
    import redis

    found: dict[str, Any] = {}
    for part in ("server", "memory", "persistence"):
        found.update(client.info(part))
    persistent: bool | None = bool(found.get("aof_enabled"))
    if not persistent:
        try:
            saves: Any = client.config_get("save")
            persistent = bool(saves.get("save"))
        except redis.ResponseError:  # a user who may not ask
            persistent = None
    return Survey(
        str(found.get("redis_version", "")),
        0.0,
        str(found.get("maxmemory_policy", "")),
        int(found.get("maxmemory", 0)),
        persistent,
    )


def _probed(client: redis.Redis) -> tuple[bytes, bytes, str]:
    """The same of one that takes writes."""
    client.set(_PROBED, 1, px=60_000)
    return _state_of(client)


def box_id(directory: Path | None) -> str:
    """The name of a box, made once and kept in its state directory; one for this process alone
    where there is none, or where it cannot be written."""
    if directory is None:
        return secrets.token_hex(_BOX_BYTES)
    file = directory / _BOX_FILE
    try:
        return kept_or_made(file, _BOX_BYTES).hex()
    except OSError as error:
        log.warning("%s cannot be read or made, this worker counts as a box: %s", file, error)
        return secrets.token_hex(_BOX_BYTES)
