#!/bin/sh
# Mutation testing of one module: sh results/mutation/run.sh MODULE TEST_FILE ...
# Needs mutmut 3 beside the requirements of the tests; PYTHON names the interpreter. Works in a clone, and leaves it.
set -e
module=$1
shift
tests=$(printf '"%s", ' "$@")
place=$(mktemp -d)
git clone -q . "$place"
cd "$place"
cat >> pyproject.toml <<CONFIG

[tool.mutmut]
source_paths = ["datasets/", "training/", "evals/", "common/"]
only_mutate = ["$module"]
also_copy = ["utils.py", "contrast_main.py", "active_main.py", "reproduce.py", "models", "train_classifier", "benchmarks", "tests"]
pytest_add_cli_args_test_selection = [$tests]
pytest_add_cli_args = ["-x", "-q", "-p", "no:cacheprovider", "-k", "not docstring"]
CONFIG
OMP_NUM_THREADS=1 nice -n 10 "${PYTHON:-python}" -m mutmut run --max-children 1
"${PYTHON:-python}" -m mutmut results
echo "in $place: python -m mutmut show NAME"
