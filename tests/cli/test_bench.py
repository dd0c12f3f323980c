"""`mconv bench`: which trials there are and why others are not run, real steps, and what is said of them."""

import json

import jobs
import pytest

from mconv.cli import bench, bench_report
from mconv.cli.app import run
from mconv.errors import MconvError
from mconv.train.config import make
from mconv.train.estimate import machine, sweep
from mconv.train.estimate.fit import CONTEXT, WASTE, Gpu
from mconv.train.loop import trial


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("bench"), spec=jobs.SMALL, mock=True, train_iters=50)


@pytest.fixture
def config(fields, tmp_path, monkeypatch):
    """A run's file with much that a trial does not do, on a machine of 2 cores."""
    monkeypatch.setattr("mconv.convert.folders.host.cores", lambda: 2)
    more = {"save": str(tmp_path / "run"), "save_interval": 2, "eval_interval": 2, "profile": "2", "keep_last": 1}
    (tmp_path / "run.yaml").write_text(json.dumps({**fields, **more}))
    return str(tmp_path / "run.yaml")


def trials(fields, *, room, weak=False, fixed=frozenset(), worlds=(1, 2), sizes=(1, 4)):
    made = sweep.Sweep(worlds=worlds, micro_batches=sizes, fixed=fixed, weak=weak, room=room)
    return list(sweep.trials(make(fields), made))


ROOMY = sweep.Room(gpu=None)


def test_every_layout_of_the_ranks_and_the_reasons_of_the_others(fields):
    """Of 2 key-value groups and 2 layers, on 1 and 2 ranks; a global batch of 4 on two replicas takes no 4 at once."""
    found = trials(fields, room=ROOMY)
    run = [(t.world, t.tp, t.pp, t.micro_batch_size) for t in found if not t.refused]
    assert run == [
        *((1, 1, 1, n) for n in (1, 4)), (2, 1, 1, 1), *((2, 1, 2, n) for n in (1, 4)), *((2, 2, 1, n) for n in (1, 4)),
    ]  # fmt: skip
    (refused,) = (t for t in found if t.refused)
    assert (refused.world, refused.replicas, refused.micro_batch_size) == (2, 2, 4)
    assert "global_batch_size 4 is not a multiple of micro_batch_size 4 x 2 replicas" in refused.refused
    assert all(t.config.sequence_parallel == (t.tp > 1) for t in found if t.config)


def test_weak_scaling_grows_the_batch_with_the_replicas(fields):
    found = {(t.tp, t.pp, t.micro_batch_size): t for t in trials(fields, room=ROOMY, weak=True, worlds=(2,))}
    assert found[1, 1, 4].config.global_batch_size == 8 and found[2, 1, 4].config.global_batch_size == 4


def test_given_fields_stay(fields):
    assert {(t.world, t.tp, t.pp) for t in trials({**fields, "tp": 2}, room=ROOMY, fixed={"tp"}, worlds=(2,))} == {
        (2, 2, 1)
    }
    (alone,) = trials({**fields, "tp": 2}, room=ROOMY, fixed={"tp", "pp"}, worlds=(1,), sizes=(1,))
    assert "tp 2 x pp 1 does not divide 1 ranks" in alone.refused


def test_what_a_plan_says_will_not_fit_is_not_run(fields):
    whole = {(t.tp, t.pp): t.peak for t in trials(fields, room=sweep.Room(gpu=Gpu(10**11)), sizes=(1,), worlds=(2,))}
    least, most = min(whole.values()), max(whole.values())
    gpu = Gpu(round(((least + most) / 2 + CONTEXT) / (1 - WASTE)))
    assert least < gpu.usable < most
    told = {(t.tp, t.pp): t.refused for t in trials(fields, room=sweep.Room(gpu=gpu), sizes=(1,), worlds=(2,))}
    assert {at: bool(why) for at, why in told.items()} == {at: peak > gpu.usable for at, peak in whole.items()}
    assert any(why and "its fullest rank needs" in why for why in told.values())
    shared = trials(fields, room=sweep.Room(gpu=None, free=least), sizes=(1,), worlds=(2,))
    assert all("its ranks need" in t.refused and "are free" in t.refused for t in shared)


def test_the_dry_run_lists_and_runs_nothing(config, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_run", None)
    assert run(["bench", config, "--dry-run", "--micro-batches", "1", "4"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["ranks", "tp", "pp"] and len(lines) == 8 and lines[-1].startswith("not run: 2 ranks")
    assert run(["bench", config, "--dry-run", "--gpu-memory", "2.2"]) in (0, 1)


def test_steps_are_measured_and_nothing_is_left(config, capsys, monkeypatch, tmp_path):
    """Real steps, in this process instead of one of their own."""
    kept = []
    monkeypatch.setattr(
        "mconv.train.launch.ranks.run", lambda target, payload, **how: kept.append(how) or jobs.work(target, payload)
    )
    monkeypatch.setenv("MCONV_PEAK_TFLOPS", "0.001")
    argv = ["bench", config, "--world-sizes", "1", "--micro-batches", "2", "--steps", "2", "--warmup", "1", "--json"]
    assert run(argv) == 0
    (found,) = json.loads(capsys.readouterr().out)["trials"]
    assert len(found["seconds"]) == 2 and found["efficiency"] == 1.0 and found["micro_batch_size"] == 2
    assert found["tokens_per_second"] == pytest.approx(4 * 16 / sorted(found["seconds"])[0], rel=0.9)
    assert found["mfu"] > 0 and found["memory_bytes"] > 10**7
    assert kept == [{"nproc": 1, "preload": bench.PRELOAD, "apart": True}] and not (tmp_path / "run").exists()


def test_a_trial_has_the_batch_of_the_end_of_a_ramp(fields):
    ramped = {**fields, "train_iters": None, "train_samples": 64, "rampup_batch_size": [2, 2, 8], "resume": True}
    made = bench._base(ramped, steps=7)
    assert (made.rampup_batch_size, made.resume, made.global_batch_size) == (None, False, 4)


def test_a_trial_takes_the_steps_of_the_run(fields, monkeypatch):
    """The first steps of the run itself: the same losses."""
    losses, taken = [], trial.step
    monkeypatch.setattr(trial, "step", lambda *a, **k: losses.append(one := taken(*a, **k)) or one)
    found = trial.measure({"config": fields, "steps": 2})
    assert [one.loss for one in losses] == jobs.train(**{**fields, "exit_after": None})["losses"][:2]
    assert found["tokens"] == 4 * 16


def measured(world, tp, rate, *, failed=None, size=1):
    made = make({"init": "random", "preset": "llama2-7b", "mock_data": True, "train_iters": 1, "lr": 1.0, "tp": tp,
                 "nproc_per_node": world, "micro_batch_size": size})  # fmt: skip
    one = sweep.Trial(world=world, tp=tp, pp=1, micro_batch_size=size, config=made)
    if failed:
        return bench_report.measured(one, MconvError(failed), warmup=1)
    told = {"seconds": [9.0, 1.0, 0.9, 1.1], "tokens": rate, "memory": 10**9, "flops_per_token": 1e9, "peak": 1e13}
    return bench_report.measured(one, told, warmup=1)


def results(*found):
    return bench_report.Results(found[0].trial.config, [one.trial for one in found], list(found))


def test_the_simplest_of_the_fastest_is_recommended():
    found = results(
        measured(1, 1, 600), measured(2, 2, 1000), measured(2, 1, 980), measured(4, 1, 900, failed="no memory")
    )
    assert found.recommended.trial.tp == 1 and found.efficiency(found.measured[0]) == pytest.approx(1000 / 1200)
    said = list(found.lines(dry_run=False))
    assert "fastest: 980 tokens/s on 2 ranks, 82% of 2 single ranks" in said
    assert any(line.startswith("not run: 4 ranks, tp 1 x pp 1, micro batch 1: no memory") for line in said)
    assert said[1].split()[6:] == ["1,000", "500", "83%", "5.0%", "1.0", "GB", "10%"]
    assert "--tp 1" in said[-1] and "--nproc-per-node 2" in said[-1]


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    found = results(measured(1, 1, 600), measured(1, 1, 700, size=2), measured(2, 2, 1000), measured(2, 1, 980))
    bench_report.draw(found, tmp_path / "new" / "bench.svg")
    text = (tmp_path / "new" / "bench.svg").read_text()
    assert all(word in text for word in ("tp 2 x pp 1", "2 ranks, tp 1 x pp 1", "so many single ranks", "micro batch"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--world-sizes", "64"], "the 2 cores of this machine"),
        (["--micro-batches", "0"], "must be at least 1"),
        (["--steps", "0"], "at least 1 step"),
        (["--plot", "x.txt"], ".png, .svg, .pdf"),
        (["--data", "none", "--mock-data=false"], "none"),
    ],
)
def test_misuse(words, message, config, capsys, monkeypatch):
    monkeypatch.setattr(machine, "devices", list)
    assert run(["bench", config, *words]) == 2
    assert message in capsys.readouterr().err


def test_it_is_not_for_ranks(config, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["bench", config]) == 2
    assert "without torchrun or srun" in capsys.readouterr().err
