#!/usr/bin/env python3
"""Are the modules what the notebooks export, and are the notebooks clean? Says which are not, and what to run.

A fresh export and a cleaning are made in a temporary copy and compared; nothing in the project is written."""
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REMAKE = "from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()"

def tree(root, top, *globs):
    "The files under `root/top` by relative path, without hidden and cache folders"
    fs = (p.relative_to(root) for g in globs for p in (root/top).rglob(g))
    return sorted(o for o in fs if not any(q[0]=='.' or q in ('__pycache__','_docs','_proc','runs') for q in o.parts))

def remake(root, tmp):
    "Copy what an export reads to `tmp`, then export and clean there"
    for o in [Path('pyproject.toml'), *tree(root, 'nbs', '*.ipynb', 'llms.txt'), *tree(root, 'medattn_nb', '__init__.py')]:
        (tmp/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/o, tmp/o)
    env = {k:v for k,v in os.environ.items() if k!='IN_TEST'}
    r = subprocess.run([sys.executable, '-c', REMAKE], cwd=tmp, env=env, capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f"nbdev could not export the notebooks:\n{r.stderr[-2000:]}")

def out_of_step(root=ROOT):
    "One line for each module that is not what its notebook exports, and each notebook that is not clean"
    root = Path(root)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        remake(root, tmp)
        def same(o): return (root/o).is_file() and (tmp/o).is_file() and (root/o).read_bytes()==(tmp/o).read_bytes()
        mods = sorted({*tree(root, 'medattn_nb', '*.py'), *tree(tmp, 'medattn_nb', '*.py'), *tree(root, 'nbs', 'llms.txt'), *tree(tmp, 'nbs', 'llms.txt')})
        why = {(True,True): 'is not what its notebook exports now', (True,False): 'is exported by no notebook', (False,True): 'is exported by a notebook but is not here'}
        bad = [f"{o} {why[(root/o).is_file(), (tmp/o).is_file()]}: run `make export`" for o in mods if not same(o)]
        return bad + [f"{o} is not clean: run `make clean-notebooks`" for o in tree(root, 'nbs', '*.ipynb') if not same(o)]

if __name__=='__main__':
    bad = out_of_step()
    print('\n'.join(bad) or 'All in step.')
    sys.exit(bool(bad))
