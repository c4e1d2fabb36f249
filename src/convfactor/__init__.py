"""Make trained PyTorch models faster: large kernels become cascades of 3x3 convolutions."""

from convfactor import fx, wavelets
from convfactor.conv.bounds import Bounds
from convfactor.conv.cascade import Cascade, Stage
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.moments import Moments
from convfactor.conv.structure import StageShape, Structure
from convfactor.errors import PlanMismatchError, ToleranceError
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.factorize import factorize
from convfactor.planning.optimization import optimize, plan
from convfactor.plans.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "Bounds",
    "Cascade",
    "CascadeConv2d",
    "ConvGeometry",
    "Factorization",
    "Moments",
    "Plan",
    "PlanMismatchError",
    "Stage",
    "StageShape",
    "Structure",
    "ToleranceError",
    "factorize",
    "fx",
    "optimize",
    "plan",
    "wavelets",
]
