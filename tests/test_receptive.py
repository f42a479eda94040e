"What is no lesson: fields of random chains against the formula and against NaN, finite differences, places and sizes, awkward networks, leaving the model alone, bad input"
import copy
from collections import OrderedDict
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given,settings,strategies as st
from torch import nn
from torch.nn import functional as F
from medattn_nb.attention import available,create
from medattn_nb.backbones import resnet18,shufflenetv2
from medattn_nb.core import ArgumentError,ShapeError
from medattn_nb.lab.receptive import *

def conv(ni=2, no=2, k=3, s=1, d=1, **kw): return nn.Conv2d(ni, no, k, s, d*(k//2), d, **kw)

def formula(layers):
    r,j = 1,1
    for k,s,d in layers: r,j = r+d*(k-1)*j,j*s
    return r

def poisoned(net, h, w, unit, c=1):
    "Which pixels turn the unit into NaN when they are NaN"
    m,x = copy.deepcopy(net).double().eval(),torch.zeros(h*w, c, h, w, dtype=torch.float64)
    for i in range(h*w): x[i,:,i//w,i%w] = float('nan')
    with torch.no_grad(): return m(x)[:,:,unit[0],unit[1]].isnan().any(1).view(h, w).numpy()

# --- theoretical ---------------------------------------------------------------------------------------
layer = st.tuples(st.sampled_from([1,2,3,5,7]), st.sampled_from([1,1,2,3]), st.sampled_from([1,1,2,6]))

@settings(max_examples=20, deadline=None)
@given(st.lists(layer, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_chains_equal_the_formula(layers, pool, norm):
    r,jump = formula(layers),int(np.prod([s for _,s,_ in layers]))
    if r>150: return
    mods = []
    for i,(k,s,d) in enumerate(layers):
        mods.append(nn.MaxPool2d(k, s, 0, d) if pool and i%2 else nn.Conv2d(1 if not mods else 2, 2, k, s, 0, d))
        if norm and isinstance(mods[-1], nn.Conv2d): mods.append(nn.BatchNorm2d(2))
        mods.append(nn.ReLU(inplace=True))
    f = receptive_field(nn.Sequential(*mods), size=r+2*jump)
    assert (f.height,f.width)==(r,r) and not f.other and not f.whole_image
    top = f.unit[0]*jump
    assert f.box==(top,top,top+r,top+r)

@pytest.fixture(scope='module')
def net18(): return resnet18()

@pytest.mark.parametrize('k,size,r', [(1,96,43),(2,160,99),(4,512,435)])
def test_resnet18(net18, k, size, r):
    f = receptive_field(net18, f'layer{k}', size=size)
    assert f.height==f.width==r and f.pixels==r*r and not f.clipped

def test_resnet18_by_torchvision_and_shufflenet():
    assert receptive_field(torchvision.models.resnet18(weights=None), 'layer3', size=300).height==211
    assert receptive_field(shufflenetv2(), 'stage3', size=350).height==303

class Branches(nn.Module):
    def __init__(self, up='nearest'):
        super().__init__()
        self.a,self.b,self.c,self.up = conv(1, 4),nn.Sequential(conv(1, 4, s=2), nn.InstanceNorm2d(4), nn.LeakyReLU(), conv(4, 4, 5, d=2)),conv(8, 4, 1),up
        self.gamma = nn.Parameter(torch.zeros(1))
    def forward(self, x):
        a,b = self.a(x),F.interpolate(self.b(x), size=x.shape[2:], mode=self.up)
        y = self.c(torch.cat([a, b], 1)).chunk(2, 1)
        return (1-torch.sigmoid(y[0]))*y[1]*self.gamma+a[:,:2]/2

def test_branches_and_zero_weights():
    net = Branches(); f = receptive_field(net, size=27)
    net.b[1] = nn.Identity()
    np.testing.assert_array_equal(f.mask, poisoned(net, 27, 27, f.unit))
    assert f.whole_image==('instance_norm',) and not f.other
    assert receptive_field(net, 'b.0', size=27).height==3 and receptive_field(net, 'c', size=27).box==f.box
    assert receptive_field(Branches('bilinear'), size=27).height>=f.height

@pytest.mark.parametrize('mod', [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d((2,3), dilation=2), nn.AvgPool2d(3, 2), nn.MaxPool2d(2, 2, ceil_mode=True),
    nn.ConvTranspose2d(2, 2, 3, 2, 1, output_padding=1), nn.ConvTranspose2d(2, 4, 4, 2, groups=2), conv(2, 4, groups=2), nn.Conv2d(2, 2, (3,1), padding='same', dilation=2), conv(padding_mode='reflect'),
    nn.PixelShuffle(1), nn.GELU(), nn.PReLU(2), nn.Softmax(1), nn.AdaptiveMaxPool2d(100), nn.LocalResponseNorm(2), nn.Hardswish(True), nn.Dropout2d(), nn.LPPool2d(2, 2)], ids=lambda m: f'{m}'[:40])
@pytest.mark.parametrize('h,w', [(13,13),(12,15)])
def test_modules_against_nan(mod, h, w):
    net = nn.Sequential(conv(1, 2), mod)
    f = receptive_field(net, size=(h,w))
    np.testing.assert_array_equal(f.mask, poisoned(net, h, w, f.unit))

@pytest.mark.parametrize('name', available())
def test_attention_of_the_library(name):
    net = nn.Sequential(conv(1, 32), create(name, 32), conv(32, 2))
    f,g = (receptive_field(net, size=25, paths=p) for p in ('local','all'))
    assert not f.other and (f.mask<=g.mask).all() and f.height==f.width
    if name not in ('cbam','spatial','bam','soft-mask'): assert f.pixels==25
    if name in ('cbam','spatial'): assert f.height==11
    assert bool(f.whole_image)==(name not in ('sse','spatial','control','constant','soft-mask'))==bool(g.whole_image)
    if f.whole_image: assert g.pixels==625

@pytest.mark.parametrize('norm,whole', [(nn.BatchNorm2d(4),False),(nn.InstanceNorm2d(4),True),(nn.InstanceNorm2d(4, track_running_stats=True),False),(nn.GroupNorm(2,4),True),(nn.LayerNorm([4,15,15]),True),(nn.Softmax(2),True),(nn.AdaptiveAvgPool2d(15),False)], ids=lambda o: str(o)[:30])
def test_norms(norm, whole):
    net = nn.Sequential(conv(1, 4), norm)
    f,g = (receptive_field(net, size=15, paths=p) for p in ('local','all'))
    assert f.pixels==9 and bool(f.whole_image)==whole and (g.pixels>9)==whole and bool(g.whole_image)==whole

def test_squeeze_by_view_and_attention_by_hand():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.c,self.fc = conv(1, 4),nn.Linear(4, 4)
        def forward(self, x):
            x = self.c(x); g = torch.sigmoid(self.fc(x.view(x.size(0), x.size(1), -1).mean(2)))
            q = x.flatten(2).transpose(1,2)
            a = torch.softmax(q@q.transpose(1,2)/2, -1)@q
            return x*g[...,None,None]+a.transpose(1,2).reshape(x.shape)+F.scaled_dot_product_attention(q, q, q).transpose(1,2).unflatten(2, x.shape[2:])
    f,g = (receptive_field(Net(), size=(9,10), paths=p) for p in ('local','all'))
    assert f.pixels==9 and f.whole_image==('attention','mean') and g.pixels==90 and not f.other

def test_holes_odd_and_even_sizes_one_pixel():
    assert receptive_field(conv(1, 1, d=6), size=31).pixels==9
    for n in 1,2,3,8:
        f = receptive_field(conv(1, 1), size=n); assert f.unit==(n//2,n//2) and f.grid==(n,n) and f.clipped==(n<4)
    f = receptive_field(nn.Conv2d(3, 1, 1), size=1); assert f.box==(0,0,1,1) and f.clipped and f.centre==(0,0)
    assert receptive_field(conv(1, 1), size=9, unit=(0,8)).box==(0,7,2,9)

def test_a_unit_further_on_sees_further_on():
    net = nn.Sequential(conv(1, 2, s=2), nn.MaxPool2d(2), conv(2, 2, d=2))
    a,b = (receptive_field(net, size=96, unit=u) for u in ((10,11),(12,14)))
    np.testing.assert_array_equal(np.roll(a.mask, (8,12), (0,1)), b.mask)

def test_deep_networks_do_not_underflow():
    f = receptive_field(nn.Sequential(*(conv(1, 1) for _ in range(60))), size=127)
    assert f.height==121 and f.pixels==121**2
    f = receptive_field(nn.Sequential(*(o for _ in range(700) for o in (nn.AvgPool2d((1,3), 1, (0,1)), nn.ReLU()))), size=(1,1,1403))  # 3**-700 is 0 in double precision
    assert f.width==f.pixels==1401

def test_unknown_functions_are_named_and_in_place_works():
    class Odd(nn.Module):
        def forward(self, x):
            y = x.clone(); y.mul_(F.pad(x, (1,0))[...,:-1]); y += 1
            return torch.special.erfcx(y)
    f = receptive_field(Odd(), size=(1,9,9)); assert f.pixels==2 and f.other==('special_erfcx',)

# --- effective -----------------------------------------------------------------------------------------
def smooth(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(conv(2, 4, s=2), nn.Tanh(), conv(4, 3, d=2), nn.Sigmoid()).double()

@pytest.mark.parametrize('channels', ['sum',1])
def test_finite_differences(channels):
    net,x = smooth(),torch.randn(2, 2, 10, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    e = effective_receptive_field(net, x, channels=channels, keep=True)
    r,c = e.theory.unit
    def value(x):
        with torch.no_grad(): o = net(x)[:,:,r,c]
        return o.sum(1) if channels=='sum' else o[:,1]
    want = np.zeros((2,2,10,11))
    for i in np.ndindex(2, 10, 11):
        d = torch.zeros_like(x); d[(slice(None),*i)] = 1e-5
        want[(slice(None),*i)] = (value(x+d)-value(x-d)).numpy()/2e-5
    np.testing.assert_allclose(e.maps, np.abs(want).mean(1), atol=1e-8)
    np.testing.assert_allclose(e.map, e.maps.mean(0)); assert ((e.map>0)<=e.theory.mask).all()

def test_a_shifted_image_and_unit_give_a_shifted_map():
    net = smooth(); x = torch.zeros(1, 2, 48, 48, dtype=torch.float64); x[...,18:30,18:30] = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    a,b = effective_receptive_field(net, x, unit=(12,12), draws=0),effective_receptive_field(net, x.roll((4,6), (2,3)), unit=(14,15), draws=0)
    np.testing.assert_allclose(np.roll(a.map, (4,6), (0,1)), b.map, atol=1e-12); assert a['radius']==pytest.approx(b['radius']) and a['share']==b['share']

def test_random_signs_seeds_and_batches():
    net = smooth(); kw = dict(n=5, draws=20, keep=True)
    a,b,c = (effective_receptive_field(net, 16, channels='random', seed=s, **kw) for s in (0,0,1))
    np.testing.assert_array_equal(a.maps, b.maps); assert a.sizes.equals(b.sizes) and not np.allclose(a.maps, c.maps)
    s = effective_receptive_field(net, 16, **kw); assert not np.allclose(a.maps, s.maps)
    np.testing.assert_allclose(effective_receptive_field(net, 16, bs=1, **kw).maps, s.maps, atol=1e-12)
    assert (s.sizes.low<=s.sizes.high)[['side','radius','share']].all() and s.n==5 and effective_receptive_field(net, 16, n=1).sizes.low.isna().all()

def state(m):
    return ([o.training for o in m.modules()], [(p.requires_grad, p.grad, p.detach().clone()) for p in m.parameters()], {k:v.clone() for k,v in m.state_dict().items()},
            [(len(o._forward_hooks),len(o._forward_pre_hooks),len(o._backward_hooks)) for o in m.modules()], torch.get_rng_state())

def same(a, b):
    assert a[0]==b[0] and a[3]==b[3] and torch.equal(a[4], b[4]) and all(torch.equal(a[2][k], b[2][k]) for k in a[2])
    assert all(x[0]==y[0] and x[1] is y[1] and torch.equal(x[2], y[2]) for x,y in zip(a[1], b[1]))

@pytest.mark.parametrize('mode', ['eval','train'])
@pytest.mark.parametrize('training', [False,True])
def test_leaves_the_model_as_found(mode, training):
    m = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), nn.Dropout(.3), nn.ReLU(inplace=True), conv(4, 2)).train(training)
    m[0].weight.requires_grad_(False); m(torch.randn(2, 1, 8, 8)).sum().backward(); m[1].eval(); x = torch.randn(3, 1, 12, 12)
    wrong = torch.randn(2, 3, 8, 8); before,x0 = state(m),x.clone()
    with torch.no_grad(): e = effective_receptive_field(m, x, mode=mode, draws=0)
    receptive_field(m, size=12); same(state(m), before); assert torch.equal(x, x0) and not x.requires_grad and (e.map>0).any()
    for bad in dict(layer='7'),dict(unit=(99,0)),dict(channels=9):
        with pytest.raises(ArgumentError): effective_receptive_field(m, x, mode=mode, **bad)
        same(state(m), before)
    with pytest.raises(RuntimeError): effective_receptive_field(m, wrong)
    same(state(m), before)

def test_train_mode_counts_the_batch():
    torch.manual_seed(0); m = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 1)).double()
    x = torch.randn(4, 1, 9, 9, dtype=torch.float64); e = effective_receptive_field(m, x, mode='train', keep=True, draws=0)
    d = 1e-6; step = torch.zeros_like(x); step[1,0,0,0] = d
    m2 = copy.deepcopy(m).train()
    with torch.no_grad(): want = (m2(x+step)-m2(x-step))[1,0,4,4]/(2*d)
    assert e.maps[1,0,0]==pytest.approx(abs(float(want)), rel=1e-4) and e['outside']>0
    assert effective_receptive_field(m, x, draws=0)['outside']==pytest.approx(0, abs=1e-12)

def test_layers_in_the_middle_and_in_place_behind_them():
    m = nn.Sequential(conv(1, 2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(99, 2))
    e = effective_receptive_field(m, 9, '0', n=2, draws=0)
    want = m[0].weight.detach().sum(0)[0].abs().numpy()
    np.testing.assert_allclose(e.map[3:6,3:6], want, rtol=1e-5)
    assert e.theory.layer=='0' and 'unit (4, 4) of 0' in e.caption

def test_a_dead_network_has_no_size():
    m = nn.Sequential(conv(1, 1), nn.ReLU()); m[0].bias.data.fill_(-1e6)
    e = effective_receptive_field(m, 9, n=3); assert not e.map.any() and e.sizes.value.isna().all()
    receptive_figure({'dead':e}); assert np.isnan(half_width(e))

# --- sizes ---------------------------------------------------------------------------------------------
@given(st.integers(0,12), st.integers(0,9), st.floats(1e-6,1e6))
def test_sizes_do_not_depend_on_place_or_scale(r, c, k):
    m = np.zeros((20,20)); m[r:r+5,c:c+7] = np.arange(35).reshape(5,7)+1
    base = np.zeros((20,20)); base[:5,:7] = m[r:r+5,c:c+7]
    a,b = map_sizes(k*m),map_sizes(base)
    assert a['side']==b['side'] and a['radius']==pytest.approx(b['radius'])

def test_sizes_of_simple_maps():
    assert map_sizes(np.ones((1,1)))|{'share':0,'outside':0}=={'side':1.,'radius':0.,'share':0,'outside':0}
    m = np.zeros((9,9)); m[0,0] = m[0,8] = 1; s = map_sizes(m); assert s['side']==2**.5 and s['radius']==4
    m[4,4] = .04; assert map_sizes(m)['side']==2**.5 and map_sizes(m, threshold=.01)['side']==3**.5
    f = receptive_field(conv(1, 1), size=9); s = map_sizes(np.ones((9,9)), f); assert s['share']==9 and s['outside']==pytest.approx(8/9)

def test_table_and_figure():
    fs = [effective_receptive_field(smooth(i), (14,17), n=3, draws=10) for i in range(3)]
    t = field_table(dict(one=fs[0], all=fs)); assert t.spread.tolist()==['95 % over 3 images','range of 3 runs']
    assert t.side['one']==fs[0]['side'] and t.radius_low['all']==min(f['radius'] for f in fs) and t.radius['all']==pytest.approx(np.mean([f['radius'] for f in fs]))
    fig = receptive_figure({str(i):f for i,f in enumerate(fs)}, half=8); assert 'table' in fs[0]._repr_html_() and '<td>' in fs[0].theory._repr_html_() and len(repr(fs[0]))<900
    assert fig.subfigs[0].axes[0].get_xlim()==(-8,8)

# --- bad input -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw,error,says', [
    (dict(layer='layr1'),ArgumentError,'layer1'),(dict(layer=''),ArgumentError,'no such module'),(dict(layer='fc'),ShapeError,'no feature map'),(dict(),ShapeError,'no feature map'),(dict(layer='layer1', unit=(1,2,3)),ArgumentError,'unit'),
    (dict(layer='layer1', unit=3),ArgumentError,'unit'),(dict(layer='layer1', unit=(-1,0)),ArgumentError,'row from 0'),(dict(size=0),ArgumentError,'size'),(dict(size=(1,2,3,4)),ArgumentError,'size'),(dict(size='big'),ArgumentError,'size'),
    (dict(paths='global'),ArgumentError,"'local' or 'all'"),(dict(layer=3),ArgumentError,'no such module')])
def test_bad_arguments(kw, error, says):
    net = nn.Sequential(OrderedDict(layer1=conv(1), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(2, 2)))
    with pytest.raises(error, match=says): receptive_field(net, **{'size':16, **kw})

@pytest.mark.parametrize('kw,says', [(dict(channels='all'),'channels'),(dict(channels=-1),'channels'),(dict(channels=True),'channels'),(dict(channels=7),'channels 0 to 2'),(dict(mode='test'),'mode'),(dict(n=0),'n:'),(dict(bs=0),'bs'),(dict(x=torch.zeros(0,2,8,8)),'at least one'),
    (dict(x=torch.zeros(2,8,8)),'add the batch'),(dict(x=torch.zeros(1,2,8,8, dtype=torch.int64)),'floating'),(dict(x=np.zeros((1,2,8,8))),'x')])
def test_bad_arguments_of_the_effective_field(kw, says):
    with pytest.raises(ArgumentError, match=says): effective_receptive_field(smooth(), **{'x':12, **kw})

@pytest.mark.filterwarnings('ignore:.*torch.jit.script')
def test_bad_models_and_maps():
    class Unused(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = conv(1, 1),conv(1, 1)
        def forward(self, x): return self.a(x)
    with pytest.raises(ArgumentError, match='does not run'): receptive_field(Unused(), 'b', size=8)
    class Cut(nn.Module):
        def forward(self, x): return x.detach()*2
    for f in (receptive_field,effective_receptive_field):
        with pytest.raises(ArgumentError): f(Cut(), **{'size' if f is receptive_field else 'x':(1,8,8)})
        with pytest.raises(ArgumentError, match='model'): f('resnet')
    with pytest.raises(ArgumentError, match='model'): receptive_field(torch.jit.script(conv(1, 1)), size=8)
    for m in (np.ones(3),-np.ones((3,3)),np.full((3,3), np.nan)):
        with pytest.raises(ArgumentError): map_sizes(m)
    with pytest.raises(ArgumentError): map_sizes(np.ones((3,3)), threshold=0)
    for f in (lambda: receptive_figure({}),lambda: field_table({'a':[]})):
        with pytest.raises(ArgumentError): f()
