"""Model lists: live where there are any, kept for a while, and never in a call's way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent.event
import pytest

from qwen_wsgi.capabilities import Capability, capabilities_of
from qwen_wsgi.credentials.account import Account, ProviderModel
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.hosts import Family
from qwen_wsgi.state.model_lists import SharedLists
from qwen_wsgi.state.shared_files import SharedFiles
from qwen_wsgi.upstream.routing import model_profiles
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import SECRET, account_of, pool_of, settings_of

Reply = tuple[int, bytes] | Exception | Callable[[], tuple[int, bytes]]


class FakeTransport:
    """Answers `GET /models` by base URL, and counts."""

    def __init__(self, **replies: Reply) -> None:
        self.replies: dict[str, Reply] = {f"https://{k}.example/v1": v for k, v in replies.items()}
        self.asked: list[str] = []

    def set(self, host: str, reply: Reply) -> None:
        self.replies[f"https://{host}.example/v1"] = reply

    def get(self, token: AccessToken, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        assert path in ("/models", "/api/models")
        assert 0 < timeout_s < 60
        self.asked.append(token.base_url)
        reply = self.replies[token.base_url]
        if isinstance(reply, Exception):
            raise reply
        return reply() if callable(reply) else reply


def listing(*ids: str, **more: Any) -> tuple[int, bytes]:
    data = [{"id": id, "object": "model", **more} for id in ids]
    return 200, json.dumps({"object": "list", "data": data}).encode()


class World:
    """A catalogue with everything around it."""

    def __init__(
        self, *accounts: Account, max_age_s: float = 3600, aliases: str = "", **replies: Reply
    ) -> None:
        self.clock = FakeClock()
        self.transport = FakeTransport(**replies)
        self.accounts = accounts or (up(),)
        self.catalogue = Catalogue(
            settings_of(MODEL_CACHE_DURATION=max_age_s, QWEN_PROXY_MODEL_ALIASES=aliases),
            pool_of(*self.accounts),
            self.transport,  # type: ignore[arg-type]  # all that it uses of a transport
            self.clock,
        )

    def ids(self, *, refresh: bool = False) -> list[str]:
        return [model["id"] for model in self.catalogue.models(refresh=refresh)]

    @property
    def asked(self) -> int:
        return len(self.transport.asked)

    def for_call(self) -> tuple[list[str], bool]:
        found = self.catalogue.listing_for_call(self.accounts[0])
        return list(found.models), found.live


def up(name: str = "up", **more: Any) -> Account:
    return account_of(name, base_url=f"https://{name}.example/v1", family=Family.OTHER, **more)


BROKEN = UpstreamError("The upstream cannot be reached.", code="upstream_unreachable")


def test_a_live_list_is_told_with_the_fields_that_openai_requires() -> None:
    world = World(up=listing("some-model"))

    assert world.catalogue.models() == [
        {
            "id": "some-model",
            "object": "model",
            "created": model_profiles.AS_OF_EPOCH,
            "owned_by": "up",
            "capabilities": ["chat"],
        }
    ]


def test_other_names_are_listed_with_what_they_stand_for() -> None:
    world = World(up=listing("qwen3-max", "qwen-flash", "qwen-turbo"), aliases="a=up:qwen-flash")

    models = {model["id"]: model for model in world.catalogue.models()}

    assert list(models) == ["qwen3-max", "qwen-flash", "qwen-turbo", "a", "qwen-max"] + [
        "qwen-max-latest",
        "qwen-turbo-latest",
    ]
    assert models["a"] == {**models["qwen-flash"], "id": "a", "alias_of": "qwen-flash"}
    assert models["qwen-max"]["alias_of"] == "qwen3-max"
    assert "alias_of" not in models["qwen-turbo"], "the host has it itself"


def test_what_the_host_tells_of_a_model_counts_and_what_is_known_is_added() -> None:
    told = {"created": 5, "owned_by": "alibaba", "context_length": 77, "x": [1], "y": None}
    world = World(up=listing("qwen3-max", **told))

    model, *_old_names = world.catalogue.models()

    assert model == {
        "id": "qwen3-max",
        "object": "model",
        "created": 5,
        "owned_by": "alibaba",
        "context_length": 77,
        "max_output_tokens": 65_536,
        "input_modalities": ["text"],
        "capabilities": ["chat"],
        "x": [1],
    }


def test_a_list_is_asked_for_once_until_it_is_old() -> None:
    world = World(up=listing("a"), max_age_s=100)
    assert world.ids() == ["a"]
    world.transport.set("up", listing("b"))

    world.clock.advance(99.9)
    assert (world.ids(), world.asked) == (["a"], 1)
    world.clock.advance(0.1)
    assert (world.ids(), world.asked) == (["b"], 2)


def test_a_refresh_asks_at_once_but_not_more_than_once_a_second() -> None:
    world = World(up=listing("a"))
    assert world.ids() == ["a"]
    world.transport.set("up", listing("b"))

    assert (world.ids(refresh=True), world.asked) == (["a"], 1)
    world.clock.advance(1)
    assert (world.ids(refresh=True), world.asked) == (["b"], 2)
    assert (world.ids(), world.asked) == (["b"], 2)


def test_with_a_cache_time_of_zero_every_list_request_asks() -> None:
    world = World(up=listing("a"), max_age_s=0)

    assert [world.ids() for _ in range(3)] == [["a"]] * 3
    assert world.asked == 3


@pytest.mark.parametrize(
    "failure",
    [
        BROKEN,
        (500, b"{}"),
        (404, b""),
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"data":{}}'),
        (200, b'{"object":"list"}'),
        (200, b"\xff\xfe"),
        (401, json.dumps({"error": {"message": "m"}}).encode()),
        (200, b"[" * 100_000),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_failure_leaves_the_old_list_in_use(failure: Reply) -> None:
    world = World(up=listing("a"), max_age_s=100)
    assert world.ids() == ["a"]
    world.transport.set("up", failure)
    world.clock.advance(100)

    found = world.catalogue.listing(world.accounts[0], max_age_s=100)

    assert (list(found.models), found.live) == (["a"], True)
    assert found.error
    assert world.asked == 2


def test_after_a_failure_the_host_is_left_alone_for_a_minute() -> None:
    world = World(up=BROKEN)
    assert world.ids() == []
    world.transport.set("up", listing("a"))

    world.clock.advance(59)
    assert (world.ids(), world.asked) == ([], 1)
    world.clock.advance(1)
    assert (world.ids(), world.asked) == (["a"], 2)


def test_a_refresh_does_not_wait_for_that_minute() -> None:
    world = World(up=BROKEN)
    world.ids()
    world.transport.set("up", listing("a"))
    world.clock.advance(1)

    assert world.ids(refresh=True) == ["a"]


def test_a_short_cache_time_is_kept_to_after_a_failure_too() -> None:
    world = World(up=BROKEN, max_age_s=10)
    world.ids()
    world.transport.set("up", listing("a"))
    world.clock.advance(10)

    assert world.ids() == ["a"]


def test_a_success_after_a_failure_is_kept_for_the_whole_time() -> None:
    world = World(up=BROKEN, max_age_s=1000)
    world.ids()
    world.transport.set("up", listing("a"))
    world.clock.advance(60)
    assert world.ids() == ["a"]

    world.clock.advance(999)
    assert (world.ids(), world.asked) == (["a"], 2)
    assert world.catalogue.listing(world.accounts[0], max_age_s=1000).error == ""


@pytest.mark.parametrize("family", [f for f in Family if model_profiles.BUILT_IN[f]])
def test_without_a_live_list_the_built_in_one_of_the_family_stands_in(family: Family) -> None:
    account = account_of("up", base_url="https://up.example/v1", family=family)
    world = World(account, up=BROKEN)

    found = world.catalogue.listing(account, max_age_s=10)

    assert tuple(found.models) == model_profiles.BUILT_IN[family]
    assert not found.live
    assert found.error == BROKEN.message


def test_a_live_list_replaces_the_built_in_one() -> None:
    account = account_of("up", base_url="https://up.example/v1", family=Family.DASHSCOPE)

    assert World(account, up=listing("only-this")).ids() == ["only-this"]


def test_an_account_without_a_credential_is_not_asked() -> None:
    world = World(up(token=None), up=listing("a"))

    found = world.catalogue.listing(world.accounts[0], max_age_s=10)

    assert world.asked == 0
    assert not found.live
    assert "The key is not set." in found.error


SETTINGS_MODEL = ProviderModel(id="qwen3-max", name="Max", description="d", context_length=1234)


def test_models_of_the_settings_are_told_without_a_live_list() -> None:
    world = World(up(models=[SETTINGS_MODEL, ProviderModel(id="mine")]), up=BROKEN)

    first, second, *_old_names = world.catalogue.models()

    assert first == {
        "id": "qwen3-max",
        "object": "model",
        "created": model_profiles.AS_OF_EPOCH,
        "owned_by": "up",
        "name": "Max",
        "description": "d",
        "context_length": 1234,
        "max_output_tokens": 65_536,
        "input_modalities": ["text"],
        "capabilities": ["chat"],
    }
    assert second["id"] == "mine"


def test_models_of_the_settings_are_told_beside_a_live_list() -> None:
    world = World(up(models=[ProviderModel(id="mine", name="Mine")]), up=listing("live", "mine"))

    found = {model["id"]: model for model in world.catalogue.models()}

    assert found.keys() == {"mine", "live"}
    assert found["mine"]["name"] == "Mine"


def test_the_limit_that_the_settings_name_counts_for_a_live_model_too() -> None:
    """The operator wrote it down for this account; the table is only what is known in general."""
    world = World(up(models=[SETTINGS_MODEL]), up=listing("qwen3-max"))

    assert world.catalogue.models()[0]["context_length"] == 1234


@pytest.mark.parametrize("no_chat", [{"chat": False}, {"wire_api": "responses"}], ids=str)
def test_models_of_the_settings_that_cannot_chat_here_are_not_told(no_chat: dict[str, Any]) -> None:
    world = World(up(models=[ProviderModel(id="mine", **no_chat)]), up=BROKEN)

    assert world.ids() == []


def test_all_hosts_are_asked_at_a_time() -> None:
    """Each waits until the other was asked: one after the other they would wait for ever."""
    asked = {name: gevent.event.Event() for name in "ab"}

    def waiting_for(own: str, other: str) -> Callable[[], tuple[int, bytes]]:
        def answer() -> tuple[int, bytes]:
            asked[own].set()
            assert asked[other].wait(5)
            return listing(own)

        return answer

    world = World(up("a"), up("b"), a=waiting_for("a", "b"), b=waiting_for("b", "a"))

    assert world.ids() == ["a", "b"]


def test_the_union_tells_every_model_once_and_the_first_account_counts() -> None:
    world = World(
        up("a"), up("b"), a=listing("x", "y", owned_by="A"), b=listing("y", "z", owned_by="B")
    )

    assert [(m["id"], m["owned_by"]) for m in world.catalogue.models()] == [
        ("x", "A"),
        ("y", "A"),
        ("z", "B"),
    ]


def test_one_accounts_failure_is_not_anothers() -> None:
    assert World(up("a"), up("b"), a=BROKEN, b=listing("z")).ids() == ["z"]


@pytest.mark.parametrize(
    ("entry", "listed"),
    [
        ({"id": "Qwen/Qwen3-8B"}, ["Qwen/Qwen3-8B"]),
        ({"id": 5}, []),
        ({"id": None}, []),
        ({"name": "x"}, []),
        ("x", []),
        (None, []),
    ],
    ids=str,
)
def test_entries_without_an_id_are_left_out(entry: Any, listed: Sequence[str]) -> None:
    body = json.dumps({"object": "list", "data": [entry]}).encode()

    assert World(up=(200, body)).ids() == list(listed)


def test_an_empty_live_list_is_live() -> None:
    world = World(up=listing())

    assert world.for_call() == ([], True)


@pytest.mark.parametrize(
    ("id", "context"),
    [
        ("qwen3-max", 262_144),
        ("Qwen/qwen3-max", 262_144),
        ("QWEN3-MAX", 262_144),
        ("minimax-m2.5", 196_608),
        ("qwen3-maximum", None),
        ("", None),
    ],
)
def test_facts_are_known_by_name(id: str, context: int | None) -> None:
    known = model_profiles.facts_of(id)

    assert (known.context if known else None) == context


def test_every_built_in_model_has_facts() -> None:
    listed = {
        id
        for family, ids in model_profiles.BUILT_IN.items()
        for id in ids
        # Of the web API only names are known.
        if family is not Family.WEB
        and not {Capability.CHAT, Capability.EMBEDDING}.isdisjoint(capabilities_of(id))
    } - {"qwen3-vl-embedding"}

    assert listed <= model_profiles.FACTS.keys()
    assert set(model_profiles.BUILT_IN) == set(Family)


# --- for calls -----------------------------------------------------------------------------------


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(5)


def test_the_first_call_waits_for_the_list() -> None:
    assert World(up=listing("a")).for_call() == (["a"], True)


def test_a_call_never_asks_again_within_a_minute_whatever_the_cache_time() -> None:
    world = World(up=listing("a"), max_age_s=0)

    for _ in range(5):
        assert world.for_call() == (["a"], True)
        world.clock.advance(10)
    assert world.asked == 1


def test_calls_do_not_ask_a_host_without_a_list_each_time() -> None:
    world = World(up=(404, b""), max_age_s=0)

    for _ in range(5):
        assert world.for_call() == ([], False)
        world.clock.advance(10)
    assert world.asked == 1


def test_a_call_uses_an_old_list_while_the_new_one_is_fetched() -> None:
    go_on, entered = threading.Event(), threading.Event()

    def slow() -> tuple[int, bytes]:
        entered.set()
        go_on.wait(10)
        return listing("b")

    world = World(up=listing("a"), max_age_s=100)
    world.for_call()
    world.transport.set("up", slow)
    world.clock.advance(100)

    assert world.for_call() == (["a"], True)
    assert entered.wait(5)
    threads = threading.active_count()
    assert [world.for_call() for _ in range(5)] == [(["a"], True)] * 5
    assert threading.active_count() == threads, "one thread fetches, whoever asks"
    go_on.set()
    wait_for_threads()

    assert world.for_call() == (["b"], True)
    assert world.asked == 2


def test_a_failed_fetch_in_the_background_leaves_the_old_list() -> None:
    world = World(up=listing("a"), max_age_s=100)
    world.for_call()
    world.transport.set("up", BROKEN)
    world.clock.advance(100)

    world.for_call()
    wait_for_threads()

    assert world.for_call() == (["a"], True)
    assert world.asked == 2


def test_many_first_calls_ask_once_and_all_know_the_answer() -> None:
    def slow() -> tuple[int, bytes]:
        threading.Event().wait(0.1)
        return listing("a")

    world = World(up=slow)
    results: list[tuple[list[str], bool]] = []
    threads = [threading.Thread(target=lambda: results.append(world.for_call())) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [(["a"], True)] * 10
    assert world.asked == 1


def test_no_secret_is_in_an_error() -> None:
    world = World(up=(500, SECRET.encode()))

    assert SECRET not in world.catalogue.listing(world.accounts[0], max_age_s=1).error


class TestWorkers:
    """What one worker learns of the lists, the others know."""

    @staticmethod
    def worker(directory: Path, up: Reply) -> World:
        world = World(up=up)
        world.catalogue._lists = SharedLists(SharedFiles(directory), boottime=world.clock.monotonic)
        return world

    def test_a_list_that_one_has_fetched_serves_all(self, tmp_path: Path) -> None:
        one = self.worker(tmp_path / "state", up=listing("old"))
        other = self.worker(tmp_path / "state", up=BROKEN)
        assert one.for_call() == other.for_call() == (["old"], True)
        assert (one.asked, other.asked) == (1, 0)

        one.transport.set("up", listing("old", "new"))
        for world in (one, other):
            world.clock.advance(10)
        assert one.ids(refresh=True) == ["old", "new"]
        assert other.for_call() == (["old", "new"], True), "at once, and not after an hour"
        assert other.asked == 0

    def test_it_grows_old_for_all_at_the_same_time(self, tmp_path: Path) -> None:
        one = self.worker(tmp_path / "state", up=listing("m"))
        one.ids()
        other = self.worker(tmp_path / "state", up=listing("m", "n"))
        other.clock.advance(3599)
        assert other.ids() == ["m"]
        other.clock.advance(2)
        assert other.ids() == ["m", "n"]

    def test_that_there_is_none_spares_the_others_the_wait(self, tmp_path: Path) -> None:
        one = self.worker(tmp_path / "state", up=listing("m"))
        other = self.worker(tmp_path / "state", up=BROKEN)
        assert one.ids() == ["m"]
        for world in (one, other):
            world.clock.advance(3601)
        assert other.ids() == ["m"], "asked in vain, the last list counts"
        assert one.ids() == ["m"]
        assert (one.asked, other.asked) == (1, 1)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"boot": "", "at": 1e9, "models": {}}'])
    def test_a_damaged_file_is_no_list(self, tmp_path: Path, content: str) -> None:
        self.worker(tmp_path / "state", up=listing("m")).ids()
        (path,) = (tmp_path / "state/models").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        path.write_text(content)
        other = self.worker(tmp_path / "state", up=listing("n"))
        assert other.ids() == ["n"]

    def test_where_nothing_can_be_written_each_has_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state/models").write_text("in the way")
        for name in ("m", "n"):
            assert self.worker(tmp_path / "state", up=listing(name)).ids() == [name]
