"""What all benchmarks share: interleaved rounds, a table on the terminal, and a JSON file."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hpcvision.provenance import processor


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the option that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write everything that was measured to FILE")
    return made


def interleave(cases: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each case in every round, A B C A B C ...: what disturbs the machine disturbs all cases alike."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(-warm_up, rounds):
        for name, run in cases.items():
            started = time.perf_counter()
            run()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median over the rounds of slower / faster in the same round; above 1 when `faster` takes less time."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(
    title: str, rows: Sequence[Mapping[str, Any]], *, ratios: Mapping[str, float], json_file: Path | None, **more: Any
) -> None:
    """Print the rows as a table and the ratios below, and write all of it with machine and command as JSON.

    ratios: by names `ratio_...`, above 1 when ours is better;  more: whatever else belongs into the JSON.
    """
    assert all(name.startswith("ratio_") for name in ratios), "so that readers find them"
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=title, title_justify="left")
    for name in columns:
        is_number = all(isinstance(row.get(name, 0), int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(shown(row.get(name, "")) for name in columns))
    console.print(table)
    for name, value in ratios.items():
        console.print(f"{name} {value:.3f}")
    here = machine()
    console.print(f"{here['processor']}, {here['cpus_allowed']} cores, torch {here['torch']}")
    if json_file:
        content = {"benchmark": title, "command": sys.argv, "machine": here, "rows": list(rows), **ratios, **more}
        json_file.write_text(json.dumps(content, indent=1) + "\n")
        console.print(f"written to {json_file}")


def shown(value: Any) -> str:
    """A cell of the table."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
