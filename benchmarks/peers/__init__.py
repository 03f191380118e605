"""The same networks, weights and inputs in this package and in others."""
