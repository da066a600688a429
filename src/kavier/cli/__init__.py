"""The command line: parse, call, print. Heavy modules are imported inside commands, so --help is quick."""

import atexit
import gc

# Imports make many objects that stay: to look for garbage among them takes a tenth of the start, and again
# of the end.
gc.set_threshold(100_000)
atexit.register(gc.freeze)
