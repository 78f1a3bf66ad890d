"""The web page: one document that loads nothing, and a policy that keeps it so."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """html: the whole document. policy: its Content-Security-Policy, which names its one script and one style by their digests."""

    html: str
    policy: str


@cache
def read_page() -> Page:
    """The page out of its three files."""
    style, script, frame = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    html = frame.replace("/* page.css */", style).replace("/* page.js */", script)
    policy = (f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data: blob:; "
              "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    return Page(html, policy)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
