"""The form of a client key."""

from __future__ import annotations

import dataclasses

from qwen_wsgi.access.client_key import ClientKey
from qwen_wsgi.cli.keys import options
from qwen_wsgi.console import keys

#: Members that nobody writes, and how the end of a key is written.
READ_ONLY = {"id", "created_at", "revoked_at", "last_used_at"}
WRITTEN = {"expires_at": "expires"}


def test_the_form_and_the_command_have_all_members_of_a_key() -> None:
    """Each has words of its own, and neither may lack what the other one has."""
    members = {field.name for field in dataclasses.fields(ClientKey)} - READ_ONLY
    members = {WRITTEN.get(member, member) for member in members}

    fields = [field.member for field in (*keys.LIMITS, *keys.RIGHTS, *keys.FLAGS)]
    assert {*fields, "name", "expires"} == members
    assert len(fields) == len(set(fields))

    flags = {member for member, _ in options.FLAGS}
    assert {option.member for option in options.VALUES} | flags | {"name"} == members
    assert flags == {field.member for field in keys.FLAGS}


def test_what_the_form_shows_of_a_key_it_reads_back() -> None:
    key = ClientKey(
        "key_1", "anna", 0, rpm=5, tpm=10**9, tokens_per_day=7, money_per_month=2.5, concurrency=3,
        models=("qwen3*", "text-embedding-v4"), accounts=("dashscope",), cidr=("192.168.1.0/24",),
        tools=("time",), tools_always=True, admin=True, metrics=True, note="mine", cache=3600,
    )  # fmt: skip
    changes = keys.changes_in(keys.fields_of(key), now=1.0)
    assert dataclasses.replace(key, **changes) == key
