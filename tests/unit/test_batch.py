"""The batch scripts of all shipped profiles against golden files, and what may not reach a shell."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.errors import TrainingStopped, UserError
from hpcvision.launch import batch, cluster, slurm
from hpcvision.launch.job import check_affinity, check_progress, leave_word
from hpcvision.launch.profile import Profile, load_profile, profile_folder
from hpcvision.rundir import RunDir

GOLDEN = Path(__file__).parents[1] / "golden"
PROFILES = sorted(path.stem for path in profile_folder().glob("*.toml") if path.stem != "local")
PLACE = batch.Placement(nodes=1, tasks_per_node=1, gpus_per_node=0, minutes=60)


@pytest.fixture
def _srun_is_there(tmp_path, monkeypatch):
    """A fake srun, which nobody starts: a script is only written where there is one."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def golden(name, text):
    """Compare with a golden file; `python tests/unit/test_batch.py` writes them anew, to be read in the diff."""
    assert text == (GOLDEN / name).read_text(), f"if this is meant: .venv/bin/python {Path(__file__).name}"


def plain_script(name):
    profile = load_profile(name)
    words = ["-m", "hpcvision", "train", "addnist_cnn", "--runs", "/shared/runs"]
    more = {"log": "%x-%j.log", "python": "python", "exports": {"HPCVISION_DATA": "/shared/my data"}}
    return batch.script("addnist_cnn-0123456789ab", profile, cluster.placed(profile), words, **more)


def submitit_script(name):
    profile = load_profile(name).model_copy(update={"python": "python"})
    folder = Path("/shared/my runs/addnist_cnn-0123456789ab/submitted")
    return slurm.script_of(slurm.executor_for(folder.parent.name, folder, profile, cluster.placed(profile)), 1)


@pytest.mark.parametrize("name", PROFILES)
def test_the_script_of_a_profile_is_the_golden_one(name):
    golden(f"{name}.sh", plain_script(name))


@pytest.mark.usefixtures("_srun_is_there")
@pytest.mark.parametrize("name", PROFILES)
def test_the_script_of_a_profile_for_submitit_is_the_golden_one(name):
    golden(f"{name}.submitit.sh", submitit_script(name))


def test_a_job_that_cannot_queue_itself_again_does_not_try_and_is_told_so():
    profile = Profile(requeue=False)
    lines = batch.script("x", profile, PLACE, ["true"], log="x.log").splitlines()
    assert "#SBATCH --no-requeue" in lines
    assert "export HPCVISION_ONE_TRY=1" in lines
    assert lines[-2:] == ["", "exit $?"]
    assert not [line for line in lines if "scontrol" in line or "HPCVISION_AGAIN" in line]


@pytest.mark.parametrize(
    "path", [*sorted(GOLDEN.glob("*.sh")), profile_folder().parent / "train.sbatch"], ids=lambda p: p.name
)
def test_a_script_is_what_bash_can_read(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(
    "value", ["it's", "a b", "$(touch x)", "`touch x`", 'say "hi"', "two\nlines", "Grüße ✓", "a;b&c"]
)
def test_no_value_of_a_command_reaches_the_shell_unquoted(value):
    text = batch.script("x", Profile(), PLACE, ["echo", value], log="log")
    (line,) = [
        line for line in text.replace("two\nlines", "two<newline>lines").splitlines() if line.startswith("srun ")
    ]
    words = shlex.split(line.replace("two<newline>lines", "two\nlines"))
    assert words[-2:] == ["echo", value]
    assert "#SBATCH --job-name=x\n" in text


def test_temporary_files_of_a_job_go_to_the_nodes_own_folder(tmp_path):
    profile = Profile(node_folder=str(tmp_path) + "/${WHO}/it", python='"$PYTHON"')
    command = ["-c", "import tempfile; print(tempfile.gettempdir())"]
    text = batch.script("x", profile, PLACE, command, log="log")
    # A fake one, as bash itself is what is tried here.
    (tmp_path / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done; "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "WHO": "me",
        "SLURM_JOB_END_TIME": "1",
        "PYTHON": sys.executable,
    }
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/me/it", done.stderr


def test_a_script_that_is_written_away_from_the_cluster_names_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    place = cluster.placed(load_profile("generic"))
    config = load_job("addnist_cnn")
    cluster.print_script("addnist_cnn", ["seed=3"], config, Path("runs"), load_profile("generic"), place)
    assert " python -m hpcvision train addnist_cnn seed=3 --runs runs\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"the cap for task\.kind=classify is below 100,000"):
        cluster.print_script("x", [], apply(config, {"model.width": 3}), Path("runs"), Profile(), place)


@pytest.mark.parametrize("name", ["it's", "a b", "$(x)", "two\nlines", "Grüße"])
def test_a_name_becomes_one_that_slurm_can_hold(name):
    kept = batch.options(name, Profile(), PLACE)["job-name"]
    assert shlex.quote(kept) in (kept, f"'{kept}'")
    assert not set(kept) & set(" '\"$()\n")


@pytest.mark.parametrize("folder", ["/runs/50%", "/runs/it's", "/runs/two\nlines", '/runs/"x"', "/runs/back\\slash"])
def test_a_folder_that_slurm_cannot_name_is_refused(folder):
    with pytest.raises(UserError, match=r"Slurm cannot name logs in .* choose another --runs"):
        batch.check_path(Path(folder))


@pytest.mark.parametrize("after", ["1; touch x", "1\ntouch x", "first", ""])
def test_only_ids_of_jobs_can_be_waited_for(after):
    with pytest.raises(UserError, match=r"is no id of a Slurm job; write a number such as 1234 or 1234_5"):
        batch.options("x", Profile(), PLACE, after=after)


@pytest.mark.usefixtures("_srun_is_there")
def test_an_array_shows_all_of_its_options_in_its_script():
    text = slurm.script_of(slurm.executor_for("x", Path("/shared/submitted"), Profile(), PLACE), 7)
    assert "#SBATCH --array=0-6%7\n" in text
    assert "#SBATCH --output=/shared/submitted/%A_%a_0_log.out\n" in text


@pytest.mark.parametrize(
    "profile, place, flags",
    [
        ({"gpu_request": "gres", "gpu_type": "a100"}, 2, {"gres": "gpu:a100:2"}),
        ({"gpu_request": "gpus-per-node"}, 2, {"gpus-per-node": "2"}),
        ({"gpu_request": "gpus-per-node", "gpu_type": "a100"}, 2, {"gpus-per-node": "a100:2"}),
        ({"gpu_request": "none"}, 2, {}),
        ({}, 0, {}),
        ({"memory": "per_node", "memory_gb": 28}, 0, {"mem": "28672M"}),
        ({"memory": "per_cpu", "memory_gb": 1.5}, 0, {"mem-per-cpu": "1536M"}),
        ({"memory": "per_gpu", "memory_gb": 8, "gpus_per_node": 1}, 1, {"mem-per-gpu": "8192M", "gres": "gpu:1"}),
    ],
)
def test_only_the_site_s_way_to_ask_for_gpus_and_memory_is_written(profile, place, flags):
    asked = batch.options("x", Profile(**profile), batch.Placement(1, 1, place, 60))
    about = ("gres", "gpus-per-node", "mem", "mem-per-cpu", "mem-per-gpu")
    assert {key: asked[key] for key in about if key in asked} == flags


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('node_folder = "/x$(id)"', "node_folder='/x$(id)': write a path of letters, digits and"),
        ("memory_gb = 3", "memory=none and memory_gb=3.0: give both or neither"),
        ('memory = "per_gpu"\nmemory_gb = 3', "memory=per_gpu needs gpus_per_node above 0"),
        ("wall_time = 3", "wall_time: Extra inputs are not permitted"),
        ('account = "a b"', "account='a b': write letters, digits and . , _ - @ + only"),
        ('exclude = ["n1", "n2; x"]', "exclude='n2; x': write letters, digits and . , _ - @ + only"),
        ('gpu_request = "some"', "gpu_request: Input should be 'gres', 'gpus-per-node' or 'none'"),
        ("= 3", "is not TOML"),
    ],
)
def test_a_mistake_in_a_profile_is_one_line_with_its_file(tmp_path, text, complaint):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile(str(tmp_path / "mine.toml"))
    assert complaint in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_a_profile_of_the_users_own_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config/hpcvision").mkdir(parents=True)
    (tmp_path / ".config/hpcvision/uni.toml").write_text('partition = "mine"\n')
    assert load_profile("uni").partition == "mine"


STAY = '{"event": "start", "from_step": %d}\n{"event": "stop", "step": %d, "reason": "deadline"}\n'


def test_a_run_that_was_requeued_three_times_without_a_step_is_given_up(tmp_path):
    rundir = RunDir(tmp_path)
    rundir.log.write_text(STAY % (0, 7) + 3 * (STAY % (7, 7)))
    check_progress(rundir)
    rundir.log.write_text(STAY % (0, 7) + 4 * (STAY % (7, 7)))
    with pytest.raises(TrainingStopped, match="3 stays in a row ended at step 7, where they began"):
        check_progress(rundir)


def test_only_rank_0_asks_the_batch_script_to_queue_the_job_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCVISION_AGAIN", str(tmp_path / "again"))
    monkeypatch.setenv("SLURM_PROCID", "1")
    leave_word()
    assert not (tmp_path / "again").exists()
    monkeypatch.setenv("SLURM_PROCID", "0")
    leave_word()
    assert (tmp_path / "again").exists()


def test_fewer_cores_than_the_job_asked_for_are_told_in_words(monkeypatch, capsys):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    check_affinity()
    assert "may use 1 of the 8 cores that its job asked for" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    check_affinity()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words, seeds", [("0-4", [0, 1, 2, 3, 4]), ("7", [7]), ("0,3,8-9", [0, 3, 8, 9]), ("2-3,3", [2, 3])]
)
def test_seeds_are_numbers_and_ranges(words, seeds):
    assert [config.seed for config in cluster.with_seeds(load_job("addnist_cnn"), words)] == seeds


if __name__ == "__main__":
    assert sys.argv[1:] == [], "takes no arguments"
    GOLDEN.mkdir(exist_ok=True)
    for profile in PROFILES:
        (GOLDEN / f"{profile}.sh").write_text(plain_script(profile))
        (GOLDEN / f"{profile}.submitit.sh").write_text(submitit_script(profile))
