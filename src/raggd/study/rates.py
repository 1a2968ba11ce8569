"""How fast the machine is: given, assumed for a GPU, or measured on the processor."""

from __future__ import annotations

import time

import torch

from raggd.backbone.load import choose_device, choose_dtype
from raggd.settings import BackboneSettings
from raggd.study.estimate import Rates
from raggd.study.settings import StudySettings
from raggd.study.shapes import Sizes

GPU = Rates(6e13, 1e12, "assumed: a data-centre GPU, 60 TFLOP/s reading, 1 TB/s writing")
CPU_BANDWIDTH = 8e9
SHARE = 0.35
"""Of a bare matrix product's speed that a whole forward pass reaches, on a processor."""


def _processor_rates(sizes: Sizes) -> Rates:
    dtype = choose_dtype(BackboneSettings(), torch.device("cpu"))
    left = torch.randn(512, sizes.hidden).to(dtype)
    right = torch.randn(sizes.hidden, sizes.inner).to(dtype)
    left @ right
    rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.3:
        left @ right
        rounds += 1
    speed = rounds * 2 * 512 * sizes.hidden * sizes.inner / (time.perf_counter() - started)
    told = f"measured: matrix products at {speed / 1e12:.2f} TFLOP/s here, {SHARE:.0%} of it used"
    return Rates(speed * SHARE, CPU_BANDWIDTH, told)


def machine_rates(study: StudySettings, sizes: Sizes, tflops: float | None) -> Rates:
    """Tell how fast a backbone will run.

    Args:
        study: says whether it runs on a GPU.
        sizes: of the backbone.
        tflops: 10^12 operations per second, if they are known.

    Returns:
        The rates.
    """
    gpu = study.backbone.dtype == "nf4" or study.backbone.device.startswith("cuda")
    if tflops is not None:
        bandwidth = GPU.bandwidth if gpu else CPU_BANDWIDTH
        return Rates(tflops * 1e12, bandwidth, f"given: {tflops:g} TFLOP/s")
    return GPU if gpu else _processor_rates(sizes)


def dtype_name(study: StudySettings) -> str:
    """Return the type of a study's weights, e.g. ``bfloat16`` or ``nf4``."""
    if study.backbone.dtype != "auto":
        return study.backbone.dtype
    return str(choose_dtype(study.backbone, choose_device("auto"))).removeprefix("torch.")
