"""Run mergekit on recipes, in a process of its own: `python mergekit_peer.py CASE...`, each a folder with merge.yaml.

Writes what mergekit makes into CASE/out, and the random masks that it drew, by tensor, into CASE/masks.pt.
"""

import os
import sys
from pathlib import Path

import torch
import yaml


def main(cases: list[str]) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

    drawn: dict[str, list[torch.Tensor]] = {}
    at = ""
    bernoulli, execute = torch.bernoulli, ExecuteMergeMethodTask.execute

    def named(task, **tensors):
        nonlocal at
        at = task.output_weight.name
        return execute(task, **tensors)

    def recorded(*args, **kwargs):
        mask = bernoulli(*args, **kwargs)
        drawn.setdefault(at, []).append(mask.bool())
        return mask

    torch.bernoulli, ExecuteMergeMethodTask.execute = recorded, named
    torch.set_num_threads(1)
    for case in cases:
        drawn.clear()
        os.chdir(case)
        config = MergeConfiguration.model_validate(yaml.safe_load(Path("merge.yaml").read_text()))
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=42)
        run_merge(config, "out", options)
        torch.save(drawn, "masks.pt")


if __name__ == "__main__":
    main(sys.argv[1:])
