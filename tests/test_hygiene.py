"""The rules of the house: notebooks, modules, layers and files, and a bad example for each rule.

A failing name reads `test_notebook[rule-ROOM/NAME]`; to look at one notebook: pytest tests/test_hygiene.py -k NAME"""
import ast, base64, copy, hashlib, io, json, shutil, tokenize
from pathlib import Path
import pytest
from conftest import ROOT, modules, name, notebooks, tracked
import cells, check, rules

def load(p): return json.loads(Path(p).read_text(encoding='utf-8'))
def short(p): return f'{p.parent.name}/{p.stem}'

# --- notebooks -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('path', notebooks(), ids=short)
@pytest.mark.parametrize('rule', rules.RULES, ids=lambda o: o.__name__)
def test_notebook(rule, path):
    bad = list(rule(load(path), path))
    assert not bad, '\n'.join([f'{name(path)} {rule.__name__}:', *bad])

def test_code_cells_are_short_altogether():
    n = sorted(len(rules.code(c)) for p in notebooks() for c in rules.cells(load(p),'code'))
    assert n[len(n)//2]<=5 and n[int(.95*len(n))]<=20, f'median {n[len(n)//2]}, 95% {n[int(.95*len(n))]} lines'

def md(*s): return [dict(cell_type='markdown', id=f'm{i}', metadata={}, source=o) for i,o in enumerate(s)]
def py(s, *outputs, i='c', **meta): return dict(cell_type='code', id=i, metadata=meta, execution_count=None, outputs=list(outputs), source=s)
def book(*cs):
    "A notebook that keeps every rule, with the cells `cs` added"
    head = [py('#| default_exp core', i='a'), *md('# core\n> What every other module stands on.\n\nOne sentence. Two. Three.'), py('#| export\nimport os', i='b')]
    return dict(cells=[*head, *cs, py(rules.LAST, i='z')], metadata={}, nbformat=4, nbformat_minor=5)

PNG = base64.b64encode(b'small').decode()
def figure(png=PNG, alt='A grey disc on a white ground.'): return dict(output_type='display_data', data={'image/png': png}, metadata={'image/png': {'alt': alt}})
FIG = '#| fig-cap: "The phantom."\n#| fig-alt: "A grey disc on a white ground."\nshow_fig(fig)'
def stream(s, to='stdout'): return dict(output_type='stream', name=to, text=s)
def value(s): return dict(output_type='execute_result', data={'text/plain': s}, metadata={}, execution_count=None)

BAD = [
    ('is_valid', book(py('1', i='x'), py('2', i='x')), 'two cells'),
    ('is_valid', book(dict(cell_type='markdown', id='x', metadata={}, source='x', outputs=[])), 'not a valid notebook'),
    ('has_title_and_subtitle', book(*md('# Again')), 'second H1'),
    ('has_title_and_subtitle', dict(book(), cells=md('# core\n\nNo subtitle.')), 'subtitle'),
    ('headings_begin_their_cell', book(*md('Text.\n\n## Heading')), 'a cell of its own'),
    ('code_cells_are_short', book(py('x = 1\n'*41)), '41 lines'),
    ('code_cells_are_short', book(*[py('x = 1\n'*6, i=f'x{i}') for i in range(9)]), 'median is 6'),
    ('code_cells_are_short', book(py('x = 1\n'*21, i='x'), py('x = 1\n'*21, i='y')), '2 of 5 code cells'),
    ('figures_are_small', book(py(FIG, figure(base64.b64encode(bytes(60_001)).decode()))), '60 KB'),
    ('figures_have_words', book(py('show_fig(fig)', figure())), 'fig-cap'),
    ('figures_have_words', book(py(FIG.replace('A grey disc on a white ground.', 'A disc.'), figure(alt='A disc.'))), 'should be a sentence'),
    ('figures_have_words', book(py(FIG, figure(alt='Something else.'))), 'not its fig-alt'),
    ('figures_have_words', book(py(FIG, dict(figure(), metadata={}))), 'not its fig-alt'),
    ('figures_were_drawn', book(py(FIG)), 'none is stored'),
    ('images_are_files_with_words', book(*md('![](images/a.png)')), 'alt text'),
    ('images_are_files_with_words', book(*md('![What is seen in it](https://example.org/a.png)')), 'no file'),
    ('images_are_files_with_words', book(*md('<img src="images/a.png">')), 'in Markdown'),
    ('images_are_files_with_words', book(dict(md('x')[0], attachments={'a.png': {}})), 'attached'),
    ('is_clean', book(py('1', collapsed=True)), "['collapsed']"),
    ('is_clean', book(dict(py('1'), execution_count=3)), 'execution count'),
    ('is_clean', book(py('1', dict(value('1'), execution_count=3))), 'execution count'),
    ('is_clean', dict(book(), metadata={'language_info': {}}), 'language_info'),
    ('outputs_are_no_errors', book(py('1/0', dict(output_type='error', ename='ZeroDivisionError', evalue='', traceback=[]))), 'ZeroDivisionError'),
    ('outputs_are_no_errors', book(py('f()', stream('UserWarning: no', 'stderr'))), 'warning'),
    ('outputs_repeat', book(py('f', value('<function f at 0x7f00aa11>'))), 'address'),
    ('outputs_repeat', book(py('f()', stream(' 50%|█████     |'))), 'progress bar'),
    ('outputs_repeat', book(py('w', dict(value('w'), data={'application/vnd.jupyter.widget-view+json': {}}))), 'widget'),
    ('imports_stand_alone', book(py('import os\nx = 1')), 'in one cell'),
    ('lessons_show_values', book(py('x = 1\nprint(x)')), 'ends in print'),
    ('lessons_show_values', book(py('print(f"x is {x}")\nx')), 'prints a sentence'),
    ('prose_is_no_comment', book(py('# now the mean\nx.mean()')), 'comment'),
    ('there_is_prose', book(*[py('x', i=f'x{i}') for i in range(20)]), '4 sentences for 23'),
    ('every_cell_holds_something', book(py(' ')), 'is empty'),
    ('nothing_is_left_over', book(*md('TO'+'DO: the proof.')), 'left over'),
    ('nothing_is_left_over', book(py('#| eval: false\nf()')), 'eval: false'),
    ('nothing_is_left_over', book(py("warnings.filterwarnings('ignore')")), 'silences'),
    ('begins_and_ends_as_nbdev_needs', dict(book(), cells=book()['cells'][1:]), 'first cell'),
    ('begins_and_ends_as_nbdev_needs', dict(book(), cells=book()['cells'][:-1]), 'last cell'),
    ('begins_and_ends_as_nbdev_needs', dict(book(), cells=[py('#| default_exp other', i='a'), *book()['cells'][1:]]), 'is called core'),
    ('names_no_machine', book(*md('Look in /' + 'home/ann/data.')), '/' + 'home/ann'),
    ('names_no_machine', book(py('p', value("Path('/" + "tmp/x')"))), '/' + 'tmp/x'),
]

def named(o): return next(r for r in rules.RULES if r.__name__==o)

@pytest.mark.parametrize('rule,nb,says', BAD, ids=[f'{r}-{s}' for r,_,s in BAD])
def test_rule_finds(rule, nb, says):
    assert any(says in o for o in named(rule)(copy.deepcopy(nb), ROOT/'nbs/blocks/00_core.ipynb')), f'{rule} did not notice'

def test_rule_finds_large_files(tmp_path):
    p = tmp_path/'00_core.ipynb'; p.write_bytes(bytes(300_001))
    assert 'at most 300' in next(named('file_is_small')(book(), p))

def test_every_rule_has_a_bad_example():
    assert {r.__name__ for r in rules.RULES}=={o[0] for o in BAD}|{'file_is_small'}

@pytest.mark.parametrize('rule', [r for r in rules.RULES if r.__name__!='file_is_small'], ids=lambda o: o.__name__)
def test_rule_passes_a_good_notebook(rule):
    good = book(py(FIG, figure()), *md('## Why\n\nA reason.', '![A grey disc on white](images/a.png)'), py('x = 1\nx', value('1'), i='d'), py('import os', i='e'))
    for i,c in enumerate(good['cells']): c['id'] = f'i{i}'
    assert not list(rule(good, ROOT/'nbs/blocks/00_core.ipynb'))

# --- modules and notebooks in step ---------------------------------------------------------------------
def test_modules_are_exported_and_notebooks_clean():
    bad = check.out_of_step()
    assert not bad, '\n'.join(bad)

def test_check_finds_what_is_out_of_step(tmp_path):
    for o in ['pyproject.toml', *check.tree(ROOT,'medattn_nb','__init__.py')]:
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True); shutil.copyfile(ROOT/o, tmp_path/o)
    (tmp_path/'nbs/blocks').mkdir(parents=True)
    nb = load(ROOT/'nbs/blocks/00_core.ipynb')
    nb['cells'][-1]['metadata'] = {'collapsed': True}
    (tmp_path/'nbs/blocks/00_core.ipynb').write_text(json.dumps(nb))
    (tmp_path/'medattn_nb/core.py').write_text('changed = True\n')
    (tmp_path/'medattn_nb/orphan.py').write_text('x = 1\n')
    bad = '\n'.join(check.out_of_step(tmp_path))
    for o in ('core.py is not what its notebook exports', 'orphan.py is exported by no notebook', '00_core.ipynb is not clean'): assert o in bad

# --- tools/cells.py --------------------------------------------------------------------------------------
def test_every_notebook_runs_in_a_process_of_its_own(tmp_path, capsys):
    pages = []
    for n,last in (('a','builtins.left = 1'), ('b','1/0'), ('c','assert not hasattr(builtins, "left")')):
        pages.append(tmp_path/f'{n}.ipynb'); pages[-1].write_text(json.dumps(book(py('import builtins'), py(last))))
    assert cells.main(pages)==1
    said = capsys.readouterr().out
    assert [o[:6].strip() for o in said.splitlines() if o.endswith('.ipynb') and ' s  ' in o]==['ok','FAILED','ok'] and 'ZeroDivisionError' in said
    assert cells.main(pages[::2])==0

# --- modules -------------------------------------------------------------------------------------------
def dotted(p):
    parts = p.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1]=='__init__' else parts)

def comments(text):
    "The comment on each line of the source `text` that has one"
    return {o.start[0]: o.string for o in tokenize.generate_tokens(io.StringIO(text).readline) if o.type==tokenize.COMMENT}

def params(f):
    "The parameters of a function's syntax tree, without `self`"
    a = f.args
    return [o for o in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg] if o and o.arg not in ('self','cls')]

def fields(c):
    "The fields of a dataclass's or named tuple's syntax tree"
    return [o for o in c.body if isinstance(o, ast.AnnAssign) and o.target.id[0]!='_']

def undocumented(text):
    "What the public functions and classes of the module `text` lack; docments are read as fastcore reads them, one parameter a line"
    t,cs = ast.parse(text),comments(text)
    public = next((ast.literal_eval(o.value) for o in t.body if isinstance(o, ast.Assign) and getattr(o.targets[0],'id','')=='__all__'), [])
    for o in t.body:
        if not isinstance(o, (ast.FunctionDef,ast.ClassDef)) or o.name not in public: continue
        doc = (ast.get_docstring(o) or '').strip()
        if not doc: yield f'{o.name} has no docstring'
        elif '\n' in doc: yield f'{o.name} has a docstring of several lines; move the rest to a markdown cell'
        if isinstance(o, ast.FunctionDef): named = params(o)
        else:
            init = next((f for f in o.body if isinstance(f, ast.FunctionDef) and f.name=='__init__'), None)
            named = params(init) if init else fields(o)
        at = {p.lineno: p for p in named}
        for p in named:
            said = at[p.lineno] is p and (p.lineno in cs or p.lineno-1 in cs and p.lineno-1 not in at)
            if not said: yield f"{o.name}: parameter `{getattr(p,'arg',None) or p.target.id}` has no comment on its line"

@pytest.mark.parametrize('path', modules(), ids=name)
def test_public_symbols_are_documented(path):
    bad = list(undocumented(path.read_text(encoding='utf-8')))
    assert not bad, '\n'.join([name(path), *bad])

@pytest.mark.parametrize('code,says', [
    ('def f(x): return x', ['f has no docstring', 'f: parameter `x` has no comment on its line']),
    ('def f(x, # Any number\n):\n    "Same"\n    return x', []),
    ('def f(x, y): # Both\n    "Sum"', ['f: parameter `x` has no comment on its line']),
    ('def f(\n    x, # One\n    *y,\n    **z, # Rest\n):\n    "Sum"', ['f: parameter `y` has no comment on its line']),
    ('class f:\n    "A thing"\n    def __init__(self, x): pass', ['f: parameter `x` has no comment on its line']),
    ('class f:\n    "A record"\n    a:int # One\n    b:int=1', ['f: parameter `b` has no comment on its line']),
    ('def f():\n    """One.\n\n    Two."""', ['f has a docstring of several lines; move the rest to a markdown cell']),
    ('def g(x): return x', [])])
def test_undocumented_finds(code, says): assert list(undocumented(f"__all__ = ['f']\n{code}\n"))==says

def parsed(p): return ast.parse(p.read_text(encoding='utf-8'), str(p), feature_version=(3,10))

@pytest.mark.parametrize('path', [*modules(), *sorted((ROOT/'tools').glob('*.py')), *sorted((ROOT/'tests').glob('*.py'))], ids=name)
def test_parses_as_python_3_10(path): parsed(path)

def copies(trees):
    "Functions and classes whose code stands in two modules; `trees` maps a module's name to its syntax tree"
    seen = {}
    for mod,t in trees.items():
        for o in ast.walk(t):
            if not isinstance(o, (ast.FunctionDef,ast.ClassDef)): continue
            body = ast.Module(o.body[1:] if ast.get_docstring(o) else o.body, [])
            if sum(isinstance(x, ast.stmt) for x in ast.walk(body))<3: continue
            other = seen.setdefault(ast.dump(body), (mod, o.name))
            if other[0]!=mod: yield f'{o.name} in {mod} is {other[1]} in {other[0]}'

def test_no_code_stands_twice():
    bad = list(copies({name(p): parsed(p) for p in modules()}))
    assert not bad, '\n'.join(bad)

def test_copies_finds():
    f = 'def {}(x):\n    "{}"\n    y = x+1\n    z = y*y\n    return z'
    assert list(copies({'a': ast.parse(f.format('f','One')), 'b': ast.parse(f.format('g','Two'))}))==['g in b is f in a']
    assert not list(copies({'a': ast.parse(f.format('f','One')), 'b': ast.parse('def f(x): return x')}))

# --- layers: papers -> lab -> (blocks, data) -> core ---------------------------------------------------
def room(mod):
    "Which room the module of the library with this dotted name lives in"
    top = mod.split('.')[1] if '.' in mod else ''
    return {'core':'core', 'figures':'figures', 'bench':'figures', 'data':'data', 'lab':'lab', 'papers':'papers', '':'core'}.get(top, 'blocks')

MAY = dict(core={'core'}, figures={'core','figures'}, blocks={'core','blocks'}, data={'core','data'},
           lab={'core','figures','blocks','data','lab'}, papers={'core','figures','blocks','data','lab'})

def imported(t, mod, package=False):
    "The modules of the library that the syntax tree `t` of module `mod` imports, anywhere in it"
    here = mod.split('.') if package else mod.split('.')[:-1]
    for o in ast.walk(t):
        if isinstance(o, ast.Import): yield from (a.name for a in o.names if a.name.split('.')[0]=='medattn_nb')
        elif isinstance(o, ast.ImportFrom):
            base = (here[:len(here)-o.level+1] if o.level else []) + (o.module.split('.') if o.module else [])
            if base[:1]==['medattn_nb']: yield from ['.'.join(base)] if len(base)>1 else [f'medattn_nb.{a.name}' for a in o.names if not a.name.startswith('__')]

def breaches(t, mod, package=False):
    return [f'{mod} ({room(mod)}) imports {o} ({room(o)})' for o in imported(t, mod, package) if room(o) not in MAY[room(mod)]]

@pytest.mark.parametrize('path', modules(), ids=name)
def test_layers(path):
    bad = breaches(parsed(path), dotted(path), path.name=='__init__.py')
    assert not bad, '\n'.join(bad)

@pytest.mark.parametrize('mod,code,ok', [
    ('medattn_nb.lab.training', 'from ..core import seed_everything', True),
    ('medattn_nb.lab.training', 'from .. import papers', False),
    ('medattn_nb.lab.cli', 'def f():\n    from ..papers.selfattention import card', False),
    ('medattn_nb.metrics', 'from .lab.ledger import Ledger', False),
    ('medattn_nb.data.phantoms', 'import medattn_nb.metrics', False),
    ('medattn_nb.attention.spatial', 'from .channel import ChannelGate', True),
    ('medattn_nb.papers.selfattention', 'from ..lab.training import Recipe', True),
    ('medattn_nb.papers.selfattention', 'from .sanet import RSM', False)])
def test_layers_find(mod, code, ok): assert (not breaches(ast.parse(code), mod))==ok

# --- files ---------------------------------------------------------------------------------------------
TEXT = '.py','.in','.ipynb','.md','.toml','.ini','.txt','.yml','.cff','.css','.svg','.json','.csv',''

def faults(path, rel):
    "What is wrong with a file under version control"
    b = path.read_bytes()
    if len(b)>1_000_000: yield f'{rel}: {len(b)/1e6:.1f} MB, at most 1'
    if rel.split('/')[0]=='shared': yield f'{rel}: shared/ is not part of the project'
    if path.suffix not in TEXT: yield from [] if path.suffix=='.png' and len(b)<=60_000 else [f'{rel}: a file of this kind is not kept here']
    elif b'\0' in b: yield f'{rel}: is binary'
    elif path.suffix!='.ipynb' and (m:=rules.machine(b.decode('utf-8'))): yield f'{rel}: names a folder of one machine or a package index, {m}'
    elif path.suffix in ('.py','.md') and (m:=rules.LEFT_OVER.search(b.decode('utf-8'))): yield f'{rel}: {m[0]} is left over'

def test_files():
    bad = [o for p in tracked() if not p.is_symlink() for o in faults(p, name(p))]
    assert not bad, '\n'.join(bad)

@pytest.mark.parametrize('file,content,says', [
    ('a.txt', b'x'*1_000_001, 'at most 1'), ('a.pth', b'x', 'of this kind'), ('a.png', bytes(60_001), 'of this kind'), ('a.py', b'\0', 'is binary'),
    ('a.md', b'see /' + b'root/x', 'one machine'), ('a.txt', b'https://example.org/simp' + b'le', 'package index'), ('a.py', b'# FIX' + b'ME', 'left over'), ('shared/a.md', b'x', 'not part')])
def test_files_find(tmp_path, file, content, says):
    p = tmp_path/Path(file).name; p.write_bytes(content)
    assert any(says in o for o in faults(p, file))

def test_nothing_from_shared():
    shared = ROOT.parent/'shared'
    if not shared.is_dir(): pytest.skip('no shared folder beside the project')
    ours = {}
    for p in tracked():
        if p.stat().st_size: ours.setdefault(p.stat().st_size, []).append(p)
    def sha(p): return hashlib.sha256(p.read_bytes()).digest()
    twins = [f'{name(o)} is {p.relative_to(shared)} in shared' for p in shared.rglob('*') if p.is_file() and p.stat().st_size in ours for o in ours[p.stat().st_size] if sha(p)==sha(o)]
    assert not twins, '\n'.join(twins)
