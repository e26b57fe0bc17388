#!/usr/bin/env bash
#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --time=12:00:00 --requeue
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null # in the home folder, which the other nodes read

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_ADDRESS=${nodes%%$'\n'*}:6379

wait_for_ray() { timeout 300 bash -c 'until ray health-check --address "$RAY_ADDRESS"; do sleep 5; done'; }
export -f wait_for_ray

# start Ray on all nodes, the first node first; it ends with the job
srun --overlap bash -c '
  if [ "$SLURM_PROCID" = 0 ]; then
    exec ray start --head --port="${RAY_ADDRESS##*:}" --include-dashboard=false --block
  fi
  wait_for_ray
  exec ray start --address="$RAY_ADDRESS" --block' &
wait_for_ray

# each worker starts as soon as its node has joined
workers=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))
handbook generate my.yaml --out runs/samples --executor ray --set executor.workers="$workers"
