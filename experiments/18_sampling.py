# %% [markdown]
# # Sampling: what temperature, top-k, top-p and min-p leave to chance
#
# After every token the model gives a score, a *logit*, to each piece of its vocabulary. Softmax turns the logits into
# probabilities, and one piece is drawn. Everything else called sampling changes the logits before that draw.
# This chapter takes the bundled model's own logits at one place of a story, applies each setting by hand, and checks
# that the library keeps exactly the same pieces.

# %%
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import nanollm_jax as nano
from nanollm_jax import sampling as smp

PROMPT = "Once upon a time, there was a little girl named"
console = Console(width=110)
model = nano.load(dtype="float32")
ids = model.tokenizer.encode(PROMPT)
cache = nano.init_cache(model.config, batch=1, capacity=len(ids), dtype="float32")
logits, _ = nano.forward(model.params, jnp.asarray([ids]), cache, config=model.config)
logits = np.asarray(logits[0, -1])  # [V]: the scores of what comes next


# %% [markdown]
# ## By hand
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

# %% [markdown]
# ## What is left
# Before you look: which of the four rules keeps the most pieces here, and which the fewest?

# %%
best = np.argsort(-logits)[:6]
table = Table(
    "setting", "pieces left", *(repr(model.tokenizer.piece(int(token))) for token in best), title=PROMPT + " ..."
)
nothing_said = smp.history(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32), logits.size)
for name, (scores, setting) in BY_HAND.items():
    ours = smp.shape_logits(jnp.asarray(logits)[None], setting.rows(1, logits.size), nothing_said)[0]
    assert np.array_equal(np.isfinite(ours), np.isfinite(scores)), name
    assert np.allclose(jax.nn.softmax(ours), softmax(scores), atol=1e-6), name
    table.add_row(name, str(np.isfinite(scores).sum()), *(f"{p:.1%}" for p in softmax(scores)[best]))
console.print(table)

# %% [markdown]
# ## What it does to a story
# Four rows of one batch, each with its own setting and the same seed. Settings are arrays inside the compiled program,
# so this costs one compilation and not four.

# %%
settings = nano.Sampling(temperature=[0.0, 0.5, 1.0, 1.5], top_p=[1.0, 1.0, 1.0, 0.8])
for name, answer in zip(
    ["greedy", "temperature 0.5", "temperature 1", "temperature 1.5, top-p 0.8"],
    nano.generate(model, [PROMPT] * 4, max_new_tokens=40, sampling=settings, seed=3),
    strict=True,
):
    console.print(f"[bold]{name}[/bold]", PROMPT + answer.text, "\n")

# %% [markdown]
# In the library: `nanollm_jax.sampling.cut` turns the three rules into one threshold on the logit, so that the sorted
# vocabulary is needed once for all of them, and not at all when nobody asks for top-k or top-p.
