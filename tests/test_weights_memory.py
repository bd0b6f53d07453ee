"""The promise of load_params: at its peak the host holds the parameters, twice the largest tensor, and little else."""

import subprocess
import sys

import pytest

TENSORS, ROWS, COLUMNS, SLACK = 8, 3000, 10_000, 100  # slack in MB, a third of what is promised

PROGRAM = """
import json, struct, sys
from pathlib import Path
import jax, numpy as np
from nanollm_jax import params as parameters
from nanollm_jax.dtypes import resolve_weights
from nanollm_jax.weights import Row, open_checkpoint
from nanollm_jax.weights.load import load_params

folder, stored, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
count, A, B = map(int, sys.argv[4:])
nbytes = A * B * {"F32": 4, "BF16": 2}[stored]
places = [[i * nbytes, (i + 1) * nbytes] for i in range(count)]
entries = {f"t{i}": {"dtype": stored, "shape": [A, B], "data_offsets": place} for i, place in enumerate(places)}
header = json.dumps(entries).encode()
with open(folder / "model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    file.truncate(8 + len(header) + count * nbytes)  # a hole: zeros that take memory when mapped, and no disk

# Half of them transposed, half as they are.
rows = [Row(f"p{i}", f"t{i}", "A B -> B A" if i % 2 else "A B -> A B") for i in range(count)]
layout = {row.path: row.axes.split(" -> ")[1] for row in rows}
jax.block_until_ready(jax.device_put(np.ones(3)))

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))

before = status("VmRSS")
kept = resolve_weights(dtype)
fill = {} if kept.bits > 8 else {path: parameters.filler(kept, 1) for path in layout}
params = load_params(open_checkpoint(folder), rows, layout, {"A": A, "B": B}, kept.activations, fill=fill)
print(status("VmHWM") - before, sum(p.nbytes for p in params.values()) / 2**20)
"""


def measured(folder, stored, dtype, columns):
    arguments = [str(folder), stored, dtype, str(TENSORS), str(ROWS), str(columns)]
    run = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return map(float, run.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("stored", "dtype"), [("BF16", "bfloat16"), ("F32", "float32"), ("BF16", "float32")])
def test_loading_holds_no_second_copy_of_the_model(tmp_path, stored, dtype):
    columns = COLUMNS if dtype == "bfloat16" else COLUMNS // 2
    peak, final = measured(tmp_path, stored, dtype, columns)
    largest = final / TENSORS
    assert final > 1.5 * (2 * largest + SLACK)  # so that a second copy could not hide in the allowance
    assert peak <= final + 2 * largest + SLACK, f"peak {peak:.0f} MB for {final:.0f} MB of parameters"


@pytest.mark.parity
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_rounded_to_few_bits_is_never_there_in_more(tmp_path):
    """Of each thread, a tensor's pages and the same in float32 would be six times what it is at the end."""
    peak, final = measured(tmp_path, "BF16", "int8", COLUMNS)
    assert 2 * 6 * final / TENSORS > 1.5 * (2 * SLACK)
    assert peak <= final + 2 * SLACK, f"peak {peak:.0f} MB for {final:.0f} MB of parameters"
