"""What a test may need beyond Python, how to get it, and the closing list of what was skipped."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

REQUIRED = {name for name in os.environ.get("HPCVISION_REQUIRE", "").split(",") if name}


def slurm_is_missing() -> bool:
    folder = Path(os.environ.get("HPCVISION_TESTCLUSTER", "/var/lib/hpcvision-testcluster"))
    return os.geteuid() != 0 or not (folder / "slurm.conf").exists()


def browser_is_missing() -> bool:
    return shutil.which("chromium") is None


def gpu_is_missing() -> bool:
    import torch

    return not torch.cuda.is_available()


NEEDS = {
    "slurm": (slurm_is_missing, "run as root after make slurm-up"),
    "browser": (browser_is_missing, "apt-get install chromium chromium-driver"),
    "gpu": (gpu_is_missing, "a machine with a CUDA device"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (is_missing, remedy) in NEEDS.items():
        if item.get_closest_marker(name) and is_missing():
            if name in REQUIRED:
                pytest.fail(f"HPCVISION_REQUIRE names {name}, but it is not here: {remedy}", pytrace=False)
            pytest.skip(f"needs {name}: {remedy}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("what was skipped, and how to get it")
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{count} test(s): {reason.removeprefix('Skipped: ')}")
