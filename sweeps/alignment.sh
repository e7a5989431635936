#!/usr/bin/env bash
# Question: does the sharer have to read the text in its own tokens?
# Trains the same fuser twice, once for each alignment; compare val/accuracy/c2c and
# val/accuracy/wrong_question of the two runs in `make ui`. For a real pair, name its config instead.
set -euo pipefail
config=${1:-conf/base.yaml}
now=$(date +%F_%H-%M-%S)
for alignment in spans published; do
    "${PYTHON:-.venv/bin/python}" -m c2c_lightning fit --config "$config" --model.alignment "$alignment" \
        --trainer.default_root_dir "runs/$now-alignment-$alignment"
done
