"""What a plan would leave on disk: every file, with its size as far as it follows from the tensors."""

from mconv.convert import bridge, tokens
from mconv.convert.checkpoint import SIDE_FOLDER
from mconv.convert.engine.files import lay_out
from mconv.convert.engine.plan import Plan
from mconv.convert.formats import hf, torch_dist
from mconv.convert.kinds import TRACKER
from mconv.convert.manifest import NAME

Files = dict[str, int | None]
"""Path below the target -> bytes; None for a small file (config, index, manifest, tracker)."""
INDICES = {"torch_dist": (torch_dist.INDEX, torch_dist.COMMON, torch_dist.VERSIONS), "mp_rank": ()}


def files(plan: Plan) -> Files:
    """The files of the target: what points to it first, then those with tensors, then the small ones."""
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
