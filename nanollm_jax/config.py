"""What a model is: its architecture as one frozen, hashable record. Nothing about devices, weights or sampling.

Precision policy, written here once and followed everywhere:
  weights, activations, cache   the run's dtype: float32 on CPU, bfloat16 on GPU and TPU, unless the user names one
  matrix products               accumulate in float32; float32 operands are multiplied in full float32 on every device
  norms, rope angles, softmax, logits, sampling   float32
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from nanollm_jax.checks import check_count, check_positive
from nanollm_jax.errors import ConfigError

NORMS = ("rms_norm", "layer_norm")
QK_NORMS = (None, "head", "width")
ROPE_PAIRS = ("halves", "neighbours")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
MOST_LAYERS = 10_000  # the deepest model that was published has 126; each is a piece of the compiled program
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LinearScaling:
    """Rope for longer contexts: every position divided by `factor`. Chen et al. 2023, arXiv:2306.15595."""

    kind: ClassVar[str] = "linear"
    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Rope for longer contexts: long wavelengths divided by `factor`, short ones kept, a smooth band between.

    The Llama 3 Herd of Models, 2024, and its reference implementation.
    """

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """Rope for longer contexts: a ramp over the pairs of a head, and hotter attention. Peng et al. 2023, arXiv:2309.00071.

    attention_factor multiplies the rotated queries and the rotated keys.
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LongRopeScaling:
    """Rope for longer contexts: every pair slowed by a factor of its own, one list up to the original length and one
    for texts beyond it. Ding et al. 2024, arXiv:2402.13753.

    attention_factor multiplies the rotated queries and the rotated keys.
    """

    kind: ClassVar[str] = "longrope"
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling
Rope = tuple[float, RopeScaling | None]  # theta and scaling


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one decoder-only transformer. Letters as in params.py. Raises ConfigError on values that cannot be.

    rope_theta None means that nothing is rotated; learned_positions adds a table of max_positions vectors instead.
    windows has one entry per layer: how many positions a query sees, itself included, or None for all.
    attention_scales has one entry per layer: what scores are multiplied by; empty means 1/sqrt(head_dim).
    ropes has one entry per layer where layers differ: (theta, scaling), or None for a layer that rotates nothing.
    rotary_dim is how many channels of a head are rotated, the first ones; None means all. rope_pairs says which of them
    turn together: "halves" channel i of the first half with i of the second, "neighbours" channels 2i and 2i + 1.
    pre_norm is a norm before attention and MLP, post_norm one of what they give, before it is added.
    qk_norm "head" normalises each query and key head by itself, "width" all heads of a token together.
    counted_heads is how many query and key heads a norm of all together counts, where a mesh holds more; None means all.
    norm_offset is added to every norm's scale. A cap c makes c * tanh(x / c) of x.
    num_experts 0 means that there are none; dense_layers are the layers that have none all the same.
    """

    vocab_size: int  # V
    hidden_size: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    intermediate_size: int  # F
    max_positions: int  # P
    norm: str = "rms_norm"
    norm_eps: float = 1e-5
    activation: str = "silu"
    gated_mlp: bool = True
    learned_positions: bool = False
    rope_theta: float | None = 10000.0
    rope_scaling: RopeScaling | None = None
    windows: tuple[int | None, ...] = ()
    attention_scales: tuple[float, ...] = ()
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    ropes: tuple[Rope | None, ...] = ()
    rotary_dim: int | None = None
    rope_pairs: str = "halves"
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: str | None = None
    counted_heads: tuple[int, int] | None = None
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    qkv_clip: float | None = None
    parallel_residual: bool = False
    num_experts: int = 0  # E
    experts_per_token: int = 1
    expert_size: int = 1  # M
    renormalize_experts: bool = True
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "intermediate_size", "max_positions"):  # fmt: skip
            self.own(name, check_count)
        if self.num_layers > MOST_LAYERS:
            raise ConfigError(f"num_layers is {self.num_layers}; expected a whole number of at most {MOST_LAYERS}.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                "every key/value head serves the same number of query heads."
            )
        if self.norm not in NORMS:
            raise ConfigError(f"norm {self.norm!r} is not supported; known: {', '.join(NORMS)}.")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation {self.activation!r} is not supported; known: {', '.join(ACTIVATIONS)}.")
        self.own("norm_eps", check_positive)
        if self.rope_theta is not None:
            self.own("rope_theta", check_positive)
            if self.head_dim % 2:
                raise ConfigError(f"head_dim {self.head_dim} is odd; rope rotates pairs, so it has to be even.")
        if self.rope_scaling is not None:
            check_rope_scaling(self.rope_scaling)
            if self.rope_theta == 1 and isinstance(self.rope_scaling, YarnScaling):
                raise ConfigError("rope_theta is 1: all pairs turn alike, and yarn scaling has nothing to choose from.")
        if self.rotary_dim is not None:
            self.own("rotary_dim", check_count)
            if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
                raise ConfigError(f"rotary_dim {self.rotary_dim} is not an even number up to head_dim {self.head_dim}.")
        if self.rope_pairs not in ROPE_PAIRS:
            raise ConfigError(f"rope_pairs {self.rope_pairs!r} is not supported; known: {', '.join(ROPE_PAIRS)}.")
        for rope in {rope for rope in self.ropes if rope is not None}:
            check_positive("rope theta", rope[0])
            if rope[1] is not None:
                check_rope_scaling(rope[1])
        for name in ("embedding_scale", "residual_scale", "logit_scale"):
            self.own(name, check_positive)
        for name in ("attention_softcap", "logit_softcap", "qkv_clip"):
            if getattr(self, name) is not None:
                self.own(name, check_positive)
        if self.qk_norm not in QK_NORMS:
            raise ConfigError(f"qk_norm {self.qk_norm!r} is not supported; known: {', '.join(map(str, QK_NORMS))}.")
        if self.num_experts:
            for name in ("num_experts", "experts_per_token", "expert_size"):
                self.own(name, check_count)
            if self.experts_per_token > self.num_experts:
                raise ConfigError(
                    f"experts_per_token {self.experts_per_token} is more than {self.num_experts} experts."
                )
        for name in ("gated_mlp", "learned_positions", "qkv_bias", "attention_out_bias", "mlp_bias", "tie_embeddings",
                     "pre_norm", "post_norm", "parallel_residual", "renormalize_experts"):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected True or False.")
        for name in ("windows", "attention_scales", "ropes", "dense_layers"):
            if not isinstance(getattr(self, name), tuple):  # a list has no hash, and jit needs one
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a tuple with one entry a layer, or ().")
        for name in ("windows", "attention_scales", "ropes"):
            if getattr(self, name) and len(getattr(self, name)) != self.num_layers:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} entries for {self.num_layers} layers; give one a layer."
                )
        own = tuple(None if window is None else check_count("window", window) for window in self.windows)
        object.__setattr__(self, "windows", own)
        object.__setattr__(
            self, "attention_scales", tuple(check_positive("attention scale", scale) for scale in self.attention_scales)
        )

    def own(self, name: str, check: Callable[[str, Any], Any]) -> None:
        """Check a number, and keep it as Python's own."""
        object.__setattr__(self, name, check(name, getattr(self, name)))

    @property
    def sizes(self) -> dict[str, int]:
        """How long each axis letter is."""
        return {
            "V": self.vocab_size, "D": self.hidden_size, "P": self.max_positions, "N": self.num_heads,
            "K": self.num_kv_heads, "G": self.num_heads // self.num_kv_heads, "H": self.head_dim,
            "Q": self.num_heads // self.num_kv_heads + 2, "F": self.intermediate_size, "U": 2 if self.gated_mlp else 1,
            "E": self.num_experts, "M": self.expert_size,
        }  # fmt: skip

    def rope(self, layer: int) -> Rope | None:
        """Base and scaling of this layer's rope; None where it rotates nothing."""
        if self.ropes:
            return self.ropes[layer]
        return None if self.rope_theta is None else (self.rope_theta, self.rope_scaling)

    @property
    def switch_length(self) -> int | None:
        """The last length of a text that is read with longrope's short factors; None where every text is read alike."""
        ropes = [self.rope(layer) for layer in range(self.num_layers)]
        lengths = {rope[1].original_max_positions for rope in ropes if rope and isinstance(rope[1], LongRopeScaling)}
        return min((length for length in lengths if length < self.max_positions), default=None)

    def window(self, layer: int) -> int | None:
        """How many positions a query of this layer sees, itself included; None for all."""
        return self.windows[layer] if self.windows else None

    def attention_scale(self, layer: int) -> float:
        """What this layer multiplies its scores by."""
        return self.attention_scales[layer] if self.attention_scales else self.head_dim**-0.5


def check_rope_scaling(scaling: RopeScaling) -> None:
    """Raise ConfigError unless every number of a rope scaling makes sense."""
    if not isinstance(scaling, RopeScaling):
        raise ConfigError(
            f"rope_scaling is {scaling!r}; expected a LinearScaling, Llama3Scaling, YarnScaling or LongRopeScaling, or None."
        )
    for field in dataclasses.fields(scaling):
        name, value = f"rope scaling {scaling.kind}: {field.name}", getattr(scaling, field.name)
        if field.name == "original_max_positions":
            check_count(name, value)
        elif isinstance(value, tuple):
            for factor in value:
                check_positive(name, factor)
        elif field.name != "truncate":
            check_positive(name, value)
        elif not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; expected True or False.")
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ConfigError(
            f"rope scaling llama3: high_freq_factor {scaling.high_freq_factor} has to be above "
            f"low_freq_factor {scaling.low_freq_factor}."
        )


def resolve_dtype(dtype: Any) -> np.dtype:
    """The dtype of weights and activations for "auto", a name, or a dtype. Raises ConfigError for any other.

    "auto" is float32 on CPU, where 16-bit products are converted one by one, and bfloat16 on GPU and TPU.
    """
    if isinstance(dtype, str) and dtype == "auto":
        import jax  # nothing else here asks what devices there are

        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    resolved = None if dtype is None else as_dtype(dtype)
    if resolved is None or resolved.name not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; known: auto, {', '.join(DTYPES)}, and int8 for weights.")
    return resolved


def resolve_weights(dtype: Any) -> tuple[np.dtype, bool]:
    """The dtype of activations, and whether matrices are kept in 8 bits: "int8" is "auto" with matrices in 8 bits.

    Raises ConfigError for what is neither "int8" nor known to resolve_dtype.
    """
    in_8_bits = dtype is not None and as_dtype(dtype) == np.dtype("int8")
    return resolve_dtype("auto" if in_8_bits else dtype), in_8_bits


def as_dtype(dtype: Any) -> np.dtype | None:
    """NumPy's dtype of what is one, or names one; None for anything else."""
    try:
        return np.dtype(ml_dtypes.bfloat16 if isinstance(dtype, str) and dtype == "bfloat16" else dtype)
    except TypeError:
        return None
