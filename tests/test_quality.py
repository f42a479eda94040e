"Twins, mask statistics, audits and splits"
import os
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from conftest import real
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data.datasets import Data, DataSet, check_leak, from_folder, from_manifest, kfold_groups, leaks, load, split_groups
from medattn_nb.data.quality import audit, audits, mask_statistics, near_groups, survey, thumbnail, twins
from medattn_nb.data.splits import kfold_random, published_fold, random_split, read_split, split_label, write_split

def noise(k, hw=(40,50)): return np.random.default_rng(k).integers(0, 256, hw, dtype=np.uint8)

class Held:
    "A reader of arrays held in memory"
    def __init__(self, ims, masks=None): self.ims,self.planes = ims,masks
    def image(self, row): return self.ims[row.number]
    def masks(self, row): return None if self.planes is None else self.planes[row.number]
    def content(self, row): return str(hash(self.ims[row.number].tobytes()))

def held(ims, masks=None, names=(), **cols):
    n = len(ims)
    df = pd.DataFrame(dict(file=[f'{i}.png' for i in range(n)], label=[i%2 for i in range(n)], number=range(n)) | cols)
    return Data(DataSet('held', classes=('a','b'), masks=names), df, None, Held(ims, masks))

# --- thumbnails and twins ------------------------------------------------------------------------------
def smooth(k, hw=(96,96)): return np.array(Image.fromarray(noise(k, (6,6))).resize(hw[::-1], Image.Resampling.BICUBIC))

@settings(max_examples=30, deadline=None)
@given(st.integers(0,10**6), st.floats(.3,1), st.integers(0,60), st.integers(40,130), st.integers(40,130))
def test_thumbnail_ignores_brightness_contrast_and_size(k, gain, offset, h, w):
    a = smooth(k)
    b = np.array(Image.fromarray((a*gain*.7+offset).clip(0,255).astype(np.uint8)).resize((w,h), Image.Resampling.LANCZOS))
    assert thumbnail(a)@thumbnail(b)>.98

@pytest.mark.parametrize('img', [np.zeros((5,5),np.uint8), np.full((30,40,3),9,np.uint8), np.zeros((8,8,4),np.float32)])
def test_thumbnail_of_nothing(img): assert not thumbnail(img).any()

@pytest.mark.parametrize('img', [noise(0), noise(1,(20,30,3)), noise(2,(1,1)), noise(3,(7,300)), np.random.default_rng(0).normal(size=(30,31,4)).astype(np.float32)])
def test_thumbnail_of_any_picture(img):
    t = thumbnail(img)
    assert t.shape==(576,) and t.dtype==np.float32 and (abs(t@t-1)<1e-5 or not t.any()) and abs(t.mean())<1e-6

@pytest.mark.parametrize('n', [0,1,2,511,512,513,1100])
def test_twins_equals_all_pairs(n):
    "The blocks of 512 lose no pair and invent none"
    rng = np.random.default_rng(n)
    t = rng.normal(size=(n,6)).astype(np.float32)
    t /= np.linalg.norm(t, axis=1, keepdims=True) if n else 1
    p = twins(t, .97)
    i,j = np.nonzero(np.triu(t@t.T>.97, 1)) if n else ([],[])
    assert set(zip(p.i, p.j))==set(zip(i, j)) and (np.diff(p.correlation)<=0).all()

@pytest.mark.parametrize('t', [1, 1.5, -2])
def test_bad_threshold(t):
    with pytest.raises(ArgumentError, match='use a correlation below 1'): twins(np.zeros((2,3), np.float32), t)

def test_near_groups_are_components():
    a,b = smooth(1),smooth(2)
    half = lambda w: ((1-w)*a.astype(float)+w*b).astype(np.uint8)
    chain = [half(w) for w in np.linspace(0, 1, 9)]
    d = held([*chain, smooth(3), np.zeros((9,9),np.uint8), np.zeros((9,9),np.uint8)])
    t = np.stack([thumbnail(o) for o in chain])
    steps = min(t[i]@t[i+1] for i in range(8))
    g = near_groups(d, steps-1e-4)
    assert len(set(g[:9]))==1 and g[9]!=g[0] and g[10]==g[11]
    assert t[0]@t[8]<steps-1e-4, 'the ends of the chain are no twins themselves'
    g = near_groups(d, .9999, exact=False)
    assert g[10]!=g[11] and len(set(g))==12

# --- masks ---------------------------------------------------------------------------------------------
def test_mask_statistics_by_hand():
    m = np.zeros((4,2,10,10), bool)
    m[0,0,:2,:5] = m[0,0,5:,5:] = True; m[1,0,0,0] = True; m[2,1] = True
    t = mask_statistics(held([noise(i,(10,10)) for i in range(4)], m, ('first','second')))
    assert t.loc['first'].tolist()==[4, 50, 100*36/400, 100*36/200, 1.5] and t.loc['second'].tolist()==[4, 75, 25, 100, 1]

def test_mask_statistics_leaves_unknown_masks_out():
    m = [None, np.ones((1,5,5), bool), None]
    t = mask_statistics(held([noise(i,(5,5)) for i in range(3)], m))
    assert t.loc['mask','images']==1 and t.loc['mask','blank (%)']==0

# --- audit ---------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    "Twelve pictures of six patients in a folder with a manifest, nothing wrong with them"
    root = tmp_path/'set'; (root/'im').mkdir(parents=True)
    for i in range(12): Image.fromarray(noise(i)).save(root/f'im/{i}.png')
    pd.DataFrame(dict(file=[f'im/{i}.png' for i in range(12)], **{'class':['ill','well']*6}, patient=[i//2 for i in range(12)], split=['train']*8+['test']*4)).to_csv(root/'manifest.csv', index=False)
    return root

def edit(root, f):
    t = pd.read_csv(root/'manifest.csv', dtype=str, keep_default_na=False)
    f(t); t.to_csv(root/'manifest.csv', index=False)

def test_nothing_wrong(folder):
    a = audit(folder)
    assert (a.problems,a.warnings,a.images,a.name)==([],[],12,'set') and 'No problems' in str(a)

def test_copy_on_the_other_side(folder):
    (folder/'im/9.png').write_bytes((folder/'im/0.png').read_bytes())
    a = audit(folder)
    assert not a.problems and len(a.warnings)==4 and 'counted on the later side: 1 in test' in a.warnings[0] and 'carry two classes: 1' in a.warnings[1]

def test_copy_on_the_same_side_is_counted_only(folder):
    (folder/'im/2.png').write_bytes((folder/'im/0.png').read_bytes())
    a = audit(folder)
    assert not a.warnings and a.facts['identical']=='pairs of pictures: 1 (files)'

def test_patient_on_two_sides(folder):
    edit(folder, lambda t: t.__setitem__('patient', [str(i//2) if i!=9 else '0' for i in range(12)]))
    assert audit(folder).warnings==['groups on two sides of the split: 1 of 6, with 3 images; use split_groups']

@pytest.mark.parametrize('spoil,file,says', [
    (lambda r: (r/'im/3.png').unlink(), 'im/3.png', 'no file of this name'),
    (lambda r: (r/'im/3.png').write_bytes((r/'im/3.png').read_bytes()[:300]), 'im/3.png', 'cannot be read'),
    (lambda r: edit(r, lambda t: t.__setitem__('class', ['']+list(t['class'][1:]))), 'im/0.png', 'no label'),
    (lambda r: edit(r, lambda t: t.__setitem__('split', ['tset']+list(t['split'][1:]))), 'manifest.csv', "split 'tset'")])
def test_each_problem_is_told(folder, spoil, file, says):
    spoil(folder)
    a = audit(folder)
    assert len(a.problems)==1 and a.problems[0][0]==file and says in a.problems[0][1] and file in str(a)

def test_masks_with_colours_or_soft_edges(folder):
    for i in range(3): Image.fromarray(np.repeat(np.uint8([[0,255]] if i==0 else [[0,60,120,180,240]]), 50 if i==0 else 10, 1)[:,:50].repeat(40, 0)).save(folder/f'm{i}.png')
    edit(folder, lambda t: t.__setitem__('mask', [f'm{i}.png' if i<3 else '' for i in range(12)]))
    a = audit(folder)
    assert [o for o in a.warnings if 'more than two values: 2 of 3' in o and 'm1.png' in o]
    assert not audit(folder, masks={'a':60,'b':[120,180]}).warnings and audit(folder, masks='a,b').tables['Outlined structures'].index.tolist()==['a','b']

def test_a_patient_that_is_not_filled_in(folder):
    edit(folder, lambda t: t.__setitem__('patient', ['']+list(t['patient'][1:])))
    assert audit(folder).warnings==['images without a patient: 1 of 12, such as im/0.png; each counts as a patient of its own']

def test_formats_that_are_passed_over(tmp_path):
    for o in ('a','b'): (tmp_path/o).mkdir(); Image.fromarray(noise(ord(o))).save(tmp_path/o/'x.png'); (tmp_path/o/'.DS_Store').write_text('')
    assert not audit(tmp_path).warnings
    (tmp_path/'a/IM1.dcm').write_bytes(b'DICM'); (tmp_path/'b/readme.txt').write_text('')
    a, = audit(tmp_path).warnings
    assert 'passed over: 1, such as a/IM1.dcm' in a

def test_options_and_root_of_a_path(folder):
    "Both used to be ignored without a word"
    edit(folder, lambda t: t.__setitem__('site', ['s0']*12))
    assert audit(folder, group='site').warnings==['groups on two sides of the split: 1 of 1, with 12 images; use split_groups']
    with pytest.raises(ArgumentError, match='sise: .*options of a manifest: .*group'): audit(folder, sise='site')
    for what,root in ((folder.name,folder.parent), (folder.name,folder), (folder,None)): assert audit(what, root).images==12
    assert 'nothing of this name' in audit(folder.name, folder/'im').problems[0][1]

def test_attribute_that_nobody_knows(folder, recwarn):
    edit(folder, lambda t: t.__setitem__('has:hair', ['']*12))
    assert audit(folder).tables['Attributes: share of images that have each (%)'].loc['hair','known in']==0 and not [o for o in recwarn if issubclass(o.category, RuntimeWarning)]

def test_several_sets(folder):
    (folder.parent/'other').mkdir()
    for o in ('a','b'): (folder.parent/'other'/o).mkdir(); Image.fromarray(noise(5)).save(folder.parent/'other'/o/'x.png')
    (folder.parent/'other/manifest.csv').write_text('file,label\na/x.png,1\nb/x.png,2\nc/x.png,2\n')
    one,two = audits(folder.parent)
    assert (one.name,two.name)==('other','set') and [o[0] for o in one.problems]==['other/c/x.png'] and not two.problems
    with pytest.raises(ArgumentError, match='other, set'): audit(folder.parent)

def test_published_counts(folder):
    d = from_manifest(folder)
    from dataclasses import replace
    def told(*counts): return audit(Data(replace(d.info, counts=counts), d.items, d.root)).warnings
    assert told(('train','ill',4),('test','',4),('','',12),('','well',6))==[]
    assert told(('train','ill',5),('','',14))==['4 images of class ill in train: the published set has 5','12 images: the published set has 14']
    assert told(('valid','',3))==['0 images in valid: the published set has 3']

def test_layout_of_another_set(folder):
    a = audit('covid-ct', folder)
    assert not a.images and len(a.problems)==1 and 'looked for' in a.problems[0][2]
    with pytest.raises(ArgumentError, match='options of covid-ct'): audit('covid-ct', real('covid-ct'), size=3)

def test_the_leak_of_the_brain_set():
    "The numbers in its description, found by our own computation"
    a = audit(from_manifest(real('brain-tumor-mri-3264')))
    assert 'later side: 251 in test' in a.warnings[0] and 'later side: 259 in test' in a.warnings[1] and not a.problems

# --- splits --------------------------------------------------------------------------------------------
def videos(n=60, groups=5): return load('phantom-texture', n=n, groups=groups, size=16)

@settings(max_examples=25, deadline=None)
@given(st.integers(2,80), st.integers(1,9), st.integers(0,99), st.sampled_from([(.9,.1),(.5,.5),(.7,.1,.2)]))
def test_random_split_is_pure_and_complete(n, groups, seed, fractions):
    if n<3: return
    d = videos(n, groups)
    a,b = random_split(d, fractions, seed),random_split(d, fractions, seed)
    assert (a.items.split==b.items.split).all() and set(a.items.split)<={'train','valid','test'} and a.items.split.nunique()==len(fractions)
    assert a.items.drop(columns='split').equals(d.items.drop(columns='split'))
    for k,f in zip(('train','valid','test'), fractions): assert abs((a.items.split==k).sum()-f*n)<=3

def test_random_split_leaks_and_says_so():
    d = random_split(videos(), {'train':.9,'test':.1})
    assert split_label(d).startswith('leaky: ') and len(leaks(d))
    with pytest.raises(DataError): check_leak(d)
    assert split_label(split_groups(videos()))=='by group'
    assert split_label(load('phantom-texture', n=20))=='by image (each group has one)'

def test_random_split_of_one_side():
    d = random_split(split_groups(videos(), (.8,.2)), (.5,.5), of='train')
    e = split_groups(videos(), (.8,.2))
    assert (d.items.split[e.items.split=='valid']=='valid').all()

@pytest.mark.parametrize('k', [2,5])
def test_random_folds_partition(k):
    d = videos()
    folds = kfold_random(d, k)
    assert (sum((o.items.split=='valid').astype(int) for o in folds)==1).all() and len(folds)==k
    assert any(len(leaks(o)) for o in folds) and not any(len(leaks(o)) for o in kfold_groups(d, k))

def test_published_fold():
    d = videos()
    d = Data(d.info, d.items.assign(fold=[i%4 for i in range(60)]), None, d.reader)
    assert (published_fold(d, 'fold', 2).items.split=='test').sum()==15 and (published_fold(d, 'fold', '2', 'valid').items.split=='valid').sum()==15
    for bad in (('folds',1),('fold',7),('fold',1,'train')):
        with pytest.raises(ArgumentError): published_fold(d, *bad)

@pytest.mark.parametrize('change,says', [
    (lambda t: t[:-1], '1 images differ'), (lambda t: t.assign(file=['x']+list(t.file[1:])), 'no image of this name'), (lambda t: t.assign(split='trian'), "'trian'"),
    (lambda t: t.rename(columns={'split':'side'}), 'needs the columns'), (lambda t: pd.concat([t,t[:1]]), 'twice')])
def test_a_split_file_that_does_not_fit(tmp_path, change, says):
    d = split_groups(videos())
    p = write_split(d, tmp_path/'a/split.csv')
    assert read_split(videos(), p).split_fingerprint==d.split_fingerprint
    change(pd.read_csv(p, dtype=str)).to_csv(p, index=False)
    with pytest.raises(DataError, match=says): read_split(videos(), p)

def test_no_split_file(tmp_path):
    with pytest.raises(DataError, match='no table'): read_split(videos(), tmp_path/'none.csv')

# --- nothing to look at ----------------------------------------------------------------------------------
def test_audit_of_a_set_without_a_readable_row(tmp_path):
    "Each class lost its archive: problems, not an exception"
    for c in ('COVID','NonCOVID'):
        for s in ('train','val','test'):
            p = tmp_path/f'covid-ct/Data-split/{c}/{s}CT_{c}.txt'
            p.parent.mkdir(parents=True, exist_ok=True); p.write_text('a.png\n')
    a = audit('covid-ct', tmp_path)
    assert len(a.problems)==2 and a.facts['images']=='0' and 'unzip CT_COVID.zip' in str(a)
