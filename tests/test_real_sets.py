"Every compact copy of a real set: read to the last pixel, and counted as its description says"
import hashlib, re
import numpy as np
import pytest
from conftest import real
from medattn_nb.data.datasets import load, read_manifest
from medattn_nb.data.quality import audit

SETS = {'covid-ct':{}, 'brain-tumor-mri-3264':{}, 'chest-xray-pneumonia':{}, 'isic2017-skin-lesion':{}, 'ph2-dermoscopy':{}, 'hydronephrosis-us':{}, 'lgg-mri-segmentation':{}, 'idrid-fundus':{}}

def counts(folder):
    "The table of counts in a set's description: row -> column -> number"
    rows = [[c.strip() for c in o.strip().strip('|').split('|')] for o in re.search(r'## Counts\n\n(.*?)\n\n', (folder/'README.md').read_text(), re.S)[1].splitlines()]
    t = {r[0]:dict(zip(rows[0][1:], map(int, r[1:]))) for r in rows[2:]}
    return t if 'all' in t else {**t, 'all':next(iter(t.values()))} # a set without parts has one row

@pytest.mark.parametrize('name', SETS)
def test_whole_and_complete(name):
    folder = real(name)
    t = counts(folder)['all']
    a = audit(name, folder)
    assert a.problems==[]
    if name=='idrid-fundus':
        b = audit(name, folder, task='segmentation')
        assert b.problems==[] and (a.images,b.images)==(t['all']-t['lesion_map'],t['lesion_map'])
    else: assert a.images==t['all']

@pytest.mark.parametrize('name', SETS)
def test_splits_as_described(name):
    "Sides of the official split, where the set has one"
    folder = real(name)
    t = {{'val':'valid'}.get(k, k):v for k,v in counts(folder).items()}
    if not {'train','test'}<=set(t): pytest.skip(f'{name} has no official split')
    got = load(name, folder).items.split.value_counts().to_dict()
    assert {k:v['all']-v.get('lesion_map', 0) for k,v in t.items() if k!='all'}==got

@pytest.mark.parametrize('name', SETS)
def test_files_are_those_of_the_manifest(name):
    "Twenty files, by their sums"
    folder = real(name)
    m = read_manifest(folder)
    for r in m.iloc[np.linspace(0, len(m)-1, 20).astype(int)].itertuples():
        assert hashlib.sha256((folder/r.file).read_bytes()).hexdigest()==r.sha256

@pytest.mark.parametrize('name', ['ph2-dermoscopy','hydronephrosis-us','lgg-mri-segmentation'])
def test_masks_cover_what_the_manifest_says(name):
    d,m = load(name, real(name)),read_manifest(real(name)).set_index('file')
    for i in np.linspace(0, len(d)-1, 25).astype(int):
        assert abs(d.mask(i).mean()-float(m.mask_fraction[d.items.file[i]] or 0))<2e-5
