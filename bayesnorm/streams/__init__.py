"""Inputs in batches, whatever they came in, and the progress through them."""
