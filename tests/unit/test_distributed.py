"""What the processes of a run find out about each other before they train."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from hpcvision.distributed import announce_waiting, check_own_gpus, choose_device, meet
from hpcvision.errors import TrainingStopped, UserError
from hpcvision.place import Place


def test_two_ranks_on_one_gpu_are_an_error_on_both_and_not_on_the_third():
    store, places = HashStore(), [Place(rank=rank, world_size=3) for rank in range(3)]
    gpus = ["node0 GPU-a", "node0 GPU-b", "node0 GPU-a"]
    for rank, gpu in enumerate(gpus):
        store.set(f"gpu-{rank}", gpu)
    for rank in (0, 2):
        with pytest.raises(UserError, match=r"ranks 0, 2 have one GPU \(node0 GPU-a\); ask for a GPU for each"):
            check_own_gpus(store, places[rank], gpus[rank])
    check_own_gpus(store, places[1], gpus[1])


@pytest.mark.parametrize("visible, local_rank, number", [(4, 0, 0), (4, 3, 3), (1, 3, 0), (2, 3, 1)])
def test_a_process_takes_the_gpu_of_its_local_rank_among_those_that_it_sees(visible, local_rank, number, monkeypatch):
    # A fake CUDA: what is visible is the point, not the card.
    taken = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "given")
    device = choose_device(Place(local_rank=local_rank, world_size=4))
    assert (device.type, device.index, taken) == ("cuda", number, [device])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "given"


def test_the_same_number_of_a_gpu_on_two_nodes_is_not_the_same_gpu():
    store = HashStore()
    store.set("gpu-1", "node1 GPU-a")
    check_own_gpus(store, Place(rank=0, world_size=2, node_count=2), "node0 GPU-a")


def test_the_other_ranks_wait_for_a_rank_0_that_says_that_it_has_to_wait_itself_and_not_for_a_silent_one(tmp_path):
    places = [Place(rank=rank, world_size=2) for rank in range(2)]
    with ThreadPoolExecutor() as pool:
        other = pool.submit(meet, places[1], tmp_path, 1.0)
        for _ in range(8):
            time.sleep(0.3)
            announce_waiting(places[0], tmp_path)
        store = meet(places[0], tmp_path, 10.0)
        store.set("word", "x")
        assert other.result().get("word") == b"x"
        announce_waiting(places[0], tmp_path)
        with pytest.raises(TrainingStopped, match="rank 0 of 2 did not announce itself within 1 s"):
            meet(places[1], tmp_path, 1.0)
