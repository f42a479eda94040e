"Where things are, for every test"
import os, random, subprocess, zlib
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import settings

settings.register_profile('same', derandomize=True, database=None)
settings.register_profile('fuzz')
settings.load_profile('fuzz' if os.environ.get('MEDATTN_FUZZ') else 'same')

def pytest_runtest_setup(item):
    "Every test draws the same numbers wherever and in whatever order it runs; MEDATTN_FUZZ=1 looks for new ones"
    if os.environ.get('MEDATTN_FUZZ'): return
    s = zlib.crc32(item.nodeid.encode())
    random.seed(s); np.random.seed(s); torch.manual_seed(s)

ROOT = Path(__file__).resolve().parent.parent

def notebooks():
    "Every notebook of the project, in the order of the rooms"
    return [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not any(o[0] in '._' for o in p.relative_to(ROOT).parts)]

def modules():
    "Every module of the library, as paths"
    return sorted(p for p in (ROOT/'medattn_nb').rglob('*.py') if p.name!='_modidx.py')

def tracked():
    "The files under version control; outside a git clone, every file that would be"
    r = subprocess.run(['git','ls-files','-z'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode==0: return [ROOT/o for o in r.stdout.split('\0') if o and (ROOT/o).exists()]
    skip = '.venv','.git','.pytest_cache','.hypothesis','.ipynb_checkpoints','__pycache__','_docs','_proc','build','dist','runs','report.html'
    return [p for p in ROOT.rglob('*') if p.is_file() and not any(o in skip or o.endswith('.egg-info') for o in p.relative_to(ROOT).parts)]

SHARED = ROOT.parent/'shared'/'data'
REAL = Path(os.environ.get('MEDATTN_DATA', SHARED))

def real(name):
    "The folder of a real data set, or a skip that says why"
    for o in (REAL/name, SHARED/name, REAL):
        if (o/'manifest.csv').is_file() and o.name==name: return o
    pytest.skip(f'{name} is not here: set MEDATTN_DATA to the folder that has it')

def name(p): return str(Path(p).relative_to(ROOT))

@pytest.fixture(scope='session')
def root(): return ROOT

def pytest_generate_tests(metafunc):
    "The tests of a `Battery` run for every kind its class names"
    if 'kind' in metafunc.fixturenames and getattr(metafunc.cls, 'KINDS', None): metafunc.parametrize('kind', list(metafunc.cls.KINDS))
