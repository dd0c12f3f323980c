"""No false alarm: what the real peers wrote passes, in fp32 and bf16, at any layout, and what they got wrong fails."""

from pathlib import Path

import pytest
import verify_jobs
from judge import judged

from mconv.verify.checkpoints import open_both

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
PAIRS = {
    "megatron-bridge": {
        "llama-gqa-untied-fp32": ["megatron"],
        "llama32-tied-rope-llama3-bf16": ["megatron", "megatron-0.6.2-padded", "megatron-pp2"],
        "mistral-window-bf16": ["megatron"],
    },
    "megatron-bridge-qwen": {
        "qwen2-tied-bf16": ["megatron-pp2"],
        "qwen25-gqa-untied-bf16": ["megatron-0.3.1", "megatron-tp2"],
        "qwen3-headdim-untied-bf16": ["megatron-tp2-padded"],
        "qwen3-tied-bf16": ["megatron"],
    },
    "megatron-llm": {
        "codellama-mha": ["megatron"],
        "falcon40-gqa": ["megatron", "megatron-tp1pp2", "megatron-tp2pp1", "megatron-tp2pp2"],
        "falcon7-mqa": ["megatron"],
        "llama-label32000": ["megatron"],
        "llama-mha": ["megatron"],
        "llama2-gqa": ["megatron", "megatron-tp1pp2", "megatron-tp2pp1", "megatron-tp2pp2", "meta", "hf-export"],
        "llama2-gqa-bf16": ["megatron", "megatron-tp2pp2"],
        "mistral-gqa": ["megatron"],
        "mistral-window16": ["megatron"],
    },
    "megatron-lm": {
        name: ["ckpt"]
        for name in (
            "legacy-dp2-distopt", "legacy-tp1-adam", "legacy-tp1-gqa-bf16", "legacy-tp2pp2-mha-pad",
            "legacy-tp2pp2-vpp2-bf16", "td-dp2-distopt", "td-dp2-distopt-reshardable", "td-tp1-gqa-pad",
            "td-tp1-tied-eps6", "td-tp2-mha-bf16", "td-tp2pp2-llama3",
        )
    },
}  # fmt: skip
CASES = [f"{who}/{case}/{made}" for who, cases in PAIRS.items() for case, several in cases.items() for made in several]
LAYOUTS = (
    {"tp": 2, "pp": 2, "sequence_parallel": True}, {"tp": 4, "pp": 1}, {"tp": 1, "pp": 4}, {"tp": 2, "pp": 1},
)  # fmt: skip

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout"),
]


def folders(case):
    return (GOLDEN / case).parent / "hf", GOLDEN / case


@pytest.mark.parametrize("case, dtype", [(c, "fp32") for c in CASES] + [(c, "bf16") for c in CASES[::3]])
def test_what_the_peers_wrote_passes(case, dtype):
    report = judged(*folders(case), dtype=dtype, length=48)
    assert report["passed"], report["failures"]
    assert report["verdicts"] == {"digests": "pass", "logits": "pass", "generation": "not run"}


@pytest.mark.parametrize("number, case", [(n, CASES[n]) for n in range(0, len(CASES), 3)], ids=str)
def test_it_passes_at_other_layouts(world, number, case):
    a, b = folders(case)
    layout = LAYOUTS[number // 3 % len(LAYOUTS)]
    said = open_both(a, b, {})[1].hints
    try:
        found = world.run(verify_jobs.verify, a=str(a), b=str(b), b_hints=said, length=48, **layout)[0]
    except AssertionError as error:
        assert "LayoutError" in str(error), error  # an odd head or layer count that cannot be shared
    else:
        assert found["passed"], found["failures"]


def test_a_vocabulary_that_the_exporter_left_padded_fails():
    """Megatron-LLM's exporter keeps all padded rows: 512 for 389."""
    case = GOLDEN / "megatron-llm" / "llama2-trained"
    report = judged(case / "megatron-trained", case / "hf-export", hints={"vocab_size": 389}, length=48)
    assert not report["passed"] and any("123 tokens more" in why for why in report["failures"])
