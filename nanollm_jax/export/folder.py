"""The folder that export writes: all of it, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from nanollm_jax import files
from nanollm_jax.checks import check_counts
from nanollm_jax.decode import State
from nanollm_jax.engine import buckets
from nanollm_jax.errors import CheckpointError, NanoLLMWarning, RequestError
from nanollm_jax.export import generate as script
from nanollm_jax.export import programs
from nanollm_jax.loading import Model
from nanollm_jax.params import Params
from nanollm_jax.tokenizer import Tokenizer
from nanollm_jax.weights.write import Stored, write_tensors

CAPACITY = 1024  # positions, of a model that has more
PACKAGES = {"tokenizer.json": "tokenizers", "tokenizer.model": "sentencepiece"}  # those that the script can read
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
TEXTS = (
    "Once upon a time, there was a little girl.", "  two  spaces\n\n\tand a tab ", "naïve café, 東京 🙂", "1234567 + 89 = x_1",
)  # fmt: skip

README = Path(__file__).parent / "README.template.md"


def export(model: Model, folder: str | os.PathLike[str], *, capacity: int | None = None) -> Path:
    """Write a model into a new folder, to be run without this library: programs of jax.export, weights, a script. -> the folder

    capacity  positions of the one text that a state is for, prompt and answer; None is all that the model has, 1024 at most.
              Prompts of any length are read in pieces of one length, so that nothing is compiled for another one

    Both programs run on CPUs, NVIDIA GPUs and TPUs. Sampling is inside: all settings of Sampling and the seed are arguments of
    a step, and tokens are those of generate, but for ties in the last bits. Keys and values are kept as on this machine, those
    of a bfloat16 model in float32 where it is a CPU, and in 8 bits where the model keeps them so. A tokenizer.json or
    tokenizer.model is copied where its library, which the script calls, reads texts as this one does; with any other the
    script takes ids, which a NanoLLMWarning says.
    Raises RequestError where the folder is there, cannot be written or has no room, for a model on a mesh, and for one with
    adapters of which each row takes its own.
    """
    if not isinstance(model, Model):
        raise RequestError(f"the first argument is {type(model).__name__}; expected a model, as load gives.")
    if model.mesh is not None:
        raise RequestError(
            f"this model is on a mesh of {dict(model.mesh.shape)}, and what is exported runs on one device; load it without."
        )
    if model.adapters:
        raise RequestError(
            f"this model has the adapters {', '.join(model.adapters)} beside it, and what is exported takes one for all texts; "
            "export model.adapted(name), or model.adapted(None) without any."
        )
    config = model.config
    (capacity,) = check_counts(capacity=min(config.max_positions, CAPACITY) if capacity is None else capacity)
    if capacity > config.max_positions:
        raise RequestError(f"capacity is {capacity}; expected the model's {config.max_positions} positions at most.")
    piece = min(buckets.PIECE, capacity)
    with files.new_folder(folder, RequestError, model.nbytes + 2**24) as part:
        kept = copy_tokenizer(model, part)
        rows = programs.empty(model.params, config, capacity, model.cache)
        for name, data in artefacts(model, rows, piece).items():
            (part / name).write_bytes(data)
        write_tensors(part / "weights.safetensors", stored(model.params))
        sampling = model.defaults.sampling.rows(1, config.vocab_size, ends=model.defaults.eos_ids)
        write_tensors(part / "settings.safetensors", stored(sampling))
        shutil.copyfile(script.__file__, part / "generate.py")
        begin = [model.tokenizer.bos_id] if kept and model.tokenizer and model.tokenizer.add_bos else []
        facts: dict[str, Any] = {"piece": piece, "capacity": capacity, "switch": config.switch_length, "begin": begin}
        facts["stop"] = model.defaults.stop
        (part / "export.json").write_text(json.dumps(facts, indent=1) + "\n")
        facts |= {"cache": rows.cache.kept, "name": Path(folder).name}
        (part / "README.md").write_text(readme(model, facts, kept), encoding="utf-8")
    return Path(os.path.expanduser(folder))


def artefacts(model: Model, rows: State, piece: int) -> dict[str, bytes]:
    """The two programs. Raises RequestError where jax cannot write them."""
    try:
        return programs.programs(model.params, model.config, rows, piece)
    except ImportError as error:
        raise RequestError(
            f"jax.export cannot write programs here ({error}); pip install 'nanollm-jax[export]'."
        ) from None


def stored(tree: Params | Any) -> dict[str, Stored]:
    """Arrays by name, each fetched from its device when it is its turn."""
    fetch = lambda leaf: lambda: np.asarray(leaf)  # noqa: E731
    return {name: (np.dtype(leaf.dtype).name, leaf.shape, fetch(leaf)) for name, leaf in programs.named(tree).items()}


def copy_tokenizer(model: Model, part: Path) -> list[str]:
    """Copy the tokenizer's files where the script reads with them what this library does. -> their names"""
    if model.tokenizer is None:
        return []
    source, reason = model.folder, "no tokenizer.json or tokenizer.model"
    there = [name for name in PACKAGES if source is not None and files.present(source / name)][:1]
    if source is not None and there:
        names = there + [name for name in BESIDE if files.present(source / name)]
        for name in names:
            files.copy(source / name, part, CheckpointError)
        if (other := differs(part, model.tokenizer)) is None:
            return names
        reason = f"{there[0]}, by which {other!r} is read otherwise than by this library"
        for name in names:
            (part / name).unlink()
    warnings.warn(
        f"{source or 'this model'} has {reason}: the script takes and gives ids, not texts.",
        NanoLLMWarning,
        stacklevel=3,
    )
    return []


def differs(part: Path, tokenizer: Tokenizer) -> str | None:
    """A text that the script's tokenizer does not read or give back as ours; None where there is none among TEXTS."""
    encode, decode = script.tokenizer(part)
    for text in TEXTS:
        ids = tokenizer.encode(text, bos=False)
        if list(encode(text)) != ids or decode(ids) != tokenizer.decode(ids):
            return text
    return None


def readme(model: Model, facts: dict[str, Any], kept: list[str]) -> str:
    """The text of README.md."""
    packages = ["jax", "flatbuffers", "numpy", "safetensors", *(PACKAGES[name] for name in kept if name in PACKAGES)]
    text = "a text" if kept else "the ids of a prompt (`--ids 5,17,2`)"
    chat = (
        " The chat template is for whoever renders chats; the script continues texts."
        if model.chat_template and kept
        else ""
    )
    return README.read_text(encoding="utf-8").format(
        text=text, model=repr(model).partition(", tokenizer=")[0] + ")", packages=" ".join(packages),
        platforms=", ".join(programs.PLATFORMS), lines=len(Path(script.__file__).read_text().splitlines()),
        dtype=model.dtype.name, temperature=float(model.defaults.sampling.temperature),
        files="".join(f"| `{file}` | of the checkpoint |\n" for file in kept), chat=chat,
        jax=jax.__version__, jaxlib=jaxlib.__version__, **facts,
    )  # fmt: skip
