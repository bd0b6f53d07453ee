# %% [markdown]
# # 26 · Speculation: several tokens a step
#
# [Previous: 25 · Serving](25_serving.py) · [Contents](README.md)
#
# ## The question
# One text, one reader, and a machine that could write many texts in the same time: each step reads all weights and uses
# them for one token (chapter 21). A batch needs other texts. Can one text be written faster? The next token depends on
# the one before, so it seems that they have to come one after the other.
#
# ## The idea
# Reading is faster than writing: a prompt goes through the model in one pass, since its tokens are known. So somebody
# *guesses* the next k tokens, and the model reads them all at once, behind its own last token. That pass gives logits
# at every place, as for a prompt, and at each place the model draws its token as it always would. Where the guess is what
# was drawn, it is accepted, and the next place counts too. At the first place where they differ, the drawn token is taken,
# and all guesses from there on are thrown away: the model read them behind a token that is not in the text. This is
# *speculation* (Leviathan et al. 2023, arXiv:2211.17192). The guesses are called *drafts*, and the share of them that is
# accepted is the *acceptance*.
#
# Each pass writes at least one token, the model's own behind the last right draft, and at most k + 1. And whoever
# guesses, however badly, the text is the model's: a draft is accepted only where the model has drawn the same. (The paper
# has another rule for drafts that are drawn by chance. It accepts more of them and keeps all probabilities, but the text is
# not the one that would have been drawn without drafts.)
#
# Guessing must be cheap. Two ways:
#
# - *prompt lookup*: when did the text last have the tokens that it has at its end now? What came then may come again.
#   That costs no pass of any model, and is right where texts repeat: names, quotes, edits, code.
# - a *draft model*: a smaller model of the same vocabulary writes the drafts.

# %%
from __future__ import annotations

from functools import partial
from pathlib import Path

import engine
import jax
import jax.numpy as jnp
import numpy as np
from chapter import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    check,
    check_time,
    interactive,
    outcome,
    plt,
    predict,
    quick,
    same,
    save,
    seconds,
    table,
)

import nanollm_jax as nano
from nanollm_jax.engine import drafts

FOLDER = Path(nano.__file__).parent / "assets/nano-stories"
model = engine.load(FOLDER)
S = 128  # positions of the cache
K = 4  # drafts of a step
GREEDY = engine.Sampling(temperature=0.0)
random = np.random.default_rng(26)

# %% [markdown]
# ## From scratch
# ### Who guesses
# The lookup takes the last three tokens of the text and looks for the latest place where the same three stood before; where
# there is none, for the last two, and then for the last one. The drafts are what followed there. Where that is fewer than k
# tokens, it is repeated, as if the text went round in a circle.


# %%
def look_up(ids, k, longest=3):
    """ids [n] -> k drafts, or none where the last token is new"""
    for run in range(longest, 0, -1):
        for place in range(len(ids) - 1, run - 1, -1):
            if ids[place - run : place] == ids[-run:]:
                circle = ids[place:]
                return [circle[i % len(circle)] for i in range(k)]
    return []


print("1 2 3 9 1 2 3 is followed by", look_up([1, 2, 3, 9, 1, 2, 3], 4))
texts = [random.integers(0, 6, size=20).tolist() for _ in range(50)]
theirs, found = drafts.look_up(jnp.asarray(texts), jnp.full(len(texts), 20), K)
ours = [look_up(text, K) for text in texts]
check(
    "nanollm_jax.engine.drafts.look_up finds the same",
    [row.tolist() for row in theirs[found]] == [g for g in ours if g],
)
check("and nothing where we find nothing", found.tolist() == [bool(guess) for guess in ours])

# %% [markdown]
# No small model of this vocabulary is at hand. But a model has small ones inside: its first layers, with the last norm and
# the table behind them (the lens of chapter 14 shows what they would say). `Draft` keeps a cache of its own. It goes back to
# the first place where the text differs from what it has read, reads the text from there on, and writes k tokens more.


# %%
class Draft:
    """The first layers of the model, guessing."""

    def __init__(self, layers, sampling, seed):
        self.params = {**model.params, "layers": model.params["layers"][:layers]}
        self.cache, self.held = engine.init_cache(self.params, S), []
        self.sampling, self.seed = sampling, seed

    def __call__(self, ids, k):
        """ids [n] -> k drafts"""
        at = next(
            (n for n, (a, b) in enumerate(zip(self.held, ids, strict=False)) if a != b), min(len(self.held), len(ids))
        )
        self.cache = self.cache._replace(length=jnp.int32(min(at, len(ids) - 1)))
        ids = list(ids)
        for _ in range(k):
            while len(new := ids[int(self.cache.length) :]) > K + 1:  # the prompt, a block at a time
                self.run(new[: K + 1])
            ids.append(self.run(new))
        self.held = ids[:-1]  # the last draft was written and not read
        return ids[-k:]

    def run(self, tokens):
        """Read some tokens; the token that comes next."""
        block = np.zeros(K + 1, np.int32)
        block[: len(tokens)] = tokens
        count = len(tokens)
        token, self.cache = engine.step(
            self.params, block, count, self.cache, self.sampling, self.seed, config=model.config
        )
        return int(token)


BEGINNING = "Once upon a time, there was a little girl named Lily."
hot = engine.Sampling(temperature=0.8, top_p=0.95)
for sampling, seed in ((GREEDY, 0), (hot, 3)):
    draft, text = Draft(5, sampling, seed), model.tokenizer.encode(BEGINNING)
    small = model._replace(params=model.params | {"layers": model.params["layers"][:5]})
    guessed = draft(text, K)
    check("it writes what five layers write in your engine's loop",
          guessed == list(engine.generate(small, BEGINNING, sampling, seed, K)))  # fmt: skip
    for right in (2, K):  # of the drafts; behind them the text goes on in another way
        text = [*text, *guessed[:right], *text[1:3]]
        guessed, other = draft(text, K), Draft(5, sampling, seed)
        check(f"{right} drafts were right, and the text goes on: as one that reads it anew", guessed == other(text, K))
        read = len(text) + K - 1  # all but the last draft
        same("and it has read the same", draft.cache.keys[:, :read], other.cache.keys[:, :read], 1e-4)

# %% [markdown]
# ### Who decides
# The model reads a *block* in one pass: the token that was drawn last, which it has not read yet, and behind it the drafts.
# It is the forward pass of your engine, with logits at every place. Randomness comes from the seed and the place alone
# (chapter 18), so at each place the model draws what it would draw without drafts.


# %%
@partial(jax.jit, donate_argnames="cache")
def verify(params, block, cache, sampling, seed):
    """block [k+1] behind what the cache holds -> what the model draws behind each of them [k+1], the longer cache"""
    x = params["embedding"]["tokens"][block]  # [k+1 D]
    for layer, w in enumerate(params["layers"]):
        x, cache = engine.block(x, w, cache, layer, model.config)
    logits = jax.vmap(lambda x: engine.unembed(params, x))(
        engine.rms_norm(x, params["final_norm"], model.config.norm_eps)
    )
    places = cache.length + 1 + jnp.arange(len(block))
    return jax.vmap(engine.draw, (0, None, None, 0))(logits, sampling, seed, places), cache


def write(prompt, new_tokens, guess, k=K, sampling=GREEDY, seed=0):
    """-> the tokens of the answer, and for each pass how many drafts were accepted of how many"""
    ids = model.tokenizer.encode(prompt)
    begin, passes = len(ids), []
    token, cache = engine.read(model, ids, engine.init_cache(model.params, S), sampling, seed)
    ids.append(int(token))
    while len(ids) < begin + new_tokens:
        tried = guess(ids, k)
        block = np.zeros(k + 1, np.int32)
        block[: 1 + len(tried)] = [ids[-1], *tried]
        drawn, cache = verify(model.params, block, cache, sampling, seed)
        drawn = drawn.tolist()
        right = next((n for n, (a, b) in enumerate(zip(tried, drawn, strict=False)) if a != b), len(tried))
        ids += drawn[: right + 1]  # the right drafts, and the model's own token behind them
        cache = cache._replace(length=cache.length + right + 1)  # what is behind is as if it had not been read
        passes.append((right, len(tried)))
    return ids[begin : begin + new_tokens], passes


def nobody(ids, k):
    """No drafts: one token a pass."""
    return []


LINES = "The cat sat on the mat. The dog sat on the mat. The bird sat on the mat. The cat sat on"
STORY = "Once upon a time, there was a little girl named Lily. She had a red ball. One day,"
NEW = 12 if quick() else 60
prompts = {"a text that repeats": LINES, "a story": STORY}
answers = {name: write(prompt, NEW, nobody)[0] for name, prompt in prompts.items()}
answers["a story, drawn with a seed"] = write(STORY, NEW, nobody, sampling=hot, seed=3)[0]
library = nano.load(dtype="float32")
theirs = nano.generate(
    library, [LINES, STORY, STORY], max_new_tokens=NEW, seed=[0, 0, 3], speculate=f"lookup:{K}",
    sampling=nano.Sampling(temperature=[0.0, 0.0, 0.8], top_p=[1.0, 1.0, 0.95]),
)  # fmt: skip
for (name, ours), answer in zip(answers.items(), theirs, strict=True):
    until = ours.index(model.config.eos_id) if model.config.eos_id in ours else NEW  # the library ends there
    check(f"{name}: the tokens of nanollm_jax.generate, which speculates", ours[:until] == answer.token_ids)

# %% tags=["question"]
predict(
    f"prompt lookup, {K} drafts a pass, a story that the model makes up: how many tokens does a pass write, in the mean?"
)

# %% tags=["answer"]
rows, each, asked = [], {}, {}  # asked: what was guessed, pass by pass
for name, prompt in prompts.items():
    guessers = {"nobody": nobody, "lookup": look_up}
    guessers |= {f"its first {n} layers": Draft(n, GREEDY, 0) for n in ((5,) if quick() else (3, 5))}
    for who, guess in guessers.items():
        notes = asked[name, who] = []
        tokens, passes = write(
            prompt, NEW, lambda ids, k, guess=guess, notes=notes: notes.append(guess(ids, k)) or notes[-1]
        )
        check(f"{name}, {who}: the same tokens", tokens == answers[name])
        right, tried = (sum(column) for column in zip(*passes, strict=True))
        check("as many drafts were tried as were guessed", tried == sum(map(len, notes)))
        each[name, who] = (NEW - 1) / len(passes), passes
        rows.append([name, who, len(passes), f"{right / tried:.0%}" if tried else "", f"{each[name, who][0]:.2f}"])
    check("without drafts a pass writes one token", each[name, "nobody"][0] == 1)
table(f"{NEW} tokens, always the best one", ["text", "who guesses", "passes", "acceptance", "tokens a pass"], rows)
outcome(each["a story", "lookup"][0], "tokens a pass")
check("what repeats is guessed better", each["a text that repeats", "lookup"][0] > each["a story", "lookup"][0])

# %% [markdown]
# No way to guess changes a token. That holds for the worst as well, guessing at random, and for the best, drafts that are the
# answer itself:

# %%
wrong, lost = write(STORY, NEW, lambda ids, k: random.integers(0, 2048, size=k).tolist())
known = [*model.tokenizer.encode(STORY), *answers["a story"]]
knows, won = write(STORY, NEW - K, lambda ids, k: known[len(ids) : len(ids) + k])
check("random drafts: the same tokens", wrong == answers["a story"])
check("right drafts: the same tokens", knows == answers["a story"][: NEW - K])
check("and k + 1 in every pass", all(right == K for right, _ in won))
speculated, _ = write(STORY, NEW, Draft(5, hot, 3), sampling=hot, seed=3)
check("drawn with a seed: the same tokens too", speculated == answers["a story, drawn with a seed"])

# %% tags=["figure"]
figure, axes = plt.subplots(2, 1, figsize=(10, 4.4))
for ax, (name, who) in zip(axes, (("a text that repeats", "lookup"), ("a story", "lookup")), strict=True):
    tokens, (_, passes) = answers[name], each[name, who]
    accepted = [False]
    for right, _ in passes:
        accepted += [True] * right + [False]
    blue = [token for token, was_draft in zip(tokens, accepted, strict=False) if was_draft]
    drafted = [token for guess, (right, _) in zip(asked[name, who], passes, strict=True) for token in guess[:right]]
    check("what is blue was guessed, and right", blue == drafted[: len(blue)])
    x = y = 0
    for token, was_draft in zip(tokens, accepted, strict=False):
        piece = model.tokenizer.token_bytes(token).decode(errors="replace").replace("\n", " ")
        if x + len(piece) > 84:
            x, y = 0, y - 1
        colour = "#bcd8f2" if was_draft else "#eeeeee"
        ax.add_patch(plt.Rectangle((x, y - 0.42), len(piece), 0.84, facecolor=colour, edgecolor="white"))
        ax.text(x + len(piece) / 2, y, piece, ha="center", va="center", family="monospace", size=9)
        x += len(piece)
    ax.set(xlim=(0, 85), ylim=(y - 0.6, 0.6), title=f"{name}: {each[name, who][0]:.2f} tokens a pass")
    ax.axis("off")
save(figure, "26_accepted")

# %% [markdown]
# ![Two answers, the tokens that were accepted drafts in blue](figures/26_accepted.png)
#
# *Prompt lookup. Blue: drafts that were right. Grey: the model's own token, one for each pass, and the first of all, which
# reading the prompt gave.*


# %% tags=["figure"]
def shown(token):
    return model.tokenizer.token_bytes(token).decode(errors="replace") or "</s>"


def told(name, who):
    """An answer pass by pass: what was guessed, how much of it was right, and the model's own token behind."""
    passes, at = [], 1  # the first token is from reading the prompt
    for guessed, (right, _) in zip(asked[name, who], each[name, who][1], strict=True):
        at += right
        if at < NEW:  # the last pass may write beyond what was asked for
            passes.append({"drafts": [shown(t) for t in guessed], "right": right, "own": shown(answers[name][at])})
        at += 1
    return {"name": f"{name}, {who}", "prompt": prompts[name], "first": shown(answers[name][0]), "passes": passes}


texts = []
for name in prompts:
    for who in ("lookup", "its first 5 layers"):
        one = told(name, who)
        written = [piece for of in one["passes"] for piece in (*of["drafts"][: of["right"]], of["own"])]
        check(f"{one['name']}: put together it is the answer",
              [one["first"], *written] == [shown(token) for token in answers[name][: 1 + len(written)]])  # fmt: skip
        texts.append(one)
interactive(
    "drafts",
    {"texts": texts},
    "Step through the passes: what is guessed, what of it is accepted, and what the model writes behind.",
)

# %% [markdown]
# ## When it pays
# A pass over k + 1 tokens takes longer than one over a single token, and guessing takes time too. Say that a draft behind
# right ones is right with the probability a, whatever came before. (Acceptance is lower than a: behind a wrong draft all
# are lost, and count as refused.) Then a pass writes
#
#     1 + a + a^2 + ... + a^k = (1 - a^(k+1)) / (1 - a)
#
# tokens in the mean (equation 1 of the paper). So it pays where that is more than the pass costs, in units of a pass
# over one token.


# %%
def expected(a, k):
    """Tokens of a pass in the mean, each draft right with probability a"""
    return (1 - a ** (k + 1)) / (1 - a)


def times_as_fast(tokens, cost):
    """Than without drafts: tokens of a pass in the mean, and its cost, in passes over a single token"""
    return tokens / cost


def simulated(a, k, passes=20_000):
    right = random.random((passes, k)) < a
    return 1 + np.cumprod(right, axis=1).sum() / passes


for a in (0.3, 0.8):
    check(f"right with {a}: simulated as computed", abs(simulated(a, K) / expected(a, K) - 1) < 0.03)


def clock(block_length):
    """Seconds of a pass over a block"""
    block = np.zeros(block_length, np.int32)
    return seconds(lambda: verify(model.params, block, engine.init_cache(model.params, S), GREEDY, 0)[0], repeats=20)


one, many = clock(1), clock(K + 1)
print(f"here a pass over {K + 1} tokens takes {many / one:.1f} times as long as a pass over one")
check_time(f"it costs less than {K + 1} passes", many < (K + 1) * one)
rows = [(name, f"{times_as_fast(each[name, 'lookup'][0], many / one):.2f}") for name in prompts]
table("prompt lookup with this chapter's code, here; below 1 it does not pay", ["text", "times as fast"], rows)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(8, 3.8))
lengths = np.arange(17)
for a, colour in ((0.95, BLUE), (0.8, GREEN), (0.6, ORANGE), (0.3, RED)):
    ax.plot(lengths, [expected(a, k) for k in lengths], "o-", color=colour, markersize=3, label=f"right with {a:.0%}")
ax.plot([0, K], [1, many / one], "s:", color=GREY, label="what a pass costs here")
ax.set(xlabel="drafts of a pass", ylabel="tokens of a pass", ylim=(0, 12))
ax.legend()
save(figure, "26_pays")

# %% [markdown] tags=["opening"]
# ![Tokens of a pass against the number of drafts, for four chances that a draft is right](figures/26_pays.png)
#
# *It pays where a curve is above the grey line, the cost of the pass (that of guessing comes on top). No curve comes above
# 1 / (1 - a), however many drafts there are, so a long row of drafts helps only where nearly all are right. The roofline
# (chapter 21) says what a pass over a few tokens costs at the least: hardly more than one over a single token where memory is
# the limit, and much more where arithmetic is. The grey line is what it cost, measured.*
#
# ## In the engine
# - `nanollm_jax.generate` with speculate="lookup:4" is the lookup of this chapter, for all rows of a batch at once and
#   inside the compiled loop: `nanollm_jax.engine.drafts.look_up`. `nanollm_jax.DraftModel` is a smaller model that
#   guesses; it draws with the settings and the random number of each place, as our `Draft` does.
# - A block always has k + 1 places, also where there are fewer drafts or none. So one program serves all steps, and whoever
#   guesses, a token's logits have the same bits. That is why k is a setting of the engine and not of a single request.
# - Layers with a window keep a ring (chapter 20). A rejected draft has taken the place of the oldest token in it, which
#   is needed again. So a ring has room for k more: `nanollm_jax.engine.drafts.spare`.
# - `nanollm bench --speculate lookup:4` measures it with a model and on a text that repeats itself.
#
# ## Exercises
# 1. The drafts are right with probability 0.8 each. How many tokens does a pass of 4 drafts write in the mean? And which
#    number does this mean approach with more and more drafts?
# 2. What does the cache hold behind the first wrong draft, and why does nobody see it?
# 3. A draft model takes a tenth of the time of a pass for each token, and a pass over a block costs as much as one over
#    a single token. Each draft is right with probability 0.8. Which number of drafts is best?

# %% tags=["answer"]
mean, most = expected(0.8, 4), 1 / (1 - 0.8)
print(f"{mean:.2f}, and never more than {most:.0f}")
check("a simulation has as many", abs(simulated(0.8, 4) / mean - 1) < 0.03)
check("and with 200 drafts the most", abs(expected(0.8, 200) / most - 1) < 1e-6)

# %% tags=["answer"]
print(
    "Keys and values of tokens that were never written. They lie at positions behind the length of the cache. A query"
)
print("sees positions up to its own, and each of these is written over by the token that really stands there, first.")
_, cache = engine.read(model, known[:20], engine.init_cache(model.params, S), GREEDY, 0)
cache = cache._replace(keys=cache.keys.at[:, 20:].set(9.0), values=cache.values.at[:, 20:].set(9.0))
_, clean = engine.read(model, known[:20], engine.init_cache(model.params, S), GREEDY, 0)
check(
    "it is there", all((kept[:, 20:] != empty[:, 20:]).all() for kept, empty in zip(cache[:2], clean[:2], strict=True))
)
block = np.array(known[20 : 20 + K + 1], np.int32)
ours, theirs = (verify(model.params, block, one, GREEDY, 0)[0].tolist() for one in (cache, clean))
check("rubbish behind the length changes nothing", ours == theirs)

# %% tags=["answer"]
gain = {k: times_as_fast(expected(0.8, k), 1 + k / 10) for k in range(1, 17)}
best = max(gain, key=gain.get)
print(f"{best} drafts: {gain[best]:.2f} times as fast")
check(
    "in ten passes and one for each draft, ten blocks", np.isclose(gain[best] * (10 + best), 10 * expected(0.8, best))
)
check("more or fewer are worse", gain[best] > max(gain[best - 1], gain[best + 1]))

# %% [markdown]
# [Previous: 25 · Serving](25_serving.py) · [Contents](README.md)
