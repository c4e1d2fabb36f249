"""The dual-tree complex wavelet transform, fast and traceable.

Both directions are drop-ins for those of pytorch_wavelets. Named filters come from the tables
of pytorch_wavelets, which is read but never imported.
"""

from convfactor.wavelets.banks import Sizes
from convfactor.wavelets.filters import synthesis_conv, synthesis_kernels
from convfactor.wavelets.forward import DTCWTForward
from convfactor.wavelets.inverse import DTCWTInverse

__all__ = ["DTCWTForward", "DTCWTInverse", "Sizes", "synthesis_conv", "synthesis_kernels"]
