"""Sums in one order and in float32: what these tests compare must not depend on a kernel's luck."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # training_cases


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """TensorFloat-32, torch's default for convolutions, would keep three digits; cuDNN's fastest kernels add in any
    order."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.get_num_threads()
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before[:4]
    torch.set_num_threads(before[4])
