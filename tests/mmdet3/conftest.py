"""What the tests under MMDetection 3 share."""

import socket

import pytest


@pytest.fixture
def free_port():
    """A port for processes to meet at."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]
