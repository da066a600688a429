"""The command line: parse, call, print. Heavy modules are imported inside commands, so --help is quick."""

import gc

# Imports make many objects that stay: to look for garbage among them takes a tenth of the start.
gc.set_threshold(100_000)
