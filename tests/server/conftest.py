import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serving import Serving


@pytest.fixture
def serving(short_dir):
    """`ts-mps` and TorchServe in a folder of their own; whatever a test leaves running is killed."""
    here = Serving(short_dir, dict(os.environ))
    yield here
    here.kill_everything()


@pytest.fixture
def simulated(short_dir, simulator):
    """The same on two simulated GPUs."""
    here = Serving(short_dir, simulator)
    yield here
    here.kill_everything()
