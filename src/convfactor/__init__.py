"""Make trained PyTorch models faster: large kernels become cascades of 3x3 convolutions."""

from convfactor import fx, wavelets
from convfactor.bounds import Bounds
from convfactor.cascade import Cascade, Stage, StageShape, Structure
from convfactor.errors import PlanMismatchError, ToleranceError
from convfactor.factorization import factorize
from convfactor.factorizer import Factorization
from convfactor.geometry import ConvGeometry
from convfactor.layers import CascadeConv2d
from convfactor.moments import Moments
from convfactor.optimization import optimize, plan
from convfactor.plans import Plan

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
