"""What tools.json may say, and what is said of mistakes in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.errors import SettingsError
from qwen_wsgi.tool_runner.config import Entry, parse


def read(
    document: object,
    *,
    environ: dict[str, str] | None = None,
    of_qwen_code: dict[str, Any] | str = "there is none",
) -> dict[str, Entry]:
    found = parse(json.dumps(document), environ=environ or {}, of_qwen_code=of_qwen_code)
    return {each.label: each for each in found}


def server(**fields: object) -> dict[str, object]:
    return {"mcpServers": {"x": fields}}


def test_a_server_over_stdio() -> None:
    entry = read(
        server(
            command="node",
            args=["a.js"],
            env={"KEY": "${SECRET}-$SECRET"},
            cwd="/srv/",
            timeout=1500,
            trust=True,
            network=True,
            read=["/opt/x/"],
            write=["/srv"],
            includeTools=["a", "b"],
            excludeTools=["b"],
        ),
        environ={"SECRET": "s"},
    )["x"]

    assert entry == Entry(
        "x",
        command="node",
        args=("a.js",),
        env={"KEY": "s-s"},
        cwd="/srv",
        timeout_s=1.5,
        trust=True,
        network=True,
        read=("/opt/x",),
        write=("/srv",),
        include=("a", "b"),
        exclude=("b",),
    )
    assert [name for name in "abc" if entry.offers(name)] == ["a"]


def test_servers_behind_urls() -> None:
    found = read(
        {
            "mcpServers": {
                "new": {"httpUrl": "https://a.example/mcp", "headers": {"Authorization": "$T"}},
                "old": {"url": "http://b.example/sse"},
            }
        },
        environ={"T": "Bearer x"},
    )

    assert found["new"].http_url == "https://a.example/mcp"
    assert found["new"].headers == {"Authorization": "Bearer x"}
    assert found["old"].sse_url == "http://b.example/sse"
    assert not found["old"].trust


@pytest.mark.parametrize(
    "document",
    [{"python": {}, "fetch": {}}, {"mcpServers": {"python": {}, "fetch": {}}}],
    ids=["beside the servers", "among them"],
)
def test_what_is_built_in_needs_nothing(document: object) -> None:
    assert read(document) == {"python": Entry("python"), "fetch": Entry("fetch")}


def test_a_secret_is_in_no_representation() -> None:
    entry = read(server(command="x", env={"K": "hidden-thing"}))["x"]

    assert "hidden-thing" not in repr(entry)


def test_a_variable_that_is_not_there_is_trouble_of_its_entry_alone() -> None:
    found = read({"mcpServers": {"x": {"command": "a", "env": {"K": "$NOPE"}}}, "python": {}})

    assert "NOPE" in found["x"].trouble
    assert not found["python"].trouble


def test_an_entry_is_taken_over_from_qwen_code_but_not_its_trust() -> None:
    theirs = {"clock": {"command": "uvx", "args": ["c"], "trust": True, "oauth": {}, "timeout": 9}}

    entry = read(
        {"mcpServers": {"clock": {"from": "qwen-code", "network": True}}}, of_qwen_code=theirs
    )["clock"]

    assert (entry.command, entry.args, entry.network, entry.trust) == ("uvx", ("c",), True, False)


def test_variables_beside_a_url_are_not_taken_over() -> None:
    theirs = {"clock": {"httpUrl": "http://b.example/", "env": {"A": "1"}}}

    found = read({"mcpServers": {"clock": {"from": "qwen-code"}}}, of_qwen_code=theirs)

    assert found["clock"] == Entry("clock", http_url="http://b.example/")


@pytest.mark.parametrize(
    ("of_qwen_code", "told"),
    [
        ("it cannot be read", "it cannot be read"),
        ({}, "has no mcpServers.clock"),
        ({"clock": {"tcp": "x"}}, "exactly one of command"),
    ],
)
def test_one_that_cannot_be_taken_over_is_trouble_of_its_entry(
    of_qwen_code: dict[str, Any] | str, told: str
) -> None:
    entry = read({"mcpServers": {"clock": {"from": "qwen-code"}}}, of_qwen_code=of_qwen_code)[
        "clock"
    ]

    assert told in entry.trouble


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "must be an object"),
        ({"mcpServer": {}}, 'did you mean "mcpServers"?'),
        ({"mcpServers": []}, "mcpServers must be an object"),
        ({"mcpServers": {"a b": {}}}, "letters, digits"),
        ({"mcpServers": {"x": []}}, "x must be an object"),
        (server(), "x must have exactly one of"),
        (server(command="a", url="http://b"), "x must have exactly one of"),
        (server(command="a", headers={"a": "b"}), "x has headers"),
        (server(url="http://b", read=["/"]), "x has read"),
        (server(command="a", arg=["b"]), 'did you mean "args"?'),
        (server(command=3), "no text"),
        (server(command="a", args="b"), "list of texts"),
        (server(command="a", args=["\0"]), "list of texts"),
        (server(command="a", env={"A": 1}), "x has a env.A"),
        (server(command="a", env={"A=B": "1"}), "x has a env.A=B"),
        (server(command="a", env=False), "x has env that must be an object"),
        (server(httpUrl="http://b", headers=False), "x has headers that must be an object"),
        (server(url="http://b", env={"A": "1"}), "x has env, which only a command may have; what"),
        (server(command="a", read=["opt"]), "whole paths"),
        (server(command="a", cwd="opt"), "whole path"),
        (server(command="a", trust=1), "true or false"),
        (server(command="a", timeout=0), "1 to 3600000"),
        (server(command="a", timeout="60s"), "milliseconds"),
        (server(url="ftp://b"), "URL of http"),
        (server(url="http://u:secret@b/"), "has a password in url"),
        ({"mcpServers": {"x": {"from": "claude"}}}, '"qwen-code"'),
        ({"python": {"args": []}}, "python has 'args'"),
        ({"fetch": {"network": True}}, "fetch has 'network'"),
        ({"mcpServers": {f"s{n}": {"command": "a"} for n in range(65)}}, "the most are 64"),
    ],
)
def test_a_mistake_is_told_with_its_place(document: object, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(document)

    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_no_json_is_told_with_its_line() -> None:
    with pytest.raises(SettingsError, match="line 2"):
        parse('{\n"a": }', environ={}, of_qwen_code={})
