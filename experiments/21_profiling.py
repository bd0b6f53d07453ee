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
# weights smaller, *quantisation*.
#
# ## From scratch
# First a profiler: a clock that adds up seconds by name. The model is the one of chapter 20, in NumPy, with the parts
# of a layer under the clock.

# %%
from __future__ import annotations

import contextlib
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
from nanollm_jax import params as parameters
from nanollm_jax.decode import init_state
from nanollm_jax.measure import roofline
from nanollm_jax.ops import int8

model = nano.load(dtype="float32")
config = model.config
weights = jax.tree.map(np.asarray, model.params)
N, K, H, L = config.num_heads, config.num_kv_heads, config.head_dim, config.num_layers
D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
random = np.random.default_rng(0)


class Clock:
    """Seconds by name."""

    def __init__(self):
        self.spent = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name):
        begun = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - begun


def run(x, keys, values, clock):
    """x [T D], keys and values [S K H] that were kept -> [T V]; the time of a pass, its rotations left out"""
    for w in weights["layers"]:
        with clock("norms"):
            h = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + config.norm_eps) * w["attention_norm"]["scale"]
        with clock("attention, products with weights"):
            heads = (h @ w["attention"]["wqkv"].reshape(-1, D).T).reshape(len(x), K, N // K + 2, H)
        with clock("attention, scores and mixing"):
            mixed = np.full((len(x), N, H), np.nan, np.float32)
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
    with clock("logits"):
        return x @ weights["embedding"]["tokens"].T


CASES = {"decode: 1 token, 500 kept": (1, 500), "prefill: 256 tokens": (256, 256)}
profiles = {}
for name, (T, S) in CASES.items():
    x = (0.1 * random.normal(size=(T, D))).astype(np.float32)
    keys, values = random.normal(size=(2, S, K, H)).astype(np.float32)
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
    check_time("in the last run, the clock has missed less than half", sum(clock.spent.values()) > 0.5 * spent)
table(
    "share of the time",
    ["part", *profiles],
    [(part, *(f"{p[part]:.1%}" for p in profiles.values())) for part in next(iter(profiles.values()))],
)

products = {name: sum(p[part] for part in p if "weights" in part or part == "logits") for name, p in profiles.items()}
for name, share in products.items():
    print(f"{name}: {share:.0%} for products with weights, of which the logits are one")
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
# They take the largest part of both. But for different reasons, as the roofline will say. Its two rates are measured
# on this machine, with the sum of a large array and with a product of two large matrices.

# %%
SIDE, LONG = (256, 2**20) if quick() else (1536, 2**26)
large, square = jnp.ones(LONG, jnp.float32), jnp.ones((SIDE, SIDE), jnp.float32)
bandwidth = 4 * LONG / seconds(jax.jit(jnp.sum), large, repeats=20)
peak = 2 * SIDE**3 / seconds(jax.jit(jnp.matmul), square, square, repeats=20)
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


took = dict.fromkeys(batches, math.inf)  # seconds of one step
for _ in range(1 if quick() else 4):  # by turns, and the fastest of each counts
    for rows in batches:
        took[rows] = min(took[rows], seconds(write, rows, repeats=1) / STEPS)
bound = {
    rows: max(step_bytes(config, rows, STEPS // 2, 4) / bandwidth, step_flops(config, rows, STEPS // 2) / peak)
    for rows in batches
}
table(
    "the bundled model",
    ["texts", "ms a step", "tokens/s", "ms by the roofline", "FLOPs for each byte"],
    [
        (rows, f"{took[rows] * 1e3:.2f}", f"{rows / took[rows]:,.0f}", f"{bound[rows] * 1e3:.2f}",
         f"{step_flops(config, rows, STEPS // 2) / step_bytes(config, rows, STEPS // 2, 4):.1f}")
        for rows in batches
    ],
)  # fmt: skip
if not quick():
    outcome(took[16] / took[1], "times as long for 16 texts")
    check_time("16 texts do not take 16 times as long", took[16] < 12 * took[1])
    check_time("64 texts write more tokens per second than 4", 64 / took[64] > 4 / took[4])

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 4))
fine = np.geomspace(1, batches[-1], 50)
by_memory = np.array([r * bandwidth / step_bytes(config, r, STEPS // 2, 4) for r in fine])
by_arithmetic = np.array([r * peak / step_flops(config, r, STEPS // 2) for r in fine])
ax.plot(fine, by_memory, ":", color=GREY)
ax.plot(fine, by_arithmetic, ":", color=GREY)
ax.plot(fine, np.minimum(by_memory, by_arithmetic), color=ORANGE, label="roofline")
ax.plot(batches, [rows / took[rows] for rows in batches], "o-", color=BLUE, label="measured")
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
# both, something else takes time: products too small to keep all cores busy, and what stands between them; the table
# of shares above says how much that is. A point above the limit of memory is possible too: this model is so small
# that a large cache holds its weights, and the limit is that of the memory behind.*
#
# ## Quantisation: eight bits by hand
# If bytes are the limit, use fewer. A float32 weight has 4 bytes. *Quantised* to int8 it has one: an integer from -127
# to 127, times a *scale* that is stored once for each output, that is for each row of the matrix:
#
#     scale = largest |w| of the row / 127        q = round(w / scale)        w is nearly q · scale


# %%
def quantise(w, bits=8, group=None):
    """w [O I] -> whole numbers [O I/group group] and scales [O I/group 1]; without a group, one scale for each row"""
    top = 2 ** (bits - 1) - 1  # 127
    w = w.reshape(len(w), -1, group or w.shape[1])
    scale = np.abs(w).max(axis=-1, keepdims=True) / top
    scale = np.where(scale == 0, 1, scale)
    return np.clip(np.round(w / scale), -top, top).astype(np.int8), scale.astype(np.float32)


w = weights["layers"][3]["mlp"]["down"]  # [D F]
q, scale = quantise(w)
restored = (q * scale).reshape(w.shape)
print(f"{w.nbytes:,} bytes become {q.nbytes + scale.nbytes:,}")
check("no weight is off by more than half a step", (np.abs(restored - w) <= scale[:, 0] / 2 * 1.0001).all())
check("all of the range is used in each row", (np.abs(q).max(axis=(1, 2)) == 127).all())
theirs = int8.quantize(jnp.asarray(w), 1)
apart = np.abs(np.asarray(theirs.values, int) - q[:, 0])
check(
    "nanollm_jax.ops.int8.quantize: the same integers, but for a few halfway", apart.max() <= 1 and apart.mean() < 1e-3
)
same("and the same scales", theirs.scale, scale[:, 0, 0])

x = random.normal(size=(3, F)).astype(np.float32)
qx, scale_x = quantise(x)  # the vectors as well: then the product is one of integers
whole = qx[:, 0].astype(np.int32) @ q[:, 0].astype(np.int32).T  # [3 D], exact
by_integers = whole * scale_x[:, 0] * scale[:, 0].T
same("the product of integers, scaled back", by_integers, x @ w.T, tolerance=0.03)
same("is that of the restored numbers", by_integers, (qx * scale_x)[:, 0] @ restored.T)
device_x, device_w = jnp.asarray(qx[:, 0]), jnp.asarray(q[:, 0])
product = jax.jit(lambda a, b: jnp.einsum("RI,OI->RO", a, b, preferred_element_type=jnp.int32))
check("XLA's product of int8 is the same, bit for bit", np.array_equal(product(device_x, device_w), whole))

# %% [markdown]
# Does the model suffer? All matrices of the bundled model are quantised and restored, in different ways, and the
# perplexity (chapter 19) of some stories is measured. A *group* is a piece of a row with a scale of its own.

# %% tags=["question"]
predict("perplexity with 8, 4, 3 and 2 bits for each weight: from how many bits on is the model ruined?")

# %% tags=["answer"]
STORIES = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom. "
    "The ball rolled down the hill and into the water. Lily was sad. A big dog saw the ball. He jumped into the water and "
    "brought it back. Lily was very happy. She gave the dog a hug and they played all day.",
    "Tom and his dad wanted to make a cake. They put milk and eggs in a bowl. Tom liked to stir. Then the bowl fell on the "
    "floor and broke. Tom said he was sorry. His dad was not mad. They cleaned the floor and made a new cake. It was yummy.",
)
rows = [model.tokenizer.encode(story) for story in STORIES[: 1 if quick() else None]]
T = max(map(len, rows))
tokens = np.array([row + [0] * (T - len(row)) for row in rows])  # [B T]
counted = np.array([[1] * (len(row) - 1) + [0] * (T - len(row)) for row in rows])  # [B T-1]: what is real
forward = jax.jit(nano.forward, static_argnames="config")


def perplexity(params):
    cache = nano.init_cache(config, len(rows), T, "float32")
    logprobs = jax.nn.log_softmax(forward(params, jnp.asarray(tokens), cache, config=config)[0][:, :-1])
    chosen = jnp.take_along_axis(logprobs, jnp.asarray(tokens)[:, 1:, None], axis=-1)[:, :, 0]
    return math.exp(-float((chosen * counted).sum()) / counted.sum())


def whole_model(change):
    """The parameters with every matrix [... I] changed as [O I], and the bytes of all"""
    flat, nbytes = {}, 0
    for path, array in parameters.flatten(model.params).items():
        if array.ndim == 1:  # a norm's scale stays
            flat[path], size = array, array.nbytes
        else:
            matrix = np.asarray(array)
            matrix = matrix.reshape(D, -1) if path.endswith("wo") else matrix.reshape(-1, matrix.shape[-1])
            changed, size = change(matrix)
            flat[path] = jnp.asarray(changed.reshape(array.shape))
        nbytes += size
    return parameters.nest(flat), nbytes


def restore(bits, group=None):
    def change(w):
        q, scale = quantise(w, bits, group)
        return (q * scale).reshape(w.shape).astype(np.float32), q.size * bits / 8 + scale.nbytes

    return change


WAYS = {
    "float32": lambda w: (w, w.nbytes),
    "8 bits, a scale a row": restore(8), "6 bits, a scale a row": restore(6), "5 bits, a scale a row": restore(5),
    "4 bits, a scale a row": restore(4), "3 bits, a scale a row": restore(3), "2 bits, a scale a row": restore(2),
    "4 bits, groups of 16": restore(4, 16), "3 bits, groups of 16": restore(3, 16), "2 bits, groups of 16": restore(2, 16),
}  # fmt: skip
found = {}
for name, change in WAYS.items():
    params, nbytes = whole_model(change)
    found[name] = (nbytes, perplexity(params))
base = found["float32"]
table(
    "the bundled model, quantised",
    ["", "MB", "times smaller", "perplexity"],
    [(name, f"{nbytes / 1e6:.2f}", f"{base[0] / nbytes:.2f}", f"{p:,.2f}") for name, (nbytes, p) in found.items()],
)
check("8 bits change the perplexity by less than 2%", abs(found["8 bits, a scale a row"][1] / base[1] - 1) < 0.02)
check("at a quarter of the bytes, nearly", base[0] / found["8 bits, a scale a row"][0] > 3.9)
in_8_bits = perplexity(nano.load(dtype="int8").params)
check(
    "so does the library's own model in 8 bits, by as much",
    math.isclose(in_8_bits, found["8 bits, a scale a row"][1], rel_tol=1e-3),
)
check("2 bits a row ruin it", found["2 bits, a scale a row"][1] > 5 * base[1])
check("groups help there", found["2 bits, groups of 16"][1] < found["2 bits, a scale a row"][1] / 5)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 3.8))
for end, colour in (("a scale a row", BLUE), ("groups of 16", ORANGE)):
    points = {name: at for name, at in found.items() if name.endswith(end)}
    ax.plot([n / 1e6 for n, _ in points.values()], [p for _, p in points.values()], "o-", color=colour, label=end)
    for name, (n, p) in points.items():
        place = (0, 7) if colour == ORANGE else (9, -3) if p > 100 else (0, -16)
        ax.annotate(name[0], (n / 1e6, p), xytext=place, textcoords="offset points", color=colour, size=10, ha="center")
ax.axhline(base[1], color=GREY, linestyle=":")
beside = ax.get_yaxis_transform()
ax.text(0.01, base[1] * 0.88, f"float32, {base[0] / 1e6:.1f} MB", color=GREY, size=9, va="top", transform=beside)
ax.axhline(V, color=GREY, linestyle=":")
ax.text(0.99, V * 0.88, "blind guess", color=GREY, size=9, ha="right", va="top", transform=beside)
ax.set(yscale="log", xlabel="MB of the whole model", ylabel="perplexity", ylim=(3, 6e3))
ax.legend(loc="center right")
save(figure, "21_bits")

# %% [markdown]
# ![Perplexity against the size of the quantised model](figures/21_bits.png)
#
# *The numbers at the points are bits for each weight. Eight cost nothing that could be noticed. With very few it
# matters how the scales are chosen.*
#
# ## In the engine
# - `nanollm_jax.measure.trace.profile` is the profiler for compiled programs: it reads XLA's own record of a run and
#   says for each part of the model what share it took. `nanollm profile` prints it, and `nanollm bench` the speeds
#   with the share of the roofline that they reach.
# - `nanollm_jax.measure.roofline` has the two measured rates and the counts of this chapter.
# - `nanollm_jax.generate` takes a list of prompts as one batch. `nanollm_jax.dtypes.resolve_dtype` says which weights
#   are used: float32 on a CPU, 16 bits on a GPU.
# - `nanollm_jax.load` with dtype "int8" keeps the matrices in 8 bits, with a scale a row. The vectors lose less than
#   here: `nanollm_jax.ops.int8_product.digits` writes each as two integers, one for what the other leaves over, and
#   the product of both with the matrix is still one of integers.
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
        print(f"{texts} texts: {mine.measure(loaded, texts)[0]:,.0f} tokens per second")

# %% [markdown]
# ## Exercises
# 1. A GPU reads 2,000 GB/s. How many tokens per second can Llama 3.1 8B write for one text of 1,000 tokens, with 16
#    bits a weight and with 8?
# 2. How many texts must this machine have in a batch before arithmetic is the limit, if weights are all that is read?
# 3. One weight of a row is 100 times as large as it was. What happens to the others, when the row is quantised?

# %% tags=["answer"]
for width in (2, 1):
    print(f"{8 * width} bits: at most {2_000e9 / step_bytes(LLAMA_8B, 1, 1_000, width):.0f} tokens per second")
ratio = step_bytes(LLAMA_8B, 1, 1_000, 2) / step_bytes(LLAMA_8B, 1, 1_000, 1)
check("half the bytes, twice the tokens, if the cache has 8 bits as well", math.isclose(ratio, 2))

# %% tags=["answer"]
need = peak / bandwidth * 4 / 2  # 2 FLOPs for 4 bytes and each text
print(f"{need:.0f} texts: then 2 · {need:.0f} FLOPs for 4 bytes are {peak / bandwidth:.1f} for each byte.")
check("at this number both limits are the same", math.isclose(4 / bandwidth, 2 * need / peak))

# %% tags=["answer"]
row = w[:1].copy()
row[0, 5] = 100 * np.abs(row).max()
q_row, _ = quantise(row)
zeros = np.mean(np.delete(q_row.ravel(), 5) == 0)
print(f"The scale follows the largest: {zeros:.0%} of the others become 0. Groups keep the damage local.")
check("most of them", zeros > 0.5 > np.mean(q[0] == 0))

# %% [markdown]
# [Previous: 20 · KV cache](20_kv_cache.py) · [Contents](README.md) · [Next: 22 · Parallelism](22_parallelism.py)
