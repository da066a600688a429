"""How long a step takes: what a step computes, and models that price it."""
