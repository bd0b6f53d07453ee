# 21 · Profiling
"""An inference engine for LLaMA and Mistral models in one file, with jax and numpy alone:

    python engine.py FOLDER "Once upon a time"

Letters: B texts; T tokens, that attend to S; a vocabulary of V; D numbers in a vector of the residual stream; H numbers in
one of a head; N heads of queries, K of keys and values, each of which serves G = N / K of queries; Q = G + 2; F units of
an MLP; U = 2, its gate and what the gate lets through.
"""

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


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def write(params, tokens, cache, sampling, seeds, config):
    """One more token of B texts at once: a weight that was read serves all.  tokens, seeds and each leaf of cache [B ...]"""

    def one(token, cache, seed):
        return next_token(params, token[None], 1, cache, sampling, seed, config)

    return jax.vmap(one)(tokens, cache, seeds)


def generate_all(model, prompts, sampling, seed=0, max_new_tokens=100):
    """Write the answers to several prompts together.  -> the ids of each"""
    S, answers = model.config.max_positions, [[] for _ in prompts]
    ids = [tokens_of(model, prompt, max_new_tokens) for prompt in prompts]
    read_alone = [read(model, one, init_cache(model.params, S), sampling, seed) for one in ids]
    tokens, cache = jax.tree.map(lambda *rows: jnp.stack(rows), *read_alone)  # [B], and B in front of each leaf
    writing = set(range(len(prompts)))
    for n in range(max_new_tokens):
        if n > 0:
            seeds = jnp.full(len(prompts), seed)
            tokens, cache = write(model.params, tokens, cache, sampling, seeds, config=model.config)
        writing -= {row for row in writing if tokens[row] == model.config.eos_id}
        for row in writing:
            answers[row].append(int(tokens[row]))
        if not writing:
            break
    return answers


def fastest(function, *args, repeats=10):
    """Seconds of the fastest call, after one that compiles"""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def bandwidth(numbers=2**26):
    """Bytes that memory hands over in a second: the sum of an array too large for any cache"""
    large = jnp.ones(numbers)
    return large.nbytes / fastest(jax.jit(jnp.sum), large)


def measure(model, texts=1, steps=8):
    """How fast so many texts are written together -> tokens per second, and bytes of weights that are read in a second"""
    tokens, seeds = jnp.zeros(texts, jnp.int32), jnp.zeros(texts, jnp.int32)

    def run():
        one = init_cache(model.params, model.config.max_positions)
        drawn, cache = tokens, jax.tree.map(lambda leaf: jnp.stack([leaf] * texts), one)
        for _ in range(steps):
            drawn, cache = write(model.params, drawn, cache, Sampling(0.0), seeds, config=model.config)
        return drawn

    per_second = steps / fastest(run)  # steps, in each of which every weight is read once
    return texts * per_second, per_second * sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


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
    asked = parser.parse_args(arguments)
    if asked.temperature < 0 or asked.top_p <= 0 or asked.min_p > 1:
        parser.error("expected --temperature from 0, --top-p above 0 and --min-p up to 1: the best token stays.")
    model = load(asked.folder)
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
