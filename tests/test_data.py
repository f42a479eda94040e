"Data sets: reading pictures, manifests, folders, check, fingerprints, splits, COVID-CT"
import json, os, pickle, subprocess, sys, time
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from conftest import real
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data.covidct import source_of
from medattn_nb.data.datasets import (Data, DataSet, available, check, check_leak, from_folder, from_manifest, kfold_groups, leaks, load,
                                      read_image, read_mask, split_groups)

def pic(p, hw=(6,8), mode='L', value=None, **kw):
    "Write a picture at `p` and return its pixels"
    rng = np.random.default_rng(sum(map(ord, Path(p).name)))
    a = rng.integers(0, 256, hw+((3,) if mode=='RGB' else ()), dtype=np.uint8) if value is None else np.full(hw, value, np.uint8)
    p.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(p, **kw)
    return a

def sheet(root, name='manifest.csv', **cols):
    "Write a manifest with `cols`"
    pd.DataFrame(cols).to_csv(root/name, index=False)
    return root/name

@pytest.fixture
def six(tmp_path):
    "Six pictures of three patients, the first three with masks, in a folder with a manifest"
    root = tmp_path/'six'
    for i in range(6): pic(root/f'im/{i}.png')
    for i in range(3): pic(root/f'mask/{i}.png', value=255)
    sheet(root, file=[f'im/{i}.png' for i in range(6)], **{'class':['ill','well']*3}, mask=[f'mask/{i}.png' if i<3 else '' for i in range(6)],
          patient=['007','007','008','008','009','009'])
    return root

def change(root, row, col, value):
    "The manifest of `root` with one cell changed"
    t = pd.read_csv(root/'manifest.csv', dtype=str, keep_default_na=False)
    t.loc[row,col] = value
    t.to_csv(root/'changed.csv', index=False)
    return root/'changed.csv'

# --- pictures ------------------------------------------------------------------------------------------
@pytest.mark.parametrize('mode,shape', [('1',(5,7)), ('L',(5,7)), ('LA',(5,7)), ('P',(5,7,3)), ('RGB',(5,7,3)), ('RGBA',(5,7,3)), ('I;16',(5,7))])
def test_modes(tmp_path, mode, shape):
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5,7)).convert(mode).save(tmp_path/'a.png')
    a = read_image(tmp_path/'a.png')
    assert a.shape==shape and a.dtype==np.uint8 and a.flags.writeable

def test_more_than_eight_bits(tmp_path):
    for dtype,ext in ((np.uint16,'png'), (np.uint16,'tif'), (np.int32,'tif'), (np.float32,'tif')):
        p = tmp_path/f'{np.dtype(dtype)}.{ext}'
        Image.fromarray(np.array([[0,1000],[2000,4000]], dtype)).save(p)
        assert read_image(p).tolist()==[[0,64],[128,255]], p.name
    Image.fromarray(np.array([[0,np.nan],[1,2]], np.float32)).save(tmp_path/'nan.tif')
    assert read_image(tmp_path/'nan.tif').tolist()==[[0,0],[128,255]]

def test_formats(tmp_path):
    for o in ('bmp','gif','webp','tif','jpg'):
        pic(tmp_path/f'a.{o}', value=128)
        assert read_image(tmp_path/f'a.{o}').shape[:2]==(6,8)
    Image.new('CMYK', (8,6)).save(tmp_path/'cmyk.jpg')
    assert read_image(tmp_path/'cmyk.jpg').shape==(6,8,3)
    Image.new('L', (1,1)).save(tmp_path/'one.png')
    assert read_image(tmp_path/'one.png').shape==(1,1)

@pytest.fixture
def turned(tmp_path):
    "A photograph that lies on its side by its EXIF tag"
    exif = Image.Exif(); exif[0x0112] = 6
    pic(tmp_path/'im.jpg', (10,20), value=9, exif=exif)
    return tmp_path

def test_exif(turned): assert read_image(turned/'im.jpg').shape==(20,10)

@pytest.mark.parametrize('hw,ok', [((20,10), True), ((10,20), False)])
def test_mask_of_a_turned_picture(turned, hw, ok):
    pic(turned/'m.png', hw, value=1)
    def read(): return from_manifest(sheet(turned, file=['im.jpg'], label=['x'], mask=['m.png'])).mask(0)
    if ok: assert read().shape==hw
    else:
        with pytest.raises(DataError, match='m.png: got a mask of 10x20'): read()

@pytest.mark.parametrize('content', [b'', b'not an image', None, 'cut', 'folder'])
def test_unreadable(tmp_path, content):
    p = tmp_path/'bad.png'
    if content=='folder': p.mkdir()
    elif content=='cut': pic(p, (50,50)); p.write_bytes(p.read_bytes()[:1000])
    elif content is not None: p.write_bytes(content)
    with pytest.raises(DataError, match='bad.png: got '): read_image(p, 'bad.png')

def test_masks(tmp_path):
    want = np.array([[0,1],[2,255]])>0
    for mode in ('L','P'):
        im = Image.fromarray(np.array([[0,1],[2,255]], np.uint8)).convert('L')
        (im if mode=='L' else im.quantize(4, dither=Image.Dither.NONE)).save(tmp_path/f'{mode}.png')
    assert (read_mask(tmp_path/'L.png')==want).all()
    Image.fromarray(np.dstack([want*np.uint8(9)]*3)).save(tmp_path/'rgb.png')
    Image.fromarray(np.dstack([want*np.uint8(9)]*3+[np.full((2,2), 255, np.uint8)])).save(tmp_path/'rgba.png')
    Image.fromarray(want).save(tmp_path/'one.png')
    for o in ('rgb','rgba','one'): assert (read_mask(tmp_path/f'{o}.png')==want).all(), o

# --- Data ----------------------------------------------------------------------------------------------
def test_defaults_of_the_table():
    d = Data(DataSet('x', classes=('a','b')), pd.DataFrame(dict(file=['p','q'], label=[1,0], extra=[3,4])), '.')
    assert list(d.items)==['file','label','class','mask','group','split','extra']
    assert d.items.group.tolist()==['p','q'] and d.items['mask'].tolist()==[None,None] and d.items.split.tolist()==['','']
    assert d.labels.tolist()==[1,0] and d.classes==['a','b'] and len(d)==2
    with pytest.raises(ArgumentError, match='use 0 to 1'): Data(d.info, pd.DataFrame(dict(file=['p'], label=[2])), '.')

def test_empty(): assert len(Data(DataSet('x', classes=('a',)), pd.DataFrame(columns=['file','label']), '.'))==0

def test_tensors(six):
    d = from_manifest(six)
    x = d.tensors(16)
    assert x.shape==(6,1,16,16) and x.dtype==torch.uint8 and d.tensors(16, 'resize') is x
    assert (d.tensors(16, channels=3)==x).all() and d.tensors(16, channels=3).shape[1]==3
    assert (d.take([4,1]).tensors(16)==x[[4,1]]).all()
    assert d.mask_tensors(16, missing='empty').flatten(1).any(1).tolist()==[True]*3+[False]*3
    (six/'im/3.png').write_bytes(b'broken')
    with pytest.raises(DataError, match='im/3.png'): d.tensors(17)

def test_pickles(six):
    d = pickle.loads(pickle.dumps(from_manifest(six)))
    assert d.image(0).shape==(6,8) and d.mask(5) is None

# --- fingerprint ---------------------------------------------------------------------------------------
def test_fingerprint(six, tmp_path):
    d = from_manifest(six)
    again = tmp_path/'elsewhere'
    for i in range(6):
        pic(again/f'{9-i}.png'); (again/f'{9-i}.png').write_bytes((six/f'im/{i}.png').read_bytes())
        if i<3: (again/f'm{i}.png').write_bytes((six/f'mask/{i}.png').read_bytes())
    t = dict(file=[f'{9-i}.png' for i in range(6)][::-1], label=['z']*6, mask=[f'm{i}.png' if i<3 else '' for i in range(6)][::-1])
    assert from_manifest(sheet(again, **t)).fingerprint==d.fingerprint
    assert len(d.fingerprint)==64 and d.split_fingerprint!=d.fingerprint

@pytest.mark.parametrize('f', ['im/5.png','mask/1.png'])
def test_fingerprint_changes_with_a_byte(six, f):
    before = from_manifest(six).fingerprint
    (six/f).write_bytes((six/f).read_bytes()+b'\0')
    assert from_manifest(six).fingerprint!=before

def test_split_fingerprint(six):
    d = from_manifest(six)
    a,b = (d.take(range(6)) for _ in 'ab')
    a.items['split'] = ['train']*5+['test']
    b.items['label'],b.items['class'] = 1-d.items.label,d.items['class'].to_numpy()[::-1]
    assert len({o.split_fingerprint for o in (d,a,b)})==3 and len({o.fingerprint for o in (d,a,b)})==1

# --- manifests -----------------------------------------------------------------------------------------
def test_manifest(six):
    d = from_manifest(six)
    assert d.classes==['ill','well'] and d.info.name=='six' and d.info.channels==1
    assert d.items.group.tolist()==['007','007','008','008','009','009']
    assert from_manifest(six/'manifest.csv', classes=('well','ill')).labels.tolist()==[1,0]*3
    assert from_manifest(six, group='class').items.group.nunique()==2

def test_manifest_from_a_spreadsheet(tmp_path):
    for o in ('sub/ä b.png','c.png'): pic(tmp_path/o, mode='RGB')
    (tmp_path/'manifest.csv').write_text('\ufeff file ,class,weight\n sub\\ä b.png,NA,\nc.png, None ,2.5\n', encoding='utf-8')
    d = from_manifest(tmp_path)
    assert d.classes==['NA','None'] and d.info.channels==3 and d.image(0).shape==(6,8,3)
    assert d.items.weight.isna().tolist()==[True,False]

def test_order_of_classes(tmp_path):
    for i in range(3): pic(tmp_path/f'{i}.png')
    f = [f'{i}.png' for i in range(3)]
    assert from_manifest(sheet(tmp_path, file=f, label=[10,9,11])).classes==['9','10','11']
    assert from_manifest(sheet(tmp_path, file=f, label=[1,0,2], **{'class':['a','z','b']})).classes==['z','a','b']
    assert from_manifest(sheet(tmp_path, file=f, label=[1,0,1]), classes=('no','yes')).items['class'].tolist()==['yes','no','yes']
    with pytest.raises(DataError, match='do not pair'): from_manifest(sheet(tmp_path, file=f, label=[1,0,1], **{'class':['a','b','b']}))

@pytest.mark.parametrize('row,col,value,says', [
    (0,'file','gone.png','gone.png: got no file'), (0,'file','manifest.csv','manifest.csv: got a file that cannot be read'), (1,'class','','im/1.png: got no label'),
    (1,'class','NaN','im/1.png: got no label'), (2,'mask','im/gone.png','im/gone.png: got no file'), (2,'mask','small.png','small.png: got a mask of 2x2 pixels; its image im/2.png has 6x8'),
    (3,'file','im/0.png',r'im/0.png: got 2 rows \(lines 2, 5\)')])
def test_manifest_faults(six, row, col, value, says):
    pic(six/'small.png', (2,2))
    with pytest.raises(DataError, match=says): from_manifest(change(six, row, col, value))

def test_manifest_arguments(six):
    with pytest.raises(DataError, match="no images of class 'healthy'"): from_manifest(six, classes=('ill','well','healthy'))
    with pytest.raises(DataError, match="im/1.png: got class 'well'; use one of ill"): from_manifest(six, classes=('ill','healthy'))
    for k in ('group','split'):
        with pytest.raises(ArgumentError, match='choose a column of the manifest: file, class, mask, patient'): from_manifest(six, **{k:'colour'})
    with pytest.raises(ArgumentError, match='choose a column'): from_manifest(six, rows={'colour':1})
    with pytest.raises(DataError, match='at least one image'): from_manifest(six, rows={'patient':'nobody'}, classes=())

def test_a_taken_name_is_refused_and_a_loader_may_come_again(monkeypatch):
    from medattn_nb.data import datasets as D
    monkeypatch.setattr(D, '_registry', D._discover().copy())
    info = D._registry['ph2-dermoscopy'][0]
    with pytest.raises(ArgumentError, match='is taken by ph2; choose another name'):
        @D.register_dataset(info)
        def mine(root, report): pass
    assert D._registry['ph2-dermoscopy'][1].__module__=='medattn_nb.data.skin'
    def ph2(root, report): pass
    ph2.__qualname__ = 'ph2'; D.register_dataset(info)(ph2) # as when a cell is run again
    assert D._registry['ph2-dermoscopy'][1] is ph2

def test_manifest_that_is_none(tmp_path):
    with pytest.raises(DataError, match='no manifest of this name'): from_manifest(tmp_path)
    for text,says in (('a;b\n1;2\n','needs a column file'), ('file\nx.png\n','needs a column file, and a column label'), ('','no comma-separated table'), ('file,label\n"x\n','no comma-separated table')):
        (tmp_path/'manifest.csv').write_text(text)
        with pytest.raises(DataError, match=says): from_manifest(tmp_path)
    (tmp_path/'manifest.csv').write_bytes(b'file,label\n\xff\xfe,1\n')
    with pytest.raises(DataError, match='UTF-8'): from_manifest(tmp_path)

def test_splits_of_a_manifest(six):
    t = pd.read_csv(six/'manifest.csv', dtype=str, keep_default_na=False)
    def side(**cols): return from_manifest(sheet(six, 'split.csv', **t.assign(**cols))).items.split.tolist()
    assert side(split=['Training','val','dev','testing','none',''])==['train','valid','valid','test','','']
    assert side(split=['fold1']*6, suggested_split=['train','val']*3)==['train','valid']*3
    assert side(split=['none']*6, suggested_split=['train','val']*3)==['train','valid']*3
    assert side(split=['test']*6, suggested_split=['train','val']*3)==['test']*6
    with pytest.raises(DataError, match="split 'fold1' in 6 rows"): side(split=['fold1']*6)
    assert from_manifest(sheet(six, 'split.csv', **t.assign(split='test', mine='train')), split='mine').items.split.tolist()==['train']*6

def test_verify_may_wait(six):
    d = from_manifest(change(six, 0, 'file', 'gone.png'), verify=False)
    assert d.image(1).shape==(6,8)
    with pytest.raises(DataError, match='gone.png'): d.image(0)
    with pytest.raises(DataError, match='gone.png'): d.fingerprint

def test_to_manifest(six, tmp_path):
    d = split_groups(from_manifest(six), (.5,.5))
    e = from_manifest(d.to_manifest(tmp_path/'kept.csv'))
    assert e.split_fingerprint==d.split_fingerprint and e.items.group.tolist()==d.items.group.tolist() and e.items['mask'].isna().tolist()==d.items['mask'].isna().tolist()
    with pytest.raises(DataError, match='without files'): load('phantom-texture', n=4).to_manifest(tmp_path/'x.csv')

SETS = {'brain-tumor-mri-3264':(3264,0,4), 'isic2017-skin-lesion':(2750,0,2), 'chest-xray-pneumonia':(5814,0,2), 'idrid-fundus':(597,81,6),
        'hydronephrosis-us':(1502,971,2), 'ph2-dermoscopy':(200,200,3), 'lgg-mri-segmentation':(1161,831,2)}
@pytest.mark.parametrize('name', SETS)
def test_shared_manifests(name):
    d = from_manifest(real(name), verify=name in ('ph2-dermoscopy','hydronephrosis-us'))
    assert (len(d), d.items['mask'].notna().sum(), len(d.classes))==SETS[name]
    assert d.image(len(d)-1).dtype==np.uint8

# --- folders -------------------------------------------------------------------------------------------
@pytest.fixture
def sorted_(tmp_path):
    "Class folders with a hidden file and a text in them"
    for i in range(4): pic(tmp_path/f"f/{'ab'[i%2]}/deep/p{i//2}_{i}.png")
    (tmp_path/'f/a/._p.png').write_bytes(b''); (tmp_path/'f/a/readme.txt').write_text('x'); (tmp_path/'f/.hidden').mkdir()
    return tmp_path/'f'

def test_folder(sorted_):
    d = from_folder(sorted_, group=r'p(\d)_')
    assert d.items.file.tolist()==['a/deep/p0_0.png','a/deep/p1_2.png','b/deep/p0_1.png','b/deep/p1_3.png'] and d.labels.tolist()==[0,0,1,1]
    assert d.items.group.tolist()==['0','1','0','1'] and from_folder(sorted_, classes=('b','a')).labels.tolist()==[1,1,0,0]

def test_folder_faults(sorted_):
    with pytest.raises(DataError, match='no match for the group pattern'): from_folder(sorted_, group='q')
    with pytest.raises(DataError, match='b: got a class folder not in classes'): from_folder(sorted_, classes=('a',))
    pic(sorted_/'stray.png')
    with pytest.raises(DataError, match='stray.png: got an image outside'): from_folder(sorted_)
    (sorted_/'stray.png').unlink(); (sorted_/'c').mkdir()
    with pytest.raises(DataError, match='c: got a class folder with no images'): from_folder(sorted_)
    (sorted_/'c').rmdir(); (sorted_/'train').mkdir()
    with pytest.raises(DataError, match='either split folders or class folders'): from_folder(sorted_)
    with pytest.raises(DataError, match='no folder of this name'): from_folder(sorted_/'nowhere')
    with pytest.raises(DataError, match='no folders inside'): from_folder(sorted_/'train')

def test_folder_with_splits(tmp_path):
    for s in ('train','Validation','TEST'):
        for c in 'ab': pic(tmp_path/s/c/'x.png')
    d = from_folder(tmp_path)
    assert d.describe().to_numpy().tolist()==[[1,1,2]]*3+[[3,3,6]]

# --- check ---------------------------------------------------------------------------------------------
def test_check_lists_everything(six):
    pic(six/'small.png', (2,2)); (six/'im/2.png').write_bytes((six/'im/2.png').read_bytes()[:50])
    t = pd.read_csv(six/'manifest.csv', dtype=str, keep_default_na=False).assign(split='train')
    for row,col,v in ((0,'file','gone.png'), (1,'class',''), (3,'split','tset'), (4,'file','im/5.png')): t.loc[row,col] = v
    t.loc[len(t)] = dict(file='im/0.png', mask='small.png', split='', **{'class':'ill'})
    bad = check(sheet(six, 'bad.csv', **t))
    assert sorted(bad.file)==['bad.csv','gone.png','im/1.png','im/2.png','im/5.png','small.png'] and (bad.fix!='').all()
    assert check(six/'manifest.csv').file.tolist()==['im/2.png']

def test_check_finds_what_loading_finds(six):
    pic(six/'small.png', (2,2))
    for o in ((0,'file','gone.png'), (2,'mask','small.png'), (1,'class','')):
        with pytest.raises(DataError) as e: from_manifest(change(six, *o))
        assert [e.value.name, e.value.value, e.value.fix] in check(change(six, *o)).to_numpy().tolist()

def test_check_layouts(six, sorted_, tmp_path):
    assert check(six).attrs['images']==6 and check(sorted_).attrs['images']==4
    pic(six/'mask/0.png', (1,1), value=1)
    both = check(six.parent)
    assert both.file.tolist()==['six/mask/0.png'] and both.attrs['images']==6
    assert check(tmp_path/'nowhere').problem.tolist()==['nothing of this name']

# --- splits --------------------------------------------------------------------------------------------
def made(groups, labels):
    n = max(labels)+1
    return Data(DataSet('made', classes=[f'c{i}' for i in range(n)]), pd.DataFrame(dict(file=[f'{i}' for i in range(len(groups))], label=labels, group=[f'g{g}' for g in groups])), '.')

tables = st.integers(3, 60).flatmap(lambda n: st.tuples(st.lists(st.integers(0, 12), min_size=n, max_size=n), st.lists(st.integers(0, 2), min_size=n, max_size=n)))

@settings(max_examples=80, deadline=None)
@given(tables, st.sampled_from([(.8,.2), (.7,.15,.15), (.5,.25,.25), dict(train=.9,test=.1)]), st.integers(0, 10**6), st.booleans())
def test_groups_stay_together(table, fractions, seed, stratify):
    d,k = made(*table),len(fractions)
    if d.items.group.nunique()<k:
        with pytest.raises(DataError, match='a group is never divided'): split_groups(d, fractions, seed, stratify)
        return
    s = split_groups(d, fractions, seed, stratify)
    assert (s.items.groupby('group').split.nunique()==1).all() and s.items.split.nunique()==k and check_leak(s) is s
    assert s.items.drop(columns='split').equals(d.items.drop(columns='split'))
    assert s.items.split.tolist()==split_groups(d, fractions, seed, stratify).items.split.tolist()

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=10, max_size=200), st.integers(0, 100))
def test_stratified_as_well_as_may_be(labels, seed):
    s = split_groups(made(range(len(labels)), labels), (.7,.2,.1), seed)
    n = pd.crosstab(s.items.split, s.items.label).reindex(['train','valid','test'], fill_value=0)
    assert (abs(n-np.outer([.7,.2,.1], n.sum()))<=1.5).all(axis=None)

def test_seeds_differ():
    d = made(range(40), [0,1]*20)
    assert len({tuple(split_groups(d, seed=i).items.split) for i in range(10)})==10

def test_split_of_one_side():
    d = split_groups(made(np.arange(60)//2, [0,1]*30), (.5,.5), seed=1)
    e = split_groups(d, (.7,.3), of='valid')
    was = (d.items.split=='train').to_numpy()
    assert (e.items.split[was]=='train').all() and set(e.items.split[~was])=={'train','valid'}

@pytest.mark.parametrize('f', [(.8,.3), (.5,.5,0), (.2,.2,.2,.4), dict(train=.5,val=.5), (), (1.2,-.2)])
def test_bad_fractions(f):
    with pytest.raises(ArgumentError, match='sum to 1'): split_groups(made(range(9), [0]*9), f)

@pytest.mark.filterwarnings('ignore:The least populated class')
@settings(max_examples=30, deadline=None)
@given(tables, st.integers(2, 5), st.integers(0, 1000))
def test_folds(table, k, seed):
    d = made(*table)
    if d.items.group.nunique()<k or np.bincount(d.labels).max()<k:
        with pytest.raises(ArgumentError, match='folds'): kfold_groups(d, k, seed)
        return
    folds = kfold_groups(d, k, seed)
    assert sorted(i for o in folds for i in np.flatnonzero(o.items.split=='valid'))==list(range(len(d)))
    assert all(check_leak(o) for o in folds)

def test_leaks():
    d = made([0,0,1,1], [0,1,0,1])
    d.items['split'] = ['train','test','valid','']
    assert leaks(d).index.tolist()==['g0']
    with pytest.raises(DataError, match='group g0: got images in train and test; 1 groups of made'): check_leak(d)

def test_leak_of_content(six):
    (six/'im/5.png').write_bytes((six/'im/0.png').read_bytes())
    d = from_manifest(six)
    d.items['split'] = ['train']*4+['test']*2
    assert check_leak(d) is d
    with pytest.raises(DataError) as e: check_leak(d, content=True)
    assert 'the same picture as' in str(e.value) and 'in train and test' in str(e.value) and 'near_groups' in str(e.value)

# --- registered sets -----------------------------------------------------------------------------------
def test_load_errors(tmp_path, monkeypatch):
    monkeypatch.delenv('MEDATTN_DATA', raising=False)
    with pytest.raises(DataError, match='set MEDATTN_DATA to the folder that has covid-ct. Clone'): load('covid-ct')
    with pytest.raises(DataError) as e: load('covid-ct', tmp_path)
    assert str(tmp_path/'covid-ct') in str(e.value) and 'Clone' in str(e.value)
    (tmp_path/'covid-ct').mkdir()
    with pytest.raises(DataError, match='a folder without its files'): load('covid-ct', tmp_path)
    with pytest.raises(ArgumentError, match='choose one of .*covid-ct, .*phantom-texture'): load('covid')
    with pytest.raises(ArgumentError, match='options of covid-ct: none'): load('covid-ct', tmp_path, size=9)

def test_load_by_environment(official, monkeypatch):
    for o in (official, official.parent):
        monkeypatch.setenv('MEDATTN_DATA', str(o))
        assert len(load('covid-ct'))==9 and available().query('found and not synthetic').name.tolist()==['covid-ct']
    monkeypatch.setenv('MEDATTN_DATA', str(official/'Data-split'))
    assert not available().set_index('name').found['covid-ct']

def test_load_a_folder_with_a_manifest(six):
    assert len(load('six', six.parent))==6 and len(load('six', six, classes=('well','ill')))==6

def test_imports_are_light():
    code = 'import sys, json, medattn_nb.data.datasets as d; d.available(); print(json.dumps([o for o in ("fastai","torchvision","matplotlib","skimage","timm") if o in sys.modules]))'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(r.stdout)==[]

# --- COVID-CT ------------------------------------------------------------------------------------------
NAMES = {('COVID','train'):['2020.03.12.20034686-p17-91-1.png','PIIS0140673620301549%2.png'], ('COVID','val'):['kjr-21-e24-p1-16.png'], ('COVID','test'):['2020.03.12.20034686-p3-9%0.png'],
         ('NonCOVID','train'):['33%0.jpg','33%1.jpg','33.png'], ('NonCOVID','val'):['7.png'], ('NonCOVID','test'):['8%0.jpg']}

@pytest.fixture
def official(tmp_path):
    "COVID-CT in the layout of the authors' repository, with tiny pictures"
    root = tmp_path/'sets'/'covid-ct'
    for (cls,side),names in NAMES.items():
        f = root/f'Data-split/{cls}/{side}CT_{cls}.txt'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(' \n'.join(names)+'\n\n')
        for i,o in enumerate(names): pic(root/f'Images-processed/CT_{cls}/{o}', (9,7+i), mode='RGB' if i else 'L')
    return root

def compact(src, dest):
    "The same in the layout of the compact copy"
    d = load('covid-ct', src)
    for (cls,side),names in NAMES.items():
        (dest/'Data-split').mkdir(parents=True, exist_ok=True)
        (dest/f'Data-split/{side}CT_{cls}.txt').write_text('\n'.join(names))
    m = d.items.assign(source_path=[f'Images/CT_{c}/{n}' for c,n in zip(d.items['class'], d.items.name)], src=d.items.file,
                       split=d.items.split.replace('valid','val'), file=[f"{s}/{c}/{n.rsplit('.', 1)[0].replace('%','_')}.png" for s,c,n in zip(d.items.split, d.items['class'], d.items.name)])
    for a,b in zip(m.src, m.file):
        (dest/b).parent.mkdir(parents=True, exist_ok=True)
        (dest/b).write_bytes((src/a).read_bytes())
    m[['file','class','split','source_path']].sample(frac=1, random_state=0).to_csv(dest/'manifest.csv', index=False)
    return dest

def test_covid_layouts_agree(official, tmp_path):
    a,b = load('covid-ct', official),load('covid-ct', compact(official, tmp_path/'copy'))
    assert a.items.drop(columns='file').equals(b.items.drop(columns='file')) and a.split_fingerprint==b.split_fingerprint
    assert a.classes==['NonCOVID','COVID'] and a.tensors(8).shape==(9,1,8,8)
    assert a.describe().to_numpy().tolist()==[[3,2,5],[1,1,2],[1,1,2],[5,4,9]]
    assert leaks(a).index.tolist()==['COVID/2020.03.12.20034686']
    assert check(official).empty and check(tmp_path/'copy').empty and check(official).attrs['images']==9

def test_covid_faults(official):
    (official/'Images-processed/CT_COVID/kjr-21-e24-p1-16.png').unlink()
    with pytest.raises(DataError, match='CT_COVID/kjr-21-e24-p1-16.png: got no file of this name'): load('covid-ct', official)
    (official/'Images-processed/CT_NonCOVID').rename(official/'zip')
    (official/'Data-split/COVID/testCT_COVID.txt').unlink()
    assert check(official).file.tolist()==['Data-split/COVID/testCT_COVID.txt','CT_NonCOVID','CT_COVID/kjr-21-e24-p1-16.png']
    (official/'Images-processed').rename(official/'gone')
    assert {'CT_COVID','CT_NonCOVID'}<=set(check(official).file)

def test_covid_split_file_that_is_no_text(official):
    (official/'Data-split/COVID/testCT_COVID.txt').write_bytes(b'\xff\xfe\xa1')
    assert check(official).file.tolist()==['Data-split/COVID/testCT_COVID.txt']
    with pytest.raises(DataError, match='no text in UTF-8'): load('covid-ct', official)

@pytest.mark.parametrize('name,cls,group', [
    ('2020.03.12.20034686-p17-91-1.png','COVID','COVID/2020.03.12.20034686'), ('bmj.m606.full-p4-22%3.png','COVID','COVID/bmj.m606.full'), ('PIIS0140673620303603_5.png','COVID','COVID/PIIS0140673620303603'),
    ('33%1.jpg','NonCOVID','NonCOVID/33%'), ('33_1.jpg','NonCOVID','NonCOVID/33%'), ('33.png','NonCOVID','NonCOVID/33'), ('odd.png','COVID','COVID/odd')])
def test_source_of(name, cls, group): assert source_of(name, cls)==group

def test_real_covid():
    d = load('covid-ct', real('covid-ct'))
    assert d.describe().to_numpy().tolist()==[[234,191,425],[58,60,118],[105,98,203],[397,349,746]]
    assert d.items[d.items['class']=='COVID'].group.nunique()==58 and len(leaks(d))==3 and leaks(d).test.sum()==7
    assert leaks(d, content=True).empty and d.tensors(32).shape==(746,1,32,32)
    assert len(leaks(split_groups(d, (.6,.2,.2))))==0
    assert d.fingerprint.startswith('e416668f1a5c18ba') and d.split_fingerprint.startswith('99cf2d4a06358cca')

def test_real_covid_as_a_manifest():
    d = from_manifest(real('covid-ct'), classes=('NonCOVID','COVID'))
    assert d.fingerprint==load('covid-ct', real('covid-ct')).fingerprint and d.describe().loc['all','all']==746

# --- structures and attributes -------------------------------------------------------------------------
def planes(k=2, hw=(6,8)): return np.random.default_rng(k).random((k,*hw))<.4

@pytest.fixture
def painted(tmp_path):
    "Four pictures; masks of two structures in three forms: an index file, a colour file, a file each"
    root = tmp_path/'painted'
    m = {i:planes(2+0*i) if i else np.zeros((2,6,8), bool) for i in range(3)}
    for i in range(4): pic(root/f'{i}.png')
    for i,(a,b) in m.items():
        for k,o in (('a',a),('b',b)): (root/k).mkdir(exist_ok=True); Image.fromarray(o).save(root/f'{k}/{i}.png')
        index = a+2*b.astype(np.uint8)
        (root/'index').mkdir(exist_ok=True); Image.fromarray(index).save(root/f'index/{i}.png')
        pal = Image.fromarray(index).convert('P'); pal.putpalette([0,0,0, 255,0,0, 0,255,0, 0,0,255]); pal.putdata(index.ravel().tolist())
        (root/'palette').mkdir(exist_ok=True); pal.save(root/f'palette/{i}.png')
        (root/'colour').mkdir(exist_ok=True); pal.convert('RGB').save(root/f'colour/{i}.png')
    return root,m

VALUES = {'a':[1,3], 'b':[2,3]}
COLOURS = {'a':['#ff0000','#0000FF'], 'b':['#00ff00',(0,0,255)]}

@pytest.mark.parametrize('form,masks', [('index',VALUES), ('palette',VALUES), ('colour',COLOURS), ('palette',COLOURS)])
def test_one_file_for_all_structures(painted, form, masks):
    root,m = painted
    sheet(root, file=[f'{i}.png' for i in range(4)], mask=[f'{form}/{i}.png' for i in range(3)]+[''])
    d = from_manifest(root, masks=masks)
    assert d.info.masks==('a','b') and d.info.task=='segmentation' and d.classes==['image'] and d.masks(3) is None and d.mask(3) is None and d.labelmap(3) is None
    for i,o in m.items(): assert (d.masks(i)==o).all() and (d.mask(i)==o.any(0)).all() and (d.labelmap(i)==np.where(o[1], 2, o[0])).all()
    d = from_manifest(root, masks=masks, missing='empty')
    assert d.masks(3).shape==(2,6,8) and not d.masks(3).any()

def test_a_file_for_each_structure(painted):
    root,m = painted
    cols = {'mask:b':['b/0.png','b/1.png','',''], 'mask:a':['a/0.png','a/1.png','a\\2.png','']}
    sheet(root, file=[f'{i}.png' for i in range(4)], **cols)
    d = from_manifest(root)
    assert d.info.masks==('b','a') and (d.masks(1)==m[1][::-1]).all() and (d.masks(2)[1]==m[2][0]).all() and not d.masks(2)[0].any() and d.masks(3) is None
    one = d.fingerprint
    Image.fromarray(~m[1][0]).save(root/'a/1.png')
    assert from_manifest(root).fingerprint!=one, 'the fingerprint covers every mask file'
    kept = from_manifest(from_manifest(root).to_manifest(root.parent/'kept.csv'))
    assert kept.fingerprint==from_manifest(root).fingerprint and kept.info.masks==('b','a')
    with pytest.raises(ArgumentError, match='files of their own: b, a'): from_manifest(root, masks=('a','b'))

def test_each_mask_file_is_checked(painted):
    root,m = painted
    pic(root/'b/9.png', (5,8))
    sheet(root, file=['0.png','1.png','2.png'], **{'mask:a':['a/0.png','a/1.png','a/2.png'], 'mask:b':['b/0.png','b/9.png','b/none.png']})
    with pytest.raises(DataError, match='b/9.png: got a mask of 5x8 pixels'): from_manifest(root)
    assert check(root).file.tolist()==['b/9.png','b/none.png']

def test_an_index_in_a_jpeg_is_refused(painted):
    root,m = painted
    Image.open(root/'index/1.png').save(root/'1.jpg')
    sheet(root, file=['1.png'], mask=['1.jpg'])
    with pytest.raises(DataError, match='1.jpg: got a JPEG'): from_manifest(root, masks=('a','b')).masks(0)

@pytest.mark.parametrize('masks', [{'a':'red'}, {'a':-1}, {'a':[1,'#12']}, {'a':1.5}])
def test_bad_values(painted, masks):
    sheet(painted[0], file=['0.png'], mask=['index/0.png'])
    with pytest.raises(ArgumentError, match="a colour such as '#ff0000'"): from_manifest(painted[0], masks=masks)

def test_mask_tensors(painted):
    root,m = painted
    sheet(root, file=['0.png','1.png','2.png'], mask=[f'index/{i}.png' for i in range(3)])
    d = from_manifest(root, masks=VALUES)
    p,l,o = (d.mask_tensors((6,8), kind=k) for k in ('planes','labels','any'))
    assert p.shape==(3,2,6,8) and p.dtype==torch.bool and (p.numpy()==np.stack(list(m.values()))).all()
    assert l.shape==(3,6,8) and l.dtype==torch.uint8 and (l==torch.where(p[:,1], 2, p[:,0].long())).all() and o.shape==(3,1,6,8) and (o[:,0]==p.any(1)).all()
    assert d.mask_tensors(16, kind='planes').shape==(3,2,16,16) and set(d.mask_tensors(16, kind='labels').unique().tolist())<={0,1,2}
    with pytest.raises(ArgumentError, match="'any', 'planes' or 'labels'"): d.mask_tensors(8, kind='plane')
    assert d.tensors((6,10)).shape==(3,1,6,10)

def test_attributes(tmp_path):
    for i in range(4): pic(tmp_path/f'{i}.png')
    sheet(tmp_path, file=[f'{i}.png' for i in range(4)], **{'has:hair':['1','no','','TRUE'], 'has:ink':['0','0','1','unknown'], 'has':['x']*4})
    d = from_manifest(tmp_path)
    assert d.info.attributes==('hair','ink') and d.info.task=='multilabel' and np.array_equal(d.attributes, np.array([[1,0],[0,0],[np.nan,1],[1,np.nan]], np.float32), equal_nan=True)
    assert d.attributes.dtype==np.float32 and d.take([2,3]).attributes.shape==(2,2) and 'has' in d.items
    one = d.split_fingerprint
    sheet(tmp_path, file=[f'{i}.png' for i in range(4)], **{'has:hair':['1','no','','TRUE'], 'has:ink':['0','0','1','1']})
    assert from_manifest(tmp_path).split_fingerprint!=one and from_manifest(tmp_path).fingerprint==d.fingerprint
    sheet(tmp_path, file=['0.png'], **{'has:hair':['perhaps']})
    with pytest.raises(DataError, match="0.png: got 'perhaps' in column has:hair"): from_manifest(tmp_path)

# --- images and masks folders --------------------------------------------------------------------------
def test_images_and_masks(tmp_path):
    for i in range(3): pic(tmp_path/f'images/p{i}/x.jpg')
    for i in range(2): pic(tmp_path/f'masks/p{i}/x_mask.png', value=i)
    d = from_folder(tmp_path, group=r'(p\d)')
    assert d.info.task=='segmentation' and [d.mask(i) is None or d.mask(i).any() for i in range(3)]==[False,True,True] and d.items.group.tolist()==['p0','p1','p2']
    assert from_folder(tmp_path, missing='empty').mask(2).shape==(6,8)
    assert not len(check(tmp_path))

def test_a_folder_for_each_structure(tmp_path):
    for s in ('train','val'):
        pic(tmp_path/f'{s}/images/a.png'); pic(tmp_path/f'{s}/masks/kidney/a.png', value=1)
    pic(tmp_path/'val/masks/pelvis/a.png', value=1)
    d = from_folder(tmp_path)
    assert d.items.split.tolist()==['train','valid'] and set(d.info.masks)=={'kidney','pelvis'} and d.masks(0).any((1,2)).sum()==1 and d.masks(1).all()

@pytest.mark.parametrize('extra', ['masks/z.png','masks/sub/z.png'])
def test_a_mask_without_an_image(tmp_path, extra):
    for o in ('images/a.png','masks/a.png'): pic(tmp_path/o)
    pic(tmp_path/extra)
    with pytest.raises(DataError, match='z.png: got a mask without an image'): from_folder(tmp_path)

def test_images_without_any_mask(tmp_path):
    pic(tmp_path/'images/a.png'); (tmp_path/'masks').mkdir()
    assert from_folder(tmp_path).mask(0) is None

@pytest.mark.parametrize('images,masks', [('Images','Masks'), ('image','mask'), ('imgs','labels')])
def test_other_names_for_images_and_masks(tmp_path, images, masks):
    "They were read as two classes, and nothing was said"
    for o in (images,masks): pic(tmp_path/o/'a.png')
    d = from_folder(tmp_path)
    assert len(d)==1 and d.info.task=='segmentation' and d.mask(0) is not None

def test_a_side_without_masks(tmp_path):
    for o in ('train/images/a.png','train/masks/a.png','test/images/b.png'): pic(tmp_path/o)
    d = from_folder(tmp_path)
    assert d.items.split.tolist()==['test','train'] and d.mask(0) is None and d.mask(1) is not None

@pytest.mark.parametrize('twice', [('masks/a.png','images/a.png','images/a.jpg'), ('masks/a.png','masks/a_mask.png'), ('masks/kidney/a.png','masks/kidney/a_seg.png')])
def test_two_pictures_of_one_name(tmp_path, twice):
    "One of them used to disappear"
    for o in ('images/a.png',*twice): pic(tmp_path/o)
    t = check(tmp_path)
    assert len(t)==1 and t.file[0] in twice and 'a second picture' in t.problem[0]

# --- what spreadsheets do ------------------------------------------------------------------------------
@pytest.mark.parametrize('text', ['file;class;patient\nim/0.png;ill;1,5\n', '\ufefffile;class\r\nim/0.png;ill\r\n', 'file\tclass\nim/0.png\till\n', 'file,class\nim/0.png,ill,\n',
                                  'file,class\nim/0.png,ill\n,\n\n,\n', 'file,class,mask\n im\\0.png,ill, mask\\0.png \n', 'file,class,mask\nim/0.png,ill\n'])
def test_spreadsheets(six, text):
    (six/'excel.csv').write_bytes(text.encode())
    d = from_manifest(six/'excel.csv')
    assert d.items.file.tolist()==['im/0.png'] and d.classes==['ill'] and (d.mask(0) is not None)==('mask\\0' in text)

@pytest.mark.parametrize('text,says', [('file,class\nim/0.png,ill\n,well\n', 'no file in line 3'), ('file,class\na,b\nim/0.png,ill,x\n', 'Expected 2 fields in line 3'), ('file,class\nim/0.png,ill,x\n', 'more cells than the first line')])
def test_a_row_that_is_wrong_has_its_line(six, text, says):
    (six/'excel.csv').write_text(text)
    assert any(says in o for o in check(six/'excel.csv').problem)

def test_wrong_layouts_say_what_was_found(tmp_path):
    for o in ('a','b'): (tmp_path/'scans'/o).mkdir(parents=True); (tmp_path/'scans'/o/'IM1.dcm').write_bytes(b'DICM')
    pic(tmp_path/'flat/x.png')
    t = check(tmp_path/'scans')
    assert all('found IM1.dcm' in o for o in t.problem[:2]) and '.png' in t.fix[0]
    assert 'found x.png' in check(tmp_path/'flat').problem[0] and 'images and masks' in check(tmp_path/'flat').fix[0]
    assert check(tmp_path/'flat/x.png').problem[0]=='a picture'

def test_a_pattern_that_is_none(sorted_):
    with pytest.raises(ArgumentError, match='group: .*regular expression'): from_folder(sorted_, group='(')

def test_one_structure_by_its_name(six):
    with pytest.raises(DataError, match="a mask of 0 and 255; say masks={'kidney':255}"): from_manifest(six, masks='kidney')
    d = from_manifest(six, masks={'kidney':255})
    assert d.info.masks==('kidney',) and d.info.values==((255,),) and (d.masks(0)[0]==from_manifest(six).mask(0)).all() and d.masks(0).any()

def test_an_error_ends_the_other_threads(monkeypatch):
    "Ctrl-C in a large set used to wait until every picture was read"
    from medattn_nb.data.datasets import _each
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    done = []
    def f(i):
        if i==0: raise ZeroDivisionError
        time.sleep(.02); done.append(i)
    with pytest.raises(ZeroDivisionError): _each(f, 400)
    assert len(done)<100 # the other thread has 200, which take four seconds

# --- float pictures and readers of one's own -----------------------------------------------------------
class Ramp:
    "Four modalities, drawn"
    def image(self, row): return np.full((9,12,4), row.number, np.float32)+np.arange(4, dtype=np.float32)/10
    def masks(self, row): return np.zeros((1,9,12), bool)
    def content(self, row): return f'ramp {row.number}'

def test_float_pictures_of_four_modalities():
    d = Data(DataSet('ramp', classes=('a',), channels=4, dtype='float32'), pd.DataFrame(dict(file=list('abc'), label=0, number=range(3))), None, Ramp())
    x = d.tensors((9,12))
    assert x.shape==(3,4,9,12) and x.dtype==torch.float32 and torch.allclose(x[2,3], torch.tensor(2.3)) and d.tensors(6).shape==(3,4,6,6)

@pytest.mark.parametrize('kw', [dict(channels=0), dict(channels='3'), dict(task='detection'), dict(dtype='float64'), dict(missing='none')])
def test_bad_descriptions(kw):
    with pytest.raises(ArgumentError): DataSet('x', **kw)

def test_tensors_by_threads_are_in_order(tmp_path):
    a = [pic(tmp_path/f'{i:02d}.png', value=i) for i in range(70)]
    sheet(tmp_path, file=[f'{i:02d}.png' for i in range(70)], label=['a','b']*35)
    assert (from_manifest(tmp_path).tensors((6,8))[:,0,0,0]==torch.arange(70)).all()
    (tmp_path/'41.png').write_text('x'); (tmp_path/'65.png').write_text('x')
    with pytest.raises(DataError, match='41.png'): from_manifest(tmp_path, verify=False).tensors(8)

# --- what readers of the code found ---------------------------------------------------------------------
@pytest.mark.parametrize('suffix,kind', [('jpg','JPEG'), ('jpg','MPO'), ('tif','TIFF'), ('png','PNG'), ('webp','WEBP')])
@pytest.mark.parametrize('orientation', [1,3,6,8])
def test_the_header_says_the_size_that_is_read(tmp_path, suffix, kind, orientation):
    im,exif = Image.new('RGB', (20,10), 'red'),Image.Exif()
    exif[0x0112] = orientation
    more = dict(save_all=True, append_images=[im]) if kind=='MPO' else {}
    im.save(tmp_path/f'x.{suffix}', format=kind, exif=exif, **more)
    pic(tmp_path/'m.png', read_image(tmp_path/f'x.{suffix}').shape[:2], value=1)
    d = from_manifest(sheet(tmp_path, file=[f'x.{suffix}'], label=['x'], mask=['m.png']))
    assert d.mask(0).shape==d.image(0).shape[:2]==((20,10) if orientation>4 else (10,20)) and d.mask(0).all()

@pytest.mark.parametrize('name', ['PatientID','Patient','patient id','Subject_ID','CASE'])
def test_a_patient_in_another_spelling(six, name):
    m = pd.read_csv(six/'manifest.csv')
    known = [c for c in m if c in ('group','patient','patient_id','case','case_id','subject','near_group')]
    m.drop(columns=known).assign(**{name:list('aabbcc')}).to_csv(six/'manifest.csv', index=False)
    assert from_manifest(six).items.group.tolist()==list('aabbcc')

def test_positions_and_masks_of_pandas(six):
    d = from_manifest(six)
    assert d.take(pd.Series([True,False]*3)).items.file.tolist()==d.take([0,2,4]).items.file.tolist()==d.take(np.array([True,False]*3)).items.file.tolist()

def test_one_set_with_a_wrong_layout_does_not_hide_the_others(tmp_path):
    for k in 'ab': (tmp_path/k/'im').mkdir(parents=True)
    pic(tmp_path/'b/im/0.png', (8,8), value=9)
    sheet(tmp_path/'b', file=['im/0.png'], label=['x'])
    (tmp_path/'a/manifest.csv').write_text('picture\nim/0.png\n')
    t = check(tmp_path)
    assert t.attrs['images']==1 and len(t)==1 and t.file[0].startswith('a/')

def test_pictures_beside_a_folder_test_are_not_passed_over(tmp_path):
    for p in ('images/a.png','images/b.png','masks/a.png','test/images/c.png','test/masks/c.png'):
        (tmp_path/p).parent.mkdir(parents=True, exist_ok=True)
        pic(tmp_path/p, (8,8), value=1+len(p))
    d = from_folder(tmp_path)
    assert dict(zip(d.items.file, d.items.split))=={'images/a.png':'', 'images/b.png':'', 'test/images/c.png':'test'}

def test_split_folders_below_images(tmp_path):
    for s,n in (('train','a'),('val','b')):
        for k in ('images','masks'):
            (tmp_path/k/s).mkdir(parents=True, exist_ok=True)
            pic(tmp_path/k/s/f'{n}.png', (8,8), value=1)
    assert from_folder(tmp_path).items.split.tolist()==['train','valid']

def test_one_mask_and_one_for_each_structure_are_not_mixed(six):
    m = pd.read_csv(six/'manifest.csv')
    m.assign(**{'mask:pelvis':m['mask']}).to_csv(six/'manifest.csv', index=False)
    with pytest.raises(DataError, match='mask:pelvis; keep one'): from_manifest(six)
