"""Text files that appear whole or not at all."""

from gkd.files import written_whole


def write_atomically(path: str, text: str) -> None:
    """Write a text file beside its place, then move it there."""
    with written_whole(path) as file:
        file.write(text.encode('utf-8'))
