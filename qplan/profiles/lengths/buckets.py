"""Summarise a joint length distribution as a few dozen weighted buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Narrow bins around the quantiles that plans are made for (p50, p90, p99), wide ones between: the bucketed
# quantile cannot leave the bin of the true one.
INPUT_EDGES = (0.0, 0.43, 0.57, 0.87, 0.93, 0.975, 1.0)
OUTPUT_EDGES = (0.0, 0.43, 0.57, 0.75, 0.88, 0.92, 0.983, 0.997, 1.0)


def bucket(
    lengths: NDArray[np.int64],
    input_edges: tuple[float, ...] = INPUT_EDGES,
    output_edges: tuple[float, ...] = OUTPUT_EDGES,
) -> NDArray[np.float64]:
    """Group requests by the quantiles of their input and of their output length.

    Each cell of the grid becomes one bucket at the mean of its requests. So the means of both lengths are
    kept exactly, each marginal quantile stays inside its bin, and the correlation of the two survives.

    Parameters
    ----------
    lengths
        Input and output tokens of each request, shape (requests, 2).
    input_edges, output_edges
        Quantiles that bound the bins, from 0 to 1.

    Returns
    -------
    numpy.ndarray
        Rows of mean input tokens, mean output tokens and number of requests, shape (buckets, 3) with at most
        ``(len(input_edges) - 1) * (len(output_edges) - 1)`` rows; empty cells are left out.

    Raises
    ------
    ValueError
        When there is no request or `lengths` is not of shape (requests, 2).
    """
    lengths = np.asarray(lengths)
    member = bucket_of(lengths, input_edges, output_edges)
    counts = np.bincount(member)
    sums = np.zeros((len(counts), 2))
    np.add.at(sums, member, lengths)
    return np.column_stack([sums / counts[:, None], counts])


def bucket_of(
    lengths: NDArray[np.int64],
    input_edges: tuple[float, ...] = INPUT_EDGES,
    output_edges: tuple[float, ...] = OUTPUT_EDGES,
) -> NDArray[np.int64]:
    """Return the row of :func:`bucket` that each request is in, shape (requests,); arguments and errors are its own."""
    if lengths.ndim != 2 or lengths.shape[1] != 2 or not len(lengths):
        raise ValueError(f"lengths has shape {lengths.shape}; expected (requests, 2) with at least one request")
    cell = _bin(lengths[:, 0], input_edges) * len(output_edges) + _bin(lengths[:, 1], output_edges)
    return np.asarray(np.unique(cell, return_inverse=True)[1], np.int64)


def _bin(values: NDArray[np.int64], edges: tuple[float, ...]) -> NDArray[np.int64]:
    """Return the quantile bin of each value; equal values share a bin."""
    cuts = np.quantile(values, edges[1:-1], method="inverted_cdf")
    return np.searchsorted(cuts, values, side="left").astype(np.int64)
