"""Usage: how busy the machine of a rank is, under the names by which MLflow draws system metrics."""

import time
from importlib.util import find_spec

import psutil
import torch

EVERY_S = 10.0
MEGABYTE = 1e6


class Usage:
    """Measures the processors, the memory and the GPU of this machine at most every ten seconds."""

    def __init__(self, device: torch.device, every_s: float = EVERY_S) -> None:
        self._device = device
        self._every_s = every_s
        self._measured = float("-inf")
        psutil.cpu_percent()  # counts from here on

    def sample(self) -> dict[str, float]:
        """Return the measurements, shares in percent and sizes in MB; nothing if the last ones are new enough."""
        now = time.monotonic()
        if now - self._measured < self._every_s:
            return {}
        self._measured = now
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
        }
        if self._device.type == "cuda":
            found |= self._of_gpu()
        return {f"system/{name}": value for name, value in found.items()}

    def _of_gpu(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info(self._device)
        found = {
            "gpu_0_memory_usage_megabytes": (total - free) / MEGABYTE,
            "gpu_0_memory_usage_percentage": 100 * (total - free) / total,
        }
        if find_spec("pynvml") is not None:  # without it, torch cannot ask how busy the GPU is
            found["gpu_0_utilization_percentage"] = float(torch.cuda.utilization(self._device))
        return found
