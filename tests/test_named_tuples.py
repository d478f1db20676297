"""Named tuples that are made without their constructor, for speed, have a value for each field.

`tuple.__new__(Class, (…))` takes any number of values: a field that is added to the class would be
missing from such a tuple, and found out where somebody reads it.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qwen_wsgi.accounting.ledger import row
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.state.database.calls import CallRow

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
_NEW = "tuple.__new__"


class Made(NamedTuple):
    """A place where a tuple is made so.

    Attributes:
        values: how many it is given; None where the code does not say it.
    """

    name: str
    line: int
    values: int | None


def made_in(source: str) -> Iterator[Made]:
    """The places in a source, also those that call it by a name of their own."""
    tree = ast.parse(source)
    callers = {_NEW} | {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == _NEW
        for target in node.targets
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in callers:
            of, values = node.args
            given = values.elts if isinstance(values, ast.Tuple) else None
            if given is None or any(isinstance(each, ast.Starred) for each in given):
                yield Made(ast.unparse(of), node.lineno, None)
            else:
                yield Made(ast.unparse(of), node.lineno, len(given))


def found() -> Iterator[tuple[str, Made]]:
    for path in sorted((ROOT / "qwen_wsgi").rglob("*.py")):
        if _NEW in (source := path.read_text()):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for each in made_in(source):
                yield module, each


def test_each_has_as_many_values_as_its_class_has_fields() -> None:
    counted = [(module, made) for module, made in found() if made.values is not None]
    assert len(counted) >= 5
    for module, made in counted:
        fields = getattr(importlib.import_module(module), made.name)._fields
        assert made.values == len(fields), f"{module}:{made.line}: {made.name} has {fields}"


def test_where_the_code_does_not_say_how_many_it_is_called() -> None:
    assert {(module, made.name) for module, made in found() if made.values is None} == {
        ("qwen_wsgi.accounting.ledger", "CallRow")
    }
    assert len(row(CallRecord(), 0.0, None)) == len(CallRow._fields)


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("tuple.__new__(Room, (1, 2))", Made("Room", 1, 2)),
        ("new = tuple.__new__\nnew(Room, (1, 2, 3))", Made("Room", 2, 3)),
        ("tuple.__new__(Room, (1, *others))", Made("Room", 1, None)),
        ("tuple.__new__(Room, values)", Made("Room", 1, None)),
    ],
)
def test_they_are_found(source: str, seen: Made) -> None:
    assert list(made_in(source)) == [seen]
