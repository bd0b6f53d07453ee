# 11 · Many heads
"""An inference engine in one file, as it grows in the chapters of the course.

Letters: T tokens, that attend to S; D numbers in a vector of the residual stream; H numbers in one of a head;
N heads of queries, K of keys and values, each of which serves G = N / K of queries; Q = G + 2.
"""


def visible(queries, keys, window=None):
    """May a query see a key? Only the last `window` of them, where a layer has one.  positions [T] and [S] -> [T S] bool"""
    distance = queries[:, None] - keys[None, :]
    return (distance >= 0) & (distance < (window or math.inf))


def split_heads(x, wqkv):
    """Queries, keys and values of all heads.  x [T D], wqkv [K Q H D] -> q [T N H], k and v [T K H]"""
    heads = jnp.einsum("TD,KQHD->TKQH", x, wqkv)  # of Q: the G queries of a group, then its key, then its value
    T, K, Q, H = heads.shape
    return heads[:, :, :-2].reshape(T, K * (Q - 2), H), heads[:, :, -2], heads[:, :, -1]


def attend(q, k, v, mask):
    """What each query fetches.  q [T N H], k and v [S K H], mask [T S] -> [T N H]"""
    T, N, H = q.shape
    K = k.shape[1]
    grouped = q.reshape(T, K, N // K, H)
    scores = jnp.einsum("TKGH,SKH->KGTS", grouped, k) / math.sqrt(H)
    weights = softmax(jnp.where(mask, scores, -jnp.inf))
    return jnp.einsum("KGTS,SKH->TKGH", weights, v).reshape(T, N, H)


def self_attention(x, w, window=None):
    """What attention writes into the stream.  x [T D], w: wqkv [K Q H D] and wo [D N H] -> [T D]"""
    positions = jnp.arange(len(x))
    q, k, v = split_heads(x, w["wqkv"])
    mixed = attend(q, k, v, visible(positions, positions, window))
    return jnp.einsum("TNH,DNH->TD", mixed, w["wo"])
