"""The dual-tree complex wavelet transform, fast and traceable.

Both directions are drop-ins for those of pytorch_wavelets. Named filters come from the tables
of pytorch_wavelets, which is read but never imported. `build` compiles kernels for the CPU.
"""

from convfactor.wavelets.banks import Sizes
from convfactor.wavelets.filters import synthesis_conv, synthesis_kernels
from convfactor.wavelets.forward import DTCWTForward
from convfactor.wavelets.inverse import DTCWTInverse
from convfactor.wavelets.kernels import build

__all__ = ["DTCWTForward", "DTCWTInverse", "Sizes", "build", "synthesis_conv", "synthesis_kernels"]
