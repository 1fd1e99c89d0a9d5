"""What lies in the work dir of a training: names of its files, and its checkpoints."""

from __future__ import annotations

import os
import os.path as osp
import re
from collections import Counter
from typing import Any, Optional

EVALUATION = 'evaluation.json'  # metrics by epoch
RECORD, DETECTIONS, REPORT = 'record.json', 'detections.bbox.json', 'report.html'
BINS = 20  # of the histograms of robust weights in a record, from 0 to 1
TEACHER_DETECTIONS = 'teacher.bbox.json'
PROCESS = 'process.json'  # peak memory of the process that trained
PROTOTYPES = 'prototypes'  # folder of the banks
LATEST = 'latest.pth'  # MMDetection 2's link to the last checkpoint
# MMEngine's file with the path of the last checkpoint; with MMDetection 2 of the link to it, if
# that lies elsewhere.
LAST_CHECKPOINT = 'last_checkpoint'
INSIDE = 'epoch_{}_iter_{}.pth'  # running epoch, from 1, and how many of its iterations are done
WHOLE = re.compile(r'(epoch|iter)_(\d+)\.pth')


def checkpoints(work_dir: str) -> list[str]:
    """Checkpoints of a run, newest first: the one that the run names as its last, and all before.

    A folder that was moved is searched for what its ``last_checkpoint`` names by its former place.
    """
    named = last_named(work_dir)
    latest = osp.join(work_dir, osp.basename(named or ''))
    if named is not None and not osp.isfile(latest):
        latest = named  # the run keeps its checkpoints elsewhere
    folder = osp.dirname(latest) if osp.isfile(latest) else work_dir
    names = os.listdir(folder) if osp.isdir(folder) else []
    found = sorted((name for name in names if progress_of(name)), key=progress_of, reverse=True)
    if named is None:
        return [osp.join(folder, name) for name in found]
    # Later ones are of a run that was thrown away.
    newest = osp.basename(osp.realpath(latest))
    reached = progress_of(newest)
    return [latest] * osp.isfile(latest) + [
        osp.join(folder, name) for name in found
        if name != newest and (reached is None or progress_of(name) < reached)]


def without_prefixes(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of MMEngine by the names that MMDetection 2 has for them.

    Those that would then have one name, as of two data sets, keep what comes before it.

    Example:
        >>> without_prefixes({'coco/bbox_mAP': 0.5, 'day/coco/AR': 0.5, 'night/coco/AR': 0.25})
        {'bbox_mAP': 0.5, 'day/coco/AR': 0.5, 'night/coco/AR': 0.25}
    """
    short = {name: name.rpartition('/')[2] for name in metrics}
    times = Counter(short.values())
    return {short[name] if times[short[name]] == 1 else name: value
            for name, value in metrics.items()}


def named_folder(path: str) -> Optional[str]:
    """What to do about a folder where a checkpoint should be, for messages; None elsewhere."""
    if not osp.isdir(path):
        return None
    inside = checkpoints(path)
    return (f'{path} is a folder; name the checkpoint in it'
            + (f', such as {inside[0]}.' if inside else '.'))


def no_checkpoint(path: str) -> str:
    """What to say of a path where no checkpoint is."""
    return named_folder(path) or f'no such checkpoint: {path}{newest_beside(path)}'


def newest_beside(path: str) -> str:
    """Which checkpoint is the newest in the folder of a path, for messages; empty for none."""
    inside = checkpoints(osp.dirname(path) or osp.curdir)
    return f'; the newest in its folder is {inside[0]}' if inside else ''


def last_named(work_dir: str) -> Optional[str]:
    """The checkpoint that a run names as its last, which may be gone; None if it names none."""
    latest, named = (osp.join(work_dir, name) for name in (LATEST, LAST_CHECKPOINT))
    if osp.isfile(latest):
        return latest
    if not osp.isfile(named):
        return None
    with open(named, encoding='utf-8') as file:
        return file.read().strip() or None


def last_whole_checkpoint(work_dir: str) -> Optional[str]:
    """The newest checkpoint that was written between two epochs, None if there is none."""
    # The first may be a link to one of the others.
    paths = [osp.join(osp.dirname(path), osp.basename(osp.realpath(path)))
             for path in checkpoints(work_dir)]
    return next((path for path in paths if WHOLE.fullmatch(osp.basename(path))), None)


def progress_of(path: str | os.PathLike) -> Optional[tuple[int, int]]:
    """Epochs that are done and iterations after them, by the name of a checkpoint.

    Example:
        >>> progress_of('epoch_2.pth'), progress_of('work/epoch_3_iter_500.pth')
        ((2, 0), (2, 500))
        >>> progress_of('iter_4000.pth'), progress_of('student.pth')
        ((0, 4000), None)
    """
    name = osp.basename(path)
    inside = re.fullmatch(r'epoch_(\d+)_iter_(\d+)\.pth', name)
    if inside:
        return int(inside[1]) - 1, int(inside[2])
    whole = WHOLE.fullmatch(name)
    if whole is None:
        return None
    return (int(whole[2]), 0) if whole[1] == 'epoch' else (0, int(whole[2]))
