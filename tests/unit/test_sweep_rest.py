"""Shares of a sweep, the scheduler's memory, who holds a sweep's folder, and the table in a narrow terminal."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from hpcvision.config.catalogue import load_job
from hpcvision.errors import FolderInUse, UserError
from hpcvision.launch import queue
from hpcvision.launch.lock import only_one
from hpcvision.report.tables import keep_cells_whole, table
from hpcvision.rundir import RunDir, read_journal
from hpcvision.sweep import driver, tuning
from hpcvision.sweep.driver import Share, check_folder, check_share, held, run_sweep, say_what
from hpcvision.sweep.plan import check_objective, make_plan
from hpcvision.sweep.rungs import RecordedAsha
from hpcvision.sweep.stopping import Stopping
from hpcvision.sweep.words import Asha


def sweep_file(folder: Path, text: str) -> str:
    """Path of a sweep's file."""
    path = folder / "search.py"
    path.write_text(f"from ray import tune\n{text}")
    return str(path)


def test_a_share_is_read_from_its_number_and_how_many_there_are():
    assert Share.read("0/8") == Share(0, 8)
    assert Share.read("7/8") == Share(7, 8)


@pytest.mark.parametrize("words", ["8/8", "1", "a/b", "-1/8", "1/0", ""])
def test_a_share_that_does_not_exist_is_refused(words):
    with pytest.raises(UserError, match=r"--share='.*': write for example 0/8"):
        Share.read(words)


def test_more_shares_than_trials_are_refused(tmp_path):
    text = 'BASE = "addnist_cnn"\nSPACE = {"seed": tune.grid_search([0, 1, 2])}\nSEEDS = 1\n'
    plan = make_plan(sweep_file(tmp_path, text), {})
    check_share(plan, Share(2, 3))
    with pytest.raises(UserError, match="4 tasks for 3 trials"):
        check_share(plan, Share(0, 4))


def test_a_search_that_learns_from_every_trial_cannot_be_shared_out(tmp_path):
    text = 'BASE = "addnist_cnn"\nSPACE = {"model.width": tune.uniform(0.1, 1.0)}\nSEARCH = "optuna"\nTRIALS = 9\n'
    with pytest.raises(UserError, match="cannot be shared out; use --nodes"):
        check_share(make_plan(sweep_file(tmp_path, text), {}), Share(0, 2))


def test_a_space_with_fewer_points_than_trials_is_told_of(tmp_path):
    text = 'BASE = "demo_classifier"\nSPACE = {"model.width": tune.choice([0.1, 0.2, 9.0])}\nTRIALS = 5\n'
    plan, said = make_plan(sweep_file(tmp_path, text), {}), io.StringIO()
    say_what(plan, Console(file=said, width=200))
    assert len(plan.trials) == 2
    assert "2 trials of demo_classifier" in said.getvalue()
    assert "5 trials were asked for; the space has no more than these below the caps" in said.getvalue()


def test_a_distance_without_features_for_its_images_is_refused_before_anything_starts(tmp_path):
    text = 'BASE = "demo_diffusion"\nSPACE = {"seed": tune.grid_search([0])}\nSEEDS = 1\nOBJECTIVE = "frechet"\n'
    with pytest.raises(UserError, match=r"on data\.source=cifar100 only; demo_diffusion has synthetic, choose loss"):
        check_objective(make_plan(sweep_file(tmp_path, text), {}))


def test_one_driver_or_several_shares_hold_a_sweeps_folder(tmp_path):
    one, another, whole = held(tmp_path, Share(0, 2)), held(tmp_path, Share(1, 2)), held(tmp_path, None)
    with one, another, pytest.raises(FolderInUse, match="another process is training in"), whole:
        pass
    with held(tmp_path, None), pytest.raises(FolderInUse), held(tmp_path, Share(0, 2)):
        pass
    with held(tmp_path, Share(0, 2)), pytest.raises(FolderInUse), held(tmp_path, Share(0, 2)):
        pass
    with held(tmp_path, None), pytest.raises(FolderInUse), only_one(RunDir(tmp_path)):
        pass


def tell(scheduler: RecordedAsha, trial: int, step: int, objective: float) -> str:
    """The scheduler's decision about a trial of which it has not heard before."""
    running = SimpleNamespace(trial_id=f"{id(scheduler)}-{trial}", config={"trial": trial, "folder": f"runs/{trial}"})
    scheduler.on_trial_add(None, running)
    return scheduler.on_trial_result(None, running, {"steps": step, "objective": objective})


def halving(path: Path) -> RecordedAsha:
    return RecordedAsha(path, Asha(first_rung=10, reduction_factor=2), metric="objective", mode="max", steps=100)


def test_two_schedulers_that_share_a_file_decide_as_one_that_hears_of_all(tmp_path):
    objectives = [0.5, 0.1, 0.9, 0.3, 0.6, 0.55, 0.2, 0.95]
    alone = halving(tmp_path / "alone.jsonl")
    expected = [tell(alone, trial, 10, value) for trial, value in enumerate(objectives)]
    assert {"STOP", "CONTINUE"} == set(expected)
    shares = [halving(tmp_path / "shared.jsonl"), halving(tmp_path / "shared.jsonl")]
    assert [tell(shares[trial % 2], trial, 10, value) for trial, value in enumerate(objectives)] == expected
    records = read_journal(tmp_path / "shared.jsonl")
    assert [record["decision"].upper() for record in records] == expected
    assert [record["trial"] for record in records] == list(range(8))
    # Deaf to each other they would not: the test sees the difference.
    deaf = [halving(tmp_path / "first.jsonl"), halving(tmp_path / "second.jsonl")]
    assert [tell(deaf[trial % 2], trial, 10, value) for trial, value in enumerate(objectives)] != expected


def test_after_a_restart_no_score_of_a_later_step_counts_at_a_rung_from_before_it(tmp_path):
    path = tmp_path / "rungs.jsonl"
    first = halving(path)
    for trial, value in enumerate([0.1, 0.2, 0.3, 0.4]):
        tell(first, trial, 10, value)
    again = halving(path)
    # Trials 2 and 3 go on to their end, with scores that they did not have at step 10.
    for trial in (2, 3):
        running = SimpleNamespace(trial_id=f"again-{trial}", config={"trial": trial, "folder": f"runs/{trial}"})
        again.on_trial_add(None, running)
        for step in (20, 40, 80, 100):
            result = {"steps": step, "objective": 0.9}
            again.on_trial_result(None, running, result)
        again.on_trial_complete(None, running, result)
    # The median of what was reported at step 10 is 0.25.
    assert tell(again, 4, 10, 0.32) == "CONTINUE"


def test_more_variants_are_the_same_sweep_unless_they_are_compared_on_their_way(tmp_path):
    two = 'BASE = "addnist_cnn"\nVARIANTS = {"as it is": {}, "narrow": {"model.width": 0.5}}\n'
    three = two.replace("}}", '}, "wide": {"model.width": 1.005}}')
    asha = "from hpcvision.sweep import asha\nSCHEDULER = asha(first_rung=500)\n"

    def identity(text):
        return make_plan(sweep_file(tmp_path, text), {}).identity()

    assert identity(two) == identity(three)
    assert identity(two + asha) != identity(three + asha)


def test_a_sweep_never_shrinks_its_archive(tmp_path, monkeypatch):
    text = 'BASE = "addnist_cnn"\nSPACE = {"optim.learning_rate": tune.loguniform(1e-4, 1e-2)}\nTRIALS = 3\n'
    path = sweep_file(tmp_path, text)
    monkeypatch.setattr(driver, "trials_in", lambda path: 4 if path == tmp_path / "sweep.h5" else 0)
    monkeypatch.setattr(driver, "sweep_is_finished", lambda _: True)
    with pytest.raises(UserError, match=r"has 4 trials, and sweep.h5 would have 3; give --trials 4 or more"):
        check_folder(make_plan(path, {}), tmp_path, resume=False)
    check_folder(make_plan(path, {}, trials=4), tmp_path, resume=False)


def test_the_order_of_a_space_belongs_to_its_sweep_for_values_are_drawn_in_it(tmp_path):
    width, rate = '"model.width": tune.uniform(0.1, 0.9)', '"optim.learning_rate": tune.loguniform(1e-4, 1e-2)'
    plans = [
        make_plan(sweep_file(tmp_path, f'BASE = "addnist_cnn"\nSPACE = {{{one}, {other}}}\n'), {})
        for one, other in ((width, rate), (rate, width))
    ]
    check_folder(plans[0], tmp_path, resume=False)
    with pytest.raises(UserError, match=r"differs in space\); put the sweep's file back"):
        check_folder(plans[1], tmp_path, resume=True)
    check_folder(plans[0], tmp_path, resume=True)


def test_a_setting_that_the_space_turns_is_not_taken_from_the_command_line(tmp_path):
    text = 'BASE = "addnist_cnn"\nSPACE = {"optim.learning_rate": tune.loguniform(1e-4, 1e-2)}\n'
    with pytest.raises(UserError, match=r"optim\.learning_rate is turned by SPACE"):
        make_plan(sweep_file(tmp_path, text), {"optim.learning_rate": 0.1})


def test_what_is_left_of_a_sweep_counts_the_steps_of_trials_that_run(tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 100.0, 400.0])
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now[0])
    now = [next(clock)]
    config = load_job("addnist_cnn")  # 10,000 steps
    rows = [SimpleNamespace(label=f"t{n}", rundir=RunDir(tmp_path / str(n)), config=config) for n in range(2)]
    feed = SimpleNamespace(total=4)
    sweep = SimpleNamespace(plan=SimpleNamespace(name="s", objective="loss"))
    stopping = SimpleNamespace(look=lambda: None)
    narrator = tuning.Narrator(sweep, feed, stopping, several_nodes=False, last_try=False)
    for step in (1_000, 2_500):
        for row in rows:
            row.rundir.folder.mkdir(exist_ok=True)
            row.rundir.log.write_text(json.dumps({"event": "train", "step": step}) + "\n")
        now[0] = next(clock)
        narrator.look(rows)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "0/4  2 running, 0 stopped, 0 failed  (t0 at step 1,000, t1 at step 1,000)"
    # 0.3 trials in 300 s; 3.5 are left.
    assert "0 failed; about 58:20 left  (t0 at step 2,500" in second


def test_a_table_in_a_narrow_terminal_folds_its_headings_and_no_cell():
    cells = ["trial 17", "10,000", "98,740", "0.00196", "0.998"]
    made = table("trial", "steps", "parameters", "final learning rate fraction", "beta")
    made.add_row(*cells)
    console = Console(width=sum(map(len, cells)) + 2 * 4, record=True, file=io.StringIO())
    keep_cells_whole(made, console.width)
    console.print(made)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["trial", "17", *cells[1:]] in lines


def test_a_sweep_asks_its_trials_to_stop_before_the_end_of_its_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 600))
    with Stopping(tmp_path / "stop") as stopping:
        stopping.look()
        assert not stopping.asked
        assert 530 < stopping.deadline - time.time() < 545
        stopping.deadline = time.time()
        stopping.look()
        assert stopping.asked
        assert (tmp_path / "stop").exists()
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    with Stopping(tmp_path / "stop") as stopping:
        stopping.look()
        assert not stopping.asked


@pytest.mark.parametrize(
    "said", ["Submitted batch job 123", "site: 2 of 4 hours left\nSubmitted batch job 123 on cluster c1", "123"]
)
def test_the_id_of_a_job_is_found_in_what_a_site_says(said, tmp_path):
    command = tmp_path / "sbatch"
    command.write_text(f"#!/bin/sh\ncat > script\necho '{said}'\n")
    command.chmod(0o755)
    assert queue.submit("#!/bin/sh\n", f"env -C {tmp_path} {command}") == "123"
    assert (tmp_path / "script").read_text() == "#!/bin/sh\n"


def test_a_share_over_several_nodes_is_refused(tmp_path, monkeypatch):
    for name, value in {"STEP_ID": 0, "PROCID": 0, "STEP_NUM_TASKS": 2, "LOCALID": 0, "STEP_NUM_NODES": 2}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(UserError, match="a share has one node, Slurm started 2 tasks"):
        run_sweep("demo", {}, tmp_path, share=Share(0, 2))
