"The dermoscopy phantom: attributes as rare and as small as asked, inside the lesion, made of superpixels, on skin of the tone asked for"
import numpy as np
import pytest
from conftest import drawn, real
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score
from skimage.color import rgb2lab
from medattn_nb.core import ArgumentError
from medattn_nb.data.datasets import check_leak, load
from medattn_nb.data.phantom_dermoscopy import (ATTRIBUTES, BLANK, OCCLUSIONS, RATIO, DermoscopyOptions, clouds, draw_dermoscopy, ita, superpixel_map,
                                                _area, _chance, _deck, _has, _malignant, _shares)
from medattn_nb.data.phantoms import _store

BARE = {**dict.fromkeys(OCCLUSIONS, 0), 'lighting':0}
def phantom(**kw): return load('phantom-dermoscopy', **{'n':24, 'size':64, **kw})

def test_defaults():
    d = load('phantom-dermoscopy')
    assert len(d)==600 and d.info.synthetic and d.classes==['benign','malignant'] and d.info.masks==d.info.attributes==ATTRIBUTES
    assert d.image(0).shape==(128,128,3) and d.image(0).dtype==np.uint8 and d.masks(0).shape==(5,128,128) and d.masks(0).dtype==bool
    assert d.items.split.value_counts().to_dict()==dict(train=400, valid=100, test=100) and not d.items.marker.any()

def test_the_data_of_our_records():
    "Results in the ledger belong to these images: a change needs a new VERSION"
    assert load('phantom-dermoscopy').fingerprint=='f30c87dbb78fb8b77a473982c5b29c633265d7b31ac54034b85b9d5a24d373b5'
    assert drawn(load('phantom-dermoscopy'))==pytest.approx([135.15, 56.14, 4.47, 4.24], abs=.05)

def test_deterministic():
    a = [phantom().image(i) for i in range(6)]
    _store.clear()
    d = phantom()
    assert all((x==y).all() for x,y in zip(a, [d.image(i) for i in (5,4,3,2,1,0)][::-1]))

def test_an_image_is_the_callers_own():
    d = phantom()
    d.image(1)[:] = 0; d.masks(1)[:] = True
    assert d.image(1).any() and not d.masks(1).all()

OTHER = dict(seed=1, size=65, blank=(50,)*5, ratio=(13,.67,1.27,3.09,.42), pooled=False, masks='both', area=.33, strength=.9, superpixels=20, malignant=.3, risk=(0,)*5, irregular=.5,
             tone=(0,60), lighting=.5, hair=.1, gel=.1, ink=.1, patch=.1, ruler=.1, corners=.1, groups=2, artefact=.9)
@pytest.mark.parametrize('k', OTHER)
def test_fingerprint_knows_every_option(k): assert phantom(**{k:OTHER[k]}).fingerprint!=phantom().fingerprint

def test_fingerprint_knows_no_more():
    a,b = phantom(),phantom(fractions=(.5,.25,.25))
    assert a.fingerprint==b.fingerprint and a.split_fingerprint!=b.split_fingerprint and phantom(artefact_kind='hair').fingerprint==a.fingerprint

@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, 100)]*5), st.integers(0, 99), st.integers(0, 5))
def test_blank_is_exact_in_every_hundred(blank, seed, block):
    try: o = DermoscopyOptions(blank=blank, ratio=tuple(.2*(100-b)/100+1e-6 for b in blank), seed=seed)
    except ArgumentError: return
    has = np.array([_has(o, i) for i in range(100*block, 100*block+100)])
    assert (100-has.sum(0)==blank).all()

def test_blank_with_a_fraction():
    has = np.array([_has(DermoscopyOptions(blank=(41.3,93.1,73.9,76.8,96.2)), i) for i in range(1000)])
    assert (1000-has.sum(0)).tolist()==[413,931,739,768,962]

@pytest.mark.parametrize('seed', range(3))
def test_table1(seed):
    "Over 6,000 images, without drawing them"
    o = DermoscopyOptions(seed=seed)
    asked = np.mean([np.array(_shares(o, i, _has(o, i)))*_area(o, i) for i in range(6000)], 0)
    assert (np.abs(100*asked/RATIO-1)<(.02,.06,.04,.04,.09)).all()
    assert abs(np.mean([_area(o, i) for i in range(6000)])-.32)<.002

@pytest.mark.parametrize('size', [64,97,128])
def test_masks_cover_what_was_asked(size):
    "As drawn, in pixels, against the shares that were drawn"
    o = DermoscopyOptions(size=size, blank=(20,)*5, ratio=(14,4,4,6,6), masks='both')
    asked,got = [],[]
    for i in range(60):
        has = _has(o, i)
        asked.append([*np.array(_shares(o, i, has))*_area(o, i),_area(o, i)])
        m = draw_dermoscopy(o, i)[1]
        got.append(m.mean((1,2)))
        assert m[:5].any((1,2)).tolist()==[bool(h) for h in has] and not (m[:5]&~m[5]).any()
    assert np.abs(np.mean(got, 0)/np.mean(asked, 0)-1).max()<.06 and np.abs(np.subtract(got, asked)).max()<.02

def test_pooled_or_not():
    a,b = DermoscopyOptions(),DermoscopyOptions(pooled=False)
    def where(o): return np.array([[s*_area(o, i) if h else np.nan for s,h in zip(_shares(o, i, _has(o, i)), _has(o, i))] for i in range(2000)])
    assert np.allclose(100*np.nanmean(where(a), 0), np.array(RATIO)/(1-np.array(BLANK)/100), rtol=.12)
    assert np.allclose(100*np.nanmean(where(b), 0), RATIO, rtol=.2)

def test_planes():
    d = {k:phantom(masks=k) for k in ('attributes','lesion','both')}
    assert [o.info.masks for o in d.values()]==[ATTRIBUTES,('lesion',),(*ATTRIBUTES,'lesion')]
    for i in range(4): assert (d['both'].masks(i)==np.concatenate([d['attributes'].masks(i),d['lesion'].masks(i)])).all() and (d['both'].image(i)==d['lesion'].image(i)).all()
    assert d['both'].mask_tensors(64, kind='planes').shape==(24,6,64,64) and d['both'].mask_tensors(64, kind='planes')[:,5].flatten(1).any(1).all()

def test_attributes_are_those_of_the_masks():
    d = phantom(n=60)
    assert d.attributes.shape==(60,5) and (d.attributes==np.stack([d.masks(i).any((1,2)) for i in range(60)])).all()

def test_overlap():
    d = phantom(blank=(10,)*5, ratio=(14,4,4,8,6))
    assert np.mean([(d.masks(i).sum(0)>1).mean() for i in range(24)])>.02

def test_made_of_superpixels():
    d = phantom(n=12, size=128, blank=(20,)*5, ratio=(14,4,4,6,6), masks='both')
    for i in range(12):
        sp,m = superpixel_map(d, i),d.masks(i)
        assert sp.shape==(128,128) and set(np.unique(sp))==set(range(sp.max()+1)) and 400<sp.max()<900
        inside = np.stack([np.bincount(sp.ravel(), o.ravel())/np.bincount(sp.ravel()) for o in m])
        assert ((inside==0)|(inside==1)).all()

def test_where_they_grow():
    "Globules and streaks at the border of the lesion, cysts scattered, networks in one place"
    from scipy.ndimage import distance_transform_edt, label
    depth,parts = np.zeros(5),np.zeros(5)
    d = phantom(n=30, size=96, blank=(0,)*5, ratio=(10,)*5, masks='both')
    for i in range(30):
        m = d.masks(i)
        edt = distance_transform_edt(m[5])
        depth += [edt[o].mean()/edt[m[5]].mean()/30 for o in m[:5]]
        parts += [label(o)[1]/30 for o in m[:5]]
    assert max(depth[3:])<.75 and .85<depth[2]<1.15 and depth[1]>1
    assert parts[2]>2*max(parts[0], parts[1], parts[3], parts[4])

def effect(k, sign, at=None):
    "Mean change of the grey value inside the region of attribute `k` when its pattern is drawn"
    o = dict(size=128, blank=tuple(0 if j==k else 100 for j in range(5)), ratio=(16,)*5, tone=(50,50), **BARE)
    return [draw_dermoscopy(DermoscopyOptions(**o, seed=s), 0)[0].astype(float).mean(2) for s in range(6)],[draw_dermoscopy(DermoscopyOptions(**o, seed=s), 0)[1][k] for s in range(6)]

@pytest.mark.parametrize('k', range(5))
def test_patterns_are_local(k):
    "Fine structure inside the region, not in the rest of the image"
    from scipy.ndimage import gaussian_filter
    pics,masks = effect(k, 1)
    for x,m in zip(pics, masks):
        fine = (x-gaussian_filter(x, 2.5))**2
        assert fine[m].mean()>2*fine[~m].mean()

def test_signs():
    "Cysts are brighter than the lesion's surroundings of them, globules and streaks darker"
    from scipy.ndimage import gaussian_filter
    for k,tail in ((2,99.5),(3,3),(4,3)):
        for x,m in zip(*effect(k, 1)):
            fine = (x-gaussian_filter(x, 4))[m]
            assert np.percentile(fine, tail)>12 if k==2 else np.percentile(fine, tail)<-5

def test_ita():
    rgb = np.random.default_rng(0).uniform(.2, .95, (500,3))
    lab = rgb2lab(rgb[None])[0]
    assert np.abs((ita(rgb)-np.degrees(np.arctan2(lab[:,0]-50, lab[:,2]))+180)%360-180).max()<.5

@pytest.mark.parametrize('tone', [65,45,20,0,-25,-50])
def test_skin_has_the_tone_asked_for(tone):
    d = phantom(n=8, tone=(tone,tone), masks='lesion', **BARE)
    got = [ita(np.median(d.image(i)[~d.mask(i)], 0)/255) for i in range(8)]
    assert abs(np.mean(got)-tone)<4 and (d.items.tone==tone).all()

def test_size_is_resolution_only():
    a,b = phantom(size=64, n=12, masks='both'),phantom(size=128, n=12, masks='both')
    x,y = a.mask_tensors(64, kind='planes'),b.mask_tensors(64, kind='planes')
    assert ((x&y).sum()/(x|y).sum())>.88 and ((x&y)[:,5].sum()/(x|y)[:,5].sum())>.95
    assert all(np.corrcoef(p.flatten(), q.flatten())[0,1]>.95 for p,q in zip(a.tensors(64).float(), b.tensors(64).float()))

@pytest.mark.parametrize('kw', [dict(lighting=2.), dict(hair=1), dict(strength=.5), dict(tone=(10,10)), dict(ink=1, ruler=1, gel=1, corners=1, patch=1)])
def test_a_knob_leaves_the_masks(kw):
    a,b = phantom(n=6),phantom(n=6, **kw)
    assert all((a.masks(i)==b.masks(i)).all() for i in range(6)) and any((a.image(i)!=b.image(i)).any() for i in range(6))

@pytest.mark.parametrize('k', OCCLUSIONS)
def test_occlusions(k):
    none,here = phantom(n=8, **BARE),phantom(n=8, **{**BARE, k:1})
    changed = [(none.image(i)!=here.image(i)).any(2).mean() for i in range(8)]
    assert min(changed)>.001 and max(changed)<.9
    some = phantom(n=100, **{**BARE, k:.5})
    clear = phantom(n=100, **BARE)
    assert .3<np.mean([(some.image(i)!=clear.image(i)).any() for i in range(100)])<.7

@pytest.mark.parametrize('size', [32,33,127,200])
def test_any_size(size):
    d = phantom(size=size, n=3, masks='both', **dict.fromkeys(OCCLUSIONS, 1))
    assert d.image(2).shape==(size,size,3) and d.masks(2).shape==(6,size,size) and d.masks(2)[5].any()

def test_label_follows_the_rule():
    o = DermoscopyOptions()
    y,p = np.array([_malignant(o, i) for i in range(5000)]),np.array([_chance(o, i) for i in range(5000)])
    assert abs(y.mean()-.2)<.01 and abs(p.mean()-.2)<.01
    has = np.array([_has(o, i) for i in range(5000)])
    for k in range(5):
        gain = y[has[:,k]==1].mean()-y[has[:,k]==0].mean()
        assert gain>.4 if k in (1,4) else abs(gain)<.06
    for q in np.unique(p.round(6)): assert abs(y[p.round(6)==q].mean()-q)<.15
    assert roc_auc_score(y, p)==pytest.approx(.688, abs=.02)

@pytest.mark.parametrize('share', [.05,.5,.9])
def test_share_of_malignant(share): assert abs(np.mean(load('phantom-dermoscopy', n=400, malignant=share).labels)-share)<.04

def test_malignant_looks_irregular():
    "The same lesion, benign and malignant: longer outline; with irregular=0 the very same picture"
    def rim(label, irregular):
        m = [draw_dermoscopy(DermoscopyOptions(masks='lesion', irregular=irregular), i, label)[1][0] for i in range(20)]
        return np.mean([(np.diff(o.astype(int), axis=0)!=0).sum()+(np.diff(o.astype(int), axis=1)!=0).sum() for o in m])
    assert rim(1, 1)>1.03*rim(0, 1) and rim(1, 0)==rim(0, 0)

def test_no_global_number_tells():
    d = load('phantom-dermoscopy', size=64)
    x = d.tensors(64).float().mean(1).numpy()
    for y in (d.labels,d.items['has:pigment_network'],d.items['has:globules'],d.items['has:milia_like_cyst']):
        for f in (x.mean((1,2)),x.std((1,2)),np.median(x, (1,2))): assert .3<roc_auc_score(y, f)<.7

def test_artefact():
    d = load('phantom-dermoscopy', n=600, size=64, artefact=.9, artefact_kind='patch')
    rate = d.items.groupby(['split','label']).marker.mean()
    assert rate['train',0]==rate['valid',0]==0 and abs(rate['train',1]-.9)<.12 and abs(rate['test',0]-.45)<.2
    i,j = np.flatnonzero(d.items.marker)[0],np.flatnonzero(~d.items.marker)[0]
    free = load('phantom-dermoscopy', n=600, size=64, patch=0)
    assert (d.image(i)!=free.image(i)).any() and (d.image(j)==free.image(j)).all() and (d.masks(i)==free.masks(i)).all()

def test_groups():
    d = check_leak(phantom(n=61, groups=4))
    assert d.items.group.nunique()==16 and (d.items.groupby('group').tone.nunique()==1).all() and d.items.tone.nunique()>10

@pytest.mark.parametrize('kw', [dict(n=1), dict(size=16), dict(size=2000), dict(blank=(1,2)), dict(blank=(-1,0,0,0,0)), dict(ratio=(60,.67,1.27,3.09,.42)), dict(ratio=(0,1,1,1,1)), dict(area=.2), dict(area=.6),
                                dict(masks='all'), dict(tone=(60,0)), dict(tone=(0,90)), dict(hair=2), dict(strength=-1), dict(superpixels=4), dict(malignant=0), dict(risk=(1,)), dict(groups=0),
                                dict(artefact=2), dict(artefact=.5, artefact_kind='sunburn'), dict(fractions=(.5,.5)), dict(seeds=3)])
def test_bad_options(kw):
    with pytest.raises(ArgumentError): phantom(**kw)

def test_lists_will_do(): assert phantom(blank=list(BLANK), ratio=list(RATIO), tone=[0,70]).fingerprint==phantom().fingerprint

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([32,65,200]), st.sampled_from([(4,),(6,12),(6,12,24)]))
def test_clouds(seed, size, cells):
    f = clouds(np.random.default_rng(seed), size, cells)
    assert f.shape==(size,size) and f.dtype==np.float32 and np.isfinite(f).all() and .3<f.std()<2 and abs(f).max()<8

def test_real_blanks():
    "The table of 2,450 real images agrees with the paper's percentages"
    import pandas as pd
    t = pd.read_csv(real('isic2017-skin-lesion')/'attributes_isic2018_task2.csv')
    assert np.abs(100*(1-t[list(ATTRIBUTES)].mean())-np.array(BLANK)).max()<.5

def test_numpy_numbers_deal_the_same_decks():
    "A table asks with numpy's whole numbers, a reader of one picture with Python's: both get the same image, whoever asks first"
    o = DermoscopyOptions(seed=77)
    a = [(_has(o, int(i)),_malignant(o, int(i))) for i in range(100)]
    _deck.cache_clear()
    assert a==[(_has(o, i),_malignant(o, i)) for i in np.arange(100)]
