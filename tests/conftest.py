"""Shared by all tests: no network, one thread, read-only fixtures."""

import os
import socket
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
from hypothesis import settings

# The same examples in every run: a failure is found again, and no run fails by chance.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LENS_LINEAR_SHARED", ROOT.parent / "shared"))
LOCAL = ("127.", "::1", "localhost")


class NetworkBlocked(RuntimeError):
    """A test tried to reach another machine."""


def _guard(function):
    def guarded(self, address, *args, **kwargs):
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(host).startswith(LOCAL):
            raise NetworkBlocked(f"a test tried to connect to {address!r}")
        return function(self, address, *args, **kwargs)

    return guarded


_resolve = socket.getaddrinfo


def _local_only(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    if name and not str(name).startswith(LOCAL) and name not in (socket.gethostname(), "0.0.0.0"):
        raise NetworkBlocked(f"a test tried to look up {name!r}")
    return _resolve(host, *args, **kwargs)


# Blocked for the whole process, module-level fixtures included, not only inside test functions.
socket.socket.connect = _guard(socket.socket.connect)
socket.socket.connect_ex = _guard(socket.socket.connect_ex)
socket.getaddrinfo = _local_only


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


def absent(reason):
    """Skip with a reason; fail where everything has to be there (``LENS_LINEAR_REQUIRE_ALL=1``)."""
    if os.environ.get("LENS_LINEAR_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and LENS_LINEAR_REQUIRE_ALL=1 asks for it")
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def smollm2():
    """A real language model, 30 layers of 9 heads, vocabulary 49,152; such tests run with ``-m real``."""
    import lens_linear as ll

    try:
        return ll.load("smollm2-135m")
    except ll.errors.OfflineError as error:
        absent(f"the real model is not here ({error})")


@pytest.fixture(scope="session")
def stories_folder():
    """Folder of a real third-party Llama: rotary, grouped-query, RMS-norm, gated FFN."""
    folder = SHARED / "models" / "stories260K"
    if not (folder / "config.json").is_file():
        pytest.skip("the third-party model stories260K is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def unseen_books():
    """The text of the two whole books that no bundled model was trained on."""
    path = SHARED / "data" / "stories" / "valid.txt"
    if not path.is_file():
        pytest.skip("the validation books are not beside this checkout")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def stories_model(stories_folder):
    import lens_linear as ll

    return ll.load(stories_folder)


@pytest.fixture(scope="session")
def attn_2l():
    import lens_linear as ll

    return ll.load("attn-2l")
