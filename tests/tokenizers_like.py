"""Small tokenizers in the configurations that published families ship, trained in the test on this repository's text."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

ROOT = Path(__file__).parents[1]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPLIT = QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
NEMO_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"qwen": QWEN_SPLIT, "llama3": LLAMA_SPLIT, "nemo": NEMO_SPLIT}
HARD = [
    "", " ", "  ", "\t", "\n", "\n\n", "\n\n\n", "a", "Hello world", " Hello  World", "   leading and trailing   ",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～", "3 33 333 3333 33333 333333", "e\u0301 vs é ﬁ Å",
    "\x00\x01\x7f", "tab\tand\r\nreturn\r", "நல்ல 🦙🏽‍♀️ ก็ ทำ", "'s 'T 'Re won't WE'LL",
    "x=[1,2]; // a/b\n    indented\n\t\ttwice",
    "ends with newline\n", "<b>bold</b> <unk> <0x0A> ▁▁ Ġ", "\u200b\u3000 ideographic", "A" * 50 + " " * 40 + "." * 30,
]  # fmt: skip


def corpus() -> Iterator[str]:
    for path in ("README.md", "nanollm_jax/model.py", "nanollm_jax/sampling.py"):
        yield (ROOT / path).read_text()
    yield from HARD


def added(*contents: str, special: bool = True, **options: bool) -> list[AddedToken]:
    return [AddedToken(content, special=special, normalized=False, **options) for content in contents]


def byte_level(split: str | None, *, special: list[str], ignore_merges: bool = False) -> Library:
    library = Library(models.BPE(ignore_merges=ignore_merges))
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    library.pre_tokenizer = (
        as_letters
        if split is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), as_letters])
    )
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    library.add_special_tokens(added(*special))
    return library


def marked(*, special: list[str], prepend: bool) -> Library:
    library = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    # While training, words must end somewhere; merges across them are not what this is about.
    library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    names = ["<pad>", *special, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    library.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=900, special_tokens=names, limit_alphabet=120, show_progress=False),
    )
    # the bytes were kept whole for the trainer only: they are ordinary entries, as in the published files
    tree = library.to_str()
    library = without_added(tree, keep={"<pad>", "<unk>", *special})
    library.pre_tokenizer = None if prepend else pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prepend else []))
    return library


def without_added(tree: str, keep: set[str]) -> Library:
    import json

    content = json.loads(tree)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in keep]
    content["pre_tokenizer"] = None
    return Library.from_str(json.dumps(content))


def unigram() -> Library:
    library = Library(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace(prepend_scheme="always")
    library.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(
            vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return library


def bos_in_front(library: Library, bos: str) -> Library:
    library.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, library.token_to_id(bos))]
    )
    return library


@functools.cache
def trained(kind: str) -> str:
    """The tokenizer.json of one kind."""
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if kind == "qwen":
        library = byte_level(QWEN_SPLIT, special=chatml)
        library.normalizer = normalizers.NFC()
        library.add_tokens(added("<tool_call>", "</tool_call>", "<think>", "</think>", special=False))
    elif kind == "llama3":
        names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        library = bos_in_front(byte_level(LLAMA_SPLIT, special=names, ignore_merges=True), "<|begin_of_text|>")
    elif kind == "nemo":
        library = bos_in_front(
            byte_level(NEMO_SPLIT, special=["<s>", "</s>", "[INST]", "[/INST]"], ignore_merges=True), "<s>"
        )
    elif kind == "neox":
        library = byte_level(None, special=["<|endoftext|>", "<|padding|>"])
        library.normalizer = normalizers.NFC()
        library.add_tokens(added(*(" " * n for n in range(24, 1, -1)), special=False))
    elif kind == "starcoder":
        names = ["<|endoftext|>", "<fim_prefix>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
        library = byte_level(None, special=names)
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind == "phi3":
        library = bos_in_front(marked(special=["<s>", "</s>"], prepend=True), "<s>")
        names = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        library.add_special_tokens(added(*names, rstrip=True))
    elif kind == "gemma":
        library = bos_in_front(marked(special=["<bos>", "<eos>"], prepend=False), "<bos>")
        library.add_tokens(added("\n\n", "\n\n\n", "▁▁", "▁▁▁", "<b>", "</b>", special=False))
        library.add_special_tokens(added("<start_of_turn>", "<end_of_turn>"))
    else:
        assert kind == "unigram"
        library = unigram()
    return library.to_str()


KINDS = ("qwen", "llama3", "nemo", "neox", "starcoder", "phi3", "gemma", "unigram")
