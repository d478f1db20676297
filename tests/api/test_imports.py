"""Importing the package does nothing: no file opened, no thread started, no environment read."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = r"""
import os, pkgutil, sys, threading, importlib, json, traceback

# What others do at import is theirs; only ours counts.
import flask, gevent.event, gevent.monkey, requests, urllib3, werkzeug, certifi, idna, hmac, uuid
import argparse, array, base64, datetime, ipaddress, logging, socket, ssl, stat, fcntl, http, enum
import http.client, http.server, email.utils, zlib, gzip, selectors, secrets, urllib.parse, signal
import importlib.util, struct, textwrap, hashlib, random, html, string

found = {"events": [], "environment": []}
home = os.path.dirname(importlib.util.find_spec("qwen_wsgi").origin)
watching = False

def ours():
    '''Whether code of the package itself, and not an import that it makes, is at work.'''
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return None
        if name.startswith(home):
            return f"{name[len(home) + 1:]}:{frame.f_lineno}"
        frame = frame.f_back
    return None

WATCHED = ("open", "socket.", "subprocess.", "os.", "shutil.", "tempfile.", "fcntl.", "time.")

def audit(event, arguments):
    if watching and event.startswith(WATCHED) and (place := ours()):
        found["events"].append(f"{event} {arguments[:1]} at {place}")

class Environment(dict):
    def _note(self):
        if watching and (place := ours()):
            found["environment"].append(place)
    def __getitem__(self, name): self._note(); return super().__getitem__(name)
    def __contains__(self, name): self._note(); return super().__contains__(name)
    def __iter__(self): self._note(); return super().__iter__()
    def get(self, *a): self._note(); return super().get(*a)
    def items(self): self._note(); return super().items()
    def keys(self): self._note(); return super().keys()
    def copy(self): self._note(); return super().copy()

os.environ = Environment(os.environ)
sys.addaudithook(audit)
threads = set(threading.enumerate())
files = set(os.listdir("/proc/self/fd"))
watching = True
import qwen_wsgi
names = ["qwen_wsgi"] + [m.name for m in pkgutil.walk_packages(qwen_wsgi.__path__, "qwen_wsgi.")]
for name in names:
    importlib.import_module(name)
watching = False
found["modules"] = len(names)
found["threads"] = [t.name for t in set(threading.enumerate()) - threads]
found["files"] = len(set(os.listdir("/proc/self/fd")) - files)
found["patched"] = gevent.monkey.is_module_patched("socket")
found["log"] = [repr(h) for h in __import__("logging").getLogger("qwen_wsgi").handlers]
print(json.dumps(found))
"""


def test_importing_every_module_has_no_effect() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found.pop("modules") > 40
    assert found == {
        "events": [],
        "environment": [],
        "threads": [],
        "files": 0,
        "patched": False,
        "log": [],
    }
