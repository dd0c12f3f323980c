"""Files that start a run, or another command, on a cluster: rendered from a run's YAML file and a cluster's.

    cluster.yaml --read.py--> Cluster (cluster.py, with the fields of fields.py)
    run.yaml + Cluster --job.py--> Job: names, folders, ranks, and what runs (`mconv train`, or commands)
    Job --targets.py--> Rendered: the text of each file, what submits them, and notes
      slurm.py       job.sbatch, submit.sh, node.sh, rank.sh, run.yaml
      nodes.py       start.sh (torchrun, docker, singularity, apptainer, enroot), node.sh, rank.sh, run.yaml
      kubernetes.py  job.yaml (ConfigMap and PyTorchJob, or batch Jobs)
    Job --images.py--> Containerfile, image.sh

`job.sbatch` runs once for a job, `start.sh` once for a node. In the container, if there is one, they start `node.sh
ENDPOINT ID DEBUG`, which is torch's agent there. `rank.sh DEBUG` is one rank, where something is set for each rank alone.

Scripts are jinja templates (*.jinja), in which every value is quoted for the shell (quoting.py); an unset one stops the
rendering. YAML is dumped from objects. cli/launch.py calls the cluster's clients, nothing here.
"""
