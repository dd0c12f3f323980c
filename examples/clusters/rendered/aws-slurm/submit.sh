#!/usr/bin/env bash
# Submit the job, and keep its id: bash submit.sh
set -euo pipefail
cd /fsx/runs/gpt3-7.5b/launch
mkdir -p /fsx/runs/gpt3-7.5b/slurm
job=$(sbatch --parsable job.sbatch)
job=${job%%;*}
echo "$job" >> ./jobs
echo "submitted job $job"
