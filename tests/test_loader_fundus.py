"Fundus sets: IDRiD in both layouts and both tasks, MESSIDOR with tables in three formats and its errata"
import re, shutil, struct
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from conftest import real
from medattn_nb.core import ArgumentError, DataError, MissingPackage
from medattn_nb.data import loading
from medattn_nb.data.loading import read_sheet
from medattn_nb.data.datasets import available, check, check_leak, leaks, load
from medattn_nb.data.fundus import BASES, _disputed, _duplicates, _regraded
from medattn_nb.data.quality import audit
from test_loader_brainmri import readme_counts

IDRID,MESSIDOR = 'idrid-fundus','messidor'
STRUCTURES = {'1. Microaneurysms':'MA', '2. Haemorrhages':'HE', '3. Hard Exudates':'EX', '4. Soft Exudates':'SE', '5. Optic Disc':'OD'}
PLANES = 'microaneurysm','haemorrhage','hard_exudate','soft_exudate','optic_disc'
BOXES = dict(MA=(2,2,3,3), HE=(5,3,9,6), EX=(8,4,12,8), SE=(14,2,17,5), OD=(16,4,21,9)) # HE meets EX, SE meets OD: (left, top, right, bottom)

def noise(p, *seed, hw=(14,22)):
    p.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(list(seed)).integers(0, 256, (*hw,3), dtype=np.uint8)).save(p)

# --- IDRiD ---------------------------------------------------------------------------------------------
@pytest.fixture
def official(tmp_path):
    "Seven training and four testing images with grades, four and two with outlines; training 3 and testing 2 are one file"
    root = tmp_path/'sets'/IDRID
    seg,grad = root/'A. Segmentation',root/'B. Disease Grading'
    for part,ns in (('a. Training Set',(1,2,3,10)),('b. Testing Set',(55,56))):
        for i in ns:
            noise(seg/f'1. Original Images/{part}/IDRiD_{i:02d}.jpg', 5, i)
            for d,a in STRUCTURES.items():
                if a=='SE' and i%2==0 or a=='HE' and i==3: continue
                p = seg/f'2. All Segmentation Groundtruths/{part}/{d}/IDRiD_{i:02d}_{a}.tif'
                p.parent.mkdir(parents=True, exist_ok=True)
                m = Image.new('RGB', (22,14)); m.paste((255,0,0), BOXES[a]); m.save(p)
    for side,word,rows in (('a','Training',[(0,0),(1,0),(2,1),(2,2),(3,2),(4,2),(4,0)]),('b','Testing',[(0,0),(4,1),(2,2),(1,0)])):
        for i,_ in enumerate(rows, 1): noise(grad/f'1. Original Images/{side}. {word} Set/IDRiD_{i:03d}.jpg', ord(side), i)
        (grad/'2. Groundtruths').mkdir(exist_ok=True)
        text = 'Image name,Retinopathy grade,Risk of macular edema ,,\n'+''.join(f'IDRiD_{i:03d},{g},{d},,\n' for i,(g,d) in enumerate(rows, 1))
        (grad/f'2. Groundtruths/{side}. IDRiD_Disease Grading_{word} Labels.csv').write_text(text)
    (grad/'1. Original Images/b. Testing Set/IDRiD_002.jpg').write_bytes((grad/'1. Original Images/a. Training Set/IDRiD_003.jpg').read_bytes())
    return root

def compact(src, dest):
    rows = []
    for task in ('grading','segmentation'):
        d = load(IDRID, src, task=task)
        for i,r in enumerate(d.items.to_dict('records')):
            f,mask = (f"grading/{r['split']}/{r['class']}/{r['name']}.jpg",'') if task=='grading' else (f"segmentation/{r['split']}/images/{r['name']}.jpg",f"segmentation/{r['split']}/masks/{r['name']}.png")
            (dest/f).parent.mkdir(parents=True, exist_ok=True)
            (dest/f).write_bytes((src/r['file']).read_bytes())
            if mask:
                a = np.zeros((14,22), np.uint8)
                for k in (4,3,2,1,0): a[d.masks(i)[k]] = k+1
                (dest/mask).parent.mkdir(parents=True, exist_ok=True)
                p = Image.fromarray(a, 'L').convert('P'); p.putdata(a.ravel().tolist()); p.putpalette([0,0,0,255,0,0,200,0,90,255,255,0,255,160,0,0,160,255]); p.save(dest/mask)
            rows.append({'file':f, 'class':'lesion_map' if mask else r['class'], 'split':r['split'], 'task':task, 'dme_risk':'' if mask else r['dme'], 'mask':mask, 'source_path':'dataset/'+r['file']})
    pd.DataFrame(rows).sample(frac=1, random_state=3).to_csv(dest/'manifest.csv', index=False)
    return dest

@pytest.mark.parametrize('kw', [{}, dict(target='referable'), dict(target='dme'), dict(split='paper', seed=1), dict(split='grouped')], ids=str)
def test_grading_layouts_agree(official, tmp_path, kw):
    a,b = load(IDRID, official, **kw),load(IDRID, compact(official, tmp_path/'copy'), **kw)
    assert a.items.drop(columns='file').equals(b.items.drop(columns='file')) and a.split_fingerprint==b.split_fingerprint and a.info==b.info

def test_grading_table(official):
    d = load(IDRID, official)
    assert d.describe().to_numpy().tolist()==[[1,1,2,1,2,7],[1,1,1,0,1,4],[2,2,3,1,3,11]] and d.info.task=='classification'
    assert d.items.dme.tolist()==[0,0,1,2,2,2,0,0,1,2,0] and d.items['mask'].isna().all() and d.masks(0) is None
    assert d.items.group.tolist()==[f'train/IDRiD_00{i}' if i!=3 else 'test/IDRiD_002' for i in range(1, 8)]+[f'test/IDRiD_00{i}' for i in range(1, 5)]
    assert leaks(d).index.tolist()==['test/IDRiD_002']
    for s in range(4): check_leak(load(IDRID, official, split='grouped', seed=s), content=True)
    ref,dme = load(IDRID, official, target='referable'),load(IDRID, official, target='dme')
    assert (ref.labels==(d.items.grade>=2)).all() and (dme.labels==d.items.dme).all() and ref.classes==['not_referable','referable'] and dme.classes==['dme0','dme1','dme2']
    assert check(official).empty and check(official.parent).attrs['images']==11 and d.tensors(8).shape==(11,3,8,8)

def test_segmentation_layouts(official, tmp_path):
    a,b = load(IDRID, official, task='segmentation'),load(IDRID, compact(official, tmp_path/'copy'), task='segmentation')
    same = ['label','class','group','split','name']
    assert a.items[same].equals(b.items[same]) and a.info.masks==b.info.masks==PLANES and a.info.task=='segmentation' and not a.info.exclusive and b.info.exclusive
    assert a.describe().to_numpy().tolist()==[[4,4],[2,2],[6,6]] and a.items.name.tolist()==['IDRiD_01','IDRiD_02','IDRiD_03','IDRiD_10','IDRiD_55','IDRiD_56']
    for i in range(6):
        m,p = a.masks(i),b.masks(i)
        assert m.shape==p.shape==(5,14,22) and (m.any(0)==p.any(0)).all() and p.sum(0).max()==1 and (p<=m).all()
        alone = m.sum(0)==1
        name = a.items.name[i]
        soft,blood = int(name[-2:])%2==1,name!='IDRiD_03'
        assert (m[:,alone]==p[:,alone]).all() and (m.sum(0)>1).any()==(soft or blood)
    area = lambda o: (BOXES[o][2]-BOXES[o][0])*(BOXES[o][3]-BOXES[o][1])
    assert a.masks(0).sum((1,2)).tolist()==[area(o) for o in ('MA','HE','EX','SE','OD')]
    assert a.masks(1).sum((1,2)).tolist()[3]==0 and a.masks(2).sum((1,2)).tolist()[1]==0
    assert a.mask_tensors(16, kind='planes').shape==(6,5,16,16)

def test_parts_in_folders_of_their_own(official, tmp_path):
    for n,form in enumerate(('{0}/{0}','{1}/{0}')):
        dest = tmp_path/str(n)/IDRID
        for o in ('A. Segmentation','B. Disease Grading'): shutil.copytree(official/o, dest/form.format(o, o.replace(' ','%20')))
        for task in ('grading','segmentation'): assert load(IDRID, tmp_path/str(n), task=task).split_fingerprint==load(IDRID, official, task=task).split_fingerprint
    (tmp_path/'half'/IDRID).mkdir(parents=True)
    shutil.copytree(official/'A. Segmentation', tmp_path/'half'/IDRID/'A. Segmentation')
    assert len(load(IDRID, tmp_path/'half', task='segmentation'))==6
    with pytest.raises(DataError, match='a. IDRiD_Disease Grading_Training Labels.csv: got no table of this name; expected a table with the columns Image name'): load(IDRID, tmp_path/'half')

def test_idrid_options(official):
    with pytest.raises(ArgumentError, match='choose from grading, segmentation'): load(IDRID, official, task='localisation')
    with pytest.raises(ArgumentError, match='choose from grade, referable, dme'): load(IDRID, official, target='grades')
    with pytest.raises(ArgumentError, match='choose from official, paper, grouped'): load(IDRID, official, split='x')

def labels(root, side='a', word='Training'): return root/f'B. Disease Grading/2. Groundtruths/{side}. IDRiD_Disease Grading_{word} Labels.csv'

@pytest.mark.parametrize('old,new,says', [('IDRiD_002,1,0','IDRiD_002,7,0',r"Labels.csv: IDRiD_002: got '7' in column Retinopathy grade; expected 0 to 4"), ('IDRiD_002,1,0','IDRiD_002,1,x',r"'x' in column Risk of macular edema; expected 0 to 2"),
    ('IDRiD_002,1,0,,\n','','IDRiD_002.jpg: got an image without a grade'), ('IDRiD_002,','IDRiD_112,','IDRiD_002.jpg: got an image without a grade|IDRiD_112.jpg: got no file'),
    ('Retinopathy grade','Grade','got columns Image name, Grade, Risk of macular edema.*; expected Image name, Retinopathy grade')])
def test_faults_of_the_table(official, old, new, says):
    p = labels(official)
    p.write_text(p.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=says): load(IDRID, official)
    assert len(check(official)) in (1,2)

def test_idrid_faults(official):
    seg = official/'A. Segmentation/2. All Segmentation Groundtruths/a. Training Set'
    shutil.rmtree(seg/'2. Haemorrhages')
    with pytest.raises(DataError, match=r'2. Haemorrhages: got no outlines; expected TIFF files such as IDRiD_01_HE.tif'): load(IDRID, official, task='segmentation')
    found = audit(IDRID, official, task='segmentation')
    assert [o[0] for o in found.problems]==['A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/2. Haemorrhages']
    Image.new('L', (5,5)).save(seg/'1. Microaneurysms/IDRiD_02_MA.tif')
    (seg/'5. Optic Disc/IDRiD_03_OD.tif').rename(seg/'5. Optic Disc/IDRiD_3.tif')
    assert sorted(Path_tail(o[0]) for o in audit(IDRID, official, task='segmentation').problems)==['2. Haemorrhages','IDRiD_02_MA.tif','IDRiD_3.tif']
    shutil.rmtree(official/'B. Disease Grading/1. Original Images/b. Testing Set')
    assert check(official).file.map(Path_tail).tolist()==['b. Testing Set']

def Path_tail(o): return o.rsplit('/', 1)[-1]

def test_faults_of_a_manifest(official, tmp_path):
    root = compact(official, tmp_path/'copy')
    m = pd.read_csv(root/'manifest.csv', dtype=str, keep_default_na=False)
    graded = m.index[m.task=='grading']
    m.loc[graded[0],'dme_risk'] = '5'; m.loc[graded[1],'class'] = 'grade5'; (root/m.file[graded[2]]).unlink()
    m.to_csv(root/'manifest.csv', index=False)
    t = check(root)
    assert len(t)==3 and any("'5' in column Risk" in o for o in t.problem) and any('a class that this set has not' in o for o in t.problem)
    m.drop(columns='dme_risk').to_csv(root/'manifest.csv', index=False)
    assert check(root).problem.tolist()==['no column dme_risk']
    m.assign(task='both').to_csv(root/'manifest.csv', index=False)
    assert 'no rows of task grading' in check(root).problem.tolist()

# --- MESSIDOR ------------------------------------------------------------------------------------------
def biff2(path, rows):
    "Write `rows` as an Excel 2 file: BOF, code page, then a record a cell, then EOF"
    def record(op, b): return struct.pack('<HH', op, len(b))+b
    out = record(0x0009, struct.pack('<HH', 7, 16))+record(0x0042, struct.pack('<H', 1252))
    for i,row in enumerate(rows):
        for j,v in enumerate(row):
            at = struct.pack('<HH3x', i, j)
            out += record(0x0004, at+bytes([len(v)])+v.encode('cp1252')) if isinstance(v, str) else record(0x0003, at+struct.pack('<d', v))
    path.write_bytes(out+record(0x000A, b''))

HEAD = ['Image name','Ophthalmologic department','Retinopathy grade','Risk of macular edema ']
def sheet(path, rows):
    rows = [[n,'Service Ophtalmologie Lariboisière',g,d] for n,g,d in rows]
    if path.suffix=='.xls': biff2(path, [HEAD]+[[n,s,float(g),float(d)] for n,s,g,d in rows])
    else: pd.DataFrame(rows, columns=HEAD).to_csv(path, index=False, encoding='latin-1', sep=';') if path.suffix=='.csv' else pd.DataFrame(rows, columns=HEAD).to_excel(path, index=False)

def contents(base, k):
    "Names, grades and risks of a folder; those of the errata where they belong"
    own = [(f'2006{k:02d}01_4000{i}_0100_PP.tif',(i+k)%4,(i*k)%3) for i in range(3)]
    wrong = {'20051020_63045_0100_PP':3, '20051020_64007_0100_PP':1, '20051020_63936_0100_PP':3, '20060523_48477_0100_PP':2}
    extra = {'Base11':[(f'{n}.tif',g,1) for n,g in wrong.items() if n.startswith('2005')], 'Base13':[(f'{n}.tif',g,1) for n,g in wrong.items() if n.startswith('2006')],
             'Base33':[(f'{n}_0400_PP.tif',3 if n=='20051205_33025' else 2,int(n=='20051202_54611')) for p in _duplicates.items() for n in p]}
    return extra.get(base, [])+own

@pytest.fixture(params=['.xls','.csv','.xlsx','inside'])
def asked(request, tmp_path):
    "MESSIDOR as unzipped, its tables beside the folders in one of three formats, or as .xls in the folders"
    root = tmp_path/'on request'/MESSIDOR
    for k,base in enumerate(BASES):
        rows = contents(base, k)
        for i,(n,*_) in enumerate(rows): noise(root/base/n, k, i, hw=(6,9))
        sheet(root/(f'{base}/Annotation_{base}.xls' if request.param=='inside' else f'Annotation_{base}{request.param}'), rows)
    return root

def test_messidor(asked):
    a = load(MESSIDOR, asked, errata=False)
    want = [(b,n[:-4],g,d) for k,b in enumerate(BASES) for n,g,d in sorted(contents(b, k))]
    assert list(a.items[['base','name','grade','dme']].itertuples(index=False, name=None))==want and a.labels.tolist()==[o[2] for o in want]
    assert a.classes==['grade0','grade1','grade2','grade3'] and a.items.file[0].startswith('Base11/2005') and a.info.channels==3 and a.image(0).shape==(6,9,3)
    assert set(a.items.split)=={'train','test'} and check_leak(a) is a and check(asked).empty and check(asked).attrs['images']==36+4+13

def test_errata(tmp_path):
    root = tmp_path/MESSIDOR
    for k,base in enumerate(BASES):
        for i,(n,*_) in enumerate(contents(base, k)): noise(root/base/n, k, i, hw=(6,9))
        sheet(root/f'Annotation_{base}.csv', contents(base, k))
    raw,d = load(MESSIDOR, root, errata=False),load(MESSIDOR, root)
    assert len(raw)==36+4+26 and len(d)==36+4+13 and d.info.images==1187 and raw.info.images==1200
    was,now = raw.items.set_index('name').grade,d.items.set_index('name').grade
    assert (was[list(_regraded)].tolist(),now[list(_regraded)].tolist())==([3,1,3,2],[0,3,1,3])
    rest = now.index.difference(list(_regraded))
    assert (was[rest]==now[rest]).all() and len(was.index.difference(now.index))==13
    g = raw.items[raw.items.base=='Base33'].set_index(raw.items.name.str[:14][raw.items.base=='Base33']).group
    assert all(g[a]==g[b] for a,b in _duplicates.items()) and g.nunique()==13+3
    assert sorted(d.items.name[d.items.disputed].str[:14])==['20051202_55562','20051202_55626'] and sorted(raw.items.name[raw.items.disputed].str[:14])==sorted(_disputed)
    for s in range(3): check_leak(load(MESSIDOR, root, errata=False, seed=s))
    assert any(len(leaks(load(MESSIDOR, root, errata=False, split='paper', seed=s))) for s in range(4))

def test_tables_of_the_errata():
    "26 images in 13 pairs, four grades; the lists that we found name the disputed pairs alike"
    assert len(_duplicates)==13 and len({*_duplicates,*_duplicates.values()})==26 and all(re.fullmatch(r'2005120[25]_\d{5}', o) for p in _duplicates.items() for o in p)
    assert _duplicates['20051202_54611']=='20051202_55562' and _duplicates['20051205_33025']=='20051202_55626' and sorted(_regraded.values())==[0,1,3,3]

@pytest.fixture
def small(tmp_path):
    root = tmp_path/MESSIDOR
    for k,base in enumerate(BASES):
        rows = [(f'2006{k:02d}01_4000{i}_0100_PP.tif',(i+k)%4,(i*k)%3) for i in range(2)]
        for i,(n,*_) in enumerate(rows): noise(root/base/n, k, i, hw=(6,9))
        sheet(root/f'Annotation_{base}.csv', rows)
    return root

def test_targets(small):
    a,b,c = (load(MESSIDOR, small, target=o) for o in ('grade','referable','dme'))
    assert (b.labels==(a.items.grade>=2)).all() and (c.labels==a.items.dme).all() and [len(o.classes) for o in (a,b,c)]==[4,2,3]
    with pytest.raises(ArgumentError, match='choose from grade, referable, dme'): load(MESSIDOR, small, target='x')
    with pytest.raises(ArgumentError, match='choose from paper, grouped'): load(MESSIDOR, small, split='official')

def test_an_updated_table_goes_first(small):
    rows = [(f'20060001_4000{i}_0100_PP.tif',3,2) for i in range(2)]
    sheet(small/'Annotation_Base11_update20161024.xls', rows)
    assert load(MESSIDOR, small).items.grade[:2].tolist()==[3,3]

def test_folder_in_a_folder_and_other_formats(small):
    shutil.move(small/'Base12', small/'x'); (small/'Base12').mkdir(); shutil.move(small/'x', small/'Base12/Base12')
    for p in (small/'Base13').glob('*.tif'): Image.open(p).save(p.with_suffix('.png')); p.unlink()
    (small/'Annotation_Base14.csv').rename(small/'Annotation Base14.csv')
    d = load(MESSIDOR, small)
    assert len(d)==24 and d.items.file[2].startswith('Base12/Base12/') and d.items.file[4].endswith('.png')

def test_messidor_faults(small):
    shutil.rmtree(small/'Base12')
    with pytest.raises(DataError, match='Base12: got no images; expected a folder Base12 with TIFF files'): load(MESSIDOR, small)
    (small/'Annotation_Base13.csv').unlink()
    (small/'Base14/20060301_40000_0100_PP.tif').unlink()
    noise(small/'Base21/extra.tif', 1); (small/'Annotation_Base22.csv').write_text('a,b\n1,2\n'); (small/'Annotation_Base23.csv').rename(small/'Annotation_Base23.xls')
    t = check(small)
    assert t.file.tolist()==['Base12','Annotation_Base13.xls','Base14/20060301_40000_0100_PP.tif','Base21/extra.tif','Annotation_Base22.csv','Annotation_Base23.xls']
    assert t.attrs['images']==24-2-2-1-2-2

def test_messidor_without_xlrd(small, monkeypatch):
    sheet(small/'Annotation_Base11.xls', [])
    monkeypatch.setattr(loading, 'find_spec', lambda o: None)
    with pytest.raises(MissingPackage, match='pip install xlrd.*or save the table as CSV'): load(MESSIDOR, small)

def test_hand_made_excel(tmp_path):
    biff2(tmp_path/'a.xls', [HEAD,['é.tif','x',2.,1.],['b.tif','',0.5,0.]])
    t = read_sheet(tmp_path/'a.xls')
    assert t.columns.tolist()==[o.strip() for o in HEAD] and t.to_numpy().tolist()==[['é.tif','x','2','1'],['b.tif','','0.5','0']]

def test_no_foreign_folder_is_taken_for_them(tmp_path):
    for o in ('Base11/a.tif','grading/train/grade0/a.jpg','segmentation/train/images/a.jpg','A. Segmentation/a.jpg'): noise(tmp_path/'own'/o, 1)
    found = available(tmp_path/'own').set_index('name').found
    assert not found[IDRID] and not found[MESSIDOR]

# --- the real set --------------------------------------------------------------------------------------
def test_real_counts():
    root = real(IDRID)
    want = readme_counts(root)
    grades,lesions = load(IDRID, root),load(IDRID, root, task='segmentation')
    got = grades.describe().drop(columns='all').assign(lesion_map=lesions.describe()['all'])
    got['all'] = got.sum(axis=1)
    assert got[want.columns].to_numpy().tolist()==want.to_numpy().tolist() and got.index.tolist()==want.index.tolist()
    for d in (grades,lesions,load(IDRID, root, target='referable'),load(IDRID, root, target='dme')):
        assert sum(n for *_,n in d.info.counts)==d.info.images==len(d) and all(d.describe().loc[s,c]==n for s,c,n in d.info.counts)

def test_real_duplicates():
    d = load(IDRID, real(IDRID))
    sha = pd.Series(d.contents)
    assert (d.items.group.groupby(sha).nunique()==1).all() and d.items.group.nunique()==sha.nunique()==510
    assert len(leaks(d))==1 and check_leak(load(IDRID, real(IDRID), split='grouped'), content=True)
    other = load(IDRID, real(IDRID), task='segmentation')
    assert len(set(sha)&{o.split()[0] for o in other.contents})==3

def test_real_masks():
    d = load(IDRID, real(IDRID), task='segmentation')
    m = d.masks(0)
    assert m.shape==(5,256,385) and m.sum(0).max()==1 and m[4].any() and all(d.masks(i) is not None for i in range(0, 81, 9))
