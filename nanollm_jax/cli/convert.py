"""`nanollm convert`: a checkpoint in another dtype, which loads as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.options import KeepCompiled, Revision, Source, checkpoint, expanded, keep_compiled
from nanollm_jax.cli.printing import harmless
from nanollm_jax.cli.score import read_file
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from nanollm_jax.loading import Model

FOLDER = "A folder that is not there yet."
DTYPE = "What to convert to: int4, int8, float16, bfloat16 or float32."
TEXT = "A file of UTF-8 text: its perplexity before and behind."


def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help=FOLDER)],
    model: Source = None,
    revision: Revision = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help=DTYPE)] = "int4",
    text: Annotated[str | None, typer.Option(metavar="FILE", help=TEXT)] = None,
    compile_cache: KeepCompiled = True,
) -> None:
    """Write a model, a folder, a GGUF file or a hub id, as a checkpoint in another dtype.

    In int4 or int8 its tensors are what is in memory, a seventh or a quarter of float32, and nothing is left to do when this
    library loads them; others cannot read them. In float32, bfloat16 and float16 everybody can.
    """
    from rich.filesize import decimal

    from nanollm_jax.dtypes import resolve_weights
    from nanollm_jax.files import present

    folder, read = expanded(folder), None if text is None else read_file(text)
    resolve_weights(dtype)
    if present(folder):  # before a model is loaded
        raise RequestError(f"{folder}: is there already; give a folder that is not there yet.")
    found = checkpoint(model, revision)
    keep_compiled(compile_cache)

    from nanollm_jax.loading import load
    from nanollm_jax.params import names
    from nanollm_jax.saving import save

    loaded = load(found, dtype=dtype)
    save(loaded, folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{harmless(str(folder))}: {decimal(size)}, {loaded.dtype.name}")
    if read is not None:
        behind = perplexity(loaded, read)
        loaded = load(found)  # in place of the other, of which there may be no room beside it
        before = perplexity(loaded, read)
        change = 100 * (behind / before - 1)
        kinds = f"{before:.4f} in {' and '.join(names(loaded.params, loaded.config))}, {behind:.4f} in {dtype}"
        print(f"perplexity of {harmless(str(text))}: {kinds}, {change:+.2f} %")


def perplexity(model: Model, text: str) -> float:
    """Of a whole text, as `nanollm score` has it."""
    from nanollm_jax.engine.score import score

    result: Any = score(model, text)
    return float(result.perplexity)
