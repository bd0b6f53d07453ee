"""One watched generation as plain data, of bounded size: what a report is made of and what a page shows.

Every number is of the real generation. What the box did not keep is read off one more pass over the finished text, and the
story says so. Tokens are those of prompt and answer; what is said about token t + 1 stood at place t, where it was chosen:
T tokens have W = T - 1 places.

    tokens  surprise [T] nats, NaN of the first
    lens    words and chances [P W X]: the X best at each of P depths, words by their number in head["words"] and in
            head["word_ids"]; next [P W] the chance of the token that follows. The last depth is what the model said
    heads   places and weights [L N W X]: the X strongest of each head; of a place that is not shown 65535
    rows    weights [N X] of one layer, head["rows"]: of the last n places those from the first of them to itself, one
            behind the other, X = n (n + 1) / 2. Weights of attention are in 255ths
    shares  heads [W L N], or [W L 1] of all of a layer together, mlps [W L], embedding, bias and rest [W]:
            what each adds to how far the logit of the token that follows is above that of the best other one, against [W],
            before any cap. rest is what edits and rounding add
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from nanollm_jax.checks import whole
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass import passes
from nanollm_jax.glass.asking import expanded, model_names
from nanollm_jax.glass.edits import Shrink
from nanollm_jax.glass.names import check_attends
from nanollm_jax.glass.story_arrays import (
    BEST,
    LIMITS,
    Arrays,
    heads_of,
    lens_of,
    numbers,
    shares_of,
    strongest,
    thinned,
)
from nanollm_jax.glass.texts import adapter_of, check_box, model_of, own_config, text_of, word_of
from nanollm_jax.glass.watch import Watched, aligned
from nanollm_jax.loading import Model
from nanollm_jax.measure.roofline import part_bytes
from nanollm_jax.measure.subject import machine
from nanollm_jax.params import nbytes_kept
from nanollm_jax.settings import ALLOWED, Sampling

TOKENS = 512  # of a text that are shown, its last ones


@dataclass(frozen=True, repr=False)
class Story:
    """A generation as data: head is plain, arrays are {name: (axis letters, numbers)}, little-endian when they are written."""

    head: dict[str, Any]
    arrays: Arrays

    def __repr__(self) -> str:
        size = sum(array.nbytes for _, array in self.arrays.values())
        return f"Story({len(self.head['tokens'])} tokens, {', '.join(self.arrays)}, {size:,} bytes)"

    def json(self) -> str:
        """All of it as JSON in ASCII, arrays as base64. It has no < in it, so it may stand in a page."""
        arrays = {
            name: {"letters": letters, "shape": list(array.shape), "dtype": array.dtype.name, "data": packed(array)}
            for name, (letters, array) in self.arrays.items()
        }
        return json.dumps({"head": self.head, "arrays": arrays}, separators=(",", ":"), allow_nan=False).replace(
            "<", "\\u003c"
        )


def packed(array: np.ndarray) -> str:
    """The bytes of an array, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()).decode()


def for_report(model: Model, layer: int | None = None) -> dict[str, Shrink | None]:
    """What to keep of a generation that a report is to be made of: watch(..., keep=for_report(model)).

    layer: of which one whole rows of attention are kept, the middle one where it is None; of the others the strongest
    places. The rest is vectors, three of the model's width for each layer and token. Raises RequestError for no such layer, and
    where layers are recurrent.
    """
    check_attends(model.config, "a report")
    L = model.config.num_layers
    chosen = L // 2 if layer is None else whole(layer)
    if chosen is None or not 0 <= chosen < L:
        raise RequestError(f"layer is {shown(layer)}; expected one from 0 to {L - 1}.")
    weights = [f"layers.{index}.attention.weights" for index in range(L)]
    vectors = ["embedding", "layers.*.attention.mixed", "layers.*.mlp.out", "layers.*.out", "final_norm"]
    vectors += ["layers.*.input.out"] if model.config.layer_inputs else []
    return dict.fromkeys(vectors) | {name: None if index == chosen else strongest for index, name in enumerate(weights)}


def story(box: Watched, *, row: int = 0, name: str | None = None, times: dict[str, Any] | None = None) -> Story:
    """What a row of a box has to tell.

    name     of the model; its sizes where it is None
    times    what measure.trace.profile gave for this model, where somebody ran it
    Raises RequestError for a row that is not there, for one that has not written anything, and, where something was not kept
    that for_report names, for one that was written with changes: another pass would not be what happened.
    """
    check_box(box, None, row)
    ticket, model = box.tickets[row], model_of(box, row)
    ids, answer = box.tokens[row], box.answers[row]
    if not answer.token_ids:
        raise RequestError("this row has written nothing yet; wait for its first chunk.")
    values, again, rows_of = values_of(box, model, row)
    first = max(0, len(ids) - TOKENS)
    values = {name: jax.tree.map(lambda x: x[first:], value) for name, value in values.items()}
    shown_ids, given, left = ids[first:], len(ticket.request.ids), []
    if first:
        left.append(f"The first {first:,} of {len(ids):,} tokens are not shown.")
    words: dict[int, int] = {}
    number = lambda array: numbers(array, words)  # noqa: E731

    L, X = model.config.num_layers, min(BEST, model.config.vocab_size)
    depths = ["embedding", *(f"layers.{index}.out" for index in range(L - 1)), "final_norm"]
    some = [depths[index] for index in thinned(len(depths), LIMITS["lens"] // (4 * X * len(shown_ids)))]
    if len(some) < len(depths):
        left.append(f"The lens has {len(some)} of {len(depths)} depths.")
    depths = some
    found = lens_of(model, depths, values, shown_ids, X)
    surprise = -np.concatenate([[np.nan], found.following[-1]]).astype(np.float32)
    written = max(given - first, 0)
    surprise[written:] = -np.array(answer.logprobs, np.float32)[len(answer.logprobs) - (len(shown_ids) - written) :]
    arrays = {
        "surprise": ("T", surprise),
        "lens.words": ("P W X", number(found.ids)),
        "lens.chances": ("P W X", np.exp(found.logprobs).astype(np.float16)),
        "lens.next": ("P W", np.exp(found.following).astype(np.float16)),
    }
    arrays |= heads_of(model, values, first, left, rows_of)
    arrays |= shares_of(model, values, shown_ids, found, number, left)
    config = own_config(model)
    texts, names = spelled(model, ids, first)
    weights = nbytes_kept(model.params)
    head = {
        "form": 1,
        "name": name or f"{L} layers of width {config.hidden_size}",
        "adapter": adapter_of(box, row),
        "model": {"parameters": model.num_parameters, "bytes": model.nbytes, "dtype": model.dtype.name, "layers": L,
                  "width": config.hidden_size, "heads": config.num_heads, "vocabulary": config.vocab_size},
        "tokens": texts, "names": names, "ids": shown_ids, "given": written,
        "words": [word_of(model, token) for token in words], "word_ids": list(words),
        "depths": depths,
        "settings": settings_of(ticket.request.sampling) | {
            "seed": answer.seed, "max_new_tokens": ticket.request.max_new_tokens, "finish_reason": answer.finish_reason,
        },
        "timings": dataclasses.asdict(answer.timings)
        | {"prompt_rate": answer.timings.prompt_rate, "new_rate": answer.timings.new_rate},
        "machine": machine(),
        "bytes": {part: round(size) for part, size in part_bytes(config, 1, len(ids), model.dtype, weights).items()},
        "times": parts_of(times), "changed": sorted(box.programs.requests[ticket.number].changes),
        "recomputed": again, "left": left, "rows": rows_of,
    }  # fmt: skip
    return Story(head, arrays)


def values_of(box: Watched, model: Model, row: int) -> tuple[dict[str, Any], list[str], int | None]:
    """What was kept of a row, and where it was not, is in one more pass; the names of the latter; the layer of whole rows."""
    kept = dict(box.programs.asked.keep)
    whole_rows = [name for name in kept if name.endswith(".attention.weights") and kept[name] is None]
    layer = int(whole_rows[0].split(".")[1]) if whole_rows else None
    wanted = expanded(model_names(model), for_report(model, layer))
    if layer is None and any(shrink is strongest for shrink in kept.values()):
        wanted |= {name: strongest for name in wanted if name.endswith(".attention.weights")}
    else:
        layer = next(int(name.split(".")[1]) for name in wanted if name.endswith("weights") and wanted[name] is None)
    has = lambda name: name in kept and (kept[name] is None or kept[name] is wanted[name])  # noqa: E731
    again = [name for name in wanted if not has(name)]
    values = {name: box.row(name, box.tickets[row]) for name in wanted if has(name)}
    if again:
        text = text_of(box, None, row)
        keep = [(name, wanted[name]) for name in again]
        keep += [
            (name.replace("weights", "slots"), None) for name in again if wanted[name] is None and "weights" in name
        ]
        size = len(text.ids) - 1
        for name, value in passes.fetched(
            passes.run_pass(passes.keep_values, model, *text.padded, keep=tuple(keep))
        ).items():
            values[name] = value if name.endswith("slots") else jax.tree.map(lambda x: x[0], value)
        for name in again:
            if wanted[name] is None and name.endswith("weights"):
                slots = values.pop(name.replace("weights", "slots"))
                rows = np.moveaxis(values[name], 2, 0)
                values[name] = aligned(rows, np.repeat(slots, len(rows), axis=0), size)
            values[name] = jax.tree.map(lambda x: x[:size], values[name])
    return values, again, layer


def spelled(model: Model, ids: list[int], first: int) -> tuple[list[str], list[str]]:
    """The text of each token, which join to the text, and a name for each that prints nothing: a part of a letter, BOS."""
    if model.tokenizer is None:
        return [f"{token} " for token in ids[first:]], ["" for _ in ids[first:]]
    decoder = model.tokenizer.decoder()
    texts = [decoder.push(token) for token in ids]
    texts[-1] += decoder.finish()
    names = ["" if text else model.tokenizer.piece(token) or f"{token}" for text, token in zip(texts, ids, strict=True)]
    return texts[first:], names[first:]


def settings_of(sampling: Sampling) -> dict[str, float]:
    """The temperature, and what else is not as it is by itself."""
    usual = Sampling()
    said = {name: float(np.asarray(getattr(sampling, name)).reshape(-1)[0]) for name in ALLOWED}
    return {name: value for name, value in said.items() if name == "temperature" or value != getattr(usual, name)}


def parts_of(times: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    """A trace's seconds and bytes for one token by the parts of the model."""
    if times is None:
        return None
    tokens = times["rows"] * times["new_tokens"]
    return [
        {"part": entry["part"], "seconds": entry["seconds"] / tokens, "bytes": entry["bytes"] / tokens,
         "limit_share": entry["limit_share"]}
        for entry in times["decode"]["parts"]
    ]  # fmt: skip
