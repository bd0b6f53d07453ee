"""Every door that a stranger's file comes through: how a good one looks, how it is damaged, and what must be true if it opens.

A door is a function (random, folder) that writes files and opens them. It returns "accepted" or "compared" (with another
reading of the same files, which agreed), or raises one of the library's own errors, which is as good. All else is a finding.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
import tokenizers_like
import typer
from fuzzing_mutations import damage_bytes, damaged_json, nasty, other_letter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lora import write_adapter
from models import CONFIG_JSON, FURTHER
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from test_tokenizer_sentencepiece_model import train

import nanollm_jax as nano
from nanollm_jax import layout, params
from nanollm_jax.chat import load_chat_template
from nanollm_jax.chat.renderer import Renderer
from nanollm_jax.cli.app import app
from nanollm_jax.cli.settings import read_settings
from nanollm_jax.errors import NanoLLMError
from nanollm_jax.families.keys import INERT
from nanollm_jax.tokenizer import Tokenizer, load_tokenizer
from nanollm_jax.tokenizer.protobuf import fields
from nanollm_jax.weights import open_checkpoint
from nanollm_jax.weights.adapters import Base, read_adapter
from nanollm_jax.weights.checkpoint import FLOATS
from nanollm_jax.weights.rows import source_shape
from nanollm_jax.weights.source import read_json

TEXTS = ("Hello, y'all! 123\n\n  the cat", "naïve 😁 ▁ \x00", "  a")
CONFIGS = [*CONFIG_JSON.values(), *FURTHER.values()]


@functools.cache
def folder_of_all() -> tempfile.TemporaryDirectory[str]:
    """Where files are that all cases of a process share."""
    return tempfile.TemporaryDirectory()


@functools.cache
def renderer() -> Renderer:
    """One process for all templates; one that does not end is stopped soon."""
    return Renderer(seconds=3)


def config(rng: random.Random, folder: Path) -> str:
    """config.json of every family: what it describes can be counted, and keys that mean nothing change nothing."""
    good, file = rng.choice(CONFIGS), folder / "config.json"
    if rng.random() < 0.1:
        keys = rng.sample(" ".join(INERT[""].values()).split(), 5)
        mixed = [*(good | {key: nasty(rng) for key in keys if key not in good}).items()]
        rng.shuffle(mixed)
        file.write_text(json.dumps(dict(mixed)))
        with contextlib.suppress(nano.ConfigError):  # what is nasty may be no JSON
            assert nano.read_config(read_json(file))[0] == nano.read_config(good)[0], (
                f"{keys}: an inert key changed something"
            )
            return "compared"
    file.write_bytes(damaged_json(rng, good))
    found, family = nano.read_config(read_json(file), str(file))
    hash(found)
    assert params.count(found) > 0
    if found.num_layers * max(found.num_experts, 1) < 1000:
        assert {row.path for row in family.table(found)} >= params.layout(found).keys()
    return "accepted"


@functools.cache
def tensors() -> bytes:
    """A small safetensors file."""
    rng = np.random.default_rng(0)
    floats = {"a": (3,), "b.weight": (2, 2), "c": ()}
    made = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in floats.items()}
    return save(made | {"h": np.ones((2, 3), np.float16), "mask": np.ones(4, np.uint8)}, {"format": "pt"})


def safetensors(rng: random.Random, folder: Path) -> str:
    """model.safetensors: what we take the reference takes, and the numbers are the same."""
    good, file = tensors(), folder / "model.safetensors"
    length = 8 + int.from_bytes(good[:8], "little")
    if rng.random() < 0.5:
        header = damaged_json(rng, json.loads(good[8:length]))
        file.write_bytes(len(header).to_bytes(8, "little") + header + good[length:])
    else:
        file.write_bytes(damage_bytes(rng, good, within=length))
    checkpoint = open_checkpoint(folder)
    found = {name: checkpoint.read(name) for name in checkpoint.names() if checkpoint.tensors[name].dtype in FLOATS}
    try:
        with safe_open(file, "numpy") as reference:
            assert set(reference.keys()) == checkpoint.names()
            for name, tensor in found.items():
                np.testing.assert_array_equal(tensor, reference.get_tensor(name))
    except SafetensorError:  # tensors of other dtypes are looked at here where they are wanted
        if all(info.dtype in FLOATS for info in checkpoint.tensors.values()):
            raise
    return "compared"


def index(rng: random.Random, folder: Path) -> str:
    """model.safetensors.index.json and two shards: every tensor it names is there, with its numbers."""
    names = {"a.safetensors": ("x", "y"), "b.safetensors": ("z",)}
    for shard, inside in names.items():
        (folder / shard).write_bytes(save({name: np.full(2, ord(name), np.float32) for name in inside}))
    good = {
        "metadata": {"total_size": 24},
        "weight_map": {name: file for file, inside in names.items() for name in inside},
    }
    (folder / "model.safetensors.index.json").write_bytes(damaged_json(rng, good))
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.names():
        np.testing.assert_array_equal(checkpoint.read(name), [ord(name)] * 2)
    return "compared"


def same_ids(tokenizer: Tokenizer, reference: Callable[[str], list[int]]) -> str:
    """Whether both encode alike; where one gives a text up, the other may too."""
    for text in TEXTS:
        try:
            found = tokenizer.encode(text, bos=False)
        except NanoLLMError:
            continue
        assert found == (expected := reference(text)), f"{text!r}: {found}, expected {expected}"
        tokenizer.decode(found)
    return "compared"


def by_tokenizers(library: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
    """How the library encodes a text without special tokens in it."""
    library.encode_special_tokens = True
    library.no_truncation()
    library.no_padding()
    return lambda text: library.encode(text, add_special_tokens=False).ids


def little() -> Iterator[str]:
    """A corpus that tokenizers are trained on in no time."""
    yield from (*tokenizers_like.HARD, *TEXTS, (tokenizers_like.ROOT / "README.md").read_text()[:20_000])


@functools.cache
def content(kind: str) -> dict[str, Any]:
    """A tokenizer.json of one kind, and one with a table of characters to replace."""
    with mock.patch.object(tokenizers_like, "corpus", little):
        found = json.loads(tokenizers_like.trained("unigram" if kind == "precompiled" else kind))
    if kind == "precompiled":
        table = pieces("unigram")
        begin, end = next((first, last) for number, first, last in fields(table) if number == 3)
        begin, end = next((first, last) for number, first, last in fields(table, begin, end) if number == 2)
        found["normalizer"] = {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(table[begin:end]).decode(),
        }
    return found


KINDS = ("qwen", "llama3", "gemma", "unigram", "precompiled")
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "tokenizer_class": "LlamaTokenizer", "legacy": False,
         "add_prefix_space": None, "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}},
         "chat_template": "{{ messages[0].content }}", "model_max_length": 10**30}  # fmt: skip


def beside(rng: random.Random, folder: Path) -> bool:
    """Sometimes a damaged tokenizer_config.json or special_tokens_map.json. Returns whether there is none."""
    if rng.random() < 0.8:
        return True
    name = rng.choice(["tokenizer_config.json", "special_tokens_map.json"])
    (folder / name).write_bytes(damaged_json(rng, NAMES))
    return False


def tokenizer_json(rng: random.Random, folder: Path) -> str:
    """tokenizer.json: the ids are those of its library."""
    data = damaged_json(rng, content(rng.choice(KINDS)))
    (folder / "tokenizer.json").write_bytes(data)
    alone = beside(rng, folder)
    tokenizer = load_tokenizer(folder)
    if alone and not any(name in text for text in TEXTS for name in tokenizer.added):
        return same_ids(tokenizer, by_tokenizers(tokenizers.Tokenizer.from_buffer(data)))
    return "accepted"


@functools.cache
def pieces(kind: str) -> bytes:
    """A SentencePiece model of one kind."""
    rule = "nmt_nfkc" if kind == "unigram" else "identity"
    return train(model_type=kind, byte_fallback=kind == "bpe", vocab_size=320, normalization_rule_name=rule)


def tokenizer_model(rng: random.Random, folder: Path) -> str:
    """tokenizer.model: the ids are those of sentencepiece."""
    data = damage_bytes(rng, pieces(rng.choice(["bpe", "unigram"])))
    (folder / "tokenizer.model").write_bytes(data)
    alone = beside(rng, folder)
    tokenizer = load_tokenizer(folder)
    if alone:
        return same_ids(tokenizer, sentencepiece.SentencePieceProcessor(model_proto=data).encode)
    return "accepted"


def vocab_files(rng: random.Random, folder: Path) -> str:
    """vocab.json with merges.txt: the ids are those of the tokenizers library."""
    good = content("qwen")["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in good["merges"]), ""]).encode()
    vocab = damaged_json(rng, good["vocab"]) if rng.random() < 0.5 else json.dumps(good["vocab"]).encode()
    (folder / "vocab.json").write_bytes(vocab)
    (folder / "merges.txt").write_bytes(damage_bytes(rng, merges) if rng.random() < 0.5 else merges)
    alone = beside(rng, folder)
    tokenizer = load_tokenizer(folder)
    if not alone:
        return "accepted"
    try:
        model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # an empty line among the merges is passed over here
        assert "Merges text file invalid" in str(error)
        return "accepted"
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return same_ids(tokenizer, by_tokenizers(library))


WORDS = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" c", b" ca", b" cat", b"He", b"Hel", b"lo"]


def tekken(rng: random.Random, folder: Path) -> str:
    """tekken.json: the ids are those of tiktoken behind the special tokens."""
    config = {"pattern": tokenizers_like.LLAMA_SPLIT, "num_vocab_tokens": 264, "default_vocab_size": 294,
              "default_num_special_tokens": 30, "version": "v3"}  # fmt: skip
    vocab = [
        {"rank": n, "token_bytes": base64.b64encode(word).decode(), "token_str": None} for n, word in enumerate(WORDS)
    ]
    named = [
        {"rank": n, "token_str": name, "is_control": True} for n, name in enumerate(("<unk>", "<s>", "</s>", "[INST]"))
    ]
    data = damaged_json(rng, {"config": config, "vocab": vocab, "version": 1, "special_tokens": named})
    (folder / "tekken.json").write_bytes(data)
    alone = beside(rng, folder)
    tokenizer = load_tokenizer(folder)
    content = json.loads(data)
    if not alone or content["config"]["pattern"] != config["pattern"]:
        return "accepted"
    first, size = content["config"]["default_num_special_tokens"], content["config"]["default_vocab_size"]
    table = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in content["vocab"][: size - first]}
    reference = tiktoken.Encoding("fuzzed", pat_str=config["pattern"], mergeable_ranks=table, special_tokens={})
    return same_ids(tokenizer, lambda text: [first + token for token in reference.encode_ordinary(text)])


def ranks(rng: random.Random, folder: Path) -> str:
    """A list of ranks: the ids are those of tiktoken."""
    good = b"".join(base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(WORDS))
    if rng.random() < 0.3:  # the words of more than one byte in another order
        head, tail = good.splitlines()[:256], [line.split()[0] for line in good.splitlines()[256:]]
        rng.shuffle(tail)
        good = b"\n".join([*head, *(b"%s %d" % (word, 256 + n) for n, word in enumerate(tail)), b""])
    else:
        good = damage_bytes(rng, good)
    (folder / "tokenizer.model").write_bytes(good)
    alone = beside(rng, folder)
    tokenizer = load_tokenizer(folder)
    if not alone or tokenizer.vocab_size < 512:
        return "accepted"
    found = [line.split() for line in (folder / "tokenizer.model").read_bytes().splitlines() if line]
    table = {base64.b64decode(word): int(rank) for word, rank in found}
    reference = tiktoken.Encoding(
        "fuzzed", pat_str=tokenizers_like.LLAMA_SPLIT, mergeable_ranks=table, special_tokens={}
    )
    return same_ids(tokenizer, reference.encode_ordinary)


TEMPLATES = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('no') }}{% endif %}{{ '[INST] ' ~ m['content'] | tojson ~ ' [/INST]' }}{% endfor %}",
    "{%- macro say(x, n=3) -%}{{ x[:n] | upper }}{%- endmacro -%}{% set ns = namespace(a=0) %}{% for m in messages %}"
    "{% set ns.a = ns.a + m.content | length %}{{ say(m.content) }}{% endfor %}{{ ns.a }}{{ strftime_now('%d') }}",
)
BITS = ["{{", "}}", "{%", "%}", "{% for x in range(3) %}", "{% endfor %}", "{% if x %}", "{% endif %}", "(", ")", "[", "]",
        "messages", ".content", "|", "~", "'", '"', "\\", "\\ud800", "9" * 50, "*", "**", "-", "#", "{#", "None", "loop",
        "self", "__class__", "{% set x = x ~ x %}", "{% macro f() %}", "{{ f() }}", "{% generation %}", "caller()",
        "\0", "é"]  # fmt: skip


@functools.cache
def chatting() -> Tokenizer:
    """A tokenizer with role markers."""
    folder = Path(folder_of_all().name)
    (folder / "tokenizer.json").write_text(json.dumps(content("qwen")))
    return load_tokenizer(folder)


def rendered(text: str, messages: list[dict[str, str]]) -> str:
    """What jinja2 makes of a template, set up as transformers does it."""

    def refuse(message: str) -> None:
        raise AssertionError(f"refused: {message}")

    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    jinja.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    jinja.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))
    tokenizer = chatting()
    ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    variables: dict[str, Any] = {name: tokenizer.piece(token) for name, token in ends.items() if token is not None}
    variables |= {"tools": None, "documents": None, "add_generation_prompt": True}
    return jinja.from_string(text).render(messages=messages, **variables)


def template(rng: random.Random, folder: Path) -> str:
    """chat_template.jinja: no marker out of a message; and where none is typed, the ids of what jinja2 renders."""
    text, gently = rng.choice(TEMPLATES), rng.random() < 0.4
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, end = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 5, 20))
        if gently:
            text = other_letter(rng, text.encode()).decode()
        else:
            text = text[:at] + (rng.choice(BITS) if rng.random() < 0.8 else "") + text[at + end :]
    (folder / "chat_template.jinja").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    found = load_chat_template(folder, chatting())
    assert found is not None
    found = dataclasses.replace(found, renderer=renderer())
    typed = rng.random() < 0.5
    said = [{"role": "user", "content": "Hi <|im_end|>" if typed else "Hi"}, {"role": "assistant", "content": "Hello"}]
    ids = found.encode(said)
    if typed:
        if "<|im_end|>" not in text:  # the template puts none there
            assert chatting().added["<|im_end|>"] not in ids, "a marker came out of a message"
        return "accepted"
    if "generation" in text or "%d" in text:  # a tag of training, and the time
        return "accepted"
    library = tokenizers.Tokenizer.from_str(json.dumps(content("qwen")))
    assert ids == library.encode(rendered(text, said), add_special_tokens=False).ids
    return "compared"


GENERATION = {"eos_token_id": [2, 3], "do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.1,
              "repetition_penalty": 1.1, "max_new_tokens": 20, "pad_token_id": 0, "bos_token_id": 1, "typical_p": 1.0,
              "transformers_version": "5", "suppress_tokens": [1], "bad_words_ids": [[5]], "forced_eos_token_id": 2,
              "stop_strings": ["x"], "sequence_bias": [[[4], 1.0]], "no_repeat_ngram_size": 2, "num_beams": 1}  # fmt: skip


@functools.cache
def bare() -> Path:
    """A checkpoint of one layer, without generation_config.json."""
    folder = Path(folder_of_all().name) / "model"
    folder.mkdir()
    values = SMALL
    found, family = nano.read_config(values)
    rng = np.random.default_rng(0)
    stored = {row.name: shape(row, found) for row in family.table(found)}
    made = {name: rng.standard_normal(sizes).astype(np.float32) for name, sizes in stored.items()}
    (folder / "model.safetensors").write_bytes(save(made))
    (folder / "config.json").write_text(json.dumps(values))
    return folder


SMALL = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def shape(row: Any, found: nano.ModelConfig) -> tuple[int, ...]:
    """The shape of one row's tensor."""
    return source_shape(row.axes, found.sizes)


def generation_config(rng: random.Random, folder: Path) -> str:
    """generation_config.json: what is taken can be generated with."""
    for name in ("model.safetensors", "config.json"):
        shutil.copy(bare() / name, folder / name)
    (folder / "generation_config.json").write_bytes(damaged_json(rng, GENERATION))
    model = nano.load(folder)
    answer = nano.generate(model, [1, 2, 3], max_new_tokens=2)
    assert len(answer.token_ids) <= 2 and all(0 <= token < 64 for token in answer.token_ids)
    return "accepted"


SETTINGS = b"""
model = "x"
temperature = 0.5
top-k = 40
[generate]
max-new-tokens = 5
stop = ["a", "b"]
[chat]
system = "Be brief."
[bench]
rows = "1,2"
"""
TOML = [b"true", b"1979-05-27T07:32:00Z", b"07:32:00", b"nan", b"-inf", b"9" * 400, b"9" * 5000, b"{a = 1}", b"[1, [2]]",
        b'"\\u0000"',
        b'"""x"""', b"[" * 2000, b"0x7fffffffffffffffffff", b"[[chat]]", b"[generate.x]", b"\xff", b"1e999", b"''"]  # fmt: skip


@functools.cache
def commands() -> dict[str, Any]:
    """The commands of the command line, as click has them."""
    group: Any = typer.main.get_command(app())
    return group.commands


def settings(rng: random.Random, folder: Path) -> str:
    """The file of --settings: what is taken every command can read, or complains of."""
    data = SETTINGS
    if rng.random() < 0.6:
        lines = data.splitlines()
        n = rng.choice([n for n, line in enumerate(lines) if b"=" in line])
        lines[n] = lines[n].partition(b"=")[0] + b"= " + rng.choice(TOML)
        data = b"\n".join(lines)
    (folder / "settings.toml").write_bytes(damage_bytes(rng, data) if rng.random() < 0.6 else data)
    found = read_settings(folder / "settings.toml", commands())
    name = rng.choice(["generate", "chat", "bench", "score", "tokenize", "info", "plan"])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            given = ["x"] if name in ("generate", "score", "tokenize") else []
            commands()[name].make_context(name, given, default_map=found[name])
    except Exception as error:
        if not hasattr(error, "format_message"):  # the mark of a usage error
            raise
    return "accepted"


@functools.cache
def small_gguf() -> bytes:
    """A model of one layer with a vocabulary, all of it a few thousand bytes, in which most lengths are one byte."""
    import gguf_files
    from models import SHARED
    from test_loading import draw, in_their_names

    config = SHARED | {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 32}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 3}
    with tempfile.TemporaryDirectory() as folder:
        writer = gguf_files.opened(Path(folder, "x.gguf"), config)
        gguf_files.sizes(writer, config)
        gguf_files.tensors(writer, config, in_their_names(config, draw(config)), "F16")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab"])
        writer.add_token_types([1, 1, 1])
        writer.add_token_merges(["a b"])
        return gguf_files.close(writer).read_bytes()


def gguf(rng: random.Random, folder: Path) -> str:
    """x.gguf: it loads whole, or is refused; nothing of it is larger than the file."""
    good = small_gguf()
    begin = good.index(b"output_norm") if rng.random() < 0.3 else 0
    data = bytearray(damage_bytes(rng, good) if rng.random() < 0.3 else good)
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = min(rng.randrange(begin, len(good) // 2), len(data))
        data[at : at + 8] = rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1, rng.getrandbits(8))).to_bytes(8, "little")
    (folder / "x.gguf").write_bytes(data)
    model = nano.load(folder / "x.gguf")
    assert model.nbytes < 8 * len(data)
    return "accepted"


@functools.cache
def small_quantised(kind: str) -> tuple[dict[str, Any], bytes]:
    """config.json and model.safetensors of a model of one narrow layer, in one of the forms that are read."""
    from quantised_files import KINDS, WIDE, published

    narrow = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 3,
    }
    with tempfile.TemporaryDirectory() as folder:
        few, _ = published(Path(folder), WIDE | narrow | {"attention_bias": False, "mlp_bias": False}, *KINDS[kind])
        return json.loads((few / "config.json").read_text()), (few / "model.safetensors").read_bytes()


def quantised(rng: random.Random, folder: Path) -> str:
    """Weights in few bits: they load whole, or are refused; nothing of them is much larger than the files."""
    from quantised_files import KINDS

    values, good = small_quantised(rng.choice([*KINDS]))
    length, way = 8 + int.from_bytes(good[:8], "little"), rng.random()
    entries, data = json.loads(good[8:length]), bytearray(good[length:])
    if way < 0.3:
        key = next(key for key in ("quantization_config", "quantization") if key in values)
        text = b"".join((b"{", json.dumps(key).encode(), b":", damaged_json(rng, values[key]), b","))
        (folder / "config.json").write_bytes(
            text + json.dumps({k: v for k, v in values.items() if k != key}).encode()[1:]
        )
    else:
        (folder / "config.json").write_text(json.dumps(values))
    name = rng.choice([name for name in entries if "proj" in name])
    begin, end = entries[name]["data_offsets"]
    if 0.3 <= way < 0.6:  # numbers that are none, or lead nowhere
        at = rng.randrange(begin, end)
        data[at : min(at + 8, end)] = rng.choice((b"\xff", b"\x7f", b"\x00", b"\x80", rng.randbytes(1))) * min(
            8, end - at
        )
    elif 0.6 <= way < 0.7:  # other types of the same size, other shapes of the same number
        entries[name]["dtype"] = rng.choice(
            ["F16", "BF16", "F32", "I32", "U32", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "X"]
        )
    elif 0.7 <= way < 0.8:
        entries[name]["shape"] = rng.choice(
            (entries[name]["shape"][::-1], [1, *entries[name]["shape"]], [math.prod(entries[name]["shape"])])
        )
    elif 0.8 <= way < 0.85:
        entries[rng.choice(("model.x", name + "_scale", name.replace("up", "down")))] = entries.pop(name)
    header = json.dumps(entries).encode() if way < 0.9 else damaged_json(rng, entries)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    model = nano.load(folder)
    assert model.nbytes < 40 * len(good)
    return "accepted"


@functools.cache
def small_base() -> tuple[Base, bytes]:
    """A model as an adapter's reader knows it, and the tensors of an adapter to it."""
    from test_loading import draw, in_their_names

    found, family = nano.read_config(CONFIG_JSON["llama"])
    large = layout.adaptable(found)
    base = Base(family.table(found), layout.layout(found), found.sizes, family.PREFIXES, large)
    with tempfile.TemporaryDirectory() as folder:
        weights = in_their_names(CONFIG_JSON["llama"], draw(CONFIG_JSON["llama"]))
        write_adapter(Path(folder), weights, "0.*(q_proj|v_proj|down_proj)", dora=True)
        return base, Path(folder, "adapter_model.safetensors").read_bytes()


SAID = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "use_dora": True, "bias": "none",
        "target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"q_proj": 4}, "lora_dropout": 0.1,
        "alpha_pattern": {"layers.0.*q_proj": 3, "^model.v_proj": 2}, "init_lora_weights": True, "modules_to_save": None,
        "layers_to_transform": [0], "task_type": "CAUSAL_LM"}  # fmt: skip


def adapter(rng: random.Random, folder: Path) -> str:
    """adapter_config.json and adapter_model.safetensors: pieces of the parameters' shapes, of numbers that are some."""
    base, good = small_base()
    data, said = good, json.dumps(SAID).encode()
    if rng.random() < 0.5:
        said = damaged_json(rng, SAID)
    elif rng.random() < 0.7:
        length = 8 + int.from_bytes(good[:8], "little")
        header = damaged_json(rng, json.loads(good[8:length]))
        data = len(header).to_bytes(8, "little") + header + good[length:]
    else:
        data = damage_bytes(rng, good)
    (folder / "adapter_config.json").write_bytes(said)
    (folder / "adapter_model.safetensors").write_bytes(data)
    found = read_adapter(folder, base)
    for path, (a, b, magnitude) in found.pieces.items():
        count, shape = base.large[path], base.shape(path)
        assert a.shape[1:] == shape[count:] and b.shape == (*shape[:count], len(a)), path
        assert np.isfinite(a).all() and np.isfinite(b).all() and a.nbytes + b.nbytes < 20 * len(data)
        assert magnitude is None or magnitude.shape == shape[:count]
    return "accepted"


DOORS: dict[str, Callable[[random.Random, Path], str]] = {
    "config": config, "safetensors": safetensors, "index": index, "tokenizer.json": tokenizer_json,
    "tokenizer.model": tokenizer_model, "vocab": vocab_files, "ranks": ranks, "tekken": tekken, "template": template,
    "generation_config": generation_config, "settings": settings,
    "gguf": gguf, "quantised": quantised, "adapter": adapter,
}  # fmt: skip
