"""Installation; `bash tools/setup.sh` makes a complete environment."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# Beside the package in a clone; installed, they lie in gkd/.mim/, where MIM looks for them.
BESIDE = ['configs', 'tools', 'datalists/classes_config.json', 'checkpoints/manifest.json',
          'model-index.yml']
# These draw on studies/, tests/ and docs/, which stay in the clone.
CLONE_ONLY = ['check_detectors.py', 'draw_concept.py', 'noise_study.py',
              'run_tests.sh', 'build_docs.sh']


def read(name):
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.exists() else ''


class BuildWithConfigs(build_py):
    """Put configs and tools into the package."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # the clone has them
        for name in BESIDE:
            source, target = ROOT / name, Path(self.build_lib) / 'gkd' / '.mim' / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns('__pycache__', '*.pyc', *CLONE_ONLY))
            else:
                shutil.copyfile(source, target)


setup(
    name='gkd',
    version=re.search(r"__version__ = '(.+)'", read('gkd/version.py')).group(1),
    description='Global knowledge distillation for object detectors of MMDetection',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['gkd', 'gkd.*']),
    package_data={'gkd': ['py.typed'], 'gkd.report': ['*.jinja']},
    cmdclass={'build_py': BuildWithConfigs},
    python_requires='>=3.9',
    install_requires=[
        'torch>=2.1',
        'torchvision>=0.16',
        'numpy>=1.23',
        'mmdet>=2.28,<4',
        'pycocotools>=2.0.6',
        'ijson>=3.2',
        'kornia>=0.7',
        'safetensors>=0.4.4',  # reads files without tensors
        'PyYAML>=5.4',
        'tqdm>=4.60',
        'plotly>=5.20',
        'jinja2>=3',
        # Not mmcv: pip would build its operators, under the name mmcv-full, unless MMCV_WITH_OPS=0
        # is set; and a user's mmcv-full would not count as mmcv. Without any, importing gkd says
        # what to install.
        # Not OpenCV: it comes under several names that exclude each other; mmcv brings one if
        # there is none.
    ],
    extras_require={
        # Without compiled operators; an mmcv 2 that has them needs no extra.
        'mmdet3': ['mmdet>=3.3', 'mmengine>=0.10.4', 'mmcv-lite>=2.1,<2.2'],
        'tests': ['pytest>=7', 'pytest-xdist>=3.8', 'hypothesis>=6', 'tensorboard>=2.10'],
        'tensorboard': ['tensorboard>=2.10'],
        'digits': ['scikit-learn>=1.6', 'scikit-image>=0.24'],
        'dev': ['ruff', 'pre-commit', 'build'],
    },
    classifiers=[
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.9',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
