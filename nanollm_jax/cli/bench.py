"""`nanollm bench`: how fast a model starts, reads and writes here, beside what the machine can do."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from nanollm_jax.cli.options import AnyModel, AsJson, Dtype, Plot, Revision, guesses_of
from nanollm_jax.cli.plot import check_plot, draw_bench
from nanollm_jax.cli.printing import harmless, print_json, print_table
from nanollm_jax.errors import RequestError

ROWS = "A batch size of prefill and decode. May be repeated; not given: 1, 4, 8 and 32, with --try-flags 1 and 32."
SPECULATE = "Measure lookup:N too: decode behind a text that says the same over and over, with drafts and without."
REPEATS = "Timed calls, after one thrown away; 0 leaves all but starting out."
FLAGS = "Measure a few flags of XLA's compiler for GPUs instead, each in a process of its own, beside none of them."
STARTS = "New processes with an empty folder of caches, and as many with a filled one; 0 leaves starting out."


def bench(
    model: AnyModel = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    rows: Annotated[list[int] | None, typer.Option(metavar="B", min=1, show_default=False, help=ROWS)] = None,
    prompt_tokens: Annotated[int, typer.Option(metavar="T", min=1, help="Tokens of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens that decode writes per row.")] = 64,
    repeats: Annotated[int, typer.Option(metavar="R", min=0, help=REPEATS)] = 5,
    starts: Annotated[int | None, typer.Option(metavar="P", min=0, show_default="3", help=STARTS)] = None,
    speculate: Annotated[str | None, typer.Option(metavar="HOW", show_default=False, help=SPECULATE)] = None,
    try_flags: Annotated[bool, typer.Option("--try-flags", help=FLAGS)] = False,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model starts, reads prompts and writes tokens.

    A config file gets random weights. Every figure is a median with the lowest and the highest. Prefill is held
    against the arithmetic rate and decode against the reading rate that the same run measured on this machine.
    """
    if plot is not None:
        check_plot(plot)
        if not repeats:
            raise RequestError("--plot draws prefill and decode, which --repeats 0 leaves out.")
    guesses = guesses_of(speculate)
    if try_flags:
        if plot is not None or speculate is not None or starts is not None or not repeats:
            raise RequestError(
                "--try-flags measures prefill and decode; leave out --plot, --speculate, --starts and --repeats 0."
            )
        counts = {"--prompt-tokens": prompt_tokens, "--new-tokens": new_tokens, "--repeats": repeats, "--dtype": dtype}
        words = [*([] if model is None else [model]), *(f"{name}={value}" for name, value in counts.items())]
        words += [] if revision is None else [f"--revision={revision}"]
        return show_flags([*words, *(f"--rows={count}" for count in rows or (1, 32))], as_json)
    from nanollm_jax.measure.bench import bench as measure

    report = measure(
        model, revision=revision, dtype=dtype, rows=rows or (1, 4, 8, 32), prompt_tokens=prompt_tokens,
        new_tokens=new_tokens, repeats=repeats, starts=3 if starts is None else starts, speculate=guesses,
        progress=show_progress,
    )  # fmt: skip
    if plot is not None:
        draw_bench(report, plot)
    if as_json:
        return print_json(report)
    print(heading(report) + "\n")
    if "start" in report:
        cold, warm = report["start"]["cold"], report["start"]["warm"]
        stages = [(stage.replace("_", " "), spread(cold[stage], 2), spread(warm[stage], 2)) for stage in cold]
        for stage, seconds in report["start"].get("command", {}).items():
            stages.append((f"nanollm generate: {stage.replace('_', ' ')}", "", spread(seconds, 2)))
        print_table(("a new process, seconds", "empty caches", "filled caches"), stages, right=2)
    if not repeats:
        return
    prefill = [
        (str(entry["rows"]), spread(entry["tokens_per_second"]), f"{entry['flops'] / 1e9:.1f}",
         f"{entry['flops_per_second'] / 1e9:.0f}", f"{entry['limit_share']:.0%}")
        for entry in report["prefill"]
    ]  # fmt: skip
    print(f"prefill, {prompt_tokens} tokens per row")
    print_table(("rows", "tokens/s, all rows", "GFLOP", "GFLOP/s", "of arithmetic"), prefill, right=4)
    decode = [
        (str(entry["rows"]), spread(entry["tokens_per_second"]), f"{entry['bytes_per_step'] / 1e6:.1f}",
         f"{entry['bytes_per_second'] / 1e9:.1f}", f"{entry['limit_share']:.0%}")
        for entry in report["decode"]
    ]  # fmt: skip
    print(f"decode, {new_tokens} tokens per row")
    print_table(("rows", "tokens/s, all rows", "MB/step", "GB/s", "of reading"), decode, right=4)
    if "speculation" in report:
        guessed = [
            (str(entry["rows"]), spread(entry["tokens_per_second"]), spread(entry["times_without"], 2),
             f"{entry['tokens_per_step']:.2f}")
            for entry in report["speculation"]
        ]  # fmt: skip
        print(f"decode behind a text that repeats itself, {harmless(speculate or '')}")
        print_table(("rows", "tokens/s, all rows", "times without", "tokens/step"), guessed, right=3)
    limits, memory = report["limits"], report["memory"]
    others = [
        ("first token, compiled before", spread(report["first_token_seconds"], 3), "s"),
        ("the machine: reading", spread(limits["read_bytes_per_second"], 1, 1e9), "GB/s"),
        ("the machine: arithmetic", spread(limits["flops_per_second"], 0, 1e9), "GFLOP/s"),
        *(
            (f"peak memory of the {name.partition('_')[0]}", f"{size / 1e6:,.0f}", "MB")
            for name, size in memory.items()
            if size is not None
        ),
    ]
    print_table(("", "", ""), others)


def show_flags(words: list[str], as_json: bool) -> None:
    """What flags of XLA make of prefill and decode."""
    from nanollm_jax.measure import flags

    report = flags.try_flags(words, show_progress)
    if as_json:
        return print_json(report)
    print(harmless(report["device"]) + "\n")
    print_table(
        ("flags", "rows", "decode, tokens/s", "times", "prefill, tokens/s", "times"), flags.table(report), right=5
    )
    for one in report["tried"]:
        print(
            f"{one['name']}: {one['flags'] or 'no flag'}"
            + harmless(f", failed: {one['error']}" if "error" in one else "")
        )


def show_progress(text: str) -> None:
    """One line on standard error, written over the last, where somebody looks at it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text} ", end="", file=sys.stderr, flush=True)


def heading(report: dict[str, Any]) -> str:
    """Which model on which machine, in two lines."""
    model, machine = report["model"], report["machine"]
    where = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} ({machine['cpu']})"
    return harmless(
        f"{model['source']}: {model['parameters']:,} parameters, {model['bytes'] / 1e6:,.0f} MB in {model['dtype']}\n"
        f"{where}, {machine['cores']} cores, jax {machine['jax']}, Python {machine['python']}"
    )


def spread(summary: dict[str, Any], digits: int | None = None, unit: float = 1.0) -> str:
    """A median, and the lowest and highest behind it."""
    if digits is None:
        digits = 0 if summary["median"] >= 100 else 1
    middle, lowest, highest = (f"{summary[key] / unit:.{digits}f}" for key in ("median", "lowest", "highest"))
    return f"{middle} ({lowest} – {highest})"
