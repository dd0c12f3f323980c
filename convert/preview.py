"""What a plan would leave on disk: every file, with its size as far as it follows from the tensors."""

from mconv.convert.checkpoint import SIDE_FOLDER, TRACKER
from mconv.convert.formats import hf, mp_rank, torch_dist
from mconv.convert.manifest import NAME
from mconv.convert.plan import Plan

Files = dict[str, int | None]
"""Path below the target -> bytes of tensors in it; None for a small file (config, index, manifest, tracker)."""


def files(plan: Plan) -> Files:
    """The files of the target, in the order of their paths, the tracker first."""
    if plan.format == "hf":
        return _hf(plan)
    inside = _mp_rank(plan) if plan.format == "mp_rank" else _torch_dist(plan)
    inside |= dict.fromkeys([*(f"{SIDE_FOLDER}/{name}" for name in _side(plan)), NAME])
    return {TRACKER: None} | {f"{plan.folder.name}/{name}": size for name, size in inside.items()}


def _side(plan: Plan) -> list[str]:
    return sorted({"config.json", *(path.name for path in plan.source.side_files)})


def _hf(plan: Plan) -> Files:
    parts = hf.shards(plan.targets, plan.shard_bytes)
    names = hf.shard_names(len(parts))
    found: Files = {name: sum(t.nbytes for t in part) for name, part in zip(names, parts, strict=True)}
    return found | dict.fromkeys([*([hf.INDEX] if len(parts) > 1 else []), *_side(plan), NAME])


def _mp_rank(plan: Plan) -> Files:
    found: dict[str, int] = {}
    for target in plan.targets:
        name = f"{target.key.split('/', 1)[0]}/{mp_rank.FILE}"
        found[name] = found.get(name, 0) + target.nbytes
    return dict(found)


def _torch_dist(plan: Plan) -> Files:
    sizes = [0]
    for target in plan.targets:
        if sizes[-1] >= torch_dist.FILE_LIMIT:
            sizes.append(0)
        sizes[-1] += target.nbytes
    found: Files = {f"__0_{number}.distcp": size for number, size in enumerate(sizes)}
    return found | dict.fromkeys([torch_dist.INDEX, torch_dist.COMMON, torch_dist.VERSIONS])
