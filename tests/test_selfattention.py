"The self-attention paper: its experiments, and the records that its page shows"
import dataclasses, re
from pathlib import Path
import numpy as np
import pandas as pd
import pytest, torch
from medattn_nb.attention import attention_modules, open_gates
from medattn_nb.backbones import create_backbone
from medattn_nb.lab.experiments import compare, run_recipe
from medattn_nb.lab.ledger import Ledger
from medattn_nb.lab.training import Recipe
from medattn_nb.metrics import accuracy, roc_auc
from medattn_nb.papers.selfattention import CHOICES, CT, EXPERIMENTS, MRI, MRI_CLEAN, PAPER_ROWS, PHANTOM, ROWS, SKIN, TASKS, overview_figure, parameters, tables

ROOT = Path(__file__).resolve().parent.parent
LEDGER = Ledger(ROOT/'results')
def records(*tables): return [r for t in tables or (*TASKS,'choices') for r in LEDGER.records('selfattention', t)]

# --- the experiments -----------------------------------------------------------------------------------
def test_experiments_are_listed_under_their_tables():
    assert {k:o.name for k,o in EXPERIMENTS.items()}=={k:f'selfattention/{k}' for k in ('skin','chest','mri','mri-leakfree','ct','choices','phantom')}

@pytest.mark.parametrize('task', TASKS)
def test_paper_preset_is_the_papers_recipe(task):
    exp = TASKS[task]
    r = exp.presets['paper']
    n = 500 if task=='ct' else 100
    assert (r.optimiser, r.lr, r.momentum, r.weight_decay, r.batch_size, r.epochs, r.loss)==('sgd', .05, .9, 1e-4, 64, n, 'ce')
    assert [e for e in range(1, n) if r.lr_at(e)!=r.lr_at(e-1)]==[int(n*o) for o in (.3,.6,.9)]
    assert r.model=='resnet18' and r.where=='residual' and r.init=='he' and exp.seeds['paper']==(0,1,2)
    assert (r.split, r.valid_fraction)==('grouped' if exp is MRI_CLEAN else 'random', .2)

@pytest.mark.parametrize('task', TASKS)
def test_tasks_differ_in_nothing_but_the_task(task):
    "Between two tasks the two-core recipes may differ in images, split, size and epochs only"
    a,b = (dataclasses.asdict(o.presets['laptop']) for o in (TASKS[task],SKIN))
    assert {k for k in a if a[k]!=b[k]} <= {'data','split','size','epochs','valid_fraction'}
    assert TASKS[task].rows==ROWS and TASKS[task].seeds['laptop']==(0,1,2)

def test_claims():
    for k,o in TASKS.items():
        assert set(o.published)==set(PAPER_ROWS)-{'ResNet-18'} and all(p.value is None and p.source for p in o.published.values())
        assert {m for m,p in o.published.items() if p.direction==-1}==({'ResNet-18 + GC'} if k.startswith('mri') else set())

def test_added_parameters():
    df = parameters().set_index('model')
    assert df.attention.tolist()==[0, 87_040, 89_880, 91_248, 7_680, 22_991, 132_224, 87_040, 0] and (df.percent<1.2).all()
    assert df.modules.tolist()==[0, 8, 8, 8, 8, 3, 1, 8, 8]

@pytest.mark.parametrize('row', list(ROWS)[1:])
def test_open_gates_make_every_row_the_plain_network(row):
    def logits(kw):
        torch.manual_seed(1)
        m = create_backbone('resnet18', **kw).eval()
        with open_gates(m), torch.no_grad(): return m(torch.linspace(-1, 1, 3*33*33).view(1,3,33,33))
    assert torch.equal(logits(ROWS[row]), logits({}))

@pytest.mark.parametrize('table', [*TASKS,'choices'])
def test_every_row_was_run_with_three_seeds(table):
    exp = EXPERIMENTS[table]
    ran = {(r['row'],r['seed']) for r in LEDGER.records('selfattention', table) if r['preset']=='laptop'}
    assert ran=={(row,s) for row in exp.rows for s in (0,1,2)}

def test_phantoms_and_patients_never_share_a_table():
    from medattn_nb.data.datasets import available
    drawn = set(available().query('synthetic').name)
    for o in TASKS.values(): assert o.presets['smoke'].data in drawn and not {o.presets[k].data for k in ('laptop','paper')}&drawn
    assert {PHANTOM.presets[k].data for k in PHANTOM.presets}=={'phantom-texture'}
    assert not any(r['data']['synthetic'] for r in LEDGER.records('selfattention'))

def test_choices_change_one_field_each():
    base = CHOICES.presets['laptop']
    for row,r in CHOICES.recipes('laptop', (0,)):
        changed = [f.name for f in dataclasses.fields(r) if getattr(r, f.name)!=getattr(base, f.name)]
        assert len(changed)==(row!='our choices')

@pytest.mark.parametrize('task', ['skin','mri','mri-leakfree'])
def test_smoke_preset_of_every_kind_of_picture_trains(task):
    "Colour; four float channels; the same dealt by group"
    row,r = TASKS[task].recipes('smoke')[1]
    rec = run_recipe(r.replace(epochs=1, size=32, data_options={**dict(r.data_options), 'n':96, 'size':32}), row=row, device='cpu').record
    assert 0<=rec['metrics']['valid']['auc']<=1 and rec['data']['synthetic']

# --- the records ---------------------------------------------------------------------------------------
def test_every_record_belongs_to_a_row():
    want = {(o.table,p,row,r.hash) for o in EXPERIMENTS.values() for p in o.presets for row,r in o.recipes(p, range(10))}
    assert {(r['table'],r['preset'],r['row'],r['recipe_hash']) for r in records()} <= want

@pytest.mark.parametrize('table', [*TASKS,'choices'])
def test_records_can_be_recomputed(table, subtests):
    for r in records(table):
        with subtests.test(row=r['row'], seed=r['seed']): recomputed(r)

def recomputed(r):
    assert Recipe.from_dict(r['recipe']).hash==r['recipe_hash']
    assert len(r['history'])==r['recipe']['epochs'] and r['seconds']>0
    assert re.fullmatch('[0-9a-f]{40}', r['environment']['git']['commit']) and r['environment']['git']['dirty'] is False
    for split,s in r['scores'].items():
        n = sum(r['data']['counts'][split].values())
        assert len(s['file'])==len(s['label'])==len(s['score'])==len(s['group'])==n and len(set(s['file']))==n
        m = r['metrics'][split]
        assert np.isclose(roc_auc(s['label'], s['score']), m['auc']) and np.isclose(accuracy(s['label'], s['score']), m['accuracy'])

def test_last_epoch_is_the_one_that_was_scored():
    for r in records(): assert abs(r['history'][-1]['auc']-r['metrics']['valid']['auc'])<1e-3

def test_leak_free_column_has_no_group_on_two_sides():
    for r in records('mri-leakfree'): assert r['recipe']['split']=='grouped' and set(r['scores'])=={'valid'}

# --- the tables ----------------------------------------------------------------------------------------
def test_tables_of_an_empty_ledger(tmp_path):
    cards = tables(tmp_path)
    assert list(cards)==list(TASKS) and all(set(d.status)=={'not run'} for d in cards.values())
    fig = overview_figure(cards)
    assert sum(t.get_text()=='not run' for ax in fig.axes for t in ax.texts)==(len(ROWS)-1)*len(TASKS)

def test_overview_marks_better_and_worse():
    df = pd.DataFrame(dict(model=['ResNet-18','ResNet-18 + A','ResNet-18 + B','ResNet-18 + C'], diff=[np.nan,.1,-.1,0.], low=[np.nan,.05,-.15,-.1], high=[np.nan,.15,-.05,.1]))
    ax = overview_figure({'t':df}).axes[0]
    assert len({c[0].get_color() for c in ax.containers})==3 and [t.get_text() for t in ax.get_yticklabels()]==['+ A','+ B','+ C']

def test_another_baseline_turns_the_difference_round():
    a,b = (tables(ROOT/'results', tasks={'ct':CT}, baseline=o)['ct'].set_index('model') for o in ('ResNet-18','ResNet-18 + SE'))
    assert a['diff']['ResNet-18 + SE']==pytest.approx(-b['diff']['ResNet-18']) and a.p['ResNet-18 + SE']==pytest.approx(b.p['ResNet-18'])
    assert b.index[0]=='ResNet-18 + SE' and set(b.status)<={'baseline','not comparable','not run'}
