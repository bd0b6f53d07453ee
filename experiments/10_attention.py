# %% [markdown]
# # 10 · Attention: one position reads from others
#
# [Previous: 09 · Softmax](09_softmax.py) · [Contents](README.md) · [Next: 11 · Many heads](11_attention_heads.py)
#
# ## The question
# A model has one vector for each piece of the text. Linear layers, activations and norms (chapters 04, 07, 08) work
# on each vector alone. But what follows "she" depends on who she is, and that was said some pieces earlier. How does a
# vector get something from another position?
#
# ## The idea
# Think of a Python dictionary: there are keys with values, a query is compared with the keys, and the value of the
# one that is equal comes back. *Attention* is a soft dictionary. Its queries, keys and values are vectors, and each kind is
# made from the vectors of the text by a weight matrix, a *projection*:
#
# - the *query* of a position says what it looks for;
# - the *key* of a position says what is to be found there;
# - the *value* of a position is what it hands over.
#
# The larger the dot product of a query and a key, the better the two match. Softmax (chapter 09) turns the matches of
# one query into weights that sum to 1, and the answer is the mean of the values with these weights. The matrices that
# make queries, keys and values were trained; the rest is arithmetic.
#
# *Self*-attention means that queries, keys and values come from the same text. In a model that writes, a position may
# look at itself and at what came before, never at what comes after: while the model writes, that is not there yet. One
# such set of three matrices is a *head*.
#
# ## From scratch
# The bundled model's own numbers, for a short text. The vectors that go into attention are taken from the library;
# the weights come straight from the file.

# %%
from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, ORANGE, check, interactive, plt, predict, quick, same, save, table
from engine_steps import grow
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops import attention

TEXT = "Lily had a red ball. She gave the ball to Tom and he was happy."
model = nano.load(dtype="float32")
config = model.config
N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
ids = model.tokenizer.encode(TEXT)
pieces = [model.tokenizer.piece(token).replace("▁", "") for token in ids]
T = len(ids)
cache = nano.init_cache(config, batch=1, capacity=T, dtype="float32")
_, values = nano.observe(nano.forward, model.params, jnp.asarray([ids]), cache, config=config)


def seen(layer, name):
    """A value inside the library's run on this text, without the axis of the batch."""
    return np.asarray(values[f"layers.{layer}.{name}"][0])


with safe_open(Path(nano.__file__).parent / "assets/nano-stories/model.safetensors", framework="numpy") as file:
    stored = {name: file.get_tensor(name).astype(np.float32) for name in file.keys() if "self_attn" in name}


def projection(layer, name, head):
    """The rows of one head in a stored matrix: [H D]."""
    return stored[f"model.layers.{layer}.self_attn.{name}_proj.weight"][head * H : (head + 1) * H]


def softmax(scores):
    """[S] -> [S], positive and with the sum 1; the largest score is subtracted first so that nothing overflows."""
    powers = np.exp(scores - np.max(scores))
    return powers / powers.sum()


def attend(q, k, v):
    """q [T H], k [T H], v [T H] -> [T H] and the weights [T T], one number at a time."""
    T, H = q.shape
    weights, out = np.zeros((T, T)), np.zeros((T, H))
    for t in range(T):
        scores = np.zeros(t + 1)  # of itself and those before
        for s in range(t + 1):
            for h in range(H):
                scores[s] += q[t, h] * k[s, h] / math.sqrt(H)
        weights[t, : t + 1] = softmax(scores)
        for s in range(t + 1):
            out[t] += weights[t, s] * v[s]
    return out, weights


LAYER, HEAD = 0, 3
x = seen(LAYER, "attention_norm")  # [T D]
q = x @ projection(LAYER, "q", HEAD).T  # [T H]
k = x @ projection(LAYER, "k", HEAD * K // N).T  # [T H]: query heads share keys and values, chapter 11
v = x @ projection(LAYER, "v", HEAD * K // N).T  # [T H]
out, weights = attend(q, k, v)
print(f"{T} pieces, vectors of {x.shape[1]} numbers, heads of {H}")
same("every row of weights sums to 1", weights.sum(1), np.ones(T))
check("nothing comes from the future", np.array_equal(weights, np.tril(weights)))

# %% [markdown]
# The same without loops, and three references: the library's two functions, and the attention that comes with JAX.


# %%
def attend_at_once(q, k, v):
    """q, k, v [T H] -> [T H] and the weights [T T]."""
    scores = q @ k.T / math.sqrt(q.shape[1])  # [T T]
    scores = np.where(np.tril(np.ones(scores.shape, bool)), scores, -np.inf)  # exp(-inf) is 0
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = powers / powers.sum(axis=1, keepdims=True)
    return weights @ v, weights


same("without loops", attend_at_once(q, k, v)[0], out)
positions = jnp.arange(T)
mask = attention.visible(positions[None], positions[None])  # [1 T T]
scores = attention.scores(jnp.asarray(q)[None, :, None], jnp.asarray(k)[None, None], mask, 1 / math.sqrt(H))
library = attention.weights(scores)  # [1 1 1 T T]
same("nanollm_jax.ops.attention.weights", library[0, 0, 0], weights)
same("nanollm_jax.ops.attention.mix", attention.mix(library, jnp.asarray(v)[None, None])[0, :, 0], out)
q4, k4, v4 = (jnp.asarray(a)[None, :, None] for a in (q, k, v))  # [1 T 1 H]
same("jax.nn.dot_product_attention", jax.nn.dot_product_attention(q4, k4, v4, is_causal=True)[0, :, 0], out)

# %% [markdown]
# ## What about the order?
# A text is more than the set of its pieces. Which part of the code above reads where a piece stands?

# %% tags=["question"]
predict(
    "shuffle all pieces but the last, with their keys and values. How much does the answer for the last piece change?"
)

# %% tags=["answer"]
order = np.append(np.random.default_rng(0).permutation(T - 1), T - 1)
shuffled, _ = attend_at_once(q[order], k[order], v[order])
print(f"largest change of the last vector: {np.abs(shuffled[-1] - out[-1]).max():.1e}, rounding only")
print(f"the vector itself is as large as   {np.abs(out[-1]).max():.1e}")
same("attention alone does not see the order", shuffled[-1], out[-1])

# %% [markdown]
# A dot product of two vectors does not know where they stand. So the model has to put the position into the vectors.
# The bundled model turns each query and key by an angle that grows with its position: chapter 12. The library does it
# right after the projection. At position 0 the angle is zero, and turning never changes a length, so our projections
# can be checked already:

# %%
turned_q, turned_k = seen(LAYER, "attention.q")[:, HEAD], seen(LAYER, "attention.k")[:, HEAD * K // N]  # [T H]
same("the library's query at position 0", turned_q[0], q[0])
same("lengths of all its queries", np.linalg.norm(turned_q, axis=1), np.linalg.norm(q, axis=1))
same("lengths of all its keys", np.linalg.norm(turned_k, axis=1), np.linalg.norm(k, axis=1))
check("but they are not the same vectors", np.abs(turned_q - q).max() > 0.1)
out, weights = attend_at_once(turned_q, turned_k, v)
same(
    "with turned queries and keys: the library's weights",
    weights,
    seen(LAYER, "attention.weights")[HEAD * K // N, HEAD % (N // K)],
    tolerance=1e-4,
)
same("and its mixed values", out, seen(LAYER, "attention.mixed")[:, HEAD], tolerance=1e-4)

# %% [markdown]
# ## What the heads look for
# Nobody told the model what a head should do. Three questions to all of its heads, on this text and on four others:
# which one takes most from the piece just before, which one from the first piece, and which one from earlier pieces
# that are the same as the one just read?

# %%
OTHERS = [] if quick() else [
    "Tom had a small boat. He put the boat in the water. The boat went far away and Tom was sad.",
    "One day, a bird sat in a tree. The tree was tall. A cat saw the bird and the bird was scared.",
    "The king had a big cake. The queen wanted the cake too. So the king gave the queen a piece of cake.",
    "Mom said, do not open the box. But Ben wanted to see the box. He took the box and Mom was not happy.",
]  # fmt: skip


def weights_of_all(ids):
    """One text -> the attention weights of every head in it, {(layer, head): [T S]}"""
    room = nano.init_cache(config, batch=1, capacity=len(ids), dtype="float32")
    _, values = nano.observe(nano.forward, model.params, jnp.asarray([ids]), room, config=config)
    layers = [np.asarray(values[f"layers.{n}.attention.weights"][0]) for n in range(config.num_layers)]  # [K G T S]
    return {(n, head): w for n, layer in enumerate(layers) for head, w in enumerate(layer.reshape(N, *layer.shape[2:]))}


texts = [ids, *(model.tokenizer.encode(text) for text in OTHERS)]
everywhere = [weights_of_all(text) for text in texts]
every = everywhere[0]


def on_same(ids, w):
    """Of all pieces that stood in the text before: how much of their weight lies on those places, in the mean"""
    same_piece = np.tril(np.equal.outer(ids, ids), -1)  # [T S]
    again = same_piece.any(axis=1)  # [T]
    return (w * same_piece).sum(axis=1)[again].mean()


again = np.tril(np.equal.outer(ids, ids), -1)  # [T S]: where the piece of the row stood before
only_again = np.where(again.any(1, keepdims=True), again / np.maximum(again.sum(1, keepdims=True), 1), np.eye(T))
SCORES = {
    "the piece before": lambda ids, w: np.mean(np.diagonal(w, -1)),
    "the first piece": lambda ids, w: np.mean(w[1:, 0]),
    "the same piece before": on_same,
}
for name, look in {
    "the piece before": np.eye(T, k=-1),
    "the first piece": np.eye(1, T).repeat(T, 0),
    "the same piece before": only_again,
    "itself": np.eye(T),
}.items():
    found = [score for score, measure in SCORES.items() if measure(ids, look) > 0.9]
    check(f"a head that only ever looks at {name} is found so, and as nothing else", found == [name] * (name in SCORES))
same(
    f"the weights of each head of layer {LAYER}, under its number",
    [every[LAYER, n] for n in range(N)],
    [
        attend_at_once(seen(LAYER, "attention.q")[:, n], seen(LAYER, "attention.k")[:, n * K // N], v)[1]
        for n in range(N)
    ],
    tolerance=1e-4,
)
measured = {name: {at: np.mean([score(text, maps[at]) for text, maps in zip(texts, everywhere, strict=True)]) for at in every}
            for name, score in SCORES.items()}  # fmt: skip
found = {name: max(means, key=means.get) for name, means in measured.items()}
table(
    f"Of {len(every)} heads, the one that looks most at (mean of {len(texts)} texts)",
    ["", "layer", "head", "its weight there", "mean of all heads", "on the first text"],
    [(name, *found[name], f"{means[found[name]]:.2f}", f"{np.mean(list(means.values())):.2f}",
      f"{SCORES[name](ids, every[found[name]]):.2f}") for name, means in measured.items()],
)  # fmt: skip
for name, means in measured.items():
    check(
        f"{name}: that head looks there at least twice as much as heads do in the mean",
        means[found[name]] > 2 * np.mean(list(means.values())),
    )
if not quick():
    at = found["the same piece before"]
    check(
        "which is a mean: on the first text that head looks there less",
        on_same(ids, every[at]) < measured["the same piece before"][at],
    )


# %% tags=["figure"]
figure, axes = plt.subplots(1, 3, figsize=(11, 4.1))
for ax, (name, at) in zip(axes, found.items(), strict=True):
    ax.imshow(every[at], vmin=0, vmax=1)
    ax.set_xticks(range(T), pieces, rotation=90, size=8)
    ax.set_yticks(range(T), pieces, size=8)
    ax.set_title(f"{name}: layer {at[0]}, head {at[1]}", size=10)
    ax.tick_params(length=0)
for t, s in zip(*np.nonzero(again), strict=True):
    axes[2].add_patch(plt.Rectangle((s - 0.5, t - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2))
axes[0].set_ylabel("this piece ...")
axes[1].set_xlabel("... reads from these")
check("nothing of the future is drawn", all(np.triu(ax.images[0].get_array(), 1).max() == 0 for ax in axes))
check(
    "orange: the piece of the row is that of the column, and stood there before",
    all(box.get_x() < box.get_y() and ids[round(box.get_x() + 0.5)] == ids[round(box.get_y() + 0.5)]
        for box in axes[2].patches),
)  # fmt: skip
save(figure, "10_heads")

# %% [markdown] tags=["opening"]
# ![Attention weights of three heads on a text](figures/10_heads.png)
#
# *The first text. Each row is one query: how its weights are spread over the pieces so far. The strongest colour is
# 1. Orange, at the right: places where the piece of that row stood before. In the mean of the five texts no head looks at
# such places more than this one; in this text it does so less (the last column of the table): one picture proves little. Why
# many heads look at the first piece is not shown here. The usual explanation: weights must sum to 1, and a head that has
# found nothing needs a place to put them (Xiao et al. 2023, arXiv:2309.17453).*

# %% tags=["figure"]
interactive(
    "looks",
    {
        "tokens": [model.tokenizer.piece(token).replace("▁", " ") for token in ids],
        "weights": [
            [[np.round(np.float64(every[layer, head][t, : t + 1]), 4).tolist() for t in range(T)] for head in range(N)]
            for layer in range(config.num_layers)
        ],
    },
    "Point at a word, or go to it with the arrow keys: below is what each head looks at most from there. Pick a head, and the "
    "text shows all that it looks at.",
)

# %% [markdown]
# ## Why the square root
# A dot product of two random vectors of H numbers has a spread, a standard deviation, of about the square root of H.
# Without the division, softmax of such scores gives one position more and more of the weight as H grows.

# %%
random = np.random.default_rng(0)
S, trials = 32, 100 if quick() else 1000
widths = [1, 4, 16, 64, 256]
spread = [np.einsum("nh,nh->n", *np.random.default_rng(1).normal(size=(2, 4000, width))).std() for width in widths]
same(
    "the spread of 4,000 dot products, against the square root of H", spread, np.sqrt(widths), 0.1, size=np.sqrt(widths)
)
largest = {"divided by the square root of H": [], "as they are": []}
for width in widths:
    scores = np.einsum(
        "nh,nsh->ns", random.normal(size=(trials, width)), random.normal(size=(trials, S, width))
    )  # [trials S]
    for name, factor in zip(largest, (1 / math.sqrt(width), 1), strict=True):
        largest[name].append(np.mean([softmax(row).max() for row in scores * factor]))
check(
    "with the division the width hardly matters",
    np.ptp([*largest["divided by the square root of H"], largest["as they are"][0]]) < 0.06,
)
check(
    f"without it, one position takes the more the wider the heads are, and with {widths[-1]} numbers nearly everything",
    largest["as they are"] == sorted(largest["as they are"]) and largest["as they are"][-1] > 0.85,
)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(7, 3.2))
for (name, means), colour in zip(largest.items(), (BLUE, ORANGE), strict=True):
    ax.plot(widths, means, "o-", color=colour, label=name)
ax.axhline(1 / S, color="#999999", linestyle=":")
ax.text(widths[0], 1 / S + 0.02, "all equal", color="#777777", size=9)
ax.set(xscale="log", ylim=(0, 1), xlabel="H, the width of a head", ylabel=f"largest of {S} weights, mean")
ax.set_xticks(widths, widths)
ax.minorticks_off()
ax.legend()
save(figure, "10_scale")

# %% [markdown]
# ![Largest attention weight against head width, with and without the square root](figures/10_scale.png)
#
# *Random queries against 32 random keys. Undivided (orange), the largest weight goes towards 1 as vectors get more
# numbers; divided (blue), it hardly depends on how many they have.*
#
# ## In the engine
# - `nanollm_jax.model.attend` is this chapter and the next: one product for queries, keys and values, the turning of
#   chapter 12, weights, mixing, one projection back.
# - `nanollm_jax.ops.attention.scores` works on all texts and heads at once, and
#   `nanollm_jax.ops.attention.weights` is the softmax. Instead of minus infinity the scores have the lowest float32: a
#   row that may see nothing at all would become nan (chapter 09).
# - Keys and values of earlier pieces do not change when a new one comes. `nanollm_jax.cache.extend` keeps them, so
#   that a step computes one new query, key and value only: chapter 20.
#
# ## Your engine
# From here on you build an engine of your own: one file, `engine.py`, to which each chapter adds what it has worked out,
# in `jax.numpy` and with the library's names. It stays short, and behind chapter 22 it writes what the
# library writes. `grow` prints what this chapter adds; the last line says how to get the whole file.

# %%
mine = grow(10)
fetched = mine.attend(turned_q, turned_k, v, mine.visible(positions, positions))
same("your engine: what every piece fetches", fetched, out)

# %% [markdown]
# ## Exercises
# 1. What does attention return when all keys are equal?
# 2. Multiply all queries by 100. What becomes of the weights, and of the answer?
# 3. How many multiplications does attention need for T pieces and one head of width H? What happens when the text
#    becomes twice as long?

# %% tags=["answer"]
flat, _ = attend_at_once(q, np.ones_like(k), v)
same("the plain mean of the values so far", flat, np.cumsum(v, axis=0) / np.arange(1, T + 1)[:, None])

# %% tags=["answer"]
soft_weights, (hard, hard_weights) = attend_at_once(q, k, v)[1], attend_at_once(100 * q, k, v)
print(f"mean of the largest weight: {soft_weights.max(1).mean():.2f} before, {hard_weights.max(1).mean():.2f} after.")
print("Nearly a plain dictionary: one value comes back, the others do not.")
check("every largest weight grows, but for the first piece's, which is 1",
      np.array_equal(np.flatnonzero(hard_weights.max(1) <= soft_weights.max(1)), [0]))  # fmt: skip
best = [int(np.argmax((q @ k.T)[t, : t + 1])) for t in range(T)]
sure = hard_weights.max(1) > 0.999
same("where one weight is 1, the value of the best key comes back", hard[sure], v[best][sure], tolerance=0.01)

# %% tags=["answer"]
cost = {n: 2 * H * n * (n + 1) // 2 for n in (T, 2 * T)}  # scores and mixing, for pairs with s <= t
print(
    "H for each score and H for each mixed value, of T (T + 1) / 2 pairs:",
    *(f"T = {n}: {cost[n]:,}" for n in cost),
    sep="  ",
)
pairs = [(q[t], v[s]) for t in range(T) for s in range(t + 1)]
check("each pair multiplies the query's numbers and the value's", cost[T] == sum(a.size + b.size for a, b in pairs))
check("about four times as many", 3.8 < cost[2 * T] / cost[T] < 4)

# %% [markdown]
# [Previous: 09 · Softmax](09_softmax.py) · [Contents](README.md) · [Next: 11 · Many heads](11_attention_heads.py)
