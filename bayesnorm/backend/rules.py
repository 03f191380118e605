"""Sums over the nodes of a rule of quadrature."""


def total(terms, like, *values):
    """Sums terms over the nodes of a rule.

    Args:
        terms: Function of one number of each of `values` to a tuple of tensors, element
            by element: it may be given several numbers as a first axis more.
        like: A tensor of the rank of the terms.
        *values: Arrays `[nodes]`.

    Returns:
        Tuple of tensors.
    """
    del like
    sums = None
    for numbers in zip(*values, strict=True):
        found = terms(*numbers)
        sums = found if sums is None else added(sums, found)
    return tuple(sums)


def added(sums, terms):
    """Adds lists of tensors, one by one."""
    return [a + b for a, b in zip(sums, terms, strict=True)]
