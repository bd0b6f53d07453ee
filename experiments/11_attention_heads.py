# %% [markdown]
# # 11 · Many heads: who may see whom, and who shares what
#
# [Previous: 10 · Attention](10_attention.py) · [Contents](README.md) · [Next: 12 · Positions](12_positions.py)
#
# ## The question
# One head of chapter 10 looks for one thing. How do many heads work side by side, how is it enforced that nobody sees
# the future, and what do newer models change to make it cheaper?
#
# ## The idea
# - *Multi-head attention*: N heads, each with its own queries, keys and values. Their answers, H numbers each, are
#   put side by side, and one more weight matrix mixes them back into a vector of D numbers.
# - A *mask* says which pairs of a query and a key count. Every other pair gets a score so low that softmax turns it into
#   0. The *causal* mask allows the past and the present.
# - *Grouped queries*: G query heads share one head of keys and values, so there are K = N / G of those. Keys and
#   values are what a model has to remember for each piece, so this divides its memory by G. Where all heads share one,
#   it is called *multi-query*.
# - A *sliding window* of w allows only the last w positions, the present one included. Then there is nothing to
#   remember from before.
#
# ## From scratch
# The whole attention step of one layer: x `[T D]` goes in, `[T D]` comes out.

# %%
from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, ORANGE, check, interactive, outcome, plt, predict, quick, same, save, table
from engine_steps import grow
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops import attention, rope

model = nano.load(dtype="float32")
config = model.config
N, K, H, L = config.num_heads, config.num_kv_heads, config.head_dim, config.num_layers
G = N // K
with safe_open(Path(nano.__file__).parent / "assets/nano-stories/model.safetensors", framework="numpy") as file:
    stored = {name: file.get_tensor(name).astype(np.float32) for name in file.keys() if "self_attn" in name}


def visible(queries, keys, window=None):
    """Positions of queries and keys -> may the one see the other?  [T], [S] -> [T S]"""
    mask = np.zeros((len(queries), len(keys)), bool)
    for t, query in enumerate(queries):
        for s, key in enumerate(keys):
            mask[t, s] = key <= query and (window is None or query - key < window)
    return mask


def softmax(scores):
    """[... S] -> [... S]"""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def turn(heads):
    """[T N H] -> [T N H]: each vector turned by the angle of its position. Chapter 12; here the library does it."""
    frequencies, _ = rope.frequencies(H, config.layers[0].rope.theta)
    cos, sin = rope.turns(jnp.arange(len(heads))[None], frequencies)  # [B T 1 H/2] each
    return np.asarray(rope.rotate(jnp.asarray(heads)[None], cos, sin))[0]


def multi_head(x, layer, mask, off=None):
    """x [T D] -> [T D]: every head by itself, in a loop; the one that is off answers zeros."""
    w = {name: stored[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkvo"}
    T = len(x)
    q = turn((x @ w["q"].T).reshape(T, N, H))
    k = turn((x @ w["k"].T).reshape(T, K, H))
    v = (x @ w["v"].T).reshape(T, K, H)
    answers = np.zeros((T, N, H), np.float32)
    for n in range(N):
        scores = q[:, n] @ k[:, n // G].T / math.sqrt(H)  # [T S]; query head n uses key head n // G
        answers[:, n] = softmax(np.where(mask, scores, -np.inf)) @ v[:, n // G]
    if off is not None:
        answers[:, off] = 0
    return answers.reshape(T, N * H) @ w["o"].T  # side by side, then back to D


TEXT = "Lily had a red ball. She gave the ball to Tom and he was happy."
ids = model.tokenizer.encode(TEXT)
pieces = [model.tokenizer.piece(token).replace("▁", "") for token in ids]
T = len(ids)


def run(ids, change=None, config=config):
    """The library's logits [T V] and all its inner values, for one text."""
    cache = nano.init_cache(config, batch=1, capacity=len(ids), dtype="float32")
    (logits, _), values = nano.observe(
        nano.forward, model.params, jnp.asarray([ids]), cache, config=config, change=change
    )
    return np.asarray(logits[0]), values


logits, values = run(ids)
causal = visible(range(T), range(T))
for layer in (0, L - 1):
    x = np.asarray(values[f"layers.{layer}.attention_norm"][0])
    ours = multi_head(x, layer, causal)
    same(f"layer {layer}: the library's attention, all heads", ours, values[f"layers.{layer}.attention.out"][0], 1e-4)

# %% [markdown]
# The causal mask is a promise: what comes later cannot change what was computed before. That is why a model can go on
# writing without computing the beginning again. The promise can be tested on the library itself, with another last
# piece.

# %%
other, _ = run([*ids[:-1], ids[3]])
check("the scores of the changed position are others", not np.array_equal(logits[-1], other[-1]))
same("those of all earlier positions are the same", other[:-1], logits[:-1])

# %% [markdown]
# ## All heads of the model

# %%
maps = np.stack([np.asarray(values[f"layers.{layer}.attention.weights"][0]).reshape(N, T, T) for layer in range(L)])
for layer in (0, L - 1):
    v = np.repeat(np.asarray(values[f"layers.{layer}.attention.v"][0]), G, axis=1)  # [S N H]
    mixed = np.einsum("NTS,SNH->TNH", maps[layer], v)
    same(
        f"layer {layer}: the map of each head mixes its answer",
        mixed,
        values[f"layers.{layer}.attention.mixed"][0],
        1e-4,
    )


STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom. "
    "Lily saw a boy named Tom. Tom was sad because he did not have a toy. Lily gave the ball to Tom and he was happy. "
    "They played with the ball all day. Then Lily and her mom went home. Lily was happy because she had a new friend."
)
story = model.tokenizer.encode(STORY)[: T if quick() else None]


def surprise(change=None):
    """The loss of the story (chapter 07): the mean of -log(probability) of each piece that really comes next."""
    scores, _ = run(story, change)
    log_probabilities = np.log(softmax(scores[:-1].astype(np.float64)))  # [T-1 V]
    return -log_probabilities[np.arange(len(story) - 1), story[1:]].mean()


def silenced(layer, head):
    """What observe is to change so that one head answers zeros."""
    return {f"layers.{layer}.attention.mixed": lambda mixed: mixed.at[:, :, head].set(0)}


def without(layer, head):
    """How much worse the story is predicted when one head's answer is replaced by zeros."""
    return surprise(silenced(layer, head)) - whole


changed = run(ids, silenced(L - 1, 2))[1][f"layers.{L - 1}.attention.out"][0]
same("a head switched off, in the library and in the loops", multi_head(x, L - 1, causal, off=2), changed, 1e-4)
whole = surprise()
check("the loss is that of the next piece: far from guessing", whole < 0.5 * math.log(config.vocab_size))
heads = [(4, 0), (4, 2)] if quick() else list(np.ndindex(L, N))
cost = {at: without(*at) for at in heads}
most = max(cost, key=cost.get)
print(
    f"{len(story)} pieces, loss {whole:.2f}. The head it misses most: layer {most[0]}, head {most[1]}, {cost[most]:+.2f}"
)
check("the model is better with its heads than without them, on average", np.mean(list(cost.values())) > 0)

# %% tags=["figure"]
figure, axes = plt.subplots(N, L, figsize=(10, 7.2))
for (layer, head), _ in np.ndenumerate(np.zeros((L, N))):
    ax = axes[head, layer]
    ax.imshow(maps[layer, head], vmin=0, vmax=0.8)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{round(cost.get((layer, head), 0), 2) + 0:+.2f}", size=9, loc="center")
    if head == N - 1:
        ax.set_xlabel(f"layer {layer}")
    if layer == 0:
        ax.set_ylabel(f"head {head}")
before, begin = np.diagonal(maps, -1, axis1=2, axis2=3).mean(-1), maps[:, :, 1:, 0].mean(-1)  # [L N]
check("only layer 3, head 1, gives the piece before more than half; some give the first piece about half or more",
      np.argwhere(before > 0.5).tolist() == [[3, 1]] and 2 <= np.sum(begin > 0.45) < L * N / 3)  # fmt: skip
check("each map stands at its layer and head, below what it costs to do without it", all(
    np.array_equal(axes[head, layer].images[0].get_array(), maps[layer, head])
    and float(axes[head, layer].get_title()) == round(cost.get((layer, head), 0), 2) for layer, head in np.ndindex(L, N)
))  # fmt: skip
save(figure, "11_heads")

# %% [markdown]
# ![Attention weights of all heads in all layers](figures/11_heads.png)
#
# *The attention weights of all heads, and above each how much worse a longer story is predicted without it: by so much the
# loss (chapter 07) rises. Where the number is negative, this story is predicted a little better without the head. The upper
# right triangle is always empty: the future. One head gives most of its weight to the piece before (layer 3, head 1), some
# give half of theirs to the first piece, and most look at few pieces that differ from place to place.*
#
# The pictures are small and have no words. On the chapter's page, one head at a time has them:

# %% tags=["figure"]
interactive(
    "masks",
    {
        "tokens": [model.tokenizer.piece(token).replace("▁", " ") for token in ids],
        "weights": [[[[float(f"{w:.4g}") for w in maps[layer, head, t, : t + 1]] for t in range(T)] for head in range(N)]
                    for layer in range(L)],
        "costs": [[round(float(cost[layer, head]), 4) if (layer, head) in cost else None for head in range(N)]
                  for layer in range(L)],
        "group": G,
    },
    "Point at a head: the text shows what it reads, from the word that you pointed at last. Narrow the window, and its "
    "weights are shared among the words that are left.",
)  # fmt: skip

# %% [markdown]
# ## Sharing keys and values
# With G query heads for each head of keys and values, the library does not copy anything: G is one more axis of the
# queries. Copying must give the same.

# %%
random = np.random.default_rng(0)
q = jnp.asarray(random.normal(size=(1, T, N, H)), jnp.float32)  # [B T N H]
k, v = (jnp.asarray(random.normal(size=(1, K, T, H)), jnp.float32) for _ in range(2))  # [B K S H]
mask = jnp.asarray(causal)[None]  # [B T S]


def answer(q, k, v):
    """[B T N H], [B K S H] -> [B T N H], with the library's three functions."""
    return attention.mix(attention.weights(attention.scores(q, k, mask, 1 / math.sqrt(H))), v)


grouped = answer(q, k, v)
copied = answer(q, jnp.repeat(k, G, axis=1), jnp.repeat(v, G, axis=1))  # [B N S H]
same("grouped = each key head copied G times", grouped, copied)
reference = jax.nn.dot_product_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), is_causal=True)
same("and what jax.nn.dot_product_attention says", grouped, reference)

rows = []
for name, kv_heads in {"multi-head": N, "grouped, the bundled model": K, "multi-query": 1}.items():
    per_piece = 2 * L * kv_heads * H * 2  # keys and values, bfloat16
    rows.append([name, N, kv_heads, f"{per_piece:,}", f"{per_piece * config.max_positions / 1e6:.2f} MB"])
    room = nano.init_cache(dataclasses.replace(config, num_kv_heads=kv_heads), 1, config.max_positions, "float32")
    check(
        f"{name}: half of what the library sets aside in float32", 2 * per_piece * config.max_positions == room.nbytes
    )
table("What has to be remembered", ["", "query heads", "key heads", "bytes per piece", "one full text"], rows)

# %% [markdown]
# ## A window, and how far it reaches
# A window limits one layer. But a vector of the second layer was made from vectors that had looked back themselves.

# %%
for window in (1, 3, None):
    same(
        f"window {window}: the library's mask",
        attention.visible(jnp.arange(T)[None], jnp.arange(T)[None], window)[0],
        visible(range(T), range(T), window),
    )
late = visible([7, 8], range(10), window=3)  # two new pieces, eight that are remembered already
print(
    "queries at 7 and 8, window 3:",
    *(f"{t} sees {np.flatnonzero(row).tolist()}" for t, row in zip((7, 8), late, strict=True)),
    sep="  ",
)

# %% tags=["question"]
predict(
    f"the bundled model, {L} layers, each with a window of 4. How many positions back can a piece change the last scores?"
)

# %% tags=["answer"]
text = model.tokenizer.encode(STORY)[:32]


def reach(window, step):
    """For each distance back: the largest change of the last scores when the piece there becomes another one."""
    windowed = dataclasses.replace(config, layers=(nano.LayerConfig(window=window),) * L)
    cache = nano.init_cache(windowed, batch=1, capacity=len(text), dtype="float32")
    last = jax.jit(lambda ids: nano.forward(model.params, ids, cache, config=windowed)[0][0, -1])  # [V]
    before, changes = last(jnp.asarray([text])), {}
    for distance in range(0, len(text), step):
        changed = list(text)
        changed[-1 - distance] = (changed[-1 - distance] + 700) % config.vocab_size
        changes[distance] = float(jnp.abs(last(jnp.asarray([changed])) - before).max())
    return changes


reaches = {window: reach(window, 3 if quick() else 1) for window in ([4] if quick() else [2, 4, None])}
for window, changes in reaches.items():
    print(
        f"window {window}: changes arrive from up to {max(d for d, change in changes.items() if change > 0)} positions back"
    )
for window, changes in reaches.items():
    check(f"window {window}: no piece changes the scores more than the last one", changes[0] == max(changes.values()))
    if window:
        arrived = {d: c for d, c in changes.items() if c > 0}
        check(f"window {window}: the farthest change that arrives is less than a hundredth of the largest",
              arrived[max(arrived)] < max(arrived.values()) / 100)  # fmt: skip
outcome(max(d for d, change in reaches[4].items() if change > 0), "positions back, with windows of 4")
limit = L * (4 - 1)
check(
    f"window 4: from {limit} = {L} x 3 positions back, and not one further",
    max(d for d, c in reaches[4].items() if c > 0) == limit,
)

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=[1, 2.2])
picture = np.where(visible(range(12), range(12), 4), 2, np.where(visible(range(12), range(12)), 1, 0))
check("a query sees four keys at most", (picture == 2).sum(axis=1).tolist() == [1, 2, 3] + 9 * [4])
left.imshow(picture, vmin=0, vmax=2.6)
left.set(title="one layer: causal, and window 4", xlabel="key", ylabel="query", xticks=[], yticks=[])
for (window, changes), colour in zip(reaches.items(), (GREEN, ORANGE, BLUE), strict=False):
    label = "no window" if window is None else f"window {window}"
    seen = {d: c for d, c in changes.items() if c > 0}
    right.plot(list(seen), list(seen.values()), "o-", color=colour, label=label, markersize=4)
    if window:
        right.axvline(L * (window - 1) + 0.5, color=colour, linestyle=":")
right.set(
    yscale="log",
    xlabel="positions back",
    ylabel="change of the last scores",
    title=f"{L} layers: how far a piece is felt",
)
right.legend()
save(figure, "11_reach")

# %% [markdown]
# ![A sliding window's mask, and how far back a change is felt](figures/11_reach.png)
#
# *Left: the strong colour is what a window of 4 leaves of the causal mask. Right: measured on the bundled model. Each
# layer hands things on by up to w - 1 positions, so L layers reach L (w - 1); the dotted lines. With a window, another
# piece at the end of that reach changes the scores less than a hundredth as much as another last piece does.*
#
# ## In the engine
# - `nanollm_jax.ops.attention.visible` derives the mask from positions and nothing else. `nanollm_jax.model.attend`
#   hands on the positions of the new pieces, and those of the keys as `nanollm_jax.cache.extend` returns them.
# - `nanollm_jax.config.LayerConfig.window` says which window a layer has; models may mix layers with and without one.
#   A layer with a window of w remembers w positions and no more, in a ring: a new piece takes the place of the one that
#   just left the window (chapter 20).
# - Queries, keys and values are one product with a weight `[K Q H D]`. Q is G + 2: a group's query heads, its key, its
#   value. `nanollm_jax.ops.attention.split_heads` takes them apart.
# - `nanollm_jax.ops.attention.scores` groups the queries by reshaping N into K and G; keys and values stay as they
#   are.
# - The last line of `multi_head` is `nanollm_jax.ops.linear.linear_sum` with a weight `[D N H]`; heads and their
#   numbers are summed together.
#
# ## Your engine
# Two functions are new; `visible` and `attend` take the place of those of chapter 10. Heads are an axis now, and keys and
# values are shared without being copied. Nothing is turned yet (chapter 12), so for now `self_attention` answers as the
# library does at position 0 alone, where the angle is 0.

# %%
mine = grow(11)
same("your engine: grouped queries", mine.attend(q[0], k[0].swapaxes(0, 1), v[0].swapaxes(0, 1), causal), grouped[0])
check(
    "and the same mask, with a window",
    np.array_equal(mine.visible(jnp.arange(T), jnp.arange(T), 3), visible(range(T), range(T), 3)),
)
weights_of_layer = model.params["layers"][L - 1]["attention"]
for name, given in zip("qkv", mine.split_heads(x, weights_of_layer["wqkv"]), strict=True):
    same(f"{name} of all heads, at position 0", given[0], values[f"layers.{L - 1}.attention.{name}"][0, 0], 1e-4)
given = mine.self_attention(x, weights_of_layer)
same("and what attention answers there", given[0], values[f"layers.{L - 1}.attention.out"][0, 0], 1e-4)

# %% [markdown]
# ## Exercises
# 1. 100 pieces are remembered, and new ones are read. Which positions may the *first* new one see, without a window and
#    with one of 10?
# 2. Two query heads that share one head of keys and values change places: their rows in the query matrix. What else
#    must change so that the result stays the same? And what if they do not share one?
# 3. A model of 32 layers has a window of 4096 in each. How far can a piece be felt in principle?

# %% tags=["answer"]
first = {window: np.flatnonzero(visible([100], range(101), window)[0]) for window in (None, 10)}
print({window: f"{at[0]} to {at[-1]}, {len(at)} in all" for window, at in first.items()})
check("101 and 10", [len(at) for at in first.values()] == [101, 10])

# %% tags=["answer"]
w = stored["model.layers.0.self_attn.o_proj.weight"]  # [D N*H]
heads = random.normal(size=(T, N, H)).astype(np.float32)
swap = [1, 0, *range(2, N)]
w_swapped = w.reshape(-1, N, H)[:, swap].reshape(w.shape)
print(
    "The columns of those heads in the output matrix. Heads that do not share would need each other's keys and values:"
)
print("then whole groups have to change places, with their rows in the key and value matrices.")
same("the same result", heads[:, swap].reshape(T, -1) @ w_swapped.T, heads.reshape(T, -1) @ w.T, tolerance=1e-4)


# %% tags=["answer"]
def reach(layers, window):
    return layers * (window - 1)


seen = np.array(visible(range(20), range(20), 4), int)  # one layer of a small model
through = np.linalg.matrix_power(seen, 3)[-1]  # [20]: whom the last piece hears of through three
check("counted with three layers and a window of 4", 19 - np.flatnonzero(through)[0] == reach(3, 4))
print(f"32 x 4095 = {reach(32, 4096):,} positions back, if every layer hands it on")

# %% [markdown]
# [Previous: 10 · Attention](10_attention.py) · [Contents](README.md) · [Next: 12 · Positions](12_positions.py)
