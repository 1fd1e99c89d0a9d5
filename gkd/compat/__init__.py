"""What makes MMDetection run on today's torch, without editing an installed package.

:func:`apply` runs once, when ``gkd`` is imported, before anything imports mmdet. Each patch is one
function that says why it is there and for which versions.
"""

from __future__ import annotations

import logging
import warnings

from gkd.environment import check_environment
from gkd.installed import mmdet_major

# Every file in here imports mmcv or mmdet.
check_environment()
_applied = False


def apply() -> None:
    """Apply every patch. Safe to call again.

    Raises:
        EnvironmentMismatchError: A compiled extension does not work with the installed torch.
    """
    global _applied
    if _applied:
        return

    from gkd.compat import defaults

    defaults.restore_find_loader()
    defaults.fork_workers()
    defaults.restore_numpy_names()
    # mmcv announces its version 2.0 of 2023 on every import, and makes torch look for a compiler.
    warnings.filterwarnings('ignore', message='On January 1, 2023, MMCV', category=UserWarning)
    # torch 2.1 imports it there.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated', category=UserWarning)
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)

    from gkd.compat.ops import install_ops

    install_ops()

    if mmdet_major() == 3:
        _patch_mmdet3()
    else:
        _patch_mmdet2()
    _applied = True


def _patch_mmdet2() -> None:
    # These import mmcv and mmdet, which is possible from here on only.
    from mmcv import ProgressBar
    from mmcv.runner import DefaultOptimizerConstructor
    from mmdet.core import InstanceBalancedPosSampler
    from mmdet.datasets.pipelines import Albu

    from gkd.compat import (
        augmentation,
        coco,
        config_text,
        defaults,
        distributed,
        images,
        optimizers,
        parallel,
        progress,
        runner,
        samplers,
    )

    defaults.default_to_existing_device()
    augmentation.let_albumentations_follow_the_seed(Albu, '__call__')
    coco.inspect_annotations()
    coco.evaluate_classes_in_their_order()
    coco.count_proposals()
    config_text.write_readable_configs()
    images.name_unreadable_images()
    optimizers.show_students_to_constructors(DefaultOptimizerConstructor)
    parallel.run_steps_through_torch_ddp()
    parallel.copy_on_cuda_streams()
    parallel.stay_on_the_cpu_beside_gpus()
    distributed.init_without_gpus()
    distributed.collect_results_without_files()
    progress.draw_bars_on_terminals_only(ProgressBar)
    runner.read_checkpoints_safely()
    runner.load_checkpoints_strictly()
    runner.resume_without_running_the_config()
    runner.log_short_epochs()
    runner.leave_out_pauses()
    runner.refuse_fp16_without_gpu()
    runner.write_files_whole()
    runner.refuse_unknown_settings_of_checkpoints()
    samplers.draw_from_positives_in_order(InstanceBalancedPosSampler)


def _patch_mmdet3() -> None:
    from gkd.compat import engine

    engine.accept_newer_mmcv()
    engine.find_packages_without_setuptools()
    engine.know_the_standard_library()

    # These import mmdet, which is possible from here on only.
    from mmdet.datasets.transforms import Albu
    from mmdet.models.task_modules import InstanceBalancedPosSampler
    from mmengine import ProgressBar
    from mmengine.optim import DefaultOptimWrapperConstructor

    from gkd.compat import (
        augmentation,
        coco_metric,
        config_text,
        decoders,
        heads,
        images,
        optimizers,
        progress,
        samplers,
    )

    augmentation.let_albumentations_follow_the_seed(Albu, 'transform')
    coco_metric.inspect_annotations()
    coco_metric.evaluate_classes_in_their_order()
    config_text.write_readable_configs()
    decoders.keep_borrowed_layers_out_of_ddq()
    heads.let_ssd_detect()
    images.name_unreadable_images_with_mmdet3()
    optimizers.show_students_to_constructors(DefaultOptimWrapperConstructor)
    progress.draw_bars_on_terminals_only(ProgressBar)
    engine.init_without_gpus()
    engine.collect_results_without_files()
    engine.read_checkpoints_safely()
    engine.load_checkpoints_strictly()
    engine.resume_without_running_the_config()
    engine.refuse_mixed_precision_without_gpu()
    engine.write_files_whole()
    engine.refuse_unknown_settings_of_checkpoints()
    samplers.draw_from_positives_in_order(InstanceBalancedPosSampler)
