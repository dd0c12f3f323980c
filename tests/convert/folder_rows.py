"""The table of folder variants: what was done to a folder of transformers' making, and what mconv is to make of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from packaging.version import Version
from safetensors.torch import save_file
from tiny import LLAMA3, tensors

KINDS = ("llama", "mistral", "falcon", "gpt2")
ROTARY = ("llama", "mistral", "falcon")
OTHERS = ("llama", "falcon", "gpt2")
BASE = {"llama": "model.", "mistral": "model.", "falcon": "transformer.", "gpt2": "transformer."}
LAYERS = {"llama": "layers", "mistral": "layers", "falcon": "h", "gpt2": "h"}
EMBED = {"llama": "embed_tokens", "mistral": "embed_tokens", "falcon": "word_embeddings", "gpt2": "wte"}
ATTENTION = {"llama": "self_attn", "mistral": "self_attn", "falcon": "self_attention", "gpt2": "attn"}
CLASS = {"llama": "Llama", "mistral": "Mistral", "falcon": "Falcon", "gpt2": "GPT2"}
HEAD = "lm_head.weight"
GONE = object()
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One row for one kind: `change` is done to the folder of a model with `options`."""

    name: str
    change: Callable[["Folder"], object]
    says: str = ""
    """A regular expression for the message, or for a note; "" where there is none."""
    verdict: str = "same"
    """`same`: the model that it was before; `note`: that, and it is said; `refused`."""
    kinds: tuple[str, ...] = KINDS
    options: dict[str, object] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    loads: bool = True
    """Whether transformers loads the folder as the model that it was before."""


@dataclass(frozen=True)
class Folder:
    """A folder of one kind, and what a row may do to it."""

    path: Path
    kind: str

    def layer(self, i: int, name: str = "") -> str:
        return f"{BASE[self.kind]}{LAYERS[self.kind]}.{i}.{name}"

    @property
    def embed(self) -> str:
        return f"{BASE[self.kind]}{EMBED[self.kind]}.weight"

    @property
    def attention(self) -> str:
        return ATTENTION[self.kind]

    def save(self, state: State, name: str = "model.safetensors") -> None:
        save_file({k: v.contiguous().clone() for k, v in state.items()}, self.path / name, metadata={"format": "pt"})

    def weights(self, change: Callable[["Folder", State], State | None]) -> None:
        state = tensors(self.path)
        self.save(change(self, state) or state)

    def config(self, **changes: object) -> None:
        """Set keys of the config; GONE removes one."""
        file = self.path / "config.json"
        values = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not GONE}))


# ---- what is done to weights -----------------------------------------------------------------------------------------
def weights(change: Callable[[Folder, State], State | None]) -> Callable[[Folder], None]:
    return lambda folder: folder.weights(change)


def config(**changes: object) -> Callable[[Folder], None]:
    return lambda folder: folder.config(**changes)


def renamed(rename: Callable[[Folder, str], str]) -> Callable[[Folder], None]:
    return weights(lambda folder, state: {rename(folder, name): tensor for name, tensor in state.items()})


def prefixed(prefix: str) -> Callable[[Folder], None]:
    return renamed(lambda folder, name: prefix + name)


def bare(folder: Folder, name: str) -> str:
    return name.removeprefix(BASE[folder.kind])


def within(place: str, wrapper: str, *, only: str = "") -> Callable[[Folder], None]:
    """A wrapper in the middle of names: after each layer, or after its attention."""

    def rename(folder: Folder, name: str) -> str:
        for i in (0, 1):
            at = folder.layer(i, f"{folder.attention}." if place == "attention" else "")
            if name.startswith(at) and only in ("", str(i)):
                return f"{at}{wrapper}.{name.removeprefix(at)}"
        return name

    return renamed(rename)


def added(*items: tuple[str, Callable[[Folder], torch.Tensor]]) -> Callable[[Folder], None]:
    """Add tensors; `L.` stands for the first layer, `A.` for its attention, `B.` for the base model."""

    def change(folder: Folder, state: State) -> None:
        for name, tensor in items:
            for short, full in (("L.", folder.layer(0)), ("A.", folder.layer(0, f"{folder.attention}.")),
                                ("B.", BASE[folder.kind])):  # fmt: skip
                name = full + name.removeprefix(short) if name.startswith(short) else name
            state[name] = tensor(folder)

    return weights(change)


def one(*shape: int, value: float = 1.0, dtype: torch.dtype = torch.float32) -> Callable[[Folder], torch.Tensor]:
    return lambda folder: torch.full(shape, value, dtype=dtype)


def inv_freq(folder: Folder, *, base: float = 10000.0) -> torch.Tensor:
    return 1.0 / (base ** (torch.arange(0, 6, 2).float() / 6))  # heads are 48 / 8 = 6 wide


def cached(function: Callable[[torch.Tensor], torch.Tensor], base: float = 10000.0) -> Callable[[Folder], torch.Tensor]:
    def table(folder: Folder) -> torch.Tensor:
        angles = torch.outer(torch.arange(32).float(), inv_freq(folder, base=base))
        return function(torch.cat((angles, angles), dim=-1))[None, None]

    return table


def causal(folder: Folder) -> torch.Tensor:
    return torch.tril(torch.ones(256, 256, dtype=torch.bool)).view(1, 1, 256, 256)


def drop(*ends: str) -> Callable[[Folder], None]:
    return weights(lambda folder, state: {k: v for k, v in state.items() if not k.endswith(ends)})


def headless(folder: Folder) -> None:
    folder.weights(lambda f, state: {bare(f, name): t for name, t in state.items() if name != HEAD})
    folder.config(architectures=[f"{CLASS[folder.kind]}Model"])


def twice(folder: Folder, state: State, *, more: float = 0.0) -> None:
    state[HEAD] = state[folder.embed] + more


def head_only(folder: Folder, state: State) -> None:
    state[HEAD] = state.pop(folder.embed)


def half_named(prefix: str) -> Callable[[Folder], None]:
    def change(folder: Folder, state: State) -> State:
        names = sorted(state)
        return {(prefix if i % 2 else "") + name: state[name] for i, name in enumerate(names)}

    return weights(change)


def two_of_one(folder: Folder, state: State, *, prefix: str = "") -> None:
    name = next(name for name in state if name.startswith(folder.layer(0)))
    state[prefix + bare(folder, name) if not prefix else prefix + name] = state[name].clone()


def recast(folder: Folder, state: State, *, dtype: torch.dtype) -> None:
    name = next(name for name in state if name.startswith(folder.layer(1)) and state[name].ndim == 2)
    state[name] = state[name].to(dtype)


def turned(folder: Folder, state: State) -> None:
    name = next(
        n for n in state if n.startswith(folder.layer(1)) and state[n].ndim == 2 and len(set(state[n].shape)) == 2
    )
    state[name] = state[name].T.contiguous()


# ---- what is done to files -------------------------------------------------------------------------------------------
def as_bin(folder: Folder, *, shards: int = 1, keep: bool = False) -> None:
    state = tensors(folder.path)
    if not keep:
        (folder.path / "model.safetensors").unlink()
    files = (
        [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)] if shards > 1 else ["pytorch_model.bin"]
    )
    where = {name: files[i % shards] for i, name in enumerate(state)}
    for file in files:
        torch.save({n: t for n, t in state.items() if where[n] == file}, folder.path / file)
    if shards > 1:
        (folder.path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def sharded(folder: Folder, *, single: bool = False) -> None:
    state = tensors(folder.path)
    if not single:
        (folder.path / "model.safetensors").unlink()
    where = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(where.values()):
        folder.save({n: t for n, t in state.items() if where[n] == file}, file)
    (folder.path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def beside(*names: str) -> Callable[[Folder], None]:
    """Files beside the weights, with something in them that is not read."""
    return lambda folder: [(folder.path / name).write_bytes(b"not read") for name in names]


def variant(folder: Folder, *, keep: bool = False) -> None:
    shutil.copyfile(folder.path / "model.safetensors", folder.path / "model.fp16.safetensors")
    if not keep:
        (folder.path / "model.safetensors").unlink()


def classes(*names: str) -> Callable[[Folder], None]:
    """Set `architectures`; `{}` stands for the kind's name."""

    def change(folder: Folder) -> None:
        named = [name.format(CLASS[folder.kind]) for name in names]
        folder.config(architectures=[name.replace("GPT2ForCausalLM", "GPT2LMHeadModel") for name in named])

    return change


def both(*changes: Callable[[Folder], object]) -> Callable[[Folder], None]:
    return lambda folder: [change(folder) for change in changes][-1]


ACTIVATION = ("hidden_act", "activation_function", "activation")
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
WINDOW = {"sliding_window": 16}
LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}
SAID = {
    "neftune_noise_alpha": 5, "use_flash_attn": True, "max_seq_len": 77, "num_logits_to_keep": 1,
    "_model_name_or_path": "x/y", "temperature": 0.3, "unsloth_version": "2025.1",
}  # fmt: skip
same, note = partial(Case), partial(Case, verdict="note")
stripped, refused = partial(Case, verdict="note", loads=False), partial(Case, verdict="refused")
LLAMAS = ("llama", "mistral")
ROWS = (
    # a prefix too few, a head that is tied or absent
    same("base model, tied", headless, options=TIED),
    same("base model's names beside a head", renamed(bare), options=UNTIED),
    refused("base model, untied", headless, "without its head.*tie_word_embeddings", options=UNTIED),
    refused("no head, untied", drop(HEAD), "lm_head.weight is missing.*at random", options=UNTIED),
    same("tied, stored as the head only", weights(head_only), options=TIED),
    same("tied, stored twice", weights(twice), options=TIED),
    refused("tied, stored twice and differing", weights(partial(twice, more=1)), '"tie_word_embeddings": false',
            options=TIED),
    refused("no table of tokens", lambda f: drop(f.embed)(f), "is missing", options=UNTIED),
    # buffers that follow from the config
    same("inv_freq of a layer", added(("A.rotary_emb.inv_freq", inv_freq)), kinds=ROTARY),
    same("inv_freq of the model", added(("B.rotary_emb.inv_freq", inv_freq)), kinds=ROTARY),
    same("original_inv_freq in bf16", added(("B.rotary_emb.original_inv_freq", lambda f: inv_freq(f).bfloat16())),
         kinds=ROTARY),
    note("inv_freq of another base", added(("A.rotary_emb.inv_freq", partial(inv_freq, base=5e5))),
         "rotary frequencies .rope_theta.*config.json decides", kinds=ROTARY),
    same("inv_freq before linear scaling", added(("A.rotary_emb.inv_freq", inv_freq)), kinds=ROTARY, options=LINEAR),
    same("cos_cached, sin_cached", added(("A.rotary_emb.cos_cached", cached(torch.cos)),
                                         ("A.rotary_emb.sin_cached", cached(torch.sin))), kinds=ROTARY),
    note("sin_cached of another base", added(("A.rotary_emb.sin_cached", cached(torch.sin, 7.0))), "sines", kinds=ROTARY),
    same("maybe_rotary.inv_freq", added(("A.maybe_rotary.inv_freq", inv_freq)), kinds=("falcon",)),
    same("attention bias and masked_bias", added(("A.bias", causal), ("A.masked_bias", one(value=-1e4)))),
    same("a mask of bytes", added(("A.bias", lambda f: causal(f).to(torch.uint8)))),
    note("a mask of nothing", added(("A.bias", one(0, 0))), "the causal mask"),
    note("a mask that is not causal", added(("A.bias", one(1, 1, 256, 256))), "the causal mask"),
    refused("a bias of attention that is none", added(("A.bias", one(48))), "no row"),
    refused("inv_freq in a model without", added(("A.rotary_emb.inv_freq", inv_freq)), "no row", kinds=("gpt2",)),
    # a prefix too many
    stripped("torch.compile", prefixed("_orig_mod."), "all names have '_orig_mod.' at the start .torch.compile"),
    stripped("DDP", prefixed("module."), "'module.' at the start .Distr"),
    stripped("FSDP", prefixed("_fsdp_wrapped_module."), "FSDP"),
    stripped("PEFT", prefixed("base_model.model."), "'base_model.model.' at the start .PEFT"),
    stripped("compile of DDP", prefixed("_orig_mod.module."), "'_orig_mod.*'module.'"),
    stripped("DDP of the base model", both(headless, prefixed("module.")), "'module.'", options=TIED),
    stripped("a prefix of one's own", prefixed("student."), "'student.' at the start; they are read without it"),
    stripped("two parts of one's own", prefixed("policy.actor."), "'policy.actor.' at the start"),
    note("the base model's prefix twice", lambda f: prefixed(BASE[f.kind])(f), "at the start"),
    stripped("compile of each layer", within("layer", "_orig_mod"), r"'_orig_mod.' after '\w+\.\w+\.N'"),
    stripped("checkpointing of attention", within("attention", "_checkpoint_wrapped_module"), "activation checkpointing"),
    stripped("FSDP of the whole and of layers",
             both(within("layer", "_fsdp_wrapped_module"), prefixed("_fsdp_wrapped_module.")), "at the start.*after"),
    stripped("torch.compile, with buffers", both(added(("A.bias", causal)), prefixed("_orig_mod.")), "_orig_mod"),
    stripped("a wrapper of every linear and norm",
             renamed(lambda f, name: f"{name.rpartition('.')[0]}._orig_mod.{name.rpartition('.')[2]}"),
             "and at [0-9]+ more places"),
    stripped("an empty prefix", prefixed("."), "have '.' at the start"),
    refused("compile of the first layer only", within("layer", "_orig_mod", only="0"),
            "names have '_orig_mod.'.*others do not"),
    refused("DDP in half of the names", half_named("module."), "names have 'module.'.*others do not"),
    refused("an own prefix in half of the names", half_named("student."), "names have 'student.'.*others do not"),
    refused("a tensor with and without module.", weights(partial(two_of_one, prefix="module.")), "others do not"),
    refused("a tensor with and without the base's prefix", weights(two_of_one), "both are .*remove one of them"),
    # other models' tensors
    refused("a tensor more", added(("L.extra", one(3))), "no row"),
    refused("a tensor less", lambda f: drop(f.layer(1, "input_layernorm.weight"), f.layer(1, "ln_1.weight"))(f),
            "is missing"),
    refused("a layer more", lambda f: added((f.layer(2, "input_layernorm.weight"), one(48)))(f), "no row"),
    refused("a matrix turned", weights(turned), "has shape"),
    refused("an adapter within", added(("A.q_proj.lora_A.default.weight", one(4, 48))), "not merged.*merge_and_unload"),
    refused("a classifier's head", added(("score.weight", one(2, 48))), "head of a classifier"),
    refused("norms of queries", added(("A.q_norm.weight", one(6))), "norms of queries and keys"),
    refused("GPTQ", added(("L.mlp.up_proj.qweight", one(6, 48, dtype=torch.int32))), "GPTQ or AWQ"),
    refused("bitsandbytes", added(("L.mlp.up_proj.weight.absmax", one(6))), "bitsandbytes"),
    refused("scales of fp8", added(("L.mlp.up_proj.weight_scale_inv", one(1))), "quantised weights .fp8"),
    refused("fp8", weights(partial(recast, dtype=torch.float8_e4m3fn)), "quantised"),
    refused("int8", weights(partial(recast, dtype=torch.int8)), "quantised"),
    refused("a part of a model of images", both(prefixed("language_model."), added(("vision_tower.x.weight", one(3)))),
            "a model of images and text"),
    refused("experts", added(("L.mlp.experts.0.w1.weight", one(6, 48))), "mixture of experts"),
    refused("a value head", added(("v_head.summary.weight", one(1, 48))), "value head"),
    refused("FSDP's flat parameters", added(("_flat_param", one(48))), "flattened.*FULL_STATE_DICT"),
    # files
    same("pytorch_model.bin", as_bin),
    same("pytorch_model.bin in shards", partial(as_bin, shards=2)),
    same("pytorch_model.bin beside safetensors", partial(as_bin, keep=True)),
    same("safetensors in shards", sharded),
    refused("one file and shards", partial(sharded, single=True), "two models"),
    refused("a variant alone", variant, "is a variant of them: to convert it"),
    same("a variant beside", partial(variant, keep=True)),
    same("Mistral's own files beside", beside("consolidated.safetensors", "params.json")),
    same("states of a training beside", beside("optimizer.pt", "training_args.bin", "trainer_state.json")),
    # which class
    same("architectures absent", config(architectures=GONE)),
    same("architectures: the base model", classes("{}Model")),
    same("architectures: both", classes("{}ForCausalLM", "{}Model")),
    same("architectures: of FSDP", classes("FSDP{}ForCausalLM")),
    refused("architectures: a classifier", classes("{}ForSequenceClassification"), "architectures is"),
    refused("architectures: a classifier among them", classes("{}ForCausalLM", "{}ForTokenClassification"),
            "not [A-Za-z0-9]+ForTokenClassification"),
    refused("architectures: one's own", config(architectures=["MyForCausalLM"]), "architectures is .*not MyForCausalLM"),
    refused("code of its own", config(auto_map={"AutoModel": "my.Model"}), "auto_map"),
    # keys of config.json
    same("keys that are not read", config(**SAID)),
    same("keys that say no", config(
        attn_logit_softcapping=0.0, qk_norm=False, num_local_experts=0, use_sliding_window=False, residual_multiplier=1.0,
        tie_encoder_decoder=False)),
    same("a key that the user knows", config(novelty=3), ignore=("novelty",)),
    refused("a key that nobody knows", config(novelty=3), "does not know novelty=3.*--ignore-config-key novelty"),
    refused("soft-capped scores", config(attn_logit_softcapping=30.0), "attn_logit_softcapping=30.0"),
    refused("a multiplier", config(residual_multiplier=0.22), "residual_multiplier=0.22.*--ignore-config-key"),
    refused("a key that a row claims, ignored", lambda f: f.config(**dict.fromkeys(ACTIVATION, "relu")),
            "relu.*supports only", ignore=ACTIVATION),
    same("layer_types all full", config(layer_types=["full_attention"] * 2), kinds=OTHERS),
    same("layer_types all full, no window", config(layer_types=["full_attention"] * 2, max_window_layers=1),
         kinds=("mistral",), options={"sliding_window": None}, loads=False),  # AutoModel: a Ministral, it fails
    same("layer_types all sliding", config(layer_types=["sliding_attention"] * 2), kinds=("mistral",), options=WINDOW),
    refused("layer_types that differ", config(layer_types=["sliding_attention", "full_attention"]), "layer_types is"),
    refused("layer_types too many", config(layer_types=["full_attention"] * 3), "3 entries", kinds=OTHERS),
    same("a window beyond the context", config(sliding_window=256), kinds=OTHERS),
    refused("a window within", config(sliding_window=8), "sliding_window is 8", kinds=OTHERS),
    same("rope default with a factor", config(rope_parameters=GONE, rope_scaling={"type": "default", "factor": 8.0}),
         kinds=ROTARY),
    same("rope_scaling empty", config(rope_scaling={}), kinds=ROTARY, options=LINEAR),
    same("rope linear with a trained length", config(
        rope_parameters=GONE, rope_scaling={"type": "linear", "factor": 4.0, "original_max_position_embeddings": 64}),
        kinds=ROTARY, options=LINEAR),
    same("rope llama3 without its trained length", config(
        rope_parameters={k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}),
        kinds=LLAMAS, options={"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 256}}),
    refused("rope by kinds of layers", config(rope_parameters={"full_attention": {"rope_type": "default"}}),
            "of their own for", kinds=ROTARY),
    refused("rope dynamic", config(rope_parameters=GONE, rope_scaling={"type": "dynamic", "factor": 2.0}), "'dynamic'",
            kinds=ROTARY),
    refused("rope of a part of the head", config(partial_rotary_factor=0.5), "partial_rotary_factor", kinds=ROTARY),
    same("head_dim null", lambda f: f.config(head_dim=None, num_key_value_heads=4), kinds=LLAMAS),
    same("another name of a key", lambda f: f.config(**{"n_embed" if f.kind == "falcon" else "hidden_size": 48}),
         kinds=("falcon", "gpt2")),
    refused("another name that differs", lambda f: f.config(**{"n_embed" if f.kind == "falcon" else "hidden_size": 96}),
            "the same thing", kinds=("falcon", "gpt2")),
    same("dtype with its module", config(dtype="torch.float32"),
         loads=Version(version("transformers")) >= Version("5.4")),
    refused("a size with a point", lambda f: f.config(**{"n_embd" if f.kind == "gpt2" else "hidden_size": 48.0}),
            "48.0, not int"),
    refused("a number for yes", config(tie_word_embeddings=1), "tie_word_embeddings is 1, not bool"),
    refused("a config within", config(text_config={"hidden_size": 48}), "text_config"),
    refused("a config for each layer", config(per_layer_config={"0": {"attention_dropout": 0.5}}), "per_layer_config"),
    refused("not causal", config(is_causal=False), "is_causal is False"),
    refused("weights of another name", config(transformers_weights="x.safetensors"), "transformers_weights"),
    refused("quantised", config(quantization_config={"quant_method": "fp8"}), "quantization_config"),
)  # fmt: skip
CASES = [(kind, row) for row in ROWS for kind in row.kinds]
