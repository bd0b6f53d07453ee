"""The same logits as PEFT, of adapters that it wrote: targets by list, by expression and all, ranks and alphas by pattern."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from test_parity import GEMMA4_SMALL, GPT2, LLAMA, MIXTRAL, NEOX, PHI3, QWEN3, reference_logits, write_reference

import nanollm_jax as nano

pytestmark = pytest.mark.parity

CASES = {
    "llama": (LLAMA, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama-all": (LLAMA | {"attention_bias": True}, {"target_modules": "all-linear", "use_rslora": True}),
    "llama-dora": (LLAMA, {"target_modules": ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"], "use_dora": True}),
    "llama-patterns": (LLAMA, {"target_modules": r".*\.(self_attn|mlp)\..*proj", "rank_pattern": {"k_proj": 9, "down_proj": 2},
                               "alpha_pattern": {r"layers\.1\..*": 5, "^model.layers.0.mlp.up_proj": 40}}),
    "llama-layers": (LLAMA, {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0, 2]}),
    "llama-head": (LLAMA, {"target_modules": ["lm_head", "v_proj"]}),
    "llama-biases": (LLAMA | {"attention_bias": True}, {"target_modules": ["q_proj"], "bias": "all"}),
    "llama-whole": (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "gpt2": (GPT2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt2-dora": (GPT2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True, "use_rslora": True}),
    "qwen3": (QWEN3, {"target_modules": "all-linear", "use_dora": True}),
    "phi3": (PHI3, {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    "gpt_neox": (NEOX, {"target_modules": ["query_key_value", "dense_4h_to_h"]}),
    "mixtral": (MIXTRAL, {"target_modules": ["q_proj", "v_proj"]}),
    "gemma4": (GEMMA4_SMALL, {"target_modules": "all-linear"}),
}  # fmt: skip
ONLY_MERGED = ("llama-biases", "llama-whole")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_the_same_logits_as_peft(name, tmp_path):
    import peft
    import torch

    settings, how = CASES[name]
    reference = write_reference(tmp_path / "base", settings, seed=len(name))
    adapted = peft.get_peft_model(reference, peft.LoraConfig(r=4, lora_alpha=11, task_type="CAUSAL_LM", **how))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif "magnitude" in parameter_name:
                parameter.copy_(parameter * (0.5 + torch.rand_like(parameter)))
            elif (parameter_name.endswith("bias") and how.get("bias")) or "modules_to_save" in parameter_name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    adapted.eval()
    adapted.save_pretrained(tmp_path / "adapter")
    tokens = np.random.default_rng(0).integers(0, settings["vocab_size"], (2, 13))
    expected = reference_logits(adapted, tokens)
    with adapted.disable_adapter():
        without = reference_logits(adapted, tokens)
    assert np.abs(expected - without).max() > 0.03 * np.abs(without).max()
    forward = jax.jit(nano.forward, static_argnames="config")
    for merge in ("a",) if name in ONLY_MERGED else (None, "a"):
        model = nano.load(tmp_path / "base", dtype="float32", adapters={"a": tmp_path / "adapter"}, merge=merge)
        model = model if merge else model.adapted("a")
        cache = nano.init_cache(model.config, 2, 16, jnp.float32)
        agree(forward(model.params, jnp.asarray(tokens, jnp.int32), cache, config=model.config)[0], expected, 1e-4)
