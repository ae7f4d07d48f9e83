"""The page around the bundle: a policy that allows nothing from outside, a picture where no script runs."""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from pathlib import Path
from typing import Any

from lens_linear.explorer.payload import dumps

_FOLDER = Path(__file__).parent
_START = "LensLinearExplorer.page();"
_STYLE = "html{color-scheme:light dark}body{margin:0}noscript{font:16px/1.5 sans-serif}"


@cache
def bundle() -> str:
    """The built front end, as it is committed."""
    return (_FOLDER / "explorer.js").read_text(encoding="ascii").replace("</script", "<\\/script")


def page(payload: dict[str, Any], picture: bytes) -> str:
    """One HTML page that asks for nothing."""
    title = html.escape(f"{payload['model']['name']}: explorer")
    source = base64.b64encode(picture).decode("ascii")
    scripts = " ".join(f"'sha256-{_digest(code)}'" for code in (bundle(), _START))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'sha256-{_digest(_STYLE)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{_STYLE}</style></head>\n<body>'
        f"<noscript><p>{title}. The page needs scripts; this picture shows its model map: attention to the "
        "token after the previous occurrence, layers down, heads across.</p>"
        f'<img alt="Model map: prefix matching of every head" src="data:image/png;base64,{source}">'
        '</noscript><div id="explorer"></div>'
        f'<script type="application/json" id="payload">{dumps(payload)}</script>'
        f"<script>{bundle()}</script><script>{_START}</script></body></html>\n"
    )


def frame(payload: dict[str, Any], picture: bytes) -> str:
    """The page inside a frame, for notebooks without the widget."""
    return (
        f'<iframe title="Explorer" style="width:100%;height:900px;border:0" '
        f'sandbox="allow-scripts" srcdoc="{html.escape(page(payload, picture))}"></iframe>'
    )


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
