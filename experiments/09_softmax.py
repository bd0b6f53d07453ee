# %% [markdown]
# # 09 · Softmax: overflow, the max trick, and one pass over the scores
#
# [Previous: 08 · Norms](08_norms.py) · [Contents](README.md) · [Next: 10 · Attention](10_attention.py)
#
# ## The question
# A model produces scores: how well does this word match that one, how well would this piece continue the text? A
# score can be any number. How does a row of scores become a row of positive numbers that sum to 1, and why do the obvious
# three lines of code return "not a number" in a real model? (These numbers are called weights as well, as those of a
# weighted mean are. They are computed anew for every text, and are no parameters.)
#
# A model needs it in two places: in every layer, where it decides how much each piece of the text takes from each other
# (*attention*, chapter 10), and at the very end, where it decides which piece comes next. The way it is computed also
# decides how much memory attention needs. The last part of this chapter is the idea behind *flash attention*.

# %%
from __future__ import annotations

import math
from functools import reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREY, ORANGE, RED, check, outcome, plt, predict, same, save, table

import nanollm_jax as nano
from nanollm_jax.ops import attention

random = np.random.default_rng(9)

# %% [markdown]
# ## The idea
# *Softmax* raises e to the power of each score, then divides by the sum:
#
#     p[i] = e^x[i] / (sum over j of e^x[j])
#
# e^x is positive for every x, so the results are positive; the division makes them sum to 1. A score that is larger
# by 1 gets a weight that is larger by the factor e, about 2.7. Only differences count: adding the same number to all
# scores multiplies every power, and the sum too, by the same factor.
#
# ## From scratch


# %%
def softmax_naive(x):
    """x [n] -> [n], exactly as the formula says."""
    powers = [np.exp(value) for value in x]
    return np.array([power / sum(powers) for power in powers])


def softmax(x):
    """x [n] -> [n]. The largest score is subtracted first: the largest power is then e^0 = 1."""
    powers = [np.exp(value - max(x)) for value in x]
    return np.array([power / sum(powers) for power in powers])


def softmax_arrays(x):
    """x [... n] -> [... n]"""
    powers = jnp.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


x = random.normal(0, 3, size=12)  # [n]
total = math.fsum(math.exp(value) for value in x)
same("the formula, with math.exp and an exact sum", softmax_naive(x), [math.exp(value) / total for value in x], 1e-12)
same("with the maximum subtracted", softmax(x), softmax_naive(x), 1e-12)
same("jax.numpy", softmax_arrays(jnp.float32(x)), softmax(x))
same("only differences count", softmax(x + 5), softmax(x), 1e-12)
same(
    "a score larger by 1 weighs e times as much",
    softmax(np.array([2.0, 1.0]))[0] / softmax(np.array([2.0, 1.0]))[1],
    math.e,
    1e-12,
)

# %% [markdown]
# ## Overflow
# The two functions are equal on paper. In a computer the largest float32 is about 3.4e38, and e^89 is larger: it *overflows*
# and becomes `inf`, infinity. Then `inf / inf` is `nan`, not a number, and whatever is computed from a nan is nan.
#
# At which score does each number format give up?

# %% tags=["question"]
predict(
    "in float32, e^x overflows at x near 89. bfloat16 has half as many bits. Is its limit nearer to 89, or to float16's?"
)


# %% tags=["answer"]
def first_overflow(dtype):
    """The smallest x, to a hundredth, for which e^x is infinite in this format."""
    candidates = np.arange(0, 100, 0.01)  # [m]
    with np.errstate(over="ignore"):
        powers = np.exp(candidates).astype(dtype)  # [m]: computed in float64, then put into the format
    return candidates[np.argmax(np.isinf(np.float32(powers)))]


limits = {name: first_overflow(jnp.dtype(name)) for name in ("float16", "bfloat16", "float32")}
for name, limit in limits.items():
    print(f"{name:9} e^x is infinite from x = {limit:.2f}")
outcome(limits["bfloat16"], "in bfloat16")
print("The exponent bits decide: bfloat16 and float32 have 8 of them, float16 has 5.")
check("bfloat16 is like float32", abs(limits["bfloat16"] - limits["float32"]) < 0.1 and limits["float16"] < 12)

# %%
scores = np.array([1.0, 2.0, 3.0], np.float32)
with np.errstate(over="ignore", invalid="ignore"):
    lost = softmax_naive(scores + np.float32(100))
check("100 more on every score: the naive form is nan", np.isnan(lost).all())
same("the stable form has not changed", softmax(scores + np.float32(100)), softmax(scores))
same("nor has it on arrays", softmax_arrays(jnp.float32(scores + 100)), softmax(scores))
same("nor has jax.nn.softmax", jax.nn.softmax(scores + 100), softmax(scores))

# %% [markdown]
# With the maximum subtracted, every power lies between 0 and 1, so nothing overflows. Powers of very low scores
# become 0; that is *underflow*, and here it is right: next to a 1 they could not be seen in any case.
#
# How large are the scores of a real model? The bundled one reads a story; `nano.observe` returns the *queries* and
# *keys* of its attention, and the scores are their products (chapters 10 and 11). The *logits* are the scores of the
# next piece. Each layer has several sets of queries and keys, its *heads* (chapter 11).

# %%
STORY = "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom."
model = nano.load(dtype="float32")
ids = jnp.asarray([model.tokenizer.encode(STORY)])  # [1 T]
cache = nano.init_cache(model.config, batch=1, capacity=ids.shape[1], dtype="float32")
(logits, _), values = nano.observe(nano.forward, model.params, ids, cache, config=model.config)
T, N, H, K = ids.shape[1], model.config.num_heads, model.config.head_dim, model.config.num_kv_heads
seen = np.tril(np.ones((T, T), bool))  # [T S]: query t may look at keys 0 ... t


def scores_of(layer):
    """The attention scores of one layer, of what may be seen.  -> [N T S], -inf where it may not"""
    q = np.float64(values[f"layers.{layer}.attention.q"][0])  # [T N H]
    k = np.repeat(np.float64(values[f"layers.{layer}.attention.k"][0]), N // K, axis=1)  # [S N H]
    return np.where(seen, np.einsum("TNH,SNH->NTS", q, k) / math.sqrt(H), -np.inf)


largest = [scores_of(layer).max() for layer in range(model.config.num_layers)]
rows = [(f"attention of layer {layer}", score) for layer, score in enumerate(largest)] + [("logits", logits.max())]
table(
    "the largest score before a softmax",
    ["where", "score", "float16 overflows"],
    [(where, f"{score:.1f}", "yes" if score > limits["float16"] else "no") for where, score in rows],
)
check("already this small model would overflow float16", max(*largest, logits.max()) > limits["float16"])

# %% [markdown]
# ## Masks, and rows that see nothing
# Attention hides the future with a *mask*: what may not be seen gets the score `-inf`, and e^-inf = 0 is no weight.
# That works as long as every row has something left. If all scores of a row are `-inf`, the maximum is too, and
# `-inf - -inf` is nan. The engine therefore uses the lowest finite float instead of `-inf`. A row that sees nothing then
# gets equal weights. Nobody reads that row, but it does not poison the others.

# %%
nothing = np.full(4, -np.inf, np.float32)
check("all -inf: nan", np.isnan(jax.nn.softmax(nothing)).all())
lowest = np.finfo(np.float32).min
same("all lowest: equal weights", jax.nn.softmax(np.full(4, lowest)), [0.25] * 4)
same("some lowest: no weight, as with -inf", jax.nn.softmax(np.float32([1, 2, lowest])), softmax([1, 2, -np.inf]))
for layer in range(model.config.num_layers):
    weights = np.asarray(values[f"layers.{layer}.attention.weights"][0]).reshape(N, T, T)  # [K G T S] -> [N T S]
    same(
        f"layer {layer}: softmax by hand gives the model's own weights",
        softmax_arrays(jnp.float32(scores_of(layer))),
        weights,
        1e-4,
    )

# %% [markdown]
# ## Logarithms of probabilities
# The loss of chapter 07 needs ln p[i]. Taking the logarithm after the softmax fails for unlikely pieces: the
# probability underflows to 0, and ln 0 is `-inf`. On paper ln p[i] = x[i] - ln(sum over j of e^x[j]), and the last
# term, *log-sum-exp*, has its own max trick.


# %%
def log_softmax(x):
    """x [n] -> [n]"""
    best = x.max()
    return x - best - np.log(np.exp(x - best).sum())


extreme = np.array([0.0, -50.0, -200.0], np.float32)
with np.errstate(divide="ignore"):
    after = np.log(softmax(extreme))  # [3]
print("log(softmax):", after, "  log_softmax:", log_softmax(extreme))
check("log after softmax has lost the last one", np.isneginf(after[-1]))
same("log_softmax has not", log_softmax(extreme), [0, -50, -200])
same(
    "jax.nn.log_softmax, on the model's logits",
    [log_softmax(row) for row in np.float64(logits[0])],
    jax.nn.log_softmax(logits[0]),
)

# %% [markdown]
# ## Online softmax
# Softmax seems to need three passes over the scores: find the maximum, sum the powers, divide. If the scores arrive
# in pieces, or are too many to keep, that hurts. It can be done in one pass (Milakov & Gimelshein 2018,
# arXiv:1805.02867). Keep two numbers:
#
# - `best`, the largest score so far;
# - `total`, the sum of e^(x - best) so far.
#
# When a larger score arrives, everything in `total` was measured against the wrong maximum. One multiplication
# corrects all of it: e^(x - new) = e^(x - old) · e^(old - new).


# %%
def online(scores):
    """scores, one at a time -> best, total, and how they developed."""
    best, total, history = -math.inf, 0.0, []
    for score in scores:
        new = max(best, score)
        total = total * math.exp(best - new) + math.exp(score - new)
        best = new
        history.append((best, total))
    return best, total, history


best, total, history = online(x)
expected = [x.max(), np.exp(x - x.max()).sum()]
same("the maximum and the sum, from one pass", [best, total], expected, 1e-12)
same(
    "and all the way", history, [(x[:n].max(), np.exp(x[:n] - x[:n].max()).sum()) for n in range(1, x.size + 1)], 1e-12
)
same("in whatever order they arrive", [online(random.permutation(x))[:2] for _ in range(9)], [expected] * 9, 1e-12)
same("and so the softmax", np.exp(x - best) / total, softmax(x), 1e-12)

# %% [markdown]
# ## Flash attention in one page
# Attention does not want the weights themselves. Each piece has a third vector beside its query and its key, its *value*,
# and what attention wants is the mean of the values, weighted: the sum over s of p[s] · v[s] (chapter 10). That sum can be
# carried along and corrected in the same way. So there are three things to keep:
# `best`, `total`, and `mixed`, the sum of e^(x[s] - best) · v[s], a vector of H numbers. At the end, `mixed / total`
# is the answer.
#
# Now the keys and values can be read block by block. The scores of a block live only as long as the block, and the
# row of S scores, or the whole square of T times S, never exists. This is the idea of flash attention (Dao et al.
# 2022, arXiv:2205.14135), with blocks that fit in the fast memory of the processor.


# %%
def read_block(q, k, v):
    """One query and a block of keys and values.  q [H], k and v [n H] -> best, total, mixed [H]"""
    scores = k @ q / math.sqrt(q.size)  # [n]: the only scores that exist
    best = scores.max()
    powers = np.exp(scores - best)  # [n]
    return best, powers.sum(), powers @ v


def merge(one, other):
    """What two sets of keys know, put together. The order of the two does not matter."""
    best = max(one[0], other[0])
    keep, add = math.exp(one[0] - best), math.exp(other[0] - best)
    return best, one[1] * keep + other[1] * add, one[2] * keep + other[2] * add


q, k, v = (
    4 * random.normal(size=64),
    random.normal(size=(1000, 64)),
    random.normal(size=(1000, 64)),
)  # [H], [S H], [S H]
whole = softmax_arrays(jnp.float32(k @ q / 8)) @ jnp.float32(v)  # [H]: all 1,000 scores at once
exact = np.exp(k @ q / 8 - (k @ q / 8).max())
exact = exact @ v / exact.sum()  # [H], float64

for size in (1, 7, 128, 1000):
    blocks = [read_block(q, k[start : start + size], v[start : start + size]) for start in range(0, 1000, size)]
    best, total, mixed = reduce(merge, blocks)
    same(f"{len(blocks):4} blocks of {size}", mixed / total, exact, 1e-10)

cuts = [0, *sorted(random.choice(np.arange(1, 1000), 9, replace=False)), 1000]
blocks = [read_block(q, k[start:stop], v[start:stop]) for start, stop in pairwise(cuts)]
best, total, mixed = reduce(merge, [blocks[i] for i in random.permutation(len(blocks))])
same("uneven blocks, merged in any order", mixed / total, exact, 1e-10)
loud = [read_block(500 * q, k[start : start + 100], v[start : start + 100]) for start in range(0, 1000, 100)]
best, total, mixed = reduce(merge, loud)
winner = np.argmax(k @ q)
same(f"scores up to {best:,.0f}: no overflow, and the best key takes all", mixed / total, v[winner], 1e-10)
same("all scores at once, in float32", whole, exact, 1e-4)

mask = jnp.ones((1, 1, 1000), bool)  # [B T S]
matches = attention.scores(jnp.float32(q)[None, None, None], jnp.float32(k)[None, None], mask, 1 / 8)  # [B K G T S]
weights = attention.weights(matches)
same("the library", attention.mix(weights, jnp.float32(v)[None, None])[0, 0, 0], exact, 1e-4)

# %% [markdown]
# That the order does not matter is worth more than the saved memory: blocks can be read by different cores, or stand
# on different machines, and their three results are merged at the end.

# %% tags=["figure"]
shown = np.linspace(-3, 3, 48) + random.normal(0, 1.2, size=48)  # [n]: scores that keep finding new maxima
_, _, history = online(shown)
running_best, running_total = np.array(history).T
found = np.flatnonzero(np.diff(running_best) > 0) + 1  # where a new best is found, behind the first
check("at each thin line the score is the best so far", found.size and (running_best[found] == shown[found]).all())
T_values = 2.0 ** np.arange(7, 18)
all_scores, in_blocks = 4 * T_values**2, 4 * T_values * (128 + H + 2)  # bytes
check("twice the text: four times all scores, and twice what blocks need",
      all_scores[1] == 4 * all_scores[0] and in_blocks[1] == 2 * in_blocks[0])  # fmt: skip
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=[1, 1, 1.15])
axes[0].plot(shown, ".", color=GREY, label="score")
axes[0].step(range(48), running_best, where="post", color=BLUE, label="best so far")
axes[0].set(title="the maximum, as scores arrive", xlabel="scores read")
axes[0].legend()
axes[1].step(range(48), running_total, where="post", color=ORANGE)
for at in found:
    axes[1].axvline(at, color=BLUE, linewidth=0.5, zorder=0)
axes[1].set(title="the sum, corrected at each new best", xlabel="scores read", ylim=(0, None))
axes[2].loglog(T_values, all_scores / 2**20, color=RED, label="all scores, T · T")
axes[2].loglog(T_values, in_blocks / 2**20, color=BLUE, label="blocks of 128, and mixed, best, total")
axes[2].set(title="memory for one head, MiB", xlabel="T, tokens in the text")
axes[2].legend(fontsize=9, loc="upper left")
save(figure, "09_online")

# %% [markdown] tags=["opening"]
# ![Running maximum, running sum, and memory with and without blocks](figures/09_online.png)
#
# *Left and middle: one pass over 48 scores. Each time a new best is found (thin lines) what was summed is scaled down,
# because it is measured against the best, and the new one adds 1. Right, on two logarithmic axes: the table of all scores
# grows with the square of the text's length, what blocks need in proportion to it.*
#
# ## In the engine
# - `nanollm_jax.ops.attention.scores` and `nanollm_jax.ops.attention.weights` compute scores and softmax in float32,
#   also when the model runs in bfloat16; the first masks with the lowest float, the second subtracts the maximum.
# - `nanollm_jax.ops.attention.mix` is the weighted mean. Here the weights of a query are kept whole, and
#   `nanollm_jax.ops.blocks.BLOCK` queries are taken at a time. So whoever looks inside can see them under the name
#   `layers.0.attention.weights`, which chapter 10 needs.
# - Where nobody looks, `nanollm_jax.ops.dot_product.dot_product` takes a faster way if there is one: on a CPU, while text is
#   written, one pass in blocks, in C (`nanollm_jax.ops.native.attention`); on an NVIDIA GPU the same for every piece
#   (`nanollm_jax.ops.gpu.attention`).
# - `nanollm_jax.sampling.shape_logits` subtracts the best logit before it divides all by a number that the user chooses
#   (the temperature, chapter 18), for the same reason as here: divided by a tiny number, large logits become infinite.
# - `nanollm_jax.sampling.draw` reports the logarithm of a probability as the logit minus `jax.nn.logsumexp` of all.
#
# ## Exercises
# 1. What is softmax of `[0, 0, 0, 0]`? And of `[1000, 0]` with the stable form? Which number is lost in the second,
#    and does it matter?
# 2. Divide the scores by a number t before the softmax. What happens for t close to 0, and for a very large t?
# 3. Show that `merge` may be grouped as one likes: merge(merge(a, b), c) and merge(a, merge(b, c)) are the same. What
#    would a "block of nothing" be?

# %% tags=["answer"]
print(softmax([0.0, 0.0, 0.0, 0.0]), softmax([1000.0, 0.0]))
print("e^-1000 underflows to 0. Next to 1 it has no digit that could be seen, so nothing is lost.")
check("equal scores, equal weights", (softmax([0.0] * 4) == 0.25).all() and softmax([1000.0, 0.0])[1] == 0)

# %% tags=["answer"]
print(f"t = 0.01: {softmax(x / 0.01).max():.3f} for the best, all others nothing. t = 1000: all close to 1/{x.size}.")
print("t is the temperature of chapter 18.")
check("cold picks the best", softmax(x / 0.01).argmax() == x.argmax() and softmax(x / 0.01).max() > 0.99)
same("hot forgets the scores", softmax(x / 1e6), np.full(x.size, 1 / x.size), 1e-4)

# %% tags=["answer"]
a, b, c = blocks[:3]
left, right = merge(merge(a, b), c), merge(a, merge(b, c))
same("grouped either way", left[2] / left[1], right[2] / right[1], 1e-12)
empty = (-math.inf, 0.0, np.zeros(64))
print("A block of nothing has best -inf, total 0 and mixed 0.")
low = (-2000.0, *a[1:])  # as if all of its scores were far below zero
check("merging nothing changes nothing",
      all(np.array_equal(i, j) for block in (a, low) for i, j in zip(merge(block, empty), block, strict=True)))  # fmt: skip

# %% [markdown]
# [Previous: 08 · Norms](08_norms.py) · [Contents](README.md) · [Next: 10 · Attention](10_attention.py)
