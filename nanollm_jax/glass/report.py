"""A story as one HTML file that asks for nothing: data, script and style stand in it, and its policy lets nothing else run.

The modules of page/ are joined into one script, as a file that is opened from a disk loads none. What a model wrote is in the
data alone, and comes onto the page as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanollm_jax.errors import RequestError
from nanollm_jax.glass.story import Story, story
from nanollm_jax.glass.watch import Watched

PAGE = Path(__file__).with_name("page")
IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w.]+)";\n', re.MULTILINE)


def report(
    box: Watched, path: str | os.PathLike[str], *, row: int = 0, name: str | None = None, times: dict[str, Any] | None = None
) -> Path:  # fmt: skip
    """Write what a row of a box has to tell to an HTML file, which opens anywhere and loads nothing.

        box = nano.watch(model, "Once upon a time", keep=nano.glass.for_report(model))
        nano.report(box, "story.html")

    What is not in the box is read off one more pass, and the report says of what. name is the model's, and times what
    measure.trace.profile gave, for the time of each part. Returns the path. Raises RequestError as glass.story does, and where
    nothing can be written there.
    """
    path = Path(path)
    text = written(story(box, row=row, name=name, times=times))
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{str(path)!r} cannot be written ({reason}); give another path.") from None
    return path


def written(told: Story) -> str:
    """The file's text."""
    script = joined("report.js")
    style = "".join((PAGE / name).read_text(encoding="utf-8") for name in ("parts.css", "style.css"))
    allowed = f"script-src '{hashed(script)}'; style-src '{hashed(style)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    begins = "".join(told.head["tokens"]).split("\n")[0][:80].strip() or "A text"
    title = html.escape(begins.encode("utf-8", "replace").decode())  # half a character has no place in a file
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main></main>
<script id="story" type="application/json">{told.json()}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def joined(*entries: str, folders: Sequence[Path] = (PAGE,)) -> str:
    """Modules and all that they import as one script, each behind those that it needs. They share no names.

    A file is taken from the first of the folders that has it. Raises FileNotFoundError where none does.
    """
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in parts:
            path = next((folder / name for folder in folders if (folder / name).exists()), folders[-1] / name)
            text = path.read_text(encoding="utf-8")
            for other in IMPORT.findall(text):
                add(other)
            parts[name] = re.sub(r"^export ", "", IMPORT.sub("", text), flags=re.MULTILINE)

    for entry in entries:
        add(entry)
    return "\n".join(parts.values())


def hashed(text: str) -> str:
    """How a policy names an inline script or style: by its hash, of UTF-8."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
