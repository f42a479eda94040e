"Superpixels: both SLIC backends, label maps as pictures, the cache, pooling against a loop, and what is refused"
import csv, multiprocessing, os, pickle, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from conftest import real
from medattn_nb import superpixels as S
from medattn_nb.core import ArgumentError, DataError, MissingPackage, ShapeError
from medattn_nb.superpixels import (SuperpixelCache, read_superpixels, relabel, resize_labels, slic, slic_backends, superpixel_ceiling,
                                    superpixel_counts, superpixel_pool, superpixel_unpool, write_superpixels)

@pytest.fixture(params=['fast','skimage'])
def backend(request):
    if request.param not in slic_backends(): pytest.skip('fast-slic is not installed; `make fast-slic` builds it')
    return request.param

def blobs(seed=0, h=48, w=56):
    "A smooth random picture (h,w,3)"
    from scipy.ndimage import gaussian_filter
    a = gaussian_filter(np.random.default_rng(seed).uniform(size=(h,w,3)), (4,4,0))
    return ((a-a.min())/np.ptp(a)*255).astype(np.uint8)

def pieces(labels):
    "Number of 4-connected pieces of equal labels"
    from skimage.measure import label
    return label(labels+1, connectivity=1, background=0).max()

def keeps_contract(labels, shape):
    K = labels.max()+1
    assert isinstance(labels, np.ndarray) and labels.dtype==np.int64 and labels.shape==shape
    assert np.array_equal(np.unique(labels), np.arange(K)) and pieces(labels)==K

# --- SLIC ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('shape', [(48,56), (1,1), (1,40), (40,1), (2,3), (5,97), (127,128)])
@pytest.mark.parametrize('n', [1, 2, 30, 10_000])
def test_contract(backend, shape, n):
    labels = slic(blobs(1, *shape), n, backend=backend) if min(shape)>1 else slic(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), n, backend=backend)
    keeps_contract(labels, shape)
    if n==1: assert labels.max()==0
    if n>=np.prod(shape): assert labels.max()+1==np.prod(shape)

@settings(max_examples=25, deadline=None)
@given(st.integers(1,40), st.integers(1,40), st.integers(1,1700), st.sampled_from([.01,1.,10.,100.,1000.]), st.integers(0,9))
def test_contract_on_noise_and_blank(h, w, n, m, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (h,w,3), dtype=np.uint8)
    for k in slic_backends():
        for a in (noise, np.zeros_like(noise), np.full_like(noise, 255)): keeps_contract(slic(a, n, m, backend=k), (h,w))

@pytest.mark.parametrize('n', [20, 60, 200])
def test_number_is_about_right(backend, n):
    assert .5*n<slic(blobs(h=96, w=112), n, backend=backend).max()+1<1.6*n

def test_deterministic(backend):
    a = blobs()
    assert all(np.array_equal(slic(a, 60, backend=backend), slic(a.copy(), 60, backend=backend)) for _ in range(3))

def test_another_process(tmp_path):
    "The import is light, and the labels are the same there and in a forked worker"
    a = blobs(); np.save(tmp_path/'a.npy', a)
    code = f'''
import sys, numpy as np, torch
from medattn_nb.superpixels import slic, slic_backends
assert not {{'skimage','fast_slic','matplotlib','fastai','torchvision','pandas'}} & sys.modules.keys()
class D(torch.utils.data.Dataset):
    def __len__(self): return len(slic_backends())
    def __getitem__(self, i): return slic(np.load({str(tmp_path/'a.npy')!r}), 60, backend=list(slic_backends())[i])
if __name__=='__main__':
    first = np.stack([D()[i] for i in range(len(D()))])
    forked = next(iter(torch.utils.data.DataLoader(D(), batch_size=len(D()), num_workers=1, multiprocessing_context='fork'))).numpy()
    assert (forked==first).all()
    np.save({str(tmp_path/'b.npy')!r}, first)
'''
    (tmp_path/'go.py').write_text(code)
    subprocess.run([sys.executable, tmp_path/'go.py'], check=True, timeout=120, env={**os.environ, 'PYTHONPATH':str(Path(S.__file__).parents[1])})
    assert np.array_equal(np.load(tmp_path/'b.npy'), [slic(a, 60, backend=k) for k in slic_backends()])

def test_kinds_of_pictures_agree(backend):
    a = blobs(); g = a[...,0]; want = slic(g, 60, backend=backend)
    for o in (np.stack([g]*3, -1), g[...,None], g/255., (g/255.).astype(np.float32), torch.from_numpy(g), Image.fromarray(g), np.asfortranarray(g), np.repeat(g, 2, 0)[::2]):
        assert np.array_equal(slic(o, 60, backend=backend), want)
    assert np.array_equal(slic(Image.fromarray(a), 60, backend=backend), slic(torch.from_numpy(a), 60, backend=backend))

def test_grey_follows_edges(backend):
    g = np.full((60,60), 60, np.uint8); g[:,33:] = 200
    labels = slic(g, 36, backend=backend)
    assert not set(labels[:,:33].ravel()) & set(labels[:,33:].ravel())

def test_contrast_elsewhere_changes_nothing(backend):
    a = blobs(h=64, w=128)//4+60; b = a.copy(); b[:,-4:] = 255; b[:,-8:-4] = 0
    one,two = (slic(o, 100, backend=backend)[:,:64] for o in (a,b))
    assert np.mean((one[1:]==one[:-1])==(two[1:]==two[:-1]))>.97

def edges(o): return (o[1:]!=o[:-1]).sum()+(o[:,1:]!=o[:,:-1]).sum()
def test_compactness_straightens(backend):
    crooked = lambda m: edges(o:=slic(blobs(h=96, w=96), 60, m, backend=backend))/(o.max()+1)**.5
    assert crooked(100)<crooked(20)<crooked(3)

def test_auto_and_zero():
    a = blobs()
    assert np.array_equal(slic(a, 60), slic(a, 60, backend=next(iter(slic_backends()))))
    assert np.array_equal(slic(a, 60, zero=True), slic(a, 60, zero=True, backend='skimage'))
    assert not np.array_equal(slic(a, 60, zero=True), slic(a, 60, backend='skimage'))
    keeps_contract(slic(a, 60, zero=True), a.shape[:2])
    assert S._choose('auto', 70_000, False)[0]=='skimage'

def test_labels_beyond_int16(backend):
    labels = slic(np.random.default_rng(0).integers(0, 256, (450,450,3), dtype=np.uint8), 50_000, backend=backend)
    assert labels.max()>32767; keeps_contract(labels, (450,450))

def test_without_fast_slic(monkeypatch):
    monkeypatch.setitem(sys.modules, 'fast_slic', None)
    assert list(slic_backends())==['skimage']
    keeps_contract(slic(blobs(), 60), (48,56))
    with pytest.raises(MissingPackage, match='run `make fast-slic`'): slic(blobs(), backend='fast')

GREY = np.zeros((8,9), np.uint8)
@pytest.mark.parametrize('image,kw,error,says', [
    (np.zeros((3,8,9), np.uint8), {}, ShapeError, 'channels last'), (np.zeros((8,9,4), np.uint8), {}, ShapeError, r'RGB \(H,W,3\)'),
    (np.zeros((0,9), np.uint8), {}, ShapeError, 'grey'), (np.zeros((2,8,9,3), np.uint8), {}, ShapeError, 'grey'),
    (GREY.astype(np.int64), {}, ShapeError, 'expected uint8'), (GREY>0, {}, ShapeError, 'expected uint8'), (GREY.astype(np.uint16), {}, ShapeError, 'expected uint8'),
    (GREY+1.5, {}, ArgumentError, 'from 0 to 1'), (GREY-.1, {}, ArgumentError, 'from 0 to 1'), (GREY*np.nan, {}, ArgumentError, 'from 0 to 1'),
    (GREY, dict(n_segments=0), ArgumentError, 'from 1 up'), (GREY, dict(n_segments=2.), ArgumentError, 'from 1 up'), (GREY, dict(n_segments=True), ArgumentError, 'from 1 up'),
    (GREY, dict(max_iter=0), ArgumentError, 'max_iter'), (GREY, dict(compactness=0), ArgumentError, 'above 0'), (GREY, dict(compactness=np.nan), ArgumentError, 'above 0'),
    (GREY, dict(compactness=5000), ArgumentError, 'up to 1000'), (GREY, dict(backend='opencv'), ArgumentError, "choose 'auto'")])
def test_slic_refuses(image, kw, error, says):
    with pytest.raises(error, match=says): slic(image, **kw)

def test_fast_refuses():
    if 'fast' not in slic_backends(): pytest.skip('fast-slic is not installed; `make fast-slic` builds it')
    with pytest.raises(ArgumentError, match='SLICO'): slic(GREY, zero=True, backend='fast')
    with pytest.raises(ArgumentError, match='65534'): slic(GREY, 70_000, backend='fast')

@pytest.mark.parametrize('name', ['ph2-dermoscopy','isic2017-skin-lesion'])
def test_real_dermoscopy(backend, name):
    root = real(name)
    with open(root/'manifest.csv', newline='') as f: row = next(csv.DictReader(f))
    with Image.open(root/row['file']) as im: a = np.array(im.convert('RGB'))
    labels = slic(a, 600, backend=backend)
    keeps_contract(labels, a.shape[:2])
    assert 400<labels.max()+1<800
    x = torch.from_numpy(a).permute(2,0,1)[None].double(); l = torch.from_numpy(labels)[None]
    assert (superpixel_unpool(superpixel_pool(x, l), l)-x).pow(2).mean()<.2*x.var(dim=(2,3)).mean()

@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(-3,6), st.integers(0,2**24)), min_size=1, max_size=30))
def test_relabel(a):
    a = np.array(a); out = relabel(a)
    used = np.unique(a[a>=0])
    assert np.array_equal(out, np.where(a<0, -1, np.searchsorted(used, a))) and out.dtype==np.int64
    assert np.array_equal(relabel(out), out)

def test_relabel_odd():
    assert relabel(np.zeros((0,3), int)).shape==(0,3)
    assert relabel(np.array([[2**62,2**40]])).tolist()==[[1,0]]
    assert relabel(np.array([200,7], np.uint8)).tolist()==[1,0]
    with pytest.raises(ShapeError, match='integers'): relabel(np.zeros(3))

# --- label maps as pictures ----------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.integers(1,9), st.integers(1,9), st.sampled_from([1,255,256,65535,65536,65537,2**24-1]), st.integers(0,99))
def test_picture_roundtrip(tmp_path_factory, h, w, top, seed):
    p = tmp_path_factory.mktemp('m')/'a.png'
    a = np.random.default_rng(seed).integers(0, top+1, (h,w)); a[0,0] = top
    write_superpixels(a, p)
    assert np.array_equal(read_superpixels(p, dense=False), a) and np.array_equal(read_superpixels(p), relabel(a))
    assert [o.name for o in p.parent.iterdir()]==['a.png']

def test_code_of_isic(tmp_path):
    Image.fromarray(np.array([[[5,0,0],[0,1,0],[0,0,1],[1,2,3]]], np.uint8)).save(tmp_path/'a.png')
    assert read_superpixels(tmp_path/'a.png', dense=False).tolist()==[[5,256,65536,1+2*256+3*65536]]
    assert read_superpixels(str(tmp_path/'a.png')).tolist()==[[0,1,2,3]]

def test_bad_pictures(tmp_path):
    a = np.random.default_rng(0).integers(0, 700, (40,50)); good = write_superpixels(a, tmp_path/'a.png').read_bytes()
    p = tmp_path/'b.png'
    flipped = bytearray(good); flipped[len(good)//2] ^= 4
    for o in (b'', b'no picture', good[:60], good[:-30], bytes(flipped)):
        p.write_bytes(o)
        with pytest.raises(DataError, match='no readable label map'): read_superpixels(p)
    for mode in ('L','RGBA','P','1'):
        Image.new(mode, (4,4)).save(p)
        with pytest.raises(DataError, match=f'a PNG picture of mode {mode}; expected an RGB PNG'): read_superpixels(p)
    Image.new('RGB', (4,4)).save(tmp_path/'c.jpg')
    with pytest.raises(DataError, match='a JPEG picture'): read_superpixels(tmp_path/'c.jpg')
    with pytest.raises(DataError, match='FileNotFoundError'): read_superpixels(tmp_path/'none.png')

@pytest.mark.parametrize('labels,says', [(np.zeros((2,2)), 'integer labels'), (np.zeros(4, int), 'integer labels'), (np.array([[-1,0]]), '0 to 16777215'), (np.array([[2**24]]), '0 to 16777215'), (np.zeros((0,2), int), 'integer labels')])
def test_write_refuses(tmp_path, labels, says):
    with pytest.raises(ArgumentError, match=says): write_superpixels(labels, tmp_path/'a.png')
    assert not list(tmp_path.iterdir())

def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    p = write_superpixels(np.array([[1,2]]), tmp_path/'a.png')
    def stop(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Image.Image, 'save', stop)
    with pytest.raises(OSError, match='No space'): write_superpixels(np.array([[3,4]]), p)
    assert read_superpixels(p, dense=False).tolist()==[[1,2]] and len(list(tmp_path.iterdir()))==1

# --- the cache -----------------------------------------------------------------------------------------
def test_cache_hits(tmp_path, backend):
    c = SuperpixelCache(tmp_path/'new'/'folder', n_segments=60, backend=backend)
    assert len(c)==c.nbytes==0 and c
    a,want = blobs(),slic(blobs(), 60, backend=backend)
    for hits in range(3): assert np.array_equal(c(a), want) and c(a).dtype==np.int64 and (c.hits,c.misses)==(2*hits+1,1)
    other = SuperpixelCache(tmp_path/'new'/'folder', n_segments=60, backend=backend)
    assert np.array_equal(other(a), want) and (other.hits,other.misses)==(1,0)
    assert len(c)==1 and 0<c.nbytes<20_000 and '1 maps' in repr(c) and 'n_segments=60' in repr(c)

def test_cache_tells_pictures_and_settings_apart(tmp_path):
    a = blobs(); b = a.copy(); b[0,0,0] ^= 1
    pictures = [a, b, a[:-1], np.ascontiguousarray(a.transpose(1,0,2)), a[::-1], a.reshape(56,48,3)]
    kw = [dict(), dict(n_segments=61), dict(compactness=10.5), dict(max_iter=9), dict(zero=True)]
    caches = [SuperpixelCache(tmp_path, **{'n_segments':60, 'backend':'skimage', **o}) for o in kw]
    assert len({c.path(o) for c in caches for o in pictures})==len(pictures)*len(kw)
    if 'fast' in slic_backends(): assert SuperpixelCache(tmp_path, 60, backend='fast').path(a)!=caches[0].path(a)
    for c in caches: assert np.array_equal(c(a), slic(a, **{k:v for k,v in c.settings.items() if k!='version'}))
    assert len(caches[0])==len(caches) and caches[0].path(a)==caches[0].path(a/255.)

def test_cache_knows_versions(tmp_path, monkeypatch):
    old = SuperpixelCache(tmp_path, 60, backend='skimage'); old(blobs())
    monkeypatch.setattr(S, '_version', lambda o: '99.0')
    new = SuperpixelCache(tmp_path, 60, backend='skimage'); new(blobs())
    assert (new.hits,new.misses,len(new))==(0,1,2)

def test_cache_remakes_what_is_broken(tmp_path):
    c,a = SuperpixelCache(tmp_path, 60, backend='skimage'),blobs()
    want = c(a); p = c.path(a); good = p.read_bytes()
    wrong = write_superpixels(want[:-1], tmp_path/'w.png').read_bytes(); (tmp_path/'w.png').unlink()
    flipped = bytearray(good); flipped[len(good)//2] ^= 1
    for i,o in enumerate((b'', good[:-25], bytes(flipped), wrong)):
        p.write_bytes(o)
        assert np.array_equal(c(a), want) and c.misses==i+2
        assert np.array_equal(c(a), want) and c.hits==i+1

def test_cache_clear(tmp_path):
    c = SuperpixelCache(tmp_path, 60, backend='skimage')
    for i in range(3): c(blobs(i))
    (tmp_path/'x.png.0.tmp').write_bytes(b'half'); (tmp_path/'notes.txt').write_text('mine')
    assert len(c)==3
    c.clear()
    assert [o.name for o in tmp_path.iterdir()]==['notes.txt'] and len(c)==0

def test_cache_default_folder_and_bad_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    c = SuperpixelCache(n_segments=60, backend='skimage')
    assert not (tmp_path/'cache').exists()
    c(blobs())
    assert len(list((tmp_path/'cache'/'medattn_nb'/'superpixels').glob('*.png')))==1
    (tmp_path/'file').write_text('x')
    with pytest.raises(DataError, match='name another folder'): SuperpixelCache(tmp_path/'file', 60, backend='skimage')(blobs())
    with pytest.raises(ArgumentError, match='from 1 up'): SuperpixelCache(tmp_path, 0)
    with pytest.raises(TypeError, match='segments'): SuperpixelCache(tmp_path, segments=3)

def many(folder, failed):
    "One of several processes that make, read and remove the same maps"
    c = SuperpixelCache(folder, 60, backend='skimage'); ims = [blobs(i) for i in range(4)]
    for i in range(12):
        for a in ims:
            if not np.array_equal(c(a), slic(a, 60, backend='skimage')): failed.set()
            if i<8: c.path(a).unlink(missing_ok=True)
    if c.misses<2: failed.set()

def test_cache_of_several_processes(tmp_path):
    if 'fork' not in multiprocessing.get_all_start_methods(): pytest.skip('this system cannot fork')
    ctx = multiprocessing.get_context('fork'); failed = ctx.Event()
    ps = [ctx.Process(target=many, args=(tmp_path, failed)) for _ in range(3)]
    for p in ps: p.start()
    for p in ps: p.join(120)
    assert [p.exitcode for p in ps]==[0,0,0] and not failed.is_set()
    assert len(SuperpixelCache(tmp_path))==4 and not list(tmp_path.glob('*.tmp'))

def test_cache_pickles(tmp_path):
    c = SuperpixelCache(tmp_path, 60, backend='skimage'); want = c(blobs())
    d = pickle.loads(pickle.dumps(c))
    assert np.array_equal(d(blobs()), want) and d.hits==1

# --- pooling against a loop ----------------------------------------------------------------------------
def loop(x, labels, K, reduce='mean'):
    "One superpixel at a time"
    out = []
    for xi,l in zip(x, labels):
        cols = []
        for k in range(K):
            v = xi[:,l==k] if (l==k).any() else xi[:,:1,0]*0
            cols.append({'mean':v.mean, 'sum':v.sum, 'max':v.amax}[reduce](1))
        out.append(torch.stack(cols, 1))
    return torch.stack(out)

METHODS = 'scatter','index','matmul'
SIZES = [(2,3,7,5,6), (1,1,1,1,1), (1,4,1,9,3), (3,1,8,8,70), (2,64,17,13,20)]
@pytest.mark.parametrize('reduce', ['mean','sum','max'])
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('B,C,H,W,K', SIZES)
@pytest.mark.parametrize('dtype,eps', [(torch.float32,1e-5), (torch.float64,1e-10)])
def test_equal_to_loop(B, C, H, W, K, dtype, eps, method, reduce):
    g = torch.Generator().manual_seed(B*C+K)
    x = torch.randn(B, C, H, W, generator=g, dtype=dtype).requires_grad_()
    labels = torch.randint(-1, K, (B,H,W), generator=g); w = torch.randn(B, C, K, generator=g, dtype=dtype)
    y,z = superpixel_pool(x, labels, K, reduce, method),loop(x, labels, K, reduce)
    assert y.shape==(B,C,K) and y.dtype==dtype
    torch.testing.assert_close(y, z, rtol=eps, atol=eps)
    torch.testing.assert_close(*(torch.autograd.grad((o*w).sum(), x)[0] for o in (y,z)), rtol=eps, atol=eps)
    back = superpixel_unpool(w.requires_grad_(), labels)
    want = torch.stack([torch.cat([wi, wi.new_zeros(C,1)], 1)[:,l] for wi,l in zip(w, labels)])
    assert torch.equal(back, want)
    torch.testing.assert_close(*(torch.autograd.grad((o*x.detach()).sum(), w)[0] for o in (back,want)), rtol=eps, atol=eps)

def test_127_by_128():
    x = torch.randn(1,2,127,128); labels = torch.from_numpy(slic(blobs(2,127,128), 100, backend='skimage'))[None]
    torch.testing.assert_close(superpixel_pool(x, labels), loop(x, labels, labels.max()+1), rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('method', METHODS)
def test_gradcheck(method):
    x = torch.randn(2,2,3,4, dtype=torch.float64, requires_grad=True); labels = torch.randint(-1, 4, (2,3,4), generator=torch.Generator().manual_seed(0))
    s = torch.randn(2,2,4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: superpixel_pool(o, labels, 4, 'mean', method), x)
    assert torch.autograd.gradgradcheck(lambda o: superpixel_pool(o, labels, 4, 'mean', method).square(), x)
    assert torch.autograd.gradcheck(lambda o: superpixel_pool(o, labels, 4, 'max'), x)
    assert torch.autograd.gradcheck(lambda o: superpixel_unpool(o, labels), s) and torch.autograd.gradgradcheck(lambda o: superpixel_unpool(o, labels).square(), s)

def test_max_shares_among_equals():
    x = torch.tensor([[[[3.,3.,1.]]]], requires_grad=True)
    superpixel_pool(x, torch.zeros(1,1,3, dtype=torch.long), reduce='max').sum().backward()
    assert x.grad.flatten().tolist()==[.5,.5,0]

def test_max_of_negative_values():
    x = torch.tensor([[[[-3.,-2.,-5.]]]])
    assert superpixel_pool(x, torch.tensor([[[0,0,2]]]), reduce='max').tolist()==[[[-2,0,-5]]]

@settings(max_examples=40, deadline=None)
@given(st.integers(1,3), st.integers(1,4), st.integers(1,9), st.integers(1,9), st.integers(1,12), st.integers(0,99))
def test_properties(B, C, H, W, K, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, C, H, W, generator=g, dtype=torch.float64); labels = torch.randint(0, K, (B,H,W), generator=g)
    flat = lambda o: superpixel_unpool(superpixel_pool(o, labels, K), labels)
    torch.testing.assert_close(flat(flat(x)), flat(x))
    assert flat(x).norm()<=x.norm()*(1+1e-12)
    torch.testing.assert_close((flat(x)*(x-flat(x))).sum(), x.new_tensor(0), atol=1e-9, rtol=0)
    torch.testing.assert_close((superpixel_pool(x, labels, K)*superpixel_counts(labels, K)[:,None]).sum(2), x.sum((2,3)))
    perm = torch.randperm(K, generator=g)
    torch.testing.assert_close(superpixel_pool(x, perm[labels], K)[...,perm], superpixel_pool(x, labels, K))
    torch.testing.assert_close(superpixel_pool(x.flip(3), labels.flip(2), K), superpixel_pool(x, labels, K))
    assert superpixel_counts(labels, K).sum()==B*H*W

def test_channels_last():
    x = torch.randn(2,8,9,7).requires_grad_(); labels = torch.randint(-1, 5, (2,9,7)); w = torch.randn(2,8,5)
    xl = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert S._method(xl, 'auto') is S._sum_index and S._method(x, 'auto') is S._sum_scatter
    for o in (x,xl): (superpixel_pool(o, labels, 5)*w).sum().backward()
    torch.testing.assert_close(x.grad, xl.grad)
    for o in (x[:,::2], x[...,1:5], x.transpose(2,3).contiguous().transpose(2,3), x[:1].expand(2,-1,-1,-1)):
        l = labels[...,:o.shape[3]]
        torch.testing.assert_close(superpixel_pool(o, l, 5), loop(o, l, 5), rtol=1e-5, atol=1e-5)

# --- ragged, empty, ignored, other sizes ---------------------------------------------------------------
def test_ragged():
    l = torch.tensor([[[0,1],[2,3]],[[0,0],[0,1]]]); x = torch.randn(2,3,2,2)
    y,n = superpixel_pool(x, l),superpixel_counts(l)
    assert y.shape==(2,3,4) and n.tolist()==[[1,1,1,1],[3,1,0,0]] and n.dtype==torch.int64
    assert (y[1,:,2:]==0).all()
    torch.testing.assert_close(y[1:,:,:2], superpixel_pool(x[1:], l[1:]))
    assert superpixel_pool(x, l, 9).shape==(2,3,9) and (superpixel_pool(x, l, 9)[...,4:]==0).all()

@pytest.mark.parametrize('reduce', ['mean','sum','max'])
def test_empty_and_ignored(reduce):
    x = torch.full((1,2,2,3), 7., requires_grad=True)
    y = superpixel_pool(x, torch.full((1,2,3), -1), 4, reduce)
    assert torch.equal(y, torch.zeros(1,2,4))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert superpixel_pool(x, torch.full((1,2,3), -5), reduce=reduce).shape==(1,2,0)
    bad = torch.tensor([[[[float('nan'),2.]]]])
    assert superpixel_pool(bad, torch.tensor([[[-1,0]]]), reduce=reduce).tolist()==[[[2.]]]
    assert superpixel_unpool(torch.ones(1,2,4), torch.full((1,2,3), -1)).abs().sum()==0

@pytest.mark.parametrize('size', [(3,4), (6,8), (5,3), (1,1), (12,16), (13,9)])
def test_other_sizes(size):
    g = torch.Generator().manual_seed(0); labels = torch.randint(-1, 6, (2,6,8), generator=g)
    small = resize_labels(labels, size)
    want = F.interpolate(labels[:,None].double(), size, mode='nearest-exact')[:,0].long()
    assert torch.equal(small, want)
    x = torch.randn(2,3,*size, generator=g)
    torch.testing.assert_close(superpixel_pool(x, labels, 6), loop(x, small, 6), rtol=1e-5, atol=1e-5)
    s = torch.randn(2,3,6)
    assert torch.equal(superpixel_unpool(s, labels, size), superpixel_unpool(s, small))

def test_large_labels_survive_resizing():
    labels = torch.tensor([[[2**24+1,2**40]]])
    assert resize_labels(labels, (2,4))[0,0].tolist()==[2**24+1]*2+[2**40]*2

def test_k_comes_from_what_is_left():
    labels = torch.zeros(1,8,8, dtype=torch.long); labels[0,0,0] = 5
    assert superpixel_pool(torch.ones(1,1,8,8), labels).shape[2]==6 and superpixel_pool(torch.ones(1,1,2,2), labels).shape[2]==1

@pytest.mark.parametrize('dtype', [torch.uint8,torch.int16,torch.int32])
def test_integer_types(dtype):
    l = torch.randint(0, 9, (2,4,4)); x = torch.randn(2,3,4,4)
    assert torch.equal(superpixel_pool(x, l.to(dtype)), superpixel_pool(x, l))
    assert torch.equal(superpixel_unpool(superpixel_pool(x, l), l.to(dtype)), superpixel_unpool(superpixel_pool(x, l), l))

# --- precision, compile, export ------------------------------------------------------------------------
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_half(dtype, method):
    x = (torch.randn(1,4,64,64)+10).to(dtype).requires_grad_(); labels = torch.arange(4096).view(1,64,64)%3
    y = superpixel_pool(x, labels, method=method); want = superpixel_pool(x.double(), labels)
    assert y.dtype==dtype
    torch.testing.assert_close(y.double(), want, rtol=torch.finfo(dtype).eps, atol=0)
    (y.sum()*1000).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1000/1365.3), rtol=.01, atol=0)
    s = torch.ones(1,4,3, dtype=dtype, requires_grad=True)
    superpixel_unpool(s, labels).sum().backward()
    torch.testing.assert_close(s.grad.double(), superpixel_counts(labels)[:,None].expand(1,4,3).double(), rtol=torch.finfo(dtype).eps, atol=0)

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_autocast(dtype, method):
    x = torch.randn(2,3,8,8); labels = torch.randint(0, 5, (2,8,8)); conv = torch.nn.Conv2d(3, 4, 1)
    with torch.autocast('cpu', dtype):
        y = superpixel_pool(conv(x), labels, 5, method=method); z = superpixel_unpool(y, labels)
        assert torch.equal(superpixel_pool(x, labels, 5, method=method), superpixel_pool(x.clone(), labels, 5, method=method))
        torch.testing.assert_close(superpixel_pool(x, labels, 5, method=method), loop(x, labels, 5), rtol=1e-5, atol=1e-5)
    assert y.dtype==z.dtype==dtype
    (z.float().square().mean()).backward()
    assert conv.weight.grad.isfinite().all() and conv.weight.grad.abs().sum()>0

def both(x, labels): return superpixel_unpool(superpixel_pool(x, labels, 9), labels) + superpixel_pool(x, labels, 9, 'max').mean()

@pytest.mark.parametrize('last', [False,True])
def test_compile(last):
    torch._dynamo.reset()
    f = torch.compile(both, fullgraph=True, backend='aot_eager')
    for B,H,W in ((2,6,7),(3,8,5)):
        x = torch.randn(B,4,H,W); labels = torch.randint(-1, 9, (B,H,W))
        if last: x = x.contiguous(memory_format=torch.channels_last)
        a,b = (x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in 'ab')
        y,z = f(a, labels),both(b, labels)
        torch.testing.assert_close(y, z)
        y.square().sum().backward(); z.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    torch._dynamo.reset()

def test_compile_other_size():
    torch._dynamo.reset()
    x,labels = torch.randn(2,4,5,6),torch.randint(0, 9, (2,10,12))
    f = lambda x, l: superpixel_pool(x, l, 9)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend='aot_eager')(x, labels), f(x, labels))
    torch._dynamo.reset()

def test_export():
    class M(torch.nn.Module):
        def forward(self, x, labels): return both(x, labels)
    d = torch.export.Dim('B', min=2, max=64); h,w = torch.export.Dim('H', min=2, max=512),torch.export.Dim('W', min=2, max=512)
    ep = torch.export.export(M(), (torch.randn(3,4,6,7), torch.randint(0, 9, (3,6,7))), dynamic_shapes=({0:d,2:h,3:w},{0:d,1:h,2:w}))
    x,labels = torch.randn(5,4,9,11),torch.randint(-1, 9, (5,9,11))
    torch.testing.assert_close(ep.module()(x, labels), both(x, labels))

# --- the ceiling ---------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(1,6), st.integers(0,999))
def test_ceiling_is_the_best_of_all_choices(K, seed):
    rng = np.random.default_rng(seed); l,m = rng.integers(-1, K, (4,5)),rng.integers(0, 2, (4,5)); m[0,0] = 1
    best = 0
    for c in range(2**K):
        on = np.isin(l, [i for i in range(K) if c>>i&1])
        best = max(best, (on&(m>0)).sum()/(on|(m>0)).sum())
    assert superpixel_ceiling(l, m)==pytest.approx(best)

def test_ceiling_edges():
    l = np.arange(12).reshape(3,4)
    assert superpixel_ceiling(l, l%2)==1 and superpixel_ceiling(l*0, l<3)==.25 and np.isnan(superpixel_ceiling(l, l<0)) and superpixel_ceiling(l*0-1, l<3)==0
    with pytest.raises(ShapeError, match='shape of the mask'): superpixel_ceiling(l, l[:2]>0)
    with pytest.raises(ArgumentError, match='0 and 1'): superpixel_ceiling(l, l)
    with pytest.raises(ShapeError, match='integer'): superpixel_ceiling(l*1., l>0)

# --- bad input -----------------------------------------------------------------------------------------
X,L = torch.zeros(2,3,4,4),torch.zeros(2,4,4, dtype=torch.long)
@pytest.mark.parametrize('x,labels,kw,says', [
    (X[0], L, {}, 'x: got .* expected 4 dimensions'), (X.long(), L, {}, 'x.float'), (X, L[0], {}, r'labels\[None\]'), (X, L[:,None], {}, 'expected 3 dimensions'),
    (X, L.float(), {}, 'expected integers'), (X, L>0, {}, 'expected integers'), (X, L.numpy(), {}, 'torch.from_numpy'), (X, None, {}, 'NoneType'),
    (X, L[:1], {}, 'expected 2 maps'), (X, torch.cat([L,L]), {}, 'expected 2 maps'), (X, L+3, dict(K=3), 'a label 3; expected labels below K=3'),
    (X, L, dict(K=0), 'from 1 up'), (X, L, dict(K=2.), 'from 1 up'), (X, L, dict(K=True), 'from 1 up'), (X, L, dict(reduce='min'), "choose 'mean'"), (X, L, dict(method='sort'), "choose 'auto'"),
    (X, L.to('meta'), {}, 'labels on meta; expected them on cpu')])
def test_pool_refuses(x, labels, kw, says):
    with pytest.raises(ShapeError if 'choose' not in says and 'from 1' not in says and 'below' not in says else ArgumentError, match=says) as e: superpixel_pool(x, labels, **kw)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('s,labels,says', [(X, L, r'\(B,C,K\)'), (X[0].long(), L, r'\(B,C,K\)'), (None, L, 'NoneType'), (torch.zeros(2,3,5), L.float(), 'expected integers'),
    (torch.zeros(1,3,5), L, 'expected 1 maps'), (torch.zeros(2,3,5), L+5, 'below K=5'), (torch.zeros(2,3,5), L[0], r'labels\[None\]')])
def test_unpool_refuses(s, labels, says):
    with pytest.raises(ArgumentError, match=says): superpixel_unpool(s, labels)

def test_counts_refuse():
    with pytest.raises(ArgumentError, match='below K=2'): superpixel_counts(L+2, 2)
    with pytest.raises(ShapeError, match='expected integers'): superpixel_counts(L.float())

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
@pytest.mark.parametrize('method', ['auto',*METHODS])
def test_cuda(method):
    x = torch.randn(2,8,33,31); labels = torch.randint(-1, 40, (2,33,31)); w = torch.randn(2,8,40)
    grads = []
    for d in ('cpu','cuda'):
        o = x.to(d).requires_grad_(); y = superpixel_pool(o, labels.to(d), 40, method=method)
        (y*w.to(d)).sum().backward(); grads.append((y.detach().cpu(), o.grad.cpu()))
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)

def test_a_batch_without_any_superpixel():
    "Nothing is pooled, and zeros are handed back"
    x,none = torch.rand(2, 3, 4, 5),torch.full((2,4,5), -1)
    R = superpixel_pool(x, none)
    assert R.shape==(2,3,0) and (superpixel_unpool(R, none)==0).all() and superpixel_unpool(R, none).shape==x.shape
