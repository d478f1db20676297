"""Checks the tools that the server runs: whether each of their servers starts, lists, answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings
from qwen_wsgi.tool_runner import sources
from qwen_wsgi.tools.runner import RunnerUnavailable
from qwen_wsgi.tools.runner_client import asking

TELL: Final = Teller("tools")


def check(settings: Settings, *, calls: bool) -> Iterator[Finding]:
    """Look at every server of tools.json; says nothing where there is none.

    Args:
        calls: whether anything may be contacted; a server of tools may be on another machine.
    """
    if not settings.tools:
        return
    try:
        sources.entries(settings)
    except SettingsError as error:
        if not sources.is_service():
            yield TELL.fail("tools.json", str(error), "Correct the file; docs/tool-runner.md.")
            return
        # The service's user reads it, and no other one need be able to.
        yield TELL.skipped("tools.json", str(error))
    if not calls:
        yield TELL.skipped("servers of tools", "nothing was contacted (--no-calls)")
        return
    try:
        with asking(settings, SystemClock()) as client:
            checked = client.check()
            tools = client.offered()
    except (RunnerUnavailable, SettingsError) as error:
        yield TELL.fail("runner", str(error), "Look into its log, and start it again.")
        return
    for label, why in checked.items():
        if why:
            remedy = f"Correct its entry in {settings.tools}, or remove it."
            yield TELL.fail(label, f"offers nothing: {why}", remedy)
        else:
            count = sum(each.server == label for each in tools)
            yield TELL.ok(label, f"answers, and offers {count} tool{'s' * (count != 1)}")
