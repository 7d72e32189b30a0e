"""The branch of docs/design.md is complete: it trains, detects, is drawn into the template."""

import re

import pytest
import torch
from models import ROOT, batch, instances, random_instances, tiny_model

from fsaf_d2.detectors import BRANCHES


@pytest.fixture
def center():
    """Registered as somebody's own file would do it."""
    page = (ROOT / "docs/design.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/design.md", "exec"), {"__name__": "design"})
    yield ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES"]
    del BRANCHES["center"]


@pytest.mark.parametrize("names", ["['center']", "['anchor', 'center']"])
def test_it_trains_and_detects(center, names):
    model = tiny_model(*center, names, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.001")
    for objects in ([random_instances(8), random_instances(0)], [random_instances(0)]):
        losses = model.train()(batch(*objects))
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        (found,) = model.eval()(batch(instances([], [])))
    assert len(found["instances"]) > 0


def test_it_learns_one_image(center):
    """An object of 40 px, whose class and box are found after some steps."""
    torch.manual_seed(0)
    model = tiny_model(*center, "['center']").train()
    inputs = batch(instances([(40, 30, 80, 70)], [3]))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    with torch.no_grad():
        (found,) = model.eval()(inputs)
    best = found["instances"][:1]
    assert best.pred_classes.tolist() == [3]
    torch.testing.assert_close(
        best.pred_boxes.tensor, torch.tensor([[40.0, 30, 80, 70]]), rtol=0, atol=6
    )


def test_a_name_is_taken_once(center):
    from fsaf_d2.detectors import Branch, register_branch

    with pytest.raises(ValueError, match="There is a branch 'center' already: CenterBranch"):
        register_branch("center")(type("Other", (Branch,), {}))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("[]", "MODEL.BRANCHES is empty: name one or more of anchor, "),
        ("['ancor']", "MODEL.BRANCHES has 'ancor', which is unknown: there are anchor, "),
        ("['anchor', 'anchor']", "names a branch twice"),
    ],
)
def test_wrong_names_are_refused(names, words):
    with pytest.raises(ValueError) as error:
        tiny_model("MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", names)
    assert words in str(error.value)
