"""Backbones: counts, paired starts, initialisation, weights of other shapes, bad input."""
import copy
import pytest, torch, torchvision
from torch import nn
from medattn_nb.attention import attention_modules, insert_attention, open_gates
from medattn_nb.backbones import *
from medattn_nb.core import ArgumentError

KINDS = None,'se','cbam','gc'
def seeded(seed=0, **kw): torch.manual_seed(seed); return resnet18(**kw)
def n_params(m): return sum(p.numel() for p in m.parameters())

@pytest.mark.parametrize('kind,extra', list(zip(KINDS, (0,87_040,89_880,91_248))))
def test_counts(kind, extra): assert n_params(resnet18(attention=kind))==11_177_538+extra

def test_gc_quarter(): assert n_params(resnet18(attention='gc', ratio=1/4))==11_530_986

@pytest.mark.parametrize('init,keep', [('he',True), ('he',False), ('default',True)])
def test_plain_layers_depend_on_the_seed_alone(init, keep):
    ref = seeded(init=init).state_dict()
    for kind in KINDS[1:]:
        sd = seeded(attention=kind, init=init, keep_identity=keep).state_dict()
        assert all(torch.equal(v, sd[k]) for k,v in ref.items())
    assert not torch.equal(ref['conv1.weight'], seeded(1, init=init).state_dict()['conv1.weight'])

@pytest.mark.parametrize('kind', KINDS[1:])
def test_open_gates_give_the_plain_network(kind):
    p,net,x = seeded().eval(),seeded(attention=kind).eval(),torch.randn(2,3,64,64)
    with torch.no_grad(), open_gates(net): assert torch.equal(net(x), p(x))

@pytest.mark.parametrize('init', ['he','he_uniform'])
def test_he(init):
    m = seeded(init=init)
    for o in m.modules():
        if isinstance(o, nn.Conv2d):
            n = o.out_channels*o.kernel_size[0]**2
            assert abs(o.weight.std()/(2/n)**.5-1)<.05
        if isinstance(o, nn.BatchNorm2d): assert (o.weight==1).all() and not o.bias.any()
    assert abs(m.fc.weight.std()/(2/512)**.5-1)<.15 and not m.fc.bias.any()
    if init=='he_uniform': assert m.layer1[0].conv1.weight.abs().max()<=(6/576)**.5

def test_default_is_torchvisions():
    torch.manual_seed(0); ref = torchvision.models.resnet18(num_classes=2).state_dict()
    assert all(torch.equal(v, ref[k]) for k,v in seeded(init='default').state_dict().items())

def test_keep_identity():
    for keep in (True,False):
        gc,cbam = (attention_modules(seeded(attention=o, keep_identity=keep))['layer1.0.attention'] for o in ('gc','cbam'))
        assert gc.add.fc2.weight.any()!=keep and (cbam.spatial.bn.weight==(0 if keep else 1)).all()
        assert abs(gc.mask.weight.std()-((2/64)**.5 if keep else 2**.5))<.5*gc.mask.weight.std()

def test_init_weights_leaves_what_has_no_rule():
    m = nn.Sequential(nn.Conv1d(2,2,1), nn.BatchNorm2d(2, affine=False), nn.Conv2d(2,2,1,bias=False))
    before = copy.deepcopy(m[0].weight)
    assert init_weights(m) is m and torch.equal(m[0].weight, before)

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', [(2,1,64,64),(1,5,32,32),(2,3,127,128)])
def test_shapes(kind, shape):
    m = resnet18(num_classes=3, in_channels=shape[1], attention=kind).eval()
    with torch.no_grad(): assert m(torch.randn(shape)).shape==(shape[0],3)

@pytest.mark.parametrize('kind', KINDS)
def test_learns(kind):
    m,x,y = seeded(attention=kind).train(),torch.randn(8,3,32,32),torch.arange(8)%2
    opt,losses = torch.optim.SGD(m.parameters(), lr=.02, momentum=.9),[]
    for _ in range(5):
        loss = nn.functional.cross_entropy(m(x), y); opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    assert losses[-1]<losses[0]

@pytest.mark.parametrize('where', ['residual','ends','stem','stage:3'])
def test_where_and_keywords(where):
    m = resnet18(attention='cbam', where=where, bn=False, order='spatial')
    assert {o.order for o in attention_modules(m).values()}=={'spatial'}

# --- weights ------------------------------------------------------------------------------------------
def test_weights_of_the_same_network(tmp_path):
    p = seeded(3)
    torch.save(p.state_dict(), tmp_path/'w')
    for w in (p.state_dict(), tmp_path/'w', str(tmp_path/'w')):
        sd = seeded(attention='se', weights=w).state_dict()
        assert all(torch.equal(v, sd[k]) for k,v in p.state_dict().items())

def test_weights_leave_attention_and_another_classifier():
    w,m = torchvision.models.resnet18().state_dict(),seeded(attention='cbam')
    before = copy.deepcopy(m.state_dict())
    missing = load_weights(m, w)
    assert missing==[k for k in before if '.attention.' in k or k.startswith('fc.')]
    assert all(torch.equal(m.state_dict()[k], before[k]) for k in missing) and torch.equal(m.conv1.weight, w['conv1.weight'])

@pytest.mark.parametrize('ni', [1,2,4])
def test_weights_of_another_number_of_channels(ni):
    w = torchvision.models.resnet18().state_dict()
    m,x = resnet18(in_channels=ni, weights=w),torch.randn(1,1,40,40)
    ref = nn.functional.conv2d(x.expand(-1,3,-1,-1), w['conv1.weight'], stride=2, padding=3)
    assert torch.allclose(m.conv1(x.expand(-1,ni,-1,-1)), ref, atol=1e-4)

def test_weights_are_not_changed():
    w = torchvision.models.resnet18().state_dict(); keys = list(w)
    resnet18(in_channels=1, weights=w)
    assert list(w)==keys and w['conv1.weight'].shape[1]==3

# --- bad input ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw,says', [
    (dict(num_classes=0), 'num_classes: got 0'), (dict(in_channels=1.), 'in_channels: got 1.0'), (dict(num_classes=True), 'num_classes'), (dict(init='kaiming'), "'he_uniform'"),
    (dict(attention='cabm'), 'choose one of bam'), (dict(attention='se', where='top'), 'choose one of residual'), (dict(attention='se', ratio=2), "'se' accepts reduction, bias"),
    (dict(reduction=8), 'resnet18 has no such option'), (dict(weights='none.pth'), 'there is no such file'), (dict(weights={}), '120 names or shapes'),
    (dict(weights=dict(torchvision.models.resnet18(num_classes=2).state_dict(), extra=torch.zeros(1))), 'got extra; 1 names or shapes')])
def test_bad_arguments(kw, says):
    with pytest.raises(ArgumentError) as e: resnet18(**kw)
    assert says in str(e.value)

# --- ShuffleNetV2 ---------------------------------------------------------------------------------------
def shuffled(seed=0, **kw): torch.manual_seed(seed); return shufflenetv2(**kw).eval()

def test_shufflenet_is_torchvisions():
    theirs = torchvision.models.shufflenet_v2_x1_0(num_classes=3).eval()
    ours,x = shufflenetv2(3, conv5=True, weights=theirs.state_dict()).eval(),torch.randn(2,3,65,47)
    with torch.no_grad(): assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict())==list(theirs.state_dict())

def test_shufflenet_without_its_last_convolution():
    theirs = torchvision.models.shufflenet_v2_x1_0()
    m = shuffled(num_classes=5)
    assert load_weights(m, theirs.state_dict())==['fc.weight','fc.bias'] and torch.equal(m.stage4[0].branch1[0].weight, theirs.stage4[0].branch1[0].weight)
    assert m.fc.in_features==464 and n_params(theirs)-n_params(m)==464*1024+2*1024+1025*1000-465*5

@pytest.mark.parametrize('k,c', list(enumerate((24,116,232,464), 1)))
def test_attention_after_each_encoder(k, c):
    m,plain,x = shuffled(attention='se', where=f'stage:{k}'),shuffled(),torch.randn(2,3,64,64)
    assert [(n,o.channels) for n,o in attention_modules(m).items()]==[(f'attention{k}',c)]
    assert all(torch.equal(v, m.state_dict()[n]) for n,v in plain.state_dict().items())
    with torch.no_grad(), open_gates(m): assert torch.equal(m(x), plain(x))
    with torch.no_grad(): assert not torch.equal(m(x), plain(x))

@pytest.mark.parametrize('name', ['resnet18','shufflenetv2'])
@pytest.mark.parametrize('ni', [1,4])
def test_encoder_maps(name, ni):
    m,x = create_backbone(name, num_classes=3, in_channels=ni).eval(),torch.randn(2,ni,70,50)
    with torch.no_grad(): maps,out = encoder_maps(m, x),m(x)
    assert [tuple(o.shape[2:]) for o in maps.values()]==[(70,50),(35,25),(18,13),(9,7),(5,4),(3,2)] and maps['input'] is x
    assert torch.allclose(m.fc(maps['e4'].mean((2,3))), out, atol=1e-6)

@pytest.mark.parametrize('kw,says', [(dict(attention='se', where='residual'),'stage:1'), (dict(num_classes=0),'at least 1'), (dict(reduction=4),'no such option'), (dict(weights='imagenet'),'fetch it once')])
def test_bad_shufflenets(kw, says, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(ArgumentError, match=says): shufflenetv2(**kw)

def test_imagenet_weights_are_found_and_checked(monkeypatch, tmp_path):
    "A file of torchvision's name is used if its digest begins as the name says"
    import hashlib, types
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path/'checkpoints').mkdir()
    sd = torchvision.models.resnet18().state_dict()
    torch.save(sd, tmp_path/'w.pth')
    digest = hashlib.sha256((tmp_path/'w.pth').read_bytes()).hexdigest()[:8]
    there = tmp_path/f'checkpoints/resnet18-{digest}.pth'
    kind = types.SimpleNamespace(IMAGENET1K_V1=types.SimpleNamespace(url=f'https://example.org/{there.name}'))
    monkeypatch.setattr(torchvision.models, 'get_model_weights', lambda arch: kind)
    with pytest.raises(ArgumentError, match='is not on this machine'): resnet18(weights='imagenet')
    there.write_bytes((tmp_path/'w.pth').read_bytes())
    assert torch.equal(resnet18(weights='imagenet').layer4[1].conv2.weight, sd['layer4.1.conv2.weight'])
    there.write_bytes(b'half a file')
    with pytest.raises(ArgumentError, match='damaged'): resnet18(weights='imagenet')

def test_registry(monkeypatch):
    import medattn_nb.backbones as b
    monkeypatch.setattr(b, '_backbones', b._backbones.copy())
    @register_backbone('flat')
    def flat(num_classes=2): return nn.Linear(4, num_classes)
    assert {'flat','resnet18','shufflenetv2'}<=set(available_backbones()) and available_backbones()==sorted(available_backbones()) and create_backbone('flat', num_classes=5).out_features==5
    assert n_params(create_backbone('resnet18', attention='se'))==11_264_578
    with pytest.raises(ArgumentError, match='choose one of .*flat, .*resnet18'): create_backbone('vgg')
    with pytest.raises(ArgumentError, match="'flat' accepts num_classes"): create_backbone('flat', classes=5)
    with pytest.raises(ArgumentError, match='is taken by .*resnet18'): register_backbone('resnet18')(nn.Linear)

@pytest.mark.parametrize('make,arch', [
    (lambda: create_backbone('resnet18', attention='cbam', num_classes=2), 'resnet18'),
    (lambda: insert_attention(torchvision.models.resnet34(weights=None), 'se', 'ends'), 'resnet34'),
    (lambda: insert_attention(torchvision.models.resnet50(weights=None), 'se', 'residual', reduction=16), 'resnet50'),
    (lambda: torchvision.models.resnet101(weights=None), 'resnet101')])
def test_imagenet_asks_for_the_file_of_the_networks_own_depth(tmp_path, monkeypatch, make, arch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(ArgumentError, match=f'{arch}-[0-9a-f]+.pth is not on this machine'): load_weights(make(), 'imagenet')

def test_imagenet_has_no_file_for_a_network_of_our_own():
    from torchvision.models.resnet import BasicBlock,ResNet
    with pytest.raises(ArgumentError, match='torchvision has no resnet10'): load_weights(ResNet(BasicBlock, [1,1,1,1]), 'imagenet')
