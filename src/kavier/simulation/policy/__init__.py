"""Policies in Python: a router, an admission order or a step-time model as one plain function.

    def route(request: RequestView, replicas: Sequence[ReplicaView]) -> int: ...  # index of the replica
    def order(request: RequestView) -> float: ...  # smallest is served first
    def step_time(work: StepWork) -> float: ...  # seconds

A policy is pure: what it answers follows from what it is given; nothing is remembered between calls. In the
reference engine it is called as it is. For the compiled engine Numba makes machine code of it, where it can
and where that gives the same answers.
"""
