"""A model in a GGUF file is the model in its checkpoint: same config, same numbers, same ids, same answers."""

from __future__ import annotations

import dataclasses
import json
import shutil

import gguf
import gguf_files
import jax
import numpy as np
import pytest
from agreement import agree, difference
from models import CONFIG_JSON, FURTHER, forward
from safetensors.numpy import load_file
from test_loading import draw, in_their_names
from test_loading import write as write_folder
from test_quantised import arrays_meanwhile, part_of
from tokenizers_like import trained

import nanollm_jax as nano
from nanollm_jax import cli, params
from nanollm_jax.errors import CheckpointError, ConfigError, TokenizerError
from nanollm_jax.families.gguf import config_of
from nanollm_jax.measure.plan import make_plan
from nanollm_jax.measure.roofline import step_bytes
from nanollm_jax.ops.rope import frequencies
from nanollm_jax.params import flatten
from nanollm_jax.sources import nbytes_of_few, source_at
from nanollm_jax.tokenizer import load_tokenizer
from nanollm_jax.tokenizer.gguf import files_of, from_metadata
from nanollm_jax.weights import gguf as weights_gguf
from nanollm_jax.weights import gguf_tensors
from nanollm_jax.weights.gguf import open_gguf
from nanollm_jax.weights.gguf_tensors import GGUFCheckpoint
from nanollm_jax.weights.source import find

# what a GGUF file cannot say is left out: a window of llama's, Qwen's and StarCoder's
FAMILIES = {
    "llama": CONFIG_JSON["llama"], "gpt2": CONFIG_JSON["gpt2"],
    "mistral": CONFIG_JSON["mistral"] | {"sliding_window": None},
    "qwen2": FURTHER["qwen2"] | {"use_sliding_window": False, "sliding_window": None},
    "starcoder2": FURTHER["starcoder2"] | {"sliding_window": None},
    "gemma2": FURTHER["gemma2"] | {"query_pre_attn_scalar": 12},
    "gemma3_text": FURTHER["gemma3_text"] | {"query_pre_attn_scalar": 12},
    "qwen3": FURTHER["qwen3"], "phi3": FURTHER["phi3"], "gemma": FURTHER["gemma"],
}  # fmt: skip


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled model as a GGUF file, with tokenizer and template."""
    folder, path = find(None), tmp_path_factory.mktemp("gguf") / "stories.gguf"
    config = json.loads((folder / "config.json").read_text())
    writer = gguf_files.opened(path, config)
    gguf_files.sizes(writer, config)
    gguf_files.tensors(writer, config, load_file(folder / "model.safetensors"), "F32")
    gguf_files.pieces(writer, folder / "tokenizer.model")
    writer.add_float32("general.sampling.temp", 0.7)
    writer.add_int32("general.sampling.top_k", 20)
    writer.add_eot_token_id(5)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    return gguf_files.close(writer)


def test_the_bundled_model_writes_the_same(bundled):
    ours, theirs = nano.load(), nano.load(bundled)
    assert ours.config == theirs.config and theirs.folder == bundled
    assert theirs.defaults == nano.Defaults((2, 5), nano.Sampling(temperature=0.7, top_k=20))
    for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(one, other)
    for text in ("Once upon a time", " two  spaces\n\tand é 漢 🦙 ", "<s> </s> [INST]", ""):
        assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
    assert theirs.chat_template.encode([{"role": "user", "content": "Hi"}]) == theirs.tokenizer.encode("Hi", bos=False)


def test_a_model_is_written_as_a_checkpoint(bundled, tmp_path, capsys):
    """With config.json, tokenizer, template and defaults of what the file says."""
    assert cli.run(["convert", str(tmp_path / "to"), "--model", str(bundled), "--dtype", "float32"]) == 0
    assert "MB, float32" in capsys.readouterr().out
    ours, theirs = nano.load(bundled), nano.load(tmp_path / "to")
    assert ours.config == theirs.config and ours.defaults == theirs.defaults
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    for text in ("Once upon a time", " two  spaces\n\tand é 漢 🦙 ", "<s> </s> [INST]", ""):
        assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
    assert ours.chat_template.sources == theirs.chat_template.sources


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_the_same_from_either(family, tmp_path):
    values = FAMILIES[family]
    named = in_their_names(values, draw(values))
    folder = tmp_path / "folder"
    write_folder(folder, values, named)
    ours, theirs = nano.load(folder), nano.load(gguf_files.convert(tmp_path / "x.gguf", values, named))
    plain = lambda config: dataclasses.replace(  # noqa: E731
        config, layers=tuple(dataclasses.replace(layer, rope=None) for layer in config.layers)
    )
    assert plain(ours.config) == plain(theirs.config)
    if family not in ("llama", "phi3"):  # whose scaling is given by its factors
        assert ours.config == theirs.config
    for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        if family.startswith("gemma"):  # 1 + scale has lost its last bits
            agree(np.asarray(other), np.asarray(one), 1e-6)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_rope_that_is_given_by_its_factors_turns_the_same(family, tmp_path):
    values = FAMILIES[family]
    ours, _ = nano.read_config(values)
    file = open_gguf(gguf_files.convert(tmp_path / "x.gguf", values, in_their_names(values, draw(values))))
    theirs, _ = nano.read_config(config_of(file))
    assert file.tensors["rope_freqs.weight" if family == "llama" else "rope_factors_long.weight"].shape
    ropes = [config.layers[0].rope for config in (ours, theirs)]
    expected, found = (frequencies(ours.rotary_dim or ours.head_dim, one.theta, one.scaling) for one in ropes)
    agree(found[0], np.broadcast_to(expected[0], found[0].shape), 1e-6, size=found[0])
    assert found[1] == pytest.approx(expected[1], rel=1e-6)


def test_blocks_are_decoded_some_rows_at_a_time(tmp_path, monkeypatch):
    """All types that are read, against the package's own decoding of the whole; the numbers of blocks are drawn."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    whole = {}
    for name, (kind, count, nbytes) in weights_gguf.BLOCKS.items():
        blocks = rng.integers(0, 64, (7, 3 * nbytes), np.uint8)  # small bytes: no half-precision scale is infinite
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType(kind))
        whole[name] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind))
        assert whole[name].shape == (7, 3 * count) and np.std(whole[name]) > 0
    writer.add_tensor("BF16", rng.integers(0, 100, (4, 6), np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    file = open_gguf(gguf_files.close(writer))
    monkeypatch.setattr(gguf_tensors, "CHUNK", 1600)
    checkpoint = GGUFCheckpoint(file.path, dict(file.tensors), file.tensors)
    assert set(whole) == {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"}
    for name, numbers in whole.items():
        np.testing.assert_array_equal(checkpoint.read(name), numbers)
        if name not in ("Q2_K", "Q3_K"):  # which are decoded alone
            agree(checkpoint.groups(name).weight(), numbers, 1e-6)
    assert checkpoint.read("BF16").dtype == gguf_tensors.FLOATS["BF16"] and checkpoint.read("BF16").shape == (4, 3)


@pytest.mark.parametrize(("kind", "apart"), [("F16", 1e-3), ("BF16", 4e-3), ("Q8_0", 8e-3), ("Q4_0", 0.2)])
def test_fewer_bits_are_near(kind, apart, tmp_path):
    values = FAMILIES["qwen3"] | {"intermediate_size": 64, "head_dim": 16}
    named = in_their_names(values, draw(values))
    model = nano.load(gguf_files.convert(tmp_path / "x.gguf", values, named, kind), dtype="float32")
    exact = draw(values)["layers.1.mlp.down"]
    found = np.asarray(model.params["layers"][1]["mlp"]["down"])
    assert 1e-5 < difference(found, exact) < apart


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_stay_as_they_are(family, tmp_path):
    """Rows of heads in the family's order, inputs first or not; with a dtype that is named they are decoded."""
    values = FAMILIES[family] | (
        {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
        if family == "llama"
        else {"n_embd": 64, "n_head": 4, "n_inner": 96}
    )
    # as small as those of real models: products in C round activations to 16 bits, which large weights make larger
    named = {name: np.float32(0.1) * tensor for name, tensor in in_their_names(values, draw(values)).items()}
    file = gguf_files.convert(tmp_path / "x.gguf", values, named, "Q8_0")
    ours, expected = nano.load(file), nano.load(file, dtype="float32")
    assert ours.nbytes < 0.45 * expected.nbytes and "bytes of int8," in repr(ours)
    tokens = np.arange(12)[None]
    logits = [
        forward(one.params, tokens, nano.init_cache(one.config, 1, 16, "float32"), config=one.config)[0]
        for one in (ours, expected)
    ]
    agree(np.asarray(logits[0]), np.asarray(logits[1]), 1e-4)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(one, marks=[] if one == "Q4_K" else pytest.mark.parity) for one in [*weights_gguf.BLOCKS, "F16"]],
)
def test_blocks_come_to_each_device_of_a_mesh_in_its_part(kind, tmp_path, monkeypatch):
    """None is whole on one of them on its way; there they are what they are on one device, and as large as planned."""
    values = FAMILIES["llama"] | {
        "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_hidden_layers": 1, "rope_scaling": None, "vocab_size": 64,
    }  # fmt: skip
    file = gguf_files.convert(tmp_path / "x.gguf", values, in_their_names(values, draw(values)), kind)
    one = nano.load(file)
    _, alone = arrays_meanwhile(monkeypatch)
    model = nano.load(file, mesh=nano.make_mesh(2, 4))
    assert alone == [] and part_of(model.params) < 1.05 * model.nbytes / 4
    source = source_at(file)
    few = nbytes_of_few(source.tensors(), *source.config())
    for tp, found in ((1, one.nbytes), (4, part_of(model.params))):
        assert make_plan(one.config, tp=tp, dtype="float32", few=few).weights == found
    kept = params.nbytes_kept(one.params)
    assert kept.items() >= few.items() and sum(kept.values()) == one.nbytes
    assert 0.9 < step_bytes(one.config, 1, 0, one.dtype, kept) / one.nbytes <= 1  # of the table a vector alone
    ours, expected = flatten(model.params), flatten(one.params)
    kept = [path for path, weight in ours.items() if not isinstance(weight, jax.Array)]
    assert bool(kept) is (kind not in ("Q2_K", "Q3_K", "F16"))  # which are decoded, or no blocks
    for path in kept or ours:
        found, whole = (x if isinstance(x, jax.Array) else jax.jit(lambda x: x.decoded())(x)
                        for x in (ours[path], expected[path]))  # fmt: skip
        np.testing.assert_array_equal(found, whole)


def spelled(text):
    return len(text.encode()).to_bytes(8, "little") + text.encode()


def entry(key, kind, value):
    return spelled(key) + kind.to_bytes(4, "little") + value


def tensor(name, lengths, kind, offset):
    axes = len(lengths).to_bytes(4, "little") + b"".join(n.to_bytes(8, "little") for n in lengths)
    return spelled(name) + axes + kind.to_bytes(4, "little") + offset.to_bytes(8, "little")


def header(entries=(), tensors=(), version=3, counts=None):
    counts = counts or (len(tensors), len(entries))
    begin = b"GGUF" + version.to_bytes(4, "little") + b"".join(n.to_bytes(8, "little") for n in counts)
    return b"".join((begin, *entries, *tensors))


A = tensor("a", [4], 0, 0)
BROKEN = {
    "empty": (b"", "begins with|cannot be read"),
    "short": (b"GGUF\3", "no GGUF file"),
    "another": (b"PK\3\4" + bytes(40), "no GGUF file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "version": (header(version=9), "version 9, expected 2 or 3"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "tensors": (header(counts=(2**63, 0)), "the number of tensors is .*more than"),
    "entries": (header(counts=(0, 2**40)), "the number of entries is .*more than"),
    "a name beyond": (header([(2**50).to_bytes(8, "little") + b"ab" + bytes(20)]), "the length of the name"),
    "a text beyond": (header([entry("a", 8, (2**64 - 1).to_bytes(8, "little"))]), "the length of 'a'"),
    "a list beyond": (header([entry("a", 9, (6).to_bytes(4, "little") + (2**61).to_bytes(8, "little"))]), "the length of 'a'"),
    "a list of lists": (header([entry("a", 9, (9).to_bytes(4, "little") + bytes(8))]), "a list of the type 9"),
    "a type": (header([entry("a", 13, bytes(8))]), "has the type 13"),
    "a bool": (header([entry("a", 7, b"\7")]), "expected true or false"),
    "not UTF-8": (header([entry("a", 8, spelled("b")[:8] + b"\xff")]), "not UTF-8"),
    "twice": (header([entry("a", 4, bytes(4))] * 2), "one that is new"),
    "alignment": (header([entry("general.alignment", 4, (24).to_bytes(4, "little"))]), "a power of two"),
    "no alignment": (header([entry("general.alignment", 4, bytes(4))]), "a power of two"),
    "cut": (header([], [A])[:-3], "goes beyond|more than"),
    "no data": (header([], [A]), "of 16 bytes begins at 0"),
    "axes": (header([], [tensor("a", [1] * 5, 0, 0)]) + bytes(64), "5 axes"),
    "no axes": (header([], [tensor("a", [], 0, 0)]) + bytes(64), "0 axes"),
    "no length": (header([], [tensor("a", [4, 0], 0, 0)]) + bytes(64), "lengths above 0"),
    "a block cut": (header([], [tensor("a", [31], 8, 0)]) + bytes(128), "a multiple of 32"),
    "overflow": (header([], [tensor("a", [2**32, 2**32], 0, 0)]) + bytes(64), "begins at 0"),
    "beyond": (header([], [tensor("a", [4], 0, 2**63)]) + bytes(64), "begins at"),
    "crooked": (header([], [tensor("a", [4], 0, 8)]) + bytes(64), "a multiple of 32"),
    "overlap": (header([], [tensor("a", [16], 0, 0), tensor("b", [4], 0, 32)]) + bytes(128), "behind 64"),
    "a part": (header([entry("split.count", 2, (3).to_bytes(2, "little"))]), "is part of 3, expected a name like"),
    "parts": (header([entry("split.count", 8, spelled("3"))]), "split.count"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_length_is_checked_against_the_file(name, tmp_path):
    data, message = BROKEN[name]
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(tmp_path / "x.gguf")


def test_what_cannot_be_computed_is_said(tmp_path):
    values = FAMILIES["llama"]
    named = in_their_names(values, draw(values))

    def refused(change):
        writer = gguf_files.opened(tmp_path / "x.gguf", values)
        gguf_files.sizes(writer, values)
        change(writer)
        gguf_files.tensors(writer, values, named, "F32")
        with pytest.raises((CheckpointError, ConfigError, TokenizerError)) as found:
            nano.load(gguf_files.close(writer))
        return str(found.value)

    assert "llama.expert_count = 8" in refused(lambda writer: writer.add_expert_count(8))
    assert "rope.dimension_count is 4; expected 8" in refused(lambda w: w.kv_data[0].update({
        "llama.rope.dimension_count": gguf.gguf_writer.GGUFValue(4, gguf.GGUFValueType.UINT32)}))  # fmt: skip
    unused = refused(lambda w: w.add_tensor("extra", np.ones(3, np.float32)))
    assert "1 tensor(s) were not used: extra" in unused and "another of the model's GGUF files" in unused
    assert "known: llama, gpt2" in refused(lambda w: w.add_tokenizer_model("t5"))

    def vocabulary(**changes):
        def change(writer):
            writer.add_tokenizer_model("gpt2")
            for key, value in ({"pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]} | changes).items():
                getattr(writer, {"pre": "add_tokenizer_pre", "tokens": "add_token_list", "merges": "add_token_merges",
                                 "types": "add_token_types", "bos": "add_bos_token_id"}[key])(value)  # fmt: skip

        return refused(change)

    assert "tokenizer.ggml.pre is 'new'; expected a way to split text that is known" in vocabulary(pre="new")
    assert "two tokens that join to a third" in vocabulary(merges=["a c"])
    assert "each once" in vocabulary(tokens=["a", "a", "ab"])
    assert "3 numbers, one for each token" in vocabulary(types=[1, 1])
    assert "an id below 3" in vocabulary(bos=7)


@pytest.mark.parametrize(("name", "pre"), [("gpt2", "gpt-2")])
def test_byte_level_ids_are_those_of_the_original(name, pre, data, tmp_path):
    folder = data / "tokenizers" / name
    check_merges(folder, json.loads((folder / "tokenizer.json").read_text()), pre, data, tmp_path)


@pytest.mark.parametrize(
    ("kind", "pre"), [("llama3", "llama-bpe"), ("qwen", "qwen2"), ("nemo", "tekken"), ("starcoder", "starcoder")]
)
def test_trained_ids_are_those_of_the_original(kind, pre, data, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content := trained(kind))
    check_merges(tmp_path, json.loads(content), pre, data, tmp_path)


def texts(data):
    cases = (data / "tokenizers/cases/ggml-vocab-gpt-2.gguf.inp").read_bytes().decode()
    return [*cases.split("\n__ggml_vocab_test__\n"), "e\u0301 \u212b", "<|endoftext|>", "1234 12345", "\r\n\r\n x"]


def check_merges(folder, tree, pre, data, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    gguf_files.merges(writer, tree, pre)
    path = gguf_files.close(writer)
    ours, theirs = load_tokenizer(folder), from_metadata(path, open_gguf(path).metadata)
    for text in texts(data):
        assert theirs.encode(text, bos=False) == ours.encode(text, bos=False), text
    assert (theirs.special_ids, theirs.vocab_size) == (ours.special_ids, ours.vocab_size)
    assert set(theirs.added) >= set(ours.added)
    check_written(path, theirs, data, tmp_path / "written")


def check_written(path, tokenizer, data, folder):
    """The files that a GGUF file's tokenizer is written down as are read as it is."""
    folder.mkdir()
    for name, content in files_of(path, open_gguf(path).metadata).items():
        (folder / name).write_bytes(content)
    again = load_tokenizer(folder)
    for text in texts(data):
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids and again.decode(ids) == tokenizer.decode(ids), text
    for name in ("special_ids", "vocab_size", "bos_id", "eos_id", "add_bos", "added"):
        assert getattr(again, name) == getattr(tokenizer, name), name


@pytest.mark.parametrize("file", ["llama2/tokenizer.model", "mistral/tokenizer.model.v1"])
def test_sentencepiece_ids_are_those_of_the_original(file, data, tmp_path):
    shutil.copy(data / "tokenizers" / file, tmp_path / "tokenizer.model")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    gguf_files.pieces(writer, tmp_path / "tokenizer.model")
    path = gguf_files.close(writer)
    ours, theirs = load_tokenizer(tmp_path), from_metadata(path, open_gguf(path).metadata)
    for text in texts(data):
        assert theirs.encode(text) == ours.encode(text), text
    assert (theirs.special_ids, theirs.bos_id, theirs.eos_id) == (ours.special_ids, ours.bos_id, ours.eos_id)
    check_written(path, theirs, data, tmp_path / "written")


def test_a_model_in_parts_is_one_model(tmp_path):
    values = FAMILIES["qwen3"]
    named = in_their_names(values, draw(values))
    whole = gguf_files.convert(tmp_path / "whole.gguf", values, named)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen3", split_max_tensors=15)
    gguf_files.sizes(writer, values)
    gguf_files.tensors(writer, values, named, "F32")
    gguf_files.close(writer)
    files = sorted(tmp_path.glob("x-*.gguf"))
    assert len(files) > 2
    one, other = nano.load(whole), nano.load(files[0])
    assert one.config == other.config
    for ours, theirs in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(CheckpointError, match=r"is part 2 of \d; give the first, x-00001-of-"):
        nano.load(files[1])
    shutil.copy(files[0], files[1])
    with pytest.raises(CheckpointError, match="as another part does"):
        nano.load(files[0])
    files[1].unlink()
    with pytest.raises(CheckpointError, match=r"x-00002-of-.*missing"):
        nano.load(files[0])
