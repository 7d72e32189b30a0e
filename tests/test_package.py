import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_without_detectron2_one_error_names_both_ways_to_get_it():
    code = "import sys; sys.modules['detectron2'] = None; import fsaf_d2"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stderr.count("Error: ") == 1
    message = result.stderr[result.stderr.rindex("ImportError: ") :]
    assert "python tools/install_detectron2.py" in message
    assert "pip install" in message and "detectron2.git" in message
