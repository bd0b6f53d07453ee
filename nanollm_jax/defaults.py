"""What a checkpoint says of generating: which ids end a text, and how to choose tokens where a request does not say."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanollm_jax import files
from nanollm_jax.checks import whole
from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import ConfigError, NanoLLMWarning, RequestError, shown
from nanollm_jax.settings import Sampling
from nanollm_jax.weights.source import read_json

# settings of generation_config.json that are numbers of ours by the same name: those that mean something only where tokens
# are drawn, and those that always do
DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
ALWAYS = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
# what else of it changes an answer, and the values at which it does not
NOT_OBEYED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "diversity_penalty": (0,), "penalty_alpha": (0,), "guidance_scale": (1,),
    "encoder_repetition_penalty": (1,), "encoder_no_repeat_ngram_size": (0,), "min_length": (0,), "forced_bos_token_id": (),
    "exponential_decay_length_penalty": (), "watermarking_config": (), "constraints": (), "force_words_ids": (),
    "dola_layers": (), "remove_invalid_values": (False,), "token_healing": (False,), "max_time": (),
}  # fmt: skip
NOT_OBEYED_DRAWING: dict[str, tuple[Any, ...]] = {"epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": ()}


@dataclass(frozen=True)
class Defaults:
    """What the checkpoint says of generating.

    eos_ids    ids that end every answer
    sampling   how to choose tokens when a request does not say
    stop       texts that end every answer
    """

    eos_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    stop: tuple[str, ...] = ()


def read_defaults(
    config_json: dict[str, Any],
    folder: Path,
    config: ModelConfig,
    eos_id: int | None = None,
    generation: dict[str, Any] | None = None,
) -> Defaults:
    """End-of-sequence ids of both files, and generation_config.json's settings: those of drawing where it says do_sample.

    eos_id: the tokenizer's, which serves where neither file names one. generation: what would stand in that file, of a model
    that has none. Raises ConfigError for a value that cannot be; names
    in one warning what would change the answers and is not obeyed.
    """
    path = folder if generation is not None else folder / "generation_config.json"
    if generation is None:
        generation = read_json(path) if files.present(path) else {}
    eos_ids = {
        *token_ids(config_json.get("eos_token_id"), f"{folder / 'config.json'}: eos_token_id"),
        *token_ids(generation.get("eos_token_id"), f"{path}: eos_token_id"),
    }
    if not eos_ids and eos_id is not None:
        eos_ids = {eos_id}
    ends = tuple(sorted(token for token in eos_ids if token < config.vocab_size))
    do_sample = generation.get("do_sample")
    if not isinstance(do_sample, bool | None):
        raise ConfigError(f"{path}: do_sample is {do_sample!r}; expected true or false.")
    drawing = do_sample and (generation.get("temperature") is False or generation.get("temperature") != 0)
    names = (*DRAWING, *ALWAYS) if drawing else ALWAYS
    given = {name: generation[name] for name in names if generation.get(name) is not None}
    if given.get("top_k") == -1:  # another program's word for off
        del given["top_k"]
    for name, value in given.items():
        if isinstance(value, list):  # a list is one value per row, and a file knows no rows
            raise ConfigError(f"{path}: {name} is {value!r}; expected a number.")
    if not drawing:
        given["temperature"] = 0.0

    neutral = NOT_OBEYED | (NOT_OBEYED_DRAWING if drawing else {})
    left_out = [
        name for name, off in neutral.items() if generation.get(name) is not None and generation[name] not in off
    ]
    known = lambda name: [  # noqa: E731  # an id that the vocabulary does not have is never drawn anyway
        token for token in token_ids(generation.get(name), f"{path}: {name}") if token < config.vocab_size
    ]
    bias = dict.fromkeys(known("suppress_tokens"), -math.inf)
    for name in ("bad_words_ids", "sequence_bias"):
        found, several = biases(generation.get(name), f"{path}: {name}", -math.inf if name == "bad_words_ids" else None)
        left_out += [f"{name} of several tokens"] if several else []
        # an end of the text is no bad word
        bias |= {t: b for t, b in found.items() if t < config.vocab_size and not (b == -math.inf and t in eos_ids)}
    if bias:
        given["logit_bias"] = bias
    if first := known("begin_suppress_tokens"):
        given["begin_suppress_tokens"] = tuple(first)
    if forced := known("forced_eos_token_id"):
        given["forced_eos_token_id"] = min(forced)  # of several, the one that greedy decoding takes
    stop = generation.get("stop_strings") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or any(not isinstance(text, str) or not text for text in stop):
        raise ConfigError(f"{path}: stop_strings is {shown(stop)}; expected a text or a list of texts.")
    sampling = Sampling(**given)
    try:
        sampling.rows(1, config.vocab_size, ends=ends)
    except RequestError as error:
        raise ConfigError(f"{path}: {error}") from None
    if left_out:
        warnings.warn(
            f"{path}: {', '.join(left_out)} cannot be obeyed, so answers differ from those that its authors saw.",
            NanoLLMWarning,
            stacklevel=3,
        )
    return Defaults(ends, sampling, tuple(stop))


def biases(entries: Any, where: str, value: float | None) -> tuple[dict[int, float], bool]:
    """[[ids], ...] with one value for all, or [[[ids], number], ...] -> what single ids get, and is there a longer one?"""
    found, several = {}, False
    if not isinstance(entries, list | None):
        raise ConfigError(f"{where} is {shown(entries)}; expected a list.")
    for entry in entries or ():
        if value is None and not (isinstance(entry, list) and len(entry) == 2):
            raise ConfigError(f"{where} has {shown(entry)}; expected a list of ids and a number.")
        ids, number = (entry, value) if value is not None else entry
        if not isinstance(ids, list) or not ids:
            raise ConfigError(f"{where} has {shown(entry)}; expected a list of token ids.")
        ids = token_ids(ids, where)
        several |= len(ids) > 1
        if len(ids) == 1:
            found[ids[0]] = number
    return found, several


def token_ids(value: Any, where: str) -> list[int]:
    """An id, a list of ids or null -> a list of ids. -1 is how some files spell null."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(whole(token) is None or token < -1 for token in ids):
        raise ConfigError(f"{where} is {shown(value)}; expected a token id, a list of token ids, or null.")
    return [token for token in ids if token != -1]
