"""Kavier: simulate LLM serving — latency, throughput, cache, energy, carbon, cost."""

__version__ = "0.1.0"
