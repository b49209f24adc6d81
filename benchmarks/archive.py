"""What the archive costs: `python benchmarks/archive.py`.

Write: results.h5 of a run with 10,000 drawn images (32x32) and 50,000 points of the training curve, in turns with the
same arrays written with h5py alone, with the same chunks and compression. Read: curves and configuration of that file,
and one image of it, with the bytes that the system was asked for. List: `hpcvision results list` over 1,000 runs, with
its largest memory beside that over 100.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import measuring
import numpy as np

from hpcvision.config.catalogue import load_job
from hpcvision.results import load
from hpcvision.results.record import Record, Samples
from hpcvision.results.writer import write_results

IMAGES, POINTS, FILES = 10_000, 50_000, 1_000
COLUMNS = {"loss": "f4", "learning_rate": "f4", "seconds": "f8", "images_per_second": "f4"}


def record(images: int, points: int) -> Record:
    """A generator's run; the images are smooth, as drawn ones are, so that they compress."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (images, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(8, axis=1).repeat(8, axis=2) // 2 + random.integers(
        0, 8, (images, 32, 32, 3), dtype=np.uint8
    )
    config = load_job("cifar100_ddpm_convnext")
    weights = {
        f"layer.{n}": random.standard_normal(24_000, dtype=np.float32) for n in range(40 if images > 1000 else 1)
    }
    settings = {"sampler": "ddim", "steps": 50, "guidance_scale": 1.0, "weights": "ema"}
    return Record(
        config=config.model_dump(mode="json"),
        name=config.name,
        fingerprint=config.fingerprint,
        provenance={},
        caps={"parameters": 1_000_000, "steps": 50_000},
        parameters=960_000,
        steps=points,
        finished=True,
        data={"name": "CIFAR-100", "source": "cifar100"},
        train=[{"step": step} | dict.fromkeys(COLUMNS, 1.0 / step) for step in range(1, points + 1)],
        evaluate=[{"step": points, "split": "test", "weights": "ema", "loss": 0.1}],
        ledger=[],
        test_reads=1,
        weights={"raw": weights, "ema": weights},
        scores={"loss": 0.1},
        samples={"random": Samples(pixels, np.zeros(images, int), np.arange(images), settings)},
    )


def write_raw(path: Path, made: Record) -> None:
    """The arrays alone."""
    with h5py.File(path, "w") as file:
        images = made.samples["random"].images
        file.create_dataset("images", data=images, chunks=(1, 32, 32, 3), compression="gzip", compression_opts=4)
        file["labels"], file["seeds"] = made.samples["random"].labels, made.samples["random"].seeds
        file["step"] = np.array([row["step"] for row in made.train])
        for name, kind in COLUMNS.items():
            file[name] = np.array([row[name] for row in made.train], dtype=kind)
        for kind, arrays in made.weights.items():
            for name, values in arrays.items():
                file[f"{kind}/{name}"] = values
        file.flush()
        os.fsync(file.id.get_vfd_handle())


def bytes_read() -> int:
    """That this process has asked the system for."""
    return int(Path("/proc/self/io").read_text().split()[1])


def seconds_and_bytes(read: Any) -> tuple[float, int]:
    """Of one call."""
    before, began = bytes_read(), time.perf_counter()
    read()
    return time.perf_counter() - began, bytes_read() - before


LISTING = """
import atexit, pathlib, re, sys
from hpcvision.cli import main
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
atexit.register(lambda: print(peak(), file=sys.stderr))
main()
"""


def listing(folder: Path) -> tuple[float, float]:
    """Seconds of `hpcvision results list`, and its largest memory in MB."""
    began = time.perf_counter()
    words = ["results", "list", str(folder), "--where", "loss < 1", "--sort", "loss"]
    done = subprocess.run([sys.executable, "-c", LISTING, *words], capture_output=True, text=True, check=True)
    assert done.stdout.count("run-") == len(list(folder.iterdir()))
    return time.perf_counter() - began, int(done.stderr) / 1024


def main() -> None:
    arguments = measuring.parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=3, help="turns of each writer")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, made = Path(name), record(IMAGES, POINTS)
        ours, raw = folder / "results.h5", folder / "raw.h5"
        cases = {"results.h5": lambda: write_results(ours, made), "h5py alone": lambda: write_raw(raw, made)}
        seconds = measuring.interleave(cases, rounds=chosen.rounds, warm_up=1)
        sizes = {"results.h5": ours.stat().st_size, "h5py alone": raw.stat().st_size}
        run = load(ours)
        len(run.ledger)  # imports pandas, once for a program
        curves, curve_bytes = seconds_and_bytes(lambda: (load(ours).train, load(ours).config))
        one, one_bytes = seconds_and_bytes(lambda: run.samples["random"][1234])
        whole, whole_bytes = seconds_and_bytes(lambda: run.samples["random"][()])
        small = record(10, 200)
        write_results(folder / "small.h5", small)
        for count in (100, FILES):
            for number in range(count):
                place = folder / str(count) / f"run-{number}"
                place.mkdir(parents=True)
                shutil.copy(folder / "small.h5", place / "results.h5")
        few_seconds, few_memory = listing(folder / "100")
        many_seconds, many_memory = listing(folder / str(FILES))
    rows = [
        {"case": case, "seconds": sorted(times)[len(times) // 2], "MB": sizes[case] / 1e6}
        for case, times in seconds.items()
    ]
    measuring.report(
        f"a run with {IMAGES:,} images and {POINTS:,} points",
        rows,
        ratios={
            "ratio_seconds": measuring.ratio(seconds["results.h5"], seconds["h5py alone"]),
            "ratio_size": sizes["results.h5"] / sizes["h5py alone"],
        },
        json_file=chosen.json,
        rounds=seconds,
    )
    print(f"curves and configuration: {curves:.3f} s, {curve_bytes / 1e6:.1f} MB read")
    print(f"one image: {one:.4f} s, {one_bytes / 1e6:.2f} MB read; all: {whole:.2f} s, {whole_bytes / 1e6:.1f} MB read")
    print(f"list of 100 runs: {few_seconds:.2f} s, {few_memory:.0f} MB")
    print(f"list of {FILES:,} runs: {many_seconds:.2f} s, {many_memory:.0f} MB")


if __name__ == "__main__":
    main()
