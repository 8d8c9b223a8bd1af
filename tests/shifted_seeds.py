"""Every seed of the tests and of what they test moved by ``VGG_EXPORT_SEED_SHIFT``: ``PYTHONPATH=tests pytest
-p shifted_seeds``.

A figure that holds for one drawn network, and not for its like, holds by luck; ``bench/numeric_settings.py``
looks for such. Processes that a test starts draw as ever.
"""

import os
from typing import Any

import numpy as np
import torch

SHIFT = int(os.environ.get("VGG_EXPORT_SEED_SHIFT", "0")) * 1_000_003


class ShiftedGenerator(torch.Generator):
    def manual_seed(self, seed: int) -> torch.Generator:
        return super().manual_seed(seed + SHIFT)


def shift() -> None:
    manual_seed, default_rng = torch.manual_seed, np.random.default_rng
    torch.manual_seed = lambda seed: manual_seed(seed + SHIFT)
    torch.Generator = ShiftedGenerator  # type: ignore[misc]

    def shifted_rng(seed: Any = None) -> np.random.Generator:
        match seed:
            case int():
                return default_rng(seed + SHIFT)
            case [int(first), *others]:  # a drawn picture's seed and class
                return default_rng([first + SHIFT, *others])
        return default_rng(seed)

    np.random.default_rng = shifted_rng
    torch.manual_seed(0)  # for what is drawn without a seed


if SHIFT:
    shift()
