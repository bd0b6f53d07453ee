# %% [markdown]
# # 08 · Norms: what layer norm and RMS norm keep, and why they need float32
#
# [Previous: 07 · Activations](07_activations.py) · [Contents](README.md) · [Next: 09 · Softmax](09_softmax.py)
#
# ## The question
# A model adds something to its vectors in every layer, so they grow. What brings them back to a size that the next
# layer can work with, what is lost on the way, and why does this small step insist on float32 when everything around
# it may be shorter?
#
# A norm has almost no weights and almost no arithmetic. It is still a step in which an engine can easily be slightly
# wrong: whatever is off here, a constant or a sum in 16 bits, goes into every later layer.

# %%
from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, RED, check, outcome, plt, predict, quick, same, save, table
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops.norm import layer_norm, rms_norm

CHECKPOINT = Path(nano.__file__).parent / "assets/nano-stories/model.safetensors"
EPS = 1e-5
random = np.random.default_rng(8)

# %% [markdown]
# ## The idea
# A vector has a length and a direction. A norm hands on the direction and sets the length to a fixed value, so a layer
# behind it reads directions only.
#
# *RMS norm* divides a vector by the square root of the mean of its squares, its *root mean square*. Afterwards the
# squares have mean 1. LLaMA and Mistral use it:
#
#     y = x / sqrt(mean(x²) + epsilon) · s
#
# *Layer norm* first subtracts the mean from every number, and then does the same. GPT-2 uses it, with a bias at the
# end:
#
#     c = x - mean(x)
#     y = c / sqrt(mean(c²) + epsilon) · s + b
#
# The *scale* s and the bias b are weights: D numbers each. They let training decide how loud each of the D places is.
# The small constant *epsilon* keeps a vector of zeros from becoming 0 / 0.
#
# ## From scratch


# %%
def rms_norm_loops(x, scale, eps):
    """x [D], scale [D] -> [D]"""
    squares = 0.0
    for value in x:
        squares += value * value
    root = math.sqrt(squares / len(x) + eps)
    return [value / root * s for value, s in zip(x, scale, strict=True)]


def layer_norm_loops(x, scale, bias, eps):
    """x, scale, bias [D] -> [D]: centre, then RMS norm, then shift."""
    mean = sum(x) / len(x)
    centred = [value - mean for value in x]
    return [value + b for value, b in zip(rms_norm_loops(centred, scale, eps), bias, strict=True)]


def rms_norm_arrays(x, scale, eps):
    """x [T D], scale [D] -> [T D]: every vector by itself."""
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale[None]


def layer_norm_arrays(x, scale, bias, eps):
    """x [T D], scale and bias [D] -> [T D]"""
    return rms_norm_arrays(x - jnp.mean(x, axis=-1, keepdims=True), scale, eps) + bias[None]


x = random.normal(1, 3, size=(4, 16))  # [T D]: vectors with a mean that is not 0
scale, bias = random.normal(1, 0.3, size=16), random.normal(size=16)  # [D], [D]
x32, scale32, bias32 = jnp.float32(x), jnp.float32(scale), jnp.float32(bias)

rms = np.array([rms_norm_loops(vector, scale, EPS) for vector in x])  # [T D]
layer = np.array([layer_norm_loops(vector, scale, bias, EPS) for vector in x])  # [T D]
same(
    "RMS norm: loops and NumPy in float64", rms, x / np.sqrt(np.square(x).mean(-1, keepdims=True) + EPS) * scale, 1e-12
)
same(
    "layer norm: loops and NumPy in float64",
    layer,
    (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * scale + bias,
    1e-12,
)
same("RMS norm: jax.numpy", rms_norm_arrays(x32, scale32, EPS), rms)
same("layer norm: jax.numpy", layer_norm_arrays(x32, scale32, bias32, EPS), layer)
same("RMS norm: the library", rms_norm(x32, scale32, EPS), rms)
same("layer norm: the library", layer_norm(x32, scale32, bias32, EPS), layer)
# vectors so short that epsilon is as large as their squares: it has to be added inside the root
short = np.array([rms_norm_loops(vector / 1000, scale, EPS) for vector in x])  # [T D]
same("and where epsilon counts: jax.numpy", rms_norm_arrays(x32 / 1000, scale32, EPS), short)
same("and the library", rms_norm(x32 / 1000, scale32, EPS), short)

# %% [markdown]
# ## What each of them keeps
# The best way to know a function is by what it does not see. In the following lines the scale is 1 and the bias 0.
#
# - Both: a vector made longer or shorter gives the same result. They keep the direction and forget the length.
# - Layer norm: a constant added to all D numbers gives the same result as well. It forgets the mean. RMS norm does
#   not.
# - After both the vector has length sqrt(D): in D dimensions it lies on a sphere. After layer norm its numbers also
#   sum to 0: of that sphere, only the equator is left.

# %%
one, zero = jnp.ones(16), jnp.zeros(16)
plain_rms, plain_layer = rms_norm(x32, one, EPS), layer_norm(x32, one, zero, EPS)  # [T D]
same("RMS norm forgets the length", rms_norm(50 * x32, one, EPS), plain_rms, 1e-4)
same("layer norm forgets the length", layer_norm(50 * x32, one, zero, EPS), plain_layer, 1e-4)
same("layer norm forgets a shift", layer_norm(x32 + 7, one, zero, EPS), plain_layer, 1e-4)
check("RMS norm does not forget a shift", np.abs(rms_norm(x32 + 7, one, EPS) - plain_rms).max() > 0.1)
same(
    "neither forgets the sign", [rms_norm(-x32, one, EPS), layer_norm(-x32, one, zero, EPS)], [-plain_rms, -plain_layer]
)
same("the length afterwards is the root of D", np.linalg.norm([plain_rms, plain_layer], axis=-1), [[4] * 4] * 2)
same("layer norm's numbers sum to 0", plain_layer.sum(axis=-1), [0] * 4, size=plain_layer.max())
same("layer norm is RMS norm of the centred vector", rms_norm(x32 - x32.mean(-1, keepdims=True), one, EPS), plain_layer)

# %% tags=["figure"]
cloud = random.normal(0, 1, size=(200, 3)) * [1.5, 0.7, 0.7] + [0.4, -0.6, 0.9]  # [points D=3]
colours = np.arctan2(cloud[:, 1], cloud[:, 0])
figure = plt.figure(figsize=(9.5, 3.5))
ones3 = jnp.ones(3)
stages = [
    ("200 vectors of 3 numbers", cloud),
    ("after RMS norm: a sphere", np.asarray(rms_norm(jnp.float32(cloud), ones3, EPS))),
    ("after layer norm: its equator", np.asarray(layer_norm(jnp.float32(cloud), ones3, 0 * ones3, EPS))),
]
for place, (title, points) in enumerate(stages, 1):
    ax = figure.add_subplot(1, 3, place, projection="3d")
    ax.scatter(*points.T, c=colours, cmap="plasma", s=9, depthshade=True)
    around = np.linspace(0, 2 * np.pi, 100)
    if place > 1:
        for tilt in np.linspace(0, np.pi, 5):
            ring = np.sqrt(3) * np.stack([np.sin(around) * np.cos(tilt), np.sin(around) * np.sin(tilt), np.cos(around)])
            ax.plot(*ring, color=GREY, linewidth=0.3)
    ax.set_title(title, loc="center")
    ax.set(xticks=[], yticks=[], zticks=[], box_aspect=(1, 1, 1))
    ax.set(**{f"{axis}lim": (-2.2, 2.2) for axis in "xyz"})
    ax.view_init(elev=22, azim=-20)
save(figure, "08_sphere")

# %% [markdown]
# ![A cloud of points, on a sphere after RMS norm, on a circle after layer norm](figures/08_sphere.png)
#
# *The same 200 vectors three times. Each point keeps its colour. RMS norm puts them on a sphere; layer norm first
# flattens the cloud along the diagonal, so that only a circle of the sphere is left.*
#
# ## A real model
# The vectors that run through a model from layer to layer are called the *residual stream* (chapter 14). In the
# bundled model, read from inside with `nano.observe`, they grow with every layer. The two norms of
# each layer hand a copy of the right size to the two halves of the layer, attention (chapter 10) and the feed-forward
# part (chapter 13).

# %%
model = nano.load(dtype="float32")
ids = jnp.asarray([model.tokenizer.encode("Once upon a time, there was a little girl named Lily. She had a red ball.")])
cache = nano.init_cache(model.config, batch=1, capacity=ids.shape[1], dtype="float32")
_, values = nano.observe(nano.forward, model.params, ids, cache, config=model.config)
with safe_open(CHECKPOINT, framework="numpy") as file:
    stored = file.get_tensor("model.layers.5.post_attention_layernorm.weight")  # [D] bfloat16
    final = file.get_tensor("model.norm.weight")  # [D] bfloat16

stream = np.stack(
    [values["embedding"][0], *(values[f"layers.{n}.out"][0] for n in range(model.config.num_layers))]
)  # [L+1 T D]
entering = np.asarray(values["layers.5.mlp_norm"][0])  # [T D]
before = np.float64(stream[5] + values["layers.5.attention.out"][0])  # [T D]: what the last mlp_norm reads
eps = model.config.norm_eps
by_hand = [rms_norm_loops(vector, stored.astype(np.float64), eps) for vector in before]
same("our loops reproduce a norm inside the real model", by_hand, entering, 1e-4)
final_by_hand = [rms_norm_loops(vector, final.astype(np.float64), eps) for vector in stream[-1].astype(np.float64)]
same("and the last one, before the scores of the next piece", final_by_hand, values["final_norm"][0], 1e-4)
size = np.sqrt(np.square(stream).mean(-1))  # [L+1 T]: the root mean square of every vector
same("it is the length over the root of D", size, np.linalg.norm(stream, axis=-1) / math.sqrt(model.config.hidden_size))
table("root mean square of the residual stream", ["after", "first token", "median token"], [
    ("embedding" if n == 0 else f"layer {n - 1}", f"{row[0]:.2f}", f"{np.median(row):.2f}") for n, row in enumerate(size)
])  # fmt: skip
check("the median grows with every layer", (np.diff(np.median(size, axis=1)) > 0).all())
check("every token is larger at the end than at the start", (size[-1] > size[0]).all())

# %% [markdown]
# ## Why float32
# A bfloat16 number has 8 significant bits (chapter 01), so each operation may be wrong by 1 part in 256. For a weight
# that is good enough. Is it for a sum of squares? All of its terms are positive, so the errors of a long sum may not cancel.
#
# To see it, the sum has to be taken in order, with one rounding after each addition. `jax.lax.scan` is such a loop
# inside one compiled program (a *scan*): it carries a value from step to step, and collects another.

# %% tags=["question"]
predict("4,096 squares with mean 1 are added one after the other. What comes out in bfloat16? And in float16?")


# %% tags=["answer"]
def sum_one_by_one(values, dtype):
    """values [n] or [n B] -> their running sums, rounded to dtype after every addition, in the same shape"""
    step = lambda total, value: (total + value, total + value)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros(values.shape[1:], dtype), values.astype(dtype))[1]


squares = jnp.float32(np.square(random.normal(size=4096)))  # [4096], the width of a model of 7 billion weights
running = {name: np.float64(sum_one_by_one(squares, jnp.dtype(name))) for name in ("float32", "float16", "bfloat16")}
for name, sums in running.items():
    print(f"{name:9} {sums[-1]:8.1f}")
truth = np.float64(squares).sum()
print(f"{'true':9} {truth:8.1f}")
outcome(running["bfloat16"][-1], "in bfloat16")
check("float32 is right to 6 digits", abs(running["float32"][-1] / truth - 1) < 1e-6)
sums = 1 + np.arange(128) / 128  # [128]: all of bfloat16 from 1 to 2
check("in bfloat16, what is 1/513 of a sum or less is lost, and at times already 1/256",
      (jnp.bfloat16(sums) + jnp.bfloat16(sums / 513) == sums).all() and jnp.bfloat16(256) + jnp.bfloat16(1) == 256)  # fmt: skip
check("bfloat16 does not reach half of it", running["bfloat16"][-1] < 0.5 * truth)
still = np.diff(running["bfloat16"]) == 0  # [4095]: which additions changed nothing
lost = [still[:1000].mean(), still[-1000:].mean()]
print(f"in bfloat16, {lost[0]:.0%} of the first thousand additions change nothing, and {lost[1]:.0%} of the last")
check(
    "in the first hundred few are lost, and at the end most", still[:100].mean() < 0.5 < lost[1] and lost[0] < lost[1]
)

# %% [markdown]
# Rounding a little up or down is the smaller part of it. Once the sum is more than 512 times as large as the next term,
# adding that term changes nothing at all. float16 has 11 significant bits and does better here. Its trouble is at the other
# end: its largest number is 65,504, so the square of 256 is already too large. Large models have a few places in the residual
# stream with values of hundreds or thousands (Sun et al. 2024, arXiv:2402.17762).

# %%
loud = jnp.full(16, 300.0, jnp.float16)  # [D]
naive = loud / jnp.sqrt(jnp.mean(loud * loud))
check(
    "300 in float16: the naive norm squares to infinity and returns 0", jnp.isinf(loud[0] * loud[0]) and naive[0] == 0
)
same("the library squares in float32 and returns 1", rms_norm(loud, jnp.ones(16, jnp.float16), EPS), np.ones(16), 1e-3)

# %% [markdown]
# So a norm reads 16-bit numbers, computes in float32, and rounds once at the end. The figure shows how far a vector's root
# mean square is from the one computed in float64, for growing width D. Three ways are given the same bfloat16 numbers.

# %%
widths = [64, 1024] if quick() else [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
errors = {"sum in bfloat16, one by one": [], "sum in float32, result rounded to bfloat16": [], "sum in float32": []}
for D in widths:
    rows = jnp.bfloat16(random.normal(size=(8, D)))  # [8 D]: eight vectors for each width
    exact = np.sqrt(np.square(np.float64(rows)).mean(-1))  # [8]
    in_bfloat16 = np.float64(sum_one_by_one((rows * rows).T, jnp.bfloat16)[-1])  # [8]
    in_float32 = np.asarray(jnp.sqrt(jnp.mean(jnp.square(rows.astype(jnp.float32)), axis=-1)))
    for label, found in zip(
        errors, [np.sqrt(in_bfloat16 / D), np.float64(jnp.bfloat16(in_float32)), in_float32], strict=True
    ):
        errors[label].append(np.median(np.abs(found / exact - 1)))

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
for name, colour in zip(running, (BLUE, GREEN, RED), strict=True):
    left.plot(np.arange(1, 4097), running[name], color=colour, label=name, linestyle="--" if name == "float16" else "-")
left.set(title="a running sum of squares", xlabel="squares added", ylabel="sum")
left.legend()
for (label, values_of), colour in zip(errors.items(), (RED, ORANGE, BLUE), strict=True):
    right.loglog(widths, np.maximum(values_of, 1e-9), "o-", color=colour, label=label, markersize=4)
right.set(
    title="error of the root mean square", xlabel="D, numbers in the vector", ylabel="relative error", ylim=(1e-9, 10)
)
right.legend(fontsize=9)
save(figure, "08_float32")
check(
    "float32 inside, bfloat16 outside: never worse than one rounding",
    max(errors["sum in float32, result rounded to bfloat16"]) < 2**-8,
)
check("float32 inside and outside: right to 5 digits", max(errors["sum in float32"]) < 1e-5)
check("bfloat16 inside: no worse for a short vector", errors["sum in bfloat16, one by one"][0] < 2**-7)
check("but by far at the largest width", errors["sum in bfloat16, one by one"][-1] > 20 * 2**-9)
if not quick():
    check("there it is off by a quarter and more", errors["sum in bfloat16, one by one"][-1] > 0.25)

# %% [markdown]
# ![A sum in bfloat16 falls behind; the error of the norm grows with the width](figures/08_float32.png)
#
# *Left: in bfloat16 the sum falls behind, as more and more squares no longer change it. Right: with the sum in bfloat16 the
# error grows with the width, until the root is off by a quarter and more; with the sum in float32 and one rounding at the end
# it stays at the last bit.*
#
# ## In the engine
# - `nanollm_jax.ops.norm.rms_norm` and `nanollm_jax.ops.norm.layer_norm` are the two functions above, in float32
#   inside whatever comes in.
# - `nanollm_jax.model.normalize` picks one of them by the model's config. The epsilon is part of the checkpoint's
#   config too (`nanollm_jax.ModelConfig.norm_eps`): LLaMA files say 1e-5 or 1e-6, and for small vectors that is
#   visible.
# - The *variance*, the mean of c² in layer norm, is computed as written: first c, then its squares. A shortcut, "mean of x²
#   less the square of the mean", needs only one pass over the data, and fails when the mean is large; exercise 2 shows how.
# - XLA fuses the steps of the norm into a few loops, as in chapter 02. The float32 numbers inside need not go through
#   memory, then: what is read and written are the 16 bits of x.
#
# ## Exercises
# 1. Some engines multiply the scale into the matrix that follows the norm, and drop it. Show that this is exact for
#    RMS norm. What would layer norm need in addition?
# 2. Compute the variance of `4096 + small numbers` in float32 in both ways. How large is the error of each?
# 3. What does RMS norm return for a vector of zeros? And for one whose numbers are all 0.001, with epsilon 1e-5? Why
#    is the second not 1?

# %% tags=["answer"]
matrix = random.normal(size=(16, 5))  # [D F]
print("(y * s) @ W = y @ (s[:, None] * W). Layer norm's bias becomes a bias of the linear layer: b @ W.")
unscaled = np.array([rms_norm_loops(vector, np.ones(16), EPS) for vector in x])
same("the scale moves into the matrix", unscaled @ (scale[:, None] * matrix), rms @ matrix, 1e-12)
centred = np.array([layer_norm_loops(vector, np.ones(16), np.zeros(16), EPS) for vector in x])
same("and so does the bias", centred @ (scale[:, None] * matrix) + bias @ matrix, layer @ matrix, 1e-12)

# %% tags=["answer"]
far = np.float32(4096 + random.normal(size=4096))  # [4096]
true_variance = np.float64(far).var()
centring = np.square(far - far.mean(dtype=np.float32)).mean(dtype=np.float32)
shortcut = np.square(far).mean(dtype=np.float32) - np.square(far.mean(dtype=np.float32))
print(f"true {true_variance:.4f}, centred first {centring:.4f}, shortcut {shortcut:.4f}")
print("The shortcut subtracts two numbers near 16.8 million, which float32 only knows to the nearest 1 or 2.")
check("centring is right, the shortcut is off by some such steps",
      abs(centring - true_variance) < 1e-3 < abs(shortcut - true_variance) < 100)  # fmt: skip

# %% tags=["answer"]
small = rms_norm(jnp.full((1, 16), 0.001), jnp.ones(16), 1e-5)[0, 0]
print(f"zeros stay zeros; 0.001 becomes {small:.3f}: its square, 1e-6, is smaller than epsilon, which then decides.")
check("no division by zero", (rms_norm(jnp.zeros((1, 16)), jnp.ones(16), 1e-5) == 0).all())
same("0.001 / sqrt(1e-6 + 1e-5)", small, 0.001 / math.sqrt(1.1e-5))

# %% [markdown]
# [Previous: 07 · Activations](07_activations.py) · [Contents](README.md) · [Next: 09 · Softmax](09_softmax.py)
