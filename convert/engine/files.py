"""The files of a target before a byte is written: their names and sizes, and which bytes of which are which tensor's."""

from typing import Any

from mconv.convert.checkpoint import bridge
from mconv.convert.checkpoint.model import SIDE_FOLDER
from mconv.convert.dialects import DIALECTS, mcore, spell
from mconv.convert.engine.plan import Plan
from mconv.convert.folders import tokens
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.manifest import NAME
from mconv.convert.formats import distcp, hf, mp_rank, torch_dist
from mconv.convert.formats.file_layout import FileLayout

Files = dict[str, int | None]
"""Path below the target -> bytes; None for a small file (config, index, manifest, tracker)."""
INDICES = {"torch_dist": (torch_dist.INDEX, torch_dist.COMMON, torch_dist.VERSIONS), "mp_rank": ()}


def lay_out(plan: Plan) -> FileLayout:
    """Return the layout of the files that hold tensors, from names, shapes and dtypes."""
    spec, layout = plan.spec, plan.layout
    if layout is None:
        return hf.lay_out(plan.targets, limit=plan.shard_bytes)
    iteration = plan.iteration or 0
    args = DIALECTS[plan.dialect].args_of(spec, layout, dtype=plan.final_dtype.name, iteration=iteration)
    common: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": iteration}
    if plan.format == "mp_rank":
        args.ckpt_format = "torch"
        return mp_rank.lay_out(plan.targets, common, DIALECTS[plan.dialect].nests)
    common["content_metadata"] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    shapes = {
        f"{part.prefix}{name}": shape
        for part in plan.parts
        for name, shape in spell.global_shapes(part.source.family, part.source.spec, layout).items()
    }
    return distcp.lay_out(plan.targets, shapes, common, mcore.extra_state_keys(plan.family, spec))


def listing(plan: Plan) -> Files:
    """Return every file that a plan leaves: what points to it first, then those with tensors, then the small ones."""
    heavy: Files = dict(lay_out(plan).sizes)
    side = sorted({"config.json", *plan.side_files})
    if plan.format == "hf":
        return heavy | dict.fromkeys([*([hf.INDEX] if len(heavy) > 1 else []), *side, NAME])
    small = [*INDICES[plan.format], *(f"{SIDE_FOLDER}/{name}" for name in side), NAME]
    points = [TRACKER]
    if plan.emit:
        small += [bridge.RUN_CONFIG, bridge.TRAIN_STATE]
        small += [f"{bridge.TOKENIZER}/{name}" for name in side if tokens.is_tokenizer(name)]
        points.append(bridge.LATEST)
    inside = heavy | dict.fromkeys(small)
    return dict.fromkeys(points) | {f"{plan.folder.name}/{name}": size for name, size in inside.items()}
