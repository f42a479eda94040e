"""What every attention module promises, as a base class for tests: a new module adds one entry to `KINDS` and gets them all.

    from battery import Battery
    class TestMine(Battery):
        KINDS = {'srm':('srm',{})}
        KEYS = {'srm':'weight bn.weight ...'}"""
import copy, io, pickle
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from medattn_nb.attention import check_attention, create, open_gates
from medattn_nb.core import ShapeError

class Battery:
    "Common tests; `pytest_generate_tests` in conftest.py runs each for every kind of the subclass"
    KINDS = {}   # id -> (registered name, keywords)
    KEYS = {}    # id -> names of the weights, in order, pinned: saved networks depend on them
    CHANNELS = 32
    RANGE = 0,1  # of the maps, 'context' excepted

    def tight(self, kind, channels):
        "Keywords that make the module possible at any number of channels"
        return {}

    def make(self, kind, channels=None, **kw):
        "A module with random weights and statistics, in evaluation mode"
        name,opts = self.KINDS[kind]
        torch.manual_seed(0)
        m = create(name, channels or self.CHANNELS, **{**opts, **kw}).eval()
        for p in m.parameters(): nn.init.normal_(p, std=.3)
        for n,b in m.named_buffers():
            if n.endswith('running_mean'): b.normal_(std=.3)
            if n.endswith('running_var'):  b.uniform_(.5, 2)
        return m

    def x(self, *size): return torch.randn(2, self.CHANNELS, *(size or (8,6)), generator=torch.Generator().manual_seed(1))

    def map_shape(self, key, b, c, h, w):
        "The shape of the map called `key`"
        return {'spatial':(b,1,h,w), 'full':(b,c,h,w)}.get(key, (b,c,1,1))

    def test_promises(self, kind): assert 'open gate is the identity' in check_attention(self.make(kind))

    @settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.differing_executors])
    @given(b=st.integers(1,3), c=st.integers(1,40), h=st.integers(1,9), w=st.integers(1,9))
    def test_any_shape(self, kind, b, c, h, w):
        m,x = self.make(kind, c, **self.tight(kind, c)),torch.randn(b, c, h, w)
        out,maps = m(x, return_map=True)
        assert out.shape==x.shape and out.dtype==x.dtype and out.isfinite().all() and torch.equal(m(x), out)
        for k,v in maps.items():
            assert v.shape==self.map_shape(k, b, c, h, w)
            if k!='context' and self.RANGE: assert v.min()>=self.RANGE[0]-1e-6 and v.max()<=self.RANGE[1]+1e-6
        with open_gates(m): assert torch.equal(m(x), x)

    @pytest.mark.parametrize('size', [(1,1),(1,13),(127,128)])
    def test_awkward_sizes_with_gradients(self, kind, size):
        m,x = self.make(kind, 16, **self.tight(kind, 16)),torch.randn(1, 16, *size, requires_grad=True)
        m(x).square().mean().backward()
        assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in m.parameters() if p.grad is not None)

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_autocast(self, kind, dtype):
        m,x = self.make(kind),self.x()
        with torch.autocast('cpu', dtype): out,maps = m(x, return_map=True); low = m(x.to(dtype))
        tol = (.2 if dtype==torch.bfloat16 else .05)*(1+m(x).abs().max())
        assert out.dtype==torch.float32 and low.dtype==dtype and maps
        assert (out-m(x)).abs().max()<tol and (low.float()-m(x)).abs().max()<tol
        (out.sum()+low.sum()).backward()

    def test_module_in_other_precisions(self, kind):
        m,x = self.make(kind),self.x()
        assert torch.allclose(copy.deepcopy(m).double()(x.double()).float(), m(x), atol=1e-4, rtol=1e-4)
        for dtype in (torch.bfloat16, torch.float16): assert copy.deepcopy(m).to(dtype)(x.to(dtype)).dtype==dtype

    def test_channels_last(self, kind):
        m,x = self.make(kind),self.x()
        out = copy.deepcopy(m).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(out, m(x), atol=1e-4)

    def test_copies(self, kind):
        m,x = self.make(kind),self.x()
        f = io.BytesIO(); torch.save(m.state_dict(), f); f.seek(0)
        fresh = create(self.KINDS[kind][0], self.CHANNELS, **self.KINDS[kind][1]).eval()
        fresh.load_state_dict(torch.load(f, weights_only=True))
        for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), fresh): assert torch.equal(o(x), m(x))

    def test_export(self, kind):
        m,x = self.make(kind),self.x()
        dims = ({0:torch.export.Dim('b', min=1, max=8), 2:torch.export.Dim('h', min=2, max=99)},)
        e = torch.export.export(m, (x,), dynamic_shapes=dims).module()
        for o in (x, torch.randn(5, self.CHANNELS, 11, 6)): assert torch.allclose(e(o), m(o), atol=1e-4)

    def test_one_graph_with_gradients(self, kind):
        torch._dynamo.reset() # or the kinds before this one count against the limit of recompilations
        m,x = self.make(kind),self.x().requires_grad_()
        c = torch.compile(m, backend='aot_eager', fullgraph=True)
        assert torch.allclose(c(x), m(x), atol=1e-5)
        (a,),(b,) = (torch.autograd.grad(f(x).square().sum(), [x]) for f in (c,m))
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)
        with open_gates(m): assert torch.equal(c(x), x)
        assert torch.allclose(c(x), m(x), atol=1e-5)

    def test_seed_decides_the_start(self, kind):
        name,kw = self.KINDS[kind]
        def new(): torch.manual_seed(3); return create(name, self.CHANNELS, **kw).state_dict()
        assert all(torch.equal(a,b) for a,b in zip(new().values(), new().values()))

    def test_names_of_weights_do_not_change(self, kind):
        assert set(self.KEYS)<=set(self.KINDS)
        if kind not in self.KEYS: pytest.skip('not pinned')
        assert list(self.make(kind).state_dict())==self.KEYS[kind].split()

    @pytest.mark.parametrize('x,says', [(torch.zeros(1,7,4,4), r'\d+ channels'), (torch.zeros(32,4,4), r'x\[None\]'), (torch.zeros(1,32,4,4).int(), r'x\.float\(\)'), ([1.], 'torch tensor')])
    def test_bad_feature_maps(self, kind, x, says):
        with pytest.raises(ShapeError, match=says): self.make(kind)(x)
