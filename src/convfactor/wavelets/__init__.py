"""The dual-tree complex wavelet transform, fast and traceable.

Both directions and the scattering layers are drop-ins for those of pytorch_wavelets. Named filters
come from its tables, which are read, but it is never imported. `build` compiles kernels for the
CPU.
"""

from convfactor.wavelets.banks import Sizes
from convfactor.wavelets.filters import synthesis_conv, synthesis_kernels
from convfactor.wavelets.forward import DTCWTForward
from convfactor.wavelets.inverse import DTCWTInverse
from convfactor.wavelets.kernels import build
from convfactor.wavelets.scattering import ScatLayer, ScatLayerj2

__all__ = [
    "DTCWTForward",
    "DTCWTInverse",
    "ScatLayer",
    "ScatLayerj2",
    "Sizes",
    "build",
    "synthesis_conv",
    "synthesis_kernels",
]
