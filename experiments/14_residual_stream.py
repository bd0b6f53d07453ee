# %% [markdown]
# # 14 · Residual stream: the whole block, watched layer by layer
#
# [Previous: 13 · Feed-forward](13_feed_forward.py) · [Contents](README.md) · [Next: 15 · Tokenizer](15_tokenizer.py)
#
# ## The question
# Attention, feed-forward network, norms: the parts of a layer are known. How are they put together, so that a hundred
# layers can stand on each other without destroying what the first ones found, and what can be seen inside while a
# text runs through?
#
# This chapter builds a whole layer, called a *block*, out of the chapters before and runs the bundled model with it.
# Then it opens the model and watches a sentence become a prediction.

# %%
from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREY, ORANGE, check, plt, predict, quick, same, save, table
from engine_steps import grow
from safetensors import safe_open

import nanollm_jax as nano

CHECKPOINT = Path(nano.__file__).parent / "assets/nano-stories/model.safetensors"

# %% [markdown]
# ## The idea
# A layer does not replace its input. It *adds* to it:
#
#     x = x + attention(norm(x))
#     x = x + mlp(norm(x))
#
# The x that runs through all layers is called the *residual stream*: one vector of D numbers for each token. The
# addition is a *residual connection*. Everybody reads from the stream, through a norm, and writes to it by adding.
# Nothing is ever erased, unless somebody adds its opposite.
#
# Two things follow. A layer that has nothing to say can write zeros, so a deeper model can be at least as good as a
# shallower one. (Whether training finds such weights is another question. It does so far better with these additions
# than without: He et al. 2015, arXiv:1512.03385.) And at the end the stream is a plain sum:
#
#     x at the end = embedding + everything that any attention wrote + everything that any MLP wrote
#
# So it can be asked how much each part wrote, and in which direction.
#
# ## From scratch
# The block in NumPy and float64, from the pieces of chapters 08 to 13, with the weights of the bundled model. The
# file stores matrices as `[outputs inputs]` (chapter 16), so a linear layer is `x @ w.T`.


# %%
def rms_norm(x, scale):
    """x [T D], scale [D] -> [T D]: chapter 08"""
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + config.norm_eps) * scale[None]


def rotate(x, positions):
    """x [T N H] -> [T N H]: chapter 12"""
    half = x.shape[-1] // 2
    angle = (positions[:, None] * config.layers[0].rope.theta ** (-np.arange(half) / half)[None])[:, None]  # [T 1 H/2]
    left, right = x[..., :half], x[..., half:]
    return np.concatenate(
        [left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)], axis=-1
    )


def softmax(x):
    """Over the last axis: chapter 09"""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def self_attention(x, w):
    """x [T D] -> [T D]: chapters 10 and 11. Each group of query heads shares one key and value head."""
    T, N, K, H = len(x), config.num_heads, config.num_kv_heads, config.head_dim
    q, k, v = ((x @ w[f"self_attn.{name}_proj.weight"].T).reshape(T, -1, H) for name in "qkv")  # [T N H], [T K H] twice
    q, k = rotate(q, np.arange(T)), rotate(k, np.arange(T))
    k, v = np.repeat(k, N // K, axis=1), np.repeat(v, N // K, axis=1)  # [T N H]
    scores = np.einsum("TNH,SNH->NTS", q, k) / math.sqrt(H)
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)  # nobody sees the future
    mixed = np.einsum("NTS,SNH->TNH", softmax(scores), v)
    return mixed.reshape(T, N * H) @ w["self_attn.o_proj.weight"].T


def mlp(x, w):
    """x [T D] -> [T D]: chapter 13"""
    gate = x @ w["mlp.gate_proj.weight"].T  # [T F]
    return (gate / (1 + np.exp(-gate)) * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def block(x, w):
    """x [T D] -> [T D], and what the two halves wrote"""
    attended = self_attention(rms_norm(x, w["input_layernorm.weight"]), w)
    x = x + attended
    bent = mlp(rms_norm(x, w["post_attention_layernorm.weight"]), w)
    return x + bent, attended, bent


# %%
model = nano.load(dtype="float32")
config = model.config
PROMPT = "Once upon a time, there was a little girl named"
ids = np.array(model.tokenizer.encode(PROMPT))  # [T]
pieces = [model.tokenizer.piece(int(token)) for token in ids]
with safe_open(CHECKPOINT, framework="numpy") as file:
    weights = {name.removeprefix("model."): file.get_tensor(name).astype(np.float64) for name in file.keys()}


def layer_weights(layer):
    """The weights of one layer, under the names that are left"""
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def empty_cache(T):
    return nano.init_cache(config, batch=1, capacity=T, dtype="float32")


(logits, _), values = nano.observe(
    nano.forward, model.params, jnp.asarray(ids)[None], empty_cache(len(ids)), config=config
)

x = weights["embed_tokens.weight"][ids]  # [T D]: one row of the table for each token
same("the stream begins as the embedding", x, values["embedding"][0], 0)
written = [x]
for layer in range(config.num_layers):
    x, attended, bent = block(x, layer_weights(layer))
    written += [attended, bent]
    same(f"layer {layer}: our block and the model's", x, values[f"layers.{layer}.out"][0], 1e-4)
same("attention of layer 3, alone", written[1 + 2 * 3], values["layers.3.attention.out"][0], 1e-4)
same("MLP of layer 3, alone", written[2 + 2 * 3], values["layers.3.mlp.out"][0], 1e-4)
ours = rms_norm(x, weights["norm.weight"]) @ weights["embed_tokens.weight"].T  # [T V]
same("the logits", ours, logits[0], 1e-4)
same("the stream is the sum of all that was written", sum(written), x, 1e-10)

# %% [markdown]
# A model in fifty lines, equal to the engine's in every layer. What the engine adds to these lines is speed.
#
# ## What the stream holds on its way
# The last step of the model turns the stream into scores for the next piece: a norm, then the table of all pieces.
# Nothing forbids asking for these scores earlier. Taking the stream after each layer and sending it through the last
# step is called the *logit lens*. It shows what the model would say if it stopped there.


# %%
def say(stream):
    """stream [T D] -> probabilities of the next piece [T V], as if the model ended here"""
    return softmax(rms_norm(stream, weights["norm.weight"]) @ weights["embed_tokens.weight"].T)


totals = np.cumsum(written, axis=0)[::2]  # [L+1 T D]: the stream after the embedding and after each layer
lens = np.stack([say(stream) for stream in totals])  # [L+1 T V]
for n, probabilities in enumerate(lens):
    best = np.argsort(-probabilities[-1])[:4]
    where = "embedding" if n == 0 else f"layer {n - 1}"
    print(
        f"{where:10}",
        "   ".join(f"{model.tokenizer.piece(int(token))} {probabilities[-1, token]:.0%}" for token in best),
    )
final = lens[-1]
check("the last line begins with what the model itself says", best[0] == np.argmax(logits[0, -1]))
same("after the last layer the lens is the model itself", final, jax.nn.softmax(logits[0]), 1e-4)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(11, 3.9))
best, sure = lens.argmax(-1), lens.max(-1)  # [L+1 T]
settled = best == best[-1]
check("bold: at its end the model says what it finally says, and at its beginning it does not",
      settled[-1].all() and not settled[0].all())  # fmt: skip
ax.imshow(sure[::-1], cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
for n in range(len(lens)):
    for t in range(len(ids)):
        y = len(lens) - 1 - n
        ax.text(t, y, model.tokenizer.piece(int(best[n, t])), ha="center", va="center", fontsize=9,
                color="white" if sure[n, t] > 0.6 else "black", weight="bold" if settled[n, t] else "normal")  # fmt: skip
check("at the bottom every place says the piece that was read, as dark as the embedding is sure",
      [text.get_text() for text in ax.texts if text.get_position()[1] == len(lens) - 1] == pieces
      and np.array_equal(ax.images[0].get_array()[-1], sure[0]))  # fmt: skip
check("behind layer 0 most places say what they finally say, and the last one does not",
      settled[1].mean() > 0.5 and not settled[1, -1])  # fmt: skip
ax.set_xticks(range(len(ids)), pieces)
ax.set_yticks(range(len(lens)), [*(f"layer {n}" for n in reversed(range(config.num_layers))), "embedding"])
ax.set(
    title="the most probable next piece after each layer; bold: what the model finally says",
    xlabel="the piece that was read",
)
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
save(figure, "14_lens")

# %% [markdown]
# ![The most probable next piece after every layer, for each piece of the prompt](figures/14_lens.png)
#
# *Read upwards. At the bottom the stream knows the piece itself and nothing else. Behind layer 0 most places say already what
# they say in the end: what often follows that piece. Where the text before has to decide, as for the name at the right, the
# guess changes in later layers. Dark is sure.*
#
# ## Who writes how much

# %%
names = ["embedding", *(f"{kind} {layer}" for layer in range(config.num_layers) for kind in ("attention", "MLP"))]
parts = np.stack(written)[:, 1:]  # [2L+1 T-1 D], without <s>, which is a case of its own
sizes = np.sqrt(np.square(parts).mean(-1))  # [2L+1 T-1]
direction = parts.sum(0) / np.linalg.norm(parts.sum(0), axis=-1, keepdims=True)  # [T-1 D]: where the stream ends up
along = (parts * direction[None]).sum(-1)  # [2L+1 T-1]: how far each part moved it that way
share = (along / along.sum(0)).mean(-1)
table(
    "what was written into the stream, mean over the tokens",
    ["part", "root mean square", "share of the final vector"],
    [(name, f"{size:.2f}", f"{part:.1%}") for name, size, part in zip(names, sizes.mean(-1), share, strict=True)],
)
same("the shares are everything", share.sum(), 1, 1e-12)
end = x[1:]  # [T-1 D]: the stream as the blocks left it
same("a part's share, from the stream as the blocks left it",
     share[4], ((parts[4] * end).sum(-1) / np.square(end).sum(-1)).mean(), 1e-9)  # fmt: skip
rms = dict(zip(names, sizes.mean(-1), strict=True))
check("the embedding and the first attention are less than a tenth of what any other part writes",
      max(rms["embedding"], rms["attention 0"]) < 0.1 * min(list(rms.values())[2:]))  # fmt: skip
same("a part's size, from the length of its vectors",
     sizes[4], np.linalg.norm(parts[4], axis=-1) / math.sqrt(config.hidden_size), 1e-12)  # fmt: skip
check("the MLPs write more than the attentions, in sum", sum(rms[n] for n in names if n.startswith("MLP"))
      > sum(rms[n] for n in names if n.startswith("attention")))  # fmt: skip

# %% [markdown]
# The last column is how far each part moved the stream in the direction in which it ends, as a share of the whole way. The
# embedding and the first attention are whispers compared with all others. Together the MLPs write more than the attentions.
#
# ## The experiment: leaving one part out
# `nano.observe` can replace values while the model runs. With zeros in the place of what one part writes, that part
# is gone, and nothing else has changed. How much worse does the model read a story?

# %% tags=["question"]
predict(
    "each of the twelve parts is left out in turn. Which one costs most? Do loud writers cost more than quiet ones?"
)

# %% tags=["answer"]
STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom. "
    "The ball rolled down the hill and into the water. Lily was sad. A big dog saw the ball. He jumped into the water and "
    "brought it back. Lily was very happy. She gave the dog a hug and they played all day."
)
story = jnp.asarray([model.tokenizer.encode(STORY)])[:, : len(ids) if quick() else None]  # [1 T]


def loss_without(*parts):
    """The loss of the story (chapter 07) with zeros in the place of what these parts write."""
    change = dict.fromkeys(parts, jnp.zeros_like)
    (logits, _), _ = nano.observe(
        nano.forward, model.params, story, empty_cache(story.shape[1]), config=config, change=change
    )
    logprobs = jax.nn.log_softmax(logits[0, :-1], axis=-1)
    return -float(jnp.take_along_axis(logprobs, story[0, 1:, None], axis=-1).mean())


def loss_by_hand(*left_out):
    """The same with the blocks from above, token by token."""
    x = weights["embed_tokens.weight"][story[0]]  # [T D]
    for layer in range(config.num_layers):
        w, (attention, bent) = layer_weights(layer), (f"layers.{layer}.{kind}.out" for kind in ("attention", "mlp"))
        x = x + (attention not in left_out) * self_attention(rms_norm(x, w["input_layernorm.weight"]), w)
        x = x + (bent not in left_out) * mlp(rms_norm(x, w["post_attention_layernorm.weight"]), w)
    return -np.mean([math.log(p[came]) for p, came in zip(say(x), story[0, 1:], strict=False)])


whole = loss_without()
same("the loss, by our own blocks", whole, loss_by_hand(), 1e-4)
for left_out in ("layers.0.mlp.out", "layers.0.attention.out"):
    same(f"and without {left_out}", loss_without(left_out), loss_by_hand(left_out), 1e-4)
layers = (0, config.num_layers - 1) if quick() else range(config.num_layers)
cost = {}
for layer in layers:
    for kind, label in (("attention", "attention"), ("mlp", "MLP")):
        cost[f"{label} {layer}"] = loss_without(f"layers.{layer}.{kind}.out") - whole
ordered = sorted(cost.items(), key=lambda item: -item[1])
table(
    f"rise of the loss, which is {whole:.2f} with everything",
    ["left out", "rise"],
    [(name, f"{rise:.2f}") for name, rise in ordered],
)
check("the first layer's MLP is the one that cannot be spared", ordered[0][0] == "MLP 0")
check("no other part costs a fifth of that", ordered[1][1] < ordered[0][1] / 5)
behind = parts[:3].sum(0)  # [T-1 D]: the stream behind layer 0
check("nine tenths of the stream behind layer 0, or more, are what its MLP wrote",
      ((parts[2] * behind).sum(-1) / np.square(behind).sum(-1)).mean() > 0.9)  # fmt: skip

# %% [markdown]
# Any other part can be left out, and the loss on this story rises little or not at all: what the others wrote is still
# there. The exception is the first layer's MLP. The table above says how small the embeddings are: what that MLP writes is
# nearly all that the next layer reads. (That this is why it cannot be spared is a guess. Chapter 23 has the tools to test
# it.)

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
stream_sizes = np.sqrt(np.square(np.cumsum(written, axis=0)[:, 1:]).mean(-1)).mean(-1)  # [2L+1]
same(
    "its last size is that of the stream at its end", stream_sizes[-1], np.sqrt(np.square(x[1:]).mean(-1)).mean(), 1e-9
)
colours = [GREY, *([ORANGE, BLUE] * config.num_layers)]
drawn = left.bar(range(len(names)), sizes.mean(-1), color=colours)
check("the bars at the left are the sizes of the table", [bar.get_height() for bar in drawn] == list(rms.values()))
left.plot(range(len(names)), stream_sizes, "o-", color="#333333", markersize=3, linewidth=1, label="the stream so far")
left.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
left.set(title="how much each part writes", ylabel="root mean square")
left.legend()
places = [names.index(name) for name in cost]
bars = right.bar(places, list(cost.values()), color=[colours[place] for place in places])
tallest = max(zip(places, bars, strict=True), key=lambda pair: pair[1].get_height())[0]
check("the tallest bar stands where the table begins", names[tallest] == ordered[0][0])
right.set_xticks(range(1, len(names)), names[1:], rotation=60, ha="right", fontsize=8)
most, least = max(cost.values()), sorted(cost.values())[-2]
right.text(names.index(ordered[0][0]), 1.7 * least, f" {most:.1f} ", color="white", ha="center", va="top", rotation=90)
right.set(title="what it costs to leave it out", ylabel="rise of the loss", ylim=(-0.2 * least, 1.8 * least))
save(figure, "14_parts")

# %% [markdown]
# ![How much every part writes and what it costs to leave it out](figures/14_parts.png)
#
# *Left: the sizes of what is written, and of the stream that collects it. Right: loud is not the same as important;
# the bar of the first MLP is cut off.*
#
# ## In the engine
# - `nanollm_jax.model.block` is the block of this chapter, with what some families have besides: a norm behind each half,
#   a factor on what is written, both halves reading the same stream. Which of it a model has is read from its config and
#   its parameters.
# - `nanollm_jax.model.attend` writes keys and values into a cache and reads all earlier ones from there, so that a
#   token that was read is never computed again (chapter 20).
# - The layers stand in a Python loop in `nanollm_jax.model.hidden_states`. Tracing (chapter 01) goes through that loop, so
#   the compiled program has no loop: it holds the operations of each layer, one layer behind the other.
# - Every value of this chapter has its name in those functions. `nanollm_jax.glass.observe` runs the program equation
#   by equation and collects or replaces them. In the compiled program the names are gone and cost nothing.
#
# ## Your engine
# With the norm of chapter 08 the block is complete.

# %%
mine = grow(14)
stream = values["embedding"][0]  # [T D]
for w in model.params["layers"]:
    stream = mine.block(stream, w, mine.Config(config.norm_eps, config.layers[0].rope.theta))
same("your engine: the stream behind all layers", stream, values[f"layers.{config.num_layers - 1}.out"][0], 1e-4)

# %% [markdown]
# ## Exercises
# 1. Some older models put the norm behind the addition: x = norm(x + attention(x)). Is the end of such a stream still
#    a sum of what was written?
# 2. Leave out all attentions but no MLP. What can such a model still know about the text?
# 3. The lens in the figure guesses the piece itself at the bottom line. Why? (The table of pieces is used twice in
#    this model.)

# %% tags=["answer"]
print(
    "No. Each norm rescales all that was written before, and differently for each token, so nothing is left as it was written."
)
two = written[0] + written[1]
scaled = (
    rms_norm(two, np.ones(config.hidden_size)) / two
)  # [T D]: by what factor the norm changed the stream of each token
same("one factor for all numbers of a token", scaled, np.repeat(scaled[:, :1], config.hidden_size, axis=1))
check("every token has another factor", np.ptp(scaled[:, 0]) > 0.1 * scaled[:, 0].max())

# %% tags=["answer"]
alone = loss_without(*(f"layers.{layer}.attention.out" for layer in range(config.num_layers)))
print(f"only the current piece: loss {alone:.2f} instead of {whole:.2f}. It knows which piece often follows which.")
same(
    "by our own blocks",
    alone,
    loss_by_hand(*(f"layers.{layer}.attention.out" for layer in range(config.num_layers))),
    1e-4,
)
check("much worse, and better than blind guessing", whole + 0.5 < alone < math.log(config.vocab_size))

# %% tags=["answer"]
itself = np.mean(lens[0].argmax(-1) == ids)
print(
    f"The embedding of a piece, compared with the table of all embeddings, fits itself best: {itself:.0%} of the pieces here."
)
check("most of them", itself > 0.5)

# %% [markdown]
# [Previous: 13 · Feed-forward](13_feed_forward.py) · [Contents](README.md) · [Next: 15 · Tokenizer](15_tokenizer.py)
