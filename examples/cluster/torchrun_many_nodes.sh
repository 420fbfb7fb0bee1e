#!/usr/bin/env bash
# Several machines: start this on each of them, with the same NODES and HEAD.
#   NODES  how many machines
#   HEAD   name or address of one of them that all can reach; it need not be the first to start
#   GPUS   per machine (8 if not set)
#   OUT    for checkpoints: on storage that all machines see
# A machine that fails takes the others down; torchrun starts all again, up to three times, and the script goes on from
# the last complete checkpoint.
set -euo pipefail
cd "$(dirname "$0")"
exec torchrun --nnodes "${NODES:?}" --nproc-per-node "${GPUS:-8}" --max-restarts 3 \
  --rdzv-id "${RUN:-torchreg}" --rdzv-backend c10d --rdzv-endpoint "${HEAD:?}:${PORT:-29400}" \
  byte_transformer.py --size large --fsdp --out "${OUT:?}" "$@"
