"""Mixtral: Mistral with eight MLPs in place of one, two of them for each token.  arXiv:2401.04088"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    reader = reader.renamed(num_local_experts="num_experts")
    window = reader.optional_count("sliding_window")
    return llama.read(
        reader, default_max_positions=4096 * 32, default_kv_heads=8, default_theta=1e6, eps=("rms_norm_eps", 1e-5),
        window=window, num_experts=reader.count("num_local_experts", 8),
        experts_per_token=reader.count("num_experts_per_tok", 2), expert_size=reader.count("intermediate_size"),
    )  # fmt: skip


def experts(config: ModelConfig, ours: str, theirs: str, names: tuple[str, str, str]) -> list[Row]:
    """The rows of one layer's router and experts; names are those of gate, up and down.

    Experts are a tensor each, or all of a layer lie in one: gate above up, as transformers 5 holds them (under the layer's
    "mlp" in every family), or each by itself, as mlx-lm does.
    """
    gate, up, down = names
    rows = [
        Row(f"{ours}.router", f"{theirs}.gate.weight", "E D -> E D"),
        Row(f"{ours}.up", f"{ours}.experts.gate_up_proj", "E (U M) D -> E U M D", instead=1),
        Row(f"{ours}.down", f"{ours}.experts.down_proj", "E D M", instead=1),
        Row(f"{ours}.up", f"{theirs}.switch_mlp.gate_proj.weight", "E M D -> E 1 M D", (1, 0, 1), instead=2),
        Row(f"{ours}.up", f"{theirs}.switch_mlp.up_proj.weight", "E M D -> E 1 M D", (1, 1, 2), instead=2),
        Row(f"{ours}.down", f"{theirs}.switch_mlp.down_proj.weight", "E D M", instead=2),
    ]
    if theirs != ours:
        rows.append(Row(f"{ours}.router", f"{ours}.gate.weight", "E D -> E D", instead=1))
    for e in range(config.num_experts):
        expert = f"{theirs}.experts.{e}"
        rows += [
            Row(f"{ours}.up", f"{expert}.{gate}.weight", "M D -> 1 1 M D", ((0, e, e + 1), (1, 0, 1))),
            Row(f"{ours}.up", f"{expert}.{up}.weight", "M D -> 1 1 M D", ((0, e, e + 1), (1, 1, 2))),
            Row(f"{ours}.down", f"{expert}.{down}.weight", "D M -> 1 D M", (0, e, e + 1)),
        ]
    return rows


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's router and experts."""
    return experts(config, ours, theirs.replace(".mlp", ".block_sparse_moe"), ("w1", "w3", "w2"))


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
