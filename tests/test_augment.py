"Augmentations: the old ones bit for bit, every one by oracle or property, image and masks under one draw"
import hashlib, math
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from medattn_nb.core import ArgumentError, ShapeError, local_seed
from medattn_nb.data import augment as A
from medattn_nb.data.augment import AUGMENTATIONS, augment_batch, augment_pair
from medattn_nb.data.transforms import clahe

NAMES = list(AUGMENTATIONS)
GEOMETRIC = [o for o in NAMES if AUGMENTATIONS[o].geometric]
VALUES = [o for o in NAMES if not AUGMENTATIONS[o].geometric]
SQUARE = 'transpose','flip_one','rotate90'
def run(name, x, *also, seed=0, **kw):
    with local_seed('run', name, seed): return augment_pair(x, [name], *also, **kw)
def on(x, name, **kw):
    "`name` with every image changed and some of what is drawn given"
    f = AUGMENTATIONS[name]
    with local_seed('on', name): d = f.draw(x)
    return f(x, drawn={**d, 'on':torch.ones(len(x)).bool(), **{k:torch.as_tensor(v).expand(len(x)) for k,v in kw.items()}})

# --- what must not change: committed results were trained with these ------------------------------------
def old_sometimes(x, changed): return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device)<.5, changed, x)
def old_crop(x, smallest=.75):
    B = len(x)
    s = smallest + (1-smallest)*torch.rand(B, 1, device=x.device)
    shift = (1-s) * (2*torch.rand(B, 2, device=x.device)-1)
    theta = torch.zeros(B, 2, 3, device=x.device, dtype=x.dtype)
    theta[:,[0,1],[0,1]],theta[:,:,2] = s.to(x),shift.to(x)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode='border', align_corners=False)
OLD = dict(hflip=lambda x: old_sometimes(x, x.flip(-1)), vflip=lambda x: old_sometimes(x, x.flip(-2)), transpose=lambda x: old_sometimes(x, x.mT), crop=old_crop)

def pictures(B=7, n=24): return torch.from_numpy(np.stack([np.random.default_rng(i).integers(0, 256, (n,n,3), dtype=np.uint8) for i in range(B)])).permute(0,3,1,2).float()/255

@pytest.mark.parametrize('dtype', [torch.float32,torch.float64])
@pytest.mark.parametrize('names', [(), ('hflip',), ('vflip',), ('transpose',), ('crop',), ('hflip','vflip','transpose'), ('crop','hflip'), ('hflip','crop','vflip')], ids='+'.join)
def test_draws_of_our_records(names, dtype):
    "The same pixels and the same random numbers as the code that our results were trained with"
    x = pictures().to(dtype)
    with local_seed('pin', *names): a,ra = augment_batch(x, names),torch.get_rng_state()
    with local_seed('pin', *names):
        b = x
        for o in names: b = OLD[o](b)
        rb = torch.get_rng_state()
    assert torch.equal(a, b) and torch.equal(ra, rb)

@pytest.mark.parametrize('names,digest', [('hflip','25d0c323c8a234da'), ('vflip','32154a47744b6a22'), ('transpose','ab1bbc82bd942028'), ('hflip vflip transpose','c725d526321efabf')])
def test_flips_of_our_records(names, digest):
    with local_seed('pin', *names.split()): a = augment_batch(pictures(), names.split()).contiguous().numpy()
    assert hashlib.sha256(f'{a.dtype}{a.shape}'.encode()+a.tobytes()).hexdigest()[:16]==digest

def test_old_calls_still_work():
    x = pictures()
    with local_seed('f'): a = A.crop(x[...,:17], .3)
    with local_seed('f'): b = old_crop(x[...,:17], .3)
    assert torch.equal(a, b) and torch.allclose(A.crop(x, smallest=1.), x, atol=1e-5)
    for o in (0,-1,1.1,float('nan')):
        with pytest.raises(ArgumentError): A.crop(x, o)

# --- every augmentation ---------------------------------------------------------------------------------
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('shape', [(1,1,14,14), (5,3,21,21), (2,4,16,16), (0,3,14,14), (3,2,14,27), (2,1,33,9)])
def test_any_shape(name, shape):
    x = torch.rand(shape)
    if name in SQUARE and shape[2]!=shape[3]:
        with pytest.raises(ArgumentError, match='square'): augment_batch(x, [name])
        return
    m,l = torch.rand(shape[0],*shape[2:])>.5,torch.randint(-1, 9, (shape[0],2,*shape[2:]))
    y,n,k = run(name, x, m, l)
    assert y.shape==x.shape and n.shape==m.shape and k.shape==l.shape and n.dtype==torch.bool and k.dtype==torch.int64
    assert y.isfinite().all() and (y.numel()==0 or y.min()>=0 and y.max()<=1+1e-6)

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.float64,torch.float16,torch.bfloat16])
def test_any_dtype(name, dtype):
    "The same change as in fp32, to the precision of the type"
    x = pictures(4, 28)
    with local_seed(name): d = AUGMENTATIONS[name].draw(x)
    y = AUGMENTATIONS[name](x.to(dtype), drawn={k:v.to(dtype) if k=='field' else v for k,v in d.items()})
    z = AUGMENTATIONS[name](x.to(dtype).float(), drawn=d)
    assert y.dtype==dtype and (y.float()-z).abs().max()<(.03 if dtype!=torch.float64 else 1e-4 if name!='clahe' else 1/64)
    assert run(name, x.to(dtype))[0].dtype==dtype

@pytest.mark.parametrize('name', NAMES)
def test_channels_last(name):
    x = pictures(4, 28)
    assert torch.allclose(run(name, x.contiguous(memory_format=torch.channels_last))[0], run(name, x)[0], atol=1e-6)

@pytest.mark.parametrize('name', NAMES)
def test_the_seed_decides(name):
    x = torch.rand(9,3,28,28)
    a,b,c = run(name, x)[0],run(name, x)[0],run(name, x, seed=1)[0]
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, x)

@pytest.mark.parametrize('name', NAMES)
def test_the_draw_decides(name):
    "`f(x)` is `f(x, drawn=f.draw(x))`, and each image depends on its own row alone"
    x,f = torch.rand(6,3,28,28),AUGMENTATIONS[name]
    with local_seed(name): y = f(x)
    with local_seed(name): d = f.draw(x)
    assert torch.equal(f(x, drawn=d), y) and all(len(o)==6 for o in d.values())
    alone = torch.cat([f(x[i:i+1], drawn={k:v[i:i+1] for k,v in d.items()}) for i in range(6)])
    assert torch.allclose(alone, y, atol=1e-6)

@pytest.mark.parametrize('name', NAMES)
def test_the_input_is_left_alone(name):
    x = torch.rand(6,3,28,28)
    a,m = x.clone(),x[:,0]>.5
    run(name, x, m)
    assert torch.equal(a, x) and torch.equal(m, x[:,0]>.5)

@pytest.mark.parametrize('name', [o for o in NAMES if o not in ('clahe','region_shuffle')])
def test_gradients_pass(name):
    x = torch.rand(4,2,14,14, requires_grad=True)
    run(name, x, limits=None)[0].sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum()>0

# --- moves ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['hflip','vflip','transpose','flip_one'])
def test_flips_are_involutions(name):
    x,f = torch.rand(8,3,9,9),AUGMENTATIONS[name]
    with local_seed(name): d = f.draw(x)
    assert torch.equal(f(f(x, d), d), x) and not torch.equal(f(x, d), x)

@pytest.mark.parametrize('name', [o for o in NAMES if AUGMENTATIONS[o].kind=='move'])
@pytest.mark.parametrize('dtype', [torch.float32,torch.bool,torch.uint8,torch.int16,torch.int64])
def test_moves_keep_every_pixel(name, dtype):
    x = (torch.rand(8,2,21,21)*9).to(dtype)
    with local_seed(name): d = AUGMENTATIONS[name].draw(x)
    y = AUGMENTATIONS[name](x, drawn=d)
    assert y.dtype==dtype and torch.equal(y.flatten(1).sort(1).values, x.flatten(1).sort(1).values)

@pytest.mark.parametrize('name,key,n', [('hflip','on',2), ('flip_one','flip',4), ('rotate90','turns',4)])
def test_all_cases_alike(name, key, n):
    with local_seed(name): d = AUGMENTATIONS[name].draw(torch.zeros(8000,1,1,1))[key].flatten().long()
    assert (d.bincount(minlength=n)/8000-1/n).abs().max()<.03

def test_coins_reach_all_eight_symmetries():
    x = torch.arange(4.).view(1,1,2,2).expand(800,1,2,2)
    with local_seed('eight'): y = augment_batch(x, ['hflip','vflip','transpose']).flatten(1)
    seen,n = y.unique(dim=0, return_counts=True)
    assert len(seen)==8 and n.min()>60

# --- crop and rotate ------------------------------------------------------------------------------------
@pytest.mark.parametrize('side,shift', [(.5,(0.,0.)), (.5,(.5,-.5)), (.25,(-.75,.75))])
def test_crop_against_slicing(side, shift):
    "A window on whole pixels, enlarged, is the slice, enlarged"
    x = torch.rand(1,2,16,16)
    y = A.crop(x, drawn=dict(side=torch.tensor([[side]]), shift=torch.tensor([shift])))
    n = int(16*side); l,t = (round((1+o-side)*8) for o in shift)
    want = F.interpolate(x[...,t:t+n,l:l+n], size=(16,16), mode='bilinear', align_corners=False)
    inner = slice(16//n,16-16//n)
    assert torch.allclose(y[...,inner,inner], want[...,inner,inner], atol=1e-5)
    m = A.crop((x*99).long(), drawn=dict(side=torch.tensor([[side]]), shift=torch.tensor([shift])), nearest=True)
    assert torch.equal(m, (x*99).long()[...,t:t+n,l:l+n].repeat_interleave(16//n, -1).repeat_interleave(16//n, -2))

def test_crops_stay_inside():
    with local_seed('in'): d = A.crop.draw(torch.zeros(5000,1,1,1))
    assert d['side'].min()>=.75 and d['side'].max()<=1 and (d['side']+d['shift'].abs()).max()<=1+1e-6

def test_angles():
    with local_seed('angles'): a,b = A.rotate.draw(torch.zeros(20_000,1,1,1))['angle'],A.rotate_always.draw(torch.zeros(20_000,1,1,1))['angle']
    assert abs((a==0).float().mean()-.5)<.02
    for o in (a[a>0],b): assert o.min()>=30 and o.max()<=270 and abs(o.mean()-150)<3 and abs(o.std()-240/12**.5)<2
    assert A.rotate.draw(torch.zeros(9,1,1,1), p=1., low=5., high=5.)['angle'].tolist()==[5.]*9
    with pytest.raises(ArgumentError): A.rotate.draw(torch.zeros(9,1,1,1), low=9., high=5.)

@pytest.mark.parametrize('nearest', [False,True])
@pytest.mark.parametrize('angle', [-90.,0.,90.,180.,270.,360.,450.])
def test_quarter_turns_are_exact(angle, nearest):
    x = torch.rand(2,3,15,15)
    assert torch.equal(A.rotate(x, drawn=dict(angle=torch.tensor([angle,0.])), nearest=nearest)[0], x[0].rot90(round(angle/90), (-2,-1)))

def test_half_turn_of_a_rectangle_is_exact():
    x = torch.rand(1,3,9,14)
    assert torch.equal(A.rotate(x, drawn=dict(angle=torch.tensor([180.]))), x.flip(-1,-2))
    y = A.rotate(x[...,:13], drawn=dict(angle=torch.tensor([90.])))
    assert torch.allclose(y[0,:,:,2:11], x[0,:,:,2:11].rot90(1, (-2,-1)), atol=1e-4) and y[...,:2].abs().max()<1e-4

@pytest.mark.parametrize('angle', [33.,107.,222.])
@pytest.mark.parametrize('hw', [(40,40), (30,50), (51,28)])
def test_rotation_against_scipy(angle, hw):
    "scipy rotates about the same middle, the same way, in pixels: circles stay round in rectangles"
    from scipy.ndimage import rotate
    y,x = np.mgrid[:hw[0],:hw[1]]
    im = np.exp(-((y-hw[0]*.4)**2+(x-hw[1]*.6)**2)/12).astype(np.float32)
    ours = A.rotate(torch.from_numpy(im)[None,None], drawn=dict(angle=torch.tensor([angle])))[0,0].numpy()
    assert np.abs(ours-rotate(im, angle, reshape=False, order=1))[2:-2,2:-2].max()<.02

@pytest.mark.parametrize('outside', ['zeros','border','reflection'])
@settings(max_examples=30, deadline=None)
@given(st.floats(0, 360), st.integers(1, 20), st.integers(1, 20))
def test_nearest_is_grid_samples_nearest(outside, angle, H, W):
    "Our addresses and torch's nearest pixel agree but where a coordinate lies between two pixels"
    x = torch.rand(1,2,H,W)+1
    t = torch.zeros(1,2,3); a = torch.tensor(math.radians(angle))
    t[:,0,0],t[:,0,1],t[:,1,0],t[:,1,1] = a.cos(),-a.sin()*H/W,a.sin()*W/H,a.cos()
    g = F.affine_grid(t, [1,1,H,W], align_corners=False)
    u = torch.stack([((g[...,k]+1)*n-1)/2 for k,n in ((0,W),(1,H))], -1)
    clear = ((u-u.floor()-.5).abs()>1e-3).all(-1)
    ours,theirs = A._nearest(x, g, 0, outside),F.grid_sample(x, g, mode='nearest', padding_mode=outside, align_corners=False)
    assert torch.equal(ours[:,:,clear[0]], theirs[:,:,clear[0]])

@pytest.mark.parametrize('outside', ['zeros','border','reflection'])
def test_outside(outside):
    x = torch.full((1,1,20,20), .5)
    y = A.rotate(x, outside=outside, drawn=dict(angle=torch.tensor([45.])))
    m = A.rotate((x>0)[:,0], outside=outside, drawn=dict(angle=torch.tensor([45.])), nearest=True, fill=0)
    assert (y[0,0,0,0]==0)==(outside=='zeros') and m[0,0,0]==(outside!='zeros') and m.dtype==torch.bool
    assert outside=='zeros' or torch.allclose(y, x)

# --- image and masks together ---------------------------------------------------------------------------
def blobs(B=8, n=48):
    "Smooth images with one bright region away from the border"
    y,x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing='ij')
    return torch.stack([torch.sigmoid((.3-((y-n*.45-i%3)**2+(x-n*.55+i%2)**2).sqrt()/n)*25) for i in range(B)])[:,None].float()

@pytest.mark.parametrize('name', GEOMETRIC)
def test_mask_stays_on_its_lesion(name):
    "A mask cut from the image by a threshold is still the image's threshold afterwards"
    x = blobs()
    y,m,p = run(name, x, x[:,0]>.5, torch.cat([x>.5,x>.2], 1))
    a,b = y[:,0]>.5,m
    iou = (a&b).sum((1,2))/(a|b).sum((1,2))
    assert iou.min()>(.93 if AUGMENTATIONS[name].kind=='sample' else .9999) and torch.equal(p[:,0], m) and (p[:,0]<=p[:,1]).all()

@pytest.mark.parametrize('name', VALUES)
def test_values_leave_masks_alone(name):
    x = torch.rand(4,3,16,16)
    m = torch.randint(9, (4,16,16))
    assert run(name, x, m)[1] is m

@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(NAMES), max_size=5), st.integers(0, 99), st.sampled_from([torch.uint8,torch.int32,torch.int64,torch.bool]))
def test_classes_are_kept(names, seed, dtype):
    with local_seed(seed):
        x,l = torch.rand(3,1,16,16),torch.tensor([0,3,7])[torch.randint(3, (3,16,16))].to(dtype)
        y,m,s = augment_pair(x, names, l, l.long()+2**40, fill=[0,-1])
    assert m.dtype==dtype and set(m.unique().tolist())<={0,*l.unique().tolist()} and y.shape==x.shape
    assert torch.equal(m.long()[s>=0], s[s>=0]-2**40) and (m[s<0]==0).all()

@pytest.mark.parametrize('names', [('hflip','rotate'), ('crop','noise','vflip'), ('blur','region_shuffle')])
def test_masks_do_not_change_the_image(names):
    "The same draws with and without something that goes along"
    x = torch.rand(4,3,28,28)
    with local_seed(*names): a,ra = augment_batch(x, names),torch.get_rng_state()
    with local_seed(*names): b,rb = augment_pair(x, names, x[:,0]>.5, x[:,0].long())[0],torch.get_rng_state()
    assert torch.equal(a, b) and torch.equal(ra, rb)

def test_nothing_to_do():
    x,m = torch.rand(2,1,4,4),torch.rand(2,4,4)>.5
    assert augment_batch(x, []) is x and augment_pair(x, (), m)[1] is m and len(augment_pair(x, ['hflip']))==1

# --- values ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', VALUES)
def test_half_of_the_images(name):
    x = torch.rand(400,1,12,12)
    share = (run(name, x)[0]!=x).flatten(1).any(1).float().mean()
    assert abs(share-.5)<.1

@pytest.mark.parametrize('name', [o for o in VALUES if o not in ('clahe','blur')])
def test_limits(name):
    x = torch.rand(64,1,12,12).round()
    free,tight = (run(name, x, limits=o)[0] for o in (None,(0.,1.)))
    assert (free.min()<0 or free.max()>1) and torch.equal(tight, free.clamp(0, 1))

@pytest.mark.parametrize('name', VALUES)
def test_no_bounds(name):
    "Images in units of their own (z-scores) keep them: no change by more than their range"
    x = torch.randn(8,4,24,24)*3
    y = run(name, x, limits=None)[0]
    assert (y-x).abs().max()<4*(x.max()-x.min()) and (y.mean()-x.mean()).abs()<1.5 and y.std()>.4*x.std()

def test_noise():
    x = torch.full((3,1,300,300), .36)
    d = dict(on=torch.ones(3).bool(), type=torch.arange(3), sd=torch.full((3,), .1), field=torch.randn(3,1,300,300, generator=torch.Generator().manual_seed(0)))
    sd = A.noise(x, limits=None, drawn=d).std((1,2,3))
    assert torch.allclose(sd, torch.tensor([.1,.036,.06]), rtol=.02)
    assert A.noise(x, p=1., most=0.).equal(x) and A.noise(-x, p=1., limits=None).isfinite().all()
    with local_seed('types'): d = A.noise.draw(torch.zeros(3000,1,1,1), most=.2)
    assert (d['type'].bincount()/3000-1/3).abs().max()<.04 and 0<=d['sd'].min() and .19<d['sd'].max()<=.2

def test_contrast():
    x = torch.rand(2,3,9,9)*.4+.3
    for k in (.5,1.,2.):
        y = A.contrast(x, limits=None, drawn=dict(on=torch.tensor([True,False]), factor=torch.full((2,), k)))
        assert torch.allclose(y[0]-y[0].mean((1,2), keepdim=True), k*(x[0]-x[0].mean((1,2), keepdim=True)), atol=1e-6) and torch.allclose(y.mean((2,3)), x.mean((2,3)), atol=1e-6) and torch.equal(y[1], x[1])
    with local_seed('factor'): k = A.contrast.draw(torch.zeros(5000,1,1,1))['factor']
    assert 1/1.5-1e-6<=k.min() and k.max()<=1.5+1e-6 and abs((k>1).float().mean()-.5)<.03

@pytest.mark.parametrize('size', [3,5,7])
def test_blur_against_opencv(size):
    cv2 = pytest.importorskip('cv2')
    x = torch.rand(1,3,20,31)
    want = cv2.GaussianBlur(x[0].permute(1,2,0).numpy(), (size,size), .3*((size-1)*.5-1)+.8, borderType=cv2.BORDER_REPLICATE)
    assert torch.allclose(on(x, 'blur', size=size)[0], torch.from_numpy(want).permute(2,0,1), atol=1e-5)

def test_each_image_has_its_own_kernel():
    x = torch.rand(3,2,12,12)
    y = A.blur(x, drawn=dict(on=torch.ones(3).bool(), size=torch.tensor([3,7,5])))
    for i,s in enumerate((3,7,5)): assert torch.allclose(y[i:i+1], A.blur(x[i:i+1], drawn=dict(on=torch.ones(1).bool(), size=torch.tensor([s]))), atol=1e-6)

def test_sharpen_undoes_nothing_flat():
    x = torch.full((2,1,9,9), .4)
    for o in ('sharpen','blur','emboss','contrast'): assert torch.allclose(on(x, o), x, atol=1e-6)
    y = torch.rand(2,1,20,20)*.2+.4
    assert torch.allclose(on(y, 'sharpen', amount=1.)+on(y, 'blur', size=5), 2*y, atol=1e-5) and on(y, 'sharpen', amount=2.).std()>y.std()

def test_emboss_against_a_loop():
    x,a,s = torch.rand(1,1,6,7),.3,.6
    k = [[-a*(1+s),-a*s,0],[-a*s,1,a*s],[0,a*s,a*(1+s)]]
    pad = F.pad(x, (1,1,1,1), mode='replicate')[0,0]
    want = torch.tensor([[sum(k[u][v]*pad[i+u,j+v].item() for u in range(3) for v in range(3)) for j in range(7)] for i in range(6)])
    assert torch.allclose(on(x, 'emboss', alpha=a, strength=s)[0,0], want.clamp(0, 1), atol=1e-6)

@pytest.mark.parametrize('hw', [(64,64), (61,83), (40,31), (128,100)])
@pytest.mark.parametrize('clip', [.002,.01,.05])
@pytest.mark.parametrize('c', [1,3,4])
def test_clahe_against_opencv(hw, clip, c):
    pytest.importorskip('cv2')
    rng = np.random.default_rng(3)
    im = np.clip(rng.normal(110, 40, (*hw,c))*np.linspace(.3, 1, hw[1])[:,None], 0, 255).astype(np.uint8)
    im[:5,:5] = 0
    y = on(torch.from_numpy(im).permute(2,0,1)[None]/255, 'clahe', clip=clip)[0].permute(1,2,0)*255
    want = clahe(im if c>1 else im[...,0], clip, 8, 'opencv').reshape(im.shape)
    assert np.abs(y.numpy()-want).max()<=1.6 and np.abs(y.numpy()-want).mean()<.3

def test_clahe_of_an_even_image():
    for v in (0.,.5,1.): assert on(torch.full((2,1,16,16), v), 'clahe').isfinite().all()
    x = torch.full((1,2,16,16), 3.)
    with local_seed('even'): assert AUGMENTATIONS['clahe'](x, p=1., limits=None).isfinite().all()

# --- bad input ------------------------------------------------------------------------------------------
x4,m4 = torch.rand(2,3,14,14),torch.zeros(2,14,14, dtype=torch.bool)
@pytest.mark.parametrize('f', [lambda: augment_batch(x4, ['mixup']), lambda: A.check_augment(['hflip','']), lambda: augment_pair(x4, ['hflip'], m4, fill=[0,0]), lambda: A.rotate(x4, outside='mirror'),
    lambda: A.noise(x4, most=-1.), lambda: A.noise(x4, most=float('nan')), lambda: A.contrast(x4, most=.5), lambda: augment_batch(torch.rand(2,3,6,6), ['region_shuffle'])])
def test_bad_arguments(f):
    with pytest.raises(ArgumentError): f()

def test_one_name_is_a_recipe():
    with local_seed('one'): a = augment_batch(x4, 'hflip')
    with local_seed('one'): assert (a==augment_batch(x4, ['hflip'])).all() and A.check_augment('hflip')==('hflip',)
    with pytest.raises(ArgumentError, match='got mixup'): augment_batch(x4, 'mixup')

@pytest.mark.parametrize('dtype,ok,bad', [(torch.bool,(0,1,True,False),(-1,2,.5)), (torch.uint8,(0,255),(-1,256,.5)), (torch.int64,(-1,2**40),(.5,)), (torch.float32,(-1,.5,1e9),())])
def test_fill_has_to_fit_the_map(dtype, ok, bad):
    "A mask must not become 'lesion' where a rotation left nothing because somebody asked for -1"
    m = torch.zeros(2,14,14, dtype=dtype)
    for v in ok:
        with local_seed('fill'): assert augment_pair(x4, ['rotate_always'], m, fill=v)[1].unique().tolist()==sorted({0,torch.tensor(v).to(dtype).item()})
    for v in bad:
        with pytest.raises(ArgumentError, match='fill'): augment_pair(x4, ['rotate_always'], m, fill=v)

@pytest.mark.parametrize('f', [lambda: augment_batch(x4[0], []), lambda: augment_batch((x4*255).byte(), []), lambda: augment_pair(x4, [], m4[:1]), lambda: augment_pair(x4, [], m4[...,:9]),
    lambda: augment_pair(x4, [], m4[0]), lambda: augment_pair(x4, [], m4.numpy()), lambda: augment_pair(x4, [], None)])
def test_bad_shapes(f):
    with pytest.raises(ShapeError): f()

def test_every_augmentation_says_what_it_is():
    assert all(AUGMENTATIONS[o].kind in ('move','sample','values') and AUGMENTATIONS[o].__doc__ for o in NAMES) and len(GEOMETRIC)+len(VALUES)==len(NAMES)
