# 13 · Feed-forward
"""An inference engine in one file, as it grows in the chapters of the course.

Letters: T tokens, that attend to S; D numbers in a vector of the residual stream; H numbers in one of a head;
N heads of queries, K of keys and values, each of which serves G = N / K of queries; Q = G + 2; F units of an MLP;
U = 2, its gate and what the gate lets through.
"""


def silu(x):
    """The activation of LLaMA: chapter 07"""
    return x / (1 + jnp.exp(-x))


def mlp(x, w):
    """What the MLP writes into the stream.  x [T D], w: up [U F D] and down [D F] -> [T D]"""
    gate, up = jnp.einsum("TD,UFD->UTF", x, w["up"])
    return jnp.einsum("TF,DF->TD", silu(gate) * up, w["down"])
