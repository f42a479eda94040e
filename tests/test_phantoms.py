"The texture phantom: deterministic, as large and as strong as asked, not solved by a global number"
import hashlib, time
import numpy as np
import pytest
from conftest import drawn
from hypothesis import given, settings, strategies as st
from scipy.ndimage import gaussian_filter, label
from sklearn.metrics import roc_auc_score
from medattn_nb.core import ArgumentError
from medattn_nb.data.datasets import check_leak, load
from medattn_nb.data.phantoms import _store, blob, forest_auc, texture, vessel, whole_numbers

def phantom(**kw): return load('phantom-texture', **{'n':60, **kw})
def pairs(d): return [(d.image(i).astype(float), d.mask(i)) for i in np.flatnonzero(d.labels)]

def test_defaults():
    d = load('phantom-texture')
    assert len(d)==600 and d.info.synthetic and d.classes==['plain','lesion'] and d.image(0).shape==(96,96) and d.image(0).dtype==np.uint8
    assert d.describe().to_numpy().tolist()==[[200,200,400],[50,50,100],[50,50,100],[300,300,600]]
    assert not d.items.marker.any() and d.root is None

def test_the_data_of_our_records():
    "Results in the ledger belong to these images: a change needs a new VERSION"
    assert load('phantom-texture').fingerprint=='74c1caea024237426869c05f6464c57be3b5f17c944c0176ecce869f2a9cccca'
    assert drawn(load('phantom-texture'))==pytest.approx([122.92, 43.0, 7.18, 7.08], abs=.05)

def test_deterministic():
    a = [phantom().image(i) for i in range(6)]
    _store.clear()
    d = phantom()
    b = [d.image(i) for i in (5,4,3,2,1,0)][::-1]
    assert all((x==y).all() for x,y in zip(a, b))

def test_an_image_is_the_callers_own():
    d = phantom()
    d.image(1)[:] = 0; d.mask(1)[:] = True
    assert d.image(1).any() and not d.mask(1).all()

def test_images_differ():
    d = phantom()
    assert len({hashlib.sha256(d.image(i).tobytes()).hexdigest() for i in range(60)}|{hashlib.sha256(phantom(seed=1).image(i).tobytes()).hexdigest() for i in range(60)})==120

@pytest.mark.parametrize('kw', [dict(seed=1), dict(size=64), dict(contrast=1.), dict(lesion_size=.2), dict(distractors=0), dict(groups=2), dict(artefact=.9)])
def test_fingerprint_knows_every_option(kw): assert phantom(**kw).fingerprint!=phantom().fingerprint

def test_fingerprint_knows_no_more(): assert phantom(fractions=(.5,.25,.25)).fingerprint==phantom().fingerprint!=phantom(fractions=(.5,.25,.25)).split_fingerprint

def test_masks():
    d = phantom()
    for i in range(60): assert d.mask(i).any()==bool(d.labels[i]) and d.mask(i).shape==(96,96)
    assert all(label(m)[1]==1 and not (m[0].any() or m[-1].any() or m[:,0].any() or m[:,-1].any()) for _,m in pairs(d))

@pytest.mark.parametrize('size', [16,33,64,127,128])
def test_any_size(size):
    d = phantom(size=size, n=4)
    assert d.image(3).shape==(size,size) and d.mask(3).any()

def test_size_is_resolution_only():
    "A lesion lies in the same place whatever the number of pixels"
    a,b = phantom(size=64, n=12).mask_tensors(64),phantom(size=128, n=12).mask_tensors(64)
    assert ((a&b).sum()/(a|b).sum())>.9

@pytest.mark.parametrize('lesion_size', [.1,.2,.3,.5])
def test_area(lesion_size):
    area = np.mean([m.mean() for _,m in pairs(phantom(n=200, lesion_size=lesion_size))])
    assert abs(area/(np.pi/4*lesion_size**2)-1)<.12

def test_contrast():
    def measured(c): return np.mean([x[m].mean()-x[~m].mean() for x,m in pairs(phantom(contrast=c, distractors=0.))])
    c = [measured(o) for o in (0.,.5,1.,2.,3.)]
    assert abs(c[0])<5 and (np.diff(c)>3).all() and 15<c[2]-c[0]<30

def test_lesion_has_its_own_grain():
    def fine(x, m): return (x-gaussian_filter(x, 2))[m].std()
    assert all(fine(x, m)>1.5*fine(x, ~m) for x,m in pairs(phantom(distractors=0.)))

def test_distractors():
    "Brighter with every distractor, in both classes alike, and the lesion stays where it is"
    def mean(k, c): return np.mean([d.image(i).mean() for d in [phantom(distractors=k)] for i in np.flatnonzero(d.labels==c)])
    for c in (0,1): assert mean(0, c)<mean(2, c)<mean(6, c)
    assert all((a==b).all() for (_,a),(_,b) in zip(pairs(phantom(distractors=0)), pairs(phantom(distractors=6))))

def test_no_global_number_tells():
    for seed in range(3):
        d = load('phantom-texture', seed=seed)
        x = d.tensors(96)[:,0].numpy().astype(float)
        for f in (x.mean((1,2)), x.std((1,2)), np.median(x, (1,2))): assert .35<roc_auc_score(d.labels, f)<.75
        local = [o.max()/np.median(o) for o in (gaussian_filter((i-gaussian_filter(i, 2))**2, 6) for i in x)]
        assert roc_auc_score(d.labels, local)>.9

def test_artefact():
    d = load('phantom-texture', artefact=.9)
    rate = d.items.groupby(['split','label']).marker.mean()
    assert rate['train',0]==rate['valid',0]==0 and abs(rate['train',1]-.9)<.08 and abs(rate['test',0]-.45)<.2 and abs(rate['test',1]-.45)<.2
    plain = load('phantom-texture')
    i = int(np.flatnonzero(d.items.marker)[0])
    other = d.image(i)!=plain.image(i)
    assert other.any() and not other[12:].any() and not other[:,12:].any() and (d.mask(i)==plain.mask(i)).all()
    both = load('phantom-texture', artefact=(1,1))
    assert both.items.marker.all()

def test_groups():
    d = check_leak(phantom(n=61, groups=4))
    assert d.items.group.nunique()==16 and (d.items.groupby('group').label.nunique()==1).all()
    far = np.abs(np.subtract.outer(m:=[d.image(i).mean() for i in range(60)], m))
    same = np.equal.outer(d.items.number.to_numpy()[:60]//4, np.arange(60)//4)
    assert far[same].mean()<.5*far[~same].mean()

@pytest.mark.parametrize('kw', [dict(n=1), dict(size=8), dict(lesion_size=.9), dict(lesion_size=0), dict(contrast=-1), dict(distractors=-1), dict(groups=0), dict(artefact=1.5), dict(artefact=(.1,)),
                                dict(fractions=(.5,.5)), dict(fractions=(.5,.2,.2)), dict(seeds=3)])
def test_bad_options(kw):
    with pytest.raises(ArgumentError): phantom(**kw)

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([32,65,96]), st.floats(.1, .6), st.floats(0, .8))
def test_blob(seed, size, diameter, rough):
    b = blob(np.random.default_rng(seed), size, diameter, rough)
    assert b.shape==(size,size) and b.min()>=0 and b.max()<=1 and (b>=.5).any()
    assert abs((b>=.5).mean()/(np.pi/4*diameter**2)-1)<.35

@pytest.mark.parametrize('size', [32,33,128])
def test_texture(size):
    t = np.stack([texture(np.random.default_rng(i), size, [1], (6,)) for i in range(60)])
    assert abs(t.mean())<.02 and abs(t.var()-1)<.1
    f = np.abs(np.fft.rfft(t, axis=2)).mean((0,1))
    assert 3<=f[1:].argmax()+1<=7

def test_vessel():
    v = vessel(np.random.default_rng(0), 64)
    assert v.min()>=0 and v.max()<=1 and v.mean()<.3

def test_speed():
    "Hundreds of images a second; the limit leaves room for a busy machine"
    d = phantom(n=100, size=128, seed=99)
    t = time.thread_time()
    for i in range(100): d.image(i)
    assert time.thread_time()-t<4

NAMES = 'texture','renal','dermoscopy','brain','stroke','chest','fundus'

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kw', [dict(n=20.5), dict(n='20'), dict(n=1), dict(size=100.5), dict(size='64'), dict(seed=1.5), dict(fractions=dict(train=.8, test=.2)),
                                dict(fractions=(float('nan'),.5,.5)), dict(fractions=(float('inf'),.5,.5)), dict(fractions=(0,0,0)), dict(fractions=('.5','.5',0)), dict(fractions=.8)])
def test_every_phantom_refuses_in_words(name, kw):
    "Half an image, a size in letters, shares of another kind: one sentence, never a traceback from numpy"
    with pytest.raises(ArgumentError, match=next(iter(kw))): load(f'phantom-{name}', **{'n':20, **kw})

@pytest.mark.parametrize('name,kw', [('texture',dict(groups=1.5)), ('texture',dict(contrast='2')), ('renal',dict(looks=1.5)), ('renal',dict(frames=2.5)), ('dermoscopy',dict(superpixels=8.5)), ('dermoscopy',dict(groups=1.5)),
                                     ('brain',dict(slices=2.5)), ('brain',dict(noise='0')), ('stroke',dict(slices=2.5)), ('chest',dict(contrast='1')), ('fundus',dict(per_quadrant=1.5)), ('fundus',dict(groups=1.5))])
def test_options_have_types(name, kw):
    with pytest.raises(ArgumentError, match=f'{next(iter(kw))}.*number'): load(f'phantom-{name}', n=24, **kw)

def test_whole_numbers():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64,48,3)).astype(np.uint8)
    v = whole_numbers(x)
    assert v.shape==(63,) and np.isfinite(v).all() and np.allclose(v[:3], x.mean((0,1)), rtol=1e-5) and np.allclose(v[3:6], x.std((0,1)), rtol=1e-5)
    assert np.isfinite(whole_numbers(np.zeros((1,1)))).all() and np.isfinite(whole_numbers(x[:7,:200,0])).all()
    wave = 100+50*np.sin(2*np.pi*8*np.arange(64)/64)[None]*np.ones((64,1)) # 8 cycles lie in the third octave, 6 to 12
    assert whole_numbers(wave)[-5:].argmax()==2

def test_forest_hears_texture_and_nothing_else():
    assert forest_auc(phantom(n=150, contrast=0.))<.75
    assert forest_auc(phantom(n=150, contrast=3.))>.9
    for bad in (phantom(fractions=(1,0,0)),phantom(fractions=(0,0,1)),phantom().take(phantom().labels==1)):
        with pytest.raises(ArgumentError, match='test side'): forest_auc(bad)

def test_forest_on_pictures_of_one_size():
    data = load('phantom-texture', n=60, size=32, contrast=2.)
    assert forest_auc(data, size=32)==forest_auc(data) and 0<=forest_auc(data, size=16)<=1
