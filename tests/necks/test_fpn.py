import pytest
import torch
from models import tiny_cfg, tiny_model


@pytest.mark.parametrize("p6_from", ["", "res5", "p5"])
def test_p6_is_computed_from_the_map_that_is_named(p6_from):
    fpn = tiny_model("MODEL.FPN.P6_FROM", p6_from).backbone.eval()
    image = torch.rand(1, 3, 128, 128)
    maps = fpn(image)
    source = maps["p5"] if p6_from == "p5" else fpn.bottom_up(image)["res5"]
    torch.testing.assert_close(maps["p6"], fpn.top_block.p6(source))


def test_a_map_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"P6_FROM is 'p6', but there is only p3, p4, p5, res3"):
        tiny_model("MODEL.FPN.P6_FROM", "p6")


def test_detectron2s_builder_does_not_heed_it():
    words = [
        "MODEL.FPN.P6_FROM",
        "p5",
        "MODEL.BACKBONE.NAME",
        "build_retinanet_resnet_fpn_backbone",
    ]
    with pytest.raises(ValueError, match=r"P6_FROM 'p5' does nothing for.*p6p7"):
        tiny_model(*words)
    assert tiny_cfg().MODEL.FPN.P6_FROM == ""
