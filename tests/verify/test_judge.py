"""The verdict of both proofs: what passes, what fails, and what is said of it."""

import json
from dataclasses import replace

import pytest
import torch
import verify_jobs
from judge import convert, judged, report
from safetensors.torch import save_file
from tiny import VARIANTS, edit_json, make_llama, make_model, make_qwen3, tensors

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.verify import generate, judge, models, probes
from mconv.verify.noise import ReorderedSums

pytestmark = pytest.mark.once

SAME = ("max_abs_error", "mean_abs_error", "relative_rms", "kl", "loss", "layers", "worst")


def wrong(folder, change, make=make_llama, **options):
    """A model with changed tensors."""
    make(folder, **options)
    held = tensors(folder)
    change(held)
    save_file({n: t.contiguous() for n, t in held.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def swap_gate_up(held):
    gate, up = (f"model.layers.2.mlp.{name}_proj.weight" for name in ("gate", "up"))
    held[gate], held[up] = held[up], held[gate]


# ---- one layer in memory at a time -------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["llama-tied", "llama-all-biases", "mistral-window", "falcon-7b-biases", "falcon-40b"])
@pytest.mark.parametrize("format", ["torch_dist", "mp_rank", "hf"])
def test_streamed_gives_the_very_same_numbers(tmp_path, model, format):
    hf = make_model(model, tmp_path / "hf", dtype=torch.bfloat16)
    other = convert(hf, tmp_path / "m", format="torch_dist", tp=2)
    other = other if format == "torch_dist" else convert(other, tmp_path / "o", format=format)
    whole, streamed = (report(hf, other, streamed=streamed) for streamed in (False, True))
    assert whole["passed"] and streamed["streamed"] and not whole["streamed"]
    assert {name: whole[name] for name in SAME} == {name: streamed[name] for name in SAME}
    assert whole["candidate"] == streamed["candidate"]


def test_the_noise_floor_of_a_streamed_model_is_that_of_the_whole_one(tmp_path):
    """Over all positions that are judged: the row that leaps is the noisiest at its end."""
    hf = make_llama(tmp_path / "hf", num_hidden_layers=2, max_position_embeddings=4096)
    megatron = convert(hf, tmp_path / "m")
    whole, streamed = (report(hf, megatron, streamed=streamed, length=320) for streamed in (False, True))
    assert whole["noise"] == streamed["noise"] and whole["limits"] == streamed["limits"]


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("model", ["llama-gqa", "llama-tied", "falcon-11b"])
def test_streamed_on_real_ranks(tmp_path, world, model, pp):
    hf = make_model(model, tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", tp=2, pp=2)
    layout = {"tp": 2, "pp": pp, "sequence_parallel": True, "streamed": True}
    found = world.run(verify_jobs.verify, a=str(hf), b=str(megatron), **layout)[0]
    assert found["passed"] and found["relative_max"] < 2e-5 and found["candidate"]["loaded_by"] == "megatron-core"


def test_a_streamed_model_holds_its_weights_only_while_they_are_used(tmp_path):
    hf = open_checkpoint(make_llama(tmp_path / "hf"))
    for checkpoint in (hf, open_checkpoint(convert(hf.path, tmp_path / "m"))):
        model = models.model_of(checkpoint, models.RunOptions(streamed=True))
        most = []
        for module in model.modules().values():
            module.register_forward_hook(lambda *_, m=model, seen=most: seen.append(held(m)))
        assert model.run(torch.zeros(1, 8, dtype=torch.long)) is not None
        assert held(model) == 0 and max(most) <= max(layer_bytes(model), 151 * 48 * 4)


def held(model):
    """Bytes of parameters that have memory."""
    return sum(p.numel() * p.element_size() for p in model.model.parameters() if p.device.type != "meta")


def layer_bytes(model):
    return max(sum(p.numel() * 4 for p in module.parameters()) for module in model.modules().values())


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_not_loaded_is_nan(tmp_path, monkeypatch, streamed):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m")
    fill = models.Megatron.fill

    def forgetful(self, parameters, **options):
        fill(self, parameters, **options)
        for name, tensor in parameters.items():
            if name == "decoder.layers.3.mlp.linear_fc2.weight":
                tensor.fill_(float("nan"))

    monkeypatch.setattr(models.Megatron, "fill", forgetful)
    found = report(hf, megatron, streamed=streamed)
    assert not found["passed"] and not found["finite"]
    assert (found["diagnosis"]["layer"], found["diagnosis"]["module"]) == (3, "mlp_out")


def test_it_streams_by_itself_when_the_model_does_not_fit(tmp_path, monkeypatch):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m")
    assert not judged(hf, megatron, length=16)["streamed"]
    monkeypatch.setattr(judge.environment, "available", lambda: 1_000_000)
    assert judged(hf, megatron, length=16)["streamed"]
    assert not judged(hf, megatron, length=16, streamed=False)["streamed"]


# ---- where, and why ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("streamed", [False, True])
def test_gate_and_up_are_named_with_their_layer_and_what_undoing_leaves(tmp_path, streamed):
    hf = make_llama(tmp_path / "hf")
    found = judged(hf, convert(wrong(tmp_path / "wrong", swap_gate_up), tmp_path / "m"), length=64, streamed=streamed)
    said = found["diagnosis"]
    assert (said["at"], said["layer"], said["module"], said["departing"]) == ("layer 2 mlp in", 2, "mlp_in", ["2"])
    (guess,) = said["guesses"]
    assert guess["name"] == "gate-up-swapped" and guess["error_after"] < 1e-5 < 1 < said["error"]
    assert "layer 2 mlp_in.weight: gate and up are swapped (undoing it leaves" in "\n".join(said["lines"])
    assert next(m["module"] for m in said["modules"] if m["error"] > said["limit"]) == "mlp_in"


def test_two_faults_are_both_found(tmp_path):
    def both(held):
        swap_gate_up(held)
        held["model.layers.0.input_layernorm.weight"] -= 1

    found = judged(make_llama(tmp_path / "hf"), convert(wrong(tmp_path / "wrong", both), tmp_path / "m"), length=64)
    assert found["diagnosis"]["departing"] == ["0", "2"]
    assert {g["name"]: g["error_after"] < 1e-5 for g in found["diagnosis"]["guesses"]} == {
        "gate-up-swapped": True, "norm-off-by-one": True,
    }  # fmt: skip


CONFIGS = {
    "norm": ({}, {"rms_norm_eps": 1e-3}, "norm-epsilon", "attn_norm"),
    "rope": ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope-base", "rope"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("turned", [False, True], ids=["megatron is wrong", "the export is wrong"])
def test_numbers_of_the_architecture_are_tried_too(tmp_path, name, turned):
    options, change, guess, module = CONFIGS[name]
    hf, other = make_llama(tmp_path / "hf", **options), make_llama(tmp_path / "other", **options)
    edit_json(other / "config.json", **change)
    a, b = (convert(other, tmp_path / "m"), hf) if turned else (hf, convert(other, tmp_path / "m"))
    said = judged(a, b, length=64)["diagnosis"]
    assert (said["layer"], said["module"]) == (0, module) and said["departing"][:4] == ["0", "1", "2", "3"]
    assert [(g["name"], g["error_after"] < 1e-5) for g in said["guesses"]] == [(guess, True)]


def test_a_norm_of_heads_is_a_module_of_its_own(tmp_path):
    def turn(held):
        name = "model.layers.2.self_attn.k_norm.weight"
        held[name] = held[name].flip(0)

    bad = wrong(tmp_path / "bad", turn, make=make_qwen3)
    said = judged(make_qwen3(tmp_path / "hf"), convert(bad, tmp_path / "m"), length=32)["diagnosis"]
    assert said["at"] == "layer 2 k norm"
    assert [one["module"] for one in said["modules"][:5]] == ["attn_norm", "qkv", "q_norm", "k_norm", "rope"]


OUTSIDE = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "final norm", "lm_head.weight": "head"}


@pytest.mark.parametrize("tensor", OUTSIDE)
def test_outside_of_the_layers(tmp_path, tensor):
    def scale_rows(held):
        held[tensor] = (held[tensor].t() * torch.linspace(0.5, 1.5, held[tensor].shape[0])).t()

    bad = wrong(tmp_path / "wrong", scale_rows)
    said = judged(make_llama(tmp_path / "hf"), convert(bad, tmp_path / "m"), length=32)["diagnosis"]
    assert said["at"] == OUTSIDE[tensor] and said["layer"] is None and len(said["departing"]) == 1


def test_a_fault_in_one_ranks_shard_is_named_with_its_rank(tmp_path, world):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", format="mp_rank", tp=2)
    file = next(megatron.rglob("mp_rank_01/model_optim_rng.pt"))
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.1.mlp.linear_fc2.weight"].mul_(1.5)
    torch.save(state, file)
    digests = judged(hf, megatron, proofs="digests")["digests"]
    assert "mp_rank_01/" in "".join(digests["lines"])
    found = world.run(verify_jobs.verify, a=str(hf), b=str(megatron), tp=2, digests=json.loads(json.dumps(digests)))[0]
    assert not found["passed"] and found["diagnosis"]["at"] == "layer 1 mlp out"
    assert any("only in the share of tp rank 1 of 2" in line for line in found["diagnosis"]["lines"])


def test_a_rank_that_loads_other_weights_than_its_file_has_is_named(tmp_path, world):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", tp=2)
    found = world.run(verify_jobs.forgetful, a=str(hf), b=str(megatron), tp=2, pp=2, rank=3)[0]
    assert not found["passed"]
    assert any(why.startswith("tp rank 1 of stage 1 holds other weights") for why in found["failures"])
    assert found["diagnosis"]["at"] is None and "on one rank" in found["diagnosis"]["lines"][0]


# ---- both proofs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_cast_passes_and_a_fault_beneath_it_does_not(tmp_path, dtype, turned):
    hf = make_llama(tmp_path / "hf", initializer_range=0.02)
    cast, bad = convert(hf, tmp_path / "m", dtype=dtype), wrong(tmp_path / "bad", swap_gate_up, initializer_range=0.02)
    found = judged(*((cast, hf) if turned else (hf, cast)), length=64)
    assert (
        found["passed"]
        and found["rounded_to"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]
        and not found["digests"]["exact"]
    )
    assert found["relative_max"] < 2e-5, "as close as without a cast: both were rounded"
    assert not judged(*((cast, bad) if turned else (bad, cast)), length=64)["passed"]


def test_each_proof_alone_and_both(tmp_path, capsys):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m")
    for options, ran in (([], "pass pass"), (["--digests"], "pass not run"), (["--logits"], "not run pass")):
        length = [] if options == ["--digests"] else ["--length", "16"]
        assert run(["verify", str(hf), str(megatron), "--json", *options, *length]) == 0
        verdicts = json.loads(capsys.readouterr().out)["verdicts"]
        assert f"{verdicts['digests']} {verdicts['logits']}" == ran
    assert run(["verify", str(hf), str(megatron), "--digests", "--logits"]) == 2


def test_report_only_exits_0_and_says_that_it_failed(tmp_path, capsys):
    hf, other = make_llama(tmp_path / "hf"), wrong(tmp_path / "wrong", swap_gate_up)
    assert run(["verify", str(hf), str(other), "--length", "16"]) == 1
    assert run(["verify", str(hf), str(other), "--length", "16", "--report-only"]) == 0
    assert capsys.readouterr().out.count("FAIL") == 2
    assert run(["verify", str(hf), str(other), "--digests"]) == 1
    assert "layer 2 mlp_in.weight: gate and up are swapped" in capsys.readouterr().out


def test_models_of_other_sizes_are_different_not_an_error(tmp_path):
    hf, other = make_llama(tmp_path / "hf"), make_llama(tmp_path / "o", num_hidden_layers=3, intermediate_size=96)
    found = judged(hf, convert(other, tmp_path / "m"), length=16)
    assert found["verdicts"] == {"digests": "fail", "logits": "fail", "generation": "not run"}


def test_what_cannot_run_is_different_where_the_tensors_say_so_and_else_not_judged(tmp_path, capsys):
    hf = make_model("falcon-rw", tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m")
    assert run(["verify", str(hf), str(megatron), "--length", "16"]) == 2
    assert "ALiBi" in capsys.readouterr().err
    other = make_model("falcon-rw", tmp_path / "other", seed=1)
    assert run(["verify", str(other), str(megatron), "--length", "16"]) == 1
    assert "because the logits could not be compared" in capsys.readouterr().out
    assert run(["verify", str(hf), str(megatron), "--digests"]) == 0


def test_a_vocabulary_that_only_the_reference_knows(tmp_path):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", format="mp_rank")
    next(megatron.rglob("mconv.json")).unlink()
    file = next(megatron.rglob("model_optim_rng.pt"))
    state = torch.load(file, weights_only=False)
    state["args"].vocab_size = None
    torch.save(state, file)
    found = judged(hf, megatron, length=16)
    assert found["passed"] and "151, as hf has" in found["assumed"][0]


@pytest.mark.parametrize("name", ["nobody/nothing", "no-folder", "a/b/c"])
def test_a_name_that_is_no_folder_and_not_in_the_cache(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run(["verify", str(make_llama(tmp_path / "hf")), name]) == 2
    error = capsys.readouterr().err
    assert name in error and "Traceback" not in error


def test_cuda_that_is_not_there_is_refused(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    hf = str(make_llama(tmp_path / "hf"))
    assert run(["verify", hf, hf, "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


# ---- generation --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("streamed", [False, True])
def test_greedy_tokens_are_those_that_transformers_generates(tmp_path, streamed):
    hf = make_llama(tmp_path / "hf")
    found = judged(hf, convert(hf, tmp_path / "m"), length=16, generate=6, streamed=streamed)
    assert found["passed"] and found["verdicts"]["generation"] == "pass" and found["generation"]["agreement"] == 1.0
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(hf)
    said = generate.reference(
        models.model_of(checkpoint, models.RunOptions(streamed=streamed)), checkpoint, tokenizer_folder=None, new=6
    )
    model = AutoModelForCausalLM.from_pretrained(hf)
    model.generation_config.eos_token_id = None
    prompts = said.tokens[:, : said.prompt]
    wanted = model.generate(prompts, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(prompts))
    assert torch.equal(said.tokens, wanted)


def test_another_model_writes_other_tokens(tmp_path):
    hf, other = make_llama(tmp_path / "hf"), make_llama(tmp_path / "other", seed=1)
    found = judged(hf, convert(other, tmp_path / "m"), length=16, generate=6)
    assert found["verdicts"]["generation"] == "fail" and any("greedy token" in why for why in found["failures"])


def test_tokens_that_the_reference_ranks_alike_are_no_difference():
    scores = torch.tensor([[[1.0, 1.0 + 1e-7, 0.0]]])
    said = generate.Generated(tokens=torch.tensor([[0, 1]]), prompt=1, scores=scores, from_text=False)
    followed = torch.tensor([[[1.0 + 1e-7, 1.0, 0.0]]])
    assert generate.verdict(said, followed, noise=1e-6)["passed"]
    assert not generate.verdict(said, followed, noise=0.0)["passed"]


# ---- probes and noise --------------------------------------------------------------------------------------------------
def test_a_row_leaps_to_the_last_position_where_the_others_do_not_reach_it(tmp_path):
    spec = open_checkpoint(make_llama(tmp_path / "hf", max_position_embeddings=131072)).spec
    asked = probes.probe(spec, tokenizer_folder=None, batch=3, length=512, seed=1)
    assert asked.reach == 131072 and torch.equal(asked.positions[0], torch.arange(512))
    leaps = asked.positions[1].diff()
    assert leaps.min() > 0 and asked.positions[1][:128].equal(torch.arange(128)) and leaps.max() > 300
    assert len({tuple(row.tolist()) for row in asked.tokens}) == 3, "each row has a seed of its own"
    short = probes.probe(replace(spec, max_position_embeddings=512), tokenizer_folder=None, batch=3, length=512, seed=1)
    assert torch.equal(short.positions, torch.arange(512).expand(3, 512))


def test_llama3_rope_far_past_its_original_length_is_seen_by_the_leap_alone(tmp_path):
    wide = {**VARIANTS["llama3-rope"], "head_dim": 32, "max_position_embeddings": 8192}
    hf, bad = make_llama(tmp_path / "hf", **wide), make_llama(tmp_path / "bad", **wide)
    edit_json(bad / "config.json", rope_parameters={**wide["rope_parameters"], "factor": 9.0})
    right, megatron = convert(hf, tmp_path / "right"), convert(bad, tmp_path / "m")
    near, far = (report(hf, megatron, length=24, batch=batch)["relative_max"] for batch in (1, 2))
    assert far > 20 * near and report(hf, right, length=24)["relative_max"] < 2e-5


def test_another_order_of_sums_is_the_same_function_and_not_the_same_bits():
    x, w = torch.randn(64, 512), torch.randn(256, 512)
    plain = torch.nn.functional.linear(x, w)
    with ReorderedSums():
        other, product = torch.nn.functional.linear(x, w), x @ w.t()
    assert torch.equal(other, product) and not torch.equal(plain, other)
    assert torch.allclose(plain, other, rtol=1e-4, atol=1e-4)


def test_a_probe_costs_a_large_model_no_more_than_a_small_one(tmp_path):
    spec = replace(open_checkpoint(make_llama(tmp_path / "hf")).spec, max_position_embeddings=4096)
    lengths = [probes.length_for(spec, length=None, parameters=n, batch=3) for n in (10**9, 7 * 10**9, 70 * 10**9)]
    assert lengths == [1024, 704, 512]
