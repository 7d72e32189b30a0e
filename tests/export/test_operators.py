"""What exports are made of is what prediction admits, and nothing else is."""

import onnx
import pytest
from exports import export

from fsaf_d2.detectors import BRANCHES
from fsaf_d2.prediction.onnx_runner import OF_TIMM, OPERATORS, refuse_unless_plain

OWN = {
    **{
        name: {"MODEL__META_ARCHITECTURE": "OneStageDetector", "MODEL__BRANCHES": f"['{name}']"}
        for name in sorted(BRANCHES)
    },
    "joint": {"MODEL__RETINANET__NORM": "GN", "MODEL__FSAF__NMS_PER_LEVEL": True},
}
# Of networks that train here, those that need an operator that none before needs.
NETWORKS = {
    "mobilenetv3_small_050": "BN",
    "cspdarknet53": "BN",
    "densenet121": "BN",
    "edgenext_xx_small": "",
    "poolformerv2_s12": "",
    "tf_mobilenetv3_small_minimal_100": "",
}


def operators(folder, **options) -> set[str]:
    exported = export(folder, "onnx", INPUT__MIN_SIZE_TEST=0, **options)
    model = onnx.load(exported.file)
    refuse_unless_plain(model, exported.file)
    return {node.op_type for node in model.graph.node}


@pytest.mark.slow
def test_all_that_is_exported_is_admitted_and_no_more(tmp_path):
    found = set()
    for options in OWN.values():
        found |= operators(tmp_path, **options)
    assert operators(tmp_path, with_nms=False) < found
    assert found == OPERATORS


@pytest.mark.slow
def test_all_that_networks_of_timm_need_is_admitted_and_no_more(tmp_path):
    found = set()
    for name, norm in NETWORKS.items():
        found |= operators(
            tmp_path,
            MODEL__BACKBONE__NAME="build_timm_fpn_backbone",
            MODEL__FSAF__ANCHOR_FREE_BRANCH=False,
            MODEL__TIMM__NAME=name,
            MODEL__TIMM__NORM=norm,
        )
    assert found - OPERATORS == OF_TIMM
