"Ultrasound: outlines to masks, folders of Labelme files, and the hydronephrosis set in both layouts"
import base64, io, json, re
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from conftest import real
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data.datasets import about, check, leaks, load
from medattn_nb.data.splits import split_label
from medattn_nb.data.ultrasound import from_labelme, labelme_masks, polygon_mask, read_labelme, study_of

# --- polygons --------------------------------------------------------------------------------------------
def crossings(points, size):
    "Even-odd rule, pixel by pixel and edge by edge"
    out = np.zeros(size, bool)
    for r in range(size[0]):
        for c in range(size[1]):
            n,(x,y) = 0,(c+.5,r+.5)
            for (xa,ya),(xb,yb) in zip(points, [*points[1:],points[0]]):
                if (ya<=y)!=(yb<=y) and x>=xa+(y-ya)*(xb-xa)/(yb-ya): n += 1
            out[r,c] = n%2
    return out

coordinate = st.one_of(st.integers(-4, 16), st.integers(-8, 32).map(lambda o: o/2), st.floats(-4, 16).map(lambda o: round(o, 3)))

@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9), st.integers(1, 13), st.integers(1, 11))
def test_polygon_is_the_even_odd_rule(points, h, w): assert (polygon_mask(points, (h,w))==crossings(points, (h,w))).all()

@settings(max_examples=60, deadline=None)
@given(st.lists(coordinate, min_size=1, max_size=4), st.integers(0, 12))
def test_neighbours_share_no_pixel_and_leave_no_gap(bend, x):
    "A picture cut by a bent line falls into two parts that fill it"
    line = [(float(x),0.),*((o,(i+1)*12/(len(bend)+1)) for i,o in enumerate(np.clip(bend, 0, 12))),(6.,12.)]
    left,right = polygon_mask([(0,0),*line,(0,12)], (12,12)),polygon_mask([(12,0),*line,(12,12)], (12,12))
    assert not (left&right).any() and (left|right).all()

def test_polygon_moves_with_its_points():
    p = np.array([(2.2,3.1),(9.7,4.4),(6.3,11.8),(3.,8.)])
    a,b = polygon_mask(p, (20,20)),polygon_mask(p+(5,3), (20,20))
    assert (a[:17,:15]==b[3:,5:]).all() and a.sum()==b.sum()

def test_order_of_the_corners_does_not_matter():
    p = [(2,3),(9,4),(6,11)]
    assert (polygon_mask(p, (12,12))==polygon_mask(p[::-1], (12,12))).all()

@pytest.mark.parametrize('points', [[(1,1),(2,2)], [], [(1,1),(2,2),(float('nan'),3)], [(1,1,1)]*3, [1,2,3]])
def test_polygon_says_what_is_wrong(points):
    with pytest.raises(ArgumentError, match='at least three corners'): polygon_mask(points, (8,8))

# --- Labelme files ---------------------------------------------------------------------------------------
LABELS = {'kidney':(), 'hydronephrosis':('hydrops',)}
BOX = [[2,3],[9,7]]

def shape(label='kidney', points=BOX, kind='rectangle', **more): return dict(label=label, points=points, shape_type=kind, **more)

def noise(p, hw=(10,14)):
    a = np.random.default_rng(sum(map(ord, str(p.name)+p.parent.name))).integers(0, 256, hw, dtype=np.uint8)
    p.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(p)
    return a

def frame(p, *shapes, image=True, **more):
    "A picture at `p` and its Labelme file"
    p.parent.mkdir(parents=True, exist_ok=True)
    if image: noise(p)
    p.with_suffix('.json').write_text(json.dumps(dict(dict(version='5.0.1', flags={}, shapes=list(shapes), imagePath=p.name, imageData=None, imageHeight=10, imageWidth=14), **more)))
    return p.with_suffix('.json')

def encoded(a):
    b = io.BytesIO(); Image.fromarray(a).save(b, 'PNG')
    return base64.b64encode(b.getvalue()).decode()

def test_two_labelme_files_of_one_picture(tmp_path):
    frame(tmp_path/'a.png', shape('kidney')); frame(tmp_path/'b.png', shape('kidney'), imagePath='a.png')
    with pytest.raises(DataError, match='b.json: got names the picture a.png, as a.json does'): from_labelme(tmp_path, LABELS)

def test_planes_in_the_order_of_the_labels(tmp_path):
    p = frame(tmp_path/'a.png', shape(' HYDROPS '), shape('Kidney', [[0,0],[14,10]]), shape('hydronephrosis', [[0,0],[1,1]]))
    m = labelme_masks(p, LABELS)
    assert m.dtype==bool and m.shape==(2,10,14) and m[0].all() and m[1].sum()==7*4+1
    assert (labelme_masks(p, ('hydronephrosis','kidney'), other='ignore')[0].sum(), labelme_masks(p, 'kidney', other='ignore').shape)==(1, (1,10,14))

def test_a_file_without_shapes_is_empty(tmp_path): assert not labelme_masks(frame(tmp_path/'a.png'), LABELS).any()

def test_rectangle_with_corners_in_any_order(tmp_path):
    a,b,c = (labelme_masks(frame(tmp_path/'a.png', shape(points=o)), 'kidney')[0] for o in (BOX, BOX[::-1], [[2,7],[9,3]]))
    four = labelme_masks(frame(tmp_path/'a.png', shape(points=[[2,3],[9,3],[9,7],[2,7]])), 'kidney')[0]
    assert (a==b).all() and (a==c).all() and (a==four).all() and a[3:7,2:9].all() and a.sum()==28

def test_circle(tmp_path):
    m = labelme_masks(frame(tmp_path/'a.png', shape(points=[[7,5],[7,9]], kind='circle')), 'kidney')[0]
    y,x = np.mgrid[:10,:14]+.5
    assert (m==((y-5)**2+(x-7)**2<=16)).all()

@pytest.mark.parametrize('x,y', [(3,2), (-2,-1), (12,8), (0,0)])
def test_mask_picture_is_cut_at_the_border(tmp_path, x, y):
    s = np.random.default_rng(0).random((4,5))>.4
    m = labelme_masks(frame(tmp_path/'a.png', shape(points=[[x,y],[x+4,y+3]], kind='mask', mask=encoded(s))), 'kidney')[0]
    want = np.zeros((30,34), bool); want[y+10:y+14,x+10:x+15] = s
    assert (m==want[10:20,10:24]).all()

@pytest.mark.parametrize('s,says', [(shape(kind='line'), 'a line of 2 points'), (shape(kind='point', points=[[1,1]]), 'a point of 1'), (shape(kind='polygon'), 'at least three'),
    (shape(kind='rectangle', points=[[1,1]]), 'a rectangle of 1'), (shape(kind='circle', points=[[1,1]]), 'a circle of 1'), (shape(kind='mask', mask='no base64'), 'encloses nothing'),
    (shape(kind='polygon', points=[['a','b']]*3), 'encloses nothing'), (shape(points=None), 'encloses nothing')])
def test_a_shape_that_encloses_nothing_is_named(tmp_path, s, says):
    p = frame(tmp_path/'a.png', shape(), s)
    with pytest.raises(DataError, match="shape 2, 'kidney'") as e: labelme_masks(p, LABELS, name='a.json')
    assert says in str(e.value) and str(e.value).startswith('a.json')

def test_unknown_labels(tmp_path):
    p = frame(tmp_path/'a.png', shape('kindey'))
    with pytest.raises(DataError, match="label 'kindey' in shape 1; use one of kidney, hydronephrosis, hydrops"): labelme_masks(p, LABELS)
    assert not labelme_masks(p, LABELS, other='ignore').any()
    with pytest.raises(ArgumentError, match="other: got skip"): labelme_masks(p, LABELS, other='skip')
    with pytest.raises(ArgumentError, match='at least one structure'): labelme_masks(p, ())

@pytest.mark.parametrize('text,says', [('{', 'JSONDecodeError'), ('[]', 'without Labelme shapes'), ('{"shapes": {}}', 'without Labelme shapes'), ('{"shapes": [{"label": "a"}]}', 'without Labelme shapes'), ('{"shapes": [3]}', 'without Labelme shapes')])
def test_other_json_files(tmp_path, text, says):
    (tmp_path/'a.json').write_text(text)
    with pytest.raises(DataError, match=says): read_labelme(tmp_path/'a.json')

def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match='no file of this name'): read_labelme(tmp_path/'none.json')
    (tmp_path/'a.json').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='cannot be read as JSON'): read_labelme(tmp_path/'a.json')

def test_byte_order_mark(tmp_path):
    p = frame(tmp_path/'a.png', shape())
    p.write_bytes(b'\xef\xbb\xbf'+p.read_bytes())
    assert labelme_masks(p, 'kidney').sum()==28

def test_size_from_the_picture_when_the_file_lacks_it(tmp_path):
    inside = np.zeros((6,20), np.uint8)
    assert labelme_masks(frame(tmp_path/'a.png', shape(), imageHeight=None, imageWidth=None), 'kidney').shape==(1,10,14)
    assert labelme_masks(frame(tmp_path/'b.png', shape(), image=False, imageHeight=None, imageData=encoded(inside)), 'kidney').shape==(1,6,20)
    with pytest.raises(DataError, match='no imageHeight, no imageWidth and no picture'): labelme_masks(frame(tmp_path/'c.png', image=False, imageHeight=None), 'kidney')
    with pytest.raises(DataError, match='imageData|cannot be read'): labelme_masks(frame(tmp_path/'d.png', image=False, imageHeight=None, imageData='////'), 'kidney')

# --- folders of Labelme files ----------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    root = tmp_path/'upjo'
    for i in range(4):
        for k in range(3): frame(root/f'patient{i}/f{k}.png', shape(), *[shape('hydrops', [[3,4],[5,6]])]*(i%2))
    return root

def test_folder(folder):
    d = from_labelme(folder, LABELS)
    assert d.classes==['no hydronephrosis','hydronephrosis'] and d.info.channels==1 and d.info.masks==('kidney','hydronephrosis')
    assert d.labels.tolist()==[0]*3+[1]*3+[0]*3+[1]*3 and d.attributes.tolist()==[[1,o] for o in d.labels]
    assert d.items.group.tolist()==[f'patient{i}' for i in range(4) for _ in range(3)]
    assert (d.image(0)==np.array(Image.open(folder/'patient0/f0.png'))).all()
    assert d.mask_tensors(16, kind='planes').shape==(12,2,16,16) and d.labelmap(3).max()==2

def test_content_changes_with_the_outline(folder):
    a = from_labelme(folder, LABELS).contents
    frame(folder/'patient0/f0.png', shape(points=[[0,0],[3,3]]))
    b = from_labelme(folder, LABELS).contents
    assert a[0]!=b[0] and a[1:]==b[1:]

def test_splits(folder):
    d = load('upjo', folder, fractions=dict(train=.5, test=.5))
    assert split_label(d)=='by group' and set(d.items.split)=={'train','test'}
    p = load('upjo', folder, split='paper')
    assert split_label(p).startswith('leaky') and (p.items.split=='test').sum()==2 # one of each class
    assert set(load('upjo', folder, split='none').items.split)=={''}
    by = load('upjo', folder, split='patients')
    assert set(by.items.split)=={'train','test'} and leaks(by).empty
    assert len(load('upjo', folder, split='none', labels=('kidney','hydrops')))==12
    with pytest.raises(ArgumentError, match='choose from grouped, patients, paper, none'): load('upjo', folder, split='official')
    assert load('upjo', folder, seed=1, split='paper').items.split.tolist()!=p.items.split.tolist()

def test_patients(folder, tmp_path):
    assert from_labelme(folder, LABELS, patient=r'(f\d)').items.group.nunique()==3
    with pytest.raises(DataError, match="no match for the group pattern"): from_labelme(folder, LABELS, patient=r'(X\d)')
    for k in range(3): frame(tmp_path/f'flat/P{k//2}_{k}.png', shape())
    with pytest.raises(DataError, match='flat: got frames that lie in no folder'): from_labelme(tmp_path/'flat', LABELS)
    assert from_labelme(tmp_path/'flat', LABELS, patient=r'(P\d)_').items.group.tolist()==['P0','P0','P1']

def test_unannotated(folder):
    noise(folder/'patient2/new.png')
    with pytest.raises(DataError, match='patient2/new.png: got a picture without outlines'): from_labelme(folder, LABELS)
    assert len(from_labelme(folder, LABELS, unannotated='skip'))==12
    d = from_labelme(folder, LABELS, unannotated='empty')
    i = d.items.file.tolist().index('patient2/new.png')
    assert len(d)==13 and d.items['class'][i]=='no hydronephrosis' and d.masks(i).shape==(2,10,14) and not d.masks(i).any()
    with pytest.raises(ArgumentError, match='unannotated'): from_labelme(folder, LABELS, unannotated='ignore')

def test_picture_inside_the_file(folder):
    a = np.random.default_rng(0).integers(0, 256, (10,14,3), dtype=np.uint8)
    frame(folder/'patient0/f0.png', shape(), imagePath='gone.png', imageData=encoded(a))
    (folder/'patient0/f0.png').unlink()
    d = from_labelme(folder, LABELS)
    assert d.items.file[0]=='patient0/f0.json' and (d.image(0)==a).all() and d.masks(0)[0].sum()==28

def test_picture_named_otherwise(folder):
    frame(folder/'patient0/f0.png', shape(), imagePath=r'C:\somewhere\f0.png')
    frame(folder/'patient0/f1.png', shape(), imagePath='renamed.png')
    frame(folder/'patient0/f2.png', shape(), imagePath='../patient0/f2.png')
    assert from_labelme(folder, LABELS).items.file[:3].tolist()==['patient0/f0.png','patient0/f1.png','patient0/f2.png']

def test_picture_outside_the_folder_is_not_taken(folder, tmp_path):
    noise(tmp_path/'secret.png')
    frame(folder/'patient0/g.png', shape(), image=False, imagePath='../../secret.png')
    with pytest.raises(DataError, match='patient0/g.json: got no picture'): from_labelme(folder, LABELS)

def test_check_lists_everything(folder):
    frame(folder/'patient0/f0.png', shape(), imageHeight=20)
    frame(folder/'patient1/f0.png', shape('kidny'))
    frame(folder/'patient2/f0.png', shape(kind='line'))
    (folder/'patient3/f0.png').write_bytes(b'no picture')
    t = check(folder).set_index('file').problem
    assert t['patient0/f0.json']=='outlines for 20x14 pixels' and 'kidny' in t['patient1/f0.json'] and 'encloses nothing' in t['patient2/f0.json'] and 'cannot be read' in t['patient3/f0.png']

def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match='no folder of this name'): from_labelme(tmp_path/'none', LABELS)
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='empty: got no Labelme file'): from_labelme(tmp_path/'empty', LABELS)
    with pytest.raises(DataError, match='from_labelme'): load('upjo', tmp_path)

# --- hydronephrosis --------------------------------------------------------------------------------------
@pytest.fixture
def original(tmp_path):
    root = tmp_path/'hydronephrosis-us'
    for fold in range(1, 11):
        for cls in ('normal','abnormal'):
            for k in range(2):
                p = root/f'data/{fold}/{cls}/199901{max(fold,2):02d}_S000000{len(cls)-6}_US00000{fold%10}_00{k}.jpg'
                noise(p, (16,16))
                m = np.zeros((16,16), np.uint8)
                if cls=='abnormal': m[4:9,5:12] = 255
                Image.fromarray(m).save(p.with_name(p.stem+'_M.jpg'), quality=100)
    return root

def compact(d, dest):
    "Write `d` as the compact copy does"
    rows = []
    for i,r in d.items.iterrows():
        f,s = f'images/fold{r.fold:02d}/{r["class"]}/h{i:05d}.jpg',d.masks(i)[0]
        (dest/f).parent.mkdir(parents=True, exist_ok=True); (dest/f).write_bytes((d.root/r.file).read_bytes())
        mask = f.replace('images','masks').replace('.jpg','.png') if s.any() else ''
        if mask: (dest/mask).parent.mkdir(parents=True, exist_ok=True); Image.fromarray(s).save(dest/mask)
        rows.append(dict({'file':f, 'class':r['class'], 'split':f'fold{r.fold:02d}', 'mask':mask, 'group':r.group, 'suggested_split':dict(valid='val').get(r.split, r.split)}))
    pd.DataFrame(rows).to_csv(dest/'manifest.csv', index=False)
    return dest

def test_original_layout(original):
    d = load('hydronephrosis-us', original)
    assert len(d)==40 and d.info.images==5090 and d.items.fold.tolist()==[k for k in range(1, 11) for _ in range(4)]
    assert [d.masks(i).sum() for i in range(4)]==[35,35,0,0] and d.classes==['normal','abnormal']
    assert split_label(d)=='by group' and d.items.group.nunique()==18
    f = load('hydronephrosis-us', original, split='folds', fold=2)
    assert (f.items.split=='test').tolist()==(f.items.fold==2).tolist() and split_label(f).startswith('leaky: 2 of 18')
    assert set(load('hydronephrosis-us', original, split='none').items.split)=={''}

def test_identical_frames_join_studies(original):
    a,b = (sorted((original/f'data/{o}/normal').glob('*_000.jpg'))[0] for o in (6,9))
    b.write_bytes(a.read_bytes())
    g = load('hydronephrosis-us', original).items
    assert g.group.nunique()==17 and g[(g.fold==6) & (g['class']=='normal')].group.tolist()==g[(g.fold==9) & (g['class']=='normal')].group.tolist()

def test_layouts_agree(original, tmp_path):
    a = load('hydronephrosis-us', original)
    b = load('hydronephrosis-us', compact(a, tmp_path/'small'))
    assert a.items.drop(columns=['file','mask']).equals(b.items.drop(columns=['file','mask'])) and b.info.images==40
    assert all((a.masks(i)==b.masks(i)).all() and (a.image(i)==b.image(i)).all() for i in range(40))
    x,y = (load('hydronephrosis-us', o, split='folds', fold=3).items.split.tolist() for o in (original, tmp_path/'small'))
    assert x==y

def test_options(original):
    with pytest.raises(ArgumentError, match="belongs to split='folds'"): load('hydronephrosis-us', original, fold=3)
    with pytest.raises(ArgumentError, match="fold: got 11"): load('hydronephrosis-us', original, split='folds', fold=11)
    with pytest.raises(ArgumentError, match='choose from grouped, folds, none'): load('hydronephrosis-us', original, split='official')
    assert 'fold' in about('hydronephrosis-us')['options']

def test_wrong_layouts(original, tmp_path):
    next((original/'data/1/abnormal').glob('*_000_M.jpg')).unlink()
    (original/'data/10').rename(original/'data/11')
    t = check(original)
    assert 'a frame without its mask' in set(t.problem) and set(t.file[t.problem=='no frames'])=={'data/10/normal','data/10/abnormal'} and 'expected folders data/1 to data/10' in t.fix.iloc[-1]
    with pytest.raises(DataError, match='looked for'): load('hydronephrosis-us', tmp_path/'nowhere')
    (tmp_path/'other'/'hydronephrosis-us').mkdir(parents=True)
    with pytest.raises(DataError, match='a folder without its files'): load('hydronephrosis-us', tmp_path/'other')

def test_wrong_manifest(original, tmp_path):
    p = compact(load('hydronephrosis-us', original), tmp_path/'small')/'manifest.csv'
    m = pd.read_csv(p); m.loc[0,'class'],m.loc[5,'split'] = 'sick','fold11'
    m.to_csv(p, index=False)
    t = check(p.parent)
    assert t.problem.tolist()==["class 'sick', split 'fold01'","class 'abnormal', split 'fold11'"]
    m.drop(columns=['group','mask']).to_csv(p, index=False)
    with pytest.raises(DataError, match='no column group, mask'): load('hydronephrosis-us', p.parent)

@pytest.mark.parametrize('name,study', [('data/1/normal/19990102_S0000026_US000001_000.jpg','19990102_S0000026'), ('a_19990304_S0000000_US000004_-1_Frame0.jpg','19990304_S0000000'),
    ('010203_0102030275_000.jpg','010203'), ('0405060043_Frame112.jpg','040506'), ('kidney.jpg','kidney'), ('kidney_12.jpg','kidney'), ('12345678901_Frame1.jpg','12345678901'),
    ('MAKER_19990414_150447_1504500031_000.jpg','150447'), ('MAKER_19990414_150447_1504520034_000.jpg','150447'), ('S0000009_US000001_010.jpg','S0000009'), ('S0000009_US000004_002.jpg','S0000009')])
def test_study_of(name, study): assert study_of(name)==study

def readme_counts(folder):
    "The table under Counts of a README: {split: {class: n}}"
    t = re.search(r'## Counts\n+((?:\|.*\n)+)', (folder/'README.md').read_text(encoding='utf-8'))[1]
    rows = [[c.strip() for c in o.strip().strip('|').split('|')] for o in t.splitlines()]
    return {r[0]:dict(zip(rows[0][1:], map(int, r[1:]))) for r in rows[2:]}

def test_real_counts():
    folder = real('hydronephrosis-us')
    d = load('hydronephrosis-us', folder, split='none')
    t = pd.crosstab(d.items.fold, d.items['class'])
    for k,v in readme_counts(folder).items():
        have = t.sum() if k=='all' else t.loc[int(k[4:])]
        assert {**have.to_dict(),'all':have.sum()}==v, k

def test_real_groups():
    d = load('hydronephrosis-us', real('hydronephrosis-us'))
    assert not len(leaks(d)) and d.items.group.nunique()==509 and len(d)==1502 and d.info.images==1502
    assert {d.image(i).shape for i in range(0, 1502, 50)}=={(224,224)} and d.items['mask'].notna().sum()==971
    folds = [load('hydronephrosis-us', d.root, split='folds', fold=k).items for k in (1,10)]
    assert [(o.split=='test').sum() for o in folds]==[140,172]
