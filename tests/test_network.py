"""The test suite itself cannot reach the network."""

import socket

import pytest


def test_sockets_are_blocked():
    with pytest.raises(RuntimeError, match="tried to look up"):
        socket.create_connection(("example.org", 80), timeout=1)
    with pytest.raises(RuntimeError, match="tried to connect"):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("192.0.2.1", 80))
