import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def attn_2l():
    from lens_linear.models.open.load import load

    return load("attn-2l")
