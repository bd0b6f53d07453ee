# 22 · Parallelism
import argparse
import json
import math
import struct
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SPECS = {  # the axis of each parameter that is dealt out to the devices: K, K's own N, F or V
    "wqkv": P("tensor"), "wo": P(None, "tensor"), "up": P(None, "tensor"), "down": P(None, "tensor"),
    "tokens": P("tensor"), "scale": P(),
}  # fmt: skip


def shard(model, count):
    """The model on `count` devices, each with its own heads, units and pieces; the compiler puts in the sums between them"""
    if model.config.num_kv_heads % count:
        raise ValueError(f"{model.config.num_kv_heads} key and value heads cannot be dealt out to {count} devices.")
    if count > len(jax.devices()):
        raise ValueError(f"{count} devices are asked for, and JAX has {len(jax.devices())}.")
    mesh = Mesh(np.array(jax.devices()[:count]), ("tensor",))

    def place(path, array):
        return jax.device_put(array, NamedSharding(mesh, SPECS[path[-1].key]))

    return model._replace(params=jax.tree_util.tree_map_with_path(place, model.params))


def init_cache(params, S):
    """An empty cache with room for S positions; the keys and values of a head lie where its weights are"""
    wqkv = params["layers"][0]["attention"]["wqkv"]
    K, _, H, _ = wqkv.shape
    room = jnp.zeros((len(params["layers"]), S, K, H))
    if isinstance(wqkv.sharding, NamedSharding):
        room = jax.device_put(room, NamedSharding(wqkv.sharding.mesh, P(None, None, "tensor")))
    return Cache(room, room + 0, jnp.int32(0))


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt", nargs="+", help="of several, the answers are written together")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=np.uint32, default=0)
    parser.add_argument("--measure", action="store_true", help="then say how fast so many texts are written")
    parser.add_argument("--devices", type=int, default=1)
    asked = parser.parse_args(arguments)
    if asked.temperature < 0 or asked.top_p <= 0 or asked.min_p > 1:
        parser.error("expected --temperature from 0, --top-p above 0 and --min-p up to 1: the best token stays.")
    model = load(asked.folder)
    if asked.devices > 1:
        model = shard(model, asked.devices)
    sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, asked.min_p)
    if len(asked.prompt) > 1:
        answers = generate_all(model, asked.prompt, sampling, asked.seed, asked.max_new_tokens)
        for prompt, answer in zip(asked.prompt, answers, strict=True):
            print(prompt + b"".join(map(model.tokenizer.token_bytes, answer)).decode(errors="replace"))
    else:
        stream = Stream(model.tokenizer)
        print(asked.prompt[0], end="", flush=True)
        for token in generate(model, asked.prompt[0], sampling, asked.seed, asked.max_new_tokens):
            print(stream.push(token), end="", flush=True)
        print(stream.held.decode(errors="replace"))
    if asked.measure:
        speed, moved = measure(model, len(asked.prompt))
        print(f"{speed:.0f} tokens/s; memory allows {speed / moved * bandwidth():.0f}")
