"Learning To Pay Attention To Mistakes: sizes, shapes, readings and bad input of its networks, and its tables as data"
import copy, pickle
from pathlib import Path
import numpy as np
import pytest, torch
import torch.nn.functional as F
from torch import nn
from medattn_nb.attention import attention_modules, collect_maps, open_gates
from medattn_nb.backbones import create_backbone
from medattn_nb.core import ArgumentError, ShapeError, local_seed
from medattn_nb.lab.experiments import run_experiment
from medattn_nb.lab.ledger import Ledger
from medattn_nb.lab.training import Recipe
from medattn_nb.papers.mistakes import *
from medattn_nb.papers.mistakes import BRATS, CITY, DIALS, EXPERIMENTS, ISLES, KINDS, LGG, MODELS, NAMES, RFNA_READINGS, SITES

BOTH = [(k,{}) for k in MODELS]+[(k,dict(blocks='released')) for k,v in MODELS.items() if 'kind' in v]
networks = pytest.mark.parametrize('name,kw', BOTH, ids=lambda o: o if isinstance(o, str) else '-'.join(o.values()))
def params(m): return sum(p.numel() for p in m.parameters())
def make(name, seed=0, **kw):
    with local_seed('mistakes', seed): return create_backbone(name, **kw)
def noise(*size): return torch.randn(*size, generator=torch.Generator().manual_seed(1))

# --- sizes ---------------------------------------------------------------------------------------------
COUNTS = {'unet':3_129_248, 'unet-wide':12_506_944, 'unet-d6':3_129_248, 'unet-d9':3_129_248, 'unet-attention':3_161_843, 'unet-csc':3_140_448,
          'unet-gcn':3_151_608, 'unet-cbam':3_140_200, 'unet-fpa':4_200_608, 'unet-rfna':4_403_616}

@pytest.mark.parametrize('name', MODELS)
def test_counts_of_the_released_classes(name):
    kw = dict(blocks='released') if 'kind' in MODELS[name] else {}
    assert n_weights(name, **kw)==COUNTS[name]
    assert n_weights(name, in_channels=3, **kw)==COUNTS[name]-9*MODELS[name].get('width', 32)
    assert n_weights(name, num_classes=3, **kw)==COUNTS[name]+2*MODELS[name].get('width', 32)

SUM = {True:64**2+128**2+2*256**2, False:64**2+128**2+256**2} # of squared output channels, with and without the bridge
CROSS = {True:32*64+64*128+128*256+256**2, False:32*64+64*128+128*256}
WIDTH = {True:64+128+256+256, False:64+128+256}

@pytest.mark.parametrize('bridge', [True,False])
@pytest.mark.parametrize('expansion', [1,2,4,8])
@pytest.mark.parametrize('depthwise', [True,False])
@pytest.mark.parametrize('times,share,kernels,norms', [(1,'all',1,1), (2,'all',1,1), (2,'kernel',1,2), (2,'none',2,2)])
def test_count_of_every_fpa(bridge, expansion, depthwise, times, share, kernels, norms):
    if not depthwise and expansion>2: pytest.skip('the paper stops at 2')
    e,S,X,W = expansion,SUM[bridge],CROSS[bridge],WIDTH[bridge]
    want = e*X+e*S+kernels*9*(e*W if depthwise else e*e*S)+norms*2*e*W
    assert n_weights('unet-fpa', bridge=bridge, expansion=expansion, depthwise=depthwise, times=times, share=share)==3_129_248+want

@pytest.mark.parametrize('kw,n', [(dict(depthwise=False, expansion=1, bridge=False),4_033_312), (dict(depthwise=False, expansion=1),4_754_720), (dict(expansion=8, bridge=False),4_200_864)])
def test_fpa_counts_of_the_notes(kw, n): assert n_weights('unet-fpa', **kw)==n

@pytest.mark.parametrize('kw,n', [({},4_403_616), (dict(bridge=False),3_856_800), (dict(reading='released'),4_340_128), (dict(reading='released', expansion=8),5_442_464), (dict(expansion=8, share=True),5_627_296),
    (dict(depthwise=False, expansion=1, first=3, project=True, bridge=False),5_626_400), (dict(ratio=4),4_403_616-WIDTH[True]*4*11), (dict(ratio=2),4_403_616-WIDTH[True]*4*22)])
def test_rfna_counts(kw, n): assert n_weights('unet-rfna', **kw)==n

def test_only_two_readings_come_near():
    near = {k for k,v in RFNA_READINGS.items() if f"{n_weights('unet-rfna', **v)/1e6:.2f}"=='5.63'}
    assert {o[0] for o in near}=={'A','B'} and len(near)==2

def test_modules_stand_where_table_1_says():
    at = {k:set(attention_modules(create_backbone(k, width=16))) for k in MODELS}
    assert at['unet']==at['unet-wide']==at['unet-d6']==at['unet-d9']==set()
    assert at['unet-attention']=={'skips.e1','skips.e2','skips.e3'}
    assert at['unet-csc']=={f'after.{o}' for o in ('e1','e2','e3','d3','d2','d1')} and at['unet-gcn']==at['unet-cbam']=={f'after.{o}' for o in ('e1','e2','e3','bridge')}
    assert at['unet-fpa']==at['unet-rfna']=={'e2','e3','e4','bridge'} and set(attention_modules(create_backbone('unet-fpa', bridge=False, width=8)))=={'e2','e3','e4'}

# --- pictures of any size ------------------------------------------------------------------------------
@networks
@pytest.mark.parametrize('size', [(127,95),(33,64),(8,8)])
def test_any_size(name, kw, size):
    m = make(name, width=16, in_channels=1, num_classes=2, **kw).eval()
    with torch.no_grad(): y = m(noise(1, 1, *size))
    assert y.shape==(1,2,*size) and y.isfinite().all()

@pytest.mark.parametrize('name', ['unet','unet-wide','unet-d9','unet-fpa','unet-rfna'])
@pytest.mark.parametrize('size', [(1,1),(8,8),(9,3)])
def test_tiny_pictures_can_be_trained_on(name, size):
    m = make(name, width=8, in_channels=1)
    m(noise(1, 1, *size)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

@pytest.mark.parametrize('size', [(64,64),(40,88)])
def test_upsampling_is_times_two_where_the_side_divides(size, monkeypatch):
    m,x,up = make('unet', width=8).eval(),noise(2, 4, *size),F.interpolate
    with torch.no_grad(): y = m(x)
    monkeypatch.setattr(F, 'interpolate', lambda x,size,**kw: up(x, scale_factor=2, **kw))
    with torch.no_grad(): assert torch.equal(m(x), y)

def test_wrong_images():
    m = make('unet', width=8)
    for x in (noise(1, 3, 16, 16), noise(4, 16, 16), torch.zeros(1, 4, 16, 16, dtype=torch.uint8)):
        with pytest.raises(ShapeError): m(x)

@networks
def test_images_do_not_mix(name, kw):
    m,x = make(name, width=16, **kw).eval(),noise(2, 4, 24, 24)
    with torch.no_grad(): torch.testing.assert_close(m(x)[:1], m(x[:1]), rtol=1e-3, atol=1e-4)

# --- gradients, seeds, weights -------------------------------------------------------------------------
DEAD = {'mask.weight','squeeze.weight','norm.weight'} # of the released GC, whose attention does not depend on its input

@networks
def test_gradients_reach_every_parameter(name, kw):
    m = make(name, width=64 if (name,kw)==('unet-gcn',{}) else 16, **kw) # of 16 channels GC's bottleneck has one unit, whose layer norm is a constant
    for o in attention_modules(m).values():
        for k,p in o.named_parameters():
            if not k.startswith('main'): nn.init.uniform_(p, *((.2,.5) if p.ndim==1 else (.5/p[0].numel(),1/p[0].numel())))
    m(noise(2, 4, 80, 72)).square().sum().backward()
    before_a_norm = lambda k: k.startswith('skips') and k.endswith('.0.bias') # changes nothing, so its gradient is 0 but for rounding
    dead = {k for k,p in m.named_parameters() if p.grad is None or not p.grad.isfinite().all() or (p.grad==0).all() and not before_a_norm(k)}
    assert dead==({f'after.{s}.{o}' for s in SITES['encoder'] for o in DEAD} if (name,kw)==('unet-gcn',dict(blocks='released')) else set())

@pytest.mark.parametrize('kw', [dict(times=1), dict(share='kernel'), dict(share='none'), dict(depthwise=False, expansion=1)])
def test_gradients_of_fpa(kw): _gradients(FPA(6, 8, 2, **kw))

@pytest.mark.parametrize('kw', [dict(ratio=4), dict(ratio=2), dict(share=True), dict(depthwise=False, expansion=1), dict(first=3, project=True), dict(reading='released'), dict(reading='released', share=True, first=3)])
def test_gradients_of_rfna(kw): _gradients(RFNA(6, 8, 2, **kw))

def _gradients(m):
    y = m(noise(2, 6, 40, 36))
    (y*noise(*y.shape)).sum().backward()
    assert y.shape==(2,8,20,18) and all(p.grad is not None and (p.grad!=0).any() for p in m.parameters())

@networks
@pytest.mark.parametrize('init', ['he','default'])
def test_one_seed_gives_one_plain_network(name, kw, init):
    m = make(name, width=8, init=init, **({**kw, 'reduction':4} if name=='unet-cbam' and not kw else {**kw, 'ratio':.25} if name=='unet-gcn' and not kw else kw))
    plain = make('unet', width=8, init=init).state_dict()
    assert all(torch.equal(v, m.state_dict()[k]) for k,v in plain.items())

@networks
def test_weights_of_the_plain_network_load_everywhere(name, kw):
    kw = dict(kw, width=16)
    plain = make('unet', seed=1, width=16, num_classes=3)
    m = make(name, weights=plain.state_dict(), **kw)
    assert all(torch.equal(v, m.state_dict()[k]) for k,v in plain.state_dict().items() if k!='head.weight')
    again = make(name, seed=2, weights=m.state_dict(), **kw)
    assert all(torch.equal(v, again.state_dict()[k]) for k,v in m.state_dict().items())

def test_weights_that_do_not_fit(tmp_path):
    sd = make('unet', width=8).state_dict()
    for w in (make('unet', width=16).state_dict(), dict(list(sd.items())[5:]), {'conv.weight':torch.zeros(1)}, tmp_path/'none.pth', 'imagenet'):
        with pytest.raises(ArgumentError): create_backbone('unet-fpa', width=8, weights=w)
    torch.save(sd, tmp_path/'w.pth')
    assert torch.equal(create_backbone('unet-rfna', width=8, weights=tmp_path/'w.pth').e1.main[0].weight, sd['e1.main.0.weight'])

@networks
def test_copies_and_pickles(name, kw):
    m,x = make(name, width=16, **kw).eval(),noise(1, 4, 16, 16)
    with torch.no_grad():
        for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))): assert torch.equal(o(x), m(x))

def test_recipes_know_the_networks():
    r = Recipe(data='phantom-brain', model='unet-fpa', channels=4, attention_options=dict(dilation=9, width=8))
    m = create_backbone(r.model, num_classes=1, in_channels=r.channels, attention=r.attention, where=r.where, init=r.init, keep_identity=r.keep_identity, **dict(r.attention_options))
    assert m.e3.w2[0].dilation==(9,9) and m.e1.nf==8

# --- FPA and RFNA --------------------------------------------------------------------------------------
def random(m):
    with local_seed('random'):
        for p in m.parameters(): nn.init.normal_(p, std=.3)
    return m.eval()

def test_shared_and_copied_kernels_agree():
    a,b,c = random(FPA(5, 8, 2)),FPA(5, 8, 2, share='kernel').eval(),FPA(5, 8, 2, share='none').eval()
    sd = a.state_dict()
    for m in (b,c): m.load_state_dict({k:sd[k.replace('w2.1','w2.0').replace('norm.1','norm.0')] for k in m.state_dict()})
    x = noise(2, 5, 30, 26)
    with torch.no_grad(): assert torch.equal(a(x), b(x)) and torch.equal(a(x), c(x))
    with torch.no_grad():
        b.norm[1].bias += 1; c.w2[1].weight.mul_(-1)
        assert not torch.allclose(a(x), b(x)) and not torch.allclose(a(x), c(x))

def test_once_is_not_twice():
    a,b = random(FPA(5, 8, 2)),FPA(5, 8, 2, times=1).eval()
    b.load_state_dict(a.state_dict())
    with torch.no_grad(): assert not torch.allclose(a(x:=noise(1, 5, 24, 24)), b(x))

def test_rfna_with_one_kernel_agrees_with_two_equal_ones():
    a,b = random(RFNA(5, 8, 2, share=True)),RFNA(5, 8, 2).eval()
    b.load_state_dict({k:a.state_dict()[k.replace('w23.1','w23.0')] for k in b.state_dict()})
    with torch.no_grad(): assert torch.equal(a(x:=noise(2, 5, 40, 40)), b(x))

def released_by_hand(m, x):
    "The authors' FN block in their own order, from the weights of ours"
    f1 = F.conv2d(x, m.w1.weight, stride=2)
    for c,n in zip(m.w23, m.norm): f1 = F.relu(F.instance_norm(F.conv2d(f1, c.weight, padding=1, groups=len(c.weight)), weight=n.weight, bias=n.bias))+f1
    a = torch.sigmoid(F.conv2d(f1, m.w4.weight)+F.conv2d(x, m.shortcut.weight, stride=2))
    f = m.main(x)
    return a*f+f

def test_released_rfna_is_the_authors():
    m,x = random(RFNA(5, 8, 2, reading='released')),noise(2, 5, 21, 30)
    with torch.no_grad(): torch.testing.assert_close(m(x), released_by_hand(m, x), rtol=1e-4, atol=1e-4)

def test_released_fpa_is_the_authors():
    m,x = random(FPA(5, 8, 2, dilation=9, share='none')),noise(2, 5, 40, 30)
    z = F.conv2d(x, m.w1.weight, stride=2)
    for c,n in zip(m.w2, m.norm): z = F.relu(F.instance_norm(F.conv2d(z, c.weight, padding=9, dilation=9, groups=32), weight=n.weight, bias=n.bias))
    with torch.no_grad(): torch.testing.assert_close(m(x), m.main(x)*(1+torch.sigmoid(F.conv2d(z, m.w3.weight))), rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('ratio,sides', [(8,(11,6,3)), (4,(11,6)), (2,(11,))])
def test_sides_of_the_coarse_map(ratio, sides):
    m,seen = RFNA(4, 4, ratio=ratio),[]
    for o in (m.w1,*m.w23): o.register_forward_hook(lambda _m,_i,y: seen.append(y.shape[2]))
    y = m(noise(1, 4, 22, 17))
    assert tuple(seen)==sides and y.shape==(1,4,22,17)

@pytest.mark.parametrize('block', [FPA, RFNA])
@pytest.mark.parametrize('stride', [1,2])
def test_maps_of_a_block(block, stride):
    m,x = random(block(6, 8, stride)),noise(2, 6, 31, 18)
    y,maps = m(x, return_map=True)
    h,w = -(-31//stride),-(-18//stride)
    assert {k:tuple(v.shape) for k,v in maps.items()}=={'full':(2,8,h,w), 'spatial':(2,1,h,w), 'channel':(2,8,1,1)}
    assert all(((v>0)&(v<1)).all() for v in maps.values()) and torch.equal(m(x), y)
    torch.testing.assert_close(y, m.main(x)*(1+maps['full']))
    with open_gates(m): assert torch.equal(m(x), m.main(x))

@networks
def test_maps_of_a_network(name, kw):
    m = make(name, width=16, **kw).eval()
    with torch.no_grad(), collect_maps(m) as maps: m(noise(2, 4, 40, 24))
    assert set(maps)==set(attention_modules(m))
    for k,v in maps.items():
        if 'spatial' in v:
            s = {'e1':1, 'e2':2, 'e3':4, 'e4':8, 'bridge':8, 'd3':4, 'd2':2, 'd1':1}[k.split('.')[-1]]
            assert v['spatial'].shape==(2,1,40//s,24//s) and ((v['spatial']>=0)&(v['spatial']<=1)).all()

@networks
def test_open_gates_leave_the_plain_network(name, kw):
    if name in ('unet-wide','unet-d6','unet-d9'): pytest.skip('no gates')
    m,plain,x = make(name, width=16, **kw).eval(),make('unet', width=16).eval(),noise(1, 4, 24, 24)
    with torch.no_grad(), open_gates(m): torch.testing.assert_close(m(x), plain(x))

def test_dilation_spreads_the_plain_taps():
    m = create_backbone('unet-d6', width=8)
    d = {k:getattr(m, k).main[0].dilation[0] for k in m.after}
    assert d==dict(e1=1, e2=6, e3=6, e4=6, bridge=1, d3=1, d2=1, d1=1) and create_backbone('unet-d6', dilation=3, width=8).e2.main[0].dilation==(3,3)

# --- the rivals ----------------------------------------------------------------------------------------
def test_ours_differ_from_released():
    x = noise(2, 4, 24, 24)
    for name in (k for k,v in MODELS.items() if 'kind' in v):
        ours,released = (make(name, width=16, blocks=b).eval() for b in ('ours','released'))
        assert params(ours)!=params(released)
        assert {type(o) for o in attention_modules(ours).values()}=={KINDS[MODELS[name]['kind']]['ours']}
        assert {type(o) for o in attention_modules(released).values()}=={KINDS[MODELS[name]['kind']]['released']}
        with torch.no_grad(): assert not torch.allclose(make(name, width=16, blocks='released', seed=3).eval()(x), ours(x))

def test_options_reach_our_modules():
    assert n_weights('unet-cbam', reduction=4)>n_weights('unet-cbam')
    assert create_backbone('unet-csc', combine='max').after['d1'].combine=='max' and create_backbone('unet-attention', norm='instance').skips['e2'].norm=='instance'

def test_released_gc_does_not_see_its_input():
    m = random(ReleasedGC(16))
    with torch.no_grad(): a,b = (m(x, return_map=True) for x in (noise(2, 16, 9, 8), 5-noise(2, 16, 9, 8)))
    assert torch.equal(a[1]['context'], b[1]['context']) and torch.equal(a[1]['context'][0], a[1]['context'][1]) and not torch.allclose(a[1]['spatial'], b[1]['spatial'])
    torch.testing.assert_close(a[1]['context'][0,:,0,0], F.linear(F.relu(m.norm.bias), m.expand.weight[...,0,0]))

def test_released_modules_by_hand():
    x = noise(2, 16, 9, 8)
    with torch.no_grad():
        m = random(ReleasedSCSE(16))
        c = torch.sigmoid(F.linear(F.relu(F.linear(x.mean((2,3)), m.channel[0].weight[...,0,0])), m.channel[2].weight[...,0,0]))[...,None,None]
        torch.testing.assert_close(m(x), c*x+torch.sigmoid((x*m.spatial.weight).sum(1, keepdim=True))*x)
        m = random(ReleasedCBAM(16))
        mlp = lambda v: F.linear(F.relu(F.linear(v, m.mlp[0].weight[...,0,0])), m.mlp[2].weight[...,0,0])
        z = x*torch.sigmoid(mlp(x.mean((2,3)))+mlp(x.amax((2,3))))[...,None,None]
        s = torch.sigmoid(F.conv2d(torch.stack([z.mean(1), z.amax(1)], 1), m.conv.weight, padding=1))
        torch.testing.assert_close(m(x), z*s+x)
        m,g = random(ReleasedGate(16, 8)),noise(2, 8, 9, 8)
        n = lambda o,v: F.instance_norm(F.conv2d(v, o[0].weight, o[0].bias))
        torch.testing.assert_close(m(x, g), x+x*torch.sigmoid(n(m.psi, F.relu(n(m.g, g)+n(m.x, x)))))

@pytest.mark.parametrize('where', ['encoder','decoder','both','e4','bridge','d2'])
def test_the_zoo_goes_into_the_plain_network(where):
    m = create_backbone('unet', attention='se', where=where, reduction=8, width=8)
    want = SITES.get(where, (where,))
    assert set(attention_modules(m))=={f'after.{k}' for k in want} and m(noise(1, 4, 16, 16)).shape==(1,1,16,16)

def test_instance_norm():
    x = noise(3, 6, 7, 5)
    for affine in (True,False):
        a,b = random(InstanceNorm(6, affine)),nn.InstanceNorm2d(6, affine=affine)
        b.load_state_dict(a.state_dict())
        torch.testing.assert_close(a(x), b(x), rtol=1e-4, atol=1e-5)
        one = a(1e4*x[...,:1,:1])
        assert torch.equal(one, (a.bias[None,:,None,None] if affine else torch.zeros(1)).expand(3, 6, 1, 1))

# --- bad options ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('name,kw,says', [
    ('unet',dict(reduction=4),'width and dilation'), ('unet',dict(attention='nma'),'choose one of'), ('unet',dict(attention='se', where='e5'),'choose one of encoder'), ('unet',dict(attention='se', dilatoin=2),"accepts"),
    ('unet',dict(width=0),'whole number'), ('unet',dict(dilation=2.),'whole number'), ('unet',dict(num_classes=0),'whole number'), ('unet',dict(in_channels=True),'whole number'), ('unet',dict(init='xavier'),"'he'"),
    ('unet-fpa',dict(attention='se'),'has its own'), ('unet-cbam',dict(attention='se'),'has its own'), ('unet-cbam',dict(blocks='theirs'),'ours, released'), ('unet-cbam',dict(blocks='released', reduction=4),'choose from width, dilation, blocks'),
    ('unet-csc',dict(ratio=2),'reduction, combine'), ('unet-fpa',dict(dilation=0),'whole number'), ('unet-fpa',dict(times=3),'1, 2'), ('unet-fpa',dict(share=True),'all, kernel, none'), ('unet-fpa',dict(depthwise=1),'True, False'),
    ('unet-fpa',dict(expansion=-1),'whole number'), ('unet-fpa',dict(ratio=8),'dilation, times, share'), ('unet-fpa',dict(bridge='no'),'True, False'), ('unet-rfna',dict(ratio=16),'8, 4, 2'), ('unet-rfna',dict(reading='code'),'paper, released'),
    ('unet-rfna',dict(reading='released', ratio=8),'None'), ('unet-rfna',dict(ratio=4, share=True),'no W3'), ('unet-rfna',dict(first=5),'1, 3'), ('unet-rfna',dict(dilation=6),'reading, ratio')])
def test_bad_options(name, kw, says):
    with pytest.raises(ArgumentError, match=says): create_backbone(name, **kw)

def test_bad_names():
    for f in (unet, create_backbone):
        with pytest.raises(ArgumentError, match='unet-fpa'): f('unet-fap')

# --- the tables ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('table,rows,best,iou', [(3,4,'FPA',59.39), (4,5,'FPA',54.61), (5,6,'RFNA',71.15), (6,4,'WUnet',66.89)])
def test_printed_tables(table, rows, best, iou):
    df = printed(table)
    top = df.loc[df['IoU mean'].idxmax()]
    assert len(df)==rows and (top.network,top['IoU mean'])==(best,iou) and df.model.isin(list(MODELS)).all() and df.network.map(NAMES).equals(df.model)
    assert df['HD SD'].notna().all() and df['FN mean'].notna().all()==(table>=5) and df.Param.notna().all()==(table>=5)

def test_settings_and_bad_tables():
    assert printed(2).to_dict('list')==dict(data=['CityScapes','BRATS','ISLES'], epochs=[100,80,60], batch=[8,50,80], lr=[2e-4,1e-4,1e-3])
    assert len(printed())==sum(len(printed(k)) for k in (3,4,5,6))==19
    for t in (1,7,'5'):
        with pytest.raises(ArgumentError, match='Figure 7 has no numbers'): printed(t)

def test_parameters_table():
    for n in (3,4):
        df = parameters(n).set_index('network')
        assert df.parameters.to_dict()=={k:COUNTS[m]-(4-n)*9*MODELS[m].get('width', 32) for k,m in NAMES.items()} and list(df.index[~df.equal])==['RFNA']
    assert dict(printed(5).set_index('network').Param)|dict(printed(6).set_index('network').Param)==parameters().set_index('network').printed.to_dict()

# --- experiments ---------------------------------------------------------------------------------------
def test_experiments_have_their_names_and_rows():
    assert {k:(o.name, len(o.rows)) for k,o in EXPERIMENTS.items() if not k.startswith('rim-')}=={'lgg':('mistakes/lgg',16), 'brats':('mistakes/brats',16),
        'isles':('mistakes/isles',5), 'cityscapes':('mistakes/cityscapes',5), 'figure-7':('mistakes/figure-7',30)}
    assert len(DIALS)==5 and all(EXPERIMENTS[o.table] is o and o.baseline=='Unet' for o in DIALS.values())

@pytest.mark.parametrize('table', EXPERIMENTS)
def test_every_recipe_makes_its_network(table):
    "No two rows of a preset are one recipe, and each network takes the images of its preset"
    exp = EXPERIMENTS[table]
    for preset in exp.presets:
        rs = dict(exp.recipes(preset, (0,)))
        assert len({r.hash for r in rs.values()})==len(rs) and all(r.task=='segment' and r.loss=='fpa_dice' for r in rs.values())
        for r in rs.values():
            with torch.device('meta'): create_backbone(r.model, num_classes=1, in_channels=r.channels, init='default', **dict(r.attention_options))

@pytest.mark.parametrize('row,control,differs', [('FPA','FPA without gaps',{'attention_options'}), ('RFNA','RFNA, labels as they are',{'reverse'}), ('Unet','Unet, labels reversed',{'reverse'}), ('Unet','Unet as large as FPA',{'attention_options'})])
def test_controls_change_one_thing(row, control, differs):
    a,b = (dict(LGG.recipes('laptop', (0,)))[k].to_dict() for k in (row,control))
    assert {k for k in a if a[k]!=b[k]}==differs
    if row=='FPA': assert n_weights('unet-fpa', **dict(a['attention_options']))==n_weights('unet-fpa', **dict(b['attention_options']))

def test_settings_are_those_of_table_2():
    for exp,data in ((BRATS,'BRATS'),(ISLES,'ISLES'),(CITY,'CityScapes')):
        r,t = exp.presets['paper'],printed(2).set_index('data').loc[data]
        assert (r.epochs,r.batch_size,r.lr)==(t.epochs,t.batch,t.lr) and r.optimiser=='adamw' and r.augment==('hflip',)
    assert BRATS.folds==dict(paper=5) and BRATS.presets['paper'].split=='folds'

def test_claims_have_the_direction_of_the_tables():
    c = LGG.published
    assert c['FPA']['iou'].direction==1 and c['FPA']['hd95'].direction==1 and c['RFNA']['hd95'].direction==-1 and c['D6Unet']['iou'].direction==-1
    assert c['FPA']['iou'].value==pytest.approx(.701) and not set(c)&{'FPA without gaps','Unet, labels reversed'}
    assert CITY.published['FPA']['iou'].direction is None # Table 3 has no plain U-Net

def test_scoreboard_and_fields_of_a_run(tmp_path):
    exp = DIALS[.05,.5].only(('Unet','RFNA'))
    recs = run_experiment(exp, 'smoke', results=tmp_path, checkpoints=tmp_path/'ck', device='cpu')
    df = scoreboard(exp, recs, 'smoke')
    assert list(df.index)==['Unet','RFNA'] and (df.runs==1).all() and not (df=='not run').any(axis=None)
    assert (scoreboard(exp, [], 'smoke').drop(columns='runs').filter(like='here')=='not run').all(axis=None)
    m = [released_measures(r) for r in recs]
    assert all(set(o)=={'IoU','FN','FP'} and all(0<=v<=1 for v in o.values()) for o in m)
    empty = np.array(recs[0]['scores']['test']['masks']['enhancing_core']['tp'])+np.array(recs[0]['scores']['test']['masks']['enhancing_core']['fn'])==0
    assert m[0]['FN']>=empty.mean()-1e-9
    f = measure_fields(recs[0], tmp_path/'ck', size=96, n=2)
    assert f['table']==f"{exp.table}-fields" and set(f['metrics'])=={'before','after'} and 0<f['metrics']['before']['radius']<96
    Ledger(tmp_path).write(f); assert Ledger(tmp_path).records('mistakes', f['table'])[0]['metrics']==f['metrics']

# --- the committed runs --------------------------------------------------------------------------------
HERE = Ledger(Path(__file__).parent.parent/'results')


@pytest.mark.parametrize('table,rows', [('lgg-fields',FIELD_ROWS), *((f'lgg-attacked{o}',('Unet','FPA','RFNA')) for o in ('','-clamped'))])
def test_what_was_measured_afterwards_is_complete(table, rows):
    "Made from the checkpoints of the runs: same rows, seeds and recipes"
    runs = {(r['row'],r['seed']):r for r in HERE.records('mistakes', 'lgg')}
    found = HERE.records('mistakes', table)
    assert sorted((r['row'],r['seed']) for r in found)==sorted((k,s) for k in rows for s in range(3))
    assert all(r['recipe_hash']==runs[r['row'],r['seed']]['recipe_hash'] and r['environment']['git']['dirty'] is False for r in found)
