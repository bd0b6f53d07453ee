# %% [markdown]
# # 03 · Memory layout: the same numbers in another order
#
# [Previous: 02 · Operations](02_operations.py) · [Contents](README.md) · [Next: 04 · Matrix products](04_matmul.py)
#
# ## The question
# Chapter 01: a tensor is a way of reading memory, and a transposition only changes two strides. Then it costs
# nothing. But does the *next* operation cost the same, when it reads the numbers in another order? An inference
# engine reads all weights for every piece of text that it writes, so this decides its speed.
#
# ## The idea
# A processor computes much faster than its memory answers. So it keeps copies of what was read lately in *caches*,
# small and fast memories of its own: L1, L2 and L3, each larger and slower than the one before.
#
# Memory comes to a cache in *lines* (*cache lines*), usually of 64 bytes: 16 float32 numbers. Whoever reads one number
# pays for the line. The next 15 numbers are there already. Whether that is of any use depends on the order of reading:
#
# - along a row of a matrix that is stored row by row (*row-major*), every sixteenth read needs a new line;
# - down a column, every read needs a new line, unless the lines of the column before are still in the cache.
#
# ## From scratch
# A cache in a few lines: it holds a number of lines, and throws away the one that was not used for the longest time.

# %%
from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
from chapter import BLUE, GREY, ORANGE, check, check_time, outcome, plt, predict, quick, same, save, seconds, table

import nanollm_jax as nano

LINE = 64  # bytes


def fetches(addresses, lines):
    """For each of these reads, addresses in bytes: does it have to go to memory, with a cache of so many lines?"""
    cache, found = OrderedDict(), []
    for address in addresses:
        line = address // LINE
        found.append(line not in cache)
        cache[line] = None
        cache.move_to_end(line)
        if len(cache) > lines:
            cache.popitem(last=False)
    return found


def misses(addresses, lines):
    """How many of these reads have to go to memory."""
    return sum(fetches(addresses, lines))


def addresses(shape, strides, order):
    """Every byte address of a matrix, strides in bytes; order says which axis is the outer loop."""
    outer, inner = (0, 1) if order == "rows" else (1, 0)
    return [i * strides[outer] + j * strides[inner] for i in range(shape[outer]) for j in range(shape[inner])]


check(
    "what was used lately stays: with two lines, A B A C A is three fetches", misses([0, 64, 0, 128, 0], lines=2) == 3
)

# %% [markdown]
# Here it reads a small matrix, in both orders:

# %% tags=["figure"]
tiny, room = np.zeros((8, 32), np.float32), 4  # [8 32] and so many lines in the cache: fewer than the matrix has rows
figure, axes = plt.subplots(2, 1, figsize=(5.6, 3.8))
for ax, (order, way) in zip(axes, {"rows": "along the rows", "columns": "down the columns"}.items(), strict=True):
    new = np.array(fetches(addresses(tiny.shape, tiny.strides, order), room))
    picture = new.reshape(8, 32) if order == "rows" else new.reshape(32, 8).T
    ax.pcolormesh(picture, vmin=-0.25, vmax=1.3, edgecolor="white", linewidth=1)
    ax.invert_yaxis()
    ax.set(title=f"{way}: {new.sum()} fetches for {new.size} numbers", aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    check(
        f"{way}: numbers for each fetch: {new.size / new.sum():g}",
        new.sum() * (16 if order == "rows" else 1) == new.size,
    )
save(figure, "03_lines")

# %% [markdown]
# ![Which reads of a small matrix fetch a line, along the rows and down the columns](figures/03_lines.png)
#
# *Each cell is a number. Blue: reading it fetches a line. Pale: its line is in the cache already. Along a row, one fetch
# serves sixteen numbers. Down a column, each number lies in another line; this cache holds four, and when the next column
# begins, the line that it needs has been thrown away.*
#
# Now a larger matrix, and caches of three sizes:

# %%
matrix = np.zeros((128, 128), np.float32)  # [128 128], row-major
count, lines_of_matrix = matrix.size, matrix.nbytes // LINE
rows = []
for lines in (64, 128, 256):
    found = [misses(addresses(matrix.shape, matrix.strides, order), lines) for order in ("rows", "columns")]
    rows.append([lines, f"{lines * LINE:,}", *(f"{n:,}" for n in found), f"{found[1] / found[0]:.0f}x"])
    check(f"{lines} lines, along the rows: every line is fetched once", found[0] == lines_of_matrix)
    # a column touches 128 lines; if the cache holds them all, the next 15 columns find them there
    expected = lines_of_matrix if lines >= matrix.shape[0] else count
    check(
        f"{lines} lines, down the columns: {'the same' if lines >= 128 else 'one fetch per number'}",
        found[1] == expected,
    )
table(f"Reading a matrix of {count:,} float32", ["lines in the cache", "bytes", "by rows", "by columns", "ratio"], rows)

# %% [markdown]
# The real thing next. NumPy tells where a tensor lies. One that reads the memory of another, in whatever order, is a *view*
# of it.

# %%
transposed = matrix.T  # [128 128]: a view, no number was moved
copied = np.ascontiguousarray(transposed)  # [128 128]: its own memory, row-major again
check("the view starts at the same address", transposed.ctypes.data == matrix.ctypes.data)
check("the view's strides are swapped", transposed.strides == matrix.strides[::-1] == (4, 512))
check("the copy has memory of its own", not np.shares_memory(copied, matrix) and copied.strides == (512, 4))
matrix[3, 5] = 7
check("a write shows in the view and not in the copy", transposed[5, 3] == 7 and copied[5, 3] == 0)
check("reshaping a view that is not row-major has to copy", not np.shares_memory(transposed.reshape(-1), matrix))

# %% [markdown]
# ## Measured: the stride
# Read equally many numbers each time, from one large array, but with larger and larger steps. The array is larger than
# the caches of most machines.

# %%
large = np.ones(2**20 if quick() else 2**26, np.float32)  # 256 MB
steps = [1, 2, 4, 8, 16, 32, 64]
reads = large.size // steps[-1]
parts = {step: large[: reads * step : step] for step in steps}  # views: [reads] numbers, `step` apart
check("each view has as many numbers", {part.size for part in parts.values()} == {reads})
per_read = {step: seconds(np.add.reduce, part) / reads * 1e9 for step, part in parts.items()}

# %% tags=["question"]
predict(
    "sum all numbers of the large array, then only every 16th. There are 16 times fewer: how many times faster is it?"
)

# %% tags=["answer"]
everything, sixteenth = seconds(np.add.reduce, large), seconds(np.add.reduce, large[::16])
print(f"all {large.size:,} numbers: {everything * 1e3:.1f} ms = {large.nbytes / everything / 1e9:.1f} GB/s")
print(f"every 16th: {sixteenth * 1e3:.1f} ms, {everything / sixteenth:.1f} times faster; it fetches the same lines")
outcome(everything / sixteenth, "times faster")
check_time("less than half of the sixteenfold was gained", everything / sixteenth < 8)
check_time("a step of 16 costs more per number than a step of 1", per_read[16] > 2 * per_read[1])
check_time("up to a step of 16 the cost grows by a larger factor than from there on",
           per_read[16] / per_read[1] > per_read[64] / per_read[16])  # fmt: skip

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(4.8, 3.8))
ax.plot(steps, list(per_read.values()), "o-", color=BLUE)
ax.axvline(16, color=GREY, linestyle=":")
ax.text(15.2, ax.get_ylim()[1], "one cache line", color=GREY, rotation=90, ha="right", va="top", size=9)
ax.set(
    xscale="log", ylabel="nanoseconds per number", xlabel="step between two reads, in float32 numbers", ylim=(0, None)
)
ax.set(xticks=steps, xticklabels=steps, title="Larger steps cost more per number")
ax.minorticks_off()
save(figure, "03_steps")

# %% [markdown]
# ![Time per number against the step between two reads](figures/03_steps.png)
#
# *Measured on the machine that made this page. The cost of a number grows with the step, most of all up to 16, from where on
# every read needs its own line.*
#
# ## Measured: the size
# Now read in random order, from tables of growing size. As long as the table fits in a cache, order should not matter
# much. Of a table four times as large as the cache, three of four reads should have to wait for memory.

# %%
sizes = [2**k for k in range(13, 16 if quick() else 28, 1)]  # bytes
picks = np.random.default_rng(0).integers(0, 2**62, 2**12 if quick() else 2**20)  # [1048576]
in_order = np.arange(picks.size)  # [1048576]
at_random, straight = (misses(4 * (places[:4096] % 4096), 4096 // 16 // 4) / 4096 for places in (picks, in_order))
check(f"in the cache from above, of such a table: {at_random:.0%} of reads at random fetch a line, {straight:.0%} in order",
      abs(at_random - 3 / 4) < 0.05 and straight == 1 / 16)  # fmt: skip
random_ns, ordered_ns = [], []
out = np.full(picks.size, np.nan, np.float32)
for size in sizes:
    source = np.ones(size // 4, np.float32)  # [size / 4]
    for places, times in ((picks % source.size, random_ns), (in_order % source.size, ordered_ns)):
        # "clip": so that NumPy writes into `out` at once
        times.append(seconds(lambda s, p: np.take(s, p, out=out, mode="clip"), source, places) / picks.size * 1e9)
caches = {}
for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):  # Linux says how large they are
    if (index / "size").exists() and (index / "type").read_text().strip() != "Instruction":  # of data, where it is said
        caches[f"L{(index / 'level').read_text().strip()}"] = int((index / "size").read_text().strip()[:-1]) * 1024
table(
    "Nanoseconds per number, table in one order and at random",
    ["table", "in order", "at random", "ratio"],
    [(f"{size / 1024:,.0f} kB", f"{o:.2f}", f"{r:.2f}", f"{r / o:.1f}x")
     for size, o, r in list(zip(sizes, ordered_ns, random_ns, strict=True))[::2]],
)  # fmt: skip
check_time("random reads of a large table cost more than of a small one", random_ns[-1] > 2 * random_ns[0])
check_time("reads in order hardly do", ordered_ns[-1] < 0.5 * random_ns[-1])

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(4.8, 3.8))
ax.plot(sizes, random_ns, "o-", color=ORANGE, label="at random", markersize=4)
ax.plot(sizes, ordered_ns, "o-", color=BLUE, label="in order", markersize=4)
ax.set(xscale="log", xlabel="size of the table", ylabel="nanoseconds per number", ylim=(0, None))
ticks = [2**14, 2**17, 2**20, 2**23, 2**26]
ax.set_xticks(ticks, [f"{t // 1024} kB" if t < 2**20 else f"{t // 2**20} MB" for t in ticks])
ax.minorticks_off()
for name, size in caches.items():
    ax.axvline(size, color=GREY, linestyle=":")
    ax.text(size * 0.93, ax.get_ylim()[1], name, color=GREY, ha="right", va="top", size=9)
ax.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
ax.set_title("Order matters once the caches are full")
save(figure, "03_memory")

# %% [markdown]
# ![Time per number against the size of the table, read in order and at random](figures/03_memory.png)
#
# *Measured on the same machine. The more of the table lies outside the caches (a dotted line is where one ends), the more a
# random read costs. The curve need not rise exactly at the dotted lines: the table probably shares each cache with
# everything else that runs. Reads in order stay cheap. Processors are built for that: they fetch the next lines before they
# are asked for.*
#
# ## What it means for a model
# The embedding is a table `[V D]`: one row for each piece of text. To look up a piece is to read one row. Stored the
# other way round, `[D V]`, the same numbers would be a column.


# %%
def lines_touched(count, stride):
    """Cache lines that hold `count` numbers, `stride` bytes apart, beginning at a line's start."""
    return len({i * stride // LINE for i in range(count)})


config = nano.load(dtype="float32").config
V, D = config.vocab_size, config.hidden_size
row, column = lines_touched(D, 4), lines_touched(D, 4 * V)
print(f"one row of [{V} {D}]: {row} lines. One column of [{D} {V}]: {column} lines, {column // row} times as many.")
check("a row fills its lines, a column wastes 15 of 16 places", (row, column) == (math.ceil(D * 4 / LINE), D))

# %% [markdown]
# ## In the engine
# - `nanollm_jax.ops.embedding.embed` reads rows. `nanollm_jax.ops.embedding.unembed` multiplies with the same table,
#   row by row, so one layout serves both.
# - A weight `[O I]` makes O numbers out of I (chapter 04), and is stored outputs first: each row makes one of the O, and
#   is read straight through. Of a weight with more axes `nanollm_jax.ops.linear.linear` makes such a matrix by merging
#   neighbours, which is a view. Where a CPU is faster with one of the two tensors transposed,
#   `nanollm_jax.ops.linear.product_on_cpu` transposes the small one, never the weight.
# - What the model remembers of a text is kept in the order in which it is read, and changed in place:
#   `nanollm_jax.cache.KVCache`. It is no cache of the processor, only called by the same name; chapter 20.
# - In JAX you do not set strides. You choose the order of the axes, and look at the compiled program for copies.
#
# ## Exercises
# 1. A matrix `[1000 1000]` of float32 is read down its columns. How large must a cache be for this to cost no more
#    than reading by rows?
# 2. How many lines have to be fetched for 1,000 numbers that are 1, 4, 16 and 32 numbers apart? Count them with `misses`.
#    From which step on does a number cost no more lines?
# 3. `x` is `[4096 4096]`. Sum each column, but read memory only in its order. Is that slower than the sum of each row?

# %% tags=["answer"]
print(f"It must hold one line for each of the 1000 rows: {1000 * LINE:,} bytes, for a matrix of {4 * 1000**2:,} bytes.")
walk = addresses((1000, 32), (4000, 4), "columns")  # 32 columns are enough to see it
check("with 1000 lines, 32 columns need 2 or 3 lines of each row", misses(walk, 1000) <= 3 * 1000)
check("with 999 lines every read is a miss", misses(walk, 999) == len(walk))

# %% tags=["answer"]
needed = {step: misses(range(0, 1000 * step * 4, step * 4), 64) for step in (1, 4, 16, 32)}
print("lines for 1,000 numbers:", needed)
check("from 16 on each has a line of its own, and cannot have more", needed[4] < needed[16] == needed[32] == 1000)
print(
    "If the measured curve goes on rising from there, lines are not all of it. What else it is, this chapter does not find out."
)

# %% tags=["answer"]
x = np.ones((256, 256) if quick() else (4096, 4096), np.float32)  # [4096 4096]
x[5] = np.arange(x.shape[1]) % 7  # so that columns differ


def sum_columns(x):
    """[R C] -> [C]: row after row, onto a running sum for each column."""
    sums = np.zeros(x.shape[1], x.dtype)
    for row in x:
        sums += row
    return sums


same("the sum of each column", sum_columns(x), x.sum(axis=0))
ways = {"columns, row after row": sum_columns, "columns, by NumPy": lambda x: x.sum(axis=0),
        "rows, by NumPy": lambda x: x.sum(axis=1)}  # fmt: skip
took = {name: seconds(way, x) for name, way in ways.items()}
for name, spent in took.items():
    print(f"{name}: {spent * 1e3:.2f} ms")
print(
    f"The first way pays for {len(x):,} calls from Python. NumPy, too, goes through its memory in order, in one call."
)
check_time("in this order columns take less than twice as long as rows",
           took["columns, by NumPy"] < 2 * took["rows, by NumPy"])  # fmt: skip

# %% [markdown]
# [Previous: 02 · Operations](02_operations.py) · [Contents](README.md) · [Next: 04 · Matrix products](04_matmul.py)
