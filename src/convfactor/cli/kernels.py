"""Kernels that the command line names: filters, and arrays in files of several kinds."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convfactor import filters
from convfactor.cli.messages import told
from convfactor.cli.parsing import STREAM, piped
from convfactor.errors import did_you_mean

MOST_NAMES = 20


def check_source(text: str, tensor: str | None) -> None:
    """Refuse a kernel that is neither a file nor a filter.

    Raises:
        ValueError: A filter is asked for in another form, or what it is asked for is out of range.
        FileNotFoundError: There is neither.
    """
    if text == STREAM or Path(text).is_file():
        return
    name, _, rest = text.partition(":")
    if tensor is not None:
        raise ValueError(f"--tensor is for a file, and there is no file {text}")
    if name in filters.FILTERS:
        _filter(name, rest)
    elif rest not in filters.BANDS:
        known = [*filters.FILTERS, *(str(p) for p in _beside(text))]
        raise FileNotFoundError(
            f"the kernel must be a file, one of the filters {', '.join(filters.FILTERS)}, or a "
            f"wavelet such as near_sym_a:lh ({', '.join(filters.BANDS)}), got {text!r}"
            f"{did_you_mean(text if name == text else name, known)}"
        )


def read_kernel(text: str, tensor: str | None) -> Any:
    """Make a filter, or read a file.

    Args:
        text: The filter or the file; "-" for stdin.
        tensor: Which of the tensors in the file; None for the only one that may be a kernel.

    Returns:
        An array or a tensor.

    Raises:
        ValueError: The file is damaged, or holds no kernel, or several; or the filter is unknown.
        ImportError: An extra is missing that the kernel needs.
    """
    name, _, rest = text.partition(":")
    if text != STREAM and not Path(text).is_file():
        return _filter(name, rest) if name in filters.FILTERS else filters.wavelet(name, rest)
    data = piped() if text == STREAM else Path(text).read_bytes()
    what = "stdin" if text == STREAM else text
    try:
        found = _read(data)
    except ImportError:
        raise
    except Exception as error:  # readers of damaged files raise all kinds
        reason = str(error) if type(error) is ValueError else told(error)
        raise ValueError(f"{what} can't be read: {reason}") from error
    if isinstance(found, Mapping):
        return _chosen(found, tensor, what)
    if tensor is not None:
        raise ValueError(f"--tensor is for a file with names, {what} holds one array without")
    return found


def suffix_of(data: bytes) -> str:
    """Tell a file's kind by how it begins; empty for any other, such as an image."""
    if data.startswith(b"\x93NUMPY"):
        return ".npy"
    if data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            saved = any(name.endswith("data.pkl") for name in archive.namelist())
        return ".pt" if saved else ".npz"
    if data[8:9] == b"{":
        return ".safetensors"
    return ".pt" if data.startswith(b"\x80\x02") else ""  # as torch wrote before its version 1.6


def _filter(name: str, parameters: str) -> Any:
    """Make a filter of a text such as size=9,sigma=1.5."""
    given: dict[str, float] = {}
    for part in parameters.split(",") if parameters else ():
        key, _, value = part.partition("=")
        try:
            given[key] = int(value)
        except ValueError:
            try:
                given[key] = float(value)
            except ValueError:
                raise ValueError(
                    f"the parameters of {name} must be numbers, as in size=9, got {part!r}"
                ) from None
    return filters.make(name, **given)


def _beside(text: str) -> list[Path]:
    """Files in the folder of one that is not there."""
    folder = Path(text).parent
    return list(folder.glob("*")) if folder.is_dir() else []


def _read(data: bytes) -> Any:
    """Read an array, or several by name."""
    kind = suffix_of(data)
    if kind in (".npy", ".npz"):
        read = np.load(io.BytesIO(data), allow_pickle=False)
        return dict(read) if kind == ".npz" else read
    if kind == ".safetensors":
        from safetensors.torch import load

        return load(data)
    if kind == ".pt":
        import torch

        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return found.get("state_dict", found) if isinstance(found, Mapping) else found
    return _image(data)


def _image(data: bytes) -> Any:
    """Read the luma of an image, 0 to 1."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            "images are read by Pillow, which is not installed: pip install 'convfactor[plots]'"
        ) from error
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("it is neither .npy, .npz, .pt or .safetensors nor an image") from None
    with image:
        deep = image.mode in ("I;16", "I;16B", "I", "F")
        pixels = np.asarray(image if deep else image.convert("L"), dtype=np.float64)
    return pixels / {"F": 1.0}.get(image.mode, 65535.0 if deep else 255.0)


def _chosen(found: Mapping[str, Any], tensor: str | None, what: str) -> Any:
    """Choose the kernel among the tensors of a file."""
    shapes = {str(n): tuple(t.shape) for n, t in found.items() if hasattr(t, "shape")}
    fit = [name for name, shape in shapes.items() if len(shape) in (2, 4)]
    listed = ", ".join(f"{n} {'x'.join(map(str, shapes[n]))}" for n in fit[:MOST_NAMES])
    listed += ", ..." if len(fit) > MOST_NAMES else ""
    if tensor is None and len(fit) == 1:
        return found[fit[0]]
    if not fit:
        raise ValueError(f"{what} holds no kernel, an array of 2 or 4 dimensions")
    if tensor is None:
        raise ValueError(f"{what} holds several kernels: choose with --tensor from {listed}")
    if tensor not in shapes:
        near = did_you_mean(tensor, shapes)
        raise ValueError(f"--tensor {tensor!r} is not in {what}, which holds {listed}{near}")
    return found[tensor]
