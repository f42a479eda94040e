"The non-local paper: its networks, its printed tables, its experiments, and the records that its page shows"
import dataclasses
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from medattn_nb.attention import NAM
from medattn_nb.backbones import create_backbone, encoder_maps
from medattn_nb.core import ArgumentError, ShapeError
from medattn_nb.data import datasets
from medattn_nb.lab.experiments import compare, run_recipe
from medattn_nb.lab.ledger import Ledger
from medattn_nb.papers.nonlocalattention import *
from conftest import ROOT

LEDGER = Ledger(ROOT/'results')
def n_params(m): return sum(p.numel() for p in m.parameters())
def network(row, classes=2, **kw):
    v = {**ROWS[row], **kw}; opts = v.pop('attention_options', {}); torch.manual_seed(0)
    return create_backbone(v.pop('model', 'resnet18'), num_classes=classes, **v, **opts).eval()
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))

# --- the networks --------------------------------------------------------------------------------------
@pytest.mark.parametrize('row', ROWS)
def test_every_row_runs_and_learns(row):
    m = network(row, 4).train()
    out = m(X)
    out.square().sum().backward()
    assert out.shape==(2,4) and all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

@pytest.mark.parametrize('base,width', [('resnet18',(64,128,256,512)), ('shufflenetv2',(24,116,232,464))])
@pytest.mark.parametrize('k', [1,2,3,4])
@pytest.mark.parametrize('fusion,n', [('nvcf',3), ('avg',1), ('max',1), ('bilinear',1)])
def test_parameters_are_those_of_the_parts(base, width, k, fusion, n):
    plain,m,c = create_backbone(base),create_backbone(f'{base}-dual', where=f'e{k}', fusion=fusion),width[k-1]
    assert n_params(m)==n_params(plain)+2*c*c+2*c+2*n*c and m.fc.in_features==width[3]+n*c

def test_dual_branch_is_its_equation():
    "Logits from the last map and the three small copies of what NAM makes of the first"
    m = network(OURS, 3)
    with torch.no_grad():
        e = encoder_maps(m, X); y = m.attention(e['e1'])
        small = [torch.nn.functional.adaptive_avg_pool2d(y, 2), torch.nn.functional.adaptive_max_pool2d(y, 2), torch.nn.functional.interpolate(y, (2,2), mode='bilinear')]
        want = torch.cat([e['e4'],*small], 1).mean((2,3)) @ m.fc.weight.T + m.fc.bias
        assert torch.allclose(m(X), want, atol=1e-5)

def test_plain_layers_do_not_depend_on_the_branch():
    plain = network('ResNet-18').state_dict()
    for row in ROWS:
        sd = network(row).state_dict()
        if row.startswith(('ResNet','NAM on')): assert all(torch.equal(v, sd[k]) for k,v in plain.items() if k in sd and not k.startswith('fc')) and 'layer4.1.conv2.weight' in sd

@pytest.mark.parametrize('size,grid', [(64,2), (97,4), (386,13)])
def test_flattened_head(size, grid):
    m = create_backbone('resnet18-dual', head='flatten', grid=grid).eval()
    with torch.no_grad(): assert m(torch.zeros(1,3,size,size)).shape==(1,2)
    with pytest.raises(ShapeError, match='set grid'), torch.no_grad(): m(torch.zeros(1,3,32,32))

@pytest.mark.parametrize('where,c', [('input',3), ('conv1',64), ('e1',64), ('e4',512)])
def test_where_the_module_stands(where, c):
    m = create_backbone('resnet18-dual', where=where).eval()
    assert isinstance(m.attention, NAM) and m.attention.channels==c
    with torch.no_grad(): assert m(X).shape==(2,2)

def test_pretrained_weights_go_into_the_backbone():
    plain = create_backbone('resnet18', num_classes=7)
    m = create_backbone('resnet18-dual', weights=plain.state_dict())
    assert all(torch.equal(v, m.state_dict()[k]) for k,v in plain.state_dict().items() if not k.startswith('fc'))
    s = create_backbone('shufflenetv2', conv5=True, num_classes=9)
    assert torch.equal(create_backbone('shufflenetv2-dual', weights=s.state_dict()).stage3[1].branch2[0].weight, s.stage3[1].branch2[0].weight)

@pytest.mark.parametrize('kw,says', [(dict(where='e5'),'choose from input, conv1, e1'), (dict(fusion='mean'),'nvcf'), (dict(head='mean'),"'gap' or 'flatten'"), (dict(attention=None, kind='dot'),'nothing to pass'), (dict(kind='cosine'),"'softmax', 'dot' or 'printed'"), (dict(attention='nma'),'choose one of')])
def test_bad_networks(kw, says):
    with pytest.raises(ArgumentError, match=says): create_backbone('resnet18-dual', **kw)

@settings(max_examples=25, deadline=None)
@given(st.integers(1,20), st.integers(1,20), st.integers(1,6), st.integers(1,6))
def test_fusion_of_any_size(h, w, a, b):
    x = torch.rand(1,2,h,w)
    y = NVCF()(x, (a,b))
    assert y.shape==(1,6,a,b) and y.min()>=x.min()-1e-6 and y.max()<=x.max()+1e-6

def test_bad_fusion():
    for ways in ((),('avg','min')):
        with pytest.raises(ArgumentError, match='avg, max, bilinear'): NVCF(ways)

# --- what was printed ----------------------------------------------------------------------------------
def test_printed_tables():
    df = printed()
    assert df.groupby(['table','data']).size().to_dict()=={(1,'MESSIDOR'):8, (2,'MESSIDOR'):8, (2,'COVID-19'):8, (3,'MESSIDOR'):4, (3,'COVID-19'):4}
    assert df[[f'{k} {o}' for k in ('AUC','SEN','ACC') for o in ('mean','SD')]].notna().all(axis=None) and set(df.method)-set(ROWS)=={'HyNet'}
    assert printed(2, 'COVID-19').set_index('method')['SEN mean'][OURS]==96.01

def test_claims():
    c = claims('MESSIDOR')
    assert set(c)=={k for k in ROWS if k!='ResNet-18' and k in set(printed(data='MESSIDOR').method)} and c[OURS].value==pytest.approx(.9539) and c['ShuffleNetV2'].direction==-1
    assert all(p.direction==1 and 0<p.value<1 and 'Table' in p.source for k,p in c.items() if k.startswith('ResNet'))
    assert all(p.direction==-1 for p in view(FUNDUS, 'Table 3').published.values()) and claims('MESSIDOR', ('a','b'))=={}

def test_views_are_parts_of_the_experiments():
    for exp in TASKS.values():
        for k in VIEWS:
            v = view(exp, k)
            assert v.baseline==VIEWS[k][0] and set(v.rows)<=set(ROWS) and v.name==exp.name
    with pytest.raises(ArgumentError, match='Table 1'): view(FUNDUS, 'Table 4')

# --- the experiments -----------------------------------------------------------------------------------
def test_paper_preset_is_the_papers_recipe():
    for exp in TASKS.values():
        r = exp.presets['paper']
        assert (r.size, r.batch_size, r.optimiser, r.lr, r.schedule, r.valid_fraction, r.split, r.weights)==(386, 4, 'adam', 2e-4, 'constant', .1, 'random', 'imagenet')
        assert 'clahe' in r.preprocess and r.augment==('flip_one','rotate') and exp.seeds['paper']==(0,1,2,3,4)
    assert FUNDUS.presets['paper'].data=='messidor' and dict(FUNDUS.presets['paper'].data_options)==dict(errata=False) and XRAY.presets['paper'].data=='covid19-radiography'

def test_laptop_differs_in_what_its_note_says():
    for exp in TASKS.values():
        a,b = (dataclasses.asdict(exp.presets[k]) for k in ('laptop','paper'))
        assert {k for k in a if a[k]!=b[k]}<={'data','data_options','split','size','epochs','batch_size','weights','init'} and a['weights'] is None

def test_phantoms_only_in_smoke():
    drawn = set(datasets.available().query('synthetic').name)
    assert all((r.data in drawn)==(k=='smoke') for exp in TASKS.values() for k,r in exp.presets.items())

def test_a_run_of_several_classes(tmp_path):
    r = run_recipe(FUNDUS.recipes('smoke', (0,), epochs=1)[3][1], 'nonlocalattention', 'fundus', OURS, 'smoke', device='cpu').record
    assert set(r['metrics']['test'])=={'accuracy','sensitivity','precision','auc'} and 'auc' in r['history'][0]
    df = compare(FUNDUS.only((OURS,)), [r], 'smoke', boots=100)
    assert df.auc[0]==pytest.approx(r['metrics']['test']['auc'])
    two = referable(r)
    p = np.array(r['scores']['test']['score'])
    assert two['scores']['test']['label']==[int(o>=2) for o in r['scores']['test']['label']] and np.allclose(two['scores']['test']['score'], p[:,2:].sum(1), atol=1e-5)
    assert r['scores']['test']['score'][0]==p[0].tolist() and two['metrics']['test']['auc']==pytest.approx(compare(FUNDUS.only((OURS,)), [two], 'smoke', boots=100).auc[0])
    board = scoreboard(view(FUNDUS, 'Table 2'), [r], 'smoke', 'MESSIDOR', 2)
    assert board.loc['HyNet','AUC here']=='no public description' and board.loc['ResNet-18','AUC here']=='not run' and board.loc[OURS,'runs']==1
    assert float(board.loc[OURS,'ACC here'])==pytest.approx(100*r['metrics']['test']['accuracy'], abs=.005) and board.loc[OURS,'AUC paper']=='95.39 ± 0.94'

# --- the ledger ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('table', EXPERIMENTS)
def test_records_are_what_the_experiments_say(table, subtests):
    "Each committed record was made by the recipe of its row, on clean code, and its metrics follow from its scores"
    for r in LEDGER.records('nonlocalattention', table):
        with subtests.test(row=r['row'], seed=r['seed']): as_the_experiment_says(r, EXPERIMENTS[table])

def as_the_experiment_says(r, exp):
    assert r['recipe_hash']==dict(exp.recipes(r['preset'], (r['seed'],)))[r['row']].hash and r['environment']['git']['dirty'] is False and r['data']['synthetic']==r['table'].startswith('pair-')
    for s,m in r['metrics'].items():
        y,p = np.array(r['scores'][s]['label']),np.array(r['scores'][s]['score'])
        assert m['accuracy']==pytest.approx(((p.argmax(1) if p.ndim==2 else p>=.5)==y).mean()) and (p.ndim==1 or np.allclose(p.sum(1), 1, atol=1e-4))

def test_localisation_is_complete():
    rs = LEDGER.records('nonlocalattention', 'fundus-localisation')
    rows = {r['row']:sorted(o['seed'] for o in rs if o['row']==r['row']) for r in rs}
    assert set(rows)=={'ResNet-18','ResNet-18 + NAM','ResNet-18 + NAM + DB',OURS,'ResNet-18 + DB + NVCF, no NAM','ResNet-18 + CBAM','random weights'} and all(v==[0,1,2] for v in rows.values())
