"""Ranks and nodes that die under torchrun: it starts them again, and the run goes on from its last checkpoint."""

import contextlib
import json
import os
import subprocess
import sys

import hosts
import jobs
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.big, pytest.mark.once]
ITERATIONS = 6
ONE_STORE_EACH = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it torch's agents give restarted ranks the store of the dead ones, whose addresses they find there."""
RANK = """
import os, signal
from mconv.cli.app import main
from mconv.train.loop import loop

step, dies = loop.step, os.environ.get("DIES")
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

def hit(run, *args, **options):
    if run.iteration == 3 and dies == "node":
        os.kill(os.getppid(), signal.SIGKILL)
    if run.iteration == 3 and (dies == "node" or dies == os.environ["RANK"] and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run, *args, **options)

loop.step = hit
main()
"""
"""`mconv` as a rank that is killed in its 4th step: if DIES is its number, in its first life, or with its node."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("restarts"), mock=True, train_iters=ITERATIONS, save_interval=2)


@pytest.fixture(scope="module")
def whole(run):
    """The losses of the run that nothing stops, on one rank."""
    return jobs.train(**{**run, "save_interval": 0})["losses"]


def torchrun(script, folder, *options):
    """The command line of an agent; a dead agent is missed soon, and ranks that do not end are ended soon."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval", "0.2", "--shutdown-timeout", "10"]
    return [*agent, "--max-restarts", "3", *options, str(script), "train", str(folder / "run.json")]


def begun(run, folder, **more):
    """The script of a rank of a run that is described beside it."""
    (folder / "run.json").write_text(json.dumps({**run, "save": str(folder / "save"), **more}))
    (folder / "rank.py").write_text(RANK)
    return folder / "rank.py"


def losses(folder):
    records = [json.loads(line) for line in (folder / "save" / "train.jsonl").read_text().splitlines()]
    return {record["iteration"]: record["loss"] for record in records}


def check(folder, whole, printed):
    """The run has all its steps, the losses are those of the unbroken run, and it went on from the checkpoint."""
    assert (folder / "save" / "latest_checkpointed_iteration.txt").read_text().strip() == str(ITERATIONS), printed
    assert list(losses(folder)) == [*range(1, ITERATIONS + 1)]
    assert list(losses(folder).values()) == pytest.approx(whole, rel=1e-5)
    assert f"iteration 2 of {ITERATIONS}" in printed and f"iteration 0 of {ITERATIONS}" in printed


def test_torchrun_restarts_after_a_killed_worker(run, whole, tmp_path):
    script = begun(run, tmp_path)
    done = subprocess.run(
        torchrun(script, tmp_path, "--standalone", "--nproc-per-node", "2"), capture_output=True, text=True, timeout=240,
        env=os.environ | ONE_STORE_EACH | {"DIES": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    check(tmp_path, whole, done.stdout)


# ---- two hosts -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two hosts with a cable between them."""
    with contextlib.ExitStack() as held:
        try:
            yield held.enter_context(hosts.two(tmp_path_factory.mktemp("hosts")))
        except hosts.NotAllowed as error:
            pytest.skip(f"network namespaces: {error}")


def started(host, argv, log, **more):
    """An agent on a host, which meets the other one on the first host."""
    more |= {"GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "eth0"}
    with log.open("a") as out:
        return subprocess.Popen(
            host.command(*argv), env=os.environ | ONE_STORE_EACH | more, stdout=out, stderr=subprocess.STDOUT
        )


def together(first, nproc):
    """The options of agents on both hosts."""
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.name}:29400", "--rdzv-id", "test"]
    alive = "keep_alive_interval=1,keep_alive_max_attempt=2,join_timeout=120,read_timeout=30"
    return ["--nnodes", "2", "--nproc-per-node", str(nproc), *meet, "--rdzv-conf", alive]


@contextlib.contextmanager
def ended(*agents):
    """Leave none of these processes behind."""
    try:
        yield
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def test_a_run_goes_on_after_a_node_was_lost(run, whole, pair, tmp_path):
    """tp 2 x dp 2 on two hosts; in step 4 the second one is killed, all of it, and comes back."""
    script, (a, b) = begun(run, tmp_path, tp=2), pair
    argv = torchrun(script, tmp_path, *together(a, 2))
    first = started(a, argv, tmp_path / "a.log")
    lost = started(b, argv, tmp_path / "b.log", DIES="node")
    with ended(first, lost):
        lost.wait(timeout=180)
        assert lost.returncode == -9 and first.poll() is None, (tmp_path / "b.log").read_text()[-3000:]
        back = started(b, argv, tmp_path / "b.log")
        with ended(back):
            printed = [(tmp_path / f"{name}.log") for name in "ab"]
            codes = [process.wait(timeout=180) for process in (first, back)]
            text = "".join(file.read_text() for file in printed)
            assert codes == [0, 0], text[-5000:]
    check(tmp_path, whole, text)


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_two_hosts_convert_to_the_bytes_of_one(run, pair, tmp_path):
    from mconv.cli import app

    (tmp_path / "alone").mkdir()
    (tmp_path / "both").mkdir()
    flags = ["--tp", "2", "--pp", "2", "--format", "mp_rank"]
    assert app.run(["hf2meg", run["load"], "--out", str(tmp_path / "alone" / "megatron"), *flags]) == 0
    words = ["-m", "mconv", "hf2meg", run["load"], "--out", str(tmp_path / "both" / "megatron"), *flags]
    argv = [sys.executable, "-m", "torch.distributed.run", *together(pair[0], 1), *words]
    agents = [started(host, argv, tmp_path / f"{host.name}.log") for host in pair]
    with ended(*agents):
        codes = [agent.wait(timeout=120) for agent in agents]
    assert codes == [0, 0], (tmp_path / "node-a.log").read_text()[-3000:]
    assert files(tmp_path / "both") == files(tmp_path / "alone")
