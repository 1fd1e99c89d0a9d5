"""What only a GPU can show. Run where there is one: ``bash tools/run_tests.sh -m gpu``."""

import copy
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from helpers import small_detectors as small
from helpers import synthetic_steps as synthetic
from helpers import tiny_data
from helpers.distillers import build_distiller, losses_of, total
from helpers.running import REPOSITORY, succeed
from mmcv import Config
from operations import STRIDES, records
from test_every_method import METHODS
from torch.profiler import ProfilerActivity, profile

from gkd.detectors.teacher import Teacher
from gkd.files import load_tensors
from gkd.frameworks import to_batch
from gkd.knowledge import RobustDistillingModule
from gkd.prototypes import PrototypeBank
from gkd.registry import KNOWLEDGE
from gkd.running.data import build_checked_dataset
from gkd.running.device import wrap

pytestmark = pytest.mark.gpu
FAMILIES = {'one-stage': 'one_stage', 'two-stage': 'two_stage'}


def moved(value, device):
    """The same structure of leaves on a device."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    if isinstance(value, PrototypeBank):
        return value.to(device)
    if is_dataclass(value):
        return replace(value, **{field.name: moved(getattr(value, field.name), device)
                                 for field in fields(value)})
    if type(value) in (list, tuple):
        return type(value)(moved(part, device) for part in value)
    return value


@pytest.fixture
def exact_convolutions(monkeypatch):
    """Convolutions in float32 proper, as the CPU's are."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('method', METHODS)
def test_losses_and_gradients_are_those_of_the_cpu(method, family, exact_convolutions):
    """Within 1e-4 of a loss, and 1e-3 of the largest gradient."""
    pair = synthetic.pair(family, teacher_channels=12)
    step = synthetic.synthetic_step(family, teacher_channels=12, bank=small.random_bank(pair))
    # Its mask is random, and every device has random numbers of its own.
    settings = dict(mask_ratio=0.0) if method == 'MGD' else {}
    module = KNOWLEDGE.build(dict(type=method, pair=pair, **settings))
    results = {}
    for device in ('cpu', 'cuda'):
        own = moved(step, device)
        losses = copy.deepcopy(module).to(device)(own)
        sum(losses.values()).backward()
        results[device] = losses, [leaf.grad for leaf in synthetic.leaves(own.student)]
    (expected, gradients), (losses, others) = results['cpu'], results['cuda']
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss.cpu(), expected[name], rtol=1e-4, atol=1e-6, msg=name)
    for mine, theirs in zip(gradients, others):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(theirs.cpu(), mine, rtol=1e-2,
                                       atol=1e-3 * float(mine.abs().max()) + 1e-12)


@pytest.mark.parametrize('space', ['maps', 'classes'])
@pytest.mark.parametrize('family', small.FAMILIES)
def test_neither_teacher_nor_knowledge_waits_for_the_device(family, space):
    detector = small.FAMILIES[family]
    taught = dict(type='RobustDistillingModule', global_knowledge=dict(space=space))
    model = build_distiller(detector(24), detector(), knowledge=[taught]).cuda()
    model.bank = small.random_bank(
        model.pair, class_channels=model.frozen.class_channels).to('cuda')
    data = moved(small.batch(), 'cuda')
    data = {name: moved(value, 'cuda') for name, value in data.items()}
    _, step = model.observe(to_batch(**data))
    model.knowledge[0](step)  # arranges the prototypes, once a bank
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(3):
            step.teacher = model.teacher_step(data['img'], step)
            total(model.knowledge[0](step)).backward(retain_graph=True)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('family', STRIDES)
def test_the_module_launches_few_kernels(family):
    """About 210 are the operations that can be counted on the CPU; of cuDNN's convolutions each is
    several, for the order of the map in memory and the bias."""
    pair, step = records(family, images=4, channels=64, positives=30)
    module, step = RobustDistillingModule(pair).cuda(), moved(step, 'cuda')
    for _ in range(2):
        sum(module(step).values()).backward()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        sum(module(step).values()).backward()
        torch.cuda.synchronize()
    kernels = [event.name for event in profiler.events()
               if event.device_type == torch.autograd.DeviceType.CUDA
               and not event.name.lower().startswith(('memcpy', 'memset'))]
    print(f'{family}: {len(kernels)} kernels')
    assert 0 < len(kernels) <= 300


@pytest.mark.parametrize('family', small.FAMILIES)
def test_the_teacher_computes_in_half_precision(family, exact_convolutions):
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector()).cuda()
    assert model.frozen.dtype == torch.float16
    exact = copy.deepcopy(model.frozen.exact).cuda()
    images = small.batch()['img'].cuda()
    with torch.no_grad():
        for half, full in zip(model.teacher.extract_feat(images), exact.extract_feat(images)):
            assert half.dtype == torch.float16
            assert (half.float() - full).norm() <= 5e-3 * full.norm()
    model.frozen.sums.fill_(float('inf'))
    model.bank = model.bank.to('cuda')
    data = {name: moved(value, 'cuda') for name, value in small.batch().items()}
    for _ in range(60):
        losses_of(model, data)
        torch.cuda.synchronize()
    assert model.frozen.dtype is None
    assert next(model.teacher.parameters()).is_cuda


def test_recorded_launches_give_the_same_maps():
    model = build_distiller(small.retinanet(24), small.retinanet())
    model.frozen = Teacher(model.frozen.exact, graphs=2)
    eager = Teacher(copy.deepcopy(model.frozen.exact))
    for teacher in (model.frozen, eager):
        teacher.apply(lambda tensor: tensor.cuda())
    with torch.no_grad():
        for _ in range(5):
            for size in (64, 96, 128):
                images = torch.randn(2, 3, size, size, device='cuda')
                for mine, theirs in zip(model.teacher.extract_feat(images),
                                        eager.running.extract_feat(images)):
                    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_a_teacher_stays_on_the_gpu_whatever_is_done_to_the_model():
    model = build_distiller(small.retinanet(24), small.retinanet()).cuda()
    for change in (model.init_weights,  # as MMEngine does, once the model is on its device
                   lambda: model.to(memory_format=torch.channels_last)):
        change()
        assert next(model.teacher.parameters()).is_cuda
        assert model.frozen.dtype == torch.float16


def test_half_precision_leaves_no_second_copy_on_the_gpu():
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = build_distiller(small.faster_rcnn(24), small.faster_rcnn())
    size = sum(tensor.nbytes for tensor in model.frozen.exact.state_dict().values())
    Teacher.apply(model.frozen, lambda tensor: tensor.cuda())
    assert not next(model.frozen.exact.parameters()).is_cuda
    assert torch.cuda.memory_allocated() - before <= 0.75 * size + 2**20


@pytest.fixture
def folder(tmp_path):
    """A folder with data and a pair of each family."""
    for family in small.FAMILIES:
        tiny_data.write_pair(tmp_path, family)
        for name in ('student', 'distiller', 'teacher'):
            (tmp_path / f'{name}.py').rename(tmp_path / f'{family}_{name}.py')
        (tmp_path / 'teacher.pth').rename(tmp_path / f'{family}_teacher.pth')
        config = tmp_path / f'{family}_distiller.py'
        text = config.read_text()
        for name in ('student.py', 'teacher.py', 'teacher.pth'):
            text = text.replace(f'/{name}', f'/{family}_{name}')
        config.write_text(text)
    return tmp_path


def train(folder, family, work_dir, *options):
    """Train a distiller; returns the weights at the end and what was logged."""
    _, log = succeed('train', folder / f'{family}_distiller.py', '--work-dir', work_dir, *options)
    checkpoint = torch.load(work_dir / 'latest.pth', weights_only=False, map_location='cpu')
    return checkpoint['state_dict'], log


@pytest.mark.parametrize('family', small.FAMILIES)
@pytest.mark.parametrize('options', [(), ('--cfg-options', 'fp16.loss_scale=dynamic')],
                         ids=['fp32', 'fp16'])
def test_trains_and_generates_prototypes(folder, family, options, tmp_path):
    weights, log = train(folder, family, tmp_path / 'work', *options)
    assert 'on cuda' in log and 'computes in half precision' in log
    assert all(tensor.isfinite().all() for tensor in weights.values()
               if tensor.is_floating_point())
    banks = sorted((tmp_path / 'work').rglob('*prototypes*.safetensors'))
    banks += [path for path in sorted((tmp_path / 'work').rglob('*.safetensors'))
              if 'features' not in path.name and path not in banks]
    assert banks
    for path in banks:
        tensors, _ = load_tensors(str(path), '')
        assert all(tensor.isfinite().all() for tensor in tensors.values()
                   if tensor.is_floating_point())


def test_resumes_exactly_with_deterministic(folder, tmp_path):
    whole, _ = train(folder, 'one_stage', tmp_path / 'whole', '--deterministic')
    train(folder, 'one_stage', tmp_path / 'parts', '--deterministic', '--no-validate')
    (tmp_path / 'parts' / 'epoch_2.pth').unlink()
    (tmp_path / 'parts' / 'latest.pth').unlink()
    resumed, log = train(folder, 'one_stage', tmp_path / 'parts', '--deterministic', '--resume',
                         tmp_path / 'parts' / 'epoch_1.pth')
    assert 'resumed epoch 1' in log
    assert whole.keys() == resumed.keys()
    different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert not different


def test_trains_in_a_process_group_over_nccl(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '1',
         str(REPOSITORY / 'tools' / 'train.py'), str(folder / 'one_stage_distiller.py'),
         '--work-dir', str(tmp_path / 'work'), '--launcher', 'pytorch', '--epochs', '1'],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=120,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(
            [str(REPOSITORY), os.environ.get('PYTHONPATH', '')])})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'work' / 'epoch_1.pth').exists()


def test_features_of_prototypes_are_those_of_the_cpu(folder, exact_convolutions, tmp_path):
    """Within half precision, which the teacher runs in."""
    config = Config.fromfile(str(folder / 'one_stage_distiller.py'))
    test_set = build_checked_dataset(config.data.val, 'data.val', dict(test_mode=True))
    found = {}
    for device in ('cpu', 'cuda'):
        model = build_distiller(small.retinanet(24), small.retinanet(), min_size=30,
                                num_prototypes=2).to(device)
        found[device] = model.generate_bank([test_set], str(tmp_path / device))
        assert model.bank.student[0].device.type == device
    for role, tolerance in (('teacher', 1e-2), ('student', 1e-4)):
        for mine, theirs in zip(*(getattr(found[device], role) for device in found)):
            assert (mine - theirs).norm() <= tolerance * mine.norm()


def test_trains_on_the_cpu_beside_a_gpu():
    model = build_distiller(small.retinanet(24), small.retinanet())
    wrapped = wrap(model, torch.device('cpu'))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    output = wrapped.train_step(dict(small.batch(), return_loss=True), optimizer)
    assert output['loss'].device.type == 'cpu'
