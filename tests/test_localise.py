"What is no lesson: scores against oracles, the bound of a grid, normalisation by the training set, records there and back, order, bad input"
import json,re
import numpy as np
import pytest
import torch
from hypothesis import given,settings,strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F
from conftest import ROOT,real
from medattn_nb.core import ArgumentError,ResultError
from medattn_nb.data.datasets import Data,load
from medattn_nb.lab.experiments import Experiment,compare,sign_flip_test
from medattn_nb.lab.explain import energy_inside,gradcam,localisation
from medattn_nb.lab.ledger import Ledger,make_record
from medattn_nb.lab.localise import *
from medattn_nb.lab.training import Recipe,checkpoint_path
from medattn_nb.metrics import roc_auc

LOOK = dict(n=60, size=32, contrast=2., lesion_size=.5, fractions=(.5,.2,.3))
RECIPE = Recipe(data='phantom-texture', data_options=LOOK, size=32, channels=1, epochs=1, batch_size=16)

@pytest.fixture(scope='module')
def train(): return RECIPE.load()

@pytest.fixture(scope='module')
def data(train): return train.subset('test')

@pytest.fixture(scope='module')
def learn(train): return RECIPE.learner(train, device='cpu')

@pytest.fixture(scope='module')
def checkpoints(learn, tmp_path_factory):
    "A folder with the weights of `learn`, as a finished run leaves them"
    d = tmp_path_factory.mktemp('ck')
    torch.save(dict(recipe=json.dumps(RECIPE.to_dict()), epoch=1, model=learn.model.state_dict(), history=[], opt=None, scaler=None, smooth=(0,0.)), checkpoint_path(RECIPE, d))
    return d

@pytest.fixture(scope='module')
def record(checkpoints, data, train): return localise(RECIPE, checkpoints, data, train, layers=('layer2.1','layer1.1'), targets=('true','lesion'))

def masks(n=6, h=12, w=9, seed=0):
    m = np.random.default_rng(seed).random((n,h,w))<.3
    m[:,0,0] = True
    return m

# --- scores --------------------------------------------------------------------------------------------
def test_a_perfect_map_scores_one():
    m = masks()
    np.testing.assert_allclose([overlap(m*1., m), pixel_precision(m*1., m), energy_inside(m*1., m)], 1)

def test_a_uniform_map_scores_the_area():
    m = masks(); u = np.full(m.shape, .3)
    for f in overlap,pixel_precision: np.testing.assert_allclose(f(u, m), m.mean((1,2)))
    np.testing.assert_allclose(localisation(u, m).ratio, 1)

def test_the_opposite_map_overlaps_nowhere():
    m = masks(); assert (overlap(1.-m, m)==0).all() and (m.mean((1,2))<.5).all()

@settings(max_examples=40, deadline=None)
@given(arrays(np.int8, (4,5), elements=st.integers(0,3)), arrays(bool, (4,5)))
def test_overlap_is_the_mean_over_all_orders_of_ties(c, m):
    if not m.any() or not c.any(): assert np.isnan(overlap(c*1., m)); return
    rng,n = np.random.default_rng(0),int(m.sum())
    got = [m.ravel()[np.lexsort((rng.random(20), -c.ravel()))[:n]].mean() for _ in range(2000)]
    assert abs(np.mean(got)-overlap(c*1., m))<.05

def test_nothing_to_score_is_nan():
    m = masks(2); m[0] = False; c = np.ones(m.shape); c[1] = 0
    assert np.isnan(overlap(c, m)).all() and np.isnan(pixel_precision(c, m)).all()

@pytest.mark.parametrize('f', [overlap,pixel_precision])
def test_scores_do_not_depend_on_scale_or_order(f):
    m,c = masks(),np.random.default_rng(1).random((6,12,9)); k = np.array([3,1,5,0,2,4])
    np.testing.assert_allclose(f(7*c, m), f(c, m)); np.testing.assert_allclose(f(c[k], m[k]), f(c, m)[k])
    assert f(c[0], m[0])==f(c, m)[0]

# --- yardsticks ----------------------------------------------------------------------------------------
def stretched(r, hw): return F.interpolate(torch.tensor(r, dtype=torch.float64)[:,None], size=hw, mode='bilinear', align_corners=False)[:,0].numpy()

@settings(max_examples=40, deadline=None)
@given(st.sampled_from([(2,2),(1,3),(4,2),(5,7)]), st.integers(0,99))
def test_no_map_of_a_grid_is_above_its_bound(grid, seed):
    m = masks(5, 16, 11, seed); r = np.random.default_rng(seed).random((5,*grid))**8
    assert (energy_inside(stretched(r, (16,11)), m)<=grid_bound(m, grid)+1e-9).all()

@pytest.mark.parametrize('grid', [(1,1),(2,2),(3,5)])
def test_the_bound_is_reached_by_one_cell(grid):
    m = masks(4, 16, 11); h,w = grid
    one = [energy_inside(stretched(np.eye(h*w)[k].reshape(1,h,w).repeat(4, 0), (16,11)), m) for k in range(h*w)]
    np.testing.assert_allclose(np.max(one, 0), grid_bound(m, grid))

def test_bound_of_one_cell_is_the_area_and_of_a_pixel_grid_one():
    m = masks(); np.testing.assert_allclose(grid_bound(m, (1,1)), m.mean((1,2))); np.testing.assert_allclose(grid_bound(m, (12,9)), 1)
    np.testing.assert_allclose(mask_at_grid(m, (12,9)), m)
    m[2] = False; assert np.isnan(grid_bound(m, (2,2))).tolist()==[False,False,True,False,False,False]

def test_prior_leaves_its_own_image_out():
    m = masks(4); p = prior_maps(m)
    np.testing.assert_allclose(p[2], m[[0,1,3]].mean(0))
    changed = m.copy(); changed[2] = ~m[2]
    np.testing.assert_allclose(prior_maps(changed)[2], p[2])

# --- images as in training -----------------------------------------------------------------------------
def test_other_images_are_normalised_by_the_training_set(learn, train):
    other = load('phantom-texture', n=12, size=32, contrast=0., seed=5)
    raw = train.tensors(32, channels=1)[np.flatnonzero(train.items.split=='train')].float()/255
    want = (other.tensors(32, channels=1).float()/255-raw.mean())/raw.std()
    x = seen(learn, RECIPE, other)
    torch.testing.assert_close(x, want, atol=1e-4, rtol=1e-4)
    assert abs(x.mean())>1e-3 and torch.equal(seen(learn, RECIPE, other, [3,1]), x[[3,1]])

def test_channels_and_size_are_the_recipes(learn, train):
    r = RECIPE.replace(size=40, channels=3); l = r.learner(train, device='cpu')
    assert seen(l, r, train.subset('test')).shape==(18,3,40,40)

def test_scores_are_those_of_gradcam_in_any_batch(learn, data):
    s = cam_scores(learn, RECIPE, data, 'layer2.1'); sick = np.flatnonzero(data.labels==1)
    cam = gradcam(learn.model, seen(learn, RECIPE, data, sick), 1, 'layer2.1')
    want = localisation(cam, data.mask_tensors(32)[:,0].numpy()[sick])
    assert s.index.tolist()==sick.tolist() and s.attrs==dict(layer='layer2.1', grid=(4,4))
    np.testing.assert_allclose(s.energy, want.energy, rtol=1e-5); np.testing.assert_allclose(s.p, cam.probs[:,1], rtol=1e-5)
    np.testing.assert_allclose(cam_scores(learn, RECIPE, data, 'layer2.1', bs=4).energy, s.energy, rtol=1e-4)

def test_order_of_the_images_does_not_matter(learn, data):
    k = np.random.default_rng(0).permutation(len(data))
    a,b = cam_scores(learn, RECIPE, data, 'layer2.1'),cam_scores(learn, RECIPE, data.take(k), 'layer2.1')
    np.testing.assert_allclose(b.set_index(k[b.index]).sort_index()[['energy','hit','overlap','ap']], a[['energy','hit','overlap','ap']], rtol=1e-4)

def test_targets(learn, data):
    sick = np.flatnonzero(data.labels==1)
    by = {t:cam_scores(learn, RECIPE, data, 'layer2.1', t) for t in ('true','lesion',1,'plain','predicted')}
    assert by['true'].equals(by['lesion']) and by['true'].equals(by[1]) and (by['plain'].target==0).all()
    with torch.no_grad(): p = learn.model.eval()(seen(learn, RECIPE, data, sick)).argmax(1)
    assert by['predicted'].target.tolist()==p.tolist()

# --- records -------------------------------------------------------------------------------------------
def test_record_there_and_back(record, data, train, learn, tmp_path):
    led = Ledger(tmp_path); led.write(record)
    r, = led.records('adhoc', 'adhoc-localisation')
    assert r==record and r['row']=='resnet18' and r['recipe_hash']==RECIPE.hash and r['history']==[]
    assert r['data']['fingerprint']==data.fingerprint!=train.fingerprint
    with pytest.raises(ResultError, match='never rewritten'): led.write(record)

def test_means_are_recomputed_from_the_values(record, data):
    base = record['scores']['phantom-texture']
    assert base['file']==data.items.file.tolist() and record['metrics']['phantom-texture']['auc']==pytest.approx(roc_auc(base['label'], base['score']))
    for layer in 'layer2.1','layer1.1':
        for t in 'true','lesion':
            k = score_key('phantom-texture', layer, t); m = record['metrics'][k]
            for name,yard in CAM_SCORES.items():
                v,y = (np.array(o, float) for o in (record['scores'][k][name], base[yard]))
                assert np.isnan(y).tolist()==(data.labels==0).tolist()
                assert m[name]==pytest.approx(np.where(np.isnan(v), y, v)[data.labels==1].mean(), abs=1e-9)
            assert m['images']==9 and m['energy']<=m['bound'] and m['mask_energy']<=m['bound'] and m['cells_h']=={'layer2.1':4,'layer1.1':8}[layer]

def test_same_again(record, checkpoints, data, train):
    again = localise(RECIPE, checkpoints, data, train, layers=('layer2.1','layer1.1'), targets=('true','lesion'))
    assert again['scores']==record['scores'] and again['metrics']==record['metrics']

def test_the_yardsticks_play_the_same_game(record, checkpoints, data, train):
    "With a tolerance the mask on the grid and other images' masks have it too, and the record says so"
    k,wide = score_key('phantom-texture', 'layer2.1', 'true'),localise(RECIPE, checkpoints, data, train, layers=('layer2.1',), targets=('true',), tolerance=6)
    a,b = record['metrics'][k],wide['metrics'][k]
    m = data.mask_tensors(32)[:,0].numpy()[data.labels==1]>0
    assert 'tolerance' not in a and b['tolerance']==6
    assert b['prior_hit']==pytest.approx(localisation(prior_maps(m), m, 6).hit.mean()) and b['prior_hit']>a['prior_hit']
    assert b['mask_hit']==pytest.approx(localisation(mask_at_grid(m, (4,4)), m, 6).hit.mean()) and b['mask_hit']>=a['mask_hit']
    assert b['prior_energy']==a['prior_energy']

def test_hits_of_two_tolerances_are_not_compared():
    rs = rows(runs=2)
    for r in rs:
        if r['row']=='b': r['metrics']['d@l:true']['tolerance'] = 15.
    rs = [r for r in rs if r['row'] in ('a','b')]
    with pytest.raises(ResultError, match='b, seed 0; scored with a tolerance of 15 pixels, a with 0'): compare_localisation(rs, 'l', metric='hit')
    assert len(compare_localisation(rs, 'l', metric='energy'))==2

def test_random_weights_need_no_checkpoint_and_follow_their_seed(data, train, tmp_path):
    a,b,c = (localise(RECIPE, tmp_path, data, train, layers=('layer2.1',), random=o) for o in (0,1,0))
    assert a['scores']==c['scores']!=b['scores'] and a['row']=='random weights' and (a['seed'],b['seed'])==(0,1)

def test_the_trained_set_has_to_be_the_trained_set(record, checkpoints, data):
    run = dict(record, table='t', data=dict(fingerprint='x', split_fingerprint='y'))
    with pytest.raises(ResultError, match='normalisation'): localise(run, checkpoints, data, RECIPE.load())

def test_bad_input(learn, data, train, tmp_path):
    for t in 'lesions',2,-1,True,.5:
        with pytest.raises(ArgumentError, match='plain, lesion'): cam_scores(learn, RECIPE, data, target=t)
    with pytest.raises(ArgumentError, match='cam_layers'): cam_scores(learn, RECIPE, data, 'layer9')
    with pytest.raises(ArgumentError, match='1 or more images'): cam_scores(learn, RECIPE, data, bs=0)
    with pytest.raises(ArgumentError, match='not empty'): cam_scores(learn, RECIPE, data.take(data.labels==0))
    with pytest.raises(ResultError, match='no weights of this run'): localise(RECIPE, tmp_path, data, train)
    for g in (2,),(0,2),3:
        with pytest.raises(ArgumentError, match='height, width'): grid_bound(masks(), g)
    with pytest.raises(ArgumentError, match='two or more'): prior_maps(masks(1))

def test_classes_must_be_as_many(learn, data):
    from dataclasses import replace
    three = Data(replace(data.info, classes=('plain','lesion','other')), data.items.drop(columns='class'), data.root, data.reader)
    with pytest.raises(ArgumentError, match='tells 2 classes apart'): cam_scores(learn, RECIPE, three, 'layer2.1')

# --- comparisons ---------------------------------------------------------------------------------------
def made(row, values, seed=0, area=.2, label=None):
    "A record with the energies `values` at 'l' (None: a blank map)"
    n = len(values); r = RECIPE.replace(seed=seed, lr=.01 if row=='a' else .02)
    files = [f'{i:03d}' for i in range(n)]
    base = dict(file=files, label=label or [1]*n, group=files, score=[.5]*n, area=[area]*n, chance=[area]*n)
    return make_record(paper='p', table='t', row=row, preset='smoke', recipe=r.to_dict(), recipe_hash=r.hash, seed=seed, data=dict(name='d', fingerprint='f', synthetic=True),
        metrics={'d@l:true':dict(energy=0., area=area, bound=1., cells_h=2, cells_w=2)}, history=[], scores={'d':base, 'd@l:true':{k:list(values) for k in CAM_SCORES}}, parameters=1,
        seconds=0., memory_mb=None, resumed=0, environment={})

def rows(n=40, gain=.1, runs=3):
    rng = np.random.default_rng(0); hard = rng.uniform(.2, .6, n)
    return [made(k, hard+g+rng.normal(0, .02, n), s) for k,g in dict(a=0, b=gain, **{'random weights':-.1}).items() for s in range(runs)]

def test_a_difference_is_found_and_its_absence_too():
    df = compare_localisation(rows(), 'l', boots=500).set_index('model')
    assert df.loc['b','dlow']<.1<df.loc['b','dhigh'] and df.loc['b','p_holm']<.001 and df.loc['b','random_diff']==pytest.approx(.2, abs=.01)
    assert np.isnan(df.loc['a','diff']) and np.isnan(df.loc['random weights','p_holm']) and df.runs.tolist()==[3,3,3]
    same = compare_localisation(rows(gain=0), 'l', boots=500).set_index('model')
    assert same.loc['b','dlow']<0<same.loc['b','dhigh'] and same.loc['b','p']>.01

def test_order_of_the_records_does_not_matter():
    rs = rows()
    a,b = (compare_localisation(o, 'l', rows=['a','b','random weights'], boots=200) for o in (rs, rs[::-1]))
    c = compare_localisation(rs, 'l', rows=['random weights','b','a'], baseline='a', boots=200).set_index('model').loc[a.model].reset_index()
    assert a[['mean','low','high','diff','dlow','dhigh','p']].equals(c[['mean','low','high','diff','dlow','dhigh','p']])
    assert a.equals(b) and best_models(rs, 'l', rows=['a','b']).equals(best_models(rs[::-1], 'l', rows=['a','b']))

def test_interval_counts_runs():
    "Runs that differ widen the interval, although every image agrees"
    rs = [made('a', [.3+.1*s]*30, s) for s in range(3)]+[made('b', [.4]*30, s) for s in range(3)]
    df = compare_localisation(rs, 'l', boots=500)
    assert df['diff'][1]==pytest.approx(0) and df.dlow[1]<-.05 and df.dhigh[1]>.05 and df.sd[0]==pytest.approx(.1)

def test_blank_maps_are_uniform_or_left_out():
    rs = [made('a', [None,.8,.8,.8]), made('b', [.4,.4,.4,.4])]
    u,s = (compare_localisation(rs, 'l', blank=o, boots=100) for o in ('uniform','skip'))
    assert u['mean'][0]==pytest.approx(.65) and s['mean'][0]==pytest.approx(.8) and u.blank.tolist()==[.25,0]
    assert best_models(rs, 'l').wins.tolist()==[3,1]

@pytest.mark.parametrize('n', [1,2,5,8])
def test_sign_flips_are_exact_where_few(n):
    d = np.random.default_rng(n).normal(size=n)+.5
    flips = [(d*(1-2*np.array([i>>k&1 for k in range(n)]))).sum() for i in range(2**n)]
    assert sign_flip_test(d)==pytest.approx(np.mean(np.abs(flips)>=abs(d.sum())-1e-9))

def test_sign_flips_by_group_and_at_random():
    d = np.random.default_rng(0).normal(.3, 1, 60)
    assert sign_flip_test(np.repeat(d[:6], 3), np.repeat(np.arange(6), 3))==sign_flip_test(d[:6]) and sign_flip_test(np.r_[d[:6], np.nan])==sign_flip_test(d[:6])
    assert sign_flip_test(np.zeros(30))==1 and sign_flip_test(np.ones(60))==pytest.approx(1e-4)
    ps = [sign_flip_test(np.random.default_rng(i).normal(size=40), n=499) for i in range(200)]
    assert .02<np.mean(np.array(ps)<.1)<.18

def test_wins_ties_and_seeds():
    rs = [made('a', [.5,.5,.1,None], s) for s in (0,1)]+[made('b', [.4,.6,.1,None], s) for s in (0,1)]
    w = best_models(rs, 'l')
    assert w.wins.tolist()==[1,1] and w['last'].tolist()==[1,1] and w['seed 1'].tolist()==[1,1] and w.p.tolist()==[1,1]
    with pytest.raises(ArgumentError, match='two or more'): best_models(rs, 'l', rows=['a'])

def test_records_that_do_not_belong_together():
    a,b = made('a', [.5]*4),made('b', [.4]*4)
    other = dict(b, data=dict(b['data'], fingerprint='g'))
    with pytest.raises(ResultError, match='same images'): compare_localisation([a,other], 'l')
    with pytest.raises(ResultError, match='d@l:true'): compare_localisation([a,b], 'layer4.1')
    with pytest.raises(ResultError, match='there twice'): compare_localisation([a,a,b], 'l')
    with pytest.raises(ResultError, match='records of a, b'): compare_localisation([a,b], 'l', rows=['a','c'])
    for kw in dict(metric='dice'),dict(blank='zero'),dict(baseline='c'):
        with pytest.raises(ArgumentError, match='choose from|use'): compare_localisation([a,b], 'l', **kw)

def test_figures(record, checkpoints, data, train):
    fig = localisation_figure(rows(), 'l', boots=100)
    assert [o.get_text() for o in fig.axes[0].get_yticklabels()]==['a','b','random weights']
    run = dict(record, data=dict(fingerprint=train.fingerprint, split_fingerprint=train.split_fingerprint))
    fig = figure7([run], checkpoints, data, [0,1,3], train=train, layer='layer2.1', show=48)
    words = [o.get_xlabel() for o in fig.axes]
    assert sum('P = ' in o for o in words)==6 and fig.axes[0].images[0].get_array().shape[:2]==(48,48)
    with pytest.raises(ResultError, match='has the seeds 0'): figure7([run], checkpoints, data, [0], train=train, seed=4)

def test_external_auc_by_the_usual_comparison(record, data, train):
    other = localise(RECIPE.replace(seed=1), None, data, train, layers=('layer2.1',), random=1, row='other')
    exp = Experiment('adhoc', 'adhoc-localisation', 'External', {'resnet18':{}, 'other':{}}, {'laptop':RECIPE}, {'laptop':(0,)}, {})
    df = compare(exp, [record,other], 'laptop', split='phantom-texture', boots=100)
    assert df.auc[0]==pytest.approx(record['metrics']['phantom-texture']['auc']) and df.runs.tolist()==[1,1]

def test_answer_in_words():
    df = compare_localisation(rows(), 'l', boots=500)
    assert re.fullmatch(r'On 40 images, more energy inside the mask than a: b \(\+0\.(09|10).\)\.', localisation_answer(df))
    assert 'one run' in localisation_answer(compare_localisation([o for o in rows() if o['seed']==0], 'l', boots=500))
    same = compare_localisation(rows(gain=0), 'l', boots=500)
    assert 'no model differs from a' in localisation_answer(same)

# --- the committed records -----------------------------------------------------------------------------
def ph2(): return Ledger(ROOT/'results').records('selfattention', 'skin-localisation')

def test_committed_records_can_be_recomputed(subtests):
    ran = {(r['row'],r['seed']) for r in ph2()}
    assert len(ran)==len(ph2()) and all({(k,s) for s in (0,1,2)}<=ran for k in {'random weights',*(r['row'] for r in ph2())}) and len({k for k,_ in ran})>5
    for r in ph2():
        with subtests.test(row=r['row'], seed=r['seed']): recomputed(r)

def recomputed(r):
    assert Recipe.from_dict(r['recipe']).hash==r['recipe_hash'] and r['environment']['git']['dirty'] is False and not r['data']['synthetic']
    base = r['scores']['ph2-dermoscopy']
    assert len(base['file'])==200==sum(r['data']['counts'][''].values()) and roc_auc(base['label'], base['score'])==pytest.approx(r['metrics']['ph2-dermoscopy']['auc'])
    for k in (o for o in r['scores'] if '@' in o):
        m = r['metrics'][k]
        for name,yard in CAM_SCORES.items():
            v,y = (np.array(o, float) for o in (r['scores'][k][name], base[yard]))
            assert np.where(np.isnan(v), y, v).mean()==pytest.approx(m[name]) and np.isnan(v).sum()==m['blank'] and m['energy']<=m['bound']

def test_committed_records_are_of_the_set_that_is_here():
    folder = real('ph2-dermoscopy')
    assert {r['data']['fingerprint'] for r in ph2()}=={load('ph2-dermoscopy', folder, classes=2).fingerprint}
