"""What this machine and its packages are, for reports of bugs."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import convfactor

NEEDED = ("torch", "numpy", "safetensors", "rich", "cattrs", "jinja2")
EXTRAS = {
    "plots": ("matplotlib",),
    "demo": ("scikit-image",),
    "wavelets": ("pytorch_wavelets", "PyWavelets", "setuptools"),
    "cpp": ("ninja",),
    "lightning": ("lightning", "pytorch-lightning"),
    "completion": ("shtab",),
}
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "KMP_BLOCKTIME",
    "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
)  # fmt: skip
COMPILERS = ("c++", "g++", "clang++", "cl")


def describe() -> dict[str, Any]:
    """Describe versions, processor, threads and accelerators; no paths, and no names of people.

    Returns:
        Texts, numbers, booleans and lists of them by name, in the order to be read.

    Example:
        >>> describe()["python"].split(".")[0]
        '3'
    """
    return {
        "convfactor": convfactor.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        **{name: _version(name) for name in NEEDED},
        **{f"extra {name}": _extra(packages) for name, packages in EXTRAS.items()},
        "c++ compiler": next(filter(shutil.which, COMPILERS), "none"),
        "processor": _processor(),
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "memory": _memory(),
        **_torch(),
        "variables": [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ],
    }


def _version(package: str) -> str:
    """The version of a package that is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _extra(packages: tuple[str, ...]) -> str:
    """The packages of an extra that are there."""
    found = {name: _version(name) for name in packages}
    there = [f"{name} {version}" for name, version in found.items() if version != "not installed"]
    return ", ".join(there) or "not installed"


def _processor() -> str:
    """What the processor is called."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """Size of the main memory."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a system of POSIX
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def _torch() -> dict[str, Any]:
    """What torch says of itself; where it can't be loaded, which is worth a report, that."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # whatever a broken installation raises
        return {"torch can't be imported": type(error).__name__}  # its text may name folders
    backends, threads = torch.backends, torch.get_num_threads()
    return {
        "threads": f"{threads}, {torch.get_num_interop_threads()} between operators",
        "cpu capability": backends.cpu.get_cpu_capability(),
        "MKL": backends.mkl.is_available(),
        "oneDNN": backends.mkldnn.is_available(),
        "OpenMP": backends.openmp.is_available(),
        "CUDA": torch.version.cuda or "none",
        "cuDNN": str(backends.cudnn.version() or "none"),
        "accelerators": _accelerators(torch) or "none",
    }


def _accelerators(torch: Any) -> list[str]:
    """Names of the accelerators that torch can use."""
    try:
        cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception as error:  # whatever a broken driver raises, which is worth a report
        cards = [f"CUDA can't be used: {type(error).__name__}"]
    return [*cards, *(["MPS"] if torch.backends.mps.is_available() else [])]
