"""Hypothesis profiles: repeatable by default; `pytest --hypothesis-profile=explore` searches on."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("default", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile("explore", derandomize=False, deadline=None, max_examples=2000, database=None)
settings.load_profile("default")
