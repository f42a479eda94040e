"The installer's decisions, and the wheel: what is in it, and that it works where nbdev, JupyterLab and the optional parts are missing"
import os, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from email.parser import Parser
from types import SimpleNamespace
import pytest
from conftest import ROOT, modules, name
import install

# --- tools/install.py, with commands that only pretend ---------------------------------------------------
class Pretend:
    "Stands for subprocess.run: notes each command, and does what the real one would do to .venv"
    def __init__(self, fails=()): self.cmds,self.fails,self.stop = [],fails,None
    def __call__(self, cmd, cwd=None, env=None, **kw):
        said = ' '.join(o.replace(str(cwd), '.') for o in cmd); self.cmds.append(said)
        if self.stop and self.stop in said: raise KeyboardInterrupt
        if any(o in said for o in self.fails): return SimpleNamespace(returncode=1, stdout='')
        bin = cwd/'.venv'/install.WHERE[0]
        if '-m venv' in said:
            shutil.rmtree(cwd/'.venv', ignore_errors=True); bin.mkdir(parents=True); (bin/f'python{install.WHERE[1]}').touch()
        if f'uv=={install.UV}' in said: (bin/f'uv{install.WHERE[1]}').touch()
        return SimpleNamespace(returncode=0, stdout=f'uv {install.UV}')
    def ran(self, *parts): return sum(all(p in o for p in parts) for o in self.cmds)

@pytest.fixture
def project(tmp_path):
    root = tmp_path/'a path with spaces'; (root/'tools').mkdir(parents=True)
    for o in install.INPUTS: shutil.copyfile(ROOT/o, root/o)
    return root

def ensure(root, **kw):
    run = Pretend(**kw)
    return install.Env(root, sys.executable, run).ensure(), run

def test_installs_once(project):
    did,run = ensure(project)
    assert did and run.ran('-m venv')==1 and run.ran('pip install', '-c constraints.txt', '-e .[notebooks,formats,dev]')==1 and run.ran('fast-slic')==1
    did,run = ensure(project)
    assert not did and run.cmds==[]

@pytest.mark.parametrize('forbidden', [True,False])
def test_compiles_where_python_may_not(project, monkeypatch, forbidden):
    monkeypatch.setattr(sys, 'dont_write_bytecode', forbidden)
    assert ensure(project)[1].ran('--compile-bytecode', '-e .')==forbidden
    (project/'.venv'/install.Env(project).stamp.name).unlink()
    assert not any('--compile-bytecode' in o for o in ensure(project, fails=['uv pip install'])[1].cmds if '-m pip install' in o)

@pytest.mark.parametrize('file', install.INPUTS)
def test_installs_again_when_the_metadata_changes(project, file):
    ensure(project)
    with (project/file).open('a') as f: f.write('\n# changed\n')
    did,run = ensure(project)
    assert did and not run.ran('-m venv') and run.ran('-e .[notebooks,formats,dev]') and not run.ran('--reinstall')

@pytest.mark.parametrize('stop', ['uv==', '-e .', 'fast-slic'])
def test_repairs_an_interrupted_installation(project, stop):
    run = Pretend(); run.stop = stop
    with pytest.raises(KeyboardInterrupt): install.Env(project, sys.executable, run).ensure()
    did,run = ensure(project)
    assert did and not run.ran('-m venv') and run.ran('--reinstall', '-e .')==1
    assert ensure(project)[0] is False

def test_makes_a_broken_environment_anew(project):
    ensure(project)
    (project/'.venv'/install.WHERE[0]/f'python{install.WHERE[1]}').unlink()
    assert ensure(project)[1].ran('-m venv')==1
    (project/'.venv'/install.Env(project).stamp.name).unlink()
    assert ensure(project, fails=['import pip'])[1].ran('-m venv')==1

def test_makes_a_moved_environment_anew(project):
    ensure(project)
    there = project.rename(project.parent/'elsewhere')
    did,run = ensure(there)
    assert did and run.ran('-m venv')==1

def test_goes_on_without_a_compiler(project, capsys):
    did,run = ensure(project, fails=['fast-slic'])
    assert did and 'C++ compiler' in capsys.readouterr().out
    assert not ensure(project)[0]

def test_falls_back_to_pip(project):
    did,run = ensure(project, fails=[f'uv=={install.UV}'])
    assert did and run.ran('-m pip install', '-e .[notebooks,formats,dev]')==1
    (project/'setup.py').write_text('# changed')
    did,run = ensure(project, fails=['uv pip install'])
    assert did and run.ran('-m pip install', '-e .[notebooks,formats,dev]')==1

def test_says_so_when_it_cannot(project):
    with pytest.raises(SystemExit, match='goes on from here'): ensure(project, fails=['-e .'])
    shutil.rmtree(project/'.venv')
    with pytest.raises(SystemExit, match='python3-venv'): ensure(project, fails=['-m venv'])

# --- the wheel -----------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The project's wheel, unpacked"
    tmp = tmp_path_factory.mktemp('a wheel')
    src = tmp/'src'; src.mkdir()
    for o in ('settings.ini','pyproject.toml','setup.py','README.md','LICENSE'): shutil.copyfile(ROOT/o, src/o)
    for o in ('medattn_nb','nbs','tests'): shutil.copytree(ROOT/o, src/o, ignore=shutil.ignore_patterns('__pycache__','*.png','runs'))
    r = subprocess.run([sys.executable,'-m','pip','wheel','--quiet','--no-deps','--no-build-isolation','--no-index','--isolated','--disable-pip-version-check','-w',str(tmp),str(src)], env={**os.environ, 'PIP_CONFIG_FILE':os.devnull}, capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    zipfile.ZipFile(next(tmp.glob('*.whl'))).extractall(tmp/'out')
    return tmp/'out'

def test_wheel_holds_the_library_and_nothing_else(wheel):
    got = {str(p.relative_to(wheel)) for p in wheel.rglob('*.py')}
    assert got=={name(p) for p in modules()}|{'medattn_nb/_modidx.py'}
    assert {p.name.split('-')[0] for p in wheel.iterdir()}=={'medattn_nb'}

def test_wheel_from_the_source_release(wheel, tmp_path):
    "A source release holds what setup.py reads, and metadata can be made from it"
    src = wheel.parent/'src'
    shutil.copyfile(ROOT/'MANIFEST.in', src/'MANIFEST.in')
    r = subprocess.run([sys.executable,'setup.py','-q','sdist','-d',str(tmp_path)], cwd=src, capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    shutil.unpack_archive(next(tmp_path.glob('*.tar.gz')), tmp_path/'out')
    there, = (tmp_path/'out').iterdir()
    r = subprocess.run([sys.executable,'setup.py','--name','--version'], cwd=there, capture_output=True, text=True)
    assert r.returncode==0 and r.stdout.split()[-2]=='medattn_nb', r.stderr

def test_wheel_metadata(wheel):
    info = next(wheel.glob('*.dist-info'))
    m = Parser().parsestr((info/'METADATA').read_text(encoding='utf-8'))
    assert m['License-Expression']=='Apache-2.0' and (info/'licenses/LICENSE').exists() and m['Requires-Python']=='>=3.10'
    assert m.get_all('Provides-Extra')==['notebooks','formats','fast-slic','dev'] and m.get_payload().startswith('# medattn_nb')
    plain = [o for o in m.get_all('Requires-Dist') if 'extra ==' not in o]
    assert not any(o.startswith(x) for o in plain for x in ('nbdev','jupyter','fast-slic','pytest','timm','monai','medpy','seaborn','nibabel','openpyxl','xlrd'))

ABSENT = 'nbdev','jupyterlab','fast_slic','nibabel','openpyxl','xlrd','timm','monai','medpy','seaborn','ipywidgets','pytest','hypothesis','nbformat'
BLOCK = f'''
import sys
sys.modules.update(dict.fromkeys({ABSENT})); sys.path.insert(0, sys.argv[1])
import medattn_nb; assert medattn_nb.__file__.startswith(sys.argv[1]), medattn_nb.__file__
'''

def python(wheel, code, cwd):
    "Run `code` with the unpacked wheel first on the path and the optional packages out of reach"
    env = {k:v for k,v in os.environ.items() if k!='PYTHONPATH'}
    r = subprocess.run([sys.executable,'-c',BLOCK+code,str(wheel)], cwd=cwd, env=env, capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    return r.stdout

def test_block_blocks(wheel, tmp_path):
    with pytest.raises(AssertionError, match="ModuleNotFoundError: import of nbdev"): python(wheel, 'import nbdev', tmp_path)

def test_wheel_attention_is_light(wheel, tmp_path):
    code = '''
import torch
from medattn_nb.attention import CBAM
assert CBAM(16)(torch.zeros(2,16,5,7)).shape==(2,16,5,7)
print(*sorted({'fastai','torchvision','matplotlib','skimage','sklearn','pandas','fastcore'} & sys.modules.keys()))'''
    assert python(wheel, code, tmp_path).strip()==''

def test_wheel_imports_everywhere(wheel, tmp_path):
    names = [name(p)[:-3].replace('/','.').removesuffix('.__init__') for p in modules()]
    python(wheel, f'import importlib\nfor o in {names}: importlib.import_module(o)', tmp_path)

def test_wheel_command(wheel, tmp_path):
    c = ConfigParser(); c.read(next(wheel.glob('*.dist-info'))/'entry_points.txt')
    mod,f = c['console_scripts']['medattn'].split(':')
    out = python(wheel, f"from {mod} import {f}\nsys.argv = ['medattn','--help']\n{f}()", tmp_path)
    assert 'medattn' in out and 'demo' in out
