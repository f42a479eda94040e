"""The attention modules outside their lessons: the common promises, symmetries, published counts, bad input, lean imports."""
import importlib, os, shutil, subprocess, sys
from pathlib import Path
import pytest, torch
from torch import nn
from battery import Battery
from medattn_nb.attention import *
from medattn_nb.attention import registry
from medattn_nb.core import ArgumentError, ShapeError

class TestFirstModules(Battery):
    KINDS = {'se':('se',{}), 'se-bias':('se',dict(bias=True)), 'channel':('channel',{}), 'channel-avg':('channel',dict(pools=('avg',))), 'channel-max':('channel',dict(pools='max', bias=False)),
             'spatial':('spatial',{}), 'spatial-formula':('spatial',dict(bn=False, kernel_size=3)),
             'cbam':('cbam',{}), 'cbam-formula':('cbam',dict(bn=False, mlp_bias=False)), 'cbam-sc':('cbam',dict(order='spatial-channel')),
             'cbam-c':('cbam',dict(order='channel')), 'cbam-s':('cbam',dict(order='spatial')),
             'gc':('gc',{}), 'gc-mul':('gc',dict(fusion='mul')), 'gc-both':('gc',dict(fusion='both')), 'gc-avg':('gc',dict(pool='avg'))}
    KEYS = {'se':'fc1.weight fc2.weight', 'se-bias':'fc1.weight fc1.bias fc2.weight fc2.bias', 'channel':'fc1.weight fc1.bias fc2.weight fc2.bias',
            'spatial':'conv.weight bn.weight bn.bias bn.running_mean bn.running_var bn.num_batches_tracked', 'spatial-formula':'conv.weight',
            'cbam-formula':'channel.fc1.weight channel.fc2.weight spatial.conv.weight',
            'cbam':'channel.fc1.weight channel.fc1.bias channel.fc2.weight channel.fc2.bias spatial.conv.weight spatial.bn.weight spatial.bn.bias spatial.bn.running_mean spatial.bn.running_var spatial.bn.num_batches_tracked',
            'gc':'mask.weight mask.bias add.fc1.weight add.fc1.bias add.norm.weight add.norm.bias add.fc2.weight add.fc2.bias'}

    def tight(self, kind, channels):
        name,_ = self.KINDS[kind]
        if name=='gc': return dict(ratio=1/channels if channels<16 else 1/8)
        return {} if name=='spatial' else dict(reduction=1 if channels<4 else 4)

make = TestFirstModules().make

class TestControl(Battery):
    KINDS = {'control':('control',dict(zero=False)), 'control-bias':('control',dict(bias=True))}
    KEYS = {'control':'conv1.weight conv2.weight', 'control-bias':'conv1.weight conv1.bias conv2.weight conv2.bias'}
    RANGE = None
    def tight(self, kind, channels): return dict(reduction=1 if channels<4 else 4)
    def map_shape(self, key, b, c, h, w): return b,c,h,w

@pytest.mark.parametrize('size', [(1,5,1,1), (2,3,7,4)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_constant_gate(size, dtype):
    m,x = create('constant', size[1], value=.25),torch.randn(size).to(dtype)
    out,maps = m(x, return_map=True)
    assert torch.equal(out, x/4) and out.dtype==dtype and maps['channel'].shape==(*size[:2],1,1) and not list(m.parameters())
    with open_gates(m): assert torch.equal(m(x), x)

@pytest.mark.parametrize('value', [0, -1, float('inf'), float('nan'), True])
def test_constant_gate_needs_a_factor(value):
    with pytest.raises(ArgumentError, match='above 0'): create('constant', 4, value=value)

# --- symmetries ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['se','channel','gc','gc-both','cbam-c'])
def test_places_may_be_permuted(kind):
    m,x = make(kind),torch.randn(2, 32, 6, 5)
    i = torch.randperm(30)
    def permute(o): return o.flatten(2)[...,i].view_as(o)
    assert torch.allclose(m(permute(x)), permute(m(x)), atol=1e-5)

@pytest.mark.parametrize('kind', ['spatial','cbam'])
def test_channels_may_be_permuted_for_the_spatial_gate(kind):
    m = make(kind)
    m = m if kind=='spatial' else m.spatial
    x,i = torch.randn(2, 32, 6, 5),torch.randperm(32)
    assert torch.allclose(m(x[:,i]), m(x)[:,i], atol=1e-5)

def test_spatial_gate_moves_with_the_image():
    m,x = make('spatial'),torch.zeros(1, 32, 24, 24)
    x[...,6:9,6:9] = 1
    g,s = (m(o, return_map=True)[1]['spatial'] for o in (x, x.roll((5,7),(2,3))))
    assert torch.allclose(g[...,3:12,3:12], s[...,8:17,10:19], atol=1e-6)

def test_context_is_one_vector():
    m,x = make('gc'),torch.randn(2, 32, 7, 7)
    assert torch.allclose((m(x)-x).std((2,3)), torch.zeros(2,32), atol=1e-5)
    assert torch.allclose(m(x, return_map=True)[1]['spatial'].sum((1,2,3)), torch.ones(2), atol=1e-5)

def test_gc_softmax_stands_large_logits():
    m = make('gc')
    assert m(1e4*torch.randn(2,32,7,7)).isfinite().all()

# --- the compiler itself ------------------------------------------------------------------------------
@pytest.mark.skipif(not shutil.which(os.environ.get('CXX','g++')), reason='torch.compile needs a C++ compiler on the CPU, and there is none')
@pytest.mark.parametrize('name', ['cbam','nonlocal'])
def test_compiled_to_machine_code(name):
    torch._dynamo.reset(); torch.manual_seed(0)
    m,x = create(name, 16),torch.randn(2, 16, 6, 5, requires_grad=True)
    for p in m.parameters(): nn.init.normal_(p, std=.2)
    y,z = torch.compile(m, fullgraph=True)(x),m(x)
    assert torch.allclose(y, z, atol=1e-4)
    a,b = (torch.autograd.grad(o.square().sum(), x)[0] for o in (y,z))
    assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)

# --- published facts ----------------------------------------------------------------------------------
def n_params(m): return sum(p.numel() for p in m.parameters())

@pytest.mark.parametrize('c,se,cbam,formula,gc', [(64,512,680,610,653), (128,2_048,2_284,2_146,2_329), (256,8_192,8_564,8_290,8_753), (512,32_768,33_412,32_866,33_889), (2048,524_288,526_564,524_386,528_769)])
def test_parameter_counts(c, se, cbam, formula, gc):
    assert [n_params(o) for o in (SE(c), CBAM(c), CBAM(c, bn=False, mlp_bias=False), GC(c))]==[se, cbam, formula, gc]

@pytest.mark.parametrize('c,k', [(49,49),(98,49),(103,103),(107,107),(64,16)])
def test_gc_ratio_of_one_in_k(c, k): assert GC(c, 1/k).add.fc1.out_channels==c//k

def test_gc_quarter(): assert sum(n_params(GC(c, 1/4)) for c in (64,128,256,512) for _ in '12')==11_530_986-11_177_538

def test_starts():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(GC(64)(x), x)
    assert (CBAM(64)(x, return_map=True)[1]['spatial']==.5).all()
    m = CBAM(64)
    assert not m.channel.fc1.bias.any() and not m.channel.fc2.bias.any() and not m.spatial.bn.weight.any()
    assert (m.spatial.bn.eps,m.spatial.bn.momentum,m.spatial.conv.bias)==(1e-5,.01,None)
    assert abs(torch.stack([SpatialGate(8).conv.weight for _ in range(99)]).std()-(2/49)**.5)<.01
    g = GC(512)
    assert not g.mask.bias.any() and abs(g.mask.weight.std()-(2/512)**.5)<.01 and g.add.norm.eps==1e-5

def test_order_of_the_spatial_planes_is_max_mean():
    m,x = SpatialGate(3, kernel_size=1, bn=False),torch.tensor([1.,2.,9.]).view(1,3,1,1)
    with torch.no_grad(): m.conv.weight.copy_(torch.tensor([1.,0.]).view(1,2,1,1))
    assert torch.allclose(m(x, return_map=True)[1]['spatial'], torch.sigmoid(torch.tensor(9.)))

def test_channel_gate_adds_the_mlp_outputs():
    m,x = make('channel'),torch.randn(2, 32, 5, 5)
    z = [m.fc2(torch.relu(m.fc1(s))) for s in (x.mean((2,3)), x.amax((2,3)))]
    assert torch.allclose(m(x, return_map=True)[1]['channel'].flatten(1), torch.sigmoid(z[0]+z[1]), atol=1e-6)

# --- bad input ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('call,says', [
    (lambda: create('cbma', 64), f"choose one of {', '.join(available())}"),
    (lambda: create('cbam', 64, reducton=8), "'cbam' accepts reduction, kernel_size, order, bn, mlp_bias, pools"),
    (lambda: create('gc', 64, reduction=8), "'gc' accepts ratio, pool, fusion"),
    (lambda: create('se', 0), 'at least 1'), (lambda: create('se', '64'), 'number of channels'), (lambda: create('se', True), 'number of channels'),
    (lambda: SE(8), 'use an integer from 1 to 8'), (lambda: SE(64, 0), 'from 1 to 64'), (lambda: SE(64, 2.5), 'from 1 to 64'), (lambda: CBAM(8), 'from 1 to 8'),
    (lambda: GC(8), 'at least 1/8'), (lambda: GC(64, 0), 'at least 1/64'), (lambda: GC(64, '1/16'), 'at least 1/64'),
    (lambda: GC(64, pool='max'), "'att' or 'avg'"), (lambda: GC(64, fusion='none'), "'add', 'mul' or 'both'"),
    (lambda: ChannelGate(64, pools=()), "('avg','max')"), (lambda: ChannelGate(64, pools=('avg','avg')), "('avg','max')"), (lambda: ChannelGate(64, pools='mean'), "('avg','max')"),
    (lambda: SpatialGate(64, 6), 'odd'), (lambda: SpatialGate(64, -1), 'odd'), (lambda: CBAM(64, order='channel+spatial'), 'choose one of channel-spatial')])
def test_bad_arguments(call, says):
    with pytest.raises(ArgumentError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value)

def test_one_value_in_training():
    with pytest.raises(ShapeError, match='more than one value'): CBAM(16).train()(torch.randn(1,16,1,1))
    CBAM(16).train()(torch.randn(2,16,1,1)); CBAM(16).eval()(torch.randn(1,16,1,1))

# --- registry -----------------------------------------------------------------------------------------
@pytest.fixture
def own_name(monkeypatch):
    "The registry, put back after the test"
    monkeypatch.setattr(registry, '_kinds', registry._kinds.copy())

class Half(Attention):
    "Multiply by one half"
    def attend(self, x):
        g = self.gate(torch.full_like(x[:,:,:1,:1], .5))
        return x*g, {'channel': g}

def test_own_module(own_name):
    assert register('half')(Half) is Half
    assert register('half')(Half) is Half
    assert 'half' in available() and isinstance(create('half', 4), Half)
    check_attention(Half(4))
    with pytest.raises(ArgumentError, match='choose another name'): register('half')(nn.Identity)

def test_own_function_with_any_keywords(own_name):
    @register('any')
    def make_any(channels, **kw): return SE(channels, **kw)
    assert create('any', 8, reduction=2).fc1.out_features==4

@pytest.mark.parametrize('attend,says', [
    (lambda self,x: (x/2, {'spatial':x}), 'open gate'), (lambda self,x: (x, {}), 'a map for each image'), (lambda self,x: (x[:,:1], {'spatial':x}), 'same shape'),
    (lambda self,x: (x*self.gate(x.mean(0, keepdim=True).expand_as(x)), {'spatial':x}), 'images do not mix')])
def test_check_attention_finds(attend, says):
    with pytest.raises(AssertionError, match=says): check_attention(type('Bad', (Attention,), dict(attend=attend))(3))

def test_check_attention_finds_a_wrong_oracle():
    with pytest.raises(AssertionError, match='oracle in float32'): check_attention(Half(3), lambda m,x: x*.51)

# --- maps and gates of networks -----------------------------------------------------------------------
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3,16,3), CBAM(16), nn.Sequential(nn.Conv2d(16,16,1), GC(16, 1/4), SE(16)))

def state(net): return {n:{k:v for k,v in vars(m).items() if not k.startswith('_') or k in ('_on_map','_open') or 'hooks' in k and v} for n,m in net.named_modules()}

def test_outermost_modules_only():
    assert {n:type(m).__name__ for n,m in attention_modules(network()).items()}=={'1':'CBAM','2.1':'GC','2.2':'SE'}
    assert list(attention_modules(CBAM(16)))==['']

def test_collect_maps():
    net,x = network(),torch.randn(2,3,9,9)
    before = state(net)
    with collect_maps(net) as maps:
        assert maps=={}
        a = net(x); first = maps['1']['spatial']
        net(x+1)
    assert state(net)==before and a.requires_grad
    assert list(maps)==['1','2.1','2.2'] and {k for o in maps.values() for k in o}=={'channel','spatial','context'}
    assert not any(v.requires_grad for o in maps.values() for v in o.values())
    net.eval(); net(x)
    assert maps['1']['spatial'] is not first

def test_collect_maps_gives_what_was_applied():
    net,x = network().eval(),torch.randn(2,3,9,9)
    with collect_maps(net) as maps: net(x)
    assert torch.equal(maps['1']['channel'], net[1](net[0](x), return_map=True)[1]['channel'])

def test_contexts_end_after_an_error_and_nest():
    net,x = network().eval(),torch.randn(2,3,9,9)
    before,out = state(net),net(x)
    for ctx in (collect_maps, open_gates):
        with pytest.raises(ZeroDivisionError):
            with ctx(net): 1/0
        assert state(net)==before
    with open_gates(net):
        with open_gates(net): pass
        opened = net(x)
    with collect_maps(net) as outer:
        with collect_maps(net) as inner: net(x)
        assert inner and not outer
        net(x)
    assert outer.keys()==inner.keys() and not torch.equal(opened, out)
    assert torch.equal(net(x), out) and state(net)==before

def test_open_network_is_the_plain_one():
    net,x = network().eval(),torch.randn(2,3,9,9)
    nn.init.normal_(net[2][1].add.fc2.weight)
    with open_gates(net), collect_maps(net) as maps: assert torch.equal(net(x), net[2][0](net[0](x)))
    assert (maps['1']['spatial']==1).all() and not maps['2.1']['context'].any()

# --- what an import costs -----------------------------------------------------------------------------
@pytest.mark.parametrize('what', ['from medattn_nb.attention import CBAM', 'import medattn_nb.attention'])
def test_lean_import(what):
    heavy = 'fastai torchvision matplotlib timm skimage sklearn pandas IPython fastcore'.split()
    code = f'import sys\n{what}\nassert "torch" in sys.modules\nprint([o for o in {heavy} if o in sys.modules])'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode==0 and r.stdout.strip()=='[]', r.stdout+r.stderr

# --- every module --------------------------------------------------------------------------------------
def test_every_registered_module_keeps_the_common_promises():
    "CONTRIBUTING: one entry in a subclass of `Battery`"
    files = [importlib.import_module(p.stem) for p in Path(__file__).parent.glob('test_attention*.py')]
    kinds = {name for m in files for c in vars(m).values() if isinstance(c, type) and issubclass(c, Battery) for name,_ in c.KINDS.values()}
    code = 'import medattn_nb.lab.experiments; from medattn_nb.attention import available; print(*available())'
    known = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout.split()
    assert len(known)>10 and set(known)-{'constant'}<=kinds # which has nothing to learn
