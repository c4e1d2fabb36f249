"""Make trained PyTorch models faster: large kernels become cascades of 3x3 convolutions.

Every name is loaded on first use, so that importing this costs nothing and the command line
answers without torch. Type checkers and editors read the same names in ``__init__.pyi``.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Bounds": "convfactor.conv.bounds",
    "Cascade": "convfactor.conv.cascade",
    "CascadeConv2d": "convfactor.conv.layer",
    "CascadeConvNd": "convfactor.conv.framed",
    "ConvGeometry": "convfactor.conv.geometry",
    "Factorization": "convfactor.factorization.factorization",
    "Inputs": "convfactor.model.inputs",
    "Moments": "convfactor.conv.moments",
    "Plan": "convfactor.plans.plan",
    "PlanMismatchError": "convfactor.errors",
    "Stage": "convfactor.conv.cascade",
    "StageShape": "convfactor.conv.structure",
    "Structure": "convfactor.conv.structure",
    "ToleranceError": "convfactor.errors",
    "bench": "convfactor.planning.worth",
    "factorize": "convfactor.factorization.factorize",
    "load": "convfactor.saving.folders",
    "optimize": "convfactor.planning.optimization",
    "plan": "convfactor.planning.optimization",
    "save": "convfactor.saving.folders",
}
_MODULES = ("filters", "fx", "plots", "wavelets")

__all__ = sorted([*_HOMES, "filters", "fx", "wavelets"])  # not plots, which needs an extra


def __getattr__(name: str) -> object:
    """Load a public name and keep it."""
    if name in _MODULES:
        return import_module(f"convfactor.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'convfactor' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """All names; ``plots`` only where there is something to draw with."""
    from importlib.util import find_spec  # loaded late: until then Ctrl-C shows a traceback

    names = {*globals(), *_HOMES, *_MODULES}
    return sorted(names if find_spec("matplotlib") else names - {"plots"})
