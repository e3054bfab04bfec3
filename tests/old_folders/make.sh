#!/usr/bin/env bash
# Results folders as an earlier version left them, to be loaded, resumed, merged and reported by later ones.
#
# Written at commit 2c5fcb2f81424abea6b248973e550d03e222a569 with Python 3.11, jax 0.10.2, on two CPU devices; the scheme of
# draws was 2 there (schema 2: column `draws`, and `draws_schema` in runs/), and a table named no version of its
# columns. At another commit this would not write old folders.
#
# Every row is right, except where NAME begins with `wrong_`:
# one_step/         by moments: d, num_tasks, families, sizes of parities; and weight_decay as a number
# stepped/          alternating with a mixture of losses; joint with measure=contrastive; several steps of each
# references/       random_features without a probe, oracle with an svm, population with measure=recovery
# interrupted/      the first half of a grid that was killed: parts alone, and runs/ says it is running
# wrong_decay/      weight_decay=null,0.5 over num_tasks: the rows of 0.5 are those of null
# wrong_n_test/     n_test=100 beside 128: the rows of 100 are measured on 128 samples
# wrong_precision/  precision=float32,bfloat16 over num_tasks: the rows of bfloat16 are float32's of one num_tasks
set -euo pipefail
cd "$(dirname "$0")"
rm -rf one_step stepped references interrupted wrong_decay wrong_n_test wrong_precision

mtfl() {
    python -m mtfl_jax -m d=16 r=2 width=16 num_tasks=4 n1=128 n2=128 n_test=64 n_down=16,32 seed=0,1 "$@"
}

mtfl d=16,24 num_tasks=1,4 tasks=balanced,parity parity_size=any,all,2 hydra.sweep.dir=one_step
mtfl num_tasks=1,4 weight_decay=0.5,0.25 hydra.sweep.dir=one_step

mtfl algorithm=alternating steps=4 measure_at=log loss=mixture lr_a=0.01,0.1 hydra.sweep.dir=stepped
mtfl algorithm=joint steps=6 'measure_at=[2,6]' measure=contrastive optimizer=momentum hydra.sweep.dir=stepped

mtfl algorithm=random_features probe=none hydra.sweep.dir=references
mtfl algorithm=oracle probe=svm hydra.sweep.dir=references
mtfl algorithm=population measure=recovery hydra.sweep.dir=references

mtfl num_tasks=1,4,16 seed=0,1,2,3 sweep.part=1/2 hydra.sweep.dir=interrupted
rm interrupted/results.parquet

mtfl weight_decay=null,0.5 num_tasks=1,4 hydra.sweep.dir=wrong_decay
mtfl n_test=100,128 hydra.sweep.dir=wrong_n_test
mtfl precision=float32,bfloat16 num_tasks=1,64 hydra.sweep.dir=wrong_precision

rm -r */report
python - */runs/*.json <<'PY'
"""Nothing of the machine in runs/; the interrupted run as a kill leaves it."""
import json
import sys
from pathlib import Path

for path in map(Path, sys.argv[1:]):
    facts = json.loads(path.read_text())
    facts |= {"host": "host", "platform": "Linux", "pid": 1}
    if path.parts[0] == "interrupted":
        facts |= {"state": "running"}
    path.write_text(json.dumps(facts, indent=2) + "\n")
PY
