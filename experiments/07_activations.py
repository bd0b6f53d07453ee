# %% [markdown]
# # 07 · Activations: why a matrix product is not enough
#
# [Previous: 06 · Batched products](06_batched_matmul.py) · [Contents](README.md) · [Next: 08 · Norms](08_norms.py)
#
# ## The question
# A language model is a *neural network*: layers of weights, one behind the other. What does one such layer compute,
# and why is the result bent by a curve before the next one?
#
# Inference is this step over and over: multiply by a matrix of weights, bend the result, multiply again. Whoever runs
# a model has to know which curve it was trained with. Several look alike, and the wrong one raises no error.
#
# From here on three models are named again and again. The weights of *GPT-2* (2019), *LLaMA* (2023) and *Mistral* (2023)
# were published, and most models since are built like one of them. The bundled model is a small LLaMA.

# %%
from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREY, ORANGE, RED, check, plt, predict, quick, same, save, table
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.ops.linear import linear
from nanollm_jax.ops.mlp import ACTIVATIONS

CHECKPOINT = Path(nano.__file__).parent / "assets/nano-stories/model.safetensors"
random = np.random.default_rng(7)

# %% [markdown]
# ## The idea
# A *linear layer* turns a vector of D numbers into a vector of F numbers. Each output is a weighted sum of all the
# inputs, plus a constant of its own, the *bias*:
#
#     y[f] = sum over d of x[d] · w[d, f]  +  b[f]
#
# One output is one question: how much does x look like column f of w? The sum is large where the two have large
# numbers in the same places and with the same signs. The weights w and the bias b were found by training. Inference
# only reads them.
#
# ## From scratch


# %%
def linear_loops(x, weight, bias):
    """x [T D], weight [D F], bias [F] -> [T F], with every index written out."""
    T, D = x.shape
    F = weight.shape[1]
    y = np.zeros((T, F))
    for t in range(T):  # each vector by itself
        for f in range(F):
            total = bias[f]
            for d in range(D):
                total += x[t, d] * weight[d, f]
            y[t, f] = total
    return y


x = random.normal(size=(5, 8))  # [T D]: 5 vectors
weight, bias = random.normal(size=(8, 6)), random.normal(size=6)  # [D F], [F]

by_loops = linear_loops(x, weight, bias)  # [T F]
by_einsum = jnp.einsum("TD,DF->TF", jnp.float32(x), jnp.float32(weight)) + jnp.float32(bias)[None]  # [T F]
same("the loops and NumPy's matrix product", by_loops, x @ weight + bias, tolerance=1e-12)
same("one line of jax.numpy", by_einsum, by_loops)
by_library = linear(jnp.float32(x)[None], jnp.float32(weight.T), jnp.float32(bias))  # [1 T F]; its weights are [F D]
same("the library", by_library[0], by_loops)

# %% [markdown]
# ## Two linear layers are one
# A second linear layer behind the first adds nothing. The product of two matrices is a matrix, so the pair can be
# replaced by a single layer with weight `W1 @ W2` and bias `b1 @ W2 + b2`. A hundred in a row can be replaced by one
# as well.

# %%
weight2, bias2 = random.normal(size=(6, 8)), random.normal(size=8)  # [F D], [D]
two_layers = linear_loops(linear_loops(x, weight, bias), weight2, bias2)  # [T D]
one_layer = linear_loops(x, weight @ weight2, bias @ weight2 + bias2)  # [T D]
same("two linear layers are one", two_layers, one_layer, tolerance=1e-12)

# %% [markdown]
# ## Four activations
# So something that is not linear has to stand between them: the *activation*, a function of one number, applied to
# each number of the vector by itself. Four are in wide use:
#
# - *ReLU* keeps what is positive and makes the rest 0. It has a corner at 0.
# - *GELU* multiplies x by the probability that a random number from the bell curve (the normal distribution with mean
#   0 and standard deviation 1) is below x. Far to the right that is 1, far to the left it is 0.
# - *GELU, tanh form*, replaces this probability by a formula that was cheaper to compute and is nearly the same; tanh
#   is one more curve that slides, from -1 to 1. GPT-2 was trained with it.
# - *SiLU*, also called swish, multiplies x by the *sigmoid* of x, 1 / (1 + e^-x), another way to slide from 0 to 1.
#   LLaMA and Mistral use it.
#
# Written with nothing but `math`, for one number:


# %%
def relu(x):
    return x if x > 0 else 0.0


def gelu(x):
    """x times the share of the bell curve to the left of x: a half, and half of erf(x / sqrt(2)), the share from -x to x."""
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x):
    return x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + math.exp(-x))


BY_HAND = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}

# %% [markdown]
# The same for whole arrays, in `jax.numpy`:

# %%
ON_ARRAYS = {
    "relu": lambda x: jnp.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + jax.lax.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + jnp.exp(-x)),
}
grid = np.linspace(-8, 8, 1601)  # [points]
curves = {name: np.array([function(float(value)) for value in grid]) for name, function in BY_HAND.items()}
check("the library knows all four", BY_HAND.keys() <= ACTIVATIONS.keys())
for name, curve in curves.items():
    same(f"{name}: arrays", ON_ARRAYS[name](jnp.float32(grid)), curve)
    same(f"{name}: the library", ACTIVATIONS[name](jnp.float32(grid)), curve)

# %% [markdown]
# GELU was described as "x times the probability that a normal number is below x". That sentence can be checked
# without erf: draw many normal numbers and count.

# %%
drawn = np.sort(random.normal(size=400_000))
points = np.array([-2.0, -1.0, -0.3, 0.5, 1.5])
counted = points * np.searchsorted(drawn, points) / drawn.size  # how many of them are below each point
check("the two GELUs differ, by less than one in a thousand",
      1e-4 < np.abs(curves["gelu_tanh"] - curves["gelu"]).max() < 1e-3)  # fmt: skip
same("GELU, by counting", counted, [gelu(point) for point in points], tolerance=0.004)

# %% [markdown]
# ## A real model
# What arrives at the activations of the bundled model while it reads a story? `nano.observe` runs the model and
# returns values from inside by name; `layers.3.mlp_norm` is the vector that enters the linear layer in front of an
# activation. That layer's weights are in the file under the name `gate_proj`. (Chapter 13 is about this part of the
# model.)

# %%
STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with "
    "her mom. The ball rolled down the hill and into the water. Lily was sad. A big dog saw the ball. He jumped into the "
    "water and brought it back. Lily was very happy. She gave the dog a hug and they played all day."
)
model = nano.load(dtype="float32")
config = model.config
ids = jnp.asarray([model.tokenizer.encode(STORY)])  # [1 T]
empty = nano.init_cache(config, batch=1, capacity=ids.shape[1], dtype="float32")

(logits, _), values = nano.observe(nano.forward, model.params, ids, empty, config=config)
arriving = []
with safe_open(CHECKPOINT, framework="numpy") as file:
    for layer in range(config.num_layers):
        entering = np.asarray(values[f"layers.{layer}.mlp_norm"][0])  # [T D]
        gate = file.get_tensor(f"model.layers.{layer}.mlp.gate_proj.weight").astype(np.float32)  # [F D]
        arriving.append(entering @ gate.T)  # [T F]
    up = file.get_tensor(f"model.layers.{layer}.mlp.up_proj.weight").astype(np.float32)  # [F D]
same("SiLU of them, times what goes beside it (chapter 13), is what the model has there",
     ON_ARRAYS["silu"](arriving[-1]) * (entering @ up.T), values[f"layers.{layer}.mlp.hidden"][0], 1e-4)  # fmt: skip
arriving = np.stack(arriving)  # [L T F]
low, high = np.percentile(arriving, [5, 95])
print(f"{arriving.size:,} numbers arrive at SiLU: {np.mean(arriving < 0):.0%} are negative")
print(f"{np.mean((low < arriving) & (arriving < high)):.0%} of them lie between {low:.2f} and {high:.2f}")
apart = curves["relu"] - curves["silu"]  # [points]
same("SiLU and ReLU differ as much at -x as at x", apart, apart[::-1], tolerance=1e-12)
print(f"they differ most at {abs(grid[apart.argmax()]):.2f} to either side, by {apart.max():.2f}")
check("most numbers arrive where the two differ by at least a quarter of that",
      np.mean(np.interp(arriving, grid, apart) > apart.max() / 4) > 0.5)  # fmt: skip

# %% tags=["figure"]
COLOURS = {"relu": GREY, "gelu": RED, "gelu_tanh": ORANGE, "silu": BLUE}
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6))
near = np.abs(grid) <= 3.5
for name, curve in curves.items():
    left.plot(
        grid[near],
        curve[near],
        "--" if name == "gelu_tanh" else "-",
        color=COLOURS[name],
        label=name.replace("_", ", "),
    )
left.axhline(0, color=GREY, linewidth=0.5, zorder=0)
left.set(title="four activations", xlabel="x", ylim=(-0.4, 2.2))
left.legend()
middle.plot(grid, 1e4 * (curves["gelu_tanh"] - curves["gelu"]), color=ORANGE)
middle.axhline(0, color=GREY, linewidth=0.5, zorder=0)
middle.set(title="GELU: tanh form minus exact", xlabel="x", ylabel="difference · 10,000", xlim=(-5, 5))
right.hist(arriving.ravel(), np.linspace(-5, 5, 101), color="#c9dcf0", density=True)
right.plot(grid, curves["silu"], color=BLUE)
right.plot(grid, curves["relu"], color=GREY, linewidth=1)
right.set(title="what arrives at SiLU (bars)", xlabel="x", xlim=(-3.5, 3.5), ylim=(-0.4, 1.2), yticks=[])
save(figure, "07_activations")

# %% [markdown]
# ![Four activations, the distance of the two GELUs, and the inputs of SiLU in a real model](figures/07_activations.png)
#
# *Left: the curves. Middle: the two GELUs differ, by less than one in a thousand. Right: most numbers arrive within a
# few units of zero, where SiLU (blue) and ReLU (grey) differ: as much on the left as on the right.*
#
# ## The experiment: the wrong curve
# How well does a model know a text? Let it read the text. At each place it gives every possible next piece a probability,
# and one of these pieces is the one that really comes next. Call its probability p. The *loss* is the mean of -ln p over all
# places. Being certain and right would give 0, blind guessing among V pieces gives ln V. Lower is better.
#
# The bundled model was trained with SiLU. Nothing stops us from running it with another curve: all shapes are the
# same.

# %% tags=["question"]
predict(
    "the model, trained with SiLU, runs with GELU, and with ReLU. Nearly as good? Clearly worse? As bad as guessing?"
)


# %% tags=["answer"]
def loss(logits):
    """logits [T V], of the story -> the mean of -ln p(the piece that came next)."""
    logprobs = jax.nn.log_softmax(logits[:-1], axis=-1)  # [T-1 V]
    return -float(jnp.take_along_axis(logprobs, ids[0, 1:, None], axis=-1).mean())


run = jax.jit(nano.forward, static_argnames="config")
losses = {"silu": loss(logits[0])}
for name in ["gelu"] if quick() else ["gelu", "gelu_tanh", "relu"]:
    losses[name] = loss(run(model.params, ids, empty, config=dataclasses.replace(config, activation=name))[0][0])
losses["blind guessing"] = loss(jnp.zeros_like(logits[0]))  # all pieces have one score
same("blind guessing gives ln V", losses["blind guessing"], math.log(config.vocab_size))
powers, came = np.exp(np.float64(logits[0, :-1])), np.asarray(ids[0, 1:])  # [T-1 V], [T-1]
chances = powers[np.arange(len(came)), came] / powers.sum(axis=1)  # [T-1]
same("the loss of the model is the mean of -ln p", losses["silu"], -np.log(chances).mean())
table(
    "loss of the same text and the same weights",
    ["activation", "loss"],
    [(n, f"{value:.4f}") for n, value in losses.items()],
)
check("the activation it was trained with is the best", min(losses, key=losses.get) == "silu")
check("none comes near to guessing", max(list(losses.values())[:-1]) < 0.5 * losses["blind guessing"])
if not quick():
    print("\nand what it writes, always taking the most probable piece:")
    for name in ("silu", "gelu", "relu"):
        other = dataclasses.replace(model, config=dataclasses.replace(config, activation=name))
        answer = nano.generate(other, "Lily and her friend", max_new_tokens=30, sampling=nano.Sampling(temperature=0.0))
        print(f"{name:5} Lily and her friend{answer.text!r}")

# %% [markdown]
# Worse, but far from guessing, and what it writes is still made of sentences. That is what makes this mistake dangerous:
# nothing crashes, no output looks broken, the model is just not as good as it was. It can only be found by comparing
# numbers with a reference, which is what the checks of this series do.
#
# ## In the engine
# - `nanollm_jax.ops.linear.linear` is the linear layer. Its weights have the outputs first, `[F D]` and not `[D F]`,
#   and may have several axes of each kind; the shapes alone say what is summed. The sum is kept in float32 also when
#   x and the weights have 16 bits (`nanollm_jax.ops.linear.contract`).
# - `nanollm_jax.ops.mlp.ACTIVATIONS` holds the four curves by name, and a rarer one.
# - Checkpoints name their curve in `config.json`, in the vocabulary of their authors: `"gelu"` is the exact form,
#   `"gelu_new"` the tanh form, `"swish"` is SiLU. `nanollm_jax.families.reader.ACTIVATIONS` is the dictionary; an
#   unknown name is an error, never a default.
# - Elementwise steps cost little when they are compiled: XLA makes one loop of those that follow each other (chapter
#   02). Whether that loop is part of the product before it or comes behind it depends on the processor.
#
# ## Exercises
# 1. A linear layer of a LLaMA has no bias. Show that a layer with a bias is the same as one without, if every input
#    vector gets one more number.
# 2. `silu` by hand fails for x = -1000, although the right answer, as a float, is 0. Why, and how can it be written so that
#    it does not?
# 3. Where is the lowest point of SiLU, and how low is it?

# %% tags=["answer"]
print("Append a 1 to every vector, and the bias as one more row of the weight.")
ones = np.ones((len(x), 1))
same("a bias is a weight", np.hstack([x, ones]) @ np.vstack([weight, bias]), by_loops, tolerance=1e-12)

# %% tags=["answer"]
print("e^1000 is larger than any float. For negative x use e^x / (1 + e^x), the same number: e^x only becomes 0.")


def safe_silu(x):
    return x / (1 + math.exp(-x)) if x >= 0 else x * math.exp(x) / (1 + math.exp(x))


try:
    silu(-1000.0)
    check("math.exp refuses", False)
except OverflowError as error:
    print("ok   silu(-1000):", error)
check("the other form returns 0", safe_silu(-1000.0) == 0)
same("and is the same elsewhere", [safe_silu(float(value)) for value in grid], curves["silu"], tolerance=1e-12)

# %% tags=["answer"]
lowest = np.argmin(curves["silu"])
print(f"at x = {grid[lowest]:.2f}, where SiLU is {curves['silu'][lowest]:.4f}")
check("the slope is 0 there", abs(silu(grid[lowest] + 0.01) - silu(grid[lowest] - 0.01)) / 0.02 < 0.005)

# %% [markdown]
# [Previous: 06 · Batched products](06_batched_matmul.py) · [Contents](README.md) · [Next: 08 · Norms](08_norms.py)
