"The self-attention paper: its experiments, and the records that its page shows"
import re
from pathlib import Path

import numpy as np
import pytest

from medattn_nb.lab.experiments import compare
from medattn_nb.lab.ledger import Ledger
from medattn_nb.lab.training import Recipe
from medattn_nb.metrics import accuracy, roc_auc
from medattn_nb.papers.selfattention import CT, EXPERIMENTS, PHANTOM, ROWS, parameters

ROOT = Path(__file__).resolve().parent.parent
RECORDS = Ledger(ROOT/'results').records('selfattention')

def test_experiments_are_listed_under_their_tables():
    assert {k:o.name for k,o in EXPERIMENTS.items()}=={'ct':'selfattention/ct', 'phantom':'selfattention/phantom'}

def test_paper_preset_is_the_papers_recipe():
    r = CT.presets['paper']
    assert (r.optimiser, r.lr, r.momentum, r.weight_decay, r.batch_size, r.epochs, r.loss)==('sgd', .05, .9, 1e-4, 64, 500, 'ce')
    assert [e for e in range(1, 500) if r.lr_at(e)!=r.lr_at(e-1)]==[150, 300, 450]
    assert r.model=='resnet18' and r.where=='residual' and r.init=='he' and len(CT.seeds['paper'])==3

def test_attention_adds_under_one_percent():
    df = parameters()
    assert df.attention.tolist()==[0, 87_040, 89_880, 91_248] and (df.percent<1).all()

def test_phantoms_and_patients_never_share_a_table():
    assert PHANTOM.presets['laptop'].data=='phantom-texture' and all(CT.presets[k].data=='covid-ct' for k in ('laptop','paper'))
    assert not any(r['data']['synthetic'] for r in RECORDS)

def test_laptop_table_is_complete():
    want = {(row, r.hash) for row,r in CT.recipes('laptop')}
    assert want <= {(r['row'], r['recipe_hash']) for r in RECORDS}
    df = compare(CT, RECORDS, 'laptop', boots=100)
    assert (df.runs==3).all() and 'not run' not in df.status.tolist()

@pytest.mark.parametrize('r', RECORDS, ids=lambda r: f"{r['row']}-{r['seed']}")
def test_record_can_be_recomputed(r):
    assert Recipe.from_dict(r['recipe']).hash==r['recipe_hash']
    assert len(r['history'])==r['recipe']['epochs'] and r['seconds']>0
    assert re.fullmatch('[0-9a-f]{40}', r['environment']['git']['commit']) and not r['environment']['git']['dirty']
    for split,s in r['scores'].items():
        n = sum(r['data']['counts'][split].values())
        assert len(s['file'])==len(s['label'])==len(s['score'])==len(s['group'])==n and len(set(s['file']))==n
        m = r['metrics'][split]
        assert np.isclose(roc_auc(s['label'], s['score']), m['auc']) and np.isclose(accuracy(s['label'], s['score']), m['accuracy'])

def test_last_epoch_is_the_one_that_was_scored():
    for r in RECORDS: assert abs(r['history'][-1]['auc']-r['metrics']['valid']['auc'])<1e-3
