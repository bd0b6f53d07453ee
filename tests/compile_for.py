"""The engine's programs compiled for a device that is not there, and read: a GPU or a TPU as its maker describes it.

    make gpu-compile        make tpu-compile        ARGS="--layers 4 --only write" for a part of it

XLA's compilers for both run on any machine with a CPU. Nothing runs, nothing is timed, and no kernel is chosen by timing it.
What holds or fails here is what a program does with memory and how many kernels it is: the state is updated in place, no weight
and no buffer of the cache is written as a whole (those in 8 bits are read as they are kept), there are few temporaries, and
devices say to each other what README says.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding

import nanollm_jax as nano
from nanollm_jax import params as parameters
from nanollm_jax.devices import programs
from nanollm_jax.devices.mesh import AXES
from nanollm_jax.engine import slots
from nanollm_jax.engine.buckets import PIECE
from nanollm_jax.measure.hlo import FREE, Instruction, Program
from nanollm_jax.measure.plan import make_plan
from nanollm_jax.ops.gpu import flash
from nanollm_jax.partition import arrange, made_up
from nanollm_jax.weights.source import read_json

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""  # as the driver would say it
ROOT = Path(__file__).resolve().parents[1]
LARGE = 2**16  # numbers: what is smaller may as well be an activation
SAID = "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"


class Case(NamedTuple):
    """One program of the 8B shape: write a token, or read a piece of a prompt; and what it may need."""

    device: str  # as `nanollm plan` knows it
    program: str
    dtype: str
    rows: int
    kernels: int  # of a token or a piece, at most
    tp: int = 1
    capacity: int = 1024

    @property
    def name(self) -> str:
        """Told apart from the others."""
        return f"{self.device} {self.program} {self.dtype} {self.rows} tp {self.tp}"


# kernels: what was counted, and a few more
CASES = {
    "gpu": [
        Case("h100", "write", "bfloat16", 1, 500),
        Case("h100", "write", "int8", 1, 530),
        Case("h100", "write", "int4", 1, 530),
        Case("h100", "write", "bfloat16", 32, 530),
        Case("h100", "read", "bfloat16", 1, 630),
        Case("h100", "write", "bfloat16", 8, 600, tp=8),
    ],
    "tpu": [
        Case("v5p", "write", "bfloat16", 1, 1450),
        Case("v5p", "write", "bfloat16", 32, 1250),
        Case("v5e", "write", "int8", 1, 2400),
        Case("v5e", "read", "int8", 1, 1980),
        Case("v5e", "write", "bfloat16", 8, 1400, tp=8),
    ],
}


def devices(name: str, count: int) -> list[Any]:
    """So many of them, to compile for."""
    if name == "h100":
        found = topologies.get_topology_desc(f"h100x{count}", "cuda", target_config=H100, topology=f"1x1x{count}")
    else:
        shape = {"v5e": "2x4", "v5p": "2x2x2"}[name]
        found = topologies.get_topology_desc(f"{name}:{shape}", "tpu")
    return list(found.devices)[:count]


def lower(case: Case, config: nano.ModelConfig) -> tuple[jax.stages.Lowered, Any, Any]:
    """A program for arrays that are said to lie on such devices.  -> lowered, its weights, what it is to update in place"""
    on = devices(case.device, case.tp)
    mesh = None if case.tp == 1 else Mesh(np.array(on).reshape(1, case.tp), AXES, axis_types=(AxisType.Auto,) * 2)
    assert not made_up(config, case.tp)
    config = arrange(config, case.tp)

    def placed(tree: Any) -> Any:
        where = jax.tree.map(lambda _: SingleDeviceSharding(on[0]), tree)
        if mesh is not None:
            where = jax.tree.map(partial(NamedSharding, mesh), programs.specs(tree, config))
        return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, where)

    array = lambda *shape, dtype=jnp.int32: placed(jax.ShapeDtypeStruct(shape, dtype))  # noqa: E731
    weights = jax.eval_shape(lambda: nano.init_params(config, jax.random.key(0), case.dtype))
    sizes = {"rows": case.rows, "capacity": case.capacity, "dtype": weights["final_norm"]["scale"].dtype}
    weights, state = placed(weights), placed(jax.eval_shape(partial(slots.empty_state, config=config, **sizes)))
    state = dataclasses.replace(state, cache=dataclasses.replace(state.cache, mesh=mesh))
    if case.program == "write":
        allowed = array(case.rows, -(-config.vocab_size // 32), dtype=jnp.uint32)
        return slots.write_tokens.lower(weights, state, array(case.rows), allowed, config=config), weights, state
    tokens, rest = array(case.rows, PIECE), [array(case.rows) for _ in range(5)]
    lowered = slots.read_piece.lower(weights, state.cache, tokens, *rest, config=config, fresh=False)
    return lowered, weights, state.cache


def nbytes(leaf: Any) -> int:
    """Of one device's part."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def kernels(program: Program) -> dict[str, list[Instruction]]:
    """What runs by itself, by the computation that it stands in."""
    found: dict[str, list[Instruction]] = {}
    for one in map(program.instructions.get, program.costs()):
        if one.opcode not in FREE and not one.opcode.endswith("-done"):
            found.setdefault(one.computation, []).append(one)
    return found


def whole(program: Program, weights: Any, state: Any) -> list[str]:
    """What is as large as a weight or a buffer of the cache, and is not an update in place."""
    cache = getattr(state, "cache", state)
    own = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves([weights, cache.layers])]
    decoded = [weight.shape for weight in parameters.flatten(weights).values()]  # of 4 bits, two are kept in a byte
    sizes = {size for shape in [*own, *decoded] if len(shape) > 1 and (size := math.prod(shape)) > LARGE}
    runs = [one for found in kernels(program).values() for one in found]
    # S(1): what a TPU fetches ahead into its own memory
    made = [one for one in runs if one.type.startswith(("bf", "f", "s8", "u8", "s4")) and "S(1)" not in one.type]
    made = [one for one in made if math.prod(one.shape) in sizes and not program.in_place(one)]
    return [f"{one.opcode} {one.type} in {one.computation}" for one in made]


def check(case: Case, config: nano.ModelConfig, texts: Path | None) -> list[str]:
    """Compile one program, print what it needs in a line, and say what is wrong with it."""
    begun, wrong = time.perf_counter(), []
    lowered, weights, state = lower(case, config)
    compiled = lowered.compile()
    program, memory = Program(compiled.as_text() or ""), compiled.memory_analysis()
    if texts:
        texts.mkdir(parents=True, exist_ok=True)
        (texts / f"{case.name}.hlo").write_text(compiled.as_text() or "")
    longest = max(kernels(program).values(), key=len)  # the body of the loop, or all of a piece
    said = Counter(one.opcode.removesuffix("-start") for one in longest)
    said = {word: said[word] for word in SAID if said[word]}
    own = sum(map(nbytes, jax.tree.leaves(state)))
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed += memory.temp_size_in_bytes
    plan = make_plan(config, tp=case.tp, batch=case.rows, context=case.capacity, dtype=case.dtype)
    print(
        f"{case.device} {case.program:5} {case.dtype:9} {case.rows:3} {case.tp:3} {len(longest):8} {needed / 1e9:8.2f} "
        f"{plan.total / 1e9:8.2f} {own / 1e9:9.3f} {memory.temp_size_in_bytes / 1e6:10.1f} "
        f"{time.perf_counter() - begun:8.0f}  {', '.join(f'{count} {word}' for word, count in said.items())}",
        flush=True,
    )
    # a TPU rounds small arrays up to what it moves at once
    if not own <= memory.alias_size_in_bytes <= own + (case.device != "h100") * 2**21:
        wrong.append(f"{memory.alias_size_in_bytes} bytes are updated in place; expected {own}, the state's")
    # once a chunk a TPU puts wo in another order where a device has four heads, which it makes up to eight
    relaid = case.tp > 1 and case.device != "h100"
    wrong += [
        f"written as a whole: {one}" for one in whole(program, weights, state) if not (relaid and " in main" in one)
    ]
    if len(longest) > case.kernels:
        wrong.append(f"{len(longest)} kernels; expected {case.kernels} at most")
    if needed > (1.08 if relaid else 1.03) * plan.total:
        wrong.append(f"{needed} bytes of a device; expected {plan.total}, as `nanollm plan` says")
    expected = {} if case.tp == 1 else {"all-reduce": 2 * config.num_layers + 1}
    if case.tp > 1 and case.program == "write":
        expected["all-gather"] = 1
    if said != expected:
        wrong.append(f"devices say {said}; expected {expected}")
    return [f"{case.name}: {one}" for one in wrong]


def main() -> int:
    """All programs, or those that were asked for. -> how many faults were found"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=CASES)
    parser.add_argument("--layers", type=int, help="of the shape, instead of its own 32; then kernels are not bounded")
    parser.add_argument("--only", default="", help="programs with this in their names")
    parser.add_argument("--texts", type=Path, help="a folder for what was compiled")
    parser.add_argument("--plain", action="store_true", help="without the kernels that are written for GPUs")
    asked = parser.parse_args()
    jax.devices()  # loads the plugins
    # what is traced is asked which device it is for, and no such device is there
    jax.default_backend = lambda: asked.kind
    flash.wanted = lambda: asked.kind == "gpu" and not asked.plain
    values = read_json(ROOT / "configs" / "llama-3.1-8b.json")
    config, _ = nano.read_config(values | ({"num_hidden_layers": asked.layers} if asked.layers else {}))
    print("device program   rows  tp  kernels  needs GB  planned  in place temporary MB  seconds  devices say")
    wrong = []
    for case in CASES[asked.kind]:
        if asked.only in case.name:
            wrong += check(case, config, asked.texts)
    print("\n".join(wrong) or "nothing is wrong")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
