"Videos to frames to masks: which frames, which are vague, nothing lost, nothing overwritten, patients kept together"
import json, shutil, sys
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
cv2 = pytest.importorskip('cv2')
import medattn_nb.data.frames as F
from medattn_nb.core import ArgumentError, DataError, MissingPackage
from medattn_nb.data.datasets import check, check_leak, from_manifest, load, split_groups
from medattn_nb.data.frames import blur_score, blur_threshold, extract_frames, label_frames, sample_frames

H,W = 48,64
def frame(i, seed=0):
    "A bright disc that moves over speckle"
    rng,yx = np.random.default_rng([seed,i]),np.mgrid[:H,:W]
    disc = (yx[0]-24)**2+(yx[1]-16-i)**2<=100
    return (np.where(disc, 170, 70)*rng.rayleigh(.7, (H,W))).clip(0, 255).astype(np.uint8)

def clip(path, n=25, rate=25, vague=(), seed=0, colour=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    w = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), rate, (W,H))
    for i in range(n):
        im = frame(i, seed)
        if i in vague: im = gaussian_filter(im, 3)
        im = np.repeat(im[...,None], 3, 2)
        if colour: im[:,:,:2] //= 4
        w.write(im)
    w.release()
    return path

@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "Two patients, three videos, a screenshot; frames 10 and 15 of the first are vague"
    p = tmp_path_factory.mktemp('v')/'videos'
    clip(p/'ann/left.avi', vague=(9,10,11,14,15,16)); clip(p/'ann/right.avi', 10, seed=1); clip(p/'bob/scan.avi', 15, seed=2)
    Image.fromarray(frame(3, 9)).save(p/'bob/still.png')
    return p

def outline(png, shapes, hw=(H,W)):
    "A Labelme file beside `png`: (label, points) pairs"
    js = [dict(label=k, points=v, shape_type='polygon', group_id=None, flags={}) for k,v in shapes]
    png.with_suffix('.json').write_text(json.dumps(dict(version='5.4.1', flags={}, shapes=js, imagePath=png.name, imageData=None, imageHeight=hw[0], imageWidth=hw[1])))

def box(x0, y0, x1, y1): return [[x0,y0],[x1,y0],[x1,y1],[x0,y1]]

# --- sampling ------------------------------------------------------------------------------------------
class Cap:
    "Stands for a video of n frames, each holding its number"
    def __init__(self, n): self.n,self.i = n,-1
    def grab(self): self.i += 1; return self.i<self.n
    def retrieve(self): return True,np.full((1,1,3), self.i, np.uint8)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.sampled_from([10,15,23.976,24,25,29.97,30,50,59.94,60,120]), st.sampled_from([.5,1,2,3,5,7,12.5,25,60,200]))
def test_frames_at_or_after_each_time(n, rate, fps):
    "The k-th sample is the first frame at or after k/fps; at most one sample a frame"
    got = [i for i,_ in F._decode(Cap(n), F._step('v', rate, fps, None))]
    want = sorted({i for i in (int(np.ceil(k*max(rate/fps, 1)-1e-6)) for k in range(n+1)) if i<n})
    assert got==want and len(set(got))==len(got) and (not n or got[0]==0)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(1, 30))
def test_every(n, every): assert [i for i,_ in F._decode(Cap(n), F._step('v', 0, 5, every))]==list(range(0, n, every))

def test_readings_of_the_paper(tmp_path):
    a = clip(tmp_path/'a.avi', 25, 25)
    assert [o[0] for o in sample_frames(a, 5)]==[o[0] for o in sample_frames(a, every=5)]==[0,5,10,15,20]
    b = clip(tmp_path/'b.avi', 30, 30)
    assert [o[0] for o in sample_frames(b)]==[0,6,12,18,24] and len(list(sample_frames(b, every=5)))==6
    assert [t for _,t,_ in sample_frames(b)]==pytest.approx([0,.2,.4,.6,.8])
    assert len(list(sample_frames(a, 1000)))==25

def test_pixels(tmp_path):
    for i,_,im in sample_frames(clip(tmp_path/'a.avi')):
        assert im.shape==(H,W) and im.dtype==np.uint8 and np.abs(im.astype(int)-frame(i)).mean()<6
    im = next(sample_frames(clip(tmp_path/'c.avi', colour=True)))[2]
    assert im.shape==(H,W,3) and im[...,0].mean()>2*im[...,2].mean()

def test_a_picture_is_one_frame(videos):
    (i,t,im), = sample_frames(videos/'bob/still.png')
    assert (i,t)==(0,0.) and (im==frame(3, 9)).all()

@pytest.mark.parametrize('content', [None, b'', b'nothing', b'RIFF'+bytes(300)])
def test_unreadable(tmp_path, content):
    if content is not None: (tmp_path/'a.avi').write_bytes(content)
    with pytest.raises(DataError, match='mine.avi'): list(sample_frames(tmp_path/'a.avi', name='mine.avi'))

def test_cut_off_video_gives_what_it_has(tmp_path):
    b = clip(tmp_path/'a.avi').read_bytes()
    (tmp_path/'a.avi').write_bytes(b[:len(b)//2])
    assert 0<len(list(sample_frames(tmp_path/'a.avi', every=1)))<25

@pytest.mark.parametrize('rate', [0,-1,float('nan'),float('inf'),90000])
def test_rates_that_are_none(rate):
    with pytest.raises(DataError, match='every='): F._step('v', rate, 5, None)
    assert F._step('v', rate, 5, 3)==3

@pytest.mark.parametrize('kw', [dict(fps=0), dict(fps=-1), dict(fps=float('nan')), dict(every=0), dict(every=-2), dict(every=2.5), dict(every=True)])
def test_bad_rates(videos, tmp_path, kw):
    with pytest.raises(ArgumentError): list(sample_frames(videos/'ann/left.avi', **kw))
    with pytest.raises(ArgumentError): extract_frames(videos, tmp_path/'o', **kw)

def test_without_opencv(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(MissingPackage, match='opencv-python'): list(sample_frames(videos/'ann/left.avi'))

# --- blur ----------------------------------------------------------------------------------------------
def test_blur_falls_with_blur():
    im = frame(0).astype(float)
    s = [blur_score(gaussian_filter(im, o).astype(np.uint8)) for o in (0,.5,1,2,4)]
    assert all(a>2*b for a,b in zip(s, s[1:]))

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_blur_properties(seed, h, w):
    im = np.random.default_rng(seed).integers(0, 128, (h,w), dtype=np.uint8)
    s = blur_score(im)
    assert s==pytest.approx(blur_score(im[::-1,::-1])) and s==pytest.approx(blur_score(im.T)) and s==pytest.approx(blur_score(im+100)) and blur_score(im*2)==pytest.approx(4*s)
    if min(h, w)>1: assert s==pytest.approx(cv2.Laplacian(im, cv2.CV_64F).var())
    assert blur_score(np.repeat(im[...,None], 3, 2))==pytest.approx(s)

@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(.01, 1e5), min_size=2, max_size=25), st.randoms())
def test_threshold_is_otsus(scores, rnd):
    "Between the two heaps that differ most, by brute force; order does not matter"
    x = np.sort(np.log(scores))
    if np.ptp(x)<1e-6: return
    t = np.log(blur_threshold(scores))
    gain = [k*(len(x)-k)*(x[k:].mean()-x[:k].mean())**2 for k in range(1, len(x))]
    k = (x<t).sum()
    assert 0<k<len(x) and gain[k-1]>=max(gain)*(1-1e-9)
    rnd.shuffle(scores)
    assert np.log(blur_threshold(scores))==pytest.approx(t)

@pytest.mark.parametrize('scores', [[], [5.], [5.,5.,5.], [0,0]])
def test_no_threshold(scores):
    with pytest.raises(DataError, match='all alike'): blur_threshold(scores)

# --- a folder ------------------------------------------------------------------------------------------
def snapshot(p): return {o.relative_to(p).as_posix():(o.read_bytes(), o.stat().st_mtime_ns) for o in p.rglob('*') if o.is_file()}
def pngs(p): return sorted(o.relative_to(p).as_posix() for o in p.rglob('*.png'))

def test_extract(videos, tmp_path):
    log = extract_frames(videos, tmp_path/'o', blur=500)
    assert list(log.video)==['ann/left.avi']*5+['ann/right.avi']*2+['bob/scan.avi']*3+['bob/still.png'] and not len(log.attrs['problems'])
    assert list(log.why[:5])==['','','vague','vague',''] and log.kept.sum()==9
    assert pngs(tmp_path/'o')==sorted(log.file[log.kept==1]) and (log.time==log.frame/25).all()
    assert not list((tmp_path/'o').rglob('*.tmp'))
    d = from_manifest(tmp_path/'o')
    assert d.info.task=='segmentation' and sorted(set(d.items.group))==['ann','bob'] and len(d)==9 and d.mask(0) is None and d.info.channels==1
    assert not len(check(tmp_path/'o')) and check(tmp_path/'o').attrs['images']==9
    assert len(load('o', tmp_path))==9
    check_leak(split_groups(d, (.5,.5)))
    assert all((d.image(i)==np.array(Image.open(tmp_path/'o'/f))).all() for i,f in enumerate(d.items.file))

def test_again_does_nothing(videos, tmp_path, monkeypatch):
    log = extract_frames(videos, tmp_path/'o', blur=500)
    before = snapshot(tmp_path)
    monkeypatch.setattr(F, 'sample_frames', lambda *a, **kw: 1/0)
    assert extract_frames(videos, tmp_path/'o', blur=500).equals(log) and snapshot(tmp_path)==before

def test_stopped_and_gone_on_with(videos, tmp_path, monkeypatch):
    "Ctrl-C in the third video: the first two are not decoded again, the result is as in one go"
    seen,real = [],F.sample_frames
    def stop(path, **kw):
        seen.append(path.name)
        for n,o in enumerate(real(path, **kw)):
            if path.name=='scan.avi' and n==1: raise KeyboardInterrupt
            yield o
    monkeypatch.setattr(F, 'sample_frames', stop)
    with pytest.raises(KeyboardInterrupt): extract_frames(videos, tmp_path/'o')
    assert len(from_manifest(tmp_path/'o'))==7
    def count(path, **kw): seen.append(path.name); return real(path, **kw)
    monkeypatch.setattr(F, 'sample_frames', count)
    log = extract_frames(videos, tmp_path/'o')
    assert seen==['left.avi','right.avi','scan.avi','scan.avi','still.png']
    assert log.equals(extract_frames(videos, tmp_path/'one-go'))

def test_other_settings(videos, tmp_path):
    extract_frames(videos, tmp_path/'o', blur=500)
    log = extract_frames(videos, tmp_path/'o', every=10)
    assert list(log.frame[log.video=='ann/left.avi'])==[0,10,20] and set(from_manifest(tmp_path/'o').items.frame)=={0,10,20}
    assert (tmp_path/'o/frames/ann/left_000005.png').is_file(), 'frames are never deleted'

def test_frames_are_not_written_over_but_lost_ones_are(videos, tmp_path):
    o = tmp_path/'o'
    extract_frames(videos, o)
    a,b = o/'frames/ann/left_000000.png',o/'frames/ann/left_000005.png'
    Image.fromarray(np.zeros((H,W), np.uint8)).save(a); b.unlink()
    extract_frames(videos, o)
    assert not np.array(Image.open(a)).any() and b.is_file()

def test_a_changed_video_is_read_again(tmp_path):
    clip(tmp_path/'v/a/x.avi', 10)
    assert len(extract_frames(tmp_path/'v', tmp_path/'o'))==2
    clip(tmp_path/'v/a/x.avi', 20)
    assert len(extract_frames(tmp_path/'v', tmp_path/'o'))==4

def test_a_video_that_is_gone_keeps_its_rows(videos, tmp_path):
    v = shutil.copytree(videos, tmp_path/'v')
    log = extract_frames(v, tmp_path/'o')
    shutil.rmtree(v/'ann')
    assert extract_frames(v, tmp_path/'o').equals(log)

def test_unreadable_videos_are_told_and_passed_over(videos, tmp_path):
    v = shutil.copytree(videos, tmp_path/'v')
    (v/'ann/bad.avi').write_bytes(b'x'*500); (v/'bob/bad.mp4').write_bytes(b'')
    told = []
    log = extract_frames(v, tmp_path/'o', report=lambda *a: told.append(a))
    assert [o[0] for o in told]==['ann/bad.avi','bob/bad.mp4']==list(log.attrs['problems'].file) and len(log)==11
    only = tmp_path/'only/ann'; only.mkdir(parents=True); (only/'bad.avi').write_bytes(b'x')
    with pytest.raises(DataError, match='ann/bad.avi'): extract_frames(only.parent, tmp_path/'p')

def test_groups(tmp_path):
    clip(tmp_path/'v/2020/P01_a.avi', 5); clip(tmp_path/'v/2021/P01_b.avi', 5); clip(tmp_path/'v/P02 ü.avi', 5)
    log = extract_frames(tmp_path/'v', tmp_path/'o', group=r'(P\d+)')
    assert sorted(log.patient)==['P01','P01','P02'] and (tmp_path/'o'/log.file[2]).is_file()
    with pytest.raises(DataError, match='no match for the group pattern'): extract_frames(tmp_path/'v', tmp_path/'p', group='Q')
    with pytest.raises(DataError, match='a video in no folder'): extract_frames(tmp_path/'v', tmp_path/'p')

def test_another_group_gives_the_frames_to_another_patient(tmp_path):
    clip(tmp_path/'v/2020/P01_a.avi', 5); clip(tmp_path/'v/2021/P01_b.avi', 5)
    assert set(extract_frames(tmp_path/'v', tmp_path/'o').patient)=={'2020','2021'}
    log = extract_frames(tmp_path/'v', tmp_path/'o', group=r'(P\d+)')
    assert set(log.patient)=={'P01'} and all((tmp_path/'o'/f).is_file() for f in log.file) and from_manifest(tmp_path/'o').items.group.nunique()==1

def test_names_that_would_clash(tmp_path):
    clip(tmp_path/'v/a/x y.avi', 5); clip(tmp_path/'v/a/x_y.avi', 5)
    with pytest.raises(DataError, match='rename one'): extract_frames(tmp_path/'v', tmp_path/'o')
    (tmp_path/'v/a/x_y.avi').rename(tmp_path/'v/a/.hidden.avi')
    assert len(extract_frames(tmp_path/'v', tmp_path/'o'))==1

def test_twins(tmp_path):
    "A probe at rest: of equal frames one is kept; a slow drift is not thrown away as a whole"
    (tmp_path/'v/a').mkdir(parents=True)
    w = cv2.VideoWriter(str(tmp_path/'v/a/x.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 25, (W,H))
    for i in (0,0,0,0,10,10,20): w.write(np.repeat(frame(i)[...,None], 3, 2))
    w.release()
    log = extract_frames(tmp_path/'v', tmp_path/'o', every=1, near=.98)
    assert list(log.kept)==[1,0,0,0,1,0,1] and set(log.why)=={'','twin'} and (log.twin[[1,2,3,5]]>.98).all()
    assert extract_frames(tmp_path/'v', tmp_path/'o', every=1).kept.all()
    s = clip(tmp_path/'w/a/x.avi', 25)
    assert 1<extract_frames(tmp_path/'w', tmp_path/'p', every=1, near=.6).kept.sum()<25

def test_box(videos, tmp_path):
    log = extract_frames(videos, tmp_path/'o', box=(8,4,32,40))
    d = from_manifest(tmp_path/'o')
    assert d.image(0).shape==(32,40) and (d.image(10)==frame(3, 9)[8:40,4:44]).all()
    assert not np.allclose(log.blur, extract_frames(videos, tmp_path/'p').blur)
    with pytest.raises(DataError, match='does not fit'): extract_frames(videos, tmp_path/'q', box=(0,0,H+1,W))

@pytest.mark.parametrize('kw', [dict(box=(0,0,5)), dict(box=(0,0,0,5)), dict(box=(-1,0,5,5)), dict(box=(0,0,5.5,5)), dict(near=2)])
def test_bad_arguments(videos, tmp_path, kw):
    with pytest.raises(ArgumentError): extract_frames(videos, tmp_path/'o', **kw)

def test_bad_folders(videos, tmp_path):
    with pytest.raises(DataError, match='no folder'): extract_frames(tmp_path/'none', tmp_path/'o')
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='no videos'): extract_frames(tmp_path/'empty', tmp_path/'o')
    for o in (videos,videos/'ann',videos/'x/y'):
        with pytest.raises(ArgumentError, match='outside'): extract_frames(videos, o)
    with pytest.raises(DataError, match='no frames'): label_frames(tmp_path/'empty', ('a',))

@pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', 'file,patient,video,frame,time,blur,twin,kept,why,made\na,b,c,x,1,1,1,1,,\n'])
def test_broken_log(videos, tmp_path, text):
    (tmp_path/'o').mkdir(); (tmp_path/'o/frames.csv').write_text(text)
    with pytest.raises(DataError, match='a log that cannot be read'): extract_frames(videos, tmp_path/'o')

# --- outlines ------------------------------------------------------------------------------------------
LABELS = 'kidney','hydronephrosis'

@pytest.fixture
def outlined(videos, tmp_path):
    "All frames but the last two outlined: a big box and a smaller one in it that moves with the frame's number"
    log = extract_frames(videos, tmp_path/'o')
    for f,i in list(zip(log.file, log.frame))[:-2]: outline(tmp_path/'o'/f, [('kidney', box(5,8,45,40)),('hydronephrosis', box(10+i,15,20+i,30))])
    return tmp_path/'o'

def test_round_trip(outlined):
    "Clip to frames to outlines to masks to a data set by patient"
    d = label_frames(outlined, LABELS)
    assert d.info.masks==LABELS and d.info.task=='segmentation' and len(d)==11 and set(d.items.group)=={'ann','bob'}
    for i,o in enumerate(d.items.itertuples()):
        m = d.masks(i)
        if i>8: assert m is None; continue
        k,h = np.zeros((2,H,W), bool)
        k[8:40,5:45] = True; h[15:30,10+o.frame:20+o.frame] = True
        k &= ~h
        for got,want in zip(m, (k,h)): assert (got&want).sum()/(got|want).sum()>.85 and got.shape==(H,W)
        assert not (m[0]&m[1]).any()
        raw = Image.open(outlined/o.mask)
        assert raw.mode=='P' and set(np.unique(np.array(raw)))=={0,1,2}
    check_leak(split_groups(d, (.5,.5)))
    only = label_frames(outlined, LABELS, drop=True)
    assert len(only)==9 and only.mask_tensors(32, kind='labels').unique().tolist()==[0,1,2]
    assert not len(check(outlined))

def test_the_same_from_labelme_itself(outlined):
    from medattn_nb.data.ultrasound import from_labelme
    a,b = label_frames(outlined, LABELS, drop=True),from_labelme(outlined/'frames', LABELS, unannotated='skip')
    at = {f'frames/{f}':i for i,f in enumerate(b.items.file)}
    for i,f in enumerate(a.items.file):
        k,h = b.masks(at[f])
        assert (a.masks(i)==np.stack([k&~h,h])).all()

def test_later_over_earlier(outlined):
    a,b = label_frames(outlined, LABELS, drop=True).masks(0),label_frames(outlined, LABELS[::-1], drop=True).masks(0)
    assert a[0].any() and a[1].any() and b[1].any() and not b[0].any(), 'the kidney painted last covers all'

def test_outlines_are_safe(videos, outlined):
    before = {o:o.read_bytes() for o in outlined.rglob('*.json')}
    log = extract_frames(videos, outlined, blur=1e9)
    assert log.kept.sum()==9 and {o:o.read_bytes() for o in outlined.rglob('*.json')}==before
    label_frames(outlined, LABELS)
    again = extract_frames(videos, outlined)
    m = pd.read_csv(outlined/'manifest.csv', keep_default_na=False)
    assert len(m)==11 and (m['mask']!='').sum()==9, 'masks stay in the manifest when frames are extracted again'
    assert {o:o.read_bytes() for o in outlined.rglob('*.json')}==before and again.kept.all()

def test_an_outline_taken_back(outlined):
    label_frames(outlined, LABELS)
    next(outlined.rglob('*.json')).unlink()
    assert sum(label_frames(outlined, LABELS).masks(i) is not None for i in range(11))==8

def test_an_outlined_frame_that_was_left_out_comes_back(videos, tmp_path):
    log = extract_frames(videos, tmp_path/'o')
    log = extract_frames(videos, tmp_path/'o', blur=500)
    f = tmp_path/'o'/log.file[2]
    assert not log.kept[2] and f.is_file()
    outline(f, [('kidney', box(1,1,9,9))])
    assert extract_frames(videos, tmp_path/'o', blur=500).kept[2]==1

def test_words_for_a_label(outlined):
    f = next(iter(sorted(outlined.rglob('*.json')))).with_suffix('.png')
    outline(f, [('Kidney ', box(5,8,45,40)),('hydrops', box(10,15,20,30))])
    with pytest.raises(DataError, match='hydrops'): label_frames(outlined, LABELS)
    assert label_frames(outlined, LABELS, other='ignore').masks(0)[0].any()
    assert label_frames(outlined, dict(kidney=(), hydronephrosis=('hydrops',))).masks(0)[1].any()

@pytest.mark.parametrize('spoil,says', [(lambda j: j.write_text('{'), 'JSON'), (lambda j: outline(j, [('kidney', box(1,1,9,9))], (9,9)), 'outlines for a picture of 9x9'), (lambda j: outline(j, [('kidney', [[1,1]])]), 'encloses nothing')])
def test_bad_outlines(outlined, spoil, says):
    j = sorted(outlined.rglob('*.json'))[0]
    spoil(j)
    with pytest.raises(DataError, match=says): label_frames(outlined, LABELS)
    told = []
    d = label_frames(outlined, LABELS, report=lambda *a: told.append(a))
    assert len(told)==1 and told[0][0]==j.relative_to(outlined).as_posix() and d.masks(0) is None and d.masks(1) is not None

def test_outlines_of_another_frame(outlined):
    outline(outlined/'frames/ann/elsewhere_000001.png', [('kidney', box(1,1,9,9))])
    with pytest.raises(DataError, match='not in the log'): label_frames(outlined, LABELS)

def test_labels_are_checked(outlined):
    for o in ((), tuple('abcdefgh')):
        with pytest.raises(ArgumentError): label_frames(outlined, o)
    assert label_frames(outlined, 'kidney', other='ignore').info.masks==('kidney',)
