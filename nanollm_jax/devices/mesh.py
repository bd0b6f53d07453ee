"""A mesh of devices, two axes: rows are split along "dp", the model along "tp"; and which mesh a value is on."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from nanollm_jax.checks import check_count
from nanollm_jax.errors import ConfigError

AXES = ("dp", "tp")


def make_mesh(dp: int = 1, tp: int = 1) -> Mesh:
    """dp x tp devices: rows are split over dp, the model over tp.

    The first dp * tp devices that JAX has, of all processes. Raises ConfigError where there are fewer.
    """
    dp, tp = check_count("dp", dp), check_count("tp", tp)
    found = jax.devices()
    if dp * tp > len(found):
        hint = "; on CPU `nanollm --devices` or jax_num_cpu_devices makes more" if found[0].platform == "cpu" else ""
        raise ConfigError(
            f"a mesh of dp={dp} x tp={tp} needs {dp * tp} devices, found {len(found)}; "
            f"choose sizes whose product is at most {len(found)}{hint}."
        )
    used = found[: dp * tp]
    if idle := jax.process_count() - len({device.process_index for device in used}):
        raise ConfigError(
            f"a mesh of dp={dp} x tp={tp} has no device of {idle} of the {jax.process_count()} processes; "
            f"start fewer, or choose sizes whose product is {len(found)}, the devices that they have."
        )
    return jax.make_mesh((dp, tp), AXES, axis_types=(AxisType.Auto,) * 2, devices=used)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that parameters, a cache or a state are on, None without one. Traced arrays do not know theirs: a cache does."""
    leaves = jax.tree.leaves(tree)
    found = map(placed_on, leaves)
    if any(issubclass(kind, jax.core.Tracer | jax.ShapeDtypeStruct) for kind in set(map(type, leaves))):
        nodes = [leaf for leaf in jax.tree.leaves(tree, is_leaf=knows_mesh) if not isinstance(leaf, jax.core.Tracer)]
        found = (node.mesh if knows_mesh(node) else placed_on(node) for node in nodes)  # type: ignore[assignment]
    return next((mesh for mesh in found if mesh is not None), None)


def knows_mesh(tree: Any) -> bool:
    """Does this say itself which mesh it is made for?"""
    return hasattr(tree, "mesh") and not isinstance(tree, jax.Array)


def placed_on(array: Any) -> Mesh | None:
    """The mesh of ours that an array lies on."""
    sharding = getattr(array, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == AXES:
        return sharding.mesh  # type: ignore[return-value]  # of an array it is never abstract
    return None
