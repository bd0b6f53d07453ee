# %% [markdown]
# # 22 · Parallelism: one model on many devices
#
# [Previous: 21 · Profiling](21_profiling.py) · [Contents](README.md) · [Next: 23 · Look inside](23_look_inside.py)
#
# ## The question
# A *device* is a processor with memory of its own: a GPU, for example, of which a machine may have eight. Large models do
# not fit on one device, and one device cannot read weights faster than its memory allows. How is one forward pass divided
# among several devices, what do they have to tell each other, and what does that cost?
#
# ## The idea
# Two cuts are used most:
#
# - *data parallel*: every device has all weights and its own texts. They never talk.
# - *tensor parallel*: every device has a part of every weight, and all work on the same texts. They have to add up what
#   each of them found.
#
# An operation in which all devices take part is a *collective*. The one needed here is *all-reduce*: every device has
# an array, and all get the sum. The art is to cut so that few of them are needed. An MLP is two products with an
# activation between them. Cut the first weight by outputs and the second by the same numbers as inputs:
#
#     device 1:   hidden1 = act(x @ up1)      part1 = hidden1 @ down1
#     device 2:   hidden2 = act(x @ up2)      part2 = hidden2 @ down2
#     all-reduce: part1 + part2
#
# The activation works on each number alone, so it does not notice the cut. One all-reduce completes the MLP. Attention
# is cut by heads, which do not notice each other either, and needs one as well: two all-reduces for each layer
# (Shoeybi et al. 2019, arXiv:1909.08053).

# %%
from __future__ import annotations

import dataclasses
import json
import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, RED, check, interactive, plt, predict, same, save, table
from engine_steps import grow
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

if jax.config.jax_num_cpu_devices != 8:
    jax.config.update("jax_num_cpu_devices", 8)  # before anything runs: this processor then looks like eight devices

import nanollm_jax as nano
from nanollm_jax import params as parameters

DEVICES = jax.devices()[:8]
check("there are eight devices", len(DEVICES) == 8)
random = np.random.default_rng(0)

# %% [markdown]
# ## From scratch
# The cut of an MLP, first with a Python list as the devices and a sum as the all-reduce.


# %%
def silu(x):
    return x / (1 + np.exp(-x))


x, up, down = random.normal(size=(5, 8)), random.normal(size=(8, 24)), random.normal(size=(24, 8))  # [T D] [D F] [F D]
whole = silu(x @ up) @ down  # [T D]
parts = [
    silu(x @ mine) @ mine_too for mine, mine_too in zip(np.split(up, 4, axis=1), np.split(down, 4, axis=0), strict=True)
]
same("four devices with a quarter of both weights, added up", sum(parts), whole, tolerance=1e-12)
hidden = np.concatenate([silu(x @ mine) for mine in np.split(up, 4, axis=1)], axis=1)  # [T F]: the hidden numbers
same("nothing was lost in between: the hidden numbers side by side", hidden, silu(x @ up), tolerance=1e-12)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(10, 2.8))
COLOURS, WHOLE = [BLUE, ORANGE, GREEN, RED], "#c9ced6"


def draw(name, shape, left, cut=None):
    """A matrix as a box, one unit for each number, cut into four along an axis or whole"""
    height, width = shape
    for device in range(4) if cut is not None else [None]:
        colour = WHOLE if device is None else COLOURS[device]
        part = (height, width) if cut is None else (height / 4, width) if cut == 0 else (height, width / 4)
        corner = (left + (device or 0) * part[1] * (cut == 1), (device or 0) * part[0] * (cut == 0))
        ax.add_patch(plt.Rectangle(corner, part[1] - 0.2, part[0] - 0.2, color=colour, linewidth=0))
    ax.text(left, -1.2, f"{name} [{height} {width}]")


draw("x", (5, 8), 0)
draw("up", (8, 24), 13, cut=1)
draw("hidden", (5, 24), 42, cut=1)
draw("down", (24, 8), 71, cut=0)
for device, colour in enumerate(COLOURS):
    ax.add_patch(plt.Rectangle((84, 6.33 * device), 8, 4.8, color=colour, linewidth=0))
    ax.text(88, 6.33 * device + 5.6, "+" if device < 3 else "", ha="center", va="center", size=13)
ax.add_patch(plt.Rectangle((100, 0), 8, 4.8, color=WHOLE, linewidth=0))
ax.text(84, -1.2, "parts [5 8]")
ax.text(100, -1.2, "sum [5 8]")
for place, sign in ((10.5, "@"), (39.5, "→"), (68.5, "@"), (81.5, "="), (96, "→")):
    ax.text(place, 2.5, sign, ha="center", va="center", size=14)
ax.text(39.5, 5.5, "silu", ha="center", va="center", size=9)
ax.text(96, 5.5, "all-\nreduce", ha="center", va="center", size=9)
ax.set(xlim=(0, 110), ylim=(24.5, -3.5), aspect="equal")
ax.axis("off")
save(figure, "22_split")

# %% [markdown]
# ![An MLP's weights cut into four parts](figures/22_split.png)
#
# *Each colour is one device; what is grey, all of them have. A device needs only its own colour, from the input to its
# part of the sum.*
#
# ## shard_map
# `jax.shard_map` runs one function on every device of a *mesh*, a grid of devices whose axes have names. What goes in
# is cut as a *partition spec* says: `P("data", None)` cuts the first axis along the mesh axis "data" and leaves the
# second whole. Inside, each device sees its own part, and `jax.lax.psum(x, "tensor")` is the all-reduce along
# "tensor".
#
# So here is the whole forward pass of LLaMA for one device among many. It is chapter 17's, with three additions: a sum
# behind attention, one behind the MLP, and one behind the embedding, whose V rows are dealt out too.


# %%
SPECS = {  # the axis that is cut, for each parameter of nanollm_jax.params.layout
    "wqkv": P("tensor"), "wo": P(None, "tensor"), "up": P(None, "tensor"), "down": P(None, "tensor"),
    "tokens": P("tensor"), "scale": P(),
}  # fmt: skip


def specs(params):
    return parameters.nest({path: SPECS[path.rpartition(".")[2]] for path in parameters.flatten(params)})


def rms_norm(x, scale, eps):
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps) * scale


def rotate(x, theta):
    """x [B T N H] -> [B T N H]"""
    T, H = x.shape[1], x.shape[3]
    angle = (jnp.arange(T)[:, None] * theta ** (-jnp.arange(0, H, 2) / H))[None, :, None]  # [1 T 1 H/2]
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [left * jnp.cos(angle) - right * jnp.sin(angle), right * jnp.cos(angle) + left * jnp.sin(angle)], axis=-1
    )


def attention(x, w, theta):
    """x [B T D] -> the part of these heads, [B T D]"""
    heads = jnp.einsum("BTD,KQHD->BTKQH", x, w["wqkv"])  # K and N are this device's own, a part of all
    B, T, K, Q, H = heads.shape
    q = rotate(heads[:, :, :, :-2].reshape(B, T, K * (Q - 2), H), theta).reshape(B, T, K, Q - 2, H)
    k, v = rotate(heads[:, :, :, -2], theta), heads[:, :, :, -1]
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k) / math.sqrt(H)
    scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", jax.nn.softmax(scores), v).reshape(B, T, K * (Q - 2), H)
    return jnp.einsum("BTNH,DNH->BTD", mixed, w["wo"])


def mlp(x, w):
    """x [B T D] -> the part of these hidden numbers, [B T D]"""
    gate, up = jnp.einsum("BTD,UFD->UBTF", x, w["up"])
    return jnp.einsum("BTF,DF->BTD", jax.nn.silu(gate) * up, w["down"])


def forward(params, tokens, config, total):
    """Its own weights, its own texts [B T] -> logits of its own part of the vocabulary [B T V]"""
    own = params["embedding"]["tokens"]  # [V D], a part of all rows
    place = tokens - jax.lax.axis_index("tensor") * own.shape[0]
    mine = (place >= 0) & (place < own.shape[0])
    x = total(jnp.where(mine[..., None], own[jnp.clip(place, 0, own.shape[0] - 1)], 0), "embedding")  # [B T D]
    for n, w in enumerate(params["layers"]):
        h = rms_norm(x, w["attention_norm"]["scale"], config.norm_eps)
        x = x + total(attention(h, w["attention"], config.layers[0].rope.theta), f"attention of layer {n}")
        h = rms_norm(x, w["mlp_norm"]["scale"], config.norm_eps)
        x = x + total(mlp(h, w["mlp"]), f"MLP of layer {n}")
    table = params.get("unembedding") or params["embedding"]
    return jnp.einsum("BTD,VD->BTV", rms_norm(x, params["final_norm"]["scale"], config.norm_eps), table["tokens"])


def add(part, name):
    return jax.lax.psum(part, "tensor")


def alone(part, name):
    return part


def on_mesh(data, tensor, config, params, total=add):
    """The compiled program for data x tensor devices"""
    mesh = Mesh(np.array(DEVICES).reshape(data, tensor), ("data", "tensor"))
    one = partial(forward, config=config, total=total if tensor > 1 else alone)  # a sum of one is no message
    return jax.jit(jax.shard_map(
        one, mesh=mesh, in_specs=(specs(params), P("data")), out_specs=P("data", None, "tensor"),
        check_vma=False,  # JAX would notice a forgotten sum; here that is to be seen
    ))  # fmt: skip


def library(config, params, tokens):
    cache = nano.init_cache(config, len(tokens), tokens.shape[1], "float32")
    return jax.jit(nano.forward, static_argnames="config")(params, jnp.asarray(tokens), cache, config=config)[0]


model = nano.load(dtype="float32")
stories = ("Once upon a time", "The little dog", "Lily had a ball", "One day, Tom")
ids = [model.tokenizer.encode(story)[:4] for story in stories]
tokens = np.array(ids)  # [4 4]
ours = on_mesh(4, 2, model.config, model.params)(model.params, tokens)
same("the bundled model on 4 x 2 devices: nanollm_jax.forward", ours, library(model.config, model.params, tokens), 1e-4)

# %% [markdown]
# The bundled model has two key and value heads, so it can be cut in two at most. For all other meshes a small model
# with eight of them and random weights stands in.
#
# ## Collectives, counted
# What the devices say to each other can be read in the compiled program: every collective is an instruction in it.

# %% tags=["question"]
predict(
    "a model of 2 layers: how many all-reduces are in the program for 8 x 1 devices (data), and how many for 1 x 8 (tensor)?"
)

# %% tags=["answer"]
small = dataclasses.replace(
    model.config, hidden_size=64, layers=model.config.layers[:2], num_heads=16, num_kv_heads=8, head_dim=8,
    intermediate_size=96, vocab_size=256,
)  # fmt: skip
params = nano.init_params(small, jax.random.key(22), "float32")
tokens = random.integers(0, small.vocab_size, (8, 6), dtype=np.int32)  # [B T]
B, T = tokens.shape
reference = library(small, params, tokens)


def collectives(program, *args):
    """How many of each kind the compiled program has, and the bytes that each device brings in."""
    text = program.lower(*args).compile().as_text()
    found = re.findall(
        r" = \(?f32\[([\d,]*)\][^=\n]* (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text
    )
    sizes = [4 * math.prod(int(n) for n in shape.split(",") if n) for shape, _ in found]
    return [kind for _, kind in found], sum(sizes)


MESSAGE = re.compile(r" = f32\[([\d,]*)\]\S* all-reduce\([^\n]*?replica_groups=\{(\{[\d,{}]*\})\}")


def exchanges(data, tensor):
    """Every all-reduce in the order of the compiled program: behind what, who talks to whom, and the bytes of each device.

    Each needs the sum of the one before, so they are in the order in which the pass asks for them.
    """
    asked = []

    def noted(part, name):
        asked.append(name)
        return add(part, name)

    text = on_mesh(data, tensor, small, params, total=noted).lower(params, tokens).compile().as_text()
    return [
        {
            "name": name,
            "groups": [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", groups)],
            "bytes": 4 * math.prod(int(n) for n in shape.split(",")),
        }
        for name, (shape, groups) in zip(asked, MESSAGE.findall(text), strict=True)
    ]


rows, counts, meshes = [], {}, []
total_bytes = sum(array.nbytes for array in parameters.flatten(params).values())
for data, tensor in ((8, 1), (4, 2), (2, 4), (1, 8)):
    program = on_mesh(data, tensor, small, params)
    same(f"{data} x {tensor}", program(params, tokens), reference, tolerance=1e-4)
    kinds, nbytes = collectives(program, params, tokens)
    counts[data, tensor] = len(kinds), nbytes
    held = sum(
        array.nbytes / (tensor if SPECS[path.rpartition(".")[2]] != P() else 1)
        for path, array in parameters.flatten(params).items()
    )
    mesh = Mesh(np.array(DEVICES).reshape(data, tensor), ("data", "tensor"))
    cut = {
        path: NamedSharding(mesh, SPECS[path.rpartition(".")[2]]).shard_shape(array.shape)
        for path, array in parameters.flatten(params).items()
    }
    check(f"{data} x {tensor}: JAX gives a device as many bytes", held == 4 * sum(map(math.prod, cut.values())))
    texts = B // data
    check("and as many texts", (texts, T) == NamedSharding(mesh, P("data")).shard_shape(tokens.shape))
    rows.append([f"{data} x {tensor}", texts, f"{held / total_bytes:.1%}", len(kinds), f"{nbytes:,}"])
    one = {"data": data, "tensor": tensor, "texts": texts, "share": held / total_bytes}
    meshes.append(one | {"steps": exchanges(data, tensor)})
table(
    "a pass over 8 texts", ["data x tensor", "texts a device", "weights a device", "all-reduces", "their bytes"], rows
)
for (data, tensor), (found, nbytes) in counts.items():
    if tensor == 1:
        check("data parallel alone: not one", found == 0)
    else:
        check(f"{data} x {tensor}: two for each layer, one for the embedding", found == 2 * small.num_layers + 1)
        check(f"{data} x {tensor}: each as large as the stream of its texts", nbytes == found * B // data * T * 64 * 4)
forgotten = on_mesh(1, 8, small, params, total=alone)
error = np.abs(np.asarray(forgotten(params, tokens) - reference)).max()
print(f"without the sums the program runs as well, and the logits are off by up to {error:.1f}")
check("a forgotten sum is noticed only by comparing", error > 0.1)

# %% [markdown]
# Now in the order in which the compiled programs have them: who talks to whom, behind what, and how much.

# %%
for one in meshes:
    check(f"{one['data']} x {one['tensor']}: the exchanges are those that were counted",
          (len(one["steps"]), sum(step["bytes"] for step in one["steps"])) == counts[one["data"], one["tensor"]])  # fmt: skip
    check("each behind another part", len({step["name"] for step in one["steps"]}) == len(one["steps"]))
    across = np.arange(8).reshape(one["data"], one["tensor"]).tolist()  # who works on the same texts
    check("and among those who work on the same texts", all(step["groups"] == across for step in one["steps"]))

# %% tags=["figure"]
interactive(
    "mesh",
    {"meshes": meshes},
    "Pick a mesh, and step through its program or play it: devices of one colour add up their parts.",
)

# %% [markdown]
# These eight devices share one processor, so they cannot be faster than it is. What eight real ones would do can be
# modelled.
#
# ## Scaling, modelled
# A token of decode takes the time to read a device's part of the weights, or to compute with it where many texts make that
# longer, and then the all-reduces: two in each layer and the one behind the embedding. An all-reduce among n devices has a
# fixed delay, and moves 2 (n - 1) / n times its bytes over each device's *link*, its connection with the others (each
# device sends its share around twice: once to add, once to hand out). The rates below are assumed, in the range of
# today's *accelerators*, processors made for such products, as GPUs are. They are the only numbers here that were not computed.

# %%
MEMORY, LINK, DELAY, ARITHMETIC = 2e12, 3e11, 1e-5, 4e14  # bytes/s, bytes/s, seconds, FLOP/s
c = nano.read_config(json.loads((Path(nano.__file__).parents[1] / "configs/llama-3.1-8b.json").read_text()))[0]
WEIGHTS = 2 * parameters.count(c)  # bytes, 16 bits


def talk_seconds(texts, tensor):
    """The all-reduces of one token for each of so many texts, among `tensor` devices"""
    if tensor == 1:
        return 0
    moved = 2 * (tensor - 1) / tensor * texts * c.hidden_size * 2
    return (2 * c.num_layers + 1) * (DELAY + moved / LINK)


def step_seconds(texts, tensor):
    """One token for each of so many texts on `tensor` devices: reading or arithmetic, then talking"""
    work = max(WEIGHTS / tensor / MEMORY, 2 * parameters.count(c) * texts / tensor / ARITHMETIC)
    return work + talk_seconds(texts, tensor)


def gain(texts):
    """How many times faster than one device, for each of `sizes`"""
    return np.array([step_seconds(texts, 1) / step_seconds(texts, n) for n in sizes])


sizes = np.array([1, 2, 4, 8, 16, 32, 64])
by_tensor = {texts: [texts / step_seconds(texts, n) for n in sizes] for texts in (1, 64)}  # tokens per second
by_data = sizes * 64 / step_seconds(64, 1)
gigabytes = WEIGHTS / sizes / 1e9
check("two bytes for each of 8.03 thousand million weights", round(gigabytes[0] / 2, 2) == 8.03)
check("data parallel: as many times as many tokens as devices", math.isclose(by_data[-1], 64 * by_data[0]))
check("with one device, the same", math.isclose(by_tensor[64][0], by_data[0]))
check("and one text gets all that memory allows", math.isclose(by_tensor[1][0], MEMORY / WEIGHTS))
table(
    "Llama 3.1 8B, modelled: tokens per second of one text, and of all texts",
    ["devices", "1 text, tensor", "64 texts, tensor", "64 texts a device, data", "weights a device, GB"],
    [
        (n, f"{single:,.0f}", f"{many:,.0f}", f"{together:,.0f}", f"{own:.1f}")
        for n, single, many, together, own in zip(sizes, *by_tensor.values(), by_data, gigabytes, strict=True)
    ],
)  # fmt: skip
speed = gain(1)
check("two devices are faster than one, not twice as fast", 1 < speed[1] < 2)
check("64 devices are worse than ideal by far", speed[-1] < 16)
check("one text on 64 devices: most of the time is for talking", step_seconds(1, 64) > 2 * WEIGHTS / 64 / MEMORY)
check("never more than the delays allow", speed[-1] < step_seconds(1, 1) / ((2 * c.num_layers + 1) * DELAY))


def ring(parts):
    """An all-reduce, each device sending to the next: what all bring [n n C], in n chunks -> what all have, numbers sent"""
    parts, n, sent = parts.copy(), len(parts), 0
    for step in range(2 * (n - 1)):  # n - 1 steps to add, n - 1 to hand out
        chunks = [(device - step) % n for device in range(n)]
        arriving = [parts[device, chunk].copy() for device, chunk in enumerate(chunks)]
        for device, chunk in enumerate(chunks):
            to = (device + 1) % n
            parts[to, chunk] = arriving[device] + (parts[to, chunk] if step < n - 1 else 0)
        sent += parts.shape[2]
    return parts, sent


brought = random.normal(size=(8, 8, 3))  # [n n C]
summed, sent = ring(brought)
same("an all-reduce by hand: all have the sum", summed, np.broadcast_to(brought.sum(0), brought.shape), 1e-12)
message = c.hidden_size * 2 * sent / brought[0].size  # bytes that one of eight devices sends, for one text
check("the model's messages are as many as were counted, and as large as those by hand", math.isclose(
    step_seconds(1, 8) - WEIGHTS / 8 / MEMORY,
    (counts[1, 8][0] + 2 * (c.num_layers - small.num_layers)) * (DELAY + message / LINK)))  # fmt: skip
turn = round(ARITHMETIC / MEMORY)  # a weight is two bytes to read, and two operations for each text
check(f"up to {turn} texts cost what one costs, more cost more",
      step_seconds(turn - 1, 1) == step_seconds(1, 1) < step_seconds(turn + 1, 1))  # fmt: skip
many = 10 * turn
talk = (2 * c.num_layers + 1) * (DELAY + many * message / LINK)
check("where arithmetic is the limit, each of eight does an eighth, and they talk",
      math.isclose(step_seconds(many, 8) - talk, step_seconds(many, 1) / 8))  # fmt: skip

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.plot(sizes, sizes, ":", color=GREY, label="ideal")
for texts, colour in ((1, BLUE), (64, ORANGE), (1024, GREEN)):
    left.plot(sizes, gain(texts), "o-", color=colour, markersize=4, label=f"{texts:,} text{'s' * (texts > 1)}")
left.set(xscale="log", yscale="log", title="times faster than one device", xlabel="devices, tensor parallel")
left.legend()
reading = np.array([WEIGHTS / n / MEMORY for n in sizes]) * 1e3
talking = np.array([talk_seconds(1, n) for n in sizes]) * 1e3
same("a bar is as high as a step is long", reading + talking, [1e3 * step_seconds(1, n) for n in sizes])
places = range(len(sizes))
right.bar(places, reading, color=BLUE, label="reading weights")
right.bar(places, talking, bottom=reading, color=ORANGE, label="all-reduces")
right.set(title="milliseconds a token, 1 text", xlabel="devices, tensor parallel", ylim=(0, 9))
right.set_xticks(places, sizes)
right.legend()
for axis in (left.xaxis, left.yaxis):
    axis.set_ticks(sizes, sizes)
left.minorticks_off()
save(figure, "22_scaling")

# %% [markdown]
# ![Modelled speed of Llama 3.1 8B on 1 to 64 devices](figures/22_scaling.png)
#
# *The more devices share the weights, the sooner these are read, and the more of the time is for all-reduces (right). So a
# few devices are made to work as one, with tensor parallelism, and many such groups work on different texts.*
#
# ## In the engine
# - `nanollm_jax.make_mesh` makes a mesh with the axes "dp" (data parallel) and "tp" (tensor parallel), and
#   `nanollm_jax.load` with this mesh reads each device's part of the weights from the file. All else is called as
#   before: `nanollm_jax.generate` runs where the parameters are.
# - `nanollm_jax.partition.RULE` is our `SPECS` for letters instead of names: B along "dp"; K, F and V along "tp". So
#   `nanollm_jax.params.layout` says how each parameter is cut: `wqkv` along K, in whole groups of heads, and `up`
#   along F, so that gate and up of a unit (chapter 13) stay together. `nanollm_jax.devices.programs.parallelize` has the
#   only `shard_map` around the model.
# - The sums stand where ours do: `nanollm_jax.ops.linear.linear_sum` behind attention and MLP, which adds a bias after
#   the sum, once, and `nanollm_jax.ops.embedding.embed`. They call `nanollm_jax.collectives.psum`, which without a mesh
#   hands its argument back. So `nanollm_jax.model.forward` is the same code for one device and for many. At the top the
#   parts of the logits are put together, since sampling needs all of them.
# - Each device keeps the keys and values of its own heads in a cache of its own (chapter 20). With more devices than
#   key and value heads, `nanollm_jax.partition.arrange` repeats those, and each copy serves a part of its queries.
# - `nanollm mesh` shows who holds what, counts the exchanges in the compiled program, and compares with one device.
#   `nanollm plan` does what our model of scaling does, for published sizes and devices.

# %%
mesh = nano.make_mesh(dp=2, tp=4)
spread = nano.load(dtype="float32", mesh=mesh)
heads = spread.config.num_kv_heads
cache = nano.init_cache(spread.config, batch=4, capacity=4, dtype="float32", mesh=mesh)
theirs = nano.forward(spread.params, np.array(ids), cache, config=spread.config)[0]  # [B T V]
same(
    f"the engine on 2 x 4 devices, with {heads} key and value heads for {model.config.num_kv_heads}", theirs, ours, 1e-4
)

# %% [markdown]
# ## Your engine
# The last step. `shard` deals the weights out as `SPECS` says, and everything else stays as it was. The sums between the
# devices are not written down: the compiler sees how the arrays lie and puts them in.

# %%
mine = grow(22)
loaded = mine.shard(mine.load(Path(nano.__file__).parent / "assets/nano-stories"), 2)
own = list(mine.generate(loaded, stories[0], mine.Sampling(0.0), max_new_tokens=8))
theirs = nano.generate(model, stories[0], max_new_tokens=8, sampling=nano.Sampling(temperature=0.0)).token_ids
check("your engine on two devices: the same tokens as the library on one", own == theirs)
step = mine.step.lower(
    loaded.params, np.zeros(1, np.int32), 1, mine.init_cache(loaded.params, 64), mine.Sampling(), 0, loaded.config
)
sums = len(re.findall(r" all-reduce(?:-start)?\(", step.compile().as_text()))
print(f"{sums} sums between the devices are in the program of a step")
check("at least two for each layer", sums >= 2 * model.config.num_layers)

# %% [markdown]
# That is the whole engine: [engine.py](engine.py). It reads a LLaMA or a Mistral from its files, with its own tokenizer,
# samples, keeps a cache, writes many texts at once and runs on several devices, and there is no line in it that you
# have not seen. What the library has beyond it is other families of models, speed, and care for what can go wrong.

# %% [markdown]
# ## Exercises
# 1. Why is the first weight of an MLP cut by outputs, and not by inputs?
# 2. How many devices does a model with 8 key and value heads allow for tensor parallelism, without copies?
# 3. In the model of scaling, which delay would let 8 devices be 7 times as fast as one, for one text?

# %% tags=["answer"]
parts = [mine_x @ mine for mine_x, mine in zip(np.split(x, 4, axis=1), np.split(up, 4, axis=0), strict=True)]
same("cut by inputs, the parts must be added ...", sum(parts), x @ up, tolerance=1e-12)
check(
    "... before the activation: it is not the sum of activations",
    np.abs(sum(map(silu, parts)) - silu(x @ up)).max() > 0.1,
)
print("So that cut needs one more all-reduce, of F numbers a token and not of D.")

# %% tags=["answer"]
allowed = [n for n in range(1, 17) if small.num_kv_heads % n == 0]
print("A device needs whole key and value heads: 8 devices at most,", allowed)
check("more than eight have nothing to hold", max(allowed) == small.num_kv_heads)
whole = [nano.partition.arrange(small, n).num_kv_heads == small.num_kv_heads for n in range(1, 17)]
check("with these the library makes no copies", [n for n in range(1, 17) if whole[n - 1]] == allowed)

# %% tags=["answer"]
one = step_seconds(1, 1)
moving = 2 * (8 - 1) / 8 * c.hidden_size * 2 / LINK
delay = (one / 7 - one / 8) / (2 * c.num_layers + 1) - moving
print(f"{delay * 1e6:.1f} microseconds")
DELAY = delay
check("with it, 8 devices are 7 times as fast", math.isclose(one / step_seconds(1, 8), 7))

# %% [markdown]
# [Previous: 21 · Profiling](21_profiling.py) · [Contents](README.md) · [Next: 23 · Look inside](23_look_inside.py)
