"""The files of a target before a byte is written: how many, how large, and which bytes of which are which tensor's."""

from typing import Any

from mconv.convert import spell
from mconv.convert.dialects import DIALECTS, mcore
from mconv.convert.engine.plan import Plan
from mconv.convert.formats import distcp, hf, mp_rank
from mconv.convert.formats.file_layout import FileLayout


def lay_out(plan: Plan) -> FileLayout:
    """The files of the target, from names, shapes and dtypes."""
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
    return distcp.lay_out(plan.targets, shapes, common, mcore.extra_state_keys(spec))
