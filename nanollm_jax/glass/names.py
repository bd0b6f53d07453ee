"""The names of everything that can be seen and changed inside the model, with their axes, and the patterns that choose some.

    layers.3.attention.weights       one name
    layers.*.out                     * is anything but a dot: layers.0.out to the last, and no layers.0.mlp.out
    layers.2-4.attention.{q,k}       layers 2, 3 and 4, two names each
    **.out                           ** is anything: every name that ends in .out

In the reference's words hidden_states[0] is embedding, hidden_states[n] is layers.{n-1}.out, and the last of them final_norm;
attentions[n] is layers.{n}.attention.weights, whose K and G are its heads.

The tags stand in model.py and sampling.py. Letters are those of layout.py: B rows, T new tokens, S what they may look at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import RequestError

NAMES = {
    "positions": "B T",  # where the new tokens stand
    "real": "B",  # how many of them there are; the rest is padding
    "embedding": "B T D",
    "layers.*.attention_norm": "B T D",
    "layers.*.attention.q": "B T N H",
    "layers.*.attention.k": "B T K H",  # neither where a layer looks at another's
    "layers.*.attention.v": "B T K H",  # of latents there is k alone, which is both
    "layers.*.attention.slots": "B S",  # the position that each slot holds, negative if none
    "layers.*.attention.scores": "B K G T S",  # the lowest float where a query may not look
    "layers.*.attention.weights": "B K G T S",
    "layers.*.attention.mixed": "B T N H",  # of latents as wide as their values
    "layers.*.recurrent.convolved": "B T h",  # of a layer that has this in place of attention
    "layers.*.recurrent.mixed": "B T h v",  # or this
    "layers.*.attention.out": "B T D",  # what is added to the stream, as mlp.out is, of a recurrent layer too
    "layers.*.middle": "B T D",  # the residual stream between the two
    "layers.*.mlp_norm": "B T D",
    "layers.*.mlp.hidden": "B T F",  # of an MLP; of experts there is
    "layers.*.mlp.router": "B T E",  # how well each fits each token
    "layers.*.mlp.shared": "B T D",  # what the MLP beside them adds
    "layers.*.mlp.out": "B T D",
    "layers.*.input": "B T I",  # what a layer is told of a token besides the stream, where it is told anything
    "layers.*.input.out": "B T D",  # and what it adds of it
    "layers.*.out": "B T D",  # the residual stream behind the layer
    "final_norm": "B T D",
    "logits": "B T V",
    "token": "B",  # what was drawn, and its log-probability
    "logprob": "B",
}
SPLIT = {
    "B": "dp",
    "K": "tp",
    "N": "tp",
    "F": "tp",
    "h": "tp",
}  # along which axis of a mesh: all devices have whole logits

WORDS = {"**": ".*", "*": "[^.]*", "?": "[^.]", "{": "(?:", "}": ")"}


def letters(name: str) -> list[str] | None:
    """The axes of a value, one letter each; None for a name that is not the model's."""
    found = NAMES.get(re.sub(r"^layers\.\d+\.", "layers.*.", name))
    return None if found is None else found.split()


def expression(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression. Raises RequestError for what is none."""
    if not isinstance(pattern, str) or not pattern:
        raise RequestError(f"a pattern of names is {pattern!r}; expected one such as 'layers.*.out'.")
    written, depth = "", 0
    for word in re.findall(r"\d+-\d+|\*\*|.", pattern):
        depth += (word == "{") - (word == "}")
        if not 0 <= depth <= 1:
            break
        first, dash, last = word.partition("-")
        if dash and first and last:
            written += f"(?:{'|'.join(map(str, range(int(first), int(last) + 1))) or '(?!)'})"
        else:
            written += "|" if word == "," and depth else WORDS.get(word, re.escape(word))
    if depth:
        raise RequestError(
            f"the pattern {pattern!r} has a brace without its other one; write layers.0.attention.{{q,k}}."
        )
    return re.compile(written)


def check_found(patterns: Mapping[str, re.Pattern[str]], names: Collection[str]) -> None:
    """Raise RequestError unless every pattern, {as it was written: as an expression}, chooses one of these names."""
    if patterns and not names:
        raise RequestError(
            "nothing in this function has a name; take forward, or a function that calls it or names its values with "
            "jax.ad_checkpoint.checkpoint_name."
        )
    for pattern, chooses in patterns.items():
        if not any(chooses.fullmatch(name) for name in names):
            near = get_close_matches(pattern, names, n=3)
            meant = f"; did you mean {' or '.join(near)}?" if near else "."
            raise RequestError(f"no value is named {pattern}{meant} The names are {', '.join(shortened(names))}.")


def check_attends(config: ModelConfig, what: str) -> None:
    """Raise RequestError where not every layer has attention and an MLP, from what looks at heads of all of them."""
    others: dict[str, list[str]] = {}
    for layer, where in config.alike():
        lacks = {"attention": "without attention", "mlp": "without an MLP", None: None}[layer.lacks]
        if kind := "recurrent" if layer.mixer is not None else lacks:
            others.setdefault(kind, []).append(where)
    if others:
        said = ", ".join(f"{' '.join(layers)} are {kind}" for kind, layers in others.items())
        raise RequestError(
            f"layers {said}: {what} needs heads of attention in every layer, and an MLP. watch, observe, lens, "
            "patch and ablate of mlps, attentions and layers work without."
        )


def shortened(names: Iterable[str]) -> list[str]:
    """Names in which only a number differs as one: layers.0-5.out."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        groups.setdefault(re.sub(r"\.\d+\.", ".%s.", name, count=1), []).extend([int(number[1])] if number else [])
    return [
        name % f"{min(found)}-{max(found)}" if len(found) > 1 else name % found[0] if found else name
        for name, found in groups.items()
    ]
