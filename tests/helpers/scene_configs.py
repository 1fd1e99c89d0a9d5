"""Checks of the configs of data sets that are made as scenes."""

from mmdet.models import build_detector

from gkd.matching import check_num_classes
from gkd.running.config import load_config
from gkd.running.data import build_checked_dataset


def build_with_data(path, root, classes):
    """Build a config's detector and data sets; return the one that trains.

    Args:
        path: The config.
        root: Folder of the data set, made for the test.
        classes: Its classes.
    """
    config = load_config(str(path))
    if config.model.type == 'Distiller':
        config.model.teacher.checkpoint = None
    model = build_detector(config.model)
    datasets = {}
    for split, test_mode in (('train', False), ('val', True)):
        entry = config.data[split]
        assert entry.ann_file == f'data/{path.parent.name[:-1]}_scenes/{split}.json'
        entry.update(ann_file=str(root / f'{split}.json'), img_prefix=str(root / 'images'))
        datasets[split] = build_checked_dataset(entry, split, dict(test_mode=test_mode))
        check_num_classes(model, datasets[split].CLASSES, split)
        assert datasets[split].CLASSES == classes
    return datasets['train']
