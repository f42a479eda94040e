"""Channel and mixed attention outside their lessons: promises, oracles at awkward sizes, symmetries, published counts, starts, public twins, bad input."""
import pytest, torch
import torch.nn.functional as F
from torch import nn
from battery import Battery
from medattn_nb.attention import check_attention, create, open_gates
from medattn_nb.attention.channel import SE, ChannelGate, ChannelSE, SRM
from medattn_nb.attention.mixed import BAM, SCSE, SpatialSE
from medattn_nb.attention.spatial import CBAM
from medattn_nb.bench import macs, n_params
from medattn_nb.core import ArgumentError, ShapeError

def bn(name): return ' '.join(f'{name}.{o}' for o in ('weight','bias','running_mean','running_var','num_batches_tracked'))
FC = 'fc1.weight fc1.bias fc2.weight fc2.bias'
BAM_KEYS = f'channel.fc1.weight channel.fc1.bias {bn("channel.bn")} channel.fc2.weight channel.fc2.bias ' + ' '.join(f'spatial.conv{i}.weight spatial.conv{i}.bias {bn(f"spatial.bn{i}")}' for i in (1,2,3)) + ' spatial.conv4.weight spatial.conv4.bias'
SCSE_KEYS = ' '.join(f'channel.{o}' for o in FC.split())+' spatial.conv.weight spatial.conv.bias'

class TestChannelAndMixed(Battery):
    KINDS = {'cse':('cse',{}), 'srm':('srm',{}), 'channel-lp':('channel',dict(pools='lp')), 'channel-lse':('channel',dict(pools=('lse',))),
             'sse':('sse',{}), 'scse-sum':('scse',{}), 'scse-max':('scse',dict(combine='max')),
             'bam':('bam',{}), 'bam-product':('bam',dict(combine='product', dilation=2))}
    KEYS = {'cse':FC, 'srm':f'weight {bn("bn")}', 'channel-lp':FC, 'channel-lse':FC, 'sse':'conv.weight conv.bias', 'scse-sum':SCSE_KEYS, 'scse-max':SCSE_KEYS, 'bam':BAM_KEYS, 'bam-product':BAM_KEYS}

    def tight(self, kind, channels):
        return dict(reduction=1 if channels<4 else 4) if kind.split('-')[0] in ('cse','channel','scse','bam') else {}

make = TestChannelAndMixed().make

# --- oracles: the equations in plain torch, at every size ----------------------------------------------
def mlp(z, l1, l2): return torch.einsum('ji,bi->bj', l2.weight, torch.einsum('ji,bi->bj', l1.weight, z).add(0 if l1.bias is None else l1.bias).clamp(min=0)) + (0 if l2.bias is None else l2.bias)
def sigmoid(z): return (1+torch.tanh(z/2))/2
def norm(l, x): return (x.movedim(1,-1)-l.running_mean).div((l.running_var+l.eps).sqrt()).mul(l.weight).add(l.bias).movedim(-1,1)
def pool(x, how): return dict(avg=lambda v: v.sum(2)/v.shape[2], max=lambda v: v.sort(2).values[...,-1], lp=lambda v: (v*v).sum(2)**.5, lse=lambda v: v.exp().sum(2).log())[how](x.flatten(2))

def conv(l, x):
    "A convolution as one matrix product of all windows"
    k,d,p = l.kernel_size[0],l.dilation[0],l.padding[0]
    return (l.weight.flatten(1) @ F.unfold(x, k, d, p) + (0 if l.bias is None else l.bias[:,None])).unflatten(2, x.shape[2:])

def plane(x, z): return x*sigmoid(z)[:,:,None,None]
def se_(m, x): return plane(x, mlp(pool(x, 'avg'), m.fc1, m.fc2))
def channel_(m, x): return plane(x, sum(mlp(pool(x, p), m.fc1, m.fc2) for p in m.pools))
def srm_(m, x):
    v = x.flatten(2)
    mean = v.sum(2)/v.shape[2]
    std = ((v-mean[...,None]).pow(2).sum(2)/max(v.shape[2]-1, 1)+1e-5).sqrt()
    return plane(x, norm(m.bn, m.weight[:,0]*mean+m.weight[:,1]*std))
def sse_(m, x): return x*sigmoid((x*m.conv.weight.view(-1,1,1)).sum(1, keepdim=True)+m.conv.bias)
def scse_(m, x):
    c,s = se_(m.channel, x),sse_(m.spatial, x)
    return c+s if m.combine=='sum' else torch.where(c>s, c, s)
def bam_(m, x):
    c,s = m.channel,m.spatial
    zc = F.relu(norm(c.bn, torch.einsum('ji,bi->bj', c.fc1.weight, pool(x, 'avg'))+c.fc1.bias)) @ c.fc2.weight.T + c.fc2.bias
    zs = x
    for i in (1,2,3): zs = F.relu(norm(getattr(s, f'bn{i}'), conv(getattr(s, f'conv{i}'), zs)))
    zc,zs = zc[:,:,None,None],conv(s.conv4, zs)
    return x*(1+sigmoid(zc+zs if m.combine=='sum' else zc*zs))
def spatial_(m, x):
    z = conv(m.conv, torch.stack([x.sort(1).values[:,-1], x.sum(1)/x.shape[1]], 1))
    return x*sigmoid(z if m.bn is None else norm(m.bn, z))
def cbam_(m, x):
    for o in m.order.split('-'): x = channel_(m.channel, x) if o=='channel' else spatial_(m.spatial, x)
    return x

ORACLES = {'spatial':spatial_, 'cbam':cbam_, 'se':se_, 'cse':se_, 'channel':channel_, 'srm':srm_, 'sse':sse_, 'scse':scse_, 'bam':bam_}
CASES = {'se':('se',{}), 'se-bias':('se',dict(bias=True)), 'channel':('channel',{}), 'channel-all':('channel',dict(pools=('avg','max','lp','lse'))), 'bam-near':('bam',dict(dilation=1)),
         'spatial':('spatial',{}), 'spatial-formula':('spatial',dict(bn=False, kernel_size=3)), 'cbam':('cbam',{}), 'cbam-formula':('cbam',dict(bn=False, mlp_bias=False)), 'cbam-reverse':('cbam',dict(order='spatial-channel')), **TestChannelAndMixed.KINDS}

@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('channels,size', [(1,(1,1,1)), (3,(2,1,7)), (17,(1,127,128))], ids=str)
def test_oracle(case, channels, size):
    name,kw = CASES[case]
    if name not in ('srm','sse','spatial'): kw = dict(kw, reduction=1 if channels<4 else 4)
    torch.manual_seed(0)
    m = create(name, channels, **kw).eval()
    std = .3/size[1]**.5 if 'lp' in kw.get('pools', ()) else .3  # an L2 norm over a large map shuts or opens every gate otherwise
    for p in m.parameters(): nn.init.normal_(p, std=std)
    for n,b in m.named_buffers():
        if n.endswith('running_mean'): b.normal_(std=.3)
        if n.endswith('running_var'):  b.uniform_(.5, 2)
    x,t = torch.randn(2, size[0], channels, *size[1:])
    for dtype,tol in ((torch.float32,1e-5),(torch.float64,1e-10)):
        m,(a,b) = m.to(dtype),(x.to(dtype).clone().requires_grad_() for _ in '12')
        y1,y2 = m(a),ORACLES[name](m, b)
        for y in (y1,y2): (y*t.to(dtype)).sum().backward()
        assert torch.allclose(y1, y2, tol, tol) and torch.allclose(a.grad, b.grad, tol, tol)

@pytest.mark.parametrize('case', CASES)
def test_gradients_are_those_of_the_function(case):
    name,kw = CASES[case]
    torch.manual_seed(0)
    m = create(name, 4, **kw, **({} if name in ('srm','sse','spatial') else dict(reduction=2))).double()
    if name=='srm': nn.init.normal_(m.weight)
    assert torch.autograd.gradcheck(lambda o: m.eval()(o), torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True))

# --- symmetries ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['cse','srm','channel-lp','channel-lse','sse','scse-sum','scse-max'])
def test_places_may_be_permuted(kind):
    m,x,i = make(kind),torch.randn(2, 32, 6, 5),torch.randperm(30)
    def permute(o): return o.flatten(2)[...,i].view_as(o)
    assert torch.allclose(m(permute(x)), permute(m(x)), atol=1e-5)

@pytest.mark.parametrize('kind', ['bam','bam-product'])
def test_bam_knows_its_neighbours(kind):
    m,x = make(kind),torch.randn(1, 32, 24, 24)
    g,s = (m(o, return_map=True)[1]['full'] for o in (x, x.roll((2,3),(2,3))))
    assert torch.allclose(s[...,12:14,13:15], g[...,10:12,10:12], atol=1e-5)
    assert not torch.allclose(m(x.flip(3).flip(2)), m(x).flip(3).flip(2), atol=1e-3)

def test_srm_keeps_channels_apart():
    m,x,o = make('srm'),torch.randn(2, 32, 6, 5),torch.randn(2, 32, 6, 5)
    o[:,7] = x[:,7]
    assert torch.equal(m(x)[:,7], m(o)[:,7])

def test_sse_keeps_positions_apart():
    m,x,o = make('sse'),torch.randn(2, 32, 6, 5),torch.randn(2, 32, 6, 5)
    o[:,:,3,2] = x[:,:,3,2]
    assert torch.allclose(m(x)[:,:,3,2], m(o)[:,:,3,2], atol=1e-6)

def test_scale_of_the_features_does_not_matter_to_srm_in_training():
    m,x = make('srm').train(),torch.randn(8, 32, 6, 5)
    g = [m(k*x, return_map=True)[1]['channel'] for k in (1,10)]
    assert torch.allclose(*g, atol=1e-2)

# --- what the pools are --------------------------------------------------------------------------------
def gate(pools, x):
    "The pooled vector itself: an MLP of identities"
    m = ChannelGate(x.shape[1], 1, bias=False, pools=pools).to(x.dtype)
    for l in (m.fc1,m.fc2): nn.init.eye_(l.weight)
    return torch.logit(m(x, return_map=True)[1]['channel']).flatten(1)

def test_lp_is_the_root_of_the_sum(): assert torch.allclose(gate('lp', torch.tensor([[[[.3,-.4],[0,1.2]]]])), torch.tensor([[1.3]]), atol=1e-5)
def test_lse_is_the_log_of_the_sum(): assert torch.allclose(gate('lse', torch.zeros(1,2,3,5)), torch.tensor(15.).log(), atol=1e-5)

@pytest.mark.parametrize('dtype,size,value,says', [(torch.float16,(300,300),0.,90_000.), (torch.bfloat16,(64,64),0.,4_096.), (torch.float32,(2,2),1e4,None)])
def test_lse_does_not_overflow(dtype, size, value, says):
    from medattn_nb.attention.channel import _pool
    s = _pool(torch.full((1,1,*size), value, dtype=dtype), 'lse')
    assert s.dtype==dtype and s.isfinite().all()
    if says: assert abs(s.item()-torch.tensor(says).log().item())<.05

def test_lp_of_half_precision_does_not_overflow():
    from medattn_nb.attention.channel import _pool
    assert _pool(torch.full((1,1,128,128), 100., dtype=torch.float16), 'lp').item()==12_800

def test_silent_channel_has_gradients():
    x = torch.randn(2, 8, 4, 4); x[:,3] = 0
    x.requires_grad_()
    m = make('channel-lp', 8, reduction=2)
    m(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in m.parameters())

def test_srm_in_half_precision_takes_large_deviations():
    m = SRM(2).half().eval()
    x = torch.tensor([-900.,900.]).view(1,1,1,2).expand(1,2,4,2).half()
    assert torch.allclose(m.style(x)[...,1].float(), x.float().var((2,3)).sqrt(), rtol=1e-3)

@pytest.mark.parametrize('size,std', [((1,1),1e-5**.5), ((1,2),(2+1e-5)**.5)])
def test_srm_of_one_and_two_values(size, std):
    x = torch.tensor([1.,3.])[:size[1]].expand(1, 2, 1, size[1])
    assert torch.allclose(SRM(2).style(x)[...,1], torch.tensor(std), rtol=1e-5)

# --- published facts -----------------------------------------------------------------------------------
@pytest.mark.parametrize('c,scse,srm', [(64,4_257,256), (128,16_705,512), (256,66_177,1_024), (512,263_425,2_048), (2048,4_199_425,8_192)])
def test_parameter_counts(c, scse, srm):
    assert [n_params(o) for o in (SCSE(c), SCSE(c, combine='max'), SRM(c))]==[scse, scse, srm]
    assert n_params(ChannelSE(c))+n_params(SpatialSE(c))==scse

def test_three_bams_of_a_resnet18(): assert [n_params(BAM(c)) for c in (64,128,256)]==[1_173,4_457,17_361] and 1_173+4_457+17_361==22_991

@pytest.mark.parametrize('kind', TestChannelAndMixed.KINDS)
def test_multiply_accumulates(kind):
    C,H,W = 32,6,5
    mlp,h = {'cse':2*C*C//2, 'scse':2*C*C//2}.get(kind.split('-')[0], 2*C*C//16),C//16
    want = {'cse':mlp, 'srm':0, 'channel':mlp, 'sse':C*H*W, 'scse':mlp+C*H*W, 'bam':mlp+(C*h+2*9*h*h+h)*H*W}[kind.split('-')[0]]
    assert macs(make(kind), torch.randn(1,C,H,W))==want

# --- starts --------------------------------------------------------------------------------------------
def test_starts():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 8, 8)
    m = SRM(64)
    assert not m.weight.any() and (m(x, return_map=True)[1]['channel']==.5).all()
    assert (m.bn.eps,m.bn.momentum)==(1e-5,.1)
    assert ChannelSE(64).fc1.out_features==32 and ChannelSE(64).fc1.bias is not None
    m = BAM(256)
    assert not any(l.bias.any() for l in m.modules() if isinstance(l, (nn.Linear,nn.Conv2d)))
    assert all((l.weight==1).all() for l in m.modules() if isinstance(l, (nn.BatchNorm1d,nn.BatchNorm2d)))
    assert abs(m.spatial.conv2.weight.std()-(2/(16*9))**.5)<.005 and abs(m.spatial.conv1.weight.std()-(2/16)**.5)<.02
    assert abs(m.channel.fc1.weight.std()-(1/256/3)**.5)<.002
    assert [m.spatial.get_submodule(f'conv{i}').dilation[0]*(m.spatial.get_submodule(f'conv{i}').kernel_size[0]//2) for i in (1,2,3,4)]==[0,4,4,0]

@pytest.mark.parametrize('kind', ['srm','channel-lp','bam'])
def test_reset_is_a_fresh_start(kind):
    name,kw = TestChannelAndMixed.KINDS[kind]
    used,fresh = make(kind),create(name, 32, **kw)
    for m in (used,fresh): torch.manual_seed(0); m.reset_parameters()
    assert all(torch.equal(a,b) for a,b in zip(used.state_dict().values(), fresh.state_dict().values()))

# --- public twins --------------------------------------------------------------------------------------
def copied(t, m): t.load_state_dict({k:v.reshape(t.state_dict()[k].shape) for k,v in zip(t.state_dict(), m.state_dict().values())}); return t.eval()

def same(a, b, c):
    x = torch.randn(2, c, 127, 128)
    with torch.no_grad(): return torch.allclose(a(x), b(x), atol=1e-5)

def test_monai_channel_se():
    blocks = pytest.importorskip('monai.networks.blocks')
    for m,r in ((make('cse'),2),(SE(32, 8, bias=True),8)): assert same(m, copied(blocks.ChannelSELayer(2, 32, r=r), m), 32)

def test_monai_makes_half_of_scse():
    blocks = pytest.importorskip('monai.networks.blocks')
    for kind,f in (('scse-sum',torch.add),('scse-max',torch.maximum)):
        m = make(kind)
        t = copied(blocks.ChannelSELayer(2, 32), m.channel)
        assert same(m, lambda x: f(t(x), x*torch.sigmoid(m.spatial.conv(x))), 32)

def test_torchvision_se():
    ops = pytest.importorskip('torchvision.ops')
    m = SE(32, 8, bias=True)
    assert same(m, copied(ops.SqueezeExcitation(32, 4), m), 32)

def test_timm_se():
    layers = pytest.importorskip('timm.layers')
    for bias in (True,False):
        m = SE(32, 8, bias=bias)
        assert same(m, copied(layers.SEModule(32, rd_channels=4, bias=bias), m), 32)

def test_torch_lp_pool():
    x = torch.randn(2, 8, 9, 7)*.1
    assert torch.allclose(gate('lp', x), F.lp_pool2d(x, 2, (9,7)).flatten(1), atol=1e-3)

# --- both ways to combine ------------------------------------------------------------------------------
def test_combinations_of_scse():
    a,b = make('scse-sum'),make('scse-max')
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 32, 6, 5)
    c,s = a.channel(x),a.spatial(x)
    assert torch.allclose(a(x), c+s, atol=1e-6) and torch.equal(b(x), torch.maximum(c, s))

def test_one_open_half_of_scse():
    m,x = make('scse-max'),torch.rand(2, 32, 6, 5)
    with open_gates(m.spatial): assert torch.equal(m(x), x)
    m = make('scse-sum')
    with open_gates(m.spatial): assert torch.allclose(m(x), x+m.channel(x), atol=1e-6)

def test_bam_only_raises():
    m,x = make('bam'),torch.randn(2, 32, 6, 5)
    assert (m(x).abs()>=x.abs()).all() and (m(x).abs()<=2*x.abs()).all()

def test_bam_pools_maps_of_any_shape():
    m = make('bam')
    for h,w in ((3,9),(9,3)):
        x = torch.randn(1, 32, h, w)
        assert torch.allclose(m.channel(x.mean((2,3))), m.channel(x.mT.mean((2,3))), atol=1e-6) and m(x).shape==x.shape

def test_summaries_of_the_bam_map():
    maps = make('bam')(torch.randn(2, 32, 6, 5), return_map=True)[1]
    assert torch.equal(maps['spatial'], maps['full'].mean(1, keepdim=True)) and torch.equal(maps['channel'], maps['full'].mean((2,3), keepdim=True))

# --- bad input -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('call,says', [
    (lambda: ChannelGate(64, pools=('avg','min')), "one or more of 'avg', 'max', 'lp' and 'lse'"), (lambda: ChannelGate(64, pools='l2'), "('avg','max')"), (lambda: ChannelGate(64, pools=('lp','lp')), 'each once'),
    (lambda: CBAM(64, pools=('mean',)), "one or more of 'avg', 'max', 'lp' and 'lse'"),
    (lambda: ChannelSE(1), 'from 1 to 1'), (lambda: SCSE(64, 128), 'from 1 to 64'), (lambda: SCSE(64, combine='concat'), "choose 'sum' or 'max'"),
    (lambda: BAM(8), 'from 1 to 8'), (lambda: BAM(64, combine='max'), "choose 'sum' or 'product'"), (lambda: BAM(64, dilation=0), 'at least 1'), (lambda: BAM(64, dilation=True), 'at least 1'), (lambda: BAM(64, dilation=2.), 'at least 1'),
    (lambda: create('srm', 64, reduction=16), "'srm' accepts no keywords"), (lambda: create('cse', 64, bias=False), "'cse' accepts reduction"), (lambda: create('bam', 64, ratio=4), "'bam' accepts reduction, dilation, combine")])
def test_bad_arguments(call, says):
    with pytest.raises(ArgumentError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('name', ['srm','bam'])
def test_one_image_in_training(name):
    m = create(name, 32).train()
    with pytest.raises(ShapeError, match='needs more than one image'): m(torch.randn(1,32,8,8))
    m(torch.randn(2,32,1,1)); m.eval()(torch.randn(1,32,1,1))

def test_check_attention_finds_a_wrong_combination():
    with pytest.raises(AssertionError, match='oracle in float32'): check_attention(SCSE(6, combine='max'), lambda m,x: se_(m.channel, x)+sse_(m.spatial, x))
