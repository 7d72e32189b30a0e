"""Networks of timm are exported as ResNets are: a file finds what the detector finds."""

import pytest
from exports import KINDS, export
from predictions import photo

from fsaf_d2.export.comparison import compare_detections

NETWORKS = ["hrnet_w18", "hrnet_w32", "cspresnet50", "cspresnext50", "cspdarknet53"]
# None is what the programs are traced with; the last is smaller than a cell of the coarsest level.
SIZES = [(90, 120), (61, 200), (300, 100), (33, 40), (9, 9)]
PYRAMIDS = {
    "FPN": {"MODEL__BACKBONE__NAME": "build_timm_fpn_backbone"},
    "HRFPN": {
        "MODEL__BACKBONE__NAME": "build_timm_hrfpn_backbone",
        # Scores of 1, of which the others are full, are ties: their order decides what is found.
        "MODEL__FPN__NORM": "GN",
        "MODEL__FPN__OUT_CHANNELS": 64,
        "MODEL__FPN__IN_FEATURES": ["res2", "res3", "res4", "res5"],
    },
}
SINGLE_MAP = {
    **PYRAMIDS["HRFPN"],
    "MODEL__HRFPN__OUT_STRIDES": [4],
    "MODEL__RETINANET__IN_FEATURES": ["p2"],
    "MODEL__FSAF__ANCHOR_BRANCH": False,
    "MODEL__ANCHOR_GENERATOR__SIZES": [[32.0]],
}


def assert_finds_the_same(folder, kind: str, network: str, **overrides) -> None:
    overrides |= {"INPUT__MIN_SIZE_TEST": 0, "MODEL__RETINANET__SCORE_THRESH_TEST": 0.03}
    exported = export(folder, kind, MODEL__TIMM__NAME=network, **overrides)
    other, count = exported.load(), 0
    for seed, size in enumerate(SIZES):
        image = photo(*size, seed)
        expected, found = (x(image, min_score=0) for x in (exported.detector, other))
        result = compare_detections(expected, found, str(size), lowest=0.03, limit=100)
        assert not result.failures, result
        count += result.num_detections
    assert count > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network, kind, tmp_path):
    assert_finds_the_same(tmp_path, kind, network, **PYRAMIDS["FPN"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["GN", "FrozenBN", "SyncBN"])
def test_norms(norm, kind, tmp_path):
    more = {**PYRAMIDS["FPN"], "MODEL__TIMM__NORM": norm}
    assert_finds_the_same(tmp_path, kind, "cspresnet50", **more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hrnets_pyramid(kind, tmp_path):
    assert_finds_the_same(tmp_path, kind, "hrnet_w18_small", **PYRAMIDS["HRFPN"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_map(kind, tmp_path):
    assert_finds_the_same(tmp_path, kind, "hrnet_w18_small", **SINGLE_MAP)
