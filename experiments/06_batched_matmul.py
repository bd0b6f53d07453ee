# %% [markdown]
# # 06 · Batched products: the shapes of attention
#
# [Previous: 05 · Fast products](05_fast_matmul.py) · [Contents](README.md) · [Next: 07 · Activations](07_activations.py)
#
# ## The question
# The tensors inside a model have three, four or five axes, and its equations look like `"BTKGH,BKSH->BKGTS"`. How
# does that become the matrix product of chapters 04 and 05? And which of these products gain from a batch?
#
# ## The idea
# Take the letters of an einsum of two tensors. There are four kinds:
#
# - in both inputs and in the output: *batch* letters. There is one independent product for each of their values;
# - in both inputs, not in the output: *summed* letters, the `k` of a matrix product;
# - in the first input and the output: *rows*;
# - in the second input and the output: *columns*.
#
# (A letter that only one input has, and not the output, can be summed before.) Order the axes by kind, merge each kind into
# one axis, and every einsum of two tensors is the same thing: a *batched matrix product* `[b i k] x [b k j] -> [b i j]`.
#
# ## From scratch

# %%
from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, ORANGE, check, check_time, outcome, plt, predict, quick, same, save, seconds, table
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops import attention, linear

random = np.random.default_rng(0)


def batched_matmul(a, b):
    """[b i k], [b k j] -> [b i j]: a loop of matrix products."""
    return np.stack([a[n] @ b[n] for n in range(a.shape[0])])


def kinds(equation):
    """The letters of an einsum of two tensors, by kind."""
    inputs, output = equation.split("->")
    first, second = inputs.split(",")
    return {
        "batch": [x for x in output if x in first and x in second],
        "rows": [x for x in output if x in first and x not in second],
        "columns": [x for x in output if x in second and x not in first],
        "summed": [x for x in first if x in second and x not in output],
    }


def einsum(equation, a, b):
    """Any einsum of two tensors as one batched matrix product: order, merge, multiply, split, order."""
    inputs, output = equation.split("->")
    first, second = inputs.split(",")
    size = dict(zip(first, a.shape, strict=True)) | dict(zip(second, b.shape, strict=True))
    batch, rows, columns, summed = kinds(equation).values()

    def merged(tensor, letters, *groups):
        """[...] -> one axis for each group of letters."""
        ordered = np.transpose(tensor, [letters.index(x) for group in groups for x in group])
        return ordered.reshape([math.prod(size[x] for x in group) for group in groups])

    out = batched_matmul(merged(a, first, batch, rows, summed), merged(b, second, batch, summed, columns))  # [b i j]
    order = [*batch, *rows, *columns]
    return np.transpose(out.reshape([size[x] for x in order]), [order.index(x) for x in output])


# %% [markdown]
# These are the library's products, in its letters, which mean the same everywhere: `B` texts in a batch, `T` new pieces
# of each, `D` the length of their vectors, `N` query heads in `K` groups of `G`, `H` the width of a head, `S`
# remembered pieces, `F` the width of the feed-forward part, `V` the vocabulary. `Q` is `G` + 2: the queries of a group,
# its key and its value. `U` is 2: two matrices of the feed-forward part in one. Chapters 10, 11 and 13 say what these
# are; here they are axes.

# %%
sizes = {"B": 2, "T": 3, "D": 8, "N": 4, "K": 2, "G": 2, "H": 5, "S": 7, "F": 6, "V": 11, "Q": 4, "U": 2}
equations = {
    "BTD,KQHD->BTKQH": "make queries, keys, values", "BTKGH,BKSH->BKGTS": "compare queries with keys",
    "BKGTS,BKSH->BKGTH": "mix values", "BTNH,DNH->BTD": "from heads back",
    "BTD,UFD->BTUF": "widen", "BTF,DF->BTD": "narrow again", "BTD,VD->BTV": "score the vocabulary",
}  # fmt: skip
rows = []
for equation, name in equations.items():
    a, b = (
        random.normal(size=[sizes[x] for x in letters]).astype(np.float32)
        for letters in equation.split("->")[0].split(",")
    )
    ours = einsum(equation, a, b)
    same(f"{equation:18} as one batched product, against NumPy", ours, np.einsum(equation, a, b))
    same(
        f"{equation:18} against the library",
        linear.contract(equation, jnp.asarray(a), jnp.asarray(b)),
        ours,
    )
    groups = kinds(equation)
    total = math.prod(sizes[x] for group in groups.values() for x in group)
    rows.append([equation, name, *("".join(group) or "-" for group in groups.values()), f"{2 * total:,}"])
table("Letters by kind", ["equation", "what it does", "batch", "rows", "columns", "summed", "FLOPs here"], rows)

# %% [markdown]
# Look at the batch column. A product with a weight has none: `B` and `T` are rows, so all texts and all pieces go
# through the weight as one tall matrix. The two products of attention have batch letters: each text compares its own
# queries with its own keys, and no product can be shared. Here are both kinds, for two texts of three pieces:

# %% tags=["figure"]
texts = random.normal(size=(2, 3, 5))  # [B T H]
weight, keys = random.normal(size=(4, 5)), random.normal(size=(2, 4, 5))  # [F H], [B S H]
through_weight, with_keys = einsum("BTH,FH->BTF", texts, weight), einsum("BTH,BSH->BTS", texts, keys)
check("B is a row letter in one and a batch letter in the other",
      "B" in kinds("BTH,FH->BTF")["rows"] and "B" in kinds("BTH,BSH->BTS")["batch"])  # fmt: skip
same("all rows of both texts through the weight", through_weight, (texts.reshape(6, 5) @ weight.T).reshape(2, 3, 4))
same("each text with its own keys", with_keys, [texts[0] @ keys[0].T, texts[1] @ keys[1].T])
figure, (left, right) = plt.subplots(1, 2, figsize=(5.6, 2.4))


def draw(ax, matrix, x, y, tint):
    """A matrix [rows columns] as cells, its upper left corner at (x, y)."""
    across, down = (start + np.arange(size + 1) for start, size in zip((x, y), matrix.shape[::-1], strict=True))
    ax.pcolormesh(across, down, np.abs(matrix), cmap=tint, vmin=-1.5, vmax=4, edgecolor="white", linewidth=1)


for n, tint in enumerate(("Blues", "Oranges")):
    draw(left, texts[n], 0, 2.6 + 3 * n, tint)
    draw(left, through_weight[n], 12.6, 2.6 + 3 * n, tint)
    draw(right, texts[n], 0, 1 + 6.2 * n, tint)
    draw(right, keys[n].T, 6.8, 6.2 * n, tint)
    draw(right, with_keys[n], 12.6, 1 + 6.2 * n, tint)
draw(left, weight.T, 6.8, 3.1, "Greys")
for ax, title, middles in ((left, "one weight: one product", [5.6]), (right, "own keys: a product a text", [2.5, 8.7])):
    for x, sign in ((5.9, "×"), (11.7, "=")):
        for y in middles:
            ax.text(x, y, sign, ha="center", va="center", size=13)
    ax.set(title=title, aspect="equal", xlim=(-0.9, 17.5), ylim=(11.5, -0.2), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
save(figure, "06_kinds")

# %% [markdown]
# ![Two texts through one weight, and each with its own keys](figures/06_kinds.png)
#
# *A cell is a number, the stronger the further from 0; blue is the first text and orange the second. Left: the rows of both
# texts lie one below the other and go through the weight (grey) together. Right: each has keys of its own, so there are two
# products.*
#
# ## On real values
# The library can show every value inside the model (`nanollm_jax.glass.observe`). These are the values of attention
# in the first layer, for a short text.

# %%
model = nano.load(dtype="float32")
config = model.config
ids = jnp.asarray([model.tokenizer.encode("The dog sat on the bed.")])  # [1 T]
cache = nano.init_cache(config, batch=1, capacity=ids.shape[1], dtype="float32")
_, values = nano.observe(nano.forward, model.params, ids, cache, config=config)
seen = {name: np.asarray(values[f"layers.0.{name}"]) for name in
        ("attention_norm", "attention.q", "attention.v", "attention.weights", "attention.mixed")}  # fmt: skip
for name, value in seen.items():
    print(f"{name:18} {list(value.shape)}")

with safe_open(Path(nano.__file__).parent / "assets/nano-stories/model.safetensors", framework="numpy") as file:
    stored = file.get_tensor("model.layers.0.self_attn.v_proj.weight").astype(np.float32)  # [K*H D]
K, H, D = config.num_kv_heads, config.head_dim, config.hidden_size
weight = stored.T.reshape(D, K, H)  # [D K H]
v = einsum("BTD,DKH->BTKH", seen["attention_norm"], weight)  # [B T K H]
same("the values v of the first layer", v, seen["attention.v"])

weights = seen["attention.weights"]  # [B K G T S]: how much of each remembered piece each new piece takes
mixed = einsum("BKGTS,BSKH->BTKGH", weights, v)  # [B T K G H]
mixed = mixed.reshape(*v.shape[:2], config.num_heads, H)  # [B T N H]
same("the mixed values of the first layer", mixed, seen["attention.mixed"])
same("and the library's function", attention.mix(weights, jnp.asarray(v.swapaxes(1, 2))), mixed)

# %% [markdown]
# ## Which products gain from a batch
# One more piece is written for each of B texts. The weight is shared by all of them. The keys and values are each
# text's own.

# %%
width, S = (64, 64) if quick() else (2048, 4096)
batches = [1, 2, 4, 8]
shared = jnp.asarray(random.normal(size=(width, S)), jnp.float32)  # [D F], 32 MB
own = jax.random.normal(jax.random.key(0), (batches[-1], S, width))  # [B S H], 32 MB for each text
with_shared = jax.jit(lambda x, w: linear.contract("BD,DF->BF", x, w))
with_own = jax.jit(lambda q, k: linear.contract("BH,BSH->BS", q, k))
x = jnp.asarray(random.normal(size=(batches[-1], width)), jnp.float32)  # [B D]
same("a batch gives each text what it gets alone, from own keys", with_own(x, own)[3:4],
     einsum("BH,BSH->BS", np.asarray(x[3:4]), np.asarray(own[3:4])))  # fmt: skip
same("and from a shared weight", with_shared(x, shared)[3:4], np.asarray(x[3:4]) @ np.asarray(shared))

# %% tags=["question"]
predict(
    "from 1 text to 8: how many times longer does the product with the shared weight take? And that with the own keys?"
)

# %% tags=["answer"]
took = {
    "shared weight": [seconds(with_shared, x[:B], shared, repeats=15) for B in batches],
    "own keys": [seconds(with_own, x[:B], own[:B], repeats=15) for B in batches],
}
table(
    "Milliseconds for one step of B texts",
    ["", *(f"B = {B}" for B in batches), "8 against 1"],
    [(name, *(f"{t * 1e3:.2f}" for t in times), f"{times[-1] / times[0]:.1f}x") for name, times in took.items()],
)
growth = {name: times[-1] / times[0] for name, times in took.items()}
outcome(growth["shared weight"], "times as long with the shared weight")
check_time(
    "the shared weight gains more from a batch than the own keys", 1.5 * growth["shared weight"] < growth["own keys"]
)

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
for (name, times), colour in zip(took.items(), (BLUE, ORANGE), strict=True):
    per_text = [t / B * 1e3 for t, B in zip(times, batches, strict=True)]
    left.plot(batches, per_text, "o-", color=colour, label=name)
left.set(
    xscale="log",
    xlabel="texts in the batch",
    ylabel="milliseconds per text",
    ylim=(0, None),
    title="The time for each text",
)
left.set_xticks(batches, batches)
left.minorticks_off()
left.legend()
tokens = [model.tokenizer.piece(int(i)).replace("▁", "") or "·" for i in ids[0]]
picture = weights[0, 0, 0]  # [T S] of the first head
right.imshow(picture, vmin=0, vmax=1)
right.set_xticks(range(len(tokens)), tokens, rotation=90, size=8)
right.set_yticks(range(len(tokens)), tokens, size=8)
right.set(title="B K G T S: one text, one head", xlabel="S, remembered", ylabel="T, new")
for letter in ("top", "right"):
    right.spines[letter].set_visible(True)
save(figure, "06_batches")

# %% [markdown]
# ![Time per text against batch size, and one slice of the attention weights](figures/06_batches.png)
#
# *Left: measured. A shared weight is read once for all texts, so each text pays less in a larger batch. Own keys are
# read for one text only, so there is nothing to share. (Where their line rises, the keys of a few texts probably still lay in
# the processor's cache from the run before, and those of many do not fit.) Right: what
# `"BKGTS"` holds for one text B, one K and one G: a matrix `[T S]`, how much each new piece takes from each
# remembered one.*
#
# ## In the engine
# - `nanollm_jax.ops.attention.scores` and `nanollm_jax.ops.attention.mix` are the two batched products of attention.
#   All others are products with a weight: `nanollm_jax.ops.linear.product` takes vectors as the rows of one matrix, and a
#   weight whose rows are the outputs.
# - G query heads share the keys and values of one head K, so G is a *row* letter: what is read for one of them is read for
#   all G. This gain is built into the model. It is what grouped queries are for, chapter 11.
# - In `nanollm_jax.ops.attention.mix` the axis T changes its place after the product and not in the einsum. That is for one
#   compiler; a comment there says which, and why.
# - The memory that grows with every text is `nanollm_jax.cache.KVCache`; chapter 20.
#
# ## Exercises
# 1. In `"BTD,KQHD->BTKQH"`, which letters are rows, columns and summed? Is there a batch letter?
# 2. Write `batched_matmul` for inputs whose batch axis is the *last* one, with one einsum.
# 3. When does reordering the axes cost a copy of the tensor, and when not?

# %% tags=["answer"]
print(kinds("BTD,KQHD->BTKQH"))
check("no batch letter", kinds("BTD,KQHD->BTKQH") == {"batch": [], "rows": ["B", "T"], "columns": ["K", "Q", "H"],
                                                       "summed": ["D"]})  # fmt: skip

# %% tags=["answer"]
a, b = random.normal(size=(3, 4, 2)), random.normal(size=(4, 5, 2))  # [i k b], [k j b]
same("ikb,kjb->ijb", einsum("ikb,kjb->ijb", a, b), np.stack([a[..., n] @ b[..., n] for n in range(2)], axis=-1))

# %% [markdown] tags=["answer"]
# The transposition itself is a view (chapter 03). Merging two axes afterwards needs them to follow each other in
# memory. Where they do, merging is a view too; where they do not, it is a copy. So a good order of the axes, chosen
# once when the weights are loaded, saves a copy in every step.

# %% [markdown]
# [Previous: 05 · Fast products](05_fast_matmul.py) · [Contents](README.md) · [Next: 07 · Activations](07_activations.py)
