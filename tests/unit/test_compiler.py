"""torch's compiler stays out of runs that compile nothing, and is there for what needs it."""

import json
import subprocess
import sys

import pytest

from hpcvision.config import apply
from hpcvision.launch.job import prepare

# A run of two steps, its weights, and whether the compiler was imported.
RUN = """
import hashlib, json, sys
import h5py
from hpcvision.launch.job import TrainJob
from hpcvision.rundir import RunDir
from pathlib import Path
TrainJob(sys.argv[1])()
with h5py.File(RunDir(Path(sys.argv[1])).results) as file:
    weights = {name: hashlib.sha256(item[()].tobytes()).hexdigest() for name, item in file["weights/raw"].items()}
print(json.dumps([weights, "torch._dynamo.symbolic_convert" in sys.modules]))
"""
POSTPONE = "import torch\nfrom hpcvision.training.compiler import postpone_compiler\npostpone_compiler()\n"


def said_by(program, *words):
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.long)])
def test_a_run_trains_the_same_weights_without_the_compiler_and_does_not_import_it(config, tmp_path, optimizer):
    short = {"train.steps": 2, "train.global_batch_size": 8, "optim.warmup_steps": 0, "optim.gradient_clip": 1.0}
    found = []
    for name, before in (("without", ""), ("with", "import torch._dynamo\n")):
        rundir = prepare(apply(config, {**short, "optim.optimizer": optimizer}), tmp_path / name)
        found.append(json.loads(said_by(before + RUN, str(rundir.folder))))
    (weights, was_imported), (same_weights, is_imported) = found
    assert weights == same_weights
    assert len(weights) > 5
    assert (was_imported, is_imported) == (False, True)


@pytest.mark.parametrize(
    "program",
    [
        "from torch._dynamo import config",
        "import torch._dynamo.config\nconfig = torch._dynamo.config",
        "from torch._dynamo.config import optimize_ddp\nconfig = torch._dynamo.config",
        "config = torch._dynamo.config",
        "torch._dynamo.utils.counters\nconfig = torch._dynamo.config",
        "torch._dynamo.disable(recursive=False)(len)\nconfig = torch._dynamo.config",
        "torch.compile(lambda x: x, backend='eager')(1)\nconfig = torch._dynamo.config",
    ],
)
def test_what_needs_the_compiler_gets_it_and_every_module_of_it_once(program):
    proof = """
import sys
assert "torch._dynamo.symbolic_convert" in sys.modules
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.utils.config is config is sys.modules["torch._dynamo.config"]
assert config.__spec__.origin.endswith("config.py")
print(type(config.optimize_ddp))
"""
    assert said_by(POSTPONE + program + proof) == "<class 'bool'>"
