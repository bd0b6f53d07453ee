"""`nanollm generate`: text out of a model, as it is written."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.options import (
    INTERRUPTED,
    STDIN,
    AsJson,
    Devices,
    Dp,
    Dtype,
    Revision,
    Source,
    Tp,
    mesh_for,
    read_text,
)
from nanollm_jax.cli.printing import plural, print_json, show
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.generate import Stream
    from nanollm_jax.profiling import Timings

PROMPT = f"The text to continue. {STDIN} Left out, the answer begins from nothing: the BOS token alone."
STOP = "End before this text, as at the model's own end-of-sequence tokens. May be repeated."
TEMPERATURE = "0 or more: 0 takes the best token every time, 1 draws from the model's own distribution."
TOP_K = "Draw from the K best tokens only; 0 is off."
TOP_P = "Draw from the fewest best tokens whose probabilities reach P; above 0, 1 is off."
MIN_P = "Draw from tokens at least P times as probable as the best; 0 is off, 1 the most."
REPETITION = "Divide the logits of tokens in the prompt or the answer, multiply negative ones; above 0, 1 is off."
PRESENCE = "Subtract R from the logits of tokens in the answer; any number, 0 is off."
FREQUENCY = "Subtract R as often as the answer has the token; any number, 0 is off."
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # the settings that can do nothing at temperature 0, switched off


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", show_default=False, help=PROMPT)] = "",
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Write at most N tokens.")] = 128,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=STOP)] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, max=2**32 - 1, help="The same draws the same answer.")] = 0,
    temperature: Annotated[float | None, typer.Option(metavar="T", help=TEMPERATURE)] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help=TOP_K)] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help=TOP_P)] = None,
    min_p: Annotated[float | None, typer.Option(metavar="P", help=MIN_P)] = None,
    repetition_penalty: Annotated[float | None, typer.Option(metavar="R", help=REPETITION)] = None,
    presence_penalty: Annotated[float | None, typer.Option(metavar="R", help=PRESENCE)] = None,
    frequency_penalty: Annotated[float | None, typer.Option(metavar="R", help=FREQUENCY)] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt in front of the answer.")] = False,
    dp: Dp = 1,
    tp: Tp = 1,
    devices: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text. The answer is printed as it is written, then one line of figures on standard error.

    Sampling settings that are not given are the checkpoint's own, which nanollm info shows. Where these are greedy,
    --top-k, --top-p and --min-p bring --temperature 1 with them; beside --temperature 0 they are an error.
    """
    import nanollm_jax as nano

    if echo and as_json:
        raise RequestError("--echo and --json exclude each other; the JSON object has the prompt anyway.")
    settings: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty, "frequency_penalty": frequency_penalty,
    }  # fmt: skip
    settings = {name: value for name, value in settings.items() if value is not None}
    nano.Sampling(**settings).rows(1, 1)  # raises for a wrong number now, and not after a large model was loaded
    cuts = [name for name, off in OFF.items() if settings.get(name, off) != off]
    if cuts and temperature == 0:
        raise RequestError(f"temperature 0 takes the best token, so {', '.join(cuts)} can do nothing; leave one out.")
    text = read_text(prompt)
    loaded = nano.load(model, dtype=dtype, revision=revision, mesh=mesh_for(dp, tp, devices))
    defaults: Any = loaded.defaults.sampling
    if cuts and defaults.temperature == 0:
        settings = {"temperature": 1.0} | settings
    bos = None if loaded.tokenizer is None else loaded.tokenizer.bos_id
    answer = nano.stream(
        loaded,
        # nothing but a BOS can begin from nothing, also for models that want none in front of a text
        [bos] if bos is not None and not text else text,
        max_new_tokens=max_new_tokens,
        sampling=defaults.replace(**settings),
        seed=seed,
        stop=stop or (),
    )
    with noted_interrupts() as interrupts:
        if echo:
            show(text)
        for piece in answer:
            if not as_json:
                show(piece)
            if interrupts:
                break
    if as_json:
        print_json(report(text, answer))
    else:
        show("\n")
        print(figures(answer.timings), file=sys.stderr)
    raise typer.Exit(INTERRUPTED if interrupts else 0)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Inside, Ctrl-C is put on the list that this yields; a second one ends the process at once.

    Raised, as usual, KeyboardInterrupt may pass through a compiled program, and then Python crashes at its end (jax 0.10.2).
    """
    interrupts: list[int] = []

    def note(signal_number: int, frame: FrameType | None) -> None:
        if interrupts:
            os._exit(INTERRUPTED)
        interrupts.append(signal_number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def report(prompt: str, answer: Stream) -> dict[str, Any]:
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
        "timings": dataclasses.asdict(timings) | rates,
    }


def figures(timings: Timings) -> str:
    """What a request cost, in one line. Compilation is in the last figure and in no other."""
    prompt, new = plural(timings.prompt_tokens, "prompt token"), plural(timings.new_tokens, "new token")
    parts = [
        f"{prompt} at {timings.prompt_rate:.0f} tok/s" if timings.prompt_rate else prompt,
        f"{new} at {timings.new_rate:.1f} tok/s" if timings.new_rate else new,
    ]
    if timings.first_token_seconds:
        parts.append(f"first token {timings.first_token_seconds:.3f} s")
    if timings.compile_seconds:
        parts.append(f"compiled in {timings.compile_seconds:.1f} s")
    return " · ".join(parts)
