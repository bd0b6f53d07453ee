"""`nanollm profile`: where the time of prefill and decode goes, by the parts of the model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from nanollm_jax.cli.bench import heading
from nanollm_jax.cli.options import AnyModel, AsJson, Dtype, Plot, Revision
from nanollm_jax.cli.plot import check_plot, draw_profile
from nanollm_jax.cli.printing import harmless, print_json, print_table

TRACE = "Keep the trace, in a new folder in this one; Perfetto and XProf open it. Left out, nothing stays behind."


def profile(
    model: AnyModel = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    rows: Annotated[int, typer.Option(metavar="B", min=1, help="Rows in the batch.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(metavar="T", min=1, help="Tokens of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens that decode writes per row.")] = 32,
    trace: Annotated[Path | None, typer.Option(metavar="DIR", show_default=False, help=TRACE)] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Show where the time goes when a model reads a prompt and writes tokens.

    A config file gets random weights. The parts are the model's own: attention is its projections, scores what queries
    and keys make of each other. FLOPs and bytes come from the compiled program. The last column is the time that they
    need at the reading and arithmetic rates measured here (the roofline), as a share of the time that they took; a part
    whose bytes were still in the CPU's caches can exceed 100%.
    """
    if plot is not None:
        check_plot(plot)
    from nanollm_jax.measure.trace import profile as measure

    with tempfile.TemporaryDirectory() as gone:
        report = measure(
            model,
            trace or gone,
            revision=revision,
            dtype=dtype,
            rows=rows,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
        )
    if trace is None:
        report = {name: value for name, value in report.items() if name not in ("folder", "files")}
    if plot is not None:
        draw_profile(report, plot)
    if as_json:
        return print_json(report)
    limits = report["limits"]
    print(heading(report))
    print(f"reading {limits['read_bytes_per_second'] / 1e9:.1f} GB/s, "
          f"arithmetic {limits['flops_per_second'] / 1e9:.0f} GFLOP/s\n")  # fmt: skip
    for name, tokens in (("prefill", prompt_tokens), ("decode", new_tokens)):
        program = report[name]
        print(
            f"{name}, {rows} × {tokens} tokens: {program['seconds'] * 1e3:.1f} ms, "
            f"{program['tokens_per_second']:.1f} tokens/s while traced"
        )
        print_table(
            ("part", "ms", "share", "GFLOP", "MB", "GFLOP/s", "GB/s", "roofline"),
            [cells(entry) for entry in program["parts"]], right=7,
        )  # fmt: skip
    if trace is not None:
        print(harmless(f"trace: {report['folder']}"))


def cells(entry: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    seconds = entry["seconds"]
    front = (entry["part"], f"{seconds * 1e3:.2f}", f"{entry['share']:.1%}")
    if entry["limit_share"] is None:
        return (*front, *[""] * 5)
    return (
        *front, f"{entry['flops'] / 1e9:.3f}", f"{entry['bytes'] / 1e6:.1f}",
        f"{entry['flops'] / seconds / 1e9:.1f}", f"{entry['bytes'] / seconds / 1e9:.1f}", f"{entry['limit_share']:.0%}",
    )  # fmt: skip
