"What is no lesson: counts and distances against brute force, scikit-learn, MONAI and medpy, odd sizes, bad input, GPU without waiting"
import ast,inspect,pickle,warnings
import numpy as np
import pytest
import sklearn.metrics as skm
import torch
from hypothesis import given,settings,strategies as st
from scipy import ndimage as ndi
from medattn_nb.core import ArgumentError,ShapeError
from medattn_nb import segmetrics
from medattn_nb.segmetrics import *
from medattn_nb.segmetrics import _count,_count_by_adding,_percentile

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')

def masks(seed=0, n=3, shape=(31,40), sigma=3., share=.3):
    "Two sets of smooth random masks"
    rng = np.random.default_rng(seed)
    x = ndi.gaussian_filter(rng.normal(size=(n,*shape)), (0,*[sigma]*len(shape)))
    y = x + .5*ndi.gaussian_filter(rng.normal(size=x.shape), (0,*[sigma]*len(shape)))
    return x>np.quantile(x, 1-share),y>np.quantile(y, 1-share)

# --- counts --------------------------------------------------------------------------------------------
@pytest.mark.parametrize('K', [2,5,15,16,17,40])
@pytest.mark.parametrize('ignore', [None,255,1])
@pytest.mark.parametrize('dtype', [np.int64,np.uint8,np.int32])
def test_counts_equal_sklearn(K, ignore, dtype):
    rng = np.random.default_rng(K); p,t = rng.integers(0, K, (2,3,7,9)).astype(dtype)
    if ignore==255: t[:,2:4] = 255
    C = confusion_counts(p, t, K, ignore)
    for c,a,b in zip(C, p, t):
        ok = np.full(b.shape, True) if ignore is None else b!=ignore
        np.testing.assert_array_equal(c, skm.confusion_matrix(b[ok], a[ok], labels=range(K)))
    np.testing.assert_array_equal(confusion_counts(torch.tensor(p), torch.tensor(t), K, ignore, pooled=True), C.sum(0))

@settings(max_examples=40, deadline=None)
@given(st.integers(0,10**6), st.integers(1,7), st.integers(1,7), st.booleans())
def test_accumulator_does_not_depend_on_batches(seed, n, bs, per_image):
    rng = np.random.default_rng(seed); p,t = rng.integers(0, 4, (2,n,3,5)); t[rng.uniform(size=t.shape)<.2] = 9
    acc = ConfusionAccumulator(4, ignore=9, per_image=per_image)
    for i in range(0, n, bs): acc.update(p[i:i+bs], t[i:i+bs])
    np.testing.assert_array_equal(acc.counts, confusion_counts(p, t, 4, 9, pooled=not per_image))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(acc)).counts, acc.counts)
    acc.reset(); assert acc.counts.sum()==0

@pytest.mark.parametrize('N,n,L', [(1,1,1),(3,11,100),(5,2,31),(2,443,65)])
def test_the_way_of_the_gpu_gives_the_same(N, n, L):
    k = torch.randint(n, (N,L)); assert torch.equal(_count_by_adding(k, n), _count(k, n))

@pytest.mark.parametrize('ignore', [-1,-100,255,300])
def test_ignore_beyond_the_type(ignore):
    p,t = np.zeros((2,1,3,3), np.uint8); t[0,0] = 255
    if ignore==255: assert confusion_counts(p, t, 2, ignore).sum()==6
    else:
        with pytest.raises(ArgumentError, match='3 pixels out of range'): confusion_counts(p, t, 2, ignore)
    assert confusion_counts(p, t.astype(int), 300).sum()==9

def test_volumes_booleans_and_no_images():
    a = np.random.default_rng(0).uniform(size=(2,3,4,5))<.4
    np.testing.assert_array_equal(confusion_counts(a, a, pooled=True), np.diag([(~a).sum(), a.sum()]))
    np.testing.assert_array_equal(confusion_counts(a, a, ignore=0, pooled=True), np.diag([0, a.sum()]))
    assert confusion_counts(a[:0], a[:0]).shape==(0,2,2) and dice(confusion_counts(a[:0], a[:0])).cases==0
    assert hd95(a[:0], a[:0])[1:]==(0,0,0)

@pytest.mark.parametrize('ignore', [None,7])
@pytest.mark.parametrize('p,t', [([[2]],[[0]]), ([[0]],[[2]]), ([[-1]],[[0]]), ([[0]],[[-3]])])
def test_impossible_labels_are_found(p, t, ignore):
    with pytest.raises(ArgumentError, match='from 0 to 1'): confusion_counts(np.array(p), np.array(t), 2, ignore)

def test_bad_counts():
    o = np.zeros((2,4,4), int)
    with pytest.raises(ShapeError, match='take argmax'): confusion_counts(o+.5, o)
    with pytest.raises(ShapeError, match='shape of the target'): confusion_counts(o, o[:1])
    with pytest.raises(ShapeError, match='batch'): confusion_counts(o[0,0], o[0,0])
    for K in (1,2.,True):
        with pytest.raises(ArgumentError, match='at least 2'): confusion_counts(o, o, K)
    for f in (dice,jaccard,mean_iou,mean_pixel_accuracy,pixel_accuracy,fn_rate,fp_rate):
        with pytest.raises(ShapeError, match='from confusion_counts'): f(o[:,:3])
        with pytest.raises(ArgumentError, match="'mean' or 'none'"): f(confusion_counts(o, o), reduction='sum')
        with pytest.raises(ArgumentError, match="'skip' or a number"): f(confusion_counts(o, o), empty='drop')
    with pytest.raises(ArgumentError, match="'recall' or 'printed'"): mean_pixel_accuracy(confusion_counts(o, o), 'precision')

@pytest.mark.parametrize('K', [2,4])
def test_overlap_equals_brute_force_and_monai(K):
    from monai.metrics import compute_dice,compute_iou
    rng = np.random.default_rng(1); p,t = rng.integers(0, K, (2,3,9,8)); t[0][t[0]==1] = 0
    C = confusion_counts(p, t, K); hot = lambda o: torch.nn.functional.one_hot(torch.tensor(o), K).movedim(-1, 1)
    both = lambda f: f(hot(p), hot(t), include_background=False, ignore_empty=False).numpy()
    np.testing.assert_allclose(dice(C, empty=1., reduction='none'), both(compute_dice), rtol=1e-6)
    np.testing.assert_allclose(jaccard(C, empty=1., reduction='none'), both(compute_iou), rtol=1e-6)
    for i in range(3):
        for k in range(1, K):
            a,b = p[i]==k,t[i]==k
            if b.any(): assert fn_rate(C, reduction='none')[i,k-1]==pytest.approx((b&~a).sum()/b.sum())
            assert fp_rate(C, reduction='none')[i,k-1]==pytest.approx((a&~b).sum()/(~b).sum())
    assert jaccard(C, background=True, reduction='none').shape==(3,K)

def test_pooled_equals_sklearn():
    rng = np.random.default_rng(2); p,t = rng.integers(0, 6, (2,4,11,13)); P = confusion_counts(p, t, 6, pooled=True); p,t = p.ravel(),t.ravel()
    assert mean_iou(P).value==pytest.approx(skm.jaccard_score(t, p, average='macro'))
    assert dice(P, background=True).value==pytest.approx(skm.f1_score(t, p, average='macro'))
    assert mean_pixel_accuracy(P).value==pytest.approx(skm.balanced_accuracy_score(t, p))
    assert mean_pixel_accuracy(P, 'printed').value==pytest.approx(skm.precision_score(t, p, average='macro'))
    assert pixel_accuracy(P).value==pytest.approx(skm.accuracy_score(t, p))

@cuda
@pytest.mark.parametrize('K,ignore', [(2,None),(5,None),(5,255),(21,255)])
def test_counts_on_a_gpu_do_not_wait(K, ignore):
    rng = np.random.default_rng(0); p,t = rng.integers(0, K, (2,6,64,64)); t[:,:5] = t[:,:5] if ignore is None else ignore
    cp,ct = (torch.tensor(o, device='cuda') for o in (p,t)); acc = ConfusionAccumulator(K, ignore); torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for i in range(0, 6, 2): acc.update(cp[i:i+2], ct[i:i+2])
    finally: torch.cuda.set_sync_debug_mode('default')
    np.testing.assert_array_equal(acc.counts, confusion_counts(p, t, K, ignore, pooled=True))
    with pytest.raises(ArgumentError, match='out of range'): confusion_counts(cp+K, ct, K, ignore)

# --- surfaces and distances ----------------------------------------------------------------------------
@pytest.mark.parametrize('shape', [(1,1),(1,9),(7,1),(2,2),(31,40),(127,128),(1,5,6),(9,12,7)])
def test_surface_equals_erosion(shape):
    rng = np.random.default_rng(0)
    for share in 0,.5,.9,1:
        m = rng.uniform(size=shape)<share
        for c in range(1, len(shape)+1): np.testing.assert_array_equal(surface(m, c), m^ndi.binary_erosion(m, ndi.generate_binary_structure(len(shape), c)))

def slow(a, b, s, c):
    A,B = (np.argwhere(surface(o, c)) for o in (a,b))
    return np.sqrt((((A[:,None]-B)*s)**2).sum(-1)).min(1)

@pytest.mark.parametrize('shape', [(1,1),(1,9),(7,1),(13,17),(40,41),(6,7,8)])
@pytest.mark.parametrize('method', ['pairs','tree','transform',None])
def test_distances_equal_brute_force(shape, method):
    rng = np.random.default_rng(1)
    for spacing in 1.,.3,tuple(.4+.7*np.arange(len(shape))):
        for share in .1,.6,1:
            a,b = rng.uniform(size=(2,*shape))<share; a.flat[0] = b.flat[-1] = True
            for c in (1,len(shape)):
                for got,want in zip(surface_distances(a, b, spacing, c, method), (slow(a, b, spacing, c), slow(b, a, spacing, c))):
                    np.testing.assert_allclose(got, want, rtol=1e-13, atol=0)

@settings(max_examples=60, deadline=None)
@given(st.integers(0,10**6), st.floats(0,100), st.integers(1,50))
def test_percentile_equals_numpy(seed, q, n):
    d = np.random.default_rng(seed).exponential(size=n).round(1)
    assert _percentile(d, q)==pytest.approx(np.percentile(d, q), rel=1e-14, abs=1e-300)

def monai(p, t, q, spacing):
    from monai.metrics import compute_hausdorff_distance
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*always_return_as_numpy', category=FutureWarning)
        return compute_hausdorff_distance(torch.tensor(p)[:,None], torch.tensor(t)[:,None], include_background=True, percentile=q, spacing=spacing)[:,0].numpy()

SIZES = [dict(), dict(shape=(127,128), sigma=6), dict(shape=(64,64), sigma=.5, share=.5), dict(shape=(256,256), sigma=25, n=2, share=.5), dict(shape=(12,20,16), sigma=2), dict(shape=(10,10), sigma=1, share=.05)]

@pytest.mark.parametrize('kw', SIZES, ids=str)
@pytest.mark.parametrize('axis', [1.,2.3])
def test_hd_equals_monai_and_medpy(kw, axis):
    from medpy.metric import binary as medpy
    p,t = masks(3, **kw); s = (axis,)+(.7,)*(p.ndim-2)
    ok = p.reshape(len(p),-1).any(1)&t.reshape(len(t),-1).any(1); p,t = p[ok],t[ok]; assert len(p)
    for q in 95,100: np.testing.assert_allclose(hausdorff(p, t, q, spacing=s, reduction='none'), monai(p, t, q, s), rtol=2e-6)
    for c in 1,2: np.testing.assert_allclose(hd95(p, t, 'pooled', s, c, reduction='none'), [medpy.hd95(a, b, s, c) for a,b in zip(p,t)], rtol=1e-12)
    np.testing.assert_allclose(hausdorff(p, t, spacing=s, reduction='none'), [medpy.hd(a, b, s) for a,b in zip(p,t)], rtol=1e-12)

def test_hd_properties():
    p,t = masks(5, 4)
    for how in 'max','pooled':
        d = hd95(p, t, how, reduction='none')
        np.testing.assert_allclose(d, hd95(t, p, how, reduction='none'), rtol=1e-14)
        np.testing.assert_allclose(d, hd95(p[:,::-1], t[:,::-1], how, reduction='none'), rtol=1e-14)
        np.testing.assert_allclose(d, hd95(p.swapaxes(1,2), t.swapaxes(1,2), how, reduction='none'), rtol=1e-14)
        np.testing.assert_allclose(d, hd95(*(np.pad(o, ((0,0),(9,0),(0,5))) for o in (p,t)), how, reduction='none'), rtol=1e-14)
        assert (hd95(t, t, how, reduction='none')==0).all() and (d<=hausdorff(p, t, reduction='none')).all()
    v = hd95(p, t, reduction='none'); assert hd95(p, t).value==pytest.approx(v.mean())

def test_far_apart_and_full_images():
    a,b = np.zeros((2,1,200,300), bool); a[0,0,0] = b[0,-1,-1] = True
    assert hd95(a, b).value==pytest.approx(np.hypot(199,299)) and hd95(a, b, missed='diagonal')==hd95(a, b)
    assert hd95(a|True, b|True).value==0 and hd95(a, b|True).value<=np.hypot(199,299)

def test_missed_cases_are_counted_and_priced():
    p,t = masks(6, 5); p[0] = False; t[1] = False; p[2] = t[2] = False
    s = hd95(p, t); assert s[1:]==(2,2,1) and s.value==pytest.approx(hd95(p[3:], t[3:]).value)
    d = np.hypot(30,39); assert hd95(p, t, missed='diagonal').value==pytest.approx((2*s.value+2*d)/4)
    assert hd95(p, t, missed=1., empty=0.).value==pytest.approx((2*s.value+2)/5)
    np.testing.assert_array_equal(np.isnan(hd95(p, t, reduction='none')), [True,True,True,False,False])

def test_bad_masks():
    p,t = masks(); f = hd95
    with pytest.raises(ShapeError, match='batch dimension'): f(p[0], t[0])
    with pytest.raises(ShapeError, match='drop a channel axis'): f(p[:,None], t[:,None])
    with pytest.raises(ShapeError, match='0 and 1'): f(p*2, t)
    with pytest.raises(ShapeError, match='0 and 1'): f(p.astype(float), t)
    with pytest.raises(ShapeError, match='shape of the target'): f(p, t[:1])
    with pytest.raises(ArgumentError, match="'max' or 'pooled'"): f(p, t, 'mean')
    for s in ((1,),(1,1,1),0,-1.,float('nan')):
        with pytest.raises(ArgumentError, match='spacing'): f(p, t, spacing=s)
    with pytest.raises(ArgumentError, match='connectivity'): f(p, t, connectivity=3)
    with pytest.raises(ArgumentError, match='percentile'): hausdorff(p, t, 101)
    with pytest.raises(ArgumentError, match='missed'): f(p, t, missed='far')
    with pytest.raises(ArgumentError, match='no surface'): surface_distances(p[0], t[0]&False)
    with pytest.raises(ArgumentError, match='method'): surface_distances(p[0], t[0], method='slow')

def test_fpa_hd95_is_the_four_dimensional_erosion():
    "As found in the released code: an erosion of (B,1,H,W) leaves nothing, distances run through the batch"
    p,t = masks(7, 4)
    for bs in (1,2,4):
        d = []
        for i in range(0, 4, bs):
            a,b = (o[i:i+bs,None] for o in (p,t)); edge = lambda m: m^ndi.binary_erosion(m, ndi.generate_binary_structure(4, 1))
            d.append(np.percentile(np.r_[ndi.distance_transform_edt(~edge(b))[edge(a)], ndi.distance_transform_edt(~edge(a))[edge(b)]], 95))
        s = fpa_hd95(p, t, bs); assert s.value==pytest.approx(sum(d)/(len(d)+1)) and s.cases==len(d)

def test_imports():
    mods = {(o.names[0].name if isinstance(o, ast.Import) else o.module or '').split('.')[0] for o in ast.walk(ast.parse(inspect.getsource(segmetrics))) if isinstance(o, (ast.Import,ast.ImportFrom))}
    assert mods<={'numpy','scipy','torch','core','metrics'}

# --- options that no other test gives ------------------------------------------------------------------
RATES = {'pixel_accuracy':lambda C,k: np.trace(C)/C.sum() if k==0 else None, 'mean_pixel_accuracy':lambda C,k: C[k,k]/C[k].sum(), 'mean_iou':lambda C,k: C[k,k]/(C[k].sum()+C[:,k].sum()-C[k,k]),
         'fn_rate':lambda C,k: 1-C[k,k]/C[k].sum(), 'fp_rate':lambda C,k: (C[:,k].sum()-C[k,k])/(C.sum()-C[k].sum())}

@pytest.mark.parametrize('name', RATES)
@pytest.mark.parametrize('background', [True,False])
def test_values_and_background_by_hand(name, background):
    p,t = np.random.default_rng(3).integers(0, 3, (2,4,9,11))
    C,f = confusion_counts(p, t, 3),globals()[name]
    kw = {} if name=='pixel_accuracy' else dict(background=background)
    ks = [0] if name=='pixel_accuracy' else range(0 if background else 1, 3)
    want = np.array([[RATES[name](c, k) for k in ks] for c in C])
    assert np.allclose(f(C, reduction='none', **kw), want) and np.isclose(f(C, **kw).value, want.mean())

def test_missed_of_the_rates():
    "A class in the prediction only has no pixel to be found; a class that fills the image leaves none to be alarmed"
    o = np.zeros((1,4,4), int); sq = o.copy(); sq[0,1:3,1:3] = 1
    only = confusion_counts(sq, o)
    assert np.isnan(fn_rate(only).value) and fn_rate(only, missed=1.).value==1 and fp_rate(only).value==.25
    full = confusion_counts(sq, o+1)
    assert np.isnan(fp_rate(full).value) and fp_rate(full, missed=0.).value==0 and fn_rate(full).value==.75

@pytest.mark.parametrize('how', ['max','pooled'])
@pytest.mark.parametrize('connectivity', [1,2])
def test_corners_and_percentiles_against_all_pairs(how, connectivity):
    a,b = masks(5, 2, (20,23))
    def rim(m): return np.argwhere(m&~ndi.binary_erosion(m, ndi.generate_binary_structure(2, connectivity)))
    for x,y in zip(a, b):
        D = np.sqrt(((rim(x)[:,None]-rim(y))**2).sum(2)); one,two = D.min(1),D.min(0)
        want = max(np.percentile(one, 95), np.percentile(two, 95)) if how=='max' else np.percentile(np.r_[one,two], 95)
        assert np.isclose(hd95(x[None], y[None], how, connectivity=connectivity).value, want)

@pytest.mark.parametrize('how', ['max','pooled'])
def test_missed_masks_cost_the_diagonal(how):
    m = np.zeros((2,6,8), bool); m[1,2:4,2:4] = True; t = m.copy(); t[0,1,1] = True
    s = hausdorff(m, t, 95, how, spacing=(2,3), missed='diagonal', reduction='none')
    assert np.allclose(s, [np.hypot(5*2, 7*3),0])
