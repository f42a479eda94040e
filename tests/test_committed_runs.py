"The ledger that comes with the project: each experiment that was run is there as a whole, and nothing else is"
from importlib import import_module
import pytest
from conftest import ROOT
from medattn_nb.lab.ledger import Ledger
from medattn_nb.lab.report import pick_records
from medattn_nb.lab.training import Recipe

RUNS = { # paper -> table -> runs of the laptop preset
    'apspnet': {'us':24, 'leak-study':10, 'leak-fold':10, 'leak-frame':10, 'leak-phantom-patients':6, 'leak-phantom-frames':6},
    'mistakes': {'lgg':48, 'rim-4-50':21, 'rim-15-50':21, 'rim-50-50':21, 'rim-15-0':21, 'rim-15-100':21},
    'nonlocalattention': {'fundus':57, 'xray':57, 'pair-13':24, 'pair-29':24, 'pair-45':24},
    'sanet': {'phantom':48, 'ph2':27, 'idrid':24, 'isic2017':24, 'phantom-losses':15, 'printed':21},
    'selfattention': {'skin':27, 'chest':27, 'mri':27, 'mri-leakfree':27, 'ct':27, 'choices':21}}
AFTERWARDS = {'mistakes/lgg-fields','mistakes/lgg-attacked','mistakes/lgg-attacked-clamped','nonlocalattention/fundus-localisation','selfattention/skin-localisation'} # Measured on trained networks

@pytest.mark.parametrize('paper,table,n', [(p,t,n) for p,o in RUNS.items() for t,n in o.items()])
def test_every_run_is_there(paper, table, n):
    "Each row with each seed and fold, one record each, by clean code, on the same images, real and synthetic apart"
    exp = import_module(f'medattn_nb.papers.{paper}').EXPERIMENTS[table]
    recipes = exp.recipes('laptop')
    found = pick_records(exp, Ledger(ROOT/'results').records(paper, table), 'laptop')
    made = [(r['row'],Recipe.from_dict(r['recipe'])) for r in found]
    want,have = (sorted((k,r.seed,r.fold,r.hash) for k,r in o) for o in (recipes,made))
    assert len(want)==n and have==want
    assert all(r['recipe_hash']==o.hash and r['environment']['git']['dirty'] is False for r,(_,o) in zip(found, made))
    assert len({r['data']['fingerprint'] for r in found})==1
    by_fold = {(o.fold,r['data']['split_fingerprint']) for r,(_,o) in zip(found, made)}
    assert len(by_fold)==len({k for k,_ in by_fold})==len({r.fold for _,r in recipes})
    assert {r['data']['synthetic'] for r in found}=={exp.presets['laptop'].data.startswith('phantom')}

def test_nothing_else_is_there():
    have = {f'{o.parent.name}/{o.name}' for o in (ROOT/'results').glob('*/*') if o.is_dir()}
    assert have=={f'{p}/{t}' for p,o in RUNS.items() for t in o} | AFTERWARDS
