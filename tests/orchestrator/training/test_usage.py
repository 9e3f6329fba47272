import torch

from orchestrator.training.usage import Usage


def test_the_machine_is_measured_at_once_and_then_only_when_the_interval_has_passed() -> None:
    usage = Usage(torch.device("cpu"), every_s=3600)
    first = usage.sample()
    assert sorted(first) == [
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
    ]
    assert 0 < first["system/system_memory_usage_percentage"] <= 100
    assert usage.sample() == {}
    assert len(Usage(torch.device("cpu"), every_s=0).sample()) == 3
