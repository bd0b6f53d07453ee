"""An older way to store byte-level BPE: vocab.json with merges.txt."""

from pathlib import Path

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer.checks import Checks
from nanollm_jax.tokenizer.confined import says
from nanollm_jax.tokenizer.files import Settings, read, read_json
from nanollm_jax.tokenizer.pieces import byte_level_bytes
from nanollm_jax.tokenizer.table import TableTokenizer
from nanollm_jax.tokenizer.tokenizer_json import adapt

# The classes whose split pattern is the library's ByteLevel default. vocab.json and merges.txt do not store a pattern.
PLAIN_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")


def from_vocab_and_merges(folder: Path, settings: Settings) -> TableTokenizer:
    """vocab.json + merges.txt -> their tokenizer, without a BOS in front unless the config asks for one.

    Raises TokenizerError for a damaged file, and for a tokenizer class that splits text by another pattern.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    path, merges_path = folder / "vocab.json", folder / "merges.txt"
    if settings.tokenizer_class not in PLAIN_CLASSES:
        found = f"tokenizer_class {settings.tokenizer_class} has its own way to split text"
        raise TokenizerError(f"{settings.path}: {found}, which {path.name} does not store; use its tokenizer.json.")
    vocab, checks = read_json(path), Checks(path)
    checks.ids([token_id for _, token_id in checks.vocabulary(vocab)])
    merges = []
    for number, line in enumerate(read(merges_path).decode("utf-8", errors="replace").split("\n"), 1):
        pair = line.rstrip("\r").split(" ")
        if pair == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            found = f"line {number} is {line!r}"
            raise TokenizerError(f"{merges_path}: {found}; expected two entries of {path.name} that join to a third.")
        merges.append((pair[0], pair[1]))
    with says(path):
        library = Tokenizer(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.add_prefix_space))
    if "<|endoftext|>" in vocab:
        library.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return adapt(path, library, settings, byte_level_bytes, add_bos=False)
