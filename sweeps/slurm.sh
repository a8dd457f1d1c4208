#!/bin/bash
# A sweep as a job array: each task trains one shard into a log of its own. From the repository root:
#
#     mkdir -p logs && sbatch --array=1-8 sweeps/slurm.sh sweeps/induction.yaml
#
# Further options of train.py may follow the file. A task that was preempted or ran out of time goes on where it was
# when the same line is submitted again; give it the same array and options, so that shards are cut the same way. As
# the shards finish:
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
sweep=$1
shift
name=$(basename "$sweep" .yaml)-$SLURM_ARRAY_TASK_ID
exec uv run python train.py --sweep "$sweep" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --log "logs/$name.db" --figures "logs/figures/$name" "$@"
