"""Selective pruning of language models: score, cut, prove, evaluate and judge."""

__version__ = "0.1.0"
