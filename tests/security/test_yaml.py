"""YAML that is odd, or grows from few bytes, ends in one sentence, wherever it is read."""

import os
import random

import pytest
import yaml
from formats import write_yolo

from fsaf_d2 import load_config
from fsaf_d2.config import load_stored_config
from fsaf_d2.config_files import MAX_CHAIN, MAX_FILES
from fsaf_d2.data.reading.sources import SourceError, open_source
from fsaf_d2.plain_yaml import MAX_YAML, YamlError, plain_yaml

pytestmark = pytest.mark.usefixtures("soon", "little_memory")
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "40"))

ODD = {
    "empty int": 'a: !!int ""',
    "cat": "a: !!bool cat",
    "x": "a: !!float x",
    "timestamp": "a: !!timestamp 2001-01-01",
    "binary": "a: !!binary YQ==",
    "set": "a: !!set {b}",
    "omap": "a: !!omap [b: 1]",
    "map of a list": "a: !!map [1]",
    "text of a list": "a: !!str [1]",
    "list of a text": "a: !!seq x",
    "null of a text": "a: !!null x",
    "brackets": "a: " + "[" * 300,
    "braces": "{" * 300,
    "dashes": "- " * 3000,
    "questions": "? " * 3000,
    "two documents": "a: 1\n---\nb: 2",
    "key twice": "a: 1\na: 2",
    "key twice inside": "a: {b: 1, 'b': 2}",
    "key a list": "? [a]\n: 1",
    "key an open list": "? - a",
    "holds itself": "a: &a [*a]",
    "merges itself": "a: &a {<<: *a}",
    "merges a number": "<<: 3",
    "merges numbers": "<<: [3]",
    "merges that grow": "a0: &a0 {x: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)),
    "long texts that grow": f'a: &a "{"x" * 9999}"\nb: [{"*a, " * 999}]',
    "no letter": 'a: "\\UFFFFFFFF"',
    "digits of the version": f"%YAML {'1' * 5000}.1\n---\na: 1",
    "digits": f"a: {'9' * 5000}",
    "digits in base 16": f"a: 0x{'f' * 5000}",
    "digits behind a point": f"a: 1.{'9' * 5000}",
    "too large": "a: 1.0e+999",
    "anchor twice": "- &a 1\n- &a 2",
}
# What is text to those that read all as text.
OF_NUMBERS = {
    *("empty int", "cat", "x", "null of a text", "list of a text", "too large"),
    *("digits", "digits in base 16", "digits behind a point"),
}


LARGE = {
    "3000 brackets": "a: " + "[" * 3000,
    "3000 braces": "{" * 3000,
    "too many": f"a: [{'1,' * 50_000}]",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_large_yaml_ends_in_one_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(ODD, kind, LARGE[kind])
    test_odd_yaml_ends_in_one_sentence(tmp_path, kind)


def test_long_yaml_is_refused(tmp_path):
    for name in ("config.yaml", "data.yaml"):
        (tmp_path / name).write_text("#" * (MAX_YAML + 1))
    with pytest.raises(ValueError, match=r"config\.yaml' is refused: .* longer than"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"data\.yaml' cannot be read: it is larger than"):
        open_source(tmp_path / "data.yaml")
    with pytest.raises(ValueError, match=r"a\.pth' is refused: it is longer than"):
        load_stored_config("#" * (MAX_YAML + 1), "a.pth")


@pytest.mark.parametrize("kind", ODD)
def test_odd_yaml_ends_in_one_sentence(tmp_path, kind):
    file = tmp_path / "data.yaml"
    file.write_text(ODD[kind])
    readers = [lambda: load_config(file), lambda: load_stored_config(ODD[kind], "data.yaml")]
    if kind not in OF_NUMBERS:
        readers.append(lambda: open_source(file))
    for read in readers:
        with pytest.raises(ValueError, match=r"data\.yaml' is (refused|not YAML): .*\.$") as error:
            read()
        assert len(str(error.value)) < 500 and "\n" not in str(error.value)


PLAIN = {
    "1:1:1": "1:1:1",
    "2001-99-99": "2001-99-99",
    "1_000": 1000,
    "010": 8,
    "0x1F": 31,
    "-0": 0,
    "0": 0,
    "0b11": 3,
    "+12": 12,
    "1.5e+3": 1500.0,
    "!!str 5": "5",
    "!!float 1.5": 1.5,
    "yes": True,
    "~": None,
    "": None,
    "'~'": "~",
    "٣": "٣",
    "12345678901234567890": 12345678901234567890,
}


@pytest.mark.parametrize("text", PLAIN)
def test_plain_values_are_read(text):
    found = plain_yaml(f"a: {text}\n", "it")
    assert found == {"a": PLAIN[text]} and type(found["a"]) is type(PLAIN[text])
    shown = None if PLAIN[text] is None else text.rpartition(" ")[2].strip("'")
    assert plain_yaml(f"a: {text}\n", "it", as_texts=True) == {"a": shown}


def test_long_numbers_in_base_60_are_texts():
    text = "1" + ":1" * 50_000
    assert plain_yaml(f"a: {text}", "it") == {"a": text}


def test_keys_are_the_texts_that_stand_there():
    assert plain_yaml("{1: a, yes: b, ~: c}", "it") == {"1": "a", "yes": "b", "~": "c"}


def test_merged_keys_are_as_pyyaml_merges_them():
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {x: 4, <<: *a}"
    assert plain_yaml(text, "it") == yaml.safe_load(text)


def chain(folder, length):
    for i in range(length):
        (folder / f"{i}.yaml").write_text(f"_BASE_: {i + 1}.yaml\nSEED: {i}\n")
    (folder / f"{length}.yaml").write_text("VERSION: 2\n")
    return folder / "0.yaml"


def test_a_chain_of_bases_ends(tmp_path):
    assert load_config(chain(tmp_path, MAX_CHAIN - 1)).SEED == 0
    for length in (MAX_CHAIN, 1500):
        with pytest.raises(ValueError, match=r"0\.yaml' builds on more files than are read"):
            load_config(chain(tmp_path, length))


def test_bases_that_double_are_read_once(tmp_path, monkeypatch):
    for i in range(MAX_CHAIN - 1):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, ./{i + 1}.yaml]\nSEED: {i}\n")
    (tmp_path / f"{MAX_CHAIN - 1}.yaml").write_text("VERSION: 2\n")
    assert load_config(tmp_path / "0.yaml").SEED == 0


def test_bases_are_so_many(tmp_path):
    names = [f"{i}.yaml" for i in range(MAX_FILES + 1)]
    for name in names:
        (tmp_path / name).write_text("VERSION: 2\n")
    (tmp_path / "all.yaml").write_text(f"_BASE_: {names}\n")
    with pytest.raises(ValueError, match=r"all\.yaml' builds on more files"):
        load_config(tmp_path / "all.yaml")


def test_later_bases_go_over_earlier_ones(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"SEED: {seed}\nVERSION: 2\n")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, b.yaml, a.yaml]\n")
    assert load_config(tmp_path / "c.yaml").SEED == 1


BASES = ["a/" * 100_000, "a" * 500_000, "", '"a\\0b"', '"\\ud800"', '"\\e[31m"', "[[a]]", "~"]


@pytest.mark.parametrize("base", BASES, ids=range(len(BASES)))
def test_what_is_no_name_is_no_base(tmp_path, base):
    (tmp_path / "config.yaml").write_text(f"_BASE_: {base}\n")
    with pytest.raises(ValueError, match=r"config\.yaml': its _BASE_ must be the name") as error:
        load_config(tmp_path / "config.yaml")
    assert len(str(error.value)) < 500


WRONG = ["VERSION: a", "VERSION: 0", "VERSION: 2.0", "MODEL: 3", "TEST: []", "a: 1"]
LITERALS = ["(" * 9000, "-" * 50_000 + "1", "[" * 150 + "]" * 150, "1," * 20_000, "9" * 5000]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_values_are_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml': "):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", LITERALS, ids=range(len(LITERALS)))
def test_texts_that_are_parsed_as_literals(tmp_path, text):
    (tmp_path / "config.yaml").write_text(f"SEED: '{text}'\n")
    for words in ([], ["SEED", text]):
        file = tmp_path / "config.yaml" if not words else ""
        with pytest.raises(ValueError, match=r"config\.yaml': |command line: ") as error:
            load_config(file, words)
        assert len(str(error.value)) < 1000


PLACES = {
    "the same folder": f"train: [{'train/images, ' * 1001}]\n",
    "a long path": f"train: {'a/' * 100_000}\n",
    "a long way up": f"train: {'../' * 100_000}\n",
    "a long path of all": f"path: {'a' * 100_000}\ntrain: train/images\n",
    "a list as path": "path: [a]\ntrain: train/images\n",
    "many folders": f"train: {[f'train/{chr(47) * i}images' for i in range(1001)]}\n",
    "many splits": "\n".join(f"train_{i}: train/images" for i in range(99)) + "\n",
    "digits as classes": f"train: train/images\nnc: {'9' * 100_000}\n",
}


@pytest.mark.parametrize("kind", PLACES)
def test_places_of_images_are_bounded(tmp_path, kind):
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text(f"{PLACES[kind]}names: [a, b, c]\n")
    if kind == "the same folder":
        assert len(open_source(root).data["images"]) == 4
        return
    with pytest.raises(SourceError, match=r"data\.yaml'") as error:
        open_source(root)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("keys", [["9" * 500], ["٠", "١"], ["0", "0x1"], ["-0", "1"]])
def test_class_numbers_are_ascii_digits(tmp_path, keys):
    root = write_yolo(tmp_path)
    names = ", ".join(f"'{key}': c{i}" for i, key in enumerate(keys))
    (root / "data.yaml").write_text(f"train: train/images\nnames: {{{names}}}\n")
    with pytest.raises(SourceError, match="must be 0, 1, 2"):
        open_source(root)


PIECES = (
    *("&a ", "*a", "<<: *a", "!!int ", "!!set ", "? ", "- ", ": ", "[", "]", "{", "}", "|", ">"),
    *("'", '"', "\\U", "%YAML ", "---", "...", "\t", "\n", "  ", "#", "~", "1:1", "0x", ".inf"),
    *(
        "1e5",
        "9" * 30,
        "_BASE_: ",
        "MODEL:",
        "\ud800",
        "\x1b",
        "\u0663",
        "\ufeff",
        "\x85",
        "!",
        "@",
    ),
)


def mutated(rng, text):
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(text) + 1)
        end = place + rng.choice((0, 0, 1, 9))
        piece = rng.choice((*PIECES, text[place : place + 40])) * rng.choice((1, 1, 1, 60))
        text = text[:place] + piece + text[end:]
    return text


def generated(rng):
    return "".join(
        rng.choice((*PIECES, "a", "b", "names", " ", "\n")) for _ in range(rng.randint(1, 30))
    )


def test_random_yaml_is_read_or_refused(tmp_path):
    rng, refused = random.Random(7), 0
    whole = load_config("").dump()[:3000]
    own = "names: [a, b]\ntrain: images\nx: &a {b: 1.5}\ny: {<<: *a, c: [1, 'x', ~]}\n"
    for i in range(ROUNDS):
        text = generated(rng) if i % 3 == 0 else mutated(rng, own if i % 3 == 1 else whole)
        for as_texts in (False, True):
            try:
                plain_yaml(text, "it", as_texts=as_texts)
            except YamlError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 500
        if i % 3 == 2:
            try:
                load_stored_config(text, "it")
            except ValueError as error:
                assert len(str(error)) < 1000
    assert refused > ROUNDS // 4
