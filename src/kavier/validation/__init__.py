"""How far from reality: recorded and measured runs against simulated ones."""
