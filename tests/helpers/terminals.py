"""A terminal, and what stays on it."""

import contextlib
import fcntl
import os
import pty
import struct
import termios
import threading


@contextlib.contextmanager
def terminal():
    """Standard error is a terminal; yields a list that gets, at the end, what it was sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 120, 0, 0))
    parts, sent = [], []

    def read():
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(master, 65536):
                parts.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, 'w') as screen, contextlib.redirect_stderr(screen):
        yield sent
    reader.join()
    os.close(master)
    sent.append(b''.join(parts).decode())


def lines_left(text):
    """What stays on a terminal: of every line what its last carriage return left."""
    left = []
    for line in text.replace('\r\n', '\n').split('\n'):
        shown = ''
        for part in line.split('\r'):
            shown = part + shown[len(part):]
        left.append(shown.rstrip())
    return left
