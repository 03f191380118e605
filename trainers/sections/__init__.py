"""Sections of single binaries, each a function of an `Evaluation`."""
