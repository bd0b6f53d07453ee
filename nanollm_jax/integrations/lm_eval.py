"""lm-evaluation-harness: importing this registers the model type `nanollm` (an extra: pip install '.[lm-eval]' in a clone).

import lm_eval
import nanollm_jax.integrations.lm_eval
lm_eval.simple_evaluate(model="nanollm", model_args="pretrained=path/to/checkpoint,dtype=float32", tasks=["arc_easy"])
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

try:
    from lm_eval import utils
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    error.msg += f"; install lm-evaluation-harness: {sys.executable} -m pip install 'lm-eval[hf]'"
    raise

import nanollm_jax as nano
from nanollm_jax.checks import check_counts

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # what a task may set, by the same names


@register_model("nanollm")
class NanoLLM(TemplateLM):
    """A checkpoint as the harness's HF model of it would answer: the same tokens in, the same windows, the same stops."""

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """pretrained: a folder or hub id, None is the bundled model.  max_length: positions used of those the model has.
        batch_size: rows that are under way at a time; whatever the harness asks for is submitted at once.

        device and max_batch_size are the harness's own and must be None: JAX chooses the device, batch_size is a number.
        Raises RequestError for what cannot be honoured.
        """
        super().__init__()
        for name, value in {"device": device, "max_batch_size": max_batch_size}.items():
            if value is not None:
                raise nano.RequestError(f"{name} is {value!r}; leave it out: JAX_PLATFORMS chooses the device.")
        if not str(batch_size).isdecimal():
            raise nano.RequestError(f"batch_size is {batch_size!r}; expected a number.")
        self.batch_size = int(batch_size)
        check_counts(batch_size=self.batch_size)
        (self.max_gen_toks,) = check_counts(max_gen_toks=max_gen_toks)
        self.model = nano.load(pretrained, dtype=dtype, revision=revision)
        if self.model.tokenizer is None:
            raise nano.RequestError(
                "this checkpoint has no tokenizer files, and tasks are texts; copy them into its folder."
            )
        self.tokenizer = self.model.tokenizer
        self.max_length = (
            self.model.config.max_positions if max_length is None else check_counts(max_length=max_length)[0]
        )
        if not 1 <= self.max_length <= self.model.config.max_positions:
            limit = self.model.config.max_positions
            raise nano.RequestError(f"max_length is {max_length}; the model has {limit} positions.")

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        if self.tokenizer.eos_id is None:
            raise nano.RequestError("this tokenizer has no token that ends a text, and the harness asks for it.")
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id in front of a text that has nothing before it."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Text -> ids, with a BOS where the model wants one, or as asked."""
        return self.tokenizer.encode(string, bos=False if add_special_tokens is False else None)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **rest: Any
    ) -> list[tuple[float, bool]]:
        """(what the cache is asked by, context ids, continuation ids) -> log-likelihood, and is it the greedy answer.

        What is longer than the model's positions loses tokens at its beginning, as with the harness's HF model.
        """
        pairs = []
        for _, context, continuation in requests:
            if not context or not 0 < len(continuation) <= self.max_length:
                raise nano.RequestError(
                    f"a context of {len(context)} tokens and a continuation of {len(continuation)}; expected one or more, "
                    f"and at most {self.max_length}."
                )
            keep = self.max_length + 1 - len(continuation)
            pairs.append((context[-keep:], continuation))
        scores = nano.score(self.model, pairs, window=self.max_length + 1, rows=self.batch_size)
        assert isinstance(scores, list)
        results = [(score.logprob, all(score.best)) for score in scores]
        for (key, _, _), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in the harness's windows."""
        pieces: list[tuple[None, list[int], list[int]]] = []
        ends = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            pieces += [(None, *utils.make_disjoint_window(window)) for window in windows]
            ends.append(len(pieces))
        found = [logprob for logprob, _ in self._loglikelihood_tokens(pieces)]
        totals = [sum(found[begin:end]) for begin, end in pairwise([0, *ends])]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers to contexts, up to their stop strings. Raises RequestError for a setting that cannot be honoured."""
        if not requests:
            return []
        new, stop, sampling = zip(*(self.settings(dict(request.args[1])) for request in requests), strict=True)
        prompts = [
            self.tok_encode(request.args[0])[-(self.max_length - most) :]
            for request, most in zip(requests, new, strict=True)
        ]
        found = nano.generate(
            self.model, prompts, max_new_tokens=new, sampling=sampling, stop=stop, rows=self.batch_size
        )
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer.text)
        return [answer.text for answer in found]

    def settings(self, given: dict[str, Any]) -> tuple[int, list[str], nano.Sampling]:
        """What a task asks for -> how many tokens, stop strings, sampling. Greedy unless it says do_sample or a temperature."""
        until = given.pop("until", None) or []
        stop = [until] if isinstance(until, str) else list(until)
        new = given.pop("max_gen_toks", self.max_gen_toks)
        if not isinstance(new, int) or not 0 < new < self.max_length:
            raise nano.RequestError(f"max_gen_toks is {new!r}; expected 1 to {self.max_length - 1}.")
        do_sample = given.pop("do_sample", None)
        settings = {name: given.pop(name) for name in SAMPLING if given.get(name) is not None}
        if given:
            raise nano.RequestError(
                f"generation settings {sorted(given)} cannot be honoured; leave them out of the task."
            )
        if do_sample is False or (do_sample is None and not settings.get("temperature")):
            settings["temperature"] = 0.0
        return new, [text for text in stop if text], nano.Sampling(**settings)
