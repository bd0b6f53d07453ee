# %% [markdown]
# # 18 · Sampling: what each rule removes, and what it leaves to chance
#
# [Previous: 17 · Forward pass](17_forward_pass.py) · [Contents](README.md) · [Next: 19 · Generation](19_generation.py)
#
# ## The question
# After every token the model gives a score, a *logit*, to each piece of its vocabulary. Softmax turns the logits into
# probabilities, and one piece becomes the next token. Which one? Always the best would be simple, but such texts soon
# go in circles (chapter 19). Drawing by the probabilities alone picks something absurd now and then: each of the many
# poor pieces is improbable, all of them together are not.
#
# Between the two lie the rules that every engine offers. They decide whether a text is dull, lively or broken. A user who
# sets them wants exactly what their definition says.
#
# ## The idea
# Everything called *sampling* changes the logits before the draw:
#
# - *penalties* lower the logits of pieces that have occurred already;
# - *temperature* divides all logits: below 1 the best piece wins more often, above 1 less often;
# - *top-k* keeps the k best pieces;
# - *top-p*, also called nucleus sampling, keeps the best pieces, no more than are needed to have probability p together;
# - *min-p* keeps the pieces that are at least p times as probable as the best one.
#
# A piece that is removed gets the logit `-inf`, so its probability is 0 (chapter 09), and the rest share what it had.

# %%
from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREEN, ORANGE, check, interactive, outcome, plt, predict, quick, same, save, table
from engine_steps import grow

import nanollm_jax as nano
from nanollm_jax import sampling as smp

PROMPT = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her"
)
model = nano.load(dtype="float32")
ids = np.array(model.tokenizer.encode(PROMPT))  # [T]
V = model.config.vocab_size
cache = nano.init_cache(model.config, batch=1, capacity=len(ids), dtype="float32")
everywhere = np.asarray(nano.forward(model.params, jnp.asarray(ids)[None], cache, config=model.config)[0][0])  # [T V]
pieces = [model.tokenizer.piece(int(token)) for token in ids]
PLACE = pieces.index("▁named")
logits = everywhere[PLACE]  # [V]: what may follow "a little girl named"
shape_logits, draw = jax.jit(smp.shape_logits), jax.jit(smp.draw)  # compiled once for each number of rows
random = np.random.default_rng(18)

# %% [markdown]
# ## From scratch
# Each rule in its plainest form, on one vector of V logits.


# %%
def softmax(scores):
    """[V] -> [V]; the maximum goes first so that exp never overflows (chapter 09)"""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def top_k(scores, k):
    """Keep the k best."""
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    kept = np.full_like(scores, -np.inf)
    for token in order[:k]:
        kept[token] = scores[token]
    return kept


def top_p(scores, p):
    """Walk down from the best; keep each as long as those before it have less than p together."""
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    probabilities, before = softmax(scores), 0.0
    kept = np.full_like(scores, -np.inf)
    for token in order:
        if before >= p:
            break
        kept[token] = scores[token]
        before += probabilities[token]
    return kept


def min_p(scores, p):
    """Keep what is at least p times as probable as the best."""
    probabilities = softmax(scores)
    return np.where(probabilities >= p * probabilities.max(), scores, -np.inf)


BY_HAND = {
    "the model itself": (logits, nano.Sampling()),
    "temperature 0.5": (logits / 0.5, nano.Sampling(temperature=0.5)),
    "temperature 2": (logits / 2, nano.Sampling(temperature=2.0)),
    "top-k 5": (top_k(logits, 5), nano.Sampling(top_k=5)),
    "top-p 0.9": (top_p(logits, 0.9), nano.Sampling(top_p=0.9)),
    "min-p 0.05": (min_p(logits, 0.05), nano.Sampling(min_p=0.05)),
    "all together": (
        min_p(top_p(top_k(logits / 0.8, 8), 0.9), 0.02),
        nano.Sampling(0.8, top_k=8, top_p=0.9, min_p=0.02),
    ),
}

# %% tags=["question"]
predict(
    f"after 'a little girl named', of {V:,} pieces: how many does each of the rules keep, top-k 5, top-p 0.9, min-p 0.05?"
)

# %% tags=["answer"]
best = np.argsort(-logits)[:6]
nothing = smp.no_history(1, V)  # no token has occurred yet
# The library works on a batch of B rows: `setting.rows(B, V)` makes arrays of a setting, a value for each row.
rows = []
for name, (scores, setting) in BY_HAND.items():
    ours = shape_logits(jnp.asarray(logits)[None], setting.rows(1, V), nothing)[0]
    check(f"{name}: the library keeps the same pieces", np.array_equal(np.isfinite(ours), np.isfinite(scores)))
    same(f"{name}: the same probabilities", jax.nn.softmax(ours), softmax(scores))
    rows.append([name, np.isfinite(scores).sum(), *(f"{p:.1%}" for p in softmax(scores)[best])])
table("what is left", ["setting", "pieces left", *(model.tokenizer.piece(int(i)) for i in best)], rows)
outcome(np.isfinite(BY_HAND["top-p 0.9"][0]).sum(), "pieces with top-p 0.9")
left_over = softmax(logits)[np.isfinite(BY_HAND["top-p 0.9"][0])]
check(
    "top-p keeps at least 0.9, and would not without its last piece",
    left_over.sum() >= 0.9 > left_over.sum() - left_over.min(),
)

# %% tags=["figure"]
figure, axes = plt.subplots(2, 3, figsize=(9, 4.5), sharex=True, sharey=True)
ranks = np.argsort(-logits)[:40]
for ax, (name, (scores, _)) in zip(axes.flat, BY_HAND.items(), strict=False):
    ax.bar(range(40), softmax(logits)[ranks], color="#d5d9de", width=1)
    ax.bar(range(40), softmax(scores)[ranks], color=ORANGE, width=0.6)
    ax.set(title=name, yscale="log", ylim=(1e-5, 1))
    heights = [bar.get_height() for bar in ax.patches]  # 40 grey ones, then 40 orange ones
    check(f"{name}: the first bar is the highest, and there are as many as pieces left, or 40",
          heights[40] == max(heights[40:])
          and np.count_nonzero(heights[40:]) == min(40, np.isfinite(scores).sum()))  # fmt: skip
figure.supxlabel("piece, from the most probable on")
figure.supylabel("probability")
save(figure, "18_rules")

# %% [markdown]
# ![The probabilities of forty pieces under six settings](figures/18_rules.png)
#
# *Grey: the model itself. Orange: what a setting makes of it. A missing orange bar is a piece that is never drawn.*
#
# Is the model as unsure at every place? A name can be many things. After "Once upon a" there is only one. So the same rule
# does different things at different places. Here are the three cuts at every place of the prompt; the library gets all
# places as one batch.

# %%
CUTS = {
    "top-k 5": nano.Sampling(top_k=5),
    "top-p 0.9": nano.Sampling(top_p=0.9),
    "min-p 0.05": nano.Sampling(min_p=0.05),
}
T = len(ids)
nothing_anywhere = jax.tree.map(lambda x: jnp.repeat(x, T, axis=0), nothing)
counts = {}
for name, setting in CUTS.items():
    shaped = shape_logits(jnp.asarray(everywhere), setting.rows(T, V), nothing_anywhere)  # [T V]
    counts[name] = np.isfinite(shaped).sum(-1)  # [T]
by_hand = [np.isfinite(top_p(row, 0.9)).sum() for row in everywhere]
check("top-p at every place, by hand", np.array_equal(by_hand, counts["top-p 0.9"]))
by_hand = [np.isfinite(min_p(row, 0.05)).sum() for row in everywhere]
check("and min-p", np.array_equal(by_hand, counts["min-p 0.05"]))
check("top-k keeps 5 everywhere, sure or not", (counts["top-k 5"] == 5).all())
upon = pieces.index("▁upon") + 1
check("after 'Once upon a' one piece has all but a thousandth, and top-p leaves no other", pieces[upon] == "▁a"
      and softmax(everywhere[upon]).max() > 0.999 and counts["top-p 0.9"][upon] == 1)  # fmt: skip
check("after 'named' there are more than five", min(counts[name][PLACE] for name in ("top-p 0.9", "min-p 0.05")) > 5)
print(f"top-p keeps between {counts['top-p 0.9'].min()} and {counts['top-p 0.9'].max()} pieces, min-p between "
      f"{counts['min-p 0.05'].min()} and {counts['min-p 0.05'].max()}")  # fmt: skip

figure, ax = plt.subplots(figsize=(11, 3.6))
for (name, found), colour, shift in zip(counts.items(), (BLUE, ORANGE, GREEN), (-0.27, 0, 0.27), strict=True):
    ax.bar(np.arange(T) + shift, found, width=0.27, color=colour, label=name, bottom=0)
ax.set_xticks(range(T), pieces, rotation=60, ha="right", fontsize=8)
ax.set(
    yscale="log",
    ylim=(0.8, None),
    ylabel="pieces that are left",
    title="how many pieces may follow each piece of the prompt",
)
ax.legend(ncols=3, loc="upper right")
save(figure, "18_places")

# %% [markdown]
# ![How many pieces each rule leaves at every place of the prompt](figures/18_places.png)
#
# *top-k is blind to how sure the model is: it offers five pieces after "Once upon a", though four of them have less
# than a thousandth together, and cuts a list of names after five. top-p and min-p follow the model.*

# %% tags=["figure"]
surest, widest = int(counts["top-p 0.9"].argmin()), int(counts["top-p 0.9"].argmax())
read = {t: model.tokenizer.decode(ids[max(0, t - 3) : t + 1].tolist()).strip() for t in (PLACE, surest, widest)}
check("each text ends with the piece of its place", all(t.endswith(pieces[n].strip("▁")) for n, t in read.items()))
interactive(
    "sampling",
    {
        "pieces": [model.tokenizer.piece(token).replace("▁", " ") for token in range(V)],
        "places": [{"text": text, "logits": np.round(np.float64(everywhere[t]), 5)} for t, text in read.items()],
    },
    "Set the rules yourself. Grey is the model itself, orange what your setting makes of it.",
)

# %% [markdown]
# ## Penalties
# Three ways to keep a text from repeating itself. All look at which tokens have occurred:
#
# - *repetition penalty*: a positive logit is divided by it, a negative one multiplied, for every token of the prompt
#   or the answer (Keskar et al. 2019, arXiv:1909.05858);
# - *presence penalty*: subtracted once from the logit of every token that the answer has;
# - *frequency penalty*: subtracted from it as often as the answer has the token.


# %%
def penalize(scores, prompt, answer, repetition=1.0, presence=0.0, frequency=0.0):
    """scores [V], prompt and answer lists of tokens -> [V]"""
    out = scores.copy()
    for token in set(prompt) | set(answer):
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
    for token in set(answer):
        out[token] -= presence + frequency * answer.count(token)
    return out


prompt = ids.tolist()
written = [int(best[0]), int(best[1]), int(best[0]), int(best[0])]  # as if the best piece had come three times
past = smp.read(smp.no_history(1, V), jnp.asarray([prompt]), jnp.asarray([len(prompt)]))
for token in written:
    past = smp.remember(past, jnp.asarray([token]))

rows = [["nothing", *(f"{p:.1%}" for p in softmax(logits)[best])]]
for penalties in (
    {"repetition": 1.3},
    {"presence": 1.0},
    {"frequency": 1.0},
    {"repetition": 1.1, "presence": 0.5, "frequency": 0.3},
):
    hand = penalize(logits, prompt, written, **penalties)
    setting = nano.Sampling(**{f"{name}_penalty": value for name, value in penalties.items()})
    name = ", ".join(f"{name} {value}" for name, value in penalties.items())
    same(f"{name}: the library", smp.penalize(jnp.asarray(logits)[None], setting.rows(1, V), past)[0], hand)
    rows.append([name, *(f"{p:.1%}" for p in softmax(hand)[best])])
table(
    "the best pieces; the first has occurred 3 times in the answer, the second once",
    ["penalty", *(model.tokenizer.piece(int(i)) for i in best)],
    rows,
)

# %% [markdown]
# ## The draw
# Probabilities are a line of length 1, cut into V stretches. A random number between 0 and 1 falls into one of them.
# That is the plain way, and the library's: one random number for each token. `jax.random.categorical` uses another: add
# a random number from the *Gumbel distribution*, -ln(-ln u), to every logit, and take the largest. It draws with the
# same probabilities and needs no sum over the vocabulary, but V random numbers for each token.


# %%
def draw_by_line(scores, u):
    """scores [V], u between 0 and 1 -> token"""
    at = 0.0
    for token, probability in enumerate(softmax(scores)):
        at += probability
        if u < at:
            return token
    return int(np.argmax(scores))  # u was closer to 1 than the rounded sum


def draw_by_gumbel(scores, u):
    """scores [V], u [V] between 0 and 1 -> token"""
    return int(np.argmax(scores - np.log(-np.log(u))))


few = top_k(logits, 6)[best].astype(np.float64)  # [6]: six pieces, so that counting is quick
N = 4_000
# four standard deviations: that of a share counted in N draws is 0.5 / sqrt(N) at the most
tolerance = 4 * 0.5 / math.sqrt(N)
many = nano.Sampling().rows(N, 6)
nothing_said = smp.no_history(N, 6)
seeds, positions = jnp.full(N, 7, jnp.uint32), jnp.arange(N)
drawn = {
    "by the line": [draw_by_line(few, random.random()) for _ in range(N)],
    "by Gumbel": [draw_by_gumbel(few, random.random(6)) for _ in range(N)],
    "by the library": draw(jnp.tile(jnp.float32(few), (N, 1)), many, nothing_said, seeds, positions)[0],
}
for name, tokens in drawn.items():
    same(
        f"drawn {name}, {N:,} times", np.bincount(np.asarray(tokens), minlength=6) / N, softmax(few), tolerance, size=1
    )

# %% [markdown]
# The random numbers of the library come from two integers: the *seed*, which the user may choose, and the position of
# the token in its text. So a request draws the same tokens alone, in a batch with others, today and tomorrow.

# %%
settings = nano.Sampling(temperature=0.9, top_p=0.95)
batch = jnp.asarray(everywhere)  # [T V]: as if T requests stood here
seeds, positions = jnp.arange(T, dtype=jnp.uint32), jnp.arange(10, 10 + T)
together, _ = draw(batch, settings.rows(T, V), nothing_anywhere, seeds, positions)
shaped = shape_logits(batch, settings.rows(T, V), nothing_anywhere)
# the library's own random numbers: row n has seed n, and stands at position 10 + n
uniform = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(n), 10 + n))) for n in range(T)]
alone = [draw_by_line(np.float64(shaped[n]), uniform[n]) for n in range(T)]
check("each row draws what it would draw alone", np.array_equal(together, alone))

# %% [markdown]
# ## The same prompt over a grid
# How do temperature and top-p work together? `jax.vmap` turns a function of one setting into a function of many:
# written for one pair of numbers, it runs for a whole grid in one compiled program. What is measured is how many
# pieces there effectively are to choose from: e to the power of the *entropy*, the mean of -ln p in which each piece
# counts with its p. For n equally probable pieces it is n.


# %%
def choices(temperature, top_p):
    """Two numbers -> the effective number of pieces to choose from"""
    setting = dataclasses.replace(nano.Sampling().rows(1, V), temperature=temperature[None], top_p=top_p[None])
    p = jax.nn.softmax(smp.shape_logits(jnp.asarray(logits)[None], setting, nothing)[0])  # [V]
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)))


side = 6 if quick() else 32
temperatures, top_ps = np.linspace(0.2, 2, side, dtype=np.float32), np.linspace(0.3, 1, side, dtype=np.float32)
grid = np.asarray(
    jax.jit(jax.vmap(jax.vmap(choices, (None, 0)), (0, None)))(temperatures, top_ps)
)  # [temperature top_p]
for i, j in ((0, 0), (side // 2, side // 2), (side - 1, 1), (side - 1, side - 1)):
    p = softmax(top_p(logits / temperatures[i], top_ps[j]))
    expected = math.exp(-sum(x * math.log(x) for x in p if x > 0))
    same(f"temperature {temperatures[i]:.2f}, top-p {top_ps[j]:.2f}: by hand", grid[i, j] / expected, 1, 1e-3)

check("with high temperature and no cut, more than a hundred pieces", grid[-1, -1] > 100)

figure, ax = plt.subplots(figsize=(7.5, 4))
image = ax.pcolormesh(top_ps, temperatures, np.log10(grid), cmap="viridis", shading="nearest")
lines = ax.contour(top_ps, temperatures, grid, levels=[2, 5, 10, 20, 50, 100, 200, 500], colors="white", linewidths=0.8)
ax.clabel(lines, fmt="%d")
ax.set(xlabel="top-p", ylabel="temperature", title="pieces to choose from, effectively, after 'a little girl named'")
bar = figure.colorbar(image, ticks=[0, 1, 2, 3])
bar.ax.set_yticklabels(["1", "10", "100", "1,000"])
save(figure, "18_grid")

# %% [markdown] tags=["opening"]
# ![Effective number of pieces over temperature and top-p](figures/18_grid.png)
#
# *Along a white line the choice is equally wide. A high temperature needs a strict top-p: at the upper right, more
# than a hundred pieces may follow where a name is wanted.*
#
# ## What it does to a story
# Six rows of one batch, each with its own settings and the same seed; *greedy* is always to take the best piece. Settings
# are arrays inside the compiled program, so this costs one compilation and not six.

# %%
stories = {
    "greedy": (0.0, 1.0, 1.0),
    "greedy, repetition penalty 1.3": (0.0, 1.0, 1.3),
    "temperature 0.5": (0.5, 1.0, 1.0),
    "temperature 1": (1.0, 1.0, 1.0),
    "temperature 2": (2.0, 1.0, 1.0),
    "temperature 2, top-p 0.6": (2.0, 0.6, 1.0),
}
if not quick():
    temperature, top, repetition = (list(column) for column in zip(*stories.values(), strict=True))
    settings = nano.Sampling(temperature=temperature, top_p=top, repetition_penalty=repetition)
    answers = nano.generate(model, [PROMPT] * len(stories), max_new_tokens=40, sampling=settings, seed=3)
    for name, answer in zip(stories, answers, strict=True):
        print(f"{name}:\n    ...{answer.text!r}\n")
    check("greedy is greedy", answers[0].token_ids[0] == int(np.argmax(everywhere[-1])))

# %% [markdown]
# ## In the engine
# - `nanollm_jax.Sampling` holds the settings, one value for all rows or one for each. Inside the compiled program
#   they are arrays, so changing one never compiles anything.
# - `nanollm_jax.sampling.shape_logits` goes through the steps in a fixed order: what the user adds to the logits of single
#   pieces (`logit_bias`), penalties, temperature, top-k, top-p, min-p. The order is part of the meaning (exercise 2).
# - `nanollm_jax.sampling.cut` makes each of the three cuts a threshold on the logit, so pieces that tie with the last
#   one kept are kept too. It does not sort the vocabulary for that, since sorting a large one takes long:
#   `nanollm_jax.sampling.kept_best` finds the thresholds of top-k and top-p bit by bit, in 31 passes over the logits.
#   Where no row asks for one of them, it is not computed.
# - `nanollm_jax.sampling.draw` draws for a whole batch. `nanollm_jax.sampling.draw_one` is the line: first the block of
#   128 pieces into which the random number falls, then the piece. `nanollm_jax.sampling.remember` counts tokens for
#   the penalties. All of it is part of the compiled program: Python sees tokens, never logits.
#
# ## Your engine
# The cuts by sorting, which is plainer than the library's way and slower with a large vocabulary. The draw is the line, with
# the library's random numbers: so both draw the same tokens from the same seeds. Penalties are left out.

# %%
mine = grow(18)
drawn_by = jax.jit(jax.vmap(mine.draw, (0, None, 0, 0)))
for rules in ({"top_p": 0.95}, {"top_k": 5}, {"min_p": 0.05}, {"temperature": 0.0}):
    rules = {"temperature": 0.9} | rules
    own = drawn_by(batch, mine.Sampling(**rules), jnp.arange(T), jnp.arange(10, 10 + T))
    theirs, _ = draw(batch, nano.Sampling(**rules).rows(T, V), nothing_anywhere, seeds, positions)
    check(f"your engine, {rules}: the same tokens as the library", np.array_equal(own, theirs))

# %% [markdown]
# ## Exercises
# 1. Which temperature is the same as always taking the best? What does the formula do there?
# 2. Does it matter whether temperature comes before or after top-k? And top-p?
# 3. Adding a constant to all logits changes no probability. Does it change what the repetition penalty does?

# %% tags=["answer"]
print(
    "0, as a limit: the best wins ever more clearly. Dividing by 0 fails, so the library treats 0 as a case of its own."
)
for t in (0.5, 0.1, 0.02):
    print(f"temperature {t}: the best has probability {softmax(logits / t).max():.4f}")
tokens, _ = draw(batch, nano.Sampling(temperature=0.0).rows(T, V), nothing_anywhere, seeds, positions)
check("temperature 0 takes the best, at every place of the prompt", np.array_equal(tokens, everywhere.argmax(-1)))

# %% tags=["answer"]
cool = logits / 0.5
check("top-k keeps the same pieces", np.array_equal(np.isfinite(top_k(cool, 5)), np.isfinite(top_k(logits, 5))))
kept = [np.isfinite(top_p(scores, 0.9)).sum() for scores in (logits, cool)]
check("top-p does not: what is cooler needs fewer", kept[1] < kept[0])
print("pieces kept by top-p 0.9, without and with temperature 0.5 before it:", *kept)

# %% tags=["answer"]
moved = [softmax(penalize(logits + shift, prompt, written, repetition=1.3))[best[0]] for shift in (0, 10)]
print(
    f"It does: the best piece keeps {moved[0]:.2%}, and {moved[1]:.2%} with 10 added to all. The rule depends on where 0 is."
)
check("the repetition penalty is not blind to a shift", abs(moved[0] - moved[1]) > 0.001)
shifts = [softmax(penalize(logits + shift, prompt, written, presence=1.0, frequency=0.5)) for shift in (0, 10)]
same("the other two are", shifts[0], shifts[1])

# %% [markdown]
# [Previous: 17 · Forward pass](17_forward_pass.py) · [Contents](README.md) · [Next: 19 · Generation](19_generation.py)
