"What is no lesson: agreement with torch, fvcore and ptflops on public networks, formulas of our attention, nothing left behind, odd models, the command"
import copy,io,shlex
import pandas as pd
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from medattn_nb.attention import ChannelGate,available,create
from medattn_nb.backbones import available_backbones,create_backbone
from medattn_nb.bench import macs,n_params
from medattn_nb.core import ArgumentError
from medattn_nb.lab import cli
from medattn_nb.lab.complexity import *

# MACs and activations (fvcore 0.1.5.post20221221), MACs (ptflops 0.6.7) and parameters of torchvision 0.29 networks without weights, as these tools gave them
# on 2026-11-21 with torch 2.15 in an environment of their own; the networks run on one image of the given side
TOOLS = {('resnet18',224):(1819065856, 2484712, 1822177768, 11689512),
    ('resnet50',473):(18798921536, 50575912, 18846241448, 25557032), ('resnext50_32x4d',224):(4259381248, 14401512, 4273080296, 25028904),
    ('mobilenet_v2',224):(314193216, 6679112, 320237288, 3504872),
    ('mobilenet_v3_small',224):(59649536, 1417680, 60125440, 2542856), ('shufflenet_v2_x1_0',224):(148808392, 1951200, 150598480, 2278604),
    ('squeezenet1_1',224):(349320936, 2589352, 355862008, 1235496), ('densenet121',224):(2865546752, 6900200, 2882620136, 7978856),
    ('efficientnet_b0',224):(401659392, 6748036, 401669732, 5288548),
    ('googlenet',224):(1504878688, 3227160, 1507755400, 13004888),
    ('alexnet',224):(714197696, 494184, 715561896, 61100840), ('vgg11_bn',224):(7623967232, 7435240, 7644958184, 132868840),
    ('convnext_tiny',224):(4470437376, 13435624, 4458312520, 28589128), ('vit_b_32',224):(4367906304, 4185832, 4411935016, 88224232),
    ('swin_t',224):(4509232128, 17055352, 2963520808, 28288354), ('deeplabv3_resnet50',224):(31369957888, 26409296, 31388539728, 39638869),
    ('lraspp_mobilenet_v3_large',224):(395663776, 5337976, 393426072, 3221538)}

@pytest.mark.parametrize('name,size', TOOLS)
def test_agrees_with_public_counters(name, size):
    net = network(name, device='meta').eval()
    c = complexity(net, size)
    assert (c.conventions['fvcore'], c.activations, c.conventions['ptflops'], c.parameters)==TOOLS[name,size]
    if not next(net.parameters()).is_meta: net = copy.deepcopy(net).to('meta')
    with torch.no_grad(): assert c.conventions['torch']==macs(net, torch.zeros(1, 3, size, size, device='meta'))
    assert c.ran=='meta' and c.shapes==((1,3,size,size),)

@pytest.mark.parametrize('name', ['resnet18','shufflenet_v2_x0_5','mobilenet_v3_small','squeezenet1_1'])
def test_agrees_with_torch_on_a_network_that_computes(name):
    net = torchvision.models.get_model(name, weights=None).eval()
    with FlopCounterMode(display=False) as f: net(torch.zeros(1, 3, 64, 64))
    assert complexity(net, 64).macs==f.get_total_flops()//2

def test_published_numbers_of_resnet50_at_473():
    "SPEC_NOTES section 2: fvcore 18.799, torch's counter halved 18.697, ptflops 0.6 18.84624 (Table II)"
    c = complexity(network('resnet50', device='meta'), 473)
    assert {k:round(v/1e9, 3) for k,v in c.conventions.items()}==dict(torch=18.697, fvcore=18.799, ptflops=18.846)
    assert c.conventions['ptflops']==18_846_241_448 and c.parameters==25_557_032

def ends(name): return as_modules(network(name, attention='cbam', where='ends', device='meta', mlp_bias=False, bn=False))

def test_the_two_cbams_to_the_unit():
    a,b = (complexity(o, 473, convention='ptflops') for o in (network('resnet50', device='meta'),ends('resnet50')))
    assert b.parameters-a.parameters==524_996 and b.macs-a.macs==5_193_900 and (b.parameters,b.macs)==(26_082_028,18_851_435_348)
    m = b.modules
    assert m.at['maxpool.attention','parameters']==610 and m.at['layer4.attention','parameters']==524_386
    assert m.at['maxpool.attention','ptflops']==2*906_304+1_024+8+1_387_778 and m.at['layer4.attention','ptflops']==2*460_800+1_048_576+256+22_050

N,C = 12*10,48
FORMULAS = {'nam':(dict(), N*C*(24+24+48)+N*N*(24+48)), 'nam dot':(dict(kind='dot'), N*C*(24+24+48)+2*N*24*48), 'nonlocal':(dict(), 4*N*C*24+2*N*N*24),
    'nonlocal gaussian':(dict(kind='gaussian'), 2*N*C*24+N*N*(48+24)), 'nonlocal dot':(dict(kind='dot'), 4*N*C*24+2*N*24*24), 'nonlocal concat':(dict(kind='concat'), 4*N*C*24+2*N*24),
    'nonlocal sub':(dict(subsample=True), 4*N*C*24+2*N*(N//4)*24), 'pam':(dict(), N*C*(6+6+48)+N*N*(6+48)), 'cam':(dict(), 2*N*C*C),
    'crisscross':(dict(), 2*(N*C*(6+6+48)+N*(12+10)*(6+48))), 'se':(dict(), 2*C*3), 'cbam':(dict(), 2*2*C*3+N*2*49), 'gc':(dict(), N*C+N*C+2*C*3)}

@pytest.mark.parametrize('how', FORMULAS)
@pytest.mark.parametrize('where', ['meta','cpu','cpu with gradients'])
def test_attention_by_formula(how, where):
    kw,want = FORMULAS[how]
    m,x = create(how.split()[0], C, **kw).eval(),torch.zeros(1, C, 12, 10)
    if where=='meta': assert complexity(m, (12,10), C).macs==want
    else:
        with torch.set_grad_enabled('gradients' in where): assert complexity_live(m, x)==want

def complexity_live(m, x):
    "As `complexity`, with values"
    from medattn_nb.lab.complexity import _watch
    return sum(o['torch'] for o in _watch(m, [x]).own.values())

# MACs of our modules at 64 channels on a map of 20 x 20 as fvcore 0.1.5.post20221221 and ptflops 0.6.7 themselves give them; fvcore fails on 'srm'
ATTENTION = dict(bam=(229320,239392), cam=(3276800,0), cbam=(41024,41092), channel=(1024,1092), constant=(0,0), control=(204800,204800), crisscross=(4096000,4160000), cse=(4096,4192), gc=(51732,26584),
    nam=(3276800,3328000), nonlocal_=(3328000,3392000), pam=(2048000,2080000), scse=(29696,30192), se=(512,512), soft_mask=(5299392,5216192), spatial=(40000,40000), sse=(25600,26000))
# what happens inside our autograd functions, which fvcore cannot see: pairs of positions times the width of queries and values
INSIDE = dict(nam=400*400*(32+64), nonlocal_=400*400*(32+32), pam=400*400*(8+64), crisscross=2*400*40*(8+64))

@pytest.mark.parametrize('name', ATTENTION)
def test_attention_by_public_counters(name):
    c = complexity(create(name.replace('soft_mask','soft-mask').rstrip('_'), 64), 20, 64).conventions
    assert (c['fvcore']-INSIDE.get(name, 0), c['ptflops'])==ATTENTION[name]

@pytest.mark.parametrize('name', available())
def test_every_attention_module(name):
    c = complexity(create(name, 64), (24,16), 64)
    assert c.ran=='meta' and c.parameters==sum(p.numel() for p in create(name, 64).parameters()) and set(c.conventions)==set(CONVENTIONS)
    for k in CONVENTIONS: assert c.modules[k].ge(0).all()

def test_every_backbone_of_the_library_and_the_papers():
    names = networks()
    assert set(available_backbones())<=set(names) and len(available_backbones())>4
    for name in available_backbones():
        c = complexity(network(name, classes=2, device='meta'), 64)
        assert c.ran=='meta' and c.macs>0 and c.parameters>0, name

def state(m):
    return ([o.training for o in m.modules()], [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in m.parameters()],
            [(len(o._forward_hooks),len(o._forward_pre_hooks),len(o._backward_hooks)) for o in m.modules()], {k:v.clone() for k,v in m.state_dict().items()}, [set(vars(o)) for o in m.modules()])

def same(a, b):
    assert a[0]==b[0] and a[2]==b[2] and a[4]==b[4] and all(torch.equal(a[3][k], b[3][k]) for k in a[3])
    for (f,g),(h,i) in zip(a[1], b[1]): assert f==h and (g is None)==(i is None) and (g is None or torch.equal(g, i))

class Asks(nn.Module):
    "A network that needs values: the batch norm is in its own mode, and a label decides"
    def __init__(self): super().__init__(); self.conv,self.bn,self.calls = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4),0
    def forward(self, x): return self.bn(self.conv(x))*(1 if x.max().item()>0 else 2)

class Caches(nn.Module):
    "A network that keeps a tensor from its first run"
    grid = None
    def __init__(self): super().__init__(); self.fc = nn.Linear(5, 2)
    def forward(self, x):
        if self.grid is None: self.grid = torch.arange(x.shape[-1], device=x.device)
        return self.fc(x+self.grid)

@pytest.mark.parametrize('memory', [0,2])
@pytest.mark.parametrize('make', [lambda: create_backbone('resnet18', attention='cbam'), Asks], ids=['resnet18','asks'])
def test_leaves_everything_as_it_was(make, memory):
    m = make().train(); next(m.children()).eval().requires_grad_(False)
    out = m(torch.randn(2, 3, 64, 64)); out.sum().backward()
    calls = []; m.register_forward_hook(lambda *a: calls.append(1)); before,rng = state(m),torch.get_rng_state()
    c = complexity(m, 64, memory=memory)
    same(state(m), before); assert torch.equal(torch.get_rng_state(), rng) and torch.is_grad_enabled() and m.training and c.trainable<c.parameters
    with pytest.raises(RuntimeError): complexity(m, 64, channels=5)
    same(state(m), before)

def test_runs_in_earnest_where_values_are_needed():
    c = complexity(Asks(), 32)
    assert c.ran=='cpu' and c.macs==3*4*9*30*30

def test_a_cache_is_not_filled_with_ghosts():
    m = Caches(); c = complexity(m, inputs=torch.zeros(3, 5))
    assert c.macs==3*5*2 and m.grid is None and m(torch.zeros(3, 5)).shape==(3,2)

@pytest.mark.parametrize('ctx', [torch.no_grad,torch.inference_mode,torch.enable_grad])
def test_any_grad_mode(ctx):
    m = create_backbone('resnet18'); want = complexity(m, 64).conventions
    with ctx(): assert complexity(m, 64).conventions==want and complexity(Asks(), 32).macs==3*4*9*30*30

def test_fused_attention_and_the_fast_path():
    "nn.MultiheadAttention in evaluation mode: torch counts all of it, fvcore not the products of the fused function"
    m,x = nn.MultiheadAttention(32, 4, batch_first=True),torch.zeros(2, 10, 32)
    class Self(nn.Module):
        def __init__(self, w): super().__init__(); self.m,self.w = m,w
        def forward(self, x): return self.m(x, x, x, need_weights=self.w)
    for weights in True,False:
        c = complexity(Self(weights), inputs=x).conventions
        assert c['torch']==2*(4*10*32*32+2*10*10*32) and c['fvcore']==c['torch']-(0 if weights else 2*2*10*10*32)

class Odd(nn.Module):
    "Shared layers, keyword calls, nested outputs, integers among them"
    def __init__(self): super().__init__(); self.a = nn.Conv2d(3, 3, 3, padding=1); self.b,self.act = self.a,nn.ReLU()
    def forward(self, x): y = self.act(self.b(input=self.act(self.a(x)))); return dict(out=y, more=(y.argmax(1), [y.mean()], None))

def test_shared_layers_and_nested_outputs():
    c = complexity(Odd(), (8,6), memory=1)
    assert c.macs==2*3*3*9*48 and c.parameters==84 and c.conventions['ptflops']==c.macs+2*3*48+2*3*48 and c.memory['forward+backward']>0

def test_segmentation_network_with_dict_output_and_memory():
    net = network('lraspp_mobilenet_v3_large', classes=3)
    c = complexity(net, 64, memory=2)
    assert c.memory['forward+backward']>c.memory['forward']>=2*16*32*32*4 and c.memory['images']==2 and 'peak memory, forward' in c.summary()

def test_timm_like_blocks_and_exact_classes():
    "ptflops knows classes exactly: a subclass of a convolution, as timm has them, counts nothing there"
    class Std(nn.Conv2d):
        def forward(self, x): return self._conv_forward(x, self.weight/self.weight.std(), self.bias)
    c = complexity(nn.Sequential(Std(3, 8, 3), nn.ReLU()), 10).conventions
    assert c['torch']==3*8*9*64==c['fvcore'] and c['ptflops']==8*64

def compiled(m):
    "What torch.compile returns, as far as we look at it"
    o = nn.Module(); o._orig_mod = m
    return o

@pytest.mark.parametrize('make', [lambda m: m.half(), lambda m: m.double(), lambda m: m.to(torch.bfloat16), compiled, lambda m: nn.DataParallel(m)], ids=['half','double','bf16','compile','parallel'])
def test_the_same_network_in_other_clothes(make):
    want = complexity(torchvision.models.resnet18(), 64)
    got = complexity(make(torchvision.models.resnet18()), 64)
    assert got.conventions==want.conventions and got.parameters==want.parameters

def test_functions_that_share_a_name_with_modules():
    class Functional(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(4, 3, 3, 3))
        def forward(self, x): return F.adaptive_avg_pool2d(F.max_pool2d(F.relu(F.conv2d(x, self.w)), 2), 1)
    c = complexity(Functional(), 10)
    assert c.conventions==dict(torch=4*27*64, fvcore=4*27*64+4*16, ptflops=0) and c.left_out['ptflops']['convolution']==3*100
    assert set(c.left_out['torch'].index)=={'relu','max_pool2d_with_indices','mean'}

def test_transposed_grouped_and_other_dimensions():
    net = nn.Sequential(nn.Conv3d(1, 4, 3, groups=1), nn.ConvTranspose3d(4, 2, 2, stride=2, groups=2), nn.GroupNorm(2, 2))
    c = complexity(net, inputs=torch.zeros(1, 1, 6, 6, 6)).conventions
    assert c['torch']==4*27*64+4*64*1*8 and c['fvcore']==c['torch']+5*2*512 and c['ptflops']==4*27*64+4*64+(4*1*8+2)*512+2*2*512

def test_table_adds_up_and_hides_nothing():
    c = complexity(network('resnet18', device='meta'), 64, convention='ptflops')
    raw = c.table(depth=9, raw=True)
    for k in 'parameters','MACs','activations':
        leaf = raw[[not any(o.startswith(n+'.') for o in raw.index) and n!='(all)' for n in raw.index]]
        assert leaf[k].sum()==raw.at['(all)',k]
    assert list(c.table(0).index)==['(all)'] and c.table(0).at['(all)','MACs']==f'{c.macs:,}' and raw['MACs %'].max()==100
    assert str(c.parameters)[:2] in repr(c) and 'MACs (torch)' in repr(c)

def test_memory_of_a_frozen_network_and_of_none():
    m = nn.Sequential(nn.Conv2d(3, 4, 1)).requires_grad_(False)
    assert complexity(m, 16, memory=1).memory['forward+backward']>=3*16*16*4 and complexity(m, 16).memory is None
    with pytest.raises(ArgumentError, match='meta device'): complexity(m.to('meta'), 16, memory=1)

@pytest.mark.parametrize('kw,said', [(dict(size=0),'one side'), (dict(size=(3,)),'one side'), (dict(size=2.5),'one side'), (dict(size=True),'one side'), (dict(channels=0),'at least 1'), (dict(memory=-1),'at least 0'),
    (dict(memory=True),'at least 0'), (dict(convention='flops'),'torch, fvcore, ptflops')])
def test_bad_arguments(kw, said):
    with pytest.raises(ArgumentError, match=said): complexity(nn.Conv2d(3, 4, 1), **kw)

def test_bad_models():
    with pytest.raises(ArgumentError, match='torch module'): complexity(lambda x: x)
    with pytest.raises(ArgumentError, match='run it once'): complexity(nn.LazyConv2d(4, 1))
    assert complexity(nn.Identity(), 8).macs==0 and complexity(nn.Identity(), 8).table().at['(all)','MACs %']=='0'

@pytest.mark.parametrize('channels', [1,2,4])
def test_first_convolution_takes_other_channels(channels):
    a,b = complexity(network('resnet18', classes=5, channels=channels), 64, channels),complexity(network('resnet18', classes=5), 64)
    assert b.parameters-a.parameters==(3-channels)*64*49 and b.macs-a.macs==(3-channels)*64*49*32*32

@pytest.mark.parametrize('channels', [1,4])
def test_a_new_first_convolution_has_weights(channels):
    "All zero, no gradient would ever pass it"
    m = network('resnet18', channels=channels)
    assert m.conv1.weight.std()>.01 and m(torch.randn(2, channels, 32, 32)).std(0).max()>1e-4

def test_options_reach_a_network_of_a_paper():
    "The four arrangements of A-PSPNet differ by what its option `order` says, and by nothing else"
    n = {o:n_params(network('apspnet', classes=2, device='meta', encoder='resnet18', order=o)) for o in ('channel-spatial','spatial-channel','channel','spatial')}
    gates = 2*(64*4+512*32),2*98
    assert n['channel-spatial']==n['spatial-channel'] and (n['channel-spatial']-n['spatial'],n['channel-spatial']-n['channel'])==gates

def test_network_refuses():
    for kw,said in ((dict(name='resnet51'),'resnet'), (dict(name='resnet18', reduction=8),'nothing to pass'), (dict(name='resnet18', attention='cbam', where='nowhere'),'choose one of'), (dict(name='resnet18', attention='cban'),'choose one of')):
        with pytest.raises(ArgumentError, match=said): network(**kw)
    assert network('cbam', channels=32, order='spatial').channels==32

def test_as_modules_keeps_weights_and_results():
    m = create_backbone('resnet18', attention='cbam').train(); x = torch.randn(1, 3, 64, 64)
    o = as_modules(m)
    assert o.training and not m.eval().training and torch.allclose(o.eval()(x), m(x), atol=1e-5)
    assert set(o.state_dict())==set(m.state_dict()) and {type(k).__name__ for k in m.modules()}.isdisjoint({'_ModularGate'})
    with pytest.raises(ArgumentError, match='avg and max'): as_modules(ChannelGate(32, pools=('avg','lp')))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    net = create_backbone('resnet18', attention='nam').cuda()
    a,b = complexity(net, 64, memory=2),complexity(create_backbone('resnet18', attention='nam'), 64)
    assert a.conventions==b.conventions and a.memory['forward+backward']>a.memory['forward']>0 and next(net.parameters()).is_cuda

# --- the command ---------------------------------------------------------------------------------------
@pytest.fixture
def sh(capfd):
    "What a terminal would show: exit code, standard output, standard error"
    def run(line):
        code = cli.main(shlex.split(line)); r = capfd.readouterr()
        return code,r.out,r.err
    return run

def test_command_text(sh):
    code,out,err = sh('complexity alexnet --size 473 --convention ptflops')
    assert code==0 and not err and '3,092,577,640 = 3.093 G' in out and '61,100,840' in out and 'classifier' in out and 'features.0' not in out
    assert 'features.0' in sh('complexity alexnet --depth 2')[1]

def test_command_row_of_table2(sh):
    out = sh('complexity resnet50 --size 473 --attention cbam --where ends --option mlp_bias=False,bn=False --convention ptflops --as-modules')[1]
    assert '26,082,028' in out and '18,851,435,348' in out

def test_command_formats(sh):
    raw = pd.read_csv(io.StringIO(sh('complexity resnet18 --classes 2 --channels 1 --size 64,32 --format csv')[1]), index_col=0)
    c = complexity(network('resnet18', 2, 1), (64,32), 1)
    assert raw.at['(all)','MACs']==c.macs and raw.at['fc','parameters']==1026 and list(raw.index)==list(c.table().index)
    assert '| (all) | ResNet |' in sh('complexity resnet18 --size 64 --format markdown')[1]

def test_command_memory(sh):
    code,out,_ = sh('complexity se --channels 32 --size 16 --memory 2 --device cpu')
    assert code==0 and 'peak memory, forward+backward' in out and '(batch of 2)' in out

@pytest.mark.parametrize('line,says', [('complexity','name a network'), ('complexity resnet51','resnet'), ('complexity resnet18 --size 0','one side'), ('complexity resnet18 --size big','is no size'), ('complexity vit_b_32 --size 473','cannot run on it'),
    ('complexity resnet18 --attention cbam --where here','choose one of'), ('complexity resnet18 --option reduction=8','nothing to pass'), ('complexity resnet18 --convention thop','invalid choice'), ('complexity resnet18 --memory -1','at least 0'),
    ('complexity resnet18 --channels 0','at least 1'), ('complexity resnet18 --classes 0','at least 1'), ('complexity resnet18 --depth -1','at least 0'), ('complexity cbam --channels 64 --attention se','attention module')])
def test_command_mistakes(sh, line, says):
    code,out,err = sh(line)
    assert code==2 and not out and says in err and err.count('\n')==1

def test_command_lists(sh):
    names = sh('complexity --list')[1].split()
    assert {'resnet50','deeplabv3_resnet50','shufflenetv2','pairnet','nam'}<=set(names) and len(names)==len(set(names))
