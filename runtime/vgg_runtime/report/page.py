"""The web page. It is served live, or saved as a report with a result in it. Both come from the template
``page.html``."""

import base64
import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path

from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import open_image
from vgg_runtime.result import Result

TEMPLATE = Path(__file__).with_name("page.html")
THUMBNAIL_PX = 320
MAX_PICTURES = 24  # in a report; the JSON holds all of them
_DATA = "<!--data-->"
_POLICY = "<!--policy-->"


def policy(template: str, *, live: bool) -> str:
    """The Content-Security-Policy of a page. It allows the page's own scripts and styles, by hash; when the
    page is live it also allows connections to its own server."""
    hashes = {}
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        hashes[tag] = " ".join(map(_hash, found)) or "'none'"
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src"
        f" {hashes['style']}; img-src data: blob:;"
        f" connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    """A script or style as a source of the policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def live() -> tuple[bytes, str]:
    """The page without a result as UTF-8, and the policy to send as a header (``frame-ancestors`` works only
    there)."""
    template = TEMPLATE.read_text(encoding="utf-8")
    content = template.replace(_POLICY, "").replace(_DATA, "")
    return content.encode(), policy(template, live=True) + "; frame-ancestors 'none'"


def report(result: Result, pictures: list[Path]) -> str:
    """The page with a result and thumbnails of its first pictures in it. It needs no server and no
    network."""
    template = TEMPLATE.read_text(encoding="utf-8")
    rows = (dataclasses.replace(row, predictions=row.predictions[:MAX_PICTURES]) for row in result.variants)
    shown = dataclasses.replace(result, images=(), variants=tuple(rows)).to_json()
    shown["images"] = [
        image.to_json() | {"thumbnail": thumbnail(path)}
        for image, path in list(zip(result.images, pictures, strict=True))[:MAX_PICTURES]
    ]
    shown["image_count"] = len(result.images)
    # "</script>" or "<!--" in a label or a file name must not end the data
    text = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")
    data = f'<script type="application/json" id="result">{text}</script>'
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(template, live=False)}">'
    return template.replace(_POLICY, meta).replace(_DATA, data)


def thumbnail(path: Path) -> str:
    """A small JPEG of a picture as a data URI."""
    image = open_image(path, InputSpec(THUMBNAIL_PX, THUMBNAIL_PX))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
