#!/bin/bash
# One recipe on the GPUs of one or several Slurm nodes; it saves when it is preempted, is queued again, and resumes.
# Edit: the lines of #SBATCH, RECIPE, RUN (its run.output, if it has one), and how the environment is activated. Submit it with: sbatch slurm.sh
#SBATCH --job-name=peftlab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -u
RECIPE=${RECIPE:-recipe.yaml}
# For FSDP 2: export ACCELERATE_USE_FSDP=true FSDP_VERSION=2
# source /path/to/venv/bin/activate

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
run=${RUN:-runs/$(basename "$RECIPE" .yaml)}
resume=""
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$run/result.json" ] && resume="--resume"

# Slurm sends SIGTERM to the step five minutes before the end, and at a preemption: each process finishes its step,
# saves and ends with 143. --signal=USR1@300 does the same, with 138. The run needs run.save_every for what a crash
# would lose.
# Without it a launcher that is started again is not told where processes meet (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m peftlab train "$RECIPE" $resume
code=$?

# A run that a signal ended is queued again; one that failed by itself is not.
[ "$code" -eq 0 ] || ! grep -q '"status": "interrupted"' "$run/result.json" ||
    scontrol requeue "$SLURM_JOB_ID"
exit "$code"
