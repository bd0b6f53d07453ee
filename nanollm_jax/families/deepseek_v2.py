"""DeepSeek V2 and its Lite: keys and values of a latent, experts by a softmax, from the best groups.  arXiv:2405.04434"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import deepseek_v3
from nanollm_jax.families.glm4_moe import ignored
from nanollm_jax.families.llama import PREFIXES
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Weights of experts are never made to sum to 1, as in the reference."""
    reader = reader.renamed(n_routed_experts="num_experts")
    if not reader.flag("use_mla", True):
        raise reader.error("use_mla", "true: only attention over latents is read")
    method = reader.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise reader.error("topk_method", "'greedy' or 'group_limited_greedy'")
    if reader.flag("norm_topk_prob", False):
        raise reader.error("norm_topk_prob", "false")
    groups, best = (reader.count(key, 1) for key in ("n_group", "topk_group"))
    groups, best = (groups, best) if method == "group_limited_greedy" else (1, 1)
    dense, width = reader.count("first_k_dense_replace", 0, least=0), reader.count("moe_intermediate_size", 1407)
    return deepseek_v3.read(
        reader, default_max_positions=2048, query_width=1536, rope_pairs="neighbours",
        mlp_bias=reader.flag("mlp_bias", False), num_experts=reader.count("n_routed_experts", 64),
        experts_per_token=reader.count("num_experts_per_tok"), expert_size=width,
        shared_size=width * reader.count("n_shared_experts", 2),
        experts=[layer >= dense for layer in range(reader.count("num_hidden_layers"))],
        router=Router(
            groups=groups, top_groups=best, renormalize=False, scale=reader.number("routed_scaling_factor", 1.0)
        ),
    )  # fmt: skip


table = deepseek_v3.table
