"""Spherical k-means over embeddings that the ranks hold in parts, in host memory.

Paper:     Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
           appendix A (DeepCluster-v2).
Reference: facebookresearch/swav @ 04b8f43, ``cluster_memory``. As there, the first centroids are random rows of the
           bank, and a cluster that is left empty keeps its centroid, which may be the nearest to a row again. There,
           they are rows of the first rank; here, of all ranks, so that k ranks equal one.
Shapes:    N rows of all ranks, n of this one, k clusters, d dimensions.

Rows pass through the device in chunks. Sums are in float64: the number of ranks then moves no digit of float32.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from methods.parts.ranks import total_over_ranks

UNASSIGNED = -100  # a row that has no embedding yet
CHUNK = 2**14  # rows whose scores lie on the device at once


@torch.no_grad()
def random_rows(
    points: Float[Tensor, "n d"], share: slice, num_rows: int, count: int, seed: int, device: torch.device
) -> Float[Tensor, "k d"]:
    """Return ``count`` random rows of all ranks that have an embedding; each once, unless there are fewer.

    ``points`` are the rows ``share`` of ``num_rows``; a row of zeros has no embedding.
    """
    known = torch.zeros(num_rows, dtype=torch.int32, device=device)
    known[share] = points.any(1).to(known)
    candidates = total_over_ranks(known).cpu().nonzero().flatten()
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    places = candidates[order[torch.arange(count) % len(order)]].to(points.device) - share.start
    own = (places >= 0) & (places < len(points))
    chosen = points.new_zeros(count, points.shape[1])
    chosen[own] = points[places[own]]
    return total_over_ranks(chosen.to(device))


@torch.no_grad()
def spherical_kmeans(
    points: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], iterations: int
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "k d"]]:
    """Return the cluster of each of this rank's rows, on the host, and the centroids, of length 1."""
    for _ in range(iterations):
        sums = torch.zeros_like(centroids, dtype=torch.float64)
        counts = sums.new_zeros(len(sums))
        for chunk in _chunks(points, centroids.device):
            nearest = (chunk @ centroids.T).argmax(1)
            sums.index_add_(0, nearest, chunk.double())
            counts.index_add_(0, nearest, chunk.any(1).double())
        sums, counts = total_over_ranks(sums), total_over_ranks(counts)
        moved = F.normalize(sums, dim=1).to(centroids)
        centroids = torch.where(counts[:, None] > 0, moved, F.normalize(centroids, dim=1))
    nearest = [(chunk @ centroids.T).argmax(1).to(points.device) for chunk in _chunks(points, centroids.device)]
    return torch.cat(nearest).masked_fill(~points.any(1), UNASSIGNED), centroids


def _chunks(points: Float[Tensor, "n d"], device: torch.device) -> Iterator[Float[Tensor, "c d"]]:
    for chunk in points.split(CHUNK):
        yield chunk.to(device)
