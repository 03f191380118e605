"""Closed forms and quadratures on tensors, each as a pure function.

Every function takes and returns tensors of the active Keras backend, works in
float32 and float64, and has finite gradients, also where a variance is zero.
"""
