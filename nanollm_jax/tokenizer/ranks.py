"""Lists of ranks, as tiktoken has them: tokenizer.model and *.tiktoken in its text format, and Mistral's tekken.json.

A rank is a token's place among the merges, and its id too, behind the special tokens where these come first.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanollm_jax.errors import TokenizerError, shown
from nanollm_jax.tokenizer.checks import Checks
from nanollm_jax.tokenizer.confined import opened, says
from nanollm_jax.tokenizer.files import Settings, read, read_json
from nanollm_jax.tokenizer.pieces import LETTERS, byte_level_bytes
from nanollm_jax.tokenizer.table import TableTokenizer
from nanollm_jax.tokenizer.tokenizer_json import adapt

# How a text is split before merging, which a list of ranks does not say: Meta's way (llama-models, models/llama3), which is
# also how the reference reads ranks that it does not know, and Qwen's (tokenization_qwen.py), which differs at digits.
META_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = META_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# Mistral's, which its own files of ranks store and other forms of it do not
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_RANK = 1024  # bytes of a token, every cut of which into two is looked at; the longest published has 128
MOST_SPECIAL = 100_000  # in front of the ranks; tekken.json has 1,000
# The special tokens behind Meta's ranks, by place, with the names of version 3.1; the rest of 256 are reserved.
META_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))]
# The special tokens of a tekken.json that does not list them (mistral-common, tokens/tokenizers/tekken.py).
TEKKEN_SPECIAL = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
]  # fmt: skip


def is_ranks(data: bytes) -> bool:
    """Whether a tokenizer.model is a list of ranks, "base64 rank" a line. A SentencePiece model begins with 0x0A."""
    return re.match(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n", data) is not None


def from_ranks(path: Path, data: bytes, settings: Settings) -> TableTokenizer:
    """A tokenizer.model of ranks -> its tokenizer, with Meta's split and 256 special tokens, and a BOS in front.

    The file stores neither: ranks that go with others need their tokenizer.json. Raises TokenizerError naming the damaged line.
    """
    ranks = read_ranks(path, data)
    behind = _special_names({i - len(ranks): token.content for i, token in settings.added.items()})
    return build(path, ranks, META_SPLIT, settings, behind=behind, add_bos=True)


def from_tiktoken(path: Path, settings: Settings) -> TableTokenizer:
    """A *.tiktoken -> its tokenizer, no BOS in front: qwen.tiktoken with Qwen's split and special tokens, any other with the
    reference's split and the special tokens that tokenizer_config.json has. Raises TokenizerError naming the damaged line.
    """
    ranks = read_ranks(path, read(path))
    if path.name == "qwen.tiktoken":
        return build(path, ranks, QWEN_SPLIT, settings, behind=QWEN_SPECIAL, normalizer={"type": "NFC"}, add_bos=False)
    return build(path, ranks, META_SPLIT, settings, add_bos=False)


def from_tekken(path: Path, settings: Settings) -> TableTokenizer:
    """Mistral's tekken.json -> its tokenizer: the special tokens have the first ids, a BOS is in front.

    Raises TokenizerError for a damaged file.
    """
    content, checks = read_json(path), Checks(path)
    config = checks.need(content.get("config"), dict, "config")
    pattern = checks.need(config.get("pattern"), str, "config: pattern")
    size = checks.need(config.get("default_vocab_size"), int, "config: default_vocab_size")
    count = checks.need(config.get("default_num_special_tokens"), int, "config: default_num_special_tokens")
    if not 0 <= count <= min(size, MOST_SPECIAL):
        raise checks.fault("config: default_num_special_tokens", count, f"0 to {MOST_SPECIAL}, and not above the size")
    special = [f"<SPECIAL_{n}>" for n in range(count)]
    listed = content.get("special_tokens")
    known = [{"rank": n, "token_str": name} for n, name in enumerate(TEKKEN_SPECIAL[:count])]
    for entry in checks.need(known if listed is None else listed, list, "special_tokens"):
        match entry:
            case {"rank": int() as rank, "token_str": str(name)} if name and 0 <= rank < count:
                special[rank] = name
            case _:
                raise checks.fault("special_tokens: an entry", entry, f"a rank below {count} and a text")
    ranks: list[bytes] = []
    for entry in checks.need(content.get("vocab"), list, "vocab")[: size - count]:
        try:
            if entry["rank"] != len(ranks) or len(entry["token_bytes"]) > 2 * LONGEST_RANK:
                raise ValueError
            ranks.append(base64.b64decode(entry["token_bytes"], validate=True))
        except (KeyError, TypeError, ValueError):
            raise checks.fault("vocab: an entry", entry, f"rank {len(ranks)} and its bytes in base64") from None
    return build(path, ranks, pattern, settings, front=special, add_bos=True)


def read_ranks(path: Path, data: bytes) -> list[bytes]:
    """Lines of "base64 rank" -> tokens in the order of their ranks. Raises TokenizerError naming the damaged line."""
    ranks: list[bytes] = []
    for number, line in enumerate(data.splitlines()):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if len(token) > LONGEST_RANK or len(rank) > 9:
                raise ValueError
            place = int(rank)
        except ValueError:
            found = f"line {number + 1} is {shown(line)}"
            raise TokenizerError(f"{path}: {found}; expected a token in base64 and its rank.") from None
        if place != number:
            found = f"line {number + 1} has rank {place}"
            raise TokenizerError(f"{path}: {found}; expected a token not seen before, with rank {number}.")
        ranks.append(token)
    return ranks


def build(
    path: Path,
    tokens: Sequence[bytes],
    pattern: str,
    settings: Settings,
    *,
    front: Sequence[str] = (),
    behind: Sequence[str] = (),
    normalizer: Any = None,
    add_bos: bool,
) -> TableTokenizer:
    """Tokens in the order of their ranks -> their tokenizer.  front, behind: special tokens that have ids before and after"""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        twice = next(rank for rank, token in enumerate(tokens) if ranks[token] != rank)
        raise TokenizerError(f"{path}: the token of rank {twice} is there again later; expected one rank for each.")
    if missing := sum(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError(f"{path}: {missing} of the 256 single bytes have no rank; copy the file again.")
    letters = {byte: letter for letter, byte in LETTERS.items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    names = [*front, *behind]
    again = [name for name, count in Counter([*{*spelled.values()}, *names]).items() if count > 1]
    if again:
        raise TokenizerError(f"{path}: {shown(again[0])} is a special token and another one too; use a tokenizer.json.")
    last = {*behind}
    ids = {name: n for n, name in enumerate(front)}
    ids |= {spelled[token]: len(front) + rank for token, rank in ranks.items()}
    ids |= {name: len(front) + len(ranks) + n for n, name in enumerate(behind)}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tree = {
        "added_tokens": [{"id": ids[name], "content": name} | plain for name in names],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, as_letters]},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {entry: token_id for entry, token_id in ids.items() if entry not in last},
            "merges": [(spelled[left], spelled[right]) for left, right in _merges(ranks)],
        },
    }
    library = opened(path, json.dumps(tree).encode(), tree)
    with says(path):
        return adapt(path, library, settings, byte_level_bytes, add_bos=add_bos)


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
    """The 256 names behind Meta's ranks.  declared: place -> name, where the config has other names than these."""
    names = META_SPECIAL | declared
    reserved = (name for n in range(256) if (name := f"<|reserved_special_token_{n}|>") not in names.values())
    return [names.get(place) or next(reserved) for place in range(256)]
