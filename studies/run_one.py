#!/usr/bin/env python
"""Train one student with one method and append the result to a CSV.

One run is one process, and many may run at once: what they share, the teacher and the student
that all start from, is trained by the first that needs it while the others wait, and is there for
all later ones. A run whose row is in the CSV is not repeated.

    python studies/run_one.py --data digit-scenes --family retinanet --teacher-seed 0 --seed 1 \\
        --method no-global
"""

import argparse
import os.path as osp
import shutil
import sys

# The studies lie beside the package, in the clone only.
sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

from gkd.commands import positive, run
from gkd.commands.processes import children_end_too
from gkd.commands.settings import DictAction
from gkd.comparison.compare import plan
from gkd.comparison.methods import choose_methods
from gkd.comparison.run import run_stage
from gkd.comparison.stages import digest
from gkd.datasets.tree_crowns import STRIPS
from gkd.errors import ConfigError
from gkd.installed import mmdet_major
from gkd.locks import file_lock
from gkd.planning.door import load_config
from gkd.quickstart import CONFIGS, FOLDER
from gkd.report.names import PLAIN_STUDENT
from gkd.report.results import PLAIN, append_result, machine, read_results

ACROSS = (f'configs/{FOLDER}digits/'
          'gkd_faster_rcnn_efficientnet-lite0_retinanet_r18-w8_fpn_digit-scenes.py')
WORK_DIR = osp.join('work_dirs/studies', FOLDER)
RESULTS = {2: 'docs/data/results.csv', 3: 'docs/data/results_mmdet3.csv'}[mmdet_major()]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', choices=CONFIGS, default='digit-scenes')
    parser.add_argument('--family', default='retinanet', choices=(
        'retinanet', 'faster_rcnn', 'faster_rcnn-retinanet'),
        help='the last, of the digit scenes only: a Faster R-CNN teaches a RetinaNet')
    parser.add_argument('--config', help='a distillation config, instead of --data and --family')
    parser.add_argument('--strip', choices=STRIPS,
                        help='strip of the tree crowns that validates (default: right)')
    parser.add_argument('--teacher-seed', type=int, default=0)
    parser.add_argument('--seed', type=int, default=0, help='of the student')
    parser.add_argument('--method', required=True,
                        help='plain, gkd, a method or variant of configs/_base_/comparison.py or '
                             'the config, or some of these with + between them')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        metavar='KEY=VALUE', help='replace settings of the distillation config')
    parser.add_argument('--epochs', type=positive, help='replaces all configs\' number of epochs')
    parser.add_argument('--results', default=RESULTS, metavar='CSV',
                        help='file to append rows to (default: %(default)s)')
    parser.add_argument('--work-dir', help='where everything else goes, of all runs that share '
                                           f'teacher and students (default: below {WORK_DIR})')
    parser.add_argument('--again', action='store_true', help='repeat a run that is there')
    return parser.parse_args()


def main():
    args = parse_args()
    path = args.config or (ACROSS if args.family == 'faster_rcnn-retinanet'
                           else CONFIGS[args.data].format(args.family))
    config = load_config(path, args.cfg_options)
    work_dir = osp.abspath(args.work_dir or osp.join(WORK_DIR, '_'.join(filter(None, (
        osp.splitext(osp.basename(path))[0], args.strip)))))
    recipes = {} if args.method == PLAIN else choose_methods(config, [args.method])
    # Blanks stand between options only.
    options = ' '.join(f'{key}={value}'.replace(' ', '')
                       for key, value in sorted(args.cfg_options.items()))
    with file_lock(osp.join(WORK_DIR, 'data.lock')):  # the first run makes the data
        planned = plan(config, args.method, recipes, [args.seed], args.epochs, work_dir,
                       args.teacher_seed, args.strip, fresh=True,
                       suffix=f'-{digest([options])[:8]}' if options else '')
    if args.method in planned.refused:
        raise ConfigError(f'{args.method}: {planned.refused[args.method]}')
    training = planned.runs[PLAIN_STUDENT if args.method == PLAIN else args.method][args.seed]

    done = next((row for row in read_results(args.results)
                 if row.run == planned.identify(training, options, machine())), None)
    if done and not args.again:
        print(f'{args.method}: {done.AP} AP, {done.AP50} AP50, in {args.results} already; '
              f'--again repeats it')
        return
    if args.again:
        shutil.rmtree(training.work_dir, ignore_errors=True)
    with children_end_too():
        for stage in planned.preparation:
            if stage.output in training.inputs:
                run_stage(stage, logged=True)
                append_result(args.results, planned.result(stage))
        run_stage(training, logged=True)
    row = planned.result(training, options)
    append_result(args.results, row)
    print(f'{args.method}: {row.AP} AP, {row.AP50} AP50, written to {args.results}')


if __name__ == '__main__':
    run(main)
