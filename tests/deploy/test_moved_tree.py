"""`make install DESTDIR=` into a directory, whose content then becomes a machine's own."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.kit import servers, throwaway_root
from tests.kit.checkout import ENVIRONMENT, copy_of_checkout
from tests.kit.secrets import core, secret

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not servers.nginx(), reason="nginx is not installed"),
]

#: Neither is a name that the staging directory has.
PREFIX = "/opt/with-another.name"
NAME = "qwen.test"
KEY, CLIENT_KEY = secret("moved-account"), secret("moved-client")

#: As an operator does it, on a machine without systemd.
SCRIPT = """
cp -a {root}/. /
groupadd --system qwen-proxy
groupadd --system qwen-proxy-env
useradd --system --gid qwen-proxy --no-create-home --home-dir /var/lib/qwen-proxy \\
    --shell /usr/sbin/nologin qwen-proxy
usermod -aG qwen-proxy www-data
cat >/etc/qwen-proxy/qwen-proxy.env <<END
DASHSCOPE_API_KEY={key}
QWEN_PROXY_API_KEYS={client_key}
export WRONG=1
END
chgrp qwen-proxy-env /etc/qwen-proxy/qwen-proxy.env
chmod 640 /etc/qwen-proxy/qwen-proxy.env
mkdir -m 700 /closed
cd /closed
say() {{ echo "=== $1"; }}

say before
qwen-proxy status
qwen-proxy serve >/tmp/serve.log 2>&1 &
nginx -t -q
nginx
fetch() {{
    curl -sS --max-time 20 --cacert /etc/qwen-proxy/tls/ca.crt --resolve {name}:443:127.0.0.1 "$@"
}}
say health
for i in $(seq 60); do
    fetch -f https://{name}/health 2>/dev/null && break
    sleep 0.5
done
echo
say models
fetch -H "Authorization: Bearer {client_key}" https://{name}/v1/models
echo
say python
{python} -I - <<END
import ssl, urllib.request
context = ssl.create_default_context(cafile="/etc/qwen-proxy/tls/ca.crt")
context.verify_flags |= ssl.VERIFY_X509_STRICT
print(urllib.request.urlopen("https://localhost/health/live", context=context).status)
END
say status
qwen-proxy status
say owners
stat -c '%U:%G %a %n' /run/qwen-proxy /var/lib/qwen-proxy
find /var/lib/qwen-proxy -not -user qwen-proxy
say clients
qwen-proxy clients codex
say doctor
qwen-proxy doctor --no-calls || true
say somebody
cd /
HOME=/nowhere setpriv --reuid nobody --regid nogroup --clear-groups qwen-proxy status || true
HOME=/nowhere setpriv --reuid nobody --regid nogroup --clear-groups qwen-proxy clients curl
say log
cat /tmp/serve.log
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each part of the script printed."""
    base = tmp_path_factory.mktemp("moved")
    for directory in (base, *base.parents[:2]):
        directory.chmod(0o755)
    root = base / "staging"
    done = subprocess.run(
        ["make", "install", f"DESTDIR={root}", f"PREFIX={PREFIX}", f"NAME={NAME}", "TLS=internal"],
        cwd=copy_of_checkout(base / "checkout"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if "it needs PyPI or a mirror" in done.stderr and "HASHES" not in done.stderr:
        pytest.skip("pip cannot reach a package index")
    assert done.returncode == 0, done.stdout + done.stderr
    if "usually cannot read" in done.stdout:
        pytest.skip("this machine has no Python that a service can read")
    staged = subprocess.run(["grep", "-rIlF", str(root), str(root)], capture_output=True, text=True)
    compiled = subprocess.run(
        ["grep", "-rlF", str(root), str(root / PREFIX[1:] / "venv/lib")],
        capture_output=True,
        text=True,
    )
    script = SCRIPT.format(
        root=root,
        key=KEY,
        client_key=CLIENT_KEY,
        name=NAME,
        python=f"{PREFIX}/venv/bin/python",
    )
    printed = throwaway_root.run(script, base, timeout_s=120)
    parts = re.split(r"^=== (\w+)\n", printed, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {**found, "install": done.stdout, "staged": staged.stdout + compiled.stdout}


def test_nothing_names_the_place_where_it_was_built(told: dict[str, str]) -> None:
    assert told["staged"] == ""


def test_the_site_answers_with_tls_under_its_name(told: dict[str, str]) -> None:
    assert '"status":"ok"' in told["health"]
    assert '"object":"list"' in told["models"]
    assert told["python"] == "200\n"


def test_root_is_told_of_the_service_and_not_of_root(told: dict[str, str]) -> None:
    socket = "unix:/run/qwen-proxy/http.sock"
    assert f"(not the server at {socket}: no server listens there)" in told["before"]
    assert f"Asked: the server at {socket}, version" in told["status"]
    for part in (told["before"], told["status"]):
        assert "dashscope  NOT TRIED YET" in part
    assert "doctor runs as" not in told["doctor"]


def test_its_dependencies_are_the_pinned_ones(told: dict[str, str]) -> None:
    assert "dependencies\n  ok       versions: all are as pinned, or newer\n" in told["doctor"]


def test_the_services_directories_are_its_own(told: dict[str, str]) -> None:
    assert told["owners"] == (
        "qwen-proxy:qwen-proxy 750 /run/qwen-proxy\nqwen-proxy:qwen-proxy 700 /var/lib/qwen-proxy\n"
    )


def test_clients_are_told_the_address_and_how_to_trust_it(told: dict[str, str]) -> None:
    for part in (told["clients"], told["somebody"]):
        assert f"https://{NAME}/v1" in part
        assert "/etc/qwen-proxy/tls/ca.crt" in part
    assert "CODEX_CA_CERTIFICATE" in told["clients"]
    assert "No client keys" not in told["clients"]


def test_doctor_has_what_only_root_can_see(told: dict[str, str]) -> None:
    assert "nginx -t: the configuration is valid" in told["doctor"]
    assert "unix:/run/qwen-proxy/http.sock: version" in told["doctor"]


def test_somebody_else_is_told_where_the_service_is(told: dict[str, str]) -> None:
    assert "this user may not connect to its socket" in told["somebody"]
    assert "sudo qwen-proxy status" in told["somebody"]


def test_no_secret_is_told(told: dict[str, str]) -> None:
    for part in told.values():
        assert core(KEY) not in part
        assert core(CLIENT_KEY) not in part


def test_the_installation_ends_with_what_to_do(told: dict[str, str]) -> None:
    assert f"--resolve {NAME}:443:127.0.0.1 https://{NAME}/health" in told["install"]
    for word in ("update-ca-certificates", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "certutil"):
        assert word in told["install"]
