"The chest phantom: opacity in the lungs, nothing that a global number tells, and a shortcut only on request"
import hashlib, time
import numpy as np
import pytest
from conftest import drawn
from scipy.ndimage import binary_erosion, gaussian_filter, label
from sklearn.metrics import roc_auc_score
from medattn_nb.core import ArgumentError
from medattn_nb.data.datasets import check_leak, load
from medattn_nb.data.phantom_chest import ChestOptions, _patient, draw_chest
from medattn_nb.data.phantoms import _store

def phantom(**kw): return load('phantom-chest', **{'n':40, 'size':64, **kw})
def planes(d): return np.stack([d.masks(i) for i in range(len(d))])
def ill(d): return np.flatnonzero(d.labels)

def test_defaults():
    d = load('phantom-chest')
    assert len(d)==600 and d.info.synthetic and d.classes==['normal','pneumonia'] and d.info.masks==('opacity',)
    assert d.describe().to_numpy().tolist()==[[200,200,400],[50,50,100],[50,50,100],[300,300,600]]
    assert d.image(0).shape==(128,128) and d.image(0).dtype==np.uint8 and d.masks(0).shape==(1,128,128)
    assert not d.items.bedside.any() and d.items.kind.value_counts().to_dict()=={'normal':300,'patchy':150,'diffuse':150} and check_leak(d) is d

def test_the_data_of_our_records():
    "Results in the ledger belong to these images: a change needs a new VERSION"
    assert load('phantom-chest').fingerprint=='12c1ea0e99175d22d8d7867915b82d89e694c9f887c6b8eb71e11c544e30b125'
    assert drawn(load('phantom-chest'))==pytest.approx([111.6, 69.81, 5.37, 4.89], abs=.05)

def test_deterministic():
    a = [phantom().image(i) for i in range(8)]
    _store.clear(); _patient.cache_clear()
    d = phantom()
    b = [d.image(i) for i in (7,6,5,4,3,2,1,0)][::-1]
    assert all((x==y).all() for x,y in zip(a, b))

def test_images_differ():
    assert len({hashlib.sha256(d.image(i).tobytes()).hexdigest() for d in (phantom(), phantom(seed=1)) for i in range(40)})==80

OTHER = dict(seed=1, size=65, kind='patchy', contrast=.5, extent=.6, exposure=0, rotation=0, lungs=True, shortcut=.9, classes=3)
@pytest.mark.parametrize('k', OTHER)
def test_fingerprint_knows_every_option(k): assert phantom(**{k:OTHER[k]}).fingerprint!=phantom().fingerprint
def test_fingerprint_knows_no_more(): assert phantom(fractions=(.5,.25,.25)).fingerprint==phantom().fingerprint!=phantom(fractions=(.5,.25,.25)).split_fingerprint

@pytest.mark.parametrize('k', [k for k in OTHER if k!='lungs'])
def test_options_change_pictures(k):
    a,b = phantom(),phantom(**{k:OTHER[k]})
    assert any(a.image(i).shape!=b.image(i).shape or (a.image(i)!=b.image(i)).any() for i in range(40))

# --- masks ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw', [dict(), dict(kind='patchy', extent=.5, size=48, n=200), dict(kind='diffuse', extent=.5, size=48, n=100), dict(rotation=2, extent=1.5), dict(contrast=0), dict(classes=3)])
def test_opacity_lies_in_the_lungs_of_the_ill(kw):
    d = phantom(**kw, lungs=True)
    m = planes(d)
    assert d.info.masks==('lungs','opacity') and not (m[:,1]&~m[:,0]).any() and (m[:,1].any((1,2))==(d.labels>0)).all()
    assert all((d.labelmap(i)==m[i,0].astype(int)+m[i,1]).all() for i in (0,1))

def test_lungs_leave_the_picture():
    a,b = phantom(),phantom(lungs=True)
    assert all((a.image(i)==b.image(i)).all() and (a.masks(i)[0]==b.masks(i)[1]).all() for i in range(40))

def test_two_lungs():
    m = planes(phantom(lungs=True, size=128, rotation=2))[:,0]
    assert all(label(o)[1]==2 for o in m) and .12<m.mean()<.3

def test_lungs_are_dark_and_opacity_is_bright():
    d = phantom(lungs=True, kind='patchy', size=96)
    for i in range(40):
        x,(lung,op) = d.image(i).astype(float),d.masks(i)
        assert x[lung&~op].mean()<x[~lung&(x>30)].mean()
    bright = [d.image(i)[o].mean()>d.image(i)[l&~o].mean() for i in ill(d) for l,o in [d.masks(i)]]
    assert np.mean(bright)>.95

def test_contrast_changes_nothing_but_the_opacity():
    none,full = phantom(contrast=0),phantom(contrast=1.)
    for i in range(40):
        a,b = none.image(i).astype(int),full.image(i).astype(int)
        assert (none.masks(i)==full.masks(i)).all() and (b>=a-1).all() and ((a==b).all()==(full.labels[i]==0))
    def rise(c): return np.mean([phantom(contrast=c).image(i).mean()-none.image(i).mean() for i in ill(none)])
    assert 0<rise(.3)<rise(.8)<rise(1.2)

def test_extent():
    def area(kind, e): return np.mean([m[1].sum()/m[0].sum() for d in [phantom(n=80, kind=kind, extent=e, lungs=True)] for m in map(d.masks, ill(d))])
    assert [abs(area('diffuse', e)-.55*e)<.05 for e in (.5,1.,1.3)]==[True]*3
    assert 2.8<area('patchy', 1.)/area('patchy', .5)<4.6

def test_patches_are_few_and_haze_is_on_both_sides():
    patches,haze = phantom(n=80, kind='patchy', size=96),phantom(n=80, kind='diffuse', size=96, lungs=True)
    assert np.mean([label(patches.mask(i))[1] for i in ill(patches)])<3.5
    both = [all((haze.masks(i)[1]&(lab==k)).any() for k in (1,2)) for i in ill(haze) for lab in [label(haze.masks(i)[0])[0]]]
    assert np.mean(both)>.9

@pytest.mark.parametrize('size', [48,65,127,256])
def test_any_size(size):
    d = phantom(size=size, n=4)
    assert d.image(3).shape==(size,size) and d.mask(3).any()

def test_size_is_resolution_only():
    a,b = (phantom(size=s, n=16).mask_tensors(64) for s in (64,128))
    assert (a&b).sum()/(a|b).sum()>.9
    a,b = (phantom(size=s, n=16).tensors(32).float().flatten() for s in (64,128))
    assert np.corrcoef(a, b)[0,1]>.99

# --- classes -------------------------------------------------------------------------------------------
def test_three_classes():
    d = phantom(classes=3, n=60)
    assert d.classes==['normal','patchy','diffuse'] and (d.items.kind==d.items['class']).all() and np.bincount(d.labels).tolist()==[20]*3
    two = phantom(n=60)
    assert (two.image(0)==d.image(0)).all()

@pytest.mark.parametrize('kind,want', [('patchy',{'normal','patchy'}), ('diffuse',{'normal','diffuse'}), ('mixed',{'normal','patchy','diffuse'})])
def test_kind(kind, want): assert set(phantom(kind=kind).items.kind)==want

def test_no_global_number_tells():
    for seed in range(2):
        d = phantom(n=300, seed=seed)
        x = d.tensors(64)[:,0].numpy().astype(float)
        for f in (x.mean((1,2)), x.std((1,2)), np.median(x, (1,2)), *np.percentile(x, (5,25,75,95), axis=(1,2))): assert .35<roc_auc_score(d.labels, f)<.65

def spot(x, lung):
    z = np.log((x+.5)/(255.5-x))
    w = binary_erosion(lung, iterations=3).astype(float)
    near,far = (gaussian_filter(z*w, s)/np.maximum(gaussian_filter(w, s), 1e-3) for s in (3,12))
    return np.percentile((near-far)[w>0], 98)/(np.percentile(z[~lung], 95)-np.percentile(z[w>0], 10))

def test_who_knows_the_lungs_finds_it():
    d = phantom(n=200, size=96, kind='patchy', lungs=True)
    assert roc_auc_score(d.labels, [spot(d.image(i).astype(float), d.masks(i)[0]) for i in range(200)])>.85
    none = phantom(n=160, size=96, kind='patchy', lungs=True, contrast=0)
    assert abs(roc_auc_score(none.labels, [spot(none.image(i).astype(float), none.masks(i)[0]) for i in range(160)])-.5)<.15

# --- the shortcut --------------------------------------------------------------------------------------
def test_shortcut():
    d = phantom(n=1200, shortcut=.9)
    rate = d.items.groupby(['split','label']).bedside.mean()
    assert rate['train',0]==rate['valid',0]==0 and abs(rate['train',1]-.9)<.05 and abs(rate['test',0]-.45)<.15 and abs(rate['test',1]-.45)<.15
    assert phantom(shortcut=(1,1)).items.bedside.all() and not phantom(shortcut=(0,0)).items.bedside.any()
    three = phantom(n=600, classes=3, shortcut=(0,1,.5)).items
    rate = three[three.split=='train'].groupby('label').bedside.mean()
    assert rate[0]==0 and rate[1]==1 and abs(rate[2]-.5)<.15

def test_bedside_films():
    "Flatter, brighter, same masks; the mark of a tube is a line, so most pixels change by exposure alone"
    a,b = phantom(shortcut=(0,0)),phantom(shortcut=(1,1))
    for i in range(40):
        x,y = a.image(i).astype(float),b.image(i).astype(float)
        assert (a.masks(i)==b.masks(i)).all() and y.std()<x.std() and y.mean()>x.mean()

def test_letters_do_not_tell():
    "As many among the ill as among the healthy, within chance"
    o = ChestOptions()
    has = np.array([_patient(o, i).letter for i in range(600)])
    assert abs(has.mean()-.7)<.06 and abs(has[::2].mean()-has[1::2].mean())<.1

@pytest.mark.parametrize('kw', [dict(n=1), dict(size=32), dict(size=999), dict(contrast=2), dict(extent=.1), dict(exposure=-1), dict(rotation=3), dict(classes=4), dict(kind='viral'), dict(classes=3, kind='patchy'), dict(classes=3, n=2),
                                dict(shortcut=1.5), dict(shortcut=(.1,)), dict(shortcut=(.1,.2,.3)), dict(fractions=(.5,.5)), dict(tubes=1)])
def test_bad_options(kw):
    with pytest.raises(ArgumentError): phantom(**kw)

def test_speed():
    "Two hundred films a second on an idle core; the limit leaves room for a busy machine"
    o = ChestOptions(seed=99)
    draw_chest(o, 0)
    t = time.thread_time()
    for i in range(60): draw_chest(o, i, ('normal','patchy','diffuse')[i%3])
    assert time.thread_time()-t<60*.05
