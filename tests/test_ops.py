"""Each operation against a few lines of NumPy in float64."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree

from nanollm_jax.config import ACTIVATIONS
from nanollm_jax.kinds import Router, Sharpening
from nanollm_jax.ops import attention, embedding, group_product, groupwise_making, int8, mlp, moe, native, norm, rope
from nanollm_jax.ops.dot_product import Seen, dot_product
from nanollm_jax.ops.kept import some
from nanollm_jax.ops.linear import MANY, linear, product
from nanollm_jax.ropes import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling

rng = np.random.default_rng(0)

# each as one program: without jit every operation of theirs is compiled by itself
mixed = jax.jit(moe.moe, static_argnums=(3, 4, 5))
one_by_one, by_groups = (jax.jit(way, static_argnums=4) for way in (moe.dense, moe.grouped))
WAYS = {"dense": one_by_one, "grouped": by_groups}


def random(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_linear_adds_its_bias_once():
    x, w, b = random(2, 3, 5), random(4, 7, 5), random(4, 7)
    agree(linear(x, w, b), np.einsum("btd,nhd->btnh", x, w) + b)
    heads, back, b = random(2, 3, 4, 7), random(5, 4, 7), random(5)
    agree(linear(heads, back, b), np.einsum("btnh,dnh->btd", heads, back) + b)


@pytest.mark.parametrize("rows", [1, 2, 7, MANY - 1, MANY])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_to_multiply_is_the_same_product(rows, dtype):
    """One row, a few and many go through different kernels; bfloat16 operands, but float32 sums."""
    x, w = jnp.asarray(random(rows, 33), dtype), jnp.asarray(random(17, 33), dtype)
    ours = jax.jit(product)(x, w)
    assert ours.dtype == jnp.float32
    agree(ours, np.asarray(x, float) @ np.asarray(w, float).T)


def test_linear_accumulates_in_float32():
    """4096 ones in bfloat16 would stop growing at 256."""
    x, w = jnp.ones((1, 1, 4096), jnp.bfloat16), jnp.ones((1, 4096), jnp.bfloat16)
    y = linear(x, w)
    assert y.dtype == jnp.bfloat16 and y.item() == 4096


def test_rms_norm():
    x, scale = 3 * random(2, 3, 9), random(9)
    agree(norm.rms_norm(x, scale, 0.1), x / np.sqrt((x.astype(float) ** 2).mean(-1, keepdims=True) + 0.1) * scale)


def test_layer_norm():
    x, scale, bias = 3 * random(2, 3, 9) + 2, random(9), random(9)
    centred = x - x.astype(float).mean(-1, keepdims=True)
    agree(
        norm.layer_norm(x, scale, bias, 0.1),
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * scale + bias,
    )


def test_norms_compute_in_float32():
    """Values near 300 with a spread of 1: their bfloat16 squares would lose it all."""
    x = jnp.asarray(300 + random(1, 1, 512), jnp.bfloat16)
    ones, zeros = jnp.ones(512, jnp.bfloat16), jnp.zeros(512, jnp.bfloat16)
    exact = np.asarray(x, float) - np.asarray(x, float).mean()
    agree(norm.layer_norm(x, ones, zeros, 1e-5), exact / exact.std(), 0.01)


def test_activations():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    erf = np.vectorize(math.erf)(x / math.sqrt(2))
    expected = {
        "gelu": x * (1 + erf) / 2,
        "gelu_tanh": x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(float) ** 3))),
        "relu": np.maximum(x, 0),
        "relu_squared": np.maximum(x, 0) ** 2,
        "silu": x / (1 + np.exp(-x.astype(float))),
    }
    assert set(mlp.ACTIVATIONS) == set(expected) == set(ACTIVATIONS) - {"clamped_swish"}
    for name, function in mlp.ACTIVATIONS.items():
        agree(function(x), expected[name])


@pytest.mark.parametrize("gated", [False, True])
def test_mlp(gated):
    x, down, wide = random(2, 3, 5), random(5, 7), random(2, 7, 5) if gated else random(1, 7, 5)
    p = {"up": wide, "down": down, "up_bias": random(len(wide), 7), "down_bias": random(5)}
    first = np.maximum(x @ wide[0].T + p["up_bias"][0], 0)
    hidden = first * (x @ wide[1].T + p["up_bias"][1]) if gated else first
    expected = hidden @ down.T + p["down_bias"]
    agree(mlp.widen(p, jnp.asarray(x), "relu"), hidden)
    agree(mlp.narrow(p, mlp.widen(p, jnp.asarray(x), "relu")), expected)


def naive_attention(q, k, v, positions, window, scale):
    """One query at a time. q [B T N H], k, v [B K S H]; the key in slot s has position s."""
    B, T, N, _ = q.shape
    out, G = np.zeros(q.shape), N // k.shape[1]
    for b, t, n in np.ndindex(B, T, N):
        seen = [s for s in range(k.shape[2]) if 0 <= positions[b, t] - s < window]
        scores = np.array([scale * q[b, t, n] @ k[b, n // G, s] for s in seen], float)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, n // G, seen]
    return out


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_attention(heads, kv_heads, window):
    """Group sizes of 1, 3 and 5; the first query of a row and the last slot of the cache; the window's edge."""
    S = 11
    q, k, v = random(2, 3, heads, 4), random(2, kv_heads, S, 4), random(2, kv_heads, S, 4)
    positions = np.array([[0, 1, 2], [8, 9, 10]])
    mask = attention.visible(jnp.asarray(positions), jnp.broadcast_to(jnp.arange(S), (2, S)), window)
    weights = attention.weights(attention.scores(q, k, mask, 0.3))
    agree(weights.sum(-1), np.ones(weights.shape[:-1]))
    agree(attention.mix(weights, v), naive_attention(q, k, v, positions, window or 10**9, 0.3))


def test_blocks_of_queries_change_nothing():
    """300 queries are three blocks, the last one shorter; on the diagonal no block looks behind its own keys."""
    T = 300
    q, k, v = random(1, T, 4, 8), random(1, 2, T, 8), random(1, 2, T, 8)
    positions = np.arange(T)[None]
    mask = attention.visible(jnp.asarray(positions), jnp.asarray(positions), 150)
    expected = naive_attention(q, k, v, positions, 150, 0.3)
    for diagonal in (False, True):
        own = T if diagonal else 0
        weights = attention.weights(attention.scores(q, k, mask, 0.3, own), own)
        assert weights.shape == (1, 2, 2, T, T)
        agree(attention.mix(weights, v, T if diagonal else 0), expected)


def test_heads_lie_behind_one_another():
    """[q q q k v] of each key/value head."""
    qkv = random(1, 2, 2, 5, 4)
    q, k, v, _ = attention.split_heads(jnp.asarray(qkv))
    assert q.shape == (1, 2, 6, 4)
    for head in range(6):
        np.testing.assert_array_equal(q[:, :, head], qkv[:, :, head // 3, head % 3])
    np.testing.assert_array_equal(k, qkv[:, :, :, 3])
    np.testing.assert_array_equal(v, qkv[:, :, :, 4])


def test_a_query_that_sees_nothing_is_finite():
    """A padding row past the window's end."""
    mask = attention.visible(jnp.asarray([[50]]), jnp.arange(4)[None], 2)
    assert not mask.any()
    assert np.isfinite(attention.weights(attention.scores(random(1, 1, 2, 4), random(1, 2, 4, 4), mask, 1.0))).all()


def test_rotation_is_a_complex_product():
    x, positions = random(2, 3, 4, 10), np.array([[0, 1, 7], [500, 8191, 131071]])
    freqs, factor = rope.frequencies(10, 10000.0)
    turned = (x[..., :5] + 1j * x[..., 5:]) * np.exp(1j * (positions[..., None].astype(np.float32) * freqs))[:, :, None]
    expected = np.concatenate([turned.real, turned.imag], -1)
    agree(rope.rotate(x, *rope.turns(jnp.asarray(positions), freqs, factor)), expected)
    agree(rope.rotate(x, *rope.turns(jnp.asarray(positions), freqs, 1.5)), 1.5 * expected)


def test_rotated_products_depend_on_distance_only():
    q, k = random(1, 1, 1, 64), random(1, 1, 1, 64)
    freqs, _ = rope.frequencies(64, 500000.0)
    at = lambda x, position: np.asarray(rope.rotate(x, *rope.turns(jnp.asarray([[position]]), freqs)))  # noqa: E731
    lengths = np.linalg.norm(q) * np.linalg.norm(k)
    # float32 knows an angle of 1,000 to 6e-5
    agree((at(q, 1037) * at(k, 1030)).sum(), (at(q, 7) * at(k, 0)).sum(), 1e-4, size=lengths)


def test_plain_and_linear_frequencies():
    expected = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    agree(rope.frequencies(8, 10000.0)[0], expected, size=expected)
    agree(rope.frequencies(8, 10000.0, LinearScaling(4.0))[0], expected / 4, size=expected)


def test_llama3_frequencies():
    """By wavelength, as the paper's authors wrote it: short ones stay, long ones slow down by 8, between them a mix."""
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    expected = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        mix = (8192 / wavelength - 1) / (4 - 1)
        slow = frequency / 8
        expected.append(
            frequency if wavelength < 8192 / 4 else slow if wavelength > 8192 else (1 - mix) * slow + mix * frequency
        )
    agree(rope.frequencies(128, 500000.0, scaling)[0], expected, size=expected)
    assert (
        plain[0] == expected[0] and plain[-1] / 8 == expected[-1] and len({*expected} - {*plain} - {*(plain / 8)}) > 3
    )


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_frequencies(truncate):
    """The ends of the ramp: the first pairs keep their frequency, the last are divided by the factor."""
    scaling = YarnScaling(16.0, 4096, attention_factor=1.25, truncate=truncate)
    plain = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    ours, factor = rope.frequencies(64, 10000.0, scaling)
    turns = 4096 * plain / (2 * math.pi)
    edges = [np.interp(-math.log(times), -np.log(turns), np.arange(32.0)) for times in (32, 1)]
    low, high = (math.floor(edges[0]), math.ceil(edges[1])) if truncate else edges
    ramp = np.clip((np.arange(32) - low) / (high - low), 0, 1)
    expected = (1 - ramp) * plain + ramp * plain / 16
    agree(ours, expected, size=expected)
    assert factor == 1.25 and 0 < low < high < 31


def test_embedding_and_logits():
    table, x = random(7, 4), random(2, 3, 4)
    agree(embedding.embed(jnp.asarray(table), jnp.asarray([[0, 6, 99]])), table[[[0, 6, 6]]], 0)
    agree(embedding.unembed(table, x), x @ table.T)
    assert embedding.unembed(jnp.asarray(table, jnp.bfloat16), jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


# mixture of experts


def experts(E, M, D, U=2):
    return {"router": random(E, D), "up": random(E, U, M, D), "down": random(E, D, M)}


def expected_moe(p, x, top_k, renormalize):
    """One row and one expert after the other."""
    out = np.zeros(x.shape)
    for row, vector in enumerate(x.astype(np.float64)):
        scores = p["router"] @ vector
        chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        chosen = np.argsort(-chances, kind="stable")[:top_k]
        total = chances[chosen].sum() if renormalize else 1.0
        for e in chosen:
            gate, up = p["up"][e] @ vector
            out[row] += chances[e] / total * (p["down"][e] @ (gate / (1 + np.exp(-gate)) * up))
    return out


@pytest.mark.parametrize(("rows", "top_k", "renormalize"), [
    (1, 1, True), (1, 2, True), (1, 5, False), (3, 1, False), (3, 2, True), (3, 2, False), (40, 2, True), (40, 5, True),
])  # fmt: skip
def test_both_ways_through_the_experts(rows, top_k, renormalize):
    """Few rows leave most experts without any; top_k = E gives all of them every row."""
    p, x, router = experts(5, 7, 6), random(rows, 6), Router(renormalize=renormalize)
    expected = expected_moe(p, x, top_k, renormalize)

    @jax.jit
    def dense(p, x):
        chances = moe.chances(p, x[None], router)
        return moe.dense(p, x, *moe.chosen(chances[0], top_k, router), "silu"), chances

    given, chances = dense(p, x)
    agree(given, expected)
    agree(mixed(p, x[None], chances, "silu", top_k, router)[0], expected)


KEEP = {
    "float32": lambda w: w,
    "bfloat16": lambda w: w.astype(jnp.bfloat16),
    "float16": lambda w: w.astype(jnp.float16),
    "int8": lambda w: int8.quantize(w, 2),
    "int4": lambda w: groupwise_making.quantize(w, 4, 32),
    "int4 with offsets": lambda w: with_offsets(groupwise_making.quantize(w, 4, 32)),
}


def with_offsets(weight):
    return dataclasses.replace(weight, offset=weight.scale * 0.5)


@pytest.mark.parametrize("kind", KEEP)
@pytest.mark.parametrize("sizes", [(0, 3, 0, 1), (1, 0, 0, 0), (5, 5, 5, 5), (0, 0, 300, 7), (2, 40, 0, 9)])
def test_groups_of_rows_have_each_its_own_weight(sizes, kind):
    """Tiles that are filled up, groups without rows, more rows than a tile has; in bits what the bits stand for."""
    E, O, I, R = 4, 6, 64, sum(sizes)  # noqa: E741
    weight, x = KEEP[kind](jnp.asarray(random(E, O, I))), random(R, I)
    whole = weight.reshape(E * O, I)
    plain = np.asarray(product(jnp.eye(I), whole)).T.reshape(E, O, I)
    group = np.repeat(np.arange(E), sizes)
    expected = np.einsum("RI,ROI->RO", x.astype(float), plain[group])
    args = jnp.asarray(x), whole, jnp.asarray(sizes, jnp.int32)
    agree(jax.jit(group_product.by_group)(*args), expected, 1e-5 if kind == "float32" else 3e-4)  # digits of x
    if kind == "float32":
        agree(jax.jit(group_product.ragged)(*args), expected, 1e-5)


@pytest.mark.parametrize("kind", KEEP)
def test_a_row_of_a_group_has_the_bits_that_it_has_alone(kind):
    """In C, which reads a group's weight where it stands; its derivatives and batches are those of the tiles."""
    E, O, I, sizes = 4, 6, 64, jnp.asarray([2, 0, 3, 1], jnp.int32)  # noqa: E741
    whole = KEEP[kind](jnp.asarray(random(E, O, I))).reshape(E * O, I)
    if not native.takes_experts(jnp.ones((1, I)), whole):
        pytest.skip("no products in C: nothing was compiled, or the processor has no instruction set for them")
    x, group = jnp.asarray(random(6, I)), np.repeat(np.arange(E), sizes)
    found = jax.jit(group_product.by_group)(x, whole, sizes)
    if kind == "float32":  # which XLA multiplies where there is one weight alone
        alone = [
            group_product.by_group(x[row : row + 1], whole, jnp.zeros(E, jnp.int32).at[group[row]].set(1))
            for row in range(6)
        ]
    else:
        alone = [product(x[row : row + 1], some(whole, group[row] * O, O)) for row in range(6)]
    np.testing.assert_array_equal(found, jnp.concatenate(alone))
    unfinished = jax.jit(group_product.by_group)(x, whole, sizes.at[3].set(0))  # of a row that is in no group: zeros
    np.testing.assert_array_equal(unfinished, found.at[5].set(0))
    slope = lambda way: jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(way(x, whole, sizes)))))(x)  # noqa: E731
    agree(slope(group_product.by_group), slope(group_product.in_tiles), 1e-5)
    several = jnp.stack([sizes, sizes[::-1]])
    both = jax.vmap(group_product.by_group, (None, None, 0))(x, whole, several)
    np.testing.assert_array_equal(both[0], found)
    np.testing.assert_array_equal(both[1], group_product.by_group(x, whole, several[1]))


def test_experts_that_nobody_chose_are_not_read():
    """XLA's own product by groups has each row times all of them beside it, on CPU."""
    E, O, I = 64, 96, 128  # noqa: E741
    args = jnp.asarray(random(2, I)), jnp.asarray(random(E * O, I)), jnp.zeros(E, jnp.int32).at[5].set(2)
    program = jax.jit(group_product.by_group).lower(*args).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * (4 * O * I)  # of 64
    for kind in KEEP:
        whole = KEEP[kind](args[1].reshape(E, O, I)).reshape(E * O, I)
        program = jax.jit(group_product.by_group).lower(args[0], whole, args[2]).compile()
        in_c = native.takes_experts(args[0], whole)  # which copies none, either
        most = O * I // 4 if in_c else 4 * (4 * O * I)
        assert program.memory_analysis().temp_size_in_bytes < most


def test_experts_from_the_best_groups_by_corrected_chances():
    """What an expert counts is its own chance, though another number chose it; the sum of a few small ones is bounded."""
    router = Router("sigmoid", corrected=True, groups=3, top_groups=2, judged_by=2, least=0.9, scale=1.7)
    p, x = experts(9, 7, 6) | {"correction": random(9)}, random(40, 6)
    chances = moe.chances(p, x[None], router)[0]
    agree(chances, own := 1 / (1 + np.exp(-x @ p["router"].T)))
    weight, expert = moe.chosen(chances, 4, router, jnp.asarray(p["correction"]))
    for row in range(40):
        judged = own[row] + p["correction"]
        groups = np.sort(judged.reshape(3, 3))[:, -2:].sum(1)
        judged[3 * groups.argmin() : 3 * groups.argmin() + 3] = -np.inf
        taken = np.argsort(-judged)[:4]
        assert expert[row].tolist() == taken.tolist()
        agree(weight[row], 1.7 * own[row, taken] / max(own[row, taken].sum(), 0.9))


def test_experts_with_biases():
    """One in the router, one in each matrix: the definition, and by groups."""
    p, x = experts(5, 7, 6), 3 * random(20, 6)
    p |= {"router_bias": random(5), "up_bias": random(5, 2, 7), "down_bias": random(5, 6)}
    chances = moe.chances(p, x[None], Router())
    agree(chances[0], np.asarray(jax.nn.softmax(x @ p["router"].T + p["router_bias"])))
    weight, expert = moe.chosen(chances[0], 2, Router())
    expected = np.zeros(x.shape)
    for row, (shares, chosen) in enumerate(zip(weight, expert, strict=True)):
        for share, e in zip(shares, chosen, strict=True):
            gate, up = p["up"][e] @ x[row] + p["up_bias"][e]
            gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
            hidden = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            expected[row] += float(share) * (p["down"][e] @ hidden + p["down_bias"][e])
    agree(mixed(p, x[None], chances, "clamped_swish", 2, Router())[0], expected)
    last = np.einsum("rk,rkd->rd", weight, p["down_bias"][np.asarray(expert)])
    agree(one_by_one(p, x, weight, expert, "clamped_swish") + last, expected)


def test_a_sink_takes_its_part():
    scores, sinks = 3 * random(2, 2, 3, 5, 300), random(6) * 3
    taken = np.exp(scores) / (np.exp(scores).sum(-1, keepdims=True) + np.exp(sinks).reshape(1, 2, 3, 1, 1))
    agree(attention.weights(scores, 0, sinks), taken)
    sinks[:] = 200  # and where it is more than any score
    assert not np.asarray(attention.weights(scores, 0, sinks)).any()


def test_an_mlp_that_all_tokens_share():
    p, x = {"up": random(2, 7, 6), "down": random(6, 7), "gate": random(6)}, random(2, 3, 6)
    gate, up = np.einsum("btd,ufd->ubtf", x, p["up"])
    expected = (gate / (1 + np.exp(-gate)) * up) @ p["down"].T
    agree(mlp.shared(p, x, "silu"), expected / (1 + np.exp(-x @ p["gate"]))[..., None])
    agree(mlp.shared({name: p[name] for name in ("up", "down")}, x, "silu"), expected)


def test_queries_that_grow_with_their_positions():
    q, at = random(2, 4, 3, 5), np.array([[0, 7, 8, 15], [16, 23, 24, 1000]], np.int32)
    grown = rope.sharpen(q, at, Sharpening(0.3, 8))
    agree(grown, q * (1 + 0.3 * np.log(1 + np.floor(at / 8)))[:, :, None, None])
    assert rope.sharpen(q, at, None) is q


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_expert_that_gets_all_rows_and_experts_that_get_none(way):
    p, x = experts(4, 3, 6), random(9, 6)
    weight, expert = jnp.ones((9, 1)), jnp.full((9, 1), 2)
    one = {name: p[name][2] for name in ("up", "down")}
    alone = mlp.narrow(one, mlp.widen(one, x[None], "silu"))[0]
    agree(way(p, x, weight, expert, "silu"), np.asarray(alone))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_experts_without_a_gate(way):
    p, x = experts(3, 5, 4, U=1), random(6, 4)
    weight, expert = moe.chosen(moe.chances(p, x[None], Router())[0], 3, Router(renormalize=False))
    agree(way(p, x, weight, expert, "relu"), sum(
        np.asarray(jax.nn.softmax(x @ p["router"].T))[:, [e]] * (np.maximum(x @ p["up"][e, 0].T, 0) @ p["down"][e].T)
        for e in range(3)))  # fmt: skip


# what later families added to the other rooms


def test_a_norm_over_all_heads_of_a_token_and_over_each():
    x, wide, narrow = random(2, 3, 4, 5), random(4, 5), random(5)
    every = x / np.sqrt((x**2).mean((-1, -2), keepdims=True) + 1e-5)
    agree(norm.rms_norm(x, wide, 1e-5), every * wide)
    agree(norm.rms_norm(x, narrow, 1e-5, 1.0), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * (1 + narrow))


def test_caps_and_clips():
    x = 10 * random(50)
    agree(attention.soft_cap(x, 3.0), 3 * np.tanh(x / 3))
    agree(norm.clip(x, 3.0), np.clip(x, -3, 3))
    assert attention.soft_cap(x, None) is x and norm.clip(x, None) is x


def test_scores_are_capped_before_they_are_masked():
    q, k = 5 * random(1, 3, 1, 4), 5 * random(1, 1, 3, 4)
    positions = jnp.arange(3)[None]
    ours = attention.weights(attention.scores(q, k, attention.visible(positions, positions), 1.0, cap=2.0))[0, 0, 0]
    scores = np.where(np.tri(3) > 0, 2 * np.tanh(q[0, :, 0] @ k[0, 0].T / 2), -np.inf)
    agree(ours, np.exp(scores) / np.exp(scores).sum(-1, keepdims=True))


def test_channels_behind_the_rotated_ones_stay():
    x, positions = random(1, 4, 2, 10), jnp.arange(4)[None]
    turns = rope.turns(positions, rope.frequencies(6, 100.0)[0])
    ours = rope.rotate(x, *turns)
    np.testing.assert_array_equal(ours[..., 6:], x[..., 6:])
    agree(ours[..., :6], np.asarray(rope.rotate(x[..., :6], *turns)))


@pytest.mark.parametrize(("H", "R"), [(8, 8), (10, 6)])
def test_neighbours_turn_as_complex_numbers(H, R):
    """Channels 2i and 2i + 1 are one complex number, times e^(i angle); channels from R on stay."""
    x, positions = random(2, 3, 4, H), np.asarray([[0, 1, 300], [7, 8, 9]])
    freqs = rope.frequencies(R, 100.0)[0]
    turned = (x[..., 0:R:2] + 1j * x[..., 1:R:2]) * np.exp(1j * positions[:, :, None, None] * freqs.astype(np.float64))
    expected = np.concatenate([np.stack([turned.real, turned.imag], -1).reshape(2, 3, 4, R), x[..., R:]], -1)
    agree(rope.rotate_neighbours(jnp.asarray(x), *rope.turns(jnp.asarray(positions), freqs)), expected, 3e-5)


def test_longrope_has_its_own_factors_beyond_the_original_length():
    scaling = LongRopeScaling((1.0, 2.0), (3.0, 5.0), 8, 1.25)
    positions = jnp.arange(6)[None] + jnp.asarray([0, 4])[:, None]
    [cos, sin], other = rope.turns_of_layers([(Rope(100.0, scaling), 4), None], positions, jnp.asarray([8, 9]))
    assert other is None
    for row, factors in enumerate(([1.0, 2.0], [3.0, 5.0])):
        angle = np.asarray(positions)[row][:, None] / (100.0 ** np.array([0, 0.5]) * factors)
        agree(cos[row, :, 0], 1.25 * np.cos(angle))
        agree(sin[row, :, 0], 1.25 * np.sin(angle))


@pytest.mark.parametrize("window", [None, 300])
def test_a_piece_looks_at_what_is_in_use_of_a_cache(window, monkeypatch):
    """Of 1,100 slots and 20 tokens of its own; the slots of the quarters behind are no numbers, and every bit is the same."""
    B, T, N, K, H, S = 2, 20, 4, 2, 8, 1100
    q, k, v = random(B, T, N, H), random(B, K, S + T, H), random(B, K, S + T, H)

    @jax.jit
    def attend(q, keys, values, stand, filled, at):
        seen = Seen(keys, values, stand, filled, T, before=lambda size: (keys[:, :, :size], values[:, :, :size]))
        return dot_product(q, seen, at, window, None, None, "x")

    def found(first, S, damaged):
        """With so many slots, of which the first row has filled so many and the second three."""
        filled = np.array([first, 3])
        stand = np.where(np.arange(S)[None] < filled[:, None], np.arange(S)[None], -1)
        at = filled[:, None] + np.arange(T)[None]
        keys, values = (np.concatenate([x[:, :, :S], x[:, :, -T:]], axis=2) for x in (k, v))
        for x in (keys, values):
            x[:, :, damaged:S] = np.nan
        stand = np.concatenate([stand, at], axis=1)
        return attend(q, keys, values, stand, filled, at)

    for first, view in ((0, 256), (256, 256), (257, 512), (700, 768), (1100, 1100)):
        np.testing.assert_array_equal(found(first, S, view), found(first, view, view))
    monkeypatch.setattr("nanollm_jax.ops.dot_product.views", lambda slots: [slots])  # as on other devices
    attend.clear_cache()
    np.testing.assert_array_equal(found(500, 600, 600), found(500, 512, 512))  # the last block is no whole one
