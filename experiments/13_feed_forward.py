# %% [markdown]
# # 13 · Feed-forward: plain and gated networks, and what their units do
#
# [Previous: 12 · Positions](12_positions.py) · [Contents](README.md) · [Next: 14 · Residual stream](14_residual_stream.py)
#
# ## The question
# Attention moves information between words, by means of weighted averages. Where does a model do anything with one
# word by itself, and where are most of its weights?
#
# In the *feed-forward network* of each layer, also called *MLP* (multi-layer perceptron). In the bundled model it
# holds more than two thirds of the weights of a layer, and others are like that. Each new word reads all weights from
# memory once (chapter 04), so most of the weights that a layer reads for it are these.

# %%
from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, RED, check, plt, predict, quick, same, save, table
from engine_steps import grow
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops.linear import linear
from nanollm_jax.ops.mlp import ACTIVATIONS

CHECKPOINT = Path(nano.__file__).parent / "assets/nano-stories/model.safetensors"
random = np.random.default_rng(13)

# %% [markdown]
# ## The idea
# Widen the vector from D to F numbers, bend each of them with an activation (chapter 07), narrow it to D again. Each
# of the F numbers in the middle is called a *unit*. A unit does two things:
#
# - it *reads*: its column of the first matrix is a pattern, and the unit is active when the vector fits the pattern;
# - it *writes*: its row of the last matrix is a vector of D numbers. It is multiplied by how active the unit is, a
#   number that may be negative, and added to the result.
#
# So an MLP is F rules of the form "if the word looks like this, add that". It treats each word alone. Two forms are
# in use:
#
#     plain (GPT-2)             out = act(x @ up) @ down
#     gated (LLaMA, Mistral)    out = (act(x @ gate) * (x @ up)) @ down
#
# In the *gated* form a unit reads twice. The gate says whether, the other pattern says how much and with which sign.
# Two matrices become three, and to keep the number of weights the same, F is made smaller: 8/3 of D where the plain
# form has 4 of D.
#
# ## From scratch


# %%
def silu(x):
    return x / (1 + math.exp(-x)) if x > -700 else 0.0


def gelu_tanh(x):
    return x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_loops(x, up, down, act):
    """One vector: x [D], up [D F], down [F D] -> [D], unit by unit."""
    D, F = up.shape
    out = [0.0] * D
    for f in range(F):
        active = act(sum(x[d] * up[d, f] for d in range(D)))  # how well x fits the pattern of unit f
        for d in range(D):
            out[d] += active * down[f, d]  # what the unit writes
    return out


def gated_loops(x, gate, up, down, act):
    """One vector: x [D], gate and up [D F], down [F D] -> [D], unit by unit."""
    D, F = up.shape
    out = [0.0] * D
    for f in range(F):
        opened = act(sum(x[d] * gate[d, f] for d in range(D)))
        active = opened * sum(x[d] * up[d, f] for d in range(D))
        for d in range(D):
            out[d] += active * down[f, d]
    return out


def plain(x, up, down, act):
    """x [T D] -> [T D]"""
    return act(x @ up) @ down


def units(x, gate, up, act):
    """What the units of a gated MLP make of x.  x [T D] -> [T F]"""
    return act(x @ gate) * (x @ up)


def gated(x, gate, up, down, act):
    """x [T D] -> [T D]"""
    return units(x, gate, up, act) @ down


T, D, F = 4, 6, 10
x = random.normal(size=(T, D))  # [T D]
gate, up, down = random.normal(size=(D, F)), random.normal(size=(D, F)), random.normal(size=(F, D))
x32, gate32, up32, down32 = (jnp.float32(array) for array in (x, gate, up, down))

plain_by_hand = np.array([plain_loops(vector, up, down, gelu_tanh) for vector in x])  # [T D]
gated_by_hand = np.array([gated_loops(vector, gate, up, down, silu) for vector in x])  # [T D]
hidden = x @ gate  # [T F], float64
same("gated: NumPy in float64", (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down, gated_by_hand, 1e-12)
same("gated: jax.numpy", gated(x32, gate32, up32, down32, ACTIVATIONS["silu"]), gated_by_hand)
same("plain: jax.numpy", plain(x32, up32, down32, ACTIVATIONS["gelu_tanh"]), plain_by_hand)
middle = ACTIVATIONS["gelu_tanh"](linear(x32[None], up32.T))  # [1 T F]; the library's weights have the outputs first
same("plain: from the library's linear layers", linear(middle, down32.T)[0], plain_by_hand)
shuffled = random.permutation(T)
same("each vector is treated alone", gated(x32[shuffled], gate32, up32, down32, jax.nn.silu), gated_by_hand[shuffled])

# %% [markdown]
# ## A real model
# The weights of the bundled model, straight from its file. A file stores a linear layer's matrix the other way round,
# outputs first, hence the `.T`. The vector that enters each MLP and the one that leaves it are read from inside the
# model with `nano.observe`, under the names `layers.0.mlp_norm` and `layers.0.mlp.out`.

# %%
STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom. "
    "The ball rolled down the hill and into the water. Lily was sad. A big dog saw the ball. He jumped into the water and "
    "brought it back. Lily was very happy. She gave the dog a hug and they played all day."
)
model = nano.load(dtype="float32")
config = model.config
ids = jnp.asarray([model.tokenizer.encode(STORY)])  # [1 T]
cache = nano.init_cache(config, batch=1, capacity=ids.shape[1], dtype="float32")
(logits, _), values = nano.observe(nano.forward, model.params, ids, cache, config=config)

with safe_open(CHECKPOINT, framework="numpy") as file:
    weights = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}


def matrices(layer):
    """gate [D F], up [D F], down [F D] of one layer"""
    return tuple(weights[f"model.layers.{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))


for layer in range(config.num_layers):
    entering, leaving = values[f"layers.{layer}.mlp_norm"][0], values[f"layers.{layer}.mlp.out"][0]  # [T D]
    same(f"layer {layer}: ours and the model's", gated(entering, *matrices(layer), jax.nn.silu), leaving, 1e-4)
gate, up, down = (matrix.astype(np.float64) for matrix in matrices(3))
some = np.float64(values["layers.3.mlp_norm"][0, 9])  # [D]: one word, in layer 3
same("one word of it, with the loops", gated_loops(some, gate, up, down, silu), values["layers.3.mlp.out"][0, 9], 1e-4)

# %%
kinds = Counter()
for name, weight in weights.items():
    kind = (
        "MLP"
        if ".mlp." in name
        else "attention"
        if ".self_attn." in name
        else "norms"
        if "norm" in name
        else "embedding"
    )
    kinds[kind] += weight.size
total = sum(kinds.values())
table(
    "where the weights are",
    ["part", "weights", "share"],
    [(kind, f"{n:,}", f"{n / total:.1%}") for kind, n in kinds.items()],
)
check("the MLPs have more weights than everything else together", kinds["MLP"] > total / 2)
check("and more than two thirds of the layers' weights", kinds["MLP"] > 2 / 3 * (total - kinds["embedding"]))
D, F = gate.shape
heads = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
check(
    "counted by hand",
    (kinds["MLP"], kinds["attention"]) == (config.num_layers * 3 * D * F, config.num_layers * D * heads),
)
print(
    f"F / D is {F / D:.3f}, so the three matrices have {3 * D * F / (8 * D * D):.3f} times the weights of two with F = 4 D"
)

# %% [markdown]
# ## What a unit reads and writes
# For each unit of a layer: at which words of the story is it most active? And what does it write? Its row of `down`
# is a vector like those of the words, so it can be compared with the vector of every piece of the vocabulary, as the
# last step of the model does. That shows which next pieces it makes more probable.

# %%
LAYER = config.num_layers - 1
gate, up, down = matrices(LAYER)
activity = np.asarray(units(values[f"layers.{LAYER}.mlp_norm"][0], gate, up, jax.nn.silu))  # [T F]
pieces = [model.tokenizer.piece(int(token)) for token in ids[0]]
strength = np.abs(activity).max(0) * np.linalg.norm(down, axis=1)  # [F]: how much a unit ever writes
direction = weights["model.embed_tokens.weight"] * weights["model.norm.weight"][None]  # [V D]
end = np.asarray(values[f"layers.{LAYER}.out"][0])  # [T D]: what the last step of the model reads
scores = end @ direction.T / np.sqrt(np.square(end).mean(axis=1, keepdims=True) + config.norm_eps)  # [T V]
same("compared so, and divided by its size, a vector has the model's own scores", scores, logits[0], 1e-4)
rows, favoured = [], {}
for unit in np.argsort(-strength)[:8]:
    at = np.argsort(-np.abs(activity[1:, unit]))[:3] + 1  # the first piece of a text, <s>, is a case of its own
    sign = np.sign(activity[at[0], unit])
    favours = np.argsort(-(direction @ (sign * down[unit])))[:4]
    favoured[unit] = at, favours
    reads = ", ".join(f"{pieces[t - 1]} {pieces[t]}" for t in at)
    rows.append((unit, reads, ", ".join(model.tokenizer.piece(int(token)) for token in favours)))
table(
    f"the eight loudest units of layer {LAYER}", ["unit", "most active at the second of", "makes more probable"], rows
)
check("each makes its pieces more probable where it is most active", all(
    (direction[favours] @ (activity[at[0], unit] * down[unit]) > 0).all() for unit, (at, favours) in favoured.items()
))  # fmt: skip

# %% [markdown]
# Some of them read like rules: after this, expect that. Others make no sense by themselves; what a model knows is thought
# to be spread over many units. ("▁" stands for a space, see chapter 15.) Here is one that reads like a rule: of the eight, the
# one that answers most to the piece "named".

# %% tags=["figure"]
named = pieces.index("▁named")
rule = max(np.argsort(-strength)[:8], key=lambda unit: abs(activity[named, unit]))
writes = direction @ (activity[named, rule] * down[rule])  # [V]: how well each piece fits what it writes there
best = np.argsort(-writes)[:5][::-1]
check("its row of the table begins with this place, and has the same pieces",
      favoured[rule][0][0] == named and np.array_equal(favoured[rule][1], best[::-1][:4]))  # fmt: skip
same("no piece makes it write more than its loudness says", strength[rule],
     np.linalg.norm(np.outer(activity[:, rule], down[rule]), axis=1).max())  # fmt: skip
check("no other piece of the story makes it half as active", np.sort(np.abs(activity[:, rule]))[-2]
      < 0.5 * abs(activity[named, rule]) == 0.5 * np.abs(activity[:, rule]).max())  # fmt: skip
check("what it writes there fits the story's own name best", model.tokenizer.piece(int(best[-1])).strip("▁") == "Lily")
figure, (above, below) = plt.subplots(2, 1, figsize=(5.6, 4))
above.bar(range(len(pieces)), activity[:, rule], color=BLUE)
above.annotate("named", (named, activity[named, rule]), xytext=(6, -3), textcoords="offset points", va="center")
above.set(title=f"unit {rule} of layer {LAYER}: how active at each piece of the story", xlabel="piece of the story")
below.barh([model.tokenizer.piece(int(token)).strip("▁") for token in best], writes[best], color=RED)
below.set(title="what it writes there: five pieces that this fits best", xlabel="product with the piece's vector")
save(figure, "13_rule")

# %% [markdown]
# ![How active one unit is over a story, and which pieces it makes more probable](figures/13_rule.png)
#
# *One unit of one layer. It reads "named", and what it writes then makes names more probable, besides some pieces that are
# none.*
#
# ## How many units does a word need?

# %% tags=["question"]
predict(
    "of the units of each MLP only the most active tenth is kept for each word, the others become 0. What happens to the loss?"
)


# %% tags=["answer"]
def run_with(change_units):
    """Read the story with our own MLP in every layer. `change_units` may alter what the units say, [T F] -> [T F]. -> loss"""
    change, held = {}, {}

    def hold(layer):
        def enter(h):
            held[layer] = h
            return h

        def leave(_):
            gate, up, down = matrices(layer)
            return (change_units(units(held[layer][0], gate, up, jax.nn.silu)) @ down)[None]

        return enter, leave

    for layer in range(config.num_layers):
        change[f"layers.{layer}.mlp_norm"], change[f"layers.{layer}.mlp.out"] = hold(layer)
    (changed, _), _ = nano.observe(nano.forward, model.params, ids, cache, config=config, change=change)
    return loss(changed[0])


def loss(logits):
    """logits [T V] -> the mean of -ln p(next piece), chapter 07"""
    logprobs = jax.nn.log_softmax(logits[:-1], axis=-1)
    return -float(jnp.take_along_axis(logprobs, ids[0, 1:, None], axis=-1).mean())


def keep(share):
    """A function that keeps the most active units of each word and sets the others to 0."""
    return lambda a: jnp.where(jnp.abs(a) >= jnp.quantile(jnp.abs(a), 1 - share, axis=1, keepdims=True), a, 0)


whole = loss(logits[0])
check("the loss is that of the next piece: far from guessing", whole < 0.5 * math.log(config.vocab_size))
taken = np.asarray(keep(0.1)(activity) != 0)  # [T F]
check("of each word a tenth of the units is kept", np.all(np.abs(taken.mean(axis=1) - 0.1) < 2 / F))
quiet = np.where(taken, 0, np.abs(activity)).max(axis=1)  # [T]
check(
    "and none that is dropped was more active", np.all(np.where(taken, np.abs(activity), np.inf).min(axis=1) >= quiet)
)
same("our MLP in every layer gives the model's own loss", run_with(lambda a: a), whole, 1e-4)
shares = [0.1, 0.0] if quick() else [0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.0]
losses = {1.0: whole} | {share: run_with(keep(share) if share else jnp.zeros_like) for share in shares}
table(
    "loss of the story", ["units kept", "loss"], [(f"{share:.0%}", f"{value:.3f}") for share, value in losses.items()]
)
check("a tenth of the units still does most of the work", losses[0.1] - whole < 0.3 * (losses[0.0] - whole))
tenth = np.abs(activity) >= np.quantile(np.abs(activity), 0.9, axis=1, keepdims=True)  # [T F]: the tenth that is kept
print(
    f"layer {LAYER}: {tenth.any(0).mean():.0%} of the units are in that tenth for some word, {tenth.all(0).mean():.0%} for all"
)
check("which ones they are differs from word to word", tenth.any(0).mean() > 0.5 and tenth.all(0).mean() < 0.02)

# %% [markdown]
# Which units are needed differs from word to word, so that few of them could be removed for good. An engine that knew in
# advance which units will be active could read a fraction of the weights. With ReLU, where many units are exactly 0, that
# is done (Liu et al. 2023, arXiv:2310.17157); with SiLU every one of them is only nearly silent.

# %% tags=["figure"]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.9), width_ratios=[1.5, 1, 1])
first = slice(0, 24)
order = np.argsort(np.abs(activity[first]).argmax(0), kind="stable")  # units in the order of the word they answer to
loud = [unit for unit in order if strength[unit] >= np.sort(strength)[-120]]
left.imshow(activity[first][:, loud], aspect="auto", cmap="RdBu", vmin=-3, vmax=3, interpolation="nearest")
left.set_yticks(range(24), pieces[first], fontsize=7)
left.set(title=f"the 120 loudest units of layer {LAYER}", xlabel="unit, ordered by the piece it answers most")
ordered = np.sort(np.abs(activity), axis=1)[:, ::-1]  # [T F], falling
half = (ordered > ordered[:, :1] / 2).sum(1)  # [T]
strong = (np.abs(activity[:, loud]) > np.abs(activity[:, loud]).max(0) / 2).sum(0)  # [120]
print(f"half as active as the most active or more: {np.median(half):.0f} of {F} units for a piece, in the median;")
print(f"and {np.median(strong):.0f} of {len(activity)} pieces for one of the loudest units")
check(
    "few units for a piece, and few pieces for a unit",
    np.median(half) < F / 50 and np.median(strong) < len(activity) / 10,
)
for t in range(1, len(ordered), 8):
    middle.plot(100 * np.arange(F) / F, ordered[t] / ordered[t, 0], color=BLUE, linewidth=0.7, alpha=0.6)
middle.set(title="units by activity, per piece", xlabel="percent of the units", ylabel="share of the most active one")
kept = [100 * share for share in losses if share]
right.semilogx(kept, [losses[share / 100] for share in kept], "o-", color=BLUE)
right.axhline(losses[0.0], color=RED, linewidth=1, linestyle="--")
right.text(kept[-1], losses[0.0], "no MLPs at all ", color=RED, va="bottom")
right.set(title="loss with fewer units", xlabel="percent of the units kept", ylabel="loss", ylim=(0, losses[0.0] * 1.1))
save(figure, "13_units")

# %% [markdown]
# ![Activity of units over a text, how it falls off, and the loss with only the most active kept](figures/13_units.png)
#
# *Left: each column is a unit, each line a piece of the story, blue is positive and red negative. Most of these
# units answer strongly to a few pieces only. Middle: for each piece a few units are loud and most are nearly silent.
# Right: the loss when only the loudest are kept.*
#
# ## In the engine
# - `nanollm_jax.ops.mlp.widen` is both forms in one, `nanollm_jax.ops.mlp.narrow` the way back. Gate and up are one
#   array `[U F D]`, one wide product in the place of two: U is 2 in a gated model and 1 in a plain one. Biases
#   are used where the parameters have them: GPT-2 has them, LLaMA has none.
# - All T words of a prompt go through in one matrix product, so each weight is read once for the whole prompt. While
#   writing, T is 1 and each weight is read for one word alone: chapter 21 shows that this reading is what limits the
#   speed.
# - The product is accumulated in float32 by `nanollm_jax.ops.linear.linear` and the result returns to the dtype of
#   the model.
# - Nothing here looks at positions or at other words, so on several devices the units can be shared out: each device
#   takes a part of F, and one sum over the devices completes the product with `down` (chapter 22).
#
# ## Your engine
# Two functions, and two more letters, F and U.

# %%
mine = grow(13)
for layer in range(config.num_layers):
    given = mine.mlp(values[f"layers.{layer}.mlp_norm"][0], model.params["layers"][layer]["mlp"])
    same(f"your engine: the MLP of layer {layer}", given, values[f"layers.{layer}.mlp.out"][0], 1e-4)

# %% [markdown]
# ## Exercises
# 1. GPT-2's smallest model has D = 768 and a plain MLP with F = 3,072. How wide is a gated one with the same number
#    of weights?
# 2. Reorder the units: the columns of gate and up and the rows of down, all in the same way. What changes?
# 3. What is a gated MLP if the activation is the identity? Is it linear?

# %% tags=["answer"]
D = 768
plain_weights = D * 3072 + 3072 * D
wide = next(F for F in range(1, 4000) if plain_weights <= 3 * D * F)
print(f"{wide} units, {wide / D:.3f} times D")
check("exactly as many weights", 3 * D * wide == plain_weights)

# %% tags=["answer"]
print("Nothing: the result is a sum over the units, and a sum has no order. Only the last bits of float32 may differ.")
order = random.permutation(F)
entering = values[f"layers.{LAYER}.mlp_norm"][0]
same(
    "reordered",
    gated(entering, gate[:, order], up[:, order], down[order], jax.nn.silu),
    values[f"layers.{LAYER}.mlp.out"][0],
    1e-4,
)

# %% tags=["answer"]
print("No: (x @ gate) * (x @ up) is quadratic. Twice the input gives four times the output.")
once, twice = (gated(factor * x32, gate32, up32, down32, lambda a: a) for factor in (1, 2))
same("four times", twice, 4 * once)

# %% [markdown]
# [Previous: 12 · Positions](12_positions.py) · [Contents](README.md) · [Next: 14 · Residual stream](14_residual_stream.py)
