"""The command line: parse, call, print. Heavy modules are imported inside commands, so --help is quick."""

import atexit
import gc
import os

# Imports make many objects that stay: to look for garbage among them takes a tenth of the start, and again
# of the end.
gc.set_threshold(100_000)
atexit.register(gc.freeze)

# NumPy would start a thread a processor for linear algebra, of which there is none here: 0.1 s of CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
