# %% [markdown]
# # 04 · Matrix products: three loops that are nearly everything
#
# [Previous: 03 · Memory layout](03_memory_layout.py) · [Contents](README.md) · [Next: 05 · Fast products](05_fast_matmul.py)
#
# ## The question
# Of the thousand operations in the graph of chapter 01, a few dozen are matrix multiplications. Which share of the
# work are they? And when is such a product limited by arithmetic, when by memory?
#
# ## The idea
# Multiply a matrix `[M K]` with a matrix `[K N]`: the number at row `i` and column `j` of the result is the dot
# product of row `i` of the first and column `j` of the second. That is the einsum `"MK,KN->MN"`, and three loops.
#
# In a model, the rows of the first matrix are pieces of text, one vector each, and the second matrix is a weight. A
# *linear layer* is this product: every number of a new vector is a weighted sum of all numbers of the old one.
#
# Two numbers say what it costs:
#
# - *arithmetic*: M·K·N multiplications and as many additions. One such operation on floating-point numbers is a
#   *FLOP*, so 2·M·K·N FLOPs. Speed is counted in GFLOP/s, thousands of millions of them in a second;
# - *traffic*: at least the bytes of the two inputs and of the output have to move between memory and processor.
#
# Their ratio is the *arithmetic intensity*, in FLOPs per byte. The processor has a limit for each of the two.
#
# ## From scratch

# %%
from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    check,
    check_time,
    outcome,
    plt,
    predict,
    quick,
    same,
    save,
    seconds,
    table,
)
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops import linear

random = np.random.default_rng(0)


def matmul(a, b):
    """[M K], [K N] -> [M N] and the number of FLOPs that it took."""
    (M, K), N = a.shape, b.shape[1]
    out, flops = np.zeros((M, N)), 0
    for i in range(M):
        for j in range(N):
            for k in range(K):
                out[i, j] += a[i, k] * b[k, j]
                flops += 2
    return out, flops


a, b = random.normal(size=(7, 5)), random.normal(size=(5, 9))  # [7 5], [5 9]
product, flops = matmul(a, b)
same("three loops", product, a @ b)
check(f"2 x 7 x 5 x 9 = {flops} FLOPs", flops == 2 * 7 * 5 * 9)

x, w = a[None].astype(np.float32), b.T.astype(np.float32)  # [1 7 5], [9 5]: the library has the outputs first
same("the library's linear layer", linear.linear(x, w)[0], product)

# %% [markdown]
# The result does not depend on where brackets stand, but the cost does. A vector through two weights, from the left
# and from the right:

# %%
v, w1, w2 = random.normal(size=(1, 20)), random.normal(size=(20, 30)), random.normal(size=(30, 20))
h, first = matmul(v, w1)  # [1 30]
stepwise, second = matmul(h, w2)  # [1 20]
both, third = matmul(w1, w2)  # [20 20]
at_once, fourth = matmul(v, both)  # [1 20]
same("(v w1) w2 = v (w1 w2)", stepwise, at_once)
check(f"and costs {first + second:,} instead of {third + fourth:,} FLOPs", first + second < third + fourth)

# %% [markdown]
# ## What share of a model it is
# JAX's graph knows every shape, so the FLOPs of the library's `forward` can be counted without running it. An
# elementwise operation is counted as one FLOP for each number of its output, a reduction as one for each of its
# input, and moving numbers as none.

# %%
model = nano.load(dtype="float32")
config = model.config
REDUCTIONS = {"reduce_sum", "reduce_max", "argmax"}
MOVES = {
    "broadcast_in_dim", "reshape", "transpose", "concatenate", "slice", "squeeze", "gather", "scatter", "iota", "copy",
    "convert_element_type", "dynamic_slice", "dynamic_update_slice", "stop_gradient", "split", "select_n", "copy_p", "pad",
    "optimization_barrier",
}  # fmt: skip


def count(jaxpr, times, flops):
    """Add each operation of a graph to two counters, by kind: how many there are, and how many FLOPs."""
    for equation in jaxpr.eqns:
        inner = [p for p in equation.params.values() if hasattr(p, "jaxpr")]
        inner += equation.params.get("branches", ())[-1:]  # of several ways to compute the same, that of all devices
        for graph in inner:
            count(graph.jaxpr, times, flops)
        name = equation.primitive.name
        if inner or name in ("name", "platform_index"):  # a call, or a label
            continue
        if name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            inputs = equation.invars[0].aval.shape
            kind, work = (
                "matrix product",
                2 * equation.outvars[0].aval.size * math.prod(inputs[axis] for axis in summed),
            )
        elif name in REDUCTIONS:
            kind, work = "reduction", equation.invars[0].aval.size
        elif name in MOVES:
            kind, work = "moving numbers", 0
        else:
            kind, work = "elementwise", equation.outvars[0].aval.size
        times[kind] += 1
        flops[kind] += work


x, w = jnp.ones((3, 4)), jnp.ones((4, 5))
graph, found = jax.make_jaxpr(lambda x, w: jnp.exp(x @ w).T.sum(axis=0))(x, w), Counter()
count(graph.jaxpr, Counter(), found)
costs = [found[kind] for kind in ("matrix product", "elementwise", "reduction", "moving numbers")]
check(
    "e to the power of each number of [3 4] times [4 5], summed by rows: 120 FLOPs, 15, and 15",
    costs == [120, 15, 15, 0],
)


def forward_costs(T, capacity):
    """Operations and FLOPs of reading T more pieces of one text, by kind."""
    cache = nano.init_cache(config, batch=1, capacity=capacity, dtype="float32")
    cache = cache.replace(fresh=False)  # as if other pieces had been read before
    ids = jnp.zeros((1, T), jnp.int32)
    graph = jax.make_jaxpr(partial(nano.forward, config=config))(model.params, ids, cache)
    times, flops = Counter(), Counter()
    count(graph.jaxpr, times, flops)
    return times, flops


S = 256  # how many pieces the cache has room for; chapter 20
times, flops = forward_costs(1, S)
table(
    "One more piece of text through the bundled model",
    ["kind", "operations", "FLOPs", "share of the FLOPs"],
    [(kind, times[kind], f"{flops[kind]:,}", f"{flops[kind] / flops.total():.2%}") for kind in times],
)

# %% [markdown]
# The count of the products can be predicted without the graph. Each number of each weight matrix is used in one
# multiplication and one addition. On top of it, in each layer *attention* multiplies two times with what it remembers:
# `S` vectors of width `H`, for each of its `N` parts, the heads (chapters 10 and 11).

# %%
with safe_open(Path(nano.__file__).parent / "assets/nano-stories/model.safetensors", framework="numpy") as file:
    matrices = [math.prod(file.get_slice(name).get_shape()) for name in file.keys() if "norm" not in name]
attention = config.num_layers * 2 * (2 * S * config.num_heads * config.head_dim)
print(f"2 x {sum(matrices):,} weights + {attention:,} for attention = {2 * sum(matrices) + attention:,}")
check("this is exactly what the graph has", flops["matrix product"] == 2 * sum(matrices) + attention)
check(
    f"of the operations, a few dozen are matrix products ({times['matrix product']})", 24 < times["matrix product"] < 60
)
check("more than half of them only move numbers", times["moving numbers"] > times.total() / 2)
check("matrix products are more than 99% of the arithmetic", flops["matrix product"] > 0.99 * flops.total())

# %% [markdown]
# "Two FLOPs for each weight and each piece of text" is the rule of thumb for transformers.

# %% tags=["figure"]
figure, axes = plt.subplots(2, 1, figsize=(8, 2.7), sharex=True)
colours = {"matrix product": BLUE, "elementwise": ORANGE, "reduction": GREEN, "moving numbers": GREY}
for ax, (name, counter) in zip(axes, {"operations": times, "FLOPs": flops}.items(), strict=True):
    start = 0
    for kind, colour in colours.items():
        share = counter[kind] / counter.total()
        ax.barh(0, share, left=start, color=colour, label=kind, edgecolor="white")
        if share > 0.04:
            ax.text(start + share / 2, 0, f"{share:.1%}", ha="center", va="center", color="white")
        start += share
    check(f"{name}: the four shares are the whole", math.isclose(start, 1))
    ax.set(yticks=[0], yticklabels=[name], xlim=(0, 1), xticks=[])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
save(figure, "04_shares")

# %% [markdown]
# ![Shares of operations and of FLOPs by kind](figures/04_shares.png)
#
# *The same graph counted twice. Few of its operations are matrix products, but nearly all of its arithmetic is.*
#
# ## One vector or many
# The same weight can be multiplied with one vector, or with many at once. Per vector the arithmetic is the same.
#
# First the two limits of this machine, each measured by itself. How fast does it read? An array that is larger than most
# machines' caches is summed, then multiplied with one vector, and the faster of the two counts. How fast does it calculate?
# Two large matrices are multiplied.

# %%
D, F = (256, 256) if quick() else (4096, 16384)
weight = jnp.tile(jnp.asarray(random.normal(size=(D, D)), jnp.float32), (F // D, 1))  # [F D], 256 MB
multiply = jax.jit(linear.product)  # [T D], [F D] -> [T F]
large = jnp.ones(2**20 if quick() else 2**26, jnp.float32)  # as many
one = jnp.ones((1, D), jnp.float32)
ways = seconds(jax.jit(jnp.sum), large, repeats=20), seconds(multiply, one, large.reshape(-1, D), repeats=20)
bandwidth = large.nbytes / min(ways)  # bytes a second
square = weight[: D // 2, : D // 2]
peak = 2 * len(square) ** 3 / seconds(jax.jit(jnp.matmul), square, square, repeats=10)  # FLOPs a second
print(
    f"it reads {bandwidth / 1e9:.0f} GB/s and does {peak / 1e9:.0f} GFLOP/s: {peak / bandwidth:.1f} FLOPs for each byte"
)
counts = [1, 2, 4, 8, 16, 32, 64, 128]
inputs = {T: jnp.asarray(random.normal(size=(T, D)), jnp.float32) for T in counts}  # [T D]

# %% tags=["question"]
predict("64 vectors are 64 times the arithmetic of one. How many times longer does the product take?")

# %% tags=["answer"]
took = {T: seconds(multiply, inputs[T], weight) for T in counts}
intensity = {T: 2 * T * F * D / (4 * (F * D + T * D + T * F)) for T in counts}  # FLOPs per byte
reached = {T: 2 * T * F * D / took[T] / 1e9 for T in counts}  # GFLOP/s
moved, work = weight.nbytes + inputs[8].nbytes + multiply(inputs[8], weight).nbytes, 2 * 8 * weight.size  # bytes, FLOPs
check("two FLOPs for each weight and vector, and the bytes of both inputs and of the output",
      math.isclose(intensity[8] * moved, work) and math.isclose(reached[8] * 1e9 * took[8], work))  # fmt: skip
table(
    f"T vectors times one weight [{F} {D}]",
    ["T", "milliseconds", "times the first", "FLOPs per byte", "GFLOP/s", "GB/s of weights"],
    [(T, f"{took[T] * 1e3:.2f}", f"{took[T] / took[1]:.1f}x", f"{intensity[T]:.1f}", f"{reached[T]:.1f}",
      f"{weight.nbytes / took[T] / 1e9:.1f}") for T in counts],
)  # fmt: skip
outcome(took[64] / took[1], "times as long")
check_time("64 vectors take less than 40 times as long as one", took[64] < 40 * took[1])
check_time("nothing is faster than the two limits allow, by more than a fifth",
           all(reached[T] * 1e9 < 1.2 * min(bandwidth * intensity[T], peak) for T in counts))  # fmt: skip
same("many at once give the same as one by one", multiply(inputs[8], weight)[3:4], multiply(inputs[8][3:4], weight))

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 4))
ax.plot(list(intensity.values()), list(reached.values()), "o-", color=BLUE)
for T in counts:
    ax.annotate(f"T = {T}", (intensity[T], reached[T]), xytext=(6, -12), textcoords="offset points", color=GREY, size=9)
at = np.geomspace(intensity[1], intensity[128], 100)
ax.plot(at, np.minimum(bandwidth * at, peak) / 1e9, ":", color=GREY)
ax.text(at[0], bandwidth * at[0] / 1e9 * 2.2, f"limit of memory:\n{bandwidth / 1e9:.0f} GB/s", color=GREY, size=9)
ax.text(at[-1], peak / 1e9 * 1.08, f"limit of arithmetic: {peak / 1e9:.0f} GFLOP/s", color=GREY, size=9, ha="right")
ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOPs per byte", ylabel="GFLOP/s")
ax.set_ylim(min(reached.values()) / 1.5, max(*reached.values(), peak / 1e9) * 1.5)
ax.set_xticks([0.5, 1, 2, 4, 8, 16, 32, 64], ["½", 1, 2, 4, 8, 16, 32, 64])
ax.set_yticks([10, 20, 50, 100, 200], [10, 20, 50, 100, 200])
ax.minorticks_off()
save(figure, "04_intensity")

# %% [markdown]
# ![GFLOP/s against arithmetic intensity](figures/04_intensity.png)
#
# *Measured. The dotted limits were measured before, each by itself, and not exactly either, so a point may lie a little
# above them. With one vector each number of the weight arrives from memory and is used twice, in a multiplication and
# an addition: memory is the limit. With many vectors each number that arrives is used many times, and arithmetic
# becomes the limit.*
#
# Such a picture, two limits and what was reached below them, is called a *roofline*. It shows the most important fact
# about inference. Reading a *prompt*, the text that is to be continued (*prefill*), puts many vectors through each
# weight at once, and is limited by arithmetic. Writing an answer (*decode*) makes one piece at a time, and is limited
# by memory: all weights have to be read for every piece.
#
# ## In the engine
# - `nanollm_jax.ops.linear.contract` is where the library multiplies matrices. Those with weights come through
#   `nanollm_jax.ops.linear.product`: R vectors `[R I]` by a weight `[O I]`, outputs first. It knows other ways for weights that
#   are stored in fewer bits (chapter 24).
# - `nanollm_jax.decode.prefill` and `nanollm_jax.decode.decode` are two programs, because their limits are different.
# - Several texts at once, a *batch*, share the weights that were read: `nanollm_jax.generate` takes lists. Chapter 06
#   has more on it.
# - Weights in bfloat16 are half the bytes. Where memory is the limit, half the bytes can be read in half the time;
#   chapter 24 goes on from there.
#
# ## Exercises
# 1. How many FLOPs does the bundled model need to read 100 pieces of text, by the rule of thumb? How far off is it
#    from the graph?
# 2. A machine reads 100 GB/s. How many pieces of one text can it write per second with a model of 14 GB of weights, at most?
# 3. A product of two square matrices `[n n]` in float32: what is its arithmetic intensity?

# %% tags=["answer"]
rule = 2 * sum(matrices) * 100
exact = forward_costs(100, S)[1].total()
print(f"rule: {rule:,}   graph: {exact:,}, of which the rule misses {1 - rule / exact:.1%}, most of it attention")
check("the rule is good to 20%, and most of what it misses is attention",
      0.8 < rule / exact < 1 and 100 * attention > 0.5 * (exact - rule))  # fmt: skip

# %% tags=["answer"]
rate = 100 / 14
print(f"Each piece reads all weights once: {rate:.1f} pieces per second, however fast the arithmetic is.")
check("so often in a second, 14 GB are 100", math.isclose(14 * rate, 100))

# %% tags=["answer"]
n = 4096
print(f"2 n^3 FLOPs for 3 n^2 numbers of 4 bytes: n / 6 FLOPs per byte, {2 * n**3 / (3 * n**2 * 4):.0f} for n = {n}")
check("n / 6", math.isclose(2 * n**3 / (3 * n**2 * 4), n / 6))

# %% [markdown]
# [Previous: 03 · Memory layout](03_memory_layout.py) · [Contents](README.md) · [Next: 05 · Fast products](05_fast_matmul.py)
