"""Attention in networks of torchvision and timm: names of weights, equality under open gates, copies, export, refusals."""
import copy, pickle
import pytest, torch
from functools import lru_cache
from torch import nn
from medattn_nb.attention import *
from medattn_nb.core import ArgumentError

torchvision = pytest.importorskip('torchvision')
WHERE = 'residual','ends','stem','between','stage:1','stage:4'
CASES = [(lib,'resnet18',o) for lib in ('torchvision','timm') for o in WHERE]
CASES += [(lib,arch,o) for lib,arch in (('torchvision','resnet50'),('torchvision','resnext50_32x4d'),('timm','resnet50'),('timm','resnet26d')) for o in WHERE[:2]]

@lru_cache(None)
def built(lib, arch):
    torch.manual_seed(0)
    if lib=='timm': m = pytest.importorskip('timm').create_model(arch, pretrained=False, num_classes=3)
    else: m = getattr(torchvision.models, arch)(num_classes=3)
    for o in m.modules():
        if isinstance(o, nn.BatchNorm2d): nn.init.uniform_(o.running_mean, -.1, .1); nn.init.uniform_(o.running_var, .5, 1.5); nn.init.uniform_(o.weight, .5, 1)
    return m.eval()

def plain(lib='torchvision', arch='resnet18'): return copy.deepcopy(built(lib, arch))
def images(n=2, size=48): return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))

def count(lib, arch, where):
    blocks = sum(len(getattr(built(lib, arch), f'layer{k}')) for k in range(1,5))
    return dict(residual=blocks, ends=2, between=3).get(where, 1)

@pytest.mark.parametrize('lib,arch,where', CASES)
def test_promises(lib, arch, where):
    name = ('se','cbam','gc')[WHERE.index(where)%3]
    p,x = plain(lib, arch),images()
    net = plain(lib, arch)
    assert insert_attention(net, name, where) is net
    mods = attention_modules(net)
    assert len(mods)==count(lib, arch, where) and all(type(m) is type(create(name, 64)) for m in mods.values())
    report = net.load_state_dict(p.state_dict(), strict=False)
    ours = {f'{n}.{k}' for n,m in mods.items() for k in m.state_dict()}
    assert set(net.state_dict())-set(p.state_dict())==ours
    assert set(report.missing_keys)=={k for k in ours if not k.endswith('num_batches_tracked')} and report.unexpected_keys==[]
    with torch.no_grad():
        with open_gates(net), collect_maps(net) as maps: assert torch.equal(net(x), p(x))
        assert maps.keys()==mods.keys()
        out = net(x)
        assert torch.equal(out, p(x))==(name=='gc')
        for o in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))): assert torch.equal(o(x), out)
    with pytest.raises(ArgumentError, match='already; build the network again'): insert_attention(net, name, where)

@pytest.mark.parametrize('lib,arch', [('torchvision','resnet18'), ('timm','resnet18')])
def test_export(lib, arch):
    net,x = insert_attention(plain(lib, arch), 'cbam'),images(3)
    e = torch.export.export(net, (images(),), dynamic_shapes=({0:torch.export.Dim('b', min=1, max=8)},)).module()
    with torch.no_grad(): assert torch.allclose(e(x), net(x), atol=1e-5)

@pytest.mark.parametrize('lib', ['torchvision','timm'])
def test_open_gates_in_training(lib):
    "Outputs, batch statistics and gradients of the original layers are the plain network's"
    p,net,x = plain(lib).train(),insert_attention(plain(lib).train(), 'cbam'),images(4)
    with open_gates(net): a = net(x); a.sum().backward()
    b = p(x); b.sum().backward()
    assert torch.equal(a, b)
    own = dict(net.named_parameters())
    for n,v in p.named_parameters(): assert torch.allclose(own[n].grad, v.grad, atol=1e-5*v.grad.abs().max().item())
    sd = net.state_dict()
    assert all(torch.equal(v, sd[k]) for k,v in p.state_dict().items())

def test_gradient_reaches_all():
    net = insert_attention(plain().train(), 'cbam')
    for m in attention_modules(net).values(): nn.init.ones_(m.spatial.bn.weight)
    net(images(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

def test_attention_sits_before_the_addition():
    p,net = plain(),insert_attention(plain(), 'se')
    x = torch.randn(2, 64, 8, 8)
    b,a = p.layer1[0],net.layer1[0]
    branch = b.bn2(b.conv2(b.relu(b.bn1(b.conv1(x)))))
    with torch.no_grad(): assert torch.allclose(a(x), torch.relu(a.attention(branch)+x), atol=1e-6)

def test_parts_keep_mode_hooks_and_identity():
    net = plain().train()
    net.layer1[0].bn1.eval()
    seen,conv = [],net.layer1[0].conv1
    conv.register_forward_hook(lambda *_: seen.append(1))
    insert_attention(net, 'se')
    assert net.layer1[0].conv1 is conv and not net.layer1[0].bn1.training and net.layer1[0].training
    net(images()); assert seen==[1]

def test_modules_follow_the_network():
    net = insert_attention(plain().double().eval(), 'cbam')
    for m in attention_modules(net).values(): assert not m.training and all(p.dtype==torch.float64 for p in m.parameters())
    assert net(images().double()).dtype==torch.float64
    assert all(m.training for m in attention_modules(insert_attention(plain().train(), 'gc')).values())

def test_places_combine():
    net,p = plain(),plain()
    for w in ('residual','stem','stage:1','stage:2','stage:3','stage:4'): insert_attention(net, 'se', w)
    assert len(attention_modules(net))==8+5
    assert len(attention_modules(insert_attention(insert_attention(plain(), 'cbam', 'ends'), 'gc')))==2+8
    with open_gates(net), torch.no_grad(): assert torch.equal(net(images()), p(images()))
    with pytest.raises(ArgumentError, match='attention at maxpool already'): insert_attention(net, 'gc', 'ends')

@pytest.mark.parametrize('where', ['encoder','decoder','middle','stage:0','stage:5','stage:','Residual'])
def test_unknown_place(where):
    with pytest.raises(ArgumentError, match='residual, ends, stem, between, stage:1'): insert_attention(plain(), 'se', where)

@pytest.mark.parametrize('name,where,kw', [('se','residual',dict(reduction=128)), ('gc','ends',dict(ratio=.01)), ('nope','residual',{}), ('se','residual',dict(ratio=1)), ('se','nowhere',{})])
def test_an_error_changes_nothing(name, where, kw):
    net = plain(); keys,kinds = list(net.state_dict()),[type(m) for m in net.modules()]
    with pytest.raises(ArgumentError): insert_attention(net, name, where, **kw)
    assert list(net.state_dict())==keys and [type(m) for m in net.modules()]==kinds

@pytest.mark.parametrize('net,says', [(nn.Linear(2,2), 'expected a ResNet'), (nn.Sequential(), 'expected a ResNet')])
def test_no_resnet(net, says):
    with pytest.raises(ArgumentError, match=says): insert_attention(net, 'se')

def test_timm_network_that_has_attention():
    net = pytest.importorskip('timm').create_model('seresnet18', pretrained=False)
    with pytest.raises(ArgumentError, match='attention at layer1.0 already'): insert_attention(net, 'cbam')

class Block(nn.Module):
    "A residual block of somebody's own, with or without a slot"
    def __init__(self, c, **slot):
        super().__init__()
        self.conv1,self.conv2 = nn.Conv2d(c, c, 3, padding=1),nn.Conv2d(c, c, 1)
        self.__dict__.update(slot)
    def forward(self, x):
        o = self.conv2(self.conv1(x).relu())
        return x + (o if getattr(self,'attention',None) is None else self.attention(o))

class Own(nn.Module):
    "A network in the shape of a ResNet"
    def __init__(self, **slot):
        super().__init__()
        self.maxpool = nn.MaxPool2d(2)
        for k in range(1,5): self.add_module(f'layer{k}', nn.Sequential(Block(16, **slot)))
    def forward(self, x): return self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))

def test_own_block_with_a_slot():
    net,x = Own(attention=None),torch.randn(1,16,8,8)
    out = net(x)
    insert_attention(net, 'se')
    assert list(attention_modules(net))==[f'layer{k}.0.attention' for k in range(1,5)] and not torch.equal(net(x), out)
    with open_gates(net): assert torch.equal(net(x), out)

def test_own_block_without_a_slot():
    net = Own()
    with pytest.raises(ArgumentError, match='a Block at layer1.0; give the block an attribute'): insert_attention(net, 'se')
    assert list(attention_modules(insert_attention(net, 'se', 'ends')))==['maxpool.attention','layer4.attention']

class Sites(nn.Module):
    "A network that names its own places; one slot is None, one an Identity"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.conv = None,nn.Identity(),nn.Conv2d(16,16,1)
    def forward(self, x): return self.b(self.conv(x if self.a is None else self.a(x)))
    def attention_sites(self, where):
        if where!='encoder': raise ArgumentError('where', where, 'choose encoder')
        return [(self,'a',16), (self,'b',16)]

def test_attention_sites():
    net,x = Sites(),torch.randn(2,16,5,5)
    keys,out = set(net.state_dict()),net(x)
    insert_attention(net, 'gc', 'encoder', ratio=1/4)
    assert list(attention_modules(net))==['b','a'] or list(attention_modules(net))==['a','b']
    assert keys<set(net.state_dict()) and torch.equal(net(x), out)
    with pytest.raises(ArgumentError, match='Sites.a already'): insert_attention(net, 'se', 'encoder')
    with pytest.raises(ArgumentError, match='choose encoder'): insert_attention(net, 'se')

def test_apspnet_counts():
    n = {o:sum(p.numel() for p in insert_attention(plain('torchvision','resnet50'), 'cbam', 'ends', bn=False, mlp_bias=False, order=o).parameters())-sum(p.numel() for p in built('torchvision','resnet50').parameters())
         for o in ('channel-spatial','spatial-channel','channel','spatial')}
    assert n=={'channel-spatial':524_996, 'spatial-channel':524_996, 'channel':524_800, 'spatial':196}
