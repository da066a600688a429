"""Machine code: Numba compiles it once a machine, and every later run loads a file."""
