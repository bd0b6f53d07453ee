"""Adapters in PEFT's form, of random numbers, and what a model is with one of them in its weights: by tensors, in NumPy."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
from models import CONFIG_JSON, FURTHER, RELATED, random_model
from safetensors.numpy import load_file, save_file

import nanollm_jax as nano

TURNED = r"c_attn|c_proj|c_fc"  # GPT-2 stores [inputs, outputs]


def checkpoint(family, folder, **changes):
    """A small random model of a family as a folder, and its tensors."""
    config_json = (CONFIG_JSON | FURTHER | RELATED)[family] | changes
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.json").write_text(json.dumps(config_json))
    model = random_model(family) if not changes else made(config_json)
    path = nano.save(dataclasses.replace(model, folder=folder / "config"), folder / "model")
    return path, load_file(path / "model.safetensors")


def made(config_json):
    """A model of a config."""
    import jax

    config, _ = nano.read_config(config_json)
    return nano.Model(config, nano.init_params(config, jax.random.key(5), "float32"))


def write_adapter(folder, base, match, rank=4, alpha=6.0, seed=0, dora=False, size=0.5, ranks=(), **config):
    """adapter_config.json and adapter_model.safetensors for the tensors of a base whose names match. -> the tensors

    ranks: (pattern, rank) of modules that have another one.
    """
    rng, tensors = np.random.default_rng(seed), {}
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if weight.ndim != 2 or not re.search(match, module):
            continue
        outputs, inputs = weight.shape[:: -1 if re.search(TURNED, module) else 1]
        own = next((r for pattern, r in ranks if re.search(pattern, module)), rank)
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = rng.normal(0, inputs**-0.5, (own, inputs)).astype(np.float32)
        tensors[f"{key}.lora_B.weight"] = rng.normal(0, size * own**-0.5, (outputs, own)).astype(np.float32)
        if dora:
            tensors[f"{key}.lora_magnitude_vector"] = rng.uniform(0.5, 2.0, outputs).astype(np.float32)
    assert tensors, match
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_dora": dora, "target_modules": match} | config
    said |= {"rank_pattern": dict(ranks)} if ranks else {}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return tensors


def with_adapter(base, tensors, scale):
    """The tensors of a base with an adapter in them; scale: of a module of a rank."""
    found = dict(base)
    for key, a in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        start, turn = key.removesuffix("lora_A.weight"), re.search(TURNED, module) is not None
        weight = base[f"{module}.weight"].astype(np.float64)
        weight = (weight.T if turn else weight) + scale(module, len(a)) * tensors[f"{start}lora_B.weight"] @ a
        if (length := tensors.get(f"{start}lora_magnitude_vector")) is not None:
            weight *= (length / np.linalg.norm(weight, axis=1))[:, None]
        found[f"{module}.weight"] = np.ascontiguousarray(weight.T if turn else weight, np.float32)
    return found


def loaded_with(folder, path, tensors):
    """The model of a checkpoint's folder with other tensors."""
    folder.mkdir()
    (folder / "config.json").write_bytes((path / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors")
    return nano.load(folder, dtype="float32")
