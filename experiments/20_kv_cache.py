# %% [markdown]
# # 20 · KV cache: nothing that was read is computed again
#
# [Previous: 19 · Generation](19_generation.py) · [Contents](README.md) · [Next: 21 · Profiling](21_profiling.py)
#
# ## The question
# The loops of chapter 19 run the whole text through the model for every new token. Nearly all of that was computed
# one token earlier already. What has to be kept, what does it save, and what does it cost in memory?
#
# ## The idea
# No token looks at later ones (chapter 11). So when a token is added, nothing changes for the tokens before it: same
# queries, same keys, same values, same everything. What does the new token need of them? It compares its own query
# with *their keys* and takes a weighted mean of *their values*. Nothing else passes from one position to another.
#
# So keep the keys and values of every layer: the *KV cache*. A text is then handled in two phases:
#
# - *prefill*: the prompt runs through the model at once and fills the cache;
# - *decode*: one token at a time runs through the model, reads the cache, and adds its own key and value to it.
#
# ## From scratch
# The model of chapter 17 (LLaMA only) with a memory. It takes T new tokens and whatever the memory holds.

# %%
from __future__ import annotations

import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    check,
    check_time,
    interactive,
    outcome,
    plt,
    predict,
    quick,
    same,
    save,
    table,
)
from engine_steps import grow

import nanollm_jax as nano
from nanollm_jax import cache as kv
from nanollm_jax import params as parameters
from nanollm_jax.dtypes import DTYPES
from nanollm_jax.ops import gated_delta

model = nano.load(dtype="float32")
config, tokenizer = model.config, model.tokenizer
weights = jax.tree.map(np.asarray, model.params)
N, K, H = config.num_heads, config.num_kv_heads, config.head_dim


def rms_norm(x, w):
    """x [T D] -> [T D]: chapter 08"""
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + config.norm_eps) * w["scale"]


def rotate(x, positions):
    """x [T N H], positions [T] -> [T N H]: chapter 12"""
    frequencies = (config.layers[0].rope.theta ** (-np.arange(0, H, 2) / H)).astype(np.float32)
    angle = (positions[:, None] * frequencies)[:, None]  # [T 1 H/2]
    left, right = x[..., : H // 2], x[..., H // 2 :]
    return np.concatenate(
        [left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)], axis=-1
    ).astype(np.float32)


def attend(q, keys, values, visible):
    """q [T N H], keys and values [S K H], visible [T S] -> [T N H]: chapters 10 and 11"""
    out = np.full_like(q, np.nan)
    for n in range(N):
        scores = np.where(visible, q[:, n] @ keys[:, n // (N // K)].T / np.float32(math.sqrt(H)), -np.inf)  # [T S]
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, n] = powers / powers.sum(axis=-1, keepdims=True) @ values[:, n // (N // K)]
    return out


def empty():
    """A memory of nothing: keys and values of every layer, [0 K H] each"""
    return [(np.zeros((0, K, H), np.float32),) * 2 for _ in weights["layers"]]


def forward(tokens, memory):
    """tokens [T], a memory of S positions -> logits of the last token [V], a memory of S + T"""
    x, longer = weights["embedding"]["tokens"][tokens], []  # [T D]
    start = len(memory[0][0])
    positions = np.arange(start, start + len(tokens))  # the new tokens stand behind the old ones
    for w, (keys, values) in zip(weights["layers"], memory, strict=True):
        wqkv = w["attention"]["wqkv"]  # [K Q H D]
        heads = (rms_norm(x, w["attention_norm"]) @ wqkv.reshape(-1, x.shape[1]).T).reshape(-1, *wqkv.shape[:3])
        q = rotate(heads[:, :, :-2].reshape(-1, N, H), positions)  # [T N H]
        keys = np.concatenate([keys, rotate(heads[:, :, -2], positions)])  # [S+T K H]
        values = np.concatenate([values, heads[:, :, -1]])  # [S+T K H]
        longer.append((keys, values))
        mixed = attend(q, keys, values, positions[:, None] >= np.arange(len(keys))[None])
        x = x + mixed.reshape(-1, N * H) @ w["attention"]["wo"].reshape(-1, N * H).T
        h = rms_norm(x, w["mlp_norm"])
        gate, up = h @ w["mlp"]["up"][0].T, h @ w["mlp"]["up"][1].T  # [T F] twice
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp"]["down"].T
    return rms_norm(x[-1:], weights["final_norm"])[0] @ weights["embedding"]["tokens"].T, longer


STORY = "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom."
ids = np.array(tokenizer.encode(STORY))  # [T]
room = nano.init_cache(config, batch=1, capacity=len(ids), dtype="float32")
read = jax.jit(nano.forward, static_argnames="config")
reference, filled = read(model.params, jnp.asarray(ids)[None], room, config=config)  # [1 T V]
whole, at_once = forward(ids, empty())
same("all at once: the last logits are the library's", whole, reference[0, -1], tolerance=1e-4)
memory, one_by_one = empty(), []
for token in ids:
    logits, memory = forward(np.array([token]), memory)
    one_by_one.append(logits)
same("one by one with a memory: the same, for every token", one_by_one, reference[0], tolerance=1e-4)
keys, values = filled.layers[3].heads(None, config.num_kv_heads)  # layer 3, [1 K S H] twice
same("the keys that the library keeps in layer 3", np.swapaxes(keys[0], 0, 1), memory[3][0], tolerance=1e-4)
same("and the values", np.swapaxes(values[0], 0, 1), memory[3][1], tolerance=1e-4)

# %% [markdown]
# ## What is saved
# Without a memory, the token at position n costs a pass over n tokens, so a text of n costs 1 + 2 + ... + n, which is
# n (n + 1) / 2 passes of one token. That is *quadratic*: twice as long, four times as much. With a memory each token
# costs one pass over one token. Attention still looks at all positions before, but that is the smaller part of the work.

# %% tags=["question"]
predict(
    f"a text of {config.max_positions} tokens, once without and once with the memory: how many times longer does it take "
    "in all?"
)

# %% tags=["answer"]
LENGTH = 32 if quick() else config.max_positions
text = np.resize(ids, LENGTH)  # the story again and again


def clock(tokens, memory):
    begun = time.perf_counter()
    _, memory = forward(tokens, memory)
    return time.perf_counter() - begun, memory


lengths = np.unique(np.linspace(1, LENGTH, 4 if quick() else 9).astype(int))
with_memory, measured = np.full(LENGTH, np.inf), np.full(len(lengths), np.inf)
for _ in range(1 if quick() else 3):  # by turns, and the fastest of each counts: other programs only ever add time
    memory = empty()
    for t in range(LENGTH):
        spent, memory = clock(text[t : t + 1], memory)
        with_memory[t] = min(with_memory[t], spent)
    alone = []
    for at, n in enumerate(lengths):
        spent, own = clock(text[:n], empty())
        measured[at] = min(measured[at], spent)
        alone.append(len(own[0][0]))
check("with memory each token had all others before it, without it every pass began with nothing",
      len(memory[0][0]) == LENGTH and alone == lengths.tolist())  # fmt: skip
without = np.interp(np.arange(1, LENGTH + 1), lengths, measured)  # measured at some lengths, straight lines between
same("the lines go through what was measured", without[lengths - 1], measured)
passes = LENGTH * (LENGTH + 1) // 2
print(
    f"tokens that run through the model: {passes:,} without memory, {LENGTH:,} with it, {passes / LENGTH:.1f} times as many"
)
print(f"seconds in all: {without.sum():.1f} without, {with_memory.sum():.1f} with")
outcome(without.sum() / with_memory.sum(), "times as long")
check("the sum of 1 to n", passes == sum(range(1, LENGTH + 1)))
at_all_before = config.num_layers * 4 * N * H * config.max_positions  # FLOPs of the last token's scores and mixing
check("even of the last token, looking at all before is less work than the products with weights",
      at_all_before < 2 * parameters.count(config))  # fmt: skip
half = LENGTH // 2
check_time("the factor in seconds is smaller than that in tokens", without.sum() / with_memory.sum() < passes / LENGTH)
check_time("it takes several times longer without", without.sum() > 3 * with_memory.sum())
check_time("a token at the end costs more than one in the middle", without[-1] > 1.4 * without[half])
check_time("with memory, two halves cost nearly the same", min(with_memory[half:]) < 2 * min(with_memory[:half]))

# %% [markdown]
# The factor in seconds is smaller than that in tokens. Many tokens in one pass are cheaper than as many passes, among other
# things because every weight is read from memory once for all of them (chapter 04). Chapter 21 is about that.

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
smooth = [np.median(with_memory[max(0, t - 8) : t + 9]) for t in range(LENGTH)]
left.plot(lengths, measured * 1e3, "o-", color=ORANGE, markersize=4, label="without memory")
left.plot(np.arange(1, LENGTH + 1), np.array(smooth) * 1e3, color=BLUE, label="with memory")
left.set(title="for the next token", xlabel="tokens so far", ylabel="milliseconds", ylim=(0, None))
left.legend()
right.plot(np.cumsum(without), color=ORANGE)
right.plot(np.cumsum(with_memory), color=BLUE)
right.set(title="for the text so far", xlabel="tokens so far", ylabel="seconds", ylim=(0, None))
ends = [line.get_ydata()[-1] for line in right.lines]
same("on the right the lines end at all of the seconds", ends, [without.sum(), with_memory.sum()])
save(figure, "20_time")

# %% [markdown]
# ![Time per token and in all, with and without a cache](figures/20_time.png)
#
# *NumPy on this machine. Left: a line that climbs and one that hardly does. Right: their sums. One grows with the
# square of the length, the other with the length.*
#
# ## What it costs
# For each token the cache holds a key and a value of H numbers, for K heads in each of L layers: 2·L·K·H numbers. Large
# models keep them in 16 bits, 2 bytes each. To have fewer of them, query heads share keys and values (chapter 11): Llama 2 7B
# has K = 32, Llama 3.1 8B has K = 8.

# %%
PUBLISHED = Path(nano.__file__).parents[1] / "configs"
FILES = {
    "GPT-2": "gpt2-124m",
    "Llama 2 7B": "llama-2-7b",
    "Mistral 7B": "mistral-7b-v0.1",
    "Llama 3.1 8B": "llama-3.1-8b",
}
models = {
    name: nano.read_config(json.loads((PUBLISHED / f"{file}.json").read_text()))[0] for name, file in FILES.items()
}


def cache_bytes(config, tokens, width=2):
    """Bytes of keys and values for so many tokens of one text; a layer with a window keeps no more than that."""
    kept = [min(tokens, layer.window or tokens) for layer in config.layers]
    return sum(2 * n * config.num_kv_heads * config.head_dim * width for n in kept)


def library_bytes(config, tokens, width):
    """The same, from the library's arrays; eval_shape computes shapes and allocates nothing."""
    cache = jax.eval_shape(lambda: nano.init_cache(config, 1, tokens, "float16" if width == 2 else "float32"))
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(cache.layers))


rows = []
for name, c in models.items():
    one, longest = cache_bytes(c, 1), cache_bytes(c, c.max_positions)
    weight_bytes = 2 * parameters.count(c)
    rows.append([name, c.num_layers, c.num_kv_heads, c.head_dim, f"{one / 1024:,.0f}", f"{c.max_positions:,}",
                 f"{longest / 2**30:.2f}", f"{weight_bytes / 2**30:.1f}"])  # fmt: skip
    check(f"{name}: 16 bits for each weight, by the library", weight_bytes == sum(
        parameters.nbytes(c, DTYPES["bfloat16"]).values()))  # fmt: skip
    check(
        f"{name}: the library's cache is as large",
        cache_bytes(c, c.max_positions) == library_bytes(c, c.max_positions, 2),
    )
same("our memory of the story", sum(a.nbytes for pair in at_once for a in pair), cache_bytes(config, len(ids), 4), 0)
table(
    "the cache of one text, 16 bits",
    ["model", "L", "K", "H", "KiB a token", "longest text", "GiB then", "weights GiB"],
    rows,
)
check("Llama 2 7B: half a MiB for each token", {row[0]: row[4] for row in rows}["Llama 2 7B"] == "512")
check("Llama 3.1 8B: 131,072 tokens of 128 KiB are 16 GiB", {row[0]: row[6] for row in rows}["Llama 3.1 8B"] == "16.00")

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 3.8))
for (name, c), colour in zip(models.items(), (GREY, RED, GREEN, BLUE), strict=True):
    n = np.unique(np.geomspace(64, c.max_positions, 60).astype(int))
    ax.plot(n, [cache_bytes(c, int(t)) / 2**30 for t in n], color=colour)
    end = n[-1], cache_bytes(c, int(n[-1])) / 2**30
    ax.plot(*end, "o", color=colour)
    ax.annotate(name, end, xytext=(0, 7), textcoords="offset points", color=colour, ha="center", size=9)
weight = 2 * parameters.count(models["Llama 3.1 8B"]) / 2**30
longest = {name: cache_bytes(c, c.max_positions) for name, c in models.items()}
check("Llama 3.1 8B: its longest text needs more than its weights", longest["Llama 3.1 8B"] > weight * 2**30)
window = models["Mistral 7B"].layers[0].window
check("Mistral 7B: its window needs as much as its longest text",
      cache_bytes(models["Mistral 7B"], window) == longest["Mistral 7B"])  # fmt: skip
ax.axhline(weight, color=GREY, linestyle=":")
ax.text(64, weight * 1.2, "weights of Llama 3.1 8B", color=GREY, size=9)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="tokens of one text",
    ylabel="GiB",
    xlim=(60, 3e5),
    ylim=(None, 60),
    title="bytes of the cache, 16 bits",
)
save(figure, "20_memory")

# %% [markdown]
# ![Cache size against text length for four models](figures/20_memory.png)
#
# *A dot is the longest text that the model was made for. There Llama 3.1 8B needs more memory for one text than for its
# weights. Mistral's line lies under Llama 3.1's up to its window, where it bends and stays flat.*
#
# ## Ring buffers
# With a window of S positions, a token that fell out of it is never looked at again. Then S *slots*, places for a key and a
# value, are enough: position p goes to slot p % S, over the position that just left. That is a *ring buffer*. The slots are
# out of order, but attention does not care about order: the position is inside the key, which was rotated before it was
# stored.

# %%
S, T = 8, 20
random = np.random.default_rng(0)
q, k, v = (random.normal(size=(T, heads, H)).astype(np.float32) for heads in (N, K, K))
distance = np.arange(T)[:, None] - np.arange(T)[None]
windowed = attend(q, k, v, (distance >= 0) & (distance < S))  # [T N H], with everything kept

slots, ring_k, ring_v = np.full(S, -1), np.zeros((S, K, H), np.float32), np.zeros((S, K, H), np.float32)
history, out = [], []
for p in range(T):
    slots[p % S], ring_k[p % S], ring_v[p % S] = p, k[p], v[p]
    history.append(slots.copy())
    out.append(attend(q[p : p + 1], ring_k, ring_v, (slots >= 0)[None])[0])
same("a ring of 8 slots is a window of 8", out, windowed)
ours = np.array(history)  # [T S]
ring = kv.Ring(jnp.zeros((1, S, 1)), jnp.zeros((1, S, 1)))
theirs = np.asarray(ring.held(jnp.arange(1, T + 1)))  # [T S], negative where nothing is
same("which slot holds which position: nanollm_jax.cache.Ring.held", np.maximum(theirs, -1), ours, tolerance=0)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(9, 3.4))
age = np.where(ours >= 0, np.arange(T)[:, None] - ours, np.nan).T  # [S T]
check("in every column something is new, and nothing is older than the window",
      (np.nanmin(age, axis=0) == 0).all() and np.nanmax(age) == S - 1)  # fmt: skip
ax.imshow(age, cmap="Blues_r", vmin=0, vmax=S + 2, aspect="auto")
for (slot, t), value in np.ndenumerate(ours.T):
    if value >= 0:
        new = value == t
        ax.text(t, slot, value, ha="center", va="center", size=9, color="white" if age[slot, t] < 5 else "black",
                weight="bold" if new else "normal")  # fmt: skip
        if new:
            ax.add_patch(plt.Rectangle((t - 0.5, slot - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2))
ax.set(xlabel="token that is written", ylabel="slot", title="the position that each slot holds; orange: just written")
ax.set_xticks(range(T))
ax.spines[:].set_visible(False)
ax.tick_params(length=0)
save(figure, "20_ring")

# %% [markdown] tags=["opening"]
# ![Which position each of eight slots holds, token by token](figures/20_ring.png)
#
# *Dark is new. Each token takes the next slot; once all are full, that is the slot of the oldest one.*

# %% tags=["figure"]
lengths_so_far = jnp.arange(T + 1)  # 0 to T tokens
buffers = {size: jnp.zeros((1, size, 1)) for size in (S, T)}
in_ring = np.maximum(kv.Ring(buffers[S], buffers[S]).held(lengths_so_far), -1)  # [T+1 S]
check("the page's ring is the one above, and before it an empty one",
      np.array_equal(in_ring[1:], ours) and (in_ring[0] == -1).all())  # fmt: skip
interactive(
    "ring",
    {
        "tokens": [tokenizer.piece(int(token)).replace("▁", " ") for token in ids[:T]],
        "plain": np.maximum(kv.Plain(buffers[T], buffers[T]).held(lengths_so_far), -1),  # [T+1 T]
        "ring": in_ring,
    },
    "Step on, or play: each token's key and value go into the next slot, in the ring over those that nobody looks at any more.",
)

# %% [markdown]
# ## Latents
# Heads that share keys and values make the cache smaller, but have the same keys to choose by and the same values to fetch.
# There is another way: keep for each position one vector c, a *latent*, and make the keys and values of all heads from it,
# with two matrices for each head, key = Uc and value = Wc. Then c is all that the cache holds (DeepSeek-AI 2024,
# arXiv:2405.04434, section 2.1).
#
# And keys and values need not be made anew for every token. A query's product with a key is q·(Uc) = (Uᵀq)·c: the query may
# go to the latents instead. And a mean of values Wc is W times the mean of the latents: all heads look at the same vectors.

# %%
SEEN, WIDTH, HEADS = 20, 32, 4  # positions, the width of a latent, heads
# C numbers in a latent; X in a query and a key of a head, or in a value
latents, wk, wv, q1 = (random.normal(size=shape).astype(np.float32) for shape in (
    (SEEN, WIDTH), (HEADS, 16, WIDTH), (HEADS, 24, WIDTH), (HEADS, 16)))  # fmt: skip


def shares(scores):
    """[N S] -> [N S], divided by the root of the 16 numbers of a query: chapters 09 and 10"""
    powers = np.exp((scores - scores.max(axis=-1, keepdims=True)) / 4)
    return powers / powers.sum(axis=-1, keepdims=True)


keys1, values1 = np.einsum("NXC,SC->NSX", wk, latents), np.einsum("NXC,SC->NSX", wv, latents)
scores1 = np.einsum("NX,NSX->NS", q1, keys1)
same("the shares are a softmax", shares(scores1), jax.nn.softmax(scores1 / math.sqrt(q1.shape[1]), axis=-1))
made = np.einsum("NS,NSX->NX", shares(scores1), values1)  # keys and values of every head
met = np.einsum("NX,NXC->NC", q1, wk)  # queries, as wide as a latent
looked = np.einsum("NXC,NC->NX", wv, shares(met @ latents.T) @ latents)
same("queries at the latents give what keys and values of every head give", looked, made, tolerance=1e-4)

DEEPSEEK_V3 = {"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
               "num_hidden_layers": 61, "num_attention_heads": 128, "max_position_embeddings": 163840, "kv_lora_rank": 512,
               "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}  # fmt: skip
c, _ = nano.read_config(DEEPSEEK_V3)
one = 2 * c.num_layers * (c.latent.width + c.latent.rotated)
check("576 numbers a position and layer, of which 64 are rotated",
      (c.latent.width + c.latent.rotated, c.latent.rotated) == (576, 64))  # fmt: skip
every = 2 * c.num_layers * c.num_heads * sum(c.widths(c.layers[0]))
check("DeepSeek V3: the library's cache of a token is as large", one == library_bytes(c, 1, 2))
check("its heads' own keys, of 128 and 64 numbers, and values, of 128, in 16 bits",
      every == c.num_layers * c.num_heads * (128 + 64 + 128) * 2)  # fmt: skip
smaller = "Llama 3.1 8B"
print(
    f"DeepSeek V3, a token in 16 bits: {one / 1024:.1f} KiB of latents; keys and values of its {c.num_heads} heads would be"
)
print(
    f"{every / 1024:,.0f} KiB, {every / one:.0f} times as much. {smaller}, a smaller model: "
    f"{cache_bytes(models[smaller], 1) / 1024:.0f} KiB."
)

# %% [markdown]
# Only the rotation of chapter 12 is in the way: it would stand between U and c, with another angle at every position. So a
# small part of each key is made apart: it is rotated, all heads share it, and it is kept beside the latent (of DeepSeek V3's
# 576 numbers, 64). The price is arithmetic: a query at the latents is wider than one at a head's own key.
#
# ## Layers without keys
# A *hybrid* model has attention in a few layers only. The others are *recurrent*: what they remember of a text is a
# *state*, an array that each token changes and whose size is the same however long the text is. Not all that a long
# text says has room in it, so a model learns what to keep. Qwen 3.5 has attention in every fourth layer, and in the
# others the *gated delta rule*: each head's state is a matrix `[i j]` that gives a value of j numbers for a key of i. A token
# lets the matrix fade a little, corrects what the matrix gives for the token's key, and asks it with the token's query. These
# three lines are the whole memory:


# %%
def recur(state, q, k, v, stays, corrects):
    """One token, one head.  state [i j], q and k [i], v [j], two numbers from 0 to 1 -> state, what the query finds [j]"""
    state = stays * state
    state = state + np.outer(k, corrects * (v - k @ state))
    return state, q @ state


keys, _ = np.linalg.qr(random.normal(size=(16, 16)))  # 16 keys of length 1, at right angles to each other
said = random.normal(size=(17, 8))
state = np.zeros((16, 8))
for k, v in zip([*keys, keys[3]], said, strict=True):  # the last one has the key of the fourth
    state, _ = recur(state, k, k, v, 1.0, 1.0)
same("16 keys, and each still gives its own value", (keys @ state)[4:], said[4:16], tolerance=1e-6)
same("what was said of a key last is what it gives", keys[3] @ state, said[16], tolerance=1e-6)

T = 70
q, k, v = (random.normal(size=(T, size)).astype(np.float32) for size in (16, 16, 8))
k = k / np.linalg.norm(k, axis=-1, keepdims=True)
stays, corrects = random.uniform(0.8, 1.0, T).astype(np.float32), random.uniform(0.0, 1.0, T).astype(np.float32)
state, found = np.zeros((16, 8), np.float32), []
for token in zip(q, k, v, stays, corrects, strict=True):
    state, given = recur(state, *token)
    found.append(given)
tokens = (q[None, :, None], k[None, :, None], v[None, :, None, None], np.log(stays)[None, :, None, None])
theirs, last = gated_delta.rule(*tokens, corrects[None, :, None, None], np.zeros((1, 1, 1, 16, 8), np.float32))
same("the library reads many tokens at once, and finds the same", theirs[0, :, 0, 0], found, tolerance=1e-4)
same("and remembers the same", last[0, 0, 0], state, tolerance=1e-4)

# %% [markdown]
# What it saves is counted from the sizes of Qwen 3.5 27B, once as it is and once with attention in all its layers:

# %%
hybrid, _ = nano.read_config({
    "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24,
    "num_key_value_heads": 4, "intermediate_size": 17408, "linear_num_value_heads": 48, "max_position_embeddings": 262144,
})  # fmt: skip
looking = [layer for layer in hybrid.layers if layer.mixer is None]
check("attention in every fourth layer", 4 * len(looking) == hybrid.num_layers and all(
    layer.mixer is None for layer in hybrid.layers[3::4]))  # fmt: skip
rows = []
for tokens in (1024, 32768, 262144):
    size = library_bytes(hybrid, tokens, 2)
    keys_and_values = cache_bytes(hybrid, tokens) * len(looking) // hybrid.num_layers
    rows.append([f"{tokens:,}"] + [f"{n / 2**20:,.0f}" for n in (keys_and_values, size - keys_and_values, size)]
                + [f"{cache_bytes(hybrid, tokens) / 2**20:,.0f}"])  # fmt: skip
table(
    f"a text in {len(looking)} layers of attention and {hybrid.num_layers - len(looking)} recurrent ones, MiB",
    ["tokens", "keys, values", "states", "both", "with attention in all"],
    rows,
)
check("with attention in all layers 1,024 tokens need 2·L·K·H·1,024 numbers of two bytes",
      rows[0][4] == str(2 * 64 * 4 * 256 * 1024 * 2 // 2**20))  # fmt: skip
check("states have the same size whatever the text", len({row[2] for row in rows}) == 1)
matrices = (hybrid.num_layers - len(looking)) * 48 * 128 * 128 * 4  # 48 heads, keys and values of 128 numbers, 32 bits
check("nearly all of it are the matrices [i j], in 32 bits", 0.95 < matrices / (size - keys_and_values) <= 1)

# %% [markdown]
# The price: a state goes forwards only. From keys and values a text can be taken up at any of its places: those behind it are
# left out. But what a state has read cannot be taken out of it. So the engine, which reads a long prompt in parts, keeps a
# copy of the states at the end of each part. A chat that goes back to an earlier place is read again, from such a copy or from
# the beginning. And no tokens are guessed ahead, since they might have to be taken back (chapter 26).
#
# ## In the engine
# - `nanollm_jax.cache` is the only part of the library that knows how keys and values are stored: one buffer a layer,
#   `[B*K S H]`, for B texts at once. `nanollm_jax.cache.extend` adds the new ones and says which position each slot holds.
# - Our `concatenate` copies the whole memory for every token. The engine has room from the start and writes one slot
#   *in place*: the cache is *donated* to the compiled program, which may then reuse its memory
#   (`nanollm_jax.decode.write_tokens`).
# - Shapes are fixed inside a program, so the cache has a capacity. `nanollm_jax.generate` begins with a small one and takes
#   the next power of two when it is full: `nanollm_jax.engine.buckets.capacity`, `nanollm_jax.cache.resize`. Where empty slots
#   cost no time, a server has room for its longest text from the start. That is so where a step reads only the filled ones, as
#   the library's own code for CPUs does (`nanollm_jax.engine.memory.least`).
# - Layers with a window are rings as soon as the capacity exceeds it.
# - A model with latents keeps them in `nanollm_jax.cache.Latents`; `nanollm_jax.ops.latent` takes queries there.
#
# ## Your engine
# Attention, the block, the forward pass and the loop take a cache, and give a longer one back. One program, `step`, reads a
# prompt and writes a token: both times a text goes on behind what the cache holds, by many tokens or by one. The cache
# is donated, so XLA writes into it and copies nothing.

# %%
mine = grow(20)
loaded = mine.load(Path(nano.__file__).parent / "assets/nano-stories")
own = list(mine.generate(loaded, STORY, mine.Sampling(temperature=0.0), max_new_tokens=8))
theirs = nano.generate(model, STORY, max_new_tokens=8, sampling=nano.Sampling(temperature=0.0)).token_ids
check("your engine: the same tokens as the library", own == theirs)

# %% [markdown]
# ## Exercises
# 1. Why are keys and values kept, but no queries?
# 2. A GPU has 24 GiB. Llama 3.1 8B is loaded in 16 bits. For how many tokens, of all texts together, is there room?
# 3. Read a prompt in two pieces. Are the logits the same?

# %% [markdown] tags=["answer"]
# A query is used by its own token only, once, when that token is read. Keys and values are used by all later tokens.

# %% tags=["answer"]
c = models["Llama 3.1 8B"]
left_over = 24 * 2**30 - 2 * parameters.count(c)
print(f"{left_over / 2**30:.1f} GiB are left, {left_over // cache_bytes(c, 1):,} tokens, all texts together.")
fit = left_over // cache_bytes(c, 1)
taken = [sum(parameters.nbytes(c, DTYPES["bfloat16"]).values()) + n * cache_bytes(c, 1) for n in (fit, fit + 1)]
check("so many fit beside the weights, and one more does not", taken[0] <= 24 * 2**30 < taken[1])

# %% tags=["answer"]
_, first = forward(ids[:9], empty())
pieces, _ = forward(ids[9:], first)
same("two pieces, the same logits", pieces, whole, tolerance=1e-4)

# %% [markdown]
# [Previous: 19 · Generation](19_generation.py) · [Contents](README.md) · [Next: 21 · Profiling](21_profiling.py)
