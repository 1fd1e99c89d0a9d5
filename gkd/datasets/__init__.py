"""Data sets that the project prepares itself."""

from .character_scenes import prepare_character_scenes
from .degrees import evaluate_by_degree
from .digit_scenes import prepare_digit_scenes
from .embedded import prepare_embedded
from .tree_crowns import prepare_tree_crowns

__all__ = ['evaluate_by_degree', 'prepare_character_scenes', 'prepare_digit_scenes',
           'prepare_embedded', 'prepare_tree_crowns']
