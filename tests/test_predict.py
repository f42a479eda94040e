"Prediction: masks at the size of the picture, files of every kind, and a thousand of them with one that is bad"
import contextlib, csv, errno, json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from medattn_nb import backbones
from medattn_nb.core import ArgumentError, DataError, ResultError, ShapeError
from medattn_nb.data.datasets import from_manifest, read_image
from medattn_nb.lab import predict as P
from medattn_nb.lab.cli import main
from medattn_nb.lab.predict import COLOURS, Predictor, measure, overlay, predict_files
from medattn_nb.lab.training import Recipe, checkpoint_path, fit, predict, predict_masks

def levels(num_classes, in_channels):
    "A network of one pixel: output k asks whether the mean of the channels is above .25, .6, ..."
    net,at = nn.Conv2d(in_channels, num_classes, 1),[.25+.35*k for k in range(num_classes)]
    with torch.no_grad():
        net.weight.fill_(8/in_channels)
        net.bias.copy_(torch.tensor(at)*-8)
    return net

def classes(num_classes, in_channels, **kw): return nn.Sequential(nn.Conv2d(in_channels, num_classes, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def small(num_classes, in_channels): return nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, num_classes, 3, padding=1))

@pytest.fixture(scope='module', autouse=True)
def networks():
    "Three tiny networks with names"
    mine = {f'test-{f.__name__}':f for f in (levels,classes,small)}
    for k,f in mine.items(): backbones.register_backbone(k)(f)
    yield
    for k in mine: del backbones._backbones[k]

def made(names=('kidney','hydronephrosis'), size=32, preprocess=('resize',), channels=1, task='segment', model='test-levels', mode='multilabel', dtype='uint8', net=None, **kw):
    "A predictor without any training"
    kw |= dict(masks=names, mode=mode) if task=='segment' else {}
    r = Recipe(data='phantom-renal', task=task, size=size, preprocess=preprocess, channels=channels, model=model, **kw)
    n = len(names)+(task=='segment' and mode=='multiclass')
    torch.manual_seed(0)
    net = net or backbones.create_backbone(model, num_classes=n, in_channels=channels)
    return P._built(r, net.state_dict(), dict(names=list(names), mean=torch.zeros(channels,1,1), std=torch.ones(channels,1,1), dtype=dtype, version='9.9'), torch.device('cpu'))

TINY = Recipe(data='phantom-renal', data_options=dict(n=24, size=32, frames=2), task='segment', masks=('kidney','hydronephrosis'), model='test-small', channels=1, size=32,
    loss='dice', optimiser='adam', lr=.02, epochs=2, batch_size=8)

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "(folder of checkpoints, learner, data)"
    d,data = tmp_path_factory.mktemp('ck'),TINY.load()
    return d,fit(TINY, data, checkpoints=d, device='cpu').learn,data

def blob(h=40, w=60, seed=0):
    "A grey picture with a disc, and a brighter one in it"
    y,x = np.mgrid[:h,:w]
    r = np.hypot((y-h/2)/h, (x-w/2)/w)
    return (np.where(r<.15, 220, np.where(r<.35, 120, 10))+np.random.default_rng(seed).integers(0, 6, (h,w))).astype(np.uint8)

def put(path, a=None, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    (a if isinstance(a, Image.Image) else Image.fromarray(blob() if a is None else a)).save(path, **kw)
    return path

def rows(out):
    with open(Path(out)/'predictions.csv', encoding='utf-8-sig', newline='') as f: return list(csv.DictReader(f))

def mask(out, row, k='kidney'): return np.array(Image.open(Path(out)/row[f'mask:{k}']))

# --- one picture ---------------------------------------------------------------------------------------
def square(hw, top, left, h, w):
    a = np.zeros(hw, np.uint8)
    a[top:top+h,left:left+w] = 255
    return a

@pytest.mark.parametrize('step', ['letterbox','letterbox-grey'])
@pytest.mark.parametrize('hw', [(32,20),(20,32),(32,32)])
def test_a_letterbox_without_scaling_is_undone_exactly(step, hw):
    im = square(hw, 5, 4, 9, 11)
    o = made(preprocess=(step,)).predict_image(im)
    assert o.masks.shape==(2,*hw) and o.probs.shape==(2,*hw) and o.probs.dtype==np.float32 and o.seen==1
    assert (o.masks==(im>0)).all()

@settings(max_examples=40, deadline=None)
@given(st.sampled_from(['letterbox','letterbox-grey','resize']), st.integers(24, 130), st.integers(24, 130), st.randoms(use_true_random=False))
def test_a_square_comes_back_to_a_pixel_of_the_coarser_grid(step, H, W, rnd):
    "Enlarged: to a pixel of the picture. Reduced: to one of the input"
    s = max(H, W)/32 if step!='resize' else max(H/32, W/32)
    h,w = (max(int(4*s)+1, rnd.randint(1, n)) for n in (H,W))
    if h>=H or w>=W: return
    top,left = rnd.randint(0, H-h),rnd.randint(0, W-w)
    m = made(preprocess=(step,)).predict_image(square((H,W), top, left, h, w)).masks[0]
    (y,),(x,) = (np.where(m.any(k)) for k in (1,0))
    tol = max(1, s)
    assert m.shape==(H,W) and max(abs(y[0]-top), abs(y[-1]-(top+h-1)), abs(x[0]-left), abs(x[-1]-(left+w-1)))<=tol

@pytest.mark.parametrize('kw', [dict(), dict(mode='multiclass'), dict(reverse=True), dict(preprocess=('letterbox','clahe')), dict(channels=3), dict(channels_last=True)], ids=str)
def test_a_picture_of_the_training_size_gives_the_masks_of_predict_masks(kw):
    r = TINY.replace(**{'loss':'ce', **kw}) if kw.get('mode') else TINY.replace(**kw)
    data = r.load()
    learn = fit(r, data, device='cpu').learn
    p = Predictor.of(learn, r, data)
    at = np.flatnonzero(data.items.split=='test')
    got = [p.predict_image(data.image(i)) for i in at]
    assert (np.stack([o.masks for o in got])==predict_masks(learn, 'test')).all()
    assert np.allclose(np.stack([o.probs for o in got]), predict(learn, 'test'), atol=1e-5)

def test_classes_give_probabilities():
    r = Recipe(data='phantom-texture', data_options=dict(n=24, size=32), size=32, epochs=1, batch_size=8, model='test-classes', lr=.01)
    data = r.load()
    learn = fit(r, data, device='cpu').learn
    p = Predictor.of(learn, r, data)
    i = int(np.flatnonzero(data.items.split=='test')[0])
    o = p.predict_image(data.image(i))
    assert p.names==tuple(data.classes) and o.masks is None and np.allclose(o.probs, predict(learn, 'test')[0], atol=1e-5)

def test_what_a_crop_cut_off_is_background_and_told():
    im = np.full((32,64), 255, np.uint8)
    o = made(preprocess=('crop',)).predict_image(im)
    assert o.seen==.5 and not o.masks[:,:,:16].any() and not o.masks[:,:,48:].any() and o.masks[:,:,16:48].all()
    o = made(preprocess=('crop',), mode='multiclass').predict_image(im)
    out = np.r_[:16,48:64]
    assert not o.masks[:,:,out].any() and (o.probs[0][:,out]==1).all() and (o.probs[1:][:,:,out]==0).all() and (o.probs[0,:,20:44]<1).all()
    assert made(preprocess=('centre',)).predict_image(np.zeros((64,64), np.uint8)).seen==.25

@pytest.mark.parametrize('hw', [(1,1),(1,300),(300,1),(2,3),(33,31)])
def test_any_size(hw):
    for step in ('resize','letterbox','crop'):
        o = made(preprocess=(step,)).predict_image(np.full(hw, 200, np.uint8))
        assert o.masks.shape==(2,*hw) and np.isfinite(o.probs).all()

def test_a_huge_picture():
    im = np.zeros((3000,4000), np.uint8); im[1000:2000,1000:2000] = 255
    m = made(preprocess=('letterbox',)).predict_image(im).masks[0]
    assert m.shape==im.shape and abs(m.sum()/1e6-1)<.2

def test_grey_and_colour():
    grey,rgb = made(),made(channels=3)
    im = blob()
    for p in (grey,rgb): assert (p.predict_image(im).masks==p.predict_image(np.repeat(im[...,None], 3, 2)).masks).all()

@pytest.mark.parametrize('im', [blob().astype(float), blob().astype(np.float32), blob()>50, np.zeros((4,4,2), np.uint8), np.zeros((0,4), np.uint8), 'x.png', None], ids=lambda o: str(getattr(o, 'dtype', o)))
def test_what_is_no_picture(im):
    with pytest.raises((ShapeError,ArgumentError)): made().predict_image(im)

def test_thresholds():
    p,im = made(),blob()
    assert p.predict_image(im, .9).masks.sum()<p.predict_image(im).masks.sum()<p.predict_image(im, .1).masks.sum()
    with pytest.raises(ArgumentError, match='threshold'): made(mode='multiclass').predict_image(im, .3)

def test_float_arrays_of_several_modalities():
    p = made(channels=4, dtype='float32')
    assert p.predict_image(np.random.rand(20,30,4).astype(np.float32)).masks.shape==(2,20,30)
    with pytest.raises(ShapeError, match='float32'): p.predict_image(blob())
    with pytest.raises(ArgumentError, match='no picture file'): predict_files(p, 'x', 'y')

# --- measures ------------------------------------------------------------------------------------------
def test_measure_by_hand():
    m = np.zeros((2,10,20), bool)
    m[0,:5,:10],m[1,3:7,8:12] = True,True
    o = measure(m, ('K','F'), (.5,.2))
    assert o['K_pixels']==50 and o['F_pixels']==16 and o['K_share']==.25 and o['F_mm2']==pytest.approx(1.6)
    assert o['F/K']==pytest.approx(16/(50+16-4))
    assert np.isnan(measure(m&False, ('K','F'))['F/K']) and 'F_mm2' not in measure(m, ('K','F')) and list(measure(m[:1], ('K',)))==['K_pixels','K_share']

def test_the_ratio_is_that_of_the_whole_organ_in_both_modes():
    whole,fluid = np.zeros((8,8), bool),np.zeros((8,8), bool)
    whole[1:7,1:7],fluid[2:4,2:4] = True,True
    a,b = (measure(np.stack([k,fluid]), ('K','F'))['F/K'] for k in (whole,whole&~fluid))
    assert a==b==4/36

@pytest.mark.parametrize('spacing', [0, -1, float('nan'), (1,2,3), 'a'])
def test_a_spacing_that_is_none(spacing):
    with pytest.raises((ArgumentError,ValueError)): measure(np.ones((1,2,2), bool), 'a', spacing)

def test_overlay_marks_the_rim_and_leaves_the_rest():
    im,m = blob(100, 100),np.zeros((2,100,100), bool)
    m[0,20:80,20:80] = True
    o = overlay(im, m)
    first = tuple(bytes.fromhex(next(iter(COLOURS.values()))[1:]))
    assert o.shape==(100,100,3) and o.dtype==np.uint8 and tuple(o[20,50])==first and (o[~m[0]]==np.repeat(im[...,None], 3, 2)[~m[0]]).all()
    assert tuple(o[50,50])!=first and (overlay(im, m[:0])==im[...,None]).all()
    assert overlay(im, np.ones((9,100,100), bool)).shape==(100,100,3)

# --- the file of a network -----------------------------------------------------------------------------
def same(a, b): return a.digest==b.digest and a.recipe==b.recipe and a.names==b.names and all((x==y).all() for x,y in zip(a.model.state_dict().values(), b.model.state_dict().values()))

def test_saved_and_loaded(trained, tmp_path):
    d,learn,data = trained
    p = Predictor.of(learn, TINY, data)
    q,c = Predictor.load(p.save(tmp_path/'new/p.pth'), 'cpu'),Predictor.load(checkpoint_path(TINY, d), 'cpu')
    assert same(p, q) and same(p, c) and p.fingerprint==q.fingerprint==data.fingerprint and q.version and not list(tmp_path.glob('new/.*'))
    im = blob()
    assert (p.predict_image(im).probs==q.predict_image(im).probs).all() and (p.predict_image(im).probs==c.predict_image(im).probs).all()
    assert 'kidney, hydronephrosis' in repr(p) and not p.model.training and learn.model is not p.model

def test_loading_draws_no_random_numbers(trained):
    torch.manual_seed(3); a = torch.rand(1)
    torch.manual_seed(3); Predictor.load(checkpoint_path(TINY, trained[0]), 'cpu')
    assert torch.rand(1)==a

def altered(d, tmp_path, **kw):
    "The checkpoint with some keys changed; `None` takes one out"
    ck = torch.load(checkpoint_path(TINY, d), weights_only=True) | kw
    torch.save({k:v for k,v in ck.items() if v is not None or k not in kw}, tmp_path/'ck.pth')
    return tmp_path/'ck.pth'

def test_an_old_checkpoint_resumes_and_predicts(trained, tmp_path):
    d,learn,data = trained
    old = altered(d, tmp_path, reading=None)
    assert same(Predictor.load(old, 'cpu'), Predictor.of(learn, TINY, data)) and same(Predictor.load(old, 'cpu', data=data), Predictor.of(learn, TINY, data))
    shutil.copy(old, checkpoint_path(TINY, tmp_path))
    again = fit(TINY, data, checkpoints=tmp_path, device='cpu')
    assert again.resumed==2 and all((a==b).all() for a,b in zip(again.learn.model.state_dict().values(), learn.model.state_dict().values()))

def test_an_old_checkpoint_without_its_data(trained, tmp_path, monkeypatch):
    monkeypatch.delenv('MEDATTN_DATA', raising=False)
    r = json.dumps(TINY.replace(data='hydronephrosis-us', data_options={}, masks=('hydronephrosis',)).to_dict())
    with pytest.raises(ResultError, match='normalisation.*--data-root'): Predictor.load(altered(trained[0], tmp_path, reading=None, recipe=r))

def test_a_checkpoint_changes_no_number_of_the_training(trained, tmp_path):
    a,b = (fit(TINY, TINY.load(), checkpoints=c, device='cpu').learn.model.state_dict() for c in (None,tmp_path))
    assert all((a[k]==b[k]).all() for k in a) and all((a[k]==v).all() for k,v in trained[1].model.state_dict().items())

def test_files_that_are_no_network(trained, tmp_path):
    d,learn,data = trained
    def refused(path, error, says):
        with pytest.raises(error, match=says): Predictor.load(path, 'cpu')
    refused(tmp_path/'none.pth', DataError, 'no file of this name'); refused(tmp_path, DataError, 'a folder')
    for junk in (b'', b'text', b'PK\3\4'+bytes(50)):
        (tmp_path/'junk.pth').write_bytes(junk)
        refused(tmp_path/'junk.pth', DataError, 'cannot be read as a network')
    torch.save(learn.model.state_dict(), tmp_path/'bare.pth'); refused(tmp_path/'bare.pth', DataError, 'without a recipe')
    torch.save([1], tmp_path/'list.pth'); refused(tmp_path/'list.pth', DataError, 'without a recipe')
    refused(altered(d, tmp_path, epoch=1), ResultError, '1 of 2 epochs')
    reading = torch.load(checkpoint_path(TINY, d), weights_only=True)['reading']
    refused(altered(d, tmp_path, reading={**reading, 'format':2, 'version':'7.0'}), ResultError, 'medattn_nb 7.0.*update')
    refused(altered(d, tmp_path, recipe=json.dumps({**TINY.to_dict(), 'colour':1})), ResultError, 'update')
    refused(altered(d, tmp_path, recipe=json.dumps({**TINY.to_dict(), 'model':'no-net'})), ResultError, 'no-net')
    refused(altered(d, tmp_path, recipe=json.dumps({**TINY.to_dict(), 'preprocess':['spin']})), ResultError, 'spin')
    refused(altered(d, tmp_path, recipe=json.dumps({**TINY.to_dict(), 'channels':3})), ResultError, 'cannot be built')
    with pytest.raises(ArgumentError, match='device'): Predictor.load(checkpoint_path(TINY, d), 'tpu')

def test_a_file_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir,(str(tmp_path/'owned'),)
    torch.save(dict(recipe=Evil(), model={}), tmp_path/'evil.pth')
    with pytest.raises(DataError): Predictor.load(tmp_path/'evil.pth', 'cpu')
    assert not (tmp_path/'owned').exists()

def test_of_needs_a_learner_of_a_recipe(trained):
    from types import SimpleNamespace as S
    with pytest.raises(ArgumentError, match='learn'): Predictor.of(S(dls=S(train=[])), TINY, trained[2])

# --- kinds of files ------------------------------------------------------------------------------------
def test_areas_are_those_of_the_masks_at_the_size_of_the_picture(tmp_path):
    sizes = [(40,60),(200,31),(1,1),(32,32),(77,300)]
    for i,hw in enumerate(sizes): put(tmp_path/f'in/{i}.png', blob(*hw))
    df = predict_files(made(preprocess=('letterbox',)), tmp_path/'in', tmp_path/'out', spacing=(.5,.25), bs=3)
    for hw,o in zip(sizes, rows(tmp_path/'out')):
        assert (int(o['height']),int(o['width']))==hw and np.array(Image.open(tmp_path/'out'/o['overlay'])).shape==(*hw,3)
        for k in ('kidney','hydronephrosis'):
            m = mask(tmp_path/'out', o, k)
            assert m.shape==hw and m.sum()==int(o[f'{k}_pixels']) and float(o[f'{k}_mm2'])==pytest.approx(m.sum()/8) and float(o[f'{k}_share'])==pytest.approx(m.mean(), abs=1e-5)
        a,b = mask(tmp_path/'out', o),mask(tmp_path/'out', o, 'hydronephrosis')
        assert o['hydronephrosis/kidney']=='' if not (a|b).any() else float(o['hydronephrosis/kidney'])==pytest.approx(b.sum()/(a|b).sum(), abs=1e-5)
    assert df.attrs==dict(files=5, new=5, before=0, bad=0, passed=0) and list(df.columns)==list(rows(tmp_path/'out')[0])

def test_batches_change_nothing(tmp_path):
    for i in range(7): put(tmp_path/f'in/{i}.png', blob(30+9*i, 50, i))
    got = [predict_files(made(), tmp_path/'in', tmp_path/f'out{b}', bs=b) for b in (1,3,16)]
    assert all((o.kidney_pixels==got[0].kidney_pixels).all() for o in got)
    assert [len(b) for b in P._batches([(np.zeros((6,6)),)]*5, 4, most=70)]==[2,2,1]

def test_every_kind_of_picture(tmp_path):
    a,d = blob(),tmp_path/'in'
    put(d/'16.png', Image.fromarray(a.astype(np.uint16)*250)); put(d/'rgba.png', Image.fromarray(np.dstack([a,a,a,np.full_like(a, 255)])))
    put(d/'la.png', Image.fromarray(np.dstack([a,np.full_like(a, 255)]))); put(d/'palette.gif', Image.fromarray(a).convert('P')); put(d/'p.bmp'); put(d/'f.tif', Image.fromarray(a.astype(np.float32)))
    put(d/'photo.JPG', Image.fromarray(np.dstack([a]*3)), format='JPEG', quality=95); put(d/'p.webp', lossless=True); put(d/'p.pgm'); put(d/'1bit.png', Image.fromarray(a>100))
    exif = Image.Exif(); exif[0x0112] = 6
    put(d/'turned.jpg', Image.fromarray(a), exif=exif, quality=95)
    df = predict_files(made(channels=3), d, tmp_path/'out')
    assert df.attrs['bad']==0 and len(df)==11
    want = df[df.file.str.endswith('p.bmp')].kidney_pixels.item()
    for f,h,w,n in df[['file','height','width','kidney_pixels']].itertuples(index=False):
        assert (h,w)==((60,40) if 'turned' in f else (40,60)), f
        if '1bit' not in f: assert abs(n/want-1)<.06, f
    assert read_image(d/'turned.jpg').shape==(60,40)

def test_pages_are_frames(tmp_path):
    ims = [Image.fromarray(blob(40, 60, i)) for i in range(3)]
    put(tmp_path/'in/stack.tif', ims[0], save_all=True, append_images=ims[1:])
    put(tmp_path/'in/cine.gif', ims[0], save_all=True, append_images=ims[1:])
    put(tmp_path/'in/two.tif', ims[0], save_all=True, append_images=[Image.fromarray(blob(4, 6))])
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert df.frame.tolist()==[0,1,2,0,1,2,0,1] and df.second.isna().all() and df.attrs['bad']==0
    assert len({o for o in df['mask:kidney']})==8 and (tmp_path/'out/masks/kidney/stack.tif/000002.png').is_file()

def test_small_copies_behind_a_page_are_no_frames(tmp_path):
    from PIL import TiffImagePlugin
    info = TiffImagePlugin.ImageFileDirectory_v2(); info[254] = 1
    (tmp_path/'in').mkdir()
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path/'in/scan.tif'), True) as f:
        Image.fromarray(blob()).save(f, 'TIFF'); f.newFrame()
        Image.fromarray(blob(10, 15)).save(f, 'TIFF', tiffinfo=info); f.newFrame()
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert len(df)==1 and df.frame.isna().all() and df.height.item()==40

BAD = {'zero.png':b'', 'text.png':b'no picture', 'cut.png':None, 'cut.jpg':None, 'cut.tif':None, 'scan.dcm':bytes(128)+b'DICM'+bytes(50), 'IM0001':bytes(128)+b'DICM'+bytes(50), 'volume.nii.gz':b'x', 'junk.avi':b'RIFF junk', 'zero.mp4':b''}
SAYS = {'zero.png':'empty file', 'text.png':'cannot be read as an image', 'cut.png':'cannot be read', 'cut.jpg':'cannot be read', 'cut.tif':'cannot be read', 'scan.dcm':'DICOM', 'IM0001':'DICOM', 'volume.nii.gz':'volume', 'junk.avi':'no frame can be read', 'zero.mp4':'no frame can be read'}

@pytest.fixture
def spoilt(tmp_path):
    "A folder with every kind of bad file between three good ones"
    d = tmp_path/'in'
    for f in ('a','m','z'): put(d/f'{f}.png')
    for f,b in BAD.items():
        if b is None: put(d/f, blob(200, 300)); b = (d/f).read_bytes()[:2000]
        (d/f).write_bytes(b)
    (d/'notes.txt').write_text('x'); (d/'.hidden.png').write_text('x'); (d/'.git').mkdir(); put(d/'.git/x.png')
    return d

def test_bad_files_are_lines_with_a_reason(spoilt, tmp_path):
    df = predict_files(made(), spoilt, tmp_path/'out', bs=2)
    said = {Path(o['file']).name:o['error'] for o in rows(tmp_path/'out')}
    assert df.attrs==dict(files=13, new=13, before=0, bad=10, passed=1) and set(said)=={*BAD,'a.png','m.png','z.png'}
    for f,e in said.items(): assert SAYS[f] in e if f in BAD else e=='', (f,e)
    assert len(list((tmp_path/'out/masks/kidney').iterdir()))==3

def test_what_is_not_there(tmp_path):
    p = made()
    with pytest.raises(DataError, match='nothing of this name'): predict_files(p, tmp_path/'no', tmp_path/'out')
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='no picture and no video'): predict_files(p, tmp_path/'empty', tmp_path/'out')
    assert not (tmp_path/'out').exists()
    df = predict_files(p, [tmp_path/'no', put(tmp_path/'x.png')], tmp_path/'out')
    assert df.error.tolist()==['nothing of this name','']

def test_a_named_file_is_tried_whatever_it_is_called(tmp_path):
    f = put(tmp_path/'x.png').rename(tmp_path/'x.data')
    assert predict_files(made(), f, tmp_path/'out').attrs['bad']==0

def test_a_thousand_files_one_of_them_bad(tmp_path):
    d = tmp_path/'in'; d.mkdir()
    for i in range(1000): Image.fromarray(np.full((12,16), i%251, np.uint8)).save(d/f'{i:04d}.png')
    (d/'0500.png').write_bytes(b'')
    df = predict_files(made(size=8), d, tmp_path/'out', bs=64)
    assert df.attrs==dict(files=1000, new=1000, before=0, bad=1, passed=0) and df.file[df.error!=''].tolist()==['../in/0500.png']
    assert len(list((tmp_path/'out/masks/kidney').iterdir()))==len(list((tmp_path/'out/overlays').iterdir()))==999
    n = [(np.full(192, i%251)>63.75).sum() for i in range(1000) if i!=500]
    assert (df.kidney_pixels.dropna()==n).all()

# --- names ---------------------------------------------------------------------------------------------
def outputs(out): return sorted(o.relative_to(Path(out)/'masks/kidney').as_posix() for o in (Path(out)/'masks/kidney').rglob('*.png'))

def test_folders_are_kept(tmp_path):
    for f in ('a/x.png','b/x.png','b/c/x.png'): put(tmp_path/'in'/f)
    predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert outputs(tmp_path/'out')==['a/x.png','b/c/x.png','b/x.png']
    predict_files(made(), [tmp_path/'in/a', tmp_path/'in/b/x.png', tmp_path/'in/a/x.png'], tmp_path/'out2')
    assert outputs(tmp_path/'out2')==['a/x.png','b/x.png']

def test_no_two_files_share_an_output(tmp_path):
    for f in ('x.png','x.jpg','x.jpg.png','X.PNG','x.bmp'): put(tmp_path/'in'/f, blob(20+len(f), 30))
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert len({o.casefold() for o in outputs(tmp_path/'out')})==5 and df.attrs['bad']==0
    for o in rows(tmp_path/'out'): assert mask(tmp_path/'out', o).shape[0]==20+len(Path(o['file']).name)

def test_a_later_input_takes_no_name_of_an_earlier_one(tmp_path):
    put(tmp_path/'a/x.jpg.png', blob(20, 20)); put(tmp_path/'b/x.jpg', blob(30, 30))
    predict_files(made(), tmp_path/'a', tmp_path/'out')
    predict_files(made(), tmp_path/'b', tmp_path/'out')
    assert [mask(tmp_path/'out', o).shape for o in rows(tmp_path/'out')]==[(20,20),(30,30)]

@pytest.mark.parametrize('name', ['Größe Ä.png','腎臓.png','a,b "c".png','two\nlines.png',' x.png','=1+1.png',b'\xff\xfe.png'.decode('utf-8','surrogateescape')], ids=ascii)
def test_names(tmp_path, name):
    put(tmp_path/'in/plain.png')
    try: (tmp_path/'in/plain.png').rename(tmp_path/'in'/name)
    except (OSError,UnicodeError): pytest.skip('this file system has no such names')
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert len(df)==1 and df.attrs['bad']==0 and len(outputs(tmp_path/'out'))==1
    if '\udcff' not in name: assert df.file.item()==f'../in/{name}' and predict_files(made(), tmp_path/'in', tmp_path/'out').attrs['before']==1

def test_a_name_too_long_for_its_mask_is_a_line(tmp_path):
    try: put(tmp_path/'in'/('x'*251+'.bmp'))
    except OSError: pytest.skip('this file system has no such names')
    put(tmp_path/'in/y.png')
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert df.attrs['bad']==1 and 'cannot be written' in df.error.iloc[0] and len(outputs(tmp_path/'out'))==1

def test_mask_names_become_folders():
    assert P._folders(('GG/NGC','any'))==['GG_NGC','any'] and P._folders(('a b','a_b'))==['1-a_b','2-a_b']

# --- where it writes -----------------------------------------------------------------------------------
def test_its_own_output_is_not_predicted(tmp_path):
    put(tmp_path/'in/x.png'); p = made()
    for _ in range(2): assert predict_files(p, tmp_path/'in', tmp_path/'in/found').attrs['files']==1
    assert predict_files(p, tmp_path/'in', tmp_path/'in/other').attrs['files']==1
    assert predict_files(p, tmp_path/'in', tmp_path/'out').attrs['files']==1

def test_nothing_of_others_is_overwritten(tmp_path):
    put(tmp_path/'in/x.png'); put(tmp_path/'mine/masks/kidney/x.png')
    for out,says in ((tmp_path/'mine','other files'), (tmp_path/'in','folder of the pictures'), (tmp_path/'in/x.png','this is a file')):
        with pytest.raises(ArgumentError, match=says): predict_files(made(), tmp_path/'in', out)
    assert np.array(Image.open(tmp_path/'mine/masks/kidney/x.png')).max()>1

@pytest.mark.parametrize('kw,says', [(dict(threshold=0), 'threshold'), (dict(threshold=1.2), 'threshold'), (dict(spacing=0), 'spacing'), (dict(spacing=(1,2,3)), 'spacing'), (dict(bs=0), 'bs'), (dict(fps=0), 'fps'), (dict(every=0), 'every')])
def test_arguments(tmp_path, kw, says):
    put(tmp_path/'in/x.png')
    with pytest.raises(ArgumentError, match=says): predict_files(made(), tmp_path/'in', tmp_path/'out', **kw)
    assert not (tmp_path/'out').exists()

def test_arguments_that_do_not_go_together(tmp_path):
    f = put(tmp_path/'x.png')
    with pytest.raises(ArgumentError, match='inputs'): predict_files(made(), [], tmp_path/'out')
    with pytest.raises(ArgumentError, match='most probable'): predict_files(made(mode='multiclass'), f, tmp_path/'out', threshold=.3)
    with pytest.raises(ArgumentError, match='measures nothing'): predict_files(made(('no','yes'), task='classify', model='test-classes'), f, tmp_path/'out', spacing=.1)

# --- stopping and going on -----------------------------------------------------------------------------
class Stop(Exception): pass

def test_stopped_anywhere_and_resumed_is_the_whole(tmp_path):
    for i in range(6): put(tmp_path/f'in/{i}.png', blob(30+i, 40, i))
    p = made(); predict_files(p, tmp_path/'in', tmp_path/'whole', bs=2)
    def stop(n):
        def f(i, total, row):
            seen.append(row)
            if len(seen)==n: raise KeyboardInterrupt
        seen = []
        return f
    for n in (1,2):
        with pytest.raises(KeyboardInterrupt): predict_files(p, tmp_path/'in', tmp_path/'out', bs=2, progress=stop(n))
    assert len(rows(tmp_path/'out'))==3
    df = predict_files(p, tmp_path/'in', tmp_path/'out', bs=2)
    assert df.attrs==dict(files=6, new=3, before=3, bad=0, passed=0) and rows(tmp_path/'out')==rows(tmp_path/'whole')
    assert all((mask(tmp_path/'out', o)==mask(tmp_path/'whole', o)).all() for o in rows(tmp_path/'whole')) and not list((tmp_path/'out').rglob('.*'))

def test_a_torn_line_is_made_again(tmp_path):
    for i in range(3): put(tmp_path/f'in/{i}.png')
    predict_files(made(), tmp_path/'in', tmp_path/'out')
    t = tmp_path/'out/predictions.csv'; whole = t.read_bytes()
    for cut in (1, 30, 150):
        t.write_bytes(whole[:-cut])
        assert predict_files(made(), tmp_path/'in', tmp_path/'out').attrs['new']==1 and t.read_bytes()==whole
    t.write_bytes(b'')
    assert predict_files(made(), tmp_path/'in', tmp_path/'out').attrs['new']==3 and t.read_bytes()==whole

def test_what_changed_is_predicted_anew(tmp_path):
    for i in range(4): put(tmp_path/f'in/{i}.png')
    p = made(); predict_files(p, tmp_path/'in', tmp_path/'out')
    put(tmp_path/'in/0.png', blob(50, 50)); (tmp_path/'out/masks/kidney/1.png').unlink(); put(tmp_path/'in/4.png')
    df = predict_files(p, tmp_path/'in', tmp_path/'out')
    assert (df.attrs['new'],df.attrs['before'],len(df))==(3,2,5) and df[df.file=='../in/0.png'].height.item()==50
    assert predict_files(p, tmp_path/'in', tmp_path/'out', again=True).attrs['new']==5 and len(rows(tmp_path/'out'))==5
    (tmp_path/'in/2.png').unlink()
    assert len(predict_files(p, tmp_path/'in', tmp_path/'out'))==5

def test_a_mended_file_loses_its_error(tmp_path):
    put(tmp_path/'in/a.png'); (tmp_path/'in/b.png').write_bytes(b'')
    assert predict_files(made(), tmp_path/'in', tmp_path/'out').attrs['bad']==1
    put(tmp_path/'in/b.png')
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert df.attrs['bad']==0 and df.attrs['new']==1 and len(df)==2

def test_two_kinds_of_numbers_are_not_mixed(tmp_path):
    put(tmp_path/'in/a.png')
    predict_files(made(), tmp_path/'in', tmp_path/'out')
    for p,kw in ((made(size=16),{}), (made(),dict(threshold=.4)), (made(),dict(spacing=1)), (made(),dict(overlays=False)), (made(('a','b')),{})):
        with pytest.raises(ArgumentError, match='other settings'): predict_files(p, tmp_path/'in', tmp_path/'out', **kw)
    assert predict_files(made(), tmp_path/'in', tmp_path/'out').attrs['before']==1

def test_a_full_disk_stops_and_goes_on_later(tmp_path, monkeypatch):
    for i in range(3): put(tmp_path/f'in/{i}.png')
    png,n = P._png,[]
    def full(path, a):
        n.append(path)
        if len(n)==5: raise OSError(errno.ENOSPC, 'No space left on device')
        png(path, a)
    monkeypatch.setattr(P, '_png', full)
    with pytest.raises(OSError, match='space'): predict_files(made(), tmp_path/'in', tmp_path/'out')
    monkeypatch.setattr(P, '_png', png)
    assert predict_files(made(), tmp_path/'in', tmp_path/'out').attrs==dict(files=3, new=2, before=1, bad=0, passed=0)

def test_the_table_is_a_manifest(tmp_path):
    for i in range(3): put(tmp_path/f'in/{i}.png', blob(30, 40, i))
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    d = from_manifest(tmp_path/'out/predictions.csv')
    assert d.info.masks==('kidney','hydronephrosis') and [d.masks(i).sum((1,2)).tolist() for i in range(3)]==df[['kidney_pixels','hydronephrosis_pixels']].values.tolist()

def test_classes_are_columns(tmp_path):
    p = made(('none','disease'), task='classify', model='test-classes')
    put(tmp_path/'in/a.png'); (tmp_path/'in/b.png').write_bytes(b'')
    df = predict_files(p, tmp_path/'in', tmp_path/'out')
    want = p.predict_image(blob()).probs
    assert [float(rows(tmp_path/'out')[0][f'p:{k}']) for k in p.names]==pytest.approx(want.tolist(), abs=1e-4)
    assert df['class'].iloc[0]==p.names[want.argmax()] and df.attrs['bad']==1 and sorted(o.name for o in (tmp_path/'out').iterdir())==['predictions.csv']
    assert predict_files(p, tmp_path/'in', tmp_path/'out').attrs['before']==1

def test_a_crop_has_a_column_for_what_was_seen(tmp_path):
    put(tmp_path/'in/a.png', blob(40, 80))
    assert predict_files(made(preprocess=('crop',)), tmp_path/'in', tmp_path/'out').seen.item()==.5

# --- videos --------------------------------------------------------------------------------------------
def video(path, n=20, rate=10, hw=(48,64)):
    cv2 = pytest.importorskip('cv2')
    path.parent.mkdir(parents=True, exist_ok=True)
    w = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), rate, hw[::-1])
    for i in range(n): w.write(np.repeat(blob(*hw, i)[...,None], 3, 2))
    w.release()
    return path

def test_video_by_number_and_second(tmp_path):
    f = video(tmp_path/'in/ann/scan.avi')
    df = predict_files(made(), tmp_path/'in', tmp_path/'out')
    assert df.frame.tolist()==list(range(0, 20, 2)) and df.second.tolist()==pytest.approx([i/10 for i in range(0, 20, 2)]) and df.attrs['bad']==0
    assert df['mask:kidney'].iloc[1]=='masks/kidney/ann/scan.avi/000002.png' and mask(tmp_path/'out', rows(tmp_path/'out')[1]).shape==(48,64)
    every = predict_files(made(), f, tmp_path/'out', every=1)
    assert every.attrs['before']==10 and every.attrs['new']==10 and sorted(every.frame)==list(range(20))
    assert predict_files(made(), f, tmp_path/'out', every=1).attrs['new']==0
    coarse = predict_files(made(), f, tmp_path/'out', every=4)
    assert (coarse.attrs['new'],coarse.attrs['before'])==(0,20) and len(rows(tmp_path/'out'))==20

def test_a_video_that_ends_early(tmp_path):
    f = video(tmp_path/'in/scan.avi', n=40)
    f.write_bytes(f.read_bytes()[:f.stat().st_size//2])
    put(tmp_path/'in/x.png')
    df = predict_files(made(), tmp_path/'in', tmp_path/'out', every=1)
    bad = df[df.error!='']
    assert len(bad)==1 and 'ends after frame' in bad.error.item() and 'of 40' in bad.error.item() and 10<len(df)<41 and df.file.iloc[-1].endswith('x.png')
    again = predict_files(made(), tmp_path/'in', tmp_path/'out', every=1)
    assert again.attrs['new']==1 and again.attrs['bad']==1 and len(again)==len(df)

def test_a_whole_video_is_not_called_short(tmp_path):
    for n in (1,2,7,50):
        for every in (1,3,60):
            df = predict_files(made(size=8), video(tmp_path/f'{n}.avi', n=n), tmp_path/f'out{n}-{every}', every=every)
            assert df.attrs['bad']==0 and len(df)==-(-n//every)

# --- the command ---------------------------------------------------------------------------------------
@pytest.fixture
def sh(tmp_path, monkeypatch, capfd):
    "Call `main` in an empty folder that has a network p.pth: (exit code, standard output, standard error)"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MEDATTN_DATA', raising=False)
    made().save('p.pth')
    made().predict_image(blob()); capfd.readouterr() # torch may speak once, at the first convolution of a process
    def f(*argv):
        code = main(['predict', *argv])
        return (code, *capfd.readouterr())
    return f

def test_command(sh, tmp_path):
    put(tmp_path/'in/a.png'); put(tmp_path/'in/b.png'); (tmp_path/'in/t.txt').write_text('x')
    code,out,err = sh('p.pth', 'in', '--out', 'found', '--spacing', '0.5', '--device', 'cpu')
    assert code==0 and err=='' and '2 files: 2 predicted, 0 done before, 0 bad, 1 of other kinds' in out and 'kidney (orange in overlays), hydronephrosis (light blue in overlays)' in out and 'no medical device' in out
    assert 'kidney_mm2' in rows('found')[0]
    (tmp_path/'in/c.png').write_bytes(b'')
    code,out,err = sh('p.pth', 'in', '--out', 'found', '--spacing', '0.5', '--device', 'cpu')
    assert code==1 and err.splitlines()==['../in/c.png: an empty file'] and '3 files: 0 predicted, 2 done before, 1 bad' in out
    code,out,err = sh('p.pth', 'in/a.png', 'in/b.png', '--out', 'lean', '--no-overlays', '--batch-size', '1', '--threshold', '0.2', '--again')
    assert code==0 and not (tmp_path/'lean/overlays').exists() and 'threshold=0.2' in rows('lean')[0]['made']

@pytest.mark.parametrize('argv,code,says', [
    (('p.pth','in'), 2, '--out'), (('p.pth','in','--out','o','--spacing','wide'), 2, 'write the side'), (('p.pth','in','--out','o','--spacing','1,2,3'), 2, 'spacing'),
    (('p.pth','in','--out','o','--threshold','2'), 2, 'threshold'), (('no.pth','in','--out','o'), 1, 'no file of this name'), (('p.pth','none','--out','o'), 1, 'nothing of this name'),
    (('p.pth','in','--out','in'), 2, 'folder of the pictures'), (('in/a.png','in','--out','o'), 1, 'cannot be read as a network'), (('p.pth','in','--out','o','--device','tpu'), 2, 'device')])
def test_mistakes_take_one_line(sh, tmp_path, argv, code, says):
    put(tmp_path/'in/a.png')
    got,out,err = sh(*argv)
    assert got==code and out=='' and len(err.splitlines())==1 and err.startswith('medattn') and says in err

def test_help_and_example(sh, capfd):
    from medattn_nb.lab import cli
    assert main(['predict','--help'])==0 and 'example: medattn predict' in capfd.readouterr().out
    assert 'medattn predict' in cli._epilog and cli._parser().parse_args('predict m.pth a b --out c'.split()).inputs==['a','b']

def test_ctrl_c_says_how_to_go_on():
    from medattn_nb.lab.cli import _stopped
    said = _stopped(['predict','m.pth','in','--out','o','--again'])
    assert 'kept' in said and '--again' not in said and 'predict m.pth in --out o' in said
