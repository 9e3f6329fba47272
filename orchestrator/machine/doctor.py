"""Doctor: does this machine have everything that a run needs? Each failed check names its remedy."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import ray
import torch

from orchestrator.cluster import connection
from orchestrator.tracking.hindrance import FAULTS, hindrance_of
from orchestrator.tracking.opening import existing
from orchestrator.tracking.outbox import waiting
from orchestrator.tracking.store import default_uri, hide_password

PACKAGES = ("torch", "ray", "mlflow", "optuna", "monai", "nibabel", "pydicom", "pyarrow", "einops")
LEAST_MEMORY_GIB = 8
LEAST_DISK_GIB = 5


@dataclass(frozen=True)
class Finding:
    """One check: its subject, its finding, and the remedy if something is wrong."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def well(self) -> bool:
        return not self.remedy


def examine(home: Path) -> list[Finding]:
    """Run every check, the slow ones (Ray, MLflow) last."""
    checks: list[Callable[[], Finding]] = [
        _python, _packages, _device, _memory, lambda: _disk(home), _ray, lambda: _mlflow(home), lambda: _outbox(home),
    ]  # fmt: skip
    return [check() for check in checks]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding("Python", found, "" if fits else "use Python 3.11 or 3.12")


def _packages() -> Finding:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return Finding("Packages", ", ".join(found), f"install {', '.join(missing)}: make setup" if missing else "")


def _device() -> Finding:
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        cudnn = torch.backends.cudnn.version()
        return Finding("GPU", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, cuDNN {cudnn}")
    if shutil.which("nvidia-smi"):
        remedy = "install torch's CUDA build, see docs/how_to/install.md"
        return Finding("GPU", "there is a driver, but torch has no CUDA", remedy)
    return Finding("GPU", f"none; {torch.get_num_threads()} CPU threads are used (resources.gpu=false)")


def _memory() -> Finding:
    gib = psutil.virtual_memory().available / 2**30
    remedy = "" if gib >= LEAST_MEMORY_GIB else f"a run with Ray needs about {LEAST_MEMORY_GIB} GiB; close programs"
    return Finding("Memory", f"{gib:.1f} GiB free", remedy)


def _disk(home: Path) -> Finding:
    existing = next(path for path in (home.absolute(), *home.absolute().parents) if path.exists())
    gib = shutil.disk_usage(existing).free / 2**30
    remedy = "" if gib >= LEAST_DISK_GIB else "checkpoints and shards need more; choose another home"
    return Finding("Disk", f"{gib:.0f} GiB free for {home}", remedy)


def _ray() -> Finding:
    try:
        with connection.connected():
            have = ray.cluster_resources()
            found = f"started, {have.get('CPU', 0):g} logical CPUs, {have.get('GPU', 0):g} GPUs"
            return Finding("Ray", found)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        return Finding("Ray", f"{type(error).__name__}: {error}", "check RAY_ADDRESS, and that ports are free")


def _mlflow(home: Path) -> Finding:
    uri = default_uri(home)
    try:
        client = existing(uri)
        if client is None:
            return Finding("MLflow", f"no store in {home} yet; the first run makes it")
        count = len(client.search_experiments())
    except FAULTS as error:
        found = f"{hide_password(uri)}: {hindrance_of(error, uri).words}"
        return Finding("MLflow", found, "fix that, or unset MLFLOW_TRACKING_URI to use the store of the home")
    return Finding("MLflow", f"{hide_password(uri)}, {count} experiments")


def _outbox(home: Path) -> Finding:
    count = len(waiting(home))
    remedy = "" if count == 0 else "`raydiology ui` and every run send them as soon as MLflow answers"
    return Finding("Unsent metrics", f"{count} runs", remedy)
