#!/usr/bin/env bash
# One machine, all of its GPUs (or, without any, two processes on its CPU).
set -euo pipefail
cd "$(dirname "$0")"
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
exec torchrun --standalone --nproc-per-node "$((gpus > 0 ? gpus : 2))" byte_transformer.py --fsdp "$@"
