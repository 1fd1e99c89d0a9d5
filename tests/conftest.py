"""What all tests share."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import gkd  # noqa: F401  (must come before anything imports mmdet)

# Tests are small: threads would cost more than they gain, and differ between machines.
torch.set_num_threads(1)

# The same examples every time, however slow the machine is.
settings.register_profile('reproducible', deadline=None, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('reproducible')


@pytest.fixture(autouse=True)
def seeded():
    """Let every test draw the same random numbers, alone or among others."""
    torch.manual_seed(0)
    np.random.seed(0)
