"""The two locks around a refresh, always taken in this order: ours, then qwen-code's.

`ProxyLock` excludes our own greenlets and processes, for certain. `CliLock` is the file that
qwen-code locks with; it is a courtesy among programs that may remove it, not a guarantee.

Neither waits in the kernel: a blocking flock stops gevent's hub, hence every greenlet of the
worker (gevent issue 1657). Both look, sleep, and look again.
"""

from __future__ import annotations

from qwen_wsgi.credentials.locks.cli_lock import CliLock as CliLock
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock as ProxyLock
