"""`make test-stack` runs the test files that touch megatron, and leaves out those that cannot."""

from pathlib import Path

import pytest
import reach

HERE = Path(__file__).parent
FILES = {
    "imports megatron": "from megatron.core import parallel_state",
    "in a function": "def test():\n    import megatron.core.optimizer",
    "the package's training": "from mconv.train.model import engine",
    "verifying": "def test():\n    from mconv.verify import logits",
    "the ranks": "def test(world):\n    world.run(len)",
    "a helper of the tests": "from jobs import train",
    "golden data": "from pathlib import Path\nGOLDEN = Path('..') / 'shared' / 'golden'",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_file_that_touches_megatron_is_selected(text, tmp_path):
    (tmp_path / "test_planted.py").write_text(text)
    assert reach.touches(tmp_path / "test_planted.py")


def test_a_file_that_only_converts_is_not(tmp_path):
    (tmp_path / "test_planted.py").write_text(
        "import tiny\nfrom mconv.convert.engine import rewrite\nfrom mconv.shard import cut\n"
    )
    assert not reach.touches(tmp_path / "test_planted.py")


@pytest.mark.parametrize(
    "part", ["train", "verify", "convert/test_peers.py", "convert/test_golden.py", "convert/test_containers.py"]
)
def test_what_the_other_stack_must_run_is_selected(part):
    files = [HERE / part] if part.endswith(".py") else sorted((HERE / part).glob("test_*.py"))
    assert [file.name for file in files if not reach.touches(file)] == []


def test_the_selection_leaves_something_out():
    files = sorted(HERE.rglob("test_*.py"))
    assert 0 < sum(map(reach.touches, files)) < len(files)
