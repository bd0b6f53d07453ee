# 19 · Generation
"""An inference engine for LLaMA and Mistral models in one file, with jax and numpy alone:

    python engine.py FOLDER "Once upon a time"

Letters: T tokens, that attend to S; a vocabulary of V; D numbers in a vector of the residual stream; H numbers in one of
a head; N heads of queries, K of keys and values, each of which serves G = N / K of queries; Q = G + 2; F units of an MLP;
U = 2, its gate and what the gate lets through.
"""

import argparse
import json
import math
import struct
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def tokens_of(model, prompt, max_new_tokens):
    """The ids of a prompt; ValueError where no room is left for the answer"""
    ids = model.tokenizer.encode(prompt)
    if len(ids) + max_new_tokens > model.config.max_positions:
        raise ValueError(
            f"{len(ids)} tokens and {max_new_tokens} new ones; the model knows {model.config.max_positions}."
        )
    return ids


@partial(jax.jit, static_argnames="config")
def next_token(params, tokens, n, sampling, seed, config):
    """tokens [T], of which the first n are text -> the one that comes next"""
    return draw(forward(params, tokens, config)[n - 1], sampling, seed, n)


def generate(model, prompt, sampling, seed=0, max_new_tokens=100):
    """Write: one token after the other, until the one that ends a text"""
    ids = tokens_of(model, prompt, max_new_tokens)
    text = np.zeros(len(ids) + max_new_tokens, np.int32)  # of a fixed length, so that one program serves all steps
    text[: len(ids)] = ids
    for n in range(len(ids), len(text)):
        text[n] = next_token(model.params, text, n, sampling, seed, config=model.config)
        if text[n] == model.config.eos_id:
            return
        yield int(text[n])


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=np.uint32, default=0)
    asked = parser.parse_args(arguments)
    if asked.temperature < 0 or asked.top_p <= 0 or asked.min_p > 1:
        parser.error("expected --temperature from 0, --top-p above 0 and --min-p up to 1: the best token stays.")
    model = load(asked.folder)
    sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, asked.min_p)
    stream = Stream(model.tokenizer)
    print(asked.prompt, end="", flush=True)
    for token in generate(model, asked.prompt, sampling, asked.seed, asked.max_new_tokens):
        print(stream.push(token), end="", flush=True)
    print(stream.held.decode(errors="replace"))


if __name__ == "__main__":
    main()
