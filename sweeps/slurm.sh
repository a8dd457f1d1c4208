#!/bin/bash
# A sweep as a job array: each task trains one shard into a log of its own. From the repository root, for 8 shards:
#
#     mkdir -p logs && sbatch --array=1-8 sweeps/slurm.sh sweeps/induction.yaml 8
#
# Further options of train.py may follow the number. A task that was preempted or ran out of time goes on where it was
# when it is submitted again, alone or with others: --array=1,3 with the same file, number and options. As the shards
# finish:
#
#     uv run python -m src.runs export "logs/induction-*.db" results/induction.parquet
#
#SBATCH --job-name=polarization
#SBATCH --output=logs/slurm-%A_%a.out
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# For a GPU, add: #SBATCH --gres=gpu:1 (runs then train as stacks, by themselves)

set -eu
usage="usage: sbatch --array=1-N sweeps/slurm.sh SWEEP.yaml N [options of train.py]"
sweep=${1:?$usage}
shards=${2:?$usage}
shift 2
name=$(basename "$sweep" .yaml)-$SLURM_ARRAY_TASK_ID-of-$shards
exec uv run python train.py --sweep "$sweep" --shard "$SLURM_ARRAY_TASK_ID/$shards" \
    --log "logs/$name.db" --figures "logs/figures/$name" "$@"
