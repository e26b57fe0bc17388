#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0.
# `accelerate launch` with "distributed_type: MULTI_CPU" and "num_processes: 2" starts one process. The same file
# with MULTI_GPU and "use_cpu: true" starts two, on a machine without a GPU.
# One would guess that MULTI_CPU is the type for several processes on CPUs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 accelerate==1.15.0
cat > "$work/count.py" <<'PYTHON'
from accelerate import PartialState

state = PartialState(cpu=True)
if state.is_main_process:
    print("processes:", state.num_processes)
PYTHON
count() {
    cat > "$work/$1.yaml" <<YAML
compute_environment: LOCAL_MACHINE
distributed_type: $1
use_cpu: true
num_machines: 1
machine_rank: 0
num_processes: 2
mixed_precision: "no"
YAML
    OMP_NUM_THREADS=1 "$work/env/bin/accelerate" launch --config_file "$work/$1.yaml" "$work/count.py" 2>"$work/said" |
        sed -n 's/^processes: //p'
}
cpu=$(count MULTI_CPU)
gpu=$(count MULTI_GPU)
echo "MULTI_CPU: $cpu process(es); MULTI_GPU with use_cpu: $gpu"
[ "$cpu" = 1 ] && [ "$gpu" = 2 ] || { echo "changed"; exit 1; }
