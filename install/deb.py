"""Two documents of the Debian package, for install/deb.sh.

python install/deb.py changelog VERSION MAINTAINER   in Debian's form, this version alone
python install/deb.py copyright SITE                 the licenses, also of the packages in SITE
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from email.message import Message
from email.parser import HeaderParser
from email.utils import formatdate
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def changelog(version: str, maintainer: str, now_s: float) -> str:
    """What changed is in NEWS.gz, which is CHANGELOG.md: it has no sections of Debian's form."""
    return (
        f"qwen-proxy ({version}) unstable; urgency=medium\n\n"
        "  * See /usr/share/doc/qwen-proxy/NEWS.gz.\n\n"
        f" -- {maintainer}  {formatdate(now_s)}\n"
    )


def copyright(site: Path) -> str:
    """debian/copyright.in, with the packages and the license in it."""
    parser = HeaderParser()
    packages = sorted(
        (parser.parsestr(path.read_text()) for path in site.glob("*.dist-info/METADATA")),
        key=lambda each: str(each["Name"]).lower(),
    )
    rows = "\n".join(f" * {each['Name']} {each['Version']}: {_license(each)}" for each in packages)
    text = (ROOT / "debian/copyright.in").read_text()
    license = "\n".join(_paragraphs((ROOT / "LICENSE").read_text().splitlines()))
    return text.replace("@PACKAGES@", f" .\n{rows}").replace("@LICENSE@", license)


def _license(package: Message) -> str:
    """What a package says of its license, in a line."""
    if expression := package["License-Expression"]:
        return str(expression)
    found = [
        str(each).rpartition(" :: ")[2]
        for each in package.get_all("Classifier", [])
        if each.startswith("License :: ")
    ]
    named = str(package["License"] or "").strip().splitlines()
    return ", ".join(found) or (named[0] if named else "see its directory")


def _paragraphs(lines: Iterable[str]) -> Iterable[str]:
    return (f" {line}" if line.strip() else " ." for line in lines)


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "changelog":
        now_s = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
        sys.stdout.write(changelog(given[0], given[1], now_s))
    else:
        sys.stdout.write(copyright(Path(given[0])))
