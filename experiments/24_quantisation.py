# %% [markdown]
# # 24 · Quantisation: fewer bits for each weight
#
# [Previous: 23 · Look inside](23_look_inside.py) · [Contents](README.md) · [Next: 25 · Serving](25_serving.py)
#
# ## The question
# To write one token, an engine reads every weight from memory once, and that reading is what takes the time (chapter
# 21). A weight that is stored in half as many bits is read in half the time. How few bits can a weight have before the
# model's texts become worse? And what exactly is lost?
#
# ## The idea
# To *quantise* is to keep whole numbers in place of real ones. The weights of one output, a row of the matrix, are all
# divided by one number, its *scale*, and rounded:
#
#     scale = largest |w| of the row / 127        q = round(w / scale)        w is nearly q · scale
#
# q lies between -127 and 127 and fits into 8 bits. With b bits the largest whole number is 2^(b-1) - 1: 127, 7 for
# four bits, 1 for two. No weight is off by more than half a step, and a step is the scale. So all depends on the
# largest weight of the row: one that is far larger than the others makes the steps coarse for all of them.
#
# The remedy is to let fewer weights share a scale. A *group* is a piece of a row, 16 or 32 weights, with a scale of its
# own. That is more exact, and costs the bits of more scales.

# %%
from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREY, ORANGE, check, interactive, outcome, plt, predict, quick, same, save, table

import nanollm_jax as nano
from nanollm_jax import params as parameters
from nanollm_jax.dtypes import resolve_weights
from nanollm_jax.ops import groupwise_making, int8, nibbles

model = nano.load(dtype="float32")
config = model.config
weights = jax.tree.map(np.asarray, model.params)
random = np.random.default_rng(24)

# %% [markdown]
# ## From scratch
# One number at a time, and then at once. `w` is a matrix `[O I]`: a row for each output, in it a weight for each input.


# %%
def quantise_loops(w, bits):
    """w [O I] -> whole numbers [O I] and a scale for each row [O]"""
    most = 2 ** (bits - 1) - 1
    q, scales = np.full(w.shape, -128, np.int8), np.full(len(w), np.nan, np.float32)
    for o, row in enumerate(w):
        scales[o] = max(abs(weight) for weight in row) / most
        for i, weight in enumerate(row):
            q[o, i] = round(weight / scales[o])
    return q, scales


def quantise(w, bits=8, group=None):
    """w [O I] -> whole numbers [O I/group group] and scales [O I/group 1]; without a group, one scale for each row"""
    most = 2 ** (bits - 1) - 1
    w = w.reshape(len(w), -1, group or w.shape[1])
    scale = np.abs(w).max(axis=-1, keepdims=True) / most
    scale = np.where(scale == 0, 1, scale)
    return np.clip(np.round(w / scale), -most, most).astype(np.int8), scale.astype(np.float32)


w = weights["layers"][3]["mlp"]["down"]  # [D F]: D outputs of F inputs each
inputs = w.shape[1]
q, scale = quantise(w)
few = 2 if quick() else 16
q_loops, scale_loops = quantise_loops(w[:few], 8)
apart = np.abs(q_loops.astype(int) - q[:few, 0])
check("at once: the same whole numbers, but for a few halfway between two", apart.max() <= 1 and apart.mean() < 1e-3)
same("and the same scales", scale[:few, 0, 0], scale_loops)
restored = (q * scale).reshape(w.shape)
print(f"{w.nbytes:,} bytes become {q.nbytes + scale.nbytes:,}")
check("no weight is off by more than half a step", (np.abs(restored - w) <= scale[:, 0] / 2 * 1.0001).all())
check("every row uses all of its range", (np.abs(q).max(axis=(1, 2)) == 127).all())
theirs = int8.quantize(jnp.asarray(w), 1)
apart = np.abs(np.asarray(theirs.values, int) - q[:, 0])
check("nanollm_jax.ops.int8.quantize: the same, but for a few halfway", apart.max() <= 1 and apart.mean() < 1e-3)
same("and the same scales", theirs.scale, scale[:, 0, 0])

# %% [markdown]
# With 4 bits the steps can be seen. Here is the beginning of a row, once with a scale for all of the row and once with a
# scale for each 16 weights:

# %% tags=["figure"]
o = np.argmax(np.abs(w).max(axis=1) / np.abs(w[:, :48]).max(axis=1))  # a row whose largest weight stands elsewhere
check("the largest weight of that row stands further on", np.abs(w[o]).argmax() >= 48)
figure, axes = plt.subplots(2, 1, figsize=(5.6, 4.2), sharex=True, sharey=True)
losses = []
for ax, group in zip(axes, (inputs, 16), strict=True):
    q_four, scale_four = quantise(w[o : o + 1, : inputs // group * group], bits=4, group=group)  # [1 I/group group]
    kept = (q_four * scale_four).ravel()[:48]
    lost = np.sqrt(np.square(kept - w[o, :48]).mean())
    losses.append(lost)
    for n, step in enumerate(scale_four[0, : math.ceil(48 / group), 0]):
        begin, end = np.minimum([n * group, (n + 1) * group], 48) - 0.5
        ax.hlines(step * np.arange(-7, 8), begin, end, color=GREY, linewidth=0.4, zorder=0)
    ax.vlines(np.arange(48), w[o, :48], kept, color=ORANGE, linewidth=1.5)
    ax.plot(np.arange(48), w[o, :48], ".", color=GREY, markersize=5)
    ax.plot(np.arange(48), kept, ".", color=BLUE, markersize=7)
    ax.set(title="a scale for the row" if group == inputs else f"a scale for each {group} weights", yticks=[0])
    ax.set(ylim=1.3 * np.abs(w[o, :48]).max() * np.array([-1, 1]), xticks=[])
    print(f"scales: {len(scale_four[0])}; root mean square of what these weights lose: {lost:.4f}")
check("with a scale for each group these weights lose less", losses[1] < losses[0])
save(figure, "24_steps")

# %% [markdown]
# ![The first weights of a row and what 4 bits make of them, with one scale and with a scale for each 16](figures/24_steps.png)
#
# *Grey: the weights. Blue: what is kept of them; orange: what is lost. The lines are the values that 4 bits can say, a step
# apart. Above, the largest weight of the row, which stands further on, sets the step. Below, each group has its own.*
#
# ### A product of whole numbers
# The vectors that the matrix is multiplied with can be quantised too, each with a scale of its own. Then all numbers of
# the product are whole: their sum is exact, and many processors have faster instructions for it. At the end it is multiplied
# by the two scales.

# %%
x = random.normal(size=(3, inputs)).astype(np.float32)  # [3 I]
qx, scale_x = quantise(x)
whole = qx[:, 0].astype(np.int32) @ q[:, 0].astype(np.int32).T  # [3 O], exact
by_integers = whole * scale_x[:, 0] * scale[:, 0].T
same("the product of whole numbers, scaled back", by_integers, x @ w.T, tolerance=0.03)
same("is that of the restored numbers", by_integers, (qx * scale_x)[:, 0] @ restored.T)
product = jax.jit(lambda a, b: jnp.einsum("RI,OI->RO", a, b, preferred_element_type=jnp.int32))
theirs = product(jnp.asarray(qx[:, 0]), jnp.asarray(q[:, 0]))
check("XLA's product of 8-bit numbers is the same, bit for bit", np.array_equal(theirs, whole))

# %% [markdown]
# ### Two in a byte
# The least that memory can be asked for is a byte, 8 bits. So two numbers of 4 bits share one: the first has its
# low four bits, the second its high four. Adding 8 first makes both positive, 1 to 15.


# %%
def pack(q):
    """Whole numbers from -8 to 7, in blocks of 32: number n and number n + 16 share a byte.  [I] -> [I/2] uint8"""
    out = []
    for begin in range(0, len(q), 32):
        for n in range(begin, begin + 16):
            out.append((int(q[n]) + 8) + 16 * (int(q[n + 16]) + 8))
    return np.array(out, np.uint8)


q4, scale4 = quantise(w[:, : inputs // 32 * 32], bits=4, group=32)  # [O I/32 32], [O I/32 1]
q_alone, scale_alone = quantise(w[:, 32:64], bits=4)  # [O 1 32]: the second group of each row
check("a group has the numbers that it would have alone", np.array_equal(q4[:, 1], q_alone[:, 0]))
same("and the scale", scale4[:, 1], scale_alone[:, 0])
packed = pack(q4[0].reshape(-1))
print(f"{q4[0].size} numbers of 4 bits in {packed.nbytes} bytes; the first byte is {packed[0]:08b}")
theirs = np.asarray(nibbles.pack(jnp.asarray(q4[0].reshape(-1)), 32))
check("nanollm_jax.ops.nibbles.pack: the same bytes", np.array_equal(packed, theirs))
check("and back", np.array_equal(nibbles.unpack(jnp.asarray(packed), 32), q4[0].reshape(-1)))

# %% [markdown]
# ## Does the model notice?
# All matrices of the bundled model are quantised and restored, in different ways, and the perplexity (chapter 19) of
# some stories is measured.

# %% tags=["question"]
predict("perplexity with 8, 6, 5, 4, 3 and 2 bits for each weight: how many times larger is it with 2 than with 32?")

# %% tags=["answer"]
STORIES = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom. "
    "The ball rolled down the hill and into the water. Lily was sad. A big dog saw the ball. He jumped into the water and "
    "brought it back. Lily was very happy. She gave the dog a hug and they played all day.",
    "Tom and his dad wanted to make a cake. They put milk and eggs in a bowl. Tom liked to stir. Then the bowl fell on the "
    "floor and broke. Tom said he was sorry. His dad was not mad. They cleaned the floor and made a new cake. It was yummy.",
)
rows = [model.tokenizer.encode(story) for story in STORIES]
T = max(map(len, rows))
tokens = np.array([row + [0] * (T - len(row)) for row in rows])  # [B T]
counted = np.array([[1] * (len(row) - 1) + [0] * (T - len(row)) for row in rows])  # [B T-1]: what is real
forward = jax.jit(nano.forward, static_argnames="config")


def perplexity(params):
    cache = nano.init_cache(config, len(rows), T, "float32")
    logprobs = jax.nn.log_softmax(forward(params, jnp.asarray(tokens), cache, config=config)[0][:, :-1])
    chosen = jnp.take_along_axis(logprobs, jnp.asarray(tokens)[:, 1:, None], axis=-1)[:, :, 0]
    return math.exp(-float((chosen * counted).sum()) / counted.sum())


def whole_model(change, only=""):
    """The parameters with every matrix, or those whose path has `only` in it, changed as [O I]; and the bytes of all"""
    flat, nbytes = {}, 0
    for path, array in parameters.flatten(model.params).items():
        if array.ndim == 1 or only not in path:  # a norm's scale stays
            flat[path], size = array, array.nbytes
        else:
            matrix = np.asarray(array)
            matrix = matrix.reshape(len(matrix), -1) if path.endswith("wo") else matrix.reshape(-1, matrix.shape[-1])
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
ruined = found["2 bits, a scale a row"][1] / base[1]
outcome(ruined, "times the perplexity of float32, with 2 bits a weight")
scored = nano.score(model, rows)
theirs = math.exp(-sum(sum(one.logprobs) for one in scored) / sum(len(one.logprobs) for one in scored))
same("in float32 the perplexity of nanollm_jax.score", base[1], theirs, 1e-4)
check("8 bits change the perplexity by less than 2%", abs(found["8 bits, a scale a row"][1] / base[1] - 1) < 0.02)
check("at a quarter of the bytes, nearly", base[0] / found["8 bits, a scale a row"][0] > 3.9)
eight = nano.load(dtype="int8").params
nbytes, ours = found["8 bits, a scale a row"]
check("so does the library's own model in 8 bits, by as much", math.isclose(perplexity(eight), ours, rel_tol=1e-3))
check("and it has as many bytes", sum(parameters.nbytes_kept(eight).values()) == nbytes)
numbers = sum(array.size for array in parameters.flatten(model.params).values() if array.ndim > 1)  # of all matrices
for bits in (6, 5, 4, 3, 2):
    check(f"with {bits} bits for 8 each number is {8 - bits} bits less",
          8 * (nbytes - found[f"{bits} bits, a scale a row"][0]) == numbers * (8 - bits))  # fmt: skip
check("the scales of groups have as many bytes with 4 bits as with 3 and 2", len({
    found[f"{bits} bits, groups of 16"][0] - found[f"{bits} bits, a scale a row"][0] for bits in (4, 3, 2)}) == 1)  # fmt: skip
check("2 bits a row ruin it", ruined > 5)
check("groups help there", found["2 bits, groups of 16"][1] < found["2 bits, a scale a row"][1] / 5)
for bits in (3, 4):
    by_row, by_group = (found[f"{bits} bits, {way}"][1] for way in ("a scale a row", "groups of 16"))
    check(f"but hardly with {bits} bits: less than 3% either way", abs(by_group / by_row - 1) < 0.03)

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
ax.axhline(config.vocab_size, color=GREY, linestyle=":")
ax.text(0.99, config.vocab_size * 0.88, "blind guess", color=GREY, size=9, ha="right", va="top", transform=beside)
ax.set(yscale="log", xlabel="MB of the whole model", ylabel="perplexity", ylim=(3, 6e3))
ax.legend(loc="center right")
save(figure, "24_bits")

# %% [markdown]
# ![Perplexity against the size of the quantised model](figures/24_bits.png)
#
# *The numbers at the points are bits for each weight. With eight the perplexity is that of float32, to two parts in a
# hundred; where it is a little lower, take that for chance, since two stories are few. In this model groups help with 2 bits
# alone; with 3 and 4 they only cost the bytes of their scales.*

# %% tags=["figure"]
BITS_AND_GROUPS = [(bits, group) for group in (8, 16, None) for bits in ((2, 4, 8) if quick() else (2, 3, 4, 5, 6, 8))]
wholes = {way: whole_model(restore(*way)) for way in BITS_AND_GROUPS}
models = [
    {"bits": bits, "group": group or 0, "bytes": nbytes, "perplexity": perplexity(params)}
    for (bits, group), (params, nbytes) in wholes.items()
]
by_setting = {(one["bits"], one["group"]): (one["bytes"], one["perplexity"]) for one in models}
for (bits, group), name in {(4, 16): "4 bits, groups of 16", (2, 0): "2 bits, a scale a row"}.items():
    same(f"{name}: the page's model is the table's", by_setting[bits, group], found[name], size=found[name])
interactive(
    "bits",
    {"weights": np.float64(w[0]), "models": models, "exact": {"bytes": base[0], "perplexity": base[1]}},
    "Set the bits, and how many weights share a scale: what becomes of a row, and of the whole model.",
)

# %% [markdown]
# ## Which matrices can spare bits?
# So far all matrices got the same bits. The next cell gives 2 bits to the matrices of one kind and leaves all others as
# they are. There are five kinds: the embedding, with which the vocabulary is scored too (chapter 17); `wqkv`, which makes
# queries, keys and values; `wo`, which takes what the heads have fetched back into the stream; `up`, which widens a vector
# in the MLP, with its gate; and `down`, which narrows it again.

# %% tags=["question"]
predict("2 bits in the embedding, in wqkv, in wo, in up, or in down: with which of the five is the perplexity highest?")

# %% tags=["answer"]
KINDS = {"embedding": "embedding", "wqkv": "wqkv", "wo": "wo", "up": "mlp.up", "down": "down"}
suffered = {name: perplexity(whole_model(restore(2), part)[0]) / base[1] for name, part in KINDS.items()}
of_all = {
    name: sum(array.size for path, array in parameters.flatten(model.params).items() if part in path)
    / sum(array.size for array in parameters.flatten(model.params).values())
    for name, part in KINDS.items()
}
table(
    "2 bits for one kind of matrices",
    ["kind", "share of the weights", "times the perplexity"],
    [(name, f"{of_all[name]:.0%}", f"{times:.2f}") for name, times in suffered.items()],
)
print(f"all of them: {ruined:.2f}. It is worst for {max(suffered, key=suffered.get)}")
q_two, scale_two = quantise(weights["embedding"]["tokens"], bits=2)
by_hand = {**model.params, "embedding": {"tokens": jnp.asarray((q_two * scale_two)[:, 0])}}
same("2 bits in the embedding, by hand", suffered["embedding"], perplexity(by_hand) / base[1], 1e-4)
check("the five are all weights but those of norms",
      math.isclose(sum(of_all.values()), numbers / parameters.count(config)))  # fmt: skip
check("up, with its gate, has twice as many as down", math.isclose(of_all["up"], 2 * of_all["down"]))
shared = 1 + 2 * config.num_kv_heads / config.num_heads  # a key and a value head for several query heads
check("wqkv has those of wo, and of keys and values besides", math.isclose(of_all["wqkv"], shared * of_all["wo"]))
check("all together cost more than the product of what each costs alone", ruined > math.prod(suffered.values()))
check("the share of the weights does not decide it", list(np.argsort(list(of_all.values())))
      != list(np.argsort(list(suffered.values()))))  # fmt: skip

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 2.8))
places = np.arange(len(KINDS))
ax.bar(places, list(suffered.values()), 0.5, color=ORANGE)
ax.axhline(1, color=GREY, linestyle=":")
ax.set_xticks(places, [f"{name}\n{share:.0%}" for name, share in of_all.items()])
ax.set(ylabel="times the perplexity", xlabel="and its share of the weights", ylim=(0, None))
save(figure, "24_kinds")

# %% [markdown]
# ![What 2 bits in one kind of matrices cost, beside how many weights it has](figures/24_kinds.png)
#
# *Each bar: one kind of matrices in 2 bits, all others in float32. The dotted line: all in float32. This is why published
# files in few bits often mix them: more bits for the kinds that need them, fewer for the others.*
#
# All kinds together cost more than the product of what each costs alone. (A guess why: an error that one matrix makes is
# part of what the next one reads.)
#
# ## What it is worth
# The roofline of chapter 21 says when a token can be there at the earliest: when all weights have been read. The next cell
# says how many tokens a second that allows, for a large model and an assumed bandwidth: with 16 bits a weight; with 8, and a
# scale for each row; with 4, and a scale of 16 bits for each 32 weights.

# %%
BANDWIDTH = 2e12  # bytes per second, assumed, as accelerators of today have it
llama = nano.read_config(json.loads((Path(nano.__file__).parents[1] / "configs/llama-3.1-8b.json").read_text()))[0]
count = parameters.count(llama)
BITS = {"bfloat16": 16, "int8": 8, "int4, groups of 32": 4 + 16 / 32}
most = {name: BANDWIDTH / (count * b / 8) for name, b in BITS.items()}  # tokens per second
table(
    "Llama 3.1 8B, one text",
    ["weights", "bits a weight", "GB", "tokens/s at most"],
    [(name, f"{b:g}", f"{count * b / 8e9:.1f}", f"{most[name]:.0f}") for name, b in BITS.items()],
)
for name, rate in most.items():
    kept = sum(parameters.nbytes(llama, resolve_weights(name.partition(",")[0])).values())
    same(f"{name}: what the library keeps, read so often in a second", rate * kept, BANDWIDTH, 0.01)
check("a group of 32 with a scale of 16 bits costs half a bit a weight", BITS["int4, groups of 32"] == 4.5)

# %% [markdown]
# ## In the engine
# - `nanollm_jax.load` with dtype "int8" keeps the matrices as this chapter does, with a scale a row:
#   `nanollm_jax.ops.int8.quantize`. The vectors lose less than here. Where a CPU multiplies whole numbers,
#   `nanollm_jax.ops.int8_product.digits` keeps two of them for each number of a vector, one as here, and one for what was
#   lost when the first was rounded; elsewhere vectors are not rounded at all.
# - With dtype "int4" 32 weights share a scale. `nanollm_jax.ops.groupwise_making.quantize` does not only take the scale that
#   follows from the largest weight: it tries several, and keeps the one whose errors, squared and added up, are the
#   smallest. The next cell compares the two.
# - `nanollm_jax.ops.groupwise.Groupwise` is the form of all weights in groups. A checkpoint that somebody has published in 4
#   bits takes 4 bits a weight and those of its scales in memory, too: nothing is made larger when it is loaded.
# - The cache (chapter 20) can be kept in 8 bits as well: `nanollm_jax.load` with cache="int8".

# %%
trimmed = w[:, : inputs // 32 * 32]
theirs = groupwise_making.quantize(jnp.asarray(trimmed), bits=4, group=32)
unpacked = np.asarray(nibbles.unpack(theirs.values, 32), np.float32).reshape(q4.shape)
searched = unpacked * np.asarray(theirs.scale, np.float32)[..., None]


def share_lost(kept):
    """The mean square of what is lost, as a share of that of the weights"""
    return np.square(kept - trimmed.reshape(q4.shape)).mean() / np.square(trimmed).mean()


ours, best = share_lost(q4 * scale4), share_lost(searched)
print(f"lost with 4 bits and groups of 32, of the mean square: {ours:.2%} by the largest weight, {best:.2%} by search")
same("it would be all, if nothing were kept", share_lost(np.zeros_like(searched)), 1)
check("the search loses less", best < ours)

# %% [markdown]
# ## Exercises
# 1. One weight of a row is made 100 times as large as the largest one was. What becomes of the others when the row is
#    quantised with 8 bits?
# 2. How many bits does a weight cost, its share of a scale included, with 4 bits, groups of 16 and scales of float32? With
#    which size of group is it 5 bits?
# 3. Round the weights of `w` *up* always, instead of to the nearest. How much larger is the error of its product with
#    positive inputs?

# %% tags=["answer"]
row = w[:1].copy()
row[0, 5] = 100 * np.abs(row).max()
q_row, coarse = quantise(row)
same("its scale is 100 times as large", coarse[0], 100 * scale[0])
zeros = np.mean(np.delete(q_row.ravel(), 5) == 0)
print(f"The scale follows the largest: {zeros:.0%} of the others become 0. Groups keep the damage local.")
check("most of them", zeros > 0.5 > np.mean(q[0] == 0))

# %% tags=["answer"]
costs = {group: 4 + 32 / group for group in (16, 32, 64)}
print(costs, "bits a weight: 4, and the 32 of a scale shared by a group")
check("6 bits, and 5 with groups of 32", costs[16] == 6 and costs[32] == 5)

# %% tags=["answer"]
positive = np.abs(random.normal(size=(64, inputs))).astype(np.float32)
step = scale[:, 0]  # [O 1]
errors = {
    name: positive @ ((rounding(w / step) * step) - w).T for name, rounding in (("nearest", np.round), ("up", np.ceil))
}
size = {name: np.sqrt(np.square(error).mean()) for name, error in errors.items()}
check("rounded up, and with positive inputs, no output is too small", (errors["up"] >= -1e-4 * size["up"]).all())
print(f"{size['up'] / size['nearest']:.0f} times: errors of both signs cancel, those of one sign add up.")
check("more than ten times", size["up"] > 10 * size["nearest"])

# %% [markdown]
# [Previous: 23 · Look inside](23_look_inside.py) · [Contents](README.md) · [Next: 25 · Serving](25_serving.py)
