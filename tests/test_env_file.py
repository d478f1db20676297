"""The environment file is read as systemd reads it, and lies over what was there before."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi import env_file
from qwen_wsgi.errors import SettingsError
from tests.kit.properties import examples

#: Signs that mean something, and a few that do not.
SIGNS = (*"AB1_ \t\n\r='\"\\#;$`né", "export ", "A=", "\nB='", '\nC="')


@pytest.mark.parametrize(
    ("text", "values", "ignored"),
    [
        ("", {}, ()),
        ("A=b\n#B=c\n\n;x=1\n  C='d e'\nE=\"f\"", {"A": "b", "C": "d e", "E": "f"}, ()),
        ("A=1\nA=2", {"A": "2"}, ()),
        ("A=", {"A": ""}, ()),
        ("A = two  words \t\nB=x # y", {"A": "two  words", "B": "x # y"}, ()),
        ("A=b\\\nc\nB=\\ x\\ \nC=\\\\n\\t", {"A": "bc", "B": " x ", "C": "\\nt"}, ()),
        ('A=\'x\\\'y\nB="\\"\\\\\\$\\`\\n\\\nz"', {"A": "x\\y", "B": '"\\$`\\nz'}, ()),
        ("A='two\nlines'\nB=1", {"A": "two\nlines", "B": "1"}, ()),
        ("A='x'\"y\" z'w'", {"A": "xyz'w'"}, ()),
        ("A='never closed\n", {"A": "never closed\n"}, ()),
        ('A="never closed\\', {"A": "never closed"}, ()),
        ("# a comment \\\nA=1", {"A": "1"}, ()),
        ("export A=1\nB=1\n1C=1\nD\nE F=1\n=x\n", {"B": "1"}, (1, 3, 4, 5, 6)),
        ("A='\n\n'\nwrong\n", {"A": "\n\n"}, (4,)),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}, ()),
        ("Ä=1\nA=ä", {"A": "ä"}, (1,)),
    ],
)
def test_it_is_read_as_systemd_reads_it(
    text: str, values: dict[str, str], ignored: tuple[int, ...]
) -> None:
    assert env_file.parse(text) == (values, ignored)


#: Reads a file as systemd does.
Read = Callable[[bytes], dict[str, str]]


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """systemd's own reader, out of the library that its programs share."""
    found = sorted(Path("/usr/lib").glob("**/systemd/libsystemd-shared-*.so"))
    if not found:
        pytest.skip("systemd is not installed")
    library = ctypes.CDLL(str(found[0]))
    strings = ctypes.POINTER(ctypes.c_char_p)
    if not hasattr(library, "load_env_file") or not hasattr(
        library, "strv_env_clean_with_callback"
    ):
        pytest.skip("this systemd keeps its reader to itself")
    library.load_env_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(strings)]
    library.strv_env_clean_with_callback.restype = strings
    library.strv_env_clean_with_callback.argtypes = [strings, ctypes.c_void_p, ctypes.c_void_p]
    path = tmp_path_factory.mktemp("systemd") / "file.env"

    def read(data: bytes) -> dict[str, str]:
        path.write_bytes(data)
        loaded = strings()
        assert library.load_env_file(None, str(path).encode(), ctypes.byref(loaded)) >= 0
        pairs: list[str] = []
        if loaded:
            # What the manager does with it: drop names that cannot be.
            loaded = library.strv_env_clean_with_callback(loaded, None, None)
            while (each := loaded[len(pairs)]) is not None:
                pairs.append(each.decode())
        return dict(pair.split("=", 1) for pair in pairs)

    return read


@examples(200)
@given(st.lists(st.sampled_from(SIGNS), max_size=30).map("".join))
def test_systemd_reads_the_same(systemd: Read, text: str) -> None:
    if re.search(r"[#;][^\n\r]*\\[\n\r]", text):
        return  # before version 254 a comment went on after a backslash
    assert env_file.parse(text).values == systemd(text.encode())


@examples(200)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
def test_every_value_can_be_written(text: str) -> None:
    quoted = re.sub(r'(["\\$`])', r"\\\1", text)

    assert env_file.parse(f'A="{quoted}"\nB=1').values == {"A": text, "B": "1"}


def test_a_large_file_takes_no_time() -> None:
    for text in (" " * 300_000, "A=" + " " * 300_000 + "x", "A=\\\n" * 80_000, "A='" * 90_000):
        env_file.parse(text)
    assert len(env_file.parse("export A=1\n" * 60_000).ignored) == 60_000


class TestRead:
    def test_there_is_none(self, tmp_path: Path) -> None:
        assert env_file.read(str(tmp_path / "none")) is None

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            (b"A=1\nB=\xff\n", "line 2: this is not UTF-8"),
            (b"A=1\n\nB=\0\n", "line 3: there is a zero byte"),
            (b"#" * (1024 * 1024 + 1), "is larger than 1048576 bytes"),
        ],
    )
    def test_what_is_no_such_file_is_refused(self, tmp_path: Path, data: bytes, told: str) -> None:
        path = tmp_path / "a.env"
        path.write_bytes(data)

        with pytest.raises(SettingsError) as raised:
            env_file.read(str(path))

        assert str(raised.value).startswith(f"QWEN_PROXY_ENV_FILE={path}")
        assert told in str(raised.value)

    def test_one_that_may_not_be_read_says_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(SettingsError, match=r"sudo chgrp qwen-proxy-env /x && sudo chmod 0640"):
            env_file.read("/x")

    def test_a_directory_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"Is a directory\)$"):
            env_file.read(str(tmp_path))


class TestLayers:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "a.env"
        path.write_text("A=file\nB=file\n")
        return path

    def test_the_file_wins_over_what_was_given(self, file: Path) -> None:
        given_to_us = {"QWEN_PROXY_ENV_FILE": str(file), "A": "given", "C": "given"}

        found = env_file.layered(given_to_us)

        assert {name: found[name] for name in "ABC"} == {"A": "file", "B": "file", "C": "given"}
        assert [env_file.source(found, name) for name in "ABCD"] == [
            *(str(file), str(file), "environment", "default")
        ]
        assert env_file.beneath(found) == given_to_us

    def test_a_line_that_is_removed_means_what_was_given(self, file: Path) -> None:
        first = env_file.layered({"QWEN_PROXY_ENV_FILE": str(file), "A": "given"})
        file.write_text("C=file\n")

        second = env_file.layered(first)

        assert (second["A"], second["C"], "B" in second) == ("given", "file", False)
        assert env_file.layered(second) == second, "again, nothing changes"

    def test_options_win_over_the_file(self, file: Path) -> None:
        environ = env_file.with_options({"QWEN_PROXY_ENV_FILE": str(file)}, {"A": "option"})
        environ = env_file.with_options(environ, {"C": "option"})

        found = env_file.layered(env_file.layered(environ))

        assert {name: found[name] for name in "ABC"} == {"A": "option", "B": "file", "C": "option"}
        assert env_file.source(found, "A") == "command line"

    def test_without_a_file_nothing_is_noted(self) -> None:
        assert env_file.layered({"A": "given"}) == {"A": "given"}
        assert env_file.layered({"QWEN_PROXY_ENV_FILE": "/nowhere/a.env"}) == {
            "QWEN_PROXY_ENV_FILE": "/nowhere/a.env"
        }

    def test_a_file_cannot_name_another_one_nor_what_was_beneath(self, file: Path) -> None:
        file.write_text('QWEN_PROXY_ENV_FILE=/other\n_QWEN_PROXY_OPTIONS=\'{"A": "x"}\'\nB=1\n')
        environ = {"QWEN_PROXY_ENV_FILE": str(file)}

        found = env_file.layered(environ)

        assert found["QWEN_PROXY_ENV_FILE"] == str(file)
        assert "A" not in found
        assert env_file.beneath(found) == environ

    @pytest.mark.parametrize("noted", ["", "no JSON", "[1]"])
    def test_notes_that_are_none_say_nothing(self, noted: str) -> None:
        assert env_file.beneath({"_QWEN_PROXY_BENEATH": noted, "A": "1"}) == {"A": "1"}

    def test_some_are_kept_as_they_were(self, file: Path) -> None:
        old = env_file.layered({"QWEN_PROXY_ENV_FILE": str(file), "A": "given"})
        file.write_text("C=new\nD=new\n")

        new, changed = env_file.keep(old, env_file.layered(old), ("A", "B", "C", "X"))

        assert changed == ("A", "B", "C")
        assert (new["A"], new["B"], new["D"], "C" in new) == ("file", "file", "new", False)
        assert env_file.beneath(new) == {"QWEN_PROXY_ENV_FILE": str(file), "A": "given"}
        assert env_file.layered(new)["C"] == "new"
        assert json.loads(new["_QWEN_PROXY_BENEATH"]) == {
            "A": "given",
            "B": None,
            "C": None,
            "D": None,
        }
