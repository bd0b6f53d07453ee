"""What a layer can be: the records that a LayerConfig is made of. Nothing about devices, weights or sampling."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from nanollm_jax.checks import check_count, check_positive, whole
from nanollm_jax.errors import ConfigError, shown
from nanollm_jax.mixers import Mixer
from nanollm_jax.ropes import Rope

HALVES = ("attention", "mlp")  # of a layer
SCORES = ("softmax", "sigmoid")  # what becomes of a router's logits: names in ops/moe.py


@dataclass(frozen=True)
class Heads:
    """How many heads of attention there are and how wide each is, as in ModelConfig. values False says that a key/value head's
    keys, as they are before norm and rope, are its values too.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    values: bool = True

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                "every key/value head serves the same number of query heads."
            )
        if not isinstance(self.values, bool):
            raise ConfigError(f"heads: values is {self.values!r}; expected True or False.")

    @property
    def vectors(self) -> int:
        """How many of a key/value head are made beside its queries: a key and a value, or one that is both."""
        return 1 + self.values

    def sizes(self, gated: bool) -> dict[str, int]:
        """How long the axis letters of heads are. gated: each query has a gate behind it."""
        G = self.num_heads // self.num_kv_heads
        R = 2 * G if gated else G
        return {"N": self.num_heads, "K": self.num_kv_heads, "G": G, "H": self.head_dim, "R": R, "Q": R + self.vectors}


@dataclass(frozen=True)
class Latent:
    """Keys and values of all heads made of one latent vector a position, which is all that a cache holds of them, beside a part
    of a key that is rotated and that all heads share. DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.

    width        of the latent
    rotated      width of the shared part
    key          width of a head's own part of a key, which is not rotated
    value        width of a head's values
    query_width  of another latent, that queries are made of; None where they are made of the stream itself
    """

    width: int
    rotated: int
    key: int
    value: int
    query_width: int | None = None

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            if getattr(self, one.name) is not None or one.name != "query_width":
                object.__setattr__(self, one.name, check_count(f"latent: {one.name}", getattr(self, one.name)))


@dataclass(frozen=True)
class Sharpening:
    """Queries that grow with their positions, by 1 + beta ln(1 + floor(position / every)). Nakanishi 2025, arXiv:2501.19399."""

    beta: float
    every: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_positive("sharpening: beta", self.beta))
        object.__setattr__(self, "every", check_count("sharpening: every", self.every))


@dataclass(frozen=True)
class Router:
    """How a few of a layer's experts are chosen for each token, and what each of them counts.

    scores       what becomes of the router's logits: "softmax" over all experts, or "sigmoid" of each by itself
    corrected    is there a number for each expert that is added to its score for the choice alone? arXiv:2408.15664
    groups       in how many groups the experts lie, one behind the other
    top_groups   from how many of them, the best ones, experts are chosen. arXiv:2405.04434, section 2.2.2
    judged_by    how many of its best scores make up a group's
    weighted     is there a number for each expert that its weight is multiplied by?
    heat         what the router's logits are multiplied by
    renormalize  do the weights of those that were chosen sum to 1?
    least        what their sum is taken for where it is less
    scale        what every weight is multiplied by, last
    """

    scores: str = "softmax"
    corrected: bool = False
    groups: int = 1
    top_groups: int = 1
    judged_by: int = 1
    renormalize: bool = True
    least: float = 1e-20
    scale: float = 1.0
    weighted: bool = False
    heat: float = 1.0

    def __post_init__(self) -> None:
        if self.scores not in SCORES:
            raise ConfigError(f"scores {self.scores!r} of a router are not supported; known: {', '.join(SCORES)}.")
        for name in ("groups", "top_groups", "judged_by"):
            object.__setattr__(self, name, check_count(f"router: {name}", getattr(self, name)))
        for name in ("least", "scale", "heat"):
            object.__setattr__(self, name, check_positive(f"router: {name}", getattr(self, name)))
        for name in ("corrected", "renormalize", "weighted"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"router: {name} is {getattr(self, name)!r}; expected True or False.")
        if self.top_groups > self.groups:
            raise ConfigError(f"router: top_groups {self.top_groups} is more than {self.groups} groups.")

    def __repr__(self) -> str:
        return told(self)

    @property
    def parameters(self) -> dict[str, str]:
        """{name: axis letters} of its numbers for each expert."""
        return ({"correction": "E"} if self.corrected else {}) | ({"expert_scale": "E"} if self.weighted else {})

    def check(self, experts: int, chosen: int) -> None:
        """Raise ConfigError unless so many of so many experts can be chosen in this way."""
        size = experts // self.groups
        if experts % self.groups or self.judged_by > size or chosen > self.top_groups * size:
            raise ConfigError(
                f"{chosen} of {experts} experts cannot be chosen from {self.top_groups} of {self.groups} groups, "
                f"each judged by {self.judged_by} of its experts."
            )


@dataclass(frozen=True)
class LayerConfig:
    """What one layer may have otherwise than the next. Prints only what is not as it is in a plain LLaMA.

    window           how many positions a query sees, itself included; None for all
    rope             how queries and keys are rotated; None where nothing is
    attention_scale  what scores are multiplied by; None means 1/sqrt(head_dim)
    sharpening       how queries grow with their positions; None where they do not
    router           how experts are chosen, where it has some in place of the one MLP; None where not
    mixer            what it has in place of attention; None where it has attention
    lacks            the half that it does not have: "attention", or what would be in its place, or "mlp", experts too; None
                     where it has both
    heads            those of its attention, where they are not the model's; None where they are
    keys_of          the earlier layer at whose keys and values its queries look; None where it makes its own
    mlp_size         the width of its MLP, where it is not the model's; None where it is
    """

    window: int | None = None
    rope: Rope | None = Rope()  # noqa: RUF009 - it is frozen
    attention_scale: float | None = None
    sharpening: Sharpening | None = None
    router: Router | None = None
    mixer: Mixer | None = None
    lacks: str | None = None
    heads: Heads | None = None
    keys_of: int | None = None
    mlp_size: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            object.__setattr__(self, "window", check_count("window", self.window))
        if self.attention_scale is not None:
            object.__setattr__(self, "attention_scale", check_positive("attention_scale", self.attention_scale))
        if self.rope is not None and not isinstance(self.rope, Rope):
            raise ConfigError(f"rope is {shown(self.rope)}; expected a Rope, or None.")
        if self.sharpening is not None and not isinstance(self.sharpening, Sharpening):
            raise ConfigError(f"sharpening is {shown(self.sharpening)}; expected a Sharpening, or None.")
        if self.router is not None and not isinstance(self.router, Router):
            raise ConfigError(f"router is {shown(self.router)}; expected a Router, or None.")
        if self.mixer is not None and not isinstance(self.mixer, Mixer):
            raise ConfigError(f"mixer is {shown(self.mixer)}; expected a record of mixers.py, or None.")
        if self.lacks not in (None, *HALVES):
            raise ConfigError(f"lacks is {shown(self.lacks)}; expected {' or '.join(HALVES)}, or None.")
        inside = {"attention": self.mixer, "mlp": self.router}
        if self.lacks is not None and inside[self.lacks] is not None:
            raise ConfigError(f"a layer lacks its {self.lacks}, and has {shown(inside[self.lacks])} in its place.")
        if self.mlp_size is not None:
            object.__setattr__(self, "mlp_size", check_count("mlp_size", self.mlp_size))
            if self.lacks == "mlp" or self.router is not None:
                raise ConfigError(f"mlp_size is {self.mlp_size}, of a layer without a plain MLP; expected None.")
        if self.keys_of is not None:
            object.__setattr__(self, "keys_of", whole(self.keys_of))
            if not self.attends or self.keys_of is None or self.keys_of < 0:
                raise ConfigError(
                    f"keys_of is {self.keys_of}; expected the number of a layer, of one with attention, or None."
                )
        if self.heads is not None and (not self.attends or not isinstance(self.heads, Heads)):
            raise ConfigError(f"heads is {shown(self.heads)}; expected Heads of a layer with attention, or None.")

    @property
    def attends(self) -> bool:
        """Has it attention?"""
        return self.mixer is None and self.lacks != "attention"

    @property
    def keeps(self) -> bool:
        """Does a cache hold keys and values of its own?"""
        return self.attends and self.keys_of is None

    def letters(self, axes: str) -> str:
        """Axis letters as this layer has them: those of heads and of a width of its own have a mark, and where it looks at
        another's keys there are queries alone.  K Q H D -> K' Q' H' D, or K' R' H' D
        """
        axes = axes if self.keys_of is None else axes.replace("Q", "R")
        axes = axes if self.mlp_size is None else axes.replace("F", "F'")
        return re.sub("[KNGHQR]", r"\g<0>'", axes) if self.heads else axes

    def __repr__(self) -> str:
        return told(self)


def told(record: Any, **words: str) -> str:
    """A dataclass as it is printed: only what is not its default. words: for a field that is written otherwise."""
    said = {
        one.name: words.get(one.name, repr(getattr(record, one.name)))
        for one in dataclasses.fields(record)
        if getattr(record, one.name) != one.default
    }
    return f"{type(record).__name__}({', '.join(f'{name}={value}' for name, value in said.items())})"
