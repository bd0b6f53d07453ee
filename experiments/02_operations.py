# %% [markdown]
# # 02 · Operations: one output number at a time
#
# [Previous: 01 · Tensors](01_tensors.py) · [Contents](README.md) · [Next: 03 · Memory layout](03_memory_layout.py)
#
# ## The question
# The graph of chapter 01 has about a thousand operations. How many different ideas are in it?
#
# ## The idea
# Three. Besides them there are operations that only move numbers from place to place or give them another shape: most
# lines of the graph, and none of its arithmetic (chapter 04 counts both). The three:
#
# - *elementwise*: each number of the output comes from the numbers at the same index of the inputs. `x + y`,
#   `exp(x)`;
# - a *reduction*: one axis disappears, because all numbers along it become one. `sum`, `max`, `mean`;
# - a *contraction*: numbers of two tensors are multiplied in pairs, and the products are summed along the axes that
#   both share. Every matrix product is one.
#
# *Einsum* is a notation for the last two. Give every axis a letter; letters that are missing behind the arrow are
# summed. `"TD,DF->TF"` says: for every T and every F, sum over D the products of the first tensor at `[T D]` and the
# second at `[D F]`.
#
# ## From scratch
# Each idea as loops over single numbers.

# %%
from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from chapter import check, outcome, plt, predict, same, save, table

import nanollm_jax as nano
from nanollm_jax.ops import linear
from nanollm_jax.ops.mlp import ACTIVATIONS

random = np.random.default_rng(0)


def elementwise(function, *tensors):
    """[...] -> [...]: all inputs of one shape; broadcast them first."""
    out = np.full(tensors[0].shape, np.nan)  # so that a place that is forgotten shows
    for index in np.ndindex(out.shape):
        out[index] = function(*(tensor[index] for tensor in tensors))
    return out


def reduce(function, start, tensor, axis):
    """[... A ...] -> [... ...]: walk along one axis and combine what is found with what was found before."""
    out = np.full(tensor.shape[:axis] + tensor.shape[axis + 1 :], start, float)
    for index in np.ndindex(tensor.shape):
        place = index[:axis] + index[axis + 1 :]
        out[place] = function(out[place], tensor[index])
    return out


def einsum(equation, *tensors):
    """Any einsum: one loop over every combination of all letters, one product of one number of each tensor, one sum."""
    inputs, output = equation.split("->")
    inputs = inputs.split(",")
    size = {}
    for letters, tensor in zip(inputs, tensors, strict=True):
        size |= dict(zip(letters, tensor.shape, strict=True))
    out = np.zeros([size[letter] for letter in output])
    for combination in itertools.product(*(range(n) for n in size.values())):
        at = dict(zip(size, combination, strict=True))
        factors = [t[tuple(at[x] for x in letters)] for letters, t in zip(inputs, tensors, strict=True)]
        out[tuple(at[letter] for letter in output)] += math.prod(factors)
    return out


x, y = random.normal(size=(3, 4)), random.normal(size=(3, 4))  # [3 4]
same("elementwise: x * exp(y)", elementwise(lambda a, b: a * math.exp(b), x, y), x * np.exp(y))
same("reduction: the sum of each column", reduce(lambda a, b: a + b, 0, x, axis=0), x.sum(0))
same("reduction: the largest of each row", reduce(max, -math.inf, x - 9, axis=1), (x - 9).max(1))  # all negative

# %% [markdown]
# One `einsum` does the work of a page of functions. On the right, what NumPy calls the same thing.

# %%
a, b = random.normal(size=(3, 4)), random.normal(size=(4, 5))  # [3 4], [4 5]
u, v, square = random.normal(size=4), random.normal(size=4), random.normal(size=(4, 4))  # [4], [4], [4 4]
many, other = random.normal(size=(2, 3, 4)), random.normal(size=(2, 4, 5))  # [2 3 4], [2 4 5]
cases = [
    ("i,i->", (u, v), np.dot(u, v), "dot product"),
    ("i,j->ij", (u, v), np.outer(u, v), "outer product"),
    ("ij,j->i", (a, u), a @ u, "matrix times vector"),
    ("ij,jk->ik", (a, b), a @ b, "matrix times matrix"),
    ("ij->ji", (a,), a.T, "transposition"),
    ("ij->i", (a,), a.sum(1), "sum of each row"),
    ("ii->", (square,), np.trace(square), "trace: the sum of the diagonal"),
    ("bij,bjk->bik", (many, other), many @ other, "a matrix product for each b"),
]
for equation, tensors, reference, name in cases:
    same(f"{equation:14} {name}", einsum(equation, *tensors), reference)

# %% [markdown]
# The loop over all letters also says what a contraction costs: one multiplication and one addition for every
# combination, of which there are as many as the product of all sizes.
#
# The loops are far too slow in Python. The same thing without loops: give each tensor all the letters, with size 1
# where it has none, multiply with broadcasting (chapter 01), and sum the letters that are not in the output.


# %%
def einsum_by_broadcasting(equation, *tensors):
    """The same for different letters in each input: one big product with every letter as an axis, then one sum."""
    inputs, output = equation.split("->")
    letters = output + "".join(sorted(set(inputs) - set(output) - {","}))
    product = 1.0
    for own, tensor in zip(inputs.split(","), tensors, strict=True):
        order = sorted(own, key=letters.index)
        tensor = np.transpose(tensor, [own.index(letter) for letter in order])
        size = dict(zip(order, tensor.shape, strict=True))
        product = product * tensor.reshape([size.get(letter, 1) for letter in letters])
    return product.sum(axis=tuple(range(len(output), len(letters))))


for equation, tensors, reference, _ in cases:
    if equation != "ii->":
        same(f"{equation:14} by broadcasting", einsum_by_broadcasting(equation, *tensors), reference)

# %% [markdown]
# It is fast, but it stores all products before it sums them. Look at them once, for a product of two small matrices:
# letter k is summed.

# %%
random = np.random.default_rng(12)
left, right = random.normal(size=(4, 3)), random.normal(size=(3, 5))  # [i k], [k j]
products = np.einsum("ik,kj->kij", left, right)  # [k i j]: nothing is summed yet
summed = products.sum(0)  # [i j]
same("the sum of the three pictures is the matrix product", summed, left @ right)

# %% tags=["figure"]
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.1))
pictures = [*products, summed]
names = [f"k = {k}:  left[:, {k}] times right[{k}, :]" for k in range(3)] + ["their sum: left @ right"]
for ax, picture, name, sign in zip(axes, pictures, names, ["+", "+", "=", ""], strict=True):
    ax.imshow(picture, cmap="RdBu", vmin=-4, vmax=4)
    for (i, j), value in np.ndenumerate(picture):
        ax.text(
            j,
            i,
            f"{round(value, 1) + 0:.1f}",
            ha="center",
            va="center",
            size=8,
            color="white" if abs(value) > 2.4 else "black",
        )
    ax.set_title(name, size=9)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.text(1.06, 0.5, sign, transform=ax.transAxes, ha="center", va="center", size=16)
save(figure, "02_contraction")

# %% [markdown]
# ![A matrix product as a sum of outer products](figures/02_contraction.png)
#
# *"ik,kj->ij" before and after the sum over k. Each picture is an outer product: one column of the left matrix with
# one row of the right. Red is negative, blue positive.*
#
# ## The order of a sum
# In mathematics a sum does not depend on the order. In a computer every addition rounds to the digits that the dtype
# has (chapter 01).

# %% tags=["question"]
predict("twenty million float32 ones are added one after the other. What is the sum?")

# %% tags=["answer"]
ones = np.ones(20_000_000, np.float32)  # [20000000]
one_by_one = np.cumsum(ones)[-1]  # keeps every partial sum, so it has to add in order
outcome(one_by_one, "one after the other")
print(f"NumPy's sum:         {ones.sum():,.0f}   (each half is summed by itself, so numbers of one size are added)")
check("the sum in order stops where n + 1 = n", one_by_one == 2.0**24)
check("the sum by halves is exact", ones.sum() == ones.size)

# %% [markdown]
# So two right programs may differ in the last digits, and checks of floating-point results need a tolerance: `same`
# has one.
#
# ## In the engine
# - A contraction is written as `nanollm_jax.ops.linear.contract`, an einsum that adds up in float32 even where its inputs
#   have 16 bits. `nanollm_jax.ops.mlp` (chapter 13) is two contractions with elementwise operations between,
#   `nanollm_jax.ops.norm.rms_norm` (chapter 08) a reduction and elementwise operations.
# - `jax.jit(f)` is the function f, compiled *just in time*, in short *jit*. When it is first called with arguments of
#   some shapes, JAX traces f (chapter 01) and hands the graph to *XLA*, the compiler behind it; every later call with
#   the same shapes runs the machine code that came out. `.lower(x)` and `.compile()` do the two halves without
#   running anything. For this f has to be *functional*: what it returns depends on its arguments alone, and it
#   changes nothing else. Then the graph of one call serves all. That is why a JAX array cannot be changed.
# - Elementwise operations that follow each other are not run one by one: XLA *fuses* them into one loop that reads its
#   inputs once. That can be counted.

# %%
tokens = random.normal(size=(1, 5, 8)).astype(np.float32)  # [B T D]
weight = random.normal(size=(8, 12)).astype(np.float32)  # [D F]
same("the library's contract", linear.contract("BTD,DF->BTF", tokens, weight), einsum("BTD,DF->BTF", tokens, weight))


def gelu_by_hand(x):
    """Nine elementwise operations in a row; chapter 07 says what they are for."""
    return 0.5 * x * (1 + jnp.tanh(0.79788456 * (x + 0.044715 * x * x * x)))


same("the library's activation of this name", gelu_by_hand(tokens), ACTIVATIONS["gelu_tanh"](tokens))
written = len(jax.make_jaxpr(gelu_by_hand)(jnp.ones(1000)).eqns)
compiled = jax.jit(gelu_by_hand).lower(jnp.ones(1000)).compile().as_text()
entry = compiled[compiled.index("ENTRY") :]
loops = sum(" fusion(" in line or "call(" in line for line in entry.splitlines())
print(f"{written} operations written, {loops} loop compiled")
check("all of them became one loop", loops == 1 and written == 9)

# %% [markdown]
# ## Exercises
# 1. Write the mean over T of a tensor `[B T D]` as an einsum and a division.
# 2. What does `"ij,ij->"` compute, and how would you say it with `x` and `y` in NumPy?
# 3. One of the products in every layer looks like `"BTD,NHD->BTNH"`: B texts of T pieces go in, D numbers for each, and
#    come out as N vectors of H numbers. (They are the queries of chapter 10.) How many multiplications is that in
#    the bundled model, for one text of 5 pieces? (`nano.load().config` has its `hidden_size`, D, its `num_heads`, N, and
#    its `head_dim`, H.)

# %% tags=["answer"]
same("einsum, then divide by T", einsum("BTD->BD", many) / many.shape[1], many.mean(1))

# %% tags=["answer"]
same("the sum of all products in pairs", einsum("ij,ij->", x, y), (x * y).sum())

# %% tags=["answer"]
model = nano.load(dtype="float32")
config = model.config
sizes = {"B": 1, "T": 5, "D": config.hidden_size, "N": config.num_heads, "H": config.head_dim}
# the weight, N in two axes; behind it are keys and values
queries = model.params["layers"][0]["attention"]["wqkv"][:, :-2]
check("five for each number of the weight", math.prod(sizes.values()) == 5 * queries.size)
table("The product of all sizes", [*sizes, "multiplications"], [[*sizes.values(), f"{math.prod(sizes.values()):,}"]])

# %% [markdown]
# [Previous: 01 · Tensors](01_tensors.py) · [Contents](README.md) · [Next: 03 · Memory layout](03_memory_layout.py)
