# %% [markdown]
# # 23 · Look inside: where a name is kept, and who carries it
#
# [Previous: 22 · Parallelism](22_parallelism.py) · [Contents](README.md) · [Next: 24 · Quantisation](24_quantisation.py)
#
# ## The question
# A story begins with a boy named Tom. Ten words later the model writes "Tom" again, and not "Max". Where inside was the
# name in between, and which parts brought it to the place where it was needed?
#
# Chapter 10 looked at what heads attend to, and chapter 14 at what the stream would say. Both are looks from outside:
# that a head looks at a word does not prove that anything comes of it. To know what *causes* an answer, something has
# to be changed, and the answer has to change with it.
#
# ## The idea
# Take two texts that differ in one token:
#
#     clean:      ... a little boy named Tom. He loved ... One day,
#     corrupted:  ... a little boy named Max. He loved ... One day,
#
# Behind the last comma the model prefers Tom in the first and Max in the second. One number says how strongly, the
# *logit difference*: the logit of Tom less that of Max (logits are the scores before softmax, chapter 17).
#
# Now run the corrupted text, and while it runs put *one* vector of the clean run in its place: say the residual stream
# (chapter 14) behind layer 2, at the word "red". All else stays, and the layers above work on with what they find. If
# the model still prefers Max, the name was not there. If it now prefers Tom, everything that it needs to know about the
# name was in this one vector. That is *activation patching* (Meng et al. 2022, arXiv:2202.05262). What a patch brings
# back is
#
#     recovered = (patched - corrupted) / (clean - corrupted)
#
# 0 is nothing, and 1 is all of it.

# %%
from __future__ import annotations

import math
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
from chapter import BLUE, GREY, ORANGE, check, interactive, outcome, plt, predict, quick, same, save, table

import nanollm_jax as nano

model = nano.load(dtype="float32")
config, tokenizer = model.config, model.tokenizer
STORY = "Once upon a time, there was a little boy named {}. He loved to play with his red ball. One day,"
RIGHT, WRONG = " Tom", " Max"


def percent(share, digits=0):
    """A share in words, without a minus in front of what rounds to zero."""
    return f"{round(float(share), digits + 2) + 0.0:.{digits}%}"


def ids_of(name):
    """The story with a name in it, as ids [T]."""
    return np.array(tokenizer.encode(STORY.format(name.strip())))


ids, other = ids_of(RIGHT), ids_of(WRONG)
pieces = [tokenizer.piece(int(token)).replace("▁", " ") for token in ids]
(name_at,) = np.flatnonzero(ids != other)  # exactly one place differs
right, wrong = int(ids[name_at]), int(other[name_at])
last = len(ids) - 1
print(
    f"{len(ids)} tokens, {config.num_layers} layers of {config.num_heads} heads; the name is token {name_at}, of {last}"
)

# %% [markdown]
# ## From scratch
# The forward pass of chapter 17, for LLaMA alone. New is `edit`: every value that has a name is handed to it, and what
# it returns is used from there on. With it a value can be kept, and it can be changed.


# %%
weights = jax.tree.map(lambda array: np.asarray(array, np.float64), model.params)
T, H, N, K = len(ids), config.head_dim, config.num_heads, config.num_kv_heads
half = np.arange(H // 2) / (H // 2)
turn = np.exp(1j * np.arange(T)[:, None] * config.layers[0].rope.theta ** -half[None])[:, None]  # [T 1 H/2]


def norm(x, w):
    """x [T D] -> [T D]: chapter 08"""
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.norm_eps) * w["scale"][None]


def rotate(x):
    """x [T N H] -> [T N H]: chapter 12"""
    turned = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def mix(x, w):
    """x [T D] -> what each head has fetched, [T N H]: chapters 10 and 11"""
    heads = np.einsum("TD,KQHD->TKQH", x, w["wqkv"], optimize=True)
    q, k, v = rotate(heads[:, :, :-2].reshape(T, N, H)), rotate(heads[:, :, -2]), heads[:, :, -1]
    k, v = np.repeat(k, N // K, axis=1), np.repeat(v, N // K, axis=1)  # [T N H]
    scores = np.einsum("TNH,SNH->NTS", q, k) / math.sqrt(H)
    powers = np.exp(scores - scores.max(-1, keepdims=True)) * np.tril(np.ones((T, T)))[None]
    return np.einsum("NTS,SNH->TNH", powers / powers.sum(-1, keepdims=True), v)


def feed_forward(x, w):
    """x [T D] -> [T D]: chapter 13"""
    gate, up = np.einsum("TD,UFD->UTF", x, w["up"], optimize=True)
    return gate / (1 + np.exp(-gate)) * up @ w["down"].T


def run(ids, edit=lambda name, value: value):
    """ids [T] -> logits behind the last token [V]; edit(name, value) is used in place of every value with a name"""
    x = weights["embedding"]["tokens"][ids]  # [T D]
    for n, w in enumerate(weights["layers"]):
        mixed = edit(f"layers.{n}.attention.mixed", mix(norm(x, w["attention_norm"]), w["attention"]))  # [T N H]
        x = x + np.einsum("TNH,DNH->TD", mixed, w["attention"]["wo"], optimize=True)
        x = edit(f"layers.{n}.out", x + feed_forward(norm(x, w["mlp_norm"]), w["mlp"]))
    return norm(x[-1:], weights["final_norm"])[0] @ weights["embedding"]["tokens"].T


def difference(logits):
    """logits [V] -> how far the right name is above the wrong one"""
    return logits[right] - logits[wrong]


def remember(ids, edit=lambda name, value: value):
    """The logits of a text, and all of its values {name: value}, as they are used."""
    values = {}

    def keep(name, value):
        values[name] = edit(name, value)
        return values[name]

    return run(ids, keep), values


def patch(name, *index):
    """An edit: one piece of the clean run's value in the place of the same piece of another run's."""

    def edit(there, value):
        if there == name:
            value = value.copy()
            value[index] = kept[name][index]
        return value

    return edit


def patched(name, *index):
    """What a run of the corrupted text prefers with one piece of the clean one in it."""
    return difference(run(other, patch(name, *index)))


clean_logits, kept = remember(ids)
clean, corrupted = difference(clean_logits), difference(run(other))
print(f"{RIGHT.strip()} above {WRONG.strip()}: {clean:+.2f} in the clean text, {corrupted:+.2f} in the corrupted one")
check("each text prefers its own name", clean > 1 and corrupted < -1)
cache = nano.init_cache(config, batch=1, capacity=T, dtype="float32")
theirs = nano.forward(model.params, ids[None], cache, config=config)[0][0, -1]
same("the logits of nanollm_jax.forward", clean_logits, theirs, 1e-4)

# %% [markdown]
# One patch as a picture, the one described above: behind layer 2, at the word "red". Which values does it reach?

# %%
LAYER, AT = 2, next(t for t, piece in enumerate(pieces) if piece.strip() == "red")
_, of_other = remember(other)
_, of_patched = remember(other, patch(f"layers.{LAYER}.out", AT))


def apart(a, b):
    """Where the stream of two runs is not the same, [L T]"""
    return np.stack([
        np.abs(a[f"layers.{n}.out"] - b[f"layers.{n}.out"]).max(-1) > 1e-9 for n in range(config.num_layers)
    ])  # fmt: skip


two_texts, reached = apart(kept, of_other), apart(of_patched, of_other)  # [L T]
check("up to the name the two texts are the same, and from there on they differ everywhere",
      not two_texts[:, :name_at].any() and two_texts[:, name_at:].all())  # fmt: skip
check("the patch changes its own place, and in the layers above all from there to the right",
      reached[LAYER, AT] and reached[LAYER + 1 :, AT:].all()
      and reached.sum() == 1 + (config.num_layers - 1 - LAYER) * (T - AT))  # fmt: skip

# %% tags=["figure"]
names = ["the same in both texts", "not the same", "reached by the patch", "patched"]
tints = np.array([[233, 236, 239], [247, 214, 179], [164, 199, 233], [31, 95, 168]], np.uint8)  # a colour for each
kind = two_texts.astype(int) + reached
kind[LAYER, AT] = 3
figure, ax = plt.subplots(figsize=(6.4, 3.3))
ax.pcolormesh(tints[kind], edgecolor="white", linewidth=1)
ax.set_xticks(np.arange(T) + 0.5, pieces, rotation=90, fontsize=9)
ax.set_yticks(np.arange(config.num_layers) + 0.5, [f"layer {n}" for n in range(config.num_layers)])
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
for name, tint in zip(names, tints / 255, strict=True):
    ax.plot([], [], "s", color=tint, label=name)
figure.legend(loc="outside upper left", ncols=4, fontsize=9, handletextpad=0.1, columnspacing=0.9)
save(figure, "23_patch")

# %% [markdown]
# ![Which places of the stream differ between the two texts, and which ones a patch reaches](figures/23_patch.png)
#
# *Read upwards: a column is a token, a row the stream behind a layer. Grey: the same in both texts. Orange: not the same.
# Dark blue: here the vector of the clean text was put in. Light blue: what that changes, the layers above it from its own
# token on. From the name on all differs, so where the two texts differ does not say where the name is.*
#
# ## Where the name is
# One patch for every layer and every token: the whole stream, searched place by place.

# %% tags=["question"]
predict(
    f"{config.num_layers} layers x {T} tokens are {config.num_layers * T} places. In how many of them does one vector bring "
    "back a tenth or more of the name, and which ones are these?"
)

# %% tags=["answer"]
places = range(T) if not quick() else (1, int(name_at), last)
grid = np.full((config.num_layers, T), np.nan)  # [L T]
for layer in range(config.num_layers):
    for t in places:
        grid[layer, t] = (patched(f"layers.{layer}.out", t) - corrupted) / (clean - corrupted)
found = nano.glass.patch(
    model, STORY.format(RIGHT.strip()), STORY.format(WRONG.strip()), token=RIGHT, against=WRONG
).recovered  # [L T]
same("place by place what nanollm_jax.glass.patch finds", grid[:, list(places)], found[:, list(places)], 1e-4)
big = np.argwhere(found >= 0.1)
between = np.delete(found, [name_at, last], axis=1).max(1)  # [L]: the most at any other token
table(
    "how much of the name one vector of the stream brings back",
    [
        "behind layer",
        f"at{pieces[name_at]}, token {name_at}",
        f"at {pieces[last]!r}, the last token",
        "most of all others",
    ],
    [
        (layer, percent(row[name_at], 1), percent(row[last], 1), percent(between[layer], 1))
        for layer, row in enumerate(found)
    ],
)
print(f"{len(big)} of {found.size} places bring back a tenth or more")
outcome(len(big), "places")
check("all of them are at the name or at the end", {int(t) for _, t in big} == {int(name_at), last})
at_name, at_end = found[:, name_at], found[:, last]
waits = int(np.flatnonzero(at_name > 0.9).max())  # the last layer behind which all of the name is where it was read
arrives = int(np.flatnonzero(at_end > 0.9).min())
print(f"until layer {waits} it is where it was read, behind layer {arrives} where it is needed")
check(
    "it begins where it was read, and stays there for more than half of the layers", 2 * (waits + 1) > config.num_layers
)
check("behind the last layer it is at the end", arrives == config.num_layers - 1 and at_name[-1] < 0.1)
check("in no layer is any of it on the way", between.max() < 0.1)
same("the two places together have all of it, in every layer", (at_name + at_end), np.ones(len(found)), 0.1)

# %% tags=["figure"]
figure, ax = plt.subplots(figsize=(11, 3.4))
shown = ax.imshow(np.clip(found[::-1], 0, 1), vmin=0, vmax=1, aspect="auto")
for layer, t in big:
    ax.text(t, len(found) - 1 - layer, percent(found[layer, t]), ha="center", va="center", fontsize=8,
            color="white" if found[layer, t] > 0.6 else "black")  # fmt: skip
ax.set_xticks(range(T), pieces, rotation=60, ha="right", fontsize=9)
ax.set_yticks(range(len(found)), [f"layer {n}" for n in reversed(range(len(found)))])
ax.set(title="how much of the name one vector brings back", xlabel="token at which the stream was patched")
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
bar = figure.colorbar(shown, ax=ax, aspect=12)
bar.outline.set_visible(False)
save(figure, "23_places")

# %% [markdown]
# ![How much of the name each place of the residual stream brings back](figures/23_places.png)
#
# *Again a column is a token, and a row the stream behind a layer. The name does not spread over the words behind
# it. It stays where it was read, and near the top it appears at the last token, where the next word is decided.*
#
# Nobody told the model to keep notes. A vector of the stream is a good place for one: layers add to it and put nothing else
# in its place (chapter 14), and every later token can look at it through attention.
#
# ## Who carries it
# Only attention moves anything from one token to another (chapter 11), so some head must have carried the name. Patch
# heads, then: in the corrupted run, what *one head* has fetched is taken from the clean run, at all tokens.

# %% tags=["question"]
predict(
    f"of {config.num_layers * N} heads, how many bring back a tenth or more? Think of the rows in which the columns of the "
    "figure change."
)

# %% tags=["answer"]
text, swapped = STORY.format(RIGHT.strip()), STORY.format(WRONG.strip())
by_head = nano.glass.patch(
    model, text, swapped, token=RIGHT, against=WRONG, places="layers.*.attention.mixed", over="N"
).recovered  # [L N]
carriers = [(int(layer), int(head)) for layer, head in np.argwhere(by_head >= 0.1)]
for layer, head in carriers:
    ours = patched(f"layers.{layer}.attention.mixed", slice(None), head)
    print(f"layer {layer}, head {head}: {by_head[layer, head]:.1%}")
    same("by our own pass", (ours - corrupted) / (clean - corrupted), by_head[layer, head], 1e-4)
rest = [by_head[at] for at in np.ndindex(by_head.shape) if at not in carriers]
print(f"the most of all others: {max(rest):.1%}")
check("two", len(carriers) == 2)
check("above the layers in which the name waits", min(layer for layer, _ in carriers) > waits)
same("together all of it", sum(by_head[at] for at in carriers), 1.0, 0.1)

# %% [markdown]
# And now what chapter 10 did, with the difference that it is known which heads matter: what do these look at, from the
# last token?

# %%
_, values = nano.observe(nano.forward, model.params, jnp.asarray(ids)[None], cache, config=config)
looks = {
    at: np.asarray(values[f"layers.{at[0]}.attention.weights"])[0].reshape(N, T, -1)[at[1], last, :T] for at in carriers
}  # {(layer, head): [T]}
for (layer, head), row in looks.items():
    print(f"layer {layer}, head {head}: {row[name_at]:.0%} of its attention is at{pieces[name_at]}, token {name_at}")
    check("more than at any other token", row.argmax() == name_at)

# %% tags=["figure"]
figure, (left, middle) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=[1, 2.4])
left.imshow(np.clip(by_head[::-1], 0, 1), vmin=0, vmax=1, aspect="auto")
for layer, head in np.ndindex(by_head.shape):
    left.text(head, len(by_head) - 1 - layer, percent(by_head[layer, head]), ha="center", va="center", fontsize=9,
              color="white" if by_head[layer, head] > 0.6 else "#555555")  # fmt: skip
left.set_xticks(range(N), [f"head {n}" for n in range(N)])
left.set_yticks(range(len(by_head)), [f"layer {n}" for n in reversed(range(len(by_head)))])
left.set(title="what one head brings back")
left.tick_params(length=0)
left.spines[:].set_visible(False)
for n, ((at, row), colour) in enumerate(zip(looks.items(), (ORANGE, BLUE), strict=True)):
    middle.bar(np.arange(T) + 0.4 * n - 0.2, row, width=0.4, color=colour, label=f"layer {at[0]}, head {at[1]}")
middle.set_xticks(range(T), pieces, rotation=60, ha="right", fontsize=9)
middle.set(title="where the two look, from the last token", ylabel="attention", ylim=(0, 1))
middle.legend(loc="upper right")
save(figure, "23_heads")

# %% [markdown]
# ![How much of the name each head brings back, and where the two that carry it look](figures/23_heads.png)
#
# *Left: each head alone. Right: the attention of the two that matter, from the last token over the whole text. They
# look at the name, and what they fetch there is the name. Such heads have been found in GPT-2 as well, where they are
# called name movers (Wang et al. 2022, arXiv:2211.00593).*
#
# One text proves little: with so many heads, some may fit one text by chance. So the same two, in other stories, with
# other names, and with other words than a comma at the end.

# %%
STORIES = [
    "{} had a small dog. The dog liked to run in the park. In the morning,",
    'There was a cat who lived with {}. The cat was hungry. "Please give me some food," said the cat to',
    "{} and his mom went to the store. The store had many toys. His mom looked at",
    "One day, {} found a key. It was very old. The key was in the garden, and",
    "Once upon a time, there was a girl named {}. She loved to play outside. One day,",
]
PAIRS = [("Tom", "Max"), ("Lily", "Sue"), ("Ben", "Mia")]
rows, shares = [], []
for story in STORIES[:2] if quick() else STORIES:
    share = []
    for one, two in PAIRS[:1] if quick() else PAIRS:
        by_one = nano.glass.patch(
            model, story.format(one), story.format(two), token=f" {one}", against=f" {two}",
            places="layers.*.attention.mixed", over="N",
        ).recovered  # fmt: skip
        share.append(sum(by_one[at] for at in carriers))
    same("those two and no others", share[-1], by_one[carriers[0]] + by_one[carriers[1]])
    rows.append((f"... {' '.join(story.split()[-5:])}", *(percent(x) for x in share)))
    shares += share
table("what the two bring back", ["story", *(f"{one} and {two}" for one, two in PAIRS[: len(share)])], rows)
check("most of the name, in every story", min(shares) > 0.7)

# %% [markdown]
# ## Switch them off
# A patch shows that a part is enough to bring something back. Whether the model *needs* it is another question: perhaps
# others do the same. So zeros are put in the place of what the heads fetch that were found above, in every step of a real
# generation: prompt, cache, loop and all. For comparison, in texts of their own, as many other heads of the same layers are
# switched off instead.

# %% tags=["question"]
predict(
    "without these heads, what does the model write behind the comma: the other name, a word that is no name, nonsense?"
)

# %% tags=["answer"]


def without(value, seen, off):
    """An edit: zeros for the heads that are off.  value [B T N H], off [B N]

    seen has the other values of the step, as seen["positions"] [B T], the places of its tokens in their texts.
    """
    return jnp.where(off[:, None, :, None], 0, value)


def switches(pair):
    """What nanollm_jax.watch changes for one row, where one head of each of these layers is off, or none."""
    off = {f"layers.{layer}.attention.mixed": np.zeros(N, bool) for layer, _ in carriers}
    for layer, head in pair:
        off[f"layers.{layer}.attention.mixed"][head] = True
    return {name: (without, heads) for name, heads in off.items()}


(low, _), (high, _) = carriers
others = [
    ((low, m), (high, n)) for m in range(N) for n in range(N) if (low, m) != carriers[0] and (high, n) != carriers[1]
]
check("each of the others is two heads that are neither of the two",
      len(others) == (N - 1) ** 2 and not {head for pair in others for head in pair} & set(carriers))  # fmt: skip
pairs = [(), tuple(carriers), *others]
box = nano.watch(
    model, [text] * len(pairs), keep=["logits"], change=[switches(pair) for pair in pairs],
    max_new_tokens=4 if quick() else 40, sampling=nano.Sampling(temperature=0.0),
)  # fmt: skip
first = np.stack([jax.nn.softmax(logits[0]) for logits in box["logits"]])  # [pairs V]: behind the last comma
chance = first[:, right]
for row, what in enumerate(("all heads", "without the two", "without two others")):
    best = ", ".join(f"{tokenizer.piece(int(n))[1:]} {first[row, n]:.0%}" for n in np.argsort(-first[row])[:3])
    print(f"{what}: {best}")
    print(textwrap.indent("\n".join(textwrap.wrap(f"...{box.answers[row].text.strip()}", 100)), "    "))
check("with all heads the name is the first choice", first[0].argmax() == right)
check("without the two, the name is next to impossible", chance[1] < chance[0] / 10)
check("without any other two it is more likely even than with all", chance[2:].min() > chance[0])
print(
    f"p of{RIGHT}: {chance[0]:.0%}, without the two {chance[1]:.1%}, without two others {chance[2:].min():.0%} or more"
)
instead = tokenizer.piece(int(first[1].argmax()))[1:]
check(f"what it says instead is a pronoun: {instead}", instead in ("he", "she", "it", "they"))

# %% tags=["figure"]
order = [0, 1, *(2 + np.argsort(-chance[2:]))]
figure, ax = plt.subplots(figsize=(8, 3.6))
called = [" and ".join(f"{layer}.{head}" for layer, head in pair) or "all heads" for pair in pairs]
labels = [called[n] for n in order]
bars = ax.barh(labels[::-1], chance[order][::-1], color=[GREY] * len(others) + [ORANGE, BLUE])
lengths = [bar.get_width() for bar in bars][::-1]
check("each bar stands beside its own pair",
      dict(zip(labels, lengths, strict=True)) == dict(zip(called, chance, strict=True)))  # fmt: skip
check("from the top: the model as it is, without the two, and all others by their size",
      lengths == [*chance[:2], *sorted(chance[2:], reverse=True)])  # fmt: skip
for place, n in enumerate(order[::-1]):
    ax.text(chance[n] + 0.01, place, f"{chance[n]:.1%}", va="center", size=9, color="#444444")
ax.set(title=f"probability of{RIGHT} with two heads (layer.head) off", xlim=(0, 1.1))
ax.spines[["left", "bottom"]].set_visible(False)
ax.tick_params(length=0)
ax.set_xticks([])
save(figure, "23_off")

# %% [markdown]
# ![The probability of the name with pairs of heads switched off](figures/23_off.png)
#
# *Blue: the model as it is. Orange: without the two heads that carry the name. Grey: without two others of the same layers. All
# of these make the name even more probable here: what those heads fetch speaks against it.*
#
# So the two are enough, and they are needed. Without them the model still knows that somebody is spoken of, and says
# so with a pronoun. What it lost is one fact.
#
# Here is every head to be switched off, with the lens of chapter 14: what the model would say if it ended behind each
# layer. The passes are those of `run`, one for each head and one for the two.


# %%
def depths(off):
    """Heads that are off, [(layer, head)] -> the stream behind each layer of the story [L T D]"""
    streams = []

    def edit(name, value):
        if name.endswith(".out"):
            streams.append(value)
            return value
        layer = int(name.split(".")[1])
        return np.where(np.isin(np.arange(N), [n for at, n in off if at == layer])[None, :, None], 0, value)

    run(ids, edit)
    return np.stack(streams)


def say(streams, count=3):
    """[L T D] -> the most probable next tokens [L T count] and their probabilities"""
    logits = np.stack([norm(x, weights["final_norm"]) @ weights["embedding"]["tokens"].T for x in streams])  # [L T V]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    best = np.argsort(-logits)[..., :count]
    return best, np.take_along_axis(powers / powers.sum(-1, keepdims=True), best, -1)


recorded = []
for off in [[], *([at] for at in np.ndindex(config.num_layers, N)), carriers]:
    best, probabilities = say(depths(off))
    recorded.append({"off": off, "ids": best, "chances": np.round(probabilities, 4)})
for one, row in ((recorded[0], 0), (recorded[-1], 1)):
    same(
        "what the last layer says, by nanollm_jax.watch",
        one["chances"][-1, last],
        np.sort(first[row])[:-4:-1],
        1e-4,
        size=1,
    )
low_head = recorded[1 + carriers[0][0] * N + carriers[0][1]]
check("a head that is off in one layer is not off in those below",
      np.array_equal(low_head["chances"][: carriers[0][0]], recorded[0]["chances"][: carriers[0][0]]))  # fmt: skip
check("with all heads the last layer says the name", recorded[0]["ids"][-1, last, 0] == right)
check("without the two it does not", recorded[-1]["ids"][-1, last, 0] != right)

# %% tags=["figure"]
said = {int(token) for one in recorded for token in one["ids"].flat}
interactive(
    "switches",
    {
        "tokens": pieces,
        "layers": config.num_layers,
        "heads": N,
        "words": {token: tokenizer.piece(token).replace("▁", " ") for token in sorted(said)},
        "runs": recorded,
    },
    "Switch a head off, or the two that carry the name, and click into the lens: what would be said after each layer.",
)

# %% [markdown]
# ## In the engine
# - `nanollm_jax.model` tags its values with names, `nanollm_jax.glass.names` lists them. In the compiled program a tag
#   is gone and costs nothing.
# - `nanollm_jax.harvest` is our `edit` for any function: it goes through the traced program, keeps or replaces what has
#   a name, also inside loops, and gives a function that `jax.jit`, `jax.vmap` and `jax.grad` take again.
# - `nanollm_jax.glass.patch` makes each patch a *row* of a batch: which layer and which token are numbers that the
#   program is given, so that a hundred patches are a few calls of one compiled program.
# - `nanollm_jax.watch` changes the generation as it runs, with its cache and its batch. Each row has its own change,
#   and one that changes nothing gives the same numbers as a row without any, bit for bit. The law that the tests hold
#   it to: an edited generation is what one edited pass over the whole text gives.
# - `nanollm_jax.glass.ablate` switches off all heads, MLPs or layers, one at a time; `nanollm_jax.glass.contributions`
#   says what each wrote into a logit; `nanollm_jax.glass.steer` makes a direction of the difference between texts.
#
# ## Exercises
# 1. The grid took one pass for each place. A *gradient* says for every number of the stream at once how much the logit
#    difference changes when that number does: its slope. Times (clean - corrupted), it estimates all patches from one
#    pass back and forth (`nanollm_jax.glass.patch` with `approximate=True`). Where is the estimate good, and why not
#    everywhere?
# 2. Who writes the note? Patch what each MLP adds to the stream, and what each attention adds, in place of the stream
#    itself (`places=`). Compare with what chapter 14 found by leaving parts out.
# 3. If the vector at the name is a note, one should be able to rewrite it. Make a vector (Tom less Max) from *other*
#    texts, add it to the corrupted story at the name's token alone, behind a layer in which the name waits, and let the
#    model write.

# %% tags=["answer"]
guess = nano.glass.patch(model, text, swapped, token=RIGHT, against=WRONG, approximate=True).recovered  # [L T]
table(
    "one gradient, and the patches themselves",
    ["behind layer", "at the name, guessed", "patched", "at the end, guessed", "patched"],
    [(n, *(percent(x) for t in (name_at, last) for x in (guess[n, t], found[n, t]))) for n in range(len(found))],
)


def nudged(layer, t, part=1e-4):
    """The slope by hand: one ten thousandth of the way from the corrupted vector to the clean one, times ten thousand."""

    def edit(name, value):
        if name == f"layers.{layer}.out":
            value = value.copy()
            value[t] += part * (kept[name][t] - value[t])
        return value

    return (difference(run(other, edit)) - corrupted) / part / (clean - corrupted)


for where, t in (("the name", name_at), ("the end", last)):
    same(f"at {where}: the slope by hand", nudged(waits, t), guess[waits, t], 0.01, size=1)
apart = np.abs(guess - found).max(axis=1)  # [L]
check("just below the logits the way is nearly straight", apart[-1] < 0.3)
check("and further down it is not", apart.max() > 2 * apart[-1])
print("A gradient is a straight line. Norms, softmax and activations bend it, the more of them, the more.")

# %% tags=["answer"]
both = nano.glass.patch(model, text, swapped, token=RIGHT, against=WRONG, places="layers.*.{mlp,attention}.out")
parts = {
    kind: both.recovered[[place.endswith(f"{kind}.out") for place in both.places]] for kind in ("mlp", "attention")
}  # {kind: [L T]}
for kind, share in parts.items():
    layer, t = np.unravel_index(share.argmax(), share.shape)
    print(f"{kind}: at most {share.max():.0%}, in layer {layer} at token {t},{pieces[t]!r}")
check(
    "the first MLP alone brings back most of it, at the name",
    parts["mlp"].argmax() == name_at and parts["mlp"].max() > 0.8,
)
check("the attentions do so at the end: the two heads again", parts["attention"].argmax() % T == last)
print("The embedding is a whisper (chapter 14). What the layers above read of the name, the first MLP has written.")

# %% tags=["answer"]
ELSEWHERE = ["A boy called {}", "The teacher smiled at {}", "Every morning {}"]
note = nano.glass.steer(
    model, [tuple(line.format(name.strip()) for name in (RIGHT, WRONG)) for line in ELSEWHERE], f"layers.{waits}.out"
)


def stream_behind(text):
    """What the stream holds at the last token of a text that is no longer than the story.  -> [D]"""
    short = tokenizer.encode(text)
    _, values = remember(np.pad(short, (0, T - len(short))))  # what is behind is not seen
    return values[f"layers.{waits}.out"][len(short) - 1]


by_hand = [stream_behind(line.format("Tom")) - stream_behind(line.format("Max")) for line in ELSEWHERE]
same("the vector is the mean of the differences", note.vector, np.mean(by_hand, axis=0), 1e-4)


def rewrite(value, seen, arrays):
    """An edit: a vector is added at one place.  value [B T D], arrays: vector [B D], place [B]"""
    vector, place = arrays
    there = seen["positions"] == place[:, None]  # [B T]
    return jnp.where(there[:, :, None], value + vector[:, None], value)


change = {f"layers.{waits}.out": (rewrite, (note.vector, np.int32(name_at)))}
box = nano.watch(
    model, [swapped] * 2, keep=["logits"], change=[None, change], max_new_tokens=4 if quick() else 24,
    sampling=nano.Sampling(temperature=0.0),
)  # fmt: skip
for label, answer, logits in zip(("as it is", "rewritten"), box.answers, box["logits"], strict=True):
    print(f"{label}: {difference(logits[0]):+.1f}. ...{answer.text.strip()}")
check("the story of Max goes on with Tom", difference(box["logits"][0][0]) < 0 < difference(box["logits"][1][0]))

# %% [markdown]
# [Previous: 22 · Parallelism](22_parallelism.py) · [Contents](README.md) · [Next: 24 · Quantisation](24_quantisation.py)
