"Tags and superpixels end to end: what a batch carries, what a record keeps, comparison, folds, prediction of new pictures"
import numpy as np
import pandas as pd
import pytest, torch
from torch import nn
from medattn_nb import backbones
from medattn_nb.backbones import register_backbone
from medattn_nb.core import ArgumentError, ResultError, ShapeError
from medattn_nb.lab.experiments import Experiment, compare, run_experiment, show_table
from medattn_nb.lab.predict import Predictor
from medattn_nb.lab.report import write_report
from medattn_nb.lab.tags import tag_draws, tag_metrics, tag_scores, tag_values
from medattn_nb.lab.training import MaskDL, Recipe, _loss, fit, part_of, predict
from medattn_nb.metrics import average_precision, roc_auc
from medattn_nb.superpixels import superpixel_counts, superpixel_pool

TINY = Recipe(data='phantom-dermoscopy', data_options=dict(n=40, size=32), size=32, split='random', valid_fraction=.5, task='tag', tags=('pigment_network','globules','milia_like_cyst'), epochs=1, batch_size=8, lr=.01)

class ByRegion(nn.Module):
    "Answers from the means of superpixels; refuses images without them"
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.f,self.in_channels = nn.Conv2d(in_channels, num_classes, 1),in_channels
    def forward(self, x):
        assert x.shape[1]==self.in_channels+1
        s,used = x[:,-1].long(),superpixel_counts(x[:,-1].long())[:,None]>0
        return superpixel_pool(self.f(x[:,:-1]), s).sum(2)/used.sum(2)

class Plain(nn.Sequential):
    def __init__(self, num_classes, in_channels): super().__init__(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def _maker(net):
    def make(num_classes=2, in_channels=3, attention=None, where='residual', init='he', keep_identity=True): return net(num_classes, in_channels)
    return make

@pytest.fixture(autouse=True, scope='module')
def networks():
    "Two networks by name, for these tests alone"
    for k,o in {'by-region':ByRegion, 'plain-tags':Plain}.items(): register_backbone(k)(_maker(o))
    yield
    for k in ('by-region','plain-tags'): del backbones._backbones[k]

# --- recipes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw,match', [(dict(superpixels=-1), 'whole number'), (dict(superpixels=2.5), 'whole number'), (dict(superpixel_options=dict(zero=True)), 'how many'), (dict(task='classify'), "belongs to task='tag'"),
    (dict(tags=('globules','globules')), 'once'), (dict(size=(32,48)), 'one number'), (dict(masks='lesion'), "belongs to task='segment'")])
def test_a_recipe_that_cannot_be(kw, match):
    with pytest.raises(ArgumentError, match=match): TINY.replace(**kw)

def test_older_hashes_stay():
    assert Recipe(data='phantom-texture', attention='cbam').hash=='c2bbdcf555f6'
    r = TINY.replace(superpixels=30, superpixel_options=dict(zero=True, compactness=5.))
    assert Recipe.from_dict(r.to_dict())==r and r.hash==r.replace(superpixel_options=(('compactness',5.),('zero',True))).hash!=TINY.hash

def test_unknown_tags_and_sets_without():
    with pytest.raises(ArgumentError, match='pigment_network'): TINY.replace(tags='freckles').tag_names(TINY.load())
    r = Recipe(data='phantom-texture', data_options=dict(n=20, size=32), task='tag')
    with pytest.raises(ArgumentError, match='no attributes'): r.tag_names(r.load())

# --- the loss -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('loss', ['ce','focal','dice','jaccard','gbce','gbl'])
def test_unknown_labels_teach_nothing(loss):
    f,z = _loss(TINY.replace(loss=loss)),torch.randn(6, 3, requires_grad=True)
    y = (torch.rand(6, 3)>.5).float(); y[4,0] = float('nan')
    f(z, y).backward()
    assert (z.grad[4]==0).all() and torch.isfinite(z.grad).all() and z.grad.abs().sum()>0
    torch.testing.assert_close(f(z, y), f(z[[0,1,2,3,5]], y[[0,1,2,3,5]]))
    z.grad = None
    f(z, y*float('nan')).backward()
    assert (z.grad==0).all()

# --- superpixels in the batch -------------------------------------------------------------------------------
@pytest.mark.parametrize('task', ['tag','segment'])
@pytest.mark.parametrize('channels', [1,3])
def test_labels_are_the_last_channel(task, channels):
    r = TINY.replace(task=task, tags=(), superpixels=25, channels=channels)
    data = r.load()
    maps,dls = r.superpixel_maps(data),r.dataloaders(data, torch.device('cpu'))
    assert maps.dtype==torch.int32 and maps.shape==(40,32,32) and maps.amin()==0
    for k,dl in zip(('train','valid'), dls):
        x = torch.cat([o[0] for o in dl])
        assert x.shape==(20,channels+1,32,32)
        if k=='valid': assert (x[:,-1].int()==maps[np.flatnonzero(data.items.split=='valid')]).all()
    assert r.superpixel_maps(data) is maps and TINY.superpixel_maps(data) is None

@pytest.mark.parametrize('names', [('hflip','vflip'),('rotate_always',),('crop',),('region_shuffle',)])
def test_labels_move_with_the_image(names):
    "The picture is its own label map, so after any movement both must agree wherever a label is left"
    r = TINY.replace(task='segment', tags=(), superpixels=25, size=35, data_options=dict(n=40, size=35))
    m = r.superpixel_maps(r.load())[:8]
    x = (m[:,None]*5).to(torch.uint8)
    dl = MaskDL(x, m[:,None]%2==0, 8, augment=names, regions=m)
    b,y = dl.one_batch()
    image,labels = b[:,0]*51,b[:,1]
    here = labels>=0
    near = (image-labels).abs()<1e-3
    assert (labels==labels.round()).all() and near[here].float().mean()>(.5 if names[0] in ('rotate_always','crop') else .999) # interpolation mixes values at borders, never labels
    assert (y[:,0][here&near]==(labels[here&near]%2==0)).all() and not y[:,0][~here].any()
    assert names!=('rotate_always',) or (~here).any()

def test_parts_keep_their_superpixels():
    r = TINY.replace(superpixels=25, model='by-region')
    learn = r.learner(device='cpu')
    dl = part_of(learn, 'valid', slice(3, 9))
    assert dl.one_batch()[0].shape==(6,4,32,32) and predict(learn).shape==(20,3)

# --- records and comparison ---------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    d = tmp_path_factory.mktemp('tags')
    exp = Experiment('demo', 'tags', 'Tags', {'plain':dict(model='plain-tags'), 'by region':dict(model='by-region', superpixels=25)}, presets=dict(smoke=TINY), seeds=dict(smoke=(0,1)), published={})
    return exp,run_experiment(exp, results=d/'results', checkpoints=d/'ck', device='cpu'),d

def test_a_record_has_what_its_metrics_are_made_of(finished):
    _,records,_ = finished
    for r in records:
        s,m = r['scores']['valid'],r['metrics']['valid']
        assert list(s)==['file','label','group','names','truth','score'] and m==tag_metrics(s)
        y,p = np.array(s['truth']),np.array(s['score'])
        for k,o in enumerate(s['names']):
            if 0<y[:,k].sum()<len(y): assert m[f'auc:{o}']==pytest.approx(roc_auc(y[:,k], p[:,k])) and m[f'ap:{o}']==pytest.approx(average_precision(y[:,k], p[:,k]))

@pytest.mark.parametrize('metric', ['auc','ap'])
@pytest.mark.parametrize('tag', [None,'globules'])
def test_comparison(finished, metric, tag):
    exp,records,_ = finished
    df = compare(exp, records, 'smoke', boots=200, metric=metric, mask=tag).set_index('model')
    v = {k:[(tag_values(r, 'valid', metric)[tag] if tag else tag_values(r, 'valid', metric).mean()) for r in records if r['row']==k] for k in exp.rows}
    assert df[metric].tolist()==pytest.approx([np.mean(o) for o in v.values()]) and df.sd.tolist()==pytest.approx([np.std(o, ddof=1) for o in v.values()])
    o = df.loc['by region']
    assert o['diff']==pytest.approx(np.mean(v['by region'])-np.mean(v['plain'])) and o.low<=o['diff']<=o.high and 0<o.p<=1 and o.runs==2
    assert show_table(df.reset_index().assign(model=df.index)).shape[0]==2

def test_a_model_against_itself(finished):
    exp,records,_ = finished
    twin = [r for r in records if r['row']=='plain']; twin += [dict(r, row='by region') for r in twin]
    o = compare(exp, twin, 'smoke', boots=200).iloc[1]
    assert o['diff']==0 and o.low<=0<=o.high and o.p>.5

def test_other_images_are_refused(finished):
    import copy
    exp,records,_ = finished
    bad = copy.deepcopy(records); bad[1]['scores']['valid']['truth'][0] = [1,1,1] if records[0]['scores']['valid']['truth'][0]!=[1,1,1] else [0,0,0]
    with pytest.raises(ResultError, match='same images'): compare(exp, bad, 'smoke', boots=200)
    with pytest.raises(ArgumentError, match='auc, ap'): compare(exp, records, 'smoke', boots=200, metric='iou')
    with pytest.raises(ArgumentError, match='pigment_network'): compare(exp, records, 'smoke', boots=200, mask='freckles')
    with pytest.raises(ResultError, match='no tags'): tag_values(records[0], 'test')

@pytest.mark.parametrize('row', ['plain','by region'])
def test_a_new_picture(finished, row):
    "A network from its checkpoint says of a picture what it said in training"
    exp,records,d = finished
    r = next(o for k,o in exp.recipes('smoke', (0,)) if k==row)
    data = r.load()
    p = Predictor.of(fit(r, data, checkpoints=d/'ck', device='cpu').learn, r, data)
    i = int(np.flatnonzero(data.items.split=='valid')[0])
    got = p.predict_image(data.image(i))
    assert p.names==r.tags and got.masks is None
    np.testing.assert_allclose(got.probs, records[[o['row'] for o in records].index(row)]['scores']['valid']['score'][0], atol=2e-6)

def test_report(finished, tmp_path):
    exp,records,d = finished
    text = write_report(exp, records, 'smoke', path=tmp_path/'r.html', checkpoints=d/'ck').read_text()
    for k in TINY.tags: assert k in text
    m = np.mean([tag_values(r, 'valid')['globules'] for r in records if r['row']=='by region'])
    assert f'{m:.3f} (' in text and 'Left out' not in text and 'superpixels' in text

# --- bad input ----------------------------------------------------------------------------------------------
def test_bad_scores():
    it = pd.DataFrame(dict(file=list('ab'), label=0, group=list('ab')))
    with pytest.raises(ShapeError): tag_scores(np.zeros((2,2)), np.zeros((2,3)), it, list('xyz'))
    s = tag_scores(np.zeros((2,1)), np.array([[1.],[np.nan]]), it, ['x'])
    assert np.isnan(tag_draws(s, np.ones((1,2)))).all() and s['truth']==[[1],[None]]
