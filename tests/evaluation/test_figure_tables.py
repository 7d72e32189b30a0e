import csv

from toy_sets import coco_set, detections_of, perfect, prediction, random_set, truth_of

from fsaf_d2.evaluation.figure_tables import class_table, evaluation_text, overall_table, write_csv
from fsaf_d2.evaluation.summary import summarize


def evaluation_of(data: dict, predictions: list[dict], tmp_path) -> dict:
    truth = truth_of(data, tmp_path)
    found = {"joint": detections_of(predictions, truth)}
    return summarize("toy", truth, found, max_detections=100)


def cells(table: str) -> list[list[str]]:
    """Rows of cells, without the line below the head."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [row for row in rows if not set("".join(row)) <= set("-:")]


def test_missing_sizes_say_why():
    figures = {"AP": 52.84, "AP50": 71.15, "AP75": 0.0, "APs": None, "APm": 60.0, "APl": None}
    by_size = {"small": 0, "medium": 7, "large": 0}
    head, row = cells(overall_table({"joint": figures}, by_size))
    assert head == ["", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert row == [
        *("all detections", "52.8", "71.2", "0.0"),
        *("n/a (0 small objects)", "60.0", "n/a (0 large objects)"),
    ]


def test_branches_have_a_row_each_and_nan_is_not_printed():
    figures = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), float("nan"))
    names = ("joint", "anchor_branch", "point_branch")
    table = overall_table(dict.fromkeys(names, figures))
    assert [row[0] for row in cells(table)[1:]] == [
        *("both branches", "anchor branch alone", "point branch alone"),
    ]
    assert "nan" not in table and table.count("n/a") == 18


def test_a_class_without_objects(tmp_path):
    data = coco_set([(1, 1, (0, 0, 20, 20))])
    found = [*perfect(data), prediction(1, 2, (0, 0, 9, 9), 0.7)]
    _, one, two = cells(class_table(evaluation_of(data, found, tmp_path)["per_class"]))
    assert one == [
        *("class 1", "1", "100.0", "100.0", "100.0", "100.0", "n/a (0 medium)", "n/a (0 large)"),
        *("100.0", "100.0", "100.0", "1.00"),
    ]
    assert two[:5] == ["class 2", "0", "n/a", "n/a", "n/a"] and two[-1] == "n/a"


def test_many_classes_take_a_third_of_the_lines(tmp_path):
    data, predictions = random_set(category_ids=tuple(range(1, 81)))
    per_class = evaluation_of(data, predictions, tmp_path)["per_class"]
    table = class_table(per_class)
    assert len(table.splitlines()) == 2 + 27 and max(map(len, table.splitlines())) < 120
    for figures in per_class:
        assert f"| {figures['name']} " in table


def test_the_whole_text(tmp_path):
    text = evaluation_text(evaluation_of(coco_set([(1, 1, (0, 0, 20, 20))]), [], tmp_path))
    assert text.startswith("toy: 2 images, 1 objects (1 small, 0 medium, 0 large)\n\n| ")
    assert text.endswith("\n\nAP is 0.0: there are no detections.")


def test_names_of_strangers_stay_in_their_cell(tmp_path):
    data = coco_set([(1, 1, (0, 0, 20, 20))], category_ids=(1,))
    data["categories"][0]["name"] = "a|b\nc\x1b[31m" + 40 * "d"
    text = class_table(evaluation_of(data, [], tmp_path)["per_class"])
    assert "\x1b" not in text and len(text.splitlines()) == 3
    assert cells(text)[1][0] == "a?b?c?[31m" + 13 * "d" + "…"


def test_csv_files_hold_all_figures(tmp_path):
    data, predictions = random_set()
    evaluation = evaluation_of(data, predictions, tmp_path)
    names = write_csv(evaluation, tmp_path)
    rows = {}
    for name in names:
        with open(tmp_path / name, newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert names == ["overall.csv", "classes.csv", "levels.csv", "confusion.csv"]
    assert float(rows["overall.csv"][0]["AP"]) == evaluation["overall"]["joint"]["AP"]
    for row, figures in zip(rows["classes.csv"], evaluation["per_class"]):
        assert row["class"] == figures["name"]
        assert int(row["num_small"]) == figures["num_objects_by_size"]["small"]
        assert float(row["AP75"]) == figures["AP75"]
        assert float(row["best_f1_threshold"]) == figures["best_f1"]["threshold"]
    matrix = [[int(x) for x in list(row.values())[1:]] for row in rows["confusion.csv"]]
    assert matrix == evaluation["confusion"]["matrix"]


def test_no_class_is_a_formula_in_a_table(tmp_path):
    data, predictions = random_set(category_ids=(1, 2, 3))
    for category, name in zip(data["categories"], ["=1+1", "@b", "\rc"]):
        category["name"] = name
    names = write_csv(evaluation_of(data, predictions, tmp_path), tmp_path)
    for name in names:
        with open(tmp_path / name, newline="", encoding="utf-8") as file:
            text = [cell for row in csv.reader(file) for cell in row]
        assert not any(cell.startswith(("=", "@", "+", "\r", "\t")) for cell in text)
        assert ("'=1+1" in text) == (name in ("classes.csv", "confusion.csv"))
