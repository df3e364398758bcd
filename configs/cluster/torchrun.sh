#!/usr/bin/env bash
# Train on several machines that can reach each other, without a scheduler. Run it on every machine:
#
#   NODES=4 MAIN=10.0.0.1 bash configs/cluster/torchrun.sh --config configs/experiment/coco256.yaml --name coco
#
# All machines need the same code, data and settings, and runs/ on a shared disk. On one machine no launcher is needed:
# imagen-pl fit ... --trainer.devices 8.
set -euo pipefail

NODES=${NODES:?how many machines}
MAIN=${MAIN:?name or address of the machine that the others meet at}
GPUS=${GPUS:-8}          # on each machine
PORT=${PORT:-29500}      # free on the main machine

exec torchrun \
    --nnodes "$NODES" --nproc_per_node "$GPUS" \
    --rdzv_backend c10d --rdzv_endpoint "$MAIN:$PORT" \
    -m imagen_pl.cli.main fit "$@" \
    --trainer.num_nodes "$NODES" --trainer.devices "$GPUS"
