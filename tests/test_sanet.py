"SANet: its module against loops, its network at any size, tags from superpixels, its tables and its experiments"
import copy, pickle
import numpy as np
import pytest, torch, torchvision
from torch import nn
from medattn_nb.attention import attention_modules, collect_maps, open_gates
from medattn_nb.backbones import create_backbone
from medattn_nb.core import ArgumentError, ShapeError, local_seed
from medattn_nb.data.augment import AUGMENTATIONS
from medattn_nb.lab.complexity import complexity, network
from medattn_nb.lab.experiments import compare, run_experiment
from medattn_nb.lab.training import Recipe
from medattn_nb.losses import create as create_loss
import medattn_nb.papers.apspnet, medattn_nb.papers.mistakes
from medattn_nb.papers.sanet import *
from medattn_nb.papers.sanet import (ATTRIBUTES, AUGMENT, ENCODERS, EXPERIMENTS, IDRID, IDRID_MASKS, ISIC2017, LOSSES, PHANTOM3, POOLS, REGIONS, TABLE3)

NARROW = dict(encoder='resnet10', decoder=(16,16,8,8,8), width=8)
def make(name='sanet', **kw):
    with local_seed('sanet test'): return create_backbone(name, **{**(NARROW if name!='sanet-tags' else dict(encoder='resnet10', width=8)), **kw})
def noise(*size): return torch.randn(*size, generator=torch.Generator().manual_seed(1))
def labelled(B, H, W, n=9, holes=False):
    "Labels (B,H,W) in scattered pieces, every name used; with `holes` some pixels have none"
    g = torch.Generator().manual_seed(2)
    l = torch.stack([torch.randperm(H*W, generator=g)%n for _ in range(B)]).view(B, H, W)
    return torch.where(torch.rand(B, H, W, generator=g)<.2, -1, l) if holes else l

# --- the module ----------------------------------------------------------------------------------------
def by_loops(x, labels, w, b, fuse, gate, apply):
    "The module with a 1x1 convolution, one pixel after another, in NumPy"
    B,C,H,W = x.shape
    out = np.zeros_like(x)
    for n in range(B):
        for h in range(H):
            for v in range(W):
                s,f = labels[n,h,v],x[n,:,h,v]
                u = np.zeros(C) if s<0 else np.mean([x[n,:,i,j] for i in range(H) for j in range(W) if labels[n,i,j]==s], 0)
                p = w@(np.concatenate([u,f]) if fuse=='concat' else u+f)+b
                p = 1/(1+np.exp(-p)) if gate else p
                out[n,:,h,v] = f*p if apply=='multiply' else p
    return out

@pytest.mark.parametrize('fuse', ['concat','add'])
@pytest.mark.parametrize('gate', [False,True])
@pytest.mark.parametrize('apply', ['replace','multiply'])
def test_module_against_loops(fuse, gate, apply):
    with local_seed('loops'): m = SuperpixelAttention(3, fuse, gate, apply).double()
    x,l = noise(2, 3, 5, 7).double(),labelled(2, 5, 7, holes=True)
    y,maps = m(x, l, return_map=True)
    want = by_loops(x.numpy(), l.numpy(), m.conv.weight.detach().numpy()[:,:,0,0], m.conv.bias.detach().numpy(), fuse, gate, apply)
    np.testing.assert_allclose(y.detach().numpy(), want, atol=1e-10)
    assert {k:tuple(v.shape) for k,v in maps.items()}==dict(full=(2,3,5,7), spatial=(2,1,5,7), means=(2,3,5,7)) and (not gate or 0<maps['full'].min()<maps['full'].max()<1)

def test_names_are_only_names():
    m,x,l = SuperpixelAttention(4).eval(),noise(2, 4, 9, 8),labelled(2, 9, 8)
    new = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))[o] for i,o in enumerate(l)])
    torch.testing.assert_close(m(x, l), m(x, new))

def test_labels_of_another_size():
    m,x,l = SuperpixelAttention(4),noise(1, 4, 6, 5),labelled(1, 6, 5)
    torch.testing.assert_close(m(x, l.repeat_interleave(3, 1).repeat_interleave(3, 2)), m(x, l))

def test_nothing_there():
    "A picture without any superpixel: the means are 0"
    m,x = SuperpixelAttention(3),noise(2, 3, 4, 4)
    y,maps = m(x, torch.full((2,4,4), -1), return_map=True)
    assert not maps['means'].any() and y.isfinite().all()

@pytest.mark.parametrize('regions', REGIONS)
def test_controls_have_the_same_weights(regions):
    with local_seed('same'): a,b = SuperpixelAttention(4),None
    b = SuperpixelAttention(4, regions=regions); b.load_state_dict(a.state_dict())
    x,l = noise(2, 4, 8, 12),labelled(2, 8, 12, 6)
    u = b(x, l if regions in ('slic','grid') else None, return_map=True)[1]['means']
    if regions=='none': assert torch.equal(u, x)
    if regions=='image': torch.testing.assert_close(u, x.mean((2,3), keepdim=True).expand_as(x))
    if regions=='grid': assert len({tuple(o) for o in u[0].flatten(1).T.round(decimals=5).tolist()})==6
    if regions in ('slic','grid'):
        with pytest.raises(ShapeError, match='superpixels=600'): b(x)

@pytest.mark.parametrize('n', [1,2,5,24,100])
@pytest.mark.parametrize('hw', [(8,12),(12,8),(1,96),(10,10)])
def test_grid_has_no_more_regions_than_superpixels(n, hw):
    l = (torch.arange(hw[0]*hw[1])%n).view(1, *hw)
    g = region_labels(l, 'grid')
    k,n = g.unique().numel(),l.unique().numel()
    assert g.min()==0 and g.max()==k-1 and n/2<k<=n

def test_grid_keeps_holes_and_pictures_apart():
    l = torch.stack([labelled(1, 9, 9, 4)[0],labelled(1, 9, 9, 16, holes=True)[0]])
    g = region_labels(l, 'grid')
    assert torch.equal(g<0, l<0) and g[0].unique().numel()==4 and torch.equal(g[:1], region_labels(l[:1], 'grid'))

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_half_precision(dtype):
    m,x,l = SuperpixelAttention(4),noise(1, 4, 16, 16),labelled(1, 16, 16)
    y = copy.deepcopy(m).to(dtype)(x.to(dtype), l)
    assert y.dtype==dtype
    torch.testing.assert_close(y.float(), m(x, l), atol=.05, rtol=.05)

def test_module_is_an_attention_module():
    m,x,l = make(num_classes=2),noise(1, 3, 32, 32),labelled(1, 32, 32)
    assert list(attention_modules(m))==['sam']
    with collect_maps(m.eval()) as maps: m(x, l)
    assert set(maps['sam'])=={'full','spatial','means'} and maps['sam']['spatial'].shape==(1,1,32,32)
    plain = make('resunet', num_classes=2).eval()
    plain.load_state_dict({k:v for k,v in m.state_dict().items() if not k.startswith('sam.')})
    with open_gates(m), torch.no_grad(): assert torch.equal(m(x, l), plain(x))

@pytest.mark.parametrize('kw', [dict(fuse='sum'),dict(apply='add'),dict(regions='squares'),dict(kernel_size=2),dict(gate='yes')])
def test_module_refuses(kw):
    with pytest.raises(ArgumentError): SuperpixelAttention(4, **kw)

def test_module_refuses_shapes():
    m,x = SuperpixelAttention(4),noise(2, 4, 8, 8)
    for l in (torch.zeros(2, 8, 8), torch.zeros(3, 8, 8, dtype=torch.long), torch.zeros(8, 8, dtype=torch.long), np.zeros((2,8,8), int)):
        with pytest.raises(ShapeError): m(x, l)
    with pytest.raises(ShapeError): m(x[:,:3], labelled(2, 8, 8))
    with pytest.raises(ArgumentError, match='K=3'): SuperpixelAttention(4, K=3)(x, labelled(2, 8, 8))

# --- the network ---------------------------------------------------------------------------------------
KINDS = [('resunet',{}),('resunet',dict(decide='superpixel')),('resunet',dict(decide='superpixel', regions='grid')),('sanet',{}),('sanet',dict(place='encoder')),('sanet',dict(gate=True, apply='multiply', regions='grid')),('sanet',dict(decide='superpixel', K=12))]

@pytest.mark.parametrize('name,kw', KINDS)
@pytest.mark.parametrize('hw', [(33,47),(9,15)])
def test_any_size(name, kw, hw):
    m = make(name, num_classes=5, **kw).eval()
    with torch.no_grad(): y = m(noise(2, 3, *hw), labelled(2, *hw, holes=True))
    assert y.shape==(2,5,*hw) and y.isfinite().all()

@pytest.mark.parametrize('name,kw', KINDS)
def test_gradients_reach_every_parameter(name, kw):
    m = make(name, num_classes=3, **kw)
    m(noise(2, 3, 64, 64), labelled(2, 64, 64)).square().mean().backward()
    assert [k for k,p in m.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]==[]

@pytest.mark.parametrize('name', ['resunet','sanet','sanet-tags'])
def test_one_picture_can_be_trained_on(name):
    m = make(name, num_classes=2)
    m(noise(1, 3, 40, 40), labelled(1, 40, 40)).sum().backward()
    assert all(p.grad is not None for p in m.parameters())

@pytest.mark.parametrize('name', ['sanet','sanet-tags'])
def test_labels_as_channel(name):
    m,x,l = make(name, num_classes=2).eval(),noise(2, 3, 40, 32),labelled(2, 40, 32, 30, holes=True)
    with torch.no_grad():
        y = m(x, l)
        assert torch.equal(m(torch.cat([x,l[:,None].float()], 1)), y)
        for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))): assert torch.equal(o(x, l), y)
        torch.testing.assert_close(m(x[:1], l[:1]), y[:1], rtol=1e-3, atol=1e-4)
    with pytest.raises(ShapeError, match='superpixels=600'): m(x)
    with pytest.raises(ShapeError): m(noise(2, 5, 40, 32))

def test_plain_network_ignores_labels():
    m,x,l = make('resunet').eval(),noise(1, 3, 32, 32),labelled(1, 32, 32)
    with torch.no_grad(): assert torch.equal(m(x), m(torch.cat([x,l[:,None].float()], 1)))

def test_one_grey_channel():
    m = make(in_channels=1).eval()
    assert m(noise(1, 1, 32, 32), labelled(1, 32, 32)).shape==(1,1,32,32)
    assert m(torch.cat([noise(1, 1, 32, 32),labelled(1, 32, 32)[:,None].float()], 1)).shape==(1,1,32,32)

def test_superpixels_decide():
    m,l = make('resunet', decide='superpixel', num_classes=2).eval(),labelled(1, 32, 32, 7, holes=True)
    with torch.no_grad(): y,own = m(noise(1, 3, 32, 32), l),m.head(m.stages(noise(1, 3, 32, 32), l)['before'])
    for s in range(7): torch.testing.assert_close(y[0][:,l[0]==s], own[0][:,l[0]==s].mean(1, keepdim=True).expand(-1, (l==s).sum()))
    assert torch.equal(y[0][:,l[0]<0], own[0][:,l[0]<0])

def test_half_precision_network():
    m,x,l = make(num_classes=2).eval(),noise(1, 3, 64, 64),labelled(1, 64, 64, 300)
    xl = torch.cat([x,l[:,None].float()], 1)
    with torch.no_grad():
        y = m(xl)
        with torch.autocast('cpu', torch.bfloat16): z = m(xl)
    assert (y-z.float()).abs().mean()<.1*y.abs().mean()+.02

def test_same_start_with_and_without_module():
    a,b = make('resunet', num_classes=3).state_dict(),make('sanet', num_classes=3).state_dict()
    assert all(torch.equal(v, b[k]) for k,v in a.items()) and set(b)-set(a)=={'sam.conv.weight','sam.conv.bias'}

def test_encoder_is_torchvision():
    with torch.device('meta'): a,b = sanet(5, init='default').encoder,torchvision.models.resnet101(weights=None)
    assert sum(p.numel() for p in a.parameters())==sum(p.numel() for p in b.parameters())-2048*1000-1000==42_500_160
    assert set(b.state_dict())-set(a.state_dict())=={'fc.weight','fc.bias'} and set(a.state_dict())<=set(b.state_dict())

@pytest.mark.parametrize('encoder', ENCODERS)
def test_every_encoder(encoder):
    with torch.device('meta'): net = sanet(5, encoder=encoder, init='default')
    t = stage_table(net, 97)
    assert t.total.iloc[-1]==n_weights('sanet', num_classes=5, encoder=encoder) and tuple(t.loc['logits',['channels','height','width']])==(5,97,97)

@pytest.mark.parametrize('name', ['resunet','sanet','sanet-tags'])
def test_can_be_counted_without_superpixels(name):
    "On the device 'meta' pictures have no values, and so no superpixels"
    with torch.device('meta'): m,x = create_backbone(name, num_classes=2, encoder='resnet10', init='default'),torch.zeros(2, 3, 40, 40)
    assert m.eval()(x).shape==((2,2) if name=='sanet-tags' else (2,2,40,40))
    c = complexity(network(name, classes=2, device='meta', encoder='resnet10'), 64)
    assert c.macs>0 and c.parameters==sum(p.numel() for p in m.parameters())

def test_counts_by_hand():
    def conv(a, b, k=3): return a*b*k*k+2*b
    up = sum(conv(a+s, b)+conv(b, b) for a,s,b in ((2048,1024,256),(256,512,128),(128,256,64),(64,64,32),(32,0,16)))
    assert n_weights('resunet', num_classes=5)==42_500_160+up+conv(16, 32)+32*5+5
    small = dict(num_classes=5, encoder='resnet10')
    plain = n_weights('resunet', **small)
    assert [n_weights('sanet', **small, **o)-plain for o in ({}, dict(fuse='add'), dict(place='encoder'), dict(width=32, kernel_size=3))]==[2*32*32+32, 32*32+32, 2*512*512+512, 9*2*32*32+32]
    assert len({n_weights('sanet', regions=o, **small) for o in REGIONS})==len({n_weights('sanet-tags', regions=o, pool=p, **small) for o in REGIONS for p in POOLS})==1

@pytest.mark.parametrize('name', ['resunet','sanet','sanet-tags'])
@pytest.mark.parametrize('ni', [1,3])
def test_weights_of_torchvision_fit(name, ni):
    sd = torchvision.models.resnet18(weights=None).state_dict()
    own = make(name, encoder='resnet18', in_channels=ni, weights=sd).encoder.state_dict()
    assert all(torch.equal(v, sd[k]) for k,v in own.items() if k!='conv1.weight')
    torch.testing.assert_close(own['conv1.weight'].sum(1), sd['conv1.weight'].sum(1))

def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    for name in ('resunet','sanet','sanet-tags'):
        with pytest.raises(ArgumentError, match='resnet18.*is not on this machine'): make(name, encoder='resnet18', weights='imagenet')
    with pytest.raises(ArgumentError, match='has none'): make(weights='imagenet')

@pytest.mark.parametrize('kw', [dict(place='bridge'),dict(decide='both'),dict(decide='superpixel', regions='none'),dict(regions='all'),dict(encoder='vgg16'),dict(num_classes=0),dict(width=0),dict(decoder=(8,8)),dict(init='zeros'),dict(fuse='both')])
def test_network_refuses(kw):
    with pytest.raises(ArgumentError): make(**kw)

def test_network_that_is_handed_in():
    m = torchvision.models.resnet18(weights=None)
    w = m.layer2[0].conv1.weight.detach().clone()
    net = make(encoder=m).eval()
    assert torch.equal(net.encoder.layer2[0].conv1.weight, w) and net(noise(1, 3, 32, 32), labelled(1, 32, 32)).shape==(1,1,32,32)
    with pytest.raises(ArgumentError, match='conv1'): make(encoder=nn.Linear(2, 2))

# --- labels of pictures --------------------------------------------------------------------------------
@pytest.mark.parametrize('how', POOLS)
def test_pool_regions_against_loops(how):
    z,there = noise(3, 2, 6),torch.rand(3, 6, generator=torch.Generator().manual_seed(3))<.6
    there[2] = False
    y = pool_regions(z, there, how, 2.5)
    for b in range(3):
        k = there[b].nonzero()[:,0].tolist() or [0]
        for n in range(2):
            v = z[b,n,k].double().numpy()
            want = dict(mean=v.mean(), max=v.max(), lse=np.log(np.mean(np.exp(2.5*v)))/2.5)[how]
            assert abs(y[b,n].item()-want)<1e-5

@pytest.mark.parametrize('regions', REGIONS)
@pytest.mark.parametrize('pool', POOLS)
def test_tags(regions, pool):
    m = make('sanet-tags', num_classes=4, regions=regions, pool=pool)
    y = m(noise(2, 3, 40, 33), labelled(2, 40, 33, holes=True))
    assert y.shape==(2,4) and y.isfinite().all()
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

def test_tags_of_a_picture_without_superpixels():
    m = make('sanet-tags', pool='max')
    y = m(noise(2, 3, 32, 32), torch.stack([torch.full((32,32), -1),labelled(1, 32, 32)[0]]))
    y.sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in m.parameters())

def test_logits_of_regions():
    m,x,l = make('sanet-tags', num_classes=3, pool='mean').eval(),noise(2, 3, 64, 64),torch.arange(16).repeat_interleave(16).view(16, 16)
    l = l.repeat_interleave(4, 0).repeat_interleave(4, 1)[None].expand(2, -1, -1)
    with torch.no_grad(): z,there,at = m.regions_of(x, l)
    assert z.shape==(2,3,16) and there.all() and at.shape==(2,16,16)
    torch.testing.assert_close(m(x, l), z.mean(2))

@pytest.mark.parametrize('kw', [dict(pool='median'),dict(regions='all'),dict(r=0),dict(r=True),dict(attention='cbam'),dict(width=0)])
def test_tags_refuse(kw):
    with pytest.raises(ArgumentError): make('sanet-tags', **kw)

# --- tables --------------------------------------------------------------------------------------------
def test_printed_tables():
    assert [len(printed(o)) for o in (1,2,3,4)]==[5,5,7,5] and list(printed(1).index)==list(ATTRIBUTES)
    t = printed(4)
    assert t.loc['SANet',('Jaccard','milia_like_cyst')]==25.1 and t.loc['Ensemble',('Dice','negative_network')]==37.1 and np.isnan(t.loc['Ensemble',('Jaccard','micro')])
    assert tuple(printed(3).loc['ResUNet + RSM + SAM'])==(37.4,53.1)
    with pytest.raises(ArgumentError): printed(5)

def test_averages():
    assert round(paper_average([57.6,34.6,25.1,28.6,24.8,53.7]), 2)==37.4 and round(paper_average([73.5,51.5,40.2,45.2,39.8,68.4]), 2)==53.1
    with pytest.raises(ArgumentError, match='six'): paper_average([1,2,3,4,5])
    c = check_table4()
    assert list(c.index[~c.agrees])==[('ResNet151','Jaccard'),('SANet','Dice')]
    assert (c.computed['ResNet151','Jaccard'],c.computed['SANet','Jaccard'],c.computed['SANet','Dice'])==(24.98,34.14,50.04) and c.tied['SANet','Dice']<c.tied['Ensemble','Dice']

def record(row, seed, tp, fp, fn, split='test'):
    names = list(ATTRIBUTES)
    g = np.random.default_rng(seed)
    masks = {k:dict(tp=g.integers(tp, tp+5, 6).tolist(), fp=g.integers(fp, fp+3, 6).tolist(), fn=g.integers(fn, fn+3, 6).tolist()) for k in names}
    return dict(row=row, seed=seed, recipe=dict(split='official'), scores={split:dict(names=names, masks=masks, group=list('aabbcc'), file=list('uvwxyz'), size=(9,9))})

@pytest.mark.parametrize('metric', ['iou','dice'])
def test_values_from_records_against_loops(metric):
    r = record('x', 0, 3, 1, 2)
    v,m,total = attribute_values(r, metric=metric),r['scores']['test']['masks'],np.zeros(3)
    def one(tp, fp, fn): return tp/(tp+fp+fn) if metric=='iou' else 2*tp/(2*tp+fp+fn)
    want = []
    for k in ATTRIBUTES:
        c = np.array([sum(m[k][o]) for o in ('tp','fp','fn')]); total += c; want.append(one(*c))
    micro = one(*total)
    np.testing.assert_allclose(v, [*want,np.mean(want),micro,np.mean([*want,micro])])
    assert abs(v["paper's average"]-paper_average([*want,micro]))<1e-12

def test_average_table():
    rs = [record('a', s, 3, 3, 3) for s in (0,1)]+[record('b', s, 9, 1, 1) for s in (0,1)]
    t = average_table(rs, ['a','b','c'], boots=200)
    assert list(t.index)==['a','b'] and t.runs.tolist()==[2,2] and t['diff']['b']>0 and t.diff_low['b']>0 and t.low['a']<=t.value['a']<=t.high['a']
    for k in ('a','b'): assert abs(t.value[k]-np.mean([attribute_values(r)["paper's average"] for r in rs if r['row']==k]))<1e-12
    assert abs(average_table(rs, ['a'], what='streaks', boots=10).value['a']-np.mean([attribute_values(r)['streaks'] for r in rs[:2]]))<1e-12
    assert not len(average_table([], ['a']))
    with pytest.raises(ArgumentError, match='choose one of'): average_table(rs, ['a'], what='hair', boots=10)

def test_attribute_table_and_failures():
    rs = [record('a', 0, 0, 0, 0),record('ResUNet', 0, 3, 1, 2)]
    t = attribute_table(rs, ['ResUNet','a','c'])
    assert t.runs.tolist()==[1,1,0] and t.paper['ResUNet']==29.3 and t['streaks']['c']=='–' and t.paper['a']=='–'
    assert attribute_table([], ['ResUNet']).runs.tolist()==[0]
    for m,k,avg in (('iou','Jaccard',37.4),('dice','Dice',53.1)):
        t = attribute_table(rs, ['ResUNet'], m, table4=True); last = t.loc['SANet, printed']
        assert list(t.index)==['ResUNet','SANet, printed'] and last.paper==avg and last["paper's average"]=='–' and all(last[o]==printed(4).loc['SANet',(k,o)] for o in (*ATTRIBUTES,'macro','micro'))
    f = failures([record('a', 0, 0, 0, 0)], ['a'])
    s = record('a', 0, 0, 0, 0)['scores']['test']['masks']['streaks']
    tp,fp,fn = (np.array(s[k]) for k in ('tp','fp','fn'))
    assert f.pictures['a','streaks']==(tp+fn>0).sum() and np.isclose(f.missed['a','streaks'], 100*(tp[tp+fn>0]==0).mean())

# --- experiments ---------------------------------------------------------------------------------------
def test_recipes_are_valid_and_their_hashes_stable():
    for e in EXPERIMENTS.values():
        for p in e.presets:
            for row,r in e.recipes(p):
                assert Recipe.from_dict(r.to_dict()).hash==r.hash and set(r.augment)<=set(AUGMENTATIONS), (e.name,p,row)
                needs = r.model in ('sanet','sanet-tags') and dict(r.attention_options).get('regions', 'slic') in ('slic','grid') or dict(r.attention_options).get('decide')=='superpixel'
                assert needs==(r.superpixels>0), (e.name,p,row)
            hashes = [r.hash for _,r in e.recipes(p)]
            assert len(set(hashes))==len(hashes)

def test_paper_settings():
    r = dict(TABLE3.recipes('paper', seeds=(0,)))['ResUNet + RSM + SAM']
    assert (r.data,r.optimiser,r.lr,r.momentum,r.weight_decay,r.schedule,r.power,r.batch_size,r.epochs,r.weights)==('isic-2018-task2','amsgrad',1e-4,.9,1e-4,'poly',.9,5,100,'imagenet')
    assert r.size%7==r.size%32==0 and r.augment==('region_shuffle',*AUGMENT) and dict(r.attention_options)['encoder']=='resnet101' and r.loss=='gbl'
    assert {k:e.published[k]['iou'].direction for e in (TABLE3,) for k in ('UNet','DeepLab','DANet','ResUNet + RSM','ResUNet + SAM')}==dict(UNet=-1, DeepLab=-1, DANet=-1, **{'ResUNet + RSM':1, 'ResUNet + SAM':1})

@pytest.mark.parametrize('row', rows())
def test_every_row_can_be_made(row):
    v = rows('resnet18', rates=(2,4,6))[row]
    with torch.device('meta'): m = create_backbone(v['model'], num_classes=5, in_channels=3, init='default', **v['attention_options'])
    assert next(m.parameters()).is_meta

def test_losses_of_the_rows():
    for o in LOSSES.values(): create_loss('gbl', **o)
    assert dict(EXPERIMENTS['printed'].recipes('smoke'))['Jaccard as printed'].loss_options==(('average','both'),('batch',True),('form','printed'))
    assert list(IDRID.recipes('laptop')[0][1].masks)==list(IDRID_MASKS)

SMALL = dict(n=24, size=49, blank=(20,50,50,40,50), ratio=(16.,6.,5.,8.,6.))
def test_a_row_from_end_to_end(tmp_path):
    "Superpixels travel through shuffled regions into the module, and a record comes out"
    e = PHANTOM3.only(('ResUNet + RSM + SAM','SAM on squares'), {})
    own = {k:dict(v, superpixels=40, attention_options=dict(v['attention_options'], **NARROW)) for k,v in e.rows.items()}
    e = type(e)(e.paper, e.table, e.title, own, e.presets, e.seeds, {})
    rs = run_experiment(e, 'smoke', results=tmp_path, checkpoints=None, device='cpu', size=49, epochs=1, data_options=SMALL)
    assert [r['row'] for r in rs]==list(own) and rs[0]['parameters']==rs[1]['parameters']
    t = attribute_table(rs, own)
    assert t.runs.tolist()==[1,1] and t["paper's average"].notna().all()
    assert len(compare(e, rs, 'smoke', boots=100))==2

def test_tags_from_end_to_end(tmp_path):
    names = 'global average','superpixels, log-sum-exp'
    e = ISIC2017.only(names)
    own = {k:dict(v, attention_options=dict(v['attention_options'], encoder='resnet10'), **({'superpixels':30} if 'superpixels' in v else {})) for k,v in e.rows.items()}
    e = type(e)(e.paper, e.table, e.title, own, e.presets, e.seeds, {})
    rs = run_experiment(e, 'smoke', results=tmp_path, checkpoints=None, device='cpu', data_options=SMALL)
    assert [r['row'] for r in rs]==list(names) and np.shape(rs[0]['scores']['test']['score'])[1]==5
    for metric in ('auc','ap'): assert list(compare(e, rs, 'smoke', metric=metric, boots=100).model)==list(names)
