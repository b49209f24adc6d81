"""What a test may need beyond Python, how to get it, and the list of what was skipped for want of it."""

import os
import shutil

import pytest

REQUIRED = {name for name in os.environ.get("HPCVISION_REQUIRE", "").split(",") if name}


def slurm_is_missing() -> bool:
    return os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "srun", "sbatch")))


def browser_is_missing() -> bool:
    return shutil.which("chromium") is None


def gpu_is_missing() -> bool:
    import torch

    return not torch.cuda.is_available()


NEEDS = {
    "slurm": (slurm_is_missing, "run as root after: apt-get install slurmctld slurmd slurm-client munge"),
    "browser": (browser_is_missing, "apt-get install chromium chromium-driver"),
    "gpu": (gpu_is_missing, "a machine with a CUDA device"),
}
skipped: dict[str, int] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (is_missing, remedy) in NEEDS.items():
        if item.get_closest_marker(name) and is_missing():
            if name in REQUIRED:
                pytest.fail(f"HPCVISION_REQUIRE names {name}, but it is not here: {remedy}", pytrace=False)
            skipped[name] = skipped.get(name, 0) + 1
            pytest.skip(f"needs {name}: {remedy}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if skipped:
        terminalreporter.section("skipped for want of something, and how to get it")
        for name, count in sorted(skipped.items()):
            terminalreporter.write_line(f"{name}: {count} test(s); {NEEDS[name][1]}")
