"""Reading config.json so that nothing is dropped in silence: every key is read by a family, or is what keys.py says of it.

Both dialects in the wild are read: rope_theta with rope_scaling (transformers 4) and rope_parameters (transformers 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nanollm_jax.checks import LEAST_FLOAT, MOST, MOST_FLOAT
from nanollm_jax.config import MOST_LAYERS, ModelConfig
from nanollm_jax.errors import UNQUANTISED, ConfigError, shown
from nanollm_jax.families.keys import QUANTISED, is_inert, switches_nothing_on, why_ignored
from nanollm_jax.ropes import LinearScaling, Llama3Scaling, LongRopeScaling, PartScaling, Rope, RopeScaling, YarnScaling

ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_accurate": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu_squared", "silu": "silu",
    "swish": "silu",
}  # fmt: skip

LAYERS = ("num_hidden_layers", "n_layer")  # the keys that count them


class Reader:
    """A parsed config.json that remembers which keys were read. Every method raises ConfigError naming file and key."""

    def __init__(self, values: dict[str, Any], where: str, family: str = "") -> None:
        """values: the JSON object. where: its file, for messages. family: whose keys they are."""
        self.values = values
        self.where = where
        self.family = family
        self.read: set[str] = set()
        self.ignored: list[str] = []  # what finish found and a warning should name

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where the key is missing."""
        self.read.add(key)
        return self.values.get(key, default)

    def error(self, key: str, expected: str) -> ConfigError:
        """The error for a key with a wrong value."""
        found = shown(self.values[key]) if key in self.values else "missing"
        return ConfigError(f"{self.where}: {key} is {found}; expected {expected}.")

    def having(self, **changes: Any) -> Reader:
        """The same file as if it said so, remembering together what was read."""
        other = Reader(self.values | changes, self.where, self.family)
        other.read, other.ignored = self.read, self.ignored
        return other

    def renamed(self, **names: str) -> Reader:
        """The same file where keys have second names: renamed(n_embd="hidden_size"). As in the reference, the second wins."""
        return self.having(**{key: self.get(other) for key, other in names.items() if self.get(other) is not None})

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; a null counts as missing; without a default it has to be there.

        It is bounded here and not only in ModelConfig, because a family makes lists with one entry a layer.
        """
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, f"a whole number of at least {least}")
        most = MOST_LAYERS if key in LAYERS else MOST
        if value > most:
            raise self.error(key, f"a whole number of at most {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number above 0; a null counts as missing."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_FLOAT <= value <= MOST_FLOAT:
            raise self.error(key, "a finite number above 0 (in float32)")
        return float(value)

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers above 0 that has to be there."""
        values = self.get(key)
        if not isinstance(values, list) or not values:
            raise self.error(key, "a list of finite numbers above 0")
        return [Reader({key: value}, self.where).number(key, 0) for value in values]

    def flag(self, key: str, default: bool) -> bool:
        """true or false; a null counts as missing."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str) -> str:
        """A string that has to be there."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def object(self, key: str, family: str = "") -> Reader:
        """What stands in an object, to be read like a file; `family` where it is a whole config of its own."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return self.inside(value, key, family)

    def inside(self, values: dict[str, Any], key: str, family: str = "") -> Reader:
        """A part of the file to be read like a file, whose ignored keys are named with the others."""
        inner = Reader(values, f"{self.where}: {key}", family)
        inner.ignored = self.ignored
        return inner

    def optional(self, key: str, default: float | None = None) -> float | None:
        """A finite number above 0, or null for none."""
        return None if self.get(key, default) is None else self.number(key, default or 1.0)

    def optional_count(self, key: str, default: int | None = None) -> int | None:
        """A whole number of at least 1, or null for none."""
        return None if self.get(key, default) is None else self.count(key, default)

    def windows(self, window: int | None, types: list[str]) -> tuple[int | None, ...]:
        """One window per layer out of layer_types, which may be missing: then `types`. () where no layer has one."""
        found = self.get("layer_types")
        found = types if found is None else found
        if isinstance(found, list):  # an older word
            found = ["full_attention" if kind == "attention" else kind for kind in found]
        known = ("full_attention", "sliding_attention")
        if not isinstance(found, list) or len(found) != len(types) or any(kind not in known for kind in found):
            raise self.error("layer_types", f"a list of {len(types)} of {' and '.join(known)}")
        if window is None and "sliding_attention" in found:
            raise self.error("sliding_window", "a number, because layer_types has sliding_attention")
        windows = tuple(window if kind == "sliding_attention" else None for kind in found)
        return windows if any(windows) else ()

    def activation(self, key: str, default: str) -> str:
        """Our name of an activation function."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(key, f"a supported activation; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def rope(
        self, max_positions: int, default_theta: float = 10000.0, default_partial: float | None = None
    ) -> tuple[Rope, float]:
        """Rope's base and scaling, and which part of a head it turns, from either dialect.

        default_partial None says that the family turns whole heads, whatever the file says.
        """
        old, new = self.get("rope_scaling"), self.get("rope_parameters")
        for key, value in (("rope_scaling", old), ("rope_parameters", new)):
            if value is not None and not isinstance(value, dict):
                raise self.error(key, "an object or null")
        if old and new and old != new:
            raise ConfigError(f"{self.where}: rope_scaling and rope_parameters disagree; keep one of the two.")
        key = "rope_parameters" if new else "rope_scaling"
        inner = self.inside(new or old or {}, key, "rope")
        theta = inner.number("rope_theta", self.number("rope_theta", default_theta))
        # a key beside the object wins over the one in it, as in the reference
        original = self.count("original_max_position_embeddings", inner.count(
            "original_max_position_embeddings", max_positions))  # fmt: skip
        outside = self.number("partial_rotary_factor", default_partial or 1.0)
        partial = inner.number("partial_rotary_factor", outside)
        kind = inner.get("rope_type", inner.get("type", "default"))
        if partial > 1.0 or (kind != "proportional" and partial != 1.0 and default_partial is None):
            raise ConfigError(f"{self.where}: partial_rotary_factor {partial} is not supported here; expected 1.")
        if kind == "proportional":  # a part of the pairs of whole heads
            scaling: RopeScaling | None = PartScaling(partial, inner.number("factor", 1.0))
            partial = 1.0
        else:
            scaling = read_scaling(inner, kind, original, max_positions)
        inner.finish()
        return Rope(theta, scaling), partial

    def finish(self) -> None:
        """Raise for keys that nobody read and that may matter, and note those that do not. See keys.py."""
        unread = {
            key: value
            for key, value in self.values.items()
            if key not in self.read and not is_inert(self.family, key) and not switches_nothing_on(value)
        }
        for key, value in unread.items():
            if QUANTISED.search(key.lower()):
                raise ConfigError(
                    f"{self.where}: {key} says {method(value)}: quantised weights of that kind are not read; {UNQUANTISED}."
                )
        reasons = {key: why_ignored(self.family, key) for key in unread}
        if refused := [f"{key} = {shown(unread[key])}" for key, reason in reasons.items() if reason is None]:
            raise ConfigError(
                f"{self.where}: not understood: {', '.join(refused)}. The model may compute something else with it; "
                "if you know that it does not, remove it from the file."
            )
        self.ignored += [
            f"{key} = {shown(unread[key])}{f' ({reason})' if reason else ''}" for key, reason in reasons.items()
        ]


def method(quantisation: Any) -> str:
    """What a quantisation config calls its kind: "GPTQ", "MODELOPT NVFP4". MLX's has no name for itself, only bits."""
    if not isinstance(quantisation, dict):
        return shown(quantisation)
    names = [quantisation.get(key) for key in ("quant_method", "quant_algo", "format")]
    named = [name.upper() for name in names if isinstance(name, str)]
    if not named and isinstance(bits := quantisation.get("bits"), int):
        named = [f"MLX {bits} bits"]
    return " ".join(named)[:80] or "something unknown"


def text_part(
    reader: Reader, family: str, read: Callable[[Reader], ModelConfig], defaults: dict[str, Any], tied: bool
) -> ModelConfig:
    """The text model of a checkpoint that also sees: what is under text_config, a config of this family.

    defaults is what a missing key means. Whether embeddings are tied is the whole's to say, as in the reference.
    """
    text = reader.object("text_config", family)
    text.get("model_type")
    tied = reader.flag("tie_word_embeddings", text.flag("tie_word_embeddings", False) or tied)
    config = read(text.having(**defaults | text.values | {"tie_word_embeddings": tied}))
    text.finish()
    return config


def read_scaling(inner: Reader, kind: Any, original: int, max_positions: int) -> RopeScaling | None:
    """The scaling record of one kind. original: the positions before the context was stretched."""
    if kind == "default":
        return None
    if kind == "dynamic":  # stretches the base for texts beyond max_positions only, and there are none
        need(inner, "factor")
        return None
    if kind == "linear":
        return LinearScaling(need(inner, "factor"))
    if kind == "llama3":
        return Llama3Scaling(
            need(inner, "factor"), need(inner, "low_freq_factor"), need(inner, "high_freq_factor"), original
        )
    if kind == "yarn":
        factor = inner.number("factor", max_positions / original)
        return YarnScaling(
            factor, original, attention_factor=yarn_attention_factor(inner, factor),
            beta_fast=inner.number("beta_fast", 32.0), beta_slow=inner.number("beta_slow", 1.0),
            truncate=inner.flag("truncate", "truncate" not in inner.values),  # null is false, as in the reference
        )  # fmt: skip
    if kind == "longrope":
        factor = inner.number("factor", max_positions / original)
        stretch = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
        short, long = (tuple(inner.numbers(key)) for key in ("short_factor", "long_factor"))
        return LongRopeScaling(short, long, original, inner.number("attention_factor", stretch))
    raise ConfigError(
        f"{inner.where}: rope type {kind!r} is not supported; known: default, linear, dynamic, llama3, yarn, longrope, "
        "proportional."
    )


def yarn_attention_factor(inner: Reader, factor: float) -> float:
    """What rotated vectors are multiplied by: given, or a ratio of two mscales, or 0.1 ln(factor) + 1 (eq. 22)."""

    def hotter(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    # one of the two alone says nothing, and 0 is as good as missing
    given = all([inner.get(key) for key in ("mscale", "mscale_all_dim")])
    mscale, all_dim = (inner.number(key, 1.0) if given else 1.0 for key in ("mscale", "mscale_all_dim"))
    return inner.number("attention_factor", hotter(mscale) / hotter(all_dim) if given else hotter(1.0))


def yarn_stretch(reader: Reader) -> float:
    """What a stretched rope makes of the scale of queries, and of that of keys, in a model with latents, beside what rotated
    vectors are multiplied by: 0.1 mscale_all_dim ln(factor) + 1, or 1 where it has no mscale_all_dim.
    """
    key = "rope_parameters" if reader.get("rope_parameters") else "rope_scaling"
    rope = reader.get(key) or {}
    if not isinstance(rope, dict):
        raise reader.error(key, "an object or null")
    if rope.get("rope_type", rope.get("type", "default")) == "default" or not rope.get("mscale_all_dim"):
        return 1.0
    inner = reader.inside(rope, key, "rope")
    factor = need(inner, "factor")
    return 0.1 * inner.number("mscale_all_dim", 1.0) * math.log(factor) + 1.0 if factor > 1 else 1.0


def need(inner: Reader, key: str) -> float:
    """A finite number above 0 that has to be there."""
    if inner.values.get(key) is None:
        raise inner.error(key, "a finite number above 0")
    return inner.number(key, 1.0)
