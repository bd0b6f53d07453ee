"""What every chapter of the series uses: --quick, checks, questions, timing, tables and figures.

A chapter is `experiments/NN_topic.py` in percent format. README.md beside this file describes its parts.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from agreement import difference
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

try:
    import matplotlib
    import matplotlib.pyplot as plt
    from PIL import Image
except ModuleNotFoundError as missing:
    sys.exit(
        f"The chapters draw, and {missing.name} is not installed: make .venv/installed-experiments does that, or "
        f"{sys.executable} -m pip install matplotlib pillow"
    )

REPOSITORY = Path(__file__).parents[1]
# What a run draws. The committed figures that the text shows are renewed from it by make figures alone.
DRAWN = REPOSITORY / "experiments" / "run"
# How the line of a claim about time begins that did not hold.
SLOW = "SLOW"
# What the output of an interactive part is to the page, and the most that one may bring onto it.
PART, LARGEST = "application/vnd.nanollm.part+json", 300_000  # bytes

# Five colours that stay apart in print and for the colour-blind.
BLUE, ORANGE, GREEN, RED, GREY = "#2b6cb0", "#dd7a1f", "#2f8f5b", "#c0392b", "#8a8f98"

matplotlib.use("agg")
matplotlib.rcParams.update({
    "figure.figsize": (8, 4), "figure.dpi": 130, "figure.facecolor": "#ffffff", "figure.constrained_layout.use": True,
    "font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left", "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
    "grid.color": "#dddddd", "xtick.color": "#555555", "ytick.color": "#555555", "legend.frameon": False,
    "lines.linewidth": 2, "image.cmap": "Blues", "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED, GREY]),
})  # fmt: skip


def quick() -> bool:
    """Was the chapter started with --quick? Then sizes are small, and nothing that depends on time is checked."""
    return "--quick" in sys.argv[1:]


def check(claim: str, holds: Any) -> None:
    """Print a claim that holds; AssertionError for one that does not."""
    if not bool(holds):
        raise AssertionError(claim)
    print(f"ok   {claim}")


def check_time(claim: str, holds: Any) -> None:
    """Print a claim about measured times, and whether it holds here. Nothing is raised: a busy machine, or another one, may
    refute it, and the chapter goes on. With --quick nothing is said: its sizes are too small to show anything."""
    if not quick():
        print(f"{'ok  ' if bool(holds) else SLOW} {claim}")


def same(claim: str, ours: Any, reference: Any, tolerance: float = 1e-5, size: Any = None) -> None:
    """Print how far two arrays are apart, as a share of their size; AssertionError if that is above the tolerance.

    agreement.py says what the size is and which tolerance is for what.
    """
    apart = difference(ours, reference, size)
    if not apart <= tolerance:
        raise AssertionError(f"{claim}: they differ by {apart:.2g} of the largest number, more than {tolerance:.2g}")
    print(f"ok   {claim}: largest difference {apart:.1e} of the size")


def predict(question: str) -> None:
    """Ask the reader for a guess before the answer is computed; on a terminal, wait for Enter."""
    print(f"Predict: {question}")
    if sys.stdin is not None and sys.stdin.isatty() and not quick():
        input("(your guess, then Enter) ")


def outcome(value: Any, what: str) -> None:
    """Print the number that a prediction asked for. The page draws it beside the reader's guess."""
    print(
        f"The answer: {float(value):,.4g} {what}" if float(value) < 1e4 else f"The answer: {float(value):,.0f} {what}"
    )


def seconds(function: Callable[..., Any], *args: Any, repeats: int = 5) -> float:
    """The fastest of several runs, after one that is thrown away because it may compile. Other programs only ever add time."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(1 if quick() else repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - begun)
    return min(times)


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print rows under a header, numbers to the right."""
    first, *others = header
    grid = Table(first, box=SIMPLE_HEAD)
    for name in others:
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(*map(str, row))
    text = io.StringIO()
    # plain text everywhere: rich would write its own HTML in a notebook, and colours
    Console(file=text, width=120, force_jupyter=False, force_terminal=False, color_system=None).print(grid)
    print(title, *(line.rstrip() for line in text.getvalue().splitlines()), sep="\n")


def save(figure: plt.Figure, name: str) -> None:
    """Write run/NAME.png, which the page shows; a text cell shows the committed figures/NAME.png. With --quick: no file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    if not quick():
        # 128 colours look the same and take a third of the bytes
        DRAWN.mkdir(exist_ok=True)
        Image.open(drawn).convert("RGB").quantize(128).save(DRAWN / f"{name}.png", optimize=True)


class Part:
    """Recorded values as a notebook's output: data for the chapter's page, a sentence for all others."""

    def __init__(self, kind: str, data: str, alt: str) -> None:
        self.kind, self.data, self.alt = kind, data, alt

    def __repr__(self) -> str:
        return f"On the chapter's page: {self.alt}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        part = {"kind": self.kind, "alt": self.alt, "data": json.loads(self.data)}
        return {PART: part, "text/plain": repr(self)}


def interactive(kind: str, data: Any, alt: str) -> None:
    """Give values of this run to page/parts/KIND.js, which draws them on the chapter's page for the reader to play with.

    data: lists, dicts and arrays. alt: what is to be seen and done, in a sentence; a terminal prints it instead.
    """
    written = json.dumps(data, default=lambda array: np.asarray(array).tolist(), allow_nan=False)
    size = len(written.encode())
    if size > LARGEST:
        raise ValueError(
            f"the values for {kind} are {size:,} bytes; expected at most {LARGEST:,}: record fewer, or round"
        )
    part = Part(kind, written, alt)
    shell = sys.modules.get("IPython")
    if shell is not None and shell.get_ipython() is not None:
        shell.display.display(part)
    else:
        print(part)
