"""`nanollm top`: a server's rows, live."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from nanollm_jax.cli.options import a_number
from nanollm_jax.cli.printing import console, harmless
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Group

URL = "Where the server is."
KEY = "The key that it asks for."
EVERY = "Seconds between two looks, at most 3600."
ONCE = "Look once, and print it."
WIDTH = 40  # characters of a lane


class Look(NamedTuple):
    """What a server said: when, its rows, and its numbers by their names without the prefix."""

    at: float
    rows: list[dict[str, Any]]
    numbers: dict[str, float]


def top(
    url: Annotated[str, typer.Argument(metavar="URL", help=URL)] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(metavar="KEY", envvar="NANOLLM_API_KEY", help=KEY)] = None,
    every: Annotated[float, typer.Option(metavar="S", min=0.1, max=3600, callback=a_number, help=EVERY)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help=ONCE)] = False,
) -> None:
    """Watch a server. Each row is a lane: what is cached, read and written, of as much as was asked for; Ctrl-C leaves.

    Above them tokens per second, how much of the prompts was found in the prefix store, and who waits.
    """
    base = url.rstrip("/").removesuffix("/v1")
    screen, before = console(), look(base, api_key)
    if once or not screen.is_terminal:
        screen.print(shown(before, before))
        return
    from rich.live import Live

    with Live(shown(before, before), console=screen, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every)
            now = look(base, api_key)
            live.update(shown(before, now), refresh=True)
            before = now


def look(base: str, key: str | None) -> Look:
    """Ask a server. Raises RequestError where it does not answer."""
    text = fetch(f"{base}/metrics", key)
    found = re.findall(r"^nanollm:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    try:
        rows = json.loads(fetch(f"{base}/rows", key))["rows"]
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{base} is no server of nanollm; give the URL that nanollm serve prints.") from None
    return Look(time.monotonic(), rows, {name: float(value) for name, value in found})


def fetch(url: str, key: str | None) -> str:
    """What is at a URL."""
    try:
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.read().decode("utf-8", "replace")
    except (OSError, ValueError) as error:  # ValueError: no URL at all
        reason = f"it says {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise RequestError(f"{url} cannot be read: {harmless(reason)}; is nanollm serve running there?") from None


def shown(before: Look, now: Look) -> Group:
    """Two looks as what is seen."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    seconds = max(now.at - before.at, 1e-9)

    def grown(name: str) -> float:
        return now.numbers.get(name, 0) - before.numbers.get(name, 0)

    queries, hits = (now.numbers.get(f"prefix_cache_{name}_total", 0) for name in ("queries", "hits"))
    drafted, accepted = (now.numbers.get(f"spec_decode_num_{name}_tokens_total", 0) for name in ("draft", "accepted"))
    guessed = f" · {accepted / drafted:.0%} of {drafted:,.0f} guesses were right" if drafted else ""
    waiting, cache = now.numbers.get("num_requests_waiting", 0), now.numbers.get("kv_cache_usage_perc", 0)
    head = Text(
        f"{grown('generation_tokens_total') / seconds:.1f} tokens/s · {waiting:.0f} waiting · cache {cache:.0%} · "
        f"{hits / max(queries, 1):.0%} of prompt tokens were cached · "
        f"{now.numbers.get('generation_tokens_total', 0):,.0f} tokens written{guessed}"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("row", "request", "", "prompt", "written"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for n, row in enumerate(now.rows):
        busy = row["state"] != "idle"
        cells = (str(row["request"]), lane(row), f"{row['prompt']:,}", f"{row['written']:,}/{row['most']:,}")
        table.add_row(str(n), *(cells if busy else ("", Text("idle", "dim"), "", "")))
    return Group(head, Text(), table)


def lane(row: dict[str, Any]) -> Any:
    """A row as a bar: cached, read, written, and what may still come."""
    from rich.text import Text

    total = max(row["prompt"] + row["most"], 1)
    ends = [
        round(WIDTH * part / total)
        for part in (row["cached"], row["read"], row["prompt"], row["prompt"] + row["written"])
    ]
    bar = Text()
    begin = 0
    for end, letter, style in zip(ends, "=# *", ("cyan", "green", "dim", "yellow"), strict=True):
        bar.append(letter * max(end - begin, 0), style)
        begin = max(begin, end)
    bar.append("." * (WIDTH - begin), "dim")
    return bar
