"""Activation statistics of units, and importance from them."""
