"""Runs on a real Slurm of this machine: `make test-slurm`.

Jobs are submitted by `mconv launch slurm --submit`: one node, and under its torch agent two ranks with gloo.
"""

import contextlib
import json
import re
import sys

import jobs
import pytest
import slurm

from mconv.cli import app

pytestmark = [pytest.mark.slow, pytest.mark.big, pytest.mark.once]
ITERATIONS = 8
CLUSTER = {"gpus_per_node": 0, "ranks_per_node": 2, "cpus_per_task": 2, "python": sys.executable,
           "time": "60", "signal_seconds": 1200, "chain": True, "requeue": True, "network_interface": "lo"}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm, of which this process's clients are."""
    folder = tmp_path_factory.mktemp("slurm")
    with contextlib.ExitStack() as held:
        try:
            made = held.enter_context(slurm.running(folder))
        except slurm.NotHere as error:
            pytest.skip(str(error))
        patched = held.enter_context(pytest.MonkeyPatch.context())
        for name, value in slurm.environment(made.conf).items():
            patched.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("run"), spec=jobs.SMALL, mock=True, train_iters=ITERATIONS)


@pytest.fixture
def launch(tmp_path, capfd):
    """`mconv launch WORDS`, which returns what it prints; it must end with exit code 0."""

    def run(*words):
        code = app.run(["launch", *map(str, words)])
        said = capfd.readouterr()
        assert code == 0, said.err
        return said.out

    return run


def submitted(launch, folder, fields, *flags, **cluster):
    """Submit a run that is saved in `folder`/save; returns the id of its job."""
    (folder / "run.yaml").write_text(json.dumps({**fields, "save": str(folder / "save")}))
    (folder / "cluster.yaml").write_text(json.dumps({"cluster": {**CLUSTER, **cluster}}))
    said = launch("slurm", folder / "run.yaml", "--cluster", folder / "cluster.yaml", "--submit", *flags)
    return re.findall(r"^submitted job (\d+)$", said, re.M)[0]


def output(folder, job):
    file = folder / "save" / "slurm" / f"{job}.out"
    return file.read_text() if file.exists() else ""


def printed(folder, job, text):
    """Wait until a job has printed a text."""
    slurm.until(lambda: "" if text in output(folder, job) else None, 300, f"{text!r} of job {job}")


def losses(folder):
    records = [json.loads(line) for line in (folder / "save" / "train.jsonl").read_text().splitlines()]
    return {record["iteration"]: record["loss"] for record in records}


WAITS = """
case $MCONV_ITERATION in
  2) until [ -e {0}/requeued ]; do sleep 0.2; done ;;
  4) until grep -q 'SIGUSR[2]: ' {0}/save/slurm/*.out; do sleep 0.2; done ;;
esac
"""
"""The command after each checkpoint, which makes a run of milliseconds last until Slurm has done what is tested."""


def test_requeued_signalled_and_chained_a_run_has_the_losses_of_an_unbroken_one(cluster, launch, fields, tmp_path):
    """It is put back into the queue in step 2, gets Slurm's signal before its limit in step 4; the next job ends it."""
    whole = jobs.train(**fields)["losses"]
    job = submitted(
        launch, tmp_path, {**fields, "save_interval": 2, "after_checkpoint": WAITS.format(tmp_path)}
    )  # fmt: skip
    printed(tmp_path, job, "saving iteration 2")
    assert re.search(rf"job {job}: RUNNING(.*\n)+run .*: iteration 2,", launch("status", tmp_path / "save"))

    cluster.run("scontrol", "requeue", job)
    printed(tmp_path, job, "SIGTERM: ")
    (tmp_path / "requeued").touch()
    slurm.until(lambda: "" if cluster.job(job, "Restarts") == "1" else None, 300, "the requeue")
    printed(tmp_path, job, "saving iteration 4")

    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")  # the signal is due 20 minutes before: now
    assert cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT") == "COMPLETED", output(tmp_path, job)
    assert "stopped by SIGUSR2, at iteration 5" in output(tmp_path, job)

    after = re.findall(r"queued job (\d+)", output(tmp_path, job))
    assert len(after) == 1  # not once more when it was put back
    assert cluster.wait(after[0], "COMPLETED", "FAILED") == "COMPLETED", output(tmp_path, after[0])
    last = re.findall(r"cancelling job (\d+): the run has taken its last step", output(tmp_path, after[0]))
    assert cluster.wait(last[0], "CANCELLED") and not cluster.run("squeue", "--noheader")
    assert list(losses(tmp_path)) == [*range(1, ITERATIONS + 1)]
    assert list(losses(tmp_path).values()) == pytest.approx(whole, rel=1e-5)


def test_a_job_that_takes_no_step_ends_the_chain(cluster, launch, fields, tmp_path):
    """Its data is away when it starts; the plan was not asked."""
    job = submitted(launch, tmp_path, {**fields, "load": str(tmp_path / "away")}, "--no-plan")
    assert cluster.wait(job, "COMPLETED", "FAILED") == "FAILED"
    said = output(tmp_path, job)
    (after,) = re.findall(r"cancelling job (\d+): this job took no step", said)
    assert cluster.wait(after, "CANCELLED") and "away" in said


def test_status_logs_and_stop(cluster, launch, fields, tmp_path):
    """A run without end, stopped in order: it saves, and its successor is cancelled."""
    job = submitted(launch, tmp_path, {**fields, "train_iters": 10**6, "log_interval": 10})
    printed(tmp_path, job, "iteration       20/")
    assert re.search(rf"job {job}: RUNNING(.*\n)+run .*: iteration \d+, loss", launch("status", tmp_path / "save"))
    assert "iteration " in launch("logs", tmp_path / "save", "--lines", "3")
    said = launch("stop", tmp_path / "save")
    assert f"scancel --signal=USR2 {job}" in said and re.search(r"^scancel \d+$", said, re.M)
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", output(tmp_path, job)
    assert "stopped by SIGUSR2" in launch("logs", tmp_path / "save")
    assert (tmp_path / "save" / "latest_checkpointed_iteration.txt").is_file()
    assert "nothing is left to stop" in launch("stop", tmp_path / "save") and not cluster.run("squeue", "--noheader")
