"Moles: the Kaggle set, ISIC 2017 in its official and compact layout, PH2"
import builtins, json, re
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from conftest import real
from medattn_nb.core import ArgumentError, DataError, MissingPackage
from medattn_nb.data.datasets import about, check, leaks, load
from medattn_nb.data.phantom_dermoscopy import ATTRIBUTES
from medattn_nb.data.skin import FEATURES, SIGNS, isic_superpixels
from medattn_nb.data.splits import split_label
from medattn_nb.superpixels import read_superpixels, write_superpixels

FIVE = ATTRIBUTES

def noise(p, hw=(16,20), seed=0, **kw):
    p.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, sum(i*ord(o) for i,o in enumerate(p.name))])
    Image.fromarray(rng.integers(0, 256, (*hw,3), dtype=np.uint8)).save(p, **kw)
    return p

# --- skin-cancer -----------------------------------------------------------------------------------------
@pytest.fixture
def kaggle(tmp_path):
    for side,n in (('train',8),('test',2)):
        for cls in ('benign','malignant'):
            for i in range(n): noise(tmp_path/f'skin-cancer/{side}/{cls}/{1099+i}.jpg', seed=n+len(cls))
    return tmp_path/'skin-cancer'

def test_cancer(kaggle):
    d = load('skin-cancer', kaggle)
    assert d.describe().to_numpy().tolist()==[[8,8,16],[2,2,4],[10,10,20]] and d.classes==['benign','malignant']
    assert d.items.file[:2].tolist()==['train/benign/1099.jpg','train/benign/1100.jpg']
    p = load('skin-cancer', kaggle, split='paper')
    assert p.describe().to_numpy().tolist()==[[8,8,16],[2,2,4],[10,10,20]] and set(p.items.split)=={'train','valid'}
    assert p.items.split.tolist()!=load('skin-cancer', kaggle, split='paper', seed=1).items.split.tolist()
    assert set(load('skin-cancer', kaggle, split='none').items.split)=={''}
    with pytest.raises(ArgumentError, match='official, paper, grouped, none'): load('skin-cancer', kaggle, split='folds')

def test_cancer_twins_stay_together(kaggle):
    a,b = (kaggle/o for o in ('train/benign/1100.jpg','test/malignant/1100.jpg'))
    Image.open(a).save(b, quality=95)
    d = load('skin-cancer', kaggle, split='grouped')
    g = d.items.set_index('name')
    assert a.read_bytes()!=b.read_bytes() and g.group['test/malignant/1100.jpg']=='train/benign/1100.jpg' and g.group.nunique()==19
    assert not len(leaks(d)) and set(d.items.split)=={'train','valid'} and g.split['test/malignant/1100.jpg']==g.split['train/benign/1100.jpg']

def test_cancer_in_a_folder_data(kaggle, tmp_path):
    a = load('skin-cancer', kaggle).items
    (tmp_path/'other/skin-cancer').mkdir(parents=True); kaggle.rename(tmp_path/'other/skin-cancer/data')
    b = load('skin-cancer', tmp_path/'other').items
    assert [o.removeprefix('data/') for o in b.file]==a.file.tolist() and b.drop(columns='file').equals(a.drop(columns='file'))

def test_cancer_counts(): assert '3297' in about('skin-cancer')['images'] and 'train malignant 1197' in about('skin-cancer')['published counts']

def test_cancer_wrong(kaggle):
    (kaggle/'test').rename(kaggle/'validation')
    assert check(kaggle).file.tolist()==['test/benign','test/malignant']
    with pytest.raises(DataError, match='expected folders train and test'): load('skin-cancer', kaggle)

def test_somebody_elses_folders_are_not_taken_for_it(tmp_path):
    for cls in ('benign','malignant'):
        for i in range(3): noise(tmp_path/f'mine/train/{cls}/{i}.jpg')
    assert check(tmp_path/'mine').empty and check(tmp_path/'mine').attrs['images']==6

# --- ISIC 2017 -------------------------------------------------------------------------------------------
SIDES = dict(train='Training', valid='Validation', test='Test_v2')

@pytest.fixture
def isic(tmp_path):
    "The layout of the challenge; labels of superpixels above 255 and above 65535 occur"
    root,k = tmp_path/'isic2017-skin-lesion',0
    rng = np.random.default_rng(0)
    for name,n in zip(SIDES.values(), (9,4,5)):
        rows = []
        for j in range(n):
            i,k = f'ISIC_{k:07d}',k+1
            f = noise(root/f'ISIC-2017_{name}_Data/{i}.jpg')
            sp = np.repeat(np.arange(16)[:,None], 20, 1)*(20 if j else 1)
            write_superpixels(sp, f.with_name(f'{i}_superpixels.png'))
            for p in ('Part1','Part2'): (root/f'ISIC-2017_{name}_{p}_GroundTruth').mkdir(exist_ok=True)
            m = np.zeros((16,20), np.uint8); m[4:9,3:11] = 255
            Image.fromarray(m).save(root/f'ISIC-2017_{name}_Part1_GroundTruth/{i}_segmentation.png')
            (root/f'ISIC-2017_{name}_Part2_GroundTruth/{i}_features.json').write_text(json.dumps({o:rng.integers(0, 2, sp.max()+1+j).tolist() if (j+q)%3 else [0]*(sp.max()+1) for q,o in enumerate(FEATURES)}))
            rows.append((i,float(j%3==0),float(j%3==1)))
        pd.DataFrame(rows, columns=['image_id','melanoma','seborrheic_keratosis']).to_csv(root/f'ISIC-2017_{name}_Part3_GroundTruth.csv', index=False)
    return root

def compact(d, dest, blank=(), table=True):
    side = d.items.split.replace('valid', 'val')
    m = pd.DataFrame({'file':[f'{s}/{c}/{n}.jpg' for s,c,n in zip(side, d.items['class'], d.items.name)], 'class':d.items['class'], 'split':side, 'diagnosis':d.items.diagnosis, 'source_path':d.items.file})
    m.loc[list(blank),'diagnosis'] = ''
    for a,b in zip(d.items.file, m.file):
        (dest/b).parent.mkdir(parents=True, exist_ok=True); (dest/b).write_bytes((d.root/a).read_bytes())
    m.sample(frac=1, random_state=0).to_csv(dest/'manifest.csv', index=False)
    if table: pd.DataFrame(dict(image_id=d.items.name, **{k:d.items[f'has:{k}'] for k in FIVE})).to_csv(dest/'attributes_isic2018_task2.csv', index=False)
    return dest

def test_isic(isic):
    d = load('isic2017-skin-lesion', isic)
    assert d.describe().loc[['train','valid','test'],'all'].tolist()==[9,4,5] and d.classes==['not_melanoma','melanoma']
    assert d.items.name.tolist()==[f'ISIC_{k:07d}' for k in range(18)] and d.labels.tolist()==[int(j%3==0) for n in (9,4,5) for j in range(n)]
    assert d.info.attributes==FIVE and np.isnan(d.attributes[:,3]).all() and not np.isnan(d.attributes[:,[0,1,2,4]]).any()
    assert d.masks(0) is None

def test_isic_diagnosis(isic):
    d = load('isic2017-skin-lesion', isic, target='diagnosis')
    assert d.classes==['nevus','seborrheic_keratosis','melanoma'] and d.labels[:3].tolist()==[2,1,0] and len(d)==18

@pytest.mark.parametrize('i', [0,1,5,17])
def test_isic_features_are_a_look_up(isic, i):
    d = load('isic2017-skin-lesion', isic, masks='features')
    f = d.root/d.items.file[i]
    lists = json.loads((d.root/d.items['mask'][i]).read_text())
    sp = read_superpixels(f.with_name(f.stem+'_superpixels.png'), dense=False)
    want = np.zeros((4,16,20), bool)
    for k,o in enumerate(FEATURES):
        for y in range(16):
            for x in range(20): want[k,y,x] = lists[o][sp[y,x]]
    assert (d.masks(i)==want).all() and d.info.masks==FEATURES

def test_isic_superpixels_agree_with_the_block(isic):
    d = load('isic2017-skin-lesion', isic)
    for i in (0,1): assert (isic_superpixels(d, i)==read_superpixels(d.root/d.items.file[i].replace('.jpg','_superpixels.png'), dense=False)).all()
    big = np.arange(320).reshape(16, 20)*50001
    write_superpixels(big, d.root/d.items.file[0].replace('.jpg','_superpixels.png'))
    assert (isic_superpixels(d, 0)==big).all() and big.max()>65536*200

def test_isic_lesion(isic):
    d = load('isic2017-skin-lesion', isic, masks='lesion')
    assert d.info.masks==('lesion',) and all(d.masks(i).shape==(1,16,20) and d.masks(i).sum()==40 for i in range(18))

def test_isic_content_sees_features_and_superpixels(isic):
    a = load('isic2017-skin-lesion', isic, masks='features').contents
    p = isic/'ISIC-2017_Training_Data/ISIC_0000000_superpixels.png'
    write_superpixels(np.zeros((16,20), int), p)
    q = isic/'ISIC-2017_Training_Part2_GroundTruth/ISIC_0000001_features.json'
    q.write_text(json.dumps({k:[1]*400 for k in FEATURES}))
    b = load('isic2017-skin-lesion', isic, masks='features').contents
    assert [x!=y for x,y in zip(a, b)]==[True,True]+[False]*16

def test_isic_layouts_agree(isic, tmp_path):
    a = load('isic2017-skin-lesion', isic)
    b = load('isic2017-skin-lesion', compact(a, tmp_path/'small'))
    assert a.items.drop(columns='file').equals(b.items.drop(columns='file')) and a.split_fingerprint==b.split_fingerprint
    for o in (dict(target='diagnosis'), dict(split='paper'), dict(split='grouped'), dict(split='none')):
        x,y = (load('isic2017-skin-lesion', r, **o).items for r in (isic, tmp_path/'small'))
        assert x.drop(columns='file').equals(y.drop(columns='file')), o

def test_isic_blank_diagnoses(isic, tmp_path):
    d = load('isic2017-skin-lesion', compact(load('isic2017-skin-lesion', isic), tmp_path/'small', blank=(0,1,2)))
    assert d.items.diagnosis[:3].tolist()==['melanoma','',''] and d.labels[:3].tolist()==[1,0,0]
    assert len(load('isic2017-skin-lesion', d.root, target='diagnosis'))==16

def test_isic_without_attributes(isic, tmp_path):
    d = load('isic2017-skin-lesion', compact(load('isic2017-skin-lesion', isic), tmp_path/'small', table=False))
    assert np.isnan(d.attributes).all() and d.attributes.shape==(18,5)

def test_isic_identical_pictures_stay_together(isic):
    d = isic/'ISIC-2017_Training_Data/ISIC_0000002.jpg',isic/'ISIC-2017_Test_v2_Data/ISIC_0000014.jpg'
    d[1].write_bytes(d[0].read_bytes())
    assert len(leaks(load('isic2017-skin-lesion', isic), content=True))==1
    g = load('isic2017-skin-lesion', isic, split='grouped')
    assert not len(leaks(g, content=True)) and g.items.group[14]=='ISIC_0000002' and g.items.group.nunique()==17 and split_label(g)=='by group'

def test_isic_options(isic):
    for o,says in ((dict(masks='features2'),"use None, 'lesion'"), (dict(target='cancer'),"use 'melanoma' or 'diagnosis'"), (dict(split='folds'),'official, paper, grouped, none')):
        with pytest.raises(ArgumentError, match=says): load('isic2017-skin-lesion', isic, **o)

def broken(isic, how):
    tr,p2 = isic/'ISIC-2017_Training_Data',isic/'ISIC-2017_Training_Part2_GroundTruth'
    csv = isic/'ISIC-2017_Training_Part3_GroundTruth.csv'
    if how=='no picture': (tr/'ISIC_0000003.jpg').unlink()
    if how=='no label': noise(tr/'ISIC_0000099.jpg')
    if how=='no table': csv.unlink()
    if how=='columns': csv.write_text('image_id,melanoma\n')
    if how=='both': csv.write_text(csv.read_text().replace('ISIC_0000000,1.0,0.0', 'ISIC_0000000,1.0,1.0'))
    if how=='empty label': csv.write_text(csv.read_text().replace('ISIC_0000000,1.0,0.0', 'ISIC_0000000,,0.0'))
    if how=='no map': (tr/'ISIC_0000003_superpixels.png').unlink()
    if how=='map size': write_superpixels(np.zeros((16,21), int), tr/'ISIC_0000003_superpixels.png')
    if how=='grey map': Image.new('L', (20,16)).save(tr/'ISIC_0000003_superpixels.png')
    if how=='short list': (p2/'ISIC_0000003_features.json').write_text(json.dumps({k:[0,1] for k in FEATURES}))
    if how=='values': (p2/'ISIC_0000003_features.json').write_text(json.dumps({k:[0,2] for k in FEATURES}))
    if how=='keys': (p2/'ISIC_0000003_features.json').write_text('{"globules": [0], "streaks": [1]}')
    if how=='list': (p2/'ISIC_0000003_features.json').write_text('[]')
    if how=='json': (p2/'ISIC_0000003_features.json').write_text('{')
    if how=='no lesion': (isic/'ISIC-2017_Training_Part1_GroundTruth/ISIC_0000003_segmentation.png').unlink()

@pytest.mark.parametrize('how,options,says', [('no picture',{},'ISIC_0000003.jpg: got no file'), ('no label',{},'ISIC_0000099.jpg: got a picture without a label'), ('no table',{},'no readable table'), ('columns',{},'columns image_id, melanoma'),
    ('both',{},'melanoma 1.0 and seborrheic_keratosis 1.0'), ('empty label',{},'melanoma nan'), ('no map',dict(masks='features'),'ISIC_0000003_superpixels.png: got no file'), ('map size',dict(masks='features'),'a map of 16x21'),
    ('values',dict(masks='features'),'other than 0 and 1'), ('keys',{},'a file with globules, streaks'), ('list',{},'a file with a list'), ('json',dict(masks='features'),'no readable JSON'), ('no lesion',dict(masks='lesion'),'ISIC_0000003_segmentation.png')])
def test_isic_wrong(isic, how, options, says):
    broken(isic, how)
    with pytest.raises(DataError, match=re.escape(says)): load('isic2017-skin-lesion', isic, **options)

@pytest.mark.parametrize('how,says', [('grey map','RGB'), ('short list','a list of 2 superpixels')])
def test_isic_wrong_when_read(isic, how, says):
    broken(isic, how)
    with pytest.raises(DataError, match=says): load('isic2017-skin-lesion', isic, masks='features').masks(3)

def test_isic_check_goes_on_after_a_fault(isic):
    for how in ('no picture','no label'): broken(isic, how)
    (isic/'ISIC-2017_Test_v2_Part3_GroundTruth.csv').unlink()
    assert check(isic).file.tolist()==['ISIC-2017_Training_Data/ISIC_0000003.jpg','ISIC-2017_Training_Data/ISIC_0000099.jpg','ISIC-2017_Test_v2_Part3_GroundTruth.csv']
    assert check(isic).attrs['images']==12

def test_isic_compact_wrong(isic, tmp_path):
    p = compact(load('isic2017-skin-lesion', isic), tmp_path/'small')
    m = pd.read_csv(p/'manifest.csv', keep_default_na=False); m.loc[4,'class'] = 'mole'; m.to_csv(p/'manifest.csv', index=False)
    (p/'attributes_isic2018_task2.csv').write_text('image_id,streaks\n')
    assert check(p).problem.tolist()==["class 'mole', split 'test'",'columns image_id, streaks']
    with pytest.raises(DataError, match='copy without masks'): load('isic2017-skin-lesion', compact(load('isic2017-skin-lesion', isic), tmp_path/'again'), masks='features')

def test_isic_split_of_the_manifest(isic, tmp_path):
    p = compact(load('isic2017-skin-lesion', isic), tmp_path/'small')
    m = pd.read_csv(p/'manifest.csv', keep_default_na=False); m.loc[3,'split'] = 'fold1'; m.to_csv(p/'manifest.csv', index=False)
    assert "split 'fold1'" in check(p).problem[0]
    m.drop(columns=['split','source_path']).to_csv(p/'manifest.csv', index=False)
    with pytest.raises(DataError, match='no column split, source_path'): load('isic2017-skin-lesion', p)

# --- PH2 -------------------------------------------------------------------------------------------------
CASES = {'IMD901':(0,'0','T','A','A','A','A','4'), 'IMD902':(2,'2','AT','AT','P','A','P','3  4  6'), 'IMD903':(1,'1','AT','T','A','P','A','1  3'), 'IMD904':(0,'0','T','T','A','A','A','2 5')}
HEAD = '||   Name ||   Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil ||  Colors  ||'
TITLES = ['Image Name','Histological Diagnosis','Common Nevus','Atypical Nevus','Melanoma','Asymmetry\n(0/1/2)','Pigment Network\n(AT/T)','Dots/Globules\n(A/AT/T)','Streaks\n(A/P)','Regression Areas\n(A/P)','Blue-Whitish Veil\n(A/P)','White','Red','Light-Brown','Dark-Brown','Blue-Gray','Black']

def text_table(p, cases): p.write_text('\n'.join([HEAD,*(f"|| {n} || {'Melanoma in situ' if d==2 else ''}   || {d} || {' | '.join(s)} || {c} ||" for n,(d,*s,c) in cases.items()),'','Legends for Asymmetry','0 - Fully Symmetric']), encoding='latin-1')

def sheet_table(p, cases, titles=TITLES):
    from openpyxl import Workbook
    wb = Workbook()
    for _ in range(12): wb.active.append(['Legends',None,'x'])
    wb.active.append(titles)
    for n,(d,a,*s,c) in cases.items(): wb.active.append([n,None,*('X' if k==d else None for k in range(3)),int(a),*s,*('X' if str(k) in c.split() else None for k in range(1, 7))])
    wb.save(p)

@pytest.fixture
def ph2(tmp_path):
    root = tmp_path/'ph2-dermoscopy'
    for n in CASES:
        d = root/'PH2 Dataset images'/n
        noise(d/f'{n}_Dermoscopic_Image/{n}.bmp')
        (d/f'{n}_lesion').mkdir(); m = np.zeros((16,20), bool); m[4:9,3:11] = True
        Image.fromarray(m).save(d/f'{n}_lesion/{n}_lesion.bmp')
    sheet_table(root/'PH2_dataset.xlsx', CASES)
    return root

def has(d, name): return d.items.set_index('name')[f'has:{name}'].astype(int).to_dict()

def test_ph2(ph2):
    d = load('ph2-dermoscopy', ph2)
    assert d.items.name.tolist()==['IMD901','IMD904','IMD903','IMD902'] and d.labels.tolist()==[0,0,1,2] and d.items.asymmetry.tolist()==[0,0,1,2]
    assert has(d, 'typical_pigment_network')==dict(IMD901=1, IMD904=1, IMD903=0, IMD902=0) and has(d, 'atypical_pigment_network')==dict(IMD901=0, IMD904=0, IMD903=1, IMD902=1)
    assert has(d, 'typical_dots_globules')==dict(IMD901=0, IMD904=1, IMD903=1, IMD902=0) and has(d, 'atypical_dots_globules')==dict(IMD901=0, IMD904=0, IMD903=0, IMD902=1)
    assert [k for k in SIGNS if has(d, k)['IMD902']]==['atypical_pigment_network','atypical_dots_globules','streaks','blue_whitish_veil','colour_light_brown','colour_dark_brown','colour_black']
    assert [k for k in SIGNS if has(d, k)['IMD904']]==['typical_pigment_network','typical_dots_globules','colour_red','colour_blue_gray']
    assert d.masks(0).shape==(1,16,20) and d.masks(0).sum()==40 and d.attributes.shape==(4,13)

def test_ph2_text_gives_the_same(ph2):
    a = load('ph2-dermoscopy', ph2).items
    (ph2/'PH2_dataset.xlsx').unlink(); text_table(ph2/'PH2_dataset.txt', CASES)
    assert load('ph2-dermoscopy', ph2).items.equals(a)

def test_ph2_without_openpyxl(ph2, monkeypatch):
    a,plain = load('ph2-dermoscopy', ph2).items,builtins.__import__
    def gone(name, *o, **kw):
        if name.split('.')[0]=='openpyxl': raise ImportError(name)
        return plain(name, *o, **kw)
    monkeypatch.setattr(builtins, '__import__', gone)
    with pytest.raises(MissingPackage, match='pip install openpyxl'): load('ph2-dermoscopy', ph2)
    text_table(ph2/'PH2_dataset.txt', CASES)
    assert load('ph2-dermoscopy', ph2).items.equals(a)

def test_ph2_in_its_outer_folder(ph2, tmp_path):
    a = load('ph2-dermoscopy', ph2).items
    (tmp_path/'outer/ph2-dermoscopy').mkdir(parents=True); ph2.rename(tmp_path/'outer/ph2-dermoscopy/PH2Dataset')
    b = load('ph2-dermoscopy', tmp_path/'outer').items
    assert [o.removeprefix('PH2Dataset/') for o in b.file]==a.file.tolist() and b.drop(columns=['file','mask']).equals(a.drop(columns=['file','mask']))

def test_ph2_layouts_agree(ph2, tmp_path):
    d,rows = load('ph2-dermoscopy', ph2),[]
    for i,r in d.items.iterrows():
        f = f"images/{r['class']}/{r['name']}.png"
        for o,p in ((r.file,f),(r['mask'],f.replace('images','masks'))): (tmp_path/'small'/p).parent.mkdir(parents=True, exist_ok=True); Image.open(ph2/o).save(tmp_path/'small'/p)
        _,a,net,dots,*three,_ = CASES[r['name']]
        rows.append({'file':f, 'class':r['class'], 'mask':f.replace('images','masks'), 'asymmetry':a, 'pigment_network':net, 'dots_globules':dots, **dict(zip(('streaks','regression_areas','blue_whitish_veil'), three)), **{k:int(r[f'has:{k}']) for k in SIGNS[7:]}, 'source_path':r.file})
    pd.DataFrame(rows).sample(frac=1, random_state=1).to_csv(tmp_path/'small/manifest.csv', index=False)
    s = load('ph2-dermoscopy', tmp_path/'small')
    assert s.items.drop(columns=['file','mask']).equals(d.items.drop(columns=['file','mask'])) and all((s.masks(i)==d.masks(i)).all() and (s.image(i)==d.image(i)).all() for i in range(4))
    pd.DataFrame(rows).drop(columns=['mask','streaks','colour_red']).to_csv(tmp_path/'small/manifest.csv', index=False)
    with pytest.raises(DataError, match='no column mask, streaks, colour_red'): load('ph2-dermoscopy', tmp_path/'small')

def test_ph2_options(ph2):
    assert load('ph2-dermoscopy', ph2, classes=2).labels.tolist()==[0,0,0,1] and load('ph2-dermoscopy', ph2, classes=2).classes==['nevus','melanoma']
    g = load('ph2-dermoscopy', ph2, split='grouped')
    assert set(g.items.split)=={'train','valid','test'} and split_label(g)=='by image (each group has one)'
    with pytest.raises(ArgumentError, match='classes: got 4'): load('ph2-dermoscopy', ph2, classes=4)
    with pytest.raises(ArgumentError, match='none, grouped'): load('ph2-dermoscopy', ph2, split='official')

def test_ph2_wrong(ph2):
    (ph2/'PH2 Dataset images/IMD902/IMD902_lesion/IMD902_lesion.bmp').unlink()
    Image.new('1', (21,16)).save(ph2/'PH2 Dataset images/IMD903/IMD903_lesion/IMD903_lesion.bmp')
    t = check(ph2)
    assert t.problem.tolist()==['no file of this name','a mask of 16x21 pixels'] and 'IMD902_lesion' in t.file[0] and t.attrs['images']==3

@pytest.mark.parametrize('case,says', [((0,'3','T','A','A','A','A','4'),"'3' as asymmetry"), ((0,'0','A','A','A','A','A','4'),"'A' as pigment_network"), ((0,'0','T','A','T','A','A','4'),"'T' as streaks")])
def test_ph2_unknown_codes(ph2, case, says):
    text_table(ph2/'PH2_dataset.txt', {**CASES,'IMD901':case}); (ph2/'PH2_dataset.xlsx').unlink()
    t = check(ph2)
    assert says in t.problem[0] and t.attrs['images']==3

@pytest.mark.parametrize('case', [(3,'0','T','A','A','A','A','4'), (0,'0','T','A','A','A','A','7')])
def test_ph2_unknown_numbers(ph2, case):
    text_table(ph2/'PH2_dataset.txt', {**CASES,'IMD901':case}); (ph2/'PH2_dataset.xlsx').unlink()
    assert 'no diagnosis, or several, or an unknown colour, of IMD901' in check(ph2).problem[0]

def test_ph2_two_crosses(ph2):
    from openpyxl import load_workbook
    wb = load_workbook(ph2/'PH2_dataset.xlsx'); wb.active['D14'] = 'X'; wb.save(ph2/'PH2_dataset.xlsx')
    assert 'no diagnosis, or several' in check(ph2).problem[0]

def test_ph2_tables_that_are_none(ph2):
    (ph2/'PH2_dataset.xlsx').unlink()
    assert 'no table of signs' in check(ph2).problem[0]
    sheet_table(ph2/'PH2_dataset.xlsx', CASES, ['A']*17)
    with pytest.raises(DataError, match='no table of signs'): load('ph2-dermoscopy', ph2)
    (ph2/'PH2_dataset.xlsx').write_bytes(b'PK nothing')
    with pytest.raises(DataError, match='no readable spreadsheet'): load('ph2-dermoscopy', ph2)

# --- the real copies -------------------------------------------------------------------------------------
def readme_counts(folder):
    "The table under Counts of a README: {split: {class: n}}"
    t = re.search(r'## Counts\n+((?:\|.*\n)+)', (folder/'README.md').read_text(encoding='utf-8'))[1]
    rows = [[c.strip() for c in o.strip().strip('|').split('|')] for o in t.splitlines()]
    return {r[0]:dict(zip(rows[0][1:], map(int, r[1:]))) for r in rows[2:]}

@pytest.mark.parametrize('name', ['isic2017-skin-lesion','ph2-dermoscopy'])
def test_real_counts(name):
    d = load(name, real(name))
    t = d.describe().rename(index={'valid':'val','no split':'none'})
    for split,n in readme_counts(d.root).items(): assert t.loc[split].to_dict()==n, split
    assert len(d)==d.info.images and sum(n for *_,n in d.info.counts)==len(d)

def test_real_isic():
    d = load('isic2017-skin-lesion', real('isic2017-skin-lesion'))
    known = ~np.isnan(d.attributes)
    assert (known.all(1).sum(), known.any(1).sum())==(2450,2450) and d.items.name.is_unique
    assert {f'{s} {c}':int((d.items.split==s).sum()) for s,c,_ in d.info.counts if c=='melanoma'}=={'train melanoma':2000, 'valid melanoma':150, 'test melanoma':600}
    assert len(load('isic2017-skin-lesion', d.root, target='diagnosis'))==2543

def test_real_ph2():
    d = load('ph2-dermoscopy', real('ph2-dermoscopy'))
    assert not np.isnan(d.attributes).any() and (d.attributes[:,0]+d.attributes[:,1]==1).all() and all(d.mask(i).any() for i in range(0, 200, 20))
