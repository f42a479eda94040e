"The stroke phantom: the central volume principle, the rules for core and penumbra, one body a case"
import hashlib, time
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from medattn_nb.core import ArgumentError
from medattn_nb.data.datasets import check_leak, load
from medattn_nb.data.phantom_brain import head, height, tissues
from medattn_nb.data.phantom_stroke import MAPS, TERRITORIES, StrokeOptions, _cases, _cut, _old, _perfusion, _stream, draw_stroke, plan

def phantom(**kw): return load('phantom-stroke', **{'n':48, 'size':96, **kw})
CBF,MTT,CBV,TMAX = range(4)

def test_defaults():
    d = load('phantom-stroke')
    assert len(d)==752 and d.info.synthetic and d.classes==['no lesion','lesion'] and d.info.masks==('lesion',) and d.root is None and MAPS==('CBF','MTT','CBV','TMAX')
    assert d.items.group.nunique()==94 and d.items.groupby('split').group.nunique().to_dict()=={'train':66, 'valid':9, 'test':19}
    x = d.image(0)
    assert x.shape==(128,128,4) and x.dtype==np.float32 and d.masks(0).shape==(1,128,128) and d.masks(0).dtype==bool
    assert d.take(range(8)).tensors((48,40)).shape==(8,4,48,40)

FINGERPRINT = '8e8541f0710856bff568a36e2eb1fd8fc4cd602696ff11fd35c6f56a1d04eb28'
CORE,BRAIN,SIGNAL = 4896,177023,[-1.612, 3.532, -1.204, 3.518]

def test_the_data_of_our_records():
    "Results in the ledger belong to these images: a change needs a new VERSION"
    assert load('phantom-stroke').fingerprint==FINGERPRINT
    d = load('phantom-stroke', n=24)
    x,m = np.stack([d.image(i) for i in range(24)]),np.stack([d.mask(i) for i in range(24)])
    assert abs(m.sum()-CORE)<=5 and abs(x.any(-1).sum()-BRAIN)<=20 and abs(x[m].mean(0)-SIGNAL).max()<.02

def test_deterministic_in_any_order():
    o = StrokeOptions(size=48)
    a = [draw_stroke(o, i) for i in range(8)]
    _cases.clear(); plan.cache_clear()
    b = [draw_stroke(o, i) for i in range(7, -1, -1)][::-1]
    assert all((x==y).all() and (m==n).all() for (x,m),(y,n) in zip(a, b))

def test_an_image_is_the_callers_own():
    d = phantom()
    d.image(1)[:] = 9; d.masks(1)[:] = True
    assert d.image(1).max()!=9 and not d.mask(1).all()

def test_cases_differ():
    d,e = phantom(n=24),phantom(n=24, seed=1)
    assert len({hashlib.sha256(o.image(i).tobytes()).hexdigest() for o in (d,e) for i in range(24)})==48

@pytest.mark.parametrize('kw', [dict(seed=1), dict(size=64), dict(slices=6), dict(foreground=.02), dict(empty=.4), dict(penumbra=1.), dict(deficit=.1), dict(infarcts=0.), dict(noise=0.), dict(units='physical'), dict(planes='both')])
def test_fingerprint_knows_every_option(kw): assert phantom(**kw).fingerprint!=phantom().fingerprint

def physical(**kw): return StrokeOptions(**{'size':96, 'units':'physical', 'planes':'both', 'noise':0., **kw})

def test_central_volume():
    "MTT = 60 CBV / CBF in every pixel before the noise, on average after it"
    for i in range(16):
        x,_ = draw_stroke(physical(), i)
        x = x[x.any(-1)].astype(float)
        assert (x>0).all() and abs(x[:,MTT]*x[:,CBF]/60/x[:,CBV]-1).max()<1e-4
    y = draw_stroke(physical(noise=.15), 3)[0]
    y = y[y[...,CBF]>10].astype(float)
    assert abs(y[:,MTT]*y[:,CBF]/60-y[:,CBV]).max()>.1 and abs((y[:,MTT]*y[:,CBF]/60).mean()/y[:,CBV].mean()-1)<.1

@pytest.mark.parametrize('kw', [{}, dict(infarcts=5.), dict(deficit=.28, penumbra=.2), dict(foreground=.05), dict(size=33)])
def test_the_rules(kw):
    "CBF below 30 % of the same tissue before the stroke in the core and nowhere else; Tmax above 6 s in core and penumbra and nowhere else"
    o = physical(**kw)
    for i in range(24):
        case,k = divmod(i, o.slices)
        x,(core,pen) = draw_stroke(o, i)
        z,h = float(height(o, k)),plan(o, case).h
        s = tissues(h, z, o.size)
        ratio = x[s.brain][:,CBF]/(_perfusion(o, case, h, z, s)[:,0]*_old(o, case, h, z, s))
        assert (((ratio<.3)!=core[s.brain])&(abs(ratio-.3)>1e-5)).sum()==0
        assert (((x[s.brain][:,TMAX]>6)!=(core|pen)[s.brain])&(abs(x[s.brain][:,TMAX]-6)>1e-4)).sum()==0
        assert not (core&pen).any() and not ((core|pen)&~s.brain).any() and not ((core|pen)&s.ventricle).any()

def test_one_side_only():
    for c in range(30):
        o = physical(size=64)
        p = plan(o, c)
        for k in np.flatnonzero(p.has):
            m = draw_stroke(o, c*o.slices+int(k))[1].any(0)
            x = tissues(p.h, float(height(o, k)), 64).x[m]
            assert (np.sign(x)==p.side).all()

def test_blood_is_late_but_there_in_the_penumbra():
    o = physical(infarcts=0.)
    rows = []
    for c in range(12):
        p = plan(o, c)
        for k in np.flatnonzero(p.has):
            x,(core,pen) = draw_stroke(o, c*8+int(k))
            s = tissues(p.h, float(height(o, k)), 96)
            before = np.zeros((96,96,3), np.float32)
            before[s.brain] = _perfusion(o, c, p.h, float(height(o, k)), s)
            rows.append([x[m][:,c1].mean()/before[m][:,c2].mean() for m in (core,pen) for c1,c2 in ((CBV,1),(CBF,0))])
    core_v,core_f,pen_v,pen_f = np.mean(rows, 0)
    assert core_f<.3 and core_v<.75 and .9<pen_v<1.1 and .3<pen_f<.68

@pytest.mark.parametrize('foreground', [.005,.02,.03])
def test_foreground_to_a_pixel(foreground):
    o = physical(foreground=foreground)
    for c in range(6):
        p = plan(o, c)
        for k in range(o.slices):
            core,pen = draw_stroke(o, c*o.slices+k)[1]
            assert core.sum()==(round(float(p.core[k])*96*96) or p.has[k])
            if p.has[k]: assert abs((core|pen).sum()-float(p.late[k])*96*96)<2

def test_mean_foreground():
    m = phantom(n=400, size=32, noise=0.).mask_tensors(32).float().mean((1,2,3))
    assert abs(m[m>0].mean()/.025-1)<.12

@pytest.mark.parametrize('empty,slices', [(0,2), (.3,12), (.65,20), (.95,8)])
def test_empty(empty, slices):
    labels = load('phantom-stroke', n=80*slices, slices=slices, empty=empty).labels.reshape(80, slices)
    assert abs(1-labels.mean()-empty)<.035
    assert all(len(np.flatnonzero(np.diff(np.r_[0,o,0])))<=2 for o in labels)

@pytest.mark.parametrize('size', [16,33,64,127])
@pytest.mark.parametrize('foreground', [.0005,.05])
def test_label_is_mask_at_any_size(size, foreground):
    d = phantom(size=size, foreground=foreground, n=24, planes='both')
    for i in range(24):
        assert d.image(i).shape==(size,size,4) and np.isfinite(d.image(i)).all() and d.masks(i)[0].any()==bool(d.labels[i])

def test_one_body():
    "The outline changes smoothly from slice to slice"
    d = phantom(n=120, slices=20, empty=.4, size=64, noise=0.)
    m = [d.mask(i) for i in range(120)]
    iou = [(m[i]&m[i+1]).sum()/(m[i]|m[i+1]).sum() for i in range(119) if d.labels[i] and d.labels[i+1] and i%20<19]
    assert len(iou)>40 and np.mean(iou)>.7 and min(iou)>.2

def test_normalised_by_case():
    d = phantom(size=64, n=24)
    for c in range(3):
        x = np.stack([d.image(i) for i in range(8*c, 8*c+8)])
        v = x[x.any(-1)].astype(float)
        assert abs(v.mean(0)).max()<1e-3 and abs(v.std(0)-1).max()<1e-3 and (x[:,0]==0).all()

def test_units():
    "z-scores are the physical maps, moved and scaled by case"
    a,b = phantom(units='physical', n=8),phantom(n=8)
    x,y = (np.stack([d.image(i) for i in range(8)]) for d in (a,b))
    inside = x.any(-1)
    assert all(np.corrcoef(x[inside][:,c], y[inside][:,c])[0,1]>.99999 for c in range(4)) and x.min()>=0
    med = np.median(x[inside], 0)
    assert 15<med[CBF]<60 and 3<med[MTT]<7 and 1.5<med[CBV]<4.5 and 1<med[TMAX]<4

def test_old_infarcts_are_no_lesion():
    a,b = phantom(infarcts=0., n=16),phantom(infarcts=6., n=16)
    assert (a.mask_tensors(96)==b.mask_tensors(96)).all()
    o = physical(infarcts=6.)
    x = [draw_stroke(o, i) for i in range(24)]
    holes = [(im[...,CBF]<4)&im.any(-1)&~m.any(0)&~tissues(plan(o, i//8).h, float(height(o, i%8)), 96).ventricle for i,(im,m) in enumerate(x)]
    assert sum(h.sum() for h in holes)>100 and all(im[...,TMAX][h].max()<=6 for (im,_),h in zip(x, holes) if h.any())

def test_noise():
    sd = [np.mean([(phantom(units='physical', noise=s, n=4).image(i)-phantom(units='physical', noise=0., n=4).image(i))[...,CBF].std() for i in range(4)]) for s in (.1,.2)]
    assert 1.5<sd[1]/sd[0]<2.1

def test_one_knob_at_a_time():
    "Noise, old infarcts and deficit leave anatomy and lesion in place"
    a = phantom(n=8)
    for kw in (dict(noise=.4), dict(infarcts=3.), dict(deficit=.2)):
        b = phantom(n=8, **kw)
        assert all((a.image(i).any(-1)==b.image(i).any(-1)).all() and (a.mask(i)==b.mask(i)).all() for i in range(8))

def test_territories():
    t = [plan(StrokeOptions(seed=3), c) for c in range(300)]
    share = {k:np.mean([p.territory==k for p in t]) for k in TERRITORIES}
    assert .68<share['middle']<.82 and share['anterior']>.05 and share['posterior']>.08 and .4<np.mean([p.side==1 for p in t])<.6

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 99))
def test_cut(seed, n):
    v = np.random.default_rng(seed).random(100)
    assert (v>_cut(v, n)).sum()==n

def test_groups():
    d = check_leak(phantom(n=50))
    assert d.items.group.nunique()==7 and d.items.slice.tolist()[:9]==[*range(8),0]

@pytest.mark.parametrize('kw', [dict(n=1), dict(size=8), dict(foreground=.5), dict(empty=1), dict(deficit=.3), dict(penumbra=0), dict(infarcts=-1), dict(noise=-1), dict(units='si'), dict(planes='core'), dict(slices=0),
                                dict(fractions=(.5,.5)), dict(fractions=(.5,.1,.1)), dict(lesion=.5)])
def test_bad_options(kw):
    with pytest.raises(ArgumentError): phantom(**kw)

def test_speed():
    "The limit leaves room for a busy machine"
    d = phantom(n=96, seed=99, size=128)
    t = time.thread_time()
    for i in range(96): d.image(i)
    assert time.thread_time()-t<6
