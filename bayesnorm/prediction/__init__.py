"""Predictions of the networks of a posterior, and how far they agree."""
