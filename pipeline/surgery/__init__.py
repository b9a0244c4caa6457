"""Cutting units out of weight matrices by a plan: masks, compensation, and a streaming writer."""
