#!/bin/sh
# Mutation tests with mutmut 3, in clones of the last commit: sh tests/mutation.sh [MODULE ...]
# Each module is tested by tests/<its path>*.py. PYTHON names the interpreter. Ends with 1 where less than 92 % are killed.
set -e
python=$(command -v "${PYTHON:-python}" | xargs realpath -s)
[ $# -gt 0 ] || set -- datasets/split.py training/losses.py evals/scores.py evals/query.py common/checkpoint.py
counts=$(mktemp)
for module in "$@"; do
    tests=$(ls "tests/$(dirname "$module")/test_$(basename "$module" .py)"*.py)
    clone=$(mktemp -d)
    git clone -q . "$clone"
    cat >> "$clone/pyproject.toml" <<CONFIG

[tool.mutmut]
source_paths = ["datasets/", "training/", "evals/", "common/"]
only_mutate = ["$module"]
also_copy = ["utils.py", "contrast_main.py", "active_main.py", "reproduce.py", "models", "train_classifier", "benchmarks", "tests", "docs"]
pytest_add_cli_args_test_selection = [$(printf '"%s", ' $tests)]
pytest_add_cli_args = ["-x", "-q", "-p", "no:cacheprovider", "-k", "not docstring"]
CONFIG
    (
        cd "$clone"
        OMP_NUM_THREADS=1 nice "$python" -m mutmut run --max-children 1 > mutmut.log || tail -n 20 mutmut.log
        "$python" -m mutmut results
        "$python" -m mutmut export-cicd-stats > mutmut.log
    )
    "$python" - "$module" "$clone/mutants/mutmut-cicd-stats.json" >> "$counts" <<'COUNT'
import json, sys
found = json.load(open(sys.argv[2]))
print(sys.argv[1], found["total"], found["killed"] + found["timeout"])
COUNT
    echo "survivors of $module: cd $clone && $python -m mutmut show NAME"
done
awk '{ printf "| `%s` | %d | %d | %.1f %% |\n", $1, $2, $3, 100 * $3 / $2; all += $2; killed += $3 }
     END { printf "| all | %d | %d | %.1f %% |\n", all, killed, 100 * killed / all; exit killed < 0.92 * all }' "$counts"
