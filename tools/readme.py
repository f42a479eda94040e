#!/usr/bin/env python3
"""Write README.md from nbs/index.ipynb: the same text, with links that work from the repository's root."""
import json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPO = "https://github.com/medattn/medattn_nb/blob/main/"
_link = re.compile(r'(\]\()([^)\s]+)(\))')

def relink(target):
    "A link of a page in nbs as seen from the root: pages move into nbs, files of the repository lose its address"
    if target.startswith(REPO): return target[len(REPO):]
    return target if re.match(r'[a-z]+:|#', target) else f'nbs/{target}'

def _source(cell):
    "The code without its `#|` lines, or nothing for a hidden cell"
    src = ''.join(cell['source']).split('\n')
    if any(re.match(r'#\|\s*(hide|export|default_exp)', o) for o in src): return ''
    return '\n'.join(o for o in src if not o.startswith('#|'))

def _outputs(cell):
    txt = ''.join(''.join(o.get('text', o.get('data',{}).get('text/plain',[]))) for o in cell['outputs'])
    return f'\n\n```text\n{txt.strip()}\n```' if txt.strip() else ''

def to_readme(nb):
    "The notebook `nb` (a dict) as the text of README.md"
    parts = []
    for c in nb['cells']:
        if c['cell_type']=='markdown': parts.append(_link.sub(lambda m: m[1]+relink(m[2])+m[3], ''.join(c['source'])))
        elif c['cell_type']=='code' and (src:=_source(c)): parts.append(f'```python\n{src}\n```{_outputs(c)}')
    return '\n\n'.join(parts) + '\n'

if __name__=='__main__':
    (ROOT/'README.md').write_text(to_readme(json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))), encoding='utf-8')
