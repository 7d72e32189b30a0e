"""The program fsaf-d2 and the scripts of a checkout are the same commands."""

import ast
import pickle
import re
from pathlib import Path

import pytest
from programs import ROOT, load_script

from fsaf_d2 import __version__
from fsaf_d2.commands import calls, lazy_command, train_command
from fsaf_d2.commands.calls import call
from fsaf_d2.commands.program import COMMANDS, main

SCRIPTS = {
    **{name: command.script for name, command in COMMANDS.items()},
    "evaluate --predictions": "tools/evaluate_predictions.py",
}


@pytest.fixture
def help_of(capsys):
    """The help of a program with these words before --help."""

    def help_of(program, *words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            program([*words, "--help"])
        assert not ended.value.code
        return capsys.readouterr().out

    return help_of


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_and_its_script_have_the_same_options(name, help_of):
    path, *words = SCRIPTS[name].split()
    script = load_script(Path(path).stem, str(Path(path).parent))
    texts = [help_of(main, *name.split()), help_of(script.main, *words)]
    options = [text.partition("options:")[2].partition("\n\n")[0] for text in texts]
    assert options[0] and options[0] == options[1]
    assert texts[0].startswith(f"usage: fsaf-d2 {name} [-h]")
    assert texts[1].startswith(f"usage: {Path(path).stem}")
    # Examples are for what was called.
    assert not re.search(r"train_net|tools/", texts[0]) and "fsaf-d2" not in texts[1]


def test_every_script_that_is_a_command_does_nothing_else():
    files = {ROOT / script.split()[0] for script in SCRIPTS.values()}
    for file in files:
        kinds = [type(node) for node in ast.parse(file.read_text()).body]
        assert set(kinds) <= {ast.Expr, ast.Import, ast.ImportFrom, ast.If}, file


def test_the_help_has_every_command_and_the_version_is_the_packages(help_of, capsys):
    text = help_of(main)
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{command.about}$", text, flags=re.MULTILINE)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fsaf_d2 {__version__}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "invalid choice: 'trian'"),
        ([], "required: COMMAND"),
        (["--", "train"], "name the command before all options"),
    ],
)
def test_what_is_no_command_is_told(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert re.search(f"^fsaf-d2: error: .*{told}", capsys.readouterr().err, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--config-file", "Base-FSAF-smal"], "Config file 'Base-FSAF-smal' does not"),
        (["evaluate", "--config-file", "nowhere"], "Config file 'nowhere' does not exist"),
        (["train-lazy", "--config-file", "a.yaml"], ".*'a.yaml' is no Python config"),
        (["evaluate", "--predictions", "a.json", "b.json"], ".*'a.json'"),
        (["check", "nowhere"], "'nowhere' does not exist"),
        (["predict", "--weights", "w", "--input", "a", "--output", "b"], ".*'a'"),
        (["export", "--weights", "nowhere.pth", "--format", "onnx"], ".*'?nowhere.pth"),
        (["report", "nowhere"], ".*nowhere"),
    ],
)
def test_errors_begin_with_the_command(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    text = code if isinstance(code, str) else capsys.readouterr().err
    assert code
    name = " ".join(words[: 2 if words[1] == "--predictions" else 1])
    assert re.match(f"fsaf-d2 {name}: error: {told}", text.splitlines()[-1])


def test_messages_name_what_can_be_called_where_they_are_read(monkeypatch, tmp_path):
    assert call("predict") == "python tools/predict.py"
    monkeypatch.setattr("sys.argv", ["/usr/bin/fsaf-d2", "train"])
    assert call("predict") == "fsaf-d2 predict"
    monkeypatch.setattr("sys.argv", ["notebook.py"])
    monkeypatch.setattr(calls, "_CHECKOUT", tmp_path)
    assert call("evaluate --predictions") == "fsaf-d2 evaluate --predictions"


def test_other_processes_find_what_they_run():
    """detectron2's launch pickles it."""
    for run in (train_command.run, lazy_command.run_process):
        assert pickle.loads(pickle.dumps(run)) is run
