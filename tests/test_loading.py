"""From a folder to a model: written checkpoints come back bit for bit, and every broken file is one clear error."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from models import COMPOSITE, CONFIG_JSON, FURTHER, GPT2, LLAMA, RELATED, random_model
from safetensors.numpy import save_file
from tokenizers_like import trained

import nanollm_jax as nano
from nanollm_jax import params
from nanollm_jax.families import FAMILIES
from nanollm_jax.weights.rows import rearrange
from nanollm_jax.weights.source import find

STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PREFIX = dict.fromkeys(CONFIG_JSON | FURTHER | RELATED | COMPOSITE, "model.")
PREFIX |= dict.fromkeys(("gpt2", "gptj", "gpt_bigcode"), "transformer.")
PREFIX |= {"gpt_neox": "gpt_neox.", "mistral3": "language_model.model."}


def draw(config_json, dtype="float32"):
    """{path: array} for a config, without a program to compile."""
    rng = np.random.default_rng(7)
    shapes = params.shapes(nano.read_config(config_json)[0])
    return {path: rng.standard_normal(shape).astype(STORED[dtype]) for path, shape in shapes.items()}


def in_their_names(config_json, flat, prefix=None):
    """Our parameters -> the family's tensors, its table read backwards."""
    config, family = nano.read_config(config_json)
    prefix = PREFIX[config_json["model_type"]] if prefix is None else prefix
    tensors = {}
    for row in family.table(config):
        if row.instead:
            continue
        left, _, right = row.axes.partition("->")
        piece = flat[row.path][row.piece()]
        inner = [letter for letter in (right or left).split() if letter != "1"]  # our axes, those of length 1 left out
        piece = piece.reshape([config.sizes[letter] for letter in inner])
        tensor = rearrange(piece, f"{' '.join(inner)} -> {left}", config.sizes)
        name = row.name if row.outside else prefix + row.name
        # rows that take parts of one tensor stand in the order of their parts
        tensors[name] = tensor if name not in tensors else np.concatenate([tensors[name], tensor], axis=row.part[0])
    return tensors


def write(folder, config_json, tensors=None, shards=1, **files):
    """A checkpoint on disk; files: the text or the values of other JSON files, by their stem."""
    folder.mkdir(exist_ok=True)
    tensors = in_their_names(config_json, draw(config_json)) if tensors is None else tensors
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
        for file in set(where.values()):
            save_file({name: tensor for name, tensor in tensors.items() if where[name] == file}, folder / file)
        files["model.safetensors.index"] = {"metadata": {}, "weight_map": where}
    for stem, content in {"config": config_json, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.json").write_text(text)
    return folder


def same(model, flat, dtype):
    loaded = params.flatten(model.params)
    assert list(loaded) == list(flat)
    for path, array in flat.items():
        assert isinstance(loaded[path], jax.Array) and loaded[path].dtype == jnp.dtype(dtype), path
        np.testing.assert_array_equal(np.asarray(loaded[path]), array.astype(STORED[dtype]), err_msg=path)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_of_a_checkpoint_for_images_the_text_model_is_loaded(tmp_path, prefix):
    """Both namings in the wild, beside tensors of the half that sees."""
    text = FURTHER["gemma3_text"]
    flat = draw(text)
    tensors = in_their_names(text, flat, prefix)
    eyes = "model." if prefix.startswith("model.") else ""
    tensors |= {f"{eyes}vision_tower.x.weight": np.ones(3), f"{eyes}multi_modal_projector.y": np.ones(2)}
    values = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 3}}
    same(nano.load(write(tmp_path / "model", values, tensors), dtype="float32"), flat, "float32")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("prefixed", [True, False], ids=["prefix", "bare"])
@pytest.mark.parametrize("family", CONFIG_JSON)
def test_what_is_written_comes_back_bit_for_bit(tmp_path, family, prefixed, stored, shards):
    values = CONFIG_JSON[family]
    flat = draw(values, stored)
    tensors = in_their_names(values, flat, None if prefixed else "")
    folder = write(tmp_path, values, tensors, shards)
    for dtype in {"float32", stored}:
        model = nano.load(folder, dtype=dtype)
        same(model, flat, dtype)
        assert model.config == nano.read_config(values)[0]
    assert (model.tokenizer, model.defaults) == (None, nano.Defaults())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CONFIG_JSON)
def test_tied_and_untied_models_come_back(tmp_path, family, tied):
    values = CONFIG_JSON[family] | {"tie_word_embeddings": tied}
    flat = draw(values)
    same(nano.load(write(tmp_path, values), dtype="float32"), flat, "float32")
    assert ("unembedding.tokens" in flat) != tied


@pytest.mark.parametrize("values", (FURTHER | RELATED | COMPOSITE).values(), ids=FURTHER | RELATED | COMPOSITE)
def test_every_further_family_comes_back(tmp_path, values):
    same(nano.load(write(tmp_path, values), dtype="float32"), draw(values), "float32")


def test_a_fused_tensor_of_another_height_is_refused(tmp_path):
    tensors = in_their_names(FURTHER["phi3"], draw(FURTHER["phi3"]))
    name = "model.layers.1.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name][:-1]
    with pytest.raises(nano.CheckpointError, match=rf"{name}' has shape \[63, 32\], expected \[64, 32\]"):
        nano.load(write(tmp_path, FURTHER["phi3"], tensors))


def test_tensors_that_older_files_carry_are_left_alone(tmp_path):
    tensors = in_their_names(GPT2, draw(GPT2)) | {
        "transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 256, 256), np.uint8)),
        "transformer.h.1.attn.masked_bias": np.array(-1e4, np.float32),
    }
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    same(nano.load(write(tmp_path, GPT2, tensors), dtype="float32"), draw(GPT2), "float32")
    tensors = in_their_names(LLAMA, draw(LLAMA))
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    same(nano.load(write(tmp_path, LLAMA, tensors), dtype="float32"), draw(LLAMA), "float32")


@pytest.mark.parametrize("family", CONFIG_JSON)
@pytest.mark.parametrize("prefixed", [True, False], ids=["prefix", "bare"])
def test_a_tied_table_stored_twice_with_different_numbers_is_refused(tmp_path, family, prefixed):
    """Which one is meant is not ours to say; the versions of the reference disagree."""
    values = CONFIG_JSON[family] | {"tie_word_embeddings": True}
    tensors = in_their_names(values, draw(values), None if prefixed else "")
    embedding = next(name for name in tensors if re.search("wte|embed_tokens", name))
    copy = tensors[embedding].copy()
    same(
        nano.load(write(tmp_path, values, tensors | {"lm_head.weight": copy}), dtype="float32"), draw(values), "float32"
    )
    copy[-1, -1] += 1
    folder = write(tmp_path, values, tensors | {"lm_head.weight": copy})
    with pytest.raises(
        nano.CheckpointError, match=rf"{embedding} and lm_head\.weight are different; set tie_word_embedd"
    ):
        nano.load(folder)
    write(tmp_path, values, tensors | {"lm_head.weight": copy[:-1]})
    with pytest.raises(nano.CheckpointError, match="are different"):
        nano.load(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_a_tied_table_may_be_stored_as_the_head_alone(tmp_path, family):
    """As safetensors.torch.save_model writes it: of two names of one tensor, the first of the alphabet."""
    values = (CONFIG_JSON | FURTHER)[family] | {"tie_word_embeddings": True}
    tensors = in_their_names(values, draw(values))
    embedding = next(name for name in tensors if re.search("wte|embed_tokens|embed_in", name))
    head = "embed_out.weight" if family == "gpt_neox" else "lm_head.weight"
    folder = write(tmp_path, values, tensors | {head: tensors[embedding]})
    same(nano.load(folder, dtype="float32"), draw(values), "float32")
    tensors[head] = tensors.pop(embedding)
    same(nano.load(write(tmp_path, values, tensors), dtype="float32"), draw(values), "float32")
    del tensors[head]
    with pytest.raises(nano.CheckpointError, match=rf"1 param.*: embedding\.tokens \(tensor {embedding}\); check"):
        nano.load(write(tmp_path, values, tensors), dtype="float32")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("prefix", "name"),
    [("language_model.model.", "language_model.lm_head.weight"), ("language_model.model.", "lm_head.weight"),
     ("model.language_model.", "lm_head.weight"), ("model.", "lm_head.weight"), ("", "lm_head.weight")],
)  # fmt: skip
def test_the_head_of_a_model_for_images(tmp_path, tied, prefix, name):
    text = FURTHER["gemma3_text"] | {"tie_word_embeddings": tied}
    flat = draw(text)
    tensors = in_their_names(text, flat, prefix)
    tensors.pop("lm_head.weight", None)
    tensors[name] = flat["embedding.tokens" if tied else "unembedding.tokens"]
    values = COMPOSITE["gemma3"] | {"text_config": text, "tie_word_embeddings": tied}
    same(nano.load(write(tmp_path, values, tensors), dtype="float32"), flat, "float32")


def all_in_one(tensors, stack):
    """A mixture's tensors with all experts of a layer in one. stack: (layer's name, gate, up, down) -> the new ones."""
    found, rest = {}, {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.experts\.(\d+)\.(\w+)\.weight", name):
            found.setdefault(match[1], {}).setdefault(match[3], []).append(tensor)
        else:
            rest[name] = tensor
    for where, experts in found.items():
        gate, up, down = (
            np.stack(experts[kind]) for kind in sorted(experts, key=lambda kind: (kind in ("w2", "down_proj"), kind))
        )
        rest |= stack(where, gate, up, down)
    return rest


def by_transformers_5(where, gate, up, down):
    where = where.replace("block_sparse_moe", "mlp")
    return {f"{where}.experts.gate_up_proj": np.concatenate([gate, up], 1), f"{where}.experts.down_proj": down}


def by_mlx(where, gate, up, down):
    names = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    return {f"{where}.switch_mlp.{name}.weight": tensor for name, tensor in names.items()}


@pytest.mark.parametrize("stack", [by_transformers_5, by_mlx])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_all_experts_may_lie_in_one_tensor(tmp_path, family, stack):
    values = FURTHER[family]
    tensors = all_in_one(in_their_names(values, draw(values)), stack)
    if stack is by_transformers_5:
        tensors = {name.replace("block_sparse_moe.gate", "mlp.gate"): tensor for name, tensor in tensors.items()}
    assert not [name for name in tensors if re.search(r"experts\.\d", name)]
    same(nano.load(write(tmp_path, values, tensors), dtype="float32"), draw(values), "float32")


def test_experts_may_lie_inputs_first_or_last(tmp_path):
    """As they are published, and as the reference writes them, under the same names."""
    values = COMPOSITE["qwen3_vl_moe"]
    tensors = in_their_names(values, draw(values))
    up = "model.layers.0.mlp.experts.gate_up_proj"
    assert tensors[up].shape == (5, 32, 24)
    turned = {name: array.swapaxes(1, 2) if ".experts." in name else array for name, array in tensors.items()}
    for stored in (tensors, turned):
        same(nano.load(write(tmp_path, values, stored), dtype="float32"), draw(values), "float32")


def test_a_model_is_copied_and_neither_pickled_nor_copied_deeply():
    model = random_model("llama")
    twin = copy.copy(model)
    assert twin.params is model.params and twin.engines is not model.engines
    for take in (pickle.dumps, copy.deepcopy):
        with pytest.raises(
            nano.RequestError, match=r"neither pickled nor copied deeply; save\(model, folder\) writes it"
        ):
            take(model)


# files


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(nano.CheckpointError, match=re.escape(str(tmp_path / "none"))):
        nano.load(tmp_path / "none")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(nano.ConfigError, match=rf"{tmp_path}/config\.json not found; expected a checkpoint folder"):
        nano.load(tmp_path)


BROKEN = {
    "empty": (b"", "the file is empty"),
    "half": (b'{"model_type": "llama",', "is not valid JSON"),
    "html": (b"<html>404</html>", "is not valid JSON"),
    "deep": (b"[" * 200_000, "is not valid JSON"),
    "long number": (b'{"vocab_size": ' + b"1" * 5000 + b"}", "is not valid JSON"),
    "list": (b'["llama"]', "found a JSON list, expected an object"),
    "null": (b"null", "found a JSON NoneType, expected an object"),
    "text": (b'"llama"', "found a JSON str, expected an object"),
    "utf-16": ('{"model_type": "llama"}'.encode("utf-16"), "is not valid JSON .'utf-8' codec"),
    "latin-1": ('{"name": "é"}'.encode("latin-1"), "is not valid JSON .'utf-8' codec"),
    "deep, but not for Python": (
        b'{"name": ' + b"[" * 80 + b"]" * 80 + b"}",
        "is not valid JSON .it is nested more than 64",
    ),
    "one key, two values": (b'{"name": 1, "name": 2}', "is not valid JSON .'name' is there twice"),
    "half a character": (b'{"name": "\\ud800"}', "is not valid JSON .*surrogates not allowed"),
    "lists without end": (b'{"name": [' + b"[]," * 4_000_000 + b"[]]}", "more than 4,000,000 objects and lists"),
    "beyond any size": (b'{"name": "%b"}' % (b"x" * 2**24), "has more than 16,777,216 bytes"),
}


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_json_file_is_named(tmp_path, kind, file):
    content, words = BROKEN[kind]
    write(tmp_path, LLAMA)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(nano.ConfigError, match=rf"^{tmp_path}/{file}.*{words}"):
        nano.load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_folder_in_place_of_a_file_is_named(tmp_path, file):
    write(tmp_path, LLAMA)
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).mkdir()
    with pytest.raises(nano.ConfigError, match=rf"^{tmp_path}/{file}: cannot be read"):
        nano.load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pipe_or_an_endless_device_among_the_files_is_named(tmp_path, file):
    write(tmp_path, LLAMA, config=LLAMA | {"vocab_size": 999}, tokenizer=trained("phi3"), tokenizer_config={})
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        (tmp_path / file).unlink(missing_ok=True)
        make(tmp_path / file)
        with pytest.raises(nano.NanoLLMError, match=rf"^{tmp_path}/{file}: is a pipe, a socket or a device"):
            nano.load(tmp_path)


def test_a_link_that_leads_nowhere_is_no_missing_file(tmp_path):
    """As from a cache that lost its files: without this the model would load without its tokenizer."""
    write(tmp_path, LLAMA)
    (tmp_path / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(
        nano.TokenizerError, match=r"tokenizer\.json: cannot be read \(Too many levels of symbolic links"
    ):
        nano.load(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-has-this-name/x", "a\0b", "\ud800"])
def test_a_name_that_no_folder_can_have(name):
    with pytest.raises(nano.CheckpointError):
        nano.load(name)


def test_a_config_that_claims_more_than_the_files_hold_is_refused_before_any_work_in_proportion(tmp_path, monkeypatch):
    write(tmp_path, LLAMA)
    monkeypatch.setattr(FAMILIES["llama"], "table", lambda config: pytest.fail("a row was made for every claim"))
    for claims in ({"num_hidden_layers": 9_999}, {"vocab_size": 2**31 - 1}, {"intermediate_size": 2**30}):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA | claims))
        with pytest.raises(nano.CheckpointError, match=r"layers of width .* tensors in .* check that config"):
            nano.load(tmp_path)


def test_parameters_that_no_memory_holds_are_refused_before_they_are_read(tmp_path, monkeypatch):
    """A file may be nearly all hole, and the machine would take on more than it has."""
    write(tmp_path, LLAMA)
    monkeypatch.setattr(os, "sysconf", lambda name: 2**8)  # 256 pages of 256 bytes
    with pytest.raises(
        nano.CheckpointError, match=r"its parameters take 0.0 GB, this machine has 0.0 GB of memory; load"
    ):
        nano.load(tmp_path, dtype="float32")


def test_a_folder_in_place_of_the_weights_is_named(tmp_path):
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(nano.CheckpointError, match=rf"^{tmp_path}"):
        nano.load(tmp_path)


def test_what_the_config_refuses_names_its_file(tmp_path):
    write(tmp_path, LLAMA, config=LLAMA | {"sliding_window": 7})
    with pytest.raises(nano.ConfigError, match=rf"^{tmp_path}/config\.json: not understood: sliding_window = 7"):
        nano.load(tmp_path)
    write(tmp_path, LLAMA, config=LLAMA | {"num_key_value_heads": 4})
    with pytest.raises(nano.ConfigError, match=rf"^{tmp_path}/config\.json: num_heads 6 is not a multiple"):
        nano.load(tmp_path)


@pytest.mark.parametrize("make", [str, lambda path: path], ids=["text", "path"])
def test_a_folder_may_be_a_text_or_a_path(tmp_path, make):
    same(nano.load(make(write(tmp_path, LLAMA)), dtype="float32"), draw(LLAMA), "float32")


def test_a_folder_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "model", LLAMA)
    same(nano.load("~/model", dtype="float32"), draw(LLAMA), "float32")


# weights that do not fit the config; the many ways to break a file are in test_weights_*.py


def change_missing(tensors):
    del tensors["model.norm.weight"]


def change_extra(tensors):
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)


def change_shape(tensors):
    tensors["model.norm.weight"] = np.ones(47, np.float32)


def change_dtype(tensors):
    tensors["model.norm.weight"] = np.ones(48, np.int8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_missing, r"1 parameter\(s\) have no tensor: final_norm\.scale \(tensor model\.norm\.weight\)"),
        (change_extra, r"1 tensor\(s\) were not used: model\.layers\.0\.self_attn\.q_norm\.weight"),
        (change_shape, r"'model\.norm\.weight' has shape \[47\], expected \[48\] for final_norm\.scale"),
        (change_dtype, r"'model\.norm\.weight' has dtype I8, expected one of F32, F16, BF16"),
    ],
)
def test_tensors_that_do_not_fit_are_one_error(tmp_path, change, words):
    tensors = in_their_names(LLAMA, draw(LLAMA))
    change(tensors)
    with pytest.raises(nano.CheckpointError, match=rf"^{tmp_path}.*{words}"):
        nano.load(write(tmp_path, LLAMA, tensors))


def test_a_config_of_another_size_is_refused(tmp_path):
    write(tmp_path, LLAMA, config=LLAMA | {"num_hidden_layers": 3})
    with pytest.raises(
        nano.CheckpointError, match=r"16 parameter\(s\) have no tensor: layers\.2\.attention_norm\.scale"
    ):
        nano.load(tmp_path)
    write(tmp_path, LLAMA, config=LLAMA | {"num_hidden_layers": 1})
    with pytest.raises(nano.CheckpointError, match=r"16 tensor\(s\) were not used: model\.layers\.1\."):
        nano.load(tmp_path)


# dtype and revision


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("auto", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), (jnp.bfloat16, "bfloat16")],
)
def test_the_dtype_is_the_users_and_not_the_files(tmp_path, dtype, name):
    folder = write(tmp_path, LLAMA | {"torch_dtype": "float16"})
    same(nano.load(folder, dtype=dtype), draw(LLAMA), name)


@pytest.mark.parametrize("dtype", ["float64", "int3", None, "best", 32])
def test_an_unknown_dtype_is_refused_before_anything_is_looked_for(tmp_path, dtype):
    with pytest.raises(nano.ConfigError, match=r"dtype .* is not supported; known: auto, float32, bfloat16, float16"):
        nano.load(tmp_path / "none", dtype=dtype)


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(nano.CheckpointError, match=rf"{tmp_path}: is a folder, which has no revision 'main'"):
        nano.load(write(tmp_path, LLAMA), revision="main")


def test_the_bundled_model_has_no_revision():
    with pytest.raises(nano.CheckpointError, match="revision was given without a hub id"):
        nano.load(revision="main")


# tokenizer


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    write(tmp_path, LLAMA)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(find(None) / file, tmp_path / file)
    with pytest.raises(
        nano.TokenizerError, match="the tokenizer has ids up to 2047, the model's vocabulary ends at 100"
    ):
        nano.load(tmp_path)


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_was_added_past_the_vocabulary_is_an_error_where_it_is_used(tmp_path, special):
    library = tokenizers.Tokenizer.from_str(trained("qwen"))
    V = library.get_vocab_size()
    library.add_tokens([tokenizers.AddedToken("<image>", special=special, normalized=False)])
    settings = {
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if boxed %}<image>{% endif %}"
    }
    write(tmp_path, LLAMA | {"vocab_size": V}, tokenizer_config=settings)
    library.save(str(tmp_path / "tokenizer.json"))
    model = nano.load(tmp_path)
    assert model.tokenizer.vocab_size == V + 1
    messages = [{"role": "user", "content": "Hi"}]
    assert (
        nano.generate(model, "Hi", max_new_tokens=1).token_ids == nano.chat(model, messages, max_new_tokens=1).token_ids
    )
    uses = [lambda: nano.chat(model, messages, max_new_tokens=1, variables={"boxed": True})]
    if not special:
        uses += [lambda: nano.generate(model, "a <image>", max_new_tokens=1), lambda: nano.score(model, "a <image>")]
    for use in uses:
        with pytest.raises(nano.RequestError, match=rf"the text has the token '<image>', {V}, and ids .* to {V - 1}"):
            use()
    assert nano.generate(model, "Hi", max_new_tokens=1, stop="<image>").finish_reason == "length"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"])
def test_an_adapter_is_named_and_not_applied(tmp_path, name):
    write(tmp_path, LLAMA)
    (tmp_path / name).write_text("{}")
    with pytest.warns(nano.NanoLLMWarning, match=rf"{name}: an adapter is not applied.*load it beside its model"):
        same(nano.load(tmp_path, dtype="float32"), draw(LLAMA), "float32")
    (tmp_path / "config.json").unlink()
    with pytest.raises(nano.CheckpointError, match=rf"found {name} and no config\.json: this is an adapter without"):
        nano.load(tmp_path)


@pytest.mark.parametrize("size", [2048, 2050])
def test_a_vocabulary_as_large_as_the_tokenizer_or_larger_loads(tmp_path, size):
    write(tmp_path, LLAMA | {"vocab_size": size})
    shutil.copy(find(None) / "tokenizer.model", tmp_path)
    model = nano.load(tmp_path)
    assert model.tokenizer.vocab_size == 2048
    assert model.params["embedding"]["tokens"].shape == (size, 48)


def test_a_checkpoint_without_tokenizer_says_so_where_text_comes_in(tmp_path):
    model = nano.load(write(tmp_path, LLAMA))
    assert model.tokenizer is None
    with pytest.raises(nano.RequestError, match="no tokenizer files"):
        nano.generate(model, "Once", max_new_tokens=1)


def test_a_damaged_tokenizer_is_an_error_and_not_a_model_without_one(tmp_path):
    write(tmp_path, LLAMA)
    (tmp_path / "tokenizer.model").write_bytes(b"not a tokenizer")
    with pytest.raises(nano.TokenizerError, match=rf"{tmp_path}/tokenizer\.model"):
        nano.load(tmp_path)


# what the files say of generating


def defaults(folder, generation=None, **config):
    files = {} if generation is None else {"generation_config": generation}
    return nano.load(write(folder, LLAMA, config=LLAMA | config, **files)).defaults


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({}, None, ()),
        ({}, {}, ()),
        (dict(eos_token_id=None), dict(eos_token_id=None), ()),
        (dict(eos_token_id=-1), dict(eos_token_id=[3, -1]), (3,)),
        (dict(eos_token_id=2), None, (2,)),
        (dict(eos_token_id=0), dict(eos_token_id=0), (0,)),
        (dict(eos_token_id=2), dict(eos_token_id=None), (2,)),
        (dict(eos_token_id=None), dict(eos_token_id=5), (5,)),
        (dict(eos_token_id=9), dict(eos_token_id=[5, 9, 3]), (3, 5, 9)),
        (dict(eos_token_id=[7, 2]), dict(eos_token_id=[]), (2, 7)),
        (dict(eos_token_id=[100, 101, 50256]), dict(eos_token_id=128001), (100,)),  # past the vocabulary: never drawn
    ],
)
def test_end_ids_come_from_both_files(tmp_path, config, generation, ids):
    assert defaults(tmp_path, generation, **config).eos_ids == ids


@pytest.mark.parametrize(
    ("named", "settings", "ends"),
    [
        # a list, as chat-tuned checkpoints have
        (["<|im_end|>", "<|endoftext|>"], {}, {"<|im_end|>", "<|endoftext|>"}),
        ([], {"eos_token": "<|im_end|>"}, {"<|im_end|>"}),  # only tokenizer_config.json says it
        ([], {}, {"<|endoftext|>"}),  # nobody does: the usual one
    ],
)
def test_a_turn_ends_in_generate_and_in_chat(tmp_path, named, settings, ends):
    library = tokenizers.Tokenizer.from_str(trained("qwen"))
    config = LLAMA | {"vocab_size": library.get_vocab_size(), "num_hidden_layers": 1}
    generation = {"eos_token_id": [library.token_to_id(name) for name in named]}
    files = {"tokenizer": trained("qwen"), "tokenizer_config": settings, "generation_config": generation}
    model = nano.load(write(tmp_path / "model", config, **files))
    template = nano.ChatTemplate(tmp_path, {"default": "{{ messages[0].content }}"}, model.tokenizer)
    model = dataclasses.replace(model, chat_template=template)
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        drawn = nano.Sampling(temperature=0.0, logit_bias={library.token_to_id(name): 1e4})
        for answer in (
            nano.generate(model, "Hello", max_new_tokens=2, sampling=drawn),
            nano.chat(model, [{"role": "user", "content": "Hello"}], max_new_tokens=2, sampling=drawn),
        ):
            assert (answer.finish_reason == "stop") == (len(answer.token_ids) == 1) == (name in ends), name


@pytest.mark.parametrize("wrong", ["2", "</s>", 2.0, True, -2, [1, "2"], [[2]], {"id": 2}])
def test_end_ids_that_are_none_are_refused_in_either_file(tmp_path, wrong):
    with pytest.raises(
        nano.ConfigError, match=rf"^{tmp_path}/config\.json: eos_token_id is .*expected a token id, a list"
    ):
        defaults(tmp_path, eos_token_id=wrong)
    with pytest.raises(nano.ConfigError, match=rf"^{tmp_path}/generation_config\.json: eos_token_id is "):
        defaults(tmp_path, dict(eos_token_id=wrong))


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        (None, nano.Sampling(temperature=0.0)),
        (dict(temperature=0.6, top_p=0.9), nano.Sampling(temperature=0.0)),
        (dict(do_sample=False, top_k=5, temperature=0.6), nano.Sampling(temperature=0.0)),
        (dict(do_sample=None, repetition_penalty=1.2), nano.Sampling(temperature=0.0, repetition_penalty=1.2)),
        (dict(do_sample=True), nano.Sampling()),
        (dict(do_sample=True, temperature=0.6, top_p=0.9), nano.Sampling(temperature=0.6, top_p=0.9)),
        (dict(do_sample=True, top_k=50, min_p=0.05), nano.Sampling(top_k=50, min_p=0.05)),
        (
            dict(do_sample=True, temperature=None, top_k=None, repetition_penalty=1.1),
            nano.Sampling(repetition_penalty=1.1),
        ),
        (dict(do_sample=True, temperature=0), nano.Sampling(temperature=0)),
        (dict(do_sample=True, temperature=0.0, top_k=-1, top_p=0), nano.Sampling(temperature=0.0)),
        (dict(top_k=-1, top_p=0), nano.Sampling(temperature=0.0)),
        (dict(do_sample=True, top_k=-1), nano.Sampling()),
        (
            dict(suppress_tokens=[3, 9999], begin_suppress_tokens=[4]),
            nano.Sampling(temperature=0.0, logit_bias={3: -np.inf}, begin_suppress_tokens=(4,)),
        ),
        (
            dict(bad_words_ids=[[5], [2]], sequence_bias=[[[6], 1.5]], eos_token_id=2),
            nano.Sampling(temperature=0.0, logit_bias={5: -np.inf, 6: 1.5}),
        ),  # an end of the text is no bad word
        (
            dict(forced_eos_token_id=2, min_new_tokens=3, no_repeat_ngram_size=2, typical_p=0.5),
            nano.Sampling(temperature=0.0, forced_eos_token_id=2, min_new_tokens=3, no_repeat_ngram_size=2),
        ),
        (dict(do_sample=True, typical_p=0.5), nano.Sampling(typical_p=0.5)),
        (dict(do_sample=True, max_length=4096, typical_p=1.0, transformers_version="4.42"), nano.Sampling()),
    ],
)
def test_sampling_is_the_files_where_it_samples_and_greedy_elsewhere(tmp_path, generation, sampling):
    assert defaults(tmp_path, generation).sampling == sampling


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        (dict(temperature=-0.1), "temperature is -0.1; expected 0 or more"),
        (dict(temperature="0.6"), "temperature is '0.6'"),
        (dict(temperature=[0.6]), r"temperature is \[0.6\]; expected a number"),
        (dict(temperature=True), "temperature is True"),
        (dict(top_k=-5), "top_k is -5"),
        (dict(top_k=2.5), "top_k is 2.5"),
        (dict(top_k=10**12), "top_k is 1000000000000; expected less than"),
        (dict(top_p=0), "top_p is 0; expected above 0"),
        (dict(top_p=1.5), "top_p is 1.5"),
        (dict(min_p=2), "min_p is 2"),
        (dict(repetition_penalty=0.0), "repetition_penalty is 0.0; expected above 0"),
        (dict(do_sample=False, repetition_penalty=-1), "repetition_penalty is -1"),
        (
            dict(do_sample=False, repetition_penalty=[1.1, 1.2]),
            r"repetition_penalty is \[1.1, 1.2\]; expected a number",
        ),
        (dict(suppress_tokens="a"), "suppress_tokens is 'a'"),
        (dict(bad_words_ids=[5]), r"bad_words_ids has 5; expected a list of token ids"),
        (dict(sequence_bias=[[5, 1.0]]), r"sequence_bias has \[5, 1.0\]; expected a list of token ids"),
        (dict(sequence_bias=[[[5], "x"]]), "logit_bias of token 5 is 'x'"),
        (dict(stop_strings=[""]), r"stop_strings is \[''\]"),
        (dict(temperature=1e39), "temperature is 1e\\+39"),
        (dict(do_sample="false"), "do_sample is 'false'; expected true or false"),
        (dict(do_sample=1), "do_sample is 1; expected true or false"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_file(tmp_path, generation, words):
    with pytest.raises(nano.ConfigError, match=rf"^{tmp_path}/generation_config\.json: {words}"):
        defaults(tmp_path, {"do_sample": True} | generation)


def test_what_is_not_obeyed_is_named_once(tmp_path):
    generation = dict(
        num_beams=4, bad_words_ids=[[3, 4]], top_h=0.4, renormalize_logits=True, num_beam_groups=1, guidance_scale=None
    )
    with pytest.warns(
        UserWarning, match=r"generation_config.json: num_beams, bad_words_ids of several tokens cannot be"
    ):
        assert defaults(tmp_path, generation | dict(stop_strings=["a", "b"])).stop == ("a", "b")


# the record


def test_a_model_of_ones_own():
    config, _ = nano.read_config(LLAMA)
    model = nano.Model(config, params.nest(draw(LLAMA)))
    assert (model.tokenizer, model.defaults.eos_ids, model.defaults.sampling.temperature) == (None, (), 0.0)
    assert f"{params.count(config):,} parameters" in repr(model) and "vocabulary 101," in repr(model)
    assert f"{sum(array.nbytes for array in params.flatten(model.params).values()):,} bytes" in repr(model)


def test_a_mesh_changes_no_count():
    """Nothing here divides by 5: heads, widths and vocabulary are made up there, and none of that is counted."""
    config, _ = nano.read_config(LLAMA)
    one = nano.Model(config, params.nest(draw(LLAMA)))
    many = nano.shard(one, nano.make_mesh(1, 5))
    assert many.num_parameters == one.num_parameters == params.count(config) < params.count(many.config)
    less, more = (f"{model.nbytes:,} bytes of float32" for model in (one, many))
    assert many.nbytes > one.nbytes and repr(many) == repr(one).replace(less, f"{more}, on {{'dp': 1, 'tp': 5}}")


@pytest.mark.parametrize("changes", [dict(num_hidden_layers=3), dict(vocab_size=102), dict(tie_word_embeddings=True)])
def test_params_that_do_not_match_their_config_are_refused(changes):
    config, _ = nano.read_config(LLAMA | changes)
    with pytest.raises(nano.CheckpointError, match=r"parameters do not match the config: .*expected"):
        nano.Model(config, params.nest(draw(LLAMA)))


@pytest.mark.parametrize("wrong", [{}, None, []])
def test_what_are_no_params_is_refused(wrong):
    with pytest.raises(nano.CheckpointError, match="expected a tree as init_params makes it"):
        nano.Model(nano.read_config(LLAMA)[0], wrong)


def test_the_bundled_folder_is_whole():
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}
    assert needed <= set(os.listdir(find(None)))


def test_every_family_is_tested_here():
    assert {FAMILIES[name] for name in PREFIX} == set(FAMILIES.values())
    assert all(prefix in FAMILIES[name].PREFIXES for name, prefix in PREFIX.items())
