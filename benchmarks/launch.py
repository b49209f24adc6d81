"""From submission to the first training step on the idle test cluster: `sudo python benchmarks/launch.py`.

Needs `sudo make slurm-up`. Ours: `hpcvision submit JOB` on the job's data where $HPCVISION_DATA holds them prepared,
else on drawn images, until its first step stands in the journal; everything is counted, also the checks on the login
node. Of the two papers' classifiers addnist_cnn is the default, whose step takes milliseconds; one of
cifar100_baby_mobilenet takes half a second of a core and is no matter of launching. Bare: a script of a few lines that
submits, through submitit with the same options, a function that imports torch and writes a file. In turns, so that what
disturbs the machine disturbs both. The test cluster looks for jobs about once a second, so both submissions of a turn
begin at the same fraction of a second, and the turns are spread evenly over it: begun when the turn before has ended,
one of the two would always come early in that second and the other late. `login_cpu_seconds` is the CPU time of
`hpcvision submit` alone: for the first run of a model, once its parameters are known, and for 200 runs in one call,
which are cancelled.
"""

import os
import random
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import measuring

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("HPCVISION_TESTCLUSTER", "/var/lib/hpcvision-testcluster"))
LOGIN = ROOT / "slurm/testcluster/login.sh"
BARE = """
import sys
import submitit

def work():
    import torch
    open(PATH, "w").write(torch.__version__)

PATH = sys.argv[1]
executor = submitit.AutoExecutor(folder="bare")
executor.update_parameters(timeout_min=10, slurm_partition="gpu", slurm_account="students", slurm_mem_per_cpu="1536M")
executor.submit(work)
"""
DATA = Path(os.environ.get("HPCVISION_DATA", "data")).absolute()


def run(home: Path, *words: str) -> float:
    """CPU seconds of a command of the cluster's user."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [LOGIN, "env", f"HPCVISION_DATA={DATA}", f"XDG_CACHE_HOME={home}/cache", *words],
        cwd=home,
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def until(pattern: str, home: Path, content: str) -> None:
    """Wait until a file of that pattern holds `content`."""
    deadline = time.monotonic() + 120
    while not any(content in path.read_text() for path in home.glob(pattern)):
        if time.monotonic() > deadline:
            raise SystemExit(f"no {pattern} with {content!r} within 120 s in {home}")
        time.sleep(0.01)


def until_idle() -> None:
    """Wait until the cluster has nothing to do."""
    while subprocess.run([LOGIN, "squeue", "-h"], capture_output=True, text=True, check=True).stdout:
        time.sleep(0.2)
    time.sleep(3)  # the controller lets a job wait that comes soon after the end of another


def begin(fraction: float) -> float:
    """Wait until the cluster is idle and then for that fraction of a second of the clock; time.perf_counter()."""
    until_idle()
    time.sleep((fraction - time.time()) % 1)
    return time.perf_counter()


def main() -> None:
    parser = measuring.parser(__doc__.partition("\n")[0])
    parser.add_argument("--job", choices=("addnist_cnn", "cifar100_baby_mobilenet"), default="addnist_cnn")
    parser.add_argument("--rounds", type=int, default=8, help="turns of both")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or not (FOLDER / "slurm.conf").exists():
        raise SystemExit("needs root and the test cluster: sudo make slurm-up")
    wanted = arguments.job.partition("_")[0]
    source = wanted if list(DATA.glob(f"prepared/{wanted}*.json")) else "synthetic"
    job = [arguments.job, f"data.source={source}", "train.steps=3", "cadence.log_every=1"]
    home = FOLDER / "home/launch"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / "bare.py").write_text(BARE)
    shutil.chown(home, "hpcuser", "hpcuser")
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    login: list[float] = []
    fractions = [number / arguments.rounds for number in range(arguments.rounds)]
    random.Random(0).shuffle(fractions)  # that second is a little longer than the clock's
    for number, fraction in enumerate([0.0, *fractions]):
        began = begin(fraction)
        submit = ["hpcvision", "submit", *job, f"seed={number}", "--cluster", "testcluster", "--processes", "1"]
        login.append(run(home, *submit))
        until(f"runs/{newest(home)}/log.jsonl", home, '"event": "train"')
        ours = time.perf_counter() - began
        began = begin(fraction)
        run(home, "python", "bare.py", f"{home}/bare-{number}")
        until(f"bare-{number}", home, ".")
        bare = time.perf_counter() - began
        if number:  # the first turn warms the disk's cache
            seconds["ours"].append(ours)
            seconds["bare"].append(bare)
    until_idle()
    seeds = ["--seeds", "1000-1199", "--cluster", "testcluster", "--processes", "1"]
    many = run(home, "hpcvision", "submit", *job, *seeds)
    run(home, "scancel", "--me")
    cpu = {"first": login[0], "known": statistics.median(login[1:]), "of 200 runs": many}
    turns = list(zip(seconds["ours"], seconds["bare"], strict=True))
    again = random.Random(0)
    drawn = sorted(of_means(again.choices(turns, k=len(turns))) for _ in range(10_000))
    rows = [
        {"case": name, "seconds": statistics.mean(values), "fastest": min(values), "slowest": max(values)}
        for name, values in seconds.items()
    ]
    measuring.report(
        f"submission to the first training step, test cluster, {arguments.job} on {source}",
        json_file=arguments.json,
        rows=rows,
        ratios={"ratio_launch": of_means(turns), "ratio_launch_low": drawn[250], "ratio_launch_high": drawn[9_750]},
        seconds=seconds,
        login_cpu_seconds=cpu,
        rounds=arguments.rounds,
    )
    print("login_cpu_seconds " + ", ".join(f"{name} {value:.2f}" for name, value in cpu.items()))


def of_means(turns: Sequence[tuple[float, float]]) -> float:
    """How many times as long ours took, all turns together: the wait for the cluster's second has two humps."""
    ours, bare = zip(*turns, strict=True)
    return sum(ours) / sum(bare)


def newest(home: Path) -> str:
    """The run folder that was made last."""
    return max((home / "runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime).parent.name


if __name__ == "__main__":
    main()
