"""Failures that come of our own lack of files, memory or room."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import requests
import urllib3

from qwen_wsgi.shortage import by_errno, shortage_of


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EMFILE, "proxy_out_of_files"),
        (errno.ENFILE, "proxy_out_of_files"),
        (errno.ENOMEM, "proxy_out_of_memory"),
        (errno.ENOBUFS, "proxy_out_of_memory"),
        (errno.ENOSPC, "proxy_disk_full"),
        (errno.EDQUOT, "proxy_disk_full"),
    ],
)
def test_what_has_run_out_shows_by_the_number(number: int, code: str) -> None:
    found = shortage_of(OSError(number, os.strerror(number)))

    assert found is not None and found is by_errno(number)
    error = found.error()
    assert (error.status, error.code) == (503, code)
    assert error.retry_after_s
    assert found.remedy in error.message


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ECONNREFUSED, "x"), OSError("x"), ValueError(24), socket.gaierror(-3, "x")],
)
def test_other_failures_are_not_ours(error: Exception) -> None:
    assert shortage_of(error) is None


def test_it_is_found_under_what_libraries_make_of_it() -> None:
    inner = urllib3.exceptions.NewConnectionError(None, "no")  # type: ignore[arg-type]  # unused
    inner.__cause__ = OSError(errno.EMFILE, "x")
    outer = requests.ConnectionError(urllib3.exceptions.MaxRetryError(None, "/", inner))  # type: ignore[arg-type]  # unused

    assert shortage_of(outer) is by_errno(errno.EMFILE)
    circle = ValueError("x")
    circle.__cause__ = circle
    assert shortage_of(circle) is None
    memory = shortage_of(MemoryError())
    assert memory is by_errno(errno.ENOMEM)


@pytest.fixture
def no_file_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(socket.socket()) as probe:
        lowest = probe.fileno()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_resolver_without_a_file_is_not_a_name_that_does_not_exist(no_file_left: None) -> None:
    found = shortage_of(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))

    assert found is by_errno(errno.EMFILE)
