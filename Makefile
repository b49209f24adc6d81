# `make demo` and `make test` are all that is needed; each makes .venv first when it is missing.
PYTHON ?= python3
BIN := .venv/bin
RUNS := demo-runs
.DELETE_ON_ERROR:
.PHONY: install demo test test-gpu test-long test-slurm slurm-up slurm-down results lint

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("hpcvision needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@

# The virtual environment and nothing else, as on a login node.
install: .venv/.installed

# The main job, a small diffusion model with its scores, and a sweep, on drawn images: nothing is downloaded.
demo: .venv/.installed
	rm -rf $(RUNS)
	$(BIN)/hpcvision train cifar100_baby_mobilenet data.source=synthetic train.steps=300 train.global_batch_size=128 \
		optim.optimizer=adamw optim.learning_rate=5e-3 optim.schedule=one_cycle optim.warmup_steps=50 \
		cadence.log_every=10 cadence.evaluate_every=100 --runs $(RUNS)
	$(BIN)/hpcvision train demo_diffusion --runs $(RUNS)
	$(BIN)/hpcvision train demo_classifier --runs $(RUNS)
	$(BIN)/hpcvision evaluate $(RUNS)/demo_diffusion-* --extractor $(RUNS)/demo_classifier-* --images 200 \
		--weights ema --against test
	$(BIN)/hpcvision sweep demo --runs $(RUNS)
	$(BIN)/hpcvision results list $(RUNS)
	@echo
	@echo "The numbers are in results.h5 and sweep.h5, the pictures in training.png and samples.png:"
	@find $(RUNS) -maxdepth 2 \( -name results.h5 -o -name sweep.h5 -o -name '*.png' \) | sort | sed 's/^/  /'
	@echo "What the diffusion model draws: $$(ls $(RUNS)/demo_diffusion-*/samples.png)"
	@echo "Curves in a browser: $(BIN)/tensorboard --logdir $(RUNS)"
	@echo "All of it on one page, for a browser:"
	$(BIN)/hpcvision report $(RUNS)/cifar100_baby_mobilenet-* $(RUNS)/demo_diffusion-* $(RUNS)/demo-sweep \
		-o $(RUNS)/report.html

# One thread each: two files at a time use both cores, and the threads of both would wait for each other.
test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m 'not long and not slurm'

# On a machine with CUDA devices, which `make test` leaves alone.
test-gpu: .venv/.installed
	HPCVISION_REQUIRE=gpu $(BIN)/python -m pytest tests/gpu

# With those that take the test cluster where Slurm and root are there; without, they are skipped with a word.
test-long: .venv/.installed
	if [ "$$(id -u)" = 0 ] && command -v sbatch >/dev/null; then slurm/testcluster/start.sh; fi
	HPCVISION_REPEATS=25 $(BIN)/python -m pytest -m 'long or not long'

# A real Slurm on this machine that looks like two hosts; takes root, names the Debian packages that are missing.
slurm-up: .venv/.installed
	slurm/testcluster/start.sh

slurm-down:
	slurm/testcluster/stop.sh

# On the cluster of slurm-up.
test-slurm: .venv/.installed
	HPCVISION_REQUIRE=slurm $(BIN)/python -m pytest tests/slurm

# RESULTS.md, of the archives in results/.
results: .venv/.installed
	$(BIN)/python benchmarks/league.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
