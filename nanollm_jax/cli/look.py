"""`nanollm look`: what went on inside a model while it wrote."""

from __future__ import annotations

import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from nanollm_jax.cli.generate import PROMPT, SPECIAL, TRUNCATE, figures, open_model, prompt_ids
from nanollm_jax.cli.options import (
    Dtype,
    Frequency,
    KeepCompiled,
    MaxNewTokens,
    MinP,
    Presence,
    Repetition,
    Revision,
    Seed,
    Source,
    Stop,
    StopId,
    Temperature,
    TopK,
    TopP,
    expanded,
    given_settings,
    read_text,
)  # fmt: skip
from nanollm_jax.cli.printing import show
from nanollm_jax.cli.progress import compiling_shown
from nanollm_jax.errors import RequestError

REPORT = "Write what was seen to one HTML file, which opens anywhere and loads nothing."
LAYER = (
    "Keep whole rows of attention of this layer. Left out: the middle one. Of the others the strongest places are kept."
)
TIMES = "Trace the same sizes once more, for the time of each part of the model; that takes longer than the text."


def look(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", show_default=False, help=PROMPT)] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help=REPORT)] = None,
    layer: Annotated[int | None, typer.Option(metavar="N", min=0, show_default=False, help=LAYER)] = None,
    times: Annotated[bool, typer.Option("--times", help=TIMES)] = False,
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    max_new_tokens: MaxNewTokens = 128,
    special: Annotated[bool, typer.Option("--special", help=SPECIAL)] = False,
    stop: Stop = None,
    stop_id: StopId = None,
    truncate: Annotated[bool, typer.Option("--truncate", help=TRUNCATE)] = False,
    seed: Seed = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    presence_penalty: Presence = None,
    frequency_penalty: Frequency = None,
    compile_cache: KeepCompiled = True,
) -> None:
    """Continue a text and show how each token came about. The answer is printed, then one line of figures on standard error.

    The text is what nanollm generate writes with the same options: the compiled loop is watched, not repeated.
    """
    if report is None:
        raise RequestError("nothing says where what is seen goes; add --report FILE, such as --report story.html.")
    settings = given_settings(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    path = writable(expanded(report))
    text = read_text(prompt) or ""
    loaded = open_model(model, revision, dtype, compile_cache, 1, 1, None)
    import nanollm_jax as nano
    from nanollm_jax.settings import with_settings

    sampling = with_settings(loaded.defaults.sampling, settings)
    ids = prompt_ids(loaded, text, max_new_tokens, special=special, truncate=truncate)
    with compiling_shown():
        box = nano.watch(
            loaded,
            ids,
            keep=nano.glass.for_report(loaded, layer),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=secrets.randbelow(2**32) if seed is None else seed,
            stop=stop or (),
            stop_ids=stop_id or (),
        )
    (answer,) = box.answers
    show(f"{answer.text}\n")
    print(figures(answer.timings, None if sampling.temperature == 0 else answer.seed), file=sys.stderr)
    found = None
    if times:
        from nanollm_jax.measure.trace import profile_model

        with tempfile.TemporaryDirectory() as gone:
            found = profile_model(loaded, gone, 1, len(ids), len(answer.token_ids))
    nano.report(box, path, name=named(model), times=found)
    print(f"report: {path}, {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


def named(model: str | None) -> str:
    """What a report calls a model: a folder by its own name alone, as reports are given away."""
    if model is None:
        return "the bundled model"
    folder = expanded(Path(model))
    return folder.resolve().name if folder.is_dir() else model


def writable(path: Path) -> Path:
    """The path. Raises RequestError where its folder is not there, or it is one itself: nobody waits for a model first."""
    if path.is_dir():
        raise RequestError(f"--report {path}: is a folder; name a file in it, such as {path / 'story.html'}.")
    if not path.parent.is_dir():
        raise RequestError(f"--report {path}: there is no folder {path.parent}; make it first.")
    return path
