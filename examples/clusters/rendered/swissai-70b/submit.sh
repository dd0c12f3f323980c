#!/usr/bin/env bash
# Submit the job, and keep its id: bash submit.sh
set -euo pipefail
cd /iopsstor/scratch/cscs/you/runs/llama3-70b/launch
mkdir -p /iopsstor/scratch/cscs/you/runs/llama3-70b/slurm
job=$(sbatch --parsable job.sbatch)
job=${job%%;*}
echo "$job" >> ./jobs
echo "submitted job $job"
