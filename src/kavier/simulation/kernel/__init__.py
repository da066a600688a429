"""The compiled engine: the decisions of the reference engine, O(1) a step.

Read `scheduler.py` and `replica.py` first: functions have the names of what they mirror. What makes it fast:

* A decoding request is not touched when a step passes: see `batch`.
* A step in which nobody is admitted, finishes or is preempted only adds to counters: `coast` strings them
  together.
* Blocks are counted, not numbered: see `blocks`.
* Everything is a record or an array of records (`records`), at addresses that records hold; Python owns the
  memory. When an array is full the engine stops before the step that needs room, and goes on when called
  again.
"""
