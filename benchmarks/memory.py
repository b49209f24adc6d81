"""Memory of training the job cifar100_baby_mobilenet above that of a process that has only imported torch.

    HPCVISION_DATA=data python benchmarks/memory.py --json memory.json

One process imports torch. Others train for 20 steps, evaluate, and write the archive, with the job's own settings in
one process. One more does the same and looks at its memory every two milliseconds: the table tells how much there was
at most while each function ran, and how much when it ran last. The images are CIFAR-100 where $HPCVISION_DATA holds it,
else drawn ones of the same shape, of which there are fewer. On the CPU.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from measuring import parser, report
from ranks import peak_resident_megabytes

from hpcvision import data
from hpcvision.config import apply
from hpcvision.config.catalogue import load_job
from hpcvision.launch.job import prepare, run_rank
from hpcvision.stopping import StopRequest

LIMIT_MEGABYTES = 1200
JOB = "cifar100_baby_mobilenet"
ONLY_TORCH = """
import torch
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024 / 1e6)
"""
# Functions that are on the stack nearly always and tell nothing.
OUTER = {"run_rank", "train", "train_here", "prepare"}


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train(*sys.argv[2:])
        return
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=3, help="trainings that are measured; the largest counts")
    arguments_of.add_argument("--steps", type=int, default=20, help="steps of each training")
    arguments_of.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of the training")
    arguments = arguments_of.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    found = data.status("cifar100")
    source = "cifar100" if found["prepared"] or not found["missing"] else "synthetic"
    changes = {"data.source": source, "train.steps": arguments.steps, "train.precision": arguments.precision}
    import_only = [float(output("-c", ONLY_TORCH)) for _ in range(3)]
    command = [str(Path(__file__).resolve()), "--train", json.dumps(changes)]
    trained = [float(output(*command, "")) for _ in range(arguments.rounds)]
    samples: list[tuple[str, float]] = json.loads(output(*command, "watched"))
    torch_alone = min(import_only)
    rows = [
        {"what": "import torch", "largest_MB": torch_alone, "above_torch_MB": 0.0},
        {"what": "training", "largest_MB": max(trained), "above_torch_MB": max(trained) - torch_alone},
    ]
    # The outermost function is the one that training calls.
    for name, values in grouped((place.partition(":")[0], value) for place, value in samples).items():
        largest = {"largest_MB": max(values), "above_torch_MB": max(values) - torch_alone}
        rows.append({"what": f"  {name}", **largest, "at_last_MB": values[-1]})
    report(
        f"{JOB} on {source}, precision {arguments.precision}, one process, {arguments.steps} steps",
        rows,
        ratios={"ratio_limit_over_memory": LIMIT_MEGABYTES / (max(trained) - torch_alone)},
        json_file=arguments.json,
        megabytes_above_torch=max(trained) - torch_alone,
        source=source,
        rounds={"import_torch": import_only, "training": trained},
        places={
            name: {"largest_MB": max(values), "at_last_MB": values[-1]} for name, values in grouped(samples).items()
        },
    )


def grouped(samples: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """The values by name, in their order."""
    values: dict[str, list[float]] = {}
    for name, value in samples:
        values.setdefault(name, []).append(value)
    return values


def output(*words: str) -> str:
    """The last line that a fresh Python process prints."""
    printed = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True).stdout
    return printed.splitlines()[-1]


def train(changes: str, is_watched: str) -> None:
    """Train in a temporary folder and print the largest memory, or all that was seen as JSON when watched."""
    config = apply(load_job(JOB), json.loads(changes))
    samples: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, watched(samples) if is_watched else nullcontext():
        run_rank(prepare(config, Path(folder)), StopRequest())
    print(json.dumps(samples) if is_watched else peak_resident_megabytes())


@contextmanager
def watched(samples: list[tuple[str, float]]) -> Iterator[None]:
    """Append what the calling thread was doing and the resident memory in 10^6 bytes, every two milliseconds."""
    main_thread, ended = threading.get_ident(), threading.Event()
    page = os.sysconf("SC_PAGESIZE") / 1e6

    def look() -> None:
        while not ended.wait(0.002):
            what = place(sys._current_frames()[main_thread])
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            samples.append((what, resident))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def place(frame: Any) -> str:
    """The two outermost functions of hpcvision on the stack that say anything, with the lines that they are in."""
    found = []
    while frame:
        code = frame.f_code
        if f"{os.sep}hpcvision{os.sep}" in code.co_filename and code.co_name not in OUTER:
            name = "imports" if code.co_name == "<module>" else code.co_qualname
            found.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return " > ".join(found[:-3:-1]) or "other"


if __name__ == "__main__":
    main()
