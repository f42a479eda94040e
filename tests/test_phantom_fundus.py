"The fundus phantom: grades that follow from the lesions and their places, and from nothing less"
import numpy as np
import pytest
from conftest import drawn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from medattn_nb.core import ArgumentError
from medattn_nb.data.datasets import check_leak, load
from medattn_nb.data.phantom_fundus import LESIONS, MASKS, RULES, FundusOptions, draw_fundus, lesions_of, _clear, _eye, _facts, _lesions
from medattn_nb.data.phantoms import _store

def phantom(**kw): return load('phantom-fundus', **{'n':24, 'size':64, **kw})
def kinds(o, n): return np.stack([np.bincount([k for k,*_ in _lesions(o, i, i%len(RULES[o.rule]))], minlength=4) for i in range(n)])
def labels(o, n): return np.arange(n)%len(RULES[o.rule])
def quadrants(t): return np.bincount(t[t.kind==1].quadrant, minlength=4)

def test_defaults():
    d = load('phantom-fundus')
    assert len(d)==600 and d.info.synthetic and d.classes==['grade0','grade1','grade2','grade3'] and d.info.masks==MASKS and d.info.attributes==LESIONS
    assert d.image(3).shape==(128,128,3) and d.image(3).dtype==np.uint8 and d.masks(3).shape==(5,128,128) and d.masks(3).dtype==bool
    assert d.describe().loc['all'].tolist()==[150]*4+[600] and d.items.split.value_counts().to_dict()==dict(train=400, valid=100, test=100)
    assert phantom(rule='pair').classes==phantom(rule='opposite').classes==['different','same']

def test_the_data_of_our_records():
    "Results in the ledger belong to these images: a change needs a new VERSION"
    assert load('phantom-fundus').fingerprint=='2a8d6089bfca6b098b687ce1b6b80a0944d96bc4bc118a9b65bfb7cef0ebf106'
    assert drawn(load('phantom-fundus'))==pytest.approx([72.66, 66.33, 5.05, 5.32], abs=.05)

def test_deterministic():
    a = [phantom().image(i) for i in range(6)]
    _store.clear(); _eye.cache_clear(); _lesions.cache_clear()
    d = phantom()
    assert all((x==y).all() for x,y in zip(a, [d.image(i) for i in (5,4,3,2,1,0)][::-1]))

def test_an_image_is_the_callers_own():
    d = phantom()
    d.image(1)[:] = 0; d.masks(1)[:] = True
    assert d.image(1).any() and not d.masks(1).all()

OTHER = dict(seed=1, size=65, rule='pair', lesion_size=.02, contrast=.9, distance=.4, per_quadrant=1, distractors=1, vessels=.9, lighting=.9, groups=2)
@pytest.mark.parametrize('k', OTHER)
def test_fingerprint_knows_every_option(k): assert phantom(**{k:OTHER[k]}).fingerprint!=phantom().fingerprint

def test_fingerprint_knows_no_more():
    a,b = phantom(),phantom(fractions=(.5,.25,.25))
    assert a.fingerprint==b.fingerprint and a.split_fingerprint!=b.split_fingerprint

@pytest.mark.parametrize('per', [1,2,3])
def test_grades(per):
    o = FundusOptions(per_quadrant=per, seed=per)
    for i in range(80):
        t = [lesions_of(o, i, c) for c in range(4)]
        n = [np.bincount(x.kind, minlength=4) for x in t]
        assert not n[0].any() and n[1][0]>=3 and not n[1][1:].any()
        assert n[2][1]==n[3][1] and 4*per+2<=n[3][1]<=4*per+6 and n[2][0]>=3
        assert quadrants(t[2]).min()<per<=quadrants(t[3]).min() and (quadrants(t[2])<per).sum()==1

def test_grades_2_and_3_have_the_same_numbers():
    o = FundusOptions()
    a,b = (np.array([np.bincount([k for k,*_ in _lesions(o, i, c)], minlength=4) for i in range(600)]) for c in (2,3))
    assert (a[:,1]==b[:,1]).all() and np.abs(a.mean(0)-b.mean(0)).max()<.5

@pytest.mark.parametrize('distance', [.1,.3,.5,.78])
@pytest.mark.parametrize('rule', ['pair','opposite'])
def test_distance(rule, distance):
    o = FundusOptions(rule=rule, distance=distance)
    for i in range(40):
        p = lesions_of(o, i, i%2)[['x','y']].to_numpy()
        assert np.allclose(np.hypot(*(p[::2]-p[1::2]).T), distance) and np.hypot(*p.T).max()<.43

@pytest.mark.parametrize('rule', ['pair','opposite'])
def test_places_do_not_know_the_label(rule):
    o = FundusOptions(rule=rule)
    for i in range(40): assert np.allclose(lesions_of(o, i, 0)[['x','y']], lesions_of(o, i, 1)[['x','y']])

def test_pair():
    "Same or different; each kind as often in both classes; sums cannot tell, an exclusive or can"
    o = FundusOptions(rule='pair')
    x,y = kinds(o, 800),labels(o, 800)
    assert (x[:,1]+x[:,2]==2).all() and not x[:,[0,3]].any() and ((x[:,1]==1)==(y==0)).all()
    assert abs(x[y==0].mean(0)[1]-x[y==1].mean(0)[1])<.12
    first = np.array([_lesions(o, i, i%2)[0][0] for i in range(800)])
    assert abs(roc_auc_score(y, first)-.5)<.06
    half = np.arange(800)<400
    assert abs(roc_auc_score(y[~half], LogisticRegression(C=100).fit(x[half], y[half]).decision_function(x[~half]))-.5)<.08

def test_a_sum_over_lesions_is_worth_a_coin():
    "Any weights a, b: 2a and 2b for pairs alike, a+b between them for the others"
    o = FundusOptions(rule='pair')
    x,y = kinds(o, 2000),labels(o, 2000)
    for w in np.random.default_rng(0).normal(size=(20,2)): assert abs(roc_auc_score(y, x[:,1:3]@w)-.5)<.06

def test_opposite():
    o = FundusOptions(rule='opposite')
    assert (kinds(o, 200)==[0,2,2,0]).all()
    for i in range(60):
        t = lesions_of(o, i, i%2)
        k,p = t.kind.to_numpy(),t[['x','y']].to_numpy()
        alike = k[::2]==k[1::2]
        assert alike.all()==alike.any()==bool(i%2) and np.allclose(p[0]+p[1], p[2]+p[3])
        far = np.hypot(*(p[:,None]-p).transpose(2,0,1))
        assert (far.argmax(1)==[1,0,3,2]).all()

@pytest.mark.parametrize('rule', RULES)
def test_lesions_lie_where_they_can_be_seen(rule):
    o,bad,n = FundusOptions(rule=rule),0,0
    for i in range(60):
        s,t = _eye(o, i),_lesions(o, i, len(RULES[rule])-1)
        p = np.array([q for k,q,_ in t if k!=2 or rule!='count'])
        bad,n = bad+(~_clear(s, p, .012)).sum(),n+len(p)
        assert (np.hypot(*np.array([q for _,q,_ in t]).T)<.475).all()
    assert bad<.03*n

def test_oedema():
    "0 without hard exudates, 2 within a disc diameter of the fovea, as in the table's column"
    o = FundusOptions()
    for i in range(100):
        s,t = _eye(o, i),lesions_of(o, i, 3)
        hard = t[t.kind==2]
        d = np.hypot(hard.x-s.fovea[0], hard.y-s.fovea[1]).min() if len(hard) else None
        assert _facts(o, i, 3)[0]==(0 if d is None else 2 if d<=s.width else 1)
    t = load('phantom-fundus').items
    assert (t[t.label<2].oedema==0).all() and set(t.oedema)=={0,1,2} and ((t.oedema>0)==(t['has:hard_exudate']==1)).all()
    risk = t[t.label>1].groupby('label').oedema.mean()
    assert abs(risk[2]-risk[3])<.25

def test_attributes_are_those_of_the_masks():
    d = phantom(n=60, size=128)
    assert (d.attributes==np.stack([d.masks(i)[:4].any((1,2)) for i in range(60)])).all() and all(d.masks(i)[4].any() for i in range(60))

@pytest.mark.parametrize('size', [32,64,100,256])
def test_lesions_are_never_below_a_pixel_and_a_half(size):
    o = FundusOptions(size=size, rule='pair', lesion_size=.005)
    for i in range(30):
        m = draw_fundus(o, i, 0)[1]
        assert m[1].any() and m[2].any() and m[1].sum()<=6 and m[2].sum()<=4

@pytest.mark.parametrize('size,lesion', [(256,.02),(256,.04),(128,.03)])
def test_lesion_size(size, lesion):
    o = FundusOptions(size=size, rule='pair', lesion_size=lesion)
    area = np.mean([draw_fundus(o, i, 1)[1][:4].sum()/2 for i in range(40)])
    assert abs(area/(np.pi/4*(lesion*size)**2)-1)<.15

def test_lesions_show():
    "Haemorrhages are darker, hard exudates brighter than the same place without them"
    for i in range(12):
        a,m = draw_fundus(FundusOptions(size=160, rule='pair', lesion_size=.03), i, 0)
        b = draw_fundus(FundusOptions(size=160, rule='pair', lesion_size=.03, contrast=0), i, 0)[0]
        diff = a.astype(float).mean(2)-b.astype(float).mean(2)
        assert diff[m[1]].mean()<-8 and diff[m[2]].mean()>15
        assert np.abs(diff[~m[:4].any(0)]).mean()<.5

@pytest.mark.parametrize('kw', [dict(contrast=.5), dict(distractors=6), dict(vessels=.3), dict(lighting=0)])
def test_a_knob_leaves_the_masks(kw):
    a,b = phantom(n=8),phantom(n=8, **kw)
    assert all((a.masks(i)==b.masks(i)).all() for i in range(8)) and any((a.image(i)!=b.image(i)).any() for i in range(8))

def test_masks_have_the_places_of_the_table():
    d = phantom(n=16, size=200)
    for r in d._rows:
        m,t = d.reader.masks(r),lesions_of(d.reader.options, r.number, r.label)
        for k,x,y in zip(t.kind, t.x, t.y): assert m[k, int((y+.5)*200), int((x+.5)*200)]

def test_size_is_resolution_only():
    a,b = phantom(size=128, n=12),phantom(size=256, n=12)
    x,y = a.mask_tensors(128, kind='planes')[:,4],b.mask_tensors(128, kind='planes')[:,4]
    assert ((x&y).sum()/(x|y).sum())>.93
    assert all(np.corrcoef(p.flatten(), q.flatten())[0,1]>.97 for p,q in zip(a.tensors(64).float(), b.tensors(64).float()))
    for i in range(12): assert np.allclose(lesions_of(a.reader.options, i, i%4).x, lesions_of(b.reader.options, i, i%4).x)

@pytest.mark.parametrize('size', [32,33,127,200])
def test_any_size(size):
    for rule in RULES: assert draw_fundus(FundusOptions(size=size, rule=rule), 1, 1)[0].shape==(size,size,3)

def test_black_outside_the_field():
    d = phantom(n=8)
    for i in range(8): assert d.image(i)[:6,:6].mean()<12 and d.image(i)[20:44,20:44].mean()>30 and not d.masks(i)[:,:6,:6].any()

def test_left_and_right_eyes():
    side = [_eye(FundusOptions(), i).side for i in range(200)]
    assert 70<side.count(1)<130
    for i in range(10): assert (_eye(FundusOptions(), i).disc[0]>0)==(side[i]>0)

@pytest.mark.parametrize('rule', RULES)
def test_no_global_number_tells(rule):
    d = load('phantom-fundus', n=240, size=64, rule=rule, lesion_size=.015)
    x,y = d.tensors(64).float().mean(1).numpy(),d.labels
    for f in (x.mean((1,2)), x.std((1,2)), np.median(x, (1,2))):
        for k in range(y.max()): assert .3<roc_auc_score(y[(y==k)|(y==k+1)]==k+1, f[(y==k)|(y==k+1)])<.7

def test_groups():
    d = check_leak(phantom(n=61, groups=4))
    assert d.items.group.nunique()==16 and (d.items.groupby('group').label.nunique()==1).all()
    hue = np.array([d.image(i)[16:48,16:48].reshape(-1, 3).mean(0) for i in range(60)])
    hue = np.log(hue[:,2]/hue[:,0])
    far,same = np.abs(np.subtract.outer(hue, hue)),np.equal.outer(np.arange(60)//4, np.arange(60)//4)
    assert far[same].mean()<.5*far[~same].mean()

@pytest.mark.parametrize('kw', [dict(n=1), dict(size=16), dict(rule='ratio'), dict(lesion_size=.001), dict(lesion_size=.2), dict(contrast=-1), dict(distance=.05), dict(distance=.9), dict(per_quadrant=0),
                                dict(distractors=-1), dict(vessels=3), dict(lighting=-1), dict(groups=0), dict(fractions=(.5,.5)), dict(seeds=3)])
def test_bad_options(kw):
    with pytest.raises(ArgumentError): phantom(**kw)
