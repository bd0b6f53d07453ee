# %% [markdown]
# # 01 · Tensors: what a model is made of
#
# [Contents](README.md) · [Next: 02 · Operations](02_operations.py)
#
# ## The question
# A language model continues a text. What is it, as a thing in a computer, and what happens when it runs?
#
# Running a trained model is called *inference*. Three things take part in it:
#
# - the *weights*, also called *parameters*: numbers that were found once, by *training*, and do not change any more;
# - the *input*: the text so far, cut into *pieces*, short words or parts of words. Each piece that the model knows
#   has a number, a *token*, and all of them together are its *vocabulary* (chapter 15);
# - a fixed list of *operations* that combines the two and ends in one number for every possible next piece of text,
#   its *score*.
#
# Training runs the same operations, then works backwards through all of them to find out how each weight should
# change, millions of times. Inference never looks back: it needs no correction, keeps no intermediate result that a
# later operation does not read, and must be fast for one reader who is waiting. This series is about inference only.
#
# All three things are made of one kind of value, the *tensor*. So that is where the series starts.

# %%
from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREY, check, outcome, plt, predict, same, save, table
from safetensors import safe_open

import nanollm_jax as nano

CHECKPOINT = Path(nano.__file__).parent / "assets/nano-stories/model.safetensors"

with safe_open(CHECKPOINT, framework="numpy") as file:
    weights = {name: file.get_tensor(name) for name in file.keys()}

first_layer = [name for name in weights if ".layers." not in name or ".layers.0." in name]
numbers = sum(tensor.size for tensor in weights.values())
in_layers = Counter(name.split(".")[2] for name in weights if ".layers." in name)
check(f"{len(in_layers)} layers of nine tensors, and two outside", set(in_layers.values()) == {9} and
      len(weights) == 9 * len(in_layers) + 2)  # fmt: skip
table(
    f"The bundled model: {len(weights)} tensors, {numbers:,} numbers. The first of its layers, and what is outside",
    ["tensor", "shape", "type", "numbers"],
    [(name, list(weights[name].shape), weights[name].dtype, f"{weights[name].size:,}") for name in first_layer],
)

# %% [markdown]
# That is the whole model: a few dozen named tensors in one file. The first is the *embedding*, a table with one row of
# numbers for each piece that the model knows. Nearly all others belong to *layers*: sets of the same nine tensors with
# other numbers, applied one behind the other. A model of this kind is a *transformer*; what each tensor of it does is the
# rest of the series.
#
# Small files lie beside the large one. Two of them are needed: the *config* says how large the tensors are and how they
# are to be used (chapter 17), another how text becomes numbers (chapter 15). All together are a *checkpoint*: the state
# of a model at the end of its training, as files.
#
# The operations can be listed as well. The library is written with *JAX*, which has NumPy's functions under the name
# `jax.numpy`, for arrays that cannot be changed once they are made. JAX can run a function without any numbers: it
# hands in placeholders that have a shape and a type only, and writes down every operation that they meet. That is
# *tracing*. The list is the *graph*: each line takes tensors, and makes a new one.

# %%
model = nano.load(dtype="float32")
ids = jnp.asarray([model.tokenizer.encode("Once upon a time")])  # [1 T]: one text of T pieces
cache = nano.init_cache(model.config, batch=1, capacity=16, dtype="float32")  # room for what it has read: chapter 20
graph = jax.make_jaxpr(lambda params, ids: nano.forward(params, ids, cache, config=model.config)[0])(model.params, ids)


def operations(jaxpr):
    """Every operation of a graph, those of the functions that it calls included."""
    for equation in jaxpr.eqns:
        inner = [p for p in equation.params.values() if hasattr(p, "jaxpr")]
        inner += equation.params.get("branches", ())[:1]  # of several ways to compute the same, the first
        if equation.primitive.name in ("scan", "while"):  # a loop over what is inside
            yield equation.primitive.name
        if inner:
            for graph in inner:
                yield from operations(graph.jaxpr)
        elif equation.primitive.name not in ("name", "optimization_barrier", "platform_index"):  # labels, and notes
            yield equation.primitive.name


kinds = Counter(operations(graph.jaxpr)).most_common()
total = sum(count for _, count in kinds)
check(
    f"about a thousand operations ({total:,}), of a few dozen kinds ({len(kinds)})",
    500 < total < 2000 and len(kinds) < 60,
)
names = {name for name, _ in kinds}
check("none of them is a loop or a call", {"rsqrt", "exp"} < names and not {"scan", "while", "jit", "pjit"} & names)
products, layers = dict(kinds)["dot_general"], len(in_layers)
check(f"{products} are products of matrices: {products // layers} in each layer, and one more", products % layers == 1)
print("the most frequent:")
print(", ".join(f"{name} {count}" for name, count in kinds[:10]))

first, second = (
    np.asarray(nano.forward(model.params, ids, cache, config=model.config)[0]) for _ in range(2)
)  # [1 T V]
scores = first[0, -1]  # [V]: one for each piece that may come next
likely = [model.tokenizer.piece(int(i)) for i in np.argsort(-scores)[:4]]
print("most probable next pieces, with ▁ for a space:", likely)
check("behind 'Once upon a time' it is a comma", likely[0] == ",")
check("the same weights and the same input give the same scores, bit for bit", np.array_equal(first, second))

# %% [markdown]
# No loops and no state. Most of these only move numbers, or give them another shape. `dot_general` is the multiplication of
# chapter 04, `mul` and `add` are those of chapter 02. Further down the list stand `rsqrt` (one divided by a square root) and
# `exp`, which belong to chapters 08 and 09. In a few places the graph has two branches that compute the same, the first of
# them for CPUs; the list has that one alone.
#
# ## The idea
# Memory is one long row of bytes. A tensor is a way of reading a part of that row:
#
# - a *dtype*: how many bytes one number has, and what its bits mean;
# - a *shape*: how many numbers there are along each *axis*. `[2 3]` is two rows of three numbers; the number of axes
#   is the *rank*;
# - *strides*: how far to walk in memory for one step along each axis;
# - an *offset*: where the first number is.
#
# The number at index `(i, j)` is at `offset + i * strides[0] + j * strides[1]`. Everything else follows from this
# line.
#
# ## From scratch
# Strides count numbers here; NumPy counts bytes.


# %%
def row_major(shape):
    """The strides of a tensor stored row by row: the last axis steps by 1, each one before by the size of all after it."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read(memory, shape, strides, offset=0):
    """memory [n] -> the tensor as nested lists, one number at a time."""
    if not shape:
        return memory[offset]
    return [read(memory, shape[1:], strides[1:], offset + i * strides[0]) for i in range(shape[0])]


def broadcast_shape(a, b):
    """The shape of `x + y`. Axes are compared from the last to the first: equal, or one of the two is 1 or missing."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b)
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        raise ValueError(f"{a} and {b} do not broadcast")
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


memory = np.arange(12, dtype=np.float32)  # [12]: each number says where it lies
x = memory.reshape(3, 4)  # [3 4]

check("strides by hand are NumPy's", row_major((3, 4)) == tuple(s // x.itemsize for s in x.strides) == (4, 1))
same("a tensor of shape [3 4]", read(memory, (3, 4), (4, 1)), x)
same("transposed: shape and strides change places", read(memory, (4, 3), (1, 4)), x.T)
same("a column: start at 2, step by 4", read(memory, (3,), (4,), offset=2), x[:, 2])
same("every second column: stride 2", read(memory, (3, 2), (4, 2)), x[:, ::2])
same("one row seen five times: stride 0", read(memory, (5, 4), (0, 1)), np.broadcast_to(x[0], (5, 4)))
check(
    "none of these NumPy tensors has memory of its own",
    all(np.shares_memory(v, memory) for v in (x.T, x[:, 2], x[:, ::2])),
)

# %% [markdown]
# *Broadcasting* is the last one: where an axis has size 1 or is missing, the tensor is read with stride 0, as if it
# were repeated. That is how one vector is added to every row of a matrix without a copy.

# %%
for a, b in [((3, 4), (4,)), ((3, 1), (1, 4)), ((5, 1, 4), (3, 1)), ((), (2, 2))]:
    check(f"{a} + {b} -> {broadcast_shape(a, b)}", broadcast_shape(a, b) == (np.zeros(a) + np.zeros(b)).shape)
try:
    broadcast_shape((3, 4), (3,))
    check("[3 4] + [3] is refused", False)
except ValueError as error:
    print("ok   refused:", error)

# %% tags=["figure"]
figure, axes = plt.subplots(1, 4, figsize=(9.5, 3.1), width_ratios=[4, 3, 2, 4])
views = [
    ("as it is", (3, 4), (4, 1), 0, x), ("transposed", (4, 3), (1, 4), 0, x.T),
    ("columns 1 and 3", (3, 2), (4, 2), 1, x[:, 1::2]), ("row 0, broadcast", (3, 4), (0, 1), 0, np.broadcast_to(x[0], (3, 4))),
]  # fmt: skip
for ax, (name, shape, strides, offset, by_numpy) in zip(axes, views, strict=True):
    places = np.array(read(memory, shape, strides, offset))
    same(f"{name}: the picture shows what NumPy has", places, by_numpy, tolerance=0)
    ax.imshow(places, vmin=-2, vmax=16)
    for (i, j), place in np.ndenumerate(places):
        ax.text(j, i, f"{place:.0f}", ha="center", va="center", color="white" if place > 7 else "black")
    ax.set(title=name, xlabel=f"shape {list(shape)}\nstrides {list(strides)}, offset {offset}", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
save(figure, "01_views")

# %% [markdown]
# ![Four tensors over the same twelve numbers of memory](figures/01_views.png)
#
# *Four ways of reading the same twelve numbers. Each cell shows the place in memory that it reads; the stronger its
# colour, the further from the start.*
#
# ## The bits of a number
# The weights are stored as `bfloat16`: 2 bytes a number. A `float32` has one bit for the sign, 8 for the exponent
# (which power of two) and 23 for the digits. A `bfloat16` is its first half: the same range, and 7 bits for the digits.
# The first digit of a binary number is a 1 always and is not stored; with it a bfloat16 has 8 *significant* bits, a
# float32 has 24. The other format of 2 bytes, `float16`, has 5 bits for the exponent and 11 that are significant.


# %%
def bfloat16_to_float32(bits):
    """uint16 [...] -> float32 [...], from sign, exponent and digits. Zero and the smallest numbers have exponent 0."""
    bits = bits.astype(np.int64)
    sign, exponent, digits = bits >> 15, (bits >> 7) & 0xFF, bits & 0x7F
    size = np.where(exponent == 0, digits / 128 * 2.0**-126, (1 + digits / 128) * 2.0 ** (exponent - 127))
    return np.where(sign == 1, -size, size).astype(np.float32)


embedding = weights["model.embed_tokens.weight"]  # [V D] bfloat16, D numbers for each of the V pieces
decoded = bfloat16_to_float32(embedding.view(np.uint16))  # [V D] float32
every = np.arange(2**16, dtype=np.uint16)  # [65536]: all that 16 bits can be
every = every[(every >> 7 & 0xFF) < 255]  # the largest exponent is that of infinity, and of what is not a number
same(
    f"all {every.size:,} finite bfloat16, decoded bit by bit",
    bfloat16_to_float32(every),
    every.view(embedding.dtype),
    0,
)
same("all weights of the embedding", decoded, embedding.astype(np.float32), tolerance=0)
same("and what the library loads", model.params["embedding"]["tokens"], decoded, tolerance=0)

# %% tags=["question"]
predict("in bfloat16, what is 256 + 1? And what is the smallest whole number n for which float32 gives n + 1 = n?")

# %% tags=["answer"]
outcome(jnp.bfloat16(256) + jnp.bfloat16(1), "is 256 + 1 in bfloat16")
first_lost = {}
for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
    name = jnp.dtype(dtype).name
    n = first_lost[name] = next(2**k for k in range(40) if dtype(2**k) + dtype(1) == dtype(2**k))
    print(f"{name:8}  first n with n + 1 = n: {n:>10,}   largest number: {float(jnp.finfo(dtype).max):.3g}")
check("it is 2 to the number of significant bits",
      first_lost == {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24})  # fmt: skip
check("bfloat16 cannot tell 257 from 256", jnp.bfloat16(257) == jnp.bfloat16(256))
check("float32 can", jnp.float32(257) != jnp.float32(256))

# %% [markdown]
# It is not good enough for a counter, then, and a position in a text is one. For a weight it may be: weights are used in
# long sums, and there the errors of the single numbers, some up and some down, nearly cancel.

# %%
long = np.random.default_rng(1).normal(size=(200, 4096))  # [200 4096]: the terms of 200 sums
rounded = np.asarray(jnp.bfloat16(long), np.float64)
one, whole = (
    np.abs(rounded - long).sum() / np.abs(long).sum(),
    np.abs((rounded - long).sum(1)).mean() / np.abs(long).sum(1).mean(),
)
print(
    f"rounded to bfloat16, a number is off by {one:.2%} of its size, and a sum of 4,096 by {whole:.4%} of all their sizes"
)
check("the sum is nearer by a factor that is not far from 64, the root of 4,096", one / 100 < whole < one / 40)

# %% [markdown]
# Which numbers may be short is a question that returns in chapters 08, 09 and 24.

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 3.4))
values = embedding.astype(np.float32).ravel()
ax.hist(values, bins=np.linspace(-0.3, 0.3, 121), color=BLUE)
for power in range(-7, -1):
    for side in (-1, 1):
        ax.axvline(side * 2.0**power, color=GREY, linewidth=0.8, linestyle=":")
ax.set(xlabel="weight", ylabel="how many", title=f"{values.size:,} weights of the embedding, and the powers of two")
save(figure, "01_weights")
print(
    f"{np.mean(np.abs(values) < 0.25):.1%} of the weights lie between -0.25 and 0.25; the furthest from 0 is "
    f"{np.abs(values).max():.2f} away, and those further than 0.3 are not in the picture"
)

# %% [markdown]
# ![Histogram of the embedding's weights](figures/01_weights.png)
#
# *Trained weights are small and lie around zero. The dotted lines are powers of two. Between two neighbours on one side
# of zero bfloat16 has 128 numbers, however near they stand; between the two innermost lie all smaller powers.*
#
# ## In the engine
# - Which tensors a model has, and the shape of each, is decided in one place: `nanollm_jax.params.layout` names the
#   axes with letters, and `nanollm_jax.params.shapes` puts sizes in. The letters are the same in the whole library:
#   `V` is the size of the vocabulary, `D` how many numbers stand for a piece: the embedding is `[V D]`.
# - `nanollm_jax.dtypes.resolve_dtype` picks the dtype: float32 on a CPU, bfloat16 on a GPU or a *TPU* (a processor
#   that Google builds for products of tensors). Three things are float32 always: angles of positions (chapter 12), sums
#   of squares (chapter 08), and scores:
#   `nanollm_jax.ops.rope.turns`, `nanollm_jax.ops.norm.rms_norm`, `nanollm_jax.ops.linear.contract`.
# - A JAX array has no strides that you could see, and cannot be changed. Its compiler (chapter 02) lays memory out as it likes,
#   and a transposition is often no operation at all. NumPy shows what happens, so chapters 01 to 05 use it.
#
# ## Exercises
# 1. What are the strides of a tensor `[2 3 4]`, stored row by row? Where is the number at index `(1, 2, 3)`?
# 2. Read the twelve numbers of `memory` backwards without copying any.
# 3. `x` has shape `[3 4]` and `row_sums` has shape `[3]`. Why does `x / row_sums` fail, and what is the smallest
#    repair?

# %% tags=["answer"]
strides = row_major((2, 3, 4))
place = 1 * strides[0] + 2 * strides[1] + 3 * strides[2]
print("strides", strides, "- place", place)
check("the strides that NumPy has, in bytes", strides == tuple(n // 8 for n in np.zeros((2, 3, 4)).strides))
check("it is the last of 24 numbers", place == np.ravel_multi_index((1, 2, 3), (2, 3, 4)) == 23)

# %% tags=["answer"]
print("start at the last number and step by -1")
same("backwards", read(memory, (12,), (-1,), offset=11), memory[::-1])

# %% tags=["answer"]
print("Axes are compared from the last: 4 meets 3. The sums need an axis of size 1 at the end, [3 1].")
row_sums = x.sum(axis=1)  # [3]
same("now every row sums to 1", (x / row_sums[:, None]).sum(axis=1), np.ones(3))

# %% [markdown]
# [Contents](README.md) · [Next: 02 · Operations](02_operations.py)
