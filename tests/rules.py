"""The rules a notebook keeps, each a function from a notebook (a dict) to sentences that say what breaks it.

CONTRIBUTING.md lists them for people. A rule is a plain function, so test_hygiene.py can show it a notebook
that breaks it as well as ours."""
import ast, base64, re
from statistics import median
import nbformat, yaml

RULES = []
def rule(f):
    RULES.append(f)
    return f

# --- reading a notebook --------------------------------------------------------------------------------
def src(c): return ''.join(c['source'])
def cells(nb, kind): return [c for c in nb['cells'] if c['cell_type']==kind]
def where(nb, c): return f"cell {nb['cells'].index(c)} ({src(c).strip().splitlines()[0][:60] if src(c).strip() else 'empty'!r})"

_dir = re.compile(r'#\|\s*([\w-]+)\s*:?\s*(.*)')
def options(c):
    "The `#|` options at the head of a code cell, as a dict of texts"
    d = {}
    for o in src(c).splitlines():
        if not o.startswith('#|'): break
        if m:=_dir.match(o): d[m[1]] = m[2].strip()
    return d

def text_of(v):
    "The text of a YAML scalar such as `\"A sentence.\"`"
    try: return str(yaml.safe_load(v) or '')
    except yaml.YAMLError: return ''

def code(c): return [o for o in src(c).splitlines() if o.strip() and not o.startswith('#|')]
def tree(c):
    "The syntax tree of a code cell; notebook magics are left out"
    return ast.parse('\n'.join('' if re.match(r'\s*[%!]', o) else o for o in src(c).splitlines()))

def exported(c): return bool({'export','exports','exporti'} & options(c).keys())
def hidden(c): return 'hide' in options(c)
def exports(nb): return any(exported(c) for c in cells(nb,'code'))
def default_exp(nb): return next((o['default_exp'] for o in map(options, cells(nb,'code')) if 'default_exp' in o), None)
LAST = '#| hide\nimport nbdev; nbdev.nbdev_export()'

def out_text(o):
    "All text of an output"
    parts = [o.get('text','')] + [v for k,v in o.get('data',{}).items() if k.startswith('text/')]
    return '\n'.join(''.join(p) for p in parts)

def prose(nb):
    "The running text of the page: no code blocks, headings or tables"
    t = re.sub(r'```.*?```', '', '\n\n'.join(src(c) for c in cells(nb,'markdown')), flags=re.S)
    return '\n'.join(o for o in t.splitlines() if not re.match(r'\s*(#|\||!\[)', o))
def sentences(t): return len(re.findall(r'[.!?:](?=\s|$)', t))

# --- the rules -----------------------------------------------------------------------------------------
@rule
def is_valid(nb, path):
    ids = [c.get('id') for c in nb['cells']]
    if twice:={i for i in ids if ids.count(i)>1}: yield from (f"two cells have the id {o}" for o in twice)
    else:
        try: nbformat.validate(nbformat.from_dict(nb))
        except nbformat.ValidationError as e: yield f"is not a valid notebook: {str(e).splitlines()[0]}"

@rule
def has_title_and_subtitle(nb, path):
    md = cells(nb,'markdown')
    if not md or not re.match(r'# \S[^\n]*\n> \S+( \S+){3,}', src(md[0])): yield "the first markdown cell should be `# title` and, on the next line, `> ` with a subtitle that says something"
    for c in md[1:]:
        if src(c).startswith('# '): yield f"{where(nb,c)}: a second H1; use ##"

@rule
def headings_begin_their_cell(nb, path):
    for c in cells(nb,'markdown'):
        t = re.sub(r'```.*?```', '', src(c), flags=re.S).strip()
        for o in re.findall(r'^#{1,6} .*', t, flags=re.M):
            if not t.startswith(o): yield f"{where(nb,c)}: give the heading `{o}` a cell of its own"

@rule
def code_cells_are_short(nb, path):
    n = [len(code(c)) for c in cells(nb,'code')]
    if not n: return
    if median(n)>5: yield f"half of the code cells should have at most 5 lines; the median is {median(n)}"
    for c in cells(nb,'code'):
        if len(code(c))>40: yield f"{where(nb,c)}: {len(code(c))} lines, at most 40"
    long = sum(o>20 for o in n)
    if long>-(-len(n)//20): yield f"{long} of {len(n)} code cells have more than 20 lines; one in twenty may"

@rule
def file_is_small(nb, path):
    kb,most = path.stat().st_size/1000, 600 if path.parent.name in ('papers','course') else 300
    if kb>most: yield f"the file has {kb:.0f} KB, at most {most}"

@rule
def figures_are_small(nb, path):
    for c in cells(nb,'code'):
        for o in c['outputs']:
            for k,v in o.get('data',{}).items():
                if not k.startswith('image/'): continue
                v = ''.join(v); n = len(v) if 'svg' in k else len(base64.b64decode(v))
                if n>60_000: yield f"{where(nb,c)}: a figure of {n/1000:.0f} KB, at most 60"

@rule
def figures_have_words(nb, path):
    for c in cells(nb,'code'):
        ims = [o for o in c['outputs'] if any(k.startswith('image/') for k in o.get('data',{}))]
        if not ims: continue
        cap,alt = (text_of(options(c).get(k,'')) for k in ('fig-cap','fig-alt'))
        if not cap: yield f"{where(nb,c)}: a figure without `#| fig-cap:` on its first lines"
        if len(alt.split())<5 or alt==cap: yield f"{where(nb,c)}: `#| fig-alt:` should be a sentence that says what is seen"
        for o in ims:
            got = [v.get('alt') for k,v in o.get('metadata',{}).items() if k.startswith('image/')]
            if got!=[alt]: yield f"{where(nb,c)}: the alt text stored with the figure is {got}, not its fig-alt; execute it again with show_fig"

@rule
def figures_were_drawn(nb, path):
    for c in cells(nb,'code'):
        if re.search(r'^\s*show_fig\(', src(c), flags=re.M) and not {'slow','cuda','data'} & options(c).keys() and not any('image/png' in o.get('data',{}) for o in c['outputs']):
            yield f"{where(nb,c)}: draws a figure, but none is stored; run `make outputs NB={path.name}`"

@rule
def images_are_files_with_words(nb, path):
    for c in cells(nb,'markdown'):
        if c.get('attachments'): yield f"{where(nb,c)}: an attached image; put a file in nbs/images"
        for alt,target in re.findall(r'!\[([^\]]*)\]\(([^)\s]+)', src(c)):
            if len(alt.split())<4: yield f"{where(nb,c)}: the image {target[:40]} needs a sentence of alt text in its brackets"
            if re.match(r'https?:|//|data:|attachment:', target): yield f"{where(nb,c)}: {target[:40]} is no file of this repository"
        if re.search(r'<img\b', src(c)): yield f"{where(nb,c)}: write images in Markdown"

@rule
def is_clean(nb, path):
    if extra:=nb['metadata'].keys()-{'kernelspec','widgets'}: yield f"notebook metadata {sorted(extra)}; run `make clean-notebooks`"
    for c in nb['cells']:
        if extra:=c['metadata'].keys()-{'slideshow','tags'}: yield f"{where(nb,c)}: cell metadata {sorted(extra)}; run `make clean-notebooks`"
        if c.get('execution_count') or any(o.get('execution_count') for o in c.get('outputs',[])): yield f"{where(nb,c)}: an execution count; run `make clean-notebooks`"

@rule
def outputs_are_no_errors(nb, path):
    for c in cells(nb,'code'):
        for o in c['outputs']:
            if o['output_type']=='error': yield f"{where(nb,c)}: a stored error, {o.get('ename')}"
            if o.get('name')=='stderr': yield f"{where(nb,c)}: a stored warning; mend its cause: {out_text(o)[:80]!r}"

@rule
def outputs_repeat(nb, path):
    for c in cells(nb,'code'):
        for o in c['outputs']:
            t = out_text(o)
            if m:=re.search(r'\b0x[0-9a-f]{6,}', t): yield f"{where(nb,c)}: an address in the output, {m[0]}"
            if re.search(r'\r|[█▏▎▍▌▋▊▉]|\d%\|', t) or re.search(r'<progress\b', t): yield f"{where(nb,c)}: a progress bar in the output"
            if any('widget-view' in k for k in o.get('data',{})): yield f"{where(nb,c)}: a widget in the output; draw a static figure beside it"

@rule
def imports_stand_alone(nb, path):
    for c in cells(nb,'code'):
        if src(c).strip()==LAST: continue
        kinds = {isinstance(o, (ast.Import,ast.ImportFrom)) for o in tree(c).body}
        if kinds=={True,False}: yield f"{where(nb,c)}: imports and other code in one cell; the site executes import cells alone"

@rule
def lessons_show_values(nb, path):
    for c in cells(nb,'code'):
        calls = [(i,o.value) for i,o in enumerate(tree(c).body) if isinstance(o, ast.Expr) and isinstance(o.value, ast.Call) and getattr(o.value.func,'id','')=='print']
        for i,o in calls:
            if i==len(tree(c).body)-1: yield f"{where(nb,c)}: ends in print; end in the value"
            elif any(isinstance(a, ast.JoinedStr) for a in o.args): yield f"{where(nb,c)}: prints a sentence; write it in Markdown"

@rule
def prose_is_no_comment(nb, path):
    for c in cells(nb,'code'):
        if not exported(c) and any(re.match(r'\s*#(?!\|)', o) for o in src(c).splitlines()): yield f"{where(nb,c)}: a comment on a line of its own; say it in Markdown, or split the cell"

@rule
def there_is_prose(nb, path):
    n,m = len(cells(nb,'code')),sentences(prose(nb))
    if 3*m<n: yield f"{m} sentences for {n} code cells; write at least one for every three"

@rule
def every_cell_holds_something(nb, path):
    for c in nb['cells']:
        if not src(c).strip(): yield f"{where(nb,c)}: is empty"

@rule
def nothing_is_left_over(nb, path):
    for c in nb['cells']:
        if m:=LEFT_OVER.search(src(c)): yield f"{where(nb,c)}: {m[0]} is left over"
        if c['cell_type']=='code' and options(c).get('eval')=='false': yield f"{where(nb,c)}: `eval: false` hides a cell from the tests"
        if re.search(r'''filterwarnings\(\s*['"]ignore['"]\s*\)|simplefilter\(\s*['"]ignore''', src(c)): yield f"{where(nb,c)}: silences every warning; mend the cause, or name the one"
LEFT_OVER = re.compile(r'\b(' + '|'.join(('TO'+'DO','FIX'+'ME','T'+'K','XX'+'X')) + r')\b')

@rule
def begins_and_ends_as_nbdev_needs(nb, path):
    if exports(nb):
        if src(nb['cells'][0]).strip()!=f'#| default_exp {default_exp(nb)}': yield "the first cell should be `#| default_exp module` alone"
        mod = re.sub(r'^\d+[a-z]?_', '', path.stem)
        if (default_exp(nb) or '').removesuffix('.__init__')!=mod: yield f"exports {default_exp(nb)}, but is called {mod}: number and module path make the name"
    if src(nb['cells'][-1]).strip()!=LAST: yield "the last cell should be `#| hide` and `import nbdev; nbdev.nbdev_export()`"

@rule
def names_no_machine(nb, path):
    for c in nb['cells']:
        for t in [src(c)] + [out_text(o) for o in c.get('outputs',[])]:
            if m:=machine(t): yield f"{where(nb,c)}: names a folder of one machine or a package index, {m}"

_dirs = 'home','Users','root','work','farm','tmp','opt','mnt','private'
_machine = re.compile(r'(?<![\w.~-])/(' + '|'.join(_dirs) + r')(?=[/\s"\'`)\\,]|$)[^\s"\'`)]*|\b[A-Z]:\\\\?Users\b|https?://\S*/simp' + r'le\b|pythonho' + r'sted|https?://registry\.', re.M)
def machine(t):
    "The first folder of somebody's machine, or package index, that the text `t` names"
    m = _machine.search(t)
    return m and m[0]
