# %% [markdown]
# # 17 · Forward pass: three families are settings of one function
#
# [Previous: 16 · Weights](16_weights_on_disk.py) · [Contents](README.md) · [Next: 18 · Sampling](18_sampling.py)
#
# ## The question
# All parts are there: tokens (chapter 15), weights (chapter 16), and the block (chapter 14). What is missing to go from
# a list of integers to a score for every possible next token? And how different are GPT-2, LLaMA and Mistral really?
#
# ## The idea
# A *forward pass* runs tokens through the model once, from the bottom to the top:
#
#     x = embedding[tokens]                   [T D]   one vector for each token
#     x = x + positions                       [T D]   GPT-2 only
#     for each layer:
#         x = x + attention(norm(x))          [T D]
#         x = x + mlp(norm(x))                [T D]
#     logits = norm(x) @ table.T              [T V]   one score for each token of the vocabulary
#
# The letters: T tokens, vectors of D numbers, a vocabulary of V tokens. The scores are the *logits*; softmax makes
# probabilities of them. Row t scores what comes after token t.
#
# The table at the top has the same shape as the embedding at the bottom, V rows of D numbers. In many models it *is*
# the embedding: then the two are *tied*. The score of a token is then the dot product of the stream with the vector
# that the token would be read as.
#
# A *family* is a set of models that differ in sizes and weights only. The three families here make different choices
# in six places. No choice needs another function, only a setting.

# %%
from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, check, plt, predict, quick, same, save, table
from engine_steps import grow

import nanollm_jax as nano
from nanollm_jax.ops import embedding, mlp
from nanollm_jax.params import flatten, layout, shapes

model = nano.load(dtype="float32")
STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom. "
    "The ball rolled down the hill and into the water. Lily was sad. A big dog saw the ball. He jumped into the water and "
    "brought it back. Lily was very happy. She gave the dog a hug and they played all day."
)
ids = np.array(model.tokenizer.encode(STORY))  # [T]
tokens = model.params["embedding"]["tokens"]  # [V D]
V, D = tokens.shape

# %% [markdown]
# ## From scratch
# The two ends first. At the bottom, a token picks its row of the table. That is a matrix product as well: with a row
# of zeros that has a single 1, a *one-hot* vector. Nobody computes it that way, since it multiplies V - 1 rows by zero.

# %%
one_hot = np.zeros((len(ids), V), np.float32)  # [T V]
for t, token in enumerate(ids):
    one_hot[t, token] = 1
x = embedding.embed(tokens, jnp.asarray(ids)[None])[0]  # [T D]
same("a look-up is a product with one-hot vectors", one_hot @ np.asarray(tokens), x, tolerance=0)


def unembed_loops(table, x):
    """table [V D], x [D] -> [V]: a dot product with each row"""
    scores = []
    for row in table.tolist():
        score = 0.0
        for a, b in zip(row, x.tolist(), strict=True):
            score += a * b
        scores.append(score)
    return scores


by_loops = unembed_loops(np.asarray(tokens), np.asarray(x[-1]))
same("at the top, a dot product with every row", embedding.unembed(tokens, x[None])[0, -1], by_loops)

# %% [markdown]
# The rows of the table are vectors, so they have neighbours: the smaller the angle between two of them, the closer.

# %%
directions = np.asarray(tokens) / np.linalg.norm(tokens, axis=1, keepdims=True)  # [V D], all of length 1
same("all of length 1", np.square(directions).sum(axis=1), np.ones(V))
for word in ("dog", "red", "she", "was"):
    (token,) = (n for n in range(V) if model.tokenizer.piece(n) == f"▁{word}")
    cosines = directions @ directions[token]  # [V]: 1 for no angle, 0 for a right one, -1 for the opposite
    apart = np.linalg.norm(directions - directions[token][None], axis=1)  # [V]
    same("as their ends are apart", cosines, 1 - apart**2 / 2)
    itself, *near = np.argsort(-cosines)[:6]
    check("no vector is closer to it than its own", itself == token)
    print(f"{word:4} is closest to", ", ".join(model.tokenizer.piece(int(n)).replace("▁", "") for n in near))

# %% [markdown]
# Now everything between. The settings of a family, and one function that reads them. It works in float64, on one
# text, and takes the engine's weights. Two of them are several matrices of the file in one array:
#
# - `wqkv` `[K Q H D]` makes queries, keys and values. A model has K heads of keys and values, and each serves a group
#   of G query heads (chapter 11). For each of the K there are Q = G + 2 matrices `[H D]`: the G of the queries, then
#   that of the key, then that of the value.
# - `up` `[U F D]` widens a vector to F numbers (chapter 13): gate and up where the MLP has a gate, U = 2, or up alone.


# %%
@dataclasses.dataclass(frozen=True)
class Settings:
    """What a family chooses. The sizes are read off the weights."""

    layer_norm: bool  # or RMS norm: chapter 08
    eps: float
    theta: float | None  # rotary positions, or none: chapter 12
    activation: str  # chapter 07
    window: int | None = None  # how many tokens attention looks back: chapter 11
    neighbours: bool = False  # which numbers rotary positions pair: i and i + 1, or i and i + H/2
    divide: bool = True  # scores by the square root of the head's width: chapter 10


def normalize(x, w, s):
    """x [T D] -> [T D]"""
    if s.layer_norm:
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + s.eps) * w["scale"] + w.get("bias", 0)


def rotate(x, s):
    """x [T N H] -> [T N H]: each pair of numbers as a complex number, turned by an angle that grows with t"""
    T, _, H = x.shape
    angles = np.arange(T)[:, None] * s.theta ** (-np.arange(0, H, 2) / H)  # [T H/2]
    first, second = (x[..., ::2], x[..., 1::2]) if s.neighbours else (x[..., : H // 2], x[..., H // 2 :])
    turned = (first + 1j * second) * np.exp(1j * angles)[:, None]  # [T N H/2]
    if s.neighbours:
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attention(x, w, s):
    """x [T D] -> [T D]"""
    heads = np.einsum("TD,KQHD->TKQH", x, w["wqkv"], optimize=True) + w.get("bqkv", 0)  # [T K Q H]
    T, K, Q, H = heads.shape
    G = Q - 2
    q, k, v = heads[:, :, :G].reshape(T, K * G, H), heads[:, :, G], heads[:, :, G + 1]  # [T N H], [T K H] twice
    if s.theta is not None:
        q, k = rotate(q, s), rotate(k, s)
    distance = np.arange(T)[:, None] - np.arange(T)[None]  # [T S]
    seen = (distance >= 0) & (distance < (s.window or T))
    mixed = np.zeros((T, K * G, H))
    for n in range(K * G):
        scores = q[:, n] @ k[:, n // G].T / (math.sqrt(H) if s.divide else 1)  # [T S]
        powers = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
        mixed[:, n] = powers / powers.sum(axis=-1, keepdims=True) @ v[:, n // G]
    return np.einsum("TNH,DNH->TD", mixed, w["wo"], optimize=True) + w.get("bo", 0)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def feed_forward(x, w, s):
    """x [T D] -> [T D]; with a gate where the weights have one"""
    first, *others = np.einsum("TD,UFD->UTF", x, w["up"], optimize=True) + np.expand_dims(
        w.get("up_bias", np.zeros((1, 1))), 1
    )
    hidden = ACTIVATIONS[s.activation](first)  # [T F]
    for up in others:
        hidden = hidden * up
    return hidden @ w["down"].T + w.get("down_bias", 0)


def forward(weights, ids, s):
    """weights, ids [T], settings -> logits [T V]"""
    x = weights["embedding"]["tokens"][ids]  # [T D]
    if "positions" in weights["embedding"]:
        x = x + weights["embedding"]["positions"][: len(ids)]
    for w in weights["layers"]:
        x = x + attention(normalize(x, w["attention_norm"], s), w["attention"], s)
        x = x + feed_forward(normalize(x, w["mlp_norm"], s), w["mlp"], s)
    table = weights["unembedding"] if "unembedding" in weights else weights["embedding"]
    return normalize(x, weights["final_norm"], s) @ table["tokens"].T


def as_float64(params):
    return jax.tree.map(lambda array: np.asarray(array, np.float64), params)


compiled = jax.jit(nano.forward, static_argnames="config")


def library(params, ids, config):
    """The engine's logits [T V] of one text."""
    cache = nano.init_cache(config, batch=1, capacity=len(ids), dtype="float32")
    return compiled(params, jnp.asarray(ids)[None], cache, config=config)[0][0]


# %% [markdown]
# That is all of it. Now the three families, each compared with the engine: LLaMA as the bundled model, and GPT-2 and
# Mistral in a small size, with random weights in every place, so that a forgotten bias would be noticed. The engine
# reads its own settings from a published `config.json`; ours are written down here.

# %%
FAMILIES = {
    "GPT-2": Settings(layer_norm=True, eps=1e-5, theta=None, activation="gelu_tanh"),
    "LLaMA": Settings(layer_norm=False, eps=1e-5, theta=10_000.0, activation="silu"),
    "Mistral": Settings(layer_norm=False, eps=1e-5, theta=10_000.0, activation="silu", window=6),
}
gpt2 = {"model_type": "gpt2", "vocab_size": V, "n_positions": 128, "n_embd": 48, "n_layer": 2, "n_head": 4}
mistral = {
    "model_type": "mistral", "vocab_size": V, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "sliding_window": 6,
}  # fmt: skip
configs = {"GPT-2": nano.read_config(gpt2)[0], "LLaMA": model.config, "Mistral": nano.read_config(mistral)[0]}
theirs = {}
for name, config in configs.items():
    params = model.params if name == "LLaMA" else nano.init_params(config, jax.random.key(17), "float32")
    ours, theirs[name] = forward(as_float64(params), ids, FAMILIES[name]), library(params, ids, config)  # [T V]
    same(f"{name}: our forward and nanollm_jax.forward", ours, theirs[name], tolerance=1e-4)
chosen = [
    ("norm", *("layer norm" if s.layer_norm else "RMS norm" for s in FAMILIES.values())),
    ("positions", *("a learned table" if s.theta is None else "rotary" for s in FAMILIES.values())),
    ("activation", *(s.activation for s in FAMILIES.values())),
    ("gate", *("yes" if configs[name].gated_mlp else "no" for name in FAMILIES)),
    ("biases", *("yes" if configs[name].mlp_bias else "no" for name in FAMILIES)),
    ("window", *(s.window or "none" for s in FAMILIES.values())),
]
table("what the families choose", ["", *FAMILIES], chosen)
said = {what: values for what, *values in chosen}
check("GPT-2 has biases and no gate, the others a gate and no biases",
      (said["gate"], said["biases"]) == (["no", "yes", "yes"], ["yes", "no", "no"]))  # fmt: skip

# %% [markdown]
# ## The experiment: a wrong setting
# Nothing in a weight says how it wants to be used. With a wrong setting all shapes still fit, and no error is raised.
# So: the bundled LLaMA, with one setting at a time as some other model has it. The *loss* of a story says how badly
# it is predicted, in the mean over its tokens (chapter 07).

# %% tags=["question"]
predict(
    "nine wrong settings: the other norm, another activation, a short window, ... Which ones ruin the model, and which "
    "ones hardly show?"
)

# %% tags=["answer"]
weights = as_float64(model.params)


def loss(logits, ids):
    """logits [T V], ids [T] -> the mean of -ln p of the tokens that came"""
    powers = np.exp(logits[:-1] - logits[:-1].max(axis=-1, keepdims=True))
    p = powers / powers.sum(axis=-1, keepdims=True)
    return -np.log(p[np.arange(len(ids) - 1), ids[1:]]).mean()


right = FAMILIES["LLaMA"]
beside = np.random.default_rng(17).normal(
    size=(5, 1, 8)
)  # [T N H]: pairs of numbers beside each other, then half a head apart
apart = np.concatenate([beside[..., ::2], beside[..., 1::2]], axis=-1)
in_pairs = rotate(beside, dataclasses.replace(right, neighbours=True))
same("pairing neighbours turns the same pairs, which stand elsewhere",
     np.concatenate([in_pairs[..., ::2], in_pairs[..., 1::2]], axis=-1), rotate(apart, right), 1e-12)  # fmt: skip
for name, ours in ACTIVATIONS.items():
    same(f"{name}: the library's", ours(np.linspace(-4, 4, 9)), mlp.ACTIVATIONS[name](jnp.linspace(-4, 4, 9)))
WRONG = {
    "epsilon 0.01": {"eps": 0.01},
    "GELU": {"activation": "gelu_tanh"},
    "ReLU": {"activation": "relu"},
    "layer norm": {"layer_norm": True},
    "theta 500,000": {"theta": 500_000.0},
    "a window of 8": {"window": 8},
    "neighbours paired": {"neighbours": True},
    "no positions": {"theta": None},
    "no square root": {"divide": False},
}
blind, some = dataclasses.replace(right, **WRONG["layer norm"]), np.float64(x)
shifted = (normalize(some + shift, weights["final_norm"], blind) for shift in (0, 3))
same("the wrong norm does not see what is added to all numbers (chapter 08)", *shifted, 1e-9)
base = loss(forward(weights, ids, right), ids)
losses = {
    name: loss(forward(weights, ids, dataclasses.replace(right, **change)), ids) for name, change in WRONG.items()
}
losses = dict(sorted(losses.items(), key=lambda item: item[1]))
table(
    f"loss with one wrong setting; the right ones give {base:.2f}, a blind guess {math.log(V):.2f}",
    ["setting", "loss"],
    [(name, f"{value:.2f}") for name, value in losses.items()],
)
check("embeddings are smaller than this epsilon", np.square(weights["embedding"]["tokens"]).mean() < 0.01)
by_library = -jax.nn.log_softmax(theirs["LLaMA"][:-1])[np.arange(len(ids) - 1), ids[1:]].mean()
same("the right loss is the library's", base, by_library, 1e-4)
check("each wrong setting changes the loss", min(abs(value / base - 1) for value in losses.values()) > 1e-3)
# some of the mistakes, made in the library's own config
layer, config = model.config.layers[0], model.config
every = lambda **change: {"layers": tuple(dataclasses.replace(one, **change) for one in config.layers)}  # noqa: E731
MISTAKES = {
    "epsilon 0.01": {"norm_eps": 0.01}, "GELU": {"activation": "gelu_tanh"},
    "ReLU": {"activation": "relu"}, "theta 500,000": every(rope=dataclasses.replace(layer.rope, theta=500_000.0)),
    "a window of 8": every(window=8), "no positions": every(rope=None),
}  # fmt: skip
more = {"no square root": every(attention_scale=1.0), "neighbours paired": {"rope_pairs": "neighbours"}}
for name, change in (MISTAKES | more).items():
    scored = library(model.params, ids, dataclasses.replace(config, **change))
    same(f"{name}: the library loses as much", loss(np.asarray(scored, np.float64), ids), losses[name], 1e-4)
if not quick():
    print("\nwhat the model writes with some of them, always taking the most probable piece:")
    for name, change in ({"the right ones": {}} | MISTAKES).items():
        wrong = dataclasses.replace(model, config=dataclasses.replace(config, **change))
        answer = nano.generate(wrong, "Lily and her friend", max_new_tokens=30, sampling=nano.Sampling(temperature=0.0))
        print(f"{name:14} Lily and her friend{answer.text.replace(chr(10), ' ')}")
check("no other mistake costs as much as forgetting the positions", max(losses, key=losses.get) == "no positions")
check("pairing the wrong numbers is not a small matter", losses["neighbours paired"] > base + 0.3)
check("another activation or base is not the right one", min(losses["GELU"], losses["theta 500,000"]) > base)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 3.6))
rise = [value - base for value in losses.values()]
ax.barh(list(losses), rise, left=base, color=[ORANGE if r > 0.4 else BLUE for r in rise])
for place, value in enumerate(losses.values()):
    ax.text(value + 0.02, place, f"{value:.2f}", va="center", color="#444444", size=9)
same(
    "each bar goes from the right loss to its own",
    [bar.get_x() + bar.get_width() for bar in ax.patches],
    [*losses.values()],
)
ax.axvline(base, color=GREY, linewidth=1)
ax.set(xlabel=f"loss of a story; {base:.2f} with the right settings", xlim=(base, max(losses.values()) + 0.15))
ax.spines["left"].set_visible(False)
ax.tick_params(axis="y", length=0)
save(figure, "17_wrong")

# %% [markdown]
# ![The loss of a story under nine wrong settings](figures/17_wrong.png)
#
# *Each bar is one wrong setting of the same weights, orange where the loss rises by more than 0.4. The short ones are
# dangerous: the model still writes sentences (some stand above), and a reader who does not know what it should write has
# nothing to hold on to. That is why an engine is compared with another one in numbers, and not by reading. Epsilon is a
# surprise: 0.01 looks like nothing. But it is added to the mean square of a vector, and those of the embedding are smaller
# than 0.01: divided by the root of the sum, they stay too small.*
#
# ## Where the parameters are
# The sizes of published models lie in `configs/`, and the shape of every parameter follows from them. Counting by hand
# for LLaMA: V·D in the embedding and V·D more unless tied, and in each layer D·(N + 2K)·H + N·H·D for attention,
# 3·D·F for the MLP.

# %%
PUBLISHED = Path(nano.__file__).parents[1] / "configs"
NAMES = {"gpt2-124m": "GPT-2", "llama-110m": "LLaMA 110M", "llama-2-7b": "Llama 2 7B",
         "mistral-7b-v0.1": "Mistral 7B", "llama-3.1-8b": "Llama 3.1 8B"}  # fmt: skip
published = {
    name: nano.read_config(json.loads((PUBLISHED / f"{file}.json").read_text()))[0] for file, name in NAMES.items()
}
published = {"bundled": model.config} | published


def parts(config):
    """How many parameters lie where: {part: count}"""
    counts = dict.fromkeys(("embedding", "attention", "MLP", "norms"), 0)
    words = {"norm": "norms", "embedding": "embedding", ".mlp.": "MLP"}  # in this order
    for path, shape in shapes(config).items():
        part = next((part for word, part in words.items() if word in path), "attention")
        counts[part] += math.prod(shape)
    return counts


table(
    "parameters in millions",
    ["model", "V", "D", "layers", "embedding", "attention", "MLP", "norms"],
    [
        (name, f"{c.vocab_size:,}", f"{c.hidden_size:,}", c.num_layers, *(f"{n / 1e6:,.2f}" for n in parts(c).values()))
        for name, c in published.items()
    ],
)
c = published["Llama 3.1 8B"]
by_hand = {
    "embedding": 2 * c.vocab_size * c.hidden_size,
    "attention": c.num_layers * c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads),
    "MLP": c.num_layers * 3 * c.hidden_size * c.intermediate_size,
    "norms": (2 * c.num_layers + 1) * c.hidden_size,
}
check("Llama 3.1 8B, counted by hand", by_hand == parts(c))
share_of = {name: {part: n / sum(parts(c).values()) for part, n in parts(c).items()} for name, c in published.items()}
check("the table is a larger share of GPT-2 than of any other",
      max(share_of, key=lambda name: share_of[name]["embedding"]) == "GPT-2")  # fmt: skip
check("of the large models the MLP is more than half; where keys and values are shared, attention is less",
      min(share_of[name]["MLP"] for name in ("Llama 2 7B", "Mistral 7B", "Llama 3.1 8B")) > 0.5
      and max(share_of[name]["attention"] for name in ("Mistral 7B", "Llama 3.1 8B"))
      < share_of["Llama 2 7B"]["attention"])  # fmt: skip
check(
    "the bundled model's arrays",
    sum(parts(model.config).values()) == sum(a.size for a in flatten(model.params).values()),
)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 3.4))
left = np.zeros(len(published))
for part, colour in {"embedding": GREEN, "attention": ORANGE, "MLP": BLUE}.items():
    share = np.array([parts(c)[part] / sum(parts(c).values()) for c in published.values()])
    ax.barh(list(published), share, left=left, color=colour, label=part)
    for place, (begin, width) in enumerate(zip(left, share, strict=True)):
        ax.text(begin + width / 2, place, f"{width:.0%}", ha="center", va="center", color="white", size=9)
    left += share
same("nothing is missing but the norms", left, [1 - share["norms"] for share in share_of.values()])
for place, c in enumerate(published.values()):
    ax.text(1.01, place, f"{sum(parts(c).values()) / 1e6:,.0f}M", va="center", color="#444444", size=9)
ax.set(xlim=(0, 1.1), xticks=[])
ax.spines[:].set_visible(False)
ax.tick_params(length=0)
ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1))
ax.invert_yaxis()
save(figure, "17_parameters")

# %% [markdown] tags=["opening"]
# ![Shares of embedding, attention and MLP in six models](figures/17_parameters.png)
#
# *Where a small model has a large vocabulary, as GPT-2 has, a good part of it is that table. Large models are mostly
# MLP, the more so where queries share keys and values: Llama 2 7B does not, Mistral 7B and Llama 3.1 8B do.*
#
# ## In the engine
# - `nanollm_jax.model.forward` is the function of this chapter for a batch of texts, and with a cache for keys and
#   values (chapter 20). `nanollm_jax.model.logits` is its last line.
# - `nanollm_jax.params.layout` says which parameters a model has, in letters. Where a family has no bias or no gate,
#   the parameter is missing, and the function sees that.
# - A family's own file, such as `nanollm_jax.families.gpt2`, has no mathematics in it. It reads `config.json`, refuses
#   what it does not know, and lists which tensor fills which parameter.
# - A prompt needs the logits of its last token only. `nanollm_jax.decode.prefill` leaves out all others, which take a lot
#   of memory where the vocabulary is large (exercise 3).
#
# ## Your engine
# Both ends, and a loop over the layers. It is a model now.

# %%
mine = grow(17)
loaded = mine.load(Path(nano.__file__).parent / "assets/nano-stories")
same("your engine: the logits", mine.forward(loaded.params, ids, loaded.config), theirs["LLaMA"], 1e-4)

# %% [markdown]
# ## Exercises
# 1. Which parameters does GPT-2 have in a layer that LLaMA has not? Ask `nanollm_jax.params.layout`.
# 2. Do the logits of the first tokens change when the text becomes longer?
# 3. How many bytes are the logits of a prompt of 8,192 tokens for Llama 3.1 8B, in float32?

# %% tags=["answer"]
letters = {name: layout(configs[name]) for name in ("GPT-2", "LLaMA")}
only = sorted(set(letters["GPT-2"]) - set(letters["LLaMA"]))
print(*(path for path in only if path.startswith("layers.0") or "layers" not in path), sep="\n")
check("biases, and a table of positions", only and all("bias" in p or ".b" in p or "positions" in p for p in only))

# %% tags=["answer"]
short = forward(weights, ids[:6], right)
same("they do not: no token looks at later ones", forward(weights, ids, right)[:6], short, 1e-9)

# %% tags=["answer"]
nbytes = 8_192 * published["Llama 3.1 8B"].vocab_size * 4
print(f"{nbytes:,} bytes, {nbytes / 2**30:.1f} GiB, of which one row in 8,192 is needed.")
big = published["Llama 3.1 8B"]
abstract = [
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((big.vocab_size, big.hidden_size), (1, 8_192, big.hidden_size))
]
whole = jax.eval_shape(embedding.unembed, *abstract)  # shapes only, nothing is computed
check("the library's array would have so many", whole.size * whole.dtype.itemsize == nbytes)

# %% [markdown]
# [Previous: 16 · Weights](16_weights_on_disk.py) · [Contents](README.md) · [Next: 18 · Sampling](18_sampling.py)
