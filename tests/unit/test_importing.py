"""Imports without Python's garbage collector, which is as it was afterwards."""

import gc
import subprocess
import sys

import pytest

from hpcvision.importing import collector_off


@pytest.fixture(params=[True, False], ids=["on", "off"])
def was_on(request):
    before = gc.isenabled()
    gc.enable() if request.param else gc.disable()
    yield request.param
    gc.enable() if before else gc.disable()


def test_the_collector_is_off_inside_and_as_it_was_afterwards(was_on):
    with collector_off():
        assert not gc.isenabled()
    assert gc.isenabled() == was_on


def test_an_import_that_fails_leaves_it_as_it_was(was_on):
    with pytest.raises(ModuleNotFoundError), collector_off():
        import hpcvision.nothing_of_that_name  # noqa: F401
    assert gc.isenabled() == was_on


def test_a_command_runs_with_the_collector_on():
    code = (
        "import gc, sys, hpcvision.cli; sys.argv = ['hpcvision']; from hpcvision import __main__\n"
        "hpcvision.cli.main = lambda: print('collector', gc.isenabled()); __main__.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("collector True\n", "")


@pytest.mark.parametrize(
    "imports",
    [
        # Of a batch job's task; what it needs later on, it imports after its first step.
        "import hpcvision.launch.job, hpcvision.distributed, hpcvision.training.loop",
        # Of `hpcvision submit`, before it counts the parameters of a model that it does not know.
        "import hpcvision.cli, hpcvision.launch.start, hpcvision.launch.cluster, hpcvision.launch.slurm",
    ],
    ids=["task", "submit"],
)
def test_nothing_is_imported_before_a_first_step_that_is_only_used_after_it(imports):
    late = {"h5py", "rich", "tensorboard", "matplotlib", "pandas", "ray"} | (
        {"torch"} if "cli" in imports else {"typer"}
    )
    code = f"import sys; {imports}; print(*sorted({late!r} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("\n", "")


@pytest.mark.parametrize("job", ["cifar100_ddpm_convnext", "cifar100_ddpm_residual", "cifar100_edm"])
def test_counting_the_parameters_of_a_generator_loads_no_compiler(job):
    code = (
        "import sys; from hpcvision.config.catalogue import load_job; from hpcvision.models.counting import check_cap\n"
        f"print(check_cap(load_job({job!r})) < 1_000_000, 'torch._dynamo' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("True False\n", "")
