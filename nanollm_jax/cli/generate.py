"""`nanollm generate`: text out of a model, as it is written."""

from __future__ import annotations

import dataclasses
import math
import secrets
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.devices import (
    Coordinator,
    Devices,
    Distributed,
    Dp,
    Processes,
    ProcessId,
    Tp,
    agreed,
    join,
    mesh_for,
)  # fmt: skip
from nanollm_jax.cli.forms import Lark, Regex, Schema, form_given
from nanollm_jax.cli.interrupts import INTERRUPTED, noted
from nanollm_jax.cli.options import (
    STDIN,
    Adapter,
    AsJson,
    Cache,
    Draft,
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
    Speculate,
    Stop,
    StopId,
    Temperature,
    TopK,
    TopP,
    adapters_of,
    checkpoint,
    fitted,
    given_settings,
    guesses_of,
    keep_compiled,
    read_text,
    the_adapter,
)  # fmt: skip
from nanollm_jax.cli.printing import plural, print_json, show, warn
from nanollm_jax.cli.progress import compiling_shown
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.engine.generate import Stream
    from nanollm_jax.engine.timings import Timings
    from nanollm_jax.loading import Model

PROMPT = f"The text to continue. {STDIN} Without any, the answer begins from nothing: the BOS token alone."
TRUNCATE = "Read only the end of a prompt that is too long for the model."
SPECIAL = "Read what spells a special token in PROMPT, such as <|fim_prefix|>, as that token and not as its letters."
INPUT = "Answer every line of a file, one JSON object each; - is standard input."
OUTPUT = "Where the answers go, one JSON object a line, as they end. Left out, or -: standard output."
ROWS = "With --input: how many are written at the same time. Left out: as many as fit, up to 32."


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", show_default=False, help=PROMPT)] = None,
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    adapter: Adapter = None,
    merge: Merge = None,
    cache: Cache = "auto",
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
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt in front of the answer.")] = False,
    dp: Dp = 1,
    tp: Tp = 1,
    devices: Devices = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: Processes = None,
    process_id: ProcessId = None,
    compile_cache: KeepCompiled = True,
    as_json: AsJson = False,
    lines: Annotated[str | None, typer.Option("--input", metavar="FILE", show_default=False, help=INPUT)] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", show_default=False, help=OUTPUT)] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", min=1, show_default=False, help=ROWS)] = None,
    speculate: Speculate = None,
    draft: Draft = None,
    schema: Schema = None,
    regex: Regex = None,
    lark: Lark = None,
) -> None:
    """Continue a text. The answer is printed as it is written, then one line of figures on standard error.

    With --input each line of a file is an object of its own: "prompt" (a text, or ids) or "messages", and any of id,
    max_new_tokens, seed, stop, stop_ids, n, top_logprobs, special, truncate, tools, variables, schema (itself, not a file),
    regex, lark, adapter (its name) and the settings of nanollm_jax.Sampling; the other options are for lines that do not say. A
    line that is wrong is named before anything runs. After a run was stopped, in whatever way, the same command goes on where
    it was.

    Sampling settings that are not given are the checkpoint's own, which nanollm info shows. Where these are greedy,
    --top-k, --top-p and --min-p bring --temperature 1 with them; beside --temperature 0 they are an error.
    """
    if lines is None and (output is not None or rows is not None):
        raise RequestError(f"{'--rows' if output is None else '--output'} without --input; leave it out.")
    if lines is not None:
        both = {"PROMPT": prompt is not None, "--echo": echo, "--json": as_json, "--distributed": distributed}
        if wrong := [name for name, given in both.items() if given]:
            raise RequestError(f"--input and {wrong[0]} exclude each other; leave one out.")
    join(distributed, coordinator, num_processes, process_id)
    if echo and as_json:
        raise RequestError("--echo and --json exclude each other; the JSON object has the prompt anyway.")
    settings = given_settings(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    form, how, adapters = form_given(schema, regex, lark), (compile_cache, dp, tp, devices, cache), adapters_of(adapter)
    own = the_adapter(adapters, merge) if lines is None or len(adapters) == 1 or merge is not None else None
    guesses = guesses_of(speculate, draft, lambda name: open_model(name, None, dtype, *how))
    if lines is not None:
        from nanollm_jax.cli.bulk import Bulk
        from nanollm_jax.cli.lines import Defaults

        said = Defaults(max_new_tokens, seed, stop or [], stop_id or [], special, truncate, settings, form, own)
        run = (
            f"{model} {revision} {dtype}"
            + (f" {adapters}" if adapters else "")
            + ("" if merge is None else " merged")
            + (f" {cache}" if cache != "auto" else "")
        )
        bulk = Bulk(lines, output, said, run + (f" {form.kind} {form.text}" if form else ""))
        bulk_model = open_model(model, revision, dtype, *how, adapters, merge)
        failed, interrupted = bulk.answer(bulk_model, rows, guesses)
        raise typer.Exit(INTERRUPTED if interrupted else 2 if failed else 0)
    # of several processes each has a standard input of its own, which is read where that was asked for
    text = ("" if prompt is None and distributed else read_text(prompt)) or ""
    loaded = open_model(model, revision, dtype, *how, adapters, merge)
    import jax

    import nanollm_jax as nano
    from nanollm_jax.settings import with_settings

    sampling = with_settings(loaded.defaults.sampling, settings)
    seed = agreed(secrets.randbelow(2**32)) if seed is None else seed
    read = prompt_ids(loaded, text, max_new_tokens, special=special, truncate=truncate)
    answer = nano.stream(
        loaded,
        read,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        stop=stop or (),
        stop_ids=stop_id or (),
        grammar=form,
        adapter=own,
        speculate=guesses,
    )
    first = jax.process_index() == 0  # of several processes, the one that prints
    with noted() as interrupts, compiling_shown():
        if echo and first:
            show(text)
        for piece in answer:
            if first and not as_json:
                show(piece)
            if interrupts:
                break
    if not first:
        pass
    elif as_json:
        print_json(report(text, answer, seed))
    else:
        show("\n")
        print(figures(answer.timings, None if sampling.temperature == 0 else seed), file=sys.stderr)
    raise typer.Exit(INTERRUPTED if interrupts else 0)


def open_model(
    model: str | None,
    revision: str | None,
    dtype: str,
    compile_cache: bool,
    dp: int,
    tp: int,
    devices: int | None,
    cache: str = "auto",
    adapters: dict[str, str] | None = None,
    merge: str | None = None,
) -> Model:
    """The model that the options name."""
    folder = checkpoint(model, revision)
    import nanollm_jax as nano

    keep_compiled(compile_cache)
    mesh = mesh_for(dp, tp, devices)
    return nano.load(folder, dtype=dtype, mesh=mesh, adapters=adapters, merge=merge, cache=cache)


def prompt_ids(model: Model, text: str, new: int, *, special: bool, truncate: bool) -> list[int]:
    """The ids of a prompt, with room for so many new tokens behind them; a line says so where only its end is read."""
    import nanollm_jax as nano

    bos = None if model.tokenizer is None else model.tokenizer.bos_id
    # nothing but a BOS can begin from nothing, also for models that want none in front of a text
    ids = [bos] if bos is not None and not text else nano.encode(model, text, special=special)
    read = fitted(ids, bos, model.config.max_positions, new, truncate)
    if len(read) < len(ids):
        warn(f"of {len(ids)} prompt tokens the last {model.config.max_positions - new} are read.")
    return read


def report(prompt: str, answer: Stream, seed: int) -> dict[str, Any]:
    """What --json prints."""
    generation, timings = answer.generation, answer.timings
    rates = {"prompt_tokens_per_second": timings.prompt_rate, "new_tokens_per_second": timings.new_rate}
    return {
        "prompt": prompt,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "logprobs": [value if math.isfinite(value) else None for value in generation.logprobs],  # JSON has no NaN
        "finish_reason": generation.finish_reason or "interrupted",
        "prompt_tokens": generation.prompt_tokens,
        "seed": seed,
        "timings": dataclasses.asdict(timings) | rates,
    }


def figures(timings: Timings, seed: int | None) -> str:
    """What a request cost, in one line. The wait for the first token has compilation in it, the rates have not.

    cached: tokens of the prompt that were not read because a cache had them.  seed: of what was drawn, None where nothing was
    """
    prompt, new = plural(timings.prompt_tokens, "prompt token"), plural(timings.new_tokens, "new token")
    parts = [
        f"{prompt} at {timings.prompt_rate:.0f} tok/s" if timings.prompt_rate else prompt,
        f"{new} at {timings.new_rate:.1f} tok/s" if timings.new_rate else new,
    ]
    if timings.cached_tokens:
        parts.insert(1, f"{timings.cached_tokens:,} cached")
    if timings.drafted_tokens:
        parts.append(f"{timings.accepted_tokens:,} of {plural(timings.drafted_tokens, 'draft')} right")
    if timings.first_token_seconds:
        parts.append(f"first token {timings.first_token_seconds:.3f} s")
    if timings.compiled:
        parts.append(f"compiled in {timings.compile_seconds:.1f} s")
    elif timings.fetched:
        parts.append(f"{plural(timings.fetched, 'kept program')} in {timings.compile_seconds:.1f} s")
    if seed is not None:
        parts.append(f"seed {seed}")
    return " · ".join(parts)
