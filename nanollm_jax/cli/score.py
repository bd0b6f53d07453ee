"""`nanollm score`: how likely a model finds a text."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.devices import Devices, Dp, Tp, mesh_for
from nanollm_jax.cli.options import (
    AsJson,
    Dtype,
    KeepCompiled,
    Revision,
    Source,
    checkpoint,
    decoded,
    expanded,
    keep_compiled,
)  # fmt: skip
from nanollm_jax.cli.printing import console, harmless, plural, print_json, print_table, spelled
from nanollm_jax.cli.progress import compiling_shown
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.engine.score import Score
    from nanollm_jax.loading import Model

FILE = "A file of UTF-8 text, scored as it is; - is standard input, as is a pipe where none is given."
WINDOW = "Tokens that are read at once. Default: as many as the model has positions."
STRIDE = "Tokens between the beginnings of two windows of a longer text. Default: half a window."
TOKENS = "Show each token in the colour of its surprise; as a table where there are no colours."
# bits of surprise up to which a colour is used; from "as expected" to "anything but"
SHADES = {1: "on green4", 3: "on dark_green", 6: "default", 9: "on orange4", 13: "on red3", math.inf: "bold on red1"}


def score(
    file: Annotated[str | None, typer.Argument(metavar="FILE", show_default=False, help=FILE)] = None,
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    window: Annotated[int | None, typer.Option(metavar="N", min=2, help=WINDOW)] = None,
    stride: Annotated[int | None, typer.Option(metavar="N", min=1, help=STRIDE)] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help=TOKENS)] = False,
    dp: Dp = 1,
    tp: Tp = 1,
    devices: Devices = None,
    compile_cache: KeepCompiled = True,
    as_json: AsJson = False,
) -> None:
    """Perplexity and bits per byte of a text.

    Every token but the first is scored once, given those before it that its window holds. Surprise is in bits: -log2 of the
    probability. With --json, --tokens adds the tokens.
    """
    text = read_file(file)
    folder = checkpoint(model, revision)
    import nanollm_jax as nano

    keep_compiled(compile_cache)
    loaded = nano.load(folder, dtype=dtype, mesh=mesh_for(dp, tp, devices))
    with compiling_shown():
        result = nano.score(loaded, text, window=window, stride=stride)
    assert isinstance(result, nano.Score)
    window = loaded.config.max_positions if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    if as_json:
        return print_json(report(loaded, result, window, stride, tokens))
    if tokens:
        show_tokens(loaded, result)
    bits = -result.logprob / math.log(2) / len(result.logprobs)
    print(f"{plural(len(result.logprobs), 'token')}, {plural(result.bytes, 'byte')}, window {window}, stride {stride}")
    print(f"perplexity {result.perplexity:.4g} · {bits:.4f} bits per token · {result.bits_per_byte:.4f} bits per byte")


def read_file(name: str | None) -> str:
    """The text of a file, or of standard input. Raises RequestError where there is none."""
    if name == "-" or (name is None and not sys.stdin.isatty()):
        return decoded(sys.stdin.buffer.read(), "standard input")
    if name is None:
        raise RequestError("FILE is missing; give one, or pipe a text in.")
    path = expanded(Path(name))
    if path.is_dir():
        raise RequestError(f"{name} is a folder; give a file of UTF-8 text.")
    try:
        return decoded(path.read_bytes(), name)
    except FileNotFoundError:
        raise RequestError(f"{name} not found; give a file of UTF-8 text, or - for standard input.") from None
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror}; give another file of UTF-8 text.") from None


def report(model: Model, result: Score, window: int, stride: int, tokens: bool) -> dict[str, Any]:
    """What --json prints."""
    summary: dict[str, Any] = {
        "tokens": len(result.logprobs), "bytes": result.bytes, "window": window, "stride": stride, "logprob": result.logprob,
        "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte if result.bytes else None,
    }  # fmt: skip
    if tokens:
        rows = zip(result.token_ids, pieces(model, result), result.logprobs, result.best, strict=True)
        summary["scores"] = [
            {"id": token, "text": text, "logprob": logprob, "best": best} for token, text, logprob, best in rows
        ]
    return summary


def pieces(model: Model, result: Score) -> list[str]:
    """The text of each token; a character of several tokens is the last one's."""
    assert model.tokenizer is not None  # a text was encoded
    decoder = model.tokenizer.decoder()
    texts = [decoder.push(token) for token in result.token_ids]
    return [*texts[:-1], texts[-1] + decoder.finish()]


def show_tokens(model: Model, result: Score) -> None:
    """The text, coloured; or a row per token."""
    from rich.text import Text

    screen = console()
    texts, surprises = pieces(model, result), [-logprob / math.log(2) for logprob in result.logprobs]
    if screen.color_system is None:
        rows = zip(map(spelled, texts), (f"{bits:.2f}" for bits in surprises), strict=True)
        return print_table(("text", "bits"), rows, right=1)
    view = Text()
    for text, bits in zip(texts, surprises, strict=True):
        view.append(harmless(text), next(style for limit, style in SHADES.items() if bits <= limit))
    screen.print(view, end="\n\n")
    legend = Text("bits of surprise  ")
    for limit, style in SHADES.items():
        legend.append(f" up to {limit} " if limit < math.inf else " more ", style)
    screen.print(legend, end="\n\n")
