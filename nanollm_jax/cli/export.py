"""`nanollm export`: a model as files that need none of this library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanollm_jax.cli.options import Dtype, Revision, Source, checkpoint, expanded
from nanollm_jax.cli.printing import harmless

FOLDER = "A folder that is not there yet."
CAPACITY = "Positions of a text, prompt and answer. Left out: all that the model has, 1024 at most."


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help=FOLDER)],
    model: Source = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    capacity: Annotated[int | None, typer.Option(metavar="N", min=1, help=CAPACITY)] = None,
) -> None:
    """Write a model into a folder that runs without nanollm.

    Programs of jax.export for CPUs, NVIDIA GPUs and TPUs, the weights, the tokenizer, a script of some 80 lines that continues
    texts, and a README.
    """
    from rich.filesize import decimal

    from nanollm_jax.errors import RequestError
    from nanollm_jax.files import present

    folder = expanded(folder)
    if present(folder):  # before a model is loaded
        raise RequestError(f"{folder}: is there already; give a folder that is not there yet.")
    found = checkpoint(model, revision)

    from nanollm_jax.export import export
    from nanollm_jax.loading import load

    export(load(found, dtype=dtype), folder, capacity=capacity)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{harmless(str(folder))}: {decimal(size)}; python {harmless(str(folder / 'generate.py'))} --help")
