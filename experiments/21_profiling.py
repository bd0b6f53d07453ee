# %% [markdown]
# # 21 · Profiling: where the time goes, and which limit it meets
#
# [Previous: 20 · KV cache](20_kv_cache.py) · [Contents](README.md) · [Next: 22 · Parallelism](22_parallelism.py)
#
# ## The question
# With a cache, each new token is one pass of one vector through the model. Why does it take as long as it does? What
# would make it faster: a quicker processor, more texts at once, or smaller weights?
#
# ## The idea
# To *profile* is to measure where time goes before anything is changed. Then the measured time is compared with a
# limit that cannot be beaten. A machine has two (chapter 04):
#
# - *bandwidth*: how many bytes it reads from memory in a second;
# - *peak*: how many FLOPs it does in a second.
#
# A step that moves so many bytes and does so many FLOPs takes at least
#
#     seconds = max(bytes / bandwidth, FLOPs / peak)
#
# That is the *roofline*. In decode every weight is read once for a token and used for two FLOPs. So bandwidth is the
# limit, by far, and there are two ways out: use each weight that was read for several texts, *batching*, or make the
# weights smaller, *quantisation* (chapter 24).
#
# ## From scratch
# First a profiler: a clock that adds up seconds by name. The model is the one of chapter 20, in NumPy, with the parts
# of a layer under the clock.

# %%
from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections import defaultdict
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
    seconds,
    table,
)
from engine_steps import grow

import nanollm_jax as nano
from nanollm_jax.decode import init_state
from nanollm_jax.measure import roofline

model = nano.load(dtype="float32")
config = model.config
weights = jax.tree.map(np.asarray, model.params)
N, K, H, L = config.num_heads, config.num_kv_heads, config.head_dim, config.num_layers
D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
random = np.random.default_rng(0)


class Clock:
    """Seconds by name; what it is timing right now, if anything."""

    def __init__(self, now=time.perf_counter):
        self.now, self.spent, self.timing = now, defaultdict(float), None

    @contextlib.contextmanager
    def __call__(self, name):
        self.timing, begun = name, self.now()
        yield
        self.spent[name] += self.now() - begun
        self.timing = None


ticks = iter((0, 2, 3, 7))  # a clock that says these when it is asked
clock = Clock(lambda: next(ticks))
for _ in range(2):
    with clock("the same"):
        pass
check("what is timed twice is added up", clock.spent == {"the same": 2 + 4})


def run(x, kept_keys, kept_values, clock):
    """x [T D], keys and values of each layer that were kept [L S K H] -> logits [T V]; rotations are left out"""
    for w, keys, values in zip(weights["layers"], kept_keys, kept_values, strict=True):
        with clock("norms"):
            h = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + config.norm_eps) * w["attention_norm"]["scale"]
        with clock("attention, products with weights"):
            heads = (h @ w["attention"]["wqkv"].reshape(-1, D).T).reshape(len(x), K, N // K + 2, H)
        with clock("attention, scores and mixing"):
            mixed = np.full_like(x, np.nan, shape=(len(x), N, H))
            for n in range(N):
                scores = heads[:, n // (N // K), n % (N // K)] @ keys[:, n // (N // K)].T / np.float32(math.sqrt(H))
                powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
                mixed[:, n] = powers / powers.sum(axis=-1, keepdims=True) @ values[:, n // (N // K)]
        with clock("attention, products with weights"):
            x = x + mixed.reshape(len(x), N * H) @ w["attention"]["wo"].reshape(D, N * H).T
        with clock("norms"):
            h = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + config.norm_eps) * w["mlp_norm"]["scale"]
        with clock("MLP, products with weights"):
            gate, up = h @ w["mlp"]["up"][0].T, h @ w["mlp"]["up"][1].T
        with clock("MLP, activation"):
            hidden = gate / (1 + np.exp(-np.maximum(gate, -80))) * up
        with clock("MLP, products with weights"):
            x = x + hidden @ w["mlp"]["down"].T
    with clock("norms"):
        x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + config.norm_eps) * weights["final_norm"]["scale"]
    with clock("logits"):
        return x @ weights["embedding"]["tokens"].T


# the library without rotations: what its layers keep of a text, and its logits behind the last token
turned_off = dataclasses.replace(config, layers=tuple(dataclasses.replace(layer, rope=None) for layer in config.layers))
ids = np.array(model.tokenizer.encode("Lily had a red ball"))
room = nano.init_cache(config, batch=1, capacity=len(ids), dtype="float32")
(theirs, _), seen = nano.observe(nano.forward, model.params, jnp.asarray(ids)[None], room, config=turned_off)
keys, values = (np.stack([seen[f"layers.{n}.attention.{name}"][0] for n in range(L)]) for name in "kv")  # [L T K H]
ours = run(weights["embedding"]["tokens"][ids[-1:]], keys, values, Clock())  # [1 V]
same("one token behind what was kept: nanollm_jax.forward, its rotations turned off", ours[0], theirs[0, -1], 1e-4)

# %% [markdown]
# If something were computed while no clock runs, the shares would still add up to 1. So one run is watched: NumPy hands
# each operation on an array of a class of our own to that class, and what comes of it is again such an array.

# %%
computed = defaultdict(int)  # (under which name it was timed, whether it was a product) -> operations


class Watched(np.ndarray):
    """An array whose operations are counted."""

    def __array_ufunc__(self, operation, method, *inputs, out=(), **settings):
        computed[clock.timing, operation is np.matmul] += 1
        settings |= {"out": tuple(map(np.asarray, out))} if out else {}
        return np.asarray(getattr(operation, method)(*map(np.asarray, inputs), **settings)).view(Watched)


clock = Clock()
run(weights["embedding"]["tokens"][ids[-1:]].view(Watched), keys, values, clock)
table(
    "operations on arrays",
    ["part", "products", "others"],
    [(part, computed[part, True], computed[part, False]) for part in clock.spent],
)
check("nothing was computed while no clock ran", not computed.keys() & {(None, True), (None, False)})
timed = {part: count for (part, product), count in computed.items() if product and count}
by_layer = {
    "attention, products with weights": 2,
    "attention, scores and mixing": 2 * N,
    "MLP, products with weights": 3,
}
check("each product was timed as what it is", timed == {part: n * L for part, n in by_layer.items()} | {"logits": 1})

# %%
CASES = {"decode: 1 token, 500 kept": (1, 500), "prefill: 256 tokens": (256, 256)}
profiles = {}
for name, (T, S) in CASES.items():
    x = (0.1 * random.normal(size=(T, D))).astype(np.float32)
    keys, values = random.normal(size=(2, L, S, K, H)).astype(np.float32)
    run(x, keys, values, Clock())
    runs = []
    for _ in range(2 if quick() else 40):
        clock, begun = Clock(), time.perf_counter()
        run(x, keys, values, clock)
        spent = time.perf_counter() - begun
        runs.append(clock.spent)
        assert sum(clock.spent.values()) <= spent, "more was counted than was spent"
    fastest = {part: min(one[part] for one in runs) for part in clock.spent}  # other programs only ever add time
    profiles[name] = {part: s / sum(fastest.values()) for part, s in fastest.items()}
    print(f"{name}: {1e3 * sum(fastest.values()):.1f} ms")
table(
    "share of the time",
    ["part", *profiles],
    [(part, *(f"{p[part]:.1%}" for p in profiles.values())) for part in next(iter(profiles.values()))],
)

products = {name: sum(p[part] for part in p if "weights" in part or part == "logits") for name, p in profiles.items()}
for name, share in products.items():
    print(f"{name}: {share:.0%} for products with weights, of which the logits are one")
    others = [profiles[name][part] for part in ("norms", "attention, scores and mixing", "MLP, activation")]
    check("with all others that is everything", math.isclose(share + sum(others), 1))
    check_time("they take the largest part", share > profiles[name]["attention, scores and mixing"])

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8.5, 2.4))
colours = dict(zip(next(iter(profiles.values())), (GREY, "#5b93cc", ORANGE, BLUE, RED, GREEN), strict=True))
begin = np.zeros(len(profiles))
for part, colour in colours.items():
    share = np.array([p[part] for p in profiles.values()])
    ax.barh(range(len(profiles)), share, left=begin, color=colour, label=part, edgecolor="white")
    for place, value in enumerate(share):
        if value > 0.05:
            ax.text(begin[place] + value / 2, place, f"{value:.0%}", ha="center", va="center", color="white", size=9)
    begin += share
ax.set(xticks=[], xlim=(0, 1))
ax.set_yticks(range(len(profiles)), [name.replace(": ", ":\n") for name in profiles])
ax.invert_yaxis()
ax.spines[:].set_visible(False)
ax.tick_params(length=0)
figure.legend(fontsize=9, ncols=3, loc="outside lower center")
save(figure, "21_shares")

# %% [markdown]
# ![Shares of the time of decode and of prefill](figures/21_shares.png)
#
# *The NumPy model. Two shades of blue and the green are products with weights.*
#
# These products take the largest part of both, but for different reasons, as the roofline will say. The roofline's two rates
# are measured on this machine, with the sum of a large array and with a product of two large matrices.

# %%
SIDE, LONG = (256, 2**20) if quick() else (1536, 2**26)
large, square = jnp.ones(LONG, jnp.float32), jnp.ones((SIDE, SIDE), jnp.float32)
product = jax.jit(jnp.matmul)
done = 2 * SIDE**3  # FLOPs
operands = square, square
check("so many FLOPs as XLA counts", done == product.lower(*operands).cost_analysis()["flops"])
total = jax.jit(jnp.sum)
summed = large.nbytes
counted = total.lower(large).cost_analysis()["bytes accessed"]
check("and so many bytes, but for the sum's own", 0 <= counted - summed <= 16)
bandwidth = summed / seconds(total, large, repeats=20)
peak = done / seconds(product, *operands, repeats=20)
print(
    f"bandwidth {bandwidth / 1e9:.1f} GB/s, peak {peak / 1e9:.0f} GFLOP/s, {peak / bandwidth:.1f} FLOPs for each byte"
)


def step_bytes(c, rows, length, width):
    """Bytes of one more token in each of so many texts: all weights once, keys and values so far, and the new ones."""
    layer = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads) + 3 * c.hidden_size * c.intermediate_size
    once = c.num_layers * (layer + 2 * c.hidden_size) + c.hidden_size + c.vocab_size * c.hidden_size
    own = 2 * c.num_layers * c.num_kv_heads * c.head_dim * (length + 2) + (0 if c.tie_embeddings else c.hidden_size)
    return width * (once + rows * own)


def step_flops(c, rows, length):
    """Two for each weight, four for each number of a key that is compared with a query."""
    layer = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads) + 3 * c.hidden_size * c.intermediate_size
    attention = 4 * c.num_heads * c.head_dim * (length + 1)
    return rows * (2 * (c.num_layers * layer + c.vocab_size * c.hidden_size) + c.num_layers * attention)


LLAMA_8B = nano.read_config(json.loads((Path(nano.__file__).parents[1] / "configs/llama-3.1-8b.json").read_text()))[0]
for c, rows, length, width in ((config, 1, 100, 4), (config, 7, 31, 2), (LLAMA_8B, 4, 1000, 2)):
    ours = step_bytes(c, rows, length, width)
    theirs = roofline.step_bytes(c, rows, length, {4: "float32", 2: "bfloat16"}[width])
    check(f"{ours:,} bytes: nanollm_jax.measure.roofline.step_bytes", ours == theirs)
check("FLOPs of a text of 1: the library", step_flops(config, 3, 0) == roofline.prompt_flops(config, 3, 1))
one_by_one = sum(
    step_flops(LLAMA_8B, 3, length) for length in range(9)
)  # with the logits of each token, not of the last only
unread = 8 * 3 * 2 * LLAMA_8B.vocab_size * LLAMA_8B.hidden_size
check("and of a text of 9, token by token", one_by_one - unread == roofline.prompt_flops(LLAMA_8B, 3, 9))
flops, moved = step_flops(config, 1, 100), step_bytes(config, 1, 100, 4)
print(f"one token: {flops / 1e6:.1f} MFLOP, {moved / 1e6:.1f} MB, {flops / moved:.2f} FLOPs for each byte")
check_time("decode of one text is far on the side of memory", flops / moved < peak / bandwidth)

# %% [markdown]
# ## Batching
# The weights are the same for all texts. With B texts in a batch, each weight that arrives is used B times.

# %% tags=["question"]
predict("16 texts at once instead of 1: how much longer does a step take, and how many tokens per second are written?")

# %% tags=["answer"]
STEPS, LENGTH = (4, 16) if quick() else (32, 64)
batches = [1, 2] if quick() else [1, 2, 4, 8, 16, 32, 64]


def write(rows):
    """The engine's loop on so many rows, from an empty cache -> tokens [B STEPS]"""
    sampling, seeds = nano.Sampling(temperature=0.0).rows(rows, V), np.zeros(rows, np.uint32)
    state = init_state(nano.init_cache(config, rows, LENGTH, "float32"), config)
    return nano.decode(model.params, state, sampling, seeds, config=config, steps=STEPS)[0]


tokens = np.asarray(write(2))
check("so many tokens in each row, the same in both", tokens.shape == (2, STEPS) and (tokens[0] == tokens[1]).all())
in_all = dict.fromkeys(batches, math.inf)  # seconds of all steps
for _ in range(1 if quick() else 4):  # by turns, and the fastest of each counts
    for rows in batches:
        in_all[rows] = min(in_all[rows], seconds(write, rows, repeats=1))
took = {rows: spent / STEPS for rows, spent in in_all.items()}  # seconds of one step
written = {rows: rows / took[rows] for rows in batches}  # tokens per second
check("in the seconds of all steps, all tokens", math.isclose(written[2] * in_all[2], tokens.size))
bound = {
    rows: max(step_bytes(config, rows, STEPS // 2, 4) / bandwidth, step_flops(config, rows, STEPS // 2) / peak)
    for rows in batches
}
intensity = {rows: step_flops(config, rows, STEPS // 2) / step_bytes(config, rows, STEPS // 2, 4) for rows in batches}
check("one text: half a FLOP for each byte of float32", round(intensity[1], 1) == 0.5)
check("the more texts, the more", list(intensity.values()) == sorted(intensity.values()))
table(
    "the bundled model",
    ["texts", "ms a step", "tokens/s", "ms by the roofline", "FLOPs for each byte"],
    [
        (rows, f"{took[rows] * 1e3:.2f}", f"{written[rows]:,.0f}", f"{bound[rows] * 1e3:.2f}", f"{intensity[rows]:.1f}")
        for rows in batches
    ],
)
if not quick():
    outcome(took[16] / took[1], "times as long for 16 texts")
    check_time("16 texts do not take 16 times as long", took[16] < 12 * took[1])
    check_time("64 texts write more tokens per second than 4", written[64] > written[4])
    check_time("a step of one text takes less than twenty times what the roofline says", took[1] < 20 * bound[1])

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 4))


def limits(rows):
    """Tokens per second that each of the two limits allows."""
    return rows * bandwidth / step_bytes(config, rows, STEPS // 2, 4), rows * peak / step_flops(
        config, rows, STEPS // 2
    )


same("the figure's roofline is the table's", [min(limits(r)) for r in batches], [r / bound[r] for r in batches], 1e-12)
fine = np.geomspace(1, batches[-1], 50)
by_memory, by_arithmetic = np.array([limits(r) for r in fine]).T
ax.plot(fine, by_memory, ":", color=GREY)
ax.plot(fine, by_arithmetic, ":", color=GREY)
ax.plot(fine, np.minimum(by_memory, by_arithmetic), color=ORANGE, label="roofline")
ax.plot(batches, [written[rows] for rows in batches], "o-", color=BLUE, label="measured")
ax.text(1, by_arithmetic[0] * 1.06, "limit of arithmetic", color=GREY, size=9, va="bottom")
beyond = fine[np.argmax(by_memory >= min(by_memory[-1], 1.6 * by_arithmetic[0]))]
ax.text(beyond * 0.85, 1.6 * by_arithmetic[0], "limit of memory", color=GREY, size=9, ha="right", va="center")
ax.set(xscale="log", yscale="log", xlabel="texts in the batch", ylabel="tokens per second")
ax.set_xticks(batches, batches)
ticks = [n * 10**e for e in range(2, 6) for n in (1, 2, 5)]
ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
ax.set_ylim(0.8 * min(by_memory[0], 1 / took[1]), by_arithmetic[0] * 2.2)
ax.minorticks_off()
ax.legend(loc="lower right")
save(figure, "21_limits")

# %% [markdown]
# ![Tokens per second against the roofline](figures/21_limits.png)
#
# *The slanted line is the limit of memory, the level one that of arithmetic. Where the measured line stays below
# both, something else takes time. It may be products too small to keep all cores busy, and what stands between them:
# that is a guess, and `nanollm profile` shows how the engine's own time is shared. A point above the limit of memory is
# possible too: this model is so small that a large cache holds its weights, and the limit is that of the memory behind.*

# %% tags=["figure"]
lengths = {"the bundled model": (config, STEPS // 2), "Llama 3.1 8B": (LLAMA_8B, 1000)}
counted = [
    {"name": name, "length": length, "once": step_bytes(c, 0, length, 1), "flops": step_flops(c, 1, length),
     "own": step_bytes(c, 1, length, 1) - step_bytes(c, 0, length, 1)}
    for name, (c, length) in lengths.items()
]  # fmt: skip
for (c, length), one in zip(lengths.values(), counted, strict=True):
    check(f"{one['name']}: the page's bytes and FLOPs of 7 texts", 2 * (one["once"] + 7 * one["own"]) == step_bytes(
        c, 7, length, 2) and 7 * one["flops"] == step_flops(c, 7, length))  # fmt: skip
interactive(
    "roofline",
    {"bandwidth": bandwidth, "peak": peak, "models": counted},
    "Set the rows and the bits of a weight, and see which limit a step meets.",
)

# %% [markdown]
# ## In the engine
# - `nanollm_jax.measure.trace.profile` is the profiler for compiled programs: it reads XLA's own record of a run and
#   says for each part of the model what share it took. `nanollm profile` prints it, and `nanollm bench` the speeds
#   with the share of the roofline that they reach.
# - `nanollm_jax.measure.roofline` has the two measured rates and the counts of this chapter.
# - `nanollm_jax.generate` takes a list of prompts as one batch. `nanollm_jax.dtypes.resolve_dtype` says which weights
#   are used: float32 on a CPU, 16 bits on a GPU.
# - `nanollm_jax.load` with dtype "int8" or "int4" keeps weights in fewer bytes: chapter 24.
#
# ## Your engine
# `jax.vmap` makes of a step of one text a step of many (chapter 18): each text has its own cache, its own length, its own
# seed, and all use a weight that was read once. And `measure` says how fast that is.

# %%
mine = grow(21)
loaded = mine.load(Path(nano.__file__).parent / "assets/nano-stories")
prompts = ["Once upon a time", "Lily and her dog", "The little bird was sad because"]
own = mine.generate_all(loaded, prompts, mine.Sampling(temperature=0.0), max_new_tokens=8)
theirs = nano.generate(model, prompts, max_new_tokens=8, sampling=nano.Sampling(temperature=0.0))
check("your engine: each text as the library writes it", own == [answer.token_ids for answer in theirs])
if not quick():
    for texts in (1, 8):
        print(f"{texts} text{'s' * (texts > 1)}: {mine.measure(loaded, texts)[0]:,.0f} tokens per second")

# %% [markdown]
# ## Exercises
# 1. A GPU reads 2,000 GB/s. How many tokens per second can Llama 3.1 8B write for one text of 1,000 tokens, with 16
#    bits for each number of weights and cache, and with 8?
# 2. How many texts must this machine have in a batch before arithmetic is the limit, if weights are all that is read?
# 3. What is the most that a step of decode can gain, if scores and mixing are made faster and nothing else is?

# %% tags=["answer"]
most = {bits: 2_000e9 / step_bytes(LLAMA_8B, 1, 1_000, bits // 8) for bits in (16, 8)}
for bits, rate in most.items():
    print(f"{bits} bits: at most {rate:.0f} tokens per second")
read = most[16] * roofline.step_bytes(LLAMA_8B, 1, 1_000, "bfloat16")
check("so often in a second, what a step reads is 2,000 GB", math.isclose(read, 2_000e9))
check("half the bytes, twice the tokens", math.isclose(most[8], 2 * most[16]))

# %% tags=["answer"]
need = peak / bandwidth * 4 / 2  # 2 FLOPs for 4 bytes and each text
print(f"{need:.0f} texts: then 2 · {need:.0f} FLOPs for 4 bytes are {peak / bandwidth:.1f} for each byte.")
check("at this number both limits are the same", math.isclose(4 / bandwidth, 2 * need / peak))

# %% tags=["answer"]
share = profiles["decode: 1 token, 500 kept"]["attention, scores and mixing"]
print(f"They take {share:.0%}. If they took nothing, the rest would still take {1 - share:.0%} of the time.")
rest = [part for name, part in profiles["decode: 1 token, 500 kept"].items() if "mixing" not in name]
check("the rest is all other parts", math.isclose(sum(rest), 1 - share))
for faster in (2, 10, 1000):
    gain = 1 / (1 - share + share / faster)
    print(f"{faster} times faster: the step is {gain:.2f} times as fast")
    check("less than the limit", gain < 1 / (1 - share))

# %% [markdown]
# [Previous: 20 · KV cache](20_kv_cache.py) · [Contents](README.md) · [Next: 22 · Parallelism](22_parallelism.py)
