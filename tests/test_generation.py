"""The generation of prototypes: which instances, which features, how often, what is kept."""

import contextlib
import copy
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.centred import CENTRED, assert_boxes_lie_on_their_rectangles
from helpers.running import in_processes
from mmcv import Config
from mmdet.datasets import build_dataset
from mmdet.models import build_detector
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from gkd.detectors.dense import class_layers
from gkd.detectors.images import ChannelMap, ImageFormat
from gkd.detectors.step import recorded
from gkd.errors import CheckpointError, ConfigError, DataError, NumericalError, StorageError
from gkd.files import save_tensors
from gkd.prototypes import PrototypeBank, PrototypeGenerationModule, select_prototypes, shares
from gkd.prototypes.features import batch_features, choose_candidates, stack_images
from gkd.prototypes.hook import PrototypeHook, reload_bank
from gkd.running.data import prototype_datasets

LEVELS = (0, 2, 3)


@pytest.fixture
def annotations(tmp_path):
    return tiny_data.write_data(tmp_path / 'data', sizes=tiny_data.SIZES * 2)


@pytest.fixture
def datasets(annotations):
    return [build_dataset(dataset_config(annotations))]


def dataset_config(annotations, **settings):
    return Config(dict(data=tiny_data.dataset(annotations, tiny_data.pipelines()[1],
                                              **settings))).data


@pytest.fixture(scope='module')
def detectors():
    """Teacher and student with random weights, and statistics that keep their maps alive."""
    built = []
    for seed, channels in ((1, 24), (2, 16)):
        torch.manual_seed(seed)
        detector = build_detector(Config(dict(model=small.retinanet(channels))).model)
        with torch.no_grad():
            for _ in range(40):
                detector.extract_feat(torch.randn(2, 3, 64, 64))
        built.append(detector)
    return built[0].eval(), built[1].train()


def generation(**settings):
    return PrototypeGenerationModule(**{'num_prototypes': 2, 'min_size': 30, **settings})


def generate(module, detectors, datasets, cache, levels=LEVELS):
    return module.generate(*detectors, levels, levels, datasets, str(cache)).bank


@contextlib.contextmanager
def counted_images(*detectors):
    """Images that each detector sees inside the context."""
    with contextlib.ExitStack() as stack:
        calls = [stack.enter_context(recorded(detector, 'extract_feat')) for detector in detectors]
        counts = []
        yield counts
        counts += [sum(len(call.args[0]) for call in made) for made in calls]


def assert_same_bank(one, other, **tolerance):
    for name in ('student', 'teacher', 'offsets'):
        for left, right in zip(getattr(one, name), getattr(other, name)):
            torch.testing.assert_close(left, right, **tolerance)
    assert one.metadata == other.metadata


def annotated(*images):
    """A data set of annotations only: a list of (label, width, height) an image."""
    infos = []
    for boxes in images:
        sizes = np.array([box[1:] for box in boxes], np.float32).reshape(-1, 2)
        corners = np.full_like(sizes, 5)
        infos.append(dict(bboxes=np.hstack([corners, corners + sizes]),
                          labels=np.array([box[0] for box in boxes], np.int64)))

    class Annotated(list):
        def get_ann_info(self, index):
            return self[index]

    return Annotated(infos)


def test_candidates_exceed_the_least_size_both_ways():
    dataset = annotated([(0, 31, 31), (1, 30, 60), (1, 60, 30)], [(1, 30, 30)], [], [(2, 90, 31)])
    found = choose_candidates([dataset], max_images=9, min_size=30, seed=0)
    assert [(candidate.index, candidate.labels.tolist()) for candidate in found] == \
        [(0, [0]), (3, [2])]
    np.testing.assert_array_equal(found[0].boxes, [[5, 5, 36, 36]])


def test_candidates_are_limited_class_by_class():
    # Class 0 is everywhere, class 1 in three images.
    images = [[(0, 40, 40), (1, 40, 40)] if number in (3, 8, 9) else [(0, 40, 40), (0, 50, 50)]
              for number in range(20)]

    def chosen(dataset, seed=0, max_images=2):
        found = choose_candidates([dataset], max_images, 30, seed)
        return {label: [candidate.index for candidate in found if label in candidate.labels]
                for label in (0, 1)}, found

    by_class, found = chosen(annotated(*images))
    assert len(by_class[0]) == len(by_class[1]) == 2
    # An image chosen for one class gives no instance of another.
    for candidate in found:
        if candidate.index not in by_class[0]:
            assert candidate.labels.tolist() == [1]
    # All of a class's instances in a chosen image count.
    for candidate in found:
        if candidate.index in by_class[0] and candidate.index not in (3, 8, 9):
            assert candidate.labels.tolist() == [0, 0]
    assert chosen(annotated(*images))[0] == by_class
    assert len({tuple(chosen(annotated(*images), seed)[0][0]) for seed in range(8)}) > 3
    # One class's choice does not depend on another class.
    only_first = [[box for box in boxes if box[0] == 0] for boxes in images]
    assert chosen(annotated(*only_first))[0][0] == by_class[0]
    assert chosen(annotated(*images), max_images=9)[0][1] == [3, 8, 9]


def test_classes_that_share_their_images_are_drawn_apart():
    found = choose_candidates([annotated(*[[(0, 40, 40), (1, 40, 40)]] * 20)], 2, 30, seed=0)
    first, second = ({image.index for image in found if label in image.labels}
                     for label in (0, 1))
    assert len(first) == len(second) == 2 and first != second


def test_instances_keep_the_order_of_images_of_several_sizes(monkeypatch):
    """As where annotations do not know that a camera has turned some."""
    monkeypatch.setattr('gkd.prototypes.features.instance_features',
                        lambda detector, levels, images, boxes, *_: [torch.cat(boxes)])
    samples = [(torch.zeros(3, *size), torch.full((count, 4), float(row)), size)
               for row, (size, count) in enumerate([((32, 64), 1), ((64, 32), 2), ((32, 64), 3)])]
    [found] = batch_features(None, [0], stack_images(samples), torch.device('cpu'))
    assert found[:, 0].tolist() == [0, 1, 1, 2, 2, 2]


def test_features_are_means_over_the_cells_of_boxes(detectors, datasets, tmp_path):
    module = generation(batch_size=2)
    bank = generate(module, detectors, datasets, tmp_path)
    teacher = detectors[0]
    expected = {}
    paddings = set()
    for index, info in enumerate(datasets[0].data_infos):
        views = datasets[0].prepare_test_img(index)
        image, meta = views['img'][0], views['img_metas'][0].data
        paddings.add((meta['pad_shape'], meta['pad_shape'] == meta['img_shape']))
        annotation = datasets[0].get_ann_info(index)
        with torch.no_grad():
            maps = teacher.extract_feat(image[None])
        for box, label in zip(annotation['bboxes'], annotation['labels']):
            scaled = box * meta['scale_factor']
            features = []
            for level in LEVELS:
                cells = maps[level][0]
                size_y, size_x = cells.shape[1:]
                r_x, r_y = size_x / image.shape[2], size_y / image.shape[1]
                x1, x2 = (min(max(int(x * r_x), 0), size_x - 1) for x in scaled[[0, 2]].tolist())
                y1, y2 = (min(max(int(y * r_y), 0), size_y - 1) for y in scaled[[1, 3]].tolist())
                features.append(cells[:, y1:y2 + 1, x1:x2 + 1].mean(dim=(1, 2)))
            expected[info['filename'], tuple(box.tolist()), int(label)] = features
    assert len({shape for shape, _ in paddings}) > 1
    # Nothing is proven by maps that are the same everywhere.
    features = torch.stack([features[0] for features in expected.values()])
    assert features.std(dim=0).mean() > 0.05 * features.abs().mean()
    assert not all(whole for _, whole in paddings)

    origins = json.loads(bank.metadata['origins'])
    for position in range(len(LEVELS)):
        assert len(origins[position]) == len(bank.teacher[position]) == 6
        for row, (filename, box, label) in zip(bank.teacher[position], origins[position]):
            # One image a pass here and two there: convolutions round differently.
            torch.testing.assert_close(row, expected[filename, tuple(box), label][position],
                                       rtol=1e-4, atol=1e-4)
        assert [origin[2] for origin in origins[position]] == [0, 0, 1, 1, 2, 2]
        assert bank.offsets[position].tolist() == [0, 2, 4, 6]


def test_boxes_move_with_images_that_are_put_in_the_middle_of_larger_ones(annotations):
    load, views = tiny_data.pipelines()[1]
    load['to_float32'] = True
    views['transforms'] = [CENTRED, dict(type='ImageToTensor', keys=['img']),
                           dict(type='Collect', keys=['img'], meta_keys=(
                               'img_shape', 'scale_factor', 'border'))]
    views['img_scale'] = None
    config = dict(data=tiny_data.dataset(annotations, [load, dict(views, scale_factor=1.0)]))
    assert_boxes_lie_on_their_rectangles(build_dataset(Config(config).data))


def test_prototypes_are_chosen_in_both_spaces(detectors, datasets, tmp_path):
    module = generation(num_prototypes=3)
    made = module.generate(*detectors, LEVELS, LEVELS, datasets, str(tmp_path))
    bank, student = made.bank, made.student
    labels = torch.cat([torch.as_tensor(image.labels) for image in made.images])
    for level in range(len(LEVELS)):
        for label in range(small.NUM_CLASSES):
            mine = labels == label
            chosen = select_prototypes(module.teacher_features[level][mine], student[level][mine],
                                       num_prototypes=3)
            owned = slice(*bank.offsets[level][label:label + 2].tolist())
            for role, features in (('student', student), ('teacher', module.teacher_features)):
                torch.testing.assert_close(getattr(bank, role)[level][owned],
                                           features[level][mine][chosen], rtol=0, atol=0)
            assert torch.equal(made.rows[level][owned], mine.nonzero().flatten()[chosen])


def test_levels_are_drawn_apart_where_chance_chooses(detectors, datasets, tmp_path):
    made = generation(selection='random').generate(*detectors, LEVELS, LEVELS, datasets,
                                                   str(tmp_path))
    assert len({tuple(level.tolist()) for level in made.rows}) == len(LEVELS)


def test_every_image_is_seen_once_and_by_the_teacher_once_in_all(detectors, datasets, tmp_path):
    module = generation()
    with counted_images(*detectors) as counts:
        first = generate(module, detectors, datasets, tmp_path)
    assert counts == [8, 8]
    with counted_images(*detectors) as counts:
        second = generate(module, detectors, datasets, tmp_path)
    assert counts == [0, 8]
    assert_same_bank(first, second, rtol=0, atol=0)


def test_generation_leaves_the_student_and_random_numbers_alone(detectors, datasets, tmp_path):
    _, student = detectors
    student.train()
    student.backbone.layer1.eval()
    modes = [module.training for module in student.modules()]
    weights = copy.deepcopy(student.state_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    generate(generation(), detectors, datasets, tmp_path)
    assert [module.training for module in student.modules()] == modes
    student.train()
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all()


def test_students_features_are_those_of_eval_mode(detectors, datasets, tmp_path):
    teacher, student = detectors
    bank = generate(generation(), (teacher, student.train()), datasets, tmp_path / 'train')
    again = generate(generation(), (teacher, student.eval()), datasets, tmp_path / 'eval')
    assert not student.training
    student.train()
    assert_same_bank(bank, again, rtol=0, atol=0)


def test_teachers_features_outlive_the_process(detectors, datasets, tmp_path):
    first = generate(generation(), detectors, datasets, tmp_path)
    with counted_images(*detectors) as counts:
        again = generate(generation(), detectors, datasets, tmp_path)
    assert counts == [0, 8]
    assert_same_bank(first, again, rtol=0, atol=0)
    assert not list(tmp_path.glob('*.part'))


def damage_end(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage_header(path):
    path.write_bytes(b'\xff' * 8 + path.read_bytes()[8:])


def damage_middle(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def replace_by_other_file(path):
    """Of the same names and shapes, but not written by this package: it has no checksum."""
    with safe_open(path, framework='pt') as file:
        metadata = dict(fingerprint=file.metadata()['fingerprint'])
        save_file({name: torch.zeros_like(file.get_tensor(name)) for name in file.keys()},
                  path, metadata)


@pytest.mark.parametrize('damage', [damage_end, damage_header, damage_middle,
                                    replace_by_other_file])
def test_damaged_features_are_computed_again(detectors, datasets, tmp_path, damage, caplog):
    first = generate(generation(), detectors, datasets, tmp_path)
    damage(next(tmp_path.glob('teacher_features*')))
    with counted_images(*detectors) as counts:
        again = generate(generation(), detectors, datasets, tmp_path)
    assert counts == [8, 8] and 'The features are computed again.' in caplog.text
    assert_same_bank(first, again, rtol=0, atol=0)


def test_features_in_the_form_of_earlier_versions_are_computed_again(tmp_path):
    for name, readable in (('0', True), ('batch_0', False)):
        save_tensors(shares.share_path(tmp_path, 'teacher'), {name: torch.zeros(1, 2)},
                     dict(fingerprint='key'))
        assert shares.is_cached(tmp_path, 'teacher', 'key') == readable


def change_weights(detectors, datasets, settings):
    teacher = copy.deepcopy(detectors[0])
    teacher.neck.fpn_convs[0].conv.bias.data[3] += 1
    return (teacher, detectors[1]), LEVELS


def change_statistics(detectors, datasets, settings):
    teacher = copy.deepcopy(detectors[0])
    teacher.backbone.bn1.running_mean[0] += 1
    return (teacher, detectors[1]), LEVELS


def change_levels(detectors, datasets, settings):
    return detectors, (0, 1, 3)


def change_candidates(detectors, datasets, settings):
    settings['min_size'] = 36
    return detectors, LEVELS


def change_a_box(detectors, datasets, settings):
    datasets[0] = copy.deepcopy(datasets[0])
    next(iter(datasets[0].coco.anns.values()))['bbox'][0] += 8
    return detectors, LEVELS


def change_folder(detectors, datasets, settings):
    folder = Path(datasets[0].img_prefix)
    datasets[0].img_prefix = str(shutil.copytree(folder, folder.parent / 'corrected'))
    return detectors, LEVELS


def change_scale(detectors, datasets, settings):
    pipeline = copy.deepcopy(tiny_data.pipelines()[1])
    pipeline[1]['img_scale'] = (96, 96)
    datasets[0] = build_dataset(Config(dict(
        data=tiny_data.dataset(datasets[0].ann_file, pipeline))).data)
    return detectors, LEVELS


def change_image_format(detectors, datasets, settings):
    teacher = copy.deepcopy(detectors[0])
    teacher.test_images = ChannelMap(ImageFormat(), ImageFormat(rgb=True))
    return (teacher, detectors[1]), LEVELS


@pytest.mark.parametrize('change', [change_weights, change_statistics, change_levels,
                                    change_candidates, change_a_box, change_folder,
                                    change_scale, change_image_format])
def test_teachers_features_are_computed_again_when_they_change(detectors, datasets, tmp_path,
                                                               change):
    generate(generation(), detectors, datasets, tmp_path)
    settings = {}
    changed, levels = change(detectors, datasets, settings)
    with counted_images(changed[0]) as counts:
        bank = generate(generation(**settings), changed, datasets, tmp_path, levels)
    assert counts[0] > 0
    fresh = generate(generation(**settings), changed, datasets, tmp_path / 'fresh', levels)
    assert_same_bank(bank, fresh, rtol=0, atol=0)


def test_features_that_tell_no_classes_are_computed_again_where_classes_are_read(
        detectors, datasets, tmp_path):
    generate(generation(), detectors, datasets, tmp_path)
    layers = class_layers(detectors[0].bbox_head)
    made = [generation().generate(*detectors, LEVELS, LEVELS, datasets, str(folder), layers)
            for folder in (tmp_path, tmp_path / 'fresh')]
    classes, fresh = (each.bank.class_features for each in made)
    assert all(map(torch.equal, classes, fresh)) and len(classes) == len(LEVELS)
    assert len(made[0].teacher) == len(made[0].student) == len(LEVELS)


def test_batch_size_does_not_change_the_bank(detectors, datasets, tmp_path):
    one = generate(generation(batch_size=1), detectors, datasets, tmp_path / 'one')
    four = generate(generation(batch_size=4), detectors, datasets, tmp_path / 'four')
    assert one.metadata.keys() == four.metadata.keys()
    # Batches group images by size, so the same instances come in another order.
    for level in range(len(LEVELS)):
        assert json.loads(one.metadata['origins'])[level] == \
            json.loads(four.metadata['origins'])[level]
        torch.testing.assert_close(one.teacher[level], four.teacher[level], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.student[level], four.student[level], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('batch_size, processes, one_disk', [
    (1, 2, True), (8, 3, True), (1, 2, False)])
def test_processes_share_the_work_and_get_the_same_bank(detectors, datasets, tmp_path,
                                                        batch_size, processes, one_disk):
    # With batches of 8 there are three of them: one size of images each.
    def work(folder):
        def run(rank):
            cache = tmp_path / folder / ('all' if one_disk else f'node{rank}')
            with counted_images(*detectors) as counts:
                module = generation(batch_size=batch_size)
                banks = [generate(module, detectors, datasets, cache) for _ in range(2)]
            return banks, counts
        return run

    (alone, counts), = in_processes(tmp_path / '1', work('cache1'), world_size=1)
    assert counts == [8, 16]
    shared = in_processes(tmp_path / '2', work('cache2'), world_size=processes)
    assert [sum(counts) for counts in zip(*(counts for _, counts in shared))] == [8, 16]
    for banks, counts in shared:
        assert 0 < counts[0] < 8
        for one, other in zip(alone, banks):
            assert_same_bank(one, other, rtol=0, atol=0)
    for node in (tmp_path / 'cache2').iterdir():
        assert {path.name for path in node.iterdir()} == {
            f'teacher_features_{rank}_of_{processes}.safetensors' for rank in range(processes)}


def test_features_of_other_processes_are_mapped_and_not_held(tmp_path):
    def work(rank):
        own = [torch.full((4, 6), float(rank)), torch.full((4, 2), float(rank))]
        shares.save_share(tmp_path, 'student', 'key', own)
        joint = shares.join_shares(tmp_path, 'student', 'key', [1, 2, 3, 2])
        files = {Path(line.split()[-1]).name for line in
                 Path('/proc/self/maps').read_text().splitlines() if '_of_2' in line}
        shares.remove_shares(tmp_path, 'student')
        return files, [level[torch.tensor([0, 1, 4, 7])] for level in joint]

    for files, levels in in_processes(tmp_path / 'group', work):
        assert files == {f'student_features_{rank}_of_2.safetensors' for rank in range(2)}
        for level, width in zip(levels, (6, 2)):
            assert torch.equal(level, torch.tensor([[0.], [1], [0], [1]]).expand(4, width))
    assert not list(tmp_path.glob('*.safetensors'))


def test_features_of_another_node_are_copied_anew_when_they_change(tmp_path):
    def work(rank):
        folder, found = tmp_path / f'node{rank}', []
        for key, value in (('old', 1.0), ('new', 2.0)):
            shares.save_share(folder, 'teacher', key, [torch.full((2, 3), value)])
            [joint] = shares.join_shares(folder, 'teacher', key, [2, 2])
            found.append(joint[torch.arange(4)].unique().tolist())
        return found

    for found in in_processes(tmp_path / 'group', work):
        assert found == [[1.0], [2.0]]


@pytest.mark.parametrize('processes', [1, 2])
def test_features_that_are_gone_are_named_by_every_process(tmp_path, processes):
    def work(rank):
        if processes == 2 and rank == 0:
            shares.save_share(tmp_path, 'teacher', 'key', [torch.zeros(2, 3)])
        with pytest.raises(StorageError, match='cannot be read, although it was just written'):
            shares.join_shares(tmp_path, 'teacher', 'key', [2, 2])
        return True

    assert in_processes(tmp_path / 'group', work, world_size=processes) == [True] * processes


def test_more_processes_than_batches(detectors, annotations, tmp_path):
    content = json.loads(annotations.read_text())
    content['images'] = content['images'][:1]
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] == 1]
    annotations.write_text(json.dumps(content))
    datasets = [build_dataset(dataset_config(annotations))]
    alone = generate(generation(), detectors, datasets, tmp_path / 'alone')

    def work(rank):
        module = generation()
        return [generate(module, detectors, datasets, tmp_path / 'cache') for _ in range(2)]

    for banks in in_processes(tmp_path / '2', work):
        for bank in banks:
            assert_same_bank(alone, bank)


def test_class_without_instance_is_named_once(detectors, annotations, tmp_path, caplog):
    content = json.loads(annotations.read_text())
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] != 2]
    annotations.write_text(json.dumps(content))
    datasets = [build_dataset(dataset_config(annotations))]
    module = generation()
    for _ in range(2):
        bank = generate(module, detectors, datasets, tmp_path)
    warnings = [record.getMessage() for record in caplog.records
                if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and 'green' in warnings[0] and 'red' not in warnings[0]
    assert bank.num_classes == 3
    for offsets in bank.offsets:
        assert offsets.tolist() == [0, 2, 2, 4]


def test_no_instance_at_all_is_refused(detectors, datasets, tmp_path):
    with pytest.raises(DataError, match=r'annotations.json.*min_size = 500') as caught:
        generate(generation(min_size=500), detectors, datasets, tmp_path / 'cache')
    assert 'model.prototypes' in str(caught.value)
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('setting, value', [
    ('num_prototypes', 0), ('max_images', 0), ('interval', 0), ('batch_size', 0), ('alpha', -0.1),
    ('min_size', -1), ('max_images', 1e3), ('workers', -1), ('bandwidth', 0),
    ('density_quantile', 1.0), ('alpha', float('nan'))])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f'model.prototypes.{setting} = {value}: must be'):
        generation(**{setting: value})


@pytest.fixture
def distiller(tmp_path):
    torch.manual_seed(0)
    config = small.distiller(small.retinanet(24), small.retinanet(), num_prototypes=2,
                             min_size=30, interval=2)
    return build_detector(Config(dict(model=config)).model)


def runner_of(distiller, work_dir, epoch):
    return SimpleNamespace(model=distiller, work_dir=str(work_dir), epoch=epoch, max_iters=5,
                           rank=0, logger=logging.getLogger('mmdet'),
                           data_loader=DataLoader([0]))


def test_a_bank_tells_by_which_weights_it_was_chosen(distiller, datasets, tmp_path):
    first, again = (distiller.generate_bank(datasets, str(tmp_path)).bank.metadata['student']
                    for _ in range(2))
    distiller.student.bbox_head.retina_cls.bias.data += 1
    later = distiller.generate_bank(datasets, str(tmp_path)).bank.metadata['student']
    assert first == again != later


def test_prototypes_are_chosen_by_the_first_processes_statistics(distiller, tmp_path):
    """Every process has its own of batch normalisation."""
    bank = small.random_bank(distiller.pair)

    def work(rank):
        for buffer in distiller.student.buffers():
            buffer.fill_(rank + 1)
        with mock.patch.object(distiller.prototypes, 'generate', lambda *arguments: (
                SimpleNamespace(bank=copy.deepcopy(bank)))):
            distiller.generate_bank([], str(tmp_path))
        return [buffer.unique().tolist() for buffer in distiller.student.buffers()]

    for found in in_processes(tmp_path / 'group', work):
        assert found and all(values == [1] for values in found)


def test_hook_generates_at_its_interval(distiller, annotations, tmp_path):
    hook = PrototypeHook(dataset_config(annotations))
    banks = []
    for epoch in range(5):
        hook.before_train_epoch(runner_of(distiller, tmp_path, epoch))
        banks.append(distiller.bank)
        assert distiller.progress == epoch / 5
        distiller.student.neck.fpn_convs[0].conv.bias.data += 1
    assert banks[0] is banks[1] and banks[2] is banks[3]
    assert len(set(map(id, banks))) == 3
    assert not torch.equal(banks[0].student[0], banks[2].student[0])
    saved = sorted(path.name for path in (tmp_path / 'prototypes').glob('epoch*'))
    assert saved == [f'epoch_{number}.safetensors' for number in (1, 3, 5)]
    assert_same_bank(PrototypeBank.load(tmp_path / 'prototypes' / saved[1]), banks[2],
                     rtol=0, atol=0)


def test_hook_keeps_the_bank_of_an_epoch_that_is_resumed(distiller, annotations, tmp_path):
    """Inside the epoch the student's weights are no longer those that the bank was made with."""
    hook = PrototypeHook(dataset_config(annotations))
    hook.before_train_epoch(runner_of(distiller, tmp_path, 2))
    bank = distiller.bank
    hook.before_train_epoch(runner_of(distiller, tmp_path, 2))
    assert distiller.bank is bank


def test_hook_names_the_epoch_at_which_features_are_not_finite(distiller, annotations, tmp_path):
    distiller.student.neck.fpn_convs[0].conv.bias.data.fill_(torch.nan)
    with pytest.raises(NumericalError, match='epoch 3: no prototypes can be chosen: student '
                                             'features hold NaN'):
        PrototypeHook(dataset_config(annotations)).before_train_epoch(
            runner_of(distiller, tmp_path, 2))


def test_an_error_leaves_the_student_in_its_mode(detectors, datasets, tmp_path):
    teacher, student = detectors
    with pytest.raises(InterruptedError), mock.patch.object(
            student, 'extract_feat', side_effect=InterruptedError):
        generate(generation(), (teacher, student.train()), datasets, tmp_path)
    assert all(module.training for module in student.modules())


def test_hook_reloads_the_bank_of_its_epoch(distiller, annotations, tmp_path):
    hook = PrototypeHook([dataset_config(annotations)])
    for epoch in (0, 2):
        hook.before_train_epoch(runner_of(distiller, tmp_path, epoch))
        distiller.student.neck.fpn_convs[0].conv.bias.data += 1
    # A later bank of a run that was thrown away must not be taken.
    random = small.random_bank(distiller.pair)
    random.save(tmp_path / 'prototypes' / 'epoch_5.safetensors')
    expected = distiller.bank
    distiller.bank = None
    with counted_images(distiller.teacher, distiller.student) as counts:
        hook.before_train_epoch(runner_of(distiller, tmp_path, 3))
    assert counts == [0, 0]
    assert_same_bank(distiller.bank, expected, rtol=0, atol=0)


def test_hook_takes_the_bank_before_a_damaged_one(distiller, tmp_path, caplog):
    folder = tmp_path / 'prototypes'
    small.random_bank(distiller.pair).save(folder / 'epoch_1.safetensors')
    expected = PrototypeBank.load(folder / 'epoch_1.safetensors')
    whole = (folder / 'epoch_1.safetensors').read_bytes()
    (folder / 'epoch_3.safetensors').write_bytes(whole[:-8])
    logger = logging.getLogger('of_this_test')
    bank = reload_bank(str(folder), 2, logger)
    assert_same_bank(bank, expected, rtol=0, atol=0)
    assert 'epoch_3.safetensors' in caplog.text and 'the bank before it' in caplog.text


def test_hook_says_when_there_is_no_bank_to_resume_with(distiller, annotations, tmp_path):
    hook = PrototypeHook(dataset_config(annotations))
    with pytest.raises(ConfigError, match='epoch 2: no prototypes in'):
        hook.before_train_epoch(runner_of(distiller, tmp_path, 1))
    (tmp_path / 'prototypes').mkdir()
    (tmp_path / 'prototypes' / 'epoch_1.safetensors').write_bytes(b'half')
    with pytest.raises(CheckpointError, match='epoch_1.safetensors'):
        hook.before_train_epoch(runner_of(distiller, tmp_path, 1))


def test_hook_does_nothing_for_knowledge_without_prototypes(annotations, tmp_path):
    knowledge = [dict(type='RobustDistillingModule', robust=False, global_knowledge=None)]
    config = small.distiller(small.retinanet(), small.retinanet(), knowledge=knowledge)
    distiller = build_detector(Config(dict(model=config)).model)
    PrototypeHook(dataset_config(annotations)).before_train_epoch(
        runner_of(distiller, tmp_path, 1))
    assert distiller.bank is None and distiller.progress == 0.2
    assert not (tmp_path / 'prototypes').exists()


def test_hook_takes_lists_of_annotation_files(distiller, annotations, tmp_path):
    config = dataset_config(annotations)
    second = annotations.with_name('second.json')
    second.write_text(annotations.read_text())
    config.ann_file = [config.ann_file, str(second)]
    config.img_prefix = [config.img_prefix] * 2
    hook = PrototypeHook(config)
    hook.before_train_epoch(runner_of(distiller, tmp_path, 0))
    assert len(distiller.prototypes.candidates) == 16


def test_loads_with_the_training_loaders_workers():
    class Distiller:
        prototypes = generation()

        def generate_bank(self, datasets, folder):
            return SimpleNamespace(bank=self.bank)

    distiller = Distiller()
    distiller.bank = PrototypeBank([torch.ones(1, 2)], [torch.ones(1, 2)], [torch.tensor([0, 1])])
    runner = SimpleNamespace(data_loader=SimpleNamespace(num_workers=3), epoch=0, rank=1,
                             logger=logging.getLogger('tests'))
    PrototypeHook().generate(distiller, runner, '')
    assert distiller.prototypes.workers == 3
    distiller.prototypes = generation(workers=1)
    PrototypeHook().generate(distiller, runner, '')
    assert distiller.prototypes.workers == 1


def test_prototypes_come_from_each_data_set_once_in_the_order_of_the_config():
    def leaf(name):
        return dict(type='CocoDataset', ann_file=name, pipeline=['of the training'])

    train = [dict(type='RepeatDataset', times=2, dataset=leaf('a')),
             dict(type='ConcatDataset', datasets=[leaf('b'), [leaf('c'), leaf('d')]]), leaf('e')]
    config = Config(dict(data=dict(train=train, test=dict(pipeline=['of the test']))))
    found = prototype_datasets(config)
    assert [entry.ann_file for entry in found] == [*'abcde']
    assert all(entry.pipeline == ['of the test'] for entry in found)
