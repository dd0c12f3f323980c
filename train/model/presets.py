"""Models by name: those that guides train from scratch. Fields of `config/model.py` change them."""

from dataclasses import dataclass

from mconv.spec import ModelSpec, Rope


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model, and how its weights are drawn."""

    spec: ModelSpec
    init_method_std: float = 0.02
    whose: str
    """Who trains it, for people."""


def gpt(*, layers: int, hidden: int, heads: int, positions: int = 2048, vocab: int = 50257) -> ModelSpec:
    """Return Megatron's default model: GPT-2's layer, with its biases, learned positions and tied head."""
    return ModelSpec(
        family="gpt2", num_layers=layers, hidden_size=hidden, ffn_hidden_size=4 * hidden, num_attention_heads=heads,
        num_query_groups=heads, kv_channels=hidden // heads, vocab_size=vocab, max_position_embeddings=positions,
        norm_epsilon=1e-5, position="learned", norm="layer", activation="gelu_tanh", tied_embeddings=True, qkv_bias=True,
        proj_bias=True, mlp_bias=True,
    )  # fmt: skip


def llama(*, layers: int, hidden: int, ffn: int, heads: int, groups: int, third: bool = False) -> ModelSpec:
    """Return LLaMA 2, or the `third`."""
    return ModelSpec(
        family="llama", num_layers=layers, hidden_size=hidden, ffn_hidden_size=ffn, num_attention_heads=heads,
        num_query_groups=groups, kv_channels=hidden // heads, vocab_size=128256 if third else 32000,
        max_position_embeddings=8192 if third else 4096, norm_epsilon=1e-5, rope=Rope(base=5e5 if third else 1e4),
    )  # fmt: skip


GPT3 = "AWS, GPT-3 pretraining"
LLAMA2 = "AWS, Llama 2 pretraining"
LLAMA3 = "swiss-ai, Llama 3 baseline"
PRESETS: dict[str, Preset] = {
    "cineca-mt":    Preset(spec=gpt(layers=6,  hidden=2048,  heads=32, positions=4096, vocab=51200),
                           init_method_std=0.006, whose="CINECA, a translation model from scratch"),
    "gpt3-1.7b":    Preset(spec=gpt(layers=24, hidden=2304,  heads=24),  whose=GPT3),
    "gpt3-3.6b":    Preset(spec=gpt(layers=30, hidden=3072,  heads=32),  whose=GPT3),
    "gpt3-7.5b":    Preset(spec=gpt(layers=36, hidden=4096,  heads=32),  whose=GPT3),
    "gpt3-18.4b":   Preset(spec=gpt(layers=40, hidden=6144,  heads=48),  whose=GPT3),
    "gpt3-39.1b":   Preset(spec=gpt(layers=48, hidden=8192,  heads=64),  whose=GPT3),
    "gpt3-76.1b":   Preset(spec=gpt(layers=60, hidden=10240, heads=80),  whose=GPT3),
    "gpt3-145.6b":  Preset(spec=gpt(layers=80, hidden=12288, heads=96),  whose=GPT3),
    "gpt3-310.1b":  Preset(spec=gpt(layers=96, hidden=16384, heads=128), whose=GPT3),
    "llama2-7b":    Preset(spec=llama(layers=32, hidden=4096, ffn=11008, heads=32, groups=32), whose=LLAMA2),
    "llama2-13b":   Preset(spec=llama(layers=40, hidden=5120, ffn=13824, heads=40, groups=40), whose=LLAMA2),
    "llama2-70b":   Preset(spec=llama(layers=80, hidden=8192, ffn=28672, heads=64, groups=8),  whose=LLAMA2),
    "llama3-8b":    Preset(spec=llama(layers=32, hidden=4096, ffn=14336, heads=32, groups=8, third=True), whose=LLAMA3),
    "llama3-70b":   Preset(spec=llama(layers=80, hidden=8192, ffn=28672, heads=64, groups=8, third=True), whose=LLAMA3),
}  # fmt: skip
