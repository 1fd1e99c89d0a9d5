"""Train a student alone and with every method of distillation, and compare."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Optional, Union

from gkd.comparison.data import annotation_files, data_name, move_to_strip, strip_of
from gkd.comparison.door import StagePlanner, validation_data
from gkd.comparison.methods import choose_methods, variant
from gkd.comparison.plan import NOTHING, Comparison, check_methods, family_of
from gkd.comparison.run import run_comparison
from gkd.datasets import prepare_embedded
from gkd.distiller import Distiller
from gkd.errors import ConfigError
from gkd.files import made_folder
from gkd.frameworks import Config
from gkd.matching import check_heads_agree
from gkd.planning.door import load_config, untrained_model
from gkd.report.names import TEACHER


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
        ConfigError: The config trains no distiller, or a method is unknown or wrong.
        DataError: The validation data cannot be read.
        StageFailed: Some trainings failed; the others are in the table.
    """
    config = load_config(config_path)
    if config.model.type != Distiller.__name__:
        raise ConfigError(f'{config_path} trains a {config.model.type}; a comparison needs a '
                          f'distillation config, which names a teacher and a student.')
    recipes = choose_methods(config, methods)
    name = osp.splitext(osp.basename(config_path))[0] + (f'_{strip}' if strip else '')
    work_dir = osp.abspath(work_dir or osp.join('work_dirs', 'compare', name))
    run_comparison(plan(config, name, recipes, range(seeds) if isinstance(seeds, int) else seeds,
                        epochs, work_dir, teacher_seed, strip), jobs, results, only_list)


def plan(config: Config, title: str, recipes: dict[str, dict], seeds: Sequence[int],
         epochs: Optional[int], work_dir: str, teacher_seed: int = 0,
         strip: Optional[str] = None, fresh: bool = False, suffix: str = '',
         detect: bool = True) -> Comparison:
    """Make the data if they are embedded, write the config of every stage, and list the stages.

    Args:
        config: The distillation config.
        title: What is compared.
        recipes: What every method teaches.
        seeds: Seeds of the runs.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes.
        teacher_seed: Seed of the teacher. Another than 0 trains one of its own.
        strip: Name of the tree crowns' strip that validates. With one, teacher and students are
            trained on the rest, and checkpoints that the config names are not used.
        fresh: Never use the checkpoints that the config names.
        suffix: Added to the names of the runs, to distinguish them from others in the work dir.
        detect: Plan tests, too: of the teacher and, if the data carry degrees, of every run.

    Raises:
        ConfigError: Teacher and student cannot be paired, or cannot be trained or validated, a
            method is wrong or no method can serve them, or the data have no such strip.
        DataError: The validation data cannot be read.
    """
    data = data_name(config)
    with made_folder(work_dir):  # before data are made for it
        if strip:
            move_to_strip(config, strip)
        for path in annotation_files(config):  # now: stages that run at once would all make them
            prepare_embedded(path)
        # What is wrong with the detectors is wrong for all methods.
        distiller = untrained_model(variant(config, NOTHING))
        check_heads_agree(distiller)
        taught, refused = check_methods(config, recipes, untrained_model)
        if recipes and not taught:
            raise ConfigError('nothing is left to compare. ' + ' '.join(
                f'{method}: {reason}' for method, reason in refused.items()))
        dataset, columns = validation_data(config) if detect else (None, [])

        planner = StagePlanner(config, work_dir, epochs, strip, fresh, suffix)
        runs = planner.runs({method: recipes[method] for method in taught}, seeds, teacher_seed)
        testable = detect and not (planner.tests_coco_only and dataset is None)
        tests = planner.tests(runs if columns else {}) if testable else {}
        known, wanted = distiller.pair.teacher.num_classes, distiller.pair.num_classes
        if known > wanted:
            tests.pop(planner.teacher_checkpoint, None)
            refused[TEACHER] = (f'not tested: it detects {known} classes, of which the data have '
                                f'{wanted}')
        planner.write()
    return Comparison(title, work_dir, planner.preparation, runs, tests, refused,
                      planner.teacher_checkpoint, dataset, columns, data, family_of(distiller),
                      teacher_seed, strip_of(config), taught)
