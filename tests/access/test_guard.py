"""Who may call: keys, or this machine only; and nobody's word is taken for where he is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.access.client_key import KeysUnavailable
from qwen_wsgi.access.guard import Client, Guard
from qwen_wsgi.access.key_ring import KeyRing
from qwen_wsgi.errors import ApiError, Forbidden, Unauthorized
from qwen_wsgi.protocol.web.token import WebToken, packed
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.database.tables import database_in
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import settings_of
from tests.kit.secrets import secret
from tests.kit.web_tokens import jwt

KEY = secret("client-one")
OTHER_KEY = secret("client-two")
THIRD_KEY = secret("client-three")
ADMIN_KEY = secret("client-admin")
ALL_KEYS = (KEY, OTHER_KEY, THIRD_KEY, ADMIN_KEY)
LOCAL = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:8080"}


def with_keys(**environ: Any) -> Guard:
    return Guard(settings_of(**{"QWEN_PROXY_API_KEYS": f"{KEY}, {OTHER_KEY}", **environ}))


def without_keys(**environ: Any) -> Guard:
    return Guard(settings_of(**environ))


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"HTTP_AUTHORIZATION": f"Bearer {KEY}"}, "env-1"),
        ({"HTTP_AUTHORIZATION": f"bearer {KEY}"}, "env-1"),
        ({"HTTP_AUTHORIZATION": f"BEARER   {KEY} "}, "env-1"),
        ({"HTTP_AUTHORIZATION": f"Bearer {OTHER_KEY}"}, "env-2"),
        ({"HTTP_X_API_KEY": KEY}, "env-1"),
        ({"HTTP_X_API_KEY": f" {OTHER_KEY} "}, "env-2"),
        ({"HTTP_AUTHORIZATION": "Basic eA==", "HTTP_X_API_KEY": KEY}, "env-1"),
        ({"HTTP_AUTHORIZATION": "Bearer ", "HTTP_X_API_KEY": KEY}, "env-1"),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else None,
)
def test_a_known_key_is_let_in_from_anywhere_and_named_by_its_number(
    headers: dict[str, str], name: str
) -> None:
    environ = {"REMOTE_ADDR": "203.0.113.9", "HTTP_HOST": "any.example", **headers}

    assert with_keys().identify(environ).name == name


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"HTTP_AUTHORIZATION": ""}, "missing_api_key"),
        ({"HTTP_AUTHORIZATION": "Bearer"}, "missing_api_key"),
        ({"HTTP_AUTHORIZATION": "Bearer   "}, "missing_api_key"),
        ({"HTTP_AUTHORIZATION": KEY}, "missing_api_key"),
        ({"HTTP_AUTHORIZATION": f"Basic {KEY}"}, "missing_api_key"),
        ({"HTTP_X_API_KEY": " "}, "missing_api_key"),
        ({"HTTP_AUTHORIZATION": "Bearer wrong"}, "invalid_api_key"),
        ({"HTTP_AUTHORIZATION": f"Bearer {KEY}x"}, "invalid_api_key"),
        ({"HTTP_AUTHORIZATION": f"Bearer {KEY[:-1]}"}, "invalid_api_key"),
        ({"HTTP_AUTHORIZATION": f"Bearer {KEY}, {OTHER_KEY}"}, "invalid_api_key"),
        ({"HTTP_AUTHORIZATION": f"Bearer {KEY.upper()}"}, "invalid_api_key"),
        ({"HTTP_AUTHORIZATION": "Bearer \xe9\xff"}, "invalid_api_key"),
        ({"HTTP_X_API_KEY": "wrong"}, "invalid_api_key"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
@pytest.mark.parametrize("peer", ["203.0.113.9", "127.0.0.1", ""])
def test_without_a_known_key_nobody_is_let_in_not_even_this_machine(
    peer: str, headers: dict[str, str], code: str
) -> None:
    with pytest.raises(Unauthorized) as caught:
        with_keys().identify({"REMOTE_ADDR": peer, "HTTP_HOST": "localhost", **headers})

    assert (caught.value.status, caught.value.code) == (401, code)
    assert KEY[:-4] not in caught.value.message


def test_the_wrong_key_is_not_quoted() -> None:
    with pytest.raises(Unauthorized) as caught:
        with_keys().identify({"HTTP_AUTHORIZATION": "Bearer sk-somebody-elses"})

    assert "somebody" not in caught.value.message


@pytest.mark.parametrize("setting", ["QWEN_PROXY_API_KEYS", "OPENAI_API_KEY"])
def test_both_settings_make_client_keys(setting: str) -> None:
    guard = Guard(settings_of(**{setting: KEY}))

    assert guard.identify({"HTTP_X_API_KEY": KEY})
    with pytest.raises(Unauthorized):
        guard.identify(LOCAL)


def test_a_key_of_other_letters_is_understood_as_bytes() -> None:
    """WSGI hands headers over as Latin-1; the client sent UTF-8."""
    guard = Guard(settings_of(QWEN_PROXY_API_KEYS="schlüssel-für-alle-中文"))
    on_the_wire = "schlüssel-für-alle-中文".encode().decode("latin-1")

    assert guard.identify({"HTTP_AUTHORIZATION": f"Bearer {on_the_wire}"})


def test_a_key_owns_its_own_things_by_whatever_header_it_comes() -> None:
    guard = with_keys()
    owner = guard.identify({"HTTP_AUTHORIZATION": f"Bearer {KEY}"}).id

    assert guard.identify({"HTTP_X_API_KEY": f" {KEY} "}).id == owner
    # It outlives a restart, and keys that come and go beside it.
    assert Guard(settings_of(OPENAI_API_KEY=KEY)).identify({"HTTP_X_API_KEY": KEY}).id == owner
    assert re.fullmatch("[0-9a-f]{32}", owner)


def test_keys_of_the_environment_are_named_by_their_number_and_no_admins() -> None:
    guard = with_keys(OPENAI_API_KEY=THIRD_KEY, QWEN_PROXY_ADMIN_KEYS=f"{ADMIN_KEY}, {OTHER_KEY}")

    clients = {key: guard.identify({"HTTP_X_API_KEY": key}) for key in ALL_KEYS}

    assert [clients[key].name for key in ALL_KEYS] == [
        "env-1",
        "env-admin-2",
        "env-2",
        "env-admin-1",
    ]
    assert len({client.id for client in clients.values()}) == 4
    assert all(client.key is None for client in clients.values())
    assert guard.require_admin({"HTTP_X_API_KEY": ADMIN_KEY}).name == "env-admin-1"
    for key in (KEY, THIRD_KEY):
        with pytest.raises(Forbidden) as caught:
            guard.require_admin({"HTTP_X_API_KEY": key})
        assert caught.value.code == "admin_key_required"
    with pytest.raises(Unauthorized):
        guard.require_admin(LOCAL)


def test_a_key_that_is_named_twice_is_one_client() -> None:
    guard = Guard(settings_of(QWEN_PROXY_API_KEYS=f"{KEY},{KEY}", OPENAI_API_KEY=KEY))

    assert guard.identify({"HTTP_X_API_KEY": KEY}).name == "env-1"
    assert guard.count_keys() == 1


def test_without_keys_all_callers_of_this_machine_are_one_owner() -> None:
    assert without_keys().identify(LOCAL).id == "local"
    assert without_keys().identify({**LOCAL, "HTTP_X_API_KEY": "any"}).id == "local"


# --- this machine only --------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "", None])
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8080", "localhost", "LOCALHOST:8080", "[::1]:8080", "app.localhost", "127.9.9.9"],
)
def test_without_keys_this_machine_is_served(peer: str | None, host: str) -> None:
    environ = {"HTTP_HOST": host} if peer is None else {"HTTP_HOST": host, "REMOTE_ADDR": peer}

    assert without_keys().identify(environ).name == "local"


@pytest.mark.parametrize(
    "peer",
    ["10.0.0.1", "203.0.113.9", "::ffff:10.0.0.1", "fe80::1", "2001:db8::1", "0.0.0.0", "junk"],
)
@pytest.mark.parametrize("offered", [{}, {"HTTP_X_API_KEY": KEY}])
def test_without_keys_nobody_else_is_served_and_the_way_out_is_told(
    peer: str, offered: dict[str, str]
) -> None:
    with pytest.raises(Unauthorized, match="QWEN_PROXY_API_KEYS") as caught:
        without_keys().identify({"REMOTE_ADDR": peer, "HTTP_HOST": "localhost", **offered})

    assert caught.value.code == "missing_api_key"


CHAIN = {"QWEN_PROXY_TRUSTED_PROXIES": "127.0.0.1,10.0.0.0/8"}


@pytest.mark.parametrize(
    ("peer", "forwarded", "settings", "served"),
    [
        # nginx on this machine tells who called it.
        ("127.0.0.1", "127.0.0.1", {}, True),
        ("127.0.0.1", "::1", {}, True),
        ("127.0.0.1", "203.0.113.9", {}, False),
        ("::1", "203.0.113.9", {}, False),
        ("", "127.0.0.1", {}, True),
        ("", "203.0.113.9", {}, False),
        ("", "192.168.1.5", {}, False),
        ("127.0.0.1", "::ffff:203.0.113.9", {}, False),
        # A caller from elsewhere says that he is here; nginx adds where he really is.
        ("127.0.0.1", "127.0.0.1, 203.0.113.9", {}, False),
        ("127.0.0.1", "127.0.0.1,203.0.113.9", {}, False),
        ("127.0.0.1", "127.0.0.1, 127.0.0.1, 203.0.113.9", {}, False),
        ("", "unix, 203.0.113.9", {}, False),
        ("", "::1, 203.0.113.9", {}, False),
        ("", "203.0.113.9, 127.0.0.1", {}, False),
        # Nobody may speak for others but trusted peers.
        ("203.0.113.9", "127.0.0.1", {}, False),
        ("192.168.1.5", "127.0.0.1", {}, False),
        ("10.0.0.2", "127.0.0.1", {"QWEN_PROXY_TRUSTED_PROXIES": "10.0.0.3"}, False),
        ("10.0.0.2", "203.0.113.9, 127.0.0.1", {"QWEN_PROXY_TRUSTED_PROXIES": "10.0.0.2"}, True),
        ("127.0.0.1", "203.0.113.9", {"QWEN_PROXY_TRUSTED_PROXIES": "unix"}, True),
        ("", "203.0.113.9", {"QWEN_PROXY_TRUSTED_PROXIES": "127.0.0.1"}, True),
        # A chain of trusted proxies is followed to the first that is none.
        ("127.0.0.1", "203.0.113.9, 10.0.0.2", CHAIN, False),
        ("127.0.0.1", "127.0.0.1, 10.0.0.2", CHAIN, True),
        # What is no address is nobody we know.
        ("127.0.0.1", "junk", {}, False),
        ("127.0.0.1", "127.0.0.1, ", {}, False),
        ("127.0.0.1", ",", {}, False),
        ("127.0.0.1", " ", {}, False),
        ("127.0.0.1", "127.0.0.1:5000", {}, False),
        ("127.0.0.1", "203.0.113.9:5000", {}, False),
        ("127.0.0.1", "unix:", {}, False),
        ("127.0.0.1", "2130706433", {}, False),
        ("::ffff:127.0.0.1", "203.0.113.9", {}, False),
        ("::ffff:10.0.0.2", "127.0.0.1", {"QWEN_PROXY_TRUSTED_PROXIES": "10.0.0.0/8"}, True),
        ("127.0.0.1", "unix", {}, False),
        ("127.0.0.1", "localhost", {}, False),
    ],
)  # fmt: skip
def test_a_forwarded_address_counts_as_far_as_its_bearer_is_trusted(
    peer: str, forwarded: str, settings: dict[str, str], served: bool
) -> None:
    guard = without_keys(**settings)
    environ = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded, "HTTP_HOST": "localhost"}

    if served:
        assert guard.identify(environ).name == "local"
    else:
        with pytest.raises(Unauthorized):
            guard.identify(environ)


@pytest.mark.parametrize(
    "name", ["HTTP_X_REAL_IP", "HTTP_FORWARDED", "HTTP_CLIENT_IP", "HTTP_X_CLIENT_IP", "HTTP_VIA"]
)
@pytest.mark.parametrize("value", ["127.0.0.1", "for=127.0.0.1"])
def test_other_headers_move_nobody_here(name: str, value: str) -> None:
    with pytest.raises(Unauthorized):
        without_keys().identify(
            {"REMOTE_ADDR": "203.0.113.9", "HTTP_HOST": "localhost", name: value}
        )


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example#localhost",
        "localhost@evil.example",
        "192.168.1.5:8080",
        "0.0.0.0:8080",
        "",
        ":8080",
        "[::2]:8080",
        *(host for host in ("[::1", "[evil", "[evil.example]:80", "::1]")),
    ],
)
def test_without_keys_a_foreign_host_name_is_refused(host: str) -> None:
    """A page of evil.example whose name was rebound to 127.0.0.1 sends its own name."""
    with pytest.raises(Forbidden) as caught:
        without_keys().identify({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host})

    assert (caught.value.status, caught.value.code) == (403, "host_not_allowed")


def test_a_request_without_a_host_is_refused() -> None:
    with pytest.raises(Forbidden):
        without_keys().identify({"REMOTE_ADDR": "127.0.0.1"})


@pytest.mark.parametrize("host", ["box.lan", "BOX.lan:8080", "other.lan"])
def test_further_host_names_can_be_allowed(host: str) -> None:
    guard = without_keys(QWEN_PROXY_ALLOWED_HOSTS="Box.LAN, other.lan")

    assert guard.identify({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host}).name == "local"


def test_an_allowed_host_name_lets_no_other_machine_in() -> None:
    with pytest.raises(Unauthorized):
        without_keys(QWEN_PROXY_ALLOWED_HOSTS="box.lan").identify(
            {"REMOTE_ADDR": "10.0.0.1", "HTTP_HOST": "box.lan"}
        )


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:3000", "http://127.0.0.1:8080", "null"]
)
def test_without_keys_no_web_page_may_call(origin: str) -> None:
    """A browser sends a simple POST across origins even if its page may not read the answer."""
    with pytest.raises(Forbidden) as caught:
        without_keys().identify({**LOCAL, "HTTP_ORIGIN": origin})

    assert caught.value.code == "origin_not_allowed"


def test_a_page_can_be_allowed_by_name() -> None:
    guard = without_keys(QWEN_PROXY_CORS_ORIGINS="http://localhost:3000")

    assert guard.identify({**LOCAL, "HTTP_ORIGIN": "http://localhost:3000"}).name == "local"
    with pytest.raises(Forbidden):
        guard.identify({**LOCAL, "HTTP_ORIGIN": "http://localhost:3001"})


def test_with_keys_neither_host_nor_origin_matters() -> None:
    environ = {"HTTP_X_API_KEY": KEY, "HTTP_HOST": "any", "HTTP_ORIGIN": "https://any.example"}

    assert with_keys().identify(environ)


@pytest.mark.parametrize(
    ("guard", "origin", "allowed"),
    [
        (with_keys(), "https://a.example", "*"),
        (without_keys(), "https://a.example", None),
        (without_keys(QWEN_PROXY_CORS_ORIGINS="*"), "https://a.example", "*"),
        (with_keys(QWEN_PROXY_CORS_ORIGINS="https://a.example"), "https://a.example", "https://a.example"),
        (with_keys(QWEN_PROXY_CORS_ORIGINS="https://a.example"), "https://b.example", None),
        (with_keys(QWEN_PROXY_CORS_ORIGINS="https://a.example"), "https://a.example.evil", None),
        (with_keys(QWEN_PROXY_CORS_ORIGINS="https://a.example"), "null", None),
    ],
)  # fmt: skip
def test_which_pages_may_read_answers(guard: Guard, origin: str, allowed: str | None) -> None:
    assert guard.allowed_origin(origin) == allowed


# --- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost@evil.example",
        "user:pass@localhost",
        "localhost/evil",
        "localhost:80:80",
        "localhost#x",
        "localhost, evil.example",
        " localhost",
        "[::1",
        "localhost:999999",
    ],
)
def test_a_host_header_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        without_keys().identify({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host})


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_browser_that_comes_from_another_site_is_refused(site: str) -> None:
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_SEC_FETCH_SITE": site}

    with pytest.raises(Forbidden):
        without_keys().identify(environ)
    for harmless in ("same-origin", "none"):
        without_keys().identify({**environ, "HTTP_SEC_FETCH_SITE": harmless})
    allowed = without_keys(QWEN_PROXY_CORS_ORIGINS="https://app.example")
    allowed.identify({**environ, "HTTP_ORIGIN": "https://app.example"})


# --- keys of the database ------------------------------------------------------------------------


_opened: list[Database] = []


@pytest.fixture(autouse=True)
def _closed_at_the_end() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


class World:
    """A guard over a database in memory, or in a directory."""

    def __init__(self, directory: Path | None = None, **environ: Any) -> None:
        self.clock = FakeClock()
        self.database = database_in(directory, self.clock)
        _opened.append(self.database)
        self.store = ClientKeys(self.database, self.clock, directory)
        self.ring = KeyRing(self.store, self.clock)
        self.guard = Guard(
            settings_of(**environ), self.ring, self.clock, command_key=lambda: COMMAND_KEY
        )

    def add(self, name: str = "anna", **members: Any) -> str:
        made = self.store.add({"name": name, **members}).secret
        self.ring.look_again()
        return made

    def ask(self, key: str = "", **environ: Any) -> Client:
        sent = {"HTTP_AUTHORIZATION": f"Bearer {key}"} if key else {}
        return self.guard.identify({"REMOTE_ADDR": "203.0.113.9", **sent, **environ})

    def refused(self, key: str = "", **environ: Any) -> tuple[int, str | None]:
        with pytest.raises(ApiError) as caught:
            self.ask(key, **environ)
        assert not key or key not in caught.value.message
        return caught.value.status, caught.value.code


COMMAND_KEY = "0123456789abcdef"


def test_a_key_of_the_database_is_a_client_with_its_limits() -> None:
    world = World()
    client = world.ask(world.add(rpm=5))

    assert client.key is not None
    assert (client.id, client.name, client.key.rpm) == (client.key.id, "anna", 5)
    assert world.guard.count_keys() == 1


def test_the_first_key_closes_the_server_to_callers_without_one_for_good() -> None:
    world = World()
    assert world.guard.identify(LOCAL).name == "local"
    assert world.guard.allowed_origin("https://page.example") is None

    key = world.add()
    for environ in (LOCAL, {}):
        assert world.refused(**environ) == (401, "missing_api_key")
    assert world.refused("wrong", **LOCAL) == (401, "invalid_api_key")
    assert world.guard.allowed_origin("https://page.example") == "*"
    world.guard.refuse_pages({"HTTP_HOST": "any.example"})

    world.store.revoke("anna")
    world.ring.look_again()
    assert world.refused(key, **LOCAL) == (401, "revoked_api_key")
    assert world.refused(**LOCAL) == (401, "missing_api_key")
    assert world.guard.needs_key
    assert world.guard.count_keys() == 0


def test_keys_of_the_environment_and_of_the_database_work_side_by_side() -> None:
    world = World(QWEN_PROXY_API_KEYS=KEY)
    key = world.add()

    assert (world.ask(KEY).name, world.ask(key).name) == ("env-1", "anna")
    assert world.guard.count_keys() == 2


def test_an_expired_key_and_a_rotated_secret_are_told_as_such() -> None:
    world = World()
    key = world.add(expires_at=int(world.clock.now()) + 60)
    other = world.add("ben")
    rotated = world.store.rotate("ben", grace_s=30)
    assert rotated is not None
    world.ring.look_again()
    assert world.ask(key).name == "anna"
    assert world.ask(other) == world.ask(rotated.secret)

    world.clock.advance(31)
    assert world.refused(other) == (401, "expired_api_key")
    assert world.ask(rotated.secret).name == "ben"
    world.clock.advance(30)
    assert world.refused(key) == (401, "expired_api_key")
    holder = world.guard.holder({"HTTP_X_API_KEY": key})
    assert holder is not None and holder.name == "anna"


def test_the_forwarded_address_decides_behind_a_trusted_proxy_alone() -> None:
    world = World()
    key = world.add(cidr=("192.168.1.0/24",))

    assert world.ask(key, REMOTE_ADDR="192.168.1.7").name == "anna"
    assert world.ask(key, REMOTE_ADDR="", HTTP_X_FORWARDED_FOR="192.168.1.7").name == "anna"
    for environ in (
        {"REMOTE_ADDR": "203.0.113.9"},
        {"REMOTE_ADDR": "203.0.113.9", "HTTP_X_FORWARDED_FOR": "192.168.1.7"},
        {"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": "192.168.1.7, 203.0.113.9"},
        {"REMOTE_ADDR": "127.0.0.1"},
    ):
        assert world.refused(key, **environ) == (403, "network_not_allowed")


def test_admins_are_those_whose_key_says_so() -> None:
    world = World(QWEN_PROXY_API_KEYS=KEY)
    ordinary, admin = world.add(), world.add("boss", admin=True)

    assert world.guard.require_admin({"HTTP_X_API_KEY": admin}).name == "boss"
    for key, status in ((ordinary, 403), (KEY, 403), ("", 401), ("wrong", 401)):
        with pytest.raises(ApiError) as caught:
            world.guard.require_admin({"HTTP_X_API_KEY": key})
        assert caught.value.status == status


def test_without_keys_nobody_is_an_admin() -> None:
    with pytest.raises(Forbidden):
        World().guard.require_admin(LOCAL)


def test_a_client_of_a_while_ago_is_looked_up_again() -> None:
    world = World()
    world.add()
    key = world.store.find("anna")
    assert key is not None

    assert world.guard.client_again("local", "local") == Client("local", "local")
    assert world.guard.client_again(key.id, "before").name == "anna"
    world.store.revoke("anna")
    world.ring.look_again()
    for id, code in ((key.id, "revoked_api_key"), ("key_gone", "invalid_api_key")):
        with pytest.raises(Unauthorized) as caught:
            world.guard.client_again(id, "anna")
        assert caught.value.code == code


def test_commands_on_this_machine_have_a_key_of_their_own() -> None:
    world = World()
    with pytest.raises(Unauthorized):
        world.ask(COMMAND_KEY)
    world.add()

    assert world.ask(COMMAND_KEY, **LOCAL).name == "command"
    assert world.refused(COMMAND_KEY) == (401, "invalid_api_key")

    def unreadable() -> str:
        raise ApiError("the state's key cannot be read")

    world.guard._command_key = unreadable
    assert world.refused(COMMAND_KEY, **LOCAL) == (401, "invalid_api_key")


def test_an_unknown_key_is_503_while_the_database_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(QWEN_PROXY_API_KEYS=KEY)
    key = world.add()
    assert world.ask(key).name == "anna"
    known = world.ask(key).id

    def unavailable() -> int:
        raise KeysUnavailable("/secret/path is damaged")

    monkeypatch.setattr(world.store, "number", unavailable)
    world.clock.advance(1)

    assert world.ask(key).name == "anna"
    assert world.ask(KEY).name == "env-1"
    assert world.refused("another") == (503, "keys_unavailable")
    assert world.refused() == (401, "missing_api_key")
    assert not world.guard.is_known({"HTTP_X_API_KEY": "another", "REMOTE_ADDR": "203.0.113.9"})
    assert world.guard.client_again(known, "anna").name == "anna"
    with pytest.raises(ApiError) as caught:
        world.guard.client_again("key_other", "other")
    assert (caught.value.status, caught.value.code) == (503, "keys_unavailable")
    assert "/secret" not in caught.value.message


@pytest.mark.parametrize("copy", ["whole", "damaged"])
@pytest.mark.parametrize("harm", ["garbage", "unreadable", "lost"])
def test_a_restart_without_the_database_opens_nothing(tmp_path: Path, harm: str, copy: str) -> None:
    before = World(tmp_path)
    key, revoked = before.add(), before.add("ben")
    before.store.revoke("ben")
    before.database.close()
    file = tmp_path / "database/state.sqlite3"
    for each in file.parent.iterdir():
        each.unlink()
    if harm == "garbage":
        file.write_bytes(b"x" * 9000)
    elif harm == "unreadable":
        file.mkdir()
    if copy == "damaged":
        (tmp_path / "client-keys.json").write_text("{")
    world = World(tmp_path, QWEN_PROXY_API_KEYS="" if copy == "whole" else KEY)

    assert world.refused(**LOCAL) == (401, "missing_api_key")
    if copy == "whole":
        assert world.ask(key).name == "anna"
        assert world.refused(revoked) == (401, "revoked_api_key")
        unknown = (503, "keys_unavailable") if harm == "unreadable" else (401, "invalid_api_key")
        assert world.refused("unknown") == unknown
    else:
        assert world.refused(key) == (503, "keys_unavailable")
        assert world.ask(KEY).name == "env-1"


class TestWebTokens:
    def token(self, user: str = "ann") -> str:
        return packed(WebToken(jwt(id=user, exp=4e9)))

    def test_many_tokens_take_the_places_and_limits_of_one_client(self) -> None:
        guard = Guard(settings_of(QWEN_PROXY_WEB=1, QWEN_PROXY_API_KEYS="key-one-that-is-long"))
        holders = [
            guard.identify(
                {
                    "HTTP_AUTHORIZATION": f"Bearer {self.token(user)}",
                    "HTTP_X_API_KEY": "key-one-that-is-long",
                }
            )
            for user in ("ann", "bob")
        ]
        plain = guard.identify({"HTTP_AUTHORIZATION": "Bearer key-one-that-is-long"})

        assert len({each.id for each in holders}) == 2
        assert {each.payer for each in holders} == {plain.id} == {plain.payer}
        assert plain.web is None

    def test_a_token_may_stand_where_anthropic_s_clients_have_their_key(self) -> None:
        guard = Guard(settings_of(QWEN_PROXY_WEB=1))
        holder = guard.identify({**LOCAL, "HTTP_X_API_KEY": self.token()})

        assert holder.web is not None
        assert holder.name.startswith("web-")
        assert self.token() not in repr(holder)

    def test_two_tokens_are_one_too_many(self) -> None:
        guard = Guard(settings_of(QWEN_PROXY_WEB=1))
        environ = {
            **LOCAL,
            "HTTP_X_QWEN_TOKEN": self.token("ann"),
            "HTTP_AUTHORIZATION": f"Bearer {self.token('bob')}",
        }
        with pytest.raises(Unauthorized) as raised:
            guard.identify(environ)
        assert raised.value.code == "invalid_web_token"

    def test_a_client_key_that_looks_a_little_like_one_is_a_key(self) -> None:
        key = "eyJ-is-how-this-key-begins|it-has-a-bar"
        guard = Guard(settings_of(QWEN_PROXY_WEB=1, QWEN_PROXY_API_KEYS=key))

        assert guard.identify({"HTTP_AUTHORIZATION": f"Bearer {key}"}).web is None
