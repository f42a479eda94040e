"The Cityscapes loader on small scenes in the official layout"
import shutil
import numpy as np
import pytest
from PIL import Image
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data import cityscapes
from medattn_nb.data.cityscapes import VEHICLES
from medattn_nb.data.datasets import check, leaks, load
from medattn_nb.data.quality import audit

H,W = 32,64
TRAIN,VAL = ('aachen','bochum','ulm'),('frankfurt','lindau')

def scene(seed, hw=(H,W)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, hw+(3,), dtype=np.uint8),rng.choice([0,1,7,24,25,*VEHICLES.values(),255], hw).astype(np.uint8)

def write(root, hw=(H,W), n=2):
    for side,cities in (('train',TRAIN),('val',VAL),('test',('berlin',))):
        for j,city in enumerate(cities):
            for i in range(n):
                stem = f'{side}/{city}/{city}_{i:06d}_000019'
                img,lab = scene(100*j+i+len(side), hw)
                for kind,a in (('leftImg8bit/{}_leftImg8bit.png',img),('gtFine/{}_gtFine_labelIds.png',lab),('gtFine/{}_gtFine_color.png',img)):
                    if side=='test' and kind.startswith('gtFine'): a = a*0
                    p = root/kind.format(stem)
                    p.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(a).save(p)
    return root

@pytest.fixture(scope='module')
def root(tmp_path_factory): return write(tmp_path_factory.mktemp('c')/'cityscapes')

def test_table(root):
    d = load('cityscapes', root.parent, size=None)
    assert d.items.split.tolist()==['train']*4+['valid']*2+['test']*4 and d.items.city.tolist()==[c for c in ('bochum','ulm','aachen','frankfurt','lindau') for _ in (0,1)]
    assert not len(leaks(d)) and d.classes==['scene'] and d.info.masks==('vehicle',) and (d.items.group==d.items.city).all()
    for i in range(2):
        img,lab = scene(100+i+5)
        assert (d.image(i)==img).all() and (d.masks(i)==((lab>=26)&(lab<=33))[None]).all()

def test_default_size_is_the_papers(root):
    d = load('cityscapes', root)
    assert d.image(0).shape==(128,256,3) and d.masks(0).shape==(1,128,256) and d.tensors((128,256)).shape==(10,3,128,256)

@pytest.mark.parametrize('size', [(16,32),(8,64),(10,13),(32,64),16])
def test_sizes(root, size):
    "Mean of the pixels, label of one pixel: no new labels, whatever the size"
    d,full = load('cityscapes', root, size=size),load('cityscapes', root, size=None)
    hw = size if isinstance(size, tuple) else (16,32)
    for i in (0,5,9):
        x,m,big = d.image(i),d.masks(i),full.image(i).astype(float)
        assert x.shape==hw+(3,) and m.shape==(1,)+hw and m.dtype==bool and abs(x.mean()-big.mean())<1
        fy,fx = H//hw[0],W//hw[1]
        if not (H%hw[0] or W%hw[1]):
            assert np.abs(x-big.reshape(hw[0],fy,hw[1],fx,3).mean((1,3))).max()<=.5 and (m[0]==full.masks(i)[0][fy//2::fy,fx//2::fx]).all()

def test_vehicles(root):
    every = load('cityscapes', root, size=None)
    parts = [load('cityscapes', root, size=None, vehicles=v) for v in VEHICLES]
    assert (np.stack([p.masks(0)[0] for p in parts]).sum(0)==every.masks(0)[0]).all() and len({p.fingerprint for p in parts}|{every.fingerprint})==9
    assert load('cityscapes', root, vehicles=('bus','car')).info.values==((28,26),)

def test_valid_city(root):
    d = load('cityscapes', root, valid_city='ulm')
    assert set(d.items.city[d.items.split=='valid'])=={'ulm'} and (load('cityscapes', root, valid_city=None).items.split!='valid').all()
    with pytest.raises(ArgumentError, match='aachen, bochum, ulm'): load('cityscapes', root, valid_city='frankfurt')

def test_files_that_macos_leaves(root, tmp_path):
    shutil.copytree(root, tmp_path/'cityscapes')
    for p in list((tmp_path/'cityscapes').rglob('*.png')): p.with_name('._'+p.name).write_bytes(b'resource fork')
    assert load('cityscapes', tmp_path).items.equals(load('cityscapes', root).items) and not len(check(tmp_path/'cityscapes'))

def test_a_copy_without_the_city_that_validates(root, tmp_path):
    "It is a problem of the files, unless the user chose the city"
    shutil.copytree(root, tmp_path/'cityscapes')
    shutil.rmtree(tmp_path/'cityscapes/leftImg8bit/train/aachen')
    t = check(tmp_path/'cityscapes')
    assert t.file.tolist()==['leftImg8bit/train/aachen'] and "valid_city='bochum'" in t.fix[0] and len(audit('cityscapes', tmp_path).problems)==1
    with pytest.raises(DataError, match="valid_city='bochum'"): load('cityscapes', tmp_path)
    assert load('cityscapes', tmp_path, valid_city='ulm').subset('valid').items.city.tolist()==['ulm']*2

@pytest.mark.parametrize('kw', [dict(vehicles=()), dict(vehicles='tram'), dict(size=(0,5)), dict(size=(1,2,3)), dict(size='small'), dict(split='paper')])
def test_bad_options(root, kw):
    with pytest.raises(ArgumentError): load('cityscapes', root, **kw)

def test_cache(root, tmp_path, monkeypatch):
    kw = dict(size=(16,32), cache=tmp_path/'small')
    a = load('cityscapes', root, size=(16,32))
    want = a.tensors((16,32)),a.mask_tensors((16,32))
    b = load('cityscapes', root, **kw)
    assert (b.tensors((16,32))==want[0]).all() and (b.mask_tensors((16,32))==want[1]).all() and len(list((tmp_path/'small').iterdir()))==20
    c = load('cityscapes', root, **kw, vehicles='car')
    monkeypatch.setattr(cityscapes, '_small', None)
    assert (c.tensors((16,32))==want[0]).all() and 0<c.mask_tensors((16,32)).sum()<want[1].sum()
    c.image(0)[:] = 0
    assert c.image(0).any() and a.fingerprint==b.fingerprint!=load('cityscapes', root).fingerprint

def test_counts():
    info = cityscapes.info
    assert info.images==3475==2975+500 and dict((o[0],o[2]) for o in info.counts)=={'':3475,'test':500} and tuple(VEHICLES.values())==tuple(range(26,34))

def test_what_is_missing(tmp_path):
    root = write(tmp_path/'cityscapes')
    gone = root/'gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png'
    gone.unlink()
    Image.fromarray(np.zeros((3,4), np.uint8)).save(root/'gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png')
    (root/'leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png').write_bytes(b'?')
    got = check(root)
    assert got.file.str.rsplit('/', n=1).str[-1].tolist()==[gone.name,'bochum_000000_000019_leftImg8bit.png','lindau_000000_000019_gtFine_labelIds.png'] and got.attrs['images']==9
    (root/'gtFine/train').rename(root/'gtFine/elsewhere')
    got = check(root)
    assert ['gtFine/train','no label numbers'] in got[['file','problem']].to_numpy().tolist()
    (root/'leftImg8bit/val').rename(root/'leftImg8bit/other')
    assert 'leftImg8bit/val' in check(root).file.tolist()
    with pytest.raises(DataError, match='unpack'): load('cityscapes', root)
    with pytest.raises(DataError, match='Register at cityscapes-dataset.com'): load('cityscapes', tmp_path/'nothing')

def test_audit(root):
    said = audit(root)
    assert not said.problems and any('3475' in o for o in said.warnings)
