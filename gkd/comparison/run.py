"""Run the stages of a comparison, and report what they came to."""

from __future__ import annotations

import os.path as osp
import queue
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Optional

import torch

from gkd.commands.processes import StageFailed, children_end_too, shares
from gkd.comparison.plan import Comparison, Stage
from gkd.comparison.stages import StageProgress, Training, percent, read
from gkd.datasets.coco_eval import METRICS
from gkd.files import write_atomically
from gkd.locks import file_lock
from gkd.progress import on_terminal, progress, say
from gkd.report.comparison import (
    Row,
    draw_comparison,
    format_columns,
    format_comparison,
    format_csv,
)
from gkd.report.names import TEACHER
from gkd.report.results import append_result

LEGEND = '''
AP in percent on the validation data at the end of training, mean over seeds; at an IoU of 0.5
where the data are evaluated so (PASCAL VOC, Open Images). Gain: mean difference to the plain
student of the same seed, with its 95 % confidence interval (Student's t over the seeds). Time:
median training step without loading data and without generating prototypes between epochs. Memory:
peak of {device}, which holds the teacher, for the plain student too.
'''
BAR = '{desc}: {bar:20} {n_fmt}/{total_fmt}{postfix}'


def run_comparison(comparison: Comparison, jobs: int, results: Optional[str],
                   only_list: bool) -> None:
    """Run what is not finished and print the table, or only list what is finished.

    Args:
        comparison: The stages.
        jobs: How many to run at once.
        results: CSV to append a row to for every training (default: ``results.csv`` in the work
            dir).
        only_list: Run none.

    Raises:
        StageFailed: Some stages failed; the others are in the table.
    """
    for method, reason in comparison.refused.items():
        print(f'{method}: {reason}')
    if only_list:
        for stage in comparison.stages():
            print(f'{"finished" if stage.finished() else "to do   "}  '
                  f'{osp.relpath(osp.dirname(stage.output))}')
        return
    work_dir = comparison.work_dir
    run_all(comparison, jobs, results or osp.join(work_dir, 'results.csv'))
    table = read(osp.join(work_dir, 'comparison.md'))
    print(f'\n{table}\nfiles:  {osp.relpath(work_dir)}/comparison.md, .csv, .png'
          + (', degrees.md, .csv' if comparison.columns else ''))
    if comparison.failed:
        raise StageFailed(f'{len(comparison.failed)} stages failed or could not start; the table '
                          f'holds the others. The same command resumes from here.')


def run_all(comparison: Comparison, jobs: int, results: str) -> None:
    """Run every stage as soon as what it starts from is there; report after each.

    Args:
        comparison: The stages.
        jobs: How many to run at once.
        results: CSV to append a row to for every training.
    """
    runner = StageRunner(comparison, jobs, results)
    # A single stage draws bars of its own.
    quiet = jobs == 1 or not on_terminal()
    with ThreadPoolExecutor(jobs) as pool, children_end_too(), \
            progress(None, 'stages', len(runner.waiting), disable=quiet, bar_format=BAR) as bar:
        while True:
            ready = runner.ready()
            if ready is not None and len(runner.running) < jobs:
                runner.start(ready, pool)
            elif runner.running:
                done = wait(runner.running, timeout=1, return_when=FIRST_COMPLETED).done
                bar.set_postfix_str(str(runner))
                for future in done:
                    bar.update()
                    runner.end(future)
                if done:
                    write_report(comparison)
            else:
                break
    comparison.failed.update(stage.output for stage in runner.waiting)
    write_report(comparison)


class StageRunner:
    """Runs the stages of a comparison in threads, and keeps what each came to.

    Args:
        comparison: The stages.
        jobs: How many to run at once.
        results: CSV to append a row to for every training.

    Attributes:
        waiting: Stages that have not been started.
        running: Those that have been, by what their threads will return.
    """

    def __init__(self, comparison: Comparison, jobs: int, results: str):
        self.comparison = comparison
        self.jobs = jobs
        self.results = results
        self.waiting = comparison.stages()
        self.running: dict[Future, Stage] = {}
        self.unmade = {stage.output for stage in self.waiting}
        self.progress = StageProgress([type(stage).__name__ for stage in self.waiting], jobs)
        self.environments: queue.Queue[dict] = queue.Queue()
        for environment in shares(jobs):
            self.environments.put(environment)

    def __str__(self) -> str:
        """Times, and the stages that run."""
        names = ', '.join(osp.basename(osp.dirname(stage.output))
                          for stage in self.running.values())
        return f'{self.progress.times()}: {names}'

    def ready(self) -> Optional[Stage]:
        """The first stage whose inputs are there, None if no stage has them yet."""
        return next((stage for stage in self.waiting if self.unmade.isdisjoint(stage.inputs)),
                    None)

    def start(self, stage: Stage, pool: ThreadPoolExecutor) -> None:
        """Run a stage in a thread of its own."""
        self.waiting.remove(stage)
        self.progress.begin(osp.relpath(osp.dirname(stage.output)))
        self.running[pool.submit(self.run, stage)] = stage

    def run(self, stage: Stage) -> Optional[float]:
        """Run a stage on its share of the processors; returns what :func:`run_stage` does."""
        environment = self.environments.get()
        try:
            return run_stage(stage, environment, self.jobs > 1)
        finally:
            self.environments.put(environment)

    def end(self, future: Future) -> None:
        """Note what an ended stage came to, or that it failed."""
        stage = self.running.pop(future)
        try:
            self.keep(stage, future.result())
        except StageFailed as error:
            say(f'\n{error}')
            self.comparison.failed.add(stage.output)

    def keep(self, stage: Stage, seconds: Optional[float]) -> None:
        """Measure a finished stage and write a training's row."""
        self.progress.end(type(stage).__name__, seconds)
        self.unmade.remove(stage.output)
        self.comparison.measured[stage.output] = measure(stage, self.comparison)
        if isinstance(stage, Training):
            append_result(self.results, self.comparison.result(stage))


def run_stage(stage: Stage, environment: Optional[dict] = None,
              logged: bool = False) -> Optional[float]:
    """Run a stage, unless it is finished; if another process is running it, wait for that one.

    Args:
        stage: The stage.
        environment: Variables of the environment to set.
        logged: Write what it prints to a log beside its folder.

    Returns:
        Seconds that it took, None if it was finished before.

    Raises:
        StageFailed: It ended with an error.
    """
    folder = osp.dirname(stage.output)
    with file_lock(f'{folder}.lock') as lock:
        if stage.prepare():
            say(f'finished before: {osp.relpath(folder)}')
            return None
        log = f'{osp.relpath(folder)}.log' if logged else None
        if log:
            say(f'log: {log}')
        started = time.time()
        stage.run(environment, log, lock)
        return time.time() - started


def measure(stage: Stage, comparison: Comparison) -> dict[str, float]:
    """APs in percent and costs of a finished stage, by the names that tables give them."""
    if isinstance(stage, Training):
        return {**percent(stage.metrics()), **stage.cost()}
    return stage.values(comparison)


def write_report(comparison: Comparison) -> None:
    """Write tables and plot of what is finished by now."""
    rows = rows_of(comparison)
    path = osp.join(comparison.work_dir, 'comparison')
    legend = LEGEND.format(device='the GPU' if torch.cuda.is_available() else 'the process')
    write_atomically(f'{path}.md', format_comparison(rows) + legend)
    write_atomically(f'{path}.csv', format_csv(rows, [*METRICS, 'time', 'memory']))
    draw_comparison(rows, comparison.title, f'{path}.png')
    if comparison.columns:
        rows = rows_of(comparison, of_degrees=True)
        path = osp.join(comparison.work_dir, 'degrees')
        write_atomically(f'{path}.md', format_columns(rows, comparison.columns))
        write_atomically(f'{path}.csv', format_csv(rows, comparison.columns))


def rows_of(comparison: Comparison, of_degrees: bool = False) -> list[Row]:
    """A row for the teacher and for every method, with the runs that are finished.

    Args:
        comparison: Its stages.
        of_degrees: Fill the rows with APs by degree instead of those over all objects.
    """
    def values(checkpoint: str) -> Optional[dict[str, float]]:
        detection = comparison.detections.get(checkpoint)
        output = detection.output if of_degrees or checkpoint == comparison.teacher else checkpoint
        return comparison.measured.get(output)

    rows = []
    if comparison.teacher in comparison.detections:
        found = values(comparison.teacher)
        rows.append(Row(TEACHER, {} if found is None else {0: found}))
    for method, trainings in comparison.runs.items():
        runs = {seed: values(training.checkpoint) for seed, training in trainings.items()}
        failed = [str(seed) for seed, training in trainings.items()
                  if training.checkpoint in comparison.failed]
        rows.append(Row(method, {seed: run for seed, run in runs.items() if run is not None},
                        f'failed with seed {", ".join(failed)}' if failed else ''))
    return rows + [Row(method, note=reason) for method, reason in comparison.refused.items()]
