"""What a test may need beyond Python, how to get it, what was skipped; and a small run to make archives of."""

import os
import shutil
import tempfile
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
    "gpu": (gpu_is_missing, "make test-gpu on a machine with a CUDA device"),
}


def pytest_configure(config: pytest.Config) -> None:
    """What a user's cache holds is neither read nor written; pytest's workers inherit the controller's.

    Where GPUs are not asked for, nothing sees them: several processes would want one, and CPUs repeat bit for bit.
    """
    if "gpu" not in REQUIRED:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not hasattr(config, "workerinput"):
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="hpcvision-tests-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


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


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Whole files, and all that look for processes of Ray in one, so that none finds those of another."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "sweep" if "/test_sweep" in file else file

    return ByFile(config, log)


@pytest.fixture
def config():
    """A classifier of a few hundred parameters on drawn digits."""
    from hpcvision.config import AddNISTCNNConfig, DataConfig, RunConfig

    return RunConfig(name="tiny", model=AddNISTCNNConfig(width=0.05), data=DataConfig(source="synthetic"))


@pytest.fixture
def make_record(config):
    """A function that gives the Record of a finished run of a classifier; keyword arguments replace its fields."""
    import numpy as np

    from hpcvision.models import build_model, source_of_model
    from hpcvision.results.record import Record, Rows, Samples

    def weights(seed):
        return {name: tensor.numpy() for name, tensor in build_model(config.model, seed=seed).state_dict().items()}

    def point(step):
        timing = {"learning_rate": 0.1 / step, "seconds": 0.5 * step, "images_per_second": 900.0 + step}
        return {"event": "train", "step": step, "loss": 3 / step, "accuracy": 1 - 1 / step, **timing}

    def evaluation(step, kind, split="validation"):
        better = 0.1 * (kind == "ema")
        scores = {"loss": 2.5 / step + 0.5 - better, "accuracy": 0.7 - 0.5 / step + better}
        return {"event": "evaluate", "step": step, "split": split, "weights": kind, **scores}

    def stay(number):
        place = {"job_id": f"job-{number}", "restart": number, "world_size": 2, "host": "node1", "commit": "c"}
        return place | {"from_step": 20 * number, "to_step": 20 * number + 20, "reason": "finished" if number else "x"}

    def make(**changes):
        random = np.random.default_rng(0)
        pictures = random.integers(0, 256, (11, 6, 6, 3), dtype=np.uint8)
        way = random.integers(0, 256, (2, 4, 6, 6, 3), dtype=np.uint8)
        settings = {"sampler": "ddim", "steps": 5, "guidance_scale": 1.0, "weights": "ema"}
        fields = {
            "config": config.model_dump(mode="json"),
            "source": source_of_model(config.model),
            "name": config.run_name,
            "fingerprint": config.fingerprint,
            "provenance": {"torch": "2", "packages": ["a==1"]},
            "caps": {"parameters": 100_000, "steps": 10_000},
            "parameters": 321,
            "steps": 40,
            "finished": True,
            "data": {"name": "synthetic digits", "source": "synthetic", "test_sha256": "0" * 64},
            "train": [point(step) for step in range(1, 41)],
            "evaluate": [evaluation(step, kind) for step in (20, 40) for kind in ("raw", "ema")]
            + [evaluation(40, "raw", "test")],
            "ledger": [stay(0), stay(1)],
            "test_reads": 1,
            "weights": {"raw": weights(0), "ema": weights(1)},
            "scores": {
                "loss": 1.5,
                "accuracy": 0.75,
                "accuracy_low": 0.7,
                "accuracy_high": 0.8,
                "accuracy_batch_deviation": 0.02,
            },
            "confusion": random.integers(0, 9, (20, 20)),
            "class_names": [f"sum {number}" for number in range(20)],
            "samples": {"random": Samples(pictures, np.arange(11), np.arange(100, 111), settings)},
            "interpolations": {"slerp": Rows(way, np.array([[0, 1], [2, 3]]), settings | {"method": "slerp"})},
        }
        return Record(**fields | changes)

    return make


@pytest.fixture(scope="session")
def make_sweep():
    """A function that writes a sweep.h5 of (overrides, objective) pairs; keyword arguments replace a column's values.

    Without archives the trials are stopped ones that have left no run.
    """
    from hpcvision.results.sweeps import Trial, write_sweep

    def make(path, pairs, *, archives=None, facts=None, **columns):
        rows = [
            {
                "label": f"trial {number}",
                "fingerprint": f"{number:012x}",
                "status": "finished" if archives else "stopped",
                "parameters": 958_417 + number,
                "steps": 1000,
                "seed": 0,
                "role": "trial",
                "objective": objective,
                "reason": "",
                "overrides": overrides,
                "archive": archives[number] if archives else path.with_name("missing.h5"),
            }
            | {name: values[number] for name, values in columns.items()}
            for number, (overrides, objective) in enumerate(pairs)
        ]
        write_sweep(
            path,
            name="some",
            base={},
            fingerprint="0" * 12,
            caps={"parameters": 1_000_000, "steps": 50_000},
            provenance={},
            objective="accuracy",
            larger_is_better=True,
            trials=[Trial(**row) for row in rows],
            rungs=[],
            expected_best=[],
            facts=facts or {},
        )
        return path

    return make
