"""Runs of the project's programs, each in a process of its own.

``run`` is ``subprocess.run`` for a script, but without the seconds that importing torch takes every
time: a helper process has imported what is not this project's, and is forked for each run. What
reads the environment when it is imported, such as detectron2's list of data sets, and the project
itself are imported by the run. That a program also starts in a fresh interpreter is for one test
of each to show.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
# Without detectron2.data, which registers data sets where the environment says.
PRELOADED = [
    *("torch", "torchvision", "numpy", "cv2", "PIL.Image", "matplotlib.pyplot"),
    *("jinja2", "pycocotools.cocoeval", "fvcore.nn", "fvcore.transforms.transform"),
    *("detectron2.layers", "detectron2.config", "detectron2.structures", "detectron2.solver"),
    *("detectron2.utils.events", "detectron2.utils.logger", "torch.utils.tensorboard"),
    *("torch.distributed", "torch.distributed.elastic.multiprocessing.errors"),
]


def load_script(name: str, folder: str = "tools") -> ModuleType:
    """A script by its path: detectron2 has a package of the name tools, too."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    script: Path | str,
    *args: object,
    cwd: Path | str | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """Run a script with these arguments to its end, as ``python SCRIPT ARGS``.

    The environment is this process's, with what ``env`` adds; no GPU is seen.
    """
    words = [str(word) for word in (script, *args)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("out", "err")]
        places = {"files": files, "cwd": str(cwd or os.getcwd())}
        code = _ask({"argv": words, "env": environment, "timeout": timeout, **places})
        out, err = (Path(file).read_text(encoding="utf-8", errors="replace") for file in files)
    return subprocess.CompletedProcess(words, code, out, err)


def _ask(request: dict) -> int:
    """Have the helper fork for a run; its exit code."""
    helper = _helper()
    helper.stdin.write(json.dumps(request) + "\n")
    helper.stdin.flush()
    answer = json.loads(helper.stdout.readline())
    if answer["late"]:
        raise subprocess.TimeoutExpired(request["argv"], request["timeout"])
    return answer["code"]


@functools.cache
def _helper() -> subprocess.Popen:
    """The process that is forked."""
    helper = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def end() -> None:
        helper.stdin.close()
        helper.wait()

    atexit.register(end)
    return helper


def _serve() -> str | None:
    """Fork for each request; returns the script in a process that is to run it, else None."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # What is shared with the runs is not copied for the collector.
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            return _become(request)
        print(json.dumps(_wait(pid, request["timeout"])), flush=True)
    return None


def _wait(pid: int, timeout: float) -> dict:
    """How a process ended; it is killed with its children when the time is over."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(pid, signal.SIGKILL)

    timer = threading.Timer(timeout, end)
    timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    timer.cancel()
    # No thread is to be there at the next fork.
    timer.join()
    return {"code": code, "late": late.is_set()}


def _become(request: dict) -> str:
    """Make this process one that has been started as the request says; returns its script."""
    os.setpgid(0, 0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    opened = [os.open(os.devnull, os.O_RDONLY), *(os.open(x, flags) for x in request["files"])]
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # The first was this script's folder.
    sys.path[:1] = [os.path.dirname(os.path.abspath(sys.argv[0])), *paths]
    return sys.argv[0]


if __name__ == "__main__" and (script := _serve()):
    runpy.run_path(script, run_name="__main__")
