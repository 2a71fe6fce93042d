PYTHON ?= python3
PY := .venv/bin/python
DEMO := runs/demo
DATA := --dataset digits --mismatch 0.8
NET := $(DATA) --model resnet8 --precision fp32
SHORT := --batch_size 64 --optimizer adam --lr_init 3e-4 --warmup 2
VIEWS := --ood_samples 10 --resize_factor 0.54 --resize_fix

.PHONY: help setup demo reproduce test test-slow lint
help:
	@echo "make demo       set up, then train, query and classify on the embedded digits (a few minutes)"
	@echo "make reproduce  set up, then run the paper's CIFAR-10 experiment, or continue it (hours on a GPU)"
	@echo "make test       set up, then run the tests"
	@echo "make test-slow  the same with the long tests"
	@echo "make lint       check the style"

setup: .venv/requirements.installed

.venv/requirements.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

.venv/requirements-dev.installed: requirements-dev.txt .venv/requirements.installed
	$(PY) -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

demo: setup
	rm -rf $(DEMO)
	$(PY) contrast_main.py $(NET) $(SHORT) --mode semantic --epochs 24 --logdir $(DEMO)/semantic
	$(PY) contrast_main.py $(NET) $(SHORT) --mode distinctive --shift_trans_type rotation --epochs 10 --logdir $(DEMO)/distinctive
	$(PY) active_main.py $(NET) --shift_trans_type rotation $(VIEWS) --load_path $(DEMO) --target 30 --split 4 --k 50 --t 0.95 --feature_cache $(DEMO)/features --index_dir $(DEMO)/query/ccal
	$(PY) active_main.py $(DATA) --strategy random --target 30 --split 4 --index_dir $(DEMO)/query/random
	$(PY) -m train_classifier.main $(DATA) --split 4 --runs 3 --epochs 8 --index_dir $(DEMO)/query/ccal --out_path $(DEMO)/classifier
	$(PY) -m evals.summary --index_dir $(DEMO)/query/ccal --random_dir $(DEMO)/query/random --results $(DEMO)/classifier/results.csv --out_path $(DEMO)
	$(PY) -m evals.report $(DEMO)

reproduce: setup
	$(PY) reproduce.py --dataset cifar10 --mismatch 0.8 --out runs/reproduce

test: .venv/requirements-dev.installed
	$(PY) -m pytest --cov --cov-report=term $(PYTEST_ARGS)

test-slow: .venv/requirements-dev.installed
	$(PY) -m pytest --slow --durations=10 $(PYTEST_ARGS)

lint: .venv/requirements-dev.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
