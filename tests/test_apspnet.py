"A-PSPNet: sizes, shapes, gaps, weights and rivals of its networks, its measures against loops, its tables as data"
import copy, csv, pickle, subprocess, sys
import numpy as np
import pytest, torch, torchvision
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from medattn_nb.attention import attention_modules, collect_maps, open_gates
from medattn_nb.backbones import create_backbone, load_weights
from medattn_nb.core import ArgumentError, ShapeError, local_seed
from medattn_nb.data import datasets
from medattn_nb.lab.experiments import run_experiment
from medattn_nb.lab.predict import Predictor
from medattn_nb.lab.segmentation import segment_values
from medattn_nb.lab.training import MaskLoss, Recipe, fit, predict
from medattn_nb.losses import create as create_loss
from medattn_nb.papers.apspnet import *
from medattn_nb.papers.apspnet import (ARRANGEMENTS, ENCODERS, EXPERIMENTS, HEADS, LAPTOP, LEAK, NAMES, ORDERS, PAPER, PAPER_CBAM, PHANTOM, TABLE1, TABLE3, TABLE3_PATIENTS, UNITS, US, US_473)

networks = pytest.mark.parametrize('name', HEADS)
def params(m): return sum(p.numel() for p in m.parameters())
def make(name, seed=0, **kw):
    with local_seed('apspnet', seed): return create_backbone(name, **{**dict(encoder='resnet10', init='default'), **kw})
def noise(*size): return torch.randn(*size, generator=torch.Generator().manual_seed(1))

# --- sizes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name,kw,n', [('pspnet',dict(stem='deep'),46_707_139), ('pspnet',dict(stem='deep', aux=.4),49_067_718), ('pspnet',{},46_583_363), ('apspnet',{},46_583_363+524_996), ('deeplabv3',{},39_634_243),
    ('apspnet',dict(order='channel'),46_583_363+524_800), ('apspnet',dict(order='spatial'),46_583_363+196), ('apspnet',dict(order='spatial-channel'),46_583_363+524_996), ('apspnet',dict(bn=True, mlp_bias=True),46_583_363+526_564+680)])
def test_counts(name, kw, n): assert n_weights(name, num_classes=3, **kw)==n

def test_count_of_danet_by_hand():
    c = 512
    head = 2*(2048*c*9+2*c)+2*(c*c*9+2*c)+(2*(c*64+64)+c*c+c+1)+1+c*3+3
    assert n_weights('danet', num_classes=3)==23_508_032+head and n_weights('danet', num_classes=3, aux=1)==23_508_032+head+2*(c*3+3)

@pytest.mark.parametrize('encoder', ENCODERS)
def test_every_encoder(encoder):
    with torch.device('meta'): net = segmenter('apspnet', 3, encoder=encoder, init='default')
    t = stage_table(net, 97)
    assert t.total.iloc[-1]==params(net) and tuple(t.loc['layer4',['height','width']])==(13,13) and t.channels['layer4'] in (512,2048)

def test_weights_of_the_control():
    kw = dict(encoder='resnet18', num_classes=2)
    assert n_weights('pspnet', attention='control', where='ends', reduction=16, **kw)==n_weights('apspnet', **kw)-196

# --- pictures of any size ------------------------------------------------------------------------------
@networks
@pytest.mark.parametrize('size,stride', [((61,45),8), ((33,64),16), ((8,15),32)])
def test_any_size(name, size, stride):
    m = make(name, num_classes=3, in_channels=1, output_stride=stride).eval()
    with torch.no_grad(): y = m(noise(2, 1, *size))
    assert y.shape==(2,3,*size) and y.isfinite().all()

@networks
def test_one_picture_can_be_trained_on(name):
    "The last batch of an epoch may be one picture, and a bin of the pyramid one position"
    m = make(name, in_channels=1)
    m(noise(1, 1, 24, 24)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

@networks
def test_gradients_reach_every_parameter(name):
    m = make(name, in_channels=3, aux=.4)
    for k,p in m.named_parameters():
        if k.endswith('gamma'): nn.init.ones_(p)
    z = m(noise(2, 3, 41, 41))
    MaskLoss(create_loss('ce', mode='multiclass'), 'multiclass')(z[0], torch.zeros(2, 1, 41, 41, dtype=torch.bool))
    (z[0].square().mean()+sum(w*o.square().mean() for w,o in z[1:])).backward()
    assert {k for k,p in m.named_parameters() if p.grad is None or not p.grad.isfinite().all() or (p.grad==0).all()}-{'head.pam.attention.key.bias'}==set()

@networks
def test_images_do_not_mix_and_networks_can_be_copied(name):
    m,x = make(name).eval(),noise(2, 3, 33, 40)
    with torch.no_grad():
        y = m(x)
        torch.testing.assert_close(y[:1], m(x[:1]), rtol=1e-3, atol=1e-4)
        for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))): assert torch.equal(o(x), y)

def test_wrong_images():
    m = make('apspnet')
    for x in (noise(1, 1, 16, 16), noise(3, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)):
        with pytest.raises(ShapeError): m(x)

# --- gaps ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('arch', ['resnet18','resnet50'])
@pytest.mark.parametrize('stride', [8,16])
@pytest.mark.parametrize('size', [(97,75),(64,64)])
def test_dense_maps_hold_the_coarse_ones(arch, stride, size):
    def last(s):
        with local_seed('gaps'): m = torchvision.models.get_model(arch, weights=None).eval()
        with torch.no_grad(): return resnet_maps(dilate(m, s), noise(1, 3, *size))['layer4']
    k = 32//stride
    torch.testing.assert_close(last(stride)[...,::k,::k], last(32), rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('kept', [(False,False,True),(False,True,True)])
def test_gaps_are_those_of_torchvision(kept):
    a = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=kept)
    b = dilate(torchvision.models.resnet50(weights=None), 16 if kept==(False,False,True) else 8)
    def taps(m): return [(n,o.stride,o.dilation,o.padding) for n,o in m.named_modules() if isinstance(o, nn.Conv2d)]
    assert taps(a)==taps(b)

def test_gaps_of_semseg():
    "conv2 of layer3 has gaps of 2 and of layer4 of 4, in every block"
    m = dilate(torchvision.models.resnet50(weights=None), 8, 'semseg')
    assert {o.conv2.dilation for o in m.layer3}=={(2,2)} and {o.conv2.dilation for o in m.layer4}=={(4,4)} and m.layer3[0].downsample[0].stride==(1,1)

class Timm(nn.Module):
    "The names of a ResNet of timm"
    def __init__(self):
        super().__init__()
        m = ResNet(BasicBlock, [1]*4)
        for k in ('conv1','bn1','maxpool','layer1','layer2','layer3','layer4'): setattr(self, k, getattr(m, k))
        self.act1,self.global_pool,self.fc = m.relu,m.avgpool,m.fc

def test_a_network_that_is_handed_in():
    enc = Timm()
    w = enc.layer2[0].conv1.weight.detach().clone()
    m = segmenter('apspnet', 2, encoder=enc)
    assert m(noise(2, 3, 33, 33)).shape==(2,2,33,33) and torch.equal(m.encoder.layer2[0].conv1.weight, w) and set(attention_modules(m))=={'encoder.maxpool.attention','encoder.layer4.attention'}
    with pytest.raises(ArgumentError, match='conv1'): segmenter('pspnet', encoder=nn.Linear(2, 2))
    pooled = ResNet(BasicBlock, [1]*4); pooled.layer4[0].downsample = nn.Sequential(nn.MaxPool2d(2, 2), nn.Conv2d(256, 512, 1))
    with pytest.raises(ArgumentError, match='MaxPool2d'): dilate(pooled, 8)

def of_timm(name):
    "A ResNet of timm whose residual branches are open; theirs start shut"
    timm = pytest.importorskip('timm')
    with local_seed(name): m = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    with local_seed('norms'):
        for o in m.modules():
            if isinstance(o, nn.BatchNorm2d): nn.init.uniform_(o.weight, .5, 1.5); nn.init.uniform_(o.bias, -.3, .3)
    return m

@pytest.mark.parametrize('size', [(97,75),(64,64),(65,50)])
@pytest.mark.parametrize('name', ['resnet18','resnet10t','resnet26d','res2net50_26w_4s'])
def test_dense_maps_of_timm_hold_the_coarse_ones(name, size):
    "Deep stems, and average pools with strides in the shortcuts (even and odd sizes) or in the branches (with padding)"
    m,x = of_timm(name),noise(1, 3, *size)
    coarse = resnet_maps(m, x)['layer4']
    for s in (16,8): assert (resnet_maps(dilate(copy.deepcopy(m), s), x)['layer4'][...,::32//s,::32//s]-coarse).abs().max()<1e-5*coarse.abs().max()

@pytest.mark.parametrize('name', ['resnet18','resnet10t'])
def test_weights_of_a_network_that_is_handed_in_stay(name):
    enc = of_timm(name); sd = copy.deepcopy(enc.state_dict())
    m = segmenter('apspnet', 2, in_channels=1, encoder=enc).eval()
    first = next(k for k,v in sd.items() if k.startswith('conv1') and v.ndim==4)
    own = m.encoder.state_dict()
    assert own[first].shape[1]==1 and all(torch.equal(v, sd[k]) for k,v in own.items() if k in sd and k!=first)
    torch.testing.assert_close(own[first], sd[first].sum(1, keepdim=True))
    assert m(noise(1, 1, 65, 65)).shape==(1,2,65,65)

def test_a_stride_that_cannot_be_taken_out():
    with pytest.raises(ArgumentError, match='BlurPool2d with a stride'): dilate(of_timm('resnetblur18'), 8)
    assert segmenter('pspnet', 2, encoder=of_timm('resnetblur18'), output_stride=32).eval()(noise(1, 3, 65, 65)).shape==(1,2,65,65)
    assert dilate(of_timm('ecaresnet26t'), 8) # a kernel of one dimension without stride

# --- pretrained weights --------------------------------------------------------------------------------
@pytest.mark.parametrize('name,ni', [('apspnet',3),('apspnet',1),('pspnet',3),('danet',3)])
def test_weights_of_torchvision_fit(name, ni):
    sd = torchvision.models.resnet18(weights=None).state_dict()
    m = make(name, encoder='resnet18', in_channels=ni, weights=sd)
    own = m.encoder.state_dict()
    assert {k for k in own if k not in sd}=={k for k in own if '.attention.' in k} and set(sd)-set(own)=={'fc.weight','fc.bias'}
    assert all(torch.equal(v, sd[k]) for k,v in own.items() if k in sd and k!='conv1.weight')
    torch.testing.assert_close(own['conv1.weight'].sum(1), sd['conv1.weight'].sum(1))
    assert load_weights(m.encoder, sd)==[k for k in own if '.attention.' in k]

def test_weights_that_do_not_fit():
    with pytest.raises(ArgumentError, match='do not fit'): make('pspnet', encoder='resnet18', weights=torchvision.models.resnet34(weights=None).state_dict())
    with pytest.raises(ArgumentError, match='do not fit'): make('pspnet', encoder='resnet50', stem='deep', weights=torchvision.models.resnet50(weights=None).state_dict())
    with pytest.raises(ArgumentError, match='there are none|has none'): make('pspnet', weights='imagenet')

def test_imagenet_needs_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(ArgumentError, match='resnet18.*is not on this machine'): make('apspnet', encoder='resnet18', weights='imagenet')
    p = tmp_path/'checkpoints'; p.mkdir()
    (p/torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit('/', 1)[-1]).write_bytes(b'no')
    with pytest.raises(ArgumentError, match='is damaged'): make('apspnet', encoder='resnet18', weights='imagenet')

def test_plain_weights_do_not_depend_on_attention():
    sd = make('pspnet', init='he').state_dict()
    for o in ARRANGEMENTS:
        own = make('apspnet', init='he', order=o).state_dict()
        assert all(torch.equal(v, own[k]) for k,v in sd.items())
    with torch.no_grad(), open_gates(m:=make('apspnet', init='he').eval()): assert torch.equal(m(x:=noise(1, 3, 40, 33)), make('pspnet', init='he').eval()(x))

# --- the four arrangements -----------------------------------------------------------------------------
@pytest.mark.parametrize('order', ARRANGEMENTS)
def test_arrangements_by_hand(order):
    m,x = make('apspnet', order=order).eval(),noise(2, 3, 49, 33)
    for o in attention_modules(m).values():
        for p in o.parameters(): nn.init.normal_(p, std=.5, generator=torch.Generator().manual_seed(3))
    def channel(o, f):
        mlp = lambda v: F.linear(F.relu(F.linear(v, o.fc1.weight)), o.fc2.weight)
        return f*torch.sigmoid(mlp(f.mean((2,3)))+mlp(f.amax((2,3))))[...,None,None]
    def spatial(o, f): return f*torch.sigmoid(F.conv2d(torch.stack([f.amax(1),f.mean(1)], 1), o.conv.weight, padding=3))
    def gated(cbam, f):
        for k in order.split('-'): f = (channel if k=='channel' else spatial)(getattr(cbam, k), f)
        return f
    e = m.encoder
    with torch.no_grad():
        f = gated(e.maxpool.attention, e.maxpool.pool(F.relu(e.bn1(e.conv1(x)))))
        for k in range(1, 5): f = nn.Sequential(*[o for n,o in getattr(e, f'layer{k}').named_children() if n!='attention'])(f)
        torch.testing.assert_close(m.stages(x)['layer4'], gated(e.layer4.attention, f), rtol=1e-4, atol=1e-4)
        with collect_maps(m) as maps: m(x)
    assert {frozenset(v) for v in maps.values()}=={frozenset(order.split('-'))}

# --- heads against oracles -----------------------------------------------------------------------------
def test_pyramid_against_loops():
    with local_seed('ppm'): m,x = PyramidPooling(8, (1,2,3)).eval(),noise(2, 8, 7, 5)
    want = [x]
    for b,f in zip(m.bins, m.branches):
        p = torch.stack([torch.stack([x[...,i*7//b:-(-(i+1)*7//b),j*5//b:-(-(j+1)*5//b)].mean((2,3)) for j in range(b)], -1) for i in range(b)], 2)
        want.append(F.interpolate(f(p), size=(7,5), mode='bilinear', align_corners=True))
    with torch.no_grad(): torch.testing.assert_close(m(x), torch.cat(want, 1))
    bare = PyramidPooling(8, norm=False)
    assert all(type(o) is nn.Conv2d and o.bias is not None for o in bare.branches)

def test_deeplab_is_torchvisions():
    with local_seed('deeplab'): theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=False).eval()
    m = segmenter('deeplabv3', 3, init='default').eval()
    m.load_state_dict({k.replace('backbone.', 'encoder.').replace('classifier.', 'head.'):v for k,v in theirs.state_dict().items()})
    x = noise(1, 3, 65, 49)
    with torch.no_grad(): torch.testing.assert_close(m(x), theirs(x)['out'], rtol=1e-3, atol=1e-4)

class TheirDANet(nn.Module):
    "The head of DANet from the description of the authors' code, with its own attention"
    def __init__(self, ni, nc):
        super().__init__()
        c = ni//4
        block = lambda a: nn.Sequential(nn.Conv2d(a, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        self.a,self.b,self.a2,self.b2 = block(ni),block(ni),block(c),block(c)
        self.q,self.k,self.v = nn.Conv2d(c, c//8, 1),nn.Conv2d(c, c//8, 1),nn.Conv2d(c, c, 1)
        self.g1,self.g2,self.out = nn.Parameter(torch.zeros(1)),nn.Parameter(torch.zeros(1)),nn.Conv2d(c, nc, 1)
    def forward(self, x):
        p,c = self.a(x),self.b(x)
        B,C,h,w = p.shape
        energy = torch.bmm(self.q(p).view(B, -1, h*w).permute(0,2,1), self.k(p).view(B, -1, h*w))
        p = self.g1*torch.bmm(self.v(p).view(B, -1, h*w), energy.softmax(-1).permute(0,2,1)).view(B, C, h, w)+p
        f = c.view(B, C, -1)
        e = torch.bmm(f, f.permute(0,2,1))
        c = self.g2*torch.bmm((e.max(-1, keepdim=True)[0].expand_as(e)-e).softmax(-1), f).view(B, C, h, w)+c
        return self.out(self.a2(p)+self.b2(c))

def test_danet_against_an_oracle():
    with local_seed('danet'): a,b = DANetHead(64, 3).eval(),TheirDANet(64, 3).eval()
    with torch.no_grad():
        a.pam.attention.gamma.fill_(.7); a.cam.attention.gamma.fill_(.4)
        names = {'a':'pam.before','a2':'pam.after','b':'cam.before','b2':'cam.after','q':'pam.attention.query','k':'pam.attention.key','v':'pam.attention.value','out':'classify.0.1','g1':'pam.attention.gamma','g2':'cam.attention.gamma'}
        sd = a.state_dict()
        b.load_state_dict({k:sd[names[k.split('.')[0]]+k[len(k.split('.')[0]):]] for k in b.state_dict()})
        torch.testing.assert_close(a(x:=noise(2, 64, 9, 7)), b(x), rtol=1e-4, atol=1e-4)

def test_auxiliary_heads_only_while_training():
    for name,n in (('pspnet',1),('danet',2),('deeplabv3',1)):
        m,x = make(name, aux=.4),noise(2, 3, 33, 33)
        z = m(x)
        assert len(z)==1+n and all(float(w)==pytest.approx(.4) and o.shape==z[0].shape for w,o in z[1:]) and isinstance(m.eval()(x), torch.Tensor)
    plain,aux = make('pspnet').state_dict(),make('pspnet', aux=.4).state_dict()
    assert set(aux)-set(plain)=={k for k in aux if k.startswith('aux.')} and all(torch.equal(v, aux[k]) for k,v in plain.items() if k.startswith('encoder'))

@pytest.mark.parametrize('amp', [None,'bf16'])
def test_a_recipe_trains_with_auxiliary_heads(amp):
    r = Recipe(data='phantom-renal', data_options=dict(n=12, size=48, frames=3), size=32, channels=1, task='segment', mode='multiclass', masks=('kidney','hydronephrosis'), split='grouped', loss='combo',
               optimiser='adam', lr=1e-3, epochs=1, batch_size=4, amp=amp, model='danet', attention_options=dict(encoder='resnet10', aux=.4))
    f = fit(r, device='cpu')
    z,y = f.learn.model.train()(noise(2, 1, 32, 32)),torch.zeros(2, 2, 32, 32, dtype=torch.bool)
    assert len(z)==3 and np.isfinite(f.history[0]['train_loss']) and predict(f.learn, 'valid').shape[1:]==(3,32,32)
    torch.testing.assert_close(f.learn.loss_func(z, y), f.learn.loss_func(z[0], y)+.4*f.learn.loss_func(z[1][1], y)+.4*f.learn.loss_func(z[2][1], y))

@pytest.mark.parametrize('name,kw,says', [('pspnet',dict(encoder='resnet17'),'resnet18'), ('pspnet',dict(output_stride=4),'8, 16, 32'), ('pspnet',dict(atrous='yes'),"'exact', 'semseg'"), ('pspnet',dict(stem='shallow'),'deep'), ('pspnet',dict(stem='deep'),'bottlenecks'),
    ('pspnet',dict(aux=True),'weight'), ('pspnet',dict(aux=-1),'weight'), ('pspnet',dict(rates=(1,2,3)),'bins, norm'), ('deeplabv3',dict(bins=(1,2)),'rates'), ('danet',dict(order='channel'),'dropout, form'), ('apspnet',dict(attention='se'),'has its own'),
    ('apspnet',dict(order='both'),'channel-spatial'), ('apspnet',dict(ordre='channel'),'accepts'), ('pspnet',dict(attention='se', where='front'),'ends'), ('pspnet',dict(num_classes=0),'integer'), ('pspnet',dict(in_channels=2.),'integer'), ('pspnet',dict(bins=(0,1)),'integer')])
def test_bad_options(name, kw, says):
    with pytest.raises(ArgumentError, match=says): make(name, **kw)

def test_bad_names():
    with pytest.raises(ArgumentError, match='apspnet'): segmenter('a-pspnet')
    for t in (0,4,'1'):
        with pytest.raises(ArgumentError, match='1, 2, 3'): printed(t)

# --- measures ------------------------------------------------------------------------------------------
def test_printed_mpa():
    rng = np.random.default_rng(0)
    p,y = rng.dirichlet([1,1,1], (2,6,5)).transpose(0,3,1,2),rng.integers(0, 3, (2,6,5))
    ap = [average_precision_score((y==i).ravel(), p[:,i].ravel()) for i in range(3)]
    assert mpa_printed(p, y)==pytest.approx(sum(ap[1:])/3) and mpa_printed(p, y, 'all')==pytest.approx(np.mean(ap))
    perfect = np.eye(3)[y].transpose(0,3,1,2)
    assert mpa_printed(perfect, y)==pytest.approx(2/3) and mpa_printed(perfect, y, 'all')==pytest.approx(1)
    with pytest.raises(ArgumentError, match="'letter', 'all'"): mpa_printed(p, y, 'sound')

def scores(truth, pred, groups, files=None):
    from medattn_nb.lab.segmentation import segment_scores
    import pandas as pd
    items = pd.DataFrame(dict(file=files or [f'{i}' for i in range(len(truth))], label=0, group=groups))
    planes = lambda o: np.stack([o==1,o==2], 1)
    return segment_scores(planes(pred), planes(truth), items, ('kidney','hydronephrosis'), mode='multiclass')

def record(part, s, seed=0, **kw): return dict(paper='apspnet', table='t', preset='laptop', row='r', seed=seed, recipe=dict(split='grouped'), scores={part:s}, seconds=0., **kw)

def loop(truth, pred, recall=False):
    "MIoU or MPA over all pixels"
    v = [((truth==k)&(pred==k)).sum()/((truth==k)|((pred==k)&(not recall))).sum() for k in range(3) if ((truth==k)|(pred==k)).any()]
    return np.mean(v)

@pytest.mark.parametrize('metric', ['miou','mpa'])
def test_pooled_table_against_loops(metric):
    rng = np.random.default_rng(1)
    t,a,b = (rng.integers(0, 3, (8,6,7)) for _ in range(3))
    b = np.where(rng.random(t.shape)<.5, t, b)
    g = [f'p{i//2}' for i in range(8)]
    df = pooled_table(dict(a=[record('test', scores(t, a, g))], b=[record('test', scores(t, b, g)), record('test', scores(t, b, g), 1)], c=[]), metric, boots=300)
    assert list(df.index)==['a','b'] and df.runs.tolist()==[1,2]
    assert df.value.tolist()==pytest.approx([loop(t, a, metric=='mpa'),loop(t, b, metric=='mpa')]) and df['diff']['b']==pytest.approx(df.value['b']-df.value['a'])
    assert (df.low<=df.value).all() and (df.value<=df.high).all() and df.diff_low['b']<df['diff']['b']<df.diff_high['b'] and np.isnan(df['diff']['a'])
    assert show_pooled(df).shape==(2,3) and show_pooled(pooled_table({})).iloc[0,0]=='not run'
    with pytest.raises(ArgumentError, match="'miou', 'mpa'"): pooled_table({}, 'iou')

def test_pooled_table_knows_the_patients_of_other_splits():
    "Frames in another order, under other groups: with the patients given, the same value and no difference"
    rng = np.random.default_rng(2)
    t,a = rng.integers(0, 3, (8,6,7)),rng.integers(0, 3, (8,6,7))
    files,g,k = [f'f{i}' for i in range(8)],[f'p{i//2}' for i in range(8)],rng.permutation(8)
    x,y = record('test', scores(t, a, g, files)),record('test', scores(t[k], a[k], [files[i] for i in k], [files[i] for i in k]))
    df = pooled_table(dict(x=[x], y=[y]), study=dict(zip(files, g)), boots=200)
    assert df.loc['y',['diff','diff_low','diff_high']].abs().max()<1e-12 and df.value['x']==pytest.approx(loop(t, a))

def test_folds_are_joined_for_the_pooled_table():
    rng = np.random.default_rng(3)
    t,a = rng.integers(0, 3, (6,6,7)),rng.integers(0, 3, (6,6,7))
    base = US.presets['laptop'].replace(split='folds', folds=3).to_dict()
    parts = [dict(record('test', scores(t[i::3], a[i::3], [f'p{i}']*2, [f'f{j}' for j in range(i, 6, 3)])), recipe={**base, 'fold':i}) for i in range(3)]
    df = pooled_table(dict(x=parts), boots=50)
    assert df.runs['x']==1 and df.value['x']==pytest.approx(loop(t, a)) and not len(pooled_table(dict(x=parts[:2])))

def test_failures_by_hand():
    t,p = np.zeros((5,6,6), int),np.zeros((5,6,6), int)
    for i,n in enumerate((1,2,4)): t[i,:n,:3] = 1
    p[1,:2,:3],p[2,:2,:3],p[3,0,0] = 1,1,1
    import pandas as pd
    from medattn_nb.lab.segmentation import segment_scores
    s = segment_scores((p==1)[:,None], (t==1)[:,None], pd.DataFrame(dict(file=list('abcde'), label=0, group=list('abcde'))), ('hydronephrosis',), mode='multiclass')
    df = failures([record('test', s)])
    assert df.loc['r'].round(3).to_dict()==dict(missed=33.333, invented=50., small=0., middle=1., large=.5)

# --- tables and experiments ----------------------------------------------------------------------------
def test_printed_tables():
    one,two,three = (printed(k) for k in (1,2,3))
    assert list(one.index)==list(ARRANGEMENTS) and one.Description.tolist()==list(ARRANGEMENTS.values()) and set(three.index)==set(NAMES)
    assert one.MIoU.max()==87.43 and three.MIoU['A-PSPNet']==87.93 and len(two)==7 and round(two['Params(M)']['A-PSPNet']-two['Params(M)']['ResNet50'], 5)==.525
    assert set(PAPER_CBAM)<={'reduction','kernel_size','bn','mlp_bias'} and set(ORDERS.values())==set(ARRANGEMENTS)

def test_experiments_have_their_names_and_rows():
    assert {k:(o.name,len(o.rows)) for k,o in EXPERIMENTS.items()}=={'table-1':('apspnet/table-1',4), 'table-1-patients':('apspnet/table-1-patients',4), 'table-3':('apspnet/table-3',4), 'table-3-patients':('apspnet/table-3-patients',4),
        'us':('apspnet/us',8), 'us-473':('apspnet/us-473',8), **{f'leak-{k}':(f'apspnet/leak-{k}',2) for k in UNITS}, **{f'leak-phantom-{k}':(f'apspnet/leak-phantom-{k}',2) for k in PHANTOM}}

@pytest.mark.parametrize('table', EXPERIMENTS)
def test_every_recipe_makes_its_network(table):
    "No two runs of a preset are one recipe, and each network takes the images of its preset"
    exp = EXPERIMENTS[table]
    for preset in exp.presets:
        rs = exp.recipes(preset)
        assert len({r.hash for _,r in rs})==len(rs) and all(r.task=='segment' and r.loss=='combo' and r.mode=='multiclass' and r.optimiser=='adam' and r.lr==1e-3 and r.batch_size==8 for _,r in rs)
        for r in dict(rs).values():
            assert Recipe.from_dict(r.to_dict()).hash==r.hash
            kw = dict(attention=r.attention, where=r.where) if r.attention else {}
            with torch.device('meta'): create_backbone(r.model, num_classes=3, in_channels=r.channels, init='default', **kw, **dict(r.attention_options))

def test_settings_are_those_of_the_paper():
    for exp,epochs,split in ((TABLE1,50,'paper'),(TABLE3,100,'paper'),(TABLE3_PATIENTS,100,'patients')):
        r = exp.presets['paper']
        assert (r.size,r.preprocess,r.batch_size,r.lr,r.optimiser,r.loss,r.weights,r.epochs,dict(r.data_options)['split'])==(473,('letterbox-grey',),8,1e-3,'adam','combo','imagenet',epochs,split)
    assert US_473.presets['paper'].replace(data='upjo', masks=PAPER.masks)==PAPER and LAPTOP.which_epoch=='last'

def test_two_columns(tmp_path):
    "Frames and patients side by side, each from its own records"
    kw = dict(results=tmp_path, device='cpu')
    pair = [o.only(('PSPNet','A-PSPNet'), {}) for o in (TABLE3,TABLE3_PATIENTS)]
    empty = two_columns(*pair, [])
    assert (empty.drop(columns='paper, single frames', level=1)=='not run').to_numpy().all() and empty.loc['A-PSPNet',('MIoU','paper, single frames')]==87.93
    rs = [r for o in pair for r in run_experiment(o, 'smoke', **kw)]
    t = two_columns(*pair, rs, 'smoke', 'valid')
    for k in t.index:
        for m,what in (('miou','MIoU'),('mpa','MPA')):
            for o,c in zip(pair, ('single frames','by patient')):
                r, = [r for r in rs if (r['row'],r['table'])==(k,o.table)]
                assert t.loc[k,(what,c)]==f"{100*segment_values(r, 'valid', m, 'all').iloc[0]:.2f}"

def test_claims_have_the_direction_of_the_tables():
    c = TABLE3.published
    assert {k:v['miou'].direction for k,v in c.items()}=={'Deeplabv3':-1,'DANet':-1,'A-PSPNet':1} and c['A-PSPNet']['mpa'].value==pytest.approx(.9352)
    assert all(v['miou'].direction==-1 for v in TABLE1.published.values()) and set(US.published)=={'Deeplabv3','DANet','A-PSPNet'}

def test_leaks_differ_in_nothing_but_what_a_fold_keeps():
    rs = {k:o.recipes('laptop') for k,o in LEAK.items()}
    assert all(len(v)==10 for v in rs.values())
    plain = {k:[(n,r.replace(data_options=())) for n,r in v] for k,v in rs.items()}
    assert plain['study']==plain['fold']==plain['frame'] and {dict(r.data_options)['group'] for v in rs.values() for _,r in v}==set(UNITS)

def test_every_frame_is_a_test_frame_once():
    from conftest import real
    root = real('hydronephrosis-us').parent
    for k,exp in LEAK.items():
        data = datasets.load('hydronephrosis-us', root, split='none', group=k)
        parts = [r.deal(data).items for n,r in exp.recipes('laptop') if n=='PSPNet']
        test = [f for it in parts for f in it.file[it.split=='test']]
        assert len(test)==len(set(test))==len(data)==1502
        assert all(not set(it.group[it.split=='test'])&set(it.group[it.split!='test']) for it in parts)

def test_runs_on_the_phantom(tmp_path):
    exp = PHANTOM['patients'].only(('PSPNet','A-PSPNet'))
    small = dict(epochs=1, size=(32,40), data_options=dict(n=24, size=32, frames=4))
    recs = run_experiment(exp, 'smoke', results=tmp_path, checkpoints=tmp_path/'ck', device='cpu', **small)
    m = recs[0]['metrics']['valid']
    assert [r['row'] for r in recs]==['PSPNet','A-PSPNet'] and recs[1]['parameters']-recs[0]['parameters']==2*64*4+2*512*32+196 and 0<=m['miou_pooled']<=1 and 0<=m['mpa_pooled']<=1
    df = pooled_table({r['row']:[r] for r in recs}, boots=50)
    assert df.value.tolist()==pytest.approx([r['metrics']['valid']['miou_pooled'] for r in recs])
    board = scoreboard(exp, recs, 'smoke', 'valid')
    assert (board.runs==1).all() and not (board=='not run').any(axis=None) and (scoreboard(exp, [], 'smoke').filter(like='here')=='not run').all(axis=None)
    from medattn_nb.lab.report import load_trained
    recipe = Recipe.from_dict(recs[1]['recipe'])
    data = recipe.load()
    found = outline(load_trained(recipe, tmp_path/'ck', data, device='cpu'), recipe, data, 0)
    assert found.shape==data.masks(0).shape and found.dtype==bool and not (found[0]&found[1]).any()

def test_the_command_predicts_from_its_file(tmp_path):
    "A file of the network, read by a process that has not seen this module: masks at the size of the picture, and their areas"
    r = PAPER.replace(data='phantom-renal', data_options=dict(n=24, size=32, frames=4), size=64, weights=None, model='apspnet', attention_options=dict(encoder='resnet10'))
    data = r.load(); p = Predictor.of(r.learner(data, device='cpu'), r, data); p.save(tmp_path/'net.pth')
    im = np.random.default_rng(0).integers(0, 256, (50,90), dtype=np.uint8); (tmp_path/'in').mkdir(); Image.fromarray(im).save(tmp_path/'in/a.png')
    done = subprocess.run([sys.executable,'-c','import sys; from medattn_nb.lab.cli import main; sys.exit(main())','predict','net.pth','in','--out','out','--device','cpu'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    with open(tmp_path/'out/predictions.csv', encoding='utf-8-sig', newline='') as f: row, = csv.DictReader(f)
    want = p.predict_image(im).masks
    for k,m in zip(('kidney','hydronephrosis'), want):
        got = np.array(Image.open(tmp_path/'out'/row[f'mask:{k}']))>0
        assert got.shape==im.shape and (got==m).all() and int(row[f'{k}_pixels'])==m.sum()
    assert want.any()
