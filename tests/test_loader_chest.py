"Chest X-rays: the pneumonia set in both layouts, persons from names, identical files; the COVID-19 database and its editions"
import gc, re, warnings
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from conftest import real
from medattn_nb.core import ArgumentError, DataError, MissingPackage
from medattn_nb.data import loading
from medattn_nb.data.chest import patient_of, subtype_of
from medattn_nb.data.loading import file_keys, merge_groups, read_sheet
from medattn_nb.data.datasets import available, check, check_leak, leaks, load
from test_loader_brainmri import readme_counts

NAME,COVID = 'chest-xray-pneumonia','covid19-radiography'

def noise(p, seed, hw=(12,14), **kw):
    p.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, hw, dtype=np.uint8)).save(p, **kw)

FILES = {'train/NORMAL':['IM-0115-0001.jpeg','IM-0117-0001-0001.jpeg','IM-0117-0001-0002.jpeg','NORMAL2-IM-0115-0001.jpeg'],
         'train/PNEUMONIA':['person10_virus_35.jpeg','person1_bacteria_1.jpeg','person1_bacteria_2.jpeg','person2_bacteria_3.jpeg','person2_virus_9_1.jpeg'],
         'val/NORMAL':['NORMAL2-IM-1427-0001.jpeg'], 'val/PNEUMONIA':['person1946_bacteria_4874.jpeg'],
         'test/NORMAL':['IM-0001-0001.jpeg','NORMAL2-IM-0095-0001.jpeg','NORMAL2-IM-0096-0001.jpeg'], 'test/PNEUMONIA':['person1_virus_7.jpeg','person128_bacteria_606.jpeg']}

@pytest.fixture
def official(tmp_path):
    root = tmp_path/'sets'/NAME
    for n,(folder,files) in enumerate(FILES.items()):
        for i,f in enumerate(files): noise(root/folder/f, 100*n+i, (10+i,12))
    (root/'test/NORMAL/NORMAL2-IM-0096-0001.jpeg').write_bytes((root/'test/NORMAL/NORMAL2-IM-0095-0001.jpeg').read_bytes())
    (root/'train/NORMAL/.DS_Store').write_bytes(b'x'); (root/'train/NORMAL/._IM-0115-0001.jpeg').write_bytes(b'x')
    return root

def compact(src, dest):
    d = load(NAME, src)
    m = d.items.assign(src=d.items.file, source_path='dataset/'+d.items.file, split=d.items.split.replace('valid','val'), file=[o.replace('.jpeg','.jpg') for o in d.items.file])
    for a,b in zip(m.src, m.file):
        (dest/b).parent.mkdir(parents=True, exist_ok=True)
        (dest/b).write_bytes((src/a).read_bytes())
    m.sample(frac=1, random_state=2)[['file','class','split','subtype','source_path']].to_csv(dest/'manifest.csv', index=False)
    return dest

# --- names and groups ----------------------------------------------------------------------------------
@pytest.mark.parametrize('name,person,kind', [('person12_bacteria_46.jpeg','person12','bacteria'), ('person447_virus_921_1.jpeg','person447','virus'), ('IM-0115-0001.jpeg','IM-0115',''),
    ('IM-0011-0001-0002.jpeg','IM-0011',''), ('NORMAL2-IM-0385-0001-0001.jpeg','NORMAL2-IM-0385',''), ('scan 7.v2.png','scan 7.v2',''), ('personal.jpg','personal','')])
def test_names(name, person, kind): assert (patient_of(name),subtype_of(name))==(person,kind)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30))
def test_merged_groups_are_connected_components(rows):
    gs,ks = [f'g{a}' for a,_ in rows],[f'k{b}' for _,b in rows]
    got = merge_groups(gs, ks)
    want = list(range(len(rows)))
    for _ in rows:
        for i in range(len(rows)):
            for j in range(len(rows)):
                if gs[i]==gs[j] or ks[i]==ks[j]: want[i] = want[j] = min(want[i], want[j])
    assert len(set(zip(got, want)))==len(set(got))==len(set(want))
    for i,o in enumerate(got): assert o==min(g for g,p in zip(gs, got) if p==o)

def test_file_keys(tmp_path):
    for f,b in (('a',b'11'),('b',b'12'),('c',b'11'),('d',b'1'),('e',b''),('f',b'')): (tmp_path/f).write_bytes(b)
    k = file_keys(tmp_path, [*'abcdef','gone','lost'])
    assert k[0]==k[2] and k[4]==k[5] and len(set(k))==6 and file_keys(tmp_path, [])==[]

# --- pneumonia -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw', [{}, dict(classes=3), dict(split='paper', seed=2), dict(split='grouped'), dict(classes=3, split='grouped')], ids=str)
def test_layouts_agree(official, tmp_path, kw):
    a,b = load(NAME, official, **kw),load(NAME, compact(official, tmp_path/'copy'), **kw)
    assert a.items.drop(columns='file').equals(b.items.drop(columns='file')) and a.split_fingerprint==b.split_fingerprint and a.info==b.info

def test_table(official):
    d = load(NAME, official)
    assert d.describe().to_numpy().tolist()==[[4,5,9],[1,1,2],[3,2,5],[8,8,16]]
    assert d.items.group.tolist()==['train/IM-0115']+['train/IM-0117']*2+['train/NORMAL2-IM-0115','train/person10']+['train/person1']*2+['train/person2']*2+[
        'train/NORMAL2-IM-1427','train/person1946','test/IM-0001']+['test/NORMAL2-IM-0095']*2+['test/person128','test/person1']
    assert d.items.subtype.tolist()==['']*4+['virus']+['bacteria']*3+['virus','','bacteria']+['']*3+['bacteria','virus'] and leaks(d).empty
    three = load(NAME, official, classes=3)
    assert three.classes==['NORMAL','bacteria','virus'] and three.describe().loc['all'].tolist()==[8,5,3,16]
    assert check(official).empty and check(official.parent).attrs['images']==16

def test_without_validation_and_in_wrapping_folders(official, tmp_path):
    import shutil
    shutil.rmtree(official/'val')
    bare = load(NAME, official)
    assert bare.describe().index.tolist()==['train','test','all']
    assert bare.info.images==sum(n for *_,n in bare.info.counts) and {s for s,*_ in bare.info.counts}=={'train','test'}
    for inner in ('chest_xray','chest_xray/chest_xray'):
        dest = tmp_path/inner.replace('/','-')/NAME
        shutil.copytree(official, dest/inner)
        d = load(NAME, dest.parent)
        assert d.split_fingerprint==bare.split_fingerprint and d.items.file[0]==f'{inner}/{bare.items.file[0]}'

def test_splits(official):
    for s in range(3):
        g = load(NAME, official, split='grouped', seed=s)
        assert check_leak(g, content=True) is g and set(g.items.split)=={'train','valid'}
    assert any(len(leaks(load(NAME, official, split='paper', seed=s))) for s in range(3))

def test_options(official):
    with pytest.raises(ArgumentError, match='use 2'): load(NAME, official, classes=4)
    with pytest.raises(ArgumentError, match='choose from official, paper, grouped'): load(NAME, official, split='kfold')

def test_faults(official):
    noise(official/'train/PNEUMONIA/someone.jpeg', 1)
    assert len(load(NAME, official))==17
    with pytest.raises(DataError, match='train/PNEUMONIA/someone.jpeg: got no kind of pneumonia in the name; expected a name such as'): load(NAME, official, classes=3)
    (official/'test/PNEUMONIA').rename(official/'y')
    (official/'train/NORMAL/IM-0115-0001.jpeg').write_bytes(b'')
    assert sorted(check(official).file)==['test/PNEUMONIA','train/NORMAL/IM-0115-0001.jpeg']
    with pytest.raises(DataError, match='test/PNEUMONIA: got no images; expected folders train, val and test'): load(NAME, official)

def test_faults_of_a_manifest(official, tmp_path):
    root = compact(official, tmp_path/'copy')
    m = pd.read_csv(root/'manifest.csv', dtype=str)
    (root/m.file[0]).unlink(); m.loc[1,'class'] = 'COVID'; m.to_csv(root/'manifest.csv', index=False)
    assert sorted(check(root).file)==sorted(m.file[:2])
    m.drop(columns='source_path').to_csv(root/'manifest.csv', index=False)
    assert check(root).problem.tolist()==['no column source_path']

def test_no_foreign_folder_is_taken_for_it(tmp_path):
    for o in ('train/PNEUMONIA/a.png','train/NORMAL/a.png','test/PNEUMONIA/a.png','Viral Pneumonia/a.png','COVID-19/a.png','COVID/a.png'): noise(tmp_path/'own'/o, 1)
    found = available(tmp_path/'own').set_index('name').found
    assert not found[NAME] and not found[COVID]

# --- tables --------------------------------------------------------------------------------------------
def test_sheets(tmp_path):
    t = pd.DataFrame({'FILE NAME':['a(1)','b'], ' n ':[1,2.5], 'URL':['x',None]})
    t.to_excel(tmp_path/'t.xlsx', index=False); t.to_csv(tmp_path/'t.csv', index=False); t.to_csv(tmp_path/'semi.csv', index=False, sep=';', encoding='utf-8-sig')
    for o in ('t.xlsx','t.csv','semi.csv'):
        got = read_sheet(tmp_path/o)
        assert got.columns.tolist()==['FILE NAME','n','URL'] and got['FILE NAME'].tolist()==['a(1)','b'] and got.URL.tolist()==['x',''] and float(got.n[0])==1, o
    assert read_sheet(tmp_path/'t.xlsx').n.tolist()==['1','2.5']

def test_a_sheet_is_closed_after_reading(tmp_path):
    "An open file cannot be moved or deleted on Windows"
    pd.DataFrame({'a':[1]}).to_excel(tmp_path/'t.xlsx', index=False)
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always', ResourceWarning)
        read_sheet(tmp_path/'t.xlsx'); gc.collect()
    assert not [str(o.message) for o in seen if 't.xlsx' in str(o.message)]

@pytest.mark.parametrize('f,content', [('a.xlsx',b'no'), ('a.xls',b'no'), ('a.xlsx',None), ('a.xls',None), ('a.csv',None), ('e.xlsx',b''), ('e.csv',b'')])
def test_sheets_that_are_none(tmp_path, f, content):
    if content is not None: (tmp_path/f).write_bytes(content)
    with pytest.raises(DataError, match=f'{f}: got (no file|a file that cannot be read as a table)'): read_sheet(tmp_path/f, f)

def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, 'find_spec', lambda o: None)
    with pytest.raises(MissingPackage, match='pip install openpyxl'): read_sheet(tmp_path/'t.xlsx')
    with pytest.raises(MissingPackage, match='pip install xlrd'): read_sheet(tmp_path/'t.xls')

# --- COVID-19 radiography ------------------------------------------------------------------------------
@pytest.fixture
def first(tmp_path):
    "Twelve images a class; COVID-19 images 1 to 3 come from one page, and two normal ones are identical"
    top = tmp_path/'db'/COVID/'COVID-19 Radiography Database'
    for k,cls in enumerate(('COVID-19','NORMAL','Viral Pneumonia')):
        for i in range(1, 13): noise(top/cls/f'{cls} ({i}).png', 50*k+i)
    (top/'NORMAL/NORMAL (12).png').write_bytes((top/'NORMAL/NORMAL (2).png').read_bytes())
    urls = ['https://example.org/a']*3+[f'https://example.org/{i}' for i in range(4, 12)]+[None]
    pd.DataFrame({'FILE NAME':[f'COVID-19({i})' if i%2 else f'COVID-19 ({i})' for i in range(1, 13)], 'FORMAT':'PNG', 'SIZE':'1024*1024', 'URL':urls}).to_excel(top/'COVID-19.metadata.xlsx', index=False)
    return top

def test_radiography(first):
    d = load(COVID, first.parent.parent)
    assert d.classes==['NORMAL','Viral Pneumonia','COVID-19'] and d.describe().loc['all'].tolist()==[12,12,12,36] and set(d.items.split)=={'train','test'}
    assert d.items.name.tolist()[:3]==['NORMAL (1).png','NORMAL (2).png','NORMAL (3).png'] and d.items.name[24]=='COVID-19 (1).png'
    assert d.items.group[24:].tolist()==['https://example.org/a']*3+[f'https://example.org/{i}' for i in range(4, 12)]+['COVID-19 (12).png']
    assert d.items.group[11]==d.items.group[1]=='NORMAL (12).png' and d.items.group.nunique()==36-3 and check_leak(d, content=True) is d
    inner = load(COVID, first)
    assert inner.items.drop(columns='file').equals(d.items.drop(columns='file')) and check(first.parent).empty

def test_radiography_splits(first):
    for s in range(3): check_leak(load(COVID, first, seed=s), content=True)
    paper = [load(COVID, first, split='paper', seed=s) for s in range(6)]
    assert all((o.items.split=='test').sum() in (3,4,5) for o in paper) and any(len(leaks(o)) for o in paper)
    with pytest.raises(ArgumentError, match='choose from paper, grouped'): load(COVID, first, split='official')
    with pytest.raises(ArgumentError, match="use 'first'"): load(COVID, first, edition='2021')

def test_radiography_without_or_with_another_table(first):
    t = pd.read_excel(first/'COVID-19.metadata.xlsx')
    (first/'COVID-19.metadata.xlsx').unlink()
    assert load(COVID, first).items.group[24:].nunique()==12
    t.to_csv(first/'COVID-19.metadata.csv', index=False)
    assert load(COVID, first).items.group[24:].nunique()==10
    t.drop(columns='URL').to_csv(first/'COVID-19.metadata.csv', index=False)
    with pytest.raises(DataError, match='COVID-19.metadata.csv: got columns FILE NAME, FORMAT, SIZE; expected FILE NAME and URL'): load(COVID, first)
    assert check(first).file.tolist()==['COVID-19.metadata.csv'] and check(first).attrs['images']==36

@pytest.mark.parametrize('folders', [('COVID/images','Normal/images','Viral Pneumonia/images'), ('COVID','NORMAL','Viral Pneumonia')])
def test_later_editions(tmp_path, folders):
    root = tmp_path/COVID
    for k,o in enumerate((*folders,'Lung_Opacity/images')):
        for i in range(1, 5): noise(root/'COVID-19_Radiography_Dataset'/o/f'{o.split("/")[0]}-{i}.png', 9*k+i); noise(root/'COVID-19_Radiography_Dataset'/o.replace('images','masks')/f'm-{i}.png', 1) if 'images' in o else None
    (root/'COVID-19_Radiography_Dataset/COVID/images').mkdir(exist_ok=True, parents=True) if 'images' in folders[0] else (root/'COVID-19_Radiography_Dataset').rename(root/'COVID-19 Radiography Database')
    with pytest.raises(DataError, match=r"got a later edition \(12 images of the three classes.*; expected the first with 219"): load(COVID, tmp_path)
    d = load(COVID, tmp_path, edition='later')
    assert d.describe().loc['all'].tolist()==[4,4,4,12] and 'later edition' in d.info.title and d.info.counts==() and not any('mask' in o for o in d.items.file)
    assert check(root).problem.str.startswith('a later edition').all() and len(check(root))==1

def test_more_covid_images_than_the_first_edition_has(first):
    for i in range(13, 221): (first/f'COVID-19/COVID-19 ({i}).png').write_bytes((first/'COVID-19/COVID-19 (4).png').read_bytes())
    with pytest.raises(DataError, match='a later edition'): load(COVID, first)

def test_radiography_faults(first):
    (first/'Viral Pneumonia/Viral Pneumonia (3).png').write_bytes(b'broken')
    (first/'COVID-19').rename(first/'Covid positive')
    with pytest.raises(DataError, match='COVID-19 Radiography Database/COVID-19: got no images; expected the folders COVID-19, NORMAL and Viral Pneumonia'): load(COVID, first.parent)
    assert sorted(check(first.parent).file)==['COVID-19 Radiography Database/COVID-19','COVID-19 Radiography Database/Viral Pneumonia/Viral Pneumonia (3).png']

# --- the real set --------------------------------------------------------------------------------------
def test_real_counts():
    root = real(NAME)
    want,d = readme_counts(root),load(NAME, root)
    assert d.describe()[want.columns].to_numpy().tolist()==want.to_numpy().tolist() and d.describe().index.tolist()==want.index.tolist()
    test = d.items[d.items.split=='test']
    assert test.subtype.value_counts().to_dict()=={'bacteria':242, '':234, 'virus':148} and ((test['class']=='PNEUMONIA')==(test.subtype!='')).all()
    assert d.items.group.str.match(r'(train|test)/(person\d+|(NORMAL2-)?IM-\d+)$').all() and leaks(d).empty and leaks(d, content=True).empty
    published = {(s,c):n for s,c,n in d.info.counts}
    assert published['test','NORMAL']==234 and published['test','PNEUMONIA']==390 and sum(published.values())==d.info.images==5856

def test_real_groups():
    "Identical files share a group, and the grouped split divides neither them nor a person"
    d = load(NAME, real(NAME), split='grouped')
    sha = pd.Series(d.contents)
    assert sha.duplicated().sum()==6 and (d.items.group.groupby(sha).nunique()==1).all() and check_leak(d) is d
    assert len(leaks(load(NAME, real(NAME), split='paper')))>300
    raw = pd.read_csv(real(NAME)/'manifest.csv', dtype=str, keep_default_na=False).set_index('file')
    assert (raw.subtype[d.items.file].to_numpy()==d.items.subtype.to_numpy()).all()
