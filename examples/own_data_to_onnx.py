# %% [markdown]
# # From your own data to an exported detector
#
# Check the data, train, evaluate, predict, export to ONNX, and run the exported file. Each cell is
# one step; `# %%` begins a cell in VS Code, PyCharm and Spyder, and
# `jupytext --to ipynb own_data_to_onnx.py` makes a notebook of it. As a program:
# `python examples/own_data_to_onnx.py`, in the repository's folder, a minute or two on 2 CPU cores.

# %% Settings. DATA may be a folder in COCO's, Roboflow's, Pascal VOC's or YOLO's layout, or a COCO
# file with its images as "ann.json:images/"; empty for a few made images of digits.
from pathlib import Path

TRAIN_DATA = ""
VAL_DATA = ""
STEPS = 300
OUTPUT = Path("output/own_data_to_onnx")
CONFIG = "configs/Base-FSAF-small.yaml"

if not TRAIN_DATA:
    from fsaf_d2.data.reading.digits import make_digits

    make_digits(OUTPUT, num_train=200, num_val=40, image_size=160)
    TRAIN_DATA, VAL_DATA = (
        f"{OUTPUT}/digits/annotations/{part}.json:{OUTPUT}/digits/{part}"
        for part in ("train", "val")
    )

# %% 1. Check: what is wrong with the annotations and images, before anything is trained on them.
from fsaf_d2.data.checking.check_source import check_source
from fsaf_d2.data.checking.output import as_text, to_dict
from fsaf_d2.data.reading.sources import open_source

check = check_source(open_source(TRAIN_DATA, split="train"))
print(as_text(to_dict(check, limit=None)))
assert check.num_errors == 0, "Mend them first: tools/check_data.py --fix"

# %% 2. Train. Classes and their number come from the data. For data of yours, more steps.
from fsaf_d2 import load_config
from fsaf_d2.training import Trainer, prepare, use_own_data

settings = {
    "OUTPUT_DIR": OUTPUT,
    "SOLVER.MAX_ITER": STEPS,
    "SOLVER.WARMUP_ITERS": min(STEPS // 2, 20),
    "SOLVER.IMS_PER_BATCH": 4,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (160,),
    "INPUT.MIN_SIZE_TEST": 160,
    # At the end: the checkpoint then says from which score on a detection counts.
    "TEST.EVAL_PERIOD": STEPS,
}
cfg = load_config(CONFIG, [str(word) for pair in settings.items() for word in pair])
use_own_data(cfg, TRAIN_DATA, VAL_DATA)
prepare(cfg, eval_only=False)
trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()

# %% 3. Evaluate. Tables, curves and the worst mistakes are in OUTPUT's inference/ folder.
results = Trainer.test(cfg, trainer.model)
print("AP", results["bbox"]["AP"], "AP50", results["bbox"]["AP50"])

# %% 4. Predict, from the checkpoint alone.
import cv2

from fsaf_d2 import load_detector

images = [str(file) for file in sorted(Path(VAL_DATA.rpartition(":")[2]).rglob("*.jpg"))[:20]]
detector = load_detector(OUTPUT / "model_final.pth", device="cpu")
found = detector(images[0])
print(len(found), "objects in", images[0])
cv2.imwrite(str(OUTPUT / "drawn.jpg"), detector.draw(images[0], found))

# %% 5. Export, and prove that the file finds what the detector finds.
from fsaf_d2.export.comparison import compare
from fsaf_d2.export.writing import write_program, write_sidecar

file = OUTPUT / "detector.onnx"
write_program(detector, file, "onnx", with_nms=True)
write_sidecar(detector, file, with_nms=True)
exported = load_detector(file)
comparison = compare(detector, exported, images)
assert not comparison.failures, comparison.failures
print(comparison.num_detections, "equal detections in", comparison.num_images, "images")

# %% 6. Use the file. onnxruntime alone can run it too: docs/export.md.
for image in images[:3]:
    found = exported(image)
    print(image, [exported.class_names[i] for i in found.pred_classes.tolist()])
