"""Data sets that the project prepares itself."""

from .tree_crowns import prepare_tree_crowns

__all__ = ['prepare_tree_crowns']
