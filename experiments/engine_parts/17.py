# 17 · Forward pass
"""An inference engine in one file, as it grows in the chapters of the course.

Letters: T tokens, that attend to S; a vocabulary of V; D numbers in a vector of the residual stream; H numbers in one of
a head; N heads of queries, K of keys and values, each of which serves G = N / K of queries; Q = G + 2; F units of an MLP;
U = 2, its gate and what the gate lets through.
"""


def unembed(params, x):
    """Score the vocabulary.  x [D], the stream at its end -> logits [V]"""
    table = params.get("unembedding", params["embedding"])["tokens"]  # [V D]
    return table @ x


def forward(params, tokens, config):
    """tokens [T] -> logits [T V]: row t scores what comes behind token t"""
    x = params["embedding"]["tokens"][tokens]  # [T D]
    for w in params["layers"]:
        x = block(x, w, config)
    x = rms_norm(x, params["final_norm"], config.norm_eps)
    return jax.vmap(lambda x: unembed(params, x))(x)
