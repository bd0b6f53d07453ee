"""`nanollm mesh`: who holds what of a model on a mesh, what the devices say to each other, and whether they agree with one."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanollm_jax.cli.devices import Devices, Dp, Tp, mesh_for
from nanollm_jax.cli.options import AsJson, Dtype, Revision
from nanollm_jax.cli.printing import print_json, print_table
from nanollm_jax.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from nanollm_jax.loading import Model

MODEL = "A folder in checkpoint form, or a hub id. Left out: the bundled model."
PICTURE = "Draw which device holds what of this parameter, such as layers.0.mlp.up."
MESSAGES = {"all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast"}
TOKENS = 16  # of the prompt that both ways read


def mesh(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=MODEL)] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    dp: Dp = 1,
    tp: Tp = 1,
    devices: Devices = None,
    picture: Annotated[str | None, typer.Option(metavar="PARAMETER", help=PICTURE)] = None,
    as_json: AsJson = False,
) -> None:
    """Spread a model over a mesh, show its parts and what one decode step exchanges, and compare it with one device.

    The exchanges are read from the compiled program. For the comparison the whole model is loaded once more.
    """
    import nanollm_jax as nano
    from nanollm_jax.partition import made_up

    over = mesh_for(dp, tp, devices)
    if over is None:
        raise ConfigError("dp=1 and tp=1 are a single device; give --dp or --tp.")
    if picture is not None and as_json:
        raise RequestError("--picture and --json exclude each other; the JSON object has every parameter's split.")
    spread = nano.load(model, dtype=dtype, revision=revision, mesh=over)
    if picture is not None:
        return draw(spread, over, picture)
    whole = nano.load(model, dtype=dtype, revision=revision)
    report: dict[str, Any] = {
        "parameters": parts(spread),
        "exchanges": exchanges(step(spread, dp)),
        "largest_logit_difference": difference(spread, whole, dp),
        "padded": made_up(whole.config, tp),
    }
    report["bytes_per_device"] = sum(part["bytes"] for part in report["parameters"].values())
    report["padding_per_device"] = round((nbytes(spread) - nbytes(whole)) / tp)
    if as_json:
        return print_json(report)
    rows = [
        (path, part["axes"], part["split"], " ".join(map(str, part["shape"])), f"{part['bytes']:,}")
        for path, part in report["parameters"].items()
        if not re.match(r"layers\.[1-9]", path)
    ]
    rows.append(("all, and all layers", "", "", "", f"{report['bytes_per_device']:,}"))
    if report["padded"]:
        rows.append(("of it padding", "", "", "", f"{report['padding_per_device']:,}"))
    print_table(("parameter (layer 0 for all)", "axes", "split", "each device has", "bytes"), rows, right=1)
    for words in report["padded"]:
        print(f"padding: {words}")
    said = [(kind, f"{count}", f"{nbytes:,}") for kind, (count, nbytes) in report["exchanges"].items()]
    print_table(("in one decode step, each device", "times", "bytes"), said, right=2)
    print(f"largest difference of a logit from one device: {report['largest_logit_difference']:.2e}")


def draw(model: Model, over: Mesh, path: str) -> None:
    """A picture of one parameter: the axis that is split downwards, all others to the right, and who holds which part."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from nanollm_jax import params

    found = parts(model)
    if path not in found:
        raise RequestError(f"there is no parameter {path!r}; this model has {', '.join(list(found)[:12])} and so on.")
    letters, shape = found[path]["axes"].split(), params.flatten(model.params)[path].shape
    split = [size for letter, size in zip(letters, shape, strict=True) if letter == found[path]["split"]]
    down = split[0] if split else shape[0]
    how = f"split over tp along {found[path]['split']}" if split else "whole on every device"
    print(f"{path} [{' '.join(letters)}] of {' x '.join(map(str, shape))}, {how}")
    partition = PartitionSpec("tp" if split else None, None)
    jax.debug.visualize_sharding((down, math.prod(shape) // down), NamedSharding(over, partition))


def parts(model: Model) -> dict[str, dict[str, Any]]:
    """What each device holds of every parameter: its axes, which of them is split, the part's shape and bytes."""
    from nanollm_jax import params
    from nanollm_jax.partition import RULE

    letters, found = params.layout(model.config), {}
    for path, array in params.flatten(model.params).items():
        part = array.addressable_shards[0].data
        split = " ".join(letter for letter in letters[path].split() if RULE.get(letter) == "tp")
        found[path] = {"axes": letters[path], "split": split, "shape": part.shape, "bytes": part.nbytes}
    return found


def nbytes(model: Model) -> int:
    """Bytes of all parameters, each counted once."""
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


def prompt(model: Model, dp: int) -> tuple[Any, Any, Any]:
    """A row for every dp: ids that go through the vocabulary, how many they are, and an empty cache for them."""
    import numpy as np

    import nanollm_jax as nano

    tokens = np.arange(dp * TOKENS, dtype=np.int32).reshape(dp, TOKENS) * 7 % model.config.vocab_size
    capacity = min(2 * TOKENS, model.config.max_positions)
    dtype = model.params["embedding"]["tokens"].dtype
    return (
        tokens,
        np.full(dp, TOKENS, np.int32),
        nano.init_cache(model.config, dp, capacity, dtype, model.mesh),
    )


def step(model: Model, dp: int) -> str:
    """The compiled program of one decode step, as text."""
    import numpy as np

    import nanollm_jax as nano
    from nanollm_jax.decode import init_state, write_tokens

    sampling = nano.Sampling().rows(dp, model.config.vocab_size)
    state = init_state(prompt(model, dp)[2], model.config)
    lowered = write_tokens.lower(model.params, state, sampling, np.zeros(dp, np.uint32), config=model.config, steps=1)
    return str(lowered.compile().as_text())


def exchanges(text: str) -> dict[str, tuple[int, int]]:
    """Every kind of message between devices in a compiled program: how often, and the bytes of what comes out of it."""
    from nanollm_jax.measure import hlo

    found: dict[str, tuple[int, int]] = {}
    for instruction in hlo.Program(text).instructions.values():
        kind = instruction.opcode.removesuffix("-done")  # of a message in two halves, what comes out of the second
        if kind in MESSAGES:
            count, nbytes = found.get(kind, (0, 0))
            found[kind] = (count + 1, nbytes + instruction.nbytes)
    return found


def difference(many: Model, one: Model, dp: int) -> float:
    """The largest difference between the two models' logits after the same prompts."""
    import numpy as np

    import nanollm_jax as nano

    logits = [np.asarray(nano.prefill(model.params, *prompt(model, dp), config=model.config).logits)
              for model in (many, one)]  # fmt: skip
    return float(np.abs(logits[0] - logits[1]).max())
