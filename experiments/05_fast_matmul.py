# %% [markdown]
# # 05 · Fast products: the same sums, in a better order
#
# [Previous: 04 · Matrix products](04_matmul.py) · [Contents](README.md) · [Next: 06 · Batched products](06_batched_matmul.py)
#
# ## The question
# The three loops of chapter 04 are right. How far are they from what the machine can do, and which ideas close the
# gap?
#
# ## The idea
# Every version in this chapter does the same multiplications and additions. What changes is the order, and how many
# are done at once:
#
# - *vectors*: a processor has instructions that multiply 4, 8 or 16 float32 numbers at once, if they lie side by side in
#   memory;
# - *loop order*: of the three loops, the innermost should walk along rows, so that its numbers lie side by side
#   (chapter 03);
# - *blocking*: work on a piece of the result that fits in a cache, or even in the processor's *registers*, the few places in
#   which it computes, and finish it before the next one;
# - *threads*: give each processor core its own part of the result.
#
# Speed is counted in GFLOP/s, as in chapter 04.
#
# ## From scratch
# For each multiplication Python does far more than multiply: it looks at types, makes objects, and counts references.
# NumPy does a whole row in one call, with vector instructions. So the innermost loop is a NumPy call from the second
# version on, and the outer loops say in which order it reads.

# %%
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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

from nanollm_jax.ops import linear

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
random = np.random.default_rng(0)


def three_loops(a, b):
    """[M K], [K N] -> [M N], one number at a time."""
    a, b = a.tolist(), b.tolist()
    out = [[0.0] * len(b[0]) for _ in a]
    for i in range(len(a)):
        for j in range(len(b[0])):
            for k in range(len(b)):
                out[i][j] += a[i][k] * b[k][j]
    return np.array(out, np.float32)


def row_times_column(a, b):
    """i, j, then k at once: a dot product. The column of b lies scattered, N numbers apart."""
    out = np.full((a.shape[0], b.shape[1]), np.nan, np.float32)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            out[i, j] = np.dot(a[i], b[:, j])
    return out


def row_times_row(a, b):
    """The same after a copy of b whose columns lie side by side."""
    columns = np.ascontiguousarray(b.T)  # [N K]
    out = np.full((a.shape[0], b.shape[1]), np.nan, np.float32)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            out[i, j] = np.dot(a[i], columns[j])
    return out


def sum_of_rows(a, b):
    """i, k, then j at once: a row of the result is a sum of rows of b. Everything lies side by side."""
    out = np.zeros((a.shape[0], b.shape[1]), np.float32)
    scaled = np.full(b.shape[1], np.nan, np.float32)
    for i in range(a.shape[0]):
        for k in range(b.shape[0]):
            np.multiply(b[k], a[i, k], out=scaled)
            out[i] += scaled
    return out


def outer_products(a, b):
    """k, then i and j at once: the picture of chapter 02. Each step passes over the whole result."""
    out = np.zeros((a.shape[0], b.shape[1]), np.float32)
    scratch = np.full_like(out, np.nan)
    for column, row in zip(np.ascontiguousarray(a.T), b, strict=True):  # [M], [N]
        np.multiply(column[:, None], row[None, :], out=scratch)
        out += scratch
    return out


def blocked(a, b, block=(64, 512)):
    """The same, one block of the result after the other. A block and the scratch space beside it stay in the cache."""
    out = np.full((a.shape[0], b.shape[1]), np.nan, np.float32)
    for i in range(0, a.shape[0], block[0]):
        for j in range(0, b.shape[1], block[1]):
            out[i : i + block[0], j : j + block[1]] = outer_products(a[i : i + block[0]], b[:, j : j + block[1]])
    return out


def threaded(a, b):
    """The rows of the result dealt out to the cores. NumPy lets go of Python's lock while it computes."""
    with ThreadPoolExecutor(CORES) as pool:
        return np.concatenate(list(pool.map(lambda rows: blocked(rows, b), np.array_split(a, CORES))))


VERSIONS = {
    "three loops in Python": three_loops, "row times column": row_times_column, "row times row": row_times_row,
    "sums of rows": sum_of_rows, "outer products": outer_products, "blocked": blocked, f"blocked, {CORES} threads": threaded,
}  # fmt: skip
xla = jax.jit(lambda a, b: linear.contract("MK,KN->MN", a, b))
a, b = random.normal(size=(70, 33)).astype(np.float32), random.normal(size=(33, 90)).astype(np.float32)
reference = a.astype(np.float64) @ b.astype(np.float64)  # [70 90]
for name, multiply in VERSIONS.items():
    same(name, multiply(a, b), reference)
same("blocks that do not divide the sizes", blocked(a, b, (32, 64)), reference)
same("the library's contract, compiled by XLA", xla(a, b), reference)

# %% [markdown]
# ## The limit of this machine
# The processor's data sheet would say: cores, times clock, times numbers per vector, times vector units, times 2 for
# a multiplication and an addition. The clock changes while it runs, so the limit is measured here: the best rate that
# any product reaches, of several sizes, by two libraries that were tuned for years: XLA, and the one that NumPy calls
# for products (a *BLAS*, short for basic linear algebra subprograms). That is one way to find it. Chapter 04 took one
# size and one library, at another time, and found another number. How far the two are apart is how well the limit is known.


# %%
def flops(M, K, N):
    """Of a product [M K] x [K N]: chapter 04."""
    return 2 * M * K * N


def rate(multiply, shape, **how):
    """GFLOP/s of a product [M K] x [K N], all inputs ready in the form that it takes."""
    M, K, N = shape
    a, b = random.normal(size=(M, K)).astype(np.float32), random.normal(size=(K, N)).astype(np.float32)
    if multiply is xla:
        a, b = jnp.asarray(a), jnp.asarray(b)
    return flops(*shape) / seconds(multiply, a, b, **how) / 1e9


check("FLOPs are what chapter 04 counted one by one", flops(7, 5, 9) == 630)
tuned = {(name, n): rate(multiply, (n, n, n), repeats=20)
         for name, multiply in {"XLA": xla, "NumPy": np.matmul}.items()
         for n in ([64] if quick() else [256, 512, 1024, 2048])}  # fmt: skip
(best_name, best_n), limit = max(tuned.items(), key=lambda item: item[1])
print(f"the limit: {limit:.0f} GFLOP/s on {CORES} cores, reached by {best_name} with n = {best_n}")

# %% tags=["question"]
predict("how many times slower than this limit are the three loops in Python?")

# %% tags=["answer"]
wide = 64 if quick() else 2048
shapes = {  # M, K, N: as much of a large product as takes well under a second
    "three loops in Python": (8, 96, 96), "row times column": (16, wide, wide), "row times row": (64, wide, wide),
    "sums of rows": (16, wide, wide),
}  # fmt: skip
rates = {name: rate(run, shapes.get(name, (wide, wide // 16, wide)), repeats=3) for name, run in VERSIONS.items()}
rates |= {name: max(r for (who, _), r in tuned.items() if who == name) for name in ("NumPy", "XLA")}
table(
    "The same sums in another order",
    ["version", "GFLOP/s", "share of the limit", "times the first"],
    [
        (name, f"{r:.3g}", f"{r / limit:.2%}", f"{r / rates['three loops in Python']:,.0f}x")
        for name, r in rates.items()
    ],
)
outcome(limit / rates["three loops in Python"], "times slower than the limit")
check_time("vectors beat single numbers by more than 10", rates["sums of rows"] > 10 * rates["three loops in Python"])
check_time("rows beat scattered columns", rates["row times row"] > rates["row times column"])
check_time("blocking beats passing over everything", rates["blocked"] > rates["outer products"])
check_time("XLA beats every version written here", rates["XLA"] > 2 * rates[f"blocked, {CORES} threads"])

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 4))
colours = [GREY, BLUE, BLUE, BLUE, ORANGE, ORANGE, ORANGE, GREEN, GREEN]
ax.barh(list(rates), list(rates.values()), color=colours, left=1e-3)
for place, r in enumerate(rates.values()):
    ax.text(r * 1.15, place, f"{r:.3g}", va="center", color="#444444")
ax.axvline(limit, color=GREY, linestyle=":")
ax.text(limit * 0.9, -0.75, "limit", color=GREY, ha="right", va="center", size=9)
ax.set(xscale="log", xlabel="GFLOP/s", xlim=(rates["three loops in Python"] / 3, limit * 4))
ax.invert_yaxis()
save(figure, "05_versions")

# %% [markdown]
# ![GFLOP/s of nine versions of a matrix product](figures/05_versions.png)
#
# *Each label of the axis is ten times the one before. Grey: one number at a time. Blue: one row at a time. Orange: the
# whole result or a block of it at a time. Green: the libraries, which do all of it, and are known to keep a small block of the
# result in registers, too.*
#
# ## How large a block
# A block has to be large enough to keep the vectors and the Python loop busy, and small enough for the cache. Where
# the best size lies can only be measured.

# %%
widths = [16, 32, 64] if quick() else [32, 64, 128, 256, 512, 1024, 2048]
heights = widths[:-1]
grid = np.zeros((len(heights), len(widths)))  # [heights widths] GFLOP/s
for (i, j), _ in np.ndenumerate(grid):
    shape = (max(heights[i], 128), widths[0] * 2, widths[-1])  # enough of a product to see it
    grid[i, j] = rate(partial(blocked, block=(heights[i], widths[j])), shape, repeats=2)
best = np.unravel_index(grid.argmax(), grid.shape)
print(f"best block here: {heights[best[0]]} x {widths[best[1]]}, {grid.max():.1f} GFLOP/s; "
      f"the smallest reaches {grid[0, 0]:.1f}, the largest {grid[-1, -1]:.1f}")  # fmt: skip
check_time("small blocks are slower than the best by a factor of two or more", grid[0, 0] < grid.max() / 2)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(7, 4))
picture = ax.imshow(grid, origin="lower", aspect="auto")
for (i, j), value in np.ndenumerate(grid):
    bytes_used = 2 * 4 * heights[i] * widths[j]
    shade = "white" if value > 0.6 * grid.max() else "black"
    ax.text(j, i, f"{value:.1f}\n{bytes_used // 1024} kB", ha="center", va="center", size=8, color=shade)
ax.set(
    xlabel="columns of a block",
    ylabel="rows of a block",
    title="GFLOP/s, and the bytes of a block and its scratch space",
)
ax.set_xticks(range(len(widths)), widths)
ax.set_yticks(range(len(heights)), heights)
save(figure, "05_blocks")

# %% [markdown] tags=["opening"]
# ![GFLOP/s by the shape of a block](figures/05_blocks.png)
#
# *One core. Small blocks lose time: each costs as many steps of the Python loop as a large one, for fewer numbers.
# How much the largest lose is for this machine to say: a block that no longer fits a cache is read from the next one,
# and that hurts only where the next one cannot keep up.*
#
# ## In the engine
# - The model contains none of this. `nanollm_jax.ops.linear.contract` says what is to be summed, and XLA picks
#   loops, blocks, vectors and threads, on a CPU, a GPU or a TPU. That is why an einsum is the right level to write a
#   model in. A little is written out by hand besides, where XLA is slow: in C, for CPUs, products with weights of 16 bits or
#   fewer (`nanollm_jax.ops.native.product`); and attention (chapter 10), in C (`nanollm_jax.ops.native.attention`) and for
#   NVIDIA GPUs (`nanollm_jax.ops.gpu.attention`).
# - `contract` asks for `precision="highest"`, because GPUs and TPUs would otherwise round float32 inputs to fewer digits
#   to be faster.
# - What the library does choose is the *shape* of the products: all pieces of a prompt at once in
#   `nanollm_jax.decode.prefill`, all rows of a batch at once in `nanollm_jax.decode.decode`. Chapter 04 shows what
#   that is worth. On a CPU `nanollm_jax.ops.linear.product_on_cpu` also chooses which of the two inputs comes first, because
#   XLA has fast loops for one order only.
#
# ## Exercises
# 1. `outer_products` writes products to `scratch` and then adds them to `out`. How many numbers of these two arrays does
#    it read and write for each multiplication? What do the libraries avoid?
# 2. Why can two threads write to the same result without waiting for each other?
# 3. Which versions add the products over k in the same order, with the same rounding? Are the results equal bit for bit?

# %% [markdown] tags=["answer"]
# The product is written, then read again; the result is read and written: four numbers moved in the cache for one
# multiplication and one addition. The libraries use an instruction that multiplies and adds in one step (FMA), and
# keep the running sums in registers until they are finished.

# %% [markdown] tags=["answer"]
# Each thread has its own rows of the result and only reads the rest. Nobody writes where another one writes, so the
# order does not matter.

# %% tags=["answer"]
a, b = (random.normal(size=(64, 64)).astype(np.float32) for _ in range(2))
results = {name: multiply(a, b) for name, multiply in VERSIONS.items()}
results["XLA"] = np.asarray(xla(a, b))
in_order = ["sums of rows", "outer products", "blocked", f"blocked, {CORES} threads"]
print("These add one k after the other and round to float32 each time:", "; ".join(in_order))
check("they have the same bits", all(np.array_equal(results[name], results[in_order[0]]) for name in in_order))
print(
    "The three loops add in this order too, but in Python's float64. Of the others only their authors know the order."
)
others = [name for name, result in results.items() if not np.array_equal(result, results[in_order[0]])]
print("not the same bits here:", "; ".join(others) or "none")
for name, result in results.items():
    same(name, result, results["XLA"])

# %% [markdown]
# [Previous: 04 · Matrix products](04_matmul.py) · [Contents](README.md) · [Next: 06 · Batched products](06_batched_matmul.py)
