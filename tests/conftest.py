"Where things are, for every test"
import os, random, subprocess, zlib
from pathlib import Path
import matplotlib
import numpy as np
import pytest, torch
from hypothesis import settings
from hypothesis.internal.conjecture import providers

torch.set_num_threads(1) # the same last bits whatever runs beside
FUZZ = bool(os.environ.get('MEDATTN_FUZZ'))
settings.register_profile('same', derandomize=True, deadline=None, database=None)
settings.register_profile('fuzz', deadline=None)
settings.load_profile('fuzz' if FUZZ else 'same')
if not FUZZ and hasattr(providers, '_get_local_constants'): providers._get_local_constants = lambda: providers._local_constants # else every number in the library changes every example

@pytest.fixture(autouse=True, scope='session')
def own_surroundings(tmp_path_factory):
    "No settings, proxies or caches of the user, and nothing left in the home folder"
    with pytest.MonkeyPatch.context() as m:
        for k in ('MEDATTN_DATA','MEDATTN_DEBUG',*(k for k in os.environ if k.startswith('GIT_'))): m.delenv(k, raising=False)
        for k in ('no_proxy','NO_PROXY'): m.setenv(k, 'localhost,127.0.0.1')
        home = tmp_path_factory.mktemp('home')
        m.setenv('MPLCONFIGDIR', matplotlib.get_cachedir()) # or each child draws up its own list of fonts
        for k in ('XDG_CACHE_HOME','IPYTHONDIR'): m.setenv(k, str(home/k.lower()))
        yield

def pytest_runtest_setup(item):
    "Every test draws the same numbers wherever and in whatever order it runs; MEDATTN_FUZZ=1 looks for new ones"
    if FUZZ: return
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
    try: r = subprocess.run(['git','ls-files','-z'], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError: r = None
    if r and r.returncode==0 and r.stdout: return [ROOT/o for o in r.stdout.split('\0') if o and (ROOT/o).exists()]
    skip = '.venv','.git','.pytest_cache','.hypothesis','.ipynb_checkpoints','__pycache__','_docs','_proc','build','dist','runs','report.html'
    return [p for p in sorted(ROOT.rglob('*')) if p.is_file() and not any(o in skip or o.endswith('.egg-info') for o in p.relative_to(ROOT).parts)]

SHARED = ROOT.parent/'shared'/'data'
REAL = Path(os.environ.get('MEDATTN_DATA', SHARED))

def real(name):
    "The folder of a real data set, or a skip that says why"
    for o in (REAL/name, SHARED/name, REAL):
        if (o/'manifest.csv').is_file() and o.name==name: return o
    pytest.skip(f'{name} is not here: set MEDATTN_DATA to the folder that has it')

def drawn(d, n=8):
    "Mean, spread and roughness of the first images: a change in how a phantom is drawn moves them, another build of NumPy does not"
    x = np.stack([d.image(i) for i in range(n)]).astype(float)
    return [float(o) for o in (x.mean(), x.std(), abs(np.diff(x, axis=2)).mean(), abs(np.diff(x, axis=1)).mean())]

def name(p): return str(Path(p).relative_to(ROOT))

@pytest.fixture(scope='session')
def root(): return ROOT

def pytest_generate_tests(metafunc):
    "The tests of a `Battery` run for every kind its class names"
    if 'kind' in metafunc.fixturenames and getattr(metafunc.cls, 'KINDS', None): metafunc.parametrize('kind', list(metafunc.cls.KINDS))
