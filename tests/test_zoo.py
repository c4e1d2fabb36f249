"""Models of timm and transformers, where those are installed; benchmarks/zoo.py takes them all."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
zoo = pytest.importorskip("zoo")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "name", "replaced"),
    [
        ("transformers", "ConvNext", 4),
        ("transformers", "Segformer", 1),
        ("transformers", "SEW", 2),
        ("timm", "convnext_atto", 4),
        ("timm", "coat_tiny", 8),
    ],
)
def test_a_model_is_planned_and_gives_what_it_gave(library, name, replaced):
    pytest.importorskip(library)
    found = zoo.planned(library, name)
    assert found["replaced"] >= replaced
    assert found["planned"] <= zoo.TOLERANCE
    assert found["found"] <= zoo.AMPLIFICATION * found["replaced"] * max(found["planned"], 1e-5)
