import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from architectures import CONFIGS, save_random


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def foreign(request, tmp_path_factory):
    """A small random model of another architecture, opened from a local folder."""
    import lens_linear as ll

    return ll.load(save_random(request.param, tmp_path_factory.mktemp(request.param)))
