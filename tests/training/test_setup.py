import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from models import tiny_cfg

from fsaf_d2.training import Trainer, load_weights, prepare


@pytest.fixture
def cfg(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return tiny_cfg("DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.DEVICE", "cuda")


def test_without_a_gpu_one_line_says_so_and_the_cpu_is_used(cfg, capsys):
    prepare(cfg, eval_only=False)
    assert cfg.MODEL.DEVICE == "cpu"
    assert capsys.readouterr().out == "No GPU found: running on the CPU.\n"


def test_a_device_that_was_asked_for_is_kept_in_silence(cfg, capsys):
    cfg.MODEL.DEVICE = "cpu"
    prepare(cfg, eval_only=False)
    assert cfg.MODEL.DEVICE == "cpu" and capsys.readouterr().out == ""


def test_a_gpu_is_used_where_there_is_one(cfg, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    prepare(cfg, eval_only=False, num_gpus=2)
    assert cfg.MODEL.DEVICE == "cuda" and capsys.readouterr().out == ""


def test_more_gpus_than_there_are(cfg):
    with pytest.raises(ValueError, match="--num-gpus 3"):
        prepare(cfg, eval_only=False, num_gpus=3)


def test_without_a_gpu_torchrun_is_the_remedy_for_several_processes(cfg):
    with pytest.raises(ValueError, match="torchrun --standalone --nproc-per-node 3 train_net"):
        prepare(cfg, eval_only=False, num_gpus=3)


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of one of four processes on this machine, of eight in all."""

    def start(rank: int) -> None:
        values = {"RANK": rank, "WORLD_SIZE": 8, "LOCAL_RANK": rank % 4, "LOCAL_WORLD_SIZE": 4}
        for name, value in {**values, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
            monkeypatch.setenv(name, str(value))

    return start


def test_only_the_first_process_of_torchrun_speaks(cfg, torchrun, capsys):
    for rank in (0, 3, 4):
        torchrun(rank)
        cfg.MODEL.DEVICE = "cuda"
        prepare(cfg, eval_only=True)
        assert cfg.MODEL.DEVICE == "cpu"
        assert len(capsys.readouterr().out.splitlines()) == (2 if rank == 0 else 0)


@pytest.mark.parametrize("option", ["num_gpus", "num_machines"])
def test_torchrun_and_launch_options_exclude_each_other(cfg, torchrun, option):
    torchrun(0)
    name = option.replace("_", "-")
    with pytest.raises(ValueError, match=rf"--{name} 2 was given, but torchrun .* \(8\)"):
        prepare(cfg, eval_only=False, **{option: 2})


def test_torchrun_with_more_processes_than_gpus(cfg, torchrun, monkeypatch):
    torchrun(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="4 processes on this machine, but 3 GPUs"):
        prepare(cfg, eval_only=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    prepare(cfg, eval_only=False)
    assert cfg.MODEL.DEVICE == "cuda"


def test_torchrun_may_use_the_cpu_of_a_machine_with_gpus(cfg, torchrun, monkeypatch):
    torchrun(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="4 processes on this machine, but 1 GPUs"):
        prepare(cfg, eval_only=False)
    cfg.MODEL.DEVICE = "cpu"
    prepare(cfg, eval_only=False)
    assert cfg.MODEL.DEVICE == "cpu"


def test_a_batch_that_the_processes_cannot_share(cfg, torchrun, monkeypatch):
    cfg.SOLVER.IMS_PER_BATCH = 12
    prepare(cfg, eval_only=False)
    torchrun(0)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH 12 .* a multiple of 8"):
        prepare(cfg, eval_only=False)
    prepare(cfg, eval_only=True)
    # detectron2 makes a batch for 4 processes one for 8.
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 4
    prepare(cfg, eval_only=False)
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    with pytest.raises(ValueError, match=r"a multiple of 5"):
        prepare(cfg, eval_only=False, num_gpus=5)


def test_processes_that_find_different_checkpoints(monkeypatch, tmp_path):
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), save_dir=str(tmp_path))
    monkeypatch.setattr(comm, "all_gather", lambda name: ["model_0001.pth", name])
    with pytest.raises(ValueError, match=r"\(none and 'model_0001\.pth'\): OUTPUT_DIR"):
        load_weights(checkpointer, "", resume=True)


def test_mixed_precision_on_the_cpu(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.ENABLED"):
        prepare(cfg, eval_only=False)
    prepare(cfg, eval_only=True)


def test_keys_that_do_nothing_are_named(monkeypatch, capsys):
    cfg = tiny_cfg("DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.RPN.NMS_THRESH", "0.6")
    prepare(cfg, eval_only=False)
    line = (
        "Warning: MODEL.RPN.NMS_THRESH (the command line) does nothing for FSAF: "
        "MODEL.RETINANET.NMS_THRESH_TEST does that here.\n"
    )
    assert capsys.readouterr().out == line


def test_missing_weights_are_named(cfg):
    cfg.MODEL.WEIGHTS = "nowhere.pth"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        prepare(cfg, eval_only=True)


def test_weights_that_are_a_folder(cfg, tmp_path):
    cfg.MODEL.WEIGHTS = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"MODEL\.WEIGHTS '{tmp_path}' is a folder"):
        prepare(cfg, eval_only=True)


def test_to_evaluate_the_last_checkpoint_there_must_be_one(cfg, tmp_path, capsys):
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(tmp_path), "gone.pth"
    with pytest.raises(ValueError, match=rf"no checkpoint to evaluate in '{tmp_path}'"):
        prepare(cfg, eval_only=True, resume=True)
    torch.save({"model": {}}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    # What the run began with is not needed any more.
    prepare(cfg, eval_only=True, resume=True)
    assert "untrained" not in capsys.readouterr().out


@pytest.mark.parametrize("scheme", ["detectron2://", "https://"])
def test_addresses_are_left_to_detectron2(cfg, scheme):
    path = "ImageNetPretrained/MSRA/R-50.pkl"
    cfg.MODEL.WEIGHTS = path
    with pytest.raises(FileNotFoundError, match=path):
        prepare(cfg, eval_only=True)
    cfg.MODEL.WEIGHTS = scheme + path
    prepare(cfg, eval_only=True)
    assert cfg.MODEL.WEIGHTS.startswith(scheme)


def test_an_untrained_evaluation_says_so(cfg, capsys):
    cfg.MODEL.DEVICE = "cpu"
    prepare(cfg, eval_only=True)
    assert "MODEL.WEIGHTS is empty" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut"])
def test_broken_weights_are_named(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), save_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS '.*broken\.pth' could not be loaded"):
        load_weights(checkpointer, str(tmp_path / "broken.pth"), resume=False)


@pytest.mark.parametrize(
    ("name", "expected"), [("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)]
)
def test_the_named_optimizer_is_built(cfg, name, expected):
    cfg.SOLVER.OPTIMIZER = name
    cfg.SOLVER.BASE_LR = 0.003
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.MODEL.DEVICE = "cpu"
    optimizer = Trainer.build_optimizer(cfg, Trainer.build_model(cfg))
    assert isinstance(optimizer, expected)
    assert {group["lr"] for group in optimizer.param_groups} == {0.003}
    # Norms are not decayed, all else is.
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.0001}


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_a_backbone_may_learn_slower(cfg, name):
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_LR_FACTOR = name, 0.25
    cfg.MODEL.DEVICE = "cpu"
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    rates = {x: group["lr"] for group in optimizer.param_groups for x in group["params"]}
    trained = [(key, x) for key, x in model.named_parameters() if x.requires_grad]
    assert len(rates) == len(trained)
    for key, param in trained:
        share = 0.25 if key.startswith("backbone.bottom_up.") else 1
        assert rates[param] == pytest.approx(cfg.SOLVER.BASE_LR * share), key
    model.backbone = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"SOLVER\.BACKBONE_LR_FACTOR 0\.25 .* set it to 1\.0"):
        Trainer.build_optimizer(cfg, model)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(cfg, channels_last):
    cfg.MODEL.DEVICE, cfg.MODEL.CHANNELS_LAST = "cpu", channels_last
    weight = Trainer.build_model(cfg).towers.cls_subnet[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_gradients_are_clipped_with_either_optimizer(cfg):
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    model = torch.nn.Linear(3, 1)
    optimizer = Trainer.build_optimizer(cfg, model)
    model(torch.full((1, 3), 100.0)).sum().backward()
    optimizer.step()
    assert model.weight.grad.abs().max() <= 1e-3


def test_a_run_that_is_written_over_is_named(cfg, tmp_path, capsys):
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_0000009")
    prepare(cfg, eval_only=True)
    prepare(cfg, eval_only=False, resume=True)
    assert capsys.readouterr().out == "MODEL.WEIGHTS is empty: an untrained network is evaluated.\n"
    prepare(cfg, eval_only=False)
    said = capsys.readouterr().out
    assert said.startswith(f"Warning: OUTPUT_DIR '{tmp_path}' holds a run already, with 'model_000")
    # What it says leads elsewhere, which is refused where a run goes on from it, not here.
    (tmp_path / "last_checkpoint").write_bytes(b"../\xff.pth")
    prepare(cfg, eval_only=False)
    assert capsys.readouterr().out == said


def test_a_run_that_is_too_short_to_select_online_is_named(cfg, capsys):
    cfg.MODEL.DEVICE, cfg.MODEL.FSAF.HEURISTIC_STEPS, cfg.SOLVER.MAX_ITER = "cpu", 30, 30
    cfg.SOLVER.WARMUP_ITERS = 3
    prepare(cfg, eval_only=False)
    assert "HEURISTIC_STEPS 30: in none of the 30 steps" in capsys.readouterr().out
    for key, value in (("HEURISTIC_STEPS", 29), ("LEVEL_SELECTION", "heuristic")):
        cfg.MODEL.FSAF[key] = value
        prepare(cfg, eval_only=False)
        assert capsys.readouterr().out == ""
        cfg.MODEL.FSAF.HEURISTIC_STEPS = 30
