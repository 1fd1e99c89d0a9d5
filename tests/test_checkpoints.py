"""Getting published checkpoints: from a server of this test's own."""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from helpers import small_detectors as small
from helpers.running import REPOSITORY, run_tool
from mmcv import Config
from mmdet.models import build_detector

from gkd import repository
from gkd import zoo as model_zoo
from gkd.checkpoints import check_file, download, how_to_get
from gkd.commands import distillation
from gkd.detectors.config_files import find_file
from gkd.detectors.source import DetectorSource, check_checkpoints
from gkd.errors import CheckpointError, ConfigError
from gkd.running import load_config
from gkd.zoo import PublishedCheckpoint, find, of_configs, of_mmdet, of_recipes

CONFIG = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'


@dataclass
class Zoo:
    """A server with one file, and what it does with it."""

    content: bytes
    config: str = CONFIG
    ranges: bool = True  # whether it can send the rest of a file
    stops_after: int = 10 ** 9  # bytes after which it hangs up
    instead: bytes = b''  # what it answers instead
    asked: list = field(default_factory=list)  # Range headers of all requests

    def checkpoint(self, url):
        digest = hashlib.sha256(self.content).hexdigest()[:8]
        name = f'detector_20200131-{digest}.pth'
        return PublishedCheckpoint(name, f'{url}/{name}', digest, self.config, 1)


@pytest.fixture
def zoo(tmp_path):
    """A zoo that is served, and its checkpoint."""
    weights = tmp_path / 'source.pth'
    config = tmp_path / 'small.py'
    config.write_text(f'model = {small.retinanet()!r}')
    detector = build_detector(Config.fromfile(config).model)
    # Large enough to break off in the middle.
    torch.save(dict(state_dict=detector.state_dict(), meta=torch.randn(700, 500)), weights)
    zoo = Zoo(weights.read_bytes(), str(config))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if zoo.instead:
                self.wfile.write(zoo.instead)
                return
            asked = self.headers['Range']
            zoo.asked.append(asked)
            start = int(re.match(r'bytes=(\d+)-$', asked)[1]) if asked and zoo.ranges else 0
            rest = zoo.content[start:]
            if not rest:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header('Content-Length', str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[:zoo.stops_after])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield zoo, zoo.checkpoint(f'http://127.0.0.1:{server.server_port}')
    server.shutdown()
    server.server_close()


@pytest.fixture
def manifest(zoo, monkeypatch):
    """The tools know the served checkpoint only."""
    _, checkpoint = zoo
    monkeypatch.setattr(model_zoo, 'of_recipes', lambda: {checkpoint.name: checkpoint})
    monkeypatch.setattr(model_zoo, 'of_mmdet', dict)
    return checkpoint


def test_a_file_is_downloaded_whole_and_once(zoo, tmp_path):
    zoo, checkpoint = zoo
    path = download(checkpoint, str(tmp_path / 'new'))
    assert path == str(tmp_path / 'new' / checkpoint.name)
    assert open(path, 'rb').read() == zoo.content
    assert [file.name for file in (tmp_path / 'new').iterdir()] == [checkpoint.name]
    assert download(checkpoint, str(tmp_path / 'new')) == path
    assert zoo.asked == [None]


@pytest.mark.parametrize('ranges', [True, False])
def test_a_broken_download_goes_on(zoo, tmp_path, ranges):
    zoo, checkpoint = zoo
    zoo.ranges, zoo.stops_after = ranges, 300_000
    with pytest.raises(CheckpointError, match='ended after 300,000 of .* bytes'):
        download(checkpoint, str(tmp_path))
    assert (tmp_path / f'{checkpoint.name}.part').stat().st_size == 300_000
    assert not (tmp_path / checkpoint.name).exists()
    zoo.stops_after = 10 ** 9
    path = download(checkpoint, str(tmp_path))
    assert zoo.asked == [None, 'bytes=300000-']
    assert open(path, 'rb').read() == zoo.content
    assert not (tmp_path / f'{checkpoint.name}.part').exists()


def test_what_came_is_kept_however_often_a_download_breaks_off(zoo, tmp_path):
    zoo, checkpoint = zoo
    for sent in 300_000, len(zoo.content) - 400_000:
        zoo.stops_after = sent
        with pytest.raises(CheckpointError, match='ended after .* bytes'):
            download(checkpoint, str(tmp_path))
    assert (tmp_path / f'{checkpoint.name}.part').stat().st_size == len(zoo.content) - 100_000


def test_a_part_that_is_whole_is_only_verified(zoo, tmp_path):
    zoo, checkpoint = zoo
    (tmp_path / f'{checkpoint.name}.part').write_bytes(zoo.content)
    assert open(download(checkpoint, str(tmp_path)), 'rb').read() == zoo.content


@pytest.mark.parametrize('answer, says', [
    (b'HTTP/1.1 503 Busy\r\n\r\n', 'the server answers 503 Busy'),
    (b'no HTTP at all\r\n\r\n', 'no HTTP at all')])
def test_what_is_there_stays_when_the_server_fails(zoo, tmp_path, answer, says):
    zoo, checkpoint = zoo
    part = tmp_path / f'{checkpoint.name}.part'
    part.write_bytes(zoo.content[:9])
    zoo.instead = answer
    with pytest.raises(CheckpointError, match=f'cannot download .*{says}'):
        download(checkpoint, str(tmp_path))
    assert part.read_bytes() == zoo.content[:9]


def test_a_server_without_the_file_is_named_where_nothing_was_there(zoo, tmp_path):
    zoo, checkpoint = zoo
    zoo.content = b''  # which the server answers by 416, as it does where nothing is left to send
    with pytest.raises(CheckpointError, match='cannot download .*the server answers 416'):
        download(checkpoint, str(tmp_path))


def test_another_file_is_not_kept(zoo, tmp_path):
    zoo, checkpoint = zoo
    zoo.content = b'<html>Not found, but politely</html>'
    digest = hashlib.sha256(zoo.content).hexdigest()
    with pytest.raises(CheckpointError, match=f'is {digest}, expected {checkpoint.sha256}'):
        download(checkpoint, str(tmp_path))
    assert not list(tmp_path.glob('detector*'))


def test_a_damaged_file_is_neither_overwritten_nor_used(zoo, manifest, tmp_path):
    path = tmp_path / manifest.name
    path.write_bytes(b'precious')
    with pytest.raises(CheckpointError, match='is there, but is not the published file'):
        download(manifest, str(tmp_path))
    assert path.read_bytes() == b'precious'
    with pytest.raises(CheckpointError, match=f'SHA-256 does not begin with {manifest.sha256}'):
        check_file(str(path))
    source = DetectorSource(CONFIG, str(path), 'model.teacher', {})
    with pytest.raises(CheckpointError, match='get it again: python tools/checkpoints.py get'):
        source.load_checkpoint(torch.nn.Linear(2, 2))
    own = tmp_path / 'mine.pth'
    own.write_bytes(b'anything')
    check_file(str(own))


def test_without_a_network_it_says_what_to_fetch(tmp_path):
    checkpoint = PublishedCheckpoint('a-01234567.pth', 'http://127.0.0.1:9/a-01234567.pth',
                                     '01234567', CONFIG)
    with pytest.raises(CheckpointError) as caught:
        download(checkpoint, str(tmp_path))
    for text in (checkpoint.url, 'Connection refused', str(tmp_path / 'a-01234567.pth'),
                 'tools/checkpoints.py verify a-01234567.pth'):
        assert text in str(caught.value)


def test_tool_lists_gets_and_verifies(zoo, manifest, tmp_path):
    tool = ('checkpoints', '--folder', tmp_path)
    zoo, _ = zoo
    _, stdout, _ = run_tool(*tool, 'list')
    assert re.search(
        rf'missing +1 MB +{manifest.name}\n +{zoo.config}\n +{manifest.url}', stdout)
    zoo.stops_after = 1_000_000
    assert run_tool(*tool, 'get', 'detector')[0] == 2
    assert re.search(r'1 MB here .*detector', run_tool(*tool, 'list')[1])
    zoo.stops_after = 10 ** 9
    status, stdout, stderr = run_tool(*tool, 'get', 'detector')
    assert status == 0 and 'complete and verified' in stdout
    assert '%' not in stderr  # bars are for terminals
    assert f'here  {"":10}' in run_tool(*tool, 'list')[1]
    status, stdout, _ = run_tool(*tool, 'verify')
    assert status == 0 and 'as published' in stdout

    # The right bytes, but of another detector.
    Path(zoo.config).write_text(f'model = {small.retinanet(num_classes=7)!r}')
    status, _, stderr = run_tool(*tool, 'verify')
    assert status == 2 and 'bbox_head.retina_cls.weight' in stderr
    with open(tmp_path / manifest.name, 'ab') as file:
        file.write(b'!')
    status, _, stderr = run_tool(*tool, 'verify')
    assert status == 2 and 'is damaged' in stderr


def test_tool_says_what_it_does_not_know():
    status, _, stderr = run_tool('checkpoints', 'get', 'ssd')
    assert status == 2 and 'no published checkpoint is called ssd' in stderr
    status, _, stderr = run_tool('checkpoints', 'get')
    assert status == 2 and '--all' in stderr
    recipe = REPOSITORY / 'configs/voc/gkd_retinanet_r101_r50_fpn_1x_voc0712.py'
    _, stdout, _ = run_tool('checkpoints', 'list', recipe)
    assert 'bash tools/train.sh configs/voc/retinanet_r101_fpn_1x_voc0712.py 8' in stdout
    assert 'retinanet_r50_fpn_1x_voc0712_20200617-47cbdd0e.pth' in stdout
    assert 'faster_rcnn' not in stdout


def test_missing_checkpoints_are_all_named_at_once():
    recipe = REPOSITORY / 'configs/coco/gkd/gkd_retinanet_r101_mobilenetv2_fpn_2x_coco.py'
    model = load_config(str(recipe)).model
    model.teacher.checkpoint = 'nowhere/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'
    with pytest.raises(CheckpointError) as caught:
        check_checkpoints(model)
    message = str(caught.value)
    assert 'model.teacher.checkpoint: no such file' in message
    assert ('tools/checkpoints.py get retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'
            in message)
    assert 'model.student.checkpoint: no such file' in message
    assert ('bash tools/train.sh configs/coco/detectors/retinanet_mobilenetv2_fpn_2x_coco.py 8'
            in message)
    for other in ('somewhere/mine.pth', model.student.checkpoint.replace('latest', 'mine')):
        assert 'change the key' in how_to_get(other)
    check_checkpoints(load_config(str(REPOSITORY / model.student.config)).model)


def test_manifest_holds_together():
    assert len(of_recipes()) == 24
    for name, checkpoint in of_recipes().items():
        assert checkpoint.url.startswith('https://download.openmmlab.com/mmdetection/v2.0/')
        assert unquote(checkpoint.url).endswith(f'/{name}')
        assert re.fullmatch(r'[0-9a-f]{8}', checkpoint.sha256)
        assert name.endswith(f'-{checkpoint.sha256}.pth')
        assert find_file(checkpoint.config)
        # The zoo names files after their configs.
        assert name.startswith(checkpoint.config.split('/')[-1][:-len('.py')])


def test_without_the_list_of_recipes_there_is_mmdetections_own(tmp_path):
    assert of_recipes(str(tmp_path / 'manifest.json')) == {}


def test_every_checkpoint_of_the_model_zoo_is_known_by_its_config():
    name = 'faster_rcnn_x101_32x4d_fpn_1x_coco_20200203-cff10310.pth'  # of no recipe
    config = 'mmdet::faster_rcnn/faster_rcnn_x101_32x4d_fpn_1x_coco.py'
    (found,) = of_configs(config)
    assert found == find(name) == PublishedCheckpoint(
        name, 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
        f'faster_rcnn_x101_32x4d_fpn_1x_coco/{name}', 'cff10310', config, box_ap=41.2)
    assert len(of_mmdet()) > 500
    for checkpoint in of_mmdet().values():
        assert find_file(checkpoint.config)
        assert unquote(checkpoint.url).endswith(f'/{checkpoint.name}')
    # Those that only the list of recipes has.
    assert len(list(of_configs('mmdet::pascal_voc/'))) == 2
    assert not list(of_configs('pascal_voc/'))
    assert find('mine.pth') is None and find('mine-01234567.pth') is None


def test_tool_shows_what_the_model_zoo_has():
    status, stdout, _ = run_tool('checkpoints', 'list', 'mmdet::atss/', 'mmdet::tood/tood_r101')
    assert status == 0
    assert [line.split()[-1] for line in stdout.splitlines()[::3]] == [
        'atss_r50_fpn_1x_coco_20200209-985f7bd0.pth',
        'atss_r101_fpn_1x_20200825-dfcadd6f.pth',
        'tood_r101_fpn_mstrain_2x_coco_20211210_144232-a18f53c8.pth',
        'tood_r101_fpn_dconv_c3-c5_mstrain_2x_coco_20211210_213728-4a824142.pth']
    assert 'mmdet::atss/atss_r50_fpn_1x_coco.py, 39.4 box AP' in stdout
    status, _, stderr = run_tool('checkpoints', 'get', 'mmdet::atss/')  # not gigabytes by mistake
    assert status == 2 and 'mmdet::atss/ begins the names of 2 configs' in stderr


def test_a_missing_file_of_the_model_zoo_is_named_with_the_command_that_gets_it():
    name = 'faster_rcnn_x101_32x4d_fpn_1x_coco_20200203-cff10310.pth'
    command = f'python tools/checkpoints.py get {name}'
    assert command in how_to_get(f'elsewhere/{name}')
    message = how_to_get(find(name).url)
    assert command in message and f'write checkpoints/{name}' in message
    assert 'get' not in how_to_get('https://example.org/mine.pth')


def test_a_pair_starts_with_the_weights_of_the_model_zoo(zoo, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, 'FOLDER', str(tmp_path / 'checkpoints'))
    config = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
    entry = PublishedCheckpoint(manifest.name, manifest.url, manifest.sha256, config)
    monkeypatch.setattr(model_zoo, 'of_mmdet', lambda: {entry.name: entry})
    for own in ('mine.py', 'mmdet::atss/atss_r101_fpn_1x_coco.py'):
        with pytest.raises(ConfigError, match=f'{own}:zoo: the model zoo has no checkpoint'):
            distillation.fetch_from_zoo(f'{config}:zoo', f'{own}:zoo')
    assert not zoo[0].asked  # nothing is downloaded for a pair that cannot be trained
    assert distillation.fetch_from_zoo('mine.py:mine.pth', f'{config}:zoo') == [
        'mine.py:mine.pth', f'{config}:checkpoints/{entry.name}']
    assert (tmp_path / 'checkpoints' / entry.name).read_bytes() == zoo[0].content


def test_commands_in_messages_can_be_copied_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(repository.REPOSITORY)
    assert repository.tool('plan.py') == 'tools/plan.py'
    monkeypatch.chdir(tmp_path)
    assert Path(repository.tool('plan.py')).samefile(
        Path(repository.REPOSITORY, 'tools', 'plan.py'))
    monkeypatch.setattr(repository, 'REPOSITORY', '/my packages/gkd/.mim')
    assert repository.tool('plan.py') == "'/my packages/gkd/.mim/tools/plan.py'"


def test_checkpoints_of_ones_own_are_not_said_to_be_missing(folder):
    """``get`` has nothing to do for them."""
    status, stdout, _ = run_tool('checkpoints', 'get', 'distiller.py')
    assert status == 0 and "teacher.pth: here; none of the model zoo's" in stdout
    Path('teacher.pth').unlink()
    status, stdout, _ = run_tool('checkpoints', 'get', 'distiller.py')
    assert 'teacher.pth: Put the trained weights there' in stdout
