import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))


@pytest.fixture(scope="session", params=["gpt2", "neox", "gemma2", "opt", "bloom"])
def foreign(request, tmp_path_factory):
    """A random model of another architecture from a local configuration (neox runs in parallel)."""
    from architectures import save_random

    import lens_linear as ll

    return ll.load(save_random(request.param, tmp_path_factory.mktemp(request.param)))
