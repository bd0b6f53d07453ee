# 20 · KV cache
class Cache(NamedTuple):
    """What attention remembers of a text: keys and values of each layer [L S K H], and how many positions are filled."""

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def init_cache(params, S):
    """An empty cache with room for S positions"""
    K, _, H, _ = params["layers"][0]["attention"]["wqkv"].shape
    room = jnp.zeros((len(params["layers"]), S, K, H))
    return Cache(room, room + 0, jnp.int32(0))


def extend(cache, layer, k, v):
    """Put the keys and values of new tokens behind those of a layer: position p lies in slot p.  k and v [T K H] -> cache"""
    at = (layer, cache.length, 0, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys, k[None], at)
    values = jax.lax.dynamic_update_slice(cache.values, v[None], at)
    return cache._replace(keys=keys, values=values)


def self_attention(x, w, cache, layer, config):
    """What attention writes into the stream.  x [T D], w: wqkv [K Q H D] and wo [D N H] -> [T D], the longer cache"""
    positions = cache.length + jnp.arange(len(x))
    q, k, v = split_heads(x, w["wqkv"])
    q, k = rotate(q, positions, config.rope_theta), rotate(k, positions, config.rope_theta)
    cache = extend(cache, layer, k, v)
    keys, values = cache.keys[layer], cache.values[layer]  # [S K H]
    mixed = attend(q, keys, values, visible(positions, jnp.arange(len(keys)), config.window))
    return jnp.einsum("TNH,DNH->TD", mixed, w["wo"]), cache


def block(x, w, cache, layer, config):
    """One layer: both halves read the stream through a norm, and add to it.  x [T D] -> [T D], the longer cache"""
    h = rms_norm(x, w["attention_norm"], config.norm_eps)
    attended, cache = self_attention(h, w["attention"], cache, layer, config)
    x = x + attended
    return x + mlp(rms_norm(x, w["mlp_norm"], config.norm_eps), w["mlp"]), cache


def forward(params, tokens, count, cache, config):
    """Read more of a text.  tokens [T], of which the first `count` are real -> logits behind the last of these [V], cache

    What is behind them leaves keys and values in slots that nobody sees before they are written over.
    """
    x = params["embedding"]["tokens"][tokens]  # [T D]
    for layer, w in enumerate(params["layers"]):
        x, cache = block(x, w, cache, layer, config)
    last = rms_norm(x[count - 1], params["final_norm"], config.norm_eps)  # [D]
    return unembed(params, last), cache._replace(length=cache.length + count)


def next_token(params, tokens, count, cache, sampling, seed, config):
    """Read `count` more tokens of a text, a prompt or the last one drawn, and draw what comes next.  tokens [T]"""
    logits, cache = forward(params, tokens, count, cache, config)
    return draw(logits, sampling, seed, cache.length), cache


step = jax.jit(next_token, static_argnames="config", donate_argnames="cache")


def read(model, ids, cache, sampling, seed):
    """Read a prompt, padded to a power of two, so that few programs are compiled.  -> the first token of the answer, cache"""
    padded = np.zeros(min(2 ** math.ceil(math.log2(len(ids))), cache.keys.shape[1]), np.int32)
    padded[: len(ids)] = ids
    return step(model.params, padded, len(ids), cache, sampling, seed, config=model.config)


def generate(model, prompt, sampling, seed=0, max_new_tokens=100):
    """Write: one token after the other, until the one that ends a text"""
    ids = tokens_of(model, prompt, max_new_tokens)
    token, cache = read(model, ids, init_cache(model.params, model.config.max_positions), sampling, seed)
    for n in range(max_new_tokens):
        if n > 0:
            token, cache = step(model.params, token[None], 1, cache, sampling, seed, config=model.config)
        if token == model.config.eos_id:
            return
        yield int(token)
