"""Two older ways to store byte-level BPE: vocab.json with merges.txt, and a list of ranks in tiktoken's text format."""

import base64
import re
from pathlib import Path

from nanollm_jax.errors import TokenizerError, shown
from nanollm_jax.tokenizer.checks import Checks
from nanollm_jax.tokenizer.confined import says
from nanollm_jax.tokenizer.files import Settings, read, read_json
from nanollm_jax.tokenizer.pieces import LETTERS, byte_level_bytes
from nanollm_jax.tokenizer.table import TableTokenizer
from nanollm_jax.tokenizer.tokenizer_json import adapt

# The classes whose split pattern is the library's ByteLevel default. vocab.json and merges.txt do not store a pattern.
PLAIN_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")

# How Meta splits text before merging (llama-models, models/llama3/api/tokenizer.py); the file of ranks does not say.
RANKS_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_RANK = 1024  # bytes of a token, every cut of which into two is looked at; the longest published has 128
# The special tokens behind the ranks, by place, with the names of version 3.1; the rest of 256 are reserved.
RANKS_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


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


def is_ranks(data: bytes) -> bool:
    """Whether a tokenizer.model is a list of ranks, "base64 rank" a line. A SentencePiece model begins with 0x0A."""
    return re.match(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n", data) is not None


def from_ranks(path: Path, data: bytes, settings: Settings) -> TableTokenizer:
    """A list of ranks -> its tokenizer, with Meta's split pattern and 256 special tokens, and a BOS in front.

    A rank is both the id of a token and its place among the merges. The file stores neither pattern nor special tokens:
    ranks that go with others need their tokenizer.json. Raises TokenizerError naming the damaged line.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if len(token) > LONGEST_RANK or len(rank) > 9:
                raise ValueError
            ranks[token] = int(rank)
        except ValueError:
            found = f"line {number + 1} is {shown(line)}"
            raise TokenizerError(f"{path}: {found}; expected a token in base64 and its rank.") from None
        if int(rank) != number or len(ranks) != number + 1:
            found = f"line {number + 1} has rank {int(rank)}"
            raise TokenizerError(f"{path}: {found}; expected a token not seen before, with rank {number}.")
    if missing := sum(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError(f"{path}: {missing} of the 256 single bytes have no rank; copy the file again.")

    letters = {byte: letter for letter, byte in LETTERS.items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    library = Tokenizer(models.BPE({spelled[t]: rank for t, rank in ranks.items()}, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(RANKS_SPLIT), behavior="isolated")
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, as_letters])
    names = _special_names({i - len(ranks): token.content for i, token in settings.added.items()})
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return adapt(path, library, settings, byte_level_bytes, add_bos=True)


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges behind the ranks, oldest first: every way to cut a token into two that have ranks themselves.

    b"abc", where b"ab" and b"bc" have ranks too:  (ab, c) and (a, bc), as either pair may turn up in a text.
    """
    merges = []
    for token in ranks:  # in the order of the ranks
        cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
        cuts = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
    return merges


def _special_names(declared: dict[int, str]) -> list[str]:
    """The 256 names behind the ranks.  declared: place -> name, where the config has other names than these."""
    names = RANKS_SPECIAL | declared
    reserved = (name for n in range(256) if (name := f"<|reserved_special_token_{n}|>") not in names.values())
    return [names.get(place) or next(reserved) for place in range(256)]
