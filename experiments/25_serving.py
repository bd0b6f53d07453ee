# %% [markdown]
# # 25 · Serving: rows that come and go
#
# [Previous: 24 · Quantisation](24_quantisation.py) · [Contents](README.md) · [Next: 26 · Speculation](26_speculation.py)
#
# ## The question
# Many people ask one model. They come when they like, some want a word and some a page, and a batch is what makes the
# machine worth its price (chapter 21). But so far all texts of a batch began together, and it was over when the longest of
# them was. How does an engine write many texts at once when they come and go? And does an answer depend on who else happens
# to be there? It should not.
#
# ## The idea
# A batch has B rows, one text in each. There are two ways to fill them:
#
# - a *static batch*: wait for B requests, write them together until the longest one is done, then take the next B. A row
#   whose text has ended idles until then, and a request that comes in between waits;
# - *continuous batching* (Yu et al. 2022, "Orca"): after every step, a row whose text has ended is given to a request that
#   waits. The cache of each row has a length of its own, so it does not matter when the others began.
#
# What must not happen is that a row feels its neighbours. If an answer is a function of its request alone, to the last
# bit, then a failure can be reproduced, a test can be trusted, and nobody's text changes because a stranger came in. An
# engine does not have this property by itself: below are three ways to lose it.

# %%
from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import engine
import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, GREY, ORANGE, RED, check, interactive, outcome, plt, predict, quick, same, save, table

import nanollm_jax as nano
from nanollm_jax.engine import buckets

random = np.random.default_rng(25)

# %% [markdown]
# ## From scratch
# ### Who sits where
# First without a model: of a request, all that counts is the step at which it comes and how many tokens its answer has. One
# step writes a token in every row that has a text.


# %%
class Visit(NamedTuple):
    """A request that was served: in which row, from which step to which."""

    row: int
    begin: int
    end: int


def static(requests, B):
    """[(arrival, length)] in order of arrival -> a Visit for each"""
    visits, now = [], 0
    for first in range(0, len(requests), B):
        batch = requests[first : first + B]
        now = max(now, *(arrival for arrival, _ in batch))  # wait until all of them are there
        visits += [Visit(row, now, now + length) for row, (_, length) in enumerate(batch)]
        now += max(length for _, length in batch)
    return visits


def continuous(requests, B):
    """[(arrival, length)] in order of arrival -> a Visit for each"""
    visits, free_at = [], [0] * B
    for arrival, length in requests:
        row = min(range(B), key=lambda row: free_at[row])  # the one that is free first
        begin = max(arrival, free_at[row])
        visits.append(Visit(row, begin, begin + length))
        free_at[row] = begin + length
    return visits


def waited(visits, requests):
    """How many steps each request waits for a row."""
    return [visit.begin - arrival for visit, (arrival, _) in zip(visits, requests, strict=True)]


# %% [markdown]
# Five requests in two rows, small enough to be followed with a finger:

# %% tags=["figure"]
FIVE = {"A": (0, 3), "B": (0, 9), "C": (1, 4), "D": (2, 5), "E": (4, 3)}  # the step at which each comes, and its tokens
colours = dict(zip(FIVE, (BLUE, ORANGE, GREEN, RED, GREY), strict=True))


def draw_rows(ax, visits, names, colours, size):
    """A bar for each visit, in its row; white is a row that does nothing."""
    for visit, name, colour in zip(visits, names, colours, strict=True):
        ax.barh(visit.row, visit.end - visit.begin, left=visit.begin, height=0.8, color=colour, edgecolor="white")
        ax.text((visit.begin + visit.end) / 2, visit.row, name, ha="center", va="center", color="white", size=size)
    ax.set(ylabel="row", yticks=range(1 + max(visit.row for visit in visits)))
    ax.invert_yaxis()


figure, axes = plt.subplots(2, 1, figsize=(5.6, 3.6), sharex=True)
for ax, way in zip(axes, (static, continuous), strict=True):
    visits = way(list(FIVE.values()), 2)
    a, b, c, *_ = visits
    waits = waited(visits, FIVE.values())
    check(f"{way.__name__}: C sits down when {'B' if way is static else 'A'} has ended, and has waited until then",
          c.begin == (b if way is static else a).end == waits[2] + FIVE["C"][0])  # fmt: skip
    check("in the row of A", c.row == a.row)
    draw_rows(ax, visits, FIVE, colours.values(), 11)
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    check("each bar is a visit", bars == [(visit.begin, visit.end) for visit in visits])
    ax.set(title=f"{way.__name__}: {max(visit.end for visit in visits)} steps, C waits for {waits[2]} of them")
axes[1].set(xlabel="step", xticks=range(0, 19, 3))
save(figure, "25_five")

# %% [markdown]
# ![Five requests in two rows, in static batches and in a continuous one](figures/25_five.png)
#
# *A bar is a text, from its first token to its last; white is a row that does nothing. In a static batch A is done early, but
# its row idles until B has ended, and C, D and E wait. In a continuous one the row of A is given to C at once.*
#
# Now with more of them, whose times and lengths are drawn at random:

# %%
B = 4
arrivals = np.cumsum(random.geometric(0.18, size=24))
lengths = random.geometric(1 / 24, size=24) + 3
requests = [(int(arrival), int(length)) for arrival, length in zip(arrivals, lengths, strict=True)]

# %% tags=["question"]
predict(
    f"24 requests of {lengths.min()} to {lengths.max()} tokens, 4 rows: how many times longer does a static batch take for all?"
)

# %% tags=["answer"]
ways = {"static": static(requests, B), "continuous": continuous(requests, B)}
rows, took = [], {}
for name, visits in ways.items():
    took[name] = max(visit.end for visit in visits)
    used = sum(visit.end - visit.begin for visit in visits) / (B * took[name])
    waits = waited(visits, requests)
    rows.append([name, took[name], f"{used:.0%}", f"{np.mean(waits):.0f}", max(waits)])
    check(f"{name}: nobody begins before coming", min(waits) >= 0)
    same(f"{name}: of all rows at all steps, those in use are the tokens", used * B * took[name], lengths.sum(), 1e-12)
    for row in range(B):  # nobody sits on somebody else's knees
        sat = sorted(visit for visit in visits if visit.row == row)
        check(f"{name}, row {row}: one after the other", all(a.end <= b.begin for a, b in pairwise(sat)))
table("24 requests in 4 rows", ["", "steps", "rows in use", "mean wait", "longest wait"], rows)
outcome(took["static"] / took["continuous"], "times as many steps with static batches")
check("continuous is sooner done", took["continuous"] < took["static"])
check("nobody is served later than in a static batch",
      all(b.begin <= a.begin for a, b in zip(*ways.values(), strict=True)))  # fmt: skip

# %% tags=["figure"]
figure, axes = plt.subplots(2, 1, figsize=(10, 4), sharex=True)
for ax, (name, visits) in zip(axes, ways.items(), strict=True):
    draw_rows(ax, visits, range(24), [(BLUE, ORANGE, GREEN, RED)[number % 4] for number in range(24)], 7)
    ax.set(title=f"{name}: {took[name]} steps")
axes[1].set_xlabel("step")
save(figure, "25_rows")

# %% [markdown]
# ![Which request sits in which row at which step, in static batches and in a continuous one](figures/25_rows.png)
#
# *As above: a bar is a text, and white is a row that does nothing; the colours only tell neighbours apart. Both serve the same
# requests in the same order.*

# %% tags=["figure"]
interactive(
    "rows",
    {
        "rows": B,
        "requests": [{"arrival": arrival, "length": length} for arrival, length in requests],
        "ways": [{"name": name, "visits": visits} for name, visits in ways.items()],
    },
    "Step from one event to the next, or play: who comes, who waits, and which row takes whom.",
)

# %% [markdown]
# ### The real thing
# Now with a model, on the engine that you have built ([engine.py](engine.py)). A `Server` has B rows with a cache each,
# and two programs of fixed shapes: one reads a prompt into a cache of one row, one writes a token in all rows. A row
# without a request takes part in every step too, and what it writes is thrown away.


# %%
FOLDER = Path(nano.__file__).parent / "assets/nano-stories"
model = engine.load(FOLDER)
S = 64  # positions of a row
SAMPLING = engine.Sampling(temperature=0.8, top_p=0.95)


class Request(NamedTuple):
    """What somebody asks for."""

    prompt: str
    new_tokens: int
    seed: int


def draw(logits, seed, position):
    """logits [V] -> the token that comes next, and ln p of it"""
    token = engine.draw(logits, SAMPLING, seed, position)
    return token, jax.nn.log_softmax(logits)[token]


@partial(jax.jit, donate_argnames="cache")
def read(params, tokens, count, cache, seed):
    """A prompt [T] of `count` tokens into the empty cache of one row -> its first token, ln p, cache"""
    logits, cache = engine.forward(params, tokens, count, cache, model.config)
    return *draw(logits, seed, cache.length), cache


@partial(jax.jit, donate_argnames="cache")
def write(params, tokens, cache, seeds):
    """One more token in each row.  tokens [B], caches with B in front, seeds [B] -> tokens [B], ln p [B], cache"""

    def one(token, cache, seed):
        logits, cache = engine.forward(params, token[None], 1, cache, model.config)
        return *draw(logits, seed, cache.length), cache

    return jax.vmap(one)(tokens, cache, seeds)


class Server:
    """B rows of one model. step() is all that happens: who waits sits down, and every row writes a token."""

    def __init__(self, B):
        empty = engine.init_cache(model.params, S)
        self.cache = jax.tree.map(lambda leaf: jnp.stack([leaf] * B), empty)
        self.rows, self.waiting, self.steps = [None] * B, [], 0  # requests with their answers, and steps so far
        self.tokens, self.seeds = np.zeros(B, np.int32), np.zeros(B, np.uint32)

    def submit(self, request):
        """Take a request in -> its answer, still empty: a list that will have its tokens, with ln p of each."""
        self.waiting.append((request, answer := []))
        return answer

    def step(self):
        for row, sitting in enumerate(self.rows):
            if sitting is None and self.waiting:
                self.sit(row, *self.waiting.pop(0))
        tokens, logprobs, self.cache = write(model.params, self.tokens, self.cache, self.seeds)
        self.tokens, self.steps = np.array(tokens), self.steps + 1
        for row, sitting in enumerate(self.rows):
            if sitting is not None:
                self.take(row, int(tokens[row]), float(logprobs[row]))

    def sit(self, row, request, answer):
        """Read a prompt, alone, and put what was read into the row."""
        ids = model.tokenizer.encode(request.prompt)
        padded = np.zeros(16, np.int32)
        padded[: len(ids)] = ids
        token, logprob, one = read(model.params, padded, len(ids), engine.init_cache(model.params, S), request.seed)
        self.cache = jax.tree.map(lambda all_rows, leaf: all_rows.at[row].set(leaf), self.cache, one)
        self.rows[row], self.tokens[row], self.seeds[row] = (request, answer), token, request.seed
        self.take(row, int(token), float(logprob))

    def take(self, row, token, logprob):
        """Note a token, and free the row behind the last one."""
        request, answer = self.rows[row]
        answer.append((token, logprob))
        if token == model.config.eos_id or len(answer) == request.new_tokens:
            self.rows[row] = None

    def run(self, requests):
        answers = [self.submit(request) for request in requests]
        while self.waiting or any(row is not None for row in self.rows):
            self.step()
        return answers


PROMPTS = [
    "Once upon a time",
    "Lily and her dog",
    "The bird was sad because",
    "Tom had",
    "One day, a big",
    "In the forest",
]
asked = [
    Request(prompt, 3 + int(random.integers(2, 6 if quick() else 20)), seed) for seed, prompt in enumerate(PROMPTS)
]
server = Server(B)
together = server.run(asked)
for request, answer in zip(asked, together, strict=True):
    print(
        f"{request.prompt}{b''.join(model.tokenizer.token_bytes(token) for token, _ in answer).decode(errors='replace')}"
    )
library = nano.load(dtype="float32")
theirs = nano.generate(
    library, PROMPTS, max_new_tokens=[request.new_tokens for request in asked],
    sampling=nano.Sampling(temperature=0.8, top_p=0.95), seed=[request.seed for request in asked],
)  # fmt: skip
ours = [[(token, logprob) for token, logprob in answer if token != model.config.eos_id] for answer in together]
check("each answer is what nanollm_jax.generate writes",
      [[token for token, _ in answer] for answer in ours] == [answer.token_ids for answer in theirs])  # fmt: skip
same("with the same ln p", [logprob for answer in ours for _, logprob in answer],
     [logprob for answer in theirs for logprob in answer.logprobs], 1e-4)  # fmt: skip
drawn = [(0, len(answer) - 1) for answer in together]  # all came at once; reading a prompt gives the first token
steps = {way.__name__: max(visit.end for visit in way(drawn, B)) for way in (static, continuous)}
print(f"{server.steps} steps; in static batches {steps['static']}")
check("as many steps as a continuous batch takes, and fewer than static ones",
      server.steps == steps["continuous"] < steps["static"])  # fmt: skip

# %% [markdown]
# ## The answer must not depend on the company
# Each of the requests once more, alone in a server of as many rows, and in another order:

# %%
alone = [Server(B).run([request])[0] for request in asked]
check("alone: the same tokens and the same ln p, bit for bit", alone == together)
turned = Server(B).run(asked[::-1])[::-1]
check("in another order, in other rows, beside others: bit for bit", turned == together)
check("asked for twice at once: the same answer twice", Server(B).run(asked[:1] * 2) == together[:1] * 2)

# %% [markdown]
# A server that served who came last first would pass all this. So who gets a row, and when is it free again?

# %%
server = Server(B)
begun = [server.submit(request) for request in asked]
server.step()
check("who came first sits down first", [bool(answer) for answer in begun] == [n < B for n in range(len(asked))])
for label, tokens in (("the last one that was asked for", [7, 7]), ("the one that ends a text", [model.config.eos_id])):
    server.rows[0] = Request("", 2, 0), []
    busy = []
    for token in tokens:
        busy.append(server.rows[0] is not None)
        server.take(0, token, 0.0)
    check(f"a row is free behind {label}, and no token sooner", all(busy) and server.rows[0] is None)

# %% [markdown]
# Here are three naive ways to write the first request beside others:
#
# - *as many rows as there are requests*: a program for one row may add in another order than one for four;
# - *padding that is seen*: shorter prompts are filled up in front, to the length of the longest, and nothing hides it;
# - *one stream of chance*: a step makes the random numbers of all rows together, of one `jax.random.key` and not of each
#   request's own seed (chapter 18). So a request's numbers depend on its row.

# %% tags=["question"]
predict("which of the three changes an answer at once, and which only now and then?")


# %% tags=["answer"]
@jax.jit
def forward(params, tokens, count, cache):
    """tokens [B T], of which count [B] are real, caches with B in front -> ln p of what comes next [B V], cache"""
    logits, cache = jax.vmap(partial(engine.forward, config=model.config), (None, 0, 0, 0))(
        params, tokens, count, cache
    )
    return jax.nn.log_softmax(logits), cache


def empty_rows(B):
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * B), engine.init_cache(model.params, S))


def with_shared_chance(tokens, count, steps):
    """tokens [B T] -> tokens [B steps], all drawn from the numbers of one key"""
    B, written = len(tokens), []
    logprobs, cache = forward(model.params, tokens, count, empty_rows(B))
    for key in jax.random.split(jax.random.key(1), steps):
        drawn = jax.random.categorical(key, logprobs / SAMPLING.temperature)
        written.append(np.array(drawn))
        one = np.pad(written[-1][:, None], ((0, 0), (0, tokens.shape[1] - 1)))  # one real token: the same program
        logprobs, cache = forward(model.params, one, np.ones(B, np.int32), cache)
    return np.array(written).T


ids = [model.tokenizer.encode(prompt) for prompt in PROMPTS[:B]]
T, counts = max(map(len, ids)), np.array([len(row) for row in ids])
behind = np.array([row + [0] * (T - len(row)) for row in ids])  # what is behind the real ones is never seen
before = np.array([[0] * (T - len(row)) + row for row in ids])
one_row, four_rows, seen_padding = (
    np.asarray(forward(model.params, tokens, count, empty_rows(len(tokens)))[0][0])
    for tokens, count in ((behind[:1], counts[:1]), (behind, counts), (before, np.full(B, T)))
)


def of_the_first(order):
    """What the first prompt's text becomes, with the prompts in this order."""
    tokens, count, row = behind[order], counts[order], order.index(0)
    logprobs, _ = forward(model.params, tokens, count, empty_rows(B))
    same("before the first draw it is the same in every row", logprobs[row], four_rows)
    return with_shared_chance(tokens, count, 8)[row].tolist()


here, beside, there = of_the_first([0, 1, 2, 3]), of_the_first([0, 3, 2, 1]), of_the_first([3, 2, 1, 0])
differ = {
    "as many rows as requests": np.abs(four_rows - one_row).max(),
    "padding that is seen": np.abs(seen_padding - one_row).max(),
}
table(
    "ln p of the first token, alone and beside three others",
    ["", "largest difference"],
    [*((name, f"{value:.1e}") for name, value in differ.items()), ("the Server above", "0, checked above")],
)
print("one stream of chance, in the first row:", repr(library.tokenizer.decode(here)))
print("                      in the last row: ", repr(library.tokenizer.decode(there)))
same("another number of rows: only rounding", four_rows, one_row, 1e-4)
check("padding that is seen is another text", differ["padding that is seen"] > 0.1)
cache = nano.init_cache(library.config, batch=1, capacity=T, dtype="float32")
theirs = nano.forward(library.params, jnp.asarray(before[:1]), cache, config=library.config)[0][0, -1]
same("the one that begins with the padding", seen_padding, jax.nn.log_softmax(theirs), 1e-4)
check("shared chance: another row, another answer", here != there)
check("and in the same row the same, whoever sits in the others", here == beside)

# %% [markdown]
# The rounding of the first way is small and treacherous: it changes no token until two of them are nearly equally
# probable, or a random number falls just between the stretches of two (chapter 18). From there on the texts differ. That is
# rare, and a test that does not look for it will not meet it. So the number of rows of an engine is fixed. So is all else
# that decides in which order numbers are added: how many positions of a row are added up at a time (in the library
# `nanollm_jax.ops.blocks.SLOTS`, for long rows as for short ones), and where a long prompt is cut (the next section).
#
# ## Long prompts
# While a prompt is read, all other rows wait, and the longer it is, the longer they do. So a long prompt
# is read in *pieces* of so many tokens, and between two of them every row writes.

# %%
half, text = T // 2, np.array([model.tokenizer.encode("Lily had a red ball and a blue kite.")[:T]])  # [1 T]
at_once, _ = forward(model.params, text, np.array([T]), empty_rows(1))
_, held = forward(model.params, text, np.array([half]), empty_rows(1))
rest = np.pad(text[:, half:], ((0, 0), (0, half)))
in_pieces, _ = forward(model.params, rest, np.array([T - half]), held)
same("two pieces, the same logits but for rounding", in_pieces, at_once, 1e-4)
PIECE, PROMPT = buckets.PIECE, 4096  # tokens: the library's pieces, and a long prompt
print(f"whoever is writing waits for {PROMPT} tokens at once, or {PROMPT // PIECE} times for {PIECE}")

# %% [markdown]
# ## In the engine
# - `nanollm_jax.engine.engine.Engine` is this `Server`: `submit`, `cancel`, and `step`, which knows no clock and no
#   network. `nanollm_jax.engine.slots.write_tokens` writes a chunk of tokens (chapter 19) in all rows; a row without a
#   request writes nothing into the cache.
# - Where nobody looks before an answer has ended, prompts are read first and chunks are long. Where somebody reads along,
#   chunks are short, and shorter still between two pieces of a prompt (`nanollm_jax.engine.buckets`).
# - Pieces end at multiples of a fixed number of tokens, `nanollm_jax.engine.buckets.PIECE`, whatever was read before. So where
#   two prompts begin alike, the keys and values of those pieces need to be computed once only (`nanollm_jax.engine.prefix`),
#   and the second answer still has the same bits.
# - `nanollm_jax.generate` is the same loop: all prompts are submitted, and steps are taken until all have ended.
# - The tests of this promise are a thousand random schedules of arrivals and cancellations, each answer compared with
#   the one alone (`make laws`). `nanollm serve` is this loop behind an HTTP server.
#
# ## Exercises
# 1. Four texts of 10, 20, 30 and 100 tokens in a static batch of four. Which share of what is computed is thrown away?
# 2. Rows without a request take part in each step with whatever their cache holds. Fill the caches of all rows with NaN
#    before the first request comes. Does its answer change?
# 3. How many rows fit into 8 GB, with Llama 3.1 8B's cache in 16 bits and 8,192 positions a row (chapter 20)?

# %% tags=["answer"]
texts = [(0, 10), (0, 20), (0, 30), (0, 100)]
share = 1 - sum(length for _, length in texts) / (4 * max(visit.end for visit in static(texts, 4)))
print(f"{share:.0%}: 400 tokens are computed and 160 wanted")
check("three fifths", np.isclose(share, 0.6))

# %% tags=["answer"]
server = Server(B)
server.cache = server.cache._replace(keys=server.cache.keys * jnp.nan, values=server.cache.values * jnp.nan)
check("all of them are NaN", all(jnp.isnan(kept).all() for kept in (server.cache.keys, server.cache.values)))
check("not one bit: sums go over the positions of one row, never over rows", server.run(asked[:1])[0] == alone[0])

# %% tags=["answer"]
each = 2 * 32 * 8 * 128 * 2 * 8192  # keys and values, L, K, H, bytes, positions
print(f"{each / 2**30:.0f} GiB a row: {int(8e9 // each)} rows")
check("seven", 8e9 // each == 7)

# %% [markdown]
# [Previous: 24 · Quantisation](24_quantisation.py) · [Contents](README.md) · [Next: 26 · Speculation](26_speculation.py)
