"""Where the public names are, for type checkers and editors; see ``__init__.py``."""

from convfactor import filters as filters
from convfactor import fx as fx
from convfactor import plots as plots
from convfactor import wavelets as wavelets
from convfactor.conv.bounds import Bounds as Bounds
from convfactor.conv.cascade import Cascade as Cascade
from convfactor.conv.cascade import Stage as Stage
from convfactor.conv.framed import CascadeConvNd as CascadeConvNd
from convfactor.conv.geometry import ConvGeometry as ConvGeometry
from convfactor.conv.layer import CascadeConv2d as CascadeConv2d
from convfactor.conv.moments import Moments as Moments
from convfactor.conv.structure import StageShape as StageShape
from convfactor.conv.structure import Structure as Structure
from convfactor.errors import PlanMismatchError as PlanMismatchError
from convfactor.errors import ToleranceError as ToleranceError
from convfactor.factorization.factorization import Factorization as Factorization
from convfactor.factorization.factorize import factorize as factorize
from convfactor.model.inputs import Inputs as Inputs
from convfactor.planning.optimization import optimize as optimize
from convfactor.planning.optimization import plan as plan
from convfactor.planning.worth import bench as bench
from convfactor.plans.plan import Plan as Plan
from convfactor.saving.folders import load as load
from convfactor.saving.folders import save as save

__version__: str
