"""The playground: the bundled model in a page, which runs it where it is opened and asks nobody for anything.

    python experiments/playground.py        # experiments/pages/playground.html

The weights are those of nano.load(dtype="int8"): they are taken from the library's own file and written into the page when it
is built. page/model/ reads and runs them in plain JavaScript, page/playground/ shows what comes out. What 8 bits cost is
measured here, on texts that the model writes with all its bits.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from accuracy import compare, logits_of

import nanollm_jax as nano
from nanollm_jax.glass.report import PAGE, hashed, joined
from nanollm_jax.ops.int8 import Int8
from nanollm_jax.params import flatten
from nanollm_jax.tokenizer.pieces import SPACE_MARK

HERE = Path(__file__).parent / "page"
FOLDERS = (
    HERE / "playground",
    HERE / "model",
    PAGE,
)  # of the page's modules; what draws is that of the glass box's page
BEGINNINGS = ["Once upon a time", "One day, a girl", "The little dog", "There was a king"]
WRITTEN = 160  # tokens of each


def packed(model: nano.Model) -> tuple[dict[str, Any], bytes]:
    """A model in 8 bits as plain data, and the bytes of its numbers: first all in float32, then the whole numbers.

    tensors says by path where a parameter's float32 numbers begin and how many they are; of a matrix [*O *I] these are its
    scales [*O], and it says the same of its whole numbers.
    """
    config, tokenizer, flat = model.config, model.tokenizer, flatten(model.params)
    assert tokenizer is not None
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    # tokenizer.js cuts a text into words before it merges, and no piece may be longer than one
    assert not [piece for piece in pieces if SPACE_MARK in piece.lstrip(SPACE_MARK)]
    tensors: dict[str, dict[str, int]] = {}
    numbers = bytearray()
    for path, weight in flat.items():
        scale = np.asarray(weight.scale if isinstance(weight, Int8) else weight, "<f4")
        tensors[path] = {"scale": len(numbers), "rows": scale.size}
        numbers += scale.tobytes()
    for path, weight in flat.items():
        if isinstance(weight, Int8):
            tensors[path] |= {"values": len(numbers), "size": weight.values.size}
            numbers += np.asarray(weight.values).tobytes()
    sizes = {
        "L": config.num_layers, "D": config.hidden_size, "V": config.vocab_size, "F": config.intermediate_size,
        "N": config.num_heads, "K": config.num_kv_heads, "H": config.head_dim,
        "positions": config.max_positions, "eps": config.norm_eps,
        "theta": config.layers[0].rope.theta, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id,
    }  # fmt: skip
    never = sorted({*tokenizer.special_ids, pieces.index("<unk>")})
    return {"config": sizes, "tensors": tensors, "tokenizer": {"pieces": pieces, "special": never}}, bytes(numbers)


def cost(model: nano.Model) -> dict[str, Any]:
    """What a model in 8 bits says otherwise than the bundled one, on texts that this one draws at temperature 1."""
    whole = nano.load(dtype="float32")
    warm = nano.Sampling(temperature=1.0)
    answers = nano.generate(whole, BEGINNINGS, max_new_tokens=WRITTEN, sampling=warm, seed=1)
    rows = [whole.tokenizer.encode(text) + answer.token_ids for text, answer in zip(BEGINNINGS, answers, strict=True)]
    T = max(map(len, rows))
    batch = np.array([row + [0] * (T - len(row)) for row in rows], np.int32)  # [B T]
    real = np.arange(1, T)[None] < np.array([[len(row)] for row in rows])
    theirs = logits_of(whole, batch)
    found = (np.asarray(compare(logits, theirs, batch))[:, real] for logits in (logits_of(model, batch), theirs))
    (surprise, same, _), (before, *_) = (each.mean(axis=1, dtype=np.float64) for each in found)
    return {
        "texts": len(rows), "places": int(real.sum()), "same": float(same), "perplexity": float(np.exp(surprise)),
        "before": float(np.exp(before)), "bytes": model.nbytes, "bytes_before": whole.nbytes,
    }  # fmt: skip


def data() -> dict[str, Any]:
    """All that the page is told: plain data, and the numbers in base64."""
    with jax.numpy_rank_promotion("allow"):
        model = nano.load(dtype="int8")
        head, numbers = packed(model)
        head |= {"parameters": model.num_parameters, "cost": cost(model)}
    return {"head": head, "bytes": base64.b64encode(numbers).decode()}


def page(told: dict[str, Any]) -> str:
    """The page's text, of what data gave. Its policy lets nothing run but the script in it, and nothing be fetched."""
    script = joined("playground.js", folders=FOLDERS)
    style = "\n".join(
        path.read_text() for path in (PAGE / "parts.css", PAGE / "style.css", HERE / "playground" / "playground.css")
    )
    allowed = f"script-src '{hashed(script)}'; style-src '{hashed(style)}'; img-src data:"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    sources = {path.name: path.read_text() for path in (HERE / "model").glob("*.js")}
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "playground"), autoescape=True)
    head = json.dumps(told["head"]).replace("<", "\\u003c")
    shown = {"sources": sources, "script": script, "style": style, "policy": policy}
    return templates.get_template("playground.html.j2").render(head=head, bytes=told["bytes"], **shown)


def main() -> None:
    """Measure, and write the page."""
    folder = HERE.parent / "pages"
    folder.mkdir(exist_ok=True)
    (folder / "playground.html").write_text(page(data()))
    print(folder / "playground.html")


if __name__ == "__main__":
    main()
