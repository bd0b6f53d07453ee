"""Many devices: a mesh, the part of every array that each of them holds, and programs that run on all of them."""
