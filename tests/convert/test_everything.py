"""The whole law at once: any family x dialect x format x legal layout, there and back, is the same bits."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny import MODELS, make_model, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.dialects import DIALECTS
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.errors import ConfigError, LayoutError
from mconv.shard.stages import Uneven

KINDS = [("torch_dist", "mcore"), *(("mp_rank", name) for name in DIALECTS)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each model once, made when first asked for."""
    made = {}

    def source(name):
        if name not in made:
            made[name] = make_model(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return source


# No shrinking: an example is some seconds of work, and what was drawn is printed.
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_there_and_back_again(tmp_path_factory, sources, data):
    name = data.draw(st.sampled_from(sorted(MODELS)))
    hf, tmp = sources(name), tmp_path_factory.mktemp("hops")
    folder, spec = hf, open_checkpoint(hf).spec
    for hop in range(data.draw(st.integers(1, 3))):
        format, dialect = data.draw(st.sampled_from(KINDS))
        pp = data.draw(st.sampled_from([1, 2, 4]))
        options = {
            "tp": data.draw(st.sampled_from([1, 2, 4, 8])), "pp": pp,
            "vpp": data.draw(st.sampled_from([1, 2])) if pp == 2 else 1,
            "vocab_multiple": data.draw(st.sampled_from([1, 16, 128])),
            "vocab_padding": data.draw(st.sampled_from(["zeros", "last-row"])),
            "uneven": data.draw(st.sampled_from([Uneven(), Uneven(first=2 if pp == 2 else 1)])) if pp > 1 else Uneven(),
        }  # fmt: skip
        try:
            planned = plan.make(open_checkpoint(folder), tmp / str(hop), format=format, dialect=dialect, **options)
        except LayoutError as error:  # a layout that the model or the dialect has not: said, and nothing written
            assert any(word in str(error) for word in ("cannot", "does not divide", "left for", "has no"))
            assert not (tmp / str(hop)).exists()
            continue
        rewrite(planned, step="test")
        folder = tmp / str(hop)
        _forget(folder, spec, data)
    if folder != hf:
        rewrite(plan.make(open_checkpoint(folder), tmp / "out", format="hf"), step="test")
        assert same(tensors(tmp / "out"), tensors(hf)), name
        assert open_checkpoint(tmp / "out").spec.to_dict() == spec.to_dict()


def _forget(folder, spec, data):
    """Sometimes the manifest is lost: the checkpoint must say the same by itself, or ask, never say something else."""
    if not data.draw(st.booleans()):
        return
    [manifest] = folder.rglob("mconv.json")
    kept = manifest.read_bytes()
    dialect = open_checkpoint(folder).dialect
    manifest.unlink()
    try:
        found = open_checkpoint(folder)
        stored = DIALECTS[dialect].stored_spec(spec).to_dict()
        assert {**found.spec.to_dict(), "family": None} == {**stored, "family": None}
        assert found.dialect == dialect
    except ConfigError as error:
        assert "--dialect" in str(error)
    manifest.write_bytes(kept)
