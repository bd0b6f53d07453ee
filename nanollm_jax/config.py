"""What a model is: its architecture as one frozen, hashable record. Nothing about devices, weights or sampling.

Precision policy, written here once and followed everywhere:
  weights, activations, cache   the run's dtype: float32 on CPU, bfloat16 on GPU and TPU, unless the user names one
  matrix products               accumulate in float32; float32 operands are multiplied in full float32 on every device
  norms, rope angles, softmax, logits, sampling   float32
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nanollm_jax.checks import check_count, check_positive
from nanollm_jax.errors import ConfigError, shown
from nanollm_jax.kinds import Heads, Latent, LayerConfig, told
from nanollm_jax.mixers import Mixer
from nanollm_jax.ropes import LongRopeScaling, Rope

# the kinds of norm: the name of a function in ops/norm.py, and the parameters that it takes behind x
NORMS = {"rms_norm": ("scale",), "layer_norm": ("scale", "bias"), "centred_norm": ("scale",)}
QK_NORMS = (None, "head", "width")
APART = ("router_norm", "experts_norm", "experts_post_norm", "shared_post_norm")  # where experts_apart
ROPE_PAIRS = ("halves", "neighbours")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu_squared", "silu", "clamped_swish")
MOST_LAYERS = 10_000  # the deepest model that was published has 126; each is a piece of the compiled program


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one decoder-only transformer. Letters as in layout.py. Raises ConfigError on values that cannot be.

    layers has one record for each of the L layers: what is special about it. learned_positions is a table of max_positions
    vectors, for models that rotate nothing.
    rotary_dim is how many channels of a head are rotated, the first ones; None means all. rope_pairs says which of them
    turn together: "halves" channel i of the first half with i of the second, "neighbours" channels 2i and 2i + 1.
    pre_norm is a norm before attention and MLP, post_norm one of what they give, before it is added. With a parallel_residual,
    shared_norm says that both halves read what the one norm before them gives. head_bias is one of the logits.
    qk_norm "head" normalises each query and key head by itself, "width" all heads of a token together, both by RMS;
    norm_behind_rope does so when they have been rotated. value_norm does so with each value head, without a scale.
    counted_heads is how many query and key heads a norm of all together counts, where a mesh holds more; None means all.
    norm_offset is added to every norm's scale. layer_scale is one number that the stream is multiplied by behind each layer. A
    cap c makes c * tanh(x / c) of x.
    attention_gate is one for each channel of each query head, which lets a part of what it gives through.
    attention_sinks is one more score for each query head, which takes its part and gives nothing. expert_bias is one in the
    router and two in every expert.
    latent says how keys and values are made of one vector a position. The cache then holds it for one key/value head, behind
    the rotated part: head_dim is the width of both, rotary_dim that of the part.
    num_experts 0 means that there are none; layers say which of them have some. shared_size is the width of an MLP beside
    them that every token goes through, 0 without one; shared_gate lets each token say how much of it counts. expert_latent is
    the width of what experts read and give, between two matrices that all of a layer share; 0 where it is the stream itself.
    layer_inputs is the width of what each layer is told of a token besides the stream: a row of a table, and what the token's
    embedding says, of which it adds as much as the stream lets through; 0 where there is nothing.
    experts_apart says that router and experts read the stream itself, each through a norm of its own, and that what experts
    give and what the MLP beside them gives have norms too.
    """

    vocab_size: int  # V
    hidden_size: int  # D
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    intermediate_size: int  # F
    max_positions: int  # P
    layers: tuple[LayerConfig, ...] = field(hash=False)  # L of them: to hash them all would take longer than a step
    norm: str = "rms_norm"
    norm_eps: float = 1e-5
    activation: str = "silu"
    gated_mlp: bool = True
    learned_positions: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    rotary_dim: int | None = None
    rope_pairs: str = "halves"
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: str | None = None
    norm_behind_rope: bool = False
    value_norm: bool = False
    counted_heads: tuple[int, int] | None = None
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    layer_scale: bool = False
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    qkv_clip: float | None = None
    attention_sinks: bool = False
    attention_gate: bool = False
    latent: Latent | None = None
    parallel_residual: bool = False
    shared_norm: bool = False
    head_bias: bool = False
    num_experts: int = 0  # E
    experts_per_token: int = 1
    expert_size: int = 1  # M
    expert_bias: bool = False
    expert_latent: int = 0  # O
    shared_size: int = 0  # W
    shared_gate: bool = False
    experts_apart: bool = False
    layer_inputs: int = 0  # I

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_positions",
        ):
            self.own(name, check_count)
        layers = self.layers  # a list has no hash, and jit needs one
        if not isinstance(layers, tuple) or not layers or any(not isinstance(layer, LayerConfig) for layer in layers):
            raise ConfigError(f"layers is {shown(layers)}; expected a tuple of LayerConfigs, one a layer.")
        if len(layers) > MOST_LAYERS:
            raise ConfigError(f"layers has {len(layers)} entries; expected at most {MOST_LAYERS}.")
        if len(mixers := {layer.mixer for layer in layers} - {None}) > 1:
            raise ConfigError(f"layers have different mixers, {shown(mixers)}; expected one kind beside attention.")
        if all(layer.lacks == "attention" for layer in layers):
            raise ConfigError("all layers lack attention: no token would know of those before it.")
        if self.parallel_residual and any(layer.lacks for layer in layers):
            raise ConfigError("a layer lacks a half, and parallel_residual is True: there are no two to be parallel.")
        Heads(self.num_heads, self.num_kv_heads, self.head_dim)  # which checks them
        if len(others := {layer.heads for layer in layers} - {None}) > 1:
            raise ConfigError(f"layers have heads of {shown(others)}; expected one kind beside the model's own.")
        if others and (self.latent is not None or self.qk_norm == "width" or self.rotary_dim is not None):
            raise ConfigError(
                "layers have heads of their own beside a latent, a rotary_dim or a qk_norm 'width'; that is not computed."
            )
        if len(widths := {layer.mlp_size for layer in layers} - {None}) > 1:
            raise ConfigError(f"layers have MLPs of {shown(widths)}; expected one width beside the model's own.")
        for index, layer in enumerate(layers):
            if layer.keys_of is not None:
                self.check_keys_of(index, layer)
        if self.norm not in tuple(NORMS):
            raise ConfigError(f"norm {self.norm!r} is not supported; known: {', '.join(NORMS)}.")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation {self.activation!r} is not supported; known: {', '.join(ACTIVATIONS)}.")
        if self.activation == "clamped_swish" and not self.gated_mlp:
            raise ConfigError("activation 'clamped_swish' is of a gate and what it lets through; gated_mlp is False.")
        self.own("norm_eps", check_positive)
        for width in {self.heads_of(layer).head_dim for layer in layers if layer.rope}:
            if width % 2:
                raise ConfigError(f"head_dim {width} is odd; rope rotates pairs, so it has to be even.")
        if self.rotary_dim is not None:
            self.own("rotary_dim", check_count)
            if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
                raise ConfigError(f"rotary_dim {self.rotary_dim} is not an even number up to head_dim {self.head_dim}.")
        if self.rope_pairs not in ROPE_PAIRS:
            raise ConfigError(f"rope_pairs {self.rope_pairs!r} is not supported; known: {', '.join(ROPE_PAIRS)}.")
        for name in ("embedding_scale", "residual_scale", "logit_scale"):
            self.own(name, check_positive)
        for name in ("attention_softcap", "logit_softcap", "qkv_clip"):
            if getattr(self, name) is not None:
                self.own(name, check_positive)
        if self.qk_norm not in QK_NORMS:
            raise ConfigError(f"qk_norm {self.qk_norm!r} is not supported; known: {', '.join(map(str, QK_NORMS))}.")
        if self.latent is not None:
            self.check_latent()
        if self.shared_norm and not (self.parallel_residual and self.pre_norm):
            raise ConfigError("shared_norm needs a parallel_residual and a pre_norm, for two halves to share it.")
        if self.norm_behind_rope and self.qk_norm is None:
            raise ConfigError("norm_behind_rope is True, and qk_norm None: there is no norm of queries and keys.")
        if self.num_experts:
            for name in ("num_experts", "experts_per_token", "expert_size"):
                self.own(name, check_count)
            if self.experts_per_token > self.num_experts:
                raise ConfigError(
                    f"experts_per_token {self.experts_per_token} is more than {self.num_experts} experts."
                )
            for router in {layer.router for layer in layers if layer.router}:
                router.check(self.num_experts, self.experts_per_token)
            for name in ("shared_size", "expert_latent"):
                if getattr(self, name):
                    self.own(name, check_count)
        if self.layer_inputs:
            self.own("layer_inputs", check_count)
        if self.experts_apart and not (self.num_experts and self.shared_size):
            raise ConfigError("experts_apart needs experts and a shared_size, for an MLP beside them.")
        if not self.num_experts and any(layer.router for layer in layers):
            raise ConfigError("a layer has experts, and num_experts is 0; say how many there are.")
        for name in ("gated_mlp", "learned_positions", "qkv_bias", "attention_out_bias", "mlp_bias", "tie_embeddings",
                     "pre_norm", "post_norm", "norm_behind_rope", "value_norm", "layer_scale", "parallel_residual",
                     "shared_norm", "head_bias", "shared_gate", "attention_sinks", "attention_gate",
                     "expert_bias", "experts_apart"):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected True or False.")

    def check_keys_of(self, index: int, layer: LayerConfig) -> None:
        """Raise ConfigError unless a layer can look at the keys and values of the one that it names."""
        other = self.layers[layer.keys_of] if layer.keys_of is not None and layer.keys_of < index else None
        if other is None or not other.keeps or (other.heads, other.window) != (layer.heads, layer.window):
            raise ConfigError(
                f"layer {index} looks at the keys of layer {layer.keys_of}; expected an earlier one with keys of its own, the "
                "same heads and the same window."
            )
        if self.latent is not None:
            raise ConfigError(f"layer {index} looks at another's keys beside a latent; that is not computed.")

    def check_latent(self) -> None:
        """Raise ConfigError unless the other fields are those of a model with latents."""
        if not isinstance(self.latent, Latent):
            raise ConfigError(f"latent is {shown(self.latent)}; expected a Latent, or None.")
        sizes = (self.latent.rotated, self.latent.rotated + self.latent.width)
        if (self.rotary_dim, self.head_dim) != sizes:
            raise ConfigError(
                f"rotary_dim is {self.rotary_dim} and head_dim {self.head_dim}; expected {sizes[0]} and {sizes[1]}, as the "
                "latent says."
            )
        others = {"qkv_bias": self.qkv_bias, "qk_norm": self.qk_norm, "qkv_clip": self.qkv_clip,
                  "attention_sinks": self.attention_sinks, "attention_gate": self.attention_gate,
                  "window": any(layer.window for layer in self.layers)}  # fmt: skip
        if beside := [name for name, value in others.items() if value]:
            raise ConfigError(f"{', '.join(beside)} beside a latent: that is not computed; leave it out.")

    def own(self, name: str, check: Callable[[str, Any], Any]) -> None:
        """Check a number, and keep it as Python's own."""
        object.__setattr__(self, name, check(name, getattr(self, name)))

    @property
    def sizes(self) -> dict[str, int]:
        """How long each axis letter is."""
        return {
            "1": 1, "V": self.vocab_size, "D": self.hidden_size, "P": self.max_positions, "F": self.intermediate_size,
            "U": 2 if self.gated_mlp else 1, "E": self.num_experts, "M": self.expert_size, "W": self.shared_size,
            "O": self.expert_latent,
        } | ({"I": self.layer_inputs, "L*I": len(self.layers) * self.layer_inputs} if self.layer_inputs else {}) | (
            {"F'": wide[0]} if (wide := [layer.mlp_size for layer in self.layers if layer.mlp_size]) else {}
        ) | self.own_heads.sizes(self.attention_gate) | {
            f"{letter}'": size for one in (self.other_heads,) if one
            for letter, size in one.sizes(self.attention_gate).items()
        } | ({} if (one := self.latent) is None else {
            "C": one.width, "A": one.value, "X": one.key + one.value, "Y": one.key + one.rotated, "Z": one.rotated,
            "J": one.query_width or 0,
        }) | (self.mixer.sizes if self.mixer else {})  # fmt: skip

    @property
    def own_heads(self) -> Heads:
        """Those of every layer that has none of its own."""
        return Heads(self.num_heads, self.num_kv_heads, self.head_dim)

    @property
    def other_heads(self) -> Heads | None:
        """Those of the layers that have some of their own; None where none has."""
        return next((layer.heads for layer in self.layers if layer.heads), None)

    def heads_of(self, layer: LayerConfig) -> Heads:
        """The heads of one of the layers."""
        return layer.heads or self.own_heads

    def made(self, layer: LayerConfig) -> int:
        """How many vectors of each key/value head a layer makes beside queries: 2, 1 that is both, or 0."""
        return self.heads_of(layer).vectors if layer.keys_of is None else 0

    @property
    def ropes(self) -> list[tuple[Rope, int] | None]:
        """How each layer turns queries and keys, and how many channels of a head; None where nothing is."""
        widths = [self.rotary_dim or self.heads_of(layer).head_dim for layer in self.layers]
        return [(layer.rope, width) if layer.rope else None for layer, width in zip(self.layers, widths, strict=True)]

    @property
    def vectors(self) -> int:
        """How many vectors [H] a cache holds of a position, for each key/value head: a key and a value, or a latent."""
        return 2 if self.latent is None else 1

    def widths(self, layer: LayerConfig) -> tuple[int, int]:
        """How wide a key of one head of a layer is, where it is made for itself, and what the head gives."""
        width = self.heads_of(layer).head_dim
        return (width, width) if self.latent is None else (self.latent.key + self.latent.rotated, self.latent.value)

    @property
    def mixer(self) -> Mixer | None:
        """What those layers have in place of attention that have something; None where all have attention."""
        return next((layer.mixer for layer in self.layers if layer.mixer), None)

    @property
    def norms(self) -> tuple[str, ...]:
        """Which norms of the residual stream there are: those of a layer, and the last. All are of the one kind `norm`."""
        before = (("attention_norm",) + ("mlp_norm",) * (not self.shared_norm)) if self.pre_norm else ()
        behind = ("attention_post_norm", "mlp_post_norm") if self.post_norm else ()
        told = ("input_post_norm",) if self.layer_inputs else ()
        return (*before, *behind, *told, *(APART if self.experts_apart else ()), "final_norm")

    @property
    def norm_leaves(self) -> tuple[str, ...]:
        """The parameters of each of them, in the order in which the kind's function takes them, [D] each."""
        return NORMS[self.norm]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def switch_length(self) -> int | None:
        """The last length of a text that is read with longrope's short factors; None where every text is read alike."""
        scalings = {layer.rope.scaling for layer in self.layers if layer.rope}
        lengths = [one.original_max_positions for one in scalings if isinstance(one, LongRopeScaling)]
        return min((length for length in lengths if length < self.max_positions), default=None)

    def __repr__(self) -> str:
        return told(self, layers=f"({', '.join(f'{where}: {layer}' for layer, where in self.alike())})")

    def alike(self) -> list[tuple[LayerConfig, str]]:
        """Each kind of layer, in order of the first of it, and which layers are of it: "0-4 6-10 12"."""
        kinds = dict.fromkeys(self.layers, "")
        for kind in kinds:
            own = {index: None for index, layer in enumerate(self.layers) if layer == kind}
            firsts = [index for index in own if index - 1 not in own]
            lasts = [index for index in own if index + 1 not in own]
            kinds[kind] = " ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(firsts, lasts, strict=True))
        return list(kinds.items())
