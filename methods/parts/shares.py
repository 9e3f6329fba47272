"""Shares: buffers of which each rank holds a part: the ranks' rows in order are the whole."""

from collections.abc import Callable

from torch import Tensor, nn


class ShareHolder(nn.Module):
    """A module with shares. They stay in host memory, as they may be larger than a device's."""

    own_shares: tuple[str, ...] = ()

    def register_share(self, name: str, rows: Tensor) -> None:
        """Register a buffer (n, ...) that is this rank's part of a state."""
        self.register_buffer(name, rows)
        self.own_shares = (*self.own_shares, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ShareHolder":
        """Move or convert all but shares, which take over a type, and leave host memory only to lose their values."""
        held = {name: self.get_buffer(name) for name in self.own_shares}
        for name in held:
            self._buffers[name] = None
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(held)
        for name, rows in held.items():
            like = fn(rows[:0])
            setattr(self, name, fn(rows) if like.is_meta else rows.to(like.dtype))
        return self


def shares_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's shares, as its state has them."""
    return tuple(
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, ShareHolder)
        for name in part.own_shares
    )


def set_share(module: nn.Module, name: str, rows: Tensor) -> None:
    """Put another part in a share's place."""
    holder, _, own = name.rpartition(".")
    setattr(module.get_submodule(holder), own, rows)
