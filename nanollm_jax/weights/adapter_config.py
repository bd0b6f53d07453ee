"""adapter_config.json: by what an adapter is scaled; what it says that would be computed otherwise is refused by its name."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanollm_jax import files
from nanollm_jax.checks import single, whole
from nanollm_jax.errors import CheckpointError, shown

CONFIG = "adapter_config.json"
# keys that change what an adapter computes, and what they may be: what is none of this is refused by its name
MEANS_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "use_dora": (True, False, None), "use_rslora": (True, False, None),
    "bias": ("none", "all", "lora_only", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}  # fmt: skip
NUMBERS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
# how the adapter was made and trained, and where from: nothing is computed otherwise for it
INERT = frozenset(
    """task_type auto_mapping base_model_name_or_path revision inference_mode target_modules exclude_modules lora_dropout
    fan_in_fan_out modules_to_save layers_to_transform layers_pattern peft_version megatron_core megatron_config loftq_config
    eva_config corda_config lora_ga_config runtime_config ensure_weight_tying qalora_group_size merge_weights enable_lora
    library_name tags transformers_version""".split()
)
# alpha_pattern has regular expressions, from a stranger: such that none of them takes long
PLAIN, REPEATED_GROUP, MOST_REPEATS, MOST_FREE, LONGEST = (
    re.compile(r"\^?[\w.-]+"),
    re.compile(r"\)[*+?{]|\(\?|\\\d"),
    2,
    32,
    200,
)


@dataclass(frozen=True)
class Scale:
    """What the product of an adapter is multiplied by: alpha over its rank, or (rsLoRA) over the root of its rank."""

    alpha: float
    patterns: dict[str, float]
    ranks: tuple[int, ...]
    rooted: bool

    def of(self, module: str, rank: int, file: Path) -> float:
        """That of one module. Raises CheckpointError for a rank that adapter_config.json does not speak of."""
        if rank not in self.ranks:
            said = " or ".join(map(str, self.ranks[:8]))
            raise CheckpointError(
                f"{file}: {module} is of rank {rank}; {CONFIG} says {said}. They belong to different ones."
            )
        alpha = next((a for key, a in self.patterns.items() if re.match(rf"(.*\.)?({key})$", module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rooted else rank)


def read_config(path: Path) -> Scale:
    """adapter_config.json. Raises CheckpointError for what is not LoRA, and for what changes it in a way not known here."""
    values = files.read_json(path, CheckpointError)
    for key, value in values.items():
        allowed = ALLOWED.get(key, MEANS_NOTHING)
        if key not in (*NUMBERS, *INERT) and not any(type(value) is type(one) and value == one for one in allowed):
            expected = ", ".join(map(str, allowed)) if key in ALLOWED else "nothing"
            raise CheckpointError(
                f"{path}: {key} is {shown(value)}, which is not supported; expected {expected}. With peft it can be merged "
                "into its model, and what save_pretrained writes then is read."
            )
    if "peft_type" not in values:
        raise CheckpointError(f"{path}: has no peft_type; expected the file of a LoRA adapter, as peft writes it.")
    ranks, alphas = ({"": values.get(key, 8)} | table(path, values, f"{name}_pattern")
                     for key, name in (("r", "rank"), ("lora_alpha", "alpha")))  # fmt: skip
    for key, value in [*ranks.items(), *alphas.items()]:
        wrong = single(value) is None or (key in ranks and ranks[key] is value and not (whole(value) or 0) > 0)
        if wrong:
            raise CheckpointError(
                f"{path}: the rank or alpha of {key or 'all modules'} is {shown(value)}; expected a number."
            )
    patterns = {key: float(alpha) for key, alpha in alphas.items() if key}
    check_patterns(path, list(patterns))
    return Scale(
        float(alphas[""]), patterns, tuple(dict.fromkeys(map(int, ranks.values()))), bool(values.get("use_rslora"))
    )


def table(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    """An object of config.json, empty where there is none."""
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: {key} is {shown(found)}; expected an object.")
    return found


def check_patterns(path: Path, patterns: Sequence[str]) -> None:
    """Raise CheckpointError for regular expressions that are none, or that may take for ever."""
    free = [pattern for pattern in patterns if not PLAIN.fullmatch(pattern)]
    for pattern in free:
        repeats = sum(map(pattern.count, "*+?{"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(f"({pattern})$")
        except (re.error, OverflowError, RecursionError):
            repeats = MOST_REPEATS + 1
        if len(free) > MOST_FREE or len(pattern) > LONGEST or repeats > MOST_REPEATS or REPEATED_GROUP.search(pattern):
            raise CheckpointError(
                f"{path}: alpha_pattern has {shown(pattern)}; expected names of modules, or a few regular expressions with at "
                f"most {MOST_REPEATS} repetitions and none of a group."
            )
