#!/usr/bin/env python3
"""Run the cells of every notebook, or of those named, each in a process of its own: what one page defines, registers or draws cannot change another.

    python tools/cells.py [NOTEBOOK …]

`nbdev-test` runs several pages in one process, in an order that differs from machine to machine."""
import os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = "import sys; from nbdev.test import nbdev_test; nbdev_test(sys.argv[1], n_workers=0)"

def run(nb):
    "Run one notebook; its path, whether all went well, the seconds, and what it printed"
    start = time.time()
    r = subprocess.run([sys.executable, '-c', RUN, str(nb)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    return nb, r.returncode==0, time.time()-start, r.stdout

def main(nbs):
    "Run `nbs`, as many at a time as there are processors; 1 if one failed"
    failed = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for nb, ok, seconds, said in pool.map(run, nbs):
            name = os.path.relpath(nb, ROOT)
            print(f"{'ok    ' if ok else 'FAILED'} {seconds:4.0f} s  {name}", flush=True)
            if not ok:
                failed.append(name)
                print(said, flush=True)
    if failed: print('\n'.join(['Failed:', *failed]))
    return 1 if failed else 0

if __name__=='__main__':
    from nbdev.doclinks import nbglob
    nbs = [Path(o).resolve() for o in sys.argv[1:]] or sorted((Path(o).resolve() for o in nbglob(ROOT/'nbs')), reverse=True)
    sys.exit(main(nbs))
