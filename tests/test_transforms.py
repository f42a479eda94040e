"Transforms: sizes, masks and label maps, letterbox and back, CLAHE, steps by name, and pictures that must not change"
import hashlib
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from medattn_nb.core import ArgumentError, ShapeError
from medattn_nb.data import transforms as T

def im(h, w, c=0, seed=0): return np.random.default_rng(seed).integers(0, 256, (h,w)+((c,) if c else ()), dtype=np.uint8)
sides = st.integers(1, 60)

@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from([0,3]), st.integers(1, 40), st.sampled_from(list(T._methods)))
def test_sizes(h, w, c, size, method):
    x = im(h, w, c)
    for f in (T.resize, T.crop, lambda *a: T.letterbox(*a)[0]):
        y = f(x, size, method) if f in (T.resize, T.crop) else f(x, size, 0, method)
        assert y.shape==(size,size)+x.shape[2:] and y.dtype==np.uint8 and y.flags.c_contiguous
    assert T.resize(x, (5,9), method).shape[:2]==(5,9)

@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 60), st.sampled_from([0,3]), st.integers(0, 255))
def test_letterbox_frame(h, w, size, c, fill):
    x = np.full((h,w)+((c,) if c else ()), 77, np.uint8)
    y,m = T.letterbox(x, size, fill)
    inside = np.zeros((size,size), bool)
    inside[m.top:m.top+m.h, m.left:m.left+m.w] = True
    assert (y[inside]==77).all() and (y[~inside]==fill).all() and max(m.h,m.w)==size
    assert abs(m.h/m.w-h/w)<=max(1/m.w, 1/m.h)*max(1, h/w)+1e-9 or min(m.h,m.w)==1
    assert T.unletterbox(y, m).shape==x.shape and (T.unletterbox(y, m)==77).all()

@settings(max_examples=40, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90))
def test_letterbox_and_back(h, w):
    y,x = np.mgrid[:h,:w]
    m = np.hypot(y-h*.4, x-w*.6)<min(h,w)*.3
    f,meta = T.letterbox(m, 64)
    b = T.unletterbox(f, meta)
    assert f.dtype==b.dtype==bool and (b&m).sum()/(b|m).sum()>.75

def test_enlarged_and_back_is_exact():
    m = im(16,12)>128
    assert (T.unletterbox(*T.letterbox(m, 64))==m).all()

def test_same_size_changes_nothing():
    for c in (0,3):
        x = im(32,32,c)
        for o in (T.resize, T.crop): assert (o(x, 32)==x).all() and o(x, 32) is not x
        assert (T.letterbox(x, 32)[0]==x).all()

@pytest.mark.parametrize('c', [0,3])
def test_flip_and_resize_commute(c):
    x = im(40,60,c)
    assert (T.resize(x[:,::-1].copy(), 20)==T.resize(x, 20)[:,::-1]).all()

def test_mask_follows_the_picture():
    "A mask goes where the bright spot goes"
    m = np.zeros((50,80), bool); m[10:30,40:60] = True
    for s in ('resize','letterbox','crop'):
        x = T.preprocess(m*np.uint8(200), ('clahe',s) if s=='crop' else (s,), 64)>100
        k = T.preprocess_mask(m, (s,), 64)
        assert k.dtype==bool and (x&k).sum()/(x|k).sum()>.9, s

@pytest.mark.parametrize('hw', [(1,1), (5,1), (127,128), (9,200)])
@pytest.mark.parametrize('c', [0,3])
def test_clahe_of_any_size(hw, c):
    x = im(*hw, c)
    y = T.clahe(x)
    assert y.shape==x.shape and y.dtype==np.uint8

def test_clahe_raises_contrast():
    x = (100+T.resize(im(8,8), 64)//16).astype(np.uint8)
    assert T.clahe(x).std()>2*x.std() and (T.clahe(np.full((8,8), 3, np.uint8))==3).all()
    assert T.clahe(x, .1).std()>=T.clahe(x, .001).std()

@pytest.mark.parametrize('bad,says', [(im(4,4)/255, 'uint8'), ([1], 'numpy array'), (im(4,4)[None,None], r'\(H,W\) or'), (np.zeros((4,4,0), np.uint8), r'\(H,W\) or'), (im(4,4).astype(np.uint16), 'uint8'), (np.zeros((0,4), np.uint8), r'\(H,W\) or'), (np.zeros(4, np.uint8), r'\(H,W\) or')])
def test_bad_pictures(bad, says):
    with pytest.raises(ShapeError, match=says): T.preprocess(bad, 'resize', 8)

@pytest.mark.parametrize('f', [
    lambda x: T.resize(x, 0), lambda x: T.resize(x, -3), lambda x: T.resize(x, 2.5), lambda x: T.resize(x, (4,)), lambda x: T.resize(x, None), lambda x: T.resize(x, 4, 'cubic'),
    lambda x: T.clahe(x, 0), lambda x: T.clahe(x, 2), lambda x: T.clahe(x, .1, 0), lambda x: T.clahe(x, .1, 8, 'cuda'), lambda x: T.letterbox(x, 9, -1), lambda x: T.letterbox(x, 9, 256), lambda x: T.centre(x, 9, 999), lambda x: T.centre(x, 0),
    lambda x: T.clahe(x.astype(np.float32)), lambda x: T.preprocess(x.astype(np.float32), 'letterbox-grey', 4), lambda x: T.preprocess(np.dstack([x]*4), 'resize', 4, 3), lambda x: T.preprocess(np.dstack([x]*4), 'resize', 4, 1),
    lambda x: T.preprocess(np.dstack([x]*4), 'resize', 4, 2), lambda x: T.preprocess(np.dstack([x]*3).astype(np.float32), 'resize', 4, 1), lambda x: T.preprocess(np.dstack([x]*4), ('grey','resize'), 4), lambda x: T.letterbox(list(x), 4),
    lambda x: T.preprocess_masks(x>9, 'resize', 4), lambda x: T.preprocess_masks((x/255)[None], 'resize', 4), lambda x: T.restore(x>9, 'clahe', (4,4)), lambda x: T.restore(x>9, 'resize', 0), lambda x: T.restore(x[0], 'resize', 4), lambda x: T.restore(x/255, 'resize', 4), lambda x: T.preprocess(x, ('resize','nope'), 4), lambda x: T.preprocess(x, (), 4),
    lambda x: T.preprocess(x, ('clahe',), 4), lambda x: T.preprocess(x, 'resize', 4, 2), lambda x: T.preprocess_mask(x>9, 'nope', 4)])
def test_bad_arguments(f):
    with pytest.raises(ArgumentError): f(im(8,8))

@pytest.mark.parametrize('c,channels,shape', [(0,None,(8,8)), (3,None,(8,8,3)), (0,3,(8,8,3)), (3,3,(8,8,3)), (0,1,(8,8)), (3,1,(8,8))])
def test_channels(c, channels, shape):
    y = T.preprocess(im(10,12,c), ('letterbox','clahe'), 8, channels)
    assert y.shape==shape and T.to_tensor(y).shape==((3,8,8) if len(shape)==3 else (1,8,8))

def test_tensor_is_a_picture():
    x = im(5,7,3)
    t = T.to_tensor(x)
    assert t.dtype.itemsize==1 and (t.numpy().transpose(1,2,0)==x).all() and t.is_contiguous()

# --- what must not change: committed results stand on these pixels ---------------------------------------
def digest(*arrays):
    m = hashlib.sha256()
    for o in map(np.ascontiguousarray, arrays): m.update(f'{o.dtype}{o.shape}'.encode()+o.tobytes())
    return m.hexdigest()[:16]

PINNED = [im(*o) for o in ((41,60),(60,41,3),(17,90),(33,33,3),(1,5))]
PINNED_MASKS = [x>128 if x.ndim==2 else x[...,0]>128 for x in PINNED]

@pytest.mark.parametrize('method,resized,boxed,back,cropped', [
    ('nearest','ac149792aa838175','fea7322266f42b5a','fc0edc649588de59','c9aace19695e0756'), ('bilinear','5a89c4f364182b78','7c338a927c8ff69e','c125cbd936b2a691','98aa06edf12bd5eb'),
    ('bicubic','8f0695f912aab9ee','9964c1c808a218e6','4c0de98b4fd161d7','44951147e4df5108'), ('lanczos','3473b71e58059087','cd8c9ab8f875b1a6','9fb6b8ef55b675a0','6338cba42db8595b')])
def test_pixels_of_our_records(method, resized, boxed, back, cropped):
    "Results in the ledger belong to these values; PIL makes them in integers"
    assert digest(*[T.resize(x, s, method) for x in PINNED for s in (24,(9,70),60)])==resized
    assert digest(*[T.letterbox(x, 48, f, method)[0] for x in PINNED for f in (0,128)])==boxed
    assert digest(*[T.unletterbox(*T.letterbox(x, 48), method) for x in PINNED])==back
    assert digest(*[T.crop(x, 32, method) for x in PINNED])==cropped

@pytest.mark.parametrize('names,pictures,masks', [(('resize',),'90d2d52b22f421b6','bc9cf255e096acfb'), (('letterbox',),'d351f1c3add0855d','1b0be9528c03d497'),
    (('crop',),'42e344b7bdba2490','d6f23bc4cbcbcfd7'), (('grey','resize'),'c2f02a7e28140440','bc9cf255e096acfb')])
def test_steps_of_our_records(names, pictures, masks):
    assert digest(*[T.preprocess(x, names, 40, c) for x in PINNED for c in (None,1,3)])==pictures
    assert digest(*[T.preprocess_mask(x, names, 40) for x in PINNED_MASKS])==masks

def test_masks_of_our_records():
    fs = lambda x: T.resize(x, 24), lambda x: T.letterbox(x, 48)[0], lambda x: T.crop(x, 32), lambda x: T.unletterbox(*T.letterbox(x, 48))
    assert digest(*[f(x) for x in PINNED_MASKS for f in fs])=='6e3d3f52283e8445'
    assert digest(*map(T.to_grey, PINNED))=='ad1c1a9448445108' and digest(*map(T.to_rgb, PINNED))=='7a18dc12ab994ecf'

@pytest.mark.parametrize('clip', [.002,.01,.1])
@pytest.mark.parametrize('tiles', [4,8])
def test_clahe_is_scikit_image(clip, tiles):
    from skimage.exposure import equalize_adapthist
    for x in PINNED:
        ks = tuple(max(1,o//tiles) for o in x.shape[:2])
        assert (T.clahe(x, clip, tiles)==(equalize_adapthist(x, ks, clip)*255).round().astype(np.uint8)).all()

# --- any number of channels, floats --------------------------------------------------------------------
def fl(*a, **kw): return (im(*a, **kw).astype(np.float32)-99)/37

@settings(max_examples=40, deadline=None)
@given(sides, sides, st.sampled_from([1,2,4,7]), st.integers(1, 40), st.integers(1, 40), st.sampled_from(list(T._methods)), st.booleans())
def test_channels_go_their_own_way(h, w, c, H, W, method, floats):
    "A picture of C channels is C pictures, in every function"
    x = (fl if floats else im)(h, w, c)
    for f in (lambda a: T.resize(a, (H,W), method), lambda a: T.letterbox(a, (H,W), 3, method)[0], lambda a: T.crop(a, (H,W), method), lambda a: T.centre(a, (H,W), 3)):
        y = f(x)
        assert y.shape==(H,W,c) and y.dtype==x.dtype and all((y[...,o]==f(x[...,o])).all() for o in range(c))

@settings(max_examples=40, deadline=None)
@given(sides, sides, st.integers(1, 40), st.integers(1, 40), st.sampled_from(['nearest','bilinear']))
def test_floats_agree_with_bytes(h, w, H, W, method):
    x = im(h, w)
    assert np.abs(T.resize(x, (H,W), method)-T.resize(x.astype(np.float32), (H,W), method)).max()<=1.01
    assert abs(T.resize(np.full((h,w), -2.5, np.float32), (H,W), method)+2.5).max()<1e-5

def test_floats_keep_their_unit():
    "No step clips, scales or rounds them"
    x = 1000*fl(30,20,4)
    for o in ('resize','letterbox','crop','centre'):
        y = T.preprocess(x, o, (12,15), 4)
        assert y.shape==(12,15,4) and y.dtype==np.float32 and y.min()<-500 and y.max()>500
        assert T.to_tensor(y).shape==(4,12,15) and T.to_tensor(y).dtype.is_floating_point
    assert T.preprocess(fl(9,9), 'resize', 4, 3).shape==(4,4,3) and T.preprocess(fl(9,9,1), 'resize', 4, 1).shape==(4,4)

def test_one_channel_is_grey(): assert (T.to_rgb(im(5,6,1))==T.to_rgb(im(5,6,1)[...,0])).all() and T.to_grey(im(5,6,1)).shape==(5,6)

# --- label maps -----------------------------------------------------------------------------------------
def labels(h, w, seed, dtype): return np.random.default_rng(seed).choice([0,1,5,100], (h,w)).astype(dtype)
kinds = st.sampled_from(['uint8','int16','int64','bool','uint16'])

@settings(max_examples=80, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 50), st.integers(1, 50), kinds, st.integers(0, 9), st.sampled_from(list(T._places)))
def test_label_maps_keep_their_classes(h, w, H, W, dtype, seed, name):
    x = labels(h, w, seed, dtype)
    y = T.preprocess_mask(x, ('clahe',name), (H,W))
    assert y.shape==(H,W) and y.dtype==x.dtype and set(np.unique(y))<={0,*np.unique(x)}
    planes = T.preprocess_masks(np.stack([x==o for o in (1,5)]), name, (H,W))
    assert planes.dtype==bool and all((planes[i]==(y.astype(int)==o)).all() for i,o in enumerate((1,5)) if dtype!='bool')

@settings(max_examples=80, deadline=None)
@given(sides, sides, st.integers(1, 50), st.integers(1, 50), st.integers(0, 9))
def test_integers_are_resized_as_pil_does(h, w, H, W, seed):
    x = labels(h, w, seed, np.uint8)
    for o in (np.int64,np.uint16,np.int32): assert (T.resize(x.astype(o), (H,W), 'bicubic')==T.resize(x, (H,W), 'nearest')).all()

def test_large_labels_are_exact():
    x = np.arange(64).reshape(8,8)+2**40
    assert (T.unletterbox(*T.letterbox(x, 20))==x).all()

def test_no_planes(): assert T.preprocess_masks(np.zeros((0,9,9), bool), 'letterbox', (4,5)).shape==(0,4,5)

@pytest.mark.parametrize('name', list(T._places))
def test_masks_are_padded_with_nothing(name):
    x = np.ones((10,40), np.uint8)*7
    y,m = T.preprocess(x, name, 20),T.preprocess_mask(x, name, 20)
    assert set(np.unique(m))<={0,7} and ((y==7)==(m==7)).all()
    assert set(np.unique(y[m==0]))<={128 if name=='letterbox-grey' else 0}

# --- there and back --------------------------------------------------------------------------------------
def spread(x, r):
    "Lowest and highest label within `r` pixels"
    from scipy.ndimage import maximum_filter, minimum_filter
    return minimum_filter(x, 2*r+1, mode='nearest'),maximum_filter(x, 2*r+1, mode='nearest')

@settings(max_examples=120, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_a_label_map_there_and_back(h, w, H, W, seed):
    "Exact unless the frame is smaller; then it differs only within a pixel of the frame from another label"
    x = labels(h, w, seed, np.int32)
    x[h//4:,w//3:] = 5
    f,m = T.letterbox(x, (H,W))
    y = T.unletterbox(f, m)
    assert y.shape==x.shape and y.dtype==x.dtype and set(np.unique(y))<=set(np.unique(x))
    if m.h>=h and m.w>=w: assert (y==x).all()
    low,high = spread(x, int(np.ceil(max(h/m.h, w/m.w))))
    assert (y[low==high]==x[low==high]).all() and (low<=y).all() and (y<=high).all()

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_scale_one_is_exact(h, w, seed):
    "Where nothing is scaled nothing is lost, for pictures, labels and probabilities"
    n = max(h, w)
    for x in (labels(h, w, seed, np.uint8), fl(h, w), labels(h, w, seed, bool)):
        for method in ('nearest','bilinear','bicubic'): assert (T.unletterbox(*T.letterbox(x, n, 0, method), method)==x).all()
        for name in ('letterbox','centre'): assert (T.restore(T.centre(x, n), name, (h,w))==x).all()

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 60), st.integers(1, 60), st.sampled_from([*T._places, ('letterbox','resize'), ('centre','crop')]), st.booleans())
def test_restore_comes_back_to_the_picture(h, w, H, W, names, floats):
    pred = fl(H, W, 2).transpose(2,0,1) if floats else np.stack([labels(H, W, o, np.uint8) for o in (0,1)])
    y = T.restore(pred, names, (h,w), fill=0)
    assert y.shape==(2,h,w) and y.dtype==pred.dtype and (y[1]==T.restore(pred[1], names, (h,w))).all()
    if not floats: assert set(np.unique(y))<={0,*np.unique(pred)}
    if H>=h and W>=w and not floats and names in ('resize','letterbox','letterbox-grey','centre'):
        x = labels(h, w, 3, np.uint8)
        assert (T.restore(T.preprocess_mask(x, names, (H,W)), names, (h,w))==x).all()

@pytest.mark.parametrize('name', ['resize','letterbox','letterbox-grey','crop','centre'])
def test_no_planes(name):
    none = T.preprocess_masks(np.zeros((0,9,14), bool), name, 8)
    assert none.shape==(0,8,8) and T.restore(none, name, (9,14)).shape==(0,9,14) and T.restore(none, name, (9,14)).dtype==bool

def test_restored_prediction_lies_on_the_lesion():
    "A mask and a smooth map of it come back to where the picture has it; the crop fills what it never saw"
    m = np.zeros((50,80), bool); m[10:30,30:50] = True
    for name in T._places:
        p = T.restore(T.preprocess_mask(m, name, 64).astype(np.float32), name, m.shape)>.5
        k = m&T.restore(np.ones((64,64), bool), name, m.shape)
        assert (p&k).sum()/(p|k).sum()>.9, name
    assert np.isnan(T.restore(np.zeros((8,8), np.float32), 'crop', (50,80), fill=np.nan)).mean()==30/80

@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 80), st.integers(1, 80))
def test_centre(h, w, H, W):
    x = im(h, w)
    y = T.centre(x, (H,W), 9)
    k,l = min(h,H),min(w,W)
    a,b,c,d = (h-k)//2,(w-l)//2,(H-k)//2,(W-l)//2
    assert (y[c:c+k,d:d+l]==x[a:a+k,b:b+l]).all() and (y==9).sum()>=H*W-k*l

@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 40), st.integers(1, 40))
def test_crop_of_any_shape(h, w, H, W):
    "The window has the shape asked for, as nearly as whole pixels allow, touches two borders and is centred"
    y,x = T._window(h, w, H, W)
    a,b = y.stop-y.start,x.stop-x.start
    assert (a==h or b==w) and abs(2*y.start-(h-a))<=1 and abs(2*x.start-(w-b))<=1 and a<=h and b<=w
    assert abs(a*W-b*H)<=max(H,W)/2+1e-9 or min(a,b)==1
    assert T.crop(im(h,w), (H,W)).shape==(H,W)

def test_pairs_of_sizes():
    for name in T._places: assert T.preprocess(im(20,31,3), name, (8,12)).shape==(8,12,3) and T.preprocess_mask(im(20,31)>9, name, [8,12]).shape==(8,12)

# --- CLAHE ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('hw', [(1,1), (5,1), (127,128), (9,200)])
@pytest.mark.parametrize('c', [0,2,3,4])
@pytest.mark.parametrize('backend', ['skimage','opencv'])
def test_clahe_with_any_channels(hw, c, backend):
    x = im(*hw, c)
    y = T.clahe(x, backend=backend)
    assert y.shape==x.shape and y.dtype==np.uint8
    if c in (2,4): assert (y[...,1]==T.clahe(x[...,1], backend=backend)).all()

def test_clahe_of_opencv_keeps_hue():
    "All channels of a pixel are scaled alike, and grey stays grey"
    x = im(64,64,3)//2
    y,v = T.clahe(x, backend='opencv').astype(float),x.max(2)[...,None].astype(float)
    assert np.abs(y-x/v*y.max(2)[...,None])[v[...,0]>9].max()<1.01
    g = T.to_rgb(im(64,64))
    assert (T.clahe(g, backend='opencv')==T.clahe(g[...,0], backend='opencv')[...,None]).all()
    assert (T.preprocess(x, ('clahe-opencv','resize'), 32)==T.resize(T.clahe(x, backend='opencv'), 32)).all()
