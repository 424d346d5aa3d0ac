#!/usr/bin/env bash
# For whoever has a GPU for some minutes: checks, speed, then the shipped weights.
#
#   benchmarks/gpu.sh MINUTES [volumes.zip] [FOLDER]
#
# Needs the clone, PyTorch and the packed training data (data/pack.py). A minute or two go to the
# tests on CUDA and to the benchmark, the rest to training as docs/RECIPE.md has it. Results and logs
# are left in FOLDER (default: runs/gpu).
set -uo pipefail
minutes=${1:?how many minutes}
data=${2:-volumes.zip}
out=${3:-runs/gpu}
cd "$(dirname "$0")/.."
mkdir -p "$out"
begun=$(date +%s)
export PYTHONUNBUFFERED=1
python3 -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' | tee "$out/gpu.txt"
timeout 90 python3 -m pytest -q -p no:cacheprovider tests/test_cuda.py 2>&1 | tee "$out/tests.txt" | tail -15
timeout 60 python3 benchmarks/gpu.py "$data" 2>&1 | tee "$out/speed.txt"

left=$(python3 -c "import time; print(max(0.3, $minutes - (time.time() - $begun) / 60 - 0.5))")
echo "training for $left minutes"
python3 train.py --data "$data" --cache "$out/cache" --run "$out/brain" --workers 16 \
    --degradation wide --scale 4 4 4 4 4 3 3 2 2 2x1 3x1 4x1 4x1 5x1 6x1 --minutes "$left" \
    --error-head 0 2>&1 | tee "$out/train.txt" | tail -40
rm -rf "$out/cache"
