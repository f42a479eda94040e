"Volumes as slices, and the loaders of BraTS 2018 and ISLES 2018, on toy sets in the official layouts"
import pickle, shutil, sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from medattn_nb.core import ArgumentError, DataError, MissingPackage
from medattn_nb.data import brats, isles, volumes
from medattn_nb.data.datasets import Data, DataSet, _registry, check, leaks, load
from medattn_nb.data.quality import audit
from medattn_nb.data.transforms import centre
from medattn_nb.data.volumes import (MR, PERFUSION, Volumes, fold_cases, read_volume, slice_table, split_cases, stored, toy_head,
                                     volume_shape, write_volume, zscore)

SHAPE = 6, 20, 16

def noise(seed=0, shape=SHAPE): return np.random.default_rng(seed).integers(0, 4, shape).astype(np.int16)

# --- NIfTI ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('ext', ['nii','nii.gz'])
@pytest.mark.parametrize('dtype', [np.uint8,np.int16,np.float32,bool])
def test_round_trip(tmp_path, ext, dtype):
    v = noise().astype(dtype)
    p = write_volume(tmp_path/f'deep/er/v.{ext}', v, spacing=(5,2,1))
    back = read_volume(p)
    assert back.dtype==np.float32 and back.flags.c_contiguous and back.flags.writeable and (back==v).all() and volume_shape(p)==SHAPE
    assert nib.load(p).header.get_zooms()==(1,2,5)

@pytest.mark.parametrize('dtype,kept', [(np.int64,np.int32), (np.uint64,np.int32), (np.float16,np.float32), (np.float64,np.float64)])
def test_types_that_nifti_has_not(tmp_path, dtype, kept):
    p = write_volume(tmp_path/'v.nii', noise().astype(dtype))
    assert nib.load(p).get_data_dtype()==kept and (read_volume(p)==noise()).all()

def test_numbers_that_do_not_fit(tmp_path):
    with pytest.raises(ArgumentError, match='32 bits'): write_volume(tmp_path/'v.nii', np.full(SHAPE, 2**31))
    assert not (tmp_path/'v.nii').exists()

def test_scaled_values(tmp_path):
    "Integers with slope and intercept are read as the values they stand for"
    im = nib.Nifti1Image(noise().transpose(2,1,0), np.diag([-1,-1,1,1.]))
    im.header.set_slope_inter(2, 1)
    im.to_filename(tmp_path/'v.nii')
    assert np.allclose(read_volume(tmp_path/'v.nii'), np.asarray(nib.load(tmp_path/'v.nii').dataobj).transpose(2,1,0))

def test_left_is_right(tmp_path):
    "The voxel on the patient's right comes first in a row, the front first in a column, the feet first"
    a = np.zeros((3,4,5), np.float32)
    a[2,3,0] = 1 # in RAS: the rightmost, foremost, lowest voxel
    nib.save(nib.Nifti1Image(a, np.eye(4)), tmp_path/'v.nii')
    v = read_volume(tmp_path/'v.nii')
    assert v.shape==(5,4,3) and np.argwhere(v).tolist()==[[0,0,0]]

def test_oblique(tmp_path):
    "A tilt of some degrees does not change which axis is which"
    t = np.deg2rad(12)
    tilt = np.array([[np.cos(t),0,np.sin(t),0],[0,1,0,0],[-np.sin(t),0,np.cos(t),0],[0,0,0,1]])
    nib.save(nib.Nifti1Image(noise().transpose(2,1,0), tilt@np.diag([-1,-1,1,1])), tmp_path/'v.nii')
    assert (read_volume(tmp_path/'v.nii')==noise()).all()

def test_nan_and_infinity_become_zero(tmp_path):
    v = noise().astype(np.float32); v[0,0,:3] = np.nan, np.inf, -np.inf
    back = read_volume(write_volume(tmp_path/'v.nii', v))
    assert (back[0,0,:3]==0).all() and (back[1:]==v[1:]).all()

@pytest.mark.parametrize('shape,ok', [((4,5,3,1),True), ((4,5,3,1,1),True), ((4,5,3,2),False), ((4,5),False), ((4,5,1),True)])
def test_dimensions(tmp_path, shape, ok):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path/'v.nii')
    if ok: assert read_volume(tmp_path/'v.nii').shape==volume_shape(tmp_path/'v.nii')==(shape[2],5,4)
    else:
        for f in (read_volume, volume_shape):
            with pytest.raises(DataError, match=r"v\.nii: got 4x5.* voxels; expected one volume of three dimensions"): f(tmp_path/'v.nii', 'v.nii')

@pytest.mark.parametrize('what', ['gone','empty','text','cut'])
def test_unreadable(tmp_path, what):
    p = tmp_path/'v.nii.gz'
    if what!='gone': write_volume(p, noise(shape=(20,40,40)))
    b = p.read_bytes() if p.exists() else b''
    if what=='empty': p.write_bytes(b'')
    if what=='text': p.write_bytes(b'no volume')
    if what=='cut': p.write_bytes(b[:len(b)//2])
    with pytest.raises(DataError, match='v.nii.gz: got (no file|a file that cannot be read)'): read_volume(p, 'v.nii.gz')

def test_cut_uncompressed(tmp_path):
    p = write_volume(tmp_path/'v.nii', noise())
    p.write_bytes(p.read_bytes()[:-100])
    with pytest.raises(DataError, match='v.nii'): read_volume(p)

def patched(p, at, b):
    "The file at `p` with bytes `b` at `at`"
    p.write_bytes(p.read_bytes()[:at]+b+p.read_bytes()[at+len(b):])
    return p

def test_headers(tmp_path):
    "No matrix is taken as nibabel takes it; a singular one, and a type that there is not, are errors"
    nib.Nifti1Image(np.zeros((3,4,5), np.float32), None).to_filename(tmp_path/'plain.nii')
    assert read_volume(tmp_path/'plain.nii').shape==(5,4,3)
    flat = patched(write_volume(tmp_path/'flat.nii', noise()), 312, bytes(16))
    with pytest.raises(DataError, match='which way the axes run'): read_volume(flat, 'flat.nii')
    with pytest.raises(DataError, match='kind.nii: got a file that cannot be read'): read_volume(patched(write_volume(tmp_path/'kind.nii', noise()), 70, b'\x99\x99'), 'kind.nii')

def test_without_nibabel(tmp_path, monkeypatch):
    p = write_volume(tmp_path/'v.nii', noise())
    monkeypatch.setitem(sys.modules, 'nibabel', None)
    for f in (lambda: read_volume(p), lambda: write_volume(p, noise())):
        with pytest.raises(MissingPackage, match='pip install nibabel'): f()

def test_written_like_another(tmp_path):
    im = nib.Nifti1Image(noise().transpose(2,1,0), np.diag([-1,-1,4,1.])).as_reoriented(nib.orientations.axcodes2ornt('SRA', (('L','R'),('P','A'),('I','S'))))
    im.to_filename(tmp_path/'a.nii')
    v = read_volume(tmp_path/'a.nii')
    p = write_volume(tmp_path/'b.nii.gz', v>1, like=tmp_path/'a.nii')
    assert (read_volume(p)==(v>1)).all() and (nib.load(p).affine==nib.load(tmp_path/'a.nii').affine).all()
    with pytest.raises(ArgumentError, match='like'): write_volume(p, v[1:], like=tmp_path/'a.nii')

# --- z-scores ------------------------------------------------------------------------------------------
whole = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6), elements=st.integers(0, 500).map(float))

@settings(max_examples=100, deadline=None)
@given(whole)
def test_zscore(v):
    z = zscore(v)
    m = v!=0
    assert z.shape==v.shape and z.dtype==np.float32 and (z[~m]==0).all() and np.isfinite(z).all()
    if m.any():
        assert abs(z[m].mean())<1e-3
        assert abs(z[m].std()-1)<1e-3 if v[m].std()>0 else (z[m]==0).all()

@settings(max_examples=50, deadline=None)
@given(whole, st.sampled_from([.25,2.,1024.]))
def test_zscore_knows_no_gain(v, gain): assert np.allclose(zscore(gain*v), zscore(v), atol=1e-3)

@settings(max_examples=50, deadline=None)
@given(whole)
def test_zscore_keeps_the_order(v):
    x,z = v[v!=0],zscore(v)[v!=0]
    assert (np.diff(z[np.argsort(x)])>=0).all()

def test_zscore_of_large_values():
    "Sums in float32 would be off"
    v = (np.random.default_rng(0).normal(1e4, 1, 10**6)).astype(np.float32)
    z = zscore(v)
    assert abs(z.mean())<2e-3 and abs(z.std()-1)<2e-3

def test_zscore_masks():
    v = np.array([0,1,3,5], np.float32)
    assert np.allclose(zscore(v, 'all'), (v-2.25)/v.std())
    assert np.allclose(zscore(v, v>2), [0,0,-1,1])
    assert np.allclose(zscore(v, v>2, keep_zero=False), [-4,-3,-1,1])
    assert np.allclose(zscore(v, keep_zero=False), (v-3)/v[1:].std())
    assert not zscore(v, v>9).any() and not zscore(np.zeros(3)).any()
    for bad in ('brain', np.ones(4), np.ones(3, bool)):
        with pytest.raises(ArgumentError, match='mask'): zscore(v, bad)

# --- crops ---------------------------------------------------------------------------------------------
side = st.integers(1, 12)

@settings(max_examples=100, deadline=None)
@given(side, side, side, side, st.integers(1, 3))
def test_crop_and_back(h, w, ch, cw, c):
    "What was kept comes back in its place, the rest is 0; nothing is lost when the frame is larger"
    a = np.random.default_rng(h*w).uniform(1, 2, (h,w,c)).astype(np.float32)
    cut = centre(a, (ch,cw))
    back = centre(cut, (h,w))
    kept = back!=0
    assert cut.shape==(ch,cw,c) and back.shape==a.shape and (back[kept]==a[kept]).all() and kept.sum()==min(h,ch)*min(w,cw)*c
    if ch>=h and cw>=w: assert (back==a).all()

@settings(max_examples=50, deadline=None)
@given(side, side, side)
def test_crop_of_a_volume(h, w, size):
    "Slice by slice, and labels stay labels"
    v = noise(h*w+size, (3,h,w))
    got = volumes._cropped(v, size)
    assert (got==np.stack([centre(o, size) for o in v])).all() and got.flags.c_contiguous and set(np.unique(got))<=set(np.unique(v))|{0}
    assert volumes._cropped(v, None) is v

# --- kept on disk --------------------------------------------------------------------------------------
def test_nothing_half_written(tmp_path, monkeypatch):
    def save(f, a): f.write(b'half'); raise OSError('disk full')
    monkeypatch.setattr(volumes.np, 'save', save)
    with pytest.raises(OSError, match='disk full'): stored(tmp_path/'c', 'k', lambda: np.ones(3))
    assert list((tmp_path/'c').iterdir())==[]

def test_a_damaged_cache_file_is_made_again(tmp_path):
    stored(tmp_path, 'k', lambda: np.arange(1000))
    for b in (b'',(tmp_path/'k.npy').read_bytes()[:40],(tmp_path/'k.npy').read_bytes()[:300]):
        (tmp_path/'k.npy').write_bytes(b)
        assert (stored(tmp_path, 'k', lambda: np.arange(1000))==np.arange(1000)).all() and np.load(tmp_path/'k.npy').sum()==499500

def test_made_once_by_many(tmp_path):
    with ThreadPoolExecutor(8) as ex: got = list(ex.map(lambda i: stored(tmp_path, 'k', lambda: np.arange(1000)), range(32)))
    assert all((o==np.arange(1000)).all() for o in got) and [o.name for o in tmp_path.iterdir()]==['k.npy']
    with pytest.raises(ValueError): got[0][0] = 1

# --- the reader ----------------------------------------------------------------------------------------
def cases(root, n=3, mods=('a','b'), shape=SHAPE, ext='nii'):
    "Noise as files"
    out = {}
    for i in range(n):
        for j,m in enumerate((*mods,'seg')): write_volume(root/f'c{i}/{m}.{ext}', noise(10*i+j, shape))
        out[f'c{i}'] = [f'c{i}/{m}.{ext}' for m in mods],f'c{i}/seg.{ext}'
    return out

def made(root, cs, values=((1,),(2,3)), **kw):
    r = Volumes(root, cs, values, **kw)
    return Data(DataSet('v', classes=('without','with'), channels=2, dtype='float32', masks=('one','more')), slice_table(r, None), root, r)

@pytest.fixture(autouse=True)
def forgotten(): volumes._cases.clear()

def test_every_file_is_decoded_once(tmp_path, monkeypatch):
    n,f = [],volumes.read_volume
    monkeypatch.setattr(volumes, 'read_volume', lambda p, name: n.append(name) or f(p, name))
    d = made(tmp_path, cases(tmp_path))
    assert sorted(n)==[f'c{i}/seg.nii' for i in range(3)]
    for i in range(len(d)): d.image(i),d.masks(i)
    d.tensors(8, 'centre'),d.mask_tensors(8, 'centre')
    assert len(n)==len(set(n))==9

def test_tensors_by_threads(tmp_path):
    d = made(tmp_path, cases(tmp_path, 8), size=14)
    x,m = d.tensors(14, 'centre'),d.mask_tensors(14, 'centre', kind='planes')
    volumes._cases.clear()
    assert all((x[i].permute(1,2,0).numpy()==d.image(i)).all() and (m[i].numpy()==d.masks(i)).all() for i in range(len(d))[::-1])
    assert x.shape==(48,2,14,14) and str(x.dtype)=='torch.float32'

def test_pictures_and_masks(tmp_path):
    d = made(tmp_path, cases(tmp_path), size=14, normalise='none')
    for i in (0,7,17):
        c,k = divmod(i, 6)
        assert (d.image(i)==centre(np.stack([noise(10*c),noise(10*c+1)], -1)[k].astype(np.float32), 14)).all()
        seg = centre(noise(10*c+2)[k], 14)
        assert (d.masks(i)==np.stack([seg==1,np.isin(seg, (2,3))])).all() and d.items.pixels[i]==(seg>0).sum() and d.labels[i]==1
        assert (d.labelmap(i)==np.where(seg==1, 1, np.where(seg>1, 2, 0))).all()

def test_a_picture_is_the_callers_own(tmp_path):
    for kw in ({}, {'cache':tmp_path/'cache'}):
        d = made(tmp_path, cases(tmp_path), **kw)
        before = d.image(1).copy()
        d.image(1)[:] = 9; d.masks(1)[:] = True
        assert (d.image(1)==before).all() and not d.masks(1).all()

def test_pickles(tmp_path):
    d = made(tmp_path, cases(tmp_path))
    assert (pickle.loads(pickle.dumps(d)).image(4)==d.image(4)).all()

def test_cache(tmp_path, monkeypatch):
    cs = cases(tmp_path)
    want = made(tmp_path, cs).tensors(16, 'centre')
    kw = dict(cache=tmp_path/'cache')
    assert (made(tmp_path, cs, **kw).tensors(16, 'centre')==want).all()
    volumes._cases.clear()
    monkeypatch.setattr(volumes, 'read_volume', None)
    assert (made(tmp_path, cs, **kw).tensors(16, 'centre')==want).all()
    monkeypatch.undo(); volumes._cases.clear()
    n = len(list((tmp_path/'cache').iterdir()))
    write_volume(tmp_path/'c1/a.nii', noise(99, SHAPE).astype(np.float32))
    assert not (made(tmp_path, cs, **kw).tensors(16, 'centre')==want).all() and len(list((tmp_path/'cache').iterdir()))==n+2
    made(tmp_path, cs, size=4, **kw).tensors(4)
    assert len(list((tmp_path/'cache').iterdir()))==n+8

def test_a_changed_file_is_read_anew(tmp_path):
    cs = cases(tmp_path)
    before = made(tmp_path, cs).image(0)
    write_volume(tmp_path/'c0/a.nii', noise(99).astype(np.float32))
    assert (made(tmp_path, cs).image(0)!=before).any()

def test_content(tmp_path):
    cs = cases(tmp_path)
    d = made(tmp_path, cs)
    assert len({o.split()[0] for o in d.contents})==18 and d.fingerprint==made(tmp_path, cs).fingerprint
    others = [made(tmp_path, cs, **kw).fingerprint for kw in (dict(size=8), dict(normalise='none'), dict(values=((1,),(2,))))]
    assert len({d.fingerprint, *others})==4 and made(tmp_path, cs, cache=tmp_path/'x').fingerprint==d.fingerprint
    shutil.copytree(tmp_path, tmp_path/'again', ignore=shutil.ignore_patterns('again'))
    assert made(tmp_path/'again', cs).fingerprint==d.fingerprint

def test_bad_reader_options(tmp_path):
    for kw in (dict(normalise='minmax'), dict(size=0), dict(size='160'), dict(size=1.5)):
        with pytest.raises(ArgumentError): Volumes(tmp_path, {}, (), **kw)
    with pytest.raises(ArgumentError, match='choose from all, lesion'): slice_table(Volumes(tmp_path, {}, ()), None, 'some')

def test_slice_out_of_range(tmp_path):
    r = made(tmp_path, cases(tmp_path)).reader
    for k in (-1,6):
        with pytest.raises(DataError, match='c0 has slices 0 to 5'): r.image(SimpleNamespace(file='c0', case='c0', slice=k))

def test_a_broken_case_is_left_out_and_the_rest_stays(tmp_path):
    cs = cases(tmp_path, 4, ext='nii.gz')
    write_volume(tmp_path/'c1/b.nii.gz', noise(shape=(6,20,17)))
    (tmp_path/'c2/seg.nii.gz').write_bytes(b'')
    write_volume(tmp_path/'c3/seg.nii.gz', noise()+.5)
    said = []
    t = slice_table(Volumes(tmp_path, cs, ()), lambda *a: said.append(a))
    assert set(t.case)=={'c0'} and [o[0] for o in said]==['c1/b.nii.gz','c2/seg.nii.gz','c3/seg.nii.gz']
    assert '6x20x17' in said[0][1] and '6x20x16' in said[0][2] and 'whole numbers' in said[2][1]

def test_a_damaged_modality_shows_when_it_is_read(tmp_path):
    cs = cases(tmp_path, ext='nii.gz', shape=(6,40,40))
    p = tmp_path/'c1/b.nii.gz'
    p.write_bytes(p.read_bytes()[:3000])
    d = made(tmp_path, cs)
    for _ in range(2):
        with pytest.raises(DataError, match='c1/b.nii.gz'): d.image(8)
    assert d.image(0).shape==(40,40,2) and d.masks(8).shape==(2,40,40)

# --- splits of cases -----------------------------------------------------------------------------------
def table(n, per=lambda i: 1+i%5, **cols):
    "`n` cases with different numbers of slices"
    t = pd.DataFrame([dict(file=f'c{i}#{k}', label=k%2, group=f'c{i:03d}') for i in range(n) for k in range(per(i))])
    return Data(DataSet('t', classes=('a','b')), t.assign(**{k:[v(o) for o in t.group] for k,v in cols.items()}))

@pytest.mark.parametrize('n', [10,50,94])
def test_split_counts_cases(n):
    d = split_cases(table(n), (.7,.1,.2), seed=3)
    share = d.items.groupby('split').group.nunique()
    assert not len(leaks(d)) and share.sum()==n and all(abs(share[k]-f*n)<=1 for k,f in (('train',.7),('valid',.1),('test',.2)))
    assert (split_cases(table(n, lambda i: 3), (.7,.1,.2), seed=3).items.groupby('group').split.first()==d.items.groupby('group').split.first()).all()
    assert split_cases(table(n), (.7,.1,.2), seed=4).items.split.tolist()!=d.items.split.tolist()

def test_split_does_not_depend_on_the_order():
    d = table(30)
    order = np.random.default_rng(0).permutation(len(d))
    a,b = split_cases(d),split_cases(d.take(order))
    assert a.items.split.to_numpy()[order].tolist()==b.items.split.tolist()

def test_split_by_a_column():
    d = split_cases(table(40, grade=lambda g: 'high' if int(g[1:])<20 else 'low'), (.5,.5), by='grade')
    assert d.items.groupby(['split','grade']).group.nunique().tolist()==[10,10,10,10]

def test_folds():
    fs = [fold_cases(table(23, grade=lambda g: 'high' if int(g[1:])<15 else 'low'), i, 5, by='grade') for i in range(5)]
    assert all(not len(leaks(o)) for o in fs) and all(sum(o.items.split[i]=='valid' for o in fs)==1 for i in range(len(fs[0])))
    assert all(4<=o.items.group[o.items.split=='valid'].nunique()<=5 for o in fs)
    for bad in (-1,5,'0',None):
        with pytest.raises(ArgumentError, match='use 0 to 4'): fold_cases(table(9), bad)

# --- the toy head --------------------------------------------------------------------------------------
def test_toy_head():
    a,la = toy_head((8,32,28), seed=1, lesion=.35)
    b,lb = toy_head((8,32,28), seed=1, lesion=.35)
    assert (a==b).all() and (la==lb).all() and a.dtype==np.float32 and a.shape==(8,32,28,4) and set(np.unique(la))=={0,1,2,4}
    assert (a[toy_head((8,32,28), seed=2)[0][...,0]>=0]>=0).all() and ((a==0).all(-1)==(a==0).any(-1)).all()
    assert not toy_head((8,32,28), seed=1, lesion=0)[1].any()
    ring = a[...,1][la==4].mean()
    assert ring>1.3*a[...,1][(la==0)&(a[...,1]>0)].mean() and abs(ring/MR['t1ce'][-1]-1)<.25

# --- BraTS ---------------------------------------------------------------------------------------------
def brats_set(root, high=5, low=2, shape=(8,24,20), ext='nii.gz', top='MICCAI_BraTS_2018_Data_Training', tumour=None):
    "Toy heads in the layout of BraTS 2018"
    for i in range(high+low):
        pics,seg = toy_head(shape, seed=i, lesion=.35)
        case,g = f'Brats18_X_{i}_1','HGG' if i<high else 'LGG'
        for c,k in enumerate(MR): write_volume(root/top/g/case/f'{case}_{k}.{ext}', pics[...,c].astype(np.int16))
        write_volume(root/top/g/case/f'{case}_seg.{ext}', seg)
    return root

@pytest.fixture(scope='module')
def brain(tmp_path_factory): return brats_set(tmp_path_factory.mktemp('b')/'brats-2018')

def test_brats(brain):
    d = load('brats-2018', brain, crop=16)
    assert len(d)==40 and list(d.items)[:6]==['file','label','class','mask','group','split'] and d.items.group.nunique()==5
    assert d.items.file.is_unique and d.items.slice.tolist()[:9]==[0,1,2,3,4,5,6,7,0] and set(d.items.grade)=={'HGG'}
    for i in range(len(d)):
        pics,seg = toy_head((8,24,20), seed=int(d.items.case[i].split('_')[2]), lesion=.35)
        want = np.stack([zscore(pics[...,c].astype(np.int16)) for c in range(4)], -1)[d.items.slice[i]]
        assert np.allclose(d.image(i), centre(want, 16)) and (d.masks(i)[0]==centre(seg[d.items.slice[i]]==4, 16)).all()
        assert d.labels[i]==d.masks(i).any()==(d.items.pixels[i]>0)
    assert d.classes==['no_enhancing_core','enhancing_core'] and d.info.images==32550 and 0<d.labels.sum()<40

@pytest.mark.parametrize('top,ext', [('.','nii.gz'), ('.','nii'), ('MICCAI_BraTS_2018_Data_Training','nii')])
def test_brats_layouts(tmp_path, brain, top, ext):
    other = load('brats-2018', brats_set(tmp_path/'x', top=top, ext=ext), crop=16)
    d = load('brats-2018', brain.parent, crop=16)
    assert other.items.equals(d.items) and (other.tensors(16)==d.tensors(16)).all()

def test_brats_options(brain):
    both = load('brats-2018', brain, grades='both', masks=tuple(brats.REGIONS), crop=None, modalities=('flair','t1'))
    m = both.mask_tensors(24, 'centre', kind='planes')
    assert both.items.groupby('grade').case.nunique().to_dict()=={'HGG':5,'LGG':2} and both.info.channels==2 and both.classes==['no_tumor','tumor']
    assert (m[:,2]<=m[:,1]).all() and (m[:,1]<=m[:,0]).all() and m[:,0].sum()>m[:,1].sum()>m[:,2].sum()>0
    one = load('brats-2018', brain, crop=None)
    assert (both.image(3)==one.image(3)[...,[3,0]]).all() and both.info.images==285*155
    assert load('brats-2018', brain, grades='LGG', masks='tumor_core').info.images==75*155
    les = load('brats-2018', brain, slices='lesion', crop=16)
    assert (les.items.pixels>0).all() and les.info.images is None and les.info.counts==()

@pytest.mark.parametrize('kw', [dict(grades='high'), dict(masks=('edema',)), dict(masks=()), dict(modalities=('dwi',)), dict(modalities=()), dict(slices='some'),
                                dict(crop=0), dict(normalise='minmax'), dict(fold=5), dict(folds=3)])
def test_brats_bad_options(brain, kw):
    with pytest.raises(ArgumentError): load('brats-2018', brain, **kw)

def test_brats_released(brain):
    "The rule, written out slice by slice"
    kw = dict(crop=20, normalise='released')
    got = load('brats-2018', brain, slices='released', seed=7, **kw)
    every,kept = load('brats-2018', brain, **kw),set(got.items.file)
    least = 400 # at this size a slice never has 1,000 pixels
    assert not any(every.items.pixels[i]<=1 for i in range(len(every)) if every.items.file[i] in kept) and every.image(0)[0,0,0]<0
    pics,px = every.reader.pictures('Brats18_X_0_1'),np.array([0,1,2,50,0,0,0,0])
    big = np.tile(pics, (1,3,3,1)) # 60x60
    rng = np.random.default_rng(brats.derive_seed(7, 'slices', 'c'))
    want = [all(big[k,...,c].max()>0 for c in range(4)) and (px[k]>1 or (np.count_nonzero(big[k,...,0])>1000 and coin>.5)) for k,coin in enumerate(rng.random(8))]
    assert brats.released(big, px, 7, 'c').tolist()==want and want[2] and want[3]
    tossed = np.array([brats.released(big, px*0, s, 'c') for s in range(200)])
    lit = (big.max((1,2))>0).all(1)
    assert abs(tossed[:,lit].mean()-.5)<.06 and not tossed[:,~lit].any()

def test_brats_released_slices_of_an_empty_modality():
    x = np.ones((3,40,40,2), np.float32); x[1,...,1] = 0
    assert brats.released(x, np.array([5,5,5])).tolist()==[True,False,True]

def test_brats_folds(brain):
    fs = [load('brats-2018', brain, crop=16, fold=i) for i in range(5)]
    assert all(not len(leaks(o)) for o in fs) and all(o.items.case[o.items.split=='valid'].nunique()==1 for o in fs)
    assert {o.items.case[o.items.split=='valid'].iloc[0] for o in fs}==set(fs[0].items.case)
    same = load('brats-2018', brain, crop=16, fold=2, slices='lesion')
    assert set(same.items.case[same.items.split=='valid'])==set(fs[2].items.case[fs[2].items.split=='valid'])

def test_brats_missing(tmp_path):
    root = brats_set(tmp_path/'brats-2018', 2, 0)
    with pytest.raises(DataError, match='LGG: got no cases; expected folders Brats18_'): load('brats-2018', root, grades='both')
    top = root/'MICCAI_BraTS_2018_Data_Training/HGG/Brats18_X_0_1'
    (top/'Brats18_X_0_1_flair.nii.gz').unlink()
    (root/'MICCAI_BraTS_2018_Data_Training/HGG/Brats18_X_1_1/Brats18_X_1_1_t1.nii.gz').write_bytes(b'?')
    got = check(root)
    assert got.file.str.rsplit('/', n=1).str[-1].tolist()==['Brats18_X_0_1_flair.nii.gz','Brats18_X_1_1_t1.nii.gz'] and got.attrs['images']==0
    shutil.rmtree(root/'MICCAI_BraTS_2018_Data_Training/HGG')
    with pytest.raises(DataError, match='looked (in|for).*brats-2018.*Register'): load('brats-2018', root)

def test_audit_of_brats(brain):
    said = str(audit(brain))
    assert 'brats-2018' in said and '32550' in said and 'No problems' in said

# --- ISLES ---------------------------------------------------------------------------------------------
def isles_set(root, n=10, shape=(4,24,20), ext='nii', top='TRAINING'):
    "Toy maps in the layout of ISLES 2018"
    for i in range(n):
        maps,lab = toy_head(shape, PERFUSION, seed=i, lesion=.4)
        for j,(k,v) in enumerate({**dict(zip(isles.MAPS.values(), maps.transpose(3,0,1,2))), 'OT':lab>2, 'CT':lab*0, 'CT_4DPWI':None}.items()):
            name = f'SMIR.Brain.XX.O.{k}.{345000+10*i+j}'
            p = root/top/f'case_{i+1}/{name}/{name}.{ext}'
            if v is not None: write_volume(p, v, spacing=(5,1,1))
            else: p.parent.mkdir(parents=True); nib.save(nib.Nifti1Image(np.zeros((4,4,2,1,3), np.float32), np.eye(4)), p)
    return root

@pytest.fixture(scope='module')
def stroke(tmp_path_factory): return isles_set(tmp_path_factory.mktemp('i')/'isles-2018')

def test_isles(stroke):
    d = load('isles-2018', stroke, crop=16)
    assert len(d)==40 and list(dict.fromkeys(d.items.case))==[f'case_{i}' for i in range(1,11)] and d.items.file.is_unique
    for i in (1,14,38):
        maps,lab = toy_head((4,24,20), PERFUSION, seed=int(d.items.case[i][5:])-1, lesion=.4)
        assert np.allclose(d.image(i), centre(np.stack([zscore(maps[...,c]) for c in range(4)], -1)[d.items.slice[i]], 16), atol=1e-5)
        assert (d.masks(i)[0]==centre(lab[d.items.slice[i]]>2, 16)).all()
    assert d.items.groupby('split').case.nunique().to_dict()==dict(train=7, valid=1, test=2) and not len(leaks(d)) and d.classes==['no_lesion','lesion']
    assert load('isles-2018', stroke, crop=16, split='none').items.split.eq('').all()
    assert load('isles-2018', stroke, crop=16, seed=1).items.split.tolist()!=d.items.split.tolist()

@pytest.mark.parametrize('top,ext', [('.','nii'), ('ISLES2018_Training/TRAINING','nii'), ('TRAINING','nii.gz')])
def test_isles_layouts(tmp_path, stroke, top, ext):
    other,d = load('isles-2018', isles_set(tmp_path/'x', top=top, ext=ext), crop=16),load('isles-2018', stroke, crop=16)
    assert other.items.equals(d.items) and (other.tensors(16)==d.tensors(16)).all()

def test_isles_units(stroke):
    d = load('isles-2018', stroke, crop=None, normalise='none', modalities=('tmax','cbf'), slices='lesion')
    x,m = d.image(0),d.mask(0)
    assert d.info.channels==2 and x[m][:,0].mean()>5>x[~m][:,0].mean() and x[m][:,1].mean()<x[~m&(x[...,1]>0)][:,1].mean()

def test_isles_patients(tmp_path, stroke):
    p = tmp_path/'who.csv'
    pd.DataFrame(dict(case=[f'case_{i}' for i in range(1,11)], patient=[f'p{(i+1)//2}' for i in range(1,11)])).to_csv(p, index=False)
    d = load('isles-2018', stroke, crop=16, patients=p)
    assert d.items.group.nunique()==5 and not len(leaks(d)) and d.items.groupby('split').group.nunique().to_dict()==dict(train=3, valid=1, test=1)
    pd.DataFrame(dict(case=['case_1'], patient=['p'])).to_csv(p, index=False)
    with pytest.raises(DataError, match='no patient for case_2'): load('isles-2018', stroke, patients=p)
    p.write_text('case,who\n')
    with pytest.raises(DataError, match='needs the columns case and patient'): load('isles-2018', stroke, patients=p)
    with pytest.raises(DataError, match='no table'): load('isles-2018', stroke, patients=tmp_path/'none.csv')

@pytest.mark.parametrize('kw', [dict(modalities=('ct',)), dict(modalities=()), dict(split='grouped'), dict(slices='released'), dict(crop=-1), dict(grades='HGG')])
def test_isles_bad_options(stroke, kw):
    with pytest.raises(ArgumentError): load('isles-2018', stroke, **kw)

def test_isles_missing(tmp_path):
    root = isles_set(tmp_path/'isles-2018', 6)
    twice = next((root/'TRAINING/case_2').glob('*CT_MTT*'))
    shutil.copytree(twice, Path_(twice, '.1'))
    shutil.move(Path_(twice, '.1')/f'{twice.name}.nii', Path_(twice, '.1')/f'{twice.name}.1.nii')
    next((root/'TRAINING/case_3').glob('*OT*/*.nii')).unlink()
    got = check(root)
    assert got.problem.tolist()==['2 files of this kind','no file of this kind'] and 'CT_MTT' in got.file[0] and '.OT.' in got.file[1] and got.attrs['images']==16

def Path_(p, more): return p.with_name(p.name+more)

# --- descriptions --------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['brats-2018','isles-2018','lgg-mri-segmentation','cityscapes'])
def test_descriptions(name, tmp_path):
    "Complete, and the signs match nothing but the set's own layout"
    load.__globals__['_discover']()
    info = _registry[name][0]
    for k in ('title','modality','spacing','licence','citation','url','how_to_get','notes','paper'): assert len(getattr(info, k))>5, k
    assert info.signs and info.masks and info.task=='segmentation'
    for o in ('images/a.png','masks/a.png','train/x/a.png','HGG/a.nii','case_1/a.nii','TRAINING/a.png'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True); (tmp_path/o).write_bytes(b'')
    assert not any(list(tmp_path.glob(o)) for o in info.signs)
