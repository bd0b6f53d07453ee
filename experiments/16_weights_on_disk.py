# %% [markdown]
# # 16 · Weights: a safetensors file, byte by byte
#
# [Previous: 15 · Tokenizer](15_tokenizer.py) · [Contents](README.md) · [Next: 17 · Forward pass](17_forward_pass.py)
#
# ## The question
# A trained model comes as a file of some megabytes or some hundred gigabytes. What is in it, how do its bytes become
# the arrays of the chapters before, and how can a machine load a model that fills nearly all of its memory?
#
# Loading is the first thing that an engine does, and much can be wrong in it: a name, a shape, a dtype, the order in which
# the numbers stand. Which of these mistakes are noticed, and by whom?

# %%
from __future__ import annotations

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, ORANGE, RED, check, plt, predict, quick, same, save, seconds, table
from engine_steps import grow
from safetensors import safe_open

import nanollm_jax as nano
from nanollm_jax.weights.checkpoint import open_checkpoint
from nanollm_jax.weights.rows import rearrange

FOLDER = Path(nano.__file__).parent / "assets/nano-stories"
FILE = FOLDER / "model.safetensors"
random = np.random.default_rng(16)

# %% [markdown]
# ## The idea
# Older checkpoints were *pickles*: programs that build Python objects when they are opened. Opening one runs whatever
# its author put in, and all of it has to be read before the first number can be used.
#
# *safetensors* is nothing but numbers with a table of contents:
#
#     8 bytes        how long the table is, N, as a whole number, lowest byte first
#     N bytes        the table, as JSON text: for every tensor its name, dtype, shape, and from where to where it lies
#     all the rest   the numbers, tensor after tensor, without gaps
#
# Nothing in it can be executed. And since the table says where each tensor lies, one tensor can be read without the
# others.
#
# ## From scratch
# ### The first bytes

# %%
with FILE.open("rb") as file:
    beginning = file.read(96)
for at in range(0, 96, 16):
    row = beginning[at : at + 16]
    as_text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
    print(f"{at:04x}  {row.hex(' ')}  {as_text}")

# %% [markdown]
# The first eight bytes are the length of the table. *Lowest byte first*, also called little-endian, means that the
# number is the first byte, plus 256 times the second, plus 65,536 times the third, and so on.


# %%
def whole_number(data):
    """bytes, lowest first -> int"""
    return sum(byte * 256**place for place, byte in enumerate(data))


def read_table(path):
    """-> {name: {"dtype", "shape", "data_offsets"}}, and the place in the file from which the offsets count"""
    with path.open("rb") as file:
        length = whole_number(file.read(8))
        return json.loads(file.read(length)), 8 + length


contents, start = read_table(FILE)
contents.pop("__metadata__", None)  # free text that some programs leave there
check("the length, by Python's own conversion", start == 8 + int.from_bytes(beginning[:8], "little"))
print(f"{len(contents)} tensors; the numbers begin at byte {start:,}")
for name in list(contents)[:3]:
    print(" ", name, contents[name])
spans = sorted(entry["data_offsets"] for entry in contents.values())
check(
    "they lie one behind the other without gaps",
    spans[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(spans)),
)
check("and fill the file to its last byte", start + spans[-1][1] == FILE.stat().st_size)

# %% [markdown]
# ### From bytes to numbers
# `BF16` is bfloat16, the first half of a float32 (chapter 01). Behind the 16 bits of each number put 16 zero bits, and
# it is a float32.


# %%
def read_tensor(path, name):
    """-> a float32 array, one number at a time"""
    contents, start = read_table(path)
    begin, end = contents[name]["data_offsets"]
    with path.open("rb") as file:
        file.seek(start + begin)
        data = file.read(end - begin)
    numbers = [whole_number(data[at : at + 2]) * 65536 for at in range(0, len(data), 2)]  # 16 bits, then 16 zeros
    return np.array(numbers, np.uint32).view(np.float32).reshape(contents[name]["shape"])


def read_tensor_quickly(path, name):
    """The same with NumPy: map the file into memory, and let the operating system fetch what is touched."""
    contents, start = read_table(path)
    entry = contents[name]
    bits = np.memmap(path, "<u2", "r", offset=start + entry["data_offsets"][0], shape=tuple(entry["shape"]))
    return (bits.astype(np.uint32) << 16).view(np.float32)


NAME = "model.layers.0.self_attn.k_proj.weight"
by_hand = read_tensor(FILE, NAME)  # [K*H D]
with safe_open(FILE, framework="numpy") as file:
    theirs = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
check("the same names as the safetensors package", contents.keys() == theirs.keys())
same(f"{NAME}, byte by byte", by_hand, theirs[NAME], tolerance=0)
checkpoint = open_checkpoint(FOLDER)
check(
    "all tensors, by memory map, are those of the safetensors package",
    all(np.array_equal(read_tensor_quickly(FILE, n), theirs[n]) for n in theirs),
)
check("and those of the library", all(np.array_equal(checkpoint.read(n).astype(np.float32), theirs[n]) for n in theirs))

# %% [markdown]
# ### Writing one
# The best proof that a format has been understood is a file that another program accepts.


# %%
def write(path, arrays):
    """{name: float32 array} -> a safetensors file"""
    entries, at = {}, 0
    for name, array in arrays.items():
        entries[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for array in arrays.values():
            file.write(array.astype("<f4").tobytes())  # row by row


with tempfile.TemporaryDirectory() as folder:
    ours = {"a": random.normal(size=(3, 5)).astype(np.float32), "b": np.float32([1.5, -2])}
    write(Path(folder) / "model.safetensors", ours)
    with safe_open(Path(folder) / "model.safetensors", framework="numpy") as file:
        check(
            "the safetensors package reads what we wrote",
            all(np.array_equal(file.get_tensor(n), a) for n, a in ours.items()),
        )
    starts = []
    for letters in range(1, 9):
        write(Path(folder) / "other", {"x" * letters: ours["b"]})
        starts.append(read_table(Path(folder) / "other")[1])
    check("however long its name, the numbers begin at a multiple of 8", all(at % 8 == 0 for at in starts))
    check("so does the library", all(np.array_equal(open_checkpoint(Path(folder)).read(n), a) for n, a in ours.items()))

# %% [markdown]
# ## A map of the file

# %%
KINDS = {
    "embed": ("embedding", GREEN),
    "self_attn": ("attention", ORANGE),
    "mlp": ("MLP", BLUE),
    "norm": ("norms", RED),
}


def kind(name):
    return next(kind for part, kind in KINDS.items() if part in name)


WIDTH = 128
size = FILE.stat().st_size
cells = np.zeros(-(-size // 1024), int)  # one cell for each KiB of the file
for name, entry in contents.items():
    begin, end = (start + offset for offset in entry["data_offsets"])
    cells[begin // 1024 : -(-end // 1024)] = 1 + list(KINDS.values()).index(kind(name))
cells[: -(-start // 1024)] = 0  # the table of contents
check("behind the table every dot belongs to a tensor", (cells[-(-start // 1024) :] > 0).all())
cells = np.pad(cells, (0, -len(cells) % WIDTH), constant_values=5).reshape(-1, WIDTH)
front = -(-start // 1024)
check("the first line is the table, then the embedding", cells[0].tolist() == [0] * front + [1] * (WIDTH - front))
palette = np.array(
    [[40, 40, 40], *([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for _, colour in KINDS.values()), [255, 255, 255]]
)

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), width_ratios=[1.5, 1])
left.imshow(palette[cells].astype(np.uint8), interpolation="nearest", aspect="auto")
left.set(title=f"{FILE.name}: {size / 1e6:.1f} MB, one dot for each KiB", xticks=[], yticks=[])
for label, colour in [("table of contents", "#282828"), *KINDS.values()]:
    left.plot([], [], "s", color=colour, label=label)
left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=5, fontsize=8, handletextpad=0.1, columnspacing=0.9)
for label, colour in KINDS.values():
    numbers = np.concatenate([theirs[name].ravel() for name in theirs if kind(name) == (label, colour)])
    check(f"{label}: no number is missing", len(numbers) == sum(theirs[n].size for n in theirs if kind(n)[0] == label))
    exponents = np.frexp(numbers[numbers != 0])[1] - 1  # the power of two at or below each number
    check(f"{label}: each number lies between its power of two and the next",
          np.array_equal(np.floor(np.log2(np.abs(numbers[numbers != 0], dtype=np.float64))), exponents))  # fmt: skip
    powers, counts = np.unique(exponents, return_counts=True)
    shares = counts / len(numbers)
    same("the shares are all numbers but zeros", shares.sum(), (numbers != 0).mean())
    right.plot(powers, shares, "o-", markersize=3, color=colour, label=label)
matrices = np.abs(np.concatenate([array.ravel() for array in theirs.values() if array.ndim == 2]))
check("nine tenths of the matrices' numbers, or more, lie between 2^-10 and 2^-2",
      ((matrices >= 2**-10) & (matrices < 2**-2)).mean() > 0.9)  # fmt: skip
norms = np.abs(np.concatenate([array.ravel() for array in theirs.values() if array.ndim == 1]))
check("nine tenths of the norms' numbers, or more, are larger than that", (norms >= 2**-2).mean() > 0.9)
order = sorted(contents, key=lambda name: contents[name]["data_offsets"])
check("the embedding stands first, the layers in order behind it", "embed" in order[0] and all(
    f".layers.{n}." in name for n, group in enumerate(np.array_split([x for x in order if ".layers." in x], 6))
    for name in group))  # fmt: skip
for n in range(6):
    sizes = {name: theirs[name].size for name in theirs if f".layers.{n}." in name}
    mlp = sum(size for name, size in sizes.items() if "mlp" in name)
    check(f"layer {n}: the MLP takes more than half of the room", 2 * mlp > sum(sizes.values()))
right.set(title="how large the weights are", xlabel="power of two", ylabel="share", xlim=(-18, 4))
right.legend(fontsize=9)
save(figure, "16_file")

# %% [markdown]
# ![The file as a picture, and the sizes of its weights](figures/16_file.png)
#
# *Left: the file from its first byte to its last, line by line. Six layers follow the embedding; in each the MLP
# (blue) takes most of the room, and the norms are the small red marks. Right: nearly all numbers of the matrices lie
# between 1/1000 and 1/4; the few of the norms are larger. The range of bfloat16 goes down to 2^-126, so hardly any of
# its exponents are used; chapter 24 makes weights smaller.*
#
# ## Names to parameters
# The file has its authors' names and their order of the axes. The engine has its own. The linear layers in the file
# are `[outputs inputs]`, and the outputs of all heads stand in one axis: `q_proj` is `[(N H) D]`, head after head. In
# the engine heads have an axis of their own, so that each can be pointed at: `[N H D]`, or in full `[K Q H D]`, where
# a group of queries stands beside its key and its value (chapter 11). Written as loops, with what each number means:


# %%
def to_heads_loops(stored, heads):
    """[(N H) D] -> [N H D]"""
    rows, D = stored.shape
    H = rows // heads
    out = np.zeros((heads, H, D), stored.dtype)
    for n in range(heads):
        for h in range(H):
            for d in range(D):
                out[n, h, d] = stored[n * H + h, d]
    return out


small = random.normal(size=(6, 4))  # [(N=2 H=3) D=4]
same(
    "a reshape does the same",
    small.reshape(2, 3, 4),
    to_heads_loops(small, 2),
    tolerance=0,
)
same(
    "the library, told in letters",
    rearrange(small, "(N H) D -> N H D", {"N": 2, "H": 3, "D": 4}),
    to_heads_loops(small, 2),
    tolerance=0,
)

# %% [markdown]
# Does it matter whether the six rows are two heads of three, or three numbers of two heads each? The next cell writes a copy
# of the checkpoint in which the rows of every `q_proj` stand in the wrong one of the two orders, and has the library load it.

# %% tags=["question"]
predict(
    "one matrix of seven in each layer has its rows in the wrong order. What comes of it: an error, worse text, or nonsense?"
)


# %% tags=["answer"]
def tell(folder):
    """The model in a folder: its loss on a sentence (chapter 07), and how it goes on."""
    model = nano.load(folder, dtype="float32")
    ids = jnp.asarray(
        [model.tokenizer.encode("Once upon a time, there was a little girl named Lily. She had a red ball.")]
    )
    cache = nano.init_cache(model.config, batch=1, capacity=ids.shape[1], dtype="float32")
    logits = jax.jit(nano.forward, static_argnames="config")(model.params, ids, cache, config=model.config)[0]
    logprobs = jax.nn.log_softmax(logits[0, :-1], axis=-1)
    loss = -float(jnp.take_along_axis(logprobs, ids[0, 1:, None], axis=-1).mean())
    if quick():
        return loss, ""
    return loss, nano.generate(model, "Once upon a time", max_new_tokens=16, sampling=nano.Sampling(temperature=0)).text


N, H = 4, 64
wrong = {
    name: array.reshape(N, H, -1).swapaxes(0, 1).reshape(array.shape) if "q_proj" in name else array
    for name, array in theirs.items()
}
check("every shape is the same", all(wrong[name].shape == array.shape for name, array in theirs.items()))
changed = [name for name, array in theirs.items() if not np.array_equal(wrong[name], array)]
check("every q_proj is changed and nothing else, and its second row begins the second head", all(
    np.array_equal(wrong[name][1], theirs[name][H]) for name in changed)
    and changed == [name for name in theirs if "q_proj" in name])  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder)
    write(Path(folder) / "model.safetensors", theirs)
    right_loss, right_text = tell(folder)
    write(Path(folder) / "model.safetensors", wrong)
    wrong_loss, wrong_text = tell(folder)
print(f"right order: loss {right_loss:.2f}  {right_text!r}\nwrong order: loss {wrong_loss:.2f}  {wrong_text!r}")
check("loaded without any complaint, and worse", wrong_loss > right_loss + 0.5)

# %% [markdown]
# No error, as both orders have the same shape, and text that is still made of words. A wrong name or shape would have
# been loud; this mistake is silent. So an engine is trusted only after its numbers have been compared with another
# implementation's, on weights that are random everywhere: where weights are equal, it makes no difference in which order
# they stand.
#
# ## Reading without a second copy
# A file that is *mapped* is not read when it is opened. The operating system fetches a page of it, often 4 KiB, when a
# program first touches it, and may drop it again. That is why a model can be loaded tensor by tensor, without ever
# being twice in memory.

# %%
whole = seconds(lambda: FILE.read_bytes())
one = seconds(lambda: read_tensor_quickly(FILE, NAME).sum())
table("time from a file that is already in the system's memory", ["", "bytes", "milliseconds"], [
    ("the whole file", f"{size:,}", f"{1000 * whole:.2f}"),
    ("table of contents and one tensor", f"{start + 2 * by_hand.size:,}", f"{1000 * one:.2f}"),
])  # fmt: skip

# %% [markdown]
# ## In the engine
# - `nanollm_jax.weights.checkpoint.read_header` reads the table and distrusts it: every offset must follow from dtype
#   and shape, without gap or overlap, and the file must end where the table says. A file cut short by a failed
#   download is noticed before any number is used.
# - `nanollm_jax.weights.checkpoint.Checkpoint.read` maps one tensor. Large models come in several files with an index
#   beside them; `nanollm_jax.weights.checkpoint.open_checkpoint` reads both forms.
# - `nanollm_jax.families.llama.table` is the list of names, one line for each tensor, with its axes in letters.
#   `nanollm_jax.weights.rows.rearrange` follows the letters. Every parameter must be filled and every tensor used,
#   otherwise loading stops and says which are left over.
# - `nanollm_jax.weights.load.load_params` goes through the list and puts each tensor on its *device*, the
#   processor that will compute with it and the memory beside that, in its final
#   dtype, before the next one is touched.
#
# ## Your engine
# The file is read by hand here too, and its tensors are put into the tree of parameters that the library has: queries, keys
# and values in one array, gate and up in another. What the config asks for and these lines do not compute is refused.

# %%
mine = grow(16)
loaded, library = mine.load(FOLDER), nano.load(dtype="float32").params
check("your engine: the same tree", jax.tree.structure(loaded.params) == jax.tree.structure(library))
check("the same numbers", all(map(np.array_equal, jax.tree.leaves(loaded.params), jax.tree.leaves(library))))

# %% [markdown]
# ## Exercises
# 1. Which bytes of the file hold the first number of `model.norm.weight`? Read it from there with nothing but `seek`
#    and `read`.
# 2. Change the last byte of the table's length and let the library open the file. What does it say?
# 3. A tied embedding is stored once and used twice (chapter 17). What is the difference in file size for a LLaMA with
#    128,256 pieces and D = 4,096, in bfloat16?

# %% tags=["answer"]
place = start + contents["model.norm.weight"]["data_offsets"][0]
with FILE.open("rb") as file:
    file.seek(place)
    two = file.read(2)
number = np.array([whole_number(two) << 16], np.uint32).view(np.float32)[0]
print(f"bytes {place:,} and {place + 1:,}: {two.hex(' ')}, which is {number}")
check("that is it", number == theirs["model.norm.weight"][0])

# %% tags=["answer"]
with tempfile.TemporaryDirectory() as folder:
    damaged = bytearray(FILE.read_bytes())
    damaged[7] = 1  # the highest byte of the length; all else is as it was
    (Path(folder) / "model.safetensors").write_bytes(damaged)
    try:
        open_checkpoint(Path(folder))
        check("a damaged file is refused", False)
    except nano.CheckpointError as error:
        print("ok   refused:", str(error).removeprefix(folder))
        said = int.from_bytes(damaged[:8], "little")
        check("for its length, which is more than all memory has", said > 2**50 and f" {said} " in str(error))

# %% tags=["answer"]
saved = 128_256 * 4_096 * 2
print(f"{saved:,} bytes, or {saved / 2**30:.2f} GiB")
check("two bytes each", saved == 128_256 * 4_096 * jnp.dtype(jnp.bfloat16).itemsize)

# %% [markdown]
# [Previous: 15 · Tokenizer](15_tokenizer.py) · [Contents](README.md) · [Next: 17 · Forward pass](17_forward_pass.py)
