"What is no lesson: fastai metrics against the functions on the whole set, for any batch size, type and device"
import pickle
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from medattn_nb.core import ArgumentError,ShapeError
from medattn_nb.lab.metrics import *
from medattn_nb.metrics import class_confusion,macro_auc,macro_precision,macro_sensitivity,overall_accuracy,roc_auc
from medattn_nb.segmetrics import confusion_counts,dice,fn_rate,fp_rate,hd95,jaccard,mean_iou,mean_pixel_accuracy,pixel_accuracy

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')

def data(K=2, n=11, size=(12,9), seed=0):
    "Scores (n,K,H,W) and targets (n,H,W); two targets are all background, and so is one of their predictions"
    g = torch.Generator().manual_seed(seed)
    s,y = torch.randn(n, K, *size, generator=g),torch.randint(K, (n,*size), generator=g)
    y[:2] = 0; s[0,1:] = -9
    return s,y

def run(m, s, y, bs):
    "The metric over batches of `bs`, as fastai's Recorder calls it"
    m.reset()
    for i in range(0, len(y), bs): m.accumulate(SimpleNamespace(pred=s[i:i+bs], y=y[i:i+bs]))
    return m.value,m.score

ALL = [(MIoU,mean_iou,True), (MPA,mean_pixel_accuracy,True), (PixelAccuracy,pixel_accuracy,True), (DiceScore,dice,True), (JaccardScore,jaccard,True), (FPRate,fp_rate,True), (FNRate,fn_rate,True)]

@pytest.mark.parametrize('K', [2,4])
@pytest.mark.parametrize('per_image', [False,True])
@pytest.mark.parametrize('M,f,_', ALL, ids=lambda o: getattr(o, '__name__', ''))
def test_equal_the_functions_for_any_batch_size(K, per_image, M, f, _):
    s,y = data(K); y[3,0] = 255; m = M(K, ignore=255, per_image=per_image)
    C = confusion_counts(s.argmax(1), y, K, 255); want = f(C if per_image else C.sum(0))
    for bs in 1,3,7,11:
        value,score = run(m, s, y, bs)
        assert score==want and value==want.value

def test_options_reach_the_function():
    s,y = data(3)
    assert run(MPA(3, formula='printed'), s, y, 4)[1]==mean_pixel_accuracy(confusion_counts(s.argmax(1), y, 3, pooled=True), 'printed')
    assert run(DiceScore(3, per_image=True, empty=1.), s, y, 4)[1]==dice(confusion_counts(s.argmax(1), y, 3), empty=1.)
    assert [M().name for M,*_ in ALL]==['miou','mpa','pixel_accuracy','dice','jaccard','fp_rate','fn_rate'] and DiceScore(per_image=True).name=='dice_per_image' and DiceScore(name='d').name=='d'

def test_kinds_of_output():
    s,y = data(); z = s[:,1:]-s[:,:1]
    want = run(DiceScore(), s, y, 3)
    for a,b in (z,y),(z,y[:,None]),(s,y[:,None]),(s.argmax(1),y),(s,y.float()),(s,y.byte()),(s.argmax(1)==1,y==1):
        assert run(DiceScore(), a, b, 3)==want
    with pytest.raises(ShapeError, match='for targets'): decode(s[:,:,:3], y)
    with pytest.raises(ArgumentError, match='from 0 to 1'): run(DiceScore(), s, y+1, 3)

@pytest.mark.parametrize('kw', [{}, dict(how='pooled'), dict(spacing=(.5,2)), dict(missed='diagonal'), dict(empty=0.), dict(connectivity=2)], ids=str)
@pytest.mark.parametrize('when', ['end','batch'])
def test_hd95(kw, when):
    s,y = data(); want = hd95(s.argmax(1), y, **kw)
    for bs in 1,4,11:
        value,score = run(HD95(when=when, **kw), s, y, bs)
        assert score[1:]==want[1:] and value==pytest.approx(want.value)
    m = HD95(when=when, **kw); run(m, s, y, 4); once = m.score; assert once==m.score==m.score and once.value==pytest.approx(want.value)
    s,y = data(4); assert run(HD95(2), s, y, 3)[0]==pytest.approx(hd95(s.argmax(1)==2, y==2).value)
    with pytest.raises(ArgumentError, match='when'): HD95(when='later')

@pytest.mark.parametrize('K', [2,4])
def test_classifiers(K):
    g = torch.Generator().manual_seed(1); s,y = 30*torch.randn(23, K, generator=g),torch.randint(K, (23,), generator=g)
    C = class_confusion(y, s.argmax(1), K); only = 1 if K==2 else None
    auc = macro_auc(y, (s[:,1]-s[:,0]) if K==2 else s.double().softmax(1))
    for bs in 1,5,23:
        assert run(Accuracy(K), s, y, bs)[1]==overall_accuracy(C) and run(Sensitivity(K), s, y, bs)[1]==macro_sensitivity(C, only)
        assert run(Precision(K), s, y, bs)[1]==macro_precision(C, only) and run(AUC(), s, y, bs)[1].value==pytest.approx(auc.value, abs=1e-12)
    if K==2:
        for o in (s[:,1]-s[:,0]),(s[:,1:]-s[:,:1]): assert run(AUC(), o, y, 5)[0]==pytest.approx(roc_auc(y, s[:,1]-s[:,0]))
        assert run(Sensitivity(only=0), s, y, 5)[1]==macro_sensitivity(C, 0)

def test_auc_of_very_sure_networks_has_no_false_ties():
    y = torch.tensor([0,1]*20); z = y+torch.linspace(60, 70, 40)
    s = torch.stack([-z, z], 1)
    assert run(AUC(), s, y, 7)[0]==pytest.approx(roc_auc(y, z))

def test_undefined_is_nan_and_counted():
    s,y = torch.randn(5, 2),torch.ones(5).long()
    value,score = run(AUC(), s, y, 2); assert np.isnan(value) and score[1:]==(0,1,0)
    assert run(AUC(missed=.5), s, y, 2)[0]==.5
    for m in (MIoU(),HD95(),AUC(),Accuracy()): m.reset(); assert np.isnan(m.value) and m.score.cases==0

def test_pickles():
    s,y = data()
    for m in (MIoU(),DiceScore(per_image=True),HD95()):
        want = run(m, s, y, 4); m = pickle.loads(pickle.dumps(m)); assert m.score==want[1]

@cuda
def test_no_wait_on_a_gpu():
    s,y = (o.cuda() for o in data(3)); c,yc = torch.randn(11, 2, device='cuda'),torch.arange(11, device='cuda')%2
    ms = [(M(3, ignore=255, per_image=p),s,y) for M,*_ in ALL for p in (False,True)]+[(HD95(),s,y),(AUC(),c,yc),(Accuracy(),c,yc),(Sensitivity(),c,yc)]
    for m,*_ in ms: m.reset()
    torch.cuda.synchronize(); torch.cuda.set_sync_debug_mode('error')
    try:
        for m,a,b in ms:
            for i in range(0, 11, 4): m.accumulate(SimpleNamespace(pred=a[i:i+4], y=b[i:i+4]))
    finally: torch.cuda.set_sync_debug_mode('default')
    for m,a,b in ms: assert m.score==run(m, a.cpu(), b.cpu(), 11)[1]
