import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nanollm_jax.errors import CheckpointError, NanoLLMWarning
from nanollm_jax.weights import open_checkpoint

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [3], "data_offsets": [8, 20]}


def write(folder, header, data=b"", length=None, file="model.safetensors"):
    """A safetensors file by hand: any header (JSON or bytes), any data, and a header length that may lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / file).write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return folder


def refuse(folder, *said):
    """Opening must fail with one CheckpointError that says all of these."""
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_bit_of_every_float_is_read_as_it_was_written(tmp_path, dtype):
    bits = np.random.default_rng(0).integers(0, 256, (7, 5, np.dtype(dtype).itemsize), np.uint8)
    x, y = bits.view(dtype)[..., 0], bits[::-1].copy().view(dtype)[..., 0]
    save_file({"x": x, "y": y}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.names() == {"x", "y"}
    assert checkpoint.tensors["x"].shape == (7, 5)
    assert checkpoint.read("x").dtype == dtype
    np.testing.assert_array_equal(checkpoint.read("x").view(np.uint8).reshape(bits.shape), bits)
    np.testing.assert_array_equal(checkpoint.read("y").view(np.uint8).reshape(bits.shape), bits[::-1])


def test_tensors_are_found_wherever_the_header_puts_them(tmp_path):
    """Listed in another order than they lie, beside metadata, with an empty one, from an odd byte on."""
    data = np.arange(5, dtype=np.float32)
    empty = {"dtype": "F16", "shape": [0, 4], "data_offsets": [8, 8]}
    raw = json.dumps({"b": B, "__metadata__": {"format": "pt"}, "e": empty, "a": A}).encode()
    raw += b" " * (1 - len(raw) % 2)
    checkpoint = open_checkpoint(write(tmp_path, raw, data.tobytes()))
    assert checkpoint.tensors["a"].offset % 2 == 1
    np.testing.assert_array_equal(checkpoint.read("a"), data[:2])
    np.testing.assert_array_equal(checkpoint.read("b"), data[2:])
    assert checkpoint.read("e").shape == (0, 4)


def test_a_scalar_is_read(tmp_path):
    save_file({"x": np.array(2.5, np.float32)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).read("x") == 2.5


DAMAGED = {
    "truncated": ({"a": A}, bytes(7), None, "found 76 bytes, expected 77"),
    "with bytes behind": ({"a": A}, bytes(9), None, "found 78 bytes, expected 77"),
    "header longer than the file": ({"a": A}, bytes(8), 70, "found 77 bytes, expected 8 and a header of 70"),
    "header of petabytes": ({"a": A}, bytes(8), 2**60, "header of 1152921504606846976"),
    "no header": (b"", b"", None, "found 8 bytes"),
    "header cut off": (b'{"a":', bytes(8), None, "header is not JSON"),
    "header that is not text": (b'{"\xff": 1}', b"", None, "header is not JSON"),
    "header in UTF-16": (json.dumps({"a": A}).encode("utf-16"), bytes(8), None, "header is not JSON"),
    "header nested without end": (b"[" * 200_000, b"", None, "header is not JSON"),
    "header that is a list": ([A], bytes(8), None, "header is list"),
    "overlap": ({"a": A, "b": B | {"data_offsets": [4, 16]}}, bytes(16), None, "offsets 4:16, expected 8:20"),
    "gap": ({"a": A, "b": B | {"data_offsets": [12, 24]}}, bytes(24), None, "offsets 12:24, expected 8:20"),
    "gap in front": ({"a": A | {"data_offsets": [4, 12]}}, bytes(12), None, "offsets 4:12, expected 0:8"),
    "out of range": ({"a": A, "b": B | {"data_offsets": [8, 99]}}, bytes(20), None, "offsets 8:99, expected 8:20"),
    "backwards": ({"a": A | {"data_offsets": [8, 0]}}, bytes(8), None, "offsets 8:0"),
    "backwards, of integers": ({"m": A | {"dtype": "I64", "data_offsets": [8, 0]}}, bytes(8), None, "offsets 8:0"),
    "shape against offsets": ({"a": A | {"shape": [3]}}, bytes(8), None, "offsets 0:8, expected 0:12"),
    "dtype against offsets": ({"a": A | {"dtype": "F16"}}, bytes(8), None, "offsets 0:8, expected 0:4"),
    "negative shape": ({"a": A | {"shape": [-2, -1]}}, bytes(8), None, "data_offsets for a"),
    "fractional shape": ({"a": A | {"shape": [2.0]}}, bytes(8), None, "data_offsets for a"),
    "offset that is a truth value": ({"a": A | {"data_offsets": [False, 8]}}, bytes(8), None, "data_offsets for a"),
    "one offset": ({"a": A | {"data_offsets": [8]}}, bytes(8), None, "data_offsets for a"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8), None, "data_offsets for a"),
    "more axes than an array has": ({"a": A | {"shape": [1] * 150_000}}, bytes(8), None, "data_offsets for a"),
    "sizes of 310 digits": ({"a": A | {"shape": [10**309]}}, bytes(8), None, "data_offsets for a"),
    "one name, two places": (
        b'{"a": %b, "a": %b}' % (json.dumps(A).encode(), json.dumps(B).encode()),
        bytes(20),
        None,
        "'a' is there twice",
    ),
    "26 MB of metadata": (
        b'{"__metadata__": {"a": "%b"}}' % (b"x" * 26_000_000),
        b"",
        None,
        "a header of 26000027 (1 to 25000000)",
    ),
    "entry that is a number": ({"a": 3}, bytes(8), None, "data_offsets for a"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path, case):
    header, data, length, said = DAMAGED[case]
    write(tmp_path, header, data, length)
    refuse(tmp_path, str(tmp_path / "model.safetensors"), said, "download or copy it again")


@pytest.mark.parametrize("seed", range(4))
def test_we_refuse_what_the_reference_refuses_and_read_what_it_reads(tmp_path, seed):
    """Random bytes changed in a small file: never another error than ours, and the reference's verdict and values."""
    rng = np.random.default_rng(seed)
    save_file({"a": rng.standard_normal(3, np.float32), "bb": rng.standard_normal((2, 2), np.float32)}, tmp_path / "s")
    good, verdicts = (tmp_path / "s").read_bytes(), set()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.integers(1, 3)):
            data[rng.integers(len(data) - 20)] = rng.choice(list(b'0123456789,:[]{}" aF\x00'))
        (tmp_path / "model.safetensors").write_bytes(data)
        try:
            with safe_open(tmp_path / "model.safetensors", "numpy") as reference:
                names = reference.keys()
                expected = {name: reference.get_tensor(name) for name in names}
        except (SafetensorError, AttributeError):
            expected = None
        try:
            checkpoint = open_checkpoint(tmp_path)
            found = {name: checkpoint.read(name) for name in checkpoint.names()}
        except CheckpointError:
            found = None
        verdicts.add(found is None)
        assert (found is None) == (expected is None), bytes(data)
        if expected is not None:
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name], equal_nan=True) for name in found)
    assert verdicts == {True, False}


def test_a_git_lfs_pointer_says_what_it_is(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    refuse(tmp_path, "git-lfs pointer", "git lfs pull")


def test_integers_are_refused_only_when_wanted(tmp_path):
    save_file({"mask": np.ones(4, np.uint8), "x": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("x"), [1, 1])
    with pytest.raises(CheckpointError, match=r"'mask' has dtype U8, expected one of F32, F16, BF16"):
        checkpoint.read("mask")


def test_a_dtype_that_nobody_knows_yet_is_refused_only_when_wanted(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path, {"a": A, "q": B | {"dtype": "F1"}}, bytes(20)))
    assert checkpoint.read("a").shape == (2,)
    with pytest.raises(CheckpointError, match="'q' has dtype F1"):
        checkpoint.read("q")


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no tensor 'z'; it has a"):
        open_checkpoint(write(tmp_path, {"a": A}, bytes(8))).read("z")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refuse(tmp_path / "nowhere", "folder not found")


@pytest.mark.parametrize(
    ("files", "found", "remedy"),
    [
        ((), "found no weights", "point to a checkpoint's folder"),
        (("pytorch_model.bin",), "found pytorch_model.bin", "save_pretrained"),
        (("consolidated.00.pth", "a.pt"), "found a.pt, consolidated.00.pth", "save_pretrained"),
        (("model.gguf",), "found model.gguf", "point to a checkpoint's folder"),
        (("consolidated.safetensors",), "found consolidated.safetensors", "expected model.safetensors"),
    ],
)
def test_a_folder_without_our_weights_says_what_is_there_and_what_to_do(tmp_path, files, found, remedy):
    for file in files:
        (tmp_path / file).write_bytes(b"\x80\x02")
    refuse(tmp_path, found, remedy)


def sharded(folder, weight_map, **shards):
    """Shards a, b, ... with the names given, each tensor F32 [2] of its own value, and an index."""
    for shard, names in shards.items():
        save_file({name: np.full(2, ord(name), np.float32) for name in names}, folder / f"{shard}.safetensors")
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def test_shards_are_read_through_their_index(tmp_path):
    folder = sharded(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a="x", b="y")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.names() == {"x", "y"}
    np.testing.assert_array_equal(checkpoint.read("y"), [121, 121])


def test_shards_may_be_links_out_of_the_folder_as_in_the_hubs_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"x": np.full(2, 3, np.float32)}, tmp_path / "blobs" / "4d7a")
    (tmp_path / "snapshot" / "a.safetensors").symlink_to(tmp_path / "blobs" / "4d7a")
    folder = sharded(tmp_path / "snapshot", {"x": "a.safetensors"})
    np.testing.assert_array_equal(open_checkpoint(folder).read("x"), [3, 3])


def test_one_file_goes_before_an_index(tmp_path):
    sharded(tmp_path, {"x": "a.safetensors"}, a="x")
    write(tmp_path, {"a": A}, bytes(8))
    with pytest.warns(
        NanoLLMWarning, match=r"model\.safetensors is read, not model\.safetensors\.index\.json; take away"
    ):
        assert open_checkpoint(tmp_path).names() == {"a"}
    sharded(tmp_path, {"a": "model.safetensors"})  # an index of one file says the same
    assert open_checkpoint(tmp_path).names() == {"a"}
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.warns(NanoLLMWarning, match=r"model\.safetensors is read, not model-00001-of-00002\.safetensors"):
        assert open_checkpoint(tmp_path).names() == {"a"}


def test_a_shard_that_the_index_does_not_name_is_named(tmp_path):
    folder = sharded(tmp_path, {"x": "a.safetensors"}, a="x", **{"model-00001-of-00002": "y"})
    with pytest.warns(NanoLLMWarning, match=r"a\.safetensors is read, not model-00001-of-00002\.safetensors"):
        assert open_checkpoint(folder).names() == {"x"}


@pytest.mark.parametrize("first", [0, 1])
def test_shards_without_an_index_are_read_by_their_numbers(tmp_path, first):
    for n, name in enumerate("xyz"):
        file = tmp_path / f"model-{n + first:05}-of-00003.safetensors"
        save_file({name: np.full(2, n, np.float32)}, file)
    checkpoint = open_checkpoint(tmp_path)
    assert {name: checkpoint.read(name).tolist() for name in "xyz"} == {"x": [0, 0], "y": [1, 1], "z": [2, 2]}
    other = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"w": np.ones(2, np.float32)}, other)
    refuse(tmp_path, "shards of model-...-of-1, model-...-of-3 and no model.safetensors.index.json", "keep one")
    other.rename(tmp_path / "consolidated-00001-of-00001.safetensors")
    assert open_checkpoint(tmp_path).names() == set("xyz")
    file.unlink()
    refuse(tmp_path, f"has 2 shards of 3 (no {2 + first})", "download the rest")
    save_file({"x": np.ones(2, np.float32)}, file)
    refuse(tmp_path, "both hold x")


@pytest.mark.parametrize("name", ["model-00001-of-999999999.safetensors", "model-7-of-3.safetensors"])
def test_a_number_of_shards_that_is_only_claimed(tmp_path, name):
    save_file({"x": np.ones(2, np.float32)}, tmp_path / name)
    refuse(tmp_path, "has 1 shards of")


def test_the_description_of_a_quantisation_that_is_not_read_is_refused_before_the_tensors(tmp_path):
    write(tmp_path, {"a": A}, b"too short")
    (tmp_path / "quant_model_description.json").write_text('{"model_quant_type": "W8A8"}')
    refuse(tmp_path, "quant_model_description.json: describes quantised weights, which are not read", "--dtype int8")


@pytest.mark.parametrize(
    "shard", ["../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..\\a.safetensors", "c:a.safetensors"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, shard):
    inside = tmp_path / "folder"
    (inside / "sub").mkdir(parents=True)
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    refuse(sharded(inside, {"x": shard}), f"names {shard}", "expected shards in its own folder")


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = sharded(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a="x")
    refuse(folder, "index.json", "names the shard b.safetensors, which is not there")


def test_a_tensor_that_is_missing_in_its_shard_is_named(tmp_path):
    folder = sharded(tmp_path, {"x": "a.safetensors", "z": "a.safetensors", "y": "b.safetensors"}, a="x", b="yz")
    refuse(folder, "a.safetensors: lacks z")


def test_a_tensor_in_two_shards_is_named(tmp_path):
    folder = sharded(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a="x", b="xy")
    refuse(folder, "a.safetensors and b.safetensors both hold x")


def test_a_shard_with_a_name_that_no_file_can_have_is_missing(tmp_path):
    for name in ("a" * 300, "\ud800"):
        refuse(sharded(tmp_path, {"x": name}), "index.json: ")


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json", "a.safetensors"])
def test_a_pipe_among_the_files_is_not_waited_for(tmp_path, file):
    folder = sharded(tmp_path, {"x": "a.safetensors"}, a="x")
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    refuse(folder, f"{file}: is a pipe, a socket or a device, expected a file")


def test_a_link_that_leads_nowhere_is_not_taken_for_a_file_that_is_missing(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    refuse(sharded(tmp_path, {"x": "a.safetensors"}, a="x"), "model.safetensors: cannot be read (No such file")


def test_a_damaged_shard_is_named(tmp_path):
    folder = sharded(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a="x", b="y")
    (folder / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes()[:-1])
    refuse(folder, "b.safetensors: found", "expected")


@pytest.mark.parametrize(
    "index",
    [b"{", b"\xff\xfe{", b"[" * 200_000, b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"x": 1}}'],
)
def test_a_broken_index_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors\.index\.json: (is not valid JSON|found a JSON list|expected a)"
    ):
        open_checkpoint(tmp_path)
