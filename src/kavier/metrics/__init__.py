"""What it means: pure functions from the engines' tables to latency, energy, carbon and cost."""
