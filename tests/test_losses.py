"What is no lesson: losses against twins and slow versions, extreme logits, ignored pixels, weights, invariances, bad input"
import copy,pickle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given,settings,strategies as st
from monai.losses import DiceCELoss,DiceLoss,FocalLoss
from torch.autograd import gradcheck
from torchvision.ops import sigmoid_focal_loss
from medattn_nb.core import ArgumentError,MedattnError,ShapeError
from medattn_nb.losses import *

# id -> (name, settings); together they reach every branch
KINDS = {'ce':('ce',{}), 'focal':('focal',{}), 'focal.5':('focal',dict(gamma=.5)), 'gbce':('gbce',{}), 'gbce_c1':('gbce',dict(gamma=.5, c1=True)), 'gbce_a0':('gbce',dict(alpha=0, gamma=2)),
         'gbce_printed':('gbce',dict(form='printed')), 'dice':('dice',{}), 'dice_sq':('dice',dict(squared=True)), 'dice_batch':('dice',dict(batch=True)), 'dice_micro':('dice',dict(average='micro')),
         'dice_present':('dice',dict(classes='present')), 'dice_s0':('dice',dict(smooth=0)), 'jaccard':('jaccard',{}), 'jaccard_plain':('jaccard',dict(squared=False)), 'jaccard_both':('jaccard',dict(average='both', classes='present')),
         'jaccard_printed':('jaccard',dict(form='printed')), 'jaccard_literal':('jaccard',dict(form='literal', average='both')), 'fpa':('fpa_dice',{}), 'combo':('combo',{}), 'combo_all':('combo',dict(dice='all', batch=False)),
         'combo_pixel':('combo',dict(dice='pixel', squared=False)), 'gbl':('gbl',{}), 'gbl_printed':('gbl',dict(form='literal', batch=False))}
SOUND = [k for k in KINDS if 'printed' not in k and 'literal' not in k]
MODES = 'binary','multilabel','multiclass'
all_kinds = pytest.mark.parametrize('kind', KINDS)
all_modes = pytest.mark.parametrize('mode', MODES)

def make(kind, **kw): return create(KINDS[kind][0], **{**KINDS[kind][1], **kw})

def batch(mode, shape=(4,3), n=3, b=2, seed=0, soft=False, dtype=torch.float32):
    "Random logits and a target for `mode`"
    g = torch.Generator().manual_seed(seed); c = 1 if mode=='binary' else n
    z = 2*torch.randn(b, c, *shape, generator=g, dtype=dtype)
    if soft: t = torch.rand(b, c, *shape, generator=g, dtype=dtype); return z,(t.softmax(1) if mode=='multiclass' else t)
    return z,(torch.randint(0, c, (b,*shape), generator=g) if mode=='multiclass' else torch.randint(0, 2, (b,c,*shape), generator=g))

def value_and_grad(loss, z, *args):
    z = z.clone().requires_grad_(); l = loss(z, *args)
    return l.detach(),torch.autograd.grad(l, z)[0]

# --- slow versions, written from the equations ------------------------------------------------------------
def slow_pixels(z, t, mode, f, w=None):
    "Mean of f(p_t) over labels or pixels, weighted, in loops"
    z,t = z.double(),t; num = den = 0.
    for i in np.ndindex(*z.shape[:1], *z.shape[2:]):
        zi = z[(i[0],slice(None),*i[1:])]
        if mode=='multiclass': pairs = [(int(t[i]), zi.softmax(0)[t[i]])]
        else: pairs = [(c, zi[c].sigmoid() if t[(i[0],c,*i[1:])] else 1-zi[c].sigmoid()) for c in range(len(zi))]
        for c,p in pairs: k = 1. if w is None else float(w[c]); num,den = num+k*f(float(p)),den+k
    return num/den

def slow_regions(z, t, mode, ratio, squared, batch=False, w=None):
    "Mean over images and classes of 1-ratio(I,P,Q), in loops"
    z = z.double(); p = z.softmax(1) if mode=='multiclass' else z.sigmoid()
    q = torch.stack([t==c for c in range(z.shape[1])], 1) if mode=='multiclass' else t
    num = den = 0.
    for rows in [range(len(z))] if batch else [[b] for b in range(len(z))]:
        for c in range(z.shape[1]):
            I = P = Q = 0.
            for b in rows:
                for a,y in zip(p[b,c].flatten().tolist(), q[b,c].flatten().tolist()): I,P,Q = I+a*y,P+(a*a if squared else a),Q+y
            k = 1. if w is None else float(w[c]); num,den = num+k*(1-ratio(I,P,Q)),den+k
    return num/den

def focal(g): return lambda p: -(1-p)**g*np.log(p)
def gbce(g, a, c=1.): return lambda p: focal(g)(p) if p>=a else focal(g)(a)+c/2*(1-p*p/a/a)
shapes = st.tuples(st.integers(1,4), st.integers(1,5))

@settings(max_examples=25, deadline=None)
@given(st.sampled_from(MODES), shapes, st.integers(1,3), st.integers(2,4), st.integers(0,999), st.sampled_from((0,.5,1,2.)))
def test_pixel_losses_equal_loops(mode, shape, b, n, seed, g):
    z,t = batch(mode, shape, n, b, seed); w = torch.rand(z.shape[1], generator=torch.Generator().manual_seed(seed))+.1
    for ww in None,w:
        assert np.isclose(CrossEntropy(mode, weight=ww)(z, t), slow_pixels(z, t, mode, focal(0), ww), rtol=1e-4, atol=1e-6)
        assert np.isclose(Focal(g, mode=mode, weight=ww)(z, t), slow_pixels(z, t, mode, focal(g), ww), rtol=1e-4, atol=1e-6)
        assert np.isclose(GBCE(g, .3, mode=mode, weight=ww)(z, t), slow_pixels(z, t, mode, gbce(g, .3), ww), rtol=1e-4, atol=1e-6)
    c = .7**g-.3*g*.7**(g-1)*np.log(.3)
    assert np.isclose(GBCE(g, .3, True, mode=mode)(z, t), slow_pixels(z, t, mode, gbce(g, .3, c)), rtol=1e-4, atol=1e-6)

@settings(max_examples=25, deadline=None)
@given(st.sampled_from(MODES), shapes, st.integers(1,3), st.integers(2,4), st.integers(0,999), st.booleans(), st.booleans())
def test_region_losses_equal_loops(mode, shape, b, n, seed, sq, whole):
    z,t = batch(mode, shape, n, b, seed); w = torch.rand(z.shape[1], generator=torch.Generator().manual_seed(seed))+.1; s = 1e-5
    kw = dict(squared=sq, batch=whole, mode=mode)
    for ww in None,w:
        assert np.isclose(Dice(weight=ww, **kw)(z, t), slow_regions(z, t, mode, lambda I,P,Q: (2*I+s)/(P+Q+s), sq, whole, ww), rtol=1e-4, atol=1e-5)
        assert np.isclose(Jaccard(weight=ww, **kw)(z, t), slow_regions(z, t, mode, lambda I,P,Q: (I+s)/(P+Q-I+s), sq, whole, ww), rtol=1e-4, atol=1e-5)
        assert np.isclose(Jaccard(weight=ww, form='printed', **kw)(z, t), slow_regions(z, t, mode, lambda I,P,Q: (I+s)/(P+Q+s), sq, whole, ww), rtol=1e-4, atol=1e-5)

# --- public twins ----------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1,5), min_size=1, max_size=3), st.integers(1,3), st.integers(2,5), st.integers(0,999), st.booleans(), st.booleans())
def test_monai_and_torchvision(shape, b, n, seed, sq, whole):
    z,t = batch('multilabel', shape, n, b, seed); tf = t.float(); kw = dict(squared_pred=sq, batch=whole)
    m = dict(mode='multilabel')
    def close(a, b): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    close(Dice(sq, batch=whole, **m)(z, t), DiceLoss(sigmoid=True, **kw)(z, tf))
    close(Jaccard(sq, batch=whole, smooth=5e-6, **m)(z, t), DiceLoss(sigmoid=True, jaccard=True, **kw)(z, tf))
    close(Focal(.7, reduction='none', **m)(z, t), FocalLoss(gamma=.7, reduction='none')(z, tf))
    close(Focal(alpha=.25, reduction='none', **m)(z, t), sigmoid_focal_loss(z, tf))
    close(CrossEntropy(**m)(z, t), F.binary_cross_entropy_with_logits(z, tf))
    z,t = batch('multiclass', shape, n, b, seed); one = dict(softmax=True, to_onehot_y=True); w = torch.rand(n)+.1
    close(Dice(sq, batch=whole)(z, t), DiceLoss(**kw, **one)(z, t[:,None]))
    close(Dice(sq, batch=whole, reduction='none')(z, t), DiceLoss(reduction='none', **kw, **one)(z, t[:,None]).flatten(1 if not whole else 0))
    close(Jaccard(sq, batch=whole, smooth=5e-6, background=False)(z, t), DiceLoss(jaccard=True, include_background=False, **kw, **one)(z, t[:,None]))
    close(Combo(squared=sq, batch=whole)(z, t), DiceCELoss(**kw, **one)(z, t[:,None]))
    close(Focal()(z, t), n*FocalLoss(use_softmax=True, to_onehot_y=True)(z, t[:,None]))
    for red in 'mean','sum','none': close(CrossEntropy(weight=w, reduction=red, ignore_index=1)(z, t).nan_to_num(0), F.cross_entropy(z, t, w, reduction=red, ignore_index=1).nan_to_num(0))

def test_soft_classes_are_torchs_probabilities():
    z,t = batch('multiclass', soft=True)
    torch.testing.assert_close(CrossEntropy('multiclass')(z, t), F.cross_entropy(z, t))

# --- gradients and precision -------------------------------------------------------------------------------------
@all_kinds
@all_modes
@pytest.mark.parametrize('soft', [False,True])
def test_gradcheck(kind, mode, soft):
    z,t = batch(mode, (2,2), soft=soft, dtype=torch.float64, seed=3)
    assert gradcheck(make(kind, mode=mode), (z.requires_grad_(), t), fast_mode=True)

@all_kinds
@all_modes
@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16,torch.float32,torch.float64])
def test_extreme_logits_are_finite(kind, mode, dtype):
    z,t = batch(mode); f = make(kind, mode=mode)
    for s in 50.,1e4:
        for tt in t,(F.one_hot(t, 3).movedim(-1, 1) if mode=='multiclass' else t).to(dtype):
            l,g = value_and_grad(f, (s*z.sign()).to(dtype), tt)
            assert l.isfinite() and g.isfinite().all() and g.dtype==dtype and l.dtype==(torch.float64 if dtype==torch.float64 else torch.float32)

@all_kinds
@all_modes
def test_half_precision_equals_single(kind, mode):
    z,t = batch(mode); f = make(kind, mode=mode)
    for dtype in torch.float16,torch.bfloat16:
        zh = z.to(dtype)
        assert torch.equal(f(zh, t), f(zh.float(), t))
        with torch.autocast('cpu', dtype=dtype): assert torch.equal(f(zh, t), f(zh.float(), t))

@pytest.mark.parametrize('kind', SOUND)
@all_modes
def test_descends(kind, mode):
    "Gradient descent on the logits goes most of the way to 0 with every sound loss; those that flatten outliers leave them"
    z,t = batch(mode, (4,4)); f = make(kind, mode=mode); z = z.clone().requires_grad_(); opt = torch.optim.Adam([z], .3); first = f(z, t).item()
    for _ in range(80): opt.zero_grad(); l = f(z, t); l.backward(); opt.step()
    assert l<.35*first or 'gbce' in kind and l<first

# --- ranges and perfect predictions ----------------------------------------------------------------------------
def sure(mode, t, n=3, s=60.): return s*(2*(F.one_hot(t, n).movedim(-1, 1) if mode=='multiclass' else t).float()-1)

@pytest.mark.parametrize('kind', SOUND)
@all_modes
def test_perfect_prediction_costs_nothing(kind, mode):
    z,t = batch(mode)
    assert make(kind, mode=mode)(sure(mode, t), t).abs()<1e-5
    wrong = make(kind, mode=mode)(-sure(mode, t), t)
    assert wrong>.4

@settings(max_examples=30, deadline=None)
@given(st.sampled_from(['dice','dice_sq','dice_batch','dice_micro','dice_present','dice_s0','jaccard','jaccard_plain','jaccard_both','jaccard_printed','fpa']), st.sampled_from(MODES), st.integers(0,99), st.booleans())
def test_region_losses_lie_in_0_1(kind, mode, seed, soft):
    z,t = batch(mode, seed=seed, soft=soft); l = make(kind, mode=mode)(3*z, t)
    assert -1e-6<=l<=1+1e-6

def test_jaccard_is_never_below_dice():
    for mode in MODES:
        z,t = batch(mode)
        for sq in (False,True):
            d,j = (f(sq, mode=mode, reduction='none', smooth=0)(z, t) for f in (Dice,Jaccard))
            torch.testing.assert_close(1-j, (1-d)/(1+d)); assert (j>=d).all()

def test_printed_forms():
    z,t = batch('multilabel')
    torch.testing.assert_close(Jaccard(form='printed', mode='multilabel', smooth=0)(z, t), (1+Dice(True, mode='multilabel', smooth=0)(z, t))/2)
    assert np.isclose(Jaccard(form='printed', mode='multilabel')(sure('multilabel', t), t), .5, atol=1e-4)
    p = torch.linspace(.01, 1, 991, dtype=torch.float64)
    for g in 0,.5,1,2:
        for a in .1,.2,.5:
            l = GBCE(g, a, form='printed').at(p); assert abs(p[l.argmin()]-a)<2e-3 and (l[p>a+.01].diff()>=0).all()
            torch.testing.assert_close(-l[p>=a], Focal(g).at(p)[p>=a])
            for c1 in False,True: assert (GBCE(g, a, c1).at(p).diff()<=1e-12).all()
    P = z.sigmoid(); J = 1-(P*t).sum((2,3))/((P**2).sum((2,3))+t.sum((2,3)))
    torch.testing.assert_close(Jaccard(form='literal', mode='multilabel', smooth=0)(z, t), (J.sum(1)/P.sum((1,2,3))).mean())
    torch.testing.assert_close(GBL(form='printed', mode='multilabel', batch=False)(z, t), (GBCE(form='printed')(z, t)+Jaccard(form='printed', average='both', mode='multilabel')(z, t))/2)

@pytest.mark.parametrize('g,c', [(0,1),(.5,1.0744),(1,1.1219),(2,1.1550)])
def test_slopes_at_alpha(g, c):
    def slope(p, **kw): x = torch.tensor(p, dtype=torch.float64, requires_grad=True); return torch.autograd.grad(GBCE(g, .2, **kw).at(x), x)[0].item()
    assert np.isclose(slope(.2-1e-9), -5, atol=1e-5) and np.isclose(slope(.2+1e-9), -5*c, atol=1e-3) and np.isclose(slope(.2-1e-9, c1=True), slope(.2+1e-9, c1=True), atol=1e-5)

def test_threshold_flattens_outliers():
    x = torch.tensor([[-30.],[-5.],[-2.]]); t = torch.ones(3, 1, dtype=torch.long)
    g = value_and_grad(GBCE(gamma=0, reduction='sum'), x, t)[1]; ce = value_and_grad(CrossEntropy(reduction='sum'), x, t)[1]
    assert (g.abs()<ce.abs()).all() and g[0].abs()<1e-6 and ce[0].abs()>.99

# --- what is left out, weights ----------------------------------------------------------------------------------
@all_kinds
@all_modes
@pytest.mark.parametrize('how', ['index','mask','soft'])
def test_ignoring_is_removing(kind, mode, how):
    z,t = batch(mode, (12,), seed=5, soft=how=='soft'); f = make(kind, mode=mode, ignore_index=255); keep = torch.arange(12)%3!=1
    zi = z.clone(); zi[...,~keep] = float('nan'); ti = t.clone(); ti[...,~keep] = 255
    args = (ti,) if how!='mask' else (t.clone().index_fill(-1, (~keep).nonzero()[:,0], 77),keep.expand(2,12))
    l,g = value_and_grad(f, zi, *args); l2,g2 = value_and_grad(make(kind, mode=mode), z[...,keep], t[...,keep])
    torch.testing.assert_close(l, l2); torch.testing.assert_close(g[...,keep], g2); assert (g[...,~keep]==0).all()

@all_kinds
@all_modes
def test_everything_ignored_gives_zero(kind, mode):
    z,t = batch(mode)
    l,g = value_and_grad(make(kind, mode=mode, ignore_index=9), z, torch.full_like(t, 9))
    assert l==0 and (g==0).all()

def test_mask_of_single_labels():
    z,t = batch('multilabel'); m = torch.rand(z.shape, generator=torch.Generator().manual_seed(1))>.4
    l = CrossEntropy('multilabel')(z, t, m); torch.testing.assert_close(l, F.binary_cross_entropy_with_logits(z[m], t[m].float()))
    d = Dice(mode='multilabel', reduction='none', smooth=0)(z, t, m); p = z.sigmoid()*m
    torch.testing.assert_close(d, 1-2*(p*t).sum((2,3))/(p.sum((2,3))+(t*m).sum((2,3))))

@all_kinds
@all_modes
def test_equal_weights_change_nothing(kind, mode):
    z,t = batch(mode); n = z.shape[1]
    torch.testing.assert_close(make(kind, mode=mode, weight=[3.]*n)(z, t), make(kind, mode=mode)(z, t))

@all_kinds
def test_weight_zero_leaves_a_label_out(kind, mode='multilabel'):
    z,t = batch(mode)
    torch.testing.assert_close(make(kind, mode=mode, weight=[1.,0.,1.])(z, t), make(kind, mode=mode)(z[:,[0,2]], t[:,[0,2]]))

def test_weights_are_moved_and_saved():
    f = Dice(weight=[1,2,3]); assert 'weight' in f.state_dict()
    z,t = batch('multiclass'); assert f(z.double(), t).dtype==torch.float64

# --- invariances -------------------------------------------------------------------------------------------------
@all_kinds
@all_modes
def test_order_does_not_matter(kind, mode):
    z,t = batch(mode, (3,4)); f = make(kind, mode=mode); ref = f(z, t); o = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(f(z.flip(0), t.flip(0)), ref)
    torch.testing.assert_close(f(z.flatten(2)[...,o], t.flatten(-2)[...,o]), ref)
    if mode!='multiclass': torch.testing.assert_close(f(z.flip(1), t.flip(1)), ref)
    else: torch.testing.assert_close(f(z.flip(1), 2-t), ref)
    torch.testing.assert_close(f(z.to(memory_format=torch.channels_last), t), ref)

BY_IMAGE = [k for k in KINDS if k not in ('dice_batch','fpa','combo','gbl')]
@pytest.mark.parametrize('kind', KINDS)
@all_modes
def test_dependence_on_the_batch_is_as_documented(kind, mode):
    z,t = batch(mode, b=4, seed=2); z,t = torch.cat([z,z[:1]-3]),torch.cat([t,torch.zeros_like(t[:1])]); f = make(kind, mode=mode)
    alone = torch.stack([f(z[i:i+1], t[i:i+1]) for i in range(5)]).mean()
    assert torch.isclose(f(z, t), alone, atol=1e-5)==(kind in BY_IMAGE)

@all_kinds
def test_modes_agree_where_they_meet(kind):
    z,t = batch('binary'); l = make(kind, mode='binary')(z, t)
    torch.testing.assert_close(make(kind, mode='binary')(z, t[:,0]), l); torch.testing.assert_close(make(kind, mode=None)(z, t), l)
    torch.testing.assert_close(make(kind, mode='multilabel')(z, t), l)
    for dtype in torch.uint8,torch.bool,torch.int32,torch.float32: torch.testing.assert_close(make(kind, mode='binary')(z, t.to(dtype)), l)
    z,t = batch('multiclass'); l = make(kind, mode='multiclass')(z, t)
    for tt in t[:,None],t.to(torch.uint8),F.one_hot(t, 3).movedim(-1, 1),F.one_hot(t, 3).movedim(-1, 1).float(): torch.testing.assert_close(make(kind, mode='multiclass')(z, tt), l)

@all_kinds
@pytest.mark.parametrize('shape', [(),(1,),(5,),(1,1),(2,3,4)])
def test_any_number_of_dimensions(kind, shape):
    for mode in MODES:
        for b in 1,3:
            z,t = batch(mode, shape, b=b); l,g = value_and_grad(make(kind, mode=mode), z, t)
            assert l.ndim==0 and l.isfinite() and g.isfinite().all()

def test_reductions():
    for mode in MODES:
        z,t = batch(mode)
        for k in 'ce','focal','gbce','dice','dice_batch','dice_micro','jaccard_both','fpa':
            a,b,c = (make(k, mode=mode, reduction=r)(z, t) for r in ('none','sum','mean'))
            torch.testing.assert_close(a.sum(), b); torch.testing.assert_close(a.mean(), c)
        pixels = (2,4,3) if mode=='multiclass' else z.shape
        assert CrossEntropy(mode, reduction='none')(z, t).shape==pixels
        assert Dice(mode=mode, reduction='none')(z, t).shape==z.shape[:2] and Dice(mode=mode, reduction='none', batch=True)(z, t).shape==z.shape[1:2]

# --- blank images -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['dice','dice_sq','jaccard','jaccard_plain','dice_batch','fpa','dice_s0'])
def test_blank_images(kind):
    t = torch.zeros(1,1,8,8); f = make(kind)
    assert f(torch.full_like(t, -200.), t).abs()<1e-6
    assert f(torch.full_like(t, 20.), t)>.9
    assert f(torch.full_like(t, -20.), t)<=f(torch.full_like(t, 0.), t)

def test_present_counts_only_what_is_there():
    z,t = batch('multilabel', b=3); t[0,1] = 0; t[2] = 0
    d = Dice(mode='multilabel', reduction='none')(z, t); got = Dice(mode='multilabel', classes='present')(z, t)
    torch.testing.assert_close(got, (d[0,[0,2]].mean()+d[1].mean()+0)/3)
    assert (value_and_grad(Dice(mode='multilabel', classes='present'), z, t)[1][2]==0).all()

# --- it lives in training loops -------------------------------------------------------------------------------
@pytest.mark.parametrize('kind,mode', [*((k,m) for k in ('ce','combo','gbl') for m in MODES), ('focal.5','binary'), ('gbce_c1','multilabel'), ('dice_s0','multiclass'), ('jaccard_literal','multilabel'), ('fpa','binary'), ('combo_pixel','multiclass')])
def test_compiles_whole(kind, mode):
    torch._dynamo.reset()
    z,t = batch(mode); f = make(kind, mode=mode, weight=[2.]*z.shape[1], ignore_index=255); t[...,0] = 255
    g = torch.compile(f, backend='aot_eager', fullgraph=True)
    for a,b in zip(value_and_grad(f, z, t), value_and_grad(g, z, t)): torch.testing.assert_close(a, b)

@all_kinds
def test_copies_and_repr(kind):
    f = make(kind, weight=[1.,2.,3.], ignore_index=255); z,t = batch('multilabel'); ref = make(kind, mode='multilabel', weight=[1.,2.,3.])(z, t)
    f.mode = 'multilabel'
    for o in copy.deepcopy(f),pickle.loads(pickle.dumps(f)): assert torch.equal(o(z, t), ref) and repr(o)==repr(f)
    assert repr(eval(repr(f)))==repr(f) and '\n' not in repr(f)

def test_fastai_types_and_predictions():
    from fastai.vision.core import TensorImage,TensorMask
    z,t = batch('multiclass')
    for k in KINDS:
        l = make(k, mode='multiclass')(TensorImage(z), TensorMask(t)); assert type(l) is torch.Tensor and torch.equal(l, make(k, mode='multiclass')(z, t))
    f = Dice(); assert f.activation(z).sum(1).allclose(torch.ones(2,4,3)) and torch.equal(f.decodes(f.activation(z)), z.argmax(1))
    z,_ = batch('multilabel'); f = Dice(mode='multilabel'); assert torch.equal(f.decodes(f.activation(z)), z>0)

def test_second_derivatives():
    z,t = batch('multiclass', dtype=torch.float64); z.requires_grad_()
    for k in 'dice_sq','focal','gbl': 
        g = torch.autograd.grad(make(k, mode='multiclass')(z, t), z, create_graph=True)[0]; assert torch.autograd.grad(g.square().sum(), z)[0].isfinite().all()

def test_ignoring_156_in_bytes_is_not_ignoring_minus_100():
    z,_ = batch('binary'); t = torch.ones(2,1,4,3, dtype=torch.uint8)
    assert torch.equal(CrossEntropy(ignore_index=-255)(z, t), CrossEntropy()(z, t))

# --- bad input --------------------------------------------------------------------------------------------------
Z,T = batch('multiclass'); ZL,TL = batch('multilabel'); ZB,TB = batch('binary')
@pytest.mark.parametrize('f,args,kind,says', [
    (Dice(), (T, T), ShapeError, 'floating-point logits'), (Dice(), ([1.], T), ShapeError, 'floating-point logits'), (Dice(), (Z[:,0,0,0], T), ShapeError, r'expected \(B,C\)'),
    (Dice(), (Z[:0], T[:0]), ShapeError, 'at least one value'), (Dice(), (Z, None), ShapeError, 'target: got None'), (Dice(), (Z, T[:1]), ShapeError, r'class numbers \(2, 4, 3\)'),
    (Dice(), (Z, T.float()), ShapeError, 'integer class numbers'), (Dice(), (ZL, TL), ShapeError, "say mode='multilabel'"), (Dice(mode='binary'), (Z, T), ShapeError, 'one channel'),
    (Dice(mode='multiclass'), (ZB, TB[:,0]), ShapeError, 'two channels or more'), (Dice(mode='multilabel'), (ZL, TL[:,:2]), ShapeError, 'shape of the logits'),
    (Dice(), (Z, T+1), ArgumentError, 'got 3; expected class numbers from 0 to 2'), (Dice(), (Z, T-1), ArgumentError, 'got -1'), (Dice(ignore_index=3), (Z, T-1), ArgumentError, 'got -1; .*or 3 where nothing counts'),
    (Dice(), (ZB, 255*TB), ArgumentError, 'got 255; expected 0 or 1'), (Dice(), (ZB, TB+.5), ArgumentError, 'shares from 0 to 1'), (Dice(), (ZB, TB*float('nan')), ArgumentError, 'got nan'),
    (Dice(mode='multiclass'), (Z, Z), ArgumentError, 'shares'), (Dice(weight=[1,2]), (Z, T), ShapeError, 'expected 2 channels'), (Dice(), (Z, T, T[:1]), ShapeError, 'mask: .*expected'),
    (Dice(background=False), (ZB, TB), ArgumentError, 'background'), (Focal(alpha=.25), (Z, T), ArgumentError, 'give several classes a weight')])
def test_bad_batches(f, args, kind, says):
    with pytest.raises(kind, match=says) as e: f(*args)
    assert '\n' not in str(e.value) and isinstance(e.value, MedattnError)

@pytest.mark.parametrize('name,kw,says', [
    ('dice', dict(mode='multi'), "mode: got multi; choose one of 'binary'"), ('dice', dict(reduction='avg'), 'reduction'), ('dice', dict(average='weighted'), 'average'), ('dice', dict(classes='some'), 'classes'),
    ('dice', dict(smooth=-1), 'smooth'), ('dice', dict(weight=[-1,1]), 'weight'), ('dice', dict(weight=[[1]]), 'weight'), ('dice', dict(weight=[0,0]), 'not all 0'), ('focal', dict(gamma=-1), 'gamma: got -1'),
    ('focal', dict(gamma=True), 'gamma'), ('focal', dict(gamma=float('nan')), 'gamma'), ('focal', dict(alpha=1.5), 'alpha'), ('gbce', dict(alpha=1), 'less than 1'), ('gbce', dict(alpha=-.1), 'alpha'),
    ('gbce', dict(form='literal'), 'form'), ('gbce', dict(form='printed', c1=True), 'c1'), ('jaccard', dict(form='x'), 'form'), ('combo', dict(dice='row'), 'dice'), ('gbl', dict(alpha=2), 'alpha'),
    ('gbl', dict(reduction='sum'), "'gbl' accepts gamma"), ('dice', dict(gamma=1), "'dice' accepts squared"), ('dise', {}, "choose one of ce")])
def test_bad_settings(name, kw, says):
    with pytest.raises(ArgumentError, match=says): create(name, **kw)

def test_registry():
    assert available()==['ce','combo','dice','focal','fpa_dice','gbce','gbl','jaccard'] and all(isinstance(create(n), Loss) for n in available())
    with pytest.raises(ArgumentError, match='is taken by Dice'): register('dice')(Jaccard)
    assert register('dice')(Dice) is Dice

def test_values_are_not_read_on_other_devices():
    "A target on a device that holds no values: shapes are checked, values are not"
    z,t = (o.to('meta') for o in batch('multiclass'))
    assert Dice()(z, t).shape==() and CrossEntropy(weight=[1,2,3], ignore_index=7)(z, t).shape==()
    with pytest.raises(ShapeError): Dice()(z, t[:1])
