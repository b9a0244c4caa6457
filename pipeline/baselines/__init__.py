"""The other ways to unlearn, which train a model away from forget text; for comparison only."""
