#!/bin/bash
# A job of 4 nodes with 8 GPUs each: sbatch slurm.sh --text /shared/book.txt --output /shared/run
# One process a node has all of its GPUs. Slurm sends SIGTERM two minutes before the time is up; the run is saved, and the job
# queued again, to go on where it was.
#SBATCH --job-name=keras-tfm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
export KERAS_BACKEND=jax
srun python train.py "$@"
status=$?
if [ "$status" -eq 143 ]; then # saved, because it was told to end
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
