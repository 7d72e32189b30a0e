import ast
import graphlib
import re
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


def test_prediction_does_not_bring_training():
    commands = "from fsaf_d2.commands import export_command, predict_command"
    imports = f"import fsaf_d2.prediction, sys; {commands}"
    code = f"{imports}; sys.exit(any(x.startswith('fsaf_d2.training') for x in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def sources(*rooms: str) -> dict[str, str]:
    """The text of the package's files, by name."""
    package = ROOT / "fsaf_d2"
    files = (x for room in rooms or ("",) for x in (package / room).rglob("*.py"))
    return {file.relative_to(package).as_posix(): file.read_text() for file in files}


def test_the_workshop_knows_no_detector_by_name():
    allowed = ("detectors/", "weights/layouts.py", "config", "model_zoo.py")
    named = [name for name, text in sources().items() if re.search("FSAF|anchor_free", text)]
    assert [name for name in named if not name.startswith(allowed)] == []


def test_no_file_has_the_name_of_another():
    names = [name.rpartition("/")[2] for name in sources() if not name.endswith("__init__.py")]
    assert [name for name in names if names.count(name) > 1] == []


def test_files_and_functions_are_short():
    for name, text in sources().items():
        assert text.count("\n") <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}: {node.name}"


# A contract is asked of detectron2's models by way of their adapters, which keep it.
KNOWN_CYCLE = ("detectors/contract.py", "detectors/adapters.py")


def needed(name: str, text: str, names: set[str]) -> set[str]:
    """The package's files that one imports, anywhere but for annotations alone."""
    tree = ast.parse(text)
    of_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in of_types:
            continue
        parts = [*name.split("/")[: -node.level], *(node.module or "").split(".")]
        folder = "/".join(x for x in parts if x)
        for alias in node.names:
            files = (f"{folder}/{alias.name}.py".lstrip("/"), f"{folder}.py")
            found.add(next((x for x in files if x in names), f"{folder}/__init__.py".lstrip("/")))
    return found & names - {name}


def test_no_file_needs_one_that_needs_it():
    files = sources()
    graph = {name: needed(name, text, set(files)) for name, text in files.items()}
    assert graph["config.py"] >= {"config_keys.py", "plain_yaml.py"}
    graph[KNOWN_CYCLE[0]] = graph[KNOWN_CYCLE[0]] - {KNOWN_CYCLE[1]}
    graphlib.TopologicalSorter(graph).prepare()


def test_what_programs_and_configs_import_is_there():
    folders = ("tools", "benchmarks", "examples", "configs/lazy")
    files = [ROOT / "train_net.py", *(x for y in folders for x in (ROOT / y).rglob("*.py"))]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fsaf_d2"):
                for alias in node.names:
                    exec(f"from {node.module} import {alias.name}", {})
                    found.add(alias.name)
    assert {"load_config", "Trainer", "load_detector"} <= found


def test_reading_data_needs_neither_their_checks_nor_their_loading():
    files = sources()
    rooms = ("data/reading/", "data/checking/", "data/loading/")
    for room in rooms:
        own = [name for name in files if name.startswith(room)]
        assert own
        others = tuple(x for x in rooms[1:] if x != room)
        used = {x for name in own for x in needed(name, files[name], set(files))}
        assert [name for name in used if name.startswith(others)] == []
