"The LGG loader: the published layout, the compact copy, and the real slices against the counts of their README"
import re
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from conftest import real
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data.datasets import check, leaks, load
from medattn_nb.data.quality import audit

NAME = 'lgg-mri-segmentation'

def slices(n=6, per=5):
    "Patient, slice, picture and mask; the first and the last slice of a patient show nothing"
    for i in range(n):
        rng = np.random.default_rng(i)
        for k in range(1, per+1):
            m = np.zeros((20,16), np.uint8)
            if 1<k<per: m[4:8+k,3:9] = 255
            yield f'TCGA_ZZ_{i:04d}_2000010{i+1}',k,rng.integers(0, 256, (20,16,3), dtype=np.uint8),m

def save(a, p, **kw):
    p.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(p, **kw)

def published(root, top='kaggle_3m', **kw):
    for who,k,img,m in slices(**kw):
        save(img, root/top/who/f'{who}_{k}.tif')
        save(m, root/top/who/f'{who}_{k}_mask.tif')
    (root/top/'data.csv').write_text('Patient,death01\nTCGA_ZZ_0000,0\n')
    return root

def compact(root, keep=lambda k: True, **kw):
    rows = []
    for who,k,img,m in slices(**kw):
        if not keep(k): continue
        f,g = f'images/{who}/{who}_{k:02d}.png',f'masks/{who}/{who}_{k:02d}.png' if m.any() else ''
        save(img, root/f)
        if g: save(m>0, root/g)
        rows.append(dict(file=f, **{'class':'tumor' if g else 'no_tumor'}, split='none', mask=g, patient=who, suggested_split=('train','val','test')[int(who[8:12])%3], slice=k, source_path=f'kaggle_3m/{who}/{who}_{k}.tif'))
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_csv(root/'manifest.csv', index=False)
    return root

@pytest.fixture
def both(tmp_path): return load(NAME, published(tmp_path/'a'/NAME)),load(NAME, compact(tmp_path/'b'/NAME))

def test_layouts_are_equal(both):
    a,b = both
    assert a.items.drop(columns=['file','mask']).equals(b.items.drop(columns=['file','mask'])) and (a.items['mask'].isna()==b.items['mask'].isna()).all()
    assert all((a.image(i)==b.image(i)).all() and (a.masks(i)==b.masks(i)).all() for i in range(len(a)))
    assert list(a.items)==['file','label','class','mask','group','split','patient','slice']

def test_table(both):
    d = both[0]
    assert len(d)==30 and d.labels.tolist()==[0,1,1,1,0]*6 and d.items.slice.tolist()==[1,2,3,4,5]*6 and d.items.patient.is_monotonic_increasing
    for i,(who,k,img,m) in enumerate(slices()):
        assert d.items.group[i]==who and (d.image(i)==img).all() and (d.masks(i)==(m>0)[None]).all()
    assert d.mask_tensors(16).shape==(30,1,16,16) and not len(leaks(d))

@pytest.mark.parametrize('top', ['.','lgg-mri-segmentation/kaggle_3m'])
def test_other_tops(tmp_path, both, top):
    d = load(NAME, published(tmp_path/'c', top))
    assert d.items.drop(columns=['file','mask']).equals(both[0].items.drop(columns=['file','mask']))

def test_slice_ten_comes_after_nine(tmp_path):
    d = load(NAME, published(tmp_path, n=3, per=11))
    assert d.items.slice.tolist()==list(range(1,12))*3

def test_the_split_knows_patients_only(tmp_path):
    "The same patients on the same side, whichever slices are there"
    a,b = load(NAME, published(tmp_path/'a', n=9)),load(NAME, compact(tmp_path/'b', keep=lambda k: k in (2,5), n=9))
    sides = [d.items.groupby('patient').split.first() for d in (a,b)]
    assert sides[0].equals(sides[1]) and sides[0].value_counts().to_dict()=={'train':6,'test':2,'valid':1}
    assert load(NAME, tmp_path/'a', seed=1).items.split.tolist()!=a.items.split.tolist()

def test_suggested(tmp_path, both):
    d = load(NAME, compact(tmp_path/'x'), split='suggested')
    assert d.items.groupby('patient').split.first().tolist()==['train','valid','test']*2
    assert both[0].take(range(3)).info.missing=='empty' and load(NAME, tmp_path/'x', split='none').items.split.eq('').all()
    with pytest.raises(ArgumentError, match='only the compact copy'): load(NAME, both[0].root, split='suggested')
    with pytest.raises(ArgumentError, match="use 'grouped'"): load(NAME, tmp_path/'x', split='paper')

def test_what_is_wrong(tmp_path):
    root = published(tmp_path/NAME)
    who = 'TCGA_ZZ_0001_20000102'
    (root/f'kaggle_3m/{who}/{who}_2_mask.tif').unlink()
    (root/f'kaggle_3m/{who}/{who}_3_mask.tif').write_bytes(b'?')
    save(np.zeros((9,9), np.uint8), root/f'kaggle_3m/{who}/{who}_4_mask.tif')
    (root/f'kaggle_3m/{who}/{who}_5.tif').write_bytes((root/f'kaggle_3m/{who}/{who}_5.tif').read_bytes()[:400])
    got = check(root)
    assert got.file.str.rsplit('_', n=1).str[0].str.rsplit('/', n=1).str[-1].tolist()==[f'{who}_2',f'{who}_3',f'{who}_4',who] and got.attrs['images']==27
    assert 'no file' in got.problem[0] and '9x9' in got.problem[2]
    with pytest.raises(DataError, match=f'{who}_2_mask.tif'): load(NAME, root)

def test_a_manifest_that_contradicts_itself(tmp_path):
    root = compact(tmp_path/NAME)
    t = pd.read_csv(root/'manifest.csv', keep_default_na=False)
    t.loc[t.slice==3,'class'] = 'no_tumor'
    t.to_csv(root/'manifest.csv', index=False)
    assert check(root).problem.tolist()==["class 'no_tumor' with a mask"]*6
    t.drop(columns='patient').to_csv(root/'manifest.csv', index=False)
    with pytest.raises(DataError, match='no column patient'): load(NAME, root)

def test_a_wrong_folder(tmp_path):
    with pytest.raises(DataError, match='Kaggle'): load(NAME, tmp_path)
    (tmp_path/'kaggle_3m/TCGA_ZZ_0000_20000101').mkdir(parents=True)
    with pytest.raises(DataError, match='got no slices; expected folders kaggle_3m/TCGA_'): load(NAME, tmp_path)

# --- the real slices -----------------------------------------------------------------------------------
def counts(root):
    "The table under 'Counts' in the README of a compact copy: split -> column -> number"
    lines = re.split(r'\n## ', (root/'README.md').read_text(encoding='utf-8').split('## Counts')[1])[0].strip().splitlines()
    rows = [[c.strip() for c in o.strip('| ').split('|')] for o in lines if o.startswith('|') and '---' not in o]
    return {r[0]:dict(zip(rows[0][1:], map(int, r[1:]))) for r in rows[1:]}

def test_real_counts():
    root = real(NAME)
    d = load(NAME, root.parent, split='none')
    assert {k:{c:int(t) for c,t in v.items()} for k,v in d.describe().rename(index={'no split':'none'}).drop('all').to_dict('index').items()}==counts(root)
    assert d.items.patient.nunique()==110 and d.info.images==3929 and sum(o[2] for o in d.info.counts)==3929

def test_real_splits():
    d = load(NAME, real(NAME), split='suggested')
    assert d.items.groupby('split').patient.nunique().to_dict()==dict(train=77, valid=9, test=24) and not len(leaks(d))
    g = load(NAME, real(NAME))
    assert g.items.groupby('split').patient.nunique().to_dict()==dict(train=77, valid=11, test=22) and not len(leaks(g))

def test_real_masks():
    "Every mask outlines the share of its picture that the manifest says"
    root = real(NAME)
    d = load(NAME, root)
    share = pd.read_csv(root/'manifest.csv').set_index('file').mask_fraction[d.items.file].to_numpy()
    idx = range(0, len(d), 7)
    assert np.allclose([d.masks(i).mean() for i in idx], share[list(idx)], atol=1e-5) and (share>0).astype(int).tolist()==d.labels.tolist()
    assert all(d.image(i).shape==(256,256,3) for i in (0,500,1160))

def test_audit_of_the_toy(both): assert 'No problems' in str(audit(both[0].root))
