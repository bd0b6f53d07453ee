"""Who may ask a server: options that could never match what clients send are refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from nanollm_jax.errors import RequestError, shown

LOCAL = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
USUAL = {"http": ":80", "https": ":443"}  # ports that browsers do not write


def check_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Keys as a header can carry them. Raises RequestError, which does not say the key."""
    for n, key in enumerate(keys, 1):
        if not (key and key.isascii() and key.isprintable() and key == key.strip()):
            raise RequestError(
                f"--api-key, number {n} of {len(keys)}, is empty, has spaces around it, or letters that no header can carry; "
                "give letters, digits and signs of ASCII."
            )
    return tuple(keys)


def hosts_of(host: str, names: Sequence[str]) -> tuple[str, ...]:
    """What a Host header may say, as it is compared: in small letters, without a port. Empty where it may say anything.

    Raises RequestError for what is no name.
    """
    found = []
    for name in names:
        bare = f"[{name}]" if name.count(":") > 1 and "[" not in name else name
        split = parts(f"//{bare}")
        if not split.hostname or "*" in name or split.path or split.query or split.fragment or "@" in name:
            raise RequestError(
                f"--allow-host {shown(name)}: expected a name, such as example.com; of a server that any name may reach, "
                "leave it out and give --host 0.0.0.0."
            )
        found.append(split.hostname)
    if host not in LOCAL and not found:
        return ()
    return (*LOCAL, *([host.lower()] if host not in (*LOCAL, *EVERYWHERE) else []), *found)


def origins_of(pages: Sequence[str]) -> tuple[str, ...]:
    """What an Origin header may say, as browsers write it; "*" is everything. Raises RequestError for what they never write."""
    found = []
    for page in pages:
        split = parts(page)
        plain = split.path in ("", "/") and not (split.query or split.fragment or "@" in split.netloc)
        if page != "*" and not (split.scheme and split.hostname and plain):
            raise RequestError(
                f"--cors-origin {shown(page)}: expected what stands in front of a page's path, as https://example.com, or *."
            )
        where = split.netloc.lower().removesuffix(USUAL.get(split.scheme, ":"))
        found.append(page if page == "*" else f"{split.scheme}://{where}")
    return tuple(found)


def path_of(root: str) -> str:
    """What stands in front of all paths, without a slash at its end. Raises RequestError for what is no path."""
    path = root.rstrip("/")
    if path and (not path.startswith("/") or path.startswith("//") or not path.isprintable() or set(path) & set("?# ")):
        raise RequestError(f"--root-path {shown(root)}: expected a path, such as /models/llama.")
    return path


def parts(text: str) -> SplitResult:
    """The parts of a URL, none of what is none."""
    try:
        split = urlsplit(text)
        split.port  # noqa: B018  # looked at, it may be no number
    except ValueError:
        return SplitResult("", "", "", "", "")
    return split
