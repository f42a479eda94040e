"""Exact attention outside its lesson: shapes, layouts, precisions, compilers, gradients, memory, large maps, bad input."""
import warnings
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.autograd import gradcheck, gradgradcheck
from medattn_nb.attention.exact import attention_received, attention_rows, concat_attention, exact_attention, plain_attention
from medattn_nb.attention import exact
from medattn_nb.core import ArgumentError, ShapeError

KINDS = 'softmax','dot'
kinds = pytest.mark.parametrize('kind', KINDS)
dims = st.integers(1,9)

def rand(*s, dtype=torch.float64, seed=0): return torch.randn(*s, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
def qkv(B, N, M, D, E, dtype=torch.float64): return [rand(B,n,c, dtype=dtype, seed=i) for i,(n,c) in enumerate(((N,D),(M,D),(M,E)))]
def abv(B, N, M, E, dtype=torch.float64): return [rand(*s, dtype=dtype, seed=i) for i,s in enumerate(((B,N),(B,M),(B,M,E)))]

def loops(q, k, v, kind='softmax', scale=1.):
    "The formula, row by row"
    out = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype)
    for b in range(len(q)):
        for i in range(q.shape[1]):
            s = scale*(k[b]*q[b,i]).sum(1)
            w = torch.exp(s-s.max()) if kind=='softmax' else s
            out[b,i] = (w[:,None]*v[b]).sum(0)/(w.sum() if kind=='softmax' else len(s))
    return out

def concat_loops(a, b, v):
    out = torch.zeros(*a.shape, v.shape[2], dtype=v.dtype)
    for n in range(len(a)):
        for i in range(a.shape[1]): out[n,i] = ((a[n,i]+b[n]).clamp(min=0)[:,None]*v[n]).sum(0)/b.shape[1]
    return out

def grads(f, xs):
    "Output and input gradients along a fixed direction"
    xs = [x.clone().requires_grad_() for x in xs]
    y = f(*xs)
    return [y.detach(), *torch.autograd.grad((y*rand(*y.shape, dtype=y.dtype, seed=9)).sum(), xs)]

def same(f, g, xs, tol):
    for a,b in zip(grads(f, xs), grads(g, xs)):
        assert a.shape==b.shape and a.dtype==b.dtype
        assert torch.allclose(a, b, rtol=tol, atol=tol), (a-b).abs().max()

# --- the same numbers as loops ------------------------------------------------------------------------
@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(KINDS), B=st.integers(1,3), N=dims, M=dims, D=dims, E=dims, scale=st.sampled_from([1.,.3,-.7,0.]))
def test_loops(kind, B, N, M, D, E, scale):
    for dtype,tol in ((torch.float64,1e-10),(torch.float32,1e-5)):
        same(lambda *a: exact_attention(*a, kind=kind, scale=scale), lambda *a: loops(*a, kind, scale), qkv(B,N,M,D,E,dtype), tol)

@settings(deadline=None, max_examples=30)
@given(B=st.integers(1,3), N=dims, M=dims, E=dims)
def test_concat_loops(B, N, M, E):
    for dtype,tol in ((torch.float64,1e-10),(torch.float32,1e-5)): same(concat_attention, concat_loops, abv(B,N,M,E,dtype), tol)

@pytest.mark.parametrize('size', [(1,3000,40,5,3),(1,40,6000,3,5),(3,700,900,4,4),(40,49,49,8,8),(1,5000,5000,2,2)])
def test_many_tiles(size):
    same(exact_attention, plain_attention, qkv(*size, dtype=torch.float32), 1e-5)

@settings(deadline=None, max_examples=40)
@given(B=st.integers(1,9), N=st.integers(1,40000), M=st.integers(1,40000), cells=st.sampled_from([2**20,2**21]))
def test_tiles_stay_small(B, N, M, cells):
    g,l,s = exact._tile(B, N, M, cells)
    assert 1<=g<=B and 1<=l<=N and 1<=s<=M and g*l*s<=1.25*cells

@settings(deadline=None, max_examples=20)
@given(cells=st.sampled_from([1,50,300]), B=st.integers(1,3), N=st.integers(1,90), M=st.integers(1,90))
def test_any_tiling(cells, B, N, M):
    "The result does not depend on how the matrix is cut"
    whole = exact._tile
    exact._tile = lambda images,long,short: (exact._piece(images,1+cells//100), exact._piece(long,cells), exact._piece(short,cells//2))
    try: same(exact_attention, plain_attention, qkv(B,N,M,3,2), 1e-10)
    finally: exact._tile = whole

# --- gradients ----------------------------------------------------------------------------------------
@kinds
def test_gradcheck(kind):
    assert gradcheck(lambda *a: exact_attention(*a, kind=kind, scale=.7), [x.requires_grad_() for x in qkv(2,3,4,3,2)])

def test_gradcheck_concat():
    a,b,v = abv(2,4,5,3)
    assert (a[:,:,None]+b[:,None]).abs().min()>1e-3 # away from the kinks
    assert gradcheck(concat_attention, [x.requires_grad_() for x in (a,b,v)])

@pytest.mark.parametrize('which', range(1,8))
def test_gradients_for_some_inputs(which):
    full = grads(plain_attention, qkv(2,6,7,3,4))[1:]
    xs = [x.requires_grad_(bool(which>>i & 1)) for i,x in enumerate(qkv(2,6,7,3,4))]
    y = exact_attention(*xs)
    (y*rand(*y.shape, seed=9)).sum().backward()
    for i,(x,g) in enumerate(zip(xs, full)):
        if which>>i & 1: assert torch.allclose(x.grad, g, atol=1e-10)
        else: assert x.grad is None

def test_shared_input():
    "One tensor as queries, keys and values, as in self-attention without projections"
    x = rand(2,30,4)
    same(lambda o: exact_attention(o, o, o), lambda o: plain_attention(o, o, o), [x], 1e-10)

@kinds
def test_second_derivatives(kind):
    assert gradgradcheck(lambda *a: exact_attention(*a, kind=kind, scale=.7), [x.requires_grad_() for x in qkv(1,3,4,2,2)])
    x = rand(1,3,2).requires_grad_()
    assert gradgradcheck(lambda o: exact_attention(o, o, 2*o, kind=kind), [x])

def test_inputs_stay_as_they_are():
    xs = qkv(2,50,60,3,4)
    old = [x.clone() for x in xs]
    grads(exact_attention, xs)
    for x,o in zip(xs, old): assert torch.equal(x, o)

def test_inference_and_no_grad():
    xs = qkv(1,50,60,3,4, dtype=torch.float32)
    with torch.inference_mode(): y = exact_attention(*xs)
    with torch.no_grad(): z = exact_attention(*[x.clone().requires_grad_() for x in xs])
    assert not z.requires_grad and torch.equal(y, z)
    same(exact_attention, plain_attention, xs, 1e-5)
    xs = [x.transpose(1,2).contiguous().transpose(1,2) for x in qkv(2,50,60,3,3, dtype=torch.float32)] # equal widths: another road
    with torch.no_grad(): assert torch.allclose(exact_attention(*xs, scale=.7), plain_attention(*xs, .7), atol=1e-5)

# --- layout, range, precision -------------------------------------------------------------------------
@kinds
def test_not_contiguous(kind):
    "As they come from a convolution: (B,C,H,W) flattened and transposed; and expanded"
    xs = [rand(2,c,6,5, seed=i).flatten(2).transpose(1,2) for i,c in enumerate((3,3,4))]
    assert not xs[0].is_contiguous()
    same(lambda *a: exact_attention(*a, kind=kind), lambda *a: loops(*a, kind), xs, 1e-10)
    q,k,v = qkv(2,6,1,3,4)
    assert torch.allclose(exact_attention(q, k.expand(-1,7,-1), v.expand(-1,7,-1), kind=kind), exact_attention(q, k, v, kind=kind))
    a,b,v = rand(5,2).t(),rand(7,2, seed=1).t(),rand(2,3,7, seed=2).transpose(1,2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same(concat_attention, concat_loops, [a,b,v], 1e-10)

@pytest.mark.parametrize('dtype', [torch.float32,torch.float64,torch.bfloat16,torch.float16])
def test_large_scores(dtype):
    q,k,v = qkv(1,70,90,4,3)
    big = [(100*o).to(dtype) for o in (q,k)]+[v.to(dtype)]
    for o in grads(exact_attention, big): assert o.isfinite().all()
    if dtype==torch.float64: same(exact_attention, plain_attention, big, 1e-8)

@pytest.mark.parametrize('shift', [1e4,-1e4])
def test_scores_far_from_zero(shift):
    "Adding the same number to all scores of a query changes nothing"
    q,k,v = qkv(1,40,50,3,2)
    one = torch.ones(1,1,1, dtype=q.dtype)
    q1,k1 = torch.cat([q, shift*one.expand(1,40,1)], 2),torch.cat([k, one.expand(1,50,1)], 2)
    assert torch.allclose(exact_attention(q1, k1, v), exact_attention(q, k, v), atol=1e-9)
    assert exact_attention(q1.float(), k1.float(), v.float()).isfinite().all()

def test_equal_keys_give_the_mean():
    q,k,v = qkv(2,9,1,3,4)
    v = rand(2,8,4)
    assert torch.allclose(exact_attention(q, k.expand(-1,8,-1), v), v.mean(1, keepdim=True).expand(-1,9,-1))

@kinds
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_half_precision(kind, dtype):
    "Rounded once: as good as the exact result of the rounded inputs"
    xs = qkv(2,300,400,8,5, dtype)
    for a,b in zip(grads(lambda *o: exact_attention(*o, kind=kind, scale=.5), xs), grads(lambda *o: exact_attention(*o, kind=kind, scale=.5), [x.double() for x in xs])):
        assert a.dtype==dtype and (a.double()-b).abs().max()<=2e-2*b.abs().max()
    ab = abv(2,30,40,5, dtype)
    y = concat_attention(*ab)
    assert y.dtype==dtype and torch.allclose(y.double(), concat_loops(*[o.double() for o in ab]), atol=2e-2)

def test_half_precision_sums_do_not_overflow():
    one = torch.ones(1,9216,4, dtype=torch.float16)
    for kind in KINDS: assert torch.allclose(exact_attention(one, 8*one, 16*one, kind=kind), one*(16 if kind=='softmax' else 512))

@kinds
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_autocast(kind, dtype):
    xs = [x.requires_grad_() for x in qkv(1,30,40,4,3, torch.float32)]
    with torch.autocast('cpu', dtype):
        y = exact_attention(*xs, kind=kind, scale=.5)
        mixed = exact_attention(xs[0].to(dtype), *xs[1:], kind=kind, scale=.5)
        rows = attention_rows(*xs[:2], [0,3], kind=kind)
        y.float().square().sum().backward()
    assert y.dtype==mixed.dtype==rows.dtype==dtype and all(x.grad.dtype==torch.float32 and x.grad.isfinite().all() for x in xs)
    assert torch.allclose(y.float(), loops(*xs, kind, .5), atol=5e-2) and torch.equal(y, mixed)
    with torch.autocast('cpu', dtype): assert exact_attention(*[x.double() for x in xs], kind=kind).dtype==torch.float64

def test_autocast_concat():
    a,b,v = abv(1,30,40,3, torch.float32)
    with torch.autocast('cpu', torch.bfloat16): y = concat_attention(a, b, v)
    assert y.dtype==torch.bfloat16 and torch.allclose(y.float(), concat_loops(a, b, v), atol=2e-2)

def test_concat_far_from_zero():
    "Only the sum of a and b counts, however large both are"
    a,b,v = abv(1,60,50,3)
    assert torch.allclose(concat_attention(a+1e4, b-1e4, v), concat_attention(a, b, v), atol=1e-9)
    assert torch.equal(concat_attention(a-1e3, b, v), torch.zeros(1,60,3, dtype=a.dtype))

def test_concat_ties():
    a,b = torch.zeros(1,4),torch.tensor([[1.,1.,-1.,0.,1.]])
    v = rand(1,5,2, dtype=torch.float32)
    same(concat_attention, concat_loops, [a+.25,b,v], 1e-6)
    assert torch.allclose(concat_attention(a, b, v), concat_loops(a, b, v))

# --- the other road: padded, for compilers and GPUs -----------------------------------------------------
@settings(deadline=None, max_examples=20)
@given(B=st.integers(1,3), N=dims, M=dims, D=st.integers(1,20), E=st.integers(1,20))
def test_fused_is_the_same(B, N, M, D, E): same(lambda *a: exact._fused(*a, .7), lambda *a: plain_attention(*a, .7), qkv(B,N,M,D,E), 1e-10)

class Module(torch.nn.Module):
    def __init__(self, kind): super().__init__(); self.kind = kind
    def forward(self, x):
        q,k,v = x[:,:3].flatten(2).transpose(1,2),x[:,3:6].flatten(2).transpose(1,2),x[:,6:].flatten(2).transpose(1,2)
        return concat_attention(q[...,0], k[...,0], v) if self.kind=='concat' else exact_attention(q, k, v, self.kind, .5)

@pytest.mark.parametrize('kind', [*KINDS,'concat'])
def test_export(kind):
    m,x = Module(kind),rand(2,11,4,5, dtype=torch.float32)
    dims = ({0:torch.export.Dim('b', min=1, max=8), 2:torch.export.Dim('h', min=2, max=99), 3:torch.export.Dim('w', min=2, max=99)},)
    e = torch.export.export(m, (x,), dynamic_shapes=dims).module()
    for o in (x, rand(5,11,7,3, dtype=torch.float32)): assert torch.allclose(e(o), m(o), atol=1e-5)

@pytest.mark.parametrize('kind', [*KINDS,'concat'])
def test_one_graph(kind):
    torch._dynamo.reset()
    m = Module(kind)
    c = torch.compile(m, backend='aot_eager', fullgraph=True)
    for x in (rand(2,11,4,5, dtype=torch.float32), rand(1,11,6,3, dtype=torch.float32)): same(c, m, [x], 1e-5)

def test_one_graph_under_autocast():
    torch._dynamo.reset()
    m,x = Module('dot'),rand(2,11,4,5, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16): assert torch.allclose(torch.compile(m, backend='aot_eager', fullgraph=True)(x), m(x))

# --- memory -------------------------------------------------------------------------------------------
def kept(f, xs):
    seen = {}
    def pack(t): seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(); return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): f(*[x.requires_grad_() for x in xs])
    return sum(seen.values())

def test_memory_kept_for_the_backward_pass():
    N = 1024
    xs = qkv(1,N,N,32,64, torch.float32)
    assert kept(exact_attention, xs)==4*N*(32+32+64+64+1)
    assert kept(plain_attention, xs)>=4*N*N
    assert kept(lambda *a: exact_attention(*a, kind='dot'), xs)<=4*(N*(32+32+64+32)+4*32*64)
    assert kept(concat_attention, abv(1,N,N,32, torch.float32))<=N*32*100
    with torch.no_grad(): assert kept(exact_attention, xs)==0

class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    "Remembers the largest tensor that any operation made"
    most = 0
    def __torch_dispatch__(self, f, types, args=(), kw=None):
        out = f(*args, **(kw or {}))
        for o in out if isinstance(out, (tuple,list)) else [out]:
            if isinstance(o, torch.Tensor): self.most = max(self.most, o.numel())
        return out

@pytest.mark.parametrize('f,xs', [(exact_attention,qkv(1,4096,4096,4,6, torch.float32)), (lambda *a: exact_attention(*a, kind='dot'),qkv(1,4096,4096,4,6, torch.float32)),
                                  (concat_attention,abv(1,4096,4096,6, torch.float32)), (lambda q,k,v: attention_received(q, k)+v[...,0],qkv(1,4096,4096,4,1, torch.float32))], ids=['softmax','dot','concat','received'])
def test_no_operation_makes_the_matrix(f, xs):
    with Largest() as m: f(*[x.requires_grad_() for x in xs]).sum().backward()
    assert m.most<=2.5*2**20<4096**2/6

@pytest.mark.parametrize('E', [8,12])
@pytest.mark.parametrize('dtype', [torch.float32,torch.float64,torch.bfloat16,torch.float16])
def test_nor_without_gradients(E, dtype):
    "Also for channels that are not contiguous, as they come from a feature map"
    xs = [x.to(dtype).transpose(1,2).contiguous().transpose(1,2) for x in qkv(1,4096,4096,8,E)]
    with torch.no_grad(), Largest() as m: exact_attention(*xs)
    assert m.most<=2.5*2**20

# --- a large map --------------------------------------------------------------------------------------
def test_127x128_positions():
    "Against plain rows at a sample of queries, and for the gradients, which only these queries send back"
    N = 127*128
    q,k,v = (x.mul_(.7).requires_grad_() for x in qkv(1,N,N,4,3, torch.float32))
    i = torch.tensor([0,1,767,768,5419,9000,N-1])
    def sample(f): return torch.autograd.grad((f*rand(1,len(i),3, dtype=torch.float32, seed=9)).sum(), (q,k,v))
    y = exact_attention(q, k, v)[:,i]
    z = plain_attention(q[:,i], k, v)
    assert torch.allclose(y, z, atol=1e-5)
    for a,b in zip(sample(y), sample(z)): assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(attention_rows(q, k, i) @ v, z, atol=1e-5)

def test_127x128_concat():
    N = 127*128
    a,b,v = (x.requires_grad_() for x in abv(1,N,N,3, torch.float32))
    i = torch.arange(0, N, 1000)
    def sample(f): return torch.autograd.grad((f*rand(1,len(i),3, dtype=torch.float32, seed=9)).sum(), (a,b,v))
    y,z = concat_attention(a, b, v)[:,i],F.relu(a[:,i,None]+b[:,None]) @ v/N
    assert torch.allclose(y, z, atol=1e-5)
    for o,p in zip(sample(y), sample(z)): assert torch.allclose(o, p, atol=1e-5)

# --- rows and columns of the matrix ---------------------------------------------------------------------
@kinds
def test_rows_and_received(kind):
    q,k,v = qkv(2,30,40,3,4)
    w = attention_rows(q, k, range(30), .7, kind) if kind=='dot' else attention_rows(q, k, torch.arange(30), .7)
    assert w.shape==(2,30,40) and torch.allclose(w @ v, exact_attention(q, k, v, kind, .7))
    assert torch.allclose(attention_received(q, k, .7, kind), w.mean(1))
    assert torch.allclose(attention_rows(q, k, 3, .7, kind), w[:,3:4])
    if kind=='softmax': assert torch.allclose(w.sum(2), torch.ones(2,30, dtype=w.dtype))

@kinds
def test_received_half_precision(kind):
    q,k,_ = qkv(2,3000,500,3,4, torch.bfloat16)
    r = attention_received(q, k, .7, kind)
    assert r.dtype==torch.bfloat16 and torch.allclose(r.double(), attention_received(q.double(), k.double(), .7, kind), rtol=2e-2, atol=1e-4)

# --- bad input ----------------------------------------------------------------------------------------
q,k,v = qkv(2,6,7,3,4, torch.float32)
@pytest.mark.parametrize('args,words', [
    ((None,k,v), 'q: got NoneType; expected a torch tensor'), ((q[0],k,v), 'expected 3 dimensions'), ((q,k,v[...,None]), 'expected 3 dimensions'),
    ((q.int(),k.int(),v.int()), 'q.*x.float()'), ((q,k,v.double()), 'v: got a float64 tensor.*expected float32'), ((q,k[:1],v), 'k.*expected a batch of 2 like q'),
    ((q,k[...,:2],v), 'k.*expected 3 channels'), ((q,k,v[:,:5]), 'v.*expected 7 positions'), ((q,k[:,:0],v[:,:0]), 'k.*at least one position')])
@kinds
def test_messages(kind, args, words):
    with pytest.raises(ShapeError, match=words) as e: exact_attention(*args, kind=kind)
    assert '\n' not in str(e.value)

def test_messages_of_the_others():
    for f in (lambda kind: exact_attention(q, k, v, kind), lambda kind: attention_rows(q, k, 0, kind=kind), lambda kind: attention_received(q, k, kind=kind)):
        for kind in ('concat','Softmax',None):
            with pytest.raises(ArgumentError, match="choose 'softmax' or 'dot'"): f(kind)
    a,b = q[...,0],k[...,0]
    for args,words in (((q,b,v),'a: got'), ((a,k,v),'b: got'), ((a,None,v),'b: got NoneType'), ((a,b,v[:,:5]),'as many positions'), ((a,b[:1],v),'b: got.*batch of 2 like a'), ((a,b,v.double()),'v: got')):
        with pytest.raises(ShapeError, match=words): concat_attention(*args)
    for i in (6, -1, [0,7], [.5], True):
        with pytest.raises(ArgumentError, match='use whole numbers from 0 to 5'): attention_rows(q, k, i)
    with pytest.raises(ShapeError, match='expected 3 channels'): attention_received(q, k[...,:2])

@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16])
def test_received_scales_in_single_precision(dtype):
    "A scale that would leave the range of half precision does not; the mean of the rows says the same"
    q,k = (torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0,1))
    for s in (.125,1e5):
        got = attention_received(q, k, s)
        torch.testing.assert_close(got, attention_rows(q, k, range(9), s).float().mean(1).to(dtype), atol=4e-3, rtol=2e-2)
        assert got.isfinite().all()
