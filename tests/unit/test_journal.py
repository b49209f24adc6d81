"""The journal tells what happened once, whatever was trained twice; the ledger's stays add up to the run."""

import itertools
import json
import random

import pytest

from hpcvision.rundir import RunDir, read_journal
from hpcvision.training.journal import Journal, ledger


@pytest.fixture
def rundir(tmp_path):
    return RunDir(tmp_path)


def start(step, job="a"):
    return {"event": "start", "job_id": job, "restart": 0, "world_size": 2, "host": "h", "from_step": step}


def train(step):
    return {"event": "train", "step": step, "loss": 1.0}


def stop(step, reason="SIGTERM"):
    return {"event": "stop", "step": step, "reason": reason}


def write(rundir, *events, tail=b""):
    rundir.log.write_bytes(b"".join(json.dumps(event).encode() + b"\n" for event in events) + tail)


def spans(events):
    return [(row["from_step"], row["to_step"], row["reason"]) for row in ledger(events)]


def test_what_is_added_is_read_back_in_order(rundir):
    with Journal(rundir, resume_step=0) as journal:
        journal.add("train", step=1, loss=0.5)
        journal.add("note", step=1, text="line\nbreak \u2028 and 'quotes\"")
    assert read_journal(rundir.log) == journal.events
    assert [event["event"] for event in journal.events] == ["train", "note"]


def test_an_event_is_on_disk_before_the_journal_is_closed(rundir):
    with Journal(rundir, resume_step=0) as journal:
        journal.add("train", step=1)
        assert read_journal(rundir.log) == [{"event": "train", "step": 1}]


def test_a_loss_that_is_not_a_number_is_read_back_as_one_that_is_not(rundir):
    with Journal(rundir, resume_step=0) as journal:
        journal.add("train", step=1, loss=float("nan"))
    assert read_journal(rundir.log)[0]["loss"] != read_journal(rundir.log)[0]["loss"]


def test_on_resume_the_points_after_the_checkpoint_are_cut_off(rundir):
    evaluate = {"event": "evaluate", "step": 20, "split": "validation"}
    write(rundir, start(0), train(10), train(20), evaluate, train(30))
    assert Journal(rundir, resume_step=20).events == [start(0), train(10), train(20), evaluate]
    assert read_journal(rundir.log) == [start(0), train(10), train(20), evaluate]


def test_on_resume_stays_and_looks_at_the_test_split_are_kept_whatever_their_step(rundir):
    kept = [start(0), {"event": "test_read", "step": 40}, stop(40, "finished")]
    write(rundir, *kept)
    assert Journal(rundir, resume_step=10).events == kept


def test_on_resume_the_run_is_not_finished_any_more(rundir):
    write(rundir, start(0), {"event": "finished", "step": 10})
    assert rundir.is_finished
    Journal(rundir, resume_step=10)
    assert not rundir.is_finished


@pytest.mark.parametrize("length", [1, 5, 30])
def test_a_last_line_that_a_kill_cut_off_is_ignored_and_removed(rundir, length):
    half = json.dumps(train(20)).encode()[:length]
    write(rundir, start(0), train(10), tail=half)
    assert read_journal(rundir.log) == [start(0), train(10)]
    with Journal(rundir, resume_step=20) as journal:
        journal.add("train", step=20)
    assert [event.get("step") for event in read_journal(rundir.log)] == [None, 10, 20]


def test_a_line_without_its_newline_is_a_half_line_even_when_it_is_valid_json(rundir):
    write(rundir, start(0), tail=b'{"event": "train", "step": 1}')
    assert read_journal(rundir.log) == [start(0)]


def test_lines_that_a_power_cut_filled_with_zeros_are_ignored(rundir):
    write(rundir, start(0), train(10), tail=b"\0" * 64 + b"\n")
    assert read_journal(rundir.log) == [start(0), train(10)]


def test_no_journal_is_an_empty_one(rundir):
    assert read_journal(rundir.log) == []


def test_one_stay_counts_from_its_first_to_its_last_step():
    assert spans([start(0), train(10), stop(40, "finished")]) == [(0, 40, "finished")]


def test_a_stay_that_was_killed_counts_up_to_where_the_next_one_began():
    assert spans([start(0), train(35), start(20), stop(40, "finished")]) == [(0, 20, "killed"), (20, 40, "finished")]


def test_a_stay_that_still_runs_counts_up_to_its_last_point():
    assert spans([start(0), train(10), train(20)]) == [(0, 20, "running")]
    assert spans([start(50)]) == [(50, 50, "running")]


def test_a_stay_whose_last_checkpoint_was_damaged_counts_up_to_where_the_next_one_began():
    events = [start(0), stop(30), start(20), stop(40, "finished")]
    assert spans(events) == [(0, 20, "SIGTERM"), (20, 40, "finished")]


def test_a_restart_further_back_than_the_last_stay_shortens_all_stays_before_it():
    # The second stay was killed before it saved anything, and then the newest checkpoint turned out to be damaged.
    events = [start(0), stop(100), start(100), start(50), stop(200, "finished")]
    assert spans(events) == [(0, 50, "SIGTERM"), (50, 50, "killed"), (50, 200, "finished")]


def test_the_ledger_names_machine_and_world_of_every_stay():
    row = ledger([start(0, job="slurm-7.0"), stop(5)])[0]
    assert {name: row[name] for name in ("job_id", "restart", "world_size", "host")} == {
        "job_id": "slurm-7.0",
        "restart": 0,
        "world_size": 2,
        "host": "h",
    }


@pytest.mark.parametrize("seed", range(50))
def test_after_any_history_the_stays_add_up_to_the_steps_without_gap_or_overlap(seed):
    dice, steps, reached, events = random.Random(seed), 1000, 0, []
    saved = [0]
    while reached < steps:
        # A stay begins at the newest checkpoint, or, where that is damaged, at the one before.
        begin = saved[-2] if len(saved) > 1 and dice.random() < 0.3 else saved[-1]
        saved = [step for step in saved if step <= begin][-2:]
        events.append(start(begin))
        reached = begin
        while reached < steps:
            reached = min(steps, reached + dice.randint(1, 200))
            events.append(train(reached))
            if dice.random() < 0.3:
                break  # killed
            saved.append(reached)
            if dice.random() < 0.3:
                events.append(stop(reached))
                break
        if reached == steps and saved[-1] == steps:
            events.append(stop(steps, "finished"))
        else:
            reached = 0
    rows = ledger(events)
    assert rows[0]["from_step"] == 0
    assert rows[-1]["to_step"] == steps
    assert all(row["from_step"] <= row["to_step"] for row in rows)
    assert all(one["to_step"] == two["from_step"] for one, two in itertools.pairwise(rows))


def test_what_the_end_of_a_run_wrote_is_dropped_when_the_end_comes_again(tmp_path):
    rundir = RunDir(tmp_path)
    test_row = {"event": "evaluate", "step": 10, "split": "test", "weights": "raw", "loss": 1.0}
    rows = [
        test_row | {"split": "validation"},
        {"event": "test_read", "step": 10},
        test_row,
        {"event": "finished", "step": 10},
    ]
    rundir.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Journal(rundir, resume_step=10) as journal:
        assert [event["event"] for event in journal.events] == ["evaluate", "test_read"]
        assert journal.events[0]["split"] == "validation"
