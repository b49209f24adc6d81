"""Made the archives of format 1 beside it, once, on 2026-11-23; they are never made again: python make_format1.py."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest

from hpcvision.metrics.accuracy import wilson_interval
from hpcvision.models.counting import parameters_of
from hpcvision.results import load
from hpcvision.results.record import Score
from hpcvision.results.sweeps import Trial, write_sweep
from hpcvision.results.writer import add_scores, write_results

HERE = Path(__file__).parent
config = conftest.config.__wrapped__()
make = conftest.make_record.__wrapped__(config)
config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 40})})


def record(seed: int):
    own = config.model_copy(update={"seed": seed})
    made = make(config=own.model_dump(mode="json"), fingerprint=own.fingerprint, parameters=parameters_of(own.model))
    made.confusion[np.arange(20), np.arange(20)] += 200
    right = made.confusion.trace() / made.confusion.sum()
    low, high = wilson_interval(made.confusion.trace(), made.confusion.sum())
    scores = {"accuracy": right, "accuracy_low": low, "accuracy_high": high, "loss": made.evaluate[-1]["loss"]}
    made.evaluate[-1]["accuracy"] = right
    return dataclasses.replace(made, scores=made.scores | scores)


write_results(HERE / "format1_run.h5", record(0))
passport = {"extractor": "features", "sampler": "ddim", "steps": 5, "guidance_scale": 1.0, "weights": "ema"}
drawn = Score({"frechet": [2.0, 3.0], "seconds_per_image": [0.1, 0.2]}, passport | {"reference": "test"})
add_scores(HERE / "format1_run.h5", {"features_test_ema_ddim_5": drawn}, reads_test=True)
trials = []
for seed in (1, 2):
    write_results(HERE / f"{seed}.h5", record(seed))
    run = load(HERE / f"{seed}.h5")
    last = run.evaluate[(run.evaluate["split"] == "validation") & (run.evaluate["weights"] == "raw")].iloc[-1]
    trials.append(
        Trial(
            label=f"trial {seed}",
            fingerprint=run.fingerprint,
            status="finished",
            parameters=run.parameters,
            steps=40,
            seed=seed,
            role="trial",
            objective=float(last["accuracy"]),
            reason="",
            overrides={"seed": seed, "optim.learning_rate": 0.1 * seed},
            archive=run.path,
        )
    )
write_sweep(
    HERE / "format1_sweep.h5",
    name="stored",
    base=config.model_dump(mode="json"),
    fingerprint=config.fingerprint,
    caps={"parameters": 100_000, "steps": 10_000},
    provenance={},
    objective="accuracy",
    larger_is_better=True,
    trials=trials,
    rungs=[{"fingerprint": trials[0].fingerprint, "step": 20, "objective": 0.5, "decision": "continue"}],
    expected_best=[0.6, 0.7],
    facts={"winner": trials[0].fingerprint},
)
for seed in (1, 2):
    (HERE / f"{seed}.h5").unlink()
run = load(HERE / "format1_run.h5")
known = {
    "digest": run.digest,
    "settings": run.settings,
    "loss": run.train["loss"].tolist(),
    "sums": {name: float(np.sum(values)) for name, values in run.weights["ema"].items()},
    "pixels": int(run.samples["random"][3].sum()),
    "frechet": 2.5,
    "trials": [trial.fingerprint for trial in trials],
    "objectives": [trial.objective for trial in trials],
}
(HERE / "format1.json").write_text(json.dumps(known, indent=1) + "\n")
