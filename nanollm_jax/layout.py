"""The parameters: one string of axis letters each, from which shape, initialiser, count and checkpoint rule follow.

    B batch rows     T new tokens in this call    S cache slots      L layers
    D model width    V vocabulary                 P learned positions
    N query heads    K key/value heads            G = N / K          H head width
    F MLP width      E experts                    M width of one expert
    Q = R + 2: the query heads of one key/value head, then its key and its value; R = G, or 2G where each query has a gate
    K' N' G' H' Q' R' the same of the layers that have heads of their own; Q' = R' + 1 where their keys are values too; F' of
    those that have a width of their own. Q is R alone in layers that look at another's keys
    I width of what a layer is told of a token besides        L*I of what all layers are told, side by side
    U = 2: gate and up, or 1 in a model without a gate
    W width of the MLP that all tokens share beside the experts        O width of a latent that experts read and give
    C width of a latent of keys and values        J of a latent of queries        Y of a query, X of a key and a value that a
    latent gives, A of the value
    h channels or groups of a recurrent layer; mixers.py has the other small letters

Each is one array, or for a large matrix what its dtype keeps in place of one (ops/kept.py). Weights are stored outputs
first. What is multiplied by the same vector lies in one array, cut where it also divides among devices: wqkv [K Q H D]
along K, up [U F D] along F.
A path such as "layers.3.attention.wo" names one array in the tree: params["layers"][3]["attention"]["wo"].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nanollm_jax.config import APART, ModelConfig
from nanollm_jax.dtypes import Dtype
from nanollm_jax.errors import RequestError

# by how many of its last axes a matrix is multiplied, its inputs; whatever has no entry is a vector that is added or stretches
INPUTS = {
    "wqkv": 1,
    "wq": 1,
    "q_down": 1,
    "kv_down": 1,
    "kv_up": 1,
    "wo": 2,
    "up": 1,
    "down": 1,
    "router": 1,
    "tokens": 1,
    "positions": 1,
    "win": 1,
    "latent_down": 1,
    "latent_up": 1,
    "projection": 1,
}
BLOCK = 256  # slots of a cache that attention sums together


def layout(config: ModelConfig) -> dict[str, str]:
    """Which parameters a model has: {path: axis letters}. The one place where that is decided."""
    norm = dict.fromkeys(config.norm_leaves, "D")
    attention: dict[str, Any] = {"wqkv": "K Q H D", "wo": "D N H"}
    if config.latent is not None:
        attention = {"kv_down": "H D", "kv_norm": {"scale": "C"}, "kv_up": "N X C", "wo": "D N A"}
        if config.latent.query_width is None:
            attention |= {"wq": "N Y D"}
        else:
            attention |= {"q_down": "J D", "q_norm": {"scale": "J"}, "wq": "N Y J"}
    if config.qkv_bias:
        attention |= {"bqkv": "K Q H"}
    if config.attention_out_bias:
        attention |= {"bo": "D"}
    if config.qk_norm is not None:
        whole = config.qk_norm == "width"
        attention |= {"q_norm": {"scale": "N H" if whole else "H"}, "k_norm": {"scale": "K H" if whole else "H"}}
    if config.attention_sinks:
        attention |= {"sinks": "N"}
    mlp = {"up": "U F D", "down": "D F"}
    if config.mlp_bias:
        mlp |= {"up_bias": "U F", "down_bias": "D"}
    D = "O" if config.expert_latent else "D"
    experts: dict[str, Any] = {"router": "E D", "up": f"E U M {D}", "down": f"E {D} M"}
    if config.expert_bias:
        experts |= {"router_bias": "E", "up_bias": "E U M", "down_bias": f"E {D}"}
    if config.expert_latent:
        experts |= {"latent_down": "O D", "latent_up": "D O"}
    if config.shared_size:
        shared = {name: axes.replace("F", "W") for name, axes in mlp.items()}
        experts |= {"shared": shared | ({"gate": "D"} if config.shared_gate else {})}
    if config.experts_apart:
        experts |= dict.fromkeys(APART, norm)
    norms: dict[str, Any] = {name: norm for name in config.norms if name not in (*APART, "final_norm")}
    norms |= {"scale": "1"} if config.layer_scale else {}
    norms |= {"input": {"down": "I D", "up": "D I"}} if config.layer_inputs else {}

    def halves(layer: Any) -> dict[str, Any]:
        marked = lambda tree: {name: layer.letters(axes) for name, axes in flat(tree)}  # noqa: E731
        own = {name: axes for name, axes in attention.items() if name != "k_norm" or layer.keeps}
        both = norms | ({"attention": marked(own)} if layer.mixer is None else {"recurrent": layer.mixer.parameters})
        both |= {"mlp": marked(mlp) if layer.router is None else experts | layer.router.parameters}
        lacks = () if layer.lacks is None else (layer.lacks, f"{layer.lacks}_norm", f"{layer.lacks}_post_norm")
        return {name: inside for name, inside in both.items() if name not in lacks}

    tree = {
        "embedding": {"tokens": "V D"} | ({"positions": "P D"} if config.learned_positions else {}),
        "inputs": {"tokens": "V L*I", "projection": "L*I D", "norm": {"scale": "I"}} if config.layer_inputs else {},
        "layers": {str(index): halves(layer) for index, layer in enumerate(config.layers)},
        "final_norm": norm,
        "unembedding": ({} if config.tie_embeddings else {"tokens": "V D"})
        | ({"bias": "V"} if config.head_bias else {}),
    }
    return dict(flat(tree))


def shapes(config: ModelConfig, sizes: dict[str, int] | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter: {path: sizes}, with the config's own sizes or others. Allocates nothing."""
    sizes = config.sizes if sizes is None else sizes
    return {path: tuple(sizes[letter] for letter in letters.split()) for path, letters in layout(config).items()}


def count(config: ModelConfig) -> int:
    """How many numbers the model has, tied embeddings counted once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def nbytes(config: ModelConfig, dtype: Dtype, sizes: dict[str, int] | None = None) -> dict[str, int]:
    """{path: bytes in memory} in a dtype. sizes: how long each axis letter is, where it is not the config's own."""
    large = large_matrices(config)
    return {path: dtype.nbytes(shape, large.get(path)) for path, shape in shapes(config, sizes).items()}


def outputs(path: str, letters: str) -> int | None:
    """How many of a matrix's axes, the first ones, count outputs; None for what is no matrix."""
    inputs = INPUTS.get(path.rpartition(".")[2])
    return None if inputs is None else len(letters.split()) - inputs


def large_matrices(config: ModelConfig) -> dict[str, int]:
    """{path: how many axes count outputs} of the matrices and tables of tokens, which are nearly all of a model.

    A dtype may keep these in a kind of its own. What is taken apart before it is multiplied is not among them.
    """
    found = {path: outputs(path, letters) for path, letters in layout(config).items()}
    others = ("embedding.positions", "kv_up", "router")  # of which the last is small, and a choice hangs on it
    return {path: count for path, count in found.items() if count is not None and not path.endswith(others)}


def adaptable(config: ModelConfig) -> dict[str, int]:
    """large_matrices, of those that an adapter may be laid beside: no experts, and no table of what layers are told."""
    letters = layout(config)
    return {
        path: count
        for path, count in large_matrices(config).items()
        if "E" not in letters[path].split() and path != "inputs.tokens"
    }


def cache_slots(config: ModelConfig, capacity: int, spare: int = 0) -> list[int]:
    """S of each layer in a cache of this capacity: the capacity, or the layer's window and `spare` slots where that is less; 0
    of a layer that has no keys and values of its own.

    More than BLOCK of them come in whole blocks, which attention sums one after the other.
    """
    own = [layer.window + spare if layer.window else capacity for layer in config.layers]
    sizes = [size if layer.keeps else 0 for size, layer in zip(own, config.layers, strict=True)]
    whole = lambda size: size if size <= BLOCK else -(-size // BLOCK) * BLOCK  # noqa: E731
    return [min(whole(size), whole(capacity)) for size in sizes]


def check_goes_back(config: ModelConfig) -> None:
    """Raise RequestError for a model with recurrent layers, from what wants to take back tokens that were read."""
    where = [where for layer, where in config.alike() if layer.mixer is not None]
    if where:
        raise RequestError(
            f"tokens cannot be guessed ahead here: layers {' '.join(where)} are recurrent, and what such a layer has read "
            "cannot be taken back; leave speculate out."
        )


def row_nbytes(
    config: ModelConfig, context: int, itemsize: int, tp: int = 1, spare: int = 0, kept: str = "auto"
) -> tuple[int, int]:
    """Bytes of one device for a row of so many positions: its keys, values and states; and what draws its tokens, with its
    settings.

    spare is how many tokens of a step are guessed, each with logits of its own; kept how keys and values are, see init_cache.
    """
    held = sum(layer_nbytes(config, context, itemsize, tp, spare, kept, again=False))
    # logits, two histories, the logit bias, two masks; and the text
    drawing = config.vocab_size * (4 * (1 + spare) + 1 + 4 + 4 + 1 + 1) + 4 * config.max_positions
    return held + state_nbytes(config, itemsize) // tp, drawing


def layer_nbytes(
    config: ModelConfig, context: int, itemsize: int, tp: int, spare: int, kept: str, again: bool
) -> list[int]:
    """Bytes of the keys and values of a row in each layer; again: of another's too, where it looks at those. As row_nbytes."""
    slots, found = cache_slots(config, context, spare), []
    for index, layer in enumerate(config.layers):
        heads = config.heads_of(layer)
        vector = heads.head_dim + 4 if kept == "int8" else itemsize * heads.head_dim
        seen = slots[index if layer.keys_of is None or not again else layer.keys_of]
        found.append(config.vectors * vector * (heads.num_kv_heads // tp) * seen)
    return found


def state_nbytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of what the recurrent layers remember of one row, however long its text is. itemsize is that of keys and values."""
    if (mixer := config.mixer) is None:
        return 0
    state = 0 if mixer.state is None else 4 * math.prod(mixer.state)
    return sum(layer.mixer is not None for layer in config.layers) * (itemsize * math.prod(mixer.tail) + state)


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested dicts of axis letters -> (path, letters), in order."""
    for name, inside in tree.items():
        if isinstance(inside, str):
            yield prefix + name, inside
        else:
            yield from flat(inside, f"{prefix}{name}.")
