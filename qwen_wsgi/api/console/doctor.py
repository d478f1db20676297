"""`/console/doctor`: what is wrong with the installation and what to do, when somebody asks."""

from __future__ import annotations

from flask import Response

from qwen_wsgi.api import lifecycle
from qwen_wsgi.api.console import page
from qwen_wsgi.console import doctor_process
from qwen_wsgi.console.doctor_process import Report

blueprint = page.blueprint("doctor")


@blueprint.get("/console/doctor")
def ask() -> Response:
    """The page before a check."""
    return _told(None)


@blueprint.post("/console/doctor")
def check() -> Response:
    """Check, and show what was found."""
    doctor = lifecycle.live().services.doctor
    return _told(doctor.run(calls=page.form().get("calls") == "on"))


def _told(report: Report | None) -> Response:
    return page.render(
        "doctor",
        title="Doctor",
        report=report,
        wrong=() if report is None else doctor_process.wrong(report),
        groups=() if report is None else doctor_process.grouped(report),
        moods=_MOODS,
        most_s=round(doctor_process.MOST_S),
    )


#: How the levels of findings look.
_MOODS = {"ok": "good", "warn": "waiting", "fail": "bad"}
