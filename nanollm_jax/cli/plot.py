"""Pictures of what bench and profile measured. They need matplotlib, an optional extra: pip install 'nanollm-jax[plot]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanollm_jax.errors import RequestError

READ, WRITE, LIMIT = "#1b6ca8", "#d1662a", "#555555"


def check_plot(file: Path) -> None:
    """Raise RequestError, before anything is measured, where no picture could be written to this file."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise RequestError("--plot needs matplotlib; install it with pip install 'nanollm-jax[plot]'.") from None
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
            label = {"cold": "nothing compiled before", "warm": "compilation cache filled"}[kind]
            places = [place + offset for place in range(len(names))]
            starting.bar_label(starting.barh(places, seconds, 0.38, color=colour, label=label), fmt="%.2f", padding=3)
            starting.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        starting.margins(x=0.15)
        starting.set_xlabel("seconds")
        starting.set_title("a new process")
        starting.legend(loc="lower right")
    model, machine = report["model"], report["machine"]
    name = Path(model["source"]).name
    figure.suptitle(f"{name}, {model['dtype']}, {machine['cpu']}, {machine['cores']} cores, jax {machine['jax']}")
    figure.savefig(file, dpi=150)
