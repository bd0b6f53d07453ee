# %% [markdown]
# # 18 · Sampling: what temperature, top-k, top-p and min-p leave to chance
#
# [Previous: 06 · Batched products](06_batched_matmul.py) · [Contents](README.md)
#
# ## The question
# After every token the model gives a score, a *logit*, to each piece of its vocabulary. Softmax turns the logits into
# probabilities, and one piece is drawn. Which pieces may be drawn at all, and how often?
#
# ## The idea
# Everything called sampling changes the logits before that draw: it stretches them, or removes pieces by setting
# their logit to `-inf`. This chapter takes the bundled model's own logits at one place of a story, applies each
# setting by hand, and checks that the library keeps exactly the same pieces.

# %%
from __future__ import annotations

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from chapter import ORANGE, check, predict, same, save, table

import nanollm_jax as nano
from nanollm_jax import sampling as smp

PROMPT = "Once upon a time, there was a little girl named"
model = nano.load(dtype="float32")
ids = model.tokenizer.encode(PROMPT)
cache = nano.init_cache(model.config, batch=1, capacity=len(ids), dtype="float32")
logits, _ = nano.forward(model.params, jnp.asarray([ids]), cache, config=model.config)
logits = np.asarray(logits[0, -1])  # [V]: the scores of what comes next


# %% [markdown]
# ## From scratch
# Each rule in its plainest form, on one vector of V logits. `-inf` means: never drawn.


# %%
def softmax(scores):
    """[V] -> [V]; the maximum goes first so that exp never overflows."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def top_k(scores, k):
    """Keep the k best."""
    return np.where(scores >= np.sort(scores)[-k], scores, -np.inf)


def top_p(scores, p):
    """Walk down from the best; keep each one as long as those before it have less than p together."""
    order = np.argsort(-scores)
    before = np.concatenate([[0], np.cumsum(softmax(scores)[order])[:-1]])
    kept = np.full_like(scores, -np.inf)
    kept[order[before < p]] = scores[order[before < p]]
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
}

# %% tags=["question"]
predict("which of the rules keeps the most pieces here, and which the fewest?")

# %% tags=["answer"]
best = np.argsort(-logits)[:6]
nothing_said = smp.history(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32), logits.size)
rows = []
for name, (scores, setting) in BY_HAND.items():
    ours = smp.shape_logits(jnp.asarray(logits)[None], setting.rows(1, logits.size), nothing_said)[0]
    check(f"{name}: the library keeps the same pieces", np.array_equal(np.isfinite(ours), np.isfinite(scores)))
    same(f"{name}: the same probabilities", jax.nn.softmax(ours), softmax(scores), tolerance=1e-6)
    rows.append([name, np.isfinite(scores).sum(), *(f"{p:.1%}" for p in softmax(scores)[best])])
table(PROMPT + " ...", ["setting", "pieces left", *(repr(model.tokenizer.piece(int(i))) for i in best)], rows)

# %%
figure, axes = plt.subplots(2, 3, figsize=(9, 4.5), sharex=True, sharey=True)
ranks = np.argsort(-logits)[:40]
for ax, (name, (scores, _)) in zip(axes.flat, BY_HAND.items(), strict=True):
    ax.bar(range(40), softmax(logits)[ranks], color="#d5d9de", width=1)
    ax.bar(range(40), softmax(scores)[ranks], color=ORANGE, width=0.6)
    ax.set(title=name, yscale="log", ylim=(1e-5, 1))
figure.supxlabel("piece, from the most probable on")
figure.supylabel("probability")
save(figure, "18_rules")

# %% [markdown]
# ![The probabilities of forty pieces under six settings](figures/18_rules.png)
#
# *Grey: the model itself. Orange: what a setting makes of it. A missing orange bar is a piece that is never drawn.*
#
# ## What it does to a story
# Four rows of one batch, each with its own setting and the same seed. Settings are arrays inside the compiled
# program, so this costs one compilation and not four.

# %%
settings = nano.Sampling(temperature=[0.0, 0.5, 1.0, 1.5], top_p=[1.0, 1.0, 1.0, 0.8])
for name, answer in zip(
    ["greedy", "temperature 0.5", "temperature 1", "temperature 1.5, top-p 0.8"],
    nano.generate(model, [PROMPT] * 4, max_new_tokens=40, sampling=settings, seed=3),
    strict=True,
):
    print(f"{name}: {PROMPT}{answer.text}\n")

# %% [markdown]
# ## In the engine
# `nanollm_jax.sampling.cut` turns the three rules into one threshold on the logit, so that the sorted vocabulary is
# needed once for all of them, and not at all when nobody asks for top-k or top-p.
#
# ## Exercises
# 1. Which temperature is the same as drawing greedily? What does the formula do there?
# 2. Does it matter whether temperature comes before or after top-k? And top-p?
# 3. Which rule can leave only one piece, whatever its setting?

# %% [markdown] tags=["answer"]
# Zero, as a limit: the best logit wins ever more clearly. The division itself fails at zero, so the library treats it
# as a case of its own.

# %% tags=["answer"]
cool = logits / 0.5
check("top-k keeps the same pieces", np.array_equal(np.isfinite(top_k(cool, 5)), np.isfinite(top_k(logits, 5))))
kept = [np.isfinite(top_p(scores, 0.9)).sum() for scores in (logits, cool)]
check("top-p does not", kept[0] != kept[1])
print("pieces kept by top-p 0.9, without and with temperature 0.5 before it:", *kept)

# %% [markdown] tags=["answer"]
# top-p and min-p can, where the model is sure enough. top-k leaves k pieces, sure or not.

# %% [markdown]
# [Previous: 06 · Batched products](06_batched_matmul.py) · [Contents](README.md)
