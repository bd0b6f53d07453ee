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
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# 10 · Attention


def softmax(scores):
    """[... S] -> [... S], positive and with the sum 1: chapter 09"""
    powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def visible(queries, keys, window=None):
    """May a query see a key? Only the last `window` of them, where a layer has one.  positions [T] and [S] -> [T S] bool"""
    distance = queries[:, None] - keys[None, :]
    return (distance >= 0) & (distance < (window or math.inf))


def attend(q, k, v, mask):
    """What each query fetches.  q [T N H], k and v [S K H], mask [T S] -> [T N H]"""
    T, N, H = q.shape
    K = k.shape[1]
    grouped = q.reshape(T, K, N // K, H)
    scores = jnp.einsum("TKGH,SKH->KGTS", grouped, k) / math.sqrt(H)
    weights = softmax(jnp.where(mask, scores, -jnp.inf))
    return jnp.einsum("KGTS,SKH->TKGH", weights, v).reshape(T, N, H)


# 11 · Many heads


def split_heads(x, wqkv):
    """Queries, keys and values of all heads.  x [T D], wqkv [K Q H D] -> q [T N H], k and v [T K H]"""
    heads = jnp.einsum("TD,KQHD->TKQH", x, wqkv)  # of Q: the G queries of a group, then its key, then its value
    T, K, Q, H = heads.shape
    return heads[:, :, :-2].reshape(T, K * (Q - 2), H), heads[:, :, -2], heads[:, :, -1]


def self_attention(x, w, cache, layer, config):
    """What attention writes into the stream.  x [T D], w: wqkv [K Q H D] and wo [D N H] -> [T D], the longer cache"""
    positions = cache.length + jnp.arange(len(x))
    q, k, v = split_heads(x, w["wqkv"])
    q, k = rotate(q, positions, config.rope_theta), rotate(k, positions, config.rope_theta)
    cache = extend(cache, layer, k, v)
    keys, values = cache.keys[layer], cache.values[layer]  # [S K H]
    mixed = attend(q, keys, values, visible(positions, jnp.arange(len(keys)), config.window))
    return jnp.einsum("TNH,DNH->TD", mixed, w["wo"]), cache


# 12 · Positions


@dataclass(frozen=True)
class Config:
    """What cannot be seen from the weights. The names are those of nanollm_jax."""

    num_kv_heads: int
    eos_id: int
    max_positions: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    window: int | None = None  # how many tokens a query sees, itself included; None is all


def rotate(x, positions, theta):
    """Turn the numbers i and i + H/2 of each vector by position / theta^(2i/H).  x [T N H], positions [T] -> [T N H]"""
    H = x.shape[-1]
    frequencies = theta ** (-jnp.arange(0, H, 2) / H)  # [H/2], radians per position
    angle = (positions[:, None] * frequencies)[:, None]  # [T 1 H/2]
    left, right = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


# 13 · Feed-forward


def silu(x):
    """The activation of LLaMA: chapter 07"""
    return x / (1 + jnp.exp(-x))


def mlp(x, w):
    """What the MLP writes into the stream.  x [T D], w: up [U F D] and down [D F] -> [T D]"""
    gate, up = jnp.einsum("TD,UFD->UTF", x, w["up"])
    return jnp.einsum("TF,DF->TD", silu(gate) * up, w["down"])


# 14 · The block


def rms_norm(x, w, eps):
    """Divide each vector by its root mean square: chapter 08.  x [T D], w: scale [D] -> [T D]"""
    return x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps) * w["scale"]


def block(x, w, cache, layer, config):
    """One layer: both halves read the stream through a norm, and add to it.  x [T D] -> [T D], the longer cache"""
    h = rms_norm(x, w["attention_norm"], config.norm_eps)
    attended, cache = self_attention(h, w["attention"], cache, layer, config)
    x = x + attended
    return x + mlp(rms_norm(x, w["mlp_norm"], config.norm_eps), w["mlp"]), cache


# 15 · Tokenizer


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the types of pieces, SentencePiece's own numbers


def varint(data, at):
    """A whole number of 7 bits a byte, the lowest first; the top bit says that more follow.  -> the number, where it ends"""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def fields(data):
    """The fields of a protobuf message, (number, value) one after the other"""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:  # a whole number
            value, at = varint(data, at)
        else:  # bytes with their length in front, or four bytes
            size, at = varint(data, at) if key & 7 == 2 else (4, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


class Tokenizer:
    """Text to token ids and back, by the pieces and scores of a tokenizer.model."""

    def __init__(self, path):
        messages = [dict(fields(value)) for number, value in fields(Path(path).read_bytes()) if number == 1]
        self.pieces = [message[1].decode() for message in messages]
        self.kinds = [message.get(3, NORMAL) for message in messages]
        scores = [struct.unpack("<f", message[2])[0] for message in messages]
        normal = [n for n, kind in enumerate(self.kinds) if kind == NORMAL]
        self.ids = {self.pieces[n]: n for n in normal}
        self.scores = {self.pieces[n]: scores[n] for n in normal}
        self.bos_id, self.first_byte = self.pieces.index("<s>"), self.pieces.index("<0x00>")

    def encode(self, text):
        """text -> ids, behind the one that begins a text"""
        symbols = list(("▁" + text).replace(" ", "▁")) if text else []
        while True:
            pairs = [left + right for left, right in pairwise(symbols)]
            known = [at for at, pair in enumerate(pairs) if pair in self.scores]
            if not known:
                break
            at = max(known, key=lambda at: (self.scores[pairs[at]], -at))  # the best pair, the first of equals
            symbols[at : at + 2] = [pairs[at]]
        ids = [self.bos_id]
        for symbol in symbols:
            spelled = [self.first_byte + byte for byte in symbol.encode()]
            ids += [self.ids[symbol]] if symbol in self.ids else spelled
        return ids

    def token_bytes(self, token):
        """What a token prints, as bytes: maybe a part of a character only"""
        kind = self.kinds[token]
        if kind == BYTE:
            return bytes([token - self.first_byte])
        if kind == UNKNOWN:
            return " ⁇ ".encode()
        return b"" if kind == CONTROL else self.pieces[token].replace("▁", " ").encode()

    def decode(self, ids):
        """ids -> text"""
        whole = b"".join(map(self.token_bytes, ids)).decode(errors="replace")
        return whole.removeprefix(" ")  # encode has put it there


class Stream:
    """Ids in one by one, text out as soon as its characters are whole."""

    def __init__(self, tokenizer):
        self.tokenizer, self.held = tokenizer, b""

    def push(self, token):
        """The text that this token completes, maybe none"""
        self.held += self.tokenizer.token_bytes(token)
        whole = len(self.held)
        for back in range(1, min(3, whole) + 1):
            first = self.held[-back]
            if first >= 0xC0:  # a character begins here: of 2 bytes, of 3 or of 4
                whole -= back if back < (2 if first < 0xE0 else 3 if first < 0xF0 else 4) else 0
            if first < 0x80 or first >= 0xC0:
                break
        text, self.held = self.held[:whole], self.held[whole:]
        return text.decode(errors="replace")


# 16 · Weights


DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


class Model(NamedTuple):
    """What a folder holds. The parameters are a tree of arrays, the same as nanollm_jax has."""

    config: Config
    params: dict[str, Any]
    tokenizer: Tokenizer


def read_config(path):
    """config.json of a LLaMA or a Mistral; ValueError for what this engine does not compute"""
    said = json.loads(Path(path).read_text())
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}  # the newer name, and the older one
    said["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    expected = {"model_type": ("llama", "mistral"), "hidden_act": ("silu",), "rope_type": ("default",),
                "attention_bias": (None, False), "mlp_bias": (None, False)}  # fmt: skip
    for name, values in expected.items():
        if said.get(name) not in values:
            raise ValueError(f"{path}: {name} is {said.get(name)!r}; this engine knows {values}.")
    return Config(
        num_kv_heads=said.get("num_key_value_heads", said["num_attention_heads"]),
        eos_id=said["eos_token_id"],
        max_positions=said["max_position_embeddings"],
        norm_eps=said["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", said.get("rope_theta", 10_000.0)),
        window=said.get("sliding_window"),
    )


def read_tensors(path):
    """The tensors of a safetensors file, {name: array}. The file is mapped: a number is read when it is used."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        contents = json.loads(file.read(length))
    contents.pop("__metadata__", None)
    return {
        name: np.memmap(path, DTYPES[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in contents.items()
    }


def load(folder):
    """A folder with config.json, tokenizer.model and safetensors files -> the model, in float32"""
    folder = Path(folder)
    config, stored = read_config(folder / "config.json"), {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= read_tensors(path)

    def take(name):
        return np.asarray(stored.pop(f"{name}.weight"), np.float32)

    def by_group(name):
        """[(K G H) D] -> [K G H D]; G is 1 for keys and values"""
        w = take(name)
        return w.reshape(config.num_kv_heads, -1, H, w.shape[1])

    H = len(stored["model.layers.0.self_attn.k_proj.weight"]) // config.num_kv_heads
    layers = []
    while f"model.layers.{len(layers)}.input_layernorm.weight" in stored:
        name = f"model.layers.{len(layers)}"
        wo = take(f"{name}.self_attn.o_proj")  # [D (N H)]
        layers.append({
            "attention_norm": {"scale": take(f"{name}.input_layernorm")},
            "attention": {
                "wqkv": np.concatenate([by_group(f"{name}.self_attn.{letter}_proj") for letter in "qkv"], axis=1),
                "wo": wo.reshape(len(wo), -1, H),
            },
            "mlp_norm": {"scale": take(f"{name}.post_attention_layernorm")},
            "mlp": {
                "up": np.stack([take(f"{name}.mlp.gate_proj"), take(f"{name}.mlp.up_proj")]),
                "down": take(f"{name}.mlp.down_proj"),
            },
        })  # fmt: skip
    params = {
        "embedding": {"tokens": take("model.embed_tokens")},
        "layers": tuple(layers),
        "final_norm": {"scale": take("model.norm")},
    }
    if "lm_head.weight" in stored:  # otherwise tied: the embedding serves twice
        params["unembedding"] = {"tokens": take("lm_head")}
    if stored:
        raise ValueError(f"{folder}: nobody asked for {', '.join(stored)}.")
    return Model(config, jax.tree.map(jnp.asarray, params), Tokenizer(folder / "tokenizer.model"))


# 17 · Forward pass


def unembed(params, x):
    """Score the vocabulary.  x [D], the stream at its end -> logits [V]"""
    table = params.get("unembedding", params["embedding"])["tokens"]  # [V D]
    return table @ x


def forward(params, tokens, count, cache, config):
    """Read more of a text.  tokens [T], of which the first `count` are real -> logits behind the last of these [V], cache

    What is behind them leaves keys and values in slots that nobody sees before they are written over.
    """
    x = params["embedding"]["tokens"][tokens]  # [T D]
    for layer, w in enumerate(params["layers"]):
        x, cache = block(x, w, cache, layer, config)
    last = rms_norm(x[count - 1], params["final_norm"], config.norm_eps)  # [D]
    return unembed(params, last), cache._replace(length=cache.length + count)


# 18 · Sampling


class Sampling(NamedTuple):
    """How the next token is chosen. Temperature 0 takes the best; top_k 0, top_p 1 and min_p 0 cut nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def shape_logits(logits, sampling):
    """Temperature, then the cuts in this order; what they drop becomes -inf.  [V] -> [V], the best of them 0"""
    temperature = jnp.where(sampling.temperature == 0, 1, sampling.temperature)
    logits = (logits - logits.max()) / temperature

    ranked = jnp.sort(logits, descending=True)
    kth = ranked[jnp.where(sampling.top_k > 0, sampling.top_k, len(logits)) - 1]
    logits = jnp.where(logits >= kth, logits, -jnp.inf)

    ranked = jnp.sort(logits, descending=True)
    chances = softmax(ranked)
    before = jnp.cumsum(chances) - chances  # how probable all better ones are together
    last = jnp.where(before < sampling.top_p, ranked, jnp.inf).min()
    logits = jnp.where((logits >= last) | (sampling.top_p >= 1), logits, -jnp.inf)

    return jnp.where(logits >= jnp.log(sampling.min_p), logits, -jnp.inf)


def draw(logits, sampling, seed, position):
    """Choose a token. Chance comes from the seed and the place of the token in its text alone.  logits [V] -> token"""
    uniform = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position))
    line = jnp.cumsum(softmax(shape_logits(logits, sampling)))  # probabilities, one behind the other
    passed = jnp.sum(line <= uniform * line[-1])
    drawn = jnp.minimum(passed, jnp.argmax(line))  # rounding must not lead behind the last one that may be drawn
    return jnp.where(sampling.temperature == 0, jnp.argmax(logits), drawn)


# 19 · Generation


def tokens_of(model, prompt, max_new_tokens):
    """The ids of a prompt; ValueError where no room is left for the answer"""
    ids = model.tokenizer.encode(prompt)
    if len(ids) + max_new_tokens > model.config.max_positions:
        raise ValueError(
            f"{len(ids)} tokens and {max_new_tokens} new ones; the model knows {model.config.max_positions}."
        )
    return ids


def next_token(params, tokens, count, cache, sampling, seed, config):
    """Read `count` more tokens of a text, a prompt or the last one drawn, and draw what comes next.  tokens [T]"""
    logits, cache = forward(params, tokens, count, cache, config)
    return draw(logits, sampling, seed, cache.length), cache


def generate(model, prompt, sampling, seed=0, max_new_tokens=100):
    """Write: one token after the other, until the one that ends a text"""
    ids = tokens_of(model, prompt, max_new_tokens)
    token, cache = read(model, ids, init_cache(model.params, model.config.max_positions), sampling, seed)
    for n in range(max_new_tokens):
        if n > 0:
            token, cache = step(model.params, token[None], 1, cache, sampling, seed, config=model.config)
        if token == model.config.eos_id:
            return
        yield int(token)


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


# 20 · KV cache


class Cache(NamedTuple):
    """What attention remembers of a text: keys and values of each layer [L S K H], and how many positions are filled."""

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def init_cache(params, S):
    """An empty cache with room for S positions; the keys and values of a head lie where its weights are"""
    wqkv = params["layers"][0]["attention"]["wqkv"]
    K, _, H, _ = wqkv.shape
    room = jnp.zeros((len(params["layers"]), S, K, H))
    if isinstance(wqkv.sharding, NamedSharding):
        room = jax.device_put(room, NamedSharding(wqkv.sharding.mesh, P(None, None, "tensor")))
    return Cache(room, room + 0, jnp.int32(0))


def extend(cache, layer, k, v):
    """Put the keys and values of new tokens behind those of a layer: position p lies in slot p.  k and v [T K H] -> cache"""
    at = (layer, cache.length, 0, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys, k[None], at)
    values = jax.lax.dynamic_update_slice(cache.values, v[None], at)
    return cache._replace(keys=keys, values=values)


step = jax.jit(next_token, static_argnames="config", donate_argnames="cache")


def read(model, ids, cache, sampling, seed):
    """Read a prompt, padded to a power of two, so that few programs are compiled.  -> the first token of the answer, cache"""
    padded = np.zeros(min(2 ** math.ceil(math.log2(len(ids))), cache.keys.shape[1]), np.int32)
    padded[: len(ids)] = ids
    return step(model.params, padded, len(ids), cache, sampling, seed, config=model.config)


# 21 · Profiling


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


# 22 · Parallelism


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


if __name__ == "__main__":
    main()
