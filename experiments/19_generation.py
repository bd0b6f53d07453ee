# %% [markdown]
# # 19 · Generation: one token after another
#
# [Previous: 18 · Sampling](18_sampling.py) · [Contents](README.md) · [Next: 20 · KV cache](20_kv_cache.py)
#
# ## The question
# A forward pass gives scores for the next token (chapter 17), and sampling picks one (chapter 18). How does that become
# a text, how should the loop be compiled, and how is it measured whether a model predicts a text well?
#
# ## The idea
# Take the most probable token, put it at the end of the text, and ask again:
#
#     while the text is not finished:
#         logits = forward(text)
#         text = text + [best(logits)]
#
# Always taking the best is *greedy* (chapter 18). A model of this kind is *autoregressive*: it reads what it wrote itself.
#
# The loop is short, but there are three ways to give it to the compiler. XLA compiles a program for fixed shapes, and
# the text grows. So either every length is compiled anew; or the text has a fixed length, with room at the end; or
# the whole loop becomes a part of the program, with `jax.lax.scan`.
#
# ## From scratch
# `scores` is one pass over the whole text. No token looks at later ones (chapter 11), so what stands in the room
# at the end does not matter: row n - 1 scores what comes after n tokens.
#
# `jax.lax.scan` calls a function again and again. What one call hands to the next is the *carry*, here the text and its
# length; what each call returns besides, here a token, is collected. The function is compiled once, and the *host*, that
# is the Python program, is not asked between two tokens.

# %%
from __future__ import annotations

import math
import textwrap
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, ORANGE, check, check_time, outcome, plt, predict, quick, same, save, seconds, table
from engine_steps import grow

import nanollm_jax as nano
from nanollm_jax.engine.timings import CompileWatch

model = nano.load(dtype="float32")
config, tokenizer = model.config, model.tokenizer
PROMPT = tokenizer.encode("Once upon a time, there was a little")
ROOM = 128  # tokens of a text of fixed length


def scores(params, tokens):
    """tokens [T] -> logits [T V], all of them in one pass"""
    cache = nano.init_cache(config, batch=1, capacity=len(tokens), dtype="float32")
    return nano.forward(params, tokens[None], cache, config=config)[0][0]


compiled = jax.jit(scores)  # once for each T


def read(text):
    """text [T] -> logits [T V], as an array of NumPy"""
    return np.asarray(compiled(model.params, np.asarray(text, np.int32)))


def growing(steps):
    """Every step has another shape."""
    text = list(PROMPT)
    for _ in range(steps):
        text.append(int(read(text)[-1].argmax()))
    return text[len(PROMPT) :]


def with_room(steps):
    """One shape: the text and room behind it."""
    text, n = np.zeros(ROOM, np.int32), len(PROMPT)
    text[:n] = PROMPT
    for at in range(n, n + steps):
        text[at] = read(text)[at - 1].argmax()
    return text[n : n + steps].tolist()


@partial(jax.jit, static_argnames="steps")
def scanned(params, tokens, n, steps):
    """tokens [T], of which the first n are text -> the next ones [steps]: the loop is inside the program"""

    def step(carry, _):
        tokens, n = carry
        token = jnp.argmax(scores(params, tokens)[n - 1])
        return (tokens.at[n].set(token), n + 1), token

    return jax.lax.scan(step, (tokens, n), length=steps)[1]


def with_scan(steps):
    text = np.pad(np.array(PROMPT, np.int32), (0, ROOM - len(PROMPT)))
    return scanned(model.params, text, len(PROMPT), steps).tolist()


def engine(steps):
    return nano.generate(model, PROMPT, max_new_tokens=steps, sampling=nano.Sampling(temperature=0.0)).token_ids


# %% tags=["question"]
predict("once all is compiled, which of the three writes fastest: the growing text, the fixed length, or the scan?")

# %% tags=["answer"]
rows, answers, programs = [], {}, {}
for name, run, steps in (
    ("growing text", growing, 2 if quick() else 4),
    ("fixed length", with_room, 8 if quick() else 32),
    ("fixed length, lax.scan", with_scan, 8 if quick() else 32),
    ("the library", engine, 8 if quick() else 32),
):
    begun = time.perf_counter()
    with CompileWatch() as watch:
        answers[name] = run(steps)
    first = time.perf_counter() - begun
    again = seconds(run, steps, repeats=2)
    programs[name] = watch.programs
    if run is growing:
        to_begin = first / again
    rows.append([name, steps, watch.programs, f"{first / steps * 1e3:.0f}", f"{again / steps * 1e3:.1f}",
                 f"{steps / again:.0f}"])  # fmt: skip
table(
    "greedy text", ["", "tokens", "programs compiled", "ms a token, first time", "ms a token, then", "tokens/s"], rows
)
print("\n".join(textwrap.wrap("It writes: " + tokenizer.decode(PROMPT + answers["the library"]), 110)))
for name in ("growing text", "fixed length", "fixed length, lax.scan"):
    check(f"{name}: the same tokens as the library", answers[name] == answers["the library"][: len(answers[name])])
written = {name: float(row[-1]) for name, row in zip(answers, rows, strict=True)}  # tokens a second
check_time("the library writes more than twice as fast as ours with a fixed length",
           written["the library"] > 2 * max(v for name, v in written.items() if "fixed" in name))  # fmt: skip
check_time("compiling makes the first run of the growing text ten times as slow", to_begin > 10)
check_time("of ours the growing text is the quickest, once its programs are compiled",
           written["growing text"] > max(v for name, v in written.items() if "fixed" in name))  # fmt: skip
check("a growing text compiles for every token", programs["growing text"] == len(answers["growing text"]))
check("a fixed length, once", programs["fixed length"] == 1)
check("the scan as well, for all of its tokens", programs["fixed length, lax.scan"] == 1)

# %% [markdown]
# The first column of milliseconds has the compiling in it. The growing text compiles for every token, and that costs far
# more than the token itself. Once it is done, the growing text is the quickest of ours: it reads a dozen tokens, and the
# others all of their room. (The library compiles one program that reads the prompt and one that writes 16 tokens; what else
# it compiles is small, and fills arrays.) The scan brings little here, if anything, because a pass over all of the room takes
# far longer than calling a program. What does a call cost? A program that does next to nothing shows it.

# %%
tiny = jax.jit(lambda x: x * 0.999)
STEPS = 100 if quick() else 2_000


def called():
    x = jnp.float32(1)
    for _ in range(STEPS):
        x = tiny(x)
    return x


together = jax.jit(lambda x: jax.lax.scan(lambda x, _: (x * 0.999, None), x, length=STEPS)[0])
same("both compute the same", called(), together(jnp.float32(1)))
by_call, by_scan = (seconds(*run) / STEPS for run in ((called,), (together, jnp.float32(1))))
print(f"a step that is called from Python: {by_call * 1e6:.2f} microseconds; a step of a scan: {by_scan * 1e6:.3f}")
check_time("a call costs more than ten steps of a scan", by_call > 10 * by_scan)
check_time("and less than a tenth of a pass over all of the room", 10 * by_call < 1 / written["fixed length"])

# %% [markdown]
# The library, in the last line of the first table, reads neither room nor the whole text for every token, but the new
# token alone. That is chapter 20.
#
# ## Perplexity: how well is a text predicted?
# The model gives every token of an existing text a probability, given all tokens before it. One pass is enough for all
# of them. The product of these probabilities is the probability of the whole text, a tiny number, so their logarithms are
# added.
# The mean of -ln p is the *loss* (chapter 07), and e to the power of the loss is the *perplexity*: a model with
# perplexity 5 is as uncertain as if it had to guess, for each token, among 5 equally probable ones.


# %%
def surprise(ids):
    """ids [T] -> -ln p of each token after the first, [T-1]; a loop that looks at one token at a time"""
    text = np.pad(np.asarray(ids), (0, ROOM - len(ids)))  # one length, one program
    logits = read(text).astype(np.float64)  # [T V]
    out = []
    for t in range(len(ids) - 1):
        largest = logits[t].max()
        out.append(largest + math.log(np.exp(logits[t] - largest).sum()) - logits[t, ids[t + 1]])
    return np.array(out)


greedy = nano.generate(model, PROMPT, max_new_tokens=8 if quick() else 80, sampling=nano.Sampling(temperature=0.0))
drawn = nano.generate(
    model, PROMPT, max_new_tokens=8 if quick() else 80, sampling=nano.Sampling(temperature=1.0), seed=1
)
ours = surprise(PROMPT + greedy.token_ids)[len(PROMPT) - 1 :]
same("one pass, and the library's ln p of each token while it wrote", -ours, greedy.logprobs, tolerance=1e-4)
cool = nano.generate(model, PROMPT, max_new_tokens=8, sampling=nano.Sampling(temperature=0.5, top_p=0.9), seed=1)
same("also where temperature and a cut had their say: ln p is the model's own",
     -surprise(PROMPT + cool.token_ids)[len(PROMPT) - 1 :], cool.logprobs, tolerance=1e-4)  # fmt: skip

STORY = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her mom. "
    "The ball rolled down the hill and into the water. Lily was sad."
)
NEWS = "The central bank raised its interest rate by a quarter of a point on Thursday, citing inflation in the service sector."
words = STORY.split()
shuffled = " ".join(np.random.default_rng(0).permutation(words).tolist())
check("the same words, each as often", sorted(shuffled.split()) == sorted(words) and shuffled != STORY)
texts = {
    "its own text, greedy": PROMPT + greedy.token_ids,
    "its own text, drawn": PROMPT + drawn.token_ids,
    "a story": tokenizer.encode(STORY),
    "the story, its words shuffled": tokenizer.encode(shuffled),
    "business news": tokenizer.encode(NEWS),
}
perplexity = {name: math.exp(surprise(ids).mean()) for name, ids in texts.items()}
table(
    f"perplexity; {config.vocab_size:,} is a blind guess",
    ["text", "tokens", "perplexity"],
    [(name, len(ids), f"{perplexity[name]:,.1f}") for name, ids in texts.items()],
)
scored = nano.score(model, [texts["a story"]])[0]
same("a story's, by nanollm_jax.score", perplexity["a story"], scored.perplexity, 1e-4)
check("it prefers its own best text to a story", perplexity["its own text, greedy"] < perplexity["a story"])
check("and to one that it drew", perplexity["its own text, greedy"] < perplexity["its own text, drawn"])
check(
    "and a story to the same words in disorder", 5 * perplexity["a story"] < perplexity["the story, its words shuffled"]
)
check("there it would do better to guess blindly", perplexity["the story, its words shuffled"] > config.vocab_size)
print("Perplexities of models with different vocabularies cannot be compared: longer tokens are harder to guess.")

# %% tags=["figure"]
ids = texts["a story"]
losses = surprise(ids)
told = list(zip(ids[1:], losses, strict=True))  # each token but the first, and how much it surprised
same("token by token, by nanollm_jax.score", [value for _, value in told], np.negative(scored.logprobs), 1e-4)
check("of the same tokens", [token for token, _ in told] == scored.token_ids)
ranked = sorted(told, key=lambda pair: -pair[1])
check("from the one that surprised most to the one that surprised least",
      (ranked[0][1], ranked[-1][1]) == (losses.max(), losses.min()))  # fmt: skip
by_surprise = [f"“{tokenizer.piece(token)}” {value:.2f}" for token, value in ranked]
print("most:", ", ".join(by_surprise[:5]), "  least:", ", ".join(by_surprise[-5:]))
figure, ax = plt.subplots(figsize=(9.5, 2.5))
shades = plt.cm.ScalarMappable(plt.Normalize(0, 7), "Oranges")  # of the tokens, and of the bar beside them
x = y = 0
for token, value in told:
    piece = tokenizer.piece(token)
    if x + len(piece) > 82:
        x, y = 0, y - 1
    ax.add_patch(plt.Rectangle((x, y - 0.42), len(piece), 0.84, color=shades.to_rgba(value), linewidth=0))
    ax.text(x + len(piece) / 2, y, piece.replace("▁", " "), ha="center", va="center", family="monospace", size=10,
            color="white" if value > 5 else "black")  # fmt: skip
    x += len(piece)
ax.set(xlim=(0, 83), ylim=(y - 0.6, 0.6))
ax.axis("off")
bar = figure.colorbar(shades, ax=ax, aspect=10, shrink=0.8)
bar.set_label("-ln p")
bar.outline.set_visible(False)
save(figure, "19_surprise")

# %% [markdown] tags=["opening"]
# ![A story, each token coloured by how much it surprised the model](figures/19_surprise.png)
#
# *The darker, the less expected; the text above names the five that surprised most and the five that surprised least. The
# mean over all tokens is the loss.*
#
# ## Why greedy text repeats itself
# Two texts of 240 tokens from the same beginning: one greedy, one drawn. The token that ends a text is forbidden: minus
# infinity is added to its logit. A place is a *repetition* if the eight tokens that end there have occurred before, in
# this order.

# %% tags=["question"]
predict("of the last 80 places of each text, how many are repetitions?")

# %% tags=["answer"]
BEGINNING, LENGTH, LAST = "The dog ran and ran. The dog", 64 if quick() else 240, 16 if quick() else 80
no_end = {token: -math.inf for token in model.defaults.eos_ids}
check("the end, </s>, is forbidden", [tokenizer.piece(token) for token in no_end] == ["</s>"])
rows = {
    name: nano.generate(
        model,
        BEGINNING,
        max_new_tokens=LENGTH,
        sampling=nano.Sampling(temperature=t, logit_bias=no_end),
        seed=1,
    )
    for name, t in (("greedy", 0.0), ("drawn", 1.0))
}


def repetitions(ids, length=8):
    """ids [T] -> for each place, whether the last `length` tokens occurred before, [T]"""
    seen, out = set(), []
    for end in range(len(ids)):
        last = tuple(ids[max(0, end - length + 1) : end + 1])
        out.append(len(last) == length and last in seen)
        seen.add(last)
    return np.array(out)


share = {name: repetitions(answer.token_ids)[-LAST:].mean() for name, answer in rows.items()}
for name, answer in rows.items():
    print(f"{name}: {share[name]:.0%} repetitions. ...{answer.text[-100:]!r}")
check("no text has ended before its time", all(len(answer.token_ids) == LENGTH for answer in rows.values()))
outcome(LAST * share["greedy"], f"of the last {LAST} in the greedy text")
check("nothing is a repetition in a text that never repeats", not repetitions(list(range(50))).any())
check("a circle of five is one, after the first eight and five", repetitions([1, 2, 3, 4, 5] * 4).sum() == 20 - 12)
check("greedy goes in circles", share["greedy"] > 0.3)
check("drawing does not", share["drawn"] < 0.05)
if not quick():
    p = np.exp(rows["greedy"].logprobs)
    check("in the circle at its end the greedy text is more probable than before", p[-LAST:].mean() > p[:-LAST].mean())

# %% [markdown]
# The reason is seen without generating anything. Give the model a text in which one sentence stands several times, and
# look at how probable the tokens of each copy are.

# %%
COPIES = 3 if quick() else 6
SENTENCES = {
    "a sentence": "The dog ran to the big tree and found a shiny red key.",
    "its words shuffled": "key tree a found The shiny big to and the dog red ran.",
}
first, second = (sorted(sentence.rstrip(".").split()) for sentence in SENTENCES.values())
check("both have the same words", first == second)
probable = {}
for name, sentence in SENTENCES.items():
    once = tokenizer.encode(sentence)[1:]  # without <s>, which stands at the front only
    check("no copy begins a text anew", tokenizer.bos_id not in once)
    values = surprise([*tokenizer.encode(""), *once * COPIES])  # [copies * tokens]
    probable[name] = np.exp(-values.reshape(COPIES, len(once)).mean(1))  # [copies]: the geometric mean of p
    by_copies = np.split(values, COPIES)
    same(
        f"{name}: the copies one behind the other",
        probable[name],
        [math.exp(-copy.mean()) for copy in by_copies],
        1e-12,
    )
table(
    "mean probability of a token",
    ["", *(f"copy {n + 1}" for n in range(COPIES))],
    [(name, *(f"{p:.2%}" for p in row)) for name, row in probable.items()],
)
for name, row in probable.items():
    check(f"{name}: the second copy is twice as probable as the first, or more", row[1] > 2 * row[0])
    check(f"{name}: the last one is more probable still", row[-1] > row[1])

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
for (name, row), colour in zip(probable.items(), (BLUE, ORANGE), strict=True):
    left.plot(range(1, COPIES + 1), row, "o-", color=colour, label=name)
left.set(xlabel="copy", ylabel="probability", yscale="log", ylim=(1e-4, 1), title="mean of a copy's tokens")
left.set_xticks(range(1, COPIES + 1))
left.legend(loc="center right", bbox_to_anchor=(1, 0.5))
width = LAST // 4
circle = repetitions(rows["greedy"].token_ids)
check("as many of the last places are shaded as were counted", circle[-LAST:].mean() == share["greedy"])
right.fill_between(np.arange(LENGTH), 1, where=circle, step="mid", color=BLUE, alpha=0.15, linewidth=0,
                   label="repetitions in greedy")  # fmt: skip
for (name, answer), colour in zip(rows.items(), (BLUE, ORANGE), strict=True):
    p = np.exp(np.convolve(answer.logprobs, np.ones(width) / width, "valid"))
    same(f"{name}: the line ends at its last tokens' mean", p[-1], math.exp(np.mean(answer.logprobs[-width:])), 1e-9)
    right.plot(np.arange(width - 1, LENGTH), p, color=colour, label=name)
right.set(xlabel="place in the text", ylabel="probability", ylim=(0, 1), xlim=(0, LENGTH),
          title=f"mean of the last {width} tokens")  # fmt: skip
figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
save(figure, "19_copies")

# %% [markdown]
# ![The probability of a sentence's copies, and of a greedy and a drawn text as they grow](figures/19_copies.png)
#
# *Left: what stood there before becomes more probable, sense or nonsense. (Heads that look for an earlier place of
# the same piece and copy what came next are known from other models: Olsson et al. 2022, arXiv:2209.11895. Whether
# this one has any, and whether it is they who do it, is not shown.) Right: in a greedy text this feeds itself. Once it goes
# round in a circle, that becomes more probable, and greedy always takes what is most probable. The remedies are in
# chapter 18: chance, and penalties on what has occurred.*
#
# ## In the engine
# - `nanollm_jax.decode.write_tokens` is one `lax.scan` over tokens: it draws a token, runs the model on it, and carries
#   the cache. `nanollm_jax.engine.slots.write_tokens` does the same for rows that come and go, in a loop that ends when
#   none of them goes on. `nanollm_jax.engine.engine.Engine` calls it for a *chunk* of 16 tokens, and for the next chunk
#   before anybody has looked at the first: while the host looks for a *stop string*, a text with which the user wants the
#   answer to end, the *device*, whatever runs the compiled program, goes on.
# - The texts of a batch come and go (chapter 25). One that has ended writes nothing, and a prompt that waits takes its place.
#   It is read in pieces. Where somebody is shown a text while it grows, chunks are shorter, and one piece at most is read
#   between two of them.
# - `nanollm_jax.engine.buckets` rounds prompts and caches up to a few lengths, so that few programs are ever compiled.
# - `nanollm_jax.engine.timings.CompileWatch`, used above, counts compilations. The tests use it to show that a second
#   request compiles nothing.
# - `nanollm_jax.Generation.logprobs` are ln p of each token that was written, by the model itself, before temperature
#   and cuts. So a perplexity can be computed from them. `nanollm_jax.score` does it for a text that somebody else wrote,
#   and has *bits per byte* as well: the sum of -log2 p over the tokens, divided by the bytes of the text and not by
#   its tokens. So models with different vocabularies can be compared.
#
# ## Your engine
# The loop with a text of fixed length. From here on the file is a program that writes:
# `python engine.py nanollm_jax/assets/nano-stories "Once upon a time"`.

# %%
mine = grow(19)
loaded = mine.load(Path(nano.__file__).parent / "assets/nano-stories")
steps = len(answers["fixed length"])
own = list(mine.generate(loaded, tokenizer.decode(PROMPT), mine.Sampling(temperature=0.0), max_new_tokens=steps))
check("your engine: the same tokens as the library", own == answers["the library"])

# %% [markdown]
# ## Exercises
# 1. What is the perplexity of a model that gives every token the same probability?
# 2. Change one token in the room behind the text. Does the next token change? Why is that important?
# 3. A text ends with a stop string, which only the host knows, after 5 tokens of a chunk of 16. How many tokens were
#    computed for nothing, and what would a chunk of 1 cost?

# %% tags=["answer"]
blind = config.vocab_size
print(f"{blind:,}, the size of its vocabulary")
equal = jax.nn.log_softmax(jnp.zeros(config.vocab_size))  # ln p where no logit is larger than another
check("e to the power of the mean of -ln p", math.isclose(math.exp(-equal.mean()), blind, rel_tol=1e-5))

# %% tags=["answer"]
text = np.zeros(ROOM, np.int32)
text[: len(PROMPT)] = PROMPT
other = text.copy()
other[len(PROMPT) :] = 99
same("not a logit of the text changes", read(other)[: len(PROMPT)], read(text)[: len(PROMPT)])
check("behind it, they do", np.abs(read(other) - read(text))[len(PROMPT) :].max() > 0.1)
print("So texts of different lengths can share one compiled program, and one batch.")

# %% [markdown] tags=["answer"]
# Eleven of this chunk, and the sixteen of the next, which was on its way already. With chunks of 1 it is one token, but
# each token is a call from Python. What a call costs was measured above, for a program that does next to nothing.

# %% [markdown]
# [Previous: 18 · Sampling](18_sampling.py) · [Contents](README.md) · [Next: 20 · KV cache](20_kv_cache.py)
