"""One step is a fixed list of device operations: recorded once and replayed in place, it trains as step by step does.

A CUDA graph replays kernels on fixed memory. The tests do the same on the CPU: every operation of one step is recorded
with its tensors, and replayed into the memory of those tensors. No GPU takes part; tests/gpu has the real thing.
"""

import pytest
import torch
from torch.distributed import HashStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.distributed import Place, Rank
from hpcvision.training import state as states
from hpcvision.training.precision import set_arithmetic
from hpcvision.training.step import Step
from hpcvision.training.tasks import TASKS

# Operations that give the host a number of the device, or a shape that depends on one.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")

SMALL = {"data.source": "synthetic", "train.global_batch_size": 8, "train.steps": 50, "optim.warmup_steps": 5}
CASES = {
    # Everything that a step can contain; the average takes the weights in at every third step only.
    "classifier": (
        "cifar100_baby_mobilenet",
        {
            "model.width": 0.25,
            "optim.gradient_clip": 1.0,
            "optim.schedule": "one_cycle",
            "task.label_smoothing": 0.1,
            "task.cutmix_probability": 0.5,
            "ema.every": 3,
            "data.augmentation.blur_probability": 0.5,
            "data.augmentation.erasing_probability": 0.5,
        },
    ),
    "fp16": ("cifar100_baby_mobilenet", {"model.width": 0.25, "train.precision": "fp16", "optim.gradient_clip": 1.0}),
    "synchronized": ("cifar100_baby_mobilenet", {"model.width": 0.25, "train.batch_norm": "synchronized"}),
    "muon": (
        "cifar100_baby_mobilenet",
        {"model.width": 0.25, "optim.optimizer": "muon", "optim.schedule": "one_cycle", "optim.gradient_clip": 1.0},
    ),
    "adamw": ("addnist_cnn", {"model.width": 0.25, "optim.weight_decay": 0.01}),
    "generator": ("cifar100_ddpm_small", {"model.width": 0.05}),
}


@pytest.fixture(scope="module", autouse=True)
def _world_of_one():
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def build(case):
    job, changes = CASES[case]
    config = apply(load_job(job), SMALL | changes)
    rank = Rank(Place(), torch.device("cpu"))
    set_arithmetic(config.train, rank)
    precision = "fp32" if config.train.precision == "auto" else config.train.precision
    task = TASKS[config.task.kind](config, rank, precision)
    return Step(config, states.fresh(config, rank, len(task.metric_names), precision), task, rank)


class Recorder(TorchDispatchMode):
    """Lists every operation with its tensors, which stay alive, and so in their places."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # The list of a call is the caller's, who may change it afterwards.
        given = tree_map(lambda item: item, (args, kwargs or {}))
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, *given, result))
        return result

    def replay(self):
        """Run the operations again on the same tensors, and put what is new where it was."""
        with torch.no_grad():
            for function, args, kwargs, result in self.operations:
                for there, now in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(there, torch.Tensor) and there.data_ptr() != now.data_ptr():
                        there.copy_(now)


def recorded(step):
    """One step as `Step.capture` would record it; it is carried out as well."""
    step.hand_over()
    torch.manual_seed(0)
    with Recorder() as recorder:
        step.compute()
    step.state.step += 1
    return recorder


def constants(recorder):
    """Each operation with all its arguments that are not tensors, and the shapes of those that are."""

    def plain(item):
        return (tuple(item.shape), item.dtype) if isinstance(item, torch.Tensor) else repr(item)[:40]

    return [
        (
            str(function),
            [plain(item) for item in tree_leaves((args, kwargs)) if not isinstance(item, torch._C.ScriptObject)],
        )
        for function, args, kwargs, _ in recorder.operations
    ]


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_same_operations_with_the_same_constants(case):
    step = build(case)
    for _ in range(3):  # DDP and the optimisers prepare themselves
        step()
    first, *others = (constants(recorded(step)) for _ in range(4))
    assert len(first) > 100
    assert all(other == first for other in others)


@pytest.mark.parametrize("case", CASES)
def test_no_operation_of_a_step_makes_the_host_wait_for_the_device(case):
    step = build(case)
    # DDP divides by the number of processes, which lives on the host, and reads it in an operation of this name.
    step.state.ddp = step.state.model
    for _ in range(3):
        step()
    names = {function.overloadpacket.__name__ for function, *_ in recorded(step).operations}
    assert names.isdisjoint(WAITING)


@pytest.mark.parametrize("case", CASES)
def test_a_replayed_step_trains_as_the_steps_that_run_one_by_one(case):
    eager, replayed = build(case), build(case)
    for _ in range(4):
        eager()
        replayed()
    eager()
    recorder = recorded_as_called(replayed)
    replayed.graph = recorder
    for _ in range(6):
        eager()
        replayed()
    assert replayed.state.step == eager.state.step == 11
    one, other = everything(eager.state), everything(replayed.state)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0, msg=name)


def recorded_as_called(step):
    """As `recorded`, with the dropout of that step."""
    recorder = Recorder()
    compute = step.compute

    def under_the_recorder():
        with recorder:
            compute()

    step.compute = under_the_recorder
    step()
    return recorder


def everything(state):
    """All tensors that training changes."""
    tensors = {f"weights {name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average {name}": tensor for name, tensor in state.average.state.items()}
    moments = tree_leaves(state.optimizer.state_dict()["state"])
    tensors |= {f"optimizer {number}": value for number, value in enumerate(moments) if value is not None}
    return tensors | {"sums": state.sums, "steps done": state.steps_done, "first bad step": state.first_bad_step}


class NoRecording:
    """Stands for torch.cuda.graph on a machine without CUDA; what is inside runs as usual."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class NoRecordingThatComplains(NoRecording):
    """Likewise; at its end it says that something was wrong before, as CUDA does."""

    def __exit__(self, *_):
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("recording", [NoRecording, NoRecordingThatComplains])
def test_a_step_that_cannot_be_recorded_is_told_in_one_line_and_training_goes_on_the_same(monkeypatch, recording):
    said = []
    eager, failing = build("adamw"), build("adamw")
    failing.say = said.append
    loss = failing.task.loss

    def breaks_off(*arguments):
        loss(*arguments)  # DDP now waits for a backward pass that never comes
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand many more lines")

    monkeypatch.setattr("torch.cuda.CUDAGraph", NoRecording)
    monkeypatch.setattr("torch.cuda.graph", recording)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: None)
    # The statistics of BatchNorm are each rank's own, and stay so.
    synced = []
    monkeypatch.setattr("torch.nn.parallel.distributed._sync_module_states", lambda **about: synced.append(about))
    for number in range(6):
        eager()
        if number == 3:
            monkeypatch.setattr(failing.task, "loss", breaks_off)
            failing.capture()
            monkeypatch.setattr(failing.task, "loss", loss)
        failing()
    assert said == ["no CUDA graph: CUDA error: operation not permitted when stream is capturing; steps run one by one"]
    assert failing.graph is None
    assert synced == []
    one, other = everything(eager.state), everything(failing.state)
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("precision, records", [("fp16", False), ("bf16", True)])
def test_muon_in_fp16_is_not_recorded_for_its_overflows_are_asked_of_the_device(precision, records):
    step = build("muon")
    step.rank = Rank(Place(), torch.device("cuda"))
    step.state.precision = precision
    assert step.wants_graph() is records


def test_a_run_on_the_cpu_records_nothing():
    assert build("adamw").until_capture is None
