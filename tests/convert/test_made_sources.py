"""The source protocol is enough for tensors that no checkpoint stores: three made-up sources through the whole engine."""

from dataclasses import dataclass, replace

import torch
from tiny import make_llama, tensors

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.peft.adapter import Adapter
from mconv.convert.peft.lora import shapes
from mconv.convert.peft.settings import Settings
from mconv.convert.sources.merged import LoraMerged
from mconv.convert.sources.source import Derived, Source, dims_of
from mconv.shard.axes import intersect, lengths, within


@dataclass(frozen=True, slots=True)
class Mean(Derived):
    """Half of one model and half of another."""

    other: Source

    def pull(self, tensor, box, scratch=None):
        return self.base.pull(tensor, box).lerp(self.other.pull(tensor, box), 0.5)

    def fingerprint(self):
        return [*self.base.fingerprint(), *self.other.fingerprint()]


@dataclass(frozen=True, slots=True)
class Renumbered(Derived):
    """Some layers of a model, in another order."""

    layers: tuple[int, ...]

    @property
    def spec(self):
        return replace(self.base.spec, num_layers=len(self.layers))

    def tensors(self):
        return self.family.logicals(self.spec)

    def _of(self, tensor):
        return tensor if tensor.layer is None else replace(tensor, layer=self.layers[tensor.layer])

    def dtypes(self, tensor):
        return self.base.dtypes(self._of(tensor))

    def pieces(self, tensor):
        return self.base.pieces(self._of(tensor))

    def pull(self, tensor, box, scratch=None):
        return self.base.pull(self._of(tensor), box, scratch)

    def conflicts(self, tensor, slab):
        return self.base.conflicts(self._of(tensor), slab)

    def fingerprint(self):
        return [*self.base.fingerprint(), *self.layers]


@dataclass(frozen=True, slots=True)
class Resized(Derived):
    """A vocabulary with more rows, all of one value."""

    rows: int
    fill: float

    @property
    def spec(self):
        return replace(self.base.spec, vocab_size=self.rows)

    def pull(self, tensor, box, scratch=None):
        held = tuple((0, n) for n in dims_of(self.base, tensor))
        (dtype,) = self.base.dtypes(tensor)
        out = torch.full(lengths(box), self.fill, dtype=getattr(torch, dtype.name))
        if both := intersect(held, box):
            out[within(both, box)] = self.base.pull(tensor, both)
        return out

    def fingerprint(self):
        return [*self.base.fingerprint(), self.rows, self.fill]


def converted(source, base, tmp_path):
    """The tensors of an export, by way of Megatron."""
    made = SourceModel(source=source, path=base.path, format="hf", derived=True)
    written = rewrite(plan.make(made, tmp_path / "m", format="torch_dist", tp=2), step="test")
    assert written["made_from"] == [] and written["spec"] == source.spec.to_dict()
    rewrite(plan.make(open_checkpoint(tmp_path / "m"), tmp_path / "back", format="hf"), step="test")
    return tensors(tmp_path / "back")


def test_a_mean_of_two_models(tmp_path):
    one, two = make_llama(tmp_path / "a"), make_llama(tmp_path / "b", seed=1)
    base = open_checkpoint(one)
    found, others = converted(Mean(base.source, open_checkpoint(two).source), base, tmp_path), tensors(two)
    assert all(torch.equal(found[name], x.lerp(others[name], 0.5)) for name, x in tensors(one).items())


def test_layers_in_another_order(tmp_path):
    base = open_checkpoint(make_llama(tmp_path / "a"))
    found, held = converted(Renumbered(base.source, (1, 0, 1)), base, tmp_path), tensors(base.path)
    for to, layer in enumerate((1, 0, 1)):
        for name in (name for name in held if f".layers.{layer}." in name):
            assert torch.equal(found[name.replace(f".layers.{layer}.", f".layers.{to}.")], held[name]), name
    assert torch.equal(found["lm_head.weight"], held["lm_head.weight"])


def test_a_larger_vocabulary(tmp_path):
    base = open_checkpoint(make_llama(tmp_path / "a"))
    found, held = converted(Resized(base.source, 160, 0.25), base, tmp_path), tensors(base.path)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = held[name].shape[0]
        assert (
            torch.equal(found[name][:rows], held[name]) and (found[name][rows:] == 0.25).all() and len(found[name]) == 160
        )
    assert torch.equal(found["model.norm.weight"], held["model.norm.weight"])


def test_another_adapter_is_another_source(tmp_path):
    """What an unfinished merge is continued by: the bytes that are written depend on the adapter, too."""
    base, settings = open_checkpoint(make_llama(tmp_path / "a")), Settings(rank=2, alpha=4.0, targets=("q_proj",))
    sizes = shapes(settings, base.family, base.spec)

    def fingerprint(value, settings=settings):
        factors = {key: torch.full(shape, value) for key, shape in sizes.items()}
        adapter = Adapter(settings=settings, family=base.family, spec=base.spec, factors=factors)
        return LoraMerged(base.source, adapter).fingerprint()

    assert fingerprint(1.0) == fingerprint(1.0) != fingerprint(2.0)
    assert fingerprint(1.0) != fingerprint(1.0, replace(settings, alpha=8.0))
