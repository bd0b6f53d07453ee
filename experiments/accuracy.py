"""What fewer bits cost: a model's perplexity, likeliest tokens and logits in each dtype, and with a smaller cache, beside
float32.

    python experiments/accuracy.py STORIES.txt --model SOURCE --dtype bfloat16 float16 int8 int4
    python experiments/accuracy.py TEXT.txt --dtype --cache int8 --windows

The file has texts, each of which begins with a line that begins with "Once" or "There once"; the first --texts of them are read
as they are, up to the model's positions, each token given all before it. With --windows the file is one text, of which so many
windows are read that are as long as the model has positions. Printed is a table:

    perplexity  of all tokens but the first of each text, and by how much it is more than in float32
    same        in how many of these places the likeliest token is that of float32
    apart       root mean square of what logits differ by, of a place's own deviation from their mean
    quarters    the same in each quarter of the model's positions: does it grow with what was kept?
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import nanollm_jax as nano

ROWS = 8


def stories(file: Path, most: int) -> list[str]:
    """The first texts of a file, without the marks that a wrong decoding has left in it."""
    text = file.read_text(encoding="utf-8")
    for found, meant in {
        "â€™": "'",
        "â€˜": "'",
        "â€“": " - ",
        "â€”": " - ",
        "â€¦": "...",
        "’": "'",
        "‘": "'",
        "–": " - ",
        "—": " - ",
    }.items():
        text = text.replace(found, meant)
    text = re.sub(r"[ \t\xa0]+", " ", re.sub(r"â€[\x80-\uffff]|â€|“|”", '"', text))
    made: list[list[str]] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        if re.match(r"Once upon|Once there|There once", line):
            made.append([])
        if made:
            made[-1].append(line)
    return ["\n".join(lines) for lines in made[:most]]


def logits_of(model: nano.Model, batch: np.ndarray) -> jax.Array:
    """Of whole texts, in float32.  batch [B T] -> [B T V]"""
    cache = nano.init_cache(model.config, *batch.shape, model.dtype.activations, kept=model.cache)
    return nano.forward(model.params, batch, cache, config=model.config)[0]


@jax.jit
def compare(ours: jax.Array, theirs: jax.Array, batch: jax.Array) -> jax.Array:
    """Of each place: surprise, is the likeliest token the same, squares of what differs as a share of the spread.

    ours, theirs [B T V], batch [B T] -> [3 B T-1]
    """
    ours, theirs = ours[:, :-1], theirs[:, :-1]
    surprise = -jnp.take_along_axis(jax.nn.log_softmax(ours), batch[:, 1:, None], axis=-1)[..., 0]
    same = jnp.argmax(ours, axis=-1) == jnp.argmax(theirs, axis=-1)
    apart = jnp.var(ours - theirs, axis=-1) / jnp.var(theirs, axis=-1)
    return jnp.stack([surprise, same, apart])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--dtype", nargs="*", default=["bfloat16", "float16", "int8", "int4"])
    parser.add_argument("--cache", nargs="*", default=[], help="ways to keep keys and values, in float32")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--windows", action="store_true", help="of one long text")
    asked = parser.parse_args()
    nano.keep_compiled(os.environ.get("NANOLLM_TEST_PROGRAMS") or None)
    whole = nano.load(asked.model, dtype="float32")
    assert whole.tokenizer is not None
    most = whole.config.max_positions
    if asked.windows:
        ids = whole.tokenizer.encode(asked.file.read_text(encoding="utf-8"))
        encoded = [ids[at : at + most] for at in range(0, len(ids) - most, most)][: asked.texts]
    else:
        encoded = [whole.tokenizer.encode(text)[:most] for text in stories(asked.file, asked.texts)]
    T = max(map(len, encoded))
    batches = []
    for begin in range(0, len(encoded), ROWS):
        rows = encoded[begin : begin + ROWS]
        rows += [[]] * (ROWS - len(rows))
        batch = np.array([row + [0] * (T - len(row)) for row in rows], np.int32)
        batches.append((batch, np.arange(1, T)[None] < np.array([[len(row)] for row in rows])))
    real = np.concatenate([real for _, real in batches])
    expected = [logits_of(whole, batch) for batch, _ in batches]
    machine = f"{platform.processor() or platform.machine()}, jax {jax.__version__}"
    print(f"{len(encoded)} texts, {int(real.sum()):,} places; {machine}\n")
    print("| dtype | bytes | perplexity | | same | apart | quarters |\n|---|---|---|---|---|---|---|")
    tried = [("float32", "float32", "auto"), *((dtype, dtype, "auto") for dtype in asked.dtype)]
    tried += [(f"float32, cache {cache}", "float32", cache) for cache in asked.cache]
    quarter = np.arange(1, T) * 4 // most
    base = 0.0
    for name, dtype, cache in tried:
        model = nano.load(asked.model, dtype=dtype, cache=cache)
        found = np.concatenate([np.asarray(compare(logits_of(model, batch), theirs, batch))
                                for (batch, _), theirs in zip(batches, expected, strict=True)], axis=1)  # fmt: skip
        surprise, same, apart = found[:, real].mean(axis=1, dtype=np.float64)
        base = base or float(np.exp(surprise))
        more = f"{100 * (np.exp(surprise) / base - 1):+.3f} %"
        parts = (np.sqrt(found[2][real & (quarter == n)[None]].mean()) for n in range(4) if (quarter == n).any())
        print(f"| {name} | {model.nbytes:,} | {np.exp(surprise):.4f} | {more} | {100 * same:.2f} % | {np.sqrt(apart):.2g} | "
              f"{' '.join(f'{part:.2g}' for part in parts)} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
