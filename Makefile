PYTHON ?= python3
PY := .venv/bin/python
DEMO := runs/demo
DATA := --dataset digits --mismatch 0.8
NET := $(DATA) --model resnet8 --precision fp32
SHORT := --batch_size 64 --optimizer adam --lr_init 3e-4 --warmup 2
VIEWS := --views 10 --resize_factor 0.54 --resize_fix
QUERY := --queries_per_class 30 --cycles 4
CLASSIFY := $(DATA) --cycles 4 --runs 3 --epochs 8
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: help setup demo reproduce test test-slow test-avx2 faults fuzz mutation qa lint
help:
	@echo "make demo       set up, then train, query and classify on the embedded digits (a few minutes)"
	@echo "make reproduce  set up, then run the paper's CIFAR-10 experiment, or continue it (hours on a GPU)"
	@echo "make test       set up, then run the tests on all cores, with coverage"
	@echo "make qa         slow and browser tests, the tests with AVX2 only, and the campaigns of docs/quality.md (hours)"
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
	$(PY) active_main.py $(NET) --shift_trans_type rotation $(VIEWS) $(QUERY) --k 50 --t 0.95 --feature_dtype float32 --load_path $(DEMO) --index_dir $(DEMO)/query/ccal
	$(PY) active_main.py $(NET) --strategy posterior $(QUERY) --feature_dtype float32 --load_path $(DEMO) --index_dir $(DEMO)/query/posterior
	$(PY) active_main.py $(DATA) --strategy random $(QUERY) --index_dir $(DEMO)/query/random
	$(PY) -c "import numpy; from datasets.digits import load_digits; images = load_digits('digits', None).train_images; numpy.save('$(DEMO)/pixels.npy', images.reshape(len(images), -1) / 255)"
	$(PY) active_main.py $(DATA) --strategy semantic --features $(DEMO)/pixels.npy $(QUERY) --index_dir $(DEMO)/query/pixels
	$(PY) -m train_classifier.main $(CLASSIFY) --index_dir $(DEMO)/query/random --out_path $(DEMO)/classifier
	$(PY) -m train_classifier.main $(CLASSIFY) --index_dir $(DEMO)/query/ccal --out_path $(DEMO)/classifier
	$(PY) -m evals.summary --index_dir $(DEMO)/query/ccal --random_dir $(DEMO)/query/random --beside $(DEMO)/query/posterior $(DEMO)/query/pixels --results $(DEMO)/classifier/results.csv --out_path $(DEMO)
	$(PY) -m evals.report $(DEMO)

reproduce: setup
	$(PY) reproduce.py --dataset cifar10 --mismatch 0.8 --out runs/reproduce

test: .venv/requirements-dev.installed
	$(PYTEST) --cov --cov-report=term --cov-fail-under=90 $(PYTEST_ARGS)

test-slow: .venv/requirements-dev.installed
	$(PYTEST) --slow $(PYTEST_ARGS)

test-avx2: .venv/requirements-dev.installed
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(PYTEST_ARGS)

faults: .venv/requirements-dev.installed
	$(PY) -m tests.faults --kills 50

fuzz: .venv/requirements-dev.installed
	$(PY) -m tests.fuzz --minutes 10

mutation: .venv/requirements-dev.installed
	$(PY) -m pip install --disable-pip-version-check -q 'mutmut>=3.8,<4'
	PYTHON=$(PY) sh tests/mutation.sh

qa: test-slow test-avx2 faults fuzz mutation

lint: .venv/requirements-dev.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
