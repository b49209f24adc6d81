"""The journal of a run: one JSON line per event, appended by rank 0, cut back to the checkpoint on resume."""

import json
import os
from types import TracebackType
from typing import Any

from hpcvision.rundir import RunDir, atomic_write, read_journal

# Events that tell what happened on the machine; they stay true when the steps after a checkpoint are trained again.
LASTING = ("start", "stop", "test_read")


class Journal:
    """Appends events to log.jsonl; as a context manager it closes the file."""

    def __init__(self, rundir: RunDir, *, resume_step: int) -> None:
        self.events = [
            event
            for event in read_journal(rundir.log)
            if event["event"] in LASTING or (is_of_a_step(event) and event["step"] <= resume_step)
        ]
        with atomic_write(rundir.log) as file:
            file.writelines(json.dumps(event).encode() + b"\n" for event in self.events)
        self._file = rundir.log.open("a")

    def add(self, event: str, **fields: Any) -> None:
        """Append one event; it is handed to the system at once, and survives a kill of this process."""
        record = {"event": event, **fields}
        self.events.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def is_of_a_step(event: dict[str, str]) -> bool:
    """True for a point of a curve; False for what the end of a run writes, which comes again when it is repeated."""
    return event["event"] == "train" or (event["event"] == "evaluate" and event["split"] != "test")


def ledger(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The step ledger: one row per stay on a machine, from_step and to_step without gaps or overlaps.

    A stay that ended without a word (SIGKILL, power) counts up to where the next one began; its later steps were lost.
    """
    rows: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "start":
            if rows and rows[-1]["to_step"] is None:
                rows[-1] |= {"to_step": event["from_step"], "reason": "killed"}
            names = ("job_id", "restart", "world_size", "host", "from_step")
            row = {name: event[name] for name in names} | {"commit": event.get("commit", "")}
            rows.append(row | {"to_step": None, "reason": ""})
        elif event["event"] == "stop" and rows:
            rows[-1] |= {"to_step": event["step"], "reason": event["reason"]}
    if rows and rows[-1]["to_step"] is None:
        last = max((event["step"] for event in events if event["event"] == "train"), default=rows[-1]["from_step"])
        rows[-1] |= {"to_step": max(last, rows[-1]["from_step"]), "reason": "running"}
    # A stay whose checkpoint was damaged afterwards counts only up to where a later one really began.
    end = rows[-1]["to_step"] if rows else 0
    for row in reversed(rows):
        row["to_step"] = min(row["to_step"], end)
        end = row["from_step"] = min(row["from_step"], row["to_step"])
    return rows
