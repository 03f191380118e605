"""Sums over the nodes of a rule of quadrature."""


def total(terms, like, *values):
    """Sums weighted terms over the nodes of a rule.

    Args:
        terms: Function of one number of each of `values` to `(weight, terms)`, a number
            or tensor and a tuple of tensors; element by element: it may be given
            several numbers as a first axis more.
        like: A tensor of the rank of the terms.
        *values: Arrays `[nodes]`.

    Returns:
        Tuple of tensors, the sums of `weight * term`.
    """
    del like
    sums = None
    for numbers in zip(*values, strict=True):
        sums = added(sums, *terms(*numbers))
    return tuple(sums)


def added(sums, weight, terms):
    """Adds weighted terms to sums, or to nothing."""
    found = [weight * x for x in terms]
    if sums is None:
        return found
    return [a + b for a, b in zip(sums, found, strict=True)]
