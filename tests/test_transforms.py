"Transforms: sizes, masks, letterbox and back, CLAHE, steps by name"
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

@pytest.mark.parametrize('bad,says', [(im(4,4)/255, 'uint8'), ([1], 'numpy array'), (im(4,4,4), r'\(H,W\) or'), (np.zeros((0,4), np.uint8), r'\(H,W\) or'), (np.zeros(4, np.uint8), r'\(H,W\) or')])
def test_bad_pictures(bad, says):
    with pytest.raises(ShapeError, match=says): T.preprocess(bad, 'resize', 8)

@pytest.mark.parametrize('f', [
    lambda x: T.resize(x, 0), lambda x: T.resize(x, -3), lambda x: T.resize(x, 2.5), lambda x: T.resize(x, (4,)), lambda x: T.resize(x, None), lambda x: T.resize(x, 4, 'cubic'),
    lambda x: T.clahe(x, 0), lambda x: T.clahe(x, 2), lambda x: T.clahe(x, .1, 0), lambda x: T.preprocess(x, ('resize','nope'), 4), lambda x: T.preprocess(x, (), 4),
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
