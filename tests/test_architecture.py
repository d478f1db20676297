"""The layers stay layers: who may import whom, and where third parties are let in."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qwen_wsgi"
SERVER_FILES = (ROOT / "wsgi.py", ROOT / "gunicorn.conf.py")


class Import(NamedTuple):
    """One import: in which file and line, of what, and whether only the type checker runs it."""

    file: str
    line: int
    module: str
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def parts_of(path: Path) -> tuple[str, ...]:
    """`qwen_wsgi/upstream/http/body.py` -> `("upstream", "body")`."""
    return path.relative_to(PACKAGE).with_suffix("").parts


SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, wherever it stands; of our own, the deepest module that is named."""
    tree = ast.parse(path.read_text(), str(path))
    shown = str(path.relative_to(ROOT))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = []
            assert node.level == 0, f"{shown}:{node.lineno} imports by a relative name"
            base = node.module or ""
            for alias in node.names:
                name = f"{base}.{alias.name}"
                is_module = base.split(".")[0] == "qwen_wsgi" and (
                    (ROOT / (name.replace(".", "/") + ".py")).exists()
                    or (ROOT / name.replace(".", "/")).is_dir()
                )
                modules.append(name if is_module else base)
        else:
            continue
        for module in modules:
            yield Import(shown, node.lineno, module, id(node) in for_types)


@functools.cache
def all_imports() -> list[Import]:
    """Every import of the package. Not done at import: each process of a run collects this file."""
    return [found for path in SOURCES for found in imports_of(path)]


def ours(found: Import) -> str | None:
    """`qwen_wsgi.upstream.http.body` -> `upstream.body`; None for what is not ours."""
    if found.module == "qwen_wsgi":
        return ""
    inside = found.module.startswith("qwen_wsgi.")
    return found.module.removeprefix("qwen_wsgi.") if inside else None


def layer_of(name: str) -> str:
    """`upstream/http/body.py` or `upstream.body` -> `upstream`."""
    return name.removeprefix("qwen_wsgi/").replace("/", ".").removesuffix(".py").split(".")[0]


#: What a layer may import besides itself. `""` is the package: its version.
#: docs/architecture.md draws the same: api -> upstream -> protocol and credentials.
ALLOWED: dict[str, set[str]] = {
    "__init__": {"_version"},
    "_version": set(),
    "errors": set(),
    "clock": set(),
    "shortage": {"errors"},
    "hosts": set(),
    "capabilities": {"hosts"},
    "net": set(),
    "text": {"", "settings", "hosts", "capabilities", "net", "credentials"},
    "redaction": set(),
    "plan_limits": {"hosts"},
    "settings": {"env_file", "errors", "net", "plan_limits", "redaction", "setting_values"},
    "env_file": {"errors"},
    "whole_files": set(),
    "setting_values": {"hosts", "plan_limits"},
    "logs": {"redaction"},
    "local_http": {"net"},
    "reporting": {"state"},
    "metering": {"accounting", "clock", "state"},
    "background": {"errors", "clock", "greenlets", "shortage", "protocol", "state"},
    "sharing": {
        "accounting",
        "background",
        "clock",
        "errors",
        "greenlets",
        "state",
        "upstream.routing.affinity",
        "upstream.routing.cooldown",
    },
    "boxes": {"clock", "credentials.shared", "settings", "state"},
    "box_calls": {
        "accounting.books",
        "clock",
        "greenlets",
        "in_flight",
        "protocol.json_object",
        "state",
    },
    "greenlets": {"errors"},
    "in_flight": {
        "errors",
        "clock",
        "greenlets",
        "accounting.recent",
        "accounting.record",
        "state",
    },
    "protocol": {"errors"},
    "credentials": {
        "",
        "errors",
        "shortage",
        "clock",
        "settings",
        "hosts",
        "net",
        "redaction",
        "protocol.web.token",
        "whole_files",
    },
    "accounting": {
        "errors",
        "clock",
        "logs",
        "plan_limits",
        "protocol.changes",
        "protocol.usage",
        "protocol.json_object",
        "state",
    },
    "state": {
        "errors",
        "clock",
        "settings",
        "greenlets",
        "protocol",
        "redaction",
        "access.client_key",
        "access.limits",
        "credentials.shared.board",
        "whole_files",
    },
    "access": {"errors", "clock", "settings", "setting_values", "net", "protocol", "redaction"},
    "upstream": {
        "",
        "errors",
        "shortage",
        "clock",
        "settings",
        "greenlets",
        "hosts",
        "capabilities",
        "protocol",
        "redaction",
        "credentials",
        "access.cache_policy",
        "access.permit",
        "accounting.record",
        "net",
        "plan_limits",
        "state.database.cached_answers",
        "state.refused_inputs",
        "state.shared_files",
        "state.model_lists",
        "state.workers",
    },
    "tool_runner": {
        "",
        "env_file",
        "errors",
        "logs",
        "net",
        "redaction",
        "settings",
        "credentials.files.jsonc",
    },
    "tools": {
        "errors",
        "tool_runner.child",
        "tool_runner.sources",
        "tool_runner.wire",
        "capabilities",
        "clock",
        "settings",
        "greenlets",
        "protocol",
        "upstream",
        "access.permit",
        "accounting.record",
    },
    "api": {
        "",
        "clients",
        "services",
        "tools",
        "access",
        "box_calls",
        "console",
        "errors",
        "net",
        "shortage",
        "hosts",
        "capabilities",
        "clock",
        "in_flight",
        "settings",
        "greenlets",
        "protocol",
        "upstream",
        "accounting",
        "state",
    },
    "console": {
        "",
        "access",
        "accounting.usage",
        "credentials.new_login",
        "credentials.phone_login",
        "errors",
        "state.database.calls",
        "text",
        "upstream.failures.causes",
    },
    "documents": {"clock"},
    "sandbox": set(),
    "services": set(),  # filled below: it wires everything below the API
    "app": {"settings", "services", "api"},
    "heads": set(),
    "exchange": {"heads", "protocol"},
    "server": {
        "errors",
        "exchange",
        "greenlets",
        "heads",
        "clock",
        "logs",
        "redaction",
        "settings",
        "services",
        "state",
        "text",
    },
    "master": {"env_file", "errors", "reporting", "server", "settings", "tool_runner.child"},
    "doctor": {
        "",
        "env_file",
        "errors",
        "clock",
        "settings",
        "redaction",
        "services",
        "net",
        "local_http",
        "text",
        "hosts",
        "capabilities",
        "protocol",
        "upstream",
        "credentials",
        "tool_runner.sources",
        "tools.runner",
        "tools.runner_client",
        "accounting.record",
        "state.key_copy",
        "state.redis.connection",
        "state.refused_inputs",
    },
    "clients": {
        "",
        "state.key_copy",
        "errors",
        "settings",
        "text",
        "net",
        "redaction",
        "credentials.files.durable",
        "state.file_lock",
        "upstream.routing.model_profiles",
        "whole_files",
    },
    "cli": {
        "",
        "env_file",
        "net",
        "local_http",
        "logs",
        "boxes",
        "services",
        "text",
        "clients",
        "doctor",
        "settings",
        "errors",
        "clock",
        "in_flight",
        "access.client_key",
        "console.keys",
        "console.usage.table",
        "tools.runner",
        "tools.runner_client",
        "state",
        "credentials",
        "accounting",
        "state.database",
        "state.recordings",
        "upstream.routing.account_status",
        "upstream.routing.accounts",
    },
}
ALLOWED["services"] = {
    "errors",
    "clock",
    "settings",
    "logs",
    "redaction",
    "metering",
    "greenlets",
    "reporting",
    "background",
    "in_flight",
    "access",
    "accounting",
    "box_calls",
    "credentials",
    "documents",
    "sandbox",
    "boxes",
    "console.doctor_process",
    "sharing",
    "state",
    "tools",
    "upstream",
}

#: Exceptions to the table, each with its reason.
EXCEPTIONS = {
    # An id of a video names the account that makes it.
    ("qwen_wsgi/api/media/videos.py", "credentials.account"),
    # /health judges accounts by the words that their credentials use.
    ("qwen_wsgi/api/health.py", "credentials.account"),
    ("qwen_wsgi/api/health.py", "credentials.credential"),
    # /status is what `qwen-proxy status` prints.
    ("qwen_wsgi/api/status.py", "text"),
    # The start page shows plans as `qwen-proxy status` does.
    ("qwen_wsgi/api/pages/start.py", "text"),
    # Pages show times and durations as commands do.
    ("qwen_wsgi/api/console/page.py", "text"),
    # Its page begins and stops a login.
    ("qwen_wsgi/api/console/login.py", "credentials.phone_login"),
}


def test_every_layer_is_in_the_table() -> None:
    assert {layer_of(".".join(parts_of(path))) for path in SOURCES} <= set(ALLOWED)


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_a_layer_imports_only_what_is_below_it(layer: str) -> None:
    wrong = []
    for found in all_imports():
        name = ours(found)
        if name is None or layer_of(found.file) != layer or layer_of(name) == layer != "":
            continue
        allowed = any(
            name == each or (each and name.startswith(each + ".")) for each in ALLOWED[layer]
        )
        if not (allowed or found.for_types or (found.file, name) in EXCEPTIONS):
            wrong.append(str(found))
    assert wrong == []


#: The rooms inside a layer, from the top down: a room (a folder or a file) imports only rooms of
#: the rows below its own, and never another room of its own row.
ROOMS: dict[str, list[list[str]]] = {
    "credentials": [
        ["phone_login"],
        ["new_login"],
        ["sources"],
        ["web"],
        ["account"],
        ["oauth_login"],
        ["refresh"],
        ["oauth", "credential", "shared", "kept_web_token"],
        ["files", "locks", "token"],
    ],
    "upstream": [
        ["tokenizer", "host_files", "pictures"],
        ["executor"],
        ["answer_cache"],
        ["retry", "chat_attempt", "tasks"],
        ["web"],
        ["client", "relay"],
        ["open_stream", "native_stream", "adapt"],
        ["routing"],
        ["http"],
        ["failures"],
    ],
}

#: Rooms with more files than the others: one per family of endpoints; one per group of checks;
#: what dialects share; OpenAI's largest API; one per part of the fake upstream; what workers share;
#: one per feature with tables.
LARGE_ROOMS = {
    "state": 13,
    "state/database": 15,
    "api": 13,
    "doctor": 22,
    "upstream/routing": 14,
    "protocol": 15,
    "protocol/chat": 13,
    "protocol/responses": 14,
    "sandbox": 25,
}
MOST_FILES = 12


def test_a_room_has_about_ten_files() -> None:
    counts: dict[str, int] = {}
    for path in SOURCES:
        if not path.name.startswith("__"):
            room = str(path.parent.relative_to(PACKAGE))
            counts[room] = counts.get(room, 0) + 1
    # The top floor is one more than a room: it has what all rooms use.
    del counts["."]

    assert {r: n for r, n in counts.items() if n > LARGE_ROOMS.get(r, MOST_FILES)} == {}


def room_of(name: str) -> str:
    """`qwen_wsgi/upstream/http/body.py` or `upstream.http.body` -> `http`."""
    parts = name.removeprefix("qwen_wsgi/").replace("/", ".").removesuffix(".py").split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("layer", sorted(ROOMS))
def test_every_room_of_a_layer_is_in_its_table(layer: str) -> None:
    found = {room_of(".".join(parts_of(path))) for path in SOURCES if parts_of(path)[0] == layer}

    assert found - {"__init__"} == {room for row in ROOMS[layer] for room in row}


@pytest.mark.parametrize("layer", sorted(ROOMS))
def test_a_room_imports_only_rooms_below_it(layer: str) -> None:
    row_of = {room: number for number, row in enumerate(ROOMS[layer]) for room in row}
    wrong = []
    for found in all_imports():
        name = ours(found)
        if name is None or layer_of(found.file) != layer or layer_of(name) != layer:
            continue
        upper, lower = room_of(found.file), room_of(name)
        if upper != lower and row_of.get(upper, -1) >= row_of.get(lower, -1):
            wrong.append(str(found))
    assert wrong == []


def test_exceptions_are_still_needed() -> None:
    made = {(found.file, ours(found)) for found in all_imports()}

    assert made >= EXCEPTIONS


def test_nobody_imports_the_application_the_command_line_or_the_api() -> None:
    """But for the type checker, the application its own parts, and the command line the former."""
    wrong = [
        str(found)
        for found in all_imports()
        if (name := ours(found)) is not None
        and layer_of(name) in ("app", "cli", "api")
        and not found.for_types
        and layer_of(found.file) not in ("api", "app")
        and (layer_of(found.file), name) != ("server", "app")
        and layer_of(found.file) != layer_of(name)
    ]
    assert wrong == []
    assert not [
        f for f in all_imports() if f.module.endswith("cli.main") and "__main__" not in f.file
    ]


def test_imports_for_types_reach_no_further_than_the_services() -> None:
    assert {
        ours(found) for found in all_imports() if found.for_types and ours(found) is not None
    } <= {"services", "tool_runner.child"}


def test_there_is_no_circle_among_the_modules() -> None:
    below: dict[str, set[str]] = {}
    names = {".".join(parts_of(path)).removesuffix(".__init__") for path in SOURCES}
    for found in all_imports():
        name = ours(found)
        if name in names:
            source = found.file.removeprefix("qwen_wsgi/").removesuffix(".py").replace("/", ".")
            below.setdefault(source.removesuffix(".__init__"), set()).add(name)
    # Raises CycleError, which names the circle.
    graphlib.TopologicalSorter(below).prepare()


#: Where a third party, or a part of the standard library, is let in.
PLACES = {
    "flask": ("qwen_wsgi/api/", "qwen_wsgi/app.py"),
    "werkzeug": ("qwen_wsgi/api/", "qwen_wsgi/app.py"),
    # Flask's: text that is safe in HTML.
    "markupsafe": ("qwen_wsgi/api/console/",),
    "requests": (
        "qwen_wsgi/upstream/http/",
        "qwen_wsgi/credentials/oauth/token_endpoint.py",
        "qwen_wsgi/credentials/oauth/wire.py",
    ),
    "urllib3": ("qwen_wsgi/upstream/http/", "qwen_wsgi/credentials/oauth/wire.py"),
    "gevent": ("qwen_wsgi/greenlets.py", "qwen_wsgi/server.py"),
    "msgspec": ("qwen_wsgi/protocol/json_object.py", "qwen_wsgi/protocol/large_json.py"),
    "wsproto": ("qwen_wsgi/protocol/websocket/",),
    "segno": ("qwen_wsgi/cli/login.py", "qwen_wsgi/console/qr.py"),
    "greenlet": (),
    "gunicorn": ("qwen_wsgi/server.py", "qwen_wsgi/exchange.py", "qwen_wsgi/master.py"),
    "fcntl": (
        "qwen_wsgi/credentials/locks/proxy_lock.py",
        "qwen_wsgi/state/database/in_use.py",
        "qwen_wsgi/state/file_lock.py",
    ),
    "zstandard": ("qwen_wsgi/api/codings.py",),
    "sqlite3": ("qwen_wsgi/state/",),
    "subprocess": (
        "qwen_wsgi/clients/run.py",
        "qwen_wsgi/console/doctor_process.py",
        "qwen_wsgi/doctor/machine.py",
        "qwen_wsgi/documents/pdf.py",
    ),
    "cryptography": ("qwen_wsgi/state/redis/sealing.py",),
    "redis": ("qwen_wsgi/state/redis/",),
    "pypdf": ("qwen_wsgi/documents/pdf_process.py",),
    "certifi": ("qwen_wsgi/doctor/machine.py", "qwen_wsgi/upstream/http/download.py"),
    "packaging": ("qwen_wsgi/doctor/dependencies.py",),
    "asyncio": ("qwen_wsgi/tool_runner/",),
    "mcp": ("qwen_wsgi/tool_runner/servers/",),
    "mcp_types": ("qwen_wsgi/tool_runner/servers/",),
    "anyio": ("qwen_wsgi/tool_runner/servers/",),
    "httpx2": ("qwen_wsgi/tool_runner/servers/",),
    "selectors": (),
    "pickle": (),
}


@pytest.mark.parametrize("module", sorted(PLACES))
def test_a_module_is_imported_only_where_it_has_its_place(module: str) -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if found.module.split(".")[0] == module and not found.file.startswith(PLACES[module] or "-")
    ]
    assert wrong == []


def test_no_other_third_party_is_used() -> None:
    known = {*sys.stdlib_module_names, "qwen_wsgi", *PLACES}

    assert [str(found) for found in all_imports() if found.module.split(".")[0] not in known] == []


def test_the_sandbox_knows_nothing_of_the_product() -> None:
    """A mistake in the product's protocol code must not cancel itself out in its double."""
    wrong = [
        str(found)
        for found in all_imports()
        if found.file.startswith("qwen_wsgi/sandbox/")
        and (name := ours(found)) is not None
        and layer_of(name) != "sandbox"
    ]
    assert wrong == []


def test_only_the_composition_root_knows_the_sandbox() -> None:
    users = {found.file for found in all_imports() if layer_of(ours(found) or "") == "sandbox"}

    assert {file for file in users if not file.startswith("qwen_wsgi/sandbox/")} == {
        "qwen_wsgi/services.py"
    }


def test_only_the_settings_read_the_environment() -> None:
    """`os.environ`, `os.getenv` and their like; a mapping that is handed over may bear the name."""
    readers = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    wrong = []
    for path in SOURCES:
        if path == PACKAGE / "settings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute | ast.ImportFrom):
                continue
            by_attribute = (
                isinstance(node, ast.Attribute)
                and node.attr in readers
                and isinstance(node.value, ast.Name)
                and node.value.id in ("os", "posix")
            )
            by_name = (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and readers & {alias.name for alias in node.names}
            )
            if by_attribute or by_name:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def test_the_server_files_are_small_users_of_the_package() -> None:
    allowed = {
        "wsgi.py": {"app"},
        "gunicorn.conf.py": {"master", "server", "errors"},
    }
    for path in SERVER_FILES:
        used = {name for found in imports_of(path) if (name := ours(found)) is not None}
        assert used <= allowed[path.name], path.name
    assert len((ROOT / "wsgi.py").read_text().splitlines()) <= 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(parts_of(path)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)

    assert ast.get_docstring(tree)
    if len(tree.body) > 1 and path.name != "__init__.py":
        assert "from __future__ import annotations" in text


#: Rooms of tests/ from which every test may import.
SHARED = ("fakes", "kit", "schemas", "soak", "torture")


@functools.cache
def _imports_of_tests() -> list[tuple[Path, Import]]:
    return [
        (path, Import(found.file, found.line, module, found.for_types))
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for found in imports_of(path)
        for module in _modules(found, path)
    ]


def _modules(found: Import, path: Path) -> list[str]:
    """What is imported; `from tests.kit import servers` names `tests.kit.servers`."""
    if found.module.split(".")[0] not in ("tests", "benchmarks"):
        return []
    inside = ROOT / found.module.replace(".", "/")
    if not inside.is_dir():
        return [found.module]
    line = next(
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno == found.line
    )
    return [f"{found.module}.{alias.name}" for alias in line.names]


def test_no_test_imports_another_test() -> None:
    """Nor a conftest: what several tests need is in tests/fakes and tests/kit."""
    wrong = [
        str(found)
        for _, found in _imports_of_tests()
        for part in found.module.split(".")
        if part.startswith("test_") or part == "conftest"
    ]
    assert wrong == []


def test_what_the_tests_of_one_room_share_stays_in_it() -> None:
    wrong = [
        str(found)
        for path, found in _imports_of_tests()
        if found.module.startswith("tests.")
        and (room := found.module.split(".")[1]) not in SHARED
        and room != path.relative_to(ROOT / "tests").parts[0]
    ]
    assert wrong == []


def test_no_test_imports_the_benchmarks() -> None:
    wrong = [str(found) for _, found in _imports_of_tests() if found.module.startswith("bench")]

    assert wrong == []
    assert "benchmarks" not in (ROOT / "tests/soak/probe.py").read_text()


def test_what_the_type_checker_shall_ignore_has_a_reason() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for top in ("tests", "benchmarks")
        for path in sorted((ROOT / top).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"#\s*type:\s*ignore(?!\[[\w, -]+\]\s+# \w)", line)
    ]
    assert wrong == []
