"""From a source (nothing, a folder, a hub id) to a Model: config, weights, tokenizer, defaults of generating."""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nanollm_jax import files
from nanollm_jax import params as parameters
from nanollm_jax.adapters import Onto
from nanollm_jax.chat import ChatTemplate
from nanollm_jax.config import ModelConfig
from nanollm_jax.defaults import Defaults
from nanollm_jax.devices.mesh import mesh_of
from nanollm_jax.devices.shards import keep_few, shard_params, spread
from nanollm_jax.dtypes import Dtype, check_kept, is_auto, resolve_weights
from nanollm_jax.errors import CheckpointError, ConfigError, NanoLLMWarning, RequestError, TokenizerError, shown
from nanollm_jax.executables import read_ahead
from nanollm_jax.ops.native import wanted
from nanollm_jax.params import Params
from nanollm_jax.partition import arrange, stored_sizes
from nanollm_jax.sources import nbytes_of_few, source_at
from nanollm_jax.tokenizer import Tokenizer
from nanollm_jax.weights import Checkpoint
from nanollm_jax.weights.adapters import Base, read_adapters
from nanollm_jax.weights.kept import load_kept
from nanollm_jax.weights.load import load_params
from nanollm_jax.weights.source import find

# What trainers leave in a model's folder, or alone
ADAPTERS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapters.safetensors",
    "adapters.npz",
)


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that generate and chat need. tokenizer and chat_template are None where the checkpoint brings none.

    Model(config, params) makes one of any config and parameters. On a mesh the config is that of what the devices hold:
    its counts of heads and its MLP widths have the padding in them, and unpadded is the one that has none. folder is where
    its files are, or its GGUF file, None of a model that was made in memory. adapters are the names of those that are kept
    beside its weights, of which each row of a batch may take one. cache is how its rows keep keys and values, see load.
    Raises CheckpointError where config and params do not match.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None = None
    defaults: Defaults = field(default_factory=Defaults)
    chat_template: ChatTemplate | None = None
    unpadded: ModelConfig | None = None
    folder: Path | None = None
    adapters: tuple[str, ...] = ()
    cache: str = "auto"
    engines: dict[Any, Any] = field(
        default_factory=dict, init=False, repr=False
    )  # by rows and by who guesses tokens; engine/ makes and keeps them here, one thread at a time
    choosing: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)
    grammars: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # and here what compiles them

    def __post_init__(self) -> None:
        check_kept(self.cache)
        tp = 1 if self.mesh is None else self.mesh.shape["tp"]
        parameters.check_params(self.params, self.config, stored_sizes(self.config, tp))

    def adapter(self, name: str | None) -> int:
        """The number of an adapter, by which a row takes it; 0 is none. Raises RequestError for one that was not loaded."""
        if name is not None and name not in self.adapters:
            known = (
                f"loaded are {', '.join(self.adapters)}"
                if self.adapters
                else "none was loaded: load(..., adapters=...)"
            )
            raise RequestError(f"there is no adapter {shown(name)}; {known}.")
        return 0 if name is None else 1 + self.adapters.index(name)

    def adapted(self, name: str | None) -> Model:
        """The same model with this adapter in every row and no other beside: for forward, observe and whatever takes params."""
        return dataclasses.replace(self, params=parameters.only(self.params, self.adapter(name)), adapters=())

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that the parameters are on, None on a single device."""
        return mesh_of(self.params)

    @property
    def dp(self) -> int:
        """Over how many devices rows are split."""
        return 1 if self.mesh is None else self.mesh.shape["dp"]

    @property
    def dtype(self) -> Dtype:
        """How its numbers are kept: dtype.name is "int8" where the matrices are, dtype.activations what the rest is in."""
        return parameters.dtype_of(self.params)

    @property
    def num_parameters(self) -> int:
        """How many numbers the model has, tied embeddings counted once; the padding of a mesh is none of them."""
        return parameters.count(self.unpadded or self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters; on a mesh, what all devices hold together."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def __copy__(self) -> Model:
        """Another one of the same parameters, with engines of its own."""
        return dataclasses.replace(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What pickle and copy.deepcopy ask for. Raises RequestError: weights lie on devices, and a tokenizer has functions."""
        raise RequestError(
            "a Model is neither pickled nor copied deeply; save(model, folder) writes it, load(folder) reads it in another "
            "process, and copy.copy(model) is another one of the same weights."
        )

    def __repr__(self) -> str:
        config, mesh = self.unpadded or self.config, "" if self.mesh is None else f", on {dict(self.mesh.shape)}"
        kinds = " and ".join(parameters.names(self.params, self.config))
        return (
            f"Model({config.num_layers} layers of width {config.hidden_size}, vocabulary {config.vocab_size}, "
            f"{self.num_parameters:,} parameters in {self.nbytes:,} bytes of {kinds}{mesh}, "
            f"tokenizer={self.tokenizer})"
        )


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    dtype: Any = "auto",
    revision: str | None = None,
    mesh: Mesh | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    merge: str | None = None,
    cache: str = "auto",
) -> Model:
    """Load a model: the bundled one, a folder in checkpoint form, a GGUF file, or a hub id such as "openai-community/gpt2".

    dtype: of weights and activations: "auto" (float32 on CPU, bfloat16 on GPU and TPU), "float32", "bfloat16" or "float16";
    or "int8" or "int4": matrices in 8 or 4 bits, everything else as "auto" has it. With "auto" weights that are published in
    few bits stay in these, where they can and no adapter is merged into them; with another they are decoded to it once.
    revision: a branch, tag or commit of a hub id.
    mesh: from make_mesh, the devices that share the model; each reads its own part of the files.
    adapters: {name: folder or hub id} of LoRA adapters in PEFT's form (DoRA and rsLoRA too), kept beside the weights: generate
    and the others take one by its name, another in each row. merge: the name of a single one, added into the weights instead.
    cache: how keys and values are kept while it writes: "auto", in the activations' dtype, or "int8", in 8 bits and a scale for
    each token and head, which takes a quarter of float32's memory, or half of bfloat16's.
    A checkpoint without tokenizer files loads with tokenizer None. Nothing in a checkpoint is ever executed or unpickled.
    Raises ConfigError, CheckpointError or TokenizerError, each naming the file, what was found and what was expected.
    """
    kept, cache = resolve_weights(dtype), check_kept(cache)
    found = source_at(find(source, revision))
    if not adapters:
        name_adapters(found.path)
    if found.kept is not None:
        kept = as_stored(found.path, found.kept, dtype, adapters)
    config, family = found.config()
    checkpoint = found.tensors()
    check_claims(checkpoint, config)
    few = nbytes_of_few(checkpoint, config, family) if is_auto(dtype) else {}
    if mesh is None:
        check_memory(found.path, sum((parameters.nbytes(config, kept) | few).values()))
    tokenizer = found.tokenizer()
    if tokenizer is not None:
        check_vocabulary(found.path, tokenizer, config)
    chat_template = None if tokenizer is None else found.template(tokenizer)
    defaults = found.defaults(config, None if tokenizer is None else tokenizer.eos_id)
    wanted()  # what executables call is there before they are read
    read_ahead(config, kept.name, mesh, cache, repr(adapters), merge, bool(few))
    if found.kept is not None:
        forms = parameters.forms(config, kept)
        arrays = load_kept(checkpoint, parameters.named(forms), on_host=mesh is not None)
        params = parameters.nest(jax.tree.unflatten(jax.tree.structure(forms), list(arrays.values())))
        stored, params = (config, params) if mesh is None else shard_params(params, config, mesh)
        return Model(stored, params, tokenizer, defaults, chat_template, config, found.folder, (), cache)
    check_tied(checkpoint, config, family)
    large = parameters.large_matrices(config)
    base = Base(
        family.table(config), parameters.layout(config), config.sizes, family.PREFIXES, parameters.adaptable(config),
        family.ignored(config),
    )  # fmt: skip
    apart, merged = read_adapters(adapters or {}, merge, base)
    adapted = Onto(apart, merged, config, mesh)
    keep = adapted.keeper(parameters.keeper(config, kept))
    as_published = {path: partial(keep_few, path, kept.activations, config, mesh) for path in large} if few else {}
    stored = config if mesh is None else arrange(config, mesh.shape["tp"])
    onto = None if mesh is None else partial(spread, dtype=kept.activations, config=config, mesh=mesh)
    flat = load_params(
        checkpoint, base.rows, base.layout, config.sizes, kept.activations,
        ignore=base.ignored, prefixes=family.PREFIXES, spread=onto, finish=keep,
        fill=adapted.untouched(parameters.fillers(config, kept)),
        few={path: partial(adapted.few, path, make) for path, make in as_published.items()},
    )  # fmt: skip
    names = () if merge is not None else tuple(adapters or {})
    return Model(stored, parameters.nest(flat), tokenizer, defaults, chat_template, config, found.folder, names, cache)


def as_stored(folder: Path, stored: str, dtype: Any, adapters: Any) -> Dtype:
    """The dtype of a checkpoint that has its parameters as they are kept. Raises CheckpointError where another is asked for."""
    if not is_auto(dtype) and resolve_weights(dtype).name != stored:
        raise CheckpointError(
            f"{folder}: its matrices are in {stored}, and dtype is {dtype!r}; load it with dtype 'auto', or take the "
            "checkpoint that it was converted from."
        )
    if adapters:
        raise CheckpointError(
            f"{folder}: its matrices are in {stored}, beside which no adapter is laid; load the checkpoint that it was "
            f"converted from with dtype={stored!r}."
        )
    return resolve_weights(stored)


def shard(model: Model, mesh: Mesh) -> Model:
    """A model that was made or loaded in one place, spread over a mesh. Raises ConfigError where it is on one."""
    if model.mesh is not None:
        raise ConfigError(f"this model is on a mesh of {dict(model.mesh.shape)} already; load it again with the other.")
    config, params = shard_params(model.params, model.config, mesh)
    return dataclasses.replace(model, config=config, params=params, unpadded=model.config)


def name_adapters(folder: Path) -> None:
    """Warn of an adapter beside a model, which is not applied. Raises CheckpointError where there is no model beside it."""
    if not (found := ", ".join(name for name in ADAPTERS if files.present(folder / name))):
        return
    merge = "load it beside its model: load(model, adapters={'name': folder}), or --model MODEL --adapter NAME=FOLDER"
    if not files.present(folder / "config.json"):
        raise CheckpointError(
            f"{folder}: found {found} and no config.json: this is an adapter without its model; {merge}."
        )
    warnings.warn(
        f"{folder}: {found}: an adapter is not applied, and this is the model without it; {merge}.",
        NanoLLMWarning,
        stacklevel=3,
    )


def check_vocabulary(folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raise TokenizerError where the tokenizer's vocabulary goes past the model's.

    Tokens that were added to it may (an image's mark, a pad): such a one is an error where it is used.
    """
    added = {*tokenizer.added.values(), *tokenizer.special_ids}
    past = (token for token in range(config.vocab_size, tokenizer.vocab_size) if token not in added)
    if any(tokenizer.piece(token) for token in past):
        raise TokenizerError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends at "
            f"{config.vocab_size - 1}; these files belong to different models, or the embedding was not resized."
        )


def check_claims(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Raise CheckpointError where the config speaks of far more than the files hold, before anything is done for each."""
    held = sum(file.stat().st_size for file in {info.file for info in checkpoint.tensors.values()})
    # whatever the format, a layer has a tensor, and a parameter a bit
    if config.num_layers > len(checkpoint.tensors) or parameters.count(config) > 8 * held:
        raise CheckpointError(
            f"{checkpoint.folder}: the config is of {config.num_layers:,} layers of width {config.hidden_size:,}, the "
            f"files have {len(checkpoint.tensors):,} tensors in {held:,} bytes; {checkpoint.remedy}."
        )


def check_memory(folder: Path, needed: int) -> None:
    """Raise CheckpointError where the parameters are more than all of this machine's memory, and are to be kept in it.

    Not for the machine alone: of a file with a hole in it, most of the bytes are only claimed.
    """
    memory = files.host_memory()
    if jax.default_backend() == "cpu" and memory is not None and needed > memory:
        raise CheckpointError(
            f"{folder}: its parameters take {needed / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory; "
            "load it with dtype='bfloat16', 'int8' or 'int4', or on a larger machine."
        )


def check_tied(checkpoint: Checkpoint, config: ModelConfig, family: ModuleType) -> None:
    """Raise CheckpointError where a table that the config ties is stored twice, with different numbers."""
    if not config.tie_embeddings:
        return
    rows = family.table(dataclasses.replace(config, tie_embeddings=False))
    tables = [row for row in rows if row.path in ("embedding.tokens", "unembedding.tokens") and not row.instead]
    likely = [name for row in tables for prefix in family.PREFIXES for name in row.names(prefix)]
    both = [name for name in dict.fromkeys(likely) if name in checkpoint.names()]
    if len(both) == 2 and not np.array_equal(checkpoint.read(both[0]), checkpoint.read(both[1])):
        raise CheckpointError(
            f"{checkpoint.folder}: config.json ties the embeddings, or leaves them tied, but {' and '.join(both)} are "
            "different; set tie_word_embeddings to false to use both."
        )
