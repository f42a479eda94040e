"ISIC 2018 task 2: five masks a picture, in the order of SANet's Table 1"
import numpy as np
import pytest
from PIL import Image
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data import phantom_dermoscopy
from medattn_nb.data.datasets import about, check, load
from medattn_nb.data.isic2018 import ATTRIBUTES
from medattn_nb.data.quality import mask_statistics

TRUTH = 'ISIC2018_Task2_Training_GroundTruth_v3'
N,HW = 20,(13,17)

def mask_path(root, i, k, truth=TRUTH): return root/truth/f'ISIC_{i:07d}_attribute_{ATTRIBUTES[k]}.png'

@pytest.fixture
def isic(tmp_path):
    "Attribute k is a strip in every (k+2)th picture"
    root = tmp_path/'isic-2018-task2'
    for o in ('ISIC2018_Task1-2_Training_Input',TRUTH): (root/o).mkdir(parents=True)
    for i in range(N):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*HW,3), dtype=np.uint8)).save(root/f'ISIC2018_Task1-2_Training_Input/ISIC_{i:07d}.jpg')
        for k in range(5):
            m = np.zeros(HW, np.uint8)
            if i%(k+2)==0: m[k:k+3] = 255
            Image.fromarray(m).save(mask_path(root, i, k))
    return root

def test_order_is_that_of_table_1(): assert ATTRIBUTES==phantom_dermoscopy.ATTRIBUTES==('pigment_network','negative_network','milia_like_cyst','globules','streaks')

def test_planes(isic):
    d = load('isic-2018-task2', isic)
    assert len(d)==N and d.info.masks==ATTRIBUTES and not d.info.attributes and d.info.images==2594
    for i in range(N):
        m = d.masks(i)
        assert m.dtype==bool and m.shape==(5,*HW) and m.any((1,2)).tolist()==[i%(k+2)==0 for k in range(5)]
        for k in range(5): assert not m[k].any() or (m[k,k:k+3].all() and m[k].sum()==3*HW[1])
    assert d.labelmap(0).max()==5 and d.mask_tensors(16, kind='planes').shape==(N,5,16,16)

def test_attributes_on_request(isic):
    d = load('isic-2018-task2', isic, attributes=True)
    assert d.info.attributes==ATTRIBUTES and d.attributes.tolist()==[[float(i%(k+2)==0) for k in range(5)] for i in range(N)]
    assert not any(o.startswith('has:') for o in load('isic-2018-task2', isic).items)

def test_statistics(isic):
    t = mask_statistics(load('isic-2018-task2', isic))
    assert t['blank (%)'].tolist()==[100*np.mean([i%(k+2)!=0 for i in range(N)]) for k in range(5)]
    assert np.allclose(t['pixels, where present (%)'], 100*3/HW[0])

def test_splits(isic):
    d = load('isic-2018-task2', isic)
    assert d.describe()['all'].tolist()==[16,2,2,20]
    assert load('isic-2018-task2', isic, seed=1).items.split.tolist()!=d.items.split.tolist()
    valid = [load('isic-2018-task2', isic, split='folds', fold=f, k=4).items.split=='valid' for f in range(1, 5)]
    assert [o.sum() for o in valid]==[5]*4 and sum(o.astype(int) for o in valid).tolist()==[1]*N
    assert set(load('isic-2018-task2', isic, split='none').items.split)=={''}
    for o,says in ((dict(split='paper'),'official, grouped, folds, none'), (dict(fold=3),"belongs to split='folds'"), (dict(split='none', k=4),"belongs to split='folds'"), (dict(split='folds', fold=0),'use 1 to 5'), (dict(split='folds', fold=6),'use 1 to 5')):
        with pytest.raises(ArgumentError, match=says): load('isic-2018-task2', isic, **o)

def test_other_versions_of_the_ground_truth(isic):
    (isic/TRUTH).rename(isic/'ISIC2018_Task2_Training_GroundTruth_v2')
    (isic/f'{TRUTH}.zip').write_bytes(b'an archive that was left lying there')
    assert 'GroundTruth_v2' in load('isic-2018-task2', isic).items['mask:streaks'][0]
    (isic/'ISIC2018_Task2_Training_GroundTruth_v2').rename(isic/TRUTH); (isic/'ISIC2018_Task2_Training_GroundTruth_v2').mkdir()
    assert TRUTH in load('isic-2018-task2', isic).items['mask:streaks'][0]

def test_what_is_wrong_is_named(isic):
    mask_path(isic, 3, 4).unlink()
    Image.new('L', HW).save(mask_path(isic, 5, 1))
    mask_path(isic, 7, 2).write_bytes(b'no picture')
    t = check(isic).set_index('file').problem
    assert t[mask_path(isic, 3, 4).relative_to(isic).as_posix()]=='no file of this name' and 'a mask of 17x13' in t[mask_path(isic, 5, 1).relative_to(isic).as_posix()] and 'cannot be read' in t[mask_path(isic, 7, 2).relative_to(isic).as_posix()]
    assert len(t)==3 and check(isic).attrs['images']==N-1
    with pytest.raises(DataError, match='ISIC_0000003.jpg needs five masks'): load('isic-2018-task2', isic)

def test_attributes_name_a_damaged_mask(isic):
    mask_path(isic, 7, 2).write_bytes(b'no picture')
    with pytest.raises(DataError, match='ISIC_0000007_attribute_milia_like_cyst.png'): load('isic-2018-task2', isic, attributes=True)

def test_wrong_layouts(isic, tmp_path):
    (isic/TRUTH).rename(tmp_path/'masks')
    with pytest.raises(DataError, match='unzip the ground truth of task 2'): load('isic-2018-task2', isic)
    (isic/'ISIC2018_Task1-2_Training_Input').rename(tmp_path/'pictures')
    with pytest.raises(DataError, match='a folder without its files'): load('isic-2018-task2', isic.parent)

def test_description():
    a = about('isic-2018-task2')
    assert a['images']=='2594' and 'lesion 2594' in a['published counts'] and 'attributes' in a['options'] and 'SANet' in a['paper']

def test_official_split(isic):
    with pytest.raises(DataError, match='ISIC2018_Task1-2_Validation_Input: got no pictures'): load('isic-2018-task2', isic, split='official')
    for n,(side,first) in zip((3,4), (('Validation',100),('Test',200))):
        for o in (f'ISIC2018_Task1-2_{side}_Input',f'ISIC2018_Task2_{side}_GroundTruth'): (isic/o).mkdir()
        for i in range(n):
            (isic/f'ISIC2018_Task1-2_{side}_Input/ISIC_{first+i:07d}.jpg').write_bytes((isic/f'ISIC2018_Task1-2_Training_Input/ISIC_{i:07d}.jpg').read_bytes())
            for k in range(5): mask_path(isic, first+i, k, f'ISIC2018_Task2_{side}_GroundTruth').write_bytes(mask_path(isic, i, k).read_bytes())
    d = load('isic-2018-task2', isic, split='official', attributes=True)
    assert d.describe()['all'].tolist()==[20,3,4,27] and d.info.images==3694 and (d.attributes[20:23]==d.attributes[:3]).all()
    assert (d.masks(23)==d.masks(0)).all() and d.items.name[20]=='ISIC_0000100'
    assert len(load('isic-2018-task2', isic))==N and load('isic-2018-task2', isic).info.images==2594
    mask_path(isic, 201, 0, 'ISIC2018_Task2_Test_GroundTruth').unlink()
    with pytest.raises(DataError, match='ISIC2018_Task2_Test_GroundTruth/ISIC_0000201_attribute_pigment_network.png'): load('isic-2018-task2', isic, split='official')
