"""Correlations of many variables as a factor of low rank, kept up row by row.

The correlation matrix of rows `x` is `R = B^T B`, where B has a row for each of them. A
factor F `[rank, variables]` stands for B: `R ~ F^T F` off the diagonal, which is 1.
"""

from keras import ops


def deviation(count, mean, variance, x):
    """Returns what a further row does to the correlations of those before it.

    With d = x - mean the sum of squared deviations grows by `d^2 count / (count + 1)`,
    and products of two variables likewise: none is of numbers far from 0.

    Args:
        count: Number of the rows before it.
        mean: Tensor, their mean.
        variance: Tensor like it, their (biased) variance.
        x: Tensor like it, the row.

    Returns:
        `(keep, row)`, tensors like `x`: the factor of the rows before it is to be
        multiplied by `keep`, and to have `row` appended. Then again its columns have
        length 1, and those of variables that never varied, or overflow, length 0.
    """
    count = ops.cast(count, x.dtype)
    deviation = (x - mean) * ops.sqrt(count / (count + 1.0))
    before = count * variance
    total = before + ops.square(deviation)
    varies = ops.logical_and(total > 0.0, total < float("inf"))
    total = ops.where(varies, total, 1.0)
    keep = ops.sqrt(ops.where(varies, before, 0.0) / total)
    return keep, ops.where(varies, deviation, 0.0) / ops.sqrt(total)


def compressed(rows, rank):
    """Returns the factor of a rank whose products are nearest to those of more rows.

    Args:
        rows: Tensor `[rank or more, variables]`.
        rank: Integer.

    Returns:
        Tensor `[rank, variables]`, which minimizes the Frobenius norm of
        `rows^T rows - factor^T factor`, the largest direction first.

    Reference:
        Brand, 2006, "Fast low-rank modifications of the thin singular value
        decomposition": applied row by row it is his update. Here it is of the small
        matrix `rows rows^T`: what rounding does to its eigenvectors leaves the length
        of columns alone.
    """
    _, directions = ops.linalg.eigh(ops.matmul(rows, ops.transpose(rows)))
    largest = ops.flip(directions, axis=1)[:, :rank]
    return ops.matmul(ops.transpose(largest), rows)


def own_stddev(factor):
    """Returns the standard deviation that a factor leaves to each variable alone.

    Args:
        factor: Tensor `[rank, ...]`, of variables of variance 1.
    """
    # Rounding may take a column's length above 1.
    return ops.sqrt(ops.maximum(1.0 - ops.sum(ops.square(factor), axis=0), 0.0))
