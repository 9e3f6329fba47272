"""MONAI is imported without the packages that only its other parts use; whoever else asks for them has them."""

import subprocess
import sys

import pytest

from methods.lean_monai import LEFT_OUT

OURS = "from monai.networks.nets.basic_unet import BasicUNet; from monai.losses.dice import DiceLoss"


def printed(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


@pytest.mark.slow
def test_what_is_left_out_is_not_imported_with_monai_and_can_be_imported_afterwards():
    found = printed(
        f"import sys, methods; {OURS}; print(sorted(set({sorted(LEFT_OUT)}) & set(sys.modules)));"
        "import sklearn.metrics, scipy.signal; print(scipy.signal.hilbert([1.0, 0.0]).shape)"
    )
    assert found.splitlines() == ["[]", "(2,)"]


@pytest.mark.slow
def test_a_package_that_was_there_before_stays_and_another_thread_gets_what_it_asks_for():
    found = printed(
        "import sys, threading, methods, optuna\n"
        "sought = []\n"
        "class Asker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'monai.networks' and not sought:\n"
        "            sought.append(None)\n"
        "            def ask():\n"
        "                import sklearn\n"
        "                sought.append(sklearn.__name__)\n"
        "            thread = threading.Thread(target=ask)\n"
        "            thread.start()\n"
        "            thread.join()\n"
        "sys.meta_path.insert(0, Asker())\n"
        f"{OURS}\n"
        "print(sought, 'optuna' in sys.modules, 'mlflow' in sys.modules)"
    )
    assert found == "[None, 'sklearn'] True False"
