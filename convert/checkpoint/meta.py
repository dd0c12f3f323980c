"""Meta's LLaMAs and Mistral's own files: what they call the rows of the LLaMA table, how ranks cut them, what they say.

Rotary rows are interleaved (pairs side by side), as in Megatron-LLM; everything else is the logical tensor's own order.
Sources: `model.py` of LLaMA 1 to 3 (parallel linears, defaults), llama-models' `args.py`; mistral-inference's `args.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from mconv.convert.families import FAMILIES, described
from mconv.convert.folders.ignored import NOTHING, Ignored
from mconv.convert.formats import meta, numbers
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.derived import close, rotary
from mconv.convert.spelling.params import Params, read
from mconv.convert.spelling.spelled import Spelt, spelled
from mconv.convert.spelling.table import Stored
from mconv.errors import AmbiguousCheckpoint, ConfigError, FormatError
from mconv.spec import ModelSpec, Rope

L = "layers.{l}."
A, M = L + "attention.", L + "feed_forward."
BUFFERS = ("rope.freqs",)
"""Stored tensors that follow from the config."""
WIDEST = 1 << 12
"""Rotary frequencies that are looked at: a head has half as many as it is wide."""


MODULES: dict[str, Spelt] = {
    "embed":           "tok_embeddings",
    "layer.attn_norm": L + "attention_norm",
    "layer.qkv":       {A + "wq": "(g s[:q] h~) d", A + "wk": "(g s[q] h~) d", A + "wv": "(g s[-1] h) d"},
    "layer.attn_out":  A + "wo",
    "layer.mlp_norm":  L + "ffn_norm",
    "layer.mlp_in":    {M + "w1": "(p[0] f) d", M + "w3": "(p[1] f) d"},
    "layer.mlp_out":   M + "w2",
    "final_norm":      "norm",
    "head":            "output",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaHints:
    """The user's hints on what a `params.json` leaves open."""

    max_position_embeddings: int | None = None
    rope_factor: float | None = None
    config: Path | None = None
    """The model's Hugging Face `config.json`, which has both values."""
    ignore: Ignored = NOTHING
    """Keys that no table claims and that may pass."""


def stored(spec: ModelSpec, *, ranks: int, embed_cut: str) -> Iterator[Stored]:
    """Yield every rank's tensors and the piece of a logical tensor in each; `embed_cut`: "d", or "v" in Llama 3."""
    family = FAMILIES[spec.family]
    for logical in family.logicals(spec):
        row, axes = family.row(logical.row), family.axes(logical)
        cut = embed_cut if row.kind == "embedding" else row.cut
        for rank in range(ranks):
            for name, piece in spelled(
                MODULES[row.name], axes, spec.sizes, layer=logical.layer, cut=cut, rank=rank, of=ranks
            ):
                yield Stored(meta.key(rank, f"{name}.{logical.leaf}"), logical, piece)


SAME = (
    "num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "norm_epsilon",
    "sliding_window",
)  # fmt: skip
"""Fields of the spec that `params.json` says as they are."""


# ---- params.json -----------------------------------------------------------------------------------------------------
def spec_of(
    folder: Path, tensors: Mapping[str, Located], *, ranks: int, hints: MetaHints
) -> tuple[ModelSpec, str, tuple[str, ...]]:
    """Return the architecture, the axis that cuts the embedding, and notes for the user on what was assumed."""
    params = read(folder, hints.ignore.config_keys)
    settled = described(hints.config, hints.ignore) if hints.config else None
    rope = (_mistral_rope if params.is_mistral else _rope)(folder, params, tensors, hints, settled)
    positions, note = _positions(folder, params, hints, settled)
    tied = meta.key(0, "output.weight") not in tensors
    if params.tied_embeddings not in (None, tied):
        there = "is not there" if tied else "is there"
        raise ConfigError(f"{folder / meta.PARAMS}: tied_embeddings is {not tied}, but the head, output.weight, {there}")
    vocab, embed_cut = _vocabulary(folder, params, tensors, ranks)
    try:
        spec = ModelSpec(
            family="mistral" if params.is_mistral else "llama",
            **{name: getattr(params, name) for name in SAME},
            ffn_hidden_size=_ffn(folder, params, tensors, ranks),
            vocab_size=vocab,
            max_position_embeddings=positions,
            rope=rope,
            tied_embeddings=tied,
        )
    except ConfigError as error:
        raise ConfigError(f"{folder / meta.PARAMS}: {error}") from error
    if settled:
        a, b = settled.to_dict(), spec.to_dict()
        differ = "; ".join(f"{k} is {a[k]} there, {b[k]} by {meta.PARAMS}" for k in a if a[k] != b[k])
        if differ:
            raise ConfigError(f"{hints.config} is not the config of this checkpoint ({folder}): {differ}")
    if spec.num_query_groups % ranks:
        raise ConfigError(
            f"{folder}: {ranks} files of weights, but {spec.num_query_groups} key-value heads (n_kv_heads), which "
            "they cannot share evenly; files are missing or too many, or hold copies of heads, which mconv does not read"
        )
    return spec, embed_cut, (*note, *_assumed_base(folder, params, settled))


def _positions(folder: Path, params: Params, hints: MetaHints, settled: ModelSpec | None) -> tuple[int, tuple[str, ...]]:
    own = params.max_position_embeddings or params.max_seq_len
    stated = hints.max_position_embeddings or (settled.max_position_embeddings if settled else own)
    if stated is not None:
        return int(stated), ()
    taken, whose = (32768, "Mistral's converters do") if params.is_mistral else (2048, "Meta's own code does")
    return taken, (
        f"{folder / meta.PARAMS} does not state the length of context that the model was trained for; {taken} is "
        f"taken, as {whose}. It does not change what the model computes; --max-position-embeddings says otherwise",
    )


def _mistral_rope(
    folder: Path, params: Params, tensors: Mapping[str, Located], hints: MetaHints, settled: ModelSpec | None
) -> Rope:
    """Return the rotary embedding of a Mistral model; where its base is absent, programs differ in the default."""
    if hints.rope_factor is not None:
        raise ConfigError(f"{folder / meta.PARAMS} is Mistral's: --rope-factor does not apply")
    if params.rope_theta is not None:
        return Rope(base=params.rope_theta)
    if settled:
        return settled.rope
    if params.sliding_window is not None:
        return Rope()
    raise AmbiguousCheckpoint(
        f"{folder / meta.PARAMS} has no rope_theta and no sliding_window; Mistral's program then takes a base of 1e6, "
        "transformers' converter 1e4: give --config with the model's config.json, or add rope_theta to it"
    )


def _assumed_base(folder: Path, params: Params, settled: ModelSpec | None) -> tuple[str, ...]:
    """Return the note on an assumed rope base: the first Mistral 7B has none in its params.json, and a window."""
    if not params.is_mistral or params.rope_theta is not None or settled:
        return ()
    return (
        f"{folder / meta.PARAMS} has no rope_theta; 10000 is taken, that of the first Mistral 7B, which has a sliding "
        "window like this one. --config with the model's config.json says otherwise",
    )


def _rope(
    folder: Path, params: Params, tensors: Mapping[str, Located], hints: MetaHints, settled: ModelSpec | None
) -> Rope:
    base = 10000.0 if params.rope_theta is None else params.rope_theta
    if params.rope_theta is None:
        _check_base(folder, base, tensors)
    if not params.use_scaled_rope:
        if hints.rope_factor is not None:
            raise ConfigError(f"{folder / meta.PARAMS} has no use_scaled_rope: --rope-factor does not apply")
        return Rope(base=base)
    factor = params.rope_scaling_factor or hints.rope_factor or (settled.rope.factor if settled else None)
    if factor is None:
        raise AmbiguousCheckpoint(
            f"{folder / meta.PARAMS} has use_scaled_rope but no factor, and those of Llama 3.1 (8) and 3.2 (32) differ: "
            "give --rope-factor 8 or 32, or --config with the model's config.json"
        )
    if hints.rope_factor not in (None, factor):
        raise ConfigError(f"{folder / meta.PARAMS}: rope_scaling_factor is {factor}, not {hints.rope_factor:g}")
    return Rope(kind="llama3", base=base, factor=factor, high_freq_factor=params.rope_high_freq_factor)


def _check_base(folder: Path, base: float, tensors: Mapping[str, Located]) -> None:
    """Raise ConfigError if the stored frequencies are not the default's: for a params.json without rope_theta."""
    where = tensors.get(meta.key(0, "rope.freqs"))
    if where is None or not where.dtype.is_floating_point or len(where.shape) != 1:
        return
    n = where.shape[0]
    known = n <= WIDEST and where.dtype in numbers.KNOWN
    if not known or not close(numbers.read(where, n), rotary(base, n), rtol=1e-2):
        raise ConfigError(
            f"{folder / meta.PARAMS} has no rope_theta, but {BUFFERS[0]} does not follow from the default, {base:g}: add "
            "the model's rope_theta to it"
        )


def _shape(folder: Path, tensors: Mapping[str, Located], name: str) -> tuple[int, int]:
    where = tensors.get(meta.key(0, name))
    if where is None or len(where.shape) != 2:
        raise FormatError(
            f"{folder}: there is no matrix {name!r}; a LLaMA in Meta's files and a Mistral model both have one"
        )
    return where.shape[0], where.shape[1]


def _vocabulary(folder: Path, params: Params, tensors: Mapping[str, Located], ranks: int) -> tuple[int, str]:
    """Return the true vocabulary and the axis that cuts the table, by its shape: d in LLaMA 1 and 2, v in Llama 3."""
    rows, columns = _shape(folder, tensors, "tok_embeddings.weight")
    if columns * ranks == params.hidden_size:
        size, cut = rows, "d"
    elif columns == params.hidden_size:
        size, cut = rows * ranks, "v"
    else:
        raise FormatError(
            f"{folder}: tok_embeddings.weight is {rows} x {columns} in each of {ranks} files, but dim is "
            f"{params.hidden_size}: files are missing or too many"
        )
    if params.vocab_size not in (None, -1, size):  # -1: not said
        raise ConfigError(f"{folder / meta.PARAMS}: vocab_size is {params.vocab_size}, but the table has {size} rows")
    return size, cut


def _ffn(folder: Path, params: Params, tensors: Mapping[str, Located], ranks: int) -> int:
    """Return the MLP's width by the shapes. Raises ConfigError where `hidden_dim` or Meta's formula differs."""
    found = _shape(folder, tensors, "layers.0.feed_forward.w1.weight")[0] * ranks
    if params.ffn_hidden_size not in (None, found):
        differs = f"hidden_dim is {params.ffn_hidden_size}, but layers.0.feed_forward.w1 has {found} rows"
        raise ConfigError(f"{folder / meta.PARAMS}: {differs}")
    if params.multiple_of is not None:
        hidden = int(params.ffn_dim_multiplier * int(2 * 4 * params.hidden_size / 3))
        expected = ceil(hidden / params.multiple_of) * params.multiple_of
        if expected != found:
            raise ConfigError(
                f"{folder / meta.PARAMS}: multiple_of and ffn_dim_multiplier make an MLP of {expected}, but "
                f"layers.0.feed_forward.w1 has {found} rows over {ranks} files"
            )
    return found
