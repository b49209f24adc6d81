#!/bin/bash
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --job-name=addnist_cnn-0123456789ab
#SBATCH --mem=28672M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --partition=ug-gpu-small
#SBATCH --qos=short
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

export HPCVISION_DATA='/shared/my data'
source /etc/profile
module load cuda/11.8
export OMP_NUM_THREADS=4 SRUN_CPUS_PER_TASK=4
me="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
# The run stops itself in time for its end; older Slurm does not tell the end to the job, so ask.
if [ -z "$SLURM_JOB_END_TIME" ] && end=$(squeue -h -j "$me" -o %e) && end=$(date -d "$end" +%s)
then export SLURM_JOB_END_TIME="$end"
fi
# Rank 0 makes this file when the run has stopped before its last step.
export HPCVISION_AGAIN="$PWD/.hpcvision-again-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
# For hpcvision logs and status.
export HPCVISION_LOG="$(readlink "/proc/$$/fd/1")"
unset SUBMITIT_EXECUTOR  # of a job that has submitted this one
echo "hpcvision: job $me, start ${SLURM_RESTART_COUNT:-0}"

srun --cpus-per-task=4 --kill-on-bad-exit=1 --wait=600 python -m hpcvision train addnist_cnn --runs /shared/runs

code=$?
# 143: ended by SIGTERM before it could listen, as a preempted job may be; but not for ever.
if [ -e "$HPCVISION_AGAIN" ] || { [ "$code" = 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; }
then rm -f "$HPCVISION_AGAIN"
    for try in 1 2 3 4 5 6 7 8 9 10  # while Slurm's controller gives no answer
    do state=$(squeue -h -j "$me" -o %T) && [ "$state" != RUNNING ] && break  # cancelled
        scontrol requeue "$me" && break
        sleep 5
    done
fi
exit $code
