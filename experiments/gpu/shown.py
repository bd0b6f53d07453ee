"""What on_a_gpu.py measured, as README's table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Values = dict[str, Any]


def table(report: Values) -> str:
    """A report as Markdown: the machine, a row per program, and what was checked. What was not measured is not there."""
    machine, limits, shape = report["machine"], report["limits"], report["shape"]
    rows = ["| | tokens/s | a step | of the limit |", "|---|---|---|---|"]
    for case in report["cases"]:
        if not case["options"]:
            seconds = case["seconds_per_step"] if "seconds_per_step" in case else case["seconds"]
            share = f"{100 * case['limit_share']:.0f} %"
            rows.append(f"| {title(case)} | {rate(case['tokens_per_second'])} | {milliseconds(seconds)} | {share} |")
    for case in report["cases"]:
        if case["tokens"] and case["tokens"] == case["piece"]:
            what = f"first token of a prompt of {case['tokens']}, {case['dtype']}"
            rows.append(f"| {what} | | {milliseconds(case['first_token_seconds'])} | |")
    head = (
        f"{machine['device']}, {machine['cores']} cores, jax {machine['jax']}, Python {machine['python']}, {machine['date']}: "
        f"{shape['source'].removesuffix('.json')}{layers(shape)}, random weights. The limit is the longer of reading "
        f"at {limits['read_bytes_per_second'] / 1e9:,.0f} GB/s and multiplying at {limits['flops_per_second'] / 1e12:,.0f} "
        "TFLOP/s in bfloat16, both measured in the same run."
    )
    return "\n".join([head, "", *rows]) + "\n"


def layers(shape: Values) -> str:
    """A note where the shape has not all of its layers."""
    return f" with {shape['layers']} layers" if shape["layers"] != shape["all_layers"] else ""


def title(case: Values) -> str:
    """A program, for a reader."""
    if case["tokens"]:
        pieces = case["tokens"] // case["piece"]
        how = f" in {pieces} pieces" if pieces > 1 else ""
        return f"prefill of {case['tokens']} tokens{how}, {case['dtype']}"
    rows = f"{case['rows']} rows" if case["rows"] > 1 else "1 row"
    return f"decode, {rows}, {case['capacity']} positions, {case['dtype']}"


def rate(value: float) -> str:
    """Tokens per second, three digits of them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, three digits of them."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{1000 * seconds:.0f} ms"


def picture(report: Values, path: Path) -> None:
    """Each program's time a step beside its limit, and the parts of a token's time.  Saved as PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = [case for case in report["cases"] if not case["options"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
    for place, case in enumerate(reversed(shown)):
        measured = case["seconds_per_step"] if "seconds_per_step" in case else case["seconds"]
        share = case["limit_share"]
        left.barh(place, share, color="#4878a8", height=0.62)
        left.text(
            min(share, 1) + 0.01,
            place,
            f"{rate(case['tokens_per_second'])} tokens/s, {milliseconds(measured)}",
            va="center",
            fontsize=8,
        )
    left.set_yticks(range(len(shown)), [title(case) for case in reversed(shown)], fontsize=8)
    left.axvline(1, color="black", linewidth=0.8)
    left.set(
        xlim=(0, 1.45), xlabel="share of the limit", title=f"{report['machine']['device']}, {report['shape']['source']}"
    )
    for found in report.get("parts", [])[:1]:
        parts = [part for part in found["parts"] if part["seconds"] > 0][::-1]
        total = sum(part["seconds"] for part in parts)
        right.barh(
            [part["part"] for part in parts], [part["seconds"] / total for part in parts], color="#c07848", height=0.62
        )
        right.set(xlabel="share of the time", title=f"a token of {found['case']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)
