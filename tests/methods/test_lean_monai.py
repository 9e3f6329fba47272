"""MONAI is imported without the packages that only its other parts use; whoever else asks for them has them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from methods import lean_monai
from methods.lean_monai import LEFT_OUT, LeanFinder

OURS = "from monai.networks.nets.basic_unet import BasicUNet; from monai.losses.dice import DiceLoss"


@pytest.mark.slow
def test_what_is_left_out_is_not_imported_with_monai_and_can_be_imported_before_or_afterwards():
    code = (
        f"import sys, methods, optuna; {OURS}; print(sorted(set({sorted(LEFT_OUT)}) & set(sys.modules)));"
        "import sklearn.metrics, scipy.signal; print(scipy.signal.hilbert([1.0, 0.0]).shape)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert printed.stdout.splitlines() == ["['optuna']", "(2,)"]


@pytest.mark.slow
def test_scans_are_turned_in_a_process_whose_networks_have_imported_monai():
    code = f"""
import methods
{OURS}
import numpy as np
from data.recipes.apply import apply
from data.recipes.recipe import Recipe
from data.scan import Scan
scan = Scan(np.arange(120, dtype=np.float32).reshape(1, 4, 5, 6), (1.0,) * 3, "MR", np.eye(4))
print(apply(Recipe(name="plain", kind="volume", window=(0, 120), window_kind="value"), scan)[0].voxels.shape)
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert printed.stdout == "(1, 6, 5, 4)\n"


def test_only_the_thread_that_imports_monai_does_without(monkeypatch: pytest.MonkeyPatch):
    finder = LeanFinder()
    monkeypatch.setattr(lean_monai, "_is_being_imported", lambda name: True)
    assert finder.find_spec("mlflow", None) is None, "nobody imports MONAI"
    assert finder.find_spec("monai", None) is None
    with pytest.raises(ModuleNotFoundError, match="mlflow is left out while MONAI is imported"):
        finder.find_spec("mlflow", None)
    assert finder.find_spec("torch", None) is None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(finder.find_spec, "mlflow", None).result() is None
    monkeypatch.setattr(lean_monai, "_is_being_imported", lambda name: False)
    assert finder.find_spec("mlflow", None) is None, "it has been imported"
