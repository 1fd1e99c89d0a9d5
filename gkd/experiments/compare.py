"""Train a student alone and with every method of distillation, and compare."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Optional, Union

from gkd.comparison.methods import choose_methods
from gkd.comparison.run import check_distils, numbered, run_comparison
from gkd.experiments.comparison_plan import plan
from gkd.running.config import load_config


def compare(config_path: str, methods: Optional[Sequence[str]] = None,
            seeds: Union[int, Sequence[int]] = 3, epochs: Optional[int] = None,
            work_dir: Optional[str] = None, jobs: int = 1, teacher_seed: int = 0,
            strip: Optional[str] = None, results: Optional[str] = None,
            only_list: bool = False) -> None:
    """Train teacher, plain student and every method; write ``comparison.md``, ``.csv``, ``.png``.

    The plain student is the distiller with nothing to teach: same start, same images in the same
    order, same schedule. Finished stages are not run again, interrupted ones are resumed; several
    commands may share a work dir. If the validation data carry degrees of difficulty,
    ``degrees.md`` and ``degrees.csv`` tell them apart.

    The teacher's checkpoint is used if it is there and trained if not; likewise the student's, if
    the config names one. In its path ``seed0`` stands for every seed; without it, one checkpoint
    is the start of all runs.

    Args:
        config_path: A distillation config; its own ``model.knowledge`` is the method ``gkd``. Its
            ``methods`` and ``variants`` replace and add to those of
            ``configs/_base_/comparison.py``.
        methods: Names of methods and variants, combined with ``+``; None for each method alone.
        seeds: Number of runs of each, with seeds from 0 on; or the seeds.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes (default: ``work_dirs/compare/NAME_OF_CONFIG``, followed
            by the strip).
        jobs: Stages to run at once.
        teacher_seed: Seed of the teacher. Another than 0 trains one of its own.
        strip: Name of the tree crowns' strip that validates; see
            :data:`gkd.datasets.tree_crowns.STRIPS`.
        results: CSV to append a row to for every training (default: ``results.csv`` in the work
            dir).
        only_list: Print which stages are finished and which are not, and run none.

    Raises:
        ConfigError: The config trains no distiller, or a method is unknown.
        StageFailed: Some trainings failed; the others are in the table.
    """
    config = load_config(config_path)
    check_distils(config, config_path)
    recipes = choose_methods(config, methods)
    name = osp.splitext(osp.basename(config_path))[0] + (f'_{strip}' if strip else '')
    work_dir = osp.abspath(work_dir or osp.join('work_dirs', 'compare', name))
    run_comparison(plan(config, name, recipes, numbered(seeds), epochs, work_dir, teacher_seed,
                        strip), jobs, results, only_list)
