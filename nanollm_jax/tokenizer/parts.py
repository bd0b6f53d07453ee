"""Encoding what a chat template wrote: tokens that the template put there, and text that cannot spell them.

A template's output is a list of parts, each the id of a token or a run of ordinary text. Text between two tokens is
encoded in its place, so that a space before the first word, or white space that a token swallows, comes out as it would
if the whole had been one text.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer.confined import changed, says

if TYPE_CHECKING:
    import tokenizers

Part = int | str
PartsEncoder = Callable[[Sequence[Part]], list[int]]


def with_secret_names(path: Path, library: "tokenizers.Tokenizer", markers: frozenset[int]) -> PartsEncoder:
    """An encoder of parts for a tokenizer of the `tokenizers` library.  path: the file that errors name

    Every marker is renamed to something that nobody can guess, in a copy of the tokenizer. Then one call encodes tokens
    and text together, by the library's own rules for the text around a token, and text has no way to spell a marker.
    Raises TokenizerError where a marker is also the product of merges, and so cannot have another name.
    """
    tree = json.loads(library.to_str())
    secret = secrets.token_hex(8)
    names = {token["id"]: f"\ue000{secret}{token['id']}\ue001" for token in tree["added_tokens"]}
    names = {token_id: name for token_id, name in names.items() if token_id in markers}
    renamed = {token["content"]: names[token["id"]] for token in tree["added_tokens"] if token["id"] in names}
    for token in tree["added_tokens"]:
        if (
            token["id"] in names
        ):  # found wherever it is put, also where its own rules would leave its letters in the text
            token |= {"content": names[token["id"]], "normalized": False, "single_word": False}
    model = tree["model"]
    merged = {piece for merge in model.get("merges", ()) for piece in [*merge, "".join(merge)]} & renamed.keys()
    if merged:
        raise TokenizerError(f"{path}: merges of text make {sorted(merged)}, which a chat template needs for itself.")
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    tree["post_processor"] = None  # its tokens go in front of a text, and a template has put its own there
    hidden = changed(path, library, tree)
    moved = [token_id for token_id, name in names.items() if hidden.token_to_id(name) != token_id]
    if moved or names.keys() != markers:
        found = sorted({*moved, *(markers - names.keys())})
        raise TokenizerError(f"{path}: tokens {found} are not where its added tokens say; copy the file again.")

    def encode(parts: Sequence[Part]) -> list[int]:
        text = "".join(names[part] if isinstance(part, int) else part for part in parts)
        with says(path):
            return hidden.encode(text, add_special_tokens=False).ids

    return encode


def piece_by_piece(first: Callable[[str], list[int]], later: Callable[[str], list[int]]) -> PartsEncoder:
    """An encoder of parts that encodes each run of text by itself: `first` where it begins the whole, else `later`."""

    def encode(parts: Sequence[Part]) -> list[int]:
        ids: list[int] = []
        run = ""
        begins = True
        for part in [*parts, None]:
            if isinstance(part, str):
                run += part
                continue
            if run:
                ids += (first if begins else later)(run)
            run, begins = "", False
            ids += [] if part is None else [part]
        return ids

    return encode
