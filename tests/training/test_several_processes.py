"""What happens at an evaluation, in two processes on this machine's CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from models import ROOT

# The evaluation gives metrics to the main process alone, as detectron2's does.
SCRIPT = """
import json, sys
import torch
from detectron2.utils import comm
from runs import register, run_cfg
from fsaf_d2.training import Trainer, launch

def main(cfg, folder):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    trainer = Trainer(cfg)
    values = iter([0.3, 0.5, 0.4, 0.2, 0.9])
    def test(*_):
        value = next(values)
        return {"bbox": {"AP": value}} if comm.is_main_process() else {}
    trainer.test = test
    trainer.resume_or_load(resume=False)
    trainer.train()
    seen = {
        "step": trainer.iter + 1, "left": list(values),
        "weights": [p.double().sum().item() for p in trainer.model.parameters()],
    }
    with open(f"{folder}/{comm.get_rank()}.json", "w") as file:
        json.dump(seen, file)

folder, data = sys.argv[1:]
from pathlib import Path
register(Path(data))
cfg = run_cfg(Path(folder), SOLVER__MAX_ITER=10, TEST__EVAL_PERIOD=2, TEST__PATIENCE=2,
              TEST__LEVEL_LENS=3, TEST__SAMPLES=1, SOLVER__IMS_PER_BATCH=4)
launch(main, device="cpu", args=(cfg, folder))
"""


@pytest.mark.slow
def test_all_stop_at_the_same_step_and_look_at_all_images(digits, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, *torchrun, str(script), str(tmp_path), str(digits)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == other and (one["step"], one["left"]) == (8, [0.9])
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 7
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3
    lens = json.loads((tmp_path / "level_lens.json").read_text())
    (num_objects,) = {sum(x["num_objects"].values()) for x in lens["evaluations"]}
    assert num_objects > 0 and [x["step"] for x in lens["evaluations"]] == [2, 4, 6, 8]
    assert len(list((tmp_path / "samples").iterdir())) == 4
