"""A model as files that need none of this library: two programs of jax.export, weights, and a script that runs them.

programs.py    what the two compute, as functions of arrays by name
folder.py      the folder that export writes
generate.py    the script that goes into it as it stands; it imports nothing from here
"""

from nanollm_jax.export.folder import export as export
