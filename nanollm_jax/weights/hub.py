"""Where a checkpoint is: a folder as it stands, or a model of the Hugging Face hub, downloaded to its cache."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nanollm_jax.errors import CheckpointError
from nanollm_jax.files import present
from nanollm_jax.weights.checkpoint import listed as listing
from nanollm_jax.weights.gguf import PART, is_gguf

# What we read, and nothing else: no pickles, no other runtime's weights.
WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.tiktoken", "merges.txt", "*.jinja"]
# Patterns match across "/": folders ("original/", "onnx/") hold copies for others, as do Mistral's consolidated files.
UNWANTED = ["*/*", "consolidated*.safetensors"]
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)  # anything else is a path
# "owner/name:Q4_K_M": of a hub model's GGUF files the one whose name says so, as the programs that publish them write it
QUANTISED_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*):(\w[\w-]*)", re.ASCII)
SUFFIXES = {".safetensors", ".json", ".toml", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".zip"}


def resolve(source: str | os.PathLike[str], revision: str | None = None, *, weights: bool = True) -> Path:
    """A folder, a GGUF file, or a hub id "owner/name" -> the folder with its files, or the file.

    An existing folder is returned as it is, with ~ expanded; so a folder wins over a hub id of the same name.
    "owner/name:Q4_K_M" is the GGUF file of that model whose name says Q4_K_M, the first of its parts where it has several.
    A hub id is downloaded unless it is in the cache already; HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and the like are
    honoured by huggingface_hub. revision: a branch, tag or commit of a hub id. weights False leaves out the tensors,
    which are nearly all of the bytes.
    Raises CheckpointError where there is no such folder or model, or it cannot be had.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"the model is {source!r}; expected a folder or a hub id 'owner/name'.")
    text = os.fspath(source)
    folder = Path(os.path.expanduser(text))
    if not text.strip():
        raise CheckpointError("the model's name is empty; expected a folder or a hub id 'owner/name'.")
    if os.path.isdir(folder):  # Path.is_dir raises for a name of 300 letters
        if revision is not None:
            raise CheckpointError(f"{folder}: is a folder, which has no revision {revision!r}; leave revision out.")
        return folder
    found = os.path.exists(folder)
    if is_gguf(folder):
        if not found:
            raise CheckpointError(
                f"{folder}: not found; expected a GGUF file, or one of a hub model by its quantisation: owner/name:Q4_K_M."
            )
        if revision is not None:
            raise CheckpointError(f"{folder}: is a file, which has no revision {revision!r}; leave revision out.")
        return folder
    if found:
        raise CheckpointError(
            f"{folder}: is a file, expected a checkpoint's folder; pass '{folder.absolute().parent}', where it is."
        )
    if isinstance(source, str) and (match := QUANTISED_ID.fullmatch(text)):
        return download_gguf(match[1], match[2], revision)
    if not isinstance(source, str) or not HUB_ID.fullmatch(text) or folder.suffix.lower() in SUFFIXES:
        raise CheckpointError(f"{folder}: folder not found; expected an existing one, or a hub id 'owner/name'.")
    return download(text, revision, weights)


def download(hub_id: str, revision: str | None, weights: bool) -> Path:
    """Bring a hub model's files into the cache. Returns the snapshot's folder; raises CheckpointError in one line.

    One that has GGUF files alone is refused with what there is to choose from.
    """
    # Imported here because it takes half a second, and a folder needs none of it.
    from huggingface_hub import snapshot_download

    unwanted = UNWANTED if weights else [*UNWANTED, "*.safetensors"]
    with one_line(hub_id, revision):
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=WANTED, ignore_patterns=unwanted))
    without = not any(folder.glob("*.safetensors")) if weights else not present(folder / "config.json")
    if without and (found := whole(gguf_files(hub_id, revision))):
        raise CheckpointError(
            f"{hub_id!r}: has GGUF files, no *.safetensors; say which, as in {hub_id}:Q4_K_M, of {listing(sorted(found))}."
        )
    return folder


def gguf_files(hub_id: str, revision: str | None) -> list[str]:
    """The names of a hub model's GGUF files, parts too; without a network those that are in the cache."""
    from huggingface_hub import HfApi, errors, snapshot_download

    with one_line(hub_id, revision):
        try:
            listed = HfApi().list_repo_files(hub_id, revision=revision)
        except errors.HfHubHTTPError:  # the hub's own answer
            raise
        except Exception:  # without a network, what is in the cache
            folder = snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns=["/"])
            listed = [str(path.relative_to(folder)) for path in Path(folder).rglob("*.gguf")]
    # mmproj: what turns images into vectors, beside the model
    return sorted(n for n in listed if n.lower().endswith(".gguf") and not n.split("/")[-1].startswith("mmproj"))


def whole(files: list[str]) -> dict[str, str]:
    """Names without the number of a part -> the first part of each, of sorted names."""
    return {PART.sub(r"\1.gguf", name): name for name in reversed(files)}


def download_gguf(hub_id: str, quantisation: str, revision: str | None) -> Path:
    """Bring one GGUF file of a hub model, or all parts of one, into the cache. Returns the first one's path.

    Raises CheckpointError where none has the quantisation in its name, or several have, naming what there is.
    """
    from huggingface_hub import snapshot_download

    models = whole(files := gguf_files(hub_id, revision))
    says = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(quantisation)}(?![A-Za-z0-9_])", re.IGNORECASE)
    fitting = [name for name in models if says.search(name.removesuffix(".gguf"))]
    if len(fitting) != 1:
        found = f"{len(fitting)} GGUF files are {quantisation}" + (f" ({listing(fitting)})" if fitting else "")
        raise CheckpointError(
            f"{hub_id!r}: {found}, expected one of {listing(sorted(models)) or 'some, and has none'}."
        )
    first = models[fitting[0]]
    wanted = [first] if first == fitting[0] else [name for name in files if PART.sub(r"\1.gguf", name) == fitting[0]]
    with one_line(hub_id, revision):
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*map(glob.escape, wanted)])) / first


@contextlib.contextmanager
def one_line(hub_id: str, revision: str | None) -> Iterator[None]:
    """What the hub's library raises becomes a CheckpointError in one line."""
    from huggingface_hub import errors

    reasons = {
        errors.GatedRepoError: "is gated; accept its terms on its hub page, then `hf auth login` or set HF_TOKEN",
        errors.RepositoryNotFoundError: "is neither a folder nor a hub model; check the name, or log in if private",
        errors.RevisionNotFoundError: "has no such revision on the hub; check its branches, tags and commits",
        errors.HFValidationError: "is neither a folder nor a hub id; expected 'owner/name'",
        errors.LocalEntryNotFoundError: "is no folder here, not complete in the cache of the hub, and the hub cannot be "
        "reached; check the path, or the network",
    }
    try:
        yield
    except Exception as error:  # the door to a network: also HTTP, proxy, TLS, disk
        known = (reason for kind, reason in reasons.items() if isinstance(error, kind))
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = next(known, f"could not be downloaded ({found}); try again")
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(f"{hub_id!r}{at} {reason}.") from error
