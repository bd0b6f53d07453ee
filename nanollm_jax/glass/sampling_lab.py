"""The sampling lab: one prompt, read once, answered with many settings and seeds side by side; and what each cut leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax import cache as kv
from nanollm_jax import sampling as smp
from nanollm_jax.cache import init_cache
from nanollm_jax.checks import check_counts, listed
from nanollm_jax.config import ModelConfig
from nanollm_jax.decode import State, init_state, read_prompts, write_tokens
from nanollm_jax.devices.programs import parallelize
from nanollm_jax.engine import buckets
from nanollm_jax.engine.answer import Answer, Generation
from nanollm_jax.engine.request import check_room, check_seeds, settings_of
from nanollm_jax.errors import RequestError
from nanollm_jax.glass import passes
from nanollm_jax.glass.harvest import harvest
from nanollm_jax.glass.texts import of_each, own_config, text_of
from nanollm_jax.loading import Model
from nanollm_jax.params import Params
from nanollm_jax.settings import Sampling

CUTS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}  # in their order, and switched off
ROWS = 256


@dataclass(frozen=True, repr=False)
class Lab:
    """Answers of n settings and m seeds.

    answers  [n][m] Generations
    cuts     "temperature", and the cuts in their order: the C stages of left and mass
    left     how many tokens each stage leaves at each place of an answer, [n][m] arrays [tokens C]
    mass     how much of the probability those had after temperature, the same
    """

    settings: list[Sampling]
    seeds: list[int]
    answers: list[list[Generation]]
    cuts: list[str]
    left: list[list[np.ndarray]]
    mass: list[list[np.ndarray]]

    def __repr__(self) -> str:
        n, m = len(self.settings), len(self.seeds)
        return f"Lab({n} settings x {m} seeds, {sum(len(one.token_ids) for row in self.answers for one in row)} tokens)"


@of_each("prompt")
def sampling_lab(
    model: Model, prompt: Any, settings: Sequence[Sampling], *, seeds: Any = (0, 1, 2, 3), max_new_tokens: int = 32
) -> Lab:
    """Answer one prompt with each of some settings and each of some seeds, all in one batch of one program.

    settings  a list of Samplings; seeds a list of numbers, the same for each
    An answer is the one that generate gives with this sampling and seed, but for ties in the last bits. Beside it stands what
    temperature and each cut leave of the model's own distribution at every place, penalties aside; of a greedy row nothing
    is cut. Of several prompts a list of labs. Raises RequestError as generate does.
    """
    (steps,) = check_counts(max_new_tokens=max_new_tokens)
    text, config = text_of(model, prompt), own_config(model)
    check_room(model, len(text.ids), steps)
    passes.check_switch(model, len(text.ids), steps)
    own, given = listed(settings), listed(seeds)
    if not own or not given:
        raise RequestError(
            "settings and seeds are lists of one or more; expected settings=[nano.Sampling(...)], seeds=[0]."
        )
    chosen, numbers = settings_of(model, own, len(own)), check_seeds(given, len(given))
    n, m = len(chosen), len(numbers)
    if n * m > ROWS:
        raise RequestError(f"{n} settings and {m} seeds are {n * m} answers; expected at most {ROWS} at once.")
    ends = tuple(token for token in model.defaults.eos_ids if token < config.vocab_size)
    rows = [one.rows(1, config.vocab_size, ends=ends, max_new_tokens=steps) for one in chosen for _ in numbers]
    rows += rows[-1:] * (-len(rows) % model.dp)  # a mesh divides them
    seeds_of_rows = np.resize(np.array(numbers, np.uint32), len(rows))
    sampling = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    capacity = buckets.capacity(len(text.ids) + steps, config.max_positions)
    how = {"capacity": capacity, "steps": steps}
    tokens, logprobs, (left, mass) = passes.fetched(
        passes.run_pass(everywhere, model, *text.padded, sampling, seeds_of_rows, **how)
    )
    answers = []
    for row in range(n * m):
        answer = Answer(text.ids, model.tokenizer, eos_ids=ends, stop=(), max_new_tokens=steps)
        for token, logprob in zip(tokens[row].tolist(), logprobs[row].tolist(), strict=True):
            answer.push(token, logprob)
        answers.append(answer.result(numbers[row % m]))
    rowed = lambda found: [found[at : at + m] for at in range(0, n * m, m)]  # noqa: E731
    of_rows = lambda x: [x[row, : len(one.token_ids)] for row, one in enumerate(answers)]  # noqa: E731
    stages = ["temperature", *CUTS]
    return Lab(chosen, numbers, rowed(answers), stages, rowed(of_rows(left)), rowed(of_rows(mass)))


def everywhere(
    params: Params, tokens: jax.Array, count: jax.Array, sampling: Sampling, seeds: jax.Array,
    *, config: ModelConfig, mesh: Mesh | None, kept: str, capacity: int, steps: int,
) -> Any:  # fmt: skip
    """write, on all members of a mesh, each of which reads the prompt for its rows.  tokens [1 T], count [1]"""
    config, dp = passes.held(config, mesh), 1 if mesh is None else mesh.shape["dp"]
    copies = lambda x: jnp.concatenate([x] * dp)  # noqa: E731
    cache = init_cache(config, dp, capacity, params["embedding"]["tokens"].dtype, kept=kept)
    program = parallelize(partial(write, config=config, steps=steps), mesh, config)
    return program(params, copies(tokens), copies(count), init_state(cache, config), sampling, seeds)


def write(
    params: Params, tokens: jax.Array, count: jax.Array, state: State, sampling: Sampling, seeds: jax.Array,
    *, config: ModelConfig, steps: int,
) -> tuple[jax.Array, jax.Array, Any]:  # fmt: skip
    """Read a prompt and answer it in B rows.  tokens [1 T], count [1], seeds [B] -> tokens, logprobs [B n], stages [B n C]"""
    state = unwrap(read_prompts)(params, tokens, count, state, config=config)
    rows = jnp.zeros(seeds.shape[0], jnp.int32)
    past = jax.tree.map(lambda x: x[rows], state.past)
    state = State(state.logits[rows], kv.repeat(state.cache, rows), past)
    keep = {"logits": lambda value, seen: stages_of(value[:, 0], sampling)}
    loop = harvest(partial(unwrap(write_tokens), config=config, steps=steps), keep)
    (answers, logprobs, _), kept = loop(params, state, sampling, seeds)
    first = stages_of(state.logits, sampling)  # a step draws from the logits of the one before
    stages = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y[:-1]]).swapaxes(0, 1), first, kept["logits"])
    return answers, logprobs, stages


def stages_of(logits: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """What is left after temperature and after each cut.  logits [B V] -> how many tokens [B C], how much of them [B C]"""
    left, mass, chances, greedy = [], [], None, sampling.temperature == 0
    for stage in range(len(CUTS) + 1):
        off = {name: jnp.full_like(getattr(sampling, name), CUTS[name]) for name in list(CUTS)[stage:]}
        kept = smp.warm(logits, dataclasses.replace(sampling, **off))
        chances = jax.nn.softmax(kept) if chances is None else chances
        stays = (kept > -jnp.inf) | greedy[:, None]
        left.append(jnp.sum(stays, axis=1))
        mass.append(jnp.sum(jnp.where(stays, chances, 0), axis=1))
    return jnp.stack(left, axis=1), jnp.stack(mass, axis=1)
