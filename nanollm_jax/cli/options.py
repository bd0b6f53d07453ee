"""What several commands take: which model, in what dtype, a text that may come from standard input."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.printing import warn
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.engine.drafts import Speculate as Guesses
    from nanollm_jax.loading import Model

MODEL = (
    "A folder in checkpoint form, a GGUF file, or a hub id such as openai-community/gpt2. Default: the bundled model."
)
ANY_MODEL = (
    "A folder in checkpoint form, a GGUF file, a file in the form of config.json, a published shape such as llama-3.1-8b, "
    "or a hub id. Left out: the bundled model."
)
DTYPE = (
    "Of weights and activations: auto, float32, bfloat16 or float16; auto is float32 on CPU, else bfloat16. "
    "int8 and int4 are auto with the matrices in 8 or 4 bits."
)
KEEP_COMPILED = "Keep compiled programs in ~/.cache/nanollm_jax, or below $XDG_CACHE_HOME, for the next run."
STDIN = "- reads it from standard input, as does a pipe where none is given: as it is but for one newline at its end."

SEED = "The same draws the same answer. Left out: another each time, which the figures name."
TEMPERATURE = "0 or more: 0 takes the best token every time, 1 draws from the model's own distribution."
TOP_K = "Draw from the K best tokens only; 0 is off."
TOP_P = "Draw from the fewest best tokens whose probabilities reach P; above 0, 1 is off."
MIN_P = "Draw from tokens at least P times as probable as the best; 0 is off, 1 the most."
REPETITION = "Divide the logits of tokens in the prompt or the answer, multiply negative ones; above 0, 1 is off."
PRESENCE = "Subtract R from the logits of tokens in the answer; any number, 0 is off."
FREQUENCY = "Subtract R as often as the answer has the token; any number, 0 is off."
STOP = "End before this text, as at the model's own end-of-sequence tokens. May be repeated."
STOP_ID = "End at this token id, too. May be repeated."
SPECULATE = (
    "Guess tokens ahead, and write several a step where the guess was right: lookup:4 takes 4 from what the text has said "
    "before. Answers do not depend on it but for their last bits."
)
DRAFT = (
    "Guess tokens ahead with this smaller model of the same tokenizer, found as --model is; it reads every prompt too. 4 a "
    "step, or N with --speculate draft:N."
)
ADAPTER = "A LoRA adapter in PEFT's form, found as --model is, under a name: NAME=SOURCE. May be repeated."
MERGE = "Add the one --adapter, by its name, into the weights, in place of keeping it beside them."
CACHE = "How keys and values are kept: auto, as the activations are, or int8, in 8 bits and a scale for each token and head."

Source = Annotated[str | None, typer.Option("--model", metavar="SOURCE", help=MODEL)]
AnyModel = Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=ANY_MODEL)]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="A branch, tag or commit of a hub id.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help=DTYPE)]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a picture too; needs matplotlib.")]
KeepCompiled = Annotated[bool, typer.Option("--compile-cache/--no-compile-cache", help=KEEP_COMPILED)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Write at most N tokens.")]
Seed = Annotated[int | None, typer.Option(metavar="S", min=0, max=2**32 - 1, show_default=False, help=SEED)]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help=STOP)]
StopId = Annotated[list[int] | None, typer.Option(metavar="ID", help=STOP_ID)]
Temperature = Annotated[float | None, typer.Option(metavar="T", help=TEMPERATURE)]
TopK = Annotated[int | None, typer.Option(metavar="K", help=TOP_K)]
TopP = Annotated[float | None, typer.Option(metavar="P", help=TOP_P)]
MinP = Annotated[float | None, typer.Option(metavar="P", help=MIN_P)]
Repetition = Annotated[float | None, typer.Option(metavar="R", help=REPETITION)]
Presence = Annotated[float | None, typer.Option(metavar="R", help=PRESENCE)]
Speculate = Annotated[str | None, typer.Option("--speculate", metavar="HOW", show_default=False, help=SPECULATE)]
Draft = Annotated[str | None, typer.Option("--draft", metavar="SOURCE", show_default=False, help=DRAFT)]
Adapter = Annotated[
    list[str] | None, typer.Option("--adapter", metavar="NAME=SOURCE", show_default=False, help=ADAPTER)
]
Merge = Annotated[str | None, typer.Option("--merge", metavar="NAME", show_default=False, help=MERGE)]
Cache = Annotated[str, typer.Option("--cache", metavar="HOW", help=CACHE)]
Frequency = Annotated[float | None, typer.Option(metavar="R", help=FREQUENCY)]


def a_number(value: float | None) -> float | None:
    """The callback of options whose bounds click compares with: nothing is below or above nan, so it would pass them all."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is no number; give one.")
    return value


def keep_compiled(wanted: bool) -> None:
    """What --compile-cache does. Where nothing can be kept, a line says so, and the answer comes all the same."""
    from nanollm_jax import startup

    try:
        startup.keep_compiled(None if wanted else False)
    except RequestError as error:
        startup.keep_compiled(False)
        warn(str(error))


def adapters_of(given: list[str] | None) -> dict[str, str]:
    """What --adapter says: {name: source}. Raises RequestError for what is no such pair, or has a name twice."""
    found: dict[str, str] = {}
    for pair in given or ():
        name, equals, source = pair.partition("=")
        if not (name and equals and source) or name in found:
            raise RequestError(f"--adapter {pair}: expected NAME=SOURCE, each name once.")
        found[name] = source
    return found


def check_merge(merge: str | None, adapters: dict[str, str]) -> None:
    """Raise RequestError unless it is the name of the only adapter."""
    if merge is not None and list(adapters) != [merge]:
        raise RequestError(f"--merge {merge}: expected the name of the one --adapter {merge}=SOURCE.")


def the_adapter(adapters: dict[str, str], merge: str | None = None) -> str | None:
    """The one adapter with which there is an answer, None without any, and where it is merged.

    Raises RequestError where there are several, and where another one is to be merged.
    """
    check_merge(merge, adapters)
    if merge is not None:
        return None
    if len(adapters) > 1:
        raise RequestError(f"--adapter names {', '.join(adapters)}; one answer has one: leave the others out.")
    return next(iter(adapters), None)


def guesses_of(speculate: str | None, draft: str | None = None, load: Callable[[str], Model] | None = None) -> Guesses:
    """What --speculate and --draft say; load loads the model of the latter. Raises RequestError for what they cannot be."""
    if speculate is None and draft is None:
        return None
    from nanollm_jax.engine.drafts import DraftModel, check_tokens, speculation

    kind, _, count = (speculate or "draft:4").partition(":")
    if draft is None or load is None:
        if kind == "draft":
            raise RequestError(f"--speculate {speculate} without --draft MODEL; name the model that guesses.")
        return speculation(speculate)
    if kind != "draft" or not count.isdecimal():
        raise RequestError(f"--speculate {speculate} beside --draft: expected draft:N, such as draft:4, or nothing.")
    check_tokens(int(count))
    return DraftModel(load(draft), int(count))


def checkpoint(model: str | None, revision: str | None) -> Path:
    """The folder of a model, found or downloaded before jax is imported: a wrong name is no reason to wait."""
    from nanollm_jax.weights.source import find

    return find(model, revision)


def expanded(path: Path) -> Path:
    """A path with ~ put in full. Raises RequestError where that is nobody's home, or the name no file can have."""
    try:
        found = path.expanduser()
        os.fsencode(found)
    except (RuntimeError, ValueError) as error:
        raise RequestError(f"{str(path)!r}: {error}; give another name.") from None
    if "\0" in str(found):
        raise RequestError(f"{str(path)!r}: a file's name has no NUL in it; give another name.")
    return found


def read_text(text: str | None) -> str | None:
    """The text itself; standard input for "-", and for None where it is no terminal. None where nothing was given at all.

    Raises RequestError where standard input is not UTF-8.
    """
    if text != "-" and (text is not None or sys.stdin.isatty()):
        return text
    return re.sub(r"\r?\n\Z", "", decoded(sys.stdin.buffer.read(), "standard input"))


def decoded(data: bytes, where: str) -> str:
    """UTF-8 -> text. Raises RequestError naming where the bytes are from."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise RequestError(f"{where} is not UTF-8: {found}; convert it, for example with iconv.") from None


def given_settings(**settings: Any) -> dict[str, Any]:
    """The sampling settings that were given. Raises RequestError now for a wrong one, and not after a model was loaded."""
    from nanollm_jax.settings import Sampling, cuts_of

    settings = {name: value for name, value in settings.items() if value is not None}
    Sampling(**settings).rows(1, 1)
    if settings.get("temperature") == 0 and (cuts := cuts_of(settings)):
        raise RequestError(f"temperature 0 takes the best token, so {', '.join(cuts)} can do nothing; leave one out.")
    return settings


def fitted(ids: list[int], bos: int | None, positions: int, new: int, truncate: bool) -> list[int]:
    """A prompt for which there is room before so many new tokens; of one that is too long, a BOS and its end if asked for."""
    room = positions - new
    if len(ids) <= room:
        return ids
    if room < 2:
        raise RequestError(
            f"{new} new tokens leave no room for a prompt in the model's {positions} positions; ask for fewer."
        )
    if not truncate:
        fewer = f", or ask for {positions - len(ids)} new tokens or fewer" if len(ids) < positions else ""
        raise RequestError(
            f"a prompt of {len(ids)} tokens + {new} new tokens is more than the model's {positions} positions; "
            f"shorten it, or add --truncate, which reads its last {room} tokens{fewer}."
        )
    head = ids[:1] if ids[0] == bos else []
    return head + ids[len(ids) - room + len(head) :]
