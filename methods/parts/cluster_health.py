"""Cluster health: whether codes say something, and how samples are spread over clusters; over all ranks.

Shapes:    b samples of this rank, n rows of its part of all samples, k prototypes or clusters.
"""

from math import log

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from methods.parts.ranks import share_over_ranks, total_over_ranks


def least_entropy(num_prototypes: int, num_embeddings: int) -> float:
    """Return the lowest possible mean entropy of codes: fewer embeddings than prototypes must share all of them."""
    return max(0.0, log(num_prototypes / num_embeddings))


def doubt(num_prototypes: int, batch_size: int, queue_length: int, crops: int, place: str) -> str:
    """Say, with numbers, that embeddings that are coded together cannot fill the prototypes; empty if they can."""
    embeddings = crops * (batch_size + queue_length)
    if embeddings >= num_prototypes:
        return ""
    queued = f", and {queue_length} of the queue" if queue_length else ""
    least, most = least_entropy(num_prototypes, embeddings), log(num_prototypes)
    return (
        f"{place}.num_prototypes {num_prototypes}: {embeddings} embeddings are coded together ({batch_size} samples"
        f"{queued}, {crops} of each), so that a code is spread over {num_prototypes / embeddings:.0f} prototypes or "
        f"more: the mean entropy of the codes is at least {least:.2f} of {most:.2f} nats, and close to {most:.2f} at "
        f"first; set {place}.num_prototypes to {embeddings} or fewer, raise budget.batch_size, or set "
        f"{place}.queue_length to {-(-num_prototypes // crops) - batch_size} or more"
    )


def code_parts(codes: Float[Tensor, "a b k"], num_embeddings: int) -> dict[str, Tensor]:
    """Return the mean entropy of codes in nats beside its possible range, and how many prototypes are in use.

    ``num_embeddings`` were coded together, over all ranks. ``shared_cluster`` is the share of samples whose first two
    crops have their strongest prototype in common.
    """
    num_prototypes = codes.shape[-1]
    clusters = codes.argmax(-1)
    return {
        "code_entropy": code_entropy(codes),
        "code_entropy_least": codes.new_tensor(least_entropy(num_prototypes, num_embeddings)),
        "code_entropy_most": codes.new_tensor(log(num_prototypes)),
        "prototypes_in_use": (sizes(clusters.flatten(), num_prototypes) > 0).to(codes).sum(),
        **agreement_part(clusters),
    }


def code_entropy(codes: Float[Tensor, "a b k"]) -> Float[Tensor, ""]:
    """Return the mean entropy of codes in nats."""
    return -torch.xlogy(codes, codes).sum(-1).mean()


def agreement_part(clusters: Int64[Tensor, "a b"]) -> dict[str, Tensor]:
    """Return ``shared_cluster``, the share of samples whose first two crops are in the same cluster."""
    return {"shared_cluster": (clusters[0] == clusters[1]).to(torch.float64).mean()}


def changed_part(before: Int64[Tensor, " b"], now: Int64[Tensor, " b"]) -> dict[str, Tensor]:
    """Return the share of samples in another cluster than before; nothing where none was in one (below 0)."""
    known = before >= 0
    return share_over_ranks("assignments_changed", (known & (before != now)).sum(), known.sum())


def sizes(clusters: Int64[Tensor, " n"], num_clusters: int) -> Float[Tensor, " k"]:
    """Return how many samples of all ranks each cluster holds; those below 0 are in none."""
    counts = torch.zeros(num_clusters, dtype=torch.float64, device=clusters.device)
    return total_over_ranks(counts.index_add_(0, clusters.clamp(min=0), (clusters >= 0).double()))


def size_entropy(counts: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """Return the entropy of a random sample's cluster in nats: log k where all clusters are equally large."""
    shares = counts / counts.sum()
    return -torch.xlogy(shares, shares).sum()


def renamed_share(before: Int64[Tensor, " n"], now: Int64[Tensor, " n"], num_clusters: int) -> Float[Tensor, ""]:
    """Return the share of samples that left their cluster, where clusters carry no names from one time to the next.

    Each new cluster takes the name of the old cluster that most of its samples come from. 1 where nothing is known.
    """
    known = (before >= 0) & (now >= 0)
    pairs = torch.where(known, now * num_clusters + before, -1)
    overlaps = sizes(pairs, num_clusters**2)
    stayed = overlaps.view(num_clusters, num_clusters).amax(1).sum()
    return 1 - stayed / overlaps.sum().clamp(min=1)
