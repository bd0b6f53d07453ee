"""Every config.json of the test data, as people published it: of supported families it is read, or refused for what it says.

Shrunk to few layers and small widths, with every other key as published, it gives the reference's logits and greedy tokens
(make parity): past the windows, which are shrunk too, and past longrope's original length.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import nanollm_jax as nano
from nanollm_jax.families import FAMILIES
from nanollm_jax.families.keys import is_inert
from nanollm_jax.families.missing import MISSING

# file: what the error says of it
REFUSED = {
    "ome__deepseek_vl2_tiny": "use_mla is False; expected true: only attention over latents is read",
    "mlc__ministral3_3b_2512": "num_hidden_layers is missing",  # the text's part under its own name
    "x__mistral-document-attention": "not understood: document_attention = True",
}
# file: what the warning names, unknown to the reference too
NAMED = {
    "mlc__gemma2_9b": "sliding_window_size = 4096", "ome__gemma_2_9b": "sliding_window_size = 4096",
    "mlc__phi-4": "full_attn_mod = 1", "openai__gpt-oss-20b": "experts_per_token = 4",
    "ome__gpt_oss_20b": "experts_per_token = 4", "ome__gpt_oss_120b": "experts_per_token = 4",
    **dict.fromkeys(("deepseek-ai__DeepSeek-R1", "deepseek-ai__DeepSeek-V3", "mlc__deepseek_v2_lite", "ome__deepseek_v3",
                     "nvidia__DeepSeek-V3.1-NVFP4", "moonshotai__Kimi-K2.5", "nvidia__Kimi-K2.5-NVFP4",
                     "nvidia__Kimi-K2.6-NVFP4"), "moe_layer_freq = 1"),
    "MiniMaxAI__MiniMax-M2.7": "attn_type_list = ", "nvidia__MiniMax-M2.7-NVFP4": "attn_type_list = ",
    "x__Qwen2.5-14B-Instruct-1M-like": "dual_chunk_attention_config = ",
}  # fmt: skip
FOLDER = Path(os.environ.get("NANOLLM_TEST_DATA", "nowhere")) / "configs"
VALUES = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
SUPPORTED = {name: values for name, values in VALUES.items() if values.get("model_type") in FAMILIES}


@pytest.mark.skipif(not VALUES, reason="NANOLLM_TEST_DATA has no configs")
def test_every_config_of_a_supported_family_is_read_or_refused_for_what_it_says():
    assert len(SUPPORTED) > 100 and REFUSED.keys() | NAMED.keys() <= SUPPORTED.keys()
    for name, values in SUPPORTED.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if name in REFUSED:
                with pytest.raises(nano.ConfigError, match=REFUSED[name]):
                    nano.read_config(values, name)
            else:
                nano.read_config(values, name)
        texts = [str(warning.message) for warning in said]
        assert len(texts) == (name in NAMED) and all(NAMED[name] in text for text in texts), (name, texts)


def test_nothing_is_said_to_be_missing_that_is_there():
    assert not MISSING.keys() & FAMILIES.keys()


def test_what_a_family_needs_that_is_not_here_is_said():
    for name, needs in MISSING.items():
        said = f"model_type '{name}' is not supported: it needs {re.escape(needs)}; known: "
        with pytest.raises(nano.ConfigError, match=said):
            nano.read_config({"model_type": name})
    with pytest.raises(
        nano.ConfigError, match=r"model_type 'xlstm' is not supported; known: gpt2, .* is one file under"
    ):
        nano.read_config({"model_type": "xlstm"})


@pytest.mark.skipif(not VALUES, reason="NANOLLM_TEST_DATA has no configs")
def test_every_other_family_is_refused_by_its_name_and_for_what_it_needs():
    for name, values in VALUES.items():
        if name not in SUPPORTED:
            with pytest.raises(
                nano.ConfigError, match=rf"model_type '{values['model_type']}' is not supported: it needs \w.*; known: "
            ):
                nano.read_config(values, name)


# the reference's logits and tokens

WINDOW, ORIGINAL, LENGTH = 24, 40, 60
EYES = {
    "qwen2_vl": dict(depth=1, embed_dim=32, num_heads=2, mlp_ratio=2),
    "qwen2_5_vl": dict(depth=1, hidden_size=32, intermediate_size=37, num_heads=2, fullatt_block_indexes=[0]),
    "qwen3_vl": dict(depth=1, hidden_size=32, intermediate_size=37, num_heads=2, deepstack_visual_indexes=[0]),
    "qwen3_vl_moe": dict(depth=1, hidden_size=32, intermediate_size=37, num_heads=2, deepstack_visual_indexes=[0]),
    "qwen3_5": dict(depth=1, hidden_size=32, intermediate_size=37, num_heads=2),
    "qwen3_5_moe": dict(depth=1, hidden_size=32, intermediate_size=37, num_heads=2),
    "gemma3": dict(model_type="siglip_vision_model", hidden_size=32, intermediate_size=37, num_hidden_layers=1,
                   num_attention_heads=2, image_size=28, patch_size=14, vision_use_head=False),
    "gemma4": dict(hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                   head_dim=16, position_embedding_size=64, image_size=28),
    "kimi_k25": dict(hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2),
    "llava": dict(model_type="clip_vision_model", hidden_size=32, intermediate_size=37, num_hidden_layers=3,
                  num_attention_heads=2, image_size=28, patch_size=14, projection_dim=16),
    "mistral3": dict(model_type="pixtral", hidden_size=32, intermediate_size=37, num_hidden_layers=1, head_dim=16,
                     num_attention_heads=2, image_size=28, patch_size=14),
}  # fmt: skip
# sizes of a text that its file need not name
UNSAID = {
    "llava": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
}
WIDTHS = {
    "vocab_size": 128, "intermediate_size": 48, "n_inner": 48, "moe_intermediate_size": 24, "num_experts": 6,
    "num_local_experts": 6, "num_experts_per_tok": 2, "top_k_experts": 2, "shared_expert_intermediate_size": 40,
    "rotary_dim": 8,
    "n_routed_experts": 8, "kv_lora_rank": 20, "q_lora_rank": 26, "qk_rope_head_dim": 8, "qk_nope_head_dim": 14,
    "v_head_dim": 10, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "n_head": 4, "n_embd": 64, "n_layer": 3,
    "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 12, "linear_value_head_dim": 10,
    "mamba_num_heads": 8, "mamba_head_dim": 10, "n_groups": 4, "ssm_state_size": 12, "moe_latent_size": 20,
    "moe_shared_expert_intermediate_size": 40,
}  # fmt: skip


def shrunk(values):
    """A config with few layers, small widths and short windows, every other key as it was."""
    if isinstance(values.get("text_config"), dict):
        text = shrunk(UNSAID.get(values["model_type"], {}) | values["text_config"])
        eyes = dict(EYES[values["model_type"]])
        size = "hidden_size" if values["model_type"] == "qwen2_vl" else "out_hidden_size"
        eyes |= {} if "image_size" in eyes else {size: text["hidden_size"]}
        return values | {"text_config": text, "vision_config": eyes}
    small = {key: value for key, value in values.items() if key != "quantization_config"}  # weights are drawn plain
    for key in values.keys() & WIDTHS.keys():
        small[key] = None if values[key] is None else min(values[key], WIDTHS[key])
    for key, token in (("bos_token_id", 1), ("eos_token_id", 2), ("pad_token_id", 0)):
        if key in values:
            small[key] = token
    if "num_attention_heads" in values:
        N, K = values["num_attention_heads"], values.get("num_key_value_heads")
        whole = values.get("head_dim") or values["hidden_size"] // N
        small |= {"num_attention_heads": 4, "hidden_size": 64 if values.get("head_dim") else 4 * whole}
        if K is not None:
            small["num_key_value_heads"] = {N: 4, 1: 1}.get(K, 2)
    types = values.get("layer_types") or []
    every = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or 3
    layers = max(3, every + 1, types.index("full_attention") + 2 if "full_attention" in types else 0)
    small["num_hidden_layers"] = min(layers, values.get("num_hidden_layers", layers))
    for key in ("layer_types", "no_rope_layers"):
        if values.get(key):
            small[key] = values[key][: small["num_hidden_layers"]]
    for key in ("hybrid_override_pattern", "layers_block_type"):  # up to the first layer of the last kind
        if kinds := values.get(key):
            small["num_hidden_layers"] = 1 + max(kinds.index(kind) for kind in set(kinds))
            small[key] = kinds[: small["num_hidden_layers"]]
    for key in ("sliding_window", "sliding_window_size"):
        if values.get(key):
            small[key] = min(values[key], WINDOW)
    scaling = values.get("rope_scaling") or {}
    if "short_factor" in scaling:
        key = "original_max_position_embeddings"
        ratio = values["max_position_embeddings"] // (values.get(key) or scaling[key])
        small |= {"max_position_embeddings": max(ratio, 2) * ORIGINAL}
        small |= {key: ORIGINAL} if key in values else {"rope_scaling": scaling | {key: ORIGINAL}}
        if "qk_rope_head_dim" in values:  # a factor for each of fewer pairs
            pairs = {name: scaling[name][: small["qk_rope_head_dim"] // 2] for name in ("short_factor", "long_factor")}
            small["rope_scaling"] = small["rope_scaling"] | pairs
    if "n_layer" in values:
        del small["num_hidden_layers"]
    if isinstance(values.get("vision_config"), dict):  # older files have the text's keys beside it
        size = "hidden_size" if values["model_type"] == "qwen2_vl" else "out_hidden_size"
        small["vision_config"] = EYES[values["model_type"]] | {size: small["hidden_size"]}
    return small


SHRUNK: dict[str, dict] = {}
for name, values in SUPPORTED.items():
    if name not in REFUSED:
        telling = {key: value for key, value in shrunk(values).items() if not is_inert(values["model_type"], key)}
        SHRUNK.setdefault(json.dumps(telling, sort_keys=True), {"name": name, "values": shrunk(values)})
SHRUNK = {one["name"]: one["values"] for one in SHRUNK.values()}  # one of those that are alike


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::nanollm_jax.NanoLLMWarning")
@pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning")  # the reference, of one file of GPT-J
@pytest.mark.parametrize("name", SHRUNK)
def test_a_published_config_gives_the_references_logits_and_tokens(tmp_path, name):
    """Logits of all; tokens of the first file of each kind of layers."""
    import transformers
    from agreement import agree
    from test_parity import chosen, first_of_each_kind, our_logits, publish, random_reference, reference_logits

    values = SHRUNK[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    reference = random_reference(transformers.AutoConfig.from_pretrained(tmp_path), values["model_type"], len(name))
    publish(reference, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))  # as published, not as the reference writes it
    model = nano.load(tmp_path, dtype="float32")
    tokens = np.random.default_rng(1).integers(3, 128, (1, LENGTH), dtype=np.int32)
    expected = reference_logits(reference, tokens)
    assert np.abs(expected).max() > 0.1
    agree(our_logits(model, tokens), expected, 1e-4)
    if name in first_of_each_kind(SHRUNK):
        prompt = tokens[0, : ORIGINAL - 6].tolist()
        ids = nano.generate(model, prompt, max_new_tokens=12, sampling=nano.Sampling(temperature=0.0)).token_ids
        assert ids == chosen(reference, model, prompt, ids)
