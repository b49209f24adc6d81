"""What the doctor concludes; whether it asks the right questions is shown on the test cluster."""

import subprocess
import time

import pytest

from hpcvision.launch import doctor, hardware, queue
from hpcvision.launch.batch import Placement
from hpcvision.launch.hardware import Torch, driver, graphics_cards, runs_on, setup_lines
from hpcvision.launch.profile import Profile
from hpcvision.launch.space import disk_of

OF_CU126 = [50, 60, 70, 75, 80, 86, 90]
OF_CU130 = [75, 80, 86, 90, 100, 120]


ANOTHER_TORCH = "pip uninstall -y torch torchvision; pip install -i HERE torch torchvision"


@pytest.mark.parametrize(
    "capability, built, runs",
    [(61, OF_CU126, True), (61, OF_CU130, False), (70, OF_CU130, False), (75, OF_CU130, True), (89, OF_CU130, True)],
)
def test_kernels_run_on_cards_of_the_same_major_version_and_at_least_the_same_minor_one(capability, built, runs):
    assert runs_on(capability, built) == runs


@pytest.mark.parametrize(
    "kind, built, verdict, words",
    [
        ("turing", OF_CU130, "PASS", "turing (7.5): this torch has kernels for it; no native bf16"),
        (
            "pascal",
            OF_CU130,
            "FAIL",
            f"pascal (6): no kernels in this torch (oldest: 7.5); {ANOTHER_TORCH}",
        ),
        ("nvidia_a100", OF_CU130, "PASS", "nvidia_a100 (8): this torch has kernels for it"),
        ("mystery", OF_CU130, "WARN", "mystery: of unknown kind; look with: srun --gres=gpu:1 nvidia-smi"),
        (
            "a100",
            [],
            "FAIL",
            f"this torch has no kernels for GPUs; {ANOTHER_TORCH}",
        ),
    ],
)
def test_the_partitions_cards_are_compared_with_the_kernels_of_the_installed_torch(
    kind, built, verdict, words, monkeypatch
):
    monkeypatch.setattr(queue, "ask", lambda *words: subprocess.CompletedProcess(words, 0, "", ""))
    monkeypatch.setattr(queue, "gpus_of_nodes", lambda _: [(kind, 4)])
    torch = Torch("13.0" if built else "", " ".join(f"sm_{number}" for number in built))
    (found,) = graphics_cards(Profile(gpus_per_node=1, torch_index="HERE"), torch)
    assert (found.verdict, found.words[: len(words)]) == (verdict, words)


def test_cards_of_which_the_same_is_to_be_said_share_a_line(monkeypatch):
    kinds = ["a100", "h100", "l40", "turing", "v100", "one", "another"]
    monkeypatch.setattr(queue, "ask", lambda *words: subprocess.CompletedProcess(words, 0, "", ""))
    monkeypatch.setattr(queue, "gpus_of_nodes", lambda _: [(kind, 4) for kind in kinds])
    found = list(graphics_cards(Profile(gpus_per_node=1), Torch("13.0", "sm_75 sm_80 sm_90")))
    assert [(one.verdict, one.words.partition(":")[0]) for one in found] == [
        ("PASS", "a100 (8), h100 (9), l40 (8.9)"),
        ("WARN", "another, one"),
        ("PASS", "turing (7.5)"),
        ("FAIL", "v100 (7)"),
    ]


def test_the_torch_is_that_of_the_nodes_environment_after_the_lines_of_setup(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho words of the site\necho \'["12.6", "sm_60 sm_90"]\'\n')
    python.chmod(0o755)
    found, torch = setup_lines(Profile(setup=(f"HERE={tmp_path}",), python="$HERE/python"))
    assert (found.verdict, torch) == ("PASS", Torch("12.6", "sm_60 sm_90"))
    assert torch.capabilities == [60, 90]


@pytest.mark.parametrize("line", ["exit 0", "python() { printf '\\351\\n'; }"])
def test_lines_of_setup_that_end_the_shell_or_take_python_s_place_are_a_fail(line):
    found, torch = setup_lines(Profile(setup=(line,), python="python"))
    assert (found.verdict, torch) == ("FAIL", None)
    assert found.words == "python was not reached; a line of setup in the profile ends the shell"


def test_no_card_is_asked_for_when_there_is_no_time_for_the_answer():
    with queue.answers_by(time.monotonic() + 3, each=6):
        found = driver(Profile(gpus_per_node=1), Placement(1, 1, 1, 60), Torch("13.0", "sm_90"))
    assert (found.verdict, found.words[:34]) == ("WARN", "no time left to ask for a card; lo")


def test_lines_of_setup_that_hang_are_given_up_with_all_that_they_started(monkeypatch):
    monkeypatch.setattr(hardware, "SETUP_SECONDS", 1.0)
    began = time.monotonic()
    found, torch = setup_lines(Profile(setup=("(sleep 987) | cat",)))
    assert time.monotonic() - began < 10
    assert (found.verdict, torch) == ("WARN", None)
    assert "its lines and torch took more than 1 s; try: time " in found.words
    assert subprocess.run(["pgrep", "-f", "^sleep 987$"], stdout=subprocess.DEVNULL).returncode == 1


def test_a_slurm_that_hangs_is_told_within_the_time_for_all_questions(tmp_path, monkeypatch, fake_commands):
    # A tenth of the time, and without what imports torch, which takes as long as a busy machine takes.
    monkeypatch.setattr(doctor, "ASKING_SECONDS", 1.4)
    monkeypatch.setattr(doctor, "EACH_SECONDS", 0.6)
    monkeypatch.setattr(doctor, "staged", lambda _: iter(()))
    hangs = dict.fromkeys(("sacct", "sacctmgr", "sinfo", "squeue", "sbatch", "srun"), "sleep 60")
    # Its first answer only, so that all other questions are asked.
    hangs["scontrol"] = '[ "$2" = config ] && echo "SLURM_VERSION = 23.11" || sleep 60'
    fake_commands(**hangs)
    began = time.monotonic()
    found = list(doctor.examine(Profile(gpus_per_node=1, python="sleep 60;"), tmp_path))
    assert time.monotonic() - began < 10  # each of 12 questions alone would wait 30 s
    assert len(found) <= 20
    assert any("has not answered in the time that was left" in one.words for one in found if one.verdict != "PASS")
    assert queue.seconds_left() == queue.ANSWER_SECONDS  # for whatever comes later


@pytest.mark.parametrize(
    "limit, said, verdict, words",
    [
        ("", None, "PASS", "no limit of a qos is known; you have 2 in the queue"),
        ("30", None, "WARN", "you may have 30 with qos normal; set max_submitted_jobs = 30 in the profile, so that"),
        ("30", 30, "PASS", "up to 30, you may have 30 with qos normal; you have 2 in the queue"),
        ("30", 20, "PASS", "up to 20, you may have 30 with qos normal"),
        ("30", 31, "FAIL", "you may have 30 with qos normal; set max_submitted_jobs = 30 in the profile"),
    ],
)
def test_the_profile_s_limit_on_jobs_is_compared_with_that_of_the_qos(limit, said, verdict, words, fake_commands):
    accounts = 'case "$*" in *assoc*) echo "students|normal,long" ;; *qos*) printf "normal|%s\nlong|\n" "LIMIT" ;; esac'
    fake_commands(sacctmgr=accounts.replace("LIMIT", limit), squeue="echo 1; echo 2")
    found = doctor.jobs_at_once(Profile(account="Students", max_submitted_jobs=said))
    assert (found.verdict, found.words[: len(words)]) == (verdict, words)


def test_an_exceeded_quota_is_a_fail_and_a_quiet_one_is_none(tmp_path, monkeypatch, fake_commands):
    monkeypatch.setattr(doctor, "LEAST_GB", 0.0)
    fake_commands(quota="exit 0")
    assert doctor.room(tmp_path).verdict == "PASS"
    fake_commands(quota="echo 'Disk quotas for me: over block quota on /home'; exit 1")
    found = doctor.room(tmp_path)
    assert (found.verdict, found.words[:44]) == ("FAIL", "Disk quotas for me: over block quota on /hom")


def test_a_full_disk_is_told_with_the_command_that_shows_what_fills_it(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_GB", 1e9)
    found = doctor.room(tmp_path / "runs not there yet")
    assert found.verdict == "WARN"
    assert found.words.endswith(f"see what fills it: du -sh {tmp_path}/*")


def test_nodes_of_another_kind_than_the_login_node_are_told(monkeypatch):
    monkeypatch.setattr(
        queue, "ask", lambda *words: subprocess.CompletedProcess(words, 0, "NodeName=n Arch=ppc64le", "")
    )
    (found,) = graphics_cards(Profile(), None)
    assert found.verdict == "FAIL"
    assert found.words.startswith("the nodes are ppc64le, this machine is ")


def test_a_disk_is_known_by_its_kind(tmp_path):
    assert disk_of(tmp_path / "not there yet") not in ("", "an unknown disk")


def test_a_profile_for_this_machine_is_examined_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HPCVISION_DATA", str(tmp_path))
    subjects = [finding.subject for finding in doctor.examine(Profile(executor="local"), tmp_path)]
    assert subjects == ["disk", "cifar100", "addnist", "inception"]


def test_data_is_fetched_here_where_the_nodes_reach_no_internet(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCVISION_DATA", str(tmp_path))
    said = [finding.words for known in (False, None) for finding in doctor.staged(Profile(internet_on_nodes=known))]
    assert f"not in {tmp_path}; run here, as nodes reach no internet: hpcvision data fetch addnist" in said
    assert f"not in {tmp_path}; run: hpcvision data fetch addnist" in said


def test_a_cluster_profile_on_a_machine_without_slurm_is_a_fail_and_no_crash(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HPCVISION_DATA", str(tmp_path))
    found, *others = doctor.examine(Profile(), tmp_path)
    assert (found.verdict, found.subject) == ("FAIL", "slurm")
    assert [other.subject for other in others] == ["disk", "cifar100", "addnist", "inception"]
    assert "no Slurm; go to the cluster's login node" in found.words


@pytest.mark.parametrize(
    "answer, cuda, verdict, words",
    [
        ("580.65.06", "13.0", "PASS", "580.65.06 runs this torch's CUDA 13.0"),
        (
            "535.104.05",
            "13.0",
            "FAIL",
            "535.104.05 is too old for this torch's CUDA 13.0, which needs 580; take the command",
        ),
        ("535.104.05", "12.6", "PASS", "535.104.05 runs this torch's CUDA 12.6"),
        (
            "srun: job 3 queued and waiting\nsrun: error: Unable to allocate resources: Requested nodes are busy",
            "12.6",
            "WARN",
            "no card was free within 4 s; look with: srun --gres=gpu:1 nvidia-smi",
        ),
        (
            "slurmstepd-node0: error: execve(): nvidia-smi: No such file\nsrun: error: node0: Exited with exit code 2",
            "12.6",
            "WARN",
            "not known (slurmstepd-node0: error: execve(): nvidia-smi: No such file); look with: srun",
        ),
    ],
)
def test_a_cards_driver_is_compared_with_the_cuda_of_the_installed_torch(answer, cuda, verdict, words, monkeypatch):
    asked = []

    def fake_srun(*command, each):
        assert each > 4
        asked.extend(command)
        failed = "srun" in answer
        return subprocess.CompletedProcess(command, int(failed), "" if failed else answer, answer if failed else "")

    monkeypatch.setattr(queue, "ask", fake_srun)
    found = driver(Profile(gpus_per_node=4, partition="gpu"), Placement(2, 4, 4, 60), Torch(cuda, "sm_90"))
    assert (found.verdict, found.words[: len(words)]) == (verdict, words)
    assert {"srun", "--immediate=4", "--gres=gpu:1", "--nodes=1", "--partition=gpu", "--time=1"} <= set(asked)
