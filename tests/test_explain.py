"What is no lesson: gradcam leaves the model alone, equals a cut network, batch equals single, awkward models and sizes; localisation properties"
import copy
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given,settings,strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn import functional as F
from medattn_nb.attention import insert_attention
from medattn_nb.backbones import resnet18
from medattn_nb.core import ArgumentError
from medattn_nb.lab.explain import *

def images(b=3, c=3, h=64, w=64, seed=0): return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed))

class Small(nn.Module):
    "Two convolutions, pooling, `k` logits; `act` acts on the features after module `body`"
    def __init__(self, k=2, act=lambda o: o, seed=0):
        super().__init__(); torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.ReLU(), nn.Conv2d(8,8,3,2,1)); self.fc = nn.Linear(8,k); self.act = act
    def forward(self, x): return self.fc(self.act(self.body(x)).mean((2,3)))

def by_hand(A, head, c):
    "Raw maps (B,h,w) of class `c` from features `A` and the rest of the network"
    A = A.detach().requires_grad_(); g, = torch.autograd.grad(head(A)[:,c].sum(), A)
    return F.relu((g.mean((2,3), keepdim=True)*A).sum(1)).detach()

def up(raw, size): return F.interpolate(raw[:,None], size=size, mode='bilinear', align_corners=False)[:,0].numpy()

@pytest.mark.parametrize('attention', [None,'se','cbam','gc'])
@pytest.mark.parametrize('size', [(64,64),(65,97)])
def test_equals_the_cut_network(attention, size):
    torch.manual_seed(0); m = resnet18(attention=attention, keep_identity=False).eval(); x = images(2, 3, *size)
    with torch.no_grad(): A = m.layer4(m.layer3(m.layer2(m.layer1(m.maxpool(m.relu(m.bn1(m.conv1(x))))))))
    for c in 0,1:
        r = gradcam(m, x, c, normalise=None); raw = by_hand(A, lambda a: m.fc(a.mean((2,3))), c)
        np.testing.assert_allclose(r.maps, up(raw, size), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(r.peaks, raw.amax((1,2)), rtol=1e-3, atol=1e-6)
        assert r.layer=='layer4.1' and r.grid==tuple(A.shape[2:]) and r.maps.shape==(2,*size)
    np.testing.assert_allclose(r.probs, m(x).softmax(1).detach(), rtol=1e-4)

def state(m):
    return ([o.training for o in m.modules()], [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in m.parameters()],
            [(len(o._forward_hooks),len(o._forward_pre_hooks),len(o._backward_hooks)) for o in m.modules()], {k:v.clone() for k,v in m.state_dict().items()})

def same(a, b):
    assert a[0]==b[0] and a[2]==b[2] and all(torch.equal(a[3][k], b[3][k]) for k in a[3])
    for (f,g),(h,i) in zip(a[1], b[1]): assert f==h and (g is None)==(i is None) and (g is None or torch.equal(g, i))

def test_leaves_everything_as_it_was():
    m = resnet18(attention='cbam').train(); m.layer1.eval().requires_grad_(False); x = images()
    F.cross_entropy(m(x), torch.tensor([0,1,1])).backward()
    calls = []; m.layer4.register_forward_hook(lambda *a: calls.append(1))
    before,rng,x0 = state(m),torch.get_rng_state(),x.clone()
    gradcam(m, x); same(state(m), before); assert calls and torch.equal(x, x0) and not x.requires_grad and torch.equal(torch.get_rng_state(), rng)
    for kw in dict(target=5),dict(layer='nowhere'),dict(layer='fc'):
        with pytest.raises(ArgumentError): gradcam(m, x, **kw)
        same(state(m), before)
    with pytest.raises(RuntimeError): gradcam(m, images(1, 5))
    same(state(m), before)
    random_weights(m); same(state(m), before); attention_maps(m, x); same(state(m), before)

@pytest.mark.parametrize('ctx', [torch.no_grad,torch.inference_mode,torch.enable_grad])
def test_works_inside_any_grad_mode(ctx):
    m = Small().eval(); want = gradcam(m, images()).maps
    with ctx(): np.testing.assert_array_equal(gradcam(m, images()).maps, want); assert torch.is_grad_enabled()==(ctx is torch.enable_grad)
    np.testing.assert_array_equal(gradcam(m.requires_grad_(False), images()).maps, want)
    np.testing.assert_array_equal(gradcam(m, images().requires_grad_()).maps, want)

@pytest.mark.parametrize('normalise', ['image',None])
def test_batch_equals_single(normalise):
    m = resnet18(attention='gc', keep_identity=False); x = images(5)
    whole = gradcam(m, x, normalise=normalise)
    for i in range(5): np.testing.assert_allclose(gradcam(m, x[i:i+1], normalise=normalise).maps[0], whole.maps[i], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradcam(m, x, normalise='batch', bs=2).maps, gradcam(m, x, normalise='batch').maps, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(gradcam(m, x, normalise=normalise).maps, whole.maps)

def test_targets():
    m,x = Small(3),images(4); per = [gradcam(m, x, c, normalise=None).maps for c in range(3)]
    for t in [2,0,1,1],np.array([2,0,1,1]),torch.tensor([2,0,1,1]):
        r = gradcam(m, x, t, normalise=None, bs=3)
        for i,c in enumerate([2,0,1,1]): np.testing.assert_allclose(r.maps[i], per[c][i], rtol=1e-4, atol=1e-7)
        assert r.targets.tolist()==[2,0,1,1] and 'given for each' in r.caption
    r = gradcam(m, x, normalise=None); assert (r.targets==r.predicted).all() and 'predicted' in r.caption and 'body.2' in r.caption and 'raw' in r.caption
    for bad in 3,-1,[0,1],[0.,1,1,1],'1',True,[[0,1,1,1]]:
        with pytest.raises(ArgumentError, match='target'): gradcam(m, x, bad)

@pytest.mark.parametrize('flat', [False,True])
def test_single_logit(flat):
    one,x = Small(1),images(4); two = Small(2); two.body = one.body
    two.fc.weight.data = torch.cat([-one.fc.weight.data, one.fc.weight.data]); two.fc.bias.data = torch.cat([-one.fc.bias.data, one.fc.bias.data])
    class Flat(nn.Module):
        def __init__(self): super().__init__(); self.m = one
        def forward(self, x): return self.m(x)[:,0]
    for c in 0,1: np.testing.assert_allclose(gradcam(Flat() if flat else one, x, c).maps, gradcam(two, x, c).maps, atol=1e-5)
    p = gradcam(one, x).probs; assert p.shape==(4,2); np.testing.assert_allclose(p[:,1], one(x).sigmoid()[:,0].detach(), rtol=1e-5)
    assert (gradcam(one, x).targets==(p[:,1]>.5)).all()

def test_in_place_relu_behind_the_layer_changes_nothing():
    x = images(); want = gradcam(Small(act=F.relu), x, 1, 'body')
    np.testing.assert_array_equal(gradcam(Small(act=lambda o: F.relu(o, inplace=True)), x, 1, 'body').maps, want.maps)
    class First(nn.Sequential): pass
    gradcam(First(nn.ReLU(inplace=True), Small()), x)

def test_a_mirrored_image_has_a_mirrored_map():
    m = Small()
    for l in m.body[0],m.body[2]: l.weight.data = (l.weight.data+l.weight.data.flip(-1))/2
    x = images(2, 3, 33, 65); a,b = gradcam(m, x, 1).maps,gradcam(m, x.flip(-1), 1).maps
    np.testing.assert_allclose(b, a[...,::-1], atol=1e-4)

@pytest.mark.parametrize('h,w', [(16,16),(7,31),(128,127)])
def test_range_and_zero_maps(h, w):
    m,x = Small(),images(3, 3, h, w)
    for o in 'image','batch':
        r = gradcam(m, x, 1, normalise=o); assert r.maps.shape==(3,h,w) and r.maps.min()>=0 and r.maps.max()<=1 and np.isfinite(r.maps).all()
    nn.init.zeros_(m.fc.weight)
    for o in 'image','batch',None: assert not gradcam(m, x, 1, normalise=o).maps.any()

def test_normalisations_agree():
    m,x = Small(),images(); raw,im,ba = (gradcam(m, x, 1, normalise=o).maps for o in (None,'image','batch'))
    np.testing.assert_allclose(im*raw.max((1,2))[:,None,None], raw, rtol=1e-5, atol=1e-9); np.testing.assert_allclose(ba*raw.max(), raw, rtol=1e-5, atol=1e-9)

@pytest.mark.parametrize('args,msg', [
    (dict(x=images()[0]),'x\\[None\\]'), (dict(x=torch.zeros(2,3,8,8).int()),'x.float'), (dict(x='x'),'torch tensor'), (dict(x=images(0)),'at least one'),
    (dict(layer='layer9'),'body.2'), (dict(layer='fc'),'body'), (dict(layer=''),'body'), (dict(normalise='max'),"use 'image'"), (dict(bs=0),'bs'), (dict(model=len),'learn.model')])
def test_bad_input(args, msg):
    with pytest.raises(ArgumentError, match=msg): gradcam(**{**dict(model=Small(), x=images()), **args})

def test_odd_models():
    class Twice(Small):
        def forward(self, x): return self.fc((self.body[2](self.body[1](self.body[0](x)))+self.body[2](self.body[1](self.body[0](x.flip(-1))))).mean((2,3)))
    with pytest.raises(ArgumentError, match='2 times'): gradcam(Twice(), images(), layer='body.2')
    with pytest.raises(ArgumentError, match='leads to the logits'): gradcam(Small(act=lambda o: o.detach()), images(), layer='body.0')
    with pytest.raises(ArgumentError, match='larger than 1x1'): gradcam(Small(), images(1, 3, 2, 2), layer=None)
    with pytest.raises(ArgumentError, match='logits'): gradcam(nn.Sequential(nn.Conv2d(3,2,3), nn.ReLU()), images())
    m = Small(); m.fc.bias.data[0] = np.nan
    with pytest.raises(ArgumentError, match='nan logits'): gradcam(m, images())
    c = Small(); np.testing.assert_array_equal(gradcam(torch.compile(c), images()).maps, gradcam(c, images()).maps)
    assert gradcam(Small().double(), images().double()).maps.dtype in (np.float32,np.float64)
    assert np.isfinite(gradcam(Small().bfloat16(), images().bfloat16()).maps).all()

@pytest.mark.parametrize('make,layer', [
    (lambda: resnet18(), 'layer4.1'), (lambda: resnet18(attention='se'), 'layer4.1'), (lambda: resnet18(attention='cbam', where='ends'), 'layer4.attention'),
    (lambda: insert_attention(torchvision.models.resnet18(num_classes=2), 'gc'), 'layer4.1'), (lambda: torchvision.models.mobilenet_v3_small(num_classes=2), 'features.12'),
    (lambda: torchvision.models.squeezenet1_1(num_classes=2), 'classifier.2')])
def test_default_layer(make, layer):
    r = gradcam(make(), images(2, 3, 96, 96)); assert r.layer==layer and r.maps.shape==(2,96,96) and np.isfinite(r.maps).all()

def test_default_layer_of_timm():
    timm = pytest.importorskip('timm'); m = timm.create_model('resnet18', num_classes=2)
    assert cam_layer(m, images())=='layer4.1' and np.isfinite(gradcam(insert_attention(m, 'cbam'), images()).maps).all()

def test_small_images_and_vgg_pooling():
    assert cam_layer(resnet18(), images(1, 3, 32, 32))=='layer3.1'
    m = nn.Sequential(nn.Sequential(nn.Conv2d(3,4,3), nn.ReLU(), nn.MaxPool2d(2)), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196,2))
    assert cam_layer(m, images())=='0'
    sizes = cam_layers(m, images()); assert list(sizes)==['0.0','0.1','0.2','0','1'] and sizes['0']==(4,31,31)

def test_random_weights():
    m = resnet18(attention='cbam').eval(); rng = torch.get_rng_state(); a,b,c = random_weights(m),random_weights(m),random_weights(m, 1)
    assert torch.equal(torch.get_rng_state(), rng) and not a.training
    for (n,p),q,r,s in zip(m.named_parameters(), a.parameters(), b.parameters(), c.parameters()):
        assert torch.equal(q, r) and (p.ndim<2 or not torch.equal(p, q)) and (p.ndim<2 or not torch.equal(q, s))
    top = dict(random_weights(m, down_to='layer4').named_parameters())
    for n,p in m.named_parameters(): assert p.ndim<2 or torch.equal(p, top[n])==(not n.startswith(('layer4','fc')))
    with pytest.raises(ArgumentError, match='layer1'): random_weights(m, down_to='layer9')
    class Bare(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(4,2))
    assert random_weights(Bare()).w.abs().sum()>0

maps = arrays(np.float64, (3,5,7), elements=st.integers(0,5).map(float)); masks = arrays(bool, (3,5,7))

@settings(max_examples=150, deadline=None)
@given(maps, masks, st.sampled_from([.5,3.,1000.]))
def test_localisation_properties(cam, mask, k):
    e,h,area = energy_inside(cam, mask),pointing_game(cam, mask),area_fraction(mask)
    np.testing.assert_allclose(energy_inside(k*cam, mask), e); np.testing.assert_array_equal(pointing_game(k*cam, mask), h)
    for i in range(3):
        known = mask[i].any() and cam[i].any()
        assert np.isnan(e[i])==np.isnan(h[i])==(not known) and np.isclose(area[i], mask[i].mean())
        if not known: continue
        assert 0<=e[i]<=1 and 0<=h[i]<=1 and np.isclose(e[i], cam[i][mask[i]].sum()/cam[i].sum())
        top = cam[i]==cam[i].max(); assert np.isclose(h[i], mask[i][top].mean())
        assert h[i]<=pointing_game(cam[i], mask[i], 1)<=pointing_game(cam[i], mask[i], 20)==1
        if not mask[i].all(): assert np.isclose(e[i]+energy_inside(cam[i], ~mask[i]), 1)
    flat = np.full(cam.shape, .3); ok = mask.any((1,2))
    np.testing.assert_allclose(energy_inside(flat, mask)[ok], area[ok]); np.testing.assert_allclose(pointing_game(flat, mask)[ok], area[ok])

def test_localisation_inputs():
    cam = np.random.default_rng(0).uniform(size=(3,4,4)); mask = np.zeros((3,4,4), bool); mask[0,1,1] = mask[2,3] = True
    want = energy_inside(cam, mask)
    for m in [mask[0],None,mask[2]],torch.tensor(mask),torch.tensor(mask)[:,None],mask.astype(np.uint8): np.testing.assert_array_equal(energy_inside(cam, m), want)
    t = localisation(cam, mask, 1); assert t.index.tolist()==[0,2] and (t.chance>t.area).all() and np.allclose(t.ratio, t.energy/t.area)
    assert localisation(0*cam, mask).blank.all() and localisation(0*cam, mask)[['energy','hit']].isna().all().all()
    assert isinstance(energy_inside(cam[0], mask[0]), float) and isinstance(area_fraction(mask[0]), float)
    for f in energy_inside,pointing_game,localisation:
        for bad in ((cam, mask[:2]),(cam, mask[:,:3]),(cam*np.nan, mask),(-cam, mask),(cam, mask*255),(cam[0,0], mask)):
            with pytest.raises(ArgumentError): f(*bad)
    with pytest.raises(ArgumentError, match='tolerance'): pointing_game(cam, mask, -1)
    with pytest.raises(ArgumentError, match='something to find'): localisation(cam, ~np.ones_like(mask))

def test_cam_figure():
    m,x = Small(),images(2, 3, 20, 40); a,b = gradcam(m, x, [0,1]),gradcam(m, x, 1, layer='body.0', normalise='batch')
    mask = np.zeros((2,20,40), bool); mask[0,5:9,5:9] = True
    fig = cam_figure(x.sigmoid(), {'a':a,'b':b}, [0,1], mask, ['plain','lesion']); text = fig._supxlabel.get_text()
    assert fig.axes[1].get_xlabel()==f'P = {100*a.probs[0,0]:.1f} %' and fig.axes[5].get_xlabel()==f'P = {100*b.probs[1,1]:.1f} %'
    assert fig.axes[3].get_ylabel()=='lesion' and [o.get_title() for o in fig.axes[:3]]==['input','a','b']
    for s in 'a: Grad-CAM for the true class; each map','b: Grad-CAM for class 1; all maps','body.2','body.0','true class': assert s in text
    assert {tuple(im.get_clim()) for ax in fig.axes[:6] for im in ax.images[1:]}=={(0.,1.)}
    raw = gradcam(m, x, 1, normalise=None); fig = cam_figure(list(x.sigmoid()), {'a':raw})
    assert np.isclose(fig.axes[1].images[1].get_clim()[1], raw.maps.max()) and 'class explained' in fig._supxlabel.get_text()
    for bad in ((x[:1],{'a':a}),(x,{}),(x,{'a':a},[0]),(x,{'a':a},None,mask[:1])):
        with pytest.raises(ArgumentError): cam_figure(*bad)

def test_attention_maps_and_figure():
    x = images(2, 3, 64, 96); g = attention_maps(resnet18(attention='gc', keep_identity=False), x); c = attention_maps(resnet18(attention='cbam'), x)
    assert len(g)==len(c)==8; np.testing.assert_allclose([v.sum((1,2)) for v in g.values()], 1, rtol=1e-4)
    assert list(c.values())[-1].shape==(2,2,3) and len(attention_figure(x.sigmoid(), c).axes)==2*9+1
    for kw in dict(kind='channel'),dict(kind='nothing'):
        with pytest.raises(ArgumentError, match='spatial'): attention_maps(resnet18(attention='cbam'), x, **kw)
    with pytest.raises(ArgumentError, match='none'): attention_maps(resnet18(), x)
    with pytest.raises(ArgumentError): attention_figure(x, {})

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA')
def test_cuda_equals_cpu():
    torch.manual_seed(0); m = resnet18(attention='cbam', keep_identity=False); x = images(); cpu = gradcam(m, x, 1)
    np.testing.assert_allclose(gradcam(copy.deepcopy(m).cuda(), x, 1).maps, cpu.maps, atol=2e-2)
    assert next(random_weights(m.cuda()).parameters()).is_cuda
