"""What is measured, and what the goals are."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import statistics
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from benchmarks import load
from benchmarks.load import LoadError
from benchmarks.servers import Target
from tests.kit import processes

#: What one measurement of one target yields: values by the row's key.
Values = dict[str, float]

#: Time for what a server does after an answer's last byte.
_SETTLE_S: Final = 0.1

#: Pieces of time that are judged alone, so that a pause of the machine spoils one of them only.
_DELAY_WINDOW_S: Final = 0.25

#: The goal: the most that an open stream may take.
STREAM_KB: Final = 30.0

#: How long an upstream connection may stay open after its client went away.
_CLOSE_WAIT_S: Final = 2.0


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `quick` makes it less."""

    requests: int = 3000
    bursts: int = 200
    bodies: int = 200
    window_s: float = 4.0
    delay_window_s: float = 5.0
    streams: int = 500
    delay_streams: int = 1000
    closes: int = 20


QUICK: Final = Sizes(requests=800, bursts=60, bodies=60, window_s=1.5, delay_window_s=2.0)


@dataclass
class Bench:
    """What every measurement gets."""

    up: Target
    sizes: Sizes
    #: The number of the next disconnect: the upstream tells them apart by it.
    seed: int = field(default=0)


async def _cpu_of(target: Target, request: bytes, count: int, concurrency: int) -> float:
    """CPU seconds per request, after a warm-up."""
    await load.hammer(target, request, max(4 * concurrency, count // 10), concurrency)
    await asyncio.sleep(_SETTLE_S)
    pids = processes.tree(target.pid or 0)
    before = processes.cpu_s(pids)
    await load.hammer(target, request, count, concurrency)
    await asyncio.sleep(_SETTLE_S)
    return (processes.cpu_s(pids) - before) / count


def _many(bench: Bench, target: Target) -> int:
    """nginx is so cheap that it needs more requests for the same certainty."""
    return bench.sizes.requests * (3 if target.name == "nginx" else 1)


async def request(bench: Bench, target: Target) -> Values:
    """A small non-stream call."""
    cpu = await _cpu_of(target, load.chat("fast"), _many(bench, target), 32)
    return {"request_us": cpu * 1e6}


async def setup(bench: Bench, target: Target) -> Values:
    """A stream of one chunk."""
    cpu = await _cpu_of(target, load.chat("fast", stream=True), _many(bench, target), 16)
    return {"setup_us": cpu * 1e6}


async def burst(bench: Bench, target: Target) -> Values:
    """Streams of 1000 chunks that are all there at once."""
    request = load.chat("fast", stream=True, chunks=1000)
    return {"burst_ms": await _cpu_of(target, request, bench.sizes.bursts, 4) * 1e3}


async def paced(bench: Bench, target: Target) -> Values:
    """40 streams, 20 ms between chunks; only the middle of the streams counts."""
    request = load.chat("brisk", stream=True, chunks=_chunks(bench, 0.02))
    return {"paced_us": await _cpu_of_a_chunk(bench, target, request)}


def _chunks(bench: Bench, every_s: float) -> int:
    """So many that no stream ends within the time that counts."""
    return int(bench.sizes.window_s / every_s) + 100


async def _cpu_of_a_chunk(bench: Bench, target: Target, request: bytes) -> float:
    window_s = bench.sizes.window_s
    opened = await load.open_streams(target, request, 40)
    await asyncio.sleep(0.3)
    pids = processes.tree(target.pid or 0)
    chunks_before = (await load.stats(bench.up))["chunks"]
    cpu_before = processes.cpu_s(pids)
    await asyncio.sleep(window_s)
    cpu = processes.cpu_s(pids) - cpu_before
    passed: int = (await load.stats(bench.up))["chunks"] - chunks_before
    load.close_all(opened)
    await asyncio.sleep(_SETTLE_S)
    return cpu / passed * 1e6


async def dialects(bench: Bench, target: Target) -> Values:
    """What a chunk costs more when it is told in another dialect; nginx knows none."""
    if target.name != "qwen-proxy":
        return {}
    chunks = _chunks(bench, 0.05)
    chat = load.chat("paced", stream=True, chunks=chunks)
    before = await _cpu_of_a_chunk(bench, target, chat)
    found = {}
    for name, request in (
        ("responses", load.responses("paced", chunks=chunks)),
        ("messages", load.messages("paced", chunks=chunks)),
    ):
        told = await _cpu_of_a_chunk(bench, target, request)
        after = await _cpu_of_a_chunk(bench, target, chat)
        # The machine moves by more than the difference: between two looks at chat.
        found[f"{name}_us"] = told - (before + after) / 2
        before = after
    return found


async def ttfb(bench: Bench, target: Target) -> Values:
    """The first byte's delay while 40 streams go on, against the same without the target."""
    request = load.chat("paced", stream=True, chunks=20)
    for_s = bench.sizes.window_s
    with _no_pauses():
        direct = await load.first_bytes_ms(bench.up, request, 40, for_s)
        through = await load.first_bytes_ms(target, request, 40, for_s)
    return {"ttfb_ms": statistics.median(through) - statistics.median(direct)}


async def text_body(bench: Bench, target: Target) -> Values:
    """A body of 1 MB, one message."""
    request = load.chat("fast", content=load.text_content())
    return {"text_ms": await _cpu_of(target, request, bench.sizes.bodies, 4) * 1e3}


async def image_body(bench: Bench, target: Target) -> Values:
    """A body of 1 MB, one picture."""
    request = load.chat("fast", content=load.image_content())
    return {"image_ms": await _cpu_of(target, request, bench.sizes.bodies, 4) * 1e3}


async def memory(bench: Bench, target: Target) -> Values:
    """Growth with open streams; wants a fresh target, since freed memory is used again."""
    request = load.chat("slow", stream=True, chunks=1000)
    return {"memory_kb": await memory_of_a_stream(target, request, bench.sizes.streams)}


async def memory_of_a_stream(target: Target, request: bytes, count: int) -> float:
    """By how many kB a fresh target grows with each of so many open streams."""
    await load.hammer(target, load.chat("fast", stream=True), 200, 16)
    await asyncio.sleep(_SETTLE_S)
    pids = processes.tree(target.pid or 0)
    before = processes.memory_kb(pids)
    opened = await load.open_streams(target, request, count)
    await asyncio.sleep(2.0)
    grown = processes.memory_kb(pids) - before
    load.close_all(opened)
    await asyncio.sleep(_SETTLE_S)
    return grown / count


async def delay(bench: Bench, target: Target) -> Values:
    """How late chunks arrive with 1000 streams on one worker."""
    windows: list[list[int]] = []

    def note(delay_ns: int) -> None:
        if windows:
            windows[-1].append(delay_ns)

    request = load.chat("paced", stream=True, chunks=100_000)
    with _no_pauses():
        opened = await load.open_streams(
            target, request, bench.sizes.delay_streams, every_s=0.003, on_delay=note
        )
        await asyncio.sleep(0.5)
        pids = processes.tree(target.pid) if target.pid else []
        cpu_before, starved_before = processes.cpu_s(pids), processes.starved_s(pids)
        for _ in range(int(bench.sizes.delay_window_s / _DELAY_WINDOW_S)):
            windows.append([])
            await asyncio.sleep(_DELAY_WINDOW_S)
        cpu = processes.cpu_s(pids) - cpu_before
        starved = processes.starved_s(pids) - starved_before
        found, windows = windows, []
    load.close_all(opened)
    await asyncio.sleep(0.5)
    cuts = statistics.quantiles(itertools.chain(*found), n=100)
    quiet = statistics.median(statistics.quantiles(window, n=100)[98] for window in found)
    return {
        "delay_p50_ms": cuts[49] / 1e6,
        "delay_p99_ms": cuts[98] / 1e6,
        "delay_quiet_ms": quiet / 1e6,
        "delay_core": cpu / bench.sizes.delay_window_s * 100,
        "delay_starved": starved / bench.sizes.delay_window_s * 100,
    }


async def closed(bench: Bench, target: Target) -> Values:
    """From the client's FIN to the end of the upstream connection."""
    values: Values = {}
    for kind, model, stream in (
        ("first", "hang", True),
        ("mid", "paced", True),
        ("whole", "hang", False),
    ):
        times = [await _close_ms(bench, target, model, stream) for _ in range(bench.sizes.closes)]
        values[f"closed_{kind}_ms"] = statistics.median(times)
        values[f"closed_{kind}_max_ms"] = max(times)
    return values


async def _close_ms(bench: Bench, target: Target, model: str, stream: bool) -> float:
    """One client that goes away; infinity if the upstream does not notice."""
    bench.seed += 1
    seed = str(bench.seed)
    connection = await load.connect(target)
    connection.send(load.chat(model, stream=stream, chunks=100_000, seed=bench.seed))
    for _ in range(200):
        await asyncio.sleep(0.01)
        seen = seed in (await load.stats(bench.up))["seen_ns"]
        if seen and (model == "hang" or connection.first_ns):
            break
    else:
        raise LoadError(f"{target.name}: the request did not reach the upstream")
    await asyncio.sleep(0.02)
    sent = connection.close()
    for _ in range(int(_CLOSE_WAIT_S / 0.02)):
        await asyncio.sleep(0.02)
        gone: int | None = (await load.stats(bench.up))["closed_ns"].get(seed)
        if gone is not None:
            return (gone - sent) / 1e6
    return float("inf")


@contextlib.contextmanager
def _no_pauses() -> Iterator[None]:
    """The load's own garbage collection must not be taken for a late chunk."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# Rows and goals


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        ratio: the goal as a multiple of nginx in the same run.
        aiohttp: a second goal, as a multiple of the bare proxy of aiohttp in the same run.
        limit: the goal as a value.
        part: the goal as a divisor of LiteLLM in the same run, in place of `ratio`; without
            LiteLLM `ratio` is the goal (lower than LiteLLM's measured multiple of nginx, divided).
        bare: the same goal as a multiple of the bare stack in the same run: what it was divided by
            what such a stack took where it was set. Either will do.
    """

    key: str
    title: str
    unit: str
    ratio: float | None = None
    limit: float | None = None
    part: float | None = None
    bare: float | None = None
    aiohttp: float | None = None


@dataclass(frozen=True)
class Measure:
    """One thing to measure, which fills one or more rows.

    Attributes:
        workers: of the measured servers.
        fresh: start the servers anew for every round.
        rounds: at most so many, for what is slow and steady.
        beside: what is worth measuring, too, beside nginx, where it is there; the names are those
            of the table's columns.
    """

    name: str
    run: Callable[[Bench, Target], Awaitable[Values]]
    rows: tuple[Row, ...]
    workers: int = 2
    fresh: bool = False
    rounds: int = 99
    beside: tuple[Literal["direct", "bare", "aiohttp", "LiteLLM"], ...] = ()


MEASURES: Final = (
    Measure(
        "request",
        request,
        (Row("request_us", "CPU per request, not streamed", "µs", ratio=13, part=12, aiohttp=2),),
        beside=("bare", "aiohttp", "LiteLLM"),
    ),
    Measure(
        "setup",
        setup,
        (Row("setup_us", "CPU per stream of 1 chunk", "µs", ratio=12, part=16, aiohttp=1.6),),
        beside=("bare", "aiohttp", "LiteLLM"),
    ),
    Measure(
        "burst",
        burst,
        (Row("burst_ms", "CPU per 1000 chunks at once", "ms", ratio=4, aiohttp=1),),
        beside=("aiohttp", "LiteLLM"),
    ),
    Measure(
        "paced",
        paced,
        (Row("paced_us", "CPU per chunk, 20 ms apart", "µs", ratio=2.2, aiohttp=1),),
        beside=("bare", "aiohttp", "LiteLLM"),
    ),
    Measure(
        "dialects",
        dialects,
        (
            Row("responses_us", "CPU per chunk more as /v1/responses", "µs", limit=30),
            Row("messages_us", "CPU per chunk more as /v1/messages", "µs", limit=30),
        ),
    ),
    Measure(
        "ttfb",
        ttfb,
        (Row("ttfb_ms", "first byte later by, 40 streams", "ms", limit=0.8, bare=1.15),),
        beside=("bare", "aiohttp"),
    ),
    Measure(
        "text",
        text_body,
        (Row("text_ms", "CPU per 1 MB of text", "ms", ratio=4, bare=1.67),),
        beside=("bare", "aiohttp"),
    ),
    Measure(
        "image",
        image_body,
        (Row("image_ms", "CPU per 1 MB of base64", "ms", ratio=4, bare=1.67),),
        beside=("bare", "aiohttp"),
    ),
    Measure(
        "memory",
        memory,
        (Row("memory_kb", "memory per open stream", "kB", limit=STREAM_KB),),
        fresh=True,
        rounds=3,
    ),
    Measure(
        "delay",
        delay,
        (
            Row("delay_p50_ms", "chunk delay, 1000 streams on 1 worker, p50", "ms"),
            Row("delay_p99_ms", "the same, p99", "ms", limit=8, bare=2.9),
            Row("delay_quiet_ms", "the same, p99 of the median quarter second", "ms"),
            Row("delay_core", "the same, CPU of the worker", "%"),
            Row("delay_starved", "the same, the worker waited for a CPU", "%"),
        ),
        workers=1,
        rounds=3,
        beside=("direct", "bare", "aiohttp"),
    ),
    Measure(
        "closed",
        closed,
        (
            Row("closed_first_ms", "upstream closed after FIN, before first byte, median", "ms"),
            Row("closed_first_max_ms", "the same, worst", "ms", limit=50),
            Row("closed_mid_ms", "upstream closed after FIN, in the stream, median", "ms"),
            Row("closed_mid_max_ms", "the same, worst", "ms", limit=50),
            Row("closed_whole_ms", "upstream closed after FIN, not streamed, median", "ms"),
            Row("closed_whole_max_ms", "the same, worst", "ms", limit=50),
        ),
        rounds=1,
        beside=("direct",),
    ),
)
