"""Doctor in a process of its own, and what becomes of one that fails."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from qwen_wsgi.console import doctor_process
from qwen_wsgi.console.doctor_process import DoctorProcess, Report
from tests.kit.processes import is_running
from tests.kit.servers import wait_until

FINDINGS = [
    {"check": "files", "subject": "disk", "level": "ok", "what": "has room", "remedy": ""},
    {"check": "files", "subject": "home", "level": "warn", "what": "is open", "remedy": "chmod"},
    {"check": "net", "subject": "host", "level": "fail", "what": "is away", "remedy": "wait"},
]


def running(code: str, *, most_s: float = 20) -> DoctorProcess:
    return DoctorProcess(dict(os.environ), command=(sys.executable, "-c", code), most_s=most_s)


def test_findings_are_read_and_grouped() -> None:
    report = running(f"print({json.dumps(json.dumps({'findings': FINDINGS}))})").run(calls=True)

    assert report == Report(FINDINGS)
    assert [name for name, _ in doctor_process.grouped(report)] == ["files", "net"]
    assert [each["subject"] for each in doctor_process.wrong(report)] == ["host", "home"]


def test_upstreams_are_asked_only_when_that_is_wanted() -> None:
    code = (
        "import json, sys; print(json.dumps({'findings': [dict(check='', subject='', level='ok',"
        " what=' '.join(sys.argv[1:]), remedy='')]}))"
    )
    told = [running(code).run(calls=calls).findings[0]["what"] for calls in (True, False)]

    assert told == ["", "--no-calls"]


def test_a_check_that_fails_is_told() -> None:
    report = running("import sys; sys.exit('the settings are wrong')").run(calls=False)
    assert report.findings == ()
    assert "the settings are wrong" in report.why

    for nonsense in ("1", "{}", '{"findings": [1]}', '{"findings": [{}]}', "[" * 9999):
        assert "no result" in running(f"print({nonsense!r})").run(calls=False).why
    nowhere = DoctorProcess({}, command=("/nonexistent",)).run(calls=False)
    assert "could not be started: No such file" in nowhere.why


def test_a_check_that_does_not_end_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    began = time.monotonic()
    report = running(code, most_s=1.0).run(calls=False)

    assert "did not end within 1 s" in report.why
    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{file.read_text()}").exists()


def test_what_it_has_started_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60']);"
        f"open({str(file)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    report = running(code, most_s=1.0).run(calls=False)

    assert "did not end within 1 s" in report.why
    wait_until(lambda: not is_running(int(file.read_text())), "the end of the child")


def test_one_check_runs_at_a_time(tmp_path: Path) -> None:
    go = tmp_path / "go"
    doctor = running(
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(.01)\n"
        "print('{\"findings\": []}')"
    )
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(doctor.run(calls=False)))
    thread.start()
    try:
        while "running already" not in (found := doctor.run(calls=False)).why:
            assert not found.why
    finally:
        go.touch()
        thread.join(20)
    assert doctor.run(calls=False) == Report([])


def test_the_real_doctor_answers_with_the_servers_settings(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "QWEN_PROXY_STATE_DIR": str(tmp_path / "state"),
        "PORT": "9",
    }
    report = DoctorProcess(environ).run(calls=False)

    assert not report.why
    assert any("127.0.0.1:9" in each["what"] for each in report.findings)
