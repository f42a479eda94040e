"Segmentation in the lab: what is no lesson. Counts, empty masks, folds, resuming, frozen hashes, bad input, one run end to end, one real set"
import copy, dataclasses, json
import numpy as np
import pandas as pd
import pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from conftest import ROOT, real
from medattn_nb.backbones import _backbones, register_backbone
from medattn_nb.core import ArgumentError, DataError, ResultError
from medattn_nb.data.datasets import leaks, load
from medattn_nb.figures import fig_png
from medattn_nb.lab.experiments import Experiment, Published, compare, metrics_table, pool, run_experiment, run_recipe, show_table
from medattn_nb.lab.ledger import Ledger, make_record
from medattn_nb.lab.segmentation import *
from medattn_nb.lab.training import BatchDL, Callback, MaskDL, MaskLoss, Recipe, checkpoint_path, fit, part_of, predict, predict_masks
from medattn_nb.losses import available as losses

@pytest.fixture(autouse=True, scope='module')
def net():
    "A network of two convolutions, known for the time of these tests"
    @register_backbone('test-seg')
    def test_seg(num_classes, in_channels, nf=4): return nn.Sequential(nn.Conv2d(in_channels, nf, 3, padding=1), nn.BatchNorm2d(nf), nn.ReLU(), nn.Conv2d(nf, num_classes, 3, padding=1))
    yield
    del _backbones['test-seg']

TINY = Recipe(data='phantom-dermoscopy', data_options=dict(n=24, size=32, masks='lesion'), size=16, task='segment', model='test-seg', optimiser='adamw', lr=.01, epochs=1, batch_size=6, loss='dice')
KIDNEY = TINY.replace(data='phantom-renal', data_options=dict(n=40, size=32), channels=1, masks=('kidney','hydronephrosis'))

# --- old recipes keep their names --------------------------------------------------------------------------
def test_every_record_in_the_ledger_keeps_its_hash():
    found = 0
    for p in sorted((ROOT/'results').rglob('*.json')):
        r = json.loads(p.read_text())
        if 'recipe_hash' in r: found += 1; assert Recipe.from_dict(r['recipe']).hash==r['recipe_hash'], p.name
    assert found>100

def test_new_fields_change_no_old_hash():
    r = Recipe(data='covid-ct', size=96, augment=('crop','hflip'), epochs=30, channels_last=True)
    assert r.hash=='5f3485184f77' and Recipe.from_dict({k:v for k,v in r.to_dict().items() if k not in ('task','masks','mode','reverse','fold','folds','loss_options')})==r
    new = dict(task='segment', masks=(), mode='multilabel', reverse=False, fold=0, folds=5, loss_options=())
    assert {f.name:f.default for f in dataclasses.fields(Recipe) if f.name in new}==dict(new, task='classify')

@pytest.mark.parametrize('kw', [dict(masks=('lesion',)), dict(reverse=True), dict(mode='multiclass'), dict(loss='focal'), dict(loss_options=dict(smooth=1.)), dict(size=(16,24)), dict(split='folds'), dict(split='folds', fold=1), dict(split='folds', folds=3)])
def test_every_field_counts_and_comes_back(kw):
    r = TINY.replace(**kw)
    assert r.hash!=TINY.hash and Recipe.from_dict(json.loads(json.dumps(r.to_dict())))==r

@pytest.mark.parametrize('kw,says', [(dict(task='detect'), 'task'), (dict(mode='binary'), 'mode'), (dict(task='classify', masks='lesion'), "belongs to task='segment'"),
    (dict(task='classify', reverse=True), "belongs to task='segment'"), (dict(mode='multiclass', reverse=True), 'one background'), (dict(fold=1), "belongs to split='folds'"), (dict(split='folds', fold=5), 'use 0 to 4'),
    (dict(split='folds', folds=1), '2 folds or more'), (dict(size=(16,)), 'size'), (dict(size=(0,16)), 'at least 1'), (dict(task='classify', size=(16,16)), 'use one number'), (dict(loss='mse'), 'choose from'),
    (dict(loss_options=dict(smoth=1)), "accepts"), (dict(loss_options=dict(mode='binary')), 'leave it out'), (dict(masks=('a','a')), 'once')])
def test_what_cannot_work_is_refused(kw, says):
    with pytest.raises(ArgumentError, match=says): TINY.replace(**kw)

@pytest.mark.parametrize('kw,says', [(dict(masks='nevus'), 'has lesion'), (dict(data='phantom-texture', data_options=dict(n=12, size=16), masks='nevus'), 'has lesion'), (dict(where='layer1'), 'no such setting'), (dict(attention='se'), 'no such setting')])
def test_what_the_data_or_the_network_lack(kw, says):
    with pytest.raises(ArgumentError, match=says): TINY.replace(**kw).learner(device='cpu')

def test_a_set_without_masks(monkeypatch):
    r = TINY.replace(data='phantom-texture', data_options=dict(n=12, size=16))
    data = r.load()
    monkeypatch.setattr(type(data.reader), 'masks', lambda self, row: None)
    with pytest.raises(ArgumentError, match='has no masks'): r.mask_tensors(data)

# --- loaders -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('size', [16,(16,24),(17,13),1])
def test_awkward_sizes(size):
    f = fit(TINY.replace(size=size, preprocess=('letterbox',)), device='cpu')
    h,w = size if isinstance(size, tuple) else (size,size)
    assert predict(f.learn, 'test').shape[1:]==(1,h,w)==predict_masks(f.learn, 'test').shape[1:]

def test_masks_are_held_as_bool_read_once_and_in_order():
    data = KIDNEY.load()
    m = KIDNEY.mask_tensors(data)
    assert m.dtype==torch.bool and KIDNEY.mask_tensors(data) is m and m.shape==(40,2,16,16)
    assert torch.equal(m, data.mask_tensors(16, kind='planes')) and torch.equal(KIDNEY.replace(masks=('hydronephrosis','kidney')).mask_tensors(data), m.flip(1))
    assert torch.equal(KIDNEY.replace(masks=()).mask_tensors(data), data.mask_tensors(16)) and KIDNEY.replace(masks=()).mask_names(data)==['any']
    assert (part_of(KIDNEY.learner(data, device='cpu'), 'test').y==m[data.items.split.to_numpy()=='test']).all()

@given(arrays(bool, (2,3,4,4)))
@settings(max_examples=30, deadline=None)
def test_a_later_mask_lies_on_top(m):
    from medattn_nb.lab.training import _labelmap
    m = torch.tensor(m)
    data = type('D', (), dict(info=type('I', (), dict(masks=('a','b','c'), name='d')), _cache={}, __len__=lambda s: 2, masks=lambda s,i: m[i].numpy(), mask_tensors=lambda s,*a,**k: m))()
    top = dataclasses.replace(TINY, masks=('a','b','c'), mode='multiclass').mask_tensors(data)
    want = torch.zeros(2, 4, 4, dtype=torch.long)
    for k in range(3): want[m[:,k]] = k+1
    assert torch.equal(_labelmap(top), want) and (top.sum(1)<=1).all()

@pytest.mark.parametrize('augment', [(),('hflip','vflip','rotate','crop'),('noise','blur')])
def test_image_and_mask_move_together(augment):
    y = torch.zeros(30, 1, 24, 24, dtype=torch.bool); y[:,:,4:15,7:20] = True
    x,m = MaskDL((y*200).byte(), y, 30, augment=augment).one_batch()
    assert m.dtype==torch.bool and ((x>.4)!=m).float().mean()<.02
    if not augment: assert torch.equal(m, y)

def test_augmentation_draws_as_the_classification_loader():
    x = torch.randint(0, 256, (8,3,12,12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    def batch(cls, y):
        torch.manual_seed(3)
        return cls(x, y, 8, augment=('hflip','crop','noise')).one_batch()[0]
    assert torch.equal(batch(BatchDL, torch.zeros(8)), batch(MaskDL, torch.zeros(8,1,12,12, dtype=torch.bool)))

# --- folds -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw', [dict(data='phantom-brain', data_options=dict(n=96, size=32), channels=4), dict(data='phantom-texture', data_options=dict(n=40, size=16, groups=2), task='classify', model='resnet18', loss='ce')])
def test_folds_test_every_case_once(kw):
    rs = [TINY.replace(split='folds', fold=k, folds=4, valid_fraction=.3, **kw) for k in range(4)]
    ds = [r.load() for r in rs]
    tested = sum((o.items.file[o.items.split=='test'].tolist() for o in ds), [])
    assert sorted(tested)==sorted(ds[0].items.file) and len({o.fingerprint for o in ds})==1 and len({o.split_fingerprint for o in ds})==4
    assert all(not len(leaks(o)) and set(o.items.split)=={'train','valid','test'} for o in ds)
    assert (rs[0].replace(seed=3).load().items.split==ds[0].items.split).all() and (rs[0].replace(split_seed=1).load().items.split!=ds[0].items.split).any()

# --- training ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('loss', losses())
@pytest.mark.parametrize('mode', ['multilabel','multiclass'])
def test_every_loss_trains(loss, mode):
    f = fit(KIDNEY.replace(loss=loss, mode=mode), device='cpu')
    p = predict(f.learn, 'test')
    assert p.shape[1]==2+(mode=='multiclass') and set(f.history[0])>={'iou','dice','train_loss','valid_loss'}
    assert (abs(p.sum(1)-1)<1e-5).all() if mode=='multiclass' else ((0<=p)&(p<=1)).all()
    m = predict_masks(f.learn, 'test', bs=3)
    assert (m==((p>.5) if mode=='multilabel' else p.argmax(1)[:,None]==np.array([1,2])[:,None,None])).all()

def test_history_is_the_pooled_iou_of_the_predictions():
    f = fit(KIDNEY, device='cpu')
    p,y = predict_masks(f.learn),part_of(f.learn).y.numpy()
    each = [(p[:,k]&y[:,k]).sum()/(p[:,k]|y[:,k]).sum() for k in range(2)]
    assert f.history[-1]['iou']==pytest.approx(np.nanmean(each)) and f.history[-1]['iou']==pytest.approx(_iou(f.learn))

def test_reversed_cross_entropy_is_the_same_network_upside_down():
    "Symmetric loss, last layer of opposite sign: the same probabilities of the foreground"
    z = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)); y = z>.3
    from medattn_nb.lab.training import _loss
    a,b = (_loss(TINY.replace(loss='ce', reverse=o)) for o in (False,True))
    assert torch.allclose(a(z, y), b(-z, y)) and torch.allclose(a.activation(z), b.activation(-z)) and torch.equal(a.decodes(a.activation(z)), b.decodes(b.activation(-z)))
    d,e = (_loss(TINY.replace(reverse=o)) for o in (False,True))
    assert not torch.allclose(d(z, y), e(-z, y))

def test_reversed_labels_still_predict_the_foreground():
    "Trained long enough on an easy set, both have probabilities above one half on the lesion"
    y = torch.zeros(12, 1, 8, 8, dtype=torch.bool); y[:,:,2:6,2:6] = True
    for reverse in (False,True):
        r = TINY.replace(reverse=reverse, epochs=15, lr=.03, loss='ce')
        learn = r.learner(device='cpu')
        for dl in learn.dls.loaders: dl.y = torch.zeros_like(dl.y); dl.y[...,:8] = True; dl.x = (dl.y*255).byte().expand(-1,3,-1,-1)
        with learn.no_bar(), learn.no_logging(): learn.fit(8, lr=.03)
        p,t = predict(learn, 'test'),part_of(learn, 'test').y.numpy()
        assert p[t].mean()>.8 and p[~t].mean()<.2

@pytest.mark.parametrize('which', ['last','best'])
@pytest.mark.parametrize('kw', [dict(augment=('hflip','rotate')), dict(mode='multiclass', masks=('kidney','hydronephrosis'), data='phantom-renal', data_options=dict(n=40, size=32), channels=1), dict(reverse=True, amp='bf16')], ids=['augment','multiclass','reversed'])
def test_resumed_is_bit_for_bit_uninterrupted(tmp_path, kw, which):
    r = TINY.replace(epochs=3, which_epoch=which, **kw)
    class Stop(Callback):
        def before_batch(self):
            if self.training and self.epoch==2 and self.iter==1: raise KeyboardInterrupt
    whole = fit(r, device='cpu')
    with pytest.raises(KeyboardInterrupt): fit(r, checkpoints=tmp_path, device='cpu', cbs=[Stop()])
    again = fit(r, checkpoints=tmp_path, device='cpu')
    assert again.resumed==2 and [o['iou'] for o in whole.history]==[o['iou'] for o in again.history]
    assert all(torch.equal(v, again.learn.model.state_dict()[k]) for k,v in whole.learn.model.state_dict().items())
    if which=='best': assert max(o['iou'] for o in again.history)==pytest.approx(_iou(again.learn), nan_ok=True)

def _iou(learn):
    p,y = predict_masks(learn),part_of(learn).y.numpy()
    return np.mean([(p[:,k]&y[:,k]).sum()/n for k in range(p.shape[1]) if (n:=(p[:,k]|y[:,k]).sum())])

# --- scores ------------------------------------------------------------------------------------------------
def items(n, cases=2): return pd.DataFrame(dict(file=[f'{i:03d}' for i in range(n)], label=0, group=[f'c{i%cases}' for i in range(n)]))
def drawn(seed=0, n=6, k=2, hw=(9,11)):
    g = np.random.default_rng(seed)
    return g.random((n,k,*hw))>.5,g.random((n,k,*hw))>.4

@given(arrays(bool, (4,2,5,7)), arrays(bool, (4,2,5,7)))
@settings(max_examples=40, deadline=None)
def test_counts_sum_to_the_pixels(t, p):
    s = segment_scores(p, t, items(4), ('a','b'))
    for k,m in enumerate(('a','b')):
        o = s['masks'][m]
        tp,fp,fn = (np.array(o[c]) for c in ('tp','fp','fn'))
        assert (tp+fn==t[:,k].sum((1,2))).all() and (tp+fp==p[:,k].sum((1,2))).all() and (tp+fp+fn<=35).all()
        rim = np.array([np.pad(np.array(v), ((0,0),(0,len(BINS)-len(v[0])))).sum(1) for v in o['rim'].values()]).reshape(-1, 2)
        assert rim.sum(0).tolist()==[t[:,k].sum(),fn.sum()] and [d is None for d in o['hd95']]==[not (a.any() and b.any()) for a,b in zip(t[:,k], p[:,k])]
    assert json.loads(json.dumps(s))==s

def test_a_perfect_prediction():
    t,_ = drawn()
    m = segment_metrics(segment_scores(t, t, items(6), ('a','b')))
    assert [m[k] for k in SEGMENT_METRICS if k in m]==[1,1,0,0,1,0,0] and not set(m)&{'miou','mpa'} and m['iou_pooled']==m['dice_pooled']==m['iou:a']==1 and m['hd95_images']==12

@pytest.mark.parametrize('per', ['case','image','all'])
@pytest.mark.parametrize('mask', ['a','b',None,'micro'])
def test_values_against_plain_loops(per, mask):
    t,p = drawn(1)
    s,g = segment_scores(p, t, items(6), ('a','b')),np.array([f'c{i%2}' for i in range(6)])
    units = {'case':[g==o for o in ('c0','c1')], 'image':list(np.eye(6, dtype=bool)), 'all':[np.ones(6, bool)]}[per]
    def iou(u, k): return (t[u][:,k]&p[u][:,k]).sum()/(t[u][:,k]|p[u][:,k]).sum()
    pick = {'a':lambda u: iou(u, [0]), 'b':lambda u: iou(u, [1]), 'micro':lambda u: iou(u, [0,1]), None:lambda u: np.mean([iou(u, [0]),iou(u, [1])])}[mask]
    assert segment_values(s, metric='iou', per=per, mask=mask).tolist()==pytest.approx([pick(u) for u in units])

@pytest.mark.parametrize('per', ['case','image','all'])
def test_miou_and_mpa_against_loops(per):
    "Background and two masks in the mode 'multiclass', one of them absent from one image"
    rng,g = np.random.default_rng(5),np.array([f'c{i%2}' for i in range(6)])
    t,c = rng.integers(0, 3, (6,9,11)),rng.integers(0, 3, (6,9,11))
    t[0],c[0] = t[0]%2,c[0]%2
    planes = lambda o: np.stack([o==1,o==2], 1)
    s = segment_scores(planes(c), planes(t), items(6), ('a','b'), mode='multiclass')
    units = {'case':[g==o for o in ('c0','c1')], 'image':list(np.eye(6, dtype=bool)), 'all':[np.ones(6, bool)]}[per]
    def of(u, k): return [((t[u]==k)&(c[u]==k)).sum(),((t[u]==k)|(c[u]==k)).sum(),(t[u]==k).sum()]
    def mean(u, i): return np.mean([v[0]/v[i] for v in (of(u, k) for k in range(3)) if v[i]])
    for m,i in (('miou',1),('mpa',2)):
        assert segment_values(s, metric=m, per=per).tolist()==pytest.approx([mean(u, i) for u in units])
    m = segment_metrics(s)
    assert m['miou_pooled']==pytest.approx(mean(np.ones(6, bool), 1)) and m['mpa']==pytest.approx(np.mean([mean(g==o, 2) for o in ('c0','c1')]))
    assert not any(k.startswith(('miou:','mpa:')) for k in m)

def test_miou_of_one_mask_needs_no_mode():
    t,p = drawn(3, k=1)
    a,b = (segment_scores(p, t, items(6), ('a',), mode=m) for m in ('multilabel','multiclass'))
    for k in ('miou','mpa'):
        assert segment_values(a, metric=k).tolist()==segment_values(b, metric=k).tolist()
        with pytest.raises(ArgumentError, match='mean over the background'): segment_values(a, metric=k, mask='a')
    t,p = drawn(3)
    with pytest.raises(ArgumentError, match='background'): segment_values(segment_scores(p, t, items(6), ('a','b')), metric='miou')

def test_old_records_keep_their_numbers():
    "The metrics that a committed record holds are those that its scores give today"
    from medattn_nb.lab.ledger import Ledger
    from conftest import ROOT
    seen = 0
    for paper,table in (o.relative_to(ROOT/'results').parts[:2] for o in sorted((ROOT/'results').glob('*/*')) if o.is_dir()):
        for r in Ledger(ROOT/'results').records(paper, table):
            for k,s in r['scores'].items():
                if 'masks' not in s or seen>=20 or not set(r['metrics'].get(k, {}))&{'iou'}: continue
                now,seen = segment_metrics(s),seen+1
                assert all(now[m]==pytest.approx(v, rel=1e-12, nan_ok=True) for m,v in r['metrics'][k].items() if v is not None)
    assert seen==20

def test_the_background():
    t,p = drawn(2, k=1)
    s = segment_scores(p, t, items(6), ('a',))
    v = segment_values(s, per='all', mask='background')
    assert v['all']==pytest.approx((~t&~p).sum()/(~t|~p).sum())
    z = np.random.default_rng(0).dirichlet([1,1,1], (6,9,11)).transpose(0,3,1,2)
    two = np.stack([t[:,0],~t[:,0]&p[:,0]], 1)
    m = segment_scores(z, two, items(6), ('a','b'), mode='multiclass')
    c = z.argmax(1)
    assert segment_values(m, per='all', mask='background')['all']==pytest.approx(((c==0)&~two.any(1)).sum()/((c==0)|~two.any(1)).sum())
    assert sum(sum(m['masks'][k]['tp'])+sum(m['masks'][k]['fn']) for k in m['masks'])==6*9*11
    for kw,says in ((dict(metric='hd95', mask='background'), 'not kept'), (dict(metric='hd95', mask='micro'), 'no common distance'), (dict(mask='c'), 'choose from a, b'), (dict(per='slice'), 'case')):
        with pytest.raises(ArgumentError, match=says): segment_values(m, **kw)
    with pytest.raises(ArgumentError, match='background'): segment_values(segment_scores(two, two, items(6), ('a','b')), mask='background')

def test_counts_as_tables():
    from medattn_nb.segmetrics import confusion_counts
    t,p = drawn(3)
    s = segment_scores(p, t, items(6), ('a','b'))
    for k,m in enumerate('ab'): assert (count_tables(s, mask=m)==confusion_counts(p[:,k], t[:,k])).all()
    with pytest.raises(ArgumentError, match='choose from a, b'): count_tables(s)

def test_hd95_of_a_case_is_the_mean_of_its_images_and_the_rest_is_counted():
    t = np.zeros((5,1,9,9), bool); p = t.copy()
    t[:3,0,2:5,2:5] = True; p[0] = t[0]; p[1,0,2:5,4:7] = True; p[3,0,0,0] = True
    s = segment_scores(p, t, items(5, cases=5).assign(group=['a','a','b','c','d']), ('m',))
    assert segment_values(s, metric='hd95').fillna(-1).to_dict()==dict(a=1., b=-1, c=-1, d=-1) and s['masks']['m']['hd95']==[0.,2.,None,None,None]
    assert left_out(s)==dict(hd95_images=2, hd95_missed=1, hd95_invented=1, hd95_empty=1, hd95_missed_cases=1)
    assert segment_values(s, metric='missed').fillna(-1).to_dict()==dict(a=0., b=1., c=-1, d=-1)

def test_threshold():
    t,p = np.ones((1,1,2,2), bool),np.array([[[[.2,.4],[.6,.8]]]])
    assert [segment_scores(p, t, items(1), ('m',), threshold=o)['masks']['m']['tp'][0] for o in (.1,.3,.5,.9)]==[4,3,2,0]
    with pytest.raises(ArgumentError, match='has none'): segment_scores(np.ones((1,2,2,2))/2, t, items(1), ('m',), mode='multiclass', threshold=.3)
    with pytest.raises(ArgumentError, match='1 images of 1 masks'): segment_scores(p[:,:,:1], t, items(1), ('m',))

@pytest.mark.parametrize('hw', [(1,1),(1,7),(8,8),(13,5)])
def test_depths_are_the_distance_to_the_nearest_pixel_outside(hw):
    for seed in range(4):
        m = np.random.default_rng(seed).random(hw)>.3
        d,out = rim_distance(m),np.argwhere(~m)
        assert (d[~m]==0).all()
        for y,x in np.argwhere(m): assert d[y,x]==(pytest.approx(np.sqrt(((out-[y,x])**2).sum(1).min())-.5) if len(out) else np.inf)

def test_records_stay_small():
    g = np.random.default_rng(0)
    t = np.zeros((800,1,96,96), bool)
    for o in t: y,x,r = g.integers(10, 70, 3); o[0,y:y+r//3+2,x:x+r//3+2] = True
    s = segment_scores(np.roll(t, 2, 3), t, items(800, cases=110).assign(file=[f'images/TCGA_CS_4941_19960909_{i}.jpg' for i in range(800)]), ('tumor',))
    assert len(json.dumps(s, separators=(',',':')))<150_000

# --- folds of a run, comparison ------------------------------------------------------------------------------
def record(row='plain', seed=0, fold=None, quality=.8, n=12, recipe=TINY, **kw):
    "A record with drawn masks; the higher `quality`, the more pixels are right"
    files = items(n, cases=6) if fold is None else items(n, cases=6).iloc[fold::3].assign(group=lambda d: d.group+f'f{fold}')
    g = np.random.default_rng([seed, *row.encode(), fold or 0])
    t = np.random.default_rng(5).random((n,1,8,8))>.6
    t = t if fold is None else t[fold::3]
    s = segment_scores(np.where(g.random(t.shape)<quality, t, ~t), t, files, ('lesion',))
    r = recipe.replace(seed=seed, **(dict(split='folds', folds=3, fold=fold) if fold is not None else {}))
    return make_record(paper='toy', table='t', row=row, preset='smoke', recipe=r.to_dict(), recipe_hash=r.hash, seed=seed, data=dict(name='d', synthetic=True, fingerprint='f', split_fingerprint=f's{fold}'),
        metrics=dict(test=segment_metrics(s)), history=[], scores=dict(test={**s, **kw}), parameters=10, seconds=1., memory_mb=None, resumed=0, environment={})

EXP = Experiment('toy', 't', 'A toy', {'plain':{}, 'better':{}}, presets=dict(smoke=TINY), seeds=dict(smoke=(0,1)), published={'better':dict(iou=Published(.9, 1), hd95=Published(2., 1))})
def both(qualities=(.7,.9), seeds=(0,1), **kw): return [record(k, s, quality=q, **kw) for k,q in zip(EXP.rows, qualities) for s in seeds]

def test_comparison_of_masks():
    rs = both()
    df = compare(EXP, rs, 'smoke', boots=200).set_index('model')
    v = {(r['row'],r['seed']):segment_values(r) for r in rs}
    assert df.iou['plain']==pytest.approx(np.mean([v['plain',s].mean() for s in (0,1)])) and df.sd['plain']==pytest.approx(np.std([v['plain',s].mean() for s in (0,1)], ddof=1))
    assert df['diff']['better']==pytest.approx(df.iou['better']-df.iou['plain']) and df.low['better']<df['diff']['better']<df.high['better']
    assert df.p['better']==pytest.approx(2/64) and df.status['better']=='direction only' and df.published['better']==.9 and df.units.tolist()==[6,6]

@pytest.mark.parametrize('metric,sign', [('hd95',-1),('fn_rate',-1),('fp_rate',-1),('dice',1),('precision',1)])
def test_smaller_distances_are_better(metric, sign):
    exp = dataclasses.replace(EXP, published={'better':{metric:Published(None, 1)}})
    df = compare(exp, both((.6,.97)), 'smoke', boots=200, metric=metric).set_index('model')
    assert sign*df['diff']['better']>0 and df.status['better']=='direction only'
    assert compare(exp, both((.97,.6)), 'smoke', boots=200, metric=metric).status[1]=='contradicted'
    assert ('missed cases (images)' in show_table(df.reset_index()))==(metric=='hd95')
    pooled = pool({'one':df.reset_index().pipe(lambda d: d.assign()), 'two':df.reset_index()})
    assert pooled.better[0]==2

def test_a_plain_published_number_belongs_to_iou():
    exp = dataclasses.replace(EXP, published={'better':Published(.9, 1)})
    assert compare(exp, both(), 'smoke', boots=100).published[1]==.9 and np.isnan(float(compare(exp, both(), 'smoke', boots=100, metric='hd95').published[1] or 'nan'))

def test_folds_are_joined_before_anything_is_averaged():
    exp = dataclasses.replace(EXP, folds=dict(smoke=3))
    rs = [record(k, s, f, q, recipe=TINY) for k,q in (('plain',.7),('better',.9)) for s in (0,1) for f in (2,0,1)]
    whole = join_folds(rs)
    assert len(whole)==4 and all(len(o['scores']['test']['file'])==12 for o in whole)
    v = segment_values(whole[0])
    assert v.tolist()==pytest.approx(pd.concat([segment_values(r) for r in rs[:3]]).sort_index().tolist())
    df = compare(exp, rs, 'smoke', boots=100)
    assert df.runs.tolist()==[2,2] and df.iou[0]==pytest.approx(np.mean([segment_values(o).mean() for o in whole[:2]]))
    assert compare(exp, rs[:-1], 'smoke', boots=100).runs.tolist()==[2,1] and compare(exp, rs[:2], 'smoke', boots=100).status.tolist()==['not run','not run']
    assert [(o.fold,o.folds,o.split) for _,o in exp.recipes('smoke', (0,))]==[(f,3,'folds') for f in (0,0,1,1,2,2)]
    with pytest.raises(ArgumentError, match='choose from smoke'): dataclasses.replace(EXP, folds=dict(paper=5))

def test_folds_of_classification_runs_are_joined_too():
    r = Recipe(data='phantom-texture', data_options=dict(n=24, size=16), size=16, epochs=1, batch_size=8)
    parts = [dict(paper='p', table='t', preset='smoke', row='a', seed=0, seconds=1, recipe=r.replace(split='folds', folds=2, fold=k).to_dict(), scores=dict(test=dict(file=[f'{k}'], label=[k], group=[f'{k}'], score=[.1]))) for k in (1,0)]
    assert join_folds(parts)[0]['scores']['test']==dict(file=['0','1'], label=[0,1], group=['0','1'], score=[.1,.1])

@pytest.mark.parametrize('change', [dict(attack=.2, clamp=None), dict(threshold=.3), dict(file=['x']*12)])
def test_scores_of_another_kind_are_never_mixed(change):
    with pytest.raises(ResultError, match='only runs on the same images'): compare(EXP, both()[:2]+[record('better', s, **change) for s in (0,1)], 'smoke', boots=100)

def test_undefined_values():
    "A model that finds nothing has no HD95: no number, no difference, and the misses are counted"
    none = copy.deepcopy(both())
    for r in none[2:]:
        o = r['scores']['test']['masks']['lesion']
        o.update(fn=(np.array(o['tp'])+o['fn']).tolist(), tp=[0]*12, fp=[0]*12, hd95=[None]*12)
    df = compare(EXP, none, 'smoke', boots=100, metric='hd95').set_index('model')
    assert np.isnan(df.hd95['better']) and df.status['better']=='undecided' and (df.missed_cases['better'],df.missed_images['better'])==(6,12)
    assert show_table(df.reset_index()).loc['better','missed cases (images)']=='6 (12)' and 'missed cases (images)' in metrics_table(EXP, none, 'smoke', boots=100)
    assert compare(EXP, [], 'smoke').attrs['metric']=='iou' and show_table(compare(EXP, [], 'smoke', metric='hd95')).status.tolist()==['not run']*2

def test_healthy_cases():
    "A healthy case that is left alone is left out by default, so it neither helps nor harms; with `empty=1` it counts"
    rs = copy.deepcopy(both())
    for r in rs:
        o = r['scores']['test']['masks']['lesion']
        for i,g in enumerate(r['scores']['test']['group']):
            if g=='c0': o['tp'][i] = o['fn'][i] = 0; o['fp'][i] = 0 if r['row']=='better' else 1
    df,one = (compare(EXP, rs, 'smoke', boots=100, empty=e).set_index('model') for e in ('skip',1))
    assert df.units.to_dict()==dict(plain=6, better=5) and one.units.to_dict()==dict(plain=6, better=6)
    assert one.iou['better']==pytest.approx((5*df.iou['better']+1)/6) and one['diff']['better']>df['diff']['better']

def test_wrong_questions():
    with pytest.raises(ArgumentError, match='choose from iou'): compare(EXP, both(), 'smoke', metric='auc')
    with pytest.raises(ArgumentError, match="per 'case' or 'image'"): compare(EXP, both(), 'smoke', per='all', boots=100)
    assert compare(EXP, both(), 'smoke', per='image', boots=100).units.tolist()==[12,12]
    with pytest.raises(ArgumentError, match='different metrics'): pool({k:compare(EXP, both(), 'smoke', metric=k, boots=100) for k in ('iou','dice')})

def test_boundary_curve():
    c = boundary_curve(both(), boots=100)
    t = sum(np.add(r['scores']['test']['masks']['lesion']['tp'], r['scores']['test']['masks']['lesion']['fn']).sum() for r in both()[:1])
    assert c[c.model=='plain'].pixels.sum()==t and (c.low<=c.rate).all() and (c.rate<=c.high).all()
    assert fig_png(boundary_figure(c))[:4]==b'\x89PNG' and boundary_curve(both(), rows=['better'], boots=100).model.unique().tolist()==['better']
    with pytest.raises(ArgumentError, match='plain, better'): boundary_curve(both(), rows=['worse'])
    with pytest.raises(ArgumentError, match='choose from lesion'): boundary_curve(both(), mask='hair')

def test_overlays_of_little():
    t = np.zeros((3,6,6), bool); t[0,1:4,1:4] = True
    fig = overlay_figure(np.zeros((3,6,6,3), np.uint8), t, np.stack([t[0],~t[1],t[2]]), ['a','b','c'])
    assert [o.get_xlabel() for o in fig.axes]==['IoU 1.00\nmissed 0 %, invented 0 %','no truth, 36 pixels invented','nothing there, nothing found'] and fig_png(fig)[:4]==b'\x89PNG'
    with pytest.raises(ArgumentError, match='each of the 3 images'): overlay_figure(t, t, t[:2])
    with pytest.raises(ArgumentError, match='size of the image'): overlay_figure(t, t[:,:3], t[:,:3])

# --- once through --------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw', [dict(), dict(reverse=True), dict(mode='multiclass', masks=('kidney','hydronephrosis'), data='phantom-renal', data_options=dict(n=40, size=32), channels=1)], ids=['plain','reversed','multiclass'])
def test_end_to_end(tmp_path, kw):
    base = TINY.replace(**kw)
    exp = dataclasses.replace(EXP, rows={'dice':{}, 'ce':dict(loss='ce')}, presets=dict(smoke=base), seeds=dict(smoke=(0,)), published={}, folds=dict(smoke=2))
    rs = run_experiment(exp, results=tmp_path/'r', checkpoints=tmp_path/'c', device='cpu')
    assert run_experiment(exp, results=tmp_path/'r', checkpoints=tmp_path/'c', device='cpu')==rs==sorted(Ledger(tmp_path/'r').records(), key=lambda r: (r['recipe']['fold'],r['row']=='ce'))
    df = compare(exp, rs, 'smoke', boots=100)
    assert df.runs.tolist()==[1,1] and 0<=df.iou[0]<=1
    again = evaluate_run(rs[0], tmp_path/'c')
    assert again['scores']['test']==rs[0]['scores']['test'] and again['table']=='t-evaluated'
    hit = evaluate_run(rs[0], tmp_path/'c', attack=.2, clamp=(0,1))
    assert (hit['table'],hit['scores']['test']['attack'],hit['scores']['test']['clamp'])==('t-attacked',.2,[0,1]) and hit['metrics']!=again['metrics']
    with pytest.raises(ResultError, match='was trained on'): evaluate_run(rs[0], tmp_path/'c', train=base.replace(split_seed=0, data_options=dict(base.data_options, seed=9)).load())

def test_an_attack_raises_the_loss():
    f = fit(TINY.replace(epochs=3), device='cpu')
    x,y = f.learn.dls.valid.one_batch()
    f.learn.model.eval()
    loss = [f.learn.loss_func(f.learn.model(o), y).item() for o in (x,attacked(f.learn, x, y, .02))]
    assert loss[1]>loss[0]
    d = (attacked(f.learn, x, y, .2)-x).abs()
    assert d.max()<=.2+1e-6 and attacked(f.learn, x, y, .2, (0,1)).aminmax()[1]<=1

def test_other_images(tmp_path):
    res = run_recipe(TINY, checkpoints=tmp_path, device='cpu')
    other = load('phantom-dermoscopy', n=10, size=32, masks='lesion', seed=4)
    r = evaluate_run(res.record, tmp_path, data=other)
    assert r['data']['fingerprint']==other.fingerprint and len(r['scores']['test']['file'])==10
    with pytest.raises(ArgumentError, match='does not segment'): evaluate_run(dict(res.record, recipe=Recipe(data='phantom-texture').to_dict()), tmp_path)

# --- a real set ----------------------------------------------------------------------------------------------
def test_lgg_slices_by_patient():
    root = real('lgg-mri-segmentation').parent
    r = TINY.replace(data='lgg-mri-segmentation', data_options=(), split='folds', fold=1, size=24, batch_size=64, loss='fpa_dice')
    data = r.load(root)
    m = r.mask_tensors(data)
    assert r.mask_names(data)==['tumor'] and m.shape==(1161,1,24,24) and not len(leaks(data)) and ((m.sum((1,2,3))>0).numpy()<=(data.labels==1)).all()
    res = run_recipe(r, data=data, device='cpu').record
    s = res['scores']['test']
    assert .15*1161<len(s['file'])<.25*1161 and len(set(s['group']))==22 and 0<=res['metrics']['test']['iou']<=1 and len(json.dumps(res))<60_000
