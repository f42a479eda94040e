"""Attention between positions and between channels: the common promises, symmetries, large maps, published counts, bad input."""
import math
import pytest, torch
import torch.nn.functional as F
from torch import nn
from battery import Battery
import medattn_nb.attention.dual, medattn_nb.attention.crisscross
from medattn_nb.attention.crisscross import CrissCross, crisscross_attention, crisscross_weights
from medattn_nb.attention.dual import CAM, PAM
from medattn_nb.attention.pairwise import NonLocal, Pairwise, flat_index
from medattn_nb.attention.registry import collect_maps, create, open_gates
from medattn_nb.bench import n_params
from medattn_nb.core import ArgumentError, ShapeError

GATES = ' '.join(f'{o}.{p}' for o in ('query','key','value') for p in ('weight','bias'))
CONVS = {o:f'{o}.weight {o}.bias' for o in ('theta','phi','g','out')}
BN = 'bn.weight bn.bias bn.running_mean bn.running_var bn.num_batches_tracked'

class TestSoftmax(Battery):
    KINDS = {'nonlocal':('nonlocal',{}), 'nonlocal-nobn':('nonlocal',dict(bn=False)), 'gaussian':('nonlocal',dict(kind='gaussian')),
             'pam':('pam',{}), 'crisscross':('crisscross',{}), 'crisscross-1':('crisscross',dict(recurrence=1))}
    KEYS = {'nonlocal':' '.join([*CONVS.values(), BN]), 'nonlocal-nobn':' '.join(CONVS.values()), 'gaussian':f"{CONVS['g']} {CONVS['out']} {BN}",
            'pam':f'gamma {GATES}', 'crisscross':f'gamma {GATES}', 'crisscross-1':f'gamma {GATES}'}

class TestNAM(Battery):
    "Neither starts as the identity nor, but for 'nam-residual', has a path around it"
    RANGE = None
    KINDS = {'nam':('nam',{}), 'nam-residual':('nam',dict(residual=True)), 'nam-dot':('nam',dict(kind='dot'))}
    KEYS = dict.fromkeys(('nam','nam-residual','nam-dot'), ' '.join(CONVS[o] for o in ('theta','phi','g')))

@pytest.mark.parametrize('kind,sums', [('softmax',True), ('dot',False)])
def test_nam_is_its_rows(kind, sums):
    "Every position is the mean of the values weighted by its row"
    torch.manual_seed(0); m,x = create('nam', 6, kind=kind).double().eval(),torch.randn(2, 6, 5, 4).double()
    w = m.rows(x, [(i,j) for i in range(5) for j in range(4)]).flatten(2)
    y = (w @ m.g(x).flatten(2).transpose(1,2)).transpose(1,2).view_as(x)
    assert torch.allclose(m(x), y) and torch.allclose(w.sum(2), torch.ones_like(w.sum(2)))==sums
    assert torch.allclose(m(x, return_map=True)[1]['spatial'].flatten(1), w.mean(1))
    again = create('nam', 6, kind=kind, residual=True).double().eval(); again.load_state_dict(m.state_dict())
    assert torch.allclose(again(x), x+y)

def test_nam_as_printed():
    "Under Eq. 3 every position gets the same total weight"
    torch.manual_seed(0); m,x = create('nam', 6, kind='printed').double().eval(),torch.randn(2, 6, 5, 4).double()
    w = m.rows(x, [(i,j) for i in range(5) for j in range(4)]).flatten(2)
    assert torch.allclose(w.sum(1), torch.ones_like(w.sum(1))) and torch.allclose((w @ m.g(x).flatten(2).transpose(1,2)).transpose(1,2).view_as(x), m(x))
    with pytest.raises(ArgumentError, match="'softmax', 'dot' or 'printed'"): create('nam', 6, kind='cosine')

class TestUnbounded(Battery):
    "Weights that are no softmax have no range"
    RANGE = None
    KINDS = {'dot':('nonlocal',dict(kind='dot')), 'concat':('nonlocal',dict(kind='concat'))}
    KEYS = {'concat':f"{CONVS['theta']} {CONVS['phi']} {CONVS['g']} concat.weight {CONVS['out']} {BN}", 'dot':' '.join([*CONVS.values(), BN])}

class TestSubsampled(Battery):
    "Two by two positions make one key"
    RANGE = None
    KINDS = {'nonlocal-sub':('nonlocal',dict(subsample=True)), 'gaussian-sub':('nonlocal',dict(kind='gaussian', subsample=True, bn=False)),
             'dot-sub':('nonlocal',dict(kind='dot', subsample=True, bn=False)), 'concat-sub':('nonlocal',dict(kind='concat', subsample=True, bn=False))}
    KEYS = {'nonlocal-sub':' '.join([*CONVS.values(), BN]), 'gaussian-sub':f"{CONVS['g']} {CONVS['out']}", 'dot-sub':' '.join(CONVS.values()),
            'concat-sub':f"{CONVS['theta']} {CONVS['phi']} {CONVS['g']} concat.weight {CONVS['out']}"}

    def test_export(self, kind):
        "Variable sides are even"
        m,x = self.make(kind),self.x()
        dims = ({0:torch.export.Dim('b', min=1, max=8), 2:2*torch.export.Dim('half', min=1, max=49)},)
        e = torch.export.export(m, (x,), dynamic_shapes=dims).module()
        for o in (x, torch.randn(5, self.CHANNELS, 12, 6)): assert torch.allclose(e(o), m(o), atol=1e-4)

class TestChannels(Battery):
    KINDS = {'cam':('cam',{}), 'cam-paper':('cam',dict(form='paper'))}
    KEYS = {'cam':'gamma', 'cam-paper':'gamma'}
    def map_shape(self, key, b, c, h, w): return b,c,c

ALL = {**TestSoftmax.KINDS, **TestUnbounded.KINDS, **TestSubsampled.KINDS, **TestChannels.KINDS}
def make(kind, channels=16, **kw):
    "A module in double precision with random weights and statistics"
    t = TestSoftmax(); t.KINDS = ALL
    return t.make(kind, channels, **kw).double()
def rand(*size, seed=1): return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
PAIRS = [k for k in ALL if not k.startswith('cam')]

# --- symmetries ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', [k for k in ALL if 'sub' not in k and 'criss' not in k])
def test_places_may_be_permuted(kind):
    m,x = make(kind),rand(2, 16, 6, 5)
    i = torch.randperm(30)
    def permute(o): return o.flatten(2)[...,i].view_as(o)
    assert torch.allclose(m(permute(x)), permute(m(x)))

@pytest.mark.parametrize('kind', ['crisscross','crisscross-1'])
def test_rows_and_columns_may_be_permuted(kind):
    m,x,i,j = make(kind),rand(2, 16, 6, 5),torch.randperm(6),torch.randperm(5)
    assert torch.allclose(m(x[:,:,i][...,j]), m(x)[:,:,i][...,j])
    assert torch.allclose(m(x.mT), m(x).mT)

@pytest.mark.parametrize('kind', PAIRS)
def test_flips_of_even_maps(kind):
    m,x = make(kind),rand(2, 16, 6, 4)
    for o in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.mT): assert torch.allclose(m(o(x)), o(m(x)))

@pytest.mark.parametrize('kind', ['cam','cam-paper'])
def test_channels_may_be_permuted(kind):
    m,x,i = make(kind),rand(2, 16, 6, 5),torch.randperm(16)
    assert torch.allclose(m(x[:,i]), m(x)[:,i])

def test_subsampled_block_moves_by_two():
    m,x = make('nonlocal-sub'),rand(1, 16, 8, 8)
    assert torch.allclose(m(x.roll((2,4),(2,3))), m(x).roll((2,4),(2,3)))

# --- the same by other means --------------------------------------------------------------------------
def conv(l, x): return x if l is None else F.conv2d(x, l.weight, l.bias)

def whole(m, x):
    "The matrix of pairs (B,N,M) and the values (B,M,E) of a non-local block, position attention or one criss-cross round"
    names = ('theta','phi','g') if isinstance(m, NonLocal) else ('query','key','value')
    q,k,v = (conv(getattr(m, o), x) for o in names)
    if getattr(m, 'subsample', False): k,v = (F.max_pool2d(o, 2) for o in (k,v))
    q,k,v = (o.flatten(2).mT for o in (q,k,v))
    kind,M = getattr(m, 'kind', 'embedded'),k.shape[1]
    if kind=='concat':
        w = m.concat.weight.flatten()
        return torch.relu(torch.cat([q[:,:,None].expand(-1,-1,M,-1), k[:,None].expand(-1,q.shape[1],-1,-1)], 3) @ w)/M,v
    if kind=='dot': return q @ k.mT/M,v
    e = q @ k.mT
    if isinstance(m, CrissCross):
        r,c = torch.arange(M)//x.shape[3],torch.arange(M)%x.shape[3]
        e = e.masked_fill((r[:,None]!=r) & (c[:,None]!=c), -math.inf)
    return e.softmax(-1),v

def rebuilt(m, x):
    "`m` on `x`, with whole matrices"
    for _ in range(getattr(m, 'recurrence', 1)):
        w,v = whole(m, x)
        y = (w @ v).mT.unflatten(2, x.shape[2:])
        if isinstance(m, NonLocal):
            y = conv(m.out, y)
            x = x+(y if m.bn is None else m.bn(y))
        else: x = x+m.gamma*y
    return x

@pytest.mark.parametrize('kind', PAIRS)
@pytest.mark.parametrize('size', [(2,8,6),(1,5,7),(1,2,9)])
def test_whole_matrix(kind, size):
    m = make(kind)
    x = rand(size[0], 16, *size[1:])
    a,b = (x.clone().requires_grad_() for _ in range(2))
    t = rand(*x.shape, seed=2)
    ya,yb = m(a),rebuilt(m, b)
    ga = torch.autograd.grad((ya*t).sum(), [a, *m.parameters()])
    gb = torch.autograd.grad((yb*t).sum(), [b, *m.parameters()])
    assert torch.allclose(ya, yb, 1e-9, 1e-9)
    for o,p in zip(ga, gb): assert torch.allclose(o, p, 1e-8, 1e-8)

def one_row(m, x, i):
    "The output of a module with one round at flat position `i`, from its own row of pairs alone"
    names = ('theta','phi','g') if isinstance(m, NonLocal) else ('query','key','value')
    q,k,v = (conv(getattr(m, o), x) for o in names)
    if getattr(m, 'subsample', False): k,v = (F.max_pool2d(o, 2) for o in (k,v))
    q,keep = q.flatten(2)[0,:,i],None
    if isinstance(m, CrissCross):
        r,c = i//x.shape[3],i%x.shape[3]
        rest = [j for j in range(x.shape[2]) if j!=r]
        k,v = (torch.cat([o[0,:,r], o[0,:,rest,c]], 1) for o in (k,v))
    else: k,v = (o.flatten(2)[0] for o in (k,v))
    kind,M = getattr(m, 'kind', 'embedded'),k.shape[1]
    if kind=='concat': a,b = m.concat.weight.flatten().chunk(2); w = torch.relu(q @ a+b @ k)/M
    else: w = q @ k/M if kind=='dot' else (q @ k).softmax(0)
    y = v @ w
    if isinstance(m, NonLocal):
        y = conv(m.out, y.view(1,-1,1,1))
        y = (y if m.bn is None else m.bn(y)).flatten()
    else: y = m.gamma*y
    return x.flatten(2)[0,:,i]+y

@pytest.mark.parametrize('kind', [k for k in PAIRS if k!='crisscross'])
def test_large_map_at_some_positions(kind):
    m,x = make(kind, 6).float(),rand(1, 6, 127, 128).float()/2
    at,t = [0,127,5000,8131,127*128-1],rand(5, 6, seed=3).float()
    a,b = (x.clone().requires_grad_() for _ in range(2))
    ya = m(a).flatten(2)[0,:,at].T
    yb = torch.stack([one_row(m, b, i) for i in at])
    ga,gb = (torch.autograd.grad((y*t).sum(), o)[0] for y,o in ((ya,a),(yb,b)))
    assert torch.allclose(ya, yb, 1e-5, 1e-5) and torch.allclose(ga, gb, 1e-5, 1e-5)

def test_two_rounds_are_one_round_twice():
    two,one = make('crisscross'),make('crisscross-1')
    one.load_state_dict(two.state_dict())
    x = rand(1, 16, 127, 128)
    assert torch.allclose(two(x), one(one(x)))

def test_crisscross_gradients():
    for d,e,h,w in ((1,1,1,1),(2,3,1,4),(2,3,4,1),(3,2,4,5)):
        ts = [rand(2, c, h, w, seed=i).requires_grad_() for i,c in enumerate((d,d,e))]
        assert torch.autograd.gradcheck(crisscross_attention, ts)

def test_crisscross_one_gradient_only():
    q,k,v = (rand(1, c, 4, 5, seed=c) for c in (2,3,4)); k = rand(1, 2, 4, 5)
    for i in range(3):
        ts = [o.clone().requires_grad_(i==j) for j,o in enumerate((q,k,v))]
        crisscross_attention(*ts).sum().backward()
        assert [o.grad is not None for o in ts]==[i==j for j in range(3)]

def test_crisscross_is_differentiable_once():
    q = rand(1, 2, 3, 3).requires_grad_()
    g, = torch.autograd.grad(crisscross_attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'): g.sum().backward()

@pytest.mark.parametrize('kind', ['nonlocal','gaussian','pam','crisscross'])
def test_large_scores_stay_finite(kind):
    m,x = make(kind).float(),100*rand(1, 16, 9, 8).float()
    x.requires_grad_()
    m(x).sum().backward()
    assert x.grad.isfinite().all()

def test_cam_in_half_precision_does_not_overflow():
    m,x = make('cam').float(),20*rand(1, 16, 64, 64).float()
    with torch.autocast('cpu', torch.float16): y = m(x.half())
    assert y.isfinite().all()

# --- maps ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', [k for k in PAIRS if k!='crisscross'])
def test_rows_are_the_matrix(kind):
    m,x = make(kind),rand(2, 16, 6, 4)
    points = [(0,0),(5,3),(2,1)]
    w = whole(m, x)[0][:,flat_index(points, 6, 4)]
    if getattr(m, 'subsample', False): w = F.interpolate(w.unflatten(2, (3,2)), scale_factor=2, mode='nearest').flatten(2)
    assert torch.allclose(m.rows(x, points).flatten(2), w)

def test_rows_after_two_rounds():
    m,x = make('crisscross'),rand(1, 16, 5, 4)
    a = whole(m, x)[0]
    b = whole(m, x+m.gamma*(a @ whole(m, x)[1]).mT.view_as(x))[0]
    assert torch.allclose(m.rows(x, [(i//4,i%4) for i in range(20)]).flatten(2), b @ a)

@pytest.mark.parametrize('kind', PAIRS)
def test_map_is_the_mean_of_all_rows(kind):
    m,x = make(kind),rand(2, 16, 5, 7)
    points = [(i,j) for i in range(5) for j in range(7)]
    s = m(x, return_map=True)[1]['spatial']
    assert torch.allclose(s, m.rows(x, points).mean(1, keepdim=True), 1e-6, 1e-8) and not s.requires_grad

def test_dropped_positions_have_no_weight():
    s = make('nonlocal-sub')(rand(1, 16, 5, 7), return_map=True)[1]['spatial'][0,0]
    assert not s[4].any() and not s[:,6].any() and (s[:4,:6]>0).all()
    assert torch.allclose(s.sum()/4, torch.ones((), dtype=s.dtype))

def test_maps_only_on_request(monkeypatch):
    def never(*a, **k): raise AssertionError('made without being asked for')
    monkeypatch.setattr(medattn_nb.attention.pairwise, 'attention_received', never)
    monkeypatch.setattr(medattn_nb.attention.dual, 'attention_received', never)
    monkeypatch.setattr(medattn_nb.attention.crisscross, 'crisscross_weights', never)
    for kind in ('nonlocal','pam','crisscross'):
        m,x = make(kind),rand(1, 16, 4, 4)
        m(x)
        with pytest.raises(AssertionError, match='asked'), collect_maps(m): m(x)

def test_points():
    assert flat_index((1,2), 4, 5).tolist()==[7] and flat_index([[0,0],[3,4]], 4, 5).tolist()==[0,19]
    for o in (torch.tensor([1,2]), [(1,2)], ((1,2),)): assert flat_index(o, 4, 5).tolist()==[7]
    for bad in ('ab', [], 3, (1,2,3), (1.,2.), [(True,False)], None, [[[1,2]]]):
        with pytest.raises(ShapeError, match='pairs'): flat_index(bad, 4, 5)
    for bad in ((4,0),(0,5),(-1,0)):
        with pytest.raises(ArgumentError, match='rows 0 to 3'): flat_index(bad, 4, 5)
    with pytest.raises(NotImplementedError): Pairwise(4).rows(torch.zeros(1,4,2,2), (0,0))
    with pytest.raises(ShapeError, match='channels'): PAM(4).rows(torch.zeros(1,3,2,2), (0,0))

# --- published facts ----------------------------------------------------------------------------------
@pytest.mark.parametrize('c,plain,bn,pam', [(64,8_352,8_480,5_201), (128,33_088,33_344,20_641), (256,131_712,132_224,82_241), (512,525_568,526_592,328_321), (2048,8_393_728,8_397_824,5_245_441)])
def test_parameter_counts(c, plain, bn, pam):
    assert [n_params(o) for o in (NonLocal(c, bn=False), NonLocal(c), PAM(c), CrissCross(c), CrissCross(c, recurrence=1), CAM(c))]==[plain, bn, pam, pam, pam, 1]

@pytest.mark.parametrize('kind', ALL)
def test_starts_as_the_identity(kind):
    name,kw = ALL[kind]
    m,x = create(name, 16, **kw),rand(2, 16, 5, 4).float()
    assert torch.equal(m(x), x) and torch.equal(m.eval()(x), x)
    for p in m.parameters(): nn.init.ones_(p)
    m.reset_parameters()
    assert torch.equal(m(x), x)

def test_start_of_the_inner_layers():
    torch.manual_seed(0)
    m = NonLocal(64)
    assert m.out.weight.abs().max()<=1/32**.5 and m.out.weight.any() and m.theta.weight.abs().max()<=1/8 and not m.bn.weight.any() and not m.bn.bias.any()
    m = NonLocal(64, bn=False)
    assert not m.out.weight.any() and not m.out.bias.any()
    assert PAM(64).query.weight.abs().max()<=1/8 and CrissCross(64).value.weight.any()

@pytest.mark.parametrize('channels,width', [(1,1),(2,1),(3,1),(7,3),(64,32)])
def test_inner_width(channels, width): assert NonLocal(channels).g.out_channels==width

@pytest.mark.parametrize('channels,width', [(1,1),(7,1),(8,1),(15,1),(16,2),(64,8)])
def test_query_width(channels, width):
    assert PAM(channels).query.out_channels==CrissCross(channels).key.out_channels==width

def test_timm_twin():
    timm = pytest.importorskip('timm.layers.non_local_attn')
    for scale in (True,False):
        t = timm.NonLocalAttn(16, use_scale=scale, rd_channels=6).eval()
        for p in t.parameters(): nn.init.normal_(p, std=.4)
        m = NonLocal(16, inter=6).eval()
        names = dict(t='theta', p='phi', g='g', z='out', norm='bn')
        m.load_state_dict({f"{names[k.split('.',1)[0]]}.{k.split('.',1)[1]}":v for k,v in t.state_dict().items()})
        x = rand(2, 16, 7, 5).float()
        assert torch.allclose(m(x), t(x), atol=1e-5)==(not scale)

def test_crisscross_weights_sum_to_one():
    r,c = crisscross_weights(rand(2, 3, 5, 4), rand(2, 3, 5, 4, seed=2))
    assert r.shape==(2,5,4,4) and c.shape==(2,4,5,5) and not c.diagonal(dim1=2, dim2=3).any()
    assert torch.allclose(r.sum(-1)+c.sum(-1).mT, torch.ones(2,5,4,dtype=r.dtype))

# --- memory -------------------------------------------------------------------------------------------
def kept(f):
    found = {}
    def pack(t): found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(); return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): out = f()
    return sum(found.values())

@pytest.mark.parametrize('kind', ['nonlocal-nobn','gaussian','dot','pam','crisscross'])
def test_memory_kept_grows_with_the_positions_not_the_pairs(kind):
    m = make(kind).float()
    def at(s): x = rand(1, 16, s, s).float().requires_grad_(); return kept(lambda: m(x))
    assert at(32)<4.2*at(16)

# --- bad input ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('call,says', [
    (lambda: NonLocal(8, 'cosine'), "choose 'embedded'"), (lambda: NonLocal(8, inter=0), 'at least 1'), (lambda: NonLocal(8, inter=2.), 'at least 1'), (lambda: NonLocal(8, inter=True), 'at least 1'),
    (lambda: PAM(8, 0), 'at least 1'), (lambda: PAM(8, .5), 'at least 1'), (lambda: CAM(8, 'formula'), "choose 'code' or 'paper'"), (lambda: NonLocal(0), 'at least 1'), (lambda: CAM('8'), 'number of channels'),
    (lambda: CrissCross(8, recurrence=0), 'recurrence: got 0'), (lambda: CrissCross(8, recurrence=True), 'at least 1'), (lambda: CrissCross(8, reduction=-1), 'reduction: got -1'),
    (lambda: create('nonlocal', 8, scale=1), 'accepts kind, inter, subsample, bn'), (lambda: create('crisscross', 8, rounds=2), 'accepts reduction, recurrence')])
def test_bad_arguments(call, says):
    with pytest.raises(ArgumentError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value)

def test_one_value_in_training():
    with pytest.raises(ShapeError, match='more than one value'): NonLocal(8).train()(torch.randn(1,8,1,1))
    NonLocal(8).train()(torch.randn(2,8,1,1)); NonLocal(8).eval()(torch.randn(1,8,1,1)); NonLocal(8, bn=False)(torch.randn(1,8,1,1))

@pytest.mark.parametrize('k,v,says', [((1,2,3,4),(1,5,3,3),'shape of q'), ((1,3,3,3),(1,5,3,3),'shape of q'), ((1,2,3,3),(2,5,3,3),'batch, height'), ((1,2,3,3),(1,5,3,4),'batch, height'), ((2,3,3),(1,5,3,3),'4 dimensions')])
def test_bad_shapes(k, v, says):
    with pytest.raises(ShapeError, match=says): crisscross_attention(torch.zeros(1,2,3,3), torch.zeros(k), torch.zeros(v))

def test_open_gates_close_again():
    m,x = make('crisscross'),rand(1, 16, 4, 4)
    y = m(x)
    with open_gates(m): assert torch.equal(m(x), x)
    assert torch.equal(m(x), y)
