"Brain tumour MRI (3,264): both layouts, two and four classes, near twins, splits, faults, the real set"
import re
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from conftest import real
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data.splits import choose_split
from medattn_nb.data.datasets import available, check, check_leak, leaks, load
from medattn_nb.data.quality import near_groups

NAME = 'brain-tumor-mri-3264'
KINDS = 'no_tumor','glioma_tumor','meningioma_tumor','pituitary_tumor'

def cloud(seed): return (gaussian_filter(np.random.default_rng(seed).standard_normal((40,32)), 3)*300+110).clip(0, 255)
def write(p, a, **kw):
    p.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(a).clip(0, 255).astype(np.uint8)).save(p, **kw)

@pytest.fixture
def official(tmp_path):
    "Four training and three test images a class; of the latter one is a copy, one a brightened copy, and image (10) sorts before image (2)"
    root = tmp_path/'sets'/NAME
    for k,kind in enumerate(KINDS):
        for i,n in enumerate(('1','2','10','11')): write(root/f'Training/{kind}/image({n}).jpg', cloud(100*k+i), quality=95)
        (root/f'Testing/{kind}').mkdir(parents=True)
        (root/f'Testing/{kind}/image(1).jpg').write_bytes((root/f'Training/{kind}/image(10).jpg').read_bytes())
        write(root/f'Testing/{kind}/image(2).jpg', cloud(100*k)*.8+30, quality=95)
        write(root/f'Testing/{kind}/image.jpg', cloud(100*k+50), quality=95)
    return root

def compact(src, dest, **change):
    "The same in the layout of the compact copy, rows in another order"
    d = load(NAME, src)
    m = d.items.assign(src=d.items.file, source_path=d.items.name, near_group=pd.factorize(d.items.group)[0]+1, split=d.items.split, **{'class':d.items.kind})
    m['file'] = [n.replace('(','_').replace(')','_') for n in m.name]
    for a,b in zip(m.src, m.file):
        (dest/b).parent.mkdir(parents=True, exist_ok=True)
        (dest/b).write_bytes((src/a).read_bytes())
    m = m.sample(frac=1, random_state=1)[['file','class','split','source_path','near_group']].assign(**change)
    m.to_csv(dest/'manifest.csv', index=False)
    return dest

@pytest.mark.parametrize('kw', [{}, dict(classes=4), dict(split='paper'), dict(split='grouped', seed=3), dict(classes=4, split='grouped')], ids=str)
def test_layouts_agree(official, tmp_path, kw):
    a,b = load(NAME, official, **kw),load(NAME, compact(official, tmp_path/'copy'), **kw)
    assert a.items.drop(columns='file').equals(b.items.drop(columns='file')) and a.split_fingerprint==b.split_fingerprint
    assert (a.items.file!=b.items.file).any() and a.info==b.info

def test_table(official):
    d = load(NAME, official)
    assert d.classes==['no_tumor','tumor'] and d.describe().to_numpy().tolist()==[[4,12,16],[3,9,12],[7,21,28]]
    assert d.items.name.tolist()[:4]==[f'Training/no_tumor/image({n}).jpg' for n in ('1','10','11','2')] and d.items.name[16]=='Testing/no_tumor/image(1).jpg'
    assert d.tensors(16).shape==(28,1,16,16) and (d.labels==(d.items.kind!='no_tumor')).all()
    four = load(NAME, official, classes=4)
    assert four.classes==list(KINDS) and four.items['class'].tolist()==d.items.kind.tolist() and four.describe().loc['all'].tolist()==[7]*4+[28]
    assert check(official).empty and check(official).attrs['images']==28 and check(official.parent).attrs['images']==28

def test_groups_are_near_twins(official):
    d = load(NAME, official)
    g = d.items.set_index('name').group
    for kind in KINDS:
        assert g[f'Training/{kind}/image(10).jpg']==g[f'Testing/{kind}/image(1).jpg']==f'Testing/{kind}/image(1).jpg'
        assert g[f'Training/{kind}/image(1).jpg']==g[f'Testing/{kind}/image(2).jpg']
    assert g.nunique()==28-8 and len(leaks(d))==8

@pytest.mark.parametrize('seed', range(3))
def test_splits(official, seed):
    paper,grouped = (load(NAME, official, split=o, seed=seed) for o in ('paper','grouped'))
    assert check_leak(grouped) is grouped
    for d in (paper,grouped): assert set(d.items.split)=={'train','valid'} and abs((d.items.split=='valid').sum()-5.6)<=2.5
    assert paper.items.drop(columns='split').equals(load(NAME, official).items.drop(columns='split'))

def test_the_paper_s_split_leaks(official): assert any(len(leaks(load(NAME, official, split='paper', seed=s))) for s in range(3))

def test_options(official):
    with pytest.raises(ArgumentError, match='use 2'): load(NAME, official, classes=3)
    with pytest.raises(ArgumentError, match='choose from official, paper, grouped'): load(NAME, official, split='random')
    with pytest.raises(ArgumentError, match='options of brain-tumor-mri-3264: classes, split, seed'): load(NAME, official, kind=1)
    with pytest.raises(ArgumentError, match='choose from paper, grouped'): choose_split(load(NAME, official), 'official', {'train':1}, official=False)

def test_faults(official, tmp_path):
    (official/'Testing/no_tumor').rename(official/'x')
    with pytest.raises(DataError, match='Testing/no_tumor: got no images; expected a folder Testing with the folders no_tumor'): load(NAME, official)
    (official/'Training').rename(official/'Train')
    assert check(official).file.tolist()==[f'Training/{k}' for k in KINDS]+['Testing/no_tumor']
    (tmp_path/NAME/'elsewhere').mkdir(parents=True)
    with pytest.raises(DataError, match='a folder without its files; looked .*Training/glioma_tumor'): load(NAME, tmp_path)

def test_a_picture_that_cannot_be_read(official):
    (official/'Training/glioma_tumor/image(2).jpg').write_bytes(b'no picture')
    (official/'Testing/pituitary_tumor/image.jpg').write_bytes(b'')
    with pytest.raises(DataError, match=re.escape('Training/glioma_tumor/image(2).jpg: got a file that cannot be read')): load(NAME, official)
    t = check(official)
    assert t.file.tolist()==['Training/glioma_tumor/image(2).jpg','Testing/pituitary_tumor/image.jpg'] and t.attrs['images']==26

def test_faults_of_a_manifest(official, tmp_path):
    root = compact(official, tmp_path/'copy')
    m = pd.read_csv(root/'manifest.csv', dtype=str)
    gone = m.file[0]; (root/gone).unlink(); m.loc[1,'class'] = 'cyst'; m.loc[2,'split'] = 'fold1'
    m.to_csv(root/'manifest.csv', index=False)
    assert sorted(check(root).file)==sorted([gone,m.file[1],m.file[2]])
    with pytest.raises(DataError, match='a class that this set has not; expected one of no_tumor'): load(NAME, root)
    m.drop(columns='source_path').to_csv(root/'manifest.csv', index=False)
    assert check(root).file.tolist()==['manifest.csv'] and 'source_path' in check(root).fix[0]

def test_no_foreign_folder_is_taken_for_it(tmp_path):
    for o in ('Training/glioma','train/glioma_tumor','Training'): write(tmp_path/'own'/o/'a.png', cloud(1))
    assert not available(tmp_path/'own').set_index('name').found[NAME]

# --- the real set --------------------------------------------------------------------------------------
def readme_counts(root):
    "The table under '## Counts' of a README, rows by split"
    rows = [[c.strip() for c in o.strip('| \n').split('|')] for o in (root/'README.md').read_text().split('## Counts')[1].split('##')[0].splitlines() if o.startswith('|')]
    return pd.DataFrame([[int(c) for c in o[1:]] for o in rows[2:]], index=[o[0] for o in rows[2:]], columns=rows[0][1:])

def test_real_counts():
    root = real(NAME)
    want,d = readme_counts(root),load(NAME, root, classes=4)
    assert d.describe()[want.columns].to_numpy().tolist()==want.to_numpy().tolist() and d.describe().index.tolist()==want.index.tolist()
    two = load(NAME, root)
    assert sum(n for *_,n in two.info.counts)==two.info.images==len(two)==3264
    for info,x in ((two.info,two),(d.info,d)):
        for s,c,n in info.counts: assert x.describe().loc[s,c]==n
    assert two.labels.sum()==2764 and two.image(0).ndim==2

def test_real_twins():
    "Our groups against those of the manifest; they are equal here, and a few may differ with another resampling"
    root = real(NAME)
    d = load(NAME, root, classes=4)
    ours = pd.Series(near_groups(d)).groupby(d.items.group).agg(['nunique','first'])
    split_up,joined = (ours['nunique']>1).sum(),len(ours)-ours['first'].nunique()
    assert split_up<=10 and joined<=10 and abs(d.items.group.nunique()-2823)<=10
    test = d.items.split=='test'
    seen = test & d.items.group.isin(d.items.group[~test])
    assert abs(seen.sum()-259)<=3 and d.items['class'][seen].value_counts()['no_tumor']==105
    sha = pd.Series(d.contents)
    assert (test & sha.isin(sha[~test])).sum()==251
    assert leaks(load(NAME, root, split='grouped')).empty and len(leaks(load(NAME, root, split='paper')))>100
