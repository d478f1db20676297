"""Draws QR codes as SVG. Pure."""

from __future__ import annotations

import io
from typing import Final

#: Modules of light ground around a code: readers want four (ISO/IEC 18004), also where the page
#: behind it is dark.
_QUIET: Final = 4


def svg_of(text: str) -> str:
    """The QR code of a text; "" for one that has no room in any.

    Its ground is drawn, so that it stays light in the dark theme.
    """
    import segno  # here: a server that never shows one does not load it

    try:
        code = segno.make(text, error="m", micro=False)
    except ValueError:  # segno.DataOverflowError: some thousand characters
        return ""
    out = io.BytesIO()
    code.save(
        out,
        kind="svg",
        border=_QUIET,
        dark="#000",
        light="#fff",
        xmldecl=False,
        svgns=False,
        nl=False,
        omitsize=True,
        svgclass="qr",
        lineclass=None,
    )
    return out.getvalue().decode().replace("<svg ", '<svg role="img" aria-label="QR code" ', 1)
