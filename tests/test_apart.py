"""Long computations in a thread of their own, as in a worker: gevent has patched the process."""

from __future__ import annotations

import subprocess
import sys

from tests.kit.processes import REPOSITORY

BEGIN = """
from gevent import monkey; monkey.patch_all()
import functools, gc, gevent, weakref
from qwen_wsgi.greenlets import apart
sleep = monkey.get_original("time", "sleep")
"""

CALLERS_THAT_LEAVE = """
running = most = 0

def work():
    global running, most
    running += 1
    most = max(most, running)
    sleep(0.2)
    running -= 1

callers = [gevent.spawn(apart, work) for _ in range(4)]
gevent.sleep(0.05)
for caller in callers[:2]:
    caller.kill()
gevent.joinall(callers[2:])
print(most, [caller.successful() for caller in callers[2:]])
"""

FAILURES = """
gc.disable()

class Body:
    def __repr__(self):
        return "all that was sent"

def refuse(body):
    raise ValueError("refused")

body = Body()
gone = weakref.ref(body)
try:
    apart(functools.partial(refuse, body))
except ValueError as error:
    print(error)
del body
gevent.sleep(0)
print(gone())
"""


TOO_LONG = """
from qwen_wsgi.greenlets import ThreadApart
one = ThreadApart()
ended = []

def work():
    sleep(0.2)
    ended.append(1)
    return 7

first = gevent.spawn(one, work)
gevent.sleep(0)
for _ in range(2):
    try:
        one(lambda: 1, timeout_s=0.02)
    except TimeoutError:
        print("too long")
print(first.get(), ended, one(lambda: 8, timeout_s=5))
"""

TWO_THREADS = """
from qwen_wsgi.greenlets import ThreadApart
slow = gevent.spawn(ThreadApart(), lambda: sleep(0.3))
gevent.sleep(0)
print(apart(lambda: 1), slow.ready())
slow.join()
"""

IN_TURN = """
import socket
from qwen_wsgi.greenlets import InTurn
in_turn, done = InTurn(), []
left, right = socket.socketpair()
ready = gevent.event.Event()

def work(name):
    done.append(name)
    left.send(b".")
    if name == "broken":
        raise ValueError(name)
    return name

def caller(name):
    ready.wait()
    try:
        return in_turn(functools.partial(work, name))
    except ValueError:
        return "refused"

def other():
    while True:
        right.recv(1)
        done.append("other")

callers = [gevent.spawn(caller, name) for name in ("a", "broken", "b")]
gevent.spawn(other)
gevent.sleep(0.01)
ready.set()
gevent.joinall(callers)
works = [name for name in done if name != "other"]
print([each.value for each in callers], works, done.index("other") < done.index("b"))
gone = [gevent.spawn(in_turn, lambda: gevent.sleep(9)), gevent.spawn(in_turn, lambda: 1)]
gevent.sleep(0)
gevent.killall(gone)
print(in_turn(lambda: 2))
"""


def ran(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )


def test_one_work_at_a_time_also_when_its_caller_has_left() -> None:
    assert ran(CALLERS_THAT_LEAVE).stdout.strip() == "1 [True, True]"


def test_a_failure_is_raised_and_not_printed_and_nothing_is_kept_of_the_work() -> None:
    process = ran(FAILURES)

    assert process.stdout.splitlines() == ["refused", "None"]
    assert process.stderr == ""


def test_a_caller_that_waits_too_long_goes_on_and_the_work_too() -> None:
    assert ran(TOO_LONG).stdout.splitlines() == ["too long", "too long", "7 [1] 8"]


def test_one_thread_does_not_wait_for_another() -> None:
    assert ran(TWO_THREADS).stdout.strip() == "1 False"


def test_what_stops_the_loop_is_done_in_turn_and_others_run_between() -> None:
    assert ran(IN_TURN).stdout.splitlines() == [
        "['a', 'refused', 'b'] ['a', 'broken', 'b'] True",
        "2",
    ]
