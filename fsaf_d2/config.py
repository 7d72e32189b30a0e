"""How a config file is read."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detectron2.config.compat import guess_version

from .commands.calls import call
from .config_defaults import add_fsaf_config
from .config_files import ConfigFiles
from .config_keys import flat, meant_key, record, unread
from .config_names import find_config
from .plain_yaml import YamlError, plain_yaml
from .texts import as_line

# Of a config that lies in a checkpoint: what builds a detector and says how it reads images.
_SECTIONS_TO_PREDICT = ("MODEL", "INPUT", "TEST")
# For whoever runs the model to say, not for whoever trained it.
_NOT_OF_A_CHECKPOINT = {"MODEL": ("WEIGHTS", "COMPILE"), "INPUT": ("MAX_PIXELS",)}
# What yacs raises for keys and values; texts are parsed as literals, which may be nested deeply.
_UNFIT = (
    *(AssertionError, AttributeError, KeyError, TypeError, ValueError),
    *(RecursionError, MemoryError),
)


def load_config(config_file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML config and ``KEY VALUE`` overrides on top of the defaults, executing nothing.

    Args:
        config_file: path of the YAML file, or the name of a config of the package, such as
            ``Base-FSAF-lite``, see :func:`.find_config`; empty for the defaults alone.
        overrides: alternating keys and values, as given on a command line.

    Raises:
        FileNotFoundError: the file, or one that it names as ``_BASE_``, does not exist.
        ValueError: several configs have the name, the file is not plain YAML (it has ``!!python``
            or other tags), or a key or the type of a value is wrong.
    """
    cfg = get_cfg()
    add_fsaf_config(cfg)
    files = _merge_file(cfg, os.fspath(config_file)) if config_file else []
    record(cfg, files, [])
    _merge_overrides(cfg, overrides)
    record(cfg, files, overrides[::2])
    return cfg


def load_stored_config(text: str, source: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Read the YAML text of a config that lies in another file, to run a model that is trained.

    Nothing is executed, opened or fetched. Only ``MODEL``, ``INPUT`` and ``TEST`` are read, and of
    ``MODEL`` what the stored detector reads: neither settings of a training nor keys that another
    detectron2 has for other detectors can stand in the way. ``MODEL.WEIGHTS``, ``MODEL.COMPILE``
    and ``INPUT.MAX_PIXELS`` keep their defaults.

    Args:
        text: what :meth:`CfgNode.dump` gave.
        source: the file that it was found in, for messages.
        overrides: alternating keys and values, of any section.

    Raises:
        ValueError: the text is not plain YAML, names a ``_BASE_``, or has a key that is unknown
            here or a value of another type; or an override is wrong.
    """
    here = f"The config in '{source}'"
    cfg = get_cfg()
    add_fsaf_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(_parts_to_predict(_read_stored(text, source))))
    except YamlError:
        raise
    except _UNFIT as error:
        message = _message(error, cfg).rstrip(".")
        end = "" if message.endswith("?") else "."
        raise ValueError(
            f"{here} cannot be used: {message}{end} --config-file puts one "
            "of your own in its place; keys of a branch of your own need its file: "
            "DETECTOR_BRANCHES, docs/design.md."
        ) from error
    _merge_overrides(cfg, overrides)
    return cfg


def _read_stored(text: str, source: str) -> dict:
    content = plain_yaml(text, f"The config in '{source}'")
    if not isinstance(content, dict):
        raise ValueError("it must be a mapping of keys to values.")
    if "_BASE_" in content:
        raise ValueError("it names a _BASE_, which is never opened for a checkpoint.")
    return content


def _parts_to_predict(content: dict) -> dict:
    sections = {name: content[name] for name in _SECTIONS_TO_PREDICT if name in content}
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise ValueError(f"{section} must be a mapping of keys to values.")
        left_out = _NOT_OF_A_CHECKPOINT.get(section, ())
        sections[section] = {key: value for key, value in values.items() if key not in left_out}
    if "MODEL" in sections:
        others = _unread(sections["MODEL"])
        sections["MODEL"] = {
            key: value
            for key, value in sections["MODEL"].items()
            # Sections are known by a dot behind them.
            if not f"MODEL.{key}{'.' * isinstance(value, dict)}".startswith(others)
        }
    return sections


def _unread(model: dict) -> tuple[str, ...]:
    """Beginnings of the keys that the detector of a stored ``MODEL`` does not read."""
    cfg = get_cfg()
    add_fsaf_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = str(model.get("META_ARCHITECTURE"))
    cfg.MODEL.BRANCHES = model.get("BRANCHES") or []
    try:
        return unread(cfg)
    except (ValueError, TypeError, KeyError):
        # What is wrong with the branches is said where they are built.
        return ()


def _merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    if len(overrides) % 2:
        raise ValueError(
            "Overrides come in pairs KEY VALUE, behind all options such as --eval-only, but this "
            f"is an odd number of words: {' '.join(overrides)}.{_unpaired(overrides)}"
        )
    try:
        cfg.merge_from_list(list(overrides))
    except _UNFIT as error:
        raise ValueError(f"Bad override on the command line: {_message(error, cfg)}") from error


def _unpaired(overrides: Sequence[str]) -> str:
    """Which word makes their number odd, where one can tell."""
    for word in overrides[::2]:
        name, equals, value = word.partition("=")
        if equals and name.isupper():
            return f" Write '{name} {value}' for '{word}'."
    # Keys have capitals and mostly a dot, such as values rarely do.
    is_key = [word.isupper() and "." in word for word in [*overrides, "A.KEY"]]
    for word, one, other in zip(overrides, is_key, is_key[1:]):
        if one and other:
            return f" '{word}' has no value."
    return ""


def _merge_file(cfg: CfgNode, config_file: str) -> list[tuple[str, list[str]]]:
    """Merge a file and those that it names; the keys of each, of a base before its leaf."""
    if config_file.endswith(".py"):
        raise ValueError(
            f"Config file '{config_file}' is Python code, which is not run here. "
            f"'{call('train-lazy')}' trains and evaluates such configs; all else takes YAML, "
            "which the same models have: configs/lazy/X.py is configs/X.yaml."
        )
    config_file = find_config(config_file)
    files = ConfigFiles(config_file)
    try:
        _merge_content(cfg, files.content, config_file)
    except _UNFIT as error:
        raise ValueError(f"Config file '{config_file}': {_message(error, cfg)}") from error
    return files.keys


def _merge_content(cfg: CfgNode, content: dict, config_file: str) -> None:
    """As :meth:`CfgNode.merge_from_file` does with what a file holds."""
    for section in ("MODEL", "TEST"):
        if not isinstance(content.get(section, {}), dict):
            raise ValueError(f"{section} must be a mapping of keys to values.")
    loaded = CfgNode(content)
    version = loaded.get("VERSION")
    version = guess_version(loaded, config_file) if version is None else version
    if type(version) is not int or not 1 <= version <= cfg.VERSION:
        raise ValueError(f"VERSION must be a whole number from 1 to {cfg.VERSION}.")
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
        return
    old = downgrade_config(cfg, to_version=version)
    old.merge_from_other_cfg(loaded)
    new = upgrade_config(old)
    cfg.clear()
    cfg.update(new)


def _message(error: Exception, cfg: CfgNode) -> str:
    """What yacs says, with a remedy."""
    if isinstance(error, (RecursionError, MemoryError)):
        return "a text in it is nested too deeply to be a value."
    message = as_line(f"{error.args[0]!s:.400}") if error.args else type(error).__name__
    if "Type mismatch" in message:
        return f"{message}. Values keep their type: 1.0 for a float, ('name',) for a tuple."
    unknown = message.rpartition("key: ")[2]
    meant = meant_key(unknown, cfg) if unknown != message else None
    if not meant:
        return message
    first, _, rest = unknown.partition(".")
    if first == "MODEL" and rest.partition(".")[0] not in cfg.MODEL:
        meant += "? Or is it of a branch of your own, whose file DETECTOR_BRANCHES should name"
    return f"{message}. Did you mean {meant}?"


def differences(saved: str, present: str) -> list[str]:
    """Lines ``KEY: saved -> present`` for two configs in YAML; none where nothing was saved.

    Raises:
        ValueError: a text is no plain YAML.
    """
    texts = (plain_yaml(text, "The config in the checkpoint") or {} for text in (saved, present))
    try:
        before, after = (dict(flat(x)) for x in texts)
    except AttributeError as error:
        raise ValueError("The config in the checkpoint is no mapping.") from error
    return [
        f"{key} {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for key in sorted(before.keys() | after.keys())
        if before and before.get(key, "unset") != after.get(key, "unset")
    ]
