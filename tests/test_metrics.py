"What is no lesson: metrics against scikit-learn and brute force, bad input, ties, groups, and error rates by simulation"
import itertools,json
import numpy as np
import pytest
import sklearn.metrics as skm
from hypothesis import given,settings,strategies as st
from medattn_nb.core import ArgumentError,MedattnError,ShapeError
from medattn_nb.metrics import *
from medattn_nb.metrics import _components,_draws,_se,_strata,_resample,_weighted_ap,_weighted_auc

def cases(seed=0, m=40, n=60, shift=1., decimals=None):
    rng = np.random.default_rng(seed); s = np.r_[rng.normal(shift,1,m), rng.normal(0,1,n)]; o = rng.permutation(m+n)
    return np.r_[np.ones(m,int), np.zeros(n,int)][o], (s if decimals is None else s.round(decimals))[o]

labelled = st.lists(st.tuples(st.booleans(), st.integers(-4,4)), min_size=2, max_size=30).filter(lambda o: len({y for y,_ in o})==2)

@settings(max_examples=150, deadline=None)
@given(labelled)
def test_auc_equals_pairs_and_sklearn(rows):
    y,s = (np.array(o) for o in zip(*rows))
    pairs = np.mean([(a>b)+.5*(a==b) for a,b in itertools.product(s[y], s[~y])])
    assert np.isclose(roc_auc(y, s), pairs) and np.isclose(roc_auc(y, s), skm.roc_auc_score(y, s))
    assert np.isclose(roc_auc(y, s)+roc_auc(~y, s), 1)
    fpr,tpr,t = roc_curve(y, s)
    assert np.isclose(skm.auc(fpr, tpr), pairs) and t[0]==np.inf and (np.diff(t)<0).all()
    for a,b in zip((fpr,tpr,t), skm.roc_curve(y, s, drop_intermediate=False)): np.testing.assert_allclose(a, b)

@settings(max_examples=60, deadline=None)
@given(labelled, st.integers(0,1000))
def test_weighted_auc_is_auc_of_repeated_cases(rows, seed):
    y,s = (np.array(o) for o in zip(*rows))
    w = np.random.default_rng(seed).integers(1, 5, len(y))
    assert np.isclose(_weighted_auc(y, s.astype(float), w[None].astype(float))[0], roc_auc(np.repeat(y,w), np.repeat(s,w)))

@pytest.mark.parametrize('decimals', [None,1,0])
def test_delong_components_and_variance_by_brute_force(decimals):
    y,s = cases(1, decimals=decimals); t = cases(2, decimals=decimals)[1]; y = y.astype(bool)
    psi = lambda s: (np.sign(s[y][:,None]-s[~y])+1)/2
    V = _components(y, np.stack([s,t]))
    for v,o in zip(V, (s,t)):
        np.testing.assert_allclose(v[y], psi(o).mean(1)); np.testing.assert_allclose(v[~y], psi(o).mean(0))
    c10,c01 = np.cov(V[:,y]),np.cov(V[:,~y]); S = c10/y.sum()+c01/(~y).sum()
    res = delong_test(y, s, t)
    assert np.isclose(res.se**2, S[0,0]+S[1,1]-2*S[0,1]) and np.isclose(_se(y, V[0])**2, S[0,0])
    assert np.isclose(res.diff, roc_auc(y,s)-roc_auc(y,t))

def test_scores_may_be_infinite_and_labels_boolean_or_float():
    assert roc_auc([True,False,True], [np.inf,-np.inf,0])==1 and roc_auc([1.,0.], [np.inf,np.inf])==.5
    assert len(roc_curve([1,0,1], [np.inf,np.inf,0])[0])==3
    assert roc_auc([0,1], [7,7])==.5

@pytest.mark.parametrize('f', [roc_auc,roc_curve,auc_ci])
@pytest.mark.parametrize('y,s,msg', [
    ([0,1,2],[1,2,3],'labels must be 0'), ([0,0],[1,2],'undefined'), ([1,1],[1,2],'all 1'), ([0,1],[1,np.nan],'nan'), ([0,1],[1],'each of the 2'),
    ([],[],'one label'), ([[0,1]],[[1,2]],'one label'), ([0,1],[[1,2]],'each of the 2'), ([0,np.nan],[1,2],'labels must be 0'), ([-1,1],[1,2],'labels must be 0')])
def test_bad_input_names_the_argument(f, y, s, msg):
    with pytest.raises(ArgumentError, match=msg): f(y, s)

def test_errors_name_a_and_b():
    y,s = cases()
    with pytest.raises(ArgumentError, match='^b: '): delong_test(y, s, s*np.nan)
    with pytest.raises(ArgumentError, match='^a: '): delong_test(y, s[:-1], s)
    with pytest.raises(ArgumentError, match='^A: '): paired_auc_test(y, s[None,:-1], s)
    with pytest.raises(ArgumentError, match='method'): paired_auc_test(y, s, s, method='t')
    with pytest.raises(ArgumentError, match='resample_runs'): paired_auc_test(y, s, s, resample_runs=True)
    with pytest.raises(ArgumentError, match='level'): delong_test(y, s, s, level=95)
    with pytest.raises(ArgumentError, match='^n: '): bootstrap_ci(np.mean, s, n=10)
    with pytest.raises(ArgumentError, match='stat'): bootstrap_ci(lambda o: np.nan, s, n=100)
    with pytest.raises(ArgumentError, match='arrays'): bootstrap_ci(np.mean, s, s[:3])
    with pytest.raises(ArgumentError, match='groups'): auc_ci(y, s, groups=['a'])
    with pytest.raises(ArgumentError, match='groups'): auc_ci(y, s, groups=[None]*len(y))
    with pytest.raises(ArgumentError, match='scale'): auc_ci(y, s, scale='log')
    with pytest.raises(ArgumentError, match='two of each class'): auc_ci(y, s, groups=y)
    assert issubclass(ArgumentError, MedattnError)

def test_degenerate_comparisons():
    y,s = cases()
    same = delong_test(y, s, 3*s+1)
    assert same.p==1 and same.diff==0 and same.ci==(0,0)
    assert paired_auc_test(y, s, s, method='bootstrap', n=100).p==1
    worst = delong_test([0,0,1,1], [1,2,3,4], [4,3,2,1])
    assert worst.diff==1 and worst.p==2**-3
    assert np.isfinite(list(auc_ci(y, np.zeros(len(y))))).all()

@pytest.mark.parametrize('scale', ['auc','logit'])
def test_intervals_stay_inside_and_widen(scale):
    for seed in range(30):
        y,s = cases(seed, 6, 7, 2.)
        lo,hi = [auc_ci(y, s, level=l, scale=scale) for l in (.8,.99)]
        assert 0<=hi.low<=lo.low<=lo.value<=lo.high<=hi.high<=1
        flip = auc_ci(y, -s, scale=scale); assert np.isclose(flip.low, 1-auc_ci(y, s, scale=scale).high)

def test_perfect_separation_has_width():
    ci = auc_ci([0]*5+[1]*9, range(14))
    assert ci.value==ci.high==1 and np.isclose(ci.low, .025**(1/5))
    assert auc_ci([1]*5+[0]*9, range(14)).high<1
    assert auc_ci([0]*6+[1]*6, range(12), groups=list('aabbccddeeff')).low<auc_ci([0]*6+[1]*6, range(12)).low

def test_mean_over_runs():
    y,s = cases(3); rng = np.random.default_rng(0)
    A,B = s+rng.normal(size=(3,100)), s+rng.normal(size=(5,100))
    res = paired_auc_test(y, A, B)
    assert np.isclose(res.diff, np.mean(res.aucs_a)-np.mean(res.aucs_b)) and len(res.aucs_b)==5
    assert np.allclose(res.aucs_a, [roc_auc(y,o) for o in A])
    assert np.isclose(paired_auc_test(y, A, B[[0]*4]).se, paired_auc_test(y, A, B[0]).se)
    boot = paired_auc_test(y, A, B, method='bootstrap', n=2000)
    assert np.isclose(boot.se, res.se, rtol=.1) and boot==paired_auc_test(y, A, B, method='bootstrap', n=2000)
    assert boot!=paired_auc_test(y, A, B, method='bootstrap', n=2000, seed=1)
    wide = paired_auc_test(y, A, B, method='bootstrap', n=2000, resample_runs=True)
    assert wide.se>boot.se and 'runs' in wide.method
    json.dumps(res._asdict()); o = np.random.default_rng(1).permutation(100)
    assert np.isclose(paired_auc_test(y[o], A[:,o], B[:,o]).p, res.p)

def test_bootstrap_agrees_with_delong_in_weights_and_indices():
    y,s = cases(4); by_index = bootstrap_ci(roc_auc, y, s, n=400, stratify=y)
    by_weight = paired_auc_test(y, s, np.zeros(100), method='bootstrap', n=400)
    np.testing.assert_allclose(np.array(by_weight.ci)+.5, by_index[1:], atol=1e-12)

def test_groups_are_drawn_whole_and_within_strata():
    y = np.array([0,0,0,1,1,1,0,1]); g = list('aabccddd'); strata = _strata(8, g, y)
    for seed in range(50):
        i = _resample(strata, np.random.default_rng(seed)); n = np.bincount(i, minlength=8)
        assert n[0]==n[1] and n[3]==n[4] and n[5]==n[6]==n[7] and 0<y[i].sum()<len(i)
    np.testing.assert_array_equal(np.sort(np.concatenate([o for s in _strata(8) for o in s])), range(8))

def test_grouped_standard_error():
    y,s = cases(5, 30, 30); rep = lambda o: np.repeat(o, 4)
    V = _components(y==1, s[None])[0]
    tripled = _se(rep(y)==1, rep(V), rep(np.arange(60)))
    assert np.isclose(tripled, _se(y==1, V))
    assert np.isclose(auc_ci(rep(y), rep(s), groups=rep(np.arange(60))).low, auc_ci(y, s).low)
    assert auc_ci(rep(y), rep(s)).low>auc_ci(y, s).low
    mixed = np.arange(60)//3; res = delong_test(y, s, s+cases(6, 30, 30)[1], groups=mixed)
    boot = paired_auc_test(y, s, s+cases(6, 30, 30)[1], groups=mixed, method='bootstrap')
    assert np.isclose(res.se, boot.se, rtol=.2) and 'groups' in res.method

def test_false_alarms_under_no_difference():
    "Correlated, equally good models: the paired test rejects in about 5 % of 400 sets, grouped or not"
    hits = []
    for seed in range(400):
        rng = np.random.default_rng(seed); y = np.repeat([1,0], 40); s = y+rng.normal(size=80)
        patient = np.arange(80)//2; own = lambda: .5*np.repeat(rng.normal(size=40), 2)+.2*rng.normal(size=80)
        a,b = s+own(),s+own(); hits.append([delong_test(y, a, b).p<.05, delong_test(y, a, b, groups=patient).p<.05])
    plain,grouped = np.mean(hits, 0)
    assert grouped<.085 and grouped<plain

def test_holm():
    rng = np.random.default_rng(0)
    for k in 1,2,7:
        p = rng.uniform(size=k); adj = holm(p); o = np.argsort(p)
        slow = [max(min(1,(k-j)*p[o[j]]) for j in range(i+1)) for i in range(k)]
        np.testing.assert_allclose(adj[o], slow); assert (adj>=p).all()
    for bad in ([.1,np.nan],[1.2],[[.1]]):
        with pytest.raises(ArgumentError): holm(bad)

@settings(max_examples=60, deadline=None)
@given(labelled)
def test_rates_equal_sklearn(rows):
    y,s = (np.array(o) for o in zip(*rows)); pred = s>=.5
    (tn,fp),(fn,tp) = skm.confusion_matrix(y, pred); assert confusion(y, s)==(tp,fp,fn,tn)
    assert np.isclose(sensitivity(y, s), skm.recall_score(y, pred)) and np.isclose(accuracy(y, s), skm.accuracy_score(y, pred))
    assert np.isclose(balanced_accuracy(y, s), skm.balanced_accuracy_score(y, pred))
    np.testing.assert_allclose(precision(y, s), skm.precision_score(y, pred, zero_division=np.nan))

def test_zero_denominators_are_nan():
    assert np.isnan(sensitivity([0,0],[.1,.9])) and np.isnan(specificity([1],[.1])) and np.isnan(precision([0,1],[.1,.2])) and np.isnan(balanced_accuracy([1],[1]))
    row = binary_metrics([0,1,1], [.1,.2,.3]); assert row['auc']==1 and np.isnan(row['auc_low'])

def test_threshold_is_inclusive(): assert confusion([1,0], [.5,.5])==(1,1,0,0)

def test_calibration():
    y,s = cases(); p = 1/(1+np.exp(-s))
    assert np.isclose(brier(y, p), skm.brier_score_loss(y, p)) and brier(y, y)==0==expected_calibration_error(y, y)
    b = np.minimum((p*10).astype(int), 9)
    slow = sum(abs(p[b==k].mean()-y[b==k].mean())*(b==k).mean() for k in range(10) if (b==k).any())
    assert np.isclose(expected_calibration_error(y, p), slow)
    with pytest.raises(ArgumentError, match='softmax'): brier(y, s)
    with pytest.raises(ArgumentError, match='bins'): expected_calibration_error(y, p, 0)

def test_needs_neither_torch_vision_nor_pandas():
    import ast,inspect,sys,medattn_nb.metrics as m
    mods = {(o.names[0].name if isinstance(o, ast.Import) else o.module or '').split('.')[0] for o in ast.walk(ast.parse(inspect.getsource(m))) if isinstance(o, (ast.Import,ast.ImportFrom))}
    assert mods-sys.stdlib_module_names<={'numpy','scipy','core'}

# --- more than two classes -----------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.integers(0,10**6), st.integers(2,5), st.integers(6,40))
def test_macro_metrics_equal_sklearn(seed, K, n):
    rng = np.random.default_rng(seed); y = rng.permutation(np.arange(n)%K); S = rng.dirichlet(np.ones(K), n).round(2); call = S.argmax(1)
    C = class_confusion(y, call, K); np.testing.assert_array_equal(C, skm.confusion_matrix(y, call, labels=range(K)))
    m = multiclass_metrics(y, S)
    assert np.isclose(m['accuracy'].value, skm.accuracy_score(y, call)) and m['accuracy'].cases==n
    assert np.isclose(m['sensitivity'].value, skm.recall_score(y, call, average='macro')) and m['sensitivity'].cases==K
    np.testing.assert_allclose(m['precision'].value, np.nanmean(skm.precision_score(y, call, average=None, zero_division=np.nan)))
    assert m['precision'].missed==len(set(y)-set(call))
    assert np.isclose(m['auc'].value, np.mean([skm.roc_auc_score(y==k, S[:,k]) for k in range(K)]))
    assert macro_auc(y==0, S[:,0])[:2]==(roc_auc(y==0, S[:,0]),1)

def test_absent_classes_are_counted_not_dropped():
    y,S = [0,1,1],np.eye(4)[[0,1,2]]
    assert macro_auc(y, S)[1:]==(2,2,0) and macro_auc(y, S, missed=.5).cases==4
    C = class_confusion(y, [0,1,2], 4)
    assert macro_sensitivity(C)==(.75,2,1,1) and macro_precision(C)==(2/3,3,0,1)
    assert macro_sensitivity(C, empty=0, missed=0).value==1.5/4 and macro_sensitivity(C, only=3)[1:]==(0,0,1)
    assert np.isnan(overall_accuracy(np.zeros((3,3),int)).value)

def test_tally():
    assert tally([1,np.nan,np.nan], [False,True,False])==(1,1,1,1)
    assert tally([np.nan,2,np.nan], missed=[5,9,7]).value==14/3
    np.testing.assert_array_equal(tally([[1,np.nan]], reduction='none'), [[1,np.nan]])
    assert str(Score(.5, 2, 1))=='0.500 (2 of 3, 1 missed)' and float(Score(.5, 2))==.5
    v = np.array([np.nan,1]); tally(v, missed=0.); assert np.isnan(v[0])

@pytest.mark.parametrize('f,msg', [
    (lambda: class_confusion([0,3], [0,1], 3), 'y: got 3; with 3 classes'), (lambda: class_confusion([0,1], [0,-1], 3), 'called'), (lambda: class_confusion([0,1], [0], 3), 'each of the 2'),
    (lambda: macro_auc([0,2], [.1,.2]), 'with 2 classes'), (lambda: macro_auc([0,1], np.full((2,2), np.nan)), 'nan'), (lambda: macro_auc([], []), 'one class for each'),
    (lambda: tally([1], empty='drop'), "'skip' or a number"), (lambda: tally([1], missed=None), "'skip' or a number"), (lambda: tally([1], reduction='sum'), "'mean' or 'none'")])
def test_bad_classes(f, msg):
    with pytest.raises(ArgumentError, match=msg): f()

# --- any metric, several classes, several runs -----------------------------------------------------------
def three(seed=0, runs=3, n=45, K=3, shift=1.):
    rng = np.random.default_rng(seed); y = np.r_[np.arange(n-6)%K, rng.integers(K, size=6)]
    return y,np.eye(K)[y]*shift+rng.normal(0, 1, (runs,n,K))

@settings(max_examples=60, deadline=None)
@given(st.integers(0,999), st.integers(2,5), st.sampled_from(METRICS))
def test_weights_are_repeated_cases(seed, K, metric):
    "A draw is the metric of the cases it holds, as often as it holds them; a class that it lacks stays out"
    y,S = three(seed, 1, 30, K)
    w = np.random.default_rng(seed).integers(0, 3, 30)
    again = np.repeat(np.arange(30), w)
    want = multiclass_metrics(y[again], S[0][again])[metric].value
    got,truth,call = _draws(y, S[0], w[None].astype(float), metric)[0],y[again],S[0][again].argmax(1)
    if len(np.unique(truth))==K: assert np.isclose(got, want, equal_nan=True)
    elif metric!='auc':
        of = {'sensitivity':truth, 'precision':call, 'accuracy':np.zeros_like(truth)}[metric]
        assert np.isclose(got, np.mean([(truth==call)[of==k].mean() for k in np.unique(of)]))

@pytest.mark.parametrize('metric', METRICS)
def test_two_classes_as_at_one_threshold(metric):
    y,s = cases(3); p = 1/(1+np.exp(-s))
    want = dict(auc=roc_auc, sensitivity=sensitivity, accuracy=accuracy, precision=precision)[metric](y, p)
    assert metric_values(y, [p,p], metric)==pytest.approx((want,want))
    assert skm.recall_score(y, p>=.5)==pytest.approx(metric_values(y, [p], 'sensitivity')[0])

@pytest.mark.parametrize('groups,k', [(None,5), ([0,0,1,1,2,2,3,3,4,4],2), ([0,1,2,3,4,5,6,7,8,9],5), ([0,0,1,2,3,4,5,6,7,8],4)])
def test_perfect_auc_counts_pairs_that_share_no_group(groups, k):
    y = np.arange(10)%2                                                     # neighbours are one of each class
    lo,hi = auc_ci(y, y, groups=None if groups is None else np.array(groups))[1:]
    assert hi==1 and lo==pytest.approx(.025**(1/k))

def test_undefined_draws_are_no_evidence():
    "A metric that is undefined has no interval and no p; where it is undefined in some draws, p is that of the others"
    y = np.arange(40)%2
    silent,good = np.zeros((2,40)),np.stack([y*.6+.2]*2)                    # nobody is called sick: no precision
    t = paired_metric_test(y, silent, good, 'precision', n=200)
    assert np.isnan([t.p,t.se,*t.ci]).all()
    rare = np.zeros((1,40)); rare[0,[0,1]] = .9                             # one right, one wrong call; a draw may have neither
    t = paired_metric_test(y, rare, rare, 'precision', n=400, resample_runs=False)
    assert t.p==1 and t.ci==(0,0)

@pytest.mark.parametrize('metric', METRICS)
def test_paired_metric_test(metric):
    (y,A),(_,B) = three(1, shift=2.),three(2, shift=2.)
    t,back = paired_metric_test(y, A, B, metric, n=300),paired_metric_test(y, B, A, metric, n=300)
    assert t.diff==pytest.approx(-back.diff)==pytest.approx(np.mean(t.values_a)-np.mean(t.values_b)) and t.ci[0]<=t.ci[1] and t.se>0 and 0<t.p<=1
    same = paired_metric_test(y, A, A, metric, n=100, resample_runs=False)
    assert (same.diff,same.ci,same.p)==(0,(0,0),1)
    assert paired_metric_test(y, A, B-9, metric, n=100)==paired_metric_test(y, A, B, metric, n=100)
    assert str(t).count('to')==1

def test_more_runs_and_groups_change_the_interval():
    y,S = three(4, runs=4)
    one,all_ = (mean_metric_ci(y, S, n=400, resample_runs=o) for o in (False,True))
    assert all_.high-all_.low>one.high-one.low and one.value==all_.value
    twins = np.arange(45)//3
    assert mean_metric_ci(y, S, n=400, groups=twins)!=all_

@pytest.mark.parametrize('y,S,metric,says', [([0,1], [[.1,.9]], 'f1', 'choose from auc'), ([0,1], [.1,.9], 'auc', r'\(runs,n\)'), ([0,1,2], [[.1,.9,.3]], 'auc', 'from 0 to 1'),
    ([0,1], [[.1,np.nan]], 'auc', '1 nan'), ([1,1], [[.1,.9]], 'auc', 'undefined'), ([0,1], [[[.1,.9]]], 'auc', 'each of the 2 cases'), ([0,3], [[[.1,.9,0],[0,.1,.9]]], 'accuracy', 'from 0 to 2')])
def test_bad_input_of_any_metric(y, S, metric, says):
    for f in (metric_values, mean_metric_ci, lambda *a: paired_metric_test(a[0], a[1], a[1], a[2])):
        with pytest.raises(MedattnError, match=says): f(y, S, metric)

# --- average precision ----------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', range(4))
def test_average_precision_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    y,s = rng.random(200)<.3,rng.random(200).round(seed or 8)
    assert average_precision(y, s)==pytest.approx(skm.average_precision_score(y, s))
    assert np.isnan(average_precision(y&False, s))
    with pytest.raises(ShapeError): average_precision(y, s[:-1])

def test_weighted_average_precision_is_that_of_repeated_cases():
    rng = np.random.default_rng(0)
    y,s,W = rng.random(60)<.2,rng.random(60).round(1),rng.integers(0, 4, (20,60)).astype(float)
    want = [skm.average_precision_score(np.repeat(y, w.astype(int)), np.repeat(s, w.astype(int))) for w in W]
    np.testing.assert_allclose(_weighted_ap(y, s, W), want)
    assert np.isnan(_weighted_ap(y, s, np.zeros((1,60)))).all()

# --- options that no other test gives ------------------------------------------------------------------
@pytest.mark.parametrize('threshold', [.2,.5,.8])
def test_rates_at_a_threshold_against_sklearn(threshold):
    y,s = cases(5); p = 1/(1+np.exp(-s)); call = p>=threshold
    assert tuple(confusion(y, p, threshold))==tuple(getattr(confusion(y, call.astype(float), .5), k) for k in confusion(y, p)._fields)
    want = dict(accuracy=skm.accuracy_score(y, call), sensitivity=skm.recall_score(y, call), specificity=skm.recall_score(y, call, pos_label=0), precision=skm.precision_score(y, call), balanced_accuracy=skm.balanced_accuracy_score(y, call))
    for f in (accuracy,sensitivity,specificity,precision,balanced_accuracy): assert f(y, p, threshold)==pytest.approx(want[f.__name__])
    b = binary_metrics(y, p, threshold)
    assert b['threshold']==threshold and {k:b[k] for k in want}==pytest.approx(want)

@pytest.mark.parametrize('metric', METRICS)
def test_levels_and_seeds_of_intervals(metric):
    y,S = three(2, 3, 60)
    lo,mid,hi = (mean_metric_ci(y, S, metric, level=o) for o in (.8,.95,.99))
    assert hi.low<=mid.low<=lo.low<=lo.value<=lo.high<=mid.high<=hi.high and hi.low<lo.low
    assert mean_metric_ci(y, S, metric, seed=1)==mean_metric_ci(y, S, metric, seed=1)!=mean_metric_ci(y, S, metric, seed=2)

def test_patients_that_are_drawn_together_widen_the_interval():
    "Every case four times, as four pictures of one patient: with groups the interval is that of the patients, without it is half as wide"
    y,S = three(4, 2, 60); T = S+np.random.default_rng(0).normal(0, .8, S.shape)
    yy,SS,TT,g = np.repeat(y, 4),np.repeat(S, 4, 1),np.repeat(T, 4, 1),np.repeat(np.arange(60), 4)
    kw = dict(metric='accuracy', resample_runs=False)
    def width(o): lo,hi = o.ci if hasattr(o, 'ci') else (o.low,o.high); return hi-lo
    for f,few,many in ((mean_metric_ci,(y,S),(yy,SS)), (paired_metric_test,(y,S,T),(yy,SS,TT))):
        apart,alone,together = f(*many, **kw),f(*few, **kw),f(*many, groups=g, **kw)
        assert .7<width(together)/width(alone)<1.4 and .35<width(apart)/width(alone)<.7
