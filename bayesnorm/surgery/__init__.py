"""Networks rewritten: converted, projected, initialized from data."""
