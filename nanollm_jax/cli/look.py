"""`nanollm look`: what goes on inside a model while it writes, as a page or as a file."""

from __future__ import annotations

import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from nanollm_jax.cli.devices import Devices, Dp, Tp
from nanollm_jax.cli.generate import PROMPT, SPECIAL, TRUNCATE, figures, open_model, prompt_ids
from nanollm_jax.cli.options import (
    Adapter,
    Cache,
    Dtype,
    Frequency,
    KeepCompiled,
    MaxNewTokens,
    Merge,
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
    adapters_of,
    check_merge,
    expanded,
    given_settings,
    read_text,
    the_adapter,
)  # fmt: skip
from nanollm_jax.cli.printing import show
from nanollm_jax.cli.progress import compiling_shown
from nanollm_jax.errors import RequestError

REPORT = "Write what was seen to one HTML file, which opens anywhere and loads nothing."
LAYER = (
    "Keep whole rows of attention of this layer. Left out: the middle one. Of the others the strongest places are kept."
)
HOST = "Of the page: where to listen. The default can be reached from this machine only; another one asks for a key."
PORT = "Of the page; 0 takes a free one, which is printed."
CONTEXT = "Of the page: tokens of a prompt and its answer. Default: what the model has, at most 4096."
KEY = "Of the page: what is asked for where --host is not this machine. Default: a new one, in the address that is printed."
MEMORY = "Of the page: megabytes that may be kept of what is watched."
PAGE = ("host", "port", "context", "api_key", "memory")
BOTH = (
    "command", "prompt", "report", "model", "revision", "dtype", "adapter", "merge", "cache", "dp", "tp", "devices",
    "compile_cache",
)  # fmt: skip
TIMES = "Trace the same sizes once more, for the time of each part of the model; that takes longer than the text."


def look(
    command: typer.Context,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", show_default=False, help=PROMPT)] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help=REPORT)] = None,
    layer: Annotated[int | None, typer.Option(metavar="N", min=0, show_default=False, help=LAYER)] = None,
    times: Annotated[bool, typer.Option("--times", help=TIMES)] = False,
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    adapter: Adapter = None,
    merge: Merge = None,
    cache: Cache = "auto",
    dp: Dp = 1,
    tp: Tp = 1,
    devices: Devices = None,
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
    host: Annotated[str, typer.Option(metavar="HOST", help=HOST)] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help=PORT)] = 8000,
    context: Annotated[int | None, typer.Option(metavar="N", min=2, help=CONTEXT)] = None,
    api_key: Annotated[str | None, typer.Option(metavar="KEY", envvar="NANOLLM_API_KEY", help=KEY)] = None,
    memory: Annotated[int, typer.Option(metavar="MB", min=1, help=MEMORY)] = 1024,
    compile_cache: KeepCompiled = True,
) -> None:
    """Look inside a model while it writes. Without --report a page on this machine, whose address is printed.

    The page shows what each layer would have said, where each head looked and who wrote a token; it switches heads off, adds a
    direction, puts in what another text has or takes an adapter, beside the plain text of the same seed; it has the tree of
    what else could have been said, the cache and what the engine does. nanollm serve --glass has it beside the OpenAI routes.

    With --report FILE a text is continued and how each token came about written to that file: the text is what nanollm
    generate writes with the same options. It is printed, then one line of figures on standard error.
    """
    sources = {name: command.get_parameter_source(name) for name in command.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    others = PAGE if report else command.params.keys() - {*PAGE, *BOTH}
    if wrong := [name for name in given if name in others]:
        option = f"--{wrong[0].replace('_', '-')}"
        raise RequestError(f"{option} is {'of the page; leave out it or' if report else 'for'} --report FILE.")
    adapters = adapters_of(adapter)
    check_merge(merge, adapters)
    if report is None:
        from nanollm_jax.cli.look_page import serve_page

        how: dict[str, Any] = {"host": host, "port": port, "context": context, "api_key": api_key, "memory": memory}
        how |= {"adapters": adapters, "merge": merge, "cache": cache, "dp": dp, "tp": tp, "devices": devices}
        raise typer.Exit(serve_page(prompt, model, revision, dtype, **how, compile_cache=compile_cache))
    settings = given_settings(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    path = writable(expanded(report))
    text = read_text(prompt) or ""
    own = the_adapter(adapters, merge)
    loaded = open_model(model, revision, dtype, compile_cache, dp, tp, devices, cache, adapters, merge)
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
            adapter=own,
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
