"""Pictures of kernels, frontiers and plans; every function returns a figure and shows nothing."""

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "convfactor.plots draws with matplotlib, which is not installed: "
        "pip install 'convfactor[plots]'"
    ) from error

from convfactor.plots.frontier import FLOOR, plot_frontier
from convfactor.plots.kernels import plot_kernels
from convfactor.plots.plans import plot_plan
from convfactor.plots.response import DECIBELS, plot_response
from convfactor.plots.style import (
    BLUE,
    GREEN,
    GREY,
    MAGNITUDE,
    ORANGE,
    SIGNED,
    SKY,
    STYLE,
    VERMILION,
)

__all__ = [
    "BLUE",
    "DECIBELS",
    "FLOOR",
    "GREEN",
    "GREY",
    "MAGNITUDE",
    "ORANGE",
    "SIGNED",
    "SKY",
    "STYLE",
    "VERMILION",
    "plot_frontier",
    "plot_kernels",
    "plot_plan",
    "plot_response",
]
