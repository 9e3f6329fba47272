"""Sharing: how many workers share a batch evenly, and how each passes its share in micro-batches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shares:
    """A batch and the most workers for it: the largest number of workers that divides the batch shares it.

    micro_batch_size   samples of a worker's share that pass through the network at once; None: all of them
    """

    batch_size: int
    most_workers: int
    micro_batch_size: int | None = None

    @property
    def workers(self) -> int:
        """Return how many workers train."""
        return next(n for n in range(min(self.batch_size, self.most_workers), 0, -1) if self.batch_size % n == 0)

    @property
    def samples(self) -> int:
        """Return how many samples of a batch each worker has."""
        return self.batch_size // self.workers

    @property
    def num_chunks(self) -> int:
        """Return into how many chunks of nearly equal size, at most a micro-batch, a worker divides its share."""
        return -(-self.samples // (self.micro_batch_size or self.samples))

    @property
    def workers_without_chunks(self) -> int:
        """Return how many workers would have no more than a micro-batch each."""
        numbers = (n for n in range(self.workers, self.batch_size + 1) if self.batch_size % n == 0)
        return next(n for n in numbers if self.batch_size // n <= (self.micro_batch_size or self.samples))

    def remark(self, name: str) -> str | None:
        """Say which batches would use all workers, if this one does not; ``name`` is the batch's field."""
        if self.workers == self.most_workers:
            return None
        workers = "1 worker trains" if self.workers == 1 else f"{self.workers} workers train"
        below = self.batch_size // self.most_workers * self.most_workers
        better = " or ".join(str(size) for size in (below, below + self.most_workers) if size)
        return (
            f"{name} {self.batch_size} cannot be shared out evenly over resources.workers {self.most_workers}: "
            f"{workers}; a batch of {better} would use all {self.most_workers}"
        )
