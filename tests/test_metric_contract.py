"""The contract of the metrics: what each one returns in each awkward case, as `value cases/missed/empty`; - is nan.

The page of segmetrics computes the same tables; a change here is a change of what published numbers mean."""
import math
import numpy as np
import pytest
import torch
from medattn_nb.core import ArgumentError
from medattn_nb.metrics import Score,macro_auc,precision,roc_auc,sensitivity
from medattn_nb.segmetrics import *

MASKS = """
                                        | dice       | dice_pooled | jaccard   | miou         | mpa          | mpa_printed  | pixel_acc    | fn_rate     | fp_rate      | hd           | hd95         | hd95_pooled  | hd95_8       | hd95_half_mm | hd95_diagonal
both empty                              | - 0/0/1    | - 0/0/1     | - 0/0/1   | 1 1/0/1      | 1 1/0/1      | 1 1/0/1      | 1 1/0/0      | - 0/0/1     | 0 1/0/0      | - 0/0/1      | - 0/0/1      | - 0/0/1      | - 0/0/1      | - 0/0/1      | - 0/0/1
prediction empty                        | 0 1/0/0    | 0 1/0/0     | 0 1/0/0   | 0.375 2/0/0  | 0.5 2/0/0    | 0.75 1/1/0   | 0.75 1/0/0   | 1 1/0/0     | 0 1/0/0      | - 0/1/0      | - 0/1/0      | - 0/1/0      | - 0/1/0      | - 0/1/0      | 9.8995 1/0/0
target empty                            | 0 1/0/0    | 0 1/0/0     | 0 1/0/0   | 0.375 2/0/0  | 0.75 1/1/0   | 0.5 2/0/0    | 0.75 1/0/0   | - 0/1/0     | 0.25 1/0/0   | - 0/1/0      | - 0/1/0      | - 0/1/0      | - 0/1/0      | - 0/1/0      | 9.8995 1/0/0
one pixel, found                        | 1 1/0/0    | 1 1/0/0     | 1 1/0/0   | 1 2/0/0      | 1 2/0/0      | 1 2/0/0      | 1 1/0/0      | 0 1/0/0     | 0 1/0/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0
one pixel, 3 away                       | 0 1/0/0    | 0 1/0/0     | 0 1/0/0   | 0.4844 2/0/0 | 0.4921 2/0/0 | 0.4921 2/0/0 | 0.9688 1/0/0 | 1 1/0/0     | 0.0159 1/0/0 | 3 1/0/0      | 3 1/0/0      | 3 1/0/0      | 3 1/0/0      | 1.5 1/0/0    | 3 1/0/0
one class: all lesion                   | 1 1/0/0    | 1 1/0/0     | 1 1/0/0   | 1 1/0/1      | 1 1/0/1      | 1 1/0/1      | 1 1/0/0      | 0 1/0/0     | - 0/1/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0      | 0 1/0/0
batch of 1                              | 0.75 1/0/0 | 0.75 1/0/0  | 0.6 1/0/0 | 0.7231 2/0/0 | 0.8333 2/0/0 | 0.8333 2/0/0 | 0.875 1/0/0  | 0.25 1/0/0  | 0.0833 1/0/0 | 1 1/0/0      | 1 1/0/0      | 1 1/0/0      | 1 1/0/0      | 0.5 1/0/0    | 1 1/0/0
batch of 4: these, and the first three  | 0.25 3/0/1 | 0.375 1/0/0 | 0.2 3/0/1 | 0.5334 2/0/0 | 0.6429 2/0/0 | 0.6429 2/0/0 | 0.8438 4/0/0 | 0.625 2/1/1 | 0.0833 4/0/0 | 1 1/2/1      | 1 1/2/1      | 1 1/2/1      | 1 1/2/1      | 0.5 1/2/1    | 6.933 3/0/1
class 2 in neither                      | 0.75 1/0/1 | 0.75 1/0/1  | 0.6 1/0/1 | 0.7231 2/0/1 | 0.8333 2/0/1 | 0.8333 2/0/1 | 0.875 1/0/0  | 0.25 1/0/1  | 0.0417 2/0/0 | 1 1/0/0      | 1 1/0/0      | 1 1/0/0      | 1 1/0/0      | 0.5 1/0/0    | 1 1/0/0
class 2 in truth only                   | 0.5 2/0/0  | 0.5 2/0/0   | 0.5 2/0/0 | 0.6111 3/0/0 | 0.6667 3/0/0 | 0.9167 2/1/0 | 0.875 1/0/0  | 0.5 2/0/0   | 0 2/0/0      | 2.8284 1/0/0 | 2.8284 1/0/0 | 2.5026 1/0/0 | 2.8284 1/0/0 | 1.4142 1/0/0 | 2.8284 1/0/0
class 2 predicted only                  | 0.5 2/0/0  | 0.5 2/0/0   | 0.5 2/0/0 | 0.6111 3/0/0 | 0.9167 2/1/0 | 0.6667 3/0/0 | 0.875 1/0/0  | 0 1/1/0     | 0.0625 2/0/0 | 2.8284 1/0/0 | 2.8284 1/0/0 | 2.5026 1/0/0 | 2.8284 1/0/0 | 1.4142 1/0/0 | 2.8284 1/0/0
"""

CLASSES = """
                         | accuracy   | sensitivity  | precision    | auc
binary                   | 0.5 4/0/0  | 0.5 1/0/0    | 0.5 1/0/0    | 0.75 1/0/0
batch of 1, sick, found  | 1 1/0/0    | 1 1/0/0      | 1 1/0/0      | - 0/1/0
one class: all sick      | 0.5 2/0/0  | 0.5 1/0/0    | 1 1/0/0      | - 0/1/0
one class: none sick     | 0.5 2/0/0  | - 0/1/0      | 0 1/0/0      | - 0/1/0
nobody called            | 0.5 4/0/0  | 0 1/0/0      | - 0/1/0      | 0.75 1/0/0
all scores equal         | 0.5 4/0/0  | 1 1/0/0      | 0.5 1/0/0    | 0.5 1/0/0
three classes            | 0.75 4/0/0 | 0.8333 3/0/0 | 0.8333 3/0/0 | 0.8611 3/0/0
class 2 in neither       | 0.75 4/0/0 | 0.75 2/0/1   | 0.8333 2/0/1 | 0.75 2/1/0
class 2 in truth only    | 0.75 4/0/0 | 0.6667 3/0/0 | 0.8333 2/1/0 | 0.75 3/0/0
class 2 called only      | 0.75 4/0/0 | 0.75 2/1/0   | 0.6667 3/0/0 | 0.875 2/1/0
"""

def table(text):
    "(case, metric, value, counts) of every cell"
    head,*rows = [[o.strip() for o in l.split('|')] for l in text.strip('\n').splitlines()]
    for case,*cells in rows:
        for metric,c in zip(head[1:], cells):
            v,n = c.split()
            yield case,metric,math.nan if v=='-' else float(v),tuple(map(int, n.split('/')))

def check(got, value, counts):
    assert isinstance(got, Score) and tuple(got[1:])==counts, got
    assert got.value==pytest.approx(value, abs=6e-5, nan_ok=True)

@pytest.mark.parametrize('case,metric,value,counts', list(table(MASKS)))
def test_masks(case, metric, value, counts): check(edge_scores(*edge_cases()[case])[metric], value, counts)

@pytest.mark.parametrize('case,metric,value,counts', list(table(CLASSES)))
def test_classes(case, metric, value, counts): check(class_edge_scores(*class_edge_cases()[case])[metric], value, counts)

def test_tables_are_complete():
    for text,cases,scores in (MASKS,edge_cases(),edge_scores),(CLASSES,class_edge_cases(),class_edge_scores):
        assert {(c,m) for c,m,*_ in table(text)}=={(c,m) for c,v in cases.items() for m in scores(*v)}

@pytest.mark.parametrize('case', edge_cases())
def test_no_case_disappears(case):
    p,t,K = edge_cases()[case]; n = len(p)
    for m,s in edge_scores(p, t, K).items():
        asked = {'dice_pooled':K-1,'miou':K,'mpa':K,'mpa_printed':K}.get(m, n*(K-1) if m in ('dice','jaccard','fn_rate','fp_rate') else n)
        assert s.cases+s.missed+s.empty==asked and (s.cases>0)==(not math.isnan(s.value)), m

@pytest.mark.parametrize('as_', [lambda o:o, lambda o:o.astype(np.uint8), lambda o:torch.tensor(o), lambda o:torch.tensor(o).byte(), lambda o:torch.tensor(o).to(torch.int16)], ids=['int64','uint8','tensor','byte','int16'])
def test_types_do_not_matter(as_):
    for p,t,K in edge_cases().values():
        assert str(edge_scores(as_(p), as_(t), K))==str(edge_scores(p, t, K))

def test_a_batch_is_its_images():
    p,t,_ = edge_cases()['batch of 4: these, and the first three']
    C = confusion_counts(p, t)
    for f in dice,jaccard,fn_rate,fp_rate,pixel_accuracy:
        one = np.concatenate([f(confusion_counts(p[i:i+1], t[i:i+1]), reduction='none') for i in range(4)])
        np.testing.assert_array_equal(f(C, reduction='none'), one)
    for how in 'max','pooled':
        one = np.concatenate([hd95(p[i:i+1], t[i:i+1], how, reduction='none') for i in range(4)])
        np.testing.assert_array_equal(hd95(p, t, how, reduction='none'), one)

@pytest.mark.parametrize('empty,value,cases', [('skip',math.nan,0),(1.,1.,1),(0.,0.,1)])
def test_both_empty_by_choice(empty, value, cases):
    o = np.zeros((1,8,8), bool); C = confusion_counts(o, o)
    for s in dice(C, empty=empty),jaccard(C, empty=empty),fn_rate(C, empty=empty),hd95(o, o, empty=empty),hausdorff(o, o, empty=empty):
        check(s, value, (cases,0,1-cases))

@pytest.mark.parametrize('swap', [False,True])
@pytest.mark.parametrize('missed,value,cases', [('skip',math.nan,0),(7.,7.,1),('diagonal',math.hypot(7*.5,9*2),1)])
def test_one_empty_distance_by_choice(swap, missed, value, cases):
    a = np.zeros((2,1,8,10), bool); a[int(swap),0,2:4,2:4] = True
    check(hd95(*a, spacing=(.5,2), missed=missed), value, (cases,1-cases,0))

def test_absent_classes_by_choice():
    p,t,K = edge_cases()['class 2 predicted only']; C = confusion_counts(p, t, K, pooled=True)
    check(mean_pixel_accuracy(C, missed=0.), 11/18, (3,0,0))
    p,t,K = edge_cases()['class 2 in neither']; C = confusion_counts(p, t, K, pooled=True)
    check(mean_iou(C, empty=0.), mean_iou(C).value*2/3, (3,0,0))
    check(mean_iou(C, background=False), .6, (1,0,1))
    check(macro_auc([0,1,1], np.eye(3)[[0,1,1]], missed=.5), (1+1+.5)/3, (3,0,0))

def test_plain_classification_functions_agree():
    assert math.isnan(sensitivity([0,0], [.2,.9])) and math.isnan(precision([0,1], [.1,.2]))
    with pytest.raises(ArgumentError, match='undefined'): roc_auc([1,1], [.2,.9])

def test_released_fpa_metrics():
    "From running the released code: both empty 0.5 and FN 1; two 20x20 boxes 4 and 5 apart give 5.0"
    o = np.zeros((1,8,8), int); C = confusion_counts(o, o)
    check(fpa_iou(C), .5, (1,0,0)); check(fpa_fn_rate(C), 1., (1,0,0)); check(fpa_fp_rate(C), 0., (1,0,0)); check(fpa_hd95(o, o), 0., (0,1,0))
    sq = o.copy(); sq[:,2:6,2:6] = 1
    C = confusion_counts(o, sq); check(fpa_iou(C), (2*48/(64+48)+0)/2, (1,0,0)); check(fpa_fn_rate(C), 1., (1,0,0))
    a = np.zeros((2,1,64,64), bool); a[0,0,20:40,20:40] = a[1,0,24:44,25:45] = True
    check(fpa_hd95(*a), 5/2, (1,0,0))
    check(fpa_hd95(*(np.concatenate([x,x,np.zeros_like(x)]) for x in a)), 10/3, (2,1,0))
    one = np.zeros((1,8,8), bool); one[0,1,1] = True
    check(fpa_hd95(one, one), 0., (0,1,0))
