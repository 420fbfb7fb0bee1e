#!/usr/bin/env bash
# Tests, steps and fits on this machine's GPU, in under 8 minutes: benchmarks/gpu.sh --help
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$@"
