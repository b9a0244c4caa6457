"""Which units are removed: ranking, and shapes that something can load."""
