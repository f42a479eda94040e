"settings.ini is the home of the metadata: whatever says the same elsewhere says the same, and what is imported is declared"
import ast, importlib.metadata, re, shutil, subprocess, sys, types
from configparser import ConfigParser
import pytest, yaml
from packaging.requirements import Requirement
from packaging.version import Version
from conftest import ROOT, modules, name, notebooks
import install, medattn_nb, readme, rules
from test_hygiene import load, parsed
try: import tomllib
except ImportError: import tomli as tomllib

def ini():
    c = ConfigParser(delimiters=['='], interpolation=None)
    c.read(ROOT/'settings.ini', encoding='utf-8')
    return c['DEFAULT']

S = ini()
P = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
def lines(key): return [o for o in S[key].splitlines() if o]
EXTRAS = 'notebooks','formats','fast_slic','dev'
def wanted(*keys): return [Requirement(o) for k in keys for o in lines(f'{k}requirements')]
ALL = wanted('', *(f'{k}_' for k in EXTRAS))

# --- the same everywhere -------------------------------------------------------------------------------
def test_pyproject():
    proj,nbdev = P['project'],P['tool']['nbdev']
    assert proj['name']==S['lib_name'] and proj['requires-python']==f">={S['min_python']}"
    assert proj['urls']=={'Repository': S['git_url'], 'Documentation': S['doc_url'], 'Issues': S['git_url']+'/issues', 'Changelog': S['git_url']+'/blob/main/CHANGELOG.md'}
    assert {k: nbdev[k] for k in ('lib_path','nbs_path','doc_path','tst_flags')}=={k: S[k] for k in ('lib_path','nbs_path','doc_path','tst_flags')}
    assert not {'version','dependencies','optional-dependencies','scripts'} & proj.keys(), 'pyproject.toml repeats what settings.ini says'

def test_version():
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert medattn_nb.__version__==S['version']==str(cff['version'])
    assert re.search(rf"^## {re.escape(S['version'])}\b", (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), re.M), 'CHANGELOG.md has no section for this version'

def test_setup_hands_over():
    "What setuptools is told, without building anything"
    got,fake = {},types.ModuleType('setuptools')
    fake.setup = lambda **kw: got.update(kw)
    old = sys.modules.get('setuptools')
    sys.modules['setuptools'] = fake
    try: exec(compile((ROOT/'setup.py').read_text(), str(ROOT/'setup.py'), 'exec'), {'__file__': str(ROOT/'setup.py')})
    finally: sys.modules.pop('setuptools') if old is None else sys.modules.update(setuptools=old)
    assert got['version']==S['version'] and got['license_expression']==S['license'] and got['python_requires']==f">={S['min_python']}"
    assert got['install_requires']==lines('requirements')
    assert got['extras_require']=={k.replace('_','-'): lines(f'{k}_requirements') for k in EXTRAS}
    assert got['entry_points']['console_scripts']==lines('console_scripts')

def test_citation():
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version','message','title','authors'} <= cff.keys(), 'CITATION.cff lacks a required key'
    assert cff['cff-version']=='1.2.0' and cff['type']=='software' and all('name' in o or {'family-names','given-names'}<=o.keys() for o in cff['authors'])
    assert (cff['title'], cff['abstract'], cff['license'], cff['keywords'])==(S['lib_name'], S['description'], S['license'], S['keywords'].split())
    assert (cff['authors'], cff['repository-code'], cff['url'])==([{'name': S['author']}], S['git_url'], S['doc_url'])

def test_site():
    q = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    w = q['website']
    assert (w['title'], w['description'], w['site-url'], w['repo-url'], w['repo-branch'], w['repo-subdir'])==(S['lib_name'], S['description'], S['doc_url'], S['git_url'], S['branch'], S['nbs_path'])
    assert q['project']['output-dir']==S['doc_path']

def test_front_page():
    top = rules.src(load(ROOT/'nbs/index.ipynb')['cells'][0]).splitlines()
    assert top[:2]==[f"# {S['lib_name']}", f"> {S['description']}"]
    assert readme.REPO==f"{S['git_url']}/blob/{S['branch']}/"

def test_licence():
    t = (ROOT/'LICENSE').read_text()
    assert S['license']=='Apache-2.0' and 'Version 2.0, January 2004' in t and 'END OF TERMS AND CONDITIONS' in t

# --- requirements and pins -----------------------------------------------------------------------------
def norm(o): return re.sub(r'[-_.]+', '-', o).lower()
def pins(text):
    "Every pin of a constraints file, by package"
    d = {}
    for o in text.splitlines():
        if not o.strip() or o.startswith('#'): continue
        r = Requirement(o)
        spec = list(r.specifier)
        assert len(spec)==1 and spec[0].operator=='==' and not r.url, f'{o!r} is no exact pin'
        d.setdefault(norm(r.name), []).append((Version(spec[0].version), r.marker))
    return d

def unpinned(reqs, text, python):
    "What requirements a constraints file leaves open or contradicts on Linux with this Python"
    ps,env = pins(text),dict(python_version=python, python_full_version=f'{python}.0', sys_platform='linux', platform_machine='x86_64')
    for r in reqs:
        if r.marker and not r.marker.evaluate(env): continue
        vs = [v for v,m in ps.get(norm(r.name),[]) if m is None or m.evaluate(env)]
        if len(vs)!=1 or not r.specifier.contains(vs[0]): yield f'{r}: {[str(v) for v in vs] or "no pin"}'

@pytest.mark.parametrize('python', S['python_versions'].split())
def test_constraints(python):
    bad = list(unpinned(ALL, (ROOT/'constraints.txt').read_text(), python))
    assert not bad, f'constraints.txt on Python {python}; run `make constraints`:\n' + '\n'.join(bad)

def test_unpinned_finds():
    text = 'torch==2.5.0\nnumpy==1.0 ; python_version < "3.11"\n'
    assert [str(o) for o in unpinned(map(Requirement, ('torch>=2.6','numpy','pandas')), text, '3.12')]==["torch>=2.6: ['2.5.0']", 'numpy: no pin', 'pandas: no pin']
    with pytest.raises(AssertionError, match='no exact pin'): pins('torch>=2')

def test_build_pins():
    for o in P['tool']['uv']['extra-build-dependencies']['fast-slic']:
        r = Requirement(o)
        assert norm(r.name)=='numpy' or str(r.specifier).startswith('=='), f'{o} is not pinned'
    assert re.fullmatch(r'\d+\.\d+\.\d+', install.UV)

@pytest.mark.parametrize('r', [r for r in ALL if norm(r.name)!='fast-slic' and (r.marker is None or r.marker.evaluate())], ids=str)
def test_what_is_declared_is_installed(r):
    "`make install` brings it: else a package that fails to install would only turn tests into skips (fast-slic needs a compiler, and may)"
    assert r.specifier.contains(importlib.metadata.version(r.name), prereleases=True)

# --- imports are declared ------------------------------------------------------------------------------
DIST = dict(PIL='pillow', skimage='scikit-image', sklearn='scikit-learn', pytorch_grad_cam='grad-cam', yaml='pyyaml', fast_slic='fast-slic', cv2='opencv-python-headless', IPython='jupyterlab')
STDLIB = sys.stdlib_module_names | {'tomllib'}   # in the library since 3.11, imported in a try
OURS = {'medattn_nb','conftest','rules','cells','check','install','readme','setup'} | {p.stem for p in (ROOT/'tests').glob('*.py')}

def third_party(body, lazy=True):
    "The distributions imported in a list of statements; without `lazy`, only when they are executed at import"
    for o in body:
        if isinstance(o, ast.Import): names = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom): names = [] if o.level else [o.module]
        else:
            names = []
            if lazy or not isinstance(o, (ast.FunctionDef,ast.AsyncFunctionDef,ast.Lambda)): yield from third_party(ast.iter_child_nodes(o), lazy)
        for n in (n.split('.')[0] for n in names):
            if n not in STDLIB and n not in OURS: yield norm(DIST.get(n,n))

def declared(*keys): return {norm(r.name) for r in wanted(*keys)}

@pytest.mark.parametrize('path', modules(), ids=name)
def test_library_imports_are_declared(path):
    body = parsed(path).body
    assert set(third_party(body, lazy=False)) <= declared(''), 'settings.ini does not list what the module imports'
    assert set(third_party(body)) <= {norm(r.name) for r in ALL}

@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.stem)
def test_notebook_imports_are_declared(path):
    "`make install` brings the library, [notebooks], [formats] and [dev]"
    body = [o for c in rules.cells(load(path),'code') for o in rules.tree(c).body]
    assert set(third_party(body, lazy=False)) <= declared('','notebooks_','formats_','dev_')
    assert set(third_party(body)) <= {norm(r.name) for r in ALL}, 'an optional extra may be imported inside a function, but must be listed'

@pytest.mark.parametrize('path', sorted((ROOT/'tests').glob('*.py')), ids=lambda p: p.stem)
def test_test_imports_are_declared(path):
    assert set(third_party(parsed(path).body)) <= declared('','notebooks_','formats_','dev_')

def test_third_party_finds():
    body = ast.parse('import os, PIL.Image\nfrom torch import nn\nfrom .core import x\ntry: import timm\nexcept ImportError: pass\ndef f(): import seaborn').body
    assert set(third_party(body))=={'pillow','torch','timm','seaborn'} and set(third_party(body, lazy=False))=={'pillow','torch','timm'}

# --- workflows, Makefile, CI ---------------------------------------------------------------------------
def workflow(o):
    d = yaml.safe_load((ROOT/f'.github/workflows/{o}.yml').read_text())
    return d, d[True], [s for j in d['jobs'].values() for s in j['steps']]   # YAML reads the key `on` as true

def test_workflows():
    d,on,steps = workflow('test')
    assert {'push','pull_request'} <= on.keys() and 'make test' in [s.get('run') for s in steps]
    assert set(d['jobs']['test']['strategy']['matrix']['python']) <= set(S['python_versions'].split())
    d,on,steps = workflow('docs')
    uses = [s.get('uses','').split('@')[0] for s in steps]
    assert {'quarto-dev/quarto-actions/setup','actions/upload-pages-artifact','actions/deploy-pages'} <= set(uses) and 'make docs' in [s.get('run') for s in steps]
    assert next(s['with']['path'] for s in steps if 'upload-pages' in s.get('uses',''))==S['doc_path']
    assert on['push']['branches']==[S['branch']]
    assert all(s.get('run') or re.fullmatch(r'[\w./-]+@v\d+', s['uses']) for s in steps)

def test_ci_runs_what_the_readme_says():
    p = ROOT/'.ci/run'
    assert 'exec make test' in p.read_text() and p.stat().st_mode & 0o111
    assert '\nmake demo\nmake test\n' in (ROOT/'README.md').read_text(encoding='utf-8')

def targets():
    return set(re.findall(r'^([a-z][a-z-]*):.*##', (ROOT/'Makefile').read_text(), re.M))

@pytest.mark.parametrize('file', ['README.md','CONTRIBUTING.md','CHANGELOG.md'])
def test_make_targets_that_are_named_exist(file):
    named = set(re.findall(r'(?:`|^)make ([a-z][a-z-]*)', (ROOT/file).read_text(encoding='utf-8'), re.M))
    assert named <= targets(), f'{file} names {sorted(named-targets())}'

@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_help():
    out = subprocess.run(['make','help'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f'make {o}' in out for o in targets())
