"""Every key of config.json that the reference reads is read here, known to change nothing, or refused; the others are named.

reference_keys.json has what the reference reads for each model_type: {"fields": those of its config class, "beside": other
names that its code asks a config for}, under "" what all have in common. `cd tests && python test_keys.py` writes it anew, and
make parity says whether that is due.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import warnings
from pathlib import Path

import pytest
from models import COMPOSITE, CONFIG_JSON, FURTHER, GPT2, LLAMA, MISTRAL, RELATED

import nanollm_jax as nano
from nanollm_jax.errors import ConfigError, NanoLLMWarning
from nanollm_jax.families import FAMILIES
from nanollm_jax.families.keys import INERT, LISTED, is_inert
from nanollm_jax.families.reader import Reader

ALSO = {"kimi_k2": "deepseek_v3"}  # what the reference reads as another
FILE = Path(__file__).with_name("reference_keys.json")
VALUES = CONFIG_JSON | FURTHER | RELATED | COMPOSITE
REFERENCE = json.loads(FILE.read_text())


def keys(model_type, kind):
    return {*REFERENCE[""][kind].split(), *REFERENCE[model_type][kind].split()}


def read_by(model_type):
    """The keys that a family reads."""
    reader = Reader(VALUES[model_type], "config.json", model_type)
    FAMILIES[model_type].from_hf(reader)
    return reader.read | {"is_causal", "is_encoder_decoder"}


def test_the_list_has_every_family():
    assert REFERENCE.keys() - {""} == VALUES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_of_the_references_config_is_read_or_inert(model_type):
    left = keys(model_type, "fields") - read_by(model_type)
    assert not {key for key in left if not is_inert(model_type, key)}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_else_the_reference_asks_for_is_read_inert_or_refused(model_type):
    for key in keys(model_type, "beside") - read_by(model_type):
        if not is_inert(model_type, key):
            with pytest.raises(ConfigError, match=rf"config.json: (not understood: )?{key}"):
                nano.read_config(VALUES[model_type] | {key: {"x": 1}})


def test_no_key_of_the_lists_is_read_by_its_family_and_every_reason_is_one():
    for model_type in VALUES:
        reasons = {
            key: reason
            for group in ("", model_type)
            for reason, names in INERT.get(group, {}).items()
            for key in names.split()
        }
        reasons |= LISTED.get(model_type, {})
        assert all(reasons.values())
        # gemma's first files say hidden_act where the others say hidden_activation
        assert not reasons.keys() & read_by(model_type), model_type


# what becomes of the keys that nobody reads


@pytest.mark.parametrize(
    ("values", "key", "value", "words"),
    [
        (LLAMA, "use_magic", True, "config.json: the reference does not read use_magic = True, and neither do we"),
        (GPT2, "n_special", 2, "n_special = 2"),
        (GPT2, "afn", "gelu_new", "afn = 'gelu_new'"),
        (FURTHER["gemma2"], "sliding_window_size", 4096, r"sliding_window_size = 4096 \(sliding_window is used\)"),
        (
            FURTHER["starcoder2"],
            "activation_function",
            "gelu",
            r"activation_function = 'gelu' \(hidden_act is computed\)",
        ),
        (FURTHER["qwen2"], "dual_chunk_attention_config", {"chunk_size": 9}, "longer than its chunk_size"),
    ],
)
def test_a_key_that_the_reference_does_not_know_is_named_and_changes_nothing(values, key, value, words):
    with pytest.warns(NanoLLMWarning, match=words):
        config, _ = nano.read_config(values | {key: value})
    assert config == nano.read_config(values)[0]


def test_all_of_them_are_in_one_warning_of_every_part_of_the_file():
    values = COMPOSITE["gemma3"]
    text = values["text_config"] | {
        "spells": [1, 2],
        "rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": True},
    }
    with pytest.warns(NanoLLMWarning) as said:
        nano.read_config(values | {"use_magic": True, "text_config": text})
    assert len(said) == 1
    for words in ("finetuned = True (how the model was made)", "spells = [1, 2]", "use_magic = True"):
        assert words in str(said[0].message)


@pytest.mark.parametrize("values", [LLAMA, GPT2, MISTRAL], ids=lambda values: values["model_type"])
def test_what_says_nothing_about_computing_is_silent(values):
    silent = {"auto_map": {"AutoConfig": "x.Y"}, "custom_pipeline": {"x": 1}, "attention_probs_dropout_prob": 0.1,
              "torch_dtype": "float16", "classifier_dropout": 0.1, "router_z_loss_coef": 0.1, "is_decoder": True}  # fmt: skip
    assert nano.read_config(values | silent)[0] == nano.read_config(values)[0]


CHANGES_THE_MATHS = {
    "gpt2": dict(add_cross_attention=True, rotary=True, rope_theta=1e4, multi_query=True, alibi=True, sliding_window=128,
                 layer_types=["full_attention"], is_encoder_decoder=True, is_causal=False),
    "llama": dict(
        sliding_window=4096, partial_rotary_factor=0.5, layer_types=["sliding_attention", "full_attention"], qk_norm=True,
        no_rope_layers=[1, 1, 0], attn_logit_softcapping=50.0, embedding_multiplier=12.0, rope_interleaved=True, bias=True,
        hidden_activation="gelu", num_local_experts=8, n_embd=48, num_heads=6, is_causal=False, attention_chunk_size=64,
        per_layer_config={"0": {"head_dim": 4}}, kv_sharing_modes=["reuse"], text_config={"hidden_size": 3}, final_cap=3.0,
        decoder={"hidden_size": 3}, rope_condense_ratio=8, use_dynamic_ntk=True, scale_emb=12, input_layernorm=1,
    ),
    "mistral": dict(
        attention_bias=True, mlp_bias=True, partial_rotary_factor=0.25, use_sliding_window=True, max_window_layers=1,
        layer_types=["sliding_attention", "full_attention"], llama_4_scaling={"beta": 0.1}, document_attention=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("family", "key"), [(f, key) for f, keys in CHANGES_THE_MATHS.items() for key in keys])
def test_a_name_that_speaks_of_computing_is_refused_where_nobody_reads_it(family, key):
    with pytest.raises(ConfigError, match=rf"^config.json: .*{key}"):
        nano.read_config(CONFIG_JSON[family] | {key: CHANGES_THE_MATHS[family][key]})


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
@pytest.mark.parametrize("family", CONFIG_JSON)
def test_what_switches_nothing_on_may_stand_there(family, value):
    values = CONFIG_JSON[family]
    assert nano.read_config(values | dict(new_scale=value, quantization_config=value))[0] == nano.read_config(values)[0]


def test_all_refused_keys_are_in_one_error():
    with pytest.raises(
        ConfigError, match=r"not understood: my_scale = 2, qk_norms = \[1\]\. .*remove it from the file"
    ):
        nano.read_config(LLAMA | dict(my_scale=2, qk_norms=[1], use_magic=True))


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("quantization_config", {"quant_method": "aqlm", "bits": 4}, "AQLM"),
        ("quantization_config", {"quant_method": "quark", "quant_algo": "MXFP6"}, "QUARK MXFP6"),
        ("quantization_config", {"_load_in_4bit": True}, "something unknown"),
        ("compression_config", {"format": "naive-quantized"}, "NAIVE-QUANTIZED"),
        ("weight_bits", 1, "1"),
        ("quant_method", "awq", "'awq'"),
    ],
)  # fmt: skip
def test_quantised_weights_are_refused_by_name_and_never_told_to_be_edited(key, value, name):
    with pytest.raises(ConfigError) as error:
        nano.read_config(LLAMA | {key: value, "use_magic": True, "some_scale": 3})
    assert f"{key} says {name}: quantised weights of that kind are not read; take the original" in str(error.value)
    assert "--dtype int8" in str(error.value) and "remove" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "other", "value", "field"),
    [("gpt2", "hidden_size", 48, "hidden_size"), ("gpt2", "num_hidden_layers", 1, "num_layers"),
     ("gpt2", "num_attention_heads", 4, "num_heads"), ("gpt2", "max_position_embeddings", 99, "max_positions"),
     ("mixtral", "num_experts", 3, "num_experts"), ("qwen3_moe", "num_local_experts", 3, "num_experts"),
     ("olmoe", "num_local_experts", 3, "num_experts")],
)  # fmt: skip
def test_a_second_name_of_a_key_wins_as_in_the_reference(family, other, value, field):
    assert getattr(nano.read_config(VALUES[family] | {other: value})[0], field) == value


def test_older_words_for_layers_mean_the_same():
    types = ["full_attention", "sliding_attention", "full_attention"]
    new, old = (
        nano.read_config(FURTHER["qwen2"] | {"layer_types": [word.replace("full_", full) for word in types]})[0]
        for full in ("full_", "")
    )
    assert new == old and [layer.window for layer in new.layers] == [None, 6, None]


# the reference's own list


def honoured(model_type):
    """What the reference reads: the fields of its config class, and what else its code asks one for."""
    import torch
    import transformers

    kind = transformers.CONFIG_MAPPING[ALSO.get(model_type, model_type)]
    fields = {field.name for field in dataclasses.fields(kind)}
    beside = set(kind.attribute_map)
    for parent in kind.__mro__[:-1]:
        for name in ("__post_init__", "convert_rope_params_to_dict"):
            if name in vars(parent):
                beside |= set(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)", inspect.getsource(vars(parent)[name])))
    if model_type not in COMPOSITE:
        asked: set[str] = set()
        base = transformers.PreTrainedConfig

        def watched(config, name, plain=base.__getattribute__):
            asked.add(name)
            return plain(config, name)

        values = VALUES[model_type] | dict(model_type=kind.model_type, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            patch.setattr(base, "__getattribute__", watched)
            config = kind(**values)
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
            ids = torch.tensor([[3, 4, 5]])
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        beside |= {name for name in asked if not (name.startswith("_") or hasattr(base, name))}
        beside -= vars(transformers.GenerationConfig()).keys()
    private = {"_commit_hash", "_configuration_file", "_from_auto", "_from_pipeline"}
    return {"fields": fields, "beside": beside - fields - private}


def of_all_families():
    found = {model_type: honoured(model_type) for model_type in sorted(VALUES)}
    whole = [keys for name, keys in found.items() if name not in COMPOSITE]
    shared = {
        "fields": set.intersection(*(keys["fields"] for keys in found.values())),
        "beside": set.intersection(*(keys["beside"] for keys in whole)),
    }
    rest = {name: {kind: names - shared[kind] for kind, names in keys.items()} for name, keys in found.items()}
    return {
        name: {kind: " ".join(sorted(names)) for kind, names in keys.items()}
        for name, keys in ({"": shared} | rest).items()
    }


@pytest.mark.parity
def test_the_list_is_what_the_reference_reads():
    assert of_all_families() == REFERENCE


if __name__ == "__main__":
    FILE.write_text(json.dumps(of_all_families(), indent=1) + "\n")
