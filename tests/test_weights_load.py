import json
import math
import struct
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from rich.progress import Progress
from safetensors.numpy import save_file

from nanollm_jax import params as parameters
from nanollm_jax.dtypes import resolve_weights
from nanollm_jax.errors import CheckpointError
from nanollm_jax.ops.int8 import quantize
from nanollm_jax.weights import Row, load, open_checkpoint

SIZES = {"V": 11, "D": 5, "N": 3, "K": 2, "H": 7}
LAYOUT = {"embedding": "V D", "wq": "D N H", "wo": "N H D", "scale": "D"}
ROWS = [
    Row("embedding", "embed.weight", "V D -> V D"),
    Row("wq", "q_proj.weight", "(N H) D -> D N H"),
    Row("wo", "o_proj.weight", "D (N H) -> N H D"),
    Row("scale", "norm.weight", "D"),
]
SHAPES = {"embed.weight": (11, 5), "q_proj.weight": (21, 5), "o_proj.weight": (5, 21), "norm.weight": (5,)}
BF16 = np.dtype(ml_dtypes.bfloat16)


def tensors(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def save(folder, stored):
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in stored.items()}, folder / "model.safetensors")
    return folder


def loaded(folder, *arguments, **settings):
    return load.load_params(open_checkpoint(folder), *arguments, **settings)


def expected(stored):
    """The parameters of ROWS by NumPy alone."""
    q, o = stored["q_proj.weight"], stored["o_proj.weight"]
    return {
        "embedding": stored["embed.weight"],
        "wq": q.reshape(3, 7, 5).transpose(2, 0, 1),
        "wo": o.reshape(5, 3, 7).transpose(1, 2, 0),
        "scale": stored["norm.weight"],
    }


@pytest.mark.parametrize("stored_dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_parameter_arrives_rearranged_and_cast(tmp_path, stored_dtype, dtype):
    stored = tensors(stored_dtype)
    params = loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, dtype)
    assert list(params) == list(LAYOUT)
    for path, tensor in expected(stored).items():
        assert isinstance(params[path], jax.Array)
        assert params[path].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(params[path]), tensor.astype(dtype))


def test_a_float32_is_rounded_to_the_nearest_bfloat16(tmp_path):
    """1 + 2^-8 lies halfway between 1 and 1 + 2^-7 and goes to the even one; a little more goes up."""
    save_file({"x": np.array([1 + 2**-8, 1 + 2**-8 + 2**-20, 3e38, -0.0], np.float32)}, tmp_path / "model.safetensors")
    x = loaded(tmp_path, [Row("x", "x", "A")], {"x": "A"}, {"A": 4}, "bfloat16")["x"]
    np.testing.assert_array_equal(np.asarray(x).view(np.uint16), [0x3F80, 0x3F81, 0x7F62, 0x8000])


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("axes", ["A B -> A B", "A B -> B A", "(A) B -> A B"])
def test_weights_do_not_change_with_their_file(tmp_path, dtype, axes):
    """A mapped file that device_put took over instead of copying it would show through."""
    path, right = tmp_path / "model.safetensors", axes.split("->")[1].strip()
    stored = np.random.default_rng(0).standard_normal((64, 1024)).astype(dtype)
    name = "BF16" if dtype == BF16 else "F32"
    header = json.dumps({"x": {"dtype": name, "shape": [64, 1024], "data_offsets": [0, stored.nbytes]}}).ljust(4096 - 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + stored.tobytes())  # the tensor begins a page
    x = loaded(tmp_path, [Row("x", "x", axes)], {"x": right}, {"A": 64, "B": 1024}, dtype)["x"]
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(stored.nbytes))
    np.testing.assert_array_equal(np.asarray(x), stored if right == "A B" else stored.T)


def test_both_leftovers_are_in_one_error(tmp_path):
    stored = tensors() | {"extra.weight": np.ones(2, np.float32)}
    del stored["o_proj.weight"]
    with pytest.raises(CheckpointError) as error:
        loaded(save(tmp_path, stored), ROWS, LAYOUT | {"bias": "D"}, SIZES, "float32")
    assert "1 tensor(s) were not used: extra.weight;" in str(error.value)
    assert "2 parameter(s) have no tensor: wo (tensor o_proj.weight), bias (no row" in str(error.value)


def test_a_long_list_of_leftovers_is_cut(tmp_path):
    stored = tensors() | {f"extra.{i:02}": np.ones(1, np.float32) for i in range(30)}
    with pytest.raises(CheckpointError, match=r"30 tensor.*: extra\.00, .*extra\.07 and 22 more; check that config"):
        loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float32")


def test_a_tensor_of_a_parameter_that_the_layout_lacks_is_a_leftover(tmp_path):
    layout = {path: letters for path, letters in LAYOUT.items() if path != "scale"}
    with pytest.raises(CheckpointError, match=r"1 tensor\(s\) were not used: norm\.weight"):
        loaded(save(tmp_path, tensors()), ROWS, layout, SIZES, "float32")


@pytest.mark.parametrize(("pattern", "ok"), [(r"h\.\d+\.mask", True), (r"h\.\d+", False), (r"mask", False)])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_ignored_tensors_match_as_a_whole_with_or_without_their_prefix(tmp_path, pattern, ok, prefix):
    stored = {prefix + name: tensor for name, tensor in tensors().items()} | {f"{prefix}h.3.mask": np.ones(2, np.uint8)}
    for ignore in (pattern, rf"(model\.)?{pattern}"):
        arguments = (save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float32")
        if ok:
            assert loaded(*arguments, ignore=[ignore], prefixes=["model.", ""])["scale"].shape == (5,)
        else:
            with pytest.raises(CheckpointError, match=r"not used: .*h\.3\.mask"):
                loaded(*arguments, ignore=[ignore], prefixes=["model.", ""])


@pytest.mark.parametrize("prefix", ["", "model.", "transformer."])
def test_the_prefix_is_the_one_that_finds_most_and_a_bare_name_serves_too(tmp_path, prefix):
    stored = tensors()
    renamed = {name if name == "embed.weight" else prefix + name: tensor for name, tensor in stored.items()}
    params = loaded(save(tmp_path, renamed), ROWS, LAYOUT, SIZES, "float32", prefixes=("transformer.", "model.", ""))
    for path, tensor in expected(stored).items():
        np.testing.assert_array_equal(np.asarray(params[path]), tensor)


def test_a_name_with_and_without_prefix_leaves_the_bare_one_over(tmp_path):
    stored = {f"model.{name}": tensor for name, tensor in tensors().items()} | {"norm.weight": np.ones(5, np.float32)}
    with pytest.raises(CheckpointError, match=r"1 tensor\(s\) were not used: norm\.weight"):
        loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float32", prefixes=("model.", ""))


def test_a_tensor_outside_the_base_model_has_no_prefix_or_a_shorter_one(tmp_path):
    stored = {f"whole.model.{name}": tensor for name, tensor in tensors().items()}
    rows, layout = [*ROWS, Row("head", "head.weight", "V D", outside=True)], LAYOUT | {"head": "V D"}
    table = np.random.default_rng(1).standard_normal((11, 5)).astype(np.float32)
    for name in ("head.weight", "whole.head.weight", "whole.model.head.weight"):
        folder = save(tmp_path, stored | {name: table})
        found = loaded(folder, rows, layout, SIZES, "float32", prefixes=("model.", "whole.model.", ""))
        np.testing.assert_array_equal(found["head"], table)
    with pytest.raises(
        CheckpointError, match=r"1 parameter\(s\) have no tensor: head \(tensor head\.weight\); config\.json has"
    ):
        loaded(save(tmp_path, stored), rows, layout, SIZES, "float32", prefixes=("model.", "whole.model.", ""))


def test_another_way_to_store_a_parameter_serves_where_the_first_is_not_there(tmp_path):
    """Three matrices, each by itself, all in one, or all in one and turned."""
    w = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
    rows = [Row("w", f"w.{e}", "M D -> 1 M D", (0, e, e + 1)) for e in range(3)]
    rows += [Row("w", "w.all", "E M D", instead=1), Row("w", "w.turned", "E D M -> E M D", instead=2)]
    each = {f"w.{e}": w[e] for e in range(3)}
    for stored in (each, {"w.all": w}, {"w.turned": w.transpose(0, 2, 1)}):
        found = loaded(save(tmp_path, stored), rows, {"w": "E M D"}, {"E": 3, "M": 4, "D": 5}, "float32")
        np.testing.assert_array_equal(found["w"], w)
    with pytest.raises(CheckpointError, match=r"1 tensor\(s\) were not used: w\.all"):
        loaded(save(tmp_path, each | {"w.all": w}), rows, {"w": "E M D"}, {"E": 3, "M": 4, "D": 5}, "float32")
    del each["w.1"]
    with pytest.raises(CheckpointError, match=r"1 parameter\(s\) have no tensor: w \(tensor w\.1\); check"):
        loaded(save(tmp_path, each), rows, {"w": "E M D"}, {"E": 3, "M": 4, "D": 5}, "float32")


def test_of_two_ways_to_store_a_parameter_under_one_name_the_shape_tells(tmp_path):
    w = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
    rows = [Row("w", "w.all", "E D M -> E M D"), Row("w", "w.all", "E M D", instead=1)]
    for stored in (w, w.transpose(0, 2, 1)):
        found = loaded(save(tmp_path, {"w.all": stored}), rows, {"w": "E M D"}, {"E": 3, "M": 4, "D": 5}, "float32")
        np.testing.assert_array_equal(found["w"], w)
    with pytest.raises(CheckpointError, match=r"'w\.all' has shape \[3, 4, 4\], expected \[3, 5, 4\] for w"):
        loaded(save(tmp_path, {"w.all": w[..., :4]}), rows, {"w": "E M D"}, {"E": 3, "M": 4, "D": 5}, "float32")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("q_proj.weight_scale_inv", np.float32), ("q_proj.qweight", np.int32), ("q_proj.scales", np.float16),
     ("q_proj.weight.absmax", np.float32), ("q_proj.weight_packed", np.int32), ("experts.down_proj_blocks", np.uint8),
     ("q_proj.weight.quant_state.bitsandbytes__nf4", np.uint8), ("lm_head.SCB", np.float32), ("k_proj.k_scale", np.float32)],
)  # fmt: skip
def test_quantised_weights_are_known_by_what_lies_beside_them(tmp_path, name, dtype):
    with pytest.raises(CheckpointError, match=rf"has {name}, as quantised weights do, .*take the original checkpoint"):
        loaded(save(tmp_path, tensors() | {name: np.ones(2, dtype)}), ROWS, LAYOUT, SIZES, "float32")


@pytest.mark.parametrize("dtype", ["float32", BF16])
def test_float64_is_rounded_once(tmp_path, dtype):
    stored = tensors(np.float64)
    found = loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, dtype)
    for path, array in expected(stored).items():
        np.testing.assert_array_equal(found[path], array.astype(dtype))
    stored["norm.weight"][2] = 1e39
    with pytest.raises(CheckpointError, match=r"'norm\.weight' has values beyond (float32|bfloat16)'s 3\.[34]"):
        loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, dtype)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_tensors_that_share_a_parameter_are_put_together(tmp_path, dtype):
    """Three queries of a group, then its key, then its value, for each of two key/value heads."""
    rng, sizes = np.random.default_rng(3), {"D": 5, "K": 2, "G": 3, "Q": 5, "H": 7}
    q, k, v = (rng.standard_normal((heads * 7, 5)).astype(dtype) for heads in (6, 2, 2))
    rows = [Row("wqkv", "q", "(K G H) D -> K G H D", (1, 0, 3)), Row("wqkv", "k", "(K H) D -> K 1 H D", (1, 3, 4)),
            Row("wqkv", "v", "(K H) D -> K 1 H D", (1, 4, 5))]  # fmt: skip
    folder = save(tmp_path, {"q": q, "k": k, "v": v})
    for run_dtype in ("float32", dtype):
        wqkv = np.asarray(loaded(folder, rows, {"wqkv": "K Q H D"}, sizes, run_dtype)["wqkv"])
        for head in range(2):
            np.testing.assert_array_equal(wqkv[head, :3].reshape(21, 5), q[21 * head : 21 * head + 21])
            np.testing.assert_array_equal(wqkv[head, 3], k[7 * head : 7 * head + 7])
            np.testing.assert_array_equal(wqkv[head, 4], v[7 * head : 7 * head + 7])
    save(tmp_path, {"q": q, "k": k[:13], "v": v})
    with pytest.raises(CheckpointError, match=r"'k' has shape \[13, 5\], expected \[14, 5\] for wqkv"):
        loaded(folder, rows, {"wqkv": "K Q H D"}, sizes, dtype)


@pytest.mark.parametrize("most", [1, 40, 64, 10**6])
@pytest.mark.parametrize(("shape", "outputs"), [((5, 7), 1), ((3, 2, 4, 5), 3), ((1, 1, 3), 2), ((5, 3, 7), 1)])
def test_cuts_cover_a_parameter_in_parts_of_one_size(monkeypatch, shape, outputs, most):
    monkeypatch.setattr(load, "PART", most)
    seen, sizes = np.zeros(shape, int), set()
    for cut in load.cuts(shape, outputs):
        seen[cut] += 1
        sizes.add(seen[cut].shape)
    (size,) = sizes
    inputs = shape[outputs:]
    assert seen.min() == 1 and size[outputs:] == inputs
    assert math.prod(size) <= max(most, math.prod(inputs)) and (most < 10**6 or size == shape)


@pytest.mark.parametrize("most", [6, 20, 50])
def test_scales_of_parts_are_those_of_the_whole(tmp_path, monkeypatch, most):
    """Also where the inputs of a single output, several heads, are more than a part has numbers."""
    monkeypatch.setattr(load, "PART", most)
    row, weight = Row("wo", "o_proj.weight", "D (N H) -> D N H"), tensors()["o_proj.weight"]
    fill = parameters.filler(resolve_weights("int8", auto="float32"), 1)
    where = save(tmp_path, {"o_proj.weight": weight})
    found = loaded(where, [row], {"wo": "D N H"}, SIZES, "float32", fill={"wo": fill})["wo"]
    jax.tree.map(np.testing.assert_array_equal, found, quantize(weight.reshape(5, 3, 7), 1))


@pytest.mark.parametrize("most", [20, 60, 10**6])
def test_a_parameter_may_be_made_of_its_parts(tmp_path, monkeypatch, most):
    """Of those tensors alone that a part has something of, wherever a tensor's own piece begins."""
    monkeypatch.setattr(load, "PART", most)
    rng, sizes = np.random.default_rng(3), {"E": 3, "U": 2, "M": 4, "D": 5}
    stored = {f"{name}{e}": rng.standard_normal((4, 5)).astype(np.float32) for e in range(3) for name in "gu"}
    rows = [Row("up", f"{name}{e}", "M D -> 1 1 M D", ((0, e, e + 1), (1, u, u + 1))) for e in range(3)
            for u, name in enumerate("gu")]  # fmt: skip
    calls = []

    def fill(shape, parts):
        whole = np.zeros(shape, np.float32)
        for begin, part in parts(3):
            calls.append(part.size)
            whole[tuple(slice(a, a + n) for a, n in zip(begin, part.shape, strict=True))] = part
        return whole

    found = loaded(save(tmp_path, stored), rows, {"up": "E U M D"}, sizes, "float32", fill={"up": fill})["up"]
    expected = np.stack([np.stack([stored[f"g{e}"], stored[f"u{e}"]]) for e in range(3)])
    np.testing.assert_array_equal(found, expected)
    assert bool(calls) == (most < expected.size) and all(size <= most for size in calls)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_side_by_side_in_one_tensor_is_a_matter_of_axes(tmp_path, dtype):
    weight = np.random.default_rng(3).standard_normal((5, 63)).astype(dtype)  # D, and q k v of 3 heads of 7
    row, sizes = Row("wqkv", "c_attn", "D (Q K H) -> K Q H D"), {"D": 5, "K": 3, "Q": 3, "H": 7}
    wqkv = loaded(save(tmp_path, {"c_attn": weight}), [row], {"wqkv": "K Q H D"}, sizes, dtype)["wqkv"]
    for part in range(3):
        for head in range(3):
            begin = part * 21 + head * 7
            np.testing.assert_array_equal(np.asarray(wqkv[head, part]), weight[:, begin : begin + 7].T)


@pytest.mark.parametrize("shape", [(5, 21), (21, 6), (105,), (3, 7, 5)])
def test_a_mis_shaped_tensor_is_refused_with_both_shapes(tmp_path, shape):
    stored = tensors() | {"q_proj.weight": np.ones(shape, np.float32)}
    with pytest.raises(CheckpointError) as error:
        loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float32")
    for words in ("model.safetensors: tensor 'q_proj.weight'", f"{list(shape)}, expected [21, 5]", "config.json"):
        assert words in str(error.value)


@pytest.mark.parametrize("dtype", [np.int8, np.complex64])
def test_a_wanted_tensor_of_another_dtype_is_refused(tmp_path, dtype):
    stored = tensors() | {"q_proj.weight": np.ones((21, 5), dtype)}
    with pytest.raises(CheckpointError, match=r"'q_proj\.weight' has dtype (I8|C64), expected one of F32, F16, BF16"):
        loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float32")


def test_threads_put_parameters_where_and_say_what_one_after_the_other_would(tmp_path):
    """On the caller's device; of two tensors that cannot be, the first is named."""
    device, stored = jax.devices()[1], tensors()
    with jax.default_device(device):
        params = loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float32")
    assert [array.devices() for array in params.values()] == [{device}] * 4
    stored["q_proj.weight"][3, 2] = stored["o_proj.weight"][1, 1] = 70000
    with pytest.raises(CheckpointError, match=r"'q_proj\.weight' has values"):
        loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float16")


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_weights_are_not_loaded_as_what_cannot_hold_them(tmp_path, dtype):
    with pytest.raises(CheckpointError, match=f"cannot be loaded as {dtype}; expected float32"):
        loaded(save(tmp_path, tensors()), ROWS, LAYOUT, SIZES, dtype)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_a_value_that_float16_cannot_hold_is_refused(tmp_path, dtype):
    stored = tensors(dtype)
    stored["q_proj.weight"][3, 2] = 70000
    folder = save(tmp_path, stored)
    with pytest.raises(CheckpointError, match=r"'q_proj\.weight' has values beyond float16's 65504"):
        loaded(folder, ROWS, LAYOUT, SIZES, "float16")
    assert loaded(folder, ROWS, LAYOUT, SIZES, "bfloat16")["wq"][2, 0, 3] == 70144  # the nearest bfloat16


def test_a_table_that_disagrees_with_the_layout_is_a_bug_and_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"wq: .*'\(N H\) D -> D N H', do not end in the layout's 'N H D'"):
        loaded(save(tmp_path, tensors()), ROWS, LAYOUT | {"wq": "N H D"}, SIZES, "float32")


def test_nothing_is_read_before_everything_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "place", lambda *arguments: pytest.fail("a tensor was placed"))
    stored = tensors() | {"norm.weight": np.ones(6, np.float32)}
    with pytest.raises(CheckpointError, match="shape"):
        loaded(save(tmp_path, stored), ROWS, LAYOUT, SIZES, "float32")


@pytest.mark.parametrize(
    ("progress", "terminal", "seconds", "shown"),
    [
        (None, True, 2.5, True),
        (None, True, 1.5, False),
        (None, False, 2.5, False),
        (True, False, 0.0, True),
        (False, True, 2.5, False),
    ],
)
def test_the_bar_appears_on_a_terminal_after_two_seconds(tmp_path, monkeypatch, progress, terminal, seconds, shown):
    started, clock = [], iter([0.0] + [seconds] * 8)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(load.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(Progress, "start", lambda bar: started.append(bar))
    loaded(save(tmp_path, tensors()), ROWS, LAYOUT, SIZES, "float32", progress=progress)
    assert bool(started) == shown
    if shown:
        assert started[0].finished  # every parameter was counted


def test_a_quick_load_prints_nothing(tmp_path, capfd):
    loaded(save(tmp_path, tensors()), ROWS, LAYOUT, SIZES, "float32")
    assert capfd.readouterr() == ("", "")
