"""Lean MONAI: the packages that only other parts of MONAI use are left out while it is imported.

Whatever is taken from it, MONAI imports all of itself, and with it whatever it finds of the packages that it can do
without: MLflow for its handlers, scikit-learn for a metric, matplotlib for its figures. With them its import takes
more than twice as long, in every process of a run. Nothing here needs those parts, and each of these packages is
imported as ever by whoever asks for it before, afterwards, or in another thread. nibabel is not among them: recipes
turn volumes by MONAI, which turns them by nibabel.
"""

import sys
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType

LEFT_OUT = frozenset({"matplotlib", "mlflow", "optuna", "pandas", "scipy.signal", "sklearn"})


class LeanFinder(MetaPathFinder):
    """Finds nothing: it raises for the packages that MONAI asks for while it is imported, and leaves out others."""

    def __init__(self) -> None:
        self._importer: int | None = None

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for a package that is left out; leave all others to the next finder."""
        if fullname == "monai":
            self._importer = get_ident()
        elif fullname in LEFT_OUT and self._importer == get_ident() and _is_being_imported("monai"):
            raise ModuleNotFoundError(f"{fullname} is left out while MONAI is imported", name=fullname)
        return None


def install() -> None:
    """Leave the packages out from now on; a second call changes nothing."""
    if not any(isinstance(finder, LeanFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LeanFinder())


def _is_being_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))
