"""Which tokenizer a folder holds: the one place that knows which file goes before which."""

from pathlib import Path

from nanollm_jax.errors import TokenizerError
from nanollm_jax.files import present
from nanollm_jax.tokenizer.bpe_files import from_vocab_and_merges
from nanollm_jax.tokenizer.files import read, read_settings
from nanollm_jax.tokenizer.interface import Tokenizer
from nanollm_jax.tokenizer.ranks import from_ranks, from_tekken, from_tiktoken, is_ranks
from nanollm_jax.tokenizer.sentencepiece_model import from_sentencepiece
from nanollm_jax.tokenizer.tokenizer_json import from_tokenizer_json

FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "merges.txt")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is any file here that `load_tokenizer` would open."""
    return any(present(folder / name) for name in FILES) or bool(tiktoken_files(folder))


def tiktoken_files(folder: Path) -> list[Path]:
    """The lists of ranks under names of their own."""
    return sorted(folder.glob("*.tiktoken"))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a checkpoint's folder: tokenizer.json, else tokenizer.model, tekken.json, *.tiktoken, or vocab.json with
    merges.txt.

    The tokenizer_config.json, special_tokens_map.json and added_tokens.json beside it are read too. Raises TokenizerError where
    nothing is found, a file is damaged or of a kind not known, or typed text could become a special token.
    """
    if not has_tokenizer(folder):
        looked_for = "tokenizer.json, tokenizer.model, tekken.json, *.tiktoken, or vocab.json with merges.txt"
        raise TokenizerError(f"{folder}: no tokenizer here; looked for {looked_for}. Copy one from the checkpoint.")
    settings = read_settings(folder)
    json_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    tokenizer: Tokenizer
    if present(json_path):
        tokenizer = from_tokenizer_json(json_path, settings)
    elif present(model_path):
        data = read(model_path)
        tokenizer = (from_ranks if is_ranks(data) else from_sentencepiece)(model_path, data, settings)
    elif present(folder / "tekken.json"):
        tokenizer = from_tekken(folder / "tekken.json", settings)
    elif ranks := tiktoken_files(folder):
        if len(ranks) > 1:
            found = f"{len(ranks)} lists of ranks, {', '.join(file.name for file in ranks)}"
            raise TokenizerError(f"{folder}: {found}; leave the one that belongs to the model.")
        tokenizer = from_tiktoken(ranks[0], settings)
    else:
        tokenizer = from_vocab_and_merges(folder, settings)
    refuse_leaks(folder, tokenizer)
    return tokenizer


def refuse_leaks(folder: Path, tokenizer: Tokenizer) -> None:
    """Type every special token as text: none may come out as itself. Milliseconds for a few hundred tokens."""
    unknown = tokenizer.encode("\U0010fffd", bos=False)  # in no vocabulary: comes out as bytes, or as the unknown token
    for token_id in sorted(tokenizer.special_ids.difference(unknown)):
        if token_id in tokenizer.encode(tokenizer.piece(token_id), bos=False):
            found = f"typing {tokenizer.piece(token_id)!r} gives the special token {token_id}, not ordinary text"
            raise TokenizerError(f"{folder}: {found}. Correct what its files call special, or use another format.")
