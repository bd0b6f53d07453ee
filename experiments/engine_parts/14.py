# 14 · The block
@dataclass(frozen=True)
class Config:
    """What cannot be seen from the weights. The names are those of nanollm_jax."""

    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    window: int | None = None  # how many tokens a query sees, itself included; None is all


def rms_norm(x, w, eps):
    """Divide each vector by its root mean square: chapter 08.  x [T D], w: scale [D] -> [T D]"""
    return x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps) * w["scale"]


def block(x, w, config):
    """One layer: both halves read the stream through a norm, and add to it.  x [T D] -> [T D]"""
    x = x + self_attention(rms_norm(x, w["attention_norm"], config.norm_eps), w["attention"], config)
    return x + mlp(rms_norm(x, w["mlp_norm"], config.norm_eps), w["mlp"])
