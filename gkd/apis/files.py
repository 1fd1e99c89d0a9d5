"""Writing files that appear whole or not at all."""

import os


def write_atomically(path: str, text: str) -> None:
    """Write a text file beside its place, then move it there."""
    with open(f'{path}.part', 'w', encoding='utf-8') as file:
        file.write(text)
    os.replace(f'{path}.part', path)
