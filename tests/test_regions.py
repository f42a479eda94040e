"Superpixels to look at and their ceilings: against brute force, properties, bad input, and the widget in Python and in a real browser"
import builtins, os
from itertools import product
from pathlib import Path
import numpy as np
import pandas as pd
import pytest, torch
from hypothesis import given, settings, strategies as st
from browser import WAIT, chromium, lab, needs, open_notebook, run_all, sees
from conftest import ROOT, real
from medattn_nb.core import ArgumentError, MissingPackage, ShapeError
from medattn_nb.data.datasets import load
from medattn_nb.lab import regions
from medattn_nb.lab.regions import best_superpixels, ceiling_curve, ceiling_figure, grid_labels, region_ceilings, superpixel_figure, superpixel_grid, superpixel_view, superpixels_widget
from medattn_nb.metrics import bootstrap_ci
from medattn_nb.superpixels import slic, superpixel_ceiling, superpixel_pool

RNG = np.random.default_rng(0)
IMAGE = (RNG.random((40,56,3))*255).astype(np.uint8)//16 + np.array([120,90,80], np.uint8)
IMAGE[8:26,10:34] //= 2
MASK = np.zeros((40,56), bool); MASK[8:26,10:34] = True
LABELS = slic(IMAGE, 40, backend='skimage')

def jaccard(p, m): return (p&m).sum()/(p|m).sum()
def brute(maps, masks):
    "The best pooled Jaccard index over all choices of regions in all images"
    parts = [(l==k,m) for l,m in zip(maps, masks) for k in sorted(set(l[l>=0]))]
    hit,size = np.array([[(w&m).sum(),w.sum()] for w,m in parts]).T
    on = np.array(list(product([0,1], repeat=len(parts))))
    return (on@hit/(sum(m.sum() for m in masks)+on@(size-hit))).max()

# --- the best set --------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_best_set_against_all_sets(seed):
    r = np.random.default_rng(seed); l,m = r.integers(-1, 6, (5,4)),r.random((5,4))<.4
    p = best_superpixels(l, m)
    if not m.any(): assert not p.any(); return
    assert all(len(set(p[l==k]))<=1 for k in set(l[l>=0])) and not p[l<0].any()
    got = jaccard(p, m)
    assert got==pytest.approx(brute([l], [m])) and got==pytest.approx(superpixel_ceiling(l, m))

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_pooled_ceiling_against_all_sets(seed):
    r = np.random.default_rng(seed); maps,masks = list(r.integers(0, 4, (3,3,4))),list(r.random((3,3,4))<[[[.5]],[[.2]],[[0]]])
    if not any(m.any() for m in masks): return
    row = region_ceilings(maps, masks, draws=100).iloc[0]
    assert row.pooled==pytest.approx(brute(maps, masks))
    have = [superpixel_ceiling(l, m) for l,m in zip(maps, masks) if m.any()]
    assert row.ceiling==pytest.approx(np.mean(have)) and row.images==len(have) and row.lost==pytest.approx(np.mean(np.array(have)<.5)) and row.low<=row.ceiling<=row.high

def test_labels_need_not_be_dense():
    assert (best_superpixels(LABELS*7+3, MASK)==best_superpixels(LABELS, MASK)).all()
    assert (best_superpixels(LABELS, MASK.astype(np.uint8))==best_superpixels(LABELS, MASK)).all()

def test_empty_and_full():
    assert not best_superpixels(LABELS, MASK&False).any() and best_superpixels(LABELS, MASK|True).all()
    row = region_ceilings([LABELS]*2, [MASK&False]*2, draws=100).iloc[0]
    assert row.images==0 and row[['ceiling','low','high','pooled','lost']].isna().all()
    none = np.full(MASK.shape, -1)
    assert not best_superpixels(none, MASK).any() and region_ceilings([none], [MASK], draws=100).ceiling[0]==0

# --- ceilings of a set ---------------------------------------------------------------------------------
def test_nested_partitions_never_lose():
    r = np.random.default_rng(1); masks = r.random((6,2,64,64))<.1
    masks[:,:,20:40,10:45] |= r.random((6,2,1,1))<.8
    at = pd.concat([region_ceilings([grid_labels((64,64), k)]*6, masks, draws=100).assign(k=k) for k in (1,4,16,64,256,1024,4096)])
    for _,g in at.groupby('mask'):
        assert (g.ceiling.diff().dropna()>=-1e-12).all() and (g.pooled.diff().dropna()>=-1e-12).all() and (g.lost.diff().dropna()<=0).all() and g.ceiling.iloc[-1]==g.pooled.iloc[-1]==1

def test_interval_is_the_bootstrap_of_groups():
    r = np.random.default_rng(2); masks = r.random((9,16,16))<.3; masks[4] = False; groups = np.repeat(list('abc'), 3); l = grid_labels((16,16), 16)
    row = region_ceilings([l]*9, masks, groups=groups, draws=300, seed=4).iloc[0]
    c = np.array([superpixel_ceiling(l, m) for m in masks]); k = ~np.isnan(c)
    assert (row.ceiling,row.low,row.high)==pytest.approx(tuple(bootstrap_ci(np.mean, c[k], n=300, seed=4, groups=groups[k])))

def test_lost_is_below_the_level():
    m = np.zeros((2,4,4), bool); m[0,:2,:2] = True; m[1,0,0] = True
    l = [grid_labels((4,4), 4)]*2
    assert region_ceilings(l, m, draws=100).lost[0]==.5 and region_ceilings(l, m, lost=.25, draws=100).lost[0]==0 and region_ceilings(l, m, lost=.26, draws=100).lost[0]==.5

def test_a_curve_holds_the_rows_of_each_map():
    ms = np.stack([MASK,~MASK]); df = ceiling_curve([IMAGE]*2, [ms]*2, (10,50), ('in','out'), regions=('slic','slico','squares'), draws=100)
    assert len(df)==12 and list(df.columns[:4])==['regions','asked','mask','found']
    for o in df.itertuples():
        l = grid_labels(MASK.shape, o.asked) if o.regions=='squares' else slic(IMAGE, o.asked, backend='skimage', zero=o.regions=='slico')
        assert o.found==l.max()+1 and o.ceiling==pytest.approx(superpixel_ceiling(l, MASK if o.mask=='in' else ~MASK))
    pd.testing.assert_frame_equal(df, ceiling_curve([IMAGE]*2, [ms]*2, (10,50), ('in','out'), regions=('slic','slico','squares'), draws=100))
    assert (df[(df.asked==10)&(df['mask']=='in')].set_index('regions').ceiling[['slic','slico']]>df[(df.asked==10)&(df['mask']=='in')].set_index('regions').ceiling['squares']).all()

def test_kept_maps_give_the_same_curve(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    a,b,c = (ceiling_curve([IMAGE], [MASK], 50*np.array([1]), draws=100, cache=k) for k in (False,True,True))
    pd.testing.assert_frame_equal(a, b); pd.testing.assert_frame_equal(b, c)
    assert len(list(tmp_path.rglob('*.png')))==1

@pytest.mark.parametrize('image', [IMAGE, IMAGE/255., torch.from_numpy(IMAGE).permute(2,0,1)/255])
def test_kinds_of_images(image):
    assert ceiling_curve([image], [MASK], (50,), draws=100).ceiling.tolist()==ceiling_curve([IMAGE], [MASK], (50,), draws=100).ceiling.tolist()

def test_phantom_masks_are_made_of_its_own_superpixels():
    from medattn_nb.data.phantom_dermoscopy import superpixel_map
    d = load('phantom-dermoscopy', n=8); df = region_ceilings([superpixel_map(d, i) for i in range(8)], [d.masks(i) for i in range(8)], d.info.masks, draws=100)
    assert df['mask'].tolist()==list(d.info.masks) and df.ceiling.dropna().tolist()==pytest.approx([1]*df.ceiling.notna().sum())

# --- squares -------------------------------------------------------------------------------------------
def test_exact_squares():
    l = grid_labels((12,12), 9)
    assert np.array_equal(l, (np.arange(12)//4)[:,None]*3+np.arange(12)//4) and np.array_equal(grid_labels((3,3), 9), np.arange(9).reshape(3,3))

@pytest.mark.parametrize('shape', [(1,1),(1,40),(40,1),(127,128),(256,385),(33,7)])
@pytest.mark.parametrize('n', [1,2,7,100,3000])
def test_grids_of_any_shape(shape, n):
    l = grid_labels(shape, n); k = np.bincount(l.ravel())
    assert l.shape==shape and l.dtype.kind=='i' and k.min()>0 and len(k)<=shape[0]*shape[1]
    if min(shape)>30 and n<=100: assert abs(len(k)-n)<=.15*n+1

# --- pictures ------------------------------------------------------------------------------------------
def test_views():
    a = superpixel_view(IMAGE, LABELS, zoom=1); inner = np.ones(MASK.shape, bool)
    inner[:,:-1] &= LABELS[:,:-1]==LABELS[:,1:]; inner[:-1] &= LABELS[:-1]==LABELS[1:]
    assert a.dtype==np.uint8 and (a[inner]==IMAGE[inner]).all() and (a[~inner]!=IMAGE[~inner]).any(1).all()
    mean = superpixel_view(IMAGE, LABELS, 'mean', zoom=1)
    assert all(np.abs(mean[LABELS==k]-IMAGE[LABELS==k].mean(0)).max()<=.5+1e-4 for k in range(LABELS.max()+1))
    assert superpixel_view(IMAGE[...,0], LABELS, zoom=3).shape==(120,168,3)

def test_best_view_colours_right_superfluous_and_missed():
    black = np.zeros_like(IMAGE); a = superpixel_view(black, grid_labels(MASK.shape, 12), 'best', MASK, zoom=1); p = best_superpixels(grid_labels(MASK.shape, 12), MASK)
    flat = {k:{tuple(o) for o in a[w]} for k,w in dict(hit=p&MASK, extra=p&~MASK, miss=MASK&~p, rest=~p&~MASK).items()}
    assert all(len(v)>=1 for v in flat.values()) and not any(flat[i]&flat[j] for i,j in product(flat, flat) if i<j)

def test_pooled_features():
    f = torch.rand(3, 10, 14, generator=torch.Generator().manual_seed(0))
    a,b = (superpixel_view(IMAGE, LABELS, 'features', features=o, channel=1, zoom=1) for o in (f, f[None].numpy()))
    big = torch.nn.functional.interpolate(f[None,1:2], MASK.shape, mode='bilinear'); v = superpixel_pool(big, torch.from_numpy(LABELS)[None])[0,0].numpy()
    one = lambda k: tuple(np.unique(a[LABELS==k], axis=0)[0])
    assert (a==b).all() and a[LABELS==v.argmax()].sum(1).max()>a[LABELS==v.argmin()].sum(1).min() and one(int(v.argmax()))!=one(int(v.argmin()))
    assert (superpixel_view(IMAGE, LABELS, 'features', features=np.ones((1,4,4)), zoom=1)>=0).all()

def test_figures():
    assert len(superpixel_figure(IMAGE, None, 40).axes)==2 and len((f:=superpixel_figure(IMAGE, MASK, 40)).axes)==3
    assert f.axes[2].get_title()==f'best superpixels: Jaccard {superpixel_ceiling(LABELS, MASK):.2f}' and f.axes[0].get_title().startswith(f'K = {LABELS.max()+1},')
    g = superpixel_grid(IMAGE, MASK, (10,40), (5.,)); assert [a.get_title().split(',')[0] for a in g.axes]==['m = 5']*2+['SLICO']*2
    df = ceiling_curve([IMAGE]*2, [np.stack([MASK]*9)]*2, (10,50), draws=100); ax = ceiling_figure(df).axes[0]
    assert ax.get_xscale()=='log' and len({(o.get_color(),o.get_marker()) for o in ax.lines if len(o.get_xdata())==2 and o.get_linestyle()=='-' and o.get_lw()>1.5})>=7

# --- bad input -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('call,error,says', [
    (lambda: best_superpixels(LABELS[:5], MASK), ShapeError, 'of the shape of the mask'),
    (lambda: best_superpixels(LABELS*1., MASK), ShapeError, 'integer labels'),
    (lambda: best_superpixels(LABELS, MASK*2), ArgumentError, 'expected 0 and 1 only'),
    (lambda: superpixel_view(IMAGE, LABELS, 'edges'), ArgumentError, 'choose from boundaries, mean, features, best'),
    (lambda: superpixel_view(IMAGE, LABELS, 'best'), ArgumentError, 'give a mask as well'),
    (lambda: superpixel_view(IMAGE, LABELS, 'features'), ArgumentError, 'give features'),
    (lambda: superpixel_view(IMAGE, LABELS, 'features', features=np.ones((2,4,4)), channel=2), ArgumentError, 'use 0 to 1'),
    (lambda: superpixel_view(IMAGE, LABELS, 'features', features=np.ones((4,4))), ShapeError, 'one feature map'),
    (lambda: superpixel_view(IMAGE, LABELS[:9]), ShapeError, 'of the shape'),
    (lambda: superpixel_view(IMAGE, LABELS, zoom=0), ArgumentError, 'use 1 to 16'),
    (lambda: region_ceilings([], []), ArgumentError, 'an image or more'),
    (lambda: region_ceilings([LABELS], [MASK]*2), ArgumentError, 'expected one for each of the 2 images'),
    (lambda: region_ceilings([LABELS]*3, [MASK]*2), ArgumentError, 'more than 2'),
    (lambda: region_ceilings([LABELS], [MASK], ['a','b']), ArgumentError, 'one for each of the 1 masks'),
    (lambda: region_ceilings([LABELS], [MASK], groups=[1,2]), ArgumentError, 'one for each of the 1 images'),
    (lambda: region_ceilings([LABELS]*2, [MASK[None],np.stack([MASK]*2)]), ShapeError, r'expected masks \(1,H,W\)'),
    (lambda: ceiling_curve([IMAGE], [MASK], ()), ArgumentError, 'a number of regions or more'),
    (lambda: ceiling_curve([IMAGE], [MASK], (0,)), ArgumentError, 'from 1 up'),
    (lambda: ceiling_curve([IMAGE], [MASK], (5,), regions='voronoi'), ArgumentError, 'slico'),
    (lambda: grid_labels((4,4), 0), ArgumentError, 'from 1 up')])
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says): call()

# --- the widget ----------------------------------------------------------------------------------------
FEATURES = torch.rand(4, 10, 14, generator=torch.Generator().manual_seed(0))
def page(*a, **kw): pytest.importorskip('ipywidgets'); return superpixels_widget(*a, **kw).page

def test_widget_says_and_shows_what_the_functions_give():
    p = page(IMAGE, {'in':MASK, 'out':~MASK}, FEATURES, n_segments=40)
    assert p.number.value==40 and f'asked for 40, found {LABELS.max()+1} superpixels' in p.said and f'for in: {superpixel_ceiling(LABELS, MASK):.3f}' in p.said and 'role="status"' in p.told.value
    seen = set()
    for control,value in ((p.number,100),(p.compactness,1.),(p.zero,True),(p.show,'mean'),(p.show,'features'),(p.channel,3),(p.show,'best'),(p.mask,'out')):
        before = p.picture.value; control.value = value; assert p.picture.value!=before and 'alt="' in p.picture.value; seen.add(p.picture.value)
    l = slic(IMAGE, 100, 1., 'skimage', zero=True)
    assert len(seen)==8 and f'for out: {superpixel_ceiling(l, ~MASK):.3f}' in p.said

def test_widget_makes_each_map_once(monkeypatch):
    made = []; true = regions.slic
    monkeypatch.setattr(regions, 'slic', lambda *a, **kw: made.append(a[1:]) or true(*a, **kw))
    p = page(IMAGE, MASK); n = len(made)
    for v in (100,300,100,300,600): p.number.value = v
    p.show.value = 'best'
    assert len(made)==n+2

def test_widget_leaves_out_what_has_no_choice():
    p = page(IMAGE); assert [v for v,_ in p.show.options]==['boundaries','mean colour'] and p.mask not in p.controls and p.channel not in p.controls and 'Jaccard' not in p.said
    p = page(IMAGE, MASK, FEATURES[:1], n_segments=77, compactness=4.); assert p.mask not in p.controls and p.channel not in p.controls and p.number.value==77 and len(p.show.options)==4
    p = page(IMAGE, {'none':MASK&False}); assert 'none is empty' in p.said; p.show.value = 'best'

def test_widget_keeps_maps_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path)); page(IMAGE, cache=True); assert len(list(tmp_path.rglob('*.png')))==1

def test_without_ipywidgets(monkeypatch):
    true = builtins.__import__
    def no(name, *a, **k):
        if name=='ipywidgets': raise ImportError(name)
        return true(name, *a, **k)
    monkeypatch.setattr(builtins, '__import__', no)
    with pytest.raises(MissingPackage, match='pip install ipywidgets'): superpixels_widget(IMAGE)

CODE = '''import numpy as np
from medattn_nb.lab.regions import superpixels_widget
y,x = np.mgrid[:64,:64]
mask = (y-32)**2+(x-32)**2<300
superpixels_widget(np.where(mask[...,None], 90, 200).astype(np.uint8).repeat(3, 2), mask, n_segments=50)'''

def test_sliders_in_the_browser(tmp_path):
    needs()
    import nbformat as nf
    from selenium.webdriver.support.ui import WebDriverWait
    folder = tmp_path/'work'; folder.mkdir()
    nf.write(nf.v4.new_notebook(cells=[nf.v4.new_code_cell(CODE)], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))), folder/'look.ipynb')
    with lab(folder, tmp_path/'home', ROOT) as server, chromium(tmp_path/'profile') as d:
        open_notebook(d, server, 'look.ipynb'); run_all(d)
        def picture(): return d.find_element('css selector', '.jp-OutputArea-output img').get_attribute('src')
        sees(d, 'asked for 50, found'); before = picture()
        slider = d.find_element('css selector', '.jp-OutputArea-output .noUi-handle'); slider.send_keys('\ue014')  # arrow right: the next number
        sees(d, 'asked for 75, found'); WebDriverWait(d, WAIT).until(lambda _: picture()!=before); before = picture()
        next(o for o in d.find_elements('css selector', '.jp-OutputArea-output button') if o.text=='best superpixels').click()
        WebDriverWait(d, WAIT).until(lambda _: picture()!=before)
        if p := os.environ.get('MEDATTN_SHOTS'): d.save_screenshot(str(Path(p)/'regions.png'))

# --- real sets -----------------------------------------------------------------------------------------
def test_real_lesions():
    real('ph2-dermoscopy'); real('idrid-fundus'); root = str(real('ph2-dermoscopy').parent)
    d = load('ph2-dermoscopy', root); ph2 = ceiling_curve([d.image(0)], [d.masks(0)], (100,), d.info.masks, draws=100)
    assert ph2.ceiling.between(.5, 1).all() and ph2['mask'].tolist()==['lesion']*2
    d = load('idrid-fundus', root, task='segmentation'); df = ceiling_curve([d.image(0)], [d.masks(0)], (200,), d.info.masks, draws=100).set_index(['regions','mask']).ceiling
    assert df['slic','optic_disc']>df['slic','microaneurysm'] and df['slic','optic_disc']>df['squares','optic_disc']
