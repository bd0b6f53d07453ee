"""`nanollm tokenize`: what a model reads."""

from __future__ import annotations

from typing import Annotated

import typer

from nanollm_jax.cli.options import STDIN, AsJson, Revision, Source, read_text
from nanollm_jax.cli.printing import plural, print_json, print_table, spelled
from nanollm_jax.errors import RequestError, TokenizerError

Text = Annotated[str | None, typer.Argument(metavar="TEXT", show_default=False, help=f"The text. {STDIN}")]


def tokenize(text: Text = None, model: Source = None, revision: Revision = None, as_json: AsJson = False) -> None:
    """Show the tokens of a text.

    Each has an id, a piece of text as the vocabulary spells it, and the bytes that it prints: none for special tokens.
    A BOS is in front where the model wants one.
    """
    from nanollm_jax.sources import source_at
    from nanollm_jax.weights.source import find

    text = read_text(text)
    if text is None:
        raise RequestError("TEXT is missing; give one, or pipe it in.")
    source = source_at(find(model, revision, weights=False))
    if (tokenizer := source.tokenizer()) is None:
        raise TokenizerError(f"{source.path}: no tokenizer here. Copy one from the checkpoint.")
    ids = tokenizer.encode(text)
    pieces, prints = [tokenizer.piece(token) for token in ids], [tokenizer.token_bytes(token) for token in ids]
    if as_json:
        rows = zip(ids, pieces, prints, strict=True)
        tokens = [{"id": token, "piece": piece, "bytes": printed.hex()} for token, piece, printed in rows]
        return print_json({"text": text, "tokens": tokens})
    literals = [
        "special" if token in tokenizer.special_ids else repr(printed)[1:]  # b' the' -> ' the'
        for token, printed in zip(ids, prints, strict=True)
    ]
    print_table(("piece", "bytes", "id"), zip(map(spelled, pieces), literals, map(str, ids), strict=True), right=1)
    print(plural(len(ids), "token"))
