# 18 · Sampling
class Sampling(NamedTuple):
    """How the next token is chosen. Temperature 0 takes the best; top_k 0, top_p 1 and min_p 0 cut nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def shape_logits(logits, sampling):
    """Temperature, then the cuts in this order; what they drop becomes -inf.  [V] -> [V], the best of them 0"""
    temperature = jnp.where(sampling.temperature == 0, 1, sampling.temperature)
    logits = (logits - logits.max()) / temperature

    ranked = jnp.sort(logits, descending=True)
    kth = ranked[jnp.where(sampling.top_k > 0, sampling.top_k, len(logits)) - 1]
    logits = jnp.where(logits >= kth, logits, -jnp.inf)

    ranked = jnp.sort(logits, descending=True)
    chances = softmax(ranked)
    before = jnp.cumsum(chances) - chances  # how probable all better ones are together
    last = jnp.where(before < sampling.top_p, ranked, jnp.inf).min()
    logits = jnp.where((logits >= last) | (sampling.top_p >= 1), logits, -jnp.inf)

    return jnp.where(logits >= jnp.log(sampling.min_p), logits, -jnp.inf)


def draw(logits, sampling, seed, position):
    """Choose a token. Chance comes from the seed and the place of the token in its text alone.  logits [V] -> token"""
    uniform = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position))
    line = jnp.cumsum(softmax(shape_logits(logits, sampling)))  # probabilities, one behind the other
    passed = jnp.sum(line <= uniform * line[-1])
    drawn = jnp.minimum(passed, jnp.argmax(line))  # rounding must not lead behind the last one that may be drawn
    return jnp.where(sampling.temperature == 0, jnp.argmax(logits), drawn)
