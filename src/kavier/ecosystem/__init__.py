"""What exists: GPUs, models, engine settings, grid and prices, from a catalog with sources."""
