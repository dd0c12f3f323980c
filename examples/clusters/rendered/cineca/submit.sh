#!/usr/bin/env bash
# Submit the job, and keep its id: bash submit.sh
set -euo pipefail
cd /leonardo_scratch/large/userexternal/you/slm_mt/checkpoints/launch
mkdir -p /leonardo_scratch/large/userexternal/you/slm_mt
job=$(sbatch --parsable job.sbatch)
job=${job%%;*}
echo "$job" >> ./jobs
echo "submitted job $job"
