"""The site, as far as it can be checked without Quarto: navigation, links, anchors, images, alt text, the README"""
import json, os, posixpath, re, shutil, subprocess, sys
from pathlib import Path
from urllib.parse import unquote
import pytest, yaml
from fastcore.nbio import nb_frontmatter, read_nb
from conftest import ROOT, name, notebooks, tracked
import readme, rules
from test_hygiene import load

NBS = ROOT/'nbs'
Q = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
W = Q['website']

# --- navigation ----------------------------------------------------------------------------------------
def pages(contents):
    "The pages that a sidebar or navbar lists, in order"
    for o in contents:
        if isinstance(o, str): yield o
        else:
            if 'href' in o: yield o['href']
            yield from pages(o.get('contents',[]))
            yield from pages(o.get('menu',[]))

SIDE = list(pages(W['sidebar']['contents']))
BAR = [o for side in ('left','right') for o in pages(W['navbar'].get(side,[]))]

def test_one_configuration_for_both_folders():
    p = NBS/'_quarto.yml'
    assert p.is_symlink() and p.readlink()==Path('../_quarto.yml') and p.resolve()==(ROOT/'_quarto.yml').resolve()

@pytest.mark.parametrize('page', sorted({o for o in SIDE+BAR if '://' not in o}))
def test_listed_page_exists(page): assert (NBS/page).is_file(), f'_quarto.yml lists {page}, which is not in nbs'

def test_every_notebook_is_listed_once():
    have = [p.relative_to(NBS).as_posix() for p in notebooks()]
    assert not set(have)-set(SIDE), f'_quarto.yml does not list {sorted(set(have)-set(SIDE))}'
    assert len(SIDE)==len(set(SIDE)), 'a page stands twice in the sidebar'

def test_navbar_leads_into_every_room():
    rooms = {o.split('/')[0] for o in SIDE if '/' in o}
    assert [o for o in BAR if '://' not in o] and {o.split('/')[0] for o in BAR if '://' not in o}==rooms
    assert all(o.get('aria-label') for o in W['navbar']['right'] if 'icon' in o), 'an icon without words'

def test_sections_follow_the_rooms():
    for s in (o for o in W['sidebar']['contents'] if isinstance(o, dict)):
        assert {o.split('/')[0] for o in pages([s])}=={s['section'].lower()}
        got = list(pages([s])); assert got==sorted(got), 'the sidebar does not follow the numbers'

def test_looks_and_search():
    h = Q['format']['html']
    assert set(h['theme'])=={'light','dark'} and h['toc'] and W['search']['location']=='navbar'
    assert (NBS/h['css']).is_file() and Q['execute']=={'enabled': False}

def test_every_page_title_differs():
    titles = [rules.src(rules.cells(load(p),'markdown')[0]).splitlines()[0] for p in notebooks()]
    assert len(titles)==len(set(titles)), sorted(o for o in set(titles) if titles.count(o)>1)

# --- links, anchors, images ----------------------------------------------------------------------------
def plain(t): return re.sub(r'`[^`\n]*`', '', re.sub(r'```.*?```', '', t, flags=re.S))
_md = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)')
def links(t):
    "Every inline link and image of a Markdown text: (is an image, words, target)"
    return [(bool(m[1]), m[2], m[3]) for m in _md.finditer(plain(t))]

def slug(t):
    "The anchor that Pandoc, and so Quarto, gives a heading"
    if m:=re.search(r'\{#([\w.-]+)[^}]*\}\s*$', t): return m[1]
    t = re.sub(r'[`*]|\[([^\]]*)\]\([^)]*\)', r'\1', t).strip().lower()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', t)))

def text(p): return '\n\n'.join(rules.src(c) for c in rules.cells(load(p),'markdown')) if p.suffix=='.ipynb' else p.read_text(encoding='utf-8')
def anchors(p):
    t = re.sub(r'```.*?```', '', text(p), flags=re.S)
    got = {slug(o) for o in re.findall(r'^#{1,6}\s+(.*)$', t, re.M)} | set(re.findall(r'\{#([\w.-]+)', t))
    if p.suffix=='.ipynb': got |= {o.lower() for c in rules.cells(load(p),'code') if rules.exported(c) for o in re.findall(r'^(?:def|class) (\w+)', rules.src(c), re.M)}
    return got

def broken(p, top=None):
    "What is wrong with the links of the page `p`; links may not leave the folder `top`"
    for image,words,target in links(text(p)):
        if re.match(r'(https?|mailto):', target):
            if image: yield f'{target}: images are files of this repository'
            continue
        path,_,anchor = unquote(target).partition('#')
        to = p if not path else p.parent/path
        if path.startswith('/') or not to.resolve().is_relative_to(top or ROOT): yield f'{target}: leaves the site'
        elif not to.exists(): yield f'{target}: there is no such file'
        elif anchor and to.suffix in ('.ipynb','.md') and anchor not in anchors(to): yield f'{target}: {to.name} has no heading or symbol #{anchor}'
        elif path.endswith('.html'): yield f'{target}: link to the notebook; the site makes the page'
        if image and len(words.split())<4: yield f'{target}: an image without a sentence of alt text'
        if not image and not words.strip(): yield f'{target}: a link without words'

@pytest.mark.parametrize('path', notebooks(), ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_links_of_notebooks(path):
    bad = list(broken(path, NBS))
    assert not bad, '\n'.join([name(path), *bad])

@pytest.mark.parametrize('path', [p for p in tracked() if p.suffix=='.md'], ids=name)
def test_links_of_markdown(path):
    bad = list(broken(path))
    assert not bad, '\n'.join([name(path), *bad])

def test_repository_links_of_the_index():
    "Files outside nbs are linked by their address on GitHub, and exist here"
    named = re.findall(re.escape(readme.REPO) + r'([^)\s#]+)', text(NBS/'index.ipynb'))
    assert named and all((ROOT/o).is_file() for o in named)

@pytest.mark.parametrize('md,says', [
    ('[a](nowhere.ipynb)', 'no such file'), ('[a](b.md#nothing)', 'no heading'), ('[a](../../x.md)', 'leaves the site'), ('[](b.md)', 'without words'),
    ('![What is seen here](none.png)', 'no such file'), ('![x](b.md)', 'alt text'), ('![What is seen here](https://example.org/a.png)', 'of this repository'),
    ('[a](#here)', ''), ('[a](b.md#a-heading-2.5)', ''), ('`[a](nowhere)`', ''), ('[a](https://example.org)', '')])
def test_broken_finds(tmp_path, md, says):
    (tmp_path/'b.md').write_text('# A `heading`, 2.5\n')
    p = tmp_path/'a.md'; p.write_text(f'# Here\n\n{md}\n')
    bad = list(broken(p, tmp_path))
    assert any(says in o for o in bad) if says else not bad

# --- pages as nbdev hands them to Quarto ---------------------------------------------------------------
@pytest.mark.parametrize('path', notebooks(), ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_front_matter(path):
    "nbdev takes title and description of the site from the first cell"
    fm = nb_frontmatter(read_nb(path))
    assert fm.get('title') and len(fm.get('description','').split())>3

def test_nbdev_makes_a_page(tmp_path):
    "One notebook through nbdev's own processors, as `make docs` does it: documentation in, plumbing out"
    for o in ('pyproject.toml','nbs/blocks/00_core.ipynb'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True); shutil.copyfile(ROOT/o, tmp_path/o)
    shutil.copytree(ROOT/'medattn_nb', tmp_path/'medattn_nb', ignore=shutil.ignore_patterns('__pycache__'))
    page = "import json; from fastcore.nbio import read_nb; from nbdev.processors import FilterDefaults; nb = read_nb('nbs/blocks/00_core.ipynb'); FilterDefaults()(nb); print(json.dumps([c.source for c in nb.cells if c.source]))"
    r = subprocess.run([sys.executable,'-c',page], cwd=tmp_path, env={**os.environ, 'IN_TEST':'1'}, capture_output=True, text=True) # a process of its own: it starts an IPython shell
    assert r.returncode==0, r.stderr
    cells = json.loads(r.stdout.splitlines()[-1])
    front,all_ = cells[0],'\n'.join(cells)
    assert 'title: core' in front and 'output-file: core.html' in front
    assert 'show_doc(seed_everything)' in all_ and 'nbdev_export()' not in all_ and 'default_exp' not in all_

# --- README --------------------------------------------------------------------------------------------
def test_readme_is_the_index():
    assert (ROOT/'README.md').read_text(encoding='utf-8')==readme.to_readme(load(NBS/'index.ipynb')), 'README.md is not what nbs/index.ipynb says: run `make readme`'

def test_to_readme():
    def cell(kind, s, **kw): return dict(cell_type=kind, source=s, **kw)
    nb = dict(cells=[
        cell('markdown', f'# t\n\n[a](blocks/x.ipynb#y) ![b](images/o.svg) [c]({readme.REPO}LICENSE) [d](https://e.org) [f](#g)'),
        cell('code', '#| hide\nimport nbdev', outputs=[]),
        cell('code', '#| echo: true\n1+1', outputs=[dict(output_type='execute_result', data={'text/plain': ['2']})])])
    assert readme.to_readme(nb)=='# t\n\n[a](nbs/blocks/x.ipynb#y) ![b](nbs/images/o.svg) [c](LICENSE) [d](https://e.org) [f](#g)\n\n```python\n1+1\n```\n\n```text\n2\n```\n'

def test_readme_commands_come_first():
    t = (ROOT/'README.md').read_text(encoding='utf-8')
    assert t.index('make demo')<t.index('python3 -m venv .venv')<t.index('from medattn_nb.attention import')
