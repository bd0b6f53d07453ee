"""Pictures of what bench and profile measured. They need matplotlib, which is an extra: pip install '.[plot]' in a clone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nanollm_jax.errors import RequestError

READ, WRITE, LIMIT = "#1b6ca8", "#d1662a", "#555555"


def check_plot(file: Path) -> None:
    """Raise RequestError, before anything is measured, where no picture could be written to this file."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise RequestError(f"--plot needs matplotlib; install it: {sys.executable} -m pip install matplotlib") from None
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix[1:] not in known:
        raise RequestError(f"--plot {file}: expected a file name that ends in one of .{', .'.join(known)}.")
    if not file.parent.is_dir():
        raise RequestError(f"--plot {file}: there is no folder {file.parent}; make it first.")


def draw_bench(report: dict[str, Any], file: Path) -> None:
    """Tokens per second over rows, for prefill and decode, each with the machine's limit; and what starting costs."""
    from matplotlib.figure import Figure

    limits = report["limits"]
    figure = Figure(figsize=(12 if "start" in report else 8, 4), layout="constrained")
    reading, writing, *rest = figure.subplots(1, 3 if "start" in report else 2)
    for axes, kind, colour, limit, work in (
        (reading, "prefill", READ, limits["flops_per_second"]["median"], "flops"),
        (writing, "decode", WRITE, limits["read_bytes_per_second"]["median"], "bytes_per_step"),
    ):
        entries = sorted(report[kind], key=lambda entry: entry["rows"])
        rows = [entry["rows"] for entry in entries]
        rates = [entry["tokens_per_second"] for entry in entries]
        middle = [rate["median"] for rate in rates]
        below = [rate["median"] - rate["lowest"] for rate in rates]
        above = [rate["highest"] - rate["median"] for rate in rates]
        axes.errorbar(rows, middle, (below, above), color=colour, marker="o", capsize=3, label="measured")
        tokens = [entry["rows"] * (report["prompt_tokens"] if kind == "prefill" else 1) for entry in entries]
        bound = [count * limit / entry[work] for count, entry in zip(tokens, entries, strict=True)]
        axes.plot(rows, bound, color=LIMIT, linestyle="--", label="the machine's limit")
        axes.set_xscale("log", base=2)
        axes.set_xticks(rows, [str(count) for count in rows])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("rows")
        axes.set_ylabel("tokens per second, all rows")
        axes.set_title(f"{kind}, {report['prompt_tokens' if kind == 'prefill' else 'new_tokens']} tokens per row")
        axes.legend()
    for starting in rest:
        for offset, kind, colour in ((0.2, "cold", LIMIT), (-0.2, "warm", READ)):
            names = list(report["start"][kind])[::-1]
            seconds = [report["start"][kind][name]["median"] for name in names]
            label = {"cold": "empty caches", "warm": "filled caches"}[kind]
            places = [place + offset for place in range(len(names))]
            starting.bar_label(starting.barh(places, seconds, 0.38, color=colour, label=label), fmt="%.2f", padding=3)
            starting.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        starting.margins(x=0.15)
        starting.set_xlabel("seconds")
        starting.set_title("a new process")
        starting.legend(loc="lower right")
    figure.suptitle(title(report))
    figure.savefig(file, dpi=150)


def draw_profile(report: dict[str, Any], file: Path) -> None:
    """The roofline with the parts of the model under it: FLOPs per byte against FLOP per second, areas by time.

    Parts that take less than half a percent of the time are left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    reading, arithmetic = report["limits"]["read_bytes_per_second"], report["limits"]["flops_per_second"]
    ridge = arithmetic / reading
    names = sorted({entry["part"] for name in ("prefill", "decode") for entry in report[name]["parts"]})
    colours = {part: f"C{index}" for index, part in enumerate(names)}
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        parts = [entry for entry in report[name]["parts"] if entry["share"] >= 0.005 and entry["flops"]]
        handles = [Line2D([], [], color=LIMIT, linestyle="--", label="the machine's limit")]
        places = []
        for entry in parts:
            place, colour = entry["flops"] / entry["bytes"], colours[entry["part"]]
            axes.scatter(
                place, entry["flops"] / entry["seconds"] / 1e9, 30 + 1500 * entry["share"], color=colour, alpha=0.6
            )
            label = f"{entry['part']}, {entry['share']:.0%} of the time"
            handles.append(Line2D([], [], color=colour, alpha=0.6, marker="o", linestyle="", label=label))
            places.append(place)
        left, right = min([*places, ridge]) / 3, max([*places, ridge]) * 3
        roof = [reading * left / 1e9, arithmetic / 1e9, arithmetic / 1e9]
        axes.plot([left, ridge, right], roof, color=LIMIT, linestyle="--")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("FLOPs per byte")
        axes.set_ylabel("GFLOP/s")
        axes.legend(handles=handles, loc="lower right")
        axes.set_title(
            f"{name}, {report['rows']} × {report['prompt_tokens' if name == 'prefill' else 'new_tokens']} tokens"
        )
    figure.suptitle(title(report))
    figure.savefig(file, dpi=150)


def title(report: dict[str, Any]) -> str:
    """Which model on which machine, in one line."""
    model, machine = report["model"], report["machine"]
    name = Path(model["source"]).name
    return f"{name}, {model['dtype']}, {machine['cpu']}, {machine['cores']} cores, jax {machine['jax']}"
