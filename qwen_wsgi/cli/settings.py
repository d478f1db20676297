"""`qwen-proxy settings`: every setting with its value, where that is from, default and meaning."""

from __future__ import annotations

import json

from qwen_wsgi.env_file import DEFAULT
from qwen_wsgi.settings import UNSET, Settings, describe


def show(settings: Settings, *, json_output: bool) -> int:
    """Print the table of settings; always 0."""
    rows = describe(settings)
    if json_output:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        unit = f" {row['unit']}" if row["unit"] else ""
        print(f"{row['name']} = {row['value']}{unit if row['value'] != UNSET else ''}")
        default = "" if row["default"] == UNSET else f" Default: {row['default']}{unit}."
        source = f" From: {row['source']}." if row["source"] != DEFAULT else ""
        print(f"    {row['description']}{default}{source}")
    return 0
