"""The tests' own way of running programs, and how they get at them."""

import re
import subprocess
from pathlib import Path

import programs
import pytest

TESTS = Path(__file__).parent


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(
        "import os, sys, time\n"
        "import torch\n"
        "print(sys.argv[1:], os.getcwd(), os.environ['MINE'], __name__)\n"
        "print('aside', file=sys.stderr)\n"
        "time.sleep(float(sys.argv[1]))\n"
        "sys.exit(sys.argv[2])\n"
    )
    return file


def test_a_run_is_that_of_the_command(script, tmp_path):
    result = programs.run(script, 0, "the end", cwd=tmp_path, env={"MINE": "x"})
    assert result.stdout == f"['0', 'the end'] {tmp_path} x __main__\n"
    assert (result.stderr, result.returncode) == ("aside\nthe end\n", 1)
    assert programs.run(script).returncode == 1  # no MINE is left over


def test_a_run_that_takes_too_long_is_ended(script):
    with pytest.raises(subprocess.TimeoutExpired):
        programs.run(script, 60, "", env={"MINE": "x"}, timeout=0.5)
    assert programs.run(script, 0, "", env={"MINE": "x"}).returncode == 1


def test_no_test_imports_the_tools_by_their_name():
    """Newer detectron2 installs a package that is called tools; see programs.load_script."""
    for file in TESTS.rglob("*.py"):
        found = re.search(r"^\s*(from|import) tools\b", file.read_text(), flags=re.MULTILINE)
        assert not found, f"{file}: {found.group()}"
