# %% [markdown]
# # 12 · Positions: learned vectors, rotated pairs, and longer texts
#
# [Previous: 11 · Many heads](11_attention_heads.py) · [Contents](README.md) · [Next: 13 · Feed-forward](13_feed_forward.py)
#
# ## The question
# "The dog sees the girl" and "the girl sees the dog" have the same words. Attention compares words with each other
# and takes weighted means; nothing in it knows which word came first. How does a model learn where each word stands,
# and what happens when a text is longer than any it was trained on?
#
# For an engine this is a part with many ways to be slightly wrong. Every *family* of models (one design in several sizes,
# chapter 17) has its own constants, the numbers must be exact far into the text, and some mistakes show only there.

# %%
from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, RED, check, plt, predict, quick, same, save, table
from engine_steps import grow
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops import attention, embedding, rope
from nanollm_jax.ropes import LinearScaling, Llama3Scaling, YarnScaling

CHECKPOINT = Path(nano.__file__).parent / "assets/nano-stories/model.safetensors"
random = np.random.default_rng(12)

# %% [markdown]
# ## The idea
# There are two ways in use.
#
# - *Learned positions* (GPT-2): a table with one vector per position. That of position 7 is added to the vector of
#   whatever word stands there, before the first layer. Simple, and it ends where the table ends.
# - *Rotary position embedding*, short *rope* (LLaMA, Mistral and most models since): nothing is added. Inside
#   attention, each query and each key is turned by an angle that grows with its position. When the two are compared,
#   only the difference of their angles is left. So the model sees how far apart two words are.
#
# First, that something is needed at all:

# %%
T, H = 6, 8
q, k, v = (random.normal(size=(1, T, 1, H)).astype(np.float32) for _ in range(3))  # [B T N H]


def attend(q, k, v):
    """What the last token makes of all tokens.  [B T N H] -> [H]"""
    heads_first = lambda x: jnp.asarray(x).swapaxes(1, 2)  # noqa: E731
    everything = jnp.ones((1, 1, k.shape[1]), bool)  # [B T S]
    weights = attention.weights(attention.scores(jnp.asarray(q[:, -1:]), heads_first(k), everything, H**-0.5))
    return attention.mix(weights, heads_first(v))[0, 0, 0]


shuffled = random.permutation(T)
same(
    "attention without positions does not notice a shuffle", attend(q, k[:, shuffled], v[:, shuffled]), attend(q, k, v)
)

# %% [markdown]
# ## From scratch
# ### Learned positions
# A lookup and an addition. The table has P rows; position P does not exist. Here the table is random, in a GPT-2 it
# is a weight with 1,024 rows.


# %%
def add_positions_loops(x, positions, table):
    """x [T D], positions [T], table [P D] -> [T D]"""
    out = np.zeros_like(x)
    for t in range(x.shape[0]):
        for d in range(x.shape[1]):
            out[t, d] = x[t, d] + table[positions[t], d]
    return out


x, table_of_positions = random.normal(size=(T, H)), random.normal(size=(32, H))  # [T D], [P D]
positions = np.arange(20, 20 + T)  # [T]
added = jnp.float32(x) + embedding.look_up(jnp.float32(table_of_positions), jnp.asarray(positions))
same("learned positions: the library's lookup", added, add_positions_loops(x, positions, table_of_positions))
try:
    add_positions_loops(x, positions + 10, table_of_positions)
    check("past the end is refused", False)
except IndexError as error:
    print("ok   past the end:", error)

# %% [markdown]
# ### Rotary positions
# A head's vector of H numbers is cut into H/2 pairs. Each pair is a point in a plane, and a position turns it around
# the origin by the angle `position · frequency`. Turning the point (a, b) by an angle gives
#
#     (a · cos - b · sin,  b · cos + a · sin)
#
# Each pair has its own frequency, in radians per position. The first pair turns by 1 radian per position; each later
# pair is slower by a constant factor, down to nearly 1 / theta for the last. `theta` is a number of the model's
# config, 10,000 here. Fast pairs tell neighbours apart, slow pairs tell the beginning of a long text from its end,
# like the hands of a clock.
#
# Which numbers make a pair is a convention: number i and number i + H/2 in the files of most models. (The
# original code took neighbours; files in that order must be reordered when they are loaded, or else turned in that order.)


# %%
def frequencies(H, theta):
    """Radians per position of each pair, [H/2]"""
    return np.array([theta ** (-2 * i / H) for i in range(H // 2)])


def rotate_loops(x, position, freqs):
    """x [H], one head of one token -> [H]"""
    half = len(x) // 2
    out = np.zeros(len(x))
    for i in range(half):
        angle = position * freqs[i]
        a, b = x[i], x[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def rotate_arrays(x, positions, freqs):
    """x [T H], positions [T], freqs [H/2] -> [T H]"""
    angle = positions[:, None] * freqs[None]  # [T H/2]
    left, right = jnp.split(x, 2, axis=-1)  # [T H/2] each
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


H, THETA = 64, 10_000.0
freqs = frequencies(H, THETA)  # [H/2]
x, positions = random.normal(size=(5, H)), np.array([0, 1, 7, 100, 500])  # [T H], [T]
by_loops = np.array([rotate_loops(vector, position, freqs) for vector, position in zip(x, positions, strict=True)])
same("jax.numpy", rotate_arrays(jnp.float32(x), jnp.float32(positions), jnp.float32(freqs)), by_loops, 1e-4)
library_freqs, factor = rope.frequencies(H, THETA)
same("frequencies: the library", library_freqs, freqs, size=freqs)
cos, sin = rope.turns(jnp.asarray(positions)[None], library_freqs, factor)  # [B T 1 H/2] each
same("rotated: the library", rope.rotate(jnp.float32(x)[None, :, None], cos, sin)[0, :, 0], by_loops, 1e-4)

# %% [markdown]
# A reference with nothing in common with the code above: a point in a plane is a complex number, and turning it is
# multiplying by e^(i · angle).

# %%
as_complex = (x[:, : H // 2] + 1j * x[:, H // 2 :]) * np.exp(1j * positions[:, None] * freqs[None])  # [T H/2]
same("complex numbers", np.concatenate([as_complex.real, as_complex.imag], axis=1), by_loops, 1e-12)

# %% [markdown]
# And what it is for: the product of a turned query and a turned key depends on the distance of their positions alone.

# %%
query, key = random.normal(size=H), random.normal(size=H)  # [H], [H]


def score(m, n):
    """The query at position m against the key at position n."""
    return rotate_loops(query, m, freqs) @ rotate_loops(key, n, freqs)


same("3 apart is 3 apart, anywhere", [score(m + 3, m) for m in (0, 10, 500, 100_000)], [score(3, 0)] * 4, 1e-9)
check("4 apart is something else", abs(score(4, 0) - score(3, 0)) > 1e-3)
check("and so is the other direction", abs(score(0, 3) - score(3, 0)) > 1e-3)
same("a turned vector is as long as before", np.linalg.norm(by_loops, axis=1), np.linalg.norm(x, axis=1), 1e-12)

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[1.2, 1])
turns = np.arange(256)[:, None] * freqs[None]  # [positions H/2]
image = left.imshow(np.cos(turns).T, aspect="auto", cmap="RdBu", interpolation="nearest")
left.set(title="cos(angle) of each pair", xlabel="position", ylabel="pair")
figure.colorbar(image, ax=left, shrink=0.8)
check("at position 0 no pair is turned: its cosine is 1", np.all(np.asarray(image.get_array())[:, 0] == 1))
distance = np.arange(0, 512)
match = np.cos(distance[:, None] * freqs[None]).mean(1)  # [distances]
check("the best match is at distance 0", match.argmax() == 0)
check(
    "near ones match better than far ones, in the mean", match[:32].mean() > match[32:128].mean() > match[256:].mean()
)
right.plot(distance, match, color=BLUE)
right.axhline(0, color=GREY, linewidth=0.5)
right.set(title="a query against an equal key", xlabel="distance in positions", ylabel="product, 1 at distance 0")
save(figure, "12_rotary")

# %% [markdown]
# ![Angles of the pairs over positions, and the product of equal vectors over their distance](figures/12_rotary.png)
#
# *Left: each row is one pair. The first rows turn quickly, the last have hardly moved after 256 positions. Right: a
# query and an equal key match best where they stand together. With distance the pairs get out of step, the fast ones
# first, and the product falls, in waves. (So it is for a vector that is equally long in all of its pairs. Those of a model
# are not.)*
#
# ## A real model
# The bundled model was trained on texts of at most 512 tokens, with rope and theta 10,000. The file has the matrix
# that makes queries, under the name `q_proj`. The vectors that enter it and the rotated queries are read from inside
# the model with `nano.observe`.

# %%
model = nano.load(dtype="float32")
config = model.config
STORY = "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom."
ids = jnp.asarray([model.tokenizer.encode(STORY)])  # [1 T]


def empty(config, capacity):
    return nano.init_cache(config, batch=1, capacity=capacity, dtype="float32")


(plain_logits, _), values = nano.observe(nano.forward, model.params, ids, empty(config, ids.shape[1]), config=config)
with safe_open(CHECKPOINT, framework="numpy") as file:
    q_proj = file.get_tensor("model.layers.2.self_attn.q_proj.weight").astype(np.float32)  # [N*H D]
entering = np.asarray(values["layers.2.attention_norm"][0])  # [T D]
before = (entering @ q_proj.T).reshape(-1, config.num_heads, config.head_dim)  # [T N H]
by_hand = [[rotate_loops(head, t, freqs) for head in heads] for t, heads in enumerate(before)]
same("queries of layer 2, turned by our loops", by_hand, values["layers.2.attention.q"][0], 1e-4)

# %% [markdown]
# `nano.observe` can also change values on their way. Turning every query and every key by 100 more positions puts the
# whole story at position 100 and later. Only distances are left in the scores, so nothing should change:

# %%
far = rope.turns(jnp.full((1, ids.shape[1]), 100), library_freqs)  # cosines and sines, [B T 1 H/2] each
moved = {
    f"layers.{layer}.attention.{name}": lambda x: rope.rotate(x, *far)
    for layer in range(config.num_layers)
    for name in "qk"
}
(moved_logits, _), moved_values = nano.observe(
    nano.forward, model.params, ids, empty(config, ids.shape[1]), change=moved, config=config
)
later = [[rotate_loops(head, t + 100, freqs) for head in heads] for t, heads in enumerate(before)]
same("the same queries, as they are at position 100 and later", later, moved_values["layers.2.attention.q"][0], 1e-4)
same("the story told from position 100 on", moved_logits, plain_logits, 1e-4)

# %% [markdown]
# ## Longer texts
# Rope can compute an angle for any position. But the slow pairs of this model have never turned further than they do
# in 512 positions; behind that come angles that no weight has ever met. Three remedies are in use. They change
# the frequencies alone, the last one the scores as well, by a `factor` that says how much longer the texts shall be:
#
# - *linear*: every frequency is divided by the factor (Chen et al. 2023, arXiv:2306.15595). All angles stay in the
#   range of the training, but the fast pairs, which tell neighbours apart, are slowed as well.
# - *llama3*: pairs that turn many times in the original length stay as they are; pairs that never complete one turn
#   are slowed by the factor; between the two a smooth mix. LLaMA 3.1 uses it.
# - *yarn*: the same idea with another ramp, and the scores are raised a little, by a factor that its authors found by
#   trying (Peng et al. 2023, arXiv:2309.00071).


# %%
def linear_scaling(freqs, factor):
    """[H/2] -> [H/2]"""
    return freqs / factor


def llama3_scaling(freqs, factor, low, high, original):
    """[H/2] -> [H/2].  low, high: turns in the original length; below low slowed, above high kept."""
    out = []
    for freq in freqs:
        turns = original * freq / (2 * math.pi)
        keep = min(max((turns - low) / (high - low), 0), 1)
        out.append(keep * freq + (1 - keep) * freq / factor)
    return np.array(out)


def yarn_scaling(freqs, factor, original, theta, fast=32, slow=1):
    """[H/2] -> [H/2]. A ramp, from the pair that turns `fast` times in the original length to that of `slow` times."""
    H = 2 * len(freqs)
    pair_that_turns = lambda times: H * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))  # noqa: E731
    first, last = max(math.floor(pair_that_turns(fast)), 0), min(math.ceil(pair_that_turns(slow)), H - 1)
    out = []
    for pair, freq in enumerate(freqs):
        slowed = min(max((pair - first) / (last - first), 0), 1)
        out.append((1 - slowed) * freq + slowed * freq / factor)
    return np.array(out)


FACTOR, ORIGINAL = 3.0, config.max_positions
hotter = 0.1 * math.log(FACTOR) + 1  # yarn's factor on queries and keys
SCALINGS = {
    "plain": (freqs, None),
    "linear": (linear_scaling(freqs, FACTOR), LinearScaling(FACTOR)),
    "llama3": (llama3_scaling(freqs, FACTOR, 1, 4, ORIGINAL), Llama3Scaling(FACTOR, 1.0, 4.0, ORIGINAL)),
    "yarn": (yarn_scaling(freqs, FACTOR, ORIGINAL, THETA), YarnScaling(FACTOR, ORIGINAL, attention_factor=hotter)),
}
for name, (by_hand, setting) in SCALINGS.items():
    same(f"{name}: the library's frequencies", rope.frequencies(H, THETA, setting)[0], by_hand, size=by_hand)
check(
    "linear slows every pair; llama3 and yarn keep the three fastest and slow the slowest by the factor",
    (SCALINGS["linear"][0] < freqs).all() and all(
        np.array_equal(SCALINGS[name][0][:3], freqs[:3]) and np.isclose(SCALINGS[name][0][-1] * FACTOR, freqs[-1])
        for name in ("llama3", "yarn")
    ),
)  # fmt: skip
asked = json.loads(CHECKPOINT.with_name("config.json").read_text())
asked["rope_scaling"] = {"rope_type": "yarn", "factor": FACTOR, "original_max_position_embeddings": ORIGINAL}
check(
    "yarn: what the library reads from a config",
    nano.read_config(asked)[0].layers[0].rope.scaling == SCALINGS["yarn"][1],
)

# %% [markdown]
# Now a long text: stories that the model itself wrote, one behind the other. What is measured is the loss at each
# position, the surprise at the next piece (chapter 07).

# %% tags=["question"]
predict(
    "a model trained on 512 positions reads 1,400. Where does its loss rise? Which remedy works without retraining?"
)

# %% tags=["answer"]
BEGINNINGS = ["Once upon a time", "One day, a little boy", "There was a big bear", "Lily and her mom",
              "The king had a daughter", "A small bird", "Tom wanted to", "In the forest"]  # fmt: skip
if quick():
    rows, T = np.tile(ids, (1, 40))[:, :640], 640  # [1 T]
else:
    T = 1400
    answers = nano.generate(model, BEGINNINGS, max_new_tokens=400, sampling=nano.Sampling(temperature=0.8), seed=12)
    stories = [model.tokenizer.encode(text) + a.token_ids for text, a in zip(BEGINNINGS, answers, strict=True)]
    orders = [stories[start:] + stories[:start] for start in range(8)]
    texts = [[token for story in order for token in story][:T] for order in orders[::3]]
    rows = np.array(texts)  # [3 T]


def surprise(setting):
    """-> [T-1], the loss at each position, mean over the rows"""
    layer = nano.LayerConfig(rope=nano.Rope(config.layers[0].rope.theta, setting))
    longer = dataclasses.replace(config, layers=(layer,) * config.num_layers, max_positions=T)
    cache = nano.init_cache(longer, batch=len(rows), capacity=T, dtype="float32")
    logits = jax.jit(nano.forward, static_argnames="config")(model.params, jnp.asarray(rows), cache, config=longer)[0]
    logprobs = jax.nn.log_softmax(logits[:, :-1], axis=-1)  # [B T-1 V]
    return -np.asarray(jnp.take_along_axis(logprobs, jnp.asarray(rows)[:, 1:, None], axis=-1))[..., 0].mean(0)


losses = {
    name: surprise(setting) for name, (_, setting) in SCALINGS.items() if name in ("plain", "llama3") or not quick()
}
check(
    "what is measured is the next piece: far from guessing",
    losses["plain"][:ORIGINAL].mean() < 0.5 * math.log(config.vocab_size),
)
check(
    "the model reads with the angles that it is given", np.ptp([losses["plain"], losses["llama3"]], axis=0).max() > 0.01
)
parts = [(16, 512), (512, 640)] if quick() else [(16, 256), (256, 512), (512, 768), (768, 1024), (1024, 1400)]
table(
    f"loss by position; trained on {ORIGINAL} positions, factor {FACTOR:g}",
    ["rope", *(f"{start} to {stop}" for start, stop in parts)],
    [(name, *(f"{loss[start:stop].mean():.2f}" for start, stop in parts)) for name, loss in losses.items()],
)
if not quick():
    early, late = ({name: loss[part].mean() for name, loss in losses.items()} for part in (np.s_[16:512], np.s_[1024:]))
    check("within the trained length plain rope is the best", min(early, key=early.get) == "plain")
    check("far behind it plain rope is the worst", max(late, key=late.get) == "plain")
    behind = [losses["plain"][start:stop].mean() for start, stop in parts[1:]]
    check("the loss of plain rope climbs from part to part behind the trained length", behind == sorted(behind))
    check("llama3 and yarn hardly lose anything there", max(late["llama3"], late["yarn"]) < early["plain"] + 0.5)
    check("linear scaling pays everywhere, also at the start", early["linear"] > early["plain"] + 0.3)

# %% [markdown]
# Behind the trained length the loss of plain rope climbs. Linear scaling brings the angles back into range, but the
# model has to read every distance on a scale that it never learned, from the first word on; models that use it are
# trained a little more after the change. The two mixed forms keep the fast pairs, which tell neighbours apart, and lose
# little even without training.

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9))
styles = {"plain": (GREY, "-"), "linear": (RED, "-"), "llama3": (BLUE, "-"), "yarn": (ORANGE, "--")}
for name, (scaled, _) in SCALINGS.items():
    colour, line = styles[name]
    left.semilogy(2 * np.pi / scaled, line, color=colour, label=name)
left.axhline(ORIGINAL, color=GREEN, linewidth=1, linestyle=":")
left.text(1, ORIGINAL * 1.15, "trained length", color=GREEN)
left.set(title="positions per full turn", xlabel="pair", ylabel="positions")
left.legend()
for name, loss in losses.items():
    colour, line = styles[name]
    smooth = np.convolve(loss, np.ones(64) / 64, "valid")
    right.plot(np.arange(len(smooth)) + 32, smooth, line, color=colour, label=name, linewidth=1.5)
same("pair 0 takes 2 pi positions for a turn, as it is drawn", left.lines[0].get_ydata()[0], 2 * math.pi)
right.axvline(ORIGINAL, color=GREEN, linewidth=1, linestyle=":")
right.set(title=f"loss along a text of {T:,} positions", xlabel="position", ylabel="loss, mean of 64", ylim=(0, None))
right.legend()
save(figure, "12_longer")

# %% [markdown]
# ![Periods of the pairs under four scalings, and the loss of the bundled model along a long text](figures/12_longer.png)
#
# *Left: how long each pair takes for one turn. Linear slows all of them; llama3 and yarn leave the fast ones alone.
# Right: what that does to the model, without any retraining.*
#
# ## In the engine
# - `nanollm_jax.ops.rope.frequencies` computes the frequencies with NumPy when the program is traced, so they are
#   constants of the compiled program. It knows `nanollm_jax.ropes.LinearScaling`, `nanollm_jax.ropes.Llama3Scaling`
#   and `nanollm_jax.ropes.YarnScaling`, and nothing is scaled unless the checkpoint says so:
#   `nanollm_jax.families.reader.Reader.rope` reads it in either of the two spellings in use.
# - `nanollm_jax.ops.rope.turns` makes the cosines and sines, once for all layers, in float32 whatever the model runs in
#   (exercise 1). `nanollm_jax.ops.rope.rotate` turns the queries of all heads with them, and the keys. Values are never
#   turned.
# - Keys are turned before they are stored in the cache, once. Positions go on from call to call: the first token of a call
#   stands at `nanollm_jax.KVCache.length`, as many as the cache holds already, and not at 0.
# - A GPT-2 has its table in the parameters, and `nanollm_jax.model.hidden_states` adds it where the config says
#   so (`nanollm_jax.ModelConfig.learned_positions`). Nothing there asks for the name of a family.
#
# ## Your engine
# Queries and keys are turned before they are compared. What a function has to know and cannot see from its arrays
# goes into a `Config`, here the base of the angles and the window.

# %%
mine = grow(12)
given = mine.self_attention(entering, model.params["layers"][2]["attention"], mine.Config(THETA))
same("your engine: the attention of layer 2", given, values["layers.2.attention.out"][0], 1e-4)

# %% [markdown]
# ## Exercises
# 1. What is the angle of the fastest pair at position 257, if position and angle are computed in bfloat16?
# 2. Show that turning by m positions and then by n more is turning by m + n. Where was that used above?
# 3. How many positions does the slowest pair need for one full turn, with theta 10,000 and with the 500,000 of LLaMA
#    3, for a head of 128 numbers?

# %% tags=["answer"]
short = float(jnp.bfloat16(257) * jnp.bfloat16(1))
print(f"{short:g} radians and not 257: bfloat16 has no 257. Two neighbours stand at the same place.")
check("position 257 is lost", short == 256)

# %% tags=["answer"]
print(
    "Angles add up. The story was moved to position 100 that way: already turned queries and keys were turned further."
)
same("100 and then 23", rotate_loops(rotate_loops(query, 100, freqs), 23, freqs), rotate_loops(query, 123, freqs), 1e-9)

# %% tags=["answer"]
turns = {theta: 2 * math.pi / frequencies(128, theta)[-1] for theta in (10_000, 500_000)}
for theta, positions in turns.items():
    print(f"theta {theta:,}: {positions:,.0f} positions")
    check("one full turn there", math.isclose(positions * theta ** -(126 / 128), 2 * math.pi))
check("a larger theta reaches further", turns[500_000] > turns[10_000])

# %% [markdown]
# [Previous: 11 · Many heads](11_attention_heads.py) · [Contents](README.md) · [Next: 13 · Feed-forward](13_feed_forward.py)
