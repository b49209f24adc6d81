"""What the doctor concludes; whether it asks the right questions is shown on the test cluster."""

import subprocess

import pytest

from hpcvision.launch import doctor, queue
from hpcvision.launch.batch import Placement
from hpcvision.launch.profile import Profile

OF_CU126 = [50, 60, 70, 75, 80, 86, 90]
OF_CU130 = [75, 80, 86, 90, 100, 120]


@pytest.mark.parametrize(
    "capability, built, runs",
    [(61, OF_CU126, True), (61, OF_CU130, False), (70, OF_CU130, False), (75, OF_CU130, True), (89, OF_CU130, True)],
)
def test_kernels_run_on_cards_of_the_same_major_version_and_at_least_the_same_minor_one(capability, built, runs):
    assert doctor.runs_on(capability, built) == runs


@pytest.mark.parametrize(
    "kind, built, verdict, words",
    [
        ("turing", OF_CU130, "PASS", "turing: compute capability 7.5 is in this torch; no native bf16"),
        ("pascal", OF_CU130, "FAIL", "pascal has no kernels in this torch (oldest: 75); pip install --index-url"),
        ("nvidia_a100", OF_CU130, "PASS", "nvidia_a100: compute capability 8 is in this torch"),
        ("mystery", OF_CU130, "WARN", "mystery: of unknown kind; look with: srun --gres=gpu:1 nvidia-smi"),
        ("a100", [], "FAIL", "the installed torch has no kernels for GPUs; pip install --index-url"),
    ],
)
def test_the_partitions_cards_are_compared_with_the_kernels_of_the_installed_torch(
    kind, built, verdict, words, monkeypatch
):
    monkeypatch.setattr(queue, "ask", lambda *words: subprocess.CompletedProcess(words, 0, "", ""))
    monkeypatch.setattr(queue, "gpus_of_nodes", lambda _: [(kind, 4)])
    monkeypatch.setattr(doctor, "kernels", lambda: built)
    (found,) = doctor.graphics_cards(Profile(gpus_per_node=1))
    assert (found.verdict, found.words[: len(words)]) == (verdict, words)


def test_nodes_of_another_kind_than_the_login_node_are_told(monkeypatch):
    monkeypatch.setattr(
        queue, "ask", lambda *words: subprocess.CompletedProcess(words, 0, "NodeName=n Arch=ppc64le", "")
    )
    found = next(iter(doctor.graphics_cards(Profile())))
    assert found.verdict == "FAIL"
    assert found.words.startswith("the nodes are ppc64le, this machine is ")


def test_a_disk_is_known_by_its_kind(tmp_path):
    assert doctor.disk_of(tmp_path / "not there yet") not in ("", "an unknown disk")


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
            "535.104.05 is too old for this torch's CUDA 13.0, which needs 580; pip install",
        ),
        ("535.104.05", "12.6", "PASS", "535.104.05 runs this torch's CUDA 12.6"),
        (
            "srun: job 3 queued and waiting\nsrun: error: Unable to allocate resources: Requested nodes are busy",
            "12.6",
            "WARN",
            "no card was free within 5 s; look with: srun --gres=gpu:1 nvidia-smi",
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

    def fake_srun(*command):
        asked.extend(command)
        failed = "srun" in answer
        return subprocess.CompletedProcess(command, int(failed), "" if failed else answer, answer if failed else "")

    monkeypatch.setattr(queue, "ask", fake_srun)
    monkeypatch.setattr("torch.version.cuda", cuda)
    found = doctor.driver(Profile(gpus_per_node=4, partition="gpu"), Placement(2, 4, 4, 60))
    assert (found.verdict, found.words[: len(words)]) == (verdict, words)
    assert {"srun", "--immediate=5", "--gres=gpu:1", "--nodes=1", "--partition=gpu", "--time=1"} <= set(asked)
