"""The attention gates, which take a second input, and the soft mask of the Residual Attention Network."""
import copy, io, pickle
import pytest, torch
import torch.nn.functional as F
from torch import nn
from battery import Battery
from medattn_nb.attention import available, check_attention, collect_maps, open_gates
from medattn_nb.attention.gating import AttentionGate, GridAttentionGate
from medattn_nb.attention.softmask import ResidualAttention, ResidualUnit, SoftMask
from medattn_nb.core import ArgumentError, ShapeError

# --- soft mask: the common promises -------------------------------------------------------------------
BN = 'weight','bias','running_mean','running_var','num_batches_tracked'
def unit_keys(p): return [f'{p}.{o}' for i in '123' for o in [*(f'bn{i}.{b}' for b in BN), f'conv{i}.weight']]
def head_keys(): return [f'head.{o}' for i in '12' for o in [*(f'bn{i}.{b}' for b in BN), f'conv{i}.weight']]
def mask_keys(depth, units=1):
    down = [f'down.{i}.{j}' for i in range(depth) for j in range(units if i<depth-1 else 2*units)]
    rest = [f'{way}.{i}.{j}' for way in ('skip','up') for i in range(depth-1) for j in range(units)]
    return ' '.join([k for u in down+rest for k in unit_keys(u)]+head_keys())

class TestSoftMask(Battery):
    KINDS = {'depth-2':('soft-mask',dict(depth=2)), 'channel':('soft-mask',dict(depth=1, kind='channel')), 'spatial-naive':('soft-mask',dict(depth=1, kind='spatial', residual=False))} # depth 3, the default, is the same code and slow to compile
    KEYS = {'depth-2':mask_keys(2), 'channel':mask_keys(1)}
    RANGE = -1,1

    def test_export(self, kind):
        "As in the battery, but torch.export wants at least two rows at the smallest size: 9 of the map"
        m,x = self.make(kind),self.x(17, 6)
        dims = ({0:torch.export.Dim('b', min=1, max=8), 2:torch.export.Dim('h', min=9, max=99)},)
        e = torch.export.export(m, (x,), dynamic_shapes=dims).module()
        for o in (x, torch.randn(5, 32, 9, 6), torch.randn(1, 32, 30, 6)): assert torch.allclose(e(o), m(o), atol=1e-4)

def make(channels, **kw):
    "A soft mask with random weights and statistics, in evaluation mode"
    class One(Battery): KINDS = {'one':('soft-mask',kw)}
    return One().make('one', channels)

def test_names_at_other_depths():
    for kw,keys in ((dict(), mask_keys(3)), (dict(depth=2, units=2), mask_keys(2, 2))): assert list(SoftMask(4, **kw).state_dict())==keys.split()

@pytest.mark.parametrize('kind,low,high', [('mixed',0,1), ('channel',-1,1), ('spatial',0,1)])
def test_ranges_of_masks(kind, low, high):
    m = make(8, depth=1, kind=kind)(torch.randn(2,8,9,7), return_map=True)[1]['full']
    assert low<=m.min() and m.max()<=high

def test_kinds_differ_only_in_the_end():
    x = torch.randn(2, 8, 9, 7)
    ms = {k:make(8, depth=1, kind=k) for k in ('mixed','channel','spatial')}
    z = ms['mixed'].logits(x)
    maps = {k:m(x, return_map=True)[1]['full'] for k,m in ms.items()}
    assert all(torch.equal(m.logits(x), z) for m in ms.values())
    assert torch.allclose(maps['mixed'], z.sigmoid())
    assert torch.allclose(maps['channel'], F.normalize(z, dim=1), atol=1e-6)
    assert torch.allclose(maps['spatial'], F.instance_norm(z).sigmoid(), atol=1e-6)

def test_masks_without_logits():
    "Logits of zero, or one position, give numbers and finite gradients"
    for kind,v in (('mixed',.5), ('channel',0), ('spatial',.5)):
        m,x = make(8, depth=1, kind=kind),torch.randn(2, 8, 5, 5, requires_grad=True)
        nn.init.zeros_(m.head.conv2.weight)
        out,maps = m(x, return_map=True)
        out.sum().backward()
        assert (maps['full']==v).all() and x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in m.parameters())
    assert (make(8, kind='spatial')(torch.randn(1,8,1,1), return_map=True)[1]['full']==.5).all()

def test_residual_is_one_more():
    x,a,b = torch.randn(2, 8, 6, 5),make(8, depth=2, residual=False),make(8, depth=2)
    assert torch.allclose(b(x)-a(x), x, atol=1e-5)

def test_other_features_may_be_weighed():
    m,x,t = make(8, depth=1),torch.randn(2,8,6,5),torch.randn(2,8,6,5)
    out,maps = m(x, True, on=t)
    assert torch.allclose(out, t*(1+maps['full'])) and torch.allclose(m(x, on=x), m(x))
    with pytest.raises(ShapeError, match='on: .* expected the shape of x'): m(x, on=t[:1])

def slow_pool(x):
    "Every second position, the largest of its neighbours"
    b,c,h,w = x.shape
    return torch.stack([torch.stack([x[:,:,max(i-1,0):i+2,max(j-1,0):j+2].amax((2,3)) for j in range(0,w,2)], -1) for i in range(0,h,2)], -2)

def slow_up(x, size):
    "Bilinear with aligned corners, position by position"
    def line(x, m):
        n = x.shape[-1]
        ts = [i*(n-1)/max(m-1,1) for i in range(m)]
        return torch.stack([x[...,min(int(t),n-1)]*(1-t+int(t))+x[...,min(int(t)+1,n-1)]*(t-int(t)) for t in ts], -1)
    return line(line(x, size[1]).transpose(2,3), size[0]).transpose(2,3)

def slow_mask(m, x):
    "The way of a mixed mask, level by level; its units (with a slow version on the page) as they are"
    ways = [slow_pool(x)]
    for i,u in enumerate(m.down):
        ways[i] = u(ways[i])
        if i<len(m.up): ways.append(slow_pool(ways[i]))
    z = ways[-1]
    for u,s,w in zip(m.up[::-1], m.skip[::-1], ways[-2::-1]): z = u(s(w)+slow_up(z, w.shape[2:]))
    z = slow_up(z, x.shape[2:])
    for bn,c in ((m.head.bn1,m.head.conv1),(m.head.bn2,m.head.conv2)): z = torch.einsum('oi,bihw->bohw', c.weight[:,:,0,0], bn(z).clamp(min=0))
    return x*(1+torch.sigmoid(z))

@pytest.mark.parametrize('size', [(1,1,1), (1,1,13), (2,5,6), (1,127,128)])
@pytest.mark.parametrize('dtype,tol', [(torch.float32,1e-5), (torch.float64,1e-10)])
def test_soft_mask_against_slow_at_awkward_sizes(size, dtype, tol):
    m = make(3).to(dtype)
    x = torch.randn(size[0], 3, *size[1:], dtype=dtype)
    t = torch.randn_like(x)
    (y,d),(ys,ds) = ((o,torch.autograd.grad((o*t).sum(), a)[0]) for f in (m, lambda x: slow_mask(m, x)) for a in (x.clone().requires_grad_(),) for o in (f(a),))
    assert torch.allclose(y, ys, tol, tol) and torch.allclose(d, ds, tol, tol)

@pytest.mark.parametrize('call,says', [(lambda: SoftMask(8, depth=0), 'depth: got 0'), (lambda: SoftMask(8, depth=True), 'depth'), (lambda: SoftMask(8, units=1.5), 'units: got 1.5'),
    (lambda: SoftMask(8, kind='full'), "'mixed', 'channel' or 'spatial'"), (lambda: SoftMask(0), 'at least 1'), (lambda: ResidualAttention(8, p=-1), 'p: got -1'), (lambda: ResidualAttention(8, t='2'), 't: got')])
def test_bad_arguments(call, says):
    with pytest.raises(ArgumentError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value)

def test_one_value_at_the_smallest_size():
    for m,x in ((SoftMask(4), torch.randn(1,4,8,8)), (SoftMask(4, depth=1), torch.randn(1,4,2,1))):
        with pytest.raises(ShapeError, match='more than one value'): m(x)
        m(x.repeat(2,1,1,1)); m.eval()(x)

# --- the whole module ----------------------------------------------------------------------------------
def test_residual_attention():
    torch.manual_seed(0)
    m,x = ResidualAttention(8, depth=2, t=3).eval(),torch.randn(2, 8, 9, 7)
    with collect_maps(m) as maps: y = m(x)
    f = m.pre(x)
    assert torch.allclose(y, m.post(m.trunk(f)*(1+maps['mask']['full'])), atol=1e-6)
    assert (len(m.pre),len(m.trunk),len(m.post))==(1,3,1)
    bare = ResidualAttention(8, p=0, t=0, depth=2).eval()
    with open_gates(bare): assert torch.equal(bare(x), x)
    for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))): assert torch.equal(o(x), y)
    with pytest.raises(ShapeError, match='expected 8 channels'): m(x[:,:3])
    m.train()(x).sum().backward()
    assert all(p.grad is not None for p in m.parameters())

def test_unit_of_few_channels():
    for c,h in ((1,1),(3,1),(7,1),(8,2)): assert ResidualUnit(c).conv2.weight.shape==(h,h,3,3)

# --- attention gates: the battery's promises, with two inputs -----------------------------------------
GATES = {'gate':(AttentionGate, {}), 'gate-none':(AttentionGate, dict(norm='none', inter=5)), 'gate-instance':(AttentionGate, dict(norm='instance')), 'gate-resize':(AttentionGate, dict(resize=True)),
         'grid':(GridAttentionGate, {}), 'grid-3':(GridAttentionGate, dict(stride=3, inter=7))}
COARSE = 'gate-resize','grid','grid-3'
LAYER = '{0}.0.weight {0}.0.bias {0}.1.weight {0}.1.bias {0}.1.running_mean {0}.1.running_var {0}.1.num_batches_tracked'
KEYS = {'gate':' '.join(LAYER.format(o) for o in ('W_g','W_x','psi')), 'gate-none':' '.join(f'{o}.0.weight {o}.0.bias' for o in ('W_g','W_x','psi')),
        'grid':LAYER.format('W')+' theta.weight phi.weight phi.bias psi.weight psi.bias'}
KEYS['gate-instance'],KEYS['gate-resize'] = KEYS['gate-none'],KEYS['gate']

def gate(kind, channels=16, gating=12, **kw):
    cls,opts = GATES[kind]
    torch.manual_seed(0)
    m = cls(channels, gating, **{**opts, **kw}).eval()
    for p in m.parameters(): nn.init.normal_(p, std=.3)
    for k,b in m.named_buffers():
        if 'running' in k: b.uniform_(.5, 2)
    return m

def inputs(kind, *size, b=2, channels=16, gating=12):
    g = torch.Generator().manual_seed(1)
    h,w = size or (8,6)
    s = (-(-h//2),-(-w//2)) if kind in COARSE else (h,w)
    return torch.randn(b, channels, h, w, generator=g),torch.randn(b, gating, *s, generator=g)

every = pytest.mark.parametrize('kind', GATES)

def open_answer(m, x): return m.W(x) if isinstance(m, GridAttentionGate) else x

@every
def test_gate_promises(kind):
    m,(x,g) = gate(kind),inputs(kind)
    x,g = x.requires_grad_(),g.requires_grad_()
    out,maps = m.train()(x, g, return_map=True)
    out.square().sum().backward()
    assert out.shape==x.shape and maps['spatial'].shape==(2,1,8,6) and 0<=maps['spatial'].min() and maps['spatial'].max()<=1
    assert all(o.grad is not None and o.grad.isfinite().all() for o in (x,g,*m.parameters()))
    m.eval()
    assert torch.allclose(m(x, g)[:1], m(x[:1], g[:1]), atol=1e-5)
    with open_gates(m), collect_maps(m) as maps: assert torch.equal(m(x, g), open_answer(m, x))
    assert (maps['']['spatial']==1).all() and not torch.equal(m(x, g), open_answer(m, x))

@every
@pytest.mark.parametrize('b,c,size', [(1,1,(1,1)), (1,1,(1,13)), (3,5,(2,1)), (1,7,(127,128))])
def test_gate_awkward_sizes(kind, b, c, size):
    m,(x,g) = gate(kind, c, 3),inputs(kind, *size, b=b, channels=c, gating=3)
    if kind=='gate-instance' and size==(1,1):
        with pytest.raises(ShapeError, match='more than one position'): m(x, g)
        return
    x,g = x.requires_grad_(),g.requires_grad_()
    out,maps = m(x, g, return_map=True)
    out.square().mean().backward()
    assert out.shape==x.shape and maps['spatial'].shape==(b,1,*size) and x.grad.isfinite().all() and g.grad.isfinite().all()

def slow(m, x, g, at):
    "The gate `m` at the positions `at` of each image: the equations, one position at a time"
    def norm(l, z):
        if isinstance(l, nn.BatchNorm2d): return (z-l.running_mean)/(l.running_var+l.eps)**.5*l.weight+l.bias
        return z
    def lin(l, z): return l.weight[:,:,0,0]@z+l.bias
    def blend(f, n, size, i, j):
        "The value at (i,j) of `size`, bilinear between values `f(h,w)` of a map of `n`"
        (a,s),(b,t) = ((int(o),o-int(o)) for o in (min(max((i+.5)*k/l-.5,0),k-1) for i,k,l in ((i,n[0],size[0]),(j,n[1],size[1]))))
        a1,b1 = min(a+1,n[0]-1),min(b+1,n[1]-1)
        return (1-s)*((1-t)*f(a,b)+t*f(a,b1))+s*((1-t)*f(a1,b)+t*f(a1,b1))
    def logit(x, g, i, j):
        if isinstance(m, AttentionGate):
            q = blend(lambda h,w: g[:,h,w], g.shape[1:], x.shape[1:], i, j)
            return norm(m.psi[1], lin(m.psi[0], (norm(m.W_g[1], lin(m.W_g[0], q))+norm(m.W_x[1], lin(m.W_x[0], x[:,i,j]))).clamp(min=0)))
        q,s = blend(lambda h,w: lin(m.phi, g[:,h,w]), g.shape[1:], grid(x), i, j),m.stride
        for di in range(s):
            for dj in range(s):
                if s*i+di<x.shape[1] and s*j+dj<x.shape[2]: q = q+m.theta.weight[:,:,di,dj]@x[:,s*i+di,s*j+dj]
        return lin(m.psi, q.clamp(min=0))
    def grid(x): return [max(1,o//m.stride) for o in x.shape[1:]]
    def one(x, g, i, j):
        if isinstance(m, AttentionGate): return x[:,i,j]*torch.sigmoid(logit(x, g, i, j))
        a = blend(lambda h,w: torch.sigmoid(logit(x, g, h, w)), grid(x), x.shape[1:], i, j)
        return norm(m.W[1], lin(m.W[0], x[:,i,j]*a))
    return torch.stack([torch.stack([one(a, b, i, j) for i,j in at], -1) for a,b in zip(x,g)])

@pytest.mark.parametrize('kind', [o for o in GATES if o!='gate-instance'])
@pytest.mark.parametrize('size', [(1,1), (5,6), (127,128)])
@pytest.mark.parametrize('dtype,tol', [(torch.float32,1e-5), (torch.float64,1e-10)])
def test_gates_against_slow(kind, size, dtype, tol):
    m,(x,g) = gate(kind, 5, 3).to(dtype),inputs(kind, *size, channels=5, gating=3)
    x,g = x.to(dtype).requires_grad_(),g.to(dtype).requires_grad_()
    h,w = size
    at = [(i,j) for i in range(h) for j in range(w)] if h*w<50 else [(0,0),(h-1,w-1),(0,w-1),(h-2,1),(60,61),(17,90)]
    y,z = m(x, g)[:,:,[i for i,_ in at],[j for _,j in at]],slow(m, x, g, at)
    t = torch.randn(y.shape, dtype=dtype)
    a,b = (torch.autograd.grad((o*t).sum(), (x,g)) for o in (y,z))
    assert torch.allclose(y, z, tol, tol) and all(torch.allclose(p, q, tol, tol) for p,q in zip(a,b))

@every
def test_gate_gradcheck(kind):
    m,(x,g) = gate(kind, 2, 2, inter=2).double(),inputs(kind, 4, 3, b=1, channels=2, gating=2)
    assert torch.autograd.gradcheck(m, (x.double().requires_grad_(),g.double().requires_grad_()))

@every
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_gate_precisions(kind, dtype):
    m,(x,g) = gate(kind),inputs(kind)
    with torch.autocast('cpu', dtype): out,low = m(x, g),m(x.to(dtype), g.to(dtype))
    tol = (.2 if dtype==torch.bfloat16 else .05)*(1+m(x, g).abs().max())
    assert out.dtype==torch.float32 and low.dtype==dtype and (out-m(x, g)).abs().max()<tol and (low.float()-m(x, g)).abs().max()<tol
    (out.sum()+low.sum()).backward()
    assert copy.deepcopy(m).to(dtype)(x.to(dtype), g.to(dtype)).dtype==dtype
    assert torch.allclose(copy.deepcopy(m).double()(x.double(), g.double()).float(), m(x, g), atol=1e-4)

@every
def test_gate_channels_last(kind):
    m,(x,g) = gate(kind),inputs(kind)
    out = copy.deepcopy(m).to(memory_format=torch.channels_last)(*(o.to(memory_format=torch.channels_last) for o in (x,g)))
    assert out.is_contiguous(memory_format=torch.channels_last) and torch.allclose(out, m(x, g), atol=1e-4)

@every
def test_gate_copies_and_names(kind):
    m,(x,g) = gate(kind),inputs(kind)
    cls,kw = GATES[kind]
    f = io.BytesIO(); torch.save(m.state_dict(), f); f.seek(0)
    fresh = cls(16, 12, **kw).eval()
    fresh.load_state_dict(torch.load(f, weights_only=True))
    for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), fresh): assert torch.equal(o(x, g), m(x, g))
    if kind in KEYS: assert list(m.state_dict())==KEYS[kind].split()

@every
def test_gate_export(kind):
    m,(x,g) = gate(kind),inputs(kind, 8, 6)
    b,h = torch.export.Dim('b', min=1, max=8),torch.export.Dim('h', min=3, max=40)
    dims = ({0:b, 2:2*h}, {0:b, 2:h if kind in COARSE else 2*h})
    e = torch.export.export(m, (x,g), dynamic_shapes=dims).module()
    for b,n in ((2,8),(5,22)):
        x,g = inputs(kind, n, 6, b=b)
        assert torch.allclose(e(x, g), m(x, g), atol=1e-4)

@every
def test_gate_one_graph(kind):
    torch._dynamo.reset()
    m,(x,g) = gate(kind),inputs(kind)
    c = torch.compile(m, backend='aot_eager', fullgraph=True)
    x,g = x.requires_grad_(),g.requires_grad_()
    assert torch.allclose(c(x, g), m(x, g), atol=1e-5)
    for a,b in zip(*(torch.autograd.grad(f(x, g).square().sum(), (x,g)) for f in (c,m))): assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)
    with open_gates(m): assert torch.equal(c(x, g), open_answer(m, x))

@every
@pytest.mark.parametrize('spoil,says', [
    (lambda x,g: (x[:,:7],g), 'x: .* expected 16 channels'), (lambda x,g: (x,g[:,:5]), 'g: .* expected 12 channels'), (lambda x,g: (x[0],g), r'x\[None\]'), (lambda x,g: (x,g[0]), 'g: .* 4 dimensions'),
    (lambda x,g: (x,g.int()), r'g: .* x\.float\(\)'), (lambda x,g: (x,[1.]), 'g: .* torch tensor'), (lambda x,g: (x,g[:1]), 'g: .* one signal for each of the 2 images')])
def test_gate_bad_input(kind, spoil, says):
    with pytest.raises(ShapeError, match=says) as e: gate(kind)(*spoil(*inputs(kind)))
    assert '\n' not in str(e.value)

def test_signal_of_another_size():
    x,g = inputs('gate', 8, 6)
    with pytest.raises(ShapeError, match=r'g: got a float32 tensor of shape \(2, 12, 4, 3\); expected height and width of x, \(8, 6\)'): gate('gate')(x, g[:,:,:4,:3])
    with pytest.raises(ShapeError, match='no larger than x'): gate('grid')(x, F.pad(g, (0,1)))
    for s in ((1,1),(3,5),(8,6)): assert gate('grid')(x, g[:,:,:s[0],:s[1]]).shape==gate('gate-resize')(x, g[:,:,:s[0],:s[1]]).shape==x.shape
    assert torch.equal(gate('gate-resize')(x, g), gate('gate')(x, g))

@pytest.mark.parametrize('call,says', [(lambda: AttentionGate(8, 0), 'gating: got 0'), (lambda: AttentionGate(8, True), 'gating'), (lambda: AttentionGate(8, 4, inter=0), 'inter: got 0'),
    (lambda: AttentionGate(8, 4, norm='group'), "'batch', 'instance' or 'none'"), (lambda: AttentionGate(8, 4, norm=None), 'norm'), (lambda: GridAttentionGate(8, 4, stride=0), 'stride: got 0'), (lambda: GridAttentionGate('8', 4), 'channels')])
def test_gate_bad_arguments(call, says):
    with pytest.raises(ArgumentError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value)

def test_gate_training_with_one_value():
    for cls in (AttentionGate, GridAttentionGate):
        with pytest.raises(ShapeError, match='more than one value'): cls(4, 3)(torch.randn(1,4,1,1), torch.randn(1,3,1,1))
        cls(4, 3)(torch.randn(2,4,1,1), torch.randn(2,3,1,1)); cls(4, 3).eval()(torch.randn(1,4,1,1), torch.randn(1,3,1,1))
    AttentionGate(4, 3, norm='none')(torch.randn(1,4,1,1), torch.randn(1,3,1,1))

def test_starts():
    torch.manual_seed(0)
    m = GridAttentionGate(64, 128, inter=512)
    for l,n in ((m.theta,4*64),(m.phi,128),(m.psi,512)): assert abs(l.weight.std()/(2/n)**.5-1)<.1
    assert m.theta.bias is None and abs(m.W[1].weight.mean()-1)<.02 and abs(m.W[1].weight.std()-.02)<.01 and not m.W[1].bias.any()
    assert (AttentionGate(7, 3).inter,AttentionGate(1, 3).inter,GridAttentionGate(1, 3).inter)==(3,1,1)
    s = SoftMask(64)
    assert abs(s.head.conv1.weight.std()/(2/64)**.5-1)<.1 and (s.head.bn1.weight==1).all()

def test_gates_are_not_for_insertion(): assert not {'attention-gate','gate','grid'} & set(available()) and 'soft-mask' in available()

# --- the context block at the size of an image ---------------------------------------------------------
@pytest.mark.parametrize('fusion', ['add','mul','both'])
@pytest.mark.parametrize('dtype,tol', [(torch.float32,1e-5), (torch.float64,1e-10)])
def test_gc_at_127x128(fusion, dtype, tol):
    "The equations with their sums written out, on a map too large for the loops of the page"
    class One(Battery): KINDS = {'gc':('gc',dict(ratio=.5, fusion=fusion))}
    m,x = One().make('gc', 6).to(dtype),torch.randn(2, 6, 127, 128, dtype=dtype)
    def transform(t, c):
        h = torch.einsum('oi,bi->bo', t.fc1.weight[:,:,0,0], c)+t.fc1.bias
        d = h-h.sum(1, keepdim=True)/h.shape[1]
        h = d/((d*d).sum(1, keepdim=True)/h.shape[1]+t.norm.eps)**.5*t.norm.weight.flatten()+t.norm.bias.flatten()
        return (torch.einsum('oi,bi->bo', t.fc2.weight[:,:,0,0], h.clamp(min=0))+t.fc2.bias)[:,:,None,None]
    def slow(x):
        e = torch.exp(torch.einsum('i,bihw->bhw', m.mask.weight.flatten(), x)+m.mask.bias)
        c = torch.einsum('bhw,bihw->bi', e, x)/e.sum((1,2))[:,None]
        if m.mul is not None: x = x/(1+torch.exp(-transform(m.mul, c)))
        return x if m.add is None else x+transform(m.add, c)
    t = torch.randn_like(x)
    (y,d),(ys,ds) = ((o,torch.autograd.grad((o*t).sum(), a)[0]) for f in (m, slow) for a in (x.clone().requires_grad_(),) for o in (f(a),))
    assert torch.allclose(y, ys, tol, tol) and torch.allclose(d, ds, tol, tol)

# --- twins ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('c,cg,f', [(16,12,8), (1,3,1), (5,7,2)])
def test_monai_gate(c, cg, f):
    t = pytest.importorskip('monai.networks.nets.attentionunet').AttentionBlock(spatial_dims=2, f_int=f, f_g=cg, f_l=c)
    m,(x,g) = gate('gate', c, cg, inter=f),inputs('gate', 7, 9, channels=c, gating=cg)
    t.load_state_dict({k.replace('.0.','.0.conv.'):v for k,v in m.state_dict().items()})
    for o in (m,t): o.train() if c>1 else o.eval()
    x,g = x.requires_grad_(),g.requires_grad_()
    y,z = m(x, g),t(g, x)
    assert torch.allclose(y, z, atol=1e-5)
    for a,b in zip(torch.autograd.grad(y.square().sum(), (x,g)), torch.autograd.grad(z.square().sum(), (x,g))): assert torch.allclose(a, b, atol=1e-4)

def test_gates_of_the_fpa_paper():
    "3,161,843 parameters with gates against 3,129,248 without"
    assert sum(p.numel() for c in (128,64,32) for p in AttentionGate(c, 2*c, norm='instance').parameters())==3_161_843-3_129_248
